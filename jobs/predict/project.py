"""`project`: the styles that draw real slices (Abdal 2019, W+)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.files import atomic_file
from data.pack import ensure_pack
from data.packfile import Pack
from jobs.predict.features import data_of, rows_of, shape_of
from jobs.predict.gan import GanModel
from jobs.predict.output import Output


def project(model: GanModel, pack: Pack, out: Output, *, number: int = 4, steps: int = 300, seed: int = 0) -> None:
    """Slices of `pack` in W+: target, result and difference, with the PSNR of each and the styles found."""
    settings = {"seed": seed, "steps": steps, "number": number, **model.about, "data": pack.digest}
    out = out.claim(model.nimg, settings)
    rows = torch.linspace(0, len(pack) - 1, min(number, len(pack))).round().long().unique()
    targets = rows_of(pack, rows.numpy()).numpy()
    with tqdm(total=len(rows) * steps, unit=" steps", disable=None) as bar:

        def track(each: Iterable, n: int) -> Iterator:
            for step in each:
                yield step
                bar.update(n)

        ws, results, history = model.squared().project(targets, steps, seed, track=track)
    difference = np.abs(results.astype(np.int16) - targets)
    psnr = [10 * math.log10(255**2 / max(float((d.astype(float) ** 2).mean()), 1e-3)) for d in difference]
    shown = np.stack([targets, results, np.minimum(2 * difference, 255).astype(np.uint8)], 1)
    columns, labels = ["real slice", "projection", "difference x 2"], [f"{value:.1f} dB" for value in psnr]
    grid = model.original(shown.reshape(-1, *targets.shape[1:]))
    note = "At the left the PSNR of each projection."
    out.grid("project.png", grid, 3, row_labels=labels, column_labels=columns, note=note)
    with atomic_file(out / "project.npz") as file:
        np.savez(file, ws=ws, row=rows.numpy())
    found = [{"slice": pack.names[i], "psnr": value} for i, value in zip(rows.tolist(), psnr, strict=True)]
    loss = [float(value) for value in np.mean(history, 0)]
    out.json("project.json", model, settings, slices=found, loss=[*loss[:: max(steps // 50, 1)], loss[-1]])
    what = f"{len(rows)} projections, PSNR {np.mean(psnr):.1f} dB on average,"
    out.tell(model, what, "project.png", "project.npz", "project.json")


def targets_of(model: GanModel, data: str = "") -> Pack:
    """The slices of one picture or pack that `data` names, else the held-out ones of what the run was trained on."""
    spec = data_of(model, data)
    split = "all" if Path(spec).is_file() and not spec.lower().endswith(".pack") else "test"
    return ensure_pack(spec, split=split, log=lambda line: None, progress=False, **shape_of(model))
