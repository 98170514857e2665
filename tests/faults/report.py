"""What the fault harness and the soak share: looking at checkpoints from outside, and the tables in RESULTS.md."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "RESULTS.md"


def newest_whole(run: Path) -> int:
    """Images seen at the newest checkpoint whose hash is right; -1 without one. Reads the files by itself."""
    newest = -1
    for sidecar in (run / "checkpoints").glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(sidecar.read_text())
            if hashlib.sha256(sidecar.with_suffix(".pt").read_bytes()).hexdigest() == about["sha256"]:
                newest = max(newest, int(sidecar.stem))
    return newest


def between_markers(name: str) -> str:
    """What stands in RESULTS.md between the markers of this name; '' if they are not there."""
    begin, end = _markers(name)
    _, found, rest = RESULTS.read_text().partition(begin)
    return rest.partition(end)[0].strip("\n") if found else ""


def put_between_markers(name: str, heading: str, text: str) -> None:
    """Replace what stands there, or append it below a heading."""
    begin, end = _markers(name)
    old, block = RESULTS.read_text(), f"{begin}\n{text.strip()}\n{end}"
    before, found, rest = old.partition(begin)
    if found:
        RESULTS.write_text(before + block + rest.partition(end)[2])
    else:
        RESULTS.write_text(f"{old.rstrip()}\n\n{heading}\n\n{block}\n")


def _markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: written by its own command -->", f"<!-- end of {name} -->"


def merged_rows(old: str, new: list[str]) -> list[str]:
    """Rows of a table: the new ones in the place of old ones that begin with the same cell, and others after them."""

    def key(row: str) -> str:
        return row.split("|")[1].strip()

    rows = {key(row): row for row in old.splitlines() if row.startswith("| ") and not row.startswith("| ---")}
    return list((rows | {key(row): row for row in new}).values())
