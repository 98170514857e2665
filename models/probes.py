"""Whether pictures show what was asked of them: a number read off features by ridge regression (Hoerl and Kennard
1970)."""

from __future__ import annotations

import torch
from torch import Tensor

DAMPINGS = tuple(10.0**k for k in range(-4, 3))  # of the mean variance, tried in turn


class RidgeProbe:
    """A number from features, in closed form and so the same on every run.

    The damping is the one with the least generalised cross-validation error (Golub, Heath and Wahba 1979).
    """

    def __init__(self, features: Tensor, values: Tensor):
        """features (N, D), values (N,)."""
        x, y = features.double(), values.double()
        self.mean, self.scale, self.level = x.mean(0), x.std(0).clamp_min(1e-6), y.mean()
        u, s, v = torch.linalg.svd((x - self.mean) / self.scale, full_matrices=False)
        along, n = u.T @ (y - self.level), len(y)
        best = torch.inf
        for damping in DAMPINGS:
            kept = s.square() / (s.square() + damping * n)
            left = y - self.level - u @ (kept * along)
            error = float(left.square().mean() / (1 - kept.sum() / n).clamp_min(1e-3).square())
            if error < best:
                best, self.weight = error, v.T @ (along * s / (s.square() + damping * n))

    def predict(self, features: Tensor) -> Tensor:
        """features (N, D) -> (N,) float64."""
        return ((features.double() - self.mean) / self.scale) @ self.weight + self.level


def agreement(read: Tensor, asked: Tensor) -> dict[str, float]:
    """How numbers read off pictures agree with those asked for, both (N,): correlation r, mean absolute error, and the
    slope of the straight line from asked to read, 1 where the whole difference is shown; no r and no slope where
    nothing varies."""
    a, b = asked.double() - asked.double().mean(), read.double() - read.double().mean()
    along, width = float(a @ b), float(a.square().sum())
    found = {"mae": float((read.double() - asked.double()).abs().mean())}
    if width:
        found["slope"] = along / width
    if width and float(b.square().sum()):
        found["r"] = along / (width * float(b.square().sum())) ** 0.5
    return found


def rising(read: Tensor, asked: Tensor) -> float:
    """Share of the steps along each strip that go the way that was asked: read, asked (strips, steps)."""
    return float((read.diff(dim=1).sign() == asked.diff(dim=1).sign()).double().mean())
