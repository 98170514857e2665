"""`card`: what a run's weights are, in the form of a model card of the Hugging Face Hub (Mitchell 2019). Torch-free.

It stands beside the weights as README.md: metadata as YAML, then use, data, figures, limits, licence. It says what the
run itself says and leaves to a person what only a person knows; it names no folder, host, or person.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from data.files import atomic_write, is_number, is_phantom, plain, read_bytes, say, sha256_of
from jobs.config import kinds
from jobs.config.specs import ConfigError
from jobs.config.version import version
from jobs.predict.named import UsageError, run_of, weights_of
from jobs.run.predictions import made
from jobs.run.rundir import RunDir
from jobs.view import figures, markup, report
from jobs.view.metrics import read_metrics

NAMES = {"stylegan2": "StyleGAN2", "vae": "KL-VAE", "diffusion": "diffusion U-Net"}
TASKS = {"vae": "image-to-image"}  # of the Hub; the others generate
USE = {
    "stylegan2": "draws single slices from random latents",
    "vae": "turns single slices into latents and back, for a diffusion network in between",
    "diffusion": "draws single slices from noise",
}
FIRST = {"vae": "reconstruct"}  # of predict.py; the others generate
LIMITS = (  # of whatever such a model draws
    "Single slices: neighbours of one brain are not drawn, and nothing makes volumes of them.",
    "It repeats whom the data hold: ages, scanners, sites and positions that go with a class are learnt with it.",
    "Good figures mean that sets of pictures are alike in some features; they prove neither anatomy nor use for "
    "a task.",
)
PASSED_ON = "ADNI and OASIS may not be passed on."
MARK = "<!-- predict.py card "  # begins the last line, which holds the SHA-256 of all above


def card(named: str, out: str = "") -> None:
    """Write the card of a run. UsageError where --out is a folder; ConfigError where there are no weights, or the card
    that is there was edited by hand."""
    run = RunDir(run_of(named).resolve())
    weights, config = weights_of(str(run.path)), run.read_config()
    jobs = kinds.jobs_of(config or {})
    if not config or not jobs:
        raise ConfigError(f"{run.path}: no config.json, so it is no run directory; give the folder of a run")
    path = Path(out) if out else run.path / "README.md"
    if path.is_dir():
        raise UsageError(f"--out {path}: a folder; name a file in it")
    check_own(path)
    text = write(run, jobs[0], config, sha256_of(weights))
    atomic_write(path, f"{text}{MARK}{hashlib.sha256(text.encode()).hexdigest()} -->\n")
    say(f"model card of {run.path.name}{'; fill in what only you know' * ('filled in by hand' in text)}\n  {path}")


def check_own(path: Path) -> None:
    """ConfigError where a file is there that is no card as it was written."""
    try:
        text = read_bytes(path).decode(errors="replace")
    except FileNotFoundError:
        return
    body, _, mark = text.rpartition(MARK)
    if mark[:64] != hashlib.sha256(body.encode()).hexdigest():
        raise ConfigError(f"{path}: is edited or no card of predict.py; move it away, or name another file with --out")


def write(run: RunDir, job: str, config: dict, sha256: str) -> str:
    """The card as text."""
    evaluated, rebuilt = (of_weights(run, command, sha256) for command in ("evaluate", "reconstruct"))
    data = str(config.get("data") or "unknown")
    phantom = is_phantom(data)
    classes = markup.json_of(run, "data.json").get("classes") if config.get("conditional") else None
    pixels = f"{config.get('resolution', '?')} px, {'grey' if config.get('channels') == 1 else 'colour'}"
    of = f", of the classes {', '.join(quoted(c) for c in classes)}" if isinstance(classes, list) and classes else ""
    status = run.read_status()
    facts = report.facts(run, status, config)
    parts = [
        metadata(run.path.name, job, Path(data).name, phantom, evaluated),
        f"# {quoted(run.path.name)}",
        f"A {NAMES.get(job, job)} that {USE.get(job, 'makes slices')}: brain MRI, {pixels}{of}.",
        sample(run),
        "## Intended use",
        "Research and teaching: image synthesis, augmentation of training sets, methods of evaluation.\n\n"
        "Not for diagnosis, treatment, or any decision about a person. Not as evidence about a disease: what a class "
        "looks like here is what a network made of some pictures. Not to find out who is in the training data.",
        "## Data",
        about_data(Path(data).name, phantom, evaluated, rebuilt),
        "## Training",
        table(["", ""], [
            ["images seen", facts["images seen"]],
            ["state", facts["state"]],
            ["preset", facts["preset"]],
            ["batch", config.get("batch", "?")],
            ["cost", facts["cost"]],
            ["software", software(run)],
        ]),
        "## Figures",
        *figures_text(run, job, evaluated, rebuilt),
        "## Limits",
        limits(status, phantom),
        "## Licence",
        licence(phantom),
        "## Use",
        f"```bash\npython predict.py {FIRST.get(job, 'generate')} --weights weights.safetensors\n```\n\n"
        f"`weights.safetensors` holds the averaged network and no pickle; SHA-256 `{sha256}`.",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def of_weights(run: RunDir, command: str, sha256: str, settings: Mapping = MappingProxyType({})) -> dict:
    """The newest record of a command that is of these very weights, and of `settings`; {} where there is none."""
    alike = {**settings, "weights_sha256": sha256}
    found = (markup.json_of(run, str(path.relative_to(run.path))) for path in made(run.path, command))
    return next((one for one in found if alike.items() <= markup.child(one, "settings").items()), {})


# --- its parts --------------------------------------------------------------------------------------------------------
def metadata(name: str, job: str, data: str, phantom: bool, evaluated: dict) -> str:
    """The YAML block that the Hub reads. JSON strings are YAML."""
    task = TASKS.get(job, "unconditional-image-generation")
    lines = ["license: mit"] if phantom else ["license: other", "license_name: terms-of-the-training-data"]
    lines += ["library_name: pytorch", f"pipeline_tag: {task}", "tags:", "- mri", "- brain", "- medical", f"- {job}"]
    found = markup.child(markup.child(evaluated, "distances"), "generated")
    measured = [(key, found[key]) for key in figures.COLUMNS if is_number(found.get(key))]
    if measured:
        lines += [
            "model-index:",
            f"- name: {json.dumps(plain(name))}",
            "  results:",
            "  - task:",
            f"      type: {task}",
        ]
        lines += [
            "    dataset:",
            "      type: images",
            f"      name: {json.dumps(plain(data))}",
            "      split: held-out",
        ]
        lines += ["    metrics:"]
        features = plain(markup.child(evaluated, "settings").get("features"))
        for key, value in measured:  # an FID of one encoder is not that of another
            title = json.dumps(f"{key} of {features}"[:200])
            lines += [f"    - type: {key}", f"      name: {title}", f"      value: {value:.6g}"]
    return "\n".join(["---", *lines, "---"])


def sample(run: RunDir) -> str:
    """The newest picture of what it makes, by its place in the run."""
    grids = sorted(path for path in run.samples.glob("*.png") if path.name[0].isdigit())
    shown = [path for path in (*made(run.path, "generate", "grid.png"), *grids[-1:]) if path.is_file()]
    return f"![what it makes]({shown[0].relative_to(run.path).as_posix()})" if shown else ""


def about_data(data: str, phantom: bool, evaluated: dict, rebuilt: dict) -> str:
    """What it learnt from, as far as the run knows; whose they are it does not."""
    lines = [f"* {quoted(data)}"]
    sides = markup.child(evaluated, "data")
    for name, words in (("train", "training"), ("heldout", "held-out, never trained on")):
        side = markup.child(sides, name)
        if side:
            lines.append(f"* {words}: {quoted(side.get('slices'))} slices of {quoted(side.get('subjects'))} people")
            lines.append(f"  ({quoted(side.get('describe'))[:300]})")
    if rebuilt:
        lines.append(f"* measured on {quoted(rebuilt.get('slices'))} slices ({quoted(rebuilt.get('data'))[:300]})")
    lines.append(
        "* Phantoms are drawn by a program: they are of nobody."
        if phantom
        else "* **To be filled in by hand:** whose data these are, how they were recorded, consent, terms of use."
    )
    return "\n".join(lines)  # fmt: skip


def software(run: RunDir) -> str:
    """Versions, without the machine that they were on."""
    about = markup.json_of(run, "provenance.json")
    commit = f", commit {about['git_commit'][:8]}" if isinstance(about.get("git_commit"), str) else ""
    return f"brain-slice-generators {about.get('version', version())}{commit}; torch {about.get('torch', 'unknown')}"


def figures_text(run: RunDir, job: str, evaluated: dict, rebuilt: dict) -> list[str]:
    """What was measured of these very weights, else what was while they trained, else how to measure."""
    if means := markup.child(rebuilt, "mean and sd over subjects"):
        cells = [figures.mean_and_sd(means.get(score)) for score in figures.RECONSTRUCTION]
        return [table(list(figures.RECONSTRUCTION.values()), [cells]), "Mean ± standard deviation over people."]
    distances = markup.child(evaluated, "distances")
    if not distances:
        best = kinds.best_text((read_metrics(run.metrics) or [{}])[-1])
        so_far = f"While it trained: best {best}. " if best else ""
        what = "reconstruct" if job == "vae" else "evaluate"
        return [
            f"{so_far}These weights have not been measured on their own: `predict.py {what}` does, then `card` again."
        ]
    names = (("generated", "generated slices"), ("training slices", "real training slices"))
    rows = [[words, *figures.figures_of(markup.child(distances, name))] for name, words in names]
    lines = [
        f"* copies by {space}: {figures.copies_line(markup.child(markup.child(evaluated, 'copying'), space))}"
        for space in ("pixels", "features")
    ]
    found = markup.child(evaluated, "class_fidelity")
    if is_number(found.get("accuracy")) and is_number(found.get("accuracy_of_heldout")):
        lines.append(
            f"* classes recognised: {found['accuracy']:.3f} of generated slices, "
            f"{found['accuracy_of_heldout']:.3f} of held-out ones"
        )
    notes = evaluated.get("notes")
    lines += [f"* {quoted(note)}" for note in notes] if isinstance(notes, list) else []
    features = quoted(markup.child(evaluated, "settings").get("features"))
    return [
        table(["against held-out slices", *(title for title, _ in figures.COLUMNS.values())], rows),
        f"Features: {features}. Figures of other features, or of other numbers of slices, are in other units.",
        "\n".join(lines),
    ]  # fmt: skip


def limits(status: dict, phantom: bool) -> str:
    """What the figures do not prove."""
    lines = [f"* {line}" for line in LIMITS]
    if not phantom:
        lines.append("* No figure proves that nobody can be recognised: weights may hold slices of the training set.")
    if isinstance(verdict := status.get("verdict"), str) and verdict:
        lines.append(f"* The run itself says: **{quoted(verdict)}**")
    return "\n".join(lines)  # fmt: skip


def licence(phantom: bool) -> str:
    """The code's, and what the data say of the weights."""
    if phantom:
        return "MIT, as the program is that made the data and the weights."
    return (
        "The program is under the MIT licence. The weights fall under the terms of use of the data that they were "
        "trained on: **to be filled in by hand, before they are shared.** " + PASSED_ON
    )


def table(head: list, rows: list[list]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *([quoted(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def quoted(text: object) -> str:
    """Text of others for Markdown: on one line, no markup, folders cut from paths."""
    short = re.sub(r"(?<![\w.])/(?:[^\s/;,()]+/)*", "", plain(text))
    return re.sub(r"[\\`*\[\]|<>#]", lambda found: f"&#{ord(found[0])};", short.replace("&", "&amp;"))
