"""States of a run, in the one list that everything writes from and reads by, and the error of a run directory.

Torch-free.
"""

from __future__ import annotations

from enum import StrEnum

from jobs.run.stopping import BAD


class RunState(StrEnum):
    """What a run is doing. A value is what stands in status.json and in the tables that people see."""

    # written into status.json, by the training process or by what queues it
    QUEUED = "queued"
    WAITING = "waiting"  # for a run that ended and is not done
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # by a person
    CONTINUE = "continue"  # saved; the batch shell decides what comes next
    FAILED = "failed"
    DIVERGED = "diverged"
    STUCK = "stuck"  # attempts that see no new image
    # seen from outside only
    NEW = "new"
    STARTING = "starting"
    ENDING = "ending"
    SUSPENDED = "suspended"
    HANGING = "hanging"  # no heartbeat
    INTERRUPTED = "interrupted"  # saved, and nobody goes on with it
    CUT_OFF = "cut off"  # ended without saying so
    UNKNOWN = "unknown"  # Slurm does not answer: it may wait, run or be over


class Verdict(StrEnum):
    """What becomes of a run whose tasks have left. A value is what stands in attempts.jsonl."""

    REQUEUE = "requeue"  # in this job, back in the queue
    CHAIN = "chain"  # in the next job
    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    STUCK = "stuck"
    BUDGET = "budget"  # out of restarts, or of GPU hours

    @property
    def goes_on(self) -> bool:
        """Whether another attempt follows by itself."""
        return self in (Verdict.REQUEUE, Verdict.CHAIN)

    @property
    def state(self) -> RunState:
        """Of a run of which this is the last that is known."""
        if self.goes_on:
            return RunState.QUEUED
        return RunState.FAILED if self == Verdict.BUDGET else RunState(self.value)


# Nothing works on the run.
FINAL = frozenset(
    (
        RunState.DONE,
        RunState.STOPPED,
        RunState.FAILED,
        RunState.DIVERGED,
        RunState.STUCK,
        RunState.WAITING,
        RunState.INTERRUPTED,
        RunState.CUT_OFF,
    )
)


class RunDirError(Exception):
    """The run directory cannot be used; the text is one line that names the fix. Exit code 78."""

    exit_code = BAD
