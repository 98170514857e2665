"""Checkpoints that survive being killed at any moment: <nimg>.pt, then <nimg>.json as the commit marker."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import torch

from jobs.rundir import atomic_write, sync_folder

DIGITS = 12
RETRIES = 2


class CheckpointError(Exception):
    """A checkpoint cannot be written or read; the text is one line that names the fix. Exit code 78."""

    exit_code = 78


class Diverged(Exception):
    """Losses or parameters are not finite. Exit code 77."""

    exit_code = 77


def to_host(value, path: str = "state"):
    """A deep copy in host memory of nested dicts, lists and tensors. TypeError for what weights_only could not load."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: to_host(v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_host(v, f"{path}[{i}]") for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} cannot be in a checkpoint; only tensors and plain values can")


def not_finite(value, path: str = "state") -> str | None:
    """Path of the first floating tensor that is not finite."""
    if isinstance(value, torch.Tensor):
        return path if value.is_floating_point() and not bool(torch.isfinite(value).all()) else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for k, v in items if (found := not_finite(v, f"{path}.{k}"))), None)


class Checkpoints:
    """The checkpoints of one run. Only rank 0 saves; every rank may load."""

    def __init__(self, folder: Path, keep: int = 2, say=print):
        self.folder, self.keep, self.say = Path(folder), keep, say
        self.blocked_seconds, self.last_error = 0.0, None
        self._writer: threading.Thread | None = None

    # --- writing ------------------------------------------------------------------------------------------------------
    def save(self, nimg: int, state: dict, healthy: bool = True, then=None) -> None:
        """Snapshot `state` to host memory and return; one thread writes it, then calls `then`.

        Waits for the write before. Raises Diverged instead of saving a tensor that is not finite.
        """
        started = time.monotonic()
        self.wait()
        snapshot = to_host(state)
        if bad := not_finite(snapshot):
            raise Diverged(f"{bad} is not finite")
        self._writer = threading.Thread(
            target=self._write, args=(nimg, snapshot, healthy, then), name="checkpoint writer"
        )
        self._writer.start()
        self.blocked_seconds += time.monotonic() - started

    def wait(self, raise_errors: bool = False) -> None:
        """Wait for the writer; with raise_errors, raise CheckpointError if its write failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if raise_errors and self.last_error:
            raise CheckpointError(self.last_error)

    def _write(self, nimg: int, state: dict, healthy: bool, then) -> None:
        for attempt in range(RETRIES + 1):
            try:
                self._write_once(nimg, state, healthy)
                if then is not None:
                    then()
                self.last_error = None
                break
            except OSError as error:
                self.last_error = (
                    f"checkpoint at {nimg} images was not written: {error.strerror or error} ({self.folder})"
                )
                if attempt < RETRIES:
                    time.sleep(1 + attempt)
                else:
                    self.say(f"WARNING: {self.last_error}. The previous checkpoint stays; free some space.")
        else:
            return
        self._prune()

    def _write_once(self, nimg: int, state: dict, healthy: bool) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        free = shutil.disk_usage(self.folder).free
        if free < len(content) * 1.05 + 1e6:
            raise OSError(28, f"needs {len(content) / 1e6:.0f} MB, {free / 1e6:.0f} MB are free")
        path = self.folder / f"{nimg:0{DIGITS}d}.pt"
        atomic_write(path, content)
        about = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "nimg": nimg, "healthy": healthy}
        atomic_write(path.with_suffix(".json"), json.dumps(about, sort_keys=True) + "\n")

    def _prune(self) -> None:
        """Keep the newest `keep` and the last healthy one. The marker goes first: half a deletion is no checkpoint."""
        committed = self.committed()
        healthy = [nimg for nimg, about in committed.items() if about.get("healthy")]
        keep = set(sorted(committed)[-self.keep :]) | set(healthy[-1:])
        for nimg in set(committed) - keep:
            with contextlib.suppress(OSError):
                for suffix in (".json", ".pt"):
                    (self.folder / f"{nimg:0{DIGITS}d}{suffix}").unlink()

    # --- reading ------------------------------------------------------------------------------------------------------
    def committed(self) -> dict[int, dict]:
        """{nimg: sidecar} in rising order, of all that have a readable sidecar."""
        found = {}
        for path in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                about = json.loads(path.read_text())
                if path.stem.isdigit() and isinstance(about, dict):
                    found[int(path.stem)] = about
        return found

    def load(self, nimg: int) -> dict:
        """The state of one checkpoint that is known to be whole."""
        return self._load(self.folder / f"{nimg:0{DIGITS}d}.json")

    def load_latest(self) -> tuple[int, dict] | None:
        """(nimg, state) of the newest whole checkpoint; None if there never was one. CheckpointError if all are damaged."""
        damaged = []
        for path in sorted(self.folder.glob("[0-9]*.json"), reverse=True):
            try:
                return int(path.stem), self._load(path)
            except Exception as error:  # whatever a damaged file raises, unpickling included
                text = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
                damaged.append(path.stem)
                self.say(f"WARNING: checkpoint {path.stem} is damaged ({text}); trying the one before")
        if damaged:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole ({', '.join(damaged)}). Restore one from a backup, or start a new run with another --run"
            )
        return None

    def _load(self, sidecar: Path) -> dict:
        about = json.loads(sidecar.read_text())
        content = sidecar.with_suffix(".pt").read_bytes()
        if len(content) != about["size"] or hashlib.sha256(content).hexdigest() != about["sha256"]:
            raise ValueError("its contents do not match its checksum")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def clean(self) -> None:
        """Remove what killed writers left: temporary files of this folder. Called under the run's lock."""
        for path in self.folder.glob(".*.tmp*"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        sync_folder(self.folder)
