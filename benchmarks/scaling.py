"""One rank against two, and what to expect of several nodes.

    python -m benchmarks.scaling [--quick] [--write]

Measured: train_gan.py on one core, and as two gloo ranks on one core each, with the same global batch. On paper: the
time of the all-reduces on 2 to 8 nodes, from the bytes of gradients of `--preset adni256` and a published step time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

import train_gan
from benchmarks import machine
from jobs.config.presets import GAN_PRESETS
from jobs.config.recipe import derived
from jobs.config.specs import ROOT, GanConfig
from jobs.training import collectives

TITLE = "Several ranks"
# NVlabs' stylegan3 repository, docs/configs.md: stylegan2 at 256 px with half the widths, batch 16, one A100.
A100_SEC_PER_KIMG = 12.53
EFFICIENCY = 0.8  # of the wire that an all-reduce reaches


def images_per_second(folder: Path, ranks: int, flags: list[str]) -> float:
    """Median over the log rows of a run, the first two left out."""
    run = folder / f"ranks{ranks}-{len(list(folder.iterdir()))}"
    words = ["train_gan.py", *flags, "--run", str(run)]
    launcher = (
        [sys.executable]
        if ranks == 1
        else [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--"]
    )
    env = os.environ | {"BRAIN_PACK_DIR": str(folder / "packs"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"benchmarks.scaling: {' '.join(words)}\n{done.stdout}{done.stderr}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["img_per_s"] for row in rows[2:] if row.get("img_per_s"))


def measured(folder: Path, rounds: int, steps: int) -> str:
    """Images per second of 1 and 2 ranks for two sizes of network: the more work per byte of gradient, the better."""
    rows = []
    for resolution, base, cap in ((64, 1024, 64), (64, 4096, 128)):
        kimg = 16 * steps / 1000
        flags = [
            "--preset",
            "quickstart",
            "--resolution",
            str(resolution),
            "--channel-base",
            str(base),
            "--channel-max",
            str(cap),
            "--precision",
            "fp32",
            "--batch",
            "16",
            "--threads",
            "1",
            "--data",
            "phantom:64",
            "--metric-kimg",
            "0",
            "--total-kimg",
            f"{kimg:g}",
            "--log-kimg",
            f"{kimg / 8:g}",
            "--sample-kimg",
            "1000",
        ]
        speeds = {1: [], 2: []}
        for i in range(rounds):
            for ranks in (1, 2) if i % 2 == 0 else (2, 1):
                speeds[ranks].append(images_per_second(folder, ranks, flags))
        sizes = dict(resolution=resolution, channel_base=base, channel_max=cap, z_dim=64, w_dim=64, mapping_layers=2)
        c = derived(replace(GanConfig(), data="phantom", **sizes))
        gain = [b / a / 2 for a, b in zip(speeds[1], speeds[2], strict=True)]
        rows.append([f"{resolution} px, widths {base} / {cap}", f"{sum(gradient_megabytes(c)):.1f}",
                     *(machine.spread(speeds[r]) for r in (1, 2)), machine.spread(gain)])  # fmt: skip
    columns = ["networks", "gradients per step, MB", "1 rank, images/s", "2 ranks, images/s", "efficiency"]
    return machine.table(columns, rows)


def gradient_megabytes(c: GanConfig) -> tuple[float, float]:
    """(G, D): what one all-reduce of each carries."""
    s = train_gan.build_state(c, 0, torch.device("cpu"))
    return tuple(sum(p.numel() * p.element_size() for p in net.parameters()) / 1e6 for net in (s.G, s.D))


def on_paper() -> str:
    """Expected efficiency of n nodes with one A100 each: no overlap of computing and sending, as the toolkit does
    it."""
    c = derived(replace(GanConfig(), **GAN_PRESETS["adni256"], data="phantom", loss="logistic"))
    G, D = gradient_megabytes(c)
    sent = G * (1 + 1 / c.pl_interval) + D * (1 + 1 / c.r1_interval)
    rows = []
    for batch, note in (
        (c.batch, ""),
        (2 * c.batch, " (--batch 128 --accumulate 2)"),
        (4 * c.batch, " (--batch 256 --accumulate 4)"),
    ):
        for gbit in (10, 100):
            cells = []
            for nodes in (2, 4, 8):
                compute = batch / nodes * A100_SEC_PER_KIMG / 1000
                ring = 2 * (nodes - 1) / nodes * sent * 8e-3 / (gbit * EFFICIENCY)
                cells.append(f"{100 * compute / (compute + ring):.0f} %")
            rows.append([f"{batch}{note}", f"{gbit} Gbit/s", *cells])
    text = (
        f"On paper: `--preset adni256` sends {sent:.0f} MB of gradients per step (G {G:.0f} MB, D {D:.0f} MB, with "
        "the lazy\n"
        f"penalties). Efficiency of n nodes with one A100 each, at NVlabs' published {A100_SEC_PER_KIMG} s/kimg, a "
        "ring all-reduce at\n"
        f"{100 * EFFICIENCY:.0f} % of the wire and no overlap; a faster GPU makes the wire matter more. Nodes whose "
        "GPUs share a\n"
        "machine send over NVLink or PCIe and lose next to nothing."
    )
    return text + "\n\n" + machine.table(["global batch", "network", "2 nodes", "4 nodes", "8 nodes"], rows)


def main() -> None:
    """Measure by number of processes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1 repetition of few steps: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions (default 3)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    rt = collectives.init_runtime(1)
    text = [machine.command("benchmarks.scaling"), machine.header(rt.device, ["torch"])]
    print("\n\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        text.append(measured(Path(folder), 1 if args.quick else args.rounds, 16 if args.quick else 64))
    text.append(on_paper())
    print("\n" + "\n\n".join(text[2:]), flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
