"""Deterministic batches from a pack: what is at a position is a function of (seed, position) alone."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data.pack import Pack

DEVICE_SHARE = 0.4  # of the free GPU memory that the data may take


@lru_cache(maxsize=4)
def _epoch(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(n)


def sample_order(n: int, seed: int, start: int, count: int) -> np.ndarray:
    """(count,) int64: the samples at positions start .. start + count of an endless sequence of shuffled epochs.

    No sample is left out or doubled at an epoch's end, and any position is reached without walking there.
    """
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs = positions // n
    order = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order[here] = _epoch(n, seed, int(epoch))[positions[here] % n]
    return order


def mirrored(seed: int, start: int, count: int) -> np.ndarray:
    """(count,) bool: whether the sample at each position is mirrored left-right; a coin per position."""
    coins = np.empty(count, bool)
    first = start // 1024
    blocks = range(first, (start + count - 1) // 1024 + 1)
    drawn = np.concatenate(
        [np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 7, b]))).random(1024) < 0.5 for b in blocks]
    )
    coins[:] = drawn[start - first * 1024 : start - first * 1024 + count]
    return coins


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class Batches:
    """Rows of the global batch at any position, on the device.

    The whole set lies on the GPU as uint8 where it fits; else rows are copied from the memory map through pinned memory,
    and `prefetch` starts the copy for the next step in a thread. On the CPU the memory map itself is read.
    """

    def __init__(
        self, pack: Pack, *, seed: int, batch: int, device: torch.device | str, hflip: bool = False, place: str = "auto"
    ):
        self.pack, self.seed, self.batch, self.device, self.hflip = pack, seed, batch, torch.device(device), hflip
        self.n = len(pack.labels)
        cuda = self.device.type == "cuda"
        fits = not cuda or pack.images.nbytes < DEVICE_SHARE * torch.cuda.mem_get_info(self.device)[0]
        self.resident = cuda and (place == "device" or (place == "auto" and fits))
        self.images = torch.from_numpy(np.ascontiguousarray(pack.images)).to(self.device) if self.resident else None
        self.labels = torch.from_numpy(pack.labels).to(self.device)
        self.placement = "GPU memory" if self.resident else "the memory map"
        self._thread = ThreadPoolExecutor(1) if cuda and not self.resident else None
        self._next: tuple[tuple[int, int, int], Future] | None = None

    def rows(self, nimg: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images (stop - start, C, R, R) in [-1, 1] and labels of rows start .. stop of the batch that begins at `nimg`."""
        order = sample_order(self.n, self.seed, nimg + start, stop - start)
        index = torch.from_numpy(order).to(self.device)
        if self.resident:
            images = self.images[index]
        elif self._next is not None and self._next[0] == (nimg, start, stop):
            images = self._next[1].result().to(self.device, non_blocking=True)
        else:
            images = self._gather(order).to(self.device)
        images = to_float(images)
        if self.hflip:
            flip = torch.from_numpy(mirrored(self.seed, nimg + start, stop - start)).to(self.device)
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return images, self.labels[index]

    def prefetch(self, nimg: int, start: int, stop: int) -> None:
        """Begin to fetch these rows in the background (only where the set is not on the GPU)."""
        if self._thread is not None:
            order = sample_order(self.n, self.seed, nimg + start, stop - start)
            self._next = (nimg, start, stop), self._thread.submit(lambda: self._gather(order).pin_memory())

    def _gather(self, order: np.ndarray) -> Tensor:
        """Read in the order of the file, which a disk prefers."""
        ascending = np.argsort(order, kind="stable")
        out = np.empty((len(order), *self.pack.images.shape[1:]), np.uint8)
        for to in ascending:
            out[to] = self.pack.images[order[to]]
        return torch.from_numpy(out)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
