"""Stacks of pages, arrays, volumes, DICOM series, archives: what is in the files comes out, in its place."""

from __future__ import annotations

import io
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image, features

from data import dicom, reading, volumes
from data.formats import Look, look
from data.images import look_picture, read_pages
from data.pack import ensure_pack
from data.reading import BadFile
from data.records import Choices
from data.volumes import Cut, read_volume, volume_frame

nibabel = pytest.importorskip("nibabel")
SIDE = 24


@pytest.fixture
def pack_of(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))

    def ensure(source, **how):
        return ensure_pack(
            str(source), **dict(resolution=SIDE, split="all", progress=False, log=lambda text: None) | how
        )

    return ensure


def page(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 200, (SIDE, SIDE)).astype(np.uint8) + i


def pages(count=5):
    return [Image.fromarray(page(i)) for i in range(count)]


# --- pages ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.tif", "a.tiff", "a.gif", "a.webp", "a.npy"])
def test_every_page_is_a_slice(tmp_path, pack_of, name):
    (tmp_path / "x").mkdir()
    for k in range(3):
        path = tmp_path / "x" / f"sub-0{k}_{name}"
        if name.endswith("npy"):
            np.save(path, np.stack([page(i + 5 * k) for i in range(5)]))
        else:
            first, *rest = [Image.fromarray(page(i + 5 * k)) for i in range(5)]
            first.save(path, save_all=True, append_images=rest, **({"lossless": True} if name.endswith("webp") else {}))
    assert look(tmp_path / "x" / f"sub-00_{name}") == Look("picture", 5, SIDE, SIDE)
    pack = pack_of(tmp_path / "x")
    assert len(pack) == 15 and len(set(pack.names)) == 15 and len(set(pack.subjects)) == 3
    for i, found in enumerate(pack.images[:, 0]):
        assert np.abs(found.astype(int) - page(i)).max() <= (4 if name.endswith(("webp", "gif")) else 0), i
    assert pack.names[6].endswith("#001")


def test_thumbnails_and_masks_in_a_tiff_are_no_pages(tmp_path):
    def save(flags, name):
        first, *rest = pages(3)
        first.encoderinfo = {}
        file = io.BytesIO()
        from PIL import TiffImagePlugin

        with TiffImagePlugin.AppendingTiffWriter(file, True) as writer:
            for image, flag in zip([first, *rest], flags, strict=True):
                image.save(writer, format="TIFF", tiffinfo={254: flag})
                writer.newFrame()
        (tmp_path / name).write_bytes(file.getvalue())
        return tmp_path / name

    path = save([0, 1, 0], "thumbnail.tif")
    assert look_picture(path)[0] == 2
    assert [r.values[0, 0] for r in read_pages(path, [0, 1])] == [page(0)[0, 0], page(2)[0, 0]]
    path = save([4, 0, 0], "mask.tif")
    assert [r.values[0, 0] for r in read_pages(path, [0, 1])] == [page(1)[0, 0], page(2)[0, 0]]
    assert all(isinstance(raw, BadFile) for raw in read_pages(path, [2, -1]))


def test_an_animated_png_is_said(tmp_path, pack_of):
    (tmp_path / "x").mkdir()
    first, *rest = pages(4)
    first.save(tmp_path / "x" / "sub-01_1.png", save_all=True, append_images=rest)
    pack = pack_of(tmp_path / "x")
    assert len(pack) in (1, 4)
    assert len(pack) == 4 or any("a file of 4 pictures" in w for w in pack.meta["warnings"])


# --- arrays -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "order", "axis"),
    [
        ((5, 12, 12), "C", 0),
        ((12, 12, 5), "C", 2),
        ((12, 12, 5), "F", 2),
        ((5, 12, 10), "C", 0),
        ((5, 12, 10), "F", 0),
        ((1, 5, 12, 10), "C", 0),
        ((5, 12, 10, 1), "C", 0),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_axis_of_a_stack_is_the_odd_one_out(tmp_path, shape, order, axis, suffix):
    values = np.asarray(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), order=order)
    path = tmp_path / f"a{suffix}"
    np.save(path, values) if suffix == ".npy" else np.savez_compressed(path, values)
    squeezed = values.squeeze()
    assert look(path).pages == squeezed.shape[axis]
    for i, raw in enumerate(read_pages(path, [0, 1, 2])):
        np.testing.assert_array_equal(raw.values, np.take(squeezed, i, axis))


def test_pickles_are_never_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trap"), "w"))

    np.save(tmp_path / "a.npy", np.array([[Trap()]], object), allow_pickle=True)
    np.savez(tmp_path / "a.npz", np.array([[Trap()]], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(BadFile, match="Python objects"):
            look(tmp_path / name)
        assert isinstance(next(read_pages(tmp_path / name, [-1])), BadFile)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(9), "neither"),
        (np.zeros((2, 3, 4, 5)), "neither"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros((4, 4), complex), "complex"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path, values, reason):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(BadFile, match=reason):
        look(tmp_path / "a.npy")


def test_several_arrays_in_one_file_are_not_guessed_at(tmp_path):
    np.savez(tmp_path / "a.npz", train=np.zeros((5, 8, 8)), test=np.zeros((5, 8, 8)))
    with pytest.raises(BadFile, match=r"several arrays.*train, test"):
        look(tmp_path / "a.npz")


# --- volumes ----------------------------------------------------------------------------------------------------------
def brain(shape=(20, 24, 10)) -> np.ndarray:
    """RAS: brighter to the front and, less so, to the right; a box of zeros around."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (np.abs(x) < 0.8) & (np.abs(y) < 0.8) & (np.abs(z) < 0.85)
    return np.where(inside, 500 + 300 * y + 100 * x + 50 * z, 0).astype(np.float32)


def save(path, voxels, affine=None, kind=nibabel.Nifti1Image):
    nibabel.save(kind(voxels, np.eye(4) if affine is None else affine), path)
    return path


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("a.nii", nibabel.Nifti1Image, np.float64),
        ("a.nii.gz", nibabel.Nifti2Image, np.int16),
        ("a.mgz", nibabel.MGHImage, np.float32),
        ("a.mgh", nibabel.MGHImage, np.int16),
        ("a.hdr", nibabel.Nifti1Pair, np.int16),
        ("a.hdr", nibabel.Spm99AnalyzeImage, np.int16),
        ("a.nii", nibabel.Nifti1Image, np.uint8),
        ("a.nii.gz", nibabel.Nifti1Image, np.int32),
    ],
)
def test_every_volume_format_gives_the_same_slices(tmp_path, name, kind, dtype):
    """Front up, the patient's right on the left, the lowest slice first; Analyze knows no left and right."""
    voxels = (brain() / 4).astype(dtype)
    if kind is nibabel.Spm99AnalyzeImage:
        voxels = voxels[::-1]  # by convention its first axis runs to the left
    path = save(tmp_path / name, voxels, np.diag([-1.0, 1, 1, 1]) if kind is nibabel.Spm99AnalyzeImage else None, kind)
    slices, notes = read_volume(path)
    assert look(path) == Look("volume", 10, 24, 20, 1.0) and [z for z, _ in slices] == list(range(1, 9))
    image = slices[3][1].astype(int)
    assert image[4, 10] > image[19, 10] + 50 and image[12, 3] > image[12, 16] + 20 and image[0, 0] == 0
    assert any("convention" in n for n in notes) == (kind is nibabel.Spm99AnalyzeImage)


@pytest.mark.parametrize(("orient", "axes"), [(0, (0, 1, 2)), (1, (0, 2, 1)), (2, (1, 2, 0))])
def test_analyze_slices_lie_as_the_header_says(tmp_path, orient, axes):
    """Raw OASIS-1 is cut sagittally: its first axis runs to the front, its second up, its third to the left."""
    voxels = np.transpose(brain()[::-1], axes)
    path = save(tmp_path / "a.hdr", voxels.astype(np.int16), kind=nibabel.AnalyzeImage)
    data = bytearray(path.read_bytes())
    data[252] = orient
    path.write_bytes(data)
    slices, _ = read_volume(path)
    image = slices[3][1].astype(int)
    assert image.shape == (24, 20) and len(slices) == 8
    assert image[4, 10] > image[19, 10] + 50 and image[12, 3] > image[12, 16] + 20


def test_a_header_alone_is_no_volume(tmp_path):
    save(tmp_path / "a.hdr", brain().astype(np.int16), kind=nibabel.Nifti1Pair)
    (tmp_path / "a.img").unlink()
    with pytest.raises(BadFile, match=r"without its \.img"):
        read_volume(tmp_path / "a.hdr")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.mgz"])
def test_one_volume_of_a_four_dimensional_file_is_chosen(tmp_path, name, pack_of):
    """--volume N; without it the message names the choice."""
    (tmp_path / "x").mkdir()
    parts = [brain(), brain()[:, ::-1], brain()[::-1]]
    kind = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    path = save(tmp_path / "x" / f"sub-01_{name}", np.stack(parts, 3).astype(np.float32), kind=kind)
    with pytest.raises(BadFile, match="--volume 0 to 2"):
        read_volume(path)
    with pytest.raises(BadFile, match="no volume 3"):
        read_volume(path, number=3)
    for i, part in enumerate(parts):
        alone = read_volume(save(tmp_path / f"alone-{i}.nii", part))[0]
        for a, b in zip(read_volume(path, number=i)[0], alone, strict=True):
            np.testing.assert_array_equal(a[1], b[1])
    pack = pack_of(tmp_path / "x", choices=Choices(volume="1"))
    assert len(pack) == 8 and pack.images[3, 0, 20, 12] > pack.images[3, 0, 4, 12]


@pytest.mark.parametrize(
    ("plane", "shape", "count"), [("axial", (24, 20), 8), ("coronal", (10, 20), 18), ("sagittal", (10, 24), 16)]
)
def test_planes(tmp_path, plane, shape, count):
    """Coronal and sagittal: the top of the head up; coronal the right on the left, sagittal the front on the left."""
    path = save(tmp_path / "a.nii", brain())
    slices, _ = read_volume(path, Cut(plane))
    image = slices[len(slices) // 2][1].astype(int)
    assert image.shape == shape == volume_frame(path, Cut(plane))[0] and len(slices) == count
    if plane != "axial":
        assert image[2, shape[1] // 2] > image[7, shape[1] // 2]
    assert image[shape[0] // 2, 4] > image[shape[0] // 2, -5]


# --- spacing and slices -----------------------------------------------------------------------------------------------
def test_heads_of_a_set_are_equally_wide_whatever_their_voxels(tmp_path, pack_of):
    """One spacing, the median of the set, said and kept; --spacing gives another."""
    (tmp_path / "x").mkdir()
    for i, (size, mm) in enumerate([(40, 0.75), (30, 1.0), (20, 1.5), (30, 1.0), (30, 1.005)]):
        save(tmp_path / "x" / f"sub-0{i}_T1w.nii.gz", brain((size, size, 10)), np.diag([mm, mm, 3, 1]))
    pack = pack_of(tmp_path / "x", resolution=32)
    assert pack.meta["spacing"] == 1.0 and "1 mm per pixel" in pack.meta["describe"]
    widths = [(image[0] > 60).any(0).sum() for image in pack.images]
    assert max(widths) - min(widths) <= 1 and pack.geometry["source_width"] == 30
    fine = pack_of(tmp_path / "x", resolution=64, choices=Choices(spacing="0.5"))
    assert fine.meta["spacing"] == 0.5 and fine.geometry["source_width"] == 60
    assert abs(np.median([(image[0] > 60).any(0).sum() for image in fine.images]) - 2 * np.median(widths)) <= 2


def test_the_median_is_of_the_spacing_in_plane(tmp_path, pack_of):
    """Thick slices say nothing of the pixels."""
    (tmp_path / "x").mkdir()
    for i, mm in enumerate((0.9, 1.2, 1.0)):
        save(tmp_path / "x" / f"sub-0{i}_T1w.nii", brain(), np.diag([mm, mm, 5, 1]))
    assert pack_of(tmp_path / "x").meta["spacing"] == 1.0


def test_what_is_within_one_percent_of_the_spacing_is_not_resampled(tmp_path):
    path = save(tmp_path / "a.nii", brain(), np.diag([1.008, 1.008, 3, 1]))
    plain, near = read_volume(path)[0], read_volume(path, Cut(spacing=1.0))[0]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(plain, near, strict=True))
    assert volume_frame(path, Cut(spacing=0.9))[0] == (27, 22)


def test_a_large_empty_frame_does_not_cost_slices(tmp_path):
    """The same head in a frame of four times the width: as many slices as without it."""
    small = brain((40, 40, 30)) * (np.abs(np.linspace(-1, 1, 30)) < 0.9)
    big = np.zeros((160, 160, 30), np.float32)
    big[60:100, 60:100] = small
    tight = [z for z, _ in read_volume(save(tmp_path / "a.nii", small))[0]]
    wide = [z for z, _ in read_volume(save(tmp_path / "b.nii", big))[0]]
    assert tight == wide and len(wide) >= 20


def test_slices_are_a_share_of_the_heads_extent(tmp_path, pack_of):
    """Not of the frame: the head lies in slices 10 to 30 of 60."""
    voxels = np.zeros((20, 24, 60), np.float32)
    voxels[4:16, 4:20, 10:31] = np.random.default_rng(0).uniform(400, 900, (12, 16, 21))
    (tmp_path / "x").mkdir()
    path = save(tmp_path / "x" / "sub-01_T1w.nii", voxels)
    assert [z for z, _ in read_volume(path, Cut(slices=(0.25, 0.5)))[0]] == list(range(15, 21))
    assert [z for z, _ in read_volume(path, Cut(slices=(0.0, 1.0)))[0]] == list(range(10, 31))
    pack = pack_of(tmp_path / "x", choices=Choices(slices="0.25:0.5"))
    assert [int(n[-3:]) for n in pack.names] == list(range(15, 21))


# --- values of volumes ------------------------------------------------------------------------------------------------
def test_a_standardised_volume_keeps_its_head(tmp_path):
    """z-scored within the head (zeros around), and as a whole: under 3 % of the head is black, what is around is."""
    rng = np.random.default_rng(0)
    inside = brain() > 0
    within = np.where(inside, rng.normal(0, 1, inside.shape), 0).astype(np.float32)
    values = np.where(inside, rng.uniform(400, 1000, inside.shape), rng.uniform(0, 5, inside.shape))
    whole = ((values - values.mean()) / values.std()).astype(np.float32)
    nan = np.where(inside, within, np.nan).astype(np.float32)
    for voxels in (within, whole, nan):
        slices, notes = read_volume(save(tmp_path / "a.nii", voxels))
        assert any("signed" in n for n in notes) and [z for z, _ in slices] == list(range(1, 9))
        for z, image in slices:
            mask = inside[:, :, z].T[::-1, ::-1]
            assert (image[mask] == 0).mean() < 0.03 and image[~mask].max() <= 8 and image.max() > 200


def test_a_few_negative_voxels_change_nothing(tmp_path):
    """Overshoot of an interpolation beside the head."""
    voxels = brain()
    plain = read_volume(save(tmp_path / "a.nii", voxels))[0]
    voxels[0, :, :] = -10
    with_, notes = read_volume(save(tmp_path / "b.nii", voxels))
    assert not notes and all(np.array_equal(a[1], b[1]) for a, b in zip(plain, with_, strict=True))


def test_scaled_integers_are_read_by_slope_and_intercept(tmp_path):
    image = nibabel.Nifti1Image((brain() / 2).astype(np.int16), np.eye(4))
    image.header.set_slope_inter(-2.0, 2000.0)  # stored upside down
    nibabel.save(image, tmp_path / "a.nii")
    expected = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj)
    slices, _ = read_volume(tmp_path / "a.nii")
    again = read_volume(save(tmp_path / "b.nii", expected.astype(np.float32)))[0]
    assert slices and all(np.array_equal(a[1], b[1]) for a, b in zip(slices, again, strict=True))


def test_a_range_that_was_given_holds_for_every_volume(tmp_path):
    path = save(tmp_path / "a.nii", brain())
    image = read_volume(path, Cut(value_range=(0.0, 1000.0)))[0][3][1]
    z = read_volume(path)[0][3][0]
    np.testing.assert_allclose(image, np.rint(brain()[:, :, z].T[::-1, ::-1] * 0.255), atol=1)


# --- DICOM ------------------------------------------------------------------------------------------------------------
pydicom = pytest.importorskip("pydicom")
AXIAL, SAGITTAL = (1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1)


def write_dicom(path, stored, position, uid="1.2.3", number=0, **more):
    """One slice; `stored` is (rows, columns)."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        pydicom.uid.MRImageStorage,
        pydicom.uid.generate_uid(),
    )
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    d = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
        uid,
    )
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = *stored.shape, 1, "MONOCHROME2"
    d.BitsAllocated = d.BitsStored = 16
    d.HighBit, d.PixelRepresentation, d.PixelSpacing, d.Modality = 15, int(stored.min() < 0), [1, 1], "MR"
    d.ImageOrientationPatient, d.ImagePositionPatient, d.InstanceNumber = list(AXIAL), list(position), number
    for name, value in more.items():
        setattr(d, name, value)
    d.PixelData = stored.astype("<i2" if d.PixelRepresentation else "<u2").tobytes()
    path.parent.mkdir(exist_ok=True, parents=True)
    d.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, voxels=None, order=None, suffix=".dcm", **more):
    """An axial series of a volume in RAS: rows run to the left, columns to the back. File names say nothing."""
    voxels = np.rint(brain()) if voxels is None else voxels
    depth = voxels.shape[2]
    for name, z in enumerate(order if order is not None else np.random.default_rng(3).permutation(depth)):
        write_dicom(folder / f"IM{name:04}{suffix}", voxels[::-1, ::-1, z].T, (0, 0, 3.0 * z), number=name, **more)
    return folder / f"IM0000{suffix}"


def test_a_series_is_one_scan_in_the_order_of_its_positions(tmp_path, pack_of):
    first = write_series(tmp_path / "x" / "sub-01")
    assert look(first) == Look("series", 10, 24, 20, 1.0, "MR")
    slices, _ = read_volume(first)
    expected = read_volume(save(tmp_path / "a.nii", np.rint(brain())))[0]
    for a, b in zip(slices, expected, strict=True):
        assert a[0] == b[0] and np.array_equal(a[1], b[1])
    write_series(tmp_path / "x" / "sub-02", uid="1.2.4")
    pack = pack_of(tmp_path / "x")
    assert len(pack) == 16 and len(set(pack.subjects)) == 2


@pytest.mark.parametrize("suffix", ["", ".IMA", ".dcm"])
def test_two_series_in_one_folder_are_two_scans(tmp_path, suffix):
    """Also of files without a suffix, as scanners write them."""
    write_series(tmp_path / "a", suffix=suffix, SeriesInstanceUID="1.5")
    for path in (tmp_path / "a").iterdir():
        path.rename(path.with_name("B" + path.name))
    write_series(tmp_path / "a", suffix=suffix)
    paths = sorted(str(p) for p in (tmp_path / "a").iterdir())
    found = dicom.series(paths)
    assert sorted(len(group) for group in found.values()) == [10, 10]
    assert all(look(first).pages == 10 for first in found) and (suffix or dicom.is_dicom(paths[0]))


def test_a_sagittal_series_is_turned_to_axial_slices(tmp_path):
    voxels = np.rint(brain())
    for i, x in enumerate(np.random.default_rng(0).permutation(20)):
        # rows run to the back, columns down; x in RAS is -x in DICOM's coordinates
        write_dicom(
            tmp_path / f"{i}.dcm",
            voxels[x, ::-1, ::-1].T,
            (-float(x), 0, 0),
            number=i,
            ImageOrientationPatient=list(SAGITTAL),
        )
    slices, expected = read_volume(tmp_path / "0.dcm")[0], read_volume(save(tmp_path / "a.nii", voxels))[0]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(slices, expected, strict=True))


def test_rescaling_is_by_slice_and_monochrome1_is_inverted(tmp_path):
    voxels = np.rint(brain())
    for z in range(10):
        slope = 1.0 + z % 2
        write_dicom(
            tmp_path / "r" / f"{z}.dcm",
            voxels[::-1, ::-1, z].T // slope,
            (0, 0, 3 * z),
            RescaleSlope=slope,
            RescaleIntercept=0,
        )
    expected = read_volume(save(tmp_path / "a.nii", voxels))[0]
    for a, b in zip(read_volume(tmp_path / "r" / "0.dcm")[0], expected, strict=True):
        assert np.abs(a[1].astype(int) - b[1]).max() <= 1
    write_series(tmp_path / "m", voxels.max() - voxels, PhotometricInterpretation="MONOCHROME1")
    slices, notes = read_volume(tmp_path / "m" / "IM0000.dcm")
    assert "MONOCHROME1" in notes[0]
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(slices, expected, strict=True))


def test_signed_slices(tmp_path):
    voxels = np.rint(brain()) - 1024
    slices, _ = read_volume(write_series(tmp_path, voxels, RescaleIntercept=0, RescaleSlope=1))
    assert slices[3][1][0, 0] == 0 and slices[3][1].max() > 240


def test_phases_at_the_same_positions_are_volumes(tmp_path):
    for echo, part in enumerate((brain(), brain() / 2)):
        for z in range(10):
            write_dicom(
                tmp_path / f"{echo}-{z}.dcm", np.rint(part[::-1, ::-1, z].T), (0, 0, 3 * z), number=100 * echo + z
            )
    with pytest.raises(BadFile, match="--volume 0 to 1"):
        read_volume(tmp_path / "0-0.dcm")
    assert read_volume(tmp_path / "0-0.dcm", number=1)[0]
    (tmp_path / "1-4.dcm").unlink()
    with pytest.raises(BadFile, match="missing or twice"):
        look(tmp_path / "0-0.dcm", number=1)


def test_series_that_are_no_volume(tmp_path):
    write_series(tmp_path / "gap", order=[0, 1, 2, 6, 7, 8, 9])
    assert any("slices are missing" in n for n in read_volume(tmp_path / "gap" / "IM0000.dcm")[1])
    write_series(tmp_path / "loc")
    write_dicom(
        tmp_path / "loc" / "z.dcm", np.rint(brain()[:, :, 4].T), (0, 0, 99), ImageOrientationPatient=list(SAGITTAL)
    )
    with pytest.raises(BadFile, match="localizer"):
        look(tmp_path / "loc" / "z.dcm")
    write_dicom(
        tmp_path / "c" / "z.dcm", np.zeros((24, 20)), (0, 0, 0), PhotometricInterpretation="RGB", SamplesPerPixel=3
    )
    with pytest.raises(BadFile, match="colours"):
        look(tmp_path / "c" / "z.dcm")
    (tmp_path / "c" / "bad.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 50)
    (tmp_path / "c" / "text.dcm").write_text("no image")
    for name in ("bad", "text"):
        with pytest.raises(BadFile, match="DICOM"):
            look(tmp_path / "c" / f"{name}.dcm")


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_compressed_series(tmp_path, syntax):
    first = write_series(tmp_path)
    expected = read_volume(first)[0]
    for path in tmp_path.iterdir():
        data = pydicom.dcmread(path)
        try:
            data.compress(getattr(pydicom.uid, syntax))
        except Exception:
            pytest.skip("no encoder here")
        data.save_as(path)
    dicom._headers.cache_clear()
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(read_volume(first)[0], expected, strict=True))


def test_what_cannot_be_decompressed_names_the_packages(tmp_path):
    first = write_series(tmp_path, order=[0])
    data = pydicom.dcmread(first)
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    data.save_as(first)
    with pytest.raises(BadFile, match=r"compressed DICOM \(JPEG Lossless.*pip install pylibjpeg|damaged"):
        read_volume(first)


@pytest.mark.parametrize("bits", [8, 16])
def test_jpeg_2000_in_dicom(tmp_path, bits):
    """Its stream made by Pillow, so by another encoder than the one that pydicom has."""
    if not features.check("jpg_2000"):
        pytest.skip("Pillow without JPEG 2000")
    pages = {}
    for z in range(6):
        stored = np.random.default_rng(z).integers(0, 255 << (bits - 8), (20, 24)).astype(f"u{bits // 8}")
        path = write_dicom(tmp_path / f"IM{z}.dcm", stored.astype(np.uint16), (0, 0, 3.0 * z), number=z)
        stream = io.BytesIO()
        Image.fromarray(stored).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        data = pydicom.dcmread(path)
        data.BitsAllocated = data.BitsStored = bits
        data.HighBit = bits - 1
        data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        data.PixelData = pydicom.encaps.encapsulate([stream.getvalue()])
        data["PixelData"].VR = "OB"
        data.save_as(path)
        pages[z] = stored
    volume = volumes.open_volume(tmp_path / "IM0.dcm")
    loaded = volume.load()
    assert all(np.array_equal(loaded[:, :, z].T, pages[z]) for z in pages)


@pytest.mark.parametrize(
    "syntax", ["JPEGLSLossless", "JPEGLosslessSV1", "HTJ2KLossless", "MPEG2MPML", "1.2.826.0.1.3680043.9"]
)
def test_what_cannot_be_decoded_names_its_syntax_and_the_fix(tmp_path, syntax):
    first = write_series(tmp_path, order=[0])
    data = pydicom.dcmread(first)
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(getattr(pydicom.uid, syntax, syntax))
    data.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    data["PixelData"].VR = "OB"
    data.save_as(first, implicit_vr=False, little_endian=True)
    with pytest.raises(BadFile) as error:
        read_volume(first)
    assert data.file_meta.TransferSyntaxUID.name in str(error.value) and "dcm2niix" in str(error.value)


# --- archives ---------------------------------------------------------------------------------------------------------
def archive_of(folder, path):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))
    else:
        with tarfile.open(path, "w") as archive:
            for file in files:
                archive.add(file, str(file.relative_to(folder)))
    return path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_is_read_as_its_folder(tmp_path, pack_of, suffix):
    """Nothing is unpacked: pictures in class folders give the same pixels, names, labels and people."""
    for i in range(6):
        folder = tmp_path / "x" / ("AD" if i % 2 else "NC")
        folder.mkdir(exist_ok=True, parents=True)
        Image.fromarray(page(i)).save(folder / f"sub-0{i}_1.png")
    path = archive_of(tmp_path / "x", tmp_path / f"set{suffix}")
    before = sorted(tmp_path.iterdir())
    plain, packed = pack_of(tmp_path / "x"), pack_of(path)
    assert np.array_equal(plain.images, packed.images) and plain.classes == packed.classes == ["AD", "NC"]
    assert list(plain.labels) == list(packed.labels) and len(set(packed.subjects)) == 6
    assert sorted(p for p in tmp_path.iterdir() if p.name != "packs") == [p for p in before if p.name != "packs"]


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_volumes_series_and_stacks_in_an_archive(tmp_path, suffix):
    folder = tmp_path / "x"
    write_series(folder / "dcm")
    save(folder / "a.nii.gz", np.rint(brain()))
    save(folder / "b.hdr", np.rint(brain()).astype(np.int16), kind=nibabel.Nifti1Pair)
    first, *rest = pages(4)
    first.save(folder / "c.tif", save_all=True, append_images=rest)
    np.save(folder / "d.npy", np.stack([page(i) for i in range(4)]))
    path = archive_of(folder, tmp_path / f"set{suffix}")
    for name in ("dcm/IM0000.dcm", "a.nii.gz", "b.hdr"):
        inside, outside = read_volume(f"{path}/{name}")[0], read_volume(folder / name)[0]
        assert inside and all(np.array_equal(a[1], b[1]) for a, b in zip(inside, outside, strict=True))
    for name in ("c.tif", "d.npy"):
        assert look(f"{path}/{name}").pages == 4
        assert np.array_equal(
            [r.values for r in read_pages(f"{path}/{name}", [0, 1, 2, 3])], [page(i) for i in range(4)]
        )
    names = [m.name for m in reading.members(path)]
    assert "a.nii.gz" in names and len(names) == 15


def test_archives_that_cannot_be_read(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    (tmp_path / "a.tar").write_bytes(b"no archive" * 100)
    for name in ("a.zip", "a.tar"):
        with pytest.raises(BadFile, match="archive"):
            reading.members(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", b"x" * 100)
    with pytest.raises(BadFile, match="unusual"):
        reading.read_bytes(f"{tmp_path}/b.zip/a.png", 1000)
    with pytest.raises(BadFile, match="not in its archive"):
        reading.read_bytes(f"{tmp_path}/b.zip/none.png", 1000)
    (tmp_path / "c.zip").mkdir()
    (tmp_path / "c.zip" / "a.txt").write_text("a folder that is called so")
    assert reading.read_bytes(f"{tmp_path}/c.zip/a.txt", 1000).startswith(b"a folder")


def test_nothing_is_imported_that_a_set_of_pictures_does_not_need():
    import subprocess
    import sys

    code = "import data.pack, sys; print({'pydicom', 'nibabel', 'torch'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=volumes.__file__.rsplit("/", 2)[0]
    )
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
