"""Columns of a pack, and what a network may be conditioned on: the values of a column, as numbers or as levels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from data.walk import DataError

CLASS, SLICE = "class", "slice"  # known without a table, where the data have them
UNKNOWN = "unknown"  # what a person types for it
MAX_LEVELS = 32  # different texts of a column; with more it names people, or says something of each
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
        if self.levels and is_sex(self.name):
            text = SEXES.get(text.lower(), text)
        if text in self.levels:  # also one that is called None
            return float(self.levels.index(text))
        if text.lower() in (UNKNOWN, *MISSING):
            return math.nan
        if self.levels:
            raise ValueError(f"none of {', '.join(self.levels)}")
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


def is_sex(name: str) -> bool:
    """Whether the column of this name says F and M."""
    return same_column(name, "sex")


def plain(name: str) -> str:
    """A column's name as it is compared: lower case, letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def same_column(column: str, name: str) -> bool:
    """Whether a table's column is the one of this name, or known to mean the same."""
    return plain(column) in (plain(name), *KNOWN_AS.get(plain(name), ()))


def column_of(names: Iterable[str], wanted: str) -> str:
    """The column of this name among those of a table: spelled so, or spelled alike, or the only one that is known to
    mean the same; '' without one. DataError where several could be meant."""
    there = list(names)
    if wanted in there:
        return wanted
    for alike in (lambda name: plain(name) == plain(wanted), lambda name: same_column(name, wanted)):
        found = [name for name in there if alike(name)]
        if len(found) > 1:
            raise DataError(f"{wanted} may be each of the columns {', '.join(found)}; name one of these")
        if found:
            return found[0]
    return ""


def check_names(condition: str, classes: Sequence[str], there: Iterable[str]) -> None:
    """DataError where a column of --condition is neither the class nor one of `there`."""
    there = list(there)
    for name in filter(None, condition.split(",")):
        if not (classes if plain(name) == CLASS else column_of(there, name)):
            have = ", ".join([CLASS] * bool(classes) + there) or "none"
            raise DataError(
                f"--condition {name}: no such column; the data have {have}. A table that is named with --table, or a "
                "table of data.scan as --data, brings others; a .pack has what python -m data.pack --condition gave it"
            )


# --- what a pack keeps ------------------------------------------------------------------------------------------------
def columns_of(rows: Sequence[Cells], condition: str) -> dict[str, list[str]]:
    """{column of --condition: cell of each row, '' unknown}. No other column of a table is kept: it may name people."""
    there = sorted({name for cells in rows for name, _ in cells})
    found = {}
    for wanted in filter(None, condition.split(",")):
        if own := column_of(there, wanted):
            texts = [dict(cells).get(own, "") for cells in rows]
            found[wanted] = ["" if text.lower() in (UNKNOWN, *MISSING) else text for text in texts]
            check_cells(wanted, found[wanted])
    return found


def check_cells(name: str, cells: Sequence[str]) -> None:
    """DataError for a column of numbers with other texts among them, or of too many texts to be levels."""
    known = {cell for cell in cells if cell}
    odd = sorted(cell for cell in known if not _is_number(cell))
    if odd and 2 * len(odd) < len(known):
        raise DataError(f"--condition {name}: {odd[0]!r} is no number, as most of its cells are; write one, or nothing")
    if len(odd) > MAX_LEVELS:
        raise DataError(
            f"--condition {name}: it has {len(known)} different texts, more than {MAX_LEVELS}; leave it out"
        )


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


# --- what a run is conditioned on -------------------------------------------------------------------------------------
def cells_of(pack, name: str) -> list[str] | None:
    """The cell of each slice in this column; None without one. `pack`: with classes, labels and columns."""
    if plain(name) == CLASS:
        names = [*pack.classes, ""]  # -1: the last
        return [names[label] for label in pack.labels.tolist()] if pack.classes else None
    return pack.columns.get(name)


def describe(pack, names: Sequence[str], say: Callable[[str], object]) -> list[Column]:
    """The columns of these names, by a pack of training slices. DataError where the data have none, or where it says
    the same of all slices."""
    check_names(",".join(names), pack.classes, list(pack.columns))
    found = []
    for name in names:
        cells = cells_of(pack, name) or []
        known = sorted({cell for cell in cells if cell})
        number = plain(name) != CLASS and len(known) > 2 and all(map(_is_number, known))
        if is_sex(name):
            known = sorted({SEXES.get(cell.lower(), cell) for cell in known})
        if len(known) < 2:
            says = f"only says {known[0]}" if known else "says nothing"
            raise DataError(f"--condition {name}: the column {says} of all slices; leave it out")
        if number:
            values = np.array([float(cell) for cell in cells if cell])
            facts = values.mean(), values.std(), *rounded_outward(values.min(), values.max())
            column = Column(name, (), *(float(f"{v:.9g}") for v in facts))
        else:
            column = Column(name, tuple(pack.classes) if plain(name) == CLASS else tuple(known))
        missing = sum(not cell for cell in cells)
        say(f"condition {column.words()}" + (f"; unknown of {missing:,} of {len(cells):,} slices" if missing else ""))
        found.append(column)
    return found


def rounded_outward(low: float, high: float) -> tuple[float, float]:
    """A range to two digits of its width: that of one person, say the oldest, is nobody's business."""
    step = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


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
