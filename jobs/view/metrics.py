"""metrics.jsonl, the truth of a run: written row by row, read whole; averages between rows."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

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


class Averages:
    """Means of scalars since the last reset, summed on the device so that a step does not wait for the GPU."""

    def __init__(self):
        self.sums = torch.zeros(0, dtype=torch.float64)  # one of each name, in one tensor
        self.counts: dict[str, int] = {}  # their names, in the same order

    def add(self, values: dict[str, torch.Tensor | float]) -> None:
        """One more value of each; scalars on any device."""
        found = {name: torch.as_tensor(value).detach() for name, value in values.items()}
        for name in found:
            self.counts[name] = self.counts.get(name, 0) + 1
        device = next((v.device for v in found.values() if v.device.type != "cpu"), torch.device("cpu"))
        missing = torch.zeros((), device=device)
        stacked = torch.stack([found.get(name, missing).to(device) for name in self.counts]).double()
        before = torch.nn.functional.pad(self.sums.to(device), (0, len(stacked) - len(self.sums)))
        self.sums = before + stacked

    def means(self) -> dict[str, float]:
        """{name: mean since the last reset}; this waits for the device."""
        return {k: total / n for (k, n), total in zip(self.counts.items(), self.sums.tolist(), strict=True)}

    def reset(self) -> None:
        """Begin the next interval."""
        self.sums, self.counts = torch.zeros(0, dtype=torch.float64), {}

    def state_dict(self) -> dict:
        """What has been summed so far: a resumed interval goes on."""
        return {"sums": dict(zip(self.counts, self.sums, strict=True)), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict."""
        self.counts, sums = dict(state["counts"]), [state["sums"][name] for name in state["counts"]]
        self.sums = torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)
