"""Slurm's times, sizes, resources and lists as its commands print them, turned into values. Torch-free."""

from __future__ import annotations

import re
import time

# Separators that no name or path contains; Slurm passes them through as they are.
FIELD, RECORD = "\x1f", "\x1e"


class SlurmError(Exception):
    """A Slurm command failed, did not answer, or said something unexpected. The text is one line."""


def parse_time(text: str) -> int | None:
    """Seconds of Slurm's "MM", "MM:SS", "HH:MM:SS", "D-HH", "D-HH:MM", "D-HH:MM:SS"; None for UNLIMITED and the
    like."""
    text = text.strip()
    if text.upper() in {"UNLIMITED", "INFINITE", "NOT_SET", "PARTITION_LIMIT", "NONE", "N/A", "INVALID", ""}:
        return None
    match = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text, re.ASCII)
    if not match:
        raise SlurmError(f"{text[:50]!r} is not a time; write minutes, HH:MM:SS or D-HH:MM:SS")
    days, a, b, c = (int(part or 0) for part in match.groups())
    if match[1] is not None:
        return days * 86400 + a * 3600 + b * 60 + c
    if match[4] is not None:
        return a * 3600 + b * 60 + c
    return a * 60 + b


def format_time(seconds: float | None) -> str:
    """Slurm's way to write a duration: "1-02:03:04" or "02:03:04"; None is UNLIMITED."""
    if seconds is None:
        return "UNLIMITED"
    minutes, s = divmod(max(int(seconds), 0), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    return f"{days}-{h:02}:{m:02}:{s:02}" if days else f"{h:02}:{m:02}:{s:02}"


def parse_memory(text: str) -> int | None:
    """Megabytes of "64G", "500", "4.50G" (as scontrol writes it); None for what is no size."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([KMGTkmgt]?)[Bb]?", text.strip(), re.ASCII)
    if not match:
        return None
    return int(float(match[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[match[2].upper()])


def parse_gres(text: str) -> dict[str, int]:
    """ "gpu:a100:4(S:0-1),shard:16" -> {"gpu:a100": 4, "shard": 16}."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        if not item.strip() or item.strip().upper() in {"N/A", "NONE"}:
            continue
        name, _, count = item.strip().rpartition(":")
        scale = {"K": 1024, "M": 1024**2, "G": 1024**3}.get(count[-1:].upper(), 1)
        if not name or not count.rstrip("KMGkmg").isdecimal():
            name, count, scale = item.strip(), "1", 1
        found[name] = found.get(name, 0) + _number(count.rstrip("KMGkmg")) * scale
    return found


def pattern_in(path: object) -> str:
    """What of a path Slurm, or submitit, takes for the place of a number or a name, such as %j; '' where nothing is."""
    found = re.search(r"%(?:%|\d*[AabJjNnstux])", str(path))
    return found[0] if found else ""


def _records(text: str, width: int) -> list[list[str]]:
    rows = [record.split(FIELD) for record in _without_banner(text.split(RECORD), FIELD) if record.strip("\n")]
    for row in rows:
        if len(row) != width:
            raise SlurmError(f"Slurm: unexpected answer {FIELD.join(row)[:80]!r}")
        row[0] = row[0].rpartition("\n")[2]  # an id or a name; above it stands what a wrapper printed
    return rows


def _without_banner(pieces: list[str], sign: str) -> list[str]:
    """Those pieces of an answer that are Slurm's, which have the sign; where none has it, all, to be understood or
    not."""
    return [piece for piece in pieces if sign in piece] or pieces


def _array_task(job_id: str) -> int | None:
    match = re.fullmatch(r"\d+_(\d{1,18})", job_id, re.ASCII)
    return int(match[1]) if match else None


def _word(state: str) -> str:
    """ "CANCELLED by 1000" -> "CANCELLED"."""
    words = state.split()
    if not words:
        raise SlurmError("Slurm: a job without a state")
    return words[0].rstrip("+")


def _text(value: str) -> str:
    return "" if value in {"(null)", "None", "N/A", "None assigned", "Unknown"} else value


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text.strip(), re.ASCII):
        raise SlurmError(f"Slurm: {text[:50]!r} is not a number")
    return int(text)


def _exit(text: str) -> tuple[int | None, int | None]:
    """ "1:9" -> (1, 9): exit code and signal."""
    if not text:
        return None, None
    code, _, number = text.partition(":")
    return _number(code), _number(number or "0")


def _date(text: str) -> float | None:
    """Unix time of "2026-01-31T12:00:00" in this machine's time zone, which is what the commands print."""
    if text in {"", "N/A", "NONE", "None", "Unknown", "(null)"}:
        return None
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (ValueError, OverflowError):
        raise SlurmError(f"Slurm: {text[:50]!r} is not a date") from None
