"""Obedience on pictures that are their own features: what obeys is seen to, what does not is not."""

import math

import pytest
import torch

from data.columns import Column
from jobs.predict.obedience import Told, group_figures, group_of, obedience
from jobs.view.figures import told_lines
from models.probes import RidgeProbe, agreement, rising

AGE, SEX = Column("age", (), 70.0, 10.0, 50.0, 90.0), Column("sex", ("F", "M"))
COLUMNS = (AGE, SEX)


def test_agreement_by_hand():
    found = agreement(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0]))
    # about their means, 3 and 3: -2, 0, 2 asked; -2, -1, 3 read: 10 / 8 and 10 / sqrt(8 * 14)
    assert found["slope"] == pytest.approx(1.25) and found["r"] == pytest.approx(10 / math.sqrt(112))
    assert found["mae"] == pytest.approx(2 / 3)
    assert agreement(torch.ones(3), torch.ones(3)) == {"mae": 0.0}
    assert rising(torch.tensor([[1.0, 2.0, 1.5]]), torch.tensor([[1.0, 2.0, 3.0]])) == 0.5


def test_a_ridge_probe_finds_a_line_and_is_not_led_astray_by_noise():
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(200, 60, generator=gen)
    y = 5 + 3 * x[:, 0] - x[:, 1]
    assert torch.allclose(RidgeProbe(x, y).predict(x), y.double(), atol=0.05)
    noisy = RidgeProbe(x[:80], y[:80] + 3 * torch.randn(80, generator=gen))
    assert agreement(noisy.predict(x[80:]), y[80:])["r"] > 0.7


def slices(values, gen, slope=1.0, male=1.0):
    """Features of slices whose age and sex are `values`: two that show them, the rest noise."""
    x = 0.1 * torch.randn(len(values), 6, generator=gen)
    x[:, 0] += slope * (values[:, 0] - 70) / 10
    x[:, 1] += male * values[:, 1]
    return x


def told(number, gen, **how):
    values = torch.stack(
        [50 + 40 * torch.rand(number, generator=gen), (torch.rand(number, generator=gen) < 0.5).float()], 1
    )
    return Told(slices(values, gen, **how), values)


@pytest.mark.parametrize(("slope", "male"), [(1.0, 1.0), (0.3, 0.0)])
def test_a_model_that_obeys_and_one_that_does_not(slope, male):
    gen = torch.Generator().manual_seed(1)
    train, held = told(300, gen), told(100, gen)
    train.values[::7, 0] = math.nan  # nobody knows the age of some
    fake = told(200, gen, slope=slope, male=male)
    rows = [{"age": "60", "sex": "F"}] * 24

    def draw(latents, of_rows):
        values = torch.tensor([[float(row["age"]), float(row["sex"] == "M")] for row in of_rows])
        if slope < 1:
            values[:, 0] = 70 + 8 * torch.randn(len(values), generator=gen)  # draws whatever it likes
        return slices(values, gen, 1.0, male)

    found = obedience(COLUMNS, fake, train, held, rows, draw)
    assert found["age"]["held_out"]["slope"] == pytest.approx(1, abs=0.1)
    assert found["age"]["generated"]["slope"] == pytest.approx(slope, abs=0.1)
    assert found["sex"]["held_out"]["accuracy"] > 0.98
    if slope == 1:
        assert found["sex"]["generated"]["accuracy"] > 0.98 and found["age"]["rising"] > 0.98
        assert found["age"]["train_on_generated"]["r"] > 0.95
        assert abs(found["sex"]["moves"]["age"]) < 0.2 and found["age"]["moves"]["sex"] < 0.05
    else:
        assert found["sex"]["generated"]["accuracy"] < 0.65 and 0.3 < found["age"]["rising"] < 0.7
    lines = told_lines({"obedience": found})
    assert lines[0].startswith("age obeyed: generated r ") and "slope" in lines[0] and "% right" in lines[1]


def test_groups_and_the_one_that_was_forgotten():
    assert [group_of(v, AGE) for v in (50.0, 59.9, 60.0, math.nan)] == ["50-59", "50-59", "60-69", ""]
    assert group_of(1.0, SEX) == "M" and group_of(0.5, Column("slice", (), 0.5, 0.3, 0.0, 0.9)) == "0.3-0.6"
    gen = torch.Generator().manual_seed(2)
    train, held, fake = told(400, gen), told(200, gen), told(400, gen)
    men = fake.values[:, 1] == 1
    fake.features[men, 2] += 3  # no slice of a man is like a real one
    found = group_figures(COLUMNS, fake, train, held, lambda: torch.Generator().manual_seed(0))
    assert found["sex"]["M"]["kid"] > 10 * abs(found["sex"]["F"]["kid"]) and found["sex"]["M"]["coverage"] < 0.2
    assert found["sex"]["F"]["coverage"] > 0.8 and abs(found["sex"]["F"]["kid_of_training"]) < found["sex"]["M"]["kid"]
    few = group_figures(COLUMNS, told(30, gen), train, held, lambda: torch.Generator().manual_seed(0))
    assert all("kid" not in f for f in few["sex"].values())
    assert "are too few" in told_lines({"groups": few})[0]
