"""Checkpoints: whole or not there, whatever happens to the process or the file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.checkpoint import CheckpointError, Checkpoints, Diverged, to_host

ROOT = Path(__file__).resolve().parent.parent


def state(value: float) -> dict:
    return {"G": {"w": torch.full((4, 3), value)}, "p": value, "n": 3, "names": ["a"], "none": None}


def save(folder: Path, *nimgs: int, **options) -> Checkpoints:
    checkpoints = Checkpoints(folder, **options)
    for nimg in nimgs:
        checkpoints.save(nimg, state(float(nimg)))
    checkpoints.wait(raise_errors=True)
    return checkpoints


def test_round_trip_and_pruning(tmp_path):
    checkpoints = save(tmp_path, 0, 8, 16, 24)
    nimg, loaded = checkpoints.load_latest()
    assert nimg == 24 and torch.equal(loaded["G"]["w"], state(24.0)["G"]["w"]) and loaded["p"] == 24.0
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{n:012d}{s}" for n in (16, 24) for s in (".json", ".pt")]
    assert Checkpoints(tmp_path / "empty").load_latest() is None


def test_the_last_healthy_one_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for nimg, healthy in [(0, True), (8, True), (16, False), (24, False)]:
        checkpoints.save(nimg, state(1.0), healthy=healthy)
    checkpoints.wait()
    assert sorted(checkpoints.committed()) == [8, 24]


def test_the_snapshot_is_a_copy(tmp_path):
    checkpoints, values = Checkpoints(tmp_path), state(1.0)
    checkpoints.save(0, values)
    values["G"]["w"].fill_(9)
    checkpoints.wait()
    assert float(checkpoints.load_latest()[1]["G"]["w"][0, 0]) == 1.0


@pytest.mark.parametrize("suffix", [".pt", ".json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "delete"])
def test_damage_falls_back_to_the_one_before_with_a_warning(tmp_path, suffix, damage):
    said: list[str] = []
    checkpoints = save(tmp_path, 8, 16, say=said.append)
    path = tmp_path / f"{16:012d}{suffix}"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"flip": content, "truncate": content[:-7], "empty": b"", "delete": b""}[damage])
    if damage == "delete":
        path.unlink()
    nimg, loaded = checkpoints.load_latest()
    assert nimg == 8 and loaded["p"] == 8.0
    assert said or (suffix == ".json" and damage == "delete")  # without a marker there is no checkpoint to warn of


def test_all_bad_is_an_error_and_never_a_fresh_start(tmp_path):
    checkpoints = save(tmp_path, 8, 16, say=lambda text: None)
    for path in tmp_path.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        checkpoints.load_latest()


def test_non_finite_values_are_never_saved(tmp_path):
    checkpoints = save(tmp_path, 8)
    with pytest.raises(Diverged, match=r"state\.G\.w"):
        checkpoints.save(16, state(float("nan")))
    assert checkpoints.load_latest()[0] == 8


def test_what_weights_only_could_not_load_is_refused():
    with pytest.raises(TypeError, match=r"state\.a\.b: a PosixPath"):
        to_host({"a": {"b": Path("/x")}})


def test_a_full_disk_is_reported_and_the_previous_checkpoint_stays(tmp_path, monkeypatch):
    said: list[str] = []
    checkpoints = save(tmp_path, 8, say=said.append)
    import jobs.checkpoint as module

    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        module.shutil, "disk_usage", lambda folder: os.terminal_size((0, 0)) and type("U", (), {"free": 10})()
    )
    checkpoints.save(16, state(1.0))
    checkpoints.wait()
    assert "WARNING" in said[-1] and "free" in said[-1] and checkpoints.load_latest()[0] == 8
    with pytest.raises(CheckpointError, match="MB"):
        checkpoints.wait(raise_errors=True)


KILLED_WRITER = """
import os, signal, sys
import torch
import jobs.rundir as rundir
from jobs.checkpoint import Checkpoints

step, calls = int(sys.argv[2]), 0
def deadly(name):
    real = getattr(os, name)
    def call(*args):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)
    setattr(os, name, call)
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(8, {"w": torch.ones(1000)}); checkpoints.wait()
for name in ("fsync", "replace", "unlink", "close"):
    deadly(name)
checkpoints.save(16, {"w": torch.ones(1000) * 2}); checkpoints.wait()
checkpoints.save(24, {"w": torch.ones(1000) * 3}); checkpoints.wait()
print("calls", calls)
"""


def test_killed_at_every_step_of_the_writer(tmp_path):
    """SIGKILL at each system call of two writes in turn: what loads is always the last complete checkpoint or the next."""
    run = [sys.executable, "-c", KILLED_WRITER]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    (tmp_path / "whole").mkdir()
    total = int(
        subprocess.run([*run, str(tmp_path / "whole"), "0"], env=env, capture_output=True, text=True).stdout.split()[1]
    )
    assert total > 12
    seen = set()
    for step in range(1, total + 1, 3):
        folder = tmp_path / str(step)
        folder.mkdir()
        code = subprocess.run([*run, str(folder), str(step)], env=env, capture_output=True).returncode
        assert code == -signal.SIGKILL
        checkpoints = Checkpoints(folder, say=lambda text: None)
        nimg, loaded = checkpoints.load_latest()
        assert float(loaded["w"][0]) == {8: 1, 16: 2, 24: 3}[nimg]
        seen.add(nimg)
        checkpoints.clean()
        assert not list(folder.glob(".*"))
    assert seen >= {8, 16}


def test_sidecar_is_the_commit_marker(tmp_path):
    checkpoints = save(tmp_path, 8)
    (tmp_path / f"{16:012d}.pt").write_bytes(
        (tmp_path / f"{8:012d}.pt").read_bytes()
    )  # a write that never got its marker
    assert checkpoints.load_latest()[0] == 8
    about = json.loads((tmp_path / f"{8:012d}.json").read_text())
    assert about["nimg"] == 8 and about["size"] == (tmp_path / f"{8:012d}.pt").stat().st_size
