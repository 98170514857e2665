"""Packs: what goes in comes out, bad files are counted, hostile files are refused, the cache is right."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from bad_folder import WIDTH, make_adni, make_bad_folder, make_oasis, picture, save

from data.build import build_pack
from data.files import TORN_AGE
from data.pack import ensure_pack
from data.packfile import ALIGN, MAGIC, PREAMBLE, VERSION, open_pack, restore
from data.records import ROOM
from data.sources import find_source
from data.walk import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    return tmp_path / "packs"


def slices(root: Path, count: int = 12, **options) -> Path:
    for i in range(count):
        save(root / f"p{i}_1.png", picture(i, **options))
    return root


def quiet(*_):
    pass


def ensure(spec, resolution=WIDTH, **options):
    return ensure_pack(str(spec), resolution=resolution, progress=False, **{"log": quiet} | options)


def cli(*args, **env) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data.pack", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | env,
    )


# --- geometry ---------------------------------------------------------------------------------------------------------
def test_padding_never_squashes_or_flips_and_restore_gives_the_original_bytes(tmp_path, cache):
    pack = ensure(slices(tmp_path / "x"), split="all")
    assert pack.images.shape == (12, 1, 64, 64) and pack.images.dtype == np.uint8
    order = [int(re.search(r"\d+", n).group()) for n in pack.names]
    originals = np.stack([picture(i) for i in order])
    assert np.array_equal(pack.images[:, 0, 2:62], originals), "not padded by two rows above and below"
    assert not pack.images[:, 0, :2].any() and not pack.images[:, 0, 62:].any()
    assert np.array_equal(restore(pack.images, pack.geometry)[:, 0], originals)
    assert pack.geometry == dict(source_height=60, source_width=64, square=64, crop=0, resolution=64)


def test_crop_resize_and_restore(tmp_path, cache):
    """oasis64 in small: 256 -> crop 208 -> 64 becomes 64 -> crop 52 -> 16."""
    pack = ensure(slices(tmp_path / "x", height=64), 16, crop=52, split="all")
    back = restore(pack.images, pack.geometry)
    assert pack.images.shape == (12, 1, 16, 16) and back.shape == (12, 1, 64, 64)
    border = np.ones((64, 64), bool)
    border[6:58, 6:58] = False
    assert not back[:, 0, border].any() and back[:, 0, 8:56, 8:56].any()
    i = pack.names.index("p0_1.png")
    reference = picture(0, 64)[6:58, 6:58].reshape(4, 13, 4, 13).mean((1, 3))  # coarse block means survive
    assert np.abs(pack.images[i, 0].astype(float).reshape(4, 4, 4, 4).mean((1, 3)) - reference).max() < 6
    assert np.abs(back[i, 0, 6:58, 6:58].astype(float).reshape(4, 13, 4, 13).mean((1, 3)) - reference).max() < 6


def test_resize_averages_instead_of_dropping_pixels(tmp_path, cache):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 200
    save(tmp_path / "x" / "1_1.png", stripes)
    middle = ensure(tmp_path / "x", 16).images[0, 0, 4:12, 4:12]
    assert np.abs(middle.astype(int) - 100).max() < 6


def test_odd_sizes_are_padded_or_scaled_never_squashed(tmp_path, cache):
    root = slices(tmp_path / "x", 9)
    save(root / "small_1.png", picture(50, 30, 20))
    disc = np.where(np.hypot(*np.mgrid[-1:1:240j, -1:1:240j]) < 0.5, 200, 0).astype(np.uint8)
    save(root / "large_1.png", np.pad(disc, ((0, 0), (40, 40))))  # 320 x 240
    notes = []
    pack = ensure(root, split="all", log=notes.append)
    small, large = (pack.images[pack.names.index(f"{n}_1.png"), 0] for n in ("small", "large"))
    assert (
        np.array_equal(small[17:47, 22:42], picture(50, 30, 20))
        and small.astype(int).sum() == picture(50, 30, 20).astype(int).sum()
    )
    rows, columns = np.nonzero(large > 100)
    assert abs(np.ptp(rows) - np.ptp(columns)) <= 1, "the disc is no longer round"
    assert any("2 of 11 slices are not 64x60" in n for n in notes)


def test_three_channels(tmp_path, cache):
    colour = np.dstack([picture(1), picture(2), picture(3)])
    save(tmp_path / "x" / "1_1.png", colour)
    pack = ensure(tmp_path / "x", channels=3)
    assert np.array_equal(restore(pack.images, pack.geometry)[0].transpose(1, 2, 0), colour)
    phantom = ensure("phantom:2", 32, channels=3)
    assert phantom.images.shape == (2, 3, 32, 32) and np.array_equal(phantom.images[:, 0], phantom.images[:, 2])


@pytest.mark.parametrize(
    "change",
    [{"crop": 9999}, {"square": -1}, {"source_height": 65}, {"resolution": 10**9}, {"square": 2.0}, {"crop": None}],
)
def test_restore_refuses_impossible_geometry(change):
    geometry = dict(source_height=60, source_width=64, square=64, crop=0, resolution=64) | change
    with pytest.raises(DataError, match="geometry"):
        restore(np.zeros((1, 1, 64, 64), np.uint8), geometry)


# --- contents ---------------------------------------------------------------------------------------------------------
def test_labels_names_and_splits_go_together(tmp_path, cache):
    make_adni(tmp_path)
    pack, test = ensure(tmp_path), ensure(tmp_path, split="test")
    assert len(pack) == 21 and pack.classes == ["AD", "NC"]
    for name, label in zip(pack.names, pack.labels, strict=True):
        assert f"/{pack.classes[label]}/" in f"/{name}"
    assert not set(pack.subjects) & set(test.subjects) and not set(pack.hashes) & set(test.hashes)
    assert pack.digest != test.digest and pack.path != test.path
    text = Path(pack.path).read_bytes()[:ALIGN]
    assert b"_S_0" not in text, "a patient id is in the pack"


def test_oasis_pack_has_no_mask(tmp_path, cache):
    make_oasis(tmp_path / "x")
    pack = ensure(tmp_path / "x", split="all")
    assert len(pack) == 21 and not any("seg" in n for n in pack.names)
    assert all(len(np.unique(image)) > 10 for image in pack.images)


def test_phantom_pack_is_the_phantoms(cache):
    from data.phantom import phantom_label, phantom_slice

    pack = ensure("phantom:6", 32)
    assert np.array_equal(pack.images[:, 0], [phantom_slice(0, i, 32) for i in range(6)])
    assert pack.labels.tolist() == [phantom_label(0, i) for i in range(6)]
    assert ensure("phantom:6", 32, crop=208).geometry == dict(
        source_height=256, source_width=256, square=256, crop=208, resolution=32
    )


def keyed(person: str) -> str:
    return "p" + hashlib.blake2b(person.encode(), digest_size=6, key=b"brain slices: people").hexdigest()


def test_nifti_pack(tmp_path, cache):
    from test_sources import head, save_nifti

    (tmp_path / "x").mkdir()
    for name in ("sub-01_T1.nii.gz", "sub-02_T1.nii.gz"):
        save_nifti(tmp_path / "x" / name, head())
    pack = ensure(tmp_path / "x", 48)
    assert pack.images.shape == (16, 1, 48, 48) and pack.names[0] == f"{keyed('sub-01')}_T1.nii.gz#002"
    assert set(pack.subjects) == {keyed("sub-01"), keyed("sub-02")}
    assert restore(pack.images, pack.geometry).shape == (16, 1, 48, 40)


def test_dark_scans_are_left_out_and_named(tmp_path, cache):
    for scan in range(12):
        for z in range(2):
            save(tmp_path / "x" / f"{scan}_{z}.png", picture(scan * 2 + z) // (20 if scan == 5 else 1))
    notes = []
    pack = ensure(tmp_path / "x", split="all", log=notes.append)
    assert len(pack) == 22 and "5_0.png" not in pack.names
    assert any("1 nearly black scans left out with their 2 slices" in n and "5 (mean" in n for n in notes)
    for name, image in zip(
        pack.names, restore(pack.images, pack.geometry), strict=True
    ):  # the gaps were closed rightly
        scan, z = map(int, re.findall(r"\d+", name))
        assert np.array_equal(image[0], picture(scan * 2 + z)), name
    open_pack(pack.path, verify=True)


def test_same_picture_under_two_labels_and_in_two_splits_is_said(tmp_path, cache):
    for i, name in enumerate(["train/a/s1_1.png", "train/b/s2_1.png", "test/a/s3_1.png", "test/b/s4_1.png"]):
        save(tmp_path / "x" / name, picture(i))
    shutil.copy(tmp_path / "x/train/a/s1_1.png", tmp_path / "x/train/b/s5_1.png")
    shutil.copy(tmp_path / "x/test/b/s4_1.png", tmp_path / "x/train/b/s6_1.png")
    notes = []
    ensure(tmp_path / "x", log=notes.append)
    assert any("1 pictures are under two classes: train/a/s1_1.png" in n for n in notes)
    assert any("1 pictures are in another split too: train/b/s6_1.png = test/b/s4_1.png" in n for n in notes)
    again = []
    ensure(tmp_path / "x", log=again.append)
    assert [n for n in notes if n.startswith("warning")] == [n for n in again if n.startswith("warning")]


# --- bad files --------------------------------------------------------------------------------------------------------
def test_folder_with_every_bad_file(tmp_path, cache):
    folder = make_bad_folder(tmp_path / "x")
    with pytest.raises(DataError, match=r"13 of 38 files cannot be used.*--max-bad 0\.34") as caught:
        ensure(folder.root, split="all")
    assert "\n" not in str(caught.value) and not list(cache.glob("*")), "something was left behind"
    notes = []
    pack = ensure(folder.root, split="all", max_bad=0.5, log=notes.append)
    assert set(pack.names) == set(folder.good) | set(folder.shown)
    reasons = dict(line.removeprefix("bad file: ").split(": ", 1) for line in notes if line.startswith("bad file: "))
    assert set(reasons) == set(folder.bad)
    for name, word in folder.bad.items():
        assert word in reasons[name], (name, reasons[name])
    i = pack.names.index("900_3.png")
    assert np.array_equal(restore(pack.images[i : i + 1], pack.geometry)[0, 0], folder.shown["900_3.png"])
    with pytest.raises(DataError, match="--max-bad"):  # the cached pack does not lower the bar
        ensure(folder.root, split="all")


def test_one_bad_file_in_a_small_set_is_no_reason_to_stop(tmp_path, cache):
    root = slices(tmp_path / "x")
    (root / "bad_1.png").write_bytes(b"x")
    assert len(ensure(root, split="all")) == 12
    with pytest.raises(DataError, match="--max-bad"):
        ensure(root, split="all", max_bad=0.0)
    (root / "bad_2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 14.*bad_1.png \(not an image\), bad_2.png \(zero bytes\)"):
        ensure(root, split="all")


def test_only_bad_files(tmp_path, cache):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="none of 1 files can be used"):
        ensure(tmp_path / "x")


def test_truncated_volume_among_good_ones(tmp_path, cache):
    from test_sources import head, save_nifti

    (tmp_path / "x").mkdir()
    path = save_nifti(tmp_path / "x" / "sub-01.nii.gz", head())
    (tmp_path / "x" / "sub-02.nii.gz").write_bytes(path.read_bytes()[:800])
    notes = []
    assert len(ensure(tmp_path / "x", 48, log=notes.append)) == 8
    assert any(f"{keyed('sub-02')}.nii.gz: truncated" in n for n in notes)


# --- hostile packs ----------------------------------------------------------------------------------------------------
@pytest.fixture
def good(tmp_path) -> Path:
    source = find_source("phantom:4")
    return Path(build_pack(source, tmp_path / "good.pack", resolution=16, progress=False, log=quiet).path)


def rewrite(path: Path, change) -> Path:
    """The pack with a changed header, all lengths and the header's own hash made right again."""
    raw = path.read_bytes()
    magic, version, zero, length, offset, _ = PREAMBLE.unpack(raw[: PREAMBLE.size])
    head = json.loads(raw[PREAMBLE.size : PREAMBLE.size + length])
    head = change(head) or head
    text = (head if isinstance(head, bytes) else json.dumps(head).encode()).ljust(length)
    offset = max(offset, -(-(PREAMBLE.size + len(text)) // ALIGN) * ALIGN)
    data = raw[-4 * 256 :]
    new = PREAMBLE.pack(magic, version, zero, len(text), offset, hashlib.sha256(text).digest()) + text
    path.write_bytes(new.ljust(offset, b" ") + data)
    return path


def test_rewrite_alone_keeps_a_pack_valid(good):
    assert len(open_pack(rewrite(good, lambda head: None), verify=True)) == 4


HOSTILE = {
    "huge shape": lambda h: h.update(shape=[1 << 62, 1, 16, 16]),
    "negative": lambda h: h.update(shape=[-4, 1, 16, 16]),
    "overflow": lambda h: h.update(shape=[1 << 31, 3, 4096, 4096]),
    "more rows": lambda h: h.update(shape=[5, 1, 16, 16]),
    "float shape": lambda h: h.update(shape=[4.0, 1, 16, 16]),
    "bool shape": lambda h: h.update(shape=[4, True, 16, 16]),
    "no shape": lambda h: h.pop("shape") and None,
    "names short": lambda h: h.update(names=h["names"][1:]),
    "names of numbers": lambda h: h.update(names=[1, 2, 3, 4]),
    "label too large": lambda h: h.update(labels=[0, 1, 2, 0]),
    "label true": lambda h: h.update(labels=[True, 0, 0, 0]),
    "label huge": lambda h: h.update(labels=[-(10**40), 0, 0, 0]),
    "classes": lambda h: h.update(classes="NC"),
    "geometry": lambda h: h["geometry"].update(square=10**12),
    "geometry resolution": lambda h: h["geometry"].update(resolution=32),
    "meta": lambda h: h.update(meta=[]),
    "bad": lambda h: h["meta"].update(bad=[1]),
    "checksum": lambda h: h.update(sha256="zz"),
    "a list": lambda h: [h],
    "deep": lambda h: b"[" * 100_000,
    "big number": lambda h: b'{"shape": ' + b"9" * 100_000 + b"}",
    "no text": lambda h: b"\xff\xfe{}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_one_clear_error(good, name):
    with pytest.raises(DataError, match="not a valid pack") as caught:
        open_pack(rewrite(good, HOSTILE[name]))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("length", [0, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("offset", [0, ALIGN, ALIGN + 1, 1 << 60])
def test_header_bombs(good, length, offset):
    raw = good.read_bytes()
    good.write_bytes(PREAMBLE.pack(MAGIC, VERSION, 0, length, offset, bytes(32)) + raw[PREAMBLE.size :])
    with pytest.raises(DataError, match="not a valid pack"):
        open_pack(good)


def test_every_truncation_and_extra_bytes_are_refused(good):
    raw = good.read_bytes()
    for size in (0, 1, PREAMBLE.size - 1, PREAMBLE.size, 500, ALIGN, len(raw) - 1):
        good.write_bytes(raw[:size])
        with pytest.raises(DataError, match="not a valid pack"):
            open_pack(good)
    good.write_bytes(raw + b"x")
    with pytest.raises(DataError, match="size does not match"):
        open_pack(good)


def test_flipped_bytes_are_found(good):
    raw = bytearray(good.read_bytes())
    for at, verify in ((len(raw) - 7, True), (PREAMBLE.size + 40, False), (9, False), (20, False)):
        broken = bytearray(raw)
        broken[at] ^= 0x10
        good.write_bytes(broken)
        with pytest.raises(DataError, match="not a valid pack"):
            open_pack(good, verify=verify)
    good.write_bytes(raw)
    open_pack(good, verify=True)


def test_things_that_are_no_pack(tmp_path):
    os.mkfifo(tmp_path / "pipe.pack")
    (tmp_path / "folder.pack").mkdir()
    (tmp_path / "text.pack").write_text("hello")
    for name in ("pipe.pack", "folder.pack", "text.pack", "nothing.pack"):
        with pytest.raises(DataError, match=re.escape(name)):
            open_pack(tmp_path / name)


# --- the cache --------------------------------------------------------------------------------------------------------
def test_pack_is_reused_until_something_changes(tmp_path, cache):
    root, notes = slices(tmp_path / "x"), []
    first = ensure(root, split="all", log=notes.append)
    stamp = os.stat(first.path).st_mtime_ns
    second = ensure(root, split="all", log=notes.append)
    assert (second.path, os.stat(second.path).st_mtime_ns, second.digest) == (first.path, stamp, first.digest)
    assert "built in" in " ".join(notes) and "re-used" in notes[-1]
    paths = {
        first.path,
        ensure(root, 32, split="all").path,
        ensure(root, 32, split="all", crop=32).path,
        ensure(root, 32).path,
    }
    save(root / "p0_1.png", picture(77))
    changed = ensure(root, split="all")
    assert len(paths) == 4 and changed.path not in paths and changed.digest != first.digest
    assert all(Path(p).parent == cache for p in paths) and not list(cache.glob(".*"))


def test_cache_never_lies_in_the_room(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(ROOM / "packs"))
    with pytest.raises(DataError, match="BRAIN_PACK_DIR"):
        ensure("phantom:2", 16)
    assert not (ROOM / "packs").exists()


def test_damaged_cache_is_built_again_and_strangers_files_are_not_overwritten(tmp_path, cache):
    pack = ensure("phantom:3", 16)
    Path(pack.path).write_bytes(Path(pack.path).read_bytes()[:-1])
    assert len(ensure("phantom:3", 16)) == 3
    open_pack(pack.path, verify=True)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is no pack"):
        ensure("phantom:3", 16, out=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_given_pack_is_checked_against_the_parameters(tmp_path, cache):
    path = ensure("phantom:3", 16, crop=128, out=tmp_path / "given.pack").path
    assert len(ensure(path, 16)) == len(ensure(path, 16, crop=128)) == 3
    for options in ({"resolution": 32}, {"channels": 3}, {"crop": 64}):
        with pytest.raises(DataError, match=r"given\.pack"):
            ensure(path, **{"resolution": 16} | options)


def test_parameters_are_checked(tmp_path, cache):
    root = slices(tmp_path / "x", 2)
    for options in (
        {"resolution": 0},
        {"resolution": 1 << 20},
        {"channels": 2},
        {"crop": -1},
        {"crop": 65},
        {"max_bad": 2},
    ):
        with pytest.raises(DataError, match="--"):
            ensure(root, **options)


def test_no_space_is_said_before_anything_is_written(tmp_path, cache, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"not enough space.*BRAIN_PACK_DIR"):
        ensure("phantom:2", 16)
    monkeypatch.undo()
    if os.geteuid() != 0:  # root writes anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(DataError, match="cannot write"):
            ensure("phantom:2", 16, cache_dir=tmp_path / "locked")


def test_full_disk_while_writing_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="disk or your quota is full"):
        ensure("phantom:2", 16)
    assert not list(cache.iterdir())


def test_racing_builds_all_end_with_a_valid_file(tmp_path, cache):
    root, results = slices(tmp_path / "x"), []

    def build():
        results.append(ensure(root, split="all"))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(500)
    assert len(results) == 4 and len({p.digest for p in results}) == 1
    for p in results:  # each holds what it opened, whoever renamed last
        assert p.images.sum() == results[0].images.sum()
    open_pack(results[0].path, verify=True)
    assert [f.name for f in cache.iterdir()] == [Path(results[0].path).name]


def test_abandoned_temporary_files_are_removed_and_fresh_ones_kept(tmp_path, cache):
    out = tmp_path / "o" / "x.pack"
    out.parent.mkdir()
    old, fresh = (out.parent / f".x.pack.tmp.another-host.{i}.0" for i in (1, 2))
    for f in (old, fresh):
        f.write_bytes(b"x")
    os.utime(old, (1, time.time() - 2 * TORN_AGE))
    ensure("phantom:2", 16, out=out)
    assert not old.exists() and fresh.exists()


# --- the command ------------------------------------------------------------------------------------------------------
def test_command_line(tmp_path):
    env = {"BRAIN_PACK_DIR": str(tmp_path / "packs")}
    root = slices(tmp_path / "x")
    first = cli(root, "--resolution", 64, "--split", "all", **env)
    assert first.returncode == 0, first.stderr
    assert "12 slices" in first.stdout.splitlines()[0] and re.search(
        r"12 slices at 64 px, [\d.]+ MB, built in", first.stdout
    )
    again = cli(root, "--resolution", 64, "--split", "all", **env)
    assert "re-used" in again.stdout.splitlines()[-1]
    path = next((tmp_path / "packs").glob("*.pack"))
    assert "verified" in cli(path).stdout
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    for args, code in (
        ((path,), 78),
        ((tmp_path / "none",), 78),
        (("",), 78),
        ((root, "--resolution", "x"), 2),
        ((), 2),
    ):
        result = cli(*args, **env)
        assert result.returncode == code and "Traceback" not in result.stderr, result.stderr
        if code == 78:
            assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def hears_ctrl_c() -> None:
    """A test run in the background of a shell ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_interrupt_leaves_nothing_and_no_traceback(tmp_path):
    out = tmp_path / "o" / "x.pack"
    process = subprocess.Popen(
        [sys.executable, "-m", "data.pack", "phantom:100000", "--resolution", "64", "--out", out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("o/.x.pack.*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=400)
    assert process.returncode == 130 and "Traceback" not in stderr and "interrupted" in stderr
    assert not list((tmp_path / "o").iterdir())
