"""Rulers for phantoms of people: the truth of a slice, and what a picture alone shows of it.

    rulers = Rulers.fit()                     # once, seconds; for pictures of 64 x 64 pixels
    rulers.slice(images)                      # (N,) from uint8 (N, R, R)

A picture is described in the frame of its head, which is an ellipse with the moments of the picture, as fractions of
white matter: coarse brightness (both halves of the head averaged), areas of dark, small dark blobs, the size of the
head. Each attribute is a kernel regression on these features, fitted on drawn phantoms, sharp ones and blurred ones.
Far from these it falls back to the mean: generated pictures are read by reading.py. The true class, lesions and
intensities vary as they do, so nothing is given to a ruler but the picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from data.phantom import _grid, _outside, _paint, _ventricles, phantom_label
from data.phantom_people import AGES, DISEASE, _draw_person, atrophy, head_size, person_slice

TARGETS = ("age", "slice", "head", "ventricles", "lesions")
SEEN = 0.6  # up to this plane ventricles are seen well
WINDOW = (0.62, 0.46)  # half the length and width of the window around the ventricles, in the frame of the head


def person_truth(seed, index, label=None, person=None, grid=128):
    """What the rulers estimate, true: a dict of numbers. age is that of a healthy brain with the same atrophy."""
    who, brain = _draw_person(seed, index, label, person)
    x, y = _grid(grid)
    head = _outside(brain, x, y) < 0
    ventricle = np.clip(0.5 - _paint(brain, _ventricles(brain), grid, 0.03) * (grid / 2), 0, 1)
    loss = atrophy(who.age, phantom_label(seed, index) if label is None else label)
    return {
        "age": AGES[0] + (AGES[1] - AGES[0]) * loss,
        "slice": who.slice,
        "head": 2 * brain.half_length / head_size(who.slice),
        "ventricles": float((ventricle * head).sum() / head.sum()),
        "lesions": who.lesions,
    }


def blurred(images, blur=0.7, noise=4.0):
    """As generated pictures are: blurred by `blur` pixels, with a little noise inside the head. Deterministic."""
    smooth = ndimage.gaussian_filter(np.asarray(images, float), (0, blur, blur))
    grain = np.random.default_rng(0).standard_normal(smooth.shape) * (smooth > 8)
    return np.clip(np.rint(smooth + noise * grain), 0, 255).astype(np.uint8)


@dataclass
class Head:
    """The ellipse with the moments of a head, in pixels, and its picture as a fraction of white matter."""

    image: np.ndarray
    center: tuple[float, float]  # row, column
    half_length: float
    half_width: float
    tilt: float

    def frame(self):
        """(R, R) each: v to the front and u to the right of every pixel, 1 at the end of the ellipse."""
        rows, columns = np.indices(self.image.shape, dtype=float)
        down, right = rows - self.center[0], columns - self.center[1]
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        return -(c * down + s * right) / self.half_length, (c * right - s * down) / self.half_width

    def sample(self, v, u):
        """(len(v), len(u)) brightness at points of the frame, linear between pixels."""
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        down, right = v[:, None] * self.half_length, u[None, :] * self.half_width
        rows, columns = self.center[0] - c * down - s * right, self.center[1] - s * down + c * right
        return ndimage.map_coordinates(self.image, [rows.ravel(), columns.ravel()], order=1).reshape(rows.shape)


def find_head(image):
    """The Head of a uint8 (R, R) picture, or None where there is hardly anything."""
    image = np.asarray(image, float)
    lit = image[image > 12]
    if lit.size < image.size // 64:
        return None
    image = image / np.percentile(lit, 80)
    bright, filled = image > 0.35, np.ones(image.shape, bool)  # between bright pixels of both its row and its column
    for axis in (0, 1):
        filled &= np.maximum.accumulate(bright, axis)
        filled &= np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
    mass = np.where(filled, 1.0, np.clip(2 * image, 0, 1))
    mass /= mass.sum()
    rows, columns = np.indices(image.shape, dtype=float)
    cy, cx = (mass * rows).sum(), (mass * columns).sum()
    vy, vx = (mass * (rows - cy) ** 2).sum(), (mass * (columns - cx) ** 2).sum()
    cov = (mass * (rows - cy) * (columns - cx)).sum()
    tilt = 0.5 * np.arctan2(2 * cov, vy - vx)
    c, s = np.cos(tilt), np.sin(tilt)
    along, across = vy * c * c + vx * s * s + 2 * cov * s * c, vx * c * c + vy * s * s - 2 * cov * s * c
    return Head(image, (cy, cx), 2 * np.sqrt(max(along, 0.25)), 2 * np.sqrt(max(across, 0.25)), tilt)


def _centres(half, number):
    """Centres of `number` equal parts of [-half, half]."""
    return half * ((np.arange(number) + 0.5) * 2 / number - 1)


def _dark(image, white, black):
    """0 where a picture is at least `white` bright, 1 where at most `black`."""
    return np.clip((white - image) / (white - black), 0, 1)


def _window(head):
    """The window around the ventricles: brightness (30, 20), and of its points v (30, 1) and |u| (1, 20)."""
    v, u = _centres(WINDOW[0], 30)[::-1], _centres(WINDOW[1], 20)
    return head.sample(v, u), v[:, None], np.abs(u)[None, :]


def _around_ventricles(v, u):
    """Where lateral ventricles are at any plane; not the midline in front and behind, where the fissure is."""
    horns = (u < 0.30) & (np.abs(v) < 0.50) | (u < 0.42) & (v < -0.08) & (v > -0.50)
    return horns & ((u > 0.05) | (np.abs(v) < 0.20))


def ventricle_area(images):
    """(N,) share of the head's area that is as dark as fluid in the middle of it: pixels alone, nothing fitted.

    A bit less than the truth, and less still of a blurred picture, whose thin ventricles are no longer dark. Needs
    upright, skull-stripped T1-like pictures; 0 for empty ones."""
    shares = []
    for image in images:
        if (head := find_head(image)) is None:
            shares.append(0.0)
            continue
        window, v, u = _window(head)
        dark = _dark(window, 0.75, 0.25) * _around_ventricles(v, u)
        shares.append(dark.mean() * 4 * WINDOW[0] * WINDOW[1] / np.pi)
    return np.array(shares)


def _blobs(head):
    """Seven measures of small dark round spots: where brightness curves upwards in every direction."""
    size = len(head.image) / 64
    gy, gx = np.gradient(ndimage.gaussian_filter(head.image, size))
    (hyy, hyx), hxx = np.gradient(gy), np.gradient(gx, axis=1)
    least = 0.5 * (hyy + hxx) - np.sqrt(0.25 * (hyy - hxx) ** 2 + hyx**2)
    least = np.clip(least * size**2, 0, None)
    v, u = head.frame()
    rings = [(u / a) ** 2 + (v / (a + 0.06)) ** 2 < 1 for a in (0.30, 0.50, 0.65, 0.80)]
    peaks = (ndimage.maximum_filter(least, 3) == least) & (least > 0.02) & rings[2]
    counts = [(least * peaks).sum(), peaks.sum(), (peaks & (least > 0.05)).sum()]
    return [least[ring].sum() for ring in rings] + counts


def _features(image):
    """What all rulers see of one picture: the coarse brightness of its head, then areas, sizes, spots."""
    head = find_head(image)
    if head is None:
        head = Head(np.zeros(image.shape), (len(image) / 2, len(image) / 2), 1.0, 1.0, 0.0)
    whole = head.sample(_centres(1, 24)[::-1], _centres(1, 20))
    whole = 0.5 * (whole + whole[:, ::-1])[:, :10]
    window, v, u = _window(head)
    half = 0.5 * (window + window[:, ::-1])[:, :10]
    coarse = [part.reshape(len(part) // 2, 2, 5, 2).mean(axis=(1, 3)) for part in (whole, half)]
    narrow, middle = (u < 0.30) & (np.abs(v) < 0.48), u < 0.06
    fluid = _dark(window, 0.62, 0.25)
    areas = [(_dark(window, *limits) * part).mean() for limits in ((1, 0.2), (0.62, 0.25), (0.45, 0.2))
             for part in (narrow, _around_ventricles(v, u))]  # fmt: skip
    areas += [(fluid * middle * part).mean() for part in (v > 0.28, v < -0.22, np.abs(v) < 0.25)]
    v, u = head.frame()
    dark = _dark(head.image, 0.62, 0.25)
    areas += [dark[u**2 + v**2 < limit].mean() if (u**2 + v**2 < limit).any() else 0.0 for limit in (0.56, 1.0)]
    size = np.log([head.half_length / len(image), head.half_width / len(image), head.half_width / head.half_length])
    measures = [*size, *areas, *_blobs(head)]
    return np.concatenate([part.ravel() for part in (*coarse, whole[:, 8:].mean(axis=1), np.array(measures))])


def _relevance(features, target):
    """How much of each standardised feature a parabola of the target explains, as a correlation."""
    line = (target - target.mean()) / target.std()
    basis, _ = np.linalg.qr(np.stack([line, line**2 - 1], axis=1))
    return np.sqrt(((basis.T @ features) ** 2).sum(axis=0) / len(target))


@dataclass
class Regression:
    """Kernel ridge regression; features count by how much they have to do with the target."""

    weights: np.ndarray
    points: np.ndarray
    pull: np.ndarray
    mean: float

    @classmethod
    def fit(cls, features, target, ridge=0.05):
        weights = _relevance(features, target) ** 1.5
        weights /= np.linalg.norm(weights)
        kernel = cls(weights, features * weights, np.zeros(0), target.mean())
        gram = kernel._near(features) + ridge * np.eye(len(target))
        kernel.pull = np.linalg.solve(gram, target - target.mean())
        return kernel

    def _near(self, features):
        at = features * self.weights
        squared = (at**2).sum(axis=1)[:, None] + (self.points**2).sum(axis=1) - 2 * at @ self.points.T
        return np.exp(-0.5 * np.maximum(squared, 0))

    def __call__(self, features):
        return self._near(features) @ self.pull + self.mean


class Rulers:
    """Estimates of TARGETS from pictures; see person_truth for what each is."""

    def __init__(self, images, truths):
        """images: uint8 (N, R, R), truths: their person_truth."""
        copies = (images, blurred(images, 0.6), blurred(images, 1.1))
        described = np.stack([_features(image) for version in copies for image in version])
        self.resolution = images.shape[-1]
        self.mean, self.scale = described.mean(axis=0), described.std(axis=0) + 1e-6
        features = self._standard(described)
        true = {name: np.tile([float(truth[name]) for truth in truths], len(copies)) for name in TARGETS}
        self.regressions = {}
        for name in TARGETS:
            # Above the ventricles only sulci show the age: no estimate there, the mean.
            used = true["slice"] < SEEN if name == "age" else np.full(len(features), True)
            self.regressions[name] = Regression.fit(features[used], true[name][used])

    @classmethod
    @functools.cache
    def fit(cls, seed=1_000_003, number=360, resolution=64):
        """Rulers for one resolution, from freely drawn phantoms; made once in a process."""
        images = np.stack([person_slice(seed, index, resolution) for index in range(number)])
        return cls(images, [person_truth(seed, index, grid=64) for index in range(number)])

    def _standard(self, described):
        return np.clip((described - self.mean) / self.scale, -4, 4)

    def measure(self, images):
        """dict of (N,) float arrays by TARGETS."""
        images = np.asarray(images)
        if images.shape[1:] != (self.resolution, self.resolution):
            raise ValueError(f"rulers for {self.resolution} pixels cannot measure pictures of {images.shape[1:]}")
        features = self._standard(np.stack([_features(image) for image in images]))
        return {name: regression(features) for name, regression in self.regressions.items()}

    def age(self, images, labels=None):
        """Years. Without classes, the age of a healthy brain with the atrophy seen: AD looks a third of AGES older."""
        shift = 0.0 if labels is None else DISEASE * (AGES[1] - AGES[0]) * np.asarray(labels, float)
        return self.measure(images)["age"] - shift

    def slice(self, images):
        return self.measure(images)["slice"]

    def head(self, images):
        """Length of the head at the lowest plane, whichever plane is seen, in image units (the picture is 2)."""
        return self.measure(images)["head"]

    def ventricles(self, images):
        return self.measure(images)["ventricles"]

    def lesions(self, images):
        return self.measure(images)["lesions"]
