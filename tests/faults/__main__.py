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


def in_parallel(tasks: list[tuple[str, Callable[[], int]]], jobs: int, folder: Path) -> list[dict]:
    """Run (label, task) in forked processes, `jobs` at a time; [{label, made, error, seconds}] in the order of the tasks."""
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
        began = time.monotonic()
        lab.attempt(lab.reference(script, ranks), script, ranks=ranks)
        if ranks == 1:
            lab.note_seconds(script, time.monotonic() - began)
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


def table_rows(rows: list[tuple[Fault, int, list[str]]]) -> list[str]:
    lines = []
    for fault, made, errors in rows:
        outcome = f"{len(errors)} script(s) otherwise" if errors else "as declared" if made else "not injected here"
        lines.append(f"| {fault.name} | {fault.declared} | {made} | {outcome} |")
    return lines


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

        labels = [f"{fault.name}, {script}" for fault, script, _ in chosen]
        results = in_parallel([(label, task(i)) for i, label in enumerate(labels)], args.jobs, folder)
    finally:
        if args.keep:
            print(f"kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for fault in dict.fromkeys(fault for fault, _, _ in chosen):
        of_it = [result for (f, _, _), result in zip(chosen, results, strict=True) if f is fault]
        rows.append((fault, sum(r["made"] for r in of_it), [r["error"] for r in of_it if r["error"]]))
    lines, minutes = table_rows(rows), (time.monotonic() - began) / 60
    head = ["| fault | declared outcome | injections | outcome |", "| --- | --- | ---: | --- |"]
    print("\n".join(["", *head, *lines, ""]))
    print(f"{sum(made for _, made, _ in rows)} injections, seed {args.seed}, {minutes:.1f} minutes")
    if args.write:
        old = between_markers("faults").partition(head[1])[2]
        form = "python -m tests.faults --long" if args.long else "python -m tests.faults"
        about = f"`{form}` on {os.cpu_count()} cores; each injection is held to the declared outcome (`tests/faults/table.py`)."
        put_between_markers("faults", "## Faults", "\n".join([about, "", *head, *merged_rows(old, lines)]))
    return int(any(errors for _, _, errors in rows))


if __name__ == "__main__":
    sys.exit(main())
