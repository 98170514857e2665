"""metrics.jsonl (the truth), TensorBoard (a view of it), the progress bar, loss plots and picture grids."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from jobs.rundir import atomic_write

BACKGROUND = 24  # grey of the lines between pictures: darker than a brain, lighter than its background
INK = 220


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------
def _lines(path: Path) -> Iterator[tuple[bytes, dict]]:
    """(line, row) of every whole row, in order."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("nimg"), int) and line.endswith(b"\n"):
                    yield line, row


def read_metrics(path: Path) -> list[dict]:
    """The rows, in order; an unfinished last line and anything that is no row are left out. Values that were not finite
    are None."""
    return [row for _, row in _lines(path)]


class MetricsLog:
    """Appends rows durably. A checkpoint at `resume_nimg` images implies the rows up to there; opening drops the later
    ones, which the resumed run writes again. -1 drops all (a fresh run), None none but an unfinished last line."""

    def __init__(self, path: Path, resume_nimg: int | None = None, say: Callable[[str], None] = print):
        self.path, self.say = Path(path), say
        self._pending = b""  # rows that could not be written yet
        self.truncate(resume_nimg)

    def truncate(self, nimg: int | None) -> None:
        """Drop the rows after `nimg`, and a line that a killed process left unfinished."""
        whole = {row["nimg"]: line for line, row in _lines(self.path) if nimg is None or row["nimg"] <= nimg}
        waiting = {row["nimg"]: line for line, row in _rows_of(self._pending) if nimg is None or row["nimg"] <= nimg}
        # A write that failed at its fsync has left its rows in the file: they wait no longer.
        self._pending = b"".join(line for at, line in waiting.items() if at not in whole)
        kept = b"".join(whole.values())
        self._size = len(kept)
        if self.path.exists() and self.path.stat().st_size != len(kept):
            atomic_write(self.path, kept)

    def append(self, row: dict) -> None:
        """One object, one line, on disk on return. JSON has no NaN: such values become null and are named under
        `nonfinite`. On a full disk the rows wait in memory and training goes on."""
        row = {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            row = {**row, **dict.fromkeys(bad), "nonfinite": bad}
        waiting = bool(self._pending)
        self._pending += json.dumps(row, allow_nan=False).encode() + b"\n"
        try:
            with open(self.path, "ab") as file:
                file.truncate(self._size)  # what a failed write left
                file.write(self._pending)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not waiting:
                self.say(
                    f"WARNING: {self.path} cannot be written ({error.strerror}); rows are kept until it can. Free some space"
                )
            return
        self._size += len(self._pending)
        self._pending = b""


def _rows_of(lines: bytes) -> Iterator[tuple[bytes, dict]]:
    for line in lines.splitlines(keepends=True):
        yield line, json.loads(line)


class Averages:
    """Means of scalars since the last reset, summed on the device so that a step does not wait for the GPU."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor | float]) -> None:
        """One more value of each; scalars on any device."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().double()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """{name: mean since the last reset}; this waits for the device."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def reset(self) -> None:
        """Begin the next interval."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict:
        """What has been summed so far: a resumed interval goes on."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict."""
        self.sums, self.counts = {k: v.clone() for k, v in state["sums"].items()}, dict(state["counts"])


# --- TensorBoard and the terminal ------------------------------------------------------------------------------------
class TensorBoard:
    """Scalars and pictures over images seen. A view: where it cannot be written, training goes on without it.

    `folder` None (ranks other than 0) makes an object that does nothing. `purge_step`: what an earlier attempt wrote
    from there on is hidden; resumed at nimg, whose row is kept, that is nimg + 1.
    """

    def __init__(self, folder: Path | None, purge_step: int | None = None, say: Callable[[str], None] = print):
        self.folder, self.say, self.writer = folder, say, None
        if folder is not None:
            threading.excepthook = _no_traceback_of_tensorboard
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._try(lambda: setattr(self, "writer", SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)))

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except (OSError, ValueError) as error:  # ValueError: a name that is no text
            self.writer = None
            reason = getattr(error, "strerror", None) or error
            self.say(
                f"WARNING: TensorBoard logs in {self.folder} cannot be written ({reason}); metrics.jsonl has every row"
            )

    def scalars(self, row: dict, nimg: int) -> None:
        """Write the columns of a log row, each under its tag, at `nimg` images."""

        def write():
            for name, value in row.items():
                if isinstance(value, (int, float)) and name not in ("nimg", "kimg"):
                    self.writer.add_scalar(_tag(name), value, nimg)
            self.writer.flush()  # a killed process would lose what is not flushed

        if self.writer is not None:
            self._try(write)

    def image(self, name: str, picture: Image.Image, nimg: int) -> None:
        """Write a picture at `nimg` images."""
        if self.writer is not None:
            layout = "HW" if picture.mode == "L" else "HWC"
            self._try(lambda: self.writer.add_image(name, np.asarray(picture), nimg, dataformats=layout))

    def close(self) -> None:
        """Flush and close the event file."""
        if self.writer is not None:
            self._try(self.writer.close)


def _no_traceback_of_tensorboard(failure, otherwise=threading.excepthook) -> None:
    """TensorBoard's writer thread dies of a full disk with a traceback; the next write says it in a line (see _try)."""
    if not (isinstance(failure.exc_value, OSError) and type(failure.thread).__module__.startswith("tensorboard.")):
        otherwise(failure)


def _tag(name: str) -> str:
    name = re.sub(r"[^\w./-]+", "_", name)  # a class's name is a folder's name, and a tag becomes part of a page
    group = name.split("_")[0]
    groups = {"loss": "loss", "logits": "discriminator", "sign": "discriminator", "r1": "regularisers", "r2": "regularisers",
              "path": "regularisers", "pl": "regularisers", "kl": "regularisers", "diversity": "health", "ada": "health"}  # fmt: skip
    speed = {"img", "sec", "seconds", "gpu", "rss", "data", "checkpoint", "tflops", "peak"}
    return f"{groups.get(group, 'speed' if group in speed else 'other')}/{name}"


class Progress:
    """A tqdm bar on a terminal, one plain line per tick in a log file."""

    def __init__(self, total: int, nimg: int, interactive: bool | None = None):
        self.total, self.start, self.started = total, nimg, time.monotonic()
        self.digits = 1 if total >= 10_000 else 3  # of kimg
        self.bar = None
        if sys.stderr.isatty() if interactive is None else interactive:
            from tqdm import tqdm

            form = f"{{percentage:3.0f}}%|{{bar}}| {{n:.{self.digits}f}}/{{total:.{self.digits}f}} kimg [{{elapsed}}<{{remaining}}{{postfix}}]"
            self.bar = tqdm(total=total / 1000, initial=nimg / 1000, bar_format=form, dynamic_ncols=True)

    def update(self, nimg: int) -> None:
        """Move the bar; the lines of a log file come from tick()."""
        if self.bar is not None:
            self.bar.n = nimg / 1000
            self.bar.update(0)

    def tick(self, nimg: int, row: dict) -> None:
        """Show the figures of a row of metrics.jsonl."""
        speed = row.get("img_per_s") or (nimg - self.start) / max(time.monotonic() - self.started, 1e-9)
        figures = _figures(row)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed:.0f} img/s  {figures}")
            return
        eta = duration(max(self.total - nimg, 0) / speed) if speed > 0 else "?"
        slowness = f"{1000 / speed:.1f}" if speed > 0 else "?"
        print(
            f"kimg {nimg / 1000:.{self.digits}f}/{self.total / 1000:.{self.digits}f}  {min(100 * nimg / max(self.total, 1), 100):.1f}%  img/s {speed:.1f}  "
            f"sec/kimg {slowness}  {_use(row)}ETA {eta}  {figures}".rstrip(),
            flush=True,
        )

    def write(self, text: str) -> None:
        """A line of text, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def _figures(row: dict) -> str:
    """The few figures of a row that say how it goes: losses first, as `D 1.02 G 0.85`."""
    short = {"r1": "r1", "path_length": "pl", "kl": "kl", "ada_p": "ada", "diversity": "div", "gpu_gb": "GB"}
    names = {k: k.removeprefix("loss_") for k in sorted(row) if k.startswith("loss")} | short
    return "  ".join(f"{name} {row[k]:.3g}" for k, name in names.items() if isinstance(row.get(k), (int, float)))


def _use(row: dict) -> str:
    """How the machine is used: `peak 31%  data 0%  save 0.2%  ` of its speed, and of the time spent waiting for them."""
    short = {"peak_share": "peak", "data_wait": "data", "checkpoint_wait": "save"}
    return "".join(f"{name} {100 * row[k]:.2g}%  " for k, name in short.items() if isinstance(row.get(k), (int, float)))


def duration(seconds: float) -> str:
    """5025 -> '1:23:45'."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


# --- pictures ---------------------------------------------------------------------------------------------------------
def image_grid(
    images: np.ndarray, columns: int, pad: int = 2, labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None, column_labels: Sequence[str] | None = None,
) -> Image.Image:  # fmt: skip
    """A grid of uint8 images (N, C, H, W), C = 1 or 3, with `pad` pixels between and around them.

    `labels` are written below each image, `row_labels` left of the rows, `column_labels` above the columns; what does
    not fit is cut.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"image_grid takes uint8 (N, 1 or 3, H, W), got {images.dtype} {images.shape}")
    n, channels, h, w = images.shape
    columns = max(min(columns, n), 1)
    rows, font = -(-n // columns), ImageFont.load_default(10)
    caption = 12 if labels is not None else 0
    top = 12 if column_labels is not None else 0
    left = 0 if row_labels is None else min(int(max(font.getlength(str(t)) for t in row_labels)) + 4, 2 * w + 40)
    size = (left + columns * (w + pad) + pad, top + rows * (h + caption + pad) + pad)
    canvas = Image.new("L" if channels == 1 else "RGB", size, BACKGROUND if channels == 1 else (BACKGROUND,) * 3)
    draw = ImageDraw.Draw(canvas)

    def write(x: float, y: float, text: str, width: int, anchor: str) -> None:
        draw.text(
            (x, y), _cut(str(text), width, font), fill=INK if channels == 1 else (INK,) * 3, font=font, anchor=anchor
        )

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


PANELS = [  # (title, names or beginnings of names of columns), a panel each where the run has them
    ("loss", ("loss",)),
    ("D's logits", ("logits_real", "logits_fake")),
    ("regularisers", ("r1", "r2", "pl_penalty", "path_length", "kl")),
    ("diversity", ("diversity",)),
    ("ADA's p", ("ada_p",)),
    ("loss on other patients", ("val_loss",)),
    ("PSNR of reconstructions, dB", ("val_psnr", "train_psnr", "train_psnr_head")),
    ("SSIM of reconstructions", ("val_ssim", "train_ssim", "train_ssim_head")),
    ("spread of the latents", ("latent_std", "posterior_std")),
]


def plot_losses(
    runs: dict[str, list[dict]] | list[dict], png: Path, from_kimg: float = 0.0, to_kimg: float = math.inf,
    restarts: Sequence[float] = (),
) -> None:  # fmt: skip
    """Write draw_losses() to the file `png`."""
    picture = draw_losses(runs, from_kimg, to_kimg, restarts)
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(png), picture)


def draw_losses(
    runs: dict[str, list[dict]] | list[dict], from_kimg: float = 0.0, to_kimg: float = math.inf,
    restarts: Sequence[float] = (),
) -> bytes:  # fmt: skip
    """A PNG of curves over kimg, one panel per kind; several runs over each other when given {name: rows}. `restarts`:
    kimg at which an attempt began, drawn as thin lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = runs if isinstance(runs, dict) else {"": runs}
    runs = {name: [r for r in rows if from_kimg <= r["nimg"] / 1000 <= to_kimg] for name, rows in runs.items()}
    names = sorted({k for rows in runs.values() for row in rows for k, v in row.items() if isinstance(v, (int, float))})
    panels = [(title, [n for n in names if n in wanted or n.startswith(f"{wanted[0]}_")]) for title, wanted in PANELS]
    panels = [(title, columns) for title, columns in panels if columns]
    figure = Figure(figsize=(9, 2.6 * max(len(panels), 1)), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps figures and picks a screen by itself
    axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, columns) in zip(axes, panels, strict=False):
        for i, (run, rows) in enumerate(runs.items()):
            for j, column in enumerate(columns):
                _curve(axis, rows, column, f"{run} {column}".strip(), f"C{(i * len(columns) + j) % 10}")
        for kimg in restarts:
            axis.axvline(kimg, color="0.6", linewidth=0.6, linestyle=":")
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="best", ncols=min(len(columns) * len(runs), 4))
    axes[-1].set_xlabel("thousands of images seen (kimg)")
    if not panels:
        axes[0].text(0.5, 0.5, "no rows yet", ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _curve(axis, rows: list[dict], column: str, label: str, color: str) -> None:
    """One column: as it is when it has few points, else pale with its smoothed line on top."""
    points = [(r["nimg"] / 1000, r[column]) for r in rows if isinstance(r.get(column), (int, float))]
    if not points:
        return
    x, y = np.array(points).T
    many = len(y) > 20
    axis.plot(
        x,
        y,
        color=color,
        alpha=0.3 if many else 1,
        linewidth=1,
        marker="" if len(y) > 1 else ".",
        label="" if many else label,
    )
    if many:
        axis.plot(x, _smooth(y), color=color, linewidth=1.8, label=label)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the curve, corrected at its start."""
    beta = 1 - 1 / max(len(values) / 20, 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = beta * total + (1 - beta) * value, beta * weight + 1 - beta
        out.append(total / weight)
    return np.array(out)
