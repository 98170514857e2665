"""From noise to a clean sample: plain functions of any model, one per algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from models.names import OF_LISTED_TIMES, SAMPLERS
from models.schedules import Schedule, trailing_times
from models.targets import Denoise, to_x0


# --- samplers ---------------------------------------------------------------------------------------------------------
def denoiser(predict: Denoise, schedule: Schedule, target: str, clamp: float = 0.0) -> Denoise:
    """An estimate of x0 from a network's prediction; `clamp` limits it to [-clamp, clamp] (pixels; never latents)."""

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        x0 = to_x0(predict(x, t).to(x), x, t.to(x), schedule, target)
        return x0.clamp(-clamp, clamp) if clamp else x0

    return denoise


def _at(denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    return denoise(x, t.to(x.device, torch.float32).expand(len(x)))


def ddim(
    denoise: Denoise, noise: Tensor, schedule: Schedule, times: Tensor, *, eta: float = 0.0, fresh=None, watch=None
) -> Tensor:
    """DDIM over falling `times` and from the last of them to clean (Song 2021, equation 12); one call per time.

    The step from t to t' uses alpha and sigma of exactly these two, so any spacing is right. eta = 1: ancestral
    sampling. noise (B, ...) standard normal; `fresh(x)` draws what is added on the way, (B, ...); `watch(x0)` is shown
    every estimate.
    """
    x = noise
    alphas, sigmas = schedule.alpha_sigma(times.double())
    for i, t in enumerate(times):
        x0 = _at(denoise, x, t)
        if watch:
            watch(x0)
        if i == len(times) - 1:
            return x0
        alpha, sigma, alpha_next, sigma_next = (float(v) for v in (alphas[i], sigmas[i], alphas[i + 1], sigmas[i + 1]))
        epsilon = (x - alpha * x0) / sigma
        spread = eta * sigma_next * math.sqrt(max(1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2, 0.0))
        x = alpha_next * x0 + math.sqrt(max(sigma_next**2 - spread**2, 0.0)) * epsilon
        if spread:
            x = x + spread * (torch.randn_like(x) if fresh is None else fresh(x))
    return x


def dpmpp_2m(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    calls: int,
    *,
    watch=None,
) -> Tensor:
    """DPM-Solver++(2M), steps uniform in log-SNR, then one first-order step to clean (Lu 2022, algorithm 2); `calls`
    calls.

    sigma / alpha stays within 0.04 and 80: beyond them the data do not change, and steps there are lost.
    """
    ends = torch.tensor([80.0, 0.04], dtype=torch.float64).atan()
    low, high = schedule.angle(torch.tensor([0.0, 1.0], dtype=torch.float64))
    ends = ends.clamp(float(low), float(high))
    first, last = ends.tan().log10().tolist()
    angles = torch.logspace(first, last, calls, dtype=torch.float64).atan()
    alphas, sigmas = schedule.at_angle(angles)
    steps_lambda = (alphas / sigmas).log()
    x, previous, previous_h = noise * float((alphas[0] ** 2 + sigmas[0] ** 2).sqrt()), None, 0.0
    for i, t in enumerate(schedule.time(angles)):
        x0 = _at(denoise, x, t)
        if watch:
            watch(x0)
        if i == calls - 1:
            return x0
        h = float(steps_lambda[i + 1] - steps_lambda[i])
        direction = x0 if previous is None else x0 + (x0 - previous) * (h / (2 * previous_h))
        x = float(sigmas[i + 1] / sigmas[i]) * x - float(alphas[i + 1]) * math.expm1(-h) * direction
        previous, previous_h = x0, h
    return x


def midpoint(denoise: Denoise, noise: Tensor, schedule: Schedule, calls: int, *, watch=None) -> Tensor:
    """Second-order Runge-Kutta (midpoint) in flow time, in calls // 2 steps of two calls each; one call is Euler's
    step.

    In flow coordinates y = x / (alpha + sigma) and tau = sigma / (alpha + sigma) every schedule's ODE is
    dy / dtau = eps - x0 = (y - x0) / tau (Lipman 2023; the change of variables: Karras 2022, section 3).
    The steps are equal, but the middle of the last one never lies where the schedule has less noise than at its t = 0:
    a network that takes the sample for noisier than it is would smooth it away.
    """
    number = calls // 2

    def velocity(y: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        angle = torch.tensor(math.atan2(tau, 1 - tau), dtype=torch.float64)
        alpha, sigma = schedule.at_angle(angle)
        x0 = _at(denoise, y * float(alpha + sigma), schedule.time(angle))
        return (y - x0) / tau, x0

    if not number:
        x0 = velocity(noise, 1.0)[1]
        if watch:
            watch(x0)
        return x0
    slope = float(schedule.angle(torch.zeros((), dtype=torch.float64)).tan())
    last = max(1 / number, 2 * slope / (1 + slope)) if number > 1 else 1.0
    taus = [*torch.linspace(1, last, number, dtype=torch.float64).tolist(), 0.0]
    y = noise
    for tau, next_tau in pairwise(taus):
        half = (tau - next_tau) / 2
        u, x0 = velocity(y, tau)
        u, x0 = velocity(y - half * u, tau - half)
        y = y - 2 * half * u
        if watch:
            watch(x0)
    return y


def heun(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    calls: int,
    *,
    sigma_min: float = 0.002,
    watch=None,
) -> Tensor:
    """Heun's method in y = x / alpha over Karras' spacing (Karras 2022, algorithm 1 and equation 5); 2 n - 1 <= calls
    calls."""
    number = max((calls + 1) // 2, 1)
    low, high = schedule.angle(torch.tensor([0.0, 1.0], dtype=torch.float64)).tan().tolist()
    first, last, rho = min(80.0, high), max(sigma_min, low), 7.0
    ramp = torch.linspace(first ** (1 / rho), last ** (1 / rho), number, dtype=torch.float64) ** rho
    sigmas = [*ramp.tolist(), 0.0]

    def clean(y: Tensor, sigma: float) -> Tensor:
        angle = torch.tensor(math.atan(sigma), dtype=torch.float64)
        return _at(denoise, y * float(schedule.at_angle(angle)[0]), schedule.time(angle))

    y = noise * sigmas[0]
    for here, there in pairwise(sigmas):
        x0 = clean(y, here)
        slope = (y - x0) / here
        ahead = y + (there - here) * slope
        if there > 0:
            x0 = clean(ahead, there)
            ahead = y + (there - here) * (slope + (ahead - x0) / there) / 2
        y = ahead
        if watch:
            watch(x0)
    return y


# By the names in models/names.py; those that go through listed times are one algorithm, DDIM.
ALGORITHMS: dict[str, Callable[..., Tensor]] = {"midpoint": midpoint, "dpmpp-2m": dpmpp_2m, "heun": heun}


def sample(
    denoise: Denoise,
    noise: Tensor,
    schedule: Schedule,
    sampler: str = "midpoint",
    calls: int = 20,
    *,
    times: Tensor | None = None,
    fresh: Callable[[Tensor], Tensor] | None = None,
    watch=None,
) -> Tensor:
    """Samples (B, ...) from standard normal `noise` with at most `calls` network calls.

    `times`: the falling times that a Fast-DDPM network was trained on; it can be called at no others, so only ddim and
    ancestral take them. `fresh(x)` draws the noise that ancestral sampling adds. `watch(x0)` is called with each
    estimate of x0.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
    kind = SAMPLERS[sampler]
    if times is not None and not kind.listed_times:
        known = " or ".join(OF_LISTED_TIMES)
        raise ValueError(f"a network trained on a list of steps samples with {known}, not {sampler}")
    if calls < 1:
        raise ValueError(f"{calls} calls: at least 1 is needed")
    if kind.listed_times:
        times = trailing_times(calls) if times is None else times
        return ddim(denoise, noise, schedule, times, eta=float(kind.fresh_noise), fresh=fresh, watch=watch)
    return ALGORITHMS[sampler](denoise, noise, schedule, calls, watch=watch)
