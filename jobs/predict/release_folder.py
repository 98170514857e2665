"""The folder of a release: it grows in another one beside it, and takes its name when it is whole."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import zipfile
from itertools import islice
from pathlib import Path

import numpy as np

from data.files import (
    atomic_file,
    atomic_write,
    read_bytes,
    read_object,
    remove_torn,
    say,
    sha256_of,
    sync_folder,
    words,
)
from jobs.config.specs import ConfigError
from jobs.predict import datasheet, verify
from jobs.view.grids import image_grid
from jobs.view.pictures import read_picture

SHOWN = 24  # slices in the page
VERSIONS = ("version", "torch")  # of a release's key


class Work:
    """OUT.part: the release grows in it, and beside it lies what each chunk of draws gave."""

    def __init__(self, out: Path):
        self.out, self.folder = out, out.with_name(out.name + ".part")
        self.release = self.folder / "release"

    def begin(self, key: dict) -> None:
        """Go on with the same release. ConfigError where something else is there, another one too."""
        if os.path.lexists(self.folder):
            begun, _ = read_object(self.folder / "begun.json", self.folder)
            if not begun and (not self.folder.is_dir() or any(p.name[0] != "." for p in self.folder.iterdir())):
                raise ConfigError(f"{self.folder}: no unfinished release; move it away, or use another --out")
            if begun == key:
                return say(f"{self.folder}: goes on where it was interrupted")
            if begun:
                raise ConfigError(
                    f"{self.folder}: an unfinished release of other settings, weights, data or versions; delete it, or "
                    "use another --out"
                )
            self.remove()
        self.release.mkdir(parents=True)
        atomic_write(self.folder / "begun.json", json.dumps(key))

    def remove(self) -> None:
        """Take the folder away."""
        shutil.rmtree(self.folder)

    def write_chunk(self, number: int, found: dict[str, np.ndarray]) -> None:
        """Keep what a chunk gave, when its files are written."""
        with atomic_file(self.folder / f"{number:06d}.npz") as file:
            np.savez(file, **found)  # type: ignore[arg-type]

    def read_chunk(self, number: int, indices: list[int]) -> dict[str, np.ndarray] | None:
        """What it gave before; None where that is not there, or a file of it is not as it was."""
        try:
            with np.load(self.folder / f"{number:06d}.npz", allow_pickle=False) as stored:
                found = dict(stored)
            files = zip(found["files"].tolist(), found["sums"].tolist(), strict=True)
            whole = found["indices"].tolist() == indices
            return found if whole and all(sha256_of(self.release / name) == sha for name, sha in files) else None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def finish(self, about: dict, sums: dict[str, str], manifest: str) -> None:
        """Manifest, datasheet and sums; then the release takes its name. sums: of the slices, {file: SHA-256}."""
        for name, _ in list(verify.files_in(self.release)):  # of a draw that was interrupted before it was noted
            if name not in sums:
                (self.release / name).unlink()
        atomic_write(self.release / verify.MANIFEST, manifest)
        sums = sums | {verify.MANIFEST: sha256_of(self.release / verify.MANIFEST)}
        write_texts(self.release, texts_of(self.release, about), sums)
        if fault := next(verify.faults_of(self.release), ""):
            raise ConfigError(f"{self.release}: {fault}: it was changed while it was made; the same command mends it")
        if self.out.is_dir():  # an empty one
            self.out.rmdir()
        os.rename(self.release, self.out)
        sync_folder(self.out.parent)
        self.remove()


# --- what is finished -------------------------------------------------------------------------------------------------
def is_there(out: Path, key: dict) -> bool:
    """Whether the release of these settings is whole; ConfigError where the folder holds anything else."""
    if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
        return False
    about = read_object(out / verify.ABOUT, out)[0] if out.is_dir() else {}
    asked = [name for name in key if name not in VERSIONS]  # nothing is drawn
    if any(about.get(name) != key[name] for name in asked):
        raise ConfigError(f"{out}: holds a release of other settings or weights, or other files; use another --out")
    return True


def write_terms(out: Path, terms: str) -> dict:
    """The texts of a finished release once more, with these terms of use, if any; what it says of itself. ConfigError
    where anything is not as it was released: it would be signed."""
    remove_torn(out)
    about = read_object(out / verify.ABOUT, out)[0]
    try:
        about["terms"] = terms or about["terms"]
        fault = next(verify.faults_of(out, (verify.SHEET, verify.PAGE, verify.ABOUT)), "")
        if not fault:
            texts, sums = texts_of(out, about), dict(verify.sums_of(out))
            for name, text in texts.items():
                have, new = sha256_of(out / name), hashlib.sha256(text).hexdigest()
                # Of the same command that was killed here: release.json, of which all follow, is written last.
                if have != sums[name] and new != (sums[name] if name == verify.ABOUT else have):
                    fault = f"{name} was changed"
        if not fault:
            write_texts(out, texts, {name: sha for name, sha in sums.items() if name not in texts})
    except (OSError, ValueError, KeyError) as error:
        fault = f"a file cannot be read ({words(error)})"
    if fault:
        raise ConfigError(f"{out}: {fault}; put that right, or delete the folder and give the same command")
    return about


def texts_of(folder: Path, about: dict) -> dict[str, bytes]:
    """The datasheet in its forms, {file: content}."""
    return {
        verify.SHEET: datasheet.as_markdown(about).encode(),
        verify.PAGE: datasheet.as_page(about, first_slices(folder)).encode(),
        verify.ABOUT: (json.dumps(about, indent=1) + "\n").encode(),
    }


def write_texts(folder: Path, texts: dict[str, bytes], sums: dict[str, str]) -> None:
    """The datasheet and the sums, release.json last; `sums`: of all other files."""
    sums = sums | {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()}
    for name in (verify.SHEET, verify.PAGE, verify.SUMS, verify.ABOUT):
        atomic_write(folder / name, verify.sums_text(sums) if name == verify.SUMS else texts[name])


def first_slices(folder: Path) -> bytes:
    """The first slices of the manifest as a PNG, each with what was asked for, large enough to be seen."""
    text = read_bytes(folder / verify.MANIFEST, verify.MAX_TEXT, folder).decode()
    rows = list(islice(csv.reader(io.StringIO(text)), 1, SHOWN + 1))
    shown = np.stack([read_picture(folder / row[0]) for row in rows])
    asked = [" ".join(cell for cell in row[1:-2] if cell) for row in rows]
    buffer = io.BytesIO()
    width = shown.shape[-1]
    columns, scale = (8, max(128 // width, 1)) if width < 150 else (4, 1)
    image_grid(shown, columns, asked if any(asked) else None, scale=scale).save(buffer, "PNG")
    return buffer.getvalue()
