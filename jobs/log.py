"""metrics.jsonl (the truth), TensorBoard (a view of it), the progress bar, loss plots and picture grids."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from jobs.rundir import atomic_write

BACKGROUND = 24  # grey of the lines between pictures: darker than a brain, lighter than its background


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------
def read_metrics(path: Path) -> list[dict]:
    """The rows, in order; an unfinished last line and anything that is no row are left out."""
    found = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("nimg"), int) and line.endswith("\n"):
                    found.append(row)
    return found


class MetricsLog:
    """Appends rows durably. Opening it at `resume_nimg` drops the rows after it: the resumed run will write them again."""

    def __init__(self, path: Path, resume_nimg: int = -1):
        self.path = Path(path)
        self.truncate(resume_nimg)

    def truncate(self, nimg: int) -> None:
        if self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["nimg"] <= nimg]
            atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: dict) -> None:
        """One object, one line. JSON has no NaN: such values become null and are named under `nonfinite`."""
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        if bad:
            row = {**row, **dict.fromkeys(bad), "nonfinite": bad}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Averages:
    """Means of scalars since the last reset, summed on the device so that a step does not wait for the GPU."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def reset(self) -> None:
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.counts = {k: v.clone() for k, v in state["sums"].items()}, dict(state["counts"])


# --- TensorBoard and the terminal ------------------------------------------------------------------------------------
class TensorBoard:
    """Scalars and pictures over images seen. `purge_step`: what an earlier attempt wrote from there on is hidden."""

    def __init__(self, folder: Path, purge_step: int | None = None):
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)

    def scalars(self, row: dict, nimg: int) -> None:
        for name, value in row.items():
            if isinstance(value, (int, float)) and name not in ("nimg", "kimg"):
                self.writer.add_scalar(_tag(name), value, nimg)
        self.writer.flush()

    def image(self, name: str, picture: Image.Image, nimg: int) -> None:
        self.writer.add_image(name, np.asarray(picture), nimg, dataformats="HW" if picture.mode == "L" else "HWC")

    def close(self) -> None:
        self.writer.close()


def _tag(name: str) -> str:
    group = name.split("_")[0]
    groups = {"loss": "loss", "logits": "discriminator", "sign": "discriminator", "r1": "regularisers", "r2": "regularisers",
              "path": "regularisers", "pl": "regularisers", "diversity": "health", "ada": "health"}  # fmt: skip
    return f"{groups.get(group, 'speed')}/{name}"


class Progress:
    """A tqdm bar on a terminal, one plain line per tick in a log file."""

    def __init__(self, total: int, nimg: int, interactive: bool | None = None):
        self.total, self.start, self.started = total, nimg, time.monotonic()
        self.bar = None
        if sys.stderr.isatty() if interactive is None else interactive:
            from tqdm import tqdm

            form = "{percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} kimg [{elapsed}<{remaining}{postfix}]"
            self.bar = tqdm(total=total / 1000, initial=nimg / 1000, bar_format=form, dynamic_ncols=True)

    def update(self, nimg: int) -> None:
        if self.bar is not None:
            self.bar.n = nimg / 1000
            self.bar.update(0)

    def tick(self, nimg: int, row: dict) -> None:
        figures = {"D": row.get("loss_D"), "G": row.get("loss_G"), "div": row.get("diversity")}
        text = "  ".join(f"{k} {v:.2f}" for k, v in figures.items() if v is not None)
        speed = row.get("img_per_s", 0.0)
        if self.bar is not None:
            self.bar.set_postfix_str(f"{speed:.0f} img/s  {text}")
            return
        eta = (self.total - nimg) / speed if speed else 0
        print(
            f"kimg {nimg / 1000:.1f}/{self.total / 1000:.1f} {100 * nimg / max(self.total, 1):5.1f}%  {speed:.1f} img/s  "
            f"{row.get('sec_per_kimg', 0):.1f} s/kimg  ETA {duration(eta)}  {text}",
            flush=True,
        )

    def write(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


# --- pictures ---------------------------------------------------------------------------------------------------------
def image_grid(images: np.ndarray, columns: int, pad: int = 2, labels: Sequence[str] | None = None) -> Image.Image:
    """A grid with even spacing of uint8 images (N, C, H, W), C = 1 or 3; `labels` are written below each."""
    images = np.asarray(images)
    n, channels, h, w = images.shape
    columns = max(min(columns, n), 1)
    rows, caption = -(-n // columns), 12 if labels is not None else 0
    canvas = Image.new("L" if channels == 1 else "RGB", (columns * (w + pad) + pad, rows * (h + caption + pad) + pad),
                       BACKGROUND if channels == 1 else (BACKGROUND,) * 3)  # fmt: skip
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(10)
    for i, image in enumerate(images):
        x, y = pad + i % columns * (w + pad), pad + i // columns * (h + caption + pad)
        canvas.paste(Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0)), (x, y))
        if labels is not None:
            draw.text((x + w / 2, y + h), labels[i], fill=220 if channels == 1 else (220,) * 3, font=font, anchor="mt")
    return canvas


def save_png(path: Path, picture: Image.Image, text: dict[str, str] | None = None) -> None:
    """Write a PNG atomically, with text chunks that say what it is."""
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    atomic_write(Path(path), buffer.getvalue())


PANELS = [  # (title, columns), a panel each where the run has them
    ("loss", ("loss_G", "loss_D", "loss", "loss_val")),
    ("D's logits", ("logits_real", "logits_fake")),
    ("regularisers", ("r1", "r2", "pl_penalty", "path_length")),
    ("diversity and ADA's p", ("diversity", "ada_p")),
]


def plot_losses(
    runs: dict[str, list[dict]] | list[dict], png: Path, from_kimg: float = 0.0, to_kimg: float = math.inf
) -> None:
    """Curves over kimg, one panel per kind; several runs over each other when given {name: rows}."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = runs if isinstance(runs, dict) else {"": runs}
    runs = {name: [r for r in rows if from_kimg <= r["nimg"] / 1000 <= to_kimg] for name, rows in runs.items()}
    names = {k for rows in runs.values() for row in rows for k, v in row.items() if isinstance(v, (int, float))}
    panels = [(title, [c for c in columns if c in names]) for title, columns in PANELS]
    panels = [(title, columns) for title, columns in panels if columns]
    figure = Figure(figsize=(9, 2.6 * max(len(panels), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, columns) in zip(axes, panels, strict=False):
        for i, (run, rows) in enumerate(runs.items()):
            for j, column in enumerate(columns):
                points = [(r["nimg"] / 1000, r[column]) for r in rows if isinstance(r.get(column), (int, float))]
                if not points:
                    continue
                x, y = np.array(points).T
                color = f"C{(i * len(columns) + j) % 10}"
                axis.plot(x, y, color=color, alpha=0.3 if len(y) > 20 else 1, linewidth=1)
                label = f"{run} {column}".strip()
                if len(y) > 20:
                    axis.plot(x, _smooth(y), color=color, linewidth=1.8, label=label)
                else:
                    axis.lines[-1].set_label(label)
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="upper right", ncols=min(len(columns) * len(runs), 4))
    axes[-1].set_xlabel("thousands of images seen (kimg)")
    if not panels:
        axes[0].text(0.5, 0.5, "no rows yet", ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(png), buffer.getvalue())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the curve, corrected at its start."""
    beta = 1 - 1 / max(len(values) / 20, 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = beta * total + (1 - beta) * value, beta * weight + 1 - beta
        out.append(total / weight)
    return np.array(out)
