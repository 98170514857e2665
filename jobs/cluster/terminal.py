"""What launch.py prints: colours only on a terminal, tables that fit it. All texts may be others': they are made plain
before they are painted. Torch-free."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable

from data.files import plain
from jobs.run.states import RunState

COLOURS = {"red": 31, "green": 32, "yellow": 33, "blue": 34, "grey": 90, "bold": 1}
STATE_COLOURS: dict[str, str] = {
    RunState.RUNNING: "green", RunState.STARTING: "green", RunState.DONE: "blue", RunState.QUEUED: "yellow",
    RunState.WAITING: "yellow", RunState.SUSPENDED: "yellow", RunState.UNKNOWN: "yellow", RunState.ENDING: "yellow",
    RunState.INTERRUPTED: "yellow", RunState.FAILED: "red",
    RunState.DIVERGED: "red", RunState.STUCK: "red", RunState.HANGING: "red", RunState.CUT_OFF: "red",
}  # fmt: skip
NOTE = 30  # columns that the last, wrapped column of a table needs beside the others
SHORTEST = 12  # columns that the name of a run keeps in a narrow terminal
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
    spare: Iterable[str] = (),
) -> list[str]:
    """Columns as wide as they need to be; empty columns are left out. The last one takes the rest, wrapped into further
    lines; where hardly any is left, it stands below its row.

    colours: for a column's number, the colour of each word that may stand in it. right: headers of right-aligned
    columns. spare: headers of columns to leave out, in this order, until the table fits; returns those that were.
    """
    header, rows = [plain(text) for text in header], [[plain(text) for text in row] for row in rows]
    keep = [i for i in range(len(header)) if any(row[i] for row in rows) or i == 0]
    wide = {i: max(len(header[i]), *(len(row[i]) for row in rows)) for i in keep}
    last, left_out = keep[-1], []
    # Words may be wrapped; a number, or a name that is to be copied, is not.
    wraps = last == len(header) - 1 and header[last] not in right and len(keep) > 1

    def before() -> int:
        return sum(wide[i] + 2 for i in keep if i != last)

    def too_wide(least: int) -> bool:
        return before() + (min(wide[last], least) if wraps else wide[last]) > width()

    below = wraps and too_wide(NOTE)
    for name in spare:
        if before() - 2 <= width() if below else not too_wide(NOTE):
            break
        left_out += [name for i in keep if header[i] == name and i not in (0, last)]
        keep = [i for i in keep if header[i] != name or i in (0, last)]
    below = below and too_wide(NOTE)
    shown = [i for i in keep if i != last] if below else keep
    if below and (extra := before() - 2 - width()) > 0 and wide[0] - extra >= SHORTEST:
        wide[0] -= extra  # the beginning of a name is enough to type
    indent = 2 if below else before()

    def cell(i: int, text: str) -> str:
        text = text if len(text) <= wide[i] or i == last else text[: wide[i] - 1] + "…"
        if i == last and header[i] not in right:
            return text
        return f"{text:>{wide[i]}}" if header[i] in right else f"{text:{wide[i]}}"

    print(paint("  ".join(cell(i, header[i]) for i in shown).rstrip(), "grey"))
    for row in rows:
        wrapped = textwrap.wrap(row[last], max(width() - indent, 30), break_on_hyphens=False) or [""]
        cells = [paint(cell(i, row[i]), (colours or {}).get(i, {}).get(row[i], "")) for i in keep if i != last]
        print("  ".join(cells if below else [*cells, cell(last, wrapped[0])]).rstrip())
        for line in wrapped if below else wrapped[1:]:
            if line:
                print(" " * indent + line)
    return left_out


def bar(done: float | None, total: float | None, cells: int = 8) -> str:
    """A small bar of progress; '' where it is unknown."""
    if done is None or not total:
        return ""
    full = round(min(done / total, 1) * cells)
    return "█" * full + "░" * (cells - full)
