"""How fast launch.py answers on a login node.

    python -m benchmarks.launch [--quick] [--write]

A table of 200 runs, half of them with a queue's worth of attempts, is what a busy student has after a term.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks import machine
from jobs.cluster.submit import tracked_files
from jobs.config.specs import ROOT
from jobs.run.rundir import RunDir

TITLE = "launch.py on a login node"
RUNS = 200


def copy_toolkit(folder: Path) -> None:
    """`status` shows the runs beside launch.py; this copy has none but ours."""
    for name in tracked_files(ROOT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)


def call(folder: Path, *words: str) -> None:
    """launch.py with these words; the benchmark ends where it fails."""
    done = subprocess.run([sys.executable, "launch.py", *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.launch: launch.py {' '.join(words)}: {done.stderr or done.stdout}")


def make_runs(folder: Path, count: int) -> None:
    """`count` stopped runs in `folder`, as small as a run can be."""
    for i in range(count):
        run = RunDir(folder / "runs" / f"stylegan2-{i:08x}")
        run.create()
        (run.path / "config.json").write_text(json.dumps({"job": "stylegan2", "total_kimg": 25000.0, "batch": 32}))
        run.status(state="stopped", kimg=float(i), total_kimg=25000.0, reason="a person stopped it")
        rows = [json.dumps({"nimg": 1000 * k, "kimg": k, "loss_G": 1.0, "img_per_s": 80.0}) for k in range(300)]
        run.metrics.write_text("\n".join(rows) + "\n")
        for attempt in range(10 if i % 2 else 1):
            run.attempt_start(nimg=1000 * attempt)
            run.attempt_end(nimg=1000 * (attempt + 1), reason="time limit", seconds=14000.0, code=85)


def main() -> None:
    """Time launch.py among many runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="20 runs, 2 repetitions: does it run?")
    parser.add_argument("--rounds", type=int, default=9, help="repetitions (default 9)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    count, rounds = (20, 2) if args.quick else (RUNS, args.rounds)
    text = [machine.command("benchmarks.launch"), machine.header(torch.device("cpu"), ["torch", "submitit"])]
    print("\n\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_toolkit(folder)
        make_runs(folder, count)
        tasks = {
            "launch.py --help": partial(call, folder, "--help"),
            f"launch.py status, {count} runs": partial(call, folder, "status"),
            f"launch.py status --json, {count} runs": partial(call, folder, "status", "--json"),
            "launch.py --partition a100 --job stylegan2 --dry-run": partial(
                call, folder, "--partition", "a100", "--job", "stylegan2", "--data", "phantom", "--dry-run"
            ),
        }
        for task in tasks.values():
            task()
        seconds = machine.in_turn(tasks, rounds, torch.device("cpu"))
    text.append(machine.table(["command", "seconds"], [[f"`{k}`", machine.spread(v)] for k, v in seconds.items()]))
    print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
