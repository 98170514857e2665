"""The pack file: one memory map of uint8 slices and their index, safe to open whoever made it.

Magic, version, header length, data offset, SHA-256 of the header; the header, JSON padded with spaces; from the next
multiple of 4096 the slices, uint8 (N, C, R, R). No pickle: a stranger's pack is checked field by field.
"""

import hashlib
import json
import os
import re
import struct
from dataclasses import dataclass

import numpy as np

from data import images
from data.columns import columns_of
from data.files import open_regular, parse_json, plain, sha256_of
from data.walk import DataError

MAGIC = b"BRAINPAK"
VERSION = 1  # of the file format and of the pixels: raise it when decoding or resizing changes
PREAMBLE = struct.Struct("<8sIIQQ32s")  # magic, version, 0, header length, data offset, SHA-256 of the header
ALIGN = 4096
MAX_HEADER = 256 << 20
RESOLUTIONS = (8, 4096)
MAX_SIDE = 4096  # of the square that slices are padded to


@dataclass
class Pack:
    """An open pack. `images` is a read-only memory map; `digest` names the contents (images and labels)."""

    path: str
    images: np.memmap  # (N, C, R, R) uint8
    labels: np.ndarray  # (N,) int64, -1 without classes
    classes: list[str]
    subjects: list[str]
    names: list[str]
    hashes: list[str]  # of the pixels at source size
    geometry: dict  # source_height, source_width, square, crop, resolution
    meta: dict  # key, describe, split, total, bad, warnings
    digest: str
    columns: dict[str, list[str]]  # of --condition: {column: cell of each slice, '' unknown}

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Row:
    """What is known of one slice."""

    name: str
    label: int
    subject: str
    scan: str
    hash: str  # of the pixels at source size
    mean: float  # grey level at source size, 0-255
    size: tuple[int, int]  # at source
    file: str = ""  # SHA-256 of the file
    levels: int = 256  # grey levels in use, counted of dark slices
    cells: tuple[tuple[str, str], ...] = ()  # (column, cell)


# --- reading ----------------------------------------------------------------------------------------------------------
def open_pack(path, verify: bool = False) -> Pack:
    """Open a pack; `verify` also reads all the data and compares its SHA-256. Raises DataError on anything wrong."""
    path = str(path)
    try:
        with open_regular(path) as file:
            info = os.fstat(file.fileno())
            head, offset = _read_header(path, file, info.st_size)
            shape = tuple(head["shape"])
            if info.st_size != offset + int(np.prod(shape, dtype=object)):
                raise _damaged(path, "its size does not match its header")
            if verify and sha256_of(file, offset) != head["sha256"]:
                raise _damaged(path, "its data do not match their SHA-256")
            pixels = np.memmap(file, np.uint8, "r", offset, shape)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror}); check the path") from None
    labels = np.array(head["labels"], np.int64)
    digest = hashlib.sha256(f"{shape} {head['sha256']}".encode() + labels.astype("<i8").tobytes()).hexdigest()
    names = ("classes", "subjects", "names", "hashes", "geometry", "meta")
    return Pack(path, pixels, labels, **{k: head[k] for k in names}, digest=digest, columns=head.get("columns", {}))


def _damaged(path, what: str) -> DataError:
    return DataError(f"{path}: not a valid pack, {what}; delete it and build it again with python -m data.pack FOLDER")


def _read_header(path: str, file, size: int) -> tuple[dict, int]:
    """(header, data offset) with every field checked: a hostile file gets no further than this."""
    raw = file.read(PREAMBLE.size)
    if len(raw) < PREAMBLE.size or not raw.startswith(MAGIC):
        raise _damaged(path, "it does not start like one")
    _, version, zero, length, offset, sha = PREAMBLE.unpack(raw)
    if version != VERSION or zero:
        raise _damaged(path, f"its version is {version} and this toolkit reads {VERSION}")
    if not 2 <= length <= min(MAX_HEADER, size) or offset % ALIGN or not PREAMBLE.size + length <= offset <= size:
        raise _damaged(path, "its header length is impossible")
    text = file.read(length)
    if len(text) != length or hashlib.sha256(text).digest() != sha:
        raise _damaged(path, "its header is damaged")
    try:
        head = parse_json(text)
        problem = _header_problem(head)
    except (ValueError, MemoryError, TypeError, KeyError):
        problem = "its header is no JSON of the right form"
    if problem:
        raise _damaged(path, problem)
    return head, offset


def _header_problem(head) -> str:
    """Why the header cannot be used, or ''."""
    if not isinstance(head, dict):
        return "its header is no object"
    shape = head.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int for n in shape):
        return "its shape is malformed"
    n, c, height, width = shape
    low, high = RESOLUTIONS
    if not (1 <= n <= 1 << 31 and c in (1, 3) and low <= height <= high and height == width):
        return f"its shape {shape} is impossible"
    for name in ("names", "subjects", "hashes", "classes"):
        values = head.get(name)
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            return f"its {name} are malformed"
        if name != "classes" and len(values) != n:
            return f"it has {len(values)} {name} for {n} slices"
    if odd := odd_class(head["classes"]):
        return f"its class {odd} cannot be shown or typed"
    labels, classes = head.get("labels"), head["classes"]
    if (
        not isinstance(labels, list)
        or len(labels) != n
        or not all(type(v) is int and -1 <= v < len(classes) for v in labels)
    ):
        return "its labels are malformed"
    if not _are_columns(head.get("columns", {}), n):
        return "its columns are malformed"
    if not isinstance(head.get("sha256"), str) or not re.fullmatch(r"[0-9a-f]{64}", head["sha256"]):
        return "its checksum is malformed"
    meta = head.get("meta")
    if not isinstance(meta, dict) or not all(isinstance(meta.get(k), str) for k in ("key", "describe", "split")):
        return "its meta data are malformed"
    bad = meta.get("bad")
    if not all(type(meta.get(k)) is int and meta[k] >= 0 for k in ("total", "bad_count")):
        return "its counts are malformed"
    if not isinstance(bad, list) or not all(
        isinstance(b, list) and len(b) == 2 and all(isinstance(v, str) for v in b) for b in bad
    ):
        return "its list of bad files is malformed"
    if not isinstance(meta.get("warnings"), list) or not all(isinstance(v, str) for v in meta["warnings"]):
        return "its warnings are malformed"
    try:
        check_geometry(head.get("geometry"))
    except DataError as error:
        return str(error)
    return "" if head["geometry"]["resolution"] == height else "its geometry does not match its shape"


def _are_columns(columns, n: int) -> bool:
    """Whether these are columns of n cells each, whoever wrote them."""
    return isinstance(columns, dict) and all(
        name.isprintable() and isinstance(cells, list) and len(cells) == n and all(isinstance(v, str) for v in cells)
        for name, cells in columns.items()
    )


def odd_class(classes: list[str]) -> str:
    """The first name, spelled out, that no class may have, whoever wrote it; '' if there is none."""
    return next((repr(plain(name)) for name in classes if not name.isprintable()), "")


def check_geometry(geometry) -> None:
    """DataError unless `geometry` is one that restore() can undo; it may come from a stranger's weights."""
    names = ("source_height", "source_width", "square", "crop", "resolution")
    if not isinstance(geometry, dict) or not all(type(geometry.get(k)) is int for k in names):
        raise DataError(f"the geometry needs whole numbers {', '.join(names)}")
    height, width, square, crop, resolution = (geometry[k] for k in names)
    fits = 1 <= height <= square and 1 <= width <= square and 0 <= crop <= square <= MAX_SIDE
    if not fits or not RESOLUTIONS[0] <= resolution <= RESOLUTIONS[1]:
        raise DataError(f"the geometry is impossible: {', '.join(f'{k} {geometry[k]}' for k in names)}")


def restore(pixels: np.ndarray, geometry: dict) -> np.ndarray:
    """Undo the packing: (N, C, R, R) to (N, C, H, W) at the slices' most common original size, uint8 or float32 in
    0..1.

    Resizes back to the crop, puts the crop into the middle of a black square, takes the padding off.
    """
    check_geometry(geometry)
    side = geometry["crop"] or geometry["square"]
    out = np.empty((*pixels.shape[:2], geometry["source_height"], geometry["source_width"]), pixels.dtype)
    for row, image in zip(out, pixels, strict=True):
        whole = images.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), side, side)
        if whole.dtype != np.uint8:  # of 8 bits Pillow does it
            whole = whole.clip(0, 1)
        whole = images.pad_or_crop(whole, geometry["square"], geometry["square"])
        row[:] = images.pad_or_crop(whole, *out.shape[2:]).transpose(2, 0, 1)
    return out


def write_header(
    file, offset: int, rows: list[Row], classes, geometry: dict, channels: int, sha: str, meta: dict
) -> None:
    """Write magic, JSON head and padding, so that the pixels begin at `offset`."""
    side = geometry["resolution"]
    head = {
        "shape": [len(rows), channels, side, side],
        "sha256": sha,
        "classes": list(classes),
        "geometry": geometry,
        "meta": meta,
        "labels": [r.label for r in rows],
        "names": [r.name for r in rows],
        "subjects": [r.subject for r in rows],
        "hashes": [r.hash for r in rows],
        "columns": columns_of([r.cells for r in rows], meta.get("condition", "")),
    }
    if not head["columns"]:
        del head["columns"]
    room = offset - PREAMBLE.size
    text = json.dumps(head).encode()
    if len(text) > room:  # thousands of bad files or notes: keep the counts, the log had them all
        meta = meta | {"bad": [], "warnings": ["the list of bad files and warnings was too long to be kept"]}
        text = json.dumps(head | {"meta": meta}).encode()
    text = text.ljust(room)
    file.seek(0)
    file.write(PREAMBLE.pack(MAGIC, VERSION, 0, len(text), offset, hashlib.sha256(text).digest()))
    file.write(text)
