"""What a training run tells a person before its first step and after its last: its size, and what one does next."""

from __future__ import annotations

import os
from dataclasses import asdict

import torch

from data.files import say
from jobs.config import kinds
from jobs.config.specs import TrainConfig
from jobs.config.wording import command
from jobs.run.find import typed
from jobs.run.rundir import RunDir
from jobs.run.vae import useful
from jobs.training import best
from jobs.view.metrics import read_metrics


def size_of(state: object, total: int, slices: int) -> str:
    """`1.2 M parameters (G 0.8 M, D 0.4 M), 1,600 images per epoch, 17.5 epochs in all` of what is trained in a state;
    the averages of its networks are copies, and not counted."""
    counts = {
        name: sum(p.numel() for p in module.parameters())
        for name, module in vars(state).items()
        if isinstance(module, torch.nn.Module) and not name.endswith("_ema")
    }
    each = f" ({', '.join(f'{name} {short(n)}' for name, n in counts.items())})" if len(counts) > 1 else ""
    epochs = f"{total / slices:.3g} epochs in all"
    return f"{short(sum(counts.values()))} parameters{each}, {slices:,} images per epoch, {epochs}"


def short(count: int) -> str:
    """`23.4 M`, `512 k`, `90`."""
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k" if count >= 1e3 else str(count)


def announce(run: RunDir, c: TrainConfig, verdict: object) -> None:
    """Where everything is, what the figures say against it, and what to do next."""
    grids = sorted(p for p in run.samples.glob("[0-9]*.png"))
    say(f"  samples      {grids[-1] if grids else 'none'}")
    if (run.samples / "reals.png").exists():
        say(f"  real slices  {run.samples / 'reals.png'}")
    say(f"  losses       {run.plots / 'losses.png'}")
    for line in best.curve(read_metrics(run.metrics)):
        say(f"  {line}")
    launched = os.environ.get("LAUNCHED_RUN") is not None or os.environ.get("SLURM_JOB_ID") is not None
    if verdict:
        say(f"  but          {verdict}")
    for words in useful(kinds.next_commands(kinds.name_of(c), asdict(c), typed(run.path), launched=launched), verdict):
        script, _, flags = words.partition(" ")
        say(f"  next         {command(script)} {flags}")
    say(f"  curves       {command('launch.py')} tensorboard {typed(run.path)}")
