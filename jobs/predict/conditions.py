"""What a run is conditioned on: from the columns of its data to what its networks are told, and what was asked for."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import torch

from data.columns import CLASS, UNKNOWN, Column, column_of, describe, values_of
from data.files import is_number, say
from data.packfile import Pack
from data.reading import BadFile
from data.tables import read_rows as read_table
from data.volumes import PLANES
from data.walk import DataError
from jobs.predict.named import UsageError
from jobs.training import randomness
from models.conditions import Attribute, Told

Row = Mapping[str, object]  # {column: value, as text or number}; what is left out is unknown
NEAR = 0.03  # of a range: so far beyond its ends a value is none outside
Asked = str | Row | Sequence[Row]  # a class or `all`; one row for all pictures; or rows in turn


def columns_of(c, pack: Pack, say: Callable[[str], object]) -> list[Column]:
    """The columns of --condition by the training slices; [] without it. DataError where the data do not have them."""
    return describe(pack, c.condition.split(","), say) if c.condition else []


def attributes_of(columns: Sequence[Column]) -> list[Attribute]:
    """The same for models.conditions."""
    return [Attribute(len(c.levels), c.mean, c.std) for c in columns]


def told_of(columns: Sequence[Column], classes: Sequence[str], conditional: object) -> Told:
    """What a network is told of, as its constructor takes it: attributes, else how many classes, 0 for nothing."""
    return attributes_of(columns) or (len(classes) if conditional is True else 0)


def labels_of(pack: Pack, columns: Sequence[Column]) -> np.ndarray:
    """What a network is told of each slice: (N, columns) float32; without columns the classes, (N,) int64."""
    return values_of(pack, columns) if columns else np.asarray(pack.labels, np.int64)


def classes_of(labels: torch.Tensor, columns: Sequence[Column]) -> torch.Tensor | None:
    """The classes (B,) int64, -1 unknown, in what labels_of gives; None where it has none."""
    if not columns:
        return labels
    found = [i for i, column in enumerate(columns) if column.name == CLASS]
    return labels[:, found[0]].nan_to_num(nan=-1).long() if found else None


def about_columns(pack: Pack, columns: Sequence[Column]) -> list[dict]:
    """For data.json: each column, how many of the training slices lack it, and a digest of all their values."""
    values = values_of(pack, columns)
    return [
        column.about() | {"missing": int(np.isnan(v).sum()), "digest": hashlib.sha256(v.tobytes()).hexdigest()[:16]}
        for column, v in zip(columns, values.T.copy(), strict=True)
    ]


def known_of(pack: Pack, columns: Sequence[Column]) -> dict:
    """For a weights file: the classes, how slices were made, of volumes mm per pixel and the plane, and the columns
    where there are any."""
    found: dict = {"classes": pack.classes, "geometry": pack.geometry}
    spacing = pack.meta.get("spacing")
    if spacing and is_number(spacing):
        found |= {"spacing": spacing}
    if (plane := str(pack.meta.get("plane"))) in PLANES:
        found |= {"plane": plane}
    return found | ({"conditions": [column.about() for column in columns]} if columns else {})


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
    told: torch.Tensor | None
    if columns:
        told = of_reals[torch.arange(number, device=of_reals.device) % len(of_reals)]
        return told, lambda values: [caption(row, columns) for row in values.tolist()]
    rows = torch.arange(number, device=of_reals.device) // width
    told = rows % len(pack.classes) if c.conditional else None
    return told, lambda labels: [pack.classes[k] for k in labels.tolist()]


# --- what was asked for -----------------------------------------------------------------------------------------------
@cache
def say_once(line: str) -> None:
    """A warning that every batch of pictures would repeat."""
    say(line, to=sys.stderr)


def rows_of(label: Asked, classes: Sequence[str]) -> Sequence[Row]:
    """What is asked for as rows: `all` is one of each class, without classes of nothing; else a class by name or
    number."""
    if not isinstance(label, str):
        rows: Sequence[Row] = [label] if isinstance(label, Mapping) else label
        if not rows:
            raise UsageError("no row says what is asked for")
        return rows
    if label == "all":
        return [{CLASS: name} for name in classes] or [{}]
    return [{CLASS: class_named(label, classes)}]


def class_named(label: str, classes: Sequence[str]) -> str:
    """The class of this name, else of this number, else what was asked for, to be refused."""
    by_number = label not in classes and label.isdecimal() and int(label) < len(classes)
    return classes[int(label)] if by_number else label


def only_class(label: Mapping | Sequence, classes: Sequence[str]) -> str:
    """The class in a row for a network that knows the class alone. UsageError for anything else."""
    row = label if isinstance(label, Mapping) else label[0] if len(label) == 1 else {}
    if set(row) != {CLASS}:
        knows = f"its class ({', '.join(classes)})" if classes else "nothing of a slice"
        raise UsageError(f"this model was told {knows}, so {', '.join(row) or 'a table'} cannot be asked of it")
    return str(row[CLASS])


def settings_of(label: Asked) -> dict:
    """What was asked for, as a file of settings has it."""
    if isinstance(label, str):
        return {"class": label}
    if isinstance(label, Mapping):
        return {"set": {name: str(value) for name, value in sorted(label.items())}}
    text = json.dumps([{name: str(value) for name, value in sorted(row.items())} for row in label])
    return {"rows": len(label), "rows_sha256": hashlib.sha256(text.encode()).hexdigest()[:16]}


def parse_set(words: Sequence[str]) -> dict[str, str]:
    """--set COLUMN=VALUE, any number of times. UsageError for any other form."""
    row: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name or name in row:
            raise UsageError(f"--set {word}: write COLUMN=VALUE, each column once, such as --set age=80")
        row[name] = value
    return row


def parse_vary(word: str, columns: Sequence[Column]) -> tuple[str, list[str]]:
    """(column, values) of --vary COLUMN=A:B:N, or, of a column of levels, --vary COLUMN. UsageError otherwise."""
    name, _, span = word.partition("=")
    column = next((c for c in columns if c.name == name), None)
    if column is None:
        there = ", ".join(c.name for c in columns) or "nothing"
        raise UsageError(f"--vary {word}: this model is conditioned on {there}")
    if column.levels and not span:
        return name, list(column.levels)
    try:
        low, high, number = span.split(":")
        count, ends = int(number), (float(low), float(high))
        if column.levels or not 2 <= count <= 64 or not all(map(math.isfinite, ends)):
            raise ValueError
    except ValueError:
        form = (
            name
            if column.levels
            else f"{name}=A:B:N with N from 2 to 64, such as {name}={column.low:g}:{column.high:g}:8"
        )
        raise UsageError(f"--vary {word}: write {form}") from None
    return name, [f"{ends[0] + (ends[1] - ends[0]) * j / (count - 1):.6g}" for j in range(count)]


def read_rows(path: str, columns: Sequence[Column]) -> list[dict[str, str]]:
    """The rows of a table for --like: its columns of these names, or of those that mean the same. UsageError where it
    has none."""
    try:
        table = read_table(path)
    except BadFile as error:
        raise UsageError(f"--like {path}: {error}") from None
    if not table:
        raise UsageError(f"--like {path}: has no rows")
    try:
        found = {c.name: column_of(table[0], c.name) for c in columns}
    except DataError as error:
        raise UsageError(f"--like {path}: {error}") from None
    used = {name: key for name, key in found.items() if key}
    if not used:
        raise UsageError(f"--like {path}: has none of the columns {', '.join(c.name for c in columns)}")
    return [{name: row[key] for name, key in used.items()} for row in table]


def training_rows(pack: Pack, columns: Sequence[Column], number: int, seed: int) -> list[dict[str, str]]:
    """Rows for `number` pictures, drawn from the training slices': the columns occur together as they do there."""
    values = values_of(pack, columns)
    pick = torch.randint(len(values), (number,), generator=randomness.generator(seed, 0, "predict rows")).numpy()
    return [{c.name: c.text(v) for c, v in zip(columns, row, strict=True)} for row in values[pick].tolist()]


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
        margin = NEAR * (column.high - column.low)
        if not column.levels and (value < column.low - margin or value > column.high + margin):
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
