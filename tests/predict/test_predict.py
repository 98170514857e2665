"""predict.py on tiny random generators: which picture comes from which latent, what is written, and what is refused."""

import hashlib
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file

import predict
from data.images import fit_square
from jobs.config.specs import ConfigError
from jobs.predict import generate, trained
from jobs.predict.gan import GanModel
from jobs.training.weights import write_weights
from jobs.view.grids import BACKGROUND
from jobs.view.pictures import gif_of
from models import loading
from models.stylegan2 import Generator
from models.styles import slerp, style_layers

CONFIG = dict(
    resolution=32, channels=1, conditional=True, z_dim=16, w_dim=16, mapping_layers=2, channel_base=256, channel_max=8
)
GEOMETRY = dict(source_height=256, source_width=240, square=256, crop=0, resolution=32)
CLASSES = ["AD", "NC"]


def make_generator(seed=0, **changes) -> Generator:
    config = CONFIG | changes
    torch.manual_seed(seed)
    classes = len(CLASSES) if config.pop("conditional") else 0
    G = Generator(**config, num_classes=classes)
    with torch.no_grad():  # away from the start of training, where noise does nothing and the average w is zero
        G.w_avg.normal_()
        for layer in G.layers:
            layer.noise_strength.fill_(0.3)
    return G


def write(path, G, about=None, **changes):
    whole = {"job": "stylegan2", "config": CONFIG | changes, "classes": CLASSES, "geometry": GEOMETRY, "nimg": 24000}
    write_weights(path, {"G_ema": G.state_dict()}, whole | (about or {}))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with weights of two classes."""
    path = tmp_path_factory.mktemp("runs") / "run"
    path.mkdir()
    write(path / "weights.safetensors", make_generator())
    return path


def call(*argv) -> int:
    return predict.main(predict.parse_args(predict.__doc__, [str(a) for a in argv]))


def read(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def pictures(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("[0-9]*.png")}


def one_line(capsys, code: int, expected: int) -> str:
    text = capsys.readouterr().err
    assert code == expected and text.startswith("error: ") and text.count("\n") == 1, text
    return text


# --- generate --------------------------------------------------------------------------------------------------------
def test_generate_writes_pictures_of_the_original_size_a_grid_and_json(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("generate", "--run", run, "--number", 5, "--out", out) == 0
    names = ["000000_AD.png", "000001_NC.png", "000002_AD.png", "000003_NC.png", "000004_AD.png"]
    assert sorted(pictures(out)) == names
    assert {read(out / name).shape for name in names} == {(256, 240)}
    about = json.loads((out / "generate.json").read_text())
    digest = hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()
    assert about["settings"]["weights_sha256"] == digest and about["settings"]["truncation"] == 1.0
    assert len(set(about["z_seeds"])) == 5 and about["number"] == 5 and about["nimg"] == 24000
    assert Image.open(out / names[3]).text == {"index": "3", "seed": "0", "weights_sha256": digest}
    grid = read(out / "grid.png")  # 3 columns, 2 rows, spaced by 2, captions of 12
    assert grid.shape == (2 + 2 * (256 + 12 + 2), 2 + 3 * 242)
    for i, name in enumerate(names):
        y, x = 2 + i // 3 * 270, 2 + i % 3 * 242
        np.testing.assert_array_equal(grid[y : y + 256, x : x + 240], read(out / name))
    printed = capsys.readouterr().out
    assert str(out / "grid.png") in printed and str(out / "generate.json") in printed


def test_default_folders(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("generate", "--run", run, "--number", 1) == 0
    assert (run / "predictions/generate/24kimg/000000_AD.png").is_file()
    assert call("generate", "--weights", run / "weights.safetensors", "--number", 1) == 0
    assert (tmp_path / "predictions/generate/run-24kimg/000000_AD.png").is_file()


def test_a_picture_is_that_of_the_network_alone(run, tmp_path):
    """Against the generator called by hand, at the training square."""
    assert call("generate", "--run", run, "--number", 2, "--noise", "fixed", "--square", "--out", tmp_path) == 0
    about = json.loads((tmp_path / "generate.json").read_text())
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(about["z_seeds"][1]))
    with torch.no_grad():
        image = make_generator()(z, torch.tensor([1]))[0, 0]
    expected = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    np.testing.assert_array_equal(read(tmp_path / "000001_NC.png"), expected)
    assert expected.std() > 10


@pytest.mark.parametrize("noise", ["random", "fixed"])
def test_batch_and_number_do_not_change_a_picture(run, tmp_path, noise):
    flags = ("generate", "--run", run, "--seed", 3, "--noise", noise)
    assert call(*flags, "--number", 7, "--batch", 3, "--out", tmp_path / "a") == 0
    assert call(*flags, "--number", 4, "--batch", 32, "--out", tmp_path / "b") == 0
    a, b = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert len(a) == 7 and len(b) == 4 and b.items() <= a.items()
    assert len(set(a.values())) == 7


def test_passes_of_several_pictures_agree_within_rounding(run):
    """What a GPU does: the same pictures, computed in passes of 3, with class and noise of each in its own row."""
    cpu = torch.device("cpu")
    one, three = (trained.read_model(run / "weights.safetensors", cpu, batch=b) for b in (1, 3))
    indices = [4, 9, 2, 7, 5]
    noise = one.draw_noise(0, indices)
    a, b = (model.synthesise(model.styles(indices), noise) for model in (one, three))
    assert np.abs(a.astype(int) - b).max() <= 1
    alone = one.synthesise(one.styles([2]), one.draw_noise(0, [2]))
    np.testing.assert_array_equal(a[2:3], alone)


def test_seed_changes_the_pictures(run, tmp_path):
    for seed in (0, 1):
        assert call("generate", "--run", run, "--number", 1, "--seed", seed, "--out", tmp_path / str(seed)) == 0
    assert pictures(tmp_path / "0") != pictures(tmp_path / "1")


def test_resume_makes_only_what_is_missing_or_damaged(run, tmp_path, capsys):
    flags = ("generate", "--run", run, "--number", 6, "--out", tmp_path)
    assert call(*flags) == 0
    before = pictures(tmp_path)
    (tmp_path / "000001_NC.png").unlink()
    (tmp_path / "000003_NC.png").write_bytes(before["000003_NC.png"][:-30])
    (tmp_path / "000004_AD.png").write_bytes(b"")
    kept = tmp_path / "000000_AD.png"
    os.utime(kept, (1, 1))
    capsys.readouterr()
    assert call(*flags) == 0
    assert "3 were there already" in capsys.readouterr().out
    assert pictures(tmp_path) == before and kept.stat().st_mtime == 1
    assert call(*flags[:-3], 8, "--out", tmp_path) == 0  # more of the same
    assert len(pictures(tmp_path)) == 8 and before.items() <= pictures(tmp_path).items()
    assert call(*flags) == 0 and json.loads((tmp_path / "generate.json").read_text())["number"] == 8


def test_other_settings_in_the_same_folder_are_refused(run, tmp_path, capsys):
    flags = ("generate", "--run", run, "--number", 3, "--out", tmp_path)
    assert call(*flags) == 0
    before = pictures(tmp_path)
    (tmp_path / "mine.png").write_bytes(b"kept")
    capsys.readouterr()
    text = one_line(capsys, call(*flags, "--truncation", 0.5), 78)
    assert "truncation 1.0 -> 0.5" in text and "--out" in text and "--overwrite" in text
    assert pictures(tmp_path) == before
    assert call(*flags[:-3], 2, "--out", tmp_path, "--class", "NC", "--overwrite") == 0
    assert set(pictures(tmp_path)) == {
        "000000_NC.png",
        "000001_NC.png",
    }  # nothing of the old settings is left among them
    assert (tmp_path / "mine.png").read_bytes() == b"kept"
    (tmp_path / "generate.json").unlink()
    capsys.readouterr()
    assert "no generate.json says what made it" in one_line(capsys, call(*flags), 78)


def test_truncation_zero_is_the_average_picture(run, tmp_path):
    flags = ("generate", "--run", run, "--number", 4, "--truncation", 0)
    assert call(*flags, "--noise", "fixed", "--square", "--out", tmp_path / "fixed") == 0
    G = make_generator()
    with torch.no_grad():
        averages = G.synthesis(G.broadcast(G.w_avg))[:, 0]  # of each class
    expected = [((a.clamp(-1, 1) + 1) * 127.5).round().byte().numpy().tobytes() for a in averages]
    assert [read(p).tobytes() for p in sorted((tmp_path / "fixed").glob("0*.png"))] == 2 * expected
    assert call(*flags, "--out", tmp_path / "random") == 0
    assert len({read(p).tobytes() for p in (tmp_path / "random").glob("0*.png")}) == 4
    assert call(*flags, "--noise", "fixed", "--truncation-cutoff", 2, "--out", tmp_path / "cut") == 0
    assert len({read(p).tobytes() for p in (tmp_path / "cut").glob("0*.png")}) == 4


def test_class_by_name_and_by_index(run, tmp_path):
    flags = ("generate", "--run", run, "--number", 3)
    for choice in ("NC", "1", "all"):
        assert call(*flags, "--class", choice, "--out", tmp_path / choice) == 0
    assert pictures(tmp_path / "NC") == pictures(tmp_path / "1") and set(pictures(tmp_path / "NC")) == {
        f"00000{i}_NC.png" for i in range(3)
    }
    both = pictures(tmp_path / "all")
    assert both["000001_NC.png"] == pictures(tmp_path / "NC")["000001_NC.png"]
    assert read(tmp_path / "all/000000_AD.png").tobytes() != read(tmp_path / "NC/000000_NC.png").tobytes()


@pytest.mark.parametrize("choice", ["2", "-1", "XX"])
def test_wrong_class(run, tmp_path, capsys, choice):
    text = one_line(capsys, call("generate", "--run", run, f"--class={choice}", "--out", tmp_path / "out"), 2)
    assert "AD (0), NC (1)" in text and not (tmp_path / "out").exists()


def test_without_classes(tmp_path, capsys):
    weights = write(tmp_path / "w.safetensors", make_generator(conditional=False), conditional=False)
    assert call("generate", "--weights", weights, "--number", 2, "--out", tmp_path / "out") == 0
    assert set(pictures(tmp_path / "out")) == {"000000.png", "000001.png"}
    assert read(tmp_path / "out/grid.png").shape == (2 + 258, 2 + 2 * 242)
    capsys.readouterr()
    assert "without classes" in one_line(capsys, call("generate", "--weights", weights, "--class", "AD"), 2)


def test_colour_and_a_crop_are_restored(tmp_path):
    """The network's square comes back at its place in the original slice; what was cropped away is black."""
    geometry = GEOMETRY | {"crop": 128}
    weights = write(
        tmp_path / "w.safetensors", make_generator(channels=3), {"geometry": geometry}, channels=3
    )  # fmt: skip
    for flag, out in (([], "whole"), (["--square"], "square")):
        assert call("generate", "--weights", weights, "--number", 1, *flag, "--out", tmp_path / out) == 0
    whole, square = (read(tmp_path / out / "000000_AD.png") for out in ("whole", "square"))
    assert whole.shape == (256, 240, 3) and square.shape == (32, 32, 3)
    inner = whole[64:192, 56:184]
    outside = whole.copy()
    outside[64:192, 56:184] = 0
    assert outside.max() == 0 and inner.std() > 10
    again = fit_square(whole, 256, 128, 32)
    assert np.corrcoef(again.ravel(), square.ravel())[0, 1] > 0.95


def test_no_geometry_leaves_pictures_square(tmp_path):
    weights = write(tmp_path / "w.safetensors", make_generator(), {"geometry": {}})
    assert call("generate", "--weights", weights, "--number", 1, "--out", tmp_path / "out") == 0
    assert read(tmp_path / "out/000000_AD.png").shape == (32, 32)


def test_class_names_cannot_leave_the_folder(tmp_path):
    weights = write(tmp_path / "w.safetensors", make_generator(), {"classes": ["../up", "a/b c"]})
    assert call("generate", "--weights", weights, "--number", 2, "--out", tmp_path / "out") == 0
    assert set(pictures(tmp_path / "out")) == {"000000_..-up.png", "000001_a-b-c.png"}
    assert (
        call("generate", "--weights", weights, "--number", 2, "--seed", 1, "--overwrite", "--out", tmp_path / "out")
        == 0
    )


def test_half_precision_is_close(run, tmp_path):
    for precision in ("fp32", "bf16"):
        flags = ("--precision", precision, "--square", "--out", tmp_path / precision)
        assert call("generate", "--run", run, "--number", 1, *flags) == 0
    a, b = (read(tmp_path / p / "000000_AD.png").astype(int) for p in ("fp32", "bf16"))
    assert 0 < np.abs(a - b).max() < 24


# --- mix -------------------------------------------------------------------------------------------------------------
def mixed(run, folder, styles) -> np.ndarray:
    """The cells (rows, columns, 32, 32) of a 2 x 3 grid with its sources."""
    assert call("mix", "--run", run, "--rows", 2, "--cols", 3, "--styles", styles, "--square", "--out", folder) == 0
    grid = read(folder / "mix.png")
    left = grid.shape[1] - (2 + 4 * 34)  # as wide as the captions of the rows need
    assert grid.shape[0] > 12 + 2 + 3 * 34 and 20 < left < 60  # a note stands below
    return np.array([[grid[14 + r * 34 :, left + 2 + c * 34 :][:32, :32] for c in range(4)] for r in range(3)])


@pytest.mark.parametrize(
    ("styles", "layers"), [("coarse", range(3)), ("middle", range(3, 8)), ("2-4", range(2, 5)), ("5", [5])]
)
def test_mix_takes_these_layers_from_the_top_and_the_others_from_the_left(run, tmp_path, styles, layers):
    cells = mixed(run, tmp_path, styles)
    G = make_generator()
    flags = ("generate", "--run", run, "--number", 5, "--noise", "fixed", "--square", "--out", tmp_path / "sources")
    assert call(*flags) == 0
    seeds = json.loads((tmp_path / "sources/generate.json").read_text())["z_seeds"]
    with torch.no_grad():
        ws = [
            G.broadcast(
                G.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(s)), torch.tensor([i % 2]))
            )
            for i, s in enumerate(seeds)
        ]
        for r, c in itertools.product(range(2), range(3)):
            both = ws[r].clone()
            for layer in layers:
                both[:, layer] = ws[2 + c][:, layer]
            image = ((G.synthesis(both)[0, 0].clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
            np.testing.assert_array_equal(cells[1 + r, 1 + c], image)
    sources = [read(p) for p in sorted((tmp_path / "sources").glob("0*.png"))]
    np.testing.assert_array_equal(cells[1:, 0], sources[:2])
    np.testing.assert_array_equal(cells[0, 1:], sources[2:])
    assert (cells[0, 0] == BACKGROUND).all()
    about = json.loads((tmp_path / "mix.json").read_text())
    assert about["layers_from_top"] == [min(layers), max(layers)] and about["top"] == [2, 3, 4]


def test_mix_of_all_layers_and_of_none_is_a_source(run, tmp_path):
    cells = mixed(run, tmp_path, "0-7")
    for r in (1, 2):
        np.testing.assert_array_equal(cells[r, 1:], cells[0, 1:])


def test_style_groups_follow_the_resolution():
    G = make_generator(resolution=128, channel_base=512)
    assert [style_layers(G, s) for s in ("coarse", "middle", "fine")] == [(0, 2), (3, 6), (7, 11)]


@pytest.mark.parametrize("styles", ["fine", "3-1", "0-8", "rough", "-1", "1-", "٣"])
def test_wrong_styles(run, tmp_path, capsys, styles):
    assert "0-7" in one_line(capsys, call("mix", "--run", run, f"--styles={styles}", "--out", tmp_path / "o"), 2)
    assert not (tmp_path / "o").exists()


# --- interpolate -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("space", ["z", "w"])
@pytest.mark.parametrize("choice", ["NC", "all"])
def test_interpolation_passes_through_the_generated_pictures_and_loops(run, tmp_path, space, choice):
    same = ("--run", run, "--class", choice, "--truncation", 0.8, "--seed", 5)
    assert call("generate", *same, "--number", 3, "--noise", "fixed", "--out", tmp_path / "g") == 0
    flags = ("--number", 3, "--steps", 4, "--space", space, "--fps", 10, "--out", tmp_path / "i")
    assert call("interpolate", *same, *flags) == 0
    with Image.open(tmp_path / "i/interpolate.gif") as gif:
        assert gif.n_frames == 12 and gif.info["loop"] == 0 and gif.info["duration"] == 100
        frames = []
        for i in range(12):
            gif.seek(i)
            frames.append(np.asarray(gif.convert("L")).astype(int))
    for k, path in enumerate(sorted((tmp_path / "g").glob("0*.png"))):
        np.testing.assert_array_equal(frames[4 * k], read(path))
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise([*frames, frames[0]])]
    jump = np.abs(frames[0] - frames[4]).mean()
    assert 0 < max(steps) < jump  # no step, the one back to the start included, is as large as a whole segment
    strip = read(tmp_path / "i/strip.png")
    left = strip.shape[1] - (2 + 4 * 242)  # as wide as the captions of the rows need
    assert strip.shape[0] == 2 + 3 * 258 and 10 < left < 60
    np.testing.assert_array_equal(strip[2 + 258 :, left + 2 + 242 :][:256, :240], frames[5])


def test_gif_keeps_every_grey_of_every_frame():
    """Frame 1 has greys that frame 0 has not, and pixels that stay."""
    images = np.zeros((3, 1, 16, 16), np.uint8)
    images[1] = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images[2] = images[1, :, ::-1]
    images[2, 0, :4] = images[1, 0, :4]
    with Image.open(io.BytesIO(gif_of(images, 20))) as gif:
        for i, image in enumerate(images):
            gif.seek(i)
            np.testing.assert_array_equal(np.asarray(gif.convert("L")), image[0])


def test_slerp_turns_at_a_constant_rate():
    a, b = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    t = torch.tensor([[0.0], [1 / 3], [2 / 3]])
    angles = torch.tensor([0, math.pi / 6, math.pi / 3])
    expected = 2 * torch.stack([angles.cos(), angles.sin(), torch.zeros(3)], 1)
    torch.testing.assert_close(slerp(a.expand(3, -1), b.expand(3, -1), t), expected)
    assert torch.equal(slerp(a, b, t[:1]), a)
    torch.testing.assert_close(slerp(a, a, t[1:2]), a)  # no great circle is singled out: no NaN either


def test_too_many_frames(run, capsys):
    code = call("interpolate", "--run", run, "--number", 1000, "--steps", 1000)
    assert "frames" in one_line(capsys, code, 2)


# --- plot ------------------------------------------------------------------------------------------------------------
def write_metrics(run, last=5, shift=0.0):
    run.mkdir(exist_ok=True)
    rows = [
        {"nimg": 1000 * i, "loss_G": 1 + shift + math.sin(i), "loss_D": 1.0, "diversity": 0.9} for i in range(last + 1)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text + '{"nimg": 99000, "loss')  # a row that is just being written
    return run


def test_plot_of_a_run_in_progress(tmp_path, capsys):
    run = write_metrics(tmp_path / "a")
    assert call("plot", "--run", run) == 0
    printed = capsys.readouterr().out
    assert str(run / "plots/losses.png") in printed and "6 rows up to 5 kimg" in printed
    first = read(run / "plots/losses.png")
    write_metrics(run, last=30)
    assert call("plot", "--run", run, "--from-kimg", 2, "--to-kimg", 9.5, "--out", tmp_path / "part.png") == 0
    assert call("plot", "--run", run) == 0
    assert first.tobytes() != read(run / "plots/losses.png").tobytes() != read(tmp_path / "part.png").tobytes()


def test_plot_overlays_runs(tmp_path):
    a, b = write_metrics(tmp_path / "a"), write_metrics(tmp_path / "b", shift=2.0)
    assert call("plot", "--run", a, "--run", b) == 0
    assert not (a / "plots/losses.png").exists()
    assert call("plot", "--run", a) == 0
    assert read(a / "plots/losses-compared.png").tobytes() != read(a / "plots/losses.png").tobytes()


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--run", "none"), 78, "there is no run"),
        (("--run", "empty"), 78, "metrics.jsonl"),
        (("--run", "a", "--from-kimg", "50"), 2, "0 to 5"),
        (("--run", "a", "--from-kimg", "5", "--to-kimg", "1"), 2, "--to-kimg"),
        (("--run", "a", "--out", "empty"), 2, "folder"),
        (("--run", "a", "--out", "a/metrics.jsonl/x.png"), 78, "metrics.jsonl"),
    ],
)
def test_plot_that_cannot_be(tmp_path, monkeypatch, capsys, flags, code, says):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert says in one_line(capsys, call("plot", *flags), code)


# --- what is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "argv",
    [
        ["generate"],
        ["generate", "--run", "a", "--weights", "b"],
        ["generate", "--run", "a", "--number", "0"],
        ["generate", "--run", "a", "--number", "1.5"],
        ["generate", "--run", "a", "--truncation", "nan"],
        ["mix", "--run", "a", "--rows", "0"],
        ["interpolate", "--run", "a", "--number", "1"],
        ["paint", "--run", "a"],
        [],
    ],
)
def test_wrong_flags_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.parse_args(predict.__doc__, argv)
    assert stopped.value.code == 2 and "error:" in capsys.readouterr().err


def test_missing_places(run, tmp_path, capsys):
    assert "there is no run" in one_line(capsys, call("generate", "--run", tmp_path / "none"), 78)
    assert "there is no such file" in one_line(capsys, call("generate", "--weights", tmp_path / "none"), 2)
    assert "first checkpoint" in one_line(capsys, call("mix", "--run", tmp_path), 78)
    (tmp_path / "file").touch()
    assert "file" in one_line(capsys, call("generate", "--run", run, "--out", tmp_path / "file/out"), 78)
    assert "a file; name a folder" in one_line(capsys, call("mix", "--run", run, "--out", tmp_path / "file"), 2)


def damaged(name, path):
    """The same weights, spoilt in one way."""
    G = make_generator()
    if name == "truncated":
        whole = write(path, G).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "huge header":
        path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    elif name == "no metadata":
        save_file({"G_ema.const": torch.zeros(1)}, path)
    elif name == "another format":
        write(path, G, {"format": 99})
    elif name == "another job":
        write(path, G, {"job": "vae"})
    elif name == "huge network":
        write(path, G, channel_base=1 << 20, channel_max=1 << 20, w_dim=1 << 20, resolution=1024)
    elif name in ("resolution", "mapping_layers"):
        write(path, G, **{name: 33 if name == "resolution" else 10**9})
    elif name == "no config":
        write(path, G, {"config": {}})
    elif name == "classes":
        write(path, G, {"classes": ["a", "b", "c"]})
    elif name == "geometry":
        write(path, G, {"geometry": GEOMETRY | {"source_height": 1 << 40}})
    else:
        write(path, G)
        tensors = load_file(path)
        if name == "missing tensor":
            del tensors["G_ema.w_avg"]
        elif name == "shape":
            tensors["G_ema.const"] = torch.zeros(1, 8, 4, 5)
        elif name == "nan":
            tensors["G_ema.const"][0, 0, 0, 0] = math.nan
        elif name == "integers":
            tensors["G_ema.const"] = torch.zeros(1, 8, 4, 4, dtype=torch.int64)
        about = {"job": "stylegan2", "config": CONFIG, "classes": CLASSES, "geometry": GEOMETRY, "nimg": 0, "format": 1}
        save_file(tensors, path, metadata={"config": json.dumps(about)})
    return path


DAMAGES = {
    "truncated": "not a readable", "empty": "not a readable", "huge header": "not a readable", "no metadata": "config",
    "another format": "99", "another job": "'vae'", "huge network": "too small", "resolution": "33",
    "mapping_layers": "mapping_layers", "no config": "resolution", "classes": "embedding", "geometry": "geometry",
    "missing tensor": "w_avg", "shape": "const", "nan": "const", "integers": "const",
}  # fmt: skip


@pytest.mark.parametrize("claim", ["channel_base channel_max", "w_dim", "z_dim"])
def test_a_huge_network_is_refused_without_building_it(tmp_path, monkeypatch, claim):
    """The names of the tensors fit and the claimed sizes would take terabytes."""
    claims = dict.fromkeys(claim.split(), 1 << 20)
    weights = write(tmp_path / "w.safetensors", make_generator(), **claims)
    monkeypatch.setattr(loading, "Generator", None)
    with pytest.raises(ConfigError, match="too small"):
        trained.read_model(weights, torch.device("cpu"))


@pytest.mark.parametrize(
    "changes", [{}, dict(resolution=128, channel_base=4096, channel_max=64, z_dim=3, mapping_layers=5)]
)
def test_the_smallest_size_is_just_below_the_real_one(changes):
    real = sum(p.numel() for p in make_generator(**changes).parameters())
    assert 0.6 * real < loading.smallest_size(CONFIG | changes, 2) <= real


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_weights_give_one_line(tmp_path, capsys, name):
    weights = damaged(name, tmp_path / "weights.safetensors")
    text = one_line(capsys, call("generate", "--run", tmp_path, "--number", 1), 78)
    assert DAMAGES[name] in text.replace(str(weights), "")


def test_loaded_network_is_the_saved_one(run):
    loaded = trained.read_model(run / "weights.safetensors", torch.device("cpu")).G.state_dict()
    saved = make_generator().state_dict()
    assert loaded.keys() == saved.keys() and all(torch.equal(loaded[k], saved[k]) for k in saved)


def test_weights_replaced_while_they_are_read(run, tmp_path, monkeypatch):
    """The SHA-256 in generate.json is that of the tensors in use, even when a run replaces the file in between."""
    path = write(tmp_path / "w.safetensors", make_generator(0))
    real, swaps = trained.read_weights, iter([True, False])

    def read_then_replace(p):
        found = real(p)
        if next(swaps):
            write(path, make_generator(1))
        return found

    monkeypatch.setattr(trained, "read_weights", read_then_replace)
    model = trained.read_model(path, torch.device("cpu"))
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert torch.equal(model.G.const, make_generator(1).const)
    monkeypatch.setattr(
        trained, "read_weights", lambda p: (write(path, make_generator(time.monotonic_ns() % 10**6)), real(p))[1]
    )
    with pytest.raises(ConfigError, match="changes all the time"):
        trained.read_model(path, torch.device("cpu"))


# --- as a process ----------------------------------------------------------------------------------------------------
def start(*argv) -> subprocess.Popen:
    command = [sys.executable, "predict.py", *[str(a) for a in argv]]
    # A test run in the background of a shell ignores SIGINT, and its children would too.
    hears = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hears
    )


def test_help_and_wrong_flags_do_not_import_torch():
    for argv, code in ((["--help"], 0), (["mix", "--help"], 0), (["generate", "--number", "x"], 2)):
        process = subprocess.run(
            [sys.executable, "-X", "importtime", "predict.py", *argv], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == code and "argparse" in process.stderr
        assert not any(name in process.stderr for name in ("| torch", "| numpy", "| PIL"))


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(run, tmp_path):
    flags = ("generate", "--run", run, "--number", 100_000, "--out", tmp_path)
    process = start(*flags)
    end = time.monotonic() + 400
    while not list(tmp_path.glob("000003*.png")):
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130 and "Traceback" not in errors and "interrupted" in errors
    before = pictures(tmp_path)
    assert not list(tmp_path.glob("*.tmp*")) and not list(tmp_path.glob(".*"))
    assert call("generate", "--run", run, "--number", 4, "--out", tmp_path) == 0
    assert pictures(tmp_path) == before


def test_pictures_are_dropped_once_written(run, tmp_path, monkeypatch):
    """Flat memory: however many pictures are asked for, only those of two passes are alive."""
    refs, most = [], []
    real = GanModel.synthesise

    def synthesise(*args):
        images = real(*args)
        refs.append(weakref.ref(images))
        most.append(sum(ref() is not None for ref in refs))
        return images

    def slow_write(*args):
        time.sleep(0.03)
        write(*args)

    write = generate.Job.write
    monkeypatch.setattr(generate.Job, "write", slow_write)  # slower than the network: nothing may pile up
    monkeypatch.setattr(GanModel, "synthesise", synthesise)
    assert call("generate", "--run", run, "--number", 40, "--square", "--out", tmp_path) == 0
    assert len(most) == 40 and max(most) <= 4
