"""The HTML page about runs: self-contained, escaped, and standing also where files are missing or hostile."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from test_predict import call, one_line

from jobs.config.specs import VaeConfig
from jobs.run.rundir import RunDir
from jobs.view.figures import digits, evaluations, reconstructions
from jobs.view.markup import picture
from jobs.view.plots import restarts_of
from jobs.view.report import attempts_table, curves, facts, machine_seconds, pick, run_names, write_page

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
        if tag not in ("meta", "img", "input"):
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
    lines = [
        dict(event="start", attempt=1, nimg=0, world=2, time=0.0),
        dict(event="end", attempt=1, seconds=600.0, nimg=2000),
        dict(event="start", attempt=2, nimg=2000, world=2, time=1000.0),
    ]
    run.attempts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluated = {
        "nimg": 4500,
        "compared": 20,
        "distances": {"generated": FIGURES, "training slices": {**FIGURES, "fid": 3.0}},
        "settings": {"features": "encoder v1"},
        "data": {"heldout": {"digest": "a", "slices": 20, "describe": "phantoms"}},
        "ms_ssim": {"AD": {"generated": {"mean": 0.5}, "held-out slices": {"mean": 0.4}}},
        "copying": {"pixels": {"below_5th_percentile": 0.06, "relative_ratio": 0.98}},
        "notes": ["a note"],
    }
    folder = run.path / "predictions" / "evaluate"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(evaluated | metrics))
    return run


def test_the_page_has_all_and_loads_nothing(tmp_path):
    run = make_run(tmp_path)
    page = Parsed(write_page([run]))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1 + 5 + 1 and all(i["src"].startswith("data:image/png;base64,") for i in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"(src|href)=\"?http", write_page([run]))
    for text in (
        "running",
        "4.5 of 10 thousand",
        "12.3 ± 0.5",
        "2.1 ± 0.4",
        "encoder v1",
        "generated 0.500",
        "6.0 % nearer",
        "a note",
        "phantom:20",
        "Attempts (2)",
        "real training slices (20)",
        "0 kimg",
        "8 kimg",
    ):
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
    assert [text for text in captions if "loss" in text] == ["loss, one, two", "loss, vae"]
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
    assert sources.count("data:image/gif;") == 2 and len(sources) == 1 + 5 + 1 + 4
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
    assert "there is no run" in one_line(capsys, call("report", tmp_path / "nothing"), 78)
    assert "a folder of runs, not a run; name one of them: run" in one_line(capsys, call("report", tmp_path), 2)
    assert "a folder" in one_line(capsys, call("report", run.path, "--out", tmp_path), 2)


# --- names that want to be markup -------------------------------------------------------------------------------------
EVIL = "<script>alert('x')<\\script> & \"onerror=\"alert(1)\nnext line"  # as a file may be called


def only_plain_markup(page: str) -> Parsed:
    """A page of known tags whose attributes are known, so that nothing in a name became one."""
    parsed = Parsed(page)
    tags = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "div",
        "table",
        "tr",
        "th",
        "td",
        "details",
        "summary",
        "figure",
        "figcaption",
        "img",
        "nav",
        "a",
        "section",
        "label",
        "input",
        "span",
    }
    allowed = {"charset", "name", "content", "lang", "class", "src", "alt", "open", "href", "id", "type"}
    assert {tag for tag, _ in parsed.tags} <= tags
    assert {name for _, attributes in parsed.tags for name in attributes} <= allowed
    assert "<script" not in page and 'onerror="' not in page
    return parsed


def test_names_of_runs_and_pictures_are_only_text(tmp_path):
    """Folders and files may be called anything: a run, its samples, the pictures that predict.py wrote."""
    one, two = make_run(tmp_path, EVIL), make_run(tmp_path, "<b>two</b>")
    grey = Image.fromarray(np.zeros((8, 8), np.uint8))
    for run in (one, two):
        for name in (f"00009{EVIL}.png", f"{EVIL}.png", "00009.5<b>.png"):
            grey.save(run.samples / name)
        (run.path / "predictions" / "generate").mkdir()
        grey.save(run.path / "predictions" / "generate" / "grid.png")
        about = {"mean and sd over subjects": {"psnr": [1, 2]}, "data": EVIL, "slices": EVIL}
        (run.path / "predictions" / "reconstruct").mkdir()
        (run.path / "predictions/reconstruct/reconstruct.json").write_text(json.dumps(about))
        evaluate = json.loads((run.path / "predictions/evaluate/metrics.json").read_text())
        evaluate["data"]["heldout"] = {"digest": EVIL, "slices": EVIL, "describe": EVIL}
        (run.path / "predictions/evaluate/metrics.json").write_text(json.dumps(evaluate))
    for runs in ([one], [two], [one, two]):
        page = only_plain_markup(write_page(runs))
        for run in runs:
            assert run.path.name in page.text
    alone = only_plain_markup(write_page([one]))
    assert EVIL in alone.text and any(
        EVIL in attributes.get("alt", "") for tag, attributes in alone.tags if tag == "img"
    )
    escaped = (
        EVIL.replace("&", "&amp;")
        .replace("<", "&lt;")
        .replace(">", "&gt;")
        .replace('"', "&quot;")
        .replace("'", "&#x27;")
    )
    assert f"<title>{escaped}</title>" in write_page([one]) and f"<h1>{escaped}</h1>" in write_page([one])


def test_a_long_cell_is_cut_before_it_is_escaped(tmp_path):
    """Cut afterwards, half an escape would be left."""
    run = make_run(tmp_path)
    run.write_config({"data": "<" * 501})
    page = only_plain_markup(write_page([run]))
    assert "<" * 500 in page.text and "&l\n" not in page.text and "<" * 501 not in page.text


# --- what stands where ------------------------------------------------------------------------------------------------
def cells_of(page: str, head: str) -> dict[str, list[str]]:
    """The rows of the first table whose head holds `head`: first cell -> the others; '' is the head itself."""
    for table in re.findall(r"<table>(.*?)</table>", page, re.S):
        rows = [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
        ]
        if rows and head in rows[0]:
            return {"": rows[0][1:]} | {row[0]: row[1:] for row in rows[1:]}
    raise AssertionError(head)


def test_every_figure_stands_in_its_column(tmp_path):
    real = {k: v * 2 for k, v in FIGURES.items()}
    fidelity = {"accuracy": 0.625, "accuracy_of_heldout": 0.875, "train_on_generated": 0.5}
    by_features = {"below_5th_percentile": 0.125, "relative_ratio": 0.75}
    counts = {"below_5th_percentile": 0.05, "relative_ratio": 1, "nearer_than_any": 61,
              "nearer_than_any_expected": 9.98, "four_times_nearer": 50, "chance": 2e-9}  # fmt: skip
    run = make_run(tmp_path, distances={"generated": FIGURES, "training slices": real}, class_fidelity=fidelity,
                   copying={"features": by_features, "pixels": counts})  # fmt: skip
    page = write_page([run])
    rows = cells_of(page, "FID")
    assert rows[""] == ["FID", "KID x 1000", "precision", "recall", "density", "coverage"]
    assert rows["run at 4.5 kimg"] == ["12.3 ± 0.5", "2.1 ± 0.4", "0.5", "0.25", "1.1", "0.75"]
    assert rows["real training slices (20)"] == ["24.7 ± 1", "4.2 ± 0.8", "1", "0.5", "2.2", "1.5"]
    text = Parsed(page).text
    assert "generated 0.625, held-out 0.875" in text
    assert (
        "copies by features12.5 % nearer than the 5th percentile of held-out slices (5 % is even), distance ratio 0.75"
        in text
    )
    assert "61 nearer than any held-out slice (10.0 expected), 50 four times nearer: COPIES (chance 2e-09)" in text
    assert "Features: encoder v1. Against 20 held-out slices: phantoms" in text


def test_reconstructions_stand_in_their_columns_and_by_their_slices(tmp_path):
    runs = [make_run(tmp_path, name) for name in ("a", "b", "c", "d")]
    for run, data, slices in zip(runs, ("x", "x", "y", "x"), (40, 40, 40, 41), strict=True):
        figures = {
            "psnr": [26.5, 1.2],
            "psnr_head": [20.25, 2],
            "ssim": [0.95, 0.01],
            "ssim_head": [0.8, 0.04],
            "l1": [0.015, 0.001],
        }
        about = {"mean and sd over subjects": figures, "data": data, "slices": slices, "nimg": 1000}
        (run.path / "predictions" / "reconstruct").mkdir()
        (run.path / "predictions/reconstruct/reconstruct.json").write_text(json.dumps(about))
    parts = "".join(reconstructions(runs, ["a", "b", "c", "d"]))
    assert parts.count("PSNR, dB") == 3  # other slices, or another number of them, are never set side by side
    rows = cells_of(parts, "PSNR, dB")
    assert rows[""] == ["PSNR, dB", "PSNR in the head, dB", "SSIM", "SSIM in the head", "L1"] and len(rows) == 3
    assert rows["b at 1 kimg"] == ["26.5 ± 1.2", "20.2 ± 2", "0.95 ± 0.01", "0.8 ± 0.04", "0.015 ± 0.001"]


def test_figures_of_other_held_out_slices_stay_apart(tmp_path):
    heldout = {"digest": "b", "slices": 20, "describe": "others"}
    one, two = make_run(tmp_path, "one"), make_run(tmp_path, "two", data={"heldout": heldout})
    assert "".join(evaluations([one, two], ["one", "two"])).count(">FID<") == 2


def test_samples_from_the_first_to_the_last_and_real_slices_behind_them(tmp_path):
    run = make_run(tmp_path)
    for name in ("reals.png", "mine.png"):
        Image.fromarray(np.full((8, 8), 200, np.uint8)).save(run.samples / name)
    (run.samples / "00009.000.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(17 << 20))  # larger than a page should be
    captions = [a["alt"] for tag, a in Parsed(write_page([run])).tags if tag == "img"]
    # The newest beside real slices first, then all; the last of five, 9, is too large.
    assert captions == ["samples at 8 kimg", "real slices", *(f"{k} kimg" for k in (0, 2, 4, 7)), "loss, run"]


def test_a_picture_is_known_by_how_it_begins(tmp_path):
    (tmp_path / "x.png").write_bytes(b"not GIF89a at its start \x89PNG\r\n\x1a\n")
    assert picture(tmp_path / "x.png", "x") == ""
    (tmp_path / "x.png").write_bytes(b"GIF87a...")
    assert 'src="data:image/gif;base64,R0lGODdhLi4u"' in picture(tmp_path / "x.png", "x")


def test_restarts_are_later_attempts(tmp_path):
    run = make_run(tmp_path)
    assert restarts_of(run) == [2.0]
    run.attempts.write_text(
        '{"event": "end", "nimg": 3000}\n{"event": "start", "nimg": 4500}\n{"event": "start", "nimg": true}\n'
    )
    assert restarts_of(run) == [4.5]


@pytest.mark.parametrize(
    ("status", "device", "expected"),
    [
        (
            {"state": "failed", "reason": "diverged", "kimg": 2, "total_kimg": 8},
            "cpu",
            ["failed (diverged)", "2 of 8 thousand", "0.33 hours on a CPU"],
        ),
        ({"state": "done", "reason": "finished"}, "H100", ["done", "unknown", "0.33 GPU hours"]),
        (
            {"state": "running", "kimg": True, "total_kimg": 8, "updated": 900.0},
            None,
            ["running", "unknown", "0.33 hours x processes"],
        ),
    ],
)
def test_the_facts_of_a_run(tmp_path, status, device, expected):
    run = make_run(tmp_path)
    (run.path / "status.json").write_text(json.dumps(status))
    (run.path / "provenance.json").write_text(json.dumps({"device": device}))
    found = facts(run, run.read_status(), {"data": "d", "resolution": 64})
    assert list(found.values()) == [
        "unknown kind",
        *expected,
        "d, 64 px",
        "none",
        "none",
        "loss_D 0.5, loss_G 5.5",
    ]  # an hour that lies ahead of the heartbeat costs nothing


def test_attempts_are_counted_by_their_starts_and_end_once(tmp_path):
    lines = [
        {"event": "start", "world": 2, "time": 0},
        {"event": "end", "seconds": 10},
        {"event": "end", "seconds": 99},
    ]
    assert machine_seconds(lines, {"updated": 1000}) == 20
    assert machine_seconds([{"event": "start", "world": 3, "time": 10}], {"updated": 14}) == 12
    table = attempts_table(
        [{"event": "start", "attempt": 1, "nimg": 1500, "reason": "r", "node": "n", "job_id": "j"}, lines[1]]
    )
    assert "Attempts (1)" in table
    assert cells_of(table, "reason")["1"][0] == "start" and cells_of(table, "reason")["1"][2:] == [
        "1.5",
        "",
        "r",
        "n",
        "j",
    ]


def test_digits():
    assert [digits(v, 3) for v in (0.0012345, 12.345, 123.4, 1234.5, -1234.5, 999.6)] == [
        "0.00123",
        "12.3",
        "123",
        "1234",
        "-1234",
        "1000",
    ]


def test_two_runs_of_one_name_are_told_apart(tmp_path):
    runs = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        runs.append(make_run(tmp_path / folder, "same"))
    assert run_names(runs) == [str(r.path) for r in runs] and run_names(runs[:1]) == ["same"]
    page = write_page(runs)
    assert "<h1>2 runs</h1>" in page and cells_of(page, str(runs[0].path))[""] == [str(r.path) for r in runs]


def test_configuration_and_provenance_are_folded_tables(tmp_path):
    run = make_run(tmp_path)
    (run.path / "provenance.json").write_text(json.dumps({"torch": "2.6", "argv": ["--lr", "1"]}))
    page = write_page([run])
    for title, rows in (
        ("Configuration", {"data": ["phantom:20"], "lr": ["0.002"], "preset": ["quickstart"], "resolution": ["32"]}),
        ("Provenance", {"argv": ["[&quot;--lr&quot;, &quot;1&quot;]"], "torch": ["2.6"]}),
    ):
        found = re.search(rf"<details><summary>{title}</summary>(.*?)</details>", page, re.S)
        table = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", found[1]))
        assert {k: [v] for k, v in table.items()} == rows


def test_only_runs_that_log_the_same_losses_are_drawn_over_each_other(tmp_path):
    one, two, vae, empty = (make_run(tmp_path, name) for name in ("one", "two", "vae", "empty"))
    vae.metrics.write_text('{"nimg": 500, "loss_pixels": 0.5}\n')
    empty.metrics.write_text('{"nimg": 500, "diversity": 0.5}\n')
    parts = "".join(curves([one, two, vae, empty], ["one", "two", "vae", "empty"]))
    assert re.findall('alt="(.*?)"', parts) == ["loss, one, two", "loss, vae", "diversity, empty"]
    assert re.findall('alt="(.*?)"', "".join(curves([one], ["one"]))) == ["loss, one"]


# --- the first screen -------------------------------------------------------------------------------------------------
def test_the_verdict_on_each_run_comes_first_then_pictures_then_curves(tmp_path):
    good, bad = make_run(tmp_path, "good"), make_run(tmp_path, "bad")
    good.write_config(asdict(VaeConfig()))
    status = {"state": "failed", "verdict": "MODE COLLAPSE: they are alike", "kimg": 5, "total_kimg": 8}
    (bad.path / "status.json").write_text(json.dumps(status))
    good.mark_done()
    good.metrics.write_text('{"nimg": 500, "loss_pixels": 0.5, "best_val_l1": 0.25, "best_kimg": 0.5}\n')
    page = write_page([good, bad])
    links = re.search("<nav>(.*?)</nav>", page)[1]
    assert re.findall('href="#(.*?)"', links) == ["Runs", "Pictures", "Curves", "Figures", "Settings"]
    assert re.findall('<section id="(.*?)"', page) == ["Runs", "Pictures", "Curves", "Figures", "Settings"]
    cards = re.findall(r'<div class="card"><h2>(.*?)</h2>(.*?)</figcaption>', page, re.S)
    assert [name for name, _ in cards] == ["good", "bad"] and page.index("</table>") > page.index(cards[1][1])
    assert '"state good">done</span> vae,' in cards[0][1] and "val_l1 0.25 at 0.5 kimg" in cards[0][1]
    assert "Nothing measured speaks against it" in cards[0][1] and "samples at 8 kimg" in cards[0][1]
    assert '"state bad">failed</span>' in cards[1][1] and "MODE COLLAPSE: they are alike" in cards[1][1]
    assert "Nothing measured speaks against it" not in cards[1][1]
    rows = cells_of(page, "good")  # a column for each run
    assert rows["state"] == ["done", "failed"] and rows["kind"] == ["vae", "unknown kind"]
    assert rows["last figures"][0] == "loss_pixels 0.5"


def test_what_two_runs_have_stands_side_by_side_and_how_they_differ(tmp_path):
    one, two = make_run(tmp_path, "one"), make_run(tmp_path, "two")
    two.write_config({"run": "x", "data": "phantom:20", "resolution": 32, "preset": "quickstart", "lr": 0.004})
    for run, file in ((one, "tsne/tsne"), (one, "generate/grid"), (two, "generate/grid"), (two, "mix/mix")):
        path = run.path / "predictions" / f"{file}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    page = write_page([one, two])
    rows = re.findall(r'<div class="pictures">(.*?)</div>', page, re.S)
    assert [re.findall('alt="(.*?)"', row) for row in rows] == [
        ["one: generated slices", "two: generated slices"],
        ["two: style mixing", "one: t-SNE"],
    ]
    assert re.findall("<h3>How they differ</h3>.*?</table>", page, re.S)[0].count("<tr>") == 2
    assert "<td>lr</td><td>0.002</td><td>0.004</td>" in page and "How they differ" not in write_page([one])


def test_a_picture_is_shown_in_its_own_size_by_a_box_that_is_ticked(tmp_path):
    page = write_page([make_run(tmp_path)])
    boxes = re.findall(r'<label><input type="checkbox"><span><img [^>]*></span></label>', page)
    assert len(boxes) == page.count("<img") and "input:checked + span img { max-width: none;" in page
