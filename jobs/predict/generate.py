"""`generate`: any number of pictures as files of their own; what was interrupted goes on."""

from __future__ import annotations

import argparse
import math
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.columns import Column
from data.files import atomic_file
from jobs.config.specs import ConfigError
from jobs.predict.conditions import Asked, classes_of
from jobs.predict.flags import MAX_NUMBER, seeds, spans
from jobs.predict.forms import Form, form_of
from jobs.predict.output import REMEDY, Output
from jobs.predict.trained import Trained
from jobs.run.predictions import in_a_name
from jobs.training import randomness
from jobs.view.pictures import read_picture

GRID = 64  # pictures in a grid at most
WRITERS = 4  # threads that encode files while the next batch is computed


@dataclass(frozen=True)
class Job:
    """What is asked for: which pictures, of what, and how they are written."""

    model: Trained
    label: Asked
    seed: int | None  # None: a picture's number is its seed
    form: Form
    folder: Path

    def path(self, number: int) -> Path:
        """000007.png, or 000007_AD.png, of --seeds seed000007_AD.png."""
        labels = classes_of_model(self.model, self.label, [number])
        k = -1 if labels is None else int(labels)
        of_class = "_" + in_a_name(self.model.classes[k]) if k >= 0 else ""
        return self.folder / f"{'seed' * (self.seed is None)}{number:06d}{of_class}{self.form.suffix}"

    def origin(self, number: int) -> tuple[int, int]:
        """(seed, index) of a picture."""
        return (number, 0) if self.seed is None else (self.seed, number)

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of which there is no whole file yet."""
        return [i for i in numbers if not self.form.complete(self.path(i), self.model)]

    def write(self, number: int, image: np.ndarray) -> None:
        """A picture as a file that says how to make it again."""
        seed, index = self.origin(number)
        about = {"index": str(index), "seed": str(seed), "weights_sha256": self.model.sha256}
        self.form.write(self.path(number), self.model, image, about)


def generate(
    model,
    out: Output,
    *,
    number: int | Sequence[int] = 64,
    seed: int | None = 0,
    label: Asked = "all",
    form: str = "png",
    **how,
) -> None:
    """Pictures as files, a grid of the first, generate.json, and generated.csv with what each was told. Pictures that
    are there already are kept. Table and slices.npz hold the same: all that are there, also of commands before.

    number: how many of `seed`; without a seed the seeds, of each picture 0. form: one of flags.PICTURES. `how`: what
    model.sample takes beside.
    """
    own = form_of(form, model)
    numbers = range(number) if isinstance(number, int) else number
    of_seed = {"format": "png" if form == "npz" else form} | ({"seed": "of --seeds"} if seed is None else {})
    settings = model.settings(seed=seed, label=label, **how) | of_seed
    out = out.claim(model.nimg, settings)
    job = Job(model, label, seed, own, out.folder)
    claimed = claimed_numbers(out, numbers, seed is None)
    held = {"seeds": spans(claimed)} if seed is None else {"number": len(claimed)}
    out.json("generate.json", model, settings, **held)
    made = draw(job, numbers, how)
    first = list(numbers[:GRID])
    shown = np.stack([own.read(job.path(i)) for i in first])
    names = [f"seed {i}" for i in first] if seed is None else None
    out.grid("grid.png", shown, math.ceil(math.sqrt(len(first))), labels=captions(names, model.known(label, first)))
    there, archive = present(job, claimed, numbers), out / "slices.npz"
    zipped = form == "npz" or archive.exists()
    archive.unlink(missing_ok=True)  # first: it never lies beside a table of other pictures
    write_table(out, job, there)
    z_seeds = [randomness.seed_of(*job.origin(i), "predict z") for i in first]
    out.json("generate.json", model, settings, **held, z_seeds=z_seeds)
    if zipped:
        write_npz(archive, job, there)
    span = job.path(numbers[0]).name + (f" ... {job.path(numbers[-1]).name}" if len(numbers) > 1 else "")
    kept = f" ({len(numbers) - made} were there already)" if made < len(numbers) else ""
    files = (span, "grid.png", "generate.json", "generated.csv", *([archive.name] if zipped else []))
    out.tell(model, f"{len(numbers)} picture{'s' * (len(numbers) > 1)}{kept}", *files)


def draw(job: Job, numbers: Sequence[int], how: dict) -> int:
    """Draw and write what is missing; returns how many that were."""
    model: Any = job.model.unrounded() if job.form.floats else job.model
    made, writing = 0, list[Future]()
    with ThreadPoolExecutor(WRITERS) as pool, tqdm(total=len(numbers), unit=" pictures", disable=None) as bar:
        for start in range(0, len(numbers), model.batch):
            part = numbers[start : start + model.batch]
            if todo := job.missing(part):
                images = model.sample(indices=todo, seed=job.seed, label=job.label, **how)
                wait(writing)  # so that at most two batches are in memory
                writing = [pool.submit(job.write, i, image) for i, image in zip(todo, images, strict=True)]
                made += len(todo)
            bar.update(len(part))
        wait(writing)
    return made


def claimed_numbers(out: Output, numbers: Sequence[int], of_seeds: bool) -> Sequence[int]:
    """The pictures that the folder is meant to hold, with those of commands before: more of the same may be added,
    never less. ConfigError where its record was damaged."""
    stored = out.stored()
    if not stored:
        return sorted(numbers)
    try:
        if of_seeds:
            return sorted({*numbers, *seeds(stored["seeds"])})
        return range(max(len(numbers), min(int(stored["number"]), MAX_NUMBER)))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, argparse.ArgumentTypeError):
        raise ConfigError(f"{out.folder}: its generate.json cannot be read; {REMEDY}") from None


def present(job: Job, claimed: Sequence[int], made: Sequence[int]) -> list[int]:
    """Those claimed of which there is a whole file: a command that was cut short may have left fewer."""
    gone = set(job.missing(sorted({*claimed} - {*made})))
    return [i for i in claimed if i not in gone]


def captions(names: Sequence[str] | None, known: Sequence[str] | None) -> list[str] | None:
    """What stands below the pictures of a grid."""
    if names is None or known is None:
        return list(names or known or ()) or None
    return [f"{name} {text}".rstrip() for name, text in zip(names, known, strict=True)]


def write_table(out: Output, job: Job, numbers: Sequence[int]) -> None:
    """generated.csv: each picture's file, number and seed, and what the network was told of it, empty for unknown."""
    model = job.model
    columns = model.columns or ([Column("class", tuple(model.classes))] if model.classes else [])
    told = model.labels(job.label, numbers) if columns else None
    values = [()] * len(numbers) if told is None else told.reshape(len(numbers), -1).tolist()
    rows = (
        [job.path(i).name, *job.origin(i)[::-1], *(c.text(v) for c, v in zip(columns, row, strict=True))]
        for i, row in zip(numbers, values, strict=True)
    )
    out.csv("generated.csv", ["file", "index", "seed", *(c.name for c in columns)], rows)


def write_npz(path: Path, job: Job, numbers: Sequence[int]) -> None:
    """The PNGs of generate as one file for np.load, written picture by picture: any number needs no memory. Its arrays:
    images uint8 (N, C, H, W); labels, index and seed (N,), as in a row of generated.csv."""
    model = job.model
    labels = classes_of_model(model, job.label, numbers)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(numbers), model.channels, *model.size)}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)
            for i in tqdm(numbers, desc=path.name, unit=" pictures", disable=None):
                images.write(read_picture(job.path(i)).tobytes())
        seeds_of, indices = zip(*map(job.origin, numbers), strict=True)
        found = np.full(len(numbers), -1) if labels is None else labels.numpy()
        for name, values in {"labels": found, "index": indices, "seed": seeds_of}.items():
            array = np.asarray(values)
            with archive.open(f"{name}.npy", "w") as column:  # a seed beyond 64 bits as text: nothing is pickled
                np.lib.format.write_array(column, array.astype(str) if array.dtype == object else array)


def classes_of_model(model: Trained, label: Asked, indices: Sequence[int]) -> torch.Tensor | None:
    """The classes (B,) int64 that are asked of the pictures, -1 where it is left open; None of a model without any."""
    labels = model.labels(label, indices)
    return labels if labels is None else classes_of(labels, model.columns)


def wait(jobs: Iterable[Future]) -> None:
    """Until all are written; raises what one of them raised."""
    for job in jobs:
        job.result()
