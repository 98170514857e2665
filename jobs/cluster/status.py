"""What a run is doing, from four sources: squeue, scontrol, sacct (may be off) and the run's own heartbeat.

Torch-free.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.files import is_number, plain, process_start, read_json, read_object, read_tail, row_of
from jobs.cluster import slurm
from jobs.cluster.slurm import Job
from jobs.cluster.terminal import paint
from jobs.config import wording
from jobs.run.find import read_jobs, typed
from jobs.run.lock import LOCK_STALE, process_space
from jobs.run.rundir import RunDir
from jobs.run.states import FINAL, RunState

ROW = 65536  # bytes that hold the last row of metrics.jsonl, however many columns it has
HUNG_S = 600.0  # a running job whose heartbeat is older is reported as hanging
# What the requeueing decides from, told to a person: Slurm's reason for pending -> what it means.
PENDING = {
    "Priority": "waits behind jobs of higher priority",
    "Resources": "waits for free nodes; it is next in line",
    "Dependency": "waits for another job to end",
    "DependencyNeverSatisfied": "waits for a job that can no longer end well; stop it and queue it again",
    "BeginTime": "was requeued; Slurm lets it start again in a moment",
    "Cleaning": "its last attempt is still being cleaned up",
    "PartitionConfig": "the partition does not accept it: most often --account is missing or wrong; stop it and queue "
    "it again with --account",
    "AccountNotAllowed": "the account may not use this partition; stop it and queue it again with another --account",
    "InvalidAccount": "the account does not exist; stop it and queue it again with another --account",
    "InvalidQOS": "the QOS does not exist or is not yours; stop it and queue it again with another --qos",
    "PartitionTimeLimit": "asks for more time than the partition allows, so it will never start; stop it and queue it "
    "again with a shorter --time",
    "PartitionNodeLimit": "asks for more nodes than the partition allows, so it will never start; stop it and queue it "
    "again with fewer --nodes",
    "PartitionDown": "the partition is down; it starts when the administrators bring it back",
    "PartitionInactive": "the partition is closed for now",
    "ReqNodeNotAvail": "the nodes are down or reserved for maintenance that begins before its time limit; a shorter "
    "--time may start sooner",
    "Reservation": "waits for its reservation",
    "ReservationDeleted": "its reservation is gone; stop it and queue it again",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node can satisfy what it asks for, so it will never start; stop it and queue it again",
    "JobHeldUser": "is held; scontrol release starts it",
    "job_requeued_in_held_state": "was requeued and is held; scontrol release starts it",
    "JobHeldAdmin": "is held by an administrator; ask them",
    "JobArrayTaskLimit": "waits for other points of its sweep",
    "QOSMaxJobsPerUserLimit": "you have as many running jobs as you may; it starts when one of them ends",
    "QOSMaxSubmitJobPerUserLimit": "you have as many queued jobs as you may",
    "QOSMaxWallDurationPerJobLimit": "asks for more time than its QOS allows, so it will never start; stop it and "
    "queue it again with a shorter --time",
    "QOSMaxGRESPerUser": "you use as many GPUs as you may; it starts when one is free",
    "QOSMinGRES": "asks for fewer GPUs than its QOS demands; stop it and queue it again",
    "AssocMaxJobsLimit": "your account has as many running jobs as it may; it starts when one of them ends",
    "AssocGrpGRES": "your group uses as many GPUs as it may; it starts when one is free",
    "MaxJobsPerAccount": "your account has as many running jobs as it may; it starts when one of them ends",
    "JobLaunchFailure": "could not be started on its node, most often because its log folder is missing there",
    "launch_failed_requeued_held": "could not be started on its node and is held; scontrol release tries again",
    "JobHoldMaxRequeue": "was requeued too often and is held; look into why, then scontrol release",
}
NOT_TRAINING = {
    "COMPLETING": RunState.ENDING, "CONFIGURING": RunState.STARTING,
    "SUSPENDED": RunState.SUSPENDED, "STOPPED": RunState.SUSPENDED,
}  # fmt: skip
GONE = {RunState.RUNNING, RunState.STARTING, RunState.QUEUED}  # states that need a job; without one the run was cut off


class Silent(dict):
    """The queue of a Slurm that did not answer: empty, and no sign that anything is over."""


@dataclass(frozen=True)
class View:
    """One run as a person sees it. Times in seconds."""

    name: str
    path: str
    job: str = ""
    state: str = RunState.NEW
    job_id: str = ""
    partition: str = ""
    node: str = ""
    elapsed_s: float | None = None
    limit_s: float | None = None
    kimg: float | None = None
    total_kimg: float | None = None
    eta_s: float | None = None
    restarts: int = 0
    gpu_util: float | None = None  # per cent
    gpu_gb: float | None = None
    updated: float | None = None
    code: int | None = None
    note: str = ""
    verdict: str = ""  # what the run's own figures say against it
    metrics: dict = field(default_factory=dict)  # the last row of metrics.jsonl
    damage: str = ""  # a file of the run that cannot be read, and why

    @property
    def told(self) -> str:
        """The note, after the names of what the figures say against the run; `why` has the rest."""
        names = [part.partition(":")[0] for part in self.verdict.split("; ") if part.partition(":")[0].isupper()]
        return "; ".join(filter(None, [", ".join(names), self.note]))


# --- runs -------------------------------------------------------------------------------------------------------------
def live_process(run: Path) -> dict | None:
    """Who holds the run's lock and lives; None if nobody.

    A holder on another host counts while its heartbeat is young.
    """
    try:
        about, holder = (run / "LOCK").stat(), read_json(run / "LOCK", run)
    except (OSError, ValueError):
        return None
    if (holder.get("host"), holder.get("space")) == (socket.gethostname(), process_space()):
        pid = holder.get("pid")
        return holder if isinstance(pid, int) and process_start(pid) == holder.get("start") != "" else None
    return holder if time.time() - about.st_mtime < LOCK_STALE else None


def holder_of(run: Path, queue: Mapping[str, Job] | None) -> dict | None:
    """live_process; of a job that Slurm knows to be over nobody is left, however young the heartbeat."""
    holder = live_process(run)
    job = (queue or {}).get(str(holder.get("job"))) if holder is not None else None
    return None if job is not None and not job.active else holder


def starting_process(run: Path) -> str:
    """Id of a local process that was started for the run and lives, before it holds the lock; '' if none."""
    for job in reversed(read_jobs(run).get("submitted", [])):
        if job.get("kind") == "local" and job.get("host") == socket.gethostname():
            pid = str(job["id"])
            with contextlib.suppress(OSError, ValueError):
                if (
                    pid.isdigit()
                    and process_start(int(pid))
                    and str(run).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
                ):
                    return pid
    return ""


def live_jobs(run: Path, queue: dict[str, Job]) -> list[Job]:
    """The run's jobs that are queued or running, the running ones first."""
    about = read_jobs(run)
    ids = {str(job["id"]) for job in about.get("submitted", [])}
    # A job that launch.py queued and could not note, as it was killed or got no answer, is known by its folder.
    lost = [(str(run / "code"), None), (about.get("place"), about.get("task"))]
    mine = [j for j in queue.values() if j.active and (j.id in ids or (j.workdir, j.array_task) in lost)]
    return sorted(mine, key=lambda j: (j.state == "PENDING", j.id))


def last_metrics(run: Path) -> dict:
    """The last whole row of metrics.jsonl, read from its end."""
    with contextlib.suppress(OSError):
        for line in reversed(read_tail(run / "metrics.jsonl", ROW, inside=run).splitlines()):
            for row in row_of(line, nonfinite=True):
                return row
    return {}


def all_jobs() -> dict | None:
    """The user's jobs in Slurm; None where there is no Slurm, Silent where it does not answer."""
    if not shutil.which("squeue"):
        return None
    try:
        return slurm.squeue()
    except slurm.SlurmError as error:
        if "configuration source" in str(error):  # Slurm's commands are installed, but there is no cluster
            return None
        if str(error) not in _warned:
            text = f"warning: {error}; showing what the runs themselves say"
            print(paint(text, "yellow", sys.stderr), file=sys.stderr)
            _warned.add(str(error))
        return Silent()


_warned: set[str] = set()  # --wait asks every few seconds, and says it once


# --- merging ----------------------------------------------------------------------------------------------------------
def view_run(run: Path, queue: dict[str, Job] | None) -> View:
    """Merge what Slurm and the run itself say. queue: what all_jobs() says."""
    seen, damage = read_object(run / "status.json", run)
    damage = damage or RunDir(run).damage() or read_object(run / "jobs.json", run)[1]
    view = _view_run(run, queue, seen)
    return replace(view, damage=damage, note="; ".join(filter(None, [damage, view.note])))


def _view_run(run: Path, queue: dict[str, Job] | None, seen: dict) -> View:
    jobs, metrics = read_jobs(run), last_metrics(run)
    submitted = jobs.get("submitted", [])
    view = View(
        name=run.name,
        path=str(run),
        job=jobs.get("job", ""),
        state=_word(seen.get("state")) or RunState.NEW,
        job_id=_word(seen.get("job_id") or (submitted[-1]["id"] if submitted else "")),
        node=_word(seen.get("host")),
        kimg=_number(seen.get("kimg")),
        total_kimg=_number(seen.get("total_kimg")),
        eta_s=_number(seen.get("eta_s")),
        restarts=max(int(_number(seen.get("attempt")) or 1) - 1, 0),
        updated=_number(seen.get("updated")),
        code=code if type(code := seen.get("code")) is int and 0 <= code < 256 else None,
        gpu_util=_number(metrics.get("gpu_util")),
        gpu_gb=_number(metrics.get("gpu_gb")),
        note=_word(seen.get("reason"), 500),
        verdict=_word(seen.get("verdict"), 1000),
        metrics=metrics,
    )
    live = live_jobs(run, queue) if queue is not None else []
    if live:
        after = Path(jobs.get("after", ""))
        return _with_job(view, live[0], live[1:], "" if os.path.exists(after / "DONE") else after.name)
    if (holder := holder_of(run, queue)) is not None:
        elapsed = time.time() - holder["since"] if is_number(holder.get("since")) else None
        own = view.state if view.state in GONE - {RunState.QUEUED} else RunState.STARTING
        return _hanging(replace(view, state=own, node=_word(holder.get("host")), elapsed_s=elapsed, note=""))
    if view.state in (RunState.QUEUED, RunState.NEW, RunState.STARTING) and (pid := starting_process(run)):
        return replace(view, state=RunState.STARTING, job_id=pid, node=socket.gethostname(), note="")
    return _without_job(view, run, queue)


def _with_job(view: View, job: Job, others: list[Job], after: str) -> View:
    view = replace(
        view, job_id=job.id, partition=job.partition, node=job.nodes, limit_s=job.limit_s, elapsed_s=job.elapsed_s
    )
    if not job.at_work and job.state not in ("COMPLETING", "STAGE_OUT"):  # also held in Slurm's several ways
        return replace(view, state=RunState.QUEUED, elapsed_s=None, eta_s=None, note=pending_words(job, after))
    if job.state in NOT_TRAINING:
        return replace(view, state=NOT_TRAINING[job.state], note="")
    if job.start and (view.updated or 0) < job.start:  # the heartbeat is of an attempt before this one
        return replace(view, state=RunState.STARTING, note="", eta_s=None)
    if (
        view.state in FINAL or view.state == RunState.CONTINUE
    ):  # the tasks are over, the batch shell decides what comes next
        return replace(view, state=RunState.ENDING, eta_s=None, note="")
    note = f"successor {others[0].id} stands ready" if others and others[0].state == "PENDING" else ""
    state = view.state if view.state != RunState.QUEUED else RunState.STARTING
    return _hanging(
        replace(view, state=state, note=view.note if state not in (RunState.RUNNING, RunState.STARTING) else note)
    )


def _hanging(view: View) -> View:
    age = time.time() - (view.updated or time.time())
    if view.state == RunState.RUNNING and age > HUNG_S:
        note = f"no heartbeat for {wording.short_time(age)}; python launch.py why {typed(Path(view.path))}"
        return replace(view, state=RunState.HANGING, note=note)
    return view


def _without_job(view: View, run: Path, queue: dict[str, Job] | None) -> View:
    """No job and no process: finished, stopped, or cut off."""
    if os.path.exists(run / "DONE"):  # False as well of what can be no path
        early = view.note if view.state == RunState.DONE and view.note != "finished" else ""  # before its last image
        return replace(view, state=RunState.DONE, eta_s=None, note=early)
    last = read_jobs(run).get("submitted", [{}])[-1:]
    was_here = bool(last) and last[0].get("kind") == "local" and last[0].get("host") == socket.gethostname()
    if view.state in GONE and queue is None and not was_here and time.time() - (view.updated or 0) < LOCK_STALE:
        return view  # no Slurm to ask, and a young heartbeat
    needs_a_job = view.state in GONE or view.state == RunState.CONTINUE or _new_job(view, last)
    if isinstance(queue, Silent) and needs_a_job and not was_here:
        known = f"last known: {view.state}" if view.state != RunState.NEW else "a job was queued"
        return replace(view, state=RunState.UNKNOWN, eta_s=None, note=f"Slurm does not answer ({known}); try again")
    if (view.state in GONE or view.state == RunState.CONTINUE) and RunDir(run).stop_requested():
        note = "" if view.state == RunState.CONTINUE else "it was ended before it could save"
        return replace(view, state=RunState.STOPPED, eta_s=None, note=note)
    if view.state in GONE:
        return replace(
            view,
            state=RunState.CUT_OFF,
            eta_s=None,
            note=f"ended without a word; python launch.py why {typed(Path(view.path))}",
        )
    if view.state == RunState.CONTINUE:
        return replace(
            view,
            state=RunState.INTERRUPTED,
            eta_s=None,
            note=f"saved ({view.note}) and not continued; python launch.py resume {typed(Path(view.path))}",
        )
    if view.state == RunState.DONE:
        return replace(view, eta_s=None, note="")
    if view.state == RunState.STOPPED:
        return replace(view, eta_s=None, note="" if view.note == "STOP file" else view.note)
    if view.state in (RunState.FAILED, RunState.DIVERGED, RunState.STUCK) and not view.note:
        return replace(view, note=f"python launch.py why {typed(Path(view.path))}")
    return replace(view, eta_s=None)


def _new_job(view: View, last: list[dict]) -> bool:
    """Whether the run is one of which only its job is known."""
    return view.state == RunState.NEW and bool(last) and last[0].get("kind") != "local"


def pending_words(job: Job, after: str = "") -> str:
    """Why a job is pending, in plain words; Slurm's own word stays in brackets.

    after: name of the run that it waits for.
    """
    reason = job.reason.split(",")[0].split("(")[0].strip().replace(" ", "_") or "None"
    if reason == "None":
        return "just queued"
    words = PENDING.get(reason)
    if reason.startswith("Nodes_required"):  # Slurm's one reason that is a sentence
        words, reason = (
            "the nodes that fit are down, drained or reserved; it starts when one is back",
            "ReqNodeNotAvail",
        )
    if words is None and reason.startswith(("QOS", "Assoc", "Max")):
        of = "your QOS" if reason.startswith("QOS") else "your account"
        words = f"a limit of {of} is reached; it starts when your other jobs end"
    words = words or "waits"
    first = re.search(r"\d[\d_]*", job.dependency)
    if reason == "Dependency" and first:
        words = f"waits for {after} (job {first[0]}) to be done" if after else f"waits for job {first[0]} to end"
    if reason == "BeginTime" and job.start:
        words = f"was requeued; Slurm lets it start again at {time.strftime('%H:%M:%S', time.localtime(job.start))}"
    elif job.start and job.start > time.time() and reason in ("Priority", "Resources"):
        words += f"; expected to start {wording.short_date(job.start)}"
    return f"{words} ({reason})"


def _number(value) -> float | None:
    """A count or a time of a file: what is negative is none."""
    return value if is_number(value) and value >= 0 else None


def _word(value, most: int = 100) -> str:
    """A name or a sentence of a file, harmless and short."""
    return plain(value or "")[:most]
