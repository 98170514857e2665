"""Pictures of predict.py: PNGs read and checked, looping GIFs, strips, pairs, scatter plots. Plain grids are in
jobs/view/grids.py, as training draws them too."""

from __future__ import annotations

import io
import math
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from data.files import SMALL, check_regular
from jobs.view.grids import BACKGROUND, image_grid
from jobs.view.plots import label_of

DENOISE_COLUMNS = 10  # of a strip at most
PAIR_COLUMNS = 8


def is_complete(path: Path, size: tuple[int, int], channels: int = 0, modes: tuple[str, ...] = ()) -> bool:
    """Whether this is a whole PNG of (height, width), a file and no link; its checksums are verified. channels: 1 grey,
    3 colour, 0 either. modes: Pillow's names of other kinds that are wanted instead."""
    modes = modes or {1: ("L",), 3: ("RGB",)}.get(channels, ("L", "RGB"))
    try:
        check_regular(path.lstat(), path, 4 * size[0] * size[1] + SMALL)
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
            return picture.size == size[::-1] and picture.mode in modes
    except Exception:  # a damaged PNG raises almost anything; it is made again
        return False


def as_picture(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def read_picture(path: Path) -> np.ndarray:
    """uint8 (C, H, W) of a PNG that generate wrote."""
    with Image.open(path, formats=("PNG",)) as picture:
        pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def gif_of(images: np.ndarray, fps: int) -> bytes:
    """uint8 (N, C, H, W) as a GIF that loops for ever. Grey is kept exactly, colour is cut to 256 of each frame."""
    frames = [as_picture(image) for image in images]
    if images.shape[1] == 1:
        # Left to itself, Pillow gives all frames the greys that the first one has.
        frames = [Image.frombytes("P", frame.size, frame.tobytes()) for frame in frames]
        for frame in frames:
            frame.putpalette(bytes(grey for grey in range(256) for _ in range(3)))
    buffer = io.BytesIO()
    delay = round(100 / fps) * 10  # a GIF counts in hundredths of a second
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=delay, loop=0, optimize=False)
    return buffer.getvalue()


def scatter_plots(table: list[tuple], what: str, caption: str, most: int = 9) -> bytes:
    """A PNG of (source, x, y, class, subject): `what` by class and by subject (the `most` frequent ones), and w by
    class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slices, styles = [r for r in table if r[0] != "w"], [r for r in table if r[0] == "w"]
    counts = Counter(r[4] for r in slices if r[4])
    named = {s for s, n in counts.most_common(most) if n > 1}
    panels = [
        (f"{what}, by class", slices, lambda r: r[3]),
        (f"{what}, by subject", slices, lambda r: r[4] if r[4] in named else ""),
        ("latents w, by class", styles, lambda r: r[3]),
    ]
    panels = [panel for panel in panels if panel[1] and (named or not panel[0].endswith("by subject"))]
    figure = Figure(figsize=(5.5 * len(panels), 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, rows, kind_of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        kinds = sorted({kind_of(r) for r in rows} - {""})  # a kind has one colour, real or generated
        groups = sorted({(kind_of(r), r[0]) for r in rows}, key=lambda g: (g[0] != "", g))  # grey below the colours
        for kind, source in groups:
            xy = np.array([r[1:3] for r in rows if (kind_of(r), r[0]) == (kind, source)], float)
            color = f"C{kinds.index(kind) % 10}" if kind else "0.6"
            rest = "" if kind or not kinds or source == "generated" else ", others"
            label = kind if source == "w" else f"{source} {kind}".strip() + rest
            axis.scatter(
                *xy.T,
                s=14,
                marker="x" if source == "generated" else "o",
                linewidths=0.8,
                color=color,
                label=label_of(label[:24]),
                alpha=0.8,
            )
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    figure.suptitle(label_of(caption), fontsize=8, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def pairs_picture(
    fakes: np.ndarray, reals: np.ndarray, pairs: list, laid: np.ndarray | None = None, columns: int = PAIR_COLUMNS
) -> tuple[np.ndarray, dict]:
    """(pictures, captions) for a grid of generated slices above their nearest training slices, and of `laid` between
    them, the generated ones as they were moved for that.

    fakes, reals uint8 (N, C, H, W); pairs N (number of the generated one, of the training one, distance).
    """
    shown, captions, rows = [], [], []
    for start in range(0, len(pairs), columns):
        part = slice(start, start + columns)
        blank = columns - len(fakes[part])
        empty = np.full((blank, *fakes.shape[1:]), BACKGROUND, np.uint8)
        numbers, distances = [f"no. {p[0]}" for p in pairs[part]], [f"{p[2]:.2g}" for p in pairs[part]]
        lines = [("generated", fakes, numbers), ("training", reals, distances)]
        if laid is not None:
            lines.insert(1, ("moved", laid, [""] * len(numbers)))
        for name, images, texts in lines:
            shown += [images[part], empty]
            captions += texts + [""] * blank
            rows.append(name)
    return np.concatenate(shown), {"labels": captions, "row_labels": rows}


def denoise_strip(stages: np.ndarray, captions: list[str], names: list[str], scale: int = 1) -> Image.Image:
    """stages (pictures, frames, 2, C, H, W): two rows per picture, estimates above states, columns spread over the
    frames."""
    count = stages.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, DENOISE_COLUMNS)).round().astype(int))
    cells = stages[:, shown].swapaxes(1, 2).reshape(-1, *stages.shape[3:])
    rows = [text for name in names for text in (f"{name}, estimate", "noisy state")]
    return image_grid(cells, len(shown), row_labels=rows, column_labels=[captions[k] for k in shown], scale=scale)


def denoise_gif(stages: np.ndarray, captions: list[str], fps: int, scale: int = 1) -> bytes:
    """The same as a film: each picture's noisy state, and the estimate beside it; the result stays for two seconds."""
    pairs = min(max(round(math.sqrt(len(stages) / 2)), 1), 4)  # about square, as a pair is twice as wide
    frames = []
    for k, caption in enumerate(captions):
        cells = stages[:, k, ::-1].reshape(-1, *stages.shape[3:])
        titles = [caption, "" if caption == "result" else "estimate"] * min(pairs, len(stages))
        grid = np.asarray(image_grid(cells, 2 * pairs, column_labels=titles, scale=scale))
        frames.append(grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1))
    return gif_of(np.stack(frames + frames[-1:] * (2 * fps)), fps)
