"""Layouts, labels, splits and bad input: what find_source makes of a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bad_folder import make_adni, make_bad_folder, make_oasis, picture, save

from data import images
from data.records import ROOM
from data.sources import find_source
from data.walk import DataError


def scans(source) -> set[str]:
    return {r.scan for r in source.records}


def line(source) -> str:
    text = source.describe()
    assert "\n" not in text
    return text


# --- ADNI -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", ["dict", "nested", "list"])
@pytest.mark.parametrize("where", ["", "AD_NC", "AD_NC/train"])
def test_adni_shared_patients_leave_train(tmp_path, shape, where):
    patients = make_adni(tmp_path, shape)
    train = find_source(str(tmp_path / where))
    assert (train.layout, train.classes, train.subject_kind) == ("ADNI", ["AD", "NC"], "patient")
    # The patient of test scan 201 has train scan 101; both sides of nobody else.
    assert scans(train) == {str(s) for s in range(102, 109)}
    assert any("1 patient on both sides" in w and "3 slices" in w for w in train.warnings)
    assert "21 slices (AD 9, NC 12) of 4 patients" in line(train)
    text = line(train) + " ".join(train.warnings) + repr(train.records)
    assert not any(p in text for p in patients.values()), "patient ids must not be shown or kept"
    if where != "AD_NC/train":
        test = find_source(str(tmp_path / where), "test")
        assert scans(test) == {"201", "202", "203", "204"}
        assert not {r.subject for r in test.records} & {r.subject for r in train.records}
        everything = find_source(str(tmp_path / where), "all")
        assert len(everything.records) == 36 and "mixed" in everything.split_rule


def test_adni_without_json_warns_loudly(tmp_path):
    make_adni(tmp_path, None)
    source = find_source(str(tmp_path))
    assert source.subject_kind == "scan" and len(source.records) == 24
    assert any("SCAN-LEVEL" in w and "216" in w for w in source.warnings)
    assert "AD 12, NC 12" in line(source) and "64x60" in line(source) and "8 scans" in line(source)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, json.dumps({"101": {"raw": "nothing"}}), ""])
def test_useless_json_is_said_and_not_used(tmp_path, text):
    make_adni(tmp_path, None)
    (tmp_path / "meta_data_with_label.json").write_text(text)
    source = find_source(str(tmp_path))
    assert source.subject_kind == "scan" and any(
        "meta_data_with_label.json" in w and "not used" in w for w in source.warnings
    )


def test_cn_is_nc_and_upper_case_is_the_same(tmp_path):
    for i, name in enumerate(["Train/AD/1_1.JPEG", "Train/CN/2_1.jpeg", "TEST/AD/3_1.jpg", "TEST/NC/4_1.JPG"]):
        save(tmp_path / name, picture(i), format="JPEG")
    source, test = find_source(str(tmp_path)), find_source(str(tmp_path), "test")
    assert source.classes == test.classes == ["AD", "NC"]
    assert [(Path(r.name).name, r.label) for r in source.records] == [("1_1.JPEG", 0), ("2_1.jpeg", 1)]
    assert [(Path(r.name).name, r.label) for r in test.records] == [("3_1.jpg", 0), ("4_1.JPG", 1)]


def test_val_folder_serves_as_test(tmp_path):
    for split in ("train", "val"):
        for label in ("AD", "NC"):
            for z in range(2):
                save(tmp_path / "data" / split / label / f"{100 + 7 * len(split + label)}_{z}.jpeg", picture(z))
    test = find_source(str(tmp_path / "data"), "test")
    assert {r.split for r in test.records} == {"val"} and any("val folder is used as test" in w for w in test.warnings)
    assert {r.split for r in find_source(str(tmp_path / "data")).records} == {"train"}


def test_split_made_by_slice_is_made_anew(tmp_path):
    """As a course project had it: the slices of each scan are spread over train and val."""
    for scan in range(20):
        for z in range(5):
            save(tmp_path / ("val" if z == 0 else "train") / "AD" / f"{scan}_{z}.jpeg", picture(z))
    train, test = find_source(str(tmp_path)), find_source(str(tmp_path), "test")
    assert not scans(train) & scans(test) and len(scans(test)) == 2 and len(train.records) == 90
    assert any("by slice" in w and "20 scans" in w for w in train.warnings)


# --- OASIS ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ["", "keras_png_slices_data"])
def test_oasis_masks_are_never_images(tmp_path, level):
    make_oasis(tmp_path / "OASIS" / level)
    roots = {tmp_path / "OASIS", tmp_path / "OASIS" / level}
    for root in roots:
        counts = {split: len(find_source(str(root), split).records) for split in ("train", "val", "test", "all")}
        assert counts == {"train": 12, "val": 3, "test": 6, "all": 21}
        source = find_source(str(root))
        assert (source.layout, source.classes, source.subject_kind) == ("OASIS", [], "scan")
        assert scans(source) == {f"case_00{i}" for i in (1, 2, 3, 4)} and {r.label for r in source.records} == {-1}
        assert any("masks" in w for w in source.warnings) and "no classes" in line(source)


@pytest.mark.parametrize("folder", ["keras_png_slices_seg_train", "masks", "Train_Masks", "labelsTr"])
def test_mask_folders_are_left_out_whatever_their_files_are_called(tmp_path, folder):
    for i in range(2):
        save(tmp_path / "keras_png_slices_train" / f"case_001_slice_{i}.nii.png", picture(i))
        save(tmp_path / folder / f"case_001_slice_{i}.nii.png", picture(i))
    source = find_source(str(tmp_path))
    assert [Path(r.name).parts[0] for r in source.records] == ["keras_png_slices_train"] * 2
    assert any("masks" in w and folder in w for w in source.warnings)


def test_oasis_pointed_at_folders(tmp_path):
    make_oasis(tmp_path)
    assert len(find_source(str(tmp_path / "keras_png_slices_train")).records) == 12
    test = find_source(str(tmp_path / "keras_png_slices_test"), "test")
    assert len(test.records) == 6 and {r.split for r in test.records} == {"test"}
    with pytest.raises(DataError, match="is the train folder itself"):
        find_source(str(tmp_path / "keras_png_slices_train"), "test")
    with pytest.raises(DataError, match="segmentation masks"):
        find_source(str(tmp_path / "keras_png_slices_seg_train"))
    save(tmp_path / "brain_seg_study" / "p1_1.png", picture(0))
    assert len(find_source(str(tmp_path / "brain_seg_study")).records) == 1  # a name like that says nothing about masks
    shutil.copytree(tmp_path / "keras_png_slices_seg_test", tmp_path / "flat" / "pictures")
    with pytest.raises(DataError, match="segmentation masks"):
        find_source(str(tmp_path / "flat"))


# --- class folders and flat folders -----------------------------------------------------------------------------------
def test_split_folders_are_no_classes(tmp_path):
    for i, name in enumerate(["train/a1_1.png", "train/a1_2.png", "test/b2_1.png"]):
        save(tmp_path / name, picture(i))
    train, everything = find_source(str(tmp_path)), find_source(str(tmp_path), "all")
    assert train.classes == everything.classes == [] and len(train.records) == 2 and len(everything.records) == 3


@pytest.mark.parametrize("order", ["{split}/{label}", "{label}/{split}"])
def test_class_and_split_folders_in_either_order(tmp_path, order):
    for split in ("train", "test"):
        for label in ("AD", "NC"):
            save(tmp_path / order.format(split=split, label=label) / f"{split}{label}1_1.png", picture(0))
    source = find_source(str(tmp_path), "test")
    assert source.classes == ["AD", "NC"] and [r.label for r in source.records] == [0, 1]


def class_folders(root: Path, subjects: int) -> None:
    for i in range(subjects):
        for z in range(3):
            save(root / ("a" if i % 2 else "b") / f"sub{i:02d}-{z}.png", picture(i * 3 + z))


def test_hold_out_is_by_subject_stable_and_never_mixed(tmp_path):
    class_folders(tmp_path, 20)
    train, test, everything = (find_source(str(tmp_path), s) for s in ("train", "test", "all"))
    assert len(scans(test)) == 2 and len(scans(train)) == 18 and not scans(test) & scans(train)
    assert len(train.records) + len(test.records) == len(everything.records) == 60
    shutil.move(tmp_path, tmp_path.with_name("elsewhere"))
    again = find_source(str(tmp_path.with_name("elsewhere")), "test")
    assert scans(again) == scans(test) and again.digest() == test.digest()


def test_few_subjects_are_all_train(tmp_path):
    class_folders(tmp_path, 9)
    source = find_source(str(tmp_path))
    assert len(source.records) == 27 and "everything is train" in line(source)
    with pytest.raises(DataError, match="too few"):
        find_source(str(tmp_path), "test")
    with pytest.raises(DataError, match="no val folder"):
        find_source(str(tmp_path), "val")


@pytest.mark.parametrize("name", ["img_{:04d}.png", "{}.png", "slice{}.png"])
def test_names_without_a_subject(tmp_path, name):
    for i in range(30):
        save(tmp_path / name.format(i), picture(i))
    train, test = find_source(str(tmp_path)), find_source(str(tmp_path), "test")
    assert (len(train.records), len(test.records), train.subject_kind) == (27, 3, "none")
    assert "slice-level (no subject in the names)" in line(train)
    assert {r.label for r in train.records} == {-1} and train.classes == []


def test_a_folder_per_subject(tmp_path):
    for i in range(30):
        for z in range(2):
            save(tmp_path / f"p{i}" / f"{z}.png", picture(i))
    train, test = find_source(str(tmp_path)), find_source(str(tmp_path), "test")
    assert (
        train.classes == []
        and len(test.records) == 6
        and not {r.subject for r in test.records} & {r.subject for r in train.records}
    )


def test_one_picture_and_one_picture_file(tmp_path):
    path = save(tmp_path / "x.png", picture(0))
    assert len(find_source(str(tmp_path)).records) == len(find_source(str(path)).records) == 1
    assert "64x60" in line(find_source(str(path)))


def test_empty_class_folder_is_said(tmp_path):
    save(tmp_path / "train/AD/1_1.jpeg", picture(0))
    (tmp_path / "train/NC").mkdir()
    source = find_source(str(tmp_path))
    assert source.classes == ["AD"] and any("no images in train/NC" in w for w in source.warnings)


def test_class_that_only_the_other_split_has(tmp_path):
    for i, name in enumerate(["train/a/x1_1.png", "test/a/x2_1.png", "test/b/x3_1.png"]):
        save(tmp_path / name, picture(i))
    source = find_source(str(tmp_path))
    assert source.classes == ["a", "b"] and any("no slice of class b" in w for w in source.warnings)


def test_several_data_sets_are_refused(tmp_path):
    make_oasis(tmp_path / "keras_png_slices_data")
    save(tmp_path / "T1/train/a/1_1.png", picture(0))
    save(tmp_path / "T2/train/a/1_1.png", picture(0))
    with pytest.raises(DataError, match=r"several data sets.*T1, T2, keras_png_slices_data"):
        find_source(str(tmp_path))


# --- bad input --------------------------------------------------------------------------------------------------------
def test_bad_folder_finds_good_and_names_bad(tmp_path):
    folder = make_bad_folder(tmp_path / "x")
    source = find_source(str(folder.root), "all")
    names = {r.name for r in source.records}
    assert set(folder.good) | set(folder.shown) <= names
    assert names <= set(folder.good) | set(folder.shown) | set(folder.bad), "junk or a link in a circle came in"
    assert source.classes == []
    listed = dict(source.bad)
    assert set(listed) == {"901_8.jpeg", "901_9.png", "901_10.png", "901_11.png"}
    for name, reason in listed.items():
        assert folder.bad[name] in reason
    assert "64x60" in line(source)


def test_junk_is_never_a_class(tmp_path):
    for name in (
        "AD/1_1.jpeg",
        "NC/2_1.jpeg",
        ".ipynb_checkpoints/1_1-checkpoint.jpeg",
        "__MACOSX/1_1.jpeg",
        "AD/.ipynb_checkpoints/1_1.jpeg",
    ):
        save(tmp_path / name, picture(0))
    (tmp_path / "AD" / "._1_1.jpeg").write_bytes(b"x")
    source = find_source(str(tmp_path))
    assert source.classes == ["AD", "NC"] and len(source.records) == 2 and source.bad == []


def test_links_out_of_the_tree_are_followed_once(tmp_path):
    save(tmp_path / "shared/a/p1_1.png", picture(0))
    save(tmp_path / "shared/b/p2_1.png", picture(1))
    (tmp_path / "mine").mkdir()
    for name in "ab":
        (tmp_path / "mine" / name).symlink_to(tmp_path / "shared" / name)
    (tmp_path / "mine" / "a-again").symlink_to(tmp_path / "shared" / "a")
    assert Counter(r.label for r in find_source(str(tmp_path / "mine")).records) == {0: 1, 1: 1}


def test_names_with_line_ends_and_odd_bytes(tmp_path):
    save(tmp_path / "p1\nx_1.png", picture(0))
    with open(bytes(tmp_path) + b"/p2\xff_1.png", "wb") as file:
        file.write(Path(tmp_path / "p1\nx_1.png").read_bytes())
    source = find_source(str(tmp_path))
    assert [r.name for r in source.records] == ["p1?x_1.png", "p2?_1.png"]
    source.digest(), line(source).encode()


@pytest.mark.parametrize(
    "spec", ["", " ", "phantom:0", "phantom:-3", "phantom:x", "phantom:99999999", "/nowhere/at/all", "a\0b"]
)
def test_bad_specs_name_the_flag(spec):
    with pytest.raises(DataError, match="--data"):
        find_source(spec)


def test_the_room_data_is_no_data(monkeypatch):
    monkeypatch.chdir(ROOM.parent)
    with pytest.raises(DataError, match="--data"):
        find_source("data")


def test_no_images_only_archives_unknown_split(tmp_path):
    (tmp_path / "readme.txt").write_text("x")
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="no images"):
        find_source(str(tmp_path))
    with pytest.raises(DataError, match="unpack"):
        find_source(str(tmp_path / "set.zip"))
    with pytest.raises(DataError, match="--split"):
        find_source("phantom", "dev")


def test_digest_sees_changes(tmp_path):
    class_folders(tmp_path, 4)
    before = find_source(str(tmp_path)).digest()
    assert find_source(str(tmp_path)).digest() == before
    save(tmp_path / "a" / "sub01-0.png", picture(99))
    changed = find_source(str(tmp_path)).digest()
    save(tmp_path / "a" / "sub77-0.png", picture(98))
    assert len({before, changed, find_source(str(tmp_path)).digest()}) == 3


# --- pictures ---------------------------------------------------------------------------------------------------------
def test_pictures_become_what_a_viewer_shows(tmp_path):
    folder = make_bad_folder(tmp_path / "x")
    for name, expected in folder.shown.items():
        path = folder.root / name
        pixels = images.decode(images.read_bytes(path))
        assert pixels.shape == (*expected.shape, 1) and images.image_size(path) == expected.shape, name
        difference = np.abs(pixels[:, :, 0].astype(int) - expected).max()
        assert difference <= folder.tolerance[name], f"{name}: off by {difference}"
        assert images.decode(images.read_bytes(path), 3).shape == (*expected.shape, 3)


def test_bad_pictures_are_bad_files_with_a_reason(tmp_path):
    folder = make_bad_folder(tmp_path / "x")
    for name, reason in folder.bad.items():
        with pytest.raises(images.BadFile, match=re.escape(reason) if reason != "folder" else "regular|directory"):
            images.decode(images.read_bytes(folder.root / name))
        if name not in ("901_1.jpeg", "901_2.png", "901_13.tif"):  # their headers are whole
            with pytest.raises(images.BadFile):
                images.image_size(folder.root / name)


def test_wide_values_are_scaled_never_wrapped(tmp_path):
    from PIL import Image

    def shown(values, name="x.tif"):
        Image.fromarray(values).save(tmp_path / name)
        return images.decode((tmp_path / name).read_bytes())[:, :, 0]

    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    assert np.array_equal(shown(ramp.astype(np.uint16), "x.png"), np.rint(ramp.astype(np.uint16) / 257))
    assert shown(np.array([[np.nan, -5.0], [np.inf, 5.0]], np.float32)).tolist() == [[128, 0], [128, 255]]
    assert shown(np.array([[0, 100], [200, 255]], np.int32)).tolist() == [[0, 100], [200, 255]]
    assert shown(np.array([[0, 70000], [140000, 280000]], np.int32)).tolist() == [[0, 64], [128, 255]]


# --- NIfTI ------------------------------------------------------------------------------------------------------------
def head(shape=(40, 48, 12)) -> np.ndarray:
    """A volume in RAS: brighter to the front (y) and to the patient's right (x); background zero."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (x**2 + y**2 < 0.7) & (np.abs(z) < 0.7)
    return np.where(inside, 500 + 300 * y + 100 * x, 0).astype(np.float32)


def save_nifti(path, voxels, orientation="RAS", spacing=(1, 1, 3)):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(voxels, np.diag([*spacing, 1.0]))
    target = nibabel.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt("RAS"), target))
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAS", "SPL"])
def test_nifti_is_shown_front_up_and_right_on_the_left(tmp_path, orientation):
    from data.volumes import read_volume, volume_frame

    path = save_nifti(tmp_path / "100_T1.nii.gz", head(), orientation)
    slices, notes = read_volume(path)
    assert volume_frame(path) == ((48, 40), 12) and not notes
    assert [z for z, _ in slices] == list(range(2, 10))
    image = slices[0][1].astype(int)
    assert image.shape == (48, 40) and image.dtype == int
    assert image[8:12, 18:22].mean() > image[36:40, 18:22].mean() + 50, "the front is not up"
    assert image[24, 8] > image[24, 31] + 20, "the patient's right is not on the left"
    assert image.max() == 255 and image[0, 0] == 0


def test_nifti_in_plane_spacing_becomes_isotropic(tmp_path):
    from data.volumes import read_volume, volume_frame

    path = save_nifti(tmp_path / "a.nii", head((40, 24, 6)), spacing=(1, 2, 3))
    (_, image), *_ = read_volume(path)[0]
    assert image.shape == (48, 40) == volume_frame(path)[0]


def test_nifti_oddities(tmp_path):
    from data.volumes import read_volume

    nibabel = pytest.importorskip("nibabel")
    whole = save_nifti(tmp_path / "whole.nii.gz", head()).read_bytes()
    bad = {
        "truncated": whole[: len(whole) // 2], "zero bytes": b"", "header": b"no volume",
    }  # fmt: skip
    for reason, data in bad.items():
        (tmp_path / "bad.nii.gz").write_bytes(data)
        with pytest.raises(images.BadFile, match=reason):
            read_volume(tmp_path / "bad.nii.gz")
    for reason, voxels in {
        "4-D": np.stack([head()] * 2, 3), "above zero": np.zeros((8, 8, 4), np.float32), "2-D": head()[:, :, 5],
        "mask": (head() > 0).astype(np.float32), "above zero ": np.full((8, 8, 4), np.nan, np.float32),
    }.items():  # fmt: skip
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "bad.nii")
        with pytest.raises(images.BadFile, match=reason.strip()):
            read_volume(tmp_path / "bad.nii")
    clean = read_volume(tmp_path / "whole.nii.gz")[0]
    holes = head()
    holes[0, 0, :] = np.nan  # outside the head
    slices, notes = read_volume(save_nifti(tmp_path / "nan.nii", holes))
    assert "not finite" in notes[0] and all(np.array_equal(a[1], b[1]) for a, b in zip(slices, clean, strict=True))
    plain = nibabel.Nifti1Image(head(), None)
    nibabel.save(plain, tmp_path / "plain.nii")
    slices, notes = read_volume(tmp_path / "plain.nii")
    assert "no orientation" in notes[0] and slices


def test_nifti_folder(tmp_path):
    for name in ("sub-01_T1.nii.gz", "sub-01_FLAIR.nii.gz", "sub-02_T1.nii", "sub-02_seg.nii"):
        save_nifti(tmp_path / name, head())
    source = find_source(str(tmp_path))
    assert len(source.records) == 3 and {r.subject for r in source.records} == {"sub-01", "sub-02"}
    assert "NIfTI" in line(source) and "40x48" in line(source) and any("masks" in w for w in source.warnings)
    assert len(find_source(str(tmp_path / "sub-02_T1.nii")).records) == 1


def test_phantoms():
    train, test = find_source("phantom:40"), find_source("phantom:40", "test")
    assert len(train.records) == 40 and len(test.records) == 4 and train.classes == ["NC", "AD"]
    assert not {r.name for r in train.records} & {r.name for r in test.records}
    assert {r.label for r in train.records} == {0, 1}
    assert len(find_source("phantom").records) == 2000
