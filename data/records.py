"""What a source of slices is made of: its records, and what is said of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data import columns, people
from data.formats import shown_size
from data.reading import BadFile
from data.walk import DataError

ROOM = Path(__file__).resolve().parent  # this package; never data by accident


# What the contents of a pack depend on besides the records.
DECIDED = "kind layout classes split split_rule subject_kind bad plane slices value_range spacing".split()


@dataclass(frozen=True)
class Record:
    """One slice, or one NIfTI volume (the pack takes its slices)."""

    path: str  # '' for a phantom
    name: str  # relative to the source's root, with forward slashes
    label: int = -1  # index into Source.classes; -1: no class
    subject: str = ""  # what must not be on both sides of a split; '' unknown
    scan: str = ""
    split: str = ""  # the given one: train, test, val, or ''
    slice_index: int = -1  # phantoms: the index; slices of volumes: axial index (in a pack's names)
    size: int = 0  # bytes
    mtime_ns: int = 0
    page: int = -1  # of a file of several pages; -1: one picture, or a volume whose slices the pack takes
    session: str = ""
    modality: str = ""
    position: float = -1.0  # along the axis: 0 the lowest slice of the scan, 1 the highest; -1 unknown
    attributes: tuple[tuple[str, str], ...] = ()  # further columns of the manifest, sorted by name
    use: bool = True
    why: str = ""  # the reason for a no

    def but(self, **values) -> Record:
        """A copy with other values: dataclasses.replace takes ten times as long, and there may be a million of them."""
        other = object.__new__(Record)
        vars(other).update(vars(self), **values)
        return other


def parse_range(text: str) -> tuple[float, float] | None:
    """(low, high) of LO:HI; None of ''. Raises DataError."""
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
        if math.isfinite(low) and math.isfinite(high) and low < high:
            return low, high
    except ValueError:
        pass
    raise DataError(f"--range {text}: give LO:HI, the values that become black and white, such as 0:4095")


@dataclass(frozen=True)
class Choices:
    """What a person chose of the data, as text; '' the default. Globs are separated by commas."""

    include: str = ""
    exclude: str = ""
    table: str = ""
    plane: str = ""
    slices: str = ""
    range: str = ""
    spacing: str = ""
    volume: str = ""

    @classmethod
    def of(cls, values: Mapping) -> Choices:
        """Those of a configuration, which may be a stored one of before they were there."""
        return cls(**{name: value for name in vars(cls()) if isinstance(value := values.get(name, ""), str)})

    def given(self) -> dict[str, str]:
        """Those that are not the default."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass
class Source:
    """What --data names, looked through: the records of one split, and what to tell of the rest."""

    spec: str
    root: str
    layout: str
    classes: list[str]
    records: list[Record]  # the chosen split, sorted by name
    subject_kind: str  # patient | scan | none
    split: str
    split_rule: str
    warnings: list[str] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)  # (name, reason): entries that are no readable files
    others: list[Record] = field(default_factory=list)  # the other splits, to look for the same pictures
    kind: str = "images"  # images | volumes | phantom
    plane: str = "axial"  # of the slices of volumes: axial | coronal | sagittal
    slices: tuple[float, float] | None = None  # share of the head's extent along the axis that is used
    value_range: str = ""  # LO:HI of the grey values, '' to be decided from a sample
    spacing: float = 0.0  # mm per pixel that volumes are resampled to in plane, 0 for the median of the set
    choices: Choices = Choices()
    table: list[Record] = field(default_factory=list)  # every row, of all splits, with what is not used and why
    left_out: list[tuple[str, str]] = field(default_factory=list)  # (file or folder, reason): never an image
    refusal: str = ""  # why no run may learn from these records as they are

    def digest(self) -> str:
        """Hex digest of what the records are (names, sizes, times, labels, subjects), not of where they lie."""
        h = hashlib.blake2b(digest_size=16)
        h.update(json.dumps({k: getattr(self, k) for k in DECIDED} | self.choices.given()).encode())
        for r in self.records:
            h.update(repr((r.name, r.size, r.mtime_ns, r.label, r.subject, r.scan, r.split, r.slice_index)).encode())
            h.update(repr((r.page, r.session, r.modality, r.position, r.attributes)).encode())
        if self.kind == "phantom":
            people_too = any(r.attributes for r in self.records)
            for name in ("phantom.py", *["phantom_people.py"] * people_too):
                h.update((ROOM / name).read_bytes())
        return h.hexdigest()

    def describe(self) -> str:
        """One line: layout, classes with counts, patients or scans, sizes, split rule."""
        counts = Counter(r.label for r in self.records)
        what = "volumes" if self.kind == "volumes" else "phantoms" if self.kind == "phantom" else "slices"
        classes = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(self.classes)) or "no classes"
        subjects = len({r.subject for r in self.records if r.subject})
        of = f" of {subjects:,} {self.subject_kind}s" if self.subject_kind != "none" else ""
        sizes = self.sizes(9)
        size = "drawn at any size" if self.kind == "phantom" else "size unknown"
        if sizes:
            (height, width), most = sizes.most_common(1)[0]
            size = f"{width}x{height}" + ("" if most == sizes.total() else " mostly")
        bad = f"; {len(self.bad)} bad entries" if self.bad else ""
        found = f"{self.layout}: {len(self.records):,} {what} ({classes}){of}, {size}"
        chosen = "".join(f"; --{name} {value}" for name, value in self.choices.given().items())
        return people.hide(
            f"{found}; split {self.split}: {self.split_rule}{bad}{chosen}" + f"; {self.scale()}" * bool(self.scale())
        )

    def columns(self) -> list[str]:
        """Names of what is known of slices besides their class, in any split: a held-out person may lack it."""
        records = [*self.records, *self.others]
        placed = self.kind == "volumes" or any(r.position >= 0 for r in records)
        names = {name for r in records for name, _ in r.attributes}
        return sorted(names | {columns.SLICE} if placed else names)

    def scale(self) -> str:
        """What was decided once for the whole set, in words; '' before it was."""
        value_range = parse_range(self.value_range)
        words = [f"{self.spacing:.4g} mm per pixel"] if self.spacing and self.kind == "volumes" else []
        if value_range is not None:
            low, high = value_range
            bits = int(high + 1).bit_length() - 1
            if low == 0 and bits >= 8 and high + 1 == 1 << bits:
                words.append("8-bit values" if bits == 8 else f"{bits}-bit values, scaled by {high:.0f}")
            else:
                words.append(f"values from {low:g} to {high:g}" + (" (signed)" if low < 0 else ""))
        return ", ".join(words)

    def check(self) -> None:
        """DataError where no run may learn from these records as they are: several modalities."""
        if self.refusal:
            raise DataError(self.refusal)

    def sizes(self, count: int, bad: list[str] | None = None) -> Counter:
        """Counter of (height, width) over the headers of up to `count` files spread over the records; what is wrong
        with those that have none goes into `bad`."""
        found: Counter = Counter()
        if self.kind == "phantom":
            return found
        n = len(self.records)
        for i in sorted({k * n // count for k in range(count)}) if n > count else range(n):
            try:
                r = self.records[i]
                found[shown_size(r.path, self.plane, self.spacing, r.page)] += 1
            except BadFile as error:
                if bad is not None:
                    bad.append(f"{r.name} ({error})")
        return found
