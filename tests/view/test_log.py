"""metrics.jsonl and its truncation, averages, TensorBoard, progress lines, plots and grids."""

from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.training.averages import Averages
from jobs.view import grids, metrics, plots, tensorboard
from jobs.view import progress as progress_module
from jobs.view.grids import image_grid, save_png
from jobs.view.metrics import MetricsLog, read_metrics
from jobs.view.plots import Curves, plot_losses
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


@pytest.mark.parametrize("at", ["open", "fsync"])
def test_rows_that_wait_for_a_full_disk_can_be_taken_back_too(tmp_path, monkeypatch, at):
    """Whether nothing of them has reached the file, or all of it and only the fsync failed."""
    log_ = MetricsLog(tmp_path / "m", -1, say=lambda text: None)

    def full(*args):
        raise OSError(28, "No space left on device")

    log_.append({"nimg": 8})
    with monkeypatch.context() as patch:
        patch.setattr(metrics if at == "open" else os, at, full, raising=False)
        for nimg in (16, 24, 32):
            log_.append({"nimg": nimg})
    log_.truncate(24)
    log_.append({"nimg": 40})
    log_.append({"nimg": 48})
    assert [row["nimg"] for row in read_metrics(tmp_path / "m")] == [8, 16, 24, 40, 48]


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
@pytest.fixture(autouse=True)
def files_in_order(monkeypatch):
    """TensorBoard reads its files by name: second, host, process, count. Two of one second are in order while the count
    has as many digits. Attempts are seconds apart, but a process of tests may be at nine."""
    from tensorboard.summary.writer import event_file_writer as writers

    monkeypatch.setattr(writers, "_global_uid", writers.AtomicCounter(100))


def test_tensorboard_hides_what_the_resumed_run_writes_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = TensorBoard(tmp_path, purge_step=0)
    for n in (0, 8, 16, 24):
        first.scalars({"nimg": n, "kimg": n / 1000, "loss_G": float(n), "text": "x", "none": None}, n)
    first.image("samples", Image.new("L", (9, 5)), 8)
    first.image("samples", Image.new("RGB", (9, 5)), 16)
    first.close()
    second = TensorBoard(tmp_path, purge_step=16 + 1)
    second.scalars({"nimg": 24, "loss_G": 240.0}, 24)
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["1_loss/loss_G"] and events.Tags()["images"] == ["samples"]
    assert [(e.step, e.value) for e in events.Scalars("1_loss/loss_G")] == [(0, 0.0), (8, 8.0), (16, 16.0), (24, 240.0)]
    assert [(e.step, e.width, e.height) for e in events.Images("samples")] == [(8, 9, 5), (16, 9, 5)]


def test_tensorboard_shows_one_curve_after_every_way_back(tmp_path):
    """A roll-back, a kill with a resume from the newest checkpoint, and a resume from the one before it."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    def shown() -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return [(e.step, float(e.tensor_proto.float_val[0])) for e in events.Tensors("1_loss/loss_G")]

    def write(board: TensorBoard, *steps: int, sign: float = 1.0) -> None:
        for n in steps:
            board.scalars({"loss_G": sign * n}, n)

    first = TensorBoard(tmp_path, purge_step=0)
    write(first, 0, 8, 16, 24)
    first.rewind(8)
    assert shown() == [(0, 0.0), (8, 8.0)]
    write(first, 12, 20, sign=-1)  # at other places, as where --override changed the interval
    assert shown() == [(0, 0.0), (8, 8.0), (12, -12.0), (20, -20.0)]
    for back, kept in ((12, [(0, 0.0), (8, 8.0), (12, -12.0)]), (8, [(0, 0.0), (8, 8.0)])):
        board = TensorBoard(tmp_path, purge_step=back + 1)  # the one before was killed
        write(board, 24)
        assert shown() == [*kept, (24, 24.0)]
    TensorBoard(None).rewind(8)


def test_a_row_is_in_tensorboards_file_at_once(tmp_path):
    """A killed process does not flush."""
    board = TensorBoard(tmp_path)
    (path,) = tmp_path.iterdir()
    sizes = [path.stat().st_size]
    for nimg in (8, 16):
        board.scalars({"loss": float(nimg)}, nimg)
        sizes.append(path.stat().st_size)
    assert sizes[0] < sizes[1] < sizes[2]
    board.close()


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("1_loss", "loss loss_G loss_D loss_pixels"),
        ("5_discriminator", "logits_real logits_fake logits_held sign_real"),
        ("6_regularisers", "r1 r2 path_length pl_penalty pl_mean kl"),
        ("4_health", "diversity diversity_AD ada_p r_t r_v"),
        ("9_speed", "img_per_s sec_per_kimg gpu_gb gpu_util data_wait checkpoint_wait tflops peak_share"),
        ("8_optimiser", "lr grad_norm"),
        ("3_validation", "val_psnr"),
        ("other", "what_nobody_named"),
    ],
)
def test_columns_of_a_kind_stand_together_in_tensorboard(group, names):
    assert [tensorboard._tag(name) for name in names.split()] == [f"{group}/{name}" for name in names.split()]


def test_the_configuration_is_a_text_and_a_row_of_the_table_of_runs(tmp_path):
    """As the page reads them: markup of others is code, and the table's rows begin with what differs between runs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

    board = TensorBoard(tmp_path)
    board.about({"lr": 0.5, "data": "a|b`<b>", "hflip": True, "crop": ""}, 8)
    board.image("samples", grids.beside_reals(Image.new("L", (9, 5), 7), tmp_path / "none.png"), 8)
    board.close()
    TensorBoard(None).about({}, 0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (text,) = events.Tensors("config/text_summary")
    rows = text.tensor_proto.string_val[0].decode().splitlines()
    assert text.step == 8 and rows[2:] == ["|`crop`||", "|`data`|`a/b'<b>`|", "|`hflip`|`True`|", "|`lr`|`0.5`|"]
    of = events.SummaryMetadata(SESSION_START_INFO_TAG).plugin_data.content
    given = parse_session_start_info_plugin_data(of).hparams
    assert (
        given["lr"].number_value == 0.5
        and given["data"].string_value == "a|b`<b>"
        and given["hflip"].string_value == "True"
    )


def test_real_slices_stand_beside_the_samples(tmp_path):
    samples = Image.fromarray(np.full((30, 20), 60, np.uint8))
    assert grids.beside_reals(samples, tmp_path / "none.png").size == (20, 48)
    save_png(tmp_path / "reals.png", Image.fromarray(np.full((40, 24, 3), 90, np.uint8)))
    both = np.asarray(grids.beside_reals(samples, tmp_path / "reals.png"))
    assert both.shape == (58, 52) and (both[18:48, :20] == 60).all() and (both[18:, 28:] == 90).all()
    (tmp_path / "reals.png").write_bytes(b"no picture")
    assert grids.beside_reals(samples, tmp_path / "reals.png").size == (20, 48)


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
    assert first == "kimg 12.8/100.0  12.8%  img/s 41.2  sec/kimg 24.3  ETA 35:17  D 1.02  G 0.85  div 0.9"
    assert second == "a note"


def test_lines_of_a_small_run_and_of_one_that_has_seen_more_than_it_should(capsys):
    progress = Progress(1_000, 0, interactive=False)
    row = {
        "img_per_s": 10.0,
        "peak_share": 0.312,
        "data_wait": 0.005,
        "checkpoint_wait": 0.002,
        "loss_G": 1.0,
        "kl": 20.0,
    }
    progress.tick(250, row)
    progress.tick(1_500, {"img_per_s": 10.0})
    assert capsys.readouterr().out.splitlines() == [
        "kimg 0.250/1.000  25.0%  img/s 10.0  sec/kimg 100.0  peak 31%  data 0.5%  save 0.2%  ETA 1:15  G 1  kl 20",
        "kimg 1.500/1.000  100.0%  img/s 10.0  sec/kimg 100.0  ETA 0:00",
    ]


def test_a_row_without_a_speed_is_told_by_the_speed_since_the_start(capsys, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    progress = Progress(20_000, 4_000, interactive=False)
    now[0] += 100.0
    progress.tick(6_000, {})
    assert "img/s 20.0  sec/kimg 50.0  ETA 11:40" in capsys.readouterr().out
    progress = Progress(20_000, 4_000, interactive=False)
    progress.tick(4_000, {})
    assert "img/s 0.0  sec/kimg ?  ETA ?" in capsys.readouterr().out


def test_a_bar_begins_where_the_run_does():
    progress = Progress(10_000, 2_000, interactive=True)
    assert (progress.bar.n, progress.bar.total) == (2.0, 10.0)
    progress.update(5_000)
    assert progress.bar.n == 5.0
    progress.close()


def test_a_bar_on_a_terminal(capsys):
    progress = Progress(10_000, 2_000, interactive=True)
    progress.update(5_000)
    progress.tick(5_000, {"img_per_s": 100.0, "loss": 0.5})
    progress.write("a note")
    progress.close()
    out, err = capsys.readouterr()
    assert "5.0/10.0 kimg" in err and "loss 0.5" in err and "a note" in out
    assert Progress(1, 0).bar is None or sys.stderr.isatty()


# --- pictures ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("channels", [1, 3])
def test_grid_spacing_and_contents(channels):
    images = np.random.default_rng(0).integers(60, 255, (5, channels, 7, 9), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3))
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


def test_each_caption_stands_at_its_own_place():
    """Short ones have less ink than long ones, so that an exchange is seen."""
    images, texts = np.full((6, 1, 40, 40), 60, np.uint8), ["I", "WWW", "i", "WW", "MMM", ""]
    rows, columns = ["I", "WWWWW"], ["l", "WWW", "WWWWW"]
    grid = np.asarray(image_grid(images, 3, labels=texts, row_labels=rows, column_labels=columns)) > 100
    left = grid.shape[1] - (3 * 42 + 2)
    below = [
        grid[14 + 54 * r + 40 : 14 + 54 * r + 52, left + 42 * c : left + 42 * c + 44].sum()
        for r in range(2)
        for c in range(3)
    ]
    assert below[0] < below[3] < below[1] and below[2] < below[3] < below[4] and below[5] == 0
    beside = [grid[14 + 54 * r : 14 + 54 * r + 40, :left].sum() for r in range(2)]
    above = [grid[:12, left + 42 * c : left + 42 * c + 44].sum() for c in range(3)]
    assert 0 < beside[0] < beside[1] and 0 < above[0] < above[1] < above[2]


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


def test_a_picture_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path, monkeypatch):
    save_png(tmp_path / "a.png", Image.new("L", (4, 4), 7))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        save_png(tmp_path / "a.png", Image.new("L", (4, 4), 9))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.getpixel((0, 0)) == 7 and os.listdir(tmp_path) == ["a.png"]


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
    plot_losses({"a run": Curves(data, [0.2], 50)}, tmp_path / "plots" / "losses.png")
    with Image.open(tmp_path / "plots" / "losses.png") as picture:
        assert picture.width > 800 and np.asarray(picture.convert("L")).std() > 1
    assert os.listdir(tmp_path / "plots") == ["losses.png"]


def test_plot_of_several_runs_and_a_window_in_the_format_of_its_suffix(tmp_path):
    data = [{"nimg": i * 1000, "loss": 1.0} for i in range(30)]
    for name, start in (("both.png", b"\x89PNG"), ("both.PDF", b"%PDF"), ("both.svg", b"<?xml")):
        plot_losses(dict.fromkeys("ab", Curves(data).between(5, 20)), tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000 and (tmp_path / name).read_bytes().startswith(start)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """The figures that are drawn, to look into instead of at."""
    from matplotlib.figure import Figure

    figures, real = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), real(self, *args, **kwargs))
    )
    return figures


def test_panels_hold_the_columns_of_their_kind(tmp_path, drawn):
    row = dict.fromkeys(
        "loss_G loss_D logits_real r1 path_length pl_mean diversity diversity_AD ada_p val_psnr train_psnr lr".split(),
        1.0,
    )
    row |= {"val_loss": 1.0, "val_loss_0": 1.0, "lossless": 1.0, "latent_std": 1.0, "note": "x"}
    row |= {"kid": 1.0, "kid_train": 0.1, "coverage": 0.0, "r2": 0.0, "pl_penalty": 0.0}
    plot_losses({"a": Curves([{"nimg": 0, **row, "ada_p": 0.0}, {"nimg": 2000, **row}])}, tmp_path / "p.png")
    panels = {axis.get_title(loc="left"): sorted(line.get_label() for line in axis.lines) for axis in drawn[0].axes}
    assert panels == {
        "loss": ["loss_D", "loss_G"],
        "D's logits": ["logits_real"],
        "regularisers": ["path_length", "r1"],
        "diversity": ["as varied as real slices", "diversity", "diversity_AD"],
        "ADA's p, and what it steers by": ["ada_p"],
        "loss on other patients": ["val_loss", "val_loss_0"],
        "KID": ["kid", "kid, real slices"],
        "precision, recall, coverage": ["coverage"],  # nothing covered is a figure, no penalty is switched off
        "PSNR of reconstructions, dB": ["train_psnr", "val_psnr"],
        "spread of the latents": ["latent_std"],
    }


def test_curves_are_values_over_kimg_inside_the_window_with_lines_where_attempts_began(tmp_path, drawn):
    data = [{"nimg": i * 1000, "loss": float(i * i)} for i in range(30)]
    runs = {"a": Curves(data, [1.0, 5.5, 8.0], 2000), "b": Curves(data[:5], [], 2000)}
    plot_losses({name: run.between(3, 12) for name, run in runs.items()}, tmp_path / "p.png")
    a, *began, b = drawn[0].axes[0].lines
    assert list(a.get_xdata()) == list(range(3, 13)) and list(a.get_ydata()) == [i * i for i in range(3, 13)]
    assert list(b.get_xdata()) == [3, 4] and [list(line.get_xdata()) for line in began] == [[5.5, 5.5], [8.0, 8.0]]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["a", "b", "a later attempt began"]
    (above,) = drawn[0].axes[0].child_axes  # 2,000 images are an epoch
    low, high = drawn[0].axes[0].get_xlim()
    assert above.get_xlim() == pytest.approx((low / 2, high / 2)) and "2,000" in above.get_xlabel()
    plot_losses({"a": Curves(data, epoch=2000), "b": Curves(data)}, tmp_path / "p.png")
    assert not drawn[1].axes[0].child_axes  # of runs whose epochs differ there is no such axis


def test_a_colour_is_a_run_and_a_kind_of_line_a_column(tmp_path, drawn):
    """Of a single run a colour is a column, and its figures of real slices are dotted."""
    data = [{"nimg": n, "kid": 1.0, "kid_train": 0.5, "loss_D": 1.0, "loss_G": 2.0} for n in (0, 1000)]

    def looks(figure) -> list[list[tuple]]:
        return [[(line.get_color(), line.get_linestyle()) for line in axis.lines] for axis in figure.axes]

    plot_losses({"a": Curves(data), "b": Curves(data)}, tmp_path / "p.png")
    plot_losses({"a": Curves(data)}, tmp_path / "p.png")
    both = [("C0", "-"), ("C0", "--"), ("C1", "-"), ("C1", "--")]
    assert looks(drawn[0]) == [both, both]
    assert looks(drawn[1]) == [[("C0", "-"), ("C1", "-")], [("C0", "-"), ("C0", ":")]]
    names = [[text.get_text() for text in axis.get_legend().get_texts()] for axis in drawn[0].axes]
    assert names == [["loss_D", "loss_G"], ["kid", "kid, real slices"]]
    for axis in drawn[0].axes:  # beside the curves, never on them
        assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1
    assert [figure._suptitle.get_text() for figure in drawn] == ["2 runs", "a"]


def test_every_panel_can_be_had_by_itself(drawn):
    data = [{"nimg": n, "loss_D": 1.0, "diversity": 0.5} for n in (0, 1000)]
    found = plots.draw_panels({"a": Curves(data, [0.5])})
    assert [title for title, _ in found] == ["loss", "diversity"] and len(drawn) == 2
    assert all(png.startswith(b"\x89PNG") for _, png in found)


def test_a_long_curve_is_pale_with_its_smoothed_line_on_top(tmp_path, drawn):
    data = [{"nimg": i * 1000, "loss": float(i % 2)} for i in range(200)]
    for count in (20, 21, 200):
        plot_losses({"a": Curves(data[:count])}, tmp_path / "p.png")
    assert [len(figure.axes[0].lines) for figure in drawn] == [1, 2, 2]
    raw, smooth = (line.get_ydata() for line in drawn[2].axes[0].lines)
    assert list(raw) == [i % 2 for i in range(200)] and np.ptp(smooth[50:]) < 0.11  # over ten points
    assert list(smooth[:2]) == pytest.approx([0.0, 1 / 1.9])  # the mean of 0 and 1, the newer with more weight
    assert drawn[2].axes[0].lines[1].get_label() == "loss"


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert np.allclose(plots._smooth(np.full(100, 3.0)), 3.0)
    stepped = plots._smooth(np.r_[np.zeros(100), np.ones(100)])
    assert stepped[99] == 0 and 0.05 < stepped[100] < 0.5 and stepped[-1] > 0.99
