"""On a real Slurm: what a user's shell and a site's wrapper do to sbatch, what a successor and a resume take over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from private_cluster import Cluster
from test_launch_slurm import GAN, drain, ids, launch, log, view
from tiny import ROOT, TINY, copy_toolkit

from jobs.run.rundir import RunDir

pytestmark = pytest.mark.timeout(1800)
SHORT = ("--total-kimg", "0.04")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    clone = copy_toolkit(tmp_path_factory.mktemp("clone") / "toolkit")
    if (ROOT / ".venv").exists():  # of a user who made one, as the documents say
        (clone / ".venv").symlink_to((ROOT / ".venv").resolve())
    return clone


@pytest.fixture
def queue(cluster):
    yield cluster
    cluster.run("scontrol", "update", "partitionname=a100", "State=UP", check=False)
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)
    cluster.cancel_all()


@pytest.fixture
def talkative(queue, tmp_path) -> dict[str, str]:
    """A PATH on which a site's own sbatch comes first: it has much to say, and puts Slurm's words elsewhere."""
    real = shutil.which("sbatch", path=queue.env["PATH"])
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.write_text(
        '#!/bin/bash\necho "Welcome! job 12 of yours ends in 2026"\n'
        f'{real} "$@" >&2\ncode=$?\necho 99 jobs, bye\nexit $code\n'
    )
    wrapper.chmod(0o755)
    return {"PATH": f"{tmp_path}/bin:{queue.env['PATH']}"}


def done(cluster: Cluster, run: RunDir) -> None:
    cluster.wait(lambda: run.done(), f"the end of {run.path.name}\n{log(run.path)}", 300)


def test_the_shell_and_the_wrapper_change_nothing_that_was_said(queue, clone, talkative):
    shell = {
        "SBATCH_TIMELIMIT": "7", "SBATCH_EXPORT": "NONE", "SLURM_EXPORT_ENV": "NONE", "SBATCH_NO_REQUEUE": "1",
        "SBATCH_QOS": "", "SBATCH_JOB_NAME": "mine", "SLURM_TIMELIMIT": "1",
    }  # fmt: skip
    words = (*GAN, *SHORT, "--name", "shell")
    dry = launch(queue, clone, *words, "--dry-run", **shell).stdout
    assert "--time 7, from SBATCH_TIMELIMIT" in dry and "SBATCH_EXPORT" in dry
    launch(queue, clone, *words, **shell, **talkative)
    run = RunDir(clone / "runs" / "shell")
    (job,) = ids(run.path)
    about = queue.show(job)
    assert (about["TimeLimit"], about["Requeue"], about["JobName"]) == ("00:07:00", "1", "shell")
    done(queue, run)
    launch(queue, clone, *GAN, *SHORT, "--name", "two", "--sweep", "lr=0.001,0.002", "--throttle", "1", **talkative)
    points = [ids(clone / "runs" / f"two-lr={lr}")[0] for lr in ("0.001", "0.002")]
    queue.wait(lambda: not queue.run("squeue", "-h"), "the points", 300)
    states = [queue.show(point)["JobState"] for point in points]
    assert states == ["COMPLETED"] * 2 and points[0].split("_")[0] == points[1].split("_")[0]


def test_a_successor_and_a_resume_forget_nothing(queue, clone, talkative):
    """A chain that a person began with sbatch, at a site whose sbatch hides the id of the job."""
    asked = {
        "--partition": "a100", "--time": "12", "--cpus-per-task": "2", "--gpus-per-task": "1", "--gres": "none",
        "--mem": "4500M", "--exclude": "n2", "--nice": "5", "--comment": "a b", "--mail-type": "END",
        "--mail-user": "me@here",
    }  # fmt: skip
    run = RunDir(clone / "runs" / "chain")
    flags = [*TINY, "--total-kimg", "40", "--run", run.path]
    words = ["--no-requeue", *(f"{name}={value}" for name, value in asked.items()), "jobs/stylegan2.sh", *flags]
    queue.run("sbatch", *words, cwd=clone, SLURM_EXPORT_ENV="NONE", **talkative)
    queue.wait(lambda: (run.path / "jobs.json").exists() and len(ids(run.path)) == 2, f"the successor\n{log(run.path)}")
    queue.wait(lambda: run.newest_checkpoint() > 0, f"a checkpoint\n{log(run.path)}")
    first, second = (queue.show(job) for job in ids(run.path))
    for name in (
        "Partition TimeLimit Task TresPerTask MinMemoryNode ExcNodeList Nice Comment MailType MailUser TresPerNode "
        "OverSubscribe"
    ).split():
        assert first.get(name) == second.get(name), name
    assert first["TresPerTask"] == "gres:gpu:1" and second["JobState"] == "PENDING"
    about = view(queue, clone, "chain")
    assert about["state"] == "running" and ids(run.path)[1] in about["note"]
    launch(queue, clone, "stop", "chain")
    queue.wait(lambda: not queue.run("squeue", "-h"), "an empty queue", 300)
    drain(queue)
    launch(queue, clone, "resume", "chain", **talkative)
    again = queue.show(ids(run.path)[-1])
    for name in ("Partition", "TimeLimit", "Task", "MinMemoryNode", "ExcNodeList", "Nice", "MailType", "MailUser"):
        assert first[name] == again[name], name
    assert again["TresPerNode"] == "gres:gpu:1" and again["WorkDir"] == str(run.path / "code")


def test_an_sbatch_script_that_gets_no_environment(queue, clone):
    run = RunDir(clone / "runs" / "bare")
    names = ",".join(name for name in queue.env if name in ("BRAIN_PACK_DIR", "OMP_NUM_THREADS", "SLURM_CONF"))
    given = f"{names},XDG_CONFIG_HOME={clone}" + ("" if (clone / ".venv").exists() else ",PYTHON")
    words = ("--parsable", "--partition=a100", "--time=10", f"--export={given}")
    job = queue.run("sbatch", *words, "jobs/stylegan2.sh", *TINY, *SHORT, "--run", run.path, cwd=clone)
    assert queue.wait_over(job) == "COMPLETED" and run.done(), log(run.path)


def test_a_job_whose_snapshot_is_gone_is_decided(queue, clone):
    drain(queue)
    launch(queue, clone, *GAN, *SHORT, "--name", "gone")
    run = RunDir(clone / "runs" / "gone")
    shutil.rmtree(run.path / "code")
    queue.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    assert queue.wait_over(ids(run.path)[0]) == "FAILED"
    about = view(queue, clone, "gone")
    assert about["state"] == "failed" and "launch.py resume gone" in about["note"]
    launch(queue, clone, "resume", "gone")
    done(queue, run)


def test_the_second_partition_after_a_wait(queue, clone):
    drain(queue)
    launch(queue, clone, *GAN, *SHORT, "--partition", "a100,cpu", "--second-after", "0:03", "--name", "patient")
    run = RunDir(clone / "runs" / "patient")
    (job,) = ids(run.path)
    assert queue.show(job)["Partition"] == "a100"
    queue.run("scontrol", "update", "partitionname=a100", "State=DOWN")
    queue.run("scontrol", "update", "nodename=n1,n2", "state=resume")
    done(queue, run)
    assert queue.show(job)["Partition"] == "cpu" and ids(run.path) == [job]
    assert json.loads((run.path / "jobs.json").read_text())["options"]["partition"] == "a100,cpu"
    assert os.path.exists(run.path / "logs" / f"{job}.out")
