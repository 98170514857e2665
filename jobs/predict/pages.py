"""`plot` and `report`: the curves of runs, and a page about them. Both read what is there, so a run may be training."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from data.files import atomic_write, leads_out, say
from jobs.config.specs import ConfigError
from jobs.predict.named import UsageError, run_of
from jobs.run.rundir import RunDir
from jobs.view.plots import FORMATS, curves_of, plot_losses
from jobs.view.report import run_names, write_page


def runs_of(named: Sequence[str]) -> list[RunDir]:
    """The runs that are named, each once."""
    return [RunDir(path) for path in dict.fromkeys(run_of(text).resolve() for text in named)]


def plot(named: Sequence[str], out: str = "", *, from_kimg: float = 0.0, to_kimg: float = math.inf) -> None:
    """Loss curves over kimg, of one run or of several over each other."""
    if from_kimg > to_kimg:
        raise UsageError(f"--from-kimg {from_kimg:g} lies behind --to-kimg {to_kimg:g}; exchange them")
    runs = runs_of(named)
    found = {}
    for name, run in zip(run_names(runs), runs, strict=True):
        whole = curves_of(run)
        if not whole.rows:
            why = run.damage() or "no losses in metrics.jsonl yet; the first row comes after --log-kimg thousand images"
            raise ConfigError(f"{run.path}: {why}")
        found[name] = whole.between(from_kimg, to_kimg)
        if not found[name].rows:
            last = whole.rows[-1]["nimg"] / 1000
            raise UsageError(f"{run.path}: no rows from {from_kimg:g} to {to_kimg:g} kimg; it has 0 to {last:g}")
    default = runs[0].plots / ("losses.png" if len(runs) == 1 else "losses-compared.png")
    if not out and leads_out(default, runs[0].path):
        raise ConfigError(f"{default}: a link that leads out of the run; name the file itself with --out")
    file = Path(out) if out else default
    if file.is_dir():
        raise UsageError(f"--out {file}: a folder; name a {', '.join(FORMATS)} file in it")
    if file.suffix.lower() not in FORMATS:
        raise UsageError(f"--out {file}: the suffix says what is written; choose one of {', '.join(FORMATS)}")
    plot_losses(found, file)
    for name, curves in found.items():
        say(f"{name}: {len(curves.rows)} rows up to {curves.rows[-1]['nimg'] / 1000:g} kimg")
    say(f"  {file}")


def report(named: Sequence[str], out: str = "") -> None:
    """One self-contained HTML page about the runs."""
    runs = runs_of(named)
    for run in runs:
        if not os.path.lexists(run.config):
            raise ConfigError(f"{run.path}: no config.json, so it is no run directory; give the folder of a run")
    html = Path(out) if out else runs[0].path / "report.html"
    if html.is_dir():
        raise UsageError(f"--out {html}: a folder; name an HTML file in it")
    html.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(html, write_page(runs))
    say(f"report on {len(runs)} run{'s' * (len(runs) > 1)}, {html.stat().st_size / 1e6:.1f} MB\n  {html}")
