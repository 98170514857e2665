"""Who is in which split under which label: names, subjects and what the digest of a source depends on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from bad_folder import make_adni, picture, save

from data import records
from data.phantom import phantom_label
from data.records import Record, Source
from data.sources import find_source
from data.walk import DataError, Found, class_name, walk_folder


def fill(root: Path, *names: str, size=(16, 18)) -> Path:
    for i, name in enumerate(names):
        save(root / name, picture(i, *size))
    return root


def subjects(source: Source) -> list[str]:
    return [r.subject for r in source.records]


def names(source: Source) -> list[str]:
    return [r.name for r in source.records]


# --- the digest -------------------------------------------------------------------------------------------------------
RECORD = Record("/a/1.png", "1.png", 0, "s1", "s1", "train", 3, 100, 5)
SOURCE = Source("data", "/a", "class folders", ["AD", "NC"], [RECORD], "scan", "train", "rule")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "2.png"},
        {"label": 1},
        {"subject": "s2"},
        {"scan": "s2"},
        {"split": "test"},
        {"slice_index": 4},
        {"size": 101},
        {"mtime_ns": 6},
    ],
)
def test_the_digest_sees_every_field_of_a_slice(change):
    assert replace(SOURCE, records=[replace(RECORD, **change)]).digest() != SOURCE.digest()


@pytest.mark.parametrize(
    "change",
    [
        {"layout": "ADNI"},
        {"classes": ["NC", "AD"]},
        {"subject_kind": "patient"},
        {"split": "test"},
        {"split_rule": "another"},
        {"bad": [("x.png", "zero bytes")]},
        {"kind": "volumes"},
        {"records": [RECORD, RECORD]},
        {"records": []},
    ],
)
def test_the_digest_sees_what_the_slices_are(change):
    assert replace(SOURCE, **change).digest() != SOURCE.digest()


def test_the_digest_does_not_see_where_the_slices_lie():
    elsewhere = replace(RECORD, path="/b/1.png")
    assert replace(SOURCE, spec="b", root="/b", records=[elsewhere], others=[RECORD]).digest() == SOURCE.digest()
    both = [RECORD, replace(RECORD, name="0.png")]
    assert replace(SOURCE, records=both).digest() != replace(SOURCE, records=both[::-1]).digest()


def test_phantoms_that_are_drawn_otherwise_are_other_data(tmp_path, monkeypatch):
    before = find_source("phantom:3").digest()
    (tmp_path / "phantom.py").write_text("another way to draw")
    monkeypatch.setattr(records, "ROOM", tmp_path)
    assert find_source("phantom:3").digest() != before


# --- labels and order -------------------------------------------------------------------------------------------------
def test_classes_are_in_alphabetical_order_whatever_is_found_first(tmp_path):
    source = find_source(str(fill(tmp_path, "test/z/p1_1.png", "train/a/p2_1.png", "train/z/p3_1.png")), "all")
    assert source.classes == ["a", "z"]
    assert {r.name: r.label for r in source.records} == {
        "test/z/p1_1.png": 1,
        "train/a/p2_1.png": 0,
        "train/z/p3_1.png": 1,
    }


def test_spellings_of_a_class_are_one_class(tmp_path):
    source = find_source(
        str(fill(tmp_path, "train/T1/p1_1.png", "test/t1/p2_1.png", "train/cn/p3_1.png", "test/NC/p4_1.png")), "all"
    )
    assert source.classes == ["NC", "t1"] and [(r.name.split("/")[1], r.label) for r in source.records] == [
        ("NC", 0), ("t1", 1), ("T1", 1), ("cn", 0),
    ]  # fmt: skip


def test_records_are_sorted_by_name_through_all_folders(tmp_path):
    root = fill(tmp_path, "b/p9_1.png", "a/p2_10.png", "a/p2_2.png", "a/p10_1.png")
    assert names(find_source(str(root))) == ["a/p10_1.png", "a/p2_10.png", "a/p2_2.png", "b/p9_1.png"]


def test_without_classes_there_is_no_label(tmp_path):
    source = find_source(str(fill(tmp_path, "p1_1.png", "p2_1.png")))
    assert {r.label for r in source.records} == {-1} and source.classes == []


def test_class_folders_of_odd_names_stay_apart():
    assert class_name("a\nb") == "a%0Ab" and class_name("a\tb") == "a%09b" and class_name("é x") == "é x"


def test_few_loose_pictures_beside_classes_are_left_out_and_many_are_the_set(tmp_path):
    classes = fill(tmp_path / "x", "a/p1_1.png", "b/p2_1.png", "a/p3_1.png", "loose_1.png")
    source = find_source(str(classes))
    assert source.classes == ["a", "b"] and len(source.records) == 3
    assert any("1 images outside the class folders" in w for w in source.warnings)
    flat = fill(tmp_path / "y", *(f"p{i}_1.png" for i in range(5)), "extra/p9_1.png")
    source = find_source(str(flat))
    assert source.classes == [] and len(source.records) == 5 and any("flat set" in w for w in source.warnings)


@pytest.mark.parametrize(("count", "classes"), [(20, 20), (21, 0)])
def test_many_folders_are_subjects(tmp_path, count, classes):
    names = [f"{a}{b}" for a in "bdghk" for b in "aeiou"][:count]
    root = fill(tmp_path, *(f"{name}/{z}.png" for name in names for z in range(2)))
    source = find_source(str(root), "all")
    assert len(source.classes) == classes
    if not classes:
        assert set(subjects(source)) == set(names)


# --- subjects ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["sub01-1.png", "sub01-2.png", "sub02-1.png"], ["sub01", "sub01", "sub02"]),
        (["a/s1/1.png", "a/s1/2.png", "b/s2/1.png"], ["s1", "s1", "s2"]),
        (["p1_slice_1.png", "p1_slice_2.png", "p2-slice-1.png"], ["p1", "p1", "p2"]),
        (
            ["case_001_slice_0.nii.png", "case_001_slice_1.nii.png", "case_002_slice_0.nii.png"],
            ["case_001", "case_001", "case_002"],
        ),
        (["IMG_1.png", "IMG_2.png", "IMG_3.png"], ["", "", ""]),
        (["a/s1/x_1.png", "b/s1/y_1.png", "b/s1/y_2.png"], ["s1", "s1", "s1"]),
        (["12_3.PNG", "12_4.PNG", "13_3.PNG"], ["12", "12", "13"]),
    ],
)
def test_the_subject_is_in_the_name_or_in_its_folder(tmp_path, files, expected):
    assert subjects(find_source(str(fill(tmp_path, *files)), "all")) == expected


def test_image_ids_are_one_number_in_every_spelling(tmp_path):
    """Files of scan 00123, the JSON of I123: both scans of a patient stay on one side."""
    scans = [f"{n:05d}" for n in range(101, 113)]
    for n, scan in enumerate(scans):
        save(
            tmp_path / "AD_NC" / ("train" if n < 8 else "test") / ("AD" if n % 2 else "NC") / f"{scan}_70.jpeg",
            picture(n),
        )
    patients = {f"I{int(s)}": {"raw": f"/x/{(int(s) - 101) % 8:03d}_S_0001/y"} for s in scans}
    (tmp_path / "meta_data_with_label.json").write_text(json.dumps(patients))
    train, test = find_source(str(tmp_path)), find_source(str(tmp_path), "test")
    assert train.subject_kind == "patient" and not set(subjects(train)) & set(subjects(test))
    assert {r.scan for r in train.records} == set(scans[4:8])  # patients 0 to 3 have a scan in test as well
    expected = "p" + hashlib.blake2b(b"004_S_0001", digest_size=6).hexdigest()
    assert next(r.subject for r in train.records if r.scan == "00105") == expected


@pytest.mark.parametrize(("known", "kind"), [(12, "patient"), (6, "patient"), (5, "scan"), (0, "scan")])
def test_a_json_that_names_few_scans_is_not_used(tmp_path, known, kind):
    patients = make_adni(tmp_path, None)
    some = dict(list(patients.items())[:known])
    (tmp_path / "meta_data_with_label.json").write_text(json.dumps({s: {"raw": f"/{p}/"} for s, p in some.items()}))
    source = find_source(str(tmp_path))
    assert source.subject_kind == kind
    said = " ".join(source.warnings)
    assert (f"{12 - known} of 12 scans are not in" in said) == (kind == "patient" and known < 12)
    assert ("SCAN-LEVEL" in said) == (kind == "scan")


# --- splits -----------------------------------------------------------------------------------------------------------
def test_the_tenth_of_the_subjects_with_the_smallest_hashes_is_held_out(tmp_path):
    """By hand; for ever, as what was held out from an old model must be held out from its figures."""
    root = fill(tmp_path, *(f"s{i:02d}-{z}.png" for i in range(30) for z in range(2)))
    order = sorted({f"s{i:02d}" for i in range(30)}, key=lambda s: hashlib.blake2b(s.encode()).digest())
    train, test, everything = (find_source(str(root), s) for s in ("train", "test", "all"))
    assert set(subjects(test)) == set(order[:3]) and set(subjects(train)) == set(order[3:])
    assert (len(train.records), len(test.records), len(everything.records)) == (54, 6, 60)
    assert names(train) == sorted(names(train)) and {r.name for r in train.others} == set(names(test))
    assert "3 of 30 held out as test, by scan" in train.split_rule and "slice-level" not in train.split_rule


@pytest.mark.parametrize(("count", "held"), [(9, 0), (10, 1), (14, 1), (16, 2), (25, 2)])
def test_how_many_are_held_out(tmp_path, count, held):
    """A tenth, rounded, of the subjects (not of the slices), and nobody of fewer than ten."""
    root = fill(tmp_path, *(f"s{i:02d}-{z}.png" for i in range(count) for z in range(3 if i else 9)))
    train = find_source(str(root))
    assert len(set(subjects(train))) == count - held
    if held:
        assert len(set(subjects(find_source(str(root), "test")))) == held
    else:
        with pytest.raises(DataError, match="too few"):
            find_source(str(root), "test")


def test_shared_subjects_leave_train_for_test_and_for_val(tmp_path):
    """Each is on one side alone, whichever the other is; a subject of both others stays in test."""
    files = [f"train/s{i}_{z}.png" for i in range(10) for z in (1, 2)]
    root = fill(tmp_path, *files, "test/s0_3.png", "val/s1_3.png", "test/t_3.png", "val/s0_4.png")
    train = find_source(str(root))
    assert set(subjects(train)) == {f"s{i}" for i in range(2, 10)}
    assert names(find_source(str(root), "test")) == ["test/s0_3.png", "test/t_3.png"]
    assert names(find_source(str(root), "val")) == ["val/s1_3.png"]
    assert any("2 scans on both sides" in w and "4 slices" in w for w in train.warnings)
    assert Counter(r.split for r in train.others) == {"test": 2, "val": 1}
    assert "shared scans only in the other side" in train.split_rule


@pytest.mark.parametrize(("subjects_in_all", "anew"), [(10, True), (9, False)])
def test_a_split_by_slice_is_made_anew_where_there_are_enough_subjects(tmp_path, subjects_in_all, anew):
    """All but one subject are on both sides: less than a quarter of train would be left."""
    files = [
        f"{split}/s{i}_{z}.png"
        for i in range(subjects_in_all - 1)
        for z, split in enumerate(("train", "train", "test"))
    ]
    root = fill(tmp_path, *files, "train/own_1.png")
    train = find_source(str(root))
    if anew:
        assert len(set(subjects(train))) == 9 and {r.split for r in train.records} == {"train", "test"}
        val_less = find_source(str(root), "test")
        assert len(set(subjects(val_less))) == 1 and not set(subjects(val_less)) & set(subjects(train))
    else:
        assert set(subjects(train)) == {"own"}


def test_a_quarter_left_is_enough(tmp_path):
    files = [f"{split}/s{i}_1.png" for i in range(12) for split in (("train", "test") if i < 9 else ("train",))]
    source = find_source(str(fill(tmp_path, *files)))
    assert set(subjects(source)) == {"s9", "s10", "s11"} and not any("by slice" in w for w in source.warnings)


def test_val_split_anew_is_the_test_split(tmp_path):
    files = [f"{'val' if z == 0 else 'train'}/s{i:02d}_{z}.png" for i in range(12) for z in range(3)]
    root = fill(tmp_path, *files)
    assert subjects(find_source(str(root), "val")) == subjects(find_source(str(root), "test"))
    assert len(set(subjects(find_source(str(root), "val")))) == 1


@pytest.mark.parametrize("folder", ["Training", "TESTING", "Valid", "validation", "validate"])
def test_names_of_split_folders(tmp_path, folder):
    fill(
        tmp_path,
        f"{folder}/p1_1.png",
        "train/p2_1.png" if not folder.startswith("T") or folder == "TESTING" else "test/p2_1.png",
    )
    split = {"t": "train" if folder == "Training" else "test", "v": "val"}[folder[0].lower()]
    source = find_source(str(tmp_path), split)
    assert [r.name.split("/")[0] for r in source.records] == [folder] and {r.split for r in source.records} == {split}


@pytest.mark.parametrize(("n", "others"), [(40, 4), (5, 1), (19, 1)])
def test_phantom_splits_are_seeds(n, others):
    for split, seed, count in (("train", 0, n), ("test", 1, others), ("val", 2, others)):
        source = find_source(f"phantom:{n}", split)
        assert names(source) == [f"phantom-{seed}-{i:06d}" for i in range(count)] == subjects(source)
        assert [r.label for r in source.records] == [phantom_label(seed, i) for i in range(count)]
        assert [r.slice_index for r in source.records] == list(range(count)) and source.classes == ["NC", "AD"]
        assert source.kind == "phantom" and {r.split for r in source.records} == {split}
    everything = find_source(f"phantom:{n}", "all")
    assert Counter(r.split for r in everything.records) == {"train": n, "test": others, "val": others}


# --- what is said, and what is looked at ------------------------------------------------------------------------------
def test_the_line_counts_slices_classes_subjects_and_sizes(tmp_path):
    root = fill(tmp_path, *(f"a/s{i}-{z}.png" for i in range(3) for z in range(2)), "b/t1-1.png", "b/t2-1.png")
    save(root / "b/t2-1.png", picture(0, 30, 10))
    source = find_source(str(root))
    assert source.describe() == (
        "class folders: 8 slices (a 6, b 2) of 5 scans, 18x16 mostly; split train: everything is train (5 subjects, "
        "too few to hold "
        "some out)"
    )


def test_sizes_are_of_files_spread_over_the_set(tmp_path):
    root = fill(tmp_path, *(f"p{i:02d}_1.png" for i in range(20)))
    for i in range(10, 20):
        save(root / f"p{i:02d}_1.png", picture(i, 22, 20))
    source = find_source(str(root), "all")
    assert source.sizes(4) == {(16, 18): 2, (22, 20): 2} and source.sizes(100) == {(16, 18): 10, (22, 20): 10}


def test_masks_and_junk_are_left_out_by_whole_names(tmp_path):
    """A name that only begins like one of a mask, or like a folder of junk, is a name."""
    root = fill(
        tmp_path,
        "a/p1_1.png",
        "a/seg_001_slice_0.png",
        "masks/p2_1.png",
        "masked/p3_1.png",
        "labels/p4_1.png",
        "labelsTs/p5_1.png",
        "__MACOSX/p6_1.png",
        "lost+found/p7_1.png",
        ".hidden/p8_1.png",
        "a/.p9_1.png",
        "train_masks/q_1.png",
        "mask_test/q_2.png",
        "a/segment_1_slice_1.png",
    )
    walk = walk_folder(root)
    assert [f.relative for f in walk.pictures] == ["a/p1_1.png", "a/segment_1_slice_1.png", "masked/p3_1.png"]
    assert set(walk.masks) == {"a/seg_001_slice_0.png", "masks", "labels", "labelsTs", "train_masks", "mask_test"}


def test_links_are_second_to_folders_of_their_own(tmp_path):
    """What is there by itself keeps its name, whatever a link to it is called."""
    fill(tmp_path, "z/p1_1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert [f.relative for f in walk_folder(tmp_path).pictures] == ["z/p1_1.png"]


def test_folders_that_are_too_deep_are_not_entered(tmp_path):
    fill(tmp_path, "/".join("d" * 12) + "/p1_1.png", "/".join("e" * 13) + "/p2_1.png")
    assert [f.name for f in walk_folder(tmp_path).pictures] == ["p1_1.png"]


def test_too_many_entries_stop_the_walk(tmp_path, monkeypatch):
    fill(tmp_path, "a/p1_1.png", "a/p2_1.png")
    monkeypatch.setattr("data.walk.MAX_FILES", 3)
    assert len(walk_folder(tmp_path).pictures) == 2
    monkeypatch.setattr("data.walk.MAX_FILES", 2)
    with pytest.raises(DataError, match="more than 2 entries"):
        walk_folder(tmp_path)


def test_all_that_is_found_is_sorted_by_its_whole_path(tmp_path):
    """Also where a folder's own files come before those of the folders in it."""
    walk = walk_folder(fill(tmp_path, "z_1.png", "b/c/p_1.png", "b/a_1.png", "b-1.png"))
    assert [f.relative for f in walk.pictures] == ["b-1.png", "b/a_1.png", "b/c/p_1.png", "z_1.png"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    import os

    fill(tmp_path, "a/p1_1.png", "locked/p2_1.png")
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("data.walk.os.scandir", refuse)
    assert walk_folder(tmp_path).bad == [("locked", "folder: Permission denied")]


def test_stems_are_names_without_what_readers_append():
    found = [
        Found("/x", (), name, 1, 1).stem
        for name in ("a_1.PNG", "case_001_slice_0.nii.png", "b.nii.gz", "c.NII.GZ", "d.png.png", "e")
    ]
    assert found == ["a_1", "case_001_slice_0", "b", "c", "d.png", "e"]


@pytest.mark.parametrize(("files", "expected", "kind"), [
    (["sub-01_T1.nii", "sub-01_T2.nii", "sub-02_T1.nii"], ["sub-01", "sub-01", "sub-02"], "patient"),
    (["OAS1_0001_MR1.nii.gz", "OAS30002_MR2.nii"], ["OAS1_0001", "OAS30002"], "patient"),
    (["011_S_0002/a.nii", "011_S_0003/b.nii"], ["011_S_0002", "011_S_0003"], "patient"),
    (["brain.nii", "s01_T1.nii", "s01_T2.nii"], ["brain", "s01", "s01"], "scan"),
    (["sub-01_T1.nii", "x_T1.nii"], ["sub-01", "x_T1"], "scan"),
    (["one/T1.nii", "one/T2.nii", "two/T1.nii"], ["one", "one", "two"], "scan"),
])  # fmt: skip
def test_the_subject_of_a_volume(tmp_path, files, expected, kind):
    """BIDS, OASIS and ADNI names; else its folder, else a beginning with a number, else the whole name."""
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not read here")
    source = find_source(str(tmp_path), "all")
    assert (subjects(source), source.subject_kind, source.kind) == (expected, kind, "volumes") and source.classes == []


def test_volumes_beside_pictures_are_said_and_not_used(tmp_path):
    fill(tmp_path, "p1_1.png", "p2_1.png")
    (tmp_path / "v.nii").write_bytes(b"x")
    source = find_source(str(tmp_path))
    assert source.kind == "images" and len(source.records) == 2
    assert any("1 NIfTI volumes beside the pictures are not used" in w for w in source.warnings)
    assert not any("NIfTI" in w for w in find_source(str(fill(tmp_path / "pictures", "p1_1.png"))).warnings)


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path):
    fill(tmp_path, "train/p1_1.png", "test/p2_1.png")
    with pytest.raises(DataError, match=r"--split val: .* has no such folder, only test, train"):
        find_source(str(tmp_path), "val")


def test_broken_links_are_bad_where_they_are_called_like_pictures(tmp_path):
    fill(tmp_path, "a/p1_1.png")
    for name in ("b.png", "c.nii", "notes.txt", "folder"):
        (tmp_path / "a" / name).symlink_to("nowhere")
    assert [name for name, _ in walk_folder(tmp_path).bad] == ["a/b.png", "a/c.nii"]


def test_folders_called_like_pictures_are_bad_and_not_entered(tmp_path):
    fill(tmp_path, "a/p1_1.png", "a/x.png/p2_1.png", "y.nii.gz/p3_1.png")
    walk = walk_folder(tmp_path)
    assert [f.relative for f in walk.pictures] == ["a/p1_1.png"] and [name for name, _ in walk.bad] == [
        "a/x.png",
        "y.nii.gz",
    ]
    assert all("folder" in reason for _, reason in walk.bad)


def test_mask_folders_are_not_entered(tmp_path):
    walk = walk_folder(fill(tmp_path, "a/p1_1.png", "segs/p2_1.png", "a/Validate_Segmentations/p3_1.png"))
    assert [f.relative for f in walk.pictures] == ["a/p1_1.png"] and sorted(walk.masks) == [
        "a/Validate_Segmentations",
        "segs",
    ]
    assert [name for _, name in walk.folders] == ["a"]


def test_pictures_do_not_hang_on_how_phantoms_are_drawn(tmp_path, monkeypatch):
    root = fill(tmp_path / "x", "p1_1.png")
    before = find_source(str(root)).digest()
    (tmp_path / "phantom.py").write_text("another way to draw")
    monkeypatch.setattr(records, "ROOM", tmp_path)
    assert find_source(str(root)).digest() == before
