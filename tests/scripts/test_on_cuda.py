"""All that trains and samples, on the GPU that is not there (tests/fake_cuda.py): no tensor and no generator of the
wrong device, no wait for the device in a step, no convolution with a kernel as large as the image, launches, memory."""

from __future__ import annotations

import contextlib
import re

import fake_steps
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_cuda import fake_cuda

import train_gan
from jobs.config import kinds, parsing
from jobs.predict import diffusion_look, gan_look, load
from jobs.predict.autoencoder import VaeModel
from jobs.training.checkpoint import Checkpoints
from jobs.training.weights import write_weights
from models import draws, encoder, samplers, schedules, stylegan2
from models.names import SAMPLERS
from models.unet import group_norm

GAN = (
    "--preset quickstart --resolution 32 --channel-base 256 --channel-max 8 --z-dim 16 --w-dim 16 --batch 8 "
    "--mbstd-group 2 --pl-weight 2 --pl-interval 2 --r1-interval 4 --precision bf16 --metric-kimg 0"
).split()
VAE = (
    "--preset quickstart --resolution 32 --batch 8 --width 8 --latent-channels 2 --gan-weight 0.5 "
    "--gan-start-kimg 0.016 --disc-width 8 --precision bf16"
).split()
DIFFUSION = (
    "--preset quickstart --batch 8 --widths 8,16 --head-dim 8 --attention 4 --precision bf16 --metric-kimg 0".split()
)

# Where a step may wait for the device: every fourth one learns how often D is right.
ALLOWED = {("_local_scalar_dense", "models/augment.py", "AdaController.update")}


def check(ledger, launches: int) -> None:
    waits = {(name, at.file, at.function) for name, at in ledger.stalls}
    assert waits <= ALLOWED, {f"{name} at {at}" for name, at in ledger.stalls}
    assert ledger.large_kernels == []
    assert ledger.launches <= launches


# --- steps, tiny: what the code asks for; one case per job and option that has a path of its own ----------------------
TINY = [
    ("gan", GAN, 3700),
    ("gan", [*GAN, "--conditional", "--ada", "mri-flip", "--accumulate", "2", "--hflip"], 8400),
    ("vae", VAE, 2600),
    ("diffusion", [*DIFFUSION, "--resolution", "64"], 1750),
]


@pytest.mark.parametrize("kind, flags, launches", TINY, ids=["gan", "gan with all", "vae", "diffusion"])
def test_a_step_asks_nothing_wrong_of_the_device(kind, flags, launches):
    for ledger, _ in fake_steps.rows(kind, *flags).values():
        check(ledger, launches)
        assert ledger.live <= ledger.peak < 40e9


@pytest.mark.long
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("kind, flags", [(kind, flags) for kind, flags, _ in TINY[1:]])
def test_other_precisions(kind, flags, precision):
    for ledger, _ in fake_steps.rows(kind, *flags, "--precision", precision).values():
        check(ledger, 12000)


@pytest.mark.long
def test_the_real_slices_may_come_from_the_host():
    with fake_cuda() as ledger:
        bench = fake_steps.gan(*GAN, place="host")
        for nimg in (0, 8):
            ledger.begin()
            bench.step(nimg)
        bench.batches.close()
    check(ledger, 5000)


# --- steps at full size -----------------------------------------------------------------------------------------------
LAUNCHES = {"gan": (2700, 5000, 5700), "vae": (3400, 3900), "diffusion": (3750,)}


@pytest.mark.long
@pytest.mark.parametrize("kind, flags", [(kind, flags) for kind, *flags in fake_steps.LARGE])
def test_presets_at_full_size(kind, flags):
    """Also the memory: --dry-run tells within a quarter what a step takes."""
    rows = fake_steps.rows(kind, *flags)
    more = 2 * int("--accumulate" in flags) or 1.4 * float("fp16" in flags) or 1
    for (ledger, _), launches in zip(rows.values(), LAUNCHES[kind], strict=True):
        check(ledger, round(launches * more))
    c = next(iter(rows.values()))[1].c
    peak = max(ledger.peak for ledger, _ in rows.values()) / 1e9
    assert peak == pytest.approx(kinds.JOBS[kinds.name_of(c)].memory_gb(c, 1), rel=0.25)


# --- checkpoints, grids, predict --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind, flags", [(kind, flags) for kind, flags, _ in TINY[1:]], ids=["gan", "vae", "diffusion"])
def test_a_state_goes_to_the_host_and_back(kind, flags, tmp_path):
    with fake_cuda():
        bench = fake_steps.MAKE[kind](*flags)
        bench.step(0)
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(8, bench.s.state_dict())
        checkpoints.wait(raise_errors=True)
        nimg, state = checkpoints.load_latest()
        assert nimg == 8
        bench.s.check_finite()
        bench.s.load_state_dict(state)
        for value in vars(bench.s).values():
            if isinstance(value, torch.nn.Module):
                assert {p.device.type for p in value.state_dict().values()} == {"cuda"}
        bench.step(8)


def test_grids_of_a_gan_and_its_weights_in_predict(tmp_path):
    with fake_cuda() as ledger:
        bench = fake_steps.gan(*TINY[1][1])
        pack = fake_steps.blank_pack(bench.c)
        sampler = gan_look.Sampler(bench.c, pack, bench.batches, fake_steps.runtime(), torch.bfloat16)
        ledger.begin()
        sampler.reals(), sampler(bench.s.G_ema, 8)
        assert sum(ledger.stalls.values()) < 20  # not one per picture
        about = {"job": "stylegan2", "config": parsing.result_fields(bench.c), "nimg": 8, "classes": pack.classes}
        write_weights(tmp_path / "weights.safetensors", {"G_ema": bench.s.G_ema.state_dict()}, about)
        model = load(tmp_path / "weights.safetensors", device="cuda", precision="bf16", batch=4)
        assert model.sample(6, seed=1, label="AD").shape == (6, 1, 32, 32)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_on_the_device(name):
    def denoise(x, t):
        assert x.device.type == t.device.type == "cuda"
        return x * t[:, None, None, None]

    with fake_cuda():
        noise = torch.randn(2, 1, 8, 8, device="cuda")
        for schedule in ("flow", "zero-snr"):
            assert samplers.sample(denoise, noise, schedules.make_schedule(schedule), name, 4).shape == noise.shape


def test_grids_of_a_diffusion_run():
    with fake_cuda():
        bench = fake_steps.diffusion(*TINY[3][1])
        pack, s, data = fake_steps.blank_pack(bench.c), bench.s, bench.batches
        schedule, rt = schedules.make_schedule(bench.c.schedule), fake_steps.runtime()
        sampler = diffusion_look.Sampler(bench.c, pack, data, None, None, schedule, rt, torch.bfloat16)
        picture, figures = sampler(s.unet_ema, s.scale, 8)
        assert picture.size[0] > 64 and "train_loss" in figures


def test_a_vae_in_predict_and_the_encoder_of_evaluate(tmp_path):
    with fake_cuda():
        bench = fake_steps.vae(*VAE)
        about = {"job": "vae", "config": parsing.result_fields(bench.c), "nimg": 8, "classes": []}
        write_weights(tmp_path / "weights.safetensors", {"vae": bench.s.vae_ema.state_dict()}, about)
        model: VaeModel = load(tmp_path / "weights.safetensors", device="cuda", precision="bf16")
        mean, logvar = model.vae.encode(torch.zeros(2, 1, 32, 32, device="cuda"))
        assert mean.device.type == "cuda" and mean.shape == logvar.shape == (2, 2, 8, 8)
        images, labels = np.zeros((16, 1, 32, 32), np.uint8), torch.zeros(16, dtype=torch.int64)
        network = encoder.train_encoder(images, labels, 2, seed=0, device="cuda", steps=2)
        assert network(torch.zeros(3, 1, 32, 32, dtype=torch.uint8)).device.type == "cuda"


def test_norms_of_half_precision_keep_type_and_layout():
    """torch's kernel, which copies to NCHW, is for fp32 alone."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        with fake_cuda() as ledger, torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            x = torch.zeros(2, 8, 4, 4, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
            y = group_norm(8).to("cuda")(x)
            assert y.dtype == dtype and ("native_group_norm" in ledger.operations) == (dtype == torch.float32)
            assert y.is_contiguous(memory_format=torch.channels_last) or dtype == torch.float32


# --- it bites ---------------------------------------------------------------------------------------------------------
def draws_that_are_waited_for(monkeypatch, bench) -> None:
    monkeypatch.setattr(draws, "moved", lambda tensor, device: tensor.to(device))


def w_average_on_the_host(monkeypatch, bench) -> None:
    bench.s.G.w_avg = bench.s.G.w_avg.cpu()
    bench.s.G_ema.w_avg = bench.s.G_ema.w_avg.cpu()


def item_in_the_loss(monkeypatch, bench) -> None:
    loss = train_gan.generator_loss

    def waiting(*args, **kwargs):
        losses = loss(*args, **kwargs)
        assert losses.mean().item() < 1e9
        return losses

    monkeypatch.setattr(train_gan, "generator_loss", waiting)


def average_through_the_host(monkeypatch, bench) -> None:
    def update_ema(ema, module, beta):
        for ours, theirs in zip(ema.parameters(), module.parameters(), strict=True):
            ours.data.copy_(ours.data.cpu().lerp(theirs.data.cpu(), 1 - beta))

    monkeypatch.setattr(train_gan, "update_ema", update_ema)


def atens_double_backward(monkeypatch, bench) -> None:
    monkeypatch.setattr(stylegan2, "conv2d", F.conv2d)


FAULTS = [
    (None, None),
    (draws_that_are_waited_for, r"to device at tests/scripts/test_on_cuda.py:\d+, draws_that_are_waited_for"),
    (w_average_on_the_host, r"to host at models/stylegan2.py:\d+, Generator.update_w_avg"),
    (item_in_the_loss, r"_local_scalar_dense at tests/scripts/test_on_cuda.py:\d+, item_in_the_loss"),
    (average_through_the_host, r"to host at tests/scripts/test_on_cuda.py:\d+, average_through_the_host"),
    (atens_double_backward, r"\(8, 8, 32, 32\) \* .* at \S+:\d+"),
]


@pytest.mark.parametrize("plant, found", FAULTS, ids=[f.__name__ if f else "none" for f, _ in FAULTS])
def test_a_planted_fault_is_found_with_its_line(plant, found, monkeypatch):
    said = []
    with fake_cuda() as ledger, contextlib.ExitStack() as stack:
        bench = fake_steps.gan(*GAN, "--r1-interval", "1")
        bench.step(0)
        ledger.begin()
        if plant:
            plant(monkeypatch, bench)
            stack.callback(monkeypatch.undo)
        try:
            bench.step(8)
        except RuntimeError as error:
            said.append(str(error))
    said += [f"{name} at {at}" for name, at in ledger.stalls] + ledger.large_kernels
    assert [text for text in said if re.search(found, text)] if plant else not said, said


def test_the_ledger_knows_memory_and_waits():
    with fake_cuda() as ledger:
        x = torch.ones(1000, device="cuda")
        view, before = x[10:], ledger.live
        assert before == 4096 and view.device.type == "cuda" and not ledger.stalls
        y = x + view.sum()
        assert ledger.live == 2 * 4096 and ledger.launches == 3  # fill, sum, add
        del y
        assert (ledger.live, ledger.peak) == (4096, 2 * 4096 + 512)
        pinned = torch.arange(3).pin_memory()
        assert x[pinned.to("cuda", non_blocking=True)].shape == (3,) and not ledger.stalls
        for wait in (lambda: x[torch.arange(3)], lambda: torch.arange(3).to("cuda"), lambda: float(x[0]), x.cpu,
                     lambda: x[x > 0], x.nonzero):  # fmt: skip
            ledger.begin()
            wait()
            assert sum(ledger.stalls.values()) == 1, wait
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(1000)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator("cuda"))
