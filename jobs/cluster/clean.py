"""`launch.py clean`: what runs hold on the disk, and the deletion of what a finished one no longer needs. Torch-free.

Weights, samples, metrics, logs, the configuration and the newest checkpoint always stay. A run that is not done keeps
everything, and so does one of which Slurm gives no answer. No link is followed out of a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.files import cache_folder, leads_out, read_object, say, words
from jobs.cluster import choose, quota, status, submit, terminal
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.steer import each
from jobs.cluster.terminal import facts, table
from jobs.run.find import read_jobs, typed
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.run.stopping import BAD, DONE, USAGE

PARTS = {
    "CHECKPOINTS": ("checkpoints",), "WEIGHTS": ("*.safetensors",), "SAMPLES": ("samples", "plots", "pictures"),
    "LOGS": ("logs", "tensorboard", "metrics.jsonl", "attempts.jsonl"), "CODE": ("code", ".code.old", ".code.new"),
}  # fmt: skip


@dataclass(frozen=True)
class Holding:
    """What a run holds, in bytes, and what of it can go."""

    run: Path
    state: str
    sizes: dict[str, int]  # by part, with OTHER
    spare: tuple[Path, ...] = ()
    spare_bytes: int = 0
    kept: str = ""  # why something stays that a finished run does not need


def clean_command(argv: list[str]) -> int:
    """`launch.py clean`."""
    about = "What runs hold on the disk; then, after a question, delete what finished ones no longer need: all " \
        "checkpoints but the newest, the copy of the code, what the queueing left."  # fmt: skip
    parser = verb_parser("clean", about, "*")
    parser.add_argument("-y", "--yes", action="store_true", help="delete without the question, for scripts")
    options = parser.parse_intermixed_args(argv)
    runs = chosen(options.run) if options.run else choose.all_runs()
    jobs = status.all_jobs()
    holdings = [look(run, jobs) for run in runs]
    if not runs:
        say(f"No runs in {choose.RUNS} yet.")
        return DONE
    show(holdings)
    spare = [one for one in holdings if one.spare]
    if not spare:
        say("\nNothing to delete: no finished run holds anything that it does not need.")
        return DONE
    total = sum(one.spare_bytes for one in spare)
    if not options.yes and not confirmed(
        f"\nDelete {size(total)} of {len(spare)} finished run{'s' * (len(spare) > 1)}?"
    ):
        return USAGE
    return each([one.run for one in spare], delete)


def confirmed(question: str) -> bool:
    """A person's yes; without a terminal nobody is asked, and it is no."""
    if not sys.stdin.isatty():
        terminal.error("nothing deleted: there is no terminal to ask on; give --yes")
        return False
    say(f"{question} [y/N]")
    answer = sys.stdin.readline().strip().lower()
    if answer not in ("y", "yes"):
        say("Nothing deleted.")
    return answer in ("y", "yes")


# --- what there is ----------------------------------------------------------------------------------------------------
def look(run: Path, jobs: dict | None) -> Holding:
    """Sizes of the parts of a run, and what of it can go. jobs: the user's jobs, None where Slurm gives no answer."""
    state = status.view_run(run, jobs).state
    sizes = dict.fromkeys([*PARTS, "OTHER"], 0)
    for entry in entries(run):
        part = next((name for name, patterns in PARTS.items() if any(entry.match(p) for p in patterns)), "OTHER")
        sizes[part] += bytes_of(entry)
    if state != RunState.DONE or not RunDir(run).done():
        return Holding(run, state, sizes)
    of_slurm = any(job.get("kind") != "local" for job in read_jobs(run).get("submitted", []))
    if of_slurm and (jobs is None or isinstance(jobs, status.Silent)):
        return Holding(run, state, sizes, kept="Slurm gives no answer, so it may be queued again")
    spare, kept = spare_of(run)
    return Holding(run, state, sizes, tuple(spare), sum(map(bytes_of, spare)), kept)


def spare_of(run: Path) -> tuple[list[Path], str]:
    """(what a finished run no longer needs, why something stays all the same)."""
    spare = [run / name for name in PARTS["CODE"] if os.path.lexists(run / name)]
    submitit, checkpoints = run / "logs" / "submitit", run / "checkpoints"
    if not leads_out(submitit, run):
        spare += sorted(submitit.glob("*.pkl"))
    if leads_out(checkpoints, run):
        return spare, "checkpoints is a link that leads out of the run"
    newest = RunDir(run).newest_checkpoint()
    found = [p for p in sorted(checkpoints.glob("*")) if p.suffix in (".pt", ".json") and p.stem.isdecimal()]
    others = [path for path in found if int(path.stem) != newest]
    last = {path.suffix: path for path in found if int(path.stem) == newest}
    whole = len(last) == 2 and bytes_in(last[".pt"]) == read_object(last[".json"], run)[0].get("size")
    if others and not whole:
        return spare, f"its newest checkpoint ({newest / 1000:g} kimg) is not whole, so the others stay"
    return [*spare, *others], ""


def bytes_in(path: Path) -> int:
    """The length of a file; -1 where there is none to be had."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def entries(run: Path) -> Iterator[Path]:
    """What lies in a run's folder."""
    with contextlib.suppress(OSError):
        yield from (Path(entry.path) for entry in os.scandir(run))


def bytes_of(path: Path) -> int:
    """What a file or a folder takes on the disk; links count for themselves."""
    total, left = 0, [path]
    while left:
        with contextlib.suppress(OSError):
            about = os.lstat(here := left.pop())
            total += about.st_blocks * 512
            if stat.S_ISDIR(about.st_mode):
                left += [Path(entry.path) for entry in os.scandir(here)]
    return total


def show(holdings: Iterable[Holding]) -> None:
    """The table, what stays and why, and what all runs share."""
    names = [*PARTS, "OTHER"]
    rows = []
    for one in holdings:
        cells = [size(one.sizes[name]) for name in names]
        total = size(sum(one.sizes.values()))
        rows.append([one.run.name, one.state, *cells, total, size(one.spare_bytes) if one.spare else ""])
    right = {*names, "TOTAL", "SPARE"}
    table(["RUN", "STATE", *names, "TOTAL", "SPARE"], rows, {1: terminal.STATE_COLOURS}, right, spare=names)
    for one in holdings:
        if one.kept:
            say(f"{typed(one.run)}: {one.kept}")
    shared = [("packs and latents", cache_folder()), ("compiled kernels", choose.RUNS / ".cache")]
    taken = [(what, bytes_of(path), path) for what, path in shared]
    there = [(what, f"{size(count)} in {path}, made again when missing") for what, count, path in taken if count]
    room = quota.used_and_limit_gb(choose.RUNS if choose.RUNS.exists() else choose.RUNS.parent)
    facts([*there, ("quota", f"{room[0]:.1f} of {room[1]:.1f} GB used" if room else "")])


def size(count: int) -> str:
    """Bytes for a person: "3.4 GB", "12 MB", "0"."""
    if count >= 1e8:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 5e4 else f"{count / 1e3:.0f} kB" if count else "0"


# --- what goes --------------------------------------------------------------------------------------------------------
def delete(run: Path) -> int:
    """Delete what can go, under the run's lock for queueing, if it is still done. Returns the exit code."""
    with submit.submit_lock(run):
        now = look(run, status.all_jobs())
        if now.state != RunState.DONE or not now.spare:
            say(f"{run.name} is {now.state} now{f': {now.kept}' if now.kept else ''}; nothing deleted.")
            return DONE
        for path in now.spare:
            try:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                terminal.error(f"{path}: cannot be deleted ({words(error)})")
                return BAD
    say(f"{run.name}: {size(now.spare_bytes)} deleted.")
    return DONE
