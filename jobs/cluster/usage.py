"""`launch.py usage`: GPU hours of runs, sweeps and people: asked, used, lost to restarts, and the wait in the queue.

From attempts.jsonl; where sacct answers and counts GPUs, its word on what was used stands. Torch-free.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import is_number, read_rows, say
from jobs.cluster import choose, slurm, status
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.terminal import table
from jobs.run import budget
from jobs.run.find import find_run, read_jobs, read_sweep
from jobs.run.owners import owner_of
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.run.stopping import DONE

AT_WORK = (RunState.RUNNING, RunState.HANGING, RunState.SUSPENDED, RunState.ENDING)
JSON_VERSION = 1
LITTLE = 0.5  # of what was asked for: below that a smaller request would have done


@dataclass(frozen=True)
class Usage:
    """What a run, or several together, cost. Times in hours."""

    name: str
    user: str = ""
    runs: int = 1
    attempts: int = 0
    asked: float | None = None  # time limit times GPUs; None where there was no limit
    used: float = 0.0  # this and lost: GPU hours
    lost: float = 0.0
    queued: float = 0.0
    budget: float | None = None
    use: str = ""  # how much of what it had it made use of, in words


def usage_command(argv: list[str]) -> int:
    """`launch.py usage`."""
    about = "GPU hours per run, sweep and person: asked for, used, lost to restarts; and the hours in the queue."
    parser = verb_parser("usage", about, "*")
    parser.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    options = parser.parse_intermixed_args(argv)
    runs = chosen(options.run) if options.run else choose.all_runs()
    jobs = status.all_jobs() or {}
    seen = {run: of_run(run, live=status.view_run(run, jobs).state in AT_WORK) for run in runs}
    sweeps = [together(path.name, [seen[run] for run in points]) for path, points in sweeps_among(options.run, seen)]
    people = [
        together(user, [one for one in seen.values() if one.user == user])
        for user in sorted({one.user for one in seen.values()})
    ]
    if options.json:
        parts = {"runs": list(seen.values()), "sweeps": sweeps, "users": people}
        print(json.dumps({"version": JSON_VERSION} | {name: [asdict(u) for u in part] for name, part in parts.items()}))
        return DONE
    if not runs:
        say(f"No runs in {choose.RUNS} yet.")
        return DONE
    show("RUN", list(seen.values()))
    if len(seen) == 1 and (line := next(iter(seen.values())).use):
        say(f"\n{line}")
    for header, rows in (("SWEEP", sweeps), ("USER", people if len(seen) > 1 else [])):
        if rows:
            say("")
            show(header, rows)
    say("\nGPU hours; ASKED is the time limit of each attempt, QUEUED hours of waiting.")
    return DONE


def show(header: str, rows: list[Usage]) -> None:
    """The table of some of them."""

    def hours(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"

    columns = ["ATTEMPTS", "ASKED", "USED", "LOST", "QUEUED", "BUDGET"]
    table(
        [header, *columns],
        [[u.name, str(u.attempts), *map(hours, (u.asked, u.used, u.lost, u.queued, u.budget))] for u in rows],
        right=set(columns),
    )


# --- one run ----------------------------------------------------------------------------------------------------------
def of_run(run: Path, live: bool = False) -> Usage:
    """What a run has cost. `live`: its last attempt goes on."""
    attempts = budget.spent(RunDir(run).read_attempts(), time.time() if live else last_seen(run))
    submitted = read_jobs(run).get("submitted", [])
    known = [one.asked_s * one.gpus for one in attempts if one.asked_s is not None]
    ids = [str(job["id"]) for job in submitted if job.get("kind") != "local"]
    by_slurm = accounted(ids)
    # What Slurm accounts for is no attempt of this machine, and none in a job that was not queued for the run.
    used = sum(one.gpu_s for one in attempts if by_slurm is None or one.job_id not in ids) + (by_slurm or 0.0)
    return Usage(
        name=run.name,
        user=owner_of(run),
        attempts=len(attempts),
        asked=round(sum(known) / 3600, 4) if known else None,
        used=round(used / 3600, 4),
        lost=round(sum(one.lost_s * one.gpus for one in attempts) / 3600, 4),
        queued=round(queued_s(attempts, submitted) / 3600, 4),
        budget=budget.limit_hours(run),
        use=use_line(run, attempts),
    )


def last_seen(run: Path) -> float | None:
    """The last sign of life of a training process that left its lock behind; None where none did."""
    try:
        return (run / "LOCK").stat().st_mtime
    except OSError:
        return None


def queued_s(attempts: Iterable[budget.Spent], submitted: Collection[dict]) -> float:
    """Seconds between the moment from which an attempt could have run and its start, over all attempts."""
    times = {str(job["id"]): job["time"] for job in submitted if is_number(job.get("time"))}
    waited, free = 0.0, 0.0
    for one in attempts:
        asked = max(times.get(one.job_id, 0.0), free)  # a successor waits for its predecessor, which is no queue
        waited += max(one.since - asked, 0.0) if asked else 0.0
        free = one.since + one.used_s
    return waited


def accounted(ids: list[str]) -> float | None:
    """GPU seconds of these jobs in the cluster's accounts; None where it keeps none, or none of GPUs."""
    if not ids or _silence or shutil.which("sacct") is None:
        return None
    command = ["sacct", "-X", "-D", "-n", "-P", f"--delimiter={slurm.FIELD}", "--format=JobID,ElapsedRaw,AllocTRES"]
    try:
        text = slurm._run([*command, "-j", ",".join(map(slurm._checked_id, ids))])
    except slurm.SlurmError as error:  # attempts.jsonl says it too
        if isinstance(error, slurm.NoAnswer):
            say(f"warning: {error}; showing what the runs themselves say", sys.stderr)
            _silence.add(str(error))
        return None
    return parse_accounts(text, ids)


_silence: set[str] = set()  # of the accounts: who does not answer for one run is not waited for at each of the others


def parse_accounts(text: str, ids: Collection[str]) -> float | None:
    """GPU seconds from sacct's rows (id, seconds, resources), of which a requeued job has several; None unless every
    job is there and the resources name GPUs."""
    total, found, named = 0.0, set(), False
    rows = [line.split(slurm.FIELD) for line in text.splitlines()]
    for job_id, elapsed, resources in (row for row in rows if len(row) == 3):  # a site's banner has none
        count = re.search(r"(?:^|,)gres/gpu=(\d+)", resources)
        named |= count is not None
        found.add(job_id)
        total += int(elapsed) * int(count[1]) if count and elapsed.isdecimal() else 0
    return total if named and found.issuperset(ids) else None


def use_line(run: Path, attempts: Iterable[budget.Spent] | None = None) -> str:
    """How much of the GPU and the cores the run made use of, and what to ask for instead; '' where nothing is known."""
    if attempts is None:
        attempts = budget.spent(RunDir(run).read_attempts(), time.time())
    told = [one for one in attempts if one.cpu_s is not None and one.used_s > 0]
    try:
        rows = read_rows(run / "metrics.jsonl", run, lambda row: is_number(row.get("gpu_util")))
    except OSError:
        rows = []
    gpu = sum(min(max(row["gpu_util"], 0), 100) for row in rows) / len(rows) if rows else None
    parts, advice = [], []
    if gpu is not None:
        parts.append(f"{gpu:.0f} % of the GPU")
        if gpu < 100 * LITTLE:
            advice.append("a larger --batch, or fewer --gpus")
    if told:
        cores, cpus = sum(one.cpu_s or 0 for one in told) / sum(one.used_s for one in told), told[-1].cpus
        parts.append(f"{cores:.1f} of {cpus} cores")
        ranks = max(told[-1].gpus, 1)
        enough = max(math.ceil(1.25 * cores / ranks), 1)  # --cpus counts per GPU
        if told[-1].asked_s is not None and cores < LITTLE * cpus and enough * ranks < cpus:
            advice.append(f"--cpus {enough}")
    return f"used {' and '.join(parts)}{': ask for less: ' if advice else ''}{'; '.join(advice)}" if parts else ""


# --- several ----------------------------------------------------------------------------------------------------------
def together(name: str, some: Collection[Usage]) -> Usage:
    """The sum of several."""
    asked = [one.asked for one in some if one.asked is not None]
    return Usage(
        name=name,
        user=next(iter({one.user for one in some}), "") if len({one.user for one in some}) == 1 else "",
        runs=len(some),
        attempts=sum(one.attempts for one in some),
        asked=round(sum(asked), 4) if asked else None,
        used=round(sum(one.used for one in some), 4),
        lost=round(sum(one.lost for one in some), 4),
        queued=round(sum(one.queued for one in some), 4),
    )


def sweeps_among(names: Iterable[str], runs: Collection[Path]) -> list[tuple[Path, list[Path]]]:
    """(folder, its points) of the sweeps whose points are all among these runs."""
    folders = {find_run(name, choose.RUNS) for name in names} or {
        path.parent for path in choose.RUNS.glob("*/sweep.json")
    }
    found = [(folder, [Path(p["run"]) for p in read_sweep(folder) or []]) for folder in sorted(folders)]
    return [(folder, points) for folder, points in found if points and set(points) <= set(runs)]
