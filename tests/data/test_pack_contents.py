"""What a pack holds and what its name depends on: the slices in their order, their labels, and every parameter that
changes a pixel."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from bad_folder import picture, save
from PIL import Image
from test_pack import ensure, keyed, quiet, rewrite

from data import build, pack, walk
from data.build import build_pack
from data.images import fit_square
from data.pack import ensure_held_out, ensure_pack
from data.packfile import ALIGN, PREAMBLE, Row, open_pack, write_header
from data.sources import find_source
from data.walk import DataError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    return tmp_path / "packs"


@pytest.fixture
def good(tmp_path) -> Path:
    return Path(
        build_pack(find_source("phantom:4"), tmp_path / "x.pack", resolution=16, progress=False, log=quiet).path
    )


# --- the digest -------------------------------------------------------------------------------------------------------
def test_a_relabelled_pack_has_another_digest(good):
    """The same pixels: a run that goes on, and latents or features that were kept, must see that the labels moved."""
    before = open_pack(good)
    labels = before.labels.tolist()
    seen = {before.digest}
    for other in ([1 - k for k in labels], [labels[0]] * 4, [-1, *labels[1:]], [*labels[:3], -1]):
        after = open_pack(rewrite(good, lambda head, other=other: head.update(labels=other)), verify=True)
        assert after.labels.tolist() == other and np.array_equal(after.images, before.images)
        seen.add(after.digest)
    assert len(seen) == 5
    again = open_pack(rewrite(good, lambda head: head.update(labels=labels)))
    assert again.digest == before.digest


def test_other_pixels_or_another_order_have_another_digest(good):
    raw, before = good.read_bytes(), open_pack(good)
    data, seen = bytearray(raw[-4 * 256 :]), {before.digest}
    changed = data.copy()
    changed[300] ^= 1
    for pixels in (changed, data[256:512] + data[:256] + data[512:], data[512:] + data[:512]):
        good.write_bytes(raw[: -4 * 256] + bytes(pixels))
        with pytest.raises(DataError, match="SHA-256"):
            open_pack(good, verify=True)
        sha = hashlib.sha256(pixels).hexdigest()
        seen.add(
            open_pack(rewrite(good, lambda head, sha=sha: head.update(sha256=sha, labels=[0] * 4)), verify=True).digest
        )
    assert len(seen) == 4


def test_a_digest_does_not_depend_on_names_or_place(good, tmp_path):
    before = open_pack(good).digest
    (tmp_path / "else").mkdir()
    os.rename(good, tmp_path / "else" / "y.pack")
    moved = tmp_path / "else" / "y.pack"
    assert open_pack(moved).digest == before
    assert open_pack(rewrite(moved, lambda head: head.update(names=list("abcd"), subjects=[""] * 4))).digest == before


# --- the header -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(names=[*h["names"], "one more"]),
        lambda h: h.update(subjects=[*h["subjects"], ""]),
        lambda h: h.update(labels=[*h["labels"], 0]),
        lambda h: h.update(labels=[-2, 0, 0, 0]),
        lambda h: h.update(labels=[0, 1, 0]),
        lambda h: (h.update(shape=[4, 1, 8, 32]), h["geometry"].update(resolution=8))[:0] or None,
        lambda h: h["geometry"].update(resolution=8),
        lambda h: h["geometry"].update(source_width=17),
        lambda h: h["meta"].update(total=-1),
        lambda h: h["meta"].update(bad_count=None),
        lambda h: h["meta"].pop("split") and None,
        lambda h: h["meta"].update(warnings=[1]),
        lambda h: h["meta"].update(bad=[["a"]]),
        lambda h: h.update(classes=["NC"]),
    ],
)
def test_headers_that_do_not_fit_are_refused(good, change):
    with pytest.raises(DataError, match="not a valid pack"):
        open_pack(rewrite(good, change))


def test_a_changed_header_is_refused_even_where_it_makes_sense(good):
    """Nobody resealed it: a label of one digit became another."""
    raw = good.read_bytes()
    at = raw.index(b'"labels": [') + len(b'"labels": [')
    good.write_bytes(raw[:at] + (b"1" if raw[at : at + 1] == b"0" else b"0") + raw[at + 1 :])
    with pytest.raises(DataError, match="header is damaged"):
        open_pack(good)


@pytest.mark.parametrize("version", [0, 2])
def test_packs_of_other_versions_are_refused(good, version):
    raw = good.read_bytes()
    fields = list(PREAMBLE.unpack(raw[: PREAMBLE.size]))
    for place, value in ((1, version), (2, 1)):  # the version, and the zero behind it
        changed = [*fields]
        changed[place] = value
        good.write_bytes(PREAMBLE.pack(*changed) + raw[PREAMBLE.size :])
        with pytest.raises(DataError, match="version"):
            open_pack(good)


@pytest.mark.parametrize("count", [60, 3000])
def test_a_header_that_is_too_long_loses_its_notes_and_not_its_counts(tmp_path, count):
    """There is room for what was foreseen; thousands of bad files are only counted, and the pixels stay where they
    are."""
    geometry = dict(source_height=8, source_width=8, square=8, crop=0, resolution=8)
    bad = [[f"slice-{i:06d}.png", "truncated or damaged"] for i in range(count)]
    meta = {
        "key": "k",
        "describe": "d",
        "split": "all",
        "total": count + 1,
        "bad_count": count,
        "bad": bad,
        "warnings": ["w" * 1500],
    }
    pixels, file = bytes(range(64)), io.BytesIO()
    file.write(bytes(ALIGN) + pixels)
    row = Row("a.png", -1, "", "", "hash", 31.5, (8, 8))
    write_header(file, ALIGN, [row], [], geometry, 1, hashlib.sha256(pixels).hexdigest(), meta)
    (tmp_path / "x.pack").write_bytes(file.getvalue())
    pack = open_pack(tmp_path / "x.pack", verify=True)
    assert pack.images.tobytes() == pixels and pack.labels.tolist() == [-1]
    assert pack.meta["bad"] == [] and "too long" in pack.meta["warnings"][0]
    assert (pack.meta["bad_count"], pack.meta["total"], pack.meta["split"]) == (count, count + 1, "all")


def test_every_field_of_a_pack_is_that_of_its_slice(tmp_path, cache):
    """By hand from the files: pixels, label, subject, name, and a hash that hangs on the pixels alone."""
    root, made = tmp_path / "x", {}
    for i, (label, scan) in enumerate((k, s) for k in ("b", "a") for s in range(3)):
        for z in (2, 1):
            name = f"{label}/sub{scan}{label}-{z}.png"
            made[name] = picture(10 * i + z, 40, 44)
            save(root / name, made[name])
    Image.fromarray(made["a/sub0a-1.png"]).convert("RGB").save(
        root / "a/sub0a-3.png"
    )  # the same grey picture, as colour
    made["a/sub0a-3.png"] = made["a/sub0a-1.png"]
    pack = ensure(root, 22, crop=22, split="all")
    assert pack.names == sorted(made) and pack.classes == ["a", "b"]
    for i, name in enumerate(pack.names):
        np.testing.assert_array_equal(pack.images[i, 0], fit_square(made[name][:, :, None], 44, 22, 22)[:, :, 0])
        np.testing.assert_array_equal(pack.images[i, 0], made[name][9:31, 11:33])
        assert pack.labels[i] == ["a", "b"].index(name[0]) and pack.subjects[i] == keyed(
            name.split("/")[1].split("-")[0]
        )
    same = [pack.hashes[pack.names.index(f"a/sub0a-{z}.png")] for z in (1, 3)]
    assert same[0] == same[1] and len(set(pack.hashes)) == len(made) - 1
    assert pack.geometry == dict(source_height=40, source_width=44, square=44, crop=22, resolution=22)
    assert (pack.meta["split"], pack.meta["total"], pack.meta["bad_count"], pack.meta["bad"]) == ("all", 13, 0, [])
    assert any("copies of another" in w for w in pack.meta["warnings"]) and "a 7, b 6" in pack.meta["describe"]


# --- the cache --------------------------------------------------------------------------------------------------------
def test_whatever_changes_a_pixel_is_in_the_key(tmp_path, cache, monkeypatch):
    root = tmp_path / "x"
    for i in range(3):
        save(root / f"p{i}_1.png", picture(i))
    source = find_source(str(root))
    keys = [build.pack_key(source, *sizes) for sizes in ((32, 1, 0), (64, 1, 0), (32, 3, 0), (32, 1, 16), (32, 1, 20))]
    monkeypatch.setattr(build, "VERSION", build.VERSION + 1)
    keys.append(build.pack_key(source, 32, 1, 0))
    monkeypatch.undo()
    os.utime(root / "p1_1.png", ns=(0, 5))
    keys.append(build.pack_key(find_source(str(root)), 32, 1, 0))
    os.rename(root / "p1_1.png", root / "p3_1.png")
    keys.append(build.pack_key(find_source(str(root)), 32, 1, 0))
    assert len(set(keys)) == len(keys)
    assert build.pack_key(find_source(str(root)), 32, 1, 0) == keys[-1]
    phantoms = [
        build.pack_key(find_source(*spec), 32, 1, 0)
        for spec in (("phantom:30",), ("phantom:31",), ("phantom:30", "test"), ("phantom:30", "all"))
    ]
    assert len(set(phantoms)) == 4


def test_a_pack_under_the_right_name_with_another_key_is_built_again(tmp_path, cache):
    """--out names the file: that it is there says nothing of what is in it."""
    out = tmp_path / "mine.pack"
    first = ensure("phantom:3", 16, out=out)
    notes: list[str] = []
    second = ensure("phantom:5", 16, out=out, log=notes.append)
    assert (len(first), len(second)) == (3, 5) and any("built again" in n for n in notes) and "built in" in notes[-1]
    assert "re-used" in notes[-1] or len(ensure("phantom:5", 16, out=out, log=notes.append)) == 5
    assert "re-used" in notes[-1]


def test_where_packs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("BRAIN_PACK_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert pack.pack_folder() == tmp_path / "home/.cache/brain-slices"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert pack.pack_folder() == tmp_path / "xdg/brain-slices"
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    assert pack.pack_folder() == tmp_path / "packs"
    assert pack.pack_folder(tmp_path / "given") == tmp_path / "given"


def test_a_new_folder_and_a_new_pack_are_whole_before_they_have_their_name(tmp_path, monkeypatch):
    """Synced to the disk, read back and verified, and only then renamed; nobody else may look into a new folder."""
    events, out = [], tmp_path / "new" / "x.pack"
    replace, sync, read = os.replace, os.fsync, build.open_pack
    monkeypatch.setattr(build.os, "replace", lambda a, b: (events.append(("replace", Path(b).name)), replace(a, b)))
    monkeypatch.setattr(build.os, "fsync", lambda handle: (events.append(("sync",)), sync(handle)))

    def reading(path, verify=False):
        events.append(("read", verify, Path(path) == out))
        return read(path, verify)

    monkeypatch.setattr(build, "open_pack", reading)
    build_pack(find_source("phantom:2"), out, resolution=16, progress=False, log=quiet)
    assert events == [("sync",), ("read", True, False), ("sync",), ("replace", "x.pack"), ("sync",)]
    assert out.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("available", "asked", "train", "expected"),
    [
        ("val test", "auto", "train", "val"),
        ("test", "auto", "train", "test"),
        ("val test", "test", "train", "test"),
        ("val test", "none", "train", None),
        ("val test", "auto", "all", None),
        ("", "auto", "train", None),
        ("val", "auto", "val", None),
        ("val test", "auto", "val", "test"),
        ("val test", "auto", "test", "val"),
    ],
)
def test_other_patients_to_validate_on(tmp_path, cache, available, asked, train, expected):
    """A val folder serves as test where there is none, but never to those who train on it."""
    for split in ("train", *available.split()):
        for i in range(3):
            save(tmp_path / "x" / split / f"{split}{i}_1.png", picture(hash((split, i)) % 1000))
    notes: list[str] = []
    pack = ensure_held_out(
        str(tmp_path / "x"), asked, train_split=train, log=notes.append, resolution=16, progress=False
    )
    if expected is None:
        assert pack is None and ("no other patients" in " ".join(notes)) == (asked != "none")
    else:
        assert pack.meta["split"] == expected and all(name.startswith(f"{expected}/") for name in pack.names)


def test_a_named_split_to_validate_on_must_be_there(tmp_path, cache):
    for i in range(3):
        save(tmp_path / "x/train" / f"a{i}_1.png", picture(i))
    with pytest.raises(DataError, match="--split val"):
        ensure_held_out(str(tmp_path / "x"), "val", log=quiet, resolution=16, progress=False)
    save(tmp_path / "x/val" / "b1_1.png", picture(9))
    with pytest.raises(DataError, match="val folder"):
        ensure_held_out(str(tmp_path / "x"), "test", train_split="val", log=quiet, resolution=16, progress=False)


def test_a_pack_holds_one_split_so_nobody_is_held_out_in_it(tmp_path, cache):
    for split, number in (("train", 4), ("test", 3)):
        for i in range(number):
            save(tmp_path / "x" / split / f"{split}{i}_1.png", picture(i))
    how = dict(log=quiet, resolution=16, progress=False)
    file = str(ensure_pack(str(tmp_path / "x"), out=tmp_path / "mine.pack", **how).path)
    assert ensure_held_out(file, "auto", **how) is None
    with pytest.raises(DataError, match="one split"):
        ensure_held_out(file, "test", **how)


# --- bad files and dark scans -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("count", "total", "share", "stops"),
    [
        (1, 50, 0.01, False),
        (2, 50, 0.01, True),
        (1, 50, 0.0, True),
        (1, 99, 0.001, False),
        (1, 100, 0.01, False),
        (2, 100, 0.01, True),
        (1, 100, 0.009, True),
        (0, 100, 0.0, False),
        (50, 50, 0.01, False),
        (10, 100, 0.1, False),
        (11, 100, 0.1, True),
    ],
)
def test_how_many_bad_files_stop_the_run(count, total, share, stops):
    """More than the share; below a hundred files one is let through, unless none may; all of them is another error."""
    bad = [(f"{i}.png", "zero bytes") for i in range(min(count, 3))]
    if not stops:
        return walk.check_bad("data", bad, count, total, share)
    with pytest.raises(DataError, match=f"{count} of {total} files"):
        walk.check_bad("data", bad, count, total, share)


@pytest.mark.parametrize(("brightness", "kept"), [(0.31, 24), (0.29, 22)])
def test_scans_below_three_tenths_of_the_median_are_left_out(tmp_path, cache, brightness, kept):
    grey = np.full((32, 32), 200, np.uint8)
    for scan in range(12):
        for z in range(2):
            save(
                tmp_path / "x" / f"{scan}_{z}.png",
                (grey * (brightness if scan == 3 else 1)).round().astype(np.uint8) + z,
            )
    pack = ensure(tmp_path / "x", 32, split="all")
    assert len(pack) == kept and any("nearly black" in w for w in pack.meta["warnings"]) == (kept < 24)


@pytest.mark.parametrize(("dark", "said"), [(8, True), (5, True), (4, False), (0, False)])
def test_a_nearly_black_median_slice_is_remarked_on(tmp_path, cache, dark, said):
    for i in range(9):
        save(tmp_path / "x" / f"{i}_1.png", np.full((32, 32), 0 if i < dark else 200, np.uint8))
    pack = ensure(tmp_path / "x", 32)
    assert any("12-bit" in w for w in pack.meta["warnings"]) == said


@pytest.mark.parametrize(("count", "said"), [(7, True), (8, False)])
def test_few_slices_are_remarked_on(tmp_path, cache, count, said):
    for i in range(count):
        save(tmp_path / "x" / f"{i}_1.png", picture(i))
    assert any("can copy so few" in w for w in ensure(tmp_path / "x", 16).meta["warnings"]) == said


def test_the_most_common_size_is_the_size(tmp_path, cache):
    """Not the largest; and the first of two that are as common is the larger."""
    for i, (height, width) in enumerate([(20, 24)] * 3 + [(30, 28)] * 2):
        save(tmp_path / "x" / f"{i}_1.png", picture(i, height, width))
    geometry = ensure(tmp_path / "x", 16).geometry
    assert (geometry["source_height"], geometry["source_width"], geometry["square"]) == (20, 24, 24)


def test_space_for_the_whole_pack_is_asked_for(tmp_path, cache, monkeypatch):
    from types import SimpleNamespace

    needed = 4 * 64 * 64
    for spare, enough in ((16 << 20) + needed, False), ((16 << 20) + needed + (1 << 20), True):
        monkeypatch.setattr(build.shutil, "disk_usage", lambda _, spare=spare: SimpleNamespace(free=spare))
        if enough:
            assert len(ensure("phantom:4", 64)) == 4
        else:
            with pytest.raises(DataError, match="not enough space"):
                ensure("phantom:4", 64)


@pytest.mark.parametrize("split", ["test", "val"])
def test_phantoms_of_a_split_are_drawn_from_its_own_seed(cache, split):
    from data.phantom import phantom_label, phantom_slice

    pack, seed = ensure("phantom:30", 32, split=split), {"test": 1, "val": 2}[split]
    np.testing.assert_array_equal(pack.images[:, 0], [phantom_slice(seed, i, 32) for i in range(3)])
    assert pack.labels.tolist() == [phantom_label(seed, i) for i in range(3)]


def test_a_crop_may_be_as_large_as_the_square(tmp_path, cache):
    save(tmp_path / "x/1_1.png", picture(0, 40, 44))
    whole, cropped = ensure(tmp_path / "x", 44), ensure(tmp_path / "x", 44, crop=44)
    np.testing.assert_array_equal(whole.images, cropped.images)
    with pytest.raises(DataError, match="choose at most 44"):
        ensure(tmp_path / "x", 44, crop=45)


@pytest.mark.parametrize(("scans", "kept"), [(9, 9), (10, 9)])
def test_few_scans_have_no_dark_ones(tmp_path, cache, scans, kept):
    """The median of a few says nothing."""
    for scan in range(scans):
        for z in range(2):
            save(tmp_path / "x" / f"{scan}_{z}.png", np.full((32, 32), 5 if scan == 3 else 200 + scan, np.uint8) + z)
    assert len(ensure(tmp_path / "x", 32, split="all")) == 2 * kept


def test_a_slice_is_as_bright_as_its_source():
    """Not as what is packed of it: padding would make it darker."""
    pixels = np.full((20, 64, 1), 90, np.uint8)
    geometry = dict(source_height=20, source_width=64, square=64, crop=0, resolution=16)
    row, packed = build._row(find_source("phantom:1").records[0], "name", pixels, geometry, 3)
    assert (row.mean, row.size, row.name) == (90.0, (20, 64), "name") and len(packed) == 3 * 16 * 16


def test_room_is_made_for_every_slice_of_every_volume(tmp_path, cache):
    from test_sources import head, save_nifti

    (tmp_path / "x").mkdir()
    for name, depth in (("sub-01_T1.nii.gz", 12), ("sub-02_T1.nii", 20)):
        save_nifti(tmp_path / "x" / name, head((40, 48, depth)))
    count, text = build._upper_bounds(find_source(str(tmp_path / "x")))
    assert count == 32 and text > 32 * (len("sub-01_T1.nii.gz#000") + len("sub-01") + 60)
    pack = ensure(tmp_path / "x", 48)
    indices = [int(name[-3:]) for name in pack.names]
    assert indices == [*range(2, 10), *range(3, 17)] and pack.subjects == [keyed("sub-01")] * 8 + [keyed("sub-02")] * 14


def test_a_pack_is_kept_where_the_file_system_syncs_no_folder(tmp_path, monkeypatch):
    """Some NFS and FUSE mounts refuse it; the file itself is synced all the same. A failing disk is no such refusal."""
    sync = os.fsync

    def refuse(number: int):
        def fsync(handle: int) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            sync(handle)

        return fsync

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    made = build_pack(find_source("phantom:2"), tmp_path / "a.pack", resolution=16, progress=False, log=quiet)
    assert len(open_pack(tmp_path / "a.pack", verify=True)) == len(made) == 2
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(DataError, match="cannot write a pack"):
        build_pack(find_source("phantom:2"), tmp_path / "b.pack", resolution=16, progress=False, log=quiet)
