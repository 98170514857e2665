"""`explore`: one local page with sliders, and the picture that they make beside its nearest training slice."""

from __future__ import annotations

import base64
import io
import math
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from data.batches import to_float
from data.columns import CLASS, UNKNOWN, cells_of, values_of
from data.files import is_phantom, say
from data.pack import kept_pack
from data.packfile import Pack
from data.walk import DataError
from jobs.config.specs import ConfigError
from jobs.predict.autoencoder import VaeModel
from jobs.predict.conditions import caption
from jobs.predict.features import data_of, evenly, rows_of, shape_of, told_apart
from jobs.predict.named import UsageError
from jobs.predict.reconstruct import ROWS, beside
from jobs.predict.trained import Trained
from jobs.view.loopback import Refused, Server
from jobs.view.pictures import as_picture
from jobs.view.sliders import Control, Page
from models import copies, quality
from models.metrics import psnr, ssim

SEEDS, ANY_SEED = 999, 2**31 - 1  # of the slider, and of what can be typed
SLIDERS = {  # of the flags that a kind of model has
    "--truncation": Control("truncation", "--truncation", "1", low=0, high=1.5, step=0.05),
    "--guidance": Control("guidance", "--guidance", "1", low=0, high=6, step=0.1),
    "--steps": Control("steps (network calls)", "--steps", "20", low=1, high=100, step=1),
}
HELD_OUT = 64  # held-out slices whose distances say what is usual
PART = 500  # slices of which thumbnails are made at once

Values = dict[str, str]  # of the controls, by their names
Shown = list[tuple[np.ndarray, str]]  # pictures uint8 (C, H, W), each with its caption


def explore(
    model,
    draw: Callable[[list[str]], np.ndarray],
    which: Sequence[str],
    *,
    data: str = "",
    port: int = 0,
    announce: Callable[[int, str], None],
) -> None:
    """Serve the page until Ctrl-C. Nothing is written.

    draw(words): the training square uint8 (1, C, R, R) of the picture that `generate` makes of these words. which: the
    words that name this model to a command. announce(port, path): tells a person where the page is.
    """
    with server_of(model, draw, which, data, port) as server:
        announce(server.port, server.path)
        server.serve()


def server_of(model, draw: Callable, which: Sequence[str], data: str = "", port: int = 0) -> Server:
    """What explore serves, listening."""
    view = Slices(model, data, which) if isinstance(model, VaeModel) else Drawn(model, data, which, draw)
    about = f"{model.KIND}, {model.resolution} px, {model.seen} of training"
    title = "/".join(Path(model.path).absolute().parts[-2:])  # the run, and which of its weights
    page = Page(title, about, view.notes, view.titles, model.size, view.controls, view.same)

    def answer(values: Values) -> dict:
        if odd := set(values) ^ set(view.controls):
            raise Refused(f"{min(odd)}: this page asks for {', '.join(view.controls)}")
        values = {name: control.checked(values[name]) for name, control in view.controls.items()}
        command, began = view.words(values), time.perf_counter()
        try:
            shown = view.show(values, command)
        except UsageError as error:
            raise Refused(str(error)) from None
        took = f"made in {1000 * (time.perf_counter() - began):.0f} ms"
        pictures = [{"picture": png(image), "text": text} for image, text in shown]
        return {"shown": pictures, "command": shlex.join(["python", "predict.py", *command]), "said": took}

    return Server(port, page.html, answer)


def png(image: np.ndarray) -> str:
    """uint8 (C, H, W) as an address that holds it."""
    file = io.BytesIO()
    as_picture(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def kept(model: Trained, data: str, split: str) -> Pack:
    """The pack of one split that is here already: nothing is built for a look. DataError where there is none."""
    return kept_pack(data_of(model, data), split=split, log=lambda text: None, **shape_of(model))


# --- a network that draws ---------------------------------------------------------------------------------------------
class Drawn:
    """Pictures of a StyleGAN2 or a diffusion network, beside their nearest training slice where these are here."""

    same = "This makes the same picture:"

    def __init__(self, model, data: str, which: Sequence[str], draw: Callable[[list[str]], np.ndarray]):
        self.model, self.which, self.draw, self.controls = model, which, draw, controls_of(model)
        self.training: TrainingSlices | None = None
        try:
            self.training = TrainingSlices(model, data)
            self.notes = self.training.notes
        except (DataError, UsageError) as error:
            alone = f"No training slice stands beside the picture: {error}"
            self.notes = [f"{alone}. Where the data are on this machine, predict.py evaluate packs them."]
            say(self.notes[0])
        self.titles = ["generated", *["nearest training slice"] * bool(self.training)]

    def words(self, values: Values) -> list[str]:
        """The command that makes this picture."""
        told = [word for name, control in self.controls.items() for word in control.words(values[name])]
        return ["generate", *self.which, "--number", "1", *told]

    def show(self, values: Values, command: list[str]) -> Shown:
        """The picture, and its neighbour."""
        square = self.draw(command)
        told = [f"{c.title} {values[k]}" for k, c in self.controls.items() if k.startswith(("column", "class"))]
        own = self.model.original(square)[0], ", ".join(told)
        return [own, *([self.training.nearest(square)] if self.training else [])]


def controls_of(model) -> dict[str, Control]:
    """{name in the address: control} of all that decides a picture."""
    found = {"seed": Control("seed", "--seed", "0", high=SEEDS, step=1, most=ANY_SEED)}
    for i, c in enumerate(model.columns):
        step = 10.0 ** math.floor(math.log10((c.high - c.low) / 50)) if c.high > c.low else 1.0
        start = c.levels[0] if c.levels else f"{min(max(round(c.mean / step) * step, c.low), c.high):.10g}"
        found[f"column{i}"] = Control(
            c.name, f"--set {c.name}=", start, c.levels, low=c.low, high=c.high, step=step, unknown=UNKNOWN
        )
    if model.classes and not model.columns:
        found["class"] = Control("class", "--class", model.classes[0], tuple(model.classes))
    useless = ["--guidance"] if not (model.classes or model.columns) else []
    if getattr(getattr(model, "net", None), "times", None) is not None:  # of Fast-DDPM, which knows no others
        useless.append("--steps")
    own = [flag.name for flag in model.FLAGS if flag.name not in useless]
    return found | {name.strip("-"): SLIDERS[name] for name in own if name in SLIDERS}


class TrainingSlices:
    """The slices that a model has learnt from, to be searched for the nearest."""

    def __init__(self, model: Trained, data: str):
        """DataError or UsageError where they are not packed here."""
        split = model.config.get("split")
        self.model, self.pack = model, kept(model, data, split if isinstance(split, str) else "train")
        if model.classes and list(self.pack.classes) != model.classes:
            raise DataError(f"these slices are of the classes {', '.join(self.pack.classes) or 'none'}")
        self.columns = values_of(self.pack, model.columns)
        self.known = [f"{CLASS} {cell}" * bool(cell) for cell in cells_of(self.pack, CLASS) or [""] * len(self.pack)]
        self.bank = copies.Bank(self.thumbnails(self.pack, np.arange(len(self.pack))))
        self.notes = [f"Compared with {len(self.pack):,} training slices, also mirrored, moved, turned and scaled. "
                      f"Distance: 1 - correlation of pixels; 0 is a copy. {self.usual(data)}"]  # fmt: skip

    def thumbnails(self, pack: Pack, rows: np.ndarray) -> torch.Tensor:
        """uint8 (N, C, s, s) of rows of a pack."""
        parts = [quality.thumbnails(rows_of(pack, rows[i : i + PART])) for i in range(0, len(rows), PART)]
        return torch.cat(parts).to(self.model.device)

    def usual(self, data: str) -> str:
        """How far held-out slices lie from these, in words; '' where there are none."""
        for split in ("val", "test"):
            try:
                held = kept(self.model, data, split)
            except DataError:
                continue
            if held.digest != self.pack.digest:
                found = copies.search(self.thumbnails(held, evenly(len(held), HELD_OUT)), self.bank)
                low, middle = torch.quantile(found.distance, torch.tensor([0.05, 0.5], device=found.distance.device))
                return f"Of {self.who(data)} half lie nearer than {middle:.2g}, one in twenty than {low:.2g}."
        return ""

    def who(self, data: str) -> str:
        """Whose the held-out slices are: other people's only where the split was made by people."""
        kind = told_apart(self.pack)
        if is_phantom(data_of(self.model, data)) or kind == "patient":
            return "real slices of other people"
        return f"held-out slices (divided by {kind or 'slice'}: some may be of the same people)"

    def nearest(self, square: np.ndarray) -> tuple[np.ndarray, str]:
        """The slice that is nearest to a picture uint8 (1, C, R, R), with what is known of it."""
        found = copies.search(quality.thumbnails(torch.from_numpy(square)).to(self.model.device), self.bank)
        row = int(found.index[0])
        of_columns = zip(self.columns[row].tolist(), self.model.columns, strict=True)
        told = [f"{c.name} {text}" for v, c in of_columns if (text := caption([v], [c]))] or [self.known[row]]
        moved = "" if found.move is None else copies.in_words(found.move[0].cpu())
        texts = [", ".join(told), f"distance {float(found.distance[0]):.2g}", self.pack.names[row],
                 f"compared as {moved}" if moved != "as it is" else ""]  # fmt: skip
        return self.model.original(self.pack.images[row : row + 1])[0], "\n".join(filter(None, texts))


# --- a VAE ------------------------------------------------------------------------------------------------------------
class Slices:
    """Slices through a VAE and back, of people that it was not trained on where there are any."""

    same = "This measures all of these slices:"
    titles = ROWS

    def __init__(self, model: VaeModel, data: str, which: Sequence[str]):
        self.model, self.which = model, which
        self.pack, self.split = self.some_pack(data)
        top = len(self.pack) - 1
        self.controls = {"slice": Control("slice", "", "0", high=top, step=1)}
        self.notes = [f"{top + 1:,} slices of split {self.split}."]

    def some_pack(self, data: str) -> tuple[Pack, str]:
        """(slices, their split). ConfigError where none are packed here."""
        for split in ("val", "test", "train"):
            try:
                return kept(self.model, data, split), split
            except DataError as error:
                last = str(error)
        raise ConfigError(f"{last}; a VAE shows slices, and predict.py reconstruct packs them")

    def words(self, values: Values) -> list[str]:
        """The command that measures them."""
        return ["reconstruct", *self.which, "--split", self.split]

    def show(self, values: Values, command: list[str]) -> Shown:
        """A slice, its reconstruction, their difference."""
        pixels = rows_of(self.pack, [int(values["slice"])])
        output, real = self.model.decode(self.model.encode(pixels)), (to_float(pixels.to(self.model.device)) + 1) / 2
        figures = f"PSNR {float(psnr(output, real)):.1f} dB, SSIM {float(ssim(output, real)):.3f}"
        pictures = self.model.original(beside(real[0], output[0]))
        return list(zip(pictures, [self.pack.names[int(values["slice"])], figures, ""], strict=True))
