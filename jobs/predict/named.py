"""Runs and weights files by the names that a person gives them. Torch-free."""

from __future__ import annotations

from pathlib import Path

from data.files import leads_out
from jobs.config.specs import ConfigError
from jobs.run.find import find_run, runs_inside
from jobs.run.rundir import RunDir


class UsageError(Exception):
    """A flag or an argument that does not fit this model; the text is one line that names the fix. Exit code 2."""


def weights_of(run: str | Path, at: str = "last") -> Path:
    """The weights file of a run, or the file itself. `at`: last, best, or the kimg of one that --keep-weights kept.

    ConfigError where there is none.
    """
    path = Path(run)
    if path.suffix == ".safetensors" and not path.is_dir():
        if at != "last":
            raise UsageError(f"--at {at}: {path} is one weights file; name the run instead, or leave --at out")
        return path
    folder = RunDir(run_of(str(run)))
    weights = {"last": folder.weights, "best": folder.best}.get(at) or _kept(folder, at)
    if not weights.is_file():
        if at == "best":
            raise ConfigError(
                f"{run}: no best weights: nothing was measured while it was healthy (--metric-kimg, but for a VAE). "
                "Use --at last"
            )
        raise ConfigError(f"{run}: has no weights yet; training writes them at its first checkpoint")
    if leads_out(weights, weights.parent):
        raise ConfigError(f"{weights}: a link that leads out of the run; name the file itself with --weights")
    return weights


def weights_file(text: str) -> Path:
    """What --weights names. UsageError for a folder, a checkpoint, or a name of nothing."""
    path = Path(text)
    if path.is_dir():
        raise UsageError(f"--weights {text}: a folder; --run {text} takes a run, --weights a file")
    if path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        raise UsageError(f"--weights {text}: a checkpoint, from which training alone goes on; give --run RUN, or its "
                         "weights.safetensors")  # fmt: skip
    if not path.exists():
        raise UsageError(f"--weights {text}: there is no such file; --run takes the name of a run")
    return path


def _kept(run: RunDir, at: str) -> Path:
    """The kept weights at that kimg, to 1 % of it: a boundary lies within a step."""
    try:
        asked = float(at)
    except ValueError:
        raise UsageError(f"--at {at}: neither best nor last nor a kimg") from None
    kept = run.kept()
    near = min(kept, key=lambda kimg: abs(kimg - asked), default=None)
    if near is None or not abs(near - asked) <= 0.01 * near:
        there = ", ".join(f"{kimg:.10g}" for kimg in sorted(kept)) or "none; --keep-weights N keeps some"
        raise ConfigError(f"--at {at}: {run.path} keeps no weights of that kimg; there are {there}")
    return kept[near]


def run_of(text: str) -> Path:
    """The run directory that a person means, or a folder with a part of one, such as its weights alone.

    ConfigError where there is none.
    """
    try:
        return find_run(text)
    except LookupError as error:
        if inside := runs_inside(Path(text)):
            raise UsageError(f"--run {text}: {inside}") from None
        if Path(text).is_dir():
            return Path(text).absolute()
        raise ConfigError(f"--run {text}: {error.args[0]}") from None
