"""What a denoising network predicts, and the loss that it is trained with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.names import TARGETS
from models.schedules import Schedule, _like, add_noise

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> estimate of x0 (B, ...)


# --- targets ----------------------------------------------------------------------------------------------------------
def target_of(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """What the network should predict: epsilon; x0; v = alpha eps - sigma x0 (Salimans 2022); flow = eps - x0 (Lipman
    2023)."""
    if target == "epsilon":
        return noise
    if target == "x0":
        return x0
    if target == "flow":
        return noise - x0
    if target == "v":
        alpha, sigma = schedule.alpha_sigma(t)
        return _like(alpha, x0) * noise - _like(sigma, x0) * x0
    raise ValueError(f"target {target!r}: choose from {', '.join(TARGETS)}")


def to_x0(prediction: Tensor, x: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """The clean sample that a prediction (B, ...) at x_t (B, ...), t (B,) implies."""
    alpha, sigma = (_like(c, x) for c in schedule.alpha_sigma(t))
    if target == "epsilon":
        return (x - sigma * prediction) / alpha
    if target == "x0":
        return prediction
    if target == "flow":
        return (x - sigma * prediction) / (alpha + sigma)
    if target == "v":
        return (alpha * x - sigma * prediction) / (alpha**2 + sigma**2)
    raise ValueError(f"target {target!r}: choose from {', '.join(TARGETS)}")


def min_snr_weight(t: Tensor, schedule: Schedule, target: str, gamma: float = 5.0) -> Tensor:
    """(B,) min(SNR, gamma) as a weight on the error of x0, written for the error of the target (Hang 2023, section
    3.4).

    epsilon: min(SNR, gamma) / SNR; x0: min(SNR, gamma); v: min(SNR, gamma) / (SNR + 1); flow: min(SNR, gamma) times
    sigma^2, by d x0 / d flow = sigma where alpha + sigma = 1.
    """
    alpha, sigma = schedule.alpha_sigma(t.double())
    snr = (alpha / sigma) ** 2
    if target == "epsilon":
        return (gamma / snr).clamp(max=1).to(t)
    slope = {"x0": torch.ones_like(sigma), "v": sigma / (alpha**2 + sigma**2), "flow": sigma / (alpha + sigma)}[target]
    return (snr.clamp(max=gamma) * slope**2).to(t)


def diffusion_loss(
    predict: Denoise,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    target: str,
    min_snr_gamma: float = 0.0,
) -> Tensor:
    """(B,) mean squared error of `predict(x_t, t)` against the target, per sample; 0 for min_snr_gamma: not weighted.

    x0, noise (B, ...), t (B,) in [0, 1]. The error is taken in float32 whatever type the network ran in.
    """
    prediction = predict(add_noise(x0, noise, t, schedule), t)
    error = (prediction.float() - target_of(x0, noise, t, schedule, target).float()).square().flatten(1).mean(1)
    return error * min_snr_weight(t, schedule, target, min_snr_gamma) if min_snr_gamma else error
