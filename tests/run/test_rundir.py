"""The run directory: atomic files, attempts, status, STOP/SAVE/DONE, and the lock between real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from data import files
from data.files import atomic_write, process_start, remove_torn
from jobs.run import find, lock, owners, rundir
from jobs.run.lock import Locked
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "r")
    run.create()
    return run


def test_package_is_torch_free():
    code = "import sys, jobs.run.rundir, jobs.run.stopping; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_folders_are_private_and_creating_again_deletes_nothing(run):
    (run.samples / "old.png").write_bytes(b"x")
    run.create()
    assert (run.samples / "old.png").exists()
    for folder in (run.path, run.checkpoints, run.samples, run.plots, run.tensorboard, run.logs):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_making_the_object_touches_nothing(tmp_path):
    RunDir(tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_path_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="another --run"):
        RunDir(tmp_path / "file" / "run").create()


# --- files ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    atomic_write(path, "old")

    def fail(*args):
        raise OSError(28, "No space left on device")

    if call == "write":
        with pytest.raises(OSError), files.atomic_file(path) as file:
            file.write(b"half")
            fail()
    else:
        monkeypatch.setattr(os, call, fail)
        with pytest.raises(OSError):
            atomic_write(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_readers_never_see_half_a_file(tmp_path):
    path, sizes, over = tmp_path / "status.json", [10, 200_000], threading.Event()
    atomic_write(path, "a" * sizes[0])

    def write():
        for i in range(60):
            atomic_write(path, "ab"[i % 2] * sizes[i % 2])
        over.set()

    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    while not over.is_set():
        text = path.read_text()
        assert len(text) in sizes and len(set(text)) == 1
        seen.add(len(text))
    thread.join()
    assert seen


def test_a_file_takes_its_name_when_all_of_it_is_on_disk(tmp_path, monkeypatch):
    """Contents first, then the name, then the folder that holds the name."""
    path, steps = tmp_path / "file", []

    def fsync(handle):
        about = os.fstat(handle)
        steps.append("folder" if stat.S_ISDIR(about.st_mode) else about.st_size)
        if stat.S_ISDIR(about.st_mode):
            assert about.st_ino == tmp_path.stat().st_ino

    monkeypatch.setattr(os, "fsync", fsync)
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (steps.append(Path(b).name), real(a, b)))
    atomic_write(path, "ä" * 1000)
    assert steps == [2000, "file", "folder"]


@pytest.mark.parametrize(
    ("number", "matters"), [("EINVAL", False), ("ENOTSUP", False), ("EBADF", False), ("EACCES", False), ("EIO", True)]
)
def test_a_file_system_that_does_not_sync_folders_is_no_error(tmp_path, monkeypatch, number, matters):
    def fsync(handle):
        raise OSError(getattr(errno, number), "no")

    monkeypatch.setattr(os, "fsync", fsync)
    if matters:
        with pytest.raises(OSError):
            files.sync_folder(tmp_path)
    else:
        files.sync_folder(tmp_path)


def test_free_bytes_are_those_that_a_user_may_still_write(monkeypatch):
    monkeypatch.setattr(owners.shutil, "disk_usage", lambda folder: SimpleNamespace(total=900, used=800, free=7))
    assert owners.free_bytes(Path("/")) == 7


def test_the_start_of_a_process_is_told_in_ticks_since_boot():
    child = subprocess.Popen(["sleep", "60"])
    try:
        seconds = int(process_start(child.pid)) / os.sysconf("SC_CLK_TCK")
        assert 0 <= float(Path("/proc/uptime").read_text().split()[0]) - seconds < 60
        assert process_start(child.pid) == process_start(child.pid)
    finally:
        child.kill()
        child.wait()
    assert process_start(child.pid) == ""


@pytest.mark.parametrize(
    ("owner", "mode", "own_group", "reason"),
    [
        (500, 0o640, False, ""),
        (500, 0o755, False, ""),
        (0, 0o644, False, ""),
        (501, 0o600, False, "it belongs to"),
        (500, 0o602, True, "everybody may write"),
        (500, 0o777, True, "everybody may write"),
        (0, 0o666, True, "everybody may write"),
        (500, 0o620, False, "its group may write"),
        (500, 0o620, True, ""),
        (0, 0o664, False, "its group may write"),
    ],
)
def test_whose_work_a_file_may_be(monkeypatch, owner, mode, own_group, reason):
    """For user 500: root is trusted, others are not; a group that is the user's own counts as nobody else."""
    monkeypatch.setattr(os, "getuid", lambda: 500)
    monkeypatch.setattr(owners, "_group_of_one", lambda gid: own_group)
    about = SimpleNamespace(st_uid=owner, st_gid=77, st_mode=stat.S_IFREG | mode)
    monkeypatch.setattr(Path, "stat", lambda path: about)
    said = owners.others_may_replace(Path("x"))
    assert said.startswith(reason) and bool(said) == bool(reason)


@pytest.mark.parametrize("mode", [0o710, 0o701, 0o750, 0o705])
def test_a_folder_that_lets_others_through_is_looked_into(run, mode):
    run.path.chmod(mode)
    run.check_private()
    (run.checkpoints / "000000000008.pt").touch()
    (run.checkpoints / "000000000008.pt").chmod(0o666)
    with pytest.raises(RunDirError, match="everybody may write"):
        run.check_private()


def test_torn_files_of_dead_writers_are_removed_and_no_others(tmp_path):
    host = socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    old = [tmp_path / f".a.pt.tmp.{host}.{dead.pid}.0", tmp_path / f".a.pt.tmp.{host}.{os.getpid()}.99999"]
    other_old, other_new = tmp_path / ".a.pt.tmp.other-host.1.0", tmp_path / ".b.pt.tmp.other-host.1.0"
    other_slow = tmp_path / ".c.pt.tmp.other-host.1.0"  # a large file on slow storage
    alive = tmp_path / f".a.pt.tmp.{host}.{os.getppid()}.0"
    foreign = [tmp_path / ".hidden", tmp_path / "a.tmp.txt", tmp_path / ".x.tmp.y", other_new, alive]
    foreign.append(other_slow)
    for path in [*old, other_old, *foreign]:
        path.touch()
    os.utime(other_old, (time.time() - 700,) * 2)
    os.utime(other_slow, (time.time() - 300,) * 2)
    with files.atomic_file(tmp_path / "now") as file:
        file.write(b"x")
        assert sorted(remove_torn(tmp_path)) == sorted(p.name for p in [*old, other_old])
    assert {p.name for p in foreign} | {"now"} == set(os.listdir(tmp_path))


def test_taking_the_lock_removes_torn_files_in_every_folder_of_the_run(run):
    dead = subprocess.Popen(["true"])
    dead.wait()
    torn = [
        folder / f".reals.png.tmp.{socket.gethostname()}.{dead.pid}.4" for folder in (run.path, run.samples, run.plots)
    ]
    for path in torn:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (run.samples / "reals.png").touch()
    run.lock()
    assert not any(path.exists() for path in torn) and (run.samples / "reals.png").exists()


# --- config, provenance -----------------------------------------------------------------------------------------------
def test_config_round_trip_and_damage(run):
    assert run.read_config() is None
    run.write_config({"lr": 0.1, "name": "ä"})
    assert run.read_config() == {"lr": 0.1, "name": "ä"}
    for text in ("{", "[]", "\xff", "[" * 100_000):
        run.config.write_text(text)
        with pytest.raises(RunDirError, match=r"config\.json"):
            run.read_config()


def test_provenance_keeps_first_and_latest(run):
    run.write_provenance(["python", "train.py"], cuda="13.0")
    run.write_provenance(["python", "train.py", "--again"])
    run.write_provenance(["python", "train.py", "--third"])
    about = json.loads((run.path / "provenance.json").read_text())
    assert about["argv"][-1] == "--third" and about["first"]["argv"] == ["python", "train.py"]
    assert about["first"]["cuda"] == "13.0" and "first" not in about["first"]
    assert about["packages"]["torch"] and about["host"] == socket.gethostname()
    assert about["python"] == ".".join(map(str, sys.version_info[:3])) and abs(about["time"] - time.time()) < 60
    assert {k: about[k] for k in ("git_commit", "git_dirty")} == rundir.git_state(ROOT)


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", folder, *identity, *args], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_git_state(tmp_path, monkeypatch):
    assert rundir.git_state(tmp_path) == {"git_commit": None, "git_dirty": None}
    root = tmp_path.resolve() / "repo"
    root.mkdir()
    git(root, "init", "-q")
    (root / "a").write_text("1")
    git(root, "add", "a")
    git(root, "commit", "-qm", "a")
    commit = git(root, "rev-parse", "HEAD")
    assert rundir.git_state(root) == {"git_commit": commit, "git_dirty": False}
    (root / "untracked").touch()
    assert rundir.git_state(root)["git_dirty"] is False
    (root / "a").write_text("2")
    assert rundir.git_state(root) == {"git_commit": commit, "git_dirty": True}
    (root / "runs").mkdir()  # a code snapshot inside the repository is not that commit
    assert rundir.git_state(root / "runs")["git_commit"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert rundir.git_state(root) == {"git_commit": None, "git_dirty": None}


# --- status and attempts ----------------------------------------------------------------------------------------------
def test_status_is_throttled_but_never_late_for_a_new_state(run):
    run.status(state="running", kimg=1.0, total_kimg=9)
    run.status(state="running", kimg=2.0)
    assert run.read_status()["kimg"] == 1.0
    run.status(state="continue", reason="USR2")
    seen = run.read_status()
    assert (seen["state"], seen["kimg"], seen["total_kimg"], seen["reason"]) == ("continue", 2.0, 9, "USR2")
    assert abs(seen["updated"] - time.time()) < 5 and {"job_id", "attempt", "host", "pid"} <= set(seen)


def test_the_heartbeat_is_written_every_few_seconds(run, monkeypatch):
    """By the monotonic clock; what was said in between is in the next one."""
    now = [100.0]
    monkeypatch.setattr(rundir, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 1.8e9 + now[0]))
    seen = []
    for i in range(12):
        run.status(state="running", kimg=float(i))
        seen.append(run.read_status()["kimg"])
        now[0] += 2.0
    assert seen == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9, 9, 9]
    assert run.read_status()["updated"] == 1.8e9 + 118


def test_the_heartbeat_names_attempt_and_job(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    for number in (1, 2):
        run = RunDir(run.path)
        run.attempt_start(nimg=0)
        run.status(state="running")
        seen = run.read_status()
        about = (number, "7", os.getpid(), socket.gethostname())
        assert (seen["attempt"], seen["job_id"], seen["pid"], seen["host"]) == about
        run.attempt_end(nimg=0, reason="x", seconds=1.0, code=85)


def test_status_on_a_full_disk_warns_once_and_goes_on(run, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rundir, "atomic_write", full)
        run.status(state="running")
        run.status(state="saving")
        assert capsys.readouterr().err.count("No space left") == 1
    run.status(state="running")
    assert run.read_status()["state"] == "running" and capsys.readouterr().err == ""
    monkeypatch.setattr(rundir, "atomic_write", full)  # full again: said again
    run.status(state="saving")
    assert capsys.readouterr().err.count("No space left") == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"event": 3}',
        '{"nimg": 8}',
        "[1]",
        "7",
        '{"event": "start", "nimg": "8"}',
        '{"event": "start", "nimg": true}',
        '{"event": "start", "nimg": 1e300}',
        '{"event": "start", "nimg": NaN}',
        '{"event": "start", "seconds": [1]}',
        '{"event": "start", "time": false}',
        '{"event": "start", "nimg": 0',
        "[" * 50_000,
        "\x00",
    ],
)
def test_lines_that_are_no_attempts_are_left_out(run, line):
    good = [{"event": "start", "nimg": None, "time": 5}, {"event": "note", "seconds": 0.5}]
    run.attempts.write_text("\n".join([json.dumps(good[0]), line, json.dumps(good[1])]) + "\n")
    assert run.read_attempts() == good


def test_a_line_is_on_disk_when_note_returns(run, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    run.note("start", nimg=8)
    run.note("end", nimg=8)
    content = run.attempts.read_bytes()
    assert sizes == [content.index(b"\n") + 1, len(content)] and content.count(b"\n") == 2
    assert all(abs(line["time"] - time.time()) < 60 for line in run.read_attempts())


def test_attempts_tell_how_each_one_ended(run, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    run.attempt_start(nimg=0)
    run.attempt_end(nimg=40, reason="USR2", seconds=3.0, code=85)
    second = RunDir(run.path)
    second.attempt_start(nimg=40)
    second.status(state="running", kimg=0.07)
    (run.checkpoints / "000000000064.json").write_text("{}")
    with open(run.attempts, "a") as file:
        file.write('{"event": "en')  # killed inside its line
    third = RunDir(run.path)
    third.attempt_start(nimg=64)
    lines = third.read_attempts()
    assert [(e["event"], e["attempt"], e["nimg"]) for e in lines] == [
        ("start", 1, 0), ("end", 1, 40), ("start", 2, 40), ("end", 2, 64), ("start", 3, 64),
    ]  # fmt: skip
    assert lines[0]["job_id"] == "7" and lines[0]["restart_count"] == 2 and lines[0]["node"] == socket.gethostname()
    died = lines[3]
    assert died["inferred"] and "without a word" in died["reason"] and 0 <= died["seconds"] < 60
    assert "inferred" not in lines[1]
    assert (died["job_id"], died["node"]) == ("7", socket.gethostname())
    assert lines[1]["restart_count"] == 2 and (lines[1]["reason"], lines[1]["seconds"], lines[1]["code"]) == (
        "USR2",
        3.0,
        85,
    )


def test_how_long_an_attempt_lived_that_died_without_a_word(run):
    """Until its last heartbeat; unknown where the heartbeat is another attempt's. It kept its newest checkpoint."""
    for nimg in (8, 24, 16):
        (run.checkpoints / f"{nimg:012d}.json").write_text("{}")
        (run.checkpoints / f"{64:012d}.pt").touch()  # never committed
    for of_status, seconds in ((1, 90.0), (2, None)):
        run.attempts.write_text(json.dumps({"event": "start", "attempt": 1, "time": 1000.0, "nimg": 0}) + "\n")
        (run.path / "status.json").write_text(json.dumps({"attempt": of_status, "updated": 1090.0}))
        RunDir(run.path).attempt_start(nimg=24)
        died = run.read_attempts()[1]
        assert (died["event"], died["attempt"], died["seconds"], died["nimg"]) == ("end", 1, seconds, 24)


@pytest.mark.parametrize("state", ["running", "saving", "continue", None])
def test_the_marks_of_a_finished_run_are_completed(run, state):
    before = {"kimg": 0.4, "total_kimg": 0.4, "reason": "x"} | ({"state": state} if state else {})
    (run.path / "status.json").write_text(json.dumps(before))
    run.note("start", attempt=1, nimg=0)
    run.complete_marks()
    assert run.read_status() == before | {"state": "done", "reason": "finished", "code": 0}
    assert [line["event"] for line in run.read_attempts()] == ["start", "end"]
    stamp = os.stat(run.path / "status.json").st_ino
    run.complete_marks()
    assert len(run.read_attempts()) == 2 and os.stat(run.path / "status.json").st_ino == stamp


def test_stop_is_lifted_into_the_record(run):
    run.lift_stop()  # nothing there: nothing to say
    assert run.read_attempts() == []
    (run.path / "STOP").write_text("enough for today\n")
    os.utime(run.path / "STOP", (1.7e9, 1.7e9))
    assert run.stop_requested()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.lift_stop()
    assert run.stop_requested()  # killed before the record is on disk: not lifted
    run.attempts.unlink()
    run.lift_stop()
    assert not run.stop_requested()
    lifted = {"event": "stop lifted", "text": "enough for today", "made": 1.7e9}
    assert lifted.items() <= run.read_attempts()[0].items()


def test_done_and_save(run):
    assert not run.done() and not run.take_save()
    run.mark_done()
    (run.path / "SAVE").touch()
    assert run.done() and run.take_save() and not run.take_save()
    run.unmark_done()
    assert not run.done()


# --- the lock ---------------------------------------------------------------------------------------------------------
HOLD = """
import sys, time
from jobs.run.lock import Locked
from jobs.run.rundir import RunDir
run = RunDir(sys.argv[1])
try:
    run.lock(wait=0)
except Locked as error:
    sys.exit(f"locked: {error}")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
run.unlock()
"""


def hold(run: RunDir, seconds: float = 600) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path), str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def rest(run: RunDir) -> list[str]:
    return [p.name for p in run.path.iterdir() if "LOCK" in p.name]


def write_lock(run: RunDir, age: float = 0.0, **about) -> None:
    whole = {"token": "0" * 16, "host": "node9", "space": "s", "pid": 5, "start": "77", "job": "123"} | about
    run.lockfile.write_text(json.dumps(whole))
    os.utime(run.lockfile, (time.time() - age,) * 2)


def test_a_live_holder_is_named_and_a_dead_one_replaced(run):
    process = hold(run)
    with pytest.raises(Locked) as error:
        run.lock(wait=30)
    text = str(error.value)
    assert str(process.pid) in text and socket.gethostname() in text and "stop" in text and "\n" not in text
    process.send_signal(signal.SIGKILL)
    process.wait(300)
    run.lock(wait=0)
    assert json.loads(run.lockfile.read_text())["pid"] == os.getpid() and rest(run) == ["LOCK"]
    run.unlock()
    assert rest(run) == []


def test_a_zombie_holds_nothing(run):
    process = hold(run)
    process.send_signal(signal.SIGKILL)
    end = time.monotonic() + 300
    while process_start(process.pid) and time.monotonic() < end:
        time.sleep(0.01)  # not waited for: it stays a zombie
    run.lock(wait=0)
    run.unlock()
    process.wait(300)


def test_unlock_leaves_other_peoples_lock_alone(run):
    run.lock(wait=0)
    write_lock(run)
    run.unlock()
    assert json.loads(run.lockfile.read_text())["host"] == "node9"


def test_a_reused_pid_is_not_the_holder(run):
    mine = lock.Lock(run.lockfile).mine
    write_lock(run, host=mine["host"], space=mine["space"], pid=os.getpid(), start="1")
    run.lock(wait=0)
    run.unlock()


def test_another_host_counts_by_its_heartbeat(run):
    write_lock(run, age=20)
    with pytest.raises(Locked, match=r"5 on node9 \(job 123\)"):
        run.lock(wait=0)
    write_lock(run, age=lock.LOCK_STALE + 5)
    run.lock(wait=0)
    run.unlock()


def test_another_container_on_this_host_is_another_host(run):
    write_lock(run, host=socket.gethostname(), space="pid:[1]", pid=999_999, age=20)
    with pytest.raises(Locked):
        run.lock(wait=0)


def test_waits_for_another_host_to_fall_silent(run, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_STALE", 2.0)
    write_lock(run, age=0.5)
    run.lock(wait=20)
    run.unlock()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "../../etc/passwd", "host": 3, "pid": "x"}', '{"pid": 1}'])
def test_a_damaged_lock_is_waited_for_then_replaced(run, text):
    run.lockfile.write_text(text)
    with pytest.raises(Locked):
        run.lock(wait=0)
    os.utime(run.lockfile, (1, 1))
    run.lock(wait=0)
    run.unlock()
    assert rest(run) == []


def test_a_taker_that_died_over_its_claim_is_no_obstacle(run):
    """It had made LOCK.<token> and was killed before the rename; two generations of it."""
    write_lock(run, age=1000)
    for token, next_token in (("0" * 16, "1" * 16), ("1" * 16, "2" * 16)):
        claim = run.path / f"LOCK.{token}"
        claim.write_text(
            json.dumps({"token": next_token, "host": "node8", "space": "s", "pid": 6, "start": "1", "job": None})
        )
        os.utime(claim, (1, 1))
    run.lock(wait=0)
    assert json.loads(run.lockfile.read_text())["pid"] == os.getpid()
    run.unlock()
    assert rest(run) == []


def test_a_slow_taker_does_not_take_the_lock_of_a_fast_one(run):
    """The slow one judged the old lock stale; meanwhile the fast one took it."""
    write_lock(run, age=1000)
    slow, fast = lock.Lock(run.lockfile), RunDir(run.path)
    stale = slow._read(run.lockfile)
    fast.lock(wait=0)
    slow._draft.write_text(json.dumps(slow.mine))
    assert slow._take(run.lockfile, stale) is False
    slow._draft.unlink()
    assert json.loads(run.lockfile.read_text())["token"] == fast._lock.token
    assert rest(run) == ["LOCK"]
    fast.unlock()


def test_of_many_takers_of_a_stale_lock_one_wins(run):
    code = """
import sys, time
from jobs.run.lock import Locked
from jobs.run.rundir import RunDir
run = RunDir(sys.argv[1])
print("ready", flush=True); sys.stdin.readline()
try:
    run.lock(wait=0); print("won", flush=True); sys.stdin.readline()  # it holds on until all have tried
except Locked:
    print("lost", flush=True)
"""
    for _ in range(2):
        write_lock(run, age=1000)
        takers = [
            subprocess.Popen(
                [sys.executable, "-c", code, run.path],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(6)
        ]
        for p in takers:
            assert p.stdout.readline() == "ready\n"
        for p in takers:
            p.stdin.write("\n")
            p.stdin.flush()
        assert sorted(p.stdout.readline() for p in takers) == ["lost\n"] * 5 + ["won\n"]
        for p in takers:
            p.communicate(timeout=300)
        assert [n for n in rest(run) if n != "LOCK"] == []


def test_without_hard_links_too(run, monkeypatch):
    def no_links(*args):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write_lock(run, age=1000)
    run.lock(wait=0)
    with pytest.raises(Locked):
        RunDir(run.path).lock(wait=0)
    run.unlock()
    assert rest(run) == []


def test_the_heartbeat_beats_and_restores_a_deleted_lock(run, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_BEAT", 0.05)
    run.lock(wait=0)
    os.utime(run.lockfile, (1, 1))
    wait_until(lambda: run.lockfile.stat().st_mtime > 1)
    run.lockfile.unlink()
    wait_until(run.lockfile.exists)
    run.unlock()
    assert rest(run) == []


def test_a_process_whose_run_was_taken_over_ends(run):
    code = HOLD.replace("import sys, time", "import sys, time, jobs.run.lock; jobs.run.lock.LOCK_BEAT = 0.05")
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.path, "600"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    atomic_write(run.lockfile, json.dumps({"token": "a" * 16, "host": "node9", "pid": 1, "start": "1"}))
    assert process.wait(300) == 75
    assert "node9" in process.stderr.read()
    assert json.loads(run.lockfile.read_text())["host"] == "node9"


def test_an_earlier_start_of_the_same_job_is_taken_over_and_waited_for(run, monkeypatch):
    """Slurm requeued the job because its node's daemon died; the process there lives on and must notice first."""
    monkeypatch.setattr(lock, "LOCK_BEAT", 0.2)
    code = HOLD.replace("import sys, time", "import sys, time, jobs.run.lock; jobs.run.lock.LOCK_BEAT = 0.2")
    process = subprocess.Popen(
        [sys.executable, "-c", code, run.path, "600"],
        cwd=ROOT,
        env=os.environ | {"SLURM_JOB_ID": "7"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(Locked):
        run.lock(wait=0)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    began = time.monotonic()
    run.lock(wait=0)
    assert time.monotonic() - began >= 0.4 and process.wait(300) == 75
    assert json.loads(run.lockfile.read_text())["restart"] == 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    with pytest.raises(Locked):  # never the other way round
        RunDir(run.path).lock(wait=0)
    run.unlock()


def test_the_job_before_in_a_chain_is_taken_over(run, monkeypatch):
    """Where requeueing is forbidden another job goes on, once Slurm has given up the first."""
    monkeypatch.setattr(lock, "LOCK_BEAT", 0.05)
    write_lock(run, age=0.01)  # of job 123
    monkeypatch.setenv("SLURM_JOB_ID", "124")
    with pytest.raises(Locked):
        run.lock(wait=0)
    monkeypatch.setenv("PREDECESSOR_JOB", "123")
    run.lock(wait=0)
    run.unlock()


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds that a taker of a lock sleeps; none of them pass."""
    slept = []
    fake = SimpleNamespace(sleep=slept.append, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(lock, "time", fake)
    return slept


@pytest.mark.parametrize(("about", "age", "seconds"), [
    ({}, 1000.0, 0),  # a dead host's: nobody is left to notice
    ({"job": "7", "restart": 0}, 1.0, 2 * lock.LOCK_BEAT),  # of our job before it was requeued: it may live on
    ({"job": "7", "restart": 0}, 3 * lock.LOCK_BEAT + 5, 0),  # its heartbeat has ended
    ({"job": "6"}, 1.0, 2 * lock.LOCK_BEAT),  # of the job before in the chain
])  # fmt: skip
def test_only_of_a_holder_that_may_live_on_it_is_waited_for(run, monkeypatch, naps, about, age, seconds):
    for name, value in (("SLURM_JOB_ID", "7"), ("SLURM_RESTART_COUNT", "1"), ("PREDECESSOR_JOB", "6")):
        monkeypatch.setenv(name, value)
    write_lock(run, age=age, **about)
    run.lock(wait=0)
    assert sum(naps) == seconds
    run.unlock()


@pytest.mark.parametrize(("about", "mine"), [
    ({"job": None}, {}),  # neither is a job's
    ({"job": None, "restart": 0}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ({"job": "8", "restart": 0}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ({"job": "7", "restart": 1}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ({"job": "7", "restart": "x"}, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}),
    ({"job": "7"}, {"SLURM_JOB_ID": "7", "PREDECESSOR_JOB": "6"}),
])  # fmt: skip
def test_a_living_holder_is_none_of_ours(run, monkeypatch, naps, about, mine):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "PREDECESSOR_JOB"):
        monkeypatch.delenv(name, raising=False)
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    write_lock(run, age=1.0, **about)
    with pytest.raises(Locked):
        run.lock(wait=0)
    assert json.loads(run.lockfile.read_text())["host"] == "node9" and rest(run) == ["LOCK"]


def test_a_holder_on_this_host_is_not_waited_for(run, naps):
    """Whether it lives is certain here: a second start is told at once, and a dead one costs no time."""
    mine = lock.Lock(run.lockfile).mine
    about = {"host": mine["host"], "space": mine["space"], "pid": os.getppid()}
    write_lock(run, age=500.0, **about, start=process_start(os.getppid()))
    with pytest.raises(Locked):
        run.lock(wait=1000)
    write_lock(run, age=0.1, **about, start="1")  # a namesake
    run.lock(wait=0)
    assert sum(naps) == 0
    run.unlock()


def test_a_lock_that_is_just_being_written_is_waited_for(run):
    run.lockfile.touch()
    os.utime(run.lockfile, (time.time() - 9.7,) * 2)
    run.lock(wait=60)
    run.unlock()


def test_locking_twice_is_locking_once(run):
    run.lock(wait=0)
    run.lock(wait=0)
    run.unlock()
    assert rest(run) == []


def test_a_lock_given_back_stays_away(run, monkeypatch):
    """Its heartbeat ends with it: else it would take a lock that nobody holds for one that was deleted by hand."""
    monkeypatch.setattr(lock, "LOCK_BEAT", 0.01)
    run.lock(wait=0)
    held = run._lock
    run.unlock()
    held._beat()  # returns
    held._restore()
    assert rest(run) == []


def test_a_link_that_was_made_although_the_server_says_it_exists(run, monkeypatch):
    real = os.link

    def link(a, b):
        real(a, b)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", link)
    run.lock(wait=0)
    assert json.loads(run.lockfile.read_text())["pid"] == os.getpid()
    run.unlock()


def test_a_lock_that_cannot_be_written_is_one_line(run, monkeypatch):
    def link(a, b):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(RunDirError, match=r"No space left on device.*another --run"):
        run.lock(wait=0)
    assert rest(run) == []


def test_the_paces_fit_each_other():
    """Several heartbeats fit into the silence after which a host counts as dead."""
    assert (lock.LOCK_BEAT, lock.LOCK_STALE, rundir.STATUS_BEAT) == (5.0, 120.0, 5.0)


def wait_until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_a_snapshot_knows_where_its_runs_lie(tmp_path):
    """Else a hint in a job's log would name runs by their whole path, and `--after NAME` would find none."""
    assert find.runs_folder(tmp_path) == tmp_path / "runs"
    (tmp_path / "snapshot.json").write_text(json.dumps({"from": "/home/me/toolkit"}))
    assert find.runs_folder(tmp_path) == Path("/home/me/toolkit/runs")
    (tmp_path / "snapshot.json").write_text("[]")
    assert find.runs_folder(tmp_path) == tmp_path / "runs"
