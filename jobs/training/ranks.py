"""Ranks before there is a process group: what makes one script run alike on 1 process, torchrun and Slurm tasks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from data.files import say
from jobs.run.faults import line_of
from jobs.run.own_job import job_id, restart_count
from jobs.run.stopping import PeerLost, exit_code, raise_if_asked

# Longest wait for a rank that neither answers nor dies (one that dies is noticed at once), and for all ranks to meet.
COLLECTIVE_TIMEOUT = timedelta(minutes=15)
SILENT_S = 10.0  # seconds that ranks are waited for without a word
FIRST_PSEUDO_STEP = 0xFFFFFFF0  # Slurm's batch, interactive and extern "steps" have ids from here on


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


def slurm_address() -> str:
    """Where rank 0 of a Slurm step is: on its first node.

    Its name must resolve; where it does not, the address of the node that srun was called on serves, which for a batch
    job is the same node.
    """
    env = os.environ
    if env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")) == "1":
        return "127.0.0.1"
    launched_on = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    address = first_host(env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST", "")) or launched_on
    try:
        socket.getaddrinfo(address, None)
    except OSError:
        return launched_on or address
    return address


def slurm_ports() -> list[int]:
    """Ports at which the ranks of a Slurm step may meet, in the order in which they are tried: a function of job, step
    and restart, so that neighbours on a node rarely meet and a port that was busy is not tried first again.

    Below the ports that the kernel gives to outgoing connections, any of which may be taken at any moment.
    """
    low, high = 10240, 32768
    with contextlib.suppress(OSError, ValueError, IndexError):
        given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        high = min(high, given) if given >= low + 2048 else high
    about = f"{job_id()} {os.environ.get('SLURM_STEP_ID', '')} {restart_count()}"
    digest = hashlib.sha256(about.encode()).digest()
    numbers = [int.from_bytes(digest[k : k + 2], "big") for k in range(0, len(digest), 2)]
    return list(dict.fromkeys(low + number % (high - low) for number in numbers))


def _token() -> str:
    """What tells this run of this step from all others that may listen on one of its ports."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID")
    return " ".join(os.environ.get(name, "") for name in names)


def _answer(server: socket.socket, answer: bytes) -> None:
    """Say the same to everybody who calls, until the socket is closed."""
    with contextlib.suppress(OSError):
        while True:
            line, _ = server.accept()
            with contextlib.suppress(OSError), line:
                line.settimeout(2)
                line.sendall(answer)


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
        env, of_slurm = os.environ, "RANK" not in os.environ
        if not of_slurm and not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
            raise ValueError("WORLD_SIZE is set but MASTER_ADDR or MASTER_PORT is not; start with torchrun or srun")
        self.address = env.get("MASTER_ADDR") or slurm_address()
        self.ports = [int(env["MASTER_PORT"])] if env.get("MASTER_PORT") else slurm_ports()
        try:
            if env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun's own, which is there
                self.store = next(dist.rendezvous("env://", self.rank, self.world, timeout=COLLECTIVE_TIMEOUT))[0]
            else:
                self.store = self._meet()
        except RuntimeError as error:
            raise PeerLost(self.not_met(error)) from None

    def _meet(self) -> dist.Store:
        """The store of rank 0, once all ranks are there. Signals are obeyed meanwhile; who is waited for is said."""
        began, told, store = time.monotonic(), False, None
        with contextlib.ExitStack() as beacon:
            while True:
                raise_if_asked()
                if store is None and (store := self._host(beacon) if self.rank == 0 else self._find()) is not None:
                    store.add("here", 1)
                here = 0 if store is None else store.add("here", 0)
                if store is not None and (self.rank != 0 or here >= self.world):
                    return store
                missing = (
                    f"{self.world - here} of {self.world} ranks are missing" if store else
                    "no port is free" if self.rank == 0 else "rank 0 is not there"
                )  # fmt: skip
                waited = time.monotonic() - began
                if waited > COLLECTIVE_TIMEOUT.total_seconds():
                    raise RuntimeError(missing)
                if waited > SILENT_S and not told:
                    told = True
                    say(f"waiting at {self._where()}: {missing}; in an interactive shell start with srun", sys.stderr)
                time.sleep(0.1)

    def _host(self, beacon: contextlib.ExitStack) -> dist.Store | None:
        """Rank 0: a store at a port that is free, and at the first free one of the known ports the word where it is.

        The store itself is not looked for at the known ports: what listens there may be a stranger, and a store's
        client waits for a stranger's answer without end.
        """
        for port in self.ports:
            with contextlib.suppress(OSError):  # somebody else has it
                server = beacon.enter_context(socket.create_server(("", port)))
                beacon.callback(server.shutdown, socket.SHUT_RDWR)  # wakes the thread below
                store = dist.TCPStore(self.address, 0, self.world, True, COLLECTIVE_TIMEOUT, wait_for_workers=False)
                answer = f"{_token()}\n{store.port}\n".encode()
                threading.Thread(target=_answer, args=(server, answer), daemon=True, name="meeting").start()
                return store
        return None

    def _find(self) -> dist.Store | None:
        """Another rank: the store of rank 0, None while that is not there."""
        for port in self.ports:
            with contextlib.suppress(OSError, ValueError):  # nobody listens there, or somebody else
                with socket.create_connection((self.address, port), timeout=2) as line, line.makefile("rb") as text:
                    token, where = text.readline(200).decode().strip(), text.readline(10)
                if token == _token().strip():
                    return dist.TCPStore(
                        self.address, int(where), self.world, False, COLLECTIVE_TIMEOUT, wait_for_workers=False
                    )
        return None

    def _where(self) -> str:
        more = f" and {len(self.ports) - 1} more" if len(self.ports) > 1 else ""
        return f"{self.address}:{self.ports[0]}{more}"

    def not_met(self, error: BaseException) -> str:
        """One line for ranks that did not find each other."""
        return f"the {self.world} ranks did not meet at {self._where()} ({line_of(error)})"

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


# --- collectives; all do nothing on a single process ------------------------------------------------------------------
def wait_for(condition: Path | Callable[[], object], what: str, seconds: float, poll: float = 0.5) -> None:
    """Wait, without a collective, until a path exists or `condition()` is true. TimeoutError, naming `what`."""
    met = condition if callable(condition) else condition.exists
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}; see the log of rank 0")
        time.sleep(poll)
