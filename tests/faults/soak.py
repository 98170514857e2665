"""Half an hour of start, kill and resume on the private Slurm of the tests, with eight runs at once.

    python -m tests.faults.soak                          # 30 minutes, 8 runs
    python -m tests.faults.soak --minutes 5 --write      # the figures go into benchmarks/RESULTS.md

What must hold: no run ever loses a whole checkpoint, rows of metrics.jsonl rise, no traceback without a plain line, no
process outlives its job, and memory, file descriptors and the files of a run do not grow from the second third of the
time to the last. Exit code 0 when all of it does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from private_cluster import Cluster, leftovers, missing  # noqa: E402
from tiny import FLAGS  # noqa: E402

from jobs.run.rundir import RunDir  # noqa: E402
from jobs.view.metrics import read_metrics  # noqa: E402
from tests.faults.report import newest_whole, put_between_markers  # noqa: E402

SMALL = "--data phantom:24 --total-kimg 100000 --log-kimg 0.08 --sample-kimg 4 --checkpoint-kimg 0.04".split()
SCRIPTS = [
    ("stylegan2", [*FLAGS["train_gan.py"], *SMALL]),
    ("vae", [*FLAGS["pretrain_vae.py"], *SMALL]),
    ("diffusion", [*FLAGS["train_diffusion.py"], *SMALL, "--space", "pixel", "--widths", "8,8,8", "--attention", "8"]),
]
GROWTH = 1.25  # of a median from the second third of the time to the last that still counts as none
PATIENCE = 0.9  # chance that a run is left alone which has logged nothing since it was last hurt
SETTLING = 20.0  # seconds between two looks at the runs


@dataclass
class Run:
    """One run under soak, and what was seen of it."""

    path: Path
    job: str
    flags: list[str]
    id: str = ""
    newest: int = -1
    logged: int = 0  # bytes of metrics.jsonl when it was last hurt
    samples: list[dict] = field(default_factory=list)  # time, rss (MB), fds, threads, files, kept (MB)

    def pid(self) -> int | None:
        """The training process, while it runs."""
        status = RunDir(self.path).read_status()
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            pid = int(status["pid"])
            if str(self.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        return None

    def look(self, now: float) -> None:
        """Sizes of the process and of what a run keeps whatever its length: checkpoints, weights, snapshots."""
        kept = [p for p in self.path.rglob("*") if p.is_file() and p.suffix in (".pt", ".json", ".safetensors")]
        about = {"time": now, "files": len(kept), "kept": sum(_size(p) for p in kept) / 1e6}
        about["torn"] = sum(1 for p in self.path.rglob(".*.tmp.*"))
        about["all"] = sum(_size(p) for p in self.path.rglob("*")) / 1e6
        if pid := self.pid():
            with contextlib.suppress(OSError, IndexError, ValueError):
                status = Path(f"/proc/{pid}/status").read_text()
                words = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                about |= {"rss": int(words["VmRSS"].split()[0]) / 1e3, "threads": int(words["Threads"])}
                about["fds"] = len(os.listdir(f"/proc/{pid}/fd"))
                about["age"] = time.time() - os.stat(f"/proc/{pid}").st_mtime
        self.samples.append(about)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


class Soak:
    def __init__(self, cluster: Cluster, count: int, seed: int):
        self.cluster, self.rng, self.done, self.problems = cluster, random.Random(seed), Counter(), []
        self.folder = cluster.dir / "soak"
        self.folder.mkdir()
        self.runs = [Run(self.folder / f"run{i}", *SCRIPTS[i % 3]) for i in range(count)]

    def submit(self, run: Run) -> None:
        """A person types sbatch: starts the run, or resumes it."""
        self.done["sbatch"] += 1
        run.id = self.cluster.sbatch(
            "-p",
            "a100",
            "-t",
            "60",
            "--gres=gpu:1",
            "-c",
            "1",
            f"--output={self.folder}/{run.path.name}.%j.log",
            "--open-mode=append",
            f"jobs/{run.job}.sh",
            *run.flags,
            "--run",
            run.path,
        )

    def hurt(self, run: Run) -> None:
        """One fault or one person's act, drawn from the seed."""
        logged = _size(run.path / "metrics.jsonl")
        if not logged or (logged <= run.logged and self.rng.random() < PATIENCE):
            return  # else a slow machine would see nothing but imports
        run.logged = logged
        pid = run.pid()
        kind = self.rng.choice(("kill", "kill", "term", "usr1", "requeue", "limit", "stop", "cancel"))
        if kind in ("kill", "term", "usr1"):
            if pid is None:
                return
            number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}[kind]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        elif kind == "requeue":
            self.cluster.run("scontrol", "requeue", run.id, check=False)
        elif kind == "limit":
            self.cluster.run("scontrol", "update", f"jobid={run.id}", "EndTime=now+125", check=False)
        elif kind == "stop":
            (run.path / "STOP").touch()
        else:
            self.cluster.run("scancel", run.id, check=False)
        self.done[kind] += 1

    def check(self, run: Run) -> None:
        """Never an older state than a whole checkpoint that was there before."""
        newest = newest_whole(run.path)
        if newest < run.newest:
            time.sleep(1)  # seen between two files of a pruning
            newest = newest_whole(run.path)
        if newest < run.newest:
            self.problems.append(f"{run.path.name}: the newest whole checkpoint went from {run.newest} to {newest}")
        run.newest = max(newest, run.newest)

    def go(self, minutes: float) -> None:
        for run in self.runs:
            self.submit(run)
        begun, looked = time.monotonic(), 0.0
        while (now := time.monotonic() - begun) < 60 * minutes:
            time.sleep(self.rng.uniform(1, 5))
            active = set(self.cluster.run("squeue", "-h", "-o", "%i").split())
            for run in self.runs:
                if run.id not in active:  # stopped by a person, or too often killed before a new image
                    self.submit(run)
            self.hurt(self.rng.choice(self.runs))
            if now - looked > SETTLING:
                looked = now
                for run in self.runs:
                    run.look(now)
                    self.check(run)

    def finish(self) -> None:
        """Stop everything as a person does, then look at what is left."""
        for run in self.runs:
            (run.path / "STOP").touch()
        with contextlib.suppress(AssertionError):
            self.cluster.wait(lambda: not self.cluster.run("squeue", "-h"), "an empty queue", 300)
        self.cluster.cancel_all()
        time.sleep(5)
        for run in self.runs:
            self.check(run)
            if found := leftovers(run.path):
                self.problems.append(f"{run.path.name}: processes outlived their job: {found}")
            nimg = [row["nimg"] for row in read_metrics(run.path / "metrics.jsonl")]
            if nimg != sorted(set(nimg)):
                self.problems.append(f"{run.path.name}: rows of metrics.jsonl do not rise")
            if run.newest < 0:
                self.problems.append(f"{run.path.name}: never saved a checkpoint")
        for log in self.folder.glob("*.log"):
            before, found, _ = log.read_text(errors="replace").partition("Traceback (most recent call last)")
            if found and not any(line.startswith("error: ") for line in before.splitlines()[-3:]):
                self.problems.append(f"{log.name}: a traceback without a plain first line")

    def figures(self, minutes: float) -> list[tuple[str, float, float]]:
        """(what, median in the second third, median in the last third) over all runs; growth is a problem."""
        found = []
        names = {"rss": "memory of a process, MB", "fds": "file descriptors of a "
                                                          "process", "threads": "threads of a process",
                 "kept": "checkpoints, weights and state of a "
                         "run, MB", "files": "such files of a run", "torn": "unfinished files of a run"}  # fmt: skip
        for name, text in names.items():
            thirds: list[list[float]] = [[], [], []]
            for run in self.runs:
                for sample in run.samples:
                    # A process of a few seconds is still importing; its size says nothing.
                    if name in sample and (name not in ("rss", "fds", "threads") or sample.get("age", 0) > 15):
                        thirds[min(int(3 * sample["time"] / (60 * minutes)), 2)].append(sample[name])
            if not thirds[1] or not thirds[2]:
                continue
            middle, last = statistics.median(thirds[1]), statistics.median(thirds[2])
            if last > GROWTH * middle + 2:
                self.problems.append(f"{text} grew from {middle:.1f} to {last:.1f}")
            found.append((text, middle, last))
        return found


def markdown(soak: Soak, figures: list[tuple[str, float, float]], minutes: float) -> str:
    attempts = [sum(line.get("event") == "start" for line in RunDir(run.path).read_attempts()) for run in soak.runs]
    logs = [run.samples[-1]["all"] - run.samples[-1]["kept"] for run in soak.runs if run.samples]
    acts = ", ".join(f"{name} {count}" for name, count in sorted(soak.done.items()))
    lines = [f"`python -m tests.faults.soak --minutes {minutes:g}`: {len(soak.runs)} runs at once on {os.cpu_count()} "
             f"cores, {acts}; "
             f"{sum(attempts)} attempts began to train, {min(attempts)} to {max(attempts)} per run.", "",
             "| median over all runs | second third of the time | last third |", "| --- | ---: | ---: |"]  # fmt: skip
    lines += [f"| {text} | {middle:.1f} | {last:.1f} |" for text, middle, last in figures]
    lines += ["", "Rows, TensorBoard files and pictures, which grow with the length of a run: "
                  f"{max(logs, default=0):.1f} MB at most at the end. "
              + ("Problems: " + "; ".join(soak.problems) if soak.problems else "No problem was found.")]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the figures into benchmarks/RESULTS.md")
    args = parser.parse_args()
    if lack := missing():
        print(f"no Slurm for the soak: {lack}", file=sys.stderr)
        return 2
    cluster = Cluster(LAB_GPUS="8")
    try:
        cluster.up()
        soak = Soak(cluster, args.runs, args.seed)
        soak.go(args.minutes)
        soak.finish()
        text = markdown(soak, soak.figures(args.minutes), args.minutes)
    finally:
        cluster.down()
    print(text)
    if args.write:
        put_between_markers("soak", "## Soak", text)
    return int(bool(soak.problems))


if __name__ == "__main__":
    sys.exit(main())
