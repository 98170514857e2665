"""Whose files these are, and how much room is left. Torch-free."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

try:
    import grp
    import pwd
except ImportError:  # Windows: who may write is not in a file's mode there, and nothing is asked of it
    grp = pwd = None  # type: ignore[assignment]


def others_may_replace(path: Path) -> str:
    """Why what lies at `path` may be another user's work, in words; '' where only this user and root can write to it.

    Write permission of a group counts unless the group is the user's own, as it is where each user has a group of one.
    """
    if pwd is None:
        return ""
    info = Path(path).stat()
    if info.st_uid not in (os.getuid(), 0):
        return f"it belongs to {_name_of(info.st_uid)}"
    if info.st_mode & 0o002:
        return f"everybody may write to it (mode {info.st_mode & 0o777:03o})"
    if info.st_mode & 0o020 and not _group_of_one(info.st_gid):
        return f"its group may write to it (mode {info.st_mode & 0o777:03o})"
    return ""


def owner_of(path: Path) -> str:
    """The name of the user whose file or folder this is; '' where that is not to be had."""
    try:
        return _name_of(Path(path).stat().st_uid)
    except OSError:
        return ""


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name if pwd else ""
    except KeyError:
        return f"user {uid}"


def _group_of_one(gid: int) -> bool:
    """Whether a group is this user's own: it has the user's name and no other members."""
    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and not set(group.gr_mem) - {user.pw_name}


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write in the file system of `folder`, by its own count (quotas apart)."""
    return shutil.disk_usage(folder).free
