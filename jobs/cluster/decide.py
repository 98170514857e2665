"""What becomes of a run whose tasks have left: the decision alone, which asks nobody and writes nothing. Torch-free."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from data.files import is_number
from jobs.cluster.slurm import Job
from jobs.run import stopping
from jobs.run.states import Verdict

STUCK_AFTER = 2  # attempts in a row that ended by themselves and saw no new image
FAULTS_OF_A_NODE = 2  # attempts that died on a node before the next one starts elsewhere


@dataclass(frozen=True)
class Decision:
    """counted: whether it uses up the budget of restarts."""

    verdict: Verdict
    why: str
    counted: bool = False
    by_slurm: bool = False  # Slurm has put the job back into the queue itself
    fault: bool = False  # it died of what may be the node's fault
    node: str = ""  # then the node, where it is known


def decide(
    code: int, done: bool, stop_file: bool, job: Job | None, restarts: int, reason: str = "", now: float = 0.0
) -> Decision:
    """What becomes of a run whose tasks left with `code`.

    job: what the controller says, None where it says nothing. restarts: the job's count when this attempt began.
    reason: the training process's own word for why it stopped. A job that is being ended from outside is COMPLETING
    while its batch shell still lives; who did it shows in the fields beside it.

    DONE and STOP end the run, whatever else is said. After a node failure srun gives up with 0 or 1, which say nothing
    of the training and go on; 2, 77 and 78 are its own refusals and do not, nor does 130, a person's Ctrl-C. Where
    Slurm has put the job back into the queue already, that stands: its next start looks for DONE and STOP, and is
    decided anew.
    """
    put_back = job is not None and job.restarts > restarts
    node_failed = put_back or (job is not None and job.state == "NODE_FAIL")
    if done and (
        code in (0, stopping.CONTINUE, stopping.TRANSIENT) or code > 128 or (node_failed and code not in REFUSALS)
    ):
        return Decision(Verdict.DONE, "the run is finished")
    if stop_file:
        return Decision(Verdict.STOPPED, "stopped by a person (STOP)")
    if put_back and not done:
        return Decision(Verdict.REQUEUE, "Slurm requeued the job", by_slurm=True)
    if node_failed and code not in (*REFUSALS, 130):
        return Decision(Verdict.REQUEUE, "the node failed", fault=True)
    if code in (0, 130):
        return Decision(Verdict.STOPPED, "the tasks left as if stopped by a person")
    if code not in (stopping.CONTINUE, stopping.TRANSIENT) and code <= 128:
        return Decision(Verdict.FAILED, FAILURES.get(code, f"the tasks failed with exit code {code}"))
    limit = "the time limit was reached"
    if job is not None and job.preempt_time is not None and (job.start or 0) <= job.preempt_time:
        return Decision(Verdict.REQUEUE, "the job was pre-empted")
    if job is not None and (job.state == "TIMEOUT" or job.reason == "TimeLimit"):
        return Decision(Verdict.REQUEUE, limit, counted=True)
    if job is not None and job.state not in ("RUNNING", "SUSPENDED", "STOPPED"):
        return Decision(Verdict.STOPPED, "cancelled by a person (scancel)")
    ends_now = job is not None and job.end is not None and now > job.end - 60
    if code == stopping.CONTINUE and reason == "TERM" and job is not None and not ends_now:
        return Decision(Verdict.STOPPED, "a person sent TERM")
    if code == stopping.CONTINUE:
        return Decision(
            Verdict.REQUEUE, limit if reason in LIMIT_SIGNS else "the run saved and asks to go on", counted=True
        )
    if code == stopping.TRANSIENT:
        return Decision(
            Verdict.REQUEUE, f"a fault that may pass ({reason or 'exit code 75'})", counted=True, fault=True
        )
    name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
    # srun's own TERM to the last ranks is nobody's fault.
    return Decision(Verdict.REQUEUE, f"a task was killed by {name}", counted=True, fault=name != "SIGTERM")


REFUSALS = (stopping.USAGE, stopping.DIVERGED, stopping.BAD)
FAILURES = {
    1: "the training script failed with a traceback",
    stopping.USAGE: "wrong training flags (exit code 2)",
    stopping.DIVERGED: "the losses were not finite (exit code 77)",
    stopping.BAD: "bad configuration or data (exit code 78)",
    126: "the Python of this job cannot be executed on the node",
    127: "the Python of this job, or srun, was not found on the node",
}
LIMIT_SIGNS = ("USR1", "USR2", "time limit")


def within_budget(
    decision: Decision, nimg: int, lines: list[dict], since: float, max_restarts: int, avoid: Sequence[str] = ()
) -> Decision:
    """The same decision, or `stuck` or `budget` instead of a requeue.

    lines: the decisions in attempts.jsonl; those before `since`, when a person last started the run, do not count.
    nimg: images in the newest checkpoint now. What Slurm ends and what people requeue by hand cost nothing.
    avoid: nodes that the next attempt is kept off. Where it is one, its faults do not make the run stuck yet: elsewhere
    it may go well. Where it is more, the fault is hardly that of the nodes.
    """
    if decision.verdict != Verdict.REQUEUE or not decision.counted:
        return decision
    used, idle, seen = 0, 0, 0
    for line in lines:
        before, seen = seen, max(int(line.get("nimg") or 0), seen)
        if (line.get("time") or 0) < since:
            continue
        counted = bool(line.get("counted")) and line.get("decision") in (Verdict.REQUEUE, Verdict.CHAIN)
        used += counted
        excused = len(avoid) == 1 and line.get("faulty_node") == avoid[0]
        idle = 0 if seen > before else idle + (counted and not excused)
    excused = len(avoid) == 1 and decision.node == avoid[0]
    idle = 0 if nimg > seen else idle + (not excused)
    if idle >= STUCK_AFTER:
        return Decision(Verdict.STUCK, f"{decision.why}, and {idle} attempts in a row saw no new image")
    if used >= max_restarts:
        return Decision(Verdict.BUDGET, f"{decision.why}, and all {max_restarts} restarts (--max-restarts) are used up")
    return decision


def within_hours(decision: Decision, used: float, most: float | None) -> Decision:
    """The same decision, or `budget` instead of a requeue where the run has used its GPU hours; None: no limit.

    A job that Slurm has put back itself goes on: its next attempt ends at once, with the same words.
    """
    if decision.verdict != Verdict.REQUEUE or decision.by_slurm or most is None or used < most:
        return decision
    return Decision(Verdict.BUDGET, f"{used:.3g} of its {most:g} GPU hours (--max-gpu-hours) are used up")


def bad_nodes(lines: list[dict], since: float) -> list[str]:
    """The nodes on which two attempts died of a fault since a person last started the run, sorted.

    lines: the decisions in attempts.jsonl.
    """
    died = [line.get("faulty_node") for line in lines if (line.get("time") or 0) >= since]
    named = [node for node in died if isinstance(node, str) and node]
    return sorted({node for node in named if named.count(node) >= FAULTS_OF_A_NODE})


def started_by_person(about: dict) -> float:
    """When a person last queued the run; 0 if it is not known."""
    times = [entry.get("time", 0) for entry in about.get("submitted", []) if entry.get("kind") != "chain"]
    return max((t for t in times if is_number(t)), default=0.0)
