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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

T = 1000  # discrete steps of the tabulated schedules; step k is t = k / (T - 1)
SCHEDULES = ("linear", "scaled-linear", "cosine", "zero-snr", "flow")
TARGETS = ("epsilon", "x0", "v", "flow")
TIME_SETS = ("uniform", "logit-normal", "fast-uniform", "fast-nonuniform")
SAMPLERS = ("midpoint", "dpmpp-2m", "ddim", "ancestral", "heun")
FEWEST_FAST_STEPS = {"fast-uniform": 2, "fast-nonuniform": 4}  # with fewer the list would not reach the noisiest step
MIN_ALPHA = 1e-3  # of the cosine schedule, which would end at no signal at all

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x_t (B, ...), t (B,)) -> estimate of x0 (B, ...)


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

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2)."""
        return -2 * self.angle(t).tan().log()

    @property
    def terminal_alpha(self) -> float:
        """Share of signal that is left at t = 1; 0 means that epsilon cannot be turned into x0 there."""
        return 0.0 if self.name in ("flow", "zero-snr") else float(self.angles[-1].cos())


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


def to_epsilon(prediction: Tensor, x: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """The noise that a prediction implies; for target x0 only where sigma(t) > 0."""
    alpha, sigma = (_like(c, x) for c in schedule.alpha_sigma(t))
    if target == "epsilon":
        return prediction
    if target == "x0":
        return (x - alpha * prediction) / sigma
    if target == "flow":
        return (x + alpha * prediction) / (alpha + sigma)
    if target == "v":
        return (sigma * x + alpha * prediction) / (alpha**2 + sigma**2)
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
        offset = torch.rand((), generator=generator, device=device)
        # Multiples of the golden ratio: the rows of any one rank cover the noise levels evenly as well.
        spread = torch.arange(batch, device=device, dtype=torch.float32) * 0.6180339887498949
        u = (offset + spread) % 1
        return u if time_set == "uniform" else (math.sqrt(2) * torch.erfinv(u.clamp(1e-6, 1 - 1e-6) * 2 - 1)).sigmoid()
    steps = torch.tensor(fast_steps(time_set, fast_number), device=device)
    half = torch.randint(len(steps), ((batch + 1) // 2,), generator=generator, device=device)
    index = torch.cat([half, len(steps) - 1 - half])[:batch]
    return steps[index].float() / (T - 1)


def trailing_times(steps: int) -> Tensor:
    """(steps,) float64, falling from t = 1 in equal jumps: the last jump ends at clean.

    (Lin 2024, section 3.3, "trailing".)
    """
    k = T - T * torch.arange(steps, dtype=torch.float64) / steps - 1
    return (k / (T - 1)).clamp(0, 1)


def fast_times(time_set: str, number: int) -> Tensor:
    """Falling sampling times of a network that was trained on one of Fast-DDPM's lists."""
    return torch.tensor(fast_steps(time_set, number)[::-1], dtype=torch.float64) / (T - 1)


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
    sigma_min: float = 0.04,
    sigma_max: float = 80.0,
    watch=None,
) -> Tensor:
    """DPM-Solver++(2M), steps uniform in log-SNR, then one first-order step to clean (Lu 2022, algorithm 2); `calls`
    calls.

    sigma_min and sigma_max limit sigma / alpha: beyond them the data do not change, and steps there are lost.
    """
    ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64).atan()
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
    sigma_max: float = 80.0,
    rho: float = 7.0,
    watch=None,
) -> Tensor:
    """Heun's method in y = x / alpha over Karras' spacing (Karras 2022, algorithm 1 and equation 5); 2 n - 1 <= calls
    calls."""
    number = max((calls + 1) // 2, 1)
    low, high = schedule.angle(torch.tensor([0.0, 1.0], dtype=torch.float64)).tan().tolist()
    sigma_min, sigma_max = max(sigma_min, low), min(sigma_max, high)
    ramp = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), number, dtype=torch.float64) ** rho
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
    if times is not None and sampler not in ("ddim", "ancestral"):
        raise ValueError(f"a network trained on a list of steps samples with ddim or ancestral, not {sampler}")
    if calls < 1:
        raise ValueError(f"{calls} calls: at least 1 is needed")
    if sampler in ("ddim", "ancestral"):
        times = trailing_times(calls) if times is None else times
        return ddim(denoise, noise, schedule, times, eta=float(sampler == "ancestral"), fresh=fresh, watch=watch)
    if sampler == "dpmpp-2m":
        return dpmpp_2m(denoise, noise, schedule, calls, watch=watch)
    if sampler == "midpoint":
        return midpoint(denoise, noise, schedule, calls, watch=watch)
    if sampler == "heun":
        return heun(denoise, noise, schedule, calls, watch=watch)
    raise ValueError(f"sampler {sampler!r}: choose from {', '.join(SAMPLERS)}")
