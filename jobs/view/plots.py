"""losses.png: the curves of one run, or of several over each other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.files import atomic_write, is_number, plain, read_object
from jobs.config import columns, kinds
from jobs.run.rundir import RunDir
from jobs.view.metrics import read_metrics

FORMATS = (".png", ".pdf", ".svg")  # that a figure is written in, by the suffix of its name
DASHES: tuple = ("-", "--", "-.", ":", (0, (9, 3)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (9, 3, 1, 3)))
REAL = ":"  # dashes of figures of real training slices
GREY = "0.55"


@dataclass(frozen=True)
class Curves:
    """What is drawn of a run: its rows of metrics.jsonl, the kimg at which later attempts began, and the images of an
    epoch (0: not known)."""

    rows: Sequence[dict]
    restarts: Sequence[float] = field(default=())
    epoch: int = 0

    def between(self, low: float, high: float) -> Curves:
        """The part from `low` to `high` kimg."""
        rows = [row for row in self.rows if low <= row["nimg"] / 1000 <= high]
        return Curves(rows, [kimg for kimg in self.restarts if low <= kimg <= high], self.epoch)


def curves_of(run: RunDir) -> Curves:
    """What is drawn of a run directory; of one that lacks files what there is."""
    slices = read_object(run.path / "data.json", run.path)[0].get("slices")
    return Curves(read_metrics(run.metrics), restarts_of(run), slices if type(slices) is int and slices > 0 else 0)


def restarts_of(run: RunDir) -> list[float]:
    """The kimg at which later attempts began."""
    starts = [a["nimg"] / 1000 for a in run.read_attempts() if a.get("event") == "start" and is_number(a.get("nimg"))]
    return [kimg for kimg in starts if kimg]


def plot_losses(runs: dict[str, Curves], file: Path) -> None:
    """Write the figure of draw_losses() to `file`, in the format that its suffix names."""
    picture = draw_losses(runs, Path(file).suffix[1:].lower())
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(Path(file), picture)


def draw_losses(runs: dict[str, Curves], form: str = "png") -> bytes:
    """A figure of all panels below each other, over kimg and, above, over epochs; `form`: png, pdf or svg."""
    panels = panels_of(runs)
    figure = _figure(10, 2.4 * max(len(panels), 1) + 0.6)
    axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (title, names) in zip(axes, panels, strict=False):
        _panel(axis, runs, title, names)
    if not panels:
        axes[0].text(0.5, 0.5, "no rows yet", ha="center")
    _epochs(axes[0], runs)
    axes[-1].set_xlabel("thousands of images seen (kimg)")
    figure.suptitle(label_of(next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"), fontsize=12)
    _key(figure, runs)
    return _bytes(figure, form)


def draw_panels(runs: dict[str, Curves]) -> list[tuple[str, bytes]]:
    """(title, PNG) of each panel by itself, for a page on which they flow."""
    found = []
    for title, names in panels_of(runs):
        figure = _figure(5.6, 2.5 if len(runs) == 1 else 2.5 + 0.2 * len(runs))
        axis = figure.subplots()
        _panel(axis, runs, title, names)
        axis.set_xlabel("kimg", fontsize=8, loc="right")
        axis.tick_params(labelsize=8)
        _key(figure, runs)
        found.append((title, _bytes(figure, "png")))
    return found


def panels_of(runs: dict[str, Curves]) -> list[tuple[str, list[str]]]:
    """(title, columns) of every panel that has something to show, in the order of the jobs' columns. What never was
    anything but zero is left out where it then is switched off."""
    last: dict[str, float] = {}
    for run in runs.values():
        for row in run.rows:
            for name, value in row.items():
                if is_number(value):
                    last[name] = last.get(name, 0.0) or value
    known = {name: kinds.column(name) for name in sorted(last)}
    shown = {name: c for name, c in known.items() if last[name] or not c.off_at_zero}
    titles = dict.fromkeys(c.panel for c in kinds.known_columns() if c.panel)
    panels = [(title, [name for name, c in shown.items() if c.panel == title]) for title in titles]
    return [(title, names) for title, names in panels if names]


# --- one panel --------------------------------------------------------------------------------------------------------
def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: it keeps figures and picks a screen by itself
    return figure


def _panel(axis, runs: dict[str, Curves], title: str, names: list[str]) -> None:
    """The curves of one panel. A colour is a run and a kind of line a column; of a single run a colour is a column, and
    figures of real training slices are dotted in the colour of what they are the measure of."""
    bare = list(dict.fromkeys(name.removesuffix(columns.TRAIN) for name in names))
    for i, run in enumerate(runs.values()):
        for j, name in enumerate(names):
            color = i if len(runs) > 1 else bare.index(name.removesuffix(columns.TRAIN))
            dashes: object = DASHES[j % len(DASHES)] if len(runs) > 1 else "-"
            if len(runs) == 1 and name.endswith(columns.TRAIN) and len(bare) < len(names):
                dashes = REAL
            _curve(axis, run.rows, name, f"C{color % 10}", dashes)
        for kimg in run.restarts:
            axis.axvline(kimg, color=GREY if len(runs) == 1 else f"C{i % 10}", linewidth=0.8, linestyle=":")
    handles = _columns_key(axis, names, len(runs))
    if title in columns.GOALS:
        goal, why = columns.GOALS[title]
        handles.append(axis.axhline(goal, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label=why))
    axis.set_title(title, loc="left", fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    look: dict = dict(fontsize=8, frameon=False, handlelength=3)
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), **look)


def _columns_key(axis, names: list[str], runs: int) -> list:
    """The lines that stand for the columns in a panel's legend: those of the only run, else grey ones."""
    from matplotlib.lines import Line2D

    if runs == 1:
        return [line for line in axis.lines if not line.get_label().startswith("_")]
    if len(names) == 1:
        return [Line2D([], [], color="none", label=name_of(names[0]))]
    return [
        Line2D([], [], color=GREY, linestyle=DASHES[j % len(DASHES)], label=name_of(name))
        for j, name in enumerate(names)
    ]


def _key(figure, runs: dict[str, Curves]) -> None:
    """Below the figure: which colour is which run, and what the dotted lines are."""
    from matplotlib.lines import Line2D

    handles = []
    if len(runs) > 1:
        handles = [Line2D([], [], color=f"C{i % 10}", linewidth=2, label=label_of(name)) for i, name in enumerate(runs)]
    if any(run.restarts for run in runs.values()):
        handles.append(Line2D([], [], color=GREY, linewidth=0.8, linestyle=":", label="a later attempt began"))
    if handles:
        figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower left", ncols=min(len(handles), 3))


def _epochs(axis, runs: dict[str, Curves]) -> None:
    """Epochs as a second axis, of runs whose epochs are equally long."""
    lengths = {run.epoch for run in runs.values()}
    if len(lengths) == 1 and (length := lengths.pop()) > 0:
        kimg = length / 1000
        above = axis.secondary_xaxis("top", functions=(lambda x: x / kimg, lambda x: x * kimg))
        above.set_xlabel(f"epochs of {length:,} slices", fontsize=9)
        above.tick_params(labelsize=8)


def _curve(axis, rows: Sequence[dict], name: str, color: str, dashes) -> None:
    """One column: as it is when it has few points, else pale with its smoothed line on top."""
    points = [(r["nimg"] / 1000, r[name]) for r in rows if is_number(r.get(name))]
    if not points:
        return
    x, y = np.array(points).T
    if len(y) > 20:
        axis.plot(x, y, color=color, alpha=0.3, linewidth=1, label="_")
        y = _smooth(y)
    marker = "" if len(y) > 1 else "."
    axis.plot(x, y, color=color, linestyle=dashes, linewidth=1.6, marker=marker, label=name_of(name))


def name_of(column: str) -> str:
    """A column as a label: `kid, real slices` for kid_train."""
    bare = column.removesuffix(columns.TRAIN)
    return label_of(column if bare == column else f"{bare}, real slices")


def label_of(text: str) -> str:
    """The name of a run, a class or a person as a label: what does not print spelled out, no formula, and never one
    that matplotlib hides for how it begins."""
    return plain(text).replace("$", r"\$").replace("_", " _", text.startswith("_"))


def _bytes(figure, form: str) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=120)
    return buffer.getvalue()


def _smooth(values: np.ndarray) -> np.ndarray:
    """Exponential moving average over about a twentieth of the curve, corrected at its start."""
    beta = 1 - 1 / max(len(values) / 20, 1)
    total, weight, out = 0.0, 0.0, []
    for value in values:
        total, weight = beta * total + (1 - beta) * value, beta * weight + 1 - beta
        out.append(total / weight)
    return np.array(out)
