"""The run directory on shared storage: names, config, status, attempts, STOP, SAVE, DONE. Torch-free."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data.files import (
    SMALL,
    atomic_write,
    check_regular,
    is_number,
    leads_out,
    open_regular,
    read_bytes,
    read_json,
    read_object,
    read_tail,
    remove_torn,
    row_of,
    say,
    words,
)
from jobs.config.specs import ROOT
from jobs.config.version import version
from jobs.run.lock import Lock
from jobs.run.own_job import job_id, restart_count
from jobs.run.owners import others_may_replace
from jobs.run.states import RunDirError, RunState
from jobs.run.stopping import DONE

MOST = {"metrics.jsonl": 1 << 30, "attempts.jsonl": 1 << 26}  # bytes at most; of all other small files SMALL
STATUS_BEAT = 5.0  # seconds between writes of status.json while the state stays the same
PACKAGES = "torch torchvision numpy pillow safetensors tyro tensorboard matplotlib submitit nibabel".split()


class RunDir:
    """Paths and small files of one run. Making the object touches nothing on disk."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config, self.metrics = self.path / "config.json", self.path / "metrics.jsonl"
        self.weights, self.checkpoints = self.path / "weights.safetensors", self.path / "checkpoints"
        self.best, self.waiting_best = self.path / "weights-best.safetensors", self.path / "weights-best.waiting"
        self.samples, self.plots, self.tensorboard = (
            self.path / "samples",
            self.path / "plots",
            self.path / "tensorboard",
        )
        self.logs, self.attempts, self.lockfile = self.path / "logs", self.path / "attempts.jsonl", self.path / "LOCK"
        self.proposed = False  # config.json is of this start, which may still be refused
        self._status: dict = {}
        self._status_at, self._status_failed = 0.0, False
        self._attempt: dict = {}
        self._lock: Lock | None = None

    def kept_weights(self, nimg: int) -> Path:
        """What --keep-weights keeps at `nimg` images, named by its kimg."""
        return self.path / f"weights-{nimg / 1000:.10g}.safetensors"

    def kept(self) -> dict[float, Path]:
        """{kimg: weights file} of those that --keep-weights has kept."""
        found = {path: path.stem.removeprefix("weights-") for path in self.path.glob("weights-[0-9]*.safetensors")}
        return {float(kimg): path for path, kimg in found.items() if re.fullmatch(r"\d+(\.\d+)?", kimg)}

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
        if damage := self.damage():
            raise RunDirError(f"{self.path}: {damage}; move it away, or use another --run")

    def damage(self) -> str:
        """Which of the files that grow or are replaced is none that a run writes, in words; '' if all are well. Nothing
        is read for that."""
        for name in ("config.json", "status.json", "jobs.json", "data.json", "attempts.jsonl", "metrics.jsonl"):
            path = self.path / name
            try:
                if path.is_symlink() and leads_out(path, self.path):
                    return f"{name} is damaged (a link that leads out of the run)"
                check_regular(path.stat(), path, MOST.get(name, SMALL))
            except FileNotFoundError:
                continue
            except OSError as error:
                return f"{name} is damaged ({words(error)})"
        return ""

    def check_private(self) -> None:
        """Raise RunDirError where another user could have put a checkpoint, code or a job's pickle into this run.

        A folder that lets nobody in, as create() makes it, protects what lies in it whatever the modes there are.
        """
        submitit = self.logs / "submitit"
        looked_at = [self.path]
        if self.path.stat().st_mode & 0o011:
            looked_at += [
                self.checkpoints,
                self.logs,
                submitit,
                self.path / "code",
                self.config,
                *self.path.glob("*.safetensors"),
                self.path / "jobs.json",
                self.path / "job.sbatch",
                *self.checkpoints.glob("*.pt"),
                *submitit.glob("*.pkl"),
                *(self.path / "code").glob("*.py"),
            ]
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
            return read_json(self.config, self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            text = f"{self.config}: cannot be read ({words(error)}); restore it, or use another --run"
            raise RunDirError(text) from None

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
            "version": version(),
            **git_state(ROOT),
            "python": platform.python_version(),
            "packages": versions,
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "argv": list(argv),
            "time": round(time.time(), 1),
            **facts,
        }
        if before := read_object(path, self.path)[0]:
            about["first"] = before.get("first") or before
        atomic_write(path, json.dumps(about, indent=2, sort_keys=True) + "\n")

    # --- status and attempts ------------------------------------------------------------------------------------------
    def status(self, **fields) -> None:
        """Heartbeat: written when `state` changes, else at most every STATUS_BEAT seconds; fields stay until replaced.

        The states are those of RunState. A full disk is no reason to stop.
        """
        changed = "state" in fields and fields["state"] != self._status.get("state")
        self._status |= fields
        if not changed and time.monotonic() - self._status_at < STATUS_BEAT:
            return
        self._status_at = time.monotonic()
        about = {
            **self._status, "updated": round(time.time(), 1), "job_id": job_id() or None,
            "attempt": self._attempt.get("attempt"), "host": socket.gethostname(), "pid": os.getpid(),
        }  # fmt: skip
        try:
            atomic_write(self.path / "status.json", json.dumps(about, sort_keys=True) + "\n")
            self._status_failed = False
        except OSError as error:
            if not self._status_failed:
                say(
                    f"WARNING: {self.path}/status.json cannot be written ({words(error)}); training goes on", sys.stderr
                )
            self._status_failed = True

    def read_status(self) -> dict:
        """The last heartbeat; {} if there is none that can be read."""
        return read_object(self.path / "status.json", self.path)[0]

    def read_attempts(self) -> list[dict]:
        """The last lines of attempts.jsonl in order; what a killed process left half, or is no such line, is left out.

        `event` is a str in every line; `time`, `nimg` and `seconds` are numbers where they are there.
        """
        with contextlib.suppress(OSError):
            text = read_tail(self.attempts, SMALL, inside=self.path)
            return [row for line in text.split(b"\n") for row in row_of(line, _is_attempt_line)]
        return []

    def note(self, event: str, **fields) -> None:
        """Append one line to attempts.jsonl, durably."""
        line = json.dumps({"event": event, "time": round(time.time(), 1), **fields}, sort_keys=True) + "\n"
        with open_regular(self.attempts, "a+b", self.path) as file:
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
            "attempt": 1 + sum(line["event"] == "start" for line in lines), "job_id": job_id() or None,
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
                "end",
                attempt=last.get("attempt"),
                job_id=last.get("job_id"),
                node=last.get("node"),
                nimg=self.newest_checkpoint(),
                reached=round(seen["kimg"] * 1000) if seconds is not None and is_number(seen.get("kimg")) else None,
                reason="died without a word",
                seconds=seconds,
                inferred=True,
            )
        return lines

    def complete_marks(self) -> None:
        """Under the lock, of a run that is DONE: the end line and the status that a process killed at its last moment
        did not write."""
        self._note_a_silent_death()
        seen = self.read_status()
        if seen.get("state") != RunState.DONE:
            atomic_write(
                self.path / "status.json",
                json.dumps(seen | {"state": RunState.DONE, "reason": "finished", "code": DONE}, sort_keys=True) + "\n",
            )

    def attempt_end(self, **fields) -> None:
        """One line per end: nimg, reason, seconds, code. A full disk must not change the exit code."""
        try:
            self.note("end", **self._attempt, **fields)
        except OSError as error:
            say(f"WARNING: {self.attempts} cannot be written ({words(error)})", sys.stderr)

    def newest_checkpoint(self) -> int:
        """Images seen at the newest committed checkpoint, judged by names alone; 0 if there is none."""
        return max((int(p.stem) for p in self.checkpoints.glob("*.json") if p.stem.isdigit()), default=0)

    # --- DONE, STOP, SAVE ---------------------------------------------------------------------------------------------
    def done(self) -> bool:
        """Whether the run has seen all its images."""
        return os.path.exists(self.path / "DONE")

    def mark_done(self) -> None:
        """Create DONE, after the last checkpoint is on disk."""
        atomic_write(self.path / "DONE", "")

    def unmark_done(self) -> None:
        """Remove DONE: the run is longer now."""
        (self.path / "DONE").unlink(missing_ok=True)

    def stop_requested(self) -> bool:
        """Whether a person asked for the end of the run (a file STOP)."""
        return (self.path / "STOP").exists()

    def stop_holds(self, since: float | None) -> bool:
        """Whether a person's STOP is to be obeyed by what was started explicitly at `since`, in Unix seconds.

        One that was written later holds, whoever reads it and when; an older one is lifted. None: what was older was
        lifted as the run was queued, so that any STOP holds.
        """
        try:
            made = (self.path / "STOP").lstat().st_mtime
        except OSError:
            return False
        if since is None or made - self._clock_ahead() > since:
            return True
        self.lift_stop()
        return False

    def _clock_ahead(self) -> float:
        """By how many seconds the file server's clock, which dates the files, is ahead of this machine's."""
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=self.path) as file:
            file.write(b"x")
            file.flush()
            return os.fstat(file.fileno()).st_mtime - time.time()
        return 0.0

    def lift_stop(self) -> None:
        """Move a person's STOP into attempts.jsonl: what it said and when it was made."""
        path = self.path / "STOP"
        try:
            made = round(path.lstat().st_mtime, 1)
        except FileNotFoundError:
            return
        text = ""
        with contextlib.suppress(OSError):
            text = read_bytes(path, inside=self.path)[:500].decode(errors="replace").strip()
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


def git_state(root: Path) -> dict:
    """Commit of the code at `root` and whether tracked files differ from it; None where git or a repository is
    absent."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a run's snapshot says what it was taken from
        taken = read_json(root / "snapshot.json")
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
