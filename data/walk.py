"""Walk a folder: which files are slices, which are masks, junk or unusable. Never blocks, never runs in a circle."""

import math
import os
import re
import stat
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from data import reading
from data.files import ARCHIVES, PARTNERS, PICTURES, SERIES, VOLUMES
from data.people import hide

JUNK_FOLDERS = {"__macosx", "__pycache__", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
_MASK = r"(?:masks?|segs?|segmentations?|labels?|lbl|gt|ground_?truth|annotations?|pve(?:seg)?|pveseg|mixeltype|fseg)"
# Masks, label maps and tissue maps, by what BIDS, SPM, CAT12, FreeSurfer, FSL and people write.
MASK_FILE = re.compile(
    rf"(?:seg|mask|label|gt)s?[-_ .(]*\d.*\.\w+|(?:seg|mask|label|gt)s?\.\w+(?:\.gz)?"
    rf"|.*[-_ .]{_MASK}(?:[-_ .]*(?:slice|sl|z)?[-_ .(]*\d+\)?)?(?:\.nii)?\.\w+(?:\.gz)?"
    r"|.*_(?:dseg|probseg|discseg)\.\w+(?:\.gz)?"
    r"|.*_(?:label|atlas)-\w+.*\.(?:nii|hdr|img|mgz)(?:\.gz)?|.*_(?:pve_\d|xfm|jacobian|warp)\.(?:nii|hdr|img|mgz)(?:\.gz)?"
    r"|.*[-_](?:lesions?|rois?)(?:[-_]\w+)?\.(?:nii|hdr|img|mgz)(?:\.gz)?"
    # c1_T1 and p101 are people; c1 before the name of another file is a tissue.
    r"|(?:s?(?:m0?w|mw|w|r|wr|rw)[cp][0-6]|[cp][0-6](?=[a-z]|\d{3}_S_)|i?y_|u_rc\d|wj_).+\.(?:nii|hdr|img|mgz)(?:\.gz)?"
    r"|(?:[lr]h\.)?(?:aseg|aparc|ribbon|wmparc|filled|wm|brainmask|lesions?|ctrl_pts|subcort)\b.*\.(?:mgz|mgh|nii|nii\.gz)",
    re.I,
)
MASK_FOLDER = re.compile(
    r"keras_png_slices_seg.*|(?:.*[-_])?(?:lab(?:el)?s?(?:tr|ts)?|segs?|segmentations?|masks?|annotations?|ground_?truths?|gt|fsl_seg)"
    r"(?:_(?:train|test|val|validate))?",
    re.I,
)
DERIVED_FOLDER = re.compile(r"derivatives|surf|figures|qc|reports?|previews?|thumbnails?|snapshots?", re.I)
# What is no picture and no volume, and what to do about it.
CONVERT = {
    suffix: tool
    for tool, suffixes in {
        "dcm2niix": ".par .rec", "mnc2nii": ".mnc", "SimpleITK": ".nrrd .nhdr .mha .mhd",
        "3dAFNItoNIFTI": ".brik .head", "nibabel": ".img .minc", "Pillow": ".jp2 .heic .avif .ppm .pgm .jfif",
        "ffmpeg": ".mp4 .avi .mov",
        "numpy and Pillow": ".mat .h5 .hdf5 .pkl .pt .tfrecord .parquet",
        "tar -xf": ".tgz .gz .bz2 .xz", "7z x": ".rar .7z",
        "dcm2niix, if they are DICOM": " ",
    }.items()
    for suffix in suffixes.split(" ")
}  # fmt: skip
# Texts beside data, and what programs leave behind: nothing is missed without them.
BESIDE = set(
    ".json .tsv .csv .txt .md .xml .html .pdf .yml .yaml .toml .bval .bvec .log .py .sh .ipynb .m .db .ini .part "
    ".crdownload .xlsx .xls .doc .docx .rst .bib .stats .lta .pack .lock .tmp .svg .cfg .r .css .js".split()
)
TEXT = re.compile(
    r"readme|licen[cs]e|changes|changelog|makefile|dataset_description|citation|authors|dicomdir|version|sha\d+sums|md5sums"
)
IMAGES = (*PICTURES, *VOLUMES)
APPENDED = ({".gz"}, set(PICTURES), {*VOLUMES, ".img"} - set(SERIES))
MAX_FILES, MAX_DEPTH = 3_000_000, 12


class DataError(Exception):
    """The data cannot be used as asked; one line that says what to do. Scripts exit with code 78."""

    exit_code = 78


def printable(text: str) -> str:
    """File names may hold line ends and bytes that are no text; what is shown and stored must not."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def some(names: list[str], count: int = 5) -> str:
    """The first names of a list, and how many more there are, with ids of people hidden."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return hide(", ".join(names[:count])) + more


def class_name(folder: str) -> str:
    """A class folder's name as text that can be shown, stored and typed; different folders stay different."""
    return "".join(c if c.isprintable() else f"%{ord(c) & 0xFF:02X}" for c in folder)


def is_slice(name: str) -> bool:
    """Whether a file is called like a slice of a DICOM series."""
    return name.lower().endswith(SERIES) or "." not in name


@dataclass(eq=False)
class Found:
    """A candidate file below the root."""

    path: str
    folders: tuple[str, ...]  # relative to the root
    name: str
    size: int
    mtime_ns: int
    relative: str = field(init=False)  # its path below the root, in printable characters
    stem: str = field(init=False)  # its name without suffixes: case_001_slice_0.nii.png -> case_001_slice_0

    def __post_init__(self):
        self.relative = printable("/".join((*self.folders, self.name)))
        self.stem = self.name
        if is_slice(self.name):  # its name says nothing of the scan
            self.stem = self.folders[-1] if self.folders else self.name
            return
        for suffixes in APPENDED:
            short, dot, suffix = self.stem.rpartition(".")
            if short and dot + suffix.lower() in suffixes:
                self.stem = short


@dataclass
class Walk:
    """All that a walk through the folders found."""

    pictures: list[Found] = field(default_factory=list)
    volumes: list[Found] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    folders: list[tuple[str, str]] = field(default_factory=list)  # (path, relative name) of all that were looked into
    masks: list[str] = field(default_factory=list)  # folders and files of masks, label maps, tissue maps: left out
    derived: list[str] = field(default_factory=list)  # folders of derivatives and reports, left out
    unknown: Counter = field(default_factory=Counter)  # files of other kinds, by suffix
    plain: list[Found] = field(default_factory=list)  # files without a suffix: DICOM?
    partners: list[Found] = field(default_factory=list)  # .img: the voxels of a .hdr
    archives: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # (path, folders it stands for)

    def left_out(self) -> list[tuple[str, str]]:
        """(name, reason) of what is never an image."""
        return [(n, "a mask, label or tissue map") for n in self.masks] + [(n, "derivatives") for n in self.derived]


def walk_folder(root: Path, starts: list[str] | None = None) -> Walk:
    """All candidate files below `root`, sorted; with `starts`, below these of its folders alone.

    Each folder is visited once, so that links in a circle end.
    """
    found, seen, count = Walk(), set(), 0
    stack: list[tuple[str, tuple[str, ...]]] = (
        [(str(root), ())] if starts is None else [(str(root / name), (name,)) for name in sorted(starts, reverse=True)]
    )
    if os.path.isfile(root):  # an archive is walked as the folder that is in it
        stack.clear()
        found.archives.append((str(root), ()))
    while stack:
        folder, parts = stack.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue
            seen.add((info.st_dev, info.st_ino))
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda e: (e.is_symlink(), e.name))
        except OSError as error:
            if starts is None and not parts:
                raise DataError(f"--data {root}: {error.strerror}; check its permissions") from None
            found.bad.append((printable("/".join(parts)), f"folder: {error.strerror}"))
            continue
        count += len(entries)
        if count > MAX_FILES:
            raise DataError(f"--data {root}: more than {MAX_FILES:,} entries; point --data at the folder of the slices")
        inner = [(e.path, (*parts, e.name)) for e in entries if _enter(e, parts, found, folder)]
        found.folders += [(path, printable("/".join(p))) for path, p in inner]
        stack += reversed(inner)
    for path, parts in found.archives:
        _members(path, parts, found)
    _series(found)
    stems = {(f.folders, f.stem) for f in found.volumes}
    found.unknown[".img"] += sum((f.folders, f.stem) not in stems for f in found.partners)
    found.unknown[""] += len(found.plain)
    found.unknown = +found.unknown
    for group in (found.pictures, found.volumes):
        group.sort(key=lambda f: f.relative)
    found.bad.sort()
    return found


def _members(path: str, parts: tuple[str, ...], found: Walk) -> None:
    """Sort the files of an archive into `found`; nothing is unpacked."""
    try:
        members = reading.members(path)
    except reading.BadFile as error:
        found.bad.append((printable("/".join(parts) or os.path.basename(path)), str(error)))
        return
    seen: set[str] = set()
    for m in members:
        *inner, name = m.name.split("/")
        hidden = any(x.startswith(".") or x.lower() in JUNK_FOLDERS for x in (*inner, name))
        at = next((i for i, x in enumerate(inner) if MASK_FOLDER.fullmatch(x) or DERIVED_FOLDER.fullmatch(x)), None)
        if at is not None and not hidden:
            folder = printable("/".join((*parts, *inner[: at + 1])))
            if folder not in seen:
                seen.add(folder)
                (found.masks if MASK_FOLDER.fullmatch(inner[at]) else found.derived).append(folder)
        elif not hidden:
            _sort(Found(f"{path}/{m.name}", (*parts, *inner), name, m.size, m.mtime_ns), found)


def _series(found: Walk) -> None:
    """One entry for the DICOM files of a series: its first file, with the bytes of all."""
    folders: dict[tuple[str, ...], list[Found]] = {}
    for f in found.plain:
        folders.setdefault(f.folders, []).append(f)
    single = [f for f in found.volumes if f.name.lower().endswith(SERIES)]
    if not single and not folders:
        return
    from data import dicom  # numpy and pydicom, for these alone

    for group in folders.values():
        if dicom.is_dicom(group[0].path):
            single += [f for f in group if dicom.is_dicom(f.path)]
    own = {f.path: f for f in single}
    found.plain = [f for f in found.plain if f.path not in own]
    found.volumes = [f for f in found.volumes if f.path not in own]
    for first, paths in dicom.series(list(own)).items():
        group = [own[path] for path in paths]
        size, newest = sum(f.size for f in group), max(f.mtime_ns for f in group)
        found.volumes.append(replace(own[first], size=size, mtime_ns=newest))


def _enter(entry: os.DirEntry, parts: tuple, found: Walk, folder: str) -> bool:
    """Sort one directory entry into `found`; True if it is a folder to look into."""
    name, lower = entry.name, entry.name.lower()
    if name.startswith(".") or lower in JUNK_FOLDERS:
        return False
    try:
        info = entry.stat()
    except OSError as error:  # a broken link, or one that leads to itself
        reason = error.strerror or "cannot be read"
    else:
        if stat.S_ISREG(info.st_mode):
            if lower.endswith(ARCHIVES):
                found.archives.append((entry.path, (*parts, os.path.splitext(name)[0])))
            else:
                _sort(Found(entry.path, parts, name, info.st_size, info.st_mtime_ns), found)
            return False
        reason = "a folder, not an image" if stat.S_ISDIR(info.st_mode) else "not a regular file"
    relative = printable("/".join((*parts, name)))
    if lower.endswith(IMAGES):
        found.bad.append((relative, reason))
        return False
    if reason != "a folder, not an image":
        return False
    if MASK_FOLDER.fullmatch(name):
        found.masks.append(relative)
        return False
    if DERIVED_FOLDER.fullmatch(name):
        found.derived.append(relative)
        return False
    if entry.is_symlink() and os.path.realpath(folder).startswith(os.path.join(os.path.realpath(entry.path), "")):
        return False  # leads back up
    return len(parts) < MAX_DEPTH


def _sort(f: Found, found: Walk) -> None:
    """A regular file by its name: a picture, a volume, a mask, or something else."""
    lower = f.name.lower()
    if lower.endswith(IMAGES) and MASK_FILE.fullmatch(f.name):
        found.masks.append(f.relative)
    elif lower.endswith(PICTURES):
        found.pictures.append(f)
    elif lower.endswith(VOLUMES):
        found.volumes.append(f)
    elif lower.endswith(PARTNERS):
        found.partners += [] if MASK_FILE.fullmatch(f.name) else [f]
    elif TEXT.fullmatch(lower):
        pass
    elif suffix := os.path.splitext(lower)[1]:
        found.unknown[suffix] += suffix not in BESIDE
    else:
        found.plain.append(f)


# --- how many files may be bad ----------------------------------------------------------------------------------------
BAD_FREE = 100  # sets smaller than this tolerate one bad file
LISTED = 20  # bad files named in the log


def check_bad(spec: str, bad: list, count: int, total: int, max_bad: float) -> None:
    """DataError when too many files are bad: `count` of `total`, of which `bad` names some."""
    allowed = max_bad * total
    if max_bad > 0 and total < BAD_FREE:
        allowed = max(allowed, 1)
    if count <= allowed or count == total:  # nothing usable at all is another error
        return
    share = count / total
    levels = "give --range LO:HI that holds for all, " * any("the set's range" in reason for _, reason in bad)
    raise DataError(
        f"{spec}: {count:,} of {total:,} files cannot be used ({100 * share:.2g} %, more than {100 * max_bad:g} %): "
        f"{reasons(bad, count)}; "
        f"remove or replace them, {levels}or go on without them: --max-bad "
        f"{min(math.ceil(share * 1000) / 1000 + 0.001, 1):.3f}"
    )


def reasons(bad: list, count: int) -> str:
    """The first bad files with what is wrong with them; `count`: how many there are."""
    more = f" and {count - 5:,} more" if count > 5 else ""
    return ", ".join(f"{name} ({reason})" for name, reason in bad[:5]) + more


def list_bad(bad: list, count: int, total: int, log) -> None:
    """A line for each bad file, up to LISTED, and how many of `total` they are."""
    for name, reason in bad[:LISTED]:
        log(f"bad file: {name}: {reason}")
    if count > LISTED:
        log(f"bad file: and {count - LISTED:,} more")
    if count:
        log(f"bad files: {count:,} of {total:,} skipped")
