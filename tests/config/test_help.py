"""--help of the train scripts, and flags as people know them from elsewhere."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import fields

import pytest
from tiny import ROOT

from jobs.config import help as its_help
from jobs.config import kinds, parsing
from jobs.config.specs import ConfigError, GanConfig

SCRIPTS = [job.script for job in kinds.JOBS.values()]


@pytest.mark.parametrize("name", kinds.JOBS)
def test_help_has_every_flag_once_and_the_ten_first(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    cls = kinds.JOBS[name].config
    with pytest.raises(SystemExit) as left:
        parsing.parse_config(cls, ["--preset", "quickstart", "--help"])
    text = capsys.readouterr().out
    assert not left.value.code and max(map(len, text.splitlines())) <= 80
    shown = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    assert sorted(shown) == sorted([f"--{f.name.replace('_', '-')}" for f in fields(cls)] + ["--config", "--version"])
    groups = [block.splitlines() for block in text.split("\n\n")[2:]]
    assert groups[0][0] == "what you need first:" and sum(line.startswith("  --") for line in groups[0]) == 10
    assert {"data:", "optimisation:", "logging and checkpoints:"} <= {group[0] for group in groups}
    assert "(default: quickstart)" in text and "(default: phantom:2000)" in text
    assert all(words for _, words in its_help.described(cls).values())


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("words", ("--help", "--batch-size 4", "--version"))
def test_these_are_answered_without_torch_and_tyro(script, words, tmp_path):
    for name in ("torch", "tyro"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([sys.executable, script, *words.split()], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == (2 if "batch" in words else 0), done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 1


def test_what_is_called_otherwise_elsewhere(capsys):
    known = set().union(*(its_help.flags_of(job.config) for job in kinds.JOBS.values()))
    for name, here in its_help.ELSEWHERE.items():
        assert f"--{name}" not in known and (not here.startswith("--") or here.split()[0].rstrip(",") in known), name
    with pytest.raises(SystemExit) as left:
        parsing.parse_config(GanConfig, "--batch-size 4 --img_size=64 --epochs 3 --gpus 2 --totl-kimg 1 --zz".split())
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and [line.split()[1] for line in said] == [
        "--batch-size:", "--img_size:", "--epochs:", "--gpus:", "--totl-kimg:", "--zz:"]  # fmt: skip
    for line, here in zip(
        said, ("--batch", "--resolution", "--total-kimg", "torchrun", "--total-kimg?", "--help"), strict=True
    ):
        assert here in line
    known_words = "--total_kimg 1 --no-compile --preset quickstart --batch=8".split()
    assert parsing.parse_config(GanConfig, known_words).total_kimg == 1


def test_a_job_that_is_none():
    with pytest.raises(ConfigError, match=r"did you mean stylegan2\? choose from .*, or pipeline"):
        kinds.job("stylgan")
    with pytest.raises(ConfigError, match="there is no such job; choose"):
        kinds.job("zzz")


# --- a Python without the packages ------------------------------------------------------------------------------------
@pytest.mark.parametrize("words", [*SCRIPTS, "predict.py generate --run x", "predict.py report x", "-m data.scan x",
                                   "launch.py --job vae --local"])  # fmt: skip
def test_a_venv_that_is_not_activated(words):
    """-S: without site-packages, as the system's Python is."""
    done = subprocess.run([sys.executable, "-S", *words.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 78 and len(done.stderr.splitlines()) == 1, done.stderr
    assert f"is not installed in {sys.executable}" in done.stderr


def test_what_one_does_next():
    """As it is typed: its flags are flags, the diffusion run takes that VAE, and names with blanks are one word."""
    c = parsing.parse_config(
        kinds.JOBS["vae"].config, ["--preset", "quickstart", "--data", "/my data", "--resolution", "32"]
    )
    look, learn = kinds.next_commands("vae", vars(c), "'a run'", launched=False)
    assert look == "predict.py reconstruct --run 'a run'"
    assert learn == "train_diffusion.py --preset quickstart --data '/my data' --resolution 32 --vae 'a run'"
    launched = kinds.next_commands("vae", vars(c), "r", launched=True, where="--local ")[1]
    assert launched == "launch.py --local --job diffusion --preset quickstart --data '/my data' --resolution 32 --vae r"
    for job in kinds.JOBS.values():
        for words in job.then:
            script, rest = words.split(maxsplit=1)
            assert (script == "predict.py" and rest.split()[0] in job.predicts) or rest.split()[0] in kinds.JOBS
    assert set(kinds.JOBS["vae"].presets) == set(kinds.JOBS["diffusion"].presets)


def test_help_names_what_the_kind_itself_says():
    """A field that a kind redefines has its words there, in the place that the field has."""
    about = its_help.described(GanConfig)
    assert about["lr"] == ("optimisation", "Adam learning rate of both networks.")
    assert (
        about["preset"][0] == "the run" and "oasis64" in about["preset"][1] and about["ema_kimg"][0] == "optimisation"
    )
