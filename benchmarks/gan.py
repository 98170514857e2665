"""One training iteration and inference of StyleGAN2 against public implementations of it.

    pip install --no-deps -r benchmarks/requirements.txt
    python -m benchmarks.gan [--quick] [--write] [--peer-dir stylegan2-ada-pytorch] [--peer-dir rosinality-checkout]

All sides run the code that their users run: ours `train_gan.train_step` and its phases, stylegan2-pytorch (lucidrains)
its `Trainer.train`, NVlabs' its loss object, with their own regularisers and optimizers, batches held in memory,
augmentation off, each in a process of its own. stylegan2-pytorch is given the capacity at which its discriminator has
our widths (its generator is half as wide there, by design); the others have our widths and our number of parameters.
"""

from __future__ import annotations

import argparse
import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import train_gan
from benchmarks import machine, peers
from benchmarks.peers import MAPPING_LAYERS, Shape
from data.batches import Batches
from data.pack import ensure_pack
from data.packfile import Pack
from jobs.config.recipe import derived
from jobs.config.specs import GanConfig
from jobs.training import collectives, devices, ranks

TITLE = "StyleGAN2 against its public implementations"
R1_INTERVAL, PL_INTERVAL = 16, 4  # the lazy schedule that all sides are compared on
PACKAGES = ["torch", "stylegan2-pytorch", "einops", "kornia"]
PHASES = ("main", "r1", "pl", "inference")


# --- our side ---------------------------------------------------------------------------------------------------------
class Ours:
    """The toolkit: each phase is the function of train_gan.py that training calls."""

    def __init__(self, shape: Shape, precision: str, pack: Pack, rt: ranks.Runtime):
        """Networks of a width that all sides can have, and batches of `pack`."""
        c = replace(
            GanConfig(), data="phantom", precision=precision, ada="off", mapping_layers=MAPPING_LAYERS,
            loss="logistic",  # the peers' own
        )  # fmt: skip
        lazy = dict(gamma=1.0, r1_interval=R1_INTERVAL, pl_interval=PL_INTERVAL)
        self.c = c = derived(replace(c, **vars(shape), **lazy))
        self.rt, self.device, self.dtype = rt, rt.device, devices.precision_dtype(precision, rt.device)
        self.name = f"ours, {str(self.dtype).removeprefix('torch.')}"
        self.state = train_gan.build_state(c, 0, rt.device)
        self.G, self.D = self.networks = self.state.G, self.state.D
        self.batches = Batches(pack, seed=0, batch=shape.batch, device=rt.device)
        self.labels = torch.from_numpy(pack.labels).to(rt.device)
        self.positions = itertools.count(0, shape.batch)
        self.tasks = {"main": self.main, "r1": self.r1, "pl": self.pl, "inference": self.inference}

    def step(self) -> train_gan.Step:
        """What a step needs, at the next position in the data."""
        return train_gan.Step(
            c=self.c, rt=self.rt, batches=self.batches, label_pool=self.labels, dtype=self.dtype,
            position=next(self.positions), synthesis=self.G.synthesis, critic=self.D,
        )  # fmt: skip

    def main(self) -> None:
        """An iteration of both networks without a regulariser."""
        train_gan.train_step(self.state, self.step(), nimg=self.c.batch)  # the second step: no regulariser is due

    def r1(self) -> None:
        """The gradient penalty alone, as it is added every R1_INTERVAL iterations."""
        train_gan.gradient_penalty_step(self.state, self.step())

    def pl(self) -> None:
        """The path length penalty alone."""
        train_gan.path_length_step(self.state, self.step())

    @torch.no_grad()
    def inference(self) -> None:
        """One batch of the EMA's pictures."""
        z = torch.randn(self.c.batch, self.c.z_dim, device=self.rt.device)
        self.state.G_ema(z, dtype=self.dtype)

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        """Cost (seconds or FLOPs) of each of PHASES from that of each task."""
        return cost


# --- the comparison ---------------------------------------------------------------------------------------------------
def make_ours(shape: Shape, precision: str, folder: str, threads: int) -> Ours:
    """Our side of the comparison, on phantoms whose pack lies in `folder`."""
    seed()
    rt = collectives.init_runtime(threads)
    pack = ensure_pack("phantom:64", resolution=shape.resolution, cache_dir=folder, progress=False, log=lambda *_: None)
    return Ours(shape, precision, pack, rt)


def make_peer(peer: type, threads: int, *args):
    """A peer with what its users get from torch, and our settings for a GPU."""
    seed()
    torch.set_num_threads(threads or devices.default_threads(1))
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return peer(*args)


def seed() -> None:
    """The same random numbers on every side."""
    random.seed(0)
    torch.manual_seed(0)


def lazy(cost: dict[str, float]) -> float:
    """Cost of the average iteration with the regularisers at these intervals."""
    return cost["main"] + cost["r1"] / R1_INTERVAL + cost["pl"] / PL_INTERVAL


def inference(cost: dict[str, float]) -> float:
    """Seconds of one pass of the generator."""
    return cost["inference"]


def compare(
    shape: Shape,
    rounds: int,
    threads: int,
    device: torch.device,
    checkouts: list[Path],
    precisions: tuple[str, ...] = ("fp32", "auto"),
) -> str:
    """Measure all sides at one shape; returns Markdown tables of costs, of ratios and of the largest kernels.

    All sides are on the device at the same time, ours first: a peer that finds no room is a line of the table.
    """
    fast = devices.precision_dtype("auto", device) != torch.float32
    kinds: dict[str, type] = {}
    with tempfile.TemporaryDirectory() as folder:
        starts: dict[str, Callable[[], machine.Side]] = {}
        for checkout in checkouts:
            kind = kinds[checkout.name] = peers.class_of_checkout(checkout)
            starts[checkout.name] = partial(machine.Side, make_peer, kind, threads, checkout, shape, device)
        kinds["stylegan2-pytorch"] = peers.Lucidrains
        starts["stylegan2-pytorch"] = partial(machine.Side, make_peer, peers.Lucidrains, threads, shape, device, folder)
        sides = [
            machine.Side(make_ours, shape, precision, folder, threads)
            for precision in (precisions if fast else precisions[:1])
        ]
        ours = len(sides)
        here, absent = machine.present(starts)
        if peers.NVlabs not in kinds.values():
            absent["NVlabs"] = "no checkout of stylegan2-ada-pytorch was named (--peer-dir)"
        sides += here.values()
        of_sides = [Ours] * ours + [kinds[name] for name in here]
        order = ("main", "r1", "gp", "pl", "gp+pl", "inference")
        # Before any counter or profiler has run: those hold memory that training does not.
        seconds = machine.interleaved(sides, rounds, order, warm_up=2)
        resident = [side.resident_gb() for side in sides]
        ceilings = machine.ceilings(sides)
        flops = [
            kind.phases({name: side.flops(name) / 1e9 for name in side.tasks})
            for kind, side in zip(of_sides, sides, strict=True)
        ]
        memory = [max(side.peak_gb(name) for name in side.tasks) for side in sides]
        largest = machine.kernels_table(sides[ours - 1], "main")
        for side in sides:
            side.close()
    times = [  # per side, per round: the seconds of each phase
        [kind.phases({name: values[r] for name, values in of_side.items()}) for r in range(rounds)]
        for kind, of_side in zip(of_sides, seconds, strict=True)
    ]
    return "\n\n".join(
        [
            f"### {shape.resolution} px, batch {shape.batch}, channel base {shape.channel_base}, {rounds} repetitions",
            costs(sides, times, flops, shape.batch, absent, (memory, resident, ceilings)),
            *(ratios(sides, times, flops, k, ours) for k in range(ours, len(sides))),
            largest,
        ]
    )


def costs(
    sides: list[machine.Side],
    times: list,
    flops: list,
    batch: int,
    absent: dict[str, str],
    machines: tuple[list[float], ...],
) -> str:
    """The table of milliseconds, FLOPs and memory, one column a side; machines: (memory of a step, resident memory,
    ceiling) of each."""
    memory, resident, ceilings = machines
    millions = [" / ".join(f"{number / 1e6:.2f}" for number in side.parameters) for side in sides]
    rows = [["parameters of G / D, millions", *millions]]
    for phase, label in zip(PHASES, ("main iteration", "gradient penalty", "path length", "inference"), strict=True):
        rows.append([f"{label}, ms", *(machine.spread([1000 * t[phase] for t in rounds]) for rounds in times)])
        rows.append([f"{label}, GFLOP/image", *(f"{f[phase] / batch:.3g}" for f in flops)])
    for label, total in (("training", lazy), ("inference", inference)):
        rows.append([f"{label}, images/s", *(machine.spread([batch / total(t) for t in rounds]) for rounds in times)])
        rates = [[total(f) / total(t) for t in rounds] for rounds, f in zip(times, flops, strict=True)]
        rows.append([f"{label}, GFLOP/s", *map(machine.spread, rates)])
        shares = [[100e9 * rate / peak for rate in values] for values, peak in zip(rates, ceilings, strict=True)]
        rows.append([f"{label}, % of this machine's ceiling", *map(machine.spread, shares)])
    rows.append(["peak memory of a step above parameters and moments, GB", *(f"{gb:.2f}" for gb in memory)])
    rows.append(["largest resident memory of the process, GB", *(f"{gb:.2f}" for gb in resident)])
    rows += machine.absent_rows(absent, 1 + len(sides))
    return machine.table(["", *(side.name for side in sides)], rows)


def ratios(sides: list[machine.Side], times: list, flops: list, peer: int, ours: int) -> str:
    """Our speed over that of side `peer`, round by round: above 1 the toolkit is faster."""
    rows = []
    for label, cost in (("training", lazy), ("inference", inference)):
        faster = [[cost(p) / cost(t) for t, p in zip(rounds, times[peer], strict=True)] for rounds in times[:ours]]
        rows.append([f"{label}, per image", *map(machine.spread, faster)])
        work = [cost(f) / cost(flops[peer]) for f in flops[:ours]]
        per_flop = [[ratio * w for ratio in values] for values, w in zip(faster, work, strict=True)]
        rows.append([f"{label}, per FLOP", *map(machine.spread, per_flop)])
    return machine.table([f"speed over {sides[peer].name}", *(side.name for side in sides[:ours])], rows)


NOTES = f"""\
Each side runs in a process of its own, with the memory allocator that it sets or leaves: the toolkit keeps freed memory
on a CPU. A training iteration is one step of G and of D plus 1/{R1_INTERVAL} gradient penalty and 1/{PL_INTERVAL} path
length on all sides. stylegan2-pytorch penalises the gradient on real and generated images (R1 and R2), the others on
real ones; its path length takes the whole batch and shares G's pass, that of the others takes half a batch of its own.
It does not average weights before step 20 000, the others at every step. It and rosinality's train 3 channels, ours and
NVlabs' 1. FLOPs are those of dense convolutions and matrix products, 2 per multiply-add, counted while the steps run,
over the images of the batch. The ceiling is what the log calls peak, in the side's type and measured in the same run:
on a CPU a 3x3 convolution of 256 channels in channels-last layout, on a GPU a matrix product."""


def main() -> None:
    """Run what the command line asks for; --write puts it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 px, 2 repetitions: does it run?")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of every task (default 7)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--resolutions", default="64,128", help="comma-separated (default 64,128)")
    parser.add_argument("--peer-dir", action="append", type=Path, default=[], help="a checkout to compare with too")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all that this process was given)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(args.threads or devices.default_threads(1))
    text = [machine.command("benchmarks.gan"), machine.header(device, PACKAGES), NOTES]
    print("\n\n".join(text), flush=True)
    rounds = 2 if args.quick else args.rounds
    for resolution in (64,) if args.quick else [int(r) for r in args.resolutions.split(",")]:
        text.append(compare(Shape(resolution, args.batch), rounds, args.threads, device, args.peer_dir))
        print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
