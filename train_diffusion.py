"""Train a diffusion U-Net on the latents of a VAE, or on pixels (Ho 2020; Rombach 2022; Lipman 2023).

    python pretrain_vae.py    --preset quickstart && \
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

from data.installed import need
from jobs.config import parsing
from jobs.config.specs import DiffusionConfig

if __name__ == "__main__":
    need("torch", "numpy", "PIL", "tyro", "safetensors", "tensorboard", "matplotlib")
    parsing.answer_at_once(DiffusionConfig)

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from data import files
from data.build import packing_of
from data.columns import Column
from data.latents import Latents
from data.pack import ensure_held_out, ensure_pack, preview
from data.packfile import Pack
from jobs.config import rules, specs
from jobs.config.specs import ConfigError
from jobs.predict.conditions import about_columns, columns_of, known_of, told_of
from jobs.predict.diffusion_look import Sampler, predictor
from jobs.predict.features import Network
from jobs.predict.latent_space import Data, about_vae, adopt_vae, encode_packs, load_vae
from jobs.predict.yardstick import given_network, open_network, open_yardstick
from jobs.run.attempt import Attempt, adopt_config, check_data, prepare_run, report_and_code
from jobs.run.resume import end_dry_run
from jobs.run.rundir import RunDir
from jobs.run.vae import copied_vae, find_vae
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
    optimizer_step,
)
from models import schedules, targets
from models.conditions import Told, blank_label, drop_values
from models.draws import moved, normal
from models.ema import ema_beta, update_ema
from models.names import too_few_calls
from models.optim import adamw, learning_rate, memory_layout
from models.unet import UNet, drop_labels
from models.vae import LatentScale


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


def build_unet(c: DiffusionConfig, shape: tuple[int, int, int], num_classes: Told) -> UNet:
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


def build_state(c: DiffusionConfig, data: Data, num_classes: Told, device: torch.device) -> TrainState:
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
    gen = randomness.generator(c.seed, position, "diffusion")
    # A time and a noise for each image of the global batch, the same for any number of ranks.
    times = schedules.draw_times(c.batch, c.times, gen, rt.device, c.fast_steps)
    noise, posterior_noise = normal((2, c.batch, *data.shape), gen, rt.device)
    drop_gen = randomness.generator(c.seed, position, "class dropout")
    # Dropout draws from torch's global stream, so each rank gets one of its own for this step.
    torch.manual_seed(randomness.seed_of(c.seed, position, f"dropout {rt.rank}"))
    # Without its class now and then the network also learns to denoise without one; guidance needs both.
    kept = drop_labels(torch.zeros(c.batch, dtype=torch.int64), 1, c.class_dropout, drop_gen) == 0
    kept = moved(kept, rt.device)

    def told(labels: torch.Tensor, start: int) -> torch.Tensor | None:
        if c.condition:  # and without any one attribute, so that a subset of them can be asked for
            gen = randomness.generator(c.seed, position, "unknown values")
            return drop_values(labels, c.batch, start, c.class_dropout, gen)
        return torch.where(kept[start : start + len(labels)], labels, s.unet.num_classes) if c.conditional else None

    total = torch.zeros((), device=rt.device)
    for start, stop in randomness.rows(c.batch, rt.rank, rt.world, c.accumulate):
        x0, labels = data.rows(position, start, stop, posterior_noise[start:stop])
        losses = targets.diffusion_loss(
            predictor(network, told(labels, start), dtype),
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
    # Samples are drawn with the average of the weights.
    update_ema(s.unet_ema, s.unet, ema_beta(s.averaged(nimg + c.batch), c.batch, c.ema_kimg, c.ema_rampup))


def step_flops(
    c: DiffusionConfig,
    rt: ranks.Runtime,
    num_classes: Told,
    shape: tuple,
    schedule: schedules.Schedule,
    dtype: torch.dtype,
) -> dict:
    """{None: FLOPs of one image in a step}, counted on a blank one and a copy of the network."""
    c, rt = replace(c, batch=1, accumulate=1), replace(rt, rank=0, world=1)
    label, blank = blank_label(num_classes, rt.device), torch.zeros(1, *shape, device=rt.device)
    data: Any = SimpleNamespace(shape=shape, scale=None, rows=lambda *_: (blank, label))
    s = build_state(c, data, num_classes, rt.device)
    return {None: count_flops(lambda: train_step(c, rt, s, data, schedule, s.unet, dtype, 0))}


# --- the run ----------------------------------------------------------------------------------------------------------
def train(
    c: DiffusionConfig,
    rt: ranks.Runtime,
    run: RunDir,
    packs: list[Pack],
    latents: list[Latents],
    columns: list[Column],
    features: Network | None,
    attempt: Attempt,
) -> int:
    """Train until done or stopped.

    Returns the process's exit code; raises Diverged. packs: training and, if any, other patients. columns: what the
    network is told of each slice, where that is more than its class. features: what figures are taken with, if any.
    """
    dtype = devices.precision_dtype(c.precision, rt.device)
    schedule, pack = schedules.make_schedule(c.schedule), packs[0]
    vae = load_vae(c, copied_vae(run.path)) if latents else None
    told = told_of(columns, pack.classes, c.conditional)
    data = Data(c, pack, latents[0] if latents else None, vae, rt.device, devices.step_bytes(c, rt), columns)
    s = build_state(c, data, told, rt.device)
    upkeep = Upkeep(c, rt, run, s, Checkpoints(run.checkpoints, keep=c.keep, say=attempt.say), attempt)
    # A checkpoint, where there is one, replaces all of the state; --init-from is for the first start alone.
    found = upkeep.resume()
    if found < 0 and c.init_from:
        load_initial_weights(s, ("unet", "unet_ema"), c.init_from, attempt.say)
    for line in (rules.attention_note(c, data.shape[-1]), too_few_calls(c.sampler, c.steps)):
        if line:
            attempt.say(line)
    held_out = (packs[1] if len(packs) > 1 else None, latents[1] if len(latents) > 1 else None)
    sampler = Sampler(c, pack, data, *held_out, schedule, rt, dtype)
    draw = partial(sampler.draws, s.unet_ema, s.scale)
    yardstick = open_yardstick(c, rt, features, packs, draw, attempt.say, calls=c.steps, columns=columns)
    record = Record(
        c,
        rt,
        run,
        attempt,
        found,
        dtype,
        flops=lambda: step_flops(c, rt, told, data.shape, schedule, dtype),
        waits=lambda: {"data_wait": data.waited, **upkeep.waits()},
    )
    # Real slices beside the generated ones, in TensorBoard and as a file: what a grid should come to look like.
    if found < 0 and rt.rank == 0:
        record.show("reals.png", "reals", sampler.reals(), 0)
    network = compiled(s.unet) if compiles(c.compile, rt.device, run, attempt.say) else s.unet
    weights = {"unet": s.unet_ema, "latent_scale": s.scale} | ({} if vae is None else {"vae_decoder": vae.decoder})
    about = known_of(pack, columns) | {"shape": list(data.shape), "vae": about_vae(run, vae)}

    nimg = upkeep.begin(found, dtype, data.batches)
    while True:
        # All that looks at the run stands here, before the step: a resumed run continues at exactly this place.
        try:
            record.tick(nimg, s, partial(sampler, s.unet_ema, s.scale), s.log_extra, measure=yardstick)
            upkeep.hold(nimg, weights)
            # All ranks save together or not at all: each looks for signals, the slowest of them decides.
            if upkeep.agree(nimg):
                upkeep.save(nimg, weights, about)
            if upkeep.ending:
                data.close()
                return upkeep.leave(record, nimg)
        except Diverged as error:  # once back to the last good checkpoint, past the data that led here
            nimg = upkeep.roll_back(nimg, error, "lower --lr, or use --precision fp32")
            record.rewind(nimg)
            continue

        train_step(c, rt, s, data, schedule, network, dtype, nimg)
        nimg += c.batch
        record.step_done(nimg)


def dry_run(c: DiffusionConfig) -> int:
    """Check flags, data, VAE, run directory and memory, and change nothing."""
    say = partial(files.say, to=sys.stderr)
    given_network(c)
    if line := too_few_calls(c.sampler, c.steps):
        say(line)
    classes, slices = preview(c.data, split=c.split, **packing_of(c) | {"log": say})
    rules.check_classes(c, classes)
    bytes_each = c.channels * c.resolution**2
    if c.space == "latent":
        copied = copied_vae(RunDir(c.run).path)
        source = copied if copied.exists() else find_vae(c)
        vae = load_vae(c, source)
        say(f"VAE: {source}")
        bytes_each = 4 * vae.latent_channels * (c.resolution // vae.down) ** 2  # mean and log variance in fp16
    return end_dry_run(c, say, slices * bytes_each)


def open_data(
    c: DiffusionConfig, run: RunDir, meeting: ranks.Meeting, device: torch.device, say
) -> tuple[list[Pack], list[Latents], Network | None]:
    """Packs of the training slices and of those of other patients, their latents, and the network that figures are
    taken with; all made where they are not there yet."""
    main, given = meeting.rank == 0, given_network(c)
    how = packing_of(c) | {"log": say, "progress": main, "poll": stopping.raise_if_asked}
    if c.space == "latent" and main:
        adopt_vae(c, run, say)
    packs = [ensure_pack(c.data, split=c.split, verify=main, **how)]
    rules.check_classes(c, packs[0].classes, bool((packs[0].labels < 0).any()))
    held_out = ensure_held_out(c.data, c.val_split, train_split=c.split, verify=main, **how)
    packs += [held_out] if held_out is not None else []
    latents = encode_packs(c, run, packs, meeting, device, say) if c.space == "latent" else []
    return packs, latents, open_network(c, given, run, packs[0], meeting, device)


def main() -> int:
    """Train, or check with --dry-run. Returns the exit code."""
    c = parsing.parse_config(DiffusionConfig)
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
        # Packs and latents are made before the process group exists: no collective waits for minutes of work.
        packs, latents, features = meeting.first(partial(open_data, c, run, meeting, device, attempt.say))
        columns = columns_of(c, packs[0], attempt.say)
        if rank == 0:
            how: dict[str, Any] = {"conditions": about_columns(packs[0], columns), "slices": len(packs[0])}
            check_data(run, c, packs[0].classes, {c.split: packs[0].digest}, attempt.say, **how)
            # Only now is the run one of this config: flags, data and classes have all been accepted.
            adopt_config(run, c)
        threads = devices.choose_threads(c.threads, run, world, device, attempt.say)
        rt = collectives.init_runtime(threads, meeting, device)
        code = train(c, rt, run, packs, latents, columns, features, attempt)
        collectives.shutdown(rt)
        return code


if __name__ == "__main__":
    sys.exit(report_and_code(main))
