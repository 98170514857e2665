"""Which slices a split holds: given folders, else a hash of the subjects."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from data.records import Record
from data.walk import DataError

SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validate": "val", "validation": "val",
}  # fmt: skip
SPLIT_CHOICES = ("train", "test", "val", "all")
HOLD_OUT, HOLD_OUT_MIN = 0.1, 10  # fraction of the subjects that is the test split, and how many subjects that needs
STRATUM_MIN = 3  # a class of as many people has one of them in the test split
SLICE_SPLIT = 0.25  # a given split that would leave less of train without the shared subjects was made by slice


def split_of(folder: str) -> str:
    """'train', 'test' or 'val' for a folder that is named like a split, else ''."""
    return SPLITS.get(folder.lower().removeprefix("keras_png_slices_"), "")


def pointed_split(spec: str, root: Path, split: str, warnings: list[str]) -> str:
    """The split when --data names one split folder itself."""
    own = split_of(root.name)
    if split not in (own, "train", "all"):
        raise DataError(f"--split {split}, but --data {spec} is the {own} folder itself; point --data at {root.parent}")
    if own != "train":
        warnings.append(
            f"--data is the {own} folder itself: its slices are used; point --data at {root.parent} to train on train"
        )
    return own


def sibling_splits(parent: Path, own: str) -> list[str]:
    """The other split folders beside the one that --data names; none where the parent folder cannot be listed."""
    try:
        return [e.name for e in parent.iterdir() if e.name != own and split_of(e.name) and e.is_dir()]
    except OSError:
        return []


# --- splits -----------------------------------------------------------------------------------------------------------
class Sides(NamedTuple):
    """Which side of the split every record is on."""

    sides: list[str]  # train, test, val; '' left out
    split: str  # the side that is asked for; all: every record that is used
    rule: str  # in words

    def take(self, records: list[Record], others: bool = False) -> list[Record]:
        """The records of the side that is asked for; with `others` those of the other sides."""
        if self.split == "all":
            return [] if others else [r for r in records if r.use]
        return [r for r, side in zip(records, self.sides, strict=True) if side and (side == self.split) != others]


def divide(spec: str, records: list[Record], split: str, kind: str, warnings: list[str]) -> Sides:
    """The given folders, else a hash of the people. Train and test are mixed for `all` alone; nobody has two sides."""
    used = [r for r in records if r.use]
    if split == "all":
        given = sorted({r.split for r in used if r.split})
        rule = f"everything, {' and '.join(given)} mixed" if len(given) > 1 else "everything"
        return Sides([r.split if r.use else "" for r in records], split, rule)
    if not any(r.split for r in used):
        return _held_out(spec, records, split, kind)
    sides: dict[str, list[Record]] = defaultdict(list)
    for r in used:
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
    who = {side: {r.subject for r in group if r.subject} for side, group in sides.items()}
    test, val = who.get("test", set()), who.get("val", set())
    both = who.get("train", set()) & (test | val)
    twice = val & test
    kept = [r for r in sides["train"] if r.subject not in both]
    noun = f"{kind}s" if len(both) > 1 else kind
    if both and len(kept) < SLICE_SPLIT * len(sides["train"]) and len({r.subject for r in used}) >= HOLD_OUT_MIN:
        # A split by slice: taking every shared subject out of train would leave next to nothing.
        warnings.append(f"the given split is by slice: {len(both):,} {noun} are on both sides; split anew by {kind}")
        return _held_out(spec, records, "test" if split == "val" else split, kind)
    if both and split == "train":
        warnings.append(
            f"{len(both):,} {noun} on both sides of the split: left out of train, "
            f"{len(sides['train']) - len(kept):,} slices"
        )
        if not kept:
            raise DataError(
                f"{spec}: every {kind} of train is also in test; give folders that are split by {kind}, or --split all"
            )
    if twice and split == "val":
        warnings.append(f"{len(twice):,} {kind}s of val are also in test: left out of val")
        if twice == val and all(r.subject for r in sides["val"]):
            raise DataError(f"{spec}: every {kind} of val is also in test; use --val-split test, or another val folder")
    rule = f"the given folders, {level}" + (f", {len(both):,} shared {noun} only in the other side" if both else "")
    gone = {"train": both, "val": twice}
    found = ["" if not r.use or (r.subject and r.subject in gone.get(r.split, ())) else r.split for r in records]
    return Sides(found, split, rule)


def _held_out(spec: str, records: list[Record], split: str, kind: str) -> Sides:
    """Split by a hash of the person: of every class the tenth of the people with the smallest hashes is for testing."""
    classes: dict[str, set[int]] = defaultdict(set)
    for r in records:
        if r.use:
            classes[_key(r)].add(r.label)
    level = f"by {kind}" if kind != "none" else "slice-level (no subject in the names)"
    if split == "val":
        raise DataError(f"--split val: {spec} has no val folder; use train, test or all")
    if len(classes) < HOLD_OUT_MIN:
        if split == "test":
            raise DataError(
                f"--split test: {spec} has no test folder and only {len(classes)} subjects, too few to hold some out; "
                "use --split train"
            )
        rule = f"everything is train ({len(classes)} subjects, too few to hold some out)"
        return Sides(["train" if r.use else "" for r in records], split, rule)
    test = _stratified(classes)
    sides = ["" if not r.use else "test" if _key(r) in test else "train" for r in records]
    rule = f"hash of the subject, {len(test):,} of {len(classes):,} held out as test, {level}"
    return Sides(sides, split, rule + (", a tenth of each class" if len(set().union(*classes.values())) > 1 else ""))


def _stratified(classes: dict[str, set[int]]) -> set[str]:
    """Who is held out. People of several classes count for the one that the fewest people have."""
    many = Counter(label for labels in classes.values() for label in labels)
    strata: dict[int, list[str]] = defaultdict(list)
    for who in sorted(classes, key=lambda k: hashlib.blake2b(k.encode(errors="surrogateescape")).digest()):
        strata[min(classes[who], key=lambda label: (many[label], label))].append(who)
    test: set[str] = set()
    for group in strata.values():
        test |= set(group[: max(round(HOLD_OUT * len(group)), len(group) >= STRATUM_MIN)])
    return test or {min(classes, key=lambda k: hashlib.blake2b(k.encode(errors="surrogateescape")).digest())}


def _key(record: Record) -> str:
    return record.subject or record.name
