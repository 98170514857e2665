"""Learning rate, AdamW and memory layout of the VAE and the diffusion network.

The rate is a function of the images seen.
"""

from __future__ import annotations

import math

import torch
from torch import nn

FLOOR = 0.1  # of the learning rate, at the end of the decay
PLATEAU_GAIN = 0.01  # a window whose mean loss is not lower by this share than the best one before is a plateau
PLATEAU_FACTOR, PLATEAU_FLOOR = 0.5, 0.01


def learning_rate(nimg: int, batch: int, peak: float, warmup_kimg: float, decay_kimg: float) -> float:
    """Rate of the step that starts at `nimg` images: linear warm-up, times a cosine from 1 to FLOOR over `decay_kimg`.

    decay_kimg 0: no decay. Both are measured from the start of the run, so a longer run does not change its beginning.
    """
    rate = peak * min(1.0, (nimg + batch) / max(warmup_kimg * 1000, 1e-9))
    if decay_kimg:
        progress = min(1.0, nimg / (decay_kimg * 1000))
        rate *= FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
    return rate


def after_window(mean_loss: float, best: float, factor: float) -> tuple[float, float]:
    """(best, factor) once a window of training images has ended: the factor of the learning rate is halved on a
    plateau.

    A window is a stretch of images, not an interval of the log, so that what is looked at does not change the run.
    """
    if mean_loss < (1 - PLATEAU_GAIN) * best:
        return mean_loss, factor
    return min(best, mean_loss), max(factor * PLATEAU_FACTOR, PLATEAU_FLOOR)


def adamw(module: nn.Module, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW that decays matrices and convolutions, not biases, norms and other vectors (Loshchilov and Hutter 2019)."""
    matrices = [p for p in module.parameters() if p.dim() >= 2]
    vectors = [p for p in module.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def memory_layout(device: torch.device) -> torch.memory_format:
    """channels_last where tensor cores want it; on a CPU its GroupNorm is slower than what its convolutions gain."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def lazy_adam(module: nn.Module, lr: float, lazy_interval: int) -> torch.optim.Adam:
    """Adam with the correction for lazy regularisation, c = k / (k + 1) (Karras 2020a, appendix B)."""
    c = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
    return torch.optim.Adam(module.parameters(), lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=True)
