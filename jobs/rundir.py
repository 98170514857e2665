"""The run directory on shared storage: names, config, status, attempts, lock, STOP/SAVE/DONE. Torch-free."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LOCK_BEAT = 15.0  # seconds between heartbeats of the lock
LOCK_STALE = 120.0  # a lock of another host without a heartbeat for so long is a dead host's
PACKAGES = "torch torchvision numpy pillow safetensors tyro tensorboard matplotlib submitit nibabel".split()


class Locked(Exception):
    """Another live process works on the run. Exit code 78."""

    exit_code = 78


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write so that a reader, or a crash, sees the old content or the new, never half: temporary file, fsync, rename."""
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        pass  # some network file systems refuse fsync on folders; the rename itself is still atomic
    finally:
        os.close(handle)


def process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, '' where there is none: tells a re-used pid from the old one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


class RunDir:
    """Paths and small files of one run. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.jsonl"
        self.weights, self.checkpoints = self.path / "weights.safetensors", self.path / "checkpoints"
        self.samples, self.plots, self.tensorboard = (
            self.path / "samples",
            self.path / "plots",
            self.path / "tensorboard",
        )
        self.logs, self.attempts, self.lockfile = self.path / "logs", self.path / "attempts.jsonl", self.path / "LOCK"
        self._status: dict = {}
        self._status_at = 0.0
        self._attempt: dict = {}
        self._beating = threading.Event()

    def create(self) -> None:
        """Make the folders, private to the user. Never deletes anything."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.checkpoints, self.samples, self.plots, self.tensorboard, self.logs):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise Locked(
                f"{self.path}: cannot make the run directory ({error.strerror}); choose another --run"
            ) from None

    # --- config, provenance -------------------------------------------------------------------------------------------
    def read_config(self) -> dict | None:
        try:
            value = json.loads(self.config.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise Locked(f"{self.config}: cannot be read ({error}); restore it, or use another --run") from None
        if not isinstance(value, dict):
            raise Locked(f"{self.config}: not a config; restore it, or use another --run")
        return value

    def write_config(self, config: dict) -> None:
        atomic_write(self.config, json.dumps(config, indent=2, sort_keys=True) + "\n")

    def write_provenance(self, argv: list[str], **facts) -> None:
        """Where the results come from: code, packages, machine, command line."""
        root = Path(__file__).resolve().parent.parent
        versions = {}
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        commit, dirty = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain", "--untracked-files=no")
        about = {
            "git_commit": commit, "git_dirty": None if dirty is None else bool(dirty), "python": platform.python_version(),
            "packages": versions, "host": socket.gethostname(), "platform": platform.platform(), "argv": argv, **facts,
        }  # fmt: skip
        atomic_write(self.path / "provenance.json", json.dumps(about, indent=2, sort_keys=True) + "\n")

    # --- status and attempts ------------------------------------------------------------------------------------------
    def status(self, **fields) -> None:
        """Heartbeat: written when the state changes, else at most every 5 seconds. A full disk is no reason to stop."""
        changed = fields.get("state") != self._status.get("state")
        self._status |= fields
        if not changed and time.monotonic() - self._status_at < 5:
            return
        self._status_at = time.monotonic()
        about = {
            **self._status, "updated": round(time.time(), 1), "job_id": os.environ.get("SLURM_JOB_ID"),
            "attempt": self._attempt.get("attempt"), "host": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        with contextlib.suppress(OSError):
            atomic_write(self.path / "status.json", json.dumps(about, sort_keys=True) + "\n")

    def read_attempts(self) -> list[dict]:
        lines = []
        with contextlib.suppress(OSError):
            for line in self.attempts.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict)]

    def note(self, event: str, **fields) -> None:
        """Append one line to attempts.jsonl, durably."""
        line = json.dumps({"event": event, "time": round(time.time(), 1), **fields}, sort_keys=True) + "\n"
        with open(self.attempts, "a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = "\n" + line  # the attempt before was killed inside its line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def attempt_start(self, **fields) -> None:
        """One line per start. An attempt before this one that has no end line died without a word; that is noted first."""
        lines = [line for line in self.read_attempts() if line.get("event") in ("start", "end")]
        if lines and lines[-1]["event"] == "start":
            self.note("end", attempt=lines[-1].get("attempt"), reason="died without a word", inferred=True)
        self._attempt = {
            "attempt": 1 + sum(line["event"] == "start" for line in lines), "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": int(os.environ.get("SLURM_RESTART_COUNT") or 0), "node": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        self.note("start", **self._attempt, **fields)

    def attempt_end(self, **fields) -> None:
        self.note("end", **self._attempt, **fields)

    # --- DONE, STOP, SAVE ---------------------------------------------------------------------------------------------
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def mark_done(self) -> None:
        atomic_write(self.path / "DONE", "")

    def unmark_done(self) -> None:
        (self.path / "DONE").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        return (self.path / "STOP").exists()

    def lift_stop(self) -> None:
        """Move a person's STOP into attempts.jsonl."""
        with contextlib.suppress(OSError):
            self.note("stop lifted", text=(self.path / "STOP").read_text(errors="replace")[:500])
        (self.path / "STOP").unlink(missing_ok=True)

    def take_save(self) -> bool:
        """Whether somebody asked for a checkpoint; asking is consumed."""
        try:
            (self.path / "SAVE").unlink()
            return True
        except OSError:
            return False

    # --- the lock -----------------------------------------------------------------------------------------------------
    def lock(self, wait: float = 150.0) -> None:
        """Become the one process that works on this run. Raises Locked while another lives.

        A lock of this host is stale when its process is gone; one of another host when its heartbeat (the file's mtime,
        measured against the file system's own clock) stopped for LOCK_STALE seconds.
        """
        end = time.monotonic() + wait
        mine = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
        }
        while True:
            try:
                handle = os.open(self.lockfile, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            except FileExistsError:
                holder, alive, local = self._holder()
                if alive and (local or time.monotonic() > end):
                    raise Locked(
                        f"{self.path}: in use by process {holder.get('pid')} on {holder.get('host')}; stop that one first, "
                        "or use another --run"
                    ) from None
                if alive:
                    time.sleep(2)
                    continue
                # Renaming is atomic: of two takers one gets the file, the other finds it gone and tries again.
                with contextlib.suppress(OSError):
                    stale = self.lockfile.with_name(f".LOCK.stale.{os.getpid()}.{time.monotonic_ns()}")
                    os.rename(self.lockfile, stale)
                    os.unlink(stale)
                continue
            except OSError as error:
                raise Locked(f"{self.path}: cannot be written ({error.strerror}); choose another --run") from None
            with os.fdopen(handle, "w") as file:
                file.write(json.dumps(mine, sort_keys=True))
            threading.Thread(target=self._beat, daemon=True, name="lock heartbeat").start()
            return

    def _holder(self) -> tuple[dict, bool, bool]:
        """(who holds the lock, whether it lives, whether it is on this host)."""
        try:
            holder = json.loads(self.lockfile.read_text() or "{}")
            age = time.time() - self.lockfile.stat().st_mtime
        except FileNotFoundError:
            return {}, False, True
        except (OSError, ValueError):
            holder, age = {}, time.time() - self.lockfile.stat().st_mtime
        if not isinstance(holder, dict) or not holder:
            return {}, age < 10, False  # just being written, or a file that a crash left empty
        if holder.get("host") == socket.gethostname():
            return holder, process_start(int(holder.get("pid", 0))) == holder.get("start") != "", True
        return holder, age < LOCK_STALE, False

    def _beat(self) -> None:
        while not self._beating.wait(LOCK_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.lockfile)

    def unlock(self) -> None:
        """Give the lock back, if it is still ours."""
        self._beating.set()
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self.lockfile.read_text()).get("pid") == os.getpid():
                self.lockfile.unlink()


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _git(root: Path, *args: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return None


def default_argv() -> list[str]:
    return [sys.executable, *sys.argv]
