"""Grids of pictures with captions, as PNG."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from data.files import atomic_write

BACKGROUND = 24  # grey of the lines between pictures: darker than a brain, lighter than its background
INK = 220
PAD = 2  # pixels between and around pictures


# --- pictures ---------------------------------------------------------------------------------------------------------
def image_grid(
    images: np.ndarray,
    columns: int,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    note: str = "",
    scale: int = 1,
) -> Image.Image:
    """A grid of uint8 images (N, C, H, W), C = 1 or 3, each `scale` times as large, with 2 pixels between and around
    them.

    `labels` are written below each image, `row_labels` left of the rows, `column_labels` above the columns; what does
    not fit is cut. `note` stands below the grid, in as many lines as it takes.
    """
    images, pad = enlarged(np.asarray(images), scale), PAD
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"image_grid takes uint8 (N, 1 or 3, H, W), got {images.dtype} {images.shape}")
    n, channels, h, w = images.shape
    columns = max(min(columns, n), 1)
    rows, font = -(-n // columns), ImageFont.load_default(10)
    caption = 12 if labels is not None else 0
    top = 12 if column_labels is not None else 0
    left = 0 if row_labels is None else min(int(max(font.getlength(str(t)) for t in row_labels)) + 4, 2 * w + 40)
    width, height = left + columns * (w + pad) + pad, top + rows * (h + caption + pad) + pad
    lines = _wrapped(note, width - 2 * pad, font)
    size = (width, height + 12 * len(lines))
    canvas = Image.new("L" if channels == 1 else "RGB", size, BACKGROUND if channels == 1 else (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)

    def write(x: float, y: float, text: str, width: int, anchor: str) -> None:
        draw.text(
            (x, y), _cut(str(text), width, font), fill=INK if channels == 1 else (INK,) * 3, font=font, anchor=anchor
        )

    for k, line in enumerate(lines):
        write(pad, height + 12 * k, line, width, "lt")
    for i, image in enumerate(images):
        x, y = left + pad + i % columns * (w + pad), top + pad + i // columns * (h + caption + pad)
        canvas.paste(
            Image.fromarray(image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))), (x, y)
        )
        if labels is not None:
            write(x + w / 2, y + h, labels[i], w + pad, "mt")
        if column_labels is not None and i < columns:
            write(x + w / 2, 1, column_labels[i], w + pad, "mt")
        if row_labels is not None and i % columns == 0:
            write(2, y + h / 2, row_labels[i // columns], left, "lm")
    return canvas


def beside_reals(samples: Image.Image, reals: Path) -> Image.Image:
    """Samples at the left of the picture in the file `reals`, each under its title; where there is none, alone."""
    parts = {"samples": samples}
    with contextlib.suppress(OSError), Image.open(reals, formats=("PNG",)) as picture:
        parts["real slices"] = picture.convert(samples.mode)
    size = sum(part.width + 8 for part in parts.values()) - 8, 18 + max(part.height for part in parts.values())
    canvas = Image.new(samples.mode, size, BACKGROUND if samples.mode == "L" else (BACKGROUND,) * 3)
    draw, font, x = ImageDraw.Draw(canvas), ImageFont.load_default(12), 0
    for title, part in parts.items():
        draw.text((x + PAD, 2), title, fill=INK if samples.mode == "L" else (INK,) * 3, font=font)
        canvas.paste(part, (x, 18))
        x += part.width + 8
    return canvas


def enlarged(images: np.ndarray, scale: int) -> np.ndarray:
    """(..., H, W) -> (..., scale * H, scale * W): each pixel becomes a square of the same, so that nothing is
    invented."""
    return images.repeat(scale, -2).repeat(scale, -1) if scale > 1 else images


def _wrapped(text: str, width: float, font) -> list[str]:
    """The words of a text in lines of at most so many pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _cut(text: str, width: float, font) -> str:
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text


def save_png(path: Path, picture: Image.Image, text: dict[str, str] | None = None) -> None:
    """Write a PNG atomically, with text chunks that say what it is."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(path), buffer.getvalue())
