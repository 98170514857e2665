"""Decode a source once into one memory-mapped uint8 file with an index: `python -m data.pack SRC [--out FILE] ...`.

Slices are padded to a square (240 x 256 gets 8 rows above and 8 below), never squashed, cropped if asked, and resized with
antialiasing. File layout: magic, offset and length and sha256 of the index, images (N, C, R, R) from byte 4096 on, then
the index as JSON. No pickle; a reader checks every number against the file's size before it allocates anything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from data.sources import VOLUME_ENDINGS, DataError, Record, Source, find_source

MAGIC = b"SLICEPK1"
HEADER = struct.Struct("<8sQQ32s")
DATA_OFFSET = 4096
MAX_PIXELS = 64_000_000  # a slice of 8000 x 8000; what claims more is a decompression bomb
MAX_BAD = 0.01
DARK_SCAN = 0.3  # a scan whose mean is below this share of the median scan's is corrupt
MIN_BRAIN = 0.15  # axial slices of a volume with less brain than this share of the frame are left out
LOCK_STALE = 120.0


@dataclass
class Pack:
    """An opened pack. images (N, C, R, R) uint8 memory map; labels (N,) int64, -1 = none; geometry: see `restore`."""

    path: str
    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    subjects: list[str]
    names: list[str]
    hashes: list[str]
    geometry: dict
    meta: dict
    digest: str


# --- one file -> pixels -----------------------------------------------------------------------------------------------
class BadFile(Exception):
    """Why one file cannot be used."""


def decode_image(path: str, channels: int) -> Image.Image:
    """What a viewer shows, as 8-bit grey or RGB. BadFile for anything else."""
    try:
        if os.path.getsize(path) == 0:
            raise BadFile("empty file")
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadFile(f"claims {image.width} x {image.height} pixels")
            image.load()
            image = ImageOps.exif_transpose(image)
            return _eight_bit(image).convert("L" if channels == 1 else "RGB")
    except BadFile:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... depending on what is broken
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFile("not an image" if "cannot identify" in text else text.replace(path, "").strip()[:80]) from None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greys scaled (never wrapped or clipped), floats stretched over their range, transparency put on black."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        scale = 257 if values.max(initial=0) > 255 or image.mode != "I" else 1
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            low, high = values.min(), values.max()
            return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1))).astype(np.uint8))
        return Image.fromarray(np.round(values / scale).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA":
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image


def decode_volume(path: str) -> list[tuple[int, Image.Image]]:
    """Axial slices of a NIfTI volume with enough brain, front up: [(axial index, 8-bit grey image)].

    Canonical RAS orientation; the 1st to 99.5th percentile of the non-zero voxels become 0 to 255; in-plane voxels are made
    square. BadFile: truncated, 4-D, NaN-only, all zero, no orientation.
    """
    import nibabel

    try:
        volume = nibabel.load(path)
        if len(volume.shape) != 3 or min(volume.shape) < 2:
            raise BadFile(f"shape {'x'.join(map(str, volume.shape))}; a 3-D volume is needed (split 4-D series first)")
        if np.prod([float(n) for n in volume.shape]) > 1e9:
            raise BadFile(f"claims {'x'.join(map(str, volume.shape))} voxels")
        header = volume.header
        if "qform_code" in header and not int(header["qform_code"]) and not int(header["sform_code"]):
            raise BadFile("no orientation (qform and sform codes are 0)")
        volume = nibabel.as_closest_canonical(volume)
        values = np.asarray(volume.dataobj, dtype=np.float32)
        spacing = volume.header.get_zooms()[:2]
    except BadFile:
        raise
    except Exception as error:  # nibabel and zlib raise many kinds on a damaged file
        raise BadFile(
            f"not a readable volume ({(str(error).splitlines() or [type(error).__name__])[0][:80]})"
        ) from None
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    inside = values[values > 0]
    if inside.size == 0:
        raise BadFile("all zero")
    low, high = np.percentile(inside, [1, 99.5])
    scaled = np.clip((values - low) * (255 / max(high - low, 1e-6)), 0, 255)
    scaled[values <= 0] = 0
    slices = []
    for z in range(scaled.shape[2]):
        plane = scaled[:, :, z].T[::-1, ::-1]  # rows from the front back; the patient's right on the image's left
        if (plane > 10).mean() >= MIN_BRAIN:
            image = Image.fromarray(np.round(plane).astype(np.uint8))
            fine = min(spacing)
            size = (round(image.width * spacing[0] / fine), round(image.height * spacing[1] / fine))
            slices.append((z, image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)))
    if not slices:
        raise BadFile(f"no axial slice with {MIN_BRAIN:.0%} brain")
    return slices


# --- geometry ---------------------------------------------------------------------------------------------------------
def to_square(image: Image.Image, square: int) -> Image.Image:
    """Centre on a black square; a larger image is first scaled down, keeping its aspect."""
    if max(image.size) > square:
        scale = square / max(image.size)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS)
    if image.size == (square, square):
        return image
    canvas = Image.new(image.mode, (square, square))
    canvas.paste(image, ((square - image.width) // 2, (square - image.height) // 2))
    return canvas


def to_resolution(image: Image.Image, crop: int, resolution: int) -> Image.Image:
    """Crop the middle, then resize with antialiasing."""
    if crop:
        offset = (image.width - crop) // 2
        image = image.crop((offset, offset, offset + crop, offset + crop))
    return image if image.width == resolution else image.resize((resolution, resolution), Image.Resampling.LANCZOS)


def restore(images: np.ndarray, geometry: dict) -> np.ndarray:
    """Undo resize, crop and padding: uint8 (N, C, R, R) -> uint8 (N, C, source_height, source_width).

    `geometry`: source_height, source_width, square, crop, resolution, as a pack and a weights file hold them; {} changes
    nothing.
    """
    if not geometry:
        return images
    square, crop = geometry["square"], geometry["crop"]
    h, w = geometry["source_height"], geometry["source_width"]
    top, left = (square - h) // 2, (square - w) // 2
    out = np.zeros((len(images), images.shape[1], h, w), np.uint8)
    for i, image in enumerate(images):
        for c, plane in enumerate(image):
            inner = Image.fromarray(plane)
            side = crop or square
            if inner.width != side:
                inner = inner.resize((side, side), Image.Resampling.BICUBIC)
            canvas = Image.new("L", (square, square))
            canvas.paste(inner, ((square - side) // 2,) * 2)
            out[i, c] = np.asarray(canvas)[top : top + h, left : left + w]
    return out


# --- building ---------------------------------------------------------------------------------------------------------
@dataclass
class Decoded:
    """What one record became: (name, content hash, mean, pixels) per slice, or the reason why it is bad."""

    record: Record
    slices: list[tuple[str, str, float, np.ndarray]]
    bad: str = ""


def decode(record: Record, channels: int, square: int, crop: int, resolution: int) -> Decoded:
    """Decode one record to slices at the pack's geometry. Never raises for a bad file."""
    try:
        if not record.path:
            from data.phantom import phantom_slice

            pixels = phantom_slice(0, record.slice_index, resolution, record.label)
            pixels = np.repeat(pixels[None], channels, 0)
            return Decoded(
                record, [(record.name, hashlib.sha256(pixels.tobytes()).hexdigest()[:32], float(pixels.mean()), pixels)]
            )
        if record.path.lower().endswith(VOLUME_ENDINGS):
            images = [
                (f"{record.name}:{z}", im.convert("L" if channels == 1 else "RGB"))
                for z, im in decode_volume(record.path)
            ]
        else:
            images = [(record.name, decode_image(record.path, channels))]
    except BadFile as error:
        return Decoded(record, [], str(error))
    slices = []
    for name, image in images:
        image = to_square(image, square)
        content = hashlib.sha256(image.tobytes()).hexdigest()[:32]
        mean = float(np.asarray(image).mean())
        pixels = np.asarray(to_resolution(image, crop, resolution))
        slices.append(
            (name, content, mean, pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        )
    return Decoded(record, slices)


def _decode_phantoms(records: list[Record], channels: int, resolution: int) -> list[Decoded]:
    return [decode(r, channels, resolution, 0, resolution) for r in records]


def source_geometry(source: Source, resolution: int, crop: int) -> dict:
    """The most common size of the source, the square that holds it, the crop, the resolution."""
    if source.layout == "phantoms":
        if crop:
            raise DataError("--crop is for real slices; phantoms are drawn at the size asked for")
        return {
            "source_height": resolution,
            "source_width": resolution,
            "square": resolution,
            "crop": 0,
            "resolution": resolution,
        }
    sizes: Counter[tuple[int, int]] = Counter()
    step = max(len(source.records) // 64, 1)
    for record in source.records[::step]:
        try:
            if record.path.lower().endswith(VOLUME_ENDINGS):
                sizes.update(image.size for _, image in decode_volume(record.path)[:1])
                continue
            with Image.open(record.path) as image:
                if image.width * image.height <= MAX_PIXELS:
                    size = image.size
                    turned = image.getexif().get(0x0112, 1) >= 5
                    sizes[size[::-1] if turned else size] += 1
        except Exception:  # bad files are reported when they are decoded
            continue
    if not sizes:
        raise DataError(f"--data {source.spec}: none of the files can be read as an image")
    (w, h), _ = sizes.most_common(1)[0]
    square = max(w, h)
    if crop > square:
        raise DataError(f"--crop {crop}: larger than the padded slices ({square} px); use a smaller crop")
    return {"source_height": h, "source_width": w, "square": square, "crop": crop, "resolution": resolution}


def build_pack(
    source: Source, out: str | Path, *, resolution: int, channels: int = 1, crop: int = 0, workers: int | None = None,
    progress: bool = True, max_bad: float = MAX_BAD, log=print,
) -> Pack:  # fmt: skip
    """Decode `source` in parallel and write `out` atomically. DataError when too many files are bad or space is short."""
    out = Path(out)
    geometry = source_geometry(source, resolution, crop)
    out.parent.mkdir(parents=True, exist_ok=True)
    need = len(source.records) * channels * resolution**2
    free = shutil.disk_usage(out.parent).free
    if free < need * 1.05 + 1e7:
        raise DataError(
            f"{out.parent}: the pack needs {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; set BRAIN_PACK_DIR to another disk"
        )
    index: dict[str, list] = {"labels": [], "subjects": [], "names": [], "hashes": []}
    scans, means, bad = [], [], []
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.seek(DATA_OFFSET)
            for done in _decode_all(source, geometry, channels, workers, progress):
                if done.bad:
                    bad.append(f"{done.record.name}: {done.bad}")
                for name, content, mean, pixels in done.slices:
                    file.write(pixels.tobytes())
                    index["labels"].append(done.record.label)
                    index["subjects"].append(done.record.subject)
                    index["names"].append(name)
                    index["hashes"].append(content)
                    scans.append(done.record.scan)
                    means.append(mean)
            report_bad(bad, len(source.records), max_bad, source, log)
            keep = drop_dark_scans(scans, means, log)
            report_duplicates(index, source, log)
            meta = {"layout": source.layout, "split_rule": source.split_rule, "bad": bad[:1000], "source_digest": source.digest(),
                    "subject_kind": source.subject_kind}  # fmt: skip
            shape = [len(keep), channels, resolution, resolution]
            _close_pack(file, temporary, keep, index, shape, source.classes, geometry, meta)
        os.replace(temporary, out)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return open_pack(out, verify=True)


def _decode_all(source: Source, geometry: dict, channels: int, workers: int | None, progress: bool):
    """Decoded records in the order of the source."""
    from tqdm import tqdm

    workers = workers or max(min(len(os.sched_getaffinity(0)), 16), 1)
    records = source.records
    bar = tqdm(
        total=len(records), unit=" files", desc="decoding", disable=not progress, mininterval=1.0, dynamic_ncols=True
    )
    with bar:
        if source.layout == "phantoms" and workers > 1 and len(records) >= 400:
            # Drawing is Python and numpy, which threads would not speed up.
            chunks = [records[i : i + 50] for i in range(0, len(records), 50)]
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                args = ([channels] * len(chunks), [geometry["resolution"]] * len(chunks))
                for part in pool.map(_decode_phantoms, chunks, *args):
                    bar.update(len(part))
                    yield from part
            return
        args = (channels, geometry["square"], geometry["crop"], geometry["resolution"])
        with ThreadPoolExecutor(workers) as pool:  # Pillow decodes without the interpreter lock
            # In blocks, so that a slow disk for writing cannot fill the memory with decoded slices.
            for i in range(0, len(records), 256):
                for done in pool.map(lambda r: decode(r, *args), records[i : i + 256]):
                    bar.update(1)
                    yield done


def report_bad(bad: list[str], total: int, max_bad: float, source: Source, log) -> None:
    """List the unreadable files; stop when they are too many."""
    if not bad:
        return
    text = "\n".join(f"    {line}" for line in bad[:50]) + (f"\n    and {len(bad) - 50} more" if len(bad) > 50 else "")
    if len(bad) > max(max_bad * total, 1):
        raise DataError(
            f"--data {source.spec}: {len(bad)} of {total} files cannot be used, more than --max-bad {max_bad:g} allows; "
            f"repair or remove them, or raise --max-bad:\n{text}"
        )
    log(f"warning: {len(bad)} of {total} files cannot be used and are left out:\n{text}")


def drop_dark_scans(scans: list[str], means: list[float], log) -> np.ndarray:
    """Rows to keep: scans that are almost black beside the others are corrupt (two of ADNI's are)."""
    if not means:
        raise DataError("no slices are left; check the folder")
    by_scan: dict[str, list[float]] = {}
    for scan, mean in zip(scans, means, strict=True):
        by_scan.setdefault(scan, []).append(mean)
    scan_mean = {scan: float(np.mean(values)) for scan, values in by_scan.items()}
    limit = DARK_SCAN * float(np.median(list(scan_mean.values())))
    dark = {scan for scan, mean in scan_mean.items() if mean < limit} if len(scan_mean) >= 10 else set()
    if dark:
        names = ", ".join(sorted(dark)[:10])
        log(f"warning: {len(dark)} scans are almost black (mean below {limit:.1f}) and are left out: {names}")
    return np.array([i for i, scan in enumerate(scans) if scan not in dark], dtype=np.int64)


def report_duplicates(index: dict[str, list], source: Source, log) -> None:
    """Say when one picture has two labels, or is in another split too."""
    first: dict[str, int] = {}
    clash = []
    for i, content in enumerate(index["hashes"]):
        j = first.setdefault(content, i)
        if index["labels"][i] != index["labels"][j]:
            clash.append(f"{index['names'][j]} = {index['names'][i]}")
    if clash:
        log(f"warning: {len(clash)} pictures stand under two labels: {'; '.join(clash[:5])}")
    by_size: dict[int, list[str]] = {}
    for r in source.records:
        with contextlib.suppress(OSError):
            by_size.setdefault(os.path.getsize(r.path) if r.path else -1, []).append(r.path)
    both = []
    for r in source.other:
        with contextlib.suppress(OSError):
            mine = by_size.get(os.path.getsize(r.path), [])
            if mine and (content := Path(r.path).read_bytes()) and any(Path(p).read_bytes() == content for p in mine):
                both.append(r.name)
    if both:
        log(f"warning: {len(both)} pictures of this split are in another split too: {', '.join(both[:5])}")


def _close_pack(file, temporary: str, keep: np.ndarray, index: dict, shape: list[int], classes, geometry, meta) -> None:
    """Drop the rows that are not kept, then write the index and the header."""
    file.flush()
    row = int(np.prod(shape[1:]))
    images = np.memmap(temporary, np.uint8, "r+", DATA_OFFSET, (len(index["labels"]), row))
    if len(keep) < len(images):
        for to, origin in enumerate(keep):
            images[to] = images[origin]
        images.flush()
        index = {name: [values[i] for i in keep] for name, values in index.items()}
        file.truncate(DATA_OFFSET + len(keep) * row)
    digest = hashlib.sha256()
    for i in range(0, len(keep), 256):
        digest.update(images[i : min(i + 256, len(keep))].tobytes())
    del images
    about = {
        **index,
        "shape": shape,
        "classes": classes,
        "geometry": geometry,
        "meta": meta,
        "sha256": digest.hexdigest(),
    }
    text = json.dumps(about, sort_keys=True).encode()
    offset = DATA_OFFSET + int(np.prod(shape))
    file.seek(offset)
    file.write(text)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, offset, len(text), hashlib.sha256(text).digest()))
    file.flush()
    os.fsync(file.fileno())


# --- opening ----------------------------------------------------------------------------------------------------------
def open_pack(path: str | Path, verify: bool = False) -> Pack:
    """Open a pack, checking that the index is whole and fits the file; `verify` reads and checks every image too."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(HEADER.size)
            if len(head) < HEADER.size or head[:8] != MAGIC:
                raise DataError(f"{path}: not a pack; make one with `python -m data.pack FOLDER --out FILE.pack`")
            _, offset, length, digest = HEADER.unpack(head)
            if offset < DATA_OFFSET or offset + length != size:
                raise DataError(f"{path}: truncated or damaged pack; delete it and build it again")
            file.seek(offset)
            text = file.read(length)
        if hashlib.sha256(text).digest() != digest:
            raise DataError(
                f"{path}: damaged pack (its index does not match its checksum); delete it and build it again"
            )
        about = json.loads(text)
        pack = _checked(path, about, offset)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a usable pack ({error}); delete it and build it again") from None
    if verify:
        actual = hashlib.sha256()
        for i in range(0, len(pack.images), 256):
            actual.update(pack.images[i : i + 256].tobytes())
        if actual.hexdigest() != about["sha256"]:
            raise DataError(
                f"{path}: damaged pack (its images do not match their checksum); delete it and build it again"
            )
    return pack


def _checked(path: Path, about: dict, offset: int) -> Pack:
    """Type and range checks of an index, before anything is mapped."""
    n, c, h, w = about["shape"]
    if not (all(type(v) is int for v in (n, c, h, w)) and n > 0 and c in (1, 3) and h == w and 1 <= h <= 4096):
        raise ValueError("its shape makes no sense")
    if DATA_OFFSET + n * c * h * w != offset:
        raise ValueError("its shape does not fit the file")
    lists = [about[k] for k in ("labels", "subjects", "names", "hashes")]
    if not all(isinstance(values, list) and len(values) == n for values in lists):
        raise ValueError("its lists do not fit its shape")
    classes, geometry = about["classes"], about["geometry"]
    if not all(isinstance(v, str) for values in [*lists[1:], classes] for v in values) or not isinstance(
        about["meta"], dict
    ):
        raise ValueError("its index holds what it should not")
    labels = np.array(lists[0])
    if labels.dtype.kind != "i" or labels.min() < -1 or labels.max() >= max(len(classes), 0):
        raise ValueError("a label has no class")
    names = ("source_height", "source_width", "square", "crop", "resolution")
    if set(geometry) != set(names) or not all(type(geometry[k]) is int and 0 <= geometry[k] <= 100_000 for k in names):
        raise ValueError("its geometry makes no sense")
    images = np.memmap(path, np.uint8, "r", DATA_OFFSET, (n, c, h, w))
    digest = hashlib.sha256(f"{about['sha256']} {lists[0]} {classes}".encode()).hexdigest()
    return Pack(str(path), images, labels.astype(np.int64), classes, *lists[1:], geometry, about["meta"], digest)


def cache_folder() -> Path:
    """Where packs are kept: $BRAIN_PACK_DIR, else the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("BRAIN_PACK_DIR") or os.path.join(base, "brain-slices"))


def ensure_pack(
    spec: str, *, resolution: int, channels: int = 1, crop: int = 0, split: str = "train", out: str | Path | None = None,
    cache_dir: str | Path | None = None, progress: bool = True, max_bad: float = MAX_BAD, log=print,
) -> Pack:  # fmt: skip
    """The pack of a data spec: opened if it is one, found in the cache if the source has not changed, else built.

    Of several processes that ask for the same pack at once, one builds it and the others wait.
    """
    if spec.endswith(".pack"):
        pack = open_pack(spec)
        if pack.images.shape[1:] != (channels, resolution, resolution):
            c, r = pack.images.shape[1:3]
            raise DataError(
                f"{spec}: holds {c} channel(s) at {r} px, not {channels} at {resolution}; use --resolution {r} --channels {c}"
            )
        log(f"{spec}: {len(pack.labels):,} slices at {resolution} px; split: {pack.meta.get('split_rule', 'unknown')}")
        return pack
    source = find_source(spec, split)
    log(source.describe())
    for warning in source.warnings:
        log(f"warning: {warning}")
    key = hashlib.sha256(f"{source.digest()} {resolution} {channels} {crop} {split} v1".encode()).hexdigest()[:16]
    path = (
        Path(out)
        if out
        else Path(cache_dir or cache_folder()) / f"{source.layout.replace(' ', '-').lower()}-{resolution}-{key}.pack"
    )
    digest = source.digest()

    def current() -> Pack | None:
        if path.exists():
            with contextlib.suppress(DataError):
                pack = open_pack(path)
                if (
                    pack.meta.get("source_digest") == digest
                    and pack.images.shape[1:] == (channels, resolution, resolution)
                    and pack.geometry["crop"] == crop
                ):
                    return pack
        return None

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while (pack := current()) is None:
            with _only_builder(path) as alone:
                if alone and (pack := current()) is None:
                    kwargs = dict(
                        resolution=resolution, channels=channels, crop=crop, progress=progress, max_bad=max_bad, log=log
                    )
                    return build_pack(source, path, **kwargs)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the pack cannot be written ({error.strerror or error}); set BRAIN_PACK_DIR to another folder"
        ) from None
    return pack


@contextlib.contextmanager
def _only_builder(path: Path):
    """True for the one process that may build `path`; the others wait until it is built or its builder is dead."""
    import threading

    lock = path.with_name(f".{path.name}.lock")
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > LOCK_STALE:
                lock.unlink()
        time.sleep(0.5)
        yield False
        return
    finished = threading.Event()

    def beat() -> None:
        while not finished.wait(LOCK_STALE / 8):
            with contextlib.suppress(OSError):
                os.utime(lock)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield True
    finally:
        finished.set()
        lock.unlink(missing_ok=True)


# --- the command ------------------------------------------------------------------------------------------------------
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.pack", description="Decode slices once into one .pack file.")
    parser.add_argument("source", metavar="SRC", help="folder of slices, NIfTI volume, or phantom[:N]")
    parser.add_argument("--out", help="the pack to write (default: in the cache that the train scripts use)")
    parser.add_argument("--resolution", type=int, default=256, help="side in pixels (default 256)")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=1)
    parser.add_argument("--crop", type=int, default=0, help="crop this many pixels from the middle first")
    parser.add_argument("--split", choices=("train", "test", "val", "all"), default="train")
    parser.add_argument("--max-bad", type=float, default=MAX_BAD, help="stop when more than this share of files is bad")
    args = parser.parse_args(argv)
    if not 8 <= args.resolution <= 2048 or args.crop < 0:
        parser.error("--resolution must be from 8 to 2048, --crop not negative")
    started = time.monotonic()
    try:
        pack = ensure_pack(
            args.source, resolution=args.resolution, channels=args.channels, crop=args.crop, split=args.split, out=args.out,
            max_bad=args.max_bad,
        )  # fmt: skip
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 78
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    size = os.path.getsize(pack.path) / 1e6
    print(f"{pack.path}: {len(pack.labels):,} slices, {size:.0f} MB, {time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
