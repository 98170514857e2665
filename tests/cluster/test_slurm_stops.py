"""Who stops a job, and what becomes of the run: on a real Slurm, with a process that only counts
(tests/slurm/counter.py)."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from private_cluster import Cluster, leftovers
from tiny import ROOT

from data.files import process_start
from jobs.run.rundir import RunDir

TOTAL = 100000  # more than a test waits for


@pytest.fixture
def queue(cluster):
    """The cluster; what the test leaves in its queue is cancelled."""
    yield cluster
    cluster.cancel_all()


def script(run: Path, *words: str, header: str = "") -> str:
    """A batch script as launch.py writes it: set-up lines, env.sh, srun."""
    return (
        f"#!/bin/bash\n{header}\nRUN={run}\ncd {ROOT}\nsource jobs/env.sh\n"
        f'srun --kill-on-bad-exit=1 "$PYTHON" -u tests/slurm/counter.py "$RUN" {" ".join(map(str, words))}\n'
    )


def submit(
    cluster: Cluster, run: Path, *words, options: tuple = (), header: str = "", kind: str = "main", **about
) -> str:
    """Queue the counter for a run, with jobs.json as launch.py leaves it."""
    RunDir(run).create()
    path = run / "job.sbatch"
    path.write_text(script(run, *words, header=header))
    out = f"--output={run}/logs/%j.out"
    job = cluster.sbatch("--requeue", "--open-mode=append", "-p", "a100", out, *options, path)
    entry = {"id": job, "kind": kind, "time": time.time()}
    (run / "jobs.json").write_text(json.dumps({"job": "stylegan2", "argv": [], "submitted": [entry], **about}))
    return job


def decisions(run: Path) -> list[dict]:
    return [line for line in RunDir(run).read_attempts() if line.get("event") == "decision"]


def verdicts(run: Path) -> list[str]:
    return [line["decision"] for line in decisions(run)]


def starts(run: Path) -> list[dict]:
    return [line for line in RunDir(run).read_attempts() if line.get("event") == "start"]


def counting(cluster: Cluster, run: Path, attempt: int = 1) -> None:
    """Wait until the given attempt has begun, and counted an image or two of its own."""

    def begun() -> bool:
        assert "failed" not in verdicts(run), log(run)
        return len(starts(run)) == attempt and counted(run) > starts(run)[-1]["nimg"] + 1

    cluster.wait(begun, f"attempt {attempt}\n{log(run)}")


def counted(run: Path) -> int:
    return int((run / "counted").read_text()) if (run / "counted").exists() else 0


def log(run: Path) -> str:
    return "".join(path.read_text() for path in sorted((run / "logs").glob("*.out")))


def test_requeued_by_hand_goes_on_from_its_checkpoint(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL)
    counting(queue, run)
    queue.run("scontrol", "requeue", job)
    counting(queue, run, 2)
    assert verdicts(run) == ["requeue"], log(run)
    assert not decisions(run)[0]["counted"]
    assert starts(run)[1]["nimg"] == RunDir(run).read_attempts()[1]["nimg"] > 0
    assert queue.restarts(job) == 1


def test_scancel_saves_and_ends_the_run(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL)
    counting(queue, run)
    queue.run("scancel", job)
    assert queue.wait_over(job) == "CANCELLED"
    queue.wait(lambda: verdicts(run), "the decision")
    assert verdicts(run) == ["stopped"], log(run)
    assert "scancel" in decisions(run)[0]["why"]
    assert RunDir(run).newest_checkpoint() > 0
    assert RunDir(run).read_status()["state"] == "stopped"
    assert queue.restarts(job) == 0
    assert not leftovers(run)


@pytest.mark.parametrize("before_start", [False, True])
def test_stop_file_ends_the_run(queue, tmp_path, before_start):
    run = tmp_path / "run"
    RunDir(run).create()
    if before_start:  # a person stopped the run while its job was pending
        (run / "STOP").touch()
    job = submit(queue, run, TOTAL)
    if not before_start:
        counting(queue, run)
        (run / "STOP").touch()
    assert queue.wait_over(job) == "COMPLETED"
    assert verdicts(run) == ["stopped"], log(run)
    assert (run / "STOP").exists()
    assert len(starts(run)) == (0 if before_start else 1)


def test_time_limit_requeues_within_the_budget(queue, tmp_path):
    """The warning of the limit, sent by hand: the attempt counts, and when the budget is gone the run is not
    requeued."""
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL, max_restarts=1)
    counting(queue, run)
    queue.run("scancel", "--signal=USR2", job)
    counting(queue, run, 2)
    queue.run("scancel", "--signal=USR2", job)
    assert queue.wait_over(job) == "FAILED"
    assert verdicts(run) == ["requeue", "budget"], log(run)
    status = RunDir(run).read_status()
    assert status["state"] == "failed" and "--max-restarts" in status["reason"]


def test_no_progress_is_stuck_not_endless(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL, "--idle")
    queue.wait_over(job)
    assert verdicts(run) == ["requeue", "stuck"], log(run)
    assert RunDir(run).read_status()["state"] == "stuck"


def test_finished_run_is_not_requeued_and_a_requeue_of_it_does_nothing(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, 3)
    assert queue.wait_over(job) == "COMPLETED"
    assert verdicts(run) == ["done"], log(run)
    queue.run("scontrol", "requeue", job)
    queue.wait(lambda: len(verdicts(run)) == 2, "the second end")
    assert verdicts(run) == ["done", "done"], log(run)
    assert len(starts(run)) == 1
    assert "nothing to do" in log(run)


@pytest.mark.parametrize("code", [1, 77])
def test_failures_are_not_requeued(queue, tmp_path, code):
    run = tmp_path / "run"
    RunDir(run).create()
    text = script(run).replace('tests/slurm/counter.py "$RUN"', f'-c "import sys; sys.exit({code})"')
    (run / "job.sbatch").write_text(text)
    job = queue.sbatch("--requeue", f"--output={run}/logs/%j.out", run / "job.sbatch")
    assert queue.wait_over(job) == "FAILED"
    assert verdicts(run) == ["failed"], log(run)
    assert queue.show(job)["ExitCode"] == f"{code}:0"
    assert RunDir(run).read_status()["state"] == "failed"


def test_a_killed_task_is_continued(queue, tmp_path):
    run = tmp_path / "run"
    submit(queue, run, TOTAL, "0.05", "--deaf")
    counting(queue, run)
    queue.wait(lambda: RunDir(run).newest_checkpoint() > 3, "some images")
    os.kill(starts(run)[0]["pid"], signal.SIGKILL)
    counting(queue, run, 2)
    assert verdicts(run) == ["requeue"], log(run)
    assert decisions(run)[0]["code"] == 137 and decisions(run)[0]["counted"]
    assert starts(run)[1]["nimg"] > 3


def preempt(cluster: Cluster) -> str:
    """Take both nodes away from the pre-emptible partition for some seconds."""
    return cluster.sbatch("-p", "a100-test", "-w", "n1", "--exclusive", "--output=/dev/null", "--wrap", "sleep 4")


def test_pre_emption_with_the_users_signal(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL, options=("-w", "n1", "--signal=USR2@180"))
    counting(queue, run)
    preempt(queue)
    counting(queue, run, 2)
    assert verdicts(run) == ["requeue"], log(run)
    assert "pre-empted" in decisions(run)[0]["why"] and not decisions(run)[0]["counted"]
    assert starts(run)[1]["nimg"] > 0
    assert queue.restarts(job) == 1
    # The pre-emption of this attempt is over: what ends the next one is judged by itself.
    queue.run("scancel", job)
    queue.wait(lambda: len(verdicts(run)) == 2, "the second decision")
    assert verdicts(run)[1] == "stopped", log(run)


@pytest.mark.parametrize("grace", ["0", pytest.param("10", marks=pytest.mark.long)])
def test_pre_emption_without_the_users_signal(tmp_path, grace, request):
    request.getfixturevalue("cluster")  # the same reasons to skip or fail
    cluster = Cluster(LAB_PREEMPT_SIGNAL="no", LAB_GRACE=grace)
    try:
        cluster.up()
        run = tmp_path / "run"
        submit(cluster, run, TOTAL, options=("-w", "n1", "--signal=USR2@180"))
        counting(cluster, run)
        preempt(cluster)
        counting(cluster, run, 2)
        assert verdicts(run) == ["requeue"], log(run)
        assert not decisions(run)[0]["counted"]
        assert starts(run)[1]["nimg"] > 0
    finally:
        cluster.down()


def test_a_crashed_node_is_continued_by_slurm(queue, tmp_path):
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL, "0.05", "--deaf")
    counting(queue, run)
    queue.wait(lambda: RunDir(run).newest_checkpoint() > 3, "some images")
    node = queue.show(job)["NodeList"]
    queue.crash(node)
    queue.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # found out by itself after 30 s
    try:
        counting(queue, run, 2)
        assert verdicts(run) == []  # nobody lived to decide; Slurm requeued it
        assert starts(run)[1]["nimg"] > 3
        assert queue.restarts(job) == 1
    finally:
        queue.cancel_all()
        queue.run("scontrol", "update", f"nodename={node}", "state=resume")
        queue.up()


def test_a_killed_slurmd_leaves_no_second_writer(queue, tmp_path):
    """The node is dead for Slurm, and the job starts on the other one; its processes live on, and must give way to
    it."""
    run = tmp_path / "run"
    job = submit(queue, run, TOTAL)
    counting(queue, run)
    node, orphan = queue.show(job)["NodeList"], starts(run)[0]["pid"]
    slurmd = int((queue.dir / "run" / f"slurmd.{node}.pid").read_text().split()[0])
    os.kill(slurmd, signal.SIGKILL)
    queue.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")  # found out by itself after 30 s
    try:
        counting(queue, run, 2)
        assert not process_start(orphan) and starts(run)[1]["node"] != node, log(run)
        assert queue.restarts(job) == 1 and RunDir(run).read_status()["state"] == "running"
        assert verdicts(run) in ([], ["requeue"]) and not any(line["counted"] for line in decisions(run)), log(run)
    finally:
        queue.cancel_all()
        queue.run("scontrol", "update", f"nodename={node}", "state=resume")
        queue.up()
