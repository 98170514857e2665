"""What each job is: one frozen dataclass of flat fields per train script, its presets, its checks. Never imports torch.

The field order is the order of `--help`; the docstring below a field is its help text. A value comes from, in rising
order of precedence: the field's default, the preset, the flag on the command line.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parent.parent


class ConfigError(Exception):
    """A configuration that cannot run; the text is one line that names the fix. Exit code 78."""

    exit_code = 78


@dataclass(frozen=True)
class TrainConfig:
    """What every training run has; no job of its own."""

    # --- the run ------------------------------------------------------------------------------------------------------
    run: str = ""
    """Run directory on shared storage. Default: runs/<job>-<8 hex of the config>, so the same config is the same run."""
    preset: str = ""
    """A named configuration that the other flags override."""
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

    # --- optimisation -------------------------------------------------------------------------------------------------
    batch: int = 64
    """Global batch size, over all GPUs and accumulation steps."""
    accumulate: int = 1
    """Micro-batches per step on each GPU; the result stays the same, memory falls."""
    total_kimg: float = 2000.0
    """Length of the run in thousands of images seen. May be raised later to go on with a finished run."""
    ema_kimg: float = 200.0
    """Half-life of the moving average of the weights, in kimg."""
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
    """Kimg between sample grids and the figures that belong to them."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints (fractions allowed)."""
    checkpoint_kimg: float = 0.0
    """Kimg between checkpoints, on top of the minutes (0: off)."""
    keep: int = 2
    """Checkpoints to keep, besides the last healthy one."""


@dataclass(frozen=True)
class GanConfig(TrainConfig):
    """Train a StyleGAN2 on brain-MRI slices. Run the same command again to resume."""

    # --- the run ------------------------------------------------------------------------------------------------------
    preset: str = ""
    """A named configuration that the other flags override: adni256, adni128, oasis128, oasis64, quickstart."""

    # --- data ---------------------------------------------------------------------------------------------------------
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
    total_kimg: float = 5000.0
    """Length of the run in thousands of images seen. May be raised later to go on with a finished run."""
    lr: float = 0.0025
    """Adam learning rate of both networks."""
    ema_kimg: float = 20.0
    """Half-life of the moving average of the generator's weights, in kimg."""


@dataclass(frozen=True)
class DenoisingConfig(TrainConfig):
    """What the VAE and the diffusion network share; no job of its own."""

    # --- the run ------------------------------------------------------------------------------------------------------
    preset: str = ""
    """A named configuration that the other flags override: adni256-ldm, quickstart."""
    val_split: Literal["auto", "val", "test", "none"] = "auto"
    """Other patients to validate on. auto: val where the data have it, else test, else none."""

    # --- optimisation -------------------------------------------------------------------------------------------------
    lr: float = 1e-4
    """AdamW learning rate, after the warm-up."""
    warmup_kimg: float = 20.0
    """Kimg over which the learning rate rises from 0."""
    decay_kimg: float = 0.0
    """Kimg from the start in which the learning rate falls to a tenth along a cosine, to stay there (0: constant)."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices and convolutions; biases and norms have none."""
    clip: float = 1.0
    """Largest norm of the gradient; longer ones are shortened to it."""


@dataclass(frozen=True)
class VaeConfig(DenoisingConfig):
    """Train a KL-VAE on brain-MRI slices. Run the same command again to resume."""

    # --- network ------------------------------------------------------------------------------------------------------
    down: Literal[2, 4, 8] = 8
    """Pixels per latent along each side."""
    latent_channels: int = 8
    """Channels of the latents. 8 at down 8 reconstruct much better than 4 at twice the size of the cache."""
    width: int = 64
    """Channels at full resolution; 2, 4 and 4 times as many at each halving."""
    num_res: int = 2
    """Residual blocks per resolution."""
    hflip: bool = False
    """Mirror training slices left-right at random. Off: a brain's sides are not the same."""

    # --- learning rate ------------------------------------------------------------------------------------------------
    decay: Literal["cosine", "plateau"] = "cosine"
    """How the learning rate falls. cosine: over decay-kimg; plateau: by half when the loss stops falling."""
    plateau_kimg: float = 50.0
    """Plateau: kimg over which the training loss is averaged; it halves the rate unless that fell by 1 %."""

    # --- objective, all in means per value ----------------------------------------------------------------------------
    loss: Literal["l1", "mse"] = "l1"
    """Distance of pixels, on the scale -1 .. 1."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence per latent value. Higher: smoother latents, blurrier slices."""
    structure_weight: float = 0.1
    """Weight of the perceptual term that needs no other network: SSIM and gradients at three scales (0: off)."""
    perceptual_file: str = ""
    """Weights of torchvision's vgg16 (.pth or .safetensors) for a perceptual term from its features. Default: none."""
    perceptual_weight: float = 0.1
    """Weight of that term."""
    gan_weight: float = 0.5
    """Weight of the patch discriminator's gradient relative to that of the reconstruction (0: no discriminator)."""
    gan_start_kimg: float = 200.0
    """Kimg after which the discriminator joins."""
    disc_width: int = 64
    """Channels of the patch discriminator's first layer."""


@dataclass(frozen=True)
class DiffusionConfig(DenoisingConfig):
    """Train a diffusion U-Net, on the latents of a VAE or on pixels. Run the same command again to resume."""

    # --- what it runs on ----------------------------------------------------------------------------------------------
    space: Literal["latent", "pixel"] = "latent"
    """latent: on the latents of a VAE. pixel: on the images themselves (64 px and below)."""
    vae: str = ""
    """Run directory of the VAE. Default: the newest finished one beside this run with the same data, resolution, channels and crop."""
    conditional: bool = False
    """Condition on the class label, with classes dropped at random for guidance."""
    class_dropout: float = 0.1
    """Probability that a label is dropped in training."""

    # --- network ------------------------------------------------------------------------------------------------------
    widths: str = "64,128,256"
    """Channels at each resolution of the U-Net, finest first; each resolution is half of the one before."""
    num_res: int = 2
    """Residual blocks per resolution."""
    attention: str = "16,8"
    """Sides of the feature maps, in pixels, that have self-attention."""
    head_dim: int = 64
    """Channels of an attention head."""
    dropout: float = 0.1
    """Dropout inside the residual blocks; 0.2 for fewer than 10,000 slices."""

    # --- diffusion ----------------------------------------------------------------------------------------------------
    schedule: Literal["linear", "scaled-linear", "cosine", "zero-snr", "flow"] = "flow"
    """Noise schedule. flow: straight lines from data to noise; zero-snr: scaled-linear, rescaled to end at pure noise."""
    target: Literal["epsilon", "x0", "v", "flow"] = "flow"
    """What the network predicts."""
    times: Literal["uniform", "logit-normal", "fast-uniform", "fast-nonuniform"] = "logit-normal"
    """Training times. fast-*: only the steps of Fast-DDPM, for its own few-step sampling."""
    fast_steps: int = 10
    """Steps of fast-uniform and fast-nonuniform."""
    min_snr_gamma: float = 0.0
    """Weight the loss by min(SNR, this) on x0 (0: off). 5 suits uniform times with epsilon or v."""
    sampler: Literal["midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"] = "midpoint"
    """Sampler of the grids while training."""
    steps: int = 20
    """Network calls per sample of the grids."""


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

VAE_PRESETS: dict[str, dict] = {
    "adni256-ldm": dict(resolution=256, batch=32, total_kimg=1500.0, decay_kimg=1500.0, ema_kimg=50.0),
    # Small enough for two CPU cores and a few minutes.
    "quickstart": dict(
        data="phantom:2000", resolution=64, batch=8, total_kimg=12.0, precision="fp32", down=4, latent_channels=8, width=16, num_res=1,
        gan_weight=0.0, lr=2e-3, warmup_kimg=0.5, decay_kimg=12.0, ema_kimg=0.5, log_kimg=0.5, sample_kimg=4.0, checkpoint_minutes=1.0,
    ),
}  # fmt: skip

DIFFUSION_PRESETS: dict[str, dict] = {
    "adni256-ldm": dict(
        resolution=256, batch=128, total_kimg=10000.0, lr=2e-4, warmup_kimg=130.0, decay_kimg=10000.0, ema_kimg=500.0,
        widths="128,256,256", conditional=True, sample_kimg=200.0, log_kimg=10.0,
    ),
    "quickstart": dict(
        data="phantom:2000", resolution=64, batch=32, total_kimg=60.0, precision="fp32", lr=1e-3, warmup_kimg=1.0, decay_kimg=60.0, ema_kimg=2.0,
        widths="48,96", num_res=1, attention="8", head_dim=48, dropout=0.0, conditional=True, log_kimg=1.0, sample_kimg=12.0, checkpoint_minutes=1.0,
    ),
}  # fmt: skip

PRESETS = {GanConfig: GAN_PRESETS, VaeConfig: VAE_PRESETS, DiffusionConfig: DIFFUSION_PRESETS}
DEFAULT_PRESET = {GanConfig: "adni256", VaeConfig: "adni256-ldm", DiffusionConfig: "adni256-ldm"}
JOB_NAME = {GanConfig: "stylegan2", VaeConfig: "vae", DiffusionConfig: "diffusion"}

# A checkpoint fits only networks for which all of these agree.
ARCHITECTURE = frozenset(
    (
        "resolution channels conditional z_dim w_dim mapping_layers channel_base channel_max mbstd_group "
        "down latent_channels width num_res disc_width space vae widths attention head_dim"
    ).split()
)
# These do not change the result, but for rounding: they are not part of the run's name and may differ on resume.
FREE = frozenset(
    (
        "run preset dry_run override init_from total_kimg compile threads log_kimg sample_kimg "
        "checkpoint_minutes checkpoint_kimg keep max_bad val_split sampler steps accumulate"
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
    stored = Path(run, "config.json").expanduser() if run else None
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
    config = replace(config, data=_absolute_data(config.data), init_from=_absolute(config.init_from))
    if isinstance(config, DiffusionConfig):
        config = replace(config, vae=_absolute(config.vae))
    if isinstance(config, VaeConfig):
        config = replace(config, perceptual_file=_absolute(config.perceptual_file))
    config = replace(config, run=_absolute(config.run) if config.run else str(ROOT / "runs" / default_name(config)))
    check(config)
    return config


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
    """A JSON object from a file. Raises ConfigError, one line, for anything else."""
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
        names = ", ".join(repr(name)[:40] for name in unknown[:5])
        raise ConfigError(f"the stored config has unknown fields {names}; it is damaged, or from another version")
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


def check_classes(config, classes: list[str]) -> None:
    """Refuse --conditional where the data have nothing to condition on."""
    if config.conditional and len(classes) < 2:
        raise ConfigError("--conditional: the data has fewer than two classes; use a folder with one folder per class")


def default_name(config) -> str:
    """Name of a run that was given none: its job and its config_hash."""
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
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{field.name.replace('_', '-')} {value}: must be a finite number")
        if isinstance(value, str) and "\0" in value:  # no path can hold it: some file functions raise ValueError
            raise ConfigError(f"--{field.name.replace('_', '-')} {value!r}: a control character; leave it out")
    if not 0 <= config.max_bad <= 1:
        raise ConfigError(f"--max-bad {config.max_bad}: a fraction, from 0 to 1")
    _check_init_from(config)
    if config.batch < 1 or config.accumulate < 1:
        raise ConfigError(f"--batch {config.batch} and --accumulate {config.accumulate} must be at least 1")
    if isinstance(config, GanConfig):
        _check_gan(config)
    else:
        _check_denoising(config)
    check_world(config, world=int(os.environ.get("WORLD_SIZE", 1)))


def _check_init_from(config) -> None:
    """The run to start from has a checkpoint and the same architecture; found before anything is made or decoded."""
    begun = config.run and any(Path(config.run, "checkpoints").glob("*.json"))
    if not config.init_from or begun:
        return  # a run that has begun needs its source no more
    start = Path(config.init_from).expanduser()
    if not any((start / "checkpoints").glob("*.json")):
        raise ConfigError(f"--init-from {start}: no checkpoint there; name a run directory that has one")
    stored = read_json(start / "config.json")
    differ = sorted(k for k in ARCHITECTURE & set(asdict(config)) & set(stored) if stored[k] != getattr(config, k))
    if differ:
        text = ", ".join(f"--{k.replace('_', '-')} {stored[k]} -> {getattr(config, k)}" for k in differ)
        raise ConfigError(f"--init-from {start}: another architecture ({text}); use its values")


def _check_numbers(config, positive: str, not_negative: str) -> None:
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be greater than 0")
    for name in not_negative.split():
        if not getattr(config, name) >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must not be negative")


def _check_gan(config: GanConfig) -> None:
    r = config.resolution
    if config.mbstd_group < 1:
        raise ConfigError(f"--mbstd-group {config.mbstd_group}: must be at least 1")
    _check_numbers(
        config,
        "total_kimg log_kimg sample_kimg lr channel_base channel_max z_dim w_dim mapping_layers r1_interval pl_interval keep",
        "gamma pl_weight style_mixing ema_kimg ema_rampup ada_kimg checkpoint_minutes checkpoint_kimg threads crop",
    )
    for name in ("style_mixing", "pl_decay"):
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be from 0 to 1")
    if not -1 <= config.ada_target <= 1:
        raise ConfigError(f"--ada-target {config.ada_target}: a mean of signs, from -1 to 1")
    if config.channel_base < r:
        raise ConfigError(
            f"--channel-base {config.channel_base}: less than one feature map at {r} px; use at least {r * 8}"
        )


def _check_denoising(config) -> None:
    _check_numbers(
        config,
        "total_kimg log_kimg sample_kimg lr clip keep num_res",
        "warmup_kimg decay_kimg weight_decay ema_kimg ema_rampup checkpoint_minutes checkpoint_kimg threads crop",
    )
    if isinstance(config, VaeConfig):
        _check_numbers(
            config,
            "latent_channels width disc_width plateau_kimg",
            "kl_weight structure_weight perceptual_weight gan_weight gan_start_kimg",
        )
        if config.perceptual_file and not Path(config.perceptual_file).expanduser().is_file():
            raise ConfigError(
                f"--perceptual-file {config.perceptual_file}: no such file; name the weights of torchvision's vgg16"
            )
        return
    _check_numbers(config, "steps head_dim", "min_snr_gamma")
    for name in ("dropout", "class_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: a probability below 1")
    widths = numbers(config.widths, "widths")
    numbers(config.attention, "attention")
    if config.target == "epsilon" and config.schedule in ("zero-snr", "flow"):
        raise ConfigError(
            f"--target epsilon: the {config.schedule} schedule ends at pure noise, which tells nothing of the image; use --target v"
        )
    fewest = 4 if config.times == "fast-nonuniform" else 2  # with fewer the list would not reach the noisiest step
    if config.times.startswith("fast-") and not fewest <= config.fast_steps <= 1000:
        raise ConfigError(f"--fast-steps {config.fast_steps}: choose from {fewest} to 1000 for --times {config.times}")
    if config.times.startswith("fast-") and config.sampler not in ("ddim", "ancestral"):
        raise ConfigError(
            f"--times {config.times} trains a few times only, where --sampler ddim or ancestral can go; set one"
        )
    if any(w % config.head_dim and w > config.head_dim for w in widths):
        raise ConfigError(f"--head-dim {config.head_dim} must divide the --widths {config.widths}; use 32 or 64")
    if config.space == "pixel" and config.vae:
        raise ConfigError("--vae has no use with --space pixel; leave one of them out")


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """'64,128' as (64, 128)."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if (not values and flag == "widths") or any(v < 1 for v in values) or (text.strip() and not values):
        raise ConfigError(f"--{flag} {text!r}: write whole numbers with commas, such as 64,128,256")
    return values


def check_world(config, world: int) -> None:
    """The global batch must fall into whole minibatch-std groups on every rank and micro-batch."""
    parts, group = world * config.accumulate, getattr(config, "mbstd_group", 1)
    if config.batch % (parts * group):
        of_groups = f" of whole groups of {group} (--mbstd-group)" if group > 1 else ""
        raise ConfigError(
            f"--batch {config.batch} does not divide into {world} ranks x {config.accumulate} micro-batches{of_groups}; "
            f"use a multiple of {parts * group}"
        )
    if not isinstance(config, GanConfig):
        return
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


def vae_parameters(config: VaeConfig) -> float:
    """Rough number of parameters of encoder, decoder and discriminator."""
    widths = [config.width * m for m in (1, 2, 4, 4)[: config.down.bit_length()]]
    parameters = 2 * 40 * widths[-1] ** 2 + sum(2 * (2 * config.num_res + 1) * 9 * w * w for w in widths)
    return parameters + 16 * 21 * config.disc_width**2 * bool(config.gan_weight)


def vae_memory_gb(config: VaeConfig, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: weights, AdamW, EMA and gradients, plus the activations of one step."""
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = 4 if config.precision == "fp32" else 2
    activations, r = 0.0, config.resolution
    for m in (1, 2, 4, 4)[: config.down.bit_length()]:
        activations += micro * (2 * config.num_res + 1) * 10 * config.width * m * r * r * bytes_per_value
        r //= 2
    if config.perceptual_file:  # VGG-16 has 540 values per pixel that its gradient needs
        activations += micro * 540 * config.resolution**2 * bytes_per_value
    return (vae_parameters(config) * 4 * 5 + activations) / 1e9


def vae_checkpoint_gb(config: VaeConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA."""
    return vae_parameters(config) * 4 * 4 / 1e9


def unet_parameters(config: DiffusionConfig) -> float:
    """Rough number of parameters of the U-Net."""
    widths = numbers(config.widths, "widths")
    return sum((2 * config.num_res + 1) * 25 * w * w for w in widths) + 40 * widths[-1] ** 2


def diffusion_memory_gb(config: DiffusionConfig, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: as for the VAE; latents count as an eighth of the resolution."""
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = 4 if config.precision == "fp32" else 2
    activations, r = 0.0, config.resolution // (8 if config.space == "latent" else 1)
    for w in numbers(config.widths, "widths"):
        activations += micro * (2 * config.num_res + 1) * 14 * w * r * r * bytes_per_value
        r //= 2
    return (unet_parameters(config) * 4 * 5 + activations) / 1e9


def diffusion_checkpoint_gb(config: DiffusionConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA."""
    return unet_parameters(config) * 4 * 4 / 1e9


def to_json(config) -> str:
    """A config as JSON, its fields sorted."""
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
    "vae": Job("pretrain_vae.py", VaeConfig, vae_memory_gb, vae_checkpoint_gb),
    "diffusion": Job("train_diffusion.py", DiffusionConfig, diffusion_memory_gb, diffusion_checkpoint_gb),
}
