"""Procedural axial brain slices: T1-like, skull-stripped, in two classes (NC, AD) of known anatomy.

A slice is a pure function of (seed, index). The brain is drawn as continuous shapes (signed distances to curves), so
the same brain can be rendered at any resolution: sulci are curves that grow inwards from the outline and from the
interhemispheric fissure, grey matter is everything within one cortical thickness of the outline or of a sulcus, and
what is left between the ribbons is white matter. The ventricles are swept along hand-placed spines that move with the
slice level. AD differs from NC as atrophy does: larger ventricles, wider sulci, a thinner cortex. A slice is no
anatomical reference and says nothing about a disease; it is test data that looks and varies like the real thing.

The random draws are the same on every platform; sines and sums may differ in the last bit, so a rare pixel may differ
by one grey level between machines.

Two coordinate systems: image units (the frame is [-1, 1] x [-1, 1], y up, anterior at the top) and brain units (u, v),
in which the outline is roughly the unit circle: u to the image's right in half-widths, v to anterior in half-lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

CLASSES = ("NC", "AD")
NOISE_GRID = 256  # scanner noise is drawn once on this grid, so that every resolution shows the same noise

TURN = 512  # samples of the outline over the full angle

# Independent streams of one (seed, index): more draws in one part never change another.
_LABEL, _SHAPE, _FOLDS, _NOISE = range(4)

# Spine of the right lateral ventricle at slice levels 0, 1/4, 1/2, 3/4 and 1: rows of (u, v, radius) from the tip of
# the frontal horn over the body to the tip of the occipital horn; radius in half-widths, negative where the slice
# misses the ventricle.
_SPINE = np.array(
    [
        [(0.25, 0.53, 0.012), (0.13, 0.45, 0.038), (0.065, 0.33, 0.040), (0.05, 0.22, 0.026), (0.05, 0.12, -0.02),
         (0.10, -0.12, -0.02), (0.20, -0.20, 0.042), (0.30, -0.31, 0.062), (0.34, -0.42, 0.030)],
        [(0.25, 0.50, 0.022), (0.14, 0.41, 0.055), (0.085, 0.28, 0.055), (0.065, 0.15, 0.042), (0.06, 0.03, -0.004),
         (0.08, -0.08, 0.004), (0.17, -0.17, 0.054), (0.28, -0.27, 0.066), (0.35, -0.38, 0.034)],
        [(0.22, 0.43, 0.018), (0.14, 0.33, 0.054), (0.10, 0.21, 0.060), (0.085, 0.10, 0.057), (0.10, 0.00, 0.054),
         (0.14, -0.09, 0.054), (0.20, -0.17, 0.060), (0.27, -0.25, 0.056), (0.33, -0.33, 0.022)],
        [(0.23, 0.36, 0.010), (0.16, 0.26, 0.046), (0.125, 0.15, 0.060), (0.12, 0.05, 0.062), (0.14, -0.03, 0.060),
         (0.17, -0.10, 0.054), (0.21, -0.16, 0.046), (0.26, -0.21, 0.030), (0.29, -0.25, 0.008)],
        [(0.21, 0.27, 0.004), (0.18, 0.19, 0.034), (0.17, 0.11, 0.048), (0.17, 0.04, 0.051), (0.185, -0.02, 0.048),
         (0.205, -0.07, 0.038), (0.22, -0.11, 0.024), (0.24, -0.14, 0.008), (0.25, -0.17, -0.010)],
    ]
)  # fmt: skip


def _stream(seed, index, purpose):
    """A numpy Generator of its own for each (seed, index, purpose): Philox, the same on every platform."""
    if seed < 0 or index < 0:
        raise ValueError(f"phantom seed and index must be >= 0, got seed {seed} and index {index}")
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, purpose]))


def phantom_label(seed, index):
    """Class of slice `index`: 0 (NC) or 1 (AD). Slices 2k and 2k+1 are one of each, in a random order."""
    first = int(_stream(seed, index // 2, _LABEL).integers(2))
    return first ^ (index % 2)


@dataclass
class Brain:
    """Everything drawn for one slice. Lengths are in image units unless the name says otherwise."""

    label: int
    level: float  # 0 = basal ganglia and third ventricle, 1 = top of the lateral ventricles
    half_length: float
    half_width: float
    taper: float  # how much narrower the frontal end is
    rotation: float  # radians
    center: np.ndarray  # (2,)
    sulci: np.ndarray  # angles at which sulci open on the outline
    outline: np.ndarray  # (TURN,) radius of the outline in brain units by angle
    warp: np.ndarray  # (4, 5): amplitude u, amplitude v, frequency u, frequency v, phase of a smooth displacement
    cortex: float  # cortical thickness
    sulcus: float  # half-width of a sulcus
    ventricle: np.ndarray  # (2,) scale of the left and right ventricle's radius
    horns: np.ndarray  # (2, 9, 2) shift of the spine points of the left and right ventricle, brain units
    third: float  # half-width of the third ventricle
    grey: float  # intensities, as a fraction of white matter
    csf: float
    gain: float
    noise: float
    bias: np.ndarray  # (3, 4): amplitude, frequency x, frequency y, phase


def _sulcus_angles(rng):
    """Angles at which sulci open on the outer surface; none at the midline, where the fissure is drawn."""
    n = int(rng.integers(32, 40))
    angle = (np.arange(n) + rng.uniform(-0.28, 0.28, n)) * (2 * math.pi / n) + rng.uniform(0, 2 * math.pi)
    return angle[np.abs(np.cos(angle)) > 0.13]


def _outline_radius(rng, level, sulci):
    """(TURN,) outline radius by angle: a superellipse with random bumps and a notch at every sulcus and the fissure."""
    angle = np.arange(TURN) * (2 * math.pi / TURN)
    power = 2.30 - 0.1 * level + 0.12 * rng.standard_normal()
    radius = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    for order in range(2, 18):
        size = 0.020 / order if order < 8 else 0.0020
        radius += size * rng.standard_normal() * np.cos(order * angle + rng.uniform(0, 2 * math.pi))
    middle = np.concatenate([sulci, [math.pi / 2, -math.pi / 2]])
    depth = np.append(rng.uniform(0.0, 0.035, len(sulci)), rng.uniform(0.03, 0.07, 2))
    width = np.append(rng.uniform(0.030, 0.055, len(sulci)), rng.uniform(0.04, 0.07, 2))
    gap = np.abs(np.mod(angle[:, None] - middle + math.pi, 2 * math.pi) - math.pi)
    return radius + 0.008 - (depth * np.exp(-((gap / width) ** 2))).sum(axis=1)


def _draw_brain(seed, index, label):
    """The slice's parameters. With the label forced, the same brain as the other class would have it."""
    rng = _stream(seed, index, _SHAPE)
    label = phantom_label(seed, index) if label is None else int(label)
    if label not in (0, 1):
        raise ValueError(f"phantom label must be 0 ({CLASSES[0]}) or 1 ({CLASSES[1]}), got {label}")
    atrophy = float(label)
    sulci = _sulcus_angles(rng)
    level = float(rng.uniform(0, 1))
    half_length = rng.uniform(0.72, 0.80) - 0.05 * level
    frequencies = rng.uniform(1.2, 4.5, (4, 2)) * rng.choice([-1, 1], (4, 2))
    warp = np.column_stack([0.011 * rng.standard_normal((4, 2)), frequencies, rng.uniform(0, 2 * math.pi, 4)])
    bias = np.column_stack(
        [rng.uniform(-0.06, 0.06, 3), rng.uniform(-2.2, 2.2, (3, 2)), rng.uniform(0, 2 * math.pi, 3)]
    )
    size = math.exp(0.09 * rng.standard_normal())
    return Brain(
        label=label,
        level=level,
        half_length=half_length,
        half_width=half_length * rng.uniform(0.72, 0.80),
        taper=rng.uniform(0.05, 0.13),
        rotation=math.radians(3.0 * float(np.clip(rng.standard_normal(), -2.5, 2.5))),
        center=rng.uniform(-0.03, 0.03, 2),
        sulci=sulci,
        outline=_outline_radius(rng, level, sulci),
        warp=warp,
        cortex=half_length * (0.041 - 0.004 * atrophy) * math.exp(0.07 * rng.standard_normal()),
        sulcus=half_length * (0.0046 + 0.0046 * atrophy) * math.exp(0.15 * rng.standard_normal()),
        ventricle=(0.80 + 0.72 * atrophy) * size * np.exp(0.06 * rng.standard_normal(2)),
        horns=np.vander(np.linspace(-1, 1, 9), 3) @ (0.012 * rng.standard_normal((2, 3, 2))),
        third=half_length * (0.012 + 0.016 * atrophy) * size,
        grey=rng.uniform(0.64, 0.78),
        csf=rng.uniform(0.14, 0.26),
        gain=rng.uniform(188, 232),
        noise=rng.uniform(0.015, 0.045),
        bias=bias,
    )


def _to_image(brain, uv):
    """(..., 2) brain units -> image units: smooth warp, taper, size, rotation, shift."""
    u, v = uv[..., 0], uv[..., 1]
    warp = brain.warp
    wave = np.sin(u[..., None] * warp[:, 2] + v[..., None] * warp[:, 3] + warp[:, 4])
    u, v = u + wave @ warp[:, 0], v + wave @ warp[:, 1]
    x = u * brain.half_width * (1 - brain.taper * v)
    y = v * brain.half_length
    c, s = math.cos(brain.rotation), math.sin(brain.rotation)
    return np.stack([c * x - s * y + brain.center[0], s * x + c * y + brain.center[1]], axis=-1)


def _outside(brain, x, y):
    """(R, R) signed distance to the outline in image units, negative inside; exact near the outline only."""
    c, s = math.cos(brain.rotation), math.sin(brain.rotation)
    x, y = x[None, :] - brain.center[0], y[:, None] - brain.center[1]
    bx, by = c * x + s * y, c * y - s * x
    v = by / brain.half_length
    u = bx / (brain.half_width * (1 - brain.taper * v))
    turn = np.arctan2(v, u) * (TURN / (2 * math.pi))
    table = np.append(brain.outline, brain.outline[0])
    low = np.floor(turn).astype(np.int64)
    part = turn - low
    low &= TURN - 1
    radius = table[low] * (1 - part) + table[low + 1] * part
    return np.hypot(bx, by) * (1 - radius / np.maximum(np.hypot(u, v), 1e-3))


def _smooth(path, steps=4):
    """(k, d) control points -> (steps * (k - 1) + 1, d) points of the Catmull-Rom curve through them."""
    padded = np.concatenate([2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = (np.arange(steps) / steps)[:, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * (p1 - p2) + p3 - p0) * t**3)
    return np.concatenate([curve.reshape(-1, path.shape[1]), path[-1:]])


def _curve(path, radii):
    """A smooth stroke through control points (k, 2) with radii (k,)."""
    smooth = _smooth(np.column_stack([path, radii]))
    return smooth[:, :2], smooth[:, 2]


def _outline_at(brain, angle):
    """Outline point(s) in brain units at an angle in radians; (..., 2)."""
    position = np.mod(angle, 2 * math.pi) * (TURN / (2 * math.pi))
    radius = np.interp(position, np.arange(TURN + 1), np.append(brain.outline, brain.outline[0]))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _walk(start, heading, length, sway, steps):
    """Curved paths: start (n, 2), heading (n,) radians, length (n,), sway (n, 3): bend, wiggle size, wiggle phase.

    Returns (n, steps + 1, 2) vertices in brain units."""
    t = (np.arange(steps) + 0.5) / steps
    angle = heading[:, None] + sway[:, :1] * t + sway[:, 1:2] * np.sin(7.0 * t + sway[:, 2:])
    step = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * (length / steps)[:, None, None]
    return np.concatenate([start[:, None], start[:, None] + np.cumsum(step, axis=1)], axis=1)


def _sway(rng, n, bend):
    """(n, 3) random bend, wiggle size and wiggle phase for _walk."""
    return np.column_stack([bend * rng.standard_normal(n), rng.uniform(0.1, 0.45, n), rng.uniform(0, 2 * math.pi, n)])


def _lateral_sulci(brain, rng):
    """Strokes (vertices, radii) of the sulci that enter from the outer surface, deep and shallow in turn."""
    angle = brain.sulci
    n = len(angle)
    deep = np.where(np.arange(n) % 2 == 0, rng.uniform(0.24, 0.46, n), rng.uniform(0.10, 0.28, n))
    deep *= 0.72 + 0.28 * np.abs(np.cos(angle))
    start = _outline_at(brain, angle) * 1.02
    # Neighbours lean and bend together, or they would cross.
    lean, bend = (
        sum(0.2 * rng.standard_normal() * np.sin(k * angle + rng.uniform(0, 2 * math.pi)) for k in (2, 3, 5, 7))
        for _ in range(2)
    )
    heading = np.arctan2(-0.85 * np.sin(angle), -np.cos(angle)) + lean + 0.10 * rng.standard_normal(n)
    sway = _sway(rng, n, 0.22)
    sway[:, 0] += 2.0 * bend
    paths = _walk(start, heading, deep, sway, 6)
    # A sulcus gapes where it opens to the surface and closes towards its fundus.
    profile = np.array([3.6, 1.7, 1.1, 0.95, 0.9, 0.9, 0.7])
    width = brain.sulcus * np.exp(0.40 * rng.standard_normal(n))
    strokes = [(path, w * profile) for path, w in zip(paths, width, strict=True)]
    # Many end in a T: one branch to each side, or to one side only.
    for side in (-1, 1):
        chosen = np.flatnonzero((deep > 0.18) & (rng.random(n) < 0.40))
        at = rng.integers(4, 7, len(chosen))
        along = paths[chosen, at] - paths[chosen, at - 1]
        turn = np.arctan2(along[:, 1], along[:, 0]) + side * rng.uniform(0.8, 1.5, len(chosen))
        length = rng.uniform(0.04, 0.11, len(chosen))
        branches = _walk(paths[chosen, at], turn, length, _sway(rng, len(chosen), 0.7), 3)
        strokes += [(b, w * np.array([0.9, 0.9, 0.8, 0.6])) for b, w in zip(branches, width[chosen], strict=True)]
    return strokes + _buried_sulci(brain, rng)


def _buried_sulci(brain, rng):
    """Sulci that the slice cuts away from the surface: short dark curves with a grey rim inside the white matter."""
    n = int(rng.integers(5, 11))
    angle = rng.uniform(0, 2 * math.pi, n)
    angle = angle[np.abs(np.cos(angle)) > 0.25]
    n = len(angle)
    start = _outline_at(brain, angle) * rng.uniform(0.62, 0.86, n)[:, None]
    paths = _walk(start, rng.uniform(0, 2 * math.pi, n), rng.uniform(0.06, 0.2, n), _sway(rng, n, 1.2), 4)
    width = brain.sulcus * rng.uniform(0.2, 1.0, n)
    return [(p, w * np.array([0.5, 1.0, 1.0, 0.9, 0.5])) for p, w in zip(paths, width, strict=True)]


def _midline_sulci(brain, rng, spread=0.03):
    """The interhemispheric fissure, in front of and behind the corpus callosum, and the sulci of its walls."""
    level = brain.level
    front = 0.62 - 0.16 * level + spread * rng.standard_normal()
    back = -0.50 + 0.18 * level + spread * rng.standard_normal()
    strokes = []
    for inner, outer in ((front, 1.06), (back, -1.06)):
        v = np.linspace(outer, inner, 8)
        u = 0.010 * np.sin(4 * v + rng.uniform(0, 2 * math.pi)) + 0.004 * rng.standard_normal(8)
        radii = brain.sulcus * np.array([4.0, 1.9, 1.3, 1.2, 1.1, 1.2, 1.1, 1.3])
        strokes.append((np.stack([u, v], axis=-1), radii))
        for side in (-1, 1):
            n = int(rng.integers(3, 5))
            where = inner + (outer - inner) * (np.arange(n) + rng.uniform(0.1, 0.7, n)) / n
            away, length = np.zeros(n), rng.uniform(0.08, 0.22, n)
            if rng.random() < 0.6:
                # The cingulate (in front) or parieto-occipital (behind) sulcus runs along the wall, one gyrus away
                # from it, and the others start there instead.
                along = inner + (outer - inner) * np.linspace(rng.uniform(-0.15, 0.1), rng.uniform(0.4, 0.75), 6)
                wall = rng.uniform(0.11, 0.16) + 0.018 * rng.standard_normal(6)
                strokes.append(_curve(np.stack([side * wall, along], axis=-1), brain.sulcus * rng.uniform(0.3, 1, 6)))
                away, length = np.where(rng.random(n) < 0.5, side * wall.mean(), 0.0), 0.5 * length
            heading = rng.uniform(-0.6, 0.6, n) + (0.0 if side > 0 else math.pi)
            paths = _walk(np.stack([away, where], axis=-1), heading, length, _sway(rng, n, 0.8), 5)
            width = brain.sulcus * np.exp(0.35 * rng.standard_normal(n))
            strokes += [(p, w * np.array([1.0, 1.0, 1.0, 0.9, 0.8, 0.6])) for p, w in zip(paths, width, strict=True)]
    return strokes


def _sylvian(brain, rng):
    """The lateral (Sylvian) fissure and the sulcus over the insula, on both sides; fades towards the top."""
    strokes = []
    for side in (-1, 1):
        present = 1 - 0.9 * brain.level
        if present < 0.3:
            continue
        rise, slide = 0.06 * rng.standard_normal(2)
        stem = np.array([(1.02, -0.04), (0.88, 0.0), (0.76, 0.03), (0.65, 0.03)]) + 0.014 * rng.standard_normal((4, 2))
        insula = np.array([(0.50, 0.34), (0.57, 0.24), (0.61, 0.12), (0.63, 0.0), (0.61, -0.12), (0.53, -0.22)])
        insula = insula + 0.025 * rng.standard_normal((6, 2)) + [0.3 * rise, slide]
        insula[:, 1] *= 0.55 + 0.45 * present
        stem += [0.0, slide]
        insula_width = np.array([0.5, 1.1, 1.5, 1.6, 1.2, 0.6]) * math.exp(0.2 * rng.standard_normal())
        for path, profile in ((stem, np.array([3.0, 1.6, 1.3, 1.3])), (insula, insula_width)):
            strokes.append(_curve(path * [side, 1], brain.sulcus * profile))
    return strokes


def _ventricle_spines(brain):
    """Spines (9, 3) of the left and the right lateral ventricle: u, v in brain units, radius in image units."""
    level = min(int(brain.level * 4), 3)
    part = brain.level * 4 - level
    for side, scale, shift in zip((-1, 1), brain.ventricle, brain.horns, strict=True):
        spine = _SPINE[level] * (1 - part) + _SPINE[level + 1] * part
        # A larger ventricle grows outwards: the septum between the two stays thin.
        u = side * (spine[:, 0] + shift[:, 0] + spine[:, 2] * (scale - 1))
        yield np.stack([u, spine[:, 1] + shift[:, 1], spine[:, 2] * scale * brain.half_width], axis=-1)


def _ventricles(brain):
    """Strokes of the lateral ventricles and the third ventricle."""
    strokes = [_curve(spine[:, :2], spine[:, 2]) for spine in _ventricle_spines(brain)]
    if brain.level < 0.45:
        fade = 1 - brain.level / 0.45
        third = np.array([(0.0, 0.12), (0.0, 0.0), (0.0, -0.13), (0.0, -0.20)])
        strokes.append(_curve(third, brain.third * (0.25 + 0.75 * fade) * np.array([0.4, 1.0, 1.1, 1.3])))
    return strokes


def _choroid(brain):
    """Strokes of the choroid plexus, a grey strand inside each atrium."""
    shrink = 0.03 * brain.level * brain.half_width
    return [(spine[6:8, :2], 0.35 * spine[6:8, 2] - shrink) for spine in _ventricle_spines(brain)]


def _nuclei(brain, rng):
    """Strokes of the deep grey masses (caudate, putamen with pallidum, thalamus), which fade towards the top."""
    strokes = []
    for side, scale in zip((-1, 1), brain.ventricle, strict=True):
        push = 0.05 * (scale - 1)
        shift = np.array([push, 0.0]) + 0.01 * rng.standard_normal(2)
        caudate = np.array([(0.22, 0.40), (0.21, 0.28), (0.19, 0.14)]) + shift
        putamen = np.array([(0.33, 0.30), (0.41, 0.14), (0.40, -0.04)]) + shift
        thalamus = np.array([(0.14, 0.00), (0.18, -0.10), (0.22, -0.16)]) + shift
        for path, radii in (
            (caudate, np.array([0.055, 0.065, 0.04]) - 0.05 * brain.level),
            (putamen, np.array([0.03, 0.085, 0.025]) - 0.11 * brain.level),
            (thalamus, np.array([0.07, 0.115, 0.08]) - 0.17 * brain.level),
        ):
            strokes.append(_curve(path * [side, 1], radii * brain.half_width))
    return strokes


def _uneven(rng, n):
    """(n,) positive factors around 0.9 that drift along a stroke."""
    draw = rng.uniform(-0.1, 1.9, n + 1)
    return np.maximum(0.5 * (draw[1:] + draw[:-1]), 0.1)


def _paint(brain, strokes, n, reach):
    """(n, n) float32 signed distance to the nearest stroke, exact up to `reach` image units and clamped there.

    strokes: list of (vertices (k + 1, 2) in brain units, radii (k + 1,) in image units). Every segment is evaluated in
    a square window of its own; the windows are merged by minimum, so the order does not matter."""
    points = _to_image(brain, np.concatenate([p for p, _ in strokes]))
    radii = np.concatenate([r for _, r in strokes])
    inner = np.ones(len(points) - 1, bool)
    inner[np.cumsum([len(r) for _, r in strokes])[:-1] - 1] = False  # no segment from one stroke's end to the next
    inner &= np.maximum(radii[:-1], radii[1:]) > 0
    if not inner.any():
        return np.full((n, n), reach, np.float32)
    a, step = points[:-1][inner], np.diff(points, axis=0)[inner]
    ra, grow = radii[:-1][inner], np.diff(radii)[inner]
    half = np.abs(step).max() / 2 + max(float(radii.max()), 0.0) + reach
    width = math.ceil(half * n) + 1  # window side in pixels; a pixel is 2 / n
    pad = width
    middle = a + step / 2
    left = np.floor((middle[:, 0] + 1) * (n / 2) - width / 2).astype(np.int64)
    top = np.floor((1 - middle[:, 1]) * (n / 2) - width / 2).astype(np.int64)
    keep = (left > -pad) & (left < n) & (top > -pad) & (top < n)
    a, step, ra, grow, left, top = a[keep], step[keep], ra[keep], grow[keep], left[keep], top[keep]
    columns, rows = left[:, None] + np.arange(width), top[:, None] + np.arange(width)
    qx = ((columns + 0.5) * (2 / n) - 1 - a[:, :1]).astype(np.float32)
    qy = (1 - (rows + 0.5) * (2 / n) - a[:, 1:]).astype(np.float32)
    dx, dy = step[:, :1].astype(np.float32), step[:, 1:].astype(np.float32)
    square = np.maximum(dx * dx + dy * dy, 1e-9)
    t = np.clip((qy * (dy / square))[:, :, None] + (qx * (dx / square))[:, None, :], 0, 1)
    ex, ey = qx[:, None, :] - dx[:, :, None] * t, qy[:, :, None] - dy[:, :, None] * t
    distance = np.sqrt(ex * ex + ey * ey)
    distance -= ra.astype(np.float32)[:, None, None] + grow.astype(np.float32)[:, None, None] * t
    side = n + 2 * pad
    field = np.full(side * side, reach, np.float32)
    where = (rows + pad)[:, :, None] * side + (columns + pad)[:, None, :]
    np.minimum.at(field, where.ravel(), distance.ravel())
    return field.reshape(side, side)[pad : pad + n, pad : pad + n]


def _grid(n):
    """Pixel centres of an n x n frame: x ascending, y descending (row 0 is the top)."""
    x = (np.arange(n) + 0.5) * (2.0 / n) - 1
    return x, -x


def _waves(x, y, waves):
    """(R, R) sum of amplitude * sin(fx x + fy y + phase) over rows of `waves`, by separable products."""
    amplitude, fx, fy, phase = waves.T
    ax, by = np.outer(x, fx) + phase, np.outer(y, fy)
    return ((np.cos(by) * amplitude) @ np.sin(ax).T + (np.sin(by) * amplitude) @ np.cos(ax).T).astype(np.float32)


def _cover(distance, softness):
    """Coverage in [0, 1] of a shape from its signed distance, falling over `softness` image units."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _resample(image, n):
    """(H, H) -> (n, n) by exact area averages, any ratio."""
    for _ in range(2):
        total = np.concatenate([np.zeros((1, image.shape[1])), np.cumsum(image, axis=0, dtype=np.float64)])
        edge = np.arange(n + 1) * (len(image) / n)
        low = np.minimum(edge.astype(np.int64), len(image) - 1)
        part = (edge - low)[:, None]
        total = total[low] * (1 - part) + total[low + 1] * part
        image = np.diff(total, axis=0).T * (n / len(image))
    return image


def _noise_field(seed, index, n):
    """(n, n) scanner noise, unit variance on NOISE_GRID, slightly smooth as MR noise is after interpolation."""
    noise = _stream(seed, index, _NOISE).standard_normal((NOISE_GRID, NOISE_GRID), dtype=np.float32)
    noise = noise + 0.6 * (np.roll(noise, 1, 0) + np.roll(noise, 1, 1))
    noise *= 1 / math.sqrt(1 + 2 * 0.36)
    if NOISE_GRID % n == 0:
        return noise.reshape(n, NOISE_GRID // n, n, NOISE_GRID // n).mean(axis=(1, 3))
    return _resample(noise, n).astype(np.float32)


def _folds(brain, rng):
    """Strokes of all the sulci of a slice."""
    return _lateral_sulci(brain, rng) + _midline_sulci(brain, rng) + _sylvian(brain, rng)


def _render(brain, seed, index, n, folds=_folds, spots=()):
    """(n, n) float32 intensities of the slice in [0, 255] on an n x n grid.

    folds: draws the sulci; spots: strokes that are darker than grey matter."""
    x, y = _grid(n)
    rng = _stream(seed, index, _FOLDS)
    pixel = 2.0 / n
    soft = max(pixel, 0.011)
    reach = 1.3 * brain.cortex + 0.015
    sulci = folds(brain, rng)
    # Sulci open and close along their way: where the walls touch, only the grey ribbon shows.
    sulci = [(points, radii * _uneven(rng, len(radii))) for points, radii in sulci]
    nuclei = _nuclei(brain, rng)
    texture = np.column_stack(
        [rng.uniform(0.0, 0.012, 8), rng.uniform(-16, 16, (8, 2)), rng.uniform(0, 2 * math.pi, 8)]
    )
    thickness = np.column_stack(
        [rng.uniform(0.0, 0.10, 6), rng.uniform(-14, 14, (6, 2)), rng.uniform(0, 2 * math.pi, 6)]
    )
    outside = _outside(brain, x, y).astype(np.float32)
    gaps = _paint(brain, sulci, n, reach)
    horns = _paint(brain, _ventricles(brain), n, 4 * soft)
    deep = _paint(brain, nuclei, n, 0.05)

    core = np.outer(np.exp(-((y / 0.4) ** 2)), np.exp(-((x / 0.3) ** 2))).astype(np.float32)
    cortex = brain.cortex * (1 + _waves(x, y, thickness))
    ribbon = _cover(np.minimum(gaps, -0.8 * outside) - cortex, max(pixel, 0.030))
    tissue = 1 + (brain.grey - 1) * np.maximum(ribbon, 0.62 * _cover(deep, 0.04))
    tissue += _waves(x, y, texture) - 0.05 * core
    if spots:
        tissue += (0.62 * brain.grey - tissue) * _cover(_paint(brain, spots, n, 0.03), 1.5 * soft)
    tissue += (brain.csf + 0.02 - tissue) * _cover(gaps, 1.5 * soft)
    tissue += (brain.csf - tissue) * _cover(horns, 1.3 * soft)
    plexus = _paint(brain, _choroid(brain), n, 0.03)
    tissue += (0.55 * brain.grey - tissue) * (0.7 * _cover(plexus, 0.02)) * _cover(horns, soft)
    tissue *= 1 + _waves(x, y, brain.bias)
    tissue += brain.noise * _noise_field(seed, index, n)
    return np.clip(brain.gain * tissue, 1, 255) * _cover(outside, soft)


def _picture(brain, seed, index, resolution, **parts):
    """uint8 (resolution, resolution) of a drawn brain, from a finer grid where pixels are large."""
    if resolution < 8:
        raise ValueError(f"phantom resolution must be at least 8 pixels, got {resolution}")
    factor = 4 if resolution <= 32 else 2 if resolution <= 128 else 1
    image = _render(brain, seed, index, resolution * factor, **parts)
    image = image.reshape(resolution, factor, resolution, factor).mean(axis=(1, 3))
    return np.rint(image).astype(np.uint8)


def phantom_slice(seed, index, resolution, label=None):
    """Slice `index` of phantom set `seed`: uint8 (resolution, resolution), anterior at the top, background exactly 0.

    label 0 or 1 forces the class (the same brain, healthy or atrophied); None takes phantom_label(seed, index)."""
    return _picture(_draw_brain(seed, index, label), seed, index, resolution)
