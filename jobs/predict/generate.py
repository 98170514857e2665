"""`generate`: any number of pictures as PNGs; what was interrupted goes on."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.columns import Column
from data.files import atomic_file, read_json
from jobs.config.specs import ConfigError
from jobs.predict.conditions import Asked, classes_of
from jobs.predict.flags import MAX_NUMBER
from jobs.predict.output import Output
from jobs.predict.trained import Trained
from jobs.training import randomness
from jobs.view.grids import save_png
from jobs.view.pictures import as_picture, is_complete, read_picture

GRID = 64  # pictures in a grid at most
WRITERS = 4  # threads that encode PNGs while the next batch is computed
PICTURE = re.compile(r"\d{6,}(_[\w.-]+)?\.png", re.ASCII)  # what generate writes


def generate(
    model,
    out: Output,
    *,
    number: int = 64,
    seed: int = 0,
    label: Asked = "all",
    npz: bool = False,
    overwrite: bool = False,
    **how,
) -> None:
    """Pictures 0 to N-1 as PNGs, a grid of the first, generate.json, and generated.csv with what each was told.
    Pictures that are there already are kept.

    `how`: what model.sample takes beside number, seed and label.
    """
    settings = model.settings(seed=seed, label=label, **how)
    out.make()
    claimed = max(number, claim(out, settings, overwrite))  # more of the same may be added, never less
    out.json("generate.json", model, settings, number=claimed)
    made = 0
    writing: list[Future] = []
    with ThreadPoolExecutor(WRITERS) as pool, tqdm(total=number, unit=" pictures", disable=None) as bar:
        for start in range(0, number, model.batch):
            indices = range(start, min(start + model.batch, number))
            todo = [i for i in indices if not is_complete(out / file_name(model, label, i), model.size, model.channels)]
            if todo:
                images = model.sample(indices=todo, seed=seed, label=label, **how)
                wait(writing)  # so that at most two batches are in memory
                writing = [
                    pool.submit(write_picture, out / file_name(model, label, i), model, seed, i, image)
                    for i, image in zip(todo, images, strict=True)
                ]
                made += len(todo)
            bar.update(len(indices))
        wait(writing)
    first = list(range(min(number, GRID)))
    captions = model.known(label, first)
    names = [file_name(model, label, i) for i in first]
    shown = np.stack([read_picture(out / name) for name in names])
    out.grid("grid.png", shown, math.ceil(math.sqrt(len(first))), labels=captions)
    write_table(out, model, label, claimed, seed)
    seeds = [randomness.seed_of(seed, i, "predict z") for i in first]
    out.json("generate.json", model, settings, number=claimed, z_seeds=seeds)
    if npz:
        write_npz(out / "slices.npz", model, number, label)
    span = names[0] if number == 1 else f"{names[0]} ... {file_name(model, label, number - 1)}"
    kept = f" ({number - made} were there already)" if made < number else ""
    files = (span, "grid.png", "generate.json", "generated.csv", *(["slices.npz"] if npz else []))
    out.tell(model, f"{number} picture{'s' * (number > 1)}{kept}", *files)


def write_table(out: Output, model: Trained, label: Asked, number: int, seed: int) -> None:
    """generated.csv: each picture's file, number and seed, and what the network was told of it, empty for unknown."""
    columns = model.columns or ([Column("class", tuple(model.classes))] if model.classes else [])
    told = model.labels(label, range(number)) if columns else None
    values = [] if told is None else told.reshape(number, -1).tolist()
    rows = (
        [
            file_name(model, label, i),
            i,
            seed,
            *(c.text(v) for c, v in zip(columns, values[i] if values else (), strict=True)),
        ]
        for i in range(number)
    )
    out.csv("generated.csv", ["file", "index", "seed", *(c.name for c in columns)], rows)


def write_npz(path: Path, model: Trained, number: int, label: Asked) -> None:
    """The PNGs of generate as one file for np.load, written picture by picture: any number needs no memory."""
    labels = classes_of_model(model, label, range(number))
    header = {"descr": "|u1", "fortran_order": False, "shape": (number, model.channels, *model.size)}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)
            for i in tqdm(range(number), desc=path.name, unit=" pictures", disable=None):
                images.write(read_picture(path.parent / file_name(model, label, i)).tobytes())
        with archive.open("labels.npy", "w") as column:
            np.lib.format.write_array(column, np.full(number, -1) if labels is None else labels.numpy())


def classes_of_model(model: Trained, label: Asked, indices: Sequence[int]) -> torch.Tensor | None:
    """The classes (B,) int64 that are asked of the pictures, -1 where it is left open; None of a model without any."""
    labels = model.labels(label, indices)
    return labels if labels is None else classes_of(labels, model.columns)


def file_name(model: Trained, label: Asked, index: int) -> str:
    """000007.png, or 000007_AD.png; a class name may hold anything, a file name may not."""
    labels = classes_of_model(model, label, [index])
    number = -1 if labels is None else int(labels)
    name = "_" + re.sub(r"[^A-Za-z0-9.-]", "-", model.classes[number])[:60] if number >= 0 else ""
    return f"{index:06d}{name}.png"


def claim(out: Output, settings: dict, overwrite: bool) -> int:
    """How many pictures of these settings `out` is meant to hold so far. Raises ConfigError where it holds others."""
    about, remedy = out / "generate.json", "use another --out, or --overwrite to replace them"
    if overwrite:
        about.unlink(missing_ok=True)  # first: pictures without it are never taken for those of the new settings
        for path in pictures_in(out.folder):
            path.unlink()
    if not os.path.lexists(about):
        if pictures_in(out.folder):
            raise ConfigError(f"{out.folder}: holds pictures without a generate.json; {remedy}")
        return 0
    try:
        stored = read_json(about, out.folder)
        old, count = dict(stored["settings"]), min(int(stored["number"]), MAX_NUMBER)
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        raise ConfigError(f"{about}: cannot be read; {remedy}") from None
    changed = [f"{k} {str(old.get(k))[:12]} -> {str(v)[:12]}" for k, v in settings.items() if old.get(k) != v]
    if changed:
        raise ConfigError(f"{out.folder}: holds pictures of other settings ({', '.join(changed)}); {remedy}")
    return count


def pictures_in(folder: Path) -> list[Path]:
    """The pictures that generate wrote there."""
    return [p for p in folder.iterdir() if PICTURE.fullmatch(p.name) and p.is_file()]


def wait(jobs: Iterable[Future]) -> None:
    """Until all are written; raises what one of them raised."""
    for job in jobs:
        job.result()


def write_picture(path: Path, model: Trained, seed: int, index: int, image: np.ndarray) -> None:
    """image uint8 (C, H, W) as a PNG whose text chunks say how to make it again."""
    text = {"index": str(index), "seed": str(seed), "weights_sha256": model.sha256}
    save_png(path, as_picture(image), text)
