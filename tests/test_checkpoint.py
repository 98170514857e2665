"""Checkpoints: killed at every step of a write, damaged, full disks, pruning, what may be in them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.training import checkpoint
from jobs.training.checkpoint import CheckpointError, Checkpoints, Diverged, NonFinite, not_finite, to_host


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)


def state_at(nimg: int) -> dict:
    return {"G": {"weight": torch.full((50,), float(nimg))}, "nimg": nimg}


def saved(folder: Path, *nimgs: int, keep: int = 10, **kwargs) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=keep, **kwargs)
    for nimg in nimgs:
        checkpoints.save(nimg, state_at(nimg))
    checkpoints.wait(raise_errors=True)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- what comes back --------------------------------------------------------------------------------------------------
def test_a_training_state_comes_back_bit_for_bit(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    opt = torch.optim.Adam(net.parameters(), betas=(0.0, 0.99), lr=0.1)
    net(torch.randn(4, 5)).square().sum().backward()
    opt.step()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state = {
        "net": net.state_dict(), "opt": opt.state_dict(), "scaler": scaler.state_dict(), "off": torch.amp.GradScaler("cpu", enabled=False).state_dict(),
        "half": torch.randn(3).bfloat16(), "counters": {"skip": 0, "best": float("inf"), "ok": True, "name": "ä", "none": None, "pair": (1, [2])},
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1280, state)
    checkpoints.wait(raise_errors=True)
    nimg, loaded = Checkpoints(tmp_path).load_latest()
    assert nimg == 1280
    torch.testing.assert_close(loaded["net"], dict(net.state_dict()), rtol=0, atol=0)
    assert loaded["counters"] == state["counters"] and loaded["scaler"] == state["scaler"] and loaded["off"] == {}
    assert torch.equal(loaded["half"], state["half"])
    other = torch.optim.Adam(net.parameters(), lr=0.5)
    other.load_state_dict(loaded["opt"])
    assert other.param_groups[0]["betas"] == (0.0, 0.99) and other.param_groups[0]["lr"] == 0.1
    assert torch.equal(other.state[net[0].weight]["exp_avg_sq"], opt.state[net[0].weight]["exp_avg_sq"])


def test_names_and_sidecar(tmp_path):
    import hashlib

    saved(tmp_path, 12800)
    assert names(tmp_path) == ["000000012800.json", "000000012800.pt"]
    about = json.loads((tmp_path / "000000012800.json").read_text())
    content = (tmp_path / "000000012800.pt").read_bytes()
    assert about == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "nimg": 12800,
        "healthy": True,
    }


def test_the_snapshot_is_taken_at_once(tmp_path, monkeypatch):
    """What the next step does to the weights while the writer works is not in the file."""
    gate, real = threading.Event(), checkpoint.free_bytes
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: gate.wait(10) and real(folder))
    weight, checkpoints = torch.zeros(10), Checkpoints(tmp_path)
    checkpoints.save(8, {"weight": weight})
    assert names(tmp_path) == []
    weight += 1
    gate.set()
    checkpoints.wait(raise_errors=True)
    assert checkpoints.load_latest()[1]["weight"].eq(0).all()


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"row": torch.randn(1000, 1000)[3]})
    checkpoints.wait(raise_errors=True)
    assert (tmp_path / "000000000001.pt").stat().st_size < 20_000


@pytest.mark.parametrize(("value", "where"), [
    (np.float64(1.0), "state.a.b"), (np.zeros(2), "state.a.b"), (Path("x"), "state.a.b"), ({1, 2}, "state.a.b"), (b"x", "state.a.b"),
    ([1, object()], "state.a.b.1"), ({(1, 2): 3}, "state.a.b"), (torch.float32, "state.a.b"),
])  # fmt: skip
def test_what_could_not_be_loaded_is_refused_by_name(tmp_path, value, where):
    with pytest.raises(TypeError, match=where):
        Checkpoints(tmp_path).save(1, {"a": {"b": value}})
    assert names(tmp_path) == []


def test_dicts_of_all_kinds_become_plain():
    host = to_host({"o": OrderedDict(a=1), "d": defaultdict(int, b=2)})
    assert type(host["o"]) is dict and type(host["d"]) is dict


# --- non-finite -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_non_finite_tensor_is_never_saved(tmp_path, bad, dtype):
    checkpoints = saved(tmp_path, 8)
    state = state_at(16)
    state["opt"] = {"state": {0: {"exp_avg": torch.tensor([1.0, bad], dtype=dtype)}}}
    with pytest.raises(NonFinite, match=r"state\.opt\.state\.0\.exp_avg") as error:
        checkpoints.save(16, state)
    assert isinstance(error.value, Diverged) and error.value.exit_code == 77
    assert checkpoints.load_latest()[0] == 8


def test_allowed_paths_may_be_non_finite(tmp_path):
    state = {"averages": {"sums": {"r1": torch.tensor(float("nan"))}}, "averages_of": torch.tensor(float("nan"))}
    assert not_finite(state) == "state.averages.sums.r1"
    assert not_finite(state, ["state.averages"]) == "state.averages_of"
    checkpoints = Checkpoints(tmp_path, allowed=["state.averages", "state.averages_of"])
    checkpoints.save(1, state)
    checkpoints.wait(raise_errors=True)
    assert checkpoints.load_latest()[0] == 1


def test_no_tensors_at_all_is_finite():
    assert not_finite({"step": 3, "ids": torch.arange(3)}) is None


# --- killed -----------------------------------------------------------------------------------------------------------
def killed_while_saving(folder: Path, function: str, call: int) -> None:
    """In a process of its own: save 24 and die by SIGKILL after the given call of os.fsync or os.replace (before it if
    `call` is negative), or after the save if it never comes to that call."""
    pid = os.fork()  # not a new interpreter: importing torch takes seconds
    if pid == 0:
        real, calls = getattr(os, function), [0]

        def fatal(*args, **kwargs):
            calls[0] += 1
            if calls[0] == -call:
                os.kill(os.getpid(), signal.SIGKILL)
            real(*args, **kwargs)
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, function, fatal)
        checkpoints = Checkpoints(folder, keep=2)
        checkpoints.save(24, state_at(24))
        checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(("function", "call", "newest"), [
    ("fsync", -1, 16),  # before the data are on disk
    ("fsync", 1, 16),  # temporary file written
    ("replace", 1, 16),  # .pt has its name
    ("fsync", 2, 16),  # and its folder is on disk
    ("fsync", -3, 16),  # sidecar written to its temporary file
    ("replace", 2, 24),  # sidecar has its name: committed
    ("fsync", 4, 24),
    ("fsync", 99, 24),  # not at all
])  # fmt: skip
def test_killed_at_every_step_of_a_write(tmp_path, function, call, newest):
    saved(tmp_path, 8, 16, keep=2)
    killed_while_saving(tmp_path, function, call)
    said = []
    checkpoints = Checkpoints(tmp_path, keep=2, say=said.append)
    nimg, state = checkpoints.load_latest()
    assert nimg == newest == state["nimg"] and state["G"]["weight"].eq(newest).all()
    assert not any("WARNING" in line for line in said)
    orphan = (tmp_path / "000000000024.pt").exists() and newest == 16
    assert any("000000000024.pt" in line for line in said) == orphan
    # The next attempt goes on, cleans up, and ends with exactly two whole checkpoints.
    for n in (newest + 8, newest + 16):
        checkpoints.save(n, state_at(n))
    checkpoints.wait(raise_errors=True)
    expected = [f"{n:012d}.{kind}" for n in (newest + 8, newest + 16) for kind in ("json", "pt")]
    assert names(tmp_path) == expected
    assert Checkpoints(tmp_path).load_latest()[0] == newest + 16


# --- damaged ----------------------------------------------------------------------------------------------------------
def test_nothing_at_all_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path).load_latest() is None
    assert Checkpoints(tmp_path / "no folder").load_latest() is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone", "sidecar empty", "sidecar hash", "sidecar list"])
def test_a_damaged_newest_falls_back_to_the_one_before(tmp_path, damage):
    saved(tmp_path, 8, 16)
    path, sidecar = tmp_path / "000000000016.pt", tmp_path / "000000000016.json"
    if damage == "flip":
        flip_a_byte(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "gone":
        path.unlink()
    elif damage == "sidecar hash":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": "0" * 64}))
    else:
        sidecar.write_text("" if damage == "sidecar empty" else "[1]")
    said = []
    nimg, state = Checkpoints(tmp_path, say=said.append).load_latest()
    assert nimg == 8 and state["G"]["weight"].eq(8).all()
    assert len(said) == 1 and "WARNING" in said[0] and "000000000016" in said[0]


def test_all_damaged_is_an_error_and_never_a_fresh_start(tmp_path):
    saved(tmp_path, 8, 16)
    for path in tmp_path.glob("*.pt"):
        flip_a_byte(path)
    with pytest.raises(CheckpointError, match="000000000016, 000000000008") as error:
        Checkpoints(tmp_path, say=lambda text: None).load_latest()
    assert error.value.exit_code == 78 and "\n" not in str(error.value)


def test_one_unfinished_first_write_is_a_fresh_start_but_a_copy_without_sidecars_is_not(tmp_path):
    saved(tmp_path, 8, 16)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match="json"):
        Checkpoints(tmp_path).load_latest()
    (tmp_path / "000000000008.pt").unlink()
    said = []
    assert Checkpoints(tmp_path, say=said.append).load_latest() is None
    assert len(said) == 1


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    """A pickle with a correct checksum is refused all the same."""
    import hashlib

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    saved(tmp_path, 8)
    path = tmp_path / "000000000016.pt"
    torch.save({"a": Evil()}, path)
    about = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "size": path.stat().st_size,
        "nimg": 16,
        "healthy": True,
    }
    path.with_suffix(".json").write_text(json.dumps(about))
    assert Checkpoints(tmp_path, say=lambda text: None).load_latest()[0] == 8
    assert not (tmp_path / "owned").exists()


def test_load_of_one_waits_for_a_slow_file_server(tmp_path):
    saved(tmp_path / "", 8)
    hidden = tmp_path / "hidden"
    (tmp_path / "000000000008.json").rename(hidden)
    timer = threading.Timer(0.3, lambda: hidden.rename(tmp_path / "000000000008.json"))
    timer.start()
    assert Checkpoints(tmp_path).load(8, wait=10)["nimg"] == 8
    with pytest.raises(CheckpointError, match="shared"):
        Checkpoints(tmp_path).load(9, wait=0.1)


# --- writes that fail -------------------------------------------------------------------------------------------------
def failing(times: int, real):
    left = [times]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(122, "Disk quota exceeded")
        return real(*args, **kwargs)

    return call


def test_a_write_that_fails_twice_succeeds_the_third_time(tmp_path, monkeypatch):
    said = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    monkeypatch.setattr(os, "fsync", failing(2, os.fsync))
    checkpoints.save(8, state_at(8))
    checkpoints.wait(raise_errors=True)
    assert checkpoints.last_error is None and said == [] and checkpoints.load_latest()[0] == 8
    assert names(tmp_path) == ["000000000008.json", "000000000008.pt"]


def test_a_write_that_keeps_failing_is_reported_and_the_one_before_stays(tmp_path, monkeypatch):
    said = []
    checkpoints = saved(tmp_path, 8, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(99, os.fsync))
        checkpoints.save(16, state_at(16))
        checkpoints.wait()  # training goes on
        assert "Disk quota exceeded" in checkpoints.last_error and "0.016 kimg" in checkpoints.last_error
        assert len(said) == 1 and "WARNING" in said[0]
        with pytest.raises(CheckpointError, match="Disk quota exceeded"):
            checkpoints.wait(raise_errors=True)  # the last save of a run may not fail silently
    assert checkpoints.load_latest()[0] == 8
    checkpoints.save(24, state_at(24))
    checkpoints.wait(raise_errors=True)
    assert checkpoints.last_error is None and checkpoints.load_latest()[0] == 24


def test_free_space_is_checked_before_writing(tmp_path, monkeypatch):
    said = []
    checkpoints = saved(tmp_path, 8, say=said.append)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 3_000_000)
    monkeypatch.setattr(checkpoint, "atomic_file", lambda path: pytest.fail("wrote on a full disk"))
    checkpoints.save(16, state_at(16))
    checkpoints.wait()
    assert "3 MB are free" in said[0] and "needs" in said[0]
    assert checkpoints.load_latest()[0] == 8


def test_then_comes_before_the_commit(tmp_path):
    """A checkpoint on disk implies the weights file that goes with it."""
    seen = []
    checkpoints = Checkpoints(tmp_path, say=seen.append)
    checkpoints.save(8, state_at(8), then=lambda: seen.append(names(tmp_path)))
    checkpoints.wait(raise_errors=True)
    assert seen == [["000000000008.pt"]]
    checkpoints.save(16, state_at(16), then=lambda: 1 / 0)
    checkpoints.wait()
    assert "ZeroDivisionError" in checkpoints.last_error and checkpoints.load_latest()[0] == 8


def test_saves_queue_up_one_behind_the_other(tmp_path):
    checkpoints = saved(tmp_path, *range(0, 80, 8))
    assert list(checkpoints.committed()) == list(range(0, 80, 8))
    assert checkpoints.blocked_seconds > 0


# --- pruning ----------------------------------------------------------------------------------------------------------
def test_keeps_the_newest_and_the_last_healthy(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for nimg in range(8, 64, 8):
        checkpoints.save(nimg, state_at(nimg), healthy=nimg <= 24)
    checkpoints.wait(raise_errors=True)
    assert {n: about["healthy"] for n, about in checkpoints.committed().items()} == {24: True, 48: False, 56: False}
    assert len(names(tmp_path)) == 6


def test_a_damaged_future_does_not_count_and_goes(tmp_path):
    """After falling back from a damaged 24 to 16, keep=1 must not throw the good new one away for it."""
    saved(tmp_path, 8, 16, 24)
    flip_a_byte(tmp_path / "000000000024.pt")
    checkpoints = Checkpoints(tmp_path, keep=1, say=lambda text: None)
    assert checkpoints.load_latest()[0] == 16
    checkpoints.save(20, state_at(20))
    checkpoints.wait(raise_errors=True)
    assert list(checkpoints.committed()) == [20] and checkpoints.load_latest()[0] == 20


def test_other_peoples_files_are_left_alone(tmp_path):
    mine = ["notes.json", "best.pt", "123.pt", ".hidden"]
    for name in mine:
        (tmp_path / name).write_text("{}")
    checkpoints = saved(tmp_path, 8, 16, 24, keep=1)
    assert set(mine) <= set(names(tmp_path)) and len(names(tmp_path)) == len(mine) + 2
    assert checkpoints.load_latest()[0] == 24


def test_pruning_that_fails_is_not_fatal(tmp_path, monkeypatch):
    said, real = [], Path.unlink
    checkpoints = saved(tmp_path, 8, keep=1, say=said.append)

    def unlink(path, missing_ok=False):
        if "008" in path.name:
            raise OSError(16, "Device or resource busy")
        real(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    checkpoints.save(16, state_at(16))
    checkpoints.wait(raise_errors=True)
    assert len(said) == 1 and "Device or resource busy" in said[0] and "take space only" in said[0]
    assert checkpoints.load_latest()[0] == 16


def test_saving_the_same_place_again_replaces_it(tmp_path):
    checkpoints = saved(tmp_path, 8)
    checkpoints.save(8, state_at(99), healthy=False)
    checkpoints.wait(raise_errors=True)
    assert checkpoints.load_latest()[1]["nimg"] == 99 and checkpoints.committed()[8]["healthy"] is False
