"""predict.py and the report on systems that lack what only Linux has; training says that it wants Linux."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from test_predict import make_generator, write
from tiny import ROOT

import predict
from jobs.run import owners, stopping

# A Python of another system, as far as the standard library tells: these modules, signals and functions are not there,
# and no folder can be opened. (Their types and numbers stay: libraries look at the system's name, which is Linux here.)
ELSEWHERE = """
import errno, os, runpy, signal, sys
for name in "pwd grp fcntl resource termios tty".split():
    sys.modules[name] = None
for where, names in ((signal, "SIGUSR1 SIGUSR2 SIGHUP SIGKILL pthread_sigmask SIG_UNBLOCK SIG_BLOCK"),
                     (os, "getuid geteuid getgid sched_getaffinity getloadavg fork killpg setsid mkfifo O_NONBLOCK "
                          "O_NOFOLLOW O_DIRECTORY"), (errno, "EREMOTEIO EDQUOT")):
    for name in names.split():
        if hasattr(where, name):
            delattr(where, name)
opened = os.open
def open_no_folder(path, *more, **how):
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)
    return opened(path, *more, **how)
os.open = open_no_folder
for words in sys.argv[1].split(" && "):
    sys.argv = words.split()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        if left.code:
            raise
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with weights and a log."""
    path = tmp_path_factory.mktemp("runs") / "run"
    path.mkdir()
    write(path / "weights.safetensors", make_generator())
    (path / "config.json").write_text(json.dumps({"batch": 8, "data": "phantom", "resolution": 32}))
    rows = [{"nimg": 1000 * k, "kimg": k, "loss_G": 1.0 / k, "loss_D": 1.0} for k in (1, 2, 3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "attempts.jsonl").write_text('{"event": "start", "time": 1.0, "nimg": 0, "attempt": 1}\n')
    return path


def test_pictures_and_reports_need_nothing_of_linux(run):
    words = f"predict.py report {run} && predict.py plot --run {run} && predict.py generate --run {run} --number 2"
    words = f"launch.py --help && {words} --device cpu"
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("report.html", "plots/losses.png", "predictions/generate/24kimg/000001_NC.png"):
        assert (run / name).stat().st_size > 100


def test_training_says_that_it_wants_linux(monkeypatch, capsys):
    monkeypatch.setattr(stopping.sys, "platform", "win32")
    with pytest.raises(SystemExit) as left:
        stopping.install_handlers()
    assert left.value.code == 78
    assert re.fullmatch(r"error: training needs Linux, on Windows through WSL; .*\n", capsys.readouterr().err)


def test_whose_files_they_are_is_not_asked_where_nobody_can_say(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    assert "everybody may write" in owners.others_may_replace(tmp_path)
    monkeypatch.setattr(owners, "pwd", None)
    assert owners.others_may_replace(tmp_path) == "" and owners.owner_of(tmp_path) == ""


def test_what_is_no_run_and_what_are_no_weights(run, tmp_path, capsys):
    """One line each that says what was given, and what to give."""
    (tmp_path / "x.pt").touch()
    for words, said in (
        (f"generate --run {run.parent}", "a folder of runs, not a run; name one of them: run"),
        (f"report {run.parent}", "a folder of runs"),
        (f"generate --weights {tmp_path / 'x.pt'}", "a checkpoint, from which training alone goes on; give --run RUN"),
        (f"generate --weights {run}", f"a folder; --run {run} takes a run"),
        ("generate --weights x.safetensors", "there is no such file"),
    ):
        assert predict.main(predict.parse_args(predict.__doc__, words.split())) == 2
        err = capsys.readouterr().err
        assert said in err and len(err.splitlines()) == 1
