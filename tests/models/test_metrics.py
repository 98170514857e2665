"""The diversity figure on sets whose diversity is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from jobs.training import judges
from models import metrics
from models.metrics import class_diversity, diversity, diversity_ratio


def blobs(n: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Gaussian blobs at random places."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.randn(n, 2, generator=generator) * spread
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    return torch.exp(-((x - at[:, :1, None]) ** 2 + (y - at[:, 1:, None]) ** 2) * 8)[:, None] * 2 - 1


def test_is_the_root_mean_square_distance_of_pairs():
    images = blobs(9, 0.4)
    small = torch.nn.functional.adaptive_avg_pool2d(images.double(), 16)
    pairs = [((small[i] - small[j]) ** 2).mean() for i in range(9) for j in range(9) if i != j]
    assert diversity(images) == pytest.approx(math.sqrt(sum(pairs) / len(pairs)), rel=1e-9)


def test_collapse_and_health():
    real = blobs(64, 0.4)
    assert diversity(real[:1].repeat(64, 1, 1, 1)) == pytest.approx(0, abs=1e-9)
    assert diversity_ratio(blobs(64, 0.4, seed=1), real) == pytest.approx(1, abs=0.15)
    noisy_copies = real[:1].repeat(64, 1, 1, 1) + torch.randn(64, 1, 32, 32) * 0.1
    assert diversity_ratio(noisy_copies, real) < judges.COLLAPSE_RATIO


def test_scale_and_type_do_not_matter():
    real = blobs(16, 0.4)
    as_bytes = ((real + 1) * 127.5).round().to(torch.uint8)
    assert diversity(as_bytes) == pytest.approx(diversity(real), rel=0.02)


def test_collapse_within_a_class_is_seen():
    images = torch.cat([blobs(16, 0.4), blobs(1, 0.4, seed=3).repeat(16, 1, 1, 1)])
    labels = torch.arange(32) // 16
    within = class_diversity(images, labels)
    assert within[1] < 1e-6 < within[0] and set(within) == {0, 1}
    assert diversity(images[:1]) == 0.0


# --- PSNR, SSIM, head mask --------------------------------------------------------------------------------------------
def slow_ssim(x, y, window=11, sigma=1.5):
    """Wang 2004 written out pixel by pixel; x, y (H, W) NumPy."""
    offset = np.arange(window) - window // 2
    weights = np.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    out = np.zeros((x.shape[0] - window + 1, x.shape[1] - window + 1))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            a, b = x[i : i + window, j : j + window], y[i : i + window, j : j + window]
            ma, mb = (weights * a).sum(), (weights * b).sum()
            va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
            cov = (weights * (a - ma) * (b - mb)).sum()
            out[i, j] = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return out


def test_ssim_equals_the_formula_per_image_and_inside_a_mask():
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(3, 1, 20, 17, generator=gen)
    y = (x + 0.2 * torch.randn(x.shape, generator=gen)).clamp(0, 1)
    expected = [slow_ssim(a[0].double().numpy(), b[0].double().numpy()) for a, b in zip(x, y, strict=True)]
    assert torch.allclose(metrics.ssim(x, y), torch.tensor([e.mean() for e in expected]).float(), atol=1e-4)
    mask = torch.rand(3, 1, 20, 17, generator=gen) > 0.5
    inside = [e[m[0, 5:-5, 5:-5].numpy()].mean() for e, m in zip(expected, mask, strict=True)]
    assert torch.allclose(metrics.ssim(x, y, mask), torch.tensor(inside).float(), atol=1e-4)
    assert torch.allclose(metrics.ssim(x, x), torch.ones(3), atol=1e-5)
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(x[..., :8], y[..., :8])


def test_psnr_in_decibels_per_image_and_inside_a_mask():
    x = torch.zeros(2, 1, 8, 8)
    y = x.clone()
    y[0], y[1, :, :4] = 0.1, 0.01
    assert torch.allclose(metrics.psnr(y, x), torch.tensor([20.0, 43.0103]).double(), atol=1e-3)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[:, :, :4] = True
    assert torch.allclose(metrics.psnr(y, x, mask), torch.tensor([20.0, 40.0]).double(), atol=1e-3)
    assert torch.isinf(metrics.psnr(x, x)).all()


def test_the_head_mask_is_the_head_with_its_dark_inside():
    image = torch.zeros(1, 1, 24, 24)
    image[..., 4:20, 5:19] = 0.6  # head
    image[..., 10:14, 10:14] = 0.0  # ventricle: dark, not connected to the border
    image[..., 0:2, 0:2] = 0.02  # noise in the background
    mask = metrics.head_mask(image)
    assert mask.sum() == 16 * 14 and mask[0, 0, 12, 12] and not mask[0, 0, 0, 0]
    image[..., 4:20, 12] = 0.0  # a cut from the border into the ventricle opens it to the outside
    assert not metrics.head_mask(image)[0, 0, 12, 12]
    # A dark channel that winds: connection is followed around corners.
    maze = torch.ones(1, 1, 9, 9)
    for r, c in [(0, 1), (1, 1), (2, 1), (2, 2), (2, 3), (3, 3), (4, 3), (4, 4)]:
        maze[..., r, c] = 0
    maze[..., 6, 6] = 0
    mask = metrics.head_mask(maze)
    assert not mask[0, 0, 4, 4] and mask[0, 0, 6, 6]


def test_on_a_black_background_only_the_masked_figure_says_something():
    """The black border lifts SSIM of unrelated content; inside the head it stays low."""
    gen = torch.Generator().manual_seed(1)
    a, b = torch.zeros(2, 1, 1, 64, 64)
    a[..., 20:44, 20:44] = 0.2 + 0.8 * torch.rand(1, 1, 24, 24, generator=gen)
    b[..., 20:44, 20:44] = 0.2 + 0.8 * torch.rand(1, 1, 24, 24, generator=gen)
    assert metrics.ssim(a, b) > 0.6 and metrics.ssim(a, b, metrics.head_mask(a)) < 0.4


def test_the_background_comes_in_from_every_side_and_ends_at_five_hundredths():
    """A head that touches all borders but one gap: what is dark behind the gap is background, from whichever side."""
    for turn in range(4):
        image = torch.full((1, 1, 12, 12), 0.6)
        image[..., 0:4, 5] = 0.049  # a gap in the upper border
        image[..., 6:8, 5:7] = 0.0  # dark and shut in
        image[..., 2, 8] = 0.051  # not dark enough, and beside no gap
        mask = metrics.head_mask(image.rot90(turn, (2, 3))).rot90(-turn, (2, 3))[0, 0]
        assert (~mask).nonzero().tolist() == [[r, 5] for r in range(4)]
    edge = torch.full((1, 1, 12, 12), 0.051)
    assert bool(metrics.head_mask(edge).all()) and not metrics.head_mask(edge - 0.002).any()


def test_what_is_bright_in_one_colour_is_no_background():
    image = torch.zeros(1, 3, 8, 8)
    image[:, 1, 2:5, 2:5] = 0.5
    assert int(metrics.head_mask(image).sum()) == 9


def test_figures_of_colour_are_means_over_the_colours():
    gen = torch.Generator().manual_seed(2)
    x, y = torch.rand(2, 2, 3, 16, 16, generator=gen)
    error = (x - y).double().square().mean((1, 2, 3))
    assert torch.allclose(metrics.psnr(x, y), -10 * error.log10())
    apart = torch.stack([metrics.ssim(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)])
    assert torch.allclose(metrics.ssim(x, y), apart.mean(0), atol=1e-5)


def test_collapse_thresholds_and_what_cannot_be_said():
    """Everybody's logs and checkpoints hang on these numbers."""
    assert (judges.COLLAPSE_RATIO, judges.COLLAPSE_FLOOR, metrics.SIZE) == (0.35, 0.1, 16)
    same, varied = torch.ones(8, 1, 32, 32), blobs(8, 0.4)
    assert math.isnan(diversity_ratio(varied, same)) and diversity_ratio(same, varied) == pytest.approx(0, abs=1e-9)
    assert diversity_ratio(varied, 0.5 * varied) == pytest.approx(2, rel=1e-6)
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])  # one slice of class 1 has no diversity
    assert set(class_diversity(varied, labels)) == {0, 2}
    assert class_diversity(varied, labels)[2] == pytest.approx(diversity(varied[4:]))
    small = blobs(4, 0.4)[..., :8, :8].contiguous()  # below 16 px as it is
    pairs = [((small[i] - small[j]).double() ** 2).mean() for i in range(4) for j in range(4) if i != j]
    assert diversity(small) == pytest.approx(math.sqrt(sum(pairs) / len(pairs)))


def test_subjects_weigh_alike_and_are_in_order():
    """Mean over each subject's slices, then mean and deviation over the subjects; what is not finite is left out and
    counted."""
    inf, nan = float("inf"), float("nan")
    scores = {"a": [1.0, 3.0, 10.0, inf, 5.0, nan], "b": [nan, nan, 1.0, 2.0, 4.0, 4.0]}
    figures, table = metrics.by_subject(scores, ["y", "y", "x", "x", "z", "z"])
    assert table == [["x", 2, 10.0, 1.5], ["y", 2, 2.0, None], ["z", 2, 5.0, 4.0]]
    found = figures["mean and sd over subjects"]
    assert found["a"] == pytest.approx([17 / 3, np.std([10, 2, 5], ddof=1)]) and found["b"] == pytest.approx(
        [2.75, np.std([1.5, 4], ddof=1)]
    )
    assert figures["subjects"] == 3 and figures["left out"] == {"a": 2, "b": 2}
    assert metrics.by_subject({"a": [nan]}, ["x"])[0]["mean and sd over subjects"] == {"a": [None, 0.0]}
