"""One training step of a StyleGAN2 written again from the papers with plain autograd, and train_gan.py held against it.

Only the networks are the product's (test_stylegan2.py holds them), the order of the data and its coins
(test_batches.py), and how an image is warped by drawn parameters (test_augment.py). Losses, penalties, Adam, averages,
ADA, who sees which rows and every draw are written here a second time. Killed and resumed runs are compared with
undisturbed ones elsewhere; there both sides run the same code, so that a step which is wrong on both sides is noticed
here alone.

Karras 2019: arXiv 1812.04948. Karras 2020a: arXiv 1912.04958. Karras 2020b: arXiv 2006.06676. Mescheder 2018: arXiv
1801.04406. Huang 2024: arXiv 2501.05441.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import threading
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from inprocess import run_main
from safetensors.torch import load_file
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch.nn.functional import softplus

import train_gan
from data.batches import Batches, flip_coins, sample_order
from data.pack import ensure_pack
from jobs.config import parsing, specs
from jobs.predict.gan_look import HeldOut
from jobs.training import ranks, upkeep
from models.augment import KINDS, augment, draw_augmentation
from models.stylegan2 import Discriminator, Generator, PublishedGenerator

TINY = (
    "--preset quickstart --data phantom:40 --resolution 32 --channel-base 128 --channel-max 8 --z-dim 6 --w-dim 10 "
    "--mapping-layers 2 --batch 8 --mbstd-group 2 --threads 1 --precision fp32 --lr 0.005 --seed 8 "
    "--total-kimg 0.048 --checkpoint-minutes 0 --checkpoint-kimg 0.008 --keep 20 --sample-kimg 1 --metric-kimg 0"
).split()
BATCH, STEPS = 8, 6
FIRST_P = 0.4  # of ADA, so that augmentation matters from the first step on


# --- the step, from the papers ---------------------------------------------------------------------------------------
class Adam:
    """Kingma and Ba 2015 with beta1 = 0: the step is the gradient over the root of its unbiased mean square.

    A regulariser that comes every k steps has steps of its own, so rate and decay are taken to the power of
    c = k / (k + 1), as it were (Karras 2020a, appendix B). What a loss does not depend on has the gradient 0.
    """

    def __init__(self, module: torch.nn.Module, lr: float, interval: int):
        c = interval / (interval + 1) if interval else 1.0
        self.parameters, self.lr, self.beta2, self.steps = list(module.parameters()), lr * c, 0.99**c, 0
        self.squares = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def descend(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.steps += 1
        for p, g, v in zip(self.parameters, gradients, self.squares, strict=True):
            g = torch.zeros_like(p) if g is None else g
            v.copy_(self.beta2 * v + (1 - self.beta2) * g * g)
            p.sub_(self.lr * g / ((v / (1 - self.beta2**self.steps)).sqrt() + 1e-8))


def stream(seed: int, position: int, purpose: str) -> torch.Generator:
    """The random stream of one purpose at one position, as jobs/runtime.py promises it: BLAKE2b of the three."""
    digest = hashlib.blake2b(f"{seed}/{position}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") // 2)


@dataclass
class Fakes:
    """One batch of generated images and what they were made from."""

    images: torch.Tensor
    ws: torch.Tensor
    w: torch.Tensor  # of the first latent
    labels: torch.Tensor | None


class Reference:
    """Networks, moving averages and ADA of one run; the whole global batch at once, on one process."""

    def __init__(self, c: specs.GanConfig, pack, held=None):
        self.c, self.pack, self.held = c, pack, held
        classes = len(pack.classes) if c.conditional else 0
        torch.manual_seed(
            int.from_bytes(hashlib.blake2b(f"{c.seed}/0/weights".encode(), digest_size=8).digest(), "little") // 2
        )
        sizes = dict(resolution=c.resolution, channels=c.channels, num_classes=classes, mapping_layers=c.mapping_layers,
                     channel_base=c.channel_base, channel_max=c.channel_max)  # fmt: skip
        network = {"rpgan": Generator, "logistic": PublishedGenerator}[c.loss]
        self.G = network(**sizes, z_dim=c.z_dim, w_dim=c.w_dim)
        self.D = Discriminator(**sizes, mbstd_group=c.mbstd_group)
        self.G_ema = copy.deepcopy(self.G)
        self.adam_G = Adam(self.G, c.lr, c.pl_interval if c.pl_weight > 0 else 0)
        self.adam_D = Adam(self.D, c.lr, c.r1_interval if c.gamma > 0 else 0)
        self.pl_mean = 0.0
        self.p, self.signs, self.seen, self.steps = FIRST_P if c.ada != "off" else 0.0, 0.0, 0, 0
        self.r_v, self.above_held, self.above_fake = 0.0, 0.0, 0.0
        self.logged: dict[str, float] = {}

    def reals(self, position: int, pack=None, order=None) -> tuple[torch.Tensor, torch.Tensor | None]:
        pack = self.pack if pack is None else pack
        order = sample_order(len(pack), self.c.seed, position, self.c.batch) if order is None else order
        images = torch.from_numpy(np.stack([pack.images[i] for i in order]).astype(np.float32)) / 127.5 - 1
        if self.c.hflip:
            for i, coin in enumerate(flip_coins(self.c.seed, position, self.c.batch)):
                images[i] = images[i].flip(2) if coin else images[i]
        return images, torch.from_numpy(pack.labels[order]) if self.c.conditional else None

    def fakes(self, position: int, purpose: str, batch: int) -> Fakes:
        """Latents; style mixing of two of them with probability `style_mixing`, from a layer drawn evenly (Karras 2019,
        section 3.1); labels with the frequencies of the training set, or of the real slices that a relativistic loss
        pairs them with (Huang 2024, equation 2: one condition for both); noise for every layer."""
        c, G, g = self.c, self.G, stream(self.c.seed, position, purpose)
        both = torch.randn(2, batch, c.z_dim, generator=g)
        crossover = torch.randint(1, G.num_ws, (batch,), generator=g)
        mixed = torch.rand(batch, generator=g) < c.style_mixing
        drawn = torch.randint(len(self.pack), (batch,), generator=g)
        labels = torch.from_numpy(self.pack.labels)[drawn] if c.conditional else None
        if c.loss == "rpgan" and purpose in ("G", "D", "R2"):
            labels = self.reals(position)[1]
        sides = [4] + [side for k in range(3, int(math.log2(c.resolution)) + 1) for side in (2**k, 2**k)]
        noise = [torch.randn(batch, 1, side, side, generator=g) for side in sides]
        w, other = G.mapping(both[0], labels), G.mapping(both[1], labels)
        ws = torch.stack(
            [
                torch.stack([other[i] if mixed[i] and layer >= crossover[i] else w[i] for layer in range(G.num_ws)])
                for i in range(batch)
            ]
        )
        return Fakes(G.synthesis(ws, noise), ws, w, labels)

    def augmented(self, images: torch.Tensor, position: int, purpose: str) -> torch.Tensor:
        if self.c.ada == "off":
            return images
        drawn = draw_augmentation(
            len(images),
            self.p,
            self.c.resolution,
            stream(self.c.seed, position, f"augment {purpose}"),
            "cpu",
            KINDS[self.c.ada],
        )
        return augment(images, drawn)

    def log(self, **values: torch.Tensor) -> None:
        self.logged |= {name: float(value.detach().double().mean()) for name, value in values.items()}

    def step(self, nimg: int, position: int) -> dict[str, float]:
        """The step that starts when `nimg` images were seen, on the data and draws of `position`; what it logs."""
        c, number = self.c, nimg // self.c.batch
        self.logged = {}
        w = self.train_generator(position)
        if c.pl_weight > 0 and number % c.pl_interval == 0:
            self.smooth_generator(position)
        self.train_discriminator(position)
        if c.gamma > 0 and number % c.r1_interval == 0:
            self.smooth_discriminator(position)
        with torch.no_grad():
            if c.conditional:  # every class that was there moves its own average
                for k, mean in w.items():
                    self.G.w_avg[k] = 0.998 * self.G.w_avg[k] + 0.002 * mean
            else:
                self.G.w_avg.copy_(0.998 * self.G.w_avg + 0.002 * w)
            if "path_length" in self.logged:
                self.pl_mean += c.pl_decay * (self.logged["path_length"] - self.pl_mean)
            # Half of the average is forgotten after ema_kimg, or sooner: after this share of the images seen.
            half_life = c.ema_kimg * 1000
            if c.ema_rampup > 0:
                half_life = min(half_life, c.ema_rampup * (nimg + c.batch))
            kept = 0.5 ** (c.batch / half_life)
            for average, p in zip(self.G_ema.parameters(), self.G.parameters(), strict=True):
                average.copy_(kept * average + (1 - kept) * p)
            self.G_ema.w_avg.copy_(self.G.w_avg)
        if c.ada != "off":
            self.steer(nimg + c.batch)
        return self.logged

    def train_generator(self, position: int):
        """Non-saturating logistic loss, or the relativistic one with reals that are augmented as their partners are."""
        c, fakes = self.c, self.fakes(position, "G", self.c.batch)
        logits = self.D(self.augmented(fakes.images, position, "G"), fakes.labels)
        if c.loss == "rpgan":
            reals, labels = self.reals(position)
            loss = softplus(self.D(self.augmented(reals, position, "G"), labels) - logits)
        else:
            loss = softplus(-logits)
        self.adam_G.descend(loss.mean())
        self.log(loss_G=loss)
        w = fakes.w.detach()
        if not c.conditional:
            return w.mean(0)
        return {k: w[fakes.labels == k].mean(0) for k in fakes.labels.unique().tolist()}

    def smooth_generator(self, position: int) -> None:
        """Path length regularisation (Karras 2020a, equation 4) on half a batch, every pl_interval steps that much
        stronger."""
        c, half = self.c, self.c.batch // 2
        fakes = self.fakes(position, "path length", half)
        y = torch.randn(fakes.images.shape, generator=stream(c.seed, position, "pl noise")) / c.resolution
        (jacobian_y,) = torch.autograd.grad((fakes.images * y).sum(), fakes.ws, create_graph=True)
        lengths = jacobian_y.square().sum(2).mean(1).sqrt()
        penalty = (lengths - self.pl_mean) ** 2
        self.adam_G.descend(c.pl_weight * c.pl_interval * penalty.mean())
        self.log(path_length=lengths, pl_penalty=penalty)

    def held_out_like(self, position: int) -> list[int]:
        """Held-out slices of the classes of the training slices: each class goes round in an order of its own."""
        seed, look = self.c.seed, position // (4 * BATCH)
        rows = []
        for i, k in enumerate(self.pack.labels[sample_order(len(self.pack), seed, position, BATCH)]):
            own = [j for j in range(len(self.held)) if not self.c.conditional or self.held.labels[j] == k]
            rows.append(own[sample_order(len(own), seed, BATCH * look + i, 1)[0]])
        return rows

    def train_discriminator(self, position: int) -> None:
        if self.c.ada != "off" and self.held is not None and self.steps % 4 == 3:  # p moves after this step
            held, of = self.reals(position, self.held, self.held_out_like(position))
            with torch.no_grad():
                self.log(logits_held=self.D(self.augmented(held, position, "D held out"), of))
        fakes, (reals, labels) = self.fakes(position, "D", self.c.batch), self.reals(position)
        real = self.D(self.augmented(reals, position, "D real"), labels)
        fake = self.D(self.augmented(fakes.images.detach(), position, "D fake"), fakes.labels)
        relativistic = self.c.loss == "rpgan"
        loss = softplus(-(real - fake)) if relativistic else softplus(fake) + softplus(-real)
        self.adam_D.descend(loss.mean())
        # r_t of ADA is the mean sign of D(real) (Karras 2020b, section 3); relativistic logits have no zero of their
        # own.
        signs = torch.sign(real - fake if relativistic else real)
        self.log(loss_D=loss, logits_real=real, logits_fake=fake, sign_real=signs)

    def smooth_discriminator(self, position: int) -> None:
        """gamma / 2 |grad D|^2 on what D sees of real images (Mescheder 2018), for rpgan also of generated ones (Huang
        2024)."""
        c, total = self.c, 0.0
        reals, labels = self.reals(position)
        inputs = {"r1": (self.augmented(reals, position, "R1"), labels)}
        if c.loss == "rpgan":
            fakes = self.fakes(position, "R2", c.batch)
            inputs["r2"] = self.augmented(fakes.images, position, "R2"), fakes.labels
        for name, (images, classes) in inputs.items():
            images = images.detach().requires_grad_(True)
            logits = self.D(images, classes)
            (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            penalty = slope.square().sum((1, 2, 3))
            total = total + c.gamma / 2 * c.r1_interval * penalty.mean()
            self.log(**{name: penalty})
        self.adam_D.descend(total)

    def steer(self, nimg: int) -> None:
        """Every four steps p moves by the images seen since over ada_kimg, up where D is too sure of the reals; p <=
        0.8. Relativistic logits: where held-out slices are too far from the training slices on the way to the generated
        ones (Karras 2020b, equation 1); without any, p = 0.3 is reached as fast as p may move."""
        if "logits_held" in self.logged:
            self.above_held = 0.9 * self.above_held + 0.1 * (self.logged["logits_real"] - self.logged["logits_held"])
            self.above_fake = 0.9 * self.above_fake + 0.1 * (self.logged["logits_real"] - self.logged["logits_fake"])
            self.r_v = self.above_held / self.above_fake if self.above_fake > 0 else 0.0
        self.signs, self.seen, self.steps = (
            self.signs + self.logged["sign_real"] * self.c.batch,
            self.seen + self.c.batch,
            self.steps + 1,
        )
        if self.steps % 4 == 0:
            figure = self.r_v if self.c.loss == "rpgan" else self.signs / self.seen
            towards = np.sign(figure - self.c.ada_target)
            self.p = min(max(self.p + towards * self.seen / (1000 * self.c.ada_kimg), 0.0), 0.8)
            self.signs, self.seen = 0.0, 0
        if self.c.loss == "rpgan" and self.held is None:
            self.p = min(nimg / (1000 * self.c.ada_kimg), 0.3)


# --- the product against it ------------------------------------------------------------------------------------------
def flags_of(text: str) -> list[str]:
    return [*TINY, *text.split()]


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """ADA begins at FIRST_P; on one thread of the CPU, as the reference."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # What costs most and is no part of a step: the figures of speed, and the plot at the end.
    monkeypatch.setattr(train_gan, "step_flops", lambda *args: dict.fromkeys(product((False, True), repeat=2), 0.0))
    monkeypatch.setattr(upkeep, "plot_losses", lambda *args: None)
    build = train_gan.build_state

    def with_augmentation(c, *args):
        s = build(c, *args)
        s.ada.p = FIRST_P if c.ada != "off" else 0.0
        return s

    monkeypatch.setattr(train_gan, "build_state", with_augmentation)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pack_of(c: specs.GanConfig, packs: Path, split: str = "train"):
    return ensure_pack(
        c.data, resolution=c.resolution, channels=c.channels, cache_dir=packs, progress=False, log=lambda text: None,
        split=split,
    )  # fmt: skip


def held_of(c: specs.GanConfig, packs: Path):
    return None if c.val_split == "none" else pack_of(c, packs, "val")


def networks(state) -> dict[str, dict[str, torch.Tensor]]:
    """{G, D, G_ema: {name: tensor}} of a checkpoint, a TrainState or a Reference, as they are now."""
    parts = (
        state if isinstance(state, dict) else {name: getattr(state, name).state_dict() for name in ("G", "D", "G_ema")}
    )
    return {name: {k: v.clone() for k, v in parts[name].items()} for name in ("G", "D", "G_ema")}


def assert_near(ours: dict, reference: dict, first: dict, where: str, relativistic: bool = False) -> None:
    """Every tensor has moved from `first` as the reference's has, up to rounding. (Adam divides by the size of the
    gradient, so a fault moves a parameter by about as much as a step does, however small the gradient.) Of what D adds
    to both logits of a pair of one class a relativistic loss says nothing: there is but rounding in those gradients."""
    for name, tensors in reference.items():
        assert ours[name].keys() == tensors.keys()
        for key, expected in tensors.items():
            if relativistic and f"{name}.{key}" in ("D.out.bias", "D.linear.bias"):
                continue
            moved, size = (expected - first[name][key]).norm(), expected.norm()
            error = (ours[name][key] - expected).norm()
            assert error <= 3e-3 * moved + 1e-7 * size, (
                f"{where}: {name}.{key} is off by {error / (moved + 1e-12):.1e} of its way"
            )
            if not key.startswith("noise_") or key.endswith("strength"):
                assert moved > 0, f"{where}: {name}.{key} was to move"


def levelled(row: dict, c: specs.GanConfig) -> dict:
    """A row with D's logits as differences, where the loss is of differences and their level is a matter of rounding.
    (That of held-out slices is in r_v, which is compared for itself.)"""
    if c.loss != "rpgan":
        return row
    apart = row["logits_real"] - row["logits_fake"]
    return {k: v for k, v in row.items() if not k.startswith("logits_")} | {"apart": apart}


def checkpoint(run: Path, nimg: int) -> dict:
    return torch.load(run / "checkpoints" / f"{nimg:012d}.pt", weights_only=True)


CASES = {
    "logistic": "--loss logistic --accumulate 2 --ada off --pl-weight 2 --pl-interval 2 --pl-decay 0.3 --gamma 1 "
    "--r1-interval 3 --style-mixing 0.9 --ema-kimg 0.012 --ema-rampup 0.5 --log-kimg 0.008",
    # With classes, in half batches, on mirrored slices; p falls, as r_v says. (Without classes nothing holds the level
    # of D's logits.)
    "rpgan": "--loss rpgan --conditional --hflip --accumulate 2 --pl-weight 1 --pl-interval 3 --pl-decay 0.2 --gamma "
    "0.5 --r1-interval 2 "
    "--style-mixing 0.3 --ada mri --ada-target 0.9 --ada-kimg 0.2 --ema-kimg 0.02 --ema-rampup 0 --log-kimg 0.008",
    # With classes and three channels, without path lengths; p rises.
    "no-path-length": "--loss logistic --conditional --accumulate 2 --channels 3 --pl-weight 0 --pl-interval 2 --gamma "
    "2 --r1-interval 4 "
    "--style-mixing 0.6 --ada mri-flip --ada-target -1 --ada-kimg 0.2 --ema-kimg 5 --ema-rampup 0.4 --log-kimg 0.024",
    "no-gradient-penalty": "--loss rpgan --conditional --ada mri --val-split none --ada-kimg 0.2 --pl-weight 2 "
    "--pl-interval 4 --pl-decay 0.3 --gamma 0 "
    "--r1-interval 2 --style-mixing 1 --ema-kimg 0.012 --ema-rampup 0.5 --log-kimg 0.016",
}


@pytest.mark.parametrize("case", CASES)
def test_six_steps_of_main_are_those_of_the_reference(packs, tmp_path, case):
    """Networks, moving average, w average, path-length mean and ADA in every checkpoint; figures in every row."""
    flags, run = [*flags_of(CASES[case]), "--run", str(tmp_path / "run")], tmp_path / "run"
    outcome = run_main("train_gan.py", *flags, packs=packs, tiny=False)
    assert outcome.code == 0, outcome.said
    c = parsing.parse_config(specs.GanConfig, flags)
    reference = Reference(c, pack_of(c, packs), held_of(c, packs))
    first = networks(reference)
    start = networks(checkpoint(run, 0))
    assert all(torch.equal(start[name][key], first[name][key]) for name in first for key in first[name])
    rows = {row["nimg"]: row for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    interval, logged = round(c.log_kimg * 1000), []
    assert sorted(rows) == list(range(0, BATCH * STEPS + 1, interval))
    for nimg in range(0, BATCH * STEPS, BATCH):
        logged.append(reference.step(nimg, nimg))
        now = nimg + BATCH
        saved = checkpoint(run, now)
        assert_near(networks(saved), networks(reference), first, f"after {now} images", c.loss == "rpgan")
        assert float(saved["pl_mean"]) == pytest.approx(reference.pl_mean, rel=1e-5)
        if c.ada != "off":
            assert saved["ada"]["p"] == pytest.approx(reference.p, abs=1e-9)
            assert (saved["ada"]["sign_sum"], saved["ada"]["count"]) == pytest.approx((reference.signs, reference.seen))
            ours = saved["ada"]["r_v"], saved["ada"]["to_held"], saved["ada"]["to_generated"]
            expected = reference.r_v, reference.above_held, reference.above_fake
            assert ours == pytest.approx(expected, rel=2e-3, abs=1e-5)
        if now % interval == 0:
            expected = {name: [values[name] for values in logged if name in values] for name in train_gan.STATS}
            expected = {name: sum(values) / len(values) for name, values in expected.items() if values}
            expected |= {"ada_p": reference.p, "pl_mean": reference.pl_mean}
            ours = {name: rows[now][name] for name in [*train_gan.STATS, "ada_p", "pl_mean"] if name in rows[now]}
            assert rows[now]["r_v"] == pytest.approx(reference.r_v, rel=2e-3, abs=1e-5)
            ours, expected = levelled(ours, c), levelled(expected, c)
            near = 1e-3 if c.loss == "rpgan" else 2e-4
            assert ours == pytest.approx(expected, rel=near, abs=2e-5), f"row of {now} images"
            logged = []
    if c.ada != "off":
        assert reference.p != FIRST_P  # else the direction of p would be checked by nobody
    written = load_file(run / "weights.safetensors")
    assert {f"G_ema.{key}" for key in saved["G_ema"]} == set(written)
    assert all(torch.equal(written[f"G_ema.{key}"], value) for key, value in saved["G_ema"].items())


@pytest.mark.parametrize("log_kimg", [0.008, 1])  # it is a row that finds it, or else a checkpoint
def test_after_a_divergence_main_goes_on_with_other_data_and_draws(packs, tmp_path, monkeypatch, log_kimg):
    """The batch at position 24 is poison.

    Back to 16 images, past what was seen up to 32, and to the end with code 0.
    """
    flags = flags_of(
        "--loss logistic --conditional --ada mri --ada-kimg 1 --pl-weight 2 --pl-interval 3 --gamma 1 --r1-interval 2 "
        f"--ema-kimg 0.02 --ema-rampup 0.5 --log-kimg {log_kimg} --checkpoint-kimg 0.016"
    )
    real, asked, run = Batches.rows, [], tmp_path / "run"

    def poisoned(self, nimg, start, stop):
        asked.append(nimg)
        images, labels = real(self, nimg, start, stop)
        return (images * math.nan if nimg == 24 else images), labels

    monkeypatch.setattr(Batches, "rows", poisoned)
    outcome = run_main("train_gan.py", *flags, "--run", str(run), packs=packs, tiny=False)
    assert outcome.code == 0 and outcome.said.count("DIVERGED") == 1, outcome.said
    positions = [0, 8, 16, 24, 32, 40, 48, 56]
    assert list(dict.fromkeys(asked)) == positions
    c = parsing.parse_config(specs.GanConfig, [*flags, "--run", str(run)])
    reference = Reference(c, pack_of(c, packs), held_of(c, packs))
    first = networks(reference)
    for nimg, position in zip(range(0, BATCH * STEPS, BATCH), [0, 8, *positions[4:]], strict=True):
        logged = reference.step(nimg, position)
    saved = checkpoint(run, BATCH * STEPS)
    assert_near(networks(saved), networks(reference), first, "after the divergence")
    assert saved["counters"]["skip"] == 16 and saved["counters"]["rollbacks"] == 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if log_kimg == 1:
        assert [row["nimg"] for row in rows] == [0, 48]
        return
    assert [row["nimg"] for row in rows] == [0, 8, 16, 24, 32, 40, 48]  # the row of what was undone is gone
    assert {name: rows[-1][name] for name in logged} == pytest.approx(logged, rel=2e-4, abs=2e-5)
    events = EventAccumulator(str(run / "tensorboard"))  # the reader behind TensorBoard's page
    events.Reload()
    curve = [(e.step, float(e.tensor_proto.float_val[0])) for e in events.Tensors("1_loss/loss_D")]
    assert curve == [(row["nimg"], pytest.approx(row["loss_D"])) for row in rows[1:]]


# --- several ranks ---------------------------------------------------------------------------------------------------
class Ranks:
    """Ranks that are threads of this process; `all_reduce` stands for the one of torch.distributed."""

    def __init__(self, world: int):
        self.world, self.barrier, self.parts = world, threading.Barrier(world, timeout=60), {}
        self.me = threading.local()

    def all_reduce(self, tensor: torch.Tensor, op=None, group=None) -> None:
        self.parts[self.me.rank] = tensor.detach().clone()
        self.barrier.wait()
        total = sum(self.parts[rank] for rank in range(self.world))
        self.barrier.wait()
        tensor.copy_(total)

    def run(self, work) -> None:
        """work(rank) in a thread for each rank; what one raises is raised here."""
        errors: list[BaseException] = []

        def rank_of(rank: int) -> None:
            self.me.rank = rank
            torch.set_num_threads(1)
            try:
                work(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=rank_of, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])


@dataclass
class Watched:
    """Batches that remember which rows they were asked for."""

    batches: Batches
    asked: list = field(default_factory=list)

    def rows(self, nimg: int, start: int, stop: int):
        self.asked.append((nimg, start, stop))
        return self.batches.rows(nimg, start, stop)


@pytest.mark.parametrize("loss, orthogonal", [("rpgan", True), ("logistic", False)])
def test_each_loss_has_its_own_start(loss, orthogonal):
    """rpgan from orthogonal matrices: equal singular values. StyleGAN2's own loss from normal ones, as published."""
    c = parsing.parse_config(specs.GanConfig, flags_of(f"--loss {loss} --conditional --run unused"))
    s = train_gan.build_state(c, 2, torch.device("cpu"))
    for G in (s.G, s.G_ema):
        for layer in [*G.mapping.layers, *(part.affine for part in (*G.layers, *G.to_rgb))]:
            values = torch.linalg.svdvals(layer.weight.detach())
            assert bool(values.max() < 1.001 * values.min()) == orthogonal
    for layer in s.D.mapping.layers:
        values = torch.linalg.svdvals(layer.weight.detach())
        assert values.max() > 1.5 * values.min()


@pytest.mark.parametrize(("accumulate", "pieces"), [
    (1, [[(0, 4)], [(4, 8)]]),
    (2, [[(0, 2), (2, 4)], [(4, 6), (6, 8)]]),
])  # fmt: skip
def test_two_ranks_take_their_rows_and_step_as_one(packs, monkeypatch, accumulate, pieces):
    """Each rank sees its part of the batch alone, and both end with the networks of the reference, which saw it all."""
    c = parsing.parse_config(
        specs.GanConfig,
        flags_of(
            f"--loss {'rpgan' if accumulate == 2 else 'logistic'} --conditional --hflip --accumulate {accumulate} "
            "--pl-weight 2 --pl-interval 2 "
            "--pl-decay 0.3 --gamma 1 --r1-interval 3 --ada mri --ada-target 0.9 --ada-kimg 0.2 --ema-kimg 0.02 "
            "--ema-rampup 0.5 --run unused"
        ),
    )
    pack, held, both, cpu = pack_of(c, packs), held_of(c, packs), Ranks(2), torch.device("cpu")
    monkeypatch.setattr(torch.distributed, "all_reduce", both.all_reduce)
    states = [train_gan.build_state(c, len(pack.classes), cpu) for _ in range(2)]
    data = [Watched(Batches(pack, seed=c.seed, batch=c.batch, device=cpu, hflip=c.hflip)) for _ in range(2)]
    others = HeldOut(c, pack, held, cpu)
    labels = torch.from_numpy(pack.labels)

    def work(rank: int) -> None:
        s, rt = states[rank], ranks.Runtime(rank, 2, rank, cpu, 1)
        for nimg in range(0, BATCH * STEPS, BATCH):
            networks = s.G.synthesis, s.D
            step = train_gan.Step(c, rt, data[rank], labels, torch.float32, nimg, *networks, held=others)
            train_gan.train_step(s, step, nimg)

    both.run(work)
    reference = Reference(c, pack, held)
    first = networks(reference)
    logged = [reference.step(nimg, nimg) for nimg in range(0, BATCH * STEPS, BATCH)]
    expected = {name: np.mean([v[name] for v in logged if name in v]) for name in set().union(*logged)}
    for s in states:
        assert_near(networks(s), networks(reference), first, "on two ranks", c.loss == "rpgan")
        near = 1e-3 if c.loss == "rpgan" else 2e-4
        assert levelled(s.averages.means(), c) == pytest.approx(levelled(expected, c), rel=near, abs=2e-5)
        assert float(s.pl_mean) == pytest.approx(reference.pl_mean, rel=1e-5) and s.ada.p == pytest.approx(reference.p)
        assert s.ada.r_v == pytest.approx(reference.r_v, rel=2e-3, abs=1e-5)
    for a, b in zip(networks(states[0]).values(), networks(states[1]).values(), strict=True):
        assert all(torch.equal(a[key], b[key]) for key in a)  # to the bit: they must never drift apart
    for rank in range(2):
        assert {(start, stop) for _, start, stop in data[rank].asked} == set(pieces[rank])
        assert {nimg for nimg, _, _ in data[rank].asked} == set(range(0, BATCH * STEPS, BATCH))


# --- the draws themselves --------------------------------------------------------------------------------------------
def test_latents_of_one_batch(packs):
    """Shares and ranges of what is drawn: mixing with probability style_mixing, from every layer but the first, labels
    as frequent as in the training set, normal latents and noise."""
    c = parsing.parse_config(specs.GanConfig, flags_of("--conditional --style-mixing 0.3 --run unused"))
    rt = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)
    G = Generator(resolution=32, z_dim=6, w_dim=10, channel_base=128, channel_max=8, mapping_layers=2, num_classes=3)
    pool = torch.tensor([0] * 6 + [2] * 3 + [1])
    step = train_gan.Step(c, rt, None, pool, torch.float32, 8, None, None, None)
    n = 4096
    drawn = train_gan.draw_latents(step, G, n, "D")
    mixed = drawn["cutoff"] < G.num_ws
    assert abs(mixed.float().mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)
    assert drawn["cutoff"][mixed].unique().tolist() == list(range(1, G.num_ws))
    shares = torch.bincount(drawn["labels"], minlength=3) / n
    assert torch.allclose(shares, torch.tensor([0.6, 0.1, 0.3]), atol=0.03)
    for value in (drawn["z"], drawn["z_mix"], *drawn["noise"][:3]):
        assert len(value) == n and abs(float(value.mean())) < 0.05 and abs(float(value.std()) - 1) < 0.05
    assert not torch.equal(drawn["z"], drawn["z_mix"])
    assert [tuple(layer.shape[1:]) for layer in drawn["noise"]] == [(1, h, h) for h in (4, 8, 8, 16, 16, 32, 32)]
    others = [train_gan.draw_latents(step, G, 8, purpose)["z"] for purpose in ("G", "D", "R2", "path length")]
    assert len({tuple(z.flatten().tolist()) for z in others}) == 4  # no phase learns on the latents of another
