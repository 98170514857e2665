"""Figures of predict.py as tables of the page and for a terminal: evaluations and reconstructions of runs."""

from __future__ import annotations

from data.files import is_number, say
from jobs.run.predictions import made
from jobs.run.rundir import RunDir
from jobs.view.markup import child, escape, json_of, table

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


def newest(run: RunDir, command: str) -> dict:
    """What the newest record of a command of predict.py holds; {} where there is none."""
    found = made(run.path, command)
    return json_of(run, str(found[0].relative_to(run.path))) if found else {}


def evaluations(runs: list[RunDir], names: list[str]) -> list[str]:
    """A table for each kind of features, held-out set and number of slices: figures of different ones are in different
    units, or biased differently, and never set side by side."""
    groups: dict[tuple[str, str, str], list[tuple[str, dict]]] = {}
    for run, name in zip(runs, names, strict=True):
        found = newest(run, "evaluate")
        heldout = child(child(found, "data"), "heldout")
        if isinstance(found.get("distances"), dict):
            key = str(child(found, "settings").get("features")), str(heldout.get("digest")), str(found.get("compared"))
            groups.setdefault(key, []).append((name, found))
    parts = ["<h3>Evaluation</h3>"] if groups else []
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
        found = newest(run, "reconstruct")
        figures = child(found, "mean and sd over subjects")
        if figures:
            cells = [mean_and_sd(figures.get(score)) for score in RECONSTRUCTION]
            row = [name + weights_of(found), *cells]
            groups.setdefault((str(found.get("data")), str(found.get("slices"))), []).append(row)
    parts = ["<h3>Reconstruction</h3>"] if groups else []
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
    names = {"r": "r", "mae": "error", "slope": "slope"}
    return ", ".join(f"{word} {f[name]:.3g}" for name, word in names.items() if name in f)
