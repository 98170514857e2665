"""Trees of files made at random (layout x ids x sessions x splits): nobody on two sides, no class lost, all counted."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.sources import find_source
from data.walk import DataError

# How a data set writes the n-th person.
IDS = {
    "adni": lambda n: f"{n % 90 + 10:03d}_S_{1000 + n}", "bids": lambda n: f"sub-{n:03d}",
    "oasis1": lambda n: f"OAS1_{n:04d}",
    "oasis3": lambda n: f"OAS3{n:04d}", "ixi": lambda n: f"IXI{n:03d}", "tcga": lambda n: f"TCGA-CS-{4000 + n}",
    "p": lambda n: f"P{n:02d}",
    "patient": lambda n: f"patient_{n}", "number": lambda n: f"{n:04d}", "subject": lambda n: f"subject{n:02d}",
    "brats": lambda n: f"BraTS20_Training_{n:03d}",
}  # fmt: skip
# Where a slice or a volume lies: {s} split, {c} class, {p} person, {v} session, {z} slice.
PICTURES = (
    "{s}{c}{p}_ses{v}_{z}.png", "{s}{c}{p}/ses-{v}/anat/{z}.png", "{s}{c}{p}_{v}/slice_{z}.png",
    "{s}{c}{p}/{p}_v{v}_slice_{z}.jpg",
    "{s}{c}fold{v}/{p}_{z}.png", "{c}{s}{p}_ses{v}_z{z}.png", "{s}site{v}/{c}{p}_{z}.png",
)  # fmt: skip
VOLUMES = (
    "{s}{c}{p}_ses{v}_T1w.nii.gz", "{s}{c}{p}/ses-{v}/anat/{p}_ses-{v}_T1w.nii.gz", "{s}{c}{p}/visit{v}/T1.nii",
    "{s}{c}{p}/{p}_t1_v{v}.nii",
)  # fmt: skip
CLASSES = (
    (),
    ("AD", "CN"),
    ("glioma", "pituitary", "notumor"),
    ("foo", "bar"),
    ("0", "1"),
    ("PD", "HC"),
    ("Mild Dementia", "Non Demented"),
)


@st.composite
def trees(draw):
    """(file -> person, its class and split; classes; whether volumes) of a made-up data set."""
    ids, volumes = draw(st.sampled_from(sorted(IDS))), draw(st.booleans())
    shape = draw(st.sampled_from(VOLUMES if volumes else PICTURES))
    classes = (
        draw(st.sampled_from(CLASSES))
        if not (volumes and ids in ("p", "number"))
        else draw(st.sampled_from(CLASSES[1:]))
    )
    sides = draw(st.sampled_from([("",), ("train", "test"), ("Training", "Testing"), ("train", "val", "test")]))
    people, sessions = draw(st.integers(12, 30)), draw(st.integers(1, 3))
    mixed = draw(st.sampled_from([0, 0, 3, people]))  # people whose sessions are spread over the sides
    files = {}
    for n, v in itertools.product(range(people), range(1, sessions + 1)):
        label = classes[n % len(classes)] if classes else ""
        side = sides[(n // 2 + (v if n < mixed else 0)) % len(sides)]
        for z in range(1 if volumes else 3):
            name = shape.format(
                s=f"{side}/" if side else "", c=f"{label}/" if label else "", p=IDS[ids](n), v=v, z=f"{40 + z:03d}"
            )
            files[name] = (n, label, side)
    return files, classes, sides


@given(trees())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_nobody_is_on_two_sides_no_class_is_lost_and_counts_add_up(tmp_path_factory, tree):
    files, _, sides = tree
    root = tmp_path_factory.mktemp("tree")
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    everything = find_source(str(root), "all")
    assert {Path(r.path).relative_to(root).as_posix() for r in everything.records} == set(files)
    known = {"CN": "NC"}
    assert everything.classes == sorted(known.get(c, c) for c in {label for _, label, _ in files.values()} if c)
    for r in everything.records:
        label = files[Path(r.path).relative_to(root).as_posix()][1]
        assert (everything.classes[r.label] if r.label >= 0 else "") == known.get(label, label)
    assert not everything.refusal
    subjects = defaultdict(set)
    for r in everything.records:
        subjects[files[Path(r.path).relative_to(root).as_posix()][0]].add(r.subject)
    assert all(len(s) == 1 and "" not in s for s in subjects.values()), "a person has two names"
    assert len(set.union(*subjects.values())) == len(subjects), "two people have one name"
    held: dict[str, set[int]] = {}
    for side in ("train", "test", "val"):
        try:
            source = find_source(str(root), side)
        except DataError:
            assert side == "val" or len(sides) > 1
            continue
        if side != source.split and side == "test":
            continue
        held[side] = {files[Path(r.path).relative_to(root).as_posix()][0] for r in source.records}
        used = [r for r in source.table if r.use]
        assert len(source.table) == len(files) and all(r.why for r in source.table if not r.use)
        if source.split == side:
            assert len([r for r in used if r.split == side]) == len(source.records)
    assert held
    for a, b in itertools.combinations(held, 2):
        same = (
            a in ("val", "test") and b in ("val", "test") and held[a] == held[b]
        )  # one held-out side, under both names
        assert not held[a] & held[b] or same, f"people in {a} and in {b}"
