"""jobs/container.def, without Apptainer: its sections, its shell, and that it has what the toolkit needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tiny import ROOT

from jobs.cluster.doctor import PACKAGES
from jobs.config import parsing
from jobs.config.specs import GanConfig

TEXT = (ROOT / "jobs" / "container.def").read_text()
HEAD, *_parts = re.split(r"(?m)^%(\w+)\n", TEXT)
SECTIONS = dict(zip(_parts[::2], _parts[1::2], strict=True))


def shell(text: str, *words: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["sh", *how.pop("flags", ()), "-c", text, "sh", *words], capture_output=True, text=True, **how
    )


def test_its_sections_are_those_of_apptainer_and_their_shell_parses():
    known = "files post environment test runscript help labels setup startscript arguments".split()
    assert set(SECTIONS) <= set(known) and {"files", "post", "runscript", "test"} <= set(SECTIONS)
    for name in ("post", "environment", "test", "runscript"):
        done = shell(SECTIONS[name], flags=("-n",))
        assert done.returncode == 0, done.stderr
    keys = dict(line.split(": ") for line in HEAD.splitlines() if line and not line.startswith("#"))
    assert keys["Bootstrap"] == "docker"
    version = tuple(map(int, re.search(r"python:(\d+)\.(\d+)", keys["From"]).groups()))
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert version >= tuple(map(int, oldest.removeprefix(">=").split(".")))


def test_it_installs_the_requirements_and_tries_what_they_are_for():
    for line in SECTIONS["files"].split("\n"):
        if line.strip():
            here, there = line.split()
            assert (ROOT / here).is_file() and there in SECTIONS["post"]
    assert all(re.search(rf"\b{module.split('.')[0]}\b", SECTIONS["test"]) for module in PACKAGES.values())


def test_what_it_runs_is_the_script_of_the_folder(tmp_path):
    """The lines at its top can be typed: the script is there, and its flags are flags."""
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = shell(SECTIONS["runscript"], "train_gan.py", "--help", cwd=ROOT, env=env)
    assert done.returncode == 0 and "--total-kimg" in done.stdout, done.stderr
    _, script, flags = re.search(r"apptainer run (--nv) brain.sif (\S+) (--preset .*)", TEXT).groups()
    assert (ROOT / script).is_file()
    assert Path(parsing.parse_config(GanConfig, flags.split()).run).name == "first"
