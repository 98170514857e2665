"""What each job is: one frozen dataclass of flat fields per train script, its presets, its checks. Never imports torch.

The field order is the order of `--help`; the docstring below a field is its help text. A value comes from, in rising
order of precedence: the field's default, the preset, the flag on the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(Exception):
    """A configuration that cannot run; the text is one line that names the fix. Exit code 78."""


@dataclass(frozen=True)
class GanConfig:
    """Train a StyleGAN2 on brain-MRI slices. Run the same command again to resume."""

    # --- the run ------------------------------------------------------------------------------------------------------
    run: str = ""
    """Run directory on shared storage. Default: runs/stylegan2-<8 hex of the config>, so the same config is the same run."""
    preset: str = ""
    """A named configuration that the other flags override: adni256, adni128, oasis128, oasis64, quickstart."""
    data: str = ""
    """A folder of slices (its layout is recognised), a .pack file, or phantom[:N]."""
    split: Literal["train", "test", "val", "all"] = "train"
    """Which part of the data to train on."""
    max_bad: float = 0.01
    """Stop when more than this fraction of the image files cannot be read."""
    seed: int = 0
    """Every random draw is a function of this seed and of the number of images seen."""
    dry_run: bool = False
    """Check everything, print the resolved config as JSON, and exit."""
    override: bool = False
    """Resume although flags differ from the run's config (logged). Architecture can never differ."""
    init_from: str = ""
    """Start a new run from the weights of this run directory."""

    # --- data ---------------------------------------------------------------------------------------------------------
    resolution: int = 256
    """Side of the square training images in pixels: a power of two from 32 to 512."""
    channels: Literal[1, 3] = 1
    """Image channels: 1 (grey) or 3."""
    crop: int = 0
    """Crop this many pixels from the middle of the padded slice before resizing (0: none). Undone when generating."""
    conditional: bool = False
    """Condition both networks on the class label (projection discriminator)."""
    hflip: bool = False
    """Mirror training slices left-right at random. Off: a brain's sides are not the same."""

    # --- networks -----------------------------------------------------------------------------------------------------
    z_dim: int = 512
    """Size of the latent z."""
    w_dim: int = 512
    """Size of the intermediate latent w."""
    mapping_layers: int = 8
    """Layers of the mapping network."""
    channel_base: int = 16384
    """Feature maps at resolution r are channel_base / r, at most channel-max."""
    channel_max: int = 512
    """Largest number of feature maps."""
    mbstd_group: int = 4
    """Group size of the minibatch standard deviation (contiguous rows of the batch)."""

    # --- objective ----------------------------------------------------------------------------------------------------
    loss: Literal["logistic", "rpgan"] = "logistic"
    """logistic: non-saturating, with R1. rpgan: relativistic pairing, with R1 and R2; the answer to mode collapse."""
    gamma: float = 1.0
    """Weight of the R1 (and R2) penalty. The knob to turn per data set: try a factor of 2 and 4 either way."""
    r1_interval: int = 16
    """Steps between gradient penalties (lazy regularisation)."""
    pl_weight: float = 2.0
    """Weight of the path-length regularisation (0: off)."""
    pl_interval: int = 4
    """Steps between path-length regularisations."""
    pl_decay: float = 0.01
    """Decay of the running mean of path lengths."""
    style_mixing: float = 0.9
    """Probability that a generated image mixes the styles of two latents."""
    ada: Literal["off", "mri", "mri-flip"] = "mri"
    """Adaptive discriminator augmentation: shifts, scales, small rotations, brightness, contrast; mri-flip adds mirroring."""
    ada_target: float = 0.6
    """What ADA steers the mean sign of D(real) to."""
    ada_kimg: float = 500.0
    """Kimg in which ADA's probability can move from 0 to 1."""

    # --- optimisation -------------------------------------------------------------------------------------------------
    batch: int = 64
    """Global batch size, over all GPUs and accumulation steps."""
    accumulate: int = 1
    """Micro-batches per step on each GPU; the result stays the same, memory falls."""
    total_kimg: float = 5000.0
    """Length of the run in thousands of images seen. May be raised later to go on with a finished run."""
    lr: float = 0.0025
    """Adam learning rate of both networks."""
    ema_kimg: float = 20.0
    """Half-life of the moving average of the generator's weights, in kimg."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images seen (0: no ramp-up)."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type the convolutions run in. auto: bf16 where the device is fast at it, else fp32."""
    compile: bool = False
    """torch.compile the networks (CUDA GPUs; the first steps take minutes)."""
    threads: int = 0
    """CPU threads per process (0: all that the job was given)."""

    # --- logging and checkpoints --------------------------------------------------------------------------------------
    log_kimg: float = 4.0
    """Kimg between rows in metrics.jsonl and TensorBoard."""
    sample_kimg: float = 50.0
    """Kimg between sample grids and diversity figures."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints (fractions allowed)."""
    checkpoint_kimg: float = 0.0
    """Kimg between checkpoints, on top of the minutes (0: off)."""
    keep: int = 2
    """Checkpoints to keep, besides the last healthy one."""


# One preset per published system that students start from; recipe values: StyleGAN2's paper256 for 256 px, the R1 weight
# scaled with the square of the resolution below it.
GAN_PRESETS: dict[str, dict] = {
    "adni256": dict(resolution=256, batch=64, gamma=1.0, ema_kimg=20.0, mbstd_group=8, total_kimg=5000.0),
    "adni128": dict(resolution=128, batch=64, gamma=0.25, total_kimg=4000.0),
    "oasis128": dict(resolution=128, batch=64, gamma=0.25, total_kimg=3000.0),
    "oasis64": dict(resolution=64, crop=208, batch=64, gamma=0.03, ema_kimg=10.0, total_kimg=2000.0),
    # Small enough for two CPU cores and a few minutes.
    "quickstart": dict(
        data="phantom:2000", resolution=64, batch=16, total_kimg=28.0, channel_base=1024, channel_max=64,
        z_dim=64, w_dim=64, mapping_layers=2, loss="rpgan", gamma=0.5, r1_interval=8, ema_kimg=1.5, ema_rampup=0.1,
        ada="off", lr=0.004, pl_weight=0.0, log_kimg=0.5, sample_kimg=4.0, checkpoint_minutes=1.0,
    ),
}  # fmt: skip

PRESETS = {GanConfig: GAN_PRESETS}
DEFAULT_PRESET = {GanConfig: "adni256"}
JOB_NAME = {GanConfig: "stylegan2"}

# A checkpoint fits only networks for which all of these agree.
ARCHITECTURE = frozenset(
    "resolution channels conditional z_dim w_dim mapping_layers channel_base channel_max mbstd_group".split()
)
# These do not change the result: they are not part of the run's name and may differ on resume.
FREE = frozenset(
    (
        "run preset dry_run override init_from total_kimg compile threads log_kimg sample_kimg "
        "checkpoint_minutes checkpoint_kimg keep max_bad"
    ).split()
)


def parse(cls, argv: list[str] | None = None):
    """Resolve a config from the command line. Wrong flags exit with code 2; wrong values raise ConfigError.

    With `--run` of an existing run and no `--preset`, the run's own config is what the flags are laid over, so that
    `--run DIR` alone resumes it.
    """
    import tyro  # slow to import, and launch.py needs the presets only

    argv = list(sys.argv[1:] if argv is None else argv)
    preset, run = _flag(argv, "preset"), _flag(argv, "run")
    base = cls()
    stored = Path(run, "config.json") if run else None
    if preset is None and stored is not None and stored.is_file():
        base = from_dict(cls, read_json(stored))
    else:
        name = DEFAULT_PRESET[cls] if preset is None else preset
        if name not in PRESETS[cls]:
            raise ConfigError(f"--preset {name}: there is no such preset; choose from {', '.join(PRESETS[cls])}")
        base = replace(base, **PRESETS[cls][name], preset=name)
    base = replace(base, dry_run=False, override=False, **({"run": run} if run else {}))
    config = tyro.cli(
        cls, args=argv, default=base, prog=Path(sys.argv[0]).name, config=(tyro.conf.HelptextFromCommentsOff,)
    )
    check(config)
    config = replace(config, data=_absolute_data(config.data), init_from=_absolute(config.init_from))
    return replace(config, run=_absolute(config.run) if config.run else str(ROOT / "runs" / default_name(config)))


def _flag(argv: list[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE` (the last one), without parsing the rest."""
    value = None
    for i, arg in enumerate(argv):
        if arg == f"--{name}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.split("=", 1)[1]
    return value


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _absolute_data(spec: str) -> str:
    """Data paths become absolute, so that a requeued job in another folder means the same; `phantom[:N]` is no path."""
    return spec if not spec or spec == "phantom" or spec.startswith("phantom:") else _absolute(spec)


def read_json(path: Path) -> dict:
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({error}); restore it, or use another --run") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: not a config; restore it, or use another --run")
    return value


def from_dict(cls, values: dict):
    """A config from a stored dict; fields that a newer version added keep their defaults, unknown ones are an error."""
    known = {f.name: getattr(cls(), f.name) for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"the stored config has unknown fields {', '.join(unknown)}; it is from another version")
    for name, value in values.items():
        default = known[name]
        fits = isinstance(value, (int, float)) if isinstance(default, float) else isinstance(value, type(default))
        if not fits or (isinstance(value, bool) != isinstance(default, bool)):
            raise ConfigError(f"the stored config's {name} is {value!r}, expected {type(default).__name__}")
    return cls(**values)


def result_fields(config) -> dict:
    """The fields that change the result: what names a run, and what a weights file says of its origin."""
    return {k: v for k, v in sorted(asdict(config).items()) if k not in FREE}


def config_hash(config) -> str:
    """8 hex digits over the fields that change the result."""
    content = result_fields(config)
    if config.init_from:
        content["init_from"] = config.init_from
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def default_name(config) -> str:
    return f"{JOB_NAME[type(config)]}-{config_hash(config)}"


def check(config) -> None:
    """Refuse values that cannot work, each with one line that names the fix."""
    r = config.resolution
    if not 32 <= r <= 512 or r & (r - 1):
        raise ConfigError(f"--resolution {r}: must be a power of two from 32 to 512")
    if not config.data:
        raise ConfigError(
            "no data: give --data FOLDER (ADNI, OASIS, class folders, NIfTI), a .pack file, or --data phantom"
        )
    if config.batch < 1 or config.accumulate < 1:
        raise ConfigError(f"--batch {config.batch} and --accumulate {config.accumulate} must be at least 1")
    if config.mbstd_group < 1:
        raise ConfigError(f"--mbstd-group {config.mbstd_group}: must be at least 1")
    positive = "total_kimg log_kimg sample_kimg lr channel_base channel_max z_dim w_dim mapping_layers r1_interval pl_interval keep"
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be greater than 0")
    for name in (
        "gamma pl_weight style_mixing ema_kimg ema_rampup ada_kimg checkpoint_minutes checkpoint_kimg threads crop"
    ).split():
        if not getattr(config, name) >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must not be negative")
    if config.style_mixing > 1:
        raise ConfigError(f"--style-mixing {config.style_mixing}: a probability, at most 1")
    if config.channel_base < r:
        raise ConfigError(
            f"--channel-base {config.channel_base}: less than one feature map at {r} px; use at least {r * 8}"
        )
    check_world(config, world=int(os.environ.get("WORLD_SIZE", 1)))


def check_world(config, world: int) -> None:
    """The global batch must fall into whole minibatch-std groups on every rank and micro-batch."""
    parts, group = world * config.accumulate, config.mbstd_group
    if config.batch % (parts * group):
        raise ConfigError(
            f"--batch {config.batch} does not divide into {world} ranks x {config.accumulate} micro-batches of whole "
            f"groups of {group} (--mbstd-group); use a multiple of {parts * group}"
        )
    if config.pl_weight and (config.batch // 2) % parts:
        raise ConfigError(
            f"--batch {config.batch}: path length takes half of it, which does not divide into {parts} parts; "
            f"use a multiple of {2 * parts * group}, or --pl-weight 0"
        )


def gan_memory_gb(config, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: weights, Adam, EMA and gradients, plus the activations of one D step.

    Activations: about 14 tensors of (batch, channels, r, r) per resolution are alive at the peak of the discriminator's
    step on generated and real images together; the figure errs on the high side.
    """
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = 4 if config.precision == "fp32" else 2
    activations, r = 0.0, 4
    while r <= config.resolution:
        c = min(config.channel_base // r, config.channel_max)
        activations += 2 * micro * 14 * c * r * r * bytes_per_value
        r *= 2
    return (gan_parameters(config) * 4 * 4.5 + activations) / 1e9


def gan_parameters(config) -> float:
    """Rough number of parameters of G and D together."""
    parameters, r = 0.0, 4
    while r <= config.resolution:
        c = min(config.channel_base // r, config.channel_max)
        parameters += 2 * (2 * 9 * c * c + 2 * c * config.w_dim)
        r *= 2
    return (
        parameters
        + config.mapping_layers * config.w_dim**2
        + 16 * min(config.channel_base // 4, config.channel_max) ** 2
    )


def gan_checkpoint_gb(config) -> float:
    """Rough size of one checkpoint in GB: fp32 weights of G and D, Adam's two moments of both, the EMA of G."""
    return gan_parameters(config) * 4 * 3.5 / 1e9


def to_json(config) -> str:
    return json.dumps(asdict(config), indent=2, sort_keys=True)


# --- the jobs that launch.py and the sbatch scripts start --------------------------------------------------------------
@dataclass(frozen=True)
class Job:
    """One kind of training job. memory_gb(config, world) is per GPU, checkpoint_gb(config) per checkpoint; both rough."""

    script: str
    config: type
    memory_gb: Callable[..., float]
    checkpoint_gb: Callable[..., float]


JOBS: dict[str, Job] = {
    "stylegan2": Job("train_gan.py", GanConfig, gan_memory_gb, gan_checkpoint_gb),
}
