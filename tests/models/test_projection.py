"""The search for styles that draw a slice, against the same search with plain autograd and Adam written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models import projection
from models.stylegan2 import Generator


@pytest.fixture(scope="module")
def G() -> Generator:
    torch.manual_seed(0)
    return Generator(
        resolution=32, channels=1, z_dim=8, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8
    ).eval()


def halved(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-2], x.shape[-2] // 2, 2, x.shape[-1] // 2, 2).mean((-3, -1))


def slow_pyramid(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference at 32, 16 and 8 px, the mean of the three."""
    found = []
    for _ in range(3):
        found.append(np.abs(a - b).mean())
        a, b = halved(a), halved(b)
    return float(np.mean(found))


def test_the_loss_sees_all_sizes_down_to_eight():
    a, b = torch.rand(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    found = projection.pyramid_loss(a, b)
    assert found.tolist() == pytest.approx([slow_pyramid(p.numpy(), q.numpy()) for p, q in zip(a, b, strict=True)])


def test_the_rate_rises_stays_and_falls():
    """0.05 after the first twentieth of the steps, half a cosine over the last quarter."""
    assert projection.learning_rate(0.0) < 0.002
    assert projection.learning_rate(0.025) == pytest.approx(0.025, abs=0.002)
    for done in (0.06, 0.4, 0.75):
        assert projection.learning_rate(done) == pytest.approx(0.05)
    for done in (0.8, 0.9, 0.97, 1.0):
        assert projection.learning_rate(done) == pytest.approx(0.05 * (1 - math.cos(math.pi * (1 - done) / 0.25)) / 2)


def test_the_search_has_these_numbers():
    """Candidates, rate, its rise and fall, when layers part, and how much it costs to go far."""
    assert (projection.CANDIDATES, projection.LR, projection.WARM_UP, projection.COOL_DOWN) == (256, 0.05, 0.05, 0.25)
    assert (projection.FREE_AT, projection.REGULARISE) == (0.3, 0.002)


def test_the_start_is_the_candidate_whose_picture_is_nearest(G):
    draw = torch.Generator().manual_seed(1)
    w, targets = torch.randn(11, 6, generator=draw), torch.rand(3, 1, 32, 32, generator=draw) * 2 - 1
    with torch.no_grad():
        pictures = torch.cat([G.synthesis(row[None, None].repeat(1, G.num_ws, 1)) for row in w])
        targets[1] = pictures[7]
    best = [int((pictures - target).abs().mean((1, 2, 3)).argmin()) for target in targets]
    assert best[1] == 7
    assert torch.equal(projection.nearest_styles(G, w, targets, batch=4), w[best])


def test_the_search_is_adam_on_the_styles(G):
    """Ten steps by hand: the first three move one style per slice, the others one per layer, with Adam begun anew."""
    draw = torch.Generator().manual_seed(2)
    w, targets = torch.randn(9, 6, generator=draw), torch.rand(2, 1, 32, 32, generator=draw) * 2 - 1
    G.requires_grad_(False)
    ws, losses = projection.project(G, targets, w, steps=10, batch=4)

    start, scale = projection.nearest_styles(G, w, targets, 4)[:, None], float(w.std(0).mean())
    offset, history = torch.zeros(2, 1, 6), []
    first = second = torch.zeros(())
    for step in range(10):
        if step == 3:
            offset, first, second = offset.repeat(1, G.num_ws, 1), torch.zeros(()), torch.zeros(())
        count = step + 1 if step < 3 else step - 2  # of this Adam's steps
        offset.requires_grad_()
        pictures = G.synthesis((start + scale * offset).expand(-1, G.num_ws, -1))
        loss = projection.pyramid_loss(pictures, targets) + 0.002 * offset.square().mean((1, 2))
        (slope,) = torch.autograd.grad(loss.sum(), offset)
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        move = (first / (1 - 0.9**count)) / ((second / (1 - 0.99**count)).sqrt() + 1e-8)
        offset = (offset - projection.learning_rate(step / 10) * move).detach()
        history.append(float(loss.detach().mean()))
    assert ws.shape == (2, G.num_ws, 6) and not ws.requires_grad
    torch.testing.assert_close(ws, start + scale * offset, rtol=1e-3, atol=1e-4)
    assert losses == pytest.approx(history, rel=1e-3) and losses[-1] < losses[0]
    assert not torch.equal(ws[:, 0], ws[:, 1])


def test_a_progress_bar_may_wrap_the_steps(G):
    seen = []

    def track(steps):
        for step in steps:
            seen.append(step)
            yield step

    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    _, losses = projection.project(G, torch.zeros(1, 1, 32, 32), w, steps=4, track=track)
    assert seen == [0, 1, 2, 3] and len(losses) == 4
