"""Phantoms measured: the true areas of their anatomy, and the ventricle as a picture shows it."""

from __future__ import annotations

import math

import numpy as np

from data.phantom import _draw_brain, _grid, _outside, _paint, _ventricles

ANATOMY_GRID = 256  # the grid on which phantom_anatomy counts areas


def phantom_anatomy(seed, index, label=None):
    """True anatomy of a slice, a dict of plain numbers; areas are counted on a fixed ANATOMY_GRID.

    label, level (0-1), ventricle_fraction and head_fraction (of the head's and the frame's area), sulcus_width,
    cortex_thickness (fractions of the brain's length), rotation_degrees."""
    brain = _draw_brain(seed, index, label)
    x, y = _grid(ANATOMY_GRID)
    head = _outside(brain, x, y) < 0
    ventricle = _paint(brain, _ventricles(brain), ANATOMY_GRID, 0.02) < 0
    return {
        "label": brain.label,
        "level": brain.level,
        "ventricle_fraction": float((ventricle & head).sum() / head.sum()),
        "head_fraction": float(head.mean()),
        "sulcus_width": float(brain.sulcus / brain.half_length),
        "cortex_thickness": float(brain.cortex / (2 * brain.half_length)),
        "rotation_degrees": math.degrees(brain.rotation),
    }


def measure_ventricle(image):
    """Image-only estimate of the ventricles' share of the head's area: a float from a uint8 (R, R) slice.

    Counts how dark the pixels of the central ellipse are between white-matter level (0) and CSF level (1); partly
    filled pixels count partly. Needs an upright, centred, skull-stripped T1-like slice; 0.0 for an empty one."""
    image = np.asarray(image, np.float64)
    lit = image[image > 12]
    if lit.size < 16:
        return 0.0
    white = np.percentile(lit, 75)
    bright = image > 0.35 * white
    filled = np.ones_like(bright)  # between the first and the last bright pixel of both its row and its column
    for axis in (0, 1):
        filled &= np.maximum.accumulate(bright, axis)
        filled &= np.flip(np.maximum.accumulate(np.flip(bright, axis), axis), axis)
    area = filled.sum()
    rows, columns = np.nonzero(filled)
    if area < 16:
        return 0.0
    (cy, cx), (sy, sx) = (rows.mean(), columns.mean()), (2 * rows.std(), 2 * columns.std())
    v = (np.arange(image.shape[0])[:, None] - cy) / max(sy, 1)
    u = (np.arange(image.shape[1])[None, :] - cx) / max(sx, 1)
    central = (u / 0.48) ** 2 + (v / 0.58) ** 2 < 1
    dark = np.clip((0.62 * white - image) / (0.37 * white), 0, 1)
    return float((dark * central).sum() / area)
