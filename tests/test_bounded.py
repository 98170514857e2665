"""Files that others may have written: a regular file within its bounds, or one clear line; never a hang, never the
memory, never the table of all runs lost."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from data.files import (
    KEPT,
    LINE,
    SMALL,
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
from jobs.cluster import show, sites, status, steer, sweep, why
from jobs.config.specs import ConfigError
from jobs.config.specs import read_json as read_config
from jobs.predict import pages
from jobs.predict.output import Output
from jobs.predict.trained import read_snapshot, weights_of
from jobs.run.attempt import check_data
from jobs.run.find import find_run, read_jobs
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError
from jobs.training.checkpoint import CheckpointError, Checkpoints
from jobs.training.weights import WeightsError, check_header, read_weights
from jobs.view.metrics import MetricsLog, read_metrics
from jobs.view.pictures import is_complete
from jobs.view.report import write_page

FILES = ("config.json", "status.json", "attempts.jsonl", "metrics.jsonl", "jobs.json")
SECONDS, MEMORY = 5, 200 << 20
pytestmark = pytest.mark.timeout(120)  # what hangs is red


# --- what a hostile place in a run may be -----------------------------------------------------------------------------
def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(6 << 30)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_out(path: Path) -> None:
    outside = path.parent.parent / "private.json"
    outside.write_text('{"secret": "a private thing", "state": "done", "event": "start", "nimg": 8}\n')
    path.symlink_to(outside)


ODD = {
    "sparse": sparse,
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": bound_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link out": link_out,
    "deep": lambda path: path.write_text("[" * 100_000),
    "half a character": lambda path: path.write_bytes(b'{"state": "\\ud800", "x": "\xed\xa0\x80"}\n'),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
}


def make_run(folder: Path, name: str = "run") -> RunDir:
    run = RunDir(folder / name)
    run.create()
    run.write_config({"data": "phantom:8", "resolution": 32, "total_kimg": 1.0})
    (run.path / "status.json").write_text('{"state": "stopped", "kimg": 0.5, "total_kimg": 1.0, "updated": 5.0}\n')
    (run.path / "jobs.json").write_text('{"job": "vae", "submitted": [{"id": "7", "kind": "main", "time": 3}]}\n')
    run.attempts.write_text('{"event": "start", "attempt": 1, "time": 5.0, "nimg": 0}\n')
    run.metrics.write_text('{"nimg": 500, "kimg": 0.5, "loss_pixels": 0.25}\n')
    return run


def put(run: RunDir, name: str, kind: str) -> None:
    (run.path / name).unlink(missing_ok=True)
    ODD[kind](run.path / name)


@pytest.fixture
def bounded(monkeypatch):
    """The test ends within SECONDS of work, and nothing in it takes MEMORY. A page needs no curves for that."""
    monkeypatch.setattr("jobs.view.report.draw_losses", lambda rows, **how: b"")
    tracemalloc.start()
    began = time.process_time()
    yield
    peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
    tracemalloc.stop()
    assert seconds < SECONDS and peak < MEMORY, (seconds, peak)


def look(run: RunDir) -> str:
    """All that launch.py and the report make of a run."""
    view = status.view_run(run.path, {})
    show.show_run(view, run.path)
    cause = why.explain(run.path, None)[1]
    return json.dumps([view.note, cause.text, cause.fix, cause.line], allow_nan=False)


# --- the reader -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
def test_only_a_regular_file_within_its_bound_is_read(tmp_path, kind, bounded):
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


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "-1e999", '"\\ud800"', '{"\\udfff": 1}',
                                  "[" * 100_000, '{"a":' * 100_000, "1" * 5000, "", "{", "\ufeff{}", b"\xff", b'"\xed\xa0\x80"'])  # fmt: skip
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
def test_a_log_of_weeks_keeps_its_curve_within_the_memory(tmp_path, bounded):
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
    lines = ['{"nimg": 1}', "x" * (LINE + 5), '{"nimg": 2, "loss": NaN}', "[" * 5000, '{"nimg": true}', '{"nimg": 1e9}',
             '{"nimg": 1' + "0" * 400 + "}", '{"nimg": 3, "x": "\\ud800"}', "7", '{"nimg": 4}']  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    assert read_metrics(path) == [{"nimg": 1}, {"nimg": 2, "loss": None}, {"nimg": 4}]
    log = MetricsLog(path)
    assert [json.loads(line)["nimg"] for line in path.read_text().splitlines() if "NaN" not in line] == [1, 4]
    log.append({"nimg": 5})
    assert read_metrics(path)[-1] == {"nimg": 5}


def test_a_log_that_becomes_a_pipe_does_not_stop_the_training(tmp_path, bounded):
    said: list[str] = []
    log = MetricsLog(tmp_path / "metrics.jsonl", say=said.append)
    os.mkfifo(tmp_path / "metrics.jsonl")
    log.append({"nimg": 8})
    log.append({"nimg": 16})
    assert len(said) == 1 and "metrics.jsonl cannot be written (not a regular file)" in said[0]


# --- a run with one odd file ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", FILES)
def test_one_odd_file_leaves_the_table_of_all_runs(tmp_path, capsys, name, kind, bounded):
    good, bad = make_run(tmp_path, "good"), make_run(tmp_path, "bad")
    put(bad, name, kind)
    views = [status.view_run(run.path, {}) for run in (good, bad)]
    show.show_runs(views)
    table = capsys.readouterr().out
    assert "good  stopped" in table and "bad " in table
    not_read = kind in ("sparse", "pipe", "folder", "socket", "device")
    if not_read or (name in ("status.json", "jobs.json")):
        assert f"{name} is damaged" in views[1].note and f"{name} is damaged" in table
        assert f"{name} is damaged" in look(bad)
    else:
        look(bad)
    shown = capsys.readouterr().out
    assert "private" not in shown.replace(str(tmp_path), "")
    page = write_page([good, bad])
    assert "a private thing" not in page and (not not_read or f"{name} is damaged" in page)


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
@pytest.mark.parametrize("name", [*FILES, "data.json"])
def test_training_in_a_run_with_an_odd_file_is_refused_in_one_line(tmp_path, name, kind, bounded):
    run = make_run(tmp_path)
    put(run, name, kind)
    with pytest.raises(RunDirError, match=f"{name} is damaged") as error:
        run.create()
    assert len(str(error.value).splitlines()) == 1 and "use another --run" in str(error.value)


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_config_is_one_line(tmp_path, kind, bounded):
    run = make_run(tmp_path)
    put(run, "config.json", kind)
    with pytest.raises(RunDirError, match=r"config\.json: cannot be read \(.+\); restore it") as error:
        run.read_config()
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_lock_does_not_hang_the_next_attempt(tmp_path, kind, bounded):
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
def test_an_odd_stop_file_is_lifted(tmp_path, kind, bounded):
    run = make_run(tmp_path)
    ODD[kind](run.path / "STOP")
    if kind == "folder":
        pytest.skip("a folder is no file that a person made")
    run.lift_stop()
    assert not run.stop_requested() and run.read_attempts()[-1]["event"] == "stop lifted"
    assert "private" not in json.dumps(run.read_attempts())


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_provenance_or_snapshot_is_passed_over(tmp_path, kind, bounded):
    run = make_run(tmp_path)
    if kind == "folder":
        pytest.skip("what is replaced must be a file")
    put(run, "provenance.json", kind)
    run.write_provenance(["x"])
    assert json.loads((run.path / "provenance.json").read_text()).get("first") is None


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
def test_odd_logs_are_shown_at_once(tmp_path, capsys, kind, bounded):
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


# --- values -----------------------------------------------------------------------------------------------------------
VALUES = ["NaN", "Infinity", "-Infinity", "1e999", "1e308", "-1e14", "1e-300", "1e14", "9" * 400, "-1", "0", "true", "null", '""', '"x"', "[]", "[1]", "{}",
          '{"a": 1}', '"\\u0000"', '"\\ud800"', '"\\u001b[2J"', '"\\u202e"', '"' + "x" * 100_000 + '"']  # fmt: skip
STATUS = ("state reason kimg total_kimg eta_s updated code attempt job_id host step").split()


def test_one_nan_in_one_status_leaves_the_table_of_all_runs(tmp_path, capsys):
    good, bad = make_run(tmp_path, "good"), make_run(tmp_path, "bad")
    (bad.path / "status.json").write_text('{"state": "running", "kimg": NaN, "code": NaN, "eta_s": Infinity}')
    views = [status.view_run(run.path, {}) for run in (good, bad)]
    show.show_runs(views)
    assert "status.json is damaged (the number NaN)" in capsys.readouterr().out
    assert views[0].kimg == 0.5 and views[1].kimg is None


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_in_any_field_of_a_run_can_be_shown(tmp_path, capsys, value, monkeypatch):
    monkeypatch.setattr("jobs.view.report.draw_losses", lambda rows, **how: b"")
    run = make_run(tmp_path)
    good = {"state": '"running"', "kimg": "0.5", "total_kimg": "1", "attempt": "1"}
    for name in STATUS:
        fields = good | {name: value}
        (run.path / "status.json").write_text("{" + ", ".join(f'"{k}": {v}' for k, v in fields.items()) + "}")
        look(run)
        json.dumps(status.view_run(run.path, None).__dict__, allow_nan=False)
    (run.path / "status.json").write_text('{"state": "failed"}')
    for name in ("job", "after", "submitted", "options", "max_restarts"):
        (run.path / "jobs.json").write_text(f'{{"{name}": {value}}}')
        look(run)
    for name in ("id", "kind", "time", "host", "after"):
        (run.path / "jobs.json").write_text(f'{{"submitted": [{{"id": "7", "kind": "local", "{name}": {value}}}]}}')
        look(run)
    for name in ("event", "attempt", "time", "nimg", "seconds", "code", "reason", "node", "job_id", "world"):
        first, second = ({"event": '"start"', "attempt": "1"} | {name: value} for _ in range(2))
        lines = [first, {"event": '"end"', "attempt": "1", name: value}, second, {"event": '"decision"', "decision": value, "why": value}]  # fmt: skip
        run.attempts.write_text(
            "".join("{" + ", ".join(f'"{k}": {v}' for k, v in line.items()) + "}\n" for line in lines)
        )
        look(run)
        write_page([run])
    for name in ("nimg", "gpu_util", "gpu_gb", "loss_pixels", "img_per_s", "val_psnr"):
        run.metrics.write_text(f'{{"nimg": 500, "{name}": {value}}}\n')
        look(run)
    for name in ("host", "space", "pid", "start", "since", "token", "job", "restart"):
        run.lockfile.write_text(f'{{"host": "elsewhere", "start": "5", "pid": 7, "{name}": {value}}}')
        look(run)
    assert all(line.isprintable() for line in capsys.readouterr().out.replace("\t", " ").splitlines())


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_any_value_in_any_field_of_a_sweep_or_a_plan_is_one_line(tmp_path, value, capsys):
    folder = tmp_path / "sweep"
    folder.mkdir()
    for point in (f'{{"values": {value}, "run": "/x"}}', f'{{"values": {{"lr": {value}}}, "run": "/x"}}', f'{{"values": {{"lr": "1"}}, "run": {value}}}', value):  # fmt: skip
        (folder / "sweep.json").write_text(f'{{"points": [{{"values": {{"lr": "1"}}, "run": "/y"}}, {point}]}}')
        if points := sweep.read_sweep(folder):
            show.show_sweep(points, [status.view_run(Path(p["run"]), {}) for p in points])
    (folder / "sweep.json").write_text(f'{{"points": {value}}}')
    sweep.read_sweep(folder)
    run = make_run(tmp_path)
    for name in ("partition", "gpus", "time", "local", "max_restarts"):
        (run.path / "jobs.json").write_text(f'{{"job": "vae", "options": {{"{name}": {value}}}}}')
        try:
            steer.resume_options(run.path, {}).check()
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1 and str(error).isprintable()
    for text in (
        f'{{"classes": {value}}}',
        f'{{"digests": {value}, "classes": ["a"]}}',
        f'{{"augmentation": {value}, "classes": ["b"]}}',
    ):
        (run.path / "data.json").write_text(text)
        try:
            check_data(
                run, type("C", (), {"conditional": True, "override": False}), ["a"], {"train": "x"}, print, [0.5]
            )
        except ConfigError as error:
            assert len(str(error).splitlines()) == 1
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_sweep_is_none(tmp_path, kind, bounded):
    run = make_run(tmp_path)
    ODD[kind](run.path / "sweep.json")
    assert sweep.read_sweep(run.path) is None
    assert find_run(str(run.path)) == run.path


def test_a_job_list_of_odd_words_is_read_without_them(tmp_path):
    run = make_run(tmp_path)
    about = {"job": "vae", "after": "/a\0b", "submitted": [{"id": 7}, "x", {"id": "8"}]}
    (run.path / "jobs.json").write_text(json.dumps(about))
    assert read_jobs(run.path) == {"job": "vae", "submitted": [{"id": "8"}]}


# --- the commands, as a person types them -----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe"])
def test_launch_status_of_runs_with_odd_files_within_half_a_gigabyte(tmp_path, kind):
    make_run(tmp_path, "good")
    for name in (*FILES, "LOCK", "sweep.json", "data.json"):
        put(make_run(tmp_path, f"bad-{name.split('.')[0]}"), name, kind)
    code = ("import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_AS, (500 << 20, 500 << 20)); import launch; "
            f"launch.RUNS = pathlib.Path({str(tmp_path)!r}); sys.exit(launch.main(sys.argv[1:]))")  # fmt: skip
    for words in (
        ["status"],
        ["status", "--json"],
        ["status", "bad-metrics"],
        ["why", "bad-attempts"],
        ["logs", "bad-LOCK"],
    ):
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tiny.ROOT, capture_output=True, text=True, timeout=60,
                              env=tiny.environment(tmp_path, PATH="/usr/bin:/bin"))  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 4 * SECONDS  # on a machine with much else to do
        if words == ["status"]:
            assert done.stdout.count("is damaged") == len(FILES) + 1 and "good" in done.stdout
        elif words[-1] == "--json":
            found = json.loads(done.stdout, parse_constant=pytest.fail)
            assert {view["name"]: bool(view["damage"]) for view in found}["good"] is False


def test_profiles_that_are_a_pipe_are_one_line(tmp_path, monkeypatch, bounded):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    sites.user_file().parent.mkdir()
    sparse(sites.user_file())
    with pytest.raises(ConfigError, match=r"sites\.toml: cannot be read as TOML \(too large"):
        sites.load_sites()
    with pytest.raises(ConfigError, match="not a regular file"):
        sites._read(Path("/dev/zero"))


# --- checkpoints and weights ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device", "deep"])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_an_odd_checkpoint_is_passed_over(tmp_path, kind, suffix, bounded):
    """As --init-from and a resume read it: the one before is taken."""
    said: list[str] = []
    store = Checkpoints(tmp_path / "checkpoints", say=said.append)
    store.folder.mkdir()
    for nimg in (8, 16):
        store.save(nimg, {"n": nimg})
        store.wait(raise_errors=True)
    newest = store.folder / f"000000000016{suffix}"
    newest.unlink()
    ODD[kind](newest)
    assert store.load_latest() == (8, {"n": 8})
    assert len(said) == 1 and "000000000016" in said[0] and len(said[0].splitlines()) == 1
    older = store.folder / f"000000000008{suffix}"
    older.unlink()
    ODD[kind](older)
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        store.load_latest()


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


@pytest.mark.parametrize("content", [
    b"", b"\xff" * 64, header(b"{}", 1 << 40), header(b"{}", 100 << 20), header(b"{}", 0), header(b"[" * 100_000), header(b"[]"), header(b"{}") + b"x",
    header(b'{"a": 1}'), header(b'{"a": {"data_offsets": [0]}}'), header(b'{"a": {"data_offsets": [0, NaN]}}'), header(b'{"a": {"data_offsets": "xx"}}'),
    header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 99]}}'), header(b'{"__metadata__": {"config": "[["}}'), header(b'{"__metadata__": 7}'),
], ids=range(15))  # fmt: skip
def test_a_header_of_weights_is_checked_before_a_tensor_is_read(tmp_path, content, bounded):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="weights") as error:
        read_weights(path)
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ConfigError):
        read_snapshot(path)


@pytest.mark.parametrize("kind", ["sparse", "pipe", "folder", "socket", "device"])
def test_odd_weights_are_one_line(tmp_path, kind, bounded):
    path = tmp_path / "weights.safetensors"
    ODD[kind](path)
    for read, error in ((read_weights, WeightsError), (check_header, WeightsError), (read_snapshot, ConfigError)):
        with pytest.raises(error, match="not a readable weights file"):
            read(path)
    with pytest.raises(WeightsError, match="no such weights file"):
        read_weights(tmp_path / "none.safetensors")


def test_a_config_of_weights_must_be_finite_and_shallow(tmp_path):
    path = tmp_path / "weights.safetensors"
    for config in ('{"config": {"resolution": NaN}}', "[" * 50_000, '{"config": {"data": "\\ud800"}}'):
        save_file({"a": torch.zeros(3)}, path, metadata={"config": config})
        with pytest.raises(WeightsError):
            read_weights(path)


# --- predict.py stays inside a run ------------------------------------------------------------------------------------
def test_weights_that_lead_out_of_a_run_are_not_followed(tmp_path):
    run = make_run(tmp_path)
    save_file({"a": torch.zeros(3)}, tmp_path / "private.safetensors")
    run.weights.symlink_to(tmp_path / "private.safetensors")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the file itself with --weights"):
        weights_of(run.path)
    run.weights.unlink()
    save_file({"a": torch.zeros(3)}, run.path / "weights-best.safetensors")
    run.weights.symlink_to("weights-best.safetensors")
    assert weights_of(run.path) == run.weights


def test_predictions_that_lead_out_of_a_run_are_not_written(tmp_path):
    import argparse

    import predict

    run = make_run(tmp_path)
    (tmp_path / "private").mkdir()
    args = argparse.Namespace(command="generate", run=str(run.path), out="")
    assert predict.output(args).folder == run.path / "predictions" / "generate"
    (run.path / "predictions").symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the folder itself with --out"):
        predict.output(args)
    args.out = str(tmp_path / "private")
    assert predict.output(args).folder == tmp_path / "private"  # a person's own word


def test_plots_that_lead_out_of_a_run_are_not_written(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "private").mkdir()
    run.plots.rmdir()
    run.plots.symlink_to(tmp_path / "private")
    with pytest.raises(ConfigError, match="a link that leads out of the run; name the file itself with --out"):
        pages.plot([str(run.path)])
    assert not list((tmp_path / "private").iterdir())
    pages.plot([str(run.path)], str(tmp_path / "private" / "x.png"))


def test_a_report_shows_nothing_from_outside_of_its_run(tmp_path):
    run, private = make_run(tmp_path), tmp_path / "private"
    private.mkdir()
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(private / "grid.png")
    (private / "metrics.json").write_text('{"distances": {"generated": {"fid": 1}}, "notes": ["a private thing"]}')
    (private / "config.json").write_text('{"data": "a private thing"}')
    for name in ("samples/00001.png", "samples/reals.png", "predictions/mix/mix.png"):
        (run.path / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path / name).symlink_to(private / "grid.png")
    (run.path / "predictions" / "generate").symlink_to(private)
    (run.path / "predictions" / "evaluate").symlink_to(private)
    (run.path / "provenance.json").symlink_to(private / "config.json")
    page = write_page([run])
    assert page.count("<img") == 1 and "a private thing" not in page  # its own losses
    inside = run.path / "elsewhere.png"
    Image.fromarray(np.full((8, 8), 77, np.uint8)).save(inside)
    (run.samples / "00002.png").symlink_to(inside)
    assert write_page([run]).count("<img") == 2


def test_pictures_that_are_links_or_of_another_kind_are_made_again(tmp_path):
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(tmp_path / "rgb.png")
    Image.fromarray(np.zeros((5, 7, 4), np.uint8)).save(tmp_path / "rgba.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert is_complete(tmp_path / "a.png", (5, 7), 1) and is_complete(tmp_path / "rgb.png", (5, 7), 3)
    for name, channels in (("link", 1), ("pipe", 1), ("rgb", 1), ("a", 3), ("rgba", 1), ("rgba", 3), ("none", 1)):
        assert not is_complete(tmp_path / f"{name}.png", (5, 7), channels), name
    with open(tmp_path / "a.png", "ab") as file:
        file.truncate(6 << 30)
    assert not is_complete(tmp_path / "a.png", (5, 7), 1)


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_generate_json_is_one_line(tmp_path, kind, bounded):
    from jobs.predict.generate import claim

    folder = tmp_path / "out"
    folder.mkdir()
    ODD[kind](folder / "generate.json")
    with pytest.raises(ConfigError, match=r"generate\.json: cannot be read; use another --out"):
        claim(Output("generate", folder), {"seed": 0}, overwrite=False)


def test_small_is_larger_than_what_runs_write():
    """A sweep of two thousand points, a chain of ten thousand jobs."""
    assert len(json.dumps([{"values": {"lr": "0.001"}, "run": "/" + "x" * 200}] * 2000, indent=1)) < SMALL
    assert len(json.dumps([{"id": "1234567", "kind": "chain", "time": 1234567890.1}] * 10_000, indent=1)) < SMALL
