"""Columns of a pack, and what a network may be conditioned on: the values of a column, as numbers or as levels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data.walk import DataError

CLASS, SLICE = "class", "slice"  # known without a table, where the data have them
UNKNOWN = "unknown"  # what a person types for it
MAX_LEVELS = 32  # different texts of a column; with more it names people or says something of each, and is not kept
# Names that tables give to the same thing, in lower case without other signs.
KNOWN_AS = {
    "age": ("ageatvisit", "ageatscan", "ageatentry", "subjectage", "visitage"),
    "sex": ("mf", "gender", "ptgender", "subjectsex"),
    "mmse": ("mmscore", "mmsetotalscore"),
    "cdr": ("cdglobal", "cdrglobal", "globalcdr"),
}
MISSING = {"", "n/a", "na", "nan", "none", "null", "-4"}  # cells that say nothing; -4 is ADNI's
SEXES = {"male": "M", "m": "M", "female": "F", "f": "F"}

Cells = tuple[tuple[str, str], ...]  # (column, cell) of one slice


@dataclass(frozen=True)
class Column:
    """What a network is told of each slice: one of `levels`, or, where there are none, a number."""

    name: str
    levels: tuple[str, ...] = ()
    mean: float = 0.0  # of the training slices, as are all of these
    std: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def parse(self, text: str) -> float:
        """A cell as a number: the index of its level, or itself; NaN for an unknown one. ValueError for any other."""
        text = text.strip()
        if text.lower() in (UNKNOWN, *MISSING):
            return math.nan
        if self.levels:
            return float(_level(self.name, text, self.levels))
        value = float(text)
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        return value

    def text(self, value: float) -> str:
        """parse() undone; '' for NaN."""
        if math.isnan(value):
            return ""
        return self.levels[round(value)] if self.levels else f"{value:.6g}"

    def words(self) -> str:
        """`age 55 to 90` or `sex F, M`."""
        return f"{self.name} " + (", ".join(self.levels) or f"{self.low:g} to {self.high:g}")

    def about(self) -> dict:
        """For a file."""
        return asdict(self) | {"levels": list(self.levels)}


def _level(name: str, text: str, levels: Sequence[str]) -> int:
    if plain(name) in ("sex", *KNOWN_AS["sex"]):
        text = SEXES.get(text.lower(), text)
    if text not in levels:
        raise ValueError(f"none of {', '.join(levels)}")
    return list(levels).index(text)


def plain(name: str) -> str:
    """A column's name as it is compared: lower case, letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def same_column(column: str, name: str) -> bool:
    """Whether a table's column is the one of this name, or known to mean the same."""
    return plain(column) in (plain(name), *KNOWN_AS.get(plain(name), ()))


# --- what a pack keeps ------------------------------------------------------------------------------------------------
def columns_of(rows: Sequence[Cells]) -> dict[str, list[str]]:
    """{column: cell of each row, '' unknown}, without columns of more than MAX_LEVELS texts: these are no condition,
    and may name people."""
    found: dict[str, list[str]] = {}
    for i, cells in enumerate(rows):
        for name, cell in cells:
            found.setdefault(name, [""] * len(rows))[i] = "" if cell.lower() in MISSING else cell
    kept = (name for name in sorted(found) if _are_numbers(found[name]) or len(set(found[name])) <= MAX_LEVELS)
    return {name: found[name] for name in kept}


def _are_numbers(cells: Sequence[str]) -> bool:
    return all(not cell or _is_number(cell) for cell in set(cells))


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


# --- what a run is conditioned on -------------------------------------------------------------------------------------
def cells_of(pack, name: str) -> list[str] | None:
    """The cell of each slice in the column of this name, or of a name that is known to mean the same; None without
    one. `pack`: with classes, labels and columns."""
    if plain(name) == CLASS:
        names = [*pack.classes, ""]  # -1: the last
        return [names[label] for label in pack.labels.tolist()] if pack.classes else None
    found = [cells for column, cells in pack.columns.items() if same_column(column, name)]
    return found[0] if found else None


def check_names(condition: str, classes: Sequence[str], there: Sequence[str]) -> None:
    """DataError where a column of --condition is neither the class nor one of `there`."""
    for name in filter(None, condition.split(",")):
        if not (classes if plain(name) == CLASS else any(same_column(column, name) for column in there)):
            have = ", ".join([CLASS] * bool(classes) + list(there)) or "none"
            raise DataError(
                f"--condition {name}: no such column; the data have {have}. A table that is named with --table, or a "
                "table of data.scan as --data, brings others"
            )


def describe(pack, names: Sequence[str], say: Callable[[str], object]) -> list[Column]:
    """The columns of these names, by a pack of training slices. DataError where the data have none, or where it says
    the same of all slices."""
    check_names(",".join(names), pack.classes, list(pack.columns))
    found = []
    for name in names:
        cells = cells_of(pack, name) or []
        known = sorted({cell for cell in cells if cell})
        number = len(known) > 2 and _are_numbers(known)
        if plain(name) in ("sex", *KNOWN_AS["sex"]):
            known = sorted({SEXES.get(cell.lower(), cell) for cell in known})
        if len(known) < 2:
            says = f"only says {known[0]}" if known else "says nothing"
            raise DataError(f"--condition {name}: the column {says} of all slices; leave it out")
        if number:
            values = np.array([float(cell) for cell in cells if cell])
            facts = values.mean(), values.std(), values.min(), values.max()
            column = Column(name, (), *(float(f"{v:.9g}") for v in facts))
        else:
            column = Column(name, tuple(pack.classes) if plain(name) == CLASS else tuple(known))
        missing = sum(not cell for cell in cells)
        say(f"condition {column.words()}" + (f"; unknown of {missing:,} of {len(cells):,} slices" if missing else ""))
        found.append(column)
    return found


def values_of(pack, columns: Sequence[Column]) -> np.ndarray:
    """(N, columns) float32: each slice's cells as Column.parse gives them, NaN where unknown, or not a known level."""
    out = np.full((len(pack.labels), len(columns)), np.nan, np.float32)
    for j, column in enumerate(columns):
        cells = cells_of(pack, column.name)
        known: dict[str, float] = {}
        for cell in set(cells or ()):
            try:
                known[cell] = column.parse(cell)
            except ValueError:  # of a held-out slice: a level that training has not seen
                known[cell] = math.nan
        if cells is not None:
            out[:, j] = [known[cell] for cell in cells]
    return out
