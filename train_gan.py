"""Train a StyleGAN2 on brain-MRI slices (Karras et al. 2019, 2020a "Analyzing and Improving", 2020b "ADA").

    python train_gan.py --preset quickstart                              # phantoms, two CPU cores, minutes
    python train_gan.py --preset adni256 --data /path/to/ADNI            # one GPU
    torchrun --nproc-per-node 4 train_gan.py --preset adni256 --data ... # several GPUs of one machine

Run the same command again to resume. Time is counted in images seen (`nimg`): schedules, intervals, the order of the
data and every random draw are functions of it, so a resumed run is the run that was not interrupted.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("train_gan.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

from jobs import stop

if __name__ == "__main__":
    stop.install_handlers()  # before torch, whose import takes seconds in which a signal would kill the process

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from data.batches import Batches, to_uint8
from data.pack import Pack, ensure_pack, open_pack
from data.sources import DataError, find_source
from jobs import runtime, specs
from jobs.attempt import Attempt, prepare_run, report_and_code
from jobs.checkpoint import CheckpointError, Checkpoints, Diverged
from jobs.log import Averages, MetricsLog, Progress, TensorBoard, image_grid, plot_losses, read_metrics, save_png
from jobs.rundir import RunDir
from jobs.specs import GanConfig
from jobs.weights import write_weights
from models import augment as ada
from models.ema import ema_beta, update_ema
from models.gan_losses import discriminator_loss, generator_loss, gradient_penalty, path_length_penalty, path_lengths
from models.metrics import COLLAPSE_RATIO, class_diversity, diversity_ratio
from models.stylegan2 import Discriminator, Generator, mix_styles

W_AVG_BETA = 0.998  # decay of the w average per step (truncation trick)
STATS = "loss_G loss_D logits_real logits_fake sign_real r1 r2 path_length pl_penalty".split()


# --- data, networks and everything that a checkpoint holds -----------------------------------------------------------
@dataclass
class TrainState:
    """All that the next step depends on, besides the config and `nimg`. Every field is saved in a checkpoint."""

    G: Generator
    D: Discriminator
    G_ema: Generator
    opt_G: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    scaler_G: torch.amp.GradScaler
    scaler_D: torch.amp.GradScaler
    ada: ada.AdaController
    averages: Averages
    pl_mean: torch.Tensor  # () fp32, running mean of path lengths
    # Data skipped after a divergence, how often that happened, and what the last diversity figure said.
    counters: dict = field(default_factory=lambda: {"skip": 0, "rollbacks": 0, "best_diversity": 0.0, "healthy": True})

    def state_dict(self) -> dict:
        return {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in vars(self).items()}

    def load_state_dict(self, state: dict) -> None:
        for name, value in vars(self).items():
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state[name])
            elif isinstance(value, torch.Tensor):
                value.copy_(state[name])
            else:
                setattr(self, name, dict(state[name]))


def build_state(c: GanConfig, num_classes: int, device: torch.device) -> TrainState:
    """Networks and optimizers, initialised from the seed alone."""
    torch.manual_seed(runtime.seed_of(c.seed, 0, "weights"))
    shape = dict(resolution=c.resolution, channels=c.channels, num_classes=num_classes)
    widths = dict(channel_base=c.channel_base, channel_max=c.channel_max, mapping_layers=c.mapping_layers)
    G = Generator(**shape, **widths, z_dim=c.z_dim, w_dim=c.w_dim).to(device)
    D = Discriminator(**shape, **widths, mbstd_group=c.mbstd_group).to(device)
    G_ema = Generator(**shape, **widths, z_dim=c.z_dim, w_dim=c.w_dim).to(device).eval().requires_grad_(False)
    G_ema.load_state_dict(G.state_dict())
    fp16 = runtime.precision_dtype(c.precision, device) == torch.float16
    return TrainState(
        G=G, D=D, G_ema=G_ema,
        opt_G=adam(G, c.lr, c.pl_interval if c.pl_weight else 0, device),
        opt_D=adam(D, c.lr, c.r1_interval if c.gamma else 0, device),
        scaler_G=torch.amp.GradScaler(device.type, enabled=fp16),
        scaler_D=torch.amp.GradScaler(device.type, enabled=fp16),
        ada=ada.AdaController(target=c.ada_target, speed_kimg=c.ada_kimg),
        averages=Averages(), pl_mean=torch.zeros((), device=device),
    )  # fmt: skip


def adam(module: nn.Module, lr: float, lazy_interval: int, device: torch.device) -> torch.optim.Adam:
    """Adam with the correction for lazy regularisation, c = k / (k + 1) (Karras 2020a, appendix B)."""
    c = lazy_interval / (lazy_interval + 1) if lazy_interval else 1.0
    return torch.optim.Adam(module.parameters(), lr=lr * c, betas=(0.0, 0.99**c), eps=1e-8, fused=device.type == "cuda")


# --- one step ---------------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """What every phase of one step needs. Draws are made for the global batch; a rank uses its rows of them."""

    c: GanConfig
    rt: runtime.Runtime
    batches: Batches
    label_pool: torch.Tensor  # (N,) the labels of the training set: generated labels follow their frequencies
    dtype: torch.dtype  # of the convolutions
    position: int  # first image of this step in the data and in the random streams
    synthesis: Callable  # G.synthesis and D, compiled if asked; the regularisers use the plain ones
    critic: Callable
    w_sum: torch.Tensor  # (w_dim,) sum of w over this rank's rows, divided by the global batch
    stats: dict = field(default_factory=dict)  # the same for losses and logits

    def generator(self, purpose: str) -> torch.Generator:
        return runtime.generator(self.c.seed, self.position, purpose, self.rt.device)

    def rows(self, batch: int) -> list[tuple[int, int]]:
        return runtime.rows(batch, self.rt.rank, self.rt.world, self.c.accumulate)

    def add(self, name: str, values: torch.Tensor, batch: int) -> None:
        self.stats[name] = self.stats.get(name, 0.0) + values.detach().float().sum() / batch


def draw_latents(step: Step, G: Generator, batch: int, purpose: str) -> dict:
    """Latents, labels, mixing and noise of one global batch.

    Returns z, z_mix (batch, z_dim); cutoff (batch,) = first layer that takes the second style, num_ws where the styles
    are not mixed (Karras 2019, section 3.1); labels (batch,) or None; noise, a list of (batch, 1, h, w).
    """
    c, gen, device = step.c, step.generator(purpose), step.rt.device
    z, z_mix = torch.randn(2, batch, c.z_dim, generator=gen, device=device)
    cutoff = torch.randint(1, G.num_ws, (batch,), generator=gen, device=device)
    mixed = torch.rand(batch, generator=gen, device=device) < c.style_mixing
    pick = torch.randint(len(step.label_pool), (batch,), generator=gen, device=device)
    return dict(
        z=z, z_mix=z_mix, cutoff=torch.where(mixed, cutoff, G.num_ws), labels=step.label_pool[pick] if c.conditional else None,
        noise=G.draw_noise(batch, gen, device),
    )  # fmt: skip


def rows_of(draws: dict, start: int, stop: int) -> tuple[dict, list[torch.Tensor]]:
    """Rows of a global batch's draws, as (arguments of styles_of, noise)."""
    latents = {k: v if v is None else v[start:stop] for k, v in draws.items() if k != "noise"}
    return latents, [layer[start:stop] for layer in draws["noise"]]


def styles_of(G: Generator, z, z_mix, cutoff, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed styles ws (B, num_ws, w_dim), and w (B, w_dim) of the first latent."""
    w, w_mix = G.mapping(torch.cat([z, z_mix]), None if labels is None else labels.repeat(2)).chunk(2)
    return mix_styles(w, w_mix, cutoff, G.num_ws), w


def draw_augmentation(step: Step, p: float, purpose: str) -> dict:
    if step.c.ada == "off":
        return {}
    gen, kinds = step.generator("augment " + purpose), ada.KINDS[step.c.ada]
    return ada.draw_augmentation(step.c.batch, p, step.c.resolution, gen, step.rt.device, kinds)


def augmented(images: torch.Tensor, params: dict, start: int, stop: int) -> torch.Tensor:
    return ada.augment(images, ada.rows(params, start, stop)) if params else images


def optimizer_step(step: Step, module: nn.Module, optimizer, scaler=None) -> None:
    """Average the gradients over the ranks by one flat all-reduce, then step."""
    runtime.reduce_mean_gradients(step.rt, list(module.parameters()))
    if scaler is not None and scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def generator_step(s: TrainState, step: Step) -> None:
    """Adversarial loss of G: the gradient flows through D's input into G; D itself is held."""
    c = step.c
    draws, params = draw_latents(step, s.G, c.batch, "G"), draw_augmentation(step, s.ada.p, "G")
    s.D.requires_grad_(False)
    for start, stop_ in step.rows(c.batch):
        latents, noise = rows_of(draws, start, stop_)
        ws, w = styles_of(s.G, **latents)
        fake = step.synthesis(ws, noise, dtype=step.dtype)
        logits = step.critic(augmented(fake, params, start, stop_), latents["labels"], dtype=step.dtype)
        real_logits = None
        if c.loss == "rpgan":  # pairs each generated image with a real one of the same row
            with torch.no_grad():
                real, labels = step.batches.rows(step.position, start, stop_)
                real_logits = step.critic(
                    augmented(real, params, start, stop_), labels if c.conditional else None, dtype=step.dtype
                )
        losses = generator_loss(logits, real_logits, kind=c.loss)
        s.scaler_G.scale(losses.mean() / c.accumulate).backward()
        step.add("loss_G", losses, c.batch)
        step.w_sum += w.detach().sum(0) / c.batch
    s.D.requires_grad_(True)
    optimizer_step(step, s.G, s.opt_G, s.scaler_G)


def path_length_step(s: TrainState, step: Step) -> None:
    """Lazy path-length regularisation on half a batch of its own (Karras 2020a, equation 4 and section 3.2)."""
    c, batch = step.c, max(step.c.batch // 2, 1)
    draws = draw_latents(step, s.G, batch, "path length")
    pl_noise = torch.randn(
        batch, c.channels, c.resolution, c.resolution, generator=step.generator("pl noise"), device=step.rt.device
    )
    for start, stop_ in step.rows(batch):
        latents, noise = rows_of(draws, start, stop_)
        ws, _ = styles_of(s.G, **latents)
        images = s.G.synthesis(ws, noise, dtype=exact_dtype(step.dtype))
        lengths = path_lengths(images, ws, pl_noise[start:stop_])
        penalty = path_length_penalty(lengths, s.pl_mean)
        (penalty.mean() * (c.pl_weight * c.pl_interval / c.accumulate)).backward()
        step.add("path_length", lengths, batch)
        step.add("pl_penalty", penalty, batch)
    optimizer_step(step, s.G, s.opt_G)


def discriminator_step(s: TrainState, step: Step) -> None:
    """Adversarial loss of D on generated and real rows; the generated ones carry no gradient to G."""
    c = step.c
    draws, params = draw_latents(step, s.G, c.batch, "D"), draw_augmentation(step, s.ada.p, "D fake")
    real_params = draw_augmentation(step, s.ada.p, "D real")
    for start, stop_ in step.rows(c.batch):
        latents, noise = rows_of(draws, start, stop_)
        with torch.no_grad():
            fake = step.synthesis(styles_of(s.G, **latents)[0], noise, dtype=step.dtype)
            fake = augmented(fake, params, start, stop_)
            real, labels = step.batches.rows(step.position, start, stop_)
            real = augmented(real, real_params, start, stop_)
        # One pass over both: minibatch-std groups are contiguous rows, so generated and real rows never share one.
        both = torch.cat([latents["labels"], labels]) if c.conditional else None
        fake_logits, real_logits = step.critic(torch.cat([fake, real]), both, dtype=step.dtype).chunk(2)
        losses = discriminator_loss(real_logits, fake_logits, kind=c.loss)
        s.scaler_D.scale(losses.mean() / c.accumulate).backward()
        step.add("loss_D", losses, c.batch)
        step.add("logits_real", real_logits, c.batch)
        step.add("logits_fake", fake_logits, c.batch)
        # What ADA steers by. Relativistic logits have no level of their own, so there it is real against generated.
        overfit = real_logits - fake_logits if c.loss == "rpgan" else real_logits
        step.add("sign_real", overfit.detach().sign(), c.batch)
    optimizer_step(step, s.D, s.opt_D, s.scaler_D)


def gradient_penalty_step(s: TrainState, step: Step) -> None:
    """Lazy R1 on the reals, and R2 on generated slices for rpgan (Mescheder 2018; Karras 2020a, section 3.1).

    The penalty is on D's own input, after augmentation: that is the function whose slope it limits.
    """
    c, dtype = step.c, exact_dtype(step.dtype)
    draws = draw_latents(step, s.G, c.batch, "R2") if c.loss == "rpgan" else None
    real_params, params = draw_augmentation(step, s.ada.p, "R1"), draw_augmentation(step, s.ada.p, "R2")
    for start, stop_ in step.rows(c.batch):
        with torch.no_grad():
            real, labels = step.batches.rows(step.position, start, stop_)
            inputs = [("r1", augmented(real, real_params, start, stop_), labels if c.conditional else None)]
            if draws is not None:
                latents, noise = rows_of(draws, start, stop_)
                fake = s.G.synthesis(styles_of(s.G, **latents)[0], noise, dtype=step.dtype)
                inputs.append(("r2", augmented(fake, params, start, stop_), latents["labels"]))
        for name, images, its_labels in inputs:
            images = images.detach().requires_grad_(True)
            # Held minibatch std: the penalty on one image must not see its neighbours.
            logits = s.D(images, its_labels, dtype=dtype, detach_std=True)
            penalty = gradient_penalty(images, logits)
            (penalty.mean() * (c.gamma / 2 * c.r1_interval / c.accumulate)).backward()
            step.add(name, penalty, c.batch)
    optimizer_step(step, s.D, s.opt_D)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Penalties take gradients of gradients: fp16 would need a second loss scale, so they run in fp32 there."""
    return torch.float32 if dtype == torch.float16 else dtype


def train_step(s: TrainState, step: Step, nimg: int) -> None:
    """One optimizer step of both networks, the lazy regularisers when they are due, EMA, w average and ADA."""
    c, count = step.c, nimg // step.c.batch
    generator_step(s, step)
    if c.pl_weight and count % c.pl_interval == 0:
        path_length_step(s, step)
    discriminator_step(s, step)
    if c.gamma and count % c.r1_interval == 0:
        gradient_penalty_step(s, step)

    # One reduction for all that the ranks must agree on: w average, ADA's signs, path-length mean, and the log.
    names = [name for name in STATS if name in step.stats]
    total = runtime.reduce_sum(step.rt, torch.cat([step.w_sum, torch.stack([step.stats[name] for name in names])]))
    stats = dict(zip(names, total[c.w_dim :], strict=True))
    s.averages.add(stats)
    s.G.update_w_avg(total[: c.w_dim], W_AVG_BETA)
    if "path_length" in stats:
        s.pl_mean.lerp_(stats["path_length"], c.pl_decay)
    if c.ada != "off":
        s.ada.add(stats["sign_real"] * c.batch, c.batch)
        s.ada.update(c.batch)
    update_ema(s.G_ema, s.G, ema_beta(nimg + c.batch, c.batch, c.ema_kimg, c.ema_rampup))


# --- what a person sees -----------------------------------------------------------------------------------------------
class Sampler:
    """Grids from fixed latents, and the diversity of generated against real slices."""

    def __init__(
        self, c: GanConfig, s: TrainState, pack: Pack, batches: Batches, rt: runtime.Runtime, dtype: torch.dtype
    ):
        self.columns = 8 if c.resolution <= 128 else 6
        self.number, self.dtype, self.classes = self.columns * (6 if c.resolution <= 128 else 4), dtype, pack.classes
        gen = runtime.generator(c.seed, 0, "grid", rt.device)
        self.z = torch.randn(self.number, c.z_dim, generator=gen, device=rt.device)
        self.labels = None
        if c.conditional:  # whole rows of one class
            rows = torch.arange(self.number, device=rt.device) // self.columns
            self.labels = rows % len(pack.classes)
        count = min(64, len(pack.labels))
        self.real, self.real_labels = batches.rows(0, 0, count)

    def reals(self):
        captions = None
        if self.labels is not None:
            captions = [self.classes[int(k)] for k in self.real_labels[: self.number]]
        return image_grid(to_uint8(self.real[: self.number]).cpu().numpy(), self.columns, labels=captions)

    def __call__(self, G_ema: Generator):
        """(grid picture, {diversity figures}); diversity is 1 where generated slices vary as much as real ones."""
        with torch.no_grad():
            parts = torch.arange(self.number, device=self.z.device).split(8)
            labels = self.labels
            images = torch.cat(
                [G_ema(self.z[i], None if labels is None else labels[i], dtype=self.dtype) for i in parts]
            )
        figures = {"diversity": float(diversity_ratio(images, self.real))}
        if labels is not None:
            real = class_diversity(self.real, self.real_labels)
            for k, value in class_diversity(images, labels).items():
                if real.get(k):
                    figures[f"diversity_{self.classes[k]}"] = float(value / real[k])
        captions = None if labels is None else [self.classes[int(k)] for k in labels]
        return image_grid(to_uint8(images).cpu().numpy(), self.columns, labels=captions), figures


def judge_health(figures: dict, counters: dict, say) -> None:
    """A run is collapsed when its diversity was there once and fell below COLLAPSE_RATIO of the real slices'."""
    if not figures:
        return
    low = min(figures.values())
    counters["best_diversity"] = max(counters["best_diversity"], low)
    collapsed = counters["best_diversity"] > 2 * COLLAPSE_RATIO and low < COLLAPSE_RATIO
    if collapsed:
        say(
            f"WARNING: MODE COLLAPSE: generated slices vary only {low:.2f} times as much as real ones (it was "
            f"{counters['best_diversity']:.2f}). The last healthy checkpoint is kept. Try --loss rpgan, a larger --gamma, or --ada mri."
        )
    counters["healthy"] = not collapsed


# --- the run ----------------------------------------------------------------------------------------------------------
class Record:
    """Rank 0's log of the run: rows, TensorBoard, progress, grids. Elsewhere it only judges health, as all ranks must."""

    def __init__(self, c: GanConfig, rt: runtime.Runtime, run: RunDir, attempt: Attempt, sampler: Sampler, nimg: int):
        self.c, self.rt, self.run, self.attempt, self.sampler = c, rt, run, attempt, sampler
        self.main, self.total = rt.rank == 0, round(c.total_kimg * 1000)
        self.time, self.nimg = time.monotonic(), max(nimg, 0)
        if not self.main:
            return
        self.log = MetricsLog(run.metrics, resume_nimg=nimg)
        self.board = TensorBoard(run.tensorboard, purge_step=nimg + 1)
        self.progress = Progress(self.total, self.nimg)
        attempt.printer = self.progress.write
        if nimg < 0:
            save_png(run.samples / "reals.png", sampler.reals())
            self.board.image("reals", sampler.reals(), 0)

    def tick(self, s: TrainState, nimg: int) -> None:
        """A row at log and sample intervals; samples and diversity at sample intervals and at the end."""
        sampling = due(nimg, self.c.batch, self.c.sample_kimg) or nimg >= self.total
        if not sampling and not due(nimg, self.c.batch, self.c.log_kimg):
            return
        check_finite(s)
        figures = {}
        if sampling:
            grid, figures = self.sampler(s.G_ema)
            figures = figures if nimg else {}  # an untrained generator's noise says nothing
            judge_health(figures, s.counters, self.attempt.say)
        row = {
            "nimg": nimg,
            "kimg": nimg / 1000,
            **s.averages.means(),
            **figures,
            "ada_p": s.ada.p,
            "pl_mean": float(s.pl_mean),
        }
        s.averages.reset()
        if self.main:
            if nimg:
                speed = (nimg - self.nimg) / max(time.monotonic() - self.time, 1e-9)
                row |= {
                    "img_per_s": round(speed, 2),
                    "sec_per_kimg": round(1000 / max(speed, 1e-9), 3),
                    **runtime.memory(self.rt.device),
                }
                self.progress.tick(nimg, row)
                self.attempt.heartbeat(nimg, speed)
            self.log.append(row)
            self.board.scalars(row, nimg)
            if sampling:
                save_png(self.run.samples / f"{nimg / 1000:09.3f}.png", grid)
                self.board.image("samples", grid, nimg)
        self.time, self.nimg = time.monotonic(), nimg

    def rewind(self, nimg: int) -> None:
        """After a roll-back: the rows after `nimg` never were."""
        self.time, self.nimg = time.monotonic(), nimg
        if self.main:
            self.log.truncate(nimg)
            self.progress.update(nimg)


def due(nimg: int, batch: int, interval_kimg: float) -> bool:
    """Whether an interval boundary was crossed by the step that ended at `nimg` (always true at 0; never for 0 kimg)."""
    interval = round(interval_kimg * 1000)
    return interval > 0 and nimg // interval != (nimg - batch) // interval


def train(c: GanConfig, rt: runtime.Runtime, run: RunDir, pack: Pack, attempt: Attempt) -> int:
    """Train until done or stopped. Returns the process's exit code; raises Diverged."""
    dtype = runtime.precision_dtype(c.precision, rt.device)
    s = build_state(c, len(pack.classes) if c.conditional else 0, rt.device)
    checkpoints = Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say)
    nimg = resume(c, s, checkpoints, rt, attempt)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device, hflip=c.hflip)
    label_pool = torch.from_numpy(pack.labels).to(rt.device)
    record = Record(c, rt, run, attempt, Sampler(c, s, pack, batches, rt, dtype), nimg)
    synthesis, critic = (torch.compile(s.G.synthesis), torch.compile(s.D)) if c.compile else (s.G.synthesis, s.D)

    total, saved_at, saved_time = round(c.total_kimg * 1000), nimg, time.monotonic()
    nimg = max(
        nimg, 0
    )  # a fresh run (-1) saves its first checkpoint at once: a full disk is found now, not in ten minutes
    attempt.begin(nimg, total, precision=str(dtype).removeprefix("torch."), world=rt.world, threads=rt.threads)
    attempt.say(f"{run.path}: {'starting' if saved_at < 0 else 'resuming'} at {nimg / 1000:g} of {total / 1000:g} kimg, "
                f"{str(dtype).removeprefix('torch.')} on {rt.world} x {rt.device.type}, data in {batches.placement}")  # fmt: skip
    watch = stop.StopWatch(run if rt.rank == 0 else None)
    watchdog = runtime.Watchdog(1800)

    while True:
        # All that looks at the run stands here, before the step: a resumed run continues at exactly this place.
        watchdog.pat()
        try:
            if nimg != saved_at:
                record.tick(s, nimg)
            minutes = (time.monotonic() - saved_time) / 60
            timed = rt.rank == 0 and minutes > c.checkpoint_minutes > 0
            level, timed = runtime.agree_max(rt, [watch.poll(), int(timed)])
            ending = level >= 2 or nimg >= total
            if nimg != saved_at and (ending or level or timed or saved_at < 0 or due(nimg, c.batch, c.checkpoint_kimg)):
                check_finite(s)
                save(c, rt, run, s, pack, checkpoints, nimg)
                saved_at, saved_time = nimg, time.monotonic()
            if ending:
                checkpoints.wait(raise_errors=True)
                batches.close()
                watchdog.stop()
                return finish(c, run, record, attempt, nimg) if nimg >= total else stopped(watch, level, attempt, nimg)
        except Diverged as error:
            nimg = roll_back(s, checkpoints, rt, nimg, error, attempt)
            saved_at, saved_time = nimg, time.monotonic()
            record.rewind(nimg)
            continue

        position = nimg + s.counters["skip"]
        step = Step(
            c, rt, batches, label_pool, dtype, position, synthesis, critic, torch.zeros(c.w_dim, device=rt.device)
        )
        train_step(s, step, nimg)
        nimg += c.batch
        if record.main:
            record.progress.update(nimg)
            attempt.heartbeat(nimg)


def resume(c: GanConfig, s: TrainState, checkpoints: Checkpoints, rt: runtime.Runtime, attempt: Attempt) -> int:
    """Load the newest good checkpoint on every rank; returns its nimg, -1 for a fresh run."""
    loaded = load_on_all(checkpoints, rt)
    if loaded is not None:
        nimg, state = loaded
        s.load_state_dict(state)
        return nimg
    if c.init_from:
        start = Checkpoints(RunDir(c.init_from).checkpoints, say=attempt.say).load_latest()
        if start is None:
            raise specs.ConfigError(
                f"--init-from {c.init_from}: no checkpoint there; name a run directory that has one"
            )
        try:
            for name in ("G", "D", "G_ema"):
                getattr(s, name).load_state_dict(start[1][name])
        except (RuntimeError, KeyError) as error:
            raise specs.ConfigError(
                f"--init-from {c.init_from}: another architecture ({str(error).splitlines()[-1].strip()})"
            ) from None
    return -1


def load_on_all(checkpoints: Checkpoints, rt: runtime.Runtime) -> tuple[int, dict] | None:
    """What rank 0 finds newest is what every rank loads."""
    loaded = checkpoints.load_latest() if rt.rank == 0 else None
    nimg = runtime.from_rank_0(rt, -1 if loaded is None else loaded[0])
    if nimg < 0:
        return None
    return loaded if rt.rank == 0 else (nimg, checkpoints.load(nimg))


def save(
    c: GanConfig, rt: runtime.Runtime, run: RunDir, s: TrainState, pack: Pack, checkpoints: Checkpoints, nimg: int
) -> None:
    """Rank 0: snapshot the state to host memory; the writer thread does the rest, predict.py's weights included."""
    if rt.rank != 0:
        return
    about = {
        "job": "stylegan2",
        "config": specs.result_fields(c),
        "classes": pack.classes,
        "geometry": pack.geometry,
        "nimg": nimg,
    }
    weights = {"G_ema": {k: v.detach().to("cpu", copy=True) for k, v in s.G_ema.state_dict().items()}}
    checkpoints.save(
        nimg, s.state_dict(), healthy=s.counters["healthy"], then=lambda: write_weights(run.weights, weights, about)
    )


def check_finite(s: TrainState) -> None:
    """Raise Diverged if a loss or a parameter is not finite. The same on every rank: all hold the same values."""
    norms = torch.stack(torch._foreach_norm([*s.G.parameters(), *s.D.parameters(), *s.G_ema.parameters()]))
    if not bool(torch.isfinite(norms).all()):
        raise Diverged("a network's parameters are not finite")
    bad = [name for name, value in s.averages.means().items() if not math.isfinite(value)]
    if bad:
        raise Diverged(f"{', '.join(bad)} not finite")


def roll_back(
    s: TrainState, checkpoints: Checkpoints, rt: runtime.Runtime, nimg: int, error: Diverged, attempt: Attempt
) -> int:
    """Once: back to the last good checkpoint, and past the data and the random draws that led here. Then give up."""
    if s.counters["rollbacks"] >= 1:
        raise Diverged(
            f"{error}, again after a roll-back; lower --lr, raise --gamma, or use --precision fp32"
        ) from None
    if rt.rank == 0:
        checkpoints.wait()
    loaded = load_on_all(checkpoints, rt)
    if loaded is None:
        raise error
    back, state = loaded
    s.load_state_dict(state)
    s.counters["skip"] += nimg - back
    s.counters["rollbacks"] += 1
    attempt.say(
        f"WARNING: DIVERGED at {nimg / 1000:g} kimg: {error}. Rolled back to {back / 1000:g} kimg; those data are skipped."
    )
    return back


def stopped(watch: stop.StopWatch, level: int, attempt: Attempt, nimg: int) -> int:
    reason = watch.describe(level)
    by_person = level >= 3
    attempt.say(f"Stopped at {nimg / 1000:g} kimg ({reason}); saved. The same command goes on from here.")
    return attempt.end(stop.DONE if by_person else stop.CONTINUE, "stopped" if by_person else "continue", reason)


def finish(c: GanConfig, run: RunDir, record: Record, attempt: Attempt, nimg: int) -> int:
    """The loss plot, DONE, and where everything is."""
    if record.main:
        record.progress.close()
        record.board.close()
        plot_losses(read_metrics(run.metrics), run.plots / "losses.png")
        run.mark_done()
        attempt.say(f"DONE: {run.path} has seen {nimg / 1000:g} kimg")
        announce(run)
    return attempt.end(stop.DONE, "done", "finished")


def announce(run: RunDir) -> None:
    """Where everything is."""
    grids = sorted(p for p in run.samples.glob("[0-9]*.png"))
    print(f"  samples      {grids[-1] if grids else 'none'}")
    print(f"  real slices  {run.samples / 'reals.png'}")
    print(f"  losses       {run.plots / 'losses.png'}")
    print(f"  generate     python predict.py generate --run {run.path} --number 64")
    print(f"  TensorBoard  {Path(sys.executable).with_name('tensorboard')} --logdir {run.tensorboard}")


def extends(c: GanConfig, run: RunDir) -> bool:
    """Whether --total-kimg is larger than what the finished run was told."""
    stored = run.read_config() or {}
    return c.total_kimg > stored.get("total_kimg", math.inf)


def dry_run(c: GanConfig) -> int:
    """Check flags, data and memory; the resolved config goes to standard output, all else to standard error."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    print(describe_data(c), file=sys.stderr)
    print(
        f"memory: about {specs.gan_memory_gb(c, world):.1f} GB per GPU at --batch {c.batch}, {world} GPU(s)",
        file=sys.stderr,
    )
    print(specs.to_json(c))
    return stop.DONE


def describe_data(c: GanConfig) -> str:
    if c.data.endswith(".pack"):
        pack = open_pack(c.data)
        return f"{c.data}: pack of {len(pack.labels)} slices at {pack.images.shape[-1]} px"
    return find_source(c.data, c.split).describe()


def main() -> int:
    c = specs.parse(GanConfig)
    if c.dry_run:
        return dry_run(c)
    rank, world, _ = runtime.ranks()
    specs.check_world(c, world)
    run = RunDir(c.run)
    if run.done() and not extends(c, run):
        if rank == 0:
            print(f"{run.path} is done. Raise --total-kimg to go on, or use another --run to start afresh.")
            announce(run)
        return stop.DONE
    with Attempt(run, c, rank) as attempt:
        if rank == 0 and not prepare_run(run, c, attempt.say):
            return stop.DONE
        # The pack is built before the process group exists: no collective waits for minutes of decoding.
        pack = ensure_pack(
            c.data, resolution=c.resolution, channels=c.channels, crop=c.crop, split=c.split, max_bad=c.max_bad,
            log=attempt.say, progress=rank == 0,
        )  # fmt: skip
        if c.conditional and len(pack.classes) < 2:
            raise specs.ConfigError(
                "--conditional: the data has fewer than two classes; use a folder with one folder per class"
            )
        rt = runtime.init_runtime(c.threads)
        code = train(c, rt, run, pack, attempt)
        runtime.shutdown(rt)
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main, (DataError, CheckpointError)))
