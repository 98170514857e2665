"""Any value in any field of the files of a run: what is shown of it is plain, and nobody else's run is lost by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from odd_files import ODD, bounded, look, make_run

from jobs.cluster import show, status, steer
from jobs.cluster.slurm import Job
from jobs.config.specs import ConfigError
from jobs.run import find
from jobs.run.attempt import check_data
from jobs.run.find import find_run, read_jobs
from jobs.view.report import write_page

# --- values -----------------------------------------------------------------------------------------------------------
VALUES = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1e308",
    "-1e14",
    "1e-300",
    "1e14",
    "9" * 400,
    "-1",
    "0",
    "true",
    "null",
    '""',
    '"x"',
    "[]",
    "[1]",
    "{}",
    '{"a": 1}',
    '"\\u0000"',
    '"\\ud800"',
    '"\\u001b[2J"',
    '"\\u202e"',
    '"' + "x" * 100_000 + '"',
]
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
    monkeypatch.setattr("jobs.view.report.draw_panels", lambda runs: [])
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
        lines = [
            first,
            {"event": '"end"', "attempt": "1", name: value},
            second,
            {"event": '"decision"', "decision": value, "why": value},
        ]
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
    for point in (
        f'{{"values": {value}, "run": "/x"}}',
        f'{{"values": {{"lr": {value}}}, "run": "/x"}}',
        f'{{"values": {{"lr": "1"}}, "run": {value}}}',
        value,
    ):
        (folder / "sweep.json").write_text(f'{{"points": [{{"values": {{"lr": "1"}}, "run": "/y"}}, {point}]}}')
        if points := find.read_sweep(folder):
            show.show_sweep(points, [status.view_run(Path(p["run"]), {}) for p in points])
    (folder / "sweep.json").write_text(f'{{"points": {value}}}')
    find.read_sweep(folder)
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
@bounded
def test_an_odd_sweep_is_none(tmp_path, kind):
    run = make_run(tmp_path)
    ODD[kind](run.path / "sweep.json")
    assert find.read_sweep(run.path) is None
    assert find_run(str(run.path)) == run.path


def test_a_job_list_of_odd_words_is_read_without_them(tmp_path):
    run = make_run(tmp_path)
    about = {"job": "vae", "after": "/a\0b", "submitted": [{"id": 7}, "x", {"id": "8"}]}
    (run.path / "jobs.json").write_text(json.dumps(about))
    assert read_jobs(run.path) == {"job": "vae", "submitted": [{"id": "8"}]}


@pytest.mark.parametrize("after", ["x" * 5000, "/" + "y" * 300, "a\0b", "\u202e"])
def test_a_run_that_waits_for_no_path_leaves_the_table(tmp_path, after):
    run = make_run(tmp_path)
    (run.path / "jobs.json").write_text(json.dumps({"after": after, "submitted": [{"id": "7"}]}))
    job = Job("7", "PENDING", reason="Dependency", dependency="afterany:6")
    view = status.view_run(run.path, {"7": job})
    assert view.state == "queued" and view.note.startswith("waits for ")
