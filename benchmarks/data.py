"""The pack against torchvision's ImageFolder + DataLoader: from files on disk to float batches, images per second.

    python -m benchmarks.data [--quick] [--write]

Both sides read the same folder of 256 x 240 slices (procedural phantoms, written as PNG and as JPEG), pad them to a
square, resize, shuffle, and hand out float32 batches in [-1, 1]. The pack decodes once, which is timed on its own; the
DataLoader decodes again in every epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks import machine
from data.batches import Batches
from data.build import build_pack
from data.phantom import CLASSES, phantom_label, phantom_slice
from data.sources import find_source
from jobs.training import collectives

TITLE = "The pack against ImageFolder + DataLoader"
BATCH, WORKERS = 64, 2
WIDTH, HEIGHT = 256, 240
DEVICE = torch.device("cpu")


def write_slice(folder: Path, suffix: str, index: int) -> None:
    """One phantom as a picture file."""
    pixels = phantom_slice(0, index, WIDTH)[(WIDTH - HEIGHT) // 2 :][:HEIGHT]
    name = CLASSES[phantom_label(0, index)]
    Image.fromarray(pixels).save(folder / name / f"{index:06d}.{suffix}", quality=95)


def write_slices(folder: Path, suffix: str, count: int) -> None:
    """So many phantoms as picture files, in a folder per class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_slice, [folder] * count, [suffix] * count, range(count), chunksize=16))


def image_folder(folder: Path, resolution: int) -> DataLoader:
    """A DataLoader over them, as one writes it with torchvision."""
    transform = transforms.Compose([
        transforms.Grayscale(), transforms.Pad((0, (WIDTH - HEIGHT) // 2)), transforms.Resize(resolution),
        transforms.ToTensor(), transforms.Normalize(0.5, 0.5),
    ])  # fmt: skip
    images = datasets.ImageFolder(str(folder), transform)
    return DataLoader(images, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS, persistent_workers=True)


def epoch_of_loader(loader: DataLoader) -> None:
    """All batches of a DataLoader once."""
    for images, _ in loader:
        images.sum()  # touch them


class PackEpochs:
    """Epochs of batches from a pack."""

    def __init__(self, batches: Batches, count: int):
        """`count` images a call, in batches of BATCH."""
        self.batches, self.count, self.position = batches, count, 0

    def __call__(self) -> None:
        """Read the next `count` images; their sum touches every pixel."""
        for _ in range(self.count // BATCH):
            images, _ = self.batches.rows(self.position, 0, BATCH)
            images.sum()
            self.position += BATCH


def print_nothing(*_) -> None:
    """In place of print."""
    pass


def compare(folder: Path, suffix: str, resolution: int, count: int, rounds: int) -> list[str]:
    """One row of the table."""
    out = folder.parent / f"{suffix}{resolution}.pack"
    start = time.perf_counter()
    pack = build_pack(find_source(str(folder), "all"), out, resolution=resolution, progress=False, log=print_nothing)
    build = time.perf_counter() - start
    if len(pack.labels) != count:
        raise SystemExit(f"benchmarks.data: only {len(pack.labels)} of {count} slices are in the pack")
    ours = PackEpochs(Batches(pack, seed=0, batch=BATCH, device=DEVICE), count)
    loader = image_folder(folder, resolution)
    tasks = {"pack": ours, "loader": lambda: epoch_of_loader(loader)}
    for task in tasks.values():  # starts the workers, and fills the page cache
        task()
    seconds = machine.in_turn(tasks, rounds, DEVICE)
    seen = count // BATCH * BATCH
    saved = statistics.median(seconds["loader"]) - statistics.median(seconds["pack"])
    return [
        suffix, str(resolution), *(machine.spread([seen / t for t in seconds[name]]) for name in tasks),
        machine.spread([b / a for a, b in zip(seconds["pack"], seconds["loader"], strict=True)]),
        machine.number(count / build), f"{build / saved:.1f}" if saved > 0 else "never",
    ]  # fmt: skip


def main() -> None:
    """Measure and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="192 slices, PNG, 64 px, 2 epochs: does it run?")
    parser.add_argument("--slices", type=int, default=1920, help="slices in the folder (default 1920)")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each side (default 7)")
    parser.add_argument("--write", action="store_true", help="put the result into benchmarks/RESULTS.md")
    args = parser.parse_args()
    count, rounds = (192, 2) if args.quick else (args.slices, args.rounds)
    collectives.init_runtime(
        threads=1
    )  # as a training process; one thread: what a batch costs beside a training step that has the other cores
    text = [
        machine.command("benchmarks.data"),
        machine.header(DEVICE, ["torch", "torchvision", "numpy", "pillow"]),
        f"{count} grey slices of {WIDTH} x {HEIGHT}, batches of {BATCH}, {rounds} epochs of each side in turn.\n"
        "Files in the page cache. The pack is read by the one thread of this process; the DataLoader has\n"
        f"{WORKERS} workers that stay alive, and resizes with torchvision's default, bilinear filter, which is "
        "cheaper\n"
        "than the pack's Lanczos. Build: decoding, padding, resizing and checking once, on all cores; break-even: "
        "after\n"
        "how many epochs it has paid for itself.",
    ]  # fmt: skip
    print("\n\n".join(text), flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for suffix in ("png",) if args.quick else ("png", "jpeg"):
            folder = Path(temporary, suffix)
            write_slices(folder, suffix, count)
            rows += [compare(folder, suffix, r, count, rounds) for r in ((64,) if args.quick else (64, 128, 256))]
    columns = "files|px|pack, images/s|ImageFolder, images/s|pack over ImageFolder|build, images/s|break-even, epochs"
    text.append(machine.table(columns.split("|"), rows))
    print("\n" + text[-1], flush=True)
    if args.write:
        machine.write_section(TITLE, "\n\n".join(text))


if __name__ == "__main__":
    main()
