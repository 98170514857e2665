"""How well predict.py evaluate finds copies of training slices, how often it accuses honest ones, and how long it
takes.

    python -m benchmarks.copies [--quick] [--write]

Phantoms of 64 px, each of another person; 2,000 are the training set. Copies of each kind: 100 training slices after a
move at its limit, or after any of them, some lit otherwise. Distances are over the least of 1,000 slices of others.
Below that: how often 1 % of copies among honest samples are found (chance below 1 %), and how often honest samples are
accused, over 500 draws of both sets.
"""

from __future__ import annotations

import argparse
import math
import os
import time

import numpy as np
import torch
from torch import Tensor

from benchmarks import machine
from data.phantom import phantom_slice
from models import copies, quality

TITLE = "Copies"
SIZE = 64
LIMITS = {"moved by 1.6 %": (0, 0, 0.016), "moved by 5 %": (0, 0, 0.05), "turned by 5 degrees": (5, 0, 0),
          "scaled by 5 %": (0, 0.05, 0), "all of them at their limits": (5, 0.05, 0.05)}  # fmt: skip


def phantoms(seed: int, count: int) -> Tensor:
    """uint8 (count, 1, 64, 64)."""
    return torch.from_numpy(np.stack([phantom_slice(seed, i, SIZE) for i in range(count)]))[:, None]


def any_moves(count: int, draw: torch.Generator, limits: tuple | None = None) -> Tensor:
    """(count, 6): mirrored or not; turned, scaled and moved by any amount, or by the limits with any sign."""

    def amount(k: int, most: float) -> Tensor:
        u = torch.rand(count, generator=draw) * 2 - 1
        return u * most if limits is None else u.sign() * limits[k]

    mirror = torch.where(torch.rand(count, generator=draw) < 0.5, -1.0, 1.0)
    turn, scale = amount(0, 5) * (math.pi / 180), (1 + amount(1, 0.05)).log()
    return torch.stack([mirror, torch.ones(count), turn, scale, 2 * amount(2, 0.05), 2 * amount(2, 0.05)], 1)


def laid(images: Tensor, moves: Tensor) -> Tensor:
    """The pictures after their moves, in whole numbers."""
    return copies.moved(images.float(), moves).round().to(torch.uint8)


def kinds_of_copies(sources: Tensor) -> dict[str, Tensor]:
    """Copies of the slices, by what was done to them."""
    draw, n = torch.Generator().manual_seed(0), len(sources)
    found = {"as it is": sources, "mirrored": sources.flip(3), "upside down": sources.flip(2)}
    found |= {name: laid(sources, any_moves(n, draw, limits)) for name, limits in LIMITS.items()}
    x = laid(sources, any_moves(n, draw))
    noise = 8 * torch.randn(x.shape, generator=draw)
    found["any move"] = x
    for name, lit in (("brighter by a tenth of the range", x + 25.5), ("contrast 1.3", (x - 60.0) * 1.3 + 60),
                      ("noise of 8 grey levels", x + noise)):  # fmt: skip
        found[f"any move, {name}"] = lit.clamp(0, 255).round().to(torch.uint8)
    return found


def rates(honest: Tensor, copied: Tensor, samples: int, heldout: int) -> list[str]:
    """Cells of a row: shares of 500 draws in which 1 % of copies was found, and honest samples were accused."""
    draw, said = torch.Generator().manual_seed(0), [0, 0]
    count = max(samples // 100, 1)
    for _ in range(500):
        rows = torch.randperm(len(honest), generator=draw)
        real, fake = honest[rows[:heldout]], honest[rows[heldout : heldout + samples]]
        mixed = torch.cat([fake[count:], copied[torch.randperm(len(copied), generator=draw)[:count]]])
        for k, x in enumerate((mixed, fake)):
            said[k] += quality.nearer_than_any(x, real, torch.arange(heldout))["chance"] < 0.01
    return [f"{samples:,}", f"{heldout:,}", *(f"{n / 5:.1f} %" for n in said)]


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few slices: does it run?")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    device = torch.device("cpu")
    text = [machine.command("benchmarks.copies"), machine.header(device, ["torch"]), __doc__.split("\n\n")[2]]
    trained, others, copied = (60, 60, 10) if args.quick else (2000, 1000, 100)
    bank, honest = phantoms(0, trained), phantoms(1, others)
    distance = copies.search(honest, bank).distance
    picked = torch.linspace(0, trained - 1, copied).round().long()
    rows, moved = [], distance
    for name, images in kinds_of_copies(bank[picked]).items():
        found = copies.search(images, bank)
        moved = found.distance if name == "any move" else moved
        share = float((found.index == picked).double().mean())
        cells = (found.distance.median() / distance.min(), found.distance.max() / distance.min())
        rows.append([name, f"{100 * share:.0f} %", *(f"{float(x):.2f}" for x in cells)])
    text.append(machine.table(["copies", "source found", "median distance", "largest"], rows))
    pairs = [(20, 20)] if args.quick else [(100, 20), (300, 100), (500, 200), (500, 500)]
    text.append(
        machine.table(
            ["samples", "held-out", "1 % found", "honest ones accused"],
            [rates(distance, moved, *pair) for pair in pairs],
        )
    )
    n, m, h = (40, 60, 20) if args.quick else (5000, 20000, 2000)
    draw = torch.Generator().manual_seed(1)
    sets = [laid(x[torch.arange(k) % len(x)], any_moves(k, draw)) for x, k in ((honest, n), (bank, m), (honest, h))]
    wall, cpu = time.monotonic(), time.process_time()
    quality.copying(*sets, torch.arange(h))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    text.append(
        f"{n:,} samples against {m:,} training slices, both with {h:,} held-out ones: {wall:.0f} s, in which the "
        f"process had {cpu:.0f} s of CPU, {torch.get_num_threads()} thread(s); load average at the end {load}."
    )
    print("\n\n".join(text))
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
