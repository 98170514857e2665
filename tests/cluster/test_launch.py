"""launch.py without a Slurm: help, dry runs, profiles, checks, local runs, and the words of status and why."""

from __future__ import annotations

import json
import os
import pickletools
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT, TINY, copy_toolkit, environment, output, train, wait_until, weights_hash

from jobs.cluster import plan as planning
from jobs.cluster import preflight, queueing, show, sites, status, submit, terminal, why
from jobs.cluster.options import Options
from jobs.cluster.slurm import Job, Partition
from jobs.config import parsing, specs, wording
from jobs.run.find import find_run
from jobs.run.rundir import RunDir, git_state

A100 = Partition("a100", True, 86400, 1200, 10, 8, 1, None, True, {"gpu:a100": 1})
CPU = Partition("cpu", True, 7200, 1200, 4, 16, 64000, None, False, {})


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the toolkit with a runs/ of its own, without git."""
    return copy_toolkit(tmp_path_factory.mktemp("clone") / "toolkit")


@pytest.fixture(scope="module")
def env(tmp_path_factory) -> dict[str, str]:
    """An environment in which Slurm's commands are not on the PATH, and no profile of whoever runs the tests counts."""
    folder = tmp_path_factory.mktemp("env")
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in ("git", "env", "bash", "sh"):
        for place in os.environ["PATH"].split(":"):
            if Path(place, name).exists():
                (bin_ / name).symlink_to(Path(place, name))
                break
    return environment(folder / "packs", PATH=str(bin_), XDG_CONFIG_HOME=str(folder), NO_COLOR="1", COLUMNS="160")


def launch(clone: Path, env: dict, *words, code: int | None = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, clone / "launch.py", *map(str, words)], env=env, capture_output=True, text=True, timeout=600
    )
    assert code is None or done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def options(**given) -> Options:
    return Options(**{"job": "stylegan2", "partition": "a100"} | given)


def make(tmp_path, *flags, partitions=None, site="generic", **given):
    profile = sites.load_sites()[site]
    return planning.make_plan(
        options(**given), ["--data", "phantom", "--run", str(tmp_path / "run"), *flags], profile, partitions
    )


@pytest.fixture(autouse=True)
def no_own_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


# --- what is imported, what is printed --------------------------------------------------------------------------------
def test_launch_never_imports_torch(clone, env):
    code = (
        "import sys, runpy; sys.argv = ['launch.py', '--partition', 'a100', '--job', 'stylegan2', '--dry-run', "
        "'--data', 'phantom']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code, e.code\n"
        "assert 'submitit' in sys.modules and 'torch' not in sys.modules and 'tensorboard' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_submitit_nor_tyro(clone, env):
    code = (
        "import sys, runpy; sys.argv = ['launch.py', '--help']\n"
        "try: runpy.run_path('launch.py', run_name='__main__')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'submitit', 'tyro', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "stop RUN" in done.stdout and "--sweep" in done.stdout


def test_training_help_needs_no_slurm(clone, env):
    assert "--gamma" in launch(clone, env, "--job", "stylegan2", "--", "--help").stdout


def test_dry_run_without_slurm(clone, env):
    shown = launch(clone, env, "--partition", "a100", "--job", "stylegan2", "--dry-run", "--data", "phantom").stdout
    assert "#SBATCH --requeue" in shown and "#SBATCH --gres=gpu:1" in shown and "#SBATCH --signal=USR2@180" in shown
    assert "#SBATCH --open-mode=append" in shown and "--kill-on-bad-exit=1" in shown and "source jobs/env.sh" in shown
    assert "--mem" not in shown.replace("no --mem", "") and "wckey" not in shown
    assert '"resolution": 256' in shown and "Nothing queued" in shown
    assert not (clone / "runs").exists()


def test_without_slurm_a_job_is_refused_and_the_way_out_named(clone, env):
    assert (
        "--local"
        in launch(clone, env, "--partition", "a100", "--job", "stylegan2", "--data", "phantom", code=78).stderr
    )


def test_rangpur_profile(clone, env):
    done = launch(
        clone, env, "--site", "rangpur", "--partition", "comp3710", "--job", "stylegan2", "--dry-run", code=None
    )
    assert "#SBATCH --account=comp3710" in done.stdout and "#SBATCH --gres=gpu:a100:1" in done.stdout
    assert "--mem" not in done.stdout and '"data": "/home/groups/comp3710/ADNI"' in done.stdout
    if not Path("/home/groups/comp3710/ADNI").exists():
        assert done.returncode == 78 and "/home/groups/comp3710/ADNI does not exist" in done.stdout


def test_a_typo_is_refused_with_what_was_meant(clone, env):
    done = launch(
        clone,
        env,
        "--partition",
        "a100",
        "--job",
        "stylegan2",
        "--dry-run",
        "--data",
        "phantom",
        "--bathc",
        "8",
        code=2,
    )
    assert "--batch" in done.stderr
    done = launch(clone, env, "--partiton", "a100", "--job", "stylegan2", "--dry-run", "--data", "phantom", code=2)
    assert "--partition" in done.stderr
    assert "status" in launch(clone, env, "staus", code=2).stderr


def test_no_data_names_the_flag(clone, env):
    assert "--data" in launch(clone, env, "--partition", "a100", "--job", "stylegan2", "--dry-run", code=78).stderr


def test_crlf_script_is_refused(clone, env):
    script = clone / "jobs" / "env.sh"
    text = script.read_bytes()
    script.write_bytes(text.replace(b"\n", b"\r\n"))
    try:
        done = launch(
            clone, env, "--partition", "a100", "--job", "stylegan2", "--dry-run", "--data", "phantom", code=78
        )
    finally:
        script.write_bytes(text)
    assert "CRLF" in done.stdout and "sed -i" in done.stdout


# --- quoting ----------------------------------------------------------------------------------------------------------
def test_a_hostile_path_stays_one_word(tmp_path):
    nasty = tmp_path / "a b;$(touch pwned)'\"`touch pwned` 50% x"
    plan = make(tmp_path, "--run", str(nasty), partitions={"a100": A100}, partition="a100")
    text = submit.sbatch_text([plan])
    # What bash makes of the set-up line, with nothing else of the script.
    line = next(line for line in text.splitlines() if line.startswith("RUN="))
    shown = subprocess.run(
        ["bash", "-c", f'{line}\nprintf %s "$RUN"'], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert shown == str(nasty)
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    output = next(line for line in text.splitlines() if line.startswith("#SBATCH --output="))
    assert shlex.split(output[len("#SBATCH ") :])[0].count("50%% x") == 1  # Slurm's own pattern characters are doubled
    assert not (tmp_path / "pwned").exists()


def test_names_that_are_no_folder_names_are_refused(tmp_path):
    for name in ("../x", "a b", "-x", "a;b", ".hidden", "a/b"):
        with pytest.raises(specs.ConfigError, match="letters"):
            planning.make_plan(options(name=name), ["--data", "phantom"], sites.load_sites()["generic"], None)


def test_paths_among_the_flags_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(specs, "ROOT", tmp_path)  # where runs/ is
    (tmp_path / "slices").mkdir()
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    (tmp_path / "old" / "checkpoints" / "00000008.json").write_text("{}")
    (tmp_path / "old" / "config.json").write_text("{}")
    plan = planning.make_plan(
        options(name="x"), ["--data=slices", "--batch", "32", "--init-from", "old"], sites.load_sites()["generic"], None
    )
    assert plan.config.data == str(tmp_path / "slices") and plan.config.init_from == str(tmp_path / "old")
    assert plan.run == tmp_path / "runs" / "x"
    assert plan.command()[2:] == [str(plan.run / "code" / "train_gan.py"), "--run", str(plan.run), "--device", "cuda"]
    submit.prepare(plan)  # what is queued is what the job reads
    monkeypatch.chdir("/")
    assert parsing.parse_config(specs.GanConfig, plan.command()[3:]) == replace(plan.config, device="cuda")


def test_the_default_name_is_that_of_the_training_script(tmp_path):
    plan = planning.make_plan(options(), ["--data", "phantom", "--lr", "0.001"], sites.load_sites()["generic"], None)
    assert plan.run == Path(parsing.parse_config(specs.GanConfig, ["--data", "phantom", "--lr", "0.001"]).run)


def test_snapshot_remembers_its_commit_and_is_copied_like_any_toolkit(tmp_path):
    submit.take_snapshot(tmp_path / "run")
    submit.take_snapshot(tmp_path / "run")  # a resume refreshes it
    code = tmp_path / "run" / "code"
    assert git_state(code) == git_state(ROOT)
    assert {"train_gan.py", "jobs/env.sh", "jobs/sites.toml", "data/pack.py", "models/stylegan2.py"} <= set(
        submit.tracked_files(code)
    )
    assert (code / "launch.py").read_bytes() == (ROOT / "launch.py").read_bytes()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["code"]


def test_images_put_into_the_data_room_are_not_copied(tmp_path):
    for name in ("launch.py", "data/pack.py", "data/AD/1.png", "data/secret.nii", "jobs/env.sh", "runs/x/code/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "models").mkdir()
    assert submit.tracked_files(tmp_path) == ["data/pack.py", "jobs/env.sh", "launch.py"]


# --- profiles ---------------------------------------------------------------------------------------------------------
def test_sites_are_recognised_and_overridden(tmp_path):
    assert sites.choose_site("", {"comp3710", "a100-test", "cpu"}, "somewhere").name == "rangpur"
    assert sites.choose_site("", {"a100"}, "somewhere").name == "generic"
    assert sites.choose_site("", None, "laptop", local=True).name == "local"
    own = sites.user_file()
    assert own.is_relative_to(tmp_path)
    own.parent.mkdir(parents=True)
    own.write_text('[rangpur.partitions.a100]\naccount = "mine"\n[lab]\nhosts = ["somewhere*"]\npartition = "big"\n')
    assert sites.choose_site("rangpur", None).on("a100").account == "mine"
    assert sites.choose_site("rangpur", None).on("comp3710").account == "comp3710"
    assert sites.choose_site("", {"a100"}, "somewhere7").partition == "big"


@pytest.mark.parametrize(
    ("text", "word"),
    [("[generic", "TOML"), ("[generic]\ncpu = 4\n", "cpu"), ('[generic]\ncpus = "4"\n', "cpus"),
    ("generic = 1\n", "table"),
     ("[generic.partitions]\nx = 1\n", "table"), ("[generic]\nrequeue = 1\n", "requeue")],
)  # fmt: skip
def test_a_wrong_profile_is_named(text, word):
    sites.user_file().parent.mkdir(parents=True)
    sites.user_file().write_text(text)
    with pytest.raises(specs.ConfigError, match=word) as error:
        sites.load_sites()
    assert "\n" not in str(error.value) and str(sites.user_file()) in str(error.value)


def test_unknown_site_is_named():
    with pytest.raises(specs.ConfigError, match="generic"):
        sites.choose_site("nowhere", None)


# --- checks before queueing -------------------------------------------------------------------------------------------
def failures(checks) -> str:
    assert all(check.fix for check in checks if check.level == "fail")
    return " | ".join(f"{check.text} -> {check.fix}" for check in checks if check.level == "fail")


@pytest.mark.parametrize(
    ("given", "partition", "words"),
    [
        (dict(partition="a10"), A100, "a10 does not exist -> did you mean a100"),
        (dict(partition="a100"), replace(A100, up=False), "is down"),
        (dict(partition="a100", time="2-00:00:00"), A100, "over the limit of a100 -> --time 1-00:00:00"),
        (dict(partition="a100", time="4:00"), A100, "too short"),
        (dict(partition="a100", gpus=2), A100, "2 x gpu per node: the nodes of a100 have 1 -> --gpus 1 --nodes 2"),
        (dict(partition="a100", cpus=9), A100, "-> --cpus 8"),
        (dict(partition="a100", nodes=16), A100, "--nodes 16: a100 has 10 -> --nodes 10"),
        (dict(partition="cpu", gpus=1), CPU, "cpu has no GPUs"),
        (dict(partition="a100"), replace(A100, allow_accounts=("comp3710", "x")),
        "needs an account -> --account comp3710 or --account x"),
        (dict(partition="a100", account="y"), replace(A100, allow_accounts=("comp3710",)),
        "account y may not use a100"),
    ],
)  # fmt: skip
def test_requests_that_slurm_cannot_meet(tmp_path, given, partition, words):
    partitions = {"a100": A100, "cpu": CPU} | {partition.name: partition}
    plan = make(tmp_path, "--batch", "128", "--pl-weight", "0", partitions=partitions, **given)
    assert words in failures(preflight.check_resources(plan, partitions))


def test_requests_that_slurm_can_meet(tmp_path):
    plan = make(tmp_path, partitions={"a100": A100, "cpu": CPU}, partition="a100")
    checks = preflight.check_resources(plan, {"a100": A100, "cpu": CPU})
    assert not failures(checks) and any("RealMemory=1" in check.text for check in checks)
    assert (plan.gres, plan.cpus, plan.minutes) == ("gpu:1", 4, 240)
    on_cpu = make(tmp_path, partitions={"a100": A100, "cpu": CPU}, partition="cpu")
    assert (on_cpu.gres, on_cpu.gpus, on_cpu.minutes) == ("", 0, 120)
    assert not failures(preflight.check_resources(on_cpu, {"a100": A100, "cpu": CPU}))


def test_wrong_gres_type_names_what_there_is(tmp_path):
    plan = replace(make(tmp_path, partitions={"a100": A100}, partition="a100"), gres="gpu:h100:1")
    assert "a100 has no gpu:h100 -> it has gpu:a100" in failures(preflight.check_resources(plan, {"a100": A100}))


def test_data_that_is_not_there_or_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    for data, words in ((tmp_path / "nope", "does not exist"), (tmp_path / "empty", "holds no images")):
        assert words in failures(preflight.check_data(make(tmp_path, "--data", str(data))))
    (tmp_path / "empty" / "a.png").write_bytes(b"x")
    assert not failures(preflight.check_data(make(tmp_path, "--data", str(tmp_path / "empty"))))


def test_a_diffusion_run_without_a_vae_names_the_pipeline(tmp_path):
    def check(*flags, **given) -> list:
        return preflight.check_vae(make(tmp_path, *flags, job="diffusion", **given))

    vae = RunDir(tmp_path / "some-vae")
    vae.create()
    config = make(tmp_path, job="vae").config
    vae.write_config(json.loads(parsing.to_json(config)))
    assert "--job pipeline" in failures(check())
    assert "no weights there" in failures(check("--vae", str(vae.path)))
    assert not failures(check("--vae", str(vae.path), after=str(vae.path)))  # it waits for it
    (vae.path / "weights.safetensors").write_bytes(b"x")
    (unfinished,) = check("--vae", str(vae.path))
    assert unfinished.level == "warn" and "--after some-vae" in unfinished.fix
    assert "--job pipeline" in failures(check())
    vae.mark_done()
    assert "some-vae" in check()[0].text and not failures(check())
    assert "--job pipeline" in failures(check("--data", "phantom:9"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "vae.safetensors").write_bytes(b"x")
    assert not failures(check("--vae", str(tmp_path / "gone")))


def test_run_folder_that_cannot_be_used(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert "is a file" in failures(
        preflight.check_run_folder(make(tmp_path, "--run", str(tmp_path / "file" / "run"), local=True), None)
    )
    assert "cannot be written" in failures(
        preflight.check_run_folder(make(tmp_path, "--run", "/proc/run", local=True), None)
    )
    assert not failures(preflight.check_run_folder(make(tmp_path, local=True), None))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e9))
    assert "the disk has 1.0 GB" in failures(preflight.check_run_folder(make(tmp_path, local=True), None))
    monkeypatch.setattr(preflight, "quota_left_gb", lambda path: 0.2)
    assert "your quota leaves 0.2 GB" in failures(preflight.check_run_folder(make(tmp_path, local=True), None))


def test_node_local_run_folder(tmp_path, monkeypatch):
    there = Path("/tmp")
    assert "each node has for itself" in failures(preflight.check_shared(make(tmp_path), there, {"a100": A100}))
    monkeypatch.setattr(preflight, "filesystem", lambda path: "nfs4")
    assert not preflight.check_shared(make(tmp_path), there, {"a100": A100})


def test_quota_is_read(tmp_path, monkeypatch):
    (tmp_path / "quota").write_text("#!/bin/sh\necho 'Disk quotas for user x (uid 1):'\necho ' Filesystem blocks quota "
    "limit grace'\n"
                                    "echo ' nfs:/home 15000000* 14000000 16000000 0 7 0 0 0'\nexit 1\n")  # fmt: skip
    (tmp_path / "quota").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert preflight.quota_left_gb(tmp_path) == pytest.approx(1_000_000 * 1024 / 1e9)


def test_flags_that_differ_from_the_run(tmp_path):
    plan = make(tmp_path)
    RunDir(plan.run).create()
    RunDir(plan.run).write_config(json.loads(parsing.to_json(plan.config)))
    assert not failures(preflight.check_config(plan))
    assert not failures(preflight.check_config(make(tmp_path, "--total-kimg", "9000")))
    assert "--name" in failures(preflight.check_config(make(tmp_path, "--resolution", "128")))
    assert "--lr 0.0025 -> 0.001" in failures(preflight.check_config(make(tmp_path, "--lr", "0.001")))
    assert not failures(preflight.check_config(make(tmp_path, "--lr", "0.001", "--override")))


# --- the words of status and why --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reason", "words"),
    [("PartitionConfig", "--account"), ("QOSMaxJobsPerUserLimit", "as many running jobs as you may"),
    ("PartitionTimeLimit", "shorter --time"),
     ("BeginTime", "requeued"), ("Priority", "higher priority"),
     ("ReqNodeNotAvail, UnavailableNodes:n1", "maintenance"),
     ("Dependency", "waits for job 41 to end"), ("QOSMaxNodePerUserLimit", "limit of your QOS"),
     ("launch failed requeued held", "held"),
     ("SomethingNew", "SomethingNew"),
     ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
     "when one is back"), ("", "just queued")],
)  # fmt: skip
def test_why_a_job_is_pending(tmp_path, reason, words):
    job = Job(
        "42", "PENDING", reason=reason, dependency="afterany:41(unfulfilled)", workdir=str(tmp_path / "run" / "code")
    )
    assert words in status.pending_words(job)
    RunDir(tmp_path / "run").create()
    _, cause = why.explain(tmp_path / "run", {"42": job})
    assert words in cause.text + cause.fix


def ended(**facts) -> why.Cause:
    return why.diagnose(why.Evidence(**{"state": "failed"} | facts), "r1")


@pytest.mark.parametrize(
    ("log", "words", "fix"),
    [
        ("x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\nsrun: error: n1: task 0: Exited "
        "with exit code 1", "GPU ran out of memory", "--accumulate"),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
        "main memory ran out", "--batch"),
        ("OSError: [Errno 122] Disk quota exceeded", "quota is full", "quota -s"),
        ("OSError: [Errno 28] No space left on device: '/home/x'", "disk is full", "room"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "GPU or its driver", "administrators"),
        ("[rank1]: Watchdog caught collective operation timeout: WorkNCCL", "ranks lost each other", "resume"),
        ("ModuleNotFoundError: No module named 'tyro'", "package is missing", "pip install"),
        ("sbatch: error: Batch script contains DOS line breaks (\\r\\n)", "CRLF", "sed"),
        ("slurmstepd: error: execve(): /home/x/.venv/bin/python: No such file or directory", "not found on the node",
        "doctor"),
        ("Traceback (most recent call last):\n  File 'a.py', line 1\n    x\nZeroDivisionError: division by zero\n",
        "Python error", "resume"),
    ],
)  # fmt: skip
def test_causes_in_the_log(log, words, fix):
    cause = ended(log=log, code=1)
    assert words in cause.text and fix in cause.fix
    assert cause.line and cause.line in log


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (dict(job=Job("1", "OUT_OF_MEMORY")), "main memory ran out"),
        (dict(job=Job("1", "TIMEOUT", elapsed_s=14400)), "time limit after 4 h 00"),
        (dict(job=Job("1", "NODE_FAIL", nodes="a100-3")), "node failed on a100-3"),
        (dict(job=Job("1", "CANCELLED")), "cancelled"),
        (dict(job=Job("1", "PREEMPTED")), "higher priority"),
        (dict(job=Job("1", "FAILED", exit_code=0, exit_signal=9)), "signal 9"),
        (dict(job=Job("1", "FAILED", exit_code=127)), "python could not be run"),
        (dict(job=Job("1", "FAILED", reason="JobLaunchFailure")), "could not be started"),
        (dict(code=77, reason="Diverged: loss_G is not finite"), "not a number"),
        (dict(code=78, log="error: /d: no images\n"), "configuration or the data"),
        (dict(code=2, log="error: unrecognized\n"), "flags are wrong"),
        (dict(state="stuck", decision="two attempts without a new image"), "no progress"),
        (dict(state="stopped"), "a person"),
        (dict(state="interrupted", code=85, reason="time limit"), "saved (time limit)"),
        (dict(state="cut off"), "without a word"),
    ],
)
def test_causes_beside_the_log(facts, words):
    assert words in ended(**facts).text


def test_an_old_error_does_not_hide_a_node_failure():
    cause = ended(
        state="cut off", log="torch.OutOfMemoryError: CUDA out of memory\n", job=Job("1", "NODE_FAIL", nodes="n1")
    )
    assert "node failed" in cause.text


def test_control_characters_of_a_log_do_not_reach_the_terminal():
    assert why.clean("a\x1b[31mred\x1b]0;title\x07\r\nb\x9b") == "ared]0;title\nb"


def run_with(tmp_path: Path, name: str, **status) -> Path:
    run = tmp_path / name
    RunDir(run).create()
    (run / "status.json").write_text(json.dumps({"updated": time.time()} | status))
    (run / "jobs.json").write_text(
        json.dumps({"job": "stylegan2", "submitted": [{"id": "42", "kind": "main", "time": 1.0}]})
    )
    return run


def test_view_merges_slurm_and_the_heartbeat(tmp_path):
    now = time.time()
    running = Job("42", "RUNNING", partition="a100", nodes="n1", elapsed_s=60, limit_s=3600, start=now - 60)
    run = run_with(tmp_path, "r", state="running", kimg=10.0, total_kimg=40.0, eta_s=90, job_id="42", attempt=3)
    view = status.view_run(run, {"42": running})
    assert (view.state, view.node, view.kimg, view.restarts, view.limit_s) == ("running", "n1", 10.0, 2, 3600)
    assert status.view_run(run, {"42": replace(running, state="PENDING", reason="Priority")}).state == "queued"
    assert (
        status.view_run(run, {"42": replace(running, start=now + 5)}).state == "starting"
    )  # the heartbeat is of the attempt before
    assert status.view_run(run, {"42": replace(running, state="COMPLETED")}).state == "cut off"
    assert status.view_run(run, None).state == "running"  # no Slurm to ask, and a young heartbeat
    old = run_with(tmp_path, "old", state="running", updated=now - 3600, job_id="42")
    assert status.view_run(old, {"42": replace(running, start=now - 7200)}).state == "hanging"
    assert status.view_run(old, None).state == "cut off"
    assert status.view_run(run_with(tmp_path, "c", state="continue", reason="time limit"), {}).state == "interrupted"
    (run / "DONE").write_text("")
    assert status.view_run(run, {}).state == "done"


def test_a_job_that_was_queued_but_not_noted_is_found_by_its_folder(tmp_path):
    run = run_with(tmp_path, "r", state="queued")
    lost = Job("77", "PENDING", reason="Priority", workdir=str(run / "code"))
    assert status.view_run(run, {"77": lost}).job_id == "77"


def test_runs_are_found_by_what_a_person_types(tmp_path):
    one, two = run_with(tmp_path, "alpha-1"), run_with(tmp_path, "alpha-2")
    (two / "jobs.json").write_text(json.dumps({"submitted": [{"id": "43_1", "kind": "main"}]}))
    assert find_run("alpha-1", tmp_path) == one and find_run(str(two), tmp_path) == two
    assert find_run("42", tmp_path) == one and find_run("43_1", tmp_path) == two
    with pytest.raises(LookupError, match="several"):
        find_run("alpha", tmp_path)
    with pytest.raises(LookupError, match="alpha-2"):
        find_run("beta", tmp_path)


def test_hostile_files_in_a_run_do_not_break_status(tmp_path):
    run = run_with(tmp_path, "r")
    for name in ("status.json", "jobs.json", "metrics.jsonl", "attempts.jsonl", "config.json", "LOCK"):
        for text in ("", "[]", '{"submitted": 3, "state": [1], "kimg": "x", "job_id": {}}', "[" * 5000, "\x00\xff"):
            (run / name).write_text(text)
            view = status.view_run(run, {})
            show.show_runs([view])
            why.explain(run, {})


def test_a_table_without_a_terminal_has_no_colours(capsys):
    terminal.table(["RUN", "STATE", "GPU"], [["a", "failed", ""], ["bb", "done", ""]], {1: terminal.STATE_COLOURS})
    assert capsys.readouterr().out == "RUN  STATE\na    failed\nbb   done\n"


# --- runs on this machine ---------------------------------------------------------------------------------------------
def start(clone: Path, env: dict, *words) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, clone / "launch.py", *map(str, words)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )


ONE = ("--local", "--wait", "--job", "stylegan2", "--name", "one", *TINY)


@pytest.fixture(scope="module")
def swept(clone, env) -> None:
    """Two runs of another sweep value each, which the group may read."""
    words = (
        "--job",
        "stylegan2",
        "--sweep",
        "lr=0.001,0.002",
        "--name",
        "lrs",
        "--shared",
        *TINY,
        "--total-kimg",
        "0.016",
    )
    launch(clone, env, "--local", "--wait", *words)


@pytest.fixture(scope="module")
def finished(clone, env) -> tuple[Path, str]:
    """A run that launch.py started on this machine and waited for, and what that printed."""
    return clone / "runs" / "one", launch(clone, env, *ONE, "--total-kimg", "0.08").stdout


def test_local_run_from_start_to_end(clone, env, finished):
    (run, shown), words = finished, (*ONE, "--total-kimg", "0.08")
    assert "DONE" in shown and (run / "DONE").exists() and (run / "weights.safetensors").exists()
    assert "is done" in launch(clone, env, *words).stdout  # the same command names the finished run
    longer = launch(clone, env, *words, "--total-kimg", "0.12")
    assert "resuming at 0.08" in longer.stdout and "is done" not in longer.stdout
    assert json.loads(launch(clone, env, "status", "--json").stdout)["runs"][0]["state"] == "done"
    assert "it is done" in launch(clone, env, "why", "one").stdout
    # The toolkit may be edited while a job waits: it runs its snapshot.
    assert (run / "code" / "train_gan.py").read_bytes() == (ROOT / "train_gan.py").read_bytes()
    assert json.loads((run / "provenance.json").read_text())["argv"][1].startswith(str(run / "code"))


def test_pickle_is_private_and_holds_only_the_command(finished):
    pickles = list((finished[0] / "logs" / "submitit").glob("*.pkl"))
    assert pickles
    for path in pickles:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size < 3000
        loaded = {f"{arg}" for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name == "SHORT_BINUNICODE"}
        assert {"posix", "execv", "submitit.core.utils", "DelayedSubmission"} <= loaded
        assert not any("cloudpickle" in word or "__main__" in word for word in loaded)
    assert stat.S_IMODE(finished[0].stat().st_mode) == 0o700


def test_shared_lets_the_group_read_and_nobody_write(clone, swept):
    run = clone / "runs" / "lrs-lr=0.001"
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [run, *run.iterdir()] if path.name != "code"}
    assert modes[run] == modes[run / "samples"] == modes[run / "checkpoints"] == 0o750
    assert modes[run / "weights.safetensors"] == 0o640 and modes[run / "metrics.jsonl"] == 0o640
    assert not any(mode & 0o022 for mode in modes.values()), modes
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (run / "logs" / "submitit").glob("*.pkl"))


def test_stop_and_resume_give_the_weights_of_an_undisturbed_run(clone, env):
    length = ("--total-kimg", "0.4")
    flags = ("--job", "stylegan2", *TINY, *length)
    launch(clone, env, "--local", "--name", "two", *flags)
    run = RunDir(clone / "runs" / "two")
    wait_until(lambda: run.newest_checkpoint() > 0)
    pid = status.live_process(run.path)["pid"]
    os.kill(pid, signal.SIGSTOP)  # it is not over before it is told to stop
    try:
        assert "already" in launch(clone, env, "--local", "--name", "two", *flags).stdout  # a live run is not doubled
        assert "saves and stops" in launch(clone, env, "stop", "two").stdout
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: run.read_status().get("state") == "stopped" and status.live_process(run.path) is None)
    assert not run.done() and run.stop_requested()
    assert "a person" in launch(clone, env, "why", "two").stdout
    launch(clone, env, "resume", "two", "--wait")
    assert run.done() and not run.stop_requested()
    undisturbed = clone / "runs" / "undisturbed"
    assert train(undisturbed, *length, packs=Path(env["BRAIN_PACK_DIR"])) == 0, output(undisturbed)
    assert weights_hash(run.path) == weights_hash(undisturbed)
    assert sum(line["event"] == "start" for line in run.read_attempts()) == 2


def test_ctrl_c_stops_a_local_run_with_a_save(clone, env):
    process = start(
        clone, env, "--local", "--wait", "--job", "stylegan2", "--name", "three", *TINY, "--total-kimg", "40"
    )
    run = RunDir(clone / "runs" / "three")
    wait_until(lambda: run.newest_checkpoint() > 0)
    process.send_signal(signal.SIGINT)
    try:
        shown, _ = process.communicate(timeout=400)
    finally:
        (run.path / "STOP").touch()  # whatever happened, it does not go on in the background
    assert process.returncode == 130 and "saves first" in shown
    assert run.read_status()["state"] == "stopped" and status.live_process(run.path) is None


def test_a_run_that_fails_says_so(clone, env):
    words = (
        "--local",
        "--wait",
        "--job",
        "stylegan2",
        "--name",
        "four",
        *TINY,
        "--total-kimg",
        "0.08",
        "--conditional",
    )
    (clone / "flat").mkdir()
    (clone / "flat" / "broken.png").write_bytes(b"no image")
    done = launch(clone, env, *words, "--data", clone / "flat", code=None)
    assert done.returncode != 0
    shown = launch(clone, env, "why", "four").stdout
    assert "four: cut off" in shown and "broken.png" in shown and "resume four" in shown


def test_logs_show_the_newest(clone, env, finished):
    assert "DONE" in launch(clone, env, "logs", "one").stdout
    assert len(launch(clone, env, "logs", "one", "-n", "2").stdout.splitlines()) == 2


def test_logs_follow_through_a_requeue_until_ctrl_c(clone, env):
    run = RunDir(clone / "runs" / "followed")
    run.create()
    (run.path / "jobs.json").write_text("{}")
    first, second = run.logs / "41.out", run.logs / "42.out"
    first.write_text("old 1\nold 2\n")
    process = start(clone, env | {"PYTHONUNBUFFERED": "1"}, "logs", "followed", "-f", "-n", "1")
    try:
        lines = iter(process.stdout.readline, "")
        assert str(first) in next(lines) and next(lines) == "old 2\n"
        with open(first, "a") as log:
            log.write("requeued\n")
        assert next(lines) == "requeued\n"
        second.write_text("another job\n")
        assert next(lines) == "another job\n"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=400)
    assert process.returncode == 0


def test_sweep_on_this_machine(clone, env, swept):
    shown = launch(clone, env, "status", "lrs").stdout.splitlines()
    assert shown[0].split()[:2] == ["LR", "STATE"] and [line.split()[0] for line in shown[1:]] == ["0.001", "0.002"]
    assert all(" done " in line for line in shown[1:])
    configs = [
        json.loads((clone / "runs" / f"lrs-lr={lr}" / "config.json").read_text())["lr"] for lr in ("0.001", "0.002")
    ]
    assert configs == [0.001, 0.002]


@pytest.mark.parametrize("sweep", ["lr", "lr=", "nope=1,2", "lr=1,1", "run=a,b"])
def test_a_sweep_that_makes_no_sense(clone, env, sweep):
    done = launch(clone, env, "--local", "--wait", "--job", "stylegan2", "--sweep", sweep, *TINY, code=78)
    assert done.stderr.startswith("error: --sweep") and len(done.stderr.splitlines()) == 1


def test_tensorboard_serves_on_loopback_and_prints_the_tunnel(clone, env, finished):
    process = start(clone, env | {"SSH_CONNECTION": "1 2 3 4"}, "tensorboard", "--site", "rangpur")
    try:
        lines = iter(process.stdout.readline, "")
        shown = next(line for line in lines if "ssh -N -L" in line)
        port = re.search(r"-L 6006:127\.0\.0\.1:(\d+) -J \S+@remote\.labs\.eait\.uq\.edu\.au \S+@rangpur", shown)[1]

        def runs() -> list[str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=5) as answer:
                    return json.load(answer)
            except OSError:
                return []

        wait_until(lambda: "one" in runs())
        listening = Path("/proc/net/tcp").read_text() if Path("/proc/net/tcp").exists() else ""
        addresses = {
            line.split()[1].split(":")[0]
            for line in listening.splitlines()[1:]
            if line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A"
        }
        assert addresses <= {"0100007F"}
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=400)
    assert not runs()


def test_doctor_names_what_is_wrong(clone, env):
    shown = launch(clone, env, "doctor", code=None).stdout
    assert "Python 3" in shown and "no Slurm on this machine" in shown and "profile local" in shown
    assert all(
        {"level", "text", "fix"} == set(check)
        for check in json.loads(launch(clone, env, "doctor", "--json", code=None).stdout)
    )


# --- a pipeline, as far as this needs no VAE --------------------------------------------------------------------------
def test_pipeline_hands_each_stage_its_flags(monkeypatch):
    """A flag goes to the stages that know it, and the value of one is never taken for that of another."""
    seen = {}
    monkeypatch.setattr(queueing, "launch", lambda plan, options, partitions: seen.update({plan.job: plan.config}) or 0)
    flags = "--data phantom --down 4 --batch=8 --width 8 --widths 8,16 --head-dim 8 --no-conditional --lr 0.5".split()
    given, site = options(job="pipeline", preset="quickstart", local=True, partition=""), sites.load_sites()["local"]
    assert queueing.pipeline(given, flags, site, None) == 0
    vae, diffusion = seen["vae"], seen["diffusion"]
    assert (vae.down, vae.width, vae.batch, vae.lr) == (4, 8, 8, 0.5)
    assert (diffusion.widths, diffusion.head_dim, diffusion.batch, diffusion.lr) == ("8,16", 8, 8, 0.5)
    assert diffusion.vae == vae.run and not diffusion.conditional
    with pytest.raises(SystemExit):  # what neither knows is refused
        queueing.pipeline(given, [*flags, "--typo", "3"], site, None)


def test_next_commands_name_a_python_that_has_the_packages(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert wording.python() == ".venv/bin/python"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert wording.python() == "python"
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")
    assert wording.python() == "/elsewhere/python"
