"""What folders and names mean: split, class, person, session, scan and modality of every file of a folder."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from data import people, reading
from data.splits import split_of
from data.walk import Found, class_name, is_slice, some

DIAGNOSES = {"cn": "NC", "nc": "NC", "ad": "AD", "mci": "MCI"}  # cognitively normal is written CN and NC
OASIS_NAME = re.compile(r"(case_\d+)_slice_\d+", re.I)
ADNI_NAME = re.compile(r"I?(\d+)_(\d+)", re.I)
MANY_FOLDERS = 20  # more folders than that are one per person, not one per class
FEW_PEOPLE = 3  # names that stand for fewer people than this, and for many scans, are no people
# Names that are classes wherever they stand.
CLASS_NAME = re.compile(
    r"cn|nc|ad|[el]?mci|smc|hc|pd|ms|asd|adhd|scz|td|ftd|dlb|als|tbi|cte|pt|patients?|controls?|con|ctrl"
    r"|healthy|normal|abnormal"
    r"|dement(?:ed|ia)|no[nt][-_ ]?dementi?a?(?:ed)?|converted"
    r"|(?:very[-_ ]?)?(?:mild|moderate|severe)(?:[-_ ]?dement(?:ed|ia))?"
    r"|glioma(?:_tumor)?|meningioma(?:_tumor)?|pituitary(?:_tumor)?|no[-_ ]?tumou?r|tumou?r|hgg|lgg|yes|no"
    r"|male|female|alzheimers?|parkinsons?|(?:class|grade|stage|type|group|level|label|category|cdr|cat)[-_ ]?[\d.]+",
    re.I,
)
# Names that say nothing of who or what: wrappers, parts of a download, pipelines.
PLAIN = re.compile(
    r"images?(?:tr|ts)?|imgs?|slices?|pngs?|jpe?gs?|tiffs?|nii|nifti|niftis?|dicom|dataset|data|raw|raws|processed|preprocessed|original"
    r"|mri|mr|brain|brains|scans?|axial|coronal|sagittal|anat|func|dwi|fmap|perf|pet|rawdata|t88_111|subj_\d+|adni(?:\d|go)?"
    r"|aibl|oasis[-_]?\d?|(?:k?fold|k(?=[-_])|cv|part|disc|disk|batch|shard|chunk|site|cent(?:er|re)|hospital|scanner|cohort|split|(?:data|sub)?set"
    r"|vol(?:ume)?|release|version|folder|dir|archive|download|block|round|series|phase|epoch|week|day|year|images?|slices?|slc|sl|plane"
    r"|view|page)(?:[-_ ]?\d+|[-_ ][a-h]|(?<=fold|part)[a-h])|mprage|mp-rage|t1_mprage.*|1[._]?5t|3t|7t|(?:hi)?res",
    re.I,
)


SLICE_FOLDER = re.compile(r"(?:slices?|slc|sl)[-_ ]?(\d{1,4})", re.I)
SPAN = re.compile(r"(?:ages?[-_ ]?)?(\d{1,3})(?:[-_]|to)(\d{1,3})(?:[-_ ]?y(?:(?:ea)?rs?)?)?", re.I)  # 40-60


@dataclass
class Place:
    """A file and what its folders and its name say of it."""

    file: Found
    split: str = ""
    name: str = ""  # class; '' none
    person: str = ""
    sure: bool = False  # a person's id or folder, not the beginning of a name that may be a scan's
    scan: str = ""
    session: str = ""
    modality: str = ""
    number: int = -1  # of the slice
    position: float = -1.0  # along the scan's axis: 0 its lowest slice, 1 its highest
    rest: tuple[str, ...] = ()  # folders that are neither split nor class
    why: str = ""  # why it is not used


def place(files: list[Found], volumes: bool, warnings: list[str]) -> list[Place]:
    """Split, class, person, scan, session, modality and slice number of each file."""
    placed = _splits(files, warnings)
    classes = _Classes([p.rest for p in placed if not p.why], [p.file for p in placed if not p.why], volumes)
    if classes.many:
        warnings.append(f"{classes.many} folders are taken as one per subject, not as classes")
    for p in placed:
        p.name, p.rest = classes.of(p.rest)
    _loose(placed, warnings)
    _people(placed, volumes, classes)
    _patients([p for p in placed if volumes and is_slice(p.file.name)], warnings)
    channels = [_channel(p.file) for p in placed] if volumes else []
    for i, p in enumerate(placed):
        p.session = people.session_of(p.file.relative)
        p.modality = f"channel {channels[i]}" if len(set(channels)) > 1 else _modality(p, volumes)
    _positions(placed)
    return placed


def _positions(placed: list[Place]) -> None:
    """The slice's number in its name becomes its share of the way from its scan's lowest to its highest."""
    spans: dict[tuple, list[Place]] = defaultdict(list)
    for p in placed:
        if p.number >= 0 and p.scan:
            spans[p.split, p.name, p.scan].append(p)
    for own in spans.values():
        low, high = min(p.number for p in own), max(p.number for p in own)
        for p in own if high > low else ():
            p.position = round((p.number - low) / (high - low), 6)


def _splits(files: list[Found], warnings: list[str]) -> list[Place]:
    """The first folder that is called like a split is the split."""
    names = {part.lower() for f in files for part in f.folders}
    nnunet = {"imagestr": "train", "imagests": "test"} if {"imagestr", "imagests"} <= names else {}

    @lru_cache(1 << 16)
    def of(folders: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        for i, part in enumerate(folders):
            split = split_of(part) or nnunet.get(part.lower(), "")
            if split:
                return split, folders[:i] + folders[i + 1 :]
        return "", folders

    placed = [Place(f, split=s, rest=r) for f in files for s, r in [of(f.folders)]]
    outside = [p.file.relative for p in placed if not p.split]
    if outside and len(outside) < len(placed):
        warnings.append(f"{len(outside):,} images outside the split folders are not used: {some(outside, 3)}")
        for p in placed:
            p.why = "" if p.split else "outside the split folders"
    return placed


class _Classes:
    """Which level of folders holds the classes, and which the people."""

    def __init__(self, trees: list[tuple[str, ...]], files: list[Found], volumes: bool):
        self.counts = Counter(trees)
        self.of = lru_cache(1 << 16)(self._of)
        self.files, self.trees, self.volumes = files, trees, volumes
        self.people: set[str] = set()  # names of folders that are one per person
        self.many = 0
        self.depth, self.known = -1, False
        self.plain = {name for tree in self.counts for name in tree if _is_plain(name)}
        shards = self._shards(trees)
        self.plain |= shards
        levels = self._levels()
        named = sum(n for tree, n in self.counts.items() if any(CLASS_NAME.fullmatch(x) for x in tree))
        modal = all(people.modality_of(x) for x in (levels[0] if levels else {""}))
        if named * 2 >= len(trees) > 0 and not modal:
            self.known = True
            depths: Counter = Counter()
            for tree, n in self.counts.items():
                at = next((i for i, x in enumerate(self._strip(tree)) if CLASS_NAME.fullmatch(x)), None)
                depths[at] += n if at is not None else 0
            self.depth = max(depths, key=lambda d: (depths[d], -(d or 0)))
        elif levels:
            self.depth = self._first_level(levels[0], modal)
            if self.depth == 0 and len(levels) > 1 and not modal and self._has_all(levels[1]):
                self.depth = 1  # sites, or other parts, that each have all the classes
        for level, names in enumerate(levels):
            digits = sum(bool(people.DIGIT.search(x)) for x in names) * 2 > len(names)
            many = level != self.depth and (_numbered(names) or len(names) > MANY_FOLDERS)
            if many or (level > self.depth >= 0 and (digits or self._apart(level))):
                self.people |= names

    def _first_level(self, names: set[str], modal: bool) -> int:
        """0 where the folders nearest to the root are classes, else -1: they are one per person, or say nothing."""
        if modal:
            return -1 if self.volumes and len(names) == 1 else 0
        if _numbered(names):
            self.people |= names
            return -1
        if len(names) > MANY_FOLDERS:
            self.people |= names
            self.many = len(names)
            return -1
        if self.volumes and self._one_each(names):
            self.people |= names
            return -1
        return 0

    def _one_each(self, names: set[str]) -> bool:
        """Whether the names of volumes say nobody, or their folder again: then the folder is the person."""
        own: dict[str, set[str]] = defaultdict(set)
        for f, tree in zip(self.files, self.trees, strict=True):
            name, *inner = self._strip(tree) or ("",)
            own[name].add((people.known_person(f.relative) or "/".join(inner) or _volume_person(f.stem)).lower())
        alone = [len(who) == 1 and min(who).startswith(name.lower()) for name, who in own.items() if name]
        nobody = [who == {""} for who in own.values()]
        return sum(nobody) * 2 > len(own) or sum(alone) * 2 > len(own)

    def _strip(self, tree: tuple[str, ...]) -> tuple[str, ...]:
        """The folders that may be classes or people."""
        return tuple(x for x in tree if CLASS_NAME.fullmatch(x) or not self._is_other(x))

    def _is_other(self, name: str) -> bool:
        return name in self.plain or bool(people.known_person(name) or people.SESSION.fullmatch(name))

    def _levels(self) -> list[set[str]]:
        found: list[set[str]] = []
        for tree in self.counts:
            for level, name in enumerate(self._strip(tree)):
                if level == len(found):
                    found.append(set())
                found[level].add(name)
        return found

    def _below(self, level: int) -> dict[str, set[str]]:
        """The folders of a level by the folder at depth 0 that they are in."""
        found: dict[str, set[str]] = defaultdict(set)
        for tree in self.counts:
            parts = self._strip(tree)
            if len(parts) > level:
                found[parts[0]].add(parts[level])
        return found

    def _has_all(self, names: set[str]) -> bool:
        """Whether every folder at depth 0 has the same two or more folders of words in it."""
        inner = self._below(1)
        words = not any(people.DIGIT.search(x) or people.modality_of(x) for x in names)
        return words and len(inner) > 1 < len(names) and all(x == names for x in inner.values())

    def _apart(self, level: int) -> bool:
        """Whether every class has folders of its own on this level, three or more in all: they are people."""
        inner = self._below(level)
        union = set().union(*inner.values())
        return len(inner) > 1 and 2 < len(union) == sum(len(x) for x in inner.values())

    def _shards(self, trees: list[tuple[str, ...]]) -> set[str]:
        """Folders 00000, 00001, ... over which a running number is spread."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for f, tree in zip(self.files, trees, strict=True):
            if tree and re.fullmatch(r"\d{3,8}", tree[-1]):
                digits = re.search(r"(\d+)$", f.stem)
                numbers[tree[-1]].append(int(digits[1]) if digits and len(digits[1]) < 12 else -1)
        if not numbers or len({len(name) for name in numbers}) > 1:
            return set()
        spans = sorted((min(n), max(n)) for n in numbers.values())
        apart = all(a[1] < b[0] for a, b in pairwise(spans))
        long = sum(len(re.sub(r"\D", "", f.stem)) >= 5 for f in self.files) * 2 > len(self.files)
        return set(numbers) if apart and long and spans[0][0] >= 0 else set()

    def _of(self, tree: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """(class, other folders) of a file in these folders."""
        seen = -1
        for i, name in enumerate(tree):
            seen += name in self._strip((name,))
            if self.depth >= 0 and seen == self.depth and name not in self.plain | self.people:
                return class_name(name), tree[:i] + tree[i + 1 :]
            if self.known and CLASS_NAME.fullmatch(name):
                return class_name(name), tree[:i] + tree[i + 1 :]
        return "", tree


def _is_plain(name: str) -> bool:
    return bool(PLAIN.fullmatch(name)) and not CLASS_NAME.fullmatch(name)


def _numbered(names: set[str]) -> bool:
    """Whether folders are numbered people: sub01, P02, 0003, 100_F; not classes such as 0 and 1, or T1 and T2."""
    if len(names) < 2 or not all(people.DIGIT.search(n) for n in names):
        return False
    if any(CLASS_NAME.fullmatch(n) or people.modality_of(n) for n in names):
        return False
    if all(re.fullmatch(r"\d", n) for n in names):
        return False
    spans = sorted((int(m[1]), int(m[2])) for n in names if (m := SPAN.fullmatch(n)))
    if len(spans) * 2 > len(names) and all(a < b <= c for (a, b), (c, _) in pairwise([*spans, (999, 999)])):
        return False  # of ages: 20-40, 41-60, 60+
    shapes = {re.sub(r"\d+", "#", n.lower()) for n in names}
    return len(shapes) == 1 or len(shapes) * 3 <= len(names) or len(names) > 5


def _loose(placed: list[Place], warnings: list[str]) -> None:
    """What lies beside class folders, or the folders beside a flat set, is not used; spellings of a class are one."""
    used = [p for p in placed if not p.why]
    named, loose = [p for p in used if p.name], [p for p in used if not p.name]
    if named and len(loose) > len(used) / 2:
        names = sorted({p.name for p in named})
        warnings.append(f"images in folders beside a flat set are not used: {some(names, 3)}")
        for p in named:
            p.why, p.name = "in a folder beside a flat set", ""
    elif named and loose:
        warnings.append(
            f"{len(loose):,} images outside the class folders are not used: {some([p.file.relative for p in loose], 3)}"
        )
        for p in loose:
            p.why = "outside the class folders"
    spelled: dict[str, str] = {}  # `T1` and `t1` are one class
    for p in used:
        name = DIAGNOSES.get(p.name.lower(), p.name)
        p.name = spelled.setdefault(name.casefold(), name)


def _people(placed: list[Place], volumes: bool, classes: _Classes) -> None:
    """The person: an id of a known kind, else the folder of a person, else the name before a slice number."""
    said = [_said(p, volumes) for p in placed]
    words = [""] * len(said) if volumes else _words(placed, said)
    short = {s.person for s in said}
    if len(short - {""}) < FEW_PEOPLE and len(short) * 8 < len({s.scan for s in said}):
        said = [s._replace(person=s.scan) for s in said]  # study1_001, study1_002: the study is nobody
    shared = Counter(s.person for s in said)
    # P01_visit2 is P01, as long as it is not study1_001.
    people_of = {x: people.said_by_name(x, True).person or x for x in classes.people}
    if len(set(people_of.values())) < max(FEW_PEOPLE, len(people_of) / 8):
        people_of = {}
    for p, s, word in zip(placed, said, words, strict=True):
        folders = [x for x in p.rest if x not in classes.plain and not people.SESSION.fullmatch(x)]
        own = next((x for x in folders if x in classes.people), "")
        person, sure = people.known_person(p.file.relative), True
        if not person and own:
            person, sure = people_of.get(own, own), bool(people.DIGIT.search(own))
        elif not person and volumes:  # alice_T1 and alice_T2 are one; of x_T1 alone the whole name is all there is
            name = bool(people.DIGIT.search(s.person)) or shared[s.person] > 1
            person, sure = s.person if name and s.person else p.file.stem, False
        elif not person:
            person, sure = s.person or word, False
            if not word:
                person = next((x for x in folders if people.DIGIT.search(x)), "")
        scan = p.file.relative if volumes else "/".join((*p.rest, word) if word or not p.rest else p.rest)
        p.person, p.sure, p.scan, p.number = person, sure, scan, s.number


def _said(p: Place, volumes: bool) -> people.Said:
    """What the name says; in slice_07/P01.png the folder has the number, and the name is the person's."""
    at = _slice_folder(p.rest) if not volumes else -1
    if at < 0:
        return people.said_by_name(_stem(p), volumes)
    number, p.rest = int(SLICE_FOLDER.fullmatch(p.rest[at])[1]), (*p.rest[:at], *p.rest[at + 1 :])  # type: ignore[index]
    said = people.said_by_name(p.file.stem, True)
    return said._replace(person=said.person if people.DIGIT.search(said.person) else "", number=number)


@lru_cache(1 << 12)
def _slice_folder(rest: tuple[str, ...]) -> int:
    return next((i for i, x in enumerate(rest) if SLICE_FOLDER.fullmatch(x)), -1)


def _patients(series: list[Place], warnings: list[str]) -> None:
    """PatientID of the headers of DICOM series, where no path has an id of a known kind; before folders."""
    if not series:
        return
    from data import dicom  # has read these headers before; numpy and pydicom, for these alone

    ids: dict[int, str] = {}
    for i, p in enumerate(series):
        with contextlib.suppress(reading.BadFile):
            ids[i] = dicom.headers(p.file.path)[0].patient
    who = set(ids.values()) - {""}
    if len(who) < FEW_PEOPLE and len(who) * 8 < len(series):  # one id for a whole archive: nobody's
        return
    told = [i for i, patient in ids.items() if patient and not people.known_person(series[i].file.relative)]
    for i in told:
        series[i].person, series[i].sure = people.known_person(ids[i]) or ids[i], True
    if told:
        warnings.append(f"the people of {len(told):,} DICOM series are the PatientID of their headers")


def _channel(f: Found) -> str:
    """nnU-Net's number of the channel, which is its modality."""
    found = re.search(r"\d_(\d{4})$", f.stem) if f.stem[-5:-4] == "_" else None
    return found[1] if found and any(re.fullmatch(r"images(tr|ts)", part, re.I) for part in f.folders) else ""


def _stem(p: Place) -> str:
    channel = _channel(p.file)
    return p.file.stem.removesuffix(f"_{channel}") if channel else p.file.stem


def _volume_person(stem: str) -> str:
    return people.known_person(stem) or people.said_by_name(stem, True).person


def _words(placed: list[Place], said: list[people.Said]) -> list[str]:
    """Of each picture its name up to the last number; '' where that only counts pictures."""
    words, stems = [], defaultdict(set)
    for p, s in zip(placed, said, strict=True):
        counts = s.scan and not people.DIGIT.search(s.scan) and people.is_counting(s.scan, p.name)
        words.append("" if counts else s.scan)
        stems[p.name, p.rest].add(words[-1])
    # img_1, img_2, ...: one word for a whole class counts pictures and names nobody. A folder per person does.
    one = all(len(s - {""}) <= 1 and not people.DIGIT.search(max(s)) for s in stems.values())
    return [""] * len(words) if one and len(placed) > len(stems) else words


def _modality(p: Place, volumes: bool) -> str:
    """By the name, else by the nearest folder that tells; OASIS-1 and FreeSurfer keep several versions of one scan."""
    stem = p.file.stem.lower() if volumes else ""
    if re.match(r"oas1_\d{4}_mr\d_mpr", stem):
        version = (
            "masked t88" if "masked" in stem else "t88" if "t88" in stem else "average" if "sbj" in stem else "raw"
        )
        return f"T1w {version}"
    if p.rest and p.rest[-1].lower() == "mri" and stem in people.FREESURFER:
        return f"T1w {stem}"
    return people.modality_of(p.file.stem) or next((m for x in reversed(p.rest) if (m := people.modality_of(x))), "")


# --- layouts ----------------------------------------------------------------------------------------------------------
class Files(NamedTuple):
    """The files that a layout is looked for in."""

    placed: list[Place]
    classes: list[str]
    volumes: bool

    def mostly(self, pattern: re.Pattern) -> bool:
        """Whether more than half of the file names are of this pattern."""
        return sum(bool(pattern.fullmatch(p.file.stem)) for p in self.placed) > len(self.placed) / 2


class Layout(NamedTuple):
    """One way in which slices lie in folders: the first in LAYOUTS that fits is what `--data` is taken for."""

    name: str
    fits: Callable[[Files], bool]


LAYOUTS = (
    Layout("OASIS-1, volumes", lambda f: f.volumes and f.mostly(re.compile(r"OAS1_\d{4}_MR\d_mpr.*", re.I))),
    Layout(
        "BIDS, NIfTI volumes",
        lambda f: f.volumes and f.mostly(re.compile(r"sub-[a-z0-9]+(_[a-z]+-[a-z0-9]+)*_[a-z0-9]+", re.I)),
    ),
    Layout("NIfTI volumes", lambda f: f.volumes and any(".nii" in p.file.name.lower() for p in f.placed)),
    Layout("DICOM series", lambda f: f.volumes and any(is_slice(p.file.name) for p in f.placed)),
    Layout("volumes", lambda f: f.volumes),
    Layout("OASIS", lambda f: f.mostly(OASIS_NAME)),
    Layout("ADNI", lambda f: bool(f.classes) and set(f.classes) <= set(DIAGNOSES.values()) and f.mostly(ADNI_NAME)),
    Layout("class folders", lambda f: bool(f.classes)),
    Layout("flat folders", lambda f: any(p.split for p in f.placed)),
    Layout("flat folder", lambda f: True),
)
