"""The learning rate as a function of images seen, and what AdamW decays."""

from __future__ import annotations

import pytest
import torch

from models.optim import adamw, after_window, learning_rate


def test_warm_up_then_cosine_to_a_tenth():
    rate = lambda nimg: learning_rate(nimg, 10, 1.0, warmup_kimg=1, decay_kimg=100)  # noqa: E731
    assert rate(0) == pytest.approx(0.01) and rate(490) == pytest.approx(0.5, rel=1e-3)
    assert rate(50_000) == pytest.approx(0.55) and rate(100_000) == rate(10**7) == pytest.approx(0.1)
    falling = [rate(n) for n in range(1000, 100_000, 1000)]
    assert falling == sorted(falling, reverse=True)


def test_without_decay_it_stays_and_without_warm_up_it_starts_there():
    assert learning_rate(0, 8, 0.3, 0, 0) == learning_rate(10**8, 8, 0.3, 0, 0) == pytest.approx(0.3)


def test_a_plateau_halves_the_rate_and_progress_does_not():
    best, factor, factors = float("inf"), 1.0, []
    for loss in (1.0, 0.9, 0.895, 0.88, 0.95, 0.87):  # 0.895 and 0.95: no 1 % below the best; 0.88 and 0.87: just so
        best, factor = after_window(loss, best, factor)
        factors.append(factor)
    assert factors == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25] and best == 0.87
    # What is lower by less than 1 % is the next one's mark all the same.
    assert after_window(0.895, 0.9, 1.0) == (0.895, 0.5) and after_window(0.95, 0.9, 1.0) == (0.9, 0.5)
    for _ in range(20):
        best, factor = after_window(0.87, best, factor)
    assert factor == 0.01


def test_only_matrices_decay():
    """With zero gradients the step of AdamW is its decay alone."""
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 2))
    for p in module.parameters():
        torch.nn.init.ones_(p)
        p.grad = torch.zeros_like(p)
    adamw(module, 0.1, 0.5, (0.9, 0.99)).step()
    for name, p in module.named_parameters():
        kept = 0.95 if p.dim() >= 2 else 1.0
        assert torch.allclose(p, torch.full_like(p, kept)), name
