"""Pixels of one slice: what a viewer shows of a file, and padding, cropping and resizing and back, by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data import images, volumes
from data.images import BadFile, decode, fit_square, image_size, pad_or_crop, resize
from data.packfile import check_geometry, restore
from data.walk import DataError


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


# --- files ------------------------------------------------------------------------------------------------------------
TURNS = {  # EXIF's orientation -> what a viewer does to the stored pixels
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1], 5: lambda p: p.T,
    6: lambda p: p[::-1].T, 7: lambda p: p[::-1, ::-1].T, 8: lambda p: p.T[::-1],
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_of_exif(tmp_path, orientation):
    stored, exif = noise(6, 9)[:, :, 0], Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "x.png", exif=exif)
    shown = TURNS[orientation](stored)
    np.testing.assert_array_equal(decode((tmp_path / "x.png").read_bytes())[:, :, 0], shown)
    assert image_size(tmp_path / "x.png") == shown.shape


def test_sixteen_bits_use_their_full_range_in_every_format():
    """v / 257 rounded: 65535 is 255, and a dark picture stays dark."""
    values = np.array([[0, 128, 129], [200, 30000, 65535]], np.uint16)
    expected = np.array([[0, 0, 1], [1, 117, 255]])
    png, pgm = io.BytesIO(), b"P5 3 2 65535\n" + values.astype(">u2").tobytes()
    Image.fromarray(values).save(png, "PNG")
    for data in (png.getvalue(), pgm):
        np.testing.assert_array_equal(decode(data)[:, :, 0], expected)
    dark = b"P5 3 1 65535\n" + values[0, [0, 2, 1]].astype(">u2").tobytes()  # not taken for 8 bits
    assert decode(dark)[:, :, 0].tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(("values", "expected"), [
    ([[0.0, 0.5, 1.0]], [[0, 128, 255]]),  # 0..1
    ([[0.0, 0.5, 1.5]], [[0, 85, 255]]),  # to the maximum
    ([[0.0, 255.0, 300.0]], [[0, 127, 150]]),  # whole numbers: 9 bits
    ([[0.0, 200.0]], [[0, 200]]),  # 8 bits
    ([[-1.0, 0.0, 1.0]], [[0, 128, 255]]),  # anything else: from its least to its greatest
    ([[0.0, float("nan"), float("inf")], [0.25, 1.0, 0.75]], [[0, 0, 0], [64, 255, 191]]),
])  # fmt: skip
def test_floats_are_scaled_by_what_they_hold(values, expected):
    file = io.BytesIO()
    Image.fromarray(np.array(values, np.float32)).save(file, "TIFF")
    assert decode(file.getvalue())[:, :, 0].tolist() == expected


def test_colour_is_weighed_to_grey_and_transparency_lies_over_black():
    colour = np.array([[[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255], [255, 255, 255, 128]]], np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).save(file, "PNG")
    grey = decode(file.getvalue())[:, :, 0]
    assert np.abs(grey.astype(int) - [[76, 150, 29, 128]]).max() <= 1  # ITU-R 601: 0.299, 0.587, 0.114
    np.testing.assert_array_equal(decode(file.getvalue(), 3)[0, :3], colour[0, :3, :3])


def test_limits_are_those_of_the_module(tmp_path, monkeypatch):
    Image.fromarray(noise(20, 30)[:, :, 0]).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert images.read_bytes(tmp_path / "x.png") == data
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    with pytest.raises(BadFile, match="no slice"):
        images.read_bytes(tmp_path / "x.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    assert decode(data).shape == (20, 30, 1)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    for read in (lambda: decode(data), lambda: image_size(tmp_path / "x.png")):
        with pytest.raises(BadFile, match="bomb"):
            read()


# --- geometry ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("small", "large"), [(5, 8), (6, 9), (4, 8), (7, 7), (1, 64)])
def test_cropping_takes_off_what_padding_added(small, large):
    """Also where the difference is odd; what is added is black and the picture lies in the middle."""
    picture = noise(small, small + 1) | 1
    padded = pad_or_crop(picture, large, large + 1)
    assert padded.shape == (large, large + 1, 1) and (padded > 0).sum() == (picture > 0).sum()
    np.testing.assert_array_equal(pad_or_crop(padded, small, small + 1), picture)
    rows = np.flatnonzero(padded.any((1, 2)))
    assert abs(rows[0] - (large - 1 - rows[-1])) <= 1


def test_resizing_is_lanczos_down_and_bicubic_up():
    picture = noise(24, 24, 3)
    for size, kernel in ((10, Image.Resampling.LANCZOS), (31, Image.Resampling.BICUBIC)):
        expected = [np.asarray(Image.fromarray(picture[:, :, c]).resize((size, size + 1), kernel)) for c in range(3)]
        np.testing.assert_array_equal(resize(picture, size + 1, size), np.stack(expected, 2))
    assert resize(picture, 24, 24) is picture


@pytest.mark.parametrize(("height", "width", "scaled"), [(100, 40, (64, 26)), (40, 100, (26, 64)), (640, 3, (64, 1))])
def test_what_is_larger_than_the_square_keeps_its_aspect(height, width, scaled):
    """Scaled until its longer side fits, then padded; a side shorter than a pixel is one pixel."""
    picture = noise(height, width) // 2 + 100
    found = fit_square(picture, 64, 0, 64)
    expected = pad_or_crop(resize(picture, *scaled), 64, 64)
    np.testing.assert_array_equal(found, expected)
    assert (found > 0).sum() == scaled[0] * scaled[1]


def test_a_crop_is_cut_before_resizing():
    picture = noise(60, 64)
    np.testing.assert_array_equal(fit_square(picture, 64, 20, 20), picture[20:40, 22:42])
    np.testing.assert_array_equal(fit_square(picture, 64, 20, 10), resize(picture[20:40, 22:42], 10, 10))
    np.testing.assert_array_equal(fit_square(picture, 64, 0, 64)[2:62], picture)
    np.testing.assert_array_equal(fit_square(picture, 64, 0, 32), resize(pad_or_crop(picture, 64, 64), 32, 32))


GOOD = dict(source_height=60, source_width=64, square=64, crop=0, resolution=32)


@pytest.mark.parametrize("change", [
    {}, {"crop": 64}, {"source_height": 1}, {"square": 4096}, {"resolution": 8}, {"resolution": 4096},
])  # fmt: skip
def test_geometries_that_can_be(change):
    check_geometry(GOOD | change)


@pytest.mark.parametrize(
    "change",
    [
        {"source_width": 65},
        {"source_height": 65},
        {"source_height": 0},
        {"source_width": 0},
        {"crop": 65},
        {"crop": -1},
        {"square": 4097},
        {"resolution": 7},
        {"resolution": 4097},
        {"resolution": True},
        {"square": None},
        {"crop": 1.0},
    ],
)
def test_geometries_that_cannot_be(change):
    with pytest.raises(DataError, match="geometry"):
        check_geometry(GOOD | change)


def test_restoring_undoes_the_packing():
    """Slices that were only padded or cropped come back byte for byte, in every channel; lost borders are black."""
    for crop in (0, 20, 21):
        picture = noise(40, 33, 3)
        packed = fit_square(picture, 40, crop, crop or 40).transpose(2, 0, 1)[None]
        geometry = dict(source_height=40, source_width=33, square=40, crop=crop, resolution=crop or 40)
        back = restore(packed, geometry)[0].transpose(1, 2, 0)
        kept = pad_or_crop(pad_or_crop(picture, 40, 40), crop or 40, crop or 40)
        np.testing.assert_array_equal(back, pad_or_crop(pad_or_crop(kept, 40, 40), 40, 33))
        inside = back[10:30, 7:27] if crop else back
        np.testing.assert_array_equal(inside, picture[10:30, 7:27] if crop else picture)


# --- volumes ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def nifti(tmp_path):
    nibabel = pytest.importorskip("nibabel")

    def save(voxels, affine=None, name="x.nii"):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), tmp_path / name)
        return tmp_path / name

    return save


def test_grey_levels_run_over_the_volumes_own_percentiles(nifti):
    """1st and 99.5th percentile of what is not background become 0 and 255; the background is below 1 % of the
    brightest."""
    voxels = np.random.default_rng(0).uniform(100, 1100, (20, 24, 6)).astype(np.float32)
    voxels[:6] = 3  # not quite zero, as scaled integers are
    low, high = np.percentile(voxels[6:], [1, 99.5])
    slices, notes = volumes.read_volume(nifti(voxels))
    assert [z for z, _ in slices] == list(range(6)) and not notes
    for z, image in slices:
        expected = np.rint(np.clip((voxels[:, :, z] - low) / (high - low), 0, 1) * 255)
        shown = expected.T[::-1, ::-1]  # the front (high y) up, the patient's right (high x) on the left
        assert image.shape == (24, 20) and np.abs(image - shown).max() <= 1
    assert {image.min() for _, image in slices} == {0} and {image.max() for _, image in slices} == {255}


def test_slices_keep_their_place_in_the_volume_and_nearly_empty_ones_are_left_out(nifti):
    """A slice shows brain on at least 15 % of the frame, above a tenth of full brightness."""
    voxels = np.zeros((20, 20, 8), np.float32)
    voxels[:, :, 1:] = np.random.default_rng(1).uniform(0.5, 1, (20, 20, 7)) * 1000
    voxels[:, :2, 3] = voxels[:, 5:, 3] = 0  # 3 of 20 rows: 15 %, and below it once dark voxels are left off
    voxels[:, 4:, 5] = 0  # 4 of 20
    voxels[:, :, 6] = np.where(voxels[:, :, 6] > 0, 520, 0)  # all of it, but dark
    slices, _ = volumes.read_volume(nifti(voxels))
    assert [z for z, _ in slices] == [1, 2, 4, 5, 7]


def test_the_coarser_axis_is_resampled_to_the_finer_one(nifti):
    voxels = np.random.default_rng(2).uniform(100, 1000, (12, 10, 4)).astype(np.float32)
    for spacing, frame in (((2.0, 1.0), (10, 24)), ((1.0, 1.5), (15, 12)), ((0.5, 0.5), (10, 12))):
        path = nifti(voxels, np.diag([*spacing, 3.0, 1.0]))
        assert volumes.volume_frame(path) == (frame, 4)
        assert {image.shape for _, image in volumes.read_volume(path)[0]} == {frame}


def test_implausible_volumes_are_refused(nifti, monkeypatch):
    voxels = np.random.default_rng(3).uniform(100, 1000, (8, 8, 4)).astype(np.float32)
    volumes.read_volume(nifti(voxels, np.diag([1.0, 20.0, 1.0, 1.0])))
    with pytest.raises(BadFile, match="spacing"):
        volumes.read_volume(nifti(voxels, np.diag([1.0, 21.0, 1.0, 1.0])))
    monkeypatch.setattr(volumes, "MAX_VOXELS", voxels.size - 1)
    with pytest.raises(BadFile, match="implausible size"):
        volumes.read_volume(nifti(voxels))


def test_voxels_that_are_no_numbers_are_black(nifti):
    voxels = np.random.default_rng(4).uniform(100, 1000, (16, 16, 3)).astype(np.float32)
    voxels[4, 5, 1], voxels[4, 6, 1] = np.nan, np.inf
    slices, notes = volumes.read_volume(nifti(voxels))
    shown = slices[1][1].T[::-1, ::-1]
    assert shown[4, 5] == shown[4, 6] == 0 and "not finite" in notes[0]


def test_a_fourth_axis_of_one_is_no_axis(nifti):
    voxels = np.random.default_rng(5).uniform(100, 1000, (12, 14, 3)).astype(np.float32)
    plain, _ = volumes.read_volume(nifti(voxels))
    more, _ = volumes.read_volume(nifti(voxels[..., None], name="y.nii"))
    assert len(plain) == len(more) == 3
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(plain, more, strict=True))
    assert volumes.volume_frame(nifti(voxels[..., None], name="y.nii")) == ((14, 12), 3)
    with pytest.raises(BadFile, match="4-D"):
        volumes.read_volume(nifti(np.stack([voxels] * 2, 3)))
