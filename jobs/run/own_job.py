"""Which Slurm job this process belongs to, as its environment tells. Torch-free."""

from __future__ import annotations

import contextlib
import os
import time

from data.files import process_start

_IMPORTED = time.time()


def job_id() -> str:
    """The job's id as Slurm's commands take it: "123", for a task of an array "120_3"; '' outside Slurm.

    The last task of an array has the array's own id in SLURM_JOB_ID: what is done to that is done to all of its tasks.
    """
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
    job = os.environ.get("SLURM_JOB_ID", "")
    return f"{array}_{task}" if job and array.isdecimal() and task.isdecimal() else job


def restart_count() -> int:
    """How often Slurm has requeued that job."""
    text = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def process_began() -> float:
    """When this process was started, Unix seconds; also before an exec."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        ticks = int(process_start(os.getpid()))
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
    return _IMPORTED
