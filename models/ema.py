"""Exponential moving average of the generator's weights, in images."""

from __future__ import annotations

import torch
from torch import nn


def ema_beta(nimg: int, batch: int, half_life_kimg: float, ramp_up: float = 0.0) -> float:
    """Decay of one step of `batch` images: the half-life is `half_life_kimg`, at most `ramp_up` times the images seen."""
    half_life = half_life_kimg * 1000
    if ramp_up > 0:
        half_life = min(half_life, nimg * ramp_up)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(ema: nn.Module, module: nn.Module, beta: float) -> None:
    """ema <- beta ema + (1 - beta) module for the parameters; buffers (the w average) are copied."""
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - beta)
    for mine, theirs in zip(ema.buffers(), module.buffers(), strict=True):
        mine.copy_(theirs)
