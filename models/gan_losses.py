"""Losses of the GAN game. All return one value per sample; logits are (B,)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake_logits: Tensor, real_logits: Tensor | None = None, *, kind: str = "logistic") -> Tensor:
    """(B,) `logistic`: softplus(-D(G(z))), non-saturating (Goodfellow 2014). `rpgan`: softplus(D(x) - D(G(z))), each
    generated sample against a real one (Jolicoeur-Martineau 2018; Huang et al. 2024)."""
    if kind == "rpgan":
        return F.softplus(real_logits - fake_logits)
    return F.softplus(-fake_logits)


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor, *, kind: str = "logistic") -> Tensor:
    """(B,) `logistic`: softplus(D(G(z))) + softplus(-D(x)). `rpgan`: softplus(D(G(z)) - D(x))."""
    if kind == "rpgan":
        return F.softplus(fake_logits - real_logits)
    return F.softplus(fake_logits) + F.softplus(-real_logits)


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """(B,) |grad_x D(x)|^2, summed over pixels (R1 on reals, R2 on generated: Mescheder et al. 2018, equation 9).

    `images` (B, C, H, W) must require grad and be what `logits` were computed from. The caller multiplies by gamma / 2.
    """
    (grad,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return grad.float().square().sum((1, 2, 3))


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """(B,) |J_w^T y| for y ~ N(0, 1) / sqrt(H W) (Karras 2020, equation 4).

    images (B, C, H, W) from ws (B, num_ws, w_dim); noise (B, C, H, W) ~ N(0, 1). The norm is over w_dim, its square the mean
    over the layers, so that one w for all layers has the length of the paper.
    """
    y = noise / math.sqrt(images.shape[2] * images.shape[3])
    (grad,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)  # (B, num_ws, w_dim)
    return grad.float().square().sum(2).mean(1).sqrt()


def path_length_penalty(lengths: Tensor, mean: Tensor) -> Tensor:
    """(B,) (|J_w^T y| - a)^2 with a the running mean of lengths (Karras 2020, equation 4)."""
    return (lengths - mean).square()
