"""`sbatch jobs/stylegan2.sh` on a real Slurm: stopped, killed, requeued and chained runs equal the undisturbed run, bit
for bit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from private_cluster import Cluster, held, leftovers, ranks
from test_slurm_stops import decisions, starts, verdicts
from tiny import FLAGS, ROOT, TINY, finish, output, start, wait_until, weights_hash

from jobs.run.rundir import RunDir

LENGTH = ("--total-kimg", "0.64")
pytestmark = pytest.mark.timeout(1800)  # seconds on an idle machine, minutes on a busy one
MARGIN = 120  # seconds before the limit at which the training process stops by itself (jobs/run/stopping.py)


@pytest.fixture
def queue(cluster):
    yield cluster
    cluster.cancel_all()


@dataclass(frozen=True)
class Undisturbed:
    """What runs that nobody stops come to, by number of ranks, and how long one takes to begin (seconds)."""

    weights: dict[int, str]
    startup: float


@pytest.fixture(scope="module")
def undisturbed(cluster, tmp_path_factory):
    weights = {}
    for world in (2, 1):
        run, began = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
        processes = start(run, *LENGTH, packs=cluster.dir / "packs", ranks=world, anew=world == 1)
        wait_until(lambda run=run: seen(run) > 0, 600)
        startup = time.monotonic() - began
        assert max(finish(processes, 600)) == 0, output(run)
        weights[world] = weights_hash(run)
    return Undisturbed(weights, startup)


def train(cluster: Cluster, run: Path, *options, flags: tuple = ()) -> str:
    """`sbatch jobs/stylegan2.sh`, with the output where the test finds it; the job's id."""
    run.parent.mkdir(exist_ok=True)
    common = ("-p", "a100", f"--output={run.parent}/%j.log")
    return cluster.sbatch(*common, *options, "jobs/stylegan2.sh", *TINY, *LENGTH, "--run", run, *flags)


def log(run: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(run.parent.glob("*.log")))[-4000:]


def seen(run: Path) -> int:
    """Images in the newest row of metrics.jsonl."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["nimg"]
    return 0


def training(cluster: Cluster, run: Path, attempt: int) -> None:
    """Wait until the given attempt has begun and logged something of its own."""
    cluster.wait(lambda: len(starts(run)) == attempt, f"attempt {attempt}\n{log(run)}", every=0.05)
    before = starts(run)[-1]["nimg"]
    cluster.wait(lambda: seen(run) > before, f"progress of attempt {attempt}\n{log(run)}", every=0.05)


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_time_limits_and_a_killed_rank_change_nothing(queue, undisturbed, tmp_path, nodes):
    """The first limit is moved near while the process still starts, and so it stops by its own clock, for which it is
    made to wait where it was quick; the second stop is Slurm's warning signal. On two nodes a rank is killed as well.
    """
    run = tmp_path / "run"
    job = train(queue, run, "-t", "10", "-N", nodes, "--signal=USR2@1")
    queue.wait(lambda: queue.state(job) == "RUNNING", "the first start")
    near = round(2 * undisturbed.startup + 2)
    queue.move_limit(job, MARGIN + near)
    limit = time.monotonic() + near
    queue.wait(lambda: verdicts(run) or seen(run) > 0, f"the first images\n{log(run)}", every=0.05)
    with held(run):
        time.sleep(max(limit + 1 - time.monotonic(), 0))
    queue.wait(lambda: len(verdicts(run)) == 1, f"the time limit\n{log(run)}")
    queue.run("scontrol", "update", f"jobid={job}", "TimeLimit=60")  # else a slow attempt would meet the near one again
    training(queue, run, 2)
    with held(run):
        queue.run("scancel", "--signal=USR2", job)
    queue.wait(lambda: len(verdicts(run)) == 2, f"the warning\n{log(run)}")
    if nodes == 2:
        training(queue, run, 3)
        os.kill(ranks(run)[1], signal.SIGKILL)
    assert queue.wait_over(job) == "COMPLETED", log(run)
    assert verdicts(run) == ["requeue"] * (nodes + 1) + ["done"], log(run)
    assert all(line["counted"] and "time limit" in line["why"] for line in decisions(run)[:2])
    assert queue.restarts(job) == nodes + 1
    # Each stop kept all that was seen: the next attempt begins where it ended.
    assert [line["nimg"] for line in starts(run)] == [0, *(line["nimg"] for line in decisions(run)[:-1])]
    assert weights_hash(run) == undisturbed.weights[nodes]
    assert not leftovers(run)


def test_the_scripts_of_vae_and_diffusion_go_on_after_a_stop(queue, tmp_path):
    """The diffusion takes its VAE by --vae; what stands before the script's name overrides its header."""
    for name, script, flags in (
        ("vae", "pretrain_vae.py", ()),
        ("diffusion", "train_diffusion.py", ("--vae", tmp_path / "vae")),
    ):
        run = tmp_path / name
        options = ("-p", "cpu", "-t", "30", "--gres=none", "-c", "1", f"--output={tmp_path}/%j.log")
        job = queue.sbatch(*options, f"jobs/{name}.sh", *FLAGS[script], "--total-kimg", "0.4", "--run", run, *flags)
        training(queue, run, 1)
        assert queue.show(job)["Partition"] == "cpu" and queue.show(job)["NumCPUs"] == "1"
        with held(run):
            queue.run("scancel", "--signal=USR2", job)
        assert queue.wait_over(job) == "COMPLETED", log(run)
        assert verdicts(run) == ["requeue", "done"], log(run)
        assert RunDir(run).done() and (run / "weights.safetensors").exists() and not leftovers(run)


def chain_of(run: Path) -> list[str]:
    about = json.loads((run / "jobs.json").read_text())
    return [entry["id"] for entry in about["submitted"]]


def test_where_requeueing_is_forbidden_a_chain_finishes_the_run(queue, undisturbed, tmp_path):
    run = tmp_path / "run"
    job = train(queue, run, "--no-requeue", "-t", "10", "--gres=gpu:a100:1", "--job-name=x y")
    training(queue, run, 1)
    with held(run):
        assert len(chain_of(run)) == 2
        successor = queue.show(chain_of(run)[1])
        queue.run("scancel", "--signal=USR2", job)
    assert successor["JobState"] == "PENDING" and successor["Dependency"].startswith(f"afterany:{job}")
    assert successor["TimeLimit"] == "00:10:00" and successor["TresPerNode"] == "gres:gpu:a100:1"
    training(queue, run, 2)
    queue.wait_over(chain_of(run)[1])
    queue.wait(lambda: not queue.run("squeue", "-h"), "the end of the chain")
    assert verdicts(run) == ["chain", "done"], log(run)
    assert weights_hash(run) == undisturbed.weights[1]
    first, second, third = chain_of(run)
    assert [queue.state(j) for j in (first, second, third)] == ["COMPLETED", "COMPLETED", "CANCELLED"]


def test_a_stop_of_the_first_link_ends_the_whole_chain(queue, tmp_path):
    run = tmp_path / "run"
    job = train(queue, run, "--no-requeue", "-t", "10")
    training(queue, run, 1)
    with held(run):
        queue.run("scancel", job)
    queue.wait(lambda: not queue.run("squeue", "-h"), "an empty queue")
    assert verdicts(run) == ["stopped"], log(run)
    assert len(starts(run)) == 1
    assert RunDir(run).stop_requested()


def test_sbatch_again_resumes_a_stopped_run_and_leaves_a_live_one_alone(queue, undisturbed, tmp_path):
    run = tmp_path / "run"
    first = train(queue, run)
    training(queue, run, 1)
    with held(run):
        second = train(queue, run)
        assert queue.wait_over(second) == "COMPLETED"
        assert f"job {first} works on this run already" in log(run)
        assert RunDir(run).read_status()["state"] == "running"
        (run / "STOP").touch()
    assert queue.wait_over(first) == "COMPLETED"
    third = train(queue, run)
    assert queue.wait_over(third) == "COMPLETED", log(run)
    assert verdicts(run) == ["stopped", "done"]
    assert any(line["event"] == "stop lifted" for line in RunDir(run).read_attempts())
    assert weights_hash(run) == undisturbed.weights[1]


def test_wrong_flags_fail_at_once_with_their_line(queue, tmp_path):
    run = tmp_path / "run"
    typo = train(queue, run, flags=("--bacth", "8"))
    value = train(queue, run, flags=("--resolution", "48"))
    assert queue.wait_over(typo) == queue.wait_over(value) == "FAILED"
    assert queue.show(typo)["ExitCode"] == "2:0" and queue.show(value)["ExitCode"] == "78:0"
    assert "--bacth" in log(run) and "power of two" in log(run)
    assert not run.exists()


def test_from_elsewhere_the_script_says_where_to_submit_it(queue, tmp_path):
    job = queue.sbatch("-p", "a100", f"--output={tmp_path}/log", ROOT / "jobs/stylegan2.sh", cwd=tmp_path)
    assert queue.wait_over(job) == "FAILED"
    assert "not the repository's root" in (tmp_path / "log").read_text()


def test_the_same_flags_are_the_same_run_as_the_training_scripts(queue, tmp_path):
    """Without --run the sbatch script comes to the default name, with the preset said aloud."""
    flags = ["--preset", "quickstart", "--dry-run"]
    expected = json.loads(queue.run(queue.env["PYTHON"], "train_gan.py", *flags))["run"]
    text = queue.run(
        queue.env["PYTHON"],
        "-c",
        "import sys; from jobs.cluster.requeue import begin_sbatch; "
        "print(begin_sbatch('stylegan2', sys.argv[1:])[0].run)",
        *flags[:2],
    )
    assert text == expected


@pytest.mark.long
@pytest.mark.parametrize("nodes", [1, 2])
def test_real_time_limits(queue, tmp_path, nodes):
    """A limit of three minutes for work of four: stops a minute after each start, because the margin is two minutes."""
    run, still = tmp_path / "run", tmp_path / "still"
    flags = ("--total-kimg", "20")
    job = train(queue, run, "-t", "3", "-N", nodes, flags=flags)
    assert queue.wait_over(job, 900) == "COMPLETED", log(run)
    assert verdicts(run).count("requeue") >= 2
    assert max(finish(start(still, *flags, packs=queue.dir / "packs", ranks=nodes), 600)) == 0
    assert weights_hash(run) == weights_hash(still)


@pytest.mark.long
def test_slurms_own_warning_of_the_limit(queue, tmp_path):
    """USR2 as Slurm sends it, at a tick of its half-minute clock; the limit moved after the process read it."""
    run = tmp_path / "run"
    job = train(queue, run, "--signal=USR2@1", "-t", "30", flags=("--total-kimg", "40"))
    training(queue, run, 1)
    queue.move_limit(job, 35)
    queue.wait(lambda: verdicts(run), "the warning", 90)
    assert verdicts(run) == ["requeue"] and "time limit" in decisions(run)[0]["why"]
    time.sleep(1)
    assert queue.state(job) in ("PENDING", "COMPLETING", "CONFIGURING", "RUNNING")
