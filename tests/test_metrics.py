"""The diversity figure on sets whose diversity is known."""

from __future__ import annotations

import math

import pytest
import torch

from models.metrics import COLLAPSE_RATIO, class_diversity, diversity, diversity_ratio


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
    assert diversity_ratio(noisy_copies, real) < COLLAPSE_RATIO


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
