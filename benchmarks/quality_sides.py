"""The trainings that benchmarks.quality compares: ours, and those of public trainers, with equal widths and clocks."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F

import train_diffusion
import train_gan
from benchmarks import peers
from data.batches import Batches
from data.packfile import Pack, open_pack
from jobs.config.recipe import derived
from jobs.config.specs import DiffusionConfig, GanConfig
from jobs.predict import diffusion_look, gan_look, latent_space
from jobs.training import collectives, devices
from models import samplers, schedules
from models.ema import ema_beta, update_ema

SAMPLES = 500  # of each side
BATCH, CHANNEL_BASE, CHANNEL_MAX, LATENT, MAPPING = 16, 1024, 64, 64, 2
RESOLUTION = 32
UNET = (16, 32, 64)  # channels of the U-Nets
GROUPS = 8  # of the peers' group norms (their 32 are too many): norms of single channels would take the time away again
FAST, FAST_GAN = 1e-3, 0.005  # learning rates for such short runs; the peers' are for runs a hundred times as long
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
    steer: str = ""  # packed slices of other people again, for our ADA; the judge does not look at them


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
        channel_max=CHANNEL_MAX, z_dim=LATENT, w_dim=LATENT, mapping_layers=MAPPING, lr=FAST_GAN, **recipe,
    )  # fmt: skip
    c = derived(config)
    s, dtype = train_gan.build_state(c, 0, rt.device), devices.precision_dtype(c.precision, rt.device)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device, hflip=False, room=0)
    labels = torch.from_numpy(np.array(pack.labels)).to(rt.device)
    held = open_pack(task.steer) if task.steer else None
    held = gan_look.held_out_for_ada(c, pack, held, device=rt.device, say=print)
    nimg, clock = 0, Clock(task.seconds)
    while clock.goes_on():
        step = train_gan.Step(c, rt, batches, labels, dtype, nimg, s.G.synthesis, s.D, held=held)
        train_gan.train_step(s, step, nimg)
        nimg += c.batch
    batches.close()
    gen = torch.Generator().manual_seed(task.seed)
    with torch.no_grad():
        made = []
        for z in torch.randn(SAMPLES, c.z_dim, generator=gen).to(rt.device).split(50):
            # Noise of its own for each, as the peers draw it: with the same in all they would share a grain.
            made.append(to_bytes(s.G_ema(z, None, noise=s.G_ema.draw_noise(len(z), gen, rt.device))))
        return torch.cat(made), nimg


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


def nvlabs(task: Task, pack: Pack, lr: float = 0.0025, pl_weight: float = 2.0) -> tuple[torch.Tensor, int]:
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
    losses = loss.StyleGAN2Loss(
        device=device, G_mapping=G.mapping, G_synthesis=G.synthesis, D=D, r1_gamma=gamma, pl_weight=pl_weight
    )
    optimizers = {}
    for net, interval in ((G, 4 if pl_weight else 0), (D, 16)):
        ratio = interval / (interval + 1) if interval else 1.0
        betas = 0.0, 0.99**ratio
        optimizers[net] = torch.optim.Adam(net.parameters(), lr=lr * ratio, betas=betas, eps=1e-8)
    real, none = images_of(pack).to(device), torch.zeros(BATCH, 0, device=device)
    nimg, clock = 0, Clock(task.seconds)
    while clock.goes_on():
        batch = real[torch.randint(len(real), (BATCH,), device=device)]
        for phase, net, interval in (("Gmain", G, 1), ("Greg", G, 4), ("Dmain", D, 1), ("Dreg", D, 16)):
            if nimg // BATCH % interval or (phase == "Greg" and not pl_weight):
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


SIDES: dict[str, tuple[str, Callable]] = {  # {name: (in words, training)}
    "gan-logistic": ("ours, logistic, ADA", partial(our_gan, loss="logistic", pl_weight=0.0)),
    "gan-rpgan": ("ours, rpgan, ADA", partial(our_gan, loss="rpgan")),
    "nvlabs": ("stylegan2-ada-pytorch", nvlabs),
    "nvlabs-fast": (
        "stylegan2-ada, our way",
        partial(nvlabs, lr=FAST_GAN, pl_weight=0.0),
    ),
    "lucidrains": ("stylegan2-pytorch", lucidrains),
    "diffusion": ("ours, diffusion on pixels", our_diffusion),
    "diffusers": ("diffusers", diffusers),
    "diffusers-fast": ("diffusers, our rate", partial(diffusers, lr=FAST)),
    "monai": ("MONAI", monai),
    "monai-fast": ("MONAI, our rate", partial(monai, lr=FAST)),
}
