"""Whether this Python has the packages that a script is going to import. Standard library only."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from data.files import say

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = {"PIL": "pillow"}


def need(*packages: str) -> None:
    """Leave with one line and code 78 where a package is not there: mostly a .venv that is not activated."""
    missing = [DISTRIBUTION.get(name, name) for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        say(f"error: {missing[0]} is not installed in {sys.executable}{more}; {way_out()}", sys.stderr)
        sys.exit(78)


def way_out() -> str:
    """What to type: the toolkit's own .venv where it stands and is not this Python, else how to install."""
    scripts = "Scripts" if os.name == "nt" else "bin"
    activate = ROOT / ".venv" / scripts / "activate"
    here = Path(os.path.relpath(activate))
    if sys.prefix != sys.base_prefix:
        return f"{sys.executable} -m pip install -r {ROOT / 'requirements.txt'}"
    if activate.exists():
        return str(here) if os.name == "nt" else f"source {here}"
    return "bash jobs/quickstart.sh makes a .venv that has it, as README.md says"
