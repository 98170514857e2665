"""A feature encoder whose training is interrupted: it goes on bit for bit, and what is no such state is passed over."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from data.phantom import phantom_label, phantom_slice
from jobs.predict import unfinished
from jobs.predict.unfinished import UnfinishedEncoder
from jobs.run import stopping
from jobs.training.weights import write_weights
from jobs.view import progress
from jobs.view.progress import counted
from models.encoder import train_encoder

STEPS = 6
ABOUT = {"pack": "abc", "seed": 0}


@pytest.fixture(scope="module")
def data():
    images = np.stack([phantom_slice(0, i, 32) for i in range(24)])[:, None]
    labels = torch.tensor([phantom_label(0, i) for i in range(24)])
    return images, labels, train_encoder(images, labels, 2, seed=0, steps=STEPS).state_dict()


def train(data, keeper=None, steps=STEPS, track=iter):
    return train_encoder(data[0], data[1], 2, seed=0, steps=steps, track=track, unfinished=keeper).state_dict()


def interrupted(data, keeper, at=3):
    """Train until Ctrl-C comes within step `at`, counted from 1; what it says."""

    def steps_of(steps):
        for step in steps:
            if step == at - 1:
                signal.raise_signal(signal.SIGINT)  # as the step begins: it ends as a whole
            yield step

    with pytest.raises(KeyboardInterrupt) as stopped, keeper.interruptible():
        train(data, keeper, track=steps_of)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return str(stopped.value)


@pytest.fixture
def handler():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_training_goes_on_bit_for_bit(data, tmp_path, capsys, handler):
    keeper = UnfinishedEncoder(tmp_path / "encoder.part", ABOUT)
    assert interrupted(data, keeper) == "the same command goes on after step 3 of the encoder's 6"
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.part"]
    done, seen = UnfinishedEncoder(tmp_path / "encoder.part", ABOUT), []

    def watched(steps):
        seen.append(steps)
        return steps

    found = train(data, done, track=watched)
    assert seen == [range(3, 6)] and all(torch.equal(found[k], v) for k, v in data[2].items())
    assert "goes on after step 3 of 6" in capsys.readouterr().out
    done.remove()
    assert not list(tmp_path.iterdir())


def test_it_is_kept_now_and_then_and_a_full_disk_ends_nothing(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(unfinished, "KEEP_SECONDS", 0.0)
    keeper, written = UnfinishedEncoder(tmp_path / "encoder.part", ABOUT), []
    monkeypatch.setattr(unfinished, "write_weights", lambda path, states, about: written.append(about["done"]))
    train(data, keeper)
    assert written == [1, 2, 3, 4, 5, 6]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unfinished, "write_weights", full)
    found = train(data, keeper, steps=2)
    assert torch.isfinite(found["mean"]).all() and "WARNING" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["damaged", "other data", "other steps", "beyond"])
def test_what_is_not_its_state_is_passed_over_with_one_line(data, tmp_path, monkeypatch, capsys, handler, kind):
    path = tmp_path / "encoder.part"
    interrupted(data, UnfinishedEncoder(path, ABOUT | {"pack": "other"} if kind == "other data" else ABOUT))
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:-9])
    elif kind == "beyond":
        write_weights(path, {"encoder": {}}, {"config": ABOUT | {"steps": STEPS}, "done": 99})
    capsys.readouterr()
    assert UnfinishedEncoder(path, ABOUT).load(STEPS + 1 if kind == "other steps" else STEPS) is None
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(path) in said and "begins again" in said


def test_a_signal_that_a_training_run_waits_for_is_kept_for_too(data, tmp_path, monkeypatch):
    """There the run's handlers stand, and the loop has to hear of it."""
    monkeypatch.setattr(stopping, "_received", ["USR1"])
    keeper = UnfinishedEncoder(tmp_path / "encoder.part", ABOUT)
    with pytest.raises(stopping.Stopped):
        train(data, keeper)
    monkeypatch.setattr(stopping, "_received", [])
    assert UnfinishedEncoder(keeper.path, ABOUT).load(STEPS)[0] == 1


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    now = iter(range(0, 1000, 8))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(counted(range(3, 9), "steps", 3, interactive=False)) == [3, 4, 5, 6, 7, 8]
    assert capsys.readouterr().out == "steps: 6 of 9, 24 s left\n"
