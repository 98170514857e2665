"""`generate --vary`: the same brains along one column of what the model is told, or along two."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from tqdm import tqdm

from data.files import atomic_write
from jobs.predict.conditions import parse_vary
from jobs.predict.named import UsageError
from jobs.predict.output import Output
from jobs.view.grids import enlarged, save_png
from jobs.view.pictures import as_picture, gif_of

LATENTS = 4  # brains in a strip, where no number is asked for


def short(value: str) -> str:
    """A number with three digits, and a level as it is."""
    try:
        return f"{float(value):.3g}"
    except ValueError:
        return value


def vary(
    model,
    out: Output,
    *,
    along: Sequence[str],
    row: Mapping[str, object],
    number: int | None = None,
    seed: int = 0,
    fps: int = 5,
    **how,
) -> None:
    """PNGs, vary.png and generated.csv; along one column also vary.gif, there and back. `along`: COLUMN=A:B:N, or a
    column of levels, once or twice. `row`: what is asked for besides. `how`: what model.sample takes."""
    ways = [parse_vary(word, model.columns) for word in along]
    names = [name for name, _ in ways]
    if len(ways) > 2 or len(set(names)) < len(names) or set(names) & set(row):
        raise UsageError(
            f"--vary {' --vary '.join(along)}: one column or two different ones, and none that --set holds"
        )
    if len(ways) == 2 and number not in (None, 1):
        raise UsageError(f"--number {number}: a grid along two columns is of one brain; leave --number out")
    latents = list(range(1 if len(ways) == 2 else number or LATENTS))
    model.labels({**row, **{name: values[0] for name, values in ways}}, [0])  # wrong values before anything is written
    settings = model.settings(seed=seed, label=dict(row), **how) | {"vary": list(along), "number": len(latents)}
    settings |= {"fps": fps}
    out = out.claim(model.nimg, settings)
    out.json("vary.json", model, settings)  # first: what was interrupted starts again in the same folder
    cells = list(product(*(values for _, values in ways)))
    pictures = [
        model.sample(indices=latents, seed=seed, label={**row, **dict(zip(names, cell, strict=True))}, **how)
        for cell in tqdm(cells, unit=" values", disable=None)
    ]
    shown = np.stack(pictures, 1)  # (latents, cells, C, H, W)
    table = []
    for k in latents:
        for j, (cell, image) in enumerate(zip(cells, shown[k], strict=True)):
            asked = {**row, **dict(zip(names, cell, strict=True))}
            texts = "_".join(f"{name}-{value}" for name, value in zip(names, cell, strict=True))
            file = f"{k:06d}_{j:03d}_" + re.sub(r"[^A-Za-z0-9._-]", "-", texts)[:80] + ".png"
            save_png(
                out / file, as_picture(image), {"index": str(k), "seed": str(seed), "weights_sha256": model.sha256}
            )
            table.append([file, k, seed, *(asked.get(c.name, "") for c in model.columns)])
    out.csv("generated.csv", ["file", "index", "seed", *(c.name for c in model.columns)], table)
    columns, rows = ([f"{name} {short(value)}" for value in values] for name, values in (ways[-1], ways[0]))
    rows = rows if len(ways) == 2 else [str(k) for k in latents]
    out.grid("vary.png", np.concatenate(list(shown)), len(columns), column_labels=columns, row_labels=rows)
    files = ["vary.png", "generated.csv", "vary.json"]
    if len(ways) == 1:
        # (values, C, H, latents x W): the brains side by side
        frames = shown.transpose(1, 2, 3, 0, 4).reshape(len(cells), *shown.shape[2:4], -1)
        film = enlarged(np.concatenate([frames, frames[-2:0:-1]]), out.scale)
        atomic_write(out / "vary.gif", gif_of(film, fps))
        files.insert(1, "vary.gif")
    out.tell(model, f"{len(latents)} brain{'s' * (len(latents) > 1)} along {' and '.join(names)}", *files)
