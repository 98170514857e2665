"""Decode a data set once into one memory-mapped file of uint8 slices.

python -m data.pack /path/to/ADNI --resolution 256
python -m data.pack /path/to/OASIS --resolution 64 --crop 208 --out oasis64.pack
python -m data.pack oasis64.pack                        # verify one
"""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data import images, volumes
from data.images import BadFile
from data.packfile import (
    ALIGN,
    MAGIC,
    PREAMBLE,
    RESOLUTIONS,
    VERSION,
    Pack,
    Row,
    check_geometry,
    open_pack,
    restore,
    sha256_of,
    write_header,
)
from data.sources import ROOM, DataError, Record, Source, find_source

__all__ = [
    "DataError",
    "Pack",
    "build_pack",
    "check_geometry",
    "ensure_held_out",
    "ensure_pack",
    "open_pack",
    "pack_folder",
    "restore",
]

PHANTOM_SIZE = 256  # phantoms that are cropped are drawn at this size first
DARK, DARK_MIN_SCANS = 0.3, 10  # scans below this fraction of the median scan's mean are left out
BAD_FREE = 100  # sets smaller than this tolerate one bad file
LISTED = 20  # bad files named in the log
COMPARED = 256 << 20  # bytes of other splits' files read at most to look for the same pictures
FEW = 8  # slices below which a warning says that they are no data set
STALE = 3600  # seconds after which another build's temporary file is taken for abandoned


# --- building ---------------------------------------------------------------------------------------------------------
@dataclass
class Decoded:
    """One record's outcome: rows with their pixels, or the reason why there are none."""

    rows: list[tuple[Row, bytes]]
    bad: str = ""
    notes: tuple[str, ...] = ()


def build_pack(
    source: Source, out, *, resolution: int, channels: int = 1, crop: int = 0, workers: int | None = None,
    progress: bool = True, max_bad: float = 0.01, log=print, poll: Callable[[], None] | None = None,
) -> Pack:  # fmt: skip
    """Decode every record into the pack `out`, atomically. Bad files are listed and skipped; more than `max_bad` of all
    files is a DataError (of fewer than 100 files one may be bad, unless max_bad is 0). `poll` is called after each file;
    what it raises ends the work, and nothing is left behind."""
    check_parameters(resolution, channels, crop, max_bad)
    geometry = _geometry(source, resolution, crop)
    out = Path(out)
    count, index_size = _upper_bounds(source)
    row_bytes = channels * resolution * resolution
    offset = -(-(PREAMBLE.size + index_size) // ALIGN) * ALIGN
    _make_room(out, offset + count * row_bytes)
    tmp = out.with_name(f".{out.name}.{socket.gethostname()[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    log(f"packing {len(source.records):,} {'volumes' if source.kind == 'volumes' else 'slices'} into {out}")
    try:
        with open(tmp, "xb+") as file:
            rows, bad, notes, sha = _decode_all(source, file, offset, geometry, channels, workers, progress, poll)
            bad = source.bad + bad
            total = len(source.records) + len(source.bad)
            _list_bad(bad, len(bad), total, log)
            check_bad(source.spec, bad, len(bad), total, max_bad)
            if not rows:
                raise DataError(
                    f"{source.spec}: none of {total:,} files can be used ({_reasons(bad, len(bad))}); check the path and the files"
                )
            rows, sha, dark = _leave_out_dark(file, offset, row_bytes, rows, sha)
            notes = source.warnings + notes + dark + _remarks(source, rows, geometry)
            for note in notes:
                log(f"warning: {note}")
            meta = {"key": pack_key(source, resolution, channels, crop), "describe": source.describe(), "split": source.split,
                    "total": total, "bad_count": len(bad), "bad": bad[:1000], "warnings": notes}  # fmt: skip
            write_header(file, offset, rows, source.classes, geometry, channels, sha, meta)
            file.flush()
            os.fsync(file.fileno())
        pack = open_pack(tmp, verify=True)  # what is on the disk is what was decoded
        os.replace(tmp, out)
        _fsync_folder(out.parent)
        pack.path = str(out)
        return pack
    except OSError as error:
        raise _no_space(out, error) from None
    finally:
        with contextlib.suppress(OSError):  # a read-only file system, which is what is being reported
            tmp.unlink(missing_ok=True)


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
    if square > 1 << 14:
        raise DataError(f"{source.spec}: slices of {width}x{height} are too large")
    return dict(source_height=height, source_width=width, square=square, crop=crop, resolution=resolution)


def _upper_bounds(source: Source) -> tuple[int, int]:
    """(slices, bytes of the header) at most: the header lies before the data and is written last."""
    count = text = 0
    for r in source.records:
        slices = 1
        if source.kind == "volumes":
            try:
                slices = volumes.volume_frame(r.path)[1]
            except BadFile:
                continue
        count += slices
        text += slices * (len(json.dumps([r.name, r.subject])) + 80)
    fixed = len(json.dumps([source.classes, source.warnings, source.describe(), source.bad])) + (1 << 16)
    return count, text + fixed + 400 * min(len(source.records), 2000)


def _make_room(out: Path, needed: int) -> None:
    """Create the folder, remove abandoned temporary files, and check the free space before anything is written."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # patients' slices: who shares them makes the folder
        for old in out.parent.glob(f".{_glob_escape(out.name)}.*.tmp"):
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink(missing_ok=True)
        free = shutil.disk_usage(out.parent).free
    except OSError as error:
        raise _no_space(out, error) from None
    if free < needed + (16 << 20):
        raise DataError(
            f"not enough space for a pack of {needed / 1e6:,.0f} MB in {out.parent} ({free / 1e6:,.0f} MB free); "
            f"set BRAIN_PACK_DIR to a folder on another disk, or give --out"
        )


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _no_space(out: Path, error: OSError) -> DataError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    what = "the disk or your quota is full" if full else error.strerror or str(error)
    return DataError(
        f"cannot write a pack in {out.parent}: {what}; set BRAIN_PACK_DIR to a folder on another disk, or give --out"
    )


class _Bar(tqdm):
    disable = True  # of one that Ctrl-C leaves half made: tqdm's __del__ would end it with a traceback


def _decode_all(source: Source, file, offset, geometry, channels, workers, progress, poll):
    """Stream all slices into `file` from `offset` on: (rows, bad, notes, SHA-256 of the data)."""

    def one(record: Record) -> Decoded:
        return _decode(record, source.kind, geometry, channels)

    rows: list[Row] = []
    bad: list[tuple[str, str]] = []
    notes: list[str] = []
    sha = hashlib.sha256()
    file.seek(offset)
    bar = _Bar(
        total=len(source.records), desc="packing", unit=" files", disable=None if progress else True, leave=False
    )
    with bar:
        for record, result in ordered_map(one, source.records, workers or default_workers()):
            bar.update()
            if poll is not None:
                poll()
            if result.bad:
                bad.append((record.name, result.bad))
            notes += [f"{record.name}: {n}" for n in result.notes]
            for row, data in result.rows:
                file.write(data)
                sha.update(data)
                rows.append(row)
    return rows, bad, notes, sha.hexdigest()


def default_workers() -> int:
    """Threads: Pillow and zlib release the interpreter lock while they decode. More than cores, as NFS makes them wait."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2 * cores, 16)


def ordered_map(function, items, workers: int):
    """(item, function(item)) in order, computed by threads at most a few items ahead, so that memory stays bounded."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        waiting: deque = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) >= 8 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _decode(record: Record, kind: str, geometry: dict, channels: int) -> Decoded:
    try:
        if kind == "phantom":
            return Decoded([_phantom_row(record, geometry, channels)])
        if kind == "volumes":
            slices, notes = volumes.read_volume(record.path)
            return Decoded(
                [_row(record, f"{record.name}#{z:03d}", p[:, :, None], geometry, channels) for z, p in slices],
                "",
                tuple(notes),
            )
        data = images.read_bytes(record.path)
        pixels = images.decode(data, channels)
        row, packed = _row(record, record.name, pixels, geometry, channels)
        row.file = hashlib.sha256(data).hexdigest()
        return Decoded([(row, packed)])
    except BadFile as error:
        return Decoded([], str(error))


def _row(record: Record, name: str, pixels, geometry: dict, channels: int) -> tuple[Row, bytes]:
    """Row and packed bytes (C, R, R) of one uint8 (H, W, C) picture."""
    h = hashlib.blake2b(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes(), digest_size=16)
    packed = images.fit_square(pixels, geometry["square"], geometry["crop"], geometry["resolution"])
    packed = np.broadcast_to(packed, (*packed.shape[:2], channels)).transpose(2, 0, 1)
    row = Row(name, record.label, record.subject, record.scan, h.hexdigest(), float(pixels.mean()), pixels.shape[:2])
    return row, np.ascontiguousarray(packed).tobytes()


def _phantom_row(record: Record, geometry: dict, channels: int) -> tuple[Row, bytes]:
    from data.phantom import phantom_slice

    seed = int(record.name.split("-")[1])
    pixels = phantom_slice(seed, record.slice_index, geometry["square"])[:, :, None]
    return _row(record, record.name, pixels, geometry, channels)


def check_bad(spec: str, bad: list, count: int, total: int, max_bad: float) -> None:
    """DataError when too many files are bad: `count` of `total`, of which `bad` names some."""
    allowed = max_bad * total
    if max_bad > 0 and total < BAD_FREE:
        allowed = max(allowed, 1)
    if count <= allowed or count == total:  # nothing usable at all is another error
        return
    share = count / total
    raise DataError(
        f"{spec}: {count:,} of {total:,} files cannot be used ({100 * share:.2g} %, more than {100 * max_bad:g} %): {_reasons(bad, count)}; "
        f"remove or replace them, or go on without them: --max-bad {min(np.ceil(share * 1000) / 1000 + 0.001, 1):.3f}"
    )


def _reasons(bad: list, count: int) -> str:
    more = f" and {count - 5:,} more" if count > 5 else ""
    return ", ".join(f"{name} ({reason})" for name, reason in bad[:5]) + more


def _list_bad(bad: list, count: int, total: int, log) -> None:
    for name, reason in bad[:LISTED]:
        log(f"bad file: {name}: {reason}")
    if count > LISTED:
        log(f"bad file: and {count - LISTED:,} more")
    if count:
        log(f"bad files: {count:,} of {total:,} skipped")


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
        f"{len(dark)} nearly black scans left out with their {len(rows) - len(keep):,} slices (the median scan's mean is "
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
            f"{odd.total():,} of {len(rows):,} slices are not {usual[1]}x{usual[0]} (such as {width}x{height}): smaller ones are "
            f"padded, larger ones scaled down"
        )
    if max(row.mean for row in rows) < 3:
        notes.append("all slices are nearly black: 12-bit values in 16-bit files? stretch them to the full range first")
    labels, first, again = defaultdict(set), {}, []
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
    """Warn about files that are byte for byte in another split too; only files of equal size are read, up to a limit."""
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
            return hashlib.sha256(images.read_bytes(record.path)).hexdigest()
        except BadFile:
            return ""

    for record, value in ordered_map(sha, candidates, default_workers()):
        if value in own:
            twins.append(f"{own[value]} = {record.name}")
    if not twins:
        return []
    return [f"{len(twins):,} pictures{partly} are in another split too: {', '.join(twins[:3])}"]


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- the cache --------------------------------------------------------------------------------------------------------
def pack_key(source: Source, resolution: int, channels: int, crop: int) -> str:
    """What the contents of a pack depend on, as hex."""
    return hashlib.blake2b(
        repr((VERSION, source.digest(), resolution, channels, crop)).encode(), digest_size=12
    ).hexdigest()


def pack_folder(cache_dir=None) -> Path:
    """Where packs are kept: the argument, $BRAIN_PACK_DIR, $XDG_CACHE_HOME/brain-slices or ~/.cache/brain-slices."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = cache_dir or os.environ.get("BRAIN_PACK_DIR") or os.path.join(base, "brain-slices")
    folder = Path(chosen).expanduser().absolute()
    if folder.resolve().is_relative_to(ROOM):
        raise DataError(
            f"packs may not lie in the toolkit's own {ROOM.name}/ folder; set BRAIN_PACK_DIR to another one"
        )
    return folder


def ensure_pack(
    spec: str, *, resolution: int, channels: int = 1, crop: int = 0, split: str = "train", cache_dir=None, out=None,
    progress: bool = True, log=print, max_bad: float = 0.01, workers: int | None = None,
    poll: Callable[[], None] | None = None, verify: bool = True,
) -> Pack:  # fmt: skip
    """The pack of `spec`: a .pack file is opened and compared with the parameters, anything else is found in the cache or
    built there (or as `out`). Two processes may do this at once: each writes its own file, and either result is valid.
    `verify`: hash the contents of a pack that is there already (2 GB in a few seconds). `poll`: see build_pack."""
    check_parameters(resolution, channels, crop, max_bad)
    if spec and spec.lower().endswith(".pack") and not Path(spec).is_dir():
        return _given_pack(spec, resolution, channels, crop, split, log, verify)
    source = find_source(spec, split)
    key = pack_key(source, resolution, channels, crop)
    if out is None:
        slug = re.sub(r"[^a-z0-9]+", "-", source.layout.lower())
        out = pack_folder(cache_dir) / f"{slug}-{source.split}-{resolution}px-{key[:16]}.pack"
    out = Path(out).expanduser().absolute()
    log(source.describe())
    if os.path.lexists(out):
        try:
            pack = open_pack(out, verify=verify)
        except DataError as error:
            if not _ours(out):
                raise DataError(f"--out {out} exists and is no pack; choose another name") from None
            log(f"warning: {error}")
        else:
            if pack.meta["key"] == key:
                about = pack.meta
                _list_bad(about["bad"], about["bad_count"], about["total"], log)
                check_bad(spec, about["bad"], about["bad_count"], about["total"], max_bad)
                for note in about["warnings"]:
                    log(f"warning: {note}")
                log(_result(pack, "re-used"))
                return pack
            log(f"{out} is a pack of other data or parameters, or its source changed: built again")
    start = time.monotonic()
    pack = build_pack(source, out, resolution=resolution, channels=channels, crop=crop, workers=workers, progress=progress,
                      max_bad=max_bad, log=log, poll=poll)  # fmt: skip
    log(_result(pack, f"built in {time.monotonic() - start:.1f} s"))
    return pack


def preview(
    spec: str, *, resolution: int, channels: int = 1, crop: int = 0, split: str = "train", log=print
) -> list[str]:
    """What ensure_pack would check before it decodes anything: says what was found, with its warnings; returns the classes."""
    check_parameters(resolution, channels, crop)
    if spec and spec.lower().endswith(".pack") and not Path(spec).is_dir():
        return _given_pack(spec, resolution, channels, crop, split, log, verify=False).classes
    source = find_source(spec, split)
    _geometry(source, resolution, crop)
    log(source.describe())
    for warning in source.warnings:
        log(f"warning: {warning}")
    return source.classes


def ensure_held_out(spec: str, val_split: str, *, train_split: str = "train", log=print, **parameters) -> Pack | None:
    """The pack of other patients than `train_split`, to validate on; None where there are none, with a line that says so.

    `val_split`: val, test, none, or auto, which takes val where the data have it, else test. `parameters` as of ensure_pack.
    """
    if val_split == "none":
        return None
    reason = "--split all trains on everything"
    if train_split != "all":
        for split in ("val", "test") if val_split == "auto" else (val_split,):
            if split == train_split:
                continue
            try:
                if any(r.split == train_split for r in find_source(spec, split).records):  # val, where there is no test
                    raise DataError(
                        f"--split {split}: {spec} has only the {train_split} folder, which is trained on; use --val-split none"
                    )
            except DataError as error:
                if val_split != "auto":
                    raise
                reason = str(error)
                continue
            return ensure_pack(spec, split=split, log=log, **parameters)
    log(f"no other patients to validate on ({reason}); figures are of the training slices")
    return None


def _ours(path: Path) -> bool:
    """True for a regular file that begins like a pack, however damaged: only that may be replaced."""
    try:
        return stat.S_ISREG(path.stat().st_mode) and path.open("rb").read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _given_pack(spec: str, resolution: int, channels: int, crop: int, split: str, log, verify: bool) -> Pack:
    pack = open_pack(Path(spec).expanduser(), verify=verify)
    have = pack.images.shape
    if have[2] != resolution or have[1] != channels:
        raise DataError(
            f"--data {spec} holds {have[2]} px slices with {have[1]} channels, not {resolution} px with {channels}; "
            f"use --resolution {have[2]} --channels {have[1]}, or build another pack"
        )
    if crop and crop != pack.geometry["crop"]:
        raise DataError(
            f"--data {spec} was cropped to {pack.geometry['crop'] or 'nothing less'}, not to {crop}; build another pack"
        )
    if pack.meta["split"] != split:
        log(f"warning: {spec} was packed from split {pack.meta['split']}; --split {split} does not change that")
    log(_result(pack, "opened"))
    return pack


def _result(pack: Pack, how: str) -> str:
    side = pack.images.shape[2]
    return f"{pack.path}: {len(pack):,} slices at {side} px, {os.path.getsize(pack.path) / 1e6:,.1f} MB, {how}"


def main(argv: list[str] | None = None) -> int:
    """The command line of `python -m data.pack`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.pack", description="Decode slices once into one file that training reads."
    )
    parser.add_argument("source", metavar="SRC", help="folder of slices, NIfTI file, phantom[:N]; or a .pack to verify")
    parser.add_argument("--out", help="the file to write (default: named after its contents, in the cache folder)")
    parser.add_argument("--resolution", type=int, default=256, help="side of the packed slices in pixels (default 256)")
    parser.add_argument(
        "--crop", type=int, default=0, help="keep this many pixels of the middle first (default 0: all)"
    )
    parser.add_argument("--channels", type=int, default=1, choices=(1, 3), help="1 grey (default) or 3")
    parser.add_argument("--split", default="train", choices=("train", "test", "val", "all"), help="default train")
    parser.add_argument(
        "--max-bad",
        type=float,
        default=0.01,
        metavar="FRACTION",
        help="go on with this share of bad files (default 0.01)",
    )
    parser.add_argument("--workers", type=int, help="decoding threads (default: by the cores)")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        if args.source.lower().endswith(".pack") and not Path(args.source).is_dir():
            pack = open_pack(Path(args.source).expanduser(), verify=True)
            print(pack.meta["describe"])
            print(_result(pack, "verified"))
            return 0
        ensure_pack(args.source, resolution=args.resolution, channels=args.channels, crop=args.crop, split=args.split,
                    out=args.out, max_bad=args.max_bad, workers=args.workers)  # fmt: skip
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 78
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
