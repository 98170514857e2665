"""Files that are whole or not there: atomic writes for all rooms. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

# The one list of what is taken for a picture, a volume, an archive and a pack, by its name.
ARRAYS = (".npy", ".npz")  # one picture, or a stack of them
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", *ARRAYS)
SERIES = (".dcm", ".dicom", ".ima")  # one slice each; those of one series are one volume
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".hdr.gz", *SERIES)
PARTNERS = (".img", ".img.gz")  # the voxels that belong to a .hdr; no files of their own
ARCHIVES = (".zip", ".tar")  # read in place: /data/set.zip/train/a.png is a member
PACK = ".pack"

TORN_AGE = 600.0  # a temporary file of another host is a dead writer's when nothing was written to it for so long

_temporary = re.compile(r"\..+\.tmp\.(?P<host>.+)\.(?P<pid>\d+)\.\d+")
_serial = itertools.count()
_writing: set[Path] = set()  # temporary files that this process has open


# --- files that are whole or not there --------------------------------------------------------------------------------
def temporary_for(path: Path) -> Path:
    """A name beside `path` to write under first; remove_torn knows whose it is, and removes it when that writer is
    dead."""
    temporary = path.with_name(f".{path.name}.tmp.{socket.gethostname()}.{os.getpid()}.{next(_serial)}")
    _writing.add(temporary)
    return temporary


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator:
    """A binary file to write to that takes the name `path` only when it is complete and on disk: temporary file, fsync,
    rename, fsync of the folder. A reader, or a crash at any moment, sees the old contents or the new."""
    path = Path(path)
    temporary = temporary_for(path)
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    finally:
        _writing.discard(temporary)
    sync_folder(path.parent)


def atomic_write(path: Path, content: bytes | str) -> None:
    """atomic_file for a whole content, text in UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise
        # Some network file systems refuse fsync on folders; the rename itself is still atomic.
    finally:
        os.close(handle)


def remove_torn(folder: Path) -> list[str]:
    """Remove the temporary files that killed writers left in `folder`; returns their names. Touches no other file."""
    removed = []
    for path in sorted(Path(folder).glob(".*.tmp.*")):
        found = _temporary.fullmatch(path.name)
        if found is None or path in _writing:
            continue
        with contextlib.suppress(OSError):
            pid = int(found["pid"])
            if found["host"] == socket.gethostname():
                dead = pid == os.getpid() or not process_start(pid)  # our own pid: of a namesake in an earlier life
            else:
                dead = time.time() - path.stat().st_mtime > TORN_AGE
            if dead:
                path.unlink()
                removed.append(path.name)
    return removed


def process_start(pid: int) -> str:
    """Start time of a live process in clock ticks since boot; '' where there is none.

    Tells a re-used pid from the old one.
    """
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return "" if state in "ZX" else rest[18]
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return ""
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "alive"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value from a file is a number that can be reckoned with: finite, no truth value, no thousand digits."""
    return type(value) in (int, float) and abs(value) < 1e15  # also false for nan


def sha256_of(file, offset: int = 0) -> str:
    """Hex digest of an open file from `offset` on, or of the file at a path."""
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return sha256_of(opened)
    file.seek(offset)
    return hashlib.file_digest(file, "sha256").hexdigest()
