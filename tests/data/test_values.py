"""Grey levels of a set: one range, decided once from a sample, said, kept in the pack and held against every file."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data import images
from data.images import BadFile, Levels, Raw, decode, measure, range_of, render
from data.pack import ensure_held_out, ensure_pack
from data.records import Choices
from data.walk import DataError

SIDE = 24


@pytest.fixture
def pack_of(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))

    def ensure(folder, said=None, split="all", **how):
        log = said.append if said is not None else (lambda text: None)
        return ensure_pack(str(folder), resolution=SIDE, split=split, progress=False, **{"log": log} | how)

    return ensure


def head(seed: int, top: float) -> np.ndarray:
    """A head: a disc of values from a fifth of `top` to `top`, zero around it."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - 0.5
    values = np.random.default_rng(seed).uniform(0.2, 1, (SIDE, SIDE))
    values[SIDE // 2, SIDE // 2] = 1
    return np.where(x**2 + y**2 < 0.16, values * top, 0)


def write(folder, values, name):
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    if name.endswith(".npy"):
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


def shown(pack, name):
    return pack.images[[n.split("#")[0] for n in pack.names].index(name), 0].astype(int)


# --- one range for a set ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_twelve_bits_in_sixteen_are_scaled_by_their_own_end(tmp_path, pack_of, bits, suffix):
    """4095 is white, and the line says so; a picture whose own maximum is half of it stays half as bright."""
    top, said = (1 << bits) - 1, []
    for i in range(10):
        write(tmp_path / "x", head(i, top if i else top / 2).astype(np.uint16), f"s{i}_1.{suffix}")
    pack = pack_of(tmp_path / "x", said)
    assert pack.meta["value_range"] == f"0:{top}"
    assert f"{bits}-bit values, scaled by {top}" in pack.meta["describe"] and pack.meta["describe"] in said
    for i in range(10):
        values = head(i, top if i else top / 2).astype(np.uint16)
        assert np.abs(shown(pack, f"s{i}_1.{suffix}") - values * (255 / top)).max() <= 0.51
    assert not any("12-bit" in w for w in pack.meta["warnings"])


def test_floats_of_a_set_have_one_scale(tmp_path, pack_of):
    """Slices that were divided by their own percentile: their maxima lie on both sides of 1. None of them is black."""
    tops = [0.8, 0.95, 1.0, 1.001, 1.1, 1.3, 1.05, 0.99, 1.2, 1.5]
    for i, top in enumerate(tops):
        write(tmp_path / "x", head(i, top).astype(np.float32), f"s{i}_1.tif")
    pack = pack_of(tmp_path / "x")
    assert pack.meta["value_range"] == "0:1.5" and "values from 0 to 1.5" in pack.meta["describe"]
    for i, top in enumerate(tops):
        assert abs(shown(pack, f"s{i}_1.tif").max() - 255 * top / 1.5) <= 1


@pytest.mark.parametrize(
    ("tops", "expected"),
    [
        ((0.6, 0.9), (0, 1)),
        ((0.3, 0.31), (0, 0.31)),
        ((130.5, 200.5), (0, 255)),
        ((1000.5, 1800.5), (0, 1800.5)),
        ((60000.5, 70000.5), (0, 70000.5)),
    ],
)
def test_floats_end_at_a_round_number_where_they_nearly_reach_it(tops, expected):
    assert range_of([measure(head(i, top)) for i, top in enumerate(tops)]) == pytest.approx(expected)


def test_whole_floats_are_whole_numbers():
    assert range_of([measure(np.rint(head(0, 4000)))]) == (0, 4095)
    assert range_of([measure(np.rint(head(0, 100)))]) == (0, 255)


def test_one_bright_voxel_does_not_darken_a_set():
    """The median picture is what counts: a maximum of four times all 99.9th percentiles is an outlier."""
    y, x = np.mgrid[:200, :200]
    picture = np.where((x - 100) ** 2 + (y - 100) ** 2 < 6400, 1000 + (x + y) % 100, 0).astype(np.uint16)
    hot = picture.copy()
    hot[100, 100] = 60000
    assert range_of([measure(picture), measure(hot)])[1] == 2047


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_thirty_two_bits_run_to_their_maximum(tmp_path, pack_of, dtype):
    """Also above 2^31, where a signed reader sees negative values."""
    top = 3_000_000_000 if dtype == np.uint32 else 1_000_000_000
    for i in range(6):
        write(tmp_path / "x", head(i, top).astype(dtype), f"s{i}_1.npy")
    pack = pack_of(tmp_path / "x")
    assert np.abs(shown(pack, "s1_1.npy") - head(1, top) * (255 / top)).max() <= 0.51


def test_unsigned_tiff_of_thirty_two_bits_does_not_wrap(tmp_path):
    values = np.array([[0, 1 << 31], [3 << 30, (1 << 32) - 1]], np.uint32)
    path = tmp_path / "x.tif"
    Image.fromarray(values.view(np.int32)).save(path)
    entry = struct.pack("<HHI", 339, 3, 1)
    assert entry + b"\2" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(entry + b"\2", entry + b"\1"))  # unsigned, says its header now
    (raw,) = images.read_pages(path, [-1])
    assert raw.values.tolist() == values.tolist()
    assert decode(path.read_bytes())[:, :, 0].tolist() == [[0, 128], [191, 255]]


# --- signed, standardised, inverted -----------------------------------------------------------------------------------
def test_signed_bytes_are_not_taken_for_unsigned(tmp_path):
    values = np.array([[-128, -1], [0, 127]], np.int8)
    path = tmp_path / "x.tif"
    Image.fromarray(values.view(np.uint8)).save(path, tiffinfo={339: 2})
    (raw,) = images.read_pages(path, [-1])
    assert raw.values.tolist() == values.tolist()


def test_signed_pictures_run_from_their_minimum(tmp_path, pack_of):
    """CT-like values: air is -1000 and black, bone is bright."""
    for i in range(8):
        write(tmp_path / "x", np.where(head(i, 1) > 0, head(i, 2000), -1000).astype(np.int32), f"s{i}_1.tif")
    pack = pack_of(tmp_path / "x")
    assert pack.meta["value_range"] == "-1000:2000" and "(signed)" in pack.meta["describe"]
    picture = shown(pack, "s3_1.tif")
    assert picture[0, 0] == 0 and picture.max() == 255 and picture[head(3, 1) > 0].min() >= 255 * 1400 / 3000 - 2


def test_a_few_negative_values_are_overshoot(tmp_path):
    values = head(0, 4000)
    values[0, :3] = -20
    assert range_of([measure(np.rint(values).astype(np.int16))]) == (0, 4095)


def test_pictures_standardised_within_the_head_keep_a_black_background(tmp_path, pack_of):
    """z-scored, with exact zeros around: zero lies in the middle of the range."""
    for i in range(8):
        inside, values = head(i, 1) > 0, np.random.default_rng(i).normal(0, 1, (SIDE, SIDE))
        write(tmp_path / "x", np.where(inside, values, 0).astype(np.float32), f"s{i}_1.tif")
    pack = pack_of(tmp_path / "x")
    picture, inside = shown(pack, "s2_1.tif"), head(2, 1) > 0
    assert not picture[~inside].any() and (picture[inside] > 0).mean() > 0.95
    assert 90 < np.median(picture[inside]) < 165


def test_whole_pictures_that_were_standardised_are_black_around(tmp_path, pack_of):
    for i in range(8):
        values = head(i, 1000)
        write(tmp_path / "x", ((values - values.mean()) / values.std()).astype(np.float32), f"s{i}_1.tif")
    pack = pack_of(tmp_path / "x")
    picture = shown(pack, "s2_1.tif")
    assert picture[0, 0] <= 3 and picture.max() >= 240


@pytest.mark.parametrize(
    ("values", "top"),
    [
        (head(0, 250).astype(np.uint8), 255),
        (head(0, 4095).astype(np.uint16), 4095),
        (head(0, 65535).astype(np.uint16), 65535),
        (head(0, 1).astype(np.float32), 1),
    ],
)
def test_zero_is_white_where_the_header_says_so(tmp_path, pack_of, values, top):
    """TIFF's photometric 0, of any width: what a viewer shows is the negative of the values."""
    (tmp_path / "x").mkdir()
    for i in range(6):
        Image.fromarray(values).save(tmp_path / "x" / f"s{i}_1.tif", tiffinfo={262: 0})
        assert Image.open(tmp_path / "x" / f"s{i}_1.tif").tag_v2[262] == 0
    pack = pack_of(tmp_path / "x")
    # Pillow writes the negative of 8-bit values under this tag, and reads it back so.
    expected = values.astype(float) if values.dtype == np.uint8 else 255 - values * (255 / top)
    assert np.abs(shown(pack, "s0_1.tif") - expected).max() <= 1


def test_sixteen_bit_colours_with_low_values_are_refused_not_black(tmp_path):
    """Pillow keeps the upper byte of each: 12-bit values would be 16 levels of black."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def png(values):
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        first = chunk(b"IHDR", struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + first + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    grey = head(0, 4095)[:, :, None].repeat(3, 2)
    with pytest.raises(BadFile, match="16-bit colours"):
        decode(png(grey))
    assert decode(png(grey * 16)).max() == 255


# --- files that are not of the set ------------------------------------------------------------------------------------
def twelve_bit(folder, count=60):
    for i in range(count):
        write(folder, head(i, 4095).astype(np.uint16), f"s{i:02d}_1.png")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (head(99, 250).astype(np.uint8), "8-bit values in a set whose values reach 4095"),
        (head(99, 60000).astype(np.uint16), "lie outside of 0 to 4095"),
        (head(99, 9000).astype(np.uint16), "lie outside of 0 to 4095"),
    ],
)
def test_a_file_of_another_range_is_named(tmp_path, pack_of, values, reason):
    twelve_bit(tmp_path / "x")
    write(tmp_path / "x", values, "odd_1.png")
    said = []
    pack = pack_of(tmp_path / "x", said)
    assert len(pack) == 60 and any(line.startswith("bad file: odd_1.png") and reason in line for line in said)


def test_twelve_bits_among_sixteen_are_named(tmp_path, pack_of):
    big = np.kron(head(0, 1), np.ones((4, 4)))
    noise = np.random.default_rng(0).uniform(0.3, 1, big.shape)
    for i in range(40):
        write(tmp_path / "x", (big * noise * 65535).astype(np.uint16), f"s{i:02d}_1.png")
    write(tmp_path / "x", (big * noise * 4000).astype(np.uint16), "odd_1.png")
    write(tmp_path / "x", (noise * 200).astype(np.uint16), "end_1.png")  # the last slice of a scan: noise alone
    said = []
    pack_of(tmp_path / "x", said)
    assert [line.split(": ")[1] for line in said if line.startswith("bad file: ")] == ["odd_1.png"]


def test_many_files_of_another_range_stop_the_pack(tmp_path, pack_of):
    twelve_bit(tmp_path / "x", 30)
    for i in range(3):
        write(tmp_path / "x", head(i, 60000).astype(np.uint16), f"odd{i}_1.png")
    with pytest.raises(DataError, match=r"3 of 33 files cannot be used.*odd0_1\.png.*the set's range.*--max-bad"):
        pack_of(tmp_path / "x")


def test_a_range_that_was_given_is_taken(tmp_path, pack_of):
    """The user's window cuts off what lies outside of it, of 8 bits too; it is in the pack's key."""
    twelve_bit(tmp_path / "x", 12)
    pack = pack_of(tmp_path / "x", choices=Choices(range="1000:2000"))
    expected = np.clip((head(3, 4095).astype(np.uint16) - 1000.0) * 0.255, 0, 255)
    assert np.abs(shown(pack, "s03_1.png") - expected).max() <= 0.51
    assert pack.meta["key"] != pack_of(tmp_path / "x").meta["key"]
    for i in range(12):
        write(tmp_path / "y", head(i, 200).astype(np.uint8), f"s{i}_1.png")
    eight = shown(pack_of(tmp_path / "y", choices=Choices(range="0:100")), "s3_1.png")
    assert np.abs(eight - np.clip(head(3, 200).astype(np.uint8) * 2.55, 0, 255)).max() <= 0.51


def test_training_and_held_out_slices_have_one_range(tmp_path, pack_of):
    """Decided over both sides: the brightest file may lie in either."""
    for i in range(12):
        write(tmp_path / "x" / "train", head(i, 1000).astype(np.uint16), f"s{i}_1.png")
        write(tmp_path / "x" / "test", head(i, 4000).astype(np.uint16), f"v{i}_1.png")
    train = pack_of(tmp_path / "x", split="train")
    held = ensure_held_out(str(tmp_path / "x"), "test", resolution=SIDE, progress=False, log=lambda text: None)
    assert train.meta["value_range"] == held.meta["value_range"] == "0:4095"


def test_eight_bits_stay_as_they_are():
    values = head(0, 200).astype(np.uint8)
    np.testing.assert_array_equal(render(Raw(values), 1, Levels(0, 255))[:, :, 0], values)
    assert render(Raw(values), 3, Levels(0, 255)).shape == (SIDE, SIDE, 3)


def test_a_dark_median_slice_is_remarked_on(tmp_path, pack_of):
    """12 bits saved as 8: 16 levels of black in most slices, whatever one bright slice shows."""
    for i in range(9):
        write(tmp_path / "x", head(i, 15 if i else 250).astype(np.uint8), f"s{i}_1.png")
    assert any("12-bit" in w and "--range" in w for w in pack_of(tmp_path / "x").meta["warnings"])
    for i in range(9):
        write(tmp_path / "y", head(i, 250).astype(np.uint8), f"s{i}_1.png")
    assert not any("12-bit" in w for w in pack_of(tmp_path / "y").meta["warnings"])


def test_brighter_files_stop_with_the_range_to_give(tmp_path, pack_of):
    """A few that use two bits more do not decide what white is; who knows better gives the range."""
    for i in range(60):
        write(tmp_path / "x", head(i, 4000 if i % 20 == 3 else 1000).astype(np.uint16), f"s{i:02d}_5.png")
    with pytest.raises(DataError, match=r"3 of 60 .*set's range.*give --range LO:HI that holds for all"):
        pack_of(tmp_path / "x")
    assert len(pack_of(tmp_path / "x", choices=Choices(range="0:4095"))) == 60


def test_floats_up_to_one_are_not_called_bits(tmp_path, pack_of):
    said: list[str] = []
    for i in range(12):
        write(tmp_path / "x", head(i, 1).astype(np.float32), f"s{i:02d}_5.tif")
    pack_of(tmp_path / "x", said)
    assert "values from 0 to 1" in said[0] and "-bit" not in said[0]
