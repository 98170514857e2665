"""The one place that decides whether a run goes on: every way in which its tasks can leave, without a cluster."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from jobs.cluster import requeue, slurm
from jobs.cluster.decide import Decision, decide, within_budget
from jobs.cluster.slurm import Job, SlurmError
from jobs.run.rundir import RunDir

NOW = 1_800_000_000.0


def job(state: str = "RUNNING", **fields) -> Job:
    """A job that began an hour ago and has three to go."""
    return Job(id="7", state=state, **{"start": NOW - 3600, "end": NOW + 3 * 3600, "requeue": True, **fields})


def verdict(
    code: int, seen: Job | None = None, reason: str = "", done: bool = False, stop_file: bool = False, restarts: int = 0
):
    return decide(code, done, stop_file, seen or job(), restarts, reason, NOW)


def test_the_end_of_a_run():
    assert verdict(0, done=True).verdict == "done"
    for code in (85, 75, 137, 143):  # the limit, or a scancel, came while the last plot was drawn
        assert verdict(code, done=True).verdict == verdict(code, job("COMPLETING"), "TERM", done=True).verdict == "done"
    assert verdict(78, done=True).verdict == "failed"  # wrong flags for a finished run
    assert verdict(0, stop_file=True).verdict == "stopped"
    assert verdict(0).verdict == "stopped"


@pytest.mark.parametrize("code", [85, 75, 137, 139, 143, 140])
def test_a_stop_file_outweighs_every_reason_to_go_on(code):
    assert verdict(code, stop_file=True).verdict == "stopped"


@pytest.mark.parametrize("code", [1, 2, 3, 77, 78, 126, 127])
def test_errors_are_not_repeated(code):
    assert verdict(code).verdict == "failed"
    assert verdict(code, job(preempt_time=NOW)).verdict == "failed"


@pytest.mark.parametrize("reason", ["USR1", "USR2", "time limit"])
def test_a_time_limit_costs_a_restart(reason):
    found = verdict(85, reason=reason)
    assert found.verdict == "requeue" and found.counted and "time limit" in found.why


def test_the_limit_reached_before_the_save():
    """Slurm is ending the job; the task was killed or has just saved."""
    ending = job("COMPLETING", reason="TimeLimit", end=NOW)
    for code in (85, 137):
        found = verdict(code, ending, "TERM")
        assert found.verdict == "requeue" and found.counted and "time limit" in found.why


@pytest.mark.parametrize("code", [75, 134, 137, 139])
def test_crashes_cost_a_restart(code):
    found = verdict(code)
    assert found.verdict == "requeue" and found.counted
    assert code == 75 or "SIG" in found.why


@pytest.mark.parametrize(
    ("code", "reason"),
    [(85, "USR2"), (85, "TERM"), (137, "")],
)
def test_a_pre_emption_costs_nothing(code, reason):
    found = verdict(code, job(preempt_time=NOW - 3), reason)
    assert found.verdict == "requeue" and not found.counted and not found.by_slurm


def test_the_pre_emption_of_an_earlier_attempt_is_over():
    """Slurm may still show it, but this attempt began after it."""
    found = verdict(85, job("COMPLETING", preempt_time=NOW - 7200), "TERM")
    assert found.verdict == "stopped"


def test_requeued_by_slurm_or_by_hand_costs_nothing_and_is_not_repeated():
    found = verdict(85, job("COMPLETING", restarts=3), "TERM", restarts=2)
    assert found.verdict == "requeue" and found.by_slurm and not found.counted


@pytest.mark.parametrize("code", [0, 1, 137, 143])
def test_a_node_that_failed_under_a_living_batch_shell(code):
    """Only the node's daemon died: srun gives up, with 0 even, while Slurm has requeued the job or will not."""
    found = verdict(code, job("PENDING", restarts=1), reason="")
    assert found.verdict == "requeue" and found.by_slurm and not found.counted
    found = verdict(code, job("NODE_FAIL", requeue=False))
    assert found.verdict == "requeue" and not found.counted
    assert verdict(code, job("PENDING", restarts=1), stop_file=True).verdict == "stopped"


@pytest.mark.parametrize("code", [85, 75, 137, 143])
@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED"])
def test_scancel_ends_the_run(code, state):
    assert verdict(code, job(state, end=NOW), "TERM").verdict == "stopped"


def test_term_from_a_person_ends_the_run_but_not_close_to_the_limit():
    assert verdict(85, reason="TERM").verdict == "stopped"
    assert verdict(85, job(end=NOW + 20), "TERM").verdict == "requeue"
    # srun ends the others when a rank was killed: their TERM is nobody's wish, and the code is the killed rank's.
    assert verdict(137, reason="TERM").verdict == "requeue"


def test_a_silent_controller_leaves_it_to_the_code():
    for code in (85, 75, 137):
        assert decide(code, False, False, None, 0, "TERM", NOW).verdict == "requeue"


# --- budget and progress ----------------------------------------------------------------------------------------------
LIMIT = Decision("requeue", "the time limit was reached", counted=True)


def line(nimg: int, counted: bool = True, decision: str = "requeue", time: float = 10.0) -> dict:
    return {"decision": decision, "nimg": nimg, "counted": counted, "time": time}


def test_two_attempts_without_a_new_image_are_stuck():
    assert within_budget(LIMIT, 8, [], 0, 20) == LIMIT
    assert within_budget(LIMIT, 0, [], 0, 20) == LIMIT  # the first may be unlucky
    assert within_budget(LIMIT, 0, [line(0)], 0, 20).verdict == "stuck"
    assert within_budget(LIMIT, 8, [line(8)], 0, 20) == LIMIT
    assert within_budget(LIMIT, 8, [line(8), line(8)], 0, 20).verdict == "stuck"
    assert within_budget(LIMIT, 16, [line(8), line(8)], 0, 20) == LIMIT


def test_pre_emptions_neither_make_a_run_stuck_nor_cost_anything():
    free = [line(8, counted=False)] * 50
    assert within_budget(LIMIT, 8, [line(8), *free], 0, 20) == LIMIT
    assert within_budget(LIMIT, 16, free, 0, 1) == LIMIT
    preempted = Decision("requeue", "the job was pre-empted")
    assert within_budget(preempted, 8, [line(8), line(8), line(8)], 0, 1) == preempted


def test_the_budget():
    used = [line(8 * i) for i in range(1, 4)]
    assert within_budget(LIMIT, 100, used, 0, 4) == LIMIT
    assert within_budget(LIMIT, 100, used, 0, 3).verdict == "budget"
    assert within_budget(LIMIT, 100, [], 0, 0).verdict == "budget"
    assert within_budget(LIMIT, 100, [line(8, decision="chain")], 0, 1).verdict == "budget"


def test_a_persons_new_start_gives_a_new_budget():
    old = [line(8), line(8), line(8, decision="stuck")]
    assert within_budget(LIMIT, 8, old, 11.0, 1) == LIMIT
    assert within_budget(LIMIT, 8, [*old, line(8, time=12.0)], 11.0, 20).verdict == "stuck"


def test_only_requeues_are_weighed():
    for found in (Decision("failed", ""), Decision("stopped", ""), Decision("done", "")):
        assert within_budget(found, 0, [line(0), line(0)], 0, 0) is found


# --- the end of a job, with a controller that is not there ------------------------------------------------------------
class Controller:
    """In place of Slurm's commands: says what it is told to say and keeps what was asked of it."""

    def __init__(self, shown: Job | None, refuse: str = ""):
        self.shown, self.refuse, self.requeued, self.cancelled = shown, refuse, [], []

    def show_job(self, job_id):
        return self.shown

    def squeue(self, ids):
        return {i: Job(id=i, state="PENDING" if i == "8" else "RUNNING") for i in ids}

    def requeue(self, job_id):
        if self.refuse:
            raise SlurmError(self.refuse)
        self.requeued.append(job_id)

    def cancel(self, job_id):
        self.cancelled.append(job_id)


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(requeue.signal, "signal", lambda *a: None)
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def end(run: RunDir, code: int, controller: Controller, monkeypatch, **about) -> int:
    (run.path / "jobs.json").write_text(json.dumps({"job": "stylegan2", "argv": [], "submitted": [], **about}))
    for name in ("show_job", "squeue", "requeue", "cancel"):
        monkeypatch.setattr(slurm, name, getattr(controller, name))
    return requeue.finish(run.path, code)


def test_requeue_is_written_down_before_slurm_kills_this_process(run, monkeypatch):
    controller = Controller(job())
    noted = []
    controller.requeue = lambda job_id: noted.extend(run.read_attempts())
    assert end(run, 85, controller, monkeypatch) == 0
    assert [line["decision"] for line in noted] == ["requeue"]
    assert run.read_status()["state"] == "queued"


def test_the_end_of_a_start_that_slurm_gave_up_leaves_the_next_ones_state_alone(run, monkeypatch):
    run.status(state="running", reason="")  # by the next start, on another node
    assert end(run, 0, Controller(job("RUNNING", restarts=1)), monkeypatch) == 0
    assert run.read_status()["state"] == "running"
    assert [line["decision"] for line in run.read_attempts()] == ["requeue"]


def test_a_stop_cancels_the_successor_and_holds_for_it(run, monkeypatch):
    controller = Controller(job("COMPLETING", end=NOW))
    links = [{"id": "7", "kind": "sbatch", "time": 1.0}, {"id": "8", "kind": "chain", "after": "7", "time": 2.0}]
    assert end(run, 85, controller, monkeypatch, submitted=links) == 0
    assert controller.cancelled == ["8"] and run.stop_requested()


def test_where_requeueing_is_refused_at_the_end_a_successor_is_queued(run, monkeypatch):
    controller = Controller(job(), refuse="Requested operation is presently disabled for job 7")
    monkeypatch.setattr(requeue, "queue_successor", lambda *a: "8")
    assert end(run, 85, controller, monkeypatch) == 0
    assert [line["decision"] for line in run.read_attempts()] == ["requeue", "chain"]

    def refuse(*a):
        raise SlurmError("no more jobs")

    (run.checkpoints / "00000008.json").touch()
    monkeypatch.setattr(requeue, "queue_successor", refuse)
    assert end(run, 85, controller, monkeypatch) == 85
    assert run.read_status()["state"] == "failed" and "no more jobs" in run.read_status()["reason"]


def test_a_job_that_found_the_run_locked_leaves_its_state_alone(run, monkeypatch, capsys):
    run.status(state="running", reason="")  # by job 7, of which there is another
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert end(run, 78, Controller(job()), monkeypatch, submitted=[{"id": "7", "kind": "main", "time": 1.0}]) == 78
    assert run.read_status()["state"] == "running" and not run.read_attempts()
    assert "job 7 works on this run" in capsys.readouterr().out


def test_a_job_whose_flags_are_refused_takes_its_successor_along(run, monkeypatch):
    """The successor would be refused in the same way, with another behind it, without end."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    run.status(state="queued", reason="")  # the last word of an earlier job
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    controller = Controller(job(requeue=False))
    chain = [{"id": "7", "kind": "main", "time": 1.0}, {"id": "8", "kind": "chain", "after": "7", "time": 2.0}]
    assert end(run, 78, controller, monkeypatch, submitted=chain) == 78
    assert run.read_attempts()[-1]["decision"] == "failed" and controller.cancelled == ["8"]


def test_the_training_process_own_words_on_a_failure_stay(run, monkeypatch):
    run.status(state="diverged", reason="the losses are NaN")
    assert end(run, 77, Controller(job()), monkeypatch) == 77
    assert run.read_status()["state"] == "diverged" and run.read_status()["reason"] == "the losses are NaN"


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [(85, "USR2", "time limit"), (75, "PeerLost: another rank is gone", "another rank is gone")],
)
def test_the_signal_that_srun_sends_to_the_last_ranks_is_not_the_reason(run, monkeypatch, code, reason, words):
    run.status(state="continue", reason=reason, code=code)
    assert end(run, 143, Controller(job()), monkeypatch) == 0
    (line,) = run.read_attempts()
    assert line["decision"] == "requeue" and words in line["why"] and line["code"] == 143 and line["counted"]


def test_the_term_that_srun_sends_after_a_killed_rank_is_no_persons_stop(run, monkeypatch):
    run.status(state="continue", reason="TERM", code=85)  # rank 0 had the time to save
    assert end(run, 137, Controller(job()), monkeypatch) == 0
    (line,) = run.read_attempts()
    assert line["decision"] == "requeue" and "SIGKILL" in line["why"]


def test_a_full_disk_does_not_keep_a_job_from_its_requeue(run, monkeypatch, capsys):
    controller = Controller(job())

    def full(*args, **fields):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDir, "note", full)
    monkeypatch.setattr(requeue.submit, "atomic_write", full)
    assert end(run, 85, controller, monkeypatch) == 0
    assert controller.requeued == ["7"]
    assert "No space left" in capsys.readouterr().err


def test_without_slurms_commands_on_the_node_nothing_is_waited_for(run, monkeypatch, tmp_path):
    """No scontrol, no sbatch: the run says at once that it needs a new start, and the job does not idle for minutes."""
    monkeypatch.setenv("PATH", str(tmp_path))
    run.status(state="continue", reason="USR2", code=85)
    (run.checkpoints / "00000008.json").touch()
    (run.path / "jobs.json").write_text(json.dumps({"job": "stylegan2", "argv": [], "submitted": []}))
    monkeypatch.setattr(requeue.time, "sleep", lambda seconds: pytest.fail("it waits"))
    assert requeue.finish(run.path, 85) == 85
    assert run.read_status()["state"] == "failed" and "start it again" in run.read_status()["reason"]


@pytest.mark.parametrize("words", [["run"], ["--begin"], ["run", "--begin", "--job", "x"], ["--code", "1"]])
def test_usage(words):
    with pytest.raises(SystemExit) as error:
        requeue.main(words)
    assert error.value.code == 2


def test_an_unknown_job_name(capsys):
    assert requeue.main(["--begin", "--job", "stylegan3", "--", "--batch", "8"]) == 78
    assert "stylegan2" in capsys.readouterr().err


def test_env_sh_outside_of_slurm_says_what_to_do(tmp_path):
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["bash", "jobs/stylegan2.sh"], cwd=root, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and "sbatch jobs/stylegan2.sh" in done.stderr


def test_the_scripts_are_what_slurm_and_unix_take():
    root = Path(__file__).resolve().parents[2]
    for script in root.glob("jobs/*.sh"):
        text = script.read_bytes()
        assert b"\r" not in text, script
        assert b"--mem" not in text.replace(b"No --mem", b""), script
        if b"#SBATCH" in text:
            assert text.startswith(b"#!/bin/bash\n#SBATCH"), script
            assert b"exec srun" not in text
