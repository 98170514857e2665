"""The kinds of model: one row of JOBS each, with all that the other rooms need to know of one. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.config import columns, presets
from jobs.config.columns import Column
from jobs.config.sizes import (
    diffusion_checkpoint_gb,
    diffusion_memory_gb,
    gan_checkpoint_gb,
    gan_memory_gb,
    vae_checkpoint_gb,
    vae_memory_gb,
)
from jobs.config.specs import ConfigError, DiffusionConfig, GanConfig, TrainConfig, VaeConfig


@dataclass(frozen=True)
class Job:
    """One kind of training job.

    memory_gb(config, world) is per GPU, checkpoint_gb(config) per checkpoint; both rough.
    """

    script: str
    config: type[TrainConfig]
    presets: Mapping[str, dict]
    default_preset: str
    memory_gb: Callable[..., float]
    checkpoint_gb: Callable[..., float]
    columns: tuple[Column, ...]
    predicts: tuple[str, ...]  # the commands of predict.py that take such a model
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
        "train_gan.py", GanConfig, presets.GAN_PRESETS, "adni256", gan_memory_gb, gan_checkpoint_gb,
        columns.GAN, ("generate", "interpolate", "mix", "project", "direction", "evaluate", "tsne"), _gan,
    ),
    "vae": Job(
        "pretrain_vae.py", VaeConfig, presets.VAE_PRESETS, "adni256-ldm", vae_memory_gb, vae_checkpoint_gb,
        columns.VAE, ("reconstruct", "tsne"), _vae,
    ),
    "diffusion": Job(
        "train_diffusion.py", DiffusionConfig, presets.DIFFUSION_PRESETS, "adni256-ldm", diffusion_memory_gb,
        diffusion_checkpoint_gb, columns.DIFFUSION,
        ("generate", "interpolate", "denoise", "direction", "evaluate", "tsne"), _diffusion,
    ),
}  # fmt: skip


def job(name: str) -> Job:
    """The row of a job by its name. Raises ConfigError that lists the names there are."""
    if name not in JOBS:
        raise ConfigError(f"--job {name}: there is no such job; choose from {', '.join(JOBS)}")
    return JOBS[name]


def name_of(config: TrainConfig | type[TrainConfig]) -> str:
    """The name of the job that a config, or a class of configs, is of."""
    cls = config if isinstance(config, type) else type(config)
    return next(name for name, row in JOBS.items() if row.config is cls)


def known_columns() -> list[Column]:
    """The columns of all jobs, each once, in the order of JOBS; then what every run logs."""
    return list(dict.fromkeys([c for row in JOBS.values() for c in row.columns] + list(columns.COMMON)))


def column(name: str) -> Column:
    """What is known of a column of metrics.jsonl; of the group `other` where nothing is."""
    found = [c for c in known_columns() if c.matches(name)]
    return min(found, key=lambda c: c.name != name, default=Column(name, "other"))
