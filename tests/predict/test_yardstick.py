"""What generated slices are measured with while a run trains: whose slices, how many, and where there are too few."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jobs.predict.yardstick import FEWEST, SAMPLES, Yardstick, open_yardstick, samples_for
from jobs.training import ranks
from models import encoder

RT = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)


class Pack(SimpleNamespace):
    """Slices of one grey value each, which says which slice it is."""

    def __init__(self, number: int, digest: str = "d", first: int = 0):
        greys = np.arange(first, first + number, dtype=np.uint8)
        images = np.broadcast_to(greys[:, None, None, None], (number, 1, 8, 8))
        super().__init__(images=images, classes=[], labels=np.arange(number) % 2, digest=digest * 12)
        self.subjects = self.names = ["one"] * number  # of one person, there is nothing to watch

    def __len__(self) -> int:
        return len(self.labels)


class Grey(torch.nn.Module):
    """Features that tell which slice it is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grey = images[:, 0, 0, 0].float()
        return torch.stack([grey, grey.square()], 1)


def yardstick(packs: list[Pack], number: int = 20, say=lambda text: None) -> Yardstick:
    def draw(labels: torch.Tensor):
        return lambda rows: torch.full((len(rows), 1, 8, 8), 100, dtype=torch.uint8)

    return Yardstick(RT, (Grey(), "grey"), packs, draw, number, say)


def greys(found: Yardstick) -> list[int]:
    return found.heldout[:, 0].int().tolist()


def test_held_out_slices_are_the_measure_and_samples_have_the_classes_of_the_training_set():
    found = yardstick([Pack(60), Pack(30, "h", first=100)])
    assert greys(found) == list(range(100, 130)) and found.of == "grey, 30 of hhhhhhhhhhhh"
    assert found.number == 20 and found.labels.tolist() == [round(i * 59 / 19) % 2 for i in range(20)]
    figures = found()
    names = ("kid", "fid", "precision", "recall", "coverage")
    assert list(figures) == [*names, *(f"{name}_train" for name in names)]
    assert figures["kid_train"] == found.real["kid_train"] != figures["kid"]


@pytest.mark.parametrize("held", [[], [Pack(7, "h", first=100)]])
def test_where_nobody_is_held_out_training_slices_measure_training_slices_that_are_others(held):
    said: list[str] = []
    found = yardstick([Pack(61), *held], number=250, say=said.append)
    assert found.number == 30 and len(said) == len(held)
    mine = set(greys(found))
    assert len(mine) == 30 and mine <= set(range(61))
    others = {round(i * 60 / 59) for i in range(0, 60, 2)}
    assert not mine & others and found.of.endswith("dddddddddddd")


def test_too_few_slices_and_no_interval_mean_no_figures():
    said: list[str] = []
    c = SimpleNamespace(metric_kimg=4.0, conditional=False)
    assert open_yardstick(c, RT, None, [Pack(60)], lambda labels: None, said.append) is None and not said
    assert open_yardstick(c, RT, (Grey(), "grey"), [Pack(39)], lambda labels: None, said.append) is None
    assert "39 training slices" in said[0]
    assert open_yardstick(c, RT, (Grey(), "grey"), [Pack(60)], lambda labels: None, said.append).number == 30


def test_fewer_samples_are_drawn_where_each_costs_many_calls():
    assert samples_for(50, 1) == samples_for(200, 20) == SAMPLES
    assert samples_for(12, 20) == FEWEST and samples_for(60, 20) == 180


def test_the_encoder_is_trained_by_the_number_of_slices():
    assert [encoder.steps_for(n) for n in (48, 2000, 8000, 10**6)] == [100, 187, 750, 1500]
