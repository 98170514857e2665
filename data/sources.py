"""Find the slices behind a data path and label them: ADNI, OASIS, class folders, one flat folder, NIfTI, phantoms.

    source = find_source("/path/to/ADNI", split="train")
    print(source.describe())

Nothing is decoded here, and only a few headers are read, so this is cheap enough for a login node.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from data import formats, people, settle
from data.choose import check_choices, included, not_used, paged, several_modalities
from data.columns import SLICE
from data.files import ARCHIVES, PICTURES, VOLUMES, is_phantom
from data.images import BadFile
from data.layouts import CLASS_NAME, LAYOUTS, Files, Place, place
from data.manifest import GUESSED, read_manifest
from data.records import ROOM, Choices, Record, Source
from data.splits import SPLIT_CHOICES, divide, pointed_split, sibling_splits, split_of
from data.tables import Labelled, beside, read_rows
from data.walk import CONVERT, MASK_FILE, MASK_FOLDER, DataError, Found, Walk, some, walk_folder

PHANTOM_DEFAULT, PHANTOM_MAX = 2000, 1_000_000
DEFAULT = Choices()


def find_source(spec: str, split: str = "train", choices: Choices = DEFAULT) -> Source:
    """Recognise the layout behind `spec` and return the records of one split. Raises DataError."""
    if split not in SPLIT_CHOICES:
        raise DataError(f"--split {split}: choose from {', '.join(SPLIT_CHOICES)}")
    if not spec or not spec.strip():
        raise DataError(
            "no data: give --data FOLDER (ADNI, OASIS, class folders, NIfTI), a .pack file, or --data phantom"
        )
    cut = check_choices(choices)
    if is_phantom(spec):
        if choices.given():
            raise DataError(f"--{next(iter(choices.given()))} chooses from files; phantoms have none")
        return _phantoms(spec, split)
    root = Path(spec).expanduser().absolute()
    try:
        mode = root.stat().st_mode
    except (OSError, ValueError) as error:
        raise DataError(
            f"--data {spec}: cannot be opened ({getattr(error, 'strerror', None) or error}); check the path"
        ) from None
    if stat.S_ISREG(mode):
        if root.name.lower().endswith(ARCHIVES):
            source, split = _folder(spec, root, split)
        else:
            source = _table(spec, root) if root.suffix.lower() == ".csv" else _single_file(spec, root, split)
    elif stat.S_ISDIR(mode):
        source, split = _folder(spec, root, split)
    else:
        raise DataError(f"--data {spec}: neither a folder nor a file; point --data at a folder of slices")
    source.plane, source.choices, source.slices = choices.plane or "axial", choices, cut
    source.value_range, source.spacing = choices.range, float(choices.spacing or 0)
    return _finish(source, split)


# --- folders ----------------------------------------------------------------------------------------------------------
def _folder(spec: str, root: Path, split: str) -> tuple[Source, str]:
    """The source of a folder, not yet divided, and the split that is asked for."""
    if MASK_FOLDER.fullmatch(root.name):
        raise DataError(
            f"--data {spec}: these are segmentation masks, not images; point --data at the folder beside it"
        )
    warnings: list[str] = []
    listed = os.listdir(root) if root.is_dir() and os.access(root, os.R_OK | os.X_OK) else []
    top = {e.lower(): e for e in listed}
    if "ad_nc" in top and "keras_png_slices_data" not in top and (root / top["ad_nc"]).is_dir():
        root = root / top["ad_nc"]  # ADNI's parent folder, whatever else lies in it
    given = root
    pointed = split_of(root.name) and not any(split_of(e) for e in top)
    if pointed:  # one split folder: its siblings are needed to keep people apart
        split, own, root = pointed_split(spec, root, split, warnings), root.name, root.parent
        walk = walk_folder(root, starts=[own, *sibling_splits(root, own)])
    else:
        own, walk = "", walk_folder(root)
    left_out = walk.left_out() + _previews(walk)
    volumes = len(walk.pictures) < len(walk.volumes)
    files, unused = (walk.volumes, walk.pictures) if volumes else (walk.pictures, walk.volumes)
    if not any(f.folders[:1] == (own,) or not own for f in files):
        _nothing(spec, root, walk)
    if unused:
        here, there = ("pictures", "volumes") if volumes else ("NIfTI volumes", "pictures")
        warnings.append(
            f"{len(unused):,} {here} beside the {there} are not used; point --data at their folder for them"
        )
        left_out += [(f.relative, f"beside {there}") for f in unused]
    _report_left_out(left_out, walk, warnings)
    files, skipped = _common_root(files)
    _refuse_several(spec, root, files)
    # A file of several pages is a scan, as a volume is: the number in its name is no slice's.
    placed = place(files, volumes or _are_stacks(files), warnings)
    _report_empty(walk, warnings)
    root = root.joinpath(*skipped)
    names = [p.name if not p.why else "" for p in placed]
    classes = sorted({n for n in names if n})
    layout = next(x for x in LAYOUTS if x.fits(Files(placed, classes, volumes))).name
    records = [_record(p) for p in placed]
    labelled = Labelled(records, names, [r.name for r in records])
    said = beside([given, root, root.parent], labelled, layout == "ADNI" and not all(p.sure for p in placed), warnings)
    warnings += [f"read {text}" for text in said]
    patients = any("the patient of" in text for text in said)
    bad = [(people.hide(n), why) for n, why in walk.bad]
    source = Source(spec, str(root), layout, classes, records, "none", split, "", warnings, bad)
    source.kind, source.left_out = "volumes" if volumes else "images", left_out
    source.classes = labelled.names  # one of each record, until _finish counts them
    sure = labelled.told | {p.file.path for p in placed if p.sure}
    source.subject_kind = "patient" if patients else _kind_of(records, sure)
    return source, split


def _are_stacks(files: list[Found]) -> bool:
    """Whether pictures are files of several pages each, by a few of them."""
    paged = [f for f in files if f.name.lower().endswith(settle.PAGED)]
    counts = []
    for f in paged[:: max(len(paged) // 5, 1)][:5] if len(paged) * 2 > len(files) else []:
        with contextlib.suppress(BadFile):
            counts.append(formats.look(f.path).pages)
    return sum(n > 1 for n in counts) * 2 > len(counts)


def _record(p: Place) -> Record:
    f = p.file
    return Record(
        f.path, f.relative, -1, p.person, p.scan, p.split, -1, f.size, f.mtime_ns, session=p.session,
        modality=p.modality, position=p.position, use=not p.why, why=p.why,
    )  # fmt: skip


def _kind_of(records: list[Record], sure: set[str]) -> str:
    """What `subject` is: patient where every one of them is an id of a person, scan where it is the start of a name."""
    used = [r for r in records if r.use]
    known = [r for r in used if r.subject]
    if not known:
        return "none"
    return "patient" if all(r.path in sure or _hashed(r) for r in known) and len(known) == len(used) else "scan"


def _hashed(r: Record) -> bool:
    return bool(re.fullmatch(r"p[0-9a-f]{12}", r.subject))


def _previews(walk: Walk) -> list[tuple[str, str]]:
    """Take the pictures out that programs put beside volumes: named after one in their folder, or in the one above."""
    stems: dict[str, set[str]] = {}
    for f in walk.volumes:
        stems.setdefault("/".join(f.folders), set()).add(f.stem.lower())
    found = []
    for f in walk.pictures if stems else ():
        near = {s for depth in (0, 1) for s in stems.get("/".join(f.folders[: len(f.folders) - depth]), ())}
        if any(f.stem.lower().startswith(s) for s in near):
            found.append(f)
    walk.pictures[:] = [f for f in walk.pictures if f not in set(found)] if found else walk.pictures
    return [(f.relative, "a preview of a volume") for f in found]


def _report_left_out(left_out: list[tuple[str, str]], walk: Walk, warnings: list[str]) -> None:
    """Say what is never an image, and what is not understood, with counts."""
    if walk.masks:
        warnings.append(f"segmentation masks are never images; left out: {some(walk.masks)}")
    for why in ("derivatives", "a preview of a volume"):
        names = [name for name, reason in left_out if reason == why]
        if names:
            what = "derivatives and reports are" if why == "derivatives" else f"{len(names):,} previews of volumes are"
            warnings.append(f"{what} never images; left out: {some(names, 3)}")
    for suffix, count in sorted(walk.unknown.items()):
        what = f"{count:,} {suffix or 'files without a suffix'}{' files' if suffix else ''}"
        fix = f"; convert with {CONVERT[suffix]}" if suffix in CONVERT else ""
        warnings.append(people.hide(f"{what} are not understood and not used{fix}"))


def _nothing(spec: str, root: Path, walk: Walk) -> None:
    if root.resolve() == ROOM:
        raise DataError(
            f"--data {spec} is the toolkit's own source folder and holds no slices; give --data the folder of "
            "your slices"
        )
    if walk.bad and root.is_file():
        raise DataError(f"--data {spec}: {walk.bad[0][1]}; unpack it, or give --data a folder")
    if walk.bad:
        raise DataError(
            f"--data {spec}: no images that can be used, but {len(walk.bad)} bad entries: "
            f"{some([f'{n} ({r})' for n, r in walk.bad])}"
        )
    if walk.masks:
        raise DataError(
            f"--data {spec}: only segmentation masks here ({some(walk.masks)}), which are never images; point --data "
            "at the slices"
        )
    known = [
        f"{n:,} {suffix or 'files without a suffix'} (convert with {CONVERT[suffix]})"
        for suffix, n in walk.unknown.items()
        if suffix in CONVERT
    ]
    raise DataError(
        f"--data {spec}: no images in this folder (.png .jpg .jpeg .tif .bmp .gif .webp .nii .nii.gz)"
        + (f", but {', '.join(known)}" if known else "")
        + "; point --data at the slices"
    )


def _common_root(files: list[Found]) -> tuple[list[Found], tuple[str, ...]]:
    """Step over wrapper folders, such as keras_png_slices_data, to a choice, a split, a class or a person."""
    skipped: tuple[str, ...] = ()
    while True:
        first = {f.folders[0] if f.folders else "" for f in files}
        name = next(iter(first))
        if (
            len(first) > 1
            or not name
            or split_of(name)
            or CLASS_NAME.fullmatch(name)
            or people.known_person(name)
            or people.SESSION.fullmatch(name)
            or min(len(f.folders) for f in files) < 2
        ):
            return files, skipped
        files = [replace(f, folders=f.folders[1:]) for f in files]
        skipped += (name,)


def _refuse_several(spec: str, root: Path, files: list[Found]) -> None:
    """A folder of several data sets: one with folders above and below its split level that are no classes."""
    for folders in dict.fromkeys(f.folders for f in files):
        at = next((i for i, part in enumerate(folders) if split_of(part)), 0)
        above = folders[:at]
        named = any(CLASS_NAME.fullmatch(x) or people.known_person(x) for x in above)
        if above and len(folders) > at + 1 and not named:
            sets = sorted({g.folders[0] for g in files if g.folders})
            raise DataError(f"--data {spec} holds several data sets ({some(sets)}); point --data at one of them")


def _report_empty(walk: Walk, warnings: list[str]) -> None:
    """Warn about folders without any image below them, such as an empty class folder."""
    used, parents = set(), set()
    for folder in {f.path[: -len(f.name) - 1] for f in walk.pictures + walk.volumes}:
        while folder not in used and len(folder) > 1:
            used.add(folder)
            folder = os.path.dirname(folder)
    parents = {os.path.dirname(path) for path, _ in walk.folders}
    empty = sorted(relative for path, relative in walk.folders if path not in used and path not in parents)
    if empty:
        warnings.append(f"no images in {some(empty)}")


# --- a table, one file ------------------------------------------------------------------------------------------------
def _table(spec: str, path: Path) -> Source:
    """The source that a table of --out describes, edited or not."""
    records, names, bad, kind = read_manifest(spec, path)
    source = Source(spec, str(path.parent), "table", names, records, "none", "train", "", [], bad, kind=kind)
    source.subject_kind = _kind_of(records, {r.path for r in records if r.subject and r.why != GUESSED})
    return source


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
        raise DataError(
            f"--data {spec}: neither a folder, an image, a NIfTI volume, a .csv nor a .pack; unpack archives first"
        )
    if MASK_FILE.fullmatch(path.name):
        raise DataError(f"--data {spec} is a segmentation mask, not an image")
    if split not in ("train", "all"):
        raise DataError(f"--split {split}: a single file has no {split} split; use --split train")
    person = people.known_person(path.name) or found.stem
    record = _record(Place(found, person=person, scan=found.stem))
    return Source(spec, str(path.parent), layout, [""], [record], "scan", split, "", kind=kind)


# --- from rows to a source --------------------------------------------------------------------------------------------
def _finish(source: Source, split: str) -> Source:
    """Join --table, choose, count the classes, divide: the source of one split."""
    choices, warnings = source.choices, source.warnings
    labelled = Labelled(source.records, source.classes, [r.name for r in source.records])
    if choices.table:
        try:
            rows = read_rows(Path(choices.table).expanduser())
        except BadFile as error:
            raise DataError(
                f"--table {choices.table}: {error}; give a .csv or .tsv with a line of column names"
            ) from None
        warnings.append(f"read {labelled.join(Path(choices.table).name, rows, True)}")
        sure = {r.path for r in source.records if source.subject_kind == "patient" and r.subject}
        source.subject_kind = _kind_of(source.records, sure | labelled.told)
    records = included(source, labelled.records)
    if source.slices and source.kind == "images":
        records, labelled.names = paged(records, labelled.names)
        low, high = source.slices
        records = [not_used(r, "outside --slices") if r.use and not low <= r.position <= high else r for r in records]
        if not any(r.use for r in records):
            raise DataError(
                f"--slices {choices.slices}: no slice of {source.spec} lies there, or no name holds a number of a slice"
            )
    source.classes = sorted({n for n, r in zip(labelled.names, records, strict=True) if n and r.use})
    index = {name: i for i, name in enumerate(source.classes)}
    records = [r if n not in index else r.but(label=index[n]) for r, n in zip(records, labelled.names, strict=True)]
    source.refusal = several_modalities(source, records)
    unnamed = sum(not r.subject for r in records if r.use)
    if 0 < unnamed < sum(r.use for r in records):
        warnings.append(f"{unnamed:,} files have no subject in their names; each counts as its own")
    single = source.layout.startswith("one ")
    if not single:
        _say_level(source, warnings)
    sides = divide(source.spec, records, split, source.subject_kind, warnings)
    source.records, source.others = sides.take(records), sides.take(records, others=True)
    source.split, source.split_rule = sides.split, "one file, nothing held out" if single else sides.rule
    if source.layout == "table":
        source.split_rule = source.split_rule.replace("the given folders", "as the table says")
    source.table = records if split == "all" else [_on(r, s) for r, s in zip(records, sides.sides, strict=True)]
    present = {r.label for r in source.records}
    missing = [name for i, name in enumerate(source.classes) if i not in present]
    if missing:
        warnings.append(f"the chosen split has no slice of class {', '.join(missing)}")
    warnings[:] = [people.hide(text) for text in warnings]
    return source


def _on(r: Record, side: str) -> Record:
    """A row of the table with the side of the split that it is on."""
    if not r.use or side == r.split:
        return r
    return r.but(split=side) if side else not_used(r, "this person is in test or val too")


def _say_level(source: Source, warnings: list[str]) -> None:
    """Where people cannot be told apart it is said, every time."""
    fix = "give --table FILE with a column file or scan, and person"
    if source.layout == "ADNI" and source.subject_kind != "patient":
        warnings.append(
            "the split is SCAN-LEVEL: without meta_data_with_label.json beside AD_NC patients cannot be told "
            "apart, and in the "
            "course's ADNI 216 patients are in both train and test; figures on the test split will look too good"
        )
    elif source.subject_kind == "scan":
        if source.layout == "table":
            fix = "correct the column person, and empty the column why"
        warnings.append(f"the split is SCAN-LEVEL: names tell scans apart, and a person may have several; {fix}")
    elif source.subject_kind == "none":
        warnings.append(
            f"the split is SLICE-LEVEL: no name tells whose slice it is, and a person may be on both sides; {fix}"
        )


# --- phantoms ---------------------------------------------------------------------------------------------------------
def _phantoms(spec: str, split: str) -> Source:
    """Procedural slices. The splits are separate brains: seeds 0 (train, N slices), 1 (test) and 2 (val, N/10 each)."""
    from data.phantom import CLASSES, phantom_label
    from data.phantom_people import phantom_person

    match = re.fullmatch(r"phantom(?::(\d{1,7}))?(:people)?", spec)
    n = int(match[1] or PHANTOM_DEFAULT) if match else 0
    if not match or not 1 <= n <= PHANTOM_MAX:
        forms = f"phantom or phantom:N with N from 1 to {PHANTOM_MAX:,}, or phantom:N:people"
        raise DataError(f"--data {spec}: write {forms}")

    def told(seed: int, i: int) -> dict:
        """What a table would say of it."""
        if not match[2]:
            return {}
        person = phantom_person(seed, i)
        place = float(person.pop(SLICE))
        return {"position": place, "attributes": tuple(sorted(person.items()))}

    records = []
    for seed, side, count in ((0, "train", n), (1, "test", max(1, n // 10)), (2, "val", max(1, n // 10))):
        if split in (side, "all"):
            for i in range(count):
                name = f"phantom-{seed}-{i:06d}"
                records.append(Record("", name, phantom_label(seed, i), name, "", side, i, **told(seed, i)))
    rule = "train, test and val are different brains" if split != "all" else "everything, train, test and val mixed"
    layout = "phantoms of people" if match[2] else "phantoms"
    return Source(spec, "", layout, list(CLASSES), records, "none", split, rule, kind="phantom")
