"""NIfTI volumes to axial slices: canonical orientation, isotropic in plane, 8 bits over the volume's own range."""

import os
from typing import Any

import numpy as np
from PIL import Image

from data.images import MAX_PIXELS, BadFile

MAX_VOXELS = 1 << 28  # 645 cubed: as float32 they take 1 GB
BRAIN_AREA = 0.15  # of the frame: slices that show less brain are left out
LOW, HIGH = 1.0, 99.5  # percentiles of the non-zero voxels that become 0 and 255


def _load(path):
    """nibabel image in RAS+ orientation, its notes, its in-plane spacing (x, y) in mm; voxels are not read yet."""
    try:
        import nibabel  # only data sets of volumes need it
    except ImportError:
        raise BadFile("NIfTI volumes need nibabel: pip install nibabel") from None
    try:
        if os.path.getsize(path) == 0:
            raise BadFile("zero bytes")
        image: Any = nibabel.load(path)
        shape, dtype = image.shape, image.get_data_dtype()
        notes = []
        if len(shape) == 4 and shape[3] == 1:
            image = image.slicer[..., 0]
        elif len(shape) != 3:
            raise BadFile(f"{len(shape)}-D {shape}: a single 3-D volume is needed, extract one first")
        if dtype.fields or dtype.kind == "c":
            raise BadFile(f"voxels of type {dtype} are not grey values")
        if min(shape) < 1 or np.prod(shape, dtype=float) > MAX_VOXELS:
            raise BadFile(f"implausible size {shape}")
        if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
            notes.append("no orientation in the header: voxel axes taken as left, anterior, superior")
        image = nibabel.as_closest_canonical(image)
        spacing = np.asarray(image.header.get_zooms()[:2], float)
    except BadFile:
        raise
    except Exception as error:  # damaged headers raise almost anything
        raise BadFile(f"no readable NIfTI header ({type(error).__name__})") from None
    if not np.isfinite(spacing).all() or spacing.min() <= 0 or spacing.max() / spacing.min() > 20:
        raise BadFile(f"implausible voxel spacing {spacing.tolist()}")
    height, width = _frame(image.shape, spacing)
    if height * width > MAX_PIXELS:  # a few long rows of thin voxels would become a picture of terabytes
        raise BadFile(f"implausible slices of {height}x{width} pixels")
    return image, notes, spacing


def _frame(shape, spacing):
    """(height, width) of the axial slices: the coarser in-plane axis is resampled to the finer one's spacing."""
    width, height = (round(n * s / spacing.min()) for n, s in zip(shape[:2], spacing, strict=True))
    return height, width


def volume_frame(path):
    """(height, width) of the axial slices and their largest number, from the header alone. Raises BadFile."""
    image, _, spacing = _load(path)
    return _frame(image.shape, spacing), image.shape[2]


def read_volume(path):
    """Axial slices of a NIfTI file: list of (axial index, uint8 (H, W)), list of notes. Raises BadFile.

    Shown radiologically: the front of the head up, the patient's right on the left. Index 0 is the lowest slice.
    NaN and infinite voxels count as 0. "Non-zero" is above 1 % of the 99.9th percentile: scaled integers put the
    background slightly off zero.
    """
    image, notes, spacing = _load(path)
    try:
        with np.errstate(all="ignore"):
            voxels = np.asarray(image.dataobj, np.float32)
    except Exception as error:  # damaged data raise almost anything: EOFError, zlib.error, OSError, ValueError
        raise BadFile(f"truncated or damaged volume ({type(error).__name__})") from None
    finite = np.isfinite(voxels)
    if not finite.all():
        notes.append(f"{100 * (1 - finite.mean()):.2g} % of the voxels are not finite, taken as 0")
        voxels = np.where(finite, voxels, np.float32(0))
    tissue = voxels[voxels > 0]
    if tissue.size:
        tissue = tissue[tissue > 0.01 * np.percentile(tissue, 99.9)]
    if tissue.size == 0:
        raise BadFile("no voxel is above zero")
    low, high = np.percentile(tissue, [LOW, HIGH])
    if not high > low:  # a constant volume, such as a mask
        raise BadFile("all non-zero voxels are equal: a mask?")
    height, width = _frame(voxels.shape, spacing)
    slices = []
    for z in range(voxels.shape[2]):
        plane = np.clip((voxels[:, :, z].T[::-1, ::-1] - low) * (255 / (high - low)), 0, 255)
        if (plane > 0.1 * 255).mean() < BRAIN_AREA:
            continue
        if plane.shape != (height, width):
            plane = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        slices.append((z, np.rint(np.clip(plane, 0, 255)).astype(np.uint8)))
    if not slices:
        raise BadFile(f"no axial slice shows brain on {BRAIN_AREA:.0%} of the frame")
    return slices, notes
