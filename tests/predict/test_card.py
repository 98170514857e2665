"""`predict.py card` and `film`: what a run's files say, as a model card and as films; nothing of the machine, and no
edit is overwritten."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys

import numpy as np
import pytest
from PIL import Image
from test_export import code_of
from test_predict import one_line
from test_written import frames_of, gan_file

from jobs.predict import card, film
from jobs.view.grids import image_grid, save_png

CONFIG = {
    "data": "/home/someone/ADNI/AD_NC", "resolution": 32, "channels": 1, "conditional": True, "batch": 64, "preset": "",
    "channel_base": 128, "gamma": 1.0,
}  # fmt: skip
FIGURES = {"fid": 12.3456, "fid_error": 0.5, "kid": 0.0123, "kid_sd": 0.001, "precision": 0.8, "recall": 0.4}
NOTE = "all held-out | slices are of <b>one</b> person"


@pytest.fixture
def run(tmp_path):
    """A run as its files say it, of which `evaluate` was made."""
    path = tmp_path / "ad|nc"
    (path / "predictions/evaluate").mkdir(parents=True)
    gan_file(path / "weights.safetensors")
    sha = hashlib.sha256((path / "weights.safetensors").read_bytes()).hexdigest()
    side = {"slices": 900, "subjects": 30, "describe": "folders: 900 slices of /home/someone/ADNI/x"}
    files = {
        "config.json": CONFIG,
        "data.json": {"classes": ["NC", "A`D"]},
        "provenance.json": {"version": "0.2.0", "git_commit": "abcde", "torch": "2.6", "host": "node-7", "argv": "/x"},
        "status.json": {"state": "done", "kimg": 5, "total_kimg": 5, "verdict": "MODE COLLAPSE at 4 kimg"},
        "predictions/evaluate/metrics.json": {
            "settings": {"weights_sha256": sha, "features": "encoder"},
            "distances": {"generated": FIGURES, "training slices": FIGURES | {"fid": 3.0}},
            "copying": {"pixels": {"below_5th_percentile": 0.06, "relative_ratio": 1.1}},
            "class_fidelity": {"accuracy": 0.7, "accuracy_of_heldout": 0.9},
            "data": {"train": side, "heldout": side | {"slices": 100}},
            "notes": [NOTE],
        },
    }  # fmt: skip
    for name, value in files.items():
        (path / name).write_text(json.dumps(value))
    for kimg in ("00000.000", "00001.500", "00003.000"):
        grey = np.full((4, 1, 32, 32), int(float(kimg) * 50), np.uint8)
        save_png(path / "samples" / f"{kimg}.png", image_grid(grey, 2))
    return path


# --- card -------------------------------------------------------------------------------------------------------------
def test_a_card_says_what_the_run_says_and_what_nobody_said(run):
    assert code_of("card", run) == 0
    text = (run / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert (
        "license: other\nlicense_name: terms-of-the-training-data" in head
        and "- type: fid\n" in head
        and "value: 12.3456" in head
    )
    assert "A StyleGAN2 that draws single slices" in body and "32 px, grey, of the classes NC, A&#96;D." in body
    assert "![what it makes](samples/00003.000.png)" in body
    assert (
        "| generated slices | 12.3 ± 0.5 | 12.3 ± 1 | 0.8 | 0.4 |" in body
        and "| real training slices | 3 ± 0.5 |" in body
    )
    assert "6.0 % nearer than the 5th percentile" in body and "0.700 of generated slices, 0.900 of held-out" in body
    assert "training: 900 slices of 30 people" in body and "MODE COLLAPSE at 4 kimg" in body
    assert body.count("To be filled in by hand") + body.count("to be filled in by hand") == 2
    assert "nobody can be recognised" in body
    assert "one number" not in body and NOTE not in body and "&lt;" not in body and "&#60;b&#62;" in body


def test_no_folder_host_or_command_line_is_in_a_card(run):
    assert code_of("card", run) == 0
    text = (run / "README.md").read_text()
    assert "someone" not in text and "node-7" not in text and "/x" not in text and str(run.parent) not in text
    assert "AD_NC" in text


def test_figures_of_other_weights_are_not_in_a_card(run):
    gan_file(run / "weights.safetensors", conditional=False)
    assert code_of("card", run) == 0
    text = (run / "README.md").read_text()
    assert "12.3" not in text and "`predict.py evaluate` does, then `card` again" in text


def test_phantoms_are_of_nobody(run):
    (run / "config.json").write_text(json.dumps(CONFIG | {"data": "phantom:200"}))
    assert code_of("card", run) == 0
    text = (run / "README.md").read_text()
    assert "license: mit\n" in text and "of nobody" in text and "filled in by hand" not in text


def test_a_card_is_written_again_but_an_edited_one_is_kept(run, tmp_path, capsys):
    assert code_of("card", run) == 0 and code_of("card", run) == 0
    edited = (run / "README.md").read_text().replace("**To be filled in by hand:**", "From our hospital:")
    (run / "README.md").write_text(edited)
    capsys.readouterr()
    said = one_line(capsys, code_of("card", run), 78)
    assert "is edited" in said and "--out" in said and (run / "README.md").read_text() == edited
    assert code_of("card", run, "--out", tmp_path / "other.md") == 0 and (tmp_path / "other.md").is_file()


def test_wrong_use_of_card(run, tmp_path, capsys):
    assert "name a file in it" in one_line(capsys, code_of("card", run, "--out", tmp_path), 2)
    (run / "config.json").unlink()
    assert "no config.json" in one_line(capsys, code_of("card", run), 78)
    (run / "weights.safetensors").unlink()
    assert "no weights yet" in one_line(capsys, code_of("card", run), 78)
    assert not (run / "README.md").exists()


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_hub_reads_the_metadata(run):
    from huggingface_hub import ModelCard

    assert code_of("card", run) == 0
    found = ModelCard((run / "README.md").read_text()).data
    assert "of encoder" in found.eval_results[0].metric_name
    assert found.license == "other" and found.pipeline_tag == "unconditional-image-generation"
    assert {r.metric_type: r.metric_value for r in found.eval_results}["kid"] == 0.0123
    assert found.model_name == "ad|nc" and found.eval_results[0].dataset_name == "AD_NC"


# --- film -------------------------------------------------------------------------------------------------------------
def test_a_film_has_a_frame_for_every_grid_in_order(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert code_of("film", "--run", run, "--fps", 10) == 0
    frames = frames_of(run / "predictions/film/3kimg-fps10/film.gif")
    assert [frame[-20, 20] for frame in frames] == [0, 75, 150]
    with Image.open(run / "predictions/film/3kimg-fps10/film.gif") as gif:
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert durations == [100, 100, 100 + 1000 * film.HOLD]  # equal frames are one
    said = capsys.readouterr().out
    assert "3 frames, 0 to 3 kimg" in said and "no film.mp4: imageio-ffmpeg is not installed, which nothing " in said
    assert said.endswith(": pip install imageio-ffmpeg\n")
    assert sorted(p.name for p in (run / "predictions/film/3kimg-fps10").iterdir()) == ["film.gif", "film.json"]


def test_grids_that_do_not_fit_are_left_out_and_named(run, capsys):
    of_before = image_grid(np.zeros((4, 1, 16, 16), np.uint8), 2)  # before the resolution was another
    save_png(run / "samples/00000.500.png", of_before)
    (run / "samples/00001.000.png").write_bytes(b"no picture")
    (run.parent / "elsewhere.png").write_bytes((run / "samples/00003.000.png").read_bytes())
    (run / "samples/00002.000.png").symlink_to(run.parent / "elsewhere.png")
    found = sorted((run / "samples").glob("0*.png"))
    frames, kimg = film.frames_of(found, run)
    assert kimg == ["0", "1.5", "3"] and len({frame.shape for frame in frames}) == 1
    said = capsys.readouterr().out
    assert all(f"{name}.png is left out" in said for name in ("00000.500", "00001.000", "00002.000"))


def test_wrong_use_of_film(run, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "name a folder" in one_line(capsys, code_of("film", "--run", run, "--out", tmp_path / "file"), 2)
    for path in sorted((run / "samples").glob("0*.png"))[1:]:
        path.unlink()
    assert "one grid of samples so far" in one_line(capsys, code_of("film", "--run", run), 78)
    assert not (run / "predictions/film").exists()


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="imageio_ffmpeg is not installed")
@pytest.mark.parametrize("channels", [1, 3])
def test_the_mp4_shows_the_same_frames(tmp_path, channels):
    import imageio_ffmpeg

    frames = np.full((4, channels, 41, 33), 20, np.uint8)  # odd sides, which H.264 has not
    frames[2:, :, :, 16:] = 200
    assert film.write_mp4(tmp_path / "film.mp4", frames, 5) == ""
    about, *found = imageio_ffmpeg.read_frames(str(tmp_path / "film.mp4"))
    shown = [np.frombuffer(f, np.uint8).reshape(42, 34, 3) for f in found]
    assert about["codec"] == "h264" and about["fps"] == 5 and len(shown) == 4
    for a, b in zip(shown, frames, strict=True):
        for x in (4, 28):
            assert abs(int(a[10, x, 0]) - int(b[0, 10, x])) < 8
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]


def test_quoted_text_is_plain():
    assert card.quoted("a/b (/home/x/data) |*`") == "a/b (data) &#124;&#42;&#96;"
    assert "\n" not in card.quoted("a\n# b") and "#" not in card.quoted("# b").replace("&#35;", "")
