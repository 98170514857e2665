"""launch.py command by command, in this process and with a Slurm that only notes what it is asked.

The same command means the same run; STOP is written before anything is cancelled; what is refused queues nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import ROOT

import launch
from jobs.cluster import choose, doctor, logs, preflight, serve, show, sites, slurm, status, steer, submit, sweep, why
from jobs.cluster.options import OF_SLURM, Options
from jobs.cluster.preflight import Check
from jobs.cluster.slurm import Job, Partition
from jobs.config import kinds, parsing, specs
from jobs.config.specs import ConfigError
from jobs.run import find
from jobs.run.rundir import RunDir

A100 = Partition("a100", True, 86400, 1200, 10, 64, 1, None, True, {"gpu:a100": 4})
GAN = ("--job", "stylegan2", "--data", "phantom:48")


class World:
    """A login node: the queue, and what was asked of it in order."""

    def __init__(self, root: Path):
        self.root, self.runs = root, root / "runs"
        self.queue: dict[str, Job] = {}
        self.asked: list[tuple] = []
        self.checks: list[Check] = [Check("ok", "fine")]
        self.plans, self.scripts, self.waited, self.next = [], [], [], 42

    def submit_slurm(self, plans, dependency="", folder=None) -> list[str]:
        first, self.next = self.next, self.next + 1
        ids = [str(first)] if folder is None else [f"{first}_{i}" for i in range(len(plans))]
        for plan, job_id in zip(plans, ids, strict=True):
            assert RunDir(plan.run).read_status()["state"] == "queued" and not RunDir(plan.run).stop_requested()
            submit.note_submitted(plan.run, [(job_id, "main")])
            self.queue[job_id] = Job(job_id, "PENDING", reason="Priority", partition=plan.partition)
        self.asked.append(("sbatch", [plan.run.name for plan in plans], dependency, folder and folder.name))
        self.plans += plans
        return ids

    def submit_local(self, plan) -> str:
        self.asked.append(("start", plan.run.name))
        self.plans.append(plan)
        return "123"

    def cancel(self, job_id):
        run = next(
            (p for p in self.runs.iterdir() if job_id in [j["id"] for j in submit.read_jobs(p).get("submitted", [])]),
            None,
        )
        self.asked.append(("scancel", job_id, bool(run) and (run / "STOP").exists()))

    def run(self, name: str) -> RunDir:
        return RunDir(self.runs / name)

    def lives(self, name: str, state: str = "RUNNING", own: str = "running") -> Job:
        """Let the run's last job be in this state."""
        job_id = submit.read_jobs(self.runs / name)["submitted"][-1]["id"]
        self.queue[job_id] = Job(
            job_id, state, start=time.time() - 60, elapsed_s=60, limit_s=3600, nodes="n1", reason="Priority"
        )
        self.says(name, own)
        return self.queue[job_id]

    def says(self, name: str, state: str, **fields) -> None:
        path = self.runs / name / "status.json"
        path.write_text(json.dumps({"state": state, "updated": time.time(), "total_kimg": 1.0} | fields))

    def over(self, name: str, own: str, total_kimg: float | None = None) -> None:
        """No job any more; the run's own last word."""
        for job in submit.read_jobs(self.runs / name).get("submitted", []):
            self.queue.pop(job["id"], None)
        self.says(name, own)
        if own == "done":
            self.run(name).mark_done()
            self.run(name).write_config((self.run(name).read_config() or {}) | {"total_kimg": total_kimg})


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    world = World(tmp_path / "toolkit")
    world.runs.mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sites.socket, "gethostname", lambda: "login")  # of no cluster that has a profile
    for module in (specs, parsing):
        monkeypatch.setattr(module, "ROOT", world.root)
    for module in (find, choose, sweep, serve):
        monkeypatch.setattr(module, "RUNS", world.runs)
    monkeypatch.setattr(slurm, "absent", lambda: False)
    monkeypatch.setattr(slurm, "partitions", lambda: {"a100": A100})
    monkeypatch.setattr(slurm, "cancel", world.cancel)
    monkeypatch.setattr(status, "all_jobs", lambda: dict(world.queue))
    monkeypatch.setattr(
        preflight,
        "check_plan",
        lambda plan, partitions, script="": world.scripts.append((partitions, script)) or world.checks,
    )
    monkeypatch.setattr(preflight, "check_with_slurm", lambda script: [Check("ok", "asked")])
    monkeypatch.setattr(submit, "take_snapshot", lambda run: (run / "code").mkdir(exist_ok=True))
    monkeypatch.setattr(submit, "submit_slurm", world.submit_slurm)
    monkeypatch.setattr(submit, "submit_local", world.submit_local)
    monkeypatch.setattr(show, "wait_for", lambda run, local, stop: world.waited.append((run.name, local, stop)) or 0)
    return world


def ran(*words: str) -> int:
    return launch.main([str(word) for word in words])


# --- the same command means the same run ------------------------------------------------------------------------------
def test_a_run_is_queued_once(world, capsys):
    assert ran(*GAN, "--name", "one") == 0
    assert world.asked == [("sbatch", ["one"], "", None)] and "Queued one as job 42 on a100" in capsys.readouterr().out
    ((partitions, script),) = world.scripts
    assert partitions == {"a100": A100} and "#SBATCH" in script  # Slurm is asked about that very script
    for state, own, word in (
        ("PENDING", "queued", "queued"),
        ("RUNNING", "running", "running"),
        ("COMPLETING", "saving", "ending"),
    ):
        world.lives("one", state, own)
        assert ran(*GAN, "--name", "one") == 0
        assert f"one is {word} already as job 42" in capsys.readouterr().out
    assert len(world.asked) == 1
    world.lives("one", "PENDING", "queued")
    ran(*GAN, "--name", "one")
    assert "higher priority" in capsys.readouterr().out
    world.lives("one", "COMPLETING", "saving")
    assert ran(*GAN, "--name", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": str(world.runs / "one"),
        "job_id": "42",
        "state": "ending",
        "queued": False,
    }
    assert ran(*GAN, "--name", "two", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"run": str(world.runs / "two"), "job_id": "43", "queued": True}


@pytest.mark.parametrize("own", ["stopped", "failed", "diverged", "stuck", "continue", "running", "waiting", "queued"])
def test_a_run_that_is_over_goes_on(world, own):
    """A live one's heartbeat without a job is one that was cut off."""
    ran(*GAN, "--name", "one")
    world.over("one", own)
    (world.runs / "one" / "STOP").write_text("me")
    assert ran(*GAN, "--name", "one") == 0
    assert [call[:2] for call in world.asked] == [("sbatch", ["one"])] * 2 and not world.run("one").stop_requested()
    assert [entry["id"] for entry in submit.read_jobs(world.runs / "one")["submitted"]] == ["42", "43"]


@pytest.mark.parametrize(("total", "queued"), [("1", 0), ("0.5", 0), ("1.01", 1)])
def test_a_finished_run_is_named_or_made_longer(world, capsys, total, queued):
    ran(*GAN, "--name", "one", "--total-kimg", "1")
    world.over("one", "done", 1.0)
    assert ran(*GAN, "--name", "one", "--total-kimg", total) == 0
    assert len(world.asked) == 1 + queued and world.run("one").done() == (not queued)
    assert ("one is done (1 kimg)" in capsys.readouterr().out) == (not queued)


def test_two_launchers_at_once_queue_one_job(world, monkeypatch):
    """The other one was quicker, while this one made its checks."""

    @contextlib.contextmanager
    def lock(run):
        submit.note_submitted(run, [("7", "main")])
        world.queue["7"] = Job("7", "PENDING")
        yield

    monkeypatch.setattr(submit, "submit_lock", lock)
    assert ran(*GAN, "--name", "one") == 0 and world.asked == []


def test_waiting_for_it(world):
    ran(*GAN, "--name", "one", "--wait")
    world.lives("one")
    ran(*GAN, "--name", "one", "--wait")
    ran(*GAN, "--name", "two", "--local", "--wait")
    assert world.waited == [
        ("one", False, steer.stop_run),
        ("one", False, steer.stop_run),
        ("two", True, steer.stop_run),
    ]
    world.over("one", "done", 9e9)
    ran(*GAN, "--name", "one", "--wait")
    assert len(world.waited) == 3  # nothing to wait for


def test_a_name_alone_is_enough_for_a_known_run(world):
    ran(*GAN, "--name", "one")
    world.over("one", "stopped")
    assert ran("--name", "one", "--data", "phantom:48") == 0 and world.plans[-1].job == "stylegan2"
    with pytest.raises(SystemExit) as error:
        ran("--name", "unknown")
    assert error.value.code == 2


def test_the_options_by_default():
    assert vars(launch.queue_parser().parse_args([])) == dict(
        job="", preset="", name="", sweep=[], after="", partition="", gpus=None, nodes=None, cpus=None, time="",
        account="", qos="", second_after="", gres="", mem="", constraint="", exclude="", nodelist="", reservation="",
        nice=None, comment="", slurm=[], throttle=None, notify="", max_gpu_hours=None,
        max_restarts=None, site="", local=False, wait=False, dry_run=False, shared=False, json=False,
    )  # fmt: skip


def test_training_flags_may_stand_on_either_side(world):
    ran(*GAN, "--name", "one", "--lr", "0.001", "--", "--gamma", "3")
    config = world.plans[0].config
    assert (config.lr, config.gamma) == (0.001, 3.0)
    ran(*GAN, "--name", "two", "--preset", "adni128", "--gpus", "2", "--nodes", "2", "--cpus", "5", "--time", "60",
        "--account", "a", "--qos", "q", "--max-restarts", "0", "--shared")  # fmt: skip
    two = world.plans[1]
    assert (
        two.config.resolution,
        two.gpus,
        two.nodes,
        two.cpus,
        two.minutes,
        two.account,
        two.qos,
        two.max_restarts,
        two.shared,
    ) == (128, 2, 2, 5, 60, "a", "q", 0, True)
    assert submit.read_jobs(two.run)["max_restarts"] == 0


# --- refusals ---------------------------------------------------------------------------------------------------------
def test_a_failed_check_queues_nothing(world, capsys):
    world.checks = [Check("warn", "odd"), Check("fail", "bad", "do this")]
    assert ran(*GAN, "--name", "one") == 78
    assert world.asked == [] and not (world.runs / "one").exists()
    shown = capsys.readouterr()
    assert "do this" in shown.err and "nothing queued: 1 check failed" in shown.err
    assert ran(*GAN, "--name", "one", "--json") == 78
    said = json.loads(capsys.readouterr().out)
    assert said["queued"] is False and [c["level"] for c in said["checks"]] == ["warn", "fail"]
    world.checks = [Check("warn", "odd"), Check("ok", "fine")]
    assert ran(*GAN, "--name", "one") == 0 and len(world.asked) == 1
    shown = capsys.readouterr()
    assert "odd" in shown.err and "fine" not in shown.err + shown.out


def test_a_dry_run_queues_nothing(world, capsys):
    for words, checks, code in (
        ((), [Check("ok", "fine")], 0), ((), [Check("fail", "bad", "fix")], 78),
        (("--local",), [Check("warn", "odd")], 0),
    ):  # fmt: skip
        world.checks = checks
        assert ran(*GAN, "--name", "one", "--dry-run", *words) == code
        out = capsys.readouterr().out
        assert "Nothing queued" in out and ("refused" in out) == (code == 78) and ("#SBATCH" in out) == (not words)
        assert (f"{world.runs}/one/code/train_gan.py --run {world.runs}/one" in out) == bool(words)
        assert '"data": "phantom:48"' in out and checks[0].text in out
        assert ran(*GAN, "--name", "one", "--dry-run", "--json", *words) == code
        said = json.loads(capsys.readouterr().out)
        assert said["runs"][0]["config"]["data"] == "phantom:48" and said["runs"][0]["command"][3:5] == [
            "--run",
            f"{world.runs}/one",
        ]
        assert said["checks"][0]["level"] == checks[0].level and bool(said["sbatch"]) == (not words)
    assert world.asked == [] and list(world.runs.iterdir()) == []


def test_without_slurm_only_a_dry_run_or_a_local_one(world, monkeypatch, capsys):
    monkeypatch.setattr(slurm, "absent", lambda: True)
    monkeypatch.setattr(slurm, "partitions", lambda: pytest.fail("asked"))
    with pytest.raises(ConfigError, match="--local"):
        ran(*GAN)
    assert ran(*GAN, "--partition", "p", "--dry-run") == 0 and world.scripts[-1][0] is None
    assert ran(*GAN, "--local") == 0 and world.asked[0][0] == "start" and world.plans[0].local


@pytest.mark.parametrize(("flag", "lowest"), [("--gpus", 0), ("--nodes", 1), ("--cpus", 1), ("--max-restarts", 0)])
def test_the_lowest_numbers(world, flag, lowest):
    assert ran(*GAN, "--name", "one", "--dry-run", flag, str(lowest)) == 0
    with pytest.raises(ConfigError, match=f"^{flag} {lowest - 1}: at least {lowest}"):
        ran(*GAN, "--name", "one", "--dry-run", flag, str(lowest - 1))


@pytest.mark.parametrize("name", OF_SLURM)
def test_this_machine_is_no_cluster(world, name):
    """--local would ignore what only Slurm can do; each such option is refused by its name, whatever its value."""
    flag, values = f"--{name.replace('_', '-')}", ("0", "1") if name == "max_restarts" else ("1", "2")
    values = {"slurm": ("mail-type=END", "tmp=1"), "gres": ("gpu:1", "gpu:2")}.get(name, values)
    for value in values:
        with pytest.raises(ConfigError, match=f"leave out {flag}:"):
            ran(*GAN, "--local", "--dry-run", flag, value)
        assert ran(*GAN, "--dry-run", flag, value) == 0
    assert ran(*GAN, "--local", "--dry-run", "--gpus", "0") == 0


def test_a_flag_that_was_meant_for_launch(world, capsys):
    with pytest.raises(SystemExit) as error:
        ran(*GAN, "--partiton=a100", "--dry-run")
    assert error.value.code == 2 and "did you mean --partition?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        ran("--job", "vae", "--", "--help")
    assert error.value.code in (0, None) and "--latent-channels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["status", "nope"], 2, "error: there is no run nope"),
        (["staus"], 2, "error: staus: there is no such command"),
        (["--job", "gan", "--data", "x"], 78, "error: --job gan"),
        (["doctor", "--site", "nowhere"], 78, "error: --site nowhere"), (["--data", "x"], 2, "--job is missing"),
        ([], 0, ""), (["help"], 0, ""), (["status"], 0, ""),
    ],
)  # fmt: skip
def test_exit_codes(world, monkeypatch, capsys, words, code, said):
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
    assert (error.value.code or 0) == code and said in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (slurm.SlurmError("x"), 78),
        (submit.SubmitError("x"), 78), (ConfigError("x"), 78)])  # fmt: skip
def test_exit_codes_of_what_goes_wrong(world, monkeypatch, capsys, error, code):
    def fail():
        raise error

    monkeypatch.setattr(slurm, "partitions", fail)
    monkeypatch.setattr(sys, "argv", ["launch.py", *GAN])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "launch.py"), run_name="__main__")
    assert ended.value.code == code and (capsys.readouterr().err == "error: x\n") == (code == 78)


# --- a run after another ----------------------------------------------------------------------------------------------
def test_a_run_after_another_waits_for_its_last_job(world, capsys):
    ran(*GAN, "--name", "first")
    submit.note_submitted(world.runs / "first", [("9", "chain"), ("50", "chain"), ("51", "chain")])
    world.queue |= {i: Job(i, "PENDING") for i in ("9", "50")} | {"51": Job("51", "COMPLETED")}
    assert ran(*GAN, "--name", "second", "--after", "fir") == 0
    assert world.asked[-1] == ("sbatch", ["second"], "afterany:50", None) and world.plans[-1].after == str(
        world.runs / "first"
    )
    assert (
        submit.read_jobs(world.runs / "second")["after"] == str(world.runs / "first")
        and "when first (job 50) is done" in capsys.readouterr().out
    )


def test_a_run_after_one_that_is_over(world):
    ran(*GAN, "--name", "first")
    world.over("first", "stopped")
    with pytest.raises(ConfigError, match="resume first first"):
        ran(*GAN, "--name", "second", "--after", "first")
    with pytest.raises(ConfigError, match="is not done"):
        ran(*GAN, "--name", "second", "--after", "first", "--local")
    assert ran(*GAN, "--name", "second", "--after", "first", "--dry-run") == 0
    world.over("first", "done", 1.0)
    assert ran(*GAN, "--name", "second", "--after", "first") == 0 and world.asked[-1][2] == ""
    assert ran(*GAN, "--name", "third", "--after", "first", "--local") == 0
    with pytest.raises(LookupError):
        ran(*GAN, "--name", "second", "--after", "nope")


# --- sweeps and pipelines ---------------------------------------------------------------------------------------------
def test_a_sweep_is_one_array_of_all_combinations(world, capsys):
    words = (*GAN, "--name", "grid", "--sweep", "lr=0.1, 0.2", "--sweep=--batch=64,128", "--pl-weight", "0")
    assert ran(*words) == 0
    names = [f"grid-lr={lr},batch={batch}" for lr in ("0.1", "0.2") for batch in ("64", "128")]
    assert world.asked == [("sbatch", names, "", "grid")]
    assert [(p.config.lr, p.config.batch, p.config.pl_weight) for p in world.plans] == [
        (0.1, 64, 0),
        (0.1, 128, 0),
        (0.2, 64, 0),
        (0.2, 128, 0),
    ]
    points = json.loads((world.runs / "grid/sweep.json").read_text())["points"]
    assert [(p["values"], p["run"]) for p in points][1] == ({"lr": "0.1", "batch": "128"}, str(world.runs / names[1]))
    assert (world.runs / names[2] / "logs/42_2.out").readlink() == world.runs / "grid/logs/42_2.out"
    assert "4 of 4 points" in capsys.readouterr().out
    # One done, one stopped, two live: what is left is one job, which logs into its own run.
    world.over(names[0], "done", 99999.0)
    world.over(names[3], "stopped")
    assert ran(*words, "--json") == 0
    assert world.asked[1:] == [("sbatch", [names[3]], "", None)]
    assert json.loads(capsys.readouterr().out) == {
        "sweep": str(world.runs / "grid"),
        "runs": [str(world.runs / names[3])],
        "job_ids": ["43"],
        "queued": True,
    }
    assert ran(*words) == 0 and len(world.asked) == 2 and "4 points are live or done already" in capsys.readouterr().out
    assert ran(*words, "--total-kimg", "100000") == 0 and world.asked[2][1] == [names[0]]  # the finished one goes on


def test_a_sweep_of_one_point_is_a_job_like_any(world, monkeypatch):
    asked = []
    monkeypatch.setattr(preflight, "check_with_slurm", lambda script: asked.append(script) or [Check("ok", "asked")])
    assert ran(*GAN, "--name", "grid", "--sweep", "lr=0.1") == 0
    assert world.asked == [("sbatch", ["grid-lr=0.1"], "", None)] and "--array" not in asked[0]
    assert not list(world.run("grid-lr=0.1").logs.glob("*.out"))
    for folder in (world.runs / "grid", world.runs / "grid/logs/submitit", world.runs / "grid-lr=0.1"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_is_said_of_a_queued_run(world, capsys, monkeypatch):
    monkeypatch.setattr(slurm, "partitions", lambda: {"a100": A100, "cpu": replace(A100, name="cpu", gres={})})
    ran(
        *GAN,
        "--name",
        "one",
        "--site",
        "rangpur",
        "--partition",
        "a100",
        "--gpus",
        "2",
        "--nodes",
        "2",
        "--batch",
        "128",
        "--time",
        "90",
    )
    out = capsys.readouterr().out
    assert (
        "2 nodes of 2 GPU, 8 cores, 01:30:00 per attempt; it requeues itself" in out
        and "pre-empted after an hour" in out
    )
    ran(*GAN, "--name", "two", "--partition", "cpu")
    assert "on cpu: no GPU, 4 cores" in capsys.readouterr().out
    ran(*GAN, "--name", "three", "--local")
    assert "Started three on this machine (process 123)" in capsys.readouterr().out


def test_flags_of_the_two_stages(world, capsys):
    """Each goes to the stage that knows it; one that neither knows is refused by name, and nothing is queued."""
    words = ["--job", "pipeline", "--name", "p", "--data", "phantom:48"]
    flags = ["--lr", "0.003", "--no-compile", "--steps=2", "--no-conditional", "--down", "4"]
    assert ran(*words, *flags) == 0
    vae, diffusion = (plan.config for plan in world.plans)
    assert (vae.lr, vae.compile, vae.down) == (0.003, False, 4)
    assert (diffusion.lr, diffusion.compile, diffusion.steps, diffusion.conditional) == (0.003, False, 2, False)
    asked = list(world.asked)
    for typo in (["--no-typo"], ["--typo", "x"], ["x"]):
        with pytest.raises(SystemExit) as error:
            ran(*words[:3], "q", *words[4:], *flags, *typo)
        assert error.value.code == 2 and typo[0] in capsys.readouterr().err
    assert world.asked == asked and [path.name for path in world.runs.iterdir() if path.name[0] == "q"] == []


def test_a_sweep_is_checked_before_anything_is_queued(world, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        preflight, "check_with_slurm", lambda script: asked.append(script) or [Check("fail", "no", "fix")]
    )
    assert ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2") == 78 and "--array=0-1" in asked[0]
    world.checks = [Check("fail", "bad", "fix")]
    assert ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2") == 78 and len(asked) == 1
    assert ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2", "--dry-run") == 78
    assert world.asked == [] and list(world.runs.iterdir()) == []
    with pytest.raises(ConfigError, match="--wait"):
        ran(*GAN, "--sweep", "lr=0.1,0.2", "--local")


def test_a_sweep_on_this_machine_reports_its_worst_end(world, monkeypatch):
    codes = [0, 77, 1]
    monkeypatch.setattr(show, "wait_for", lambda run, local, stop: codes.pop(0))
    assert ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2,0.3", "--local", "--wait") == 77
    assert [call[1] for call in world.asked] == ["grid-lr=0.1", "grid-lr=0.2", "grid-lr=0.3"]


@pytest.mark.parametrize("words", [["lr"], ["lr="], ["lr=1,,2"], ["nope=1,2"], ["lr=1,1"], ["run=a,b"], ["preset=a,b"],
        ["dry-run=a,b"], ["lr=1,2", "lr=3,4"]])  # fmt: skip
def test_sweeps_that_make_no_sense(words):
    with pytest.raises(ConfigError, match=r"^--sweep "):
        sweep.parse_sweep(Options(job="stylegan2", sweep=tuple(words)))
    assert sweep.parse_sweep(Options(job="stylegan2", sweep=("--z_dim=8,16",))) == (
        ["z-dim"],
        [("8",), ("16",)],
    )


def test_a_pipeline_is_the_vae_and_diffusion_behind_it(world):
    words = (
        "--job",
        "pipeline",
        "--name",
        "p",
        "--data",
        "phantom:48",
        "--latent-channels",
        "2",
        "--steps",
        "9",
        "--lr",
        "0.001",
    )
    assert ran(*words, "--wait") == 0
    assert world.asked == [("sbatch", ["p-vae"], "", None), ("sbatch", ["p"], "afterany:42", None)]
    vae, diffusion = world.plans
    assert (vae.config.latent_channels, diffusion.config.steps, vae.config.lr, diffusion.config.lr) == (
        2,
        9,
        0.001,
        0.001,
    )
    assert diffusion.config.vae == diffusion.after == str(vae.run) and vae.after == ""
    assert world.waited == [("p", False, steer.stop_run)]  # one wait, for the end of both
    with pytest.raises(ConfigError, match="--sweep"):
        ran(*words, "--sweep", "lr=1,2")


def test_a_pipeline_on_this_machine_waits_for_its_vae(world, monkeypatch):
    codes = [77]
    monkeypatch.setattr(show, "wait_for", lambda run, local, stop: world.waited.append(run.name) or codes.pop(0))
    words = ("--job", "pipeline", "--name", "p", "--data", "phantom:48", "--local")
    assert ran(*words) == 77 and world.asked == [("start", "p-vae")] and world.waited == ["p-vae"]


# --- stop -------------------------------------------------------------------------------------------------------------
def test_stop_of_a_running_job_lets_it_save(world, capsys):
    ran(*GAN, "--name", "one")
    world.lives("one")
    submit.note_submitted(world.runs / "one", [("50", "chain")])
    world.queue["50"] = Job("50", "PENDING")
    assert ran("stop", "one") == 0
    assert world.run("one").stop_requested() and world.asked[1:] == [("scancel", "50", True)]  # the successor alone
    assert "saves and stops" in capsys.readouterr().out and world.run("one").read_status()["state"] == "running"


def test_stop_of_a_frozen_job_says_what_ends_it(world, capsys):
    ran(*GAN, "--name", "one")
    for state in ("SUSPENDED", "STOPPED"):
        world.lives("one", state)
        assert ran("stop", "one") == 0 and "once it goes on; --now ends it" in capsys.readouterr().out
    assert ran("stop", "one", "--now") == 0 and "is ended now" in capsys.readouterr().out


def test_stop_now_writes_stop_before_it_cancels(world):
    ran(*GAN, "--name", "one")
    world.lives("one")
    assert ran("stop", "one", "--now") == 0
    assert world.asked[1:] == [("scancel", "42", True)] and "--now" in (world.runs / "one/STOP").read_text()


def test_stop_takes_what_has_not_begun_out_of_the_queue(world, capsys):
    ran(*GAN, "--name", "one")
    assert ran("stop", "one") == 0
    assert world.asked[1:] == [("scancel", "42", True)] and world.run("one").read_status()["state"] == "stopped"
    assert "taken out of the queue (job 42)" in capsys.readouterr().out


def test_stop_of_what_does_not_run(world, capsys):
    ran(*GAN, "--name", "one")
    world.over("one", "failed")
    assert ran("stop", "one", "--now") == 0
    assert (
        len(world.asked) == 1
        and not world.run("one").stop_requested()
        and "one is not running (failed)" in capsys.readouterr().out
    )


@pytest.mark.parametrize(("now", "host", "kills"), [(False, "here", 0), (True, "here", 1), (True, "elsewhere", 0)])
def test_stop_of_a_local_process(world, monkeypatch, now, host, kills):
    killed = []
    monkeypatch.setattr(steer.socket, "gethostname", lambda: "here")
    monkeypatch.setattr(status, "live_process", lambda run: {"host": host, "pid": 123})
    monkeypatch.setattr(steer.os, "kill", lambda *a: killed.append((*a, world.run("one").stop_requested())))
    world.run("one").create()
    assert steer.stop_run(world.runs / "one", now) == 0
    assert killed == [(123, signal.SIGTERM, True)] * kills and world.run("one").stop_requested()


def test_stop_of_a_process_that_only_starts(world, monkeypatch):
    monkeypatch.setattr(status, "starting_process", lambda run: "123")
    world.run("one").create()
    steer.stop_run(world.runs / "one", False)
    assert world.run("one").stop_requested() and world.run("one").read_status() == {}


def test_stop_of_a_sweep_stops_its_points(world):
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    assert ran("stop", "grid") == 0
    assert world.asked[1:] == [("scancel", "42_0", True), ("scancel", "42_1", True)]


# --- resume -----------------------------------------------------------------------------------------------------------
def test_resume_goes_on_with_the_options_it_had(world):
    ran(
        *GAN,
        "--name",
        "one",
        "--gpus",
        "2",
        "--time",
        "60",
        "--max-restarts",
        "5",
        "--qos",
        "q",
        "--lr",
        "0.001",
        "--total-kimg",
        "5",
        "--shared",
    )
    world.over("one", "stopped")
    (world.runs / "one/STOP").write_text("me")
    assert ran("resume", "one") == 0
    again = world.plans[1]
    assert (again.job, again.gpus, again.minutes, again.max_restarts, again.qos, again.config.lr, again.shared) == (
        "stylegan2",
        2,
        60,
        5,
        "q",
        0.001,
        True,
    )
    assert not world.run("one").stop_requested()
    world.over("one", "stopped")
    assert (
        ran("resume", "one", "--time", "30", "--gpus", "1", "--max-restarts", "6", "--wait", "--", "--total-kimg", "7")
        == 0
    )
    other = world.plans[2]
    assert (other.gpus, other.minutes, other.max_restarts, other.qos, other.config.total_kimg, other.config.lr) == (
        1,
        30,
        6,
        "q",
        7.0,
        0.001,
    )
    assert len(world.waited) == 1 and submit.read_jobs(other.run)["options"]["time"] == "30"
    assert ran("resume", "one") == 0 and len(world.asked) == 3  # a live one is not doubled


def test_resume_knows_a_zero_from_nothing(world):
    ran(*GAN, "--name", "one", "--gpus", "0", "--max-restarts", "0")
    world.over("one", "stopped")
    ran("resume", "one")
    assert [(plan.gpus, plan.gres, plan.max_restarts) for plan in world.plans] == [(0, "", 0)] * 2
    ran(*GAN, "--name", "two")
    world.over("two", "stopped")
    ran("resume", "two", "--gpus", "0", "--max-restarts", "0")
    assert [(plan.gpus, plan.max_restarts) for plan in world.plans[2:]] == [(1, 20), (0, 0)]


def test_resume_of_a_local_run_may_move_to_the_cluster(world):
    ran(*GAN, "--name", "one", "--local")
    world.over("one", "stopped")
    ran("resume", "one")
    assert world.asked[-1] == ("start", "one")
    world.over("one", "stopped")
    ran("resume", "one", "--partition", "a100")
    assert world.asked[-1][0] == "sbatch" and not world.plans[-1].local


def test_resume_keeps_what_the_run_waits_for(world):
    ran(*GAN, "--name", "first")
    ran(*GAN, "--name", "second", "--after", "first")
    world.over("second", "waiting")
    assert ran("resume", "second") == 0 and world.asked[-1] == ("sbatch", ["second"], "afterany:42", None)


def test_resume_of_a_run_that_launch_py_did_not_start(world):
    run = world.run("one")
    run.create()
    with pytest.raises(ConfigError, match="nothing to resume"):
        ran("resume", "one")
    for job, flags in (("vae", []), ("diffusion", ["--vae", "/v"]), ("stylegan2", [])):
        config = parsing.parse_config(
            kinds.JOBS[job].config, ["--data", "phantom", "--run", str(run.path), "--preset", "quickstart", *flags]
        )
        run.write_config(json.loads(parsing.to_json(config)))
        assert steer.job_of(run.path) == job
    assert ran("resume", "one") == 0 and world.plans[-1].config.data == "phantom"
    run.write_config({"odd": 1})
    with pytest.raises(ConfigError, match="no job of this version"):
        steer.job_of(run.path)


def test_resume_of_a_sweep_is_one_array_with_its_throttle(world, capsys):
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2,0.3", "--throttle", "2")
    ran(*GAN, "--name", "one")
    names = [f"grid-lr={lr}" for lr in ("0.1", "0.2", "0.3")]
    for name in (*names[:2], "one"):
        world.over(name, "stopped")
    world.asked.clear()
    world.plans.clear()
    assert ran("resume", "grid", "one", "--time", "30") == 0
    assert world.asked == [("sbatch", names[:2], "", "grid"), ("sbatch", ["one"], "", None)]
    assert {plan.minutes for plan in world.plans} == {30} and [p.throttle for p in world.plans] == [2, 2, 0]
    assert [p["run"] for p in find.read_sweep(world.runs / "grid")] == [str(world.runs / name) for name in names]
    for name in names:
        world.over(name, "stopped")
    assert ran("resume", "grid", "--time", "9", "--throttle", "1", "--dry-run") == 0
    assert "--array=0-2%1" in capsys.readouterr().out
    assert ran("resume", "--failed", "grid") == 0 and len(world.asked) == 2  # stopped is not failed
    # Those that ask for different things, or are damaged, are no array.
    about = world.runs / names[2] / "jobs.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"options": {"time": "10"}}))
    assert ran("resume", "grid") == 0 and [call[1:2] for call in world.asked[2:]] == [([name],) for name in names]
    for name in names:
        world.over(name, "stopped")
    about.write_text(json.dumps(json.loads(about.read_text()) | {"options": {"time": 10}}))
    assert ran("resume", "grid") == 78 and len(world.asked) == 7 and f"error: {names[2]}: " in capsys.readouterr().err


A, B = "grid-lr=0.1", "grid-lr=0.2"


@pytest.mark.parametrize(
    ("looks", "code", "said"),
    [
        ([(B, "done"), (), (A, "stopped"), (), (), ()], 0, [f"{B}: done", f"{A}: stopped"]),
        ([(A, "done")], 0, [f"{A}: done", "The jobs go on. python launch.py stop grid stops them."]),
        # Between two attempts a run may look ended: one look or two are not enough.
        (
            [(A, "failed"), (), (A, "live"), (B, "done"), (A, "failed"), (), (), ()],
            1,
            [f"{B}: done", f"{A}: failed (python launch.py why {A})"],
        ),
    ],
    ids=["stopped", "Ctrl-C", "between attempts"],
)
def test_a_resumed_sweep_is_waited_for(world, capsys, monkeypatch, looks, code, said):
    """looks: what happens after each look at the points; then Ctrl-C."""
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    for name in (A, B):
        world.over(name, "stopped")
    world.asked.clear()
    events = iter(looks)

    def sleep(_):
        match next(events, None):
            case None:
                raise KeyboardInterrupt
            case name, "live":
                world.lives(name)
            case name, state:
                world.over(name, state, 1.0)

    monkeypatch.setattr(show, "time", SimpleNamespace(sleep=sleep))  # of no other module
    capsys.readouterr()
    assert ran("resume", "grid", "--wait") == code and world.asked == [("sbatch", [A, B], "", "grid")]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("grid-", "The jobs"))] == said


def test_points_that_still_stop_are_named_and_not_called_live(world, capsys):
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    for name in ("grid-lr=0.1", "grid-lr=0.2"):
        world.lives(name)
    assert ran("stop", "grid-lr=0.2") == 0
    for again in ((*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2"), ("resume", "grid")):
        with pytest.raises(slurm.NoAnswer, match=r"told to stop, grid-lr=0\.2; try again"):
            ran(*again)


# --- what a person looks at -------------------------------------------------------------------------------------------
def test_status(world, capsys):
    assert ran("status") == 0 and "No runs in" in capsys.readouterr().out
    ran(*GAN, "--name", "one")
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    for i, name in enumerate(("one", "grid-lr=0.1", "grid-lr=0.2")):  # the order in which they were touched
        os.utime(world.runs / name, (1e9 + i,) * 2)
    capsys.readouterr()
    assert ran("status") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "RUN",
        "one",
        "grid-lr=0.1",
        "grid-lr=0.2",
    ]
    ran("status", "--json")
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1
    first = said["runs"][0]
    assert (first["name"], first["state"]) == ("one", "queued")
    ran("status", "grid", "--json")
    assert [v["sweep"] for v in json.loads(capsys.readouterr().out)["runs"]] == [{"lr": "0.1"}, {"lr": "0.2"}]
    ran("status", "grid")
    assert capsys.readouterr().out.startswith("LR ")
    ran("status", "one")
    assert capsys.readouterr().out.startswith("one: queued")


def test_logs(world, capsys, monkeypatch):
    run = world.run("one")
    run.create()
    (run.path / "jobs.json").write_text("{}")
    assert ran("logs", "one") == 0 and "no log yet" in capsys.readouterr().out
    (run.logs / "1.out").write_text("".join(f"{i}\n" for i in range(60)))
    for words, shown in (((), range(10, 60)), (("-n", "2"), (58, 59)), (("-n", "0"), (59,))):
        ran("logs", "one", *words)
        assert capsys.readouterr().out.split() == [str(i) for i in shown]

    def grow(seconds):
        if (run.logs / "2.out").exists():
            raise KeyboardInterrupt
        (run.logs / "2.out").write_text("next\n")

    monkeypatch.setattr(logs.time, "sleep", grow)
    assert ran("logs", "one", "-f", "-n", "1") == 0 and capsys.readouterr().out == "59\nnext\n"


def test_why(world, capsys, monkeypatch):
    monkeypatch.setattr(why, "slurm_record", lambda run: None)
    ran(*GAN, "--name", "one")
    capsys.readouterr()
    assert ran("why", "one") == 0
    out = capsys.readouterr().out
    assert out.startswith("one: queued") and "higher priority" in out
    world.over("one", "failed")
    (world.run("one").logs / "1.out").write_text("CUDA out of memory\n")
    ran("why", "one", "--json")
    said = json.loads(capsys.readouterr().out)
    assert (said["run"], said["state"], said["line"]) == (
        "one",
        "failed",
        "CUDA out of memory",
    ) and "--accumulate" in said["fix"]
    ran("why", "one")
    assert f"{world.runs}/one/logs/1.out" in capsys.readouterr().out


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 78)])
def test_doctor(world, monkeypatch, capsys, level, code):
    asked = []
    monkeypatch.setattr(
        doctor, "check_machine", lambda *a: asked.append(a) or [Check("ok", "a"), Check(level, "b", "c")]
    )
    assert ran("doctor") == code and asked == [("", world.runs)]
    assert ("1 problem to fix" in capsys.readouterr().out) == (level == "fail")
    assert ran("doctor", "--json", "--site", "rangpur") == code and asked[-1][0] == "rangpur"
    assert json.loads(capsys.readouterr().out)[1] == {"level": level, "text": "b", "fix": "c"}


def test_tensorboard_shows_all_runs_or_those_named(world, monkeypatch, capsys):
    served = []

    def served_with(command):
        folder = Path(command[command.index("--logdir") + 1])
        links = {path.name: os.readlink(path) for path in folder.iterdir() if path.is_symlink()}
        served.append(
            (folder == world.runs, links, command[command.index("--port") + 1], command[command.index("--host") + 1])
        )
        return 0

    monkeypatch.setattr(serve, "serve", served_with)
    monkeypatch.setattr(show, "say_tunnel", lambda site, port: served.append((site.name, port)))
    ran(*GAN, "--name", "grid", "--sweep", "lr=0.1,0.2")
    assert ran("tensorboard", "--port", "7007", "--site", "rangpur") == 0
    points = {name: str(world.runs / name / "tensorboard") for name in ("grid-lr=0.1", "grid-lr=0.2")}
    assert served == [("rangpur", "7007"), (False, points, "7007", "127.0.0.1")]  # a run is called by its name
    assert ran("tensorboard", "grid") == 0
    assert served[-1][:2] == (False, points) and served[-2][1] == served[-1][2]
    outside = RunDir(world.root / "far")
    outside.create()
    outside.write_config({})
    ran("tensorboard", str(outside.path))
    assert served[-1][1] == {str(outside.path).replace("/", "_"): str(outside.tensorboard)}


def test_runs_that_begin_while_it_serves_come_to_it(world, tmp_path):
    """Each under its own name, and none twice; until it is over."""
    seen: list = []

    def waits(seconds) -> bool:
        seen.append(sorted(path.name for path in tmp_path.glob("*-*")))
        run = RunDir(world.runs / f"new-{len(seen)}")
        run.create()
        run.write_config({})
        return len(seen) == 3

    serve.keep_linking(tmp_path, SimpleNamespace(wait=waits))
    assert seen == [[], ["new-1"], ["new-1", "new-2"]]
    assert os.readlink(tmp_path / "new-1") == str(world.runs / "new-1" / "tensorboard")


def test_serve_hides_notices_and_ends_its_process(capfd):
    code = (
        "import sys; print('TensorFlow installation not found', file=sys.stderr); print('\\nreal words', "
        "file=sys.stderr); sys.exit(3)"
    )
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        assert serve.serve([sys.executable, "-c", code]) == 3
        assert serve.serve([sys.executable, "-c", "import sys; sys.exit(-1)"]) == 78  # 255 is what ssh says of itself
        taken = "import sys; print('ERROR: could not bind to port 7', file=sys.stderr); sys.exit(-1)"
        assert serve.serve([sys.executable, "-c", taken]) == 75
        assert all(signal.getsignal(number) is not before[number] for number in before)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert capfd.readouterr().err == "real words\nERROR: could not bind to port 7\n"
