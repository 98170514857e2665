"""Files for the tests of memory: small on disk with far more in them than they should hold, or honest and large."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def nifti_header(shape, dtype=np.int16, offset=352, extension=b"\0\0\0\0") -> bytes:
    nibabel = __import__("nibabel")
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", offset
    return header.binaryblock + extension


def zeros(size: int) -> bytes:
    """Parts of a .gz that unpack to `size` zeros or a little more."""
    return gzip.compress(bytes(64 << 20)) * -(-size // (64 << 20))


def extension_bomb(path: Path) -> None:
    """1.5 MB of .nii.gz whose header extension claims and holds 1.5 GB."""
    size = 1500 << 20
    head = nifti_header((64, 64, 20), offset=352 + size, extension=b"\1\0\0\0" + struct.pack("<ii", size, 6))
    path.write_bytes(gzip.compress(head) + zeros(size))


def voxel_bomb(path: Path, shape=(1000, 1000, 1000), dtype=np.int16) -> None:
    """.nii.gz of zeros."""
    path.write_bytes(gzip.compress(nifti_header(shape, dtype)) + zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize))


def honest_volume(path: Path, side=400, dtype=np.int16) -> None:
    """A head in a cube, written plane by plane."""
    y, x = np.mgrid[:side, :side] / side - 0.5
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 200, (side, side))
    with open(path, "wb") as file:
        file.write(nifti_header((side, side, side), dtype))
        for z in range(side):
            inside = x**2 + y**2 + (z / side - 0.5) ** 2 < 0.16
            file.write(np.where(inside, 400 + noise, 0).astype(dtype).tobytes())


def tiff(path: Path, side: int, mode: str, compression="tiff_deflate") -> None:
    Image.new(mode, (side, side)).save(path, compression=compression)


def many_strips(path: Path) -> None:
    """A TIFF with millions of places of strips."""
    count = 8_000_000
    tags = [
        (256, 4, 1, 64),
        (257, 4, 1, 64),
        (258, 3, 1, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, count, 8 + 2 + 8 * 12 + 4),
        (278, 4, 1, 1),
        (279, 4, count, 8 + 2 + 8 * 12 + 4),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + ifd + bytes(4 * count))


def huge_tile(path: Path) -> None:
    data = zlib.compress(bytes(30000 * 30000 // 4), 9)
    tags = [
        (256, 4, 1, 64),
        (257, 4, 1, 64),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (322, 4, 1, 30000),
        (323, 4, 1, 30000),
        (324, 4, 1, 8 + 2 + 9 * 12 + 4),
        (325, 4, 1, len(data)),
    ]
    ifd = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags) + struct.pack("<I", 0)
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8) + ifd + data)


def many_frames(path: Path, count=400_000) -> None:
    """A GIF of more pictures than any scan has."""
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0xF0, 0, 0) + bytes(6) + frame * count + b"\x3b")


def array_bomb(path: Path) -> None:
    """An .npz of 320 MB of zeros."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10, 2000, 2000)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as file,
    ):
        file.write(header.getvalue())
        for _ in range(320):
            file.write(bytes(1 << 20))


def member_bomb(path: Path) -> None:
    """A .zip whose picture unpacks to 300 MB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.bmp", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(1 << 20))
