"""Find the styles that make a generator draw a given slice (Karras 2020a, appendix D, without LPIPS and with free
W+)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

CANDIDATES = 256  # average and random styles of which the nearest picture is the start
LR, WARM_UP, COOL_DOWN = 0.05, 0.05, 0.25  # shares of the steps
FREE_AT = 0.3  # share of the steps after which every layer has its own style
REGULARISE = 0.002  # weight of the squared distance from the start, in deviations of w


def pyramid_loss(images: Tensor, targets: Tensor) -> Tensor:
    """images, targets (B, C, R, R) in -1..1 -> (B,): mean absolute difference, averaged over the sizes R, R/2 ... 8.

    The coarse sizes give the outline a gradient from far away, the fine ones the folds; neither needs another network.
    """
    losses = []
    while True:
        losses.append((images - targets).abs().flatten(1).mean(1))
        if images.shape[-1] <= 8:
            return torch.stack(losses).mean(0)
        images, targets = F.avg_pool2d(images, 2), F.avg_pool2d(targets, 2)


def learning_rate(done: float) -> float:
    """Rises over the first steps and falls as a cosine over the last ones; `done` from 0 to 1."""
    rise = min(1.0, (done + 1e-3) / WARM_UP)
    fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / COOL_DOWN))
    return LR * rise * fall


def nearest_styles(G, w: Tensor, targets: Tensor, batch: int) -> Tensor:
    """Of the candidates w (N, w_dim), the one whose picture is nearest to each target (B, C, R, R) -> (B, w_dim)."""
    with torch.no_grad():
        images = torch.cat([G.synthesis(G.broadcast(part)) for part in w.split(batch)])
        small = min(32, images.shape[-1])
        images, targets = F.adaptive_avg_pool2d(images, small), F.adaptive_avg_pool2d(targets, small)
        distance = torch.stack([(images - target).abs().flatten(1).mean(1) for target in targets])
    return w[distance.argmin(1)]


def project(
    G,
    targets: Tensor,
    w: Tensor,
    *,
    steps: int,
    batch: int = 16,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> tuple[Tensor, list[float]]:
    """targets (B, C, R, R) in -1..1 -> (ws (B, num_ws, w_dim), loss of each step). Noise is the fixed one.

    `w` (N, w_dim) are random styles: candidates for the start, and their deviation says how far is far. The first steps
    move one style per slice, the others one per layer. A generator's own pictures come back nearly; what it has never
    learnt does not, and the difference shows what that is. `track` wraps the steps, for a progress bar.
    """
    with torch.enable_grad():
        start = nearest_styles(G, w, targets, batch)
        scale = w.std(0).mean().clamp_min(1e-6)
        offset = torch.zeros(len(targets), 1, w.shape[1], device=w.device, requires_grad=True)
        optimizer = torch.optim.Adam([offset], lr=LR, betas=(0.9, 0.99))
        history = []
        for step in track(range(steps)):
            if offset.shape[1] == 1 and step >= FREE_AT * steps:
                offset = offset.detach().expand(-1, G.num_ws, -1).clone().requires_grad_()
                optimizer = torch.optim.Adam([offset], lr=LR, betas=(0.9, 0.99))
            optimizer.param_groups[0]["lr"] = learning_rate(step / steps)
            ws = start[:, None] + scale * offset.expand(-1, G.num_ws, -1)
            loss = pyramid_loss(G.synthesis(ws), targets) + REGULARISE * offset.square().mean((1, 2))
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            history.append(float(loss.detach().mean()))
    return (start[:, None] + scale * offset.expand(-1, G.num_ws, -1)).detach(), history
