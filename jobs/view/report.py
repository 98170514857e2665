"""One self-contained HTML page about runs: what became of them, what they make, how they went. Reads what is there,
also of a run that is training. Everything from a file is escaped; the page has no script and loads nothing."""

from __future__ import annotations

import time
from pathlib import Path

from data.files import is_number, read_object
from jobs.config import kinds
from jobs.config.kinds import best_text
from jobs.config.wording import clock
from jobs.run.predictions import made, record_of
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.view.figures import evaluations, reconstructions, weights_of
from jobs.view.markup import escape, figure, folded, json_of, page, picture, table
from jobs.view.metrics import read_metrics
from jobs.view.plots import Curves, curves_of, draw_panels

GRIDS = 5  # sample grids shown, from the first to the last
PICTURES = {  # COMMAND/FILE of the newest folder -> caption
    "generate/grid.png": "generated slices",
    "mix/mix.png": "style mixing",
    "interpolate/strip.png": "interpolation",
    "interpolate/interpolate.gif": "the same as a film",
    "project/project.png": "real slices, their projections and the difference",
    "direction/direction.png": "from one class to the other",
    "reconstruct/reconstruct.png": "real slices, the same through the VAE, and the difference",
    "denoise/denoise.png": "from noise to slices: the network's estimate above the noisy state it is given",
    "denoise/denoise.gif": "the same as a film: the noisy state, and the estimate beside it",
    "tsne/tsne.png": "t-SNE",
    "evaluate/copies-pixels.png": "the samples closest to the training set, by pixels",
    "evaluate/copies-features.png": "the samples closest to the training set, by features",
}


def write_page(runs: list[RunDir]) -> str:
    """The page as text: first the verdict on each run, then pictures, curves, figures and settings, run beside run."""
    names = run_names(runs)
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    found = [facts(run, run.read_status(), json_of(run, "config.json")) for run in runs]
    cards = [card(run, name * (len(runs) > 1), of) for run, name, of in zip(runs, names, found, strict=True)]
    overview = [[word, *(of[word] for of in found)] for word in found[0]]
    parts = {
        "Runs": ['<div class="cards">' + "".join(cards) + "</div>", table(["", *names], overview)],
        "Pictures": [*samples(runs, names), *pictures(runs, names)],
        "Curves": curves(runs, names),
        "Figures": [*evaluations(runs, names), *reconstructions(runs, names)],
        "Settings": settings(runs, names),
    }
    parts = {name: [text for text in part if text] for name, part in parts.items()}
    links = "".join(f'<a href="#{name}">{name}</a>' for name, part in parts.items() if part)
    body = "".join(
        f'<section id="{name}">' + (f"<h2>{name}</h2>" if name != "Runs" else "") + "\n".join(part) + "</section>\n"
        for name, part in parts.items()
        if part
    )
    made = f'<p class="quiet">{time.strftime("%Y-%m-%d %H:%M")}. A click on a picture shows it in its own size.</p>'
    return page(escape(title), f"<nav>{links}</nav>\n<h1>{escape(title)}</h1>{made}\n{body}")


def run_names(runs: list[RunDir]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    names = [run.path.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


# --- what became of a run ---------------------------------------------------------------------------------------------
def card(run: RunDir, name: str, found: dict[str, str]) -> str:
    """The verdict on a run, under its name where there are more: its state, its best figure, what the judges say, its
    newest samples beside real slices."""
    state = found["state"].split(" ")[0]
    look = "good" if state in GOOD else "bad" if state in BAD else ""
    words = str(run.read_status().get("verdict") or "")[:500]
    best = found["best weights"]
    lines = [
        f'<span class="state {look}">{escape(found["state"][:500])}</span> {escape(found["kind"])}, '
        f"{escape(found['images seen'])} images",
        f"Best: {escape(best)}" if best != "none" else "Nothing has been measured yet",
        f'<span class="state bad">look</span> {escape(words)}' if words else "Nothing measured speaks against it",
    ]
    shown = (picture(path, f"samples at {kimg_of(path)} kimg", run.path) for path in reversed(grids_of(run)))
    newest = next(filter(None, shown), "")
    reals = picture(run.samples / "reals.png", "real slices", run.path)
    head = f"<h2>{escape(name)}</h2>" if name else ""
    text = "".join(f"<p>{line}</p>" for line in lines)
    pair = f'<div class="pair">{newest}{reals}</div>'
    return f'<div class="card">{head}{text}{pair}</div>'


GOOD = {RunState.DONE, RunState.RUNNING}
BAD = {RunState.FAILED, RunState.DIVERGED}


def kind_of(config: dict) -> str:
    """The job that a stored config is of, and its preset."""
    jobs = kinds.jobs_of(config) if config else []
    kind = jobs[0] if len(jobs) == 1 else "unknown kind"
    space = config.get("space")
    return f"{kind} in {space} space" if isinstance(space, str) else kind


def facts(run: RunDir, status: dict, config: dict) -> dict[str, str]:
    """{word: value}: what kind of run it is, its state, length and cost."""
    state = RunState.DONE if run.done() else str(status.get("state", "unknown"))
    kimg, total = status.get("kimg"), status.get("total_kimg")
    seconds, device = (
        machine_seconds(run.read_attempts(), status),
        json_of(run, "provenance.json").get("device"),
    )
    unit = "hours on a CPU" if device == "cpu" else "GPU hours" if device else "hours x processes"
    damage = read_object(run.path / "status.json", run.path)[1] or run.damage()
    why = damage or (status.get("reason") if status.get("reason") != "finished" else "")
    last: dict = {}  # of each column, as figures of samples are rarer than rows
    rows = read_metrics(run.metrics)
    for row in rows:
        last |= {name: value for name, value in row.items() if is_number(value)}
    return {
        "kind": kind_of(config),
        "state": state + (f" ({why})" if why else ""),
        "images seen": f"{kimg:g} of {total:g} thousand" if is_number(kimg) and is_number(total) else "unknown",
        "cost": f"{seconds / 3600:.2f} {unit}",
        "data": f"{config.get('data', 'unknown')}, {config.get('resolution', '?')} px",
        "preset": str(config.get("preset") or "none"),
        "best weights": best_text((rows or [{}])[-1]) or "none",
        "last figures": told_text(last) or "none",
    }


def told_text(last: dict) -> str:
    """`loss_D 0.469, kid 0.407`: the figures that a person is told."""
    told = [c.name for c in kinds.known_columns() if c.told and not c.name.startswith("best_")]
    return ", ".join(f"{name} {last[name]:.3g}" for name in told if name in last)


def number_or(value: object, otherwise: float) -> float:
    """The value where it is a number."""
    return value if is_number(value) else otherwise


def machine_seconds(attempts: list[dict], status: dict) -> float:
    """Seconds times ranks of all attempts; one that has no end is counted up to the last heartbeat."""
    total, open_start = 0.0, None
    for line in attempts:
        if line.get("event") == "start":
            open_start = line
        elif line.get("event") == "end" and open_start is not None:
            world = number_or(open_start.get("world"), 1)
            total += world * number_or(line.get("seconds"), 0)
            open_start = None
    if open_start is not None and is_number(status.get("updated")) and is_number(open_start.get("time")):
        world = number_or(open_start.get("world"), 1)
        total += world * max(status["updated"] - open_start["time"], 0)
    return total


# --- pictures ---------------------------------------------------------------------------------------------------------
def grids_of(run: RunDir) -> list[Path]:
    """The sample grids of a run, oldest first."""
    return sorted(path for path in run.samples.glob("*.png") if path.name[0].isdigit())


def kimg_of(path: Path) -> str:
    """`4` of 00004.000.png."""
    return path.stem.lstrip("0").removesuffix(".000") or "0"


def samples(runs: list[RunDir], names: list[str]) -> list[str]:
    """The sample grids of each run over its training."""
    parts = []
    for run, name in zip(runs, names, strict=True):
        shown = [picture(path, f"{kimg_of(path)} kimg", run.path) for path in pick(grids_of(run), GRIDS)]
        if any(shown):
            of = f" of {escape(name)}" if len(runs) > 1 else ""
            parts.append(f'<h3>Samples over time{of}</h3><div class="grids">{"".join(shown)}</div>')
    return parts


def pictures(runs: list[RunDir], names: list[str]) -> list[str]:
    """What predict.py has drawn: what several runs have in a row of its own, run beside run; the rest flows."""
    rows: list[str] = []
    rest: list[str] = []
    for file, caption in PICTURES.items():
        command, shown = file.split("/")[0], []
        for run, name in zip(runs, names, strict=True):
            of = f"{name}: " if len(runs) > 1 else ""
            for path in made(run.path, command, file.split("/")[1])[:1]:
                record = path.with_name(record_of(command)).relative_to(run.path)
                shown.append(picture(path, of + caption + weights_of(json_of(run, str(record))), run.path))
        found = [text for text in shown if text]
        (rest if len(found) < 2 else rows).append("".join(found))
    rows = [text for text in [*rows, "".join(rest)] if text]
    return ["<h3>Drawn by predict.py</h3>" * bool(rows), *(f'<div class="pictures">{text}</div>' for text in rows)]


def pick(items: list, count: int) -> list:
    """Up to `count` of the items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


# --- curves and settings ----------------------------------------------------------------------------------------------
def curves(runs: list[RunDir], names: list[str]) -> list[str]:
    """A picture of each panel; runs of one kind, which log the same losses, are drawn over each other."""
    groups: dict[tuple[str, ...], dict[str, Curves]] = {}
    for run, name in zip(runs, names, strict=True):
        found = curves_of(run)
        losses = sorted({key for row in found.rows for key in row if key.startswith("loss")})
        if found.rows:
            groups.setdefault(tuple(losses), {})[name] = found
    parts = []
    for group in groups.values():
        shown = "".join(figure(png, f"{title}, {', '.join(group)}") for title, png in draw_panels(group))
        of = f"<h3>{escape(', '.join(group))}</h3>" if len(groups) > 1 else ""
        parts.append(f'{of}<div class="curves">{shown}</div>')
    return parts


def settings(runs: list[RunDir], names: list[str]) -> list[str]:
    """The configurations, and how they differ; where the runs were made, and their attempts."""
    configs = [json_of(run, "config.json") for run in runs]
    fields = sorted({field for config in configs for field in config})
    differ = [f for f in fields if f != "run" and any(c.get(f) != configs[0].get(f) for c in configs[1:])]
    parts = []
    if differ:
        parts += ["<h3>How they differ</h3>", table(["", *names], [[f, *(c.get(f) for c in configs)] for f in differ])]
    for run, name, config in zip(runs, names, configs, strict=True):
        of = f" of {name}" if len(runs) > 1 else ""
        parts += [folded("Configuration" + of, config), folded("Provenance" + of, json_of(run, "provenance.json"))]
        if attempts := run.read_attempts():
            parts.append(attempts_table(attempts, of))
    return parts


def attempts_table(attempts: list[dict], of: str = "") -> str:
    """One row per attempt: when, where from, how long, why it ended."""
    rows = []
    for line in attempts:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(line["time"])) if is_number(line.get("time")) else ""
        kimg = f"{line['nimg'] / 1000:g}" if is_number(line.get("nimg")) else ""
        length = clock(line["seconds"]) if is_number(line.get("seconds")) else ""
        what = [line.get(k) for k in ("attempt", "event")]
        rows.append(
            [*what, when, kimg, length, line.get("reason") or "", line.get("node") or "", line.get("job_id") or ""]
        )
    head = ["attempt", "event", "time", "kimg", "length", "reason", "node", "job"]
    count = sum(line.get("event") == "start" for line in attempts)
    return f"<details><summary>Attempts{escape(of)} ({count})</summary>{table(head, rows)}</details>"
