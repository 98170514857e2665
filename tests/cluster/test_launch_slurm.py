"""launch.py on a real Slurm: queue once, go through stops to the end, stop, resume, sweep, wait for another run."""

from __future__ import annotations

import getpass
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from private_cluster import Cluster, held, leftovers, missing_accounts
from tiny import COMMON, TINY, copy_toolkit, finish, output, start, wait_until, weights_hash

from jobs.run.rundir import RunDir

pytestmark = pytest.mark.timeout(1800)  # seconds on an idle machine, minutes on a busy one
GAN = ("--partition", "a100", "--job", "stylegan2", *TINY)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return copy_toolkit(tmp_path_factory.mktemp("clone") / "toolkit")


@pytest.fixture
def queue(cluster):
    yield cluster
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=resume", check=False)
    cluster.run("scontrol", "update", "partitionname=a100", "MaxTime=1-0", "AllowAccounts=ALL", check=False)
    cluster.cancel_all()


def launch(cluster: Cluster, clone: Path, *words, code: int | None = 0, **env) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, clone / "launch.py", *map(str, words)],
        env=cluster.env | {"XDG_CONFIG_HOME": str(clone), "COLUMNS": "200"} | env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert code is None or done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def view(cluster: Cluster, clone: Path, name: str) -> dict:
    return json.loads(launch(cluster, clone, "status", name, "--json").stdout)["runs"][0]


def ids(run: Path) -> list[str]:
    return [job["id"] for job in json.loads((run / "jobs.json").read_text())["submitted"]]


def log(run: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in sorted(run.glob("logs/*.out")) if path.exists())[-4000:]


def wait_done(cluster: Cluster, run: RunDir) -> None:
    """Wait until the run is done; it fails at once if the run ends otherwise."""

    def done() -> bool:
        assert run.read_status().get("state") not in ("failed", "stuck", "stopped", "diverged", "waiting"), log(
            run.path
        )
        return run.done()

    cluster.wait(done, f"{run.path.name}\n{log(run.path)}")


def drain(cluster: Cluster) -> None:
    """Let nothing start: what is queued from now on stays pending."""
    cluster.run("scontrol", "update", "nodename=n1,n2", "state=drain", "reason=test")


def test_queued_run_goes_through_two_stops_to_the_weights_of_an_undisturbed_one(queue, clone, tmp_path):
    flags = ("--total-kimg", "0.48")
    undisturbed = tmp_path / "undisturbed"
    assert finish(start(undisturbed, *flags, packs=queue.dir / "packs")) == [0], output(undisturbed)
    shown = launch(queue, clone, *GAN, *flags, "--name", "through").stdout
    run = RunDir(clone / "runs" / "through")
    (job,) = ids(run.path)
    assert f"job {job}" in shown and "logs through -f" in shown
    for attempt in (1, 2):
        wait_until(lambda n=attempt: sum(x["event"] == "start" for x in run.read_attempts()) == n)
        before = run.newest_checkpoint()
        wait_until(lambda b=before: run.newest_checkpoint() > b)
        with held(run.path):
            queue.run("scancel", "--signal=USR2", job)  # what Slurm sends before the time limit
        wait_until(lambda n=attempt: sum(x["event"] == "decision" for x in run.read_attempts()) == n)
    assert queue.wait_over(job) == "COMPLETED", log(run.path)
    assert run.done() and queue.restarts(job) == 2, log(run.path)
    assert weights_hash(run.path) == weights_hash(undisturbed)
    assert not leftovers(run.path)
    about = view(queue, clone, "through")
    assert (about["state"], about["restarts"], about["kimg"]) == ("done", 2, 0.48)
    assert "is done" in launch(queue, clone, *GAN, *flags, "--name", "through").stdout and ids(run.path) == [job]
    # submitit has noted nothing: no result that would call a requeue the end, no state of its own.
    kept = [path.name for path in (run.path / "logs" / "submitit").iterdir()]
    assert f"{job}_submitted.pkl" in kept and sum(not name.endswith(".sh") for name in kept) == 1, kept
    # One log over all attempts, and the text that was queued is the text that --dry-run shows.
    assert (run.path / "logs" / f"{job}.out").read_text().count("Stopped at") == 2
    dry = launch(queue, clone, *GAN, *flags, "--name", "through", "--dry-run").stdout
    assert (run.path / "job.sbatch").read_text().strip() in dry


def test_ten_submissions_at_once_queue_one_job(queue, clone):
    drain(queue)
    with ThreadPoolExecutor(10) as pool:
        shown = list(pool.map(lambda _: launch(queue, clone, *GAN, "--name", "ten").stdout, range(10)))
    assert sum("Queued" in text for text in shown) == 1 and sum("queued already" in text for text in shown) == 9
    assert len(queue.run("squeue", "-h").splitlines()) == 1 and len(ids(clone / "runs" / "ten")) == 1
    queue.wait(lambda: "down, drained or reserved" in launch(queue, clone, "why", "ten").stdout, "Slurm's reason")
    # Its record lost, as when the launcher was killed just then: the job is still known by its folder.
    (clone / "runs" / "ten" / "jobs.json").unlink()
    assert "queued already" in launch(queue, clone, *GAN, "--name", "ten").stdout
    assert "taken out of the queue" in launch(queue, clone, "stop", "ten").stdout
    queue.wait(lambda: not queue.run("squeue", "-h"), "an empty queue")
    assert view(queue, clone, "ten")["state"] == "stopped"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--partition", "a10"), "did you mean a100"),
        (("--time", "2-00:00:00"), "--time 1-00:00:00"),
        (("--data", "/nowhere/at/all"), "does not exist"),
        (("--nodes", "3", "--batch", "24"), "a100 has 2"),
        (("--cpus", "33"), "--cpus 32"),
        (("--run", "/dev/shm/run"), "each node has for itself"),
        (("--qos", "nope", "--account", "x y"), ""),
        (("--resolution", "33"), "power of two"),
    ],
)
def test_refused_before_queueing(queue, clone, words, said):
    name = () if "--run" in words else ("--name", "refused" if said else "taken")
    done = launch(queue, clone, *GAN, *name, *words, code=None)
    if said:
        assert done.returncode == 78 and said in done.stdout + done.stderr
        assert not queue.run("squeue", "-h") and not (clone / "runs" / "refused").exists()
    else:  # without accounting Slurm takes any account: what matters is that it stays one word
        assert (
            done.returncode == 0 and "#SBATCH --account='x y'" in (clone / "runs" / "taken" / "job.sbatch").read_text()
        )


def test_stop_saves_and_resume_goes_on_with_the_same_options(queue, clone):
    launch(queue, clone, *GAN, "--name", "stopped", "--total-kimg", "40", "--time", "30", "--gpus", "2", "--cpus", "3")
    run = RunDir(clone / "runs" / "stopped")
    wait_until(lambda: run.newest_checkpoint() > 0)
    (job,) = ids(run.path)
    launch(queue, clone, "stop", "stopped")
    assert queue.wait_over(job) == "COMPLETED"
    kept = run.newest_checkpoint()
    about = view(queue, clone, "stopped")
    assert about["state"] == "stopped" and kept == pytest.approx(about["kimg"] * 1000)
    assert "a person" in launch(queue, clone, "why", "stopped").stdout
    drain(queue)
    launch(queue, clone, "resume", "stopped", "--time", "20", "--", "--total-kimg", "50")
    new = ids(run.path)[1]
    shown = queue.show(new)
    assert not run.stop_requested() and shown["TimeLimit"] == "00:20:00"
    assert shown["NumCPUs"] == "6" and "gpu:2" in shown["TresPerNode"]
    assert json.loads((run.path / "config.json").read_text())["total_kimg"] == 50
    assert any(line["event"] == "stop lifted" for line in run.read_attempts())


def test_sweep_is_one_array_with_a_run_per_point(queue, clone):
    words = (*GAN, "--name", "lrs", "--sweep", "lr=0.001,0.002", "--total-kimg", "0.04")
    shown = launch(queue, clone, *words).stdout
    runs = [clone / "runs" / f"lrs-lr={lr}" for lr in ("0.001", "0.002")]
    first, second = (ids(run)[0] for run in runs)
    assert first.split("_")[0] == second.split("_")[0] and (first[-2:], second[-2:]) == ("_0", "_1") and first in shown
    waited = launch(queue, clone, *words, "--wait").stdout
    assert "live or done already" in waited and ids(runs[0]) == [first]
    assert all((run / "DONE").exists() and f"{run.name}: done" in waited for run in runs), waited
    rows = launch(queue, clone, "status", "lrs").stdout.splitlines()
    assert [row.split()[0] for row in rows] == ["LR", "0.001", "0.002"] and "loss_G" in rows[0]
    assert [json.loads((run / "config.json").read_text())["lr"] for run in runs] == [0.001, 0.002]
    assert "DONE" in launch(queue, clone, "logs", "lrs-lr=0.002").stdout


def test_a_run_after_another_starts_only_when_that_is_done(queue, clone, tmp_path):
    """Where requeueing is forbidden a run is a chain of jobs. The one behind it moves on to the chain's newer links,
    and does not begin on an unfinished run."""
    profile = tmp_path / "brain-slices" / "sites.toml"
    profile.parent.mkdir()
    profile.write_text("[generic]\nrequeue = false\n")
    site = {"XDG_CONFIG_HOME": str(tmp_path)}
    launch(queue, clone, *GAN, "--name", "first", "--total-kimg", "40", **site)
    first, second = RunDir(clone / "runs" / "first"), RunDir(clone / "runs" / "second")
    launch(queue, clone, *GAN, "--name", "second", "--after", "first", "--total-kimg", "0.08", **site)
    assert "#SBATCH --no-requeue" in (second.path / "job.sbatch").read_text()
    wait_until(lambda: first.newest_checkpoint() > 0)
    assert view(queue, clone, "second")["state"] == "queued"
    links = len(ids(second.path))
    for _ in range(2):
        queue.run("scancel", "--signal=USR2", queue.run("squeue", "-h", "-n", "first", "-t", "R", "-o", "%i"))
        before = len(ids(first.path))
        queue.wait(lambda n=before: len(ids(first.path)) > n, f"the next link\n{log(first.path)}")
        wait_until(lambda: first.read_status().get("state") == "running")
    queue.wait(lambda: len(ids(second.path)) > links, f"the second run to move on\n{log(second.path)}")
    launch(queue, clone, "stop", "first")
    queue.wait(
        lambda: view(queue, clone, "second")["state"] == "waiting", f"the second run to wait\n{log(second.path)}"
    )
    assert "resume first" in launch(queue, clone, "why", "second").stdout and not second.read_attempts()
    queue.wait(lambda: not queue.run("squeue", "-h"), "an empty queue")
    little_more = f"{first.newest_checkpoint() / 1000 + 0.04:g}"
    launch(queue, clone, "resume", "first", "--", "--total-kimg", little_more, "--override", **site)
    wait_done(queue, first)
    launch(queue, clone, "resume", "second", **site)
    wait_done(queue, second)


def test_submitting_from_inside_a_job_leaks_nothing(queue, clone):
    drain(queue)
    inside = {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "7",
        "SLURM_CPUS_PER_TASK": "5",
        "SLURM_CPU_BIND": "mask_cpu:0x1",
        "SLURM_MEM_PER_CPU": "1",
        "RANK": "3",
        "WORLD_SIZE": "1",
        "MASTER_PORT": "1",
    }
    launch(queue, clone, *GAN, "--name", "inside", **inside)
    shown = queue.show(ids(clone / "runs" / "inside")[0])
    assert shown["NumTasks"] == "1" and shown["NumCPUs"] == "4" and "MinMemoryCPU=1M" not in str(shown)


def test_pending_reasons_of_a_real_queue(queue, clone):
    drain(queue)
    launch(queue, clone, *GAN, "--name", "held")
    (job,) = ids(clone / "runs" / "held")

    def waits_for(words: str) -> None:
        queue.wait(lambda: words in launch(queue, clone, "why", "held").stdout, words)

    queue.run("scontrol", "hold", job)
    waits_for("is held")
    queue.run("scontrol", "release", job)
    queue.run("scontrol", "update", f"jobid={job}", "StartTime=now+3600")  # as after a requeue
    waits_for("(BeginTime)")
    queue.run("scontrol", "update", f"jobid={job}", "StartTime=now")
    queue.run("scontrol", "update", "partitionname=a100", "MaxTime=10")
    waits_for("(PartitionTimeLimit)")
    queue.run("scontrol", "update", "partitionname=a100", "MaxTime=1-0", "AllowAccounts=course")
    waits_for("--account is missing or wrong")
    refused = launch(queue, clone, *GAN, "--name", "refused", code=78).stderr
    assert "a100 needs an account" in refused and "fix: --account course" in refused


def test_two_nodes_stop_together_and_go_on(queue, clone, tmp_path):
    flags, undisturbed = ("--total-kimg", "0.4"), tmp_path / "undisturbed"
    assert finish(start(undisturbed, *flags, packs=queue.dir / "packs", ranks=2)) == [0, 0], output(undisturbed)
    launch(queue, clone, *GAN, "--name", "nodes", "--nodes", "2", *flags)
    run = RunDir(clone / "runs" / "nodes")
    (job,) = ids(run.path)
    wait_until(lambda: run.newest_checkpoint() > 0)
    with held(run.path):
        queue.run("scancel", "--signal=USR2", job)
    wait_done(queue, run)
    queue.wait_over(job)
    lines = run.read_attempts()
    assert [line["world"] for line in lines if line["event"] == "start"] == [2, 2]
    assert [line["decision"] for line in lines if line["event"] == "decision"] == ["requeue", "done"]
    assert queue.restarts(job) == 1 and weights_hash(run.path) == weights_hash(undisturbed)
    assert not leftovers(run.path)


def test_scancel_saves_and_the_same_command_goes_on(queue, clone):
    words = (*GAN, "--name", "cancelled", "--total-kimg", "4")
    launch(queue, clone, *words)
    run = RunDir(clone / "runs" / "cancelled")
    wait_until(lambda: run.newest_checkpoint() > 0)
    (job,) = ids(run.path)
    with held(run.path):
        queue.run("scancel", job)
    queue.wait(lambda: view(queue, clone, "cancelled")["state"] == "stopped", f"the stop\n{log(run.path)}")
    kept = run.newest_checkpoint()
    (end,) = [line for line in run.read_attempts() if line["event"] == "end"]
    assert end["nimg"] == kept and queue.restarts(job) == 0 and not leftovers(run.path)
    # "(scancel)", unless Slurm killed the job's shell before it could say so: KillWait is short on a busy machine.
    assert "a person" in launch(queue, clone, "why", "cancelled").stdout
    drain(queue)
    assert "Queued" in launch(queue, clone, *words).stdout
    assert len(ids(run.path)) == 2 and run.newest_checkpoint() == kept


def test_a_pipeline_never_trains_on_an_unfinished_vae(queue, clone):
    small = "--width 8 --latent-channels 2 --gan-weight 0 --widths 8,16 --head-dim 8 --attention 4 --steps 4".split()
    words = ("--partition", "a100", "--job", "pipeline", "--name", "two", *COMMON.split(), *small)
    shown = launch(queue, clone, *words, "--total-kimg", "40", "--dry-run").stdout
    assert "#SBATCH --dependency=afterany:JOB_OF_two-vae" in shown and "would be refused" not in shown
    launch(queue, clone, *words, "--total-kimg", "40")
    vae, diffusion = RunDir(clone / "runs" / "two-vae"), RunDir(clone / "runs" / "two")
    wait_until(lambda: vae.newest_checkpoint() > 0)
    queue.run("scancel", "--signal=USR2", ids(vae.path)[0])  # a requeue is no end
    queue.wait(lambda: sum(line["event"] == "start" for line in vae.read_attempts()) == 2, f"the VAE\n{log(vae.path)}")
    assert "waits for two-vae" in launch(queue, clone, "status", "two").stdout
    launch(queue, clone, "stop", "two-vae")
    queue.wait(lambda: view(queue, clone, "two")["state"] == "waiting", f"the end\n{log(diffusion.path)}")
    assert "resume two-vae" in launch(queue, clone, "why", "two").stdout
    assert not diffusion.read_attempts() and not vae.done()
    launch(queue, clone, "resume", "two-vae", "--", "--total-kimg", f"{vae.newest_checkpoint() / 1000 + 0.1:.2f}")
    assert "starts when two-vae" in launch(queue, clone, "resume", "two", "--", "--total-kimg", "0.08").stdout
    wait_done(queue, vae)
    wait_done(queue, diffusion)
    assert vae.done() and diffusion.read_config()["vae"] == str(vae.path)
    (begun,) = [line["time"] for line in diffusion.read_attempts() if line["event"] == "start"]
    assert begun > (vae.path / "DONE").stat().st_mtime


@pytest.mark.skipif(bool(missing_accounts()), reason=f"no accounting for the tests: {missing_accounts()}")
def test_where_accounting_is_on(clone, cluster):
    """Accounts and QOS are enforced: a missing one is refused before queueing; limits and old jobs are explained."""
    books = Cluster(LAB_ACCT="dbd", LAB_ENFORCE="associations,limits,qos", LAB_EXTRA="MinJobAge=2\\n")
    try:
        books.up()
        for words in (
            "add account course",
            "add user root account=course qos=normal",
            "modify qos normal set MaxJobsPerUser=1",
        ):
            books.run("sacctmgr", "-i", *words.replace("root", getpass.getuser()).split())
        mine = (*GAN, "--account", "course", "--total-kimg", "0.16")
        for wrong, said in ((("--account", "nope"), "--account NAME"), (("--qos", "nope"), "--qos NAME")):
            done = launch(books, clone, *mine, "--name", "wrong", *wrong, code=78)
            assert "Slurm would refuse it" in done.stderr and said in done.stderr
        launch(books, clone, *mine, "--name", "book1", "--total-kimg", "40")
        launch(books, clone, *mine, "--name", "book2")
        one, two = RunDir(clone / "runs" / "book1"), RunDir(clone / "runs" / "book2")
        books.wait(lambda: "(QOSMaxJobsPerUserLimit)" in launch(books, clone, "why", "book2").stdout, "the limit")
        wait_until(lambda: one.newest_checkpoint() > 0)
        (job,), (pending,) = ids(one.path), ids(two.path)
        books.run("scontrol", "hold", pending)  # it would start while the other is being requeued
        books.run("scancel", "--signal=USR2", job)
        books.wait(
            lambda: sum(line["event"] == "start" for line in one.read_attempts()) == 2, f"the requeue\n{log(one.path)}"
        )
        states = books.run("sacct", "-D", "-X", "-n", "-P", "--format=state", "-j", job)
        assert states.splitlines()[0] == "REQUEUED", states
        books.run("scancel", pending)
        books.wait(lambda: not books.show(pending), "Slurm to forget the job")
        assert "it was cancelled" in launch(books, clone, "why", "book2").stdout  # the accounts know
    finally:
        books.down()


@pytest.mark.long
def test_real_time_limits(queue, clone, tmp_path):
    """A limit of three minutes for work of four; the profile's margin and the process's own are two minutes."""
    profile = tmp_path / "brain-slices" / "sites.toml"
    profile.parent.mkdir()
    profile.write_text("[generic]\nmargin = 60\n")
    flags, undisturbed = ("--total-kimg", "20"), tmp_path / "undisturbed"
    launch(queue, clone, *GAN, "--name", "limits", "--time", "3", *flags, XDG_CONFIG_HOME=str(tmp_path))
    run = RunDir(clone / "runs" / "limits")
    (job,) = ids(run.path)
    assert queue.wait_over(job, 1500) == "COMPLETED", log(run.path)
    assert queue.restarts(job) >= 2 and run.done()
    assert finish(start(undisturbed, *flags, packs=queue.dir / "packs"), 1000) == [0], output(undisturbed)
    assert weights_hash(run.path) == weights_hash(undisturbed)
