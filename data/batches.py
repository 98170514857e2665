"""Deterministic batches from a pack: what position `nimg` of the data is, is a pure function of (seed, nimg).

The whole set lies on the device as uint8 where it fits; else rows are gathered from the memory map by a thread, one
batch ahead. No state has to be saved, and a batch can be cut into any rows for any rank.
"""

import hashlib
import time
import warnings
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch

FREE_FRACTION = 0.5  # of the GPU's free memory that the data may take, and never what is to be left for the step
PENDING = 64  # fetched pieces kept at most


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small array of the host on the device, for which nobody waits: a GPU fetches it from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 to float32 -1..1, in memory of its own."""
    return images.to(torch.float32, copy=True).div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float -1..1 to uint8, rounded and clamped: the inverse of to_float."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of one epoch.

    Raw Philox words are the same in every NumPy version, its shuffles need not be.
    """
    key = hashlib.blake2b(f"order {seed} {epoch}".encode(), digest_size=16).digest()
    words = np.random.Philox(key=np.frombuffer(key, np.uint64)).random_raw(n)
    order = np.argsort(words, kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def sample_order(n: int, seed: int, start: int, count: int) -> np.ndarray:
    """(count,) int64 in 0..n-1: positions start..start+count-1 of an endless sequence of permutations of n, one per
    epoch."""
    if n < 1 or start < 0 or count < 0:
        raise ValueError(f"sample_order needs n >= 1, start >= 0 and count >= 0, got {n}, {start}, {count}")
    pieces, position, end = [np.empty(0, np.int64)], start, start + count
    while position < end:
        epoch, offset = divmod(position, n)
        pieces.append(_permutation(n, seed, epoch)[offset : offset + end - position])
        position += len(pieces[-1])
    return np.concatenate(pieces)


def flip_coins(seed: int, start: int, count: int) -> np.ndarray:
    """(count,) bool, one coin per position: SplitMix64 of the position under a key of the seed."""
    key = np.frombuffer(hashlib.blake2b(f"hflip {seed}".encode(), digest_size=8).digest(), np.uint64)
    with np.errstate(over="ignore"):
        x = key + np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) & np.uint64(1)).astype(bool)


def fits_on_device(size: int, device: torch.device, room: float) -> bool:
    """Whether data of this many bytes go to the device: into half of a GPU's free memory, if what is left holds `room`
    bytes, of which training may have taken some already. A CPU has its memory map."""
    if device.type != "cuda":
        return True
    free = torch.cuda.mem_get_info(device)[0]
    return size < min(FREE_FRACTION * free, free + torch.cuda.memory_reserved(device) - room)


class Batches:
    """Rows of global batches from a Pack.

    `place`: 'device' copies the whole set to the device as uint8 (on the CPU: reads the memory map), 'host' gathers
    rows with a thread, one batch of `batch` images ahead, 'auto' takes the device if fits_on_device(). `room`: bytes of
    the device that training is going to need. `hflip` mirrors left-right at random, never vertically. `labels`:
    (N, ...) what is known of each slice, where that is more than the pack's class.
    """

    def __init__(
        self, pack, *, seed: int, batch: int, device, hflip: bool = False, place: str = "auto", room: float = 0.0,
        labels: np.ndarray | None = None,
    ):  # fmt: skip
        self.device, self.seed, self.batch, self.hflip = torch.device(device), seed, batch, hflip
        self.count = len(pack.labels)
        labels = np.asarray(pack.labels, np.int64) if labels is None else labels
        self._labels = torch.from_numpy(labels).to(self.device)
        self._pack_images = pack.images
        if place not in ("auto", "device", "host"):
            raise ValueError(f"place {place!r}: choose auto, device or host")
        if place == "auto":
            place = "device" if fits_on_device(pack.images.nbytes, self.device, room) else "host"
        megabytes = f"{self.count:,} slices, {pack.images.nbytes / 1e6:,.0f} MB"
        self.waited = 0.0  # seconds that rows() has waited for the thread
        self._pool: ThreadPoolExecutor | None = None
        self._images: torch.Tensor | None
        self._pending: OrderedDict[tuple[int, int, int], Future] = OrderedDict()
        if place == "device":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the map is read-only, and nothing writes to it
                self._images = torch.from_numpy(pack.images).to(self.device)
            self.placement = f"memory map ({megabytes})" if self.device.type == "cpu" else f"GPU memory ({megabytes})"
        else:
            self._images = None
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
            self.placement = f"memory map, read ahead by a thread ({megabytes})"

    def rows(self, nimg: int, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows start..stop of the global batch whose first image is position `nimg`: images float32
        (stop - start, C, R, R) in -1..1, labels int64, both on the device."""
        first, count = nimg + start, stop - start
        order = on_device(sample_order(self.count, self.seed, first, count), self.device)
        if self._images is not None:
            images = self._images[order]
        else:
            # A step may ask for its rows again (D, then G), so they stay until a later step asks.
            self._forget_before(nimg)
            self.prefetch(nimg, start, stop)
            asked = time.monotonic()
            images = self._pending[nimg, start, stop].result().to(self.device, non_blocking=True)
            self.waited += time.monotonic() - asked
            self.prefetch(nimg + self.batch, start, stop)
        images = to_float(images)
        if self.hflip:
            coins = on_device(flip_coins(self.seed, first, count), self.device)
            images = torch.where(coins[:, None, None, None], images.flip(-1), images)
        return images, self._labels[order]

    def prefetch(self, nimg: int, start: int, stop: int) -> None:
        """Begin to gather these rows in the thread; rows() picks them up.

        Nothing to do where the set is on the device.
        """
        key = (nimg, start, stop)
        if self._pool is None or key in self._pending:
            return
        self._pending[key] = self._pool.submit(self._gather, nimg + start, stop - start)
        while len(self._pending) > PENDING:
            self._pending.popitem(last=False)

    def _forget_before(self, nimg: int) -> None:
        for key in [k for k in self._pending if k[0] < nimg or k[0] > nimg + 2 * self.batch]:
            self._pending.pop(key).cancel()

    def _gather(self, first: int, count: int) -> torch.Tensor:
        """uint8 (count, C, R, R) in host memory, pinned for a GPU. Read in file order, which is kinder to a disk."""
        order = sample_order(self.count, self.seed, first, count)
        out = torch.empty(
            (count, *self._pack_images.shape[1:]), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        rows = out.numpy()
        for i in np.argsort(order, kind="stable"):
            rows[i] = self._pack_images[order[i]]
        return out

    def close(self) -> None:
        """End the thread and let go of the data."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()
        self._images = None
