"""From a command line to a queued job: the plan, the sbatch text, the snapshot of the code, the hand-over to submitit.

submitit only queues. What it runs on the node is the standard library's `os.execv`, so the task becomes the plain
training process that `sbatch jobs/x.sh` starts too; the pickle holds that argument list and nothing else. Torch-free.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.files import atomic_write, say
from jobs.cluster import notify, sbatch, slurm
from jobs.cluster.plan import Plan
from jobs.config import specs
from jobs.run import own_job
from jobs.run.find import members, read_jobs, typed
from jobs.run.lock import LOCK_STALE, Lock, Locked
from jobs.run.resume import store_config
from jobs.run.rundir import RunDir, git_state
from jobs.run.states import RunState, Verdict
from jobs.run.stopping import BAD

LOCAL_MINUTES = 60 * 24 * 365  # submitit's local executor wants a limit


class SubmitError(Exception):
    """The job could not be queued; the text is one line that names the fix. Exit code 78."""


# --- the snapshot -----------------------------------------------------------------------------------------------------
def tracked_files(root: Path) -> list[str]:
    """Paths of the toolkit's files relative to `root`: what git tracks, or without git all of its rooms."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if git_state(root)["git_commit"] and not (root / "snapshot.json").exists():
            out = subprocess.run(
                ["git", "-C", str(root), "ls-files", "-z"], capture_output=True, timeout=20, check=True
            )
            return [
                os.fsdecode(name) for name in out.stdout.split(b"\0") if name and (root / os.fsdecode(name)).is_file()
            ]
    found = [path for path in root.iterdir() if path.is_file() and path.suffix in (".py", ".toml", ".txt", ".md")]
    # Of data/ only the code at its top: what somebody put there must be neither copied nor walked through.
    for room, pattern in (("data", "*"), ("models", "*"), ("jobs", "**/*")):
        suffixes = (".py",) if room == "data" else (".py", ".sh", ".toml")
        found += [path for path in (root / room).glob(pattern) if path.suffix in suffixes]
    return sorted(str(path.relative_to(root)) for path in found)


def untracked_code(root: Path) -> list[str]:
    """Python files that the snapshot would miss."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if git_state(root)["git_commit"] and not (root / "snapshot.json").exists():
            command = [
                "git",
                "-C",
                str(root),
                "ls-files",
                "-z",
                "--others",
                "--exclude-standard",
                "--",
                ":(glob)*.py",
                "data",
                "models",
                "jobs",
            ]
            out = subprocess.run(command, capture_output=True, timeout=20, check=True)
            return [os.fsdecode(name) for name in out.stdout.split(b"\0") if name]
    return []


def take_snapshot(run: Path, root: Path = specs.ROOT) -> None:
    """Replace run/code by a copy of the toolkit's files; a requeued job then runs what was queued, whatever is edited
    since."""
    code, new, old = run / "code", run / ".code.new", run / ".code.old"
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for name in tracked_files(root):
        target = new / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target)
    atomic_write(
        new / "snapshot.json", json.dumps(git_state(root) | {"from": str(root), "time": round(time.time(), 1)}) + "\n"
    )
    if code.exists():
        os.rename(code, old)
    os.rename(new, code)
    shutil.rmtree(old, ignore_errors=True)


# --- the sbatch text --------------------------------------------------------------------------------------------------
def slurm_parameters(plans: list[Plan], dependency: str = "", folder: Path | None = None) -> dict:
    """submitit's parameters for one job, or for an array with one plan per task; `folder` is where an array logs."""
    plan = plans[0]
    logs = (plan.run if folder is None else folder) / "logs"
    pattern = str(logs).replace("%", "%%") + ("/%j.out" if folder is None else "/%A_%a.out")
    parameters: dict[str, Any] = dict(
        job_name=plan.run.name if folder is None else folder.name,
        time=plan.minutes,
        nodes=plan.nodes,
        ntasks_per_node=plan.tasks,
        cpus_per_task=plan.cpus,
        signal_delay_s=plan.site.margin,
        stderr_to_stdout=True,
        wckey=None,
        setup=setup_lines(plans),
        # One file for the batch shell and all tasks, never truncated by a requeue.
        srun_args=[
            f"--output={pattern}",
            "--open-mode=append",
            "--kill-on-bad-exit=1",
            f"--cpus-per-task={plan.cpus}",
            "--cpu-bind=none",
        ],
        additional_parameters={"output": pattern, "no-requeue" if plan.chain else "requeue": True},
    )
    # Which run a job is of can be seen in the queue, also where nobody heard its id.
    parameters["additional_parameters"]["chdir"] = str(plan.code if folder is None else array_place(folder))
    if folder is not None and plan.throttle:
        parameters["array_parallelism"] = plan.throttle
    parameters["additional_parameters"] |= plan.slurm
    partition = plan.partition.split(",")[0] if plan.second_after else plan.partition
    optional = dict(partition=partition, account=plan.account, qos=plan.qos, gres=plan.gres, dependency=dependency)
    return parameters | {name: value for name, value in optional.items() if value}


def array_place(folder: Path) -> Path:
    """The folder, of this array alone, in which the next array of a sweep begins."""
    submitit = folder / "logs" / "submitit"
    return submitit / f"array-{len(list(submitit.glob('array-*'))) + 1}"


def setup_lines(plans: list[Plan]) -> list[str]:
    """Shell lines before srun: which run this is, then jobs/env.sh of its snapshot, which the sbatch scripts source
    too."""
    quoted = [shlex.quote(str(plan.run)) for plan in plans]
    lines = (
        [f"RUN={quoted[0]}"] if len(plans) == 1 else [f"RUNS=({' '.join(quoted)})", "RUN=${RUNS[$SLURM_ARRAY_TASK_ID]}"]
    )
    lines += [f"PYTHON={shlex.quote(sys.executable)}", f"REPOSITORY={shlex.quote(str(specs.ROOT))}"]
    # Without its snapshot the job has nothing to run: that is decided and written down by the repository's code.
    gone = 'cd "$REPOSITORY" && "$PYTHON" -m jobs.cluster.submit gone "$RUN"; exit 78'
    lines.append(f'cd "$RUN/code" && [ -f jobs/env.sh ] || {{ {gone}; }}')
    if any(plan.after for plan in plans):
        lines.append('"$PYTHON" -m jobs.cluster.submit ready "$RUN" || exit 0')
    return [*lines, "source jobs/env.sh"]


def make_executor(folder: Path, really: bool = True):
    """submitit's Slurm executor; with really=False one that only renders text, on a machine without Slurm as well."""
    from submitit import SlurmExecutor  # 0.1 s: not for --help and status

    class Queue(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return super().affinity() if really else 2

    # submitit's own requeueing never runs, as the process replaces itself; the countdown is only kept from being a
    # limit.
    return Queue(folder, max_num_timeout=10_000, python=shlex.quote(sys.executable))


def sbatch_text(plans: list[Plan], dependency: str = "", folder: Path | None = None) -> str:
    """What would be submitted, to the letter."""
    executor = make_executor((folder or plans[0].run) / "logs" / "submitit", really=False)
    executor.update_parameters(**slurm_parameters(plans, dependency, folder))
    if folder is not None:
        executor.parameters["map_count"] = len(plans)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


# --- queueing ---------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def submit_lock(run: Path, wait: float = 60.0) -> Iterator[None]:
    """One submitter at a time per run; the others wait, and then find the job that the first one queued."""
    lock, end = Lock(run / "SUBMIT"), time.monotonic() + wait
    while True:
        try:
            lock.acquire(wait=2.0)
            break
        except Locked:
            if time.monotonic() > end:
                raise SubmitError(
                    f"{run}: another launch.py has been queueing this run for {wait:.0f} s; try again"
                ) from None
            time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def write_about(run: Path, about: dict) -> None:
    """Replace jobs.json. Call under submit_lock."""
    atomic_write(run / "jobs.json", json.dumps(about, indent=1) + "\n")


def write_jobs(plan: Plan) -> None:
    """Record the plan; the jobs submitted so far stay."""
    about = {"submitted": []} | read_jobs(plan.run)
    for of_its_last_job in ("place", "task", "widener"):
        about.pop(of_its_last_job, None)
    about |= {
        "job": plan.job,
        "max_restarts": plan.max_restarts,
        "chain": plan.chain,
        "after": plan.after,
        "options": plan.options,
        "margin": plan.site.margin,
    }
    write_about(plan.run, about)


def note_submitted(run: Path, ids: list[tuple[str, str]], **more: str) -> None:
    """Append (id, kind) of jobs just submitted to jobs.json. more: what else is to be known of them."""
    about = {"submitted": []} | read_jobs(run)
    for job_id, kind in ids:
        here = {"host": socket.gethostname()} if kind == "local" else {}
        about["submitted"].append({"id": job_id, "kind": kind, "time": round(time.time(), 1)} | here | more)
    write_about(run, about)


def prepare(plan: Plan) -> None:
    """Make the run ready to be queued: folders, permissions, the lifted STOP, config.json, a fresh snapshot, `queued`.

    Call under submit_lock. Raises ConfigError where the run cannot go on with this configuration.
    """
    run = RunDir(plan.run)
    run.create()
    (run.logs / "submitit").mkdir(exist_ok=True, mode=0o700)
    if plan.shared:
        for folder in (run.path, run.checkpoints, run.samples, run.plots, run.tensorboard, run.logs):
            folder.chmod(0o750)
    run.stop_holds(math.inf)  # what is there now is older than what is queued
    store_config(run, plan.config)
    run.unmark_done()  # a finished run comes here only to be extended
    take_snapshot(plan.run)
    write_jobs(plan)
    write_state(plan.run, RunState.QUEUED, "")


def write_state(run: Path, state: str, reason: str) -> None:
    """A state that no training process reports: queued, waiting, stopped. What the last heartbeat knew is kept."""
    about = RunDir(run).read_status() | {"state": state, "reason": reason, "updated": round(time.time(), 1)}
    atomic_write(run / "status.json", json.dumps(about, sort_keys=True) + "\n")


def submit_slurm(plans: list[Plan], dependency: str = "", folder: Path | None = None) -> list[str]:
    """Queue one job, or an array with one task per plan (two or more) that logs into `folder`.

    Returns the job ids in the order of the plans.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    home = folder or plans[0].run
    text = sbatch_text(plans, dependency, folder)
    for plan in plans:
        atomic_write(plan.run / "job.sbatch", text)
    runs = {*(plan.run for plan in plans), *members(home)}
    noted = {str(job["id"]).partition("_")[0] for run in runs for job in read_jobs(run).get("submitted", [])}
    place = plans[0].code if folder is None else array_place(folder)

    def ours(job: slurm.Job) -> bool:
        return job.id.partition("_")[0] not in noted and job.workdir == str(place)

    # Slurm hands the umask of this moment on to the tasks.
    with (
        sbatch.clean_environment(),
        private_files(0o027 if plans[0].shared else 0o077),
        sbatch.ids_of_submitit(ours),
    ):
        executor = make_executor(home / "logs" / "submitit")
        executor.update_parameters(**slurm_parameters(plans, dependency, folder))
        if folder is not None:
            place.mkdir()
            for task, plan in enumerate(plans):  # before sbatch: launch.py may be killed, or get no answer
                write_about(plan.run, read_jobs(plan.run) | {"place": str(place), "task": task})
        commands = [plan.command() for plan in plans]
        try:
            if folder is None:
                jobs = [executor.submit(os.execv, commands[0][0], commands[0])]
            else:
                jobs = executor.map_array(os.execv, [command[0] for command in commands], commands)
        except (FailedJobError, FailedSubmissionError, slurm.SlurmError, OSError) as error:
            if isinstance(error, slurm.NoAnswer) or slurm.SILENCE.search(str(error)):
                run = folder or plans[0].run
                again = f"python launch.py status {typed(run)}"
                text = f"Slurm did not answer, so whether {run.name} is queued is not known: {again}"
                raise slurm.NoAnswer(text) from None
            for plan in plans:
                write_state(plan.run, RunState.FAILED, "could not be queued")
            words = sbatch.plain_refusal(str(error))
            fix = sbatch.way_out(words)
            raise SubmitError(f"Slurm refused the job: {words}{fix and f'; {fix}'}") from None
    for pickle in (home / "logs" / "submitit").glob("*.pkl"):
        pickle.chmod(0o600)
    # An array's pickles lie in its own folder.
    array = {} if folder is None else {"folder": str(folder)}
    for plan, job in zip(plans, jobs, strict=True):
        note_submitted(plan.run, [(job.job_id, "main")], **array)
    if plans[0].second_after:
        widener = sbatch.widen_later(jobs[0].job_id.partition("_")[0], plans[0])
        for plan in plans:
            write_about(plan.run, read_jobs(plan.run) | {"widener": widener})
    return [job.job_id for job in jobs]


def widener(run: Path, queue: Mapping[str, slurm.Job], ended: Collection[str]) -> list[str]:
    """The id of the small job that would add partitions to a job of the run, unless one that it is for still waits.

    ended: jobs that wait no more, whatever the queue says.
    """
    about = read_jobs(run)
    ours = {job["id"].partition("_")[0] for job in about.get("submitted", [])}  # of an array also the other points
    wait = [job for job in queue.values() if job.state == "PENDING" and job.id.partition("_")[0] in ours]
    small = queue.get(str(about.get("widener")))
    return [small.id] if small and small.active and all(job.id in ended for job in wait) else []


def adopt(run: Path, job_id: str) -> None:
    """At job start: enter a job of which launch.py did not hear the id, as it was killed or got no answer, and give it
    the pickle that nobody has named after it."""

    def known() -> bool:
        return any(job["id"] == job_id for job in read_jobs(run).get("submitted", []))

    if not job_id or known():
        return
    try:
        with submit_lock(run, wait=LOCK_STALE + 30):  # a launch.py that lives enters it in a moment
            if not known():
                place = read_jobs(run).get("place") if "_" in job_id else None
                home = Path(place).parents[2] if isinstance(place, str) else run
                _name_pickle(home / "logs" / "submitit", run, job_id)
                note_submitted(run, [(job_id, "main")], **({"folder": str(home)} if home != run else {}))
    except Exception as error:  # whatever it is, the job may be able to do its work
        say(f"WARNING: job {job_id} cannot be entered in {run}/jobs.json: {error}", sys.stderr)


def _name_pickle(folder: Path, run: Path, job_id: str) -> None:
    """Name the newest pickle of the run after this job, as submitit does once it hears the id."""
    from submitit.core.utils import DelayedSubmission

    for pickle in sorted(folder.glob("*.pkl"), key=lambda path: path.stat().st_mtime, reverse=True):
        if str(run) in DelayedSubmission.load(pickle).args[1]:
            shutil.copy2(pickle, folder / f"{job_id}_submitted.pkl")
            return


def successor(run: Path, job_id: str, *dependency: str) -> str:
    """Queue the run's job again, of an array this one task, to start when the jobs `dependency` have ended however they
    ended. Returns the new id."""
    task = job_id.partition("_")[2]
    words = ["--parsable", f"--dependency=afterany:{':'.join(dependency)}", *([f"--array={task}"] if task else [])]
    try:
        with private_files():
            new = sbatch.submit(
                [*words, str(run / "job.sbatch")], None, lambda job: sbatch.follows(job, dependency[-1])
            )
    except slurm.SlurmError as error:
        raise SubmitError(f"Slurm refused the next job of the chain: {error}") from None
    about: dict = next((job for job in read_jobs(run).get("submitted", []) if job["id"] == job_id), {})
    folder = Path(about.get("folder") or run) / "logs" / "submitit"
    new = f"{new}_{task}" if task else new
    shutil.copy2(folder / f"{job_id}_submitted.pkl", folder / f"{new}_submitted.pkl")
    note_submitted(run, [(new, "chain")], **({"folder": about["folder"]} if "folder" in about else {}))
    return new


def ready(run: Path) -> int:
    """At job start, for a run that comes after another: 0 if that one is done.

    Otherwise the job waits on, or says what to do.
    """
    adopt(run, own_job.job_id())
    after = Path(read_jobs(run).get("after") or run)
    left = [first for first in members(after) if not os.path.exists(first / "DONE")]
    if not left:
        return 0
    ids = {str(job["id"]) for first in left for job in read_jobs(first).get("submitted", [])}
    alive: list[str] = []
    for tries_left in reversed(range(61)):  # ten minutes: a controller that is silent has not said that nothing is left
        with contextlib.suppress(slurm.SlurmError):
            alive = [job.id for job in slurm.squeue().values() if job.id in ids and job.active]
            break
        time.sleep(10 if tries_left else 0)
    if alive:  # a chain: its later links did not exist when this job was queued
        say(
            f"{after.name} goes on as job {', '.join(alive)}; this run waits for that as job "
            f"{successor(run, own_job.job_id(), *alive)}"
        )
        return 1
    again = f"python launch.py resume {typed(after)}, then python launch.py resume {typed(run)}"
    names = ", ".join(first.name for first in left)
    text = f"{names} ended and {'is' if len(left) == 1 else 'are'} not done: {again}"
    write_state(run, RunState.WAITING, text)
    say(text)
    notify.tell(run, RunState.WAITING, text)
    return 1


def submit_local(plan: Plan) -> str:
    """Start the run on this machine, in a session of its own so that it outlives this terminal.

    Returns the process id.
    """
    command = plan.command()
    if plan.options.get("notify"):
        command = [sys.executable, "-m", "jobs.cluster.notify", str(plan.run), "--", *command]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):  # submitit would set its own
        command = ["/usr/bin/env", f"CUDA_VISIBLE_DEVICES={visible}", *command]
    starter = [sys.executable, "-m", "jobs.cluster.submit", "start-local", str(plan.run), str(plan.gpus), *command]
    done = subprocess.run(
        starter,
        cwd=specs.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        env=os.environ | {"LAUNCHED_RUN": str(plan.run)},  # an older STOP is lifted by now
    )
    answer = done.stdout.strip()
    if not answer.isdigit():
        raise SubmitError(
            f"the process could not be started: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
    note_submitted(plan.run, [(answer, "local")])
    return answer


def start_local(run: Path, gpus: int, command: list[str]) -> None:
    """Hand the command to submitit's local executor and print the process id; runs in the new session."""
    from submitit import LocalExecutor

    answer = os.dup(1)  # what submitit starts must not hold our caller's pipe open
    log = os.open(run / "logs" / "submitit" / "controller.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(run / "code")
    shared = run.stat().st_mode & 0o070
    with private_files(0o027 if shared else 0o077):
        executor = LocalExecutor(run / "logs" / "submitit")
        executor.update_parameters(
            timeout_min=LOCAL_MINUTES, tasks_per_node=1, gpus_per_node=gpus, stderr_to_stdout=True
        )
        job = executor.submit(os.execv, command[0], command)
    for pickle in (run / "logs" / "submitit").glob("*.pkl"):
        pickle.chmod(0o600)
    os.write(answer, job.job_id.encode())


def gone(run: Path) -> None:
    """At job start, where the snapshot is not there any more: say so, and what to do, where every verb reads it."""
    text = f"the snapshot of the code, {run}/code, is gone: python launch.py resume {typed(run)} takes a new one"
    say(f"error: {text}", sys.stderr)
    RunDir(run).note("decision", decision=Verdict.FAILED, why=text, job_id=own_job.job_id(), code=BAD, counted=False)
    write_state(run, RunState.FAILED, text)


@contextlib.contextmanager
def private_files(mask: int = 0o077) -> Iterator[None]:
    """Files made here are the user's alone: the pickle, above all, is code to whoever may write it."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["start-local", run, gpus, *command]:
            start_local(Path(run), int(gpus), command)
        case ["gone", run]:
            gone(Path(run))
        case ["ready", run]:
            sys.exit(ready(Path(run)))
        case _:
            sys.exit("jobs.cluster.submit is called by launch.py and by its jobs")
