"""Slurm's commands as Python calls: bounded in time, argument lists only, text turned into dataclasses. Torch-free.

The parsers are pure functions on the commands' text (Slurm 20.11 to 25.x). Text that they cannot understand raises
SlurmError; so does a command that fails, is missing, or does not answer in time. Times are unix seconds, durations
seconds; `None` means that Slurm does not know or does not limit it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from data.files import plain
from jobs.cluster.slurm_text import FIELD as FIELD
from jobs.cluster.slurm_text import RECORD as RECORD
from jobs.cluster.slurm_text import SlurmError as SlurmError
from jobs.cluster.slurm_text import _array_task, _date, _exit, _number, _records, _text, _without_banner, _word
from jobs.cluster.slurm_text import format_time as format_time
from jobs.cluster.slurm_text import parse_gres as parse_gres
from jobs.cluster.slurm_text import parse_memory as parse_memory
from jobs.cluster.slurm_text import parse_time as parse_time

TIMEOUT_S = 20.0

FOREIGN = (
    "SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
ACTIVE = frozenset(
    "PENDING CONFIGURING RUNNING SUSPENDED STOPPED COMPLETING RESIZING SIGNALING STAGE_OUT REQUEUED "
    "REQUEUE_FED REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD".split()
)


# States in which tasks run, or are about to: such a job has the run, one that waits or ends has not.
AT_WORK = frozenset("CONFIGURING RUNNING SUSPENDED STOPPED RESIZING SIGNALING".split())
# What a command says when no controller has answered it, which says nothing of any job.
SILENCE = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|[Cc]onnection (refused|timed out)"
    r"|in standby mode|Resource temporarily unavailable|temporarily unable|Connection reset|Transport endpoint"
)


class NoAnswer(SlurmError):
    """Slurm did not answer: nothing is known, and the same question may be answered in a moment."""


@dataclass(frozen=True)
class Job:
    """One job as one of the commands shows it. A field that this command does not tell keeps its default."""

    id: str  # as Slurm prints it: "123", or "123_4" for a task of an array
    state: str  # "RUNNING", "PENDING", "CANCELLED", ...: one word, not abbreviated
    array_task: int | None = None
    array: bool = False  # a task of an array, or what is left of one: show_job only
    name: str = ""
    user: str = ""
    reason: str = ""  # why it is pending, "" where there is none
    partition: str = ""
    nodes: str = ""  # Slurm's node list: "n[1-2]"
    elapsed_s: int | None = None
    limit_s: int | None = None
    submitted: float | None = None  # or requeued: show_job only
    start: float | None = None
    end: float | None = None  # the end it had, or will have at its time limit
    exit_code: int | None = None
    exit_signal: int | None = None
    restarts: int = 0  # squeue does not tell
    preempt_time: float | None = None  # this and requeue: show_job only
    requeue: bool = False
    command: str = ""
    workdir: str = ""
    dependency: str = ""
    stdout: str = ""  # this and gres ("gpu:a100:1", per node): show_job only
    gres: str = ""
    shown: dict[str, str] = field(default_factory=dict, compare=False, repr=False)  # all of show_job's own fields
    excluded: str = ""  # nodes that it must not run on: show_job only

    @property
    def active(self) -> bool:
        """Queued, running or about to be; not over."""
        return self.state in ACTIVE

    @property
    def at_work(self) -> bool:
        """Its tasks run, or are about to."""
        return self.state in AT_WORK


@dataclass(frozen=True)
class Partition:
    """One partition; per-node figures are those of its largest node."""

    name: str
    up: bool
    max_time_s: int | None
    default_time_s: int | None
    nodes: int
    cpus_per_node: int
    real_memory_mb: int
    allow_accounts: tuple[str, ...] | None  # None: all
    default: bool
    gres: dict[str, int] = field(default_factory=dict)  # per node: {"gpu:a100": 4, "shard": 16}


# --- commands ---------------------------------------------------------------------------------------------------------


def absent() -> bool:
    """Whether there is no Slurm here: no commands, or no cluster that they know. One that is silent is there."""
    if shutil.which("squeue") is None:
        return True
    try:
        _run(["scontrol", "ping"], timeout=5)
    except SlurmError as error:
        return "configuration source" in str(error) or "not found" in str(error)
    return False


def available() -> bool:
    """Whether sbatch is on the PATH and a controller answers."""
    if shutil.which("sbatch") is None:
        return False
    try:
        return bool(re.search(r"\bis UP\b", _run(["scontrol", "ping"], timeout=10)))
    except SlurmError:
        return False


def squeue(ids: Iterable[str] | None = None) -> dict[str, Job]:
    """Jobs by id, with array tasks one by one: those named, else all of this user. Forgotten ids are left out."""
    fields = ("%i", "%T", "%r", "%u", "%P", "%N", "%M", "%l", "%S", "%e", "%E", "%j", "%o", "%Z")
    command = ["squeue", "-h", "-r", "-t", "all", "-o", FIELD.join(fields) + RECORD]
    if ids is None:
        command += ["-u", str(os.getuid())]
    else:
        ids = [_checked_id(i) for i in ids]
        if not ids:
            return {}
        command += ["-j", ",".join(ids)]
    try:
        return parse_squeue(_run(command))
    except SlurmError as error:
        if ids is not None and "Invalid job id" in str(error):
            return {}
        raise


def show_job(job_id: str) -> Job | None:
    """All that the controller knows of one job; None when it has forgotten it (minutes after its end)."""
    try:
        return parse_show_job(_run(["scontrol", "show", "job", _checked_id(job_id)]))
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise


def sacct(ids: Iterable[str]) -> dict[str, Job] | None:
    """Jobs by id from the accounting database, the last run of each; `restarts` counts the runs before it.

    None: this cluster keeps no accounts.
    """
    ids = [_checked_id(i) for i in ids]
    if not ids:
        return {}
    fields = "JobID,State,ExitCode,Partition,NodeList,ElapsedRaw,TimelimitRaw,Start,End,User,JobName,Reason,WorkDir"
    command = ["sacct", "-X", "-D", "-n", "-P", f"--delimiter={FIELD}", f"--format={fields}", "-j", ",".join(ids)]
    if shutil.which("sacct") is None:
        return None
    try:
        return parse_sacct(_run(command))
    except SlurmError as error:
        if "accounting storage is disabled" in str(error) or "Unable to connect to" in str(error):
            return None
        raise


def partitions() -> dict[str, Partition]:
    """The cluster's partitions by name."""
    return parse_partitions(
        _run(["scontrol", "show", "partition", "--all", "-o"]),
        _run(["sinfo", "-h", "--all", "-o", FIELD.join(("%R", "%D", "%c", "%m", "%G")) + RECORD]),
    )


def requeue(job_id: str) -> None:
    """Put a running job back into the queue, under the same id; it is ended first.

    SlurmError where that is forbidden.
    """
    _run(["scontrol", "requeue", _checked_id(job_id)])


def update(job_id: str, change: str) -> None:
    """Change a job that waits: "Partition=a,b"."""
    _run(["scontrol", "update", f"JobId={_checked_id(job_id)}", change])


def cancel(job_id: str, signal: str | None = None, batch: bool = False) -> None:
    """Cancel a job, or send `signal` ("USR2") to its steps; `batch`: to the batch script instead."""
    command = ["scancel", *([f"--signal={signal}"] if signal else []), *(["--batch"] if batch else [])]
    _run([*command, _checked_id(job_id)])


def test_only(script: str) -> tuple[bool, str]:
    """Ask Slurm whether it would accept this batch script; nothing is queued. (accepted, Slurm's words in one line)."""
    try:
        return True, _run(["sbatch", "--test-only"], script, merge=True)
    except SlurmError as error:
        return False, str(error)


def foreign(variable: str) -> bool:
    """Whether an environment variable is of a surrounding job or torchrun rank, or changes what sbatch or srun are
    told: no new job may see it. SLURM_CONF says which cluster to talk to."""
    return variable.startswith(FOREIGN) and variable != "SLURM_CONF"


def _checked_id(job_id) -> str:
    text = str(job_id)
    if not re.fullmatch(r"\d+(_\d+)?", text):
        raise SlurmError(f"{text[:50]!r} is not a Slurm job id")
    return text


def _run(command: list[str], stdin: str = "", timeout: float = 0, merge: bool = False) -> str:
    """Its standard output (`merge`: with standard error). A user's own output formats and language are switched off."""
    own = ("SQUEUE_", "SINFO_", "SACCT_", "SCONTROL_", "SBATCH_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(own) and k != "SLURM_CLUSTERS"}
    if command[0] == "sbatch":
        env = {k: v for k, v in env.items() if not foreign(k)}
    timeout = timeout or TIMEOUT_S
    env |= {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout, env=env
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]}: not found; is this a login node of the cluster, with Slurm on the PATH?"
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]}: no answer from the Slurm controller within {timeout:.0f} s; try again") from None
    except (OSError, ValueError) as error:
        raise SlurmError(f"{command[0]}: {error}") from None
    if done.returncode:
        text = f"{' '.join(command[:2])}: {_one_line(done.stderr or done.stdout) or done.returncode}"
        raise NoAnswer(f"{text}; try again") if SILENCE.search(text) else SlurmError(text)
    return _one_line(done.stderr + done.stdout) if merge else done.stdout


def _one_line(text: str) -> str:
    text = re.sub(r"(^|\s)(sbatch|scontrol|scancel|squeue|sinfo|sacct): (error: )?", r"\1", text)
    return plain(" ".join(text.split()))[:500]


# --- parsers ----------------------------------------------------------------------------------------------------------


def parse_squeue(text: str) -> dict[str, Job]:
    """{job id: Job} from the text of our squeue format. Raises SlurmError for another one."""
    jobs = {}
    for row in _records(text, 14):
        (
            job_id,
            state,
            reason,
            user,
            partition,
            nodes,
            elapsed,
            limit,
            start,
            end,
            dependency,
            name,
            command,
            workdir,
        ) = row
        jobs[job_id] = Job(
            id=job_id,
            array_task=_array_task(job_id),
            name=name,
            user=user,
            state=_word(state),
            reason=_text(reason),
            partition=partition,
            nodes=_text(nodes),
            elapsed_s=parse_time(elapsed),
            limit_s=parse_time(limit),
            start=_date(start),
            end=_date(end),
            command=_text(command),
            workdir=workdir,
            dependency=_text(dependency),
        )
    return jobs


def parse_show_job(text: str) -> Job | None:
    """The first record of `scontrol show job`, in its form of several lines: a name or a path is the rest of its
    line."""
    # What a site's wrapper prints stands before or after it.
    record = text[max(text.find("JobId="), 0) :].strip("\n").split("\n\n")[0]
    values: dict[str, str] = {}
    for line in record.splitlines():
        line = line.strip()
        while line:
            key, equals, rest = line.partition("=")
            if not equals:
                break
            end = None if key in _WHOLE_LINE else re.search(r" (?=[A-Za-z/:]+=)", rest)
            value, line = (rest, "") if end is None else (rest[: end.start()], rest[end.end() :])
            values.setdefault(key, value)
    if not values:
        return None
    if "JobId" not in values or "JobState" not in values:
        raise SlurmError(f"scontrol show job: unexpected answer {_one_line(text)[:80]!r}")
    get = values.get
    job_id, array = get("JobId", ""), get("ArrayJobId")
    if array is not None and get("ArrayTaskId", "").isdecimal():
        job_id = f"{array}_{get('ArrayTaskId')}"
    code, number = _exit(get("ExitCode", ""))
    return Job(
        id=job_id,
        array_task=_array_task(job_id),
        array=array is not None,
        name=get("JobName", ""),
        user=get("UserId", "").partition("(")[0],
        state=_word(get("JobState", "")),
        reason=_text(get("Reason", "")),
        partition=get("Partition", ""),
        nodes=_text(get("NodeList", "")),
        elapsed_s=parse_time(get("RunTime", "")),
        limit_s=parse_time(get("TimeLimit", "")),
        submitted=_date(get("SubmitTime", "")),
        start=_date(get("StartTime", "")),
        end=_date(get("EndTime", "")),
        exit_code=code,
        exit_signal=number,
        restarts=_number(get("Restarts", "0")),
        preempt_time=_date(get("PreemptTime", "")),
        requeue=get("Requeue") == "1",
        command=_text(get("Command", "")),
        workdir=get("WorkDir", ""),
        dependency=_text(get("Dependency", "")),
        stdout=get("StdOut", ""),
        gres=re.sub(r"gres[:/]", "", _text(get("TresPerNode", ""))),
        shown=values,
        excluded=_text(get("ExcNodeList", "")),
    )


_WHOLE_LINE = frozenset("JobName Command WorkDir StdErr StdIn StdOut Comment AdminComment SubmitLine".split())


def parse_sacct(text: str) -> dict[str, Job]:
    """{job id: Job} from the text of our sacct format. Raises SlurmError for another one."""
    jobs: dict[str, Job] = {}
    for line in _without_banner(text.splitlines(), FIELD):
        row = line.split(FIELD)
        if len(row) != 13:
            raise SlurmError(f"sacct: unexpected line {line[:80]!r}")
        job_id, state, exit_code, partition, nodes, elapsed, limit, start, end, user, name, reason, workdir = row
        code, number = _exit(exit_code)
        before = jobs.get(job_id)
        jobs[job_id] = Job(
            id=job_id,
            array_task=_array_task(job_id),
            name=name,
            user=user,
            state=_word(state),
            reason=_text(reason),
            partition=partition,
            nodes=_text(nodes),
            elapsed_s=_number(elapsed) if elapsed else None,
            limit_s=_number(limit) * 60 if limit.isdecimal() else None,
            start=_date(start),
            end=_date(end),
            exit_code=code,
            exit_signal=number,
            restarts=0 if before is None else before.restarts + 1,
            workdir=workdir,
        )
    return jobs


def parse_partitions(partition_text: str, node_text: str) -> dict[str, Partition]:
    """`scontrol show partition -o` and, per kind of node, `sinfo` (partition, nodes, CPUs, memory in MB, gres)."""
    kinds: dict[str, list[tuple[int, int, int, dict[str, int]]]] = {}
    for name, nodes, cpus, memory, gres_text in _records(node_text, 5):
        numbers = (_number(nodes), _number(cpus.rstrip("+")), _number(memory.rstrip("+")))
        kinds.setdefault(name, []).append((*numbers, parse_gres(gres_text)))
    found = {}
    for line in _without_banner(partition_text.splitlines(), "PartitionName="):
        values = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if not values:
            continue
        if "PartitionName" not in values or "State" not in values:
            raise SlurmError(f"scontrol show partition: unexpected answer {line[:80]!r}")
        name = values["PartitionName"]
        mine = kinds.get(name, [])
        gres: dict[str, int] = {}
        for *_, per_node in mine:
            for kind, count in per_node.items():
                gres[kind] = max(count, gres.get(kind, 0))
        accounts = values.get("AllowAccounts", "ALL")
        found[name] = Partition(
            name=name,
            up=values["State"] == "UP",
            max_time_s=parse_time(values.get("MaxTime", "")),
            default_time_s=parse_time(values.get("DefaultTime", "")),
            nodes=sum(n for n, *_ in mine),
            cpus_per_node=max((c for _, c, *_ in mine), default=0),
            real_memory_mb=max((m for _, _, m, _ in mine), default=0),
            allow_accounts=None if accounts == "ALL" else tuple(accounts.split(",")),
            default=values.get("Default") == "YES",
            gres=gres,
        )
    return found
