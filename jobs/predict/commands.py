"""The commands of predict.py that run a model: from flags to plain arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from data.files import read_bytes, words
from jobs.config import kinds
from jobs.config.specs import ConfigError
from jobs.predict.cohort import PER_CLASS, Cohort
from jobs.predict.conditions import Asked, class_named, parse_set, parse_vary, read_rows
from jobs.predict.denoiser import DiffusionModel
from jobs.predict.direction import Strip, direction, named_ends
from jobs.predict.evaluate import evaluate
from jobs.predict.explore import explore
from jobs.predict.export import export
from jobs.predict.features import Reference
from jobs.predict.films import check_frames, denoise, interpolate, mix
from jobs.predict.flags import CALLS_COMMANDS, command_line
from jobs.predict.generate import generate
from jobs.predict.named import UsageError, run_of, weights_file, weights_of
from jobs.predict.output import Output, output_of
from jobs.predict.project import project, targets_of
from jobs.predict.reconstruct import reconstruct, slices_of
from jobs.predict.release import release
from jobs.predict.trained import Trained, open_model
from jobs.predict.tsne import tsne
from jobs.predict.vary import vary
from jobs.run.rundir import RunDir

MAX_TERMS = 64 << 10  # bytes


# --- from flags to arguments ------------------------------------------------------------------------------------------
def model_of(args: argparse.Namespace) -> Any:
    """The model that --run or --weights names, of a job that this command takes.

    UsageError for flags of another kind of model.
    """
    model = open_model(
        weights(args), device=args.device, jobs=jobs_of(args.command), **opening(args), square=args.square
    )
    check_flags(args, model)
    return model


def jobs_of(command: str) -> list[str]:
    """The jobs whose models this command takes."""
    return [name for name, job in kinds.JOBS.items() if command in job.predicts]


def weights(args: argparse.Namespace) -> Path:
    """The weights file that --weights, or --run with --at, names."""
    if args.weights and args.at != "last":
        raise UsageError(f"--at {args.at} is of a run; name it with --run, or leave --at out")
    return weights_file(args.weights) if args.weights else weights_of(args.run, args.at)


def opening(args: argparse.Namespace) -> dict:
    """How a model is opened: precision and pictures per pass."""
    return {"precision": args.precision, "batch": args.batch}


def check_flags(args: argparse.Namespace, model: Trained) -> None:
    """UsageError for a flag that only other kinds of model have."""
    own = {flag.name for flag in model.FLAGS}
    others: list[type[Trained]] = [job.model() for job in kinds.JOBS.values()]
    for kind in others:
        for flag in kind.FLAGS:
            if flag.name not in own and getattr(args, flag.place, flag.unset) != flag.unset:
                named = "--calls" if flag.place == "calls" and args.command in CALLS_COMMANDS else flag.name
                see = f", see {model.FLAGS[0].name}" if model.FLAGS else ""
                raise UsageError(f"{named} is a flag of a {kind.KIND}; this is a {model.KIND}{see}")


def how_of(args: argparse.Namespace, model: Trained) -> dict:
    """What `sample` of this kind of model takes, as far as it was asked for."""
    asked = {flag.argument: getattr(args, flag.place) for flag in model.FLAGS if flag.argument}
    return {argument: value for argument, value in asked.items() if value is not None}


def varied(args: argparse.Namespace) -> list[str]:
    """The columns that --vary names."""
    found = getattr(args, "vary", None) or []
    return [found] if isinstance(found, str) else found


def asked(args: argparse.Namespace, model: Trained) -> Asked:
    """What --class and --set ask for. UsageError for what the model is not told, before anything is written."""
    row = parse_set(args.row)
    if held := [word for word in varied(args) if word.partition("=")[0] in row]:
        raise UsageError(f"--vary {held[0]}: --set holds this column; leave one of them out")
    if row and args.label != "all":
        row = {"class": class_named(args.label, model.classes)} | row
    label: Asked = row or args.label
    model.labels(label, [0])
    return label


def row_of(label: Asked, model: Trained) -> dict:
    """The same as a row; of `all`, in which nothing is held, an empty one."""
    if isinstance(label, Mapping):
        return dict(label)
    return {} if label == "all" else {"class": class_named(str(label), model.classes)}


def output(args: argparse.Namespace, model: Trained, command: str = "", form: str = "") -> Output:
    """Where a command writes what it makes of a model."""
    return output_of(args, model.nimg, command, form)


# --- the commands -----------------------------------------------------------------------------------------------------
def run_generate(args: argparse.Namespace) -> None:
    """`predict.py generate`: from flags to plain arguments."""
    if args.seeds:
        no_use("--seeds", number=args.number, seed=args.seed, like=args.like, vary=args.vary)
    if args.vary:
        no_use("--vary", like=args.like, format=args.format != "png")
    model = model_of(args)
    label = asked(args, model)
    how = how_of(args, model)
    model.settings(**how)  # and what this model cannot do
    if args.vary:
        row = row_of(label, model)
        vary(model, output(args, model, "vary"), along=args.vary, row=row, number=args.number, seed=args.seed, **how)
        return
    rows = like(args, model)
    number, seed = (args.seeds, None) if args.seeds else (args.number or len(rows) or 64, args.seed)
    generate(model, output(args, model), number=number, seed=seed, label=rows or label, form=args.format, **how)


def no_use(flag: str, **others: object) -> None:
    """UsageError where one of the other flags is given too."""
    for other, given in others.items():
        if given:
            raise UsageError(f"--{other} has no use with {flag}; leave one of them out")


def like(args: argparse.Namespace, model: Trained) -> list[dict]:
    """The rows of --like, with what --class and --set hold; [] without it. UsageError for what the model is not
    told."""
    if not args.like:
        return []
    if not model.columns:
        raise UsageError("--like: this model is conditioned on no column but the class; use --class")
    rows, own = read_rows(args.like, model.columns), row_of(asked(args, model), model)
    if both := set(own) & set(rows[0]):
        raise UsageError(f"--like {args.like}: it has {min(both)}, and so have --set and --class; use one of them")
    rows = [{**own, **row} for row in rows]
    model.labels(rows, range(len(rows)))  # every row, before anything is written
    return rows


class Words(argparse.ArgumentParser):
    """The command line, of which a wrong word is an error of the page that typed it."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def run_explore(args: argparse.Namespace) -> None:
    """`predict.py explore`: what the page shows is what the command line beside it makes, read by the same code."""
    model, parser = model_of(args), command_line("", Words)
    which = ["--weights" if args.run.endswith(".safetensors") else "--run", args.run]
    which += ["--at", args.at] * (args.at != "last") + ["--device", args.device] * (args.device != "auto")

    def draw(words: list[str]) -> np.ndarray:
        given = parser.parse_args(words)
        label = asked(given, model)
        return model.squared().sample(indices=[0], seed=given.seed, label=label, **how_of(given, model))

    explore(model, draw, which, data=args.data or "", port=args.port, announce=args.announce)


def run_denoise(args: argparse.Namespace) -> None:
    """`predict.py denoise`: from flags to plain arguments."""
    model = model_of(args)
    label = asked(args, model)
    how = how_of(args, model)
    model.way(**how)
    denoise(model, output(args, model), number=args.number, seed=args.seed, label=label, fps=args.fps, **how)


def run_reconstruct(args: argparse.Namespace) -> None:
    """`predict.py reconstruct`: from flags to plain arguments."""
    model = model_of(args)
    pack = slices_of(model, args.data, args.split)
    reconstruct(model, pack, output(args, model), number=args.number, split=args.split, batch=args.batch)


def run_mix(args: argparse.Namespace) -> None:
    """`predict.py mix`: from flags to plain arguments."""
    model = model_of(args)
    label = asked(args, model)
    mix(
        model,
        output(args, model),
        rows=args.rows,
        cols=args.cols,
        styles=args.styles,
        seed=args.seed,
        label=label,
        truncation=args.truncation,
        truncation_cutoff=args.truncation_cutoff,
    )


def run_interpolate(args: argparse.Namespace) -> None:
    """`predict.py interpolate`: from flags to plain arguments."""
    check_frames(args.number, args.steps)
    model = model_of(args)
    if isinstance(model, DiffusionModel):
        how = {"sampler": args.sampler, "calls": args.calls, "guidance": args.guidance}
        model.still_way(*how.values())
    else:
        how = {"truncation": args.truncation, "truncation_cutoff": args.truncation_cutoff, "space": args.space or "w"}
    label, number = asked(args, model), args.number
    if args.vary:
        name, values = parse_vary(args.vary, model.columns)
        label = [{**row_of(label, model), name: value} for value in values + values[-2:0:-1]]
        number = len(label)
        check_frames(number, args.steps)
        model.labels(label, range(number))
    interpolate(
        model, output(args, model), number=number, steps=args.steps, seed=args.seed, label=label, fps=args.fps, **how
    )


def run_evaluate(args: argparse.Namespace) -> None:
    """`predict.py evaluate`: from flags to plain arguments."""

    def open_on(device: torch.device) -> Any:
        model = open_model(weights(args), device=device, jobs=jobs_of("evaluate"), **opening(args), square=args.square)
        check_flags(args, model)
        return model

    evaluate(open_on, partial(output, args), number=args.number, seed=args.seed, label_of=partial(asked, args),
             reference=reference(args), how_of=partial(how_of, args), device=args.device)  # fmt: skip


def reference(args: argparse.Namespace) -> Reference:
    """The slices and the network that features are measured with."""
    return Reference(args.data or "", args.feature_weights)


def run_tsne(args: argparse.Namespace) -> None:
    """`predict.py tsne`: from flags to plain arguments."""
    model = model_of(args)
    tsne(
        model,
        output(args, model),
        number=args.number,
        seed=args.seed,
        label=asked(args, model),
        reference=reference(args),
        how=how_of(args, model),
    )


def run_project(args: argparse.Namespace) -> None:
    """`predict.py project`: from flags to plain arguments."""
    model = model_of(args)
    pack = targets_of(model, args.data)
    project(model, pack, output(args, model), number=args.number, steps=args.steps, seed=args.seed)


def run_direction(args: argparse.Namespace) -> None:
    """`predict.py direction`: from flags to plain arguments."""
    model = model_of(args)
    how = {"sampler": args.sampler, "steps": args.calls, "guidance": args.guidance}
    if isinstance(model, DiffusionModel):
        model.still_way(*how.values())
    ends = (args.start or "", args.end or "")
    if model.columns:  # wrong ones before anything is written
        for name in named_ends(ends, model):
            model.labels(parse_set(name.split(",")), [0])
    strip = Strip(args.rows, args.steps, args.strength)
    how = how if isinstance(model, DiffusionModel) else {}
    direction(model, output(args, model), ends=ends, strip=strip, seed=args.seed, reference=reference(args), **how)


def run_export(args: argparse.Namespace) -> None:
    """`predict.py export`: from flags to plain arguments."""
    model = model_of(args)
    export(model, output(args, model, form=args.format), args.format)


def terms_of(path: str) -> str:
    """The text of --terms, of an editor of any system. UsageError where there is none."""
    try:
        text = read_bytes(path, MAX_TERMS).decode("utf-8-sig")
        if found := "\n".join(text.splitlines()).strip():
            return found
        raise ValueError("nothing is written in it")
    except (OSError, ValueError) as error:
        raise UsageError(f"--terms {path}: {words(error)}; give a small file of text") from None


def run_release(args: argparse.Namespace) -> None:
    """`predict.py release`: from flags to plain arguments."""
    if args.out and Path(args.out).name in ("", ".."):
        raise UsageError(f"--out {args.out}: a release takes the name of a folder that is not there yet; name one")
    terms = terms_of(args.terms) if args.terms else ""
    model = model_of(args)
    label, how = asked(args, model), how_of(args, model)
    rows = like(args, model)
    each = 1 if rows else PER_CLASS
    cohort = Cohort.of(model, rows or label, args.number or each)
    args.number = None if args.number == each else args.number  # typed out or not, the folder has the same name
    run = RunDir(run_of(args.run)) if args.run else None
    out = output(args, model).folder
    release(model, out, cohort, seed=args.seed, reference=reference(args), run=run, terms=terms, how=how)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "generate": run_generate,
    "denoise": run_denoise,
    "explore": run_explore,
    "reconstruct": run_reconstruct,
    "mix": run_mix,
    "interpolate": run_interpolate,
    "evaluate": run_evaluate,
    "tsne": run_tsne,
    "project": run_project,
    "direction": run_direction,
    "export": run_export,
    "release": run_release,
}


def run(args: argparse.Namespace) -> None:
    """Run the command that `args` name. ConfigError where the GPU's memory does not hold its batch."""
    try:
        COMMANDS[args.command](args)
    except torch.OutOfMemoryError:
        what = f"the GPU's memory does not hold {args.batch} pictures at once"
        raise ConfigError(f"{what}; use a smaller --batch") from None
