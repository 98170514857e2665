"""The directories of a TIFF file, walked before Pillow opens it: its pages, and what would fill the memory."""

from __future__ import annotations

import struct

from data.reading import BadFile

SUBFILE, TILE_WIDTH, TILE_LENGTH = 254, 322, 323
REDUCED, MASK = 1, 4  # bits of SUBFILE: a thumbnail, a mask
MAX_PAGES = 4096
MAX_VALUES = 1 << 18  # of one tag that Pillow makes Python numbers of: strips and tiles, mostly


def tiff_pages(file, most_pixels: int) -> list[int]:
    """Numbers of the directories that are pictures, neither thumbnails nor masks; the file is rewound. Raises BadFile.

    `most_pixels`: of one tile, which libtiff makes room for.
    """
    try:
        file.seek(0)
        start = file.read(16)
        order = {b"II": "<", b"MM": ">"}[start[:2]]
        big = struct.unpack(order + "H", start[2:4])[0] == 43
        at = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])[0]
        pages: list[int] = []
        seen, number = set(), 0
        while at:
            if at in seen:
                raise BadFile("damaged TIFF: its pages lead in a circle")
            if number >= MAX_PAGES:
                raise BadFile(f"more than {MAX_PAGES:,} pages")
            seen.add(at)
            tags, at = _directory(file, at, order, big, first=not pages)
            if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > most_pixels:
                raise BadFile("decompression bomb: huge tiles")
            if not tags.get(SUBFILE, 0) & (REDUCED | MASK):
                pages.append(number)
            number += 1
    except (KeyError, struct.error, OSError, ValueError, OverflowError):
        raise BadFile("damaged header") from None
    finally:
        file.seek(0)
    return pages or [0]


def _directory(file, at: int, order: str, big: bool, first: bool) -> tuple[dict[int, int], int]:
    """(whole numbers of the tags that count, place of the next directory). A damaged one after the first is the end."""
    file.seek(at)
    entry, width = struct.Struct(order + ("HHQ8s" if big else "HHI4s")), 8 if big else 2
    head = file.read(width)
    if len(head) < width and not first:
        return {SUBFILE: REDUCED}, 0
    count = struct.unpack(order + ("Q" if big else "H"), head)[0]
    if count > 1 << 12:
        raise BadFile("damaged header")
    raw, tags = file.read(count * entry.size), {}
    for i in range(min(count, len(raw) // entry.size)):
        tag, kind, values, data = entry.unpack_from(raw, i * entry.size)
        if kind not in (1, 2, 7) and values > MAX_VALUES:
            raise BadFile(f"decompression bomb: {values:,} values in one tag")
        if tag in (SUBFILE, TILE_WIDTH, TILE_LENGTH) and kind in (3, 4):
            tags[tag] = struct.unpack_from(order + ("H" if kind == 3 else "I"), data)[0]
    tail = file.read(8 if big else 4)
    if len(raw) < count * entry.size or len(tail) < (8 if big else 4):
        return tags, 0
    return tags, struct.unpack(order + ("Q" if big else "I"), tail)[0]
