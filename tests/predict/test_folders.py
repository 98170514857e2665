"""Which folder a command writes to, what it may replace there, and what readers find; pictures of named seeds, and the
formats that they are written in."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import GEOMETRY, call, make_generator, one_line, read, write
from test_written import diffusion_file

import predict
from data import volumes
from data.pack import ensure_pack
from data.packfile import restore
from data.records import Choices
from jobs.predict import conditions, flags, forms, output, trained
from jobs.predict.output import Output
from jobs.run.predictions import made, record_of
from jobs.run.rundir import RunDir
from jobs.view.report import write_page

GENERATE = "generate --square --number 1 --run".split()
MIX = "mix --square --rows 1 --cols 1 --run".split()


@pytest.fixture(scope="module")
def generators():
    return [make_generator(seed) for seed in (0, 1)]


@pytest.fixture
def run(tmp_path, generators):
    """A run whose weights can be exchanged for later ones."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    write(path / "weights.safetensors", generators[0])
    return path


def later(run, generators, nimg=48000):
    write(run / "weights.safetensors", generators[1], {"nimg": nimg})


def folders(run) -> set[str]:
    return {p.relative_to(run / "predictions").as_posix() for p in (run / "predictions").glob("*/*")}


# --- the default folder -----------------------------------------------------------------------------------------------
def test_other_weights_and_settings_have_folders_of_their_own(run, generators, capsys):
    """Nothing is replaced, nothing stands in the way, and the same command finds its own."""
    asked = [[*GENERATE, run], [*MIX, run], [*MIX, run, "--seed", 5], [*GENERATE, run, "--truncation", 0.7],
             [*GENERATE, run, "--class", "NC", "--noise", "fixed"]]  # fmt: skip
    for words in asked:
        assert call(*words) == 0
    names = {"generate/24kimg-square", "generate/24kimg-square-truncation0.7", "generate/24kimg-square-NC-noise-fixed",
             "mix/24kimg-square-rows1-cols1", "mix/24kimg-seed5-square-rows1-cols1"}  # fmt: skip
    assert folders(run) == names
    before = {path: path.read_bytes() for path in (run / "predictions").rglob("*.png")}
    later(run, generators)
    for words in asked[:2]:
        assert call(*words) == 0
    assert folders(run) == names | {"generate/48kimg-square", "mix/48kimg-square-rows1-cols1"}
    assert all(path.read_bytes() == content for path, content in before.items())
    capsys.readouterr()
    assert call(*asked[0]) == 0 and "1 were there already" in capsys.readouterr().out


def test_what_a_name_cannot_tell_apart_has_a_number(run, generators, tmp_path, monkeypatch):
    """Other weights of the same kimg; and again the first ones, which find their own."""
    assert call(*MIX, run) == 0
    later(run, generators, 24000)
    assert call(*MIX, run) == 0 and call(*MIX, run) == 0
    write(run / "weights.safetensors", generators[0])
    assert call(*MIX, run) == 0
    assert folders(run) == {"mix/24kimg-square-rows1-cols1", "mix/24kimg-square-rows1-cols1-2"}
    monkeypatch.chdir(tmp_path)
    assert call(*MIX[:-1], "--weights", "run/weights.safetensors") == 0
    assert folders(tmp_path) == {"mix/run-24kimg-square-rows1-cols1"}


def test_more_pictures_a_larger_grid_and_one_file_of_all_stay_in_the_folder(run):
    for words in ((), ("--number", 3), ("--scale", 2), ("--format", "npz"), ("--device", "cpu", "--batch", 3)):
        assert call(*GENERATE, run, *words) == 0
    assert folders(run) == {"generate/24kimg-square"}
    found = {p.name for p in (run / "predictions/generate/24kimg-square").iterdir()}
    assert found == {"000000_AD.png", "000001_NC.png", "000002_AD.png", "grid.png", "generate.json", "generated.csv",
                     "slices.npz"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("generate --run r", "24kimg"),
        ("generate --run r --seed 0 --number 9 --batch 2 --device cpu --overwrite --at last", "24kimg"),
        ("generate --run r --at best --guidance age=2,sex=1.5 --steps 10", "24kimg-best-steps10-guidanceage2,sex1.5"),
        ("generate --run r --at 24 --set age=80 --set sex=F/M", "24kimg-age=80-sex=F_M"),
        ("generate --run r --vary age=55:90:8 --format png16", "24kimg-age=55_90_8-png16"),
        ("generate --run r --seeds 3,17,40-50 --class ../up", "24kimg-up-seeds"),
        ("generate --run r --like /home/me/a.csv", "24kimg-like-a.csv"),
        ("evaluate --run r --number 60 --data /x/ADNI/ --feature-weights d/v3.pth",
         "24kimg-data-ADNI-feature-weights-v3.pth-number60"),
        ("direction --run r --from AD --to NC", "24kimg-from-AD-to-NC"),
        ("export --run r --format onnx", "24kimg-onnx"),
        ("film --run r --fps 9", "24kimg-fps9"),
        ("generate --run r --class " + 200 * "x", "24kimg-" + 93 * "x"),
    ],
)  # fmt: skip
def test_the_name_says_what_is_not_the_default(words, name):
    args = predict.parse_args(predict.__doc__, words.split())
    assert output.name_of(args, 24000) == name and re.fullmatch(r"[\w.=,+-]+", name, re.ASCII)


# --- a folder that is named -------------------------------------------------------------------------------------------
def test_a_named_folder_of_other_settings_is_refused_in_plain_words(run, generators, tmp_path, capsys):
    out = tmp_path / "out"
    for words in ([*GENERATE, run], [*MIX, run]):  # of two commands, side by side
        assert call(*words, "--out", out) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    capsys.readouterr()
    text = one_line(capsys, call(*MIX, run, "--seed", 5, "--scale", 2, "--out", out), 78)
    assert f"{out}: holds what other settings made (seed 0 -> 5, scale 1 -> 2); use another --out, or --overw" in text
    text = one_line(capsys, call(*GENERATE, run, "--truncation", 0.5, "--format", "png16", "--out", out), 78)
    assert "(truncation 1.0 -> 0.5, format png -> png16)" in text
    later(run, generators)
    for words in ([*GENERATE, run], [*MIX, run]):
        text = one_line(capsys, call(*words, "--out", out), 78)
        assert "(24 kimg -> 48 kimg)" in text and not re.search(r"[0-9a-f]{10}", text)
    later(run, generators, 24000)
    assert "(other weights of 24 kimg)" in one_line(capsys, call(*MIX, run, "--out", out), 78)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    (out / "mine.png").write_bytes(b"kept")
    assert call(*GENERATE, run, "--class", "NC", "--out", out, "--overwrite") == 0
    assert (out / "mine.png").exists() and (out / "mix.png").read_bytes() == before["mix.png"]
    assert {p.name for p in out.glob("0*")} == {"000000_NC.png"}


def test_files_of_strangers_are_not_replaced(run, tmp_path, capsys):
    for name, words in (("mix.png", MIX), ("generated.csv", GENERATE), ("seed000003.nii.gz", GENERATE)):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("mine")
        (out / "notes.txt").write_text("mine")
        text = one_line(capsys, call(*words, run, "--out", out), 78)
        assert f"holds {name}, and no {record_of(words[0])} says what made it" in text
        assert {p.name for p in out.iterdir()} == {name, "notes.txt"} and (out / name).read_text() == "mine"
    (out / name).unlink()
    assert call(*GENERATE, run, "--out", out) == 0  # beside other files
    for name in ("decoder.onnx", "theirs.onnx"):
        (out / name).write_text("mine")
    (out / "diffusers").mkdir()
    assert "holds decoder.onnx, and no onnx.json says" in Output("export", out, form="onnx").other(0, {})
    there = Output("export", out, form="diffusers")
    assert "holds diffusers, and no diffusers.json says" in there.other(0, {})
    there = replace(there, overwrite=True).claim(0, {})
    assert (there / "diffusers").is_dir()  # export itself replaces it, when the new one has passed its check


def test_a_folder_that_cannot_be_written_is_one_line(run, tmp_path, capsys, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "out"))

    monkeypatch.setattr(output.tempfile, "TemporaryFile", refuse)
    assert "Permission denied; check the path" in one_line(capsys, call(*MIX, run, "--out", tmp_path / "out"), 78)
    assert not list((tmp_path / "out").iterdir())


def test_own_files_are_all_that_a_command_writes(run, tmp_path):
    """What --overwrite removes and what a stranger's files are told by is one table."""
    diffusion = diffusion_file(tmp_path / "d.safetensors", "flow", "flow")
    for words in ("generate --number 1 --format npz", "mix --rows 1 --cols 1", "interpolate --number 2 --steps 2",
                  "denoise --number 1 --steps 2"):  # fmt: skip
        command, of = words.split()[0], ["--weights", diffusion] if "denoise" in words else ["--run", run]
        out = tmp_path / command
        assert call(*words.split(), "--square", *of, "--out", out) == 0
        there = Output(command, out)
        assert {p.name for p in there.own_files()} == {p.name for p in out.iterdir()} - {there.record.name}, command


# --- what readers find ------------------------------------------------------------------------------------------------
def test_readers_find_the_newest(run, tmp_path):
    """Also of a folder that an older version wrote; nothing that leads out of the run."""
    paths = [run / "predictions/mix" / name for name in ("mix.png", "24kimg/mix.png", "48kimg/mix.png")]
    for age, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), age, np.uint8)).save(path)
        path.with_name("mix.json").write_text(json.dumps({"nimg": 1000 * age}))
        os.utime(path, (9 - age, 9 - age))
    assert made(run, "mix", "mix.png") == paths and made(run, "mix")[0].name == "mix.json"
    assert "style mixing at 0 kimg" in write_page([RunDir(run)])
    os.utime(paths[2], (99, 99))
    assert made(run, "mix", "mix.png")[0] == paths[2]
    page = write_page([RunDir(run)])
    assert "style mixing at 2 kimg" in page and page.count("<img") == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mix.png").write_bytes(paths[0].read_bytes())
    (run / "predictions/mix/linked").symlink_to(tmp_path / "elsewhere")
    assert len(made(run, "mix", "mix.png")) == 3


def test_a_card_has_the_figures_of_its_own_weights_though_others_are_newer(run):
    from jobs.predict.card import of_weights

    for age, sha256 in enumerate("abc"):
        folder = run / "predictions/evaluate" / sha256
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"settings": {"weights_sha256": sha256}, "age": age}))
        os.utime(folder / "metrics.json", (age, age))
    assert [of_weights(RunDir(run), "evaluate", one).get("age") for one in "abcd"] == [0, 1, 2, None]


# --- seeds ------------------------------------------------------------------------------------------------------------
def test_a_seed_by_name_is_the_first_picture_of_that_seed(run, tmp_path):
    out = tmp_path / "seeds"
    of_class = ("generate", "--square", "--run", run, "--class", "NC")
    assert call(*of_class, "--seeds", "3,17,40-41", "--out", out) == 0
    assert sorted(p.name for p in out.glob("seed*")) == [f"seed0000{s}_NC.png" for s in ("03", "17", "40", "41")]
    for seed in (3, 40):
        alone = tmp_path / str(seed)
        assert call(*of_class, "--seed", seed, "--number", 1, "--out", alone) == 0
        assert (alone / "000000_NC.png").read_bytes() == (out / f"seed0000{seed:02}_NC.png").read_bytes()
    table = list(csv.DictReader((out / "generated.csv").open()))
    assert table[1] == {"file": "seed000017_NC.png", "index": "0", "seed": "17", "class": "NC"}
    about = json.loads((out / "generate.json").read_text())
    assert about["seeds"] == "3,17,40-41" and about["settings"]["seed"] == "of --seeds"


def test_seeds_take_classes_by_themselves_and_more_of_them_join_the_others(run):
    """Whatever others are asked for, a seed has its class; and what was there is kept, and stays in the table."""
    words = ("generate", "--square", "--run", run, "--seeds")
    assert call(*words, "8,3") == 0
    out = run / "predictions/generate/24kimg-square-seeds"
    kept = out / "seed000003_NC.png"
    os.utime(kept, (1, 1))
    (out / "seed000008_AD.png").write_bytes(b"damaged")
    assert call(*words, "8") == 0 and call(*words, "5-6,3") == 0
    names = [f"seed00000{s}_{c}.png" for s, c in ((3, "NC"), (5, "NC"), (6, "AD"), (8, "AD"))]
    assert sorted(p.name for p in out.glob("seed*")) == names and kept.stat().st_mtime == 1
    assert [row["file"] for row in csv.DictReader((out / "generated.csv").open())] == names
    assert read(out / names[3]).shape == (32, 32) and read(out / "grid.png").shape[1] == 2 + 2 * 34


def test_table_and_npz_hold_the_same_pictures_in_the_same_order(run, tmp_path):
    """Whatever order seeds are typed in, fewer or more are asked for later, in whatever format of PNGs."""
    words = ("generate", "--square", "--run", run, "--out")

    def rows(out) -> list[str]:
        table = list(csv.DictReader((out / "generated.csv").open()))
        with np.load(out / "slices.npz") as file:
            assert [[str(i), str(s)] for i, s in zip(file["index"], file["seed"], strict=True)] == [
                [row["index"], row["seed"]] for row in table
            ]
            np.testing.assert_array_equal(file["images"][:, 0], [read(out / row["file"]) for row in table])
            assert [("AD", "NC")[k] for k in file["labels"]] == [row["class"] for row in table]
        return [row["file"] for row in table]

    assert call(*words, tmp_path / "s", "--seeds", "17,3", "--format", "npz") == 0
    assert rows(tmp_path / "s") == ["seed000003_NC.png", "seed000017_NC.png"]
    out = tmp_path / "n"
    for more, there in ((("--number", 3, "--format", "npz"), 3), (("--number", 1, "--format", "npz"), 3),
                        (("--number", 4), 4)):  # fmt: skip
        assert call(*words, out, *more) == 0
        assert len(rows(out)) == there
    assert call(*words, tmp_path / "b", "--number", 1, "--seed", 10**30, "--format", "npz") == 0
    assert len(rows(tmp_path / "b")) == 1


def test_the_table_lists_what_is_there_after_an_interruption(run, tmp_path):
    """Six were asked for, three were written whole; then the first alone is asked for."""
    words = ("generate", "--square", "--run", run, "--out", tmp_path, "--number")
    assert call(*words, 6) == 0
    names = sorted(p.name for p in tmp_path.glob("0*"))
    for name in names[4:]:
        (tmp_path / name).unlink()
    (tmp_path / names[3]).write_bytes(b"torn")
    assert call(*words, 1) == 0
    assert [row["file"] for row in csv.DictReader((tmp_path / "generated.csv").open())] == names[:3]
    assert call(*words, 6) == 0
    assert [row["file"] for row in csv.DictReader((tmp_path / "generated.csv").open())] == names


def test_seeds_of_a_diffusion_network(tmp_path):
    """Noise, and the noise that ancestral sampling adds, are those of the seed."""
    model = trained.read_model(diffusion_file(tmp_path / "w", "flow", "flow"), torch.device("cpu"))
    how = {"sampler": "ancestral", "steps": 2}
    both = model.sample(indices=[4, 9], seed=None, label="AD", **how)
    for row, seed in zip(both, (4, 9), strict=True):
        np.testing.assert_array_equal(row, model.sample(1, seed, "AD", **how)[0])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("5-3", "5-3 runs backwards; write 3-5"),
        ("a", "'a' is no seed; write such as 3,17,40-50"),
        ("3,,4", "'' is no seed"),
        ("-3", "'-3' is no seed"),
        ("1-", "'1-' is no seed"),
        ("1-2-3", "'1-2-3' is no seed"),
        ("3,1-5", "3 stands there twice; name each seed once"),
        ("0-1000000", "more than 1,000,000 seeds; use --number"),
        ("0-99999999999999999", "more than 1,000,000 seeds"),
        ("9" * 19, "is no seed"),
    ],
)
def test_wrong_seeds(capsys, text, says):
    with pytest.raises(SystemExit) as left:
        predict.parse_args(predict.__doc__, ["generate", "--run", "x", f"--seeds={text}"])
    assert left.value.code == 2 and says in capsys.readouterr().err


def test_seeds_as_text_and_back():
    assert flags.seeds("3, 17,40-42,7") == [3, 17, 40, 41, 42, 7]
    assert flags.spans([42, 3, 41, 7, 40]) == "3,7,40-42" and flags.spans([5]) == "5"


@pytest.mark.parametrize("words", ["--number 3", "--seed 1", "--like t.csv", "--vary age"])
def test_seeds_stand_alone(run, tmp_path, capsys, words):
    flag = words.split()[0]
    text = one_line(capsys, call("generate", "--run", run, "--seeds", 3, *words.split(), "--out", tmp_path / "x"), 2)
    assert f"{flag} has no use with --seeds; leave one of them out" in text and not (tmp_path / "x").exists()


# --- formats ----------------------------------------------------------------------------------------------------------
def by_hand(seed, label) -> np.ndarray:
    """What the network draws of a latent, in -1..1, with fixed noise."""
    z = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return make_generator()(z, torch.tensor([label]))[0, 0].clamp(-1, 1).double().numpy()


def test_formats_hold_the_networks_own_values_and_the_same_pictures(run, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    for form in ("png", "png16", "nifti"):
        words = ("generate", "--square", "--number", 2, "--noise", "fixed", "--format", form, "--out", tmp_path / form)
        assert call(*words, "--run", run) == 0
    seeds = json.loads((tmp_path / "png/generate.json").read_text())["z_seeds"]
    for i, name in enumerate(("000000_AD", "000001_NC")):
        whole = (by_hand(seeds[i], i) + 1) / 2
        deep = np.asarray(Image.open(tmp_path / f"png16/{name}.png")).astype(np.uint16)
        assert np.abs(deep - whole * 65535).max() <= 0.51 and (deep % 257 > 0).sum() > 100  # no 8-bit values
        picture = nibabel.load(tmp_path / f"nifti/{name}.nii.gz")
        assert picture.shape == (32, 32, 1) and picture.get_data_dtype() == np.float32
        np.testing.assert_allclose(np.asarray(picture.dataobj)[:, :, 0].T, whole, atol=1e-6)
        assert np.abs(read(tmp_path / f"png/{name}.png") - whole * 255).max() <= 0.51
    grids = [read(tmp_path / form / "grid.png").astype(int) for form in ("png", "png16", "nifti")]
    assert max(np.abs(grids[0] - grid).max() for grid in grids[1:]) <= 1
    tables = [(tmp_path / form / "generated.csv").read_text() for form in ("png", "nifti")]
    assert tables[0].replace(".png", ".nii.gz") == tables[1]
    assert Image.open(tmp_path / "png16/000000_AD.png").text["index"] == "0"
    assert b"picture 0 of seed 0" in picture_header(tmp_path / "nifti/000000_AD.nii.gz")


def picture_header(path) -> bytes:
    return gzip.decompress(path.read_bytes())[:352]


def test_floats_at_the_slices_own_size(run, tmp_path):
    """Resized as the 8-bit pictures are, without rounding in between; the crop's outside stays black."""
    geometry = GEOMETRY | {"crop": 128}
    path = write(tmp_path / "w.safetensors", make_generator(), {"geometry": geometry})
    model = trained.read_model(path, torch.device("cpu"))
    small, whole = model.sample(2), model.unrounded().sample(2)
    assert whole.dtype == np.float32 and whole.shape == small.shape == (2, 1, 256, 240) and small.dtype == np.uint8
    # 8 bits are also clipped between the resizing of rows and of columns, which tells where a resize overshoots
    assert np.quantile(np.abs(whole * 255 - small), 0.98) < 1 and whole.min() == 0 and whole.max() <= 1
    assert not whole[:, :, :60].any() and len(np.unique(whole)) > 10_000
    squares = np.zeros((1, 1, 32, 32), np.float32)
    squares[..., ::2] = 1  # a resize overshoots
    assert restore(squares, geometry).max() == 1 and restore(squares, geometry).min() == 0


@pytest.mark.parametrize("form", ["png", "png16", "nifti", "npz"])
def test_an_interrupted_generate_goes_on_in_every_format(run, tmp_path, capsys, form):
    words = ("generate", "--square", "--number", 5, "--format", form, "--run", run, "--out", tmp_path)
    assert call(*words) == 0
    before = {p.name: p.read_bytes() for p in tmp_path.glob("0*")}
    names = sorted(before)
    (tmp_path / names[0]).unlink()
    (tmp_path / names[1]).write_bytes(before[names[1]][:-20])
    (tmp_path / names[2]).write_bytes(b"")
    (tmp_path / names[3]).unlink()
    (tmp_path / names[3]).symlink_to(tmp_path / names[4])
    capsys.readouterr()
    assert call(*words) == 0 and "1 were there already" in capsys.readouterr().out
    assert {p.name: p.read_bytes() for p in tmp_path.glob("0*")} == before
    assert not (tmp_path / names[3]).is_symlink()


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_nifti_slice_is_cut_from_itself_upright(tmp_path, plane):
    """As a volume it is the very picture again, in mm of the data: what a viewer shows lies as the PNG does."""
    pytest.importorskip("nibabel")
    path = write(tmp_path / "w.safetensors", make_generator(), {"spacing": 1.25}, plane=plane)
    model = trained.read_model(path, torch.device("cpu"))
    image = np.zeros((1, *model.size), np.float32)
    image[0, 40:90, 30:200], image[0, 200:210, 20:60] = 0.5, 1.0  # no two sides alike
    about = {"index": "0", "seed": "0", "weights_sha256": "0" * 64}
    forms.write_nifti(tmp_path / "a.nii.gz", model, image, about)
    volume = volumes.open_volume(tmp_path / "a.nii.gz")
    assert volume.frame(plane) == ((256, 240), 1, 1.25)
    cut = volumes.Cut(plane, (0.0, 1.0), (0.0, 1.0))
    ((_, again),), _ = volumes.read_volume(tmp_path / "a.nii.gz", cut)
    np.testing.assert_array_equal(again, np.rint(image[0] * 255))
    middle = forms.affine_of(model) @ [239 / 2, 255 / 2, 0, 1]
    np.testing.assert_allclose(middle, [0, 0, 0, 1])


def test_a_pack_says_in_which_plane_its_slices_were_cut(tmp_path, capsys):
    """A run that is given the pack has no --plane of its own. Of old files nobody knows, which is said."""
    nibabel = pytest.importorskip("nibabel")
    (tmp_path / "x").mkdir()
    voxels = np.random.default_rng(0).integers(0, 200, (12, 12, 12)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "x/sub-01_T1w.nii")
    how = {"resolution": 32, "split": "all", "log": lambda text: None}
    out = tmp_path / "x.pack"
    ensure_pack(str(tmp_path / "x"), choices=Choices(plane="coronal"), out=out, progress=False, max_bad=0.0, **how)
    known = conditions.known_of(ensure_pack(str(out), **how), ())
    assert known["plane"] == "coronal" and known["geometry"].keys() == GEOMETRY.keys()
    assert "plane" not in conditions.known_of(SimpleNamespace(classes=[], geometry={}, meta={"plane": ["x"]}), ())
    for about, told, plane in (({"plane": "coronal"}, "", "coronal"), ({}, "sagittal", "sagittal"), ({}, "", ""),
                               ({"plane": ["x"]}, "up", "")):  # fmt: skip
        path = write(tmp_path / "w.safetensors", make_generator(), about, plane=told)
        model = trained.read_model(path, torch.device("cpu"))
        assert model.plane == plane
        across = int(np.flatnonzero(forms.affine_of(model)[:3, 2])[0])
        assert across == volumes.PLANES[plane or "axial"]
        forms.form_of("nifti", model)
        assert ("they are written as axial ones" in capsys.readouterr().out) == (not plane)


@pytest.mark.parametrize(("spacing", "square", "mm"), [
    (1.25, False, 1.25), (1.25, True, 1.25 * 256 / 32), (None, False, 1), ("x", False, 1), (-1, True, 1),
])  # fmt: skip
def test_millimetres_of_a_pixel(tmp_path, spacing, square, mm):
    path = write(tmp_path / "w.safetensors", make_generator(), {"spacing": spacing})
    model = trained.read_model(path, torch.device("cpu"), square=square)
    assert np.abs(forms.affine_of(model)[:3, :3]).max() == mm


def test_weights_know_the_spacing_of_volumes_alone():
    packs = [SimpleNamespace(classes=[], geometry={}, meta={"spacing": mm}) for mm in (0.9, 0, "x")]
    known = [conditions.known_of(pack, ()) for pack in packs]
    assert [k.get("spacing") for k in known] == [0.9, None, None]


def test_colour_in_each_format(tmp_path, capsys):
    nibabel = pytest.importorskip("nibabel")
    path = write(tmp_path / "w.safetensors", make_generator(channels=3), channels=3)
    words = ("generate", "--square", "--number", 1, "--weights", path)
    assert call(*words, "--format", "nifti", "--out", tmp_path / "a") == 0
    assert nibabel.load(tmp_path / "a/000000_AD.nii.gz").shape == (32, 32, 1, 3)
    assert read(tmp_path / "a/grid.png").shape[2] == 3
    assert "in colour; use --format nifti" in one_line(capsys, call(*words, "--format", "png16"), 78)
    assert not (tmp_path / "predictions").exists()


def test_what_has_no_use_with_vary(run, capsys):
    assert "--format has no use with --vary" in one_line(
        capsys, call("generate", "--run", run, "--vary", "age", "--format", "nifti"), 2
    )
