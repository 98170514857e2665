"""Inject faults into the train scripts and hold each to its declared outcome.

    python -m tests.faults                # the short form, under 3 minutes on two cores
    python -m tests.faults --long         # all of it
    python -m tests.faults --only EIO --seed 7 --script train_gan.py
    python -m tests.faults --long --write # also puts the rows into the table in benchmarks/RESULTS.md

Exit code 0 when every injection had its declared outcome, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.faults import inject
from tests.faults.attempts import DIFFUSION, MAINS, VAE, Lab, Violation
from tests.faults.report import between_markers, merged_rows, put_between_markers
from tests.faults.table import FAULTS, Fault


def in_parallel(
    tasks: list[tuple[str, Callable[[], int]]],
    jobs: int,
    folder: Path,
    then: Callable[[dict], None] = lambda results: None,
) -> list[dict]:
    """Run (label, task) in forked processes, `jobs` at a time; [{label, made, error, seconds}] in the order of the
    tasks.

    `then` sees {number of the task: result} of all that are over whenever one ends.
    """
    results, waiting, running = {}, list(enumerate(tasks)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            i, (label, task) = waiting.pop(0)
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                _work(task, folder / f"result-{os.getpid()}.json")
            running[pid] = (i, label, time.monotonic())
        pid, status = os.waitpid(-1, 0)
        if pid not in running:
            continue
        i, label, begun = running.pop(pid)
        path = folder / f"result-{pid}.json"
        result = json.loads(path.read_text()) if path.exists() else {"made": 0, "error": f"the worker died ({status})"}
        path.unlink(missing_ok=True)
        results[i] = {"label": label, "seconds": time.monotonic() - begun, **result}
        verdict = "FAILED\n" + result["error"] if result["error"] else "as declared"
        print(f"{label}: {result['made']} injection(s) in {results[i]['seconds']:.0f} s, {verdict}", flush=True)
        then(results)
    return [results[i] for i in range(len(tasks))]


def _work(task: Callable[[], int], path: Path) -> None:
    made, error = 0, ""
    try:
        made = task()
    except Violation as violation:
        error = str(violation)
    except BaseException:
        error = traceback.format_exc()
    path.write_text(json.dumps({"made": made, "error": error}))
    os._exit(0)


def prepare(lab: Lab, faults: list[tuple[Fault, str, int]], jobs: int) -> bool:
    """The undisturbed runs, of one rank and where they are needed of two, and runs killed halfway."""
    scripts = [script for script in MAINS if any(script in (s, VAE if s == DIFFUSION else s) for _, s, _ in faults)]
    two = {script for fault, script, _ in faults if "rank" in fault.name or "tree" in fault.name}

    def one(script: str, ranks: int) -> int:
        before = os.times()
        lab.attempt(lab.reference(script, ranks), script, ranks=ranks)
        if ranks == 1:
            lab.note_work(
                script,
                os.times().children_user - before.children_user + os.times().children_system - before.children_system,
            )
            lab.attempt(lab.halfway(script), script, hook=lambda rank: inject.kill_at(56), expect=(-9,))
        return 0

    def tasks(chosen: list[str]):
        return [
            (f"undisturbed {s} x {r}", lambda s=s, r=r: one(s, r)) for s in chosen for r in (1, 2) if r == 1 or s in two
        ]

    # The VAE first: the packs are made once, and diffusion takes its weights.
    stages = [in_parallel(tasks([s]), 1, lab.folder) for s in (VAE,) if VAE in scripts]
    stages.append(in_parallel(tasks([s for s in scripts if s != VAE]), jobs, lab.folder))
    return not any(result["error"] for stage in stages for result in stage)


HEAD = ["| fault | declared outcome | injections | outcome |", "| --- | --- | ---: | --- |"]


def table_rows(chosen: list[tuple[Fault, str, int]], results: dict[int, dict]) -> list[str]:
    """A row for each fault of which all scripts have a result."""
    rows = []
    for fault in dict.fromkeys(fault for fault, _, _ in chosen):
        of_it = [results.get(i) for i, (other, _, _) in enumerate(chosen) if other is fault]
        if None in of_it:
            continue
        made, wrong = sum(result["made"] for result in of_it), sum(bool(result["error"]) for result in of_it)
        outcome = f"otherwise with {wrong} script(s)" if wrong else "as declared" if made else "cannot be injected here"
        rows.append(f"| {fault.name} | {fault.declared} | {made} | {outcome} |")
    return rows


def write_rows(rows: list[str], long: bool) -> None:
    """Into the table of RESULTS.md; rows of other faults stay."""
    old = between_markers("faults").partition(HEAD[1])[2]
    form = "python -m tests.faults --long" if long else "python -m tests.faults"
    about = (
        f"`{form}` on {os.cpu_count()} cores; each injection is held to its declared outcome (`tests/faults/table.py`)."
    )
    put_between_markers("faults", "## Faults", "\n".join([about, "", *HEAD, *merged_rows(old, rows)]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--long", action="store_true", help="all injections, not the short form")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and places (default 1)")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--script", choices=list(MAINS), help="one train script only")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="how many at a time")
    parser.add_argument("--write", action="store_true", help="put the rows into the table of benchmarks/RESULTS.md")
    parser.add_argument("--keep", action="store_true", help="keep the runs")
    args = parser.parse_args()
    began = time.monotonic()
    chosen = [
        (fault, script, count)
        for fault in FAULTS if args.only.lower() in fault.name.lower()
        for script, count in (fault.long if args.long else fault.short).items() if args.script in (None, script)
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    lab = Lab(folder)
    try:
        if not prepare(lab, chosen, args.jobs):
            return 1

        def task(i: int):
            fault, script, count = chosen[i]
            name = f"{i:03d}"
            return lambda: fault.inject(lab, script, count, random.Random(f"{args.seed} {fault.name} {script}"), name)

        def write(results: dict[int, dict]) -> None:
            if args.write:
                write_rows(table_rows(chosen, results), args.long)

        chosen.sort(key=lambda entry: entry[2])  # what is few first: the rows fill early
        labels = [f"{fault.name}, {script}" for fault, script, _ in chosen]
        results = in_parallel([(label, task(i)) for i, label in enumerate(labels)], args.jobs, folder, write)
    finally:
        if args.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    minutes = (time.monotonic() - began) / 60
    print("\n".join(["", *HEAD, *table_rows(chosen, dict(enumerate(results))), ""]))
    print(f"{sum(result['made'] for result in results)} injections, seed {args.seed}, {minutes:.1f} minutes")
    return int(any(result["error"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
