"""Reasons to stop: real signals to real processes, files, and the job's end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from jobs.run import stopping
from jobs.run.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
# Installs, says so, then polls until a stop and prints what it saw.
LOOP = """
import sys, time
from jobs.run import stopping as stop
stop.install_handlers()
assert "torch" not in sys.modules
watch = stop.StopWatch()
print("ready", flush=True)
while (level := watch.poll()) < 2:
    time.sleep(0.01)
print(level, watch.reason, watch.describe(level), sep="|", flush=True)
time.sleep(float(sys.argv[1]))
"""


def clean_environment(**extra: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | extra


def start(linger: float = 0.0, before=None, **env: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(linger)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=clean_environment(**env), preexec_fn=before,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGUSR1, "2|USR1|USR1"),
        (signal.SIGUSR2, "2|USR2|USR2"),
        (signal.SIGTERM, "2|TERM|TERM"),
        (signal.SIGINT, "3|Ctrl-C|Ctrl-C"),
    ],
)
def test_a_signal_only_sets_a_flag(number, expected):
    process = start()
    process.send_signal(number)
    assert process.communicate(timeout=300)[0].strip() == expected
    assert process.returncode == 0


def test_second_ctrl_c_ends_at_once_with_130():
    process = start(linger=600)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().startswith("3|")
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130


def test_a_second_stop_signal_is_no_second_thought():
    process = start(linger=0.3)
    process.send_signal(signal.SIGUSR2)
    assert process.stdout.readline().startswith("2|USR2")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(300) == 0


def ignore_and_block():
    for number in stopping.SIGNALS.values():
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, stopping.SIGNALS.values())


def test_inherited_ignored_and_blocked_signals_work_again():
    process = start(before=ignore_and_block)
    process.send_signal(signal.SIGUSR2)
    assert process.communicate(timeout=300)[0].startswith("2|USR2")


def test_handlers_that_a_library_replaced_are_put_back():
    code = """
import os, signal, time
from jobs.run import stopping as stop
stop.install_handlers()
watch = stop.StopWatch()
signal.signal(signal.SIGUSR2, signal.SIG_DFL)
assert watch.poll() == 0
os.kill(os.getpid(), signal.SIGUSR2)
assert watch.poll() == 2
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean_environment(), timeout=300).returncode == 0


@pytest.fixture
def no_job(monkeypatch):
    for name in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def clock(monkeypatch):
    """Lets a test pass the seconds between two looks at the files."""
    now = [time.monotonic()]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    return now


def test_save_file_is_consumed_and_stop_file_stays(tmp_path, no_job, clock):
    watch = stopping.StopWatch(RunDir(tmp_path))
    assert watch.poll() == stopping.NOTHING
    (tmp_path / "SAVE").touch()
    assert watch.poll() == stopping.NOTHING  # files are looked at once a second
    clock[0] += 1.1
    assert watch.poll() == stopping.SAVE
    assert not (tmp_path / "SAVE").exists() and watch.poll() == stopping.NOTHING
    (tmp_path / "STOP").touch()
    clock[0] += 1.1
    assert watch.poll() == stopping.STOP_BY_PERSON and watch.reason == "STOP file"
    (tmp_path / "STOP").unlink()
    clock[0] += 1.1
    assert watch.poll() == stopping.STOP_BY_PERSON  # decided is decided
    assert watch.describe(stopping.STOP_BY_PERSON) == "STOP file"


def test_a_persons_stop_outranks_the_time_limit(tmp_path, no_job, clock, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 60))
    watch = stopping.StopWatch(RunDir(tmp_path), margin=120)
    assert watch.poll() == stopping.STOP_AND_CONTINUE and watch.reason == "time limit"
    (tmp_path / "STOP").touch()
    clock[0] += 1.1
    assert watch.poll() == stopping.STOP_BY_PERSON and watch.reason == "STOP file"


def test_what_is_there_at_the_first_look_counts_and_a_stop_stays(tmp_path, no_job, clock):
    (tmp_path / "STOP").touch()
    watch = stopping.StopWatch(RunDir(tmp_path))
    assert [watch.poll(), watch.poll()] == [stopping.STOP_BY_PERSON] * 2  # the second within the same second


def test_a_stop_leaves_the_save_file_to_the_next_attempt(tmp_path, no_job, clock, monkeypatch):
    monkeypatch.setattr(stopping, "_received", ["USR2"])
    (tmp_path / "SAVE").touch()
    watch = stopping.StopWatch(RunDir(tmp_path))
    assert watch.poll() == stopping.STOP_AND_CONTINUE and (tmp_path / "SAVE").exists()


def test_ranks_without_a_run_see_signals_alone(tmp_path, no_job, monkeypatch):
    monkeypatch.setattr(stopping, "_received", [])
    watch = stopping.StopWatch()
    assert watch.poll() == stopping.NOTHING
    stopping._received.append("TERM")
    assert [watch.poll(), watch.poll()] == [stopping.STOP_AND_CONTINUE] * 2


def test_the_first_reason_of_a_level_is_the_reason(no_job, monkeypatch):
    monkeypatch.setattr(stopping, "_received", ["USR1", "TERM"])
    watch = stopping.StopWatch()
    watch.poll()
    stopping._received.append("USR2")
    assert watch.poll() == 2 and watch.describe(2) == "USR1"
    assert "person" in watch.describe(3) and watch.describe(1) == "SAVE file"  # other ranks' levels
    stopping._received.append("INT")
    assert watch.poll() == 3 and watch.describe(3) == "Ctrl-C" and "another rank" in watch.describe(2)


@pytest.mark.parametrize(("left", "level"), [(130, 0), (110, 2)])
def test_two_minutes_are_left_for_the_save(no_job, monkeypatch, left, level):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + left))
    assert stopping.StopWatch().poll() == level


@pytest.mark.parametrize(("end", "margin", "level"), [(+200, 120, 0), (+100, 120, 2), (+100, 50, 0), (-10, 120, 0)])
def test_job_end_from_the_environment(no_job, monkeypatch, end, margin, level):
    """An end in the past belongs to a job that is over; its variable must not stop a run by hand."""
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + end)))
    assert stopping.StopWatch(margin=margin).poll() == level


def fake_squeue(folder: Path, body: str, monkeypatch) -> None:
    (folder / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")


def test_job_end_from_squeue(no_job, monkeypatch, tmp_path):
    end = int(time.time()) + 1000
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    fake_squeue(tmp_path, f'test "$3" = 17 || exit 1; test "$SLURM_TIME_FORMAT" = standard && echo {text}', monkeypatch)
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    assert stopping.job_end_time() == end
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert stopping.job_end_time() is None  # one question per job, not one per rank
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert stopping.job_end_time() == end


@pytest.mark.parametrize("before", ["echo Welcome to the lab of 2026", r"printf 'Gr\374\337e\n'"])
def test_a_banner_around_squeue_hides_no_end(no_job, monkeypatch, tmp_path, before):
    end = int(time.time()) + 1000
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    fake_squeue(tmp_path, f"{before}; echo {text}; echo bye", monkeypatch)
    assert stopping.job_end_time() == end


def test_squeue_speaks_in_local_time(no_job, monkeypatch, tmp_path):
    fake_squeue(tmp_path, "echo 2030-01-02T03:04:05", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Etc/GMT-10")  # ten hours east of Greenwich
        time.tzset()
        assert stopping.job_end_time() == datetime(2030, 1, 1, 17, 4, 5, tzinfo=UTC).timestamp()
    time.tzset()


@pytest.mark.parametrize("body", ["echo N/A", "exit 1", "echo", "echo 9999999-99-99T00:00:00"])
def test_squeue_that_does_not_know_is_no_error(no_job, monkeypatch, tmp_path, body):
    fake_squeue(tmp_path, body, monkeypatch)
    assert stopping.StopWatch().deadline is None


def test_no_squeue_at_all(no_job, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stopping.StopWatch().poll() == 0


def test_reasons_of_other_ranks_have_words(no_job):
    watch = stopping.StopWatch()
    assert watch.poll() == 0
    assert "another rank" in watch.describe(2) and "person" in watch.describe(3)


def test_exit_codes_are_the_documented_ones():
    assert (stopping.DONE, stopping.USAGE, stopping.TRANSIENT, stopping.DIVERGED, stopping.BAD, stopping.CONTINUE) == (
        0,
        2,
        75,
        77,
        78,
        85,
    )
    assert (stopping.NOTHING, stopping.SAVE, stopping.STOP_AND_CONTINUE, stopping.STOP_BY_PERSON) == (
        0,
        1,
        2,
        3,
    )  # the ranks take the largest


class Foreseen(Exception):
    exit_code = 77


class ForeseenBySystem(OSError):
    exit_code = 77


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (SystemExit(), 0),
        (SystemExit(85), 85),
        (SystemExit("a text"), 1),
        (KeyboardInterrupt(), 130),
        (ValueError(), 1),
        (Foreseen(), 77),
        *((OSError(getattr(errno, name), ""), 78) for name in "ENOSPC EDQUOT EROFS EACCES EPERM".split()),
        *((OSError(getattr(errno, name), ""), 75) for name in "EIO ESTALE ETIMEDOUT EREMOTEIO ENOTCONN ENOLCK".split()),
        (OSError(errno.ENOENT, ""), 1),
        (OSError("no number"), 1),
        (ForeseenBySystem(), 77),
    ],
)
def test_what_an_exception_means(error, code):
    """A person has to make room or give a permission (78); a file server may be back for the next attempt (75)."""
    assert stopping.exit_code(error) == code


def test_long_work_before_the_loop_stops_for_the_first_signal(monkeypatch):
    monkeypatch.setattr(stopping, "_received", [])
    stopping.raise_if_asked()
    for names, code, says in ((["USR1"], 85, "USR1"), (["TERM", "INT"], 85, "TERM"), (["INT", "TERM"], 0, "Ctrl-C")):
        monkeypatch.setattr(stopping, "_received", names)
        with pytest.raises(stopping.Stopped, match=f"^{says}$") as asked:
            stopping.raise_if_asked()
        assert stopping.exit_code(asked.value) == code
