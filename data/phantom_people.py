"""Phantoms of people: slices whose age, sex, plane and lesions are known and asked for.

    person = phantom_person(seed, index)            # {"age": "73.4", "sex": "F", "slice": "0.412", "lesions": "7"}
    image = person_slice(seed, index, 64)           # of that person
    older = person_slice(seed, index, 64, person={"age": "88"})  # the same brain, older

A slice is a pure function of (seed, index) and of what is forced. What each attribute does:

* age: atrophy. Ventricles and sulci widen and the cortex thins; the ventricles' share of the head grows evenly with
  the years, and AD adds as much as a third of the range of ages does.
* sex: the size of the head, all of it. Shares of the head stay.
* slice: the plane, from the basal ganglia (0) to near the vertex (1). On the way up the deep grey matter and the third
  ventricle go first, then the lateral fissure, then the lateral ventricles; the fissure of the midline grows from both
  ends until it is one, and the outline gets smaller.
* lesions: that many small dark spots in the white matter around the ventricles.

People differ in the size of their ventricles by much less than age changes it, so that age can be read off a slice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from data.phantom import _draw_brain, _lateral_sulci, _midline_sulci, _picture, _stream, _sylvian, phantom_label

COLUMNS = ("age", "sex", "slice", "lesions")
AGES = (55.0, 90.0)
MOST_LESIONS = 20
HEAD = {"F": 0.725, "M": 0.790}  # half the length of an average head at the lowest plane, image units
DISEASE = 1 / 3  # what AD adds to the atrophy of age, as a fraction of what AGES span

# Scale of the ventricles by plane. At 72 they have 4.8 % of the head at the lowest plane and 3.6 % under their top,
# where they end: a plane must not pass for an age.
_GAIN = (
    [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.55, 0.6, 0.63, 0.66, 0.68],
    [1.23, 0.97, 0.82, 0.78, 0.91, 1.18, 1.40, 1.45, 1.2, 0.7, 0.0],
)

# Independent streams beside those of data.phantom.
_SEX, _PERSON, _VARIATION, _LESIONS = range(4, 8)


@dataclass(frozen=True)
class Person:
    """What a row of the table says of one slice."""

    age: float
    sex: str
    slice: float
    lesions: int

    def __post_init__(self):
        if not 30 <= self.age <= 110:
            raise ValueError(f"phantom age must be 30 to 110 years, got {self.age}")
        if self.sex not in HEAD:
            raise ValueError(f"phantom sex must be F or M, got {self.sex!r}")
        if not 0 <= self.slice <= 1:
            raise ValueError(f"phantom slice must be 0 (lowest plane) to 1 (vertex), got {self.slice}")
        if not 0 <= self.lesions <= MOST_LESIONS:
            raise ValueError(f"phantom lesions must be 0 to {MOST_LESIONS}, got {self.lesions}")


def phantom_person(seed, index):
    """The person of slice `index`: a dict of COLUMNS, cells as a table holds them.

    Slices 2k and 2k+1 are of one woman and one man, in a random order; the rest is independent of sex and class."""
    woman_first = bool(_stream(seed, index // 2, _SEX).integers(2))
    rng = _stream(seed, index, _PERSON)
    part, plane, burden = rng.uniform(0, 1, 3)
    age = AGES[0] + (AGES[1] - AGES[0]) * part
    # The middle person has 4 of 20 at 55 and 11 at 90.
    lesions = round(MOST_LESIONS * burden ** (2.2 - 1.4 * part))
    sex = "FM"[(index % 2) ^ (not woman_first)]
    return {"age": f"{age:.1f}", "sex": sex, "slice": f"{plane:.3f}", "lesions": str(lesions)}


def _parsed(cells):
    """Person of a dict of cells (or numbers)."""
    try:
        numbers = {name: float(cells[name]) for name in ("age", "slice", "lesions")}
    except ValueError as error:
        raise ValueError(f"a phantom person's age, slice and lesions are numbers: {error}") from None
    return Person(numbers["age"], str(cells["sex"]), numbers["slice"], round(numbers["lesions"]))


def atrophy(age, label):
    """0 for a healthy brain of 55, 1 for a healthy one of 90."""
    return (age - AGES[0]) / (AGES[1] - AGES[0]) + DISEASE * label


def head_size(plane):
    """Length of the head's outline at a plane, as a fraction of that at the lowest."""
    return 1 - 0.35 * plane**2.2


def _draw_person(seed, index, label, person):
    """The slice's Brain and Person. Whatever is forced, all else is drawn as without it."""
    cells = phantom_person(seed, index)
    if unknown := set(person or {}) - set(COLUMNS):
        raise ValueError(f"phantoms have no {', '.join(sorted(unknown))}; a person is {', '.join(COLUMNS)}")
    who = _parsed(cells | (person or {}))
    label = phantom_label(seed, index) if label is None else label
    brain = _draw_brain(seed, index, label)
    rng = _stream(seed, index, _VARIATION)
    loss = max(atrophy(who.age, label), -0.5)
    head = HEAD[who.sex] * math.exp(0.018 * float(np.clip(rng.standard_normal(), -2.5, 2.5)))
    half_length = head * head_size(who.slice)
    # Measured: the share of the ventricles is as their scale.
    size = (0.5 + loss) * float(np.interp(who.slice, *_GAIN)) * math.exp(0.03 * rng.standard_normal())
    return who, replace(
        brain,
        level=1.65 * who.slice,
        half_length=half_length,
        half_width=half_length * (0.74 + 0.06 * who.slice + rng.uniform(-0.012, 0.012)),
        taper=0.125 - 0.07 * who.slice + rng.uniform(-0.012, 0.012),
        cortex=head * (0.042 - 0.004 * loss) * math.exp(0.05 * rng.standard_normal()),
        sulcus=head * (0.0040 + 0.0040 * loss) * math.exp(0.10 * rng.standard_normal()),
        ventricle=size * np.exp(0.03 * rng.standard_normal(2)),
        horns=0.6 * brain.horns,
        third=head * (0.010 + 0.014 * loss) * math.exp(0.05 * rng.standard_normal()),
    )


def _inwards(points, factor):
    """Points in brain units, with their distance from the outline (roughly) times `factor`."""
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    return points * (1 - factor * (1 - radius)) / radius


def _folds_of(who):
    """The function that draws the sulci of a plane: those of the midline meet near the vertex, the lateral fissure ends
    below the top of the ventricles."""

    def folds(brain, rng):
        lateral = [(_inwards(points, 0.85 + 0.4 * who.slice), radii) for points, radii in _lateral_sulci(brain, rng)]
        midline = _midline_sulci(replace(brain, level=1.8 * who.slice + 1.5 * who.slice**2), rng, spread=0.012)
        fissure = _sylvian(replace(brain, level=min(brain.level, 0.7)), rng)
        leave = 0.75 * max(brain.level - 0.3, 0.0)  # outwards, until nothing is left inside the head
        fissure = [(points + np.sign(points[:, :1]) * [leave, 0.0], radii) for points, radii in fissure]
        return lateral + midline + fissure

    return folds


def _lesion_spots(brain, who, seed, index):
    """Strokes, each a dot, in the white matter around the ventricles. The first k are the same for any number."""
    rng = _stream(seed, index, _LESIONS)
    slot = rng.permutation(MOST_LESIONS)
    angle = (slot // 2 + rng.uniform(0.0, 1.0, MOST_LESIONS)) / (MOST_LESIONS / 2)  # from behind to the front
    angle = 0.84 * math.pi * (angle - 0.5)
    outwards = rng.uniform(0, 1, MOST_LESIONS)
    size = rng.uniform(0.024, 0.034, MOST_LESIONS) * HEAD[who.sex] / HEAD["F"]
    grown = 0.06 * (float(brain.ventricle.mean()) - 1)
    u = np.where(slot % 2, 1, -1) * ((0.33 + 0.18 * outwards) * np.cos(angle) ** 0.4 + 0.04 + grown)
    v = (0.44 + 0.20 * outwards + grown) * np.sin(angle) + 0.02
    spots = [(np.array([(a, b), (a + 0.004, b)]), np.array([r, r])) for a, b, r in zip(u, v, size, strict=True)]
    return spots[: who.lesions]


def person_slice(seed, index, resolution, label=None, person=None):
    """Slice `index` of the people of phantom set `seed`: uint8 (resolution, resolution), as phantom_slice draws it.

    label 0 or 1 forces the class, `person` (a dict with some of COLUMNS) attributes; all else stays the same brain."""
    who, brain = _draw_person(seed, index, label, person)
    spots = _lesion_spots(brain, who, seed, index)
    return _picture(brain, seed, index, resolution, folds=_folds_of(who), spots=spots)
