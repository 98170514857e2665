"""What the disk quota of the user leaves, where `quota` or `lfs quota` tell it quickly. Torch-free."""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

TIMEOUT_S = 5.0
KB = 1024 / 1e9  # both commands count in blocks of 1024 bytes


def used_and_limit_gb(folder: Path, timeout: float = TIMEOUT_S) -> tuple[float, float] | None:
    """(GB used, GB allowed) on the file system of `folder`; None where there is no quota, or nobody to ask for it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, KeyError):
        for command in (
            ["quota", "-w", "-p", "-f", str(folder)],
            ["lfs", "quota", "-q", "-u", getpass.getuser(), str(folder)],
        ):
            if shutil.which(command[0]):
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout)
                if found := parse(done.stdout.splitlines()):
                    return found
    return None


def parse(lines: Iterable[str]) -> tuple[float, float] | None:
    """From the first line `place used soft hard ...`; a star behind a number says that it is above the soft limit."""
    for line in lines:
        if found := re.match(r"\s*(?!\d+\*?\s)\S+\s+(\d+)\*?\s+(\d+)\s+(\d+)(\s|$)", line, re.ASCII):
            used, soft, hard = map(int, found.groups()[:3])
            return (used * KB, (hard or soft) * KB) if hard or soft else None
    return None
