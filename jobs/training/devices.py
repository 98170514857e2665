"""The device: precision, memory, threads, use."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import torch

from data.files import usable_cores
from jobs.config import kinds, sizes
from jobs.config.specs import TrainConfig
from jobs.run import faults
from jobs.run.faults import GpuFault
from jobs.run.rundir import RunDir
from jobs.run.stopping import BAD, TRANSIENT
from jobs.training.ranks import Meeting, Runtime, local_world

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_freed_memory(device: torch.device) -> None:
    """Where a CPU computes, have glibc keep freed memory for the next tensor; it would give large blocks back to the
    system.

    Then every feature map is made of pages that the kernel must map and clear first: up to a quarter of a training
    step.
    """
    if device.type == "cuda":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


# --- threads ----------------------------------------------------------------------------------------------------------
def default_threads(ranks_here: int) -> int:
    """CPU threads per process: what Slurm gave the task, else this rank's share of the CPUs that it may use; at most
    OMP_NUM_THREADS."""
    cores, env = usable_cores(), os.environ
    given, wanted = env.get("SLURM_CPUS_PER_TASK", ""), env.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if "TORCHELASTIC_RUN_ID" in env and ranks_here > 1 and wanted == "1":
        wanted = ""  # torchrun's own word for several ranks, where nobody has said anything
    threads = min(int(given), cores) if given.isdigit() else cores // ranks_here
    return max(min(threads, int(wanted)) if wanted.isdigit() and int(wanted) else threads, 1)


def choose_threads(asked: int, run: RunDir, world: int, device: torch.device, say: Callable[[str], None]) -> int:
    """CPU threads of this attempt: those asked for, else those that the run began with, else what is fastest now.

    Sums are split by threads, so a run keeps their number from one attempt to the next: only so a resumed run is the
    uninterrupted one. What is not the usual number is said; the attempt records it. (On a GPU that does not matter.)
    """
    if asked:
        return asked
    usable = default_threads(local_world(world))
    if device.type != "cpu":
        return usable
    starts = [line["threads"] for line in run.read_attempts() if type(line.get("threads")) is int]
    if starts and run.newest_checkpoint() > 0:
        threads = max(min(starts[-1], usable), 1)
        if threads < starts[-1]:
            say(f"threads: {threads} may be used, the attempt before had {starts[-1]}: the run goes on within rounding")
        elif threads < usable:
            say(f"threads: {threads}, as before; --threads {usable} uses all that there are, with other rounding")
        return threads
    # Ranks side by side would measure each other.
    threads, gain = fastest_threads(usable) if world == 1 else (usable, 1.0)
    if threads < usable:
        say(
            f"threads: {threads} of {usable}, {gain:.1f} times as fast now, as other processes want the same cores "
            f"({load_words()}); --threads {usable} uses them all the same"
        )
    return threads


CLEARLY = 1.5  # times as fast: fewer threads are taken for no less


def fastest_threads(most: int, seconds: Callable[[int], float] | None = None) -> tuple[int, float]:
    """(threads, how many times as fast as `most`): fewer than `most` only where they are clearly faster.

    On a machine that others use as well, threads that wait for each other at each operation wait for those that have no
    core just then: two may be many times slower than one. seconds(n): of the same work with n threads.
    """
    seconds = seconds or time_of_convolution
    counts = [most >> k for k in range(most.bit_length())]
    times = {n: seconds(n) for n in (counts if most > 1 else ())}
    best = min(times, key=lambda n: times[n], default=most)
    return (best, times[most] / times[best]) if times and times[best] * CLEARLY < times[most] else (most, 1.0)


def time_of_convolution(threads: int) -> float:
    """Seconds of a convolution of a small network with so many threads, on average: stalls are what is looked for."""
    torch.set_num_threads(threads)
    x, weight = torch.ones(8, 64, 32, 32), torch.ones(64, 64, 3, 3)
    torch.nn.functional.conv2d(x, weight, padding=1)  # the threads are started
    began, count = time.perf_counter(), 0
    while count < 3 or (count < 50 and time.perf_counter() - began < 0.1):
        torch.nn.functional.conv2d(x, weight, padding=1)
        count += 1
    return (time.perf_counter() - began) / count


def load_words() -> str:
    """`load 7.2 on 2 cores` of the whole machine."""
    return f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


class Slowdown:
    """Notices steps that are far slower than they were, while more processes want to compute than there are cores."""

    FAR = 3.0  # times slower than the fastest row

    def __init__(self) -> None:
        self.fastest, self.told = 0.0, False

    def look(self, row: dict, threads: int) -> str:
        """What to say of a row of the log, once for each time that it becomes slow; '' for nothing."""
        waited = sum(row.get(name, 0.0) for name in ("data_wait", "checkpoint_wait", "metric_wait"))
        speed = row["img_per_s"] / max(1 - waited, 0.05)
        self.fastest = max(self.fastest, speed)
        slow = speed * self.FAR < self.fastest
        told, self.told = self.told, slow
        if told or not slow or os.getloadavg()[0] <= (os.cpu_count() or 1):
            self.told = told and slow
            return ""
        fewer = "go on with --threads 1" if threads > 1 else "go on when it is quiet"
        return (
            f"WARNING: {speed:.3g} images per second, after {self.fastest:.3g} before: other processes want the same "
            f"cores ({load_words()}); where that lasts, stop this run and {fewer}"
        )


# --- the machine's words ----------------------------------------------------------------------------------------------


def facts(rt: Runtime) -> dict:
    """What the provenance of a run needs torch to know."""
    about = {"torch": torch.__version__, "threads": rt.threads, "world": rt.world, "device": rt.device.type}
    if rt.device.type == "cuda":
        about |= {
            "device": torch.cuda.get_device_name(rt.device),
            "cuda": torch.version.cuda,
            "driver": driver_version(),
        }
    return about


def driver_version() -> str | None:
    """The version of NVIDIA's kernel module, None where there is none."""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
        return found[0] if found else None
    return None


# --- which device -----------------------------------------------------------------------------------------------------
# What Slurm tells a job or a step of its GPUs: their numbers, or how many they are.
GPU_NUMBERS = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS")
GPU_COUNTS = ("SLURM_GPUS_ON_NODE", "SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_TASK")


def gpu_given() -> bool:
    """Whether Slurm gave this job a GPU."""
    env = os.environ
    return any(env.get(name) for name in GPU_NUMBERS) or any(env.get(name, "0") not in ("", "0") for name in GPU_COUNTS)


def choose_device(
    meeting: Meeting, asked: str = "auto", say: Callable[[str], None] = lambda text: None
) -> torch.device:
    """The device of this rank, after all ranks have agreed on its kind. For all ranks, before the process group.

    asked: auto (a GPU where there is one), cpu, or cuda. Raises GpuFault on rank 0, and SystemExit with its code on the
    others: where a GPU was given or asked for and one rank cannot use it (75, so that no run goes to a CPU unasked),
    where ranks share a GPU (78), or see different kinds of device (75).
    """
    mine = look_for_gpu(meeting.local_rank, asked)
    words = meeting.gather(json.dumps(mine))
    meeting.first(lambda: check_devices([json.loads(word) for word in words]))
    if mine.get("slice"):
        say(f"{mine['name']} is a slice (MIG) of a GPU: its memory and speed are a part of the card's")
    return torch.device("cuda", mine["index"]) if mine["kind"] == "cuda" else torch.device("cpu")


def own_device(asked: str = "auto") -> torch.device:
    """The same of a process that has no other ranks to agree with."""
    mine = look_for_gpu(0, asked)
    check_devices([mine])
    return torch.device("cuda", mine["index"]) if mine["kind"] == "cuda" else torch.device("cpu")


def look_for_gpu(local_rank: int, asked: str) -> dict:
    """What this rank sees, and whether it works: a kernel is run on it."""
    about: dict = {"node": socket.gethostname(), "kind": "cpu", "slice": False}
    if asked == "cpu":
        return about
    try:
        if not torch.cuda.is_available():
            torch.cuda.init()  # says why not
            raise RuntimeError("No CUDA GPUs are available")
        index = local_rank % torch.cuda.device_count()  # a task may see all GPUs of its node, or only its own
        about |= {"kind": "cuda", "index": index}
        found = torch.cuda.get_device_properties(index)
        place = [getattr(found, name, None) for name in ("pci_domain_id", "pci_bus_id", "pci_device_id")]
        about |= {"name": found.name, "uuid": str(found.uuid), "place": place}
        about["slice"] = " MIG " in found.name or os.environ.get("CUDA_VISIBLE_DEVICES", "").startswith("MIG-")
        torch.cuda.set_device(index)
        torch.ones(1, device=torch.device("cuda", index)).add_(1).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        if about["kind"] == "cuda" or asked == "cuda" or gpu_given():
            versions = f"driver {driver_version() or 'none'}, torch {torch.__version__} for CUDA {torch.version.cuda}"
            about |= {"error": f"{faults.line_of(error)}; {versions}", "kernels": _has_kernels(error)}
    return about


def _has_kernels(error: BaseException) -> bool:
    """False where no other GPU of this kind would do. (Memory that is full is another process's here.)"""
    fault = faults.fault_of(error)
    return fault is None or fault is faults.MEMORY or fault.code != BAD


def check_devices(seen: list[dict]) -> None:
    """Raise GpuFault where the ranks, by what look_for_gpu says of each, cannot train together. [] says nothing."""
    holders: dict[tuple, int] = {}
    for rank, about in enumerate(seen):
        if "uuid" not in about:
            continue
        # Without the place of the card in the machine, all slices of a node count as of one.
        key = (about["node"], *about["place"]) if about["slice"] else (about["uuid"],)
        other = holders.setdefault(key, rank)
        if other != rank and about["slice"]:
            raise GpuFault(
                f"{about['node']}: ranks {other} and {rank} have slices (MIG) of one GPU, which NCCL does not "
                "join; one rank alone can use a slice, several need whole GPUs",
                BAD,
            )
        if other != rank:
            here = sum(each["node"] == about["node"] for each in seen)
            raise GpuFault(
                f"{about['node']}: ranks {other} and {rank} share one GPU ({about['name']}); give each its own: "
                f"srun --ntasks-per-node {here} --gres gpu:{here}, or start one rank for each GPU",
                BAD,
            )
    for rank, about in enumerate(seen):
        if "error" in about:
            fix = "another node may have one" if about["kernels"] else "python launch.py doctor names a torch that fits"
            raise GpuFault(
                f"no usable GPU on node {about['node']} (rank {rank}: {about['error']}); {fix}; --device cpu computes "
                "on the CPU",
                TRANSIENT if about["kernels"] else BAD,
            )
    if len({about["kind"] for about in seen}) > 1:
        kinds = ", ".join(f"rank {rank} on {about['node']}: {about['kind']}" for rank, about in enumerate(seen))
        raise GpuFault(f"no usable GPU for some of the ranks ({kinds}); --device cpu trains on CPUs alone", TRANSIENT)


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
        fast = torch.cuda.get_device_capability(device) >= sizes.FAST_BF16 if device.type == "cuda" else cpu_has_bf16()
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


def step_bytes(config: TrainConfig, rt: Runtime) -> float:
    """Memory of a GPU that training is going to need, data apart; 0 on a CPU."""
    if rt.device.type != "cuda":
        return 0.0
    capability = torch.cuda.get_device_capability(rt.device)
    return sizes.with_margin(kinds.JOBS[kinds.name_of(config)].memory_gb(config, rt.world, capability)) * 1e9


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
