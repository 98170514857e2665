"""Where predict.py keeps what it makes of a run, RUN/predictions/COMMAND/NAME, and how readers find it. Torch-free."""

from __future__ import annotations

import re
from pathlib import Path

from data.files import leads_out

RECORDS = {"evaluate": "metrics.json"}  # what says which settings made a folder; of all others COMMAND.json


def home_of(base: Path, command: str) -> Path:
    """Where the folders of a command are: in a run, or beside nothing but a weights file."""
    return base / "predictions" / command


def record_of(command: str) -> str:
    """The file that says what made a folder."""
    return RECORDS.get(command, f"{command}.json")


def in_a_name(text: str) -> str:
    """A class's name, which may hold anything, as a part of the name of a file or folder."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", text)[:60]


def made(run: Path, command: str, file: str = "") -> list[Path]:
    """The files of this name (the records) in all folders of a command, newest first. What a link leads to outside of
    the run is left out."""
    home, file = home_of(run, command), file or record_of(command)
    # older versions had no folders in there
    found = [path for path in (home / file, *home.glob(f"*/{file}")) if path.is_file() and not leads_out(path, run)]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
