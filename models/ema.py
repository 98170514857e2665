"""Exponential moving average of a module's weights, with a half-life in images (Karras 2018, 2020b)."""

from __future__ import annotations

import torch
from torch import nn


def ema_beta(nimg: int, batch: int, half_life_kimg: float, ramp_up: float | None = 0.05) -> float:
    """Decay of one step of `batch` images when `nimg` images were seen.

    The half-life is at most `ramp_up` times the images seen, so that the first weights are soon forgotten; 0 or None:
    no such limit. A half-life of 0 gives 0: the average is the module itself.
    """
    half_life = half_life_kimg * 1000
    if ramp_up:
        half_life = min(half_life, nimg * ramp_up)
    return 0.5 ** (batch / max(half_life, 1e-8))


@torch.no_grad()
def update_ema(ema_module: nn.Module, module: nn.Module, beta: float) -> None:
    """ema <- beta ema + (1 - beta) module for parameters, in one fused operation; buffers are copied, but for those
    that the module names as its `constants`."""
    torch._foreach_lerp_(list(ema_module.parameters()), list(module.parameters()), 1 - beta)
    constants = getattr(module, "constants", ())
    for (name, ours), theirs in zip(ema_module.named_buffers(), module.buffers(), strict=True):
        if name not in constants:
            ours.copy_(theirs)
