"""Which runs a verb of launch.py is about, as a person names them. Torch-free."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from jobs.run.find import RUNS, find_run, members, run_folders

MANY = ("*", "+")  # how many runs a verb takes, in argparse's words


def verb_parser(verb: str, text: str, runs: str = "") -> argparse.ArgumentParser:
    """The parser of a verb. `runs`: how many it takes, 1, + or * (none means all); '' where it takes none."""
    parser = argparse.ArgumentParser(prog=f"launch.py {verb}", description=text, allow_abbrev=False)
    if runs:
        about = "name, beginning of a name, path or job id; a sweep stands for its points"
        parser.add_argument("run", metavar="RUN", help=about, nargs=None if runs == "1" else runs)
    return parser


def chosen(names: Iterable[str]) -> list[Path]:
    """The runs that these names mean, in their order, none twice; a sweep stands for its points."""
    found: dict[Path, None] = {}
    for name in names:
        run = find_run(name, RUNS)
        found |= dict.fromkeys(members(run))
    return list(found)


def all_runs() -> list[Path]:
    """Every run in runs/, the ones touched last at the end."""
    return run_folders(RUNS)
