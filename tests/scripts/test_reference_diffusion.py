"""train_diffusion.py against a second writing of it from the papers: plain autograd, AdamW by hand, figures in plain
loops.

Ho 2020 (noise, epsilon), Salimans 2022 (v), Lipman 2023 (flow), Nichol 2021 (cosine), Lin 2024 (zero terminal SNR),
Hang 2023 (min-SNR), Kingma 2021 and Esser 2024 (times), Jiang 2024 (Fast-DDPM), Ho and Salimans 2022 (dropped classes),
Song 2021 (DDIM).
"""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
from by_hand import ALONE, CPU, AdamW, assert_same, average, clipped, close, copies, rate_at, two_ranks, wake, weights
from inprocess import run_main
from test_train_diffusion import vae_run

import train_diffusion as script
from data.batches import sample_order
from data.latents import LatentBatches, Latents
from data.pack import ensure_pack
from jobs.config import parsing, specs
from jobs.config.specs import DiffusionConfig
from jobs.predict import diffusion_look, latent_space
from jobs.training import randomness, ranks
from jobs.training.checkpoint import Checkpoints
from jobs.training.throughput import count_flops
from jobs.training.weights import read_weights, write_weights
from models import schedules
from models.vae import VAE

SCRIPT = "train_diffusion.py"
START, SKIP = 16, 24  # images seen before the first of the six steps, and data that a roll-back has skipped
CLASSES = ["AD", "MCI", "NC"]


def config(*flags: str) -> DiffusionConfig:
    return parsing.parse_config(DiffusionConfig, [*tiny.FLAGS[SCRIPT], *flags])


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return ensure_pack("phantom:24", resolution=32, cache_dir=tmp_path_factory.mktemp("packs"), log=lambda *_: None)


def made_up_latents(number: int = 24, seed: int = 0) -> Latents:
    """Of three classes, two channels, 8 x 8; with a scale that is far from the identity."""
    gen = np.random.default_rng(seed)
    mean, logvar = gen.normal(1, 2, (number, 2, 8, 8)), gen.normal(-1, 1, (number, 2, 8, 8))
    values = np.stack([mean * [[[3.0]], [[0.2]]], logvar], axis=1).astype(np.float16)
    return Latents("", values, gen.integers(0, 3, number), np.array([2.0, -0.7]), np.array([5.0, 0.3]))


# --- the maths, in float64 --------------------------------------------------------------------------------------------
def alpha_sigma(schedule: str, t) -> tuple[np.ndarray, np.ndarray]:
    """Signal and noise at times t, (B,). Tables of 1000 steps; between two of them the angle goes straight."""
    t = np.asarray(t, np.float64)
    if schedule == "flow":
        return 1 - t, t
    if schedule == "cosine":
        angles = np.minimum((np.arange(1000) / 999 + 0.008) / 1.008 * np.pi / 2, np.arccos(1e-3))
    else:
        ends = (1e-4, 0.02) if schedule == "linear" else (0.0015**0.5, 0.0195**0.5)
        betas = np.linspace(*ends, 1000) ** (1 if schedule == "linear" else 2)
        alphas = np.sqrt(np.cumprod(1 - betas))
        if schedule == "zero-snr":
            alphas = alphas[0] * (alphas - alphas[-1]) / (alphas[0] - alphas[-1])
        angles = np.arccos(alphas)
    angle = np.interp(t * 999, np.arange(1000), angles)
    return np.cos(angle), np.sin(angle)


def wide(values, x: torch.Tensor) -> torch.Tensor:
    """(B,) to (B, 1, 1, 1) in the type of x."""
    return torch.as_tensor(np.asarray(values)).to(x).view(-1, 1, 1, 1)


def wanted(target: str, x0, noise, alpha, sigma):
    return {"epsilon": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}[target]


def weight(target: str, alpha: np.ndarray, sigma: np.ndarray, gamma: float) -> np.ndarray:
    """min(SNR, gamma) on the error of x0, as a weight on the error of the target (Hang 2023)."""
    if not gamma:
        return np.ones_like(alpha)
    snr = (alpha / sigma) ** 2
    per = {
        "epsilon": 1 / snr,
        "x0": 1.0,
        "v": sigma**2 / (alpha**2 + sigma**2) ** 2,
        "flow": sigma**2 / (alpha + sigma) ** 2,
    }
    return np.minimum(snr, gamma) * per[target]


def losses_of(c, unet, x0, labels, noise, t) -> torch.Tensor:
    """(B,) one per slice."""
    alpha, sigma = alpha_sigma(c.schedule, t.double().numpy())
    x = wide(alpha, x0) * x0 + wide(sigma, x0) * noise
    error = unet(x, t, labels) - wanted(c.target, x0, noise, wide(alpha, x0), wide(sigma, x0))
    return (error**2).reshape(len(x0), -1).mean(1) * torch.tensor(
        weight(c.target, alpha, sigma, c.min_snr_gamma)
    ).float()


def times_of(c, gen: torch.Generator) -> torch.Tensor:
    """(batch,) one draw for all of them (Kingma 2021), or half of them from Fast-DDPM's list and the others its
    mirror."""
    if c.times.startswith("fast"):
        steps = torch.tensor(FAST[c.times])
        half = torch.randint(len(steps), (c.batch // 2,), generator=gen)
        return torch.cat([steps[half], steps.flip(0)[half]]) / 999
    u = (torch.rand((), generator=gen) + torch.arange(c.batch) * ((5**0.5 - 1) / 2)) % 1
    return u if c.times == "uniform" else 1 / (1 + torch.exp(-torch.special.ndtri(u.double()).float()))


FAST = {
    "fast-uniform": [0, 99, 199, 299, 399, 499, 599, 699, 799, 899, 999],
    "fast-nonuniform": [0, 199, 399, 599, 699, 799, 849, 899, 949, 999],
}


# --- the step ---------------------------------------------------------------------------------------------------------
class ByHand:
    """A run's network and all that a step changes. `latents` None: on the slices of `pack`."""

    def __init__(self, c: DiffusionConfig, s, pack, latents: Latents | None, classes: int = 0):
        self.c, self.pack, self.latents, self.figures, self.rate = c, pack, latents, [], 0.0
        self.classes = classes or (len(CLASSES) if latents else 2)
        self.unet, self.ema = copies(s.unet, s.unet_ema)
        self.opt = AdamW(self.unet, 0.9, 0.99, c.weight_decay)

    def clean(self, position: int, posterior_noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        source = self.pack if self.latents is None else self.latents
        order = sample_order(len(source.labels), self.c.seed, position, self.c.batch)
        labels = torch.from_numpy(np.asarray(source.labels)[order])
        if self.latents is None:
            return torch.from_numpy(self.pack.images[order].astype("float32")) / 127.5 - 1, labels
        return sample_of(self.latents, order, posterior_noise), labels

    def step(self, nimg: int, position: int, ranks: int = 1) -> None:
        c, shape = self.c, (32 // 4,) * 2 if self.latents else (32, 32)
        gen = randomness.generator(c.seed, position, "diffusion")
        t = times_of(c, gen)
        noise, posterior = torch.randn(2, c.batch, 2 if self.latents else 1, *shape, generator=gen)
        x0, labels = self.clean(position, posterior)
        gone = torch.rand(c.batch, generator=randomness.generator(c.seed, position, "class dropout")) < c.class_dropout
        labels = torch.where(gone, self.classes, labels) if c.conditional else None
        losses, part = [], c.batch // ranks // c.accumulate
        for rank in range(ranks):
            torch.manual_seed(randomness.seed_of(c.seed, position, f"dropout {rank}"))
            for i in range(rank * c.accumulate, (rank + 1) * c.accumulate):
                rows = slice(i * part, (i + 1) * part)
                of_class = None if labels is None else labels[rows]
                losses.append(losses_of(c, self.unet, x0[rows], of_class, noise[rows], t[rows]))
        loss = torch.cat(losses).mean()
        self.rate = rate_at(nimg, c.batch, c.lr, c.warmup_kimg, c.decay_kimg)
        gradients, norm = clipped(
            torch.autograd.grad(loss, list(self.unet.parameters()), allow_unused=True, materialize_grads=True), c.clip
        )
        self.opt.step(gradients, self.rate)
        self.figures.append({"loss": float(loss.detach()), "grad_norm": norm})
        average(self.ema, self.unet, nimg + c.batch, c.batch, c.ema_kimg, c.ema_rampup)

    def means(self) -> dict[str, float]:
        return {name: sum(row[name] for row in self.figures) / len(self.figures) for name in ("loss", "grad_norm")}


def sample_of(latents: Latents, rows, noise: torch.Tensor) -> torch.Tensor:
    """Normalised samples of the posteriors of these rows."""
    mean, logvar = torch.from_numpy(np.asarray(latents.values[rows], np.float64)).unbind(1)
    z = mean + torch.exp(logvar / 2) * noise
    return ((z - torch.from_numpy(latents.mean).view(2, 1, 1)) / torch.from_numpy(latents.std).view(2, 1, 1)).float()


ALWAYS = (
    "--lr 0.002 --weight-decay 0.3 --ema-kimg 0.06 --ema-rampup 1.5 --warmup-kimg 0.04 --decay-kimg 0.1 --dropout 0 "
    "--no-conditional"
)
CASES = {
    "flow, classes, parts": "--conditional --class-dropout 0.3 --accumulate 2 --clip 11",
    "linear, epsilon, uniform, weighted": "--schedule linear --target epsilon --times uniform --min-snr-gamma 3 "
    "--clip 100",
    "cosine, v, fast, weighted, pixels, classes, a "
    "loss scale": "--space pixel --widths 8,8,8 --schedule cosine --target v "
    "--times fast-uniform --sampler ddim --min-snr-gamma 2 --conditional --class-dropout 0.3 --accumulate 2 --clip 0.5",
    "zero-snr, x0, weighted": "--schedule zero-snr --target x0 --min-snr-gamma 0.5 --clip 2.8",
    "scaled-linear, flow, fast, weighted": "--schedule scaled-linear --times fast-nonuniform --sampler ddim "
    "--min-snr-gamma 5 --clip 1",
    "flow, v, uniform, weighted": "--target v --times uniform --min-snr-gamma 1",
    "dropout, parts, classes": "--dropout 0.4 --accumulate 4 --conditional --class-dropout 0.5 --schedule "
    "scaled-linear --target epsilon",
}


def prepared(c: DiffusionConfig, pack):
    """(data, latents, state, schedule) in the middle of a run, in which every layer takes part."""
    latents = made_up_latents() if c.space == "latent" else None
    data = script.Data(c, SimpleNamespace(classes=CLASSES) if latents else pack, latents, None, CPU)
    s = script.build_state(c, data, (len(CLASSES) if latents else 2) if c.conditional else 0, CPU)
    wake(s.unet, 1)
    s.unet_ema.load_state_dict(s.unet.state_dict())
    s.counters["skip"] = SKIP
    return data, latents, s, schedules.make_schedule(c.schedule)


def run_steps(c, data, s, schedule, number: int, rt=ALONE, dtype=torch.float32) -> None:
    for nimg in range(START, START + number * c.batch, c.batch):
        script.train_step(c, rt, s, data, schedule, s.unet, dtype, nimg)


def check(s, hand: ByHand, start: dict) -> None:
    assert_same(s.unet, hand.unet, start, hand.opt, "unet")
    assert_same(s.unet_ema, hand.ema, start, hand.opt, "unet_ema")
    close(s.averages.means(), hand.means())
    close(s.log_extra(), {"lr": hand.rate})


@pytest.mark.parametrize("name", CASES)
def test_six_steps_are_those_of_the_papers(pack, name):
    """Parameters of the network and its average, and figures, with all draws of the global batch."""
    c = config(*ALWAYS.split(), *CASES[name].split())
    data, latents, s, schedule = prepared(c, pack)
    if "loss scale" in name:
        s.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    hand, start = ByHand(c, s, pack, latents), weights(s.unet)
    run_steps(c, data, s, schedule, 6)
    for nimg in range(START, START + 6 * 8, 8):
        hand.step(nimg, nimg + SKIP)
    check(s, hand, start)


def test_two_ranks_with_parts_are_the_same_steps(pack, monkeypatch):
    c = config(*ALWAYS.split(), "--conditional", "--class-dropout", "0.5", "--accumulate", "2", "--min-snr-gamma", "5")
    ranks = [prepared(c, pack) for _ in range(2)]
    hand, start = ByHand(c, ranks[0][2], pack, ranks[0][1]), weights(ranks[0][2].unet)

    def work(rt):
        data, _, s, schedule = ranks[rt.rank]
        run_steps(c, data, s, schedule, 3, rt)

    two_ranks(monkeypatch, work)
    for nimg in range(START, START + 3 * 8, 8):
        hand.step(nimg, nimg + SKIP)
    for _, _, s, _ in ranks:
        check(s, hand, start)


RANKS = """
import os, sys
sys.path[:0] = [{scripts!r}, {tests!r}, {root!r}]
import torch
import torch.distributed as dist
from test_reference_diffusion import ALWAYS, CPU, config, prepared, ranks, run_steps
rank = 1 if os.fork() == 0 else 0  # one interpreter that imports for both
store = dist.FileStore({folder!r} + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
c = config(*ALWAYS.split(), "--dropout", "0.4", "--accumulate", "2")
data, _, s, schedule = prepared(c, None)
masks = []
s.unet.middle[2].dropout.register_forward_hook(lambda _, x, out: masks.append((out == 0) & (x[0] != 0)))
torch.manual_seed(5)  # whatever state the processes are in, and the same in both
run_steps(c, data, s, schedule, 2, ranks.Runtime(rank, 2, rank, CPU, 1))
found = {{"masks": torch.stack(masks), "unet": s.unet.state_dict(), "means": s.averages.means()}}
torch.save(found, f"{folder}/{{rank}}.pt")
dist.barrier()
dist.destroy_process_group()
if rank == 0:
    os.wait()
else:
    os._exit(0)
"""


def test_dropout_differs_between_two_real_ranks_and_is_that_of_the_position(tmp_path):
    """Two processes: other masks on the other rank, in every part of the batch and at every step, each seeded with
    (seed, position, rank); the step that both take is the mean over both."""
    text = RANKS.format(
        scripts=str(Path(__file__).parent), tests=str(tiny.ROOT / "tests"), root=str(tiny.ROOT), folder=str(tmp_path)
    )
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if Path("/sys/class/net/lo").exists() else {}
    environment = tiny.environment(tmp_path, CUDA_VISIBLE_DEVICES="", **loopback)
    subprocess.run([sys.executable, "-c", text], check=True, env=environment, timeout=400)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    masks = torch.cat([r["masks"] for r in found])  # two steps of two parts, by each of two ranks
    assert len(masks) == 8 and all(0.2 < float(m.float().mean()) < 0.6 for m in masks)
    assert all((masks[i] != masks[j]).float().mean() > 0.3 for i in range(8) for j in range(i))
    c = config(*ALWAYS.split(), "--dropout", "0.4", "--accumulate", "2")
    _, latents, s, _ = prepared(c, None)
    hand, start = ByHand(c, s, None, latents), weights(s.unet)
    for nimg in (START, START + 8):
        hand.step(nimg, nimg + SKIP, ranks=2)
    for r in found:
        s.unet.load_state_dict(r["unet"])
        assert_same(s.unet, hand.unet, start, hand.opt, "unet")
        close(r["means"], hand.means())


def test_the_network_runs_in_the_type_and_the_loss_in_fp32(pack):
    c, seen = config("--space", "pixel", "--widths", "8,8,8"), set()
    data, _, s, schedule = prepared(c, pack)
    s.unet.down[0].blocks[0].conv1.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    run_steps(c, data, s, schedule, 1, dtype=torch.bfloat16)
    assert seen == {torch.bfloat16} and all(p.dtype == torch.float32 for p in s.unet.parameters())
    x, t = torch.zeros(2, 1, 32, 32), torch.rand(2)
    assert script.predictor(s.unet, None, torch.bfloat16)(x, t).dtype == torch.float32
    layer, types = torch.nn.Conv2d(2, 1, 1), []
    layer.register_forward_hook(lambda _, __, out: types.append(out.dtype))
    data = script.Data(config(), pack, made_up_latents(), SimpleNamespace(decoder=layer), CPU)
    made = data.to_images(torch.randn(2, 2, 8, 8), data.scale, torch.bfloat16)
    assert types == [torch.bfloat16] and made.dtype == torch.float32 and not made.requires_grad


def test_flops_of_a_step_are_those_of_the_real_one(pack):
    c = config("--conditional", "--accumulate", "2")
    data, _, s, schedule = prepared(c, pack)
    flops = script.step_flops(c, ranks.Runtime(1, 4, 1, CPU, 1), 3, data.shape, schedule, torch.float32)
    assert {None: count_flops(lambda: run_steps(c, data, s, schedule, 1)) / c.batch} == flops


def test_the_start_is_drawn_from_the_seed_and_the_average_is_the_network(pack):
    states = []
    for seed in ("3", "3", "4"):
        c = config("--seed", seed, "--conditional")
        data = script.Data(c, SimpleNamespace(classes=CLASSES), made_up_latents(), None, CPU)
        states.append(script.build_state(c, data, 3, CPU))
    a, b, c = (list(s.unet.parameters()) for s in states)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert all(not torch.equal(p, q) for p, q in zip(a, c, strict=True) if p.dim() > 1 and p.any())
    s = states[0]
    assert all(torch.equal(v, s.unet_ema.state_dict()[k]) for k, v in s.unet.state_dict().items())
    assert not s.unet_ema.training and s.unet.training and not any(p.requires_grad for p in s.unet_ema.parameters())


def test_the_network_and_its_loss_scale_are_those_of_the_flags():
    """A loss scale is for fp16 alone."""
    for flags, widths, blocks, sides, head_dim, scaled in (
        ("--no-conditional", [8, 16], 1, {4}, 8, False),
        (
            "--conditional --widths 4,8,8 --num-res 3 --attention 8,2 --head-dim 4 --dropout 0.3 --precision fp16",
            [4, 8, 8],
            3,
            {8, 2},
            4,
            True,
        ),
    ):
        c = config(*flags.split())
        data = script.Data(c, SimpleNamespace(classes=CLASSES), made_up_latents(), None, CPU)
        s = script.build_state(c, data, 3 if c.conditional else 0, CPU)
        for unet in (s.unet, s.unet_ema):
            assert [level.blocks[-1].conv2.out_channels for level in unet.down] == widths
            assert [len(level.blocks) for level in unet.down] == [blocks] * len(widths)
            assert {8 >> i for i, level in enumerate(unet.down) if hasattr(level.attentions[0], "heads")} == sides
            assert unet.middle[1].heads == widths[-1] // head_dim and unet.middle[0].dropout.p == c.dropout
            assert (unet.conv_in.in_channels, unet.conv_out.out_channels) == (2, 2)
            assert (unet.embed_class is None) if not c.conditional else unet.embed_class.num_embeddings == 4
        assert s.scaler.is_enabled() == scaled
    with pytest.raises(specs.ConfigError, match="--widths 8,8,8,8,8"):
        script.build_unet(config("--widths", "8,8,8,8,8"), (2, 8, 8), 0)


# --- what a person sees -----------------------------------------------------------------------------------------------
def spread(n: int, number: int) -> list[int]:
    """`number` of 0 .. n - 1, the first and the last among them."""
    return [round(i * (n - 1) / (number - 1)) for i in range(number)]


def varied(images: torch.Tensor) -> float:
    """Root of the mean square distance of two images at 16 px."""
    small = torch.nn.functional.adaptive_avg_pool2d(images.double(), 16)
    pairs = [(small[i] - small[j]).square().mean() for i in range(len(small)) for j in range(i)]
    return float(torch.stack(pairs).mean().sqrt())


@torch.no_grad()
def grid_of(c, unet, decode, shape, times, classes: int) -> torch.Tensor:
    """The 48 slices of a grid, drawn in chunks of 16: DDIM (Song 2021, equation 12) over falling `times`, with fresh
    noise where the sampler is ancestral."""
    noise = torch.randn(48, *shape, generator=randomness.generator(c.seed, 0, "grid"))
    labels = torch.arange(6).repeat_interleave(8) % classes
    made = []
    alphas, sigmas = alpha_sigma(c.schedule, times)
    for first in (0, 16, 32):
        rows, gen = slice(first, first + 16), randomness.generator(c.seed, first, "ancestral")
        x = noise[rows].double()
        for i, t in enumerate(times):
            of_class = labels[rows] if c.conditional else None
            said = unet(x.float(), torch.full((16,), float(t)), of_class).double()
            a, s = alphas[i], sigmas[i]
            # solved for x0 with x = a x0 + s eps
            if c.target == "epsilon":
                x0 = (x - s * said) / a
            elif c.target == "flow":
                x0 = (x - s * said) / (a + s)
            elif c.target == "v":
                x0 = (a * x - s * said) / (a * a + s * s)
            else:
                x0 = said
            x0 = x0.clamp(-1, 1) if c.space == "pixel" else x0
            if i + 1 == len(times):
                break
            b, r = alphas[i + 1], sigmas[i + 1]
            eta = r * math.sqrt(1 - (a * r / (b * s)) ** 2) if c.sampler == "ancestral" else 0.0
            x = b * x0 + math.sqrt(r**2 - eta**2) * (x - a * x0) / s
            if eta:
                x = x + eta * torch.randn(x.shape, generator=gen)
        made.append(decode(x0.float()))
    return torch.cat(made).clamp(-1, 1)


@torch.no_grad()
def losses_looked_at(c, unet, x0, labels, noise, name: str) -> dict[str, float]:
    """Loss at fixed times, spread by the golden ratio from the middle on, over all and by quarters."""
    t = (0.5 + torch.arange(len(x0)) * ((5**0.5 - 1) / 2)) % 1
    if c.times.startswith("fast"):
        steps = [0, 249, 499, 749, 999]
        t = torch.tensor([steps[int(v * 5)] for v in t]) / 999
    losses = losses_of(c, unet, x0, labels if c.conditional else None, noise, t)
    figures = {name: float(losses.mean())}
    for k in range(4):
        inside = (t >= k / 4) & ((t < (k + 1) / 4) | (torch.tensor(k == 3) & (t == 1)))
        if inside.any():
            figures[f"{name}_{k}"] = float(losses[inside].mean())
    return figures


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """Images in -1 .. 1 as they are shown."""
    return np.rint((x.double().numpy() + 1) * 127.5).astype(np.uint8)


class Decoder(torch.nn.Module):
    """Of a VAE, as far as Data looks at one: each latent becomes a square, whose grey is a known function of it."""

    def forward(self, z):
        assert len(z) <= 32  # of a grid's rows at once
        grey = 0.05 * z[:, :1] + 0.5 * z[:, 1:]
        return torch.nn.functional.interpolate(grey, scale_factor=4.0, mode="nearest")


SEEN = {
    "latents, classes": "--conditional --sampler ddim --steps 4 --min-snr-gamma 4",
    "pixels, fast": "--space pixel --widths 8,8,8 --schedule linear --target epsilon --times fast-uniform --fast-steps "
    "4 --sampler ancestral",
    "latents, none held out": "--sampler ddim --steps 3 --schedule cosine --target v",
    "pixels, classes, none held out": "--space pixel --widths 8,8,8 --sampler ancestral --steps 4 --conditional "
    "--schedule scaled-linear --target x0",
}


@pytest.mark.parametrize("name", SEEN)
def test_grids_diversity_and_losses_by_hand(pack, monkeypatch, name):
    """On one rank and on two: 48 slices from fixed noise, whole rows of a class, decoded from latents at their own
    scale; how much they vary beside 20 real ones; the loss of 20 slices of other patients at fixed times."""
    assert (diffusion_look.LOOKED_AT, diffusion_look.GRID_CHUNK, diffusion_look.BINS) == (256, 16, 4)
    assert latent_space.CHUNK == diffusion_look.CHUNK == 32
    monkeypatch.setattr(diffusion_look, "LOOKED_AT", 20)
    for module in (diffusion_look, latent_space):
        monkeypatch.setattr(module, "CHUNK", 7 if "pixels" in name else 32)
    monkeypatch.setattr(diffusion_look, "image_grid", lambda images, columns, labels: (images, columns, labels))
    c, latent = config("--no-conditional", *SEEN[name].split()), "latents" in name
    gen = np.random.default_rng(1)
    images = gen.integers(0, 256, (130, 1, 32, 32)).astype(np.uint8)
    labels = gen.integers(0, 3, 130)
    images[labels == 2] = images[labels == 2][0]  # the real ones of this class are all the same
    images[labels == 1] //= 2
    train = SimpleNamespace(images=images, labels=labels, classes=CLASSES)
    other = SimpleNamespace(images=images[:31, :, ::-1], labels=labels[40:71])
    latents, held = (made_up_latents(130), made_up_latents(31, 5)) if latent else (None, None)
    data = script.Data(c, train, latents, SimpleNamespace(decoder=Decoder()) if latent else None, CPU)
    s = script.build_state(c, data, 3 if c.conditional else 0, CPU)
    wake(s.unet_ema, 3, 0.1)
    alone = "none held out" in name
    known, known_latents, prefix = (train, latents, "train_loss") if alone else (other, held, "val_loss")
    if held is not None:  # the scale is that of the training slices
        held.mean[:], held.std[:] = 9, 9

    def look(rt):
        sampler = diffusion_look.Sampler(
            c,
            train,
            data,
            *((None, None) if alone else (other, held)),
            schedules.make_schedule(c.schedule),
            rt,
            torch.float32,
        )
        return sampler(s.unet_ema, s.scale, 8), sampler

    # --- by hand
    times = [(1000 - 1000 * i / c.steps - 1) / 999 for i in range(c.steps)]
    if c.times == "fast-uniform":
        times = [k / 999 for k in (999, 749, 499, 249, 0)]
    restored = lambda x: x * torch.tensor([5.0, 0.3]).view(2, 1, 1) + torch.tensor([2.0, -0.7]).view(2, 1, 1)  # noqa: E731
    decode = (lambda x: Decoder()(restored(x))) if latent else (lambda x: x)
    shape = (2, 8, 8) if latent else (1, 32, 32)
    grid = grid_of(c, s.unet_ema, decode, shape, times, 3)
    real = torch.from_numpy(images[spread(130, 64)].astype("float32")) / 127.5 - 1
    figures = {"diversity": varied(grid) / varied(real)}
    if c.conditional:
        of_class, real_class = torch.arange(6).repeat_interleave(8) % 3, torch.from_numpy(labels[spread(130, 64)])
        for k in (0, 1):  # where the real ones do not vary there is nothing to compare with
            figures[f"diversity_{CLASSES[k]}"] = varied(grid[of_class == k]) / varied(real[real_class == k])
    draw, rows = randomness.generator(c.seed, 0, "validation"), spread(len(known.labels), 20)
    if latent:
        scaled = dataclasses.replace(known_latents, mean=latents.mean, std=latents.std)
        x0 = sample_of(scaled, rows, torch.randn(20, *shape, generator=draw))
    else:
        x0 = torch.from_numpy(known.images[rows].astype("float32")) / 127.5 - 1
    of_slices = torch.from_numpy(known.labels[rows])
    figures |= losses_looked_at(c, s.unet_ema, x0, of_slices, torch.randn(x0.shape, generator=draw), prefix)
    clean: list[torch.Tensor] = []  # as they are before the decoder
    grid_of(c, s.unet_ema, lambda x: clean.append(x.double()) or x, shape, times, 3)
    figures["sample_spread"] = float((torch.cat(clean) ** 2).mean().sqrt() / (x0.double() ** 2).mean().sqrt())

    (shown, found), sampler = look(ALONE)
    close(found, figures, rel=1e-3)
    captions = [CLASSES[k] for k in torch.arange(6).repeat_interleave(8) % 3] if c.conditional else None
    assert np.abs(shown[0].astype(int) - as_bytes(grid)).max() <= 1 and shown[1:] == (8, captions)
    both = two_ranks(monkeypatch, look)
    for (_, again), _ in both:
        close(again, figures, rel=1e-3)
    assert np.abs(both[0][0][0][0].astype(int) - as_bytes(grid)).max() <= 1 and both[1][0][0] is None
    assert not any(k.startswith("diversity") for k in sampler(s.unet_ema, s.scale, 0)[1])
    real_labels = [CLASSES[k] for k in labels[spread(130, 64)][:48]] if c.conditional else None
    pictures, columns, captions = sampler.reals()
    assert np.array_equal(pictures, images[spread(130, 64)[:48]]) and (columns, captions) == (8, real_labels)


@pytest.mark.parametrize(("side", "columns", "number"), [(128, 8, 48), (256, 6, 24)])
def test_grids_of_large_slices_are_smaller(side, columns, number):
    pack = SimpleNamespace(images=np.zeros((2, 1, side, side), np.uint8), labels=np.zeros(2, np.int64), classes=[])
    values = np.zeros((2, 2, 2, 8, 8), np.float16)
    latents = Latents("", values, pack.labels, np.zeros(2), np.ones(2))
    c = config("--resolution", str(side), "--no-conditional")
    data = script.Data(c, pack, latents, None, CPU)
    seen = diffusion_look.Sampler(c, pack, data, None, None, schedules.make_schedule(c.schedule), ALONE, torch.float32)
    assert (seen.width, seen.number, len(seen.noise)) == (columns, number, number)


# --- the run ----------------------------------------------------------------------------------------------------------
FLAGS = (
    "--data phantom:24 --total-kimg 0.048 --log-kimg 0.008 --sample-kimg 0.024 --checkpoint-kimg 0.016 --clip 0.7 "
    "--conditional "
    "--class-dropout 0.3 --dropout 0.2 --ema-kimg 0.02 --ema-rampup 1 --weight-decay 0.2 --warmup-kimg 0.02 "
    "--decay-kimg 0.06 "
    "--sampler ddim --steps 3 --min-snr-gamma 3 --schedule cosine --target v"
).split()


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    """A VAE whose latents are far from mean 0 and deviation 1."""
    folder = vae_run(tmp_path_factory.mktemp("vae") / "vae", data="phantom:24")
    tensors, about = read_weights(folder / "weights.safetensors")
    del about["sha256"]
    last = max((k for k in tensors if k.startswith("vae.encoder")), key=lambda k: int(k.split(".")[2])).rsplit(".", 1)[
        0
    ]
    tensors[f"{last}.weight"] *= torch.tensor([9.0, 3.0, 1.0, 1.0]).view(4, 1, 1, 1)
    tensors[f"{last}.bias"] += torch.tensor([4.0, -1.0, 0.5, -3.0])
    write_weights(
        folder / "weights.safetensors", {"vae": {k.removeprefix("vae."): v for k, v in tensors.items()}}, about
    )
    return folder


@pytest.fixture(scope="module")
def finished(packs, vae, tmp_path_factory) -> Path:
    """A run of six steps. The latents from position 24 on hold no numbers, which is noticed at 32 images, when the
    checkpoint of 16 is the newest: back to it, and on with the data from 32."""
    run, rows = tmp_path_factory.mktemp("finished") / "run", LatentBatches.rows

    def poisoned(self, nimg, start, stop):
        mean, logvar, labels = rows(self, nimg, start, stop)
        return (mean * math.nan if nimg == 24 else mean), logvar, labels

    with mock.patch.object(LatentBatches, "rows", poisoned):
        done = run_main(SCRIPT, "--run", str(run), "--vae", str(vae), *FLAGS, packs=packs)
    assert done.code == 0 and done.said.count("DIVERGED") == 1, done.said
    assert f"predict.py generate --run {run} --number 64\n" in done.out
    return run


@torch.no_grad()
def encoded(pack, network) -> Latents:
    """Every slice through the encoder, and the mean and deviation of samples, per channel."""
    mean, logvar = network.encode(torch.from_numpy(np.array(pack.images, "float32")) / 127.5 - 1)
    every = lambda v: v.double().transpose(0, 1).flatten(1)  # noqa: E731
    deviation = (every(mean).var(1, unbiased=False) + every(logvar).exp().mean(1)).sqrt()
    values = torch.stack([mean, logvar], dim=1).half().numpy()
    return Latents("", values, np.array(pack.labels), every(mean).mean(1).numpy(), deviation.numpy())


def test_a_run_logs_and_writes_just_that_and_steps_over_a_poisoned_batch(finished, packs, vae):
    """Every row, the figures of samples and of other patients, and the weights for predict.py, against the second
    writing."""
    at, state = Checkpoints(finished / "checkpoints").load_latest()
    assert (finished / "DONE").exists() and at == 48
    assert {"skip": 16, "rollbacks": 1, "healthy": True}.items() <= state["counters"].items()
    c = config("--run", str(finished), "--vae", str(vae), *FLAGS)
    pack, other = (
        ensure_pack("phantom:24", resolution=32, split=split, cache_dir=packs, log=lambda *_: None)
        for split in ("train", "val")
    )
    of_vae, about_vae = read_weights(vae / "weights.safetensors")
    network = VAE(1, 2, width=8, down=4, num_res=1)
    network.load_state_dict({k.removeprefix("vae."): v for k, v in of_vae.items()})
    latents, held = encoded(pack, network), encoded(other, network)
    assert min(np.abs(latents.mean)) > 0.5 and max(latents.std) > 2  # else nothing is shown of the scale
    data = script.Data(c, pack, latents, None, CPU)
    s = script.build_state(c, data, 2, CPU)
    hand, start = ByHand(c, s, pack, latents, 2), weights(s.unet)

    count = len(other.labels)
    draw = randomness.generator(c.seed, 0, "validation")
    scaled = dataclasses.replace(held, mean=latents.mean, std=latents.std)
    looked_at = (
        sample_of(scaled, slice(None), torch.randn(count, 2, 8, 8, generator=draw)),
        torch.from_numpy(other.labels.astype("int64")), torch.randn(count, 2, 8, 8, generator=draw),
    )  # fmt: skip
    scale = [torch.from_numpy(v).float().view(2, 1, 1) for v in (latents.std, latents.mean)]
    real = torch.from_numpy(np.array(pack.images, "float32")) / 127.5 - 1
    real_class, of_class = torch.from_numpy(np.array(pack.labels)), torch.arange(6).repeat_interleave(8) % 2
    times = [(1000 - 1000 * i / 3 - 1) / 999 for i in range(3)]

    def figures() -> dict[str, float]:
        clean: list[torch.Tensor] = []

        def decode(z: torch.Tensor) -> torch.Tensor:
            clean.append(z)
            return network.decode(z * scale[0] + scale[1])

        grid = grid_of(c, hand.ema, decode, (2, 8, 8), times, 2)
        width = (torch.cat(clean).double() ** 2).mean() / (looked_at[0].double() ** 2).mean()
        made = {"diversity": varied(grid) / varied(real), "sample_spread": float(width.sqrt())}
        for k, name in enumerate(pack.classes):
            made[f"diversity_{name}"] = varied(grid[of_class == k]) / varied(real[real_class == k])
        return made

    found = tiny.rows(finished)
    assert [row["nimg"] for row in found] == list(range(0, 49, 8))
    for row in found:
        nimg = row.pop("nimg")
        assert row.pop("kimg") == nimg / 1000
        expected = {"lr": hand.rate if nimg else c.lr} | (hand.figures[-1] if nimg else {})
        if nimg % 24 == 0:
            expected |= losses_looked_at(c, hand.ema, *looked_at, "val_loss") | (figures() if nimg else {})
        close(row, expected, rel=2e-3)
        if nimg < 48:
            hand.step(nimg, nimg + (16 if nimg >= 16 else 0))

    pictures = {p.name for p in (finished / "samples").iterdir()}
    assert pictures == {"reals.png", "00000.000.png", "00000.024.png", "00000.048.png"}
    tensors, about = read_weights(finished / "weights.safetensors")
    assert {k for k in tensors if not k.startswith("unet.")} == {"latent_scale.mean", "latent_scale.std"} | {
        f"vae_decoder.{k}" for k in network.decoder.state_dict()
    }
    s.unet.load_state_dict({k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")})
    assert_same(s.unet, hand.ema, start, hand.opt, "weights")
    assert all(torch.equal(v, state["unet_ema"][k]) for k, v in s.unet.state_dict().items())
    assert all(torch.equal(v, tensors[f"vae_decoder.{k}"]) for k, v in network.decoder.state_dict().items())
    for name, value in (("mean", latents.mean), ("std", latents.std)):
        assert torch.allclose(tensors[f"latent_scale.{name}"].flatten().double(), torch.from_numpy(value), rtol=1e-5)
    assert {
        "job": "diffusion", "nimg": 48, "classes": list(pack.classes), "geometry": pack.geometry, "shape": [2, 8, 8],
        "vae": {k: about_vae["config"][k] for k in ("channels", "latent_channels", "width", "down", "num_res")},
    }.items() <= about.items()  # fmt: skip


def test_a_run_may_start_from_the_networks_of_another(finished, packs, vae, tmp_path):
    """Both of them; what is measured first is the other run's last loss."""
    flags = ("--init-from", str(finished), "--vae", str(vae), "--total-kimg", "0.008", "--log-kimg", "1")
    done = run_main(SCRIPT, "--run", str(tmp_path / "run"), *FLAGS, *flags, packs=packs)
    assert done.code == 0, done.said
    last, first = Checkpoints(finished / "checkpoints").load(48), Checkpoints(tmp_path / "run/checkpoints").load(0)
    for name in ("unet", "unet_ema"):
        assert all(torch.equal(v, first[name][k]) for k, v in last[name].items()), name
    losses = {k: v for k, v in tiny.rows(finished)[-1].items() if k.startswith("val_loss")}
    assert len(losses) == 3 and losses.items() <= tiny.rows(tmp_path / "run")[0].items()
    goes_on = ("--init-from", str(finished), "--vae", str(vae), "--total-kimg", "0.016", "--log-kimg", "1")
    with mock.patch.object(script, "load_initial_weights", side_effect=AssertionError):  # once, at its start
        assert run_main(SCRIPT, "--run", str(tmp_path / "run"), *FLAGS, *goes_on, packs=packs).code == 0


def test_a_dry_run_checks_all_and_makes_nothing(finished, vae, packs, tmp_path):
    """The VAE is this run's own copy where there is one, else the one that a run would take."""
    run = tmp_path / "run"

    common = ("--run", str(run), "--data", "phantom:24", "--total-kimg", "0.008", "--dry-run")

    def dry(*flags):
        return run_main(SCRIPT, *common, *flags, packs=packs)

    assert dry().code == 78 and "pretrain_vae.py" in dry().err
    done = dry("--vae", str(vae))
    expected = dataclasses.asdict(config(*common, "--vae", str(vae)))
    assert done.code == 0 and json.loads(done.out) == expected and "memory" in done.err and not run.exists()
    assert dry("--vae", str(vae), "--resolution", "64").code == 78
    assert dry("--space", "pixel", "--widths", "8,8").code == 0
    assert dry("--vae", str(vae), "--data", str(tmp_path / "none")).code == 78
    run.mkdir(mode=0o700)
    (run / "vae.safetensors").write_bytes((vae / "weights.safetensors").read_bytes())
    assert dry().code == 0
    changed = run_main(
        SCRIPT, "--run", str(finished), *FLAGS, "--vae", str(vae), "--num-res", "2", "--dry-run", packs=packs
    )
    assert changed.code == 78 and "--num-res 1 -> 2" in changed.said
