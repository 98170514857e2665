"""A folder that `release` wrote, and `release --verify`, which checks one where there is no torch, model or data."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from data.files import check_regular, is_number, plain, read_bytes, read_json, say, sha256_of
from jobs.predict.named import UsageError
from jobs.run.predictions import in_a_name
from jobs.view.markup import child

SUMS, MANIFEST, ABOUT, SHEET, PAGE = "SHA256SUMS", "manifest.csv", "release.json", "README.md", "datasheet.html"
SPLIT = "train"  # the folder of the classes: what the toolkit, and ImageFolder, take for a training set
NO_CLASS = "slices"  # the folder of slices of no class
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.ASCII | re.IGNORECASE)  # names of Windows
MAX_TEXT = 256 << 20  # bytes of the sums or the manifest


def folders_of(classes: Sequence[str]) -> dict[str, str]:
    """{class: folder below SPLIT}, '' for none: names that every system takes, no two alike there."""
    found, taken = {"": NO_CLASS}, {NO_CLASS}
    for number, name in enumerate(classes):
        folder = in_a_name(name).strip(".") or f"class-{number}"
        while folder.lower() in taken or RESERVED.fullmatch(folder):
            folder = re.sub(r"^([^.]*)", rf"\1-{number}", folder)
        taken.add(folder.lower())
        found[name] = folder
    return found


def sums_text(sums: dict[str, str]) -> str:
    """The text of SHA256SUMS, as `sha256sum -c` reads it."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def verify(named: str) -> int:
    """Print one line for each fault, else one that says that all is right; the exit code. UsageError where there is no
    such folder."""
    folder = Path(named)
    if not folder.is_dir():
        raise UsageError(f"--verify {named}: there is no such folder; give one that release wrote")
    faults = 0
    for line in faults_of(folder):
        say(f"{folder}: {line}")
        faults += 1
    if faults:
        return 1
    pictures = sum(name.endswith(".png") for name, _ in files_in(folder))
    say(f"{folder}: {pictures:,} slices, every file is as its release lists it")
    return 0


def faults_of(folder: Path, but: Collection[str] = ()) -> Iterator[str]:
    """What is wrong with a release, a line each. but: files whose sums may be others."""
    there = dict(files_in(folder))
    try:
        sums = dict(sums_of(folder))
        about = read_json(folder / ABOUT, folder)
        rows = list(csv.DictReader(io.StringIO(read_bytes(folder / MANIFEST, MAX_TEXT, folder).decode())))
    except FileNotFoundError as error:
        yield f"{Path(error.filename).name} is missing, so this is no whole release; fetch it again"
        return
    except (OSError, ValueError, csv.Error) as error:
        yield f"{SUMS}, {MANIFEST} or {ABOUT} cannot be read: {plain(error)[:200]}"
        return
    for name in sorted(there.keys() - sums.keys() - {SUMS}):
        yield f"{name} does not belong to the release: {SUMS} does not list it"
    for name in sorted(sums):
        if name not in there:
            yield f"{name} is missing"
        elif there[name]:
            yield f"{name} is a link or no file"
        elif name not in but and sha256_of(folder / name) != sums[name]:
            yield f"{name} was changed: its SHA-256 is another"
    yield from faults_of_rows(rows, about, [name for name in sums if name.endswith(".png")])
    size = about.get("size")
    for name in sorted(name for name in sums if name.endswith(".png") and there.get(name) is False):
        if wrong := fault_of_picture(folder / name, size):
            yield f"{name} {wrong}"


def sums_of(folder: Path) -> Iterator[tuple[str, str]]:
    """(file, SHA-256) of each line. ValueError for a line of another form."""
    for line in read_bytes(folder / SUMS, MAX_TEXT, folder).decode().splitlines():
        found = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not found:
            raise ValueError(f"{SUMS} has the line {line[:80]}")
        yield found[2], found[1]


def faults_of_rows(rows: Iterable[dict], about: dict, pictures: Sequence[str]) -> Iterator[str]:
    """Whether the manifest, the pictures and the counts per class say the same."""
    classes = {name: found for name, found in child(about, "classes").items() if isinstance(found, dict)}
    listed = Counter(str(row.get("file")) for row in rows)
    for name in sorted(listed.keys() - set(pictures)):
        yield f"{name} stands in {MANIFEST}, and is no picture of the release"
    for name in sorted(set(pictures) - listed.keys()):
        yield f"{name} does not stand in {MANIFEST}"
    for name, times in sorted(listed.items()):
        if times > 1:
            yield f"{name} stands in {MANIFEST} {times} times"
    for row in rows:
        folder = classes.get(str(row.get("class")), {}).get("folder")
        if not str(row.get("file")).startswith(f"{SPLIT}/{folder}/"):
            yield f"{row.get('file')} does not lie in the folder of its class, {row.get('class') or 'none'}"
    counted = Counter(str(row.get("class")) for row in rows)
    for name, found in sorted(classes.items()):
        if counted[name] != found.get("slices"):
            yield f"{counted[name]} slices of class {name or 'none'} in {MANIFEST}, {found.get('slices')} in {ABOUT}"


def fault_of_picture(path: Path, size: object) -> str:
    """What is wrong with a PNG; '' nothing. Its size is looked at before it is decoded."""
    if not (isinstance(size, list) and len(size) == 2 and all(is_number(v) for v in size)):
        return f"has no size in {ABOUT}"
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if list(picture.size) != size:
                return f"is of {picture.width}x{picture.height}, not {size[0]}x{size[1]}"
            picture.load()
    except Exception:  # a damaged PNG raises almost anything
        return "is no PNG that can be decoded"
    return ""


def files_in(folder: Path) -> Iterator[tuple[str, bool]]:
    """(name below the folder with forward slashes, whether it is a link or no regular file) of everything in it."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in [*files, *links]:
            path = Path(place) / name
            try:
                check_regular(path.lstat(), path)
                yield path.relative_to(folder).as_posix(), False
            except OSError:
                yield path.relative_to(folder).as_posix(), True
