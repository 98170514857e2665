"""What a person chooses of the data: files by globs, slices by their place; and the one modality that a run learns."""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter

from data import people, settle
from data.records import Choices, Record, Source
from data.walk import DataError

PLANES = ("axial", "coronal", "sagittal")


def check_choices(choices: Choices) -> tuple[float, float] | None:
    """Raise DataError for a choice that cannot be, with the flag to mend; returns --slices as numbers."""
    if choices.plane not in ("", *PLANES):
        raise DataError(f"--plane {choices.plane}: choose from {', '.join(PLANES)}")
    cut = _pair("slices", choices.slices)
    if cut and not 0 <= cut[0] < cut[1] <= 1:
        raise DataError(f"--slices {choices.slices}: give shares LO:HI with 0 <= LO < HI <= 1, such as 0.3:0.7")
    if (low_high := _pair("range", choices.range)) and not low_high[0] < low_high[1]:
        raise DataError(f"--range {choices.range}: give grey values LO:HI with LO < HI, such as 0:4095")
    try:
        spacing = float(choices.spacing or 1)
    except ValueError:
        spacing = 0.0
    if not 0.05 <= spacing <= 20:
        raise DataError(f"--spacing {choices.spacing}: give mm per pixel from 0.05 to 20, such as 1")
    if choices.volume and not re.fullmatch(r"\d{1,6}", choices.volume):
        raise DataError(f"--volume {choices.volume}: give the number of a volume, from 0")
    return cut


def _pair(flag: str, text: str) -> tuple[float, float] | None:
    if not text:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low = high = math.nan
    if not math.isfinite(low) or not math.isfinite(high):
        raise DataError(
            f"--{flag} {text}: give two numbers LO:HI, such as {'0.3:0.7' if flag == 'slices' else '0:4095'}"
        )
    return low, high


def paged(records: list[Record], names: list[str]) -> tuple[list[Record], list[str]]:
    """A record per page, as --slices chooses among pages too."""
    of = {r.path: name for r, name in zip(records, names, strict=True)}
    records = settle.by_page(records)
    return records, [of[r.path] for r in records]


def not_used(r: Record, why: str) -> Record:
    """The record as one that is left out, and why."""
    return r.but(use=False, why=why)


def _globs(text: str) -> list[re.Pattern]:
    return [re.compile(fnmatch.translate(glob.strip())) for glob in text.split(",") if glob.strip()]


def included(source: Source, records: list[Record]) -> list[Record]:
    """The records with those that --include and --exclude leave out marked. A glob is of the path or of the name."""
    include, exclude = _globs(source.choices.include), _globs(source.choices.exclude)

    def hit(globs: list[re.Pattern], name: str) -> bool:
        return any(g.match(name) or g.match(name.rpartition("/")[2]) for g in globs)

    if not include and not exclude:
        return records
    if include:
        records = [r if not r.use or hit(include, r.name) else not_used(r, "not in --include") for r in records]
    records = [not_used(r, "--exclude") if r.use and hit(exclude, r.name) else r for r in records]
    if not any(r.use for r in records):
        flags = " ".join(f"--{f} '{v}'" for f, v in source.choices.given().items() if f in ("include", "exclude"))
        raise DataError(f"{flags}: nothing is left of {source.spec}; a name is such as {people.hide(records[0].name)}")
    return records


def several_modalities(source: Source, records: list[Record]) -> str:
    """Why a set of several modalities cannot be learnt from, with the lines to choose from; '' where it can."""
    used = [r for r in records if r.use and r.modality]
    counts = Counter(r.modality for r in used)
    classes = {(r.modality, r.label) for r in used}
    by_class = len(source.classes) > 1 and len(classes) == len({label for _, label in classes})
    if len(counts) < 2 or by_class:
        return ""
    lines = ", ".join(f"{_glob_of(m, used)} ({n:,} {m})" for m, n in counts.most_common())
    return f"{source.spec} holds several modalities, and a model learns one: choose by {people.hide(lines)}"


def _glob_of(modality: str, used: list[Record]) -> str:
    """--include '*T1w.*': what all files of a modality have in their names, and no other file."""
    own = [r.name for r in used if r.modality == modality]
    rest = [r.name for r in used if r.modality != modality]
    words = sorted(_shared(own), key=lambda w: (not people.modality_of(w), -len(w), w))
    for word in words:
        for glob in (f"*{word}.*", f"*{word}*", f"*/{word}/*", f"*[-_]{word}[-_.]*"):
            if all(_hits(glob, own)) and not any(_hits(glob, rest)):
                return f"--include '{glob}'"
    for word in words:  # OASIS-1: t88 but not masked
        wrong = [name for name, hit in zip(rest, _hits(f"*{word}*", rest), strict=True) if hit]
        for other in sorted(_shared(wrong), key=lambda w: (-len(w), w)) if len(wrong) < len(rest) else ():
            if not any(_hits(f"*{other}*", own)):
                return f"--include '*{word}*' --exclude '*{other}*'"
    spelled = sorted(
        {t for name in own for t in people.TOKEN.findall(name) if people.MODALITIES.get(t.lower()) == modality}
    )
    return (
        f"--include '{','.join(f'*[-_]{t}.*' for t in spelled)}'" if spelled else "a column modality in --data FILE.csv"
    )


def _shared(names: list[str]) -> set[str]:
    """The words that all these names have."""
    return set.intersection(*(set(people.TOKEN.findall(name.replace("/", " "))) for name in names)) if names else set()


def _hits(glob: str, names: list[str]) -> list[bool]:
    match = re.compile(fnmatch.translate(glob)).match
    return [bool(match(name)) for name in names]
