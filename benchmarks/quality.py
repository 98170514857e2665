"""How good are the slices after equal computing time? Our recipes against those of public trainers.

    pip install --no-deps -r benchmarks/requirements.txt && pip install diffusers==0.42.1 monai==1.6.1
    python -m benchmarks.quality --data phantom:2000 --data FOLDER [--seconds 600] [--seeds 3] [--sides gan-rpgan,...]
        [--nvlabs CLONE] [--out FOLDER] [--write]

Every side trains for `--seconds` of CPU time (of GPU time where there is one) on one thread, with equal widths, on the
same slices, and is judged on slices of people that no side has seen. A result that lies in `--out` or in the record,
quality.jsonl beside this file, is not computed again, so the table may grow over days (after a change of a recipe, take
its lines out of the record); `--write` puts the results of `--out` into the record, the tables of the record into
RESULTS.md, and the pictures beside it. The Frechet distance in pixels is in principal components of the training
slices, which no side's training prefers; all other figures are in the features that `predict.py evaluate` uses.

Ours go without path length, both losses. ADA follows D's signs with the logistic loss; with rpgan the `val` slices of
other people again, or a schedule where a data set has none. stylegan2-ada-pytorch has its `auto` settings without ADA,
or "our way" our learning rate and no path length. "Our rate" is our learning rate for a peer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import machine
from benchmarks.quality_sides import RESOLUTION, SAMPLES, SIDES, Task
from data.pack import ensure_held_out, ensure_pack
from data.packfile import Pack, open_pack
from jobs.config.specs import ROOT
from jobs.predict.features import RealSlices, open_features
from jobs.training import randomness, ranks
from jobs.view.grids import image_grid, save_png
from models import quality

TITLE = "Quality at equal computing time"
RECORD = machine.RESULTS.parent / "quality.jsonl"
SHAPE: Any = dict(resolution=RESOLUTION, channels=1, crop=0, progress=False)  # of every pack
GRID, SHOWN, COMPONENTS = 48, 16, 48


# --- judging ----------------------------------------------------------------------------------------------------------
def in_components(train: torch.Tensor, *sets: torch.Tensor) -> list[torch.Tensor]:
    """Each set, uint8 (N, 1, R, R), as (N, COMPONENTS) in the principal components of the training pixels."""
    x = train.flatten(1).double() / 255
    mean = x.mean(0)
    _, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    return [(images.flatten(1).double() / 255 - mean) @ vectors[:, -COMPONENTS:] for images in sets]


def judge(samples: torch.Tensor, train: Pack, held: Pack, seed: int) -> dict[str, float]:
    """The figures of one set of uint8 slices (N, 1, R, R)."""
    rt = ranks.Runtime(0, 1, 0, torch.device("cpu"), torch.get_num_threads())
    network, _ = open_features(None, train, Path(train.path).parent, rt)
    learnt, unseen = (torch.from_numpy(np.array(pack.images)) for pack in (train, held))
    features = [torch.cat([network(part) for part in x.split(100)]) for x in (samples, learnt, unseen)]
    draw = randomness.generator(seed, 0, "benchmark quality")
    figures = quality.set_figures(features[0], features[2], draw)
    pixels = [quality.Moments.of(x) for x in in_components(learnt, samples, unseen)]
    groups = RealSlices(train, held).subjects(held)
    copies, _ = quality.copying(*features, groups, features[1].mean(0))
    pairs = quality.pair_similarity(samples, quality.draw_pairs(torch.arange(len(samples)), 500, draw))
    people = quality.draw_pairs(groups, 500, draw)
    real = quality.pair_similarity(unseen, people) if len(people) else torch.tensor([torch.nan])  # one person: no pair
    return {
        "kid": 1000 * figures["kid"],
        "fid": figures["fid"],
        "fid_pixels": quality.frechet_distance(*pixels),
        "precision": figures["precision"],
        "recall": figures["recall"],
        "coverage": figures["coverage"],
        "pairs": float(pairs.mean()),
        "pairs_real": float(real.mean()),
        "copies": copies["below_5th_percentile"],
    }


def packs_of(data: str) -> tuple[Pack, Pack]:
    """Training slices, and those of other people."""
    train, held = ensure_pack(data, **SHAPE), ensure_held_out(data, "test", **SHAPE)
    assert held is not None
    return train, held


def to_steer_by(data: str, held: Pack) -> str:
    """The packed `val` slices of other people than those of packs_of; "" where the data have none."""
    pack = ensure_held_out(data, "auto", **SHAPE)
    if pack is None or pack.digest == held.digest:  # one held-out set is the judge's alone
        print("no val slices for ADA to follow: it rises by schedule")
        return ""
    return str(pack.path)


def measure(task: Task, data: str) -> dict:
    """Train a side in a process of its own and judge its samples, which stay in task.out with a picture of them."""
    train, held = packs_of(data)
    paths = {"pack": train.path, "steer": to_steer_by(data, held) if task.side == "gan-rpgan" else ""}
    words = [sys.executable, "-m", "benchmarks.quality", "--one", json.dumps(task.__dict__ | paths)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(w) for w in words], cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        raise machine.Failed(done.stderr or done.stdout)
    nimg = int(done.stdout.split()[-1])
    samples = torch.from_numpy(np.load(task.out))
    save_png(Path(task.out).with_suffix(".png"), image_grid(samples[:GRID].numpy(), 8))
    return judge(samples, train, held, task.seed) | {"kimg": nimg / 1000}


def of_training_slices(data: str, seed: int) -> dict:
    """The same figures of as many training slices: what a perfect generator would have."""
    train, held = packs_of(data)
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:SAMPLES]
    return judge(torch.from_numpy(np.array(train.images))[rows], train, held, seed)


def file_of(about: dict) -> str:
    """The name of a result's files, without their ending."""
    return f"{about['data'].replace(':', '-')}-{about['side']}-{about['seconds']:g}s-{about['seed']}"


def fill(folder: Path, task: Task, data: str) -> None:
    """Measure one run where neither `folder` nor the record has it."""
    about: dict = dict(data=Path(data).name, side=task.side, seconds=task.seconds, seed=task.seed)
    if key_of(about) in map(key_of, results(folder)):
        return
    name = file_of(about)
    about["on"] = f"{datetime.date.today()}, {machine.commit()}, {machine.cpu_name()}"
    if torch.cuda.is_available():
        about["on"] += f", {torch.cuda.get_device_name()}"
    about["on"] += ", " + ", ".join(map(machine.version, ["torch", "diffusers", "monai"]))
    try:
        if task.side in SIDES:
            about |= measure(replace(task, out=str((folder / f"{name}.npy").absolute())), data)
        else:
            about |= of_training_slices(data, task.seed)
    except machine.Failed as error:
        print(f"{name}: not measured: {error.line()}", flush=True)
        return
    (folder / f"{name}.json").write_text(json.dumps(about))
    print(f"{name}: " + ", ".join(f"{k} {v:.3g}" for k, v in about.items() if isinstance(v, float)), flush=True)


def name_of(side: str) -> str:
    """A side in words."""
    return SIDES[side][0] if side in SIDES else "training slices"


def with_range(values: list[float]) -> str:
    """Their mean, and with several the least and the largest: quartiles of three say little."""
    more = f" ({machine.number(min(values))}-{machine.number(max(values))})" if len(values) > 1 else ""
    return machine.number(statistics.fmean(values)) + more


def key_of(about: dict) -> tuple[str, int, float, int]:
    """What tells one result from another, in the order of tables and pictures."""
    return about["data"], [*SIDES, "training"].index(about["side"]), about["seconds"], about["seed"]


def results(folder: Path) -> list[dict]:
    """All that is measured, in order: the record, and what lies in `folder`, which is newer."""
    lines = RECORD.read_text().splitlines() if RECORD.exists() else []
    found = {
        key_of(about): about for about in map(json.loads, [*lines, *(f.read_text() for f in folder.glob("*.json"))])
    }
    return [found[key] for key in sorted(found)]


def report(measured: list[dict]) -> str:
    """The tables of these results, one per data set."""
    columns = ("kid", "fid", "fid_pixels", "precision", "recall", "coverage", "pairs", "copies")
    heads = ["side", "runs", "seconds", "kimg", "KID x 1000", "FID", "FID, pixels", "precision", "recall", "coverage",
             "MS-SSIM of pairs", "nearer than 95 % of held-out"]  # fmt: skip
    text = []
    for data, lines in groupby(measured, key=lambda about: about["data"]):
        of_data, rows = list(lines), []
        for (side, seconds), group in groupby(of_data, key=lambda about: (about["side"], about["seconds"])):
            runs = list(group)
            spent = (
                [f"{seconds:g}", machine.number(statistics.fmean(r["kimg"] for r in runs))] if seconds else ["-", "-"]
            )
            rows.append([name_of(side), str(len(runs)), *spent, *(with_range([r[c] for r in runs]) for c in columns)])
        real = statistics.fmean(r["pairs_real"] for r in of_data)
        where: dict[str, dict[str, None]] = {}  # {machine and versions: its sides, once each}
        for r in of_data:
            where.setdefault(r["on"], {})[name_of(r["side"])] = None
        text += [
            f"### {data}, {RESOLUTION} px",
            "\n".join(f"- {on}: {'; '.join(names)}" for on, names in where.items()),
        ]
        text.append(machine.table(heads, rows))
        text.append(f"MS-SSIM of real pairs: {real:.3f}." if real == real else "One held-out person: no real pairs.")
        text[-1] += " Means over the runs, with the least and the largest; what the sides are stands in quality.py."
    return "\n\n".join(text)


def picture(folder: Path, data: str, held: Pack) -> Image.Image:
    """The first slices of each side's first run, below real ones; says of which there are none in `folder`."""
    names, rows = ["real slices"], [np.array(held.images)[:: max(len(held) // SHOWN, 1)][:SHOWN]]
    for about in results(folder):
        samples = folder / (file_of(about) + ".npy")
        if about["data"] != Path(data).name or about["seed"] or about["side"] not in SIDES:
            continue
        if not samples.exists():
            print(f"not in the picture, as its samples are not kept: {samples}")
            continue
        names.append(f"{name_of(about['side'])}, {about['seconds']:g} s")
        rows.append(np.load(samples)[:SHOWN])
    return image_grid(np.concatenate(rows), SHOWN, row_labels=names, scale=2)


def main() -> None:
    """Train and judge what has no result yet, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", action="append", help="phantom:N or a folder; repeatable (default phantom:2000)")
    parser.add_argument("--seconds", type=float, default=600, help="computing time of each training (default 600)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (default 3)")
    parser.add_argument("--sides", default="gan-logistic,gan-rpgan,diffusion", help=f"of {', '.join(SIDES)}")
    parser.add_argument("--nvlabs", default="", help="a clone of stylegan2-ada-pytorch")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of the results")
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the training process of one side
    args = parser.parse_args()
    if args.one:
        task = Task(**json.loads(args.one))
        samples, nimg = SIDES[task.side][1](task, open_pack(task.pack))
        np.save(task.out, samples.numpy())
        print(nimg)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    data_sets = args.data or ["phantom:2000"]
    for seed in range(args.seeds):
        for data in data_sets:
            for side in ["training", *args.sides.split(",")]:
                fill(args.out, Task(side, "", seed, args.seconds if side in SIDES else 0, args.nvlabs, ""), data)
    measured = results(args.out)
    text = f"{machine.command('benchmarks.quality')}\n\n{report(measured)}"
    print(text)
    if args.write:
        RECORD.write_text("".join(json.dumps(about) + "\n" for about in measured))
        machine.write_section(TITLE, text)
        for data in data_sets:
            held = packs_of(data)[1]
            file = f"quality-{Path(data).name.replace(':', '-')}.png"
            save_png(machine.RESULTS.parent / "pictures" / file, picture(args.out, data, held))


if __name__ == "__main__":
    main()
