"""What the start and the end of a job decide and do: literal tables, written from what the contract promises.

A run goes on after the time limit, a pre-emption, a node failure, a death by a signal and a fault that may pass; never
after a person's stop, a finished run or the training's own refusal. Slurm is a fake here that notes what it is asked.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from tiny import ROOT

from jobs.cluster import requeue, sites, slurm, submit
from jobs.cluster import sbatch as sbatch_module
from jobs.cluster.decide import STUCK_AFTER, Decision, decide, started_by_person, within_budget
from jobs.cluster.slurm import Job, Partition, SlurmError
from jobs.config import parsing, specs
from jobs.config.specs import ConfigError
from jobs.run import own_job
from jobs.run.rundir import RunDir

NOW = 1_800_000_000.0


def job(state: str = "RUNNING", **fields) -> Job:
    """Job 7 at its second start, begun an hour ago and with three to go."""
    return Job("7", state, **{"start": NOW - 3600, "end": NOW + 3 * 3600, "requeue": True, "restarts": 1, **fields})


# --- the decision -----------------------------------------------------------------------------------------------------
CODES = (0, 1, 2, 3, 75, 77, 78, 85, 126, 127, 128, 129, 130, 137, 143)
# R goes on for nothing, C goes on and costs a restart, S goes on since Slurm has seen to it, D done, X stopped,
# F failed.
MEANS = {
    "R": ("requeue", False, False), "C": ("requeue", True, False), "S": ("requeue", False, True),
    "D": ("done", False, False), "X": ("stopped", False, False), "F": ("failed", False, False),
}  # fmt: skip
TABLE = [
    # what Slurm says; the tasks left with                                       0 1 2 3 75 77 78 85 126 127 128 129 130
    # 137 143
    ("nothing special: the code decides", job(), "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("the controller is silent", None, "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("silent, and the process heard TERM", None, "TERM", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("stopped by a signal", job("STOPPED"), "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("suspended", job("SUSPENDED"), "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("Slurm's warning", job(), "USR2", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("pre-empted", job(preempt_time=NOW - 5), "TERM", "X F F F R  F  F  R  F   F   F   R   X   R   R"),
    ("pre-empted, ending", job("COMPLETING", preempt_time=NOW), "", "X F F F R  F  F  R  F   F   F   R   X   R   R"),
    ("pre-empted as it began", job(preempt_time=NOW - 3600), "", "X F F F R  F  F  R  F   F   F   R   X   R   R"),
    (
        "pre-empted, start unknown",
        job(preempt_time=1.0, start=None),
        "",
        "X F F F R  F  F  R  F   F   F   R   X   R   R",
    ),
    ("pre-empted before this start", job(preempt_time=NOW - 3601), "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    (
        "... and cancelled now",
        job("COMPLETING", preempt_time=NOW - 3601),
        "",
        "X F F F X  F  F  X  F   F   F   X   X   X   X",
    ),
    (
        "pre-empted in its last minute",
        job(preempt_time=NOW, reason="TimeLimit"),
        "",
        "X F F F R  F  F  R  F   F   F   R   X   R   R",
    ),
    ("ended by its time limit", job("TIMEOUT", end=NOW), "", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    (
        "... still ending",
        job("COMPLETING", reason="TimeLimit"),
        "TERM",
        "X F F F C  F  F  C  F   F   F   C   X   C   C",
    ),
    ("... while it runs", job(reason="TimeLimit"), "TERM", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("scancel", job("CANCELLED", end=NOW), "TERM", "X F F F X  F  F  X  F   F   F   X   X   X   X"),
    ("scancel, still ending", job("COMPLETING", end=NOW), "", "X F F F X  F  F  X  F   F   F   X   X   X   X"),
    ("a person's TERM", job(), "TERM", "X F F F C  F  F  X  F   F   F   C   X   C   C"),
    ("TERM a minute before the end", job(end=NOW + 60), "TERM", "X F F F C  F  F  X  F   F   F   C   X   C   C"),
    ("TERM in the last minute", job(end=NOW + 59), "TERM", "X F F F C  F  F  C  F   F   F   C   X   C   C"),
    ("TERM, no end known", job(end=None), "TERM", "X F F F C  F  F  X  F   F   F   C   X   C   C"),
    ("the node failed", job("NODE_FAIL"), "", "R R F R R  F  F  R  R   R   R   R   X   R   R"),
    (
        "... after TERM, near the end",
        job("NODE_FAIL", end=NOW),
        "TERM",
        "R R F R R  F  F  R  R   R   R   R   X   R   R",
    ),
    ("put back by Slurm", job("PENDING", restarts=2), "", "S S S S S  S  S  S  S   S   S   S   S   S   S"),
    ("... running again", job("RUNNING", restarts=2), "TERM", "S S S S S  S  S  S  S   S   S   S   S   S   S"),
    (
        "... twice, pre-empted",
        job("COMPLETING", restarts=3, preempt_time=NOW),
        "",
        "S S S S S  S  S  S  S   S   S   S   S   S   S",
    ),
]
DONE_TABLE = [
    ("nothing special", job(),
    "D F F F D  F  F  D  F   F   F   D   D   D   D"),
    ("silent", None,
    "D F F F D  F  F  D  F   F   F   D   D   D   D"),
    ("scancel during the last plot", job("CANCELLED"),
    "D F F F D  F  F  D  F   F   F   D   D   D   D"),
    ("pre-empted", job(preempt_time=NOW),
    "D F F F D  F  F  D  F   F   F   D   D   D   D"),
    ("the node failed", job("NODE_FAIL"),
    "D D F D D  F  F  D  D   D   D   D   D   D   D"),
    ("put back by Slurm", job("PENDING", restarts=2),
    "D D F D D  F  F  D  D   D   D   D   D   D   D"),
]  # fmt: skip


def decided(seen: Job | None, code: int, reason: str = "", done: bool = False, stop_file: bool = False) -> tuple:
    found = decide(code, done, stop_file, seen, 1, reason, NOW)
    assert found.why
    return found.verdict, found.counted, found.by_slurm


def cells(row: str) -> list[tuple[int, tuple]]:
    assert len(row.split()) == len(CODES)
    return [(code, MEANS[letter]) for code, letter in zip(CODES, row.split(), strict=True)]


@pytest.mark.parametrize(("about", "seen", "reason", "row"), TABLE, ids=[row[0] for row in TABLE])
def test_what_becomes_of_a_run(about, seen, reason, row):
    for code, expected in cells(row):
        assert decided(seen, code, reason) == expected, (about, code)
        assert decided(seen, code, reason, stop_file=True) == MEANS["X"], (about, code)  # STOP always wins


@pytest.mark.parametrize(("about", "seen", "row"), DONE_TABLE, ids=[row[0] for row in DONE_TABLE])
def test_what_becomes_of_a_finished_run(about, seen, row):
    for code, expected in cells(row):
        assert decided(seen, code, done=True) == expected, (about, code)
        with_stop = MEANS["D"] if expected == MEANS["D"] else MEANS["X"]
        assert decided(seen, code, "TERM", done=True, stop_file=True) == with_stop, (about, code)


@pytest.mark.parametrize(
    ("seen", "code", "reason", "words"),
    [
        (job(), 85, "USR1", "time limit"), (job(), 85, "USR2", "time limit"), (job(), 85, "time limit", "time limit"),
        (job("TIMEOUT"), 85, "TERM", "time limit"), (job(), 85, "somebody asked", "asks to go on"),
        (job(), 75, "OSError: stale file handle", "OSError: stale file handle"), (job(), 75, "", "exit code 75"),
        (job(), 137, "", "SIGKILL"), (job(), 139, "", "SIGSEGV"), (job(), 134, "", "SIGABRT"),
        (job(), 255, "", "signal 127"),
        (job(preempt_time=NOW), 85, "TERM", "pre-empted"), (job("NODE_FAIL"), 1, "", "node failed"),
        (job("CANCELLED"), 85, "TERM", "scancel"), (job(), 85, "TERM", "sent TERM"), (job(), 0, "", "by a person"),
        (job("PENDING", restarts=2), 85, "", "Slurm requeued"), (job(), 1, "", "traceback"), (job(), 2, "", "flags"),
        (job(), 77, "", "not finite"), (job(), 78, "", "configuration or data"), (job(), 126, "", "cannot be executed"),
        (job(), 127, "", "not found"), (job(), 3, "", "exit code 3"),
    ],
)  # fmt: skip
def test_the_reason_that_a_person_reads(seen, code, reason, words):
    assert words in decide(code, False, False, seen, 1, reason, NOW).why


# --- budget and progress ----------------------------------------------------------------------------------------------
LIMIT = Decision("requeue", "the time limit was reached", counted=True)


def said(nimg: int, decision: str = "requeue", counted: bool = True, time: float = 100.0) -> dict:
    return {"event": "decision", "decision": decision, "nimg": nimg, "counted": counted, "time": time}


CHAIN, FREE = said(8, "chain"), said(8, counted=False)
BUDGET = [
    # images now, decisions so far, when a person started it, --max-restarts -> verdict
    ("the first attempt saw images", 8, [], 0, 20, "requeue"),
    ("the first attempt saw none", 0, [], 0, 20, "requeue"),
    ("the second saw none either", 0, [said(0)], 0, 20, "stuck"),
    ("one after progress", 8, [said(8)], 0, 20, "requeue"),
    ("two after progress", 8, [said(8), said(8)], 0, 20, "stuck"),
    ("a link of a chain is an attempt too", 8, [said(8), CHAIN], 0, 20, "stuck"),
    ("a single image is progress", 1, [said(0)], 0, 20, "requeue"),
    ("one more image is progress", 9, [said(8), said(8)], 0, 20, "requeue"),
    ("fewer images are none", 4, [said(8), said(8)], 0, 20, "stuck"),
    ("progress in between", 16, [said(8), said(8), said(16)], 0, 20, "requeue"),
    ("older checkpoints in between do not hide it", 16, [said(16), said(8), said(16)], 0, 20, "stuck"),
    ("a pre-emption between two idle attempts", 8, [said(8), FREE], 0, 20, "requeue"),
    ("... does not undo the first", 8, [said(8), said(8), FREE], 0, 20, "stuck"),
    ("a free attempt that saw images is progress", 16, [said(8), said(8), said(16, counted=False)], 0, 20, "requeue"),
    ("used up to one", 80, [said(8), said(16)], 0, 3, "requeue"),
    ("used up", 80, [said(8), said(16), said(24)], 0, 3, "budget"),
    ("links count", 80, [said(8, "chain"), said(16)], 0, 2, "budget"),
    ("free ones do not", 80, [FREE] * 9, 0, 1, "requeue"),
    ("ends do not", 80, [said(8, "stopped"), said(16, "failed"), said(24, "stuck")], 0, 1, "requeue"),
    ("none allowed", 80, [], 0, 0, "budget"),
    ("stuck is said before the budget", 8, [said(8), said(8)], 0, 2, "stuck"),
    ("before a person's start: not used", 80, [said(8), said(16)], 101.0, 1, "requeue"),
    ("... nor idle", 8, [said(8), said(8), said(8)], 101.0, 20, "requeue"),
    ("... but the images were seen", 8, [said(8), said(8), said(8, time=102.0)], 101.0, 20, "stuck"),
    ("at that very moment counts", 80, [said(8)], 100.0, 1, "budget"),
    ("lines without numbers", 8, [{"decision": "requeue", "counted": True, "nimg": None, "time": None}], 1.0, 1,
    "requeue"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "nimg", "lines", "since", "most", "verdict"), BUDGET, ids=[row[0] for row in BUDGET])
def test_within_budget(about, nimg, lines, since, most, verdict):
    found = within_budget(LIMIT, nimg, lines, since, most)
    if verdict == "requeue":
        assert found is LIMIT
    else:
        assert found.verdict == verdict and not found.counted and not found.by_slurm and LIMIT.why in found.why


def test_the_numbers_of_the_contract():
    assert (STUCK_AFTER, requeue.MAX_RESTARTS, requeue.RETRY_S) == (2, 20, 600)
    assert f"all {7} restarts" in within_budget(LIMIT, 80, [said(i) for i in range(1, 8)], 0, 7).why
    assert "2 attempts" in within_budget(LIMIT, 8, [said(8), said(8)], 0, 20).why


@pytest.mark.parametrize("verdict", ["requeue", "done", "stopped", "failed"])
def test_what_costs_nothing_is_never_over_budget(verdict):
    free = Decision(verdict, "")
    assert within_budget(free, 0, [said(0)] * 30, 0, 0) is free
    odd = Decision("failed", "", counted=True)
    assert within_budget(odd, 0, [said(0)] * 30, 0, 0) is odd


@pytest.mark.parametrize(
    ("submitted", "when"),
    [
        ([], 0.0),
        ([{"id": "1", "kind": "main", "time": 5.0}], 5.0),
        ([{"id": "1", "kind": "main", "time": 5.0}, {"id": "2", "kind": "chain", "time": 9.0}], 5.0),
        ([{"id": "1", "kind": "main", "time": 5.0}, {"id": "2", "kind": "sbatch", "time": 7.0}], 7.0),
        ([{"id": "1", "kind": "main", "time": 8.0}, {"id": "2", "kind": "sbatch", "time": 7.0}], 8.0),
        ([{"id": "1", "kind": "main", "time": "soon"}, {"id": "2", "kind": "main", "time": True}, {"id": "3"}], 0.0),
    ],
)
def test_when_a_person_last_started_the_run(submitted, when):
    assert started_by_person({"submitted": submitted}) == when


# --- the end of a job -------------------------------------------------------------------------------------------------
class Controller:
    """In place of Slurm's commands: answers what it is told to, and keeps what was asked of it."""

    def __init__(self, shown: Job | None = None, queue: dict[str, Job] | None = None):
        self.shown, self.queue = shown, queue or {}
        self.requeued, self.cancelled, self.refuse, self.asked = [], [], "", 0

    def show_job(self, job_id):
        self.asked += 1
        if isinstance(self.shown, list):  # one answer after the other
            answer = self.shown.pop(0) if len(self.shown) > 1 else self.shown[0]
        else:
            answer = self.shown
        if isinstance(answer, SlurmError):
            raise answer
        return answer

    def squeue(self, ids):
        assert all(isinstance(i, str) for i in ids)
        return {i: self.queue[i] for i in ids if i in self.queue}

    def requeue(self, job_id):
        if self.refuse:
            raise SlurmError(self.refuse)
        self.requeued.append(job_id)

    def cancel(self, job_id):
        self.cancelled.append(job_id)


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    """An empty run, seen from the batch shell of job 7 at its second start."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(requeue.signal, "signal", lambda *a: None)
    monkeypatch.setattr(requeue.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(requeue.time, "time", lambda: NOW)
    clock = [0.0]
    monkeypatch.setattr(requeue.time, "monotonic", lambda: clock.__setitem__(0, clock[0] + 1e-6) or clock[0])
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + max(seconds, 0.1)))
    run = RunDir(tmp_path / "run")
    run.create()
    run.clock = clock
    return run


@pytest.fixture
def connect(monkeypatch):
    def to(controller: Controller) -> Controller:
        for name in ("show_job", "squeue", "requeue", "cancel"):
            monkeypatch.setattr(slurm, name, getattr(controller, name))
        return controller

    return to


def write_jobs(run: RunDir, *submitted: dict, **about) -> None:
    (run.path / "jobs.json").write_text(json.dumps({"job": "stylegan2", "argv": [], "submitted": submitted} | about))


def entry(job_id: str, kind: str = "main", time: float = 1.0, **more) -> dict:
    return {"id": job_id, "kind": kind, "time": time} | more


def heartbeat(run: RunDir, job_id: str | None = "7", **fields) -> None:
    (run.path / "status.json").write_text(json.dumps({"job_id": job_id, "kimg": 3.0} | fields))


def decisions(run: RunDir) -> list[dict]:
    return [line for line in run.read_attempts() if line["event"] == "decision"]


LINK = entry("8", "chain", after="7")
WAITING = {"8": Job("8", "PENDING")}
ENDS = [
    # what happened, code, the controller's word, successor?
    # -> verdict, counted, state, exit code, requeued, cancelled, STOP
    ("time limit", 85, job(), False,                    "requeue", True, "queued", 0, ["7"], [], False),
    ("time limit in a chain", 85, job(), True,          "chain", True, "queued", 0, [], [], False),
    ("pre-empted", 85, job(preempt_time=NOW), False,    "requeue", False, "queued", 0, ["7"], [], False),
    ("pre-empted in a chain", 143, job(preempt_time=NOW), True, "chain", False, "queued", 0, [], [], False),
    ("put back by Slurm", 143, job("PENDING", restarts=2), False, "requeue", False, "queued", 0, [], [], False),
    ("node failure", 1, job("NODE_FAIL"), False,        "requeue", False, "queued", 0, ["7"], [], False),
    ("node failure in a chain", 0, job("NODE_FAIL"), True, "chain", False, "queued", 0, [], [], False),
    ("scancel", 85, job("COMPLETING"), False,           "stopped", False, "stopped", 0, [], [], False),
    ("scancel in a chain", 85, job("COMPLETING"), True, "stopped", False, "stopped", 0, [], ["8"], True),
    ("left with 0", 0, job(), True,                     "stopped", False, "stopped", 0, [], ["8"], False),
    ("traceback", 1, job(), False,                      "failed", False, "failed", 1, [], [], False),
    ("traceback in a chain", 1, job(), True,            "failed", False, "failed", 1, [], ["8"], False),
    ("bad data", 78, job(), False,                      "failed", False, "failed", 78, [], [], False),
    ("diverged", 77, job("NODE_FAIL"), False,           "failed", False, "failed", 77, [], [], False),
]  # fmt: skip


@pytest.mark.parametrize("row", ENDS, ids=[row[0] for row in ENDS])
def test_what_an_end_writes_and_asks_of_slurm(row, run, connect, capsys):
    _, code, seen, chained, verdict, counted, state, exit_code, requeued, cancelled, stop_file = row
    controller = connect(Controller(seen, WAITING if chained else {}))
    write_jobs(run, entry("7"), *([LINK] if chained else []))
    heartbeat(run, state="running", reason="")
    (run.checkpoints / "00000024.json").touch()
    assert requeue.finish(run.path, code) == exit_code
    (line,) = decisions(run)
    assert {k: line[k] for k in ("decision", "counted", "code", "nimg", "job_id", "restart")} == {
        "decision": verdict, "counted": counted, "code": code, "nimg": 24, "job_id": "7", "restart": 1,
    }  # fmt: skip
    status = run.read_status()
    assert (status["state"], status["reason"], status["kimg"]) == (state, line["why"], 3.0)
    assert (controller.requeued, controller.cancelled, run.stop_requested()) == (requeued, cancelled, stop_file)
    assert ("job 8 goes on" in line["why"]) == (verdict == "chain")
    assert requeue.SAYING[verdict] in capsys.readouterr().out


def test_the_end_of_a_finished_run(run, connect):
    controller = connect(Controller(job("NODE_FAIL"), WAITING))
    write_jobs(run, entry("7"), LINK)
    run.mark_done()
    assert requeue.finish(run.path, 1) == 0
    assert decisions(run)[0]["decision"] == run.read_status()["state"] == "done"
    assert controller.cancelled == ["8"] and controller.requeued == []


def test_a_stop_file_ends_the_chain(run, connect):
    controller = connect(Controller(job(), WAITING))
    write_jobs(run, entry("7"), LINK)
    (run.path / "STOP").write_text("me")
    assert requeue.finish(run.path, 85) == 0
    assert decisions(run)[0]["decision"] == "stopped" and controller.cancelled == ["8"]
    assert (run.path / "STOP").read_text() == "me"


def test_only_links_that_wait_go_on(run, connect):
    """One that is over, and the job itself where it is a link, are no successors."""
    controller = connect(Controller(job(), {"7": job(), "6": Job("6", "COMPLETED"), "3": Job("3", "PENDING")}))
    write_jobs(run, entry("3"), entry("6", "chain", after="5"), entry("7", "chain", after="6"))
    assert requeue.finish(run.path, 85) == 0
    assert decisions(run)[0]["decision"] == "requeue" and controller.requeued == ["7"]


@pytest.mark.parametrize(("most", "used", "verdict"),
    [(2, 1, "requeue"), (2, 2, "budget"), (0, 0, "budget"), ("x", 19, "requeue"), ("x", 20, "budget"),
    (None, 20, "budget")])  # fmt: skip
def test_the_budget_of_a_run_is_its_own(run, connect, most, used, verdict):
    controller = connect(Controller(job(), WAITING if verdict == "budget" else {}))
    write_jobs(run, entry("7", time=50.0), LINK, max_restarts=most)
    lines = [{"event": "start", "nimg": 0, "time": 60.0}]
    lines += [said(8 * i, time=60.0) for i in range(1, used + 1)] + [said(8, time=49.0)] * 5
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run.checkpoints / f"{8 * used + 8:08}.json").touch()
    assert requeue.finish(run.path, 85) == (85 if verdict == "budget" else 0)
    last = decisions(run)[-1]
    assert last["decision"] == verdict and last["counted"] == (verdict == "requeue")
    assert controller.requeued == ([] if verdict == "budget" else ["7"])
    if verdict == "budget":
        assert run.read_status()["state"] == "failed" and "--max-restarts" in run.read_status()["reason"]
        assert controller.cancelled == ["8"]


def test_a_run_that_is_stuck_says_so(run, connect):
    controller = connect(Controller(job()))
    write_jobs(run, entry("7", time=50.0))
    run.attempts.write_text(json.dumps(said(0, time=60.0)) + "\n")
    assert requeue.finish(run.path, 137) == 137
    assert decisions(run)[-1]["decision"] == run.read_status()["state"] == "stuck" and controller.requeued == []


@pytest.mark.parametrize(
    ("status", "code", "verdict", "words"),
    [
        # rank 0 saved and left with its own code; the signal is the one that srun sends to the last ranks
        (dict(state="continue", reason="USR2", code=85), 143, "requeue", "time limit"),
        (dict(state="continue", reason="gone", code=75), 143, "requeue", "gone"),
        (dict(state="continue", reason="USR2", code=85), 75, "requeue", "may pass (USR2)"),  # 75 is no signal
        (dict(state="continue", reason="TERM", code=85), 137, "requeue", "SIGKILL"),  # srun's TERM after a killed rank
        (dict(state="continue", reason="TERM", code=85), 85, "stopped", "TERM"),
        (dict(state="continue", reason="USR2", code=0), 143, "requeue", "SIGTERM"),
        (dict(state="continue", reason="USR2", code=78), 143, "requeue", "SIGTERM"),
        (dict(state="continue", reason="USR2", code=85), 1, "failed", "traceback"),
        (dict(state="running", reason="USR2", code=85), 143, "requeue", "SIGTERM"),  # it did not come to its save
        (dict(state="running", reason="TERM", code=85), 85, "requeue", "asks to go on"),
        (dict(state="continue", reason="TERM", code=85, job_id="6"), 85, "requeue", "asks to go on"),  # another job's
        (dict(state="continue", reason="USR2", code=85, job_id="6"), 143, "requeue", "SIGTERM"),
        (dict(state="continue", reason="USR2", code=85, job_id=None), 143, "requeue", "time limit"),
    ],
)  # fmt: skip
def test_what_rank_0_says_mends_the_code(run, connect, status, code, verdict, words):
    connect(Controller(job()))
    write_jobs(run, entry("7"))
    heartbeat(run, **{"job_id": "7"} | status)
    assert requeue.finish(run.path, code) == (code if verdict == "failed" else 0)
    (line,) = decisions(run)
    assert line["decision"] == verdict and words in line["why"] and line["code"] == code


@pytest.mark.parametrize("code", [0, 78])
@pytest.mark.parametrize(("other", "state"), [("6", "RUNNING"), ("6", "PENDING"), ("6", "COMPLETED"), ("8", "PENDING")])
def test_a_job_that_another_one_kept_out_changes_nothing(run, connect, code, other, state):
    """... but where the other one is over, or is only its own successor, it is this job's end like any."""
    controller = connect(Controller(job(), {other: Job(other, state)}))
    write_jobs(run, entry("6"), entry("7"), LINK)
    heartbeat(run, "6", state="running", reason="")
    assert requeue.finish(run.path, code) == code
    kept_out = (other, state) == ("6", "RUNNING")
    assert bool(decisions(run)) != kept_out and (run.read_status()["state"] == "running") == kept_out
    assert controller.cancelled == (["8"] if other == "8" else [])


@pytest.mark.parametrize(("code", "mine"), [(85, False), (137, False), (1, False), (0, True), (78, True)])
def test_a_job_that_worked_on_the_run_always_decides(run, connect, code, mine):
    connect(Controller(job(), {"6": Job("6", "RUNNING")}))
    write_jobs(run, entry("6"), entry("7"))
    heartbeat(run, "7" if mine else "6", state="running", reason="")
    requeue.finish(run.path, code)
    assert len(decisions(run)) == 1


def test_the_task_of_an_array_is_not_another_job(run, connect, monkeypatch):
    """jobs.json knows it as 40_1, its shell as job 7."""
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    about = {"submitted": [entry("40_1")]}
    connect(Controller(job(), {"40_1": Job("40_1", "RUNNING"), "40_2": Job("40_2", "RUNNING", start=NOW - 1)}))
    assert own_job.job_id() == "40_1"
    assert requeue._at_work_before(about, "40_1") == ""
    assert requeue._at_work_before({"submitted": [entry("40_2")]}, "40_1") == "40_2"
    assert requeue._at_work_before({"submitted": [entry("40_2", "local")]}, "40_1") == ""
    write_jobs(run, *about["submitted"])
    asked = connect(Controller(job(), {}))
    assert requeue.finish(run.path, 85) == 0 and asked.requeued == ["40_1"]  # 7 or 40 would be all of its tasks
    assert decisions(run)[0]["job_id"] == "40_1"


@pytest.mark.parametrize(
    ("seen", "verdict", "state"),
    [
        (job("RUNNING", restarts=2), "requeue", "running"),  # its next start works on the run already
        (job("PENDING", restarts=2), "requeue", "queued"),
        (job("RUNNING"), "stopped", "stopped"),
    ],
)
def test_whose_state_is_written_at_the_end(run, connect, seen, verdict, state):
    connect(Controller(seen))
    write_jobs(run, entry("7"))
    heartbeat(run, state="running", reason="")
    requeue.finish(run.path, 0)
    assert decisions(run)[0]["decision"] == verdict and run.read_status()["state"] == state


@pytest.mark.parametrize(
    ("status", "code", "state", "reason"),
    [
        (dict(state="failed", reason="ConfigError: x"), 78, "failed", "ConfigError: x"),
        (dict(state="diverged", reason="NaN"), 77, "diverged", "NaN"),
        (dict(state="stopped", reason="STOP file"), 0, "stopped", "STOP file"),
        (dict(state="diverged", reason="NaN"), 0, "stopped", "the tasks left as if stopped by a person"),
        (dict(state="saving", reason=""), 78, "failed", "bad configuration or data (exit code 78)"),
    ],
)
def test_the_training_process_own_words_are_better(run, connect, status, code, state, reason):
    connect(Controller(job()))
    write_jobs(run, entry("7"))
    heartbeat(run, **status)
    requeue.finish(run.path, code)
    assert (run.read_status()["state"], run.read_status()["reason"]) == (state, reason)


def test_the_end_is_deaf_to_the_signals_that_end_a_job(run, connect, monkeypatch):
    """Slurm sends TERM to the batch shell's children too; KillWait is the time there is."""
    connect(Controller(job()))
    write_jobs(run, entry("7"))
    ignored = {}
    monkeypatch.setattr(requeue.signal, "signal", lambda number, to: ignored.__setitem__(number, to))
    requeue.finish(run.path, 85)
    assert ignored == dict.fromkeys((signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP), signal.SIG_IGN)


SILENT = SlurmError("no answer from the Slurm controller within 20 s")


@pytest.mark.parametrize(("code", "asked"), [(0, 1), (1, 1), (78, 1), (128, 1), (85, 4), (75, 4), (129, 4), (137, 4)])
def test_a_silent_controller_is_asked_again_where_its_answer_matters(run, connect, code, asked):
    controller = connect(Controller([SILENT, SILENT, SILENT, job("CANCELLED")]))
    write_jobs(run, entry("7"))
    requeue.finish(run.path, code)
    assert controller.asked == asked
    if asked > 1:
        assert decisions(run)[0]["decision"] == "stopped"  # by the answer, not by the code


def test_a_controller_that_stays_silent_is_not_waited_for_without_end(run, connect, capsys):
    controller = connect(Controller(SILENT))
    assert requeue._ask("7", 85) is None
    assert 600 <= run.clock[0] <= 630 and controller.asked > 30 and "no answer" in capsys.readouterr().err
    assert requeue._ask("", 85) is None


def test_without_a_job_id_nothing_is_asked_and_waited_for(run, connect, monkeypatch):
    controller = connect(Controller(SlurmError("'' is not a Slurm job id")))
    controller.refuse = "'' is not a Slurm job id"
    monkeypatch.delenv("SLURM_JOB_ID")
    write_jobs(run)
    heartbeat(run, None, state="continue", reason="USR2", code=85)
    (run.checkpoints / "00000008.json").touch()
    assert requeue.finish(run.path, 85) == 85 and run.clock[0] < 1
    assert run.read_status()["state"] == "failed" and "start it again" in run.read_status()["reason"]


def test_a_requeue_is_tried_until_slurm_has_done_it(run, connect, monkeypatch):
    controller = connect(Controller([job(), SILENT, job(), job("RUNNING", restarts=2)]))
    controller.refuse = "Socket timed out"
    assert requeue._requeue("7", 1) is None  # somebody else was quicker
    assert controller.asked == 4
    connect(Controller([job(), job("PENDING")])).refuse = "Socket timed out"
    assert requeue._requeue("7", 1) is None
    endless = connect(Controller(job()))
    endless.refuse = "Socket timed out"
    begun = run.clock[0]
    assert "Socket timed out" in str(requeue._requeue("7", 1)) and 600 <= run.clock[0] - begun <= 610
    for refusal, which in (
        ("Requested operation is presently disabled for job 7", "yes"),
        ("scontrol: not found", None),
    ):
        controller = connect(Controller(job()))
        controller.refuse = refusal
        monkeypatch.setattr(requeue.shutil, "which", lambda name, which=which: which)
        assert refusal in str(requeue._requeue("7", 1)) and controller.asked == 0  # for good, so nothing is waited for


def test_where_requeueing_is_refused_a_successor_goes_on(run, connect, monkeypatch):
    controller = connect(Controller(job()))
    controller.refuse = "Requested operation is presently disabled for job 7"
    write_jobs(run, entry("7"))
    monkeypatch.setattr(requeue, "queue_successor", lambda run, about, job: {"7": "9"}[job.id])
    assert requeue.finish(run.path, 85) == 0
    first, second = decisions(run)
    assert (first["decision"], first["counted"]) == ("requeue", True)
    assert (second["decision"], second["counted"], second["code"]) == ("chain", False, 85) and "job 9" in second["why"]
    assert run.read_status()["state"] == "queued"

    def refuse(*a):
        raise submit.SubmitError("no more jobs")

    monkeypatch.setattr(requeue, "queue_successor", refuse)
    (run.checkpoints / "00000024.json").touch()
    assert requeue.finish(run.path, 85) == 85
    assert decisions(run)[-1]["decision"] == run.read_status()["state"] == "failed"


# --- the start of a job -----------------------------------------------------------------------------------------------
MARKS = [
    # kind, restart count, marks -> leaves at once?, STOP afterwards
    ("main", 0, "", False, False), ("main", 1, "", False, False), ("chain", 0, "", False, False),
    ("sbatch", 0, "", False, False),
    ("main", 0, "DONE", False, False),  # launch.py queues a finished run only to extend it
    ("sbatch", 0, "DONE", False, False),  # the script itself says that it is done, or goes on
    ("main", 1, "DONE", True, False), ("chain", 0, "DONE", True, False), ("sbatch", 2, "DONE", True, False),
    ("main", 0, "STOP", True, True),  # a stop between submission and start
    ("main", 1, "STOP", True, True), ("chain", 0, "STOP", True, True), ("sbatch", 1, "STOP", True, True),
    ("sbatch", 0, "STOP", False, False),  # a person's start lifts it
    ("chain", 1, "DONE STOP", True, True),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "restarts", "marks", "leaves", "stopped"), MARKS)
def test_whether_a_start_has_something_to_do(run, connect, monkeypatch, capsys, kind, restarts, marks, leaves, stopped):
    connect(Controller(job()))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    write_jobs(run, entry("7", kind))
    for mark in marks.split():
        (run.path / mark).write_text("me")
    assert (requeue.begin(run.path, kind) == "exit 0") == leaves
    shown = capsys.readouterr()
    assert shown.out == "" and ("nothing to do" in shown.err) == leaves
    assert run.stop_requested() == stopped and run.done() == ("DONE" in marks)
    lifted = [line["text"] for line in run.read_attempts() if line["event"] == "stop lifted"]
    assert lifted == (["me"] if "STOP" in marks and not stopped else [])


@pytest.mark.parametrize(("state", "stops"), [("CANCELLED", True), ("COMPLETED", False), ("TIMEOUT", False), ("FAILED",
        False)])  # fmt: skip
def test_a_link_does_not_go_on_behind_a_cancelled_job(run, connect, state, stops):
    connect(Controller(Job("6", state, requeue=True)))
    write_jobs(run, entry("6"), entry("7", "chain", after="6"))
    text = requeue.begin(run.path, "chain")
    assert run.stop_requested() == stops
    assert text == ("exit 0" if stops else "export PREDECESSOR_JOB=6")
    if stops:
        assert "job 6" in (run.path / "STOP").read_text()


def test_only_a_link_follows_a_job(run, connect):
    connect(Controller(Job("6", "CANCELLED", requeue=True)))
    write_jobs(run, entry("6"), entry("7", after="6"))
    assert requeue.begin(run.path, "main") == "" and not run.stop_requested()
    write_jobs(run, entry("6"), entry("7", "chain"))
    assert requeue.begin(run.path, "chain") == "" and not run.stop_requested()
    connect(Controller([SILENT, job()]))
    write_jobs(run, entry("6", "chain", after="5"), entry("7", "chain", after="6; touch x"))
    assert requeue.begin(run.path, "chain") == "export PREDECESSOR_JOB='6; touch x'"


@pytest.mark.parametrize(("kind", "restarts"), [("sbatch", 0), ("main", 0), ("main", 1), ("chain", 0)])
@pytest.mark.parametrize(
    ("other", "leaves"),
    [
        (Job("6", "RUNNING", start=NOW - 10), True),
        (Job("6", "SUSPENDED", start=NOW - 10), True),
        (Job("6", "RUNNING", start=NOW - 5), True),  # in the same second: the one that was queued first
        (Job("8", "RUNNING", start=NOW - 5), False),
        (Job("6", "RUNNING", start=NOW - 4), False),
        (Job("8", "RUNNING", start=NOW - 6), True),
        (Job("6", "PENDING", start=NOW - 10), False),
        (Job("6", "COMPLETING", start=NOW - 10), False),
        (Job("6", "COMPLETED", start=NOW - 10), False),
    ],
)
def test_of_two_jobs_on_a_run_one_works(run, connect, monkeypatch, kind, restarts, other, leaves):
    """... and the other one leaves without a trace: no decision, no STOP lifted or written."""
    mine = Job("7", "RUNNING", start=NOW - 5)
    connect(Controller(job(), {other.id: other, "7": mine}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    write_jobs(run, entry(other.id), entry("7", kind))
    before = sorted(path.name for path in run.path.iterdir())
    if kind == "sbatch":
        (run.path / "STOP").write_text("me")
    assert (requeue.begin(run.path, kind) == requeue.AWAY) == leaves
    if leaves:
        assert run.stop_requested() == (kind == "sbatch") and not run.read_attempts()
        assert sorted(path.name for path in run.path.iterdir() if path.name != "STOP") == before
    # Seen from the other one it is the other way round.
    if other.at_work:
        assert bool(requeue._at_work_before(submit.read_jobs(run.path), other.id)) != leaves


def test_jobs_that_slurm_does_not_tell_of_are_told_apart_by_the_lock(run, connect):
    silent = connect(Controller(job()))
    silent.squeue = lambda ids: (_ for _ in ()).throw(SILENT)
    connect(silent)
    write_jobs(run, entry("6"), entry("7"))
    assert requeue.begin(run.path, "main") != requeue.AWAY  # both begin; one gets the lock
    (run.path / "LOCK").write_text(json.dumps({"host": "n2", "job": "6", "pid": 1}))
    os.utime(run.path / "LOCK", (NOW, NOW))
    for code in (0, 1, 78, 75, 85, 137):
        assert requeue.finish(run.path, code) == code and not run.read_attempts()
    (run.path / "LOCK").write_text(json.dumps({"host": "n2", "job": "7", "pid": 1}))
    os.utime(run.path / "LOCK", (NOW, NOW))
    requeue.finish(run.path, 78)
    assert len(decisions(run)) == 1


@pytest.mark.parametrize(
    ("allowed", "queue", "queued"), [(True, {}, 0), (False, {}, 1), (False, WAITING, 0), (True, WAITING, 0)]
)
def test_a_successor_stands_ready_where_requeueing_is_forbidden(
    run, connect, monkeypatch, capsys, allowed, queue, queued
):
    connect(Controller(job(requeue=allowed), queue))
    write_jobs(run, entry("7"), LINK)
    asked = []
    monkeypatch.setattr(requeue, "queue_successor", lambda *a: asked.append(a) or "9")
    assert requeue.begin(run.path, "main") == "" and len(asked) == queued
    assert capsys.readouterr().out == ""  # env.sh evaluates what is printed
    if queued:
        ((its_run, about, its_job),) = asked
        assert its_run.path == run.path and about["job"] == "stylegan2" and its_job.id == "7"


def test_a_successor_that_cannot_be_queued_does_not_keep_the_job_from_its_work(run, connect, monkeypatch, capsys):
    connect(Controller(job(requeue=False)))
    write_jobs(run, entry("7"))

    def refuse(*a):
        raise SlurmError("no more jobs")

    monkeypatch.setattr(requeue, "queue_successor", refuse)
    assert requeue.begin(run.path, "main") == "" and "no more jobs" in capsys.readouterr().err
    connect(Controller(SILENT))
    assert requeue.begin(run.path, "main") == "" and "no answer" in capsys.readouterr().err


def test_the_log_of_an_sbatch_job_is_found_in_the_run(run, connect, tmp_path):
    out = tmp_path / "slurm-7.out"
    out.write_text("words")
    connect(Controller(job(stdout=str(out))))
    write_jobs(run, entry("7", "sbatch"))
    requeue.begin(run.path, "sbatch")
    assert (run.logs / "7.out").read_text() == "words"
    own = run.logs / "9.out"
    own.write_text("own")
    requeue._link_log(run, Job("9", "RUNNING", stdout=str(own)))
    assert own.read_text() == "own" and not own.is_symlink()
    requeue._link_log(run, Job("10", "RUNNING"))
    requeue._link_log(run, None)
    assert sorted(path.name for path in run.logs.glob("*.out")) == ["7.out", "9.out"]


# --- what sbatch runs, and the successor ------------------------------------------------------------------------------
@pytest.fixture
def sbatch(monkeypatch):
    """subprocess.run that notes its calls in place of sbatch."""
    calls, answer = [], SimpleNamespace(returncode=0, stdout="9;cluster\n", stderr="")

    def run(command, **options):
        calls.append(SimpleNamespace(command=command, env=dict(os.environ), **options))
        return answer

    monkeypatch.setattr(sbatch_module.subprocess, "run", run)
    return SimpleNamespace(calls=calls, answer=answer)


def test_a_successor_gets_what_its_job_had(run, sbatch, monkeypatch):
    write_jobs(run, entry("7", "sbatch"), chain=True)
    for name in ("RANK", "SBATCH_TIMELIMIT", "SLURM_EXPORT_ENV", "SRUN_EXPORT_ENV"):
        monkeypatch.setenv(name, "3")
    about = submit.read_jobs(run.path)
    shown = {
        "Partition": "a100", "TresPerNode": "gres:gpu:a100:4", "TimeLimit": "04:00:00", "Account": "course",
        "QOS": "long", "NumNodes": "2", "NtasksPerN:B:S:C": "4:0:*:*", "CPUs/Task": "3", "MinMemoryNode": "0",
        "Nice": "0", "Features": "(null)", "MailType": "(null)",
    }  # fmt: skip
    mine = job(partition="a100", name="brains", shown=shown)
    assert requeue.queue_successor(run, about, mine) == "9"
    (call,) = sbatch.calls
    assert call.command == [
        "sbatch", "--parsable", "--no-requeue", "--dependency=afterany:7", "--partition=a100", "--gres=gpu:a100:4",
        "--nodes=2", "--cpus-per-task=3", "--time=04:00:00", "--account=course", "--qos=long", "--ntasks-per-node=4",
        "--job-name=brains", f"--output={run.logs}/%j.out", "jobs/stylegan2.sh", "--run", str(run.path),
    ]  # fmt: skip
    assert call.cwd == specs.ROOT and not any(k.startswith(("SLURM_", "SBATCH_", "SRUN_", "RANK")) for k in call.env)
    written = submit.read_jobs(run.path)
    assert (
        written["submitted"]
        == [
            entry("7", "sbatch"),
            {"id": "9", "kind": "chain", "after": "7", "time": NOW},
        ]
        and written["chain"]
    )


def test_a_successor_without_gpus_asks_for_none(run, sbatch):
    write_jobs(run, entry("7", "sbatch"))
    requeue.queue_successor(run, submit.read_jobs(run.path), job(partition="cpu", shown={"TimeLimit": "UNLIMITED"}))
    command = sbatch.calls[0].command
    assert "--gres=none" in command and "--time=UNLIMITED" in command
    assert not any(word.startswith(("--account", "--qos", "--nodes", "--gres=gpu")) for word in command)


def test_a_per_cent_sign_in_the_path_is_no_pattern(tmp_path, sbatch):
    run = RunDir(tmp_path / "50%j")
    run.create()
    write_jobs(run, entry("7"))
    requeue.queue_successor(run, submit.read_jobs(run.path), job())
    (output,) = [word for word in sbatch.calls[0].command if word.startswith("--output=")]
    assert output.endswith("/%j.out") and output.count("%j") == 2 and "50%%j" not in output.replace("50%j", "")


@pytest.mark.parametrize("about", [{}, {"job": "nonsense"}])
def test_a_successor_of_an_unknown_job_is_refused(run, sbatch, about):
    with pytest.raises(SlurmError):
        requeue.queue_successor(run, about, job())
    with pytest.raises(SlurmError):
        requeue.queue_successor(run, {"job": "vae"}, None)
    assert not sbatch.calls


def test_a_refused_successor_is_not_written_down(run, sbatch):
    write_jobs(run, entry("7"))
    sbatch.answer.returncode, sbatch.answer.stderr = 1, "sbatch: error: Batch job submission failed: Invalid account"
    with pytest.raises(SlurmError, match=r"^Invalid account"):
        requeue.queue_successor(run, submit.read_jobs(run.path), job())
    assert submit.read_jobs(run.path)["submitted"] == [entry("7")]


def test_sbatch_comes_to_the_run_of_launch_py(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_PARTITION", "comp3710")
    monkeypatch.setattr(sites.socket, "gethostname", lambda: "login")
    seen = []
    on = sites.Site.on
    monkeypatch.setattr(
        sites.Site, "on", lambda self, partition: seen.append((self.name, partition)) or on(self, partition)
    )
    half = Partition("comp3710", True, None, None, 1, 4, 1, None, False)
    monkeypatch.setattr(slurm, "partitions", lambda: {"comp3710": half, "a100-test": half})
    monkeypatch.chdir(tmp_path)
    typed, path = ["--data=phantom:48", "--lr", "0.001", "--run", "a b"], str(tmp_path / "a b")
    for more in ([], ["--override"]):  # which is of this job alone, so it is said to the script
        config, text = requeue.begin_sbatch("stylegan2", [*typed, *more])
        assert (config.run, config.preset, config.lr, config.data) == (path, "adni256", 0.001, "phantom:48")
        assert set(seen) == {("rangpur", "comp3710")}
        shown = subprocess.run(
            ["bash", "-c", f'{text}\nprintf "%s\\n" "$RUN" "${{COMMAND[@]}}"'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        assert shown == [path, str(ROOT / "train_gan.py"), "--run", path, *more]
    monkeypatch.setattr(slurm, "partitions", lambda: (_ for _ in ()).throw(SILENT))
    config, _ = requeue.begin_sbatch("vae", ["--data", "phantom", "--run", str(tmp_path / "v")])
    assert config.run == str(tmp_path / "v")
    assert seen[-1] == ("generic", "comp3710")
    with pytest.raises(ConfigError, match="stylegan2, vae, diffusion"):
        requeue.begin_sbatch("gan", [])


def of_run(run: RunDir, *flags: str) -> specs.VaeConfig:
    return parsing.parse_config(specs.VaeConfig, ["--run", str(run.path), "--data", "phantom:48", *flags])


def test_an_sbatch_job_enters_itself_once(run, connect, monkeypatch):
    connect(Controller(job()))
    monkeypatch.setattr(requeue, "_keep_diff", lambda path: None)
    assert requeue.record_sbatch("vae", of_run(run, "--batch", "8")) == "sbatch"
    about = submit.read_jobs(run.path)
    assert about == {
        "submitted": [entry("7", "sbatch", NOW)], "job": "vae", "max_restarts": 20, "chain": False,
    }  # fmt: skip
    assert of_run(run).batch == 8  # config.json is what every process of the run reads
    assert requeue.record_sbatch("vae", of_run(run, "--batch", "16")) == "sbatch"  # the same job after a requeue
    assert submit.read_jobs(run.path) == about and of_run(run).batch == 8
    write_jobs(run, entry("6"), entry("7", "chain", after="6"), max_restarts=3, chain=True)
    assert requeue.record_sbatch("vae", of_run(run, "--keep", "9")) == "chain" and of_run(run).keep == 2
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.raises(ConfigError, match="--batch 8 -> 4"):
        requeue.record_sbatch("vae", of_run(run, "--batch", "4"))
    assert [e["id"] for e in submit.read_jobs(run.path)["submitted"]] == ["6", "7"] and of_run(run).batch == 8
    assert requeue.record_sbatch("vae", of_run(run, "--batch", "4", "--override")) == "sbatch"
    after = submit.read_jobs(run.path)
    assert (after["max_restarts"], after["chain"], of_run(run).batch, of_run(run).override) == (3, True, 4, False)
    assert [e["id"] for e in after["submitted"]] == ["6", "7", "9"]


def test_an_sbatch_job_on_a_live_run_leaves_its_record_alone(run, connect):
    connect(Controller(job(), {"6": Job("6", "RUNNING", start=NOW - 60)}))
    write_jobs(run, entry("6"))
    run.write_config(asdict(of_run(run, "--keep", "3")))
    assert requeue.record_sbatch("vae", of_run(run, "--keep", "4")) == ""
    assert of_run(run).keep == 3 and len(submit.read_jobs(run.path)["submitted"]) == 1


def test_what_differs_from_the_commit_is_kept(run, sbatch):
    sbatch.answer.stdout = "diff of the code"
    requeue._keep_diff(run.path)
    assert (run.path / "code.diff").read_text() == "diff of the code"
    assert sbatch.calls[0].command == ["git", "-C", str(specs.ROOT), "diff", "HEAD"]
    sbatch.answer.stdout, sbatch.answer.returncode = "", 128  # no repository
    requeue._keep_diff(run.path)
    assert (run.path / "code.diff").read_text() == "diff of the code"


# --- the command line that jobs/env.sh uses ---------------------------------------------------------------------------
def test_the_calls_of_env_sh(run, monkeypatch, capsys, tmp_path):
    called, config = [], of_run(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(requeue, "finish", lambda *a: called.append(a) or 85)
    monkeypatch.setattr(requeue, "begin", lambda *a: called.append(a) or "export X=1")
    monkeypatch.setattr(requeue, "begin_sbatch", lambda *a: called.append(a) or (config, "RUN=r"))
    monkeypatch.setattr(requeue, "record_sbatch", lambda *a: called.append(a) or "chain")
    assert requeue.main(["run", "--code", "85"]) == 85 and called.pop() == (tmp_path / "run", 85)
    assert requeue.main(["run", "--code", "0"]) == 85 and called.pop() == (tmp_path / "run", 0)
    assert requeue.main(["--begin", "run"]) == 0 and called.pop() == (tmp_path / "run", "main")
    assert capsys.readouterr().out == "export X=1\n"
    assert requeue.main(["--begin", "--job", "vae", "--", "--batch", "8", "--", "x"]) == 0
    assert called == [("vae", ["--batch", "8", "--", "x"]), ("vae", config), (run.path, "chain")]
    assert shlex.split(capsys.readouterr().out) == ["RUN=r", "export", "X=1"]
    monkeypatch.setattr(requeue, "begin", lambda *a: "exit 0")
    assert requeue.main(["--begin", "--job", "vae", "--"]) == 0
    assert capsys.readouterr().out == "exit 0\n"  # and no command

    def refuse(*a):
        raise ConfigError("wrong")

    monkeypatch.setattr(requeue, "begin_sbatch", refuse)
    assert requeue.main(["--begin", "--job", "vae", "--"]) == 78
    assert capsys.readouterr() == ("", "error: wrong\n")
