"""The table of options: each one reaches sbatch, a profile, a resume and a successor. And what stands around sbatch:
the variables of the user's shell, a site's wrapper with its banner, a refusal of two lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

from jobs.cluster import (
    doctor,
    preflight,
    queueing,
    requeue,
    sbatch,
    show,
    sites,
    slurm,
    status,
    steer,
    submit,
    successor,
    sweep,
)
from jobs.cluster import plan as planning
from jobs.cluster.options import FURTHER, PROFILE, TABLE, Options, from_shell, further
from jobs.cluster.slurm import Job, Partition, SlurmError
from jobs.config.specs import ConfigError
from jobs.run.find import members
from jobs.run.rundir import RunDir

A100 = Partition("a100", True, 86400, 1200, 10, 64, 256000, None, True, {"gpu:a100": 4})
PARTITIONS = {"a100": A100, "b": replace(A100, name="b"), "old": replace(A100, name="old", real_memory_mb=1)}
# One value of each option: as it is typed, and what sbatch is to see of it.
ONE = {
    "partition": ("a100", "--partition=a100"), "gpus": (3, "--gres=gpu:3"), "gres": ("gpu:a100:2", "--gres=gpu:a100:2"),
    "nodes": (2, "--nodes=2"), "cpus": (5, "--cpus-per-task=5"), "mem": ("9G", "--mem=9G"),
    "time": ("0:30:00", "--time=30"),
    "account": ("acc", "--account=acc"), "qos": ("q", "--qos=q"), "constraint": ("x|y", "--constraint='x|y'"),
    "exclude": ("n1", "--exclude=n1"), "nodelist": ("n2", "--nodelist=n2"), "reservation": ("r", "--reservation=r"),
    "nice": (7, "--nice=7"), "comment": ("a b=c", "--comment='a b=c'"), "slurm": (("licenses=x",), "--licenses=x"),
    "second_after": ("1:00", ""),
}  # fmt: skip
# As `scontrol show job` of 22.05 answers for such a job.
SHOWN = """JobId=7 JobName=brains
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901756 Nice=7 Account=acc QOS=q WCKey=*w
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=0 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:00:10 TimeLimit=00:30:00 TimeMin=N/A
   StartTime=2026-11-26T01:37:07 EndTime=2026-11-26T01:57:07 Deadline=N/A
   Partition=a100 AllocNode:Sid=localhost:31268
   ReqNodeList=n2 ExcNodeList=n1
   NumNodes=2-2 NumCPUs=1 NumTasks=1 CPUs/Task=5 ReqB:S:C:T=0:0:*:*
   Socks/Node=* NtasksPerN:B:S:C=3:0:*:* CoreSpec=*
   MinCPUsNode=1 MinMemoryNode=4.50G MinTmpDiskNode=10M
   Features=x|y DelayBoot=00:00:00
   Reservation=r
   OverSubscribe=NO Contiguous=1 Licenses=x Network=(null)
   Command=/tmp/t.sh
   WorkDir=/tmp
   Comment=a b=c 
   StdOut=/tmp/slurm-7.out
   Power=
   GresEnforceBind=Yes
   TresPerNode=gres:gpu:a100:3
   MailUser=a@b MailType=END,FAIL
   

"""  # noqa: W291, W293
EXPECTED = {
    "partition": "a100", "gres": "gpu:a100:3", "nodes": "2", "cpus-per-task": "5", "mem": "4608M", "time": "00:30:00",
    "account": "acc", "qos": "q", "constraint": "x|y", "exclude": "n1", "nodelist": "n2", "reservation": "r",
    "nice": "7", "comment": "a b=c", "mail-type": "END,FAIL", "mail-user": "a@b", "licenses": "x", "exclusive": True,
    "contiguous": True, "tmp": "10M", "gres-flags": "enforce-binding", "ntasks-per-node": "3", "wckey": "w",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_world(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(sites.socket, "gethostname", lambda: "login")
    for name in list(os.environ):
        if name.startswith(("SBATCH_", "SLURM_")):
            monkeypatch.delenv(name)


def profile(text: str) -> sites.Site:
    own = sites.user_file()
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(text)
    own.chmod(0o600)
    return sites.load_sites()["generic"]


def planned(tmp_path, site: sites.Site, **given) -> planning.Plan:
    options = Options(job="stylegan2", **given)
    flags = ["--data", "phantom", "--run", str(tmp_path / "run"), "--batch", "192", "--pl-weight", "0"]
    return planning.make_plan(options, flags, site, PARTITIONS)


def test_one_value_of_each_option_is_tried():
    assert set(ONE) == set(PROFILE) <= set(TABLE)
    assert {row.sbatch for row in PROFILE.values() if row.plain} <= {
        name.partition("=")[0][2:] for _, name in ONE.values()
    }


@pytest.mark.parametrize("name", PROFILE)
def test_an_option_reaches_sbatch_a_profile_and_a_resume(tmp_path, name):
    value, word = ONE[name]
    typed = planned(tmp_path, profile(""), **({"partition": "a100"} | {name: value}))
    text = submit.sbatch_text([typed])
    if name == "second_after":
        typed = planned(tmp_path, profile(""), partition="a100,b", second_after=value)
        assert typed.second_after == 60 and "#SBATCH --partition=a100\n" in submit.sbatch_text([typed])
    else:
        assert f"#SBATCH {word}\n" in text
    # A profile says it for a whole site, and for one partition.
    given = json.dumps(list(value) if isinstance(value, tuple) else value)
    keys = f"{name} = {given}\n"
    whole = profile(f"[generic]\npartition = 'a100'\n{keys}" if name != "partition" else f"[generic]\n{keys}")
    assert word in submit.sbatch_text([planned(tmp_path, whole)])
    if name not in ("partition", "second_after"):
        part = profile(f"[generic]\npartition = 'a100'\n[generic.partitions.a100]\n{keys}")
        assert f"#SBATCH {word}\n" in submit.sbatch_text([planned(tmp_path, part)])
    # What was typed is used again.
    typed.run.mkdir(exist_ok=True)
    submit.write_jobs(typed)
    assert getattr(steer.resume_options(typed.run, {}), name) == value


def test_a_job_is_read_back_with_all_its_options(tmp_path, monkeypatch):
    job = slurm.parse_show_job(SHOWN)
    assert successor.options_of_job(job.shown) == EXPECTED
    fields = {row.sbatch for row in PROFILE.values() if row.shown} | set(FURTHER)
    never = {"mem-per-cpu", "mem-per-gpu", "switches", "deadline", "time-min", "core-spec", "gpu-bind", "gpu-freq"}
    assert fields - never - {"network"} <= set(EXPECTED)  # every row of the table is tried here
    run = RunDir(tmp_path / "run")
    run.create()
    about = {"job": "vae", "submitted": [{"id": "7", "kind": "main"}], "margin": 60}
    submit.write_about(run.path, about | {"options": {"partition": "a100,b"}})
    calls = []
    answer = SimpleNamespace(returncode=0, stdout="9\n", stderr="")
    monkeypatch.setattr(sbatch.subprocess, "run", lambda command, **k: calls.append(command) or answer)
    assert successor.queue_successor(run, submit.read_jobs(run.path), job) == "9"
    words = [f"--{k}" if v is True else f"--{k}={v}" for k, v in EXPECTED.items() if k != "partition"]
    assert set(words) <= set(calls[0]) and {"--no-requeue", "--dependency=afterany:7"} < set(calls[0])
    assert "--partition=a100,b" in calls[0] and "--signal=USR2@60" in calls[0]
    assert submit.read_jobs(run.path)["submitted"][-1]["after"] == "7"


@pytest.mark.parametrize(
    ("shown", "expected", "typed"),
    [
        # --gpus, --gpus-per-task: a successor that forgets them trains on the CPU, silently
        ({"TresPerJob": "gres:gpu:4", "NumNodes": "2"}, {"gpus": "4"}, {"gpus": 2, "gres": "gpu:{gpus}"}),
        ({"TresPerTask": "gres:gpu:a100:1", "NtasksPerN:B:S:C": "2:0:*:*"}, {"gpus-per-task": "a100:1"},
         {"gpus": 2, "gres": "gpu:a100:{gpus}"}),
        ({"TresPerTask": "cpu=4,gres/gpu=1"}, {"gpus-per-task": "1"}, {"gpus": 1, "gres": "gpu:{gpus}"}),
        ({"MinMemoryCPU": "1000M"}, {"mem-per-cpu": "1000M"}, {"slurm": ("mem-per-cpu=1000M",)}),
        ({"MinMemoryCPU": "1000M", "MemPerTres": "gres:gpu:3072"}, {"mem-per-gpu": "3072M"}, {}),
        ({"CpusPerTres": "gres:gpu:3", "CPUs/Task": "4"}, {"cpus-per-gpu": "3"}, {"cpus": 3}),
        ({"NumTasks": "4", "NtasksPerN:B:S:C": "0:0:*:*"}, {"ntasks": "4"}, {}),
        ({"TimeLimit": "UNLIMITED"}, {"time": "UNLIMITED"}, {"time": None}),
        ({"OverSubscribe": "OK", "Nice": "-3", "Contiguous": "0"}, {"nice": "-3"}, {"nice": -3}),
    ],
)  # fmt: skip
def test_what_was_asked_for_in_another_way(shown, expected, typed):
    found = successor.options_of_job(shown)
    assert {k: found.get(k) for k in expected} == expected
    assert len([k for k in found if k.startswith("mem")]) <= 1 and not {"cpus-per-task", "cpus-per-gpu"} <= set(found)
    again = successor.as_typed(shown)
    assert {k: again.get(k) for k in typed} == typed


def test_resume_of_a_run_that_sbatch_started(tmp_path):
    """Partition, time, cores and all the rest are kept in jobs.json: Slurm forgets the job in minutes."""
    run = RunDir(tmp_path / "run")
    run.create()
    submit.write_about(run.path, {"job": "stylegan2", "options": {"shared": True, "time": "1", "cpus": 1}})
    successor.remember_options(run.path, slurm.parse_show_job(SHOWN))
    options = steer.resume_options(run.path, {})
    assert (options.partition, options.time, options.cpus, options.nodes) == ("a100", "00:30:00", 5, 2)
    assert (options.gpus, options.gres, options.mem, options.shared) == (3, "gpu:a100:{gpus}", "4608M", True)
    assert further(options.slurm)["mail-type"] == "END,FAIL" and further(options.slurm)["exclusive"] is True
    options.check()
    flags = ["--data", "phantom", "--run", str(run.path), "--batch", "192", "--pl-weight", "0"]
    text = submit.sbatch_text([planning.make_plan(options, flags, profile(""), PARTITIONS)])
    assert "#SBATCH --gres=gpu:a100:3\n" in text and "#SBATCH --mem=4608M\n" in text and "#SBATCH --exclusive\n" in text
    more = steer.resume_options(run.path, {"slurm": ("mail-type=ALL",), "gpus": 1})
    assert further(more.slurm)["mail-type"] == "ALL" and further(more.slurm)["licenses"] == "x"
    assert more.gpus == 1 and more.gres == "gpu:a100:{gpus}"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("time=5", "use --time"), ("gpus=2", "use --gpus N"), ("requeue", "sets requeue itself"), ("=x", "KEY=VALUE"),
        ("export=NONE", "sets export itself"), ("A B=1", "KEY=VALUE"), ("mail-user=a\nb", "KEY=VALUE"),
        ("--dependency=singleton", "--after RUN"),
    ],
)  # fmt: skip
def test_what_slurm_may_not_be_told(word, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        Options(slurm=(word,)).check()
    with pytest.raises(ConfigError, match="generic"):
        profile(f"[generic]\nslurm = [{json.dumps(word)}]\n")


def test_exclude_is_of_nodes_before_the_dashes():
    Options(exclude="n1,n[2-3]").check()
    for options in (Options(exclude="*masked*"), Options(exclude="b/c"), Options(exclude="bad", local=True)):
        with pytest.raises(ConfigError, match="-- --exclude GLOB"):
            options.check()


def test_gpus_and_gres_do_not_contradict_each_other(tmp_path):
    site = profile("")
    assert planned(tmp_path, site, partition="a100", gres="gpu:a100:{gpus}", gpus=2).gres == "gpu:a100:2"
    assert planned(tmp_path, site, partition="a100", gres="none").gpus == 0
    assert planned(tmp_path, site, partition="a100", gres="gpu:2", gpus=0).gres == ""
    with pytest.raises(ConfigError, match="leave one of them out"):
        planned(tmp_path, site, partition="a100", gres="gpu:2", gpus=1)
    with pytest.raises(ConfigError, match="write a number"):
        planned(tmp_path, site, partition="a100", gres="gpu:{gpus}{x}")


def test_memory_is_checked_before_it_is_asked_for(tmp_path):
    site = profile("")
    (failed,) = preflight.check_mem(planned(tmp_path, site, partition="a100", mem="999G"), A100)
    assert failed.level == "fail" and "256000 MB" in failed.text
    assert not preflight.check_mem(planned(tmp_path, site, partition="a100", mem="250G"), A100)
    assert preflight.check_mem(planned(tmp_path, site, partition="a100", mem="lots"), A100)[0].level == "fail"
    assert "mem" not in planned(tmp_path, site, partition="old", mem="9G").slurm  # it would pend for ever


# --- the user's shell -------------------------------------------------------------------------------------------------
def test_variables_of_sbatch_are_defaults_and_are_said(tmp_path):
    shell = {
        "SBATCH_PARTITION": "a100", "SBATCH_TIMELIMIT": "2:00:00", "SBATCH_QOS": "night", "SBATCH_EXPORT": "NONE",
        "SBATCH_MEM_PER_CPU": "2G", "SBATCH_REQUEUE": "1", "SBATCH_GPUS_PER_NODE": "a100:2", "HOME": "/",
    }  # fmt: skip
    options = from_shell(Options(job="vae", qos="day"), shell)
    assert (options.partition, options.time, options.qos) == ("a100", "2:00:00", "day")
    assert options.slurm == ("mem-per-cpu=2G",)
    assert set(options.not_taken) == {"SBATCH_EXPORT", "SBATCH_REQUEUE", "SBATCH_GPUS_PER_NODE"}
    flags = ["--data", "phantom", "--run", str(tmp_path / "run")]
    plan = planning.make_plan(options, flags, profile(""), PARTITIONS)
    said = [(check.level, check.text) for check in preflight.check_resources(plan, PARTITIONS)]
    assert ("ok", "--time 2:00:00, from SBATCH_TIMELIMIT of your shell") in said and plan.minutes == 120
    assert any(level == "warn" and "SBATCH_EXPORT, SBATCH_GPUS_PER_NODE" in text for level, text in said)
    assert plan.options["time"] == "2:00:00"  # a resume from another shell is the same
    assert from_shell(Options(gpus=0), {"SBATCH_GPUS_PER_NODE": "2"}).gpus == 0
    assert from_shell(Options(), {"SBATCH_GPUS_PER_NODE": "2"}).gpus == 2


def test_one_way_to_ask_for_memory_takes_the_place_of_the_profiles(tmp_path):
    site = profile('[generic]\nmem = "64G"\n')
    assert planned(tmp_path, site, partition="a100", slurm=("mem-per-cpu=1G",)).slurm == {"mem-per-cpu": "1G"}
    site = profile('[generic]\nslurm = ["mem-per-cpu=1G", "licenses=x"]\n')
    assert planned(tmp_path, site, partition="a100", mem="9G").slurm == {"mem": "9G", "licenses": "x"}
    assert planned(tmp_path, site, partition="a100").slurm == {"mem-per-cpu": "1G", "licenses": "x"}


def test_sbatch_sees_none_of_them(monkeypatch):
    for name in ("SBATCH_TIMELIMIT", "SBATCH_EXPORT", "SLURM_EXPORT_ENV", "SRUN_EXPORT_ENV", "SLURM_JOB_ID", "RANK"):
        monkeypatch.setenv(name, "NONE")
    monkeypatch.setenv("SLURM_CONF", "/etc/it")
    seen = []
    answer = SimpleNamespace(returncode=0, stdout="9\n", stderr="")
    monkeypatch.setattr(
        sbatch.subprocess, "run", lambda *a, **k: seen.append(k.get("env") or dict(os.environ)) or answer
    )
    sbatch.submit(["x"], None, lambda job: True)
    slurm.test_only("#!/bin/sh")
    for env in seen:
        left = {name for name in env if name.startswith(("SBATCH_", "SRUN_", "SLURM_", "RANK"))}
        assert left <= {"SLURM_CONF", "SLURM_TIME_FORMAT"} and "SLURM_CONF" in left
    assert os.environ["SBATCH_TIMELIMIT"] == "NONE" and len(seen) == 2


# --- what sbatch answers ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "job_id"),
    [
        ("7\n", "7"), ("7;lab\n", "7"), ("Submitted batch job 7\n", "7"),
        ("Submitted batch job 7 on cluster lab\n", "7"),
        ("Welcome! 3 jobs of yours run; job 12 ends in 2026.\nSubmitted batch job 7\nBye 99\n", "7"),
        ("*** charged to acc-42 ***\n7;lab\nthank you\n", "7"), ("\r\n7\r\n", "7"), ("job 12 is fine\n", ""),
        ("7\n8\n", ""), ("Submitted batch job 7\nSubmitted batch job 8\n", ""),
        ("Submitted batch job 7\nSubmitted batch job 7\n", "7"), ("", ""), ("12\nWelcome\n", ""),
        ("notice\n12\n7;lab\n", "7"), ("12\nSubmitted batch job 7\n", "7"),
    ],
)  # fmt: skip
def test_the_id_among_a_sites_own_words(text, job_id):
    assert sbatch.read_id(text) == job_id


def test_an_id_on_stderr_or_not_at_all(monkeypatch):
    answer = SimpleNamespace(returncode=0, stdout="hello\n", stderr="Submitted batch job 7\n")
    monkeypatch.setattr(sbatch.subprocess, "run", lambda *a, **k: answer)
    assert sbatch.submit([], None, lambda job: False) == "7"
    answer.stdout = "12\n"  # of the site's banner
    assert sbatch.submit([], None, lambda job: False) == "7"
    answer.stderr = "nothing to see"
    queue = {i: Job(i, "PENDING", name="brains", dependency="afterany:5(unfulfilled)") for i in ("8", "9_0", "11")}
    queue["11"] = replace(queue["11"], name="other", dependency="afterany:15")
    monkeypatch.setattr(slurm, "squeue", lambda: queue)
    assert sbatch.submit([], None, lambda job: job.name == "brains") == "9"
    assert sbatch.submit([], None, lambda job: sbatch.follows(job, "5")) == "9"
    with pytest.raises(SlurmError, match="named no id"):
        sbatch.submit([], None, lambda job: False)


def test_submitit_reads_ids_as_everybody_here(monkeypatch):
    from submitit import SlurmExecutor

    before = SlurmExecutor._get_job_id_from_submission_command
    with sbatch.ids_of_submitit(lambda job: job.name == "grid"):
        read = SlurmExecutor._get_job_id_from_submission_command
        assert read("job 12 of yours ends\nSubmitted batch job 7\n") == "7"
        monkeypatch.setattr(slurm, "squeue", lambda: {"9_1": Job("9_1", "PENDING", name="grid")})
        assert read("welcome, job 12\n") == "9"
    assert SlurmExecutor._get_job_id_from_submission_command is before


def test_a_banner_around_the_other_commands():
    row = slurm.FIELD.join(["7", "RUNNING", *[""] * 4, "0:10", "1:00", "N/A", "N/A", "", "n", "c", "w"])
    for text in (f"Hello = all\n{row}{slurm.RECORD}\n", f"{row}{slurm.RECORD}\nHello\nyou\n", f"{row}{slurm.RECORD}"):
        assert list(slurm.parse_squeue(text)) == ["7"]
    assert slurm.parse_squeue("") == {}
    with pytest.raises(SlurmError):
        slurm.parse_squeue("slurm is away\n")
    for banner in ("Hello\n\n", "a=b\n", "Site: lab\n\n\n"):
        assert slurm.parse_show_job(banner + SHOWN).id == "7"


def test_a_refusal_names_the_line_that_decides_and_the_way_out(tmp_path, monkeypatch):
    words = "sbatch: error: Memory specification can not be satisfied\nsbatch: error: Batch job submission failed: "
    said = sbatch.plain_refusal(f"welcome\n{words}Requested node configuration is not available\n")
    assert said == "Memory specification can not be satisfied; Requested node configuration is not available"
    assert "--mem SIZE" in sbatch.way_out(said) and sbatch.way_out("what?") == ""
    monkeypatch.setattr(slurm, "test_only", lambda script: (False, said))
    assert preflight.check_with_slurm("x")[0].level == "fail"


# --- sweeps -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def grid(tmp_path, monkeypatch):
    """launch.py --sweep with a Slurm that gives ids."""
    queued: list[list[str]] = []
    monkeypatch.setattr(sweep, "RUNS", tmp_path)
    monkeypatch.setattr(preflight, "check_plan", lambda *a: [])
    monkeypatch.setattr(preflight, "check_with_slurm", lambda *a: [])
    monkeypatch.setattr(submit, "take_snapshot", lambda run: None)
    monkeypatch.setattr(status, "all_jobs", lambda: {})

    def slurm_takes(plans, dependency="", folder=None):
        queued.append([plan.run.name for plan in plans])
        texts.append(submit.sbatch_text(plans, folder=folder))
        for plan in plans:
            submit.write_state(plan.run, "running", "")
        return [f"{len(queued)}_{i}" for i in range(len(plans))]

    texts: list[str] = []
    monkeypatch.setattr(submit, "submit_slurm", slurm_takes)
    resolve = planning.resolve

    def here(job, name, preset, flags, site):
        config = resolve(job, name, preset, flags, site)
        return replace(config, run=str(tmp_path / Path(config.run).name))

    monkeypatch.setattr(planning, "resolve", here)

    def ask(*swept: str, **given) -> None:
        options = Options(job="stylegan2", partition="a100", sweep=swept, **given)
        assert sweep.sweep(options, ["--data", "phantom"], profile(""), PARTITIONS) == 0

    return SimpleNamespace(ask=ask, queued=queued, texts=texts, dir=tmp_path)


@pytest.mark.parametrize("name", ["grid", ""])
def test_the_same_sweep_with_more_values_adds_points(grid, monkeypatch, name):
    view = status.view_run
    monkeypatch.setattr(  # what was queued runs
        status,
        "view_run",
        lambda run, jobs: replace(view(run, jobs), state="running") if queued(run) else view(run, jobs),
    )

    def queued(run: Path) -> bool:
        return any(run.name in names for names in grid.queued)

    grid.ask("lr=0.001,0.002", name=name, throttle=1)
    assert "#SBATCH --array=0-1%1\n" in grid.texts[0]
    grid.ask("lr=0.002,0.004", name=name)
    assert len(grid.queued[1]) == 1
    (folder,) = [path.parent for path in grid.dir.glob("*/sweep.json")]
    assert [point["values"]["lr"] for point in sweep.read_sweep(folder)] == ["0.001", "0.002", "0.004"]
    assert len(members(folder)) == 3
    if name:
        with pytest.raises(ConfigError, match="sweep of lr already"):
            grid.ask("z-dim=64", name=name)


def test_a_run_after_a_sweep_waits_for_all_its_points(tmp_path, monkeypatch):
    points = [RunDir(tmp_path / name) for name in ("a", "b", "c")]
    for i, point in enumerate(points):
        point.create()
        submit.note_submitted(point.path, [(f"5_{i}", "main")])
    folder = tmp_path / "grid"
    folder.mkdir()
    rows = [{"values": {"lr": str(i)}, "run": str(point.path)} for i, point in enumerate(points)]
    (folder / "sweep.json").write_text(json.dumps({"points": rows}))
    queue = {f"5_{i}": Job(f"5_{i}", "RUNNING") for i in (1, 2)}
    monkeypatch.setattr(status, "all_jobs", lambda: queue)
    monkeypatch.setattr(slurm, "squeue", lambda: queue)
    plan = planning.Plan("vae", None, tmp_path / "second", sites.Site("s"), False, after=str(folder))
    with pytest.raises(ConfigError, match=r"a is neither done nor queued; python launch\.py resume .*a first"):
        queueing.dependency_of(plan, Options())
    points[0].mark_done()
    assert queueing.dependency_of(plan, Options())[0] == "afterany:5_1:5_2"
    second = RunDir(plan.run)
    second.create()
    submit.write_about(plan.run, {"submitted": [], "after": str(folder)})
    asked = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(submit, "successor", lambda *a: asked.append(a) or "9")
    assert submit.ready(plan.run) == 1 and asked == [(plan.run, "7", "5_1", "5_2")]
    queue.clear()
    points[1].mark_done()
    assert submit.ready(plan.run) == 1 and "c ended and is not done" in second.read_status()["reason"]
    points[2].mark_done()
    assert submit.ready(plan.run) == 0 and queueing.dependency_of(plan, Options()) == ("", "")


def test_the_best_point_by_a_column(capsys):
    points = [{"values": {"lr": str(i)}, "run": f"/r/{i}"} for i in range(4)]
    figures = [{"val_psnr": 20.0, "kl": 3.0}, {"val_psnr": 25.0, "kl": 4.0}, {}, {"val_psnr": 22.0, "kl": 1.0}]
    views = [status.View(f"grid-{i}", f"/r/{i}", metrics=m, kimg=5.0) for i, m in enumerate(figures)]
    for column, order in (("val_psnr", "1 3 0 2"), ("kl", "3 0 1 2")):  # the higher is better, the lower is
        assert " ".join(view.name[-1] for view in show.by_column(points, views, column)[1]) == order
    show.show_sweep(*show.by_column(points, views, "kl"), "kl")
    assert "Best by kl: grid-3 (lr=3), 1 at 5 kimg." in capsys.readouterr().out
    with pytest.raises(LookupError, match="there are kl, val_psnr"):
        show.by_column(points, views, "fid")


# --- the job's own ground ---------------------------------------------------------------------------------------------
def test_a_job_without_its_snapshot_says_so(tmp_path):
    """The set-up lines, run by a real bash: the run is failed with its way out, and srun is not reached."""
    run = RunDir(tmp_path / "run")
    run.create()
    submit.write_state(run.path, "queued", "")
    plan = planning.Plan("vae", None, run.path, sites.Site("s"), False)
    script = "\n".join([*submit.setup_lines([plan]), "echo srun is reached"])
    env = {"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "srun" not in done.stdout and f"python launch.py resume {run.path} " in done.stderr
    assert run.read_status()["state"] == "failed" and "is gone" in run.read_status()["reason"]
    assert run.read_attempts()[-1]["decision"] == "failed"


def test_a_second_partition_is_added_by_a_small_job(tmp_path, monkeypatch):
    plan = planned(tmp_path, profile(""), partition="a100,b", second_after="1:00:00", account="acc")
    asked, updated = [], []
    monkeypatch.setattr(sbatch, "submit", lambda words, cwd, ours: asked.append(words) or "8")
    monkeypatch.setattr(slurm, "update", lambda *a: updated.append(a))
    assert sbatch.widen_later("7", plan) == "8"
    assert {"--begin=now+3600", "--partition=a100,b", "--account=acc"} < set(asked[0]) and not updated
    assert "--wrap=scontrol update JobId=7 Partition=a100,b || true" in asked[0]

    def refuse(*a):
        raise SlurmError("no small jobs here")

    monkeypatch.setattr(sbatch, "submit", refuse)
    assert sbatch.widen_later("7", plan) == "" and updated == [("7", "Partition=a100,b")]


WAITS, RUNS, OVER = "PENDING", "RUNNING", "CANCELLED"


@pytest.mark.parametrize(
    ("queue", "ended", "goes"),
    [
        ({"7": WAITS, "8": WAITS}, ["7"], True), ({"7": WAITS, "8": WAITS}, [], False), ({"8": WAITS}, [], True),
        ({"7": RUNS, "8": WAITS}, [], True), ({"7": OVER, "8": OVER}, [], False), ({"7": WAITS}, ["7"], False),
        ({"7_0": WAITS, "7_1": WAITS, "8": WAITS}, ["7_0"], False),
        ({"7_0": WAITS, "7_1": RUNS, "8": WAITS}, ["7_0"], True),
        ({"9": WAITS, "8": WAITS}, [], True),
    ],
)  # fmt: skip
def test_the_small_job_goes_when_nothing_waits_for_it(tmp_path, monkeypatch, queue, ended, goes):
    jobs = {i: Job(i, state) for i, state in queue.items()}
    about = {"submitted": [{"id": next(iter(queue)) if "7" in next(iter(queue)) else "7"}], "widener": "8"}
    (tmp_path / "jobs.json").write_text(json.dumps(about))
    assert submit.widener(tmp_path, jobs, ended) == (["8"] if goes else [])
    # At the end of a job as well.
    asked = []
    monkeypatch.setattr(slurm, "squeue", lambda ids: asked.append(ids) or jobs)
    found = requeue._widener(tmp_path, submit.read_jobs(tmp_path), about["submitted"][0]["id"])
    assert asked == [["8", "7"]] and found == submit.widener(tmp_path, jobs, [about["submitted"][0]["id"]])
    assert requeue._widener(tmp_path, {}, "7") == [] and len(asked) == 1


@pytest.mark.parametrize(
    ("name", "sign"), [("a%j", "%j"), ("50%a", "%a"), ("x%4u", "%4u"), ("a%%b", "%%"), ("50% b%", "")]
)
def test_a_path_in_which_slurm_writes_something_else(tmp_path, monkeypatch, name, sign):
    monkeypatch.setattr(doctor, "check_versions", list)
    monkeypatch.setattr(doctor, "torch_cuda", str)
    options = Options(job="stylegan2", partition="a100")
    flags = ["--data", "phantom", "--run", str(tmp_path / name / "run"), "--batch", "192", "--pl-weight", "0"]
    if not sign:
        assert planning.make_plan(options, flags, profile(""), PARTITIONS)
        return
    with pytest.raises(ConfigError, match=f"for {sign} in a path"):
        planning.make_plan(options, flags, profile(""), PARTITIONS)
    failed = [check for check in doctor.check_machine("", tmp_path / name / "runs") if check.level == "fail"]
    assert any(f"for {sign} in a path" in check.text for check in failed)


# --- the doctor -------------------------------------------------------------------------------------------------------
def test_the_doctor_imports_what_it_vouches_for(tmp_path, monkeypatch):
    """A package can be there and be broken, as TensorBoard 2.20 is under setuptools 82."""
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard/__init__.py").write_text("")
    (tmp_path / "tensorboard/main.py").write_text("import pkg_resources_that_is_gone\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (failed,) = doctor.check_imports(["tensorboard", "tyro"])
    assert failed.level == "fail" and "No module named 'pkg_resources_that_is_gone'" in failed.text
    assert failed.fix == f"{sys.executable} -m pip install --upgrade -r requirements.txt"
    bound = next(
        line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("tensorboard")
    )
    assert bound == "tensorboard>=2.21"  # the first one that needs no pkg_resources
