"""Files for all rooms: written whole or not at all, read within bounds; text of others made harmless. Standard library
only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeGuard

# The one list of what is taken for a picture, a volume, an archive and a pack, by its name.
ARRAYS = (".npy", ".npz")  # one picture, or a stack of them
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", *ARRAYS)
SERIES = (".dcm", ".dicom", ".ima")  # one slice each; those of one series are one volume
VOLUMES = (".nii", ".nii.gz", ".mgz", ".mgh", ".hdr", ".hdr.gz", *SERIES)
PARTNERS = (".img", ".img.gz")  # the voxels that belong to a .hdr; no files of their own
ARCHIVES = (".zip", ".tar")  # read in place: /data/set.zip/train/a.png is a member
PACK = ".pack"

SMALL = 4 << 20  # bytes of a JSON file of a run at most: config, status, jobs, sidecars, headers
LINE = 256 << 10  # bytes of a row of a log at most; longer ones are passed over
ROWS = 256 << 20  # bytes that are read of a log: its end
KEPT = 16 << 20  # bytes of rows that are kept in memory; of more, every second one, and so on
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
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
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
    if os.name == "nt":  # there os.kill(pid, 0) is Ctrl-C
        return "alive"
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


# --- files that others may have written -------------------------------------------------------------------------------
def open_regular(path: str | os.PathLike, mode: str = "rb", inside: Path | None = None) -> IO[bytes]:
    """A regular file, opened without ever waiting: a pipe, a device, a socket or a folder is an OSError whose words can
    be shown. `inside`: a folder out of which no link may lead."""
    if inside is not None and leads_out(Path(path), inside):
        raise OSError(errno.EPERM, f"a link that leads out of {inside}", str(path))

    return open(path, mode, opener=_open_regular)


def _open_regular(name: str, flags: int) -> int:
    try:
        check_regular(os.stat(name), name)  # first: to open a device may do something
    except FileNotFoundError:
        pass
    handle = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        check_regular(os.fstat(handle), name)
    except OSError:
        os.close(handle)
        raise
    return handle


def check_regular(info: os.stat_result, name: str | os.PathLike, most: int = sys.maxsize) -> None:
    """OSError unless this is a regular file of at most so many bytes."""
    if not stat.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(name))
    if info.st_size > most:
        raise OSError(errno.EFBIG, f"too large: more than {most / (1 << 20):g} MB", str(name))


def leads_out(path: Path, folder: Path) -> bool:
    """Whether links on the way to `path` lead out of `folder`, which may be a link itself."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def read_bytes(path: str | os.PathLike, most: int = SMALL, inside: Path | None = None) -> bytes:
    """The contents of a regular file of at most `most` bytes. OSError for anything else, see open_regular."""
    with open_regular(path, inside=inside) as file:
        check_regular(os.fstat(file.fileno()), path, most)
        return file.read(most)


def read_tail(path: str | os.PathLike, most: int, end: int | None = None, inside: Path | None = None) -> bytes:
    """The last `most` bytes of a regular file, or of its first `end` bytes."""
    with open_regular(path, inside=inside) as file:
        end = file.seek(0, os.SEEK_END) if end is None else end
        begin = file.seek(max(end - most, 0))
        return file.read(end - begin)


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """The whole lines of a file of rows. What is longer than LINE, or has no end yet, is passed over."""
    while line := file.readline(LINE):
        if line.endswith(b"\n"):
            yield line
        else:
            while (rest := file.readline(LINE)) and not rest.endswith(b"\n"):
                pass


def read_rows(path: str | os.PathLike, inside: Path | None = None, keep: Callable[[dict], bool] = bool) -> list[dict]:
    """The JSON objects in the last ROWS bytes of a file of rows, in order, those that `keep` takes. Rows that are none
    are left out, numbers that are not finite are None. Of more than KEPT bytes of rows every second one is taken, of
    more than twice that every fourth, and the last in any case: a curve stays whole, and the memory bounded."""
    rows: list[dict] = []
    size, step, last = 0, 1, b""
    with open_regular(path, inside=inside) as file:
        file.seek(max(file.seek(0, os.SEEK_END) - ROWS, 0))
        for number, line in enumerate(lines_of(file)):
            if number % step:
                last = line
                continue
            last = b""
            rows += row_of(line, keep, nonfinite=True)
            size += len(line)
            if size > KEPT:
                rows, size, step = rows[::2], size // 2, step * 2
    return rows + row_of(last, keep, nonfinite=True)


def row_of(line: bytes, keep: Callable[[dict], bool] = bool, nonfinite: bool = False) -> list[dict]:
    """The JSON object in a line, as a list of one; [] where it holds none, or none that `keep` takes."""
    with contextlib.suppress(ValueError):
        row = parse_json(line, nonfinite)
        return [row] if isinstance(row, dict) and keep(row) else []
    return []


def parse_json(text: str | bytes, nonfinite: bool = False) -> Any:
    """JSON that can be computed with, printed and stored. ValueError, a few words, for all else: what is nested too
    deeply, half a character, NaN and infinities (with `nonfinite` these become None)."""

    def number(word: str) -> float | None:
        value = float(word)
        if not math.isfinite(value) and not nonfinite:
            raise ValueError(f"the number {word[:20]}")
        return value if math.isfinite(value) else None

    text = text if isinstance(text, str) else text.decode()
    try:
        value = json.loads(text, parse_constant=number, parse_float=number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _surrogate.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("text that is no Unicode") from None
    return value


_surrogate = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def read_json(path: str | os.PathLike, inside: Path | None = None, most: int = SMALL, nonfinite: bool = False) -> dict:
    """The JSON object in a small file. OSError or ValueError, whose words can be shown, for anything else."""
    value = parse_json(read_bytes(path, most, inside), nonfinite)
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value


def read_object(path: str | os.PathLike, inside: Path | None = None, nonfinite: bool = False) -> tuple[dict, str]:
    """(the JSON object in a small file, ''); ({}, what is wrong with the file) where there is one that cannot be read,
    ({}, '') where there is none."""
    try:
        return read_json(path, inside, nonfinite=nonfinite), ""
    except FileNotFoundError:
        return {}, ""
    except (OSError, ValueError) as error:
        return {}, f"{Path(path).name} is damaged ({words(error)})"


def words(error: Exception) -> str:
    """What an OSError or a ValueError says, without the file's name."""
    return plain(getattr(error, "strerror", None) or str(error))[:200]


def is_phantom(spec: str) -> bool:
    """Whether a data path means phantoms, which are drawn: `phantom`, or `phantom:` and more."""
    return spec.partition(":")[0] == "phantom"


# --- the machine ------------------------------------------------------------------------------------------------------
CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """CPUs that this process may use: what it is bound to, within the quota of its cgroups (a container's `--cpus`)."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(int(min(bound, cpu_quota())), 1)


def cpu_quota() -> float:
    """CPU seconds per second that the cgroups of this process allow, version 2 or 1; infinite where none limits it."""
    least = math.inf
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            place = Path(own.lstrip("/"))
            for folder in (place, *place.parents):  # each level may have a limit of its own; a container sees its top
                least = min(least, _quota_of(CGROUPS / folder if not controllers else CGROUPS / "cpu" / folder))
    return least


def _quota_of(folder: Path) -> float:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            quota, period = (float(word) for name in names for word in (folder / name).read_text().split())
            if quota > 0 and period > 0:
                return quota / period
    return math.inf


def cache_folder(chosen: str | os.PathLike | None = None) -> Path:
    """Where packs and latents are kept: the argument, $BRAIN_PACK_DIR, $XDG_CACHE_HOME/brain-slices or
    ~/.cache/brain-slices."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    chosen = chosen or os.environ.get("BRAIN_PACK_DIR") or os.path.join(base, "brain-slices")
    return Path(chosen).expanduser().absolute()


# --- text that others wrote -------------------------------------------------------------------------------------------
def plain(text: object, keep: str = "") -> str:
    """Text in which what does not print is spelled out, as \\x1b or \\u202e: control characters, escapes of
    terminals, what turns the direction of writing, other line ends. `keep`: characters that stay, such as line ends."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def say(text: object, to: IO[str] | None = None) -> None:
    """Print lines that may hold text of others."""
    print(plain(text, keep="\n\t"), file=to or sys.stdout, flush=True)


def sha256_of(file, offset: int = 0) -> str:
    """Hex digest of an open file from `offset` on, or of the file at a path."""
    if isinstance(file, (str, os.PathLike)):
        with open_regular(file) as opened:
            return sha256_of(opened)
    file.seek(offset)
    return hashlib.file_digest(file, "sha256").hexdigest()
