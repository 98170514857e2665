"""What a configuration must fulfil, each refusal one line that names the fix; which fields change what on resume."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path

from jobs.config.specs import (
    AUTO,
    OF_LISTED_TIMES,
    ConfigError,
    DiffusionConfig,
    GanConfig,
    VaeConfig,
    numbers,
    read_json,
)

# A checkpoint fits only networks for which all of these agree.
ARCHITECTURE = frozenset(
    (
        "resolution channels conditional condition z_dim w_dim mapping_layers channel_base channel_max mbstd_group "
        "down latent_channels width num_res disc_width space vae widths attention head_dim"
    ).split()
)
# These do not change the result, but for rounding: they are not part of the run's name and may differ on resume.
FREE = frozenset(
    (
        "run preset dry_run toml override init_from total_kimg device compile threads log_kimg sample_kimg "
        "checkpoint_minutes checkpoint_kimg keep keep_weights stop_when_worse metric_kimg feature_weights max_bad "
        "val_split sampler steps accumulate"
    ).split()
)

LOOKS = 3  # without anything better, before a run is taken for done: one alone may have been unlucky

# What is chosen of the data. Where nothing is, these name no run, and runs of before they were there keep their names.
CHOICES = ("include", "exclude", "table", "plane", "slices", "range", "spacing", "volume")


def check_classes(config, classes: list[str], unlabelled: bool = False) -> None:
    """Refuse --conditional where the data, or some of their slices, have nothing to condition on."""
    if config.conditional and len(classes) < 2:
        raise ConfigError("--conditional: the data has fewer than two classes; use a folder with one folder per class")
    if config.conditional and unlabelled:
        raise ConfigError("--conditional: the data has slices without a class; use a folder with one folder per class")


def check_common(config) -> None:
    """Refuse values that no job can work with, each with one line that names the fix."""
    if not 32 <= config.resolution <= 512:
        raise ConfigError(f"--resolution {config.resolution}: choose from 32 to 512")
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
    check_numbers(
        config,
        "total_kimg log_kimg sample_kimg keep",
        "ema_kimg ema_rampup checkpoint_minutes checkpoint_kimg threads crop keep_weights",
    )


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


def check_numbers(config, positive: str, not_negative: str) -> None:
    """Refuse the first of these fields (names with spaces between) that is not positive, or is negative."""
    for name in positive.split():
        if not getattr(config, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must be greater than 0")
    for name in not_negative.split():
        if getattr(config, name) == AUTO:
            raise ConfigError(f"--{name.replace('_', '-')} auto: nothing says what it follows from; give a number")
        if not getattr(config, name) >= 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: must not be negative")


def check_gan(config: GanConfig) -> None:
    """The rules of a StyleGAN2's fields."""
    r = config.resolution
    if r & (r - 1):
        raise ConfigError(f"--resolution {r}: a StyleGAN2 needs a power of two: 32, 64, 128, 256 or 512")
    if config.mbstd_group < 1:
        raise ConfigError(f"--mbstd-group {config.mbstd_group}: must be at least 1")
    check_numbers(
        config,
        "lr channel_base channel_max z_dim w_dim mapping_layers r1_interval pl_interval",
        "gamma pl_weight style_mixing ada_kimg metric_kimg",
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


def check_vae(config: VaeConfig) -> None:
    """The rules of a VAE's fields."""
    check_numbers(
        config,
        "lr clip num_res latent_channels width disc_width plateau_kimg",
        "warmup_kimg decay_kimg weight_decay kl_weight structure_weight perceptual_weight gan_weight gan_start_kimg",
    )
    check_multiple(config, config.down, f"--down {config.down}")
    if config.perceptual_file and not Path(config.perceptual_file).expanduser().is_file():
        raise ConfigError(
            f"--perceptual-file {config.perceptual_file}: no such file; name the weights of torchvision's vgg16"
        )


def check_multiple(config, stride: int, of: str) -> None:
    """The resolution falls into whole strides of a network; else the nearest that does is named."""
    r = config.resolution
    if r % stride:
        near = max(round(r / stride) * stride, stride)
        raise ConfigError(f"--resolution {r}: must be a multiple of {stride} for {of}; use {near}")


def patience_note(config) -> str:
    """A line where --stop-when-worse cannot act before the end, '' elsewhere: one look is the best, LOOKS follow."""
    flag = "metric_kimg" if hasattr(config, "metric_kimg") else "sample_kimg"
    every, total = getattr(config, flag), config.total_kimg
    if not config.stop_when_worse or 0 < (LOOKS + 1) * every < total:
        return ""
    return (
        f"warning: --stop-when-worse ends nothing here: it takes {LOOKS} looks in a row without anything better, "
        f"before the end; use --{flag.replace('_', '-')} {total / (LOOKS + 2):g}"
    )


def attention_note(config: DiffusionConfig, side: int) -> str:
    """A line where no side of the U-Net's feature maps is one of --attention: it is then in the middle alone."""
    sides = [side >> i for i in range(len(numbers(config.widths, "widths")))]
    asked = numbers(config.attention, "attention")
    if not asked or set(sides) & set(asked):
        return ""
    text = ",".join(map(str, sides))
    return f"warning: --attention {config.attention} is none of the sides {text}: there is one in the middle alone"


def check_diffusion(config: DiffusionConfig) -> None:
    """The rules of a diffusion network's fields."""
    check_numbers(
        config, "lr clip num_res steps head_dim", "warmup_kimg decay_kimg weight_decay min_snr_gamma metric_kimg"
    )
    for name in ("dropout", "class_dropout"):
        if not 0 <= getattr(config, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(config, name)}: a probability below 1")
    widths = numbers(config.widths, "widths")
    numbers(config.attention, "attention")
    if config.space == "pixel":
        check_multiple(config, 2 ** (len(widths) - 1), f"the {len(widths) - 1} halvings of --widths {config.widths}")
    else:
        check_multiple(config, 2, "the VAE, which halves it at least once")
    if config.target == "epsilon" and config.schedule in ("zero-snr", "flow"):
        raise ConfigError(
            f"--target epsilon: the {config.schedule} schedule ends at pure noise, which tells nothing of the image; "
            "use --target v"
        )
    fewest = 4 if config.times == "fast-nonuniform" else 2  # with fewer the list would not reach the noisiest step
    if config.times.startswith("fast-") and not fewest <= config.fast_steps <= 1000:
        raise ConfigError(f"--fast-steps {config.fast_steps}: choose from {fewest} to 1000 for --times {config.times}")
    if config.times.startswith("fast-") and config.sampler not in OF_LISTED_TIMES:
        fitting = " or ".join(OF_LISTED_TIMES)
        raise ConfigError(f"--times {config.times} trains a few times only, where --sampler {fitting} can go; set one")
    if any(w % config.head_dim and w > config.head_dim for w in widths):
        raise ConfigError(f"--head-dim {config.head_dim} must divide the --widths {config.widths}; use 32 or 64")
    if config.space == "pixel" and config.vae:
        raise ConfigError("--vae has no use with --space pixel; leave one of them out")


def check_world(config, world: int) -> None:
    """The global batch must fall into whole minibatch-std groups on every rank and micro-batch."""
    parts, group = world * config.accumulate, getattr(config, "mbstd_group", 1)
    half = isinstance(config, GanConfig) and bool(config.pl_weight)  # path length takes half of the batch
    multiple = math.lcm(parts * group, 2 * parts if half else 1)
    if config.batch % (parts * group):
        of_groups = f" of whole groups of {group} (--mbstd-group)" if group > 1 else ""
        raise ConfigError(
            f"--batch {config.batch} does not divide into {world} ranks x {config.accumulate} "
            f"micro-batches{of_groups}; use a multiple of {multiple}"
        )
    if half and (config.batch // 2) % parts:
        raise ConfigError(
            f"--batch {config.batch}: path length takes half of it, which does not divide into {parts} parts; "
            f"use a multiple of {multiple}, or --pl-weight 0"
        )


def less_memory(config, world: int) -> str:
    """What to do where a step does not fit into a GPU's memory: as flags, the next that the batch divides by."""

    def fits(**change) -> bool:
        try:
            check_world(replace(config, **change), world)
        except ConfigError:
            return False
        return True

    micro, batch = config.accumulate, config.batch
    more = next((n for n in range(micro + 1, batch // world + 1) if fits(accumulate=n)), 0)
    smaller = next((n for n in range(batch // 2, 0, -1) if fits(batch=n)), 0)
    fixes = [f"--accumulate {more} (the same result in more steps)"] if more else []
    fixes += [f"--batch {smaller} (another run)"] if smaller else []
    return " or ".join(fixes) or "a smaller network, or a GPU with more memory"
