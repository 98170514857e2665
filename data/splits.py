"""Which slices a split holds: given folders, else a hash of the subjects."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

from data.records import Record
from data.walk import DataError

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validate": "val", "validation": "val",
}  # fmt: skip
SPLIT_CHOICES = ("train", "test", "val", "all")
HOLD_OUT, HOLD_OUT_MIN = 0.1, 10  # fraction of the subjects that is the test split, and how many subjects that needs
SLICE_SPLIT = 0.25  # a given split that would leave less of train without the shared subjects was made by slice


def split_of(folder: str) -> str:
    """'train', 'test' or 'val' for a folder that is named like a split, else ''."""
    return SPLITS.get(folder.lower().removeprefix("keras_png_slices_"), "")


def _pointed_split(spec: str, root: Path, split: str, warnings: list[str]) -> str:
    """The split when --data names one split folder itself."""
    own = split_of(root.name)
    if split not in (own, "train", "all"):
        raise DataError(f"--split {split}, but --data {spec} is the {own} folder itself; point --data at {root.parent}")
    if own != "train":
        warnings.append(
            f"--data is the {own} folder itself: its slices are used; point --data at {root.parent} to train on train"
        )
    return own


def _sibling_splits(parent: Path, own: str) -> list[str]:
    """The other split folders beside the one that --data names; none where the parent folder cannot be listed."""
    try:
        return [e.name for e in parent.iterdir() if e.name != own and split_of(e.name) and e.is_dir()]
    except OSError:
        return []


# --- splits -----------------------------------------------------------------------------------------------------------
def _choose(spec: str, records: list[Record], split: str, kind: str, layout: str, warnings: list[str]):
    """(chosen records, records of the other splits, rule in words). Train and test are mixed for `all` alone."""
    if split == "all":
        given = sorted({r.split for r in records if r.split})
        return records, [], f"everything, {' and '.join(given)} mixed" if len(given) > 1 else "everything"
    if not any(r.split for r in records):
        return _held_out(spec, records, split, kind)
    sides = defaultdict(list)
    for r in records:
        sides[r.split].append(r)
    if split == "test" and "test" not in sides and "val" in sides:
        warnings.append("there is no test folder; the val folder is used as test")
        split = "val"
    if split not in sides:
        raise DataError(
            f"--split {split}: {spec} has no such folder, only {', '.join(sorted(sides))}; choose one of them or "
            "--split all"
        )
    level = f"{kind}-level" if kind != "none" else "slice-level (no subject in the names)"
    train_subjects = {r.subject for r in sides["train"] if r.subject}
    both = train_subjects & {r.subject for s in ("test", "val") for r in sides.get(s, []) if r.subject}
    if not both:
        return sides[split], _except(sides, split), f"the given folders, {level}"
    kept = [r for r in sides["train"] if r.subject not in both]
    noun = f"{kind}s" if len(both) > 1 else kind
    if len(kept) < SLICE_SPLIT * len(sides["train"]) and len({r.subject for r in records}) >= HOLD_OUT_MIN:
        # A split by slice: taking every shared subject out of train would leave next to nothing.
        warnings.append(f"the given split is by slice: {len(both):,} {noun} are on both sides; split anew by {kind}")
        return _held_out(spec, records, "test" if split == "val" else split, kind)
    if split == "train":
        warnings.append(
            f"{len(both):,} {noun} on both sides of the split: left out of train, "
            f"{len(sides['train']) - len(kept):,} slices"
        )
        if not kept:
            raise DataError(
                f"{spec}: every {kind} of train is also in test; give folders that are split by {kind}, or --split all"
            )
    sides["train"] = kept
    return (
        sides[split],
        _except(sides, split),
        f"the given folders, {level}, {len(both):,} shared {noun} only in the other side",
    )


def _except(sides: dict, split: str) -> list[Record]:
    return [r for s, group in sides.items() if s != split for r in group]


def _held_out(spec: str, records: list[Record], split: str, kind: str):
    """Split by a hash of the subject: the tenth of the subjects with the smallest hashes is the test split."""
    keys = sorted(
        {_key(r) for r in records}, key=lambda k: hashlib.blake2b(k.encode(errors="surrogateescape")).digest()
    )
    level = f"by {kind}" if kind != "none" else "slice-level (no subject in the names)"
    if split == "val":
        raise DataError(f"--split val: {spec} has no val folder; use train, test or all")
    if len(keys) < HOLD_OUT_MIN:
        if split == "test":
            raise DataError(
                f"--split test: {spec} has no test folder and only {len(keys)} subjects, too few to hold some out; use "
                "--split train"
            )
        return records, [], f"everything is train ({len(keys)} subjects, too few to hold some out)"
    test = set(keys[: max(1, round(HOLD_OUT * len(keys)))])
    groups = {side: [r for r in records if (_key(r) in test) == (side == "test")] for side in ("train", "test")}
    other = "train" if split == "test" else "test"
    rule = f"hash of the subject, {len(test):,} of {len(keys):,} held out as test, {level}"
    return groups[split], groups[other], rule


def _key(record: Record) -> str:
    return record.subject or record.name
