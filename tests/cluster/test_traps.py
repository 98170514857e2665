"""Traps of submitit and of the cluster (docs/traps.md) that no other file of tests holds."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys

from test_launch import make, no_own_profiles  # noqa: F401
from tiny import ROOT

from jobs.cluster import submit
from jobs.run.find import read_jobs

SCRIPTS = sorted(path for path in ROOT.glob("jobs/*.sh") if "#SBATCH" in path.read_text())


def test_the_scripts_avoid_the_clusters_traps():
    assert [path.stem for path in SCRIPTS] == ["diffusion", "predict", "stylegan2", "vae"]
    for path in SCRIPTS:
        header = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(), re.M))
        assert {"partition", "gres", "nodes", "time"} <= set(header) and header["cpus-per-task"] == "4", path
        assert "%j" in header["output"] and "/" not in header["output"], path
        if path.stem != "predict":
            assert {
                "requeue": "",
                "open-mode": "append",
                "signal": "USR2@180",
                "ntasks-per-node": "1",
            }.items() <= header.items()
    shell = (ROOT / "jobs" / "env.sh").read_text()
    assert re.search(r"^ *srun --kill-on-bad-exit=1 .*--cpu-bind=none --unbuffered", shell, re.M)
    assert "MPLBACKEND=Agg" in shell and "PYTHONUNBUFFERED=1" in shell and "exec srun" not in shell
    assert not any("module load" in path.read_text() for path in ROOT.glob("jobs/*.sh"))


def test_a_clean_batch_shell_finds_the_venv(tmp_path):
    """Nothing activated, nothing on the PATH but the system: the interpreter of .venv is used."""
    for name in ("env.sh", "venv.sh"):
        (tmp_path / "jobs").mkdir(exist_ok=True)
        (tmp_path / "jobs" / name).write_bytes((ROOT / "jobs" / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["/bin/bash", "-c", 'source jobs/env.sh && echo "$PYTHON $MPLBACKEND"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"},
    )
    assert done.stdout.split() == [str(python), "Agg"], done.stderr


def test_everything_a_job_needs_stands_before_it_is_queued(tmp_path, monkeypatch):
    """Slurm may start the job at once, on a node that sees new folders late: at sbatch all of them stand, and are
    private."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "srun").write_text("#!/bin/sh\n")
    (bin_ / "sbatch").write_text(
        f"#!{sys.executable}\nimport json, os, sys\nrun = {str(tmp_path / 'run')!r}\n"
        "seen = [name for name in ('logs', 'logs/submitit', 'code/train_gan.py', 'jobs.json', 'job.sbatch') if "
        "os.path.exists(run + '/' + name)]\n"
        f"json.dump([seen, sorted(k for k in os.environ if k.startswith('SLURM_'))], open({str(tmp_path / 'seen')!r}, "
        "'w'))\n"
        "print('Submitted batch job 7')\n"
    )
    for path in bin_.iterdir():
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    plan = make(tmp_path)
    submit.prepare(plan)
    assert submit.submit_slurm([plan]) == ["7"]
    seen, leaked = json.loads((tmp_path / "seen").read_text())
    assert seen == ["logs", "logs/submitit", "code/train_gan.py", "jobs.json", "job.sbatch"]
    assert set(leaked) <= {"SLURM_CONF"}
    (pickle,) = (plan.run / "logs" / "submitit").glob("*.pkl")
    assert pickle.name == "7_submitted.pkl" and stat.S_IMODE(pickle.stat().st_mode) == 0o600
    assert read_jobs(plan.run)["submitted"][0]["id"] == "7"


def test_torchrun_is_for_this_machine_alone(tmp_path):
    many = make(tmp_path, "--batch", "128", "--pl-weight", "0", gpus=4, nodes=2)
    assert many.tasks == 4 and "torch.distributed.run" not in many.command()
    assert "--ntasks-per-node=4" in submit.sbatch_text([many]) and "--nodes=2" in submit.sbatch_text([many])
    command = make(tmp_path, "--batch", "128", local=True, gpus=4).command()
    from torch.distributed.run import parse_args

    parsed = parse_args(command[command.index("torch.distributed.run") + 1 :])  # ours is not taken for its --run-path
    assert parsed.training_script.endswith("train_gan.py") and parsed.training_script_args[0] == "--run"
