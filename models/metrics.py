"""Figures that need no other network: how much a set of images varies, and how true a reconstruction is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 16  # images are compared at this resolution, where anatomy and position show and noise does not


def diversity(images: Tensor) -> float:
    """Root mean square distance between two different images of the set, averaged over pixels; 0 for copies of one
    image.

    images (N, C, H, W), any float range or uint8; compared after averaging down to 16 px. With d_ij the RMS pixel
    distance, the figure is sqrt(mean over i != j of d_ij^2) = sqrt(2 * mean over pixels of the unbiased variance).
    """
    if len(images) < 2:
        return 0.0
    x = images.double() if images.is_floating_point() else images.double() / 127.5
    x = F.adaptive_avg_pool2d(x, min(SIZE, x.shape[-1]))
    return float((2 * x.var(0, unbiased=True).mean()).sqrt())


def diversity_ratio(fake: Tensor, real: Tensor) -> float:
    """Diversity of generated over that of real images (same range); 1 where they vary alike, 0 after total collapse.

    NaN where the real images are all the same, so that there is nothing to compare with.
    """
    real_diversity = diversity(real)
    return diversity(fake) / real_diversity if real_diversity > 1e-6 else float("nan")


def class_diversity(images: Tensor, labels: Tensor) -> dict[int, float]:
    """{class: diversity within it}: a conditional generator can collapse within its classes and still vary between
    them."""
    return {int(k): diversity(images[labels == k]) for k in labels.unique() if int((labels == k).sum()) > 1}


# --- fidelity of a reconstruction -------------------------------------------------------------------------------------
def psnr(output: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """(N,) peak signal-to-noise ratio in dB of images (N, C, H, W) in 0 .. 1: 10 log10(1 / MSE); inf for equal images.

    `mask` (N, 1, H, W) bool: only these pixels count.
    """
    error = (output.double() - target.double()).square().mean(1, keepdim=True)
    return -10 * _masked_mean(error, mask).log10()


def ssim(output: Tensor, target: Tensor, mask: Tensor | None = None, window: int = 11, sigma: float = 1.5) -> Tensor:
    """(N,) structural similarity of images (N, C, H, W) in 0 .. 1 (Wang 2004, equation 13; data range 1).

    Gaussian window, only where it lies wholly inside the image; mean over these places and over channels. `mask`
    (N, 1, H, W) bool: only windows whose centre is inside count. Differentiable in both images.
    """
    if min(output.shape[-2:]) < window:
        raise ValueError(f"SSIM needs images of at least {window} px, got {tuple(output.shape[-2:])}")
    light, light_most, structure, structure_most = ssim_terms(output, target, window, sigma)
    values = light * structure / (light_most * structure_most)
    edge = window // 2
    inner = None if mask is None else mask[..., edge : edge + values.shape[-2], edge : edge + values.shape[-1]]
    return _masked_mean(values.mean(1, keepdim=True), inner)


def ssim_terms(x: Tensor, y: Tensor, window: int = 11, sigma: float = 1.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Maps (N, C, h, w) of images (N, C, H, W) in 0 .. 1, where a Gaussian window lies wholly inside: luminance (Wang
    2004, equation 6) is the first over the second, contrast and structure (equation 9) the third over the fourth.
    Differentiable in both images."""
    n, c, h, w = x.shape
    x, y = x.float(), y.float()
    offset = torch.arange(window, device=x.device, dtype=torch.float32) - (window - 1) / 2
    kernel = torch.exp(-(offset**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    moments = torch.cat([x, y, x * x, y * y, x * y]).reshape(5 * n * c, 1, h, w)
    moments = F.conv2d(F.conv2d(moments, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    mean_x, mean_y, xx, yy, xy = moments.reshape(5, n, c, *moments.shape[-2:])
    var_x, var_y, cov = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    return 2 * mean_x * mean_y + c1, mean_x**2 + mean_y**2 + c1, 2 * cov + c2, var_x + var_y + c2


def _masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """(N, 1, H, W) to (N,); nan where the mask is empty."""
    if mask is None:
        return values.flatten(1).mean(1)
    mask = mask.to(values.dtype)
    return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)


def head_mask(images: Tensor, threshold: float = 0.05) -> Tensor:
    """(N, 1, H, W) bool: the head in slices (N, C, H, W) in 0 .. 1.

    The background is every pixel darker than `threshold` that is connected (through its four neighbours) to the border
    by such pixels; dark ventricles inside the head are not. Black is most of a slice, so a figure over all pixels says
    more of the background than of the brain.
    """
    dark = images.amax(1, keepdim=True) < threshold
    border = torch.zeros_like(dark)
    border[..., [0, -1], :] = True
    border[..., :, [0, -1]] = True
    outside = (dark & border).float()
    free = dark.float()
    while True:
        grown = (
            torch.maximum(
                F.max_pool2d(outside, (3, 1), stride=1, padding=(1, 0)),
                F.max_pool2d(outside, (1, 3), stride=1, padding=(0, 1)),
            )
            * free
        )
        if torch.equal(grown, outside):
            return outside == 0
        outside = grown


def by_subject(scores: dict[str, list[float]], subjects: list[str]) -> tuple[dict, list[list]]:
    """(figures, a row for each subject): the mean over each subject's slices, then mean and standard deviation over the
    subjects, as slices of one are not independent.

    What is not finite (a slice without a head, an exact copy) is left out and counted.
    """
    names = sorted(set(subjects))
    index = np.array([names.index(s) for s in subjects])
    figures, left_out, columns = {}, {}, []
    for score, of_slices in scores.items():
        values = np.array(of_slices)
        finite = np.isfinite(values)
        columns.append([mean_of(values[finite & (index == k)]) for k in range(len(names))])
        means = np.array([value for value in columns[-1] if value is not None])
        left_out[score] = int((~finite).sum())
        sd = float(means.std(ddof=1)) if len(means) > 1 else 0.0
        figures[score] = [mean_of(means), sd]
    table = [[name, int((index == k).sum()), *(column[k] for column in columns)] for k, name in enumerate(names)]
    return {"mean and sd over subjects": figures, "subjects": len(names), "left out": left_out}, table


def mean_of(values: np.ndarray) -> float | None:
    """The mean, None of no values."""
    return float(values.mean()) if len(values) else None
