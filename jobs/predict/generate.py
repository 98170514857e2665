"""`generate`: any number of pictures as PNGs; what was interrupted goes on."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.files import atomic_file, read_json
from jobs.config.specs import ConfigError
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
    label: str = "all",
    npz: bool = False,
    overwrite: bool = False,
    **how,
) -> None:
    """Pictures 0 to N-1 as PNGs, a grid of the first, and generate.json. Pictures that are there already are kept.

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
    of_first = model.labels(label, first)
    captions = None if of_first is None else [model.classes[k] for k in of_first.tolist()]
    names = [file_name(model, label, i) for i in first]
    shown = np.stack([read_picture(out / name) for name in names])
    out.grid("grid.png", shown, math.ceil(math.sqrt(len(first))), labels=captions)
    seeds = [randomness.seed_of(seed, i, "predict z") for i in first]
    out.json("generate.json", model, settings, number=claimed, z_seeds=seeds)
    if npz:
        write_npz(out / "slices.npz", model, number, label)
    span = names[0] if number == 1 else f"{names[0]} ... {file_name(model, label, number - 1)}"
    kept = f" ({number - made} were there already)" if made < number else ""
    files = (span, "grid.png", "generate.json", *(["slices.npz"] if npz else []))
    out.tell(model, f"{number} picture{'s' * (number > 1)}{kept}", *files)


def write_npz(path: Path, model: Trained, number: int, label: str) -> None:
    """The PNGs of generate as one file for np.load, written picture by picture: any number needs no memory."""
    labels = model.labels(label, list(range(number)))
    header = {"descr": "|u1", "fortran_order": False, "shape": (number, model.channels, *model.size)}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)
            for i in tqdm(range(number), desc=path.name, unit=" pictures", disable=None):
                images.write(read_picture(path.parent / file_name(model, label, i)).tobytes())
        with archive.open("labels.npy", "w") as column:
            np.lib.format.write_array(column, np.full(number, -1) if labels is None else labels.numpy())


def file_name(model: Trained, label: str, index: int) -> str:
    """000007.png, or 000007_AD.png; a class name may hold anything, a file name may not."""
    labels = model.labels(label, [index])
    name = "" if labels is None else "_" + re.sub(r"[^A-Za-z0-9.-]", "-", model.classes[int(labels)])[:60]
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
