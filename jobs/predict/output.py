"""The folders that commands write to, what they write, and what they print at their end.

One rule for all commands. By default the folder is predictions/COMMAND/NAME of the run, and NAME says what made it: the
kimg of the weights, and the settings that are not the defaults. The same command again means the same folder, other
weights or settings another one. A folder that --out names is taken if it is free, or holds the same; else it is refused
in plain words, unless --overwrite is given.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.files import atomic_write, is_number, leads_out, parse_json, plain, read_json, say
from jobs.config.specs import ConfigError
from jobs.predict.flags import changed
from jobs.predict.named import UsageError, run_of
from jobs.run.predictions import home_of, record_of
from jobs.view.grids import image_grid, save_png

if TYPE_CHECKING:  # torch takes seconds to import, and `film` needs none
    from jobs.predict.trained import Trained

PICTURE = r"(seed)?\d{6,}(_[\w.-]+)?\.(png|nii\.gz)"  # of one slice
NETWORK = "(generator|encoder|denoiser|decoder)"
OWN = {  # what a command writes beside its record; of all others COMMAND.*
    "generate": rf"{PICTURE}|grid\.png|generated\.csv|slices\.npz",
    "vary": rf"{PICTURE}|vary\.(png|gif)|generated\.csv",
    "interpolate": r"interpolate\.gif|strip\.png",
    "evaluate": r"copies-\w+\.png",
    "torch": rf"{NETWORK}\.pt2",
    "onnx": rf"{NETWORK}\.onnx",
    "diffusers": "diffusers",
}
NEUTRAL = {"run", "weights", "out", "device", "batch", "overwrite", "terms"}  # flags that do not decide what is made
GROWS = {"number", "scale"}  # of generate: more of the same, and a larger grid
UNSCALED = {"generate", "film", "export"}  # what is made there is of one size, but for a grid
MOST = 100  # letters of a folder's name
HASH = re.compile(r"[0-9a-f]{16,64}")
REMEDY = "use another --out, or --overwrite to replace it"


@dataclass(frozen=True)
class Output:
    """The folder of one command."""

    command: str
    folder: Path
    scale: int = 1  # how many times as large pictures for people are; files of single slices never are
    named: bool = True  # by a person, with --out
    overwrite: bool = False
    form: str = ""  # of export: each has a record of its own

    @property
    def record(self) -> Path:
        """The file that says what made the folder."""
        return self.folder / (f"{self.form}.json" if self.form else record_of(self.command))

    def claim(self, nimg: float, settings: dict) -> Output:
        """The folder for these settings, of weights at `nimg` images, made and found to be writable: when all flags
        are known to be right, and before anything is computed. ConfigError where --out names one that holds others."""
        if self.named and os.path.lexists(self.folder) and not self.folder.is_dir():
            raise UsageError(f"--out {self.folder}: a file; name a folder")
        out = self if self.named else self._free(nimg, settings)
        if self.overwrite and out.folder.is_dir():
            out.record.unlink(missing_ok=True)  # first: without it nothing is taken for what the new settings made
            for path in filter(Path.is_file, out.own_files()):
                path.unlink()
        elif other := out.other(nimg, settings):
            raise ConfigError(f"{out.folder}: {other}; {REMEDY}")
        out.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.folder):
            pass
        return out

    def _free(self, nimg: float, settings: dict) -> Output:
        """NAME, or NAME-2 and so on where that holds what a name cannot tell apart, such as other weights of one
        kimg."""
        for number in itertools.count(1):
            out = replace(self, folder=self.folder.with_name(self.folder.name + f"-{number}" * (number > 1)))
            if leads_out(out.folder, out.folder.parents[2]):
                raise ConfigError(f"{out.folder}: a link that leads out of the run; name the folder itself with --out")
            if not out.other(nimg, settings):
                return out
        raise AssertionError

    def other(self, nimg: float, settings: dict) -> str:
        """Why this is no folder for these settings, in words; '' where it is."""
        if not self.folder.is_dir():
            return "is no folder" if os.path.lexists(self.folder) else ""
        if not os.path.lexists(self.record):
            found = self.own_files()
            return f"holds {plain(found[0].name)}, and no {self.record.name} says what made it" if found else ""
        try:
            stored = read_json(self.record, self.folder)
            old = dict(stored["settings"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"its {self.record.name} cannot be read"
        new = parse_json(json.dumps(self._whole(settings)))  # as the file has it
        kimg = [f"{n / 1000:g} kimg" if is_number(n) else "none" for n in (stored.get("nimg"), nimg)]
        words = [in_words(key, old.get(key), value, kimg) for key, value in new.items() if old.get(key) != value]
        return f"holds what other settings made ({', '.join(words)})" if words else ""

    def own_files(self) -> list[Path]:
        """What a command of this kind wrote there, but for its record."""
        kind = self.form or self.command
        own = re.compile(OWN.get(kind, rf"{kind}\.\w+"), re.ASCII)
        names = (path for path in sorted(self.folder.iterdir()) if path.name != self.record.name)
        return [path for path in names if own.fullmatch(path.name) and (path.is_file() or kind == "diffusers")]

    def stored(self) -> dict:
        """The record; {} where there is none that can be read."""
        try:
            return read_json(self.record, self.folder)
        except (OSError, ValueError):
            return {}

    def _whole(self, settings: dict) -> dict:
        """The settings, and how large the pictures are."""
        return settings if self.command in UNSCALED else {**settings, "scale": self.scale}

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
        self.note(name, {**about, "settings": self._whole(settings), **more})

    def note(self, name: str, values: dict) -> None:
        """A JSON file."""
        atomic_write(self / name, json.dumps(values, indent=1) + "\n")

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


# --- which folder -----------------------------------------------------------------------------------------------------
def output_of(args: argparse.Namespace, nimg: float, command: str = "", form: str = "") -> Output:
    """The output of a command line, of weights at `nimg` images: --out, else predictions/COMMAND/NAME in the run, or
    here where only a weights file is given. `command`: what it is called there, where that is not args.command."""
    command, scale = command or args.command, getattr(args, "scale", 1)
    if args.out:
        return Output(command, Path(args.out), scale, True, args.overwrite, form)
    base = run_of(args.run) if args.run else Path()
    return Output(command, home_of(base, command) / name_of(args, nimg), scale, False, args.overwrite, form)


def name_of(args: argparse.Namespace, nimg: float) -> str:
    """`120kimg-AD-truncation0.7`: what made the folder, for a person. Of a weights file the name of its folder comes
    first, as there may be several."""
    found = changed(args)
    if args.command == "generate":
        found = {flag: value for flag, value in found.items() if flag not in GROWS}
    words = [Path(args.weights).absolute().parent.name] if getattr(args, "weights", None) else []
    words.append(f"{nimg / 1000:g}kimg")
    words += [word for flag, value in found.items() if flag not in NEUTRAL for word in name_words(flag, value)]
    return "-".join(re.sub(r"[^\w.=,+-]", "_", word, flags=re.ASCII).strip("._-") or "_" for word in words)[:MOST]


def name_words(flag: str, value: object) -> list[str]:
    """What a flag adds to a folder's name."""
    if flag in ("class", "set", "format", "vary", "guidance"):  # their values say what they are
        values = value if isinstance(value, list) else [value]
        pairs = [",".join(f"{k}{v:g}" for k, v in one.items()) if isinstance(one, Mapping) else one for one in values]
        return [f"guidance{one}" if flag == "guidance" else str(one) for one in pairs if one != "npz"]
    if flag == "at":  # a kimg stands there already
        return [str(value)] if value == "best" else []
    if value is True or flag == "seeds":
        return [flag]
    text = str(value).rstrip("/").rpartition("/")[2]  # of a path its end
    return [f"{flag}{text}" if text[:1].isdigit() else f"{flag}-{text}"]


def in_words(key: str, old: object, new: object, kimg: Sequence[str]) -> str:
    """How one setting differs, without a hash. `kimg` of the old weights and of the new ones."""
    if key == "weights_sha256":
        return " -> ".join(kimg) if kimg[0] != kimg[1] else f"other weights of {kimg[1]}"
    name = key.removesuffix("_sha256").replace("_", " ")
    if any(isinstance(value, str) and HASH.fullmatch(value) for value in (old, new)):
        return f"other {name}"
    return f"{name} {shown(old)} -> {shown(new)}"


def shown(value: object) -> str:
    """A setting's value in a few letters."""
    if isinstance(value, Mapping):
        value = ",".join(f"{k}={v}" for k, v in value.items())
    if isinstance(value, list):
        value = ",".join(map(str, value))
    return "none" if value in (None, "") else plain(value)[:40]
