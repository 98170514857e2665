"""What a run cost, and who hears of its end: GPU hours and their budget, `usage`, `--notify`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import ROOT, wait_until

from jobs.cluster import notify, preflight, requeue, sites, slurm, status, submit, usage
from jobs.cluster.decide import Decision, within_hours
from jobs.config.specs import ConfigError
from jobs.run import budget, find, stopping
from jobs.run.rundir import RunDir
from jobs.run.states import RunState, Verdict


@pytest.fixture(autouse=True)
def no_job(tmp_path, monkeypatch):
    for name in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg/brain-slices").mkdir(parents=True)
    monkeypatch.setattr(find, "RUNS", tmp_path)


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "brains")
    run.create()
    return run


def options(run: RunDir, submitted=(), **given) -> None:
    (run.path / "jobs.json").write_text(json.dumps({"submitted": list(submitted), "options": given}))


def start(attempt: int, time_: float, nimg: int = 0, **more) -> dict:
    return {
        "event": "start",
        "attempt": attempt,
        "time": time_,
        "nimg": nimg,
        "gpus": 2,
        "cpus": 16,
        "since": time_ - 10,
    } | more


def end(attempt: int, time_: float, nimg: int, **more) -> dict:
    return {"event": "end", "attempt": attempt, "time": time_, "nimg": nimg, "seconds": 5.0} | more


# --- GPU hours --------------------------------------------------------------------------------------------------------
def test_each_attempt_counts_from_the_start_of_its_job_with_all_its_gpus():
    lines = [
        start(1, 1010.0, limit_s=3600),
        end(1, 1900.0, 100, cpu_seconds=90.0),
        {"event": "decision", "time": 1901.0},
    ]
    (one,) = budget.spent(lines)
    assert (one.used_s, one.gpu_s, one.asked_s, one.cpu_s, one.lost_s) == (900, 1800, 3600, 90, 0)
    (told,) = budget.spent([start(1, 1010.0), end(1, 1900.0, 100), {"event": "decision", "limit_s": 7200}])
    assert told.asked_s == 7200  # by Slurm, at the end
    (of_four,) = budget.spent([start(1, 1010.0, world=4), end(1, 1900.0, 100, cpu_seconds=90.0)])
    assert of_four.cpu_s == 360  # rank 0 counted its own


def test_an_attempt_that_goes_on_counts_until_now():
    lines = [start(1, 1010.0)]
    assert budget.spent(lines) == []
    assert [one.used_s for one in budget.spent(lines, now=1100.0)] == [100]
    lines.append(end(1, 1050.0, 8))
    assert [one.used_s for one in budget.spent(lines, now=9999.0)] == [50]


def test_work_after_the_last_checkpoint_is_lost():
    lines = [
        start(1, 1010.0),
        end(1, 1100.0, 100),
        start(2, 2010.0, nimg=60),
        end(2, 2100.0, 200),
        start(3, 3010.0, nimg=200),
    ]
    first, second, third = budget.spent(lines, now=3020.0)
    assert (first.lost_s, second.lost_s, third.lost_s) == (40, 0, 0)


def test_one_that_died_without_a_word_ended_when_it_was_last_seen():
    """The line was written by the attempt after it, hours later; it names the images that the heartbeat had reached."""
    dead = end(1, 90000.0, 50, inferred=True, seconds=80.0, reached=100)
    (one,) = budget.spent([start(1, 1010.0), dead])
    assert one.used_s == 90
    one, _ = budget.spent([start(1, 1010.0), dead, start(2, 90000.0, nimg=50)], now=90001.0)
    assert one.lost_s == 45


def test_one_that_died_without_a_word_ended_when_its_job_decided():
    begun, decided = start(1, 1010.0), {"event": "decision", "time": 1200.0, "limit_s": 3600}
    decided["job_id"] = begun.get("job_id")
    dead = end(1, 90000.0, 50, inferred=True, seconds=80.0)
    for lines in ([], [dead], [dead, start(2, 90000.0)]):
        for now in (None, 99999.0):
            one = budget.spent([begun, decided, *lines], now)[0]
            assert (one.used_s, one.asked_s) == (200, 3600)
    for other in (decided | {"job_id": "other"}, decided | {"restart": 1}):  # of a job, or a start, that found no work
        assert not budget.spent([begun, other]) and budget.spent([begun, other], 1300.0)[0].used_s == 300


def test_usage_of_one_that_died_with_its_node(run):
    """Nothing was written at its end: it counts until the last sign of life, not until now and not for nothing."""
    run.note("start", job_id="1", gpus=2, cpus=4, nimg=0, since=time.time() - 7200)
    assert usage.of_run(run.path).used == 0
    (run.path / "LOCK").write_text("{}")
    os.utime(run.path / "LOCK", (time.time() - 3600,) * 2)
    assert usage.of_run(run.path).used == pytest.approx(2, abs=0.01)
    assert usage.of_run(run.path, live=True).used == pytest.approx(4, abs=0.01)


def test_what_slurm_does_not_account_for_is_used_all_the_same(run, monkeypatch):
    options(run, [{"id": "77", "kind": "local", "time": 1.0}, {"id": "5", "kind": "main", "time": 1.0}])
    for job_id, began in ((None, 10000.0), ("5", 20000.0)):
        run.note("start", job_id=job_id, gpus=1, cpus=4, nimg=0, time=began, since=began)
        run.note("end", job_id=job_id, nimg=8, time=began + 3600)
    asked = []
    monkeypatch.setattr(usage, "accounted", lambda ids: asked.append(ids) or 7200.0)
    assert usage.of_run(run.path).used == 3 and asked == [["5"]]


def test_the_heartbeat_of_a_silent_death_says_how_far_it_came(run):
    run.attempt_start(nimg=0)
    run.status(state=RunState.RUNNING, kimg=0.096)
    RunDir(run.path).attempt_start(nimg=48)
    (dead,) = [line for line in run.read_attempts() if line["event"] == "end"]
    assert dead["inferred"] and (dead["nimg"], dead["reached"]) == (0, 96)


@pytest.mark.parametrize("value", ["x", None, True, -3, 1e99, [1], {"a": 1}])
def test_odd_values_in_the_lines_count_nothing(value):
    for name in ("gpus", "cpus", "since", "limit_s", "job_id", "world"):
        budget.spent([start(1, 1010.0, **{name: value}), end(1, 1100.0, 5, cpu_seconds=value, reached=value)], now=5.0)


def test_the_resources_of_a_job(monkeypatch):
    here = budget.allocated(3)
    assert (here["gpus"], here["cpus"]) == (3, len(os.sched_getaffinity(0))) and "limit_s" not in here
    assert here["since"] == pytest.approx(time.time(), abs=24 * 3600)
    now = int(time.time())
    for name, value in {
        "GPUS_ON_NODE": 4,
        "CPUS_ON_NODE": 32,
        "JOB_NUM_NODES": 2,
        "JOB_START_TIME": now - 50,
        "JOB_END_TIME": now + 550,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert budget.allocated(1) == {"gpus": 8, "cpus": 64, "since": now - 50, "limit_s": 600}
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(now - 5))  # of a job that is over
    assert "limit_s" not in budget.allocated(1)


# --- the budget -------------------------------------------------------------------------------------------------------
def test_the_moment_at_which_a_budget_is_used_up(run):
    now = time.time()
    for line in (start(1, now - 1800, since=now - 1800), end(1, now - 1000, 8), start(2, now - 100, since=now - 100)):
        run.note(**{k: v for k, v in line.items() if k != "time"}, time=line["time"])
    assert budget.ends(run.path, 2) is None
    options(run, max_gpu_hours=1.0)  # 3600 s; 1600 and 200 are used, so 1800 of two GPUs are left
    assert budget.ends(run.path, 2) == pytest.approx(now + 900, abs=5)
    assert budget.ends(run.path, 0) is None
    options(run, max_gpu_hours="lots")
    assert budget.ends(run.path, 2) is None and budget.limit_hours(run.path) is None


def test_the_training_stops_with_a_save_when_it_is_used_up():
    watch = stopping.StopWatch()
    assert watch.poll() == stopping.NOTHING
    watch.spent_at = time.time() + 100
    assert watch.poll() == stopping.NOTHING
    watch.spent_at = time.time() - 1
    assert watch.poll() == stopping.STOP_AND_CONTINUE and watch.reason == "GPU hours"
    assert watch.describe(watch.hear(watch.tell())) == "GPU hours"


@pytest.mark.parametrize(("verdict", "by_slurm", "used", "most", "becomes"), [
    (Verdict.REQUEUE, False, 1.0, 1.0, Verdict.BUDGET), (Verdict.REQUEUE, False, 0.9, 1.0, Verdict.REQUEUE),
    (Verdict.REQUEUE, False, 9.0, None, Verdict.REQUEUE), (Verdict.REQUEUE, True, 9.0, 1.0, Verdict.REQUEUE),
    (Verdict.DONE, False, 9.0, 1.0, Verdict.DONE), (Verdict.STOPPED, False, 9.0, 1.0, Verdict.STOPPED),
])  # fmt: skip
def test_a_run_without_gpu_hours_left_does_not_go_on(verdict, by_slurm, used, most, becomes):
    found = within_hours(Decision(verdict, "why", by_slurm=by_slurm), used, most)
    assert found.verdict == becomes and ("--max-gpu-hours" in found.why) == (becomes == Verdict.BUDGET)


# --- launch.py usage --------------------------------------------------------------------------------------------------
def test_the_wait_in_the_queue():
    spent = [
        budget.Spent("7", 1, 4, 1000.0, 100.0),
        budget.Spent("7", 1, 4, 1300.0, 100.0),
        budget.Spent("8", 1, 4, 1410.0, 5.0),
    ]
    jobs = [{"id": "7", "time": 900.0}, {"id": "8", "time": 1000.0}]
    assert usage.queued_s(spent, jobs) == 100 + 200 + 10  # the successor waited for its predecessor, not for Slurm
    assert usage.queued_s(spent[:1], []) == 0


ACCOUNTS = [
    ("7\x1f100\x1fbilling=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,node=1\n7\x1f50\x1fcpu=4,gres/gpu=2\n", ["7"], 300.0),
    ("Welcome to the cluster\n7\x1f100\x1fcpu=4,gres/gpu=1\n", ["7"], 100.0),
    ("7\x1f100\x1fcpu=4,mem=4G\n", ["7"], None), ("7\x1f100\x1fcpu=4,gres/gpu=1\n", ["7", "8"], None),
    ("", ["7"], None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "ids", "seconds"), ACCOUNTS)
def test_what_the_accounts_say(text, ids, seconds):
    assert usage.parse_accounts(text, ids) == seconds


def test_accounts_that_do_not_answer_are_asked_once(run, monkeypatch, capsys):
    asked = []

    def silent(command, **how):
        asked.append(command)
        raise slurm.NoAnswer("sacct: no answer")

    monkeypatch.setattr(usage, "_silence", set())
    monkeypatch.setattr(usage.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm, "_run", silent)
    assert [usage.accounted([job]) for job in "789"] == [None] * 3 and len(asked) == 1
    assert capsys.readouterr().err.count("sacct: no answer") == 1


def test_what_was_made_use_of(run):
    attempts = [budget.Spent("7", 1, 16, 0.0, 1000.0, asked_s=3600.0, cpu_s=1200.0)]
    assert usage.use_line(run.path, []) == ""
    assert usage.use_line(run.path, attempts) == "used 1.2 of 16 cores: ask for less: --cpus 2"
    run.metrics.write_text('{"gpu_util": 20}\n{"gpu_util": null}\n{"gpu_util": 42}\n{"loss": 1}\n')
    assert usage.use_line(run.path, attempts).startswith(
        "used 31 % of the GPU and 1.2 of 16 cores: ask for less: a larger --batch"
    )
    busy = [budget.Spent("7", 1, 4, 0.0, 1000.0, asked_s=3600.0, cpu_s=3000.0)]
    run.metrics.write_text('{"gpu_util": 97}\n')
    assert usage.use_line(run.path, busy) == "used 97 % of the GPU and 3.0 of 4 cores"


def test_usage_of_a_run_a_sweep_and_a_person(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(usage.choose, "RUNS", tmp_path)
    monkeypatch.setattr(status, "all_jobs", lambda: None)
    other = RunDir(tmp_path / "other")
    other.create()
    for one, hours in ((run, 1), (other, 2)):
        one.attempts.write_text("".join(json.dumps(line) + "\n" for line in (
            start(1, 1000.0, gpus=1, since=1000.0, limit_s=14400), end(1, 1000.0 + 3600 * hours, 8))))  # fmt: skip
        options(one, [{"id": "7", "kind": "local", "time": 900.0}])
        one.status(state=RunState.STOPPED)
    (tmp_path / "grid").mkdir()
    points = [{"values": {"lr": "1"}, "run": str(run.path)}, {"values": {"lr": "2"}, "run": str(other.path)}]
    (tmp_path / "grid/sweep.json").write_text(json.dumps({"points": points}))
    assert usage.usage_command(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["version"] == 1 and [(u["name"], u["used"], u["asked"]) for u in said["runs"]] == [
        ("brains", 1, 4),
        ("other", 2, 4),
    ]
    assert [(u["name"], u["runs"], u["used"]) for u in said["sweeps"]] == [("grid", 2, 3)]
    assert [u["used"] for u in said["users"]] == [3]
    assert usage.usage_command(["brains"]) == 0
    out = capsys.readouterr().out
    assert "brains" in out and "1.00" in out and "other" not in out and "SWEEP" not in out


# --- who hears of the end ---------------------------------------------------------------------------------------------
@pytest.fixture
def heard(tmp_path):
    """A command under [notify] that keeps what it is told: path of a file with one JSON object per message."""
    out, script = tmp_path / "heard.jsonl", tmp_path / "hear it.py"
    script.write_text(
        "import json, os, sys\n"
        "said = json.dumps([os.environ['RUN'], os.environ['STATE'], sys.stdin.read()])\n"
        f"open({str(out)!r}, 'a').write(said + '\\n')\n"
    )
    profile(f"me = [{sys.executable!r}, {str(script)!r}]")
    return lambda: [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def profile(text: str, mode: int = 0o600) -> Path:
    path = sites.user_file()
    path.write_text(f"[notify]\n{text}\n")
    path.chmod(mode)
    return path


def test_a_command_hears_of_every_end_and_of_no_requeue(run, heard):
    options(run, notify="me")
    for verdict in Verdict:
        run.attempts.unlink(missing_ok=True)
        run.status(state=verdict.state, reason="", kimg=3.0, total_kimg=12.0)
        before = len(heard())
        notify.at_end(run.path, verdict, "because")
        assert len(heard()) - before == (verdict not in (Verdict.REQUEUE, Verdict.CHAIN)), verdict
    assert [state for _, state, _ in heard()] == ["done", "stopped", "failed", "stuck", "failed"]
    assert heard()[2][0] == "brains" and "brains is failed: because\n3 of 12 kimg" in heard()[2][2]
    assert f"{run.path}" in heard()[2][2] and "launch.py why" in heard()[2][2] and "why" not in heard()[0][2]


def test_a_stop_that_the_user_asked_for_is_no_news(run, heard):
    options(run, notify="me")
    (run.path / "STOP").write_text("me")
    notify.at_end(run.path, Verdict.STOPPED, "stopped by a person (STOP)")
    assert heard() == []
    (run.path / "STOP").unlink()
    notify.at_end(run.path, Verdict.STOPPED, "cancelled by a person (scancel)")  # or by an administrator
    assert len(heard()) == 1


def test_the_same_end_is_told_once(run, heard):
    """The next job of a chain finds the run done, and ends as well."""
    options(run, notify="me")
    run.attempt_start(nimg=0)
    for _ in range(2):
        notify.at_end(run.path, Verdict.DONE, "")
    assert len(heard()) == 1
    run.attempt_start(nimg=8)
    notify.at_end(run.path, Verdict.DONE, "")
    assert len(heard()) == 2


def test_a_run_that_diverged_is_called_so(run, heard):
    options(run, notify="me")
    run.status(state=RunState.DIVERGED, reason="nan in loss_G")
    notify.at_end(run.path, Verdict.FAILED, "the losses were not finite (exit code 77)")
    assert heard()[0][1] == "diverged" and "nan in loss_G" in heard()[0][2]


def test_a_run_that_waits_for_the_user_says_so(run, heard, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "squeue", dict)
    first = RunDir(tmp_path / "first")
    first.create()
    (run.path / "jobs.json").write_text(json.dumps({"after": str(first.path), "options": {"notify": "me"}}))
    assert submit.ready(run.path) == 1
    assert heard()[0][1] == "waiting" and "resume first" in heard()[0][2]


class Hook(http.server.BaseHTTPRequestHandler):
    code, got = 200, []

    def do_POST(self):
        Hook.got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(self.code)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def hook(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = http.server.HTTPServer(("127.0.0.1", 0), Hook)
    Hook.got, Hook.code = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/services/SECRET"
    server.shutdown()


def everything(run: RunDir) -> str:
    return "".join(p.read_text(errors="replace") for p in run.path.rglob("*") if p.is_file())


@pytest.mark.parametrize(("code", "said"), [(200, ""), (404, "the webhook answered 404")])
def test_a_webhook_is_posted_to_and_its_secret_stands_nowhere(run, hook, capsys, code, said):
    Hook.code = code
    profile(f'lab = "{hook}"')
    options(run, notify="lab")
    notify.at_end(run.path, Verdict.DONE, "")
    ((path, body),) = Hook.got
    assert path.endswith("SECRET") and body["text"] == body["content"] and body["text"].startswith("brains is done")
    printed = "".join(capsys.readouterr())
    assert (said in printed if said else printed == "") and "SECRET" not in printed + everything(run)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/SECRET", "https://127.0.0.1:1/SECRET", "http://[SECRET",
    "http:///SECRET",
    "http://127.0.0.1:1/SEC RET", "http://127.0.0.1:99999/SECRET"])  # fmt: skip
def test_what_goes_wrong_is_one_line_without_the_secret(run, url, capsys):
    profile(f'lab = "{url}"')
    options(run, notify="lab")
    notify.at_end(run.path, Verdict.FAILED, "because")
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("WARNING: nobody was told that the run is failed")
    assert "SEC" not in err + everything(run)


def test_a_webhook_that_never_answers_is_given_up(run, monkeypatch):
    import socket

    monkeypatch.setattr(notify, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        problem = notify.post(f"http://127.0.0.1:{silent.getsockname()[1]}/", "r", "done", "text")
        assert problem and time.monotonic() - began < 5


def test_a_file_that_others_can_read_is_no_place_for_a_webhook(run, hook):
    path = profile(f'lab = "{hook}"', 0o644)
    assert "chmod 600" in notify.problem_of("lab") and Hook.got == []
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod go-w"):
        sites.load_sites()


@pytest.mark.parametrize(("entry", "whom", "words"), [
    ("", "lab", "that table is empty or missing"), ('me = "true"', "lab", "there are me"),
    ("lab = 5", "lab", "must be a URL"), ('lab = ""', "lab", "must be a URL"), ("lab = [1]", "lab", "must be a URL"),
    ('lab = "a \'b"', "lab", "must be a URL"), ('lab = "true"', "lab", ""), ('lab = ["true"]', "lab", ""),
    ("", "you@example.org", ""), ("", "-oQ/tmp@x.org", "no mail address"), ("", "a b@example.org", "no mail address"),
])  # fmt: skip
def test_a_target_is_looked_at_before_the_run_is_queued(entry, whom, words):
    profile(entry)
    problem = notify.problem_of(whom)
    assert (words in problem) if words else problem == ""


def test_a_table_of_notices_is_no_profile():
    profile('me = "true"')
    assert "notify" not in sites.load_sites() and sites.read_notify() == {"me": "true"}


def test_mail_goes_through_slurms_program_else_through_sendmail(tmp_path, monkeypatch):
    for name in ("slurm-mail", "sendmail"):
        (tmp_path / name).write_text(f'#!/bin/sh\n{{ echo "$@"; cat; }} > "{tmp_path}/{name}.out"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = f"Configuration data as of now\nMailDomain       = (null)\nMailProg         = {tmp_path}/slurm-mail\n"
    monkeypatch.setattr(slurm, "_run", lambda command, **_: config)
    assert notify.send("you@example.org", "brains", "done", "the text\n") == ""
    assert (tmp_path / "slurm-mail.out").read_text() == "-s brains: done you@example.org\nthe text\n"
    monkeypatch.setattr(slurm, "_run", lambda command, **_: "MailProg = /bin/mail-of-elsewhere\n")
    assert notify.send("you@example.org", "brains", "done", "the text\n") == ""
    assert (
        (tmp_path / "sendmail.out")
        .read_text()
        .startswith("-i you@example.org\nTo: you@example.org\nSubject: brains: done\n")
    )
    monkeypatch.setattr(notify, "SENDMAIL", ("no-such-program",))
    assert "no program that sends mail" in notify.send("you@example.org", "brains", "done", "the text\n")


def test_a_command_that_fails_or_hangs_changes_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.1)
    for command, words in (
        ("false", "ended with code 1"),
        ("sleep 60", "did not end"),
        ("/no/such", "could not be run"),
    ):
        profile(f'me = "{command}"')
        run.attempts.unlink(missing_ok=True)
        options(run, notify="me")
        notify.at_end(run.path, Verdict.DONE, "")
        assert words in capsys.readouterr().err


def test_what_hangs_is_given_up_with_all_it_started_and_the_jobs_code_stands(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.5)
    (tmp_path / "sendmail").write_text(f'#!/bin/sh\nsleep 61 & echo $! > "{tmp_path}/pid"; wait\n')
    (tmp_path / "sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_run", lambda command, **_: "")
    options(run, notify="you@example.org")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
    before[signal.SIGHUP] = signal.getsignal(signal.SIGHUP)
    try:
        assert requeue.finish(run.path, 78) == 78
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "sendmail did not end within 0.5 s" in capsys.readouterr().err
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(), 10)


# --- on this machine --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("code", "state", "told"), [
    ("raise SystemExit(1)", "running", "failed"), ("import os; os.kill(os.getpid(), 9)", "running", "failed"),
    ("raise SystemExit(85)", "continue", "interrupted"), ("raise SystemExit(77)", "diverged", "diverged"),
    ("pass", "stopped", ""),
])  # fmt: skip
def test_a_local_run_tells_how_it_ended(run, heard, code, state, told):
    options(run, notify="me")
    run.status(state=state, reason="x")
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cluster.notify", run.path, "--", sys.executable, "-c", code], cwd=ROOT
    )
    assert [state for _, state, _ in heard()] == ([told] if told else [])
    assert done.returncode == {"raise SystemExit(85)": 85, "raise SystemExit(77)": 77, "pass": 0}.get(
        code, done.returncode
    )


def test_a_local_run_that_is_done_says_so(run, heard):
    options(run, notify="me")
    run.mark_done()
    assert notify.around(run.path, ["true"]) == 0 and heard()[0][1] == "done"


def test_before_the_run_is_queued(tmp_path, monkeypatch):
    from types import SimpleNamespace

    run = RunDir(tmp_path / "brains")
    run.create()
    run.attempts.write_text(json.dumps(start(1, 1000.0, since=1000.0)) + "\n" + json.dumps(end(1, 4600.0, 8)) + "\n")
    plan = SimpleNamespace(run=run.path, options={"max_gpu_hours": 2.0, "notify": "nobody"})
    hours, whom = preflight.check_promises(plan)
    assert (
        (hours.level, whom.level) == ("fail", "fail")
        and "2 of the run's 2 GPU hours" in hours.text
        and "nobody" in whom.text
    )
    plan.options = {"max_gpu_hours": 2.1, "notify": "you@example.org"}
    assert preflight.check_promises(plan) == []
