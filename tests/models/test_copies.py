"""The search for copies: moves against slow loops, copies found at every move, other people's slices not accused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from data.phantom import phantom_slice
from jobs.training.judges import COPIES_RISING
from models import copies
from models.quality import CopyWatch, copying, nearer_than_any

SIZE = 64


def move(mx=1.0, my=1.0, turn=0.0, scale=1.0, x=0.0, y=0.0) -> torch.Tensor:
    """turn in degrees, x and y as shares of the width."""
    return torch.tensor([mx, my, math.radians(turn), math.log(scale), 2 * x, 2 * y])


def phantoms(seed: int, n: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([phantom_slice(seed, i, SIZE) for i in range(n)]))[:, None]


@pytest.fixture(scope="module")
def sets() -> tuple[torch.Tensor, torch.Tensor]:
    """Training slices, and slices of other people."""
    return phantoms(0, 100), phantoms(1, 60)


@pytest.fixture(scope="module")
def honest(sets) -> torch.Tensor:
    """Distances of other people's slices."""
    return copies.search(sets[1], sets[0]).distance


def laid(images: torch.Tensor, how: torch.Tensor) -> torch.Tensor:
    return copies.moved(images.float(), how.repeat(len(images), 1)).round().to(torch.uint8)


# --- the parts --------------------------------------------------------------------------------------------------------
def test_a_move_is_its_definition():
    """Mirror, then turn, then scale, then shift, pixel by pixel with bilinear weights."""
    how, x = move(-1, 1, 4, 1.05, 0.03, -0.04), np.random.default_rng(0).random((9, 9))
    found = copies.moved(torch.from_numpy(x)[None, None].float(), how[None])[0, 0].numpy()
    t, s = math.radians(4), 1.05
    for i, j in itertools.product(range(9), range(9)):
        px, py = (2 * j + 1) / 9 - 1, (2 * i + 1) / 9 - 1
        qx = -(math.cos(t) * px - math.sin(t) * py) * s + 0.06
        qy = (math.sin(t) * px + math.cos(t) * py) * s - 0.08
        u, v = (min(max(((q + 1) * 9 - 1) / 2, 0), 8) for q in (qx, qy))
        a, b = min(int(u), 7), min(int(v), 7)
        fu, fv = u - a, v - b
        upper, lower = ((1 - fu) * x[row, a] + fu * x[row, a + 1] for row in (b, b + 1))
        value = (1 - fv) * upper + fv * lower
        assert found[i, j] == pytest.approx(value, abs=1e-5)


def test_tangents_are_derivatives_of_the_picture_by_the_move():
    line = (torch.arange(48) * 2 + 1) / 48 - 1
    x = (torch.exp(-4 * line**2)[:, None] * torch.cos(3 * line + 0.5))[None, None]
    step, inner = 0.02, (slice(None), slice(None), slice(6, -6), slice(6, -6))
    for k, part in enumerate((4, 5, 2, 3)):  # of a move: shift x, shift y, angle, log scale
        there, back = (move()[None].index_add(1, torch.tensor([part]), torch.tensor([[way]])) for way in (step, -step))
        found = (copies.moved(x, there) - copies.moved(x, back)) / (2 * step)
        torch.testing.assert_close(found[inner], copies.tangents(x)[:, k].view_as(x)[inner], atol=0.02, rtol=0.02)


def test_alignment_finds_the_move():
    x = copies.smooth(phantoms(0, 3)).float()
    for how in (move(-1, 1, 3, 1.03, 0.02, -0.03), move(1, 1, -2, 0.98, -0.02, 0.01)):
        start = torch.cat([how[:2], torch.zeros(4)]).repeat(3, 1)
        there = copies.moved(x, how.repeat(3, 1))
        score, found = copies.align(x, there, start, 6)
        assert float(score.min()) > 0.999
        torch.testing.assert_close(found, how.repeat(3, 1), atol=4e-3, rtol=0)


def test_a_move_in_words():
    assert copies.in_words(move()) == "as it is"
    assert copies.in_words(move(-1, 1)) == "mirrored left to right"
    assert copies.in_words(move(1, -1, x=0.03)) == "mirrored upside down, moved -3.0 % and 0.0 %"
    assert copies.in_words(move(turn=2, scale=1 / 1.04)) == "turned -2.0 degrees, 1.04 times as large"


# --- the search -------------------------------------------------------------------------------------------------------
MOVES = {
    "as it is": move(),
    "one pixel": move(x=1 / SIZE),
    "1.6 %": move(x=0.016, y=-0.016),
    "5 %": move(x=0.05, y=-0.05),
    "mirrored": move(-1),
    "upside down": move(1, -1),
    "turned": move(turn=5),
    "turned back": move(turn=-5),
    "larger": move(scale=1 / 1.05),
    "smaller": move(scale=1.05),
    "mirrored and moved": move(-1, x=-0.05, y=0.05),
    "all": move(-1, 1, 4, 0.97, 0.04, -0.03),
    "the furthest": move(-1, 1, 5, 1.05, 0.05, 0.05),
    "the other furthest": move(1, 1, -5, 0.95, -0.05, 0.05),
}
LIGHT = {
    "as it is": lambda x: x,
    "bright": lambda x: x + 25,
    "contrast": lambda x: (x - 60) * 1.3 + 60,
    "as training does": lambda x: 1.2 * x + 0.15 * x.clamp(0, 127.5),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_copy_is_found_wherever_it_was_moved(sets, honest, name):
    train, rows = sets[0], torch.arange(0, 100, 10)
    for light in LIGHT.values() if name in ("as it is", "all") else [LIGHT["as it is"]]:
        copy = light(laid(train[rows], MOVES[name]).float()).clamp(0, 255).round().to(torch.uint8)
        found = copies.search(copy, train)
        assert found.index.tolist() == rows.tolist()
        assert float(found.distance.max()) < 0.7 * float(honest.min())


def test_it_is_as_good_as_an_exhaustive_search(sets):
    """Over every mirror, turn, scale and shift of a fine grid, and all slices, within what the grid leaves."""
    train, queries = sets[0][:6], laid(sets[1][:2], move(-1, 1, 3, 1.02, 0.02, 0.0))
    found = copies.search(queries, train)
    bank = copies.unit(copies.smooth(train).float())
    shifts, turns, scales = (-0.04, -0.02, 0, 0.02, 0.04), (-4, -2, 0, 2, 4), (0.96, 1, 1.04)
    grid = [move(mx, my, t, s, x, y) for mx, my in itertools.product((1, -1), (1, -1)) for t in turns for s in scales
            for x in shifts for y in shifts]  # fmt: skip
    for i in range(2):
        tried = copies.moved(copies.smooth(queries[i : i + 1]).float().repeat(len(grid), 1, 1, 1), torch.stack(grid))
        least = float((1 - copies.unit(tried) @ bank.T).min())
        assert float(found.distance[i]) <= 1.02 * least


def test_slices_of_ones_own_person_are_no_neighbours(sets):
    train = sets[0][:20]
    for others in (10, 3):  # fewer than are aligned, at 32 px and in full
        people = (torch.arange(20) >= others).long()
        found = copies.search(train, train[:20], (people, people))
        assert bool((people[found.index] != people).all()) and float(found.distance.min()) > 1e-3
        assert float(found.distance.max()) < 1


def test_colour_and_small_slices():
    """Of 32 px, of three channels, and fewer slices than candidates."""
    x = torch.nn.functional.avg_pool2d(phantoms(0, 8).float(), 2).repeat(1, 3, 1, 1)
    x[:, 1], x[:, 2] = x[:, 1] * 0.8, x[:, 2] * 0.5
    x = x.round().to(torch.uint8)
    found = copies.search(laid(x, MOVES["all"]), x)
    assert found.index.tolist() == list(range(8)) and float(found.distance.max()) < 0.01


# --- what the distances say -------------------------------------------------------------------------------------------
def test_one_in_a_hundred_is_found_and_honest_samples_are_not_accused(sets, honest):
    """Of 150 samples of other people, one or two become training slices, mirrored, moved and turned."""
    train = sets[0]
    others, moves = phantoms(2, 150), torch.stack([move(-1, 1, 3, 1.02, 0.016, -0.03), move(1, 1, -4, 0.97, 0.0, 0.05)])
    distance = copies.search(others, train).distance
    found = nearer_than_any(distance, honest, torch.arange(60))
    assert found["chance"] > 0.05 and found["four_times_nearer"] == 0
    copy = copies.search(copies.moved(train[40:42].float(), moves).round().to(torch.uint8), train).distance
    for count in (1, 2):
        mixed = torch.cat([distance[count:], copy[:count]])
        found = nearer_than_any(mixed, honest, torch.arange(60))
        assert found["four_times_nearer"] == count and found["chance"] < 0.01 * 2 / count
    few = torch.cat([others[:10], laid(train[40:42], moves[0])])
    ours, pairs = copying(few, train, sets[1], torch.arange(60), pairs=3)
    assert [(p.generated, p.training) for p in pairs[:2]] in ([(10, 40), (11, 41)], [(11, 41), (10, 40)])
    assert ours["four_times_nearer"] == 2 and ours["chance"] < 0.01 and "mirrored" in copies.in_words(pairs[0].move)


def test_the_chance_is_that_of_all_orders():
    """Every order of 4 samples and 3 held-out slices is as likely; the bound lies above, and not far."""
    orders = list(itertools.combinations(range(7), 4))  # the places of the samples
    first = [next((i for i, place in enumerate(order) if place != i), 4) for order in orders]
    assert np.mean(first) == pytest.approx(4 / (3 + 1))
    for count in (1, 2):
        exact = np.mean([f >= count for f in first])
        samples, real = torch.tensor([0.9] * count + [9.0] * (4 - count)), torch.tensor([2.0, 3.0, 4.0])
        found = nearer_than_any(samples, real, torch.arange(3))
        assert found["nearer_than_any"] == count and found["nearer_than_any_expected"] == 1.0
        assert exact <= (4 / 7) ** count and found["chance"] == pytest.approx(min(6 * (1 / (1 + 12)) ** count, 1))


def test_honest_samples_are_accused_once_in_a_hundred_times_at_most():
    """Distances of both sets from one law, 1,000 times, that falls as slowly as is assumed; slices of one person have
    nearly the same."""
    draw, accused = np.random.default_rng(0), [0, 0]
    for _ in range(1000):
        d = torch.from_numpy(draw.random(300) ** 0.25)
        accused[0] += nearer_than_any(d[:200], d[200:], torch.arange(100))["chance"] < 0.01
        real = d[200:220].repeat_interleave(10) + 1e-6 * torch.arange(200)  # 20 people
        accused[1] += nearer_than_any(d[:200], real, torch.arange(200) // 10)["chance"] < 0.01
    assert max(accused) <= 10


def test_copies_do_not_hide_behind_a_held_out_slice_that_is_one_itself():
    real, samples = torch.linspace(1, 2, 50), torch.linspace(1, 2, 100)
    samples[:3] = 0.02
    real[7] = 0.0
    found = nearer_than_any(samples, real, torch.arange(50))
    assert found["heldout_copies"] == 1 and found["four_times_nearer"] == 3 and found["chance"] < 1e-3


def test_a_run_whose_samples_turn_into_training_slices_is_noticed():
    """Features of samples that go, tick by tick, from slices of others to training slices."""

    def features(n: int, seed: int) -> torch.Tensor:
        return torch.randn(n, 16, generator=torch.Generator().manual_seed(seed))

    train, heldout = features(800, 0), features(150, 1)
    watch = CopyWatch(train, heldout, torch.arange(150) // 3)
    honest = [watch.share(features(300, 10 + tick)) for tick in range(5)]
    turning = [watch.share((1 - t) * features(300, 10) + t * train[:300]) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert max(honest) < 0.12 and min(honest) >= 0.0
    assert turning[0] == honest[0] and turning[3] > COPIES_RISING < turning[4] == 1.0
    part = torch.cat([features(200, 20), train[:100]])  # a third of the samples
    assert watch.share(part) > COPIES_RISING


def test_the_judge_of_a_run_sees_copies_that_are_moved(sets):
    """A run of pictures, honest and then with half of its samples mirrored and moved training slices."""
    train, others = sets[0], sets[1]
    watch = CopyWatch(train, others[:40], torch.arange(40))
    honest, copied = others[40:], laid(train[::10], move(-1, 1, 2, 1, 0.016, 0.02))
    assert watch.share(honest) <= 0.15 < COPIES_RISING < watch.share(torch.cat([honest[:10], copied]))


@pytest.mark.parametrize("twice", [0, 20, 60, 300])
def test_copies_do_not_hide_behind_held_out_slices_that_are_training_slices(twice):
    """A full copier, beside 1,000 held-out slices some of which lie in the training set under another name."""
    gen = torch.Generator().manual_seed(0)
    real = 0.01 + 0.05 * torch.rand(1000, generator=gen)
    real[:twice] = 1e-5
    found = nearer_than_any(torch.full((500,), 1e-5), real, torch.arange(1000))
    assert found["heldout_copies"] == twice and found["chance"] < 1e-6 and found["four_times_nearer"] == 500
