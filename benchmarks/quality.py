"""How good are the slices after equal computing time? Our recipes against those of public trainers.

    pip install --no-deps -r benchmarks/requirements.txt && pip install diffusers==0.42.1 monai==1.6.1
    python -m benchmarks.quality --data phantom:2000 --data FOLDER [--seconds 600] [--seeds 3] [--sides gan-rpgan,...]
        [--nvlabs CLONE] [--out FOLDER] [--write]

Every side trains for `--seconds` of CPU time (of GPU time where there is one) on one thread, with equal widths, on the
same slices, and is judged on slices of people that no side has seen. A result that lies in `--out` is not computed
again, so the table may grow over days (with other widths than below take another `--out`); `--write` puts all that is
there into benchmarks/RESULTS.md, and its pictures beside it. The Frechet distance is in principal components of the
training pixels, which no side's training prefers; all other figures are in the features that `predict.py evaluate`
uses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import train_diffusion
import train_gan
from benchmarks import machine, peers
from data.batches import Batches
from data.pack import ensure_held_out, ensure_pack
from data.packfile import Pack
from jobs.config.recipe import derived
from jobs.config.specs import ROOT, DiffusionConfig, GanConfig
from jobs.predict import diffusion_look, latent_space
from jobs.predict.features import RealSlices, open_features
from jobs.training import collectives, randomness, ranks
from jobs.view.grids import image_grid, save_png
from models import quality, samplers, schedules
from models.ema import ema_beta, update_ema

TITLE = "Quality at equal computing time"
SAMPLES, GRID, SHOWN, COMPONENTS = 500, 48, 16, 48
BATCH, CHANNEL_BASE, CHANNEL_MAX, LATENT, MAPPING = 16, 1024, 64, 64, 2
UNET = (16, 32, 64)  # channels of the U-Nets, at 32 px
GROUPS = 8  # of the peers' group norms (their 32 are too many): norms of single channels would take the time away again
FAST = 1e-3  # learning rate of our quickstart; the peers' are for runs a hundred times as long
CALLS_OF_PEERS = 50  # DDIM; their own 1,000 calls would take longer than the training


@dataclass(frozen=True)
class Task:
    """One training: which side, on which packed slices, for how long."""

    side: str
    pack: str
    seed: int
    seconds: float
    nvlabs: str
    out: str  # .npy of the samples, uint8 (N, 1, R, R)


class Clock:
    """Computing time of this process; on a GPU the time that passes."""

    def __init__(self, seconds: float):
        self.now = time.perf_counter if torch.cuda.is_available() else time.process_time
        self.seconds, self.start = seconds, self.now()

    def goes_on(self) -> bool:
        """Whether there is time for another step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.now() - self.start < self.seconds


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) in -1 .. 1 -> uint8 (B, 1, H, W); of several channels their mean."""
    grey = images.float().mean(1, keepdim=True)
    return ((grey + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


# --- ours -------------------------------------------------------------------------------------------------------------
def our_gan(task: Task, pack: Pack, **recipe) -> tuple[torch.Tensor, int]:
    """train_gan's own step; `recipe` are its flags."""
    rt = collectives.init_runtime(1)
    config = GanConfig(
        data="phantom", resolution=pack.images.shape[-1], batch=BATCH, channel_base=CHANNEL_BASE, seed=task.seed,
        channel_max=CHANNEL_MAX, z_dim=LATENT, w_dim=LATENT, mapping_layers=MAPPING, precision="fp32",
        **recipe,
    )  # fmt: skip
    c = derived(config)
    s = train_gan.build_state(c, 0, rt.device)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device, hflip=False, room=0)
    labels, nimg, clock = torch.from_numpy(np.array(pack.labels)).to(rt.device), 0, Clock(task.seconds)
    while clock.goes_on():
        step = train_gan.Step(c, rt, batches, labels, torch.float32, nimg, s.G.synthesis, s.D)
        train_gan.train_step(s, step, nimg)
        nimg += c.batch
    batches.close()
    gen = torch.Generator().manual_seed(task.seed)
    with torch.no_grad():
        z = torch.randn(SAMPLES, c.z_dim, generator=gen).to(rt.device)
        return torch.cat([to_bytes(s.G_ema(part, None)) for part in z.split(50)]), nimg


def our_diffusion(task: Task, pack: Pack) -> tuple[torch.Tensor, int]:
    """train_diffusion's own step on pixels, with the learning rate of its quickstart."""
    rt = collectives.init_runtime(1)
    c = DiffusionConfig(
        data="phantom", space="pixel", resolution=pack.images.shape[-1], batch=BATCH, seed=task.seed, lr=FAST,
        widths=",".join(map(str, UNET)), attention="8", ema_kimg=2.0, warmup_kimg=1.0, precision="fp32",
    )  # fmt: skip
    schedule = schedules.make_schedule(c.schedule)
    data = latent_space.Data(c, pack, None, None, rt.device, 0)
    s = train_diffusion.build_state(c, data, 0, rt.device)
    nimg, clock = 0, Clock(task.seconds)
    pace = Clock(0.1 * task.seconds)  # the rate is to fall until the end, which the first tenth of the time foretells
    while clock.goes_on():
        if not c.decay_kimg and not pace.goes_on():
            c = replace(c, decay_kimg=nimg / 100)  # kimg of ten times as many images
        train_diffusion.train_step(c, rt, s, data, schedule, s.unet, torch.float32, nimg)
        nimg += c.batch
    data.close()
    gen, made = torch.Generator().manual_seed(task.seed), []
    with torch.no_grad():
        for noise in torch.randn(SAMPLES, *data.shape, generator=gen).to(rt.device).split(50):
            predict = diffusion_look.predictor(s.unet_ema, None, torch.float32)
            denoise = samplers.denoiser(predict, schedule, c.target, clamp=1.0)
            made.append(to_bytes(samplers.sample(denoise, noise, schedule, c.sampler, c.steps)))
    return torch.cat(made), nimg


# --- public StyleGAN2 trainers ----------------------------------------------------------------------------------------
def images_of(pack: Pack) -> torch.Tensor:
    """All slices, (N, 1, R, R) in -1 .. 1."""
    return torch.from_numpy(np.array(pack.images)).float() / 127.5 - 1


def nvlabs(task: Task, pack: Pack) -> tuple[torch.Tensor, int]:
    """stylegan2-ada-pytorch's networks and loss by its `auto` settings, without ADA: that does not run on a torch of
    today."""
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    networks, loss, _, gradfix = peers.import_nvlabs(Path(task.nvlabs))
    device, resolution = torch.device("cuda" if torch.cuda.is_available() else "cpu"), pack.images.shape[-1]
    image = dict(c_dim=0, img_resolution=resolution, img_channels=1)
    widths = dict(channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX)
    shape = dict(z_dim=LATENT, w_dim=LATENT, mapping_kwargs=dict(num_layers=MAPPING), synthesis_kwargs=widths)
    G, G_ema = (networks.Generator(**shape, **image).to(device).requires_grad_(False) for _ in range(2))
    D = networks.Discriminator(**widths, **image).to(device).requires_grad_(False)
    G_ema.load_state_dict(G.state_dict())
    gradfix.enabled = True
    gamma = 0.0002 * resolution**2 / BATCH
    losses = loss.StyleGAN2Loss(device=device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, r1_gamma=gamma)
    optimizers = {}
    for net, interval in ((G, 4), (D, 16)):
        ratio = interval / (interval + 1)
        betas = 0.0, 0.99**ratio
        optimizers[net] = torch.optim.Adam(net.parameters(), lr=0.0025 * ratio, betas=betas, eps=1e-8)
    real, none = images_of(pack).to(device), torch.zeros(BATCH, 0, device=device)
    nimg, clock = 0, Clock(task.seconds)
    while clock.goes_on():
        batch = real[torch.randint(len(real), (BATCH,), device=device)]
        for phase, net, interval in (("Gmain", G, 1), ("Greg", G, 4), ("Dmain", D, 1), ("Dreg", D, 16)):
            if nimg // BATCH % interval:
                continue
            net.requires_grad_(True)
            optimizers[net].zero_grad(set_to_none=True)
            losses.accumulate_gradients(
                phase=phase, real_img=batch, real_c=none, gen_z=torch.randn(BATCH, LATENT, device=device), gen_c=none,
                sync=True, gain=interval,
            )  # fmt: skip
            net.requires_grad_(False)
            optimizers[net].step()
        nimg += BATCH
        update_ema(G_ema, G, ema_beta(nimg, BATCH, BATCH * 10 / 32, 0.05))
    G_ema.eval()
    z = torch.randn(SAMPLES, LATENT, generator=torch.Generator().manual_seed(task.seed)).to(device)
    return torch.cat([to_bytes(G_ema(part, torch.zeros(len(part), 0, device=device))) for part in z.split(50)]), nimg


def lucidrains(task: Task, pack: Pack) -> tuple[torch.Tensor, int]:
    """stylegan2-pytorch's own Trainer with its own settings, among them a latent of 512; the networks as they are,
    since its averages begin after 20,000 steps."""
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    device, resolution = torch.device("cuda" if torch.cuda.is_available() else "cpu"), pack.images.shape[-1]
    peer = peers.import_peer(device)
    real = ((images_of(pack) + 1) / 2).expand(-1, 3, -1, -1).to(device)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            yield real[torch.randint(len(real), (BATCH,), device=device)]

    generator = partial(peer.Generator, fmap_max=CHANNEL_MAX)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(StringIO()):
        with mock.patch.object(peer, "Generator", generator):
            trainer = peer.Trainer(
                base_dir=folder, image_size=resolution, batch_size=BATCH, gradient_accumulate_every=1,
                network_capacity=max(1, CHANNEL_BASE // resolution // 4), fmap_max=CHANNEL_MAX,
                style_depth=MAPPING, save_every=10**9, evaluate_every=10**9,
            )  # fmt: skip
            trainer.init_GAN()
        trainer.loader, trainer.save, trainer.evaluate = batches(), lambda *_: None, lambda *_, **__: None
        clock, made = Clock(task.seconds), []
        while clock.goes_on():
            trainer.train()
        G, S = trainer.GAN.G.eval(), trainer.GAN.S.eval()
        with torch.no_grad():
            for z in torch.randn(SAMPLES, trainer.GAN.G.latent_dim, device=device).split(50):
                w = S(z)[:, None].expand(-1, trainer.GAN.G.num_layers, -1)
                noise = torch.rand(len(z), resolution, resolution, 1, device=device)
                made.append(to_bytes(G(w, noise).clamp(0, 1) * 2 - 1))
        return torch.cat(made), int(trainer.steps) * BATCH


# --- public diffusion trainers ----------------------------------------------------------------------------------------
def diffusers(task: Task, pack: Pack, lr: float = 1e-4) -> tuple[torch.Tensor, int]:
    """diffusers: the settings of its train_unconditional script."""
    import diffusers as peer
    from diffusers.training_utils import EMAModel

    def network() -> torch.nn.Module:
        return peer.UNet2DModel(
            sample_size=pack.images.shape[-1], in_channels=1, out_channels=1, layers_per_block=2,
            block_out_channels=UNET, down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), attention_head_dim=32,
            norm_num_groups=GROUPS,
        )  # fmt: skip

    def optimizer(net: torch.nn.Module) -> tuple:
        adam = torch.optim.AdamW(net.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        return adam, EMAModel(net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)

    steps = partial(peer.DDIMScheduler)
    return noise_predictor(task, pack, network, optimizer, lambda net, x, t: net(x, t).sample, steps)


def monai(task: Task, pack: Pack, lr: float = 2.5e-5) -> tuple[torch.Tensor, int]:
    """MONAI: the settings of its two-dimensional DDPM tutorial."""
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler

    def network() -> torch.nn.Module:
        return DiffusionModelUNet(
            spatial_dims=2, in_channels=1, out_channels=1, channels=UNET, num_res_blocks=2,
            attention_levels=(False, False, True), num_head_channels=(0, 0, 32), norm_num_groups=GROUPS,
        )  # fmt: skip

    def optimizer(net: torch.nn.Module) -> tuple:
        return torch.optim.Adam(net.parameters(), lr=lr), None

    steps = partial(DDIMScheduler, num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
    return noise_predictor(task, pack, network, optimizer, lambda net, x, t: net(x, t), steps)


def noise_predictor(
    task: Task, pack: Pack, make: Callable, optimizer_of: Callable, predict: Callable, steps: Callable
) -> tuple[torch.Tensor, int]:
    """What both tutorials do: mean squared error of the noise at uniform times, then DDIM."""
    torch.set_num_threads(1)
    torch.manual_seed(task.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net, real = make().to(device), images_of(pack).to(device)
    (optimizer, ema), scheduler = optimizer_of(net), steps()
    nimg, clock, warm_up = 0, Clock(task.seconds), 500 if ema else 0
    rate = optimizer.param_groups[0]["lr"]
    while clock.goes_on():
        done = (clock.now() - clock.start) / clock.seconds  # diffusers' script: 500 steps up, then down along a cosine
        factor = min(1.0, (nimg // BATCH + 1) / warm_up) * 0.5 * (1 + np.cos(np.pi * done)) if warm_up else 1.0
        optimizer.param_groups[0]["lr"] = rate * factor
        x0 = real[torch.randint(len(real), (BATCH,), device=device)]
        noise, t = torch.randn_like(x0), torch.randint(1000, (BATCH,), device=device)
        F.mse_loss(predict(net, scheduler.add_noise(x0, noise, t), t), noise).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0 if ema else 1e9)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if ema:
            ema.step(net.parameters())
        nimg += BATCH
    if ema:
        ema.copy_to(net.parameters())
    net.eval()
    made = []
    with torch.no_grad():
        for x in torch.randn(SAMPLES, *real.shape[1:], generator=torch.Generator().manual_seed(task.seed)).split(50):
            x = x.to(device)
            scheduler.set_timesteps(CALLS_OF_PEERS)
            for t in scheduler.timesteps:
                out = scheduler.step(predict(net, x, torch.full((len(x),), int(t), device=device)), int(t), x)
                x = out[0] if isinstance(out, tuple) else out.prev_sample
            made.append(to_bytes(x.clamp(-1, 1)))
    return torch.cat(made), nimg


SIDES: dict[str, tuple[str, int, Callable]] = {  # {name: (in words, pixels, training)}
    "gan-logistic": ("ours, logistic, ADA", 32, our_gan),
    "gan-rpgan": ("ours, rpgan, ADA by schedule", 32, partial(our_gan, loss="rpgan")),
    "nvlabs": ("stylegan2-ada-pytorch, no ADA", 32, nvlabs),
    "lucidrains": ("stylegan2-pytorch", 32, lucidrains),
    "diffusion": ("ours, diffusion on pixels", 32, our_diffusion),
    "diffusers": ("diffusers", 32, diffusers),
    "diffusers-fast": ("diffusers, our learning rate", 32, partial(diffusers, lr=FAST)),
    "monai": ("MONAI", 32, monai),
    "monai-fast": ("MONAI, our learning rate", 32, partial(monai, lr=FAST)),
}


# --- judging ----------------------------------------------------------------------------------------------------------
def in_components(train: torch.Tensor, *sets: torch.Tensor) -> list[torch.Tensor]:
    """Each set, uint8 (N, 1, R, R), as (N, COMPONENTS) in the principal components of the training pixels."""
    x = train.flatten(1).double() / 255
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return [(images.flatten(1).double() / 255 - mean) @ vectors[:, -COMPONENTS:] for images in sets]


def judge(samples: torch.Tensor, train: Pack, held: Pack, seed: int) -> dict[str, float]:
    """The figures of one set of uint8 slices (N, 1, R, R)."""
    rt = ranks.Runtime(0, 1, 0, torch.device("cpu"), torch.get_num_threads())
    network, _ = open_features(None, train, Path(train.path).parent, rt)
    learnt, unseen = (torch.from_numpy(np.array(pack.images)) for pack in (train, held))
    features = [torch.cat([network(part) for part in x.split(100)]) for x in (samples, learnt, unseen)]
    draw = randomness.generator(seed, 0, "benchmark quality")
    figures = quality.set_figures(features[0], features[2], draw)
    pixels = [quality.Moments.of(x) for x in in_components(learnt, samples, unseen)]
    groups = RealSlices(train, held).subjects(held)
    copies, _ = quality.copying(*features, groups, features[1].mean(0))
    pairs = quality.pair_similarity(samples, quality.draw_pairs(torch.arange(len(samples)), 500, draw))
    real = quality.pair_similarity(unseen, quality.draw_pairs(groups, 500, draw))
    return {
        "kid": 1000 * figures["kid"],
        "fid": figures["fid"],
        "fid_pixels": quality.frechet_distance(*pixels),
        "precision": figures["precision"],
        "recall": figures["recall"],
        "coverage": figures["coverage"],
        "pairs": float(pairs.mean()),
        "pairs_real": float(real.mean()),
        "copies": copies["below_5th_percentile"],
    }


def packs_of(data: str, resolution: int) -> tuple[Pack, Pack]:
    """Training slices, and those of other people."""
    shape: Any = dict(resolution=resolution, channels=1, crop=0, progress=False)
    train, held = ensure_pack(data, **shape), ensure_held_out(data, "test", **shape)
    assert held is not None
    return train, held


def measure(task: Task, data: str, folder: Path) -> dict:
    """Train a side in a process of its own, judge its samples; the result is also written to `folder`."""
    train, held = packs_of(data, SIDES[task.side][1])
    words = [sys.executable, "-m", "benchmarks.quality", "--one", json.dumps(task.__dict__ | {"pack": train.path})]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(w) for w in words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise machine.Failed(done.stderr or done.stdout)
    nimg = int(done.stdout.split()[-1])
    samples = torch.from_numpy(np.load(task.out))
    save_png(Path(task.out).with_suffix(".png"), image_grid(samples[:GRID].numpy(), 8))
    return judge(samples, train, held, task.seed) | {"kimg": nimg / 1000, "seconds": task.seconds}


def of_training_slices(data: str, resolution: int, seed: int) -> dict:
    """The same figures of as many training slices: what a perfect generator would have."""
    train, held = packs_of(data, resolution)
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    return judge(torch.from_numpy(np.array(train.images))[rows], train, held, seed)


def name_of(side: str) -> str:
    """A side in words."""
    return SIDES[side][0] if side in SIDES else "training slices"


def in_order(key: tuple[str, float]) -> tuple[int, float]:
    """Where (side, seconds) stands in tables and pictures."""
    return [*SIDES, "training"].index(key[0]), key[1]


def with_range(values: list[float]) -> str:
    """Their mean, and with several the least and the largest: quartiles of three say little."""
    more = f" ({machine.number(min(values))}-{machine.number(max(values))})" if len(values) > 1 else ""
    return machine.number(statistics.fmean(values)) + more


def report(folder: Path) -> str:
    """The tables of all results in `folder`, one per data set and size."""
    found: dict[tuple[str, int], dict[tuple[str, float], list[dict]]] = {}
    for file in sorted(folder.glob("*.json")):
        about = json.loads(file.read_text())
        runs = found.setdefault((about["data"], about["resolution"]), {})
        runs.setdefault((about["side"], about.get("seconds", 0)), []).append(about)
    columns = ("kid", "fid", "fid_pixels", "precision", "recall", "coverage", "pairs", "copies")
    heads = ["side", "runs", "seconds", "kimg", "KID x 1000", "FID", "FID, pixels", "precision", "recall", "coverage",
             "MS-SSIM of pairs", "nearer than 95 % of held-out"]  # fmt: skip
    text = []
    for (data, resolution), sides in found.items():
        rows = []
        for (side, seconds), runs in sorted(sides.items(), key=lambda item: in_order(item[0])):
            time_and_kimg = ["-", "-"]
            if seconds:
                time_and_kimg = [f"{seconds:g}", machine.number(statistics.fmean(r["kimg"] for r in runs))]
            rows.append(
                [name_of(side), str(len(runs)), *time_and_kimg, *(with_range([r[c] for r in runs]) for c in columns)]
            )
        real = statistics.fmean(r["pairs_real"] for runs in sides.values() for r in runs)
        text.append(f"### {data}, {resolution} px\n\n" + machine.table(heads, rows))
        text[-1] += f"\n\nMS-SSIM of real pairs: {real:.3f}. Means over the runs, with the least and the largest; the "
        text[-1] += "rows may be of several commands."
    return "\n\n".join(text)


def picture(folder: Path, data: str, held: Pack) -> Image.Image:
    """The first slices of each side's first run, below real ones."""
    files = {}
    for file in folder.glob(f"{data}-*-0.json"):
        about = json.loads(file.read_text())
        if file.with_suffix(".npy").exists():
            files[about["side"], about["seconds"]] = file.with_suffix(".npy")
    order = sorted(files, key=in_order)
    real = np.array(held.images)[:: max(len(held) // SHOWN, 1)]
    rows = [real[:SHOWN], *(np.load(files[key])[:SHOWN] for key in order)]
    names = ["real slices", *(f"{name_of(side)}, {seconds:g} s" for side, seconds in order)]
    return image_grid(np.concatenate(rows), SHOWN, row_labels=names, scale=2)


def main() -> None:
    """Train and judge what has no result yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", action="append", help="phantom:N or a folder; repeatable (default phantom:2000)")
    parser.add_argument("--seconds", type=float, default=600, help="computing time of each training (default 600)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--sides", default="gan-logistic,gan-rpgan,diffusion", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--nvlabs", default="", help="a clone of stylegan2-ada-pytorch")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of the results")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the training process of one side
    args = parser.parse_args()
    if args.one:
        task = Task(**json.loads(args.one))
        from data.packfile import open_pack

        samples, nimg = SIDES[task.side][2](task, open_pack(task.pack))
        np.save(task.out, samples.numpy())
        print(nimg)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for data in args.data or ["phantom:2000"]:
            for side in args.sides.split(","):
                name, resolution = Path(data).name.replace(":", "-"), SIDES[side][1]
                file = args.out / f"{name}-{side}-{args.seconds:g}s-{seed}.json"
                about = dict(data=Path(data).name, resolution=resolution)
                real = args.out / f"{name}-training-{resolution}-{seed}.json"
                if not real.exists():
                    figures = of_training_slices(data, resolution, seed)
                    real.write_text(json.dumps(figures | about | {"side": "training"}))
                if file.exists():
                    continue
                task = Task(side, "", seed, args.seconds, args.nvlabs, str(file.with_suffix(".npy").absolute()))
                try:
                    figures = measure(task, data, args.out)
                except machine.Failed as error:
                    print(f"{name} {side} {seed}: not measured: {error.line()}", flush=True)
                    continue
                file.write_text(json.dumps(figures | about | {"side": side, "seed": seed}))
                print(f"{name} {side} {seed}: " + ", ".join(f"{k} {v:.3g}" for k, v in figures.items()), flush=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    about = machine.header(device, ["torch", "diffusers", "monai"])
    text = [machine.command("benchmarks.quality"), about, report(args.out)]
    print("\n\n".join(text))
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))
        for data in args.data or ["phantom:2000"]:
            name = Path(data).name.replace(":", "-")
            held = packs_of(data, 32)[1]
            save_png(machine.RESULTS.parent / "pictures" / f"quality-{name}.png", picture(args.out, name, held))


if __name__ == "__main__":
    main()
