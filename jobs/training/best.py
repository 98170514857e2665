"""The best weights of a run: by which figure, found when, and whether anything got better since.

All of it lives in the counters of a checkpoint and is the same on every rank. Nothing is in them before a first figure.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from fractions import Fraction

from data.files import is_number
from jobs.config import kinds
from jobs.config.rules import LOOKS
from jobs.run.rundir import RunDir
from jobs.training.weights import WeightsError, read_weights

PATIENCE = Fraction(1, 3)  # of a run's length in which something should get better


def look(counters: dict, figures: dict, of: str, nimg: int) -> None:
    """Take a row's figures into account. `of`: what they were measured with and on; the best of other units is
    forgotten. While the run is not healthy nothing is its best."""
    column = next((c for c in kinds.known_columns() if c.judges and is_number(figures.get(c.name))), None)
    if column is None or not nimg:  # an untrained network is nobody's best
        return
    if counters.get("best_of", of) != f"{column.name} {of}":
        forget(counters)
    value, before = figures[column.name], counters.get("best_figure", -math.inf if column.higher else math.inf)
    counters |= {"best_of": f"{column.name} {of}", "looked_nimg": nimg}
    counters["looks_since"] = counters.get("looks_since", 0) + 1
    if counters["healthy"] and (value > before if column.higher else value < before):
        counters |= {"best_figure": float(value), "best_nimg": nimg, "looks_since": 0}


def forget(counters: dict) -> None:
    """From here on figures mean something else: the next one is the best."""
    for name in ("best_of", "best_figure", "best_nimg", "looked_nimg", "looks_since", "patience_from"):
        counters.pop(name, None)


def measured(counters: dict) -> dict[str, float]:
    """{figure: its best value}; {} where there is none yet."""
    return {counters["best_of"].split()[0]: counters["best_figure"]} if "best_nimg" in counters else {}


def columns(counters: dict) -> dict[str, float]:
    """The columns of a log row that say what the best weights are."""
    best = {f"best_{name}": value for name, value in measured(counters).items()}
    return best | {"best_kimg": counters["best_nimg"] / 1000} if best else {}


def stale(counters: dict, total: int) -> bool:
    """Whether the last look at figures is a third of the run, of `total` images, and LOOKS looks behind the best."""
    if "best_nimg" not in counters or counters["looks_since"] < LOOKS:
        return False
    return counters["looked_nimg"] - max(counters["best_nimg"], counters.get("patience_from", 0)) >= total * PATIENCE


def renew(counters: dict, total: int) -> None:
    """At the start: a run that ended early and is now made longer has all its patience again."""
    if counters.get("patience_total", total) != total and stale(counters, total):
        counters["patience_from"] = counters["looked_nimg"]
    counters["patience_total"] = total


def words(counters: dict) -> str:
    """`nothing better than kid 0.0123 at 24 kimg for a third of the run`."""
    (text,) = (f"{name} {value:.3g}" for name, value in measured(counters).items())
    return f"nothing better than {text} at {counters['best_nimg'] / 1000:g} kimg for a third of the run"


def warn(counters: dict, was_stale: bool, total: int, say: Callable[[str], None], ends: bool = False) -> None:
    """The line for a person, once per such stretch. `ends`: the run ends here."""
    if stale(counters, total) and not was_stale:
        say(
            f"WARNING: {words(counters)}; weights-best.safetensors has those weights (predict.py --at best). "
            + ("The run ends here: --stop-when-worse" if ends else "--stop-when-worse ends a run here")
        )


def settle(run: RunDir, counters: dict) -> None:
    """Rank 0, at the start: of best weights that wait for the checkpoint they belong to, keep those whose it is there.

    A killed run may have written them and not the checkpoint: then they never were, and are found again.
    """
    waiting = run.waiting_best
    if not waiting.exists():
        return
    with contextlib.suppress(WeightsError):
        if read_weights(waiting)[1].get("nimg") == counters.get("best_nimg"):
            os.replace(waiting, run.best)
    waiting.unlink(missing_ok=True)


def curve(rows: list[dict], most: int = 8) -> list[str]:
    """How the figure that judges a run went, and where its best weights lie; [] where it was not taken."""
    names = [c.name for c in kinds.known_columns() if c.judges]
    name = next((name for name in names if any(is_number(row.get(f"best_{name}")) for row in rows)), None)
    if name is None:
        return []
    points = [(row["nimg"] / 1000, row[name]) for row in rows if row["nimg"] and is_number(row.get(name))]
    shown = sorted({round(i * (len(points) - 1) / (most - 1)) for i in range(most)})
    text = ", ".join(f"{points[i][1]:.3g} at {points[i][0]:g}" for i in shown)
    real = next((row[f"{name}_train"] for row in reversed(rows) if is_number(row.get(f"{name}_train"))), None)
    of_real = "" if real is None else f" (training slices {real:.3g})"
    best = kinds.best_text(rows[-1])
    return [f"{name:12} {text} kimg{of_real}", *([f"best         {best}: predict.py ... --at best"] if best else [])]
