"""How times are written, one way each, and how this Python and its scripts are called. Torch-free."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from jobs.config.specs import ROOT


def clock(seconds: float | None) -> str:
    """ "0:42", "3:20:00": elapsed and limit stand side by side; "-" for None."""
    if seconds is None:
        return "-"
    minutes, s = divmod(max(int(seconds), 0), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def short_time(seconds: float | None) -> str:
    """ "42 s", "5 min", "3 h 20", "2 d 4 h"; '' for None."""
    if seconds is None:
        return ""
    s = max(int(seconds), 0)
    if s < 90:
        return f"{s} s"
    if s < 5400:
        return f"{round(s / 60)} min"
    if s < 172800:
        return f"{s // 3600} h {s % 3600 // 60:02}"
    return f"{s // 86400} d {s % 86400 // 3600} h"


def short_date(when: float) -> str:
    """A local time: hours and minutes today, with the day else."""
    today = time.strftime("%F") == time.strftime("%F", time.localtime(when))
    return time.strftime("%H:%M" if today else "%a %d %b %H:%M", time.localtime(when))


def python() -> str:
    """How to call this Python from the shell that called it: `python` where that is the one, else its path."""
    ours, theirs = Path(sys.executable).absolute(), shutil.which("python")
    if theirs and Path(theirs).absolute() == ours:
        return "python"
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)


def command(script: str) -> str:
    """How to call a script of the toolkit from there."""
    return f"{python()} {script if Path.cwd() == ROOT else ROOT / script}"
