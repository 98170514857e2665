"""Reasons to stop, and the exit codes. Torch-free: handlers are installed before torch is imported.

Handlers only set a flag. The loop asks `StopWatch.poll()` once per step; the ranks agree on the answer (runtime.agree_max)
and save together.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

DONE, USAGE, TRANSIENT, DIVERGED, BAD, CONTINUE = 0, 2, 75, 77, 78, 85

NOTHING, SAVE, STOP_AND_CONTINUE, STOP_BY_PERSON = 0, 1, 2, 3
SIGNALS = {"USR1": signal.SIGUSR1, "USR2": signal.SIGUSR2, "TERM": signal.SIGTERM, "INT": signal.SIGINT}

_received: list[str] = []


def _note(number: int, frame) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    if name == "INT" and "INT" in _received:
        os._exit(130)  # a second Ctrl-C: the person does not want to wait
    _received.append(name)


def install_handlers() -> None:
    """Let USR1, USR2, TERM and INT set a flag. Also undoes an inherited SIG_IGN (the launcher ignores them until exec)."""
    for number in SIGNALS.values():
        signal.signal(number, _note)


def ignore_signals_in_worker(*_args) -> None:
    """For worker processes: Slurm may signal the whole process tree, and a dead worker would end the loop before it saves."""
    for number in SIGNALS.values():
        signal.signal(number, signal.SIG_IGN)


def job_end_time() -> float | None:
    """When Slurm will end this job, in Unix seconds; None outside Slurm or where it will not tell."""
    if end := os.environ.get("SLURM_JOB_END_TIME", ""):
        with contextlib.suppress(ValueError):
            return float(end)
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        command = ["squeue", "-h", "-j", job, "-o", "%e"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.split()[0]
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    return None


class StopWatch:
    """Collects every reason to stop. `run` (rank 0 only) adds the files STOP and SAVE of the run directory."""

    def __init__(self, run=None, margin: float = 120.0):
        self.run, self.reason, self._files_at, self._level = run, "", 0.0, NOTHING
        end = job_end_time()
        self.deadline = None if end is None else end - margin

    def poll(self) -> int:
        """0 nothing, 1 save, 2 stop and be continued, 3 stop because a person wants it. Costs a microsecond."""
        if self._level == STOP_BY_PERSON:
            return self._level
        for name in _received:
            self._raise_to(STOP_BY_PERSON if name == "INT" else STOP_AND_CONTINUE, "Ctrl-C" if name == "INT" else name)
        if self.deadline is not None and time.time() > self.deadline:
            self._raise_to(STOP_AND_CONTINUE, "time limit")
        if self.run is not None and time.monotonic() - self._files_at > 0.5:
            self._files_at = time.monotonic()
            if self.run.stop_requested():
                self._raise_to(STOP_BY_PERSON, "STOP file")
            if self._level == NOTHING and self.run.take_save():
                return SAVE
        return self._level

    def _raise_to(self, level: int, reason: str) -> None:
        if level > self._level:
            self._level, self.reason = level, reason

    def describe(self, level: int) -> str:
        """The reason behind the level that the ranks agreed on, which may be another rank's."""
        return self.reason or {SAVE: "SAVE file", STOP_BY_PERSON: "a person's stop"}.get(
            level, "a signal to another rank"
        )
