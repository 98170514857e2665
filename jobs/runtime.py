"""Ranks, device, precision and randomness: what makes one script run alike on 1 process, torchrun and Slurm tasks."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import functools
import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.stop import TRANSIENT, exit_code

# Longest wait for a rank that neither answers nor dies (one that dies is noticed at once), and for all ranks to meet.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
FIRST_PSEUDO_STEP = 0xFFFFFFF0  # Slurm's batch, interactive and extern "steps" have ids from here on


# The gloo group for decisions on the CPU, where it is not the default group. Not a field of Runtime: whoever holds a
# group keeps its threads alive past shutdown().
_gloo = None


class PeerLost(Exception):
    """Another rank died or hangs. Exit code 75: the attempt may be repeated."""

    exit_code = TRANSIENT


@dataclass(frozen=True)
class Runtime:
    """Where this process stands among the ranks. `world` 1 has no process group at all."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    threads: int


# --- ranks ------------------------------------------------------------------------------------------------------------
def ranks() -> tuple[int, int, int]:
    """(rank, world, local rank) from torchrun's variables, else from those of a Slurm step, else (0, 1, 0)."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    if _in_slurm_step():
        world = int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)
        return int(env["SLURM_PROCID"]), world, int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


def _in_slurm_step() -> bool:
    """Whether srun started this process. The batch shell and an salloc shell have SLURM_NTASKS too, but are one process."""
    env = os.environ
    step = env.get("SLURM_STEP_ID", "")
    return "SLURM_PROCID" in env and step.isdigit() and int(step) < FIRST_PSEUDO_STEP


def local_world(world: int) -> int:
    """How many of the ranks run on this node."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        return int(env["LOCAL_WORLD_SIZE"])
    if world == 1 or not _in_slurm_step():
        return 1
    counts: list[int] = []  # "2(x3),1" means 2, 2, 2, 1 tasks on the step's nodes
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(times or 1)
    node = int(env.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else 1


def first_host(nodes: str) -> str:
    """First name of a Slurm host list: 'a100-[3-5,7],b1' is a100-3. (`scontrol` may be missing on compute nodes.)"""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^\]]*)\]", lambda found: re.split("[,-]", found[1])[0], first)


def slurm_rendezvous() -> None:
    """Set MASTER_ADDR and MASTER_PORT for a Slurm step, where they are not set.

    Address: rank 0 is on the first node of the step. Its name must resolve; where it does not, the address of the node
    that srun was called on serves, which for a batch job is the same node.
    Port: 15000 to 54999, a function of the job and step ids, so that neighbouring jobs on one node do not meet.
    """
    env = os.environ
    if "MASTER_ADDR" not in env:
        address = "127.0.0.1"
        if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")) != "1":
            launched_on = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
            address = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")) or launched_on
            try:
                socket.getaddrinfo(address, None)
            except OSError:
                address = launched_on or address
        env["MASTER_ADDR"] = address
    if "MASTER_PORT" not in env:
        job, step = int(env.get("SLURM_JOB_ID") or 0), int(env.get("SLURM_STEP_ID") or 0)
        env["MASTER_PORT"] = str(15000 + (job * 13 + step) % 40000)  # 13: the first steps of the next job are free


class Meeting:
    """The ranks before there is a process group: rank 0 works, the others look every half second how far it is.

    Packing a data set may take longer than any collective may; polling has no such limit while rank 0 lives. The ranks meet
    at a key-value store on rank 0 (torchrun's own where there is one). With one process everything here does nothing.
    Used as a context manager: a rank 0 that leaves, whatever the reason, takes the others along with its exit code.
    Raises PeerLost if the ranks do not meet, ValueError where RANK and WORLD_SIZE are set and the meeting point is not.
    """

    def __init__(self):
        self.rank, self.world, self.local_rank = ranks()
        self.store, self.count = None, 0
        if self.world == 1:
            return
        if "RANK" not in os.environ:
            slurm_rendezvous()
        if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ValueError("WORLD_SIZE is set but MASTER_ADDR or MASTER_PORT is not; start with torchrun or srun")
        try:
            self.store = next(dist.rendezvous("env://", self.rank, self.world, timeout=COLLECTIVE_TIMEOUT))[0]
        except RuntimeError as error:
            raise PeerLost(_not_met(self.world, error)) from None

    def first(self, work: Callable):
        """work() on rank 0, then on the others, which find what rank 0 has made. Returns its value."""
        self.count += 1
        if self.store is None:
            return work()
        if self.rank == 0:
            value = work()
            self.store.set(f"done {self.count}", "1")
            return value
        try:
            while not self.store.check([f"done {self.count}"]):
                if self.store.check(["left"]):
                    code = int(self.store.get("left"))
                    self.store.add("seen", 1)
                    raise SystemExit(code)  # rank 0 has said why
                time.sleep(0.5)
        except RuntimeError as error:
            raise PeerLost(f"rank 0 is gone ({_first_line(error)})") from None
        return work()

    def __enter__(self) -> Meeting:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Once the process group stands the others notice a lost rank 0 by themselves; before, they are told."""
        if self.store is None or self.rank != 0 or dist.is_initialized():
            return
        with contextlib.suppress(RuntimeError):
            self.store.set("left", str(exit_code(error)))
            end = time.monotonic() + 5
            while self.store.add("seen", 0) < self.world - 1 and time.monotonic() < end:
                time.sleep(0.1)  # the store ends with this process


def init_runtime(threads: int = 0, meeting: Meeting | None = None) -> Runtime:
    """Pin the threads, choose the device and join the process group (NCCL on GPUs with a gloo side group, gloo on CPU).

    Raises PeerLost if the ranks do not meet, ValueError where RANK and WORLD_SIZE are set and the meeting point is not.
    """
    rank, world, local_rank = ranks()
    here = local_world(world)
    # The number of threads decides how sums are split, so for exact repeats it is pinned; the caller records it.
    threads = threads or default_threads(here)
    torch.set_num_threads(threads)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(
            local_rank % torch.cuda.device_count()
        )  # a task may see all GPUs of its node, or only its own
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have by default
    keep_freed_memory()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    if world > 1:
        _join_ranks((meeting or Meeting()).store, rank, world, here == world, cuda)
    return Runtime(rank, world, local_rank, device, threads)


def keep_freed_memory() -> None:
    """Where a CPU computes, have glibc keep freed memory for the next tensor; it would give large blocks back to the system.

    Then every feature map is made of pages that the kernel must map and clear first: up to a quarter of a training step.
    """
    if torch.cuda.is_available():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _join_ranks(store: dist.Store, rank: int, world: int, one_node: bool, cuda: bool) -> None:
    global _gloo
    if one_node and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo needs a host name that resolves
    atexit.register(_leave_gloo)
    try:
        dist.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT
        )
        _gloo = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if cuda else None
    except RuntimeError as error:
        raise PeerLost(_not_met(world, error)) from None


def _not_met(world: int, error: BaseException) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"the {world} ranks did not meet at {address} ({_first_line(error)})"


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


def shutdown(rt: Runtime | None = None) -> None:
    """Leave the process group. Call it where all ranks end well; NCCL could wait for the dead."""
    global _gloo
    _gloo = None
    if dist.is_initialized():
        dist.destroy_process_group()


def _leave_gloo() -> None:
    """At every other exit, and while Python still lives: gloo's threads may hold tensors of the last collective, and to
    free one after the interpreter's end aborts the process, whose exit code then is 134 instead of what it meant."""
    global _gloo
    if dist.is_initialized() and dist.get_backend() == "gloo":
        shutdown()
    elif _gloo is not None:
        group, _gloo = _gloo, None
        dist.destroy_process_group(group)


# --- randomness: a function of (seed, nimg, purpose), so there is no state to save ----------------------------------
def seed_of(seed: int, nimg: int, purpose: str) -> int:
    """63-bit seed of one purpose at one moment."""
    digest = hashlib.blake2b(f"{seed}/{nimg}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, nimg: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A random stream of its own. (On the CPU torch uses 32 bits of the seed, on GPUs all.)"""
    return torch.Generator(device).manual_seed(seed_of(seed, nimg, purpose))


def rows(batch: int, rank: int, world: int, accumulate: int = 1) -> list[tuple[int, int]]:
    """(start, stop) rows of the global batch for each micro-batch of this rank; contiguous, so that minibatch-std
    groups are the same for every number of ranks. ValueError if they do not divide."""
    parts = world * accumulate
    if batch < 1 or batch % parts:
        raise ValueError(
            f"a batch of {batch} does not divide into {world} ranks x {accumulate} micro-batches; use a multiple of {parts}"
        )
    size, first = batch // parts, rank * accumulate
    return [((first + i) * size, (first + i + 1) * size) for i in range(accumulate)]


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
    """The type that convolutions run in; `auto` is bf16 where the device is fast at it (GPUs from Ampere on), else fp32."""
    if name == "auto":
        device = torch.device(device)
        fast = torch.cuda.get_device_capability(device) >= (8, 0) if device.type == "cuda" else cpu_has_bf16()
        name = "bf16" if fast else "fp32"
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if name not in types:
        raise ValueError(f"precision {name!r}: choose from auto, {', '.join(types)}")
    return types[name]


# --- collectives; all do nothing on a single process ------------------------------------------------------------------
def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _collective(operation, *args, **kwargs) -> None:
    try:
        operation(*args, **kwargs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(f"another rank is gone ({_first_line(error)})") from None


def agree_max(rt: Runtime, values: list[int]) -> list[int]:
    """Element-wise maximum over the ranks: how they agree to stop at one step."""
    if rt.world == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    _collective(dist.all_reduce, tensor, op=dist.ReduceOp.MAX, group=_gloo)
    return tensor.tolist()


def from_rank_0(rt: Runtime, value: int) -> int:
    """The value of rank 0, on every rank."""
    if rt.world == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    _collective(dist.broadcast, tensor, src=0, group=_gloo)
    return int(tensor)


def reduce_sum(rt: Runtime, tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, in place; returns `tensor`."""
    if rt.world > 1:
        _collective(dist.all_reduce, tensor)
    return tensor


def _by_dtype(values: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Tensors in groups that can be laid into one flat buffer, in the order of their first appearance."""
    groups: dict = {}
    for value in values:
        groups.setdefault((value.dtype, value.device), []).append(value)
    return list(groups.values())


def reduce_mean_gradients(rt: Runtime, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients over the ranks in place, by one all-reduce of one flat buffer per dtype.

    The parameters come in the same order on all ranks. A missing gradient becomes zero, also on a single process: Adam
    would pass over a parameter without one, and the number of ranks would change the run. Done by hand instead of
    DistributedDataParallel, whose hooks break on gradients of gradients (R1, path length).
    """
    parameters = list(parameters)
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if rt.world == 1:
        return
    for gradients in _by_dtype(p.grad for p in parameters):
        flat = torch.cat([g.flatten() for g in gradients])
        _collective(dist.all_reduce, flat)
        means = flat.div_(rt.world).split([g.numel() for g in gradients])
        for g, mean in zip(gradients, means, strict=True):
            g.copy_(mean.view_as(g))


def broadcast_module(rt: Runtime, module: torch.nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if rt.world == 1:
        return
    with torch.no_grad():
        for group in _by_dtype([*module.parameters(), *module.buffers()]):
            flat = torch.cat([t.detach().flatten() for t in group])
            _collective(dist.broadcast, flat, src=0)
            for t, value in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.copy_(value.view_as(t))


def wait_for(condition: Path | Callable[[], object], what: str, seconds: float, poll: float = 0.5) -> None:
    """Wait, without a collective, until a path exists or `condition()` is true. TimeoutError, naming `what`."""
    met = condition if callable(condition) else condition.exists
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}; see the log of rank 0")
        time.sleep(poll)


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


class Watchdog:
    """Ends the process with code 75 when `pat()` was not called for `seconds`: a collective whose peer hangs never returns.

    Says so in one line and shows where every thread stands.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._last: float | None = time.monotonic()  # None: paused
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def pat(self) -> None:
        """A step ended; also ends a pause."""
        self._last = time.monotonic()

    def pause(self) -> None:
        """Do not count until the next pat(): what follows may take as long as it likes."""
        self._last = None

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(self.seconds / 4, 10)):
            last = self._last
            if last is not None and time.monotonic() - last > self.seconds:
                print(
                    f"error: no step finished for {self.seconds:g} s; another rank or the device hangs. Ending.",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr)
                sys.stderr.flush()
                os._exit(TRANSIENT)
