"""Randomness as a function of (seed, nimg, purpose), so there is no state to save; the rows of a rank."""

from __future__ import annotations

import hashlib

import torch


# --- randomness: a function of (seed, nimg, purpose), so there is no state to save ----------------------------------
def seed_of(seed: int, nimg: int, purpose: str) -> int:
    """63-bit seed of one purpose at one moment."""
    digest = hashlib.blake2b(f"{seed}/{nimg}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, nimg: int, purpose: str) -> torch.Generator:
    """A random stream of its own, of the CPU: what a GPU draws depends on its model (models/draws.py).

    torch uses 32 bits of the seed.
    """
    return torch.Generator().manual_seed(seed_of(seed, nimg, purpose))


def rows(batch: int, rank: int, world: int, accumulate: int = 1) -> list[tuple[int, int]]:
    """(start, stop) rows of the global batch for each micro-batch of this rank; contiguous, so that minibatch-std
    groups are the same for every number of ranks. ValueError if they do not divide."""
    parts = world * accumulate
    if batch < 1 or batch % parts:
        raise ValueError(
            f"a batch of {batch} does not divide into {world} ranks x {accumulate} micro-batches; use a multiple of "
            f"{parts}"
        )
    size, first = batch // parts, rank * accumulate
    return [((first + i) * size, (first + i + 1) * size) for i in range(accumulate)]
