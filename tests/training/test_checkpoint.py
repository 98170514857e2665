"""Checkpoints: killed at every step of a write, damaged, full disks, pruning, what may be in them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace

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
        "net": net.state_dict(),
        "opt": opt.state_dict(),
        "scaler": scaler.state_dict(),
        "off": torch.amp.GradScaler("cpu", enabled=False).state_dict(),
        "half": torch.randn(3).bfloat16(),
        "counters": {"skip": 0, "best": float("inf"), "ok": True, "name": "ä", "none": None, "pair": (1, [2])},
    }
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


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.float64(1.0), "state.a.b"),
        (np.zeros(2), "state.a.b"),
        (Path("x"), "state.a.b"),
        ({1, 2}, "state.a.b"),
        (b"x", "state.a.b"),
        ([1, object()], "state.a.b.1"),
        ({(1, 2): 3}, "state.a.b"),
        (torch.float32, "state.a.b"),
    ],
)
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


def test_no_tensors_at_all_is_finite():
    assert not_finite({"step": 3, "ids": torch.arange(3)}) is None


# --- killed -----------------------------------------------------------------------------------------------------------
def killed_while_saving(folder: Path, function: str, call: int, nimg: int = 24) -> None:
    """In a process of its own: save `nimg` and die by SIGKILL after the given call of os.fsync, os.replace or os.unlink
    (before it if `call` is negative), or after the save if it never comes to that call."""
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
        checkpoints.save(nimg, state_at(nimg))
        checkpoints.wait()
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def assert_markers_have_their_files(folder: Path) -> None:
    """What a marker says is there and whole, at any moment: else it is counted among those to keep, and is none."""
    for marker in folder.glob("*.json"):
        content, about = marker.with_suffix(".pt").read_bytes(), json.loads(marker.read_text())
        assert hashlib.sha256(content).hexdigest() == about["sha256"] and len(content) == about["size"], marker.name


@pytest.mark.parametrize(("function", "call", "newest"), [
    ("fsync", -1, 16),  # before the data are on disk
    ("fsync", 1, 16),  # temporary file written
    ("replace", 1, 16),  # .pt has its name
    ("fsync", 2, 16),  # and its folder is on disk
    ("fsync", -3, 16),  # sidecar written to its temporary file
    ("replace", 2, 24),  # sidecar has its name: committed
    ("fsync", 4, 24),
    ("unlink", -1, 16),  # before a marker of an earlier write at this place would be removed
    ("unlink", -2, 24),  # before the marker of 8 is removed
    ("unlink", 2, 24),  # it is, its data are not
    ("unlink", 3, 24),  # both are
    ("fsync", 99, 24),  # not at all
])  # fmt: skip
def test_killed_at_every_step_of_a_write(tmp_path, function, call, newest):
    saved(tmp_path, 8, 16, keep=2)
    killed_while_saving(tmp_path, function, call)
    assert_markers_have_their_files(tmp_path)
    left = {n: (tmp_path / f"{8:012d}.{n}").exists() for n in ("json", "pt")}
    if function == "unlink":
        assert list(left.values()) == {-1: [True, True], -2: [True, True], 2: [False, True], 3: [False, False]}[call]
    said = []
    checkpoints = Checkpoints(tmp_path, keep=2, say=said.append)
    nimg, state = checkpoints.load_latest()
    assert nimg == newest == state["nimg"] and state["G"]["weight"].eq(newest).all()
    assert not any("WARNING" in line for line in said)
    orphan = (tmp_path / "000000000024.pt").exists() and newest == 16
    assert any("000000000024.pt" in line for line in said) == orphan
    assert any("000000000008.pt" in line for line in said) == (left == {"json": False, "pt": True})
    # The next attempt goes on, cleans up, and ends with exactly two whole checkpoints.
    for n in (newest + 8, newest + 16):
        checkpoints.save(n, state_at(n))
    checkpoints.wait(raise_errors=True)
    expected = [f"{n:012d}.{kind}" for n in (newest + 8, newest + 16) for kind in ("json", "pt")]
    assert names(tmp_path) == expected
    assert Checkpoints(tmp_path).load_latest()[0] == newest + 16


@pytest.mark.parametrize(("function", "call", "newest"), [
    ("unlink", -1, 16), ("unlink", 1, 8), ("replace", -1, 8), ("replace", 1, 8), ("replace", 2, 16),
])  # fmt: skip
def test_killed_while_writing_at_a_place_that_has_a_checkpoint(tmp_path, function, call, newest):
    """The old marker goes before the new data take their name: it never stands beside data that are not its own."""
    saved(tmp_path, 8, 16, keep=2)
    before = (tmp_path / "000000000016.pt").read_bytes()
    killed_while_saving(tmp_path, function, call, nimg=16)
    assert_markers_have_their_files(tmp_path)
    said = []
    assert Checkpoints(tmp_path, say=said.append).load_latest()[0] == newest
    assert not any("WARNING" in line for line in said)
    assert call > 0 or (tmp_path / "000000000016.pt").read_bytes() == before


# --- damaged ----------------------------------------------------------------------------------------------------------
def test_nothing_at_all_is_a_fresh_start(tmp_path):
    assert Checkpoints(tmp_path).load_latest() is None
    assert Checkpoints(tmp_path / "no folder").load_latest() is None


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "empty", "gone", "sidecar empty", "sidecar hash", "sidecar size", "sidecar list"]
)
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
    elif damage == "sidecar size":
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"size": path.stat().st_size - 1}))
    else:
        sidecar.write_text("" if damage == "sidecar empty" else "[1]")
    said = []
    checkpoints = Checkpoints(tmp_path, keep=1, say=said.append)
    nimg, state = checkpoints.load_latest()
    assert nimg == 8 and state["G"]["weight"].eq(8).all()
    assert len(said) == 1 and "WARNING" in said[0] and "000000000016" in said[0]
    checkpoints.save(24, state_at(24))
    checkpoints.wait(raise_errors=True)
    assert names(tmp_path) == ["000000000024.json", "000000000024.pt"] and len(said) == 1


def test_the_only_one_damaged_is_no_fresh_start(tmp_path):
    saved(tmp_path, 8)
    flip_a_byte(tmp_path / "000000000008.pt")
    with pytest.raises(CheckpointError, match="000000000008"):
        Checkpoints(tmp_path, say=lambda text: None).load_latest()


def test_unfinished_writes_beside_a_whole_checkpoint_are_passed_over(tmp_path):
    saved(tmp_path, 8, 16, 24)
    for nimg in (16, 24):
        (tmp_path / f"{nimg:012d}.json").unlink()
    said = []
    assert Checkpoints(tmp_path, say=said.append).load_latest()[0] == 8
    assert ["000000000016.pt" in said[0], "000000000024.pt" in said[1], len(said)] == [True, True, 2]


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


class Call:
    """Unpickled by an ordinary loader it calls a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def with_marker(path: Path, content: object) -> None:
    """A checkpoint with a correct checksum."""
    torch.save(content, path)
    about = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size, "healthy": True}
    path.with_suffix(".json").write_text(json.dumps(about | {"nimg": int(path.stem)}))


@pytest.mark.parametrize("without", ["nothing", "check_archive"])
def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch, without):
    """Refused by the look at the archive, and again by the loader that takes tensors alone."""
    saved(tmp_path, 8)
    with_marker(tmp_path / "000000000016.pt", {"a": Call(os.mkdir, str(tmp_path / "owned"))})
    if without == "check_archive":
        monkeypatch.setattr(checkpoint, "check_archive", lambda file: None)
    assert Checkpoints(tmp_path, say=lambda text: None).load_latest()[0] == 8
    assert not (tmp_path / "owned").exists()


def test_an_object_that_the_loader_would_take_is_refused_in_the_archive(tmp_path):
    saved(tmp_path, 8)
    with_marker(tmp_path / "000000000016.pt", {"a": Call(bytearray, 10)})
    assert Checkpoints(tmp_path, say=lambda text: None).load_latest()[0] == 8


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


def test_between_two_tries_the_writer_pauses(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(checkpoint, "PAUSE", 2.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    monkeypatch.setattr(os, "fsync", failing(99, os.fsync))
    checkpoints = Checkpoints(tmp_path, say=lambda text: None)
    checkpoints.save(8, state_at(8))
    checkpoints.wait()
    assert slept == [2.0, 2.0] and checkpoint.RETRIES == 2


def test_a_write_that_failed_throws_nothing_away(tmp_path, monkeypatch):
    """Nor does it count as the place from which to keep: what lies ahead stays."""
    saved(tmp_path, 8, 16, 24)
    checkpoints = Checkpoints(tmp_path, keep=1, say=lambda text: None)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 0)
    checkpoints.save(20, state_at(20))
    checkpoints.wait()
    assert list(checkpoints.committed()) == [8, 16, 24]


@pytest.mark.parametrize(("spare", "written"), [(0, True), (-1, False), (-4000, False)])
def test_a_checkpoint_needs_its_own_bytes_and_room_for_the_rest(tmp_path, monkeypatch, spare, written):
    """8 KB of float64 beyond the room that stays free for weights, logs and pictures."""
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: checkpoint.ROOM + 8000 + spare)
    checkpoints = Checkpoints(tmp_path, say=lambda text: None)
    checkpoints.save(8, {"a": {"b": [torch.zeros(600, dtype=torch.float64), torch.zeros(400, dtype=torch.float64)]}})
    checkpoints.wait()
    assert ([*checkpoints.committed()] == [8]) is written and checkpoint.ROOM == 16 << 20


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


def test_saves_queue_up_one_behind_the_other(tmp_path, monkeypatch):
    """The second waits until the first is on disk, and no exception of the loop tears the one under way."""
    gate, real, order = threading.Event(), checkpoint.free_bytes, []
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: gate.wait(20) and real(folder))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(8, state_at(8), then=lambda: order.append(8))
    (writer,) = [t for t in threading.enumerate() if t.name == "checkpoint writer"]
    assert not writer.daemon
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(16, state_at(16), then=lambda: order.append(names(tmp_path)))
    assert order[0] == 8 and not writer.is_alive()
    checkpoints.wait(raise_errors=True)
    assert order[1] == ["000000000008.json", "000000000008.pt", "000000000016.pt"]
    assert list(checkpoints.committed()) == [8, 16]


def test_what_the_loop_waits_for_saves_is_counted(tmp_path, monkeypatch):
    """A clock that is five seconds further at each look: one look at the begin and one at the end of each call."""
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: next(clock)))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(8, state_at(8))
    assert checkpoints.blocked_seconds == 5
    checkpoints.wait()
    assert checkpoints.blocked_seconds == 10


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
