"""One picture as a file: 8-bit PNG, 16-bit PNG, NIfTI. Each is written whole or not at all, and whole ones are told
from damaged ones, so that what was interrupted goes on."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.files import SMALL, atomic_write, check_regular, say
from data.volumes import PLANES
from jobs.config.specs import ConfigError
from jobs.predict.trained import Trained
from jobs.view.grids import save_png
from jobs.view.pictures import as_picture, is_complete, read_picture

WIDE = ("I;16", "I;16B", "I")  # what Pillow calls a PNG of 16 bits of grey, by its version
NIFTI_HEADER = 352
ASSUMED = "axial"  # where nobody says in which plane slices were cut


class Form(NamedTuple):
    """How pictures are written. Images are (C, H, W): uint8, or float32 in 0..1 where `floats`."""

    suffix: str
    floats: bool
    write: Callable[[Path, Trained, np.ndarray, dict[str, str]], None]  # the last says how to make it again
    complete: Callable[[Path, Trained], bool]
    read: Callable[[Path], np.ndarray]  # uint8 (C, H, W), to show


# --- PNG --------------------------------------------------------------------------------------------------------------
def write_png(path: Path, model: Trained, image: np.ndarray, about: dict[str, str]) -> None:
    """8 bits a channel."""
    save_png(path, as_picture(image), about)


def write_png16(path: Path, model: Trained, image: np.ndarray, about: dict[str, str]) -> None:
    """16 bits of grey."""
    save_png(path, Image.fromarray(np.rint(image[0] * 65535).astype(np.uint16)), about)


def read_png16(path: Path) -> np.ndarray:
    """The upper 8 bits, rounded."""
    with Image.open(path, formats=("PNG",)) as picture:
        return np.rint(np.asarray(picture).astype(np.float64) / 257).astype(np.uint8)[None]


# --- NIfTI ------------------------------------------------------------------------------------------------------------
def affine_of(model: Trained) -> np.ndarray:
    """(4, 4): column, row and slice to mm in RAS+, the middle of the picture at 0. As in data/volumes.py a picture has
    the patient's right (of a sagittal one the front) on its left, and the front (else the top) up."""
    mm, across = model.spacing or 1.0, PLANES[model.plane or ASSUMED]
    columns, rows = (axis for axis in range(3) if axis != across)
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[columns, 0], affine[rows, 1], affine[across, 2] = -mm, -mm, mm
    height, width = model.size
    affine[:3, 3] = -affine[:3, :3] @ [(width - 1) / 2, (height - 1) / 2, 0]
    return affine


def write_nifti(path: Path, model: Trained, image: np.ndarray, about: dict[str, str]) -> None:
    """float32 (W, H, 1), of colour (W, H, 1, 3), gzipped."""
    import nibabel

    voxels = image.transpose(2, 1, 0)  # (W, H, C)
    picture = nibabel.Nifti1Image(voxels if len(image) == 1 else voxels[:, :, None], affine_of(model))
    picture.header.set_xyzt_units("mm")
    picture.header["cal_max"] = 1  # what a viewer shows as white
    picture.header["descrip"] = f"picture {about['index']} of seed {about['seed']}, {about['weights_sha256'][:12]}"
    atomic_write(path, gzip.compress(picture.to_bytes(), mtime=0))


def is_complete_nifti(path: Path, model: Trained) -> bool:
    """Whether this is a whole file of this size, a file and no link; gzip's checksum is verified."""
    height, width = model.size
    expected = NIFTI_HEADER + 4 * height * width * model.channels
    try:
        check_regular(path.lstat(), path, expected + SMALL)
        with gzip.open(path) as file:
            return len(file.read(expected + 1)) == expected
    except (OSError, EOFError, ValueError, zlib.error):
        return False


def read_nifti(path: Path) -> np.ndarray:
    """Of a file that was found whole."""
    import nibabel

    voxels = np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes())).dataobj)
    return np.rint(voxels.reshape(*voxels.shape[:2], -1).transpose(2, 1, 0).clip(0, 1) * 255).astype(np.uint8)


FORMS = {
    "png": Form(".png", False, write_png, lambda path, m: is_complete(path, m.size, m.channels), read_picture),
    "png16": Form(".png", True, write_png16, lambda path, m: is_complete(path, m.size, modes=WIDE), read_png16),
    "nifti": Form(".nii.gz", True, write_nifti, is_complete_nifti, read_nifti),
}
FORMS["npz"] = FORMS["png"]  # and one file of all


def form_of(name: str, model: Trained) -> Form:
    """The form of --format. ConfigError for what this model, or this machine, has not."""
    if name == "png16" and model.channels != 1:
        raise ConfigError("--format png16: of grey slices alone, and these are in colour; use --format nifti")
    if name == "nifti":
        try:
            import nibabel  # noqa: F401
        except ImportError:
            raise ConfigError("--format nifti needs nibabel: pip install nibabel") from None
        if not model.plane:
            say(f"{model.path} does not say in which plane its slices were cut: they are written as {ASSUMED} ones")
    return FORMS[name]
