"""weights.safetensors: what is in it, that its bytes depend on its contents alone, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from jobs.training.weights import WeightsError, digest_of, read_weights, write_weights

ABOUT = {"config": {"resolution": 32, "lr": 0.1}, "job": "vae", "nimg": 8}


def states() -> dict:
    torch.manual_seed(0)
    return {
        "G": {"weight": torch.randn(3, 2), "half": torch.randn(4).bfloat16(), "count": torch.tensor(7)},
        "D": {"weight": torch.randn(2, 5).t(), "none": torch.zeros(0, 3)},
    }


def test_tensors_come_back_as_they_were(tmp_path):
    path, written = tmp_path / "w.safetensors", states()
    write_weights(path, written, ABOUT)
    tensors, about = read_weights(path)
    assert list(tensors) == sorted(tensors) == ["D.none", "D.weight", "G.count", "G.half", "G.weight"]
    for name, state in written.items():
        for key, value in state.items():
            found = tensors[f"{name}.{key}"]
            assert torch.equal(found, value) and found.dtype == value.dtype and found.shape == value.shape
    assert ABOUT.items() <= about.items() and about["format"] == 1


def test_equal_contents_are_equal_bytes(tmp_path):
    """Whatever the order in which they were handed over: two runs with the same weights have the same file."""
    first, second = tmp_path / "a", tmp_path / "b"
    write_weights(first, states(), ABOUT)
    turned = {name: dict(reversed(state.items())) for name, state in reversed(states().items())}
    write_weights(second, turned, dict(reversed(ABOUT.items())))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(str(first), "pt") as file:
        text = file.metadata()["config"]
    assert text == json.dumps(json.loads(text), sort_keys=True)


def test_the_checksum_is_over_names_types_shapes_and_bytes():
    """Written by earlier versions too, so the rule is pinned."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([3, 4])
    expected = hashlib.sha256(
        b"a torch.float32 (1, 2)\n" + a.numpy().tobytes() + b"b torch.int64 (2,)\n" + b.numpy().tobytes()
    )
    assert digest_of({"b": b, "a": a}) == digest_of({"a": a, "b": b}) == expected.hexdigest()
    others = [
        {"a": a, "c": b},
        {"a": a.t(), "b": b},
        {"a": a.view(torch.int32), "b": b},
        {"a": a + 1, "b": b},
        {"a": b, "b": a},
    ]
    assert len({digest_of(other) for other in others} | {expected.hexdigest()}) == 6


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, states(), ABOUT)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="checksum") as error:
        read_weights(path)
    assert error.value.exit_code == 78


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        (None, "no `config`"),
        ({"other": "x"}, "no `config`"),
        ({"config": "[1]"}, "no `config`"),
        ({"config": '{"config": 3, "format": 1}'}, "no `config`"),
        ({"config": "{"}, "not a readable"),
        ({"config": '{"config": {}}'}, "format None"),
        ({"config": '{"config": {}, "format": 2}'}, "format 2"),
        ({"config": '{"config": {}, "format": 1, "sha256": "0"}'}, "checksum"),
        ({"config": '{"config": {}, "format": 1}'}, None),
    ],
)
def test_files_of_others_are_refused_in_one_line(tmp_path, metadata, says):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    if says is None:  # written before there was a checksum
        assert read_weights(path)[1] == {"config": {}, "format": 1}
        return
    with pytest.raises(WeightsError, match=says) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_what_is_not_there_or_no_such_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none")
    (tmp_path / "text").write_text("text")
    with pytest.raises(WeightsError, match="not a readable weights file"):
        read_weights(tmp_path / "text")


def test_a_write_that_fails_keeps_the_weights_before(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write_weights(path, states(), ABOUT)
    before = path.read_bytes()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        write_weights(path, {"G": {"weight": torch.zeros(1)}}, ABOUT)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
