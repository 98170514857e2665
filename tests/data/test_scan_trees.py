"""data.scan on data sets as they are downloaded says the truth: BIDS, OASIS-1, a DICOM series, TIFFs of many pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bad_folder import picture, save
from PIL import Image
from test_file_formats import write_series
from test_manifest import table

from data import scan
from data.manifest import GUESSED
from data.pack import ensure_pack
from data.records import Choices

nibabel = pytest.importorskip("nibabel")


def head(seed: int, shape=(20, 24, 8)) -> np.ndarray:
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    noise = np.random.default_rng(seed).uniform(0, 60, shape)
    return np.where((x**2 + y**2 < 0.7) & (abs(z) < 0.8), 500 + 300 * y + noise, 0).astype(np.int16)


def lines(root: Path, capsys, *flags: str) -> dict[str, str]:
    """What the scan prints, by the word that its lines begin with."""
    assert scan.main([str(root), *flags]) == 0
    found: dict[str, str] = {}
    for line in capsys.readouterr().out.splitlines():
        found[line[:11].strip()] = found.get(line[:11].strip(), "") + line[11:] + "\n"
    return found


def test_a_bids_data_set(tmp_path, capsys):
    for i in range(1, 13):
        for m, voxels in (("T1w", head(i)), ("FLAIR", head(50 + i)), ("dseg", (head(i) > 0).astype(np.int16))):
            path = tmp_path / f"sub-{i:02d}/ses-01/anat/sub-{i:02d}_ses-01_{m}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 3, 1])), path)
    rows = "".join(f"sub-{i:02d}\t{60 + i}\n" for i in range(1, 13))
    (tmp_path / "participants.tsv").write_text("participant_id\tage\n" + rows)
    said = lines(tmp_path, capsys)
    assert said["layout"] == "BIDS, NIfTI volumes, 24 volumes in 24 files\n" and said["people"] == "12 people\n"
    assert said["modalities"] == "FLAIR 12, T1w 12\n" and said["columns"] == "age\n" and said["sessions"] == "12\n"
    assert "20x24 (" in said["sizes"] and "1 mm" in said["values"] and "12, a mask" in said["left out"]
    assert "--include '*T1w.*' (12 T1w)" in said["stops"]
    said = lines(tmp_path, capsys, "--include", "*_T1w.*", "--sheet", str(tmp_path / "s.png"))
    assert "stops" not in said and "train: 11 volumes of 11\ntest: 1 volumes of 1\n" in said[""]
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (768, 5 * 142) and np.asarray(sheet)[14:142].max() > 200
    how = dict(resolution=16, cache_dir=tmp_path / "packs", progress=False, log=lambda line: None)
    axial = ensure_pack(str(tmp_path), choices=Choices(include="*_T1w.*"), **how)
    coronal = ensure_pack(str(tmp_path), choices=Choices(include="*_T1w.*", plane="coronal"), **how)
    assert axial.geometry["source_height"] == 24 and axial.digest != coronal.digest


def test_oasis_1_as_it_is_downloaded(tmp_path, capsys):
    for i in range(1, 13):
        folder = tmp_path / f"disc1/OAS1_{i:04d}_MR1"
        for sub, end in (("RAW", "mpr-1_anon"), ("PROCESSED/MPRAGE/T88_111", "mpr_n4_anon_111_t88_gfc"),
                         ("PROCESSED/MPRAGE/T88_111", "mpr_n4_anon_111_t88_masked_gfc"),
                         ("FSL_SEG", "mpr_n4_anon_111_t88_masked_gfc_fseg")):  # fmt: skip
            (folder / sub).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.AnalyzeImage(head(i), np.eye(4)), folder / sub / f"OAS1_{i:04d}_MR1_{end}.hdr")
            save(folder / sub / f"OAS1_{i:04d}_MR1_{end}_sag_66.gif", picture(i, 16, 16))
    said = lines(tmp_path, capsys)
    assert said["layout"].startswith("OASIS-1, volumes, 36 volumes") and said["people"] == "12 people\n"
    assert said["modalities"] == "T1w t88 12, T1w masked t88 12, T1w raw 12\n"
    assert "12, a mask" in said["left out"] and "36, a preview of a volume" in said["left out"]
    assert "--include '*masked*' (12 T1w masked t88)" in said["stops"] and "not understood" not in said["warning"]
    said = lines(tmp_path, capsys, "--include", "*t88*", "--exclude", "*masked*")
    assert said["layout"].startswith("OASIS-1, volumes, 12 volumes") and "stops" not in said


def test_tiffs_of_many_pages(tmp_path, capsys):
    for i in range(6):
        frames = [Image.fromarray(picture(10 * i + z, 20, 24)) for z in range(5)]
        path = tmp_path / f"x/{'AD' if i % 2 else 'NC'}/P{i:02d}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        frames[0].save(path, save_all=True, append_images=frames[1:])
    said = lines(tmp_path / "x", capsys, "--out", str(tmp_path / "t.csv"))
    assert said["layout"] == "class folders, 30 slices in 6 files\n" and said["classes"] == "AD 15 of 3; NC 15 of 3\n"
    rows = table(tmp_path / "t.csv")
    assert len(rows) == 30 and {r["person"] for r in rows} == {f"P{i:02d}" for i in range(6)}
    how = dict(resolution=24, cache_dir=tmp_path / "packs", progress=False, log=lambda line: None)
    pack = ensure_pack(str(tmp_path / "t.csv"), split="all", **how)
    assert len(pack) == 30 and np.array_equal(pack.images[1, 0, 2:22], picture(11, 20, 24))


@pytest.mark.parametrize("suffix", [".dcm", ""])
def test_dicom_series(tmp_path, capsys, suffix):
    pydicom = pytest.importorskip("pydicom")
    for i in range(3):
        series = pydicom.uid.generate_uid()
        for z in range(8):
            meta = pydicom.dataset.FileMetaDataset()
            meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
            meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
            ds = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=bytes(128))
            ds.SeriesInstanceUID, ds.Modality, ds.SOPClassUID = series, "MR", meta.MediaStorageSOPClassUID
            ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
            ds.Rows, ds.Columns, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 24, 20, 16, 12, 11
            ds.PixelRepresentation, ds.SamplesPerPixel, ds.PhotometricInterpretation = 0, 1, "MONOCHROME2"
            ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [1, 1], 3, z + 1
            ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3 * z]
            ds.PixelData = np.ascontiguousarray(head(i)[:, ::-1, z].T).astype(np.uint16).tobytes()
            path = tmp_path / f"sub-{i:02d}/T1/IM{z:04d}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            ds.save_as(path, enforce_file_format=True)
    said = lines(tmp_path, capsys)
    assert said["layout"] == "DICOM series, 3 volumes in 3 series\n" and said["people"] == "3 people\n"
    assert said["modalities"] == "T1w 3\n"
    assert "20x24 (3)" in said["sizes"] and "not understood" not in said.get("warning", "")


def test_the_person_of_a_dicom_series_is_in_its_header(tmp_path, capsys):
    """Scans of one patient in several folders are one person; an id in the path counts more, a folder less."""
    pytest.importorskip("pydicom")
    for i in range(12):
        for visit in range(2):
            folder = tmp_path / "x" / (f"sub-{i:02d}_v{visit}" if i < 2 else f"exam{37 * i + 11 * visit:04d}")
            write_series(folder / "T1", head(i), uid=f"1.2.{i}.{visit}", PatientID=f"MRN{i:05d}")
    said = lines(tmp_path / "x", capsys, "--out", str(tmp_path / "t.csv"))
    assert said["layout"] == "DICOM series, 24 volumes in 24 series\n" and said["people"] == "12 people\n"
    assert "the people of 20 DICOM series are the PatientID" in said["warning"] and "MRN" not in "".join(said.values())
    assert {r["person"] for r in table(tmp_path / "t.csv")} == {"sub-00", "sub-01"} | {
        f"MRN{i:05d}" for i in range(2, 12)
    }
    how = dict(resolution=24, cache_dir=tmp_path / "packs", progress=False, log=lambda line: None)
    pack = ensure_pack(str(tmp_path / "x"), split="all", **how)
    assert len(set(pack.subjects)) == 12 and "MRN" not in str([pack.subjects, pack.names, pack.meta])


@pytest.mark.parametrize("patient", ["", "Anonymous", "0000", "PHANTOM"])
def test_a_patient_id_that_says_nobody(tmp_path, capsys, patient):
    """All series of an archive with one word for a patient: the folders tell."""
    pytest.importorskip("pydicom")
    for i in range(26):
        write_series(tmp_path / f"P{i:02d}/T1", head(i)[:, :, :2], uid=f"1.2.{i}", PatientID=patient)
    assert lines(tmp_path, capsys)["people"] == "26 people\n"


def test_a_guessed_person_stays_a_guess_in_the_table(tmp_path, capsys):
    """Until somebody who knows better empties the column why."""
    for i in range(24):
        save(tmp_path / "x" / "ADNC"[i % 2 * 2 :][:2] / f"k{i // 2:02d}_{i}.png", picture(i, 20, 24))
    out = tmp_path / "t.csv"
    assert "SCAN-LEVEL" in lines(tmp_path / "x", capsys, "--out", str(out))["warning"]
    assert "empty the column why" in lines(out, capsys)["warning"]
    out.write_text("\n".join(line.replace(GUESSED, "") for line in out.read_text().splitlines()))
    said = lines(out, capsys)
    assert "warning" not in said and said["people"] == "12 people\n"


def test_the_scan_says_what_no_header_can_be_read_of(tmp_path, capsys):
    """4-D volumes and damaged files are told before a run stops over them."""
    for i in range(12):
        volume = np.stack([head(i)] * 3, -1) if i < 3 else head(i)
        (tmp_path / "x").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "x" / f"P{i:02d}.nii.gz")
    bad = lines(tmp_path / "x", capsys)["bad files"]
    assert "of 11 that were looked at" in bad and "4-D" in bad and "--volume" in bad
    (tmp_path / "x" / "P07.nii.gz").write_bytes(b"no volume")
    assert "P07.nii.gz" in lines(tmp_path / "x", capsys, "--volume", "0")["bad files"]
