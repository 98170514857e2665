"""What the commands write, and what they print at their end."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.files import atomic_write, plain, say
from jobs.predict.trained import Trained
from jobs.view.grids import image_grid, save_png


@dataclass(frozen=True)
class Output:
    """The folder of one command."""

    command: str
    folder: Path
    scale: int = 1  # how many times as large pictures for people are; files of single slices never are

    def make(self) -> None:
        """Make the folder, and find out whether it can be written: when all flags are known to be right, and before
        anything is computed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def grid(self, name: str, images: np.ndarray, columns: int, **captions) -> None:
        """A PNG of uint8 (N, C, H, W) side by side; captions as image_grid takes them."""
        save_png(self / name, image_grid(images, columns, scale=self.scale, **captions))

    def json(self, name: str, model: Trained, settings: dict, **more) -> None:
        """A file of settings and figures, with the model that they are of."""
        about = {"command": self.command, "weights": model.path, "nimg": model.nimg, "classes": model.classes}
        if model.measured:
            about["measured"] = model.measured
        atomic_write(self / name, json.dumps({**about, "settings": settings, **more}, indent=1) + "\n")

    def csv(self, name: str, head: Sequence[str], rows: Iterable[Sequence]) -> None:
        """Numbers with six digits, nothing where there is none; names are made plain."""
        text = io.StringIO()
        form = {float: "{:.6g}".format, str: plain}
        cells = [[form.get(type(v), lambda v: v)(v) for v in row] for row in rows]
        csv.writer(text, lineterminator="\n").writerows([head, *cells])
        atomic_write(self / name, text.getvalue())

    def tell(self, model: Trained, what: str, *names: str) -> None:
        """What was made, of what size, from which weights, and the files."""
        height, width = model.size
        say(f"{what} of {width}x{height} from {model.path} ({model.seen})")
        for name in names:
            say(f"  {self / name}")
