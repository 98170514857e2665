"""Who is on a picture, by the names that real data sets use: nobody is on two sides, no class and nobody is lost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bad_folder import picture, save

from data import people
from data.pack import ensure_held_out, ensure_pack
from data.sources import find_source
from data.walk import DataError


def tree(root: Path, names) -> str:
    """Files of these names; what is in them is not looked at here, but no two are alike."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not read: " + name.encode())
    return str(root)


def who(source) -> set[str]:
    return {r.subject for r in source.records}


def both_sides(root: str):
    train, test = find_source(root), find_source(root, "test")
    assert train.records and test.records
    assert not who(train) & who(test), "a person is on two sides"
    return train, test


# --- the leaks of old layouts -----------------------------------------------------------------------------------------
KAGGLE = [
    f"{label}/OAS1_{i:04d}_MR1_mpr-{m}_{z}.jpg"
    for label, start in (("Mild Dementia", 0), ("Non Demented", 40))
    for i in range(start, start + 10)
    for m in (1, 2, 3)
    for z in (100, 101)
]


def test_people_of_kaggles_oasis_are_not_split_by_repeat(tmp_path):
    train, test = both_sides(tree(tmp_path, KAGGLE))
    assert train.subject_kind == "patient" and len(who(train) | who(test)) == 20
    assert who(test) <= {f"OAS1_{i:04d}" for i in (*range(10), *range(40, 50))}
    assert train.classes == ["Mild Dementia", "Non Demented"] and {r.label for r in test.records} == {0, 1}


def test_people_of_kaggles_oasis_in_a_folder_each(tmp_path):
    names = [name.replace("_mpr", "/mpr").replace("_MR1/", "_MR1/x_") for name in KAGGLE]
    train, test = both_sides(tree(tmp_path, names))
    assert len(who(train) | who(test)) == 20 and train.classes == ["Mild Dementia", "Non Demented"]


def test_sessions_of_bids_pictures_are_of_one_person(tmp_path):
    names = [f"sub-{i:02d}/ses-{s:02d}/anat/{z}.png" for i in range(12) for s in (1, 2) for z in range(3)]
    train, test = both_sides(tree(tmp_path, names))
    assert train.classes == [] and len(who(train) | who(test)) == 12
    assert {r.session for r in train.records} == {"ses-01", "ses-02"}


def test_adni_ids_in_the_names_are_people(tmp_path):
    names = [
        f"{label}/ADNI_{i:03d}_S_{1000 + i}_MR_MPRAGE_{scan}_{z}.png"
        for label, start in (("AD", 0), ("CN", 20))
        for i in range(start, start + 10)
        for scan in (1, 2)
        for z in (90, 91)
    ]
    train, test = both_sides(tree(tmp_path, names))
    assert train.subject_kind == "patient" and "000_S_1000" in who(train) | who(test)


def test_given_folders_with_other_repeats_of_the_same_people(tmp_path):
    names = [f"{'test' if m == 3 else 'train'}/OAS1_{i:04d}_MR1_mpr-{m}_100.jpg" for i in range(30) for m in (1, 2, 3)]
    train, _ = both_sides(tree(tmp_path, names))
    assert any("30 patients are on both sides" in w for w in train.warnings)


def test_given_folders_that_share_some_people_leave_them_out_of_train(tmp_path):
    names = [f"train/sub-{i:02d}_ses-1_{z}.png" for i in range(20) for z in range(3)]
    names += [f"test/sub-{i:02d}_ses-2_{z}.png" for i in range(15, 25) for z in range(3)]
    train, test = both_sides(tree(tmp_path, names))
    assert len(who(train)) == 15 and len(who(test)) == 10
    assert any("5 patients on both sides" in w and "15 slices" in w for w in train.warnings)


def test_a_person_of_val_and_test_stays_in_test_alone(tmp_path):
    names = [f"{side}/P{i:02d}/{z}.png" for side,
    own in (("train", range(20)), ("val", range(20, 30)), ("test", range(28, 40)))
             for i in own for z in range(2)]  # fmt: skip
    root = tree(tmp_path, names)
    sides = {side: who(find_source(root, side)) for side in ("train", "val", "test")}
    assert [len(sides[s]) for s in ("train", "val", "test")] == [20, 8, 12]
    assert not sides["val"] & sides["test"]
    assert any("2 patients of val are also in test" in w for w in find_source(root, "val").warnings)


def test_the_test_folder_itself_has_nothing_to_validate_on(tmp_path):
    for side, start in (("train", 0), ("test", 50)):
        for i in range(start, start + 12):
            save(tmp_path / "x" / side / f"p{i}_1.png", picture(i))
    said: list[str] = []
    how = dict(resolution=16, progress=False, log=said.append)
    assert ensure_held_out(str(tmp_path / "x" / "test"), "auto", **how) is None
    assert any("no other patients to validate on" in line for line in said)
    with pytest.raises(DataError, match="trained on"):
        ensure_held_out(str(tmp_path / "x" / "test"), "test", **how)


def test_a_held_out_pack_never_has_a_person_of_the_training_pack(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    for i in range(12):
        for m in (1, 2):
            save(tmp_path / "x" / f"OAS1_{i:04d}_MR1_mpr-{m}_90.png", picture(10 * i + m))
    how = dict(resolution=16, progress=False, log=lambda line: None)
    train, held = ensure_pack(str(tmp_path / "x"), **how), ensure_held_out(str(tmp_path / "x"), "auto", **how)
    assert held is not None and not set(train.subjects) & set(held.subjects) and len(held) == 2


# --- folders ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sub-{:02d}", "P{:03d}", "patient_{}", "{:04d}", "s{}", "HGG_{}", "control{:02d}"])
@pytest.mark.parametrize("count", [12, 20, 30])
def test_few_folders_of_people_are_no_classes(tmp_path, name, count):
    root = tree(tmp_path, [f"{name.format(i)}/{z}.png" for i in range(count) for z in range(3)])
    train, test = both_sides(root)
    assert train.classes == [] and len(who(train) | who(test)) == count and train.subject_kind == "patient"


@pytest.mark.parametrize(
    "labels", [("AD", "CN"), ("glioma", "notumor"), ("foo", "bar"), ("0", "1"), ("grade2", "grade3"), ("T1", "T2")]
)
def test_folders_of_classes_stay_classes(tmp_path, labels):
    names = [f"{label}/q{50 * k + i}_{z}.png" for k, label in enumerate(labels) for i in range(12) for z in range(2)]
    train, _ = both_sides(tree(tmp_path, names))
    assert train.classes == sorted({"CN": "NC"}.get(x, x) for x in labels)


def test_numbers_of_scans_are_adnis_only_below_diagnoses(tmp_path):
    for layout, labels in (("ADNI", ("AD", "CN")), ("class folders", ("glioma", "yes"))):
        files = [f"{label}/{50 * k + i}_{z}.png" for k, label in enumerate(labels) for i in range(12) for z in (1, 2)]
        assert find_source(tree(tmp_path / layout, files)).layout == layout


@pytest.mark.parametrize("above", ["ADNI{}", "fold{}", "part_{}", "site{}", "disc{}", "batch-{}"])
def test_parts_above_the_diagnosis_do_not_hide_it(tmp_path, above):
    names = [
        f"{above.format(k)}/{c}/{c}{100 * k + i}_{z}.png"
        for k in (1, 2)
        for c in ("AD", "CN")
        for i in range(6)
        for z in range(2)
    ]
    train, _ = both_sides(tree(tmp_path, names))
    assert train.classes == ["AD", "NC"]


def test_two_centres_with_classes_of_any_name(tmp_path):
    names = [
        f"{c}/{label}/{c[:2]}{i}{label}_{z}.png"
        for c in ("lyon", "rome")
        for label in ("foo", "bar")
        for i in range(6)
        for z in range(2)
    ]
    assert find_source(tree(tmp_path, names)).classes == ["bar", "foo"]


def test_shards_are_neither_classes_nor_people(tmp_path):
    root = tree(tmp_path, [f"{k:05d}/img{1000 * k + i:08d}.png" for k in range(3) for i in range(10)])
    source = find_source(root, "all")
    assert source.classes == [] and source.subject_kind == "none" and len(source.records) == 30


def test_a_class_above_people_and_people_above_a_class(tmp_path):
    a = find_source(
        tree(
            tmp_path / "a",
            [f"tumor{c}/P{10 * k + i}/T1_{z}.png" for k, c in enumerate("AB") for i in range(6) for z in (1, 2)],
        )
    )
    assert a.classes == ["tumorA", "tumorB"] and who(find_source(a.spec, "all")) == {
        f"P{10 * k + i}" for k in (0, 1) for i in range(6)
    }
    b = find_source(
        tree(tmp_path / "b", [f"P{i:02d}/{'AD' if i % 2 else 'CN'}/{z}.png" for i in range(14) for z in (1, 2)]), "all"
    )
    assert b.classes == ["AD", "NC"] and who(b) == {f"P{i:02d}" for i in range(14)}


def test_people_in_folders_of_words_below_classes(tmp_path):
    root = tree(
        tmp_path,
        [
            f"{c}/{n}/{z}.png"
            for c, group in (("AD", ("ann", "bob")), ("NC", ("cat", "dan")))
            for n in group
            for z in (1, 2)
        ],
    )
    assert who(find_source(root, "all")) == {"ann", "bob", "cat", "dan"}


def test_prefixes_that_count_are_nobody(tmp_path):
    names = [
        f"{side}/{c}/{side[:2]}-{c[:2]}_{i:04d}.jpg"
        for side in ("Training", "Testing")
        for c in ("glioma", "pituitary")
        for i in range(9)
    ]
    names += [f"Training/glioma/Tr-glTr_{i:04d}.jpg" for i in range(4)]
    source = find_source(tree(tmp_path, names))
    assert source.subject_kind == "none" and len(source.records) == 22 and source.classes == ["glioma", "pituitary"]
    assert any("SLICE-LEVEL" in w for w in source.warnings)


# --- volumes ----------------------------------------------------------------------------------------------------------
def test_volumes_in_given_folders_by_diagnosis(tmp_path):
    names = [
        f"{side}/{c}/{c}_{i:03d}_T1.nii.gz"
        for side, start in (("train", 0), ("test", 100))
        for c in ("PD", "HC")
        for i in range(start, start + 12)
    ]
    train, test = both_sides(tree(tmp_path, names))
    assert len(who(train)) == len(who(test)) == 24 and train.classes == ["HC", "PD"]


@pytest.mark.parametrize(("name", "count"), [
    ("IXI-T1/IXI{:03d}-Guys-0828-T1.nii.gz", 20), ("imagesTr/hippocampus_{:03d}.nii.gz", 48), ("T1_{:03d}.nii.gz", 20),
    ("study1_{:03d}.nii.gz", 20), ("{:03d}_T1w.nii.gz", 20), ("raw/TCGA-CS-{}_T1.nii.gz", 20), ("P{:02d}.nii", 30),
    ("BraTS20_Training_{:03d}/BraTS20_Training_{:03d}_t1.nii.gz", 20), ("control_{:02d}_T1.nii.gz", 20),
    ("bert{}/mri/T1.mgz", 20),
    ("{:03d}_S_0001/MPRAGE/2006-04-18_08_20_30.0/I1{:03d}/ADNI_x_I1{:03d}.nii", 20),
    ("s{:02d}/anat/mprage_anonymized.nii.gz", 20),
])  # fmt: skip
def test_people_of_volumes_do_not_collapse(tmp_path, name, count):
    start = 4941 if "TCGA" in name else 0
    names = [name.format(*[start + i] * 3) for i in range(count)]
    train, test = both_sides(tree(tmp_path, names))
    assert len(who(train) | who(test)) == count and train.classes == []


def test_repeats_of_a_volume_are_of_one_person(tmp_path):
    root = tree(tmp_path, [f"P{i:02d}_{k}.nii.gz" for i in range(12) for k in (1, 2)])
    assert len(who(find_source(root, "all"))) == 12


def test_classes_of_volumes_of_any_name_are_kept(tmp_path):
    names = [f"{c}/{c}{i:03d}.nii.gz" for c in ("smokers", "others") for i in range(12)]
    source = find_source(tree(tmp_path, names))
    assert source.classes == ["others", "smokers"] and {r.label for r in source.records} == {0, 1}


# --- one function, one hash -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("path", "person"), [
    ("AD/ADNI_002_S_1002_MR_x_90.png", "002_S_1002"), ("sub-ADNI002S1002/ses-M00/anat/x.nii", "002_S_1002"),
    ("a/sub-Ab01_ses-2_T1w.nii.gz", "sub-ab01"), ("OAS1_0001_MR1_mpr-2_100.jpg", "OAS1_0001"),
    ("OAS2_0007_MR2/x.hdr", "OAS2_0007"),
    ("sub-OAS30001/ses-d0129/x.nii", "OAS30001"), ("IXI002-Guys-0828-T1.nii.gz", "IXI002"),
    ("TCGA_CS_4941_19960909_1.tif", "TCGA-CS-4941"),
    ("BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t1.nii", "brats19_cbica_aab"),
    ("BraTS-GLI-00005-001-t1n.nii.gz", "brats-gli-00005"),
    ("BRATS_012.nii.gz", "brats_012"), ("subject_12_visit1_slice_3.png", "subject_12"), ("Tr-gl_0010.jpg", ""),
    ("train/x_1.png", ""),
    ("MICCAI_BraTS2020_TrainingData/x.nii", ""), ("0123_S_0001.png", ""),
])  # fmt: skip
def test_ids_of_known_data_sets(path, person):
    assert people.known_person(path) == person


@pytest.mark.parametrize(("stem", "said"), [
    ("p1_slice_12", ("p1", "p1", 12)), ("s01_T1_axial_34", ("s01_T1_axial", "s01", 34)), ("26 (19)", ("26", "26", 19)),
    ("case_001_slice_0", ("case_001", "case_001", 0)), ("IMG_7", ("IMG", "", 7)), ("slice5", ("", "", 5)),
    ("T1_001_12", ("T1_001", "001", 12)),
    ("P7_ses1_T2_z040", ("P7_ses1_T2", "P7", 40)), ("p1_12_axial", ("p1", "p1", 12)), ("17", ("", "", 17)),
])  # fmt: skip
def test_what_a_name_says_by_itself(stem, said):
    assert people.said_by_name(stem, volume=False) == said


def test_ids_are_keyed_hashes_in_packs_and_logs(tmp_path, monkeypatch):
    """Neither ids nor their plain hashes: those of all possible ids are soon listed."""
    import hashlib

    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    ids = [f"{i:03d}_S_{1000 + i}" for i in range(12)]
    for i, person in enumerate(ids):
        save(tmp_path / "x" / "AD" / f"ADNI_{person}_MR_1_90.png", picture(i))
    (tmp_path / "x" / "AD" / "ADNI_777_S_7777_MR_1_90.png").write_bytes(b"broken")
    said: list[str] = []
    pack = ensure_pack(str(tmp_path / "x"), resolution=16, split="all", progress=False, log=said.append)
    text = Path(pack.path).read_bytes().decode("latin-1") + "\n".join(said)
    assert any("bad file" in line for line in said)
    for person in [*ids, "777_S_7777"]:
        assert person not in text and hashlib.blake2b(person.encode(), digest_size=6).hexdigest() not in text
    keyed = hashlib.blake2b(ids[0].encode(), digest_size=6, key=b"brain slices: people").hexdigest()
    assert (
        f"p{keyed}" in pack.subjects
        and pack.names[0] == f"AD/ADNI_p{keyed}_MR_1_90.png"
        and len(set(pack.subjects)) == 12
    )


def test_adnis_json_still_tells_the_patients(tmp_path):
    names = [f"AD_NC/train/{'AD' if s % 2 else 'NC'}/{s}_{z}.jpeg" for s in range(100, 124) for z in range(2)]
    (tmp_path / "meta_data_with_label.json").write_text(
        json.dumps({str(s): {"raw": f"/x/{s // 2:03d}_S_0001/y"} for s in range(100, 124)})
    )
    source = find_source(tree(tmp_path, names))
    assert source.subject_kind == "patient" and len(who(source)) == 12
    assert not any("SCAN-LEVEL" in w for w in source.warnings)


def test_the_hold_out_is_of_every_class(tmp_path):
    """By hand: a tenth of each class, at least one of three, in the order of the hashes of the people."""
    import hashlib

    sizes = {"a": 20, "b": 3, "c": 10}
    names = [f"{c}/{c}{i:02d}_{z}.png" for c, n in sizes.items() for i in range(n) for z in range(2)]
    _, test = both_sides(tree(tmp_path, names))
    expected = set()
    for c, n in sizes.items():
        order = sorted((f"{c}{i:02d}" for i in range(n)), key=lambda s: hashlib.blake2b(s.encode()).digest())
        expected |= set(order[: {"a": 2, "b": 1, "c": 1}[c]])
    assert who(test) == expected


def test_scan_level_is_said_every_time(tmp_path):
    for sub, names in (
        ("a", [f"s{i:02d}_{z}.png" for i in range(12) for z in range(2)]),
        ("b", [f"case_{i:03d}_slice_{z}.nii.png" for i in range(12) for z in (1, 2)]),
    ):
        root = tree(tmp_path / sub, names)
        for split in ("train", "test", "all"):
            assert any("SCAN-LEVEL" in w for w in find_source(root, split).warnings)


def test_files_that_name_nobody_among_others_are_counted(tmp_path):
    source = find_source(tree(tmp_path, [*(f"s{i:02d}_{z}.png" for i in range(12) for z in (1, 2)), "overview.png"]))
    assert any("1 files have no subject in their names; each counts as its own" in w for w in source.warnings)


def test_pixels_do_not_depend_on_what_names_hide(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    for i in range(4):
        save(tmp_path / "x" / f"sub-{i:02d}_1.png", picture(i, 16, 16))
    pack = ensure_pack(str(tmp_path / "x"), resolution=16, progress=False, log=lambda line: None)
    for i in range(4):
        np.testing.assert_array_equal(pack.images[i, 0], picture(i, 16, 16))


@pytest.mark.parametrize("prefix", ["slice_", "sl", "Slice-", "slc "])
def test_a_folder_per_slice_number_is_nobody(tmp_path, prefix):
    """slice_07/P03.png: the folder has the number of the slice, the name is the person's."""
    names = [
        f"{prefix}{z:02d}/{who}/P{i:02d}.png" for i in range(12) for z in range(6) for who in ["AD", "NC"][i % 2 :][:1]
    ]
    tree(tmp_path, names)
    source = find_source(str(tmp_path), "all")
    assert {r.subject for r in source.records} == {f"P{i:02d}" for i in range(12)} and source.classes == ["AD", "NC"]
    assert {r.position for r in source.records} == {0, 0.2, 0.4, 0.6, 0.8, 1}


@pytest.mark.parametrize(
    "part", ["kfold", "cv_", "dataset", "version-", "folder", "download", "series_", "day", "images", "block "]
)
def test_numbered_parts_of_a_download_are_nobody(tmp_path, part):
    tree(tmp_path, [f"{part}{i % 3 + 1}/Q{i:02d}_{z}.png" for i in range(24) for z in range(3)])
    assert {r.subject for r in find_source(str(tmp_path), "all").records} == {f"Q{i:02d}" for i in range(24)}


@pytest.mark.parametrize("spans", [("20-40", "41-60", "61-80"), ("18to40", "40to60"), ("age_20_40", "age_40_60")])
def test_spans_of_ages_are_classes(tmp_path, spans):
    tree(tmp_path, [f"{spans[i % len(spans)]}/v{i:02d}_{z}.png" for i in range(24) for z in range(3)])
    assert find_source(str(tmp_path), "all").classes == sorted(spans)


@pytest.mark.parametrize("names", [("cva", "tia"), ("seta", "setb"), ("sla", "slb")])
def test_a_short_name_that_ends_in_a_letter_is_no_part_of_a_download(tmp_path, names):
    for name in names:
        for k in range(3):
            save(tmp_path / name / f"s{k}.png", picture(k))
    assert find_source(str(tmp_path), "all").classes == list(names)


def test_parts_of_a_download_are_no_classes(tmp_path):
    for part in ("fold1", "foldB", "part-c", "cv_d", "k_0"):
        for name in ("AD", "NC"):
            for k in range(3):
                save(tmp_path / part / name / f"s{k}.png", picture(k))
    assert find_source(str(tmp_path), "all").classes == ["AD", "NC"]
