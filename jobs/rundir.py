"""The run directory on shared storage: names, config, status, attempts, lock, STOP/SAVE/DONE. Torch-free."""

from __future__ import annotations

import contextlib
import errno
import grp
import importlib.metadata
import itertools
import json
import os
import platform
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.stop import BAD, DONE, TRANSIENT

LOCK_BEAT = 5.0  # seconds between heartbeats of the lock
LOCK_STALE = 120.0  # a lock of another host without a heartbeat for so long is a dead host's
STATUS_BEAT = 5.0  # seconds between writes of status.json while the state stays the same
TORN_AGE = 600.0  # a temporary file of another host is a dead writer's when nothing was written to it for so long
PACKAGES = "torch torchvision numpy pillow safetensors tyro tensorboard matplotlib submitit nibabel".split()

_temporary = re.compile(r"\..+\.tmp\.(?P<host>.+)\.(?P<pid>\d+)\.\d+")
_serial = itertools.count()
_writing: set[Path] = set()  # temporary files that this process has open


class RunDirError(Exception):
    """The run directory cannot be used; the text is one line that names the fix. Exit code 78."""

    exit_code = BAD


class Locked(RunDirError):
    """Another live process works on the run."""


# --- files that are whole or not there --------------------------------------------------------------------------------
@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator:
    """A binary file to write to that takes the name `path` only when it is complete and on disk: temporary file, fsync,
    rename, fsync of the folder. A reader, or a crash at any moment, sees the old contents or the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}.{next(_serial)}")
    _writing.add(temporary)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _writing.discard(temporary)
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes | str) -> None:
    """atomic_file for a whole content, text in UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
        # Some network file systems refuse fsync on folders; the rename itself is still atomic.
    finally:
        os.close(handle)


def remove_torn(folder: Path) -> list[str]:
    """Remove the temporary files that killed writers left in `folder`; returns their names. Touches no other file."""
    removed = []
    for path in sorted(Path(folder).glob(".*.tmp.*")):
        found = _temporary.fullmatch(path.name)
        if found is None or path in _writing:
            continue
        with contextlib.suppress(OSError):
            pid = int(found["pid"])
            if found["host"] == socket.gethostname():
                dead = pid == os.getpid() or not process_start(pid)  # our own pid: of a namesake in an earlier life
            else:
                dead = time.time() - path.stat().st_mtime > TORN_AGE
            if dead:
                path.unlink()
                removed.append(path.name)
    return removed


def others_may_replace(path: Path) -> str:
    """Why what lies at `path` may be another user's work, in words; '' where only this user and root can write to it.

    Write permission of a group counts unless the group is the user's own, as it is where each user has a group of one.
    """
    info = Path(path).stat()
    if info.st_uid not in (os.getuid(), 0):
        return f"it belongs to {_name_of(info.st_uid)}"
    if info.st_mode & 0o002:
        return f"everybody may write to it (mode {info.st_mode & 0o777:03o})"
    if info.st_mode & 0o020 and not _group_of_one(info.st_gid):
        return f"its group may write to it (mode {info.st_mode & 0o777:03o})"
    return ""


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group_of_one(gid: int) -> bool:
    """Whether a group is this user's own: it has the user's name and no other members."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write in the file system of `folder`, by its own count (quotas apart)."""
    return shutil.disk_usage(folder).free


def process_start(pid: int) -> str:
    """Start time of a live process in clock ticks since boot; '' where there is none. Tells a re-used pid from the old one."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if state in "ZX" else rest[18]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


# --- configs ----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Difference:
    """One field of two configs that differs. kind: 'architecture', 'free' (does not change the result) or 'other'."""

    name: str
    old: object
    new: object
    kind: str

    def __str__(self) -> str:
        return f"--{self.name.replace('_', '-')} {self.old} -> {self.new}"


def compare(old: dict, new: dict, architecture: Collection[str], free: Collection[str]) -> list[Difference]:
    """The fields in which two configs differ, in the order of `new`; a field that one of them lacks counts as None there."""
    found = []
    for name in [*new, *(name for name in old if name not in new)]:
        a, b = old.get(name), new.get(name)
        if a != b:
            kind = "architecture" if name in architecture else "free" if name in free else "other"
            found.append(Difference(name, a, b, kind))
    return found


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
        self._status_at, self._status_failed = 0.0, False
        self._attempt: dict = {}
        self._lock: Lock | None = None

    def create(self) -> None:
        """Make the folders, private to the user. Never deletes anything."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.checkpoints, self.samples, self.plots, self.tensorboard, self.logs):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise RunDirError(
                f"{self.path}: cannot make the run directory ({error.strerror}); choose another --run"
            ) from None
        self.check_private()

    def check_private(self) -> None:
        """Raise RunDirError where another user could have put a checkpoint, code or a job's pickle into this run.

        A folder that lets nobody in, as create() makes it, protects what lies in it whatever the modes there are.
        """
        submitit = self.logs / "submitit"
        looked_at = [self.path]
        if self.path.stat().st_mode & 0o011:
            looked_at += [self.checkpoints, self.logs, submitit, self.path / "code", self.config, self.weights,
                          self.path / "jobs.json", self.path / "job.sbatch", *self.checkpoints.glob("*.pt"),
                          *submitit.glob("*.pkl"), *(self.path / "code").glob("*.py")]  # fmt: skip
        for path in looked_at:
            with contextlib.suppress(FileNotFoundError):
                if reason := others_may_replace(path):
                    fix = (
                        "use another --run"
                        if "belongs" in reason
                        else f"look at what is in it, then chmod -R go-w {self.path}"
                    )
                    raise RunDirError(f"{path}: {reason}, so what is in it may be somebody else's; {fix}")

    # --- config, provenance -------------------------------------------------------------------------------------------
    def read_config(self) -> dict | None:
        """The stored config; None if there is none yet."""
        try:
            value = json.loads(self.config.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirError(f"{self.config}: cannot be read ({error}); restore it, or use another --run") from None
        if not isinstance(value, dict):
            raise RunDirError(f"{self.config}: not a config; restore it, or use another --run")
        return value

    def write_config(self, config: dict) -> None:
        """Replace config.json."""
        atomic_write(self.config, json.dumps(config, indent=2, sort_keys=True) + "\n")

    def write_provenance(self, argv: list[str], **facts) -> None:
        """Where the results come from: code, packages, machine, command line; `facts` adds what needs torch to know
        (CUDA, driver). The file holds this attempt's, and under `first` those of the attempt that began the run."""
        path = self.path / "provenance.json"
        versions = {}
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions[name] = importlib.metadata.version(name)
        about = {
            **git_state(Path(__file__).resolve().parent.parent), "python": platform.python_version(), "packages": versions,
            "host": socket.gethostname(), "platform": platform.platform(), "argv": list(argv), "time": round(time.time(), 1), **facts,
        }  # fmt: skip
        with contextlib.suppress(OSError, ValueError, AttributeError):
            before = json.loads(path.read_text())
            about["first"] = before.get("first") or before
        atomic_write(path, json.dumps(about, indent=2, sort_keys=True) + "\n")

    # --- status and attempts ------------------------------------------------------------------------------------------
    def status(self, **fields) -> None:
        """Heartbeat: written when `state` changes, else at most every STATUS_BEAT seconds; fields stay until replaced.

        States: starting, running, saving, done, stopped, continue, failed, diverged. A full disk is no reason to stop.
        """
        changed = "state" in fields and fields["state"] != self._status.get("state")
        self._status |= fields
        if not changed and time.monotonic() - self._status_at < STATUS_BEAT:
            return
        self._status_at = time.monotonic()
        about = {
            **self._status, "updated": round(time.time(), 1), "job_id": os.environ.get("SLURM_JOB_ID"),
            "attempt": self._attempt.get("attempt"), "host": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        try:
            atomic_write(self.path / "status.json", json.dumps(about, sort_keys=True) + "\n")
            self._status_failed = False
        except OSError as error:
            if not self._status_failed:
                print(
                    f"WARNING: {self.path}/status.json cannot be written ({error.strerror}); training goes on",
                    file=sys.stderr,
                )
            self._status_failed = True

    def read_status(self) -> dict:
        """The last heartbeat; {} if there is none."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            value = json.loads((self.path / "status.json").read_text())
            return value if isinstance(value, dict) else {}
        return {}

    def read_attempts(self) -> list[dict]:
        """The lines of attempts.jsonl in order; what a killed process left half, or is no such line, is left out.

        `event` is a str in every line; `time`, `nimg` and `seconds` are numbers where they are there.
        """
        lines = []
        with contextlib.suppress(OSError):
            for line in self.attempts.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    lines.append(json.loads(line))
        return [line for line in lines if isinstance(line, dict) and _is_attempt_line(line)]

    def note(self, event: str, **fields) -> None:
        """Append one line to attempts.jsonl, durably."""
        line = json.dumps({"event": event, "time": round(time.time(), 1), **fields}, sort_keys=True) + "\n"
        with open(self.attempts, "a+b") as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
                line = "\n" + line  # the attempt before was killed inside its line
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def attempt_start(self, **fields) -> None:
        """One line per start. An attempt before this one that has no end line died without a word; that is noted first,
        with the images that its newest checkpoint kept."""
        lines = self._note_a_silent_death()
        self._attempt = {
            "attempt": 1 + sum(line["event"] == "start" for line in lines), "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": restart_count(), "node": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        self.note("start", **self._attempt, **fields)

    def _note_a_silent_death(self) -> list[dict]:
        lines = [line for line in self.read_attempts() if line.get("event") in ("start", "end")]
        if lines and lines[-1]["event"] == "start":
            last, seen = lines[-1], self.read_status()
            seconds = None
            if seen.get("attempt") == last.get("attempt") and is_number(seen.get("updated")):
                seconds = round(max(seen["updated"] - (last.get("time") or seen["updated"]), 0.0), 1)
            self.note(
                "end", attempt=last.get("attempt"), job_id=last.get("job_id"), node=last.get("node"), nimg=self.newest_checkpoint(),
                reason="died without a word", seconds=seconds, inferred=True,
            )  # fmt: skip
        return lines

    def complete_marks(self) -> None:
        """Under the lock, of a run that is DONE: the end line and the status that a process killed at its last moment did
        not write."""
        self._note_a_silent_death()
        seen = self.read_status()
        if seen.get("state") != "done":
            atomic_write(
                self.path / "status.json",
                json.dumps(seen | {"state": "done", "reason": "finished", "code": DONE}, sort_keys=True) + "\n",
            )

    def attempt_end(self, **fields) -> None:
        """One line per end: nimg, reason, seconds, code. A full disk must not change the exit code."""
        try:
            self.note("end", **self._attempt, **fields)
        except OSError as error:
            print(f"WARNING: {self.attempts} cannot be written ({error.strerror})", file=sys.stderr)

    def newest_checkpoint(self) -> int:
        """Images seen at the newest committed checkpoint, judged by names alone; 0 if there is none."""
        return max((int(p.stem) for p in self.checkpoints.glob("*.json") if p.stem.isdigit()), default=0)

    # --- DONE, STOP, SAVE ---------------------------------------------------------------------------------------------
    def done(self) -> bool:
        """Whether the run has seen all its images."""
        return (self.path / "DONE").exists()

    def mark_done(self) -> None:
        """Create DONE, after the last checkpoint is on disk."""
        atomic_write(self.path / "DONE", "")

    def unmark_done(self) -> None:
        """Remove DONE: the run is longer now."""
        (self.path / "DONE").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Whether a person asked for the end of the run (a file STOP)."""
        return (self.path / "STOP").exists()

    def lift_stop(self) -> None:
        """Move a person's STOP into attempts.jsonl: what it said and when it was made."""
        path = self.path / "STOP"
        try:
            text, made = path.read_text(errors="replace")[:500].strip(), round(path.stat().st_mtime, 1)
        except FileNotFoundError:
            return
        self.note("stop lifted", text=text, made=made)
        path.unlink(missing_ok=True)

    def take_save(self) -> bool:
        """Whether somebody asked for a checkpoint; asking is consumed."""
        try:
            (self.path / "SAVE").unlink()
            return True
        except OSError:
            return False

    # --- the lock -----------------------------------------------------------------------------------------------------
    def lock(self, wait: float = 150.0) -> None:
        """Become the one process that works on this run. Raises Locked while another lives (see Lock)."""
        if self._lock is None:
            lock = Lock(self.lockfile)
            lock.acquire(wait)
            self._lock = lock
            for folder in (self.path, self.samples, self.plots):  # of torn checkpoints, Checkpoints itself tells
                with contextlib.suppress(OSError):
                    remove_torn(folder)

    def unlock(self) -> None:
        """Give the lock back, if it is still ours."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _is_attempt_line(line: dict) -> bool:
    values = [line[name] for name in ("time", "nimg", "seconds") if line.get(name) is not None]
    return isinstance(line.get("event"), str) and all(is_number(value) for value in values)


def is_number(value: object) -> bool:
    """Whether a value from a file is a number that can be reckoned with: finite, no truth value, no thousand digits."""
    return type(value) in (int, float) and abs(value) < 1e15  # also false for nan


class Lock:
    """A lock file that outlives no process: it names host, pid, the process's start time and job, and has a heartbeat.

    A lock of this host is stale as soon as its process is gone. One of another host (or of a container with its own
    process ids) is stale when its heartbeat, the file's mtime by the file system's own clock, is LOCK_STALE seconds old.
    One of an earlier start of our own Slurm job, or of the job before in its chain, is taken over at once: Slurm believes
    its node dead. Where only the node's daemon died the process lives on; it ends at its next heartbeat, for which the
    taker waits.

    A taker never removes the lock: it first makes `LOCK.<token of the stale lock>`, which only one process can, sees that
    the lock is still that stale one, and renames it over the lock. A taker killed in between leaves a claim that is
    stale by the same rules and is taken in the same way.
    """

    def __init__(self, path: Path):
        self.path, self.token = Path(path), secrets.token_hex(8)
        pid = os.getpid()
        self.mine = {"token": self.token, "host": socket.gethostname(), "space": process_space(), "pid": pid, "start": process_start(pid),
                     "job": os.environ.get("SLURM_JOB_ID"), "restart": restart_count(), "since": round(time.time(), 1)}  # fmt: skip
        self._draft = self.path.with_name(f".LOCK.tmp.{self.mine['host']}.{pid}.{next(_serial)}")
        self._released = threading.Event()

    def acquire(self, wait: float) -> None:
        """Wait up to `wait` seconds for a holder that may be dead. Raises Locked, RunDirError where the file cannot be written."""
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
            about, text = path.stat(), path.read_text(errors="replace")
        except FileNotFoundError:
            return None
        holder = {}
        with contextlib.suppress(ValueError, RecursionError):
            holder = json.loads(text)
        holder = holder if isinstance(holder, dict) else {}
        if not re.fullmatch("[0-9a-f]{16}", str(holder.get("token"))):
            holder = {
                "host": holder.get("host"),
                "pid": holder.get("pid"),
                "token": f"{about.st_ino:x}-{about.st_mtime_ns:x}",
            }
        return holder | {"mtime": about.st_mtime}

    def _judge(self, holder: dict) -> tuple[bool, bool, float]:
        """(whether the holder lives, whether that is certain because it is on this host, seconds since its heartbeat)."""
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
        """Whether the holder belongs to our own Slurm job before it was requeued, or to the job that ours goes on for."""
        job, restart = holder.get("job"), holder.get("restart")
        if job is None:
            return False
        requeued = job == self.mine["job"] and isinstance(restart, int) and restart < self.mine["restart"]
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
                    print(f"error: {self.path.parent}: process {holder.get('pid')} on {holder.get('host')} took this run over, as this "
                          "process was frozen or its job requeued; ending without a save", file=sys.stderr, flush=True)  # fmt: skip
                    os._exit(TRANSIENT)  # two writers would mix their rows

    def _restore(self) -> None:
        """Somebody deleted the lock file by hand: the run is still ours."""
        if not self._released.is_set():
            self._draft.write_text(json.dumps(self.mine, sort_keys=True))
            self._put(self.path)
            self._draft.unlink(missing_ok=True)


def _in_use(run: Path, holder: dict, age: float) -> str:
    job = f" (job {holder['job']})" if holder.get("job") else ""
    return (
        f"{run}: in use by process {holder.get('pid')} on {holder.get('host')}{job}, heartbeat {max(age, 0):.0f} s ago; stop that one "
        f"first (python launch.py stop {run.name}), or use another --run"
    )


def restart_count() -> int:
    """How often Slurm has requeued the job that this process belongs to."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def process_space() -> str:
    """Names the process-id namespace: in two containers on one host the same pid means two processes."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def git_state(root: Path) -> dict:
    """Commit of the code at `root` and whether tracked files differ from it; None where git or a repository is absent."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a run's snapshot says what it was taken from
        taken = json.loads((root / "snapshot.json").read_text())
        return {name: taken[name] for name in ("git_commit", "git_dirty")}
    if _git(root, "rev-parse", "--show-toplevel") != str(root):
        return {
            "git_commit": None,
            "git_dirty": None,
        }  # a snapshot inside somebody else's repository has no commit of its own
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"git_commit": _git(root, "rev-parse", "HEAD"), "git_dirty": None if changes is None else bool(changes)}


def _git(root: Path, *args: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    return None
