"""The device: precision, memory, threads, use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
from pathlib import Path

import torch

from jobs.training.ranks import Runtime

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory() -> None:
    """Where a CPU computes, have glibc keep freed memory for the next tensor; it would give large blocks back to the
    system.

    Then every feature map is made of pages that the kernel must map and clear first: up to a quarter of a training
    step.
    """
    if torch.cuda.is_available():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def default_threads(ranks_here: int) -> int:
    """CPU threads per process: what Slurm gave the task, else this rank's share of the CPUs that it may use."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return max(min(int(given), affinity) if given.isdigit() else affinity // ranks_here, 1)


def facts(rt: Runtime) -> dict:
    """What the provenance of a run needs torch to know."""
    about = {"torch": torch.__version__, "threads": rt.threads, "world": rt.world, "device": rt.device.type}
    if rt.device.type == "cuda":
        driver = Path("/proc/driver/nvidia/version")
        version = re.search(r"\d+\.\d+(\.\d+)?", driver.read_text()) if driver.exists() else None
        about |= {
            "device": torch.cuda.get_device_name(rt.device),
            "cuda": torch.version.cuda,
            "driver": version[0] if version else None,
        }
    return about


# --- precision --------------------------------------------------------------------------------------------------------
@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere it is slower than fp32."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def precision_dtype(name: str, device: torch.device | str) -> torch.dtype:
    """The type that convolutions run in; `auto` is bf16 where the device is fast at it (GPUs from Ampere on), else
    fp32."""
    if name == "auto":
        device = torch.device(device)
        fast = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else cpu_has_bf16()
        name = "bf16" if fast else "fp32"
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if name not in types:
        raise ValueError(f"precision {name!r}: choose from auto, {', '.join(types)}")
    return types[name]


# --- the device and the watchdog --------------------------------------------------------------------------------------
def memory(device: torch.device) -> dict[str, float]:
    """For the log: peak GPU memory since the last call in GB, and GPU use in percent. Empty on CPU."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    use = gpu_use(device)
    return {"gpu_gb": round(peak, 2)} | ({} if use is None else {"gpu_util": use})


@functools.cache
def _nvml():
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None


def gpu_use(device: torch.device) -> int | None:
    """Percent of the last moment in which a kernel ran, from the driver's own library; None where it will not tell."""
    nvml = _nvml()
    if nvml is None:
        return None
    handle, rates = ctypes.c_void_p(), (ctypes.c_uint * 2)()  # nvmlUtilization_t: gpu, memory
    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    if nvml.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)) or nvml.nvmlDeviceGetUtilizationRates(
        handle, ctypes.byref(rates)
    ):
        return None
    return int(rates[0])
