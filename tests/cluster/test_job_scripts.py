"""The shell of a job, run by a real bash: what it hands to jobs.cluster.requeue, whom it starts, what it outlives.

Python and srun are little scripts that note how they were called, so that each test costs milliseconds.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

from jobs.cluster.requeue import AWAY
from jobs.config import kinds

PYTHON = r"""#!/bin/bash
{ printf 'python'; printf ' <%s>' "$@"; echo " in $PWD"; } >> "$LAB/calls"
case "$*" in
    "-c import sys"*) exit "${OLD:-0}" ;;
    "-c import importlib"*) exit "${LACKS:-0}" ;;
    "-c import torch"*) exit "${NO_TORCH:-0}" ;;
    "-m jobs.cluster.requeue --begin"*) cat "$LAB/begin"; exit "${BEGIN:-0}" ;;
    "-m jobs.cluster.requeue "*) eval "${HAND_DOES:-}"; exit "${HAND:-0}" ;;
    "-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; exit "${VENV:-0}" ;;
    "-m pip"*) echo "Collecting torch==2.6"; echo noise; echo trouble >&2; exit "${PIP:-0}" ;;
    *) exit 0 ;;
esac
"""
SRUN = r"""#!/bin/bash
{ printf 'srun'; printf ' <%s>' "$@"; echo " in $PWD"; } >> "$LAB/calls"
env > "$LAB/env"
eval "${TASKS_DO:-}"
exit "${TASKS:-0}"
"""


@pytest.fixture
def lab(tmp_path) -> SimpleNamespace:
    """A repository with the real scripts, and a PATH with our own python3 and srun."""
    root, bin_ = tmp_path / "repository", tmp_path / "bin"
    (root / "jobs").mkdir(parents=True)
    bin_.mkdir()
    for path in (ROOT / "jobs").glob("*.sh"):
        shutil.copy(path, root / "jobs")
    for name, text in (("python3", PYTHON), ("srun", SRUN)):
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    (root / "requirements.txt").write_text("torch\n")
    python, run = str(bin_ / "python3"), tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (tmp_path / "begin").write_text(f"RUN='{run}'\nCOMMAND=(train.py --run '{run}' 'a b')\n")
    env = {"PATH": f"{bin_}:/usr/bin:/bin", "LAB": str(tmp_path), "SLURM_JOB_ID": "7", "HOME": str(tmp_path)}

    def bash(*words, cwd=root, **more) -> subprocess.CompletedProcess:
        """A job script as Slurm runs it; None takes a variable away."""
        given = {k: v for k, v in (env | more).items() if v is not None}
        return subprocess.run(
            ["/bin/bash", *map(str, words)], cwd=cwd, env=given, capture_output=True, text=True, timeout=60
        )

    def calls(*kinds: str) -> list[str]:
        """What was called, in order: without the questions to an interpreter."""
        path = tmp_path / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("python <-c>")]

    def tasks_env() -> dict[str, str]:
        return dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)

    return SimpleNamespace(root=root, run=run, python=python, bash=bash, calls=calls, env=tasks_env, dir=tmp_path)


def launched(lab, **more) -> subprocess.CompletedProcess:
    """The lines that launch.py's sbatch text consists of: RUN and PYTHON are set, srun follows."""
    lines = [f"RUN={lab.run}", f"PYTHON={lab.python}", f"cd {lab.root}", "source jobs/env.sh", "srun python x"]
    return lab.bash("-c", "\n".join(lines), **more)


# --- the end is handed over -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code", ["0", "1", "2", "75", "77", "78", "85", "137", "143"])
@pytest.mark.parametrize("how", ["sbatch", "launch"])
def test_the_code_of_the_tasks_is_handed_over(lab, how, code):
    """... and what jobs.cluster.requeue says is the job's own code."""
    done = launched(lab, TASKS=code, HAND="9") if how == "launch" else lab.bash("jobs/vae.sh", TASKS=code, HAND="9")
    begin, tasks, end = lab.calls()
    assert begin.startswith("python <-m> <jobs.cluster.requeue> <--begin>") and tasks.startswith("srun ")
    assert end == f"python <-m> <jobs.cluster.requeue> <{lab.run}> <--code> <{code}> in {lab.root}"
    assert done.returncode == 9, done.stderr


def test_nothing_to_do_leaves_with_0(lab):
    (lab.dir / "begin").write_text("exit 0\n")
    done = lab.bash("jobs/vae.sh")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lab.calls()) == 1  # begin alone: no task, and no end of a run that was not begun
    assert launched(lab).returncode == 0
    assert (
        lab.calls()[2] == f"python <-m> <jobs.cluster.requeue> <{lab.run}> <--code> <0> in {lab.root}"
        and len(lab.calls()) == 3
    )


def test_a_job_with_nothing_to_do_decides_nothing(lab):
    """Another job works on the run: what this one says of its end would be said of that one's run."""
    (lab.dir / "begin").write_text(f"{AWAY}\n")
    assert launched(lab).returncode == lab.bash("jobs/vae.sh").returncode == 0
    assert ["--begin" in call for call in lab.calls()] == [True, True]


def test_a_refused_start_is_the_jobs_code(lab):
    assert lab.bash("jobs/vae.sh", BEGIN="78").returncode == 78 and len(lab.calls()) == 1
    assert launched(lab, BEGIN="78", HAND="78").returncode == 78
    assert "<--code> <78>" in lab.calls()[-1] and not any(call.startswith("srun") for call in lab.calls())


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2"])
def test_a_signal_to_the_batch_shell_does_not_end_it_before_its_tasks(lab, name):
    done = lab.bash("jobs/vae.sh", TASKS="85", TASKS_DO=f"kill -{name} $PPID; sleep 0.1")
    assert done.returncode == 0 and "<--code> <85>" in lab.calls()[-1]


@pytest.mark.parametrize("name", ["TERM", "USR1", "USR2", "HUP", "INT"])
def test_the_hand_over_is_deaf(lab, name):
    done = lab.bash("jobs/vae.sh", TASKS="85", HAND="3", HAND_DOES=f"kill -{name} $PPID; sleep 0.1")
    assert done.returncode == 3 and sum("--code" in call for call in lab.calls()) == 1


def test_the_hand_over_finds_its_code_from_any_folder(lab):
    lines = [f"RUN={lab.run}", f"PYTHON={lab.python}", "source jobs/env.sh", "cd /", "false"]
    lab.bash("-c", "\n".join(lines))
    assert lab.calls()[-1].endswith(f"<--code> <1> in {lab.root}")


def test_an_unset_variable_or_a_broken_pipe_is_a_failure(lab):
    for line in ('echo "$NOWHERE"', "false | cat"):
        lab.bash("-c", f"RUN={lab.run}\nPYTHON={lab.python}\nsource jobs/env.sh\n{line}\nexit 0")
        assert "<--code> <1>" in lab.calls()[-1]


# --- what is started --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["stylegan2", "vae", "diffusion"])
def test_an_sbatch_script_begins_its_own_job(lab, name):
    assert name in kinds.JOBS
    lab.bash(f"jobs/{name}.sh", "--data", "a b", "--batch=8", RUN="/inherited", SLURM_CPUS_PER_TASK="3")
    begin, tasks, _ = lab.calls()
    assert (
        begin == f"python <-m> <jobs.cluster.requeue> <--begin> <--job> <{name}> <--> <--data> <a b> <--batch=8> in "
        f"{lab.root}"
    )
    options, command = tasks.split(f"<{lab.python}>")
    assert set(options.split()) == {
        "srun",
        "<--kill-on-bad-exit=1>",
        "<--cpus-per-task=3>",
        "<--cpu-bind=none>",
        "<--unbuffered>",
    }
    assert command == f" <-u> <train.py> <--run> <{lab.run}> <a b> in {lab.root}"


def test_a_job_of_launch_py_begins_its_run(lab):
    launched(lab)
    assert lab.calls()[:2] == [
        f"python <-m> <jobs.cluster.requeue> <--begin> <{lab.run}> in {lab.root}",
        f"srun <python> <x> in {lab.root}",
    ]


def test_the_environment_of_the_tasks(lab):
    lab.bash("jobs/vae.sh")
    seen = lab.env()
    assert (seen["MPLBACKEND"], seen["PYTHONUNBUFFERED"], seen["PYTHON"]) == ("Agg", "1", lab.python)
    cache = lab.run.parent / ".cache"
    assert (seen["TORCHINDUCTOR_CACHE_DIR"], seen["TRITON_CACHE_DIR"]) == (f"{cache}/torchinductor", f"{cache}/triton")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert "<--cpus-per-task=1>" in lab.calls()[1]  # Slurm did not say


def test_compiled_code_is_kept_in_a_folder_of_ones_own_alone(lab):
    (lab.dir / "theirs").mkdir()
    (lab.run.parent / ".cache").symlink_to(lab.dir / "theirs")
    lab.bash("jobs/vae.sh")
    assert "TORCHINDUCTOR_CACHE_DIR" not in lab.env() and "TRITON_CACHE_DIR" not in lab.env()


def test_predict_is_one_step_that_nobody_requeues(lab):
    done = lab.bash("jobs/predict.sh", "generate", "--run", "a b", TASKS="3", RUN="/inherited")
    assert done.returncode == 3
    (tasks,) = lab.calls()
    assert tasks.endswith(f"<{lab.python}> <-u> <predict.py> <generate> <--run> <a b> in {lab.root}")


@pytest.mark.parametrize("name", ["stylegan2", "vae", "diffusion", "predict"])
def test_a_script_works_in_the_folder_it_was_submitted_from(lab, name):
    """Slurm runs a copy of it elsewhere."""
    copy = lab.dir / "spool.sh"
    shutil.copy(lab.root / "jobs" / f"{name}.sh", copy)
    done = lab.bash(copy, cwd=lab.dir, SLURM_SUBMIT_DIR=str(lab.root))
    assert done.returncode == 0 and all(call.endswith(f" in {lab.root}") for call in lab.calls())
    done = lab.bash(copy, cwd=lab.dir, SLURM_SUBMIT_DIR=str(lab.dir))
    assert done.returncode == 78 and "not the repository's root" in done.stderr


# --- where it does not even begin -------------------------------------------------------------------------------------
def test_outside_of_slurm_nothing_is_run(lab):
    done = lab.bash("jobs/vae.sh", SLURM_JOB_ID=None)
    assert done.returncode == 2 and "submit it" in done.stderr and lab.calls() == []


def test_a_python_that_cannot_train_is_named(lab):
    done = lab.bash("jobs/vae.sh", LACKS="1")
    assert done.returncode == 78 and "has no torch or tyro" in done.stderr and lab.calls() == []
    done = lab.bash("jobs/vae.sh", OLD="1", PATH=f"{lab.dir}/bin")  # dirname and the like are not needed
    assert done.returncode == 78 and "Python 3.11 or newer" in done.stderr


def test_which_python_it_is(lab):
    own = lab.root / ".venv/bin/python"
    own.parent.mkdir(parents=True)
    shutil.copy(lab.python, own)
    lab.bash("jobs/vae.sh")
    assert lab.env()["PYTHON"] == str(own)  # .venv before the PATH
    other = lab.dir / "other"
    shutil.copy(lab.python, other)
    done = lab.bash("jobs/vae.sh", PYTHON=str(other))
    assert lab.env()["PYTHON"] == str(own)  # a variable that the shell happens to have is no choice
    assert f"not PYTHON={other} of your shell" in done.stderr
    own.write_text("#!/bin/sh\nexit 1\n")  # a .venv without torch is none
    lab.bash("jobs/vae.sh", PYTHON=str(other))
    assert lab.env()["PYTHON"] == str(other)
    shutil.copy(lab.python, own)
    lines = [f"RUN={lab.run}", f"PYTHON={other}", f"cd {lab.root}", "source jobs/env.sh", "srun python x"]
    lab.bash("-c", "\n".join(lines))
    assert lab.env()["PYTHON"] == str(other)  # what launch.py chose stands


# --- .venv and quickstart ---------------------------------------------------------------------------------------------
def venv(lab, *files: str, **more) -> subprocess.CompletedProcess:
    words = " ".join(files or ("requirements.txt",))
    return lab.bash("-c", f'set -euo pipefail\nsource jobs/venv.sh\nensure_venv {words}\necho "PYTHON=$PYTHON"', **more)


def test_a_venv_is_made_once_and_filled_again_when_the_requirements_change(lab):
    done = venv(lab)
    assert f"PYTHON={lab.root}/.venv/bin/python" in done.stdout, done.stderr
    made, installed = lab.calls()
    assert (
        made == f"python <-m> <venv> <--system-site-packages> <.venv> in {lab.root}"
    )  # there is a torch to be re-used
    assert (
        installed.endswith(f"<requirements.txt> <-r> <requirements.txt> in {lab.root}")
        or "<-r> <requirements.txt>" in installed
    )
    venv(lab)
    assert len(lab.calls()) == 2
    (lab.root / "requirements.txt").write_text("torch\ntyro\n")
    venv(lab)
    assert len(lab.calls()) == 3
    (lab.root / "more.txt").write_text("pytest\n")
    venv(lab, "requirements.txt", "more.txt")
    assert len(lab.calls()) == 4 and "<-r> <requirements.txt>" in lab.calls()[3] and "<-r> <more.txt>" in lab.calls()[3]


def test_a_venv_without_a_torch_to_share(lab):
    venv(lab, NO_TORCH="1")
    assert lab.calls()[0] == f"python <-m> <venv> <.venv> in {lab.root}"


def test_a_failed_installation_is_told_and_tried_again(lab):
    done = venv(lab, PIP="1")
    assert done.returncode == 1 and "pip could not install" in done.stderr and "trouble" in done.stderr
    assert not list(lab.root.glob(".venv/.installed-*"))
    assert venv(lab).returncode == 0 and len(list(lab.root.glob(".venv/.installed-*"))) == 1
    shutil.rmtree(lab.root / ".venv")
    assert venv(lab, VENV="1").returncode == 2


@pytest.mark.parametrize(("job", "answers", "computes"), [(None, True, False), ("7", True, True), (None, False, True)])
def test_quickstart_queues_on_a_login_node_and_computes_elsewhere(lab, job, answers, computes):
    for name in ("sbatch", "sinfo"):
        (lab.dir / "bin" / name).write_text(f"#!/bin/sh\nexit {int(not answers)}\n")
        (lab.dir / "bin" / name).chmod(0o755)
    done = lab.bash(lab.root / "jobs/quickstart.sh", "--seed", "1 2", cwd="/", SLURM_JOB_ID=job)
    assert done.returncode == 0, done.stderr
    assert (
        lab.calls()[-1]
        == f"python <launch.py> {'<--local> <--wait> ' * computes}<--job> <stylegan2> <--preset> <quickstart> <--name> "
        f"<quickstart> <--seed> <1 2> in {lab.root}"
    )


def test_quickstart_stops_where_nothing_could_be_installed(lab):
    assert lab.bash("jobs/quickstart.sh", PIP="1").returncode == 1 and not any(
        "launch.py" in call for call in lab.calls()
    )


def test_the_headers_are_what_the_profile_says():
    """sbatch and launch.py ask for the same: four hours, a warning three minutes before, four cores per GPU."""
    for name in ("stylegan2", "vae", "diffusion"):
        lines = (ROOT / "jobs" / f"{name}.sh").read_text().splitlines()
        assert lines[0] == "#!/bin/bash"
        header = [line.removeprefix("#SBATCH --") for line in lines[1:] if line.startswith("#SBATCH")]
        assert header == [
            f"job-name={name}", "partition=a100", "gres=gpu:1", "nodes=1", "ntasks-per-node=1", "cpus-per-task=4",
            "time=4:00:00",
            "requeue", "open-mode=append", "signal=USR2@180", "output=slurm-%x-%j.out",
        ]  # fmt: skip
        assert lines[1 : len(header) + 1] == [f"#SBATCH --{word}" for word in header]  # before any command
    predict = Path(ROOT / "jobs/predict.sh").read_text()
    assert "\n#SBATCH --no-requeue\n" in predict and "\n#SBATCH --ntasks=1\n" in predict
    assert os.access(ROOT / "jobs", os.R_OK)


# --- what surrounds the job -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["sbatch", "launch"])
def test_srun_hears_nothing_of_the_users_shell(lab, how):
    """With SLURM_EXPORT_ENV=NONE, which `sbatch --export=NONE` sets too, the tasks have no PATH."""
    shell = {"SLURM_EXPORT_ENV": "NONE", "SBATCH_EXPORT": "NONE", "SRUN_EXPORT_ENV": "NONE", "SLURM_TIMELIMIT": "1"}
    launched(lab, **shell) if how == "launch" else lab.bash("jobs/vae.sh", **shell)
    env = lab.env()
    assert env["SLURM_EXPORT_ENV"] == "ALL" and not {"SBATCH_EXPORT", "SRUN_EXPORT_ENV", "SLURM_TIMELIMIT"} & set(env)


def test_a_snapshot_that_goes_meanwhile_leaves_the_decision(lab):
    """The code of a run is deleted while it trains: the repository's code decides."""
    (lab.root / "jobs/cluster").mkdir()
    (lab.root / "jobs/cluster/requeue.py").write_text("")
    code = lab.run / "code"
    shutil.copytree(lab.root, code)
    lines = [f"RUN={lab.run}", f"PYTHON={lab.python}", f"REPOSITORY={lab.root}", f"cd {code}", "source jobs/env.sh"]
    lab.bash("-c", "\n".join([*lines, "srun python x"]), TASKS="85", TASKS_DO=f"rm -r {code}")
    assert lab.calls()[-1] == f"python <-m> <jobs.cluster.requeue> <{lab.run}> <--code> <85> in {lab.root}"
