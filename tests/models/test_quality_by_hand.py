"""Every figure of models/quality.py against the same written with NumPy (tests/predict/test_predict_figures.py), on
sets of six features."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_predict_figures import copies, frechet, jackknife, kernel, manifold, ridge_accuracy, similarity
from written_by_hand import stream

from models import quality


def numbers(n: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(shift, scale, (n, 6))


@pytest.mark.parametrize(("n", "m"), [(37, 50), (60, 23)])
def test_distances(n, m):
    fake, real = numbers(n, 0, 0.5, 1.5), numbers(m, 1)
    found = quality.set_figures(torch.from_numpy(fake), torch.from_numpy(real), stream(0, 0, "x"))
    kid, deviation = kernel(fake, real, stream(0, 0, "x"))
    expected = {"fid": frechet(fake, real), "fid_error": jackknife(fake, real), "kid": kid, "kid_sd": deviation}
    assert found == pytest.approx(expected | manifold(fake, real), rel=1e-6)


def test_the_kernel_distance_of_given_subsets():
    fake, real = numbers(40, 0, 0.5), numbers(30, 1)
    found = quality.kernel_distance(
        torch.from_numpy(fake), torch.from_numpy(real), stream(0, 0, "x"), subsets=3, size=7
    )
    draw, values = stream(0, 0, "x"), []
    for _ in range(3):
        x, y = (s[torch.randperm(len(s), generator=draw)[:7].numpy()] for s in (fake, real))
        values.append(float(quality.squared_mmd(torch.from_numpy(x), torch.from_numpy(y))))
    assert found == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_errors_of_few_samples_and_distances_of_equal_ones():
    """Of three there is no group to leave out; roundings never make a distance negative."""
    few = torch.from_numpy(numbers(3, 0))
    assert math.isnan(quality.frechet_with_error(few, torch.from_numpy(numbers(20, 1)))[1])
    fake, real = torch.from_numpy(numbers(9, 2)), torch.from_numpy(numbers(20, 3))
    parts = [np.delete(np.arange(9), part) for part in np.array_split(np.arange(9), 4)]  # of nine: four parts
    left = np.array([frechet(fake.numpy()[part], real.numpy()) for part in parts])
    assert quality.frechet_with_error(fake, real)[1] == pytest.approx(
        math.sqrt(3 / 4 * ((left - left.mean()) ** 2).sum())
    )
    for seed in range(20):
        x = quality.Moments.of(torch.from_numpy(numbers(300, seed, 100)))
        assert 0 <= quality.frechet_distance(x, x) < 1e-6


def test_a_neighbour_at_the_radius_is_inside():
    """On a grid, where distances are exactly equal."""
    real = torch.tensor([[x, y] for x in range(4) for y in range(4)], dtype=torch.float32)
    fake = torch.tensor([[float(x), -1.0] for x in range(4)] + [[9.0, 9], [9, 10], [10, 9], [10, 10]])
    found = quality.manifold_figures(fake, real, k=1, k_density=2)
    # The nearest neighbour of a real point is 1 away, as the first row of fake ones is from the first row of real ones.
    assert found["precision"] == 0.5 and found["coverage"] == 0.25 and found["density"] == pytest.approx(4 / (2 * 8))
    assert found["recall"] == 0.25


@pytest.mark.parametrize("centred", [False, True])
def test_copies(monkeypatch, centred):
    """Also where distances tie and the sets are larger than a chunk."""
    monkeypatch.setattr(quality, "CHUNK", 11)
    fake, train, heldout = numbers(31, 0, 0.3), numbers(50, 1), numbers(27, 2)
    fake[3], fake[4], train[45] = train[7], train[31], train[7]
    scans = [f"s{i // 3}" for i in range(27)]
    groups = torch.arange(27) // 3
    centre = train.mean(0) if centred else None
    found, pairs = quality.copying(
        *map(torch.from_numpy, (fake, train, heldout)),
        groups,
        None if centre is None else torch.from_numpy(centre),
        pairs=5,
    )
    expected, distance, where = copies(fake, train, heldout, scans, centre)
    assert found == pytest.approx(expected, rel=1e-4)
    order = np.argsort(distance)[:5]
    assert {pairs[0][0], pairs[1][0]} == {3, 4} and {p[:2] for p in pairs} == {(i, where[i]) for i in order}
    assert dict(p[:2] for p in pairs)[3] == 7  # the first of two that are as near
    assert [p.distance for p in pairs] == pytest.approx(distance[order], abs=1e-5)


def test_a_tie_counts_half():
    """Samples as near to the training set as held-out slices are: even."""
    train, heldout = torch.from_numpy(numbers(20, 0)), torch.from_numpy(numbers(10, 1))
    found, _ = quality.copying(heldout.clone(), train, heldout, torch.arange(10))
    assert found["nearer_than_heldout"] == 0.5


def test_classes():
    labels = [torch.arange(n) % 3 // 2 for n in (40, 50, 30)]  # a third of class 1
    sets = [numbers(len(y), i) * [1, 1, 5, 1, 1, 1] + 1.2 * y.numpy()[:, None] for i, y in enumerate(labels)]
    pairs = [(torch.from_numpy(x), y) for x, y in zip(sets, labels, strict=True)]
    found = quality.class_fidelity(*pairs, 2)
    (f, fy), (t, ty), (h, hy) = ((x, y.tolist()) for x, y in zip(sets, labels, strict=True))
    assert found == {"accuracy": ridge_accuracy(t, ty, f, fy), "accuracy_of_heldout": ridge_accuracy(t, ty, h, hy),
                     "train_on_generated": ridge_accuracy(f, fy, h, hy)}  # fmt: skip
    assert len(set(found.values())) == 3


def test_the_classifier_is_ridge_regression_in_closed_form():
    """Weights of classes 1 / count, damping a hundredth of the mean diagonal."""
    x, labels = numbers(30, 0) * [1, 1, 5, 1, 1, 1] + 3, np.arange(30) % 5 // 4
    table = np.concatenate([(x - x.mean(0)) / x.std(0, ddof=1), np.ones((30, 1))], 1)
    weight = (1 / np.bincount(labels))[labels][:, None]
    gram = table.T @ (weight * table)
    expected = np.linalg.solve(gram + 0.01 * np.trace(gram) / 7 * np.eye(7), table.T @ (weight * np.eye(2)[labels]))
    found = quality.LinearProbe(torch.from_numpy(x), torch.from_numpy(labels), 2)
    np.testing.assert_allclose(found.weight, expected, rtol=1e-8)


def test_recall_by_class_is_averaged():
    """Of each true class the share that is recognised; classes that do not occur do not count."""
    labels, predicted = torch.tensor([0, 0, 0, 0, 2, 2]), torch.tensor([0, 0, 0, 2, 2, 0])
    assert quality.balanced_accuracy(predicted, labels) == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_structural_similarity_of_colour_and_of_opposites():
    """Each channel by itself, then their mean; negative structure counts as 0."""
    rng = np.random.default_rng(0)
    a = torch.from_numpy(rng.integers(0, 256, (2, 3, 32, 32), np.uint8))
    b = (
        (
            a.float() * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
            + torch.from_numpy(rng.normal(0, 20, a.shape)).float()
            + 20
        )
        .clamp(0, 255)
        .byte()
    )
    expected = [np.mean([similarity(a[i, c].numpy(), b[i, c].numpy()) for c in range(3)]) for i in range(2)]
    np.testing.assert_allclose(quality.ms_ssim(a, b), expected, atol=1e-4)
    assert float(quality.ms_ssim(a, 255 - a).max()) == 0.0


def test_pairs_are_of_two_groups_and_no_more_than_asked_for():
    pairs = quality.draw_pairs(torch.tensor([0, 0, 1]), 50, stream(0, 0, "x"))
    drawn = torch.randint(3, (200, 2), generator=stream(0, 0, "x"))
    kept = [p for p in drawn.tolist() if {0: 0, 1: 0, 2: 1}[p[0]] != {0: 0, 1: 0, 2: 1}[p[1]]]
    assert pairs.tolist() == kept[:50] and len(quality.draw_pairs(torch.tensor([5]), 50, stream(0, 0, "x"))) == 0
    assert len(quality.draw_pairs(torch.arange(9), 3, stream(0, 0, "x"))) == 3


def test_thumbnails_are_rounded_means_of_larger_slices_alone():
    image = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    image[..., 0, 0], image[..., 2:4, 0] = 3, 1  # means 0.75 and 0.5 of four
    small = quality.thumbnails(image)[0, 0]
    assert small[0, 0] == 1 and small[1, 0] == 0 and small.dtype == torch.uint8
    for size, expected in ((64, 64), (80, 64), (48, 48)):
        assert quality.thumbnails(image[..., :size, :size]).shape == (1, 1, expected, expected)
