"""What --help of a train script prints, and what a flag that is none is called here. Torch-free, and without tyro: both
answer at once."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data.files import say
from jobs.config.specs import AUTO, TrainConfig

# What most people need first; of the last three each kind has one.
FIRST = "data preset run config resolution batch total_kimg lr dry_run gamma down vae".split()
# Flags of the command line alone, which no configuration holds.
OWN = {
    "config": "A configuration to start from: the config.json of a run, or a TOML file (--dry-run --toml writes one). "
    "Flags override it.",
    "version": "Print the toolkit's version.",
}
WORDS = dict(config="FILE", run="DIR", data="SPEC", preset="NAME", init_from="RUN", vae="RUN", table="FILE")
LEFT, WIDEST = 26, 110  # columns

# How flags are called elsewhere: here another flag, or another way.
ELSEWHERE = {
    "batch-size": "--batch", "learning-rate": "--lr", "img-size": "--resolution", "image-size": "--resolution",
    "size": "--resolution", "kimg": "--total-kimg", "data-dir": "--data", "data-path": "--data", "dataset": "--data",
    "outdir": "--run DIR", "output-dir": "--run DIR", "cfg": "--config FILE, or --preset NAME",
    "fp16": "--precision fp16", "amp": "--precision", "random-seed": "--seed",
    "epochs": "--total-kimg, thousands of images: epochs x slices / 1000",
    "num-epochs": "--total-kimg, thousands of images: epochs x slices / 1000",
    "max-steps": "--total-kimg, thousands of images: steps x --batch / 1000",
    "gpus": "torchrun --nproc-per-node N -- SCRIPT ..., or launch.py --gpus N",
    "name": "--run runs/NAME, or launch.py --name NAME",
    "resume": "the same command again, or --run RUN: a run goes on by itself",
}  # fmt: skip


# --- flags that are none ----------------------------------------------------------------------------------------------
def flags_of(cls: type[TrainConfig]) -> set[str]:
    """Every flag of a train script, as it is typed."""
    kinds = get_type_hints(cls)
    names = {f.name.replace("_", "-"): kinds[f.name] for f in fields(cls)}
    no = {f"--no-{name}" for name, kind in names.items() if kind is bool}
    return {f"--{name}" for name in (*names, *OWN, "help")} | no


def refuse_unknown(cls: type[TrainConfig], argv: Sequence[str]) -> None:
    """Leave with code 2 where a flag is none of this class: a line for each, with the one that was meant."""
    known = flags_of(cls)
    typed = [word.partition("=")[0] for word in argv if word.startswith("--") and word != "--"]
    unknown = [flag for flag in dict.fromkeys(typed) if flag.replace("_", "-") not in known]
    for flag in unknown:
        say(f"error: {flag}: there is no such flag; {meant(flag, known)}", sys.stderr)
    if unknown:
        sys.exit(2)


def meant(flag: str, known: set[str]) -> str:
    """What a person who types this flag is looking for."""
    name = flag.removeprefix("--").replace("_", "-").lower()
    if name in ELSEWHERE:
        return f"here it is {ELSEWHERE[name]}"
    near = difflib.get_close_matches(f"--{name}", sorted(known), n=1, cutoff=0.75)
    return f"did you mean {near[0]}?" if near else "--help lists all there are"


# --- --help -----------------------------------------------------------------------------------------------------------
def help_text(base: TrainConfig, script: str) -> str:
    """The flags in groups, those that most people need first; `base` has the values that are used without flags."""
    about = described(type(base))
    width = min(shutil.get_terminal_size().columns, WIDEST)
    first = [name for name in FIRST if name in about or name in OWN]
    groups: dict[str, list[str]] = {"what you need first": first}
    for name, (group, _) in about.items():
        if name not in first:
            groups.setdefault(group, []).append(name)
    groups["help"] = [name for name in OWN if name not in first]
    lines = [f"usage: {script} [--preset NAME] [--data SPEC] [--run DIR] [flags]", ""]
    lines += textwrap.wrap(inspect.getdoc(type(base)) or "", width)
    for title, names in groups.items():
        lines += ["", f"{title}:"]
        for name in names:
            lines += entry(name, OWN.get(name) or about[name][1], base, width)
    return "\n".join(lines)


def entry(name: str, text: str, base: TrainConfig, width: int) -> list[str]:
    """The lines of one flag."""
    flag, kind, value = f"--{name.replace('_', '-')}", get_type_hints(type(base)).get(name), getattr(base, name, "")
    if kind is bool:
        word = f", --no-{flag[2:]}" if name not in ("dry_run", "override", "toml") else ""
        text += " (default: on)" if value else ""
    else:
        word = "" if name == "version" else f" {placeholder(name, kind)}"
        shown = "auto" if value == AUTO else f"{value:g}" if isinstance(value, float) else str(value)
        text += f" (default: {shown})" if shown else ""
    left = f"  {flag}{word}"
    lines = textwrap.wrap(text, width, initial_indent=" " * LEFT, subsequent_indent=" " * LEFT, break_on_hyphens=False)
    return [left, *lines] if len(left) > LEFT - 2 else [left + lines[0][len(left) :], *lines[1:]]


def placeholder(name: str, kind: Any) -> str:
    """What stands for the value of a flag: {a,b}, N, KIMG, ..."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(kind) if choice != "") + "}"
    unit = next((unit.upper() for unit in ("kimg", "minutes") if name.endswith(unit)), "X")
    return WORDS.get(name) or {int: "N", float: unit}.get(kind, "TEXT")


def described(cls: type[TrainConfig]) -> dict[str, tuple[str, str]]:
    """{field: (group, help text)} in the order of the fields: the headings and the docstrings of specs.py."""
    found: dict[str, tuple[str, str]] = {}
    for each in reversed(cls.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(each))
        headings = {
            i: line.strip("# -") for i, line in enumerate(source.splitlines(), 1) if re.match(r" *# --- ", line)
        }
        body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
        for field, text in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                name, words = field.target.id, ast.literal_eval(text.value)  # type: ignore[union-attr]
                group = max(((i, title) for i, title in headings.items() if i < field.lineno), default=(0, "the run"))[
                    1
                ]
                found[name] = (found.get(name, (group, ""))[0], " ".join(words.split()))
    return {f.name: found.get(f.name, ("the run", "")) for f in fields(cls)}
