"""Data go to a GPU only where a training step still fits beside them. There is no GPU here: its memory is told."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batches import Batches, fits_on_device
from jobs.config import kinds, sizes
from jobs.config.specs import GanConfig
from jobs.training import devices, ranks

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
GB = 1e9


@pytest.fixture
def gpu(monkeypatch):
    """gpu(free, own): bytes that the driver calls free, and that this process holds already."""

    def tell(free: float, own: float = 0.0) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(40 * GB)))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(own))

    return tell


@pytest.mark.parametrize(
    ("size", "free", "own", "room", "fits"),
    [
        (2, 40, 0, 12, True),
        (2, 13, 0, 12, False),  # it would fit, and the step would not
        (2, 13, 1.1, 12, True),  # a part of the step has been taken already
        (21, 40, 0, 0, False),  # never more than half
        (19, 40, 0, 0, True),
        (19, 40, 0, 22, False),
    ],
)
def test_data_leave_room_for_the_step(gpu, size, free, own, room, fits):
    gpu(free * GB, own * GB)
    assert fits_on_device(round(size * GB), CUDA, room * GB) is fits
    assert fits_on_device(round(size * GB), CPU, room * GB)


def test_batches_ask_before_they_take(gpu, monkeypatch):
    """On a GPU without room the rows come from the host."""
    gpu(1000, 0)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **how: self)
    pack = SimpleNamespace(images=np.zeros((4, 1, 8, 8), np.uint8), labels=np.zeros(4, np.int64))
    for room, place in ((0.0, "GPU memory"), (900.0, "read ahead")):
        batches = Batches(pack, seed=0, batch=2, device=CUDA, room=room)
        assert place in batches.placement
        batches.close()


def test_the_room_is_that_of_the_step_on_this_card(monkeypatch):
    c = GanConfig(data="phantom")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    rt = ranks.Runtime(0, 2, 0, CUDA, 1)
    expected = sizes.with_margin(kinds.JOBS["stylegan2"].memory_gb(c, 2, (7, 0))) * GB
    assert devices.step_bytes(c, rt) == pytest.approx(expected)
    assert devices.step_bytes(c, ranks.Runtime(0, 2, 0, CPU, 1)) == 0
