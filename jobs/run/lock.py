"""The lock of a run directory: one live process works on a run. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

from data.files import _serial, _writing, parse_json, process_start, read_bytes, say
from jobs.run.find import typed
from jobs.run.own_job import job_id, restart_count
from jobs.run.states import RunDirError
from jobs.run.stopping import TRANSIENT

LOCK_BEAT = 5.0  # seconds between heartbeats of the lock
LOCK_STALE = 120.0  # a lock of another host without a heartbeat for so long is a dead host's


class Locked(RunDirError):
    """Another live process works on the run."""


class Lock:
    """A lock file that outlives no process: it names host, pid, the process's start time and job, and has a heartbeat.

    A lock of this host is stale as soon as its process is gone. One of another host (or of a container with its own
    process ids) is stale when its heartbeat, the file's mtime by the file system's own clock, is LOCK_STALE seconds
    old. One of an earlier start of our own Slurm job, or of the job before in its chain, is taken over at once: Slurm
    believes its node dead. Where only the node's daemon died the process lives on; it ends at its next heartbeat, for
    which the taker waits.

    A taker never removes the lock: it first makes `LOCK.<token of the stale lock>`, which only one process can, sees
    that the lock is still that stale one, and renames it over the lock. A taker killed in between leaves a claim that
    is stale by the same rules and is taken in the same way.
    """

    def __init__(self, path: Path):
        self.path, self.token, self.restart = Path(path), secrets.token_hex(8), restart_count()
        pid = os.getpid()
        self.mine = {
            "token": self.token,
            "host": socket.gethostname(),
            "space": process_space(),
            "pid": pid,
            "start": process_start(pid),
            "job": job_id() or None,
            "restart": self.restart,
            "since": round(time.time(), 1),
        }
        self._draft = self.path.with_name(f".LOCK.tmp.{self.mine['host']}.{pid}.{next(_serial)}")
        self._released = threading.Event()

    def acquire(self, wait: float) -> None:
        """Wait up to `wait` seconds for a holder that may be dead.

        Raises Locked, RunDirError where the file cannot be written.
        """
        end, patience = time.monotonic() + wait, 0.0
        _writing.add(self._draft)
        try:
            self._draft.write_text(json.dumps(self.mine, sort_keys=True))
            while not self._put(self.path):
                holder = self._read(self.path)
                if holder is None:
                    continue  # given back just now
                alive, local, age = self._judge(holder)
                orphan = alive and self._of_an_earlier_start(holder)
                if (orphan or not alive) and self._take(self.path, holder):
                    patience = 2 * LOCK_BEAT if orphan and age < 3 * LOCK_BEAT else 0.0
                    break
                if alive and not orphan and (local or time.monotonic() >= end):
                    raise Locked(_in_use(self.path.parent, holder, age))
                time.sleep(min(2.0, max(end - time.monotonic(), 0.05)) if alive else 0.05)
        except OSError as error:
            raise RunDirError(f"{self.path}: cannot be written ({error.strerror}); choose another --run") from None
        finally:
            with contextlib.suppress(OSError):  # a read-only file system, which is what is being reported
                self._draft.unlink(missing_ok=True)
            _writing.discard(self._draft)
        threading.Thread(target=self._beat, daemon=True, name="lock heartbeat").start()
        time.sleep(patience)

    def release(self) -> None:
        """Remove the lock file if it is still ours, and end the heartbeat."""
        self._released.set()
        with contextlib.suppress(OSError):
            if (self._read(self.path) or {}).get("token") == self.token:
                self.path.unlink()

    def _put(self, path: Path) -> bool:
        """Create `path` with our contents, all at once; False if it exists."""
        try:
            os.link(self._draft, path)
            return True
        except FileExistsError:
            return (self._read(path) or {}).get("token") == self.token  # NFS may say so of its own repeated request
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
        try:  # a file system without hard links
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            return False
        with os.fdopen(handle, "wb") as file:
            file.write(self._draft.read_bytes())
        return True

    def _take(self, path: Path, stale: dict) -> bool:
        """Replace the stale lock at `path` by ours; False if somebody else was first."""
        claim = self.path.with_name(f"LOCK.{stale['token']}")
        if not self._put(claim):
            other = self._read(claim)
            if other is None or self._judge(other)[0] or not self._take(claim, other):
                return False
        # Whoever took this lock before us has renamed the claim away, so only now does its name prove anything.
        if (self._read(path) or {}).get("token") != stale["token"]:
            claim.unlink(missing_ok=True)
            return False
        os.replace(claim, path)
        return True

    def _read(self, path: Path) -> dict | None:
        """What a lock file says, its mtime, and a token in every case; None if it is not there."""
        try:
            about, text = path.stat(), read_bytes(path)
        except FileNotFoundError:
            return None
        holder = {}
        with contextlib.suppress(ValueError):
            holder = parse_json(text)
        holder = holder if isinstance(holder, dict) else {}
        if not re.fullmatch("[0-9a-f]{16}", str(holder.get("token"))):
            holder = {
                "host": holder.get("host"),
                "pid": holder.get("pid"),
                "token": f"{about.st_ino:x}-{about.st_mtime_ns:x}",
            }
        return holder | {"mtime": about.st_mtime}

    def _judge(self, holder: dict) -> tuple[bool, bool, float]:
        """(whether the holder lives, whether that is certain because it is on this host, seconds since its
        heartbeat)."""
        os.utime(self._draft)  # the file server's clock, as for the heartbeat: ours may be minutes off
        age = self._draft.stat().st_mtime - holder["mtime"]
        if "start" not in holder:
            return age < 10, False, age  # being written this moment, or left empty by a crash
        if (holder.get("host"), holder.get("space")) == (self.mine["host"], self.mine["space"]):
            pid = holder.get("pid")
            alive = isinstance(pid, int) and process_start(pid) == holder["start"] != ""
            return alive, True, age
        return age < LOCK_STALE, False, age

    def _of_an_earlier_start(self, holder: dict) -> bool:
        """Whether the holder belongs to our own Slurm job before it was requeued, or to the job that ours goes on
        for."""
        job, restart = holder.get("job"), holder.get("restart")
        if job is None:
            return False
        requeued = job == self.mine["job"] and isinstance(restart, int) and restart < self.restart
        return requeued or job == os.environ.get("PREDECESSOR_JOB")

    def _beat(self) -> None:
        while not self._released.wait(LOCK_BEAT):
            with contextlib.suppress(OSError):  # a file server that is away for a moment
                holder = self._read(self.path)
                if holder is None:
                    self._restore()
                elif holder["token"] == self.token:
                    os.utime(self.path)
                elif not self._released.is_set():
                    say(
                        f"error: {self.path.parent}: process {holder.get('pid')} on {holder.get('host')} took this run "
                        "over, as this process was frozen or its job requeued; ending without a save",
                        sys.stderr,
                    )
                    os._exit(TRANSIENT)  # two writers would mix their rows

    def _restore(self) -> None:
        """Somebody deleted the lock file by hand: the run is still ours."""
        if not self._released.is_set():
            self._draft.write_text(json.dumps(self.mine, sort_keys=True))
            self._put(self.path)
            self._draft.unlink(missing_ok=True)


def _in_use(run: Path, holder: dict, age: float) -> str:
    pid, host, number = (str(holder.get(name, ""))[:100] for name in ("pid", "host", "job"))
    job = f" (job {number})" if holder.get("job") else ""
    return (
        f"{run}: in use by process {pid} on {host}{job}, heartbeat {max(age, 0):.0f} s "
        "ago; stop that one "
        f"first (python launch.py stop {typed(run)}), or use another --run"
    )


def process_space() -> str:
    """Names the process-id namespace: in two containers on one host the same pid means two processes."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
