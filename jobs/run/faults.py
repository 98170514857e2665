"""Faults of GPUs and of the talk between ranks: what torch, CUDA and NCCL say, what it means, what to do. Torch-free.

The one table of them. The training process takes its exit code from it, `launch.py why` its words.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

from jobs.run.stopping import BAD, TRANSIENT

BUG = 1  # keeps its traceback


@dataclass(frozen=True)
class Fault:
    """A pattern in an error or a log, the exit code that it means, what happened, what to do."""

    pattern: str
    code: int
    text: str
    fix: str


MEMORY = Fault(
    r"(CUDA|HIP|NCCL)( error:)? out of memory|OutOfMemoryError|STATUS_ALLOC_FAILED|DEVICE_ALLOCATION_FAILED|"
    r"Cuda failure( \d+)? 'out of memory'|the GPU ran out of memory",
    BAD,
    "the GPU ran out of memory",
    "--accumulate 2 (the result stays the same), a smaller --batch, or --channel-max 256",
)

# The first that is found counts: what is surer stands first. The words after "CUDA error:" are the CUDA runtime's,
# which NCCL repeats as "Cuda failure 719 '...'"; torch 2.6 to 2.14 only add lines below.
FAULTS = (
    Fault(
        r"Duplicate GPU detected|share one GPU|of one GPU, which NCCL",
        BAD,
        "two ranks share one GPU",
        "one GPU for each rank, such as srun --ntasks 2 --gres gpu:2",
    ),
    MEMORY,
    Fault(
        r"no kernel image is available|is not compatible with the current PyTorch installation|STATUS_ARCH_MISMATCH",
        BAD,
        "the installed torch does not fit the node's GPU: it has no kernels for it",
        "python launch.py doctor names a torch that has them",
    ),
    Fault(
        r"driver version is insufficient|forward compatibility was attempted|driver on your system is too old|"
        r"unsupported display driver / cuda driver combination",
        TRANSIENT,
        "the installed torch does not fit the node's GPU driver",
        "install the torch build for the CUDA version that nvidia-smi shows on the node",
    ),
    Fault(
        r"device-side assert triggered",
        BUG,
        "a check inside a GPU kernel failed, most often of a label or an index that is out of range",
        "the traceback shows where, with CUDA_LAUNCH_BLOCKING=1 to the line",
    ),
    Fault(
        r"uncorrectable (ECC|NVLink) error|fallen off the bus|GPU is lost|\bXid\b.*\d|busy or unavailable|"
        r"(CUDA error: |Cuda failure( \d+)? ')(an illegal (memory|instruction)|misaligned address|unspecified launch|"
        r"the launch timed out|hardware|uncorrectable|Invalid access of peer GPU memory|unknown error)|"
        r"(CUDNN|CUBLAS)_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR|NOT_INITIALIZED)",
        TRANSIENT,
        "the GPU or its driver failed",
        "resume; if it happens on the same node again, tell the administrators its name",
    ),
    Fault(
        r"no usable GPU|Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device is detected|"
        r"CUDA driver initialization failed|system not yet initialized|Torch not compiled with CUDA",
        TRANSIENT,
        "the node has no GPU that torch can use",
        "resume, on another node if it can be; --device cpu trains on the CPU",
    ),
    Fault(
        r"NCCL.*(timed? ?out|error|unhandled)|[Ww]atchdog caught collective|Connection closed by peer|PeerLost|"
        r"gloo.*(timed? ?out|reset|closed)|remote process exited or there was a network error",
        TRANSIENT,
        "the ranks lost each other (network, or one of them died first)",
        "resume; the log of the first rank that died says more",
    ),
)
RANKS_LOST = FAULTS[-1]


def fault_in(text: str) -> Fault | None:
    """The fault that an error's text means, if any."""
    return next((fault for fault in FAULTS if re.search(fault.pattern, text)), None)


def fault_of(error: BaseException | None) -> Fault | None:
    """The same of an exception. All of torch's own are RuntimeErrors."""
    return fault_in(f"{type(error).__name__}: {error}") if isinstance(error, RuntimeError) else None


def line_of(error: BaseException) -> str:
    """One line of an error: its first, and what NCCL calls its last error, which alone names the cause."""
    text = str(error).strip() or type(error).__name__
    last = re.search(r"^Last error:\s*(\S.*)", text, re.M)
    return text.splitlines()[0][:200] + (f"; last error: {last[1].strip()[:200]}" if last else "")


class GpuFault(Exception):
    """A fault of the GPU, in one line that names the node; exit code of the table."""

    def __init__(self, text: str, code: int):
        super().__init__(text)
        self.exit_code = code


def named(error: BaseException | None, less_memory: Callable[[], str]) -> GpuFault | None:
    """A fault of the GPU as one line for a person; None for everything else, and for what needs its traceback.

    less_memory(): what to do where its memory does not suffice.
    """
    fault = fault_of(error)
    if error is None or fault is None or fault.code == BUG:
        return None
    fix = less_memory() if fault is MEMORY else fault.fix
    return GpuFault(f"{socket.gethostname()}: {fault.text} ({line_of(error)}); {fix}", fault.code)
