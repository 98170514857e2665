"""The latents of a pack, encoded once: a memory map of posterior means and log-variances, and batches from it.

A cache is two files in the folder of packs: <name>.npy, float16 (N, 2, L, h, w), and <name>.json, written last, which
names what it was made from. It is built again when the encoder's weights or the slices change.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches import fits_on_device, on_device, sample_order, to_float
from data.files import atomic_write, open_regular, read_json, remove_torn, say, sha256_of, temporary_for
from data.pack import pack_folder
from data.packfile import Pack
from data.walk import DataError

VERSION = 1  # of the file format and of what is in it
HALF_MAX = 65504.0  # largest float16
MIN_STD = 1e-4


@dataclass
class Latents:
    """An open cache.

    `values` is a read-only memory map; mean and std (L,) are of samples, over all slices and places.
    """

    path: str
    values: np.memmap  # (N, 2, L, h, w) float16: posterior mean, log-variance
    labels: np.ndarray  # (N,) int64
    mean: np.ndarray  # (L,) float64
    std: np.ndarray  # (L,) float64

    def __len__(self) -> int:
        return len(self.labels)


def latents_path(pack: Pack, encoder_sha256: str, cache_dir=None) -> Path:
    """Where the cache of these slices under this encoder lies; another encoder or another pack has another name."""
    key = hashlib.sha256(f"{VERSION} {encoder_sha256} {pack.digest}".encode()).hexdigest()
    return pack_folder(cache_dir) / f"latents-{pack.images.shape[-1]}px-{key[:16]}.npy"


def open_latents(path: Path, pack: Pack, encoder_sha256: str, verify: bool = True) -> Latents | None:
    """The cache at `path`, or None where there is none, it is unfinished or damaged, or it was made from something
    else.

    `verify` reads it all and compares its SHA-256.
    """
    try:
        about = read_json(path.with_suffix(".json"))
        with open_regular(path):  # no pipe, at which numpy would wait
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged header raises almost anything, tokenize.TokenError among it
        return None
    expected = {"version": VERSION, "encoder": encoder_sha256, "pack": pack.digest}
    if not isinstance(about, dict) or {k: about.get(k) for k in expected} != expected:
        return None
    if (
        values.dtype != np.float16
        or values.ndim != 5
        or list(values.shape) != about.get("shape")
        or len(values) != len(pack)
    ):
        return None
    try:
        mean, std = (np.asarray(about.get(k), np.float64) for k in ("mean", "std"))
    except (ValueError, TypeError, OverflowError):
        return None
    if (
        mean.shape != std.shape
        or mean.shape != (values.shape[2],)
        or not np.isfinite([mean, std]).all()
        or std.min() <= 0
    ):
        return None
    if verify and about.get("sha256") != sha256_of(path):
        return None
    return Latents(str(path), values, np.asarray(pack.labels, np.int64), mean, std)


def build_latents(
    pack: Pack,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]],
    encoder_sha256: str,
    path: Path,
    *,
    device,
    batch: int = 32,
    poll=None,
    log=say,
) -> Latents:
    """Encode every slice and write the cache, atomically; two processes may do it at once.

    `encode(images)`, images float32 (B, C, R, R) in -1 .. 1 on `device`, returns mean and logvar, each (B, L, h, w).
    `poll()` is called before every batch; an exception from it leaves no file behind.
    Mean and standard deviation per channel are those of posterior samples: Var(z) = Var(mean) + E[exp(logvar)].
    """
    path = Path(path)
    temporary = temporary_for(path)
    total: Any = 0.0
    square: Any = 0.0
    noise: Any = 0.0
    values: Any = None
    log(f"encoding {len(pack):,} slices into {path}")
    try:
        remove_torn(path.parent)
        for start in range(0, len(pack), batch):
            if poll is not None:
                poll()
            pixels = torch.from_numpy(np.array(pack.images[start : start + batch]))
            with torch.no_grad():
                mean, logvar = (v.double().cpu() for v in encode(to_float(pixels.to(device))))
            if not bool(torch.isfinite(mean).all() & torch.isfinite(logvar).all()) or mean.abs().max() > HALF_MAX:
                raise DataError("the VAE gives latents that are not finite or too large; train it again")
            if values is None:
                shape = (len(pack), 2, *mean.shape[1:])
                values = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                with open(temporary, "rb+") as file:  # a full disk is an error here, and death by SIGBUS in the map
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
            values[start : start + len(mean), 0], values[start : start + len(mean), 1] = mean.numpy(), logvar.numpy()
            total = total + mean.sum((0, 2, 3)).numpy()
            square = square + mean.square().sum((0, 2, 3)).numpy()
            noise = noise + logvar.exp().sum((0, 2, 3)).numpy()
        places = len(pack) * values.shape[-1] * values.shape[-2]
        average = total / places
        std = np.sqrt(np.maximum(square / places - average**2, 0) + noise / places).clip(MIN_STD)
        values.flush()
        about = {
            "version": VERSION,
            "encoder": encoder_sha256,
            "pack": pack.digest,
            "shape": list(values.shape),
            "mean": average.tolist(),
            "std": std.tolist(),
        }
        del values
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        about["sha256"] = sha256_of(temporary)
        path.with_suffix(".json").unlink(missing_ok=True)  # it would vouch for the file that takes the name now
        os.replace(temporary, path)
        atomic_write(path.with_suffix(".json"), json.dumps(about, sort_keys=True))
    except OSError as error:
        raise DataError(
            f"{path}: the latents cannot be written ({error.strerror}); free some space or set BRAIN_PACK_DIR to "
            "another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    latents = open_latents(path, pack, encoder_sha256)
    if latents is None:
        raise DataError(f"{path}: cannot be read back; is the disk full?")
    return latents


def ensure_latents(
    pack: Pack, encode, encoder_sha256: str, *, device, cache_dir=None, poll=None, log=say, verify: bool = True
) -> Latents:
    """The cache of these slices under this encoder, re-used or built."""
    path = latents_path(pack, encoder_sha256, cache_dir)
    latents = open_latents(path, pack, encoder_sha256, verify)
    if latents is not None:
        log(f"{path}: latents of {len(latents):,} slices, re-used")
        return latents
    return build_latents(pack, encode, encoder_sha256, path, device=device, poll=poll, log=log)


class LatentBatches:
    """Rows of global batches from a cache, in the order that `Batches` has: a pure function of (seed, nimg).

    Lies on a GPU under the conditions of batches.fits_on_device, else rows are read from the memory map.
    """

    def __init__(self, latents: Latents, *, seed: int, device, room: float = 0.0, labels: np.ndarray | None = None):
        self.device, self.seed, self.count = torch.device(device), seed, len(latents)
        self._labels = torch.from_numpy(latents.labels if labels is None else labels).to(self.device)
        size = latents.values.nbytes
        self._map, self._values = latents.values, None
        if self.device.type == "cuda" and fits_on_device(size, self.device, room):
            self._values = torch.from_numpy(np.array(latents.values)).to(self.device)
        place = "memory map" if self._values is None else "GPU memory"
        self.placement = f"{place} ({self.count:,} latents, {size / 1e6:,.0f} MB)"

    def rows(self, nimg: int, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
        """(mean, logvar, labels) of rows start..stop of the batch at position `nimg`; float32 (n, L, h, w), int64
        (n,)."""
        order = sample_order(self.count, self.seed, nimg + start, stop - start)
        index = on_device(order, self.device)
        if self._values is None:
            values = on_device(self._map[order], self.device)
        else:
            values = self._values[index]
        mean, logvar = values.float().unbind(1)
        return mean, logvar, self._labels[index]
