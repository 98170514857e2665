"""Whether a model that is told columns obeys them: each is read off its pictures by a probe that learnt on real
ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.columns import Column
from models import quality
from models.probes import RidgeProbe, agreement, rising

FEWEST = 20  # slices of which a figure says something
GROUP = 40  # slices of a group, generated and held out, of which a distance says something
STRIPS, STEPS = 24, 5  # strips along a column, and pictures in each
PARTS = 3  # that a number's range is divided into, where it is no age

Rows = Sequence[dict[str, str]]
Draw = Callable[[Sequence[int], Rows], Tensor]  # latents and a row for each -> features (B, D)


@dataclass(frozen=True)
class Told:
    """Features (N, D) of slices, and what is known of them: values (N, columns), NaN for unknown."""

    features: Tensor
    values: Tensor

    def of(self, column: int) -> tuple[Tensor, Tensor]:
        """Those of which this column is known."""
        known = self.values[:, column].isnan().logical_not()
        return self.features[known.to(self.features.device)], self.values[known, column].to(self.features.device)


def probe_of(told: Told, i: int, column: Column) -> Callable[[Tensor], Tensor] | None:
    """Features -> values of this column, learnt of these slices; None where they are too few."""
    x, y = told.of(i)
    if len(y) < FEWEST:
        return None
    if column.levels:
        return quality.LinearProbe(x, y.long(), len(column.levels)).predict
    return RidgeProbe(x, y).predict


def agreed(probe: Callable[[Tensor], Tensor] | None, told: Told, i: int, column: Column) -> dict[str, float]:
    """What a probe reads off slices beside what is known of them; {} where it cannot say."""
    x, y = told.of(i)
    if probe is None or len(y) < FEWEST:
        return {}
    if column.levels:
        return {"accuracy": quality.balanced_accuracy(probe(x), y.long())}
    return agreement(probe(x), y)


def obedience(columns: Sequence[Column], fake: Told, train: Told, held: Told, rows: Rows, draw: Draw) -> dict:
    """{column: figures}.

    generated, held_out: what a probe that learnt on training slices reads off them, beside what was asked or is known.
    train_on_generated: a probe that learnt on generated slices, on held-out ones. rising: share of the steps along
    strips of one latent, from its lowest to its highest value, that go the right way. moves: how far the other columns
    are moved by that, in their standard deviations, or the share of slices whose level changes. rows: what was asked
    of the first slices.
    """
    probes = [probe_of(train, i, column) for i, column in enumerate(columns)]
    found: dict[str, dict] = {}
    for i, column in enumerate(columns):
        of_fake = probe_of(fake, i, column)
        found[column.name] = {
            "generated": agreed(probes[i], fake, i, column),
            "held_out": agreed(probes[i], held, i, column),
            "train_on_generated": agreed(of_fake, held, i, column),
            **strips(columns, i, probes, rows, draw),
        }
    return found


def strips(columns: Sequence[Column], i: int, probes: Sequence, rows: Rows, draw: Draw) -> dict:
    """What changes along a column, of latents whose other columns are those of a training slice each."""
    column = columns[i]
    steps = range(len(column.levels)) if column.levels else range(STEPS)
    asked = [column.low + (column.high - column.low) * (0.1 + 0.8 * j / (STEPS - 1)) for j in range(STEPS)]
    cells = list(column.levels) or [f"{value:.6g}" for value in asked]
    latents = range(min(STRIPS, len(rows)))
    features = [draw(latents, [{**rows[k], column.name: cells[j]} for k in latents]) for j in steps]
    figures: dict = {"moves": {}}
    for k, other in enumerate(columns):
        probe = probes[k]
        if probe is None:
            continue
        read = torch.stack([probe(x).double() for x in features], 1)  # (strips, steps)
        if k == i:
            if not column.levels:
                figures["rising"] = rising(read, torch.tensor([asked] * len(latents)).to(read))
        elif other.levels:
            figures["moves"][other.name] = float((read[:, -1] != read[:, 0]).double().mean())
        else:
            figures["moves"][other.name] = float((read[:, -1] - read[:, 0]).mean()) / max(other.std, 1e-6)
    return figures


# --- groups -----------------------------------------------------------------------------------------------------------
def group_of(value: float, column: Column) -> str:
    """The level, the decade of an age, or the part of the range that a value lies in; '' unknown."""
    if math.isnan(value):
        return ""
    if column.levels:
        return column.levels[round(value)]
    if column.name.lower() == "age":
        return f"{10 * math.floor(value / 10)}-{10 * math.floor(value / 10) + 9}"
    width = max(column.high - column.low, 1e-9)
    part = min(max(int(PARTS * (value - column.low) / width), 0), PARTS - 1)
    low, high = (column.low + width * (part + k) / PARTS for k in (0, 1))
    return f"{low:.3g}-{high:.3g}"


def group_figures(
    columns: Sequence[Column], fake: Told, train: Told, held: Told, generator: Callable[[], torch.Generator]
) -> dict:
    """{column: {group: KID, coverage, and the KID of training slices}}: a group that the model forgot is seen here.

    A group with too few slices, generated or held out, has its counts alone.
    """
    found: dict[str, dict] = {}
    for i, column in enumerate(columns):
        names = [[group_of(v, column) for v in told.values[:, i].tolist()] for told in (fake, train, held)]
        for group in sorted({name for name in names[2] if name}):
            x, learnt, y = (
                told.features[torch.tensor([name == group for name in own], device=told.features.device)]
                for told, own in zip((fake, train, held), names, strict=True)
            )
            about: dict = {"generated": len(x), "held_out": len(y)}
            if min(len(x), len(y)) >= GROUP:
                figures = quality.set_figures(x, y, generator())
                about |= {name: figures[name] for name in ("kid", "recall", "coverage")}
                if len(learnt) >= GROUP:
                    about["kid_of_training"] = quality.set_figures(learnt[: len(x)], y, generator())["kid"]
            found.setdefault(column.name, {})[group] = about
    return found
