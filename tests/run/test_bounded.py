"""Files that others may have written: a regular file within its bounds, or one clear line; never a hang, never the
memory, never the table of all runs lost."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from odd_files import FILES, ODD, SECONDS, bounded, look, make_run, put, sparse

from data.files import (
    KEPT,
    LINE,
    leads_out,
    open_regular,
    parse_json,
    read_bytes,
    read_json,
    read_object,
    read_rows,
    read_tail,
    sha256_of,
)
from jobs.cluster import show, sites, status, why
from jobs.config.specs import ConfigError
from jobs.config.specs import read_json as read_config
from jobs.run.states import RunDirError
from jobs.view.metrics import MetricsLog, read_metrics
from jobs.view.report import write_page


# --- the reader -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
@bounded
def test_only_a_regular_file_within_its_bound_is_read(tmp_path, kind):
    path = tmp_path / "file.json"
    ODD[kind](path)
    what = "too large: more than 4 MB" if kind == "sparse" else "not a regular file"
    for read in (read_bytes, read_json):
        with pytest.raises(OSError, match=what):
            read(path)
    assert read_object(path) == ({}, f"file.json is damaged ({what})")
    if kind != "sparse":
        for read in (open_regular, read_rows, sha256_of, lambda path: read_tail(path, 10)):
            with pytest.raises(OSError, match=what):
                read(path)
        for mode in ("ab", "a+b"):
            with pytest.raises(OSError, match=what):
                open_regular(path, mode)


def test_a_file_of_exactly_the_bound_is_read(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bytes(path, 100) == b"x" * 100
    with pytest.raises(OSError, match="too large"):
        read_bytes(path, 99)
    assert read_tail(path, 10) == b"x" * 10 and read_tail(path, 10, end=4) == b"xxxx"
    (tmp_path / "link").symlink_to(path)  # a link may be followed, where nobody says what it must stay in
    assert read_bytes(tmp_path / "link") == b"x" * 100


def test_links_are_followed_inside_a_folder_only(tmp_path):
    inside, outside = tmp_path / "run", tmp_path / "private"
    inside.mkdir()
    outside.write_text("{}")
    (inside / "real").write_text("{}")
    (inside / "to inside").symlink_to("real")
    (inside / "to outside").symlink_to(outside)
    (inside / "up").symlink_to(tmp_path)
    (tmp_path / "way in").symlink_to(inside)
    assert read_json(inside / "to inside", inside) == {} == read_json(tmp_path / "way in" / "real", inside)
    assert read_json(inside / "real", tmp_path / "way in") == {}
    for path in (inside / "to outside", inside / "up" / "private", inside / ".." / "private"):
        with pytest.raises(OSError, match="a link that leads out of"):
            read_json(path, inside)
    assert leads_out(inside / "up" / "not there", inside) and not leads_out(inside / "not there", inside)
    assert leads_out(tmp_path / "run-2", inside)  # its name begins like that of the folder


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        '{"a": -Infinity}',
        "1e999",
        "-1e999",
        '"\\ud800"',
        '{"\\udfff": 1}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "1" * 5000,
        "",
        "{",
        "\ufeff{}",
        b"\xff",
        b'"\xed\xa0\x80"',
    ],
)
def test_json_that_cannot_be_computed_with_or_shown_is_refused(text):
    with pytest.raises(ValueError) as error:
        parse_json(text)
    assert len(str(error.value).splitlines()) == 1


def test_honest_json_is_read():
    assert parse_json(b'{"a": [1, 2.5, 1e300, null, true, "\\ud83d\\ude00 \xc3\xa9"]}') == {
        "a": [1, 2.5, 1e300, None, True, "\U0001f600 \u00e9"]
    }
    assert parse_json("[NaN, 1e999, -Infinity, 0.5]", nonfinite=True) == [None, None, None, 0.5]


def test_a_json_file_is_an_object(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(ValueError, match="no JSON object"):
        read_json(tmp_path / "a.json")
    assert read_object(tmp_path / "none.json") == ({}, "")
    with pytest.raises(ConfigError, match=r"a\.json: cannot be read as JSON \(no JSON object\)"):
        read_config(tmp_path / "a.json")


# --- a log of rows ----------------------------------------------------------------------------------------------------
@bounded
def test_a_log_of_weeks_keeps_its_curve_within_the_memory(tmp_path):
    """Forty megabytes of rows: the first, the last, and evenly spread ones between them."""
    path, pad = tmp_path / "metrics.jsonl", "x" * 9_900
    with open(path, "w") as file:
        for i in range(4000):
            file.write(json.dumps({"nimg": i, "loss": i / 2, "pad": pad}) + "\n")
    found = [row["nimg"] for row in read_metrics(path)]
    assert found[0] == 0 and found[-1] == 3999
    assert 800 <= len(found) <= KEPT // 9_900 + 1
    steps = {b - a for a, b in itertools.pairwise(found[:-1])}
    assert steps == {4}


def test_a_log_that_fits_is_read_whole(tmp_path):
    rows = [{"nimg": i, "loss": 0.5} for i in range(1000)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"nimg": 1000, "loss": 0.5}')
    assert read_metrics(path) == rows  # all but the one that is not whole yet


def test_rows_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"nimg": 1}',
        "x" * LINE + '{"nimg": 99}',
        '{"nimg": 2, "loss": NaN}',
        "[" * 5000,
        '{"nimg": true}',
        '{"nimg": 1e9}',
        '{"nimg": 1' + "0" * 400 + "}",
        '{"nimg": 3, "x": "\\ud800"}',
        "7",
        '{"nimg": 4}',
    ]
    path.write_text("\n".join(lines) + "\n")
    assert read_metrics(path) == [{"nimg": 1}, {"nimg": 2, "loss": None}, {"nimg": 4}]
    log = MetricsLog(path)
    assert [json.loads(line)["nimg"] for line in path.read_text().splitlines() if "NaN" not in line] == [1, 4]
    log.append({"nimg": 5})
    assert read_metrics(path)[-1] == {"nimg": 5}


@bounded
def test_a_log_that_becomes_a_pipe_does_not_stop_the_training(tmp_path):
    said: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", say=said.append)
    os.mkfifo(tmp_path / "metrics.jsonl")
    log.append({"nimg": 8})
    log.append({"nimg": 16})
    assert len(said) == 1 and "metrics.jsonl cannot be written (not a regular file)" in said[0]


# --- a run with one odd file ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", FILES)
@bounded
def test_one_odd_file_leaves_the_table_of_all_runs(tmp_path, capsys, name, kind):
    good, bad = make_run(tmp_path, "good"), make_run(tmp_path, "bad")
    put(bad, name, kind)
    views = [status.view_run(run.path, {}) for run in (good, bad)]
    show.show_runs(views)
    table = capsys.readouterr().out
    assert "good  stopped" in table and "bad " in table
    not_read = kind in ("sparse", "pipe", "folder", "socket", "device", "link out")
    if not_read or (name in ("status.json", "jobs.json")):
        assert f"{name} is damaged" in views[1].note and f"{name} is damaged" in table
        assert f"{name} is damaged" in look(bad)
    else:
        look(bad)
    shown = capsys.readouterr().out
    assert "private" not in shown.replace(str(tmp_path), "")
    page = write_page([good, bad])
    assert "a private thing" not in page and (not not_read or f"{name} is damaged" in page)


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device", "link out"])
@pytest.mark.parametrize("name", [*FILES, "data.json"])
@bounded
def test_training_in_a_run_with_an_odd_file_is_refused_in_one_line(tmp_path, name, kind):
    run = make_run(tmp_path)
    put(run, name, kind)
    with pytest.raises(RunDirError, match=f"{name} is damaged") as error:
        run.create()
    assert len(str(error.value).splitlines()) == 1 and "use another --run" in str(error.value)


@pytest.mark.parametrize("kind", ODD)
@bounded
def test_an_odd_config_is_one_line(tmp_path, kind):
    run = make_run(tmp_path)
    put(run, "config.json", kind)
    with pytest.raises(RunDirError, match=r"config\.json: cannot be read \(.+\); restore it") as error:
        run.read_config()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ODD)
@bounded
def test_an_odd_lock_does_not_hang_the_next_attempt(tmp_path, kind):
    """It cannot be read, or is a lock that nobody holds."""
    run = make_run(tmp_path)
    ODD[kind](run.lockfile)
    if kind in ("sparse", "pipe", "folder", "socket", "device"):
        assert status.live_process(run.path) is None
        with pytest.raises(RunDirError, match="LOCK: cannot be written"):
            run.lock(wait=0)
    view = status.view_run(run.path, {})
    assert view.state in ("stopped", "starting")


@pytest.mark.parametrize("kind", ODD)
@bounded
def test_an_odd_stop_file_is_lifted(tmp_path, kind):
    run = make_run(tmp_path)
    ODD[kind](run.path / "STOP")
    if kind == "folder":
        pytest.skip("a folder is no file that a person made")
    run.lift_stop()
    assert not run.stop_requested() and run.read_attempts()[-1]["event"] == "stop lifted"
    assert "private" not in json.dumps(run.read_attempts())


@pytest.mark.parametrize("kind", ODD)
@bounded
def test_an_odd_provenance_or_snapshot_is_passed_over(tmp_path, kind):
    run = make_run(tmp_path)
    if kind == "folder":
        pytest.skip("what is replaced must be a file")
    put(run, "provenance.json", kind)
    run.write_provenance(["x"])
    assert json.loads((run.path / "provenance.json").read_text()).get("first") is None


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
@bounded
def test_odd_logs_are_shown_at_once(tmp_path, capsys, kind):
    run = make_run(tmp_path)
    (run.logs / "1.out").write_text("error: the first log\n")
    ODD[kind](run.logs / "2.out")
    (run.logs / "3.out").symlink_to(tmp_path / "gone")
    follower = show.Follower(run.path, at_end=True)
    assert why.newest_log(run.path) == run.logs / ("2.out" if kind == "sparse" else "1.out")
    why.explain(run.path, None)
    (run.logs / "1.out").write_text("error: the first log\nmore\n")
    follower.show()
    assert "more" in capsys.readouterr().out
    assert len(why.tail(run.logs / "2.out")) == 0


# --- the commands, as a person types them -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe"])
def test_launch_status_of_runs_with_odd_files_within_half_a_gigabyte(tmp_path, kind):
    make_run(tmp_path, "good")
    for name in (*FILES, "LOCK", "sweep.json", "data.json"):
        put(make_run(tmp_path, f"bad-{name.split('.')[0]}"), name, kind)
    code = (
        "import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20)); import launch; "
        f"launch.choose.RUNS = pathlib.Path({str(tmp_path)!r}); sys.exit(launch.main(sys.argv[1:]))"
    )
    for words in (
        ["status"],
        ["status", "--json"],
        ["status", "bad-metrics"],
        ["why", "bad-attempts"],
        ["logs", "bad-LOCK"],
    ):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tiny.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            env=tiny.environment(tmp_path, PATH="/usr/bin:/bin"),
        )
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 4 * SECONDS  # on a machine with much else to do
        if words == ["status"]:
            assert done.stdout.count("is damaged") == len(FILES) + 1 and "good" in done.stdout
        elif words[-1] == "--json":
            found = json.loads(done.stdout, parse_constant=pytest.fail)["runs"]
            assert {view["name"]: bool(view["damage"]) for view in found}["good"] is False


@bounded
def test_profiles_that_are_a_pipe_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    sites.user_file().parent.mkdir()
    sparse(sites.user_file())
    with pytest.raises(ConfigError, match=r"sites\.toml: cannot be read as TOML \(too large"):
        sites.load_sites()
    with pytest.raises(ConfigError, match="not a regular file"):
        sites._read(Path("/dev/zero"))
