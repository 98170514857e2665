"""losses.png: the curves of one run, or of several over each other."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.files import atomic_write, is_number, plain
from jobs.config import kinds


def plot_losses(
    runs: dict[str, list[dict]] | list[dict],
    png: Path,
    from_kimg: float = 0.0,
    to_kimg: float = math.inf,
    restarts: Sequence[float] = (),
) -> None:
    """Write draw_losses() to the file `png`."""
    picture = draw_losses(runs, from_kimg, to_kimg, restarts)
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(png), picture)


def draw_losses(
    runs: dict[str, list[dict]] | list[dict],
    from_kimg: float = 0.0,
    to_kimg: float = math.inf,
    restarts: Sequence[float] = (),
) -> bytes:
    """A PNG of curves over kimg, one panel per kind; several runs over each other when given {name: rows}. `restarts`:
    kimg at which an attempt began, drawn as thin lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    runs = runs if isinstance(runs, dict) else {"": runs}
    runs = {name: [r for r in rows if from_kimg <= r["nimg"] / 1000 <= to_kimg] for name, rows in runs.items()}
    names = sorted({k for rows in runs.values() for row in rows for k, v in row.items() if is_number(v)})
    panels = panels_of(names)
    figure = Figure(figsize=(9, 2.6 * max(len(panels), 1)), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps figures and picks a screen by itself
    axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, columns) in zip(axes, panels, strict=False):
        for i, (run, rows) in enumerate(runs.items()):
            for j, column in enumerate(columns):
                _curve(axis, rows, column, f"{run} {column}".strip(), f"C{(i * len(columns) + j) % 10}")
        for kimg in restarts:
            axis.axvline(kimg, color="0.6", linewidth=0.6, linestyle=":")
        axis.set_title(title, loc="left", fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=8, frameon=False, loc="best", ncols=min(len(columns) * len(runs), 4))
    axes[-1].set_xlabel("thousands of images seen (kimg)")
    if not panels:
        axes[0].text(0.5, 0.5, "no rows yet", ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def panels_of(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(title, columns) of every panel that has a column among `names`, in the order of the jobs' columns."""
    columns = {name: kinds.column(name) for name in names}
    titles = dict.fromkeys(c.panel for c in kinds.known_columns() if c.panel)
    panels = [(title, [name for name, c in columns.items() if c.panel == title]) for title in titles]
    return [(title, found) for title, found in panels if found]


def _curve(axis, rows: list[dict], column: str, label: str, color: str) -> None:
    """One column: as it is when it has few points, else pale with its smoothed line on top."""
    points = [(r["nimg"] / 1000, r[column]) for r in rows if is_number(r.get(column))]
    if not points:
        return
    x, y = np.array(points).T
    many = len(y) > 20
    axis.plot(
        x,
        y,
        color=color,
        alpha=0.3 if many else 1,
        linewidth=1,
        marker="" if len(y) > 1 else ".",
        label="" if many else label_of(label),
    )
    if many:
        axis.plot(x, _smooth(y), color=color, linewidth=1.8, label=label_of(label))


def label_of(text: str) -> str:
    """The name of a run, a class or a person as a label: what does not print spelled out, and no formula."""
    return plain(text).replace("$", r"\$")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the curve, corrected at its start."""
    beta = 1 - 1 / max(len(values) / 20, 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = beta * total + (1 - beta) * value, beta * weight + 1 - beta
        out.append(total / weight)
    return np.array(out)
