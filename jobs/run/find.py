"""The runs there are, and the one that a person means. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from pathlib import Path

from data.files import read_json
from jobs.config import specs


def runs_folder(root: Path = specs.ROOT) -> Path:
    """Where the runs of the toolkit at `root` lie; of a run's snapshot, those of the folder that it was taken from."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        root = Path(read_json(root / "snapshot.json")["from"])
    return root / "runs"


RUNS = runs_folder()


def read_jobs(run: Path) -> dict:
    """jobs.json: which jobs were submitted for the run, and how. {} if there is none."""
    with contextlib.suppress(OSError, ValueError):
        about = read_json(run / "jobs.json", run)
        listed = about.get("submitted")
        listed = listed if isinstance(listed, list) else []
        about["submitted"] = [job for job in listed if isinstance(job, dict) and isinstance(job.get("id"), str)]
        # Words that become options of a command, a path, a key: of another type, or unprintable, they are left out.
        for name in ("job", "after"):
            if not isinstance(about.get(name, ""), str) or not about.get(name, "").isprintable():
                del about[name]
        return about
    return {}


def run_folders(root: Path) -> list[Path]:
    """All runs below `root`, the ones touched last at the end."""
    found = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(root):
            # In a folder that is another person's alone os.path finds nothing, and does not fail.
            if entry.is_dir() and any(
                os.path.exists(os.path.join(entry.path, name)) for name in ("jobs.json", "status.json", "config.json")
            ):
                found.append((entry.stat().st_mtime, Path(entry.path)))
    return [path for _, path in sorted(found)]


def find_run(text: str, root: Path = RUNS) -> Path:
    """The run that a person means: a path, a name, the unambiguous beginning of one, or a job id.

    LookupError with one line.
    """
    direct = Path(text).expanduser()
    for path in (root / text, direct):
        if os.path.isdir(path) and (
            path.parent == root
            or any(os.path.exists(path / n) for n in ("jobs.json", "status.json", "config.json", "sweep.json"))
        ):
            return path.absolute()
    folders = run_folders(root)
    if re.fullmatch(r"\d+(_\d+)?", text):
        for path in folders:
            if any(str(job["id"]) == text for job in read_jobs(path).get("submitted", [])):
                return path
    sweeps = [path.parent for path in root.glob("*/sweep.json")]
    starts = [path for path in [*folders, *sweeps] if path.name.startswith(text)]
    if len(starts) == 1:
        return starts[0]
    if starts:
        raise LookupError(f"{text} is the beginning of several runs: {', '.join(p.name for p in starts[:6])}")
    names = ", ".join(path.name for path in folders[-6:]) or "none yet"
    raise LookupError(f"there is no run {text} in {root}; the last ones are: {names}")


def runs_inside(folder: Path) -> str:
    """What to say of a folder that is no run but holds some; '' where it holds none."""
    names = [path.name for path in run_folders(folder)]
    return f"a folder of runs, not a run; name one of them: {', '.join(names[-6:])}" if names else ""


def members(run: Path) -> list[Path]:
    """The runs that this folder stands for: the points of a sweep, else itself."""
    points = read_sweep(run)
    return [run] if points is None else [Path(point["run"]) for point in points]


def typed(run: Path) -> str:
    """How a person types this run in a command: its name where it lies in runs/, else its path, quoted for a shell."""
    return shlex.quote(run.name if run.parent == RUNS else str(run))


def read_sweep(run: Path) -> list[dict] | None:
    """The points of a sweep, each {values, run}; None where `run` is no sweep."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        points = read_json(run / "sweep.json", run)["points"]
        names = list(points[0]["values"]) if points else []
        if all(list(point["values"]) == names and point["run"].isprintable() for point in points):
            return [{"values": dict(point["values"]), "run": point["run"]} for point in points]
    return None
