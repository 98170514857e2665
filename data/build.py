"""From the records of a source to one pack file: decode, check, leave out, write."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict, Unpack, cast

import numpy as np
from tqdm import tqdm

from data import images, volumes
from data.columns import SLICE, columns_of
from data.files import atomic_file, remove_torn, say
from data.packfile import ALIGN, MAX_SIDE, PREAMBLE, RESOLUTIONS, VERSION, Pack, Row, open_pack, sha256_of, write_header
from data.people import hide, pseudonym
from data.reading import FLIGHT, BadFile, default_workers, give_back_memory
from data.records import Choices, Record, Source
from data.settle import cut_of, levels_of, settle
from data.walk import DataError, check_bad, list_bad, reasons

PHANTOM_SIZE = 256  # phantoms that are cropped are drawn at this size first
DARK, DARK_MIN_SCANS = 0.3, 10  # scans below this fraction of the median scan's mean are left out
MAX_BAD = 0.01  # share of bad files to go on with
PIXELS = 2  # how files become slices: raise it when decoding changes, so that packs in the cache are made again
ONE_PAGE = (".png", ".jpg", ".jpeg", ".bmp")  # read whole and decoded at once, as most data sets are
COMPARED = 256 << 20  # bytes of other splits' files read at most to look for the same pictures
GREY_LEVELS = 32  # a median slice that uses fewer was made from values that were not scaled
LAZY = 64 << 20  # bytes of one volume's slices; more of them are made when they are written
SOME = 8  # small files that a thread decodes in one go
FEW = 8  # slices below which a warning says that they are no data set


# --- building ---------------------------------------------------------------------------------------------------------
@dataclass
class Decoded:
    """One record's outcome: rows with their pixels, or the reason why there are none."""

    rows: Iterable[tuple[Row, bytes]]
    bad: str = ""
    notes: tuple[str, ...] = ()


class Packing(TypedDict, total=False):
    """What a pack is made of and how: the arguments that build_pack, ensure_pack and ensure_held_out hand on.

    resolution: side of the slices in pixels. channels: 1 or 3. crop: pixels of the middle to keep, 0 for all. max_bad:
    share of bad files to go on with. choices: what is chosen of the data. condition: columns that it needs. workers:
    decoding threads. progress: whether to show a bar. log(text): where the words go. poll(): called after each file;
    what it raises ends the work, and nothing is left behind.
    """

    resolution: Required[int]
    channels: int
    crop: int
    max_bad: float
    choices: Choices
    condition: str
    workers: int | None
    progress: bool
    log: Callable[[str], object]
    poll: Callable[[], None] | None


def packing_of(config) -> Packing:
    """What a pack for a run of this configuration is made of."""
    choices = Choices.of(vars(config))
    told = {"condition": condition} if (condition := getattr(config, "condition", "")) else {}
    shape = {name: getattr(config, name) for name in ("resolution", "channels", "crop", "max_bad")}
    return cast(Packing, shape | {"choices": choices} | told)


def shape_of(how: Packing) -> tuple[int, int, int]:
    """(resolution, channels, crop), checked. Raises DataError for what cannot be, with the flag to mend."""
    shape = how["resolution"], how.get("channels", 1), how.get("crop", 0)
    check_parameters(*shape, how.get("max_bad", MAX_BAD))
    return shape


def build_pack(source: Source, out, **how: Unpack[Packing]) -> Pack:
    """Decode every record into the pack `out`, atomically.

    Bad files are listed and skipped; more than `max_bad` of all files is a DataError (of fewer than 100 files one may
    be bad, unless max_bad is 0).
    """
    resolution, channels, crop = shape_of(how)
    max_bad, log = how.get("max_bad", MAX_BAD), how.get("log", say)
    source.check()
    source = settle(source)
    geometry = _geometry(source, resolution, crop)
    out = Path(out)
    condition = how.get("condition", "")
    count, index_size = _upper_bounds(source, condition)
    row_bytes = channels * resolution * resolution
    offset = -(-(PREAMBLE.size + index_size) // ALIGN) * ALIGN
    _make_room(out, offset + count * row_bytes)
    log(f"packing {len(source.records):,} {'volumes' if source.kind == 'volumes' else 'slices'} into {out}")
    try:
        with atomic_file(out) as file:
            rows, bad, notes, sha = _decode_all(source, file, offset, geometry, how)
            bad = source.bad + bad
            total = len(source.records) + len(source.bad)
            list_bad(bad, len(bad), total, log)
            check_bad(source.spec, bad, len(bad), total, max_bad)
            if not rows:
                raise DataError(
                    f"{source.spec}: none of {total:,} files can be used ({reasons(bad, len(bad))}); check the path "
                    "and the files"
                )
            rows, sha, dark = _leave_out_dark(file, offset, row_bytes, rows, sha)
            notes = source.warnings + notes + dark + _remarks(source, rows, geometry)
            for note in notes:
                log(f"warning: {note}")
            meta = {
                "key": pack_key(source, resolution, channels, crop, condition),
                "describe": source.describe(),
                "split": source.split,
                "total": total,
                "bad_count": len(bad),
                "bad": bad[:1000],
                "warnings": notes,
                "value_range": source.value_range,
                "spacing": source.spacing,
            } | ({"condition": condition} if condition else {})
            if source.kind == "volumes":
                meta["plane"] = source.plane
            write_header(file, offset, rows, source.classes, geometry, channels, sha, meta)
            file.flush()
            os.fsync(file.fileno())
            pack = open_pack(file.name, verify=True)  # what is on the disk is what was decoded
        pack.path = str(out)
        return pack
    except OSError as error:
        raise _no_space(out, error) from None


def check_parameters(resolution: int, channels: int, crop: int, max_bad: float = 0.01) -> None:
    """Raise DataError for a size, channels, crop or share of bad files that cannot be, with the flag to mend."""
    low, high = RESOLUTIONS
    if not low <= resolution <= high:
        raise DataError(f"--resolution {resolution}: choose from {low} to {high}")
    if channels not in (1, 3):
        raise DataError(f"--channels {channels}: choose 1 (grey) or 3")
    if crop < 0:
        raise DataError(f"--crop {crop}: give the side of the middle part to keep, 0 for all")
    if not 0 <= max_bad <= 1:
        raise DataError(f"--max-bad {max_bad}: give a fraction from 0 to 1")


def _geometry(source: Source, resolution: int, crop: int) -> dict:
    """The most common source size, the square it is padded to, crop and resolution."""
    if source.kind == "phantom":
        height = width = PHANTOM_SIZE if crop else resolution
    else:
        sizes = source.sizes(64)
        # Without one readable header every file is bad, which the decoding reports by name.
        height, width = max(sizes, key=lambda s: (sizes[s], s)) if sizes else (resolution, resolution)
    square = max(height, width)
    if crop > square:
        raise DataError(f"--crop {crop} is larger than the slices, {width}x{height}; choose at most {square}")
    if square > MAX_SIDE:
        raise DataError(
            f"{source.spec}: slices of {width}x{height} are too large; scale them to at most {MAX_SIDE} pixels"
        )
    return dict(source_height=height, source_width=width, square=square, crop=crop, resolution=resolution)


def _upper_bounds(source: Source, condition: str = "") -> tuple[int, int]:
    """(slices, bytes of the header) at most: the header lies before the data and is written last."""
    count = text = 0
    kept = columns_of([r.attributes for r in source.records], condition)
    # Of each column its longest cell, and room for the place along the axis, which is not known of volumes yet.
    cells = 24 * len(condition.split(",")) + sum(max(len(json.dumps(c)) for c in set(own)) for own in kept.values())
    for r in source.records:
        slices = 1
        if source.kind == "volumes":
            try:
                slices = volumes.volume_frame(r.path, cut_of(source), r.page)[1]
            except BadFile:
                continue
        count += slices
        text += slices * (len(json.dumps([r.name, r.subject])) + 160 + cells)
    fixed = len(json.dumps([source.classes, source.warnings, source.describe(), source.bad])) + (1 << 16)
    return count, text + fixed + 400 * min(len(source.records), 2000)


def _make_room(out: Path, needed: int) -> None:
    """Create the folder, remove abandoned temporary files, and check the free space before anything is written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # patients' slices: who shares them makes the folder
        remove_torn(out.parent)
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise _no_space(out, error) from None
    if free < needed + (16 << 20):
        raise DataError(
            f"not enough space for a pack of {needed / 1e6:,.0f} MB in {out.parent} ({free / 1e6:,.0f} MB free); "
            f"set BRAIN_PACK_DIR to a folder on another disk, or give --out"
        )


def _no_space(out: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk or your quota is full" if full else error.strerror or str(error)
    return DataError(
        f"cannot write a pack in {out.parent}: {what}; set BRAIN_PACK_DIR to a folder on another disk, or give --out"
    )


class _Bar(tqdm):
    disable = True  # of one that Ctrl-C leaves half made: tqdm's __del__ would end it with a traceback


def _decode_all(source: Source, file, offset: int, geometry: dict, how: Packing):
    """Stream all slices into `file` from `offset` on: (rows, bad, notes, SHA-256 of the data)."""
    channels, poll, levels = how.get("channels", 1), how.get("poll"), levels_of(source)

    def one(group: list[Record]) -> list[Decoded]:
        files = [[record] for record in group] if group[0].page < 0 else [group]
        return [found for file in files for found in _decode(file, source, geometry, channels, levels)]

    rows: list[Row] = []
    bad: list[tuple[str, str]] = []
    notes: list[str] = []
    sha = hashlib.sha256()
    file.seek(offset)
    bar = _Bar(
        total=len(source.records),
        desc="packing",
        unit=" files",
        disable=None if how.get("progress", True) else True,
        leave=False,
    )
    row_bytes = channels * geometry["resolution"] ** 2

    def cost(group: list[Record]) -> int:
        with contextlib.suppress(BadFile):
            if source.kind == "volumes":
                return volumes.volume_cost(volumes.open_volume(group[0].path, group[0].page))
        return len(group) * row_bytes

    give_back_memory()
    groups = _by_file(source.records, max(1, min(64, LAZY // row_bytes)), 1 if source.kind == "volumes" else SOME)
    with bar:
        for group, results in ordered_map(one, groups, how.get("workers") or default_workers(), cost):
            for record, result in zip(group, results, strict=True):
                bar.update()
                if poll is not None:
                    poll()
                try:
                    for row, data in result.rows:
                        file.write(data)
                        sha.update(data)
                        rows.append(row)
                except BadFile as error:  # of a volume whose slices are made only now
                    result.bad = str(error)
                if result.bad:
                    bad.append((hide(record.name), result.bad))
                notes += [f"{hide(record.name)}: {n}" for n in result.notes]
    return rows, bad, notes, sha.hexdigest()


def _by_file(records: list[Record], most: int, some: int) -> Iterator[list[Record]]:
    """Neighbouring pages of one file together, so that it is opened once; of files of one picture `some`, as a thread
    takes one over no faster than it decodes it."""
    group: list[Record] = []
    for r in records:
        one = r.page < 0
        full = len(group) == (min(some, most) if one else most)
        if group and (full or one != (group[0].page < 0) or not (one or r.path == group[0].path)):
            yield group
            group = []
        group.append(r)
    if group:
        yield group


def ordered_map(function, items, workers: int, cost: Callable[..., int] = lambda item: 0):
    """(item, function(item)) in order, computed by threads at most a few items ahead, and no more than what FLIGHT
    bytes hold by their `cost`, so that memory stays bounded."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting: deque = deque()
        held = 0
        for item in items:
            need = cost(item)
            while waiting and (held + need > FLIGHT or len(waiting) >= 8 * workers):
                done, future, freed = waiting.popleft()
                yield done, future.result()
                del future
                held -= freed
            waiting.append((item, pool.submit(function, item), need))
            held += need
        while waiting:
            done, future, _ = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(group: list[Record], source: Source, geometry: dict, channels: int, levels) -> Iterator[Decoded]:
    """The outcome of each record of a group: pages of one file, or one record alone."""
    first = group[0]
    try:
        if source.kind == "phantom":
            yield Decoded([_phantom_row(first, geometry, channels)])
        elif source.kind == "volumes":
            yield _decode_volume(first, source, geometry, channels)
        elif first.page < 0 and first.path.lower().endswith(ONE_PAGE):
            data = images.read_bytes(first.path)
            with images.decode_one(data, channels, levels) as (pixels, notes):
                row, packed = _row(first, first.name, pixels, geometry, channels)
            row.file = hashlib.sha256(data).hexdigest()
            yield Decoded([(row, packed)], "", notes)
        else:
            yield from _decode_pages(group, geometry, channels, levels)
    except BadFile as error:
        yield Decoded([], str(error))


def _decode_volume(record: Record, source: Source, geometry: dict, channels: int) -> Decoded:
    slices, notes, (low, high) = volumes.cut_volume(volumes.open_volume(record.path, record.page), cut_of(source))
    span = max(high - low, 1)

    def of_slice(z: int) -> Record:
        return record.but(position=min(max((z - low) / span, 0.0), 1.0))

    rows = (_row(of_slice(z), f"{record.name}#{z:03d}", p[:, :, None], geometry, channels) for z, p in slices)
    count = volumes.open_volume(record.path, record.page).frame(source.plane)[1]
    small = count * channels * geometry["resolution"] ** 2 <= LAZY
    return Decoded(list(rows) if small else rows, "", tuple(notes))


def _decode_pages(group: list[Record], geometry: dict, channels: int, levels) -> Iterator[Decoded]:
    file = images.file_sha(group[0].path)
    for record, raw in zip(group, images.read_pages(group[0].path, [r.page for r in group], channels), strict=True):
        try:
            if isinstance(raw, BadFile):
                raise raw
            name = record.name if record.page < 0 or "#" in record.name else f"{record.name}#{record.page:03d}"
            row, packed = _row(record, name, images.render(raw, channels, levels), geometry, channels)
            row.file = file
            yield Decoded([(row, packed)])
        except BadFile as error:
            yield Decoded([], str(error))


def _row(record: Record, name: str, pixels, geometry: dict, channels: int) -> tuple[Row, bytes]:
    """Row and packed bytes (C, R, R) of one uint8 (H, W, C) picture."""
    h = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    h.update(np.ascontiguousarray(pixels).data)
    packed = images.fit_square(pixels, geometry["square"], geometry["crop"], geometry["resolution"])
    if packed.shape[2] != channels:
        packed = np.broadcast_to(packed, (*packed.shape[:2], channels))
    person = pseudonym(record.subject) if record.path else record.subject  # a phantom is nobody
    mean = float(np.add.reduce(pixels, axis=None, dtype=np.uint64)) / pixels.size
    row = Row(hide(name), record.label, person, hide(record.scan), h.hexdigest(), mean, pixels.shape[:2])
    row.cells = record.attributes
    if record.position >= 0:
        row.cells = (*row.cells, (SLICE, f"{record.position:.4g}"))
    if mean < GREY_LEVELS:
        row.levels = int(np.count_nonzero(np.bincount(pixels[::2, ::2, 0].ravel(), minlength=256)))
    return row, packed.transpose(2, 0, 1).tobytes()


def _phantom_row(record: Record, geometry: dict, channels: int) -> tuple[Row, bytes]:
    from data.phantom import phantom_slice
    from data.phantom_people import person_slice

    draw = person_slice if record.attributes else phantom_slice
    pixels = draw(int(record.name.split("-")[1]), record.slice_index, geometry["square"])
    return _row(record, record.name, pixels[:, :, None], geometry, channels)


def _leave_out_dark(file, offset: int, row_bytes: int, rows: list[Row], sha: str):
    """Drop nearly black scans (the course's ADNI has two corrupt ones): (rows, SHA-256, warnings)."""
    means = defaultdict(list)
    for row in rows:
        if row.scan:
            means[row.label, row.scan].append(row.mean)
    mean = {scan: float(np.mean(values)) for scan, values in means.items()}
    if len(mean) < DARK_MIN_SCANS:
        return rows, sha, []
    median = float(np.median(list(mean.values())))
    dark = {scan: m for scan, m in mean.items() if m < DARK * median}
    if not dark:
        return rows, sha, []
    keep = [i for i, row in enumerate(rows) if (row.label, row.scan) not in dark]
    for new, old in enumerate(keep):  # close the gaps in place
        if new != old:
            file.seek(offset + old * row_bytes)
            data = file.read(row_bytes)
            file.seek(offset + new * row_bytes)
            file.write(data)
    file.truncate(offset + len(keep) * row_bytes)
    names = ", ".join(f"{scan} (mean {m:.1f})" for (_, scan), m in sorted(dark.items())[:10])
    more = f" and {len(dark) - 10} more" if len(dark) > 10 else ""
    note = (
        f"{len(dark)} nearly black scans left out with their {len(rows) - len(keep):,} slices (the median scan's "
        "mean is "
        f"{median:.1f}): {names}{more}"
    )
    return [rows[i] for i in keep], sha256_of(file, offset), [note]


def _remarks(source: Source, rows: list[Row], geometry: dict) -> list[str]:
    """What a user should know about the slices: odd sizes, darkness, the same picture twice."""
    notes = []
    if len(rows) < FEW:
        notes.append(f"only {len(rows)} slice{'s' * (len(rows) > 1)}: a generator can copy so few, not learn from them")
    usual = (geometry["source_height"], geometry["source_width"])
    odd = Counter(row.size for row in rows if row.size != usual)
    if odd:
        (height, width), _ = odd.most_common(1)[0]
        notes.append(
            f"{odd.total():,} of {len(rows):,} slices are not {usual[1]}x{usual[0]} (such as {width}x{height}): "
            "smaller ones are "
            f"padded, larger ones scaled down"
        )
    levels, mean = (float(np.median(values)) for values in zip(*((r.levels, r.mean) for r in rows), strict=True))
    if mean < 3 or (1 < levels < GREY_LEVELS and mean < GREY_LEVELS):
        notes.append(
            f"the median slice is nearly black, with {levels:.0f} grey levels: 12-bit values that were saved without "
            "scaling? give the values that become black and white, --range LO:HI"
        )
    labels: dict[str, set] = defaultdict(set)
    first: dict[str, str] = {}
    again: list[str] = []
    for row in rows:
        labels[row.hash].add(row.label)
        if row.hash in first:
            again.append(f"{row.name} = {first[row.hash]}")
        first.setdefault(row.hash, row.name)
    two = sorted(first[h] for h, found in labels.items() if len(found) > 1)
    if two:
        notes.append(f"{len(two):,} pictures are under two classes: {', '.join(two[:3])}")
    if again:
        notes.append(f"{len(again):,} slices are copies of another: {', '.join(again[:3])}")
    return notes + _same_in_other_split(source, rows)


def _same_in_other_split(source: Source, rows: list[Row]) -> list[str]:
    """Warn about files that are byte for byte in another split too; only files of equal size are read, up to a
    limit."""
    if source.kind != "images" or not source.others:
        return []
    own = {row.file: row.name for row in rows}
    sizes, budget, twins, partly = {r.size for r in source.records}, COMPARED, [], ""
    candidates = []
    for r in source.others:
        if r.size in sizes and r.size <= budget:
            budget -= r.size
            candidates.append(r)
        elif r.size in sizes:
            partly = " (of those compared)"

    def sha(record: Record) -> str:
        try:
            return images.file_sha(record.path)
        except BadFile:
            return ""

    for record, value in ordered_map(sha, candidates, default_workers()):
        if value in own:
            twins.append(f"{own[value]} = {hide(record.name)}")
    if not twins:
        return []
    return [f"{len(twins):,} pictures{partly} are in another split too: {', '.join(twins[:3])}"]


# --- the cache --------------------------------------------------------------------------------------------------------
def pack_key(source: Source, resolution: int, channels: int, crop: int, condition: str = "") -> str:
    """What the contents of a pack depend on, as hex."""
    parts: tuple = (VERSION, PIXELS, source.digest(), resolution, channels, crop)
    return hashlib.blake2b(repr((*parts, *filter(None, [condition]))).encode(), digest_size=12).hexdigest()
