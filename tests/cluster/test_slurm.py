"""What Slurm's commands print, parsed: real text of Slurm 22.05, other forms from its manuals, and text that is
neither."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from private_cluster import Cluster, missing_accounts

from jobs.cluster import slurm
from jobs.cluster.slurm import FIELD, RECORD, Job, SlurmError

SHOW_RUNNING = """JobId=5246662 ArrayJobId=5246662 ArrayTaskId=0 JobName=we ird JobState=FAILED|x
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901759 Nice=0 Account=(null) QOS=normal
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=1-00:00:03 TimeLimit=2-00:20:00 TimeMin=N/A
   SubmitTime=2026-11-21T07:21:10 EligibleTime=2026-11-21T07:21:10
   AccrueTime=2026-11-21T07:21:10
   StartTime=2026-11-21T07:21:11 EndTime=2026-11-21T07:41:11 Deadline=N/A
   PreemptEligibleTime=2026-11-21T07:21:11 PreemptTime=2026-11-21T07:21:15
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-21T07:21:11 Scheduler=Backfill
   Partition=a100 AllocNode:Sid=localhost:8181
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=n[1-2]
   BatchHost=n1
   NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=1,mem=1000M,node=1,billing=1
   Socks/Node=* NtasksPerN:B:S:C=0:0:*:* CoreSpec=*
   MinCPUsNode=1 MinMemoryCPU=1000M MinTmpDiskNode=0
   Features=(null) DelayBoot=00:00:00
   OverSubscribe=OK Contiguous=0 Licenses=(null) Network=(null)
   Command=/home/me/my runs/job.sbatch a b=c
   WorkDir=/home/me/my runs
   StdErr=/home/me/out put.log
   StdIn=/dev/null
   StdOut=/home/me/out put.log
   Power=
   TresPerNode=gres:gpu:a100:1

JobId=5246663 ArrayJobId=5246662 ArrayTaskId=1 JobName=x
   JobState=PENDING Reason=Priority Dependency=(null)
"""


def unix(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def test_show_job_reads_its_first_record_and_no_field_out_of_a_name():
    job = slurm.parse_show_job(SHOW_RUNNING)
    assert job == Job(
        id="5246662_0", array_task=0, name="we ird JobState=FAILED|x", user="root", state="RUNNING", partition="a100",
        nodes="n[1-2]", elapsed_s=86403, limit_s=2 * 86400 + 1200, start=unix("2026-11-21T07:21:11"),
        end=unix("2026-11-21T07:41:11"), exit_code=0, exit_signal=0, restarts=2,
        preempt_time=unix("2026-11-21T07:21:15"),
        requeue=True, command="/home/me/my runs/job.sbatch a b=c", workdir="/home/me/my runs",
        stdout="/home/me/out put.log", gres="gpu:a100:1", array=True,
        submitted=unix("2026-11-21T07:21:10"),
    )  # fmt: skip
    assert job.active


def test_show_job_of_a_job_without_times():
    text = SHOW_RUNNING.replace("2026-11-21T07:21:15", "None").replace("EndTime=2026-11-21T07:41:11", "EndTime=Unknown")
    text = text.replace("TimeLimit=2-00:20:00", "TimeLimit=UNLIMITED").replace("gres:gpu:a100:1", "gres/gpu:2")
    job = slurm.parse_show_job(text.replace("JobState=RUNNING Reason=None", "JobState=PENDING Reason=BeginTime"))
    assert (job.preempt_time, job.end, job.limit_s, job.gres) == (None, None, None, "gpu:2")
    assert (job.state, job.reason) == ("PENDING", "BeginTime")


def row(*fields: str) -> str:
    return FIELD.join(fields) + RECORD + "\n"


def test_squeue():
    times = ("1-02:03:04", "UNLIMITED", "2026-11-21T07:21:11", "N/A")
    text = row(
        "12", "PENDING", "Dependency", "me", "a100", "", *times, "afterany:11(unfulfilled)", "a|b c", "(null)", "/w"
    )
    text += row("13_4", "RUNNING", "None", "me", "a100", "n1", *times, "(null)", "line\nbreak", "/j.sh", "/w x")
    jobs = slurm.parse_squeue(text)
    assert list(jobs) == ["12", "13_4"]
    assert jobs["12"].dependency == "afterany:11(unfulfilled)" and jobs["12"].reason == "Dependency"
    assert jobs["12"].name == "a|b c" and jobs["12"].command == "" and jobs["12"].array_task is None
    assert jobs["13_4"].array_task == 4 and jobs["13_4"].name == "line\nbreak" and jobs["13_4"].workdir == "/w x"
    assert jobs["13_4"].elapsed_s == 93784 and jobs["13_4"].limit_s is None and jobs["13_4"].end is None
    assert slurm.parse_squeue("") == {}


def test_sacct_shows_the_last_of_several_runs():
    common = ("a100", "n1", "62", "20", "2026-11-21T07:21:11", "2026-11-21T07:22:13", "me", "name", "None", "/w")
    lines = [
        ("7", "PREEMPTED", "0:0", *common),
        ("7", "CANCELLED by 1000", "0:15", *common),
        ("8", "NODE_FAIL", "1:0", *common),
    ]
    jobs = slurm.parse_sacct("\n".join(FIELD.join(line) for line in lines) + "\n")
    assert (jobs["7"].state, jobs["7"].restarts, jobs["7"].exit_signal) == ("CANCELLED", 1, 15)
    assert (jobs["8"].state, jobs["8"].restarts, jobs["8"].exit_code) == ("NODE_FAIL", 0, 1)
    assert (jobs["8"].elapsed_s, jobs["8"].limit_s) == (62, 1200)
    assert not jobs["7"].active


PARTITIONS = """PartitionName=a100 AllowGroups=ALL AllowAccounts=comp3710,other AllowQos=ALL AllocNodes=ALL Default=NO DefaultTime=00:20:00 DisableRootJobs=NO GraceTime=10 Hidden=NO MaxNodes=UNLIMITED MaxTime=1-00:00:00 Nodes=n[1-2] PriorityTier=10 State=UP TotalCPUs=64 TotalNodes=2 DefMemPerCPU=1000 MaxMemPerNode=UNLIMITED
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL Default=YES DefaultTime=NONE MaxTime=UNLIMITED Nodes=c1 State=DOWN TotalCPUs=8 TotalNodes=1
"""


def test_partitions():
    nodes = row("a100", "2", "32", "1", "gpu:a100:4(S:0-1),shard:16") + row("a100", "1", "64+", "256000+", "gpu:a100:8")
    found = slurm.parse_partitions(PARTITIONS, nodes + row("cpu", "1", "8", "1000", "(null)"))
    a100, cpu = found["a100"], found["cpu"]
    assert a100.up and not a100.default and a100.allow_accounts == ("comp3710", "other")
    assert (a100.max_time_s, a100.default_time_s, a100.nodes) == (86400, 1200, 3)
    assert (a100.cpus_per_node, a100.real_memory_mb, a100.gres) == (64, 256000, {"gpu:a100": 8, "shard": 16})
    assert not cpu.up and cpu.default and cpu.allow_accounts is None
    assert (cpu.max_time_s, cpu.default_time_s, cpu.gres) == (None, None, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpu:4", {"gpu": 4}), ("gpu:a100:2(IDX:0-1)", {"gpu:a100": 2}), ("(null)", {}), ("N/A", {}),
        ("fast", {"fast": 1}),
        ("gpu:a100:1,gpu:a100:1", {"gpu:a100": 2}), ("bandwidth:lustre:4G", {"bandwidth:lustre": 4 * 1024**3}),
    ],
)  # fmt: skip
def test_gres(text, expected):
    assert slurm.parse_gres(text) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("1:30", 90), ("1:02:03", 3723), ("2-03", 183600), ("2-03:04", 183840), ("2-03:04:05", 183845),
        ("UNLIMITED", None), ("INVALID", None), ("Partition_Limit", None),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert slurm.parse_time(text) == seconds


@given(st.integers(0, 10**8))
def test_a_written_time_is_read_back(seconds):
    assert slurm.parse_time(slurm.format_time(seconds)) == seconds


HOSTILE = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from([FIELD, RECORD, "\n", "\n\n", "=", "1", "x", "JobId=1", "JobState=", "²", "9" * 30]),
    max_size=40).map("".join),
)  # fmt: skip


@pytest.mark.parametrize("parser", ["parse_squeue", "parse_show_job", "parse_sacct", "parse_gres", "parse_time"])
@given(text=HOSTILE)
def test_hostile_text_is_an_answer_or_a_slurm_error(parser, text):
    try:
        getattr(slurm, parser)(text)
    except SlurmError as error:
        assert "\n" not in str(error) or "\n" in text


@given(partition=HOSTILE, nodes=HOSTILE)
def test_hostile_partitions(partition, nodes):
    try:
        slurm.parse_partitions(partition, nodes)
    except SlurmError:
        pass


@pytest.mark.parametrize("job_id", ["", "1;rm -rf /", "--me", "1 2", "²", "1_", "1,2"])
def test_a_job_id_that_is_none_reaches_no_command(job_id, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # a command that is called after all says `not found`
    for call in (slurm.show_job, slurm.requeue, slurm.cancel, lambda i: slurm.squeue([i]), lambda i: slurm.sacct([i])):
        with pytest.raises(SlurmError, match="is not a Slurm job id"):
            call(job_id)


def fake(tmp_path, monkeypatch, name: str, text: str) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


def test_commands_that_are_missing_fail_or_hang(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(SlurmError, match="not found"):
        slurm.requeue("1")
    assert slurm.sacct(["1"]) is None
    fake(tmp_path, monkeypatch, "scontrol", "echo 'Invalid job id specified' >&2; exit 1")
    assert slurm.show_job("1") is None
    fake(tmp_path, monkeypatch, "scontrol", "echo 'scontrol: error: no\n\nwords' >&2; exit 1")
    with pytest.raises(SlurmError, match="no words"):
        slurm.show_job("1")
    fake(tmp_path, monkeypatch, "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert slurm.sacct(["1"]) is None
    monkeypatch.setattr(slurm, "TIMEOUT_S", 0.2)
    fake(tmp_path, monkeypatch, "scancel", "exec sleep 30")
    with pytest.raises(SlurmError, match="no answer"):
        slurm.cancel("1")


def test_a_users_own_formats_are_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("SQUEUE_FORMAT", "%j")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    fake(tmp_path, monkeypatch, "squeue", 'test -z "$SQUEUE_FORMAT" && test "$SLURM_TIME_FORMAT" = standard')
    assert slurm.squeue() == {}


# --- the same on a real controller ------------------------------------------------------------------------------------
@pytest.fixture
def login(cluster, monkeypatch):
    """This process as one on the login node."""
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    yield cluster
    cluster.cancel_all()


def test_on_a_real_cluster(login, tmp_path):
    assert slurm.available()
    found = slurm.partitions()
    assert set(found) == {"a100", "a100-test", "cpu"} and found["cpu"].default
    assert found["a100"].gres == {"gpu:a100": 4} and found["a100-test"].max_time_s == 600
    job = login.sbatch(
        "-p", "a100", "--array=0-1", "--job-name=a JobState=FAILED | b", "--gres=gpu:a100:1", "-o", "/dev/null",
        "--wrap", "sleep 60",
    )  # fmt: skip
    login.wait(lambda: login.state(f"{job}_0") == "RUNNING", "the start")
    shown, queued = slurm.show_job(f"{job}_0"), slurm.squeue([job])
    assert set(queued) == {f"{job}_0", f"{job}_1"} <= set(slurm.squeue())
    for found in (shown, queued[f"{job}_0"]):
        assert (found.state, found.name, found.array_task) == ("RUNNING", "a JobState=FAILED | b", 0)
        assert found.active and found.limit_s == 1200 and 1190 < found.end - found.start < 1210
    assert shown.gres == "gpu:a100:1" and shown.stdout == "/dev/null"
    slurm.requeue(f"{job}_0")
    login.wait(lambda: slurm.show_job(f"{job}_0").restarts == 1, "the requeue")
    slurm.cancel(job)
    login.wait(lambda: slurm.show_job(f"{job}_1").state == "CANCELLED", "the end")
    assert not slurm.squeue([job])[f"{job}_1"].active
    assert (
        slurm.show_job("7") is None and slurm.squeue(["7", job]).keys() == queued.keys() and slurm.squeue(["7"]) == {}
    )
    assert slurm.sacct([job]) is None
    with pytest.raises(SlurmError, match="Invalid job id"):
        slurm.requeue("7")


def test_test_only_on_a_real_cluster(login):
    assert slurm.test_only("#!/bin/bash\n#SBATCH -p a100\ntrue\n")[0]
    for header, words in [
        ("-p nope", "Invalid partition name"),
        ("-p a100 --gres=gpu:h100:1", "not available"),
        ("-t x", "time"),
    ]:
        accepted, text = slurm.test_only(f"#!/bin/bash\n#SBATCH {header}\ntrue\n")
        assert not accepted and words in text, text
    accepted, text = slurm.test_only("#!/bin/bash\r\n#SBATCH -p a100\r\ntrue\r\n")
    assert not accepted and "DOS line breaks" in text


@pytest.mark.long
@pytest.mark.long
@pytest.mark.skipif(bool(missing_accounts()), reason=f"no accounting for the tests: {missing_accounts()}")
def test_accounting_switched_on(monkeypatch):
    """sacct of a requeued, a failed and a running job; none of them needs the controller's memory."""
    cluster = Cluster(LAB_ACCT="dbd")
    try:
        cluster.up()
        monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        again = cluster.sbatch("-p", "a100", "--requeue", "-o", "/dev/null", "--wrap", "sleep 300")
        failed = cluster.sbatch("-p", "a100", "-o", "/dev/null", "--job-name=a|b", "--wrap", "exit 3")
        cluster.wait(lambda: cluster.state(again) == "RUNNING", "the start")
        slurm.requeue(again)
        cluster.wait(lambda: cluster.state(again) == "RUNNING" and cluster.restarts(again) == 1, "the restart")
        slurm.cancel(again)
        cluster.wait_over(again)
        cluster.wait(lambda: slurm.sacct([again])[again].state == "CANCELLED", "the database")
        found = slurm.sacct([again, failed])
        assert found[again].restarts == 1 and found[again].partition == "a100"
        assert (found[failed].state, found[failed].exit_code, found[failed].name) == ("FAILED", 3, "a|b")
        assert slurm.sacct(["7"]) == {}
    finally:
        cluster.down()
