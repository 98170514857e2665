"""What launch.py prints: colours only on a terminal, tables that fit it. All texts may be others': they are made plain
before they are painted. Torch-free."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Collection

from data.files import plain
from jobs.run.states import RunState

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "grey": 90, "bold": 1}
STATE_COLOURS: dict[str, str] = {
    RunState.RUNNING: "green", RunState.STARTING: "green", RunState.DONE: "blue", RunState.QUEUED: "yellow",
    RunState.WAITING: "yellow", RunState.UNKNOWN: "yellow", RunState.ENDING: "yellow",
    RunState.INTERRUPTED: "yellow", RunState.FAILED: "red",
    RunState.DIVERGED: "red", RunState.STUCK: "red", RunState.HANGING: "red", RunState.CUT_OFF: "red",
}  # fmt: skip
LEVEL_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def paint(text: str, colour: str, stream=None) -> str:
    """The text, made plain, in a colour where the stream is a terminal and NO_COLOR is not set."""
    stream, text = stream or sys.stdout, plain(text, keep="\n")
    if not colour or not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def width() -> int:
    """Columns to use: the terminal's, and 120 where output goes into a file or a pipe."""
    return max(shutil.get_terminal_size((120, 40)).columns, 60)


def error(text: str) -> None:
    """One line `error: text` to standard error."""
    print(paint("error:", "red", sys.stderr) + " " + plain(text), file=sys.stderr)


def say_checks(checks, stream=None) -> None:
    """One line per check: level, text, and below it the fix."""
    stream = stream or sys.stdout
    for check in checks:
        lines = textwrap.wrap(plain(check.text), width() - 6, break_on_hyphens=False, break_long_words=False) or [""]
        print(paint(f"{check.level:4}", LEVEL_COLOURS[check.level], stream), lines[0], file=stream)
        for line in lines[1:]:
            print("     " + line, file=stream)
        if check.fix:
            fix = textwrap.wrap(plain(check.fix), width() - 11, break_on_hyphens=False, break_long_words=False)
            print(
                "\n".join(("     fix: " if i == 0 else "          ") + line for i, line in enumerate(fix)), file=stream
            )


def facts(rows: list[tuple[str, str]], indent: str = "  ") -> None:
    """Aligned pairs of a word and its value; empty values are left out.

    Values are not cut: they are there to be copied.
    """
    rows = [(plain(key), plain(value)) for key, value in rows if value]
    wide = max((len(key) for key, _ in rows), default=0)
    for key, value in rows:
        print(f"{indent}{paint(f'{key:{wide}}', 'grey')}  {value}")


def table(
    header: list[str],
    rows: list[list[str]],
    colours: dict[int, dict[str, str]] | None = None,
    right: Collection[str] = (),
) -> None:
    """Columns as wide as they need to be; empty columns are left out. The last one takes the rest, wrapped into further
    lines.

    colours: for a column's number, the colour of each word that may stand in it. right: headers of right-aligned
    columns.
    """
    header, rows = [plain(text) for text in header], [[plain(text) for text in row] for row in rows]
    keep = [i for i in range(len(header)) if any(row[i] for row in rows) or i == 0]
    wide = {i: max(len(header[i]), *(len(row[i]) for row in rows)) for i in keep}
    last = keep[-1]
    before = sum(wide[i] + 2 for i in keep[:-1])
    rest = max(width() - before, 30)

    def cell(i: int, text: str) -> str:
        return (
            text
            if i == last and header[i] not in right
            else f"{text:>{wide[i]}}"
            if header[i] in right
            else f"{text:{wide[i]}}"
        )

    print(paint("  ".join(cell(i, header[i]) for i in keep).rstrip(), "grey"))
    for row in rows:
        wrapped = textwrap.wrap(row[last], rest, break_on_hyphens=False) or [""]
        cells = [paint(cell(i, row[i]), (colours or {}).get(i, {}).get(row[i], "")) for i in keep[:-1]]
        print("  ".join([*cells, cell(last, wrapped[0])]).rstrip())
        for line in wrapped[1:]:
            print(" " * before + line)


def bar(done: float | None, total: float | None, cells: int = 8) -> str:
    """A small bar of progress; '' where it is unknown."""
    if done is None or not total:
        return ""
    full = round(min(done / total, 1) * cells)
    return "█" * full + "░" * (cells - full)
