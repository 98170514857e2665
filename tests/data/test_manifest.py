"""The table of a data set: written, edited, taken back; joined with other tables; chosen from; masks and modalities."""

from __future__ import annotations

import csv
import json
import re
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bad_folder import picture, save
from PIL import Image
from test_people import tree, who

from data import scan
from data.build import pack_key
from data.pack import ensure_pack, preview
from data.records import Choices
from data.sources import find_source
from data.walk import MASK_FILE, MASK_FOLDER, DataError


def names(source) -> set[str]:
    return {r.name for r in source.records}


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def pictures(root: Path, *files: str) -> str:
    for i, name in enumerate(files):
        save(root / name, picture(i, 16, 18))
    return str(root)


def classes_of(root: Path) -> str:
    return pictures(
        root,
        *(f"{c}/OAS1_{10 * k + i:04d}_MR1_{z}.png" for k, c in enumerate("ab") for i in range(8) for z in (1, 2, 3)),
    )


# --- out and in -------------------------------------------------------------------------------------------------------
def test_the_table_has_its_columns_and_every_file(tmp_path, capsys):
    root = pictures(
        tmp_path / "x", "a/p1_1.png", "a/p1_3.png", "a/p1_11.png", "b/p2_1.png", "masks/m_1.png", "b/p2_1_mask.png"
    )
    out = tmp_path / "t.csv"
    assert scan.main([root, "--out", str(out)]) == 0
    rows = table(out)
    assert list(rows[0]) == ["file", "page", "person", "session", "scan", "slice", "split", "class", "use", "why"]
    assert [(r["file"], r["person"], r["slice"], r["class"], r["use"]) for r in rows if r["use"] == "yes"] == [
        ("x/a/p1_1.png", "p1", "0", "a", "yes"), ("x/a/p1_11.png", "p1", "1", "a", "yes"),
        ("x/a/p1_3.png", "p1", "0.2", "a", "yes"),
        ("x/b/p2_1.png", "p2", "", "b", "yes"),
    ]  # fmt: skip
    assert {r["file"]: r["why"] for r in rows if r["use"] == "no"} == {
        "x/masks": "a mask, label or tissue map", "x/b/p2_1_mask.png": "a mask, label or tissue map"
    }  # fmt: skip
    text = capsys.readouterr().out
    assert "class folders, 4 slices in 4 files" in text and "a 3 of 1; b 1 of 1" in text
    assert "2, a mask, label or tissue map: masks" in text


def test_what_was_written_is_taken_back_the_same(tmp_path):
    root, out = classes_of(tmp_path / "x"), tmp_path / "t.csv"
    assert scan.main([root, "--out", str(out)]) == 0
    for split in ("train", "test", "all"):
        a, b = find_source(root, split), find_source(str(out), split)
        assert {Path(r.path) for r in a.records} == {Path(r.path) for r in b.records}
        assert [(a.classes[r.label], r.subject, r.scan, r.session) for r in a.records] == [
            (b.classes[r.label], r.subject, r.scan, r.session) for r in b.records
        ]
        assert a.subject_kind == b.subject_kind == "patient"
    again = tmp_path / "again.csv"
    assert scan.main([str(out), "--out", str(again)]) == 0
    assert table(out) == table(again)


def test_a_corrected_cell_is_what_counts(tmp_path):
    root, out = classes_of(tmp_path / "x"), tmp_path / "t.csv"
    scan.main([root, "--out", str(out)])
    rows = table(out)
    for row in rows:
        row["split"] = "test" if row["person"] in ("OAS1_0000", "OAS1_0011") else "train"
        row["class"] = "c" if row["person"] == "OAS1_0003" else row["class"]
        row["use"] = "no" if row["file"].endswith("OAS1_0004_MR1_2.png") else "yes"
        row["age"] = row["person"][-2:]
    train, test = (find_source(write(out, rows), side) for side in ("train", "test"))
    assert who(test) == {"OAS1_0000", "OAS1_0011"} and train.classes == ["a", "b", "c"]
    assert not any(r.name.endswith("OAS1_0004_MR1_2.png") for r in train.records) and len(train.records) == 41
    assert {r.attributes for r in train.records if r.subject == "OAS1_0003"} == {(("age", "03"),)}
    assert "as the table says" in train.split_rule
    for row in rows:  # one person on two sides
        row["split"] = "test" if row["file"].endswith("OAS1_0005_MR1_1.png") else row["split"]
    train = find_source(write(out, rows))
    assert "OAS1_0005" not in who(train) and any("1 patient on both sides" in w for w in train.warnings)


@pytest.mark.parametrize(("change", "message"), [
    ({"use": "maybe"}, "line 2: use is 'maybe'"), ({"split": "dev"}, "line 2: split is 'dev'"),
    ({"slice": "x"}, "line 2: slice is 'x'"),
    ({"slice": "1.5"}, "line 2"), ({"page": "0.5"}, "line 2"), ({"page": "-3"}, "line 2"),
    ({"file": ""}, "line 2: no file"),
    ({"file": "b/p2_1.png"}, "twice"), ({"file": "notes.txt"}, "no picture"), ({"slice": "nan"}, "line 2"),
])  # fmt: skip
def test_a_wrong_cell_is_named_with_its_line(tmp_path, change, message):
    pictures(tmp_path, "a/p1_1.png", "b/p2_1.png")
    row = {"file": "a/p1_1.png", "page": "", "slice": "", "split": "", "use": "yes"}
    path = write(tmp_path / "t.csv", [row | change, row | {"file": "b/p2_1.png"}])
    with pytest.raises(DataError, match=message) as caught:
        find_source(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n",
        "file\n",
        "file,file\na,b\n",
        "file\nx.png\n",
        "file,use\nx.png,no\n",
        "\0\0",
        'file\n"' + "a" * 200_000,
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        find_source(str(tmp_path / "t.csv"))
    assert "--data" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_files_that_are_gone_are_counted_as_bad(tmp_path):
    pictures(tmp_path, *(f"p{i}_1.png" for i in range(5)))
    source = find_source(write(tmp_path / "t.csv", [{"file": f"p{i}_1.png", "person": f"p{i}"} for i in range(6)]))
    assert len(source.records) == 5 and [name for name, _ in source.bad] == ["p5_1.png"]


def test_a_pack_of_the_table_is_the_pack_of_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    root, out = classes_of(tmp_path / "x"), tmp_path / "t.csv"
    scan.main([root, "--out", str(out)])
    how = dict(resolution=16, progress=False, log=lambda line: None)
    a, b = ensure_pack(root, **how), ensure_pack(str(out), **how)
    np.testing.assert_array_equal(a.images, b.images)
    assert a.digest == b.digest and a.subjects == b.subjects and a.classes == b.classes


def test_names_that_are_no_text_survive_the_table(tmp_path):
    root = pictures(tmp_path / "x", "a/p1_1.png", 'a/p2,"q"\nz_1.png', "a/p3_1.png")
    (tmp_path / "x/a/p3_1.png").rename(bytes(tmp_path).decode() + "/x/a/p\udcff3_1.png")
    assert scan.main([root, "--out", str(tmp_path / "t.csv")]) == 0
    assert {r.path for r in find_source(str(tmp_path / "t.csv")).records} == {r.path for r in find_source(root).records}


# --- tables beside the data, and --table ------------------------------------------------------------------------------
def test_participants_tsv_is_read_unasked(tmp_path):
    root = pictures(tmp_path / "x", *(f"sub-{i:02d}/anat/{z}.png" for i in range(12) for z in (1, 2)))
    lines = ["participant_id\tage\tsex\tgroup"] + [
        f"sub-{i:02d}\t{60 + i}\t{'FM'[i % 2]}\t{('control', 'patient')[i % 3 > 0]}" for i in range(12)
    ]
    (tmp_path / "x/participants.tsv").write_text("\n".join(lines).replace("\t71\t", "\tn/a\t"))
    source = find_source(root, "all")
    assert source.classes == ["control", "patient"]
    assert {r.subject: r.label for r in source.records} == {f"sub-{i:02d}": int(i % 3 > 0) for i in range(12)}
    assert next(r.attributes for r in source.records if r.subject == "sub-03") == (("age", "63"), ("sex", "M"))
    assert next(r.attributes for r in source.records if r.subject == "sub-11") == (("sex", "M"),)
    said = [w for w in source.warnings if "participants.tsv" in w]
    assert len(said) == 1 and "24 of 24 files" in said[0] and "class from group" in said[0] and "age, sex" in said[0]


def test_stylegans_labels_beat_folder_names(tmp_path):
    files = [f"{k:05d}/img{k * 6 + i:08d}.png" for k in range(2) for i in range(6)]
    root = pictures(tmp_path, *files)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[f, i % 3] for i, f in enumerate(files)]}))
    source = find_source(root, "all")
    assert source.classes == ["0", "1", "2"] and {r.name: r.label for r in source.records} == {
        f: i % 3 for i, f in enumerate(files)
    }
    assert any("dataset.json" in w for w in source.warnings)


def test_adnis_csv_tells_people_and_classes_of_images(tmp_path):
    root = pictures(tmp_path, *(f"train/x/I{1000 + s}_{z}.png" for s in range(24) for z in (1, 2)))
    rows = [
        {
            "Image Data ID": f"I{1000 + s}",
            "Subject": f"{s // 2:03d}_S_0001",
            "Group": ("AD", "CN")[s // 2 % 2],
            "Sex": "F",
            "Age": "70",
        }
        for s in range(24)
    ]
    write(tmp_path / "ADNI1_4_14_2024.csv", rows)
    source = find_source(root, "all")
    assert (
        source.subject_kind == "patient"
        and who(source) == {f"{s:03d}_S_0001" for s in range(12)}
        and source.classes == ["AD", "NC"]
    )
    assert source.records[0].attributes == (("Age", "70"), ("Sex", "F"))


def test_oasis_csv_joins_by_person_and_session(tmp_path):
    root = pictures(tmp_path, *(f"OAS2_{i:04d}_MR{v}_{z}.png" for i in range(10) for v in (1, 2) for z in (1, 2)))
    rows = [{"Subject ID": f"OAS2_{i:04d}", "MRI ID": f"OAS2_{i:04d}_MR{v}",
    "Group": ("Demented", "Nondemented")[i % 2], "Visit": str(v), "Age": str(60 + i + v)}
            for i in range(10) for v in (1, 2)]  # fmt: skip
    write(tmp_path / "oasis_longitudinal.csv", rows)
    source = find_source(root, "all")
    assert {(r.subject, r.session, dict(r.attributes)["Age"]) for r in source.records} == {
        (f"OAS2_{i:04d}", f"MR{v}", str(60 + i + v)) for i in range(10) for v in (1, 2)
    }
    assert source.classes == ["Demented", "Nondemented"]


def test_oasis_1_csv_joins_by_the_id_of_the_session(tmp_path):
    """Its SES is no session."""
    root = pictures(tmp_path, *(f"OAS1_{i:04d}_MR1_{z}.png" for i in range(10) for z in (1, 2)))
    rows = [{"ID": f"OAS1_{i:04d}_MR1", "M/F": "F", "SES": "2", "CDR": "0.5" if i % 2 else "0"} for i in range(10)]
    write(tmp_path / "oasis_cross-sectional.csv", rows)
    source = find_source(root, "all")
    assert dict(source.records[0].attributes) == {"M/F": "F", "SES": "2", "CDR": "0"} and source.classes == []
    assert any("20 of 20 files are in it, by person and session" in w for w in source.warnings)


def test_a_table_of_other_data_is_said_and_not_used(tmp_path):
    root = pictures(tmp_path, *(f"sub-{i:02d}/{z}.png" for i in range(12) for z in (1, 2)))
    (tmp_path / "participants.tsv").write_text("participant_id\tgroup\nsub-77\tx\nsub-78\ty\n")
    source = find_source(root, "all")
    assert source.classes == [] and any("participants.tsv" in w and "not used" in w for w in source.warnings)


@pytest.mark.parametrize(("column", "value"), [
    ("filename", "a/p{i}_1.png"), ("file", "p{i}_1.png"), ("image", "p{i}_1"), ("scan", "p{i}"), ("person", "P{i}"),
    ("Subject ID", "p{i}"),
])  # fmt: skip
def test_a_table_that_is_asked_for_joins_by_what_it_has(tmp_path, column, value):
    root = pictures(tmp_path / "x", *(f"a/p{i}_1.png" for i in range(6)))
    path = write(
        tmp_path / "t.csv",
        [{column: value.format(i=i), "label": "even" if i % 2 == 0 else "odd", "iq": 100 + i} for i in range(6)],
    )
    source = find_source(root, "all", Choices(table=path))
    assert source.classes == ["even", "odd"]
    assert {r.name: (r.label, r.attributes) for r in source.records} == {
        f"a/p{i}_1.png": (i % 2, (("iq", str(100 + i)),)) for i in range(6)
    }


def test_a_table_gives_people_and_splits(tmp_path):
    root = pictures(tmp_path / "x", *(f"IMG_{i}.png" for i in range(12)))
    path = write(
        tmp_path / "t.tsv",
        [{"file": f"IMG_{i}.png", "person": f"q{i // 2}", "split": "test" if i < 4 else "train"} for i in range(12)],
    )
    train, test = (find_source(root, side, Choices(table=path)) for side in ("train", "test"))
    assert who(test) == {"q0", "q1"} and who(train) == {"q2", "q3", "q4", "q5"} and train.subject_kind == "patient"


def test_rows_that_disagree_on_a_person_say_nothing(tmp_path):
    root = pictures(tmp_path / "x", *(f"p{i}_1.png" for i in range(4)))
    rows = [{"person": f"p{i}", "age": str(60 + v), "sex": "F"} for i in range(4) for v in range(2)]
    source = find_source(root, "all", Choices(table=write(tmp_path / "t.csv", rows)))
    assert {r.attributes for r in source.records} == {(("sex", "F"),)}


@pytest.mark.parametrize("text", ["a\n" * 8_100_000, "," * 8_100_000, "a,b" + "\n1" * 4_100_000, "{" * 70_000_000])
def test_tables_that_would_fill_the_memory_are_refused_at_once(tmp_path, text):
    root = pictures(tmp_path / "x", "p1_1.png", "p2_1.png")
    (tmp_path / "t.csv").write_text(text)
    start = time.process_time()
    with pytest.raises(DataError, match=r"--table .*(cells|MB)"):
        find_source(root, "all", Choices(table=str(tmp_path / "t.csv")))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["x,y\n1,2\n", "person\nnobody\n", "", "\0"])
def test_a_table_that_fits_nothing_is_refused(tmp_path, text):
    root = pictures(tmp_path / "x", "p1_1.png", "p2_1.png")
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match="--table"):
        find_source(root, "all", Choices(table=str(tmp_path / "t.csv")))
    with pytest.raises(DataError, match="--table"):
        find_source(root, "all", Choices(table=str(tmp_path / "none.csv")))


# --- choices ----------------------------------------------------------------------------------------------------------
def test_include_and_exclude_choose_by_path_or_name(tmp_path):
    root = pictures(
        tmp_path, *(f"{c}/p{i}_{m}_{z}.png" for c in "ab" for i in range(3) for m in ("T1", "T2") for z in (1, 2))
    )
    assert len(find_source(root, "all", Choices(include="*_T1_*")).records) == 12
    assert len(find_source(root, "all", Choices(include="a/*,b/p0*")).records) == 16
    source = find_source(root, "all", Choices(include="*_T1_*", exclude="b/*, p0_*"))
    assert names(source) == {f"a/p{i}_T1_{z}.png" for i in (1, 2) for z in (1, 2)} and source.classes == ["a"]
    assert {r.why for r in source.table if not r.use} == {"not in --include", "--exclude"} and len(source.table) == 24
    assert "--include *_T1_*" in source.describe() and "--exclude b/*, p0_*" in source.describe()
    with pytest.raises(DataError, match="--include 'nothing'"):
        find_source(root, "all", Choices(include="nothing"))


def test_slices_choose_by_the_share_of_the_way(tmp_path):
    root = pictures(tmp_path, *(f"p{i}_{z}.png" for i in range(3) for z in range(100, 111)))
    source = find_source(root, "all", Choices(slices="0.25:0.75"))
    assert names(source) == {f"p{i}_{z}.png" for i in range(3) for z in range(103, 108)}
    assert {r.why for r in source.table if not r.use} == {"outside --slices"}


def test_slices_choose_among_pages_too(tmp_path):
    for i in range(3):
        frames = [Image.fromarray(picture(20 * i + z, 16, 16)) for z in range(5)]
        frames[0].save(tmp_path / f"p{i}.tif", save_all=True, append_images=frames[1:])
    source = find_source(str(tmp_path), "all", Choices(slices="0.5:0.75"))
    assert sorted((r.name, r.page) for r in source.records) == [(f"p{i}.tif", z) for i in range(3) for z in (2, 3)]
    assert who(source) == {"p0", "p1", "p2"}


@pytest.mark.parametrize("choice", [
    {"plane": "oblique"}, {"slices": "0.7:0.3"}, {"slices": "1:2"}, {"slices": "x"}, {"slices": "nan:1"},
    {"range": "5:1"}, {"range": "5"},
    {"spacing": "-1"}, {"spacing": "x"}, {"spacing": "nan"}, {"range": "inf:1"},
])  # fmt: skip
def test_choices_that_cannot_be_name_their_flag(tmp_path, choice):
    root = pictures(tmp_path, "p1_1.png")
    with pytest.raises(DataError, match=f"^--{next(iter(choice))} "):
        find_source(root, "train", Choices(**choice))


@pytest.mark.parametrize("choice", [
    {"include": "*"}, {"exclude": "x"}, {"plane": "coronal"}, {"slices": "0:1"}, {"range": "0:100"}, {"spacing": "1.5"},
])  # fmt: skip
def test_every_choice_is_in_the_key_and_in_the_description(tmp_path, choice):
    root = pictures(tmp_path, *(f"p1_{z}.png" for z in range(4)))
    plain, chosen = find_source(root), find_source(root, "train", Choices(**choice))
    assert pack_key(plain, 32, 1, 0) != pack_key(chosen, 32, 1, 0)
    assert f"--{next(iter(choice))} {next(iter(choice.values()))}" in chosen.describe()


# --- what is never an image -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [
    "sub-01_dseg.nii.gz", "sub-01_label-GM_probseg.nii.gz", "sub-01_desc-brain_mask.nii.gz", "c1sub-01_T1w.nii",
    "p0T1.nii", "mwp1x.nii",
    "y_T1.nii", "iy_T1.nii", "wc2T1.nii", "aseg.mgz", "aparc+aseg.mgz", "lh.ribbon.mgz", "T1_pve_0.nii.gz",
    "x_seg.nii.gz", "p1_mask_12.png",
    "TCGA_CS_4941_19960909_1_mask.tif", "benign (1)_mask.png", "p1_12_seg.png", "mask_12.png",
    "seg_001_slice_0.nii.png", "gt.nii.gz",
    "OAS1_0001_MR1_t88_masked_gfc_fseg.hdr", "p1_labels.nii", "x-label.nii",
])  # fmt: skip
def test_masks_and_tissue_maps_are_known_by_their_names(name):
    assert MASK_FILE.fullmatch(name)


@pytest.mark.parametrize("name", [
    "p1_T1.nii", "c1_T1.nii", "p101.nii", "segment_1_slice_1.png", "masked_gfc.nii", "T1.mgz", "brain.mgz",
    "glioma_12.png", "control_1.png",
    "p2_3.png", "sub-01_T1w.nii.gz", "labelled_1.png", "OAS1_0001_MR1_t88_masked_gfc.hdr", "cp1_T1.nii",
])  # fmt: skip
def test_images_are_not_taken_for_masks(name):
    assert not MASK_FILE.fullmatch(name)


def test_folders_of_masks_are_known_and_others_are_not():
    assert all(
        MASK_FOLDER.fullmatch(n)
        for n in ("labelsTr", "masks", "lesion_masks", "FSL_SEG", "ground_truth", "train_masks", "annotations")
    )
    assert not any(MASK_FOLDER.fullmatch(n) for n in ("brain_seg_study", "masked", "glioma", "images", "unlabelled"))


def test_derivatives_of_bids_are_left_out_and_said(tmp_path):
    files = [
        f"{where}sub-{i:02d}/anat/sub-{i:02d}_T1w.nii.gz" for where in ("", "derivatives/prep/") for i in range(12)
    ]
    source = find_source(
        tree(tmp_path, [*files, *(f"sub-{i:02d}/anat/sub-{i:02d}_dseg.nii.gz" for i in range(12))]), "all"
    )
    assert len(source.records) == 12 and any("derivatives" in w for w in source.warnings)
    assert dict(source.left_out)["derivatives"] == "derivatives" and len(source.left_out) == 13
    assert len(find_source(str(tmp_path / "derivatives"), "all").records) == 12


def test_previews_beside_volumes_are_no_pictures(tmp_path):
    """OASIS-1 as it is downloaded: GIF previews beside Analyze volumes."""
    files = []
    for i in range(1, 13):
        stem = f"disc1/OAS1_{i:04d}_MR1/PROCESSED/MPRAGE/T88_111/OAS1_{i:04d}_MR1_mpr_n4_anon_111_t88_masked_gfc"
        files += [
            f"{stem}.hdr",
            f"{stem}.img",
            f"{stem}_sag_66.gif",
            f"disc1/OAS1_{i:04d}_MR1/FSL_SEG/OAS1_{i:04d}_MR1_fseg.hdr",
        ]
    source = find_source(tree(tmp_path, files), "all")
    assert (
        source.kind == "volumes"
        and len(source.records) == 12
        and who(source) == {f"OAS1_{i:04d}" for i in range(1, 13)}
    )
    assert any("12 previews of volumes" in w for w in source.warnings) and not source.refusal
    assert not any("not understood" in w for w in source.warnings)


def test_what_is_not_understood_is_counted_and_named(tmp_path):
    root = pictures(tmp_path, "p1_1.png", "p2_1.png")
    for i in range(3):
        (tmp_path / f"scan{i}.mnc").write_bytes(b"x")
    (tmp_path / "IM0001").write_bytes(b"no DICOM")
    (tmp_path / "README").write_bytes(b"x")
    said = find_source(root, "all").warnings
    assert any("3 .mnc files are not understood and not used; convert with mnc2nii" in w for w in said)
    assert any("1 files without a suffix" in w for w in said) and not any("README" in w for w in said)
    (tmp_path / "only").mkdir()
    (tmp_path / "only/a.mnc").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images.*1 \.mnc \(convert with mnc2nii\)"):
        find_source(str(tmp_path / "only"))


# --- modalities -------------------------------------------------------------------------------------------------------
SEVERAL = {
    "bids": (["sub-{i:02d}/anat/sub-{i:02d}_{m}.nii.gz"], {"T1w": "T1w", "FLAIR": "FLAIR"}),
    "brats": (["BraTS20_Training_{i:03d}/BraTS20_Training_{i:03d}_{m}.nii.gz"],
    {"t1": "T1w", "t1ce": "T1ce", "flair": "FLAIR"}),
    "nnunet": (["imagesTr/case_{i:03d}_{m}.nii.gz"], {"0000": "channel 0000", "0001": "channel 0001"}),
    "folders": (["P{i:02d}/{m}/1.png", "P{i:02d}/{m}/2.png"], {"T1": "T1w", "T2": "T2w"}),
    "freesurfer": (["bert{i}/mri/{m}.nii"], {"orig": "T1w orig", "norm": "T1w norm"}),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(SEVERAL))
def test_several_modalities_stop_the_run_with_the_lines_to_choose_from(tmp_path, layout):
    shapes, words = SEVERAL[layout]
    root = tree(tmp_path / "x", [shape.format(i=i, m=m) for shape in shapes for i in range(12) for m in words])
    source = find_source(root, "all")
    assert {r.modality for r in source.records} == set(words.values())
    for how in (preview, ensure_pack):
        with pytest.raises(DataError, match="several modalities") as caught:
            how(root, resolution=16, log=lambda line: None)
    lines = re.findall(r"--include '([^']*)' \((\d+) ([^)]*)\)", str(caught.value))
    assert {m for _, _, m in lines} == set(words.values())
    for glob, count, modality in lines:
        chosen = find_source(root, "all", Choices(include=glob))
        assert {r.modality for r in chosen.records} == {modality} and not chosen.refusal
        assert len(chosen.records) == 12 * len(shapes)
        if layout != "freesurfer":
            assert int(count) == len(find_source(root, "all", Choices(include=glob)).records)


def test_a_modality_that_is_the_class_is_learnt(tmp_path):
    root = pictures(tmp_path, *(f"{m}/q{i}_{m}_{z}.png" for m in ("T1", "FLAIR") for i in range(3) for z in (1, 2)))
    source = find_source(root, "all")
    assert source.classes == ["FLAIR", "T1"] and not source.refusal
    assert {r.modality for r in source.records} == {"FLAIR", "T1w"} and who(source) == {"q0", "q1", "q2"}


# --- the scan ---------------------------------------------------------------------------------------------------------
def test_the_sheet_shows_people_of_every_class_and_the_grey_levels(tmp_path, capsys):
    root = pictures(
        tmp_path / "x",
        *(f"{c}/OAS1_{10 * k + i:04d}_MR1_{z}.png" for k, c in enumerate("ab") for i in range(8) for z in range(9)),
    )
    assert scan.main([root, "--sheet", str(tmp_path / "s.png")]) == 0
    with Image.open(tmp_path / "s.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (9 * (128 + 14), 6 * 128)
    for row in range(8):
        assert all(pixels[row * 142 + 14 : (row + 1) * 142, 128 * x : 128 * (x + 1)].max() > 100 for x in range(6))
    assert pixels[8 * 142 + 14 :].max() == 200 and "sheet" in capsys.readouterr().out


def test_scan_prints_no_id(tmp_path, capsys):
    root = pictures(
        tmp_path / "x",
        *(f"AD/ADNI_{i:03d}_S_0001_x_{z}.png" for i in range(12) for z in (1, 2)),
        "AD/ADNI_777_S_7777_mask_1.png",
    )
    assert scan.main([root]) == 0
    text = capsys.readouterr().out
    assert not re.search(r"\d{3}_S_\d{4}", text) and "12 people" in text and "1, a mask" in text


def test_scan_says_a_wrong_name_in_one_line(tmp_path, capsys):
    root = pictures(tmp_path / "x", "p1_1.png")
    assert (
        scan.main([root, "--out", "t.xlsx"]) == 78
        and scan.main([root, "--slices", "2:3"]) == 78
        and scan.main(["nowhere"]) == 78
    )
    assert capsys.readouterr().err.count("\n") == 3
    assert scan.main(["phantom:20"]) == 0 and scan.main(["phantom:20", "--out", str(tmp_path / "t.csv")]) == 78


def test_scan_of_pages_has_a_row_for_each(tmp_path):
    for i in range(3):
        frames = [Image.fromarray(picture(20 * i + z, 16, 16)) for z in range(4)]
        frames[0].save(tmp_path / f"stack_{i:03d}.tif", save_all=True, append_images=frames[1:])
    assert scan.main([str(tmp_path), "--out", str(tmp_path / "t.csv")]) == 0
    rows = table(tmp_path / "t.csv")
    assert [(r["file"], r["page"], r["slice"]) for r in rows[:4]] == [
        ("stack_000.tif", str(z), f"{z / 3:.4g}") for z in range(4)
    ]
    assert len(rows) == 12 and len({r["person"] for r in rows}) == 3
    source = find_source(str(tmp_path / "t.csv"), "all")
    assert [r.page for r in source.records] == [0, 1, 2, 3] * 3


def test_an_archive_is_a_folder(tmp_path):
    root = Path(classes_of(tmp_path / "x"))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(root))
        archive.writestr("__MACOSX/a/._x.png", b"x")
        archive.writestr("masks/m_1.png", b"x")
    inside, outside = find_source(str(tmp_path / "set.zip")), find_source(str(root))
    assert [(r.name, r.subject, r.label, r.size) for r in inside.records] == [
        (r.name, r.subject, r.label, r.size) for r in outside.records
    ]
    assert inside.left_out == [("masks", "a mask, label or tissue map")]
    assert scan.main([str(tmp_path / "set.zip"), "--out", str(tmp_path / "t.csv")]) == 0
    assert len(find_source(str(tmp_path / "t.csv"), "all").records) == 48


@pytest.mark.parametrize("column", ["class", "person", "split"])
def test_rows_that_contradict_each_other_are_said(tmp_path, column):
    """Two rows of one file that do not agree: neither is taken, and the line that is printed says so."""
    root = pictures(tmp_path / "x", *(f"a{i:02d}_1.png" for i in range(12)))
    cells = {"split": ("train", "test")}.get(column, ("X", "Y"))
    rows = [{"file": f"a{i:02d}_1.png", column: cells[k]} for i in range(12) for k in range(2 if i < 5 else 1)]
    source = find_source(root, "all", Choices(table=write(tmp_path / "t.csv", rows)))
    assert f"rows of 5 files contradict each other in {column}: none is taken" in "".join(source.warnings)


def test_a_table_of_many_short_rows_is_refused_at_once(tmp_path):
    root = pictures(tmp_path / "x", "a01_1.png")
    (tmp_path / "t.csv").write_text("file,person\n" + "a,b\n" * 450_000)
    with pytest.raises(DataError, match="more than 400,000 rows"):
        find_source(root, "all", Choices(table=str(tmp_path / "t.csv")))
