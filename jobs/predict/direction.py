"""`direction`: the same brain with more and less of a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from data.columns import CLASS
from jobs.config.specs import ConfigError
from jobs.predict.conditions import parse_set
from jobs.predict.denoiser import DiffusionModel
from jobs.predict.features import Reference, given_features, measure, open_data, open_features
from jobs.predict.gan import GanModel
from jobs.predict.named import UsageError
from jobs.predict.output import Output
from jobs.training import ranks
from models import quality

SAMPLES = 512  # latents over which the classes' difference in w is averaged


class Step(NamedTuple):
    """From one class to another in w."""

    start: str
    end: str
    w: torch.Tensor  # (rows, w_dim) of the start class
    step: torch.Tensor  # (w_dim,)
    share_of_end: Callable[[np.ndarray], torch.Tensor] | None  # pictures -> whether each is recognised as the end class


class Strip(NamedTuple):
    """rows: latents to move. steps: pictures in a row. strength: 1 goes as far as the classes lie apart on average."""

    rows: int = 4
    steps: int = 7
    strength: float = 1.5


def direction(
    model: GanModel | DiffusionModel,
    out: Output,
    *,
    ends: tuple[str, str] = ("", ""),
    strip: Strip = Strip(),
    seed: int = 0,
    reference: Reference = Reference(),
    **how,
) -> None:
    """A strip per latent, from its own class to the other one and beyond.

    ends: the classes; AD and NC, or the first two, where they are ''. `how`: of a diffusion network, as its `way`.
    """
    rows, steps, strength = strip
    still = how if isinstance(model, DiffusionModel) else {"noise": "fixed"}
    settings = model.settings(seed=seed, **still) | {"rows": rows, "steps": steps, "strength": strength}
    settings |= {"ends": list(ends), "data": reference.data, "feature_weights": reference.feature_weights or ""}
    out = out.claim(model.nimg, settings)
    amounts = [strength * j / (steps - 1) for j in range(steps)]
    more: dict = {}
    if isinstance(model, DiffusionModel):
        start, end, told = told_ends(ends, model)
        images = blended_strip(model.squared(), told, amounts, rows, seed, how)
    else:
        step_of = (
            partial(told_step, model)
            if model.classes or model.columns
            else partial(probed_step, model.squared(), out, reference=reference)
        )
        found = step_of(ends, rows, seed)
        start, end = found.start, found.end
        ws = torch.stack([w + t * found.step for w in found.w for t in amounts])
        images = model.squared().synthesise(model.G.broadcast(ws))
        more = {"length": float(found.step.norm())}
        if found.share_of_end is not None:
            is_end = found.share_of_end(images).view(-1, steps)
            more["recognised_as_end"] = is_end.double().mean(0).tolist()
    labels = [{0.0: start, 1.0: end}.get(t, f"{t:.3g}") for t in amounts]
    note = f"Numbers: the way from {start} (0) to {end} (1)."
    out.grid("direction.png", model.original(images), steps, column_labels=labels, note=note)
    out.json("direction.json", model, settings | {"from": start, "to": end}, amounts=amounts, **more)
    what = f"{len(images) // steps} x {steps} pictures from {start} to {end}"
    out.tell(model, what, "direction.png", "direction.json")


def told_ends(ends: tuple[str, str], model: GanModel | DiffusionModel) -> tuple[str, str, list[torch.Tensor]]:
    """(name of the start, name of the end, what the network is told at each: (1, ...)); ConfigError where it is told
    nothing."""
    if model.columns:
        names = named_ends(ends, model)
        rows = [parse_set(name.split(",")) for name in names]
    elif model.classes:
        names = end_classes(ends, model.classes)
        rows = [{CLASS: name} for name in names]
    else:
        raise ConfigError(
            f"{model.path}: trained without classes, so nothing leads from one to the other; train with --conditional"
        )
    told = [model.labels(row, [0]) for row in rows]
    return *names, [of.to(model.device) for of in told if of is not None]


def blended_strip(
    model: DiffusionModel, ends: Sequence[torch.Tensor], amounts: Sequence[float], rows: int, seed: int, how: dict
) -> np.ndarray:
    """uint8 (rows * steps, C, H, W): the same noise denoised with the predictions of both ends, labels (1, ...), of
    which the end's has the share that `amounts` says; beyond 1 it is guidance away from the start."""
    a, b = ends
    way, images = model.still_way(how.get("sampler"), how.get("steps"), how.get("guidance")), []
    for i in tqdm(range(rows), unit=" rows", disable=None):
        noise = model.draw(seed, [i])
        for part in torch.tensor(amounts, device=model.device).split(model.batch):
            n = len(part)
            images.append(
                model.denoised(
                    noise.expand(n, -1, -1, -1),
                    a.repeat_interleave(n, 0),
                    way,
                    towards=b.repeat_interleave(n, 0),
                    share=part,
                )
            )
    return np.concatenate(images)


def told_step(model: GanModel, ends: tuple[str, str], rows: int, seed: int) -> Step:
    """The step in w of a generator that is told both ends: the same z, mapped with one and with the other."""
    start, end, told = told_ends(ends, model)
    z = model.draw_z(seed, range(SAMPLES))
    a, b = (model.map_latents(z, of.repeat_interleave(SAMPLES, 0)) for of in told)
    return Step(start, end, a[:rows], (b - a).mean(0), None)


def probed_step(
    model: GanModel, out: Output, ends: tuple[str, str], rows: int, seed: int, *, reference: Reference
) -> Step:
    """The step from class to class in w of a generator that is told nothing: a linear probe on features of real
    training slices sorts samples into classes, and then also judges the strip."""
    indices = list(range(SAMPLES))
    z = model.draw_z(seed, indices)
    rt = ranks.Runtime(0, 1, 0, model.device, torch.get_num_threads())
    given = given_features(reference.feature_weights)
    real = open_data(model, reference.data, print)
    start, end = end_classes(ends, list(real.train.classes))
    network, _ = open_features(given, real.train, out.folder, rt)
    train, _ = measure(
        rt, network, lambda r: torch.from_numpy(np.array(real.train.images[r])), len(real.train), "training slices"
    )
    labels = real.labels(real.train)
    known = labels >= 0
    probe = quality.LinearProbe(train[known], labels[known].to(train.device), len(real.train.classes))
    w = model.map_latents(z, None)

    def drawn(r: Sequence[int]) -> torch.Tensor:  # with the fixed noise of the strip
        return torch.from_numpy(model.synthesise(model.G.broadcast(w[r[0] : r[-1] + 1])))

    fake, _ = measure(rt, network, drawn, len(indices), "generated")
    found = probe.predict(fake)
    of_start, of_end = (found == real.train.classes.index(name) for name in (start, end))
    if min(int(of_start.sum()), int(of_end.sum())) < max(rows, 8):
        raise ConfigError(
            f"{model.path}: too few of {len(indices)} samples look like {start} or like {end}; train longer"
        )
    number = real.train.classes.index(end)

    def share_of_end(images: np.ndarray) -> torch.Tensor:
        return probe.predict(network(torch.from_numpy(images))) == number

    return Step(start, end, w[of_start][:rows], w[of_end].mean(0) - w[of_start].mean(0), share_of_end)


def named_ends(ends: tuple[str, str], model: GanModel | DiffusionModel) -> tuple[str, str]:
    """--from and --to of a model with columns, as COLUMN=VALUE, with commas for several; a class may stand alone.

    Where they are not given, two classes as of end_classes, else the ends of the first column's range.
    """
    if bool(ends[0]) != bool(ends[1]):
        raise UsageError(f"--from {ends[0] or '?'} --to {ends[1] or '?'}: name both ends, such as age=60 and age=85")
    first = model.columns[0]
    default = (f"{first.name}={first.low:g}", f"{first.name}={first.high:g}")
    if first.name == CLASS:
        default = end_classes(("", ""), model.classes)
    elif first.levels:
        default = (f"{first.name}={first.levels[0]}", f"{first.name}={first.levels[-1]}")
    chosen = [
        f"{CLASS}={name}" if name in model.classes else name
        for name in (given or own for given, own in zip(ends, default, strict=True))
    ]
    if chosen[0] == chosen[1]:
        raise UsageError(f"--from and --to are both {chosen[0]}; choose two, such as age=60 and age=85")
    return chosen[0], chosen[1]


def end_classes(ends: tuple[str, str], classes: list[str]) -> tuple[str, str]:
    """--from and --to; AD and NC, or the first two classes, where they are not given."""
    if len(classes) < 2:
        raise ConfigError("direction needs two classes, in the model or in the data; name labelled data with --data")
    default = ("AD", "NC") if {"AD", "NC"} <= set(classes) else (classes[0], classes[1])
    chosen = ends[0] or default[0], ends[1] or default[1]
    for name in chosen:
        if name not in classes:
            raise UsageError(f"--from/--to {name}: no such class; choose from {', '.join(classes)}")
    if chosen[0] == chosen[1]:
        raise UsageError(f"--from and --to are both {chosen[0]}; choose two of {', '.join(classes)}")
    return chosen
