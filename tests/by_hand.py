"""What a denoising network's training step is made of, written again from the papers in plain code: AdamW, clipping,
the learning rate, the moving average, and two ranks in one process.

Nothing here is the product's, and the numbers are literals: a default that changes must be noticed.
"""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch

from jobs.training import collectives, ranks

CPU = torch.device("cpu")
ALONE = ranks.Runtime(0, 1, 0, CPU, 1)


class AdamW:
    """Loshchilov and Hutter 2019, algorithm 2. Matrices and convolutions decay, vectors do not."""

    def __init__(self, module: torch.nn.Module, beta1: float, beta2: float, decay: float):
        self.parameters, self.beta1, self.beta2, self.decay, self.count = (
            list(module.parameters()),
            beta1,
            beta2,
            decay,
            0,
        )
        self.m, self.v = ([torch.zeros_like(p, dtype=torch.float64) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: list[torch.Tensor], rate: float) -> None:
        self.count += 1
        for p, g, m, v in zip(self.parameters, gradients, self.m, self.v, strict=True):
            m.copy_(self.beta1 * m + (1 - self.beta1) * g.double())
            v.copy_(self.beta2 * v + (1 - self.beta2) * g.double() ** 2)
            mean, square = m / (1 - self.beta1**self.count), v / (1 - self.beta2**self.count)
            kept = 1 - rate * self.decay if p.dim() > 1 else 1.0
            p.copy_(kept * p.double() - rate * mean / (square.sqrt() + 1e-8))


def clipped(gradients: list[torch.Tensor], longest: float) -> tuple[list[torch.Tensor], float]:
    """(gradients shortened to the norm `longest` over all of them together, the norm before)."""
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
    return [g * min(1.0, longest / norm) for g in gradients], norm


def rate_at(nimg: int, batch: int, peak: float, warmup_kimg: float, decay_kimg: float) -> float:
    """Rate of the step that starts at nimg: linear warm-up, and a cosine from all to a tenth of it."""
    warm = 1.0 if not warmup_kimg else min(1.0, (nimg + batch) / (1000 * warmup_kimg))
    cosine = 1.0 if not decay_kimg else 0.55 + 0.45 * math.cos(math.pi * min(1.0, nimg / (1000 * decay_kimg)))
    return peak * warm * cosine


@torch.no_grad()
def average(ema: torch.nn.Module, module: torch.nn.Module, seen: int, batch: int, half_life_kimg: float, ramp: float):
    """The moving average after a step at whose end `seen` images were seen: half of it is forgotten in
    half_life_kimg."""
    half_life = 1000 * half_life_kimg if not ramp else min(1000 * half_life_kimg, ramp * seen)
    kept = 0.5 ** (batch / half_life)
    for ours, theirs in zip(ema.parameters(), module.parameters(), strict=True):
        ours.copy_(kept * ours + (1 - kept) * theirs)


def wake(module: torch.nn.Module, seed: int, std: float = 0.2) -> None:
    """Give layers that start at zero some weights, which would hide what is wrong before them."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if not p.any():
                p.copy_(std * torch.randn(p.shape, generator=gen))


def assert_same(found: torch.nn.Module, expected: torch.nn.Module, start: dict, optimizer: AdamW, what: str) -> None:
    """Parameters moved alike: per tensor, the difference is small beside the way that it went, but for rounding.

    Adam divides by the size of the gradient, so where that is rounding alone (as for the biases of an attention's keys,
    which change nothing) it walks at random: such places, of less than 1e-5 of the largest gradient, do not count.
    """
    largest = max(float(v.max()) for v in optimizer.v) ** 0.5
    counted = 0
    for (name, ours), theirs, v in zip(found.named_parameters(), expected.parameters(), optimizer.v, strict=True):
        firm = v.sqrt() > 1e-5 * largest
        way, off = (theirs - start[name])[firm].detach(), (ours - theirs)[firm].detach()
        counted += int(firm.sum())
        allowed = 1e-2 * float(way.norm()) + 3e-7 * float(theirs.detach().norm())
        assert float(off.norm()) <= allowed, f"{what}.{name}: {float(off.norm()):.3g} off, went {float(way.norm()):.3g}"
    assert counted > 0.5 * sum(p.numel() for p in found.parameters()), what


def close(found: dict, expected: dict, rel: float = 2e-4) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=rel, abs=1e-7), name


def two_ranks(monkeypatch, work) -> list:
    """work(rt) of ranks 0 and 1 of two, in two threads whose all-reduce is a sum; what each returned.

    The global random stream is one for both: for work that does not draw from it.
    """
    barrier, sent, found, wrong = threading.Barrier(2, timeout=300), {}, {}, []

    def all_reduce(tensor, **_):
        rank = int(threading.current_thread().name[-1])
        sent[rank] = tensor.clone()
        barrier.wait()
        tensor.copy_(sent[0] + sent[1])
        barrier.wait()

    def one(rank: int) -> None:
        try:
            found[rank] = work(ranks.Runtime(rank, 2, rank, CPU, 1))
        except BaseException as error:
            wrong.append(error)
            barrier.abort()

    monkeypatch.setattr(collectives.dist, "all_reduce", all_reduce)
    threads = [threading.Thread(target=one, args=(r,), name=f"rank {r}") for r in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if wrong:
        raise next((e for e in wrong if not isinstance(e, threading.BrokenBarrierError)), wrong[0])
    return [found[0], found[1]]


def copies(*modules: torch.nn.Module) -> tuple[torch.nn.Module, ...]:
    return tuple(copy.deepcopy(m) for m in modules)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in module.state_dict().items()}
