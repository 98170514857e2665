"""Volumes to slices: canonical orientation, one spacing in plane, 8 bits over the volume's own range.

NIfTI, MGH and Analyze files through nibabel's headers, DICOM series through data.dicom. Headers are parsed from a
bounded piece of the file and voxels are read into room that was checked before, so that no file fills the memory.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from data import reading
from data.files import SERIES
from data.images import background_is_zero
from data.reading import BadFile

MAX_VOXELS = 1 << 27  # 512 cubed
MAX_BYTES = 288 << 20  # of the voxels of one volume in memory: 400 cubed of 32 bits, 512 cubed of 16
MAX_FRAME = 1 << 22  # pixels of one slice after resampling
SAMPLE = 1 << 24  # voxels that percentiles are taken of; of larger volumes, every k-th
MAX_OFFSET = 64 << 20  # bytes before the voxels
HEADER = 1 << 12  # bytes that any header fits in
BRAIN_AREA = 0.15  # of the frame, which counts as at most twice the head's box: slices that show less are left out
BOX = 0.01  # a row or column with so much of the fullest one's bright voxels is in the head's box
EXTENT = 0.05  # a slice with so much of the fullest one's bright voxels is within the head's extent
LOW, HIGH = 1.0, 99.5  # percentiles of the non-zero voxels that become 0 and 255
SIGNED = 0.05  # of the brightest: where the dark end lies further below zero, the values are signed
SAME_SPACING = 0.01  # relative: nearer than that to the set's spacing nothing is resampled
PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}  # the axis of RAS+ that the slices lie along
ANALYZE_AXES = {0: "LAS", 1: "LSA", 2: "ASL", 3: "LPS", 4: "LIA", 5: "AIL"}  # of the header's orient: where axes lead


@dataclass
class Volume:
    """What a header says; `load()` reads the voxels as they are stored, at most 4 bytes each."""

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray  # voxels to mm, RAS+
    zooms: tuple[float, ...]
    load: Callable[[], np.ndarray]
    scale: tuple[float, float] | None = None  # slope and intercept of the stored values
    notes: list[str] = field(default_factory=list)
    modality: str = ""

    @property
    def order(self) -> np.ndarray:
        """nibabel's orientation array: which axis of RAS+ each stored axis is, and its sign."""
        import nibabel

        return nibabel.orientations.io_orientation(self.affine)

    def frame(self, plane: str = "axial", target: float = 0.0) -> tuple[tuple[int, int], int, float]:
        """((height, width), number of slices, mm per pixel before resampling to `target`) of the slices."""
        axis = PLANES[plane]
        shape, zooms = [0, 0, 0], [0.0, 0.0, 0.0]
        for stored, (where, _) in enumerate(self.order):
            shape[int(where)], zooms[int(where)] = self.shape[stored], self.zooms[stored]
        sizes = [n for i, n in enumerate(shape) if i != axis]
        spacing = np.asarray([z for i, z in enumerate(zooms) if i != axis], float)
        if not np.isfinite(spacing).all() or spacing.min() <= 0 or spacing.max() / spacing.min() > 20:
            raise BadFile(f"implausible voxel spacing {spacing.tolist()}")
        own = spacing.min()
        used = target if target and abs(own / target - 1) > SAME_SPACING else own
        width, height = (max(round(n * s / used), 1) for n, s in zip(sizes, spacing, strict=True))
        if height * width > MAX_FRAME:  # a few long rows of thin voxels would become a picture of terabytes
            raise BadFile(f"implausible slices of {height}x{width} pixels")
        return (height, width), shape[axis], float(own)


# --- headers ----------------------------------------------------------------------------------------------------------
def open_volume(path, number: int = -1) -> Volume:
    """The header of a volume file or of the series that a DICOM file belongs to; `number` chooses one of a 4-D file's
    volumes. No voxel is read. Raises BadFile."""
    name = os.fspath(path).lower()
    try:
        from nibabel.imageglobals import logger  # only data sets of volumes need it
    except ImportError:
        raise BadFile("volumes need nibabel: pip install nibabel") from None
    logger.disabled = True  # it prints what it mends in damaged headers
    if name.endswith(SERIES) or "." not in os.path.basename(name):  # DICOM files often have no suffix
        from data.dicom import open_series

        volume = open_series(path, number)
    else:
        with _stream(path) as file:
            start = _read(file, HEADER)
        try:
            volume = _mgh(path, start, number) if name.endswith((".mgz", ".mgh")) else _nifti(path, start, number)
        except BadFile:
            raise
        except Exception as error:  # damaged headers raise almost anything
            raise BadFile(f"no readable NIfTI header ({type(error).__name__})") from None
    check_voxels(volume.shape, volume.dtype)
    try:
        damaged = not np.isfinite(volume.order).all()
    except Exception:
        damaged = True
    if damaged:
        raise BadFile("no readable orientation in the header")
    return volume


def check_voxels(shape: tuple[int, ...], dtype: np.dtype) -> None:
    """BadFile for voxels that are no grey values, or more than memory is given for."""
    if dtype.fields or dtype.kind not in "uif":
        raise BadFile(f"voxels of type {dtype} are not grey values")
    count = np.prod(shape, dtype=float)
    if min(shape) < 1 or count > MAX_VOXELS or count * min(dtype.itemsize, 4) > MAX_BYTES:
        raise BadFile(f"implausible size {tuple(shape)}")


def _stream(path):
    """The contents of a file, decompressed where its name or its first bytes say gzip."""
    file = reading.open_file(path)
    start = file.read(2)
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file


def _read(file, size: int) -> bytes:
    try:
        return file.read(size)
    except Exception as error:
        raise BadFile(f"no readable NIfTI header ({type(error).__name__})") from None


def choose(shape: tuple[int, ...], number: int) -> tuple[tuple[int, ...], int]:
    """(3-D shape, which of the volumes) of a header's shape, where `number` is what the user asked for."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) == 4 and number >= 0:
        if number >= shape[3]:
            raise BadFile(f"4-D {shape}: there is no volume {number}, the last is {shape[3] - 1}")
        return shape[:3], number
    if len(shape) == 4:
        raise BadFile(f"4-D {shape}: choose one of its volumes, --volume 0 to {shape[3] - 1}")
    if len(shape) != 3:
        raise BadFile(f"{len(shape)}-D {shape}: a single 3-D volume is needed, extract one first")
    return shape, 0


def _nifti(path, start: bytes, number: int) -> Volume:
    import nibabel

    kind: Any = nibabel.Nifti1Header
    single, block = start[344:348] == b"n+1\0", start[:348]
    if start[:4] in (b"\x1c\2\0\0", b"\0\0\2\x1c"):  # 540, in either byte order
        kind, single, block = nibabel.Nifti2Header, start[4:8] == b"n+2\0", start[:540]
    elif not single and start[344:348] != b"ni1\0":
        kind = nibabel.AnalyzeHeader
    if not single and ".hdr" not in os.fspath(path).lower():
        raise BadFile("no readable NIfTI header")
    header: Any = kind(block, check=True)  # without its extensions: they may claim gigabytes
    dtype, stored = header.get_data_dtype(), header.get_data_shape()
    if dtype.fields or dtype.kind == "c":
        raise BadFile(f"voxels of type {dtype} are not grey values")
    shape, which = choose(stored, number)
    notes: list[str] = []
    if kind is nibabel.AnalyzeHeader:
        scale, affine = None, _analyze_affine(header, shape, notes)
    else:
        slope, intercept = header.get_slope_inter()
        scale = None if slope is None else (slope, intercept)
        affine = header.get_best_affine()
        if header["qform_code"] == 0 and header["sform_code"] == 0:
            notes.append("no orientation in the header: voxel axes taken as left, anterior, superior")
    voxels = path if single else _partner(path)
    if header.get_data_offset() > MAX_OFFSET:
        raise BadFile(f"{int(header.get_data_offset()) >> 20} MB of header before its voxels")
    skip = int(header.get_data_offset()) + which * int(np.prod(shape, dtype=object)) * dtype.itemsize
    zooms = tuple(float(z) for z in header.get_zooms()[:3])
    return Volume(shape, dtype, affine, zooms, lambda: _voxels(voxels, skip, shape, dtype), scale, notes)


def _partner(path) -> str:
    """The file of voxels that belongs to a header."""
    base = os.fspath(path)
    base = base[: base.lower().rindex(".hdr")] if ".hdr" in base.lower() else base
    for suffix in (".img", ".img.gz", ".IMG"):
        try:
            reading.open_file(base + suffix).close()
            return base + suffix
        except BadFile:
            continue
    raise BadFile("a header without its .img file of voxels")


def _analyze_affine(header, shape: tuple[int, ...], notes: list[str]) -> np.ndarray:
    """Analyze has no matrix: its orient field says how the slices were cut; sides are the usual ones."""
    from nibabel.orientations import axcodes2ornt, inv_ornt_aff

    orient = int(np.frombuffer(header["orient"].tobytes(), np.uint8)[0])
    notes.append("Analyze header: left and right are by convention")
    zooms = np.abs(np.asarray(header.get_zooms()[:3], float))
    order = axcodes2ornt(ANALYZE_AXES.get(orient, ANALYZE_AXES[0]))
    scaled = np.ones(3)
    scaled[order[:, 0].astype(int)] = zooms
    return np.diag([*scaled, 1.0]) @ np.linalg.inv(inv_ornt_aff(order, shape))


def _mgh(path, start: bytes, number: int) -> Volume:
    from nibabel.freesurfer.mghformat import MGHHeader

    block = start[:284].ljust(MGHHeader.template_dtype.itemsize, b"\0")
    header: Any = MGHHeader(block, check=True)
    dtype = header.get_data_dtype()
    shape, which = choose(header.get_data_shape(), number)
    skip = 284 + which * int(np.prod(shape, dtype=object)) * dtype.itemsize
    zooms = tuple(float(z) for z in header.get_zooms()[:3])
    return Volume(shape, dtype, header.get_affine(), zooms, lambda: _voxels(path, skip, shape, dtype))


def _voxels(path, skip: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The stored values from byte `skip` on, at most 4 bytes each: larger ones become float32 piece by piece."""
    count, small = int(np.prod(shape, dtype=np.int64)), dtype.itemsize <= 4
    kept = np.empty(count, dtype if small else np.float32)
    view, step = memoryview(kept.view(np.uint8).data) if small else memoryview(b""), 1 << 20
    with _stream(path) as file:
        try:
            if isinstance(file, gzip.GzipFile):
                while skip > 0:
                    skip -= len(file.read(min(skip, step)) or b"\0" * skip)
            else:
                file.seek(skip)
            for start in range(0, count, step):
                stop = min(start + step, count)
                size = (stop - start) * dtype.itemsize
                piece = file.read(size)
                while len(piece) < size and (more := file.read(size - len(piece))):
                    piece += more
                if len(piece) < size:
                    raise EOFError
                if small:
                    view[start * dtype.itemsize : stop * dtype.itemsize] = piece
                else:
                    kept[start:stop] = np.frombuffer(piece, dtype)
        except Exception as error:  # damaged data raise almost anything: EOFError, zlib.error, OSError, ValueError
            raise BadFile(f"truncated or damaged volume ({type(error).__name__})") from None
    return kept.reshape(shape, order="F")


# --- slices -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Cut:
    """How volumes of a set are cut: the same for all of them."""

    plane: str = "axial"
    slices: tuple[float, float] | None = None  # share of the head's extent along the axis, lowest to highest
    value_range: tuple[float, float] | None = None  # None: each volume's own
    spacing: float = 0.0  # mm per pixel, 0: each volume's own


def volume_frame(path, cut: Cut | None = None, number: int = -1) -> tuple[tuple[int, int], int]:
    """(height, width) of the slices and their largest number, from the header alone. Raises BadFile."""
    cut = cut or Cut()
    return open_volume(path, number).frame(cut.plane, cut.spacing)[:2]


def volume_cost(volume: Volume) -> int:
    """Bytes that reading the slices of a volume takes at most, about."""
    count, size = int(np.prod(volume.shape)), min(volume.dtype.itemsize, 4)
    return count * size + min(count, SAMPLE) * 3 * size + (32 << 20)


def read_volume(path, cut: Cut | None = None, number: int = -1) -> tuple[list[tuple[int, np.ndarray]], list[str]]:
    """Slices of a volume: list of (index along the axis, uint8 (H, W)), list of notes. Raises BadFile.

    Shown radiologically: the front of the head up (coronal and sagittal: its top), the patient's right on the left.
    Index 0 is the lowest, rearmost or leftmost slice. NaN and infinite voxels count as 0. "Non-zero" is above 1 % of
    the 99.9th percentile: scaled integers put the background slightly off zero.
    """
    slices, notes, _ = cut_volume(open_volume(path, number), cut or Cut())
    return list(slices), notes


def cut_volume(volume: Volume, cut: Cut) -> tuple[Iterator[tuple[int, np.ndarray]], list[str], tuple[int, int]]:
    """read_volume's slices one by one, only the stored voxels are held at a time; and the head's lowest and highest."""
    from nibabel.orientations import apply_orientation

    frame, _, _ = volume.frame(cut.plane, cut.spacing)
    notes = list(volume.notes)
    stored = volume.load()
    grey = _Grey(stored, volume.scale, notes, cut.value_range)
    turned = apply_orientation(stored, volume.order)
    turned = np.moveaxis(turned, PLANES[cut.plane], 2)
    chosen, head = _choose_slices(turned, grey, cut.slices)

    def slices() -> Iterator[tuple[int, np.ndarray]]:
        for z in chosen:
            plane = grey(turned[:, :, z]).T[::-1, ::-1]
            if plane.shape != frame:
                plane = np.asarray(Image.fromarray(plane).resize(frame[::-1], _kernel(plane.shape, frame)))
            yield z, np.rint(np.clip(plane, 0, 255)).astype(np.uint8)

    return slices(), notes, head


def _kernel(old: tuple[int, ...], new: tuple[int, int]) -> Image.Resampling:
    """Both are antialiased in Pillow; Lanczos is the sharper one where detail is lost."""
    return Image.Resampling.LANCZOS if new[0] < old[0] and new[1] < old[1] else Image.Resampling.BICUBIC


class _Grey:
    """Grey levels 0 to 255, not rounded, of a volume's stored values: found from all voxels once."""

    def __init__(self, stored: np.ndarray, scale, notes: list[str], value_range: tuple[float, float] | None):
        self.scale, self.shift, self.masked = scale, np.float32(0), False
        step = -(-stored.size // SAMPLE)
        values = self._values(stored.reshape(-1, order="F")[::step])
        finite = np.isfinite(values)
        if not finite.all():
            notes.append(f"{100 * (1 - finite.mean()):.2g} % of the voxels are not finite, taken as 0")
            values = np.where(finite, values, np.float32(0))
        if value_range is not None:
            self.low, self.high = (np.float32(v) for v in value_range)
            return
        inside = values[values != 0]
        if inside.size and inside.min() < 0:
            dark, bright = np.percentile(inside, [LOW, HIGH])
            if dark < -SIGNED * abs(bright):
                corners = self._values(stored[tuple(slice(None, None, max(n - 1, 1)) for n in stored.shape)])
                self.masked = background_is_zero(values, corners)
                if not self.masked:
                    self.shift = np.float32(inside.min())
                notes.append("signed values: " + ("exact zeros are background" if self.masked else "shifted to zero"))
        tissue = inside if self.masked else (values - self.shift)[values > self.shift]
        if tissue.size and not self.masked:
            tissue = tissue[tissue > 0.01 * np.percentile(tissue, 99.9)]
        del values, inside
        if tissue.size == 0:
            raise BadFile("no voxel is above zero")
        self.low, self.high = np.percentile(tissue, [LOW, HIGH], overwrite_input=True)
        if not self.high > self.low:  # a constant volume, such as a mask
            raise BadFile("all non-zero voxels are equal: a mask?")

    def _values(self, stored: np.ndarray) -> np.ndarray:
        from nibabel.volumeutils import apply_read_scaling

        with np.errstate(all="ignore"):
            if self.scale is not None:
                stored = apply_read_scaling(stored, *self.scale)
            return np.asarray(stored, np.float32)

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        values = self._values(stored)
        values = np.where(np.isfinite(values), values, np.float32(0))
        grey = np.clip((values - self.shift - self.low) * (255 / (self.high - self.low)), 0, 255)
        return np.where(values == 0, np.float32(0), grey) if self.masked else grey


def _choose_slices(
    turned: np.ndarray, grey: _Grey, share: tuple[float, float] | None
) -> tuple[list[int], tuple[int, int]]:
    """Indices of the slices that show enough brain, or lie in that share of the head's extent; and this extent."""
    depth = turned.shape[2]
    area, columns, rows = np.zeros(depth), np.zeros(turned.shape[0]), np.zeros(turned.shape[1])
    for z in range(depth):
        bright = grey(turned[:, :, z]) > 0.1 * 255
        area[z] = bright.sum()
        columns += bright.sum(1)
        rows += bright.sum(0)
    if not area.any():
        raise BadFile("no slice shows brain")
    head = np.flatnonzero(area >= EXTENT * area.max())
    first, last = int(head[0]), int(head[-1])
    if share is not None:
        low, high = (first + s * (last - first) for s in share)
        chosen = [z for z in range(first, last + 1) if low - 1e-9 <= z <= high + 1e-9]
        if not chosen:
            raise BadFile(f"no slice lies in {share[0]:g} to {share[1]:g} of the head's extent")
        return chosen, (first, last)
    box = np.prod([np.ptp(np.flatnonzero(n > BOX * n.max())) + 1 for n in (columns, rows)])
    frame = turned.shape[0] * turned.shape[1]
    chosen = [z for z in range(depth) if not area[z] / min(frame, 2 * box) < BRAIN_AREA]
    if not chosen:
        raise BadFile(f"no slice shows brain on {BRAIN_AREA:.0%} of the frame")
    return chosen, (first, last)
