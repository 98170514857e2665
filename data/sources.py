"""Find slices and label them: ADNI, OASIS, class folders, one flat folder, NIfTI volumes, phantoms -> records.

No image is decoded here, except for the headers of a few files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
VOLUME_ENDINGS = (".nii", ".nii.gz")
JUNK = re.compile(r"^(\..*|Thumbs\.db|desktop\.ini|__MACOSX|.*\.(part|crdownload|tmp|download))$", re.IGNORECASE)
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val",
          "validate": "val", "validation": "val"}  # fmt: skip
SAME_CLASS = {"CN": "NC"}  # users' copies of ADNI call the controls either
HELD_OUT = 0.1  # of the subjects, where the data have no split of their own
MIN_SUBJECTS = 10  # fewer are not split
ADNI_PATIENT = re.compile(r"(?<!\d)(\d{3}_S_\d{4,5})(?!\d)")
DEFAULT_PHANTOMS = 2000


class DataError(Exception):
    """Data that cannot be used; the text is one line that names the fix. Exit code 78."""

    exit_code = 78


@dataclass(frozen=True)
class Record:
    """One slice. label -1: no class; subject '' where nothing tells it; slice_index >= 0: axial index in a volume."""

    path: str
    name: str
    label: int = -1
    subject: str = ""
    scan: str = ""
    split: str = ""
    slice_index: int = -1


@dataclass
class Source:
    """What was found at a data spec, after the split was applied."""

    spec: str
    root: str
    layout: str
    classes: list[str]
    records: list[Record]
    subject_kind: str  # what `subject` is: patient, scan, case, volume, image or phantom
    split_rule: str
    warnings: list[str] = field(default_factory=list)
    other: list[Record] = field(default_factory=list)  # the slices of the other splits, for duplicate checks
    sizes: str = ""

    def digest(self) -> str:
        """Hash over the names, sizes and times of the files: changes when the source does."""
        if self.layout == "phantoms":
            return hashlib.sha256(f"{self.spec} {len(self.records)}".encode()).hexdigest()
        lines = []
        seen: dict[str, str] = {}
        for r in self.records:
            if r.path not in seen:
                try:
                    about = os.stat(r.path)
                    seen[r.path] = f"{about.st_size} {about.st_mtime_ns}"
                except OSError:
                    seen[r.path] = "missing"
            lines.append(f"{r.name}\t{r.label}\t{r.subject}\t{r.slice_index}\t{seen[r.path]}")
        return hashlib.sha256(
            "\n".join([self.root, *self.classes, *sorted(lines)]).encode(errors="surrogateescape")
        ).hexdigest()

    def describe(self) -> str:
        """One line: layout, classes with counts, subjects, sizes, split rule."""
        counts = Counter(r.label for r in self.records)
        what = ", ".join(f"{name} {counts[i]:,}" for i, name in enumerate(self.classes)) or "no classes"
        subjects = len({r.subject for r in self.records if r.subject})
        who = f", {subjects:,} {self.subject_kind}{'s' if subjects != 1 else ''}" if subjects else ""
        where = "" if self.layout == "phantoms" else f" in {self.root}"
        return f"{self.layout}{where}: {len(self.records):,} slices ({what}){who}, {self.sizes or 'any size'}; split: {self.split_rule}"


# --- walking ----------------------------------------------------------------------------------------------------------
def _ending(name: str) -> str:
    name = name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]


def _is_mask(name: str) -> bool:
    return bool(re.match(r"keras_png_slices_seg(_|$)|seg_\d+_slice", name, re.IGNORECASE))


def _files(folder: Path, depth: int = 0, seen: frozenset = frozenset()) -> list[Path]:
    """All regular image and volume files below a folder, sorted. Symlink loops, pipes and junk are passed over."""
    if depth > 12:
        return []
    try:
        about = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
        if depth == 0:
            raise DataError(
                f"--data {folder}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from None
        return []
    key = (about.st_dev, about.st_ino)
    if key in seen:
        return []
    found: list[Path] = []
    for entry in entries:
        if JUNK.match(entry.name) or _is_mask(entry.name):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError:
            continue  # a dangling link
        if stat.S_ISDIR(mode):
            found += _files(Path(entry.path), depth + 1, seen | {key})
        elif stat.S_ISREG(mode) and _ending(entry.name) in IMAGE_ENDINGS + VOLUME_ENDINGS:
            found.append(Path(entry.path))
    return found


# --- layouts ----------------------------------------------------------------------------------------------------------
def find_source(spec: str, split: str = "train") -> Source:
    """Recognise the layout at `spec` and return the slices of one split: train, test, val or all."""
    if not spec:
        raise DataError("no data: give --data FOLDER, a .pack file, or phantom")
    if spec == "phantom" or spec.startswith("phantom:"):
        return _phantoms(spec, split)
    root = Path(spec).expanduser()
    if not root.exists():
        raise DataError(f"--data {spec}: there is no such file or folder; check the path (phantom[:N] needs no data)")
    if root.is_file():
        if _ending(root.name) in VOLUME_ENDINGS:
            return _finish(_volumes(spec, root.parent, [root]), split)
        raise DataError(
            f"--data {spec}: a single file must be a NIfTI volume or a .pack; give the folder that holds the slices"
        )
    root = root.resolve()
    if _is_mask(root.name):
        raise DataError(f"--data {spec}: these are OASIS's segmentation masks, not images; give the folder above it")
    files = _files(root)
    volumes = [f for f in files if _ending(f.name) in VOLUME_ENDINGS]
    images = [f for f in files if _ending(f.name) in IMAGE_ENDINGS]
    if not files:
        raise DataError(f"--data {spec}: no images (PNG, JPEG, TIFF, BMP) and no NIfTI volumes below this folder")
    if volumes and len(volumes) >= len(images):
        return _finish(_volumes(spec, root, volumes), split)
    if any("keras_png_slices" in str(f) for f in images[:50]) and any(
        re.search(r"case_\d+_slice", f.name) for f in images
    ):
        return _finish(_oasis(spec, root, images), split)
    return _finish(_folders(spec, root, images), split)


def _phantoms(spec: str, split: str) -> Source:
    from data.phantom import CLASSES, phantom_label

    text = spec.partition(":")[2] or str(DEFAULT_PHANTOMS)
    if not text.isdigit() or not 1 <= int(text) <= 1_000_000:
        raise DataError(f"--data {spec}: phantom[:N] takes a number from 1 to 1000000")
    # The test phantoms are other brains: indices from a range of their own.
    first = {"train": 0, "all": 0, "val": 2_000_000, "test": 4_000_000}[split]
    records = [
        Record("", f"phantom_{i}", phantom_label(0, i), f"{i}", f"{i}", split, i)
        for i in range(first, first + int(text))
    ]
    return Source(spec, "", "phantoms", list(CLASSES), records, "phantom", f"{split}, every index is another brain")


def _oasis(spec: str, root: Path, images: list[Path]) -> Source:
    records = []
    for path in images:
        folder = re.search(r"keras_png_slices_(train|validate|test)", str(path))
        case = re.search(r"case_(\d+)_slice_(\d+)", path.name)
        if case is None:
            continue
        name = str(path.relative_to(root))
        which = SPLITS[folder.group(1)] if folder else ""
        records.append(Record(str(path), name, -1, f"case {case.group(1)}", case.group(1), which))
    return Source(spec, str(root), "OASIS", [], records, "case", "")


def _volumes(spec: str, root: Path, volumes: list[Path]) -> Source:
    """One record per volume; its slices are chosen when it is decoded."""
    records = [
        Record(str(v), str(v.relative_to(root)), -1, v.name.split("_")[0].split(".")[0], v.name, _given_split(root, v))
        for v in volumes
    ]
    return Source(spec, str(root), "NIfTI volumes", [], records, "volume", "")


def _given_split(root: Path, path: Path) -> str:
    parts = [root.name, *path.relative_to(root).parts[:-1]]
    return next((SPLITS[p.lower()] for p in reversed(parts) if p.lower() in SPLITS), "")


def _folders(spec: str, root: Path, images: list[Path]) -> Source:
    """Class folders, with or without a level of splits; ADNI; or one flat folder."""
    found: list[tuple[Path, str, str]] = []
    for path in images:
        parts = [
            p
            for p in path.relative_to(root).parts[:-1]
            if p.lower() not in SPLITS and p not in ("AD_NC", "data", "images")
        ]
        found.append((path, _given_split(root, path), parts[-1] if parts else ""))
    names = sorted({SAME_CLASS.get(c, c) for _, _, c in found if c})
    if len(names) == 1 and all(c for _, _, c in found):
        names = names if len({s for _, s, _ in found}) > 1 else []
    patients = _adni_patients(root) if set(names) <= {"AD", "NC", "MCI", "SMC", "EMCI", "LMCI"} and names else {}
    adni = bool(names) and set(names) <= {"AD", "NC", "MCI", "SMC", "EMCI", "LMCI"}
    records = []
    for path, which, label in found:
        stem = path.name.split(".")[0]
        numbered = re.match(r"(.+?)[_-]\d+$", stem)  # <scan>_<slice>
        scan = numbered.group(1) if numbered else ""
        patient = (
            patients.get(stem) or patients.get(scan) or (m.group(1) if (m := ADNI_PATIENT.search(path.name)) else "")
        )
        label = SAME_CLASS.get(label, label)
        records.append(Record(
            str(path), str(path.relative_to(root)), names.index(label) if label in names else -1,
            patient or scan or stem, scan or stem, which,
        ))  # fmt: skip
    known = [r for r in records if ADNI_PATIENT.fullmatch(r.subject)]
    kind = (
        "patient"
        if known and len(known) == len(records)
        else "scan"
        if any(r.scan != Path(r.name).name.split(".")[0] for r in records)
        else "image"
    )
    layout = "ADNI" if adni else "class folders" if names else "flat folder"
    source = Source(spec, str(root), layout, names, records, kind, "")
    if adni and kind != "patient":
        source.warnings.append(
            "no patient ids (meta_data_with_label.json is not beside the images): the split is scan-level, and in ADNI 216 patients "
            "are in both train and test, so test figures will look better than they are"
        )
    if known and len(known) < len(records):
        source.warnings.append(
            f"{len(records) - len(known):,} slices have no patient id; their scans count as patients"
        )
    return source


def _adni_patients(root: Path) -> dict[str, str]:
    """{image or scan id: patient id} from meta_data_with_label.json in the folder, above it, or one below."""
    candidates = [f / "meta_data_with_label.json" for f in (root, root.parent, root.parent.parent)]
    for path in [*candidates, *sorted(root.glob("*/meta_data_with_label.json"))]:
        if not path.is_file():
            continue
        try:
            if path.stat().st_size > 500_000_000:
                raise ValueError("larger than 500 MB")
            entries = json.loads(path.read_text(errors="replace"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: cannot be read ({error}); repair it, or move it away to split by scan") from None
        entries = (
            entries.items() if isinstance(entries, dict) else enumerate(entries) if isinstance(entries, list) else ()
        )
        patients = {}
        for key, value in entries:
            match = ADNI_PATIENT.search(json.dumps(value.get("raw", value)) if isinstance(value, dict) else str(value))
            if match:
                patients[str(key).split(".")[0].split("/")[-1]] = match.group(1)
        return patients
    return {}


# --- splits -----------------------------------------------------------------------------------------------------------
def held_out(subject: str) -> bool:
    """Whether a subject belongs to the tenth that is kept for testing: a fixed function of its name."""
    return int(hashlib.sha256(subject.encode(errors="surrogateescape")).hexdigest(), 16) % 1000 < HELD_OUT * 1000


def _finish(source: Source, split: str) -> Source:
    """Apply the split rule, describe sizes, check for what must not be."""
    records, kind = source.records, source.subject_kind
    given = {r.split for r in records if r.split}
    if split == "all":
        chosen, rule = records, "all slices, train and test together"
    elif len(given) == 1 and not any(r.split == "" for r in records):
        # The user points at one split's own folder.
        only = next(iter(given))
        if split != only and not (split, only) == ("test", "val"):
            chosen, rule = (records, f"the folder's own ({only})") if split == "train" and only != "test" else ([], "")
            if split == "train" and only == "test":
                raise DataError(
                    f"--data {source.spec}: this is the test folder; train on the folder above it, or say --split test"
                )
        else:
            chosen, rule = records, f"the folder's own ({only})"
    elif given:
        chosen, rule = _folder_split(source, split, given)
    else:
        chosen, rule = _hashed_split(source, split)
    if not chosen:
        raise DataError(
            f"--data {source.spec}: no slices in --split {split}; the data have {', '.join(sorted(given)) or 'no split'}"
        )
    inside = {id(r) for r in chosen}
    source.other = [r for r in records if id(r) not in inside]
    source.records, source.split_rule = chosen, rule
    empty = [name for i, name in enumerate(source.classes) if not any(r.label == i for r in chosen)]
    if empty:
        source.warnings.append(f"no slices of class {', '.join(empty)} in this split")
    if kind == "image":
        source.warnings.append(
            "the file names tell no subject: the split is by slice, and neighbours of one head may be on both sides"
        )
    source.sizes = _sizes(chosen)
    return source


def _folder_split(source: Source, split: str, given: set[str]) -> tuple[list[Record], str]:
    """The data's own split; a patient who is in test as well leaves train, where patients are known."""
    wanted = split if split in given else {"val": "test", "test": "val"}.get(split, split)
    chosen = [r for r in source.records if r.split == wanted]
    rule = f"{wanted} folder" + ("" if wanted == split else f" (there is no {split})")
    if split == "train":
        tests = {r.subject for r in source.records if r.split and r.split != "train"}
        both = {r.subject for r in chosen} & tests
        if both and source.subject_kind in ("patient", "case"):
            chosen = [r for r in chosen if r.subject not in both]
            source.warnings.append(
                f"{len(both)} {source.subject_kind}s are in train and in test too: left out of train"
            )
        elif both and source.subject_kind == "scan":
            source.warnings.append(
                f"{len(both)} scan names are in train and in test too; if they are the same heads, move them"
            )
    return chosen, f"{rule}, {source.subject_kind}-level"


def _hashed_split(source: Source, split: str) -> tuple[list[Record], str]:
    """No split is given: a tenth of the subjects, chosen by a hash of their names, is held out."""
    subjects = {r.subject for r in source.records}
    out = {s for s in subjects if held_out(s)}
    if len(subjects) < MIN_SUBJECTS or not out or out == subjects:
        if split != "train":
            raise DataError(
                f"--data {source.spec}: only {len(subjects)} {source.subject_kind}s, too few to hold any out for --split {split}; use all"
            )
        return source.records, f"none ({len(subjects)} {source.subject_kind}s are too few to hold any out)"
    chosen = [r for r in source.records if (r.subject in out) == (split != "train")]
    return (
        chosen,
        f"{'nine tenths' if split == 'train' else 'a tenth'} of the {source.subject_kind}s by a hash of the name",
    )


def _sizes(records: list[Record]) -> str:
    """Most common width x height in the headers of a few files."""
    from PIL import Image

    counts: Counter[str] = Counter()
    for r in records[:: max(len(records) // 12, 1)][:16]:
        if _ending(r.path) in VOLUME_ENDINGS:
            return "volumes"
        try:
            with Image.open(r.path) as image:
                counts["{}x{}".format(*image.size)] += 1
        except Exception:  # Pillow raises whatever a bad file makes it; the pack reports such files by name
            continue
    common = counts.most_common(1)
    return f"{common[0][0]} px{' and other sizes' if len(counts) > 1 else ''}" if common else ""
