"""One training step of each job on the GPU that is not there, and what it costs:

python -m tests.fake_steps                                   # the table, every large preset
python -m tests.fake_steps gan --preset adni256 --batch 32   # one row per kind of step
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import pretrain_vae
import train_diffusion
import train_gan
from data.batches import Batches
from data.latents import Latents
from jobs.config import kinds, parsing, specs
from jobs.predict.latent_space import Data
from jobs.training import devices, ranks
from jobs.training.upkeep import compiled
from models import schedules
from models.vae import VAE

try:
    from fake_cuda import Ledger, fake_cuda
except ModuleNotFoundError:  # as python -m tests.fake_steps
    from tests.fake_cuda import Ledger, fake_cuda

CLASSES = ["AD", "CN"]


@dataclass
class Bench:
    """A state on the device and its step, to be made and used inside fake_cuda()."""

    c: specs.TrainConfig
    s: Any
    step: Callable[[int], None]  # of the batch that begins at this image
    batches: Any
    networks: dict[str, Callable]  # that --compile compiles, by the name under which the step finds them

    def compile(self) -> None:
        """As a train script does where --compile is given."""
        self.networks.update({name: compiled(network) for name, network in self.networks.items()})


def runtime() -> ranks.Runtime:
    return ranks.Runtime(0, 1, 0, torch.device("cuda", 0), 1)


def blank_pack(c, number: int = 0) -> Any:
    """Black slices, as many as one batch has."""
    number = number or c.batch
    images = np.zeros((number, c.channels, c.resolution, c.resolution), np.uint8)
    labels = np.arange(number) % len(CLASSES)
    return SimpleNamespace(images=images, labels=labels.astype(np.int64), classes=CLASSES)


def gan(*flags: str, place: str = "auto") -> Bench:
    c = parsing.parse_config(specs.GanConfig, ["--data", "phantom:64", *flags])
    rt, pack = runtime(), blank_pack(c)
    s = train_gan.build_state(c, len(CLASSES) if c.conditional else 0, rt.device)
    batches = Batches(pack, seed=0, batch=c.batch, device=rt.device, hflip=c.hflip, place=place)
    pool = torch.from_numpy(pack.labels).to(rt.device)
    dtype = devices.precision_dtype(c.precision, rt.device)

    networks: dict[str, Callable] = {"synthesis": s.G.synthesis, "critic": s.D}

    def step(nimg: int) -> None:
        train_gan.train_step(s, train_gan.Step(c, rt, batches, pool, dtype, nimg, **networks), nimg)

    return Bench(c, s, step, batches, networks)


def vae(*flags: str) -> Bench:
    c = parsing.parse_config(specs.VaeConfig, ["--data", "phantom:64", *flags])
    rt = runtime()
    s = pretrain_vae.build_state(c, rt.device)
    batches = Batches(blank_pack(c), seed=0, batch=c.batch, device=rt.device, hflip=c.hflip)
    dtype = devices.precision_dtype(c.precision, rt.device)

    networks: dict[str, Callable] = {"network": s.vae}

    def step(nimg: int) -> None:
        pretrain_vae.train_step(s, pretrain_vae.Step(c, rt, batches, dtype, nimg, nimg, **networks))

    return Bench(c, s, step, batches, networks)


def diffusion(*flags: str) -> Bench:
    c = parsing.parse_config(specs.DiffusionConfig, ["--data", "phantom:64", *flags])
    rt, pack, latents, decoder = runtime(), blank_pack(c), None, None
    if c.space == "latent":
        decoder = VAE(c.channels)
        side, channels = c.resolution // decoder.down, decoder.latent_channels
        values: Any = np.zeros((len(pack.labels), 2, channels, side, side), np.float16)
        latents = Latents("", values, pack.labels, np.zeros(channels), np.ones(channels))
    data = Data(c, pack, latents, decoder, rt.device)
    s = train_diffusion.build_state(c, data, len(CLASSES) if c.conditional else 0, rt.device)
    schedule, dtype = schedules.make_schedule(c.schedule), devices.precision_dtype(c.precision, rt.device)

    networks: dict[str, Callable] = {"network": s.unet}

    def step(nimg: int) -> None:
        train_diffusion.train_step(c, rt, s, data, schedule, networks["network"], dtype, nimg)

    return Bench(c, s, step, data, networks)


MAKE = {"gan": gan, "vae": vae, "diffusion": diffusion}


def places(bench: Bench) -> dict[str, int]:
    """{kind of step: an image at which such a step begins}; none of them is the first one."""
    c = bench.c
    if isinstance(c, specs.VaeConfig):
        late = round(c.gan_start_kimg * 1000)
        return {"plain": c.batch} | ({"with D": late - late % -c.batch} if c.gan_weight else {})
    if not isinstance(c, specs.GanConfig):
        return {"plain": c.batch}
    found = {"plain": c.batch}
    if c.pl_weight:
        found["path length"] = next(
            n for n in range(c.batch, 10**9, c.batch) if train_gan.penalties_due(c, n) == (True, False)
        )
    if c.gamma:
        found["path length, R1" if c.pl_weight else "R1"] = c.r1_interval * c.pl_interval * c.batch
    return found


def rows(kind: str, *flags: str) -> dict[str, tuple[Ledger, Bench]]:
    """{kind of step: its ledger}; each step has the same one before it, as in a run."""
    found = {}
    with fake_cuda() as ledger:
        bench = MAKE[kind](*flags)
        bench.step(0)
        for name, nimg in places(bench).items():
            ledger.begin()
            bench.step(nimg)
            found[name] = ledger.copy(), bench
    return found


def table(jobs: list[tuple[str, ...]]) -> None:
    print("| job | step | launches | moved GB | roofline ms | peak GB | printed GB | image-sized kernels | stalls |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for kind, *flags in jobs:
        for name, (ledger, bench) in rows(kind, *flags).items():
            c = bench.c
            printed = kinds.JOBS[kinds.name_of(c)].memory_gb(c, 1)
            print(
                f"| {kind} {' '.join(flags)} | {name} | {ledger.launches:,} | {ledger.bytes / 1e9:.1f} | "
                f"{ledger.seconds * 1e3:.0f} | {ledger.peak / 1e9:.2f} | {printed:.1f} | {len(ledger.large_kernels)} | "
                f"{sum(ledger.stalls.values())} |",
                flush=True,
            )


LARGE = [
    ("gan", "--preset", "adni256"), ("gan", "--preset", "adni256", "--precision", "fp16"),
    ("gan", "--preset", "adni256", "--precision", "fp32"), ("gan", "--preset", "adni256", "--accumulate", "2"),
    ("gan", "--preset", "adni128"), ("gan", "--preset", "oasis128"), ("gan", "--preset", "oasis64"),
    ("vae", "--preset", "adni256-ldm"), ("vae", "--preset", "adni256-ldm", "--precision", "fp32"),
    ("diffusion", "--preset", "adni256-ldm"), ("diffusion", "--preset", "adni256-ldm", "--precision", "fp32"),
]  # fmt: skip

if __name__ == "__main__":
    table([tuple(sys.argv[1:])] if sys.argv[1:] else LARGE)
