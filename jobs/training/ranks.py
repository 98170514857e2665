"""Ranks before there is a process group: what makes one script run alike on 1 process, torchrun and Slurm tasks."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.run.faults import line_of
from jobs.run.stopping import TRANSIENT, exit_code

# Longest wait for a rank that neither answers nor dies (one that dies is noticed at once), and for all ranks to meet.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)
FIRST_PSEUDO_STEP = 0xFFFFFFF0  # Slurm's batch, interactive and extern "steps" have ids from here on


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
    """Whether srun started this process.

    The batch shell and an salloc shell have SLURM_NTASKS too, but are one process.
    """
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
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)  # may be empty, never None
    assert first is not None
    return re.sub(r"\[([^\]]*)\]", lambda found: re.split("[,-]", found[1])[0], first[0])


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

    Packing a data set may take longer than any collective may; polling has no such limit while rank 0 lives. The ranks
    meet at a key-value store on rank 0 (torchrun's own where there is one). With one process everything here does
    nothing. Used as a context manager: a rank 0 that leaves, whatever the reason, takes the others along with its exit
    code. Raises PeerLost if the ranks do not meet, ValueError where RANK and WORLD_SIZE are set and the meeting point
    is not.
    """

    def __init__(self):
        self.rank, self.world, self.local_rank = ranks()
        self.store: dist.Store | None = None
        self.count = 0
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
            raise PeerLost(f"rank 0 is gone ({line_of(error)})") from None
        return work()

    def gather(self, word: str) -> list[str]:
        """The word of every rank, by rank, on rank 0; nothing on the others. Raises PeerLost if one does not come."""
        self.count += 1
        store = self.store
        if store is None:
            return [word]
        store.set(f"word {self.count} of {self.rank}", word)
        if self.rank != 0:
            return []
        keys = [f"word {self.count} of {rank}" for rank in range(self.world)]
        seconds = COLLECTIVE_TIMEOUT.total_seconds()
        try:
            wait_for(lambda: store.check(keys), f"all {self.world} ranks", seconds, poll=0.05)
            return [store.get(key).decode() for key in keys]
        except (RuntimeError, TimeoutError) as error:
            raise PeerLost(f"another rank is gone ({line_of(error)})") from None

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


def _not_met(world: int, error: BaseException) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return f"the {world} ranks did not meet at {address} ({line_of(error)})"


# --- collectives; all do nothing on a single process ------------------------------------------------------------------
def wait_for(condition: Path | Callable[[], object], what: str, seconds: float, poll: float = 0.5) -> None:
    """Wait, without a collective, until a path exists or `condition()` is true. TimeoutError, naming `what`."""
    met = condition if callable(condition) else condition.exists
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}; see the log of rank 0")
        time.sleep(poll)
