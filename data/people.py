"""Who is on a picture: the person, session and modality that a path names, and the hash that stands for a person."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

KEY = b"brain slices: people"  # so that a hash of ours is not the plain hash of an id that somebody has listed
# How the known data sets write a person. The first that is found in a path counts.
PATTERNS = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        r"(?<!\d)\d{3}_S_\d{4,5}(?!\d)",  # ADNI
        r"ADNI\d{3}S\d{4,5}(?!\d)",  # ADNI in BIDS
        r"OAS\d_?\d{4,5}(?!\d)",  # OASIS 1 to 4
        r"(?<![a-z0-9])IXI\d{3}(?!\d)",
        r"TCGA[-_.][a-z0-9]{2}[-_.][a-z0-9]{4}(?![a-z0-9])",
        r"(?<![a-z0-9])BraTS-[a-z]+-\d+",  # since 2023; a number for the visit follows
        r"(?<![a-z0-9])BraTS\d{2,4}_(?:Training|Validation|Testing)_\d+",
        r"(?<![a-z0-9])BraTS\d{2,4}_[a-z0-9]+_[a-z0-9]+(?=_\d)",
        r"(?<![a-z0-9])BraTS(?:\d{2,4})?[-_]\d+(?![a-z0-9])",
        r"(?<![a-z0-9])(?:UPENN-GBM|UCSF-PDGM|PPMI|AIBL|HCP|ABIDE)[-_]\d{2,7}(?!\d)",
        r"(?<![a-z0-9])sub-[a-z0-9]+",  # BIDS
        r"(?<![a-z0-9])(?:sub|subj|subject|patient|participant|pat)[-_ ]?\d+(?![a-z0-9])",
    )
)
# One of these stands in every match: most names are done with at once.
HINTS = (
    "_s_",
    "adni",
    "oas",
    "ixi",
    "tcga",
    "brats",
    "upenn",
    "ucsf",
    "ppmi",
    "aibl",
    "hcp",
    "abide",
    "sub",
    "pat",
    "participant",
)
MODALITIES = {
    word: name
    for name, words in {
        "T1w": "t1 t1w t1n t1wi mprage mpr mpr1 spgr t1mpr t1weighted",
        "T1ce": "t1ce t1c t1gd t1post t1km ce",
        "T2w": "t2 t2w t2wi t2weighted",
        "FLAIR": "flair t2f t2flair flr tirm",
        "PDw": "pd pdw",
        "T2starw": "t2star t2starw swi gre",
        "DWI": "dwi dti adc trace fa md",
        "bold": "bold fmri rest func",
        "asl": "asl perf cbf",
        "MRA": "mra tof angio",
        "MP2RAGE": "mp2rage unit1 inv1 inv2",
        "PET": "pet fdg av45",
        "CT": "ct",
        "brain": "norm nu orig brain brainmask rawavg",  # FreeSurfer's versions of one scan
    }.items()
    for word in words.split()
}
FREESURFER = {"norm", "nu", "orig", "brain", "rawavg", "t1"}  # files of a folder mri/ are versions of one scan
VIEW = re.compile(
    r"slices?|slc|sl|z|axial|ax|tra|transversal|coronal|cor|sagittal|sag|plane|frame|page|image|img|im|brain|bet|n4|anon"
    r"|masked|stripped|skullstripped|reg|gfc|t88|space|mni\w*|desc|anat|raw|proc|preproc|resampled|norm\d*|w\d*",
    re.I,
)
SESSION = re.compile(
    r"ses(sion)?[-_]?\w*|visit[-_]?\w*|v\d{1,2}|mr\d|mr_?d\d+|tp\d+|time(point)?[-_]?\d+|m\d{2,3}|bl|sc|baseline|follow[-_]?up\d*"
    r"|fu\d*|(?:mr|mpr|run|acq|scan|echo|rec|study|exam)[-_]?\d+|\d{4}-\d{2}-\d{2}.*|\d{8}",
    re.I,
)
SESSION_WORD = re.compile(
    r"ses(sion)?\d+|study\d+|visit\d+|tp\d+|v\d{1,2}|time(point)?\d+|m\d{2,3}|baseline|followup\d*", re.I
)
# What stands in a path that names its session in a known way, and how.
SESSION_IDS = (
    ("ses-", re.compile(r"(?<![a-z0-9])ses-([a-z0-9]+)", re.I)),
    ("oas", re.compile(r"OAS\d_?\d{4,5}_(MR_?d?\d+)", re.I)),
    ("brats", re.compile(r"BraTS-[a-z]+-\d+-(\d+)", re.I)),
)
COUNTING = set(
    "tr te va train training test testing val valid validation img image images im slice slices scan scans pic "
    "picture mri mr brain axial coronal sagittal aug augmented frame data sample file png jpg class label copy".split()
)
DIGIT = re.compile(r"\d")
TOKEN = re.compile(r"[^-_. ()]+")
NUMBER = re.compile(r"(?:slices?|slc|sl|z|s|i|im|img|image|frame|page|axial|ax|cor|sag)?(\d+)", re.I)


class Said(NamedTuple):
    """What a file's own name says."""

    scan: str  # up to the slice number; '' where there is none
    person: str  # up to the first word with a digit in it, without session and modality; '' unknown
    number: int  # of the slice; -1 none


@lru_cache(1 << 16)
def known_person(path: str) -> str:
    """The person whose id some known data set would write like this, in one spelling; '' none."""
    for pattern in PATTERNS if _may_name(path) else ():
        found = pattern.search(path)
        if found:
            return _spelled(found.group())
    return ""


def _may_name(text: str) -> bool:
    lower = text.lower()
    for hint in HINTS:  # noqa: SIM110  any() takes twice the time
        if hint in lower:
            return True
    return False


def _spelled(text: str) -> str:
    lower = text.lower()
    if lower.startswith("adni"):
        return f"{text[4:7]}_S_{text[8:]}"
    if lower.startswith("tcga"):
        return re.sub(r"[_.]", "-", text.upper())
    if lower.startswith("sub-"):
        return lower
    return text.upper() if re.match(r"\d|oas|ixi", lower) else lower


def pseudonym(person: str) -> str:
    """What stands for a person wherever it is stored or printed: a keyed hash; '' for an unknown one."""
    if not person:
        return ""
    return "p" + hashlib.blake2b(person.encode(errors="surrogateescape"), key=KEY, digest_size=6).hexdigest()


def hide(text: str) -> str:
    """Text of ours, such as a file's name, with the keyed hash in place of every known kind of id."""
    for pattern in PATTERNS if _may_name(text) else ():
        text = pattern.sub(lambda found: pseudonym(_spelled(found.group())), text)
    return text


def match_key(person: str) -> str:
    """Two spellings of one id, such as sub-01 and 01 in participants.tsv, have one key."""
    known = known_person(person) or person
    return re.sub(r"[^a-z0-9]", "", known.lower().removeprefix("sub-"))


def modality_of(name: str) -> str:
    """The modality that a file or folder name tells, '' none. The last word that is one counts (BIDS puts it there)."""
    for token in reversed(TOKEN.findall(name)):
        found = MODALITIES.get(token.lower())
        if found and found != "brain":
            return found
    return ""


def session_of(path: str) -> str:
    """The session that a path names: BIDS ses-X, OASIS MR1, a visit, a date; '' none."""
    lower = path.lower()
    for hint, pattern in SESSION_IDS:
        if hint in lower and (found := pattern.search(path)):
            return "ses-" * (hint == "ses-") + found[1]
    folder, _, name = path.rpartition("/")
    return _session_folder(folder) or next((t for t in TOKEN.findall(name) if _is_session(t)), "")


@lru_cache(1 << 12)
def _session_folder(folder: str) -> str:
    return next((x for x in folder.split("/") if SESSION.fullmatch(x) and x.lower() != "sc"), "")


@lru_cache(1 << 12)
def _is_session(token: str) -> bool:
    return bool(SESSION_WORD.fullmatch(token))


def said_by_name(stem: str, volume: bool) -> Said:
    """Person, scan and slice number by the name of a file, of which no known pattern is asked."""
    tokens = list(TOKEN.finditer(stem))
    number, end = -1, len(tokens)
    if not volume:
        while end > 1 and _is_word(tokens[end - 1].group()) and not NUMBER.fullmatch(tokens[end - 1].group()):
            end -= 1  # a word after the slice's number
        last = NUMBER.fullmatch(tokens[end - 1].group()) if tokens else None
        if last is None or len(last[1]) > 9:
            return Said("", "", -1)
        number, end = int(last[1]), end - 1
        if end and tokens[end - 1].group().lower() in ("slice", "slices", "slc", "sl"):
            end -= 1
    scan = stem[: tokens[end - 1].end()] if end else ""
    return Said(scan, _person_in(scan), number)


@lru_cache(1 << 12)
def _person_in(scan: str) -> str:
    """Of a name without its slice number: up to the first word with a digit in it."""
    tokens = list(TOKEN.finditer(scan))
    start = 0
    while start < len(tokens) - 1 and tokens[start].group().lower() in MODALITIES:
        start += 1  # T1_001: the modality comes first
    kept = start
    while kept < len(tokens) and not (kept > start and _is_word(tokens[kept].group())):
        kept += 1
    end = next((k + 1 for k in range(start, kept) if DIGIT.search(tokens[k].group())), kept)
    person = scan[tokens[start].start() : tokens[end - 1].end()] if end > start else ""
    return "" if _is_view(person) else person


@lru_cache(1 << 12)
def _is_view(word: str) -> bool:
    return word.lower() in MODALITIES or bool(VIEW.fullmatch(word))


@lru_cache(1 << 12)
def _is_word(token: str) -> bool:
    return _is_view(token) or bool(SESSION.fullmatch(token))


def is_counting(prefix: str, folder: str) -> bool:
    """Whether a name without a digit only counts pictures: Tr-gl, image, or the name of its class."""
    classes = [word.lower() for word in TOKEN.findall(folder)] + [folder.lower()]
    for token in TOKEN.findall(prefix.lower()):
        ours = (
            token in COUNTING
            or token in MODALITIES
            or any(c.startswith(token) or token.startswith(c) for c in classes if c)
        )
        if not ours and not any(token.startswith(c[:2]) and len(c) > 2 and len(token) > 2 for c in classes):
            return False
    return True
