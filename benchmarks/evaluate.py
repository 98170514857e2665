"""How long predict.py evaluate takes, phase by phase, and whether its memory stays flat.

    python -m benchmarks.evaluate [--quick] [--run RUN] [--write]

Each row is one process, `predict.py evaluate` itself: seconds of its phases from metrics.json, and the largest memory
that the system saw it use. Without --run it evaluates a StyleGAN2 of the quickstart's size, not trained, on phantoms;
what the network has learnt changes no time. The feature encoder is trained before, once, as it is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks import machine
from jobs.config import parsing
from jobs.config.specs import GanConfig
from jobs.training.weights import write_weights
from models.stylegan2 import Generator

TITLE = "Evaluation"
ROOT = Path(__file__).resolve().parent.parent
PHASES = ("generated", "real slices", "figures")


def untrained(path: Path) -> Path:
    """Weights of the quickstart's StyleGAN2 as it begins."""
    c = parsing.parse_config(GanConfig, ["--preset", "quickstart"])
    torch.manual_seed(0)
    G = Generator(resolution=c.resolution, channels=c.channels, z_dim=c.z_dim, w_dim=c.w_dim, num_classes=0,
                  mapping_layers=c.mapping_layers, channel_base=c.channel_base, channel_max=c.channel_max)  # fmt: skip
    about = {"job": "stylegan2", "config": parsing.result_fields(c), "classes": [], "geometry": {}, "nimg": 0}
    write_weights(path, {"G_ema": G.state_dict()}, about)
    return path


def evaluate(model: list[str], number: int, out: Path, env: dict[str, str]) -> tuple[dict[str, float], float]:
    """(seconds of each phase, peak memory in MB) of one process."""
    command = [sys.executable, "predict.py", "evaluate", *model, "--number", str(number), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"benchmarks.evaluate: predict.py evaluate ended with code {process.returncode}; see above")
    return json.loads((out / "metrics.json").read_text())["seconds"], usage.ru_maxrss / 1024


def main() -> None:
    """Time `predict.py evaluate` and print what it costs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="100 and 200 slices: does it run?")
    parser.add_argument("--run", help="evaluate this run instead")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    env = os.environ | {"BRAIN_PACK_DIR": os.environ.get("BRAIN_PACK_DIR", "")}
    with tempfile.TemporaryDirectory() as folder:
        if not env["BRAIN_PACK_DIR"]:
            env["BRAIN_PACK_DIR"] = folder
        model = ["--run", args.run] if args.run else ["--weights", str(untrained(Path(folder) / "weights.safetensors"))]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        text = [machine.command("benchmarks.evaluate"), machine.header(device, ["torch"]), __doc__.split("\n\n")[2]]
        evaluate(model, 20, Path(folder) / "out", env)  # makes packs and encoder
        rows = []
        for number in (100, 200) if args.quick else (1000, 5000):
            seconds, peak = evaluate(model, number, Path(folder) / "out", env)
            cells = [*(machine.number(seconds[name]) for name in PHASES), machine.number(number / seconds["generated"])]
            rows.append([f"{number:,}", *cells, f"{peak:,.0f}"])
    text.append(
        machine.table(["slices", *(f"{name}, s" for name in PHASES), "generated per s", "peak memory, MB"], rows)
    )
    print("\n\n".join(text))
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
