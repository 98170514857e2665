"""Ranks, reductions between real gloo processes, lost peers, randomness, rows, precision, watchdog."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import forks
import pytest
import torch
import torch.distributed as dist

from jobs.training import collectives, devices, randomness, ranks, upkeep, watchdog
from jobs.training.ranks import PeerLost

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_", "SLURM_", "GLOO_")


def clean_environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(RANK_VARIABLES)} | {"OMP_NUM_THREADS": "1"}


def test_exit_codes_survive_a_collective_right_before_the_end():
    """The group is left at every exit; else gloo's threads abort the process now and then (code 134)."""
    code = "collectives.agree_max(rt, [1])\nsys.exit(77)"
    processes = start(code, torchrun_variables(2))
    assert [p.wait(300) for p in processes] == [77, 77], [p.stderr.read() for p in processes]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def torchrun_variables(world: int) -> list[dict]:
    port = free_port()
    return [
        dict(
            RANK=str(r),
            WORLD_SIZE=str(world),
            LOCAL_RANK=str(r),
            LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for r in range(world)
    ]


def start(code: str, variables: list[dict]) -> list[forks.Forked]:
    """One process per rank, which runs `code` with rt in scope."""
    code = (
        "import json, os, sys, time, torch\nfrom jobs.training import collectives, ranks\nrt = "
        "collectives.init_runtime(threads=1)\n" + code + "\ncollectives.shutdown(rt)\n"
    )
    return [
        forks.Forked(["-c", code], env=clean_environment() | v)
        for v in variables
    ]  # fmt: skip


def results(processes: list[forks.Forked], seconds: float = 300) -> list[dict]:
    end, found = time.monotonic() + seconds, []
    try:
        for p in processes:
            out, err = p.communicate(timeout=max(end - time.monotonic(), 1))
            assert p.returncode == 0, err
            found.append(json.loads(out.splitlines()[-1]))
    finally:
        for p in processes:
            if p.poll() is None:
                p.kill()
    return found


# --- two ranks --------------------------------------------------------------------------------------------------------
COLLECTIVES = """
torch.manual_seed(0)
net = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 2), "b": torch.nn.Linear(2, 2).double(),
                           "c": torch.nn.Linear(4, 1, bias=False), "d": torch.nn.Linear(2, 1, bias=False)})
for i, p in enumerate(net.parameters()):
    p.grad = torch.full_like(p, float((rt.rank + 1) * (i + 1)))
if rt.rank == 1:
    net["c"].weight.grad = None    # one rank has no gradient here
net["d"].weight.grad = None        # and none has one there
storage = net["a"].weight.grad.data_ptr()
collectives.reduce_mean_gradients(rt, net.parameters())
same_storage = storage == net["a"].weight.grad.data_ptr()
grads = [sorted(set(p.grad.flatten().tolist())) for p in net.parameters()]
dtypes = [str(p.grad.dtype) for p in net.parameters()]

total = torch.tensor([1.0 + rt.rank, 10.0])
returned = collectives.reduce_sum(rt, total)
print(json.dumps(dict(
    agreed=collectives.agree_max(rt, [rt.rank, 3 - rt.rank, -5]), first=collectives.from_rank_0(rt, 40 + rt.rank),
    sum=total.tolist(), in_place=returned is total, same_storage=same_storage, grads=grads, dtypes=dtypes,
    big=collectives.agree_max(rt, [2**60 + rt.rank])[0],
    threads=torch.get_num_threads(),
)))
"""


def check_collectives(found: list[dict]) -> None:
    for r in found:
        assert r["agreed"] == [1, 3, -5] and r["first"] == 40 and r["big"] == 2**60 + 1
        assert r["sum"] == [3.0, 20.0] and r["in_place"] and r["same_storage"]
        # means of (i+1) and 2(i+1); 'c' is there on rank 0 only, 'd' nowhere
        assert r["grads"] == [[1.5], [3.0], [4.5], [6.0], [2.5], [0.0]]
        assert r["dtypes"] == ["torch.float32"] * 2 + ["torch.float64"] * 2 + ["torch.float32"] * 2
        assert r["threads"] == 1


def test_two_ranks_from_torchrun_variables():
    check_collectives(results(start(COLLECTIVES, torchrun_variables(2))))


@pytest.fixture
def twins(monkeypatch):
    """All-reduce and broadcast of two ranks in this process: the other holds twice what this one holds, and 1."""
    asked = []

    def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None):
        asked.append((op, group, tensor.numel()))
        tensor.copy_(tensor * 3 if op == dist.ReduceOp.SUM else (tensor * 2).maximum(tensor))

    def broadcast(tensor, src, group=None):
        asked.append((src, group, tensor.numel()))
        tensor.mul_(2) if src else None

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "broadcast", broadcast)
    monkeypatch.setattr(collectives, "_gloo", "side group")
    return asked


def test_gradients_are_the_mean_over_the_ranks(twins):
    """One flat reduction per type; a gradient that is missing is zero, as it may be there on another rank."""
    rt = ranks.Runtime(0, 2, 0, CPU, 1)
    net = torch.nn.ModuleList([torch.nn.Linear(3, 2), torch.nn.Linear(2, 2).double(), torch.nn.Linear(4, 1)])
    before = []
    for i, p in enumerate(net.parameters()):
        p.grad = None if i > 3 else torch.arange(p.numel()).reshape(p.shape).to(p.dtype) + i
        before.append(torch.zeros_like(p) if p.grad is None else p.grad.clone())
    collectives.reduce_mean_gradients(rt, net.parameters())
    for p, old in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad, old * 1.5) and p.grad.dtype == p.dtype
    assert [number for _, _, number in twins] == [6 + 2 + 4 + 1, 4 + 2]


def test_decisions_are_the_largest_and_rank_0s_on_the_side_group(twins):
    rt = ranks.Runtime(0, 2, 0, CPU, 1)
    assert collectives.agree_max(rt, [0, 3, 2**60]) == [0, 6, 2**61] and collectives.from_rank_0(rt, 40) == 40
    assert collectives.reduce_sum(rt, torch.tensor([2.0])).tolist() == [6.0]
    assert twins == [(dist.ReduceOp.MAX, "side group", 3), (0, "side group", 1), (dist.ReduceOp.SUM, None, 1)]


def slurm_variables(world: int, job: int, **more: str) -> list[dict]:
    return [
        dict(
            SLURM_JOB_ID=str(job),
            SLURM_STEP_ID="0",
            SLURM_PROCID=str(r),
            SLURM_LOCALID=str(r),
            SLURM_STEP_NUM_TASKS=str(world),
            SLURM_STEP_TASKS_PER_NODE=str(world),
            SLURM_STEP_NUM_NODES="1",
            SLURM_NODEID="0",
            SLURM_STEP_NODELIST="no-such-node-[1-2]",
            **more,
        )
        for r in range(world)
    ]


def test_two_ranks_from_slurm_variables():
    """Of a step on one node, whose name nobody can resolve."""
    check_collectives(results(start(COLLECTIVES, slurm_variables(2, job=os.getpid()))))


LOOP = """
print("ready", flush=True)
try:
    for i in range(10**9):
        {call}
        time.sleep(0.01)
except ranks.PeerLost as error:
    print(json.dumps(dict(code=error.exit_code, text=str(error))), flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("call", [
    "collectives.agree_max(rt, [i])", "collectives.reduce_sum(rt, torch.ones(1000))", "collectives.from_rank_0(rt, i)",
])  # fmt: skip
def test_a_killed_peer_is_noticed(call):
    processes = start(LOOP.format(call=call), torchrun_variables(2))
    for p in processes:
        assert p.stdout.readline() == "ready\n"
    processes[1].send_signal(signal.SIGKILL)
    processes[1].wait(10)
    (found,) = results(processes[:1])
    assert found["code"] == 75 and "another rank is gone" in found["text"] and "\n" not in found["text"]
    processes[1].communicate()


LEFT = """
from jobs.run import attempt, stopping
stopping.install_handlers()
def main():
    print(__import__("resource").getrlimit(4)[0], flush=True)
    while True:
        collectives.agree_max(rt, [1])
sys.exit(attempt.report_and_code(main))
"""


def test_the_others_leave_in_order_when_a_rank_is_killed():
    """By their own code, not by an abort in the threads of a group that is no more; and nobody leaves a core file."""
    code = "import resource; resource.setrlimit(4, (resource.getrlimit(4)[1],) * 2)\n"  # as where all may leave one
    code += "import torch.distributed as dist\ndist.destroy_process_group = lambda *a: os.abort()\n" + LEFT
    processes = start(code, torchrun_variables(3))
    for p in processes:
        assert p.stdout.readline() == "0\n"
    processes[1].send_signal(signal.SIGKILL)
    assert [processes[0].wait(60), processes[2].wait(60)] == [75, 75]
    assert "another rank is gone" in processes[0].stderr.read()
    for p in processes:
        p.communicate()


def test_core_files_are_there_for_who_asks(environment):
    code = "from jobs.run import stopping as s; import resource as r; s.install_handlers(); print(r.getrlimit(4)[0])"
    hard = subprocess.run(["bash", "-c", "ulimit -H -c"], capture_output=True, text=True, check=True).stdout.strip()
    for asked, soft in (("", "0"), ("1", "-1" if hard == "unlimited" else str(int(hard) * 1024))):
        done = subprocess.run(
            ["bash", "-c", f'ulimit -S -c {hard}; exec "$0" -c "$1"', sys.executable, code],
            env=clean_environment() | {"BRAIN_CORES": asked}, cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == soft


def test_a_peer_that_never_comes_is_given_up():
    code = """
import datetime, sys
from jobs.training import collectives, ranks
ranks.COLLECTIVE_TIMEOUT = collectives.COLLECTIVE_TIMEOUT = datetime.timedelta(seconds=2)
try:
    collectives.init_runtime(1)
except ranks.PeerLost as error:
    sys.exit(f"lost: {error}")
"""
    environment = clean_environment() | torchrun_variables(2)[0]
    done = forks.run(["-c", code], environment)
    assert done.returncode == 1
    assert f"did not meet at 127.0.0.1:{environment['MASTER_PORT']}" in done.stderr.splitlines()[-1]


# --- a single process -------------------------------------------------------------------------------------------------
def test_a_single_process_has_no_group_and_reductions_do_nothing(environment):
    rt = collectives.init_runtime(threads=1)
    assert (rt.rank, rt.world, rt.local_rank, rt.threads) == (0, 1, 0, 1)
    assert not torch.distributed.is_initialized()
    tensor, net = torch.ones(3), torch.nn.Linear(2, 2)
    assert collectives.reduce_sum(rt, tensor) is tensor and tensor.tolist() == [1, 1, 1]
    assert collectives.agree_max(rt, [1, 2]) == [1, 2] and collectives.from_rank_0(rt, 3) == 3
    net.weight.grad = torch.full((2, 2), 3.0)
    collectives.reduce_mean_gradients(rt, list(net.parameters()))
    assert net.weight.grad.eq(3).all() and net.bias.grad.eq(0).all()  # as on two ranks
    collectives.shutdown(rt)
    assert devices.memory(CPU) == {} and devices.facts(rt)["torch"] == torch.__version__


# --- who am I ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def environment(monkeypatch):
    """An environment without ranks; call it with variables to set them."""
    for name in [k for k in os.environ if k.startswith(RANK_VARIABLES)]:
        monkeypatch.delenv(name)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables


STEP = dict(
    SLURM_JOB_ID="5", SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="4", SLURM_NTASKS="4"
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        (dict(RANK="2", WORLD_SIZE="4", LOCAL_RANK="1"), (2, 4, 1)),
        (STEP, (3, 4, 1)),
        (STEP | dict(RANK="0", WORLD_SIZE="2", LOCAL_RANK="0"), (0, 2, 0)),  # torchrun inside a step
        (
            STEP | dict(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0"),
            (0, 1, 0),
        ),  # srun -n1 in a job of four
        (dict(SLURM_JOB_ID="5", SLURM_PROCID="0", SLURM_NTASKS="4", SLURM_LOCALID="0"), (0, 1, 0)),  # the batch shell
        (STEP | dict(SLURM_STEP_ID="4294967290", SLURM_PROCID="0"), (0, 1, 0)),  # an salloc shell (interactive step)
        (dict(SLURM_JOB_ID="5", SLURM_NTASKS="4", SLURM_NNODES="2"), (0, 1, 0)),
        (dict(RANK="2"), (0, 1, 0)),
        (dict(WORLD_SIZE="4"), (0, 1, 0)),
        (dict(RANK="2", WORLD_SIZE="4"), (2, 4, 0)),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NUM_TASKS"}, (3, 4, 1)),  # an older Slurm
    ],
)
def test_ranks_from_the_environment(environment, variables, expected):
    environment(**variables)
    assert ranks.ranks() == expected


@pytest.mark.parametrize(("layout", "node", "expected"), [
    ("4", "0", 4), ("2(x3),1", "0", 2), ("2(x3),1", "2", 2), ("2(x3),1", "3", 1), ("", "0", 1),
])  # fmt: skip
def test_local_world_of_a_slurm_step(environment, layout, node, expected):
    environment(**STEP, SLURM_STEP_TASKS_PER_NODE=layout, SLURM_NODEID=node)
    assert ranks.local_world(4) == expected
    environment(LOCAL_WORLD_SIZE="7")
    assert ranks.local_world(8) == 7


def test_ranks_of_nobody_are_alone_on_their_nodes(environment):
    """RANK and WORLD_SIZE set by hand, also in the batch shell of a job: nothing says how many there are on each
    node."""
    environment(RANK="2", WORLD_SIZE="4")
    assert ranks.local_world(4) == 1 and ranks.local_world(1) == 1
    environment(SLURM_STEP_TASKS_PER_NODE="4", SLURM_NODEID="0")
    assert ranks.local_world(4) == 1


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a100-3", "a100-3"),
        ("a100-[3-5,7],b1", "a100-3"),
        ("n[01-04]", "n01"),
        ("b1,a[2-3]", "b1"),
        ("n[7,9]", "n7"),
        ("r[1-2]n[3-4]", "r1n3"),
        ("gpu-a.example.org,x", "gpu-a.example.org"),
        ("", ""),
    ],
)
def test_first_host_of_a_host_list(nodes, first):
    assert ranks.first_host(nodes) == first


def test_the_address_of_several_nodes(environment):
    environment(SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="localhost,b", SLURM_LAUNCH_NODE_IPADDR="10.0.0.9")
    assert ranks.slurm_address() == "localhost"
    environment(SLURM_STEP_NODELIST="no-such-host-[1-2].invalid")
    assert ranks.slurm_address() == "10.0.0.9"


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        (
            dict(SLURM_STEP_NUM_NODES="1", SLURM_NNODES="4", SLURM_STEP_NODELIST="10.1.0.1"),
            "127.0.0.1",
        ),  # a step on one node
        (dict(SLURM_NNODES="1", SLURM_JOB_NODELIST="10.1.0.1"), "127.0.0.1"),
        (dict(SLURM_NNODES="2", SLURM_JOB_NODELIST="10.2.0.1,10.2.0.2"), "10.2.0.1"),
        (
            dict(SLURM_STEP_NUM_NODES="2", SLURM_STEP_NODELIST="10.1.0.1,10.1.0.2", SLURM_JOB_NODELIST="10.2.0.1"),
            "10.1.0.1",
        ),
        (dict(SLURM_STEP_NUM_NODES="2", SLURM_LAUNCH_NODE_IPADDR="10.0.0.9"), "10.0.0.9"),
    ],
)
def test_where_rank_0_is(environment, variables, address):
    environment(**variables)
    assert ranks.slurm_address() == address


def test_neighbouring_jobs_steps_and_restarts_have_ports_of_their_own(environment):
    """... in turn, so that one that is busy is not the end; none that the kernel gives to outgoing connections."""
    first, every = [], set()
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for job in range(2_000_000, 2_000_300):
        for step in range(2):
            for restart in range(2):
                environment(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step), SLURM_RESTART_COUNT=str(restart))
                ports = ranks.slurm_ports()
                assert ports == ranks.slurm_ports() and len(set(ports)) == len(ports) > 8
                first.append(ports[0])
                every |= set(ports)
    assert len(set(first)) > 1100  # of 1200, by chance
    assert 1024 < min(every) < 11000 and max(every) < min(low if low > 12288 else 32768, 32768)


def test_the_ports_stay_below_those_of_outgoing_connections(environment, monkeypatch):
    environment(SLURM_JOB_ID="7", SLURM_STEP_ID="0")
    for text, below in (("16000\t60999\n", 16000), ("1024\t65535\n", 32768), ("nonsense", 32768)):
        monkeypatch.setattr(ranks.Path, "read_text", lambda self, text=text: text)
        assert min(ranks.slurm_ports()) >= 10240 and max(ranks.slurm_ports()) < below


WAITING_RANK = """
import os, signal, sys, time
from datetime import timedelta
from jobs.run import stopping
stopping.install_handlers()
from jobs.run.attempt import report_and_code
from jobs.training import ranks
ranks.slurm_ports = lambda: [int(port) for port in os.environ["PORTS"].split()]
ranks.SILENT_S = 1.0
def main():
    print("begins", flush=True)
    with ranks.Meeting() as meeting:
        print("met", ranks._token(), flush=True)
    return 0
sys.exit(report_and_code(main))
"""


def of_a_step(world: int, ports: list[str], job: int = 7) -> list[dict]:
    return [v | {"PORTS": " ".join(ports)} for v in slurm_variables(world, job=job, SLURM_LAUNCH_NODE_IPADDR="")]


def test_ranks_meet_where_the_first_ports_are_busy():
    """One by a server that is mute, one by the store of another job, one by the ranks of another job, who wait."""
    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as theirs:
        other = dist.TCPStore("127.0.0.1", 0, 1, True, wait_for_workers=False)
        answer = (theirs, f"8 0 0 \n{other.port}\n".encode())
        threading.Thread(target=ranks._answer, args=answer, daemon=True).start()
        busy = [str(port) for port in (mute.getsockname()[1], other.port, theirs.getsockname()[1])]
        variables = of_a_step(3, [*busy, free_port()])
        processes = [forks.Forked(["-c", WAITING_RANK], env=clean_environment() | v) for v in variables]
        ends = [p.communicate(timeout=120) for p in processes]
        theirs.shutdown(socket.SHUT_RDWR)
    assert [p.returncode for p in processes] == [0, 0, 0], ends
    assert all("met 7 0" in out for out, _ in ends) and other.add("here", 0) == 0


def test_a_rank_that_waits_says_so_and_obeys():
    """As in an interactive shell of three tasks, of which one is this shell."""
    (variables, *_) = of_a_step(3, [free_port()])
    p = forks.Forked(["-c", WAITING_RANK], env=clean_environment() | variables)
    assert p.stdout.readline() == "begins\n"
    line = p.stderr.readline()
    assert "2 of 3 ranks are missing" in line and "start with srun" in line
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 85 and "Stopped before the training began (TERM)" in err


def test_world_without_a_meeting_point_is_one_line(environment):
    environment(RANK="0", WORLD_SIZE="2")
    with pytest.raises(ValueError, match="torchrun or srun"):
        collectives.init_runtime(1)


def test_default_threads(environment, monkeypatch):
    monkeypatch.setattr(collectives.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert devices.default_threads(1) == 8 and devices.default_threads(2) == 4 and devices.default_threads(16) == 1
    environment(SLURM_CPUS_PER_TASK="3")
    assert devices.default_threads(4) == 3
    environment(SLURM_CPUS_PER_TASK="64")
    assert devices.default_threads(1) == 8  # more than it may use
    environment(SLURM_CPUS_PER_TASK="3", OMP_NUM_THREADS="2,1")
    assert devices.default_threads(1) == 2
    environment(OMP_NUM_THREADS="16")
    assert devices.default_threads(1) == 3
    environment(SLURM_CPUS_PER_TASK="", OMP_NUM_THREADS="1", TORCHELASTIC_RUN_ID="x")
    assert devices.default_threads(1) == 1
    assert devices.default_threads(2) == 4  # torchrun has set it, and nobody else


def test_threads_are_pinned_and_told(environment, monkeypatch):
    pinned = []
    monkeypatch.setattr(torch, "set_num_threads", pinned.append)
    monkeypatch.setattr(collectives, "default_threads", lambda here: 40 + here)
    assert (collectives.init_runtime(3).threads, collectives.init_runtime().threads, pinned) == (3, 41, [3, 41])
    about = devices.facts(ranks.Runtime(1, 4, 1, CPU, 3))
    assert about == {"torch": torch.__version__, "threads": 3, "world": 4, "device": "cpu"}


def test_a_rank_joins_with_its_own_numbers(environment, monkeypatch):
    """Two of four ranks are here; the group hears where all ranks are on one node."""
    joined = []
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(collectives, "_join_ranks", lambda *args: joined.append(args))
    environment(RANK="2", WORLD_SIZE="4", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")
    rt = collectives.init_runtime(3, SimpleNamespace(store="store"), CPU)
    assert (rt.rank, rt.world, rt.local_rank, rt.threads) == (2, 4, 1, 3)
    environment(LOCAL_WORLD_SIZE="4")
    collectives.init_runtime(3, SimpleNamespace(store="store"), CPU)
    assert joined == [("store", 2, 4, False, False), ("store", 2, 4, True, False)]


def test_a_hanging_collective_ends_before_the_watchdog_bites():
    assert timedelta(minutes=5) <= ranks.COLLECTIVE_TIMEOUT < timedelta(seconds=upkeep.HANG_SECONDS)


# --- the meeting before there is a group ------------------------------------------------------------------------------
def meetings(monkeypatch, world: int = 2) -> list[ranks.Meeting]:
    """Of ranks in one process, at a store of its own."""
    store, made = dist.HashStore(), []
    monkeypatch.setattr(ranks.Meeting, "_meet", lambda meeting: store)
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds, real=time.sleep: real(0.001))
    for rank in range(world):
        for name, value in dict(RANK=rank, WORLD_SIZE=world, MASTER_ADDR="x", MASTER_PORT=1).items():
            monkeypatch.setenv(name, str(value))
        made.append(ranks.Meeting())
    return made


def test_rank_0_works_first_and_the_others_find_what_it_made(environment, monkeypatch):
    first, second = meetings(monkeypatch)
    order, answers = [], []
    other = threading.Thread(target=lambda: answers.extend(
        [second.first(lambda: order.append(1) or "b"), second.first(lambda: order.append(1) or "d")]))  # fmt: skip
    other.start()
    time.sleep(0.05)
    assert first.first(lambda: order.append(0) or "a") == "a"
    while len(order) < 2:
        time.sleep(0)
    time.sleep(0.05)
    assert order == [0, 1]  # the second piece of work waits for rank 0 anew
    assert first.first(lambda: order.append(0) or "c") == "c"
    other.join(20)
    assert order == [0, 1, 0, 1] and answers == ["b", "d"]


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError("x"), 1), (PeerLost("x"), 75), (SystemExit(78), 78), (None, 0)]
)
def test_a_rank_0_that_leaves_takes_the_others_along(environment, monkeypatch, error, code):
    first, *others = meetings(monkeypatch, world=3)
    codes = []

    def wait(meeting) -> None:
        try:
            meeting.first(lambda: pytest.fail("there is nothing to find"))
        except SystemExit as leaving:
            codes.append(leaving.code)

    threads = [threading.Thread(target=wait, args=(meeting,)) for meeting in others]
    for thread in threads:
        thread.start()
    try:
        with first:
            if error is not None:
                raise error
    except (Exception, SystemExit) as raised:
        assert raised is error
    for thread in threads:
        thread.join(20)
    assert codes == [code, code] and first.store.add("seen", 0) == 2  # it has waited for both to see it


def test_one_process_meets_nobody(environment):
    meeting = ranks.Meeting()
    assert meeting.store is None and meeting.first(lambda: "a") == "a"


# --- randomness and rows ----------------------------------------------------------------------------------------------
FREED = """
import resource, sys, torch
from jobs.training import collectives
if sys.argv[1] == "kept":
    collectives.init_runtime(1)
x = torch.ones(1 << 24)  # 64 MiB: glibc maps every such block anew
for _ in range(40):  # until a block of this size lies where nothing small comes between
    y = x * 2
    del y
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    y = x * 2
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU keeps its own memory")
def test_freed_memory_is_used_again():
    faults = {}
    for how in ("kept", "as it is"):
        done = subprocess.run([sys.executable, "-c", FREED, how], capture_output=True, text=True, cwd=ROOT)
        assert not done.returncode, done.stderr
        faults[how] = int(done.stdout)
    assert faults["kept"] < 100
    if faults["as it is"] < 100:
        pytest.skip("this C library keeps freed memory by itself")


def test_seeds_are_pinned():
    """Runs begun by an earlier version must go on with the same draws."""
    expected = int.from_bytes(hashlib.blake2b(b"7/1280/noise", digest_size=8).digest(), "little") >> 1
    assert randomness.seed_of(7, 1280, "noise") == expected < 2**63
    seeds = {randomness.seed_of(s, n, p) for s in range(5) for n in range(200) for p in ("G", "D", "noise")}
    assert len(seeds) == 3000


def test_a_generator_is_a_function_of_its_arguments():
    a = torch.randn(5, generator=randomness.generator(1, 64, "z"))
    torch.manual_seed(99)
    assert torch.equal(a, torch.randn(5, generator=randomness.generator(1, 64, "z")))
    for other in [(2, 64, "z"), (1, 128, "z"), (1, 64, "w"), (64, 1, "z")]:
        assert not torch.equal(a, torch.randn(5, generator=randomness.generator(*other)))
    assert randomness.generator(1, 64, "z").initial_seed() == randomness.seed_of(1, 64, "z")


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(8, 1, 1), (8, 2, 1), (24, 2, 3), (64, 4, 4)])
def test_rows_cover_the_batch_once_in_order(batch, world, accumulate):
    mine = [randomness.rows(batch, rank, world, accumulate) for rank in range(world)]
    assert all(len(r) == accumulate for r in mine)
    assert [i for rank in mine for a, b in rank for i in range(a, b)] == list(range(batch))
    assert len({b - a for rank in mine for a, b in rank}) == 1


@pytest.mark.parametrize(("batch", "world", "accumulate"), [(9, 2, 1), (8, 3, 1), (8, 2, 3), (0, 1, 1)])
def test_rows_that_do_not_divide_name_the_numbers(batch, world, accumulate):
    with pytest.raises(
        ValueError, match=rf"{batch} .* {world} ranks x {accumulate} .* multiple of {world * accumulate}"
    ):
        randomness.rows(batch, 0, world, accumulate)


# --- precision --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f bf16", False),
        (None, False),
        ("", False),
    ],
)
def test_whether_the_cpu_multiplies_bf16(monkeypatch, flags, fast):
    def opened(path):
        assert path == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(path)
        return io.StringIO(f"processor : 0\nmodel name : x\nflags\t\t: {flags}\n" if flags else "processor : 0\n")

    monkeypatch.setattr(devices, "open", opened, raising=False)
    assert devices.cpu_has_bf16.__wrapped__() is fast


def test_precision(monkeypatch):
    assert devices.precision_dtype("fp32", CPU) is torch.float32
    assert devices.precision_dtype("bf16", "cpu") is torch.bfloat16
    assert devices.precision_dtype("fp16", CPU) is torch.float16
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "cpu_has_bf16", lambda fast=fast: fast)
        assert devices.precision_dtype("auto", CPU) is expected
    for capability, expected in (((7, 0), torch.float32), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert devices.precision_dtype("auto", torch.device("cuda", 0)) is expected
    with pytest.raises(ValueError, match="auto, bf16"):
        devices.precision_dtype("int8", CPU)


# --- waiting and watching ---------------------------------------------------------------------------------------------
def test_wait_for(tmp_path):
    (tmp_path / "there").touch()
    ranks.wait_for(tmp_path / "there", "the pack", 0)
    left = iter([False, False, True])
    ranks.wait_for(lambda: next(left), "three looks", 10, poll=0)
    with pytest.raises(TimeoutError, match="the pack"):
        ranks.wait_for(tmp_path / "never", "the pack", 0.05, poll=0.01)


def hanging_collective(dog):
    time.sleep(60)


def patted(dog):
    for _ in range(8):
        time.sleep(0.4)
        dog.pat()


def stopped(dog):
    dog.stop()
    time.sleep(3)


@pytest.mark.parametrize(("body", "code"), [
    (hanging_collective, 75), (patted, 0), (stopped, 0),
])  # fmt: skip
def test_watchdog(body, code, tmp_path):
    pid = os.fork()  # not a new interpreter: importing torch takes seconds
    if pid == 0:
        sys.stderr = open(tmp_path / "err", "w")  # noqa: SIM115
        body(watchdog.Watchdog(2.5))
        os._exit(0)
    end = time.monotonic() + 300
    while (done := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if done[0] == 0:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert done[0] == pid and os.waitstatus_to_exitcode(done[1]) == code
    said = (tmp_path / "err").read_text()
    assert ("hanging_collective" in said and said.startswith("error: no step finished for 2.5 s")) == bool(code)


def test_peer_lost_keeps_other_errors_apart():
    def fail(error):
        raise error

    with pytest.raises(PeerLost, match="Connection closed"):
        collectives._collective(fail, RuntimeError("Connection closed by peer\nstack"))
    with pytest.raises(torch.OutOfMemoryError):
        collectives._collective(fail, torch.OutOfMemoryError("CUDA out of memory"))
