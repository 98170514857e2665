"""The HTML page about runs: self-contained, escaped, and standing also where files are missing or hostile."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_predict import call, one_line

from jobs.run.rundir import RunDir
from jobs.view.report import evaluations, machine_seconds, pick, write_page

FIGURES = {"fid": 12.345, "fid_error": 0.5, "kid": 0.0021, "kid_sd": 0.0004, "precision": 0.5, "recall": 0.25,
           "density": 1.1, "coverage": 0.75}  # fmt: skip


class Parsed(HTMLParser):
    """Tags, their attributes and the text of a page; complains of tags that are not closed."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(page)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def make_run(path, name="run", **metrics) -> RunDir:
    run = RunDir(path / name)
    run.create()
    run.write_config({"data": "phantom:20", "resolution": 32, "preset": "quickstart", "lr": 0.002})
    rows = [{"nimg": n, "loss_G": 1 + n / 1000, "loss_D": 0.5} for n in range(0, 5000, 500)]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kimg in range(9):
        Image.fromarray(np.full((8, 8), kimg, np.uint8)).save(run.samples / f"{kimg:05d}.000.png")
    (run.path / "status.json").write_text(
        json.dumps({"state": "running", "kimg": 4.5, "total_kimg": 10, "updated": 1300.0})
    )
    lines = [dict(event="start", attempt=1, nimg=0, world=2, time=0.0), dict(event="end", attempt=1, seconds=600.0, nimg=2000),
             dict(event="start", attempt=2, nimg=2000, world=2, time=1000.0)]  # fmt: skip
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluated = {"nimg": 4500, "compared": 20, "distances": {"generated": FIGURES, "training slices": {**FIGURES, "fid": 3.0}},
                 "settings": {"features": "encoder v1"}, "data": {"heldout": {"digest": "a", "slices": 20, "describe": "phantoms"}},
                 "ms_ssim": {"AD": {"generated": {"mean": 0.5}, "held-out slices": {"mean": 0.4}}},
                 "copying": {"pixels": {"below_5th_percentile": 0.06, "relative_ratio": 0.98}}, "notes": ["a note"]}  # fmt: skip
    folder = run.path / "predictions" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(evaluated | metrics))
    return run


def test_the_page_has_all_and_loads_nothing(tmp_path):
    run = make_run(tmp_path)
    page = Parsed(write_page([run]))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + 5 and all(i["src"].startswith("data:image/png;base64,") for i in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href)=\"?http", write_page([run]))
    for text in ("running", "4.5 of 10 thousand", "12.3 ± 0.5", "2.1 ± 0.4", "encoder v1", "generated 0.500", "6.0 % below",
                 "a note", "phantom:20", "Attempts (2)", "real training slices (20)", "0 kimg", "8 kimg"):  # fmt: skip
        assert text in page.text, text
    assert "0.50 hours x processes" in page.text  # 2 x 600 s, and 2 x 300 s up to the heartbeat
    (run.path / "provenance.json").write_text(json.dumps({"device": "NVIDIA A100"}))
    assert "0.50 GPU hours" in write_page([run])


def test_hostile_files_are_only_text(tmp_path):
    evil = '<script>alert("x")</script>'
    run = make_run(tmp_path, settings={"features": evil}, notes=[evil], ms_ssim={evil: {evil: {"mean": 0.5}}})
    run.write_config({"data": evil, evil: evil, "deep": {"a": [evil]}})
    (run.path / "status.json").write_text(json.dumps({"state": evil, "reason": evil, "kimg": evil}))
    (run.path / "provenance.json").write_text(json.dumps({"argv": [evil], "device": [evil]}))
    run.attempts.write_text(
        json.dumps({"event": evil, "time": evil, "nimg": evil, "reason": evil, "node": [evil]}) + "\n"
    )
    (run.samples / "00003.000.png").write_text(evil)
    page = write_page([run])
    assert "<script" not in page and page.count("&lt;script&gt;") > 8
    Parsed(page)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"distances": 3}', '{"distances": {"generated": 1}, "data": []}']
)
def test_broken_files_are_left_out(tmp_path, content):
    run = make_run(tmp_path)
    for path in (
        run.path / "predictions/evaluate/metrics.json",
        run.path / "status.json",
        run.path / "provenance.json",
    ):
        path.write_text(content)
    run.attempts.write_text(content + "\n")
    Parsed(write_page([run]))
    assert "nothing else" not in Parsed(write_page([RunDir(tmp_path / "empty")])).text  # no file at all


def test_figures_of_different_features_stay_apart(tmp_path):
    one, two = make_run(tmp_path, "one"), make_run(tmp_path, "two")
    other = make_run(tmp_path, "other", settings={"features": "Inception v3"})
    parts = "".join(evaluations([one, two, other], ["one", "two", "other"]))
    assert parts.count(">FID<") == 2 and parts.count("real training slices") == 2
    fewer = make_run(tmp_path, "fewer", compared=10)  # a distance of fewer slices is larger by that alone
    assert "".join(evaluations([one, fewer], ["one", "fewer"])).count(">FID<") == 2
    vae = make_run(tmp_path, "vae")
    vae.metrics.write_text('{"nimg": 500, "loss_pixels": 0.5}\n{"nimg": 1000, "loss_pixels": 0.4}\n')
    page = Parsed(write_page([one, two, vae]))
    captions = [attributes.get("alt") for tag, attributes in page.tags if tag == "img"]
    assert captions[0] == "one, two" and captions.count("losses over images seen; dotted: restarts") == 3
    page = Parsed(write_page([one, two, other]))
    assert "<h1>3 runs</h1>" in write_page([one, two, other]) and "other at 4.5 kimg" in page.text


def test_pictures_and_reconstructions_where_predict_writes_them(tmp_path):
    run = make_run(tmp_path)
    for name in (
        "reconstruct/reconstruct.png",
        "denoise/denoise.png",
        "denoise/denoise.gif",
        "interpolate/interpolate.gif",
    ):
        (run.path / "predictions" / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(run.path / "predictions" / name)
    figures = {"psnr": [26.54, 1.25], "ssim": [0.9, 0.01], "psnr_head": [None, 0.0], "l1": "x"}
    about = {"mean and sd over subjects": figures, "data": "phantoms, split val", "slices": 40, "nimg": 2000}
    (run.path / "predictions/reconstruct/reconstruct.json").write_text(json.dumps(about))
    page = Parsed(write_page([run]))
    sources = [attributes["src"][:15] for tag, attributes in page.tags if tag == "img"]
    assert sources.count("data:image/gif;") == 2 and len(sources) == 1 + 5 + 4
    assert "26.5 ± 1.2" in page.text and "phantoms, split val" in page.text and "run at 2 kimg" in page.text


def test_helpers():
    assert pick(list(range(9)), 5) == [0, 2, 4, 6, 8] and pick([1, 2], 5) == [1, 2]
    assert machine_seconds([{"event": "start", "world": 4}, {"event": "end", "seconds": 10}], {}) == 40
    assert machine_seconds([{"event": "start", "time": 5, "world": "x"}], {"updated": 9}) == 4
    assert machine_seconds([{"event": "end", "seconds": 3}], {}) == 0


def test_the_command(tmp_path, capsys):
    run = make_run(tmp_path)
    assert call("report", run.path) == 0 and (run.path / "report.html").read_text().startswith("<!doctype html>")
    assert call("report", run.path, run.path, "--out", tmp_path / "page.html") == 0
    assert "<title>run</title>" in (tmp_path / "page.html").read_text()  # one run, named twice
    capsys.readouterr()
    assert "no such run directory" in one_line(capsys, call("report", tmp_path / "nothing"), 78)
    assert "no config.json" in one_line(capsys, call("report", tmp_path), 78)
    assert "a folder" in one_line(capsys, call("report", run.path, "--out", tmp_path), 2)
