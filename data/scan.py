"""Look at a data set before a run learns from it: what was decided of it, as text, as a table, as a picture.

python -m data.scan /path/to/slices
python -m data.scan /path/to/slices --out slices.csv      # correct a cell, then train with --data slices.csv
python -m data.scan /path/to/slices --sheet slices.png    # some slices per class and person
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    from data.installed import need

    need("numpy", "PIL")

import numpy as np
from PIL import Image, ImageDraw

from data import people
from data.build import build_pack
from data.files import atomic_file, say
from data.manifest import write_manifest
from data.records import Choices, Record, Source
from data.settle import sample_of, settle
from data.sources import find_source
from data.splits import SPLIT_CHOICES
from data.walk import DataError, is_slice, some

PEOPLE, SLICES, MOST = 4, 6, 24  # people per class, slices of each, people in all, on a contact sheet
TILE, MARGIN = 128, 14
SIZES = 64  # headers looked at


def scan(spec: str, choices: Choices) -> Source:
    """The source of `spec` with its whole table: a row per page, range and spacing filled in."""
    first: DataError | None = None
    for split in SPLIT_CHOICES:
        try:
            source = find_source(spec, split, choices)
            break
        except DataError as error:
            first = first or error
            if not str(error).startswith("--split"):
                raise
    else:
        raise first or DataError(spec)
    if source.kind == "phantom":
        return replace(source, table=source.records)
    whole = settle(replace(source, records=[r for r in source.table if r.use], others=[]))
    table = [*whole.records, *(r for r in source.table if not r.use)]
    of = {(r.path, r.page) for r in source.records} | {(r.path, -1) for r in source.records}
    records = [r for r in whole.records if (r.path, r.page) in of or (r.path, -1) in of]
    return replace(whole, records=records, table=sorted(table, key=lambda r: (r.name, r.page)))


def tell(source: Source) -> list[str]:
    """What was decided, one line each."""
    used = [r for r in source.table if r.use]
    noun = {"volumes": "volumes", "images": "slices"}.get(source.kind, "phantoms")
    kind = {"patient": "people", "scan": "scans (people are not known)"}.get(source.subject_kind, "nobody is named")
    files = "series" if used and all(is_slice(r.path) for r in used) else "files"
    bad: list[str] = []  # of the headers that are looked at
    sessions = len({(r.subject, r.session) for r in used if r.session})
    lines = [
        ("layout", f"{source.layout}, {len(used):,} {noun} in {len({r.path for r in used}):,} {files}"),
        ("people", f"{_people(used)} {kind}" if source.subject_kind != "none" else kind),
        ("sessions", f"{sessions:,}" if sessions else ""),
        ("classes", "; ".join(_counts(source, used)) or "none"),
        (
            "modalities",
            ", ".join(f"{m} {n:,}" for m, n in Counter(r.modality for r in used if r.modality).most_common()),
        ),
        ("columns", ", ".join(sorted({name for r in used for name, _ in r.attributes}))),
        ("sizes", ", ".join(f"{w}x{h} ({n})" for (h, w), n in source.sizes(SIZES, bad).most_common(5))),
        ("values", source.scale().removeprefix("; ")),
        ("split", source.split_rule),
    ]
    for side in ("train", "test", "val"):
        own = [r for r in used if r.split == side]
        lines.append(("", f"{side}: {len(own):,} {noun} of {_people(own)}" if own else ""))
    groups: dict[str, list[str]] = defaultdict(list)
    for name, why in [*source.left_out, *source.bad, *((r.name, r.why) for r in source.table if not r.use)]:
        groups[why].append(name)
    lines += [("left out", f"{len(names):,}, {why}: {some(names, 3)}") for why, names in groups.items()]
    if bad:
        looked = min(SIZES, len(source.records))
        lines.append(("bad files", f"{len(bad):,} of {looked:,} that were looked at: {some(bad, 3)}"))
    lines += [("warning", text) for text in source.warnings]
    if source.refusal:
        lines.append(("stops", source.refusal))
    return [people.hide(f"{head:<11}{text}") for head, text in lines if text]


def _people(records: list[Record]) -> str:
    return f"{len({r.subject for r in records if r.subject}):,}"


def _counts(source: Source, used: list[Record]) -> list[str]:
    own: dict[int, list[Record]] = defaultdict(list)
    for r in used:
        own[r.label].append(r)
    names = [*enumerate(source.classes), *([(-1, "without a class")] if source.classes and -1 in own else [])]
    return [
        f"{name} {len(own[i]):,}" + (f" of {_people(own[i])}" if _people(own[i]) != "0" else "") for i, name in names
    ]


# --- the contact sheet ------------------------------------------------------------------------------------------------
def contact_sheet(source: Source) -> Image.Image:
    """Some slices of some people of every class, as a run sees them, and how often each grey level is there."""
    sample = _sample(source)
    with tempfile.TemporaryDirectory() as folder:
        how = dict(resolution=TILE, progress=False, max_bad=1.0, log=lambda line: None)
        pack = build_pack(replace(source, records=sample, others=[], refusal=""), Path(folder) / "sheet.pack", **how)  # type: ignore[arg-type]
        rows: dict[tuple[int, str], list[int]] = defaultdict(list)
        for i, (label, subject) in enumerate(zip(pack.labels, pack.subjects, strict=True)):
            rows[int(label), subject].append(i)
        picked = [
            (key, [own[k * len(own) // SLICES] for k in range(SLICES)] if len(own) > SLICES else own)
            for key, own in rows.items()
        ]
        sheet = Image.new("L", (SLICES * TILE, len(picked) * (TILE + MARGIN) + TILE + MARGIN))
        draw = ImageDraw.Draw(sheet)
        for y, ((label, subject), own) in enumerate(picked):
            name = source.classes[label] if label >= 0 else "no class"
            draw.text(
                (2, y * (TILE + MARGIN) + 1),
                f"{name}, {subject[:9] or 'nobody named'}".encode("ascii", "replace").decode(),
                255,
            )
            for x, i in enumerate(own):
                sheet.paste(Image.fromarray(pack.images[i, 0]), (x * TILE, y * (TILE + MARGIN) + MARGIN))
        shown = np.concatenate([pack.images[own, 0].ravel() for _, own in picked])
        _histogram(draw, shown, len(picked) * (TILE + MARGIN))
        del pack  # its memory map goes before its folder
    return sheet


def _sample(source: Source) -> list[Record]:
    """Records of a few people of every class, spread over the set."""
    who: dict[int, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for r in source.table:
        if r.use:
            who[r.label][r.subject].append(r)
    each = max(min(PEOPLE, MOST // len(who)), 1)
    found = []
    for label in sorted(who):
        groups = list(who[label].values())
        for k in range(min(each, len(groups))):
            own = sorted(
                groups[k * len(groups) // min(each, len(groups))], key=lambda r: (r.session, r.position, r.name)
            )
            found += sample_of(own, 1 if source.kind == "volumes" else SLICES)
    return found


def _histogram(draw: ImageDraw.ImageDraw, values: np.ndarray, top: int) -> None:
    counts = np.bincount(values, minlength=256)
    black, levels = counts[0] / counts.sum(), int((counts > 0).sum())
    draw.text((2, top + 1), f"grey levels 1 to 255 ({levels} used), {black:.0%} is black", 255)
    high = max(counts[1:].max(), 1)
    for level in range(1, 256):
        height = int(np.sqrt(counts[level] / high) * (TILE - 4))
        if height:
            x, bottom = 3 * (level - 1), top + MARGIN + TILE - 1
            draw.rectangle((x, bottom - height, x + 1, bottom), 200)


def main(argv: list[str] | None = None) -> int:
    """The command line of `python -m data.scan`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m data.scan", description="Say what a data set holds, before a run.")
    parser.add_argument("source", metavar="SRC", help="a folder, an archive, one file, or a table .csv")
    parser.add_argument("--out", metavar="FILE.csv", help="write the table of all files; --data FILE.csv takes it back")
    parser.add_argument("--sheet", metavar="FILE.png", help="write some slices per class and person as one picture")
    parser.add_argument("--table", default="", metavar="T", help="a .csv or .tsv that is joined to the files")
    parser.add_argument("--include", action="append", default=[], metavar="G", help="use only files that fit this glob")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="G", help="leave out files that fit this glob"
    )
    parser.add_argument("--plane", default="", metavar="P", help="axial (default), coronal or sagittal")
    parser.add_argument("--slices", default="", metavar="LO:HI", help="share of the head's extent that is used")
    parser.add_argument("--range", default="", metavar="R", help="LO:HI, the grey values that become black and white")
    parser.add_argument("--spacing", default="", metavar="S", help="mm per pixel of volumes")
    parser.add_argument("--volume", default="", metavar="N", help="which volume of 4-D files is used, from 0")
    args = vars(parser.parse_args(argv))
    spec, out, sheet = args.pop("source"), args.pop("out"), args.pop("sheet")
    choices = Choices(**{name: ",".join(v) if isinstance(v, list) else v for name, v in args.items()})
    try:
        for path, suffix in ((out, ".csv"), (sheet, ".png")):
            if path and not path.lower().endswith(suffix):
                raise DataError(f"{path}: give a name that ends in {suffix}")
        source = scan(spec, choices)
        say("\n".join(tell(source)))
        if out:
            write_manifest(source, Path(out).expanduser().absolute())
            say(f"{'table':<11}{out}: it names people as the files do; keep it as private as them")
        if sheet:
            picture = contact_sheet(source)
            with atomic_file(Path(sheet).expanduser().absolute()) as file:
                picture.save(file, "PNG")
            say(f"{'sheet':<11}{sheet}")
    except (DataError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 78
    return 0


if __name__ == "__main__":
    sys.exit(main())
