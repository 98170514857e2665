"""The table of a data set as a file: what was decided of every file, to be looked at, corrected and taken back.

python -m data.scan /path/to/slices --out slices.csv
python train_gan.py --data slices.csv
"""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from data import formats, reading
from data.files import PICTURES, atomic_write
from data.images import BadFile
from data.records import Record, Source
from data.splits import split_of
from data.tables import read_rows
from data.walk import DataError, class_name, printable

COLUMNS = ("file", "page", "person", "session", "scan", "slice", "split", "class", "use", "why")
GUESSED = "person: by the name, which may be a scan's"  # in the column why of what is used
YES, NO = ("yes", "true", "1", ""), ("no", "false", "0")


def write_manifest(source: Source, out: Path) -> None:
    """The whole table of a source as CSV. Files below the CSV's folder are named from there, others with their whole
    path."""
    if source.kind == "phantom":
        raise DataError("phantoms are drawn, not read: they have no table")
    names = sorted({name for r in source.table for name, _ in r.attributes} - {"modality"})
    modality = any(r.modality for r in source.table)
    guessed = GUESSED * (source.subject_kind == "scan")
    text = io.StringIO()
    write = csv.writer(text, lineterminator="\n")
    write.writerow([*COLUMNS, *["modality"] * modality, *names])
    for r in source.table:
        own = dict(r.attributes)
        write.writerow(
            [
                _below(r.path, out.parent), r.page if r.page >= 0 else "", r.subject, r.session, r.scan,
                f"{r.position:.4g}" if r.position >= 0 else "", r.split,
                source.classes[r.label] if r.label >= 0 else "",
                "yes" if r.use else "no", r.why or guessed * bool(r.subject), *[r.modality] * modality,
                *(own.get(name, "") for name in names),
            ]
        )  # fmt: skip
    for name, why in source.left_out + source.bad:
        write.writerow(
            [_below(os.path.join(source.root, name), out.parent), *[""] * 7, "no", why, *[""] * (modality + len(names))]
        )
    atomic_write(out, text.getvalue().encode("utf-8", "surrogateescape"))


def _below(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder) if Path(path).is_relative_to(folder) else path


def read_manifest(spec: str, path: Path) -> tuple[list[Record], list[str], list[tuple[str, str]], str]:
    """(records, class name of each, bad files, images | volumes) of a table; DataError names the line to mend."""
    try:
        rows = read_rows(path)
    except BadFile as error:
        raise DataError(
            f"--data {spec}: {error}; give a table that python -m data.scan SRC --out FILE.csv wrote"
        ) from None
    if not rows or "file" not in rows[0]:
        raise DataError(f"--data {spec}: no column called file; the columns are {', '.join(COLUMNS)}, then any others")
    records, names, bad, seen, kinds = [], [], [], set(), set()
    for line, row in enumerate(rows, 2):
        r = _record(f"--data {spec}, line {line}", row, path.parent)
        if r.use and (r.path, r.page) in seen:
            raise DataError(f"--data {spec}, line {line}: {row['file']} stands there twice; remove one of the rows")
        seen.add((r.path, r.page))
        if r.use:
            volume = formats.is_volume(r.path)
            if not volume and not r.path.lower().endswith(PICTURES):
                raise DataError(f"--data {spec}, line {line}: {row['file']} is no picture and no volume; set use to no")
            try:
                size, changed = reading.file_size(r.path), _changed(r.path)
            except BadFile as error:
                bad.append((r.name, str(error)))
                continue
            kinds.add("volumes" if volume else "images")
            r = r.but(size=size, mtime_ns=changed, scan=r.scan or (r.name if volume else ""))
        records.append(r)
        names.append(class_name(row.get("class", "")))
    if len(kinds) > 1:
        raise DataError(f"--data {spec}: pictures and volumes cannot be one set; set use to no for one kind")
    if not kinds:
        why = (
            f"none of its {len(bad):,} files can be opened, such as {bad[0][0]}" if bad else "no row has use set to yes"
        )
        raise DataError(f"--data {spec}: {why}; check the column file, and use")
    return records, names, bad, kinds.pop()


def _changed(path: str) -> int:
    try:
        return os.stat((reading.split_member(path) or (path,))[0]).st_mtime_ns
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None


def _record(where: str, row: dict[str, str], folder: Path) -> Record:
    file, use, why = row["file"], row.get("use", "").lower(), row.get("why", "")
    if not file or "\0" in file:
        raise DataError(f"{where}: no file; name one, or remove the row")
    if use not in YES + NO:
        raise DataError(f"{where}: use is {row['use']!r}; write yes or no")
    split = row.get("split", "")
    if split and not split_of(split):
        raise DataError(f"{where}: split is {split!r}; write train, test, val or nothing")
    page, position = _number(where, row, "page"), _number(where, row, "slice")
    if page != int(page) or position > 1:
        raise DataError(f"{where}: a page is a whole number, a slice lies from 0 to 1")
    extra = {name: value for name, value in row.items() if name not in (*COLUMNS, "modality") and value}
    name = printable(file) + (f"#{int(page):03d}" if page >= 0 else "")
    return Record(
        os.path.normpath(folder / file), name, -1, row.get("person", ""), row.get("scan", ""), split_of(split),
        page=int(page), session=row.get("session", ""), modality=row.get("modality", ""), position=position,
        attributes=tuple(sorted(extra.items())), use=use in YES, why=why if use in NO or why == GUESSED else "",
    )  # fmt: skip


def _number(where: str, row: dict[str, str], column: str) -> float:
    text = row.get(column, "")
    try:
        value = float(text) if text else -1.0
    except ValueError:
        value = -2.0
    if not (value >= 0 or (value == -1 and not text)) or value > 1e9:
        raise DataError(f"{where}: {column} is {text!r}; write a number from 0 on, or nothing")
    return value
