"""One self-contained HTML page about runs: what they are, how they went, what they make. Reads what is there, also of a
run that is training. Everything from a file is escaped; the page has no script and loads nothing."""

from __future__ import annotations

import base64
import html
import json
import time
from pathlib import Path

from data.files import is_number, plain, read_bytes, read_object, say
from jobs.config.kinds import best_text
from jobs.config.wording import clock
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.view.metrics import read_metrics
from jobs.view.plots import draw_losses

GRIDS = 5  # sample grids shown, from the first to the last
MAX_PICTURE = 16 << 20  # bytes of a picture that goes into the page
PICTURES = {  # predictions/COMMAND/FILE -> caption
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
RECONSTRUCTION = {
    "psnr": "PSNR, dB",
    "psnr_head": "PSNR in the head, dB",
    "ssim": "SSIM",
    "ssim_head": "SSIM in the head",
    "l1": "L1",
}
COLUMNS = {
    "fid": ("FID", 1),
    "kid": ("KID x 1000", 1000),
    "precision": ("precision", 1),
    "recall": ("recall", 1),
    "density": ("density", 1),
    "coverage": ("coverage", 1),
}
ERRORS = {"fid": "fid_error", "kid": "kid_sd"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #222;
  background: #fff; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 2.5em; border-bottom: 1px solid #ccc; padding-bottom: .2em; }
table { border-collapse: collapse; margin: .8em 0; }
td, th { padding: .2em .8em .2em 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid #999; font-weight: 600; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; display: block; }
figure { margin: .8em 0; }
figcaption, .quiet { color: #666; font-size: 13px; }
.pictures { display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-end; }
.pictures figure { margin: 0; max-width: 100%; }
.pictures img { min-width: min(240px, 100%); }
.wide { overflow-x: auto; }
.grids { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1em; }
.grids figure { margin: 0; }
details { margin: .8em 0; }
summary { cursor: pointer; }
code { font-size: 13px; overflow-wrap: anywhere; }
"""


def write_page(runs: list[RunDir]) -> str:
    """The page as text."""
    names = run_names(runs)
    title = names[0] if len(runs) == 1 else f"{len(runs)} runs"
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{time.strftime("%Y-%m-%d %H:%M")}</p>']
    if len(runs) > 1:
        parts.append(overview(runs, names))
        parts += common_curves(runs, names)
    parts += [*evaluations(runs, names), *reconstructions(runs, names)]
    for run, name in zip(runs, names, strict=True):
        parts += about_run(run, name)
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><meta name="viewport" content="width=device-width">'
    return (
        f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def run_names(runs: list[RunDir]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    names = [run.path.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


# --- one run ----------------------------------------------------------------------------------------------------------
def about_run(run: RunDir, name: str) -> list[str]:
    """The part of the page about one run, as pieces of HTML."""
    attempts, rows = run.read_attempts(), read_metrics(run.metrics)
    parts = [f"<h2>{escape(name)}</h2>", summary(run)]
    if rows:
        parts.append(figure(draw_losses(rows, restarts=restarts_of(run)), "losses over images seen; dotted: restarts"))
    grids = pick(sorted(p for p in run.samples.glob("*.png") if p.name[0].isdigit()), GRIDS)
    shown = [picture(p, f"{p.stem.lstrip('0').removesuffix('.000') or '0'} kimg", run.path) for p in grids]
    shown = [*shown, picture(run.samples / "reals.png", "real slices", run.path)]
    if any(shown):
        parts.append('<h3>Samples over time</h3><div class="grids">' + "".join(shown) + "</div>")
    found = []
    for file, caption in PICTURES.items():
        command = file.split("/")[0]
        of = weights_of(json_of(run, f"predictions/{command}/{command}.json"))
        found.append(picture(run.path / "predictions" / file, caption + of, run.path))
    if any(found):
        parts.append('<h3>Pictures</h3><div class="pictures">' + "".join(found) + "</div>")
    parts.append(folded("Configuration", json_of(run, "config.json")))
    parts.append(folded("Provenance", json_of(run, "provenance.json")))
    if attempts:
        parts.append(attempts_table(attempts))
    return parts


def restarts_of(run: RunDir) -> list[float]:
    """The kimg at which later attempts began."""
    starts = [a["nimg"] / 1000 for a in run.read_attempts() if a.get("event") == "start" and is_number(a.get("nimg"))]
    return [kimg for kimg in starts if kimg]


def summary(run: RunDir) -> str:
    """RunState, length and cost, in one table."""
    status, config = run.read_status(), json_of(run, "config.json")
    return table([], [[key, value] for key, value in facts(run, status, config).items()])


def facts(run: RunDir, status: dict, config: dict) -> dict[str, str]:
    """{word: value} of the summary at the top of a run."""
    state = RunState.DONE if run.done() else str(status.get("state", "unknown"))
    kimg, total = status.get("kimg"), status.get("total_kimg")
    seconds, device = (
        machine_seconds(run.read_attempts(), status),
        json_of(run, "provenance.json").get("device"),
    )
    unit = "hours on a CPU" if device == "cpu" else "GPU hours" if device else "hours x processes"
    damage = read_object(run.path / "status.json", run.path)[1] or run.damage()
    why = damage or (status.get("reason") if status.get("reason") != "finished" else "")
    return {
        "state": state + (f" ({why})" if why else ""),
        "images seen": f"{kimg:g} of {total:g} thousand" if is_number(kimg) and is_number(total) else "unknown",
        "cost": f"{seconds / 3600:.2f} {unit}",
        "data": f"{config.get('data', 'unknown')}, {config.get('resolution', '?')} px",
        "preset": str(config.get("preset") or "none"),
        "best weights": best_text((read_metrics(run.metrics) or [{}])[-1]) or "none",
    }


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


def attempts_table(attempts: list[dict]) -> str:
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
    return f"<details><summary>Attempts ({count})</summary>{table(head, rows)}</details>"


# --- several runs -----------------------------------------------------------------------------------------------------
def overview(runs: list[RunDir], names: list[str]) -> str:
    """The table of all runs of a page."""
    rows = []
    for run, name in zip(runs, names, strict=True):
        values = facts(run, run.read_status(), json_of(run, "config.json"))
        rows.append([name, *values.values()])
        head = ["run", *values]
    return table(head, rows)


def common_curves(runs: list[RunDir], names: list[str]) -> list[str]:
    """Curves over each other, of runs of one kind: those that log the same losses."""
    kinds: dict[tuple[str, ...], dict[str, list[dict]]] = {}
    for run, name in zip(runs, names, strict=True):
        rows = read_metrics(run.metrics)
        losses = sorted({key for row in rows for key in row if key.startswith("loss")})
        kinds.setdefault(tuple(losses), {})[name] = rows
    return [figure(draw_losses(rows), ", ".join(rows)) for losses, rows in kinds.items() if losses and len(rows) > 1]


def evaluations(runs: list[RunDir], names: list[str]) -> list[str]:
    """A table for each kind of features, held-out set and number of slices: figures of different ones are in different
    units, or biased differently, and never set side by side."""
    groups: dict[tuple[str, str, str], list[tuple[str, dict]]] = {}
    for run, name in zip(runs, names, strict=True):
        found = json_of(run, "predictions/evaluate/metrics.json")
        heldout = child(child(found, "data"), "heldout")
        if isinstance(found.get("distances"), dict):
            key = str(child(found, "settings").get("features")), str(heldout.get("digest")), str(found.get("compared"))
            groups.setdefault(key, []).append((name, found))
    parts = ["<h2>Evaluation</h2>"] if groups else []
    for (features, _, _), entries in groups.items():
        rows: list[list] = []
        real: dict = {}
        for name, found in entries:
            rows.append([name + weights_of(found), *figures_of(child(found["distances"], "generated"))])
            real.setdefault(tuple(figures_of(child(found["distances"], "training slices"))), found.get("compared"))
        rows += [[f"real training slices ({count})", *values] for values, count in real.items()]
        parts.append(table(["", *(title for title, _ in COLUMNS.values())], rows, numbers=True))
        heldout = child(child(entries[0][1], "data"), "heldout")
        parts.append(
            f'<p class="quiet">Features: {escape(features)}. Against {escape(str(heldout.get("slices")))} held-out '
            "slices: "
            f"{escape(str(heldout.get('describe'))[:300])}</p>"
        )
        parts += [more_figures(name, found) for name, found in entries]
    return parts


def reconstructions(runs: list[RunDir], names: list[str]) -> list[str]:
    """A table for each set of slices that VAEs were measured on."""
    groups: dict[tuple[str, str], list[list]] = {}
    for run, name in zip(runs, names, strict=True):
        found = json_of(run, "predictions/reconstruct/reconstruct.json")
        figures = child(found, "mean and sd over subjects")
        if figures:
            cells = [mean_and_sd(figures.get(score)) for score in RECONSTRUCTION]
            row = [name + weights_of(found), *cells]
            groups.setdefault((str(found.get("data")), str(found.get("slices"))), []).append(row)
    parts = ["<h2>Reconstruction</h2>"] if groups else []
    for (data, slices), rows in groups.items():
        parts.append(table(["", *RECONSTRUCTION.values()], rows, numbers=True))
        parts.append(
            f'<p class="quiet">{escape(slices[:20])} slices: {escape(data[:300])}. Mean ± standard deviation over '
            "subjects. Black is most of a slice: judge by the figures in the head.</p>"
        )
    return parts


def weights_of(found: dict) -> str:
    """` at 24 kimg (best kid 0.0123)`: which weights of a run some figures are of."""
    measured = [f"{name} {digits(value, 3)}" for name, value in child(found, "measured").items() if is_number(value)]
    at = f" at {found['nimg'] / 1000:g} kimg" if is_number(found.get("nimg")) else ""
    return at + (f" (best {', '.join(measured)})" if measured else "")


def mean_and_sd(value) -> str:
    """'0.52 ± 0.03'; '' for anything but two numbers."""
    if not (isinstance(value, list) and len(value) == 2 and all(is_number(v) for v in value)):
        return ""
    return f"{digits(value[0], 3)} ± {digits(value[1], 2)}"


def digits(value: float, count: int) -> str:
    """So many significant digits, and all before the point."""
    text = f"{value:.{count}g}"
    return f"{value:.0f}" if abs(float(text)) >= 10**count else text  # 999.6 too, which would become 1e+03


def figures_of(found: dict) -> list[str]:
    """The cells of a row, as `12.3 ± 0.4`."""
    cells = []
    for name, (_, scale) in COLUMNS.items():
        value, error = found.get(name), found.get(ERRORS.get(name, ""))
        text = digits(scale * value, 3) if is_number(value) else ""
        cells.append(text + (f" ± {digits(scale * error, 2)}" if text and is_number(error) else ""))
    return cells


def more_figures(name: str, found: dict) -> str:
    """Diversity, copies and classes of one run."""
    rows = []
    for label, sides in child(found, "ms_ssim").items():
        values = {
            side: v.get("mean") for side, v in (sides.items() if isinstance(sides, dict) else ()) if isinstance(v, dict)
        }
        text = ", ".join(f"{side} {value:.3f}" for side, value in values.items() if is_number(value))
        rows.append([f"MS-SSIM of pairs, {label} (lower varies more)", text])
    for space in child(found, "copying"):
        f = child(child(found, "copying"), space)
        if text := copies_line(f):
            rows.append([f"copies by {space}", text])
    f = child(found, "class_fidelity")
    if is_number(f.get("accuracy")) and is_number(f.get("accuracy_of_heldout")):
        rows.append(["classes recognised", f"generated {f['accuracy']:.3f}, held-out {f['accuracy_of_heldout']:.3f}"])
    notes = found.get("notes")
    rows += [["note", note] for note in notes] if isinstance(notes, list) else []
    return f"<details open><summary>{escape(name)}</summary>{table([], rows)}</details>" if rows else ""


SIGNIFICANT = 0.01  # chance below which a count is no accident


def copies_line(f: dict) -> str:
    """What one space says of copies, in a line; '' where it says nothing. Evaluations of older versions have no
    count."""
    if not (is_number(f.get("below_5th_percentile")) and is_number(f.get("relative_ratio"))):
        return ""
    text = (
        f"{100 * f['below_5th_percentile']:.1f} % nearer than the 5th percentile of held-out slices (5 % is even), "
        f"distance ratio {f['relative_ratio']:.2f} (1 is even)"
    )
    names = ("nearer_than_any", "nearer_than_any_expected", "four_times_nearer", "chance")
    found = [f[name] for name in names if is_number(f.get(name))]
    if len(found) < len(names):
        return text
    count, expected, four_times, chance = found
    verdict = f"COPIES (chance {chance:.1g}): look at the closest" if chance < SIGNIFICANT else "no more than chance"
    counts = f"{count:,.0f} nearer than any held-out slice ({expected:,.1f} expected), {four_times:,.0f} four times"
    return f"{counts} nearer: {verdict}; {text}"


def print_figures(figures: dict, features: str, data: dict, notes: list[str]) -> None:
    """The table for a person; metrics.json has the digits."""
    say(f"features: {features}")
    say(f"held-out: {data['heldout']['describe']}")
    say(f"{'':16}{'FID':>18}{'KID x 1000':>20}{'precision':>11}{'recall':>9}{'density':>9}{'coverage':>10}")
    for name, f in figures["distances"].items():
        fid, kid = f"{f['fid']:.2f} +- {f['fid_error']:.2f}", f"{1000 * f['kid']:.1f} +- {1000 * f['kid_sd']:.1f}"
        rest = f"{f['precision']:>11.3f}{f['recall']:>9.3f}{f['density']:>9.3f}{f['coverage']:>10.3f}"
        say(f"{name:16}{fid:>18}{kid:>20}{rest}")
    for name, sides in figures["ms_ssim"].items():
        say(f"MS-SSIM of pairs, {name}: " + ", ".join(f"{side} {v['mean']:.3f}" for side, v in sides.items()))
    for space, f in figures["copying"].items():
        say(f"copies by {space}: {copies_line(f)}")
    if "class_fidelity" in figures:
        f = figures["class_fidelity"]
        say(
            f"classes recognised: generated {f['accuracy']:.3f}, held-out {f['accuracy_of_heldout']:.3f}, "
            "held-out after "
            f"training on generated {f['train_on_generated']:.3f}"
        )
    for line in told_lines(figures):
        say(line)
    for note in notes:
        say(f"note: {note}")


def told_lines(figures: dict) -> list[str]:
    """Whether each column that a model is told shows in its pictures, and how good they are in each group."""
    lines = []
    for name, f in figures.get("obedience", {}).items():
        sides = {
            "generated": f["generated"],
            "held-out": f["held_out"],
            "held-out, learnt on generated": f["train_on_generated"],
        }
        said = [f"{side} {_agreement(values)}" for side, values in sides.items() if values]
        more = [f"{100 * f['rising']:.0f} % of steps rise"] if "rising" in f else []
        more += [f"moves {other} by {value:.2f}" for other, value in f["moves"].items()]
        lines.append(f"{name} obeyed: " + "; ".join(said + more))
    for name, found in figures.get("groups", {}).items():
        for group, f in found.items():
            if "kid" not in f:
                lines.append(
                    f"{name} {group}: {f['generated']} generated and {f['held_out']} held-out slices are too few"
                )
                continue
            train = f", training {1000 * f['kid_of_training']:.1f}" if "kid_of_training" in f else ""
            lines.append(
                f"{name} {group}: KID x 1000 {1000 * f['kid']:.1f}{train}, recall {f['recall']:.2f}, "
                f"coverage {f['coverage']:.2f} ({f['generated']} generated, {f['held_out']} held-out)"
            )
    return lines


def _agreement(f: dict) -> str:
    if "accuracy" in f:
        return f"{100 * f['accuracy']:.0f} % right"
    return f"r {f['r']:.2f}, error {f['mae']:.3g}, slope {f['slope']:.2f}"


# --- HTML -------------------------------------------------------------------------------------------------------------
def table(head: list, rows: list[list], numbers: bool = False) -> str:
    """Cells are escaped; `numbers` aligns all but the first column to the right."""

    def line(cells: list, tag: str) -> str:
        aligned = [f'{tag} class="n"' if numbers and i else tag for i in range(len(cells))]
        return (
            "<tr>"
            + "".join(f"<{a}>{escape(str(c)[:500])}</{tag}>" for a, c in zip(aligned, cells, strict=True))
            + "</tr>"
        )

    lines = (line(head, "th") if head else "") + "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>{lines}</table></div>'


def folded(title: str, values: dict) -> str:
    """A table of a JSON object behind a title; nested values as JSON."""
    if not values:
        return ""
    rows = [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in sorted(values.items())]
    return f"<details><summary>{escape(title)}</summary>{table([], rows)}</details>"


def figure(content: bytes, caption: str, kind: str = "png") -> str:
    """A picture inside of the page, with its caption."""
    data = base64.b64encode(content).decode()
    image = f'<img src="data:image/{kind};base64,{data}" alt="{escape(caption)}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def picture(path: Path, caption: str, inside: Path | None = None) -> str:
    """A PNG or GIF file as a figure; '' where there is none, or something else under its name, or a link that leads out
    of `inside`."""
    try:
        content = read_bytes(path, MAX_PICTURE, inside)
    except OSError:
        return ""
    kinds = {b"\x89PNG\r\n\x1a\n": "png", b"GIF89a": "gif", b"GIF87a": "gif"}
    return next((figure(content, caption, kind) for start, kind in kinds.items() if content.startswith(start)), "")


def pick(items: list, count: int) -> list:
    """Up to `count` of the items, evenly spread, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]


def json_of(run: RunDir, name: str) -> dict:
    """A JSON object of the run; {} where there is none. Figures that are not finite are None."""
    return read_object(run.path / name, run.path, nonfinite=True)[0]


def escape(text: object) -> str:
    """Text of others as text of a page, what does not print spelled out."""
    return html.escape(plain(text, keep="\n\t"))


def child(parent: dict, key: str) -> dict:
    """parent[key] where that is an object, else {}."""
    value = parent.get(key)
    return value if isinstance(value, dict) else {}
