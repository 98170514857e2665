"""launch.py --host, pull and tensorboard --host, through a real ssh to an sshd on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from private_login import Login, require
from tiny import copy_toolkit, environment

from jobs.cluster import remote, sites
from jobs.config.specs import ConfigError
from jobs.run.rundir import RunDir

BLANK = "it's a run"  # blanks and a quote: nothing may be split or run on its way


@pytest.fixture(scope="module")
def login(tmp_path_factory):
    require()
    login = Login(tmp_path_factory.mktemp("login"))
    yield login
    login.end()


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """The clone on the login node, in a folder with a blank in its name."""
    clone = copy_toolkit(tmp_path_factory.mktemp("there") / "tool kit")
    (clone / ".venv").symlink_to(sys.prefix)
    run = RunDir(clone / "runs" / "brains")
    run.create()
    run.write_config({"batch": 8})
    for name in ("weights.safetensors", "samples/1.png", "plots/losses.png", "metrics.jsonl", "report.html", "DONE"):
        (run.path / name).write_text(name)
    for name in ("checkpoints/000000000008.pt", "LOCK", "jobs.json", "logs/1.out", "job.sbatch"):
        (run.path / name).write_text("{}")
    (run.samples / "secret.png").symlink_to("/etc/passwd")
    RunDir(clone / "runs" / BLANK).create()
    (clone / "runs" / BLANK / "config.json").write_text("{}")
    return clone


@pytest.fixture
def env(login, tmp_path) -> dict[str, str]:
    return environment(tmp_path, PATH=f"{login.bin}:{os.environ['PATH']}", XDG_CONFIG_HOME=str(tmp_path), NO_COLOR="1")


@pytest.fixture
def here(tmp_path) -> Path:
    return copy_toolkit(tmp_path / "here")


def launch(here: Path, env: dict, *words, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, here / "launch.py", *map(str, words)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def test_a_verb_runs_there_with_its_arguments_and_its_exit_code(here, there, env):
    found = json.loads(launch(here, env, "--host", "cluster", "--host-dir", there, "status", "--json", BLANK).stdout)
    assert [view["path"] for view in found["runs"]] == [str(there / "runs" / BLANK)]
    hostile = "$(touch /tmp/never); `id` 'x' \"y\" \\"
    missing = launch(here, env, "status", hostile, "--host=cluster", f"--host-dir={there}", code=2)
    assert f"there is no run {hostile}" in missing.stderr and not Path("/tmp/never").exists()
    assert (
        "no clone of the toolkit"
        in launch(here, env, "--host", "cluster", "--host-dir", "/no", "status", code=2).stderr
    )


def test_a_profile_names_host_and_folder(here, there, env, tmp_path):
    own = tmp_path / "brain-slices/sites.toml"
    own.parent.mkdir()
    own.write_text(f'[lab]\nlogin = "cluster"\nremote_dir = "{there}"\n[no]\n')
    assert "brains" in launch(here, env, "--host", "lab", "status").stdout
    assert "has no `login`" in launch(here, env, "--host", "no", "status", code=78).stderr
    launch(here, env, "pull", "brains")  # the one profile that has both


def test_a_host_that_is_not_there_is_one_line(here, env):
    assert "ssh nowhere.invalid true" in launch(here, env, "--host", "nowhere.invalid", "status", code=78).stderr


def test_pull_brings_what_one_looks_at_and_no_checkpoints(here, there, env):
    launch(here, env, "pull", "bra", "--host", "cluster", "--host-dir", there)
    copy = here / "runs/brains"
    files = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file() or path.is_symlink()}
    assert files == {"weights.safetensors", "samples/1.png", "plots/losses.png", "metrics.jsonl", "report.html", "DONE",
                     "config.json", "pulled.json"}  # fmt: skip
    (there / "runs/brains/samples/2.png").write_text("new")
    launch(here, env, "pull", "brains", "--checkpoints", "--host", "cluster", "--host-dir", there)
    assert (copy / "samples/2.png").exists() and (copy / "checkpoints/000000000008.pt").exists()
    assert "done" in launch(here, env, "status", "brains").stdout
    launch(here, env, "pull", BLANK, "--host", "cluster", "--host-dir", there, "--out", here / "my copies")
    assert (here / "my copies" / BLANK / "config.json").exists()
    launch(here, env, "pull", "brains", "--host", "ssh://cluster", "--host-dir", there, "--out", here / "by URI")
    assert (here / "by URI/brains/config.json").exists()  # ssh takes such a name, rsync does not


def test_pull_writes_over_no_run_of_this_machine(here, there, env):
    mine = RunDir(here / "runs/brains")
    mine.create()
    (mine.path / "metrics.jsonl").write_text("mine")
    refused = launch(here, env, "pull", "brains", BLANK, "--host", "cluster", "--host-dir", there, code=2)
    assert "--out DIR" in refused.stderr and (mine.path / "metrics.jsonl").read_text() == "mine"
    assert (here / "runs" / BLANK / "config.json").exists() and "error: brains: not copied" in refused.stderr


def test_tensorboard_through_its_tunnel_and_both_end(here, there, env):
    process = subprocess.Popen(
        [sys.executable, "-u", here / "launch.py", "tensorboard", "--host", "cluster", "--host-dir", there],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        line = next(line for line in process.stdout if "http://localhost:" in line)
        address = re.search(r"http://localhost:\d+", line)[0].replace("localhost", "127.0.0.1")
        end, page = time.monotonic() + 120, ""
        while "TensorBoard" not in page and time.monotonic() < end:
            try:
                page = urllib.request.urlopen(address, timeout=10).read().decode(errors="replace")
            except OSError:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.3)
        assert "TensorBoard" in page
        assert len(served(there)) > 0
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    end = time.monotonic() + 30
    while served(there) and time.monotonic() < end:
        time.sleep(0.2)
    assert served(there) == [] and process.returncode == 0


def served(there: Path) -> list[str]:
    """Processes of TensorBoard over the runs of that clone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, cwd = (process / "cmdline").read_bytes(), os.readlink(process / "cwd")
        except OSError:
            continue
        if b"tensorboard.main" in words and b"brain-slices-tensorboard-" in words and cwd == str(there):
            found.append(process.name)
    return found


@pytest.mark.parametrize(("codes", "tries"), [([75, 0], 2), ([75, 75, 75], 3), ([2], 1), ([78], 1), ([0], 1)])
def test_only_a_port_that_is_taken_there_is_tried_again(monkeypatch, codes, tries):
    tried, last = [], codes[-1]
    monkeypatch.setattr(remote, "until_interrupted", lambda command: tried.append(command) or codes.pop(0))
    assert remote.tensorboard(remote.Host("cluster", "x"), []) == last and len(tried) == tries


# --- without an sshd --------------------------------------------------------------------------------------------------
def test_which_words_name_the_host():
    assert remote.split(["--host", "a", "stop", "x", "--now"]) == ({"--host": "a"}, ["stop", "x", "--now"])
    assert remote.split(["pull", "x", "--host=me@a", "--host-dir", "d e"]) == (
        {"--host": "me@a", "--host-dir": "d e"},
        ["pull", "x"],
    )
    assert remote.split(["--job", "vae", "--", "--host", "x"]) == ({}, ["--job", "vae", "--", "--host", "x"])
    for bad in (["--host"], ["--host="], ["--host", "-oProxyCommand=x"], ["--host", "a\x1b"]):
        with pytest.raises(ConfigError):
            remote.split(bad)


def test_where_the_clone_is_if_nobody_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sites, "user_file", lambda: tmp_path / "none")
    monkeypatch.setattr(remote, "ROOT", Path.home() / "work" / "slices")
    assert remote.choose_host("cluster").folder == "work/slices"
    monkeypatch.setattr(remote, "ROOT", Path("/scratch/slices"))
    assert remote.choose_host("cluster").folder == "slices" and remote.choose_host("c", "~/x").folder == "x"


@pytest.mark.parametrize("name", ["../up", "/etc", "", "..", 5, "a/b"])
def test_a_run_whose_name_leads_elsewhere_is_refused(name):
    text = json.dumps({"version": 1, "runs": [{"name": name, "path": "/runs/x"}]})
    with pytest.raises(ConfigError):
        remote.runs_in(text, remote.Host("cluster", "x"))
    assert remote.runs_in('Welcome\n{"runs": [{"name": "a", "path": "/a"}]}\nbye\n', remote.Host("c", "x")) == [
        ("a", "/a")
    ]
