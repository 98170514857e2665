"""Decode a data set once into one memory-mapped file of uint8 slices.

python -m data.pack /path/to/ADNI --resolution 256
python -m data.pack /path/to/OASIS --resolution 64 --crop 208 --out oasis64.pack
python -m data.pack oasis64.pack                        # verify one
"""

from __future__ import annotations

import argparse
import os
import re
import stat
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from data.build import MAX_BAD, Packing, _geometry, build_pack, pack_key, shape_of
from data.columns import check_names, columns_of
from data.files import cache_folder, say
from data.packfile import (
    MAGIC,
    Pack,
    open_pack,
)
from data.people import hide
from data.records import ROOM, Source
from data.settle import settle
from data.sources import DEFAULT, find_source
from data.walk import DataError, check_bad, list_bad


def pack_folder(cache_dir=None) -> Path:
    """Where packs are kept (cache_folder of data/files.py), outside of the toolkit's own code."""
    folder = cache_folder(cache_dir)
    if folder.resolve().is_relative_to(ROOM):
        raise DataError(
            f"packs may not lie in the toolkit's own {ROOM.name}/ folder; set BRAIN_PACK_DIR to another one"
        )
    return folder


def ensure_pack(
    spec: str, *, split: str = "train", cache_dir=None, out=None, verify: bool = True, **how: Unpack[Packing]
) -> Pack:
    """The pack of `spec`: a .pack file is opened and compared with the parameters, anything else is found in the cache
    or built there (or as `out`).

    Two processes may do this at once: each writes its own file, and either result is valid. `verify`: hash the contents
    of a pack that is there already (2 GB in a few seconds).
    """
    resolution, channels, crop = shape_of(how)
    max_bad, log = how.get("max_bad", MAX_BAD), how.get("log", say)
    if _given(spec):
        return _given_pack(spec, resolution, channels, crop, split, log, verify)
    source, key, name = _planned(spec, split, how)
    out = Path(out or pack_folder(cache_dir) / name).expanduser().absolute()
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
                list_bad(about["bad"], about["bad_count"], about["total"], log)
                check_bad(spec, about["bad"], about["bad_count"], about["total"], max_bad)
                for note in about["warnings"]:
                    log(f"warning: {note}")
                log(_result(pack, "re-used"))
                return pack
            log(f"{out} is a pack of other data or parameters, or its source changed: built again")
    start = time.monotonic()
    pack = build_pack(source, out, **how)
    log(_result(pack, f"built in {time.monotonic() - start:.1f} s"))
    return pack


def _planned(spec: str, split: str, how: Packing) -> tuple[Source, str, str]:
    """(what is packed, the key of the pack, its name in the cache)."""
    resolution, channels, crop = shape_of(how)
    source = find_source(spec, split, how.get("choices", DEFAULT))
    source.check()
    source = settle(source)
    check_names(how.get("condition", ""), source.classes, source.columns())
    key = pack_key(source, resolution, channels, crop, how.get("condition", ""))
    slug = re.sub(r"[^a-z0-9]+", "-", source.layout.lower())
    return source, key, f"{slug}-{source.split}-{resolution}px-{key[:16]}.pack"


def kept_pack(spec: str, *, split: str = "train", cache_dir=None, **how: Unpack[Packing]) -> Pack:
    """The pack of `spec` that ensure_pack has built before. Nothing is built or written: DataError where that would
    be."""
    if _given(spec):
        return _given_pack(spec, *shape_of(how), split, how.get("log", say), verify=False)
    source, key, name = _planned(spec, split, how)
    place = pack_folder(cache_dir) / name
    if not place.exists():
        raise DataError(f"{spec}: the slices of split {source.split} are not packed here")
    pack = open_pack(place)
    if pack.meta["key"] != key:
        raise DataError(f"{place}: a pack of other data or parameters")
    return pack


def preview(spec: str, *, split: str = "train", **how: Unpack[Packing]) -> tuple[list[str], int]:
    """What ensure_pack would check before it decodes anything: says what was found, with its warnings; returns the
    classes and the number of slices, 0 where it is not known: nobody has looked into volumes.

    Files that are bad at a glance (unreadable, empty) count: with too many of them ensure_pack is sure to refuse.
    """
    resolution, channels, crop = shape_of(how)
    max_bad, log = how.get("max_bad", MAX_BAD), how.get("log", say)
    if _given(spec):
        pack = _given_pack(spec, resolution, channels, crop, split, log, verify=False)
        check_names(how.get("condition", ""), pack.classes, list(pack.columns))
        return pack.classes, len(pack)
    source = find_source(spec, split, how.get("choices", DEFAULT))
    source.check()
    source = settle(source)
    _geometry(source, resolution, crop)
    log(source.describe())
    for warning in source.warnings:
        log(f"warning: {warning}")
    check_names(how.get("condition", ""), source.classes, source.columns())
    columns_of([r.attributes for r in source.records], how.get("condition", ""))
    empty = [(hide(r.name), "zero bytes") for r in source.records if not r.size and source.kind != "phantom"]
    bad = source.bad + empty
    check_bad(spec, bad, len(bad), len(source.records) + len(source.bad), max_bad)
    return source.classes, 0 if source.kind == "volumes" else len(source.records)


def ensure_held_out(
    spec: str, val_split: str, *, train_split: str = "train", verify: bool = True, **how: Unpack[Packing]
) -> Pack | None:
    """The pack of other patients than `train_split`, to validate on; None where there are none, with a line that says
    so.

    `val_split`: val, test, none, or auto, which takes val where the data have it, else test. `parameters` as of
    ensure_pack.
    """
    if val_split == "none":
        return None
    log = how.get("log", say)
    reason = "--split all trains on everything"
    if train_split != "all":
        choices = how.get("choices", DEFAULT)
        for split in ("val", "test") if val_split == "auto" else (val_split,):
            if split == train_split:
                continue
            try:
                if _given(spec):
                    raise DataError(f"{spec}: a pack holds one split; name the folder that it was packed from")
                _apart(spec, find_source(spec, train_split, choices), find_source(spec, split, choices))
            except DataError as error:
                if val_split != "auto":
                    raise
                reason = str(error)
                continue
            return ensure_pack(spec, split=split, verify=verify, **how)
    log(f"no other patients to validate on ({reason}); figures are of the training slices")
    return None


def _apart(spec: str, train: Source, held: Source) -> None:
    """DataError where somebody whom `train` learns from is in `held`: val used as test, or a test folder."""
    who, files = {r.subject for r in train.records if r.subject}, {r.name for r in train.records}
    if any(r.name in files or r.subject in who for r in held.records):
        only = {r.split for r in held.records if r.split}
        what = f"{spec} has only the {' and '.join(sorted(only))} folder" if only else f"{spec} has only people"
        raise DataError(f"--split {held.split}: {what}, which is trained on; use --val-split none")


def _given(spec: str) -> bool:
    return bool(spec) and spec.lower().endswith(".pack") and not Path(spec).is_dir()


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
    parser.add_argument(
        "--condition", default="", help="columns that a run of this pack is to be told (--condition there)"
    )
    for name in vars(DEFAULT):
        parser.add_argument(f"--{name}", default="", help="what is used of the data, as of data.scan")
    args = parser.parse_args(argv)
    if args.workers is not None and args.workers < 1:
        parser.error("--workers must be at least 1")
    try:
        if args.source.lower().endswith(".pack") and not Path(args.source).is_dir():
            pack = open_pack(Path(args.source).expanduser(), verify=True)
            say(pack.meta["describe"])
            say(_result(pack, "verified"))
            return 0
        ensure_pack(
            args.source,
            resolution=args.resolution,
            channels=args.channels,
            crop=args.crop,
            split=args.split,
            out=args.out,
            max_bad=args.max_bad,
            workers=args.workers,
            condition=args.condition,
            choices=replace(DEFAULT, **{name: getattr(args, name) for name in vars(DEFAULT)}),
        )
    except DataError as error:
        say(f"error: {error}", sys.stderr)
        return 78
    except KeyboardInterrupt:
        say("interrupted; nothing was left behind", sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
