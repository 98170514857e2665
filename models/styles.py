"""What one does with the styles of a StyleGAN2: draw them, mix them by layers, walk from one to another."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from models.stylegan2 import Generator, mix_styles


def mix_layers(ws: Tensor, other: Tensor, first: int, last: int) -> Tensor:
    """ws, other (B, num_ws, w_dim) -> ws with the layers first to last (inclusive) of `other`."""
    layers = torch.arange(ws.shape[1], device=ws.device)[:, None]
    return torch.where((layers >= first) & (layers <= last), other, ws)


def style_layers(G: Generator, styles: str) -> tuple[int, int]:
    """First and last layer of "coarse" (4-8 px), "middle" (16-32 px), "fine" (64 px and more) or "A-B".

    ValueError, one line, where the network has no such layers.
    """
    sizes = [h for h, _ in G.noise_shapes]
    sizes.append(sizes[-1])  # the last toRGB has a style of its own
    low, high = {"coarse": (4, 8), "middle": (16, 32), "fine": (64, 1024)}.get(styles, (0, 0))
    layers = [i for i, size in enumerate(sizes) if low <= size <= high]
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", styles, re.ASCII)
    if match:
        layers = list(range(int(match[1]), int(match[2] or match[1]) + 1))
    if not layers or layers[-1] >= G.num_ws:
        raise ValueError(
            f"--styles {styles}: this {G.resolution} px network has the layers 0-{G.num_ws - 1}; choose coarse, "
            f"middle, {'fine, ' if G.resolution >= 64 else ''}or A-B with A <= B among them"
        )
    return layers[0], layers[-1]


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985): a, b (B, D), t (B, 1) from 0 to 1 -> (B, D); exactly a at 0."""
    cosine = torch.cosine_similarity(a, b, dim=1)[:, None].clamp(-1, 1)
    omega = torch.acos(cosine)
    sine = torch.sin(omega)
    turned = (torch.sin((1 - t) * omega) / sine) * a + (torch.sin(t * omega) / sine) * b
    return torch.where(sine < 1e-4, torch.lerp(a, b, t), turned)  # (anti)parallel: there is no one great circle


def rows_of(draws: dict, start: int, stop: int, pairs: Tensor | None = None) -> tuple[dict, list[Tensor]]:
    """Rows of a global batch's draws, as (arguments of styles_of, noise). `pairs`: labels of the real rows that a
    relativistic loss compares them with; the generated ones are then of the same classes."""
    latents = {k: v if v is None else v[start:stop] for k, v in draws.items() if k != "noise"}
    if latents["labels"] is not None and pairs is not None:
        latents["labels"] = pairs
    return latents, [layer[start:stop] for layer in draws["noise"]]


def styles_of(G: Generator, z, z_mix, cutoff, labels) -> tuple[Tensor, Tensor]:
    """Mixed styles ws (B, num_ws, w_dim), and w (B, w_dim) of the first latent."""
    w, w_mix = G.mapping(torch.cat([z, z_mix]), None if labels is None else torch.cat([labels, labels])).chunk(2)
    return mix_styles(w, w_mix, cutoff, G.num_ws), w
