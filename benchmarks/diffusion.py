"""The diffusion part against `diffusers` and MONAI: one training step, ten-call sampling, memory, how exact the
samplers are.

    pip install --no-deps -r benchmarks/requirements.txt && pip install diffusers==0.42.1 monai==1.6.1
    python -m benchmarks.diffusion [--quick] [--write] [--run RUN]

With --run, a finished diffusion run: what few calls cost in quality and win in time, against 250-call DDIM of its
weights.

The three U-Nets are the same network to the last parameter. Each side takes its training step as its users do: ours is
`train_diffusion.train_step`, which also draws the batch from cached latents and averages the weights; diffusers' is
that of its train_unconditional script, MONAI's that of its latent-diffusion tutorial. Each side runs in a process of
its own.
"""

from __future__ import annotations

import argparse
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import predict
import train_diffusion
from benchmarks import machine
from data.latents import Latents
from data.pack import ensure_pack
from data.packfile import Pack
from jobs.config.specs import DiffusionConfig
from jobs.predict import diffusion_look, latent_space
from jobs.training import collectives, devices
from models import quality, samplers, schedules
from models.encoder import train_encoder
from models.vae import VAE

TITLE = "Diffusion against diffusers and MONAI"
INSTALL = "run: pip install diffusers==0.42.1 monai==1.6.1"
WIDTHS, SHAPE, CALLS = (64, 128, 256), (4, 32, 32), 10
WAYS = (
    ("midpoint", 10),
    ("dpmpp-2m", 10),
    ("ddim", 10),
    ("midpoint", 20),
    ("dpmpp-2m", 20),
    ("ddim", 20),
    ("ddim", 250),
)


# --- the three sides --------------------------------------------------------------------------------------------------
class Ours:
    """The toolkit's own step and sampler, on latents that are in memory already."""

    def __init__(self, batch: int, precision: str, threads: int, widths: tuple[int, ...] = WIDTHS):
        """A network and latents for batches of `batch`; threads 0 takes all CPU cores."""
        rt = collectives.init_runtime(threads)
        torch.manual_seed(0)
        self.c = DiffusionConfig(
            data="phantom", batch=batch, precision=precision, schedule="linear", target="epsilon", times="uniform",
            widths=",".join(map(str, widths)),
        )  # fmt: skip
        rng = np.random.default_rng(0)
        values = rng.standard_normal((64, 2, *SHAPE)).astype(np.float16)
        latents = Latents("", values, np.zeros(64, np.int64), np.zeros(4), np.ones(4))
        self.data = latent_space.Data(self.c, types.SimpleNamespace(classes=[]), latents, None, rt.device)
        self.s = train_diffusion.build_state(self.c, self.data, 0, rt.device)
        self.rt, self.device, self.dtype = rt, rt.device, devices.precision_dtype(precision, rt.device)
        self.name, self.net = f"ours, {str(self.dtype).removeprefix('torch.')}", self.s.unet
        self.networks, self.tasks = (self.net,), {"step": self.step, "sample": self.sample}
        self.schedule, self.nimg = schedules.make_schedule("linear"), 0

    def step(self) -> None:
        """One training step, also of the EMA."""
        train_diffusion.train_step(self.c, self.rt, self.s, self.data, self.schedule, self.net, self.dtype, self.nimg)
        self.nimg += self.c.batch

    @torch.no_grad()
    def sample(self) -> None:
        """One batch of latents from noise, in CALLS network calls."""
        predict = diffusion_look.predictor(self.s.unet_ema, None, self.dtype)
        denoise = samplers.denoiser(predict, self.schedule, "epsilon")
        noise = torch.randn(self.c.batch, *SHAPE, device=self.rt.device)
        samplers.sample(denoise, noise, self.schedule, "midpoint", CALLS)


class OursEncoding(Ours):
    """The same step without the cache: the VAE of the preset adni256-ldm encodes the batch of 256 px slices first."""

    def __init__(self, batch: int, precision: str, threads: int):
        """As above, with images and an encoder before them."""
        super().__init__(batch, precision, threads)
        rt = self.rt
        self.vae = VAE(1, SHAPE[0]).to(rt.device).eval().requires_grad_(False)
        self.images = torch.rand(batch, 1, SHAPE[1] * self.vae.down, SHAPE[2] * self.vae.down, device=rt.device) * 2 - 1

    def step(self) -> None:
        """Encode a batch and train on it."""
        with torch.no_grad(), torch.autocast(self.rt.device.type, self.dtype, enabled=self.dtype != torch.float32):
            self.vae.encode(self.images)
        super().step()


class Peer:
    """What the peers' steps share: noise, mean squared error of the noise, AdamW."""

    dtype = torch.float32

    def __init__(self, batch: int, threads: int, widths: tuple[int, ...] = WIDTHS):
        """A network of the peer and random latents; threads 0 takes all CPU cores."""
        torch.manual_seed(0)
        torch.set_num_threads(threads or devices.default_threads(1))
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        if why := machine.missing(self.name.split(",")[0].lower(), INSTALL):
            sys.exit(why)
        self.batch, self.device = batch, torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device, self.net = self.device, self.network(widths).to(self.device)
        self.networks, self.tasks = (self.net,), {"step": self.step, "sample": self.sample}
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4, fused=device.type == "cuda")
        self.latents = torch.randn(8 * batch, *SHAPE, device=device)

    def step(self) -> None:
        """One training step: predict the noise, mean squared error, Adam."""
        self.net.train()
        x0 = self.latents[torch.randint(len(self.latents), (self.batch,), device=self.device)]
        noise, t = torch.randn_like(x0), torch.randint(1000, (self.batch,), device=self.device)
        loss = F.mse_loss(self.predict(self.noisy(x0, noise, t), t), noise)
        loss.backward()
        self.finish()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self) -> None:
        """What comes between backward and step."""

    @torch.no_grad()
    def sample(self) -> None:
        """One batch of latents from noise, in CALLS network calls."""
        self.net.eval()
        x = torch.randn(self.batch, *SHAPE, device=self.device)
        self.loop(lambda x, t: self.predict(x, torch.full((len(x),), int(t), device=x.device)), x, CALLS)


class Diffusers(Peer):
    """The same step and sampler written with Hugging Face diffusers, in float32."""

    name = "diffusers, float32"

    def network(self, widths: tuple[int, ...]):
        """A U-Net as ours, and its EMA."""
        import diffusers
        from diffusers.training_utils import EMAModel

        net = diffusers.UNet2DModel(
            sample_size=SHAPE[-1],
            in_channels=SHAPE[0],
            out_channels=SHAPE[0],
            layers_per_block=2,
            block_out_channels=widths,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            attention_head_dim=64,
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
        self.ema, self.ddpm = EMAModel(net.to(self.device).parameters()), diffusers.DDPMScheduler()
        return net

    def noisy(self, x0, noise, t):
        """x0 (B, C, H, W) with noise at the whole times t (B,)."""
        return self.ddpm.add_noise(x0, noise, t)

    def predict(self, x, t):
        """The network's estimate of the noise in x."""
        return self.net(x, t).sample

    def finish(self) -> None:
        """Clip the gradients before the optimizer's step, and follow with the EMA."""
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.ema.step(self.net.parameters())

    @staticmethod
    def loop(predict: Callable, x, calls: int, scheduler: str = "DDIMScheduler", **settings):
        """Denoise x in `calls` calls of `predict` with a scheduler of diffusers."""
        import diffusers

        settings = {"clip_sample": False} | settings if scheduler == "DDIMScheduler" else settings
        s = getattr(diffusers, scheduler)(**settings)
        s.set_timesteps(calls)
        for t in s.timesteps:
            x = s.step(predict(x, t), t, x).prev_sample
        return x


class Monai(Peer):
    """The same step and sampler written with MONAI, in float32."""

    name = "MONAI, float32"

    def network(self, widths: tuple[int, ...]):
        """A U-Net as ours, of MONAI."""
        from monai.networks.nets import DiffusionModelUNet
        from monai.networks.schedulers import DDPMScheduler

        self.ddpm = DDPMScheduler(num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02)
        return DiffusionModelUNet(
            spatial_dims=2, in_channels=SHAPE[0], out_channels=SHAPE[0], channels=widths, num_res_blocks=2,
            attention_levels=(False, True, True), num_head_channels=(0, 64, 64),
        )  # fmt: skip

    def noisy(self, x0, noise, t):
        """x0 (B, C, H, W) with noise at the whole times t (B,)."""
        return self.ddpm.add_noise(x0, noise, t)

    def predict(self, x, t):
        """The network's estimate of the noise in x."""
        return self.net(x, t)

    @staticmethod
    def loop(predict: Callable, x, calls: int):
        """Denoise x in `calls` calls of `predict` with MONAI's DDIM."""
        from monai.networks.schedulers import DDIMScheduler

        s = DDIMScheduler(
            num_train_timesteps=1000, schedule="linear_beta", beta_start=1e-4, beta_end=0.02, clip_sample=False
        )
        s.set_timesteps(calls)
        for t in s.timesteps:
            x = s.step(predict(x, t), int(t), x)[0]
        return x


PEERS: dict[str, type[Peer]] = {"diffusers": Diffusers, "MONAI": Monai}


# --- how exact the samplers are ---------------------------------------------------------------------------------------
def spectrum() -> torch.Tensor:
    """(1024,) standard deviations of 32 x 32 images whose power falls with the square of the frequency."""
    f = torch.fft.fftfreq(32, dtype=torch.float64) * 32
    spread = 1 / (f[:, None] ** 2 + f**2).clamp(min=1).sqrt().flatten()
    return spread / spread.square().mean().sqrt()


def exactness() -> str:
    """Relative Frechet distance of what each sampler makes with the exact denoiser of a Gaussian; no network, no error
    but its own.

    Such a denoiser is linear, so noise of ones gives the standard deviation of every component.
    """
    spread, schedule = spectrum(), schedules.make_schedule("linear")

    def denoise(x, t):
        """The exact mean of x0 given x at time t, for Gaussian data."""
        alpha, sigma = (v[:, None].double() for v in schedule.alpha_sigma(t.double()))
        return alpha * spread**2 / (alpha**2 * spread**2 + sigma**2) * x

    def epsilon(x, t):
        """The same as an estimate of the noise, at the whole times that schedulers count in."""
        time = torch.as_tensor(t).double().reshape(1) / (schedules.T - 1)
        alpha, sigma = schedule.alpha_sigma(time)
        return (x - alpha * denoise(x, time)) / sigma

    ones = torch.ones(1, len(spread), dtype=torch.float64)
    ways: dict[str, Callable] = {f"ours, {name}": lambda n, name=name: samplers.sample(denoise, ones, schedule, name, n)
                                 for name in ("midpoint", "dpmpp-2m", "ddim", "heun")}  # fmt: skip
    solver = "DPMSolverMultistepScheduler"
    theirs: dict[str, Callable] = {
        "diffusers, DDIM (default)": lambda n: Diffusers.loop(epsilon, ones, n),
        "diffusers, DDIM trailing": lambda n: Diffusers.loop(epsilon, ones, n, timestep_spacing="trailing"),
        "diffusers, DPM-Solver++ (default)": lambda n: Diffusers.loop(
            epsilon, ones, n, solver, beta_start=1e-4, beta_end=0.02
        ),
        "diffusers, DPM-Solver++ lu": lambda n: Diffusers.loop(
            epsilon, ones, n, solver, beta_start=1e-4, beta_end=0.02, use_lu_lambdas=True
        ),
        "diffusers, UniPC": lambda n: Diffusers.loop(
            epsilon, ones, n, "UniPCMultistepScheduler", beta_start=1e-4, beta_end=0.02
        ),
        "MONAI, DDIM": lambda n: Monai.loop(epsilon, ones, n),
    }
    absent = {name: why for name in PEERS if (why := machine.missing(name.lower(), INSTALL))}
    ways |= {name: run for name, run in theirs.items() if name.split(",")[0] not in absent}
    rows = []
    for name, run in ways.items():
        errors = [float(((run(n)[0] - spread) ** 2).sum() / (spread**2).sum()) for n in (5, 10, 20, 50)]
        rows.append([name, *(f"{e:.2g}" for e in errors)])
    rows += machine.absent_rows(absent, 5)
    return machine.table(["sampler", "5 calls", "10 calls", "20 calls", "50 calls"], rows)


# --- the comparison ---------------------------------------------------------------------------------------------------
def compare(batch: int, rounds: int, threads: int, device: torch.device, widths: tuple[int, ...] = WIDTHS) -> str:
    """The table of one step and of one batch of samples, ours beside diffusers and MONAI, and the largest kernels."""
    sides = [machine.Side(Ours, batch, "fp32", threads, widths)]
    if devices.precision_dtype("auto", device) != torch.float32:
        sides.append(machine.Side(Ours, batch, "auto", threads, widths))
    ours = len(sides)
    here, absent = machine.present(
        {name: partial(machine.Side, peer, batch, threads, widths) for name, peer in PEERS.items()}
    )
    sides += here.values()
    flops = [side.flops("step") / 1e9 / batch for side in sides]
    memory = [1000 * side.peak_gb("step") for side in sides]
    seconds = machine.interleaved(sides, rounds, ("step", "sample"))
    ceilings = machine.ceilings(sides)
    largest = machine.kernels_table(sides[ours - 1], "step")
    for side in sides:
        side.close()
    steps, samples = ([s[task] for s in seconds] for task in ("step", "sample"))
    spread = machine.spread
    rows = [
        ["parameters, millions", *(f"{side.parameters[0] / 1e6:.4f}" for side in sides)],
        ["training step, GFLOP/image", *(f"{f:.4g}" for f in flops)],
        ["training step, ms", *(spread([1000 * t for t in times]) for times in steps)],
        ["training, images/s", *(spread([batch / t for t in times]) for times in steps)],
        ["training, % of this machine's ceiling", *(
            spread([100e9 * f * batch / t / peak for t in times])
            for peak, f, times in zip(ceilings, flops, steps, strict=True)
        )],
        ["training step, MB above weights and optimizer", *(f"{mb:.0f}" for mb in memory)],
        [f"{CALLS} calls, ms", *(spread([1000 * t for t in times]) for times in samples)],
    ]  # fmt: skip
    for label, times in (("training", steps), ("sampling", samples)):
        for k, peer in enumerate(here, ours):
            ratio = [spread([p / o for p, o in zip(times[k], mine, strict=True)]) for mine in times[:ours]]
            rows.append([f"{label}, speed over {peer}", *ratio, *[""] * len(here)])
    rows += machine.absent_rows(absent, 1 + len(sides))
    return machine.table(["", *(side.name for side in sides)], rows) + "\n\n" + largest


def encoding(batch: int, rounds: int, threads: int) -> str:
    """Latents from the cache against encoding the batch in every step, as latent-diffusion's and MONAI's loops do."""
    names = "latents from the cache", "encoding in every step"
    sides = [machine.Side(kind, batch, "auto", threads) for kind in (Ours, OursEncoding)]
    cached, encoded = (s["step"] for s in machine.interleaved(sides, rounds, ("step",)))
    for side in sides:
        side.close()
    ratio = machine.spread([e / c for c, e in zip(cached, encoded, strict=True)])
    rows = [[name, machine.spread([1000 * t for t in times]), r]
            for name, times, r in zip(names, (cached, encoded), ("1", ratio), strict=True)]  # fmt: skip
    return machine.table([f"training step, {sides[0].name}", "ms", "times the cached step"], rows)


# --- few calls of trained weights -------------------------------------------------------------------------------------
def few_calls(run: str, number: int) -> str:
    """Quality and time of sampling a trained network, against 250-call DDIM of the same weights and the same noise.

    Frechet and kernel distance to held-out slices in the features of an encoder that was trained on the training
    slices.
    """
    flags = ["generate", "--run", run, "--square", "--number", str(number)]
    model = predict.open_model(predict.parse_args(flags), "diffusion")
    config = model.config
    shape = {
        "resolution": config["resolution"],
        "channels": config["channels"],
        "crop": config["crop"],
        "log": lambda _: None,
    }
    train, heldout = (ensure_pack(config["data"], split=split, **shape) for split in ("train", "test"))
    network = train_encoder(train.images, torch.from_numpy(np.array(train.labels)), len(train.classes), seed=0)
    features = {
        "training slices": features_of(network, train, number),
        "held-out slices": features_of(network, heldout),
    }
    pictures, seconds = {}, {}
    for way in WAYS:
        args = predict.parse_args([*flags, "--sampler", way[0], "--steps", str(way[1])])
        model.pictures(args, [0])
        start = time.perf_counter()
        parts = [model.pictures(args, list(range(i, min(i + 32, number)))) for i in range(0, number, 32)]
        seconds[way], pictures[way] = (time.perf_counter() - start) / number, np.concatenate(parts)
    best = pictures[WAYS[-1]].astype(float)
    rows = []
    for name, values in [("training slices", features["training slices"]),
                         *((way, network(torch.from_numpy(pictures[way]))) for way in WAYS)]:  # fmt: skip
        frechet = quality.frechet_with_error(values, features["held-out slices"])
        kernel = quality.kernel_distance(values, features["held-out slices"], torch.Generator().manual_seed(0))
        cells = [f"{frechet[0]:.2f} +- {frechet[1]:.2f}", f"{kernel[0]:.4f} +- {kernel[1]:.4f}"]
        if name in pictures:
            off = np.sqrt(((pictures[name] - best) ** 2).mean())
            rows.append([f"{name[0]}, {name[1]} calls", *cells, f"{off:.1f}", f"{1000 * seconds[name]:.3g}",
                         f"{seconds[WAYS[-1]] / seconds[name]:.1f}"])  # fmt: skip
        else:
            rows.append([name, *cells, "", "", ""])
    about = (
        f"{number} slices of a run of {model.nimg / 1000:g} kimg on {Path(config['data']).name}, {config['target']} "
        f"target, against {len(heldout)} held-out slices."
    )
    columns = [
        "",
        "Frechet distance +- error",
        "kernel distance +- sd",
        "RMS grey levels from 250 calls",
        "ms per slice, one pass",
        "times as fast",
    ]
    return about + "\n\n" + machine.table(columns, rows)


def features_of(network, pack: Pack, number: int = 10**9) -> torch.Tensor:
    """Features of up to `number` slices, spread over the pack."""
    rows = np.linspace(0, len(pack) - 1, min(number, len(pack))).round().astype(int)
    return torch.cat(
        [network(torch.from_numpy(np.array(pack.images[part]))) for part in np.array_split(rows, len(rows) // 64 + 1)]
    )


NOTES = """\
Latents of 4 x 32 x 32, widths 64, 128, 256, attention at 16 and 8 px. Our step includes the draw of the latents from
their posterior, clipping and the moving average; diffusers' clipping and its moving average; MONAI's neither. The first
table is the relative Frechet distance to a Gaussian with the spectrum of natural images, sampled with its exact
denoiser on the linear schedule: lower is better, and nothing but the sampler differs."""


def main() -> None:
    """Run what the command line asks for; --write puts it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 repetitions: does it run?")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of every task (default 7)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all that this process was given)")
    parser.add_argument("--run", metavar="DIR", help="a diffusion run: few calls against 250-call DDIM of its weights")
    parser.add_argument("--number", type=int, default=256, help="slices per sampler with --run (default 256)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    device = collectives.init_runtime(args.threads).device
    rounds = 2 if args.quick else args.rounds
    text = [machine.command("benchmarks.diffusion"), machine.header(device, ["torch", "diffusers", "monai"]), NOTES]
    print("\n\n".join(text), flush=True)
    parts = [
        exactness,
        lambda: compare(args.batch, rounds, args.threads, device),
        lambda: encoding(args.batch, rounds, args.threads),
    ]
    parts += [lambda: few_calls(args.run, args.number)] if args.run else []
    for part in parts:
        text.append(part())
        print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
