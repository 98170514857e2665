"""Which finished VAE a latent-diffusion run uses: launch.py and train_diffusion.py ask the same function.

Torch-free.
"""

from __future__ import annotations

from pathlib import Path

from data.files import read_object
from jobs.config.specs import ConfigError, DiffusionConfig, read_json
from jobs.run.owners import others_may_replace

COLLAPSE = "POSTERIOR COLLAPSE"  # of the verdict of a VAE's run
FITS = ("data", "resolution", "channels", "crop")  # what the two runs must have in common


def copied_vae(run: Path) -> Path:
    """Where a run keeps its own copy of the VAE's weights."""
    return run / "vae.safetensors"


def verdict_of(weights: Path) -> object:
    """What the run of these weights says of itself; None where it says nothing."""
    return read_object(weights.with_name("status.json"))[0].get("verdict")


def has_collapsed(verdict: object) -> bool:
    """Whether a run's verdict is that its latents carry nothing."""
    return COLLAPSE in str(verdict)


def useful(commands: list[str], verdict: object) -> list[str]:
    """What one does next with a run of this verdict: nothing is trained on latents that carry nothing."""
    return [words for words in commands if not (has_collapsed(verdict) and " --vae " in words)]


def refuse_collapsed(c: DiffusionConfig, weights: Path, verdict: object) -> None:
    """ConfigError where the VAE's own run has said that its latents carry nothing of the slices, unless --override."""
    if has_collapsed(verdict) and not c.override:
        raise ConfigError(
            f"--vae {weights.parent}: its latents carry nothing of the slices ({COLLAPSE}), so there is nothing to "
            "learn; train one with a smaller --kl-weight, or take it all the same: --override"
        )


def find_vae(c: DiffusionConfig) -> Path:
    """The weights of the VAE to use: --vae, else of the newest finished VAE run beside this one that fits.

    Only runs that nobody else may write to are taken unasked. ConfigError where there is none, with what was passed
    over.
    """
    if c.vae:
        path = Path(c.vae)
        path = path if path.is_file() else path / "weights.safetensors"
        refuse_collapsed(c, path, verdict_of(path))
        return path
    found, passed_over = [], []
    for done in Path(c.run).parent.glob("*/DONE"):
        folder = done.parent
        try:
            stored = read_json(folder / "config.json")
        except ConfigError:
            continue
        if "latent_channels" not in stored or any(stored.get(k) != getattr(c, k) for k in FITS):
            continue
        weights = folder / "weights.safetensors"
        if reason := others_may_replace(folder):
            passed_over.append(f"{folder.name} is not taken unasked: {reason}")
        elif has_collapsed(verdict_of(weights)) and not c.override:
            passed_over.append(f"the latents of {folder.name} carry nothing ({COLLAPSE.lower()})")
        elif not weights.is_file():
            passed_over.append(f"{folder.name} has no weights.safetensors")
        else:
            found.append((done.stat().st_mtime, weights))
    if not found:
        more = f" ({'; '.join(passed_over[:3])})" if passed_over else ""
        raise ConfigError(
            f"no finished VAE run in {Path(c.run).parent} fits this data at {c.resolution} px{more}; run "
            "pretrain_vae.py "
            "first (launch.py --job pipeline does both), or name one with --vae RUN"
        )
    return max(found)[1]
