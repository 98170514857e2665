"""All that is to be measured on a GPU, in pieces that are written down as soon as they are there.

    bash benchmarks/gpu.sh a          the tests that need a GPU (pytest -m gpu)
    bash benchmarks/gpu.sh b          speed against the public implementations, memory, the largest kernels
    bash benchmarks/gpu.sh c          StyleGAN2 of the size of adni256: bf16, fp16 and fp32, curves, pictures, distances
    bash benchmarks/gpu.sh d          a VAE at 256 px against the best linear codec, and diffusion on its latents
    bash benchmarks/gpu.sh            what is not finished yet, in this order

No call takes longer than --limit. Each piece becomes a file in --out and a place in its part's section of RESULTS.md,
under a line that names the card; a piece that is there is not measured again, so the same command goes on where a call
ended. Exit code 0: all is there; 75: something is left for another call; 1: something failed, the reason stands in the
section.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import machine
from jobs.config.specs import ROOT
from jobs.run import stopping

LIMIT = 520  # seconds of a call, under nine minutes with its start and its end
END = 15.0  # seconds before the end of the call when all else is stopped
LEAVE = 60.0  # seconds in which a process that was asked to end must have written its checkpoint


class Unfinished(Exception):
    """A piece has something to show, its text as Markdown, and is to be measured again."""


@dataclass
class Day:
    """One call: where it works, what it measures on, and until when."""

    out: Path  # packs, runs, pieces
    results: Path  # RESULTS.md or what stands for it
    rehearse: bool
    data: str
    checkouts: list[Path]
    device: torch.device
    deadline: float  # of time.monotonic()

    def left(self) -> float:
        """Seconds that this call has."""
        return self.deadline - time.monotonic()

    def environment(self) -> dict[str, str]:
        """That of the processes it starts: packs are kept with the rest; a rehearsal is light."""
        more = {"BRAIN_PACK_DIR": str(self.out / "packs"), "PYTHONUNBUFFERED": "1"}
        return os.environ | more | ({"OMP_NUM_THREADS": "1", "BRAIN_REHEARSE": "1"} if self.rehearse else {})

    def run(self, name: str) -> Path:
        """The run directory of this name."""
        return self.out / "runs" / name

    def start(self, name: str, *words: str, seconds: float = 0.0) -> int:
        """Run a command of this toolkit; its words go to `name`.out. With `seconds` it is asked to end after them, with
        a checkpoint. Returns the exit code; raises Failed where it should have ended well and did not."""
        seconds = min(seconds, self.left() - LEAVE) if seconds else self.left() - END
        log = self.out / f"{name}.out"
        code, stopped = run_for([sys.executable, *words], seconds, log, self.environment())
        good = (stopping.DONE, stopping.TRANSIENT, stopping.CONTINUE) if stopped else (stopping.DONE,)
        if code not in good:
            lines = log.read_text(errors="replace").strip().splitlines()
            raise machine.Failed(f"{' '.join(words[:3])} ended with code {code}: {(lines or ['no word'])[-1]}")
        return code

    def show(self, picture: Path, name: str, title: str) -> str:
        """Put a picture beside the results; returns its Markdown."""
        for folder in {self.results.parent, self.out}:
            (folder / "pictures").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(picture, folder / "pictures" / name)
        return f"![{title}](pictures/{name})"


@dataclass(frozen=True)
class Piece:
    """What is measured in one go: measure(day) gives Markdown. seconds: what it takes; with less it is not begun.
    again: another piece rehearses the same code."""

    name: str
    seconds: float
    measure: Callable[[Day], str]
    again: bool = False


@dataclass(frozen=True)
class Part:
    """A section of RESULTS.md."""

    title: str
    about: str
    pieces: tuple[Piece, ...]


def run_for(command: list[str], seconds: float, log: Path, env: dict[str, str]) -> tuple[int, bool]:
    """(exit code, whether it was asked to end) of a process that has `seconds`, then LEAVE to end by itself."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        try:
            return process.wait(max(seconds, 1.0)), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            return process.wait(LEAVE), True
    except subprocess.TimeoutExpired:
        raise machine.Failed(f"{' '.join(command[1:4])} did not end {LEAVE:g} s after it was asked to") from None
    finally:
        process.kill()
        process.wait()


def card(device: torch.device) -> str:
    """One line that says where and when a piece was measured."""
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        where = f"rehearsed on a CPU ({machine.cpu_name()}): no figure of a GPU"
    return f"*{where}; {datetime.date.today()}, Python {platform.python_version()}, {machine.version('torch')}*"


def one_piece(day: Day, piece: Piece, file: Path) -> bool:
    """Measure a piece and write it down; returns whether it is there. One that failed leaves its reason, and is
    measured again by the next call."""
    since = time.monotonic()
    text = reason = ""
    signal.setitimer(signal.ITIMER_REAL, max(day.left(), 1.0))
    try:
        text = piece.measure(day)
    except Unfinished as error:
        reason = str(error)
    except machine.Failed as error:
        reason = f"Failed: {error.line()}"
        print(error)
    except TimeoutError:
        reason = "Failed: it did not end within the time of the call"
    except Exception as error:
        reason = f"Failed: {type(error).__name__}: {error}".splitlines()[0]
        traceback.print_exc(file=sys.stdout)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    took = time.monotonic() - since
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = file.with_suffix(".failed" if reason else ".md")
    kept.write_text(f"### {piece.name}\n\n{card(day.device)}, {took:.0f} s\n\n{(reason or text).strip()}\n")
    if not reason:
        file.with_suffix(".failed").unlink(missing_ok=True)
    print(f"\n{kept.read_text()}", flush=True)
    return not reason


def write(day: Day, letter: str, part: Part) -> None:
    """The section of a part, of all pieces that there are."""
    texts = [f"`bash benchmarks/gpu.sh {letter}{' --rehearse' * day.rehearse}`", part.about]
    for piece in part.pieces:
        file = piece_file(day, letter, piece)
        kept = next((f for f in (file, file.with_suffix(".failed")) if f.exists()), None)
        texts.append(kept.read_text().strip() if kept else f"### {piece.name}\n\nNot measured yet.")
    machine.write_section(f"GPU {letter}: {part.title}", "\n\n".join(texts), day.results)
    if day.results.parent != day.out:
        shutil.copyfile(day.results, day.out / day.results.name)


def piece_file(day: Day, letter: str, piece: Piece) -> Path:
    """Where a piece lies when it has been measured."""
    return day.out / "pieces" / f"{letter}-{piece.name.replace(' ', '-').replace(',', '')}.md"


def work(day: Day, parts: dict[str, Part]) -> int:
    """Measure what is not there yet, while there is time. Returns the exit code."""
    left, failed = [], []
    for letter, part in parts.items():
        for piece in part.pieces:
            file, name = piece_file(day, letter, piece), f"{letter}, {piece.name}"
            if piece.again and day.rehearse:
                continue
            if file.exists():
                print(f"{name}: there already", flush=True)
            elif day.left() < (5 if day.rehearse else piece.seconds):
                left.append(name)
            else:
                print(f"\n===== {name} ({day.left():.0f} s left in this call)", flush=True)
                if not one_piece(day, piece, file):
                    failed.append(name)
                write(day, letter, part)
    print(f"\n{day.results}")
    if failed:
        print(f"failed: {'; '.join(failed)}. The reasons stand in the sections; the same command tries them again")
    if left:
        print(f"left for another call: {'; '.join(left)}. The same command goes on")
    return 1 if failed else stopping.TRANSIENT if left else 0


def out_of_time(*_) -> None:
    """The time of the call is over: what runs is given up."""
    raise TimeoutError


def main() -> int:
    """Measure the parts that are named. Returns the exit code."""
    from benchmarks.gpu_parts import PARTS

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="bash benchmarks/gpu.sh", description=__doc__, formatter_class=form)
    parser.add_argument("parts", nargs="*", metavar="a|b|c|d", help="default: what is not finished")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny shapes: does it run?")
    parser.add_argument("--out", type=Path, help="folder of packs, runs and pieces (default runs/gpu)")
    parser.add_argument(
        "--data", default="phantom:4000", metavar="SPEC", help="slices of c and d (default %(default)s)"
    )
    parser.add_argument("--peer-dir", action="append", type=Path, default=[], help="a checkout to compare with too")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds of this call (default %(default)s)")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    device = torch.device("cpu" if args.rehearse else "cuda")
    if not (args.rehearse or torch.cuda.is_available()):
        parser.error("torch finds no usable GPU here; --rehearse runs the same on a CPU with tiny shapes")
    with tempfile.TemporaryDirectory() as scratch:
        out = (args.out or (Path(scratch) if args.rehearse else ROOT / "runs" / "gpu")).resolve()
        out.mkdir(parents=True, exist_ok=True)
        results = out / machine.RESULTS.name if args.rehearse else machine.RESULTS
        data = "phantom:200" if args.rehearse else args.data
        day = Day(out, results, args.rehearse, data, args.peer_dir, device, time.monotonic() + args.limit)
        os.environ |= day.environment()
        signal.signal(signal.SIGALRM, out_of_time)
        return work(day, {letter: part for letter, part in PARTS.items() if letter in (args.parts or PARTS)})


if __name__ == "__main__":
    sys.exit(main())
