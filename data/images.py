"""One picture file to uint8 pixels as a viewer shows them, and the padding, cropping and resizing of a slice.

Every reason why a file cannot be used is a BadFile with a few words; nothing else leaves this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from data import arrays, reading
from data.files import ARRAYS
from data.reading import BUDGET, BadFile
from data.tiff import MAX_PAGES, tiff_pages

Image.init()
# Pillow's complaints about EXIF and its own bomb warning; the limit below is stricter. Once and here, because
# warnings.catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Only decoders of these are ever tried: others of Pillow's start programs or read further files.
FORMATS = tuple(f for f in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM") if f in Image.OPEN)
MAX_PIXELS = 16 << 20  # of one picture (4096 x 4096); more is refused from the header, before any pixel is decoded
MAX_BYTES = 128 << 20  # of one picture file; pages are read from files of any size
SMALL = 1 << 20  # pixels, and bytes of a file, that are decoded without asking for memory first
BYTES_PER_PIXEL = 20  # held at most while a picture is decoded, whatever its mode
EXIF_ORIENTATION, PHOTOMETRIC, SAMPLE_FORMAT = 0x0112, 262, 339
BLOCK = 1 << 18  # values that are scaled at a time
ZEROS = 0.1  # share of exact zeros from which zero is the background, in values that go below it
OUTSIDE = 0.01  # share of pixels outside of the set's range from which a file is not of the set
BRIGHTER = 2  # times the 90th percentile of a set: such pictures do not decide of its range
LEVELS = 16  # grey levels below which a picture of the set's range is not one of the set, if it had more to show


def read_bytes(path) -> bytes:
    """Contents of a regular file that is neither empty nor absurdly large; never blocks on a pipe."""
    return reading.read_bytes(path, MAX_BYTES)


def open_image(file):
    """Pillow image with a checked header and undecoded pixels. `file`: a path or a binary file object."""
    try:
        if not hasattr(file, "read"):
            file = reading.open_file(file)
        start = file.read(4)
        file.seek(0)
        if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            tiff_pages(file, MAX_PIXELS)
        image = Image.open(file, formats=FORMATS)
    except BadFile:
        raise
    except Image.DecompressionBombError:
        raise BadFile("decompression bomb: too many pixels") from None
    except Image.UnidentifiedImageError:
        raise BadFile("not an image") from None
    except Exception as error:  # broken headers raise almost anything, depending on the format
        raise BadFile(f"damaged header ({type(error).__name__})") from None
    _check_size(image)
    return image


def _check_size(image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadFile(f"decompression bomb: {width}x{height} pixels")
    if width < 1 or height < 1:
        raise BadFile("no pixels")


def image_size(path) -> tuple[int, int]:
    """(height, width) as shown, from the header alone."""
    return look_picture(path)[1]


def look_picture(path) -> tuple[int, tuple[int, int]]:
    """(pages, (height, width) as shown of the first) of a picture file, from headers alone."""
    if os.fspath(path).lower().endswith(ARRAYS):
        stack = arrays.look(path)
        if stack.size[0] * stack.size[1] > MAX_PIXELS:
            raise BadFile(f"decompression bomb: {stack.size[1]}x{stack.size[0]} pixels")
        return stack.pages, stack.size
    with _held(path) as file, open_image(file) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception:  # damaged EXIF: viewers show the picture unturned
            turned = False
        pages = len(_frames(image, file))
    return pages, (width, height) if turned else (height, width)


@contextlib.contextmanager
def _held(path):
    """The open file of a picture; a member of an archive is read whole, as Pillow goes back and forth."""
    if reading.split_member(path):
        yield io.BytesIO(read_bytes(path))
        return
    with reading.open_file(path) as file:
        yield file


def _frames(image, file) -> list[int]:
    """Pillow's numbers of the frames that are pages of a scan. Raises BadFile."""
    if image.format == "TIFF":
        at = file.tell()
        pages = tiff_pages(file, MAX_PIXELS)
        file.seek(at)
        return pages
    count = _gif_frames(file) if image.format == "GIF" else getattr(image, "n_frames", 1)
    if image.format == "JPEG":  # a second frame is a preview that cameras add
        count = 1
    if count > MAX_PAGES:
        raise BadFile(f"more than {MAX_PAGES:,} pages")
    return list(range(count))


def _gif_frames(file) -> int:
    """Number of pictures in a GIF; Pillow would go through millions of empty ones."""
    at, count = file.tell(), 0
    file.seek(0)
    head = file.read(13)
    table = 3 * (2 << (head[10] & 7)) if head[10] & 0x80 else 0
    file.seek(13 + table)
    while (kind := file.read(1)) in (b"\x21", b"\x2c") and count <= MAX_PAGES:
        if kind == b"\x21":
            file.read(1)
        else:
            count += 1
            frame = file.read(9)
            file.read(1 + (3 * (2 << (frame[8] & 7)) if len(frame) == 9 and frame[8] & 0x80 else 0))
        while size := file.read(1):
            if size == b"\0":
                break
            file.seek(size[0], 1)
    file.seek(at)
    return max(count, 1)


# --- decoding ---------------------------------------------------------------------------------------------------------
@dataclass
class Raw:
    """One page before its grey levels are scaled: uint8 (H, W) or (H, W, 3) as shown, or wider values (H, W)."""

    values: np.ndarray
    inverted: bool = False  # 0 is white
    full: float = 0.0  # what the file's format calls white, where it says so

    @property
    def wide(self) -> bool:
        """Whether the set must say what white is."""
        return self.values.dtype != np.uint8


class Levels(NamedTuple):
    """The values of a set that become black and white."""

    low: float
    high: float
    given: bool = False  # by the user: what lies outside is cut off


def decode(data: bytes, channels: int = 1, levels: Levels | None = None) -> np.ndarray:
    """uint8 (H, W, channels) of an encoded picture, as a viewer shows it.

    EXIF rotation is applied, transparency is laid over black, palettes and CMYK are resolved. Wider values are scaled
    by `levels`, those of the set; without it 16 bits run over their full range and others over what the picture
    holds. Raises BadFile.
    """
    with open_image(io.BytesIO(data)) as image:
        return render(_raw(image, channels), channels, levels)


def _room(image):
    """Memory to decode a picture in: large ones wait for it. What is made of the picture is made within."""
    pixels = image.size[0] * image.size[1]
    return BUDGET(pixels * BYTES_PER_PIXEL) if pixels > SMALL else contextlib.nullcontext()


@contextlib.contextmanager
def decode_one(data: bytes, channels: int, levels: Levels | None):
    """(pixels, notes) of a file that holds one picture by its format; what an animation holds besides is said."""
    with open_image(io.BytesIO(data)) as image, _room(image):
        count = getattr(image, "n_frames", 1) if image.format not in ("JPEG", "MPO") else 1
        notes = (f"a file of {count:,} pictures: the first is used",) if count > 1 else ()
        yield render(_raw(image, channels), channels, levels), notes


def file_sha(path) -> str:
    """Hex SHA-256 of a file or a member, read piece by piece. Raises BadFile."""
    with reading.open_file(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except Exception as error:
            raise BadFile(f"cannot be read ({type(error).__name__})") from None


def read_pages(path, pages: list[int], channels: int = 1) -> Iterator[Raw | BadFile]:
    """The pages of one file in the order asked for, or why a page cannot be used; -1 is the only one."""
    try:
        if os.fspath(path).lower().endswith(ARRAYS):
            stack = arrays.look(path)
            need = arrays.cost(path, stack) + BYTES_PER_PIXEL * stack.size[0] * stack.size[1]
            if stack.size[0] * stack.size[1] > MAX_PIXELS:
                raise BadFile(f"decompression bomb: {stack.size[1]}x{stack.size[0]} pixels")
            with BUDGET(need):
                values = arrays.open_stack(path, stack)
                for page in pages:
                    yield _of_array(values, stack, page, channels)
            return
        with _held(path) as file, open_image(file) as image:
            frames = _frames(image, file)
            for page in pages:
                with _room(image):
                    yield _page(image, frames, page, channels)
    except BadFile as error:
        for _ in pages:
            yield error


def _of_array(values: np.ndarray, stack: arrays.Stack, page: int, channels: int) -> Raw | BadFile:
    try:
        if page < 0 and stack.pages > 1:
            raise BadFile(f"{stack.pages} pages, and none was chosen")
        one = arrays.picture(values, stack, max(page, 0))
        return Raw(np.asarray(Image.fromarray(one).convert("L" if channels == 1 else "RGB")) if one.ndim == 3 else one)
    except BadFile as error:
        return error


def _page(image, frames: list[int], page: int, channels: int) -> Raw | BadFile:
    try:
        if not page < len(frames) or (page < 0 and len(frames) > 1):
            raise BadFile(f"it has no page {page}" if page >= 0 else f"{len(frames)} pages, and none was chosen")
        try:
            if (page >= 0 and len(frames) > 1) or frames[0]:
                image.seek(frames[max(page, 0)])
        except Exception as error:
            raise BadFile(f"truncated or damaged ({type(error).__name__})") from None
        _check_size(image)
        return _raw(image, channels)
    except BadFile as error:
        return error


def _raw(image, channels: int) -> Raw:
    tags = getattr(image, "tag_v2", {})
    deep = any(";16" in str(tile[3]) for tile in image.tile) and not image.mode.startswith("I")
    try:
        signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
        negative = tags.get(PHOTOMETRIC) == 0
        image.load()
        shown = _upright(image)
        # Older Pillow opens 16-bit PNG as 32-bit integers.
        if shown.mode.startswith("I;16") or (shown.mode == "I" and image.format in ("PNG", "PPM")):
            return Raw(np.asarray(shown).astype(np.uint16), negative, 65535.0)
        if shown.mode in ("I", "F"):
            values = np.asarray(shown)
            unsigned = shown.mode == "I" and image.format == "TIFF" and not signed
            return Raw(values.view(np.uint32) if unsigned else values, negative)
        if shown.mode == "L" and signed:  # Pillow takes them for unsigned
            return Raw(np.asarray(shown).view(np.int8).astype(np.int16), negative)
        (width, height), mode = shown.size, "L" if channels == 1 else "RGB"
        rows = max(SMALL // width, 1)  # converted band by band: every step of a conversion is a copy of all
        if rows >= height:
            values = _as_array(shown, mode)
        else:
            bands = (shown.crop((0, y, width, min(y + rows, height))) for y in range(0, height, rows))
            values = np.concatenate([_as_array(band, mode) for band in bands])
    except Exception as error:  # truncated and damaged pixel data raise almost anything, depending on the format
        raise BadFile(f"truncated or damaged ({str(error)[:60] or type(error).__name__})") from None
    if deep and 0 < values.max() < 32:  # Pillow keeps the upper byte of 16-bit colours
        raise BadFile("16-bit colours that use the lowest values alone: save grey or 8 bits")
    return Raw(values)


def maybe_wide(path) -> bool:
    """Whether a picture's header says that its values may be more than 8 unsigned bits. Raises BadFile."""
    with _held(path) as file, open_image(file) as image:
        return image.mode.startswith(("I", "F")) or 2 in np.atleast_1d(
            getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, 1)
        )


def _upright(image):
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION, 1) != 1 else image
    except Exception:  # damaged EXIF: viewers show the picture unturned
        return image


def _eight_bit(image):
    """The image in a mode whose conversion to L or RGB is right: no alpha."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _as_array(image, mode: str) -> np.ndarray:
    image = _eight_bit(image)
    return np.asarray(image if image.mode == mode else image.convert(mode), np.uint8)


# --- grey levels ------------------------------------------------------------------------------------------------------
def render(raw: Raw, channels: int = 1, levels: Levels | None = None) -> np.ndarray:
    """uint8 (H, W, channels) of a page: its values from low to high become 0 to 255. BadFile for one whose values are
    not of the set's range."""
    values = raw.values
    if levels is None:
        pair = (0.0, 255.0) if not raw.wide else (0.0, raw.full) if raw.full else range_of([measure(values)])
    else:
        pair = levels[:2] if levels.given else _range_of_file(raw, levels)
    if raw.wide or pair != (0.0, 255.0):
        values = _scaled(values, *pair)
    if raw.inverted and raw.wide:
        values = 255 - values
    values = values.reshape(*values.shape[:2], -1)
    return values if values.shape[2] == channels else np.broadcast_to(values, (*values.shape[:2], channels))


def _scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    out = np.empty(values.shape, np.uint8)
    flat, target, scale = values.reshape(-1), out.reshape(-1), 255 / max(high - low, 1e-30)
    # Values that were standardised within the head: what lies around it is exactly zero, in the middle of the range.
    masked = low < 0 and background_is_zero(values, values[:: max(len(values) - 1, 1), :: max(values.shape[1] - 1, 1)])
    for start in range(0, flat.size, BLOCK):
        with np.errstate(invalid="ignore"):
            block = flat[start : start + BLOCK].astype(np.float64)
        block[~np.isfinite(block)] = 0
        black = block == 0
        block = np.rint(np.clip((block - low) * scale, 0, 255))
        if masked:
            block[black] = 0
        target[start : start + BLOCK] = block
    return out


def background_is_zero(values: np.ndarray, corners: np.ndarray) -> bool:
    """Whether exact zeros (or what is no number) lie around the head: in three of four corners, on a tenth of all."""

    def zeros(part: np.ndarray) -> float:
        return float(((part == 0) | ~np.isfinite(part)).mean())

    return zeros(corners) >= 0.75 and zeros(values) >= ZEROS


class Measure(NamedTuple):
    """What the range of a set is decided from, of one picture."""

    least: float
    most: float
    dark: float  # 0.1st and 99.9th percentile of what is not zero
    bright: float
    whole: bool  # whole numbers alone


def measure(values: np.ndarray) -> Measure:
    """A picture's extremes; what is no number does not count."""
    least, most = _extremes(values)
    some = values.reshape(-1)[:: -(-values.size // SMALL)]
    inside = some[np.isfinite(some) & (some != 0)]
    if not inside.size:
        return Measure(least, most, 0, 0, True)
    dark, bright = np.percentile(inside, [0.1, 99.9])
    whole = inside.dtype.kind != "f" or bool((inside == np.rint(inside)).all())
    return Measure(least, most, float(dark), float(bright), whole)


def _extremes(values: np.ndarray) -> tuple[float, float]:
    """(least, greatest) of what is a number."""
    least, most = float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))
    if math.isinf(least) or math.isinf(most):
        finite = values[np.isfinite(values)]
        least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return (0.0, 0.0) if math.isnan(least) else (least, most)


def range_of(measures: list[Measure]) -> tuple[float, float]:
    """(low, high) that become black and white, of all these pictures together.

    Whole numbers run from 0 to the end of their bits (12-bit values to 4095), floats to 1 or 255 where they nearly
    reach it, else to their maximum. A maximum far above the 99.9th percentiles is an outlier, and a few pictures far
    brighter than the rest are not of the set. Values below zero, more than a few, are signed: they run from their
    minimum.
    """
    usual = BRIGHTER * float(np.percentile([m.bright for m in measures], 90))
    measures = [m for m in measures if m.bright <= usual] or measures if usual > 0 else measures
    least, most = min(m.least for m in measures), max(m.most for m in measures)
    bottom = float(np.percentile([m.dark for m in measures], 5))
    top = float(np.percentile([m.bright for m in measures], 95))
    if most > 4 * top > 0:
        most = top
    if bottom < -0.05 * max(abs(most), abs(top)):
        low = least if least > 4 * bottom else bottom
        return low, most if most > low else low + 1.0
    if all(m.whole for m in measures) and most <= 65535:
        return 0.0, float((1 << max(math.ceil(most).bit_length(), 8)) - 1)
    near = next((full for full in (1.0, 255.0) if full / 2 < most <= full), most)
    return 0.0, near if near > 0 else 1.0


def _range_of_file(raw: Raw, levels: Levels) -> tuple[float, float]:
    """The set's range, if this picture's values are of it; what is plainly the same in another type has its own.
    BadFile for others."""
    values, (low, high) = raw.values, levels[:2]
    eight = (low, high) == (0.0, 255.0)
    if eight and not raw.wide:
        return low, high
    least, most = _extremes(values)
    with np.errstate(invalid="ignore"):
        slack = 0.001 * (high - low)
        outside = float((values > high + slack).mean() + (values < low - max(slack, 0.05 * (high - low))).mean())
    if eight and least >= 0:
        for full in (65535.0,) if raw.full else (1.0,) if values.dtype.kind == "f" else ():
            if full / 2 < most <= full:
                return 0.0, full
    if not raw.wide and high > 255:
        raise BadFile(f"8-bit values in a set whose values reach {high:g}")
    if outside > OUTSIDE:
        raise BadFile(f"{100 * outside:.2g} % of its values lie outside of {low:g} to {high:g}, the set's range")
    # An empty slice of the set is dark too, but has few values; a float picture of another scale has none above 1.
    other = most > 255 if values.dtype.kind in "ui" else most <= 1 < high / LEVELS
    if low == 0 and 0 < most * LEVELS <= high and other:
        raise BadFile(f"its values end at {most:g} in a set whose values reach {high:g}")
    return low, high


# --- geometry ---------------------------------------------------------------------------------------------------------
def resize(pixels, height, width):
    """uint8 (H, W, C) resized with antialiasing: Lanczos down, bicubic up.

    Over- and undershoot is clamped to 0..255.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    kernel = Image.Resampling.LANCZOS if height < pixels.shape[0] else Image.Resampling.BICUBIC
    planes = [Image.fromarray(np.ascontiguousarray(pixels[:, :, c])) for c in range(pixels.shape[2])]
    return np.stack([np.asarray(p.resize((width, height), kernel)) for p in planes], axis=2)


def pad_or_crop(pixels, height, width):
    """uint8 (H, W, C) to (height, width, C), the middle staying in the middle; black is added, nothing is squashed."""
    for axis, size in ((0, height), (1, width)):
        old = pixels.shape[axis]
        if old > size:
            pixels = pixels.take(range((old - size) // 2, (old - size) // 2 + size), axis)
        elif old < size:
            room = [(0, 0)] * 3
            room[axis] = ((size - old) // 2, size - old - (size - old) // 2)
            pixels = np.pad(pixels, room)
    return pixels


def fit_square(pixels, square, crop, resolution):
    """uint8 (H, W, C) to (resolution, resolution, C): pad to `square` (what is larger is scaled down first, keeping its
    aspect), crop `crop` pixels (0: all) from the middle, resize."""
    height, width = pixels.shape[:2]
    if max(height, width) > square:
        scale = square / max(height, width)
        pixels = resize(pixels, max(round(height * scale), 1), max(round(width * scale), 1))
    pixels = pad_or_crop(pixels, square, square)
    side = crop or square
    return resize(pad_or_crop(pixels, side, side), resolution, resolution)
