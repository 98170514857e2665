"""Reasons to stop, and the exit codes. Torch-free: handlers are installed before torch is imported.

Handlers only set a flag. The loop asks `StopWatch.poll()` once per step; the ranks agree on the answer
(runtime.agree_max) and save together.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import time

from data.files import say
from jobs.run.own_job import job_id

# Exit codes: done or stopped by a person, wrong usage, transient, losses not finite, bad config or data, saved:
# continue me.
DONE, USAGE, TRANSIENT, DIVERGED, BAD, CONTINUE = 0, 2, 75, 77, 78, 85

NOTHING, SAVE, STOP_AND_CONTINUE, STOP_BY_PERSON = 0, 1, 2, 3
# This module is read on Windows and macOS too, where predict.py runs: not all of these are there.
SIGNALS = {
    name: getattr(signal, f"SIG{name}") for name in ("USR1", "USR2", "TERM", "INT") if hasattr(signal, f"SIG{name}")
}

# What a rank stops for, as it tells the others; a person's wishes stand last, as the highest of all ranks counts.
REASONS = ("", "USR1", "USR2", "TERM", "time limit", "GPU hours", "Ctrl-C", "STOP file")


class PeerLost(Exception):
    """Another rank died or hangs. Exit code 75: the attempt may be repeated."""

    exit_code = TRANSIENT


_received: list[str] = []
left_with: int | None = None  # the exit code, once it is certain
_installed = False


def _note(number: int, frame) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    if name == "INT" and "INT" in _received:
        os._exit(130)  # a second Ctrl-C: the person does not want to wait for the save
    if name not in _received:
        _received.append(name)


def install_handlers() -> None:
    """Let USR1, USR2, TERM and INT set a flag. Main thread only; may be called again.

    Also undoes what a launcher left over an exec: ignored signals (it ignores them until the handlers stand) and
    blocked ones. And a crash leaves no core file, unless BRAIN_CORES is set. Where this is no Linux the process ends.
    """
    global _installed
    if sys.platform != "linux":
        say("error: training needs Linux, on Windows through WSL; predict.py runs here as well", sys.stderr)
        sys.exit(BAD)
    import resource

    for number in SIGNALS.values():
        signal.signal(number, _note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS.values())
    _installed = True
    if not os.environ.get("BRAIN_CORES"):
        # A training process leaves a core file of a gigabyte, in the folder of the code, and a few of them fill a home.
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


# What a file system says when a person has to do something, and when it may have got better by the next attempt.
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EROFS, errno.EACCES, errno.EPERM)
_names = ("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "ENOTCONN", "ENOLCK")  # macOS has no EREMOTEIO
MAY_PASS = tuple(getattr(errno, name) for name in _names if hasattr(errno, name))


def exit_code(error: BaseException | None) -> int:
    """The exit code that an exception means; 0 for none. Exceptions with a code of their own have it in `exit_code`."""
    if error is None:
        return DONE
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return BAD
    if isinstance(error, OSError) and error.errno in MAY_PASS:
        return TRANSIENT
    return getattr(error, "exit_code", 1)


class Stopped(Exception):
    """A signal asked to stop before there is anything to save. Its exit code is that of a stop in the loop."""

    def __init__(self, name: str):
        super().__init__("Ctrl-C" if name == "INT" else name)
        self.exit_code = DONE if name == "INT" else CONTINUE


def raise_if_asked() -> None:
    """Raise Stopped if a signal came; for long work before the loop."""
    for name in _received:
        raise Stopped(name)


def job_end_time() -> float | None:
    """When Slurm will end this job, in Unix seconds; None outside Slurm or where it will not tell.

    SLURM_JOB_END_TIME exists from Slurm 23.02 on; before, one squeue call by the job's first task, of at most 5
    seconds.
    """
    with contextlib.suppress(ValueError):
        return float(os.environ.get("SLURM_JOB_END_TIME", ""))
    job = job_id()
    if not job or os.environ.get("SLURM_PROCID", "0") != "0":
        return None
    command = ["squeue", "-h", "-j", job, "-o", "%e"]
    env = os.environ | {"SLURM_TIME_FORMAT": "standard"}  # a user's own format would change the text
    with contextlib.suppress(OSError, ValueError, OverflowError, IndexError, subprocess.SubprocessError):
        said = subprocess.run(command, capture_output=True, timeout=5, check=True, env=env).stdout
        # A site's wrapper may print more around it.
        text = re.findall(r"^\s*(\d{4}-\d\d-\d\dT[\d:]{8})\s*$", said.decode(errors="replace"), re.MULTILINE)[-1]
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None


class StopWatch:
    """Collects every reason to stop. `run` (rank 0 only) adds the files STOP and SAVE of the run directory."""

    def __init__(self, run=None, margin: float = 120.0):
        """`margin`: seconds before the job's end at which to stop; a save must fit in it."""
        self.run, self.reason = run, ""
        self._level, self._looked, self._agreed = NOTHING, -1.0, 0
        end = job_end_time()
        # An end in the past is the variable of a job that is over, inherited by a shell that outlived it.
        self.deadline = end - margin if end is not None and end > time.time() else None
        self.spent_at: float | None = None  # when the run's budget of GPU hours is used up

    def poll(self) -> int:
        """0 nothing, 1 save, 2 stop and be continued, 3 stop because a person wants it. Stops stay; files are looked at
        once a second."""
        for name in list(_received):
            by_person = name == "INT"
            self._raise_to(STOP_BY_PERSON if by_person else STOP_AND_CONTINUE, "Ctrl-C" if by_person else name)
        if self.deadline is not None and time.time() > self.deadline:
            self._raise_to(STOP_AND_CONTINUE, "time limit")
        if self.spent_at is not None and time.time() >= self.spent_at:
            self._raise_to(STOP_AND_CONTINUE, "GPU hours")
        if time.monotonic() - self._looked < 1:
            return self._level
        self._looked = time.monotonic()
        if _installed and any(signal.getsignal(number) is not _note for number in SIGNALS.values()):
            install_handlers()  # a library put its own in their place, as the first step of torch.compile has done
        if self.run is not None:
            if self.run.stop_requested():
                self._raise_to(STOP_BY_PERSON, "STOP file")
            if self._level == NOTHING and self.run.take_save():
                return SAVE
        return self._level

    def _raise_to(self, level: int, reason: str) -> None:
        if level > self._level:
            self._level, self.reason = level, reason

    def tell(self) -> int:
        """poll() with its reason, as one number for the other ranks: the highest is the one to act upon."""
        level = self.poll()
        return level + 10 * REASONS.index(self.reason) if level == self._level else level

    def hear(self, told: int) -> int:
        """The level in the highest number that a rank has told."""
        self._agreed = told
        return told % 10

    def describe(self, level: int) -> str:
        """The reason behind the level that the ranks agreed on. A signal to the whole job may reach another rank a step
        before this one, and means the same then."""
        if level == self._level and self.reason:
            return self.reason
        if level == self._agreed % 10 and self._agreed >= 10:
            return REASONS[self._agreed // 10]
        return {
            SAVE: "SAVE file",
            STOP_AND_CONTINUE: "a signal to another rank",
            STOP_BY_PERSON: "a person's stop",
        }.get(level, "")
