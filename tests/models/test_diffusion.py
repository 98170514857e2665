"""Diffusion maths against closed forms: Gaussians and mixtures whose denoisers are known exactly."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from models import names, samplers, schedules, targets

SPREAD = torch.tensor([2.0, 1.0, 0.7, 0.5, 0.3, 0.15], dtype=torch.float64)  # standard deviations, a falling spectrum


def all_schedules():
    return [schedules.make_schedule(name) for name in names.SCHEDULES]


def gaussian_denoiser(schedule, spread=SPREAD):
    """E[x0 | x] for x0 ~ N(0, diag(spread^2)): alpha s^2 / (alpha^2 s^2 + sigma^2) x."""

    def denoise(x, t):
        alpha, sigma = (v[:, None].double() for v in schedule.alpha_sigma(t.double()))
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x

    return denoise


def gain(schedule, sampler, calls, spread=SPREAD, **kwargs):
    """Every sampler is linear in the noise here, so noise of ones gives the standard deviation of what it makes."""
    return samplers.sample(
        gaussian_denoiser(schedule, spread),
        torch.ones(1, len(spread), dtype=torch.float64),
        schedule,
        sampler,
        calls,
        **kwargs,
    )[0]


def relative_frechet(schedule, sampler, calls):
    """Of 32 x 32 images whose power falls with the square of the frequency, unit variance per pixel."""
    f = torch.fft.fftfreq(32, dtype=torch.float64) * 32
    spread = 1 / (f[:, None] ** 2 + f**2).clamp(min=1).sqrt().flatten()
    spread = spread / spread.square().mean().sqrt()
    return float(((gain(schedule, sampler, calls, spread) - spread) ** 2).sum() / (spread**2).sum())


# --- schedules --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("schedule", all_schedules(), ids=lambda s: s.name)
def test_alpha_falls_sigma_rises_and_the_time_is_found_again(schedule):
    t = torch.linspace(0, 1, 503, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    assert (alpha.diff() < 0).all() and (sigma.diff() > 0).all()
    total = alpha + sigma if schedule.name == "flow" else alpha**2 + sigma**2
    assert torch.allclose(total, torch.ones_like(t))
    assert torch.allclose(schedule.time(schedule.angle(t)), t, atol=1e-6)


def test_the_linear_schedule_is_the_product_of_its_betas():
    schedule, product = schedules.make_schedule("linear"), 1.0
    for k in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * k / 999)
        if k in (0, 1, 500, 999):
            alpha, _ = schedule.alpha_sigma(torch.tensor(k / 999, dtype=torch.float64))
            assert float(alpha) ** 2 == pytest.approx(product, rel=1e-6)
    assert product == pytest.approx(4.04e-5, rel=1e-2)


def last_alpha(schedule) -> float:
    """Share of signal that is left at t = 1."""
    return float(schedule.alpha_sigma(torch.ones(1, dtype=torch.float64))[0])


def test_terminal_signal():
    left = {s.name: last_alpha(s) for s in all_schedules()}
    assert left["linear"] == pytest.approx(0.00635, rel=1e-2)
    assert left["scaled-linear"] == pytest.approx(0.0119, rel=2e-2)
    assert left["cosine"] == pytest.approx(1e-3, rel=1e-3)
    assert left["zero-snr"] < 1e-8 and left["flow"] < 1e-8


def test_no_schedule_starts_from_noise_that_still_holds_the_image():
    """A schedule of 100 linear steps with the betas of 1000 ends at alpha_bar = 0.364: pure noise is no start for
    it."""
    assert all(last_alpha(s) ** 2 < 2e-4 for s in all_schedules())


# --- targets and loss -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", names.TARGETS)
@pytest.mark.parametrize("schedule", all_schedules(), ids=lambda s: s.name)
def test_the_exact_prediction_gives_back_x0(schedule, target):
    gen = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 7, 2, 3, 3, generator=gen, dtype=torch.float64)
    t = torch.linspace(0.02, 0.98, 7, dtype=torch.float64)
    x = schedules.add_noise(x0, noise, t, schedule)
    prediction = targets.target_of(x0, noise, t, schedule, target)
    assert torch.allclose(targets.to_x0(prediction, x, t, schedule, target), x0)


@pytest.mark.parametrize("target", ["x0", "v", "flow"])
@pytest.mark.parametrize("name", ["zero-snr", "flow"])
def test_where_no_signal_is_left_x0_is_still_finite(name, target):
    schedule, t = schedules.make_schedule(name), torch.ones(3)
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(2))
    x = schedules.add_noise(x0, noise, t, schedule)
    assert torch.allclose(
        targets.to_x0(targets.target_of(x0, noise, t, schedule, target), x, t, schedule, target), x0, atol=1e-5
    )


@pytest.mark.parametrize("target", names.TARGETS)
@pytest.mark.parametrize("name", ["linear", "flow"])
def test_min_snr_weights_are_one_weight_on_the_error_of_x0(name, target):
    """Whatever the target, weight x its squared error = min(SNR, 5) x the squared error of the implied x0."""
    schedule, t = schedules.make_schedule(name), torch.tensor([0.05, 0.3, 0.6, 0.9], dtype=torch.float64)
    gen = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 4, 50, generator=gen, dtype=torch.float64)
    x, exact = schedules.add_noise(x0, noise, t, schedule), targets.target_of(x0, noise, t, schedule, target)
    wrong = exact + 0.1 * torch.randn(4, 50, generator=gen, dtype=torch.float64)
    on_target = targets.min_snr_weight(t, schedule, target) * (wrong - exact).square().mean(1)
    alpha, sigma = schedule.alpha_sigma(t)
    on_x0 = (alpha / sigma).square().clamp(max=5) * (targets.to_x0(wrong, x, t, schedule, target) - x0).square().mean(1)
    assert torch.allclose(on_target, on_x0, rtol=1e-6)


def test_the_loss_is_the_error_of_the_prediction():
    schedule, t = schedules.make_schedule("scaled-linear"), torch.tensor([0.02, 0.8])
    x0, noise = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(4))
    seen = {}

    def predict(x, t):
        seen["x"] = x
        return torch.zeros_like(x)

    loss = targets.diffusion_loss(predict, x0, noise, t, schedule, target="epsilon")
    assert torch.allclose(loss, noise.square().mean((1, 2, 3)))
    assert torch.allclose(seen["x"], schedules.add_noise(x0, noise, t, schedule))
    weighted = targets.diffusion_loss(predict, x0, noise, t, schedule, target="epsilon", min_snr_gamma=5.0)
    assert (
        torch.allclose(weighted, loss * targets.min_snr_weight(t, schedule, "epsilon", 5.0)) and (weighted < loss).any()
    )


# --- times ------------------------------------------------------------------------------------------------------------
def test_fast_ddpm_lists():
    assert schedules.fast_steps("fast-uniform", 10) == [0, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999]
    assert schedules.fast_steps("fast-nonuniform", 10) == [0, 199, 399, 599, 699, 799, 849, 899, 949, 999]
    assert schedules.fast_steps("fast-uniform", 30)[-1] == 989 and schedules.fast_steps("fast-uniform", 6)[-1] == 995
    assert (
        schedules.fast_steps("fast-nonuniform", 20)[:3] == [0, 88, 175]
        and schedules.fast_steps("fast-nonuniform", 20)[-1] == 999
    )
    for n in (5, 12, 20, 50, 100):  # the authors' program, in NumPy
        early, late = np.linspace(0, 699, int(0.4 * n) + 1)[:-1], np.linspace(699, 999, int(0.6 * n))
        assert schedules.fast_steps("fast-nonuniform", n) == [*np.ceil(early).astype(int), *np.ceil(late).astype(int)]
        assert schedules.fast_steps("fast-uniform", n) == [0, *np.arange(-1, 1000, 1000 // n)[1:]]
    with pytest.raises(ValueError, match="at least 2"):
        schedules.fast_steps("fast-uniform", 1)
    with pytest.raises(ValueError, match="at least 4"):  # 3 steps would end at 699, far from pure noise
        schedules.fast_steps("fast-nonuniform", 3)
    assert schedules.fast_steps("fast-nonuniform", 4)[-1] == 999


def test_training_on_a_list_draws_only_its_times_and_in_pairs():
    t = schedules.draw_times(64, "fast-uniform", torch.Generator().manual_seed(0), "cpu")
    steps = (t * 999).round().long().tolist()
    allowed = schedules.fast_steps("fast-uniform", 10)
    assert set(steps) <= set(allowed) and len(set(steps)) > 5
    assert all(allowed.index(a) + allowed.index(b) == 10 for a, b in zip(steps[:32], steps[32:], strict=True))


@pytest.mark.parametrize(
    ("name", "cdf"),
    [("uniform", lambda t: t), ("logit-normal", lambda t: 0.5 + 0.5 * torch.erf(torch.logit(t) / 2**0.5))],
)
def test_times_follow_their_distribution_in_every_part_of_the_batch(name, cdf):
    t = schedules.draw_times(256, name, torch.Generator().manual_seed(5), "cpu")
    for part in (t, t[:128], t[128:]):
        u = cdf(part.double()).sort().values
        assert (u - (torch.arange(len(u)) + 0.5) / len(u)).abs().max() < 0.03  # random times would miss by about 0.06


def test_trailing_times_start_at_the_end():
    steps = (schedules.trailing_times(10) * 999).round().long().tolist()
    assert steps == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]


# --- samplers ---------------------------------------------------------------------------------------------------------
ORDERS = {"ddim": 1, "midpoint": 2, "dpmpp-2m": 2, "heun": 2}  # that of ancestral is of its samples' variance, below


@pytest.mark.parametrize("sampler", ORDERS)
@pytest.mark.parametrize("schedule", all_schedules(), ids=lambda s: s.name)
def test_every_sampler_gives_the_spread_of_the_data_on_every_schedule(schedule, sampler):
    assert torch.allclose(gain(schedule, sampler, 400), SPREAD, rtol=0.1)


def test_the_order_of_every_sampler_is_measured():
    assert {*ORDERS, "ancestral"} == set(names.SAMPLERS)


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize(("sampler", "order"), ORDERS.items())
def test_the_error_falls_at_the_order_of_the_method(sampler, order, data):
    """Against the solver's own limit, between fixed ends of the noise range: twice the calls, 2^order less error at
    least."""
    schedule, spread = schedules.make_schedule("flow"), torch.tensor([1.5, 0.5, 0.25], dtype=torch.float64)
    if data == "gaussian":
        denoise, ones = gaussian_denoiser(schedule, spread), torch.ones(1, 3, dtype=torch.float64)
    else:
        centres = torch.tensor([[1.0, 0.5, 0.0], [-0.6, 0.3, 0.2], [0.1, -0.8, -0.3]], dtype=torch.float64)
        denoise = mixture_denoiser(schedule, centres, 0.3)
        ones = torch.tensor([[1.0, 1.0, 1.0], [-0.9, 0.4, 1.5], [0.3, -1.2, -0.5]], dtype=torch.float64)
    if sampler == "ddim":
        run = lambda n: samplers.ddim(denoise, ones, schedule, torch.linspace(0.99, 0.05, n, dtype=torch.float64))  # noqa: E731
    else:
        ends = {"sigma_min": 0.05} if sampler == "heun" else {}
        run = lambda n: samplers.ALGORITHMS[sampler](denoise, ones, schedule, n, **ends)  # noqa: E731
    limit = run(3001)
    errors = [float((run(n) - limit).norm()) for n in (64, 128, 256)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) > 0.75 * order


@pytest.mark.parametrize(
    ("name", "target"), [("linear", "epsilon"), ("cosine", "epsilon"), ("zero-snr", "v"), ("flow", "flow")]
)
def test_the_default_also_suits_a_network_that_errs(name, target):
    """The exact prediction plus an error of 2 %: what divides it by a small alpha would blow it up."""
    schedule, gen = schedules.make_schedule(name), torch.Generator().manual_seed(0)
    phase, noise = (
        torch.randn(len(SPREAD), generator=gen).double(),
        torch.randn(4000, len(SPREAD), generator=gen).double(),
    )

    def predict(x, t):
        alpha, sigma = (v[:, None].double() for v in schedule.alpha_sigma(t.double()))
        x0 = gaussian_denoiser(schedule)(x, t)
        epsilon = (x - alpha * x0) / sigma
        exact = {"epsilon": epsilon, "v": alpha * epsilon - sigma * x0, "flow": epsilon - x0}[target]
        return exact + 0.02 * torch.sin(3 * x + 7 * t[:, None].double() + phase)

    def error(sampler, calls):
        x = samplers.sample(samplers.denoiser(predict, schedule, target), noise, schedule, sampler, calls)
        return float((x.std(0) - SPREAD).square().sum() + x.mean(0).square().sum())

    assert error("midpoint", 10) < error("ddim", 10) / 4 and error("midpoint", 20) < error("ddim", 20)


def test_the_variance_of_ancestral_samples_errs_at_first_order():
    """Linear in all its noises, so one noise at a time gives the variance of what it makes; no drawing, no scatter."""
    schedule, spread = schedules.make_schedule("flow"), torch.tensor([1.5, 0.5, 0.25], dtype=torch.float64)

    def variance(calls):
        noise, count = torch.zeros(calls, 3, dtype=torch.float64), iter(range(1, calls))
        noise[0] = 1

        def fresh(x):
            one = torch.zeros_like(x)
            one[next(count)] = 1
            return one

        rows = samplers.sample(gaussian_denoiser(schedule, spread), noise, schedule, "ancestral", calls, fresh=fresh)
        return rows.square().sum(0)

    errors = [float((variance(n) - spread**2).norm()) for n in (32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert 0.75 < math.log2(coarse / fine) < 1.5


def test_the_default_is_the_best_at_ten_and_twenty_calls():
    """Relative Fréchet distance on a 1/f^2 power spectrum: the recommended samplers beat DDIM by 5 to 20 times and
    more."""
    linear = schedules.make_schedule("linear")
    for calls in (10, 20):
        score = {name: relative_frechet(linear, name, calls) for name in ("midpoint", "dpmpp-2m", "ddim", "heun")}
        assert min(score, key=score.get) == "midpoint", score
        assert score["midpoint"] < score["ddim"] / 10 and score["dpmpp-2m"] < score["ddim"] / 10, score


def mixture_denoiser(schedule, centres, spread):
    """E[x0 | x] of an equal mixture of N(centre, spread^2)."""

    def denoise(x, t):
        alpha, sigma = (v[:, None].double() for v in schedule.alpha_sigma(t.double()))
        variance = alpha**2 * spread**2 + sigma**2
        near = -(x[:, None] - alpha[..., None] * centres).square().sum(-1) / (2 * variance)
        weights = near.softmax(1)[..., None]
        each = centres + (alpha * spread**2 / variance)[..., None] * (x[:, None] - alpha[..., None] * centres)
        return (weights * each).sum(1)

    return denoise


def test_on_a_mixture_ten_calls_come_close_to_the_exact_flow():
    gen = torch.Generator().manual_seed(6)
    centres = torch.randn(24, 16, generator=gen, dtype=torch.float64)
    schedule, noise = schedules.make_schedule("linear"), torch.randn(256, 16, generator=gen, dtype=torch.float64)
    denoise = mixture_denoiser(schedule, centres, 0.1)

    def far(sampler, calls):  # mean distance to the nearest centre: 0.1 sqrt(16) = 0.4 for exact samples
        x = samplers.sample(denoise, noise, schedule, sampler, calls)
        return abs(float(torch.cdist(x, centres).min(1).values.mean()) - 0.395)

    assert far("midpoint", 200) < 0.02
    assert far("midpoint", 10) < far("ddim", 10) / 2
    assert far("dpmpp-2m", 20) < far("ddim", 20) / 2


def test_on_a_mixture_too_the_default_comes_closest_to_the_exact_flow():
    """24 modes in 16 dimensions: mean distance to where the flow takes the same noise."""
    gen = torch.Generator().manual_seed(6)
    centres, noise = (torch.randn(n, 16, generator=gen, dtype=torch.float64) for n in (24, 200))
    schedule = schedules.make_schedule("linear")

    def sample(sampler, calls):
        return samplers.sample(mixture_denoiser(schedule, centres, 0.1), noise, schedule, sampler, calls)

    exact = sample("midpoint", 400)
    for calls in (10, 20):
        far = {
            s: float((sample(s, calls) - exact).norm(dim=1).mean()) for s in ("midpoint", "dpmpp-2m", "ddim", "heun")
        }
        assert min(far, key=far.get) == "midpoint" and far["midpoint"] < far["ddim"] / 2, far


def test_ancestral_sampling_finds_the_modes_in_their_shares():
    schedule, gen = schedules.make_schedule("linear"), torch.Generator().manual_seed(7)
    centres = torch.tensor([[-1.5], [0.5], [0.5]], dtype=torch.float64)  # one third and two thirds
    noise = torch.randn(3000, 1, generator=gen, dtype=torch.float64)
    x = samplers.sample(
        mixture_denoiser(schedule, centres, 0.1),
        noise,
        schedule,
        "ancestral",
        150,
        fresh=lambda x: torch.randn(x.shape, generator=gen, dtype=x.dtype),
    )
    assert float((x < -0.5).double().mean()) == pytest.approx(1 / 3, abs=0.03)
    assert float(x[x > -0.5].std()) == pytest.approx(0.1, rel=0.25)


def test_fast_sampling_respaces_instead_of_skipping():
    """DDIM in 10 steps uses alpha_bar of the steps that it visits. One that goes on using the neighbouring step's
    (t - 1) while it jumps 100 steps makes far worse samples: that is the defect this guards against."""
    schedule = schedules.make_schedule("linear")
    denoise, x = gaussian_denoiser(schedule), torch.ones(1, len(SPREAD), dtype=torch.float64)
    times = schedules.trailing_times(10)
    for t in times:
        here = t.expand(1)
        x0 = denoise(x, here)
        alpha, sigma = (float(v) for v in schedule.alpha_sigma(t))
        alpha_next, sigma_next = (float(v) for v in schedule.alpha_sigma((t - 1 / 999).clamp(min=0)))
        x = alpha_next * x0 + sigma_next * (x - alpha * x0) / sigma
    skipped = float((x[0] - SPREAD).norm())
    assert float((gain(schedule, "ddim", 10) - SPREAD).norm()) < skipped / 3


def test_a_fast_ddpm_network_is_called_at_its_times_only():
    schedule, called = schedules.make_schedule("linear"), []
    exact = gaussian_denoiser(schedule)

    def denoise(x, t):
        called.append(round(float(t[0]) * 999))
        return exact(x, t)

    times = schedules.fast_times("fast-nonuniform", 10)
    samplers.sample(denoise, torch.ones(1, 6, dtype=torch.float64), schedule, "ddim", 10, times=times)
    assert called == [999, 949, 899, 849, 799, 699, 599, 399, 199, 0]
    with pytest.raises(ValueError, match="ddim or ancestral"):
        samplers.sample(denoise, torch.ones(1, 6), schedule, "midpoint", 10, times=times)


@pytest.mark.parametrize(
    ("sampler", "calls", "made"),
    [
        ("ddim", 7, 7),
        ("dpmpp-2m", 7, 7),
        ("midpoint", 10, 10),
        ("midpoint", 7, 6),
        ("midpoint", 1, 1),
        ("heun", 1, 1),
        ("dpmpp-2m", 1, 1),
        ("heun", 9, 9),
        ("heun", 10, 9),
        ("ancestral", 3, 3),
    ],
)
def test_the_number_of_network_calls_is_what_was_asked(sampler, calls, made):
    schedule, count = schedules.make_schedule("flow"), [0]

    def denoise(x, t):
        count[0] += 1
        assert t.shape == (len(x),) and t.dtype == torch.float32
        return torch.zeros_like(x)

    samplers.sample(denoise, torch.randn(2, 3), schedule, sampler, calls)
    assert count[0] == made


def test_the_denoiser_clamps_pixels_only_if_asked():
    schedule = schedules.make_schedule("flow")
    predict = lambda x, t: torch.full_like(x, 5.0)  # noqa: E731
    x, t = torch.zeros(1, 4), torch.tensor([0.5])
    assert samplers.denoiser(predict, schedule, "x0")(x, t).max() == 5
    assert samplers.denoiser(predict, schedule, "x0", clamp=1.0)(x, t).max() == 1


def test_every_name_of_a_sampler_has_its_algorithm_and_the_other_way_round():
    assert set(names.SAMPLERS) == set(samplers.ALGORITHMS) | {"ddim", "ancestral"}
    assert names.OF_LISTED_TIMES == ("ddim", "ancestral") and names.SAMPLERS["ancestral"].fresh_noise
    noise = torch.zeros(1, 1, 4, 4)
    for sampler in names.SAMPLERS:
        there = samplers.sample(lambda x, t: x * 0, noise, schedules.make_schedule("flow"), sampler, 4)
        assert there.shape == noise.shape
