"""Train a StyleGAN2 on brain-MRI slices (Karras et al. 2019, 2020a "Analyzing and Improving", 2020b "ADA").

    python train_gan.py --preset quickstart                              # phantoms, two CPU cores, minutes
    python train_gan.py --preset adni256 --data /path/to/ADNI            # one GPU
    torchrun --nproc-per-node 4 -- train_gan.py --preset adni256 --data ... # several GPUs of one machine

Run the same command again to resume. Time is counted in images seen (`nimg`): schedules, intervals, the order of the
data and every random draw are functions of it, so a resumed run is the run that was not interrupted.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("train_gan.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

from jobs.run import stopping

if __name__ == "__main__":
    stopping.install_handlers()  # before torch, whose import takes seconds in which a signal would kill the process

from data.installed import need
from jobs.config import parsing
from jobs.config.specs import GanConfig

if __name__ == "__main__":
    need("torch", "numpy", "PIL", "tyro", "safetensors", "tensorboard", "matplotlib")
    parsing.answer_at_once(GanConfig)

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from data import files
from data.batches import Batches
from data.build import packing_of
from data.columns import Column
from data.pack import preview
from data.packfile import Pack
from jobs.config import rules
from jobs.config.recipe import recipe_line
from jobs.predict.conditions import about_columns, columns_of, known_of, labels_of, told_of
from jobs.predict.features import Network
from jobs.predict.gan_look import HeldOut, Sampler, held_out_for_ada
from jobs.predict.yardstick import given_network, open_data, open_yardstick
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.resume import end_dry_run
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, randomness, ranks
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
    load_initial_weights,
)
from models import augment as ada
from models.augment import augmented
from models.conditions import DROPPED, READ_WEIGHT, Told, blank_label, drop_values
from models.convolution import differentiated_twice
from models.draws import moved, normal
from models.ema import ema_beta, update_ema
from models.gan_losses import discriminator_loss, generator_loss, gradient_penalty, path_length_penalty, path_lengths
from models.optim import lazy_adam
from models.stylegan2 import Discriminator, Generator, PublishedGenerator
from models.styles import rows_of, styles_of

W_AVG_BETA = 0.998  # decay of the w average per step (truncation trick)
STATS = "loss_G loss_D logits_real logits_fake logits_held sign_real r1 r2 path_length pl_penalty".split()


# --- data, networks and everything that a checkpoint holds -----------------------------------------------------------
@dataclass
class TrainState(State):
    """All that the next step depends on, besides the config and `nimg`."""

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
    counters: dict = field(default_factory=lambda: dict(FRESH_COUNTERS))

    def log_extra(self) -> dict:
        """Columns of a log row that are states and not averages over the interval."""
        return {"ada_p": self.ada.p, "r_t": self.ada.r_t, "r_v": self.ada.r_v, "pl_mean": float(self.pl_mean)}


def build_state(c: GanConfig, num_classes: Told, device: torch.device) -> TrainState:
    """Networks and optimizers, initialised from the seed alone."""
    torch.manual_seed(randomness.seed_of(c.seed, 0, "weights"))
    shape: dict[str, Any] = {k: getattr(c, k) for k in "resolution channels channel_base channel_max".split()}
    shape |= dict(num_classes=num_classes, mapping_layers=c.mapping_layers)
    # With StyleGAN2's own loss its own start: from orthogonal matrices it narrows (benchmarks/NOTES.md).
    network = Generator if c.loss == "rpgan" else PublishedGenerator
    G = network(**shape, z_dim=c.z_dim, w_dim=c.w_dim).to(device)
    D = Discriminator(**shape, mbstd_group=c.mbstd_group).to(device)
    G_ema = deepcopy(G).eval().requires_grad_(False)
    fp16 = devices.precision_dtype(c.precision, device) == torch.float16
    return TrainState(
        G=G,
        D=D,
        G_ema=G_ema,
        opt_G=lazy_adam(G, c.lr, c.pl_interval if c.pl_weight else 0),
        opt_D=lazy_adam(D, c.lr, c.r1_interval if c.gamma else 0),
        scaler_G=torch.amp.GradScaler(device.type, enabled=fp16),
        scaler_D=torch.amp.GradScaler(device.type, enabled=fp16),
        ada=ada.AdaController(target=c.ada_target, speed_kimg=c.ada_kimg),
        averages=Averages(),
        pl_mean=torch.zeros((), device=device),
    )


# --- one step ---------------------------------------------------------------------------------------------------------
@dataclass
class Step:
    """What every phase of one step needs. Draws are made for the global batch; a rank uses its rows of them."""

    c: GanConfig
    rt: ranks.Runtime
    batches: Batches
    label_pool: torch.Tensor  # (N, ...) what is known of each training slice: what is generated follows whole rows
    dtype: torch.dtype  # of the convolutions
    position: int  # first image of this step in the data and in the random streams
    synthesis: Callable  # G.synthesis and D, compiled if asked; the regularisers use the plain ones
    critic: Callable
    w_sum: torch.Tensor | float = 0.0  # G.sums_of_w of this rank's rows, divided by the global batch
    stats: dict = field(default_factory=dict)  # the same for losses and logits
    held: HeldOut | None = None

    def generator(self, purpose: str) -> torch.Generator:
        """The random stream of one purpose in this step."""
        return randomness.generator(self.c.seed, self.position, purpose)

    def reals(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """These rows of the data: images, and what the networks are told of them."""
        images, labels = self.batches.rows(self.position, start, stop)
        return images, self.told(labels, self.c.batch, start, self.generator("unknown values"))

    def told(self, labels: torch.Tensor, batch: int, start: int, gen: torch.Generator) -> torch.Tensor:
        """Attributes with some values made unknown, so that a subset of them can be asked for; classes as they are."""
        return drop_values(labels, batch, start, DROPPED, gen) if self.c.condition else labels

    def judged(self, images: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """D's logits, and how far attributes are from what it reads off the images."""
        if self.c.condition:
            return self.critic(images, labels, dtype=self.dtype, read=True)
        return self.critic(images, labels, dtype=self.dtype), None

    def rows(self, batch: int) -> list[tuple[int, int]]:
        """(start, stop) of this rank's micro-batches in a global batch."""
        return randomness.rows(batch, self.rt.rank, self.rt.world, self.c.accumulate)

    def add(self, name: str, values: torch.Tensor, batch: int) -> None:
        """Add this rank's rows of a figure to its mean over a global batch."""
        self.stats[name] = self.stats.get(name, 0.0) + values.detach().float().sum() / batch


def draw_latents(step: Step, G: Generator, batch: int, purpose: str) -> dict:
    """Latents, labels, mixing and noise of one global batch.

    Returns z, z_mix (batch, z_dim); cutoff (batch,) = first layer that takes the second style, num_ws where the styles
    are not mixed (Karras 2019, section 3.1); labels (batch, ...) or None; noise, a list of (batch, 1, h, w).
    """
    c, gen, device = step.c, step.generator(purpose), step.rt.device
    z, z_mix = normal((2, batch, c.z_dim), gen, device)
    cutoff = torch.randint(1, G.num_ws, (batch,), generator=gen)
    mixed = torch.rand(batch, generator=gen) < c.style_mixing
    pick = torch.randint(len(step.label_pool), (batch,), generator=gen)
    noise = G.draw_noise(batch, gen, device)
    labels = step.told(step.label_pool[moved(pick, device)], batch, 0, gen) if c.labelled else None
    cutoff = moved(torch.where(mixed, cutoff, G.num_ws), device)
    return dict(z=z, z_mix=z_mix, cutoff=cutoff, labels=labels, noise=noise)


def draw_augmentation(step: Step, p: float, purpose: str) -> dict:
    """What is drawn for a global batch, each decision with probability p; {} where nothing is augmented."""
    if step.c.ada == "off":
        return {}
    gen, kinds = step.generator("augment " + purpose), ada.KINDS[step.c.ada]
    return ada.draw_augmentation(step.c.batch, p, step.c.resolution, gen, step.rt.device, kinds)


def optimizer_step(step: Step, module: nn.Module, optimizer, scaler=None) -> None:
    """Average the gradients over the ranks by one flat all-reduce, then step."""
    collectives.reduce_mean_gradients(step.rt, list(module.parameters()))
    if scaler is not None and scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def generator_step(s: TrainState, step: Step) -> None:
    """Adversarial loss of G: the gradient flows through D's input into G; D itself is held."""
    c = step.c
    # Draws are a function of (seed, position, purpose): every phase has its own, and a resumed run the same.
    draws, params = draw_latents(step, s.G, c.batch, "G"), draw_augmentation(step, s.ada.p, "G")
    # D's weights need no gradient here; without this autograd would compute and keep them, a third of the step's work.
    s.D.requires_grad_(False)
    for start, stop in step.rows(c.batch):
        real, labels = step.reals(start, stop) if c.loss == "rpgan" else (None, None)
        latents, noise = rows_of(draws, start, stop, labels)
        ws, w = styles_of(s.G, **latents)
        fake = step.synthesis(ws, noise, dtype=step.dtype)
        logits, misread = step.judged(augmented(fake, params, start, stop), latents["labels"])
        real_logits = None
        if real is not None:  # pairs each generated image with a real one of the same row, and of the same class
            with torch.no_grad():
                real = augmented(real, params, start, stop)
                real_logits = step.critic(real, latents["labels"], dtype=step.dtype)
        # The mean over micro-batches is the mean over the batch, so --accumulate changes rounding alone.
        losses = generator_loss(logits, real_logits, kind=c.loss)
        if misread is not None:  # G is to draw what it was told
            losses = losses + READ_WEIGHT * misread
        s.scaler_G.scale(losses.mean() / c.accumulate).backward()
        step.add("loss_G", losses, c.batch)
        step.w_sum = step.w_sum + s.G.sums_of_w(w.detach(), latents["labels"]) / c.batch
    s.D.requires_grad_(True)
    optimizer_step(step, s.G, s.opt_G, s.scaler_G)


@differentiated_twice()
def path_length_step(s: TrainState, step: Step) -> None:
    """Lazy path-length regularisation on half a batch of its own (Karras 2020a, equation 4 and section 3.2)."""
    c, batch = step.c, max(step.c.batch // 2, 1)
    draws = draw_latents(step, s.G, batch, "path length")
    pl_noise = normal((batch, c.channels, c.resolution, c.resolution), step.generator("pl noise"), step.rt.device)
    for start, stop in step.rows(batch):
        latents, noise = rows_of(draws, start, stop)
        ws, _ = styles_of(s.G, **latents)
        # The plain synthesis, not the compiled one: torch.compile cannot differentiate a gradient again.
        images = s.G.synthesis(ws, noise, dtype=exact_dtype(step.dtype))
        lengths = path_lengths(images, ws, pl_noise[start:stop])
        penalty = path_length_penalty(lengths, s.pl_mean)
        # Due once in pl_interval steps, so it counts that many times as much (lazy regularisation).
        (penalty.mean() * (c.pl_weight * c.pl_interval / c.accumulate)).backward()
        step.add("path_length", lengths, batch)
        step.add("pl_penalty", penalty, batch)
    optimizer_step(step, s.G, s.opt_G)


def discriminator_step(s: TrainState, step: Step) -> None:
    """Adversarial loss of D on generated and real rows; the generated ones carry no gradient to G."""
    c = step.c
    draws, params = draw_latents(step, s.G, c.batch, "D"), draw_augmentation(step, s.ada.p, "D fake")
    real_params = draw_augmentation(step, s.ada.p, "D real")
    for start, stop in step.rows(c.batch):
        real, labels = step.reals(start, stop)
        latents, noise = rows_of(draws, start, stop, labels if c.loss == "rpgan" else None)
        # No gradient to G from D's step, and reals augmented as generated ones are: else D would tell them by that.
        with torch.no_grad():
            fake = step.synthesis(styles_of(s.G, **latents)[0], noise, dtype=step.dtype)
            fake = augmented(fake, params, start, stop)
            real = augmented(real, real_params, start, stop)
        # One pass over both: minibatch-std groups are contiguous rows, so generated and real rows never share one.
        both = torch.cat([latents["labels"], labels]) if c.labelled else None
        logits, misread = step.judged(torch.cat([fake, real]), both)
        fake_logits, real_logits = logits.chunk(2)
        losses = discriminator_loss(real_logits, fake_logits, kind=c.loss)
        if misread is not None:  # D learns to read what is known of real slices
            losses = losses + READ_WEIGHT * misread.chunk(2)[1]
        s.scaler_D.scale(losses.mean() / c.accumulate).backward()
        step.add("loss_D", losses, c.batch)
        step.add("logits_real", real_logits, c.batch)
        step.add("logits_fake", fake_logits, c.batch)
        # What ADA steers by. Relativistic logits have no level of their own, so there it is real against generated.
        overfit = real_logits - fake_logits if c.loss == "rpgan" else real_logits
        step.add("sign_real", overfit.detach().sign(), c.batch)
    optimizer_step(step, s.D, s.opt_D, s.scaler_D)


@torch.no_grad()
def look_at_held_out(s: TrainState, step: Step, held: HeldOut) -> None:
    """What D says of slices that it does not learn from, augmented as the others (Karras 2020b, equation 1)."""
    c, params = step.c, draw_augmentation(step, s.ada.p, "D held out")
    for start, stop in step.rows(c.batch):
        images, labels = held.rows(step.position, start, stop, step.position // (s.ada.interval * c.batch))
        labels = labels if labels is None else step.told(labels, c.batch, start, step.generator("unknown values"))
        logits = step.critic(augmented(images, params, start, stop), labels, dtype=step.dtype)
        step.add("logits_held", logits, c.batch)


@differentiated_twice()
def gradient_penalty_step(s: TrainState, step: Step) -> None:
    """Lazy R1 on the reals, and R2 on generated slices for rpgan (Mescheder 2018; Karras 2020a, section 3.1).

    The penalty is on D's own input, after augmentation: that is the function whose slope it limits.
    """
    c, dtype = step.c, exact_dtype(step.dtype)
    draws = draw_latents(step, s.G, c.batch, "R2") if c.loss == "rpgan" else None
    real_params, params = draw_augmentation(step, s.ada.p, "R1"), draw_augmentation(step, s.ada.p, "R2")
    for start, stop in step.rows(c.batch):
        with torch.no_grad():
            real, labels = step.reals(start, stop)
            inputs = [("r1", augmented(real, real_params, start, stop), labels if c.labelled else None)]
            if draws is not None:
                latents, noise = rows_of(draws, start, stop, labels)
                fake = s.G.synthesis(styles_of(s.G, **latents)[0], noise, dtype=step.dtype)
                inputs.append(("r2", augmented(fake, params, start, stop), latents["labels"]))
        for name, images, its_labels in inputs:
            images = images.detach().requires_grad_(True)
            # Through the minibatch std as well, as in the authors' code. If it were held constant here, D could lean on
            # it at any slope, and short runs can narrow (benchmarks/NOTES.md).
            logits = s.D(images, its_labels, dtype=dtype)
            penalty = gradient_penalty(images, logits)
            (penalty.mean() * (c.gamma / 2 * c.r1_interval / c.accumulate)).backward()
            step.add(name, penalty, c.batch)
    optimizer_step(step, s.D, s.opt_D)


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """Penalties take gradients of gradients: fp16 would need a second loss scale, so they run in fp32 there."""
    return torch.float32 if dtype == torch.float16 else dtype


def penalties_due(c: GanConfig, nimg: int) -> tuple[bool, bool]:
    """Whether the step after `nimg` images has the path-length and the gradient penalty (lazily: every few steps)."""
    count = nimg // c.batch
    return bool(c.pl_weight) and count % c.pl_interval == 0, bool(c.gamma) and count % c.r1_interval == 0


def train_step(s: TrainState, step: Step, nimg: int) -> None:
    """One optimizer step of both networks, the lazy regularisers when they are due, EMA, w average and ADA."""
    c = step.c
    path_length_due, gradient_due = penalties_due(c, nimg)
    generator_step(s, step)
    if path_length_due:
        path_length_step(s, step)
    if step.held is not None and s.ada.looks:
        look_at_held_out(s, step, step.held)
    discriminator_step(s, step)
    if gradient_due:
        gradient_penalty_step(s, step)

    # One reduction for all that the ranks must agree on: w average, ADA's signs, path-length mean, and the log.
    names = [name for name in STATS if name in step.stats]
    w_sum: Any = step.w_sum
    total = collectives.reduce_sum(
        step.rt, torch.cat([w_sum.flatten(), torch.stack([step.stats[name] for name in names])])
    )
    stats = dict(zip(names, total[w_sum.numel() :], strict=True))
    s.averages.add(stats)
    # The average w is where truncation pulls to; it follows G over a few hundred steps.
    s.G.update_w_avg(total[: w_sum.numel()].view_as(w_sum), W_AVG_BETA)
    if "path_length" in stats:
        s.pl_mean.lerp_(stats["path_length"], c.pl_decay)
    # The more often D is right on reals, or the nearer held-out slices are to generated ones, the more it has learnt by
    # heart, and the more is augmented.
    if c.ada != "off":
        s.ada.step(
            stats, c.batch, nimg, "r_t" if c.loss == "logistic" else "r_v" if step.held is not None else "schedule"
        )
    # Pictures are made with the average of the weights: G itself circles around a better place than it is at.
    update_ema(s.G_ema, s.G, ema_beta(s.averaged(nimg + c.batch), c.batch, c.ema_kimg, c.ema_rampup))


def step_flops(c: GanConfig, rt: ranks.Runtime, num_classes: Told, dtype: torch.dtype) -> dict:
    """{penalties_due: FLOPs of one image in such a step}, counted on blank images and a copy of the networks."""
    c, rt = replace(c, batch=2, mbstd_group=2, accumulate=1), replace(rt, rank=0, world=1)
    s = build_state(c, num_classes, rt.device)
    label_pool = blank_label(num_classes, rt.device)
    blank = torch.zeros(c.batch, c.channels, c.resolution, c.resolution, device=rt.device)
    batches: Any = SimpleNamespace(rows=lambda _, a, b: (blank[a:b], label_pool.repeat_interleave(b - a, 0)))
    step = Step(c, rt, batches, label_pool, dtype, 0, s.G.synthesis, s.D)
    main, path_length, gradient = (
        sum(count_flops(partial(phase, s, step)) for phase in phases) / c.batch
        for phases in (
            (generator_step, discriminator_step),
            (path_length_step,) if c.pl_weight else (),
            (gradient_penalty_step,) if c.gamma else (),
        )
    )
    return {(p, g): main + p * path_length + g * gradient for p in (False, True) for g in (False, True)}


# --- the run ----------------------------------------------------------------------------------------------------------
def train(
    c: GanConfig, rt: ranks.Runtime, run: RunDir, packs: list[Pack], columns: list[Column], network: Network | None,
    attempt: Attempt,
) -> int:  # fmt: skip
    """Train until done or stopped.

    Returns the process's exit code; raises Diverged. packs: training and, if any, other patients. columns: what the
    networks are told of each slice, where that is more than its class.
    """
    dtype, pack = devices.precision_dtype(c.precision, rt.device), packs[0]
    labels, told = labels_of(pack, columns), told_of(columns, pack.classes, c.conditional)
    s = build_state(c, told, rt.device)
    upkeep = Upkeep(c, rt, run, s, Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say), attempt)
    # A checkpoint, where there is one, replaces all of the state; --init-from is for the first start alone.
    found = upkeep.resume()
    if found < 0 and c.init_from:
        load_initial_weights(s, ("G", "D", "G_ema"), c.init_from, attempt.say)
    room = devices.step_bytes(c, rt)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device=rt.device, hflip=c.hflip, room=room, labels=labels)
    held = held_out_for_ada(c, *packs, columns=columns, device=rt.device, say=attempt.say)
    label_pool = torch.from_numpy(labels).to(rt.device)
    sampler = Sampler(c, pack, batches, rt, dtype, columns)
    yardstick = open_yardstick(c, rt, network, packs, partial(sampler.draws, s.G_ema), attempt.say, columns=columns)
    flops = partial(step_flops, c, rt, told, dtype)
    record = Record(c, rt, run, attempt, found, dtype, flops, lambda: {"data_wait": batches.waited, **upkeep.waits()})
    # Real slices beside the generated ones, in TensorBoard and as a file: what a grid should come to look like.
    if found < 0 and rt.rank == 0:
        record.show("reals.png", "reals", sampler.reals(), 0)
    synthesis: Callable = s.G.synthesis
    critic: Callable = s.D
    if compiles(c.compile, rt.device, run, attempt.say):
        synthesis, critic = compiled(synthesis), compiled(critic)
    weights: dict[str, nn.Module] = {"G_ema": s.G_ema}
    about = known_of(pack, columns)

    nimg = upkeep.begin(found, dtype, batches)
    while True:
        # All that looks at the run stands here, before the step: a resumed run continues at exactly this place.
        try:
            record.tick(nimg, s, partial(sampler, s.G_ema), s.log_extra, measure=yardstick)
            upkeep.hold(nimg, weights)
            # All ranks save together or not at all: each looks for signals, the slowest of them decides.
            if upkeep.agree(nimg):
                upkeep.save(nimg, weights, about)
            if upkeep.ending:
                batches.close()
                return upkeep.leave(record, nimg)
        except Diverged as error:  # once back to the last good checkpoint, past the data that led here
            nimg = upkeep.roll_back(nimg, error, "lower --lr, raise --gamma, or use --precision fp32")
            record.rewind(nimg)
            continue

        position = nimg + s.counters["skip"]
        kind = penalties_due(c, nimg)
        train_step(s, Step(c, rt, batches, label_pool, dtype, position, synthesis, critic, held=held), nimg)
        nimg += c.batch
        record.step_done(nimg, kind)


def dry_run(c: GanConfig) -> int:
    """Check flags, data, run directory and memory, and change nothing."""
    say = partial(files.say, to=sys.stderr)
    given_network(c)
    classes, slices = preview(c.data, split=c.split, **packing_of(c) | {"log": say})
    rules.check_classes(c, classes)
    say(recipe_line(c))
    return end_dry_run(c, say, slices * c.channels * c.resolution**2)


def main() -> int:
    """Train, or check with --dry-run. Returns the exit code."""
    c = parsing.parse_config(GanConfig)
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
        packs, network = meeting.first(partial(open_data, c, run, meeting, device, attempt.say))
        columns = columns_of(c, packs[0], attempt.say)
        if rank == 0:
            drawn = None if c.ada == "off" else ada.fingerprint(ada.KINDS[c.ada])
            digests: dict[str, str] = {c.split: packs[0].digest}
            if drawn is not None and c.loss == "rpgan":  # what ADA is steered by
                digests["held out"] = packs[1].digest if len(packs) > 1 else "none"
            how: dict[str, Any] = {"conditions": about_columns(packs[0], columns), "slices": len(packs[0])}
            check_data(run, c, packs[0].classes, digests, attempt.say, augmentation=drawn, **how)
            # Only now is the run one of this config: flags, data and classes have all been accepted.
            adopt_config(run, c)
            attempt.say(recipe_line(c))
        threads = devices.choose_threads(c.threads, run, world, device, attempt.say)
        rt = collectives.init_runtime(threads, meeting, device)
        code = train(c, rt, run, packs, columns, network, attempt)
        collectives.shutdown(rt)
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main))
