"""The denoising U-Net (Ho 2020; Dhariwal and Nichol 2021): residual blocks, self-attention at low resolutions,
sinusoidal time embedding, and classes, or attributes of any kind (models/conditions.py), that are dropped at random for
classifier-free guidance (Ho and Salimans 2022).

Pure functions of (x, t, labels): the type of the arithmetic is the caller's autocast, the memory format the input's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.conditions import ConditionEmbedding, Told, classes_and_attributes, unknown
from models.norm import GroupNorm

GROUPS = (
    32  # of a GroupNorm at most; at least 2 channels each, for over a single one the embedding would be normalised away
)


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm with as many of GROUPS groups as divide the channels, and two channels or more in each."""
    return GroupNorm(math.gcd(GROUPS, max(channels // 2, 1)), channels, eps=1e-6)


def zeroed(module: nn.Module) -> nn.Module:
    """The last layer of a residual branch starts at zero, so that the block starts as the identity."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """(B,) times in [0, 1] to (B, dim) float32 sines and cosines of 1000 t, periods from 2 pi to 2 pi 10^4 (Vaswani
    2017)."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    phase = 1000 * t.float()[:, None] * frequencies
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3 twice; the embedding is added in between. (B, C_in, h, w), (B, E) -> (B, C_out, h, w)."""

    def __init__(self, c_in: int, c_out: int, emb_dim: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(emb_dim, c_out)
        self.norm2, self.conv2 = group_norm(c_out), zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C_in, h, w), emb (B, emb_dim) of time and class -> (B, C_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.emb(F.silu(emb)).to(h.dtype)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels, heads of `head_dim` channels. (B, C, h, w) -> the same."""

    def __init__(self, channels: int, head_dim: int):
        super().__init__()
        self.heads = max(channels // head_dim, 1)
        if channels % self.heads:
            raise ValueError(f"{channels} channels do not divide into heads of {head_dim}")
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        b, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, h w, C)
        qkv = self.qkv(tokens).view(b, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0))  # (B, heads, h w, C / heads)
        y = self.out(y.transpose(1, 2).reshape(b, h * w, c))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, pairs: list[tuple[int, int]], emb_dim: int, dropout: float, head_dim: int, attention: bool):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(c_in, c_out, emb_dim, dropout) for c_in, c_out in pairs)
        self.attentions = nn.ModuleList(
            Attention(c_out, head_dim) if attention else nn.Identity() for _, c_out in pairs
        )


def pairs_of(level: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each residual block of a Level with what follows it."""
    return zip(level.blocks, level.attentions, strict=True)


class UNet(nn.Module):
    """Predicts a diffusion target. x (B, C, h, w), t (B,) in [0, 1], labels (B,) int64 or None -> (B, C, h, w); with
    attributes their values (B, A), NaN for unknown, stand in place of the labels.

    `widths` are the channels per resolution, each half of the one before; attention stands at the sides in
    `attention_sides` (pixels) and in the middle. With num_classes > 0 the label `num_classes` means "no class".
    """

    def __init__(
        self,
        size: int,
        channels: int,
        *,
        widths: tuple[int, ...] = (64, 128, 256),
        num_res: int = 2,
        attention_sides: tuple[int, ...] = (16, 8),
        head_dim: int = 64,
        dropout: float = 0.1,
        num_classes: Told = 0,
    ):
        super().__init__()
        if size % 2 ** (len(widths) - 1):
            raise ValueError(f"a side of {size} cannot be halved {len(widths) - 1} times; use fewer widths")
        num_classes, attributes = classes_and_attributes(num_classes)
        self.num_classes, self.attributes, self.base = num_classes, len(attributes), widths[0]
        emb_dim = 4 * widths[0]
        self.embed_time = nn.Sequential(nn.Linear(widths[0], emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.embed_class = nn.Embedding(num_classes + 1, emb_dim) if num_classes else None
        self.conditions = ConditionEmbedding(attributes, emb_dim, nn.Linear) if attributes else None
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)

        common: dict[str, Any] = dict(emb_dim=emb_dim, dropout=dropout, head_dim=head_dim)
        self.down, self.downsample = nn.ModuleList(), nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for i, width in enumerate(widths):
            pairs = [(c if j == 0 else width, width) for j in range(num_res)]
            self.down.append(Level(pairs, attention=size >> i in attention_sides, **common))
            skips += [width] * num_res
            c = width
            if i < len(widths) - 1:
                self.downsample.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList(
            [ResBlock(c, c, emb_dim, dropout), Attention(c, head_dim), ResBlock(c, c, emb_dim, dropout)]
        )
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            pairs = []
            for _ in range(num_res + 1):
                pairs.append((c + skips.pop(), width))
                c = width
            self.up.append(Level(pairs, attention=size >> i in attention_sides, **common))
            if i:
                self.upsample.append(nn.Conv2d(c, c, 3, padding=1))
        self.norm_out, self.conv_out = group_norm(c), zeroed(nn.Conv2d(c, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, C, h, w), t (B,) in 0 ..

        1, labels (B,) int64 or None (no class), or values (B, A) -> (B, C, h, w), what the target of training is.
        """
        emb = self.embed_time(time_embedding(t, self.base))
        if self.embed_class is not None:
            emb = emb + self.embed_class(self.nothing(t) if labels is None else labels).to(emb.dtype)
        if self.conditions is not None:
            emb = emb + self.conditions(self.nothing(t) if labels is None else labels).to(emb.dtype)
        h = self.conv_in(x)
        skips = [h]
        for i, level in enumerate(self.down):
            for block, attention in pairs_of(level):
                h = attention(block(h, emb))
                skips.append(h)
            if i < len(self.downsample):
                h = self.downsample[i](h)
                skips.append(h)
        h = self.middle[2](self.middle[1](self.middle[0](h, emb)), emb)
        for i, level in enumerate(self.up):
            for block, attention in pairs_of(level):
                h = attention(block(torch.cat([h, skips.pop()], dim=1), emb))
            if i < len(self.upsample):
                h = self.upsample[i](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(h)))

    def nothing(self, like: Tensor) -> Tensor:
        """What stands for "no class", or for attributes of which none is known, of as many rows as `like` has."""
        if self.attributes:
            return unknown(like, self.attributes)
        return torch.full((len(like),), self.num_classes, dtype=torch.int64, device=like.device)


def drop_labels(labels: Tensor, num_classes: int, probability: float, generator: torch.Generator) -> Tensor:
    """Labels (B,) with some replaced by "no class", so that one network learns both (Ho and Salimans 2022, algorithm
    1)."""
    drop = torch.rand(labels.shape, generator=generator, device=labels.device) < probability
    return torch.where(drop, num_classes, labels)


def guided(
    model: UNet, x: Tensor, t: Tensor, labels: Tensor | None, guidance: float | Mapping[int, float] = 1.0
) -> Tensor:
    """Classifier-free guidance, uncond + guidance (cond - uncond), in one call of twice the batch.

    guidance 1 is the conditional model itself, 0 the unconditional one; both, and labels None, cost a single batch.
    Of attributes it may be {column: strength}: cond + sum (strength - 1) (cond - cond without this column), one more
    batch for each (Liu 2022, composable diffusion).
    """
    if labels is None or guidance == 0 or not (model.num_classes or model.attributes):
        return model(x, t, None)
    if guidance == 1 or guidance == {}:
        return model(x, t, labels)
    if isinstance(guidance, Mapping):
        columns = torch.arange(labels.shape[1], device=labels.device)
        without = [torch.where(columns == i, math.nan, labels) for i in guidance]
        n = 1 + len(without)
        cond, *others = model(x.repeat(n, 1, 1, 1), t.repeat(n), torch.cat([labels, *without])).chunk(n)
        return cond + sum((g - 1) * (cond - other) for g, other in zip(guidance.values(), others, strict=True))
    none = model.nothing(labels)
    cond, uncond = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, none])).chunk(2)
    return uncond + guidance * (cond - uncond)
