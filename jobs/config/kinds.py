"""The kinds of model: one row of JOBS each, with all that the other rooms need to know of one. Torch-free."""

from __future__ import annotations

import difflib
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from data.files import is_number
from jobs.config import columns, presets, recipe, rules, sizes
from jobs.config.cards import Card
from jobs.config.columns import Column
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, TrainConfig, VaeConfig


@dataclass(frozen=True)
class Job:
    """One kind of training job.

    memory_gb(config, world, compute capability) is per GPU, checkpoint_gb(config) per checkpoint; both rough.
    """

    script: str
    config: type[TrainConfig]
    presets: Mapping[str, dict]
    default_preset: str
    check: Callable[..., None]  # refuses values of its own fields that cannot work: check(config)
    memory_gb: Callable[..., float]
    checkpoint_gb: Callable[..., float]
    columns: tuple[Column, ...]
    predicts: tuple[str, ...]  # the commands of predict.py that take such a model
    # What one does with a finished run, `{run}` and the fields of its config to be filled in; `--job` is the job that
    # learns from it.
    then: tuple[str, ...]
    model: Callable[[], type]  # the class of its trained models; imported when called, as it needs torch


def _gan() -> type:
    from jobs.predict.gan import GanModel

    return GanModel


def _vae() -> type:
    from jobs.predict.autoencoder import VaeModel

    return VaeModel


def _diffusion() -> type:
    from jobs.predict.denoiser import DiffusionModel

    return DiffusionModel


JOBS: dict[str, Job] = {
    "stylegan2": Job(
        script="train_gan.py",
        config=GanConfig,
        presets=presets.GAN_PRESETS,
        default_preset="adni256",
        check=rules.check_gan,
        memory_gb=sizes.gan_memory_gb,
        checkpoint_gb=sizes.gan_checkpoint_gb,
        columns=columns.GAN,
        predicts=tuple("generate interpolate mix project direction evaluate tsne export release explore".split()),
        then=("predict.py generate --run {run} --number 64",),
        model=_gan,
    ),
    "vae": Job(
        script="pretrain_vae.py",
        config=VaeConfig,
        presets=presets.VAE_PRESETS,
        default_preset="adni256-ldm",
        check=rules.check_vae,
        memory_gb=sizes.vae_memory_gb,
        checkpoint_gb=sizes.vae_checkpoint_gb,
        columns=columns.VAE,
        predicts=("reconstruct", "tsne", "export", "explore"),
        then=(
            "predict.py reconstruct --run {run}",
            "--job diffusion --preset {preset} --data {data} --resolution {resolution} --vae {run}",
        ),
        model=_vae,
    ),
    "diffusion": Job(
        script="train_diffusion.py",
        config=DiffusionConfig,
        presets=presets.DIFFUSION_PRESETS,
        default_preset="adni256-ldm",
        check=rules.check_diffusion,
        memory_gb=sizes.diffusion_memory_gb,
        checkpoint_gb=sizes.diffusion_checkpoint_gb,
        columns=columns.DIFFUSION,
        predicts=tuple("generate interpolate denoise direction evaluate tsne export release explore".split()),
        then=("predict.py generate --run {run} --number 64",),
        model=_diffusion,
    ),
}


def job(name: str) -> Job:
    """The row of a job by its name. Raises ConfigError that lists the names there are."""
    if name not in JOBS:
        near = difflib.get_close_matches(name, [*JOBS, "pipeline"], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--job {name}: there is no such job; {meant}choose from {', '.join(JOBS)}, or pipeline")
    return JOBS[name]


def next_commands(name: str, config: Mapping, run: str, *, launched: bool, where: str = "") -> list[str]:
    """What one does with a finished run of this job, as one types it behind `python`. `run`: as it is typed;
    `launched`: by launch.py, whose options `where` say which machine."""
    found = []
    for words in JOBS[name].then:
        for place in set(re.findall(r"{(\w+)}", words)):
            value = run if place == "run" else shlex.quote(str(config.get(place, "")))
            words = words.replace(f"{{{place}}}", value)
        job = words.removeprefix("--job ").partition(" ")[0] if words.startswith("--job ") else ""
        script = f"{JOBS[job].script} {words.partition(f'--job {job} ')[2]}" if job else words
        found.append(f"launch.py {where}{words}" if job and launched else script)
    return found


def name_of(config: TrainConfig | type[TrainConfig]) -> str:
    """The name of the job that a config, or a class of configs, is of."""
    cls = config if isinstance(config, type) else type(config)
    return next(name for name, row in JOBS.items() if row.config is cls)


def jobs_of(stored: dict) -> list[str]:
    """Names of the jobs that a stored config can be of, by its fields."""
    return [name for name, row in JOBS.items() if set(stored) <= {field.name for field in fields(row.config)}]


def check_same_job(run: object, stored: dict, name: str) -> None:
    """Refuse to take a run of another job for one of this job. Raises ConfigError."""
    of = jobs_of(stored)
    if of and name not in of:
        raise ConfigError(f"{run} is a run of {of[0]}, not of {name}; use another --run or --name")


def check(config: TrainConfig) -> None:
    """Refuse values that cannot work, each with one line that names the fix. Raises ConfigError."""
    rules.check_common(config)
    JOBS[name_of(config)].check(config)
    rules.check_world(config, world=int(os.environ.get("WORLD_SIZE", 1)))


def largest_batch(config: TrainConfig, world: int, gpu: Card) -> tuple[int, int]:
    """(batch, accumulate) for `--batch auto`: the largest batch of which a step fits into each of `world` GPUs, a
    multiple of 8; where it is below the config's own (or the next that can be divided), that one in the fewest
    micro-batches that fit.
    Raises ConfigError where not even a single group of images fits."""

    def fits(batch: int, accumulate: int = 1, gb: float = gpu.gb) -> bool:
        c = recipe.derived(replace(config, batch=batch, accumulate=accumulate))
        try:
            rules.check_world(c, world)
        except ConfigError:
            return False
        return sizes.with_margin(JOBS[name_of(config)].memory_gb(c, world, gpu.capability)) <= gb

    most = 64 * config.batch
    own = next((n for n in range(config.batch, most) if fits(n, gb=math.inf)), config.batch)
    found = next((batch for batch in range(most - most % 8, own - 1, -8) if fits(batch)), 0)
    if found:
        return found, 1
    parts = next((n for n in range(1, own + 1) if fits(own, n)), 0)
    if parts:
        return own, parts
    raise ConfigError(
        f"--batch auto: not one group of images of --batch {own} fits into the {gpu.gb:g} GB of each of {world} x "
        f"{gpu.name}; use a smaller --resolution or network, or a larger GPU"
    )


def known_columns() -> list[Column]:
    """The columns of all jobs, each once, in the order of JOBS; then what every run logs."""
    return list(dict.fromkeys([c for row in JOBS.values() for c in row.columns] + list(columns.COMMON)))


def best_text(row: dict) -> str:
    """`kid 0.0123 at 24 kimg`: the best weights of a run, by a row of its metrics.jsonl; '' where there are none."""
    found = {c.name: row.get(f"best_{c.name}") for c in known_columns() if c.judges}
    kimg = row.get("best_kimg")
    return next((f"{k} {v:.4g} at {kimg:g} kimg" for k, v in found.items() if is_number(v) and is_number(kimg)), "")


def column(name: str) -> Column:
    """What is known of a column of metrics.jsonl; of the group `other` where nothing is."""
    found = [c for c in known_columns() if c.matches(name)]
    return min(found, key=lambda c: c.name != name, default=Column(name, "other"))
