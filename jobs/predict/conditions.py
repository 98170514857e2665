"""What a run is conditioned on: from the columns of its data to what its networks are told, and what was asked for."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from data.columns import CLASS, UNKNOWN, Column, describe, values_of
from data.files import is_number
from data.packfile import Pack
from jobs.predict.named import UsageError
from models.conditions import Attribute

Row = Mapping[str, object]  # {column: value, as text or number}; what is left out is unknown


def columns_of(c, pack: Pack, say: Callable[[str], object]) -> list[Column]:
    """The columns of --condition by the training slices; [] without it. DataError where the data do not have them."""
    return describe(pack, c.condition.split(","), say) if c.condition else []


def attributes_of(columns: Sequence[Column]) -> list[Attribute]:
    """The same for models.conditions."""
    return [Attribute(len(c.levels), c.mean, c.std) for c in columns]


def labels_of(pack: Pack, columns: Sequence[Column]) -> np.ndarray:
    """What a network is told of each slice: (N, columns) float32; without columns the classes, (N,) int64."""
    return values_of(pack, columns) if columns else np.asarray(pack.labels, np.int64)


def classes_of(labels: torch.Tensor, columns: Sequence[Column]) -> torch.Tensor | None:
    """The classes (B,) int64, -1 unknown, in what labels_of gives; None where it has none."""
    if not columns:
        return labels
    found = [i for i, column in enumerate(columns) if column.name == CLASS]
    return labels[:, found[0]].nan_to_num(nan=-1).long() if found else None


def about(pack: Pack, columns: Sequence[Column]) -> list[dict]:
    """For data.json: each column, how many of the training slices lack it, and a digest of all their values."""
    values = values_of(pack, columns)
    return [
        column.about() | {"missing": int(np.isnan(v).sum()), "digest": hashlib.sha256(v.tobytes()).hexdigest()[:16]}
        for column, v in zip(columns, values.T.copy(), strict=True)
    ]


def read_about(found: object) -> list[Column]:
    """The columns in a weights file, which may be a stranger's. ValueError for what is none."""
    columns = []
    for one in found if isinstance(found, list) else ():
        if not isinstance(one, dict) or not isinstance(one.get("levels"), list) or not isinstance(one.get("name"), str):
            raise ValueError("its conditions are malformed")
        numbers = [one.get(name) for name in ("mean", "std", "low", "high")]
        texts = [one["name"], *one["levels"]]
        if not all(map(is_number, numbers)) or not all(isinstance(t, str) and t.isprintable() for t in texts):
            raise ValueError("its conditions are malformed")
        columns.append(Column(one["name"], tuple(one["levels"]), *map(float, numbers)))  # type: ignore[arg-type]
    if len(columns) > 64 or len({c.name for c in columns}) < len(columns):
        raise ValueError("its conditions are malformed")
    return columns


def grid_labels(
    c, pack: Pack, columns: Sequence[Column], of_reals: torch.Tensor, number: int, width: int
) -> tuple[torch.Tensor | None, Callable[[torch.Tensor], list[str]]]:
    """(what the samples of a grid are told, None where nothing; what is written on slices that were told so).

    Of classes: whole rows of one. Of attributes: what is known of the real slices in the same places.
    """
    if columns:
        told = of_reals[torch.arange(number, device=of_reals.device) % len(of_reals)]
        return told, lambda values: [caption(row, columns) for row in values.tolist()]
    rows = torch.arange(number, device=of_reals.device) // width
    told = rows % len(pack.classes) if c.conditional else None
    return told, lambda labels: [pack.classes[k] for k in labels.tolist()]


# --- what was asked for -----------------------------------------------------------------------------------------------
def parse_row(row: Row, columns: Sequence[Column], warn: Callable[[str], object]) -> list[float]:
    """A value for each column, NaN for what the row leaves out. UsageError for another column or an impossible value; a
    warning for a number that no training slice came near."""
    names = [c.name for c in columns]
    for name in row:
        if name not in names:
            raise UsageError(f"{name}: this model is not conditioned on it, but on {', '.join(names)}")
    values = []
    for column in columns:
        text = str(row.get(column.name, UNKNOWN))
        try:
            value = column.parse(text)
        except ValueError as error:
            why = f"{error}" if column.levels else "write a number"
            raise UsageError(f"{column.name}={text}: {why}, or {UNKNOWN}") from None
        if not column.levels and (value < column.low or value > column.high):
            warn(
                f"warning: {column.name} {value:g} lies outside of what the model learnt from, {column.low:g} to "
                f"{column.high:g}: its pictures are guesses there"
            )
        values.append(value)
    return values


def caption(values: Sequence[float], columns: Sequence[Column]) -> str:
    """`AD 73 F`: the known values in a few letters."""
    texts = [
        "" if math.isnan(v) else column.levels[round(v)] if column.levels else f"{v:.3g}"
        for v, column in zip(values, columns, strict=True)
    ]
    return " ".join(text for text in texts if text)
