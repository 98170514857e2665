"""Figures of quality on sets whose answer is known: in closed form, by a slow reference, or by what is wrong with
them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models import quality
from models.quality import (
    LinearProbe,
    Moments,
    balanced_accuracy,
    class_fidelity,
    copying,
    draw_pairs,
    frechet_distance,
    frechet_with_error,
    kernel_distance,
    manifold_figures,
    ms_ssim,
    ms_ssim_scales,
    nearest,
    pair_similarity,
    squared_mmd,
    thumbnails,
)


def gaussian(n: int, d: int = 8, seed: int = 0, mean: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + mean


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Frechet ----------------------------------------------------------------------------------------------------------
def test_frechet_of_gaussians_in_closed_form():
    d = 5
    mean, eye = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    standard = Moments(2, mean, eye)  # covariance = scatter / 1
    assert frechet_distance(standard, Moments(2, mean + 3, eye)) == pytest.approx(9 * d, rel=1e-12)
    assert frechet_distance(standard, Moments(2, mean, 4 * eye)) == pytest.approx(d * (2 - 1) ** 2, rel=1e-12)
    stretched = torch.diag(torch.tensor([1.0, 4, 9, 16, 25], dtype=torch.float64))
    assert frechet_distance(standard, Moments(2, mean, stretched)) == pytest.approx(0 + 1 + 4 + 9 + 16, rel=1e-12)
    assert frechet_distance(standard, standard) == pytest.approx(0, abs=1e-12)


def test_frechet_of_rotated_covariances_is_that_of_the_matrix_root():
    a, b = gaussian(40, 6, 1).double(), (gaussian(50, 6, 2) @ gaussian(6, 6, 3)).double()
    c, e = np.cov(a.numpy().T), np.cov(b.numpy().T)
    values = np.linalg.eigvals(c @ e)  # not symmetric: another way to the same trace
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c) + np.trace(e) - 2 * np.sqrt(values.real).sum()
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(float(expected), rel=1e-9)


def test_moments_add_up_and_do_not_cancel_far_from_zero():
    x = gaussian(101, 4, mean=1e5)
    parts = [Moments.of(p) for p in x.split([1, 60, 40])]
    total = parts[0] + parts[1] + parts[2]
    assert total.count == 101
    np.testing.assert_allclose(total.covariance, np.cov(x.double().numpy().T), rtol=1e-9)


def test_more_dimensions_than_samples():
    x = gaussian(10, 32)
    assert frechet_with_error(x, x)[0] == pytest.approx(0, abs=1e-6)


def test_frechet_finds_a_shift_and_its_error_is_of_the_right_size():
    real = gaussian(4000, seed=1)
    values, errors = zip(
        *(frechet_with_error(gaussian(500, seed=s, mean=1.0), real) for s in range(20, 50)), strict=True
    )
    assert np.mean(values) == pytest.approx(8.0, rel=0.05)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.5)


# --- kernel distance --------------------------------------------------------------------------------------------------
def test_squared_mmd_is_the_double_sum():
    x, y = gaussian(7, 3).double(), gaussian(5, 3, 1, 0.5).double()

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert float(squared_mmd(x, y)) == pytest.approx(xx + yy - 2 * xy, rel=1e-9)


def test_kernel_distance_is_unbiased_and_repeatable():
    real, same, other = gaussian(900, seed=1), gaussian(900, seed=2), gaussian(900, seed=3, mean=0.5)
    small = kernel_distance(same, real, draws(), size=100)
    large = kernel_distance(same, real, draws())  # of at most half of the set
    assert abs(small[0]) < small[1] and abs(large[0]) < 0.02 and 0 < large[1] < small[1]
    shifted = kernel_distance(other, real, draws())
    assert shifted[0] > 10 * shifted[1] and shifted == kernel_distance(other, real, draws())


# --- precision, recall, density, coverage -----------------------------------------------------------------------------
def brute_force(fake: np.ndarray, real: np.ndarray, k: int, kd: int) -> dict[str, float]:
    """The definitions, word by word."""

    def radius(x, i, k):
        return sorted(np.linalg.norm(x[i] - x[j]) for j in range(len(x)) if j != i)[k - 1]

    def inside(point, x, k):
        return [np.linalg.norm(point - x[i]) <= radius(x, i, k) for i in range(len(x))]

    return {
        "precision": np.mean([any(inside(f, real, k)) for f in fake]),
        "recall": np.mean([any(inside(r, fake, k)) for r in real]),
        "density": np.sum([inside(f, real, kd) for f in fake]) / (kd * len(fake)),
        "coverage": np.mean(
            [any(np.linalg.norm(real[i] - f) <= radius(real, i, kd) for f in fake) for i in range(len(real))]
        ),
    }


@pytest.mark.parametrize("chunk", [1024, 7])
def test_manifold_figures_are_their_definitions(monkeypatch, chunk):
    monkeypatch.setattr("models.quality.CHUNK", chunk)
    fake, real = gaussian(25, 2, 1, 0.7, 0.6), gaussian(20, 2, 2)
    expected = brute_force(fake.double().numpy(), real.double().numpy(), 3, 5)
    assert manifold_figures(fake, real) == pytest.approx(expected, abs=1e-12)
    assert 0 < expected["precision"] < 1 and 0 < expected["recall"] < 1


def test_equal_sets_are_perfect():
    x = gaussian(300)
    figures = manifold_figures(x, x)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1.0
    assert float(squared_mmd(x, x)) < 0  # unbiased: the diagonal is not counted within a set, but between the sets
    assert frechet_with_error(x, x)[0] < 1e-9


def test_collapse_is_seen_by_recall_and_coverage():
    real, healthy = gaussian(400, seed=1), gaussian(400, seed=2)
    collapsed = real[:1] + gaussian(400, seed=3, scale=0.01)
    good, bad = manifold_figures(healthy, real), manifold_figures(collapsed, real)
    assert bad["precision"] == 1.0  # every sample is realistic, so precision alone would praise it
    assert bad["recall"] < 0.05 < 0.7 < good["recall"] and bad["coverage"] < 0.2 < 0.8 < good["coverage"]
    assert frechet_with_error(collapsed, real)[0] > 10 * frechet_with_error(healthy, real)[0]


def test_noise_is_seen_by_precision_and_density():
    real = gaussian(400, seed=1)
    figures = manifold_figures(gaussian(400, seed=2, mean=6), real)
    assert figures["precision"] == 0 and figures["density"] == 0 and figures["coverage"] == 0


@pytest.mark.parametrize(
    "sets", [(gaussian(1), gaussian(9)), (gaussian(9, 4), gaussian(9, 5)), (gaussian(9) / 0, gaussian(9))]
)
def test_bad_features_are_named(sets):
    for figure in (frechet_with_error, manifold_figures, lambda a, b: kernel_distance(a, b, draws())):
        with pytest.raises(ValueError, match="features"):
            figure(*sets)


def test_too_few_samples_for_the_neighbours():
    with pytest.raises(ValueError, match="at least 6"):
        manifold_figures(gaussian(20), gaussian(5))


# --- torchmetrics as a second reference -------------------------------------------------------------------------------
class Flat(torch.nn.Module):
    """The features of an image are its pixels."""

    num_features = 12

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float()


def image_sets() -> list[torch.Tensor]:
    draw = draws(3)
    fake = torch.rand(60, 3, 2, 2, generator=draw)
    return [fake, 0.8 * torch.rand(90, 3, 2, 2, generator=draw) + 0.1]


def test_frechet_distance_is_that_of_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    metric = fid.FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2), normalize=True).set_dtype(
        torch.float64
    )
    fake, real = image_sets()
    metric.update(fake, real=False)
    metric.update(real, real=True)
    ours = quality.frechet_distance(*(quality.Moments.of(x.flatten(1)) for x in (fake, real)))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-4) and ours > 0.01


def test_kernel_distance_is_that_of_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    fake, real = image_sets()
    metric = kid.KernelInceptionDistance(feature=Flat(), subsets=2, subset_size=60, normalize=True)  # whole sets
    metric.update(fake, real=False)
    metric.update(real[:60], real=True)
    ours = quality.squared_mmd(fake.flatten(1).double(), real[:60].flatten(1).double())
    assert float(ours) == pytest.approx(float(metric.compute()[0]), rel=1e-3) and ours > 0.001


def test_ms_ssim_is_nearly_that_of_torchmetrics():
    """Where that can be computed at all (not below 161 px). It reflects the image at the borders of the last scale,
    which here is the whole of it; Wang's windows lie inside."""
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = pictures(2, 176)
    b = (a.float() * 0.8 + 0.2 * pictures(2, 176, seed=1).float()).byte()
    for i in range(2):
        x, y = (z[i : i + 1].float() / 255 for z in (a, b))
        theirs = functional.multiscale_structural_similarity_index_measure(x, y, data_range=1.0)
        assert float(quality.ms_ssim(a[i : i + 1], b[i : i + 1])[0]) == pytest.approx(float(theirs), abs=3e-3)
    with pytest.raises(ValueError):
        functional.multiscale_structural_similarity_index_measure(
            x[..., :128, :128], y[..., :128, :128], data_range=1.0
        )
    assert 0 < quality.ms_ssim(a[:1, :, :64, :64], b[:1, :, :64, :64]) < 1  # ours goes down to 14 px


# --- MS-SSIM ----------------------------------------------------------------------------------------------------------
def pictures(n: int, size: int = 64, seed: int = 0, channels: int = 1) -> torch.Tensor:
    """Smooth random uint8 pictures (n, C, size, size)."""
    coarse = torch.rand(n, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


def slow_ms_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang 2003 on two square pictures, window by window; below 176 px a smaller window and fewer scales."""
    window, count = {16: (7, 2), 32: (7, 3), 64: (7, 4), 176: (11, 5)}[len(a)]
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:count]  # table 1 of Wang 2003
    if count < 5:
        weights = weights / weights.sum()
    g = np.array([math.exp(-((i - window // 2) ** 2) / 4.5) for i in range(window)])
    kernel = np.outer(g, g) / g.sum() ** 2
    views = lambda x: np.lib.stride_tricks.sliding_window_view(x, kernel.shape)  # noqa: E731
    mean = lambda windows: (kernel * windows).sum((2, 3))  # noqa: E731
    a, b, result = a / 255, b / 255, 1.0
    for scale, weight in enumerate(weights):
        if scale:
            a, b = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3)) for x in (a, b))
        p, q = views(a), views(b)
        mp, mq = mean(p), mean(q)
        dp, dq = p - mp[..., None, None], q - mq[..., None, None]
        values = (2 * mean(dp * dq) + 9e-4) / (mean(dp**2) + mean(dq**2) + 9e-4)
        if scale == count - 1:
            values = values * (2 * mp * mq + 1e-4) / (mp**2 + mq**2 + 1e-4)
        result *= max(values.mean(), 0) ** weight
    return result


@pytest.mark.parametrize("size", [16, 32, 64, 176])
def test_ms_ssim_is_its_definition(size):
    a, b = pictures(2, size), pictures(2, size, 1)
    b[1] = (a[1].float() * 0.8 + 10).to(torch.uint8)  # a pair that is alike
    got = ms_ssim(a, b)
    for i in range(2):
        assert float(got[i]) == pytest.approx(slow_ms_ssim(a[i, 0].numpy(), b[i, 0].numpy()), abs=1e-4)
    assert got[0] < 0.5 < 0.8 < got[1]


def test_ms_ssim_scales_and_range():
    assert ms_ssim_scales(64, 64)[0] == 7 and len(ms_ssim_scales(64, 64)[1]) == 4
    assert ms_ssim_scales(256, 240)[0] == 11 and ms_ssim_scales(256, 240)[1] == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    assert sum(ms_ssim_scales(32, 32)[1]) == pytest.approx(1)
    dark = pictures(1) // 8
    assert float(ms_ssim(dark, dark)) == pytest.approx(1)
    # The range is fixed: the same faint noise on a dark and on a bright picture is not rescaled to the picture.
    noisy = dark + torch.randint(0, 3, dark.shape, generator=draws()).to(torch.uint8)
    assert float(ms_ssim(dark, noisy)) > 0.95
    with pytest.raises(ValueError, match="14 px"):
        ms_ssim(pictures(1, 8), pictures(1, 8))
    with pytest.raises(ValueError, match="uint8"):
        ms_ssim(dark.float(), dark.float())


def test_colour_is_the_mean_of_its_channels():
    a, b = pictures(2, channels=3), pictures(2, seed=1, channels=3)
    apart = torch.stack([ms_ssim(a[:, c : c + 1], b[:, c : c + 1]) for c in range(3)])
    torch.testing.assert_close(ms_ssim(a, b), apart.mean(0))


def test_pairs_are_of_two_subjects_and_show_collapse():
    groups = torch.arange(40) // 4
    pairs = draw_pairs(groups, 200, draws())
    assert pairs.shape == (200, 2) and (groups[pairs[:, 0]] != groups[pairs[:, 1]]).all()
    assert len(draw_pairs(torch.zeros(9, dtype=torch.int64), 50, draws())) == 0
    varied, same = pictures(40), pictures(1).repeat(40, 1, 1, 1)
    assert pair_similarity(varied, pairs).mean() < 0.5
    assert pair_similarity(same, pairs).mean() == pytest.approx(1)


# --- copies -----------------------------------------------------------------------------------------------------------
def test_nearest_is_the_highest_correlation(monkeypatch):
    monkeypatch.setattr("models.quality.CHUNK", 7)
    query, bank = pictures(10, 16).flatten(1), pictures(30, 16, 1).flatten(1)
    distance, index = nearest(query, bank)
    reference = 1 - np.corrcoef(query.numpy(), bank.numpy())[:10, 10:]
    np.testing.assert_array_equal(index, reference.argmin(1))
    np.testing.assert_allclose(distance, reference.min(1), atol=1e-5)
    groups = (torch.arange(10), torch.full((30,), -1))
    groups[1][index[0]] = 0  # the nearest one of the first query is of its own subject
    assert nearest(query, bank, groups)[1][0] == reference[0].argsort()[1]


def test_copies_are_caught_and_new_samples_are_not():
    train, heldout, fresh = gaussian(2000, 16, 1), gaussian(200, 16, 2), gaussian(500, 16, 3)
    subjects = torch.arange(200)
    figures, _ = copying(fresh, train, heldout, subjects)
    assert figures["below_5th_percentile"] == pytest.approx(0.05, abs=0.05)
    assert figures["nearer_than_heldout"] == pytest.approx(0.5, abs=0.06)
    assert figures["relative_ratio"] == pytest.approx(1, abs=0.1) and figures["median_ratio"] < 0.9  # the larger bank
    copies = train[:500] + gaussian(500, 16, 4, scale=0.05)
    figures, pairs = copying(copies, train, heldout, subjects)
    assert figures["below_5th_percentile"] > 0.99 and figures["nearer_than_heldout"] > 0.99
    assert figures["relative_ratio"] < 0.1
    assert len(pairs) == 16 and all(p.generated == p.training for p in pairs)
    assert [p.distance for p in pairs] == sorted(p.distance for p in pairs)


def test_some_copies_among_new_samples_are_caught():
    train, heldout = gaussian(2000, 16, 1), gaussian(200, 16, 2)
    mixed = torch.cat([gaussian(450, 16, 3), train[:50]])
    figures, pairs = copying(mixed, train, heldout, torch.arange(200))
    assert figures["below_5th_percentile"] > 0.1 and figures["relative_ratio"] > 0.8  # the median does not see them
    assert all(p.generated >= 450 for p in pairs)


def test_neighbouring_slices_of_one_subject_do_not_spoil_the_comparison():
    """Held-out slices come in nearly equal threes: without leaving their subject out, their ratio would be huge."""
    train, centres = gaussian(900, 16, 1), gaussian(100, 16, 2)
    heldout = centres.repeat_interleave(3, 0) + gaussian(300, 16, 5, scale=0.02)
    figures, _ = copying(gaussian(300, 16, 3), train, heldout, torch.arange(300) // 3)
    assert figures["relative_ratio"] == pytest.approx(1, abs=0.15)


def test_thumbnails():
    image = pictures(2, 128)
    expected = image.view(2, 1, 64, 2, 64, 2).float().mean((3, 5)).round()
    torch.testing.assert_close(thumbnails(image).float(), expected)
    assert torch.equal(thumbnails(image[..., :32, :32]), image[..., :32, :32])


# --- classes ----------------------------------------------------------------------------------------------------------
def two_classes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(n) % 2
    return gaussian(n, 6, seed) + 2.0 * labels[:, None], labels


def test_swapped_classes_are_caught():
    train, heldout, fake = two_classes(400, 1), two_classes(200, 2), two_classes(300, 3)
    right = class_fidelity(fake, train, heldout, 2)
    assert min(right.values()) > 0.95
    swapped = class_fidelity((fake[0], 1 - fake[1]), train, heldout, 2)
    assert swapped["accuracy"] < 0.05 and swapped["train_on_generated"] < 0.05 and swapped["accuracy_of_heldout"] > 0.95
    # The other figures cannot see it: the set of slices is the same.
    assert frechet_with_error(fake[0], train[0])[0] < 1


def test_ignored_classes_are_caught():
    train, heldout, fake = two_classes(400, 1), two_classes(200, 2), two_classes(300, 3)
    blind = class_fidelity((fake[0], torch.randint(2, (300,), generator=draws())), train, heldout, 2)
    assert blind["accuracy"] == pytest.approx(0.5, abs=0.1)


def test_probe_weighs_rare_classes_and_accuracy_is_balanced():
    labels = (torch.arange(1000) % 20 == 0).long()
    x = gaussian(1000, 4) + 2.5 * labels[:, None]
    predicted = LinearProbe(x, labels, 2).predict(x)
    assert balanced_accuracy(predicted, labels) > 0.95
    assert balanced_accuracy(torch.zeros(1000, dtype=torch.int64), labels) == 0.5
