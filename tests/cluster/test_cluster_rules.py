"""The rules of the cluster half, one by one: what Slurm's words mean, what is asked of it, what is refused before
queueing."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

from jobs.cluster import doctor, preflight, quota, sbatch, sites, slurm, submit
from jobs.cluster import plan as planning
from jobs.cluster.options import PROFILE, REMEMBERED, Options
from jobs.cluster.plan import Plan
from jobs.cluster.sites import Site
from jobs.cluster.slurm import FIELD, RECORD, Job, Partition, SlurmError
from jobs.cluster.status import live_jobs
from jobs.cluster.submit import SubmitError
from jobs.config import kinds, parsing, specs
from jobs.config.specs import ConfigError
from jobs.run import find, rundir
from jobs.run.rundir import RunDir

HOUR, DAY = 3600, 86400


@pytest.fixture(autouse=True)
def no_own_profiles(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sites.socket, "gethostname", lambda: "login")  # of no cluster that has a profile


def unix(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))


def test_what_holds_where_nobody_says_otherwise():
    """Defaults of a profile, of a plan and of the waits: a change of one is a change of what every job does."""
    assert asdict(Site("s")) == dict(
        name="s", about="", hosts=(), recognise=(), partition="", account="", qos="", time="4:00:00", max_time="",
        cpus=4, gres="gpu:{gpus}",
        margin=180, requeue=True, login="", jump="", remote_dir="", note="", data={}, partitions={},
        second_after="", gpus=None, nodes=None, mem="", constraint="", exclude="", nodelist="", reservation="",
        nice=None, comment="", slurm=(),
    )  # fmt: skip
    plan = Plan("vae", None, Path("/r"), Site("s"), False)
    assert (plan.minutes, plan.nodes, plan.gpus, plan.cpus, plan.max_restarts, plan.shared, plan.chain) == (
        240,
        1,
        1,
        4,
        20,
        False,
        False,
    )
    assert (slurm.TIMEOUT_S, preflight.STARTUP_S, preflight.SLACK_GB) == (20, 120, 0.5)
    assert submit.LOCAL_MINUTES == 365 * 24 * 60 and set(parsing.PATH_FIELDS) == {
        "data",
        "init_from",
        "vae",
        "perceptual_file",
        "feature_weights",
        "table",
    }
    assert set(REMEMBERED) == set(PROFILE) | {"site", "shared", "local", "max_restarts", "notify", "max_gpu_hours",
        "throttle"}  # fmt: skip


# --- Slurm's words ----------------------------------------------------------------------------------------------------
def test_which_states_are_of_a_job_that_is_not_over():
    over = (
        "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT "
        "LAUNCH_FAILED RECONFIG_FAIL"
    )
    live = (
        "PENDING RUNNING SUSPENDED STOPPED COMPLETING CONFIGURING RESIZING SIGNALING STAGE_OUT REQUEUED REQUEUE_FED "
        "REQUEUE_HOLD SPECIAL_EXIT RESV_DEL_HOLD"
    )
    assert all(Job("1", state).active for state in live.split())
    assert not any(Job("1", state).active for state in over.split())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("1", 60), ("1:01", 61), ("1:00:01", 3601), ("1:01:00", 3660), ("1-0", DAY), ("1-01", DAY + HOUR),
        ("1-00:01", DAY + 60),
        ("1-00:00:01", DAY + 1), ("0-00:00:00", 0), (" 2-01:01:01 ", 2 * DAY + 3661), ("infinite", None),
        ("None", None), ("N/A", None),
        ("NOT_SET", None), ("", None), ("unlimited", None),
    ],
)  # fmt: skip
def test_durations(text, seconds):
    assert slurm.parse_time(text) == seconds


@pytest.mark.parametrize("text", ["x", "1:2:3:4", "1-", "-1", "1d", "1.5", "1 2"])
def test_what_is_no_duration(text):
    with pytest.raises(SlurmError, match="is not a time"):
        slurm.parse_time(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00:00"), (59.9, "00:00:59"), (60, "00:01:00"), (3599, "00:59:59"), (86399, "23:59:59"),
    (86400, "1-00:00:00"),
     (2 * DAY + 3 * HOUR + 4 * 60 + 5, "2-03:04:05"), (None, "UNLIMITED"), (-5, "00:00:00")],
)  # fmt: skip
def test_durations_as_slurm_writes_them(seconds, text):
    assert slurm.format_time(seconds) == text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:1", {"gpu": 1}), ("gpu", {"gpu": 1}), ("gpu:a100", {"gpu:a100": 1}),
        ("gpu:a100:2,gpu:h100:3", {"gpu:a100": 2, "gpu:h100": 3}),
        ("gpu:a100:2(S:0),gpu:a100:2(S:1)", {"gpu:a100": 4}), ("mps:1k", {"mps": 1024}),
        ("mps:2M", {"mps": 2 * 1024**2}),
        ("none", {}), ("", {}), ("n/a", {}), (" gpu:2 , shard:8", {"gpu": 2, "shard": 8}),
    ],
)  # fmt: skip
def test_generic_resources(text, found):
    assert slurm.parse_gres(text) == found


@pytest.mark.parametrize(
    ("text", "code", "number"), [("", None, None), ("0:0", 0, 0), ("1:9", 1, 9), ("9:1", 9, 1), ("3", 3, 0)]
)
def test_exit_codes(text, code, number):
    assert slurm._exit(text) == (code, number)


def test_words_that_stand_for_nothing():
    assert {slurm._text(word) for word in ("(null)", "None", "N/A", "None assigned", "Unknown", "")} == {""}
    assert slurm._text("none") == "none" and slurm._number("007") == 7
    for text in ("", "x", "-1", "1.5", "9" * 19, "\u0663"):
        with pytest.raises(SlurmError, match="is not a number"):
            slurm._number(text)


def test_a_date_is_local_time_and_nothing_is_nothing():
    assert slurm._date("2026-01-31T12:00:00") == unix("2026-01-31T12:00:00")
    assert all(slurm._date(word) is None for word in ("", "N/A", "NONE", "None", "Unknown", "(null)"))
    with pytest.raises(SlurmError, match="date"):
        slurm._date("tomorrow")


SHOWN = """JobId=7 JobName=x
   UserId=me(1000) GroupId=me(1000)
   JobState=COMPLETING Reason=TimeLimit Dependency=afterany:6(unfulfilled)
   Requeue=0 Restarts=3 BatchFlag=1 Reboot=0 ExitCode=2:15
   RunTime=00:10:00 TimeLimit=00:20:00 TimeMin=N/A
   StartTime=2026-11-21T07:21:11 EndTime=2026-11-21T07:31:11 Deadline=N/A
   PreemptEligibleTime=2026-11-21T07:21:11 PreemptTime=2026-11-21T07:25:00
   Partition=a100 AllocNode:Sid=login:8181
   NodeList=n1
   Command=(null)
   WorkDir=/w
   Comment=JobState=RUNNING Restarts=9
   StdOut=/o
"""


def test_one_job():
    assert slurm.parse_show_job(SHOWN) == Job(
        "7", "COMPLETING", name="x", user="me", reason="TimeLimit", partition="a100", nodes="n1", elapsed_s=600,
        limit_s=1200,
        start=unix("2026-11-21T07:21:11"), end=unix("2026-11-21T07:31:11"), exit_code=2, exit_signal=15, restarts=3,
        preempt_time=unix("2026-11-21T07:25:00"), requeue=False, command="", workdir="/w",
        dependency="afterany:6(unfulfilled)", stdout="/o", gres="",
    )  # fmt: skip
    assert slurm.parse_show_job("") is None and slurm.parse_show_job("\n\n") is None
    with pytest.raises(SlurmError, match="unexpected"):
        slurm.parse_show_job("Slurm=odd\n")


def test_an_array_that_has_not_been_split_is_one_job():
    shown = slurm.parse_show_job(SHOWN.replace("JobId=7", "JobId=7 ArrayJobId=7 ArrayTaskId=0-3%2"))
    assert (shown.id, shown.array_task) == ("7", None)
    task = slurm.parse_show_job(SHOWN.replace("JobId=7", "JobId=9 ArrayJobId=7 ArrayTaskId=2"))
    assert (task.id, task.array_task) == ("7_2", 2)


def squeue_row(**given) -> str:
    row = dict(id="12", state="RUNNING", reason="None", user="me", partition="p", nodes="n[1-2]", elapsed="1:00",
        limit="2:00", start="2026-11-21T07:21:11",
               end="2026-11-21T07:23:11", dependency="(null)", name="brains", command="/c",
               workdir="/w") | given  # fmt: skip
    return FIELD.join(row.values()) + RECORD + "\n"


def test_the_columns_of_squeue():
    (found,) = slurm.parse_squeue(squeue_row()).values()
    assert found == Job(
        "12", "RUNNING", name="brains", user="me", partition="p", nodes="n[1-2]", elapsed_s=60, limit_s=120,
        start=unix("2026-11-21T07:21:11"), end=unix("2026-11-21T07:23:11"), command="/c", workdir="/w",
    )  # fmt: skip
    with pytest.raises(SlurmError, match="unexpected"):
        slurm.parse_squeue(squeue_row() + "12" + FIELD + "RUNNING" + RECORD)
    with pytest.raises(SlurmError, match="without a state"):
        slurm.parse_squeue(squeue_row(state=""))


def test_the_columns_of_sacct():
    row = (
        "7_3",
        "CANCELLED by 1000",
        "1:15",
        "p",
        "n1",
        "62",
        "20",
        "2026-11-21T07:21:11",
        "Unknown",
        "me",
        "brains",
        "None",
        "/w",
    )
    (found,) = slurm.parse_sacct(FIELD.join(row) + "\n").values()
    assert found == Job(
        "7_3", "CANCELLED", array_task=3, name="brains", user="me", partition="p", nodes="n1", elapsed_s=62,
        limit_s=1200,
        start=unix("2026-11-21T07:21:11"), exit_code=1, exit_signal=15, workdir="/w",
    )  # fmt: skip
    (blank,) = slurm.parse_sacct(FIELD.join(("7", "PENDING", "0:0", "p", "None assigned", "", "Partition_Limit",
        *["Unknown"] * 2, *row[9:]))).values()  # fmt: skip
    assert (blank.nodes, blank.elapsed_s, blank.limit_s, blank.start) == ("", None, None, None)
    three = slurm.parse_sacct(
        "\n".join(FIELD.join(("7", state, *row[2:])) for state in ("PREEMPTED", "TIMEOUT", "FAILED"))
    )
    assert (three["7"].state, three["7"].restarts) == ("FAILED", 2)
    with pytest.raises(SlurmError, match="unexpected"):
        slurm.parse_sacct(FIELD.join(row[:-1]))


def test_partitions_and_their_largest_nodes():
    lines = [
        "PartitionName=a AllowAccounts=x,y Default=NO DefaultTime=00:20:00 MaxTime=1-00:00:00 State=UP",
        "PartitionName=b AllowAccounts=ALL Default=YES DefaultTime=NONE MaxTime=UNLIMITED State=DRAIN",
        "",
    ]
    rows = [
        ("a", "2", "64", "1", "gpu:a100:4,shard:1"),
        ("a", "3", "32+", "256000+", "gpu:a100:2,gpu:h100:8"),
        ("c", "1", "1", "1", ""),
    ]
    found = slurm.parse_partitions("\n".join(lines), "\n".join(FIELD.join(row) + RECORD for row in rows))
    assert found == {
        "a": Partition(
            "a", True, DAY, 1200, 5, 64, 256000, ("x", "y"), False, {"gpu:a100": 4, "shard": 1, "gpu:h100": 8}
        ),
        "b": Partition("b", False, None, None, 0, 0, 0, None, True, {}),
    }
    with pytest.raises(SlurmError, match="unexpected"):
        slurm.parse_partitions("PartitionName=a MaxTime=1\n", "")


def test_what_a_command_does_not_tell():
    unknown = dict.fromkeys(
        "array_task elapsed_s limit_s submitted start end exit_code exit_signal preempt_time".split()
    )
    texts = dict.fromkeys(
        "name user reason partition nodes command workdir dependency stdout gres excluded".split(), ""
    )
    assert (
        asdict(Job("1", "X"))
        == {"id": "1", "state": "X", "restarts": 0, "requeue": False, "array": False, "shown": {}} | unknown | texts
    )


# --- Slurm's commands -------------------------------------------------------------------------------------------------
class Commands:
    """In place of running a command: what was asked, and the answers."""

    def __init__(self):
        self.calls, self.answer, self.error = [], "", ""

    def __call__(self, command, stdin="", timeout=0, merge=False):
        self.calls.append((command, stdin, merge))
        if self.error:
            raise SlurmError(self.error)
        return self.answer

    @property
    def last(self) -> list[str]:
        return self.calls[-1][0]


@pytest.fixture
def commands(monkeypatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(slurm, "_run", found)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/usr/bin/{name}")
    return found


def test_squeue_asks_for_all_of_this_user_or_for_some(commands):
    commands.answer = squeue_row()
    assert set(slurm.squeue()) == {"12"}
    columns = "%i %T %r %u %P %N %M %l %S %e %E %j %o %Z".split()  # what the parser takes them for
    form = FIELD.join(columns) + RECORD
    assert commands.last == ["squeue", "-h", "-r", "-t", "all", "-o", form, "-u", str(os.getuid())]
    slurm.squeue(["12", "13_4"])
    assert commands.last[-2:] == ["-j", "12,13_4"] and "-u" not in commands.last
    asked = len(commands.calls)
    assert slurm.squeue([]) == {} and len(commands.calls) == asked
    commands.error = "squeue: Invalid job id specified"
    assert slurm.squeue(["12"]) == {}
    with pytest.raises(SlurmError):
        slurm.squeue()
    commands.error = "squeue: timed out"
    with pytest.raises(SlurmError):
        slurm.squeue(["12"])


def test_one_job_is_asked_for_by_its_id(commands):
    commands.answer = SHOWN
    assert slurm.show_job("7").id == "7" and commands.last == ["scontrol", "show", "job", "7"]
    commands.error = "scontrol: Invalid job id specified"
    assert slurm.show_job("7") is None
    commands.error = "scontrol: Unable to contact slurm controller"
    with pytest.raises(SlurmError):
        slurm.show_job("7")


def test_accounting_that_is_off_is_no_error(commands, monkeypatch):
    assert slurm.sacct(["7"]) == {} and slurm.sacct([]) == {}
    columns = "JobID,State,ExitCode,Partition,NodeList,ElapsedRaw,TimelimitRaw,Start,End,User,JobName,Reason,WorkDir"
    how = ["-X", "-D", "-n", "-P", f"--delimiter={FIELD}", f"--format={columns}"]
    assert commands.last == ["sacct", *how, "-j", "7"]
    for words in ("Slurm accounting storage is disabled", "sacct: Unable to connect to database"):
        commands.error = words
        assert slurm.sacct(["7"]) is None
    commands.error = "sacct: no answer"
    with pytest.raises(SlurmError):
        slurm.sacct(["7"])
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert slurm.sacct(["7"]) is None


def test_what_ends_and_requeues(commands):
    slurm.requeue("7")
    assert commands.last == ["scontrol", "requeue", "7"]
    slurm.cancel("7_1")
    assert commands.last == ["scancel", "7_1"]
    slurm.cancel("7", signal="USR2")
    assert commands.last == ["scancel", "--signal=USR2", "7"]
    slurm.cancel("7", signal="TERM", batch=True)
    assert commands.last == ["scancel", "--signal=TERM", "--batch", "7"]


def test_a_script_is_tried_without_being_queued(commands):
    commands.answer = "Job 7 to start at ..."
    assert slurm.test_only("#!/bin/bash\n") == (True, "Job 7 to start at ...")
    assert commands.calls[-1] == (["sbatch", "--test-only"], "#!/bin/bash\n", True)
    commands.error = "sbatch --test-only: allocation failure: Invalid qos"
    assert slurm.test_only("") == (False, commands.error)


def test_partitions_are_asked_for_with_the_hidden_ones(commands):
    slurm.partitions()
    assert commands.calls[0][0] == ["scontrol", "show", "partition", "--all", "-o"]
    assert commands.calls[1][0] == ["sinfo", "-h", "--all", "-o", FIELD.join(("%R", "%D", "%c", "%m", "%G")) + RECORD]


@pytest.mark.parametrize(
    ("answer", "up"),
    [("Slurmctld(primary) at login is UP", True), ("Slurmctld(primary) at login is DOWN\nSlurmctld(backup) at b is UP",
        True),
     ("Slurmctld(primary) at login is DOWN", False), ("Slurmctld(primary) at UPSTAIRS is DOWN", False)],
)  # fmt: skip
def test_whether_a_controller_answers(commands, monkeypatch, answer, up):
    commands.answer = answer
    assert slurm.available() == up and commands.last == ["scontrol", "ping"]
    commands.error = "no answer"
    assert not slurm.available()
    asked = len(commands.calls)
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    assert not slurm.available() and len(commands.calls) == asked


def test_a_command_and_its_words(tmp_path, monkeypatch):
    script = tmp_path / "scontrol"
    script.write_text("#!/bin/sh\ncat\necho out; echo 'scontrol: error: err' >&2; exit ${CODE:-0}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert slurm._run(["scontrol", "x"], "in ") == "in out\n"
    assert slurm._run(["scontrol", "x"], merge=True) == "err out"
    monkeypatch.setenv("CODE", "3")
    with pytest.raises(SlurmError, match=r"^scontrol show: err$"):
        slurm._run(["scontrol", "show", "job"])
    script.write_text('#!/bin/sh\necho "$SLURM_TIME_FORMAT $LC_ALL $SQUEUE_X$SINFO_X$SACCT_X$SCONTROL_X $SLURM_CONF"\n')
    for name in ("SQUEUE_X", "SINFO_X", "SACCT_X", "SCONTROL_X"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("CODE", "0")
    monkeypatch.setenv("SLURM_CONF", "/etc/it")
    assert slurm._run(["scontrol"]).split() == ["standard", "C.UTF-8", "/etc/it"]


# --- site profiles ----------------------------------------------------------------------------------------------------
def test_the_profile_of_rangpur():
    rangpur = sites.load_sites()["rangpur"]
    assert (rangpur.partition, rangpur.time, rangpur.cpus, rangpur.gres, rangpur.margin) == (
        "a100",
        "4:00:00",
        4,
        "gpu:a100:{gpus}",
        180,
    )
    assert (
        rangpur.requeue
        and rangpur.login == "rangpur.compute.eait.uq.edu.au"
        and rangpur.jump == "remote.labs.eait.uq.edu.au"
    )
    assert (
        rangpur.account == ""
        and rangpur.on("comp3710").account == "comp3710"
        and rangpur.on("comp3710").max_time == "12:00:00"
    )
    assert (rangpur.on("a100-test").time, rangpur.on("a100-test").max_time) == ("20:00", "20:00")
    assert (
        rangpur.on("p100").gres == rangpur.on("p100-grind").gres == "gpu:p100:{gpus}"
        and rangpur.on("cpu").gres == rangpur.on("largecpu").gres == ""
    )
    assert rangpur.on("a100-grind").max_time == "5-00:00:00" and "pre-empted" in rangpur.on("a100").note
    assert (
        rangpur.data_path("adni256-ldm") == "/home/groups/comp3710/ADNI"
        and rangpur.data_path("oasis64") == "/home/groups/comp3710/OASIS"
    )
    assert rangpur.data_path("quickstart") == ""
    generic = sites.load_sites()["generic"]
    assert (generic.time, generic.cpus, generic.gres, generic.margin, generic.requeue) == (
        "4:00:00",
        4,
        "gpu:{gpus}",
        180,
        True,
    )


def test_of_a_list_of_partitions_the_first_with_values_counts():
    site = Site("s", cpus=4, partitions={"b": {"cpus": 2}, "c": {"cpus": 3}})
    assert [site.on(p).cpus for p in ("a", "b", "c", "a,b", "c,b", "", "bb")] == [4, 2, 3, 2, 3, 4, 4]
    assert site.on("b").name == "s"


def test_the_longest_key_names_the_data(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch")
    site = Site("s", data={"adni": "/a", "adni256": "$SCRATCH/b", "oasis": "~/o"})
    assert site.data_path("adni128") == "/a" and site.data_path("adni256-ldm") == "/scratch/b"
    assert site.data_path("oasis64") == str(Path.home() / "o") and site.data_path("an-adni") == ""


@pytest.mark.parametrize(
    ("host", "partitions", "local", "name"),
    [
        ("rangpur-b", None, False, "rangpur"), ("a100-7.compute.eait.uq.edu.au", {"x"}, False, "rangpur"),
        ("rangpur", None, True, "rangpur"),
        ("node", {"comp3710", "a100-test"}, False, "rangpur"), ("node", {"comp3710", "cpu"}, False, "generic"),
        ("node", set(), False, "generic"),
        ("node", None, False, "generic"), ("node", None, True, "local"), ("my-rangpur", None, False, "generic"),
    ],
)  # fmt: skip
def test_which_profile_it_is(host, partitions, local, name):
    assert sites.choose_site("", partitions, host, local).name == name
    assert sites.choose_site("generic", partitions, host, local).name == "generic"


def test_own_profiles_are_merged_key_by_key():
    own = sites.user_file()
    own.parent.mkdir(parents=True)
    own.write_text(
        '[rangpur]\ncpus = 8\n[rangpur.data]\nadni = "/mine"\n'
        '[rangpur.partitions.a100]\naccount = "me"\n[lab]\nhosts = ["lab"]\n'
    )
    own.chmod(0o600)
    rangpur = sites.load_sites()["rangpur"]
    assert (rangpur.cpus, rangpur.partition) == (8, "a100")
    assert rangpur.data == {"adni": "/mine", "oasis": "/home/groups/comp3710/OASIS"}
    assert (
        rangpur.on("a100").account == "me" and rangpur.on("a100").note and rangpur.on("comp3710").account == "comp3710"
    )
    assert list(sites.load_sites()) == ["generic", "local", "rangpur", "lab"] and sites.load_sites()["lab"].hosts == (
        "lab",
    )
    own.chmod(0o666)  # it decides what is queued in one's name
    with pytest.raises(ConfigError, match="chmod go-w"):
        sites.load_sites()


@pytest.mark.parametrize("text", ['[generic.data]\nadni = 1\n', '[generic]\nhosts = "a"\n', "[generic]\nhosts = [1]\n",
        "[generic]\nmargin = true\n",
                                  "[generic.partitions.p]\nnope = 1\n", "[generic]\nname = \"x\"\n"])  # fmt: skip
def test_wrong_values_of_a_profile(text):
    sites.user_file().parent.mkdir(parents=True)
    sites.user_file().write_text(text)
    sites.user_file().chmod(0o600)
    with pytest.raises(ConfigError, match="generic"):
        sites.load_sites()


# --- the plan ---------------------------------------------------------------------------------------------------------
A100 = Partition("a100", True, DAY, 1200, 10, 8, 256000, None, False, {"gpu:a100": 2})
CPU = Partition("cpu", True, 2 * HOUR, 1200, 4, 16, 64000, None, True, {})
PARTITIONS = {"a100": A100, "cpu": CPU}
SITE = Site("s", partition="a100", cpus=3, gres="gpu:a100:{gpus}")


def options(**given) -> Options:
    return Options(**{"job": "stylegan2"} | given)


def resources(site: Site = SITE, partitions=PARTITIONS, **given) -> Plan:
    config = parsing.parse_config(specs.GanConfig, ["--data", "phantom", "--run", "/runs/r"])
    return planning.slurm_plan("stylegan2", config, options(**given), site, partitions)


def make(tmp_path, *flags, site: Site = SITE, partitions=PARTITIONS, **given) -> Plan:
    return planning.make_plan(
        options(**given), ["--data", "phantom", "--run", str(tmp_path / "run"), *flags], site, partitions
    )


@pytest.mark.parametrize(
    ("site", "given", "expected"),
    [
        # what is asked for, over the profile, within what Slurm reports
        (SITE, {}, dict(partition="a100", minutes=240, nodes=1, gpus=1, cpus=3, gres="gpu:a100:1", account="", qos="",
            chain=False)),
        (SITE, dict(gpus=2), dict(gpus=2, cpus=3, gres="gpu:a100:2")),
        (SITE, dict(gpus=4), dict(gpus=4, cpus=2, gres="gpu:a100:4")),  # 8 cores for 4 tasks
        (SITE, dict(gpus=16), dict(gpus=16, cpus=1)),
        (SITE, dict(gpus=0), dict(gpus=0, cpus=3, gres="")),
        (SITE, dict(cpus=5), dict(cpus=5)),
        (SITE, dict(nodes=3), dict(nodes=3)),
        (SITE, dict(partition="cpu"), dict(partition="cpu", gpus=0, gres="",
            minutes=120)),  # no GPUs there, two hours at most
        (SITE, dict(partition="cpu", gpus=1), dict(gpus=1, gres="gpu:a100:1")),  # refused by the checks, not changed
        (SITE, dict(partition="a100,cpu"), dict(partition="a100,cpu", minutes=120, gpus=1, cpus=3)),
        (SITE, dict(time="90"), dict(minutes=90)), (SITE, dict(time="1:30"), dict(minutes=2)),
        (SITE, dict(time="1:00:00"), dict(minutes=60)),
        (SITE, dict(time="3-0"), dict(minutes=4320)),  # over the limit: refused by the checks, not shortened
        (SITE, dict(account="a", qos="q"), dict(account="a", qos="q")),
        (replace(SITE, account="sa", qos="sq"), {}, dict(account="sa", qos="sq")),
        (replace(SITE, account="sa", qos="sq"), dict(account="a", qos="q"), dict(account="a", qos="q")),
        (replace(SITE, requeue=False), {}, dict(chain=True)),
        (replace(SITE, max_time="1:00:00"), {}, dict(minutes=60)),
        (replace(SITE, max_time="30:00:00"), dict(partition="a100", time="20:00:00"), dict(minutes=1200)),
        (replace(SITE, time="2-0"), {}, dict(minutes=1440)),
        (replace(SITE, gres=""), {}, dict(gpus=0, gres="")),
        (replace(SITE, partition=""), {}, dict(partition="cpu")),  # Slurm's own default
        (replace(SITE, partition="p"), {}, dict(partition="p", gpus=1, cpus=3,
            minutes=240)),  # unknown to Slurm: as the profile says
        (replace(SITE, partitions={"cpu": {"cpus": 2, "gres": "gpu:x:{gpus}"}}), dict(partition="cpu"),
        dict(cpus=2, gres="", gpus=0)),
        (replace(SITE, partitions={"a100": {"time": "10:00", "account": "x"}}), {}, dict(minutes=10, account="x")),
    ],
)  # fmt: skip
def test_the_resources_of_a_job(site, given, expected):
    plan = resources(site, **given)
    assert {name: getattr(plan, name) for name in expected} == expected


def test_without_slurm_the_profile_is_believed():
    plan = resources(partitions=None)
    assert (plan.partition, plan.gpus, plan.cpus, plan.minutes, plan.gres) == ("a100", 1, 3, 240, "gpu:a100:1")
    assert resources(partitions=None, gpus=4).cpus == 3
    with pytest.raises(ConfigError, match="--partition NAME"):
        resources(replace(SITE, partition=""), partitions=None)
    shards = {"a100": replace(A100, gres={"shard": 4})}
    assert resources(partitions=shards).gpus == 1
    assert resources(partitions={"a100": replace(A100, gres={"craynetwork": 4})}).gpus == 0


@pytest.mark.parametrize("given", ["0", "UNLIMITED", "later"])
def test_a_time_that_is_none(given):
    with pytest.raises(ConfigError, match="--time"):
        resources(time=given)


def test_processes_and_their_command(tmp_path):
    plan = make(
        tmp_path,
        "--batch",
        "192",
        "--pl-weight",
        "0",
        gpus=2,
        nodes=3,
        max_restarts=5,
        shared=True,
        after="/runs/x",
        time="60",
    )
    assert (plan.tasks, plan.world, plan.code, plan.max_restarts, plan.shared, plan.after) == (
        2,
        6,
        tmp_path / "run/code",
        5,
        True,
        "/runs/x",
    )
    assert replace(plan, gpus=0).tasks == 1 and replace(plan, gpus=0).world == 3
    assert plan.command()[:5] == [
        sys.executable,
        "-u",
        str(tmp_path / "run/code/train_gan.py"),
        "--run",
        str(tmp_path / "run"),
    ]
    assert plan.options == {
        "gpus": 2,
        "nodes": 3,
        "max_restarts": 5,
        "shared": True,
        "time": "60",
    }  # what was typed, for resume
    local = make(tmp_path, "--batch", "128", local=True, gpus=2)
    assert (
        local.local
        and local.cpus == 0
        and local.command()[2:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    )
    assert "torch.distributed.run" not in make(tmp_path, local=True, gpus=1).command()
    with pytest.raises(ConfigError, match="6 ranks"):
        make(tmp_path, gpus=2, nodes=3)
    with pytest.raises(ConfigError, match="choose from stylegan2, vae, diffusion"):
        make(tmp_path, job="gan")


@pytest.mark.parametrize(("visible", "listed", "gpus"),
    [("0", "", 1), ("0,1", "", 1), ("", "GPU 0", 0), ("-1", "GPU 0", 0), (None, "GPU 0: A100", 1),
    (None, "no devices", 0)])  # fmt: skip
def test_how_many_gpus_a_local_run_takes(monkeypatch, tmp_path, visible, listed, gpus):
    monkeypatch.setattr(planning.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=listed))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert planning.local_gpus() == make(tmp_path, local=True).gpus == gpus


@pytest.mark.parametrize(
    "given", [dict(partition="a\nb"), dict(account="a\x00"), dict(qos="\x7f"), dict(account="\ud800")]
)
def test_control_characters_begin_no_line_of_the_script(tmp_path, given):
    with pytest.raises(ConfigError, match=f"^--{next(iter(given))} "):
        make(tmp_path, partitions=None, **given)


def test_what_a_job_gets(tmp_path, monkeypatch):
    """Everything is resolved here, its paths absolute; the command names the run, whose config.json has the rest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vgg.pth").write_text("")
    typed = ["--data=slices", "--perceptual-file", "vgg.pth", "--run", "r", "--lr=0.001", "--hflip"]
    vae = planning.make_plan(options(job="vae"), typed, SITE, None)
    typed[1:3] = ["--perceptual_file=vgg.pth"]
    assert planning.make_plan(options(job="vae"), typed, SITE, None).config == vae.config
    here, c = str(tmp_path), vae.config
    assert vae.run == tmp_path / "r" and c.run == f"{here}/r"
    assert (c.preset, c.lr, c.hflip) == ("adni256-ldm", 0.001, True)
    assert (c.data, c.perceptual_file) == (f"{here}/slices", f"{here}/vgg.pth")
    command = [sys.executable, "-u", f"{here}/r/code/pretrain_vae.py", "--run", f"{here}/r"]
    assert vae.command() == [*command, "--device", "cuda"]  # a GPU is planned, so there is no CPU run
    assert replace(vae, gpus=0).command() == replace(vae, config=replace(c, device="cpu")).command() == command
    assert replace(vae, gpus=0, config=replace(c, override=True)).command() == [*command, "--override"]
    typed = ["--run=x", "--batch", "8", "--data", "d", "--vae", "v", "--no-compile", "--data", "e"]
    other = planning.make_plan(options(job="diffusion"), typed, SITE, None).config
    assert (other.batch, other.data, other.vae, other.init_from) == (8, f"{here}/e", f"{here}/v", "")
    monkeypatch.setattr(submit, "take_snapshot", lambda run: (run / "code").mkdir(exist_ok=True))
    submit.prepare(vae)
    monkeypatch.chdir("/")
    asked = parsing.parse_config(specs.VaeConfig, vae.command()[3:])  # as the node will read it
    assert asked == replace(c, device="cuda")


def test_the_preset_is_resolved_and_leads_to_the_data(tmp_path):
    site = replace(SITE, data={"adni": "/data/adni"})

    def resolved(*flags, name="", preset=""):
        return planning.resolve("stylegan2", name, preset, list(flags), site)

    def of(config) -> tuple[str, str]:
        return config.preset, config.data

    assert of(resolved()) == ("adni256", "/data/adni")
    assert of(resolved("--data", "/mine")) == ("adni256", "/mine")
    assert of(resolved(preset="adni128")) == ("adni128", "/data/adni") and resolved(preset="adni128").resolution == 128
    assert of(resolved("--preset", "adni128")) == ("adni128", "/data/adni")
    assert of(resolved("--preset=adni128", preset="adni128")) == ("adni128", "/data/adni")
    assert of(resolved(preset="quickstart")) == ("quickstart", "phantom:2000")  # the preset's own
    assert resolved(name="mine").run == str(ROOT / "runs" / "mine")
    for flags in (["--run", "x"], ["--run=x"]):
        with pytest.raises(ConfigError, match="leave one of them out"):
            resolved(*flags, name="mine")
    run = RunDir(tmp_path / "old")
    run.create()
    run.write_config(json.loads(parsing.to_json(make(tmp_path, "--lr", "0.001").config)))
    old = resolved("--run", str(run.path))  # an existing run has a config of its own
    assert (old.run, old.data, old.lr) == (str(run.path), "phantom", 0.001)


# --- the sbatch text and its parameters -------------------------------------------------------------------------------
def test_what_is_asked_of_slurm(tmp_path):
    plan = make(tmp_path, "--batch", "128", "--pl-weight", "0", gpus=2, nodes=2, time="60", account="acc", qos="q")
    found = submit.slurm_parameters([plan], "afterany:6")
    more, srun = found.pop("additional_parameters"), found.pop("srun_args")
    pattern = f"{plan.run}/logs/%j.out"
    assert found == dict(
        job_name="run", time=60, nodes=2, ntasks_per_node=2, cpus_per_task=3, signal_delay_s=180,
        stderr_to_stdout=True, wckey=None,
        setup=submit.setup_lines([plan]), partition="a100", account="acc", qos="q", gres="gpu:a100:2",
        dependency="afterany:6",
    )  # fmt: skip
    assert more == {"output": pattern, "requeue": True, "chdir": str(plan.code)}
    assert set(srun) == {
        f"--output={pattern}",
        "--open-mode=append",
        "--kill-on-bad-exit=1",
        "--cpus-per-task=3",
        "--cpu-bind=none",
    }
    plain = submit.slurm_parameters(
        [replace(plan, account="", qos="", gres="", site=replace(SITE, margin=60), chain=True)]
    )
    assert not {"account", "qos", "gres", "dependency"} & set(plain) and plain["signal_delay_s"] == 60
    assert plain["additional_parameters"].get("no-requeue") is True and "requeue" not in plain["additional_parameters"]


def test_an_array_logs_into_its_folder(tmp_path):
    plans = [make(tmp_path), replace(make(tmp_path), run=tmp_path / "two")]
    found = submit.slurm_parameters(plans, folder=tmp_path / "sweep")
    assert (
        found["job_name"] == "sweep" and found["additional_parameters"]["output"] == f"{tmp_path}/sweep/logs/%A_%a.out"
    )
    assert (
        found["additional_parameters"]["chdir"] == f"{tmp_path}/sweep/logs/submitit/array-1"
        and f"--output={tmp_path}/sweep/logs/%A_%a.out" in found["srun_args"]
    )
    text = submit.sbatch_text(plans, folder=tmp_path / "sweep")
    assert "#SBATCH --array=0-1" in text
    assert submit.setup_lines(plans)[:2] == [
        f"RUNS=({tmp_path}/run {tmp_path}/two)",
        "RUN=${RUNS[$SLURM_ARRAY_TASK_ID]}",
    ]


def test_the_set_up_lines(tmp_path):
    plan = make(tmp_path)
    run = str(plan.run)
    assert submit.setup_lines([plan]) == [
        f"RUN={run}",
        f"PYTHON={sys.executable}",
        f"REPOSITORY={ROOT}",
        'cd "$RUN/code" && [ -f jobs/env.sh ] || '
        '{ cd "$REPOSITORY" && "$PYTHON" -m jobs.cluster.submit gone "$RUN"; exit 78; }',
        "source jobs/env.sh",
    ]
    after = submit.setup_lines([replace(plan, after="/x")])
    assert after[4:] == [
        '"$PYTHON" -m jobs.cluster.submit ready "$RUN" || exit 0',
        "source jobs/env.sh",
    ]


# --- queueing ---------------------------------------------------------------------------------------------------------
def test_the_record_of_a_run(tmp_path):
    plan = make(tmp_path, max_restarts=7, after="/runs/first", time="60", site=replace(SITE, requeue=False))
    plan.run.mkdir()
    submit.write_jobs(plan)
    submit.note_submitted(plan.run, [("7", "main"), ("8", "local")])
    submit.write_jobs(replace(plan, max_restarts=3))
    about = submit.read_jobs(plan.run)
    assert (about["job"], about["max_restarts"], about["chain"], about["after"]) == (
        "stylegan2",
        3,
        True,
        "/runs/first",
    )
    assert about["options"] == {"time": "60", "max_restarts": 7}
    assert [(e["id"], e["kind"], "host" in e) for e in about["submitted"]] == [
        ("7", "main", False),
        ("8", "local", True),
    ]
    assert abs(about["submitted"][0]["time"] - time.time()) < 600


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}), ("[]", {}), ("{", {}), ("{}", {"submitted": []}),
        ('{"submitted": 3, "job": "vae"}', {"submitted": [], "job": "vae"}),
        ('{"submitted": [{"id": "7"}, {"id": 7}, 3, {}]}', {"submitted": [{"id": "7"}]}),
    ],
)  # fmt: skip
def test_a_record_that_others_wrote(tmp_path, text, expected):
    (tmp_path / "jobs.json").write_text(text)
    assert submit.read_jobs(tmp_path) == expected


def test_a_run_is_made_ready(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "take_snapshot", lambda run: (run / "code").mkdir(exist_ok=True))
    plan = make(tmp_path)
    run = RunDir(plan.run)
    submit.prepare(plan)
    run.mark_done()
    (run.path / "STOP").write_text("me")
    heartbeat = {"state": "done", "kimg": 4.0, "reason": "finished"}
    (run.path / "status.json").write_text(json.dumps(heartbeat))
    submit.prepare(plan)
    status = run.read_status()
    assert (status["state"], status["reason"], status["kimg"]) == ("queued", "", 4.0) and status["updated"] > 1e9
    assert not run.done() and not run.stop_requested() and (run.path / "code").is_dir()
    assert [line["text"] for line in run.read_attempts()] == ["me"]
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in [run.path, run.checkpoints, run.samples, run.logs, run.logs / "submitit"]
    }
    assert set(modes.values()) == {0o700}
    submit.prepare(replace(plan, shared=True))
    modes = [
        stat.S_IMODE(path.stat().st_mode)
        for path in (run.path, run.checkpoints, run.samples, run.plots, run.tensorboard, run.logs)
    ]
    assert set(modes) == {0o750} and stat.S_IMODE((run.logs / "submitit").stat().st_mode) == 0o700


def test_a_snapshot_replaces_the_one_before_as_a_whole(tmp_path):
    root, run = tmp_path / "root", tmp_path / "run"
    for name in ("launch.py", "jobs/env.sh", "data/pack.py", "models/x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("old")
    run.mkdir()
    submit.take_snapshot(run, root)
    (root / "models/x.py").unlink()
    (root / "launch.py").write_text("new")
    for leftover in (".code.new", ".code.old"):  # of a launcher that was killed
        (run / leftover).mkdir()
        (run / leftover / "junk").write_text("")
    submit.take_snapshot(run, root)
    assert (run / "code/launch.py").read_text() == "new" and not (run / "code/models/x.py").exists()
    assert not (run / "code/junk").exists() and [p.name for p in run.iterdir()] == ["code"]
    about = json.loads((run / "code/snapshot.json").read_text())
    assert (
        about["from"] == str(root)
        and about["git_commit"] == rundir.git_state(root)["git_commit"]
        and about["time"] > 1e9
    )


def test_what_git_does_not_track_is_named(tmp_path):
    for name in ("train.py", "jobs/env.sh", "data/pack.py", "models/x.py", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert submit.untracked_code(tmp_path) == []  # no repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "notes").mkdir()
    for name in ("new.py", "models/own.py", "notes/far.py", "picture.png"):
        (tmp_path / name).write_text("")
    assert submit.untracked_code(tmp_path) == ["models/own.py", "new.py"]
    (tmp_path / "train.py").unlink()
    assert submit.tracked_files(tmp_path) == ["README.md", "data/pack.py", "jobs/env.sh", "models/x.py"]
    (tmp_path / "snapshot.json").write_text(
        "{}"
    )  # a snapshot inside of somebody's repository is no repository of its own
    assert submit.untracked_code(tmp_path) == [] and "new.py" in submit.tracked_files(tmp_path)


def test_without_git_only_the_toolkits_own_files_are_taken(tmp_path):
    ours = [
        "README.md",
        "data/pack.py",
        "jobs/env.sh",
        "jobs/sites.toml",
        "jobs/cluster/why.py",
        "launch.py",
        "models/a.sh",
        "requirements.txt",
        "s.toml",
    ]
    for name in (
        *ours,
        "data/x.toml",
        "data/x.sh",
        "data/AD/b.py",
        "picture.png",
        "jobs/notes.md",
        "runs/a.py",
        "LICENSE",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert submit.tracked_files(tmp_path) == sorted(ours)


class Executor:
    """In place of submitit's: keeps what it was given."""

    def __init__(self, error=None):
        self.error, self.parameters, self.calls = error, {}, []

    def __call__(self, folder):
        self.folder = folder
        self.umask = os.umask(0o022)
        os.umask(self.umask)
        self.env = set(os.environ)
        return self

    def update_parameters(self, **parameters):
        self.parameters = parameters

    def submit(self, *call):
        if self.error:
            raise self.error
        self.calls.append(call)
        pickle = self.folder / "7_submitted.pkl"
        pickle.write_text("")
        pickle.chmod(0o644)
        return SimpleNamespace(job_id="7")

    def map_array(self, function, *columns):
        if self.error:
            raise self.error
        self.calls += [(function, *row) for row in zip(*columns, strict=True)]
        return [SimpleNamespace(job_id=f"7_{i}") for i in range(len(self.calls))]


@pytest.fixture
def executor(monkeypatch) -> Executor:
    found = Executor()
    monkeypatch.setattr(submit, "make_executor", found)
    monkeypatch.setattr(submit, "sbatch_text", lambda plans, dependency="", folder=None: f"text {dependency}")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_CONF", "/conf")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "SUBMITIT_X", "GROUP_RANK"):
        monkeypatch.setenv(name, "1")
    return found


def ready_folders(plan: Plan) -> Plan:
    RunDir(plan.run).create()
    (plan.run / "logs/submitit").mkdir(mode=0o700)
    return plan


def test_one_job_is_queued(tmp_path, executor):
    plan = ready_folders(make(tmp_path))
    assert submit.submit_slurm([plan], "afterany:6") == ["7"]
    command = plan.command()
    assert executor.calls == [(os.execv, command[0], command)] and executor.parameters["dependency"] == "afterany:6"
    assert executor.folder == plan.run / "logs/submitit" and executor.umask == 0o077
    assert "SLURM_CONF" in executor.env and "PATH" in executor.env
    assert not any(
        name.startswith(("SLURM_J", "RANK", "WORLD", "LOCAL_", "MASTER_", "SUBMITIT", "GROUP_"))
        for name in executor.env
    )
    assert os.environ["SLURM_JOB_ID"] == os.environ["RANK"] == "1"  # put back
    assert (plan.run / "job.sbatch").read_text() == "text afterany:6"
    (noted,) = submit.read_jobs(plan.run)["submitted"]
    assert (noted["id"], noted["kind"]) == ("7", "main")
    assert stat.S_IMODE((executor.folder / "7_submitted.pkl").stat().st_mode) == 0o600
    submit.submit_slurm([replace(plan, shared=True)])
    assert executor.umask == 0o027


def test_an_array_is_queued_in_order(tmp_path, executor):
    plans = [ready_folders(replace(make(tmp_path), run=tmp_path / name)) for name in "ba"]
    (tmp_path / "sweep/logs/submitit").mkdir(parents=True)
    assert submit.submit_slurm(plans, folder=tmp_path / "sweep") == ["7_0", "7_1"]
    assert [call[2][4] for call in executor.calls] == [str(tmp_path / "b"), str(tmp_path / "a")]
    assert [submit.read_jobs(plan.run)["submitted"][0]["id"] for plan in plans] == ["7_0", "7_1"]
    assert (
        all((plan.run / "job.sbatch").is_file() for plan in plans)
        and executor.folder == tmp_path / "sweep/logs/submitit"
    )


def test_an_array_of_which_nobody_heard_is_found_in_the_queue(tmp_path, executor):
    """sbatch took it and never answered, or launch.py was killed just then."""
    plans = [ready_folders(replace(make(tmp_path), run=tmp_path / name)) for name in "abcd"]
    sweep = tmp_path / "sweep"
    (sweep / "logs/submitit").mkdir(parents=True)
    executor.error = slurm.NoAnswer("sbatch: no answer")
    with pytest.raises(slurm.NoAnswer, match="whether sweep is queued is not known"):
        submit.submit_slurm(plans[:2], folder=sweep)
    place = executor.parameters["additional_parameters"]["chdir"]
    queue = {f"9_{i}": Job(f"9_{i}", "PENDING", array_task=i, workdir=place) for i in range(3)}
    found = [[job.id for job in live_jobs(plan.run, queue)] for plan in plans]
    assert found == [["9_0"], ["9_1"], [], []] and Path(place).is_dir()
    executor.error = None  # the next array of the sweep is another one
    submit.submit_slurm(plans[2:], folder=sweep)
    assert executor.parameters["additional_parameters"]["chdir"] != place
    assert [[job.id for job in live_jobs(plan.run, queue)] for plan in plans] == found


def test_a_job_of_which_nobody_heard_enters_itself(tmp_path, capsys):
    from submitit.core.utils import DelayedSubmission

    plans = [ready_folders(replace(make(tmp_path), run=tmp_path / name)) for name in ("lr=0.1", "lr=0.11")]
    folder = tmp_path / "sweep/logs/submitit"
    (folder / "array-1").mkdir(parents=True)
    for task, plan in enumerate(plans):
        command = plan.command()
        DelayedSubmission(os.execv, command[0], command).dump(folder / f"0{task}ab.pkl")
        submit.write_about(plan.run, {"place": str(folder / "array-1"), "task": task})
    for _ in range(2):
        submit.adopt(plans[0].run, "9_0")
    (noted,) = submit.read_jobs(plans[0].run)["submitted"]
    assert (noted["id"], noted["kind"], noted["folder"]) == ("9_0", "main", str(tmp_path / "sweep"))
    assert DelayedSubmission.load(folder / "9_0_submitted.pkl").args[1] == plans[0].command()
    (plans[1].run / "logs/submitit/x.pkl").write_text("no pickle")
    submit.adopt(plans[1].run, "7")  # the job goes on, whatever is wrong
    assert "cannot be entered" in capsys.readouterr().err


def test_a_refused_job_is_said_to_be(tmp_path, executor):
    from submitit.core.utils import FailedJobError

    executor.error = FailedJobError("sbatch: error: Batch job submission failed: Invalid account or account/partition")
    plan = ready_folders(make(tmp_path))
    with pytest.raises(SubmitError, match="Slurm refused the job: Invalid account"):
        submit.submit_slurm([plan])
    assert RunDir(plan.run).read_status()["state"] == "failed" and not submit.read_jobs(plan.run)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sbatch: error: Batch job submission failed: Invalid qos\n", "Invalid qos"),
        ("noise\nsbatch: error: A\nsbatch: error: B\nmore", "A; B"),
        (
            "sbatch: error: Memory specification can not be satisfied\n"
            "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
            "Memory specification can not be satisfied; Requested node configuration is not available",
        ),
        ("plain\nwords\n", "words"), ("", "no message"), ("ERROR: Loud\nx", "ERROR: Loud"),
    ],
)  # fmt: skip
def test_the_line_that_says_why(text, line):
    assert sbatch.plain_refusal(text) == line


def test_a_later_link_of_a_chain(tmp_path, monkeypatch):
    run = ready_folders(make(tmp_path)).run
    (run / "logs/submitit/7_submitted.pkl").write_bytes(b"argv")
    calls, answer = [], SimpleNamespace(returncode=0, stdout="9;cluster\n", stderr="")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(
        sbatch.subprocess, "run", lambda command, **k: calls.append((command, "SLURM_JOB_ID" in os.environ)) or answer
    )
    assert submit.successor(run, "7", "6") == "9"
    assert calls == [(["sbatch", "--parsable", "--dependency=afterany:6", str(run / "job.sbatch")], False)]
    assert (run / "logs/submitit/9_submitted.pkl").read_bytes() == b"argv"
    assert [(e["id"], e["kind"]) for e in submit.read_jobs(run)["submitted"]] == [("9", "chain")]
    answer.returncode, answer.stderr = 1, "sbatch: error: no"
    with pytest.raises(SubmitError, match="next job of the chain: no"):
        submit.successor(run, "7", "6")
    # Of an array only this task comes again, and its pickle lies in the folder of the array.
    sweep = run.parent / "sweep/logs/submitit"
    sweep.mkdir(parents=True)
    (sweep / "7_1_submitted.pkl").write_bytes(b"task")
    submit.note_submitted(run, [("7_1", "main")], folder=str(run.parent / "sweep"))
    answer.returncode = 0
    assert submit.successor(run, "7_1", "5", "6") == "9_1"
    words = ["sbatch", "--parsable", "--dependency=afterany:5:6", "--array=1", str(run / "job.sbatch")]
    assert calls[-1] == (words, False) and (sweep / "9_1_submitted.pkl").read_bytes() == b"task"


@pytest.mark.parametrize(
    ("done", "queue", "code", "behind"),
    [
        (True, {}, 0, None), (False, {}, 1, None), (False, {"6": "RUNNING", "5": "COMPLETED"}, 1, "6"),
        (False, {"5": "PENDING"}, 1, "5"),
        (False, {"6": "FAILED"}, 1, None), (False, {"99": "RUNNING"}, 1, None), (True, {"6": "RUNNING"}, 0, None),
        (False, None, 1, None),
    ],
)  # fmt: skip
def test_a_run_behind_another_waits_until_that_is_done(tmp_path, monkeypatch, capsys, done, queue, code, behind):
    monkeypatch.setattr(find, "RUNS", tmp_path)
    first, second = RunDir(tmp_path / "first"), RunDir(tmp_path / "second")
    for run in (first, second):
        run.create()
    submit.note_submitted(first.path, [("5", "main"), ("6", "chain")])
    (second.path / "jobs.json").write_text(json.dumps({"after": str(first.path)}))
    first.mark_done() if done else None

    def squeue():
        if queue is None:
            raise SlurmError("no answer")
        return {i: Job(i, state) for i, state in queue.items()}

    asked = []
    monkeypatch.setattr(slurm, "squeue", squeue)
    monkeypatch.setattr(submit, "successor", lambda *a: asked.append(a) or "9")
    clock = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(submit.time, "sleep", clock.append)
    assert submit.ready(second.path) == code
    assert (sum(clock) >= 600) == (queue is None)  # a silent controller is asked again before anything is given up
    assert asked == ([(second.path, "7", behind)] if behind else [])
    waits = code == 1 and not behind
    assert (second.read_status().get("state") == "waiting") == waits
    if waits:
        assert "resume first" in second.read_status()["reason"] and "resume second" in capsys.readouterr().out


def test_one_submitter_at_a_time(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    with submit.submit_lock(run.path), pytest.raises(SubmitError, match="try again"):
        submit.submit_lock(run.path, wait=0.1).__enter__()
    with submit.submit_lock(run.path, wait=0.1):  # let go of
        pass


def test_a_local_run_is_started_in_a_session_of_its_own(tmp_path, monkeypatch):
    plan = ready_folders(make(tmp_path, "--batch", "128", local=True, gpus=2))
    calls, answer = [], SimpleNamespace(returncode=0, stdout="123\n", stderr="")
    monkeypatch.setattr(submit.subprocess, "run", lambda command, **k: calls.append((command, k)) or answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert submit.submit_local(plan) == "123"
    command, how = calls[-1]
    assert command == [sys.executable, "-m", "jobs.cluster.submit", "start-local", str(plan.run), "2", *plan.command()]
    assert how["start_new_session"] and how["stdin"] == subprocess.DEVNULL and how["cwd"] == specs.ROOT
    (noted,) = submit.read_jobs(plan.run)["submitted"]
    assert (noted["id"], noted["kind"]) == ("123", "local")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    submit.submit_local(plan)
    assert calls[-1][0][6:8] == ["/usr/bin/env", "CUDA_VISIBLE_DEVICES=3"]
    answer.stdout, answer.stderr = "", "first\nlast words\n"
    with pytest.raises(SubmitError, match="last words"):
        submit.submit_local(plan)


@pytest.mark.parametrize(("shared", "umask"), [(False, 0o077), (True, 0o027)])
def test_the_starter_of_a_local_run(tmp_path, monkeypatch, shared, umask):
    """In the new session: submitit's local executor, from the snapshot, with a log of its own for what it prints."""
    import submitit

    plan = ready_folders(make(tmp_path))
    plan.run.chmod(0o750 if shared else 0o700)
    found, turned, went = Executor(), [], []
    monkeypatch.setattr(submitit, "LocalExecutor", found)
    reader, writer = os.pipe()
    with monkeypatch.context() as patch:  # pytest's own capture uses them too
        patch.setattr(submit.os, "dup", lambda fd: writer)
        patch.setattr(submit.os, "dup2", lambda old, new: turned.append(new))
        patch.setattr(submit.os, "chdir", went.append)
        submit.start_local(plan.run, 2, ["/usr/bin/python", "x"])
    os.close(writer)
    with os.fdopen(reader) as answer:
        assert answer.read() == "7"
    assert turned == [1, 2] and went == [plan.code] and found.umask == umask
    assert found.parameters == dict(
        timeout_min=submit.LOCAL_MINUTES, tasks_per_node=1, gpus_per_node=2, stderr_to_stdout=True
    )
    assert (
        found.calls == [(os.execv, "/usr/bin/python", ["/usr/bin/python", "x"])]
        and found.folder == plan.run / "logs/submitit"
    )
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.folder.iterdir()} == {0o600}
    assert {path.name for path in found.folder.iterdir()} == {"7_submitted.pkl", "controller.out"}


# --- checks before queueing -------------------------------------------------------------------------------------------
def levels(checks) -> list[str]:
    return [check.level for check in checks if check.level != "ok"]


def small(tmp_path) -> Plan:
    """A plan that fits: 1 GPU of 2, 3 cores of 8, 4 hours of 24."""
    return make(tmp_path)


RESOURCES = [
    # what is asked for, what there is -> the levels that are not ok, words of the fix
    ("all that there is", dict(minutes=1440, gpus=2, gres="gpu:a100:2", cpus=4, nodes=10), {}, [], ""),
    ("a minute more", dict(minutes=1441), {}, ["fail"], "--time 1-00:00:00"),
    ("no limit there", dict(minutes=99999), dict(max_time_s=None), [], ""),
    ("the shortest", dict(minutes=5), {}, [], ""),
    ("too short to save", dict(minutes=4), {}, ["fail"], "00:05:00"),
    ("one node more", dict(nodes=11), {}, ["fail"], "--nodes 10"),
    ("one GPU more", dict(gpus=3, gres="gpu:a100:3", cpus=1), {}, ["fail"], "--gpus 2 --nodes 2"),
    ("one GPU more on one node", dict(gpus=3, gres="gpu:a100:3", cpus=1), dict(nodes=1), ["fail"], "--gpus 2"),
    ("five GPUs", dict(gpus=5, gres="gpu:a100:5", cpus=1), {}, ["fail"], "--gpus 2 --nodes 3"),
    ("another type", dict(gres="gpu:h100:1"), {}, ["fail"], "it has gpu:a100"),
    ("any type", dict(gres="gpu:1"), {}, [], ""),
    ("a prefix is no type", dict(gres="gpu:a10:1"), {}, ["fail"], "it has gpu:a100"),
    ("two types together", dict(gpus=3, gres="gpu:3", cpus=1), dict(gres={"gpu:a100": 2, "gpu:h100": 1}), [], ""),
    ("one core more", dict(cpus=9), {}, ["fail"], "--cpus 8"),
    ("cores of all tasks", dict(gpus=2, gres="gpu:a100:2", cpus=5), {}, ["fail"], "--cpus 4"),
    ("cores unknown", dict(cpus=9), dict(cpus_per_node=0), [], ""),
    ("no GPUs there", {}, dict(gres={}), ["fail"], "--gpus 0"),
    ("GPUs not used", dict(gpus=0, gres=""), {}, ["warn"], "--gpus 1"),
    ("no GPUs, none wanted", dict(gpus=0, gres=""), dict(gres={}), [], ""),
    ("down", {}, dict(up=False), ["fail"], "use another: cpu"),
    ("account wanted", {}, dict(allow_accounts=("x", "y")), ["fail"], "--account x or --account y"),
    ("another account", dict(account="z"), dict(allow_accounts=("x",)), ["fail"], "--account x"),
    ("that account", dict(account="x"), dict(allow_accounts=("x", "y")), [], ""),
]  # fmt: skip


@pytest.mark.parametrize(("about", "asked", "there", "expected", "words"), RESOURCES, ids=[row[0] for row in RESOURCES])
def test_what_slurm_offers_is_compared(tmp_path, about, asked, there, expected, words):
    plan = replace(small(tmp_path), **asked)
    checks = preflight.check_resources(plan, PARTITIONS | {"a100": replace(A100, **there)})
    assert levels(checks) == expected
    assert words in " ".join(check.fix for check in checks)


def test_words_of_the_checks(tmp_path):
    plan = small(tmp_path)

    def words(plan: Plan = plan, **there) -> str:
        checks = preflight.check_resources(plan, PARTITIONS | {"a100": replace(A100, **there)})
        return " | ".join(f"{check.text} -> {check.fix}" for check in checks)

    assert "RealMemory=1, so no --mem" in words(real_memory_mb=1) and "RealMemory" not in words(real_memory_mb=2)
    assert "a100 needs an account" in words(allow_accounts=("x",))
    assert "account z may not use a100" in words(replace(plan, account="z"), allow_accounts=("x",))
    assert "did you mean a100? there are a100, cpu" in words(replace(plan, partition="a10"))
    assert (
        "did you mean" not in words(replace(plan, partition="xyz"))
        and "none is up" in preflight.check_partition(plan, "a100", {"a100": replace(A100, up=False)})[0].fix
    )
    assert "it has gpu:a100; " in words(replace(plan, gres="gpu:h100:1"), gres={"gpu:a100": 2, "craynetwork": 4})
    assert "it has gpu:a100, craynetwork; " in words(
        replace(plan, gres="shard:1"), gres={"gpu:a100": 2, "craynetwork": 4}
    )
    assert "up, 10 nodes of 8 cores and gpu:a100:2, at most 1-00:00:00" in words()


def test_places_and_kinds_of_files_by_name():
    shared = "nfs nfs4 lustre gpfs beegfs ceph cephfs cifs smb3 panfs pvfs2 orangefs afs 9p virtiofs glusterfs wekafs"
    assert set(shared.split()) == preflight.SHARED_FILESYSTEMS and {"tmpfs", "ramfs"} == preflight.MEMORY_FILESYSTEMS
    assert set(preflight.NODE_LOCAL) == {"/tmp", "/var/tmp", "/scratch", "/dev/shm", "/run"}
    pictures = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
    volumes = {".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".hdr.gz", ".dcm", ".dicom", ".ima"}
    assert {*preflight.PICTURES, *preflight.VOLUMES} == pictures | {".npy", ".npz"} | volumes
    assert {*preflight.ARCHIVES, preflight.PACK} == {".zip", ".tar", ".pack"}


def test_limits_that_only_the_profile_knows(tmp_path):
    plan = small(tmp_path)
    hour = replace(plan, site=replace(SITE, max_time="1:00:00"))
    assert levels(preflight.check_resources(hour, PARTITIONS)) == ["fail"]
    assert levels(preflight.check_resources(replace(hour, minutes=60), PARTITIONS)) == []
    slow = replace(plan, minutes=9, site=replace(SITE, margin=421))
    assert levels(preflight.check_resources(slow, PARTITIONS)) == ["fail"]  # 421 s to save and two minutes to start
    assert levels(preflight.check_resources(replace(slow, site=replace(SITE, margin=420)), PARTITIONS)) == []
    usual = replace(plan, site=replace(SITE, partitions={"a100": {"account": "course"}}))
    assert levels(preflight.check_resources(usual, PARTITIONS)) == ["warn"]
    assert levels(preflight.check_resources(replace(usual, account="course"), PARTITIONS)) == []


def test_every_partition_of_a_list_is_looked_at(tmp_path):
    plan = replace(small(tmp_path), partition="a100,cpu,nope")
    fixes = [c.fix for c in preflight.check_resources(plan, PARTITIONS) if c.level == "fail"]
    assert (
        len(fixes) == 3
        and fixes[0].startswith("--time 02:00:00")
        and "--gpus 0" in fixes[1]
        and "there are a100, cpu" in fixes[2]
    )
    assert levels(preflight.check_resources(small(tmp_path), None)) == ["warn"]


@pytest.mark.parametrize(
    ("accepted", "words", "level", "said"),
    [
        (True, "sbatch: Job 7 to start at 2026-01-31T12:00:00 using", "ok", "2026-01-31 12:00:00"),
        (True, "", "ok", "accepts"),
        (False, "allocation failure: Requested node configuration is not available", "warn", "waits"),
        (False, "sbatch --test-only: allocation failure: Invalid account or account/partition combination specified",
        "fail", "--account NAME"),
        (False, "Invalid qos specification", "fail", "--qos NAME"),
        (False, "Requested time limit is invalid", "fail", "shorter --time"),
        (False, "Node count specification invalid", "fail", "fewer --nodes"),
        (False, "Memory specification can not be satisfied", "fail", "fewer --cpus"),
        (False, "Something new", "fail", "change the option"), (None, "silent", "warn", "silent"),
    ],
)  # fmt: skip
def test_slurms_own_word_on_a_script(monkeypatch, accepted, words, level, said):
    def test_only(script):
        if accepted is None:
            raise SlurmError(words)
        return accepted, words

    monkeypatch.setattr(slurm, "test_only", test_only)
    (check,) = preflight.check_with_slurm("text")
    assert check.level == level and said in check.text + check.fix


@pytest.fixture
def all_well(monkeypatch):
    for name in ("check_data", "check_vae", "check_config", "check_memory", "check_code", "check_packages"):
        monkeypatch.setattr(preflight, name, lambda plan, *_: [])
    monkeypatch.setattr(preflight, "check_run_folder", lambda plan, partitions: [])
    scripts = []
    monkeypatch.setattr(preflight, "check_with_slurm", lambda script: scripts.append(script) or [preflight.ok("yes")])
    return scripts


def test_slurm_is_asked_only_where_nothing_failed_before(tmp_path, all_well):
    plan = small(tmp_path)
    assert [c.text for c in preflight.check_plan(plan, PARTITIONS, "text")][-1] == "yes" and all_well == ["text"]
    preflight.check_plan(replace(plan, nodes=99), PARTITIONS, "text")
    preflight.check_plan(plan, PARTITIONS)
    preflight.check_plan(plan, None, "text")
    assert preflight.check_plan(replace(plan, local=True), None, "text") == [] and all_well == ["text"]


@pytest.mark.parametrize(
    "broken", ["check_data", "check_vae", "check_config", "check_memory", "check_code", "check_packages"]
)
def test_every_check_is_made(tmp_path, monkeypatch, all_well, broken):
    monkeypatch.setattr(preflight, broken, lambda plan, *_: [preflight.fail(broken, "fix")])
    for plan in (small(tmp_path), make(tmp_path, local=True)):
        assert broken in [c.text for c in preflight.check_plan(plan, PARTITIONS)]


def test_data_that_can_be_read(tmp_path, monkeypatch):
    def level(data: str) -> str:
        (check,) = preflight.check_data(SimpleNamespace(config=SimpleNamespace(data=data)))
        return check.level

    assert level("phantom") == level("phantom:9") == "ok" and level("phantoms") == "fail"
    pack, folder = tmp_path / "a.pack", tmp_path / "deep" / "er"
    pack.write_bytes(b"x")
    folder.mkdir(parents=True)
    assert (
        level(str(pack)) == "ok" and level(str(tmp_path / "deep")) == "fail" and level(str(tmp_path / "no")) == "fail"
    )
    (folder / "notes.txt").write_text("")
    assert level(str(tmp_path / "deep")) == "fail"
    (folder / "A.NII").write_text("")
    assert level(str(tmp_path / "deep")) == "ok"
    asked = []
    monkeypatch.setattr(preflight.os, "access", lambda path, mode: asked.append((path, mode)) or False)
    assert level(str(pack)) == level(str(folder)) == "fail"
    assert asked == [(pack, os.R_OK), (folder, os.R_OK | os.X_OK)]


def test_a_large_folder_is_not_walked_to_its_end(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("")
    assert not preflight.any_image(tmp_path, most=6) and preflight.any_image(tmp_path, most=5)


@pytest.mark.parametrize(
    ("free", "quota", "words"),
    [
        ("+", None, ""),
        ("-", None, "the disk has"),
        ("+", "+", ""),
        ("+", "-", "your quota leaves"),
        ("-", "+", "the disk has"),
    ],
)
@pytest.mark.parametrize("keep", [1, 5])
def test_room_for_the_checkpoints(tmp_path, monkeypatch, free, quota, words, keep):
    """The kept ones, the healthy one, the one being written; the weights, each a quarter; and half a gigabyte."""
    plan = replace(make(tmp_path, "--keep", str(keep)), local=True)
    monkeypatch.setitem(kinds.JOBS, "stylegan2", replace(kinds.JOBS["stylegan2"], checkpoint_gb=lambda config: 2.0))
    need = 2.0 * (keep + 2) + 0.5 * 3 + 0.5
    amount = {"+": need + 0.01, "-": need - 0.01, None: None}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=amount[free] * 1e9))
    monkeypatch.setattr(preflight, "quota_left_gb", lambda path: amount[quota])
    (check,) = preflight.check_run_folder(plan, None)
    assert (check.level == "fail") == bool(words) and words in check.text and f"{need:.1f} GB" in check.text


def test_the_run_folder_is_written_to(tmp_path, monkeypatch):
    plan = replace(small(tmp_path), local=True)
    monkeypatch.setattr(preflight, "quota_left_gb", lambda path: None)

    def full(**how):
        assert how["dir"] == tmp_path
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preflight.tempfile, "NamedTemporaryFile", full)
    (check,) = preflight.check_run_folder(plan, None)
    assert check.level == "fail" and check.fix == "delete old runs"
    monkeypatch.setattr(
        preflight.tempfile, "NamedTemporaryFile", lambda **how: (_ for _ in ()).throw(OSError(13, "Permission denied"))
    )
    (check,) = preflight.check_run_folder(plan, None)
    assert check.level == "fail" and "--run" in check.fix


@pytest.mark.parametrize(
    ("kind", "where", "alone", "partitions", "level"),
    [
        ("nfs4", "/tmp", False, PARTITIONS, ""), ("lustre", "/scratch", False, PARTITIONS, ""),
        ("fuse.sshfs", "/tmp", False, PARTITIONS, ""),
        ("ext4", "/tmp", False, PARTITIONS, "fail"), ("ext4", "/var/tmp", False, PARTITIONS, "fail"),
        ("tmpfs", "/dev/shm", False, PARTITIONS, "fail"),
        ("ext4", "/tmp", True, PARTITIONS, "fail"), ("tmpfs", "/home", False, PARTITIONS, "fail"),
        ("tmpfs", "/home", True, PARTITIONS, ""),
        ("ext4", "/home", False, PARTITIONS, "warn"), ("ext4", "/home", True, PARTITIONS, ""),
        ("ext4", "/tmp", False, None, ""),
    ],
)  # fmt: skip
def test_a_folder_that_the_nodes_see(tmp_path, monkeypatch, kind, where, alone, partitions, level):
    monkeypatch.setattr(preflight, "filesystem", lambda path: kind)
    monkeypatch.setattr(preflight, "nodes_are_here", lambda: alone)
    monkeypatch.setattr(specs, "ROOT", Path("/opt/brains"))
    checks = preflight.check_shared(small(tmp_path), Path(where) / "x", partitions)
    assert [c.level for c in checks] == ([level] if level else [])
    if where == "/tmp" and alone:  # where the toolkit itself lies there too, the one machine sees both
        monkeypatch.setattr(specs, "ROOT", Path("/tmp/brains"))
        assert preflight.check_shared(small(tmp_path), Path("/tmp/x"), partitions) == []


def test_the_file_system_of_a_folder(monkeypatch, tmp_path):
    mounts = "d / ext4 rw 0 0\ns /home nfs4 rw 0 0\ns /home/a\\040b lustre rw 0 0\nx /home/other xfs rw 0 0\n"
    monkeypatch.setattr(preflight.Path, "read_text", lambda self: mounts)
    assert [preflight.filesystem(Path(p)) for p in ("/srv", "/home/me/x", "/home/a b/c", "/homes")] == [
        "ext4",
        "nfs4",
        "lustre",
        "ext4",
    ]


@pytest.mark.parametrize(
    ("text", "alone"),
    [("NodeName=a NodeAddr=127.0.0.1\nNodeName=b NodeAddr=localhost\n", True),
    ("NodeAddr=127.0.0.1\nNodeAddr=10.0.0.7\n", False), ("", False), ("NodeAddr=HERE\n", True)],
)  # fmt: skip
def test_whether_this_machine_is_the_cluster(monkeypatch, text, alone):
    said = text.replace("HERE", os.uname().nodename).encode()
    monkeypatch.setattr(preflight.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=said))
    assert preflight.nodes_are_here() == alone


@pytest.mark.parametrize(
    ("line", "left"),
    [
        (" fs 1000000 2000000 3000000 0 0 0 0", 2.048), (" fs 1000000 2000000 0 0 0 0 0", 1.024),
        (" fs 4000000* 2000000 3000000 0 0 0 0", 0.0),
        (" fs 5 0 0 0 0 0 0", None), ("Disk quotas for user x", None), (" fs none", None),
    ],
)  # fmt: skip
def test_what_a_quota_leaves(tmp_path, monkeypatch, line, left):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/quota" if name == "quota" else None)
    asked = []
    monkeypatch.setattr(
        quota.subprocess,
        "run",
        lambda command, **k: (
            asked.append(command) or SimpleNamespace(stdout=f"Filesystem blocks quota limit\n{line}\n")
        ),
    )
    found = preflight.quota_left_gb(tmp_path)
    assert found == (left if left is None else pytest.approx(left)) and asked == [
        ["quota", "-w", "-p", "-f", str(tmp_path)]
    ]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert preflight.quota_left_gb(tmp_path) is None


def test_flags_against_those_of_the_run(tmp_path):
    plan = small(tmp_path)
    (new,) = preflight.check_config(plan)
    assert new.level == "ok" and "a new run" in new.text
    run = RunDir(plan.run)
    run.create()
    run.write_config(json.loads(parsing.to_json(plan.config)))
    (run.checkpoints / "00002000.json").touch()
    (same,) = preflight.check_config(plan)
    assert same.level == "ok" and "resumes at 2 of" in same.text

    def level(*flags):
        (check,) = preflight.check_config(make(tmp_path, "--preset", "adni256", *flags))
        return check.level

    assert [
        level("--lr", "0.1"),
        level("--lr", "0.1", "--override"),
        level("--z-dim", "8", "--override"),
        level("--total-kimg", "9"),
    ] == ["fail", "warn", "fail", "ok"]
    run.config.write_text("{")
    (broken,) = preflight.check_config(plan)
    assert broken.level == "fail"


def test_the_code_that_a_job_will_run(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    monkeypatch.setattr(preflight, "untracked_code", lambda root: [])
    plan = make(tmp_path)
    (missing,) = preflight.check_code(plan)
    assert missing.level == "fail" and "train_gan.py" in missing.text
    (tmp_path / "train_gan.py").write_text("")
    assert preflight.check_code(plan) == []
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "env.sh").write_bytes(b"a\r\n")
    (tmp_path / "jobs" / "ok.sh").write_bytes(b"a\n")
    (crlf,) = preflight.check_code(plan)
    assert crlf.level == "fail" and "jobs/env.sh" in crlf.text and "ok.sh" not in crlf.text
    (tmp_path / "jobs" / "env.sh").unlink()
    monkeypatch.setattr(preflight, "untracked_code", lambda root: ["a.py", "b.py", "c.py", "d.py", "e.py"])
    (new,) = preflight.check_code(plan)
    assert new.level == "warn" and "a.py, b.py, c.py and 2 more" in new.text


def test_the_packages_of_the_interpreter(tmp_path, monkeypatch):
    plan = replace(small(tmp_path), gpus=1)
    monkeypatch.setattr(preflight, "filesystem", lambda path: "ext4")
    monkeypatch.setattr(preflight, "nodes_are_here", lambda: False)
    monkeypatch.setattr(preflight, "torch_cuda", lambda: "12.8")
    assert levels(preflight.check_packages(plan)) == []
    monkeypatch.setattr(preflight, "torch_cuda", lambda: "")
    assert (
        levels(preflight.check_packages(plan)) == ["fail"]
        and levels(preflight.check_packages(replace(plan, gpus=0))) == []
    )
    assert levels(preflight.check_packages(replace(plan, local=True))) == ["warn"]
    monkeypatch.setattr(preflight, "nodes_are_here", lambda: True)
    assert levels(preflight.check_packages(plan)) == ["warn"]
    monkeypatch.setattr(preflight, "filesystem", lambda path: "tmpfs")
    assert levels(preflight.check_packages(plan)) == ["fail", "warn"]
    assert levels(preflight.check_packages(replace(plan, local=True, gpus=0))) == []
    find = preflight.importlib.util.find_spec
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: None if name in ("tyro", "PIL") else find(name)
    )
    (lacking,) = preflight.check_packages(plan)
    assert lacking.level == "fail" and "tyro, PIL" in lacking.text


@pytest.mark.parametrize(
    ("text", "cuda"),
    [("cuda: Optional[str] = '12.8'\n", "12.8"), ('cuda = "11.8"\n', "11.8"),
    ("cuda: Optional[str] = None\nhip: Optional[str] = '6.1'\n", "6.1"), ("cuda = None\n", "")],
)  # fmt: skip
def test_the_cuda_that_torch_was_built_for(tmp_path, monkeypatch, text, cuda):
    (tmp_path / "version.py").write_text(f"__version__ = '2.6'\n{text}")
    monkeypatch.setattr(
        preflight.importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    )
    assert preflight.torch_cuda() == cuda


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A login node on which all is well."""
    monkeypatch.setattr(doctor, "check_versions", lambda: [])
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "partitions", lambda: PARTITIONS)
    monkeypatch.setattr(doctor, "quota_left_gb", lambda path: None)
    monkeypatch.setattr(doctor, "filesystem", lambda path: "nfs4")
    return monkeypatch


def test_doctor_of_a_machine(machine, tmp_path):
    def found(site: str = "generic") -> dict[str, str]:
        return {check.text: check.level for check in doctor.check_machine(site, tmp_path / "no" / "runs")}

    assert set(found().values()) == {"ok"} and any("a100, cpu*" in text for text in found())
    machine.setattr(doctor, "quota_left_gb", lambda path: 5.1)
    assert set(found().values()) == {"ok"}
    machine.setattr(doctor, "quota_left_gb", lambda path: 4.9)
    assert [text for text, level in found().items() if level == "warn"] == ["your quota leaves only 4.9 GB"]
    assert sum("is not there or not yours" in text for text, level in found("rangpur").items() if level == "warn") == 2
    machine.setattr(doctor.os, "access", lambda path, mode: False)
    assert [text for text, level in found().items() if level == "fail"] == [f"{tmp_path} cannot be written by you"]


@pytest.mark.parametrize(("sbatch", "conf", "level"), [(True, "/etc/x", "fail"), (None, "/etc/x", "warn")])
def test_doctor_without_an_answer_of_slurm(machine, tmp_path, sbatch, conf, level):
    machine.setattr(slurm, "available", lambda: False)
    machine.setattr(shutil, "which", lambda name: sbatch)
    machine.setenv("SLURM_CONF", conf)
    checks = doctor.check_machine("", tmp_path)
    assert levels(checks)[0] == level and any("site profile local" in c.text for c in checks)


def test_versions_of_the_packages(monkeypatch):
    def version(name):
        if name in ("tyro", "pillow"):
            raise preflight.importlib.metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(preflight.importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "12.8")
    torch, missing = doctor.check_versions()
    assert torch.level == "ok" and missing.level == "fail" and missing.text.endswith("tyro, pillow")
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "")
    assert doctor.check_versions()[0].level == "warn"
