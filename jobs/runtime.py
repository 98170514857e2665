"""Ranks, device, precision and randomness: what makes one script run alike on 1 process, torchrun and Slurm tasks."""

from __future__ import annotations

import faulthandler
import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from jobs.stop import TRANSIENT

COLLECTIVE_TIMEOUT = timedelta(minutes=30)


class PeerLost(Exception):
    """Another rank died or hangs. Exit code 75: the attempt may be repeated."""

    exit_code = TRANSIENT


@dataclass(frozen=True)
class Runtime:
    rank: int
    world: int
    local_rank: int
    device: torch.device
    threads: int
    control: object = None  # gloo group for decisions on the CPU; None on a single process


def ranks() -> tuple[int, int, int]:
    """(rank, world, local rank) from torchrun's variables, else from those of a Slurm step, else (0, 1, 0)."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # Only inside srun: the batch shell has SLURM_NTASKS too, but is one process.
    if "SLURM_PROCID" in env and env.get("SLURM_STEP_ID", "").isdigit() and "SLURM_STEP_NUM_TASKS" in env:
        return int(env["SLURM_PROCID"]), int(env["SLURM_STEP_NUM_TASKS"]), int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


def slurm_rendezvous() -> None:
    """MASTER_ADDR and MASTER_PORT for a Slurm step that has none; the port is a function of job and step."""
    env = os.environ
    if "MASTER_ADDR" not in env:
        address = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
        nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")
        if nodes:
            try:
                command = ["scontrol", "show", "hostnames", nodes]
                first = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()[
                    0
                ]
                socket.getaddrinfo(first, None)
                address = first
            except (OSError, IndexError, subprocess.SubprocessError):
                pass  # no scontrol on the node, or its names do not resolve: the launch node's address serves
        env["MASTER_ADDR"] = address or "127.0.0.1"
    if "MASTER_PORT" not in env:
        key = f"{env.get('SLURM_JOB_ID')}.{env.get('SLURM_STEP_ID')}"
        env["MASTER_PORT"] = str(15000 + int(hashlib.sha256(key.encode()).hexdigest(), 16) % 15000)


def init_runtime(threads: int = 0) -> Runtime:
    """Pin the threads, choose the device and join the process group (NCCL on GPUs, gloo on CPU)."""
    rank, world, local_rank = ranks()
    cuda = torch.cuda.is_available()
    if cuda:
        # A task may see all GPUs of the node or only its own.
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    cores = int(os.environ.get("SLURM_CPUS_PER_TASK") or 0) or max(len(os.sched_getaffinity(0)) // local_world, 1)
    threads = threads or cores
    torch.set_num_threads(threads)  # the number of threads decides how sums are split, so it is pinned and recorded
    control = None
    if world > 1:
        slurm_rendezvous()
        try:
            backend = "nccl" if cuda else "gloo"
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
            control = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if cuda else dist.group.WORLD
        except (RuntimeError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise PeerLost(f"the {world} ranks could not meet at {address} ({str(error).splitlines()[0]})") from None
    return Runtime(rank, world, local_rank, device, threads, control)


# --- randomness: a function of (seed, nimg, purpose), so there is no state to save ----------------------------------
def seed_of(seed: int, nimg: int, purpose: str) -> int:
    """63-bit seed of one purpose at one moment."""
    digest = hashlib.blake2b(f"{seed}/{nimg}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, nimg: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed_of(seed, nimg, purpose))


def rows(batch: int, rank: int, world: int, accumulate: int = 1) -> list[tuple[int, int]]:
    """(start, stop) rows of the global batch for each micro-batch of this rank; contiguous, so that minibatch-std
    groups are the same for every number of ranks."""
    parts = world * accumulate
    if batch % parts:
        raise ValueError(f"batch {batch} does not divide into {world} ranks x {accumulate} micro-batches")
    size = batch // parts
    first = rank * accumulate
    return [((first + i) * size, (first + i + 1) * size) for i in range(accumulate)]


# --- precision --------------------------------------------------------------------------------------------------------
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; elsewhere it would be slower than fp32."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def precision_dtype(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions run in; `auto` is bf16 where the device is fast at it, else fp32."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else cpu_has_bf16()
        name = "bf16" if fast else "fp32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


# --- collectives; all do nothing on a single process ------------------------------------------------------------------
def _collective(operation, *args, **kwargs):
    try:
        return operation(*args, **kwargs)
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0][:200]
        raise PeerLost(f"another rank is gone ({text})") from None


def agree_max(rt: Runtime, values: list[int]) -> list[int]:
    """Element-wise maximum over the ranks: how they agree to stop at one step."""
    if rt.world == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.int64)
    _collective(dist.all_reduce, tensor, op=dist.ReduceOp.MAX, group=rt.control)
    return tensor.tolist()


def reduce_sum(rt: Runtime, tensor: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks, in place."""
    if rt.world > 1:
        _collective(dist.all_reduce, tensor)
    return tensor


def reduce_mean_gradients(rt: Runtime, parameters: list[torch.nn.Parameter]) -> None:
    """Average the gradients over the ranks by one flat all-reduce, in place.

    A missing gradient becomes zero, also on a single process: Adam would pass over a parameter without one, and the
    number of ranks would change the run. Done by hand instead of DistributedDataParallel, whose hooks break on gradients
    of gradients (R1, path length).
    """
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if rt.world == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    _collective(dist.all_reduce, flat)
    flat /= rt.world
    offset = 0
    for p in parameters:
        p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
        offset += p.numel()


def from_rank_0(rt: Runtime, value: int) -> int:
    """The value of rank 0, on every rank."""
    if rt.world == 1:
        return value
    tensor = torch.tensor([value], dtype=torch.int64)
    _collective(dist.broadcast, tensor, src=0, group=rt.control)
    return int(tensor)


def shutdown(rt: Runtime) -> None:
    if rt.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory since the last call, in GB, for the log."""
    if device.type != "cuda":
        return {}
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return {"gpu_gb": round(peak, 2)}


class Watchdog:
    """Ends the process with code 75 when `pat()` was not called for `seconds`: a collective whose peer hangs never returns."""

    def __init__(self, seconds: float):
        self.seconds, self._last, self._stopped = seconds, time.monotonic(), threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def pat(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(self.seconds / 4, 10)):
            if time.monotonic() - self._last > self.seconds:
                print(
                    f"error: no step finished for {self.seconds:g} s; another rank or the device hangs. Ending.",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr)
                sys.stderr.flush()
                os._exit(TRANSIENT)
