"""The nearest training slice of a generated one, also where it is mirrored, moved, turned, scaled or lit otherwise.

A training set is augmented so, and a copy that is moved by a pixel is one all the same. All pairs are compared as tiny
pictures over a grid of moves; the best few of each sample are then aligned, at 32 px and at 64 px, by Gauss-Newton
steps (Baker and Matthews 2004, inverse compositional). Held-out slices go through the same search, so that what the
freedom to move does to slices of other people is in both figures.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A move is (mirror x, mirror y, angle, log scale, shift x, shift y): a picture is sampled at A p + c, p in [-1, 1] over
# the picture it is compared with. A little more than a twentieth of the width and five degrees, as moves combine.
MIRRORS = ((1.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (-1.0, -1.0))
ANGLE, LOG_SCALE, SHIFT = math.radians(6), 0.065, 0.13
GRID_SHIFTS = (-0.07, 0.0, 0.07)  # between them, and over angles and scales, reach the tangents
COARSE, MIDDLE = 16, 32  # pixels of the first comparison and of the first alignment
AXES = 96  # principal axes that tell pictures of 16 px apart
CANDIDATES, FINALISTS = 48, 4  # of each sample: what is aligned at 32 px, and what of that at full size
STEPS = (1, 3)  # Gauss-Newton steps of the two alignments
ROWS, BANK = 16, 1024  # samples and training slices that are compared at once


@dataclass(frozen=True)
class Found:
    """The nearest slice of the bank for each of N samples: distance (N,), its row (N,), the move (N, 6) that lays the
    sample over it."""

    distance: Tensor
    index: Tensor
    move: Tensor | None


def grid_moves(device: torch.device) -> Tensor:
    """(G, 6): the moves over which tiny pictures are compared."""
    points = itertools.product(MIRRORS, GRID_SHIFTS, GRID_SHIFTS)
    return torch.tensor([(*mirror, 0.0, 0.0, x, y) for mirror, x, y in points], device=device)


def linear_of(moves: Tensor) -> Tensor:
    """(N, 6) -> A (N, 2, 2) = mirror x rotation x scale."""
    cos, sin = moves[:, 3].exp() * moves[:, 2].cos(), moves[:, 3].exp() * moves[:, 2].sin()
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    return moves[:, :2, None] * rotation


def moved(images: Tensor, moves: Tensor) -> Tensor:
    """float (N, C, S, S) and moves (N, 6) -> the pictures after their moves; what lies outside is as the border is."""
    theta = torch.cat([linear_of(moves), moves[:, 4:, None]], 2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def unit(images: Tensor) -> Tensor:
    """(..., C, S, S) -> (..., C * S * S) less its mean, of length 1: a picture's contrast and brightness are gone."""
    x = images.flatten(-3)
    x = x - x.mean(-1, keepdim=True)
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def tangents(images: Tensor) -> Tensor:
    """(P, C, S, S) -> (P, 4, C * S * S): the derivative by shift x, shift y, angle and log scale."""
    size = images.shape[-1]
    x = F.pad(images, (1, 1, 1, 1), mode="replicate") * (size / 4)
    gx, gy = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    line = (torch.arange(size, device=images.device, dtype=images.dtype) * 2 + 1) / size - 1
    turn, grow = line * gy - line[:, None] * gx, line * gx + line[:, None] * gy
    return torch.stack([gx, gy, turn, grow], 1).flatten(2)


def align(samples: Tensor, slices: Tensor, moves: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Better moves of pairs, samples and slices float (P, C, S, S), moves (P, 6) -> (correlation (P,), moves (P, 6)).

    A sample after its move is regressed on the slice and its tangents; what these explain is taken off the move.
    """
    target = unit(slices)
    basis = torch.cat([target[:, None], tangents(target.view_as(slices))], 1)
    basis = basis - basis.mean(2, keepdim=True)
    gram = basis @ basis.transpose(1, 2)
    gram = gram + 1e-4 * torch.diag_embed(gram.diagonal(dim1=1, dim2=2) + 1e-6)
    best, best_moves = torch.full((len(samples),), -1.0, device=samples.device), moves
    for step in range(steps + 1):
        now = unit(moved(samples, moves))
        score = (now * target).sum(1)
        better = score > best
        best, best_moves = torch.where(better, score, best), torch.where(better[:, None], moves, best_moves)
        if step < steps:
            found = torch.linalg.solve(gram, basis @ now[:, :, None])[..., 0]
            moves = limited(moves, found[:, 1:] / found[:, :1].clamp_min(0.3))
    return best, best_moves


def limited(moves: Tensor, off: Tensor) -> Tensor:
    """The moves (P, 6) less `off` (P, 4; shift x, shift y, angle, log scale), inside of what is searched."""
    shift = moves[:, 4:] - (linear_of(moves) @ off[:, :2, None])[..., 0]
    angle, scale = moves[:, 2] - off[:, 2], moves[:, 3] - off[:, 3]
    inner = [angle.clamp(-ANGLE, ANGLE)[:, None], scale.clamp(-LOG_SCALE, LOG_SCALE)[:, None]]
    return torch.cat([moves[:, :2], *inner, shift.clamp(-SHIFT, SHIFT)], 1)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """float (N, C, S, S) after a Gaussian of `sigma` pixels; beyond the border it goes on as the border is."""
    size, reach = images.shape[-1], math.ceil(3 * sigma)
    line, offset = torch.arange(size, device=images.device), torch.arange(-reach, reach + 1, device=images.device)
    weight = torch.exp(-(offset**2) / (2 * sigma**2)).expand(size, -1)
    kernel = torch.zeros(size, size, device=images.device)
    kernel.scatter_add_(1, (line[:, None] + offset).clamp(0, size - 1), weight / weight[0].sum())
    return kernel @ images @ kernel.T


def smooth(images: Tensor) -> Tensor:
    """uint8 (N, C, S, S) -> uint8, after a Gaussian of a pixel: then resampling between pixels costs next to nothing,
    and a copy that was resampled lies 30 times nearer than another slice, not 6 times."""
    return torch.cat([blurred(part.float(), 1.0).round().to(torch.uint8) for part in images.split(BANK)])


def shrunk(images: Tensor, size: int) -> Tensor:
    """(N, C, S, S) -> float, averaged down to `size` pixels where it is larger."""
    x = images.float()
    return F.adaptive_avg_pool2d(x, size) if x.shape[-1] > size else x


class Shortlist:
    """The slices of a bank that are worth an alignment, from pictures of 16 px.

    Over a grid of moves, and around each of its points over what the tangents span (Simard 1998): the score of a slice
    is the length of its projection on a sample after the move and the four tangents there.
    """

    def __init__(self, bank: Tensor):
        """bank (M, C, s, s) float."""
        tiny = unit(self.tiny(bank))
        self.axes = torch.linalg.eigh(tiny.T @ tiny).eigenvectors[:, -AXES:]  # the bank's pictures have no others
        self.bank, self.grid = tiny @ self.axes, grid_moves(bank.device)

    @staticmethod
    def tiny(images: Tensor) -> Tensor:
        """(M, C, s, s) -> (M, C, 16, 16), smoothed so that the tangents reach from one move of the grid to the next."""
        return shrunk(blurred(images, 1.5), COARSE)

    def planes(self, samples: Tensor) -> Tensor:
        """(n, C, s, s) -> (n, G, 5, D): orthonormal, of what each sample looks like near each move of the grid."""
        n, g = len(samples), len(self.grid)
        x = blurred(samples, 1.5).repeat_interleave(g, 0)
        x = shrunk(moved(x, self.grid.repeat(n, 1)), COARSE)
        basis = torch.cat([unit(x)[:, None], tangents(x)], 1)
        basis = basis - basis.mean(2, keepdim=True)
        basis = basis / basis.norm(dim=2, keepdim=True).clamp_min(1e-6)
        gram = basis @ basis.transpose(1, 2) + 1e-3 * torch.eye(5, device=x.device)
        plane = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), basis, upper=False)
        return (plane @ self.axes).view(n, g, 5, -1)

    def of(self, samples: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """(rows of the bank (n, K), the grid's best moves for them (n, K, 6)) for samples (n, C, s, s); own (n, M)
        bool: slices to be taken last."""
        planes = self.planes(samples)
        n, g, _, d = planes.shape
        flat = planes.reshape(-1, d)
        parts = [(flat @ part.T).view(n, g, 5, -1).square_().sum(2).amax(1) for part in self.bank.split(BANK)]
        scores = torch.cat(parts, 1).masked_fill(own, -2.0)
        rows = scores.topk(min(CANDIDATES, len(self.bank)), 1).indices
        near = (self.bank[rows] @ flat.view(n, -1, d).transpose(1, 2)).view(n, -1, g, 5)
        return rows, self.grid[near.square().sum(3).argmax(2)]


class Bank:
    """Slices (M, C, S, S) uint8 that are searched: smoothed, and in the sizes of the search."""

    def __init__(self, slices: Tensor):
        self.slices = smooth(slices)
        self.middle = shrunk(self.slices, MIDDLE)
        self.shortlist = Shortlist(self.middle)


def search(
    samples: Tensor,
    bank: Tensor | Bank,
    groups: tuple[Tensor, Tensor] | None = None,
    track: Callable[[range], Iterable[int]] = iter,
) -> Found:
    """The nearest of bank (M, C, S, S), which is searched more than once as a Bank, to each of samples (N, C, S, S),
    both uint8, over all moves.

    Distance is 1 - correlation of the smoothed pixels. Rows of a pair of equal `groups` (of samples, of bank) are no
    neighbours. `track` wraps the first rows of the parts, for a progress bar.
    """
    known = bank if isinstance(bank, Bank) else Bank(bank)
    samples, slices, found = smooth(samples), known.slices, []
    for start in track(range(0, len(samples), ROWS)):
        rows = slice(start, start + ROWS)
        part, small = samples[rows].float(), shrunk(samples[rows], MIDDLE)
        own = torch.zeros(len(part), len(slices), dtype=torch.bool, device=slices.device)
        if groups is not None:
            own = groups[0][rows, None] == groups[1]
        index, moves = known.shortlist.of(small, own)
        score, moves = best_of(small, known.middle, index, moves, STEPS[0])
        score = score.masked_fill(own.gather(1, index), -2.0)  # there may be fewer others than candidates
        kept = score.topk(min(FINALISTS, index.shape[1]), 1).indices
        index, moves = index.gather(1, kept), moves.gather(1, kept[..., None].expand(-1, -1, 6))
        score, moves = best_of(part, slices, index, moves, STEPS[1])
        score = score.masked_fill(own.gather(1, index), -2.0)
        value, best = score.max(1)
        line = torch.arange(len(part), device=best.device)
        found.append((1 - value, index[line, best], moves[line, best]))
    distance, index, move = (torch.cat(x) for x in zip(*found, strict=True))
    return Found(distance.clamp_min(0), index, move)


def best_of(samples: Tensor, bank: Tensor, index: Tensor, moves: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """`align` of samples (n, C, s, s) with K slices of the bank each: index (n, K), moves (n, K, 6) -> (correlation
    (n, K), moves (n, K, 6))."""
    n, k = index.shape
    pairs = samples.repeat_interleave(k, 0), bank[index.flatten()].float()
    score, moves = align(*pairs, moves.flatten(0, 1), steps)
    return score.view(n, k), moves.view(n, k, 6)


def in_words(move: Tensor) -> str:
    """What a move (6,) does to a sample, as `mirrored, moved 1.6 % and -3.0 %, turned 2.0 degrees, 1.03 times as
    large`; right, down and clockwise are positive."""
    x, y = (-torch.linalg.solve(linear_of(move[None])[0], move[4:]) * 50).tolist()
    sides = [name for name, sign in zip(("left to right", "upside down"), move[:2].tolist(), strict=True) if sign < 0]
    parts = [f"mirrored {' and '.join(sides)}"] if sides else []
    parts += [f"moved {x:.1f} % and {y:.1f} %"] if max(abs(x), abs(y)) >= 0.05 else []
    turned, larger = -math.degrees(float(move[2])), math.exp(-float(move[3]))
    parts += [f"turned {turned:.1f} degrees"] if abs(turned) >= 0.05 else []
    parts += [f"{larger:.2f} times as large"] if abs(larger - 1) >= 0.005 else []
    return ", ".join(parts) or "as it is"
