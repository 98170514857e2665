"""What each decision in StyleGAN2's code is worth: the same training with one of them taken back at a time.

    python -m benchmarks.ablation [--quick] [--write]

Each variant runs in a process of its own, where one function of the toolkit is replaced by what it was chosen over.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from unittest import mock

import torch
import torch.nn.functional as F

import train_gan
from benchmarks import machine
from benchmarks.gan import Ours, inference, lazy, make_ours
from benchmarks.peers import Shape
from jobs.training import collectives, devices
from models import filters, stylegan2

TITLE = "What each decision is worth"


def plain_fir(x: torch.Tensor, mode: str, padding: int, gain: float) -> torch.Tensor:
    """The low-pass filter as a depthwise convolution whose derivatives are autograd's own."""
    kernel = filters._fir_kernel(x.shape[1], gain, x.dtype, x.device)
    if mode == "up":
        return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
    return F.conv2d(x, kernel, stride=2 if mode == "down" else 1, padding=padding, groups=x.shape[1])


def grouped_conv(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, *, up: bool = False):
    """Modulated convolution with a weight per sample, as a grouped convolution (the form of the paper's first code)."""
    batch, inputs, height, width = x.shape
    outputs, *_, k = weight.shape
    modulated = weight[None] * styles[:, None, :, None, None]  # (B, O, I, k, k)
    d = (modulated.square().sum((2, 3, 4)) + 1e-8).rsqrt()
    modulated, x = modulated.to(x.dtype), x.reshape(1, batch * inputs, height, width)
    if up:
        modulated = modulated.transpose(1, 2).reshape(batch * inputs, outputs, k, k)
        y = F.conv_transpose2d(x, modulated, stride=2, groups=batch)
        return filters.blur(y.reshape(batch, outputs, *y.shape[2:]), 1, gain=4.0), d
    y = F.conv2d(x, modulated.reshape(batch * outputs, inputs, k, k), padding=1, groups=batch)
    return y.reshape(batch, outputs, *y.shape[2:]), d


def matrix_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """1x1 convolution as a matrix product."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def separate_adam(module: torch.nn.Module, lr: float, lazy_interval: int) -> torch.optim.Adam:
    """Adam as torch chooses it."""
    return torch.optim.Adam(module.parameters(), lr=lr, betas=(0.0, 0.99))


VARIANTS = {  # name: (module, attribute, what it was chosen over)
    "as it is": None,
    "memory given back to the system": (collectives, "keep_freed_memory", lambda device: None),
    "FIR with autograd's derivatives": (filters, "_fir", plain_fir),
    "FIR as shifted sums": (filters, "_fir", filters._fir_shifted),
    "a weight per sample, grouped convolution": (stylegan2, "modulated_conv", grouped_conv),
    "1x1 convolutions as matrix products": (stylegan2, "pointwise", matrix_product),
    "Adam not fused": (train_gan, "adam", separate_adam),
}


def make(variant: str, resolution: int, batch: int, precision: str, folder: str, threads: int) -> Ours:
    """Our side of the GAN benchmark with one choice undone."""
    if VARIANTS[variant]:
        mock.patch.object(*VARIANTS[variant]).start()
    return make_ours(Shape(resolution, batch), precision, folder, threads)


def measure(resolution: int, batch: int, precision: str, rounds: int, threads: int) -> str:
    """Seconds of every variant, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [machine.Side(make, variant, resolution, batch, precision, folder, threads) for variant in VARIANTS]
        seconds = machine.interleaved(sides, rounds, ("main", "r1", "pl", "inference"))
        for side in sides:
            side.close()
    rows, spread = [], machine.spread
    per_round = [[{k: v[r] for k, v in s.items()} for r in range(rounds)] for s in seconds]
    for name, times in zip(VARIANTS, per_round, strict=True):
        slower = [
            spread([cost(t) / cost(base) for t, base in zip(times, per_round[0], strict=True)])
            for cost in (lazy, inference)
        ]
        cells = [f"{1000 * statistics.median([t[k] for t in times]):.0f}" for k in ("main", "r1", "pl", "inference")]
        rows.append([name, *cells, *slower])
    columns = [f"{resolution} px, "
               f"{sides[0].name.removeprefix('ours, ')}", "main, ms", "gradient penalty, ms", "path length, ms",
               "inference, ms", "training takes, times", "inference takes, times"]  # fmt: skip
    return machine.table(columns, rows)


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="64 px, 1 repetition: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every task (default 3)")
    parser.add_argument("--batch", type=int, default=8, help="images per step (default 8)")
    parser.add_argument("--resolutions", default="64,128", help="comma-separated (default 64,128)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all that this process was given)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    device = collectives.init_runtime(args.threads).device
    precisions = ["fp32"] + ["auto"] * (devices.precision_dtype("auto", device) != torch.float32)
    text = [machine.command("benchmarks.ablation"), machine.header(device, ["torch"])]
    print("\n\n".join(text), flush=True)
    for resolution in (64,) if args.quick else [int(r) for r in args.resolutions.split(",")]:
        for precision in precisions[: 1 if args.quick else None]:
            text.append(measure(resolution, args.batch, precision, 1 if args.quick else args.rounds, args.threads))
            print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
