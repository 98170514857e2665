"""DICOM files as volumes: the slices of one series, in the order of their positions, in mm.

pydicom is imported only here. Of compressed files, RLE, JPEG and JPEG 2000 are read by pydicom, Pillow and pylibjpeg;
what else there is needs a plugin, and the message names it.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from data import reading
from data.files import SERIES
from data.images import MAX_PIXELS
from data.reading import BadFile
from data.volumes import MAX_BYTES, Volume, check_voxels, choose

MAX_HEADER = 8 << 20  # bytes of one file's elements before its pixels
MAX_FILES = 4096  # of one series
GAP = 1.5  # a step so much larger than the usual one lacks a slice
TURN = 1e-2  # direction cosines that differ less are the same
TAGS = [
    "SeriesInstanceUID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored",
    "PixelRepresentation", "PhotometricInterpretation", "RescaleSlope", "RescaleIntercept", "PixelSpacing",
    "ImageOrientationPatient", "ImagePositionPatient", "SliceThickness", "SpacingBetweenSlices", "InstanceNumber",
    "Modality", "SeriesDescription", "PatientID", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence",
    "DirectoryRecordSequence",
]  # fmt: skip
NOBODY = re.compile(r"[\W_0]*|(?:anon|unknown|none|n/?a$|null|no[_ ]?name|test|patient$|removed|deleted|xxx).*", re.I)
UNPACKED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")  # syntaxes without compression
DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclass(frozen=True)
class Slice:
    """One frame of one file."""

    path: str
    frame: int
    uid: str
    shape: tuple[int, int]  # (rows, columns)
    spacing: tuple[float, float]  # mm between rows, between columns
    axes: tuple[float, ...]  # direction of a row, of a column, in the patient's coordinates (left, posterior, superior)
    position: tuple[float, ...]
    rescale: tuple[float, float]
    inverted: bool
    bits: int
    number: int
    thickness: float
    modality: str
    patient: str  # '' where the header says nobody

    @property
    def normal(self) -> np.ndarray:
        """The direction that slices follow each other in."""
        return np.cross(self.axes[:3], self.axes[3:])


def is_dicom(path) -> bool:
    """Whether a file without a suffix begins like DICOM."""
    try:
        with reading.open_file(path) as file:
            return file.read(132)[128:] == b"DICM"
    except BadFile:
        return False


def series(paths: list[str]) -> dict[str, list[str]]:
    """First path of each series -> all its paths, of DICOM files in any folders. Unreadable files stand alone."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in sorted(paths):
        try:
            uid = headers(path)[0].uid
        except BadFile:
            uid = path
        found[os.path.dirname(path), uid].append(path)
    return {group[0]: group for group in found.values()}


def headers(path) -> tuple[Slice, ...]:
    """The frames of one file, from its header alone; cached, as every file of a series asks for all. Raises BadFile."""
    try:
        info = os.stat((reading.split_member(path) or (path,))[0])
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None
    return _headers(os.fspath(path), info.st_size, info.st_mtime_ns)


@lru_cache(1)
def _pydicom():
    try:
        import pydicom
    except ImportError:
        raise BadFile("DICOM needs pydicom: pip install pydicom pylibjpeg pylibjpeg-openjpeg") from None
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    pydicom.config.logger.disabled = True  # it tells of what it mends in damaged files
    warnings.filterwarnings("ignore", module="pydicom")
    return pydicom


class _Start:
    """The beginning of a file; an element that claims more than a header holds is the end of it."""

    def __init__(self, file):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise BadFile("damaged DICOM header: an impossible length")
        return self.file.read(size)


@lru_cache(maxsize=50_000)
def _headers(path: str, size: int, mtime_ns: int) -> tuple[Slice, ...]:
    pydicom = _pydicom()
    try:
        with reading.open_file(path) as file:
            head = pydicom.filereader.read_partial(
                _Start(file),
                stop_when=lambda tag, vr, length: tag >= 0x7FE00008,
                specific_tags=[pydicom.tag.Tag(t) for t in TAGS],
                force=True,
            )
            return tuple(_frames(path, head))
    except BadFile:
        raise
    except RecursionError:
        raise BadFile("damaged DICOM header (RecursionError)") from None
    except Exception as error:  # damaged headers raise almost anything
        raise BadFile(f"no readable DICOM header ({type(error).__name__})") from None


def _frames(path: str, head: Any) -> list[Slice]:
    syntax = str(getattr(head.file_meta, "TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        raise BadFile("deflated DICOM: convert it with dcmconv or dcm2niix")
    if "DirectoryRecordSequence" in head or "Rows" not in head:
        raise BadFile("a DICOM file without a picture")
    if head.get("SamplesPerPixel", 1) != 1 or not str(head.get("PhotometricInterpretation", "MONO")).startswith("MONO"):
        raise BadFile("DICOM in colours: a screenshot or a report, no scan")
    shape, count = (int(head.Rows), int(head.Columns)), int(head.get("NumberOfFrames") or 1)
    bits = int(head.get("BitsAllocated", 16))
    pixels = shape[0] * shape[1]
    if not (0 < pixels <= MAX_PIXELS and 0 < count <= MAX_FILES and pixels * count * bits // 8 <= MAX_BYTES):
        raise BadFile(f"implausible size {shape} x {count}")
    shared = (head.get("SharedFunctionalGroupsSequence") or [None])[0]
    frames = list(head.get("PerFrameFunctionalGroupsSequence") or [])
    found, patient = [], _text(str(head.get("PatientID") or ""))
    patient = "" if NOBODY.fullmatch(patient) else patient
    for i in range(count):
        own = frames[i] if i < len(frames) else None

        def get(name: str, group: str, default, own=own):
            """A value of this frame, of all frames, or of the file."""
            for item in (own, shared):
                part = item.get(group) if item is not None else None
                if part and part[0].get(name) is not None:
                    return part[0].get(name)
            value = head.get(name)
            return default if value is None or value == "" else value

        spacing = get("PixelSpacing", "PixelMeasuresSequence", (1.0, 1.0))
        axes = get("ImageOrientationPatient", "PlaneOrientationSequence", (1.0, 0, 0, 0, 1.0, 0))
        position = get("ImagePositionPatient", "PlanePositionSequence", None)
        thickness = float(get("SliceThickness", "PixelMeasuresSequence", 0) or 0)
        number = int(head.get("InstanceNumber") or 0) + i
        if position is None:
            position = tuple(np.cross(axes[:3], axes[3:]) * number * (thickness or 1.0))
        if (len(axes), len(position), len(spacing)) != (6, 3, 2):
            raise BadFile("no readable orientation in the DICOM header")
        rescale = "PixelValueTransformationSequence"
        found.append(
            Slice(
                path, i, str(head.get("SeriesInstanceUID", "")), shape, tuple(map(float, spacing)),  # type: ignore[arg-type]
                tuple(map(float, axes)), tuple(map(float, position)),
                (float(get("RescaleSlope", rescale, 1)), float(get("RescaleIntercept", rescale, 0))),
                str(head.get("PhotometricInterpretation", "")) == "MONOCHROME1", bits,
                number, float(get("SpacingBetweenSlices", "PixelMeasuresSequence", 0) or 0) or thickness,
                _text(f"{head.get('Modality', '')} {head.get('SeriesDescription', '')}"), patient,
            )
        )  # fmt: skip
    return found


def _text(value: str) -> str:
    """What a stranger wrote, as a few printable characters."""
    return "".join(c for c in value if c.isprintable())[:80].strip()


def members(path) -> list[Slice]:
    """All frames of the series that a file belongs to: of the files beside it with the same series number."""
    own = headers(path)
    found = list(own)
    for other in reading.siblings(path):
        lower = other.lower()
        if other == os.fspath(path) or not (
            lower.endswith(SERIES) or ("." not in os.path.basename(lower) and is_dicom(other))
        ):
            continue
        try:
            frames = headers(other)
        except BadFile:
            continue  # it stands alone in series(), and is counted there
        if frames[0].uid == own[0].uid:
            found += frames
        if len(found) > MAX_FILES:
            raise BadFile(f"a series of more than {MAX_FILES:,} slices")
    return found


def open_series(path, number: int = -1) -> Volume:
    """The volume of a series, its slices sorted along their normal. Raises BadFile."""
    frames, notes = members(path), []
    first = frames[0]
    if any(f.shape != first.shape for f in frames):
        raise BadFile("a series of slices of several sizes: give each its own folder")
    if any(np.abs(np.subtract(f.axes, first.axes)).max() > TURN for f in frames):
        raise BadFile("a series of slices in several directions: a localizer?")
    numbers = [v for f in frames for v in (*f.axes, *f.position, *f.spacing)]
    if not np.isfinite(numbers).all() or np.linalg.norm(first.normal) < 0.5:
        raise BadFile("no readable orientation in the DICOM header")
    along: dict[float, list[Slice]] = defaultdict(list)
    for f in frames:
        along[round(float(np.dot(first.normal, f.position)), 2)].append(f)
    places = sorted(along)
    repeats = {len(group) for group in along.values()}
    if len(repeats) > 1:
        raise BadFile(f"a series with {len(frames)} slices at {len(places)} positions: some are missing or twice")
    stored = (*first.shape[::-1], len(places), repeats.pop())
    shape, which = choose(stored, number)
    chosen = [sorted(along[place], key=lambda f: (f.number, f.path))[which] for place in places]
    steps = np.diff(places)
    step = float(np.median(steps)) if steps.size else first.thickness or 1.0
    if steps.size and steps.max() > GAP * step:
        notes.append(f"slices are missing: a step of {steps.max():.3g} mm among {step:.3g} mm")
    if first.inverted:
        notes.append("MONOCHROME1: shown with black and white exchanged")
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.axes[:3], first.spacing[1])
    affine[:3, 1] = np.multiply(first.axes[3:], first.spacing[0])
    affine[:3, 2] = first.normal * step
    affine[:3, 3] = chosen[0].position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to the left and to the back
    plain = all(f.rescale == (1.0, 0.0) and not f.inverted and f.bits <= 16 for f in chosen)
    dtype = np.dtype(np.int32 if plain else np.float32)
    check_voxels(shape, dtype)
    zooms = (first.spacing[1], first.spacing[0], step)
    return Volume(shape, dtype, affine, zooms, partial(_load, chosen, shape, dtype), None, notes, first.modality)


def _load(chosen: list[Slice], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    voxels = np.empty(shape, dtype, order="F")
    opened: tuple[str, Any] = ("", None)
    for z, f in enumerate(chosen):
        if opened[0] != f.path:
            opened = f.path, _pixels(f)
        pixels = opened[1][f.frame] if opened[1].ndim == 3 else opened[1]
        if pixels.shape != f.shape:
            raise BadFile(f"damaged DICOM file {os.path.basename(f.path)}")
        voxels[:, :, z] = (
            pixels.T if dtype.kind == "i" else pixels.T * np.float32(f.rescale[0]) + np.float32(f.rescale[1])
        )
    if chosen[0].inverted:
        voxels = voxels.max() - voxels
    return voxels


def _pixels(f: Slice) -> np.ndarray:
    pydicom, name, packed = _pydicom(), "", False
    try:
        data = pydicom.dcmread(io.BytesIO(reading.read_bytes(f.path, MAX_BYTES)), force=True)
        if not hasattr(data.file_meta, "TransferSyntaxUID"):
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        name, packed = data.file_meta.TransferSyntaxUID.name, data.file_meta.TransferSyntaxUID not in UNPACKED
        name = name if name.isprintable() and len(name) < 120 else "of an unknown kind"
        return data.pixel_array
    except BadFile:
        raise
    except Exception as error:
        if "missing dependencies" in str(error) or isinstance(error, NotImplementedError):
            raise BadFile(
                f"compressed DICOM ({name}): pip install pylibjpeg pylibjpeg-openjpeg pylibjpeg-libjpeg, or convert "
                "with dcm2niix"
            ) from None
        fix = f"; if it is whole, {name} is not read here: convert with dcm2niix" * bool(packed)
        raise BadFile(f"truncated or damaged DICOM file ({type(error).__name__}){fix}") from None
