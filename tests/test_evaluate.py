"""predict.py evaluate and its kin on tiny random generators and phantoms: what is measured, written and refused."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_predict import call, make_generator, one_line, write
from tiny import environment

import predict
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
    monkeypatch.setattr(predict, "PAIRS", 100)


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", make_generator())


def metrics(run) -> dict:
    return json.loads((run / "predictions" / "evaluate" / "metrics.json").read_text())


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
    picture = Image.open(run / "predictions" / "evaluate" / "copies-pixels.png")
    assert picture.height == 2 + 4 * (32 + 12 + 2) and picture.width > 8 * 34


def test_repeats_and_depends_on_the_seed(run):
    seen = []
    for seed in (0, 0, 1):
        assert call("evaluate", "--run", run, "--number", 30, "--device", "cpu", "--seed", seed) == 0
        seen.append({k: v for k, v in metrics(run).items() if k not in ("seconds", "settings")})
    assert seen[0] == seen[1] and seen[0]["distances"]["generated"] != seen[2]["distances"]["generated"]
    assert seen[0]["distances"]["training slices"]["fid"] == seen[2]["distances"]["training slices"]["fid"]


def test_two_ranks_give_the_same_figures(run, packs, tmp_path):
    command = [sys.executable, "predict.py", "evaluate", "--run", str(run), "--number", "120", "--out"]
    env = environment(packs, CUDA_VISIBLE_DEVICES="", SLURM_CPUS_PER_TASK="1")
    alone = subprocess.run([*command, str(tmp_path / "one")], cwd=ROOT, env=env, capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen([*command, str(tmp_path / "two")], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=env | dict(RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                                        MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        for r in range(2)
    ]  # fmt: skip
    outputs = [p.communicate(timeout=300) for p in processes]
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


def test_a_generator_that_copies_is_caught(run, monkeypatch):
    """The whole command, with a generator whose picture i is training slice i, or i with the other class's label."""
    from data.pack import ensure_pack

    train = ensure_pack(DATA, resolution=32, log=lambda line: None, progress=False)
    order = [int(np.flatnonzero(train.labels == i % 2)[i // 2]) for i in range(60)]  # the class asked for
    monkeypatch.setattr(predict, "generated", lambda model, args: lambda indices: torch.from_numpy(
        np.stack([train.images[order[i]] for i in indices])))  # fmt: skip
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    found = metrics(run)
    for space in ("pixels", "features"):
        assert (
            found["copying"][space]["below_5th_percentile"] == 1.0 and found["copying"][space]["relative_ratio"] < 0.05
        )
    assert found["copying"]["pixels"]["closest"][0]["distance"] < 1e-4
    right = found["class_fidelity"]["accuracy"]
    order = [int(np.flatnonzero(train.labels == 1 - i % 2)[i // 2]) for i in range(60)]  # the other class
    assert call("evaluate", "--run", run, "--number", 60, "--device", "cpu") == 0
    assert right > 0.8 and metrics(run)["class_fidelity"]["accuracy"] < 0.2


def test_a_collapsed_generator_is_caught(run, monkeypatch):
    whole = predict.generated

    def collapsed(model, args):
        images_of = whole(model, args)
        return lambda indices: images_of([i % 2 for i in indices])  # one picture of each class, whatever the latent

    monkeypatch.setattr(predict, "generated", collapsed)
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
    other = write_run(tmp_path / "other", make_generator(), classes=["AD", "MCI"])
    assert call("evaluate", "--run", other, "--number", 20, "--device", "cpu") == 78
    assert "its classes are NC, AD, the model's AD, MCI" in capsys.readouterr().err
