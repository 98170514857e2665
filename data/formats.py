"""What a file is, from its header alone: for whoever makes the table of what a data set holds.

    look("t1.nii.gz") -> Look(kind="volume", pages=176, height=256, width=256, spacing=1.0)

A picture of several pages is one scan with a record per page (`Record.page`). A volume is one record; `page` chooses
one of the volumes of a 4-D file. A DICOM series is one record too, its path that of its first file (`dicom.series`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from data import images, volumes
from data.files import SERIES, VOLUMES
from data.reading import members  # noqa: F401  the files in an archive


@dataclass(frozen=True)
class Look:
    """A header in a few words."""

    kind: str  # picture | volume | series
    pages: int  # of a picture file; slices of a volume along the axis
    height: int
    width: int
    spacing: float | None = None  # mm per pixel in plane
    modality: str = ""


def is_volume(path) -> bool:
    """Whether a file is cut into slices rather than shown as it is."""
    name = os.fspath(path).lower()
    return name.endswith(VOLUMES) or bool(name and "." not in os.path.basename(name))  # DICOM often has no suffix


def look(path, plane: str = "axial", number: int = -1) -> Look:
    """The header of a picture, a volume, a DICOM series or a member of an archive; bounded, whatever the file. Raises
    BadFile. `number`: which volume of a 4-D file."""
    if is_volume(path):
        volume = volumes.open_volume(path, number)
        (height, width), count, spacing = volume.frame(plane)
        kind = "volume" if os.fspath(path).lower().endswith(tuple(set(VOLUMES) - set(SERIES))) else "series"
        return Look(kind, count, height, width, spacing, volume.modality)
    pages, (height, width) = images.look_picture(path)
    return Look("picture", pages, height, width)


def shown_size(path, plane: str = "axial", spacing: float = 0.0, page: int = -1) -> tuple[int, int]:
    """(height, width) of the slices that a record becomes, from the header. Raises BadFile."""
    if is_volume(path):
        return volumes.volume_frame(path, volumes.Cut(plane=plane, spacing=spacing), page)[0]
    return images.image_size(path)
