"""Find the slices behind a data path and label them: ADNI, OASIS, class folders, one flat folder, NIfTI, phantoms.

    source = find_source("/path/to/ADNI", split="train")
    print(source.describe())

Nothing is decoded here, and only a few headers are read, so this is cheap enough for a login node.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from data import images
from data.files import PICTURES, VOLUMES
from data.images import BadFile
from data.records import ROOM, Record, Source
from data.splits import SPLIT_CHOICES, _choose, _pointed_split, _sibling_splits, split_of
from data.walk import MASK_FILE, MASK_FOLDER, DataError, Found, Walk, class_name, walk_folder

DIAGNOSES = {"cn": "NC", "nc": "NC", "ad": "AD", "mci": "MCI"}  # cognitively normal is written CN and NC
OASIS_NAME = re.compile(r"(case_\d+)_slice_\d+", re.I)
ADNI_NAME = re.compile(r"I?(\d+)_(\d+)", re.I)
PATIENT = re.compile(r"\d{3}_S_\d{4,5}")  # ADNI
SUBJECT_IN_PATH = re.compile(r"\d{3}_S_\d{4,5}|sub-[a-z0-9]+|OAS\d_?\d{4,5}", re.I)  # ADNI, BIDS, OASIS volumes
MANY_FOLDERS = 20  # more folders than that are one per subject, not one per class
PHANTOM_DEFAULT, PHANTOM_MAX = 2000, 1_000_000


def find_source(spec: str, split: str = "train") -> Source:
    """Recognise the layout behind `spec` and return the records of one split. Raises DataError."""
    if split not in SPLIT_CHOICES:
        raise DataError(f"--split {split}: choose from {', '.join(SPLIT_CHOICES)}")
    if not spec or not spec.strip():
        raise DataError(
            "no data: give --data FOLDER (ADNI, OASIS, class folders, NIfTI), a .pack file, or --data phantom"
        )
    if spec == "phantom" or spec.startswith("phantom:"):
        return _phantoms(spec, split)
    root = Path(spec).expanduser().absolute()
    try:
        mode = root.stat().st_mode
    except (OSError, ValueError) as error:
        raise DataError(
            f"--data {spec}: cannot be opened ({getattr(error, 'strerror', None) or error}); check the path"
        ) from None
    if stat.S_ISREG(mode):
        return _single_file(spec, root, split)
    if not stat.S_ISDIR(mode):
        raise DataError(f"--data {spec}: neither a folder nor a file; point --data at a folder of slices")
    return _folder(spec, root, split)


# --- folders ----------------------------------------------------------------------------------------------------------
def _folder(spec: str, root: Path, split: str) -> Source:
    if MASK_FOLDER.fullmatch(root.name):
        raise DataError(
            f"--data {spec}: these are segmentation masks, not images; point --data at the folder beside it"
        )
    warnings: list[str] = []
    top = {e.lower(): e for e in os.listdir(root)} if os.access(root, os.R_OK | os.X_OK) else {}
    if "ad_nc" in top and "keras_png_slices_data" not in top and (root / top["ad_nc"]).is_dir():
        root = root / top["ad_nc"]  # ADNI's parent folder, whatever else lies in it
    pointed = split_of(root.name) and not any(split_of(e) for e in top)
    if pointed:  # one split folder: its siblings are needed to keep patients apart
        split, own, root = _pointed_split(spec, root, split, warnings), root.name, root.parent
        walk = walk_folder(root, starts=[own, *_sibling_splits(root, own)])
    else:
        own, walk = "", walk_folder(root)
    files = walk.pictures or walk.volumes
    if not any(f.folders[:1] == (own,) or not own for f in files):
        _nothing(spec, root, walk)
    if walk.pictures and walk.volumes:
        warnings.append(
            f"{len(walk.volumes):,} NIfTI volumes beside the pictures are not used; point --data at their folder "
            "for them"
        )
    if walk.masks:
        warnings.append(f"segmentation masks are never images; left out: {_some(walk.masks)}")
    files, skipped = _common_root(files)
    _refuse_several(spec, root, files)
    placed = _place(files, warnings, keep_classes=bool(walk.pictures))
    _report_empty(walk, warnings)
    root = root.joinpath(*skipped)
    maker = _picture_records if walk.pictures else _volume_records
    layout, classes, records, kind = maker(root, placed, warnings)
    chosen, others, rule = _choose(spec, records, split, kind, layout, warnings)
    _note_missing_classes(classes, chosen, warnings)
    return Source(
        spec,
        str(root),
        layout,
        classes,
        chosen,
        kind,
        split,
        rule,
        warnings,
        walk.bad,
        others,
        "images" if walk.pictures else "volumes",
    )


def _nothing(spec: str, root: Path, walk: Walk) -> None:
    if root.resolve() == ROOM:
        raise DataError(
            f"--data {spec} is the toolkit's own source folder and holds no slices; give --data the folder of "
            "your slices"
        )
    if walk.bad:
        raise DataError(
            f"--data {spec}: no usable image, but {len(walk.bad)} bad entries: "
            f"{_some([f'{n} ({r})' for n, r in walk.bad])}"
        )
    if walk.masks:
        raise DataError(
            f"--data {spec}: only segmentation masks here ({_some(walk.masks)}), which are never images; point --data "
            "at the slices"
        )
    raise DataError(
        f"--data {spec}: no images in this folder (.png .jpg .jpeg .tif .bmp .gif .webp .nii .nii.gz); point --data at "
        "the slices"
    )


def _some(names: list[str], count: int = 5) -> str:
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def _common_root(files: list[Found]) -> tuple[list[Found], tuple[str, ...]]:
    """Step over wrapper folders, such as keras_png_slices_data, until there is a choice, a split or a diagnosis."""
    skipped: tuple[str, ...] = ()
    while True:
        first = {f.folders[0] if f.folders else "" for f in files}
        name = next(iter(first))
        if (
            len(first) > 1
            or not name
            or split_of(name)
            or name.lower() in DIAGNOSES
            or min(len(f.folders) for f in files) < 2
        ):
            return files, skipped
        files = [replace(f, folders=f.folders[1:]) for f in files]
        skipped += (name,)


def _refuse_several(spec: str, root: Path, files: list[Found]) -> None:
    """A folder of several data sets: one with folders above and below its split level that are no diagnoses."""
    for f in files:
        at = next((i for i, part in enumerate(f.folders) if split_of(part)), None)
        if at and (len(f.folders) > at + 1) and f.folders[0].lower() not in DIAGNOSES:
            sets = sorted({g.folders[0] for g in files if g.folders})
            raise DataError(f"--data {spec} holds several data sets ({_some(sets)}); point --data at one of them")


@dataclass(frozen=True)
class Placed:
    """A file and what its folders say: split, class, and the rest."""

    file: Found
    split: str
    name: str  # class folder, canonical; '' none
    rest: tuple[str, ...]  # folders below it


def _place(files: list[Found], warnings: list[str], keep_classes: bool) -> list[Placed]:
    """Split and class of each file, from its folders: the first split-like folder is the split, the first other the
    class."""
    placed = []
    for f in files:
        at = next((i for i, part in enumerate(f.folders) if split_of(part)), None)
        others = f.folders if at is None else f.folders[:at] + f.folders[at + 1 :]
        placed.append(
            Placed(
                f, "" if at is None else split_of(f.folders[at]), class_name(others[0]) if others else "", others[1:]
            )
        )
    if any(p.split for p in placed):
        outside = [p.file.relative for p in placed if not p.split]
        if outside:
            warnings.append(f"{len(outside):,} images outside the split folders are not used: {_some(outside, 3)}")
            placed = [p for p in placed if p.split]
    names = {p.name for p in placed if p.name}
    if not all(n.lower() in DIAGNOSES for n in names) and (len(names) > MANY_FOLDERS or not keep_classes):
        if keep_classes:
            warnings.append(f"{len(names)} folders are taken as one per subject, not as classes")
        return [replace(p, name="", rest=(p.name, *p.rest) if p.name else ()) for p in placed]
    loose = [p for p in placed if not p.name]
    if names and loose:
        if len(loose) > len(placed) / 2:
            warnings.append(f"images in folders beside a flat set are not used: {_some(sorted(names), 3)}")
            return loose
        warnings.append(
            f"{len(loose):,} images outside the class folders are not used: "
            f"{_some([p.file.relative for p in loose], 3)}"
        )
        placed = [p for p in placed if p.name]
    spelled: dict[str, str] = {}  # `T1` and `t1` are one class
    for p in placed:
        spelled.setdefault(DIAGNOSES.get(p.name.lower(), p.name).casefold(), DIAGNOSES.get(p.name.lower(), p.name))
    return [
        replace(p, name=spelled[DIAGNOSES.get(p.name.lower(), p.name).casefold()] if p.name else "") for p in placed
    ]


def _report_empty(walk: Walk, warnings: list[str]) -> None:
    """Warn about folders without any image below them, such as an empty class folder."""
    used, parents = set(), set()
    for f in walk.pictures + walk.volumes:
        folder = os.path.dirname(f.path)
        while folder not in used and len(folder) > 1:
            used.add(folder)
            folder = os.path.dirname(folder)
    parents = {os.path.dirname(path) for path, _ in walk.folders}
    empty = sorted(relative for path, relative in walk.folders if path not in used and path not in parents)
    if empty:
        warnings.append(f"no images in {_some(empty)}")


def _note_missing_classes(classes: list[str], chosen: list[Record], warnings: list[str]) -> None:
    present = {r.label for r in chosen}
    missing = [name for i, name in enumerate(classes) if i not in present]
    if missing:
        warnings.append(f"the chosen split has no slice of class {', '.join(missing)}")


# --- records ----------------------------------------------------------------------------------------------------------
def _record(p: Placed, classes: list[str], subject: str, scan: str) -> Record:
    label = classes.index(p.name) if p.name else -1
    f = p.file
    return Record(f.path, f.relative, label, subject, scan, p.split, -1, f.size, f.mtime_ns)


class Pictures(NamedTuple):
    """2-D pictures that a layout is looked for in."""

    root: Path
    placed: list[Placed]
    classes: list[str]
    scans: list[str]  # of each picture; '' where its name has none

    def mostly(self, pattern: re.Pattern) -> bool:
        """Whether more than half of the file names are of this pattern."""
        return sum(bool(pattern.fullmatch(p.file.stem)) for p in self.placed) > len(self.placed) / 2


class Layout(NamedTuple):
    """One way in which slices lie in folders: the first in LAYOUTS that fits is what `--data` is taken for."""

    name: str
    fits: Callable[[Pictures], bool]
    subjects: Callable[[Pictures, list[str]], tuple[list[str], str]]  # (pictures, warnings) -> (subjects, their kind)


def _subjects_by_scan(pictures: Pictures, warnings: list[str]) -> tuple[list[str], str]:
    named = sum(bool(s) for s in pictures.scans)
    if 0 < named < len(pictures.placed):
        warnings.append(
            f"{len(pictures.placed) - named:,} files have no subject in their names; each counts as its own"
        )
    return pictures.scans, "scan" if named else "none"


def _subjects_of_oasis(pictures: Pictures, warnings: list[str]) -> tuple[list[str], str]:
    return pictures.scans, "scan" if any(pictures.scans) else "none"


def _subjects_of_adni(pictures: Pictures, warnings: list[str]) -> tuple[list[str], str]:
    patients = _adni_patients(pictures.root, {s for s in pictures.scans if s}, warnings)
    if patients:
        return [patients.get(_image_id(s), s) for s in pictures.scans], "patient"
    warnings.append(
        "the split is SCAN-LEVEL: without meta_data_with_label.json beside AD_NC patients cannot be told "
        "apart, and in the "
        "course's ADNI 216 patients are in both train and test; figures on the test split will look too good"
    )
    return pictures.scans, "scan" if any(pictures.scans) else "none"


LAYOUTS = (
    Layout("OASIS", lambda p: p.mostly(OASIS_NAME), _subjects_of_oasis),
    Layout(
        "ADNI",
        lambda p: bool(p.classes) and set(p.classes) <= set(DIAGNOSES.values()) and p.mostly(ADNI_NAME),
        _subjects_of_adni,
    ),
    Layout("class folders", lambda p: bool(p.classes), _subjects_by_scan),
    Layout("flat folders", lambda p: any(placed.split for placed in p.placed), _subjects_by_scan),
    Layout("flat folder", lambda p: True, _subjects_by_scan),
)


def _picture_records(root: Path, placed: list[Placed], warnings: list[str]):
    """(layout, classes, records, subject kind) of 2-D pictures."""
    pictures = Pictures(root, placed, sorted({p.name for p in placed if p.name}), _scans(placed))
    layout = next(layout for layout in LAYOUTS if layout.fits(pictures))
    subjects, kind = layout.subjects(pictures, warnings)
    records = [_record(p, pictures.classes, u, s) for p, u, s in zip(placed, subjects, pictures.scans, strict=True)]
    return layout.name, pictures.classes, records, kind


def _scans(placed: list[Placed]) -> list[str]:
    """Scan of each picture: its name up to the last number, below its subject folder; '' where the name has none."""
    scans, stems = [], defaultdict(set)
    for p in placed:
        match = OASIS_NAME.fullmatch(p.file.stem) or re.fullmatch(r"(.+?)(?:[_-]slice)?[_-]\d+", p.file.stem, re.I)
        stem = match.group(1) if match else ""
        stems[p.name, p.rest].add(stem)
        scans.append("/".join((*p.rest, stem) if stem or not p.rest else p.rest))
    # img_1, img_2, ...: one word for a whole class counts pictures and names no subject. A folder per subject does.
    words = all(len(s - {""}) <= 1 and not re.search(r"\d", max(s)) for s in stems.values())
    if words and len(placed) > len(stems):
        return ["/".join(p.rest) for p in placed]
    return scans


def _image_id(text: str) -> str:
    """ADNI's image id in one spelling: I00123 and 123 are the same."""
    return text.upper().removeprefix("I").lstrip("0") or "0"


def _adni_patients(root: Path, scans: set[str], warnings: list[str]) -> dict[str, str]:
    """Image id -> hashed patient id from ADNI's JSON beside the folder, {} without a usable one.

    Patient ids are hashed at once: no file, message or pack of ours ever holds one (ADNI's terms of use).
    """
    for folder in (root, root.parent):
        try:
            paths = sorted(p for p in folder.iterdir() if re.fullmatch(r"meta_?data.*\.json", p.name, re.I))
        except OSError:
            continue
        for path in paths:
            try:
                data = images.read_bytes(path)
                patients: dict[str, str] = {}
                _collect_patients(json.loads(data), patients)
            except (BadFile, ValueError, RecursionError) as error:
                warnings.append(f"{path.name} cannot be read ({type(error).__name__}) and is not used")
                continue
            known = sum(_image_id(s) in patients for s in scans)
            if known < 0.5 * len(scans) or not known:
                warnings.append(f"{path.name} names only {known:,} of {len(scans):,} scans and is not used")
                continue
            if known < len(scans):
                warnings.append(
                    f"{len(scans) - known:,} of {len(scans):,} scans are not in {path.name}; each counts as a patient "
                    "of its own"
                )
            return patients
    return {}


def _collect_patients(node, patients: dict[str, str]) -> None:
    """Fill image id -> patient from any nesting of dicts and lists: an entry's key or id field, and NNN_S_NNNN in its
    text."""
    entries = node.items() if isinstance(node, dict) else (("", v) for v in node) if isinstance(node, list) else ()
    for key, value in entries:
        ids = [key] if re.fullmatch(r"I?\d+", str(key), re.I) else []
        if not ids and isinstance(value, dict):
            fields = [v for k, v in value.items() if re.search(r"id$|^image", str(k), re.I)]
            ids = [str(v) for v in fields if re.fullmatch(r"I?\d+", str(v), re.I)]
        match = PATIENT.search(json.dumps(value)) if ids else None
        if match:
            for i in ids:
                patients[_image_id(i)] = "p" + hashlib.blake2b(match.group().encode(), digest_size=6).hexdigest()
        elif isinstance(value, dict | list):
            _collect_patients(value, patients)


def _volume_records(root: Path, placed: list[Placed], warnings: list[str]):
    """(layout, classes, records, subject kind) of NIfTI volumes: one record per volume."""
    classes = sorted({p.name for p in placed if p.name})
    records, patients = [], 0
    for p in placed:
        match = SUBJECT_IN_PATH.search(p.file.relative)
        patients += bool(match)
        start = p.file.stem.split("_")[0]
        subject = match.group() if match else p.rest[0] if p.rest else start if re.search(r"\d", start) else p.file.stem
        records.append(_record(p, classes, subject, p.file.relative))
    return "NIfTI volumes", classes, records, "patient" if patients == len(placed) else "scan"


def _single_file(spec: str, path: Path, split: str) -> Source:
    lower, info = path.name.lower(), path.stat()
    found = Found(str(path), (), path.name, info.st_size, info.st_mtime_ns)
    if lower.endswith(PICTURES):
        kind, layout = "images", "one picture"
    elif lower.endswith(VOLUMES):
        kind, layout = "volumes", "one NIfTI volume"
    elif lower.endswith(".pack"):
        raise DataError(f"--data {spec} is a pack already; it is opened as it is, not searched")
    else:
        raise DataError(f"--data {spec}: neither a folder, an image, a NIfTI volume nor a .pack; unpack archives first")
    if MASK_FILE.fullmatch(path.name):
        raise DataError(f"--data {spec} is a segmentation mask, not an image")
    if split not in ("train", "all"):
        raise DataError(f"--split {split}: a single file has no {split} split; use --split train")
    record = _record(Placed(found, "", "", ()), [], found.stem, found.stem)
    return Source(spec, str(path.parent), layout, [], [record], "scan", split, "one file, nothing held out", kind=kind)


# --- phantoms ---------------------------------------------------------------------------------------------------------
def _phantoms(spec: str, split: str) -> Source:
    """Procedural slices. The splits are separate brains: seeds 0 (train, N slices), 1 (test) and 2 (val, N/10 each)."""
    from data.phantom import CLASSES, phantom_label

    text = spec.partition(":")[2] if ":" in spec else str(PHANTOM_DEFAULT)
    if not re.fullmatch(r"\d{1,7}", text) or not 1 <= int(text) <= PHANTOM_MAX:
        raise DataError(f"--data {spec}: write phantom or phantom:N with N from 1 to {PHANTOM_MAX:,}")
    n = int(text)
    records = []
    for seed, side, count in ((0, "train", n), (1, "test", max(1, n // 10)), (2, "val", max(1, n // 10))):
        if split in (side, "all"):
            records += [
                Record("", f"phantom-{seed}-{i:06d}", phantom_label(seed, i), f"phantom-{seed}-{i:06d}", "", side, i)
                for i in range(count)
            ]
    rule = "train, test and val are different brains" if split != "all" else "everything, train, test and val mixed"
    return Source(spec, "", "phantoms", list(CLASSES), records, "none", split, rule, kind="phantom")
