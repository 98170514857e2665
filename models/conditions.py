"""What a network is told of a slice besides its class: any mix of levels and numbers, each of which may be unknown.

The values of B slices are a float32 tensor (B, A), a column per attribute: the index of a level, or the number itself;
NaN where it is unknown. An unknown value has an embedding of its own, which is learnt by dropping values at random, so
that any subset can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROPPED = 0.1  # share of the rows of which a StyleGAN2 is told nothing, and of the values that it is not told
READ_WEIGHT = 1.0  # of what its D reads off slices, against the losses of D and G
PERIODS = (8.0, 4.0, 2.0, 1.0)  # of the Fourier features, in standard deviations


class Attribute(NamedTuple):
    """One column: `levels` many, or, where that is 0, a number of this mean and deviation over the training slices."""

    levels: int = 0
    mean: float = 0.0
    std: float = 1.0


Told = int | Sequence[Attribute]  # how many classes a network is told of, or the attributes that it is told instead


def classes_and_attributes(told: Told) -> tuple[int, tuple[Attribute, ...]]:
    """(number of classes, attributes): one of the two at most."""
    return (told, ()) if isinstance(told, int) else (0, tuple(told))


def fourier(u: Tensor) -> Tensor:
    """(B,) standardised numbers -> (B, 2 P + 1): the number itself, sine and cosine of each of the P periods (Tancik
    2020)."""
    phase = u[:, None] * (2 * math.pi / torch.tensor(PERIODS, device=u.device))
    return torch.cat([u[:, None], phase.sin(), phase.cos()], 1)


class NumberEmbedding(nn.Module):
    """(B,) numbers -> (B, dim): Fourier features and two layers; a vector of its own for NaN."""

    mean: Tensor
    std: Tensor

    def __init__(self, attribute: Attribute, dim: int, layer: Callable[[int, int], nn.Module]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(attribute.mean))
        self.register_buffer("std", torch.tensor(max(attribute.std, 1e-6)))
        self.first, self.second = layer(2 * len(PERIODS) + 1, dim), layer(dim, dim)
        self.unknown = nn.Parameter(torch.randn(dim))

    def forward(self, values: Tensor) -> Tensor:
        """(B,) float32 -> (B, dim)."""
        known = values.isnan().logical_not()
        u = torch.where(known, (values - self.mean) / self.std, 0.0)  # no NaN may reach a layer, or its gradient is NaN
        return torch.where(known[:, None], self.second(F.silu(self.first(fourier(u)))).float(), self.unknown)


class LevelEmbedding(nn.Module):
    """(B,) indices of levels as floats -> (B, dim); the last row of the table is for NaN."""

    def __init__(self, attribute: Attribute, dim: int):
        super().__init__()
        self.levels, self.weight = attribute.levels, nn.Parameter(torch.randn(attribute.levels + 1, dim))

    def forward(self, values: Tensor) -> Tensor:
        """(B,) float32 -> (B, dim)."""
        index = torch.where(values.isnan(), float(self.levels), values).round().long()
        return F.embedding(index, self.weight)


class ConditionEmbedding(nn.Module):
    """Values (B, A) -> (B, dim) fp32: the sum of the attributes' embeddings over the root of their number."""

    def __init__(self, attributes: Sequence[Attribute], dim: int, layer: Callable[[int, int], nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(
            LevelEmbedding(a, dim) if a.levels else NumberEmbedding(a, dim, layer) for a in attributes
        )

    def forward(self, values: Tensor) -> Tensor:
        """(B, A) float32 with NaN for unknown -> (B, dim)."""
        if values.dim() != 2 or values.shape[1] != len(self.parts):
            raise ValueError(f"values have shape {tuple(values.shape)}, expected (batch, {len(self.parts)})")
        parts = [part(values[:, i]) for i, part in enumerate(self.parts)]
        return torch.stack(parts).sum(0) * len(parts) ** -0.5


class Reader(nn.Module):
    """Features (B, I) -> how far what they show is from the values that are known, (B,) fp32.

    The mean over the known attributes of the squared error of a standardised number, or the cross entropy of a level
    over that of chance; 0 where nothing is known. A discriminator that reads real slices teaches the generator by that
    to draw what it was told (Odena 2017): the projection alone hears a number faintly.
    """

    def __init__(self, attributes: Sequence[Attribute], inputs: int, layer: Callable[[int, int], nn.Module]):
        super().__init__()
        self.attributes, self.widths = tuple(attributes), [max(a.levels, 1) for a in attributes]
        self.out = layer(inputs, sum(self.widths))

    def forward(self, features: Tensor, values: Tensor) -> Tensor:
        """features (B, I), values (B, A) with NaN for unknown -> (B,)."""
        known = values.isnan().logical_not()
        parts = []
        for i, (a, read) in enumerate(zip(self.attributes, self.out(features).split(self.widths, 1), strict=True)):
            value = torch.where(known[:, i], values[:, i], a.mean)
            if a.levels:
                parts.append(F.cross_entropy(read, value.round().long(), reduction="none") / math.log(a.levels))
            else:
                parts.append((read[:, 0] - (value - a.mean) / max(a.std, 1e-6)).square())
        return (torch.stack(parts, 1) * known).sum(1) / known.sum(1).clamp_min(1)


def blank_label(told: Told, device: torch.device | str) -> Tensor:
    """What a network may be told of one slice: class 0, (1,) int64, or zeros (1, A)."""
    _, attributes = classes_and_attributes(told)
    return (
        torch.zeros(1, len(attributes), device=device)
        if attributes
        else torch.zeros(1, dtype=torch.int64, device=device)
    )


def unknown(like: Tensor, attributes: int) -> Tensor:
    """(B, attributes) of NaN, for as many rows as `like` has."""
    return torch.full((len(like), attributes), math.nan, device=like.device)


def drop_values(values: Tensor, batch: int, start: int, probability: float, generator: torch.Generator) -> Tensor:
    """Rows `start` and on of a global batch, (B, A), with some made unknown: with `probability` all of a row's, and of
    the other rows each value by itself. The draws are for the whole batch, so that every rank has the same."""
    drop = torch.rand(batch, values.shape[1] + 1, generator=generator) < probability
    mine = drop[start : start + len(values)].to(values.device, non_blocking=True)
    return torch.where(mine[:, :1] | mine[:, 1:], math.nan, values)
