"""The promised versions: jobs/venv.sh finds the Python that is asked for, and what differed between versions is held on
each."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from data import build
from jobs.config import parsing, specs


def python(path: Path, version: str = "", code: int = 0) -> Path:
    """Stands in for a Python of that version, or for one that only fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    major, _, minor = version.partition(".")
    answer = (
        f'exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0); $2"'
        if version
        else f"exit {code}"
    )
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def found(folder: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", 'source jobs/venv.sh; find_python "$@"', "bash", *words],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        env={"PATH": str(folder), "HOME": str(folder / "home")} | env,
        timeout=60,
    )


@pytest.fixture
def bin_(tmp_path) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "bash").symlink_to("/bin/bash")
    return tmp_path / "bin"


def test_any_python_that_runs_and_is_new_enough(bin_):
    python(bin_ / "python3", "3.10")
    python(bin_ / "python3.13", code=127)  # pyenv's placeholder of a version that is not chosen
    wanted = python(bin_ / "python3.12", "3.12")
    python(bin_ / "python", "3.14")
    assert found(bin_).stdout.strip() == str(wanted)
    chosen = python(bin_.parent / "conda" / "python", "3.11")
    assert found(bin_, PYTHON=str(chosen)).stdout.strip() == str(chosen)


def test_exactly_the_version_that_is_asked_for(bin_):
    python(bin_ / "python3.13", code=127)
    python(bin_ / "python3", "3.12")
    assert found(bin_, "3.13").returncode == 1 and "3.13" in found(bin_, "3.13").stderr
    pyenv = python(bin_ / "home" / ".pyenv" / "versions" / "3.13.7" / "bin" / "python", "3.13")
    assert found(bin_, "3.13").stdout.strip() == str(pyenv)
    assert found(bin_, "3.13", PYTHON=str(bin_ / "python3")).stdout.strip() == str(pyenv)
    assert found(bin_, "3.1").returncode == 1
    own = python(bin_ / "python3.13", "3.13")
    assert found(bin_, "3.13").stdout.strip() == str(own)


def test_every_requirement_has_the_lower_bound_that_is_tried():
    """`--lowest` makes `==` of each `>=`: a line of another form would be tried with whatever is newest."""
    lines = [line for line in (tiny.ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    assert lines and [line for line in lines if not re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", line)] == []


@pytest.mark.parametrize("flag", ["--run", "--data", "--init-from"])
def test_a_nul_in_a_flag_is_refused_on_every_python(flag):
    """Path.glob passes over it up to Python 3.12 and raises ValueError from 3.13 on."""
    with pytest.raises(specs.ConfigError, match=f"{flag}.*control character"):
        parsing.parse_config(specs.GanConfig, ["--data", "phantom:9", flag, "a\0b"])


def test_a_bar_that_is_interrupted_while_it_is_made_ends_quietly():
    """Newer tqdm does so itself."""
    bar = build._Bar.__new__(build._Bar)
    assert bar.disable
    bar.close()
