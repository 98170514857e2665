"""What is decided once for a whole set of files, said, and then held against every file: pages, grey levels, spacing.

The sample is taken of all splits together, so that training slices and held-out ones are scaled alike.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from data import images, volumes
from data.formats import is_volume
from data.reading import BadFile, default_workers
from data.records import Record, Source, parse_range
from data.volumes import Cut

SAMPLE = 128  # files that are looked at
PAGED = (".tif", ".tiff", ".gif", ".webp", ".npy", ".npz")  # formats of which a file may hold many pictures


def settle(source: Source) -> Source:
    """The source with a record per page and with its range or spacing filled in, where they were not given. What is
    settled stays as it is. Raises DataError for what was given and cannot be."""
    if source.kind == "phantom":
        return source
    parse_range(source.value_range)
    records = [r for r in source.records if r.use]
    if source.kind == "volumes":
        volume = int(source.choices.volume or -1)
        records = [r.but(page=volume) if r.page < 0 else r for r in records]
        source = replace(source, records=records)
        return replace(source, spacing=source.spacing or _median_spacing(source, volume))
    source = replace(source, records=by_page(records))
    return source if source.value_range else replace(source, value_range=_range_of_set(source))


def cut_of(source: Source) -> Cut:
    """How the volumes of a settled source are cut."""
    return Cut(source.plane, source.slices, parse_range(source.value_range), source.spacing)


def levels_of(source: Source) -> images.Levels | None:
    """The range of a settled set of pictures; what the user gave is taken as it is, what was decided is checked."""
    pair = parse_range(source.value_range)
    return images.Levels(*pair, given=bool(source.choices.range)) if pair else None


# --- pages ------------------------------------------------------------------------------------------------------------
def by_page(records: list[Record]) -> list[Record]:
    """A record per page of the files that hold several; the file is their scan."""
    paged = [r for r in records if r.page < 0 and r.path.lower().endswith(PAGED)]
    if not paged:
        return records
    with ThreadPoolExecutor(default_workers()) as pool:
        counts = dict(zip((r.path for r in paged), pool.map(_pages, (r.path for r in paged)), strict=True))
    found = []
    for r in records:
        count = counts.get(r.path, 1) if r.page < 0 else 1
        if count == 1:
            found.append(r)
            continue
        for page in range(count):
            found.append(r.but(page=page, scan=r.scan or r.name, position=page / (count - 1)))
    return found


def _pages(path: str) -> int:
    try:
        return images.look_picture(path)[0]
    except BadFile:  # reported when it is decoded
        return 1


# --- grey levels and spacing ------------------------------------------------------------------------------------------
def sample_of(records: list[Record], count: int) -> list[Record]:
    """Up to so many records, spread evenly."""
    n = len(records)
    return [records[i] for i in sorted({k * n // count for k in range(count)})] if n > count else records


def _whole_set(source: Source) -> list[Record]:
    everything = sorted([*source.records, *(r for r in source.others if r.use)], key=lambda r: (r.name, r.page))
    return sample_of(everything, SAMPLE)


def _range_of_set(source: Source) -> str:
    wide, narrow = [], 0
    for record in _whole_set(source):
        try:
            if not record.path.lower().endswith(images.ARRAYS) and not images.maybe_wide(record.path):
                narrow += 1
                continue
            for raw in images.read_pages(record.path, [record.page if record.page >= 0 else 0]):
                if isinstance(raw, BadFile):
                    continue
                if raw.wide:
                    wide.append(images.measure(raw.values))
                else:
                    narrow += 1
        except BadFile:
            continue
    if len(wide) <= narrow:
        return "0:255"
    low, high = images.range_of(wide)
    return f"{low:.9g}:{high:.9g}"


def _median_spacing(source: Source, volume: int) -> float:
    found = []
    for record in _whole_set(source):
        if not is_volume(record.path):
            continue
        try:
            opened = volumes.open_volume(record.path, record.page if record.page >= 0 else volume)
            found.append(opened.frame(source.plane)[2])
        except BadFile:
            continue
    return float(f"{statistics.median(found):.6g}") if found else 0.0
