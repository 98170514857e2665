"""The slices of a release: which are asked for, and drawing until as many have passed the screening."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data.columns import CLASS
from data.files import sha256_of
from jobs.config.specs import ConfigError
from jobs.predict import datasheet, verify
from jobs.predict.conditions import Asked, rows_of
from jobs.predict.features import MEASURE_CHUNK, Images
from jobs.predict.flags import MAX_NUMBER
from jobs.predict.generate import WRITERS
from jobs.predict.named import UsageError
from jobs.predict.release_folder import Work
from jobs.predict.screening import FEATURES, OUTSIDE, PIXELS, Screen, told_columns, told_values
from jobs.predict.trained import Trained
from jobs.view.grids import save_png
from jobs.view.pictures import as_picture
from models import quality

PER_CLASS = 100
FEWEST, MOST = 100, 0.9  # of so many drawn slices of a class no larger share may fail
TRIES = 100  # draws for one slice
REMEDY = {
    PIXELS: "the model repeats its training slices: see the pictures of evaluate, and use earlier weights (--at)",
    FEATURES: "the model draws what it was trained on: see the pictures of evaluate, and use earlier weights (--at)",
    OUTSIDE: "train the model further, use --at best, or, of a StyleGAN2, --truncation 0.7",
}


@dataclass(frozen=True)
class Cohort:
    """What is asked for. Slice j has the series j, j + number, j + 2 number, ... of indices, of which each is told the
    same; the first that passes is released."""

    label: Asked
    number: int

    @classmethod
    def of(cls, model: Trained, label: Asked, each: int) -> Cohort:
        """`each` of every class, or of every row of a table. A row that names no class is asked for in each."""
        classed = [c for c in model.columns if c.name == CLASS]
        if classed and isinstance(label, Mapping) and CLASS not in label:
            label = [{CLASS: name, **label} for name in classed[0].levels]
        number = each * len(rows_of(label, model.classes))
        if number > MAX_NUMBER:
            raise UsageError(f"--number {each}: {number:,} slices in all, more than {MAX_NUMBER:,}")
        return cls(label, number)


@dataclass(frozen=True)
class Asking:
    """What each slice of a cohort is told: its class by name, '' for none, and values (number, columns)."""

    names: list[str]
    values: torch.Tensor

    @classmethod
    def of(cls, model: Trained, cohort: Cohort) -> Asking:
        """The cohort as the model is told it."""
        columns = told_columns(model)
        values = told_values(model.labels(cohort.label, range(cohort.number)), columns)
        at = next((i for i, c in enumerate(columns) if c.name == CLASS), None)
        if at is None:
            return cls([""] * cohort.number, values)
        return cls([columns[at].text(v) for v in values[:, at].tolist()], values)


@dataclass
class Drawing:
    """Slices are drawn, screened and written in chunks; what each chunk gave is kept, so that it is not drawn again."""

    model: Any
    asking: Asking
    screen: Screen
    work: Work
    seed: int
    network: torch.nn.Module
    images_of: Images
    files: dict[int, tuple[str, str]] = field(default_factory=dict)  # index -> (file, SHA-256)
    features: list[np.ndarray] = field(default_factory=list)  # of the files, in their order
    counts: dict[str, Counter] = field(default_factory=dict)  # of each class: drawn, failed each test

    def __post_init__(self):
        self.number, self.tests = len(self.asking.names), list(self.screen.held_out)
        self.folders = verify.folders_of(self.model.classes)
        self.counts = {name: Counter() for name in sorted(set(self.asking.names))}

    def fill(self) -> None:
        """Draw until every slice of the cohort has passed. ConfigError where too many fail."""
        open_slices, tries, chunks = list(range(self.number)), 0, 0
        with tqdm(total=self.number, unit=" slices", disable=None) as bar:
            while open_slices:
                if tries == TRIES:
                    self.give_up(self.asking.names[open_slices[0]], f"{TRIES} draws of one slice")
                left = []
                for start in range(0, len(open_slices), MEASURE_CHUNK):
                    part = open_slices[start : start + MEASURE_CHUNK]
                    found = self.chunk(chunks, [j + tries * self.number for j in part])
                    left += [j for j, failed in zip(part, found, strict=True) if failed]
                    bar.update(len(part) - sum(found))
                    chunks += 1
                    for name, count in self.counts.items():
                        if count["drawn"] >= FEWEST and count["failed"] > MOST * count["drawn"]:
                            self.give_up(name, f"{count['drawn']:,} drawn slices")
                open_slices, tries = left, tries + 1

    def chunk(self, number: int, indices: list[int]) -> list[bool]:
        """Which of the slices `indices` fail; the others are files now."""
        stored = self.work.read_chunk(number, indices)
        found = stored or self.draw(indices)
        if not stored:
            self.work.write_chunk(number, found)
        failed: list[bool] = np.any(found["failed"], axis=0).tolist()
        passed = [i for i, no in zip(indices, failed, strict=True) if not no]
        self.files |= dict(zip(passed, zip(map(self.file, passed), found["sums"].tolist(), strict=True), strict=True))
        self.features.append(found["features"])
        for i, no, tests in zip(indices, failed, found["failed"].T.tolist(), strict=True):
            count = self.counts[self.asking.names[i % self.number]]
            count.update(drawn=1, failed=int(no), **{t: int(of) for t, of in zip(self.tests, tests, strict=True)})
        return failed

    def draw(self, indices: list[int]) -> dict[str, np.ndarray]:
        """Draw, screen, and write what passes: failed (tests, n), and of those that pass features and SHA-256."""
        squares = self.images_of(indices)
        features = self.network(squares).float()
        rows = [i % self.number for i in indices]
        told = self.asking.values[rows] if len(self.asking.values) else self.asking.values
        found = self.screen.failed(features, quality.thumbnails(squares).to(features.device), told)
        failed = torch.stack([found[test] for test in self.tests])
        passed = (~failed.any(0)).nonzero()[:, 0]
        pictures = self.model.original(squares[passed].numpy())
        paths = [self.work.release / self.file(indices[i]) for i in passed.tolist()]
        with ThreadPoolExecutor(WRITERS) as pool:
            sums = list(pool.map(lambda path, image: write(path, image), paths, pictures))
        return {
            "indices": np.array(indices),
            "failed": failed.numpy(),
            "features": features[passed.to(features.device)].cpu().numpy(),
            "files": np.array([self.file(indices[i]) for i in passed.tolist()], np.str_),
            "sums": np.array(sums, np.str_),
        }

    def file(self, index: int) -> str:
        """Where the slice of an index lies."""
        return f"{verify.SPLIT}/{self.folders[self.asking.names[index % self.number]]}/{index:06d}.png"

    def give_up(self, name: str, what: str) -> None:
        """ConfigError that names the class, the reasons and a remedy; nothing is left."""
        self.work.remove()
        count = self.counts[name]
        tests = sorted((test for test in self.tests if count[test]), key=lambda test: -count[test])
        reasons = ", ".join(f"{datasheet.percent(count[test], count['drawn'])} {test}" for test in tests)
        remedy = REMEDY.get(tests[0], "the model does not obey: see what evaluate says, and train it further")
        of = f" of {name}" if name else ""
        raise ConfigError(f"too few of {what}{of} pass, so nothing is released: {reasons}; {remedy}")

    @property
    def order(self) -> list[int]:
        """The released indices in the order of the cohort."""
        return sorted(self.files, key=lambda i: i % self.number)

    def about(self) -> dict:
        """Counts for release.json."""
        released = Counter(self.asking.names)
        classes = {
            name: {"drawn": c["drawn"], "failed": {test: c[test] for test in self.tests}}
            for name, c in self.counts.items()
        }
        return {
            "classes": {name: {"folder": self.folders[name], "slices": released[name]} for name in self.counts},
            "screening": {"classes": classes, "held_out": self.screen.held_out, "notes": self.screen.notes},
        }

    def manifest(self) -> str:
        """manifest.csv: file, class, what else was asked for, seed, index."""
        columns = told_columns(self.model)
        others = [i for i, column in enumerate(columns) if column.name != CLASS]
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["file", "class", *(columns[i].name for i in others), "seed", "index"])
        for index in self.order:
            j = index % self.number
            cells = [columns[i].text(float(self.asking.values[j, i])) for i in others]
            table.writerow([self.files[index][0], self.asking.names[j], *cells, self.seed, index])
        return text.getvalue()


def write(path: Path, image: np.ndarray) -> str:
    """uint8 (C, H, W) as a PNG without a word in it; its SHA-256."""
    save_png(path, as_picture(image))
    return sha256_of(path)
