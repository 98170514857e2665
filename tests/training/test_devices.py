"""Which device a rank computes on: a GPU that was given is used, or the run says why not; all ranks agree.

There is no GPU here: torch.cuda is made to answer as that of a node with some GPUs, or to fail as it does.
"""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_runtime import CPU, environment, meetings, results, start, torchrun_variables  # noqa: F401

from jobs.predict import trained
from jobs.run.faults import GpuFault
from jobs.run.stopping import exit_code
from jobs.training import collectives, devices, ranks


class Card:
    """A GPU as torch.cuda shows it. `fails`: what its first kernel raises."""

    def __init__(self, uuid: str, name: str = "NVIDIA A100-PCIE-40GB", bus: int | None = None, fails: str = ""):
        self.name, self.uuid, self.fails = name, uuid, fails
        if bus is not None:
            self.pci_domain_id, self.pci_bus_id, self.pci_device_id = 0, bus, 0


class Node:
    """torch.cuda of a node with these cards; none: `why` is what torch says then."""

    def __init__(self, monkeypatch, *cards: Card, why: str = "No CUDA GPUs are available"):
        self.cards, self.current = cards, 0

        def init():
            if not self.cards:
                raise RuntimeError(why)

        def ones(*shape, device=None, **how):
            if torch.device(device or "cpu").type == "cuda" and (text := self.cards[self.current].fails):
                raise RuntimeError(text)
            return real(*shape, **how)

        real = torch.ones
        for name, value in dict(
            is_available=lambda: bool(self.cards), device_count=lambda: len(self.cards), init=init,
            get_device_properties=lambda index: self.cards[index], set_device=self.set_device,
        ).items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "ones", ones)

    def set_device(self, device) -> None:
        self.current = device if isinstance(device, int) else torch.device(device).index


ALONE = SimpleNamespace(local_rank=0, gather=lambda word: [word], first=lambda work: work())


# --- one rank ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({}, False),
        (dict(SLURM_JOB_ID="5", SLURM_NTASKS="1", SLURM_CPUS_PER_TASK="4"), False),
        (dict(SLURM_JOB_GPUS="0"), True),  # the number of the GPU, not how many
        (dict(SLURM_STEP_GPUS="3"), True),
        (dict(SLURM_GPUS_ON_NODE="1"), True),
        (dict(SLURM_GPUS_ON_NODE="0"), False),
        (dict(SLURM_GPUS="a100:2"), True),
        (dict(SLURM_GPUS_PER_TASK="1"), True),
        (dict(SLURM_JOB_GPUS="", SLURM_GPUS=""), False),
        (dict(CUDA_VISIBLE_DEVICES="0"), False),  # anybody may have set it
    ],
)
def test_what_slurm_says_of_gpus(environment, variables, given):  # noqa: F811
    environment(**variables)
    assert devices.gpu_given() is given


@pytest.mark.parametrize("why", [
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU", "No CUDA GPUs are available",
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
])  # fmt: skip
def test_a_gpu_that_was_given_is_used_or_the_run_says_why_not(environment, monkeypatch, why):  # noqa: F811
    Node(monkeypatch, why=why)
    assert devices.choose_device(ALONE) == CPU  # a laptop
    environment(SLURM_JOB_GPUS="0")
    with pytest.raises(GpuFault) as found:
        devices.choose_device(ALONE)
    said = str(found.value)
    assert exit_code(found.value) == 75 and why in said and "\n" not in said
    for words in (f"node {socket.gethostname()}", "driver ", f"torch {torch.__version__} for CUDA ", "--device cpu"):
        assert words in said
    assert devices.choose_device(ALONE, "cpu") == CPU


def test_a_gpu_that_was_asked_for_is_no_cpu_either(environment, monkeypatch):  # noqa: F811
    Node(monkeypatch)
    with pytest.raises(GpuFault, match="no usable GPU on node"):
        devices.choose_device(ALONE, "cuda")


def test_a_torch_without_cuda_says_so(environment, monkeypatch):  # noqa: F811
    Node(monkeypatch)

    def init():
        raise AssertionError("Torch not compiled with CUDA enabled")

    monkeypatch.setattr(torch.cuda, "init", init)
    environment(SLURM_GPUS_ON_NODE="1")
    with pytest.raises(GpuFault, match="not compiled with CUDA"):
        devices.choose_device(ALONE)


@pytest.mark.parametrize(("text", "code"), [
    ("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging", 75),
    ("CUDA error: uncorrectable ECC error encountered\nFor debugging", 75),
    ("CUDA error: out of memory\nFor debugging", 75),  # another process has it
    ("CUDA error: no kernel image is available for execution on the device\nFor debugging", 78),
])  # fmt: skip
def test_a_gpu_that_does_not_work_is_noticed_before_anything_is_made(environment, monkeypatch, text, code):  # noqa: F811
    Node(monkeypatch, Card("a", fails=text))
    for asked in ("auto", "cuda"):
        with pytest.raises(GpuFault) as found:
            devices.choose_device(ALONE, asked)
        assert found.value.exit_code == code and text.splitlines()[0] in str(found.value)
    assert devices.choose_device(ALONE, "cpu") == CPU


def test_a_task_takes_the_gpu_of_its_place(environment, monkeypatch):  # noqa: F811
    """It may see all GPUs of its node, or only its own, which then is number 0."""
    Node(monkeypatch, Card("a"), Card("b"))
    assert [devices.look_for_gpu(place, "auto")["uuid"] for place in (0, 1)] == ["a", "b"]
    Node(monkeypatch, Card("b"))
    assert devices.look_for_gpu(1, "auto") | {"place": 0} == dict(
        node=socket.gethostname(), kind="cuda", slice=False, index=0, name="NVIDIA A100-PCIE-40GB", uuid="b", place=0
    )
    said: list[str] = []
    assert devices.choose_device(ALONE, say=said.append) == torch.device("cuda", 0) and not said


@pytest.mark.parametrize(("name", "visible"), [("NVIDIA A100-SXM4-40GB MIG 1g.5gb", ""), ("NVIDIA A100", "MIG-c7")])
def test_a_slice_of_a_gpu_is_said(environment, monkeypatch, name, visible):  # noqa: F811
    said: list[str] = []
    Node(monkeypatch, Card("a", name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices.choose_device(ALONE, say=said.append).type == "cuda"
    assert len(said) == 1 and name in said[0] and "MIG" in said[0]


def test_predict_is_no_different(environment, monkeypatch, tmp_path):  # noqa: F811
    Node(monkeypatch)
    path, read = tmp_path / "w.safetensors", []
    monkeypatch.setattr(trained, "read_model", lambda path, device, **how: read.append(device))
    trained.open_model(path)
    environment(SLURM_JOB_GPUS="0")
    for device in ("auto", "cuda"):
        with pytest.raises(GpuFault, match="no usable GPU"):
            trained.open_model(path, device=device)
    trained.open_model(path, device="cpu")
    assert read == [CPU, CPU]


# --- several ranks ----------------------------------------------------------------------------------------------------
def seen(*about: dict) -> list[dict]:
    """What ranks on GPUs of one node tell of themselves, but for `about`."""
    base = dict(node="n1", kind="cuda", index=0, name="A100", slice=False, place=[0, 1, 0])
    return [base | dict(uuid=f"u{i}", place=[0, i, 0]) | each for i, each in enumerate(about)]


FAILED = dict(error="CUDA error: busy; driver 535", kernels=True)
MIG = dict(slice=True, name="A100 MIG 1g.5gb")
APART = [
    ("each its own", seen({}, {}), 0, ""),
    ("the same number on two nodes", seen({}, dict(node="n2")), 0, ""),
    ("one GPU", seen(dict(uuid="u"), dict(uuid="u")), 78, "ranks 0 and 1 share one GPU"),
    ("two of three", seen({}, dict(uuid="u"), dict(uuid="u")), 78, "ranks 1 and 2 share one GPU (A100)"),
    ("the fix", seen(dict(uuid="u"), dict(uuid="u")), 78, "--ntasks-per-node 2 --gres gpu:2"),
    ("busy, as another rank has it", seen(dict(uuid="u"), dict(uuid="u") | FAILED), 78, "share one GPU"),
    (
        "slices of one GPU",
        seen(MIG | dict(place=[0, 7, 0]), MIG | dict(place=[0, 7, 0])),
        78,
        "slices (MIG) of one GPU",
    ),
    ("slices of which torch does not say where", seen(*[MIG | dict(place=[None] * 3)] * 2), 78, "slices (MIG)"),
    ("slices of two GPUs", seen(MIG, MIG), 0, ""),
    ("one fails", seen({}, FAILED | dict(node="n2")), 75, "no usable GPU on node n2 (rank 1: CUDA error: busy"),
    ("no kernels", seen(FAILED | dict(kernels=False), {}), 78, "launch.py doctor"),
    (
        "a GPU and none",
        [*seen({}), dict(node="n2", kind="cpu", slice=False)],
        75,
        "rank 0 on n1: cuda, rank 1 on n2: cpu",
    ),
    ("none at all", [dict(node="n1", kind="cpu", slice=False)] * 2, 0, ""),
    ("a rank that is told nothing", [], 0, ""),
]


@pytest.mark.parametrize(("ranks_see", "code", "words"), [row[1:] for row in APART], ids=[row[0] for row in APART])
def test_what_the_ranks_see_together(ranks_see, code, words):
    if not code:
        devices.check_devices(ranks_see)
        return
    with pytest.raises(GpuFault) as found:
        devices.check_devices(json.loads(json.dumps(ranks_see)))
    assert found.value.exit_code == code and words in str(found.value) and "\n" not in str(found.value)


def test_rank_0_hears_every_word_in_the_order_of_the_ranks(environment, monkeypatch):  # noqa: F811
    first, *others = meetings(monkeypatch, world=3)
    assert [other.gather(f"word {other.rank}") for other in others] == [[], []]
    assert first.gather("word 0") == ["word 0", "word 1", "word 2"]
    assert others[1].gather("b") == others[0].gather("a") == [] and first.gather("c") == ["c", "a", "b"]


def test_a_rank_that_never_comes_is_lost(environment, monkeypatch):  # noqa: F811
    first, _ = meetings(monkeypatch)
    monkeypatch.setattr(ranks, "COLLECTIVE_TIMEOUT", ranks.timedelta(seconds=0.1))
    with pytest.raises(ranks.PeerLost, match="all 2 ranks"):
        first.gather("x")


def test_ranks_that_cannot_train_together_leave_with_one_word_and_one_code(environment, monkeypatch):  # noqa: F811
    first, second = meetings(monkeypatch)
    Node(monkeypatch, Card("a"))
    codes: list = []

    def other():
        with pytest.raises(SystemExit) as left:
            devices.choose_device(second)
        codes.append(left.value.code)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(GpuFault, match="share one GPU"), first:
        devices.choose_device(first)
    thread.join(20)
    assert codes == [78]


AGREE = """
import json, os, sys, torch
from jobs.run.attempt import report_and_code
from jobs.training import collectives, devices, ranks

if os.environ["RANK"] == "1" and os.environ.get("OTHER"):
    real = devices.look_for_gpu
    devices.look_for_gpu = lambda *a: real(*a) | json.loads(os.environ["OTHER"])

def main():
    with ranks.Meeting() as meeting:
        device = devices.choose_device(meeting, os.environ["ASKED"])
        assert not torch.distributed.is_initialized()
        rt = collectives.init_runtime(1, meeting, device)
        print(json.dumps([rt.device.type, collectives.agree_max(rt, [rt.rank])]))
        collectives.shutdown(rt)
        return 0

sys.exit(report_and_code(main))
"""


def agree(asked: str, **more: str):
    """(exit codes, standard output, standard error) of two real ranks that agree on their device and join."""
    import forks
    from test_runtime import clean_environment

    variables = [clean_environment() | v | {"ASKED": asked} | more for v in torchrun_variables(2)]
    processes = [forks.Forked(["-c", AGREE], env=v) for v in variables]
    said = [p.communicate(timeout=200) for p in processes]
    return [p.returncode for p in processes], [out for out, _ in said], [err for _, err in said]


def test_two_real_ranks_agree_before_they_join():
    codes, out, err = agree("auto")
    assert codes == [0, 0] and [json.loads(text) for text in out] == [["cpu", [1]]] * 2, err


def test_two_real_ranks_that_were_given_gpus_and_have_none_leave_together():
    codes, out, err = agree("auto", SLURM_JOB_GPUS="0,1")
    assert codes == [75, 75] and out == ["", ""] and err[1] == ""
    assert err[0].startswith("error: no usable GPU on node ") and err[0].count("\n") == 1
    assert agree("cpu", SLURM_JOB_GPUS="0,1")[0] == [0, 0]


def test_a_real_rank_with_a_gpu_beside_one_without_is_no_group():
    codes, _, err = agree("auto", OTHER=json.dumps(dict(kind="cuda", uuid="u", name="A100", index=0, place=[0, 0, 0])))
    assert codes == [75, 75] and "rank 0 on" in err[0] and ": cpu, rank 1 on" in err[0] and err[1] == ""


# --- faults that a collective hears of first --------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["CUDA error: unspecified launch failure\nx", "CUDA error: out of memory"])
def test_a_fault_of_the_own_gpu_is_no_lost_peer(text):
    def fail():
        raise RuntimeError(text)

    with pytest.raises(RuntimeError, match="CUDA error"):
        collectives._collective(fail)


def test_a_lost_peer_says_nccls_last_error():
    def fail():
        raise dist.DistBackendError(
            "NCCL error in: x.cpp:94, remote process exited\nncclRemoteError: a\nLast error:\nclosed by n2"
        )

    with pytest.raises(ranks.PeerLost, match=r"another rank is gone \(NCCL error in.*; last error: closed by n2\)"):
        collectives._collective(fail)
