"""Run directory, lock, attempts, log, stop: the small files that a run's safety rests on."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import rundir, runtime, specs, stop
from jobs.log import Averages, MetricsLog, image_grid, plot_losses, read_metrics, save_png
from jobs.rundir import Locked, RunDir, atomic_write

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "run")
    run.create()
    return run


# --- lock -------------------------------------------------------------------------------------------------------------
def test_a_live_process_of_this_host_holds_the_lock(run):
    run.lock()
    with pytest.raises(Locked, match=f"process {os.getpid()} on {socket.gethostname()}"):
        RunDir(run.path).lock()
    run.unlock()
    assert not run.lockfile.exists()
    other = RunDir(run.path)
    other.lock()
    other.unlock()


@pytest.mark.parametrize("holder", [
    {"host": socket.gethostname(), "pid": 2**22 + 1, "start": "5"},  # no such process
    {"host": socket.gethostname(), "pid": os.getpid(), "start": "5"},  # a re-used pid: same number, started at another time
])  # fmt: skip
def test_a_dead_process_does_not(run, holder):
    run.lockfile.write_text(json.dumps(holder))
    run.lock()
    assert json.loads(run.lockfile.read_text())["pid"] == os.getpid()
    run.unlock()


def test_another_hosts_lock_counts_until_its_heartbeat_stops(run):
    run.lockfile.write_text(json.dumps({"host": "elsewhere", "pid": 1, "start": "5"}))
    with pytest.raises(Locked, match="process 1 on elsewhere"):
        run.lock(wait=0)
    os.utime(run.lockfile, (time.time() - 999,) * 2)
    run.lock(wait=0)
    run.unlock()


def test_of_many_takers_of_a_stale_lock_one_wins(run):
    run.lockfile.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1, "start": "5"}))
    code = "import sys, time; from jobs.rundir import *; r = RunDir(sys.argv[1]); r.lock(); print('won', flush=True); time.sleep(4)"
    takers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        for _ in range(6)
    ]
    assert sum(b"won" in p.communicate()[0] for p in takers) == 1


# --- small files ------------------------------------------------------------------------------------------------------
def test_attempts_close_one_that_died_without_a_word(run):
    run.attempt_start(nimg=0)
    again = RunDir(run.path)
    with open(again.attempts, "a") as file:
        file.write('{"event": "sta')  # killed inside its line
    again.attempt_start(nimg=8)
    again.attempt_end(nimg=16, reason="finished", seconds=1.0)
    lines = again.read_attempts()
    assert [(x["event"], x.get("attempt")) for x in lines] == [("start", 1), ("end", 1), ("start", 2), ("end", 2)]
    assert lines[1]["inferred"] and "died" in lines[1]["reason"]


def test_run_directories_are_private_and_starting_deletes_nothing(run):
    assert oct(run.path.stat().st_mode & 0o777) == "0o700"
    (run.checkpoints / "x.pt").write_text("keep")
    RunDir(run.path).create()
    assert (run.checkpoints / "x.pt").read_text() == "keep"


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    atomic_write(path, "old")
    monkeypatch.setattr(rundir.os, "replace", lambda a, b: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_stop_is_moved_into_the_attempts(run):
    (run.path / "STOP").write_text("lunch")
    assert run.stop_requested()
    run.lift_stop()
    assert not run.stop_requested() and run.read_attempts()[-1]["text"] == "lunch"


# --- metrics ----------------------------------------------------------------------------------------------------------
def test_resume_drops_later_rows_and_half_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for nimg in (0, 8, 16, 24):
        log.append({"nimg": nimg, "loss": nimg / 10})
    with open(path, "a") as file:
        file.write('{"nimg": 32, "lo')
    MetricsLog(path, resume_nimg=16).append({"nimg": 24, "loss": 7.0})
    assert [(r["nimg"], r["loss"]) for r in read_metrics(path)] == [(0, 0.0), (8, 0.8), (16, 1.6), (24, 7.0)]
    MetricsLog(path, resume_nimg=-1)
    assert read_metrics(path) == []


def test_rows_stay_json_when_a_value_is_not_finite(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"nimg": 8, "a": math.nan, "b": math.inf, "c": 1.5})
    row = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"nimg": 8, "a": None, "b": None, "c": 1.5, "nonfinite": ["a", "b"]}


def test_averages_over_a_resume():
    values = [0.1, 0.2, 0.7, -4.0, 3.3]
    a, b = Averages(), Averages()
    for i, value in enumerate(values):
        a.add({"x": torch.tensor(value)})
        if i == 2:
            b.load_state_dict(json.loads(json.dumps({"sums": {}, "counts": {}})))
            b.load_state_dict(a.state_dict())
        elif i > 2:
            b.add({"x": torch.tensor(value)})
    assert a.means() == b.means() and a.means()["x"] == pytest.approx(sum(values) / 5, rel=1e-6)


def test_grid_has_even_spacing_and_holds_the_pictures(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 6), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3, pad=2))
    assert grid.shape == (2 * (8 + 2) + 2, 3 * (6 + 2) + 2)
    for i, image in enumerate(images):
        y, x = 2 + i // 3 * 10, 2 + i % 3 * 8
        assert (grid[y : y + 8, x : x + 6] == image[0]).all()
    colour = image_grid(np.repeat(images, 3, 1), columns=5, labels=list("abcde"))
    save_png(tmp_path / "x.png", colour, {"about": "a test"})
    with Image.open(tmp_path / "x.png") as loaded:
        assert loaded.mode == "RGB" and loaded.text["about"] == "a test"


def test_loss_plot_is_drawn_from_the_rows(tmp_path):
    rows = [{"nimg": n * 1000, "loss_G": 1 / (n + 1), "loss_D": 2.0, "diversity": None} for n in range(50)]
    plot_losses(rows, tmp_path / "plots" / "a.png")
    plot_losses({"one": rows, "two": rows[:3]}, tmp_path / "b.png", from_kimg=1, to_kimg=20)
    plot_losses([], tmp_path / "c.png")
    for name in ("plots/a.png", "b.png", "c.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 200 and len(set(np.asarray(image.convert("L")).ravel())) > 2


# --- stop, ranks, randomness, precision -------------------------------------------------------------------------------
STOPPER = """
import sys, time
from jobs import stop
from jobs.rundir import RunDir
stop.install_handlers()
watch = stop.StopWatch(RunDir(sys.argv[1]), margin=float(sys.argv[2]))
print("ready", flush=True)
end = time.time() + 20
while time.time() < end and not (level := watch.poll()):
    time.sleep(0.01)
print(level, watch.describe(level), flush=True)
"""


@pytest.mark.parametrize(("how", "answer"), [
    (signal.SIGUSR1, "2 USR1"), (signal.SIGUSR2, "2 USR2"), (signal.SIGTERM, "2 TERM"), (signal.SIGINT, "3 Ctrl-C"),
    ("STOP", "3 STOP file"), ("SAVE", "1 SAVE file"), ("time", "2 time limit"),
])  # fmt: skip
def test_every_reason_to_stop(run, how, answer):
    env = {**os.environ, "SLURM_JOB_END_TIME": str(int(time.time() + 61))} if how == "time" else dict(os.environ)
    command = ["bash", "-c", 'trap "" USR1 USR2; exec "$@"', "bash", sys.executable, "-c", STOPPER, str(run.path), "60"]
    p = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env)
    assert p.stdout.readline() == "ready\n"
    if isinstance(how, str) and how != "time":
        (run.path / how).touch()
    elif how != "time":
        p.send_signal(how)
    assert p.communicate(timeout=30)[0].strip() == answer
    assert not (run.path / "SAVE").exists()


def test_ranks_come_from_torchrun_then_from_a_slurm_step(monkeypatch):
    for name in [n for n in os.environ if n.startswith(("SLURM_", "RANK", "WORLD", "LOCAL_"))]:
        monkeypatch.delenv(name)
    assert runtime.ranks() == (0, 1, 0)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert runtime.ranks() == (0, 1, 0)  # a batch shell: one process, whatever the job has
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    assert runtime.ranks() == (3, 4, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert runtime.ranks() == (1, 2, 1)
    ports = set()
    for job in range(40):
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("SLURM_JOB_ID", str(job))
        runtime.slurm_rendezvous()
        ports.add(os.environ["MASTER_PORT"])
    monkeypatch.delenv("MASTER_ADDR")
    monkeypatch.delenv("MASTER_PORT")
    assert len(ports) > 38


def test_rows_are_contiguous_and_the_same_for_every_way_to_split():
    assert runtime.rows(24, 0, 1) == [(0, 24)]
    two_ranks = [r for rank in (0, 1) for r in runtime.rows(24, rank, 2, 2)]
    assert two_ranks == runtime.rows(24, 0, 1, 4) == [(0, 6), (6, 12), (12, 18), (18, 24)]
    with pytest.raises(ValueError, match="does not divide"):
        runtime.rows(24, 0, 5)


def test_draws_are_a_function_of_seed_moment_and_purpose():
    def draw(*key):
        return torch.randn(4, generator=runtime.generator(*key)).tolist()

    assert draw(0, 8, "G") == draw(0, 8, "G")
    assert len({tuple(draw(*key)) for key in [(0, 8, "G"), (1, 8, "G"), (0, 16, "G"), (0, 8, "D")]}) == 4


def test_watchdog_ends_a_process_that_hangs():
    code = "import time; from jobs.runtime import Watchdog; w = Watchdog(1); time.sleep(30)"
    p = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=25)
    assert p.returncode == stop.TRANSIENT and "no step finished" in p.stderr


# --- configs ----------------------------------------------------------------------------------------------------------
def test_every_preset_resolves_and_names_its_run():
    names = set()
    for preset in specs.GAN_PRESETS:
        data = "phantom" if preset.startswith("adni") else "phantom:9"  # where a preset has data of its own, others
        config = specs.parse(specs.GanConfig, ["--preset", preset, "--data", data])
        names.add(specs.default_name(config))
        assert specs.from_dict(specs.GanConfig, json.loads(specs.to_json(config))) == config
        assert 0.05 < specs.gan_memory_gb(config) < 40
    assert len(names) == len(specs.GAN_PRESETS)


def test_the_name_of_a_run_depends_on_what_changes_the_result_alone():
    def name(*flags):
        return specs.default_name(specs.parse(specs.GanConfig, ["--preset", "quickstart", *flags]))

    same = name()
    assert same.startswith("stylegan2-") and len(same) == len("stylegan2-") + 8
    assert name("--total-kimg", "99") == name("--log-kimg", "1") == name("--run", "x") == same
    assert len({same, name("--gamma", "3"), name("--seed", "1"), name("--data", "phantom:5")}) == 4


def test_run_alone_resumes_with_the_runs_own_config(run):
    config = specs.parse(specs.GanConfig, ["--preset", "quickstart", "--gamma", "3", "--run", str(run.path)])
    run.write_config(specs.asdict(config))
    again = specs.parse(specs.GanConfig, ["--run", str(run.path)])
    assert again == config and again.gamma == 3
