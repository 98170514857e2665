"""The fault harness (tests/faults) as a test, and tests of their own for what it has found."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from PIL import Image

from jobs.run import stopping
from jobs.run.attempt import Attempt, report_and_code
from jobs.run.rundir import RunDir
from jobs.training import upkeep
from jobs.view import tensorboard


def harness(*words: str, seconds: float) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=tiny.ROOT, capture_output=True, text=True, errors="replace", timeout=seconds
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.timeout(1800)  # under three minutes on two idle cores
def test_every_fault_has_its_declared_outcome():
    said = harness("tests.faults", seconds=1700)
    assert said.count("| as declared |") >= 15 and "otherwise" not in said


@pytest.mark.long
@pytest.mark.timeout(14400)
def test_all_injections_have_their_declared_outcome():
    assert "otherwise" not in harness("tests.faults", "--long", "--seed", "2", seconds=14000)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_half_an_hour_of_start_kill_and_resume_leaves_nothing_behind(cluster):
    """On a cluster of its own; `cluster` is asked for because it says where there can be none."""
    assert "No problem was found" in harness("tests.faults.soak", seconds=5000)


# --- what was found ---------------------------------------------------------------------------------------------------
def test_a_picture_that_finds_no_room_does_not_end_training(tmp_path, monkeypatch):
    said = []

    def full(path, picture):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(upkeep, "save_png", full)
    record = SimpleNamespace(
        main=True, run=RunDir(tmp_path), attempt=SimpleNamespace(say=said.append), board=tensorboard.TensorBoard(None)
    )
    upkeep.Record.show(record, "00000.016.png", "samples", Image.new("L", (2, 2)), 16)
    assert len(said) == 1 and "00000.016.png cannot be written (No space left on device); training goes on" in said[0]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, 78), (errno.EDQUOT, 78), (errno.EROFS, 78), (errno.EIO, 75), (errno.ESTALE, 75)]
)
def test_what_a_file_system_says_is_one_plain_line(number, code, capsys):
    def main():
        raise OSError(number, os.strerror(number), "/runs/x/DONE")

    assert report_and_code(main) == code == stopping.exit_code(OSError(number, ""))
    said = capsys.readouterr().err.strip()
    assert said.startswith(f"error: /runs/x/DONE: {os.strerror(number)}; ") and "\n" not in said


def test_another_error_of_the_system_keeps_its_traceback(capsys):
    def main():
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        report_and_code(main)
    assert capsys.readouterr().err.startswith("error: FileNotFoundError")


def test_the_thread_of_tensorboard_dies_without_a_traceback(tmp_path, monkeypatch):
    """Its writer meets a full disk in a thread; the line about it comes with the next row."""
    said, shown = [], []
    board = tensorboard.TensorBoard(tmp_path, say=said.append)
    assert threading.excepthook is tensorboard._no_traceback_of_tensorboard
    writer = board.writer.file_writer.event_writer._async_writer._worker
    failure = SimpleNamespace(
        exc_type=OSError, exc_value=OSError(28, "No space left on device"), exc_traceback=None, thread=writer
    )
    tensorboard._no_traceback_of_tensorboard(failure, otherwise=shown.append)
    assert shown == []
    for change in ({"thread": threading.current_thread()}, {"exc_value": ValueError()}):
        other = SimpleNamespace(**vars(failure) | change)
        tensorboard._no_traceback_of_tensorboard(other, otherwise=shown.append)
    assert len(shown) == 2
    board.close()


def test_an_attempt_that_is_refused_for_its_data_changes_nothing(tmp_path):
    """It once took the new config over, and the mark of the end away, before it looked at the data."""
    data, run, packs = tmp_path / "data", tmp_path / "run", tmp_path / "packs"
    data.mkdir()
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32), np.uint8)).save(data / f"s{i}.png")
    flags = ("--data", str(data), "--log-kimg", "0.008")
    assert tiny.train(run, *flags, "--total-kimg", "0.016", packs=packs) == 0, tiny.output(run)
    Image.new("L", (32, 32), 200).save(data / "new.png")

    def files() -> dict:
        return {str(p): p.read_bytes() for p in run.rglob("*") if p.is_file()}

    before = files()
    assert tiny.train(run, *flags, "--total-kimg", "0.032", packs=packs) == 78
    assert files() == before and (run / "DONE").exists()
    assert tiny.train(run, *flags, "--total-kimg", "0.032", "--override", packs=packs) == 0
    assert RunDir(run).read_config()["total_kimg"] == 0.032


def test_attempts_record_the_code_of_a_full_disk(tmp_path):
    """What the process leaves with and what attempts.jsonl says of it agree."""
    run = RunDir(tmp_path / "run")
    with pytest.raises(OSError), Attempt(run, SimpleNamespace(batch=1), 0) as begun:
        begun.begin(0, 8, {})
        raise OSError(errno.EIO, "Input/output error")
    end = run.read_attempts()[-1]
    assert (end["event"], end["code"]) == ("end", 75) and stopping.exit_code(OSError(errno.EIO, "")) == 75
