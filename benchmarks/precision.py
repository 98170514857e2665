"""Does speed cost quality? The same StyleGAN2 run in fp32 with two seeds and in the fast precision, over each other.

    python -m benchmarks.precision [--quick] [--write]

The distance between the fp32 runs of two seeds is the noise; the fast precision must lie within it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import machine
from jobs.config.specs import ROOT
from jobs.training import devices
from jobs.view.plots import Curves, plot_losses

TITLE = "Loss curves of the fast precision"
COLUMNS = ("loss_G", "loss_D", "logits_real", "r1", "diversity")


def curve(folder: Path, name: str, kimg: float, *flags: str) -> list[dict]:
    """The rows of the log of a run of `kimg` with these flags."""
    run = folder / name
    words = [
        "train_gan.py",
        "--preset",
        "quickstart",
        "--run",
        str(run),
        "--total-kimg",
        f"{kimg:g}",
        "--log-kimg",
        f"{kimg / 16:g}",
        "--sample-kimg",
        f"{kimg / 4:g}",
        "--metric-kimg",
        "0",
        *flags,
    ]
    env = os.environ | {"BRAIN_PACK_DIR": str(folder / "packs")}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.precision: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def distance(a: list[dict], b: list[dict], column: str) -> float:
    """Root mean square of the difference of two curves."""
    pairs = [
        (x[column], y[column])
        for x, y in zip(a, b, strict=True)
        if x.get(column) is not None and y.get(column) is not None
    ]
    return math.sqrt(statistics.fmean((x - y) ** 2 for x, y in pairs))


def main() -> None:
    """Train in each precision and print how far the curves lie apart."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="0.5 kimg: does it run?")
    parser.add_argument("--kimg", type=float, default=8.0, help="length of each run (default 8)")
    parser.add_argument("--plot", type=Path, help="also draw the curves over each other into this PNG")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = "bf16"
    kimg = 0.5 if args.quick else args.kimg
    text = [machine.command("benchmarks.precision"), machine.header(device, ["torch"])]
    text.append(
        f"`--preset quickstart` for {kimg:g} kimg. Root mean square of the difference of two curves. `auto` is "
        f"{str(devices.precision_dtype('auto', device)).removeprefix('torch.')} on this device."
    )
    print("\n\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = curve(folder, "fp32", kimg, "--precision", "fp32")
        other = curve(folder, "fp32, other seed", kimg, "--precision", "fp32", "--seed", "1")
        quick = curve(folder, fast, kimg, "--precision", fast)
        if args.plot:
            curves = {"fp32": reference, "fp32, other seed": other, fast: quick}
            plot_losses({name: Curves(rows) for name, rows in curves.items()}, args.plot)
    rows = []
    for column in COLUMNS:
        noise, ours = distance(reference, other, column), distance(reference, quick, column)
        rows.append(
            [
                column,
                *(f"{c[-1].get(column) or math.nan:.3g}" for c in (reference, other, quick)),
                f"{noise:.3g}",
                f"{ours:.3g}",
                f"{ours / noise:.2f}" if noise else "-",
            ]
        )
    columns = ["curve", "fp32, last", "other seed, last", f"{fast}, last", "between seeds", f"{fast} to fp32", "ratio"]
    text.append(machine.table(columns, rows))
    print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
