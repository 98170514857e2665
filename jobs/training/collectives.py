"""The process group, and what the ranks agree on or add up. Everything does nothing on a single process."""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.run import faults, stopping
from jobs.training.devices import choose_device, default_threads, keep_freed_memory
from jobs.training.ranks import (
    COLLECTIVE_TIMEOUT,
    Meeting,
    PeerLost,
    Runtime,
    local_world,
    ranks,
)

# The gloo group for decisions on the CPU, where it is not the default group. Not a field of Runtime: whoever holds a
# group keeps its threads alive past shutdown().
_gloo = None
_broken = False  # a rank is gone
LET_GO = 0.2  # seconds


def init_runtime(threads: int = 0, meeting: Meeting | None = None, device: torch.device | None = None) -> Runtime:
    """Pin the threads and join the process group (NCCL on GPUs with a gloo side group, gloo on CPU).

    device: what the ranks have agreed on; chosen here where it is None. Raises PeerLost if the ranks do not meet,
    ValueError where RANK and WORLD_SIZE are set and the meeting point is not, GpuFault as choose_device does.
    """
    rank, world, local_rank = ranks()
    here = local_world(world)
    # The number of threads decides how sums are split, so for exact repeats it is pinned; the caller records it.
    threads = threads or default_threads(here)
    torch.set_num_threads(threads)
    meeting = meeting or Meeting()
    device = device or choose_device(meeting)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions have by default
    keep_freed_memory(device)
    if world > 1:
        _join_ranks(meeting.store, rank, world, here == world, cuda)
    return Runtime(rank, world, local_rank, device, threads)


def _join_ranks(store: dist.Store | None, rank: int, world: int, one_node: bool, cuda: bool) -> None:
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
        if faults.fault_of(error) in (None, faults.RANKS_LOST):
            raise _lost(f"the {world} ranks did not join one group ({faults.line_of(error)})") from None
        raise


def shutdown(rt: Runtime | None = None) -> None:
    """Leave the process group. Call it where all ranks end well; NCCL could wait for the dead."""
    global _gloo
    _gloo = None
    if dist.is_initialized():
        # Gloo's threads need the interpreter's lock to let go of the last collective's tensors, and torch 2.6 waits for
        # them while it holds that lock: now and then for ever. So they get the time before.
        time.sleep(LET_GO)
        dist.destroy_process_group()


def _leave_gloo() -> None:
    """At every other exit, and while Python still lives: gloo's threads may hold tensors of the last collective, and to
    free one after the interpreter's end aborts the process, whose exit code then is 134 instead of what it meant."""
    global _gloo
    if _broken and stopping.left_with is not None:
        # Where a rank is gone nothing of the group can be ended in order: threads of gloo and NCCL have aborted the
        # process in it, with another exit code and a core file of a gigabyte. All is written; so it just ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stopping.left_with)
    if dist.is_initialized() and dist.get_backend() == "gloo":
        shutdown()
    elif _gloo is not None:
        group, _gloo = _gloo, None
        dist.destroy_process_group(group)


def _lost(text: str) -> PeerLost:
    global _broken
    _broken = True
    return PeerLost(text)


def _collective(operation, *args, **kwargs) -> None:
    try:
        operation(*args, **kwargs)
    except RuntimeError as error:
        # A fault of this rank's own GPU, of which a collective may be the first to hear, is no lost peer.
        if faults.fault_of(error) in (None, faults.RANKS_LOST):
            raise _lost(f"another rank is gone ({faults.line_of(error)})") from None
        raise


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
    for gradients in _by_dtype(p.grad for p in parameters if p.grad is not None):
        flat = torch.cat([g.flatten() for g in gradients])
        _collective(dist.all_reduce, flat)
        means = flat.div_(rt.world).split([g.numel() for g in gradients])
        for g, mean in zip(gradients, means, strict=True):
            g.copy_(mean.view_as(g))
