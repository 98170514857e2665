"""`release`: a synthetic cohort to share: slices of which each passed the screening, in folders that the toolkit and
torchvision's ImageFolder read, with a manifest, checksums and a datasheet.

It is made in a folder beside, OUT.part, and takes its name when it is whole. The same command goes on where it was.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.files import is_phantom, parse_json, say
from data.walk import DataError
from jobs.config.specs import ConfigError
from jobs.config.version import version
from jobs.predict import datasheet, verify
from jobs.predict.card import of_weights
from jobs.predict.cohort import Asking, Cohort, Drawing
from jobs.predict.conditions import Asked
from jobs.predict.evaluate import distances_of
from jobs.predict.features import (
    MIN_HELDOUT,
    Images,
    RealSlices,
    Reference,
    data_of,
    given_features,
    measure,
    open_data,
    open_features,
    rows_of,
    told_apart,
)
from jobs.predict.learnt import unsure
from jobs.predict.release_folder import Work, is_there, write_terms
from jobs.predict.screening import Screen, told_columns
from jobs.predict.trained import Trained
from jobs.run.rundir import RunDir
from jobs.training import ranks

FORMAT = 1  # of a release's files
OWN = ("seed", "slices", "size")  # settings in which an evaluation of the same model may differ


def release(
    model: Any,
    out: Path,
    cohort: Cohort,
    *,
    seed: int = 0,
    reference: Reference = Reference(),
    run: RunDir | None = None,
    terms: str = "",
    how: dict,
) -> None:
    """Write a release as the folder `out`.

    run: of the weights, where they are those of one: what it says of its data and its evaluation. terms: of use of the
    source data, as text. how: what model.sample takes beside number, seed and label. ConfigError where `out` holds
    something else, or too many slices fail.
    """
    given = given_features(reference.feature_weights)
    try:
        real = open_data(model, reference.data)
    except DataError as error:
        need = "slices are screened against those that the model learnt from: name these with --data"
        raise ConfigError(f"{error}; {need}") from None
    why = unsure(model, real.train, run)
    out.parent.mkdir(parents=True, exist_ok=True)
    rt = ranks.Runtime(0, 1, 0, model.device, torch.get_num_threads())
    network, features = open_features(given, real.train, out.parent, rt)
    key = {
        "format": FORMAT,
        "version": version(),
        "torch": torch.__version__,
        "settings": model.settings(seed=seed, label=cohort.label, **how) | {"slices": cohort.number},
        "features": f"{features.partition(',')[0]}, {features[-12:]}" if given else features,  # without a file's name
        "digests": [real.train.digest, real.heldout.digest],
    }
    key = parse_json(json.dumps(key))  # as it will be read
    if is_there(out, key):
        about = write_terms(out, terms)
    else:
        work = Work(out)
        work.begin(key)
        train, heldout = (
            measure(rt, network, partial(rows_of, pack), len(pack), what)
            for pack, what in ((real.train, "training slices"), (real.heldout, "held-out slices"))
        )
        asking = Asking.of(model, cohort)
        screen = Screen(model, real, train, heldout, asking.values)
        drawn = Drawing(model, asking, screen, work, seed, network, squares_of(model, seed, cohort.label, how))
        drawn.fill()
        about = (
            key | about_model(model, run, key["settings"] | {"data": real.digest, "features": features}) | drawn.about()
        )
        about |= {"figures": {}, "terms": terms}
        about["data"] = about_data(model, real, reference, why)
        if cohort.number >= MIN_HELDOUT:
            kept = torch.from_numpy(np.concatenate(drawn.features)).to(train[0].device)
            about["figures"] = distances_of(kept, train[0], heldout[0], seed)
        work.finish(about, dict(drawn.files.values()), drawn.manifest())
    tell(out, about, f"{model.path} ({model.seen})")


def squares_of(model: Any, seed: int, label: Asked, how: dict) -> Images:
    """The training squares of indices, in the passes that `generate` makes: on a CPU the same bits."""
    model = model.squared()
    return lambda indices: torch.from_numpy(model.sample(indices=list(indices), seed=seed, label=label, **how))


def tell(out: Path, about: dict, source: str) -> None:
    """What was made, of what, and what is missing."""
    drawn = sum(found["drawn"] for found in about["screening"]["classes"].values())
    say(f"{datasheet.sum_of(about):,} slices of {drawn:,} drawn ones, from {source}")
    for name in (verify.SPLIT, verify.MANIFEST, verify.SHEET, verify.PAGE, verify.SUMS):
        say(f"  {out / name}")
    if datasheet.unfilled(about):
        say("whose the source data are, and on which terms, is missing: the same command with --terms FILE adds it")


# --- what it is made of -----------------------------------------------------------------------------------------------
def about_data(model: Trained, real: RealSlices, reference: Reference, why: str) -> dict:
    """Counts of slices and people, and how the folder was recognised: no name, no path. why: as of learnt.unsure."""
    found = real.about()
    sides = {side: {"slices": of["slices"], "people": of["subjects"]} for side, of in found.items()}
    layout, phantom = found["train"]["describe"].partition(":")[0], is_phantom(data_of(model, reference.data))
    return {"phantom": phantom, "layout": layout, "kind": told_apart(real.train), "why": why, **sides}


def about_model(model: Trained, run: RunDir | None, settings: dict) -> dict:
    """What the weights are; of the run its evaluation alone, where that is of these very weights, drawn and measured
    with these settings."""
    alike = {name: value for name, value in settings.items() if name not in OWN}
    found = of_weights(run, "evaluate", model.sha256, alike) if run else {}
    about = {"kind": model.KIND, "resolution": model.resolution, "nimg": model.nimg, "measured": model.measured}
    return {
        "model": about,
        "size": list(model.size[::-1]),
        "channels": model.channels,
        "columns": [column.name for column in told_columns(model)],
        "evaluate": datasheet.evaluation(found) if found else {},
    }
