"""Bytes of files and of members of .zip and .tar archives, bounded: no pipe, no bomb, no more memory than was granted.

`/data/set.zip/train/a.png` is the member train/a.png of /data/set.zip: archives are read in place, as folders.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import struct
import tarfile
import threading
import zipfile
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple

from data.files import ARCHIVES, open_regular, usable_cores

MAX_MEMBERS = 500_000
MAX_INDEX = 128 << 20  # bytes of the list at the end of a .zip, and of one extended header of a .tar
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
FLIGHT = 384 << 20  # bytes that all decoding threads hold together, about


class BadFile(Exception):
    """This file cannot be used; the message says why in a few words, without the file's name."""


@lru_cache(1)
def give_back_memory() -> None:
    """Large blocks go back to the system when they are freed: glibc would keep, for each thread, what its largest
    picture took."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        mallopt(M_TRIM_THRESHOLD, 4 << 20)  # else small pictures would give back and ask again, each of them


class Budget:
    """Bytes that threads share: `with budget(n)` waits until n of them are free. A thread asks for one piece at a time,
    so none waits for itself."""

    def __init__(self, total: int):
        self.total, self.taken, self._free = total, 0, threading.Condition()

    @contextlib.contextmanager
    def __call__(self, size: int):
        give_back_memory()
        size = min(size, self.total)
        with self._free:
            self._free.wait_for(lambda: self.taken + size <= self.total)
            self.taken += size
        try:
            yield
        finally:
            with self._free:
                self.taken -= size
                self._free.notify_all()


BUDGET = Budget(FLIGHT)


def default_workers() -> int:
    """Threads: Pillow and zlib release the interpreter lock while they decode.

    More than cores, as NFS makes them wait.
    """
    return min(2 * usable_cores(), 16)


# --- files ------------------------------------------------------------------------------------------------------------
def split_member(path) -> tuple[str, str] | None:
    """(archive, member) of a path that leads into an archive, else None."""
    path = os.fspath(path)
    lower = path.lower()
    for suffix in ARCHIVES:
        at = lower.find(suffix + "/")
        while at >= 0:
            end = at + len(suffix)
            if os.path.isfile(path[:end]):
                return path[:end], path[end + 1 :]
            at = lower.find(suffix + "/", end)
    return None


def open_file(path) -> BinaryIO:
    """A seekable binary file: a regular file that is not empty, or a member of an archive. Never blocks on a pipe."""
    inside = split_member(path)
    if inside:
        return _archive(inside[0]).open(inside[1])
    file = _open_outside(path)
    if not os.fstat(file.fileno()).st_size:
        file.close()
        raise BadFile("zero bytes")
    return file


def _open_outside(path) -> Any:
    try:
        return open_regular(path)
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None


def file_size(path) -> int:
    """Bytes of a file or of a member, as its archive says. Raises BadFile."""
    inside = split_member(path)
    if inside:
        return _archive(inside[0]).find(inside[1]).size
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None


def read_bytes(path, most: int) -> bytes:
    """The whole contents of a file or a member, at most `most` bytes. Raises BadFile."""
    inside = split_member(path)
    with _archive(inside[0]).open(inside[1]) if inside else _open_outside(path) as file:
        try:
            size = _archive(inside[0]).find(inside[1]).size if inside else os.fstat(file.fileno()).st_size
            data = file.read(size + 1) if size <= most else b""  # not most + 1: Python makes room at once
        except BadFile:
            raise
        except Exception as error:  # a damaged archive raises almost anything
            raise BadFile(f"cannot be read ({getattr(error, 'strerror', None) or type(error).__name__})") from None
    if size > most or len(data) > most:
        raise BadFile(f"{size >> 20} MB is no slice")
    if not data:
        raise BadFile("zero bytes")
    return data


def siblings(path) -> list[str]:
    """Paths of the files beside `path`, in its folder or in the same folder of its archive, sorted."""
    folder, inside = os.path.dirname(os.fspath(path)), split_member(path)
    if inside:
        parent = os.path.dirname(inside[1])
        names = [m.name for m in members(inside[0]) if os.path.dirname(m.name) == parent]
        return sorted(f"{inside[0]}/{name}" for name in names)
    try:
        with os.scandir(folder or ".") as entries:
            return sorted(e.path for e in entries if e.is_file())
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None


# --- archives ---------------------------------------------------------------------------------------------------------
class Member(NamedTuple):
    """One regular file in an archive."""

    name: str
    size: int
    mtime_ns: int = 0
    offset: int = 0  # of a .tar's: where its bytes begin


def members(path) -> list[Member]:
    """The regular files in an archive, sorted by name; nothing is unpacked. Raises BadFile."""
    return sorted(_archive(os.fspath(path)).members.values())


class _Part(io.RawIOBase):
    """A stretch of an open file as a file of its own; positions are its own, so threads do not meet."""

    def __init__(self, handle: int, start: int, size: int):
        self.handle, self.start, self.size, self.at = handle, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer) -> int:
        data = os.pread(self.handle, max(0, min(len(buffer), self.size - self.at)), self.start + self.at)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Headers:
    """A file that tarfile reads headers from: what claims to be a header of hundreds of megabytes is refused."""

    def __init__(self, file):
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 1 << 20:
            raise BadFile("damaged archive: an impossible header")
        return self.file.read(size)


class _Archive:
    def __init__(self, path: str):
        self.file = open_file(path)
        self.zip = zipfile.ZipFile(self.file) if self._is_zip(path) else None
        self.members: dict[str, Member] = {}
        if self.zip:
            for entry in self.zip.infolist():
                if not entry.is_dir():  # the checksum tells that contents changed, as a time would
                    self._add(Member(entry.filename.lstrip("/"), entry.file_size, entry.CRC))
            return
        with tarfile.TarFile(fileobj=_Headers(self.file), mode="r") as tar:  # type: ignore[arg-type]
            while (info := tar.next()) is not None:
                vars(tar)["members"].clear()  # tarfile would keep them all
                if info.isreg() and not info.issparse():
                    self._add(Member(info.name.removeprefix("./"), info.size, int(info.mtime * 1e9), info.offset_data))

    def _add(self, member: Member) -> None:
        if len(self.members) >= MAX_MEMBERS:
            raise BadFile(f"more than {MAX_MEMBERS:,} files in one archive")
        self.members[member.name] = member

    def _is_zip(self, path: str) -> bool:
        """Whether the name says .zip; a list of members that would fill the memory is refused."""
        if not path.lower().endswith(".zip"):
            return False
        size = self.file.seek(0, 2)
        self.file.seek(max(0, size - (1 << 16) - 22))
        tail = self.file.read()
        at = tail.rfind(b"PK\5\6")
        if at < 0 or len(tail) < at + 22:
            raise BadFile("no readable archive")
        if struct.unpack_from("<I", tail, at + 12)[0] > MAX_INDEX:
            raise BadFile("an archive of too many files: make several")
        return True

    def find(self, name: str) -> Member:
        if name not in self.members:
            raise BadFile("not in its archive")
        return self.members[name]

    def open(self, name: str) -> BinaryIO:
        member = self.find(name)
        if not member.size:
            raise BadFile("zero bytes")
        if self.zip is None:
            return io.BufferedReader(_Part(self.file.fileno(), member.offset, member.size))
        info = self.zip.NameToInfo.get(name) or self.zip.NameToInfo["/" + name]
        if info.flag_bits & 1:
            raise BadFile("encrypted in its archive")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadFile("compressed in an unusual way in its archive: make it again with zip")
        try:
            return self.zip.open(info)  # type: ignore[return-value]
        except Exception as error:
            raise BadFile(f"damaged in its archive ({type(error).__name__})") from None


_lock = threading.Lock()


@lru_cache(maxsize=8)
def _opened(path: str, size: int, mtime_ns: int) -> _Archive:
    try:
        return _Archive(path)
    except BadFile:
        raise
    except Exception as error:  # damaged archives raise almost anything
        raise BadFile(f"no readable archive ({type(error).__name__})") from None


def _archive(path: str) -> _Archive:
    try:
        info = os.stat(path)
    except OSError as error:
        raise BadFile(error.strerror or "cannot be read") from None
    with _lock:
        return _opened(path, info.st_size, info.st_mtime_ns)
