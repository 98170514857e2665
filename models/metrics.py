"""Figures of health that need no other network: how much a set of images varies."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

COLLAPSE_RATIO = 0.35  # generated slices that vary less than this share of the real ones: the generator has collapsed
SIZE = 16  # images are compared at this resolution, where anatomy and position show and noise does not


def diversity(images: Tensor) -> float:
    """Root mean square distance between two different images of the set, averaged over pixels; 0 for copies of one image.

    images (N, C, H, W), any float range or uint8; compared after averaging down to 16 px. With d_ij the RMS pixel distance,
    the figure is sqrt(mean over i != j of d_ij^2) = sqrt(2 * mean over pixels of the unbiased variance).
    """
    if len(images) < 2:
        return 0.0
    x = images.double() if images.is_floating_point() else images.double() / 127.5
    x = F.adaptive_avg_pool2d(x, min(SIZE, x.shape[-1]))
    return float((2 * x.var(0, unbiased=True).mean()).sqrt())


def diversity_ratio(fake: Tensor, real: Tensor) -> float:
    """Diversity of generated over that of real images (same range); 1 where they vary alike, 0 after total collapse."""
    return diversity(fake) / max(diversity(real), 1e-12)


def class_diversity(images: Tensor, labels: Tensor) -> dict[int, float]:
    """{class: diversity within it}: a conditional generator can collapse within its classes and still vary between them."""
    return {int(k): diversity(images[labels == k]) for k in labels.unique() if int((labels == k).sum()) > 1}
