"""`predict.py release`: a cohort of screened slices, in which no real person is named, whole or not there, and
`--verify`."""

from __future__ import annotations

import csv
import getpass
import hashlib
import io
import json
import math
import os
import shutil
import socket
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from test_learnt import noted
from test_obedience import COLUMNS, told
from test_predict import call, make_generator, one_line, write

from data import phantom
from data.files import sha256_of
from data.pack import ensure_pack
from data.sources import find_source
from jobs.config.specs import ConfigError
from jobs.predict import cohort, commands, datasheet, load, release, release_folder, screening, verify
from jobs.predict.cohort import Cohort
from jobs.predict.features import RealSlices
from jobs.predict.gan import GanModel
from jobs.predict.named import UsageError
from jobs.run.rundir import RunDir
from models import encoder

SQUARES_OF = release.squares_of
CLASSES = ["AD", "NC"]
GEOMETRY = dict(source_height=40, source_width=36, square=40, crop=0, resolution=32)
COPY, NOISE, OTHER = 2, 5, 7  # indices that are drawn badly: a copy of a training slice, noise, the other class
PEOPLE = {"train": range(218391, 218421), "test": range(310077, 310087)}
SLICES = (78, 79, 80)
EACH = 8  # slices of a class


def brain(index: int, k: int) -> np.ndarray:
    """(40, 36) of a phantom of a class of CLASSES."""
    return phantom.phantom_slice(7, index, 40, label=1 - k)[:, 2:-2]


def drawn(packs, index: int, label) -> np.ndarray:
    """(1, 32, 32): what the network draws for an index: phantoms that nobody was trained on, and bad ones."""
    k = index % 2 if label == "all" else CLASSES.index(label)
    if index == NOISE:
        return np.random.default_rng(0).integers(0, 256, (1, 32, 32), np.uint8)
    if index == COPY:
        return np.roll(packs.train.images[int(np.flatnonzero(packs.train.labels == k)[3])], 1, 2)
    square = np.pad(brain(1000 + index, 1 - k if index == OTHER else k), ((0, 0), (2, 2)))
    return np.asarray(Image.fromarray(square).resize((32, 32), Image.Resampling.BOX))[None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of slices named as ADNI names them, a run that was trained on it, and its packs."""
    root = tmp_path_factory.mktemp("secretlab")
    data, index = root / "doe_jane" / "AD_NC", 0
    for split, people in PEOPLE.items():
        for person in people:
            for number in SLICES:
                path = data / split / CLASSES[person % 2] / f"{person}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(brain(index, person % 2)).save(path)
                index += 1
    run = root / "run-of-jane"
    run.mkdir()
    about = {"classes": CLASSES, "geometry": GEOMETRY}
    write(run / "weights.safetensors", make_generator(), about, data=str(data), crop=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRAIN_PACK_DIR", str(root / "packs"))
        patch.setenv("LOGNAME", "jane_doe")
        patch.setattr(socket, "gethostname", lambda: "node-of-jane")
        how = dict(resolution=32, channels=1, progress=False, log=lambda line: None)
        packs = RealSlices(ensure_pack(str(data), **how), ensure_pack(str(data), split="test", **how))
        noted(run, packs.train.digest)
        patch.setitem(encoder.train_encoder.__kwdefaults__, "steps", 40)
        patch.setattr(cohort, "MEASURE_CHUNK", 7)
        patch.setattr(release, "squares_of", lambda model, seed, label, how: lambda indices: torch.from_numpy(
            np.stack([drawn(packs, i, label) for i in indices])))  # fmt: skip
        yield root, run, packs


@pytest.fixture(scope="module")
def made(place, tmp_path_factory):
    """A release."""
    out = tmp_path_factory.mktemp("made") / "cohort"
    assert make(place, out) == 0
    return out


@pytest.fixture
def copy(made, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(made, tmp_path / "copy")


def make(place, out, *flags) -> int:
    own = ["--run", place[1], "--number", EACH, "--device", "cpu", "--seed", 3, "--out", out]
    return call("release", *own, *flags)


def rows_of(out) -> list[dict]:
    return list(csv.DictReader(io.StringIO((out / "manifest.csv").read_text())))


def contents(out) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# --- what is in it ----------------------------------------------------------------------------------------------------
def test_as_many_slices_of_each_class_and_none_that_failed(made):
    rows, about = rows_of(made), json.loads((made / "release.json").read_text())
    assert {k: sum(row["class"] == k for row in rows) for k in CLASSES} == dict.fromkeys(CLASSES, EACH)
    indices = {int(row["index"]) for row in rows}
    assert not indices & {COPY, NOISE, OTHER} and {i % (2 * EACH) for i in indices} == set(range(2 * EACH))
    for row in rows:
        assert row["file"] == f"train/{row['class']}/{int(row['index']):06d}.png" and row["seed"] == "3"
        assert CLASSES[int(row["index"]) % 2] == row["class"] and Image.open(made / row["file"]).size == (36, 40)
    found = about["screening"]["classes"]
    failed = {test: sum(of["failed"][test] for of in found.values()) for test in found["AD"]["failed"]}
    assert failed[screening.PIXELS] == 1 and failed[screening.OUTSIDE] >= 1 and failed["read as another class"] >= 1
    assert max(indices) >= 2 * EACH and sum(of["drawn"] for of in found.values()) > 2 * EACH
    assert about["screening"]["held_out"][screening.PIXELS] == 0 < about["screening"]["held_out"][screening.OUTSIDE]
    assert about["data"]["train"] == {"slices": 90, "people": 30} and about["data"]["why"] == ""


def test_the_toolkit_and_image_folder_read_it_and_sha256sum_checks_it(made):
    from torchvision.datasets import ImageFolder

    assert ImageFolder(made / "train").classes == CLASSES and len(ImageFolder(made / "train")) == 2 * EACH
    source = find_source(str(made), "train")
    assert source.classes == CLASSES and len(source.records) == 2 * EACH and not any(r.subject for r in source.records)
    assert len(source.warnings) == 1 and "SLICE-LEVEL" in source.warnings[0]  # no file that is not understood
    lines = (made / "SHA256SUMS").read_text().splitlines()
    assert [line[66:] for line in lines] == sorted(contents(made).keys() - {"SHA256SUMS"})
    for line in lines:
        assert line[:64] == hashlib.sha256((made / line[66:]).read_bytes()).hexdigest() and line[64:66] == "  "


def test_no_identifier_is_anywhere_in_it(place, made):
    """Every byte, for people, scans, files and folders of the data and the run, and for who made it where."""
    root, run, packs = place
    words = {str(person) for people in PEOPLE.values() for person in people}
    words |= {*packs.train.subjects, *packs.train.hashes, *packs.heldout.subjects, *packs.heldout.hashes} - {""}
    words |= {name.rpartition("/")[2].partition(".")[0] for pack in (packs.train, packs.heldout) for name in pack.names}
    words |= {str(root), "secretlab", "doe_jane", "AD_NC", run.name, str(made), "packs/"}
    words |= {socket.gethostname(), getpass.getuser(), os.path.expanduser("~") + "/"}
    for name, data in contents(made).items():
        found = [word for word in words if word.encode() in data or word in name]
        assert not found, f"{name}: {found}"
        at, chunks = 8, []
        while name.endswith(".png") and at < len(data):
            length, kind = struct.unpack(">I4s", data[at : at + 8])
            chunks.append(kind)
            at += length + 12
        assert set(chunks) <= {b"IHDR", b"IDAT", b"IEND"}


def test_the_datasheet_says_how_it_was_made_and_what_is_not_proved(made):
    text, page = (made / "README.md").read_text(), (made / "datasheet.html").read_text()
    weights = json.loads((made / "release.json").read_text())["settings"]["weights_sha256"]
    for words in (
        "# 16 synthetic brain-MRI slices", weights, "| seed | 3 |", "| training | 90 | 30 |", "divided by scan",
        "| side | slices | scans |", "NOT TO BE SHARED YET", "TO BE FILLED IN BY THE OWNER",
        "it does not prove that there is no copy here", "Nothing here is fit for diagnosis", "sha256sum -c SHA256SUMS",
        "too few to be measured", "ADNI and OASIS may not be passed on",
    ):  # fmt: skip
        assert words in text, words
        assert words.strip("|# ").split(" | ")[-1] in page, words
    assert page.count("<img") == 1 and 'src="data:image/png' in page and "<script" not in page and "http" not in page


# --- whole, or not there ----------------------------------------------------------------------------------------------
def test_an_interrupted_release_goes_on_to_the_very_same_bytes(place, made, tmp_path, monkeypatch, capsys):
    whole, out = release_folder.Work.write_chunk, tmp_path / "cohort"

    def write_chunk(work, number, found):
        if number == 2:
            raise KeyboardInterrupt
        whole(work, number, found)

    monkeypatch.setattr(release_folder.Work, "write_chunk", write_chunk)
    assert make(place, out) == 130 and not out.exists()
    monkeypatch.undo()
    part = tmp_path / "cohort.part" / "release" / "train" / "AD"
    damaged = next(p for p in sorted(part.iterdir()) if int(p.stem) < 14)  # of a chunk that was noted
    damaged.write_bytes(damaged.read_bytes()[:-20])
    (part / ".000001.png.tmp.node-7.123.0").write_bytes(b"torn")
    drawn_again: list[int] = []
    draw = cohort.Drawing.draw
    monkeypatch.setattr(cohort.Drawing, "draw", lambda self, i: drawn_again.extend(i) or draw(self, i))
    assert make(place, out) == 0 and "goes on" in capsys.readouterr().out
    assert contents(out) == contents(made) and not (tmp_path / "cohort.part").exists()
    first = int(damaged.stem) // 7 * 7
    assert not set(drawn_again) & (set(range(14)) - set(range(first, first + 7)))


def test_what_is_left_of_other_settings_is_never_mixed_in(place, made, tmp_path, capsys):
    out, part = tmp_path / "cohort", tmp_path / "cohort.part"
    (part / "release/train/AD").mkdir(parents=True)
    (part / "begun.json").write_text(json.dumps({"settings": {"seed": 4}}))
    (part / "release/train/AD/000000.png").write_bytes(b"of another seed")
    assert "delete it, or use another --out" in one_line(capsys, make(place, out), 78)
    assert (part / "release/train/AD/000000.png").exists()
    shutil.rmtree(part)
    shutil.copytree(made, out)
    assert "use another --out" in one_line(capsys, make(place, out, "--class", "AD"), 78)
    assert contents(out) == contents(made)
    part.mkdir(exist_ok=True)
    (part / "thesis.txt").write_text("mine")
    (tmp_path / "cohort").rename(tmp_path / "moved")
    assert "no unfinished release" in one_line(capsys, make(place, out), 78) and (part / "thesis.txt").exists()


def test_terms_are_added_without_drawing(place, copy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cohort.Drawing, "draw", None)
    (tmp_path / "terms").write_bytes(b"\xef\xbb\xbfGiven by nobody.\r\nCite <us>.\r\n")  # as Windows writes it
    monkeypatch.setattr(release, "version", lambda: "another")  # no slice is of it
    assert make(place, copy, "--terms", tmp_path / "terms") == 0
    assert "--terms FILE" not in capsys.readouterr().out
    text = (copy / "README.md").read_text()
    assert "Given by nobody.\nCite &lt;us>." in text and "TO BE FILLED" not in text and "NOT TO BE SHARED" not in text
    assert "Given by nobody.<br>Cite &lt;us&gt;." in (copy / "datasheet.html").read_text()
    assert call("release", "--verify", copy) == 0
    (tmp_path / "blank").write_text(" \n")
    for name in ("none", "blank"):
        assert "give a small file" in one_line(capsys, make(place, copy, "--terms", tmp_path / name), 2)


DAMAGE = {
    "": r"\d+\.png was changed", "manifest.csv": "manifest.csv was changed",
    "README.md": "README.md was changed", "release.json": "release.json was changed",
    "notes.txt": "notes.txt does not belong",
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_what_was_changed_or_laid_into_it_is_not_signed(copy, name):
    with open(copy / name if name else next(copy.rglob("*.png")), "ab") as file:
        file.write(b" ")
    before = contents(copy)
    with pytest.raises(ConfigError, match=DAMAGE[name]):
        release_folder.write_terms(copy, "Given by nobody.")
    assert contents(copy) == before


@pytest.mark.parametrize("kept", range(4))
def test_terms_whose_writing_was_killed_are_written_by_the_same_command(copy, kept, monkeypatch):
    whole, torn = release_folder.atomic_write, copy / f".README.md.tmp.{socket.gethostname()}.{os.getpid()}.0"
    left = [True] * kept

    def write(path, content):
        if not left:
            torn.write_bytes(b"half")
            raise KeyboardInterrupt
        left.pop()
        whole(path, content)

    monkeypatch.setattr(release_folder, "atomic_write", write)
    with pytest.raises(KeyboardInterrupt):
        release_folder.write_terms(copy, "Given by nobody.")
    monkeypatch.undo()
    assert release_folder.write_terms(copy, "Given by nobody.")["terms"] == "Given by nobody."
    assert not torn.exists() and not list(verify.faults_of(copy)) and "Given" in (copy / "README.md").read_text()


def test_a_model_that_draws_none_that_pass_releases_nothing(place, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.integers(0, 256, (1, 1, 32, 32), np.uint8))
    monkeypatch.setattr(release, "squares_of", lambda *a: lambda i: noise.expand(len(i), -1, -1, -1))
    monkeypatch.setattr(cohort, "FEWEST", 10)
    text = one_line(capsys, make(place, tmp_path / "cohort"), 78)
    assert "too few of 12 drawn slices of AD pass" in text and f"100.0 % {screening.OUTSIDE}" in text
    assert "--truncation" in text and not list(tmp_path.iterdir())


def test_it_needs_the_slices_that_the_model_learnt_from(place, tmp_path, capsys):
    root, run, _ = place
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "data.json").write_text(json.dumps({"digests": {"train": "0" * 64}}))
    assert "name them with --data" in one_line(capsys, call("release", "--run", other), 78)
    about = {"classes": CLASSES, "geometry": GEOMETRY}
    for changes, code, words in (
        ({"data": str(root / "gone")}, 78, "name these with --data"), ({"split": "all"}, 78, "--split train"),
        ({}, 2, "--data"),
    ):  # fmt: skip
        data = {"data": str(root / "doe_jane/AD_NC")} if "split" in changes else {}
        path = write(tmp_path / "w.safetensors", make_generator(), about, crop=0, **data, **changes)
        assert words in one_line(capsys, call("release", "--weights", path, "--out", tmp_path / "o"), code)


def test_the_datasheet_claims_no_more_than_is_known(made):
    about = json.loads((made / "release.json").read_text())
    assert "the model has not seen them" in (made / "README.md").read_text()
    about["data"] |= {"why": "their run has no data.json that can be read"}
    text = datasheet.as_markdown(about)
    assert "has not seen" not in text and "is not known: their run has no data.json" in text


def test_an_evaluation_of_other_settings_is_not_that_of_this_model(tmp_path):
    model = Model([])
    vars(model).update(KIND="StyleGAN2", resolution=32, nimg=1, measured={}, size=(32, 32), channels=1, sha256="ab")
    same = {"truncation": 0.7, "class": "all", "weights_sha256": "ab", "data": "d", "features": "f"}
    for seed, other in enumerate(({}, {"truncation": 1.0}, {"class": "AD"}, {"data": "e"}, {"features": "g"})):
        place = tmp_path / f"predictions/evaluate/{seed}"
        place.mkdir(parents=True)
        found = {"compared": seed, "distances": {"generated": {"fid": 1.0}}, "settings": same | {"seed": seed} | other}
        (place / "metrics.json").write_text(json.dumps(found))
    asked = same | {"seed": 9, "slices": 4, "size": "36x40"}
    assert release.about_model(model, RunDir(tmp_path), asked)["evaluate"]["compared"] == 0
    assert release.about_model(model, RunDir(tmp_path), asked | {"truncation": 0.5})["evaluate"] == {}


def test_slices_are_drawn_in_the_passes_of_generate(place, monkeypatch):
    """On a CPU one at a time: in others they would differ in the last bit, and some by a shade of grey."""
    model, passes = load(place[1], device="cpu"), []
    monkeypatch.setattr(GanModel, "sample", lambda self, **_: passes.append(self.batch) or np.zeros((3, 1, 32, 32)))
    SQUARES_OF(model, 0, "all", {})([0, 1, 2])
    assert passes == [model.batch] == [1]


@pytest.mark.parametrize("out", [".", "/", "..", "x/.."])
def test_a_release_needs_a_name_of_its_own(place, out, capsys):
    assert "name one" in one_line(capsys, call("release", "--run", place[1], "--out", out), 2)


def test_a_default_that_is_typed_out_is_the_default(place, monkeypatch):
    folders = []
    monkeypatch.setattr(commands, "release", lambda model, out, cohort, **_: folders.append(out.name))
    for more in ([], ["--number", 100], ["--number", 99]):
        call("release", "--run", place[1], *more)
    assert folders == ["24kimg", "24kimg", "24kimg-number99"]


# --- what is asked for ------------------------------------------------------------------------------------------------
class Model:
    """As much of a model as says what is asked."""

    def __init__(self, classes, columns=()):
        self.classes, self.columns = classes, columns


def test_a_cohort_is_so_many_of_each_class_or_row():
    class_column = screening.Column("class", ("AD", "NC"))
    conditional, free = Model(CLASSES), Model([])
    of_columns = Model(CLASSES, [class_column, *COLUMNS])
    assert Cohort.of(conditional, "all", 3) == Cohort("all", 6) and Cohort.of(conditional, "AD", 3).number == 3
    assert Cohort.of(free, "all", 5) == Cohort("all", 5)
    both = Cohort.of(of_columns, {"age": "80"}, 3)
    assert both.number == 6 and both.label == [{"class": "AD", "age": "80"}, {"class": "NC", "age": "80"}]
    assert Cohort.of(of_columns, [{"age": "60"}, {"age": "70"}, {"age": "80"}], 2).number == 6
    with pytest.raises(UsageError, match="slices in all"):
        Cohort.of(conditional, "all", 10**7)


def test_folders_have_names_that_every_system_takes():
    found = verify.folders_of(["AD", "ad", "..", "mild/severe", "mild severe", "slices"])
    assert found == {
        "": "slices", "AD": "AD", "ad": "ad-1", "..": "class-2", "mild/severe": "mild-severe",
        "mild severe": "mild-severe-4", "slices": "slices-5",
    }  # fmt: skip

    for classes in (["b-2", "b", "B"], ["B-2", "b", "B"], ["a-1", "A", "a", "a-2"]):
        assert len({folder.lower() for folder in verify.folders_of(classes).values()}) == len(classes) + 1
    assert verify.folders_of(["CON", "aux.x", "nul"]) == {
        "": "slices", "CON": "CON-0", "aux.x": "aux-1.x", "nul": "nul-2"
    }  # fmt: skip


# --- the tests --------------------------------------------------------------------------------------------------------
class Slices:
    """Stands for a pack of slices whose columns are known."""

    def __init__(self, values):
        self.values = values


def screen_of(train, held, asked, monkeypatch, thumbs=None):
    monkeypatch.setattr(screening, "values_of", lambda pack, columns: pack.values.numpy())
    pictures = torch.randint(0, 256, (len(train.features) + len(held.features), 1, 16, 16), dtype=torch.uint8)
    sides = pictures[: len(train.features)], pictures[len(train.features) :] if thumbs is None else thumbs(pictures)
    packs = RealSlices(Slices(train.values), Slices(held.values))
    return pictures, screening.Screen(
        Model([], COLUMNS), packs, (train.features, sides[0]), (held.features, sides[1]), asked
    )


def test_columns_that_were_asked_for_are_read_off(monkeypatch):
    """An age may be off as far as it is read off 95 % of held-out slices, a level not at all; a column that nobody
    asked for, or that is not seen in held-out slices, is no test."""
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(1)
    train, held = told(200, gen), told(60, gen)
    asked = torch.tensor([[70.0, 1.0], [70.0, 0.0], [89.0, 1.0], [math.nan, 1.0]])
    pictures, screen = screen_of(train, held, asked, monkeypatch)
    shows = torch.zeros(4, 6)
    shows[:, 1] = 1.0  # 70 years, male
    failed = screen.failed(shows, pictures[:4].flip(2), asked)
    assert failed["age not as asked"].tolist() == [False, False, True, False]
    assert failed["sex not as asked"].tolist() == [False, True, False, False]
    assert screen.held_out["age not as asked"] == pytest.approx(0.05, abs=0.02) and not screen.notes[1:]
    _, screen = screen_of(train, held, asked[:, :] * torch.tensor([math.nan, 1.0]), monkeypatch)
    assert list(screen.probes) == ["sex not as asked"]
    blind = told(60, gen, slope=0.0, male=0.0)
    _, screen = screen_of(train, blind, asked, monkeypatch)
    assert not screen.probes and "Not screened: age, as what is read off held-out slices follows it" in str(
        screen.notes
    )


def test_balls_hold_held_out_people_and_copies_are_nearer_than_any(monkeypatch):
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(1)
    train = told(150, gen)
    train.features[:] = train.features[:50].repeat_interleave(3, 0) + 1e-3 * torch.randn(150, 6, generator=gen)
    held = told(60, gen)  # near to no one's own neighbours
    pictures, screen = screen_of(train, held, torch.zeros(0, 0), monkeypatch)
    assert screen.held_out[screening.OUTSIDE] == pytest.approx(0.05, abs=0.02) and "times as large" in screen.notes[0]
    features = torch.stack([train.features[0], held.features[0], held.features[0] + 9])
    failed = screen.failed(
        features, torch.stack([pictures[3].flip(2), pictures[170], pictures[170]]), torch.zeros(0, 0)
    )
    assert failed[screening.PIXELS].tolist() == [True, False, False]  # mirrored
    assert failed[screening.FEATURES].tolist() == [True, False, False]
    assert failed[screening.OUTSIDE].tolist() == [False, False, True]
    with pytest.raises(ConfigError, match="split the data by person"):
        screen_of(train, held, torch.zeros(0, 0), monkeypatch, thumbs=lambda all_: all_[:60])


# --- verify -----------------------------------------------------------------------------------------------------------
def test_a_release_as_it_was_written_has_no_fault(made, capsys):
    assert call("release", "--verify", made) == 0
    assert capsys.readouterr().out == f"{made}: 16 slices, every file is as its release lists it\n"
    assert "no such folder" in one_line(capsys, call("release", "--verify", made / "none"), 2)


def summed(out) -> None:
    """Sums that fit to what was changed: who checks them alone sees nothing."""
    names = [name for name, _ in verify.files_in(out) if name != "SHA256SUMS"]
    (out / "SHA256SUMS").write_text(verify.sums_text({name: sha256_of(out / name) for name in names}))


def shrink(path) -> None:
    Image.new("L", (8, 8)).save(path)


FAULTS = {
    "is missing": lambda out, png: png.unlink(),
    "SHA256SUMS does not list it": lambda out, png: (out / "notes.txt").write_text("x"),
    "was changed": lambda out, png: png.write_bytes(png.read_bytes()[:-12] + b"\0" * 12),
    "is a link or no file": lambda out, png: (png.rename(out.parent / "x"), png.symlink_to(out.parent / "x")),
    "does not stand in manifest.csv": lambda out, png: (shutil.copy(png, png.with_name("999999.png")), summed(out)),
    "is no picture of the release": lambda out, png: (png.unlink(), summed(out)),
    "is of 8x8, not 36x40": lambda out, png: (shrink(png), summed(out)),
    "is no PNG that can be decoded": lambda out, png: (png.write_bytes(png.read_bytes()[:-30]), summed(out)),
    "release.json is missing": lambda out, png: (out / "release.json").unlink(),
    "cannot be read": lambda out, png: (out / "SHA256SUMS").write_text("nothing\n"),
    "does not lie in the folder of its class": lambda out, png: (edit(out, ",AD,", ",NC,"), summed(out)),
    "slices of class AD in manifest.csv": lambda out, png: (edit(out, ",AD,", ",NC,"), summed(out)),
    "stands in manifest.csv 2 times": lambda out, png: (
        edit(out, png.name, sorted(png.parent.iterdir())[0].name),
        summed(out),
    ),
}


def edit(out, before: str, after: str) -> None:
    path = out / "manifest.csv"
    path.write_text(path.read_text().replace(before, after, 1))


@pytest.mark.parametrize("line", FAULTS)
def test_each_fault_is_a_line_and_the_exit_code_1(copy, line, capsys):
    FAULTS[line](copy, sorted((copy / "train" / "AD").iterdir())[1])
    assert call("release", "--verify", copy) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line in text for text in lines) and all(text.startswith(f"{copy}: ") for text in lines)
