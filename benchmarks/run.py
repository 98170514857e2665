"""Run the benchmarks, one after another, each in its own process; every one replaces its section of RESULTS.md.

pip install -r benchmarks/requirements.txt
python -m benchmarks.run                       # all
python -m benchmarks.run gan diffusion         # some; flags behind -- go to them
python -m benchmarks.run gan -- --peer-dir /path/to/stylegan2-ada-pytorch
bash benchmarks/gpu.sh                         # what a GPU alone can tell (benchmarks/gpu.py)
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks.machine import RESULTS
from jobs.config.specs import ROOT

NAMES = ("gan", "diffusion", "evaluate", "copies", "data", "launch", "checkpoint", "scaling", "precision", "ablation")


def main() -> None:
    """Run the benchmarks that are named, each in a process of its own."""
    words = sys.argv[1:]
    own, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="does each run? Writes nothing")
    args = parser.parse_args(own)
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; choose from {', '.join(NAMES)}")
    failed = []
    for name in args.names or NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--quick" if args.quick else "--write", *flags]
        print(f"\n===== {' '.join(command[1:])}", flush=True)
        if subprocess.run(command, cwd=ROOT).returncode:
            failed.append(name)
    print(f"\n{RESULTS}" if not args.quick else "", flush=True)
    if failed:
        sys.exit(f"benchmarks.run: {', '.join(failed)} failed; the reason stands above")


if __name__ == "__main__":
    main()
