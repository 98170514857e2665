"""predict.py evaluate and its kin on tiny random generators and phantoms: what is measured, written and refused."""

from __future__ import annotations

import json
import signal
import socket
import sys

import forks
import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import call, make_generator, one_line, write
from tiny import environment

from data.batches import to_uint8
from jobs.predict import direction, evaluate, features
from jobs.predict.gan import GanModel
from jobs.predict.output import Output
from jobs.predict.trained import read_model
from jobs.run.predictions import made
from jobs.view.pictures import scatter_plots
from models import encoder
from models.stylegan2 import Generator

DATA = "phantom:200"  # 20 held-out slices of other brains
PHANTOM_CLASSES = ["NC", "AD"]
SQUARE = dict(source_height=32, source_width=32, square=32, crop=0, resolution=32)


def write_run(path, G: Generator, classes=PHANTOM_CLASSES, **config):
    path.mkdir(exist_ok=True)
    about = {"classes": classes, "geometry": SQUARE}
    write(path / "weights.safetensors", G, about, data=DATA, crop=0, **config)
    return path


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """A folder of packs, with a feature encoder that was trained for a moment."""
    folder = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAIN_PACK_DIR", str(folder))
        patch.setattr(encoder.train_encoder, "__kwdefaults__", {**encoder.train_encoder.__kwdefaults__, "steps": 40})
        run = write_run(tmp_path_factory.mktemp("first") / "run", make_generator())
        patch.setenv("SLURM_CPUS_PER_TASK", "1")  # threads
        assert call("evaluate", "--run", run, "--number", 20, "--device", "cpu") == 0
    return folder


@pytest.fixture(autouse=True)
def small(packs, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(packs))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # threads
    monkeypatch.setattr(evaluate, "PAIRS", 100)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", make_generator())


def metrics(run) -> dict:
    return json.loads(made(run, "evaluate")[0].read_text())


def test_writes_every_figure_beside_that_of_real_slices(run, capsys):
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    found = metrics(run)
    fake, real = found["distances"]["generated"], found["distances"]["training slices"]
    assert (
        fake.keys()
        == real.keys()
        == {"fid", "fid_error", "kid", "kid_sd", "precision", "recall", "density", "coverage"}
    )
    assert fake["fid"] > 5 * real["fid"] and fake["kid"] > 10 * abs(real["kid"])  # a random network draws no brains
    assert fake["precision"] < 0.2 < real["precision"]
    assert found["ms_ssim"].keys() == set(PHANTOM_CLASSES) and found["ms_ssim"]["NC"].keys() == {
        "generated",
        "held-out slices",
    }
    assert found["copying"].keys() == {"pixels", "features"} and len(found["copying"]["pixels"]["closest"]) == 16
    assert found["class_fidelity"]["accuracy_of_heldout"] > 0.5
    assert found["data"]["heldout"]["slices"] == 20 and found["data"]["train"]["slices"] == 200
    assert "encoder v" in found["settings"]["features"] and found["compared"] == 60
    out = capsys.readouterr().out
    assert f"{fake['fid']:.2f}" in out and "note: 20 held-out slices are few" in out
    picture = Image.open(made(run, "evaluate", "copies-pixels.png")[0])
    assert picture.height > 2 + 6 * (32 + 12 + 2) and picture.width > 8 * 34
    assert found["copying"]["pixels"]["four_times_nearer"] == 0 and "no more than chance" in out


def test_repeats_and_depends_on_the_seed(run):
    seen = []
    for seed in (0, 0, 1):
        assert call("evaluate", "--run", run, "--number", 30, "--device", "cpu", "--seed", seed) == 0
        seen.append({k: v for k, v in metrics(run).items() if k not in ("seconds", "settings")})
    assert seen[0] == seen[1] and seen[0]["distances"]["generated"] != seen[2]["distances"]["generated"]
    assert seen[0]["distances"]["training slices"]["fid"] == seen[2]["distances"]["training slices"]["fid"]


def test_two_ranks_give_the_same_figures(run, packs, tmp_path):
    command = ["predict.py", "evaluate", "--run", run, "--number", "120", "--out"]
    env = environment(packs, CUDA_VISIBLE_DEVICES="", SLURM_CPUS_PER_TASK="1")
    alone = forks.run([*command, tmp_path / "one"], env)
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        forks.Forked(
            [*command, tmp_path / "two"],
            env=env
            | dict(
                RANK=str(r),
                LOCAL_RANK=str(r),
                WORLD_SIZE="2",
                LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
        )
        for r in range(2)
    ]
    outputs = [p.communicate(timeout=500) for p in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for name, figures in one["distances"].items():
        assert two["distances"][name] == pytest.approx(figures, rel=1e-4, abs=1e-6)
    assert two["ms_ssim"] == one["ms_ssim"]
    for space in ("pixels", "features"):
        pair = [x["copying"][space]["closest"] for x in (one, two)]
        assert [p["training"] for p in pair[0]] == [p["training"] for p in pair[1]]
    assert not outputs[1][0]  # rank 1 is silent


def test_a_generator_that_copies_is_caught(run, monkeypatch, capsys):
    """The whole command, with a generator whose picture i is training slice i, or i with the other class's label."""
    from data.pack import ensure_pack

    train = ensure_pack(DATA, resolution=32, log=lambda line: None, progress=False)
    order = [int(np.flatnonzero(train.labels == i % 2)[i // 2]) for i in range(60)]  # the class asked for
    monkeypatch.setattr(evaluate, "generated", lambda model, seed, label, how: lambda indices: torch.from_numpy(
        np.stack([train.images[order[i]] for i in indices])))  # fmt: skip
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    found = metrics(run)
    for space in ("pixels", "features"):
        assert (
            found["copying"][space]["below_5th_percentile"] == 1.0 and found["copying"][space]["relative_ratio"] < 0.05
        )
    assert found["copying"]["pixels"]["closest"][0]["distance"] < 1e-4
    right = found["class_fidelity"]["accuracy"]
    assert "COPIES (chance" in capsys.readouterr().out
    monkeypatch.setattr(
        evaluate,
        "generated",
        lambda model, seed, label, how: (
            lambda indices: torch.from_numpy(np.roll(np.stack([train.images[order[i]] for i in indices]), 1, 3))
        ),
    )  # moved by a pixel
    order = [int(np.flatnonzero(train.labels == 1 - i % 2)[i // 2]) for i in range(60)]  # the other class
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    assert right > 0.8 and metrics(run)["class_fidelity"]["accuracy"] < 0.5
    found = metrics(run)["copying"]["pixels"]
    assert found["below_5th_percentile"] == 1.0 and found["relative_ratio"] < 0.2 and found["chance"] < 1e-6
    assert found["closest"][0]["move"] == "moved -3.1 % and 0.0 %"
    picture = np.asarray(Image.open(made(run, "evaluate", "copies-pixels.png")[0])).astype(int)
    left = picture.shape[1] - 8 * 34
    drawn, moved, real = (picture[2 + row * 46 :, left:][4:28, 4:28] for row in range(3))
    assert np.abs(moved - real).max() <= 3 < np.abs(drawn - real).max()


def test_a_collapsed_generator_is_caught(run, monkeypatch):
    whole = evaluate.generated

    def collapsed(*args):
        images_of = whole(*args)
        return lambda indices: images_of([i % 2 for i in indices])  # one picture of each class, whatever the latent

    monkeypatch.setattr(evaluate, "generated", collapsed)
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    found = metrics(run)
    for sides in found["ms_ssim"].values():
        assert sides["generated"]["mean"] == pytest.approx(1) and sides["held-out slices"]["mean"] < 0.95
    assert found["distances"]["generated"]["recall"] == 0


def test_without_classes_there_is_no_class_figure(tmp_path):
    run = write_run(tmp_path / "run", make_generator(conditional=False), conditional=False)
    assert call("evaluate", "--run", run, "--number", 24, "--device", "cpu") == 0
    assert "class_fidelity" not in metrics(run) and metrics(run)["ms_ssim"].keys() == {"all"}


def test_a_damaged_encoder_is_trained_again(run, packs, monkeypatch, capsys):
    path = next(packs.glob("encoder-*.safetensors"))
    good = path.read_bytes()
    path.write_bytes(good[:1000])
    monkeypatch.setattr(encoder.train_encoder, "__kwdefaults__", {**encoder.train_encoder.__kwdefaults__, "steps": 1})
    assert call("evaluate", "--run", run, "--number", 20, "--device", "cpu") == 0
    assert "training the feature encoder" in capsys.readouterr().out and path.stat().st_size == len(good)
    path.write_bytes(good)


def test_an_interrupted_encoder_goes_on_with_the_same_command(run, packs, monkeypatch, capsys):
    """Ctrl-C within the tenth step: code 130, one line that says so; then the very same encoder."""
    path = next(packs.glob("encoder-*.safetensors"))
    good = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(encoder.train_encoder, "__kwdefaults__", {**encoder.train_encoder.__kwdefaults__, "steps": 40})
    whole = features.counted

    def interrupted(items, what, done=0):
        for item in whole(items, what, done):
            if (what, item) == ("feature encoder, steps", 9) and not done:
                signal.raise_signal(signal.SIGINT)
            yield item

    monkeypatch.setattr(features, "counted", interrupted)
    command = ("evaluate", "--run", run, "--number", 20, "--device", "cpu")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert call(*command) == 130
        said = capsys.readouterr().err.splitlines()
        assert said[-1] == "interrupted; the same command goes on after step 10 of the encoder's 40"
        assert [p.suffix for p in packs.glob("encoder-*")] == [".part"] and not path.exists()
        assert call(*command) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert "goes on after step 10 of 40" in capsys.readouterr().out
    assert path.read_bytes() == good and not list(packs.glob("*.part"))


def test_wrong_use_gets_one_line(run, packs, tmp_path, monkeypatch, capsys):
    def refused(expected: int, *flags) -> str:
        capsys.readouterr()
        return one_line(capsys, call("evaluate", "--run", run, "--number", 20, "--device", "cpu", *flags), expected)

    pack = next(packs.glob("*train*.pack"))
    assert "folder that it was packed from" in refused(2, "--data", pack)
    assert "held-out slices" in refused(78, "--data", "phantom:30")
    assert "cannot be opened" in refused(78, "--data", tmp_path / "nowhere")
    assert "no such weights file" in refused(78, "--feature-weights", tmp_path / "nothing.pth")
    assert "no such class" in refused(2, "--class", "MCI")
    assert not (run / "predictions").exists()  # nothing is made for a command that cannot be
    other = write_run(tmp_path / "other", make_generator(), classes=["AD", "MCI"])
    assert call("evaluate", "--run", other, "--number", 20, "--device", "cpu") == 78
    assert "its classes are NC, AD, the model's AD, MCI" in capsys.readouterr().err


# --- tsne, project, direction -----------------------------------------------------------------------------------------
def test_tsne_writes_every_point(run):
    pytest.importorskip("sklearn")
    assert call("tsne", "--run", run, "--number", 30, "--device", "cpu") == 0
    out = made(run, "tsne")[0].parent
    lines = (out / "tsne.csv").read_text().splitlines()
    assert lines[0] == "source,x,y,class,subject" and len(lines) == 1 + 20 + 30 + 30
    rows = [line.split(",") for line in lines[1:]]
    assert [r[0] for r in rows] == ["real"] * 20 + ["generated"] * 30 + ["w"] * 30
    assert {r[3] for r in rows} == set(PHANTOM_CLASSES) and rows[0][4] == "phantom-1-000000"
    assert Image.open(out / "tsne.png").width > 900  # by class, and w by class


def test_tsne_without_scikit_learn_names_the_fix(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    assert "pip install scikit-learn" in one_line(capsys, call("tsne", "--run", run, "--device", "cpu"), 78)


def test_scatter_names_frequent_subjects_and_csv_quotes(tmp_path):
    table = [("real", i, i % 7, "AD", f"s{i % 3}") for i in range(30)] + [
        ("real", 1, 2, "NC", f"rare {i}") for i in range(40)
    ]
    assert scatter_plots(table, "features", "x", most=3).startswith(b"\x89PNG")
    Output("tsne", tmp_path).csv("t.csv", ["a", "b"], [['a "b", c', 1.23456789], ["plain", None]])
    assert (tmp_path / "t.csv").read_text() == 'a,b\n"a ""b"", c",1.23457\nplain,\n'


def test_project_finds_a_picture_of_its_own(tmp_path):
    """A slice that the generator drew itself comes back much better than the best of the candidates."""
    run = write_run(tmp_path / "run", make_generator())
    model = read_model(run / "weights.safetensors", torch.device("cpu"), square=True)
    with torch.no_grad():
        w = model.G.mapping(torch.randn(1, 16, generator=torch.Generator().manual_seed(5)), torch.tensor([1]))
        target = model.G.synthesis(model.G.broadcast(w)).clamp(-1, 1)
    Image.fromarray(to_uint8(target)[0, 0].numpy()).save(tmp_path / "own.png")
    flags = ("--run", run, "--data", tmp_path / "own.png", "--device", "cpu")
    psnr = []
    for steps in (1, 120):
        assert call("project", *flags, "--steps", steps) == 0
        found = json.loads((made(run, "project", "project.json")[0]).read_text())
        psnr.append(found["slices"][0]["psnr"])
    assert len(found["slices"]) == 1 and psnr[1] > psnr[0] + 4
    assert found["loss"][-1] < 0.6 * found["loss"][0]
    ws = np.load(made(run, "project", "project.npz")[0])["ws"]
    drawn = model.synthesise(torch.from_numpy(ws))[0, 0].astype(float)
    error = ((drawn - np.asarray(Image.open(tmp_path / "own.png"), float)) ** 2).mean()
    assert 10 * np.log10(255**2 / error) == pytest.approx(psnr[1], abs=0.01)  # the styles are those of the figure


def test_project_takes_held_out_slices_and_is_the_same_in_any_company(run):
    found = []
    for number in (1, 3):
        assert call("project", "--run", run, "--number", number, "--steps", 6, "--device", "cpu") == 0
        found.append(json.loads((made(run, "project", "project.json")[0]).read_text())["slices"])
    assert [s["slice"] for s in found[1]] == ["phantom-1-000000", "phantom-1-000010", "phantom-1-000019"]
    assert found[0][0] == found[1][0]
    picture = Image.open(made(run, "project", "project.png")[0])
    assert picture.size[0] > 30 + 2 + 3 * 34 and picture.size[1] > 12 + 2 + 3 * 34  # a note below


def test_direction_is_the_mean_difference_of_the_classes(run):
    flags = ("--run", run, "--from", "NC", "--to", "AD", "--rows", 2, "--steps", 3, "--strength", 1)
    assert call("direction", *flags, "--device", "cpu") == 0
    out = made(run, "direction")[0].parent
    found = json.loads((out / "direction.json").read_text())
    model = read_model(run / "weights.safetensors", torch.device("cpu"), square=True)
    z = model.draw_z(0, list(range(direction.SAMPLES)))
    with torch.no_grad():
        nc, ad = (model.G.mapping(z, torch.full((len(z),), k)) for k in (0, 1))
        assert found["length"] == pytest.approx(float((ad - nc).mean(0).norm()), rel=1e-3)
        last = to_uint8(model.G.synthesis(model.G.broadcast(nc[1:2] + (ad - nc).mean(0))))[0, 0].numpy()
    picture = np.asarray(Image.open(out / "direction.png"))
    shown = picture[12 + 2 + 34 : 12 + 2 + 34 + 32, 2 + 2 * 34 : 2 + 2 * 34 + 32]
    assert np.abs(shown.astype(int) - last).max() <= 1 and found["amounts"] == [0, 0.5, 1]


def test_direction_without_classes_goes_by_features(tmp_path, monkeypatch):
    """A stand-in generator without classes whose w decides the class: the direction found crosses over."""
    from data.pack import ensure_pack

    run = write_run(tmp_path / "run", make_generator(conditional=False), conditional=False)
    train = ensure_pack(DATA, resolution=32, log=lambda line: None, progress=False)
    slices = [train.images[np.flatnonzero(train.labels == k)[:16]] for k in (0, 1)]

    def drawn(model, ws, noise=None):
        return np.stack([slices[int(w[0, 0] > 0)][int(16 * float(w[0, 1].abs())) % 16] for w in ws])

    monkeypatch.setattr(GanModel, "synthesise", drawn)
    assert call("direction", "--run", run, "--rows", 4, "--steps", 5, "--strength", 3, "--device", "cpu") == 0
    found = json.loads((made(run, "direction", "direction.json")[0]).read_text())
    assert (found["settings"]["from"], found["settings"]["to"]) == ("AD", "NC")
    assert found["recognised_as_end"][0] == 0 and found["recognised_as_end"][-1] >= 0.75


def test_direction_refuses_wrong_classes(run, capsys):
    flags = ("direction", "--run", run, "--device", "cpu")
    assert "choose from NC, AD" in one_line(capsys, call(*flags, "--from", "MCI"), 2)
    assert "both AD" in one_line(capsys, call(*flags, "--to", "AD"), 2)


# --- generate --format npz ------------------------------------------------------------------------------------------
def test_npz_holds_the_pictures(run):
    assert call("generate", "--run", run, "--number", 7, "--format", "npz", "--device", "cpu") == 0
    out = made(run, "generate")[0].parent
    with np.load(out / "slices.npz") as file:  # no pickle
        images, labels = file["images"], file["labels"]
    assert images.shape == (7, 1, 32, 32) and images.dtype == np.uint8 and labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    for i, path in enumerate(sorted(out.glob("[0-9]*.png"))):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), images[i, 0])
    assert not list(out.glob("*.tmp"))
