"""An unkind cluster, seen from the login node and the batch shell: silence, full disks, bad nodes."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
from dataclasses import replace

import pytest

from data.files import process_start
from jobs.cluster import decide, nodes, plan, queueing, requeue, slurm, status, steer, submit
from jobs.cluster.decide import Decision, bad_nodes, within_budget
from jobs.cluster.options import Options
from jobs.cluster.slurm import FIELD, Job, NoAnswer, SlurmError
from jobs.config import kinds, parsing
from jobs.config.specs import ConfigError, GanConfig, VaeConfig
from jobs.run import own_job
from jobs.run.find import run_folders
from jobs.run.lock import process_space
from jobs.run.resume import compare_with_run, write_config
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError

NOW = 1_800_000_000.0


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    run = RunDir(tmp_path / "brains")
    run.create()
    return run


def tell(run: RunDir, state: str = "queued", *ids: str) -> None:
    submitted = [{"id": i, "kind": "main", "time": 1.0} for i in ids or ("42",)]
    (run.path / "jobs.json").write_text(json.dumps({"job": "stylegan2", "submitted": submitted}))
    (run.path / "status.json").write_text(json.dumps({"state": state, "updated": 1.0}))


# --- a job's own name -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({}, ""),
        ({"JOB_ID": "7"}, "7"),
        ({"JOB_ID": "40", "ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "3"}, "40_3"),  # the last task
        ({"JOB_ID": "41", "ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "0"}, "40_0"),
        ({"JOB_ID": "41", "ARRAY_JOB_ID": "40"}, "41"),
        ({"ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "0"}, ""),
    ],
)
def test_a_task_of_an_array_names_itself(run, monkeypatch, variables, name):
    for key, value in variables.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert own_job.job_id() == name
    run.lock()
    assert json.loads((run.path / "LOCK").read_text())["job"] == (name or None)
    run.unlock()
    run.attempt_start(nimg=0)
    run.status(state="running")
    assert run.read_attempts()[-1]["job_id"] == run.read_status()["job_id"] == (name or None)


@pytest.mark.parametrize(("seen", "forgets"), [(Job("7", "RUNNING"), True), (Job("40_1", "RUNNING", array=True), False),
    (Job("40", "PENDING", array=True), False), (None, False)])  # fmt: skip
def test_a_job_that_was_queued_inside_a_task_is_no_task(run, monkeypatch, seen, forgets):
    for key, value in {"JOB_ID": "7", "ARRAY_JOB_ID": "40", "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    monkeypatch.setattr(slurm, "show_job", {"7": seen}.get)
    text = requeue._forget_the_array()
    assert text == ("unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID" if forgets else "")
    assert own_job.job_id() == ("7" if forgets else "40_1")


# --- silence ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "silent"),
    [
        ("slurm_load_jobs error: Unable to contact slurm controller (connect failure)", True),
        ("slurm_load_jobs error: Socket timed out on send/recv operation", True),
        ("slurm_load_jobs error: Zero Bytes were transmitted or received", True),
        ("Batch job submission failed: Slurm backup controller in standby mode", True),
        ("Invalid job id specified", False),
        ("Invalid account or account/partition combination specified", False),
    ],
)
def test_silence_is_told_from_a_refusal(monkeypatch, words, silent):
    done = subprocess.CompletedProcess([], 1, "", f"squeue: error: {words}\n")
    monkeypatch.setattr(slurm.subprocess, "run", lambda *a, **k: done)
    with pytest.raises(SlurmError) as raised:
        slurm._run(["squeue"])
    assert isinstance(raised.value, NoAnswer) == silent


@pytest.mark.parametrize(("error", "absent"), [
    (SlurmError("scontrol ping: Slurmctld(primary) at vm is DOWN"), False), (NoAnswer("no answer"), False),
    (SlurmError("fatal: Could not establish a configuration source"), True), (None, False),
])  # fmt: skip
def test_a_controller_that_is_down_is_no_missing_slurm(monkeypatch, error, absent):
    def ping(command, **how):
        if error:
            raise error
        return ""

    monkeypatch.setattr(slurm, "_run", ping)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert slurm.absent() == absent
    if not absent:
        monkeypatch.setattr(slurm, "partitions", lambda: (_ for _ in ()).throw(NoAnswer("no answer; try again")))
        with pytest.raises(NoAnswer, match="nothing queued: no answer; try again"):
            queueing.slurm_partitions(Options(job="vae"))
        assert queueing.slurm_partitions(Options(job="vae", dry_run=True)) is None
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert slurm.absent()


@pytest.mark.parametrize("state", ["queued", "running", "starting", "continue", "failed", "stopped"])
def test_nothing_is_queued_while_slurm_is_silent(run, monkeypatch, state):
    tell(run, state)
    monkeypatch.setattr(status, "all_jobs", status.Silent)
    config = replace(GanConfig(), run=str(run.path))
    its = plan.Plan("stylegan2", config, run.path, site=None, local=False)
    with pytest.raises(NoAnswer, match="try again"):
        queueing.already(its, Options(job="stylegan2"))


def test_a_run_of_which_nothing_is_known_is_not_called_unqueued(run, monkeypatch):
    tell(run, "running")
    monkeypatch.setattr(status, "all_jobs", status.Silent)
    its = plan.Plan("stylegan2", GanConfig(), run.path.parent / "next", site=None, local=False, after=str(run.path))
    with pytest.raises(NoAnswer, match="whether brains has a job is not known"):
        queueing.dependency_of(its, Options(job="stylegan2"))
    assert queueing.dependency_of(its, Options(job="stylegan2", dry_run=True))[0] == "afterany:JOB_OF_brains"


# --- stopping ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def cancelled(monkeypatch) -> list:
    found: list = []
    monkeypatch.setattr(slurm, "cancel", found.append)
    monkeypatch.setattr(steer.os, "kill", lambda pid, number: found.append((pid, number)))
    return found


@pytest.mark.parametrize(("now", "code"), [(False, 0), (True, 75)])
@pytest.mark.parametrize("state", ["queued", "running", "continue"])
def test_a_stop_is_written_while_slurm_is_silent(run, monkeypatch, capsys, cancelled, now, code, state):
    tell(run, state)
    monkeypatch.setattr(status, "all_jobs", status.Silent)
    assert steer.stop_run(run.path, now) == code
    assert run.stop_requested() and not cancelled and "Slurm does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(("now", "code", "said"), [(False, 0, "saves and stops"), (True, 75, "Slurm does not answer")])
def test_a_job_that_cannot_be_ended_now_is_not_said_to_be(run, monkeypatch, capsys, cancelled, now, code, said):
    tell(run, "running")
    (run.path / "LOCK").write_text(json.dumps({"host": "n9", "pid": 1, "job": "42"}))
    monkeypatch.setattr(status, "all_jobs", status.Silent)
    assert steer.stop_run(run.path, now) == code and run.stop_requested() and said in capsys.readouterr().out


@pytest.mark.parametrize(("slurms", "state"), [("COMPLETED", "stopped"), ("NODE_FAIL", "stopped"), (None, "starting")])
def test_the_lock_of_a_job_that_is_over_is_nobodys(run, monkeypatch, capsys, slurms, state):
    """Left by a node that crashed a moment ago, the job being decided elsewhere. What Slurm does not know may live."""
    tell(run, "stopped")
    (run.path / "LOCK").write_text(json.dumps({"host": "n9", "pid": 1, "job": "42"}))
    jobs = {"42": Job("42", slurms)} if slurms else {}
    assert status.view_run(run.path, jobs).state == state
    monkeypatch.setattr(status, "all_jobs", lambda: jobs)
    steer.stop_run(run.path, False)
    assert ("is not running" in capsys.readouterr().out) == bool(slurms) != run.stop_requested()


def full(*anything):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("slurms", ["RUNNING", "PENDING"])
def test_a_full_disk_does_not_keep_a_job_running(run, monkeypatch, capsys, cancelled, slurms):
    tell(run, "running")
    monkeypatch.setattr(status, "all_jobs", lambda: {"42": Job("42", slurms)})
    monkeypatch.setattr(steer, "atomic_write", full)
    assert steer.stop_run(run.path, False) == 0
    assert cancelled == ["42"]
    out = capsys.readouterr().out
    assert "No space left on device" in out and "ended now" in out


def test_a_full_disk_does_not_keep_a_process_of_this_machine(run, monkeypatch, cancelled):
    pid = os.getpid()
    holder = {"host": socket.gethostname(), "space": process_space(), "pid": pid, "start": process_start(pid)}
    (run.path / "LOCK").write_text(json.dumps(holder))
    monkeypatch.setattr(status, "all_jobs", lambda: None)
    monkeypatch.setattr(steer, "atomic_write", full)
    assert steer.stop_run(run.path, False) == 0 and cancelled == [(pid, 15)]


def test_somebody_elses_run_is_theirs_to_stop(run, monkeypatch, cancelled):
    (run.path / "LOCK").write_text(json.dumps({"host": "n9", "pid": 1}))
    monkeypatch.setattr(status, "all_jobs", dict)
    monkeypatch.setattr(steer, "atomic_write", full)
    with pytest.raises(RunDirError, match="No space left on device"):
        steer.stop_run(run.path, False)
    monkeypatch.setenv("LOGNAME", "me")
    monkeypatch.setattr(steer.os, "getuid", lambda: 4242)
    os.chown(run.path, 65534, -1)
    with pytest.raises(RunDirError, match="it belongs to nobody, so it is not stopped; only they can stop it"):
        steer.stop_run(run.path, False)
    assert not cancelled


# --- whose STOP holds -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("written", "holds"), [(NOW - 60, False), (NOW + 60, True)])
def test_a_stop_is_judged_by_the_time_of_the_sbatch(run, monkeypatch, written, holds):
    """Not by the time at which the job began, which may be hours later."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    tell(run, "stopped", "7")
    (run.path / "STOP").write_text("me")
    os.utime(run.path / "STOP", (written, written))
    monkeypatch.setattr(
        slurm, "show_job", lambda job: Job("7", "RUNNING", submitted=NOW, start=NOW + 3600, requeue=True)
    )
    monkeypatch.setattr(slurm, "squeue", lambda ids: {})
    assert (requeue.begin(run.path, "sbatch") == requeue.LEAVE) == holds
    assert run.stop_requested() == holds


@pytest.mark.parametrize(
    ("dated", "ahead", "holds"), [(50, 0, False), (150, 0, True), (150, 100, False), (50, -100, True)]
)
def test_a_stop_is_dated_by_another_clock(run, monkeypatch, dated, ahead, holds):
    """The file server's, which may be minutes off."""
    (run.path / "STOP").write_text("me")
    os.utime(run.path / "STOP", (NOW + dated, NOW + dated))
    monkeypatch.setattr(RunDir, "_clock_ahead", lambda self: float(ahead))
    assert run.stop_holds(NOW + 100) == holds == run.stop_requested()


# --- bad nodes --------------------------------------------------------------------------------------------------------
def died(node: str, nimg: int = 8, time: float = 100.0) -> dict:
    return {"decision": "requeue", "counted": True, "nimg": nimg, "time": time, "faulty_node": node}


def test_a_node_is_bad_from_its_second_fault_on():
    assert bad_nodes([died("n1")], 0) == [] and bad_nodes([died("n1"), died("n2")], 0) == []
    assert bad_nodes([died("n1"), {"decision": "requeue", "time": 1.0}, died("n2"), died("n1")], 0) == ["n1"]
    assert bad_nodes([died("n1", time=5.0), died("n1")], 50) == []  # a person has started it since
    assert bad_nodes([{"faulty_node": 3}, {"faulty_node": 3}, {"faulty_node": ""}, {"faulty_node": ""}], 0) == []


def test_only_faults_are_a_nodes():
    job = Job("7", "RUNNING", start=NOW - 60, end=NOW + 9999)
    faults = {code: decide.decide(code, False, False, job, 0, "USR2", NOW).fault for code in (75, 85, 134, 137, 143)}
    assert faults == {75: True, 85: False, 134: True, 137: True, 143: False}
    assert decide.decide(1, False, False, replace(job, state="NODE_FAIL"), 0, "", NOW).fault
    assert not decide.decide(137, False, False, replace(job, preempt_time=NOW), 0, "", NOW).fault


@pytest.mark.parametrize(
    ("lines", "node", "avoid", "verdict"),
    [
        ([died("n1", 0)], "n1", (), "stuck"),  # there is no other node
        ([died("n1", 0)], "n1", ("n1",), "requeue"),
        ([died("", 0), died("n1", 0)], "n1", ("n1",), "requeue"),
        ([died("n1", 0), died("n1", 0), died("n2", 0)], "n2", ("n1",), "stuck"),
        ([died("n1", 0), died("n1", 0), died("n2", 0)], "n2", ("n1", "n2"), "stuck"),  # it is not the nodes
        ([died("n1", 0), died("n1", 0)], "n2", ("n1",), "requeue"),
    ],
)
def test_two_faults_on_one_node_are_tried_elsewhere_before_the_run_is_stuck(lines, node, avoid, verdict):
    decision = Decision("requeue", "killed", counted=True, fault=True, node=node)
    assert within_budget(decision, 0, lines, 0, 20, avoid).verdict == verdict


@pytest.mark.parametrize(
    ("gres", "excluded", "bad", "avoid"),
    [
        ("gpu:a100:1", "", ["n1"], ["n1"]),
        ("gpu:a100:1", "n2", ["n1"], []),  # none would be left
        ("gpu:1", "n2", ["n1"], ["n1", "n2"]),  # n3 has other GPUs
        ("", "n[2-3]", ["n1"], ["n1", "n2", "n3"]),
        ("gpu:a100:1", "", [], []),
        ("gpu:h100:1", "", ["n3"], []),
    ],
)
def test_the_nodes_that_the_next_start_avoids(monkeypatch, gres, excluded, bad, avoid):
    rows = [("n1", "gpu:a100:4"), ("n2", "gpu:a100:4"), ("n3", "gpu:h100:4"), ("n4", "(null)")]

    def answer(command, **how):
        if command[:3] == ["scontrol", "show", "hostnames"]:
            return {"n2": "n2\n", "n[2-3]": "n2\nn3\n"}[command[3]]
        assert command[0] == "sinfo" and command[command.index("-p") + 1] == "a100"
        return "".join(f"{FIELD.join(row)}\n" for row in rows)

    monkeypatch.setattr(slurm, "_run", answer)
    assert nodes.to_avoid(Job("7", "RUNNING", partition="a100", gres=gres, excluded=excluded), bad) == avoid


# --- what is done, and what is whose ----------------------------------------------------------------------------------
def test_a_run_of_another_job_is_named_as_such(run):
    write_config(run, replace(GanConfig(), run=str(run.path)))
    run.mark_done()
    with pytest.raises(ConfigError, match=r"brains is a run of stylegan2, not of vae; use another --run"):
        compare_with_run(run, replace(VaeConfig(), run=str(run.path)))
    for more in ([], ["--preset", "quickstart"], ["--batch", "auto"]):  # also where its own values are the base
        with pytest.raises(ConfigError, match=r"brains is a run of stylegan2, not of vae; use another --run"):
            compare_with_run(
                run, parsing.parse_config(VaeConfig, ["--run", str(run.path), "--data", "phantom:48", *more])
            )
    for name, row in kinds.JOBS.items():
        fields = parsing.result_fields(parsing.parse_config(row.config, ["--data", "phantom:48"]))
        assert kinds.jobs_of(fields) == [name]


@pytest.mark.parametrize(
    ("job", "flags", "said"),
    [
        ("stylegan2", {"lr": 0.5}, r"started with other flags \(--lr"),
        ("stylegan2", {"resolution": 64}, "another architecture"),
        ("vae", {}, "is a run of stylegan2, not of vae"),
        ("stylegan2", {"keep": 9}, None),
    ],
)
@pytest.mark.parametrize("state", ["done", "running", "queued"])
def test_job_and_flags_are_compared_first(run, monkeypatch, capsys, job, flags, said, state):
    write_config(run, replace(GanConfig(), run=str(run.path)))
    tell(run, state)
    if state == "done":
        run.mark_done()
    monkeypatch.setattr(status, "all_jobs", lambda: {} if state == "done" else {"42": Job("42", "RUNNING")})
    config = replace(kinds.JOBS[job].config(), run=str(run.path), **flags)
    its = plan.Plan(job, config, run.path, site=None, local=False)
    if said:
        with pytest.raises(ConfigError, match=said):
            queueing.already(its, Options(job=job))
        assert capsys.readouterr().out == ""
    else:
        assert queueing.already(its, Options(job=job)) == 0


def test_another_persons_private_run_hides_no_others(tmp_path, monkeypatch):
    """Its folder can be seen, and nothing in it."""
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text("{}")
    stat = os.stat

    def refuse(path, *more, **how):
        if str(path).startswith(f"{tmp_path}/b/"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, *more, **how)

    monkeypatch.setattr(os, "stat", refuse)
    assert [path.name for path in run_folders(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize(("visible", "gpus"), [
    ("1", 1), ("0", 1), ("11", 1), ("1,0", 1), ("GPU-1-1", 1), ("", 0), ("-1", 0), (" -1 ", 0), ("-1,0", 0),
    ("NoDevFiles", 0),
])  # fmt: skip
def test_a_gpu_is_one_whatever_its_number(monkeypatch, visible, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert plan.local_gpus() == gpus


def test_a_task_whose_snapshot_is_gone_names_itself_and_a_run_as_it_is_typed(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    submit.gone(run.path)
    (line,) = run.read_attempts()
    assert (line["decision"], line["job_id"], line["code"]) == ("failed", "70_2", 78)
    assert f"launch.py resume {run.path} takes" in run.read_status()["reason"]  # it does not lie in runs/
