"""Gaussian diffusion: noise schedules, prediction targets, the loss, and samplers. Plain functions of tensors.

A noisy sample is x_t = alpha(t) x0 + sigma(t) eps, with t in [0, 1] from clean to noise. Every schedule is described by
the angle phi(t) = atan2(sigma, alpha) alone: it is finite also where the signal is gone, and two schedules differ only
in how fast they walk through it. The flow schedule has alpha + sigma = 1, the others alpha^2 + sigma^2 = 1, so one
sample turns into the other by a factor, and every sampler runs on a network that was trained with any of them.

Ho et al. 2020 (DDPM), Song et al. 2021 (DDIM), Nichol and Dhariwal 2021 (cosine), Salimans and Ho 2022 (v), Karras et
al. 2022 (Heun), Lipman et al. 2023 (flow), Hang et al. 2023 (min-SNR), Lin et al. 2024 (zero terminal SNR), Lu et al.
2022 (DPM-Solver++), Jiang et al. 2024 (Fast-DDPM).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.draws import moved
from models.names import SCHEDULES

T = 1000  # discrete steps of the tabulated schedules; step k is t = k / (T - 1)
FEWEST_FAST_STEPS = {"fast-uniform": 2, "fast-nonuniform": 4}  # with fewer the list would not reach the noisiest step
MIN_ALPHA = 1e-3  # of the cosine schedule, which would end at no signal at all


# --- schedules --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Schedule:
    """A noise schedule. `angles` (T,) float64 rises with t and is interpolated; the flow schedule has a closed form."""

    name: str
    angles: Tensor

    def angle(self, t: Tensor) -> Tensor:
        """phi(t) with tan(phi) = sigma / alpha, in radians, 0 .. pi/2; any shape, t in [0, 1]."""
        if self.name == "flow":
            return torch.atan2(t, 1 - t)
        table = self.angles.to(t)
        position = t.clamp(0, 1) * (len(table) - 1)
        k = position.floor().clamp(max=len(table) - 2)
        low, high = table[k.long()], table[k.long() + 1]
        return low + (high - low) * (position - k)

    def time(self, angle: Tensor) -> Tensor:
        """Inverse of `angle`; beyond the ends of the schedule it is 0 or 1."""
        if self.name == "flow":
            return angle.sin() / (angle.sin() + angle.cos())
        table = self.angles.to(angle)
        angle = angle.clamp(float(table[0]), float(table[-1]))
        k = (torch.searchsorted(table, angle) - 1).clamp(0, len(table) - 2)
        return (k + (angle - table[k]) / (table[k + 1] - table[k])) / (len(table) - 1)

    def at_angle(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at an angle."""
        alpha, sigma = angle.cos(), angle.sin()
        scale = alpha + sigma if self.name == "flow" else torch.ones_like(alpha)
        return alpha / scale, sigma / scale

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t, of the shape of t."""
        return self.at_angle(self.angle(t))


def make_schedule(name: str) -> Schedule:
    """One of SCHEDULES.

    linear: beta 1e-4 .. 0.02 over 1000 steps (Ho 2020). scaled-linear: sqrt(beta) linear, 0.0015 .. 0.0195 (Rombach
    2022). cosine: Nichol 2021, equation 17, s = 0.008, ended at alpha = MIN_ALPHA. zero-snr: scaled-linear, rescaled so
    that no signal is left at the end (Lin 2024, algorithm 1). flow: alpha = 1 - t, sigma = t (Lipman 2023).
    """
    k = torch.arange(T, dtype=torch.float64)
    if name == "flow":
        return Schedule(name, torch.empty(0))
    if name == "cosine":
        angle = (k / (T - 1) + 0.008) / 1.008 * math.pi / 2
        return Schedule(name, torch.minimum(angle, math.acos(MIN_ALPHA) - (T - 1 - k) * 1e-9))
    if name == "linear":
        betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    elif name in ("scaled-linear", "zero-snr"):
        betas = torch.linspace(0.0015**0.5, 0.0195**0.5, T, dtype=torch.float64) ** 2
    else:
        raise ValueError(f"schedule {name!r}: choose from {', '.join(SCHEDULES)}")
    alpha = (1 - betas).cumprod(0).sqrt()
    if name == "zero-snr":
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    return Schedule(name, alpha.clamp(0, 1).acos())


def _like(coefficient: Tensor, x: Tensor) -> Tensor:
    """(B,) to (B, 1, 1, ...) in the type of x, to multiply x with."""
    return coefficient.to(x).reshape(-1, *[1] * (x.dim() - 1))


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t (B, ...) of x0 and noise (B, ...) at t (B,)."""
    alpha, sigma = schedule.alpha_sigma(t)
    return _like(alpha, x0) * x0 + _like(sigma, x0) * noise


# --- times ------------------------------------------------------------------------------------------------------------
def fast_steps(time_set: str, number: int) -> list[int]:
    """Rising steps of 0 .. 999 of Fast-DDPM (Jiang 2024; the definition is that of the authors' program).

    fast-uniform: -1, -1 + skip, ... below 1000 with skip = 1000 // number, the first one 0: number + 1 steps where
    number divides 1000; where it does not, the last step is below 999. fast-nonuniform: 40 % of the steps up to 699 and
    60 % from there; for 10 the published list.
    """
    least = FEWEST_FAST_STEPS.get(time_set, 2)
    if number < least:
        raise ValueError(f"{time_set} needs at least {least} steps, got {number}")
    if time_set == "fast-uniform":
        steps = list(range(-1, T, T // number))
        return [0, *steps[1:]]
    if time_set != "fast-nonuniform":
        raise ValueError(f"{time_set!r} is no list of steps; choose fast-uniform or fast-nonuniform")
    if number == 10:
        return [0, 199, 399, 599, 699, 799, 849, 899, 949, 999]
    early, late = int(0.4 * number), int(0.6 * number)
    first = [math.ceil(699 * i / early) for i in range(early)]
    return first + [math.ceil(699 + 300 * i / max(late - 1, 1)) for i in range(late)]


def draw_times(batch: int, time_set: str, generator: torch.Generator, device, fast_number: int = 10) -> Tensor:
    """(batch,) float32 training times in [0, 1].

    uniform: one random offset and then evenly spread, so that every batch sees all noise levels (Kingma 2021, appendix
    I.1). logit-normal: sigmoid(N(0, 1)), likewise stratified (Esser 2024, section 3.1). fast-*: drawn from `fast_steps`
    with antithetic pairs, the second half mirroring the first.
    """
    if time_set in ("uniform", "logit-normal"):
        offset = torch.rand((), generator=generator)
        # Multiples of the golden ratio: the rows of any one rank cover the noise levels evenly as well.
        spread = torch.arange(batch, dtype=torch.float32) * 0.6180339887498949
        u = (offset + spread) % 1
        if time_set == "logit-normal":
            u = (math.sqrt(2) * torch.erfinv(u.clamp(1e-6, 1 - 1e-6) * 2 - 1)).sigmoid()
        return moved(u, device)
    steps = torch.tensor(fast_steps(time_set, fast_number))
    half = torch.randint(len(steps), ((batch + 1) // 2,), generator=generator)
    index = torch.cat([half, len(steps) - 1 - half])[:batch]
    return moved(steps[index].float() / (T - 1), device)


def trailing_times(steps: int) -> Tensor:
    """(steps,) float64, falling from t = 1 in equal jumps: the last jump ends at clean.

    (Lin 2024, section 3.3, "trailing".)
    """
    k = T - T * torch.arange(steps, dtype=torch.float64) / steps - 1
    return (k / (T - 1)).clamp(0, 1)


def fast_times(time_set: str, number: int) -> Tensor:
    """Falling sampling times of a network that was trained on one of Fast-DDPM's lists."""
    return torch.tensor(fast_steps(time_set, number)[::-1], dtype=torch.float64) / (T - 1)
