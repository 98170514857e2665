"""What happens before and around training: refusals on all ranks, changed data, changed flags, stops while packing."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from jobs.config import parsing, specs
from jobs.config.specs import ConfigError
from jobs.run import attempt as attempts
from jobs.run import lock, own_job, rundir, stopping
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.lock import process_space
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.vae import copied_vae
from jobs.training.averages import Averages
from jobs.training.checkpoint import CheckpointError, Checkpoints, Diverged
from jobs.training.ranks import PeerLost
from jobs.training.upkeep import FRESH_COUNTERS, State
from models import augment

SHORT = ("--total-kimg", "0.04", "--log-kimg", "0.008")


@pytest.fixture(scope="module")
def finished(packs, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert tiny.train(run, *SHORT, packs=packs) == 0, tiny.output(run)
    return run


def copy(run, to):
    subprocess.run(["cp", "-a", str(run), str(to)], check=True)
    return to


def pictures(folder, count: int, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = np.random.default_rng([i, shade]).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(image).save(folder / f"{shade}_{i}.png")


def test_all_ranks_leave_when_rank_0_refuses(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    processes = tiny.start(run, *SHORT, "--total-kimg", "0.08", "--gamma", "9", packs=packs, ranks=2)
    assert tiny.finish(processes) == [78, 78]
    assert "--gamma 0.1 -> 9" in tiny.output(run, 0) and "error" not in tiny.output(run, 1)


def test_a_divergence_in_the_optimizer_alone_ends_all_ranks_alike(packs, tmp_path):
    """Adam's second moment overflows while the weights are still finite: seen where a checkpoint is due, on every
    rank."""
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        flags = ("--total-kimg", "0.4", "--gamma", "1e25", "--r1-interval", "2")
        assert tiny.finish(tiny.start(run, *flags, packs=packs, ranks=ranks)) == [77] * ranks
        assert "again after a roll-back" in tiny.output(run)


def test_the_next_start_completes_the_marks_of_a_done_run_that_was_killed_at_its_last_moment(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    status = json.loads((run / "status.json").read_text()) | {"state": "running", "pid": 1 << 22}
    (run / "status.json").write_text(json.dumps(status))
    lines = (run / "attempts.jsonl").read_text().splitlines()
    (run / "attempts.jsonl").write_text("\n".join(line for line in lines if json.loads(line)["event"] != "end") + "\n")
    dead = {
        "token": "0" * 16,
        "host": socket.gethostname(),
        "space": process_space(),
        "pid": 1 << 22,
        "start": "7",
        "since": 0.0,
    }
    (run / "LOCK").write_text(json.dumps(dead))
    (run / f".status.json.tmp.{socket.gethostname()}.{1 << 22}.0").touch()
    assert tiny.train(run, *SHORT, packs=packs) == 0
    assert "is done" in tiny.output(run)
    after = json.loads((run / "status.json").read_text())
    assert after["state"] == "done" and after["total_kimg"] == status["total_kimg"] and after["kimg"] == status["kimg"]
    assert [json.loads(line)["event"] for line in (run / "attempts.jsonl").read_text().splitlines()] == ["start", "end"]
    assert not [p.name for p in run.iterdir() if p.name == "LOCK" or ".tmp." in p.name]


def test_a_damaged_config_is_named(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    (run / "config.json").write_text((run / "config.json").read_text().replace('"crop"', '"krop"'))
    (run / "DONE").unlink()
    assert tiny.train(run, *SHORT, packs=packs) == 78
    assert (
        tiny.output(run)
        .splitlines()[-1]
        .startswith(f"error: {run / 'config.json'}: the stored config has unknown fields 'krop'")
    )


def test_moments_of_another_memory_layout_are_laid_out_anew():
    """A checkpoint of a GPU, channels_last, is continued on a CPU: fused Adam pairs by place in memory, not by
    index."""

    class Own(State):
        def __init__(self, layout):
            torch.manual_seed(0)
            self.net = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1, fused=True)
            self.averages, self.counters = Averages(), dict(FRESH_COUNTERS)

        def step(self):
            slope = torch.arange(108.0).reshape(4, 3, 3, 3).sin()
            self.net.weight.grad = torch.empty_like(self.net.weight).copy_(
                slope
            )  # in the layout of the weight, as autograd's
            self.net.bias.grad = torch.ones(4)
            self.optimizer.step()

    first = Own(torch.channels_last)
    first.step()
    second = Own(torch.contiguous_format)
    second.load_state_dict(copy_of(first.state_dict()))
    for state in (first, second):
        state.step()
    assert first.net.weight.stride() != second.net.weight.stride()
    torch.testing.assert_close(first.net.weight, second.net.weight, rtol=0, atol=0)


def copy_of(state: dict) -> dict:
    """As it comes from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_only_rank_0_packs(tmp_path):
    run, packs = tmp_path / "run", tmp_path / "packs"
    assert tiny.train(run, *SHORT, packs=packs, ranks=2) == 0, tiny.output(run)
    text = tiny.output(run, 0) + tiny.output(run, 1)
    assert text.count("packing 48") == 1 and len(list(packs.iterdir())) == 2  # and the held-out slices


def test_another_learning_rate_takes_effect(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    before = Checkpoints(run / "checkpoints").load_latest()[1]
    assert tiny.train(run, *SHORT, "--total-kimg", "0.08", "--lr", "1e-20", "--override", packs=packs) == 0
    after = Checkpoints(run / "checkpoints").load_latest()[1]
    assert after["opt_G"]["param_groups"][0]["lr"] < 1e-19
    assert torch.equal(before["G"]["const"], after["G"]["const"])


def test_changed_data_are_refused(packs, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    for i, name in enumerate("pq"):
        pictures(data / name, 12, i)
    flags = (*SHORT, "--data", str(data), "--conditional")
    assert tiny.train(run, *flags, packs=packs) == 0, tiny.output(run)
    pictures(data / "p", 1, shade=7)
    longer = (*flags, "--total-kimg", "0.08")
    assert tiny.train(run, *longer, packs=packs) == 78
    assert "the slices (train) are not those that the run began with" in tiny.output(run)
    assert tiny.train(run, *longer, "--override", packs=packs) == 0
    pictures(data / "z", 3)
    assert tiny.train(run, *flags, "--total-kimg", "0.12", "--override", packs=packs) == 78
    assert "the run learns the classes p, q, the data have p, q, z" in tiny.output(run)


def test_accumulation_may_change_on_resume(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    assert tiny.train(run, *SHORT, "--total-kimg", "0.08", "--accumulate", "2", packs=packs) == 0, tiny.output(run)


def test_less_than_was_seen_is_refused(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    (run / "DONE").unlink()
    assert tiny.train(run, *SHORT, "--total-kimg", "0.016", packs=packs) == 78
    assert "has seen 0.04 kimg already" in tiny.output(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 0)])
def test_stopping_while_packing(tmp_path, number, code):
    run, packs = tmp_path / "run", tmp_path / "packs"
    (process,) = tiny.start(run, "--data", "phantom:100000", "--resolution", "64", packs=packs)
    tiny.wait_until(lambda: list(packs.glob(".*.tmp.*")))
    process.send_signal(number)
    assert process.wait(300) == code, tiny.output(run)
    assert "before the training began" in tiny.output(run) and "Traceback" not in tiny.output(run)
    assert not list(packs.iterdir())


@pytest.mark.parametrize(("flags", "text"), [
    (("--total-kimg", "inf"), "--total-kimg inf: must be a finite number"), (("--max-bad", "5"), "--max-bad 5"),
    (("--init-from", "/nonexistent"), "no checkpoint there"), (("--crop", "300"), None),
    (("--pl-decay", "7"), "--pl-decay 7"), (("--ada-target", "9"), "--ada-target 9"),
])  # fmt: skip
def test_dry_run_finds_what_the_run_would(flags, text, tmp_path, packs):
    data = tmp_path / "data"
    pictures(data, 5)
    words = ["train_gan.py", *tiny.TINY, "--data", data, *flags, "--dry-run", "--run", tmp_path / "run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "Traceback" not in done.stderr
    assert (text or "--crop 300 is larger than the slices") in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_run_compares_with_the_run_and_shows_warnings(finished, tmp_path, packs):
    words = ["train_gan.py", *tiny.TINY, "--run", finished, "--gamma", "77", "--dry-run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "--gamma 0.1 -> 77" in done.stderr
    pictures(tmp_path / "data" / "train" / "AD", 5)
    words = ["train_gan.py", *tiny.TINY, "--data", tmp_path / "data", "--conditional", "--dry-run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "fewer than two classes" in done.stderr


def test_class_folders_with_bytes_that_are_no_text(packs, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    pictures(data / "plain", 6)
    try:
        pictures(data / b"caf\xe9".decode(errors="surrogateescape"), 6, 1)
    except OSError:
        pytest.skip("this file system has text names only")
    assert tiny.train(run, *SHORT, "--data", str(data), "--conditional", packs=packs) == 0, tiny.output(run)
    assert json.loads((run / "data.json").read_text())["classes"] == ["caf%E9", "plain"]


def test_a_damaged_pack_in_the_cache_is_built_again(packs, tmp_path):
    run = tmp_path / "run"
    own = tmp_path / "packs"
    assert tiny.train(run, *SHORT, packs=own) == 0
    (pack,) = own.glob("phantoms-train-*")
    content = bytearray(pack.read_bytes())
    content[-1000:] = bytes(1000)
    pack.write_bytes(content)
    assert tiny.train(tmp_path / "again", *SHORT, packs=own) == 0
    assert "do not match their SHA-256" in tiny.output(tmp_path / "again")
    assert tiny.weights_hash(run) == tiny.weights_hash(tmp_path / "again")


# --- one attempt, in this process -------------------------------------------------------------------------------------
def config(**fields) -> specs.GanConfig:
    return dataclasses.replace(parsing.parse_config(specs.GanConfig, tiny.TINY), total_kimg=0.4, **fields)


@pytest.fixture
def alone(monkeypatch):
    """Outside any job, every heartbeat is written, and time is the test's."""
    for name in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(rundir, "STATUS_BEAT", 0.0)
    clock = SimpleNamespace(now=700.0)
    monkeypatch.setattr(attempts, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_an_attempt_leaves_its_start_its_heartbeats_and_its_end(alone, tmp_path, monkeypatch):
    """The numbers that `status` and `why` show. The time left stays in the heartbeats between two rows."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setattr(sys, "argv", ["train_gan.py", "--run", "x"])
    run = RunDir(tmp_path / "run")
    with Attempt(run, config(), 0) as a:
        assert json.loads(run.lockfile.read_text())["pid"] == os.getpid()
        a.begin(16, 400, {"cuda": "13.0"}, precision="float32", world=2)
        about = {"state": "running", "kimg": 0.016, "total_kimg": 0.4, "reason": "", "attempt": 1, "job_id": "7"}
        assert about.items() <= run.read_status().items() and "eta_s" not in run.read_status()
        a.heartbeat(40)  # how fast it goes is known from the first row on
        assert {"kimg": 0.04, "step": 5, "total_kimg": 0.4}.items() <= run.read_status().items()
        assert "eta_s" not in run.read_status()
        a.heartbeat(80, 16.0)
        assert {"kimg": 0.08, "step": 10, "eta_s": 20}.items() <= run.read_status().items()
        a.heartbeat(88)
        assert {"kimg": 0.088, "step": 11, "eta_s": 20}.items() <= run.read_status().items()
        for nimg in (400, 408):  # the last batch may go beyond
            a.heartbeat(nimg, 0.5)
            assert run.read_status()["eta_s"] == 0
        a.heartbeat(96, 16.0)
        alone.now += 12.34
        assert a.end(85, "continue", "USR2") == 85 and a.end(85, "continue", "USR2") == 85
    assert not run.lockfile.exists()
    start, end = run.read_attempts()  # one end, whatever is called how often
    of_both = {"attempt": 1, "job_id": "7", "restart_count": 2, "node": socket.gethostname(), "pid": os.getpid()}
    assert (of_both | {"event": "start", "nimg": 16, "precision": "float32", "world": 2}).items() <= start.items()
    assert (
        of_both | {"event": "end", "nimg": 96, "reason": "USR2", "seconds": 12.3, "code": 85}
    ).items() <= end.items()
    assert {"state": "continue", "reason": "USR2", "code": 85, "kimg": 0.096}.items() <= run.read_status().items()
    about = json.loads((run.path / "provenance.json").read_text())
    assert about["argv"] == [sys.executable, "train_gan.py", "--run", "x"] and about["cuda"] == "13.0"


@pytest.mark.parametrize(("error", "code", "state"), [
    (Diverged("x"), 77, "diverged"), (PeerLost("x"), 75, "continue"), (OSError(errno.ESTALE, "x"), 75, "continue"),
    (OSError(errno.ENOSPC, "x"), 78, "failed"), (CheckpointError("x"), 78, "failed"), (ConfigError("x"), 78, "failed"),
    (ValueError("x\nmore"), 1, "failed"), (KeyboardInterrupt("x"), 130, "failed"), (SystemExit(75), 75, "continue"),
])  # fmt: skip
def test_an_attempt_that_fails_says_how(alone, tmp_path, error, code, state):
    run = RunDir(tmp_path / "run")
    with pytest.raises(type(error)), Attempt(run, config(), 0) as a:
        a.begin(8, 400, {})
        a.heartbeat(24)
        raise error
    end, status = run.read_attempts()[-1], run.read_status()
    assert (end["event"], end["code"], end["nimg"]) == ("end", code, 24)
    assert end["reason"].startswith(f"{type(error).__name__}: ") and "\n" not in end["reason"]
    assert (status["state"], status["code"], status["reason"]) == (state, code, end["reason"])
    assert not run.lockfile.exists()


def test_an_attempt_that_was_refused_before_its_start_leaves_no_record(alone, tmp_path):
    run = RunDir(tmp_path / "run")
    with pytest.raises(ConfigError), Attempt(run, config(), 0):
        raise ConfigError("another architecture")
    assert run.read_attempts() == [] and run.read_status() == {} and not run.lockfile.exists()


def test_an_attempt_waits_until_the_host_of_another_is_silent_for_long_enough(alone, tmp_path, monkeypatch):
    """The first look finds a heartbeat of 20 s ago; by the second look it is 200 s old."""
    run = RunDir(tmp_path / "run")
    run.create()
    of_another = {"token": "0" * 16, "host": "node9", "space": "s", "pid": 5, "start": "77", "job": None}
    run.lockfile.write_text(json.dumps(of_another))
    os.utime(run.lockfile, (time.time() - 20,) * 2)

    def sleep(seconds: float) -> None:
        os.utime(run.lockfile, (time.time() - 200,) * 2)

    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=sleep, time=time.time, monotonic=time.monotonic))
    with Attempt(run, config(), 0):
        assert json.loads(run.lockfile.read_text())["pid"] == os.getpid()
    assert inspect.signature(RunDir.lock).parameters["wait"].default > lock.LOCK_STALE


def test_other_ranks_say_and_write_nothing(alone, tmp_path, capsys):
    run = RunDir(tmp_path / "run")
    with pytest.raises(Diverged), Attempt(run, config(), 1) as a:
        a.begin(8, 400, {})
        a.heartbeat(24, 5.0)
        a.say("a word")
        assert a.end(85, "continue", "USR2") == 85
        raise Diverged("x")
    assert not run.path.exists() and capsys.readouterr().out == ""
    with Attempt(run, config(), 0) as a:
        a.say("a word")
    assert capsys.readouterr().out == "a word\n"


def test_flags_are_compared_with_those_that_the_run_began_with(alone, tmp_path):
    run, c = RunDir(tmp_path / "run"), config()
    run.create()
    assert compare_with_run(run, dataclasses.replace(c, gamma=7.0)) == ""  # nothing is stored yet
    run.write_config(dataclasses.asdict(c))

    def compared(**fields) -> str:
        return compare_with_run(run, dataclasses.replace(c, **fields))

    assert compared() == compared(total_kimg=9.0, keep=7, log_kimg=1.0, run="elsewhere", override=True) == ""
    with pytest.raises(ConfigError, match=r"--gamma 0\.1 -> 7\.0.*--override"):
        compared(gamma=7.0)
    assert compared(gamma=7.0, override=True, total_kimg=9.0) == "--gamma 0.1 -> 7.0"
    found = compared(lr=1.0, gamma=7.0, ema_kimg=3.0, override=True).split(", ")
    assert sorted(found) == ["--ema-kimg 1.5 -> 3.0", "--gamma 0.1 -> 7.0", f"--lr {c.lr} -> 1.0"]
    for override in (False, True):
        with pytest.raises(ConfigError, match=r"another architecture \(--channel-max 8 -> 4\); use another --run"):
            compared(gamma=7.0, channel_max=4, override=override)
    stored = dataclasses.asdict(c)
    del stored["pl_decay"]  # a field that a newer version added has its default
    run.write_config(stored)
    assert compared(pl_decay=0.01) == "" and compared(pl_decay=0.5, override=True) == "--pl-decay 0.01 -> 0.5"


def test_a_run_is_not_made_shorter_than_what_it_has_seen(alone, tmp_path):
    run, c = RunDir(tmp_path / "run"), config()
    run.create()
    run.write_config(dataclasses.asdict(c))  # 0.4 kimg
    (run.checkpoints / f"{200:012d}.json").write_text("{}")
    for total in (0.2, 0.3, 0.8):
        assert compare_with_run(run, dataclasses.replace(c, total_kimg=total)) == ""
    with pytest.raises(ConfigError, match=r"has seen 0\.2 kimg already, more than --total-kimg 0\.192"):
        compare_with_run(run, dataclasses.replace(c, total_kimg=0.192))


@pytest.mark.parametrize(
    ("job", "restarts", "goes_on"),
    [
        (None, None, True),
        ("7", None, True),
        ("7", "0", True),
        ("7", "", True),
        ("7", "1", False),
        ("7", "12", False),
        (None, "1", True),
    ],
)
def test_a_stop_holds_for_what_slurm_starts_by_itself_and_a_person_lifts_it(
    alone, tmp_path, monkeypatch, job, restarts, goes_on
):
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
        if value is not None:
            monkeypatch.setenv(name, value)
    run, said = RunDir(tmp_path / "run"), []
    run.create()
    (run.path / "STOP").write_text("enough")
    os.utime(run.path / "STOP", (1e9, 1e9))  # long before this process
    assert prepare_run(run, config(), said.append) is goes_on and len(said) == 1
    assert run.stop_requested() is not goes_on
    assert [line["event"] for line in run.read_attempts()] == (["stop lifted"] if goes_on else [])
    assert prepare_run(RunDir(tmp_path / "run"), config(), said.append) is goes_on


@pytest.mark.parametrize(("launched", "ahead", "holds"), [(False, 0, True), (False, 3600, True), (True, 0, True)])
def test_a_stop_that_is_written_after_the_start_holds(alone, tmp_path, monkeypatch, launched, ahead, holds):
    """Whoever started it, and whatever the file server's clock says: this process began before."""
    run, said = RunDir(tmp_path / "run"), []
    run.create()
    (run.path / "STOP").write_text("enough")
    now = (run.path / "STOP").stat().st_mtime
    if ahead:
        os.utime(run.path / "STOP", (now + ahead, now + ahead))
        monkeypatch.setattr(RunDir, "_clock_ahead", lambda self: float(ahead))
    if launched:  # by launch.py, which lifts what is older: the date says nothing then
        monkeypatch.setenv("LAUNCHED_RUN", str(run.path))
        os.utime(run.path / "STOP", (1e9, 1e9))
    assert prepare_run(run, config(), said.append) is not holds and "stopped by a person" in said[0]
    assert run.stop_requested() and run.read_status()["state"] == "stopped"
    assert not any(line["event"] == "stop lifted" for line in run.read_attempts())


def test_the_clock_of_the_files_is_compared_with_this_machines(tmp_path):
    run = RunDir(tmp_path)
    assert abs(run._clock_ahead()) < 1 and abs(own_job.process_began() - time.time()) < 86400
    done = subprocess.run(
        [sys.executable, "-c", "import time, jobs.run.own_job as o; print(time.time() - o.process_began())"],
        capture_output=True, text=True, check=True, cwd=tiny.ROOT,
    )  # fmt: skip
    assert 0 < float(done.stdout) < 60


def test_a_run_keeps_the_config_that_it_began_with_until_nothing_can_be_refused_any_more(alone, tmp_path):
    run, c, said = RunDir(tmp_path / "run"), config(), []
    run.create()
    assert prepare_run(run, c, said.append) and run.read_config() == dataclasses.asdict(c) and not said
    run.mark_done()
    other = dataclasses.replace(c, gamma=7.0, total_kimg=0.8, override=True)
    assert prepare_run(run, other, said.append)
    assert run.read_config() == dataclasses.asdict(c) and run.done()  # its data may still be refused
    assert "--gamma 0.1 -> 7.0" in said[0]
    assert [(e["event"], e["changed"]) for e in run.read_attempts()] == [("override", "--gamma 0.1 -> 7.0")]
    adopt_config(run, other)
    assert run.read_config() == dataclasses.asdict(other) | {"override": False}  # of one command, not of the run
    assert not run.done()


def test_what_a_refused_first_start_wrote_is_taken_back(alone, tmp_path):
    """So that the next command may say something else. A crash, or a start that went on, leaves it."""
    c = config()

    def left(folder: str, error: Exception, adopted: bool = False) -> list[bool]:
        run = RunDir(tmp_path / folder)
        with pytest.raises(type(error)), Attempt(run, c, 0) as attempt:
            assert prepare_run(run, c, attempt.say)
            copied_vae(run.path).write_bytes(b"")
            if adopted:
                adopt_config(run, c)
            raise error
        return [run.config.exists(), copied_vae(run.path).exists()]

    assert left("refused", ConfigError("no")) == [False, False]
    assert left("refused", ConfigError("no"), adopted=True) == [True, True]
    assert left("crashed", RuntimeError("no")) == [True, True]
    assert left("crashed", ConfigError("no")) == [True, True]  # not of this start


def test_data_are_those_that_the_run_began_with(alone, tmp_path):
    """By the digest of each split; classes count where the run learns them."""
    run, said = RunDir(tmp_path / "run"), []
    run.create()
    c, by_class, anyway = config(), config(conditional=True), config(override=True)

    def stored() -> dict:
        return json.loads((run.path / "data.json").read_text())

    check_data(run, c, ["a", "b"], {"train": "1"}, said.append)
    check_data(run, c, ["a", "b"], {"val": "5"}, said.append)  # another split joins
    assert stored() == {"classes": ["a", "b"], "digests": {"train": "1", "val": "5"}}
    check_data(run, c, ["a", "b"], {"train": "1"}, said.append)
    check_data(run, c, ["other"], {"train": "1"}, said.append)  # names that the run does not learn
    with pytest.raises(ConfigError, match=r"the slices \(train\)"):
        check_data(run, c, ["a", "b"], {"train": "2", "val": "5"}, said.append)
    for classes in (["a", "b", "z"], ["b", "a"]):
        with pytest.raises(ConfigError, match="the run learns the classes a, b, the data have"):
            check_data(run, dataclasses.replace(by_class, override=True), classes, {"train": "1"}, said.append)
    assert stored()["digests"] == {"train": "1", "val": "5"} and not said and not run.read_attempts()
    check_data(run, anyway, ["a", "b"], {"train": "2"}, said.append)
    assert stored()["digests"] == {"train": "2", "val": "5"} and "train" in said[0]
    assert [(e["event"], e["changed"]) for e in run.read_attempts()] == [("override", "slices (train)")]


def test_augmentations_are_drawn_as_when_the_run_began(alone, tmp_path):
    """Also from a run that was begun before they were written down. The last digit is the machine's."""
    run, said = RunDir(tmp_path / "run"), []
    run.create()

    def check(augmentation, **flags) -> dict:
        check_data(run, config(**flags), ["a"], {"train": "1"}, said.append, augmentation=augmentation)
        return json.loads((run.path / "data.json").read_text())

    assert "augmentation" not in check(None)
    assert check([0.5, 1.0])["augmentation"] == [0.5, 1.0]
    assert check([0.501, 1.0])["augmentation"] == check(None)["augmentation"] == [0.5, 1.0]
    for other in ([0.5, 1.01], [0.5], [0.5, 1.0, 0.0]):
        with pytest.raises(ConfigError, match="the random augmentations are not those that the run began with"):
            check(other)
    assert not said and check([0.5, 2.0], override=True)["augmentation"] == [0.5, 2.0] and "augmentations" in said[0]


def test_what_ada_draws_has_a_fingerprint():
    """Any other distribution, order of draws or set of kinds is another."""
    of = {name: augment.fingerprint(kinds) for name, kinds in augment.KINDS.items()}
    assert of["mri"] != of["mri-flip"] and of["mri"] == augment.fingerprint(augment.KINDS["mri"])
    for name, value in dict(SHIFT=0.2, ROTATE=20.0, SCALE_STD=0.3, CONTRAST_STD=0.4, BRIGHTNESS_STD=0.3).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(augment, name, value)
            assert augment.fingerprint(augment.KINDS["mri"]) != of["mri"], name


@pytest.mark.parametrize(("error", "code", "line"), [
    (ConfigError("--lr nan: no number"), 78, "error: --lr nan: no number"),
    (PeerLost("another rank is gone"), 75, "error: PeerLost: another rank is gone"),
    (Diverged("loss not finite"), 77, "error: Diverged: loss not finite"),
    (KeyboardInterrupt(), 130, "interrupted; the same command goes on from the last checkpoint"),
    (stopping.Stopped("TERM"), 85, "Stopped before the training began (TERM). The same command goes on from here."),
    (stopping.Stopped("INT"), 0, "Stopped before the training began (Ctrl-C). The same command goes on from here."),
])  # fmt: skip
def test_what_main_raises_is_one_line_and_a_code(error, code, line, capsys):
    def main():
        raise error

    assert report_and_code(main) == code
    assert capsys.readouterr().err.splitlines() == [line]


def test_an_error_that_nobody_foresaw_keeps_its_traceback(capsys):
    def main():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        report_and_code(main)
    assert capsys.readouterr().err == "error: ValueError: x\n"
    assert report_and_code(lambda: 85) == 85


LEAVE = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace as Names
from jobs.training import collectives, ranks
from jobs.training.upkeep import Upkeep
rt = collectives.init_runtime(1, ranks.Meeting())
folder = Path(sys.argv[1])

def write(raise_errors):  # a checkpoint on slow storage
    if rt.rank == 0:
        time.sleep(3)
        (folder / "written").touch()

attempt = Names(say=lambda text: None, end=lambda code, state, reason: code)
upkeep = Names(rt=rt, attempt=attempt, total=100, level=2, checkpoints=Names(wait=write),
               watchdog=Names(stop=lambda: None), over=lambda nimg: False, watch=Names(describe=lambda level: "USR2"))
if sys.argv[2] == str(rt.rank):
    os._exit(9)
code = Upkeep.leave(upkeep, Names(main=False), 50)
sys.exit(code if (folder / "written").exists() else 1)
"""


@pytest.mark.parametrize(("dead", "codes"), [("none", [85, 85]), ("1", [85, 9])])
def test_no_rank_leaves_before_rank_0_has_written(tmp_path, dead, codes):
    """srun kills what is left of a step when one rank has left, within half a minute; a save may take longer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        tiny.forks.Forked(
            ["-c", LEAVE, tmp_path, dead],
            env=tiny.environment(tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                                 MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(2)
    ]  # fmt: skip
    assert tiny.finish(ranks) == codes
