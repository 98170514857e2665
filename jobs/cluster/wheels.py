"""Which GPUs the installed torch has kernels for, and a wheel that fits where it has none. Torch-free.

torch itself is asked, in a process of its own that takes seconds, once for each installation.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from data.files import atomic_write, read_json
from jobs.config.cards import Card, card_of

Capability = tuple[int, int]
QUESTION = "import torch; print(torch._C._cuda_getArchFlags() or '')"  # get_arch_list() may say nothing without a GPU
ALWAYS = ((8, 0), (8, 9))  # every build that there is has kernels for Ampere, whose code runs on Ada too
# Index of download.pytorch.org -> capabilities from, to; which torch. 2.15 has no cu126 any more.
WHEELS = (
    ("cu126", (5, 0), (9, 0), "torch<2.15"),
    ("cu130", (7, 5), (12, 1), "torch"),
)
NEEDED_DRIVER = {11: 450, 12: 525, 13: 580}  # of a major version of CUDA


def check_cards(gres: Iterable[str], cuda: str) -> list[tuple[str, str, str]]:
    """(level, text, fix) of the kinds of GPU that are named, each once, for a torch built for `cuda`."""
    found = [row for kind in dict.fromkeys(gres) if (card := card_of(kind)) for row in _check_card(card, cuda)]
    return [*dict.fromkeys(found), *_check_driver(cuda)]


def _check_card(card: Card, cuda: str) -> list[tuple[str, str, str]]:
    if ALWAYS[0] <= card.capability <= ALWAYS[1]:
        return []
    kernels = kernels_of_torch()
    if not kernels or runs_on(kernels, card.capability):
        return []
    there = ", ".join(sorted({f"{a}.{b}" for _, (a, b) in kernels}, key=lambda text: [int(p) for p in text.split(".")]))
    text = f"a {card.name} has compute capability {_dotted(card.capability)}; this torch (CUDA {cuda}) has {there}"
    fitting = next((w for w in WHEELS if w[1] <= card.capability <= w[2] and not cuda.startswith(_cuda_of(w[0]))), None)
    if fitting is None:
        return [("fail", text, "no torch that this toolkit runs with has kernels for it: use another kind of GPU")]
    index, _, _, package = fitting
    command = f'{sys.executable} -m pip install "{package}" --index-url https://download.pytorch.org/whl/{index}'
    return [("fail", text, f"{command}, or another kind of GPU")]


def _check_driver(cuda: str) -> list[tuple[str, str, str]]:
    """The driver of this machine, where it has one, against the CUDA that torch is built for."""
    of_driver, major = driver_cuda(), int(cuda.partition(".")[0] or 0)
    if not of_driver or int(of_driver.partition(".")[0]) >= major:
        return []
    needed = f"a driver from {NEEDED_DRIVER[major]} on" if major in NEEDED_DRIVER else "a newer driver"
    index = next((w[0] for w in WHEELS if _cuda_of(w[0]).partition(".")[0] == of_driver.partition(".")[0]), "")
    other = f", or torch from https://download.pytorch.org/whl/{index}" if index else ""
    return [("warn", f"this machine's driver is for CUDA {of_driver}, torch for CUDA {cuda}", f"{needed}{other}")]


def runs_on(kernels: list[tuple[str, Capability]], capability: Capability) -> bool:
    """Whether code of these kinds runs on a GPU: machine code on the same major version from its minor on, PTX
    (compute) on everything newer."""
    return any(own <= capability and (kind == "compute" or own[0] == capability[0]) for kind, own in kernels)


def parse_kernels(text: str) -> list[tuple[str, Capability]]:
    """[("sm", (8, 0)), ("compute", (12, 0))] of "sm_80 compute_120". Variants that no other GPU runs (sm_90a) are left
    out."""
    return [
        (kind, (int(number) // 10, int(number) % 10)) for kind, number in re.findall(r"(sm|compute)_(\d+)(?!\w)", text)
    ]


def kernels_of_torch() -> list[tuple[str, Capability]]:
    """What the installed torch has kernels for; [] where it does not say."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return []
    with contextlib.suppress(OSError):
        about = Path(spec.origin).with_name("version.py")
        key = f"{about}: {about.stat().st_mtime_ns}"
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "brain-slices", "kernels.json")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if isinstance(known := read_json(cache).get(key), str):
                return parse_kernels(known)
        with contextlib.suppress(subprocess.SubprocessError):
            done = subprocess.run(
                [sys.executable, "-c", QUESTION], capture_output=True, text=True, timeout=120, check=True
            )
            with contextlib.suppress(OSError):  # a home that is full or read-only: asked again the next time
                cache.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(cache, json.dumps({key: done.stdout.strip()}))
            return parse_kernels(done.stdout)
    return []


def driver_cuda() -> str:
    """The CUDA that the driver of this machine knows, as nvidia-smi has it; '' without one."""
    if shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=10).stdout
            found = re.search(r"CUDA Version: (\d+\.\d+)", text)
            return found[1] if found else ""
    return ""


def _dotted(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _cuda_of(index: str) -> str:
    return f"{index[2:4]}.{index[4:]}"  # cu126: 12.6
