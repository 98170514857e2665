"""What is done to a training process from inside it: at a step, in the checkpoint writer, between it and its files.

All functions are called in the forked child before the script begins, so that nothing of them outlives it.
"""

from __future__ import annotations

import builtins
import errno
import inspect
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_pre_hook

from jobs.run import lock
from jobs.training import ranks, upkeep
from tests.faults.attempts import MAINS


def at(nimg: int, action: Callable[[], None]) -> None:
    """Call `action` once when the loop stands at `nimg` images, after the row and before the save of that place."""
    real, done = upkeep.Upkeep.agree, []

    def agree(self, now: int):
        if now == nimg and not done:
            done.append(now)
            action()
        return real(self, now)

    upkeep.Upkeep.agree = agree


def kill_at(nimg: int, number: int = signal.SIGKILL) -> None:
    at(nimg, lambda: os.kill(os.getpid(), number))


def in_writer(step: int, action: Callable[[], None], checkpoint: int = 2) -> list[str]:
    """Call `action` at the given step of the write of the given checkpoint (counted from 1).

    Steps are the calls that change the disk: open for writing, fsync, rename, unlink, until the next write begins.
    Returns a list of them that grows, as `unlink 000000000008.json`, so that a run without an action can count them.
    """
    seen: list[str] = []
    writes = [0]
    real_write = upkeep.Checkpoints._write_once

    def write_once(self, *args):
        writes[0] += 1
        return real_write(self, *args)

    upkeep.Checkpoints._write_once = write_once

    def passing(name: str, *args) -> None:
        if threading.current_thread().name == "checkpoint writer" and writes[0] == checkpoint:
            path = next((Path(os.fsdecode(a)).name for a in args[::-1] if isinstance(a, (str, bytes, os.PathLike))), "")
            seen.append(f"{name} {path}")
            if len(seen) == step:
                action()

    for name in ("fsync", "replace", "unlink"):
        setattr(os, name, _announced(getattr(os, name), partial(passing, name)))
    _patch_open(lambda path, mode: passing("open", path) if set(mode) & set("wxa+") else None)
    return seen


def failed_write() -> threading.Event:
    """Set when a write of a checkpoint has failed."""
    real, failed = upkeep.Checkpoints._write_once, threading.Event()

    def write_once(self, *args):
        try:
            return real(self, *args)
        except OSError:
            failed.set()
            raise

    upkeep.Checkpoints._write_once = write_once
    return failed


def _announced(real: Callable, passing: Callable) -> Callable:
    def call(*args, **kwargs):
        passing(*args)
        return real(*args, **kwargs)

    return call


def _patch_open(before: Callable[[str, str], object], raw: Callable | None = None) -> None:
    """Let `before(path, mode)` see every open() of a path; where `raw(path, mode)` gives a raw file, that is opened."""
    real = builtins.open

    def opened(file, mode="r", buffering=-1, *args, **kwargs):
        if isinstance(file, int):
            return real(file, mode, buffering, *args, **kwargs)
        path = os.fsdecode(file)
        before(path, mode)
        stream = raw(path, mode) if raw else None
        if stream is None:
            return real(file, mode, buffering, *args, **kwargs)
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter)(
            stream
        )
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

    builtins.open = io.open = opened


class _FailingFile(io.FileIO):
    """A file whose transfers fail with an error number, as those of a full disk or a dying file server do."""

    def __init__(self, path: str, mode: str, number: int, active: Callable[[], bool]):
        super().__init__(path, mode.replace("b", "").replace("t", ""))
        self.number, self.active = number, active

    def _check(self) -> None:
        if self.active():
            raise OSError(self.number, os.strerror(self.number), self.name)

    def readinto(self, buffer):
        if "r" in self.mode:
            self._check()
        return super().readinto(buffer)

    def readall(self):
        self._check()
        return super().readall()

    def write(self, data):
        self._check()
        return super().write(data)


def failing_writes(folder: Path, number: int, begin: int, end: int = 1 << 60) -> None:
    """Every write, fsync and new name below `folder` fails with `number` while the run is between two places in images.

    begin -1: from the start on.
    """
    place = [-1]
    real = upkeep.Upkeep.agree

    def agree(self, now: int):
        place[0] = now
        return real(self, now)

    upkeep.Upkeep.agree = agree

    def active() -> bool:
        return begin <= place[0] < end

    def below(path) -> bool:
        return str(path).startswith(str(folder))

    _patch_open(lambda path, mode: None, lambda path, mode: _FailingFile(path, mode, number, active)
                if below(path) and set(mode) & set("wxa+") else None)  # fmt: skip
    for name in ("mkdir", "link", "replace", "rename"):
        real_call = getattr(os, name)

        def call(*args, real_call=real_call, **kwargs):
            if active() and below(args[-1]):
                raise OSError(number, os.strerror(number), str(args[-1]))
            return real_call(*args, **kwargs)

        setattr(os, name, call)


def failing_reads(name: str, number: int = errno.EIO, times: int = 1 << 30) -> None:
    """Reads of files whose path ends in `name` fail; only in the first `times` openings."""
    count = [0]

    def raw(path: str, mode: str):
        if not path.endswith(name) or set(mode) & set("wxa"):
            return None
        count[0] += 1
        return _FailingFile(path, mode, number, lambda: True) if count[0] <= times else None

    _patch_open(lambda path, mode: None, raw)


def clock_jump(nimg: int, seconds: float) -> None:
    """The wall clock jumps at a place of the run; the monotonic clock does not."""
    real, offset = time.time, [0.0]
    time.time = lambda: real() + offset[0]
    at(nimg, lambda: offset.__setitem__(0, seconds))


def nan_gradient(script: str, nimg: int) -> None:
    """One element of one gradient is NaN in the step at `nimg`, unless that step is taken again after a roll-back."""
    module = MAINS[script]
    real, armed = module.train_step, [False]
    signature = inspect.signature(real)

    def train_step(*args, **kwargs):
        values = signature.bind(*args, **kwargs).arguments
        place = values["nimg"] if "nimg" in values else values["step"].nimg
        armed[0] = place == nimg and not values["s"].counters["rollbacks"]
        return real(*args, **kwargs)

    module.train_step = train_step

    def poison(optimizer, args, kwargs):
        if armed[0]:
            armed[0] = False
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad.view(-1)[0] = float("nan")
                    return

    register_optimizer_step_pre_hook(poison)


def short_patience(seconds: float) -> None:
    """A rank that hangs is noticed after seconds and not after the quarter of an hour of a real run."""
    from datetime import timedelta

    upkeep.HANG_SECONDS = seconds
    ranks.COLLECTIVE_TIMEOUT = timedelta(seconds=seconds)


def impatient_lock(seconds: float) -> None:
    """A lock of another host is stale after `seconds`."""
    lock.LOCK_STALE = seconds


# --- a disk of its own ------------------------------------------------------------------------------------------------
class SmallDisk:
    """A tmpfs of some MB, where this user may mount one. A context manager; `folder` is None where it may not."""

    def __init__(self, folder: Path, megabytes: int = 40):
        self.path, self.megabytes, self.folder = folder, megabytes, None

    def __enter__(self) -> SmallDisk:
        self.path.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs", str(self.path)]
        if os.getuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0:
            self.folder = self.path
        return self

    def __exit__(self, *_) -> None:
        if self.folder:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)

    def fill(self) -> None:
        with open(self.path / "filler", "wb", buffering=0) as file:
            size = 1 << 20
            while size >= 1:
                try:
                    file.write(bytes(size))
                except OSError:
                    size //= 2

    def free(self) -> None:
        (self.path / "filler").unlink()

    def remount(self, how: str) -> bool:
        return not subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], capture_output=True).returncode
