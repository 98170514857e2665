"""The start and the end of a job on its node: what to run, and, in one place, whether the run goes on. Torch-free.

    python -m jobs.cluster.requeue --begin RUN                     start of a job that launch.py queued python -m
    jobs.cluster.requeue --begin --job NAME -- FLAGS     start of a job that `sbatch jobs/NAME.sh FLAGS` queued python
    -m jobs.cluster.requeue RUN --code N                    end: the tasks left with N

jobs/env.sh calls both; the training process itself never requeues. `--begin` prints shell text for env.sh to evaluate.
Where a site forbids requeueing, a successor that depends on this job (`afterany`) is queued at the start instead.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from data.files import atomic_write, is_number, say, words
from jobs.cluster import nodes, notify, sites, slurm, submit
from jobs.cluster.decide import bad_nodes, decide, started_by_person, within_budget, within_hours
from jobs.cluster.options import MAX_RESTARTS
from jobs.cluster.plan import resolve
from jobs.cluster.slurm import Job, SlurmError
from jobs.cluster.status import live_process
from jobs.cluster.successor import queue_successor, remember_options
from jobs.config import kinds, specs
from jobs.config.specs import ConfigError, TrainConfig
from jobs.run import budget, own_job, stopping
from jobs.run.find import read_jobs
from jobs.run.resume import store_config
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError, RunState, Verdict

RETRY_S = 600  # how long a silent controller is asked again
LEAVE = "exit 0"  # shell text; the end of the job is decided like any
AWAY = "trap - EXIT; exit 0"  # ... nothing is decided or written
FORBIDDEN = "presently disabled"  # Slurm's words for Requeue=0


# --- the end of a job -------------------------------------------------------------------------------------------------
def finish(path: Path, code: int) -> int:
    """Decide, write the decision down, carry it out. Returns the exit code for the job."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # Slurm may be ending the job already; this has to be finished in KillWait
    run, job_id, restarts = RunDir(path), own_job.job_id(), own_job.restart_count()
    about, status = read_jobs(path), run.read_status()
    mine = not status.get("job_id") or status.get("job_id") == job_id
    other = _lock_holder(path, job_id)
    if not other and not mine and code in (0, stopping.BAD):
        other = next((f"job {job.id}" for job in _others(about, job_id) if job.at_work), "")
    if other:
        say(f"{path}: {other} works on this run; this job changes nothing")
        return code
    reason, left_with = "", code
    if mine and status.get("state") == RunState.CONTINUE:
        # srun ends the other ranks as soon as one has left, so that its code may be the signal's; rank 0 knows better,
        # unless it was srun's own TERM that it heard: then another rank died first.
        reason = str(status.get("reason", ""))
        if code > 128 and reason != "TERM" and status.get("code") in (stopping.CONTINUE, stopping.TRANSIENT):
            left_with = status["code"]
    job, nimg = _ask(job_id, code), run.newest_checkpoint()
    decision = decide(left_with, run.done(), run.stop_requested(), job, restarts, reason, time.time())
    lines = _decisions(run)
    limit = about["max_restarts"] if is_number(about.get("max_restarts")) else MAX_RESTARTS
    since = started_by_person(about)
    if decision.fault and job is not None and os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1":
        decision = replace(decision, node=job.nodes)  # of several it is not known which one it was
    faulty = {"faulty_node": decision.node} if decision.node else {}
    avoid = _to_avoid(job, bad_nodes([*lines, faulty | {"time": time.time()}], since))
    decision = within_budget(decision, nimg, lines, since, limit, avoid)
    decision = within_hours(decision, budget.used_hours(path, time.time()), budget.limit_hours(path))
    verdict, why = decision.verdict, decision.why
    successors = _pending_successors(about, job_id)
    if verdict == Verdict.REQUEUE and successors:
        verdict, why = Verdict.CHAIN, f"{why}; job {successors[0]} goes on"
    elif verdict != Verdict.REQUEUE and successors and "scancel" in why:
        with contextlib.suppress(OSError):  # a full disk must not keep the successors
            atomic_write(path / "STOP", f"{why}, job {job_id}\n")
    facts = dict(job_id=job_id, restart=restarts, code=code, nimg=nimg, counted=decision.counted) | faulty
    facts |= {"limit_s": job.limit_s} if job is not None and job.limit_s else {}
    _note(run, decision=verdict, why=why, **facts)
    if not (decision.by_slurm and job and job.state == "RUNNING"):  # its next start works on the run already
        _write_state(path, verdict, why, status)
    say(f"{path}: {SAYING[verdict]}: {why}")
    if verdict == Verdict.REQUEUE and not decision.by_slurm:
        error = _requeue(job_id, restarts)
        if error is None:
            _keep_off([job_id], avoid)
        else:
            verdict = _successor_at_the_end(run, about, job_id, error, facts)
    elif verdict == Verdict.CHAIN:
        _keep_off(successors, avoid)
    elif not verdict.goes_on:
        for needless in [*successors, *_widener(path, about, job_id)]:
            _try(slurm.cancel, needless)
    notify.at_end(path, verdict, why)
    return code if verdict in (Verdict.FAILED, Verdict.STUCK, Verdict.BUDGET) else 0


SAYING = {
    Verdict.REQUEUE: "goes on in this job, back in the queue",
    Verdict.CHAIN: "goes on in the next job",
    Verdict.DONE: "done",
    Verdict.STOPPED: "stopped",
    Verdict.FAILED: "failed",
    Verdict.STUCK: "stuck, not started again",
    Verdict.BUDGET: "not started again",
}


def _ask(job_id: str, code: int) -> Job | None:
    """What the controller says of this job; asked again while it is silent, if the answer matters."""
    end = time.monotonic() + (RETRY_S if code in (stopping.CONTINUE, stopping.TRANSIENT) or code > 128 else 0)
    while job_id:
        try:
            return slurm.show_job(job_id)
        except SlurmError as error:
            if time.monotonic() > end or shutil.which("scontrol") is None:
                say(f"WARNING: {error}", sys.stderr)
                return None
            time.sleep(10)
    return None


def _requeue(job_id: str, restarts: int) -> SlurmError | None:
    """Put this job back into the queue. Returns what Slurm said against it for good."""
    end = time.monotonic() + RETRY_S
    while True:
        try:
            slurm.requeue(job_id)
            return None
        except SlurmError as error:
            if FORBIDDEN in str(error) or not job_id or shutil.which("scontrol") is None:
                return error
            problem = error
        try:
            job = slurm.show_job(job_id)
            if job is not None and (job.restarts > restarts or job.state == "PENDING"):
                return None  # somebody else was quicker
        except SlurmError:
            pass
        if time.monotonic() > end:
            return problem
        time.sleep(2)


def _to_avoid(job: Job | None, bad: list[str]) -> list[str]:
    try:
        return nodes.to_avoid(job, bad) if job is not None else []
    except SlurmError as error:
        say(f"WARNING: {', '.join(bad)} cannot be excluded: {error}", sys.stderr)
        return []


def _keep_off(jobs: list[str], avoid: list[str]) -> None:
    """Keep jobs that wait, or were put back into the queue this moment, off nodes on which attempts died."""
    for job_id in jobs if avoid else []:
        _try(nodes.keep_off, job_id, avoid)
        say(f"Two attempts died of a fault on one node: job {job_id} starts on none of {', '.join(avoid)}")


def _successor_at_the_end(run: RunDir, about: dict, job_id: str, error: SlurmError, facts: dict) -> Verdict:
    """Requeueing turned out to be impossible: queue another job for the run. Returns the verdict."""
    try:
        successor = queue_successor(run, about, slurm.show_job(job_id))
        verdict, why = Verdict.CHAIN, f"Slurm does not requeue here ({error}); job {successor} goes on"
    except (SlurmError, submit.SubmitError) as second:
        verdict, why = (
            Verdict.FAILED,
            f"Slurm neither requeues ({error}) nor takes a successor ({second}); start it again",
        )
    _note(run, decision=verdict, why=why, **facts | {"counted": False})
    _write_state(run.path, verdict, why, {})
    say(f"{run.path}: {why}")
    return verdict


def _decisions(run: RunDir) -> list[dict]:
    return [line for line in run.read_attempts() if line.get("event") == "decision"]


def _note(run: RunDir, **fields) -> None:
    try:
        run.note("decision", **fields)
    except OSError as error:  # a full disk must not keep a job from its requeue
        say(f"WARNING: {run.attempts} cannot be written ({words(error)})", sys.stderr)


def _write_state(path: Path, verdict: Verdict, why: str, status: dict) -> None:
    """Bring status.json up to date where the training process could not."""
    state = verdict.state
    if status.get("state") in ((state, RunState.DIVERGED) if verdict == Verdict.FAILED else (state,)):
        return  # the training process's own words are better
    try:
        submit.write_state(path, state, why)
    except OSError as error:
        say(f"WARNING: {path}/status.json cannot be written ({words(error)})", sys.stderr)


def _try(command, *arguments) -> None:
    try:
        command(*arguments)
    except SlurmError as error:
        say(f"WARNING: {error}", sys.stderr)


# --- the start of a job -----------------------------------------------------------------------------------------------
def begin(path: Path, kind: str) -> str:
    """Look whether there is anything to do, and see to a successor where requeueing is forbidden. Returns shell text.

    kind: main (queued by launch.py), sbatch, or chain. Only a person's start lifts STOP: launch.py does at submit,
    sbatch here, a successor or a requeued job never.
    """
    run, job_id = RunDir(path), own_job.job_id()
    if kind == "main":
        submit.adopt(path, job_id)
    about = read_jobs(path)
    by_itself = kind == "chain" or own_job.restart_count() > 0
    if other := _at_work_before(about, job_id):
        _nothing_to_do(f"{path}: job {other} works on this run already; nothing to do")
        return AWAY
    if by_itself and run.done():
        return _nothing_to_do(f"{path} is done; nothing to do")
    if kind == "chain" and not run.stop_requested() and (cancelled := _cancelled_before(about, job_id)):
        atomic_write(path / "STOP", f"job {cancelled} was cancelled\n")
    if run.stop_holds(None if by_itself or kind == "main" else _submitted_at(run, job_id)):
        return _nothing_to_do(f"{path} was stopped by a person (STOP); nothing to do")
    try:
        job = slurm.show_job(job_id) if job_id else None
    except SlurmError as error:
        job = None
        say(f"WARNING: {error}", sys.stderr)
    if kind == "sbatch" and job is not None:
        remember_options(path, job)
    if job is not None and not job.requeue and not _pending_successors(about, job_id):
        try:
            say(f"No requeueing here: job {queue_successor(run, about, job)} stands ready to go on", sys.stderr)
        except (SlurmError, submit.SubmitError) as error:
            say(f"WARNING: no requeueing here, and no successor could be queued ({error})", sys.stderr)
    _link_log(run, job)
    before = next((str(e["after"]) for e in about.get("submitted", []) if e["id"] == job_id and "after" in e), "")
    return f"export PREDECESSOR_JOB={shlex.quote(before)}" if kind == "chain" and before else ""


def begin_sbatch(job_name: str, flags: list[str]) -> tuple[TrainConfig, str]:
    """What `sbatch jobs/NAME.sh FLAGS` is to run: the same run as launch.py's. (its configuration, shell text)"""
    try:
        names = set(slurm.partitions())
    except SlurmError:
        names = set()
    site = sites.choose_site("", names).on(os.environ.get("SLURM_JOB_PARTITION", ""))
    config = resolve(job_name, "", "", flags, site)
    command = [str(specs.ROOT / kinds.JOBS[job_name].script), "--run", config.run]
    if config.override:
        command.append("--override")
    return config, f"RUN={shlex.quote(config.run)}\nCOMMAND=({shlex.join(command)})"


def _forget_the_array() -> str:
    """Shell text without the variables of an array in whose task a person typed the sbatch of this job, which hands
    them on; '' where they are this job's own."""
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    if names[0] not in os.environ:
        return ""
    job = _ask(os.environ.get("SLURM_JOB_ID", ""), stopping.CONTINUE)
    if job is None or job.array:
        return ""
    for name in names:
        os.environ.pop(name, None)
    return f"unset {' '.join(names)}"


def record_sbatch(job_name: str, config: TrainConfig) -> str:
    """Make the run directory and its config.json, and enter this job into jobs.json. Returns the kind: sbatch, or
    chain; '' where another job works on the run and nothing was written.

    A job that is known already goes on with the run as it is: its flags were those of an earlier moment.
    """
    path, job_id = Path(config.run), own_job.job_id()
    run = RunDir(path)
    run.create()
    with submit.submit_lock(path):
        about = read_jobs(path)
        submitted = about.get("submitted", [])
        known = [entry.get("kind") for entry in submitted if entry["id"] == job_id]
        if known:
            return known[-1]
        if other := _at_work_before(about, job_id):
            _nothing_to_do(f"{path}: job {other} works on this run already; nothing to do")
            return ""
        store_config(run, config)
        submitted.append({"id": job_id, "kind": "sbatch", "time": round(time.time(), 1)})
        about |= {"job": job_name, "submitted": submitted}
        about.setdefault("max_restarts", MAX_RESTARTS)
        about.setdefault("chain", False)
        submit.write_about(path, about)
    _keep_diff(path)
    return "sbatch"


def _nothing_to_do(text: str) -> str:
    say(text, sys.stderr)
    return LEAVE


def _live(ids: list[str]) -> list[Job]:
    """Those of the jobs that are queued or running; none where the controller does not answer."""
    try:
        return [job for job in slurm.squeue(ids).values() if job.active]
    except SlurmError as error:
        say(f"WARNING: {error}", sys.stderr)
        return []


def _slurm_ids(about: dict, *kinds: str) -> list[str]:
    return [str(entry["id"]) for entry in about.get("submitted", []) if entry.get("kind") in kinds]


def _others(about: dict, job_id: str) -> list[Job]:
    """The run's jobs that are queued or running, this one too; none where the controller does not answer."""
    ids = [i for i in _slurm_ids(about, "main", "sbatch", "chain") if i != job_id]
    return [job for job in _live(ids[-20:]) if job.id != job_id] if ids else []


def _at_work_before(about: dict, job_id: str) -> str:
    """The job that works on the run and goes before this one, '' if there is none.

    Of two that run at once the one that began first works, of two that began in the same second the one that was
    queued first: always exactly one, as both look at the same times. A job that waits or ends works on nothing; it will
    find this one. Where the controller is silent the run's lock decides.
    """
    others = [job for job in _others(about, job_id) if job.at_work]
    if not others:
        return ""
    own = [job for job in _live([job_id]) if job.at_work] if job_id else []
    began = own[0].start if own and own[0].start else time.time()
    before = [job for job in others if (job.start or 0, _order(job.id)) < (began, _order(job_id))]
    return min(before, key=lambda job: _order(job.id)).id if before else ""


def _order(job_id: str) -> list[int]:
    return [int(part) for part in job_id.split("_") if part.isdecimal()]


def _lock_holder(path: Path, job_id: str) -> str:
    """Who holds the run's lock and lives, in words; '' if nobody, or this job."""
    holder = live_process(path)
    if holder is None or (holder.get("job") or "") == job_id:
        return ""
    return f"job {holder['job']}" if holder.get("job") else f"process {holder.get('pid')}"


def _submitted_at(run: RunDir, job_id: str) -> float:
    """When a person typed the sbatch that started this job; asked of the controller, patiently, where a STOP waits for
    the answer."""
    job = _ask(job_id, stopping.CONTINUE) if run.stop_requested() else None
    return job.submitted if job is not None and job.submitted else time.time()


def _pending_successors(about: dict, job_id: str) -> list[str]:
    ids = [i for i in _slurm_ids(about, "chain") if i != job_id]
    return [job.id for job in _live(ids[-20:])] if ids else []


def _widener(path: Path, about: dict, job_id: str) -> list[str]:
    if not about.get("widener"):
        return []
    queue = {job.id: job for job in _live([about["widener"], job_id.partition("_")[0]])}
    return submit.widener(path, queue, [job_id])


def _cancelled_before(about: dict, job_id: str) -> str:
    """The job that this successor follows, if a person cancelled it (it may have been killed before it could say
    so)."""
    entry: dict = next((e for e in about.get("submitted", []) if e["id"] == job_id), {})
    try:
        before = slurm.show_job(entry["after"]) if "after" in entry else None
    except SlurmError:
        return ""
    return before.id if before is not None and before.state == "CANCELLED" else ""


def _link_log(run: RunDir, job: Job | None) -> None:
    """Let logs/<job id>.out lead to the output of a job whose sbatch script put it elsewhere."""
    if job is None or not job.stdout:
        return
    link = run.logs / f"{job.id}.out"
    if Path(job.stdout).absolute() != link.absolute() and not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(Path(job.stdout).absolute())


def _keep_diff(path: Path) -> None:
    """sbatch runs the repository as it is: what differs from its commit is kept in code.diff (best effort)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(specs.ROOT), "diff", "HEAD"], capture_output=True, text=True, errors="replace", timeout=20
        )
        if done.returncode == 0:
            atomic_write(path / "code.diff", done.stdout)
    except (OSError, subprocess.SubprocessError):
        pass


def main(argv: list[str] | None = None) -> int:
    """The two ends of a job, as jobs/env.sh calls them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster.requeue", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="run directory")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--begin", action="store_true", help="start of a job")
    action.add_argument("--code", type=int, help="end of a job: the exit code of its tasks")
    parser.add_argument("--job", help="the job that an sbatch script starts; its training flags follow --")
    argv = list(sys.argv[1:] if argv is None else argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    options, flags = parser.parse_args(argv[:cut]), argv[cut + 1 :]
    if (options.run is None) != (options.begin and options.job is not None):
        parser.error("give either RUN, or --begin --job NAME")
    try:
        if not options.begin:
            return finish(Path(options.run).absolute(), options.code)
        if options.job is None:
            print(begin(Path(options.run).absolute(), "main"))
        else:
            forget = _forget_the_array()
            config, text = begin_sbatch(options.job, flags)
            kind = record_sbatch(options.job, config)
            more = begin(Path(config.run), kind) if kind else AWAY
            print("\n".join(filter(None, [forget, "" if more in (LEAVE, AWAY) else text, more])))
    except (ConfigError, RunDirError, submit.SubmitError) as error:
        say(f"error: {error}", sys.stderr)
        return stopping.BAD
    return 0


if __name__ == "__main__":
    sys.exit(main())
