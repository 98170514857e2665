"""metrics.jsonl and its truncation, averages, TensorBoard, progress lines, plots and grids."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.view import grids, plots, progress
from jobs.view.grids import image_grid, save_png
from jobs.view.metrics import Averages, MetricsLog, read_metrics
from jobs.view.plots import plot_losses
from jobs.view.progress import Progress
from jobs.view.tensorboard import TensorBoard


def rows(*nimgs: int) -> list[dict]:
    return [{"nimg": n, "loss_G": 0.1 * n} for n in nimgs]


def write(path, *nimgs: int) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(*nimgs)))


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("resume", "kept"), [(-1, []), (0, [0]), (7, [0]), (8, [0, 8]), (20, [0, 8, 16]), (None, [0, 8, 16])]
)
def test_opening_keeps_the_rows_up_to_the_checkpoint(tmp_path, resume, kept):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 8, 16)
    log_ = MetricsLog(path, resume)
    assert read_metrics(path) == rows(*kept)
    log_.append({"nimg": 24})
    assert [row["nimg"] for row in read_metrics(path)] == [*kept, 24]


@pytest.mark.parametrize(
    "torn", ['{"nimg": 16, "lo', '{"nimg": 16}', "\x00\x00\x00", "{", "[" * 50_000 + "\n", '{"a": 1}\n', "\n"]
)
def test_what_a_killed_process_left_is_dropped(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 8)
    with open(path, "a") as file:
        file.write(torn)
    assert read_metrics(path) == rows(0, 8)
    MetricsLog(path, None).append({"nimg": 24})
    assert path.read_text().splitlines()[2:] == ['{"nimg": 24}']


def test_rows_survive_to_the_last_digit_and_the_file_is_not_rewritten_for_nothing(tmp_path):
    path, value = tmp_path / "metrics.jsonl", 0.1 + 0.2
    MetricsLog(path, -1).append(
        {"nimg": 8, "x": value, "n": np.float32(0.1), "t": torch.tensor(3), "flag": True, "note": "ä"}
    )
    (row,) = read_metrics(path)
    assert row == {"nimg": 8, "x": value, "n": float(np.float32(0.1)), "t": 3, "flag": True, "note": "ä"}
    inode = os.stat(path).st_ino
    MetricsLog(path, 8)
    assert os.stat(path).st_ino == inode


def test_not_finite_is_valid_json_and_says_so(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsLog(path).append({"nimg": 8, "a": float("nan"), "b": float("inf"), "c": 1.0})
    row = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert row == {"nimg": 8, "a": None, "b": None, "c": 1.0, "nonfinite": ["a", "b"]}


def test_every_row_is_on_disk_when_append_returns(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    log_ = MetricsLog(tmp_path / "m", -1)
    log_.append({"nimg": 8})
    log_.append({"nimg": 16})
    assert synced == [len('{"nimg": 8}\n'), len('{"nimg": 8}\n{"nimg": 16}\n')]


def test_rows_wait_for_a_full_disk(tmp_path, monkeypatch):
    path, said = tmp_path / "m", []
    log_ = MetricsLog(path, -1, say=said.append)
    log_.append({"nimg": 8})

    def full(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        log_.append({"nimg": 16})
        log_.append({"nimg": 24})
    with open(path, "a") as file:
        file.write('{"nimg": 24, "ha')  # what a real failure leaves
    log_.append({"nimg": 32})
    assert [row["nimg"] for row in read_metrics(path)] == [8, 16, 24, 32]
    assert len(said) == 1 and "No space left" in said[0]


def test_truncate_after_a_roll_back(tmp_path):
    log_ = MetricsLog(tmp_path / "m", -1)
    for n in (8, 16, 24):
        log_.append({"nimg": n})
    log_.truncate(8)
    log_.append({"nimg": 16, "again": 1})
    assert read_metrics(tmp_path / "m") == [{"nimg": 8}, {"nimg": 16, "again": 1}]


def test_reading_a_file_that_is_not_there(tmp_path):
    assert read_metrics(tmp_path / "no") == []


# --- averages ---------------------------------------------------------------------------------------------------------
def test_averages_resume_exactly():
    torch.manual_seed(0)
    values = [{"a": v, "b": float(v) * 2} | ({"rare": v} if i % 4 == 0 else {}) for i, v in enumerate(torch.randn(20))]
    whole, first = Averages(), Averages()
    for v in values:
        whole.add(v)
    for v in values[:9]:
        first.add(v)
    second = Averages()
    second.load_state_dict(first.state_dict())
    for v in values[9:]:
        second.add(v)
    assert second.means() == whole.means()
    assert whole.means()["a"] == pytest.approx(np.mean([float(v["a"]) for v in values]), rel=1e-12)
    assert whole.means()["rare"] == pytest.approx(np.mean([float(v["rare"]) for v in values[::4]]), rel=1e-12)
    whole.reset()
    assert whole.means() == {}


def test_averages_keep_no_graph_and_do_not_alias():
    averages, x = Averages(), torch.tensor(2.0, requires_grad=True, dtype=torch.float64)
    averages.add({"x": x * 1})
    value = torch.tensor(4.0, dtype=torch.float64)
    averages.add({"x": value, "y": value})
    value.fill_(100.0)
    state = averages.state_dict()
    assert averages.means() == {"x": 3.0, "y": 4.0} and not state["sums"]["x"].requires_grad


# --- TensorBoard ------------------------------------------------------------------------------------------------------
def test_tensorboard_hides_what_the_resumed_run_writes_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, purge_step=0)
    for n in (0, 8, 16, 24):
        first.scalars({"nimg": n, "kimg": n / 1000, "loss_G": float(n), "text": "x", "none": None}, n)
    first.image("samples", Image.new("L", (8, 8)), 8)
    first.image("samples", Image.new("RGB", (8, 8)), 16)
    first.close()
    second = TensorBoard(tmp_path, purge_step=16 + 1)
    second.scalars({"nimg": 24, "loss_G": 240.0}, 24)
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss/loss_G"] and events.Tags()["images"] == ["samples"]
    assert [(e.step, e.value) for e in events.Scalars("loss/loss_G")] == [(0, 0.0), (8, 8.0), (16, 16.0), (24, 240.0)]


def test_tensorboard_of_other_ranks_and_on_a_full_disk_does_nothing(tmp_path, monkeypatch):
    nobody = TensorBoard(None)
    nobody.scalars({"a": 1.0}, 0)
    nobody.image("x", Image.new("L", (2, 2)), 0)
    nobody.close()
    said = []
    board = TensorBoard(tmp_path, say=said.append)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board.writer, "add_scalar", full)
    board.scalars({"a": 1.0}, 0)
    board.scalars({"a": 1.0}, 8)
    board.close()
    assert len(said) == 1 and "No space left" in said[0]


# --- progress ---------------------------------------------------------------------------------------------------------
def test_plain_lines_in_a_log_file(capsys):
    progress = Progress(100_000, 0, interactive=False)
    progress.update(6_400)
    progress.tick(12_800, {"img_per_s": 41.2, "loss_D": 1.02, "loss_G": 0.85, "diversity": 0.9, "r1": None})
    progress.write("a note")
    progress.close()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "kimg 12.8/100.0  12.8%  img/s 41.2  sec/kimg 24.3  ETA 0:35:17  D 1.02  G 0.85  div 0.9"
    assert second == "a note"


def test_a_bar_on_a_terminal(capsys):
    progress = Progress(10_000, 2_000, interactive=True)
    progress.update(5_000)
    progress.tick(5_000, {"img_per_s": 100.0, "loss": 0.5})
    progress.write("a note")
    progress.close()
    out, err = capsys.readouterr()
    assert "5.0/10.0 kimg" in err and "loss 0.5" in err and "a note" in out
    assert Progress(1, 0).bar is None or sys.stderr.isatty()


def test_duration():
    assert [progress.duration(s) for s in (0, 59.6, 3599, 3600, 100_000)] == [
        "0:00:00",
        "0:01:00",
        "0:59:59",
        "1:00:00",
        "27:46:40",
    ]


# --- pictures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_spacing_and_contents(channels):
    images = np.random.default_rng(0).integers(60, 255, (5, channels, 7, 9), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3, pad=2))
    assert grid.shape[:2] == (2 * (7 + 2) + 2, 3 * (9 + 2) + 2)
    covered = np.zeros(grid.shape[:2], bool)
    for i in range(5):
        y, x = 2 + i // 3 * 9, 2 + i % 3 * 11
        expected = images[i, 0] if channels == 1 else images[i].transpose(1, 2, 0)
        assert np.array_equal(grid[y : y + 7, x : x + 9], expected)
        covered[y : y + 7, x : x + 9] = True
    assert (grid[~covered] == grids.BACKGROUND).all()  # nothing but even lines, and one empty place, between them


def test_captions_stay_out_of_the_pictures():
    images = np.full((4, 1, 32, 32), 60, np.uint8)
    options = dict(
        labels=["NC", "AD", "a very long caption indeed", ""], row_labels=["r0", "r1"], column_labels=["c0", "c1"]
    )
    plain, full = image_grid(images, 2), image_grid(images, 2, **options)
    assert full.width > plain.width and full.height == plain.height + 12 + 2 * 12
    pixels = np.asarray(full)
    left = full.width - plain.width
    for row in range(2):
        for column in range(2):
            y, x = 12 + 2 + row * (32 + 12 + 2), left + 2 + column * 34
            assert (pixels[y : y + 32, x : x + 32] == 60).all()
            caption = pixels[y + 32 : y + 44, x - 1 : x + 33]
            assert (caption.max() > 100) == (row * 2 + column != 3)
    assert pixels[:12].max() > 100 and pixels[:, :left].max() > 100


def test_grid_refuses_what_it_would_draw_wrong():
    for bad in (
        np.zeros((2, 1, 4, 4), np.float32),
        np.zeros((2, 4, 4), np.uint8),
        np.zeros((2, 2, 4, 4), np.uint8),
        np.zeros((0, 1, 4, 4), np.uint8),
    ):
        with pytest.raises(ValueError, match="uint8"):
            image_grid(bad, 2)


def test_png_with_text(tmp_path):
    save_png(tmp_path / "new" / "a.png", Image.new("L", (4, 4), 7), {"seed": "1", "run": "ä"})
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.text == {"seed": "1", "run": "ä"} and picture.getpixel((0, 0)) == 7


@pytest.mark.parametrize("count", [0, 1, 5, 60])
def test_plots_of_any_length(tmp_path, count):
    data = [
        {
            "nimg": i * 100,
            "loss_G": 1.0 + i,
            "loss_D": None if i == 3 else 2.0,
            "r1": 0.1,
            "diversity": 0.5,
            "diversity_AD": 0.4,
            "ada_p": 0.1,
        }
        for i in range(count)
    ]
    plot_losses(data, tmp_path / "plots" / "losses.png", restarts=[0.2])
    with Image.open(tmp_path / "plots" / "losses.png") as picture:
        assert picture.width > 800 and np.asarray(picture.convert("L")).std() > 1
    assert os.listdir(tmp_path / "plots") == ["losses.png"]


def test_plot_of_several_runs_and_a_window(tmp_path):
    data = [{"nimg": i * 1000, "loss": 1.0} for i in range(30)]
    plot_losses({"a": data, "b": data}, tmp_path / "both.png", from_kimg=5, to_kimg=20)
    assert (tmp_path / "both.png").stat().st_size > 5000


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert np.allclose(plots._smooth(np.full(100, 3.0)), 3.0)
    stepped = plots._smooth(np.r_[np.zeros(100), np.ones(100)])
    assert stepped[99] == 0 and 0.05 < stepped[100] < 0.5 and stepped[-1] > 0.99
