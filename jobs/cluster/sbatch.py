"""Handing a script to sbatch, and reading what it answers, also where a site's wrapper adds words. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data.files import say
from jobs.cluster import slurm
from jobs.cluster.plan import Plan
from jobs.cluster.slurm import Job, SlurmError

PAUSES_S = (0, 2, 4)  # before the queue is asked for a job of which sbatch got no answer
# A word of sbatch's refusal -> what to do.
REFUSALS = {
    "account": "--account NAME; `sacctmgr show associations user=$USER` lists yours",
    "qos": "--qos NAME, or leave it out; `sacctmgr show qos` lists them",
    "time limit": "a shorter --time",
    "node count": "fewer --nodes",
    "memory": "fewer --cpus, or --mem SIZE; if that is refused too, ask the administrators about DefMemPerCPU",
    "feature": "another --constraint; `sinfo -o '%N %f'` lists the features",
    "reservation": "another --reservation; `scontrol show reservation` lists them",
    "node name": "another --nodelist or --exclude, which `sinfo -N` lists; data to leave out: -- --exclude GLOB",
    "processors": "fewer --cpus",
}


def submit(words: list[str], cwd: Path | None, ours: Callable[[Job], bool]) -> str:
    """Run sbatch with these words, outside of any job. The id of the new job.

    ours: which job of the queue it is; asked where sbatch's answer names none. SlurmError, in one line.
    """
    try:
        with clean_environment():
            done = subprocess.run(
                ["sbatch", *words], cwd=cwd, capture_output=True, encoding="utf-8", errors="replace", timeout=60
            )
    except subprocess.TimeoutExpired:
        return after_silence(ours, "sbatch: no answer from the Slurm controller within 60 s")
    except (OSError, subprocess.SubprocessError) as error:
        raise SlurmError(f"sbatch: {error}") from None
    if done.returncode:
        text = done.stderr or done.stdout
        if slurm.SILENCE.search(text):
            return after_silence(ours, plain_refusal(text))
        raise SlurmError(plain_refusal(text))
    return read_id(f"{done.stdout}\n{done.stderr}") or look_up(ours)


def read_id(text: str) -> str:
    """The job id in what sbatch, or a wrapper around it, printed: "Submitted batch job 7", or a line "7;name", or "7"
    and nothing else: among other words a number may be anything.

    '' where there is none, or several that differ.
    """
    found = set(re.findall(r"\bSubmitted batch job (\d+)\b", text))
    found = found or set(re.findall(r"^[ \t]*(\d+);[\w.-]+[ \t\r]*$", text, re.MULTILINE))
    found = found or set(re.findall(r"^\s*(\d+)\s*$", text))
    return found.pop() if len(found) == 1 else ""


def look_up(ours: Callable[[Job], bool]) -> str:
    """The newest job in the queue that is ours, where sbatch took it and did not say its id. SlurmError if none is."""
    ids = [int(job.id.partition("_")[0]) for job in slurm.squeue().values() if job.active and ours(job)]
    if not ids:
        raise SlurmError("sbatch took the job and named no id, and the queue does not show it: squeue --me")
    return str(max(ids))


def after_silence(ours: Callable[[Job], bool], words: str) -> str:
    """The id of a job that the controller may have taken before it fell silent. NoAnswer if the queue does not show
    one."""
    for pause in PAUSES_S:
        time.sleep(pause)
        try:
            return look_up(ours)
        except slurm.NoAnswer:
            break
        except SlurmError:
            continue
    raise slurm.NoAnswer(f"{words}; try again")


def follows(job: Job, job_id: str) -> bool:
    """Whether it waits for the end of that job."""
    return bool(re.search(rf"(?<![\d_]){re.escape(job_id)}(?![\d_])", job.dependency))


@contextlib.contextmanager
def ids_of_submitit(ours: Callable[[Job], bool]) -> Iterator[None]:
    """Meanwhile submitit finds a job's id as everybody here does. It makes arrays with its own class, so it is that
    class which learns it."""
    from submitit import SlurmExecutor
    from submitit.core import utils

    name = "_get_job_id_from_submission_command"
    before, command = SlurmExecutor.__dict__[name], utils.CommandFunction

    class Sbatch(command):  # type: ignore[misc,valid-type]
        def __call__(self, *words, **options) -> str:
            return submit([*self.command[1:], *words], None, ours)

    def job_id(answer: str | bytes) -> str:
        return read_id(answer if isinstance(answer, str) else answer.decode(errors="replace")) or look_up(ours)

    setattr(SlurmExecutor, name, staticmethod(job_id))
    utils.CommandFunction = Sbatch  # type: ignore[misc]
    try:
        yield
    finally:
        setattr(SlurmExecutor, name, before)
        utils.CommandFunction = command  # type: ignore[misc]


@contextlib.contextmanager
def clean_environment() -> Iterator[None]:
    """Without the variables of a surrounding job, and without those that change what sbatch and srun are told."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if slurm.foreign(name)}
    try:
        yield
    finally:
        os.environ.update(taken)


def widen_later(job_id: str, plan: Plan) -> str:
    """Let a job that still waits after `second_after` seconds try the other partitions of its list too.

    No process stays here, so it is a small job of its own that tells Slurm so; of a job that waits no more Slurm
    refuses it, and nothing happens. Returns its id, '' where there is none.
    """
    update = f"scontrol update JobId={job_id} Partition={shlex.quote(plan.partition)} || true"
    words = [
        "--parsable", f"--begin=now+{plan.second_after}", f"--partition={plan.partition}", "--time=1", "--ntasks=1",
        "--no-requeue", "--output=/dev/null", f"--job-name={plan.run.name}-widen", f"--wrap={update}",
        *(f"--{name}={value}" for name, value in (("account", plan.account), ("qos", plan.qos)) if value),
    ]  # fmt: skip
    try:
        return submit(words, None, lambda job: job.name == f"{plan.run.name}-widen")
    except SlurmError as error:  # then it tries them all from now on
        say(f"WARNING: {plan.partition} is tried at once, as Slurm takes no job that would add to it later ({error})")
        slurm.update(job_id, f"Partition={plan.partition}")
        return ""


def plain_refusal(text: str) -> str:
    """The lines of an sbatch failure that say why: the last one may be general, and the one before it the reason."""
    lines = [line.strip() for line in text.splitlines() if "error:" in line.lower()]
    lines = lines or (text.strip().splitlines() or ["no message"])[-1:]
    reasons = [line.replace("sbatch: error: ", "").replace("Batch job submission failed: ", "") for line in lines]
    return "; ".join(dict.fromkeys(reasons))[:500]


def way_out(words: str) -> str:
    """What to do about sbatch's refusal; '' where no word of it is known."""
    return next((fix for sign, fix in REFUSALS.items() if sign in words.lower()), "")
