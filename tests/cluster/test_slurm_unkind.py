"""Runs on a real Slurm that is unkind: arrays, duplicates, silence, bad nodes; and random sequences of all of it.

What is trained is tests/slurm/train_stand_in.py, so that only launch.py, the batch shell and Slurm take time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from private_cluster import Cluster, leftovers, missing
from tiny import ROOT, TINY, copy_toolkit

from jobs.run.rundir import RunDir
from jobs.run.states import FINAL

pytestmark = pytest.mark.timeout(1800)
GAN = ("--partition", "a100", "--job", "stylegan2", *TINY, "--total-kimg", "400")
LONG_S = float(os.environ.get("BRAIN_SOAK_SECONDS", "600"))  # of the random sequences


@pytest.fixture(scope="module")
def lab():
    """A cluster that kills after five seconds, for tests that let it go wrong."""
    if lack := missing():
        pytest.skip(f"no Slurm for the tests: {lack}")
    cluster = Cluster(LAB_KILLWAIT="5")
    try:
        cluster.up()
        yield cluster
    finally:
        controller(cluster, signal.SIGCONT)
        cluster.down()


@pytest.fixture
def queue(lab):
    yield lab
    controller(lab, signal.SIGCONT)
    lab.up()
    lab.run("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)
    lab.cancel_all()


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    clone = copy_toolkit(tmp_path_factory.mktemp("clone") / "toolkit")
    shutil.copy(ROOT / "tests/slurm/train_stand_in.py", clone / "train_gan.py")
    return clone


def controller(cluster: Cluster, number: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((cluster.dir / "run/slurmctld.pid").read_text().split()[0]), number)


def launch(cluster: Cluster, clone: Path, *words, code: int | None = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, clone / "launch.py", *map(str, words)],
        env=cluster.env | {"XDG_CONFIG_HOME": str(clone), "COLUMNS": "200"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert code is None or done.returncode == code, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    return done


def state(cluster: Cluster, clone: Path, name: str) -> str:
    return json.loads(launch(cluster, clone, "status", name, "--json").stdout)["runs"][0]["state"]


def ids(run: RunDir) -> list[str]:
    return [job["id"] for job in json.loads((run.path / "jobs.json").read_text())["submitted"]]


def events(run: RunDir, event: str) -> list[dict]:
    return [line for line in run.read_attempts() if line["event"] == event]


def trains(run: RunDir) -> list[str]:
    return [words for words in leftovers(run.path) if "train_gan.py --run" in words]


def saves(run: RunDir) -> bool:
    return run.newest_checkpoint() > 0 and run.read_status().get("state") == "running"


def test_the_last_task_of_an_array_requeues_itself_alone(queue, clone):
    launch(queue, clone, *GAN, "--name", "lrs", "--sweep", "lr=0.001,0.002,0.003")
    runs = [RunDir(clone / "runs" / f"lrs-lr={lr}") for lr in ("0.001", "0.002", "0.003")]
    tasks = [ids(run)[0] for run in runs]
    queue.wait(lambda: all(saves(run) for run in runs), "three points that train")
    launch(queue, clone, "stop", "lrs-lr=0.002")
    queue.wait(lambda: queue.state(tasks[1]) == "COMPLETED", "the end of the second")
    assert queue.show(tasks[2])["JobId"] == tasks[0].split("_")[0]  # the last task has the array's own number
    queue.run("scancel", "--signal=USR2", tasks[2])
    queue.wait(lambda: len(events(runs[2], "start")) == 2, "the second attempt of the last task")
    assert [queue.restarts(task) for task in tasks] == [0, 0, 1]
    assert [len(events(run, "start")) for run in runs] == [1, 1, 2] and not trains(runs[1])
    assert {line["job_id"] for run, task in zip(runs, tasks, strict=True) for line in events(run, "start")} == set(
        tasks
    )
    assert state(queue, clone, "lrs-lr=0.002") == "stopped"
    launch(queue, clone, "stop", "lrs")


def test_a_stop_during_the_start_holds(queue, clone):
    launch(queue, clone, *GAN, "--name", "early")
    run = RunDir(clone / "runs" / "early")
    queue.wait(lambda: trains(run), "a process that imports")
    (run.path / "STOP").write_text("me")  # what `stop` writes, at the one moment that matters
    assert queue.wait_over(ids(run)[0]) == "COMPLETED"
    assert run.stop_requested() and not events(run, "start") and not events(run, "stop lifted")
    assert state(queue, clone, "early") == "stopped"


def test_of_two_jobs_at_once_one_trains(queue, clone):
    queue.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    launch(queue, clone, *GAN, "--name", "twice")
    run = RunDir(clone / "runs" / "twice")
    (first,) = ids(run)
    second = duplicate(queue, run)
    queue.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    queue.wait(lambda: "COMPLETED" in (queue.state(first), queue.state(second)), "one that leaves")
    queue.wait(lambda: saves(run), "one that trains")
    assert sorted([queue.state(first), queue.state(second)]) == ["COMPLETED", "RUNNING"] and len(trains(run)) == 1
    assert not events(run, "decision") and not run.stop_requested() and state(queue, clone, "twice") == "running"


def duplicate(cluster: Cluster, run: RunDir) -> str:
    """A second job on a run, as two launchers queue it that do not see each other."""
    about = json.loads((run.path / "jobs.json").read_text())
    job = cluster.sbatch(run.path / "job.sbatch")
    folder = run.logs / "submitit"
    shutil.copy(folder / f"{about['submitted'][0]['id']}_submitted.pkl", folder / f"{job}_submitted.pkl")
    about["submitted"].append({"id": job, "kind": "main", "time": time.time()})
    (run.path / "jobs.json").write_text(json.dumps(about))
    return job


def test_a_frozen_controller_is_no_sign_of_an_end(queue, clone):
    queue.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    launch(queue, clone, *GAN, "--name", "frozen")
    run = RunDir(clone / "runs" / "frozen")
    controller(queue, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:  # each waits for the answer in vain
            seen = pool.submit(state, queue, clone, "frozen")
            why = pool.submit(launch, queue, clone, "why", "frozen")
            refused = [
                pool.submit(launch, queue, clone, *again, code=75)
                for again in ((*GAN, "--name", "frozen"), ("resume", "frozen"))
            ]
        assert seen.result() == "unknown" and "did not answer" in why.result().stdout
        for text in (future.result().stderr for future in refused):
            assert "nothing queued" in text and "try again" in text
        assert "STOP is written" in launch(queue, clone, "stop", "frozen").stdout
    finally:
        controller(queue, signal.SIGCONT)
    assert len(ids(run)) == 1 and run.stop_requested()
    queue.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    assert queue.wait_over(ids(run)[0]) == "COMPLETED"
    assert not events(run, "start") and state(queue, clone, "frozen") == "stopped"


def test_an_array_of_a_launcher_that_was_killed_is_known_and_runs(queue, clone, tmp_path):
    """Between sbatch and the moment in which its number is written down."""
    queue.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")
    real, wrapper = shutil.which("sbatch", path=queue.env["PATH"]), tmp_path / "sbatch"
    wrapper.write_text(f'#!/bin/bash\n{real} "$@"; [[ $* == *test-only* ]] || {{ kill -9 $PPID; sleep 1; }}\n')
    wrapper.chmod(0o755)
    words = (*GAN, "--name", "lost", "--sweep", "lr=0.001,0.002")
    done = subprocess.run(
        [sys.executable, clone / "launch.py", *words],
        env=queue.env | {"XDG_CONFIG_HOME": str(clone), "PATH": f"{tmp_path}:{queue.env['PATH']}"}, timeout=300,
    )  # fmt: skip
    runs = [RunDir(clone / "runs" / f"lost-lr={lr}") for lr in ("0.001", "0.002")]
    assert done.returncode == -signal.SIGKILL and [ids(run) for run in runs] == [[], []]
    assert "2 points are live" in launch(queue, clone, *words).stdout
    queue.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    queue.wait(lambda: all(saves(run) for run in runs), "two points that train")
    assert [[job.partition("_")[2] for job in ids(run)] for run in runs] == [["0"], ["1"]]
    launch(queue, clone, "stop", "lost")
    queue.wait(lambda: not queue.run("squeue", "-h"), "an empty queue")
    assert [state(queue, clone, run.path.name) for run in runs] == ["stopped"] * 2


def test_a_node_on_which_two_attempts_died_is_left_alone(queue, clone):
    launch(queue, clone, *GAN, "--name", "bad")
    run = RunDir(clone / "runs" / "bad")
    (job,) = ids(run)
    nodes = []
    for attempt in range(3):
        queue.wait(lambda n=attempt: len(events(run, "start")) == n + 1 and trains(run), f"attempt {attempt + 1}")
        nodes.append(queue.show(job)["NodeList"])
        if attempt < 2:
            other = {"n1": "n2", "n2": "n1"}[nodes[0]]
            queue.run("scontrol", "update", f"nodename={other}", "state=drain", "reason=test")  # the same node again
            pid = next(p for p in Path("/proc").glob("[0-9]*") if is_training(p, run))
            os.kill(int(pid.name), signal.SIGKILL)
            queue.wait(lambda n=attempt: len(events(run, "decision")) == n + 1, f"decision {attempt + 1}")
            queue.wait(lambda: queue.state(job) == "PENDING", "the queue")
            if attempt:
                queue.run("scontrol", "update", f"nodename={other}", "state=resume")
    assert nodes[0] == nodes[1] != nodes[2] and queue.show(job)["ExcNodeList"] == nodes[0]
    assert [line["faulty_node"] for line in events(run, "decision")] == nodes[:2]


def is_training(process: Path, run: RunDir) -> bool:
    with contextlib.suppress(OSError):
        words = (process / "cmdline").read_bytes().split(b"\0")
        return str(run.path).encode() in words and any(w.endswith(b"train_gan.py") for w in words[:4])
    return False


# --- random sequences -------------------------------------------------------------------------------------------------
class Chaos:
    """One run, what is done to it at random, and what must hold whenever it rests."""

    def __init__(self, cluster: Cluster, clone: Path, seed: int):
        self.cluster, self.clone, self.random = cluster, clone, random.Random(seed)
        self.run, self.history = RunDir(clone / "runs" / f"chaos{seed}"), []
        self.stopped: bool | None = True  # a person's last wish; None: who wins is open

    def words(self, *words) -> subprocess.CompletedProcess:
        done = launch(self.cluster, self.clone, *words, code=None)
        assert "Traceback" not in done.stderr, done.stderr
        self.history.append((words[0], done.returncode, (done.stdout or done.stderr).strip()[:100]))
        return done

    def live(self) -> list[tuple[str, str]]:
        if not self.run.path.exists():
            return []
        rows = self.cluster.run("squeue", "-h", "-o", "%i %T %Z", check=False).splitlines()
        return [(i, s) for i, s, where in (row.split() for row in rows) if where == str(self.run.path / "code")]

    def command(self, *words) -> None:
        self.history.append((*words, self.cluster.run(*words, check=False)[:80]))

    # what is done
    def launch(self) -> None:
        if self.words(*GAN, "--name", self.run.path.name, "--max-restarts", "500").returncode == 0:
            self.stopped = False if not self.run.stop_requested() else self.stopped

    def resume(self) -> None:
        if self.run.path.exists() and self.words("resume", self.run.path.name).returncode == 0:
            self.stopped = False if not self.run.stop_requested() else self.stopped

    def stop(self) -> None:
        if self.run.path.exists():
            done = self.words("stop", self.run.path.name, *self.random.choice([(), (), ("--now",)]))
            self.stopped = True if "not running" not in done.stdout else self.stopped

    def scancel(self) -> None:
        for job, how in self.live():
            self.command("scancel", job)
            # Slurm tells of a cancelled job that waited nothing that stops the other one.
            self.stopped = True if len(self.live()) < 2 and how == "RUNNING" else None

    def limit(self) -> None:
        for job, how in self.live():
            if how == "RUNNING":
                self.command("scancel", "--signal=USR2", job)

    def requeue(self) -> None:
        for job, how in self.live():
            if how == "RUNNING":
                self.command("scontrol", "requeue", job)

    def hold(self) -> None:
        for job, _ in self.live():
            self.command("scontrol", "hold", job)

    def duplicate(self) -> None:
        if self.run.path.exists() and self.live():
            self.history.append(("duplicate", duplicate(self.cluster, self.run)))

    def freeze(self) -> None:
        self.history.append(("freeze",))
        controller(self.cluster, signal.SIGSTOP)
        try:
            self.random.choice([self.stop, self.launch, lambda: time.sleep(3)])()
        finally:
            controller(self.cluster, signal.SIGCONT)

    def kill_node(self) -> None:
        node = self.random.choice(["n1", "n2"])
        self.history.append(("crash", node))
        self.cluster.crash(node)
        time.sleep(self.random.choice([0, 2]))
        self.cluster.up()  # Slurm finds that the node's job is gone, and puts it back into the queue

    ACTIONS = (launch, launch, resume, stop, stop, scancel, limit, limit, requeue, hold, duplicate, freeze, kill_node)

    # what must hold
    def rests(self) -> bool:
        """Whether nothing is about to change: no job begins, ends or waits for a moment that comes soon."""
        jobs = self.live()
        running = [job for job, how in jobs if how == "RUNNING"]
        if len(jobs) > len(running) or len(running) > 1:
            return False
        if running and self.stopped:  # about to leave; an attempt that begins has the status of the one before
            return False
        about = self.run.read_status()
        return (
            about.get("state") == "running" and time.time() - about["updated"] < 15 if running else not trains(self.run)
        )

    def rest(self) -> None:
        for job, _ in self.live():
            self.cluster.run("scontrol", "release", job, check=False)
        self.cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)
        end = time.monotonic() + 180
        while not self.rests():
            assert len(trains(self.run)) <= 1 or self.tell("two processes at once: the second waits for the lock"), ""
            assert time.monotonic() < end, self.tell("no rest")
            time.sleep(0.5)
        if not self.run.path.exists():
            return
        jobs, shown = self.live(), state(self.cluster, self.clone, self.run.path.name)
        if jobs == self.live():
            assert bool(jobs) == (shown not in FINAL) or not jobs, self.tell(f"{jobs} and {shown}")
            assert shown not in ("unknown", "hanging"), self.tell(shown)
        if self.stopped:
            assert not jobs and not trains(self.run), self.tell(f"stopped, and {jobs}")
        if self.stopped is False:
            assert jobs or shown in ("done", "stuck"), self.tell(f"a person wants it, and it is {shown}")
        self.adds_up()

    def adds_up(self) -> None:
        starts, decided = events(self.run, "start"), events(self.run, "decision")
        seen = [line["nimg"] for line in starts]
        assert seen == sorted(seen), self.tell(f"images were lost: {seen}")
        assert [line["attempt"] for line in starts] == [*range(1, len(starts) + 1)], self.tell("attempts")
        counted = [line for line in decided if line["counted"]]
        assert all(line["decision"] in ("requeue", "chain") and line["code"] not in (0, 1, 2) for line in counted)
        assert len(counted) <= len(starts), self.tell("more restarts were counted than there were attempts")

    def tell(self, text: str) -> str:
        log = "".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.run.logs.glob("*.out"))[-2:])
        lines = "\n".join(map(str, self.run.read_attempts()[-12:]))
        return f"{text}\n{self.run.path.name}: " + "\n".join(map(str, self.history[-25:])) + f"\n{lines}\n{log}"


@pytest.mark.long
def test_random_sequences_leave_every_run_in_order(queue, clone):
    end, seed = time.monotonic() + LONG_S, int(time.time()) % 100000
    while time.monotonic() < end:
        chaos = Chaos(queue, clone, seed)
        for _ in range(8):
            chaos.random.choice(Chaos.ACTIONS)(chaos)
            if chaos.random.random() < 0.5:
                time.sleep(chaos.random.choice([0, 0.5, 2, 4]))
                continue
            chaos.rest()
            if time.monotonic() > end:
                break
        chaos.rest()
        queue.cancel_all()
        seed += 1
