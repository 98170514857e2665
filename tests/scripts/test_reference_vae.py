"""pretrain_vae.py against a second writing of it from the papers: plain autograd, AdamW by hand, figures in plain
loops.

Kingma and Welling 2014 (posterior, KL), Rombach 2022 (the sum of losses), Isola 2017 and Lim and Ye 2017 (the
discriminator), Esser 2021 (the balance of gradients), Wang 2004 (SSIM), Zhang 2018 (distance in VGG's features).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from by_hand import ALONE, CPU, AdamW, assert_same, average, clipped, close, copies, rate_at, two_ranks, wake, weights
from inprocess import run_main
from test_perceptual import narrow

import pretrain_vae as script
from data.batches import Batches, flip_coins, sample_order
from data.latents import latents_path, open_latents
from data.pack import ensure_pack
from data.walk import DataError
from jobs.config import parsing
from jobs.config.specs import VaeConfig
from jobs.predict import vae_look
from jobs.run import stopping
from jobs.training import randomness, ranks
from jobs.training.checkpoint import Checkpoints
from jobs.training.throughput import count_flops
from jobs.training.weights import read_weights

SCRIPT = "pretrain_vae.py"
START, SKIP = 16, 24  # images seen before the first of the six steps, and data that a roll-back has skipped


def config(*flags: str) -> VaeConfig:
    return parsing.parse_config(VaeConfig, [*tiny.FLAGS[SCRIPT], *flags])


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return ensure_pack("phantom:24", resolution=32, cache_dir=tmp_path_factory.mktemp("packs"), log=lambda *_: None)


# --- the losses, one number per slice ---------------------------------------------------------------------------------
def mean_of(x: torch.Tensor) -> float:
    return float(x.detach().mean())


def each(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(len(x), -1).mean(1)


def similarity(a: torch.Tensor, b: torch.Tensor, window: int) -> torch.Tensor:
    """SSIM of images in 0 ..

    1 over all whole windows (Wang 2004): every window laid out, weighed with a Gaussian of 1.5.
    """
    offset = torch.arange(window) - window // 2
    weigh = torch.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2)).flatten()
    weigh = (weigh / weigh.sum())[:, None]
    x, y = (F.unfold(v.flatten(0, 1)[:, None], window) for v in (a, b))  # (N C, window^2, places)
    mx, my = (x * weigh).sum(1), (y * weigh).sum(1)
    vx, vy, cov = ((p * q * weigh).sum(1) - m for p, q, m in ((x, x, mx * mx), (y, y, my * my), (x, y, mx * my)))
    values = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return each(values.reshape(len(a), -1))


def structure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """At full, half and quarter size: 1 - SSIM and the L1 distance of the differences of neighbours; their mean."""
    terms = []
    for factor in (1, 2, 4):
        x, y = (v if factor == 1 else F.interpolate(v, scale_factor=1 / factor, mode="area") for v in (a, b))
        down = each(((x[..., 1:, :] - x[..., :-1, :]) - (y[..., 1:, :] - y[..., :-1, :])).abs())
        across = each(((x[..., 1:] - x[..., :-1]) - (y[..., 1:] - y[..., :-1])).abs())
        terms.append(1 - similarity((x + 1) / 2, (y + 1) / 2, 7) + down + across)
    return sum(terms) / 3


def perceptual(state: dict, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Zhang 2018, equation 1 with equal weights, in the features of a VGG-16 of which `state` is the state dict."""

    def features(x):
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
        x, maps = ((x + 1) / 2 - mean) / std, []
        for place in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
            x = F.relu(F.conv2d(x, state[f"features.{place}.weight"], state[f"features.{place}.bias"], padding=1))
            if place in (2, 7, 14, 21, 28):
                maps.append(x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-6))
                x = F.max_pool2d(x, 2)
        return maps

    return sum(each((p - q).square().sum(1)) for p, q in zip(features(a), features(b), strict=True)) / 5


# --- the step ---------------------------------------------------------------------------------------------------------
class ByHand:
    """A run's networks and all that a step changes."""

    def __init__(self, c: VaeConfig, s, pack):
        self.c, self.pack, self.figures = c, pack, []
        self.vae, self.ema, self.D = copies(s.vae, s.vae_ema, s.D)
        self.opt = AdamW(self.vae, 0.9, 0.99, c.weight_decay)
        self.opt_D = AdamW(self.D, 0.5, 0.99, c.weight_decay)
        self.balance, self.rate = float(s.gan_balance), 0.0
        self.factor, self.best = s.counters["lr_factor"], s.counters["best_window"]
        self.window = [float(s.window[0] / s.window[1])] if s.window[1] else []
        self.vgg = torch.load(c.perceptual_file) if c.perceptual_file else None

    def images(self, position: int) -> torch.Tensor:
        order = sample_order(len(self.pack.images), self.c.seed, position, self.c.batch)
        pixels = self.pack.images[order].astype("float32")
        if self.c.hflip:
            coins = flip_coins(self.c.seed, position, self.c.batch)
            pixels = np.stack([image[..., ::-1] if coin else image for image, coin in zip(pixels, coins, strict=True)])
        return torch.from_numpy(pixels) / 127.5 - 1

    def step(self, nimg: int, position: int) -> None:
        c, images = self.c, self.images(position)
        side = 32 // c.down
        noise = torch.randn(
            c.batch, c.latent_channels, side, side, generator=randomness.generator(c.seed, position, "posterior")
        )
        mean, logvar = self.vae.encode(images)
        output = self.vae.decode(mean + torch.exp(logvar / 2) * noise)
        error = output - images
        pixels = each(error.abs() if c.loss == "l1" else error**2)
        kl = each(mean**2 + torch.exp(logvar) - logvar - 1) / 2
        shape = structure(output, images) if c.structure_weight else torch.zeros(c.batch)
        reconstruction, row = pixels + c.structure_weight * shape, {}
        if self.vgg:
            distance = perceptual(self.vgg, output, images)
            reconstruction = reconstruction + c.perceptual_weight * distance
            row["loss_perceptual"] = mean_of(distance)
        loss, measured = reconstruction.mean() + c.kl_weight * kl.mean(), None
        joined = c.gan_weight and nimg >= 1000 * c.gan_start_kimg
        if joined:
            pleased = each(self.D(output))
            loss = loss - c.gan_weight * self.balance * pleased.mean()
            lengths = [
                torch.autograd.grad(v.sum(), output, retain_graph=True)[0].flatten(1).norm(dim=1).mean()
                for v in (reconstruction, pleased)
            ]
            measured = min(float(lengths[0] / (lengths[1] + 1e-4)), 1e4)
            row["loss_adversarial"] = -mean_of(pleased)
        cosine = c.decay_kimg if c.decay == "cosine" else 0
        self.rate = rate_at(nimg, c.batch, c.lr, c.warmup_kimg, cosine) * self.factor
        gradients, norm = clipped(torch.autograd.grad(loss, list(self.vae.parameters())), c.clip)
        self.opt.step(gradients, self.rate)
        row |= {"loss_pixels": mean_of(pixels), "loss_structure": mean_of(shape), "kl": mean_of(kl), "grad_norm": norm}
        if joined:
            real, fake = self.D(images), self.D(output.detach())
            hinge = (each(F.relu(1 - real)) + each(F.relu(1 + fake))).mean() / 2
            self.opt_D.step(clipped(torch.autograd.grad(hinge, list(self.D.parameters())), c.clip)[0], self.rate)
            self.balance += (measured - self.balance) / 10
            row["loss_D"] = mean_of(hinge)
        nimg += c.batch
        average(self.ema, self.vae, nimg, c.batch, c.ema_kimg, c.ema_rampup)
        self.figures.append(row)
        if c.decay == "plateau":
            self.plateau(nimg, row["loss_pixels"])

    def plateau(self, nimg: int, loss: float) -> None:
        self.window.append(loss)
        if self.c.gan_weight and nimg - 2 * self.c.batch < 1000 * self.c.gan_start_kimg <= nimg - self.c.batch:
            self.best = math.inf  # in this step the discriminator took part for the first time
        if nimg // (1000 * self.c.plateau_kimg) > (nimg - self.c.batch) // (1000 * self.c.plateau_kimg):
            mean, self.window = sum(self.window) / len(self.window), []
            if mean >= 0.99 * self.best:
                self.factor = max(self.factor / 2, 0.01)
            self.best = min(mean, self.best)

    def means(self) -> dict[str, float]:
        """Of what was logged, over the steps that had it."""
        names = {name for row in self.figures for name in row}
        values = {name: [row[name] for row in self.figures if name in row] for name in names}
        return {name: sum(v) / len(v) for name, v in values.items()}


ALWAYS = (
    "--lr 0.002 --weight-decay 0.3 --kl-weight 0.2 --structure-weight 0.6 --gan-weight 0.8 --ema-kimg 0.06 "
    "--ema-rampup 1.5 "
    "--warmup-kimg 0.04 --decay-kimg 0.1 --num-res 1"
)
CASES = {
    "it joins after the third step": "--gan-start-kimg 0.04 --clip 4.2",
    "it is there; squares; no structure; parts; a "
    "loss scale": "--gan-start-kimg 0 --loss mse --structure-weight 0 --accumulate 2 --clip 0.3",
    "none; VGG; plateau": "--gan-weight 0 --perceptual-weight 0.7 --perceptual-file VGG --decay plateau --plateau-kimg "
    "0.02 --clip 100",
    "it joins between two windows; VGG; plateau; parts; a "
    "loss scale": "--gan-start-kimg 0.032 --perceptual-weight 0.3 --perceptual-file VGG "
    "--decay plateau --plateau-kimg 0.016 --accumulate 4 --down 2 --latent-channels 3 --clip 4",
}


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("vgg") / "vgg.pth"
    # Rounding must not decide which units are on: where all of a place are off, or the largest two of a pool are equal,
    # the gradient jumps. So there are some channels, and most of them are on.
    torch.save({k: v + 0.5 if k.endswith("bias") else v for k, v in narrow(8).items()}, path)
    return str(path)


def prepared(c: VaeConfig, scaled: bool = False):
    """A state in the middle of a run, in which every layer takes part."""
    s = script.build_state(c, CPU)
    wake(s.vae, 1)
    s.vae_ema.load_state_dict(s.vae.state_dict())
    s.gan_balance.fill_(0.7)
    s.counters |= {"skip": SKIP, "lr_factor": 0.5, "best_window": 0.2}
    s.window.copy_(torch.tensor([0.3 * 8, 8]))
    if scaled:
        s.scaler_vae, s.scaler_D = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (512.0, 64.0))
    return s


def run_steps(c: VaeConfig, pack, s, number: int, rt=ALONE, dtype=torch.float32) -> None:
    batches = Batches(pack, seed=c.seed, batch=c.batch, device="cpu")
    network = script.open_perceptual(c, CPU)
    for at in range(START, START + number * c.batch, c.batch):
        script.train_step(s, script.Step(c, rt, batches, dtype, at, at + s.counters["skip"], s.vae, network))


def check(s, hand: ByHand, start: dict) -> None:
    assert_same(s.vae, hand.vae, start["vae"], hand.opt, "vae")
    assert_same(s.vae_ema, hand.ema, start["vae"], hand.opt, "vae_ema")
    if hand.opt_D.count:
        assert_same(s.D, hand.D, start["D"], hand.opt_D, "D")
    else:
        assert all(torch.equal(v, start["D"][k]) for k, v in s.D.state_dict().items())
    close(s.averages.means(), hand.means())
    close(s.log_extra(), {"gan_balance": hand.balance, "lr": hand.rate})
    assert (s.counters["lr_factor"], s.counters["best_window"]) == pytest.approx((hand.factor, hand.best), rel=1e-4)
    if hand.c.decay == "plateau":
        assert s.window.tolist() == pytest.approx([8 * sum(hand.window), 8 * len(hand.window)], rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_six_steps_are_those_of_the_papers(pack, vgg, name):
    """Parameters of VAE, average and discriminator, balance, plateau and figures, with all draws of the global
    batch."""
    c = config(*ALWAYS.split(), *CASES[name].replace("VGG", vgg).split())
    s = prepared(c, scaled="loss scale" in name)
    hand, start = ByHand(c, s, pack), {"vae": weights(s.vae), "D": weights(s.D)}
    run_steps(c, pack, s, 6)
    for nimg in range(START, START + 6 * 8, 8):
        hand.step(nimg, nimg + SKIP)
    check(s, hand, start)
    assert s.scaler_vae.get_scale() == (512 if "loss scale" in name else 1)


def test_two_ranks_with_parts_are_the_same_steps(pack, vgg, monkeypatch):
    """For one of four seeds, as sums in another order can carry a unit of D or of the VGG over its kink, from which on
    the runs differ by per cents; a wrong step differs for every seed."""
    flags = "--gan-start-kimg 0.02 --perceptual-weight 0.7 --perceptual-file VGG --decay plateau --plateau-kimg 0.016"
    flags = ALWAYS.split() + flags.replace("VGG", vgg).split() + ["--accumulate", "2"]

    def compare(seed: int) -> None:
        c = config(*flags, "--seed", str(seed))
        states = [prepared(c), prepared(c)]
        hand, start = ByHand(c, states[0], pack), {"vae": weights(states[0].vae), "D": weights(states[0].D)}
        two_ranks(monkeypatch, lambda rt: run_steps(c, pack, states[rt.rank], 3, rt))
        for nimg in range(START, START + 3 * 8, 8):
            hand.step(nimg, nimg + SKIP)
        for s in states:
            check(s, hand, start)

    for seed in (3, 4, 5):
        with contextlib.suppress(AssertionError):
            return compare(seed)
    compare(6)


def test_networks_run_in_the_type_and_losses_in_fp32(pack, vgg):
    flags = "--gan-start-kimg 0 --perceptual-file VGG".replace("VGG", vgg).split()
    c, seen = config(*flags), {}
    s, network = prepared(c), script.open_perceptual(c, CPU)
    modules = {"encoder": s.vae.encoder, "decoder": s.vae.decoder, "D": s.D.model, "VGG": network.convolutions[3]}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, __, out, name=name: seen.setdefault(name, set()).add(out.dtype))
    batches = Batches(pack, seed=c.seed, batch=c.batch, device="cpu")
    script.train_step(s, script.Step(c, ALONE, batches, torch.bfloat16, 0, 0, s.vae, network))
    assert seen == {name: {torch.bfloat16} for name in modules}
    assert all(p.dtype == torch.float32 for m in (s.vae, s.D) for p in m.parameters())
    seen.clear()
    vae_look.Reconstructions(c, pack, None, ALONE, torch.bfloat16)(s.vae)
    assert seen == {name: {torch.bfloat16} for name in ("encoder", "decoder")}


def test_flops_of_a_step_are_those_of_the_real_one(pack):
    c = config("--gan-start-kimg", "0.02", "--accumulate", "2")
    flops, s = script.step_flops(c, ranks.Runtime(1, 4, 1, CPU, 1), torch.float32, None), prepared(c)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device="cpu")
    for nimg, joined in ((16, False), (24, True)):
        step = script.Step(c, ALONE, batches, torch.float32, nimg, nimg, s.vae)
        assert step.adversarial == joined
        assert count_flops(lambda: script.train_step(s, step)) == flops[joined] * c.batch  # noqa: B023
    assert set(flops) == {False, True} and flops[True] > flops[False]


def test_the_start_is_drawn_from_the_seed_and_the_average_is_the_network():
    first, again, other = (script.build_state(config("--seed", seed), CPU) for seed in ("3", "3", "4"))
    for name in ("vae", "D"):
        a, b, c = (list(getattr(s, name).parameters()) for s in (first, again, other))
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
        assert all(not torch.equal(p, q) for p, q in zip(a, c, strict=True) if p.dim() == 4)
    assert all(torch.equal(v, first.vae_ema.state_dict()[k]) for k, v in first.vae.state_dict().items())
    assert not first.vae_ema.training and not any(p.requires_grad for p in first.vae_ema.parameters())


def test_networks_and_loss_scales_are_those_of_the_flags():
    """A loss scale is for fp16 alone."""
    for flags, sizes, scaled in (
        ("", (1, 8, 2, 4), False),
        (
            "--channels 3 --width 16 --latent-channels 5 --down 2 --num-res 2 --disc-width 24 --precision fp16",
            (3, 16, 5, 2),
            True,
        ),
    ):
        c = config(*flags.split())
        s = script.build_state(c, CPU)
        for vae in (s.vae, s.vae_ema):
            blocks = sum(type(m).__name__ == "ResBlock" for m in vae.encoder)
            found = (vae.encoder[0].in_channels, vae.encoder[0].out_channels, vae.latent_channels, vae.down)
            assert found == sizes[:4] and blocks == c.num_res * c.down.bit_length() + 2
            assert vae.decoder[0].in_channels == sizes[2] and vae.decoder[-1].out_channels == sizes[0]
        assert (s.D.model[0].in_channels, s.D.model[0].out_channels) == (sizes[0], 24 if scaled else 8)
        assert s.scaler_vae.is_enabled() == s.scaler_D.is_enabled() == scaled


# --- what a person sees -----------------------------------------------------------------------------------------------
def head(image: np.ndarray) -> np.ndarray:
    """(R, R) bool of an image (C, R, R) in 0 .. 1: all but the dark that the border reaches."""
    dark, n = image.max(0) < 0.05, image.shape[-1]
    outside, todo = np.zeros((n, n), bool), [(i, j) for i in range(n) for j in range(n) if {i, j} & {0, n - 1}]
    while todo:
        i, j = todo.pop()
        if 0 <= i < n and 0 <= j < n and dark[i, j] and not outside[i, j]:
            outside[i, j] = True
            todo += [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
    return ~outside


def similarity_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(R - 10, R - 10) SSIM of each 11 x 11 window of images (C, R, R), mean over the channels."""
    line = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    weigh = np.outer(line, line) / line.sum() ** 2
    mean = lambda v: (np.lib.stride_tricks.sliding_window_view(v, (11, 11), axis=(1, 2)) * weigh).sum((3, 4))  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean(0)


@torch.no_grad()
def figures_of(vae, images: np.ndarray, prefix: str, learnt: np.ndarray) -> tuple[dict, torch.Tensor]:
    """(figures, reconstructions) of slices uint8 (N, C, R, R): from the posterior means, slice by slice. The mean
    slice is that of `learnt`."""
    x = torch.from_numpy(images.astype("float32")) / 127.5 - 1
    mean, logvar = vae.encode(x)
    output = vae.decode(mean).clamp(-1, 1)
    scores = {k: [] for k in ("l1", "psnr", "ssim", "psnr_head", "ssim_head")}
    for a, b in zip((output.double().numpy() + 1) / 2, (x.double().numpy() + 1) / 2, strict=True):
        inside, error, alike = head(b), ((a - b) ** 2).mean(0), similarity_map(a, b)
        scores["l1"].append(np.abs(a - b).mean())
        scores["psnr"].append(-10 * np.log10(error.mean()))
        scores["ssim"].append(alike.mean())
        if inside.any():
            scores["psnr_head"].append(-10 * np.log10(error[inside].mean()))
            scores["ssim_head"].append(alike[inside[5:-5, 5:-5]].mean())
    z, sd = (v.double().transpose(0, 1).flatten(1) for v in (mean, (logvar / 2).exp()))
    spread, total = z.var(1, unbiased=False), (z.var(1, unbiased=False) + sd.square().mean(1)).sqrt()
    figures = {f"{prefix}_{k}": float(np.mean(v)) for k, v in scores.items()} | {
        "active_channels": int((spread > 0.01).sum()), "latent_mean": float(z.mean()),
        "latent_std": float(total.square().mean().sqrt()), "latent_std_min": float(total.min()),
        "latent_std_max": float(total.max()), "posterior_std": float(sd.mean()),
    }  # fmt: skip
    errors = ((images.astype(float) - learnt.astype(float).mean(0)) ** 2).mean((1, 2, 3)) / 255**2
    figures["mean_slice_psnr"] = float((-10 * np.log10(errors)).mean())
    return figures, output


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """Images in -1 .. 1 as they are shown."""
    return np.rint((x.clamp(-1, 1).double().numpy() + 1) * 127.5).astype(np.uint8)


@pytest.mark.parametrize("held", [True, False])
def test_reconstructions_are_those_of_the_posterior_means(pack, monkeypatch, held):
    """Ten of the slices, evenly spread, in chunks of three or nine on one rank and on two; one slice has no head. The
    picture has the first chunk above its reconstructions, row by row."""
    assert (vae_look.LOOKED_AT, vae_look.CHUNK) == (256, 32)
    chunk = 3 if held else 9
    monkeypatch.setattr(vae_look, "LOOKED_AT", 10)
    monkeypatch.setattr(vae_look, "CHUNK", chunk)
    rows: list = []
    draw = lambda images, columns, row_labels=(): rows.append(row_labels) or (images, columns)  # noqa: E731
    monkeypatch.setattr(vae_look, "image_grid", draw)
    c = config("--latent-channels", "3")
    vae = script.build_state(c, CPU).vae_ema
    wake(vae, 2)
    with torch.no_grad():  # one channel carries nothing; some of the output lies beyond -1 .. 1
        vae.encoder[-1].weight[1] *= 0.01
        vae.decoder[-1].weight *= 4
    images = np.array(pack.images)
    images[0] = 3
    source = SimpleNamespace(images=images, labels=pack.labels, digest="d")
    other = SimpleNamespace(images=images[::-1], labels=pack.labels, digest="e")
    looked_at = [0, 3, 5, 8, 10, 13, 15, 18, 20, 23]  # of 24
    learnt = (images[::-1] if held else images)[looked_at]
    expected, output = figures_of(vae, images[looked_at], "val" if held else "train", learnt)
    given = (other, source) if held else (source, None)
    alone = vae_look.Reconstructions(c, *given, ALONE, torch.float32)
    (picture, columns), found = alone(vae)
    close(found, expected, rel=1e-3)
    assert 0 < found["active_channels"] < 3 and columns == min(chunk, 8)
    above, below = images[looked_at[:chunk]], as_bytes(output[:chunk])
    full = min(chunk, 8)  # the ninth alone would fill no row, and stand under another one's name
    pairs = np.concatenate([row[:full] for row in (above, below)])
    assert rows == [["slice", "the VAE's"]]
    assert np.abs(picture.astype(int) - pairs).max() <= 1
    shown, columns = alone.reals()
    assert np.array_equal(shown, above) and columns == 8
    made = two_ranks(monkeypatch, lambda rt: vae_look.Reconstructions(c, *given, rt, torch.float32)(vae))
    for _, figures in made:
        close(figures, expected, rel=1e-3)
    assert np.abs(made[0][0][0].astype(int) - pairs).max() <= 1 and made[1][0] is None


@pytest.mark.parametrize(("side", "columns"), [(128, 8), (256, 6)])
def test_rows_of_large_slices_are_shorter(side, columns):
    images = np.full((40, 1, side, side), 200, np.uint8)
    source = SimpleNamespace(images=images, labels=np.zeros(40, np.int64), digest="d")
    c = config("--resolution", str(side))
    seen = vae_look.Reconstructions(c, source, None, ALONE, torch.float32)
    assert seen.columns == columns and [len(part) for part in seen.images] == [32, 8]
    assert seen.reals().size == (columns * (side + 2) + 2, 4 * (side + 2) + 2)


# --- the run ----------------------------------------------------------------------------------------------------------
FLAGS = (
    "--data phantom:24 --total-kimg 0.048 --log-kimg 0.008 --sample-kimg 0.024 --checkpoint-kimg 0.016 --hflip "
    "--clip 0.5 "
    "--gan-start-kimg 0.016 --kl-weight 0.05 --ema-kimg 0.02 --ema-rampup 1 --weight-decay 0.2 --warmup-kimg 0.02"
).split()


@pytest.fixture(scope="module")
def finished(packs, tmp_path_factory) -> Path:
    """A run of six steps. The slices from position 24 on hold no numbers, which is noticed at 32 images, when the
    checkpoint of 16 is the newest: back to it, and on with the data from 32."""
    run, rows = tmp_path_factory.mktemp("finished") / "run", Batches.rows

    def poisoned(self, nimg, start, stop):
        images, labels = rows(self, nimg, start, stop)
        return (images * math.nan if nimg == 24 else images), labels

    # So small a network is no match for the mean slice, of which nothing is to be said here.
    with mock.patch.object(Batches, "rows", poisoned), mock.patch("jobs.training.judges.SETTLED", 2.0):
        done = run_main(SCRIPT, "--run", str(run), *FLAGS, packs=packs)
    assert done.code == 0 and done.said.count("DIVERGED") == 1, done.said
    assert f"predict.py reconstruct --run {run}\n" in done.out
    return run


def test_a_run_logs_and_writes_just_that_and_steps_over_a_poisoned_batch(finished, packs):
    """Every row, the figures of other patients, and the weights for predict.py, against the second writing."""
    at, state = Checkpoints(finished / "checkpoints").load_latest()
    assert (finished / "DONE").exists() and at == 48
    expected = {"skip": 16, "rollbacks": 1, "healthy": True, "lr_factor": 1, "best_window": math.inf}
    of_best = {"best_of", "best_figure", "best_nimg", "looked_nimg", "looks_since"}
    assert {k: v for k, v in state["counters"].items() if k not in of_best} == expected
    c = config("--run", str(finished), *FLAGS)
    pack, other = (
        ensure_pack("phantom:24", resolution=32, split=split, cache_dir=packs, log=lambda *_: None)
        for split in ("train", "val")
    )
    s = script.build_state(c, CPU)
    hand, start = ByHand(c, s, pack), {"vae": weights(s.vae), "D": weights(s.D)}
    found = tiny.rows(finished)
    assert [row["nimg"] for row in found] == list(range(0, 49, 8))
    lowest = (math.inf, 0)
    for row in found:
        nimg = row.pop("nimg")
        assert row.pop("kimg") == nimg / 1000
        expected = {"gan_balance": hand.balance, "lr": hand.rate if nimg else c.lr}
        if nimg:
            expected |= hand.figures[-1]
        if nimg % 24 == 0:
            expected |= figures_of(hand.ema, np.array(other.images), "val", np.array(pack.images))[0]
            # Not of an untrained network; and D joined in the step to 24, from where the best is looked for anew.
            lowest = min(lowest, (expected["val_l1"], nimg)) if nimg else lowest
        if nimg >= 24:
            expected |= {"best_val_l1": lowest[0], "best_kimg": lowest[1] / 1000}
        close(row, expected, rel=1e-3)
        if nimg < 48:
            hand.step(nimg, nimg + (16 if nimg >= 16 else 0))
    tensors, about = read_weights(finished / "weights.safetensors")
    written = script.build_vae(c)
    written.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items()})
    assert_same(written, hand.ema, start["vae"], hand.opt, "weights")
    assert all(torch.equal(v, state["vae_ema"][k]) for k, v in written.state_dict().items())
    sha = hashlib.sha256((finished / "weights.safetensors").read_bytes()).hexdigest()
    for source in (pack, other):  # for the diffusion that follows
        assert open_latents(latents_path(source, sha, packs), source, sha) is not None
    pictures = {p.name for p in (finished / "samples").iterdir()}
    assert pictures == {"reals.png", "00000.000.png", "00000.024.png", "00000.048.png"}
    assert {"job": "vae", "nimg": 48, "classes": list(pack.classes), "geometry": pack.geometry}.items() <= about.items()


def test_a_run_may_start_from_the_networks_of_another(finished, packs, tmp_path):
    """All three of them; what is measured first are the other run's last figures."""
    flags = ("--init-from", str(finished), "--total-kimg", "0.008", "--log-kimg", "1")
    done = run_main(SCRIPT, "--run", str(tmp_path / "run"), *FLAGS, *flags, packs=packs)
    assert done.code == 0, done.said
    last, first = Checkpoints(finished / "checkpoints").load(48), Checkpoints(tmp_path / "run/checkpoints").load(0)
    for name in ("vae", "vae_ema", "D"):
        assert all(torch.equal(v, first[name][k]) for k, v in last[name].items()), name
    figures = {
        k: v for k, v in tiny.rows(finished)[-1].items() if k.startswith(("val_", "active", "latent", "posterior"))
    }
    assert len(figures) == 11 and figures.items() <= tiny.rows(tmp_path / "run")[0].items()
    goes_on = ("--init-from", str(finished), "--total-kimg", "0.016", "--log-kimg", "1")
    with mock.patch.object(script, "load_initial_weights", side_effect=AssertionError):  # once, at its start
        assert run_main(SCRIPT, "--run", str(tmp_path / "run"), *FLAGS, *goes_on, packs=packs).code == 0


@pytest.mark.parametrize("error", [DataError("the disk is full"), stopping.Stopped("the time is over")])
def test_latents_are_written_by_a_finished_run_alone_and_their_lack_is_no_failure(packs, tmp_path, error):
    def trained(code, done):
        def train(c, rt, run, pack, held_out, attempt):
            if done:
                run.mark_done()
            return code

        return mock.patch.object(script, "train", train)

    flags = ("--run", str(tmp_path / "run"), "--data", "phantom:24")
    with mock.patch.object(script, "write_latents", side_effect=error) as write:
        with trained(75, False):
            assert run_main(SCRIPT, *flags, packs=packs).code == 75
        assert not write.called
        with trained(0, True):
            done = run_main(SCRIPT, *flags, packs=packs)
        assert done.code == 0 and write.call_count == 1 and str(error) in done.said
    c, _, run, written, _ = write.call_args.args
    assert (c.run, str(run.path)) == (str(tmp_path / "run"),) * 2
    assert [pack.meta["split"] for pack in written] == ["train", "val"]


def test_a_dry_run_checks_all_and_makes_nothing(finished, packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--run", str(run), "--data", "phantom:24", "--total-kimg", "0.008", "--dry-run")
    done, expected = run_main(SCRIPT, *flags, packs=packs), dataclasses.asdict(config(*flags))
    assert done.code == 0 and json.loads(done.out) == expected and "memory" in done.err and not run.exists()
    (tmp_path / "none.pth").write_bytes(b"")
    for wrong in (("--perceptual-file", str(tmp_path / "none.pth")), ("--data", str(tmp_path / "none"))):
        assert run_main(SCRIPT, *flags, *wrong, packs=packs).code == 78
    other = run_main(SCRIPT, "--run", str(finished), *FLAGS, "--width", "16", "--dry-run", packs=packs)
    assert other.code == 78 and "--width 8 -> 16" in other.said
