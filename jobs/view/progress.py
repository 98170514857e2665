"""The progress line of a terminal or a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from data.files import is_number, say
from jobs.config import kinds
from jobs.config.wording import clock, short_time

LINE_SECONDS = 20.0  # between two lines in a log file
T = TypeVar("T")


def counted(items: Sequence[T], what: str, done: int = 0, interactive: bool | None = None) -> Iterator[T]:
    """The items, with a bar on a terminal and a line now and then in a log file; `done`: how many came before."""
    total = done + len(items)
    if sys.stderr.isatty() if interactive is None else interactive:
        from tqdm import tqdm

        yield from tqdm(items, desc=what, initial=done, total=total)
        return
    begun = told = time.monotonic()
    for i, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= LINE_SECONDS and i < len(items):
            told = now
            left = short_time((now - begun) / i * (len(items) - i))
            say(f"{what}: {done + i:,} of {total:,}, {left} left")


class Progress:
    """A tqdm bar on a terminal, one plain line per tick in a log file."""

    def __init__(self, total: int, nimg: int, interactive: bool | None = None):
        self.total, self.start, self.started = total, nimg, time.monotonic()
        self.digits = 1 if total >= 10_000 else 3  # of kimg
        self.bar = None
        if sys.stderr.isatty() if interactive is None else interactive:
            from tqdm import tqdm

            n = self.digits
            kimg = f"{{n:.{n}f}}/{{total:.{n}f}} kimg"
            form = f"{{percentage:3.0f}}%|{{bar}}| {kimg} [{{elapsed}}<{{remaining}}{{postfix}}]"
            self.bar = tqdm(total=total / 1000, initial=nimg / 1000, bar_format=form, dynamic_ncols=True)

    def update(self, nimg: int) -> None:
        """Move the bar; the lines of a log file come from tick()."""
        if self.bar is not None:
            self.bar.n = nimg / 1000
            self.bar.update(0)

    def tick(self, nimg: int, row: dict) -> None:
        """Show the figures of a row of metrics.jsonl."""
        speed = row.get("img_per_s") or (nimg - self.start) / max(time.monotonic() - self.started, 1e-9)
        figures = _figures(row)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed:.0f} img/s  {figures}")
            return
        eta = clock(round(max(self.total - nimg, 0) / speed)) if speed > 0 else "?"
        slowness = f"{1000 / speed:.1f}" if speed > 0 else "?"
        print(
            f"kimg {nimg / 1000:.{self.digits}f}/{self.total / 1000:.{self.digits}f}  "
            f"{min(100 * nimg / max(self.total, 1), 100):.1f}%  img/s {speed:.1f}  "
            f"sec/kimg {slowness}  {_use(row)}ETA {eta}  {figures}".rstrip(),
            flush=True,
        )

    def write(self, text: str) -> None:
        """A line of text, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(text)
        else:
            say(text)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def _figures(row: dict) -> str:
    """The few figures of a row that say how it goes, as `D 1.02  G 0.85`: those whose column has a short name."""
    shown = {c.name: c.short for c in kinds.known_columns() if c.short and is_number(row.get(c.name))}
    return "  ".join(f"{short} {row[name]:.3g}" for name, short in shown.items())


def _use(row: dict) -> str:
    """How the machine is used: `peak 31%  data 0%  save 0.2%  ` of its speed, and of the time spent waiting for
    them."""
    short = {"peak_share": "peak", "data_wait": "data", "checkpoint_wait": "save", "metric_wait": "metrics"}
    return "".join(f"{name} {100 * row[k]:.2g}%  " for k, name in short.items() if is_number(row.get(k)))
