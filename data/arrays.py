"""Arrays of numpy as pictures: .npy and .npz, numbers alone. Pickled objects are never read."""

from __future__ import annotations

import io
import os
import zipfile
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data import reading
from data.reading import BadFile

MAX_BYTES = 256 << 20  # of an array that must be read whole: one in an archive


@dataclass(frozen=True)
class Stack:
    """What the header of an array says: pictures along `axis`, or one picture (axis -1)."""

    shape: tuple[int, ...]  # without axes of length 1
    dtype: np.dtype
    fortran: bool
    offset: int  # of the values
    axis: int
    member: str  # in an .npz

    @property
    def pages(self) -> int:
        """How many pictures it holds."""
        return 1 if self.axis < 0 else self.shape[self.axis]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        if self.axis < 0:
            return self.shape[0], self.shape[1]
        height, width = (n for i, n in enumerate(self.shape) if i != self.axis)
        return height, width

    @property
    def bytes(self) -> int:
        """Of all its values."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


def look(path) -> Stack:
    """The header alone. Raises BadFile."""
    with reading.open_file(path) as file:
        try:
            if not os.fspath(path).lower().endswith(".npz"):
                return _header(file.read(1 << 16), "")
            with zipfile.ZipFile(file) as archive:
                stacks: list[Stack] = []
                others: list[str] = []
                for info in archive.infolist()[:1000]:
                    with archive.open(info) as member:
                        try:
                            stacks.append(_header(member.read(1 << 16), info.filename))
                        except BadFile as error:
                            others.append(str(error))
        except BadFile:
            raise
        except Exception as error:  # damaged headers raise almost anything
            raise BadFile(f"no readable array ({type(error).__name__})") from None
    if len(stacks) != 1:
        names = ", ".join(s.member.removesuffix(".npy") for s in stacks[:5])
        raise BadFile(
            f"several arrays of pictures ({names}): save one per file" if stacks else (others or ["no array"])[0]
        )
    return stacks[0]


def _header(start: bytes, member: str) -> Stack:
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:
        raise BadFile(f"no readable array ({type(error).__name__})") from None
    if dtype.hasobject:
        raise BadFile("holds Python objects, which are never read: save an array of numbers")
    if dtype.kind not in "uif" or dtype.itemsize > 8:
        raise BadFile(f"values of type {dtype} are not grey values")
    kept = tuple(n for n in shape if n != 1)
    axis = _axis(kept, dtype)
    if len(kept) not in (2, 3) or min(kept) < 1 or np.prod(kept, dtype=float) > 1 << 40:
        raise BadFile(f"shape {shape} is neither a picture nor a stack of them")
    return Stack(kept, dtype, fortran, file.tell(), axis, member)


def _axis(shape: tuple[int, ...], dtype: np.dtype) -> int:
    """The axis that pictures lie along: the odd one out of three, else the first."""
    if len(shape) != 3 or (shape[2] in (3, 4) and dtype == np.uint8):
        return -1
    return 2 if shape[0] == shape[1] != shape[2] else 0


def cost(path, stack: Stack) -> int:
    """Bytes that open_stack holds."""
    return stack.bytes if stack.member or reading.split_member(path) else 0


def open_stack(path, stack: Stack) -> np.ndarray:
    """All values as they are, of a plain .npy as a map of the file. Raises BadFile."""
    order: Literal["F", "C"] = "F" if stack.fortran else "C"
    try:
        if not cost(path, stack):
            return np.memmap(path, stack.dtype, "r", stack.offset, stack.shape, order)
        if stack.bytes > MAX_BYTES:
            raise BadFile(f"{stack.bytes >> 20} MB in one archive member: save it as .npy")
        with reading.open_file(path) as file:
            if not stack.member:
                return _values(file, stack).reshape(stack.shape, order=order)
            with zipfile.ZipFile(file) as archive, archive.open(stack.member) as member:
                return _values(member, stack).reshape(stack.shape, order=order)
    except BadFile:
        raise
    except Exception as error:
        raise BadFile(f"truncated or damaged ({type(error).__name__})") from None


def _values(file, stack: Stack) -> np.ndarray:
    file.read(stack.offset)
    return np.frombuffer(file.read(stack.bytes), stack.dtype)


def picture(values: np.ndarray, stack: Stack, page: int) -> np.ndarray:
    """One picture of an open stack, (H, W) or (H, W, 3), in memory of its own and in the machine's byte order."""
    if not 0 <= page < stack.pages:
        raise BadFile(f"it has no page {page}")
    one = values if stack.axis < 0 else values.take(page, stack.axis)
    one = np.array(one[..., :3] if one.ndim == 3 else one)
    return one.astype(one.dtype.newbyteorder("="), copy=False)
