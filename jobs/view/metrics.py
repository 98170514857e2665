"""metrics.jsonl, the truth of a run: written row by row, read whole. Torch-free."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from data.files import atomic_write, is_number, lines_of, open_regular, read_rows, row_of, say, words


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------
def _lines(path: Path) -> Iterator[tuple[bytes, dict]]:
    """(line, row) of every whole row, in order."""
    with contextlib.suppress(FileNotFoundError), open_regular(path, inside=path.parent) as file:
        for line in lines_of(file):
            for row in row_of(line, _is_row, nonfinite=True):
                yield line, row


def _is_row(row: dict) -> bool:
    return type(row.get("nimg")) is int and is_number(row["nimg"])


def read_metrics(path: Path) -> list[dict]:
    """The rows, in order; an unfinished last line and anything that is no row are left out. Values that were not finite
    are None. Of a very long log not every row, see read_rows; [] where there is no log that can be read."""
    with contextlib.suppress(OSError):
        return read_rows(path, inside=path.parent, keep=_is_row)
    return []


class MetricsLog:
    """Appends rows durably. A checkpoint at `resume_nimg` images implies the rows up to there; opening drops the later
    ones, which the resumed run writes again. -1 drops all (a fresh run), None none but an unfinished last line."""

    def __init__(self, path: Path, resume_nimg: int | None = None, say: Callable[[str], None] = say):
        self.path, self.say = Path(path), say
        self._pending = b""  # rows that could not be written yet
        self.truncate(resume_nimg)

    def truncate(self, nimg: int | None) -> None:
        """Drop the rows after `nimg`, and a line that a killed process left unfinished."""
        whole = {row["nimg"]: line for line, row in _lines(self.path) if nimg is None or row["nimg"] <= nimg}
        waiting = {
            row["nimg"]: line
            for line in self._pending.splitlines(keepends=True)
            for row in row_of(line)
            if nimg is None or row["nimg"] <= nimg
        }
        # A write that failed at its fsync has left its rows in the file: they wait no longer.
        self._pending = b"".join(line for at, line in waiting.items() if at not in whole)
        kept = b"".join(whole.values())
        self._size = len(kept)
        if self.path.exists() and self.path.stat().st_size != len(kept):
            atomic_write(self.path, kept)

    def append(self, row: dict) -> None:
        """One object, one line, on disk on return. JSON has no NaN: such values become null and are named under
        `nonfinite`. On a full disk the rows wait in memory and training goes on."""
        row = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            row = {**row, **dict.fromkeys(bad), "nonfinite": bad}
        waiting = bool(self._pending)
        self._pending += json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            with open_regular(self.path, "ab", self.path.parent) as file:
                file.truncate(self._size)  # what a failed write left
                file.write(self._pending)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not waiting:
                self.say(
                    f"WARNING: {self.path} cannot be written ({words(error)}); rows are kept until it can. Free "
                    "some space"
                )
            return
        self._size += len(self._pending)
        self._pending = b""
