"""What a person is shown: the state of a run from Slurm's words and its own, the table, the cause of a failure."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data.files import process_start
from jobs.cluster import show, slurm, status, terminal, why
from jobs.cluster.sites import Site
from jobs.cluster.slurm import Job, SlurmError
from jobs.cluster.status import View
from jobs.config import specs, wording
from jobs.run import find
from jobs.run.find import RUNS, find_run, run_folders
from jobs.run.lock import LOCK_STALE, process_space
from jobs.run.rundir import RunDir
from jobs.run.states import FINAL

HOST = socket.gethostname()


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    monkeypatch.setattr(find, "RUNS", tmp_path)
    run = RunDir(tmp_path / "brains")
    run.create()
    return run


def tell(run: RunDir, jobs=(("42", "main"),), after: str = "", **status) -> None:
    """The run's own words: its heartbeat and its jobs."""
    submitted = [{"id": i, "kind": kind, "time": 1.0, "host": HOST} for i, kind in jobs]
    (run.path / "jobs.json").write_text(json.dumps({"job": "vae", "submitted": submitted, "after": after}))
    if status:
        (run.path / "status.json").write_text(json.dumps({"updated": time.time(), "job_id": "42"} | status))


def running(state: str = "RUNNING", **fields) -> Job:
    now = time.time()
    return Job(
        "42",
        state,
        **{"partition": "a100", "nodes": "n1", "elapsed_s": 60, "limit_s": 3600, "start": now - 60} | fields,
    )


def view(run: RunDir, *queue: Job) -> View:
    return status.view_run(run.path, {job.id: job for job in queue})


def lock(run: RunDir, **holder) -> None:
    pid = os.getpid()
    mine = {"host": HOST, "space": process_space(), "pid": pid, "start": process_start(pid), "since": time.time() - 90}
    (run.path / "LOCK").write_text(json.dumps(mine | holder))


# --- one state from four sources --------------------------------------------------------------------------------------
STATES = [
    # the run's own state, Slurm's -> what a person reads
    ("running", "RUNNING", "running"), ("starting", "RUNNING", "starting"), ("queued", "RUNNING", "starting"),
    ("new", "RUNNING", "new"), ("continue", "RUNNING", "ending"), ("done", "RUNNING", "ending"),
    ("stopped", "RUNNING", "ending"),
    ("failed", "RUNNING", "ending"), ("diverged", "RUNNING", "ending"), ("stuck", "RUNNING", "ending"),
    ("running", "PENDING", "queued"), ("done", "PENDING", "queued"), ("failed", "PENDING", "queued"),
    ("running", "COMPLETING", "ending"), ("running", "SUSPENDED", "suspended"),
    ("running", "STOPPED", "suspended"), ("queued", "CONFIGURING", "starting"),
    ("running", "REQUEUED", "queued"), ("running", "REQUEUE_HOLD", "queued"), ("running", "SPECIAL_EXIT", "queued"),
    # no job any more
    ("running", "COMPLETED", "cut off"), ("running", "NODE_FAIL", "cut off"), ("starting", "", "cut off"),
    ("queued", "", "cut off"),
    ("continue", "TIMEOUT", "interrupted"), ("stopped", "COMPLETED", "stopped"), ("failed", "FAILED", "failed"),
    ("diverged", "", "diverged"),
    ("stuck", "", "stuck"), ("done", "", "done"), ("waiting", "COMPLETED", "waiting"), ("new", "", "new"),
]  # fmt: skip


@pytest.mark.parametrize(("own", "slurms", "shown"), STATES)
def test_the_state_of_a_run(run, own, slurms, shown):
    tell(run, state=own, reason="why", kimg=3.0, total_kimg=12.0, eta_s=99, attempt=4, host="old", code=5)
    found = view(run, *([running(state=slurms, reason="Priority")] if slurms else []))
    assert found.state == shown
    assert (found.kimg, found.total_kimg, found.restarts, found.job, found.job_id, found.code) == (
        3.0,
        12.0,
        3,
        "vae",
        "42",
        5,
    )
    live = slurms in slurm.ACTIVE
    assert (found.partition, found.node, found.limit_s) == (("a100", "n1", 3600) if live else ("", "old", None))
    assert (found.elapsed_s is not None) == (live and shown != "queued")
    keeps = slurms in status.NOT_TRAINING or (live and shown in ("running", "starting", "new"))
    assert (found.eta_s is None) == (not keeps)


@pytest.mark.parametrize(("own", "note"), [("running", "before it could save"), ("queued", "before"), ("continue", "")])
def test_what_a_person_ended_is_stopped_also_without_a_word_of_its_own(run, own, note):
    """And `resume --failed` leaves it alone."""
    tell(run, state=own, reason="why")
    (run.path / "STOP").write_text("me")
    found = view(run)
    assert found.state == "stopped" and note in found.note and bool(note) == bool(found.note)


@pytest.mark.parametrize(
    ("own", "slurms", "reason", "note"),
    [
        ("running", "RUNNING", "old", ""), ("new", "RUNNING", "own", "own"), ("running", "COMPLETING", "old", ""),
        ("failed", "RUNNING", "old", ""),
        ("stopped", "", "STOP file", ""), ("stopped", "", "TERM", "TERM"), ("failed", "", "own words", "own words"),
        ("failed", "", "", "python launch.py why brains"), ("diverged", "", "", "python launch.py why brains"),
        ("stuck", "", "", "python launch.py why brains"), ("done", "", "finished", ""),
        ("running", "", "x", "python launch.py why brains"),
        ("continue", "", "USR2", "saved (USR2) and not continued; python launch.py resume brains"),
        ("waiting", "", "first ended", "first ended"),
    ],
)  # fmt: skip
def test_the_note_beside_it(run, own, slurms, reason, note):
    tell(run, state=own, reason=reason)
    assert view(run, *([running(state=slurms)] if slurms else [])).note.endswith(note)
    assert (view(run, *([running(state=slurms)] if slurms else [])).note == "") == (note == "")


def test_the_job_of_a_run_that_did_not_begin(run):
    tell(run, jobs=[("41", "main"), ("42", "chain")])
    assert (view(run).state, view(run).job_id, view(run).restarts) == ("new", "42", 0)
    tell(run, jobs=[], state="failed", job_id=None)
    assert view(run).job_id == ""


def test_the_states_by_name():
    over = "done stopped failed diverged stuck waiting interrupted".split()
    assert {*over, "cut off"} == status.FINAL and {"running", "starting", "queued"} == status.GONE
    assert status.HUNG_S == 600 and RUNS.name == "runs" and RUNS.parent == specs.ROOT


def test_a_heartbeat_before_the_start_is_of_the_attempt_before(run):
    now = time.time()
    tell(run, state="running", updated=now - 100, eta_s=9)
    assert view(run, running(start=now - 101)).state == "running"
    before = view(run, running(start=now - 99))
    assert (before.state, before.eta_s) == ("starting", None)
    tell(run, state="done", updated=now - 100)
    assert view(run, running(start=now - 99)).state == "starting"
    assert view(run, running(start=None)).state == "ending"


@pytest.mark.parametrize(("state", "age", "shown"),
    [("running", 500, "running"), ("running", 610, "hanging"), ("starting", 610, "starting")])  # fmt: skip
def test_a_heartbeat_that_stopped(run, state, age, shown):
    tell(run, state=state, updated=time.time() - age)
    found = view(run, running(start=time.time() - 7200))
    assert found.state == shown and ("no heartbeat for 10 min" in found.note) == (shown == "hanging")
    lock(run)  # on this machine as well
    assert view(run).state == shown


def test_the_last_word_is_done(run):
    tell(run, state="running", eta_s=5)
    run.mark_done()
    found = view(run)
    assert (found.state, found.eta_s, found.note) == ("done", None, "")
    assert view(run, running()).state == "running"  # it is being extended


def test_a_successor_that_stands_ready_is_named(run):
    tell(run, jobs=[("42", "main"), ("43", "chain")], state="running", reason="")
    assert view(run, running(), Job("43", "PENDING")).note == "successor 43 stands ready"
    assert view(run, Job("43", "PENDING"), running()).job_id == "42"  # the running one first
    assert view(run, running(), Job("43", "COMPLETED")).note == ""
    pending = view(run, Job("42", "PENDING", reason="Priority"), Job("43", "PENDING"))
    assert (pending.job_id, pending.state) == ("42", "queued")
    assert view(run, running(), replace(running(), id="43")).note == ""


@pytest.mark.parametrize(
    ("holder", "state"),
    [
        ({}, "running"), ({"start": "1"}, "cut off"), ({"pid": "x"}, "cut off"), ({"host": "elsewhere"}, "running"),
        ({"space": "other"}, "running"),
        ({"pid": 2**22 + 1, "start": ""}, "cut off"),
    ],
)  # fmt: skip
def test_a_process_that_holds_the_lock(run, holder, state):
    tell(run, state="running", reason="r")
    lock(run, **holder)
    found = view(run)
    assert found.state == state
    if state == "running":
        assert found.note == "" and found.node == holder.get("host", HOST) and 85 < found.elapsed_s < 400
    lock(run, since="early", **holder)
    assert view(run).elapsed_s is None
    (run.path / "LOCK").write_text("[]")
    assert status.live_process(run.path) is None


def test_a_lock_of_another_host_counts_while_it_is_young(run):
    tell(run, state="running")
    lock(run, host="elsewhere")
    for age, lives in ((LOCK_STALE - 20, True), (LOCK_STALE + 5, False)):
        os.utime(run.path / "LOCK", (time.time() - age,) * 2)
        assert bool(status.live_process(run.path)) == lives
    lock(run)  # a process of this machine is looked at itself
    os.utime(run.path / "LOCK", (time.time() - 9999,) * 2)
    assert status.live_process(run.path)


@pytest.mark.parametrize(("own", "shown"), [("running", "running"), ("starting", "starting"), ("queued", "starting"),
        ("done", "starting"), ("failed", "starting")])  # fmt: skip
def test_a_process_that_has_just_begun(run, own, shown):
    tell(run, state=own)
    lock(run)
    assert view(run).state == shown


def test_a_local_process_before_it_holds_the_lock(run, monkeypatch):
    pid = str(os.getpid())
    tell(run, jobs=[("1", "main"), (pid, "local")], state="queued")
    real = Path.read_bytes
    monkeypatch.setattr(
        Path,
        "read_bytes",
        lambda self: f"python\0{run.path}".encode() if str(self) == f"/proc/{pid}/cmdline" else real(self),
    )
    assert status.starting_process(run.path) == pid
    assert (view(run).state, view(run).job_id) == ("starting", pid)
    for own in ("starting", "new"):
        tell(run, jobs=[(pid, "local")], state=own)
        assert (view(run).state, view(run).job_id) == ("starting", pid)
    for own in ("failed", "running", "stopped"):
        tell(run, jobs=[(pid, "local")], state=own)
        assert view(run).state == {"running": "cut off"}.get(own, own)
    tell(run, jobs=[(pid, "main")], state="queued")
    assert status.starting_process(run.path) == ""
    tell(run, jobs=[(pid, "local"), ("4194305", "local")], state="queued")
    assert status.starting_process(run.path) == pid  # the newest that lives
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"python\0/another/run")
    assert status.starting_process(run.path) == ""  # its number belongs to somebody else now
    about = json.loads((run.path / "jobs.json").read_text())
    about["submitted"][0]["host"] = "elsewhere"
    (run.path / "jobs.json").write_text(json.dumps(about))
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: f"python\0{run.path}".encode() if "/proc/" in str(self) else real(self)
    )
    assert status.starting_process(run.path) == ""


@pytest.mark.parametrize(("kind", "age", "shown"),
    [("main", 5, "running"), ("main", LOCK_STALE + 5, "cut off"), ("local", 5, "cut off")])  # fmt: skip
def test_where_slurm_cannot_be_asked_a_young_heartbeat_counts(run, kind, age, shown):
    tell(run, jobs=[("42", kind)], state="running", updated=time.time() - age)
    assert status.view_run(run.path, None).state == shown
    assert status.view_run(run.path, {}).state == "cut off"


def test_which_jobs_are_a_runs(run):
    tell(run, jobs=[("42", "main"), ("40_1", "main")])
    code = str(run.path / "code")
    queue = [Job("9", "RUNNING"), Job("42", "PENDING"), Job("40_1", "RUNNING"), Job("50", "PENDING", workdir=code),
        Job("51", "FAILED", workdir=code),
             Job("52", "RUNNING", workdir=str(run.path))]  # fmt: skip
    assert [job.id for job in status.live_jobs(run.path, {job.id: job for job in queue})] == ["40_1", "42", "50"]


def test_the_last_row_of_the_metrics(run):
    assert status.last_metrics(run.path) == {}
    rows = [{"kimg": i, "text": "x" * 100} for i in range(200)]
    path = run.path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kimg": 999, "te')
    assert status.last_metrics(run.path)["kimg"] == 199
    path.write_text('{"gpu_util": 87.4, "gpu_gb": 30.2}\n[1]\n')
    tell(run, state="running")
    found = view(run, running())
    assert (found.gpu_util, found.gpu_gb) == (87.4, 30.2)
    path.write_text('{"gpu_util": true, "gpu_gb": "x"}\n')
    assert (view(run).gpu_util, view(run).gpu_gb) == (None, None)


def test_the_queue_of_a_user(monkeypatch, capsys):
    monkeypatch.setattr(status.shutil, "which", lambda name: None)
    assert status.all_jobs() is None
    monkeypatch.setattr(status.shutil, "which", lambda name: "/usr/bin/squeue")
    monkeypatch.setattr(slurm, "squeue", lambda: {"1": running()})
    assert set(status.all_jobs()) == {"1"}

    def fail(words):
        def squeue():
            raise SlurmError(words)

        return squeue

    monkeypatch.setattr(slurm, "squeue", fail("no configuration source"))
    assert status.all_jobs() is None and capsys.readouterr().err == ""
    monkeypatch.setattr(slurm, "squeue", fail("timed out"))
    assert isinstance(status.all_jobs(), status.Silent) and "timed out" in capsys.readouterr().err
    assert isinstance(status.all_jobs(), status.Silent) and capsys.readouterr().err == ""  # --wait asks often


# --- runs by name -----------------------------------------------------------------------------------------------------
def test_all_runs_the_ones_touched_last_at_the_end(tmp_path):
    for i, (name, mark) in enumerate([("c", "jobs.json"), ("a", "status.json"), ("b", "config.json"), ("no", "x")]):
        (tmp_path / name).mkdir()
        (tmp_path / name / mark).write_text("{}")
        os.utime(tmp_path / name, (1000 - i,) * 2)
    (tmp_path / "jobs.json").write_text("{}")
    assert [path.name for path in run_folders(tmp_path)] == ["b", "a", "c"]
    assert run_folders(tmp_path / "nowhere") == []


def test_a_run_by_what_a_person_types(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    for name, ids in (("vae-1", ["7"]), ("vae-12", ["8_0"]), ("gan", ["70"])):
        (root / name).mkdir(parents=True)
        (root / name / "jobs.json").write_text(json.dumps({"submitted": [{"id": i, "kind": "main"} for i in ids]}))
    (root / "sweep-x").mkdir()
    (root / "sweep-x" / "sweep.json").write_text("{}")
    (root / "plain").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)

    def find(text):
        return find_run(text, root)

    assert find("vae-1") == root / "vae-1" and find("g") == root / "gan" and find("plain") == root / "plain"
    assert find("7") == root / "vae-1" and find("8_0") == root / "vae-12" and find("70") == root / "gan"
    assert (
        find("sweep") == root / "sweep-x"
        and find("far") == tmp_path / "far"
        and find(str(root / "gan")) == root / "gan"
    )
    for text, words in (
        ("vae", "several runs: "),
        ("8", "no run 8"),
        ("empty", "no run empty"),
        ("nope", "the last ones are"),
        ("an", "no run an"),
    ):
        with pytest.raises(LookupError, match=words):
            find(text)


# --- why a job is pending ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("reason", "words", "tag"),
    [
        ("Priority", "higher priority", "Priority"), ("Resources", "next in line", "Resources"),
        ("PartitionConfig", "--account", "PartitionConfig"),
        ("PartitionTimeLimit", "never start", "PartitionTimeLimit"),
        ("AssocGrpGRES", "group uses as many GPUs", "AssocGrpGRES"),
        ("QOSMaxNodePerUserLimit", "your QOS", "QOSMaxNodePerUserLimit"),
        ("AssocMaxWallLimit", "your account", "AssocMaxWallLimit"),
        ("MaxOddLimit", "your account", "MaxOddLimit"), ("Whatever", "waits", "Whatever"),
        ("JobHeldUser", "scontrol release", "JobHeldUser"),
        ("ReqNodeNotAvail(Unavailable:n1)", "maintenance", "ReqNodeNotAvail"),
        ("BeginTime", "was requeued", "BeginTime"),
        ("Nodes required for job are DOWN, DRAINED or reserved", "starts when one is back", "ReqNodeNotAvail"),
    ],
)  # fmt: skip
def test_a_pending_reason_in_words(reason, words, tag):
    found = status.pending_words(Job("1", "PENDING", reason=reason))
    assert words in found and found.endswith(f"({tag})")


REASONS = {
    # what a person can do about it -> Slurm's reasons
    "": "Priority Resources Dependency BeginTime Cleaning PartitionDown PartitionInactive Reservation NodeDown "
    "JobArrayTaskLimit QOSMaxJobsPerUserLimit "
    "QOSMaxSubmitJobPerUserLimit QOSMaxGRESPerUser AssocMaxJobsLimit AssocGrpGRES MaxJobsPerAccount JobLaunchFailure",
    "queue it again": "DependencyNeverSatisfied PartitionConfig AccountNotAllowed InvalidAccount InvalidQOS "
    "PartitionTimeLimit PartitionNodeLimit "
    "ReservationDeleted BadConstraints QOSMaxWallDurationPerJobLimit QOSMinGRES",
    "scontrol release": "JobHeldUser launch_failed_requeued_held JobHoldMaxRequeue job_requeued_in_held_state",
    "shorter --time": "PartitionTimeLimit QOSMaxWallDurationPerJobLimit ReqNodeNotAvail",
    "--account": "PartitionConfig AccountNotAllowed InvalidAccount", "--qos": "InvalidQOS",
    "--nodes": "PartitionNodeLimit", "ask them": "JobHeldAdmin",
    "never start": "PartitionTimeLimit PartitionNodeLimit BadConstraints QOSMaxWallDurationPerJobLimit",
}  # fmt: skip


def test_every_reason_says_what_a_person_can_do():
    named = {reason for reasons in REASONS.values() for reason in reasons.split()}
    assert named == set(status.PENDING)
    for words, reasons in REASONS.items():
        if words:
            assert {reason for reason in named if words in status.PENDING[reason]} == set(reasons.split()), words


def test_pending_words_name_the_job_and_the_hour():
    waits = Job("1", "PENDING", reason="Dependency", dependency="afterany:41_2(unfulfilled),afterany:50")
    assert status.pending_words(waits) == "waits for job 41_2 to end (Dependency)"
    assert status.pending_words(waits, "first") == "waits for first (job 41_2) to be done (Dependency)"
    assert status.pending_words(replace(waits, dependency="")) == "waits for another job to end (Dependency)"
    assert (
        status.pending_words(Job("1", "PENDING"))
        == status.pending_words(Job("1", "PENDING", reason="None"))
        == "just queued"
    )
    at = time.mktime(time.strptime("2037-01-31T12:34:56", "%Y-%m-%dT%H:%M:%S"))
    assert "again at 12:34:56" in status.pending_words(Job("1", "PENDING", reason="BeginTime", start=at))
    assert "expected to start Sat 31 Jan 12:34" in status.pending_words(
        Job("1", "PENDING", reason="Priority", start=at)
    )
    assert "expected" in status.pending_words(Job("1", "PENDING", reason="Resources", start=at))
    assert "expected" not in status.pending_words(Job("1", "PENDING", reason="Priority", start=time.time() - 5))
    assert "expected" not in status.pending_words(Job("1", "PENDING", reason="JobHeldUser", start=at))


def test_a_run_behind_another_names_it_until_that_is_done(run, tmp_path):
    (tmp_path / "first").mkdir()
    tell(run, after=str(tmp_path / "first"), state="queued")
    waits = Job("42", "PENDING", reason="Dependency", dependency="afterany:41")
    assert "waits for first (job 41)" in view(run, waits).note
    (tmp_path / "first" / "DONE").write_text("")
    assert "waits for job 41" in view(run, waits).note


# --- numbers for people -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("seconds", "short", "clock"),
    [
        (None, "", "-"), (0, "0 s", "0:00"), (-3, "0 s", "0:00"), (89.9, "89 s", "1:29"), (90, "2 min", "1:30"),
        (5399, "90 min", "1:29:59"), (5400, "1 h 30", "1:30:00"),
        (3600, "60 min", "1:00:00"), (172799, "47 h 59", "47:59:59"), (172800, "2 d 0 h", "48:00:00"),
        (180000, "2 d 2 h", "50:00:00"), (59, "59 s", "0:59"),
    ],
)  # fmt: skip
def test_durations_for_people(seconds, short, clock):
    assert (wording.short_time(seconds), wording.clock(seconds)) == (short, clock)


def test_dates_for_people():
    now = time.time()
    assert wording.short_date(now) == time.strftime("%H:%M", time.localtime(now))
    assert wording.short_date(now - 86400 * 3) == time.strftime("%a %d %b %H:%M", time.localtime(now - 86400 * 3))


@pytest.mark.parametrize(
    ("done", "total", "bar"),
    [(0, 8, "░" * 8), (1, 8, "█" + "░" * 7), (4, 8, "█" * 4 + "░" * 4), (8, 8, "█" * 8), (9, 8, "█" * 8),
    (None, 8, ""), (3, None, ""), (3, 0, ""), (0.9, 16, "░" * 8)],
)  # fmt: skip
def test_bars(done, total, bar):
    assert terminal.bar(done, total) == bar and len(terminal.bar(1, 2, 4)) == 4


def test_progress_and_gpu_of_a_view():
    half = View("r", "/r", state="running", kimg=1234.5, total_kimg=2469.0, gpu_util=87.4, gpu_gb=30.2)
    assert show.progress(half) == "████░░░░ 1234/2469 kimg" and show.progress(View("r", "/r")) == ""
    assert show.progress(View("r", "/r", kimg=2.0)) == " 2/0 kimg"
    assert show.gpu_use(half) == "87% 30 GB"
    assert show.gpu_use(replace(half, gpu_gb=None)) == "87%" and show.gpu_use(replace(half, gpu_util=0.0)) == "0% 30 GB"
    assert show.gpu_use(replace(half, gpu_util=None)) == show.gpu_use(replace(half, state="done")) == ""


# --- tables -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(wording, "python", lambda: "python")


def test_a_table_of_runs(wide, capsys):
    live = View("one", "/r/one", state="running", job_id="42", partition="a100", node="n1", elapsed_s=61, limit_s=3600,
        kimg=1.0, total_kimg=4.0, eta_s=100,
                restarts=2, gpu_util=50.0, gpu_gb=10.0, note="fine")  # fmt: skip
    show.show_runs(
        [
            live,
            replace(live, name="two", state="failed"),
            replace(live, name="three", state="queued", node="", elapsed_s=None, restarts=0),
        ]
    )
    header, one, two, three = capsys.readouterr().out.splitlines()
    assert header.split() == ["RUN", "STATE", "JOB", "ON", "TIME", "PROGRESS", "LEFT", "RESTARTS", "GPU", "NOTE"]
    assert one.split() == [
        "one",
        "running",
        "42",
        "n1",
        "1:01/1:00:00",
        "██░░░░░░",
        "1/4",
        "kimg",
        "2",
        "min",
        "2",
        "50%",
        "10",
        "GB",
        "fine",
    ]
    assert two.split() == [
        "two",
        "failed",
        "1:01/1:00:00",
        "██░░░░░░",
        "1/4",
        "kimg",
        "2",
        "fine",
    ]  # no job, no place, no time left
    assert three.split() == ["three", "queued", "42", "a100", "██░░░░░░", "1/4", "kimg", "fine"]
    assert {
        line.index(word) for line, word in ((header, "STATE"), (one, "running"), (two, "failed"), (three, "queued"))
    } == {header.index("STATE")}
    show.show_runs([replace(live, limit_s=None, job_id="", node="", partition="", restarts=0, gpu_util=None, note="")])
    header, line = capsys.readouterr().out.splitlines()
    assert (
        header.split() == ["RUN", "STATE", "TIME", "PROGRESS", "LEFT"] and line.split()[2] == "1:01"
    )  # empty columns are left out


def test_a_table_wraps_its_last_column_and_aligns_numbers(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    terminal.table(["A", "N", "NOTE"], [["x", "1.5", "word " * 12], ["yy", "10", ""]], right={"N"})
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "A     N  NOTE"
        and lines[1].startswith("x   1.5  word")
        and lines[2].startswith(" " * 9 + "word")
        and lines[-1] == "yy   10"
    )
    assert all(len(line) <= 60 for line in lines) and sum(line.count("word") for line in lines) == 12
    monkeypatch.setenv("COLUMNS", "10")
    assert terminal.width() == 60
    terminal.table(["A", "B"], [["", "x"]])
    assert capsys.readouterr().out == "A  B\n   x\n"


class Terminal:
    def isatty(self):
        return True


def test_colours_are_for_terminals_alone(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert terminal.paint("x", "red", Terminal()) == "\x1b[31mx\x1b[0m" and terminal.paint("x", "", Terminal()) == "x"
    assert terminal.paint("x", "red", SimpleNamespace(isatty=lambda: False)) == "x"
    monkeypatch.setenv("TERM", "dumb")
    assert terminal.paint("x", "red", Terminal()) == "x"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal.paint("x", "red", Terminal()) == "x"
    assert dict(red=31, green=32, yellow=33, blue=34, grey=90, bold=1) == terminal.COLOURS
    states = {
        "green": "running starting", "blue": "done", "yellow": "queued waiting ending interrupted",
        "red": "failed diverged stuck hanging", "": "stopped new",
    }  # fmt: skip
    for colour, names in states.items():
        assert {terminal.STATE_COLOURS.get(name, "") for name in names.split()} == {colour}
    assert (
        terminal.STATE_COLOURS["cut off"] == "red"
        and dict(ok="green", warn="yellow", fail="red") == terminal.LEVEL_COLOURS
    )


def test_checks_and_facts(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    terminal.facts([("a", "1"), ("long", "2"), ("none", "")])
    assert capsys.readouterr().out == "  a     1\n  long  2\n"
    checks = [
        SimpleNamespace(level="ok", text="fine", fix=""),
        SimpleNamespace(level="fail", text="word " * 20, fix="do " * 30),
    ]
    terminal.say_checks(checks)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok   fine" and lines[1].startswith("fail word") and lines[2].startswith("     word")
    fix = [line for line in lines if " do" in line]
    assert (
        fix[0].startswith("     fix: do")
        and fix[1].startswith("          do")
        and sum(line.count("do") for line in fix) == 30
    )
    terminal.error("bad")
    assert capsys.readouterr().err == "error: bad\n"


def test_one_run_in_detail(wide, run, capsys, monkeypatch):
    monkeypatch.setattr(find, "RUNS", run.path.parent)
    run.note("start", attempt=1, job_id="42", node="n1", nimg=0)
    run.note("end", attempt=1, nimg=2500, reason="USR2", seconds=100, code=85)
    run.note("decision", decision="requeue", why="the time limit was reached")
    found = View("brains", str(run.path), state="running", job_id="42", node="n1", partition="a100", elapsed_s=61,
        limit_s=3600, kimg=1.0, total_kimg=4.0,
                 eta_s=100, restarts=2, updated=time.time() - 30, note="fine",
                 metrics={"loss_G": 1.23456, "loss_D": "x", "kimg": 1, "val_loss": 0.5, "loss": 2,
                 "img_per_s": 30.25})  # fmt: skip
    show.show_run(found, run.path)
    out = capsys.readouterr().out
    rows = dict(line.strip().split("  ", 1) for line in out.splitlines() if line.startswith("  "))
    rows = {key.strip(): value.strip() for key, value in rows.items()}
    assert (
        out.startswith("brains: running\n")
        and rows["job"] == "42 on n1"
        and rows["time"] == "1:01 of 1:00:00"
        and rows["left"] == "2 min"
    )
    assert (
        rows["last"] == "loss_G 1.235, loss 2, val_loss 0.5, img_per_s 30.25"
        and rows["restarts"] == "2"
        and rows["note"] == "fine"
        and rows["heartbeat"].endswith("s ago")
    )
    header, row = next(
        pair for pair in zip(out.splitlines(), out.splitlines()[1:], strict=False) if pair[0].startswith("ATTEMPT")
    )
    assert header.split() == ["ATTEMPT", "JOB", "NODE", "BEGAN", "RAN", "FROM", "TO", "ENDED"] and row.endswith(
        "2 min  0     2.5  USR2, requeued"
    )
    show.show_run(replace(found, state="failed"), run.path)
    failed = capsys.readouterr().out
    assert (
        " left" not in failed
        and "ended " in failed
        and "\n  job " not in failed
        and "launch.py why brains" in failed
        and "launch.py resume brains" in failed
    )
    assert rows["progress"] == "██░░░░░░ 1/4 kimg" and rows["run"] == str(run.path)
    show.show_run(replace(found, limit_s=None, node="", partition="", metrics={"loss_D": 1}), run.path)
    bare = capsys.readouterr().out
    assert "1:01\n" in bare and "  42\n" in bare and "loss_D 1\n" in bare
    show.show_run(replace(found, state="queued", node=""), run.path)
    queued = capsys.readouterr().out
    assert "42 in a100" in queued and "heartbeat" not in queued and "launch.py stop brains" in queued
    show.show_run(replace(found, state="done"), run.path)
    assert "predict.py generate --run brains" in capsys.readouterr().out
    monkeypatch.setattr(find, "RUNS", Path("/elsewhere"))
    show.next_steps(run.path, "stopped")
    steps = capsys.readouterr().out
    assert f"launch.py resume {run.path}" in steps and "launch.py stop" not in steps


def test_the_attempts_of_a_run():
    lines = [
        {"event": "decision", "decision": "requeue"}, {"event": "end", "attempt": 9},
        {"event": "start", "attempt": 1, "job_id": "7", "node": "n1", "nimg": 0, "time": 1e9},
        {"event": "end", "attempt": 1, "nimg": 4000, "reason": "USR2", "seconds": 120, "code": 85},
        {"event": "decision", "decision": "requeue", "why": "limit"},
        {"event": "start", "attempt": 2, "nimg": 4000},
        {"event": "decision", "decision": "chain", "why": "the node failed"},
        {"event": "start", "attempt": 3, "nimg": 4000},
        {"event": "end", "attempt": 3, "nimg": 4500, "reason": "ConfigError: x", "seconds": 3, "code": 78},
        {"event": "decision", "decision": "failed", "why": "bad"},
        {"event": "end", "attempt": 3, "nimg": 4500, "reason": "done", "seconds": 3, "code": 0},
        {"event": "decision", "decision": "budget", "why": "bad"},
    ]  # fmt: skip
    one, two, three = show.attempt_rows(lines)
    assert one == ["1", "7", "n1", wording.short_date(1e9), "2 min", "0", "4", "USR2, requeued"]
    assert two == ["2", "", "", "", "", "4", "", "the node failed, next job"]
    assert three[4:] == ["3 s", "4", "4.5", "done, out of budget"]
    assert show.attempt_rows(lines[:10])[2][7] == "ConfigError: x (code 78)"


def test_a_sweep_side_by_side(wide, capsys):
    points = [
        {"values": {"lr": "0.1", "gamma": "1"}, "run": "/r/a"},
        {"values": {"lr": "0.2", "gamma": "1"}, "run": "/r/b"},
    ]
    views = [View("a", "/r/a", state="done", kimg=4.0, total_kimg=4.0,
        metrics={"loss_G": 1.5, "diversity": 20.25, "x": 3}),
        View("b", "/r/b", state="running", metrics={"diversity": None})]  # fmt: skip
    show.show_sweep(points, views)
    header, a, b = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["LR", "GAMMA", "STATE", "PROGRESS", "loss_G", "diversity", "RUN"]
    assert a == ["0.1", "1", "done", "████████", "4/4", "kimg", "1.5", "20.25", "a"] and b == [
        "0.2",
        "1",
        "running",
        "b",
    ]


def test_what_is_added_to_the_logs(run, capsys):
    first, second = run.logs / "1.out", run.logs / "2.out"
    first.write_text("old\n")
    whole, end = show.Follower(run.path, at_end=False), show.Follower(run.path, at_end=True)
    whole.show()
    assert capsys.readouterr().out == "old\n"
    end.show()
    whole.show()
    assert capsys.readouterr().out == ""
    with open(first, "a") as file:
        file.write("new\x1b[31m\n")
    second.write_text("other\n")
    called = []
    end.show(lambda: called.append(1))
    assert capsys.readouterr().out == "new\nother\n" and len(called) == 2
    with open(first, "a") as file:
        file.write("last\n")
    end.show()
    assert capsys.readouterr().out == "last\n"


@pytest.mark.parametrize(
    ("states", "local", "code", "said"),
    [
        (["running", "done", "done", "done"], False, 0, ""),
        (["failed", "running", "stopped", "stopped", "stopped"], True, 0, "stopped"),
        (["failed"] * 3, False, 78, "failed (why)"), (["cut off"] * 3, True, 78, "cut off"),
    ],
)  # fmt: skip
def test_waiting_for_the_end_of_a_run(run, monkeypatch, capsys, states, local, code, said):
    """Three looks in a row must agree: between two jobs of a run there is a moment without any."""
    queue, seen = list(states), []

    def view_run(path, jobs):
        seen.append(jobs)
        return View("brains", str(path), state=queue.pop(0), code=78, note="why")

    monkeypatch.setattr(status, "view_run", view_run)
    monkeypatch.setattr(status, "all_jobs", lambda: {"1": "job"})
    monkeypatch.setattr(show.time, "sleep", lambda seconds: None)
    assert show.wait_for(run.path, local, lambda *a, **k: pytest.fail("stopped")) == code
    assert not queue and seen[0] == ({} if local else {"1": "job"}) and said in capsys.readouterr().out


def test_a_failed_run_without_a_code_ends_with_1(run, monkeypatch):
    monkeypatch.setattr(status, "view_run", lambda *a: View("brains", "", state="cut off"))
    monkeypatch.setattr(show.time, "sleep", lambda seconds: None)
    assert show.wait_for(run.path, True, None) == 1


@pytest.mark.parametrize(("local", "code"), [(True, 130), (False, 0)])
def test_ctrl_c_while_waiting(run, monkeypatch, capsys, local, code):
    stopped = []

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "view_run", lambda *a: View("brains", "", state="running"))
    monkeypatch.setattr(status, "all_jobs", lambda: {})
    monkeypatch.setattr(show.time, "sleep", interrupt)
    assert show.wait_for(run.path, local, lambda run, now: stopped.append((run, now))) == code
    assert stopped == ([(run.path, False)] if local else [])  # a job goes on
    assert ("launch.py stop brains" in capsys.readouterr().out) == (not local)


def test_the_tunnel_to_the_curves(monkeypatch, capsys):
    monkeypatch.setattr(show.socket, "gethostname", lambda: "login2.uni")
    monkeypatch.setattr(show.getpass, "getuser", lambda: "me")
    for name in ("SSH_CONNECTION", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    show.say_tunnel(Site("s"), "7007")
    assert "http://localhost:7007" in capsys.readouterr().out
    show.say_tunnel(Site("s", login="login.uni", jump="jump.uni"), "7007")
    out = capsys.readouterr().out
    tunnel = "ssh -N -L 6006:127.0.0.1:7007"
    for line in (
        f"{tunnel} -J me@jump.uni me@login.uni",
        f"{tunnel} me@login.uni",
        f"{tunnel} -J me@jump.uni,me@login.uni me@login2.uni",
        "http://localhost:6006",
    ):
        assert line in [row.strip().split("  ")[-1].strip() for row in out.splitlines()], line
    show.say_tunnel(Site("s", login="login2.uni"), "7007")
    out = capsys.readouterr().out
    assert "-J" not in out and f"{tunnel} me@login2.uni" in out
    monkeypatch.setenv("SSH_CONNECTION", "1 2 3 4")
    show.say_tunnel(Site("s"), "7007")
    assert f"{tunnel} me@login2.uni" in capsys.readouterr().out
    monkeypatch.setenv("SLURM_JOB_ID", "12")  # on a node, where a page of predict.py may be
    show.say_tunnel(Site("s", login="login.uni", jump="jump.uni"), "7007", "The page", 6007, "/?token=t")
    said, way, address = capsys.readouterr().out.splitlines()
    assert said.startswith("The page on login2.uni") and address.endswith("http://localhost:6007/?token=t")
    assert way.split("  ")[-1] == "ssh -N -L 6007:127.0.0.1:7007 -J me@jump.uni,me@login.uni me@login2.uni"


# --- why --------------------------------------------------------------------------------------------------------------
def cause(**facts) -> why.Cause:
    return why.diagnose(why.Evidence(**{"state": "failed"} | facts), "r1")


TRACE = "Traceback (most recent call last):\n  File 'a.py', line 1\n    x\nZeroDivisionError: division by zero\n"
OOM = "torch.OutOfMemoryError: CUDA out of memory\n"
PRECEDENCE = [
    # the surest sign first: a person, the training's own word, Slurm's surest, the log, the code, Slurm's rest
    (dict(state="stopped", reason="TERM", decision="cancelled by a person (scancel)", log=OOM, code=1),
    "cancelled it (scancel)"),
    (dict(state="stopped", reason="TERM", decision="a person sent TERM"), "a person stopped it"),
    (dict(state="stopped", reason="STOP file", decision="x (scancel)"), "a person stopped it"),
    (dict(state="stopped", log=OOM, code=77), "a person stopped it"),
    (dict(state="cut off", reason="TERM", decision="cancelled (scancel)"), "cancelled (scancel)"),
    (dict(state="waiting", reason="first ended: resume it", log=OOM), "first ended"),
    (dict(state="stuck", log=OOM, code=77), "no progress in two attempts"),
    (dict(state="diverged", log=OOM), "not a number"),
    (dict(code=77, log=OOM, job=Job("1", "NODE_FAIL")), "not a number"),
    (dict(job=Job("1", "OUT_OF_MEMORY"), log=OOM), "Slurm killed the job"),
    (dict(job=Job("1", "NODE_FAIL"), log=TRACE), "its node failed"),
    (dict(job=Job("1", "BOOT_FAIL"), log=OOM), "did not come up"),
    (dict(job=Job("1", "TIMEOUT"), log=OOM), "GPU ran out of memory"),
    (dict(job=Job("1", "CANCELLED"), log=OOM), "GPU ran out of memory"),
    (dict(log=f"{OOM}slurmstepd: error: Detected 1 oom_kill event\n"),
    "GPU ran out of memory"),  # the order of the list, not of the log
    (dict(log="No space left on device\n", code=78), "disk is full"),
    (dict(log=TRACE, code=78), "configuration or the data"), (dict(log=TRACE, code=2), "flags are wrong"),
    (dict(log=TRACE, code=75, reason="PeerLost"), "temporary: PeerLost"),
    (dict(code=85, job=Job("1", "CANCELLED")), "cancelled (scancel) and saved first"),
    (dict(state="interrupted", job=Job("1", "CANCELLED")), "cancelled (scancel) and saved"),
    (dict(code=85, job=Job("1", "TIMEOUT"), reason="USR2"), "told to stop and saved (USR2)"),
    (dict(state="interrupted", reason="r", decision="d"), "saved (r); d"),
    (dict(log=TRACE, code=1, job=Job("1", "TIMEOUT")), "Python error"),
    (dict(job=Job("1", "TIMEOUT"), log="error: x\n"), "time limit"),
    (dict(log="error: x\n", decision="d"), "ended with an error"),
    (dict(decision="a task was killed by SIGKILL"), "a task was killed by SIGKILL"),
    (dict(reason="own words"), "own words"), (dict(), "failed without a word"),
    (dict(state="cut off", reason="r"), "ended without a word"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("own", "shown"),
    [
        ("running", "unknown"), ("queued", "unknown"), ("starting", "unknown"), ("continue", "unknown"),
        ("new", "unknown"), ("stopped", "stopped"), ("failed", "failed"), ("done", "done"), ("waiting", "waiting"),
        ("stuck", "stuck"), ("diverged", "diverged"),
    ],
)  # fmt: skip
def test_no_answer_is_not_a_no(run, own, shown):
    tell(run, state=own, reason="")
    found = status.view_run(run.path, status.Silent())
    assert found.state == shown
    if shown == "unknown":
        assert "Slurm does not answer" in found.note and shown not in FINAL
        assert "did not answer" in why.explain(run.path, status.Silent())[1].text
    # A process that holds the lock is seen without Slurm; a run of this machine needs no Slurm.
    tell(run, state=own, reason="", jobs=[("42", "local")])
    assert status.view_run(run.path, status.Silent()).state != "unknown"


@pytest.mark.parametrize(
    ("evidence", "words", "fix"),
    [
        (dict(log="x\nslurmstepd: error: Detected 1 oom_kill event in StepId=1.0\n"), "main memory ran out", "--batch"),
        (dict(log=OOM), "GPU ran out of memory", "--accumulate"),
        (dict(job=Job("1", "OUT_OF_MEMORY")), "main memory ran out", "--batch"),
        (dict(log=TRACE), "Python error", "logs brains"),
        (dict(job=Job("1", "TIMEOUT")), "no progress", "longer --time"),
        (dict(decision="a task was killed by SIGKILL, and 2 attempts"), "SIGKILL", "more memory"),
        (dict(), "no progress", "longer --time"),
    ],
)
def test_why_a_run_is_stuck_is_looked_for_where_it_stands(evidence, words, fix):
    """More time is the advice where nothing else killed it."""
    cause = why.diagnose(why.Evidence(state="stuck", **evidence), "brains")
    assert "no progress in two attempts" in cause.text and words in cause.text and fix in cause.fix
    assert ("longer --time" in cause.fix) == (fix == "longer --time")


@pytest.mark.parametrize(
    ("state", "reason", "shown", "fix"),
    [
        ("SUSPENDED", "None", "suspended", "ask the administrators"),
        ("STOPPED", "None", "suspended", "scancel --signal=CONT 42"),
        ("PENDING", "job requeued in held state", "queued", "scontrol release 42"),
        ("PENDING", "JobHeldUser", "queued", "scontrol release 42"),
        ("REQUEUE_HOLD", "JobHeldUser", "queued", "scontrol release 42"),
    ],
)
def test_what_to_do_about_a_job_that_does_not_move(run, state, reason, shown, fix):
    tell(run, state="running")
    found, cause = why.explain(run.path, {"42": running(state=state, reason=reason)})
    assert found.state == shown and fix in cause.fix and "launch.py stop" in cause.fix


@pytest.mark.parametrize(("facts", "words"), PRECEDENCE)
def test_the_surest_sign_counts(facts, words):
    assert words in cause(**facts).text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("RuntimeError: CUDA out of memory. Tried", "GPU ran out"), ("torch.cuda.OutOfMemoryError: x", "GPU ran out"),
        ("CUBLAS_STATUS_ALLOC_FAILED", "GPU ran out"),
        ("Detected 1 oom-kill event", "main memory"), ("Exceeded job memory limit", "main memory"),
        ("DefaultCPUAllocator: can't allocate memory", "main memory"),
        ("MemoryError", "main memory"), ("OSError: Cannot allocate memory", "main memory"),
        ("Out Of Memory", "main memory"),
        ("EDQUOT", "quota"), ("ENOSPC", "disk is full"), ("NVRM: Xid (PCI:0000): 79", "GPU or its driver"),
        ("GPU has fallen off the bus", "GPU or its driver"),
        ("CUDA error: an illegal memory access", "GPU or its driver"),
        ("CUDA error: device-side assert triggered", "out of range"),
        ("no kernel image is available for execution", "does not fit"),
        ("The NVIDIA driver on your system is too old", "does not fit"),
        ("NCCL operation timed out", "ranks lost"), ("Connection closed by peer", "ranks lost"),
        ("PeerLost: gone", "ranks lost"),
        ("ImportError: libcuda.so", "package is missing"), ("$'\\r': command not found", "CRLF"),
        ("bash: foo: command not found", "not found on the node"),
        ("slurmstepd: error: Could not open stdout file", "log file"),
    ],
)  # fmt: skip
def test_what_a_line_of_the_log_means(line, words):
    found = cause(log=f"before\n{line}\nafter\n", code=1)
    assert words in found.text and found.line == line and "resume" in found.fix


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job("1", "TIMEOUT", elapsed_s=7200), "time limit after 2 h 00"), (Job("1", "DEADLINE"), "deadline"),
        (Job("1", "PREEMPTED", elapsed_s=60), "priority took its place after 60 s"),
        (Job("1", "CANCELLED", elapsed_s=60), "cancelled after 60 s"),
        (Job("1", "NODE_FAIL", nodes="n1"), "failed on n1"), (Job("1", "BOOT_FAIL", nodes="n1"), "on n1"),
        (Job("1", "FAILED", reason="JobLaunchFailure", nodes="n2"), "could not be started on n2"),
        (Job("1", "FAILED", exit_code=0, exit_signal=9), "signal 9, as the kernel"),
        (Job("1", "FAILED", exit_code=0, exit_signal=11), "signal 11"),
        (Job("1", "FAILED", exit_code=137), "signal 9, as the kernel"),
        (Job("1", "FAILED", exit_code=139), "signal 11"),
        (Job("1", "FAILED", exit_code=126), "python could not be run"),
        (Job("1", "FAILED", exit_code=127), "python could not be run"),
    ],
)  # fmt: skip
def test_what_slurms_record_means(job, words):
    assert words in cause(job=job).text
    assert ("as the kernel" in cause(job=job).text) == ("as the kernel" in words)


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (dict(state="stuck", log="error: x\n"), "error: x"),
        (dict(state="diverged", reason="NaN in G", log="error: x\n"), "NaN in G"),
        (dict(code=78, log="error: x\n", reason="r"), "error: x"), (dict(code=78, log="fine\n", reason="r"), "r"),
        (dict(code=2, log="error: x\n"), "error: x"),
        (dict(code=75, log="error: x\n"), "error: x"), (dict(log=TRACE), "ZeroDivisionError: division by zero"),
        (dict(log="error: x\n"), "error: x"), (dict(), ""),
    ],
)  # fmt: skip
def test_the_line_that_shows_it(facts, line):
    found = cause(**facts)
    assert found.line == line and "resume r1" in found.fix + " resume r1" * (facts.get("state") == "diverged")


def test_slurms_record_may_say_nothing():
    for quiet in (
        Job("1", "FAILED", exit_code=1),
        Job("1", "COMPLETED", exit_code=0, exit_signal=0),
        Job("1", "FAILED", exit_code=128),
        Job("1", "FAILED"),
    ):
        assert "without a word" in cause(job=quiet).text


def test_lines_of_a_log():
    noise = "srun: error: n1: task 0: Exited with exit code 1\nslurmstepd: error: x\n"
    assert why.last_error(f"error: first\nerror: second\n{noise}") == "error: second"
    assert (
        why.last_error("sbatch: error: x\n") == "sbatch: error: x" and why.last_error("an Error: x\n") == "an Error: x"
    )
    assert why.last_error("an error: x\nno errors\n") == ""
    assert why._traceback(f"{TRACE}more\n{TRACE.replace('Zero', 'One')}") == "OneDivisionError: division by zero"
    assert why._traceback("Traceback (most recent call last):\n  x\n[rank0]: y\n") == "" and why._traceback("x") == ""
    assert (
        why._last_match("x", "x old\n" + "y\n" * 400) == "" and why._last_match("x", "x old\n" + "y\n" * 399) == "x old"
    )
    assert len(why._last_match("x", "x" * 999)) == 300


@pytest.mark.parametrize(
    ("state", "pending", "text", "fix"),
    [
        ("queued", "PartitionTimeLimit", "job 42 is pending: ", "stop brains"),
        ("queued", "PartitionConfig", "job 42 is pending", "stop brains"),
        ("queued", "Priority", "job 42 is pending", ""),
        ("running", None, "nothing is wrong: it is running on n1", ""), ("hanging", None, "no heartbeat", "--now"),
        ("done", None, "it is done", "--total-kimg"), ("ending", None, "nothing is wrong", ""),
        ("stopped", None, "a person stopped it", "resume brains"),
    ],
)  # fmt: skip
def test_the_cause_of_a_state(run, state, pending, text, fix):
    age = 7200 if state == "hanging" else 0
    tell(run, state={"hanging": "running", "ending": "failed"}.get(state, state), updated=time.time() - age, reason="")
    queue = (
        [Job("42", "PENDING", reason=pending)]
        if pending
        else [running(start=1.0)]
        if state in ("running", "hanging", "ending")
        else []
    )
    seen, found = why.explain(run.path, {job.id: job for job in queue})
    assert seen.state == state and text in found.text and fix in found.fix and bool(found.fix) == bool(fix)


def test_the_evidence_is_of_the_last_attempt(run, monkeypatch):
    tell(run, state="failed", reason="the heartbeat's")
    for event, facts in (
        ("start", dict(attempt=1)), ("end", dict(attempt=1, reason="first", code=85, nimg=10)),
        ("decision", dict(why="goes on", code=85)),
        ("start", dict(attempt=2)), ("decision", dict(why="killed", code=137)),
    ):  # fmt: skip
        run.note(event, **facts)
    (run.logs / "1.out").write_text("old\n")
    (run.logs / "2.out").write_text("new\n")
    os.utime(run.logs / "1.out", (1, 1))
    seen = view(run)
    assert why.gather(run.path, seen, None) == why.Evidence(
        "failed", "the heartbeat's", 137, None, "new\n", "killed", 0
    )
    run.note("end", attempt=2, reason="second", code=1, nimg=20)
    assert why.gather(run.path, seen, None) == why.Evidence("failed", "second", 1, None, "new\n", "killed", 20)
    run.attempts.write_text('{"event": "end", "code": "x"}\n')
    assert why.gather(run.path, seen, None).code is None
    monkeypatch.setattr(why, "slurm_record", lambda run: pytest.fail("asked"))
    assert why.explain(run.path, status.Silent())[0].state == "failed"  # Slurm would not answer for its record either


def test_slurms_record_of_the_last_job(run, monkeypatch):
    tell(run, jobs=[("1", "main"), ("2", "chain"), ("3", "local")])
    asked = []
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "show_job", lambda i: asked.append(i))
    monkeypatch.setattr(slurm, "sacct", lambda ids: {"2": Job("2", "TIMEOUT")})
    assert why.slurm_record(run.path).state == "TIMEOUT" and asked == ["2"]
    monkeypatch.setattr(slurm, "show_job", lambda i: Job(i, "NODE_FAIL"))
    assert why.slurm_record(run.path).state == "NODE_FAIL"
    monkeypatch.setattr(slurm, "show_job", lambda i: None)
    monkeypatch.setattr(slurm, "sacct", lambda ids: None)
    assert why.slurm_record(run.path) is None
    monkeypatch.setattr(slurm, "available", lambda: False)
    monkeypatch.setattr(slurm, "show_job", lambda i: pytest.fail("asked"))
    assert why.slurm_record(run.path) is None


def test_logs_by_their_age(run):
    (run.logs / "submitit").mkdir()
    names = ("9.out", "submitit/1_0_log.out", "8.out", "submitit/controller.out", "x.txt")
    for i, name in enumerate(names):
        (run.logs / name).write_text(name)
        os.utime(run.logs / name, (100 - i,) * 2)
    assert [path.name for path in why.log_files(run.path)] == ["8.out", "1_0_log.out", "9.out"] and why.newest_log(
        run.path
    ).name == "9.out"
    assert why.newest_log(run.path / "nowhere") is None


def test_the_end_of_a_log(run):
    log = run.logs / "1.out"
    log.write_bytes(b"0123456789\xff\x1b[31m\r\nx\ry\x07")
    assert (
        why.tail(log) == "0123456789\ufffd\nx\ny" and why.tail(log, 3, 10) == "789" and why.tail(log, 100, 4) == "0123"
    )
    assert why.tail(run.logs / "none") == ""
    assert why.clean("a\tb\n\x00\x85\x1b[2Kc") == "a\tb\nc"


def test_this_interpreter_is_named_as_it_can_be_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wording.shutil, "which", lambda name: sys.executable)
    assert wording.python() == "python"
    monkeypatch.setattr(wording.shutil, "which", lambda name: None)
    assert wording.python() == str(Path(sys.executable).absolute())
