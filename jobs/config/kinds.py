"""The table of jobs that launch.py and the sbatch scripts start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jobs.config.sizes import (
    diffusion_checkpoint_gb,
    diffusion_memory_gb,
    gan_checkpoint_gb,
    gan_memory_gb,
    vae_checkpoint_gb,
    vae_memory_gb,
)
from jobs.config.specs import DiffusionConfig, GanConfig, VaeConfig


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
