"""Train a diffusion U-Net on the latents of a VAE, or on pixels (Ho 2020; Rombach 2022; Lipman 2023).

    python pretrain_vae.py    --preset quickstart && \\
    python train_diffusion.py --preset quickstart                                  # phantoms, two CPU cores, minutes
    python train_diffusion.py --preset adni256-ldm --data /path/to/ADNI            # the newest VAE that fits; one GPU
    torchrun --nproc-per-node 4 -- train_diffusion.py --preset adni256-ldm --data ... # several GPUs of one machine

Run the same command again to resume. Time is counted in images seen (`nimg`): schedules, intervals, the order of the
data and every random draw are functions of it, so a resumed run is the run that was not interrupted.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("train_diffusion.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

from jobs.run import stopping

if __name__ == "__main__":
    stopping.install_handlers()  # before torch, whose import takes seconds in which a signal would kill the process

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from data.batches import Batches, to_float, to_uint8
from data.files import atomic_write, sha256_of
from data.latents import LatentBatches, Latents, ensure_latents
from data.pack import ensure_held_out, ensure_pack, preview
from data.packfile import Pack
from jobs.config import parsing, rules, sizes, specs
from jobs.config.specs import ConfigError, DiffusionConfig
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.vae import copied_vae, find_vae
from jobs.training import collectives, devices, randomness, ranks
from jobs.training.checkpoint import Checkpoints, Diverged
from jobs.training.throughput import count_flops
from jobs.training.upkeep import (
    FRESH_COUNTERS,
    Record,
    State,
    Upkeep,
    already_done,
    compiles,
    load_initial_weights,
    optimizer_step,
)
from jobs.training.weights import read_weights
from jobs.view.grids import image_grid
from jobs.view.metrics import Averages
from models import loading, samplers, schedules, targets
from models.ema import ema_beta, update_ema
from models.metrics import class_diversity, diversity_ratio
from models.optim import adamw, learning_rate, memory_layout
from models.unet import UNet, drop_labels
from models.vae import VAE, LatentScale, posterior_sample

NEXT = "generate --run {run} --number 64"
LOOKED_AT = 256  # slices of other patients that the validation loss is taken over
CHUNK = 32  # of them go through the network at once; ranks take chunks in turn
GRID_CHUNK = 16  # the same for the slices of a grid
BINS = 4  # of noise levels, each with a validation loss of its own


# --- the VAE ----------------------------------------------------------------------------------------------------------
def adopt_vae(c: DiffusionConfig, run: RunDir, say: Callable[[str], None]) -> None:
    """Rank 0: copy the VAE's weights into this run, once. What becomes of the VAE's run later does not matter to it."""
    mine = copied_vae(run.path)
    if mine.exists():
        return
    source = find_vae(c)
    load_vae(c, source)
    if not source.with_name("DONE").exists():
        say(f"WARNING: the VAE of {source.parent} is not finished; its weights are taken as they are now")
    atomic_write(mine, source.read_bytes())
    say(f"VAE: {source}, copied to {mine.name}")


def load_vae(c: DiffusionConfig, path: Path) -> VAE:
    """The VAE in a weights file; ConfigError where it does not fit this run."""
    tensors, about = read_weights(path)
    of_vae = about["config"]
    if about.get("job") != "vae":
        raise ConfigError(f"--vae {path}: the weights of a {about.get('job')} run; name a run of pretrain_vae.py")
    for name in ("resolution", "channels", "crop"):
        if of_vae.get(name) != getattr(c, name):
            raise ConfigError(
                f"--vae {path}: trained with --{name} {of_vae.get(name)}, this run has --{name} {getattr(c, name)}; "
                "make them equal"
            )
    try:
        return loading.load_vae(tensors, of_vae)
    except ValueError as error:
        raise ConfigError(f"--vae {path}: {error}") from None


def encode_packs(c: DiffusionConfig, run: RunDir, packs: list[Pack], meeting: ranks.Meeting, say) -> list[Latents]:
    """The cached latents of each pack, encoded where they are not there yet."""
    sha = sha256_of(copied_vae(run.path))
    torch.set_num_threads(c.threads or devices.default_threads(ranks.local_world(meeting.world)))
    devices.keep_freed_memory()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", meeting.local_rank % torch.cuda.device_count()) if cuda else torch.device("cpu")
    vae = load_vae(c, copied_vae(run.path)).to(device)
    verify = meeting.rank == 0
    return [
        ensure_latents(pack, vae.encode, sha, device=device, poll=stopping.raise_if_asked, log=say, verify=verify)
        for pack in packs
    ]


# --- data -------------------------------------------------------------------------------------------------------------
class Data:
    """Clean samples to diffuse, normalised, and the way back to images.

    Latents are sampled anew each time they are seen.
    """

    def __init__(self, c: DiffusionConfig, pack: Pack, latents: Latents | None, vae: VAE | None, device: torch.device):
        self.latents, self.device, self.classes = latents, device, pack.classes
        self.batches: Any
        self.decoder = None if vae is None else vae.decoder.to(device)
        if latents is None:
            self.batches = Batches(pack, seed=c.seed, batch=c.batch, device=device)
            self.shape = (c.channels, c.resolution, c.resolution)
            mean, std = torch.zeros(c.channels), torch.ones(c.channels)
        else:
            self.batches = LatentBatches(latents, seed=c.seed, device=device)
            self.shape = tuple(latents.values.shape[2:])
            mean, std = torch.from_numpy(latents.mean), torch.from_numpy(latents.std)
        self.scale = LatentScale(mean, std).to(device)

    def rows(self, position: int, start: int, stop: int, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(x0, labels) of rows start..stop of a global batch; `noise` (stop - start, ...) picks the sample of the
        posterior."""
        if self.latents is None:
            return self.batches.rows(position, start, stop)
        mean, logvar, labels = self.batches.rows(position, start, stop)
        return self.scale.normalise(posterior_sample(mean, logvar, noise)), labels

    def to_images(self, x0: torch.Tensor, scale: LatentScale, dtype: torch.dtype) -> torch.Tensor:
        """Images (B, C, R, R) in -1 .. 1 of clean samples."""
        if self.decoder is None:
            return x0.clamp(-1, 1)
        with torch.no_grad(), torch.autocast(x0.device.type, dtype, enabled=dtype != torch.float32):
            return torch.cat([self.decoder(scale.restore(part)).float() for part in x0.split(CHUNK)]).clamp(-1, 1)

    @property
    def waited(self) -> float:
        return getattr(self.batches, "waited", 0.0)

    def close(self) -> None:
        if self.latents is None:
            self.batches.close()


# --- the network and everything that a checkpoint holds --------------------------------------------------------------
@dataclass
class TrainState(State):
    """All that the next step depends on, besides the config and `nimg` (and the VAE, which lies in the run
    directory)."""

    unet: UNet
    unet_ema: UNet
    opt: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    scale: LatentScale
    averages: Averages
    counters: dict = field(default_factory=lambda: dict(FRESH_COUNTERS))

    def log_extra(self) -> dict:
        """Columns of a log row that are states and not averages over the interval."""
        return {"lr": self.opt.param_groups[0]["lr"]}


def build_unet(c: DiffusionConfig, shape: tuple[int, int, int], num_classes: int) -> UNet:
    """`shape` (C, h, w) of what it denoises."""
    try:
        return UNet(
            shape[-1],
            shape[0],
            widths=specs.numbers(c.widths, "widths"),
            num_res=c.num_res,
            dropout=c.dropout,
            attention_sides=specs.numbers(c.attention, "attention"),
            head_dim=c.head_dim,
            num_classes=num_classes,
        )
    except ValueError as error:
        raise ConfigError(f"--widths {c.widths}: {error}") from None


def build_state(c: DiffusionConfig, data: Data, num_classes: int, device: torch.device) -> TrainState:
    """Network and optimizer, initialised from the seed alone."""
    torch.manual_seed(randomness.seed_of(c.seed, 0, "weights"))
    unet = build_unet(c, data.shape, num_classes).to(device).to(memory_format=memory_layout(device))
    unet_ema = build_unet(c, data.shape, num_classes).to(device).to(memory_format=memory_layout(device))
    unet_ema.eval().requires_grad_(False).load_state_dict(unet.state_dict())
    fp16 = devices.precision_dtype(c.precision, device) == torch.float16
    return TrainState(
        unet=unet,
        unet_ema=unet_ema,
        scale=data.scale,
        opt=adamw(unet, c.lr, c.weight_decay, betas=(0.9, 0.99)),
        scaler=torch.amp.GradScaler(device.type, enabled=fp16),
        averages=Averages(),
    )


# --- one step ---------------------------------------------------------------------------------------------------------
def predictor(network: Callable, labels: torch.Tensor | None, dtype: torch.dtype) -> targets.Denoise:
    """network(x, t, labels) as a function of (x, t), under autocast."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return network(x.contiguous(memory_format=memory_layout(x.device)), t, labels).float()

    return predict


def train_step(
    c: DiffusionConfig,
    rt: ranks.Runtime,
    s: TrainState,
    data: Data,
    schedule: schedules.Schedule,
    network: Callable,
    dtype: torch.dtype,
    nimg: int,
) -> None:
    """One optimizer step and the moving average. Draws are made for the global batch; a rank uses its rows of them."""
    position = nimg + s.counters["skip"]
    gen = randomness.generator(c.seed, position, "diffusion", rt.device)
    times = schedules.draw_times(c.batch, c.times, gen, rt.device, c.fast_steps)
    noise, posterior_noise = torch.randn(2, c.batch, *data.shape, generator=gen, device=rt.device)
    drop_gen = randomness.generator(c.seed, position, "class dropout", rt.device)
    torch.manual_seed(randomness.seed_of(c.seed, position, f"dropout {rt.rank}"))
    kept = drop_labels(torch.zeros(c.batch, dtype=torch.int64, device=rt.device), 1, c.class_dropout, drop_gen) == 0

    total = torch.zeros((), device=rt.device)
    for start, stop in randomness.rows(c.batch, rt.rank, rt.world, c.accumulate):
        x0, labels = data.rows(position, start, stop, posterior_noise[start:stop])
        given = torch.where(kept[start:stop], labels, s.unet.num_classes) if c.conditional else None
        losses = targets.diffusion_loss(
            predictor(network, given, dtype),
            x0,
            noise[start:stop],
            times[start:stop],
            schedule,
            target=c.target,
            min_snr_gamma=c.min_snr_gamma,
        )
        s.scaler.scale(losses.mean() / c.accumulate).backward()
        total += losses.detach().sum() / c.batch
    rate = learning_rate(nimg, c.batch, c.lr, c.warmup_kimg, c.decay_kimg)
    norm = optimizer_step(rt, s.unet, s.opt, s.scaler, rate, c.clip)
    s.averages.add({"loss": collectives.reduce_sum(rt, total), "grad_norm": norm})
    update_ema(s.unet_ema, s.unet, ema_beta(nimg + c.batch, c.batch, c.ema_kimg, c.ema_rampup))


def step_flops(
    c: DiffusionConfig,
    rt: ranks.Runtime,
    num_classes: int,
    shape: tuple,
    schedule: schedules.Schedule,
    dtype: torch.dtype,
) -> dict:
    """{None: FLOPs of one image in a step}, counted on a blank one and a copy of the network."""
    c, rt = replace(c, batch=1, accumulate=1), replace(rt, rank=0, world=1)
    label, blank = torch.zeros(1, dtype=torch.int64, device=rt.device), torch.zeros(1, *shape, device=rt.device)
    data: Any = SimpleNamespace(shape=shape, scale=None, rows=lambda *_: (blank, label))
    s = build_state(c, data, num_classes, rt.device)
    return {None: count_flops(lambda: train_step(c, rt, s, data, schedule, s.unet, dtype, 0))}


# --- what a person sees -----------------------------------------------------------------------------------------------
class Sampler:
    """Grids from fixed noise, their diversity, and the loss on other patients at fixed times and noise."""

    def __init__(
        self,
        c: DiffusionConfig,
        pack: Pack,
        data: Data,
        held_out: Pack | None,
        held_out_latents: Latents | None,
        schedule: schedules.Schedule,
        rt: ranks.Runtime,
        dtype: torch.dtype,
    ):
        self.c, self.data, self.schedule, self.rt, self.dtype = c, data, schedule, rt, dtype
        self.classes = pack.classes
        self.columns = 8 if c.resolution <= 128 else 6
        self.number = self.columns * (6 if c.resolution <= 128 else 4)
        gen = randomness.generator(c.seed, 0, "grid", rt.device)
        self.noise = torch.randn(self.number, *data.shape, generator=gen, device=rt.device)
        self.labels = None
        if c.conditional:  # whole rows of one class
            self.labels = torch.arange(self.number, device=rt.device) // self.columns % len(pack.classes)
        count = min(64, len(pack.labels))
        pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().tolist()
        self.real = to_float(torch.stack([torch.from_numpy(pack.images[i].copy()) for i in pick])).to(rt.device)
        self.real_labels = torch.tensor([int(pack.labels[i]) for i in pick], device=rt.device)
        self.prefix = "train_loss" if held_out is None else "val_loss"
        looked_at = (pack, data.latents) if held_out is None else (held_out, held_out_latents)
        self.looked_at = self._fixed(*looked_at, rt.device)

    def _fixed(self, pack: Pack, latents: Latents | None, device: torch.device) -> tuple:
        """(x0, labels, noise, t) of slices spread over the patients, always the same."""
        count = min(LOOKED_AT, len(pack.labels))
        pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().numpy()
        gen = randomness.generator(self.c.seed, 0, "validation", device)
        if latents is None:
            x0 = to_float(torch.from_numpy(pack.images[pick])).to(device)
        else:
            mean, logvar = torch.from_numpy(latents.values[pick]).to(device).float().unbind(1)
            sample = posterior_sample(mean, logvar, torch.randn(mean.shape, generator=gen, device=device))
            x0 = self.data.scale.normalise(sample)
        labels = torch.from_numpy(pack.labels[pick]).to(device) if self.c.conditional else None
        # Spread as evenly as can be, over all and over those of any one patient.
        t = (torch.arange(count, device=device) * 0.6180339887498949 + 0.5) % 1
        if self.c.times.startswith("fast-"):
            steps = torch.tensor(schedules.fast_steps(self.c.times, self.c.fast_steps), device=device)
            t = steps[(t * len(steps)).long()].float() / (schedules.T - 1)
        return x0, labels, torch.randn(x0.shape, generator=gen, device=device), t

    def reals(self):
        captions = None
        if self.labels is not None:
            captions = [self.classes[int(k)] for k in self.real_labels[: self.number]]
        return image_grid(to_uint8(self.real[: self.number]).cpu().numpy(), self.columns, labels=captions)

    def mine(self, number: int, size: int) -> list[torch.Tensor]:
        """The chunks of 0 .. number - 1 that this rank takes. A chunk is the same for any number of ranks."""
        chunks = torch.arange(number, device=self.rt.device).split(size)
        return list(chunks[self.rt.rank :: self.rt.world])

    @torch.no_grad()
    def __call__(self, unet: UNet, scale: LatentScale, nimg: int):
        """(picture of the grid or None, {figures}), on all ranks at once. Diversity is 1 where generated slices vary as
        much as real ones."""
        images = collectives.reduce_sum(self.rt, self.samples(unet, scale))
        figures = self.validate(unet)
        if nimg:  # an untrained network's noise says nothing
            figures["diversity"] = float(diversity_ratio(images, self.real))
            real = class_diversity(self.real, self.real_labels)
            for k, value in class_diversity(images, self.labels).items() if self.labels is not None else ():
                if real.get(k):
                    figures[f"diversity_{self.classes[k]}"] = float(value / real[k])
        if self.rt.rank:
            return None, figures
        captions = None if self.labels is None else [self.classes[int(k)] for k in self.labels]
        return image_grid(to_uint8(images).cpu().numpy(), self.columns, labels=captions), figures

    def samples(self, unet: UNet, scale: LatentScale) -> torch.Tensor:
        """Images (number, C, R, R) in -1 .. 1 of the fixed noise; zero where they are other ranks'."""
        images = torch.zeros(self.number, self.c.channels, self.c.resolution, self.c.resolution, device=self.rt.device)
        times = schedules.fast_times(self.c.times, self.c.fast_steps) if self.c.times.startswith("fast-") else None
        for i in self.mine(self.number, GRID_CHUNK):
            gen = randomness.generator(self.c.seed, int(i[0]), "ancestral", self.rt.device)
            predict = predictor(unet, None if self.labels is None else self.labels[i], self.dtype)
            denoise = samplers.denoiser(predict, self.schedule, self.c.target, clamp=float(self.c.space == "pixel"))
            x0 = samplers.sample(
                denoise,
                self.noise[i],
                self.schedule,
                self.c.sampler,
                self.c.steps,
                times=times,
                fresh=partial(noise_like, gen),
            )
            images[i] = self.data.to_images(x0, scale, self.dtype)
        return images

    @torch.no_grad()
    def validate(self, unet: UNet) -> dict[str, float]:
        """Loss on other patients (where there are any), over all and over each quarter of the times (0: least
        noise)."""
        x0, labels, noise, t = self.looked_at
        losses = torch.zeros(len(x0), device=self.rt.device)
        for i in self.mine(len(x0), CHUNK):
            predict = predictor(unet, None if labels is None else labels[i], self.dtype)
            losses[i] = targets.diffusion_loss(
                predict, x0[i], noise[i], t[i], self.schedule, target=self.c.target, min_snr_gamma=self.c.min_snr_gamma
            )
        losses = collectives.reduce_sum(self.rt, losses)
        figures = {self.prefix: float(losses.mean())}
        for k in range(BINS):
            inside = (t * BINS).long().clamp(max=BINS - 1) == k
            if bool(inside.any()):
                figures[f"{self.prefix}_{k}"] = float(losses[inside].mean())
        return figures


def noise_like(gen: torch.Generator, x: torch.Tensor) -> torch.Tensor:
    """Fresh Gaussian noise of the shape of x."""
    return torch.randn(x.shape, generator=gen, device=x.device)


# --- the run ----------------------------------------------------------------------------------------------------------
def train(
    c: DiffusionConfig, rt: ranks.Runtime, run: RunDir, packs: list[Pack], latents: list[Latents], attempt: Attempt
) -> int:
    """Train until done or stopped.

    Returns the process's exit code; raises Diverged. packs: training and, if any, other patients.
    """
    dtype = devices.precision_dtype(c.precision, rt.device)
    schedule, pack = schedules.make_schedule(c.schedule), packs[0]
    vae = load_vae(c, copied_vae(run.path)) if latents else None
    data = Data(c, pack, latents[0] if latents else None, vae, rt.device)
    s = build_state(c, data, len(pack.classes) if c.conditional else 0, rt.device)
    upkeep = Upkeep(c, rt, run, s, Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say), attempt)
    found = upkeep.resume()
    if found < 0 and c.init_from:
        load_initial_weights(s, ("unet", "unet_ema"), c.init_from, attempt.say)
    held_out = (packs[1] if len(packs) > 1 else None, latents[1] if len(latents) > 1 else None)
    sampler = Sampler(c, pack, data, *held_out, schedule, rt, dtype)
    record = Record(
        c,
        rt,
        run,
        attempt,
        found,
        dtype,
        flops=lambda: step_flops(c, rt, s.unet.num_classes, data.shape, schedule, dtype),
        waits=lambda: {"data_wait": data.waited, **upkeep.waits()},
    )
    if found < 0 and rt.rank == 0:
        record.show("reals.png", "reals", sampler.reals(), 0)
    network = torch.compile(s.unet) if compiles(c.compile, rt.device, attempt.say) else s.unet
    weights = {"unet": s.unet_ema, "latent_scale": s.scale} | ({} if vae is None else {"vae_decoder": vae.decoder})
    about = {"classes": pack.classes, "geometry": pack.geometry, "shape": list(data.shape), "vae": about_vae(run, vae)}

    nimg, total = max(found, 0), upkeep.total
    machine = devices.facts(rt) | {"precision": str(dtype).removeprefix("torch.")}
    attempt.begin(nimg, total, machine, precision=machine["precision"], world=rt.world, threads=rt.threads)
    attempt.say(
        f"{run.path}: {'starting' if found < 0 else 'resuming'} at {nimg / 1000:g} of {total / 1000:g} kimg, "
        f"{machine['precision']} on {rt.world} x {rt.device.type}, data in {data.batches.placement}"
    )

    while True:
        # All that looks at the run stands here, before the step: a resumed run continues at exactly this place.
        try:
            record.tick(nimg, s, look=partial(sampler, s.unet_ema, s.scale), extra=s.log_extra)
            if upkeep.agree(nimg):
                upkeep.save(nimg, weights, about)
            if upkeep.ending:
                data.close()
                return upkeep.leave(record, nimg, NEXT)
        except Diverged as error:
            nimg = upkeep.roll_back(nimg, error, "lower --lr, or use --precision fp32")
            record.rewind(nimg)
            continue

        train_step(c, rt, s, data, schedule, network, dtype, nimg)
        nimg += c.batch
        record.step_done(nimg)


def about_vae(run: RunDir, vae: VAE | None) -> dict | None:
    """What predict.py needs to build the decoder."""
    if vae is None:
        return None
    of_vae = read_weights(copied_vae(run.path))[1]["config"]
    return {k: of_vae[k] for k in loading.VAE_FIELDS}


def dry_run(c: DiffusionConfig) -> int:
    """Check flags, data, VAE, run directory and memory; the resolved config goes to standard output, all else to
    standard error."""
    say = partial(print, file=sys.stderr)
    run = RunDir(c.run)
    rules.check_classes(
        c,
        preview(
            c.data, resolution=c.resolution, channels=c.channels, crop=c.crop, split=c.split, max_bad=c.max_bad, log=say
        ),
    )
    compare_with_run(run, c)
    if c.space == "latent":
        source = copied_vae(run.path) if copied_vae(run.path).exists() else find_vae(c)
        load_vae(c, source)
        say(f"VAE: {source}")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    say(f"memory: about {sizes.diffusion_memory_gb(c, world):.1f} GB per GPU at --batch {c.batch}, {world} GPU(s)")
    print(parsing.to_json(c))
    return stopping.DONE


def open_data(c: DiffusionConfig, run: RunDir, meeting: ranks.Meeting, say) -> tuple[list[Pack], list[Latents]]:
    """Packs of the training slices and of those of other patients, and their latents; all made where they are not there
    yet."""
    main = meeting.rank == 0
    shape = dict(
        resolution=c.resolution,
        channels=c.channels,
        crop=c.crop,
        max_bad=c.max_bad,
        progress=main,
        log=say,
        poll=stopping.raise_if_asked,
        verify=main,
    )
    if c.space == "latent" and main:
        adopt_vae(c, run, say)
    packs = [ensure_pack(c.data, split=c.split, **shape)]
    rules.check_classes(c, packs[0].classes)
    if c.conditional and (packs[0].labels < 0).any():
        raise ConfigError("--conditional: the data has slices without a class; use a folder with one folder per class")
    held_out = ensure_held_out(c.data, c.val_split, train_split=c.split, **shape)
    packs += [held_out] if held_out is not None else []
    return packs, encode_packs(c, run, packs, meeting, say) if c.space == "latent" else []


def main() -> int:
    c = parsing.parse_config(DiffusionConfig)
    if c.dry_run:
        return dry_run(c)
    rank, world, _ = ranks.ranks()
    rules.check_world(c, world)
    run = RunDir(c.run)
    if already_done(c, run, rank, NEXT):
        return stopping.DONE
    with ranks.Meeting() as meeting, Attempt(run, c, rank) as attempt:
        if rank == 0 and not prepare_run(run, c, attempt.say):
            return stopping.DONE
        # Packs and latents are made before the process group exists: no collective waits for minutes of work.
        packs, latents = meeting.first(partial(open_data, c, run, meeting, attempt.say))
        if rank == 0:
            check_data(run, c, packs[0].classes, {c.split: packs[0].digest}, attempt.say)
            adopt_config(run, c)
        rt = collectives.init_runtime(c.threads, meeting)
        code = train(c, rt, run, packs, latents, attempt)
        collectives.shutdown(rt)
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main))
