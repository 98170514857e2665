"""What checkpoints cost a run, and how long a resumed run takes until it trains.

    python -m benchmarks.checkpoint [--quick] [--write]

The state is that of `--preset adni256` after a step: networks, moving average and both optimizers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import train_gan
from benchmarks import machine
from jobs.config.presets import GAN_PRESETS
from jobs.config.recipe import derived
from jobs.config.specs import ROOT, GanConfig
from jobs.training import checkpoint, collectives, ranks

TITLE = "Checkpoints and start-up"
DISK_MB_S, INTERVAL_MINUTES = 33.0, 10.0  # a shared disk on a bad day, and the default of --checkpoint-minutes


class SlowDisk:
    """In place of the hashing writer: as many bytes a second as the shared disk takes."""

    def __init__(self, file):
        """`file` is open for writing; nothing is hashed before the first write."""
        self.file, self.sha256, self.size = checkpoint_writer(file), None, 0
        self.since, self.written = time.monotonic(), 0

    def write(self, data) -> int:
        """Write as slowly as the disk that this stands for."""
        count = self.file.write(data)
        self.written += count
        self.sha256, self.size = self.file.sha256, self.file.size
        time.sleep(max(0.0, self.written / (DISK_MB_S * 1e6) - (time.monotonic() - self.since)))
        return count

    def flush(self) -> None:
        """Hand on to the file."""
        self.file.flush()


checkpoint_writer = checkpoint._Hashing


def config(quick: bool) -> GanConfig:
    """The configuration whose state is saved."""
    c = derived(replace(GanConfig(), **GAN_PRESETS["adni256"], data="phantom:16", precision="fp32"))
    return replace(c, resolution=64, channel_base=2048, channel_max=64) if quick else c


def full_state(c: GanConfig, device: torch.device) -> train_gan.TrainState:
    """A state whose optimizers have their moments, as after a step."""
    s = train_gan.build_state(c, 0, device)
    for net, optimizer in ((s.G, s.opt_G), (s.D, s.opt_D)):
        for p in net.parameters():
            p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return s


def saving(c: GanConfig, rt: ranks.Runtime, folder: Path, rounds: int) -> list[list[str]]:
    """Rows of the table: seconds that a save blocks, and until it is on the disk."""
    state = full_state(c, rt.device).state_dict()
    megabytes = sum(t.nbytes for _, t in checkpoint.tensors(state)) / 1e6
    blocked, written = [], []
    with mock.patch.object(checkpoint, "_Hashing", SlowDisk):
        folder.mkdir()
        store = checkpoint.Checkpoints(folder)
        for i in range(rounds):
            before, start = store.blocked_seconds, time.monotonic()
            store.save(i, state)
            blocked.append(store.blocked_seconds - before)
            store.wait(raise_errors=True)  # the next one comes minutes later
            written.append(time.monotonic() - start)
    share = [100 * b / (60 * INTERVAL_MINUTES) for b in blocked]
    return [
        ["checkpoint, MB", f"{megabytes:.0f}"],
        [f"written at {DISK_MB_S:.0f} MB/s by the other thread in, s", machine.spread(written)],
        ["training waits, s", machine.spread(blocked)],
        [f"share of a run, one every {INTERVAL_MINUTES:.0f} minutes, %", machine.spread(share)],
    ]


def start_up(c: GanConfig, folder: Path, rounds: int) -> list[list[str]]:
    """Seconds from the start of the process to the first step, fresh and resumed, with the pack made before."""
    run, env = folder / "run", os.environ | {"BRAIN_PACK_DIR": str(folder / "packs")}
    flags = ["--preset", "adni256", "--data", c.data, "--precision", c.precision, "--batch", "8", "--run", str(run),
             "--total-kimg", "0.008", "--resolution", str(c.resolution), "--channel-base", str(c.channel_base),
             "--channel-max", str(c.channel_max), "--sample-kimg", "1000", "--log-kimg", "1000",
             "--metric-kimg", "0"]  # fmt: skip
    seconds: dict[str, list[float]] = {"fresh": [], "resumed": []}
    for i in range(rounds + 1):
        flags[flags.index("--total-kimg") + 1] = f"{0.008 * (i + 1):g}"
        start = time.time()
        process = subprocess.Popen(
            [sys.executable, "train_gan.py", *flags],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        shown = []
        for line in process.stdout:
            shown.append(line)
            if "starting at" in line or "resuming at" in line:
                seconds["fresh" if "starting at" in line else "resumed"].append(time.time() - start)
        if process.wait():
            sys.exit("".join(shown))
        attempts = [json.loads(line) for line in (run / "attempts.jsonl").read_text().splitlines()]
        if [a["event"] for a in attempts].count("start") != i + 1:
            sys.exit("benchmarks.checkpoint: the run did not begin as often as it was started")
    return [[f"process start to first step, {kind}, s", machine.spread(values)] for kind, values in seconds.items()]


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks, 2 repetitions: does it run?")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default 5)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    rt = collectives.init_runtime(0)
    c, rounds = config(args.quick), 2 if args.quick else args.rounds
    text = [machine.command("benchmarks.checkpoint"), machine.header(rt.device, ["torch"])]
    print("\n\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = saving(c, rt, Path(folder, "checkpoints"), rounds) + start_up(c, Path(folder), rounds)
    text.append(machine.table([f"{c.resolution} px", "this machine"], rows))
    print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
