"""Train a KL-VAE on brain-MRI slices, whose latents train_diffusion.py learns (Kingma and Welling 2014; Rombach 2022).

    python pretrain_vae.py --preset quickstart                                  # phantoms, two CPU cores, minutes
    python pretrain_vae.py --preset adni256-ldm --data /path/to/ADNI            # one GPU
    torchrun --nproc-per-node 4 -- pretrain_vae.py --preset adni256-ldm --data ... # several GPUs of one machine

Run the same command again to resume. Time is counted in images seen (`nimg`): schedules, intervals, the order of the
data and every random draw are functions of it, so a resumed run is the run that was not interrupted.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("pretrain_vae.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

from jobs.run import stopping

if __name__ == "__main__":
    stopping.install_handlers()  # before torch, whose import takes seconds in which a signal would kill the process

from data.installed import need
from jobs.config import parsing
from jobs.config.specs import VaeConfig

if __name__ == "__main__":
    need("torch", "numpy", "PIL", "tyro", "safetensors", "tensorboard", "matplotlib")
    parsing.answer_at_once(VaeConfig)

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from data import files
from data.batches import Batches
from data.build import packing_of
from data.files import sha256_of
from data.latents import ensure_latents
from data.pack import ensure_held_out, ensure_pack, preview
from data.packfile import Pack
from data.walk import DataError
from jobs.config import rules
from jobs.config.specs import ConfigError
from jobs.predict.vae_look import Reconstructions
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.resume import end_dry_run
from jobs.run.rundir import RunDir
from jobs.run.vae import has_collapsed
from jobs.training import best, collectives, devices, randomness, ranks
from jobs.training.averages import Averages
from jobs.training.checkpoint import Checkpoints, Diverged
from jobs.training.throughput import count_flops
from jobs.training.upkeep import (
    FRESH_COUNTERS,
    Record,
    State,
    Upkeep,
    already_done,
    compiled,
    compiles,
    due,
    load_initial_weights,
    optimizer_step,
)
from jobs.training.weights import read_weights
from models import loading
from models.draws import normal
from models.ema import ema_beta, update_ema
from models.optim import adamw, after_window, learning_rate, memory_layout
from models.perceptual import VggDistance, load_vgg
from models.vae import (
    VAE,
    PatchDiscriminator,
    balanced_weight,
    hinge_d_loss,
    hinge_g_loss,
    kl_divergence,
    reconstruction_loss,
    structure_loss,
)

BALANCE_PACE = 0.1  # share of each step's measurement in the running weight of the adversarial gradient


# --- networks and everything that a checkpoint holds -----------------------------------------------------------------
@dataclass
class TrainState(State):
    """All that the next step depends on, besides the config and `nimg`."""

    vae: VAE
    vae_ema: VAE
    D: PatchDiscriminator
    opt_vae: torch.optim.Optimizer
    opt_D: torch.optim.Optimizer
    scaler_vae: torch.amp.GradScaler
    scaler_D: torch.amp.GradScaler
    averages: Averages
    gan_balance: torch.Tensor  # () fp32, weight that makes adversarial and reconstruction gradients equally long
    window: torch.Tensor  # (2,) fp64, loss and images since the last plateau was looked for
    counters: dict = field(default_factory=lambda: {**FRESH_COUNTERS, "lr_factor": 1.0, "best_window": math.inf})

    def log_extra(self) -> dict:
        """Columns of a log row that are states and not averages over the interval."""
        return {"gan_balance": float(self.gan_balance), "lr": self.opt_vae.param_groups[0]["lr"]}


def build_vae(c: VaeConfig) -> VAE:
    """The VAE of a configuration, not yet trained."""
    return VAE(c.channels, c.latent_channels, width=c.width, down=c.down, num_res=c.num_res)


def build_state(c: VaeConfig, device: torch.device) -> TrainState:
    """Networks and optimizers, initialised from the seed alone.

    D is there from the start, so that every checkpoint fits.
    """
    torch.manual_seed(randomness.seed_of(c.seed, 0, "weights"))
    layout = memory_layout(device)
    vae = build_vae(c).to(device).to(memory_format=layout)
    D = PatchDiscriminator(c.channels, c.disc_width).to(device).to(memory_format=layout)
    vae_ema = build_vae(c).to(device).to(memory_format=layout).eval().requires_grad_(False)
    vae_ema.load_state_dict(vae.state_dict())
    fp16 = devices.precision_dtype(c.precision, device) == torch.float16
    return TrainState(
        vae=vae,
        vae_ema=vae_ema,
        D=D,
        opt_vae=adamw(vae, c.lr, c.weight_decay, betas=(0.9, 0.99)),
        opt_D=adamw(D, c.lr, c.weight_decay, betas=(0.5, 0.99)),
        scaler_vae=torch.amp.GradScaler(device.type, enabled=fp16),
        scaler_D=torch.amp.GradScaler(device.type, enabled=fp16),
        averages=Averages(),
        gan_balance=torch.zeros((), device=device),
        window=torch.zeros(2, dtype=torch.float64, device=device),
    )


# --- one step ---------------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """What one step needs. Draws are made for the global batch; a rank uses its rows of them."""

    c: VaeConfig
    rt: ranks.Runtime
    batches: Batches
    dtype: torch.dtype
    nimg: int
    position: int  # first image of this step in the data and in the random streams
    network: Callable  # the VAE, compiled if asked
    perceptual: VggDistance | None = None
    stats: dict = field(default_factory=dict)  # sums over this rank's rows, divided by the global batch

    @property
    def adversarial(self) -> bool:
        """Whether the discriminator takes part in this step."""
        return self.c.gan_weight > 0 and self.nimg >= self.c.gan_start_kimg * 1000

    @property
    def joining(self) -> bool:
        """Whether this is the discriminator's first step: what comes after it is not compared with what came before."""
        return self.adversarial and self.nimg - self.c.batch < self.c.gan_start_kimg * 1000

    def lr(self, s: TrainState) -> float:
        """The learning rate of this step."""
        cosine_kimg = self.c.decay_kimg if self.c.decay == "cosine" else 0.0
        rate = learning_rate(self.nimg, self.c.batch, self.c.lr, self.c.warmup_kimg, cosine_kimg)
        return rate * s.counters["lr_factor"]

    def autocast(self):
        """The type that the networks run in."""
        return torch.autocast(self.rt.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def rows(self) -> list[tuple[int, int]]:
        """(start, stop) of this rank's micro-batches in the global batch."""
        return randomness.rows(self.c.batch, self.rt.rank, self.rt.world, self.c.accumulate)

    def add(self, name: str, values: torch.Tensor) -> None:
        """Add this rank's rows of a figure to its mean over the global batch."""
        self.stats[name] = self.stats.get(name, 0.0) + values.detach().float().sum() / self.c.batch


def vae_step(s: TrainState, step: Step) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Reconstruction, KL and adversarial loss of the VAE; returns (images, reconstructions) of each micro-batch.

    The losses on the reconstruction are differentiated down to the image first. There the adversarial gradient is made
    as long as that of the reconstruction, times gan_weight, and one backward pass takes the sum through the decoder.
    What runs in fp16 is scaled on its way to the image as well.
    """
    c, side = step.c, step.c.resolution // step.c.down
    gen = randomness.generator(c.seed, step.position, "posterior")
    noise = normal((c.batch, c.latent_channels, side, side), gen, step.rt.device)
    # The loss scale of fp16, as a factor: gradients with respect to the image are taken by hand below.
    scale, pairs = s.scaler_vae.scale(torch.ones((), device=step.rt.device)), []
    s.D.requires_grad_(False)
    for start, stop in step.rows():
        images, _ = step.batches.rows(step.position, start, stop)
        images = images.contiguous(memory_format=memory_layout(images.device))
        with step.autocast():
            output, mean, logvar = step.network(images, noise[start:stop])
        kl = kl_divergence(mean, logvar)
        image = output.detach().requires_grad_(True)
        pixels = reconstruction_loss(image, images, c.loss)
        structure = structure_loss(image, images) if c.structure_weight else torch.zeros_like(pixels)
        # Down to the image only: the decoder is passed through once, with the sum of all that pushes at the image.
        (gradient,) = torch.autograd.grad((pixels + c.structure_weight * structure).sum(), image)
        if step.perceptual is not None:
            with step.autocast():
                distance = step.perceptual(image, images)
            (push,) = torch.autograd.grad(distance.sum() * scale, image)
            gradient = gradient + c.perceptual_weight * push / scale
            step.add("loss_perceptual", distance)
        if step.adversarial:
            with step.autocast():
                adversarial = hinge_g_loss(s.D(image))
            (push,) = torch.autograd.grad(adversarial.sum() * scale, image)
            push = push / scale
            step.add("grad_pixels", gradient.flatten(1).norm(dim=1))
            step.add("grad_adversarial", push.flatten(1).norm(dim=1))
            step.add("loss_adversarial", adversarial)
            # gan_balance makes the adversarial push as long as the reconstruction's, whatever the logits' scale is.
            gradient = gradient + c.gan_weight * s.gan_balance * push
        share = scale / (len(images) * c.accumulate)
        torch.autograd.backward([output, kl], [gradient * share, torch.full_like(kl, c.kl_weight) * share])
        for name, values in (("loss_pixels", pixels), ("loss_structure", structure), ("kl", kl)):
            step.add(name, values)
        pairs.append((images, image.detach()))
    s.D.requires_grad_(True)
    norm = optimizer_step(step.rt, s.vae, s.opt_vae, s.scaler_vae, step.lr(s), c.clip)
    s.averages.add({"grad_norm": norm})
    return pairs


def discriminator_step(s: TrainState, step: Step, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Hinge loss of the patch discriminator on slices and their reconstructions."""
    for images, outputs in pairs:
        with step.autocast():
            real_logits, fake_logits = s.D(torch.cat([images, outputs])).chunk(2)
        losses = hinge_d_loss(real_logits, fake_logits)
        s.scaler_D.scale(losses.mean() / step.c.accumulate).backward()
        step.add("loss_D", losses)
    optimizer_step(step.rt, s.D, s.opt_D, s.scaler_D, step.lr(s), step.c.clip)


def train_step(s: TrainState, step: Step) -> None:
    """One optimizer step of the VAE and, once it takes part, of the discriminator; EMA; what the ranks agree on."""
    c = step.c
    pairs = vae_step(s, step)
    if step.adversarial:
        discriminator_step(s, step, pairs)
    # One reduction for all that the ranks must agree on: balance, plateau, and the log.
    names = sorted(step.stats)
    total = collectives.reduce_sum(step.rt, torch.stack([step.stats[name] for name in names]))
    stats = dict(zip(names, total, strict=True))
    if step.adversarial:
        s.gan_balance.lerp_(balanced_weight(stats.pop("grad_pixels"), stats.pop("grad_adversarial")), BALANCE_PACE)
    s.averages.add(stats)
    if step.joining:
        best.forget(s.counters)  # D trades pixels for sharpness: the best is looked for anew
    if c.decay == "plateau":
        look_for_plateau(s, step, stats["loss_pixels"])
    # Latents and reconstructions are made with the average of the weights.
    update_ema(s.vae_ema, s.vae, ema_beta(s.averaged(step.nimg + c.batch), c.batch, c.ema_kimg, c.ema_rampup))


def look_for_plateau(s: TrainState, step: Step, loss: torch.Tensor) -> None:
    """At the end of a window of plateau_kimg images: halve the learning rate unless the loss fell; the same on every
    rank.

    Windows before the discriminator joined are not compared with those after: it trades pixels for sharpness.
    """
    c, nimg = step.c, step.nimg + step.c.batch
    s.window += torch.stack([loss.double() * c.batch, torch.full_like(loss, c.batch, dtype=torch.float64)])
    if step.joining:
        s.counters["best_window"] = math.inf
    if due(nimg, c.batch, c.plateau_kimg):
        total, images = s.window.tolist()
        after = after_window(total / images, s.counters["best_window"], s.counters["lr_factor"])
        s.counters["best_window"], s.counters["lr_factor"] = after
        s.window.zero_()


def step_flops(c: VaeConfig, rt: ranks.Runtime, dtype: torch.dtype, perceptual: VggDistance | None) -> dict:
    """{step.adversarial: FLOPs of one image in such a step}, counted on a blank image and a copy of the networks."""
    c, rt = replace(c, batch=1, accumulate=1, gan_start_kimg=1), replace(rt, rank=0, world=1)
    s = build_state(c, rt.device)
    blank = torch.zeros(1, c.channels, c.resolution, c.resolution, device=rt.device)
    batches: Any = SimpleNamespace(rows=lambda _, start, stop: (blank, None))
    steps = [Step(c, rt, batches, dtype, nimg, 0, s.vae, perceptual) for nimg in (0, 1000)]
    return {step.adversarial: count_flops(partial(train_step, s, step)) for step in steps}


# --- the run ----------------------------------------------------------------------------------------------------------
def train(c: VaeConfig, rt: ranks.Runtime, run: RunDir, pack: Pack, held_out: Pack | None, attempt: Attempt) -> int:
    """Train until done or stopped. Returns the process's exit code; raises Diverged."""
    dtype = devices.precision_dtype(c.precision, rt.device)
    s = build_state(c, rt.device)
    upkeep = Upkeep(c, rt, run, s, Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say), attempt)
    # A checkpoint, where there is one, replaces all of the state; --init-from is for the first start alone.
    found = upkeep.resume()
    if found < 0 and c.init_from:
        load_initial_weights(s, ("vae", "vae_ema", "D"), c.init_from, attempt.say)
    room = devices.step_bytes(c, rt)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device, hflip=c.hflip, room=room)
    perceptual = open_perceptual(c, rt.device)
    reconstructions = Reconstructions(c, pack, held_out, rt, dtype)
    record = Record(
        c,
        rt,
        run,
        attempt,
        found,
        dtype,
        flops=lambda: step_flops(c, rt, dtype, perceptual),
        waits=lambda: {"data_wait": batches.waited, **upkeep.waits()},
    )
    # Real slices beside the generated ones, in TensorBoard and as a file: what a grid should come to look like.
    if found < 0 and rt.rank == 0:
        record.show("reals.png", "reals", reconstructions.reals(), 0)
    network = compiled(s.vae) if compiles(c.compile, rt.device, run, attempt.say) else s.vae

    nimg = upkeep.begin(found, dtype, batches)
    while True:
        # All that looks at the run stands here, before the step: a resumed run continues at exactly this place.
        try:
            record.tick(nimg, s, lambda _: reconstructions(s.vae_ema), s.log_extra, of=reconstructions.of)
            upkeep.hold(nimg, {"vae": s.vae_ema})
            # All ranks save together or not at all: each looks for signals, the slowest of them decides.
            if upkeep.agree(nimg):
                upkeep.save(nimg, {"vae": s.vae_ema}, {"classes": pack.classes, "geometry": pack.geometry})
            if upkeep.ending:
                batches.close()
                return upkeep.leave(record, nimg)
        except Diverged as error:  # once back to the last good checkpoint, past the data that led here
            nimg = upkeep.roll_back(nimg, error, "lower --lr, or use --precision fp32")
            record.rewind(nimg)
            continue

        step = Step(c, rt, batches, dtype, nimg, nimg + s.counters["skip"], network, perceptual)
        train_step(s, step)
        nimg += c.batch
        record.step_done(nimg, kind=step.adversarial)


def open_perceptual(c: VaeConfig, device: torch.device) -> VggDistance | None:
    """The network of the perceptual term, where a file is given."""
    if not c.perceptual_file:
        return None
    try:
        return load_vgg(c.perceptual_file).to(device).to(memory_format=memory_layout(device))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def write_latents(c: VaeConfig, rt: ranks.Runtime, run: RunDir, packs: list[Pack], say: Callable[[str], None]) -> None:
    """The end of a run: every slice encoded once with the weights that were written, and the scale per channel.

    train_diffusion.py finds the cache by these weights' hash; where this is cut short, it encodes by itself.
    """
    tensors, about = read_weights(run.weights)
    vae = loading.load_vae(tensors, about["config"]).to(rt.device)
    sha = sha256_of(run.weights)
    for pack in packs:
        latents = ensure_latents(pack, vae.encode, sha, device=rt.device, poll=stopping.raise_if_asked, log=say)
        if pack is packs[0]:
            mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (latents.mean, latents.std))
            noise = ", of noise alone: they carry nothing of the slices" * has_collapsed(about.get("verdict"))
            say(f"latents per channel: mean {mean}; standard deviation {std}{noise}")


def dry_run(c: VaeConfig) -> int:
    """Check flags, data, run directory and memory, and change nothing."""
    say = partial(files.say, to=sys.stderr)
    _, slices = preview(c.data, split=c.split, **packing_of(c) | {"log": say})
    open_perceptual(c, torch.device("cpu"))
    return end_dry_run(c, say, slices * c.channels * c.resolution**2)


def open_data(c: VaeConfig, rank: int, say) -> tuple[Pack, Pack | None]:
    """The training slices and those of other patients, packed where they are not yet."""
    how = packing_of(c) | {"log": say, "progress": rank == 0, "poll": stopping.raise_if_asked}
    pack = ensure_pack(c.data, split=c.split, verify=rank == 0, **how)
    return pack, ensure_held_out(c.data, c.val_split, train_split=c.split, verify=rank == 0, **how)


def main() -> int:
    """Train, or check with --dry-run. Returns the exit code."""
    c = parsing.parse_config(VaeConfig)
    if c.dry_run or c.toml:
        return dry_run(c)
    rank, world, _ = ranks.ranks()
    rules.check_world(c, world)
    run = RunDir(c.run)
    if already_done(c, run, rank):
        return stopping.DONE
    # From here on the run directory is locked, and whatever ends this process is written down in it.
    with ranks.Meeting() as meeting, Attempt(run, c, rank, world) as attempt:
        if rank == 0 and not prepare_run(run, c, attempt.say):
            return stopping.DONE
        device = devices.choose_device(meeting, c.device, attempt.say)
        # Packs are built before the process group exists: no collective waits for minutes of decoding.
        pack, held_out = meeting.first(partial(open_data, c, rank, attempt.say))
        if rank == 0:
            check_data(run, c, pack.classes, {c.split: pack.digest}, attempt.say, slices=len(pack))
            # Only now is the run one of this config: flags, data and classes have all been accepted.
            adopt_config(run, c)
        threads = devices.choose_threads(c.threads, run, world, device, attempt.say)
        rt = collectives.init_runtime(threads, meeting, device)
        code = train(c, rt, run, pack, held_out, attempt)
        collectives.shutdown(rt)
        if rank == 0 and run.done():
            try:
                write_latents(c, rt, run, [pack] if held_out is None else [pack, held_out], attempt.say)
            except (DataError, stopping.Stopped) as error:  # the run is done all the same
                attempt.say(f"warning: the latents are not cached ({error}); train_diffusion.py encodes by itself")
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main))
