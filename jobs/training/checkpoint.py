"""Checkpoints that survive being killed at any moment: <nimg>.pt, then <nimg>.json as the commit marker."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickletools
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import torch

from data.files import atomic_file, atomic_write, open_regular, read_json, remove_torn, say, sha256_of, sync_folder
from jobs.run.owners import free_bytes
from jobs.run.stopping import BAD, DIVERGED

DIGITS = 12
RETRIES = 2  # of a failed write, PAUSE seconds apart
PAUSE = 2.0
MAX_INDEX = 16 << 20  # bytes of what says which tensors a checkpoint holds
ROOM = 16 << 20  # bytes to leave free beyond the checkpoint itself: weights file, logs, pictures


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the text is one line that names the fix. Exit code 78."""

    exit_code = BAD


class Diverged(Exception):
    """Losses or parameters are not finite. Exit code 77."""

    exit_code = DIVERGED


class NonFinite(Diverged):
    """A tensor that would have been saved is not finite; the text names it."""


def to_host(value, path: str = "state"):
    """A deep copy in host memory of nested dicts, lists and tuples of tensors and plain values; dicts become plain
    dicts.

    Raises TypeError, naming the place, for anything that `torch.load(weights_only=True)` would refuse or change.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)  # a copy also of views: their whole storage would be saved
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"{path}: the key {key!r} cannot be in a checkpoint; use a str or int")
        return {k: to_host(v, f"{path}.{k}") for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_host(v, f"{path}.{i}") for i, v in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):  # by type: np.float64 is a float, and does not load
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be in a checkpoint; only tensors and plain values can")


def tensors(value, path: str = "state") -> Iterator[tuple[str, torch.Tensor]]:
    """(path, tensor) of every tensor in nested dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{path}.{key}")


def not_finite(state: dict) -> str | None:
    """Path of the first floating tensor that is not finite."""
    checked = [(path, t) for path, t in tensors(state) if t.is_floating_point()]
    by_device: dict[torch.device, list] = {}
    for path, t in checked:
        by_device.setdefault(t.device, []).append((path, torch.isfinite(t.detach()).all()))
    for flags in by_device.values():  # one transfer per device, not one per tensor
        for (path, _), fine in zip(flags, torch.stack([flag for _, flag in flags]).tolist(), strict=True):
            if not fine:
                return path
    return None


class Checkpoints:
    """The checkpoints of one run. Only rank 0 saves, under the run's lock; every rank may load."""

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = say):
        self.folder, self.keep, self.say = Path(folder), keep, say
        self.blocked_seconds = 0.0  # what saving has cost the loop
        self.last_error: str | None = None  # of the latest save; None when it went well
        self._writer: threading.Thread | None = None
        self._cleaned = False

    # --- writing ------------------------------------------------------------------------------------------------------
    def save(
        self,
        nimg: int,
        state: dict,
        healthy: bool = True,
        then: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        """Snapshot `state` to host memory and return; one thread writes it. Waits for the write before.

        `then` is called in that thread when the file is written and not yet committed, so that a checkpoint on disk
        implies what `then` writes; `after` when it is committed. A write that fails is tried again, then reported with
        `say` and in `last_error`; the checkpoint before stays. Raises NonFinite instead of saving a tensor that is not
        finite, TypeError for what could not be loaded.
        """
        started = time.monotonic()
        self._join()
        if bad := not_finite(state):
            raise NonFinite(f"{bad} is not finite; no checkpoint at {nimg} images")
        snapshot = to_host(state)
        # Not a daemon: an exception in the loop must not tear the write that is under way.
        self._writer = threading.Thread(
            target=self._write, args=(nimg, snapshot, healthy, then, after), name="checkpoint writer"
        )
        self._writer.start()
        self.blocked_seconds += time.monotonic() - started

    def wait(self, raise_errors: bool = False) -> None:
        """Wait for the writer; with raise_errors, raise CheckpointError if its write failed."""
        started = time.monotonic()
        self._join()
        self.blocked_seconds += time.monotonic() - started
        if raise_errors and self.last_error:
            raise CheckpointError(self.last_error)

    def _join(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None

    def _write(self, nimg: int, state: dict, healthy: bool, *around: Callable[[], None]) -> None:
        for attempt in range(RETRIES + 1):
            try:
                self._write_once(nimg, state, healthy, *around)
                self.last_error = None
                break
            except Exception as error:  # whatever it is, training goes on and the checkpoint before stays
                reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self.last_error = f"the checkpoint at {nimg / 1000:g} kimg was not written to {self.folder} ({reason})"
                if attempt < RETRIES:
                    time.sleep(PAUSE)
        else:
            self.say(
                f"WARNING: {self.last_error}; the one before stays. Free some space or quota, or mend what it names"
            )
            return
        try:
            self._prune(nimg)
        except OSError as error:
            self.say(
                f"WARNING: old checkpoints in {self.folder} cannot be removed ({error.strerror}); they take space only"
            )

    def _write_once(
        self, nimg: int, state: dict, healthy: bool, then: Callable[[], None], after: Callable[[], None]
    ) -> None:
        if not self._cleaned:
            self._cleaned = True
            self.clean()
        need, free = sum(t.nbytes for _, t in tensors(state)) + ROOM, free_bytes(self.folder)
        if free < need:
            raise OSError(28, f"it needs {need / 1e6:.0f} MB and {free / 1e6:.0f} MB are free")
        path = self._path(nimg)
        with atomic_file(path) as file:
            hashing = _Hashing(file)
            torch.save(state, cast(IO[bytes], hashing))
            # A marker from an earlier write at this very place would not fit the file that takes its name now.
            path.with_suffix(".json").unlink(missing_ok=True)
        then()
        about = {"sha256": hashing.sha256.hexdigest(), "size": hashing.size, "nimg": nimg, "healthy": bool(healthy)}
        atomic_write(path.with_suffix(".json"), json.dumps(about, sort_keys=True) + "\n")
        after()

    def _path(self, nimg: int) -> Path:
        return self.folder / f"{nimg:0{DIGITS}d}.pt"

    def _prune(self, newest: int) -> None:
        """Keep the newest `keep`, counted back from the one just written, and the newest healthy one.

        What lies ahead of it was found damaged or was rolled back from: it would be loaded before this one. The marker
        goes first, so that half a deletion is no checkpoint; files without marker are unfinished writes.
        """
        committed = {nimg: about for nimg, about in self.committed().items() if nimg <= newest}
        healthy = [nimg for nimg, about in committed.items() if about.get("healthy")]
        keep = {*list(committed)[-self.keep :], *healthy[-1:]}
        for path in [*self.folder.glob("*.json"), *self.folder.glob("*.pt")]:
            if path.stem.isdigit() and len(path.stem) == DIGITS and int(path.stem) not in keep:
                path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Remove the temporary files of killed writers. Called under the run's lock."""
        if torn := remove_torn(self.folder):
            sync_folder(self.folder)
            self.say(f"Removed {len(torn)} unfinished file(s) of a killed attempt from {self.folder}")

    # --- reading ------------------------------------------------------------------------------------------------------
    def committed(self) -> dict[int, dict]:
        """{nimg: sidecar} in rising order, of all whose sidecar can be read; the files themselves are not looked at."""
        found = {}
        for path in self._sidecars():
            with contextlib.suppress(OSError, ValueError):
                found[int(path.stem)] = read_json(path)
        return found

    def _sidecars(self) -> list[Path]:
        return sorted(p for p in self.folder.glob("*.json") if p.stem.isdigit() and len(p.stem) == DIGITS)

    def load_latest(self) -> tuple[int, dict] | None:
        """(nimg, state) on the CPU of the newest whole checkpoint; None if there never was one.

        A damaged one is passed over with a warning. Raises CheckpointError if there are some and all are damaged: to
        start afresh is a person's decision.
        """
        sidecars, damaged = self._sidecars(), []
        orphans = [
            p for p in sorted(self.folder.glob("*.pt")) if p.stem.isdigit() and p.with_suffix(".json") not in sidecars
        ]
        if len(orphans) > 1 and not sidecars:  # a killed writer leaves one; this looks like a copy that missed the rest
            raise CheckpointError(
                f"{self.folder}: {len(orphans)} checkpoints without their .json; copy those too, or delete the .pt "
                "files to start afresh"
            )
        for path in orphans:
            self.say(f"Ignored {path.name} in {path.parent}: its write was not finished")
        for path in reversed(sidecars):
            try:
                return int(path.stem), self._load(path)
            except Exception as error:  # whatever a damaged file raises, unpickling included
                text = (str(error) or type(error).__name__).splitlines()[0][:160]
                damaged.append(path.stem)
                self.say(f"WARNING: checkpoint {path.stem} in {path.parent} is damaged ({text}); trying the one before")
        if damaged:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole ({', '.join(damaged)}); restore one from a backup, or start a "
                "new run "
                "with another --run"
            )
        return None

    def load(self, nimg: int, wait: float = 60.0) -> dict:
        """The state of one checkpoint that another rank has seen.

        Tries for `wait` seconds: NFS shows new files late.
        """
        end = time.monotonic() + wait
        while True:
            try:
                return self._load(self._path(nimg).with_suffix(".json"))
            except Exception as error:
                if time.monotonic() > end:
                    text = (str(error) or type(error).__name__).splitlines()[0][:160]
                    raise CheckpointError(
                        f"checkpoint {nimg} in {self.folder} cannot be read here ({text}); is the folder shared?"
                    ) from None
            time.sleep(min(1.0, wait / 10))

    def _load(self, sidecar: Path) -> dict:
        about = read_json(sidecar)
        path = sidecar.with_suffix(".pt")
        with open_regular(path) as file:
            # The size first: of a file that is too long nothing need be read.
            if file.seek(0, 2) != about["size"] or sha256_of(file) != about["sha256"]:
                raise ValueError("its contents do not match its checksum")
            check_archive(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)


def check_archive(file) -> None:
    """Raise ValueError unless a .pt holds tensors and plain values alone, uncompressed. Nothing in it is run for that.

    `weights_only` keeps code out; this keeps out what it lets through: `bytearray(10**12)`, and members that are packed
    so that a small file fills the memory.
    """
    with zipfile.ZipFile(file) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it holds compressed parts; checkpoints have none")
        (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        if archive.getinfo(name).file_size > MAX_INDEX:
            raise ValueError("its list of tensors is too large")
        for opcode, argument, _ in pickletools.genops(archive.read(name)):
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise ValueError(f"it holds an object that no checkpoint has ({opcode.name})")
            if opcode.name == "GLOBAL" and not _ours.fullmatch(str(argument)):
                raise ValueError(
                    f"it names {str(argument).replace(' ', '.')[:80]}; checkpoints hold tensors and plain values only"
                )


_ours = re.compile(r"torch \w+Storage|torch\._utils _rebuild_tensor_v2|collections OrderedDict")


class _Hashing:
    """A file to write to that hashes what it is given: torch.save writes front to back, so no second pass is needed."""

    def __init__(self, file):
        self.file, self.sha256, self.size = file, hashlib.sha256(), 0

    def write(self, data) -> int:
        """Write, and hash what was written."""
        self.sha256.update(data)
        self.size += memoryview(data).nbytes
        return self.file.write(data)

    def flush(self) -> None:
        """Hand it to the operating system."""
        self.file.flush()
