"""Why a run is where it is: one cause in plain words, the line that shows it, and what to do. Torch-free."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from data.files import check_regular, plain, read_tail
from jobs.cluster import slurm, status, terminal
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.slurm import Job
from jobs.cluster.status import View, live_jobs, pending_words, view_run
from jobs.cluster.terminal import facts, paint
from jobs.config import wording
from jobs.run import faults
from jobs.run.find import read_jobs, typed
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.run.stopping import DONE
from jobs.run.vae import has_collapsed

TAIL_BYTES = 65536


@dataclass(frozen=True)
class Cause:
    """What happened, the line of the log that shows it (or ''), and what to do about it."""

    text: str
    fix: str = ""
    line: str = ""


@dataclass(frozen=True)
class Evidence:
    """What is known of the last attempt; everything may be missing."""

    state: str = ""  # of the run's heartbeat
    reason: str = ""
    code: int | None = None  # exit code of the training process
    job: Job | None = None
    log: str = ""  # the end of the newest log
    decision: str = ""  # what the requeueing said
    nimg: int = 0


# Pattern in the log -> what it means, what to do. The first that is found counts, searched from the end of the log.
# Ranks lose each other after anything else, too.
IN_LOG = [
    *((fault.pattern, fault.text, fault.fix) for fault in faults.FAULTS if fault is not faults.RANKS_LOST),
    (
        r"oom[-_ ]?kill|[Ee]xceeded (job )?memory limit|DefaultCPUAllocator: (can't|not enough)|\bMemoryError\b|Cannot "
        r"allocate memory|Out Of Memory",
        "the node's main memory ran out",
        "--cpus 2 if the site gives memory by cores, a smaller --batch, or a node with more memory",
    ),
    (
        r"Disk quota exceeded|EDQUOT",
        "your disk quota is full",
        "delete old runs or files (quota -s shows how full it is), then resume; the last checkpoint is whole",
    ),
    (
        r"No space left on device|ENOSPC",
        "the disk is full",
        "make room, or use --run on another disk, then resume; the last checkpoint is whole",
    ),
    (faults.RANKS_LOST.pattern, faults.RANKS_LOST.text, faults.RANKS_LOST.fix),
    (
        r"DOS line breaks|\$'\\r': command not found|/bin/bash\^M",
        "a script has Windows line ends (CRLF)",
        r"sed -i 's/\r$//' jobs/*.sh",
    ),
    (
        r"ModuleNotFoundError: .*|ImportError: .*",
        "a Python package is missing or broken",
        "pip install -r requirements.txt into the environment that launch.py runs in",
    ),
    (
        r"Unable to open file|error: .*[Cc]ould not open (std|output)",
        "Slurm could not open the log file",
        "the run folder must be on storage that the nodes see and you can write",
    ),
    (
        r"execve\(\): .*|command not found|No such file or directory: .*python",
        "a program was not found on the node",
        "the environment must be on shared storage; python launch.py doctor checks it",
    ),
]


def why_command(argv: list[str]) -> int:
    """`launch.py why`."""
    about = "Why a run failed, waits or stopped, and what to do about it; of a sweep, for each of its points."
    parser = verb_parser("why", about, "+")
    parser.add_argument("--json", action="store_true", help="one JSON object per run, for scripts")
    options = parser.parse_intermixed_args(argv)
    jobs = status.all_jobs()
    for number, run in enumerate(chosen(options.run)):
        view, cause = explain(run, jobs)
        if options.json:
            print(json.dumps({"run": view.name, "state": view.state, **asdict(cause)}))
            continue
        print("\n" * bool(number), end="")
        print(f"{paint(view.name, 'bold')}: {paint(view.state, terminal.STATE_COLOURS.get(view.state, ''))}")
        log = newest_log(run)
        shown = str(log) if log and view.state != RunState.QUEUED else ""
        facts([("cause", cause.text), ("line", cause.line), ("fix", cause.fix), ("log", shown)])
    return DONE


def explain(run: Path, queue: dict[str, Job] | None) -> tuple[View, Cause]:
    """The run's view and the cause of its state. queue: the user's jobs, None where Slurm cannot be asked."""
    view = view_run(run, queue)
    if view.state == RunState.QUEUED and queue:
        job = live_jobs(run, queue)[0]
        return view, Cause(f"job {job.id} is pending: {view.note}", _pending_fix(job, run))
    if view.state == RunState.UNKNOWN:
        return view, Cause(
            f"Slurm did not answer, so nobody knows whether its job waits, runs or is over ({view.note})",
            f"try again in a minute; python launch.py stop {typed(run)} writes a STOP that holds all the same",
        )
    if view.state == RunState.SUSPENDED and live_jobs(run, queue or {})[0].state == "STOPPED":
        return view, Cause(
            f"job {view.job_id} was stopped by a signal (scancel --signal=STOP)",
            f"scancel --signal=CONT {view.job_id} lets it go on; python launch.py stop {typed(run)} --now ends it",
        )
    if view.state == RunState.SUSPENDED:
        return view, Cause(
            f"job {view.job_id} is suspended: Slurm has frozen it, most often for a job of higher priority",
            f"wait, or ask the administrators (scontrol resume {view.job_id} is theirs); python launch.py stop "
            f"{typed(run)} --now, then resume, queues it anew",
        )
    if view.state in (RunState.RUNNING, RunState.STARTING, RunState.ENDING):
        where = f" on {view.node}" if view.node else ""
        if view.verdict:
            return view, Cause(f"it is {view.state}{where}, but its figures say: {view.verdict}")
        return view, Cause(f"nothing is wrong: it is {view.state}{where}")
    if view.damage and view.state != RunState.DONE:
        fix = f"restore it from a copy, or move it away; then python launch.py resume {typed(run)}"
        return view, Cause(view.damage, fix, last_error(tail(log)) if (log := newest_log(run)) else "")
    if view.state == RunState.HANGING:
        return view, Cause(
            view.note.split(";")[0] + " although its job is running",
            f"python launch.py logs {typed(run)}; if nothing moves: python launch.py stop {typed(run)} --now, then "
            "resume",
        )
    if view.state == RunState.DONE:
        return view, Cause(
            f"it is done, but its figures say: {view.verdict}" if view.verdict else "it is done",
            "a new run, under another --name and changed as they say"
            if has_collapsed(view.verdict)
            else f"python predict.py --help; a larger --total-kimg goes on from here: python launch.py resume "
            f"{typed(run)} -- --total-kimg N",
        )
    known = None if isinstance(queue, status.Silent) else slurm_record(run)  # it would not answer for this either
    return view, diagnose(gather(run, view, known), typed(run))


def gather(run: Path, view: View, job: Job | None) -> Evidence:
    """The last attempt's traces: attempts.jsonl, the newest log; job: Slurm's record while it has one."""
    lines = RunDir(run).read_attempts()
    ends = [line for line in lines if line.get("event") == "end"]
    decisions = [line for line in lines if line.get("event") == "decision"]
    starts = [line for line in lines if line.get("event") == "start"]
    end = ends[-1] if ends and (not starts or ends[-1].get("attempt") == starts[-1].get("attempt")) else {}
    log = newest_log(run)
    code = end.get("code", decisions[-1].get("code") if decisions else None)
    return Evidence(
        state=view.state,
        reason=str(end.get("reason") or view.note or ""),
        code=code if isinstance(code, int) else None,
        job=job,
        log=tail(log) if log else "",
        decision=str(decisions[-1].get("why", "")) if decisions else "",
        nimg=int(end.get("nimg") or 0),
    )


def slurm_record(run: Path) -> Job | None:
    """What Slurm still knows of the run's last job: scontrol for some minutes, sacct for longer where it is on."""
    ids = [str(j["id"]) for j in read_jobs(run).get("submitted", []) if j.get("kind") != "local"]
    with contextlib.suppress(slurm.SlurmError):
        if ids and slurm.available():
            return slurm.show_job(ids[-1]) or (slurm.sacct(ids[-1:]) or {}).get(ids[-1])
    return None


def diagnose(e: Evidence, name: str) -> Cause:
    """The cause, from the surest sign to the vaguest. Pure: everything it looks at is in the evidence."""
    again = f"python launch.py resume {name}"
    if e.state == RunState.STOPPED and e.reason == "TERM" and "scancel" in e.decision:
        return Cause("a person cancelled it (scancel); it saved first", again)
    if e.state == RunState.STOPPED:
        return Cause("a person stopped it", again)
    if e.state == RunState.WAITING:
        what, _, todo = e.reason.partition(": ")
        return Cause(what, todo)
    if e.state == RunState.STUCK:
        return _stuck(e, name, again)
    if e.state == RunState.DIVERGED or e.code == 77:
        return Cause(
            "the losses became infinite or not a number, twice",
            "lower --lr, raise --gamma, or --precision fp32; give it another --name",
            e.reason,
        )
    slurm_cause = _from_slurm(e.job, again) if e.job else None
    if slurm_cause and e.job and e.job.state in ("OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL"):
        return slurm_cause
    for pattern, text, fix in IN_LOG:
        if found := _last_match(pattern, e.log):
            return Cause(text, fix if "resume" in fix else f"{fix}; then {again}", found)
    if e.code in (2, 78):
        return Cause(
            "the flags are wrong" if e.code == 2 else "the configuration or the data are bad",
            f"correct what the line names, then {again}",
            last_error(e.log) or e.reason,
        )
    if e.code == 75:
        return Cause(f"something temporary: {e.reason}", again, last_error(e.log))
    if (e.state == RunState.INTERRUPTED or e.code == 85) and e.job and e.job.state == "CANCELLED":
        return Cause("it was cancelled (scancel) and saved first", again)
    if e.state == RunState.INTERRUPTED or e.code == 85:
        return Cause(f"it was told to stop and saved ({e.reason}){f'; {e.decision}' if e.decision else ''}", again)
    if error := _traceback(e.log):
        return Cause(
            "the program failed with a Python error",
            f"python launch.py logs {name} shows the traceback; if it is not yours to fix, {again}",
            error,
        )
    if slurm_cause:
        return slurm_cause
    if error := last_error(e.log):
        return Cause("it ended with an error", again, error)
    if e.decision:
        return Cause(e.decision, again)
    text = (
        "it ended without a word: killed, or its machine went away"
        if e.state != RunState.FAILED
        else e.reason or "it failed without a word"
    )
    return Cause(text, again)


def _stuck(e: Evidence, name: str, again: str) -> Cause:
    """Two attempts saw no new image: what killed them, by the log and by Slurm; only where nothing did, the time."""
    text = f"it made no progress in two attempts{f' ({e.decision})' if e.decision else ''}"
    for pattern, cause, fix in IN_LOG:
        if found := _last_match(pattern, e.log):
            return Cause(f"{text}: {cause}", fix if "resume" in fix else f"{fix}; then {again}", found)
    slurms = _from_slurm(e.job, again) if e.job else None
    if slurms and e.job and e.job.state != "TIMEOUT":
        return Cause(f"{text}: {slurms.text}", slurms.fix, last_error(e.log))
    if error := _traceback(e.log):
        return Cause(
            f"{text}: the program failed with a Python error", f"python launch.py logs {name}; then {again}", error
        )
    killed = "killed by SIG" in e.decision
    fix = (
        "a smaller --batch or more memory if the kernel killed it"
        if killed
        else "longer --time if the attempts are too short to reach a checkpoint"
    )
    return Cause(text, f"python launch.py logs {name}; {fix}, then {again}", last_error(e.log))


def _from_slurm(job: Job, again: str) -> Cause | None:
    """What Slurm's final state and exit code say."""
    ran = f" after {wording.short_time(job.elapsed_s)}" if job.elapsed_s else ""
    where = f" on {job.nodes}" if job.nodes else ""
    causes = {
        "OUT_OF_MEMORY": (
            "the node's main memory ran out; Slurm killed the job",
            f"a smaller --batch, or a node with more memory; then {again}",
        ),
        "TIMEOUT": (
            f"it ran into its time limit{ran} and could not save in time",
            f"{again} goes on from the last checkpoint; give it a longer --time",
        ),
        "DEADLINE": ("its deadline passed", again),
        "NODE_FAIL": (f"its node failed{where}", f"{again} goes on from the last checkpoint"),
        "BOOT_FAIL": (f"its node did not come up{where}", again),
        "PREEMPTED": (f"a job of higher priority took its place{ran}", again),
        "CANCELLED": (f"it was cancelled{ran} (scancel, or an administrator)", again),
    }
    if job.state in causes:
        return Cause(*causes[job.state])
    if job.reason == "JobLaunchFailure":
        return Cause(
            f"it could not be started{where}",
            "most often the run folder is not on storage that the nodes see; python launch.py doctor",
        )
    code, number = job.exit_code, job.exit_signal
    if number:
        return Cause(
            f"it was killed by signal {number}{where}"
            + (", as the kernel does when memory runs out" if number == 9 else ""),
            again,
        )
    if code in (126, 127):
        return Cause(
            "python could not be run on the node",
            "the environment must be on storage that the nodes see; python launch.py doctor",
        )
    if code is not None and code > 128:
        return Cause(
            f"it was killed by signal {code - 128}{where}"
            + (", as the kernel does when memory runs out" if code == 137 else ""),
            again,
        )
    return None


def _pending_fix(job: Job, run: Path) -> str:
    if "scontrol release" in pending_words(job):
        return f"scontrol release {job.id}; python launch.py stop {typed(run)} takes it out of the queue instead"
    return (
        f"python launch.py stop {typed(run)} takes it out of the queue"
        if "never start" in pending_words(job) or "queue it again" in pending_words(job)
        else ""
    )


# --- logs -------------------------------------------------------------------------------------------------------------
def log_files(run: Path) -> list[Path]:
    """The run's logs, the newest last."""
    found = []
    for path in [*run.glob("logs/*.out"), *run.glob("logs/submitit/*_log.out")]:
        with contextlib.suppress(OSError):  # a link to a log that is gone, or no file
            check_regular(info := path.stat(), path)
            found.append((info.st_mtime, path))
    return [path for _, path in sorted(found)]


def newest_log(run: Path) -> Path | None:
    """The log that was written to last, None without logs."""
    return next(reversed(log_files(run)), None)


def tail(path: Path, size: int = TAIL_BYTES, end: int | None = None) -> str:
    """The end of a log, or of its first `end` bytes, as text without control characters: a log may hold anything, and
    this goes to a terminal."""
    with contextlib.suppress(OSError):
        return clean(read_tail(path, size, end).decode(errors="replace"))
    return ""


def clean(text: str) -> str:
    """Text without escape sequences and control characters, one kind of line end; the rest made plain."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n").replace("\r", "\n")
    return plain(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text), keep="\n\t")


def _last_match(pattern: str, log: str) -> str:
    for line in reversed(log.splitlines()[-400:]):
        if re.search(pattern, line):
            return line.strip()[:300]
    return ""


def last_error(log: str) -> str:
    """Our own `error: ...` line, or another program's, nearest to the end."""
    return _last_match(r"^(error: |(?!srun|slurmstepd)[\w-]+: error: |.*\bError: )", log)


def _traceback(log: str) -> str:
    """The line that ends the last traceback."""
    lines = log.splitlines()
    starts = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    for line in lines[starts[-1] + 1 :] if starts else []:
        if line and not line.startswith((" ", "\t", "[")):
            return line.strip()[:300]
    return ""
