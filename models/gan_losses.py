"""GAN losses and regularisers, as plain functions that return one value per sample.

'logistic' is the non-saturating logistic loss (Goodfellow 2014, as in Karras 2019); 'rpgan' is the relativistic pairing
loss (Jolicoeur-Martineau 2019; Huang 2024, "The GAN is dead; long live the GAN", arXiv 2501.05441).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

KINDS = ("logistic", "rpgan")


def generator_loss(
    fake_logits: torch.Tensor, real_logits: torch.Tensor | None = None, *, kind: str = "logistic"
) -> torch.Tensor:
    """Logits (B,) -> loss (B,). 'rpgan' pairs row i of the generated with row i of the real logits.

    Raises ValueError for an unknown kind, or for 'rpgan' without real logits.
    """
    _check(kind)
    if kind == "logistic":
        return F.softplus(-fake_logits)
    if real_logits is None:
        raise ValueError("the rpgan generator loss compares with real images: pass real_logits")
    return F.softplus(real_logits - fake_logits)


def discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor, kind: str = "logistic") -> torch.Tensor:
    """Logits (B,), (B,) -> loss (B,). Raises ValueError for an unknown kind."""
    _check(kind)
    if kind == "logistic":
        return F.softplus(fake_logits) + F.softplus(-real_logits)
    return F.softplus(fake_logits - real_logits)


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown loss '{kind}': use one of {', '.join(KINDS)}")


def gradient_penalty(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """|grad_x D(x)|^2 of every image, summed over its pixels (Mescheder 2018, equation 9, without gamma / 2).

    images (B, C, H, W) fp32 that require grad, logits (B,) = D(images) -> (B,), differentiable. R1 on real images, R2
    on generated ones.
    """
    (grad,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return grad.square().sum((1, 2, 3))


def path_lengths(images: torch.Tensor, ws: torch.Tensor, pl_noise: torch.Tensor) -> torch.Tensor:
    """|J_w^T y| of every sample (Karras 2020a, section 3.2) -> (B,), differentiable.

    images (B, C, H, W) generated from ws (B, num_ws, w_dim); pl_noise like images, ~ N(0, 1), scaled here so that the
    length does not depend on the resolution. The norm is over w_dim, its square averaged over the layers.
    """
    height, width = images.shape[2:]
    y = pl_noise / math.sqrt(height * width)
    (grad,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return grad.square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths: torch.Tensor, mean: torch.Tensor | float) -> torch.Tensor:
    """(length - running mean)^2, lengths (B,) -> (B,) (Karras 2020a, equation 4)."""
    return (lengths - mean).square()
