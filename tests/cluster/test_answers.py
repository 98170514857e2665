"""Jobs that sbatch takes without an answer, and a user's shell that says something else than what was typed."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace

import pytest

from jobs.cluster import preflight, sbatch, slurm
from jobs.cluster.options import Options, from_shell
from jobs.cluster.slurm import Job

LOST = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"


@pytest.mark.parametrize(
    "answer", [SimpleNamespace(returncode=1, stdout="", stderr=LOST), subprocess.TimeoutExpired("sbatch", 60)]
)
def test_a_job_that_was_taken_without_an_answer_is_found(monkeypatch, answer):
    def run(*words, **how):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sbatch.subprocess, "run", run)
    monkeypatch.setattr(sbatch, "PAUSES_S", (0, 0))
    shown = iter([{}, {"7": Job("7", "PENDING", name="brains")}, {}, {}])
    monkeypatch.setattr(slurm, "squeue", lambda: next(shown))
    assert sbatch.submit([], None, lambda job: job.name == "brains") == "7"
    with pytest.raises(slurm.NoAnswer, match="try again"):
        sbatch.submit([], None, lambda job: job.name == "brains")


def test_submitit_finds_a_job_that_was_taken_without_an_answer(monkeypatch, tmp_path):
    from submitit.core import utils

    def says(script: str) -> None:
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "sbatch").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.setattr(sbatch, "PAUSES_S", (0,))
    monkeypatch.setattr(slurm, "squeue", lambda: {"9_1": Job("9_1", "PENDING", name="grid")})
    before = utils.CommandFunction
    with sbatch.ids_of_submitit(lambda job: job.name == "grid"):
        says(f"echo '{LOST}' >&2; exit 1")
        assert utils.CommandFunction(["sbatch", "x.sh"], verbose=False)() == "9"
        says("printf 'Gr\\374\\337e\\n'; echo Submitted batch job 7")  # a banner that is not UTF-8
        assert utils.CommandFunction(["sbatch", "x.sh"], verbose=False)() == "7"
        says("echo denied >&2; exit 1")
        with pytest.raises(slurm.SlurmError, match="denied"):
            utils.CommandFunction(["sbatch", "x.sh"], verbose=False)()
    assert utils.CommandFunction is before


@pytest.mark.parametrize(
    ("typed", "shell", "asks"),
    [
        (dict(mem="2G"), {"SBATCH_MEM_PER_CPU": "500"}, dict(mem="2G", slurm=())),
        (dict(slurm=("mem-per-cpu=1G",)), {"SBATCH_MEM_PER_NODE": "9G"}, dict(mem="", slurm=("mem-per-cpu=1G",))),
        ({}, {"SBATCH_MEM_PER_NODE": "9G", "SBATCH_MEM_PER_CPU": "1G"}, dict(mem="9G", slurm=())),
        ({}, {"SBATCH_MEM_PER_GPU": "9G", "SBATCH_MEM_PER_CPU": "1G"}, dict(mem="", slurm=("mem-per-cpu=1G",))),
        (dict(gpus=1), {"SBATCH_GRES": "gpu:a100:2"}, dict(gpus=1, gres="")),
        (dict(gres="gpu:2"), {"SBATCH_GPUS_PER_NODE": "1"}, dict(gpus=None, gres="gpu:2")),
        (dict(slurm=("mail-type=END",)), {"SBATCH_MEM_PER_CPU": "1G"}, dict(slurm=("mem-per-cpu=1G", "mail-type=END"))),
    ],
)
def test_what_was_typed_goes_before_another_way_to_say_it_in_the_shell(typed, shell, asks):
    options = from_shell(Options(**typed), shell)
    assert {name: getattr(options, name) for name in asks} == asks


def test_the_cluster_of_the_shell_is_not_asked_about_jobs_of_this_one(monkeypatch):
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    assert slurm._run(["sh", "-c", "echo $SLURM_CLUSTERS"]).strip() == ""
    assert from_shell(Options()).not_taken == ("SLURM_CLUSTERS",)


def test_a_banner_that_is_not_utf8_keeps_no_run_from_being_checked(monkeypatch, tmp_path):
    (tmp_path / "scontrol").write_text("#!/bin/sh\nprintf 'Gr\\374\\337e\\n'; echo NodeName=n1 NodeAddr=127.0.0.1\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert preflight.nodes_are_here()
