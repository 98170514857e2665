"""GPU time: what the attempts of a run asked for, used and lost, and what its budget leaves.

Counted in one way for the training process, which saves when the budget is used up, for the decision at its end, and
for the tables that people see. Torch-free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data.files import is_number, usable_cores
from jobs.run import own_job
from jobs.run.find import read_jobs
from jobs.run.rundir import RunDir


@dataclass(frozen=True)
class Spent:
    """What one attempt had and did. Times in seconds; None: not known."""

    job_id: str
    gpus: int  # over all nodes, as Slurm gave them; on this machine those that it works on
    cpus: int
    since: float  # unix time from which the resources were its own
    used_s: float
    lost_s: float = 0.0  # of used_s: work after the last checkpoint, which was done again
    asked_s: float | None = None  # its time limit
    cpu_s: float | None = None  # CPU time of all its processes

    @property
    def gpu_s(self) -> float:
        """GPU seconds."""
        return self.gpus * self.used_s


def allocated(gpus_in_use: int) -> dict:
    """For the start line of attempts.jsonl: the resources of this process's job, and since when it has them."""
    env, now = os.environ, time.time()
    nodes = _count(env.get("SLURM_JOB_NUM_NODES")) or 1
    about = {
        "gpus": nodes * _count(env.get("SLURM_GPUS_ON_NODE")) or gpus_in_use,
        "cpus": nodes * _count(env.get("SLURM_CPUS_ON_NODE")) or usable_cores(),
        "since": round(own_job.process_began(), 1),
    }
    began, ends = _count(env.get("SLURM_JOB_START_TIME")), _count(env.get("SLURM_JOB_END_TIME"))
    if 0 < began <= now < ends:  # those of a job that is over may be inherited by a shell that outlived it
        about |= {"since": began, "limit_s": ends - began}
    return about


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    import resource  # not on Windows, where reports are read

    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(one.ru_utime + one.ru_stime for one in used), 1)


def spent(lines: Iterable[dict], now: float | None = None) -> list[Spent]:
    """One entry per attempt in these lines of attempts.jsonl. `now`: the end of an attempt that has not ended.

    One that died without a word ended when its job decided what becomes of the run, else when it was last seen.
    """
    found: list[Spent] = []
    begin: dict = {}
    reached = 0.0
    for line in [*lines, {"event": "end", "time": now, "last": True}]:
        if line.get("event") == "start":
            if found and begin.get("ended"):
                found[-1] = replace(found[-1], lost_s=_lost(begin, reached, found[-1].used_s, line))
            begin = line
        elif line.get("event") == "end" and begin and not begin.get("ended"):
            seconds = _number(line.get("seconds"))
            at, decided = _number(begin.get("time")), begin.get("decided")
            if line.get("last") and now is None and decided is None:
                break
            # The end of one that died without a word was noted by the attempt after it, much later.
            end = at + seconds if line.get("inferred") else _number(line.get("time")) or at + seconds
            end = end if decided is None else decided
            since = _number(begin.get("since")) or at
            cpu = line.get("cpu_seconds")
            found.append(
                Spent(
                    job_id=str(begin.get("job_id") or "")[:50],
                    gpus=int(_number(begin.get("gpus"))),
                    cpus=int(_number(begin.get("cpus"))),
                    since=since,
                    used_s=max(end - since, 0.0),
                    asked_s=limit if is_number(limit := begin.get("limit_s")) and limit > 0 else None,
                    cpu_s=cpu * max(_number(begin.get("world")), 1) if is_number(cpu) and cpu >= 0 else None,
                )
            )
            reached = _number(line.get("reached")) or _number(line.get("nimg"))
            begin = begin | {"ended": True}
        elif line.get("event") == "decision" and begin and not begin.get("ended"):
            this = all(line.get(a) == begin.get(b) for a, b in (("job_id", "job_id"), ("restart", "restart_count")))
            if this and is_number(line.get("time")):  # and not of a later start that found nothing to do
                begin = {"limit_s": line.get("limit_s")} | begin | {"decided": line["time"]}
        elif line.get("event") == "decision" and found and found[-1].asked_s is None:  # Slurm told the limit then
            found[-1] = replace(found[-1], asked_s=limit if is_number(limit := line.get("limit_s")) else None)
    return found


def _lost(begin: dict, reached: float, used_s: float, following: dict) -> float:
    """Of an attempt's seconds, those after the checkpoint from which the attempt after it went on."""
    first, kept = _number(begin.get("nimg")), _number(following.get("nimg"))
    return used_s * min(max(reached - kept, 0.0) / (reached - first), 1.0) if reached > first else 0.0


def limit_hours(run: Path) -> float | None:
    """The GPU hours that a run may use (--max-gpu-hours); None without a limit."""
    options = read_jobs(run).get("options")
    most = options.get("max_gpu_hours") if isinstance(options, dict) else None
    return most if is_number(most) and most > 0 else None


def used_hours(run: Path, now: float | None = None) -> float:
    """GPU hours of all attempts of a run; the one that goes on counts until `now`."""
    return sum(one.gpu_s for one in spent(RunDir(run).read_attempts(), now)) / 3600


def ends(run: Path, gpus: int) -> float | None:
    """When an attempt that goes on with so many GPUs has used up the run's budget; None if it cannot."""
    most, now = limit_hours(run), time.time()
    return None if most is None or not gpus else now + (most - used_hours(run, now)) * 3600 / gpus


def _number(value: object) -> float:
    return value if is_number(value) and value >= 0 else 0.0


def _count(text: str | None) -> int:
    return int(text) if text and text.isdecimal() and len(text) < 12 else 0
