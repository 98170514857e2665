"""One training iteration and inference of StyleGAN2 against the pip-installable peer `stylegan2-pytorch` (lucidrains).

    pip install --no-deps -r benchmarks/requirements.txt
    python -m benchmarks.gan [--quick] [--write]

Both sides run the code that their users run: ours `train_gan.train_step` and its phases, the peer its own
`Trainer.train`, each with its own losses, regularisers and optimizers, batches held in memory, augmentation off. The
peer is given the capacity at which its discriminator has our widths (its generator is half as wide there, by design).
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from unittest import mock

import torch

import train_gan
from benchmarks import machine
from data.batches import Batches
from data.pack import Pack, ensure_pack
from jobs import runtime
from jobs.specs import GanConfig
from jobs.throughput import FlopCounter

TITLE = "StyleGAN2 against stylegan2-pytorch"
CHANNEL_BASE, CHANNEL_MAX, MAPPING_LAYERS = 8192, 256, 8
R1_INTERVAL, PL_INTERVAL = 16, 4  # the lazy schedule that both sides are compared on
PEER_GP_INTERVAL, PEER_PL_INTERVAL = 4, 32  # the peer's own
PHASES = ("main", "r1", "pl", "inference")


# --- the two sides ----------------------------------------------------------------------------------------------------
class Ours:
    """The toolkit: each phase is the function of train_gan.py that training calls."""

    def __init__(self, resolution: int, batch: int, precision: str, pack: Pack, rt: runtime.Runtime):
        self.c = c = replace(
            GanConfig(), data="phantom", resolution=resolution, batch=batch, precision=precision, ada="off",
            channel_base=CHANNEL_BASE, channel_max=CHANNEL_MAX, mapping_layers=MAPPING_LAYERS,
            r1_interval=R1_INTERVAL, pl_interval=PL_INTERVAL,
        )  # fmt: skip
        self.rt, self.dtype = rt, runtime.precision_dtype(precision, rt.device)
        self.name = f"ours, {str(self.dtype).removeprefix('torch.')}"
        self.state = train_gan.build_state(c, 0, rt.device)
        self.G, self.D = self.state.G, self.state.D
        self.batches = Batches(pack, seed=0, batch=batch, device=rt.device)
        self.labels = torch.from_numpy(pack.labels).to(rt.device)
        self.positions = itertools.count(0, batch)
        self.tasks = {"main": self.main, "r1": self.r1, "pl": self.pl, "inference": self.inference}

    def step(self) -> train_gan.Step:
        return train_gan.Step(
            c=self.c, rt=self.rt, batches=self.batches, label_pool=self.labels, dtype=self.dtype,
            position=next(self.positions), synthesis=self.G.synthesis, critic=self.D,
            w_sum=torch.zeros(self.c.w_dim, device=self.rt.device),
        )  # fmt: skip

    def main(self) -> None:
        train_gan.train_step(self.state, self.step(), nimg=self.c.batch)  # the second step: no regulariser is due

    def r1(self) -> None:
        train_gan.gradient_penalty_step(self.state, self.step())

    def pl(self) -> None:
        train_gan.path_length_step(self.state, self.step())

    @torch.no_grad()
    def inference(self) -> None:
        z = torch.randn(self.c.batch, self.c.z_dim, device=self.rt.device)
        self.state.G_ema(z, dtype=self.dtype)

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        """Cost (seconds or FLOPs) of each of PHASES from that of each task."""
        return cost


class Peer:
    """stylegan2-pytorch: whole iterations of its own Trainer.

    It regularises within the main backward passes, so the cost of a penalty is the difference between an iteration
    with and one without it.
    """

    def __init__(self, resolution: int, batch: int, device: torch.device, folder: str):
        peer = import_peer(device)
        capacity = CHANNEL_BASE // resolution // 4  # its discriminator starts with 4 x capacity feature maps
        with (
            redirect_stdout(StringIO()),
            mock.patch.object(peer, "Generator", partial(peer.Generator, fmap_max=CHANNEL_MAX)),
        ):  # its averaged generator ignores fmap_max and then does not fit the weights
            self.trainer = peer.Trainer(
                base_dir=folder, image_size=resolution, batch_size=batch, network_capacity=capacity,
                fmap_max=CHANNEL_MAX, style_depth=MAPPING_LAYERS,
            )  # fmt: skip
            self.trainer.init_GAN()
        self.name, self.batch, self.device = "peer, float32", batch, device
        self.G, self.D = torch.nn.ModuleList([self.trainer.GAN.G, self.trainer.GAN.S]), self.trainer.GAN.D
        self.trainer.loader = in_memory(batch, resolution, device)
        self.sampler = peer.ModelLoader.__new__(peer.ModelLoader)  # its constructor wants a saved model
        self.sampler.model = self.trainer
        # Its schedule is a function of the step: 4 has a gradient penalty, 5024 that and path length, 1 neither.
        schedule = {"main": 1, "gp": 4, "gp+pl": 5024}
        self.tasks = {name: partial(self.iterate, steps) for name, steps in schedule.items()}
        self.tasks["inference"] = self.inference
        self.iterate(5024)  # the first path-length step only notes the mean length

    def iterate(self, steps: int) -> None:
        self.trainer.steps = steps
        self.trainer.train()

    @torch.no_grad()
    def inference(self) -> None:
        z = torch.randn(self.batch, self.trainer.GAN.G.latent_dim, device=self.device)
        self.sampler.styles_to_images(self.sampler.noise_to_styles(z))

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        main, gp, both = cost["main"], cost["gp"], cost["gp+pl"]
        return {"main": main, "r1": gp - main, "pl": both - gp, "inference": cost["inference"]}


def in_memory(batch: int, resolution: int, device: torch.device) -> Iterator[torch.Tensor]:
    images = torch.rand(8 * batch, 3, resolution, resolution, device=device)
    while True:
        yield images[torch.randint(len(images), (batch,), device=device)]


def import_peer(device: torch.device) -> types.ModuleType:
    """Import stylegan2_pytorch where it refuses to: without CUDA, and without packages that it imports but training
    does not use (its logger, command line, and vector quantiser). On a CPU its `.cuda()` calls become no-ops."""
    unused = {"aim": {}, "fire": {}, "vector_quantize_pytorch": {"VectorQuantize": None}}
    for name, attributes in unused.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        import kornia  # noqa: F401  before CUDA is faked, which is for the peer's assertion alone

        with mock.patch("torch.cuda.is_available", return_value=True):
            import stylegan2_pytorch.stylegan2_pytorch as peer
    except ImportError as error:
        sys.exit(f"benchmarks.gan: {error}; run: pip install --no-deps -r benchmarks/requirements.txt")
    finally:
        for name in unused:
            del sys.modules[name]
    if device.type == "cpu":
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
    return peer


# --- counting ---------------------------------------------------------------------------------------------------------
def count_flops(task) -> int:
    with FlopCounter() as counter:
        task()
    return counter.flops


# --- the comparison ---------------------------------------------------------------------------------------------------
def lazy(cost: dict[str, float], r1_interval: int = R1_INTERVAL, pl_interval: int = PL_INTERVAL) -> float:
    """Cost of the average iteration with the regularisers at these intervals."""
    return cost["main"] + cost["r1"] / r1_interval + cost["pl"] / pl_interval


def compare(resolution: int, batch: int, rounds: int, rt: runtime.Runtime, folder: str) -> str:
    """Measure all sides at one resolution; returns a Markdown table and the ratios."""
    pack = ensure_pack("phantom:64", resolution=resolution, cache_dir=folder, progress=False, log=lambda *_: None)
    sides: list[Ours | Peer] = [Ours(resolution, batch, "fp32", pack, rt), Peer(resolution, batch, rt.device, folder)]
    if runtime.precision_dtype("auto", rt.device) != torch.float32:
        sides.insert(1, Ours(resolution, batch, "auto", pack, rt))
    random.seed(0)
    torch.manual_seed(0)
    flops = [side.phases({name: count_flops(task) / 1e9 for name, task in side.tasks.items()}) for side in sides]
    order = ("main", "r1", "gp", "pl", "gp+pl", "inference")  # neighbours are compared
    tasks = {(i, k): side.tasks[k] for k in order for i, side in enumerate(sides) if k in side.tasks}
    seconds = machine.interleaved(tasks, rounds, rt.device)
    times = [  # per side, per round: the seconds of each phase
        [side.phases({k: seconds[i, k][r] for k in side.tasks}) for r in range(rounds)] for i, side in enumerate(sides)
    ]
    return "\n\n".join(
        [
            f"### {resolution} px, batch {batch}, {rounds} repetitions",
            costs(sides, times, flops, batch),
            ratios(sides, times, flops),
        ]
    )


def costs(sides: list, times: list, flops: list, batch: int) -> str:
    millions = [[sum(p.numel() for p in net.parameters()) / 1e6 for net in (side.G, side.D)] for side in sides]
    rows = [["parameters of G / D, millions", *(f"{g:.2f} / {d:.2f}" for g, d in millions)]]
    for phase, label in zip(PHASES, ("main iteration", "gradient penalty", "path length", "inference"), strict=True):
        rows.append([f"{label}, ms", *(machine.spread([1000 * t[phase] for t in rounds]) for rounds in times)])
        rows.append([f"{label}, GFLOP/image", *(f"{f[phase] / batch:.3g}" for f in flops)])
    for label, total in (("training", lazy), ("inference", lambda cost: cost["inference"])):
        rows.append([f"{label}, images/s", *(machine.spread([batch / total(t) for t in rounds]) for rounds in times)])
        rates = [[total(f) / total(t) for t in rounds] for rounds, f in zip(times, flops, strict=True)]
        rows.append([f"{label}, GFLOP/s", *map(machine.spread, rates)])
    return machine.table(["", *(side.name for side in sides)], rows)


def ratios(sides: list, times: list, flops: list) -> str:
    """Speed over the peer's (the last side), round by round: above 1 the toolkit is faster."""
    peer_own = partial(lazy, r1_interval=PEER_GP_INTERVAL, pl_interval=PEER_PL_INTERVAL)
    inference = lambda cost: cost["inference"]  # noqa: E731
    rows = []
    for label, ours, peers in (
        ("training", lazy, lazy), ("training, own intervals", lazy, peer_own), ("inference", inference, inference),
    ):  # fmt: skip
        faster = [[peers(p) / ours(t) for t, p in zip(rounds, times[-1], strict=True)] for rounds in times[:-1]]
        rows.append([f"{label}, per image", *map(machine.spread, faster)])
        work = [ours(f) / peers(flops[-1]) for f in flops[:-1]]
        per_flop = [[ratio * w for ratio in values] for values, w in zip(faster, work, strict=True)]
        rows.append([f"{label}, per FLOP", *map(machine.spread, per_flop)])
    return machine.table(["speed over the peer's", *(side.name for side in sides[:-1])], rows)


NOTES = f"""\
A training iteration is one step of G and of D plus 1/{R1_INTERVAL} gradient penalty and 1/{PL_INTERVAL} path length
on both sides; the peer's own intervals are {PEER_GP_INTERVAL} and {PEER_PL_INTERVAL}. The peer penalises the gradient
on real and generated images (R1 and R2), we on real ones; its path length takes the whole batch and shares G's pass,
ours takes half a batch of its own. Ours averages weights and w at every step, the peer not before step 20 000. The
peer trains 3 channels, we 1. FLOPs are those of dense convolutions and matrix products, 2 per multiply-add, counted
while the steps run, over the images of the batch. The peer has no bf16 but through NVIDIA's apex: float32 is the like-for-like column."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 px, 2 repetitions: does it run?")
    parser.add_argument("--rounds", type=int, default=7, help="repetitions of every task (default 7)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all that this process was given)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    rt = runtime.init_runtime(args.threads)
    packages = ["torch", "stylegan2-pytorch", "einops", "kornia"]
    text = [machine.command("benchmarks.gan"), machine.header(rt.device, packages), NOTES]
    print("\n\n".join(text), flush=True)
    for resolution in (64,) if args.quick else (64, 128):
        with tempfile.TemporaryDirectory() as folder:
            text.append(compare(resolution, args.batch, 2 if args.quick else args.rounds, rt, folder))
        print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
