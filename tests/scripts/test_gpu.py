"""What only a GPU shows, on one: pytest -m gpu. Without a GPU they are skipped; with BRAIN_REHEARSE=1 one case of each
runs on the CPU, as far as it can, so that no minute of a GPU goes to a typo in them."""

from __future__ import annotations

import contextlib
import math
import os

import fake_steps
import pytest
import tiny
import torch
import torch.distributed as dist
from inprocess import run_main
from test_on_cuda import DIFFUSION, GAN, VAE
from torch.profiler import ProfilerActivity, profile

import train_gan
from jobs.run import stopping
from jobs.training import collectives, ranks

pytestmark = pytest.mark.gpu

MORE = {"train_gan.py": (), "pretrain_vae.py": (), "train_diffusion.py": ("--space", "pixel")}
STALLS = ("cudaStreamSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense", "aten::nonzero")


@pytest.fixture(scope="module")
def device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if os.environ.get("BRAIN_REHEARSE"):
        return "cpu"
    pytest.skip("no usable GPU here")


def rehearse_only(device: str, wanted: bool) -> None:
    """On a CPU one case of each test shows whether it can run at all."""
    if device == "cpu" and not wanted:
        pytest.skip("one case of it is rehearsed")


def train(script: str, run, packs, device: str, kimg: float, *flags: str):
    return run_main(
        script, "--run", run, *MORE[script], "--device", device, "--total-kimg", f"{kimg:g}", *flags, packs=packs
    )


def check_rows(run, nimg: int) -> None:
    """A log without a gap or a double row, of finite losses."""
    rows = tiny.rows(run)
    seen = [row["nimg"] for row in rows]
    assert seen == sorted(set(seen)) and seen[-1] == nimg
    losses = [value for row in rows for name, value in row.items() if name.startswith("loss") and value is not None]
    assert losses and all(map(math.isfinite, losses))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("script", MORE)
def test_half_precision_trains(script, precision, device, packs, tmp_path):
    rehearse_only(device, (script, precision) == ("train_gan.py", "bf16"))
    done = train(script, tmp_path / "run", packs, device, 0.08, "--precision", precision)
    assert done.code == stopping.DONE, done.said
    check_rows(tmp_path / "run", 80)


@pytest.mark.parametrize("script", MORE)
def test_a_run_resumes_on_the_gpu_and_then_on_a_cpu(script, device, packs, tmp_path):
    rehearse_only(device, script == "pretrain_vae.py")
    for kimg, where in ((0.08, device), (0.16, device), (0.24, "cpu")):
        done = train(script, tmp_path / "run", packs, where, kimg)
        assert done.code == stopping.DONE, done.said
        assert kimg == 0.08 or "resum" in done.said.lower(), done.said
        check_rows(tmp_path / "run", round(1000 * kimg))


def test_nccl_with_one_rank(device):
    """The group is of one rank and the runtime says two: all goes through the group, and means are halves."""
    rt = ranks.Runtime(0, 2, 0, torch.device(device, 0) if device == "cuda" else torch.device("cpu"), 1)
    collectives._join_ranks(dist.HashStore(), 0, 1, True, device == "cuda")
    try:
        assert dist.get_backend() == ("nccl" if device == "cuda" else "gloo")
        weights = [torch.nn.Parameter(torch.ones(n, device=device)) for n in (3, 5)]
        weights[0].grad = torch.full((3,), 4.0, device=device)
        collectives.reduce_mean_gradients(rt, weights)
        assert [w.grad.tolist() for w in weights] == [[2.0] * 3, [0.0] * 5]
        assert collectives.agree_max(rt, [3, 1]) == [3, 1] and collectives.from_rank_0(rt, 7) == 7
    finally:
        collectives.shutdown()


@pytest.mark.parametrize("script", MORE)
def test_compiled_networks_train(script, device, packs, tmp_path):
    rehearse_only(device, script == "train_diffusion.py")
    flags = ("--compile",) if device == "cuda" else ()
    done = train(script, tmp_path / "run", packs, device, 0.08, "--precision", "bf16", *flags)
    assert done.code == stopping.DONE, done.said
    check_rows(tmp_path / "run", 80)
    assert device == "cpu" or any((tmp_path / "run" / "compiled").iterdir())


def test_too_large_a_step_ends_in_one_line(device, packs, tmp_path, monkeypatch):
    large = ("--resolution", "64", "--batch", "256", "--channel-base", "4096", "--channel-max", "64")
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 128e6) / total)
    else:

        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        monkeypatch.setattr(train_gan, "train_step", full)
    try:
        done = train("train_gan.py", tmp_path / "run", packs, device, 1, *large)
    finally:
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.code == stopping.BAD, done.said
    assert "ran out of memory" in done.err and "--accumulate 2" in done.err and "Traceback" not in done.err


@pytest.mark.parametrize("kind, flags", [("gan", GAN), ("vae", VAE), ("diffusion", [*DIFFUSION, "--resolution", "64"])])
def test_a_plain_step_never_waits_for_the_gpu(kind, flags, device, monkeypatch):
    rehearse_only(device, kind == "gan")
    where = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
    monkeypatch.setattr(fake_steps, "runtime", lambda: ranks.Runtime(0, 1, 0, where, 1))
    bench = fake_steps.MAKE[kind](*flags)
    bench.step(0)
    bench.step(bench.c.batch)  # of the kind that is looked at: everything is there
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with profile(activities=activities) as seen, contextlib.ExitStack() as after:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("error")
            after.callback(torch.cuda.set_sync_debug_mode, "default")
        bench.step(bench.c.batch)
    names = {event.key for event in seen.key_averages()}
    assert names and (device == "cpu" or not names & set(STALLS)), names & set(STALLS)
