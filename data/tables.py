"""Tables beside the data, or named with --table: who is on a file, which class, which split, and further columns.

participants.tsv of BIDS, dataset.json of StyleGAN, ADNI's JSON and CSVs and OASIS's CSVs are read unasked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from data import images, people
from data.columns import MISSING, plain
from data.files import open_regular
from data.images import BadFile
from data.layouts import DIAGNOSES
from data.records import Record
from data.splits import split_of
from data.walk import DataError, class_name, printable

MAX_TABLE = 64 << 20  # bytes
MAX_CELLS, MAX_ROWS = 4_000_000, 400_000
MAX_TABLES = 50  # tables looked at in one folder
FILE = ("file", "filename", "filepath", "path", "imagepath", "imagefile", "image", "img", "imagename")
SCAN = ("imagedataid", "imageid", "imageuid", "scan", "scanid")
PERSON = (
    "participantid",
    "participant",
    "person",
    "ptid",
    "subject",
    "subjectid",
    "patient",
    "patientid",
    "mriid",
    "mrid",
    "subj",
    "id",
)
SESSION = ("sessionid", "session", "visit", "viscode", "timepoint")
CLASS = ("class", "label", "diagnosis", "dx", "researchgroup", "group", "diagnosticgroup", "dxgroup", "dxbl")
SPLIT = ("split", "partition")
# Headers of tables that are read unasked: each has all of these columns.
KNOWN = (
    {"participantid"}, {"imagedataid", "subject"}, {"ptid", "viscode"}, {"ptid", "dx"}, {"mriid", "subjectid"},
    {"id", "mf", "cdr"},
    {"mrid", "subject"},
)  # fmt: skip
Row = dict[str, str]


def read_text(path) -> bytes:
    """Contents of a regular file that is small enough for a table; raises BadFile."""
    if os.path.isfile(path) and os.path.getsize(path) > MAX_TABLE:
        raise BadFile(f"larger than {MAX_TABLE >> 20} MB")
    return images.read_bytes(path)


def read_rows(path) -> list[Row]:
    """The rows of a CSV or TSV; raises BadFile. Columns without a name are left out, the others keep their spelling."""
    data = read_text(path)
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    first = text.partition("\n")[0]
    delimiter = max("\t,;", key=first.count)
    if "\0" in text:
        raise BadFile("not a table of text")
    rows: list[list[str]] = []
    lines = max(text.count("\n"), text.count("\r"))  # before a row is made: each takes hundreds of bytes
    if lines > MAX_ROWS or (first.count(delimiter) + 1) * lines > MAX_CELLS:
        raise BadFile(f"more than {MAX_ROWS:,} rows or {MAX_CELLS:,} cells")
    try:
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter):
            rows.append([cell.strip() for cell in row])
            if len(rows) * len(rows[0]) > MAX_CELLS:
                raise BadFile(f"more than {MAX_CELLS:,} cells")
    except csv.Error as error:
        raise BadFile(f"not a table ({error})") from None
    header = rows[0] if rows else []
    doubled = [h for h, n in Counter(header).items() if h and n > 1]
    if doubled:
        raise BadFile(f"two columns are called {printable(doubled[0][:40])}")
    found = (row + [""] * (len(header) - len(row)) for row in rows[1:] if any(row))
    return [{h: cell for h, cell in zip(header, row, strict=False) if h} for row in found]


class Labelled:
    """Records with the name of the class of each; a table is joined to them."""

    def __init__(self, records: list[Record], names: list[str], relative: list[str]):
        self.records, self.names, self.relative = records, names, relative
        self.told: set[str] = set()  # paths of files whose person a table tells

    def join(self, name: str, rows: list[Row], asked: bool) -> str:
        """Take over what the rows say; returns what was done in words, '' where the table is of other data."""
        keys = {plain(c): c for c in (rows[0] if rows else ())}
        by, found = next(((w, f) for w, f in self._ways(keys, rows) if any(r is not None for r in f)), ("", []))
        matched = sum(r is not None for r in found)
        if not asked and matched * 2 < len(self.records):
            return ""
        if not matched:
            columns = printable(", ".join(keys.values())[:200]) or "none"
            raise DataError(
                f"--table {name}: no row belongs to any of the {len(self.records):,} files (columns: {columns}); it "
                "needs a column file, scan, or participant_id (and session) with the values that the paths hold"
            )
        columns = self._take(keys, found)
        return f"{name}: {matched:,} of {len(found):,} files are in it, by {by}" + (f"; {columns}" if columns else "")

    def _ways(self, keys: Row, rows: list[Row]):
        """Ways to find the row of each record, the nearest first: (words, row of each)."""
        column = next((keys[k] for k in FILE if k in keys), "")
        if column:
            for of in (lambda p: p, lambda p: p.rpartition("/")[2], lambda p: p.rpartition("/")[2].partition(".")[0]):
                index = _index(rows, lambda row, of=of: of(row[column].replace("\\", "/").removeprefix("./")))  # type: ignore[misc]
                yield "file", [index.get(of(r)) for r in self.relative]
        column = next((keys[k] for k in SCAN if k in keys), "")
        if column:
            index = _index(rows, lambda row: image_id(row[column]))
            yield "scan", [index.get(image_id(r.scan)) or index.get(_id_in(r.name)) for r in self.records]
        column = next((keys[k] for k in PERSON if k in keys), "")
        if column:
            who, session = _person_of(column), next((keys[k] for k in SESSION if k in keys), "")
            when = (
                (lambda row: _visit(row[session]))
                if session
                else (lambda row: _visit(people.session_of(row[column] + "/x")))
            )
            if session or any(people.session_of(row[column] + "/x") for row in rows):
                index = _index(rows, lambda row: who(row) and f"{who(row)} {when(row)}")
                yield (
                    "person and session",
                    [index.get(f"{people.match_key(r.subject)} {_visit(r.session)}") for r in self.records],
                )
            index = _index(rows, who)
            found = [index.get(people.match_key(r.subject)) if r.subject else None for r in self.records]
            if not any(found):  # 1 in the table, 001 in the names
                index = _index(rows, lambda row: who(row).lstrip("0"))
                found = [
                    index.get(people.match_key(r.subject).lstrip("0")) if r.subject else None for r in self.records
                ]
            yield "person", found

    def _take(self, keys: Row, found: list[Row | None]) -> str:
        """Person, session, split, class and attributes of the rows; says which columns they came from."""
        person, session, label, split = (
            next((keys[k] for k in names if k in keys), "") for names in (PERSON, SESSION, CLASS, SPLIT)
        )
        used = {person, session, label, split, *(keys[k] for k in (*FILE, *SCAN) if k in keys)}
        extra = [c for k, c in keys.items() if c not in used and not k.endswith("id")]
        taken: set[str] = set()
        for i, row in enumerate(found):
            if row is None:
                if label:
                    self.names[i] = ""
                continue
            r = self.records[i]
            get = {c: printable(v) for c, v in row.items() if v.lower() not in MISSING}
            if person in get:
                self.told.add(r.path)
                same = people.match_key(get[person]) == people.match_key(r.subject)
                r = r.but(subject=r.subject if same and r.subject else people.known_person(get[person]) or get[person])
            if session in get and not r.session:
                r = r.but(session=get[session])
            if split in get:
                r = r.but(split=split_of(get[split]) or r.split)
            if label:
                self.names[i] = class_name(DIAGNOSES.get(get.get(label, "").lower(), get.get(label, "")))
            own = dict(r.attributes) | {c: get[c] for c in extra if c in get}
            taken |= {c for c in extra if c in get}
            self.records[i] = r.but(attributes=tuple(sorted(own.items())))
        said = [f"class from {label}"] * bool(label) + [f"split from {split}"] * bool(split)
        for column in filter(None, (person, label, split)):
            apart = sum(row is not None and column not in row for row in found)
            if apart:
                said.append(f"rows of {apart:,} files contradict each other in {printable(column)}: none is taken")
        return ", ".join(said + ([f"attributes {', '.join(sorted(taken))}"] if taken else []))


def _index(rows: list[Row], key: Callable[[Row], str]) -> dict[str, Row]:
    """Key -> row. Of several rows of one key only the cells that agree are kept: nobody is of two ages."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if found := key(row):
            groups[found].append(row)
    return {
        k: group[0] if len(group) == 1 else {c: v for c, v in group[0].items() if all(row[c] == v for row in group)}
        for k, group in groups.items()
    }


def _person_of(column: str) -> Callable[[Row], str]:
    return lambda row: people.match_key(row[column]) if row[column].lower() not in MISSING else ""


def _visit(session: str) -> str:
    text = re.sub(r"^(ses|session|visit|mr)", "", re.sub(r"[^a-z0-9]", "", session.lower()))
    return text.lstrip("0") or text


def image_id(text: str) -> str:
    """ADNI's image id in one spelling: I00123 and 123 are the same."""
    return text.upper().removeprefix("I").lstrip("0") or "0"


def _id_in(name: str) -> str:
    found = re.search(r"_I(\d{3,})(?!\d)", name)
    return image_id(found[1]) if found else ""


# --- read unasked -----------------------------------------------------------------------------------------------------
def beside(folders: list[Path], labelled: Labelled, adni: bool, warnings: list[str]) -> list[str]:
    """Join the known tables in these folders; returns what was done, in words."""
    said: list[str] = []
    for folder in dict.fromkeys(folders):
        try:
            paths = sorted(
                p
                for p in folder.iterdir()
                if p.suffix.lower() in (".csv", ".tsv", ".json") and not p.name.startswith(".")
            )
        except OSError:
            continue
        for path in paths[:MAX_TABLES]:
            try:
                text = _one(path, labelled, adni and "patient" not in " ".join(said), warnings)
            except BadFile as error:
                text = ""
                warnings.append(f"{path.name} cannot be read ({error}) and is not used")
            said += [text] if text else []
    return said


def _one(path: Path, labelled: Labelled, adni: bool, warnings: list[str]) -> str:
    if path.suffix.lower() == ".json":
        if path.name.lower() == "dataset.json":
            rows = _stylegan(path)
            return labelled.join(path.name, rows, False) if rows else ""
        return (
            _adni_json(path, labelled, warnings)
            if adni and re.fullmatch(r"meta_?data.*\.json", path.name, re.I)
            else ""
        )
    if not _is_known(path):
        return ""
    text = labelled.join(path.name, read_rows(path), False)
    if not text:
        warnings.append(f"{path.name} names few of these people or files and is not used; --table {path.name} uses it")
    return text


def _is_known(path: Path) -> bool:
    """Whether the header is that of a table we know, from its first bytes."""
    try:
        with open_regular(path) as file:
            first = file.read(1 << 14).decode("utf-8-sig", "replace").partition("\n")[0]
    except OSError:
        return False
    columns = {plain(cell) for cell in re.split(r"[\t,;]", first)}
    return any(known <= columns for known in KNOWN)


def _stylegan(path: Path) -> list[Row]:
    """Rows file, class of StyleGAN's dataset.json: {"labels": [["00000/img.png", 3], ...]}; [] for another file."""
    try:
        labels = json.loads(read_text(path))["labels"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    pairs = labels if isinstance(labels, list) else []
    return [
        {"file": p[0], "class": str(p[1])}
        for p in pairs
        if isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) and type(p[1]) is int
    ]


def _adni_json(path: Path, labelled: Labelled, warnings: list[str]) -> str:
    """ADNI's JSON beside AD_NC: the patient of every scan, hashed at once (ADNI's terms of use)."""
    patients: dict[str, str] = {}
    try:
        _collect_patients(json.loads(read_text(path)), patients)
    except (BadFile, ValueError, RecursionError) as error:
        warnings.append(f"{path.name} cannot be read ({type(error).__name__}) and is not used")
        return ""
    scans = {r.scan for r in labelled.records if r.scan}
    known = sum(image_id(s) in patients for s in scans)
    if known < 0.5 * len(scans) or not known:
        warnings.append(f"{path.name} names only {known:,} of {len(scans):,} scans and is not used")
        return ""
    if known < len(scans):
        warnings.append(
            f"{len(scans) - known:,} of {len(scans):,} scans are not in {path.name}; each counts as a patient of its "
            "own"
        )
    labelled.records[:] = [r.but(subject=patients.get(image_id(r.scan), r.scan)) for r in labelled.records]
    return f"{path.name}: the patient of {known:,} of {len(scans):,} scans"


def _collect_patients(node, patients: dict[str, str]) -> None:
    """Fill image id -> patient from any nesting of dicts and lists: an entry's key or id field, and NNN_S_NNNN in its
    text."""
    entries = node.items() if isinstance(node, dict) else (("", v) for v in node) if isinstance(node, list) else ()
    for key, value in entries:
        ids = [key] if re.fullmatch(r"I?\d+", str(key), re.I) else []
        if not ids and isinstance(value, dict):
            fields = [v for k, v in value.items() if re.search(r"id$|^image", str(k), re.I)]
            ids = [str(v) for v in fields if re.fullmatch(r"I?\d+", str(v), re.I)]
        match = people.PATTERNS[0].search(json.dumps(value)) if ids else None
        if match:
            for i in ids:
                patients[image_id(i)] = "p" + hashlib.blake2b(match.group().encode(), digest_size=6).hexdigest()
        elif isinstance(value, dict | list):
            _collect_patients(value, patients)
