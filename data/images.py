"""One picture file to uint8 pixels as a viewer shows them, and the padding, cropping and resizing of a slice.

Every reason why a file cannot be used is a BadFile with a few words; nothing else leaves this module.
"""

import io
import os
import stat
import warnings

import numpy as np
from PIL import Image, ImageOps

Image.init()
# Pillow's complaints about EXIF and its own bomb warning; the limit below is stricter. Once and here, because
# warnings.catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Only decoders of these are ever tried: others of Pillow's start programs or read further files.
FORMATS = tuple(f for f in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM") if f in Image.OPEN)
MAX_PIXELS = 64 << 20  # of one picture; more is refused from the header, before any pixel is decoded
MAX_BYTES = 512 << 20  # of one picture file
EXIF_ORIENTATION = 0x0112


class BadFile(Exception):
    """This file cannot be used; the message says why in a few words, without the file's name."""


def read_bytes(path):
    """Contents of a regular file that is neither empty nor absurdly large; never blocks on a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise BadFile("not a regular file")
            if info.st_size == 0:
                raise BadFile("zero bytes")
            if info.st_size > MAX_BYTES:
                raise BadFile(f"{info.st_size >> 20} MB is no slice")
            return file.read()
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None


def open_image(file):
    """Pillow image with a checked header and undecoded pixels. `file`: a path or a binary file object."""
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadFile("decompression bomb: too many pixels") from None
    except Image.UnidentifiedImageError:
        raise BadFile("not an image") from None
    except Exception as error:  # broken headers raise almost anything, depending on the format
        raise BadFile(f"damaged header ({type(error).__name__})") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadFile(f"decompression bomb: {width}x{height} pixels")
    if width < 1 or height < 1:
        raise BadFile("no pixels")
    return image


def image_size(path):
    """(height, width) as shown, from the header alone."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadFile("not a regular file")
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None
    with open_image(path) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        except Exception:  # damaged EXIF: viewers show the picture unturned
            turned = False
    return (width, height) if turned else (height, width)


def decode(data, channels=1):
    """uint8 (H, W, channels) of an encoded picture, as a viewer shows it.

    EXIF rotation is applied, transparency is laid over black, palettes and CMYK are resolved, 16 bits become 8 over the
    full range (v / 257). 32-bit integers and floats have no fixed range: see `_from_wide`. Raises BadFile.
    """
    with open_image(io.BytesIO(data)) as image:
        try:
            image.load()
            image = _eight_bit(_upright(image), image.format).convert("L" if channels == 1 else "RGB")
        except Exception as error:  # truncated and damaged pixel data raise almost anything, depending on the format
            raise BadFile(f"truncated or damaged ({str(error)[:60] or type(error).__name__})") from None
        pixels = np.asarray(image, np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def _upright(image):
    try:
        return ImageOps.exif_transpose(image) if image.getexif().get(EXIF_ORIENTATION, 1) != 1 else image
    except Exception:  # damaged EXIF: viewers show the picture unturned
        return image


def _eight_bit(image, file_format):
    """The image in a mode whose conversion to L or RGB is right: no alpha, at most 8 bits."""
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        # Older Pillow opens 16-bit PNG as 32-bit integers.
        full = 65535.0 if image.mode == "I" and file_format in ("PNG", "PPM") else None
        return Image.fromarray(_from_wide(np.asarray(image, np.float64), full))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _from_wide(values, full=None):
    """uint8 of 32-bit integers or floats. Without a known full range: 0..1 is stretched to 255, 0..255 is taken as it
    is, 0..65535 is taken as 16-bit, anything else runs from its minimum to its maximum. NaN and infinity become 0."""
    values = np.where(np.isfinite(values), values, 0.0)
    low, high = float(values.min()), float(values.max())
    if full is None:
        if low >= 0 and high <= 65535:
            full = 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0
        else:
            values, full = values - low, max(high - low, 1e-30)
    return np.rint(np.clip(values / full, 0, 1) * 255).astype(np.uint8)


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
