"""What stands around the networks in predict.py: defaults, exit codes, which real slices, which features, what is
plotted."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_predict import call as code_of
from test_predict_figures import GEOMETRY, Blocks, data, packs, slices_in  # noqa: F401  (fixtures)
from test_written import CLASSES, call, cells, diffusion_file, gan_file, pixels
from written_by_hand import Gan

import predict
from data.pack import ensure_pack
from jobs.config import kinds
from jobs.config.specs import ConfigError
from jobs.predict import commands, direction, features, films, flags, output, pages, trained
from jobs.predict.gan import GanModel
from jobs.training import collectives, ranks
from jobs.training.weights import read_weights, write_weights
from jobs.view.plots import Curves
from models import encoder, projection

MODEL = {"run": "RUN", "weights": None, "at": "last", "out": None, "overwrite": False, "seed": 0, "device": "auto"}
MODEL |= {"precision": "fp32", "batch": 32}
OF_CLASS, DIFFUSION = {"label": "all", "row": []}, {"sampler": None, "calls": None, "guidance": None}
GAN = {"truncation": 1.0, "truncation_cutoff": None, "noise": None}
DATA, FEATURES = {"data": None}, {"feature_weights": None}
SIZES = {"square": False, "scale": 1}
DEFAULTS = {
    "generate": MODEL
    | OF_CLASS
    | GAN
    | DIFFUSION
    | SIZES
    | {"number": None, "seeds": None, "format": "png"}
    | {"like": None, "vary": []},
    "denoise": MODEL | OF_CLASS | DIFFUSION | SIZES | {"number": 4, "fps": 5},
    "mix": MODEL | OF_CLASS | GAN | SIZES | {"rows": 4, "cols": 6, "styles": "coarse"},
    "interpolate": MODEL
    | OF_CLASS
    | GAN
    | DIFFUSION
    | SIZES
    | {"number": 6, "steps": 24, "space": None, "fps": 20}
    | {"vary": None},
    "reconstruct": MODEL | DATA | SIZES | {"split": "auto", "number": None},
    "evaluate": MODEL | OF_CLASS | GAN | DIFFUSION | DATA | FEATURES | SIZES | {"number": 5000},
    "tsne": MODEL | OF_CLASS | GAN | DIFFUSION | DATA | FEATURES | {"square": True, "scale": 1, "number": 500},
    "project": MODEL | DATA | SIZES | {"number": 4, "steps": 300},
    "direction": MODEL
    | DIFFUSION
    | DATA
    | FEATURES
    | SIZES
    | {"start": None, "end": None, "rows": 4, "steps": 7, "strength": 1.5},
    "export": {"run": "RUN", "weights": None, "at": "last", "out": None, "overwrite": False, "format": "torch"}
    | {"device": "cpu", "precision": "fp32", "batch": 1, "square": True, "scale": 1},
    "film": {"run": "RUN", "out": None, "overwrite": False, "fps": 5},
    "card": {"run": "RUN", "out": None},
    "plot": {"run": ["RUN"], "out": None, "from_kimg": 0.0, "to_kimg": math.inf},
    "report": {"run": ["RUN"], "out": None},
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults(command):
    words = {"report": ["RUN"], "card": ["RUN"], "export": ["--run", "RUN", "--format", "torch"]}
    args = vars(predict.parse_args(predict.__doc__, [command, *words.get(command, ["--run", "RUN"])]))
    assert args == DEFAULTS[command] | {"command": command}


@pytest.mark.parametrize(("flag", "low", "high"), [
    ("--batch", 1, 4096), ("--number", 1, 10**7), ("--steps", 1, 10000), ("--truncation-cutoff", 0, 64),
])  # fmt: skip
def test_bounds_are_among_the_values(flag, low, high, capsys):
    for value in (low, high):
        predict.parse_args(predict.__doc__, ["generate", "--run", "x", flag, str(value)])
    for value in (low - 1, high + 1, "x", "1e3"):
        with pytest.raises(SystemExit):
            predict.parse_args(predict.__doc__, ["generate", "--run", "x", f"{flag}={value}"])
    for value in ("nan", "inf", "-inf", "x"):
        with pytest.raises(SystemExit):
            predict.parse_args(predict.__doc__, ["generate", "--run", "x", f"--guidance={value}"])
    capsys.readouterr()


def test_sampling_without_flags(tmp_path):
    """midpoint in 20 calls; on a list of times, DDIM over all of it."""
    args = predict.parse_args(predict.__doc__, ["generate", "--run", "x"])

    def way_of(model, sampler=None, calls=None):
        return model.way(**commands.how_of(SimpleNamespace(**vars(args) | {"sampler": sampler, "calls": calls}), model))

    load = lambda path: trained.read_model(path, torch.device("cpu"))  # noqa: E731
    assert way_of(load(diffusion_file(tmp_path / "a", "flow", "flow"))) == ("midpoint", 20, 1.0)
    fast = load(diffusion_file(tmp_path / "b", "linear", "epsilon", times="fast-nonuniform"))
    assert way_of(fast) == ("ddim", 10, 1.0)
    ways = (("ancestral", None), ("ddim", None), ("ddim", 10), (None, 10))
    assert [way_of(fast, s, c) for s, c in ways] == [(s or "ddim", 10, 1.0) for s, _ in ways]
    for s, c in (("midpoint", None), ("ddim", 9), (None, 20), ("heun", 10)):
        with pytest.raises(predict.UsageError, match="leave the number of network calls out"):
            way_of(fast, s, c)


# --- the commands -----------------------------------------------------------------------------------------------------
def test_every_command_stands_in_each_of_its_places():
    """Flags, function, the kinds of model that it takes, the help of predict.py; what a page shows is a command's."""
    from jobs.view import report

    (choices,) = [a.choices for a in flags.command_line("")._actions if a.dest == "command"]
    assert set(choices) == set(commands.COMMANDS) | set(predict.PAGES)
    assert set(commands.COMMANDS) == {name for job in kinds.JOBS.values() for name in job.predicts}
    assert set(choices) <= set(re.findall(r"^    python predict.py (\w+)", predict.__doc__, re.M))
    assert {file.partition("/")[0] for file in report.PICTURES} <= set(commands.COMMANDS)


# --- exit codes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (predict.UsageError("a flag"), 2, "error: a flag"),
        (ConfigError("a file"), 78, "error: a file"),
        (predict.DataError("no data"), 78, "error: no data"),
        (ranks.PeerLost("rank 1"), 75, "error: rank 1"),
        (torch.OutOfMemoryError("CUDA out of memory"), 78, "32 pictures at once; use a smaller --batch"),
        (PermissionError(13, "Permission denied", "/x"), 78, "/x: Permission denied"),
        (OSError("odd"), 78, "generate: odd"),
        (KeyboardInterrupt(), 130, "the same command goes on"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, says):
    def fail(args):
        raise error

    monkeypatch.setitem(commands.COMMANDS, "generate", fail)
    assert code_of("generate", "--run", "x") == code
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    monkeypatch.setitem(commands.COMMANDS, "generate", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        code_of("generate", "--run", "x")


# --- files that do not fit --------------------------------------------------------------------------------------------
def test_a_geometry_of_another_size_is_refused(tmp_path, capsys):
    path = gan_file(tmp_path / "w.safetensors", geometry={**GEOMETRY, "resolution": 64})
    assert code_of("generate", "--weights", path, "--out", tmp_path / "out") == 78
    assert "geometry is not that of its network" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("classes", [["NC", "A\nD", "x"], ["NC", 1, "x"], "NC", None])
def test_classes_that_cannot_be_shown_are_refused(tmp_path, capsys, classes):
    path = gan_file(tmp_path / "w.safetensors")
    tensors, about = read_weights(path)
    states = {"G_ema": {k.removeprefix("G_ema."): v for k, v in tensors.items() if k.startswith("G_ema.")}}
    write_weights(
        path, states, {k: v for k, v in about.items() if k not in ("sha256", "format")} | {"classes": classes}
    )
    assert code_of("generate", "--weights", path, "--out", tmp_path / "out") == 78
    assert "classes is malformed" in capsys.readouterr().err


def test_a_gpu_is_asked_for_where_there_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = gan_file(tmp_path / "w.safetensors")
    assert code_of("generate", "--weights", path, "--device", "cuda", "--out", tmp_path / "out") == 78
    assert "--device cpu" in capsys.readouterr().err


def test_one_picture_a_pass_on_a_cpu(tmp_path):
    """How sums are rounded hangs on the number of rows: alone, a picture is the same bits in any company."""
    path = gan_file(tmp_path / "w.safetensors")
    args = predict.parse_args(
        predict.__doc__, ["generate", "--weights", str(path), "--batch", "8", "--device", "cpu", "--precision", "bf16"]
    )
    model = commands.model_of(args)
    assert model.batch == 1 and model.dtype == torch.bfloat16 and model.nimg == 5000 and model.classes == CLASSES


# --- real slices ------------------------------------------------------------------------------------------------------
def opened(data, classes=("AD", "NC"), **config):  # noqa: F811
    model = SimpleNamespace(
        config={"data": str(data), **config}, classes=list(classes), resolution=32, channels=1, path="w"
    )
    return features.open_data(model, say=lambda line: None)


def test_the_train_folder_is_the_training_set_and_the_test_folder_is_held_out(data):  # noqa: F811
    real = opened(data, crop=20)
    for pack, split in ((real.train, "train"), (real.heldout, "test")):
        images, names, scans, labels = slices_in(data, split)
        assert pack.names == names and real.labels(pack).tolist() == labels and pack.geometry["crop"] == 20
        assert len(pack) == len(images) and pack.meta["split"] == split
        numbers = real.subjects(pack).tolist()
        assert [numbers[i] == numbers[j] for i in range(len(pack)) for j in range(len(pack))] == [
            a == b for a in scans for b in scans
        ]


def test_slices_of_unknown_subjects_are_their_own():
    pack = SimpleNamespace(subjects=["", "a", "", "a", "slice x"], names=["x", "y", "z", "u", "v"])
    found = features.RealSlices(None, None).subjects(pack).tolist()
    assert found[1] == found[3] and len({found[0], found[1], found[2]}) == 3


@pytest.mark.parametrize(
    ("classes", "fits"), [(("AD", "NC"), True), ((), True), (("NC", "AD"), False), (("AD",), False)]
)
def test_classes_must_be_those_of_the_model_in_their_order(data, classes, fits):  # noqa: F811
    """The label that a network learnt as 0 is the first class."""
    if fits:
        assert opened(data, classes).train.classes == ["AD", "NC"]
        return
    with pytest.raises(ConfigError, match="its classes are AD, NC"):
        opened(data, classes)


@pytest.mark.parametrize(("least", "enough"), [(27, True), (28, False)])
def test_few_held_out_slices_are_refused(data, monkeypatch, least, enough):  # noqa: F811
    assert features.MIN_HELDOUT == 20
    monkeypatch.setattr(features, "MIN_HELDOUT", least)
    if enough:
        assert len(opened(data).heldout) == 27
        return
    with pytest.raises(ConfigError, match="only 27 held-out slices"):
        opened(data)


# --- features ---------------------------------------------------------------------------------------------------------
def alone(rank=0, world=1) -> ranks.Runtime:
    return ranks.Runtime(rank, world, 0, torch.device("cpu"), 1)


def test_a_feature_encoder_is_kept_for_its_own_slices_alone(tmp_path, data, monkeypatch):  # noqa: F811
    train = ensure_pack(str(data), resolution=32, cache_dir=tmp_path, progress=False, log=lambda line: None)
    trained, real = [], encoder.train_encoder

    def counting(images, labels, classes, **options):
        trained.append((len(images), labels.tolist(), classes, options["seed"]))
        return real(images, labels, classes, steps=1, seed=options["seed"])

    monkeypatch.setattr(encoder, "train_encoder", counting)
    open_it = lambda pack=train: features.open_features(None, pack, tmp_path / "out", alone())  # noqa: E731
    network, name = open_it()
    assert trained == [(45, train.labels.tolist(), 2, 0)] and train.digest[:12] in name and "told apart AD, NC" in name
    (path,) = tmp_path.glob("encoder-*")
    again, _ = open_it()
    x = torch.from_numpy(np.array(train.images[:5]))
    assert len(trained) == 1 and torch.equal(again(x), network(x)) and not again.training
    assert all(not p.requires_grad for p in again.parameters())
    other = replace(train, digest="f" * 64)
    open_it(other)
    assert len(trained) == 2 and len(list(tmp_path.glob("encoder-*"))) == 2
    tensors, about = read_weights(path)
    state = {k.removeprefix("encoder."): v for k, v in tensors.items()}
    shape = about["config"]
    for spoilt in ({"pack": "f" * 64}, {"config": shape | {"size": 16}}):
        write_weights(path, {"encoder": state}, {"config": shape, "pack": train.digest} | spoilt)
        assert features.read_encoder(path, shape, train.digest) is None
    write_weights(
        path, {"encoder": {k: v for k, v in state.items() if k != "mean"}}, {"config": shape, "pack": train.digest}
    )
    assert features.read_encoder(path, shape, train.digest) is None
    write_weights(path, {"encoder": state}, {"config": shape, "pack": train.digest})
    assert torch.equal(features.read_encoder(path, shape, train.digest)(x), network(x))
    assert features.open_features((network, "given"), train, tmp_path, alone()) == (network, "given")


def test_ranks_take_chunks_in_turn_and_the_sum_is_the_whole(monkeypatch):
    monkeypatch.setattr(collectives, "reduce_sum", lambda rt, x: x)
    images, asked = (
        torch.randint(0, 256, (120, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        [],
    )

    def images_of(rows):
        asked.append((rows.start, rows.stop))
        return images[rows.start : rows.stop]

    whole = features.measure(alone(), Blocks(), images_of, 120, "x")
    torch.testing.assert_close(whole[0], Blocks()(images))
    assert torch.equal(whole[1], images) and asked == [(0, 50), (50, 100), (100, 120)]
    asked.clear()
    parts = [features.measure(alone(rank, 2), Blocks(), images_of, 120, "x") for rank in range(2)]
    assert asked == [(0, 50), (100, 120), (50, 100)]
    for k in range(2):
        assert torch.equal(parts[0][k] + parts[1][k], whole[k])
    idle = features.measure(alone(3, 4), Blocks(), images_of, 120, "x")
    assert not idle[0].any() and not idle[1].any() and [i.shape for i in idle] == [w.shape for w in whole]


def test_figures_are_measured_on_what_other_ranks_found(monkeypatch):
    """Both the features and the thumbnails are summed over the ranks."""
    monkeypatch.setattr(collectives, "reduce_sum", lambda rt, x: x + 1)
    images = torch.zeros(3, 1, 32, 32, dtype=torch.uint8)
    found, thumbs = features.measure(alone(), Blocks(), lambda r: images[r.start : r.stop], 3, "x")
    assert bool((found == 1).all()) and bool((thumbs == 1).all())


# --- a direction without classes --------------------------------------------------------------------------------------
@pytest.mark.parametrize("of_start", [8, 7])
def test_a_direction_between_samples_that_look_like_the_classes(tmp_path, data, monkeypatch, capsys, of_start):  # noqa: F811
    """A network without classes: samples are sorted by a probe on real slices, which then judges the strip. With fewer
    than eight of a class there is no mean to go by."""
    path = gan_file(tmp_path / "w.safetensors", conditional=False, geometry=GEOMETRY)
    trained, shown = [], []
    kinds = torch.tensor([1] * of_start + [0] * 12)[
        torch.randperm(of_start + 12, generator=torch.Generator().manual_seed(0))
    ]

    class Probe:
        def __init__(self, features, labels, classes):
            trained.append((features, labels, classes))

        def predict(self, features):
            shown.append(features)
            return kinds if len(shown) == 1 else torch.tensor([1, 0, 0, 1, 1, 0])

    monkeypatch.setattr(direction.quality, "LinearProbe", Probe)
    monkeypatch.setattr(direction, "open_features", lambda given, train, out, rt: (Blocks(), "six blocks"))
    monkeypatch.setattr(direction, "SAMPLES", len(kinds))
    flags = ("--from", "NC", "--to", "AD", "--rows", 2, "--steps", 3, "--strength", 2, "--seed", 5, "--square")
    code = code_of("direction", "--weights", path, "--data", data, *flags, "--out", tmp_path)
    if of_start < 8:
        assert code == 78 and "look like NC or like AD" in capsys.readouterr().err
        return
    gan = Gan(path)
    w = torch.cat([gan.w(gan.z(5, i), None) for i in range(20)])
    step = w[kinds == 0].mean(0) - w[kinds == 1].mean(0)
    strip = cells(pixels(tmp_path / "direction.png"), 2, 3, top=12)
    for r, start in enumerate(w[kinds == 1][:2]):
        for j, amount in enumerate((0, 1, 2)):
            assert np.abs(strip[r, j].astype(int) - gan.draw((start + amount * step)[None])).max() <= 1
    found = json.loads((tmp_path / "direction.json").read_text())
    assert found["recognised_as_end"] == [0.0, 0.5, 1.0] and found["length"] == pytest.approx(
        float(step.norm()), rel=1e-4
    )
    shown_features, labels, classes = trained[
        0
    ]  # the end is class 0, AD; of the strip's three columns 1 0 0 and 1 1 0 are not it
    images, _, _, expected = slices_in(data, "train")
    assert labels.tolist() == expected and classes == 2 and len(shown_features) == len(images)
    drawn = torch.from_numpy(np.stack([gan.draw(row[None]) for row in w]))[:, None]
    torch.testing.assert_close(shown[0], Blocks()(drawn), rtol=0, atol=0.02)


# --- plot -------------------------------------------------------------------------------------------------------------
def test_what_is_plotted(tmp_path, monkeypatch):
    """The rows of the runs, their restarts, and how long an epoch is; of the part asked for."""
    asked = []
    monkeypatch.setattr(pages, "plot_losses", lambda *args: asked.append(args))
    rows = {}
    for name in "ab":
        (tmp_path / name).mkdir()
        rows[name] = [{"nimg": 1000 * i, "loss": i, "of": name} for i in range(6)]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[name]))
        lines = [{"event": "start", "nimg": n} for n in (0, 1500, 4000, 5000)]
        (tmp_path / name / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "data.json").write_text('{"slices": 900}')
    run = tmp_path / "a"
    call("plot", "--run", run)
    call("plot", "--run", run, "--from-kimg", 1.5, "--to-kimg", 4, "--out", tmp_path / "x.svg")
    call("plot", "--run", run, "--run", tmp_path / "b", "--from-kimg", 5)
    call("plot", "--run", run, "--run", run)  # the same run is one run
    losses, compared = run / "plots" / "losses.png", run / "plots" / "losses-compared.png"
    assert asked[0] == ({"a": Curves(rows["a"], [1.5, 4.0, 5.0], 900)}, losses)
    assert asked[1] == ({"a": Curves(rows["a"][2:5], [1.5, 4.0], 900)}, tmp_path / "x.svg")
    assert asked[2] == ({name: Curves(rows[name][5:], [5.0], 900) for name in "ab"}, compared)
    assert asked[3] == asked[0]
    assert code_of("plot", "--run", run, "--out", tmp_path / "x.jpg") == 2
    assert code_of("plot", "--run", run, "--from-kimg", 5.1) == 2


def test_the_report_lies_in_the_first_run(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    call("report", tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/report.html").is_file() and not (tmp_path / "b/report.html").exists()


# --- folders of pictures ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        ("--seed", 1),
        ("--class", "AD"),
        ("--truncation", 0.9),
        ("--truncation-cutoff", 2),
        ("--noise", "fixed"),
        ("--square",),
        ("--precision", "bf16"),
    ],
)
def test_whatever_changes_a_picture_is_a_setting(tmp_path, capsys, change):
    """Pictures of other settings are never taken for those that are asked for."""
    path = gan_file(tmp_path / "w.safetensors", geometry={**GEOMETRY, "source_width": 30})
    call("generate", "--weights", path, "--number", 2, "--out", tmp_path / "out")
    assert code_of("generate", "--weights", path, "--number", 2, *change, "--out", tmp_path / "out") == 78
    assert "holds what other settings made" in capsys.readouterr().err
    call(
        "generate", "--weights", path, "--number", 3, "--batch", 2, "--format", "npz", "--out", tmp_path / "out"
    )  # these change none


@pytest.mark.parametrize("change", [("--sampler", "heun"), ("--steps", 3), ("--guidance", 1.5), ("--seed", 1)])
def test_whatever_changes_a_picture_of_a_diffusion_network_is_a_setting(tmp_path, capsys, change):
    path = diffusion_file(tmp_path / "w.safetensors", "flow", "flow")
    call("generate", "--weights", path, "--number", 1, "--steps", 2, "--out", tmp_path / "out")
    flags = {"--steps": 2} | dict([change])
    again = [str(x) for pair in flags.items() for x in pair]
    assert code_of("generate", "--weights", path, "--number", 1, *again, "--out", tmp_path / "out") == 78
    assert "holds what other settings made" in capsys.readouterr().err


# --- captions ---------------------------------------------------------------------------------------------------------
def test_captions_say_which_picture_is_which(tmp_path, data, monkeypatch):  # noqa: F811
    """They are pixels in the end, so they are read where they are handed over."""
    asked: list[dict] = []
    grid, strip = output.image_grid, films.denoise_strip

    def spy(images, columns, scale, **captions):
        asked.append(captions | {"columns": columns})
        return grid(images, columns, scale=scale, **captions)

    monkeypatch.setattr(output, "image_grid", spy)
    path, plain = gan_file(tmp_path / "w.safetensors"), gan_file(tmp_path / "p.safetensors", conditional=False)
    call("generate", "--weights", path, "--number", 5, "--square", "--out", tmp_path / "g")
    call("generate", "--weights", plain, "--number", 2, "--square", "--out", tmp_path / "p")
    call("generate", "--weights", path, "--number", 2, "--class", "MCI", "--square", "--out", tmp_path / "m")
    assert asked == [{"labels": ["NC", "AD", "MCI", "NC", "AD"], "columns": 3}, {"labels": None, "columns": 2},
                     {"labels": ["MCI", "MCI"], "columns": 2}]  # fmt: skip
    asked.clear()
    call("mix", "--weights", path, "--rows", 2, "--cols", 2, "--square", "--out", tmp_path / "x")
    call("interpolate", "--weights", plain, "--number", 2, "--steps", 2, "--square", "--out", tmp_path / "i")
    call("interpolate", "--weights", path, "--number", 3, "--steps", 2, "--square", "--out", tmp_path / "j")
    flags = ("--rows", 1, "--steps", 4, "--strength", 1.5, "--from", "MCI", "--to", "NC", "--device", "cpu")
    call("direction", "--weights", path, *flags, "--out", tmp_path / "d")
    assert asked == [
        {"column_labels": ["", "2 MCI", "3 NC"], "row_labels": ["", "0 NC", "1 AD"], "columns": 3,
         "note": "Layers 0 to 2 are of the picture on top, the others of the one at the left."},
        {"row_labels": ["0", "1"], "columns": 2}, {"row_labels": ["0 NC", "1 AD", "2 MCI"], "columns": 2},
        {"column_labels": ["MCI", "0.5", "NC", "1.5"], "columns": 4,
         "note": "Numbers: the way from MCI (0) to NC (1)."},
    ]  # fmt: skip
    asked.clear()
    trained = gan_file(tmp_path / "q.safetensors", geometry=GEOMETRY, classes=["AD", "NC"])
    monkeypatch.setattr(projection, "CANDIDATES", 4)
    call(
        "project",
        "--weights",
        trained,
        "--data",
        data,
        "--number",
        2,
        "--steps",
        1,
        "--device",
        "cpu",
        "--out",
        tmp_path / "r",
    )
    psnr = [f"{s['psnr']:.1f} dB" for s in json.loads((tmp_path / "r/project.json").read_text())["slices"]]
    assert asked == [{"row_labels": psnr, "column_labels": ["real slice", "projection", "difference x 2"], "columns": 3,
                      "note": "At the left the PSNR of each projection."}]  # fmt: skip

    monkeypatch.setattr(films, "denoise_strip", lambda *args: asked.append(args[1:]) or strip(*args))
    asked.clear()
    net = diffusion_file(tmp_path / "n.safetensors", "flow", "flow")
    call(
        "denoise",
        "--weights",
        net,
        "--number",
        2,
        "--steps",
        4,
        "--sampler",
        "ddim",
        "--square",
        "--out",
        tmp_path / "n",
    )
    assert asked[0] == (["100 % noise", "90 % noise", "50 % noise", "10 % noise", "result"], ["0 NC", "1 AD"], 1)


# --- colour and half precision ----------------------------------------------------------------------------------------
def test_colour_is_kept_in_every_file(tmp_path):
    path = gan_file(tmp_path / "w.safetensors", channels=3)
    call("generate", "--weights", path, "--number", 3, "--format", "npz", "--out", tmp_path / "out")
    with np.load(tmp_path / "out/slices.npz") as file:
        assert file["images"].shape == (3, 3, 60, 64)
        for i, picture in enumerate(sorted((tmp_path / "out").glob("0*.png"))):
            np.testing.assert_array_equal(file["images"][i].transpose(1, 2, 0), pixels(picture))
            assert not np.array_equal(file["images"][i, 0], file["images"][i, 2])
    call("interpolate", "--weights", path, "--number", 2, "--steps", 1, "--square", "--out", tmp_path / "film")
    strip = pixels(tmp_path / "film/strip.png")
    call("generate", "--weights", path, "--number", 2, "--square", "--noise", "fixed", "--out", tmp_path / "square")
    for i, picture in enumerate(sorted((tmp_path / "square").glob("0*.png"))):
        np.testing.assert_array_equal(strip[2 + 34 * i : 34 + 34 * i, -34:-2], pixels(picture))


@pytest.mark.parametrize("kind", ["stylegan2", "diffusion"])
def test_half_precision_is_near_and_not_the_same(tmp_path, kind):
    path = tmp_path / "w.safetensors"
    gan_file(path) if kind == "stylegan2" else diffusion_file(path, "flow", "flow")
    for precision in ("fp32", "bf16"):
        call(
            "generate",
            "--weights",
            path,
            "--number",
            1,
            "--precision",
            precision,
            "--square",
            "--out",
            tmp_path / precision,
        )
    a, b = (pixels(tmp_path / p / "000000_NC.png").astype(int) for p in ("fp32", "bf16"))
    assert 0 < np.abs(a - b).max() < 40 and np.abs(a - b).mean() < 4


def test_films_are_bounded_by_their_frames(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(films, "MAX_FRAMES", 6)
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("interpolate", "--weights", path, "--square", "--out", tmp_path)
    call(*flags, "--number", 3, "--steps", 2)
    assert code_of(*flags, "--number", 3, "--steps", 3) == 2
    assert "more than 6 frames" in capsys.readouterr().err


# --- passes of several pictures, as on a GPU --------------------------------------------------------------------------
@pytest.fixture
def threes(monkeypatch) -> list[list[int]]:
    """Passes of three pictures also on a CPU; which pictures were made, pass by pass."""
    made, opened, real = [], commands.open_model, GanModel.sample
    monkeypatch.setattr(commands, "open_model", lambda *a, **k: replace(opened(*a, **k), batch=3))
    monkeypatch.setattr(
        GanModel, "sample", lambda self, *, indices, **how: made.append(indices) or real(self, indices=indices, **how)
    )
    return made


def test_the_last_pass_is_cut_and_only_what_is_missing_is_made(tmp_path, threes, capsys):
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("generate", "--weights", path, "--square", "--out", tmp_path / "out")
    call(*flags, "--number", 4)
    names = [f"00000{i}_{CLASSES[i % 3]}.png" for i in range(5)]
    assert sorted(p.name for p in (tmp_path / "out").glob("0*.png")) == names[:4] and threes == [[0, 1, 2], [3]]
    before = [pixels(tmp_path / "out" / name) for name in names[:4]]
    (tmp_path / "out" / names[1]).unlink()
    threes.clear()
    capsys.readouterr()
    call(*flags, "--number", 5)
    assert threes == [[1], [3 + 1]] and "5 pictures (3 were there already)" in capsys.readouterr().out
    for name, picture in zip(names, before, strict=False):
        assert np.abs(pixels(tmp_path / "out" / name).astype(int) - picture).max() <= 1


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(tmp_path, threes, monkeypatch, capsys):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(output.tempfile, "TemporaryFile", refuse)
    path = gan_file(tmp_path / "w.safetensors")
    assert code_of("generate", "--weights", path, "--number", 2, "--out", tmp_path / "out") == 78
    assert "Permission denied" in capsys.readouterr().err and threes == []


def test_a_setting_that_nobody_noted_is_another_setting(tmp_path, capsys):
    """Pictures of an older version, whose generate.json knows less."""
    path = gan_file(tmp_path / "w.safetensors")
    call("generate", "--weights", path, "--number", 1, "--out", tmp_path / "out")
    about = json.loads((tmp_path / "out/generate.json").read_text())
    del about["settings"]["noise"]
    (tmp_path / "out/generate.json").write_text(json.dumps(about))
    assert code_of("generate", "--weights", path, "--number", 1, "--out", tmp_path / "out") == 78
    assert "noise none -> random" in capsys.readouterr().err


def test_settings_name_the_precision_the_size_and_the_file(tmp_path):
    path = gan_file(tmp_path / "w.safetensors")
    call("generate", "--weights", path, "--number", 1, "--precision", "bf16", "--out", tmp_path / "out")
    settings = json.loads((tmp_path / "out/generate.json").read_text())["settings"]
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    assert (settings["precision"], settings["size"], settings["weights_sha256"]) == ("bfloat16", "64x60", sha)
