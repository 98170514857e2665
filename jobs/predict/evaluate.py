"""`evaluate`: how good, how varied, copied or not: every figure beside the same figure of real slices."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from data.columns import cells_of, values_of
from data.files import say
from jobs.predict.conditions import Asked, classes_of, training_rows
from jobs.predict.features import (
    Images,
    RealSlices,
    Reference,
    evenly,
    generated,
    given_features,
    measure,
    open_data,
    open_features,
    rows_of,
)
from jobs.predict.obedience import STRIPS, Told, group_figures, obedience
from jobs.predict.output import Output
from jobs.predict.trained import Trained
from jobs.training import collectives, devices, randomness, ranks
from jobs.view.figures import print_figures
from jobs.view.pictures import PAIR_COLUMNS, pairs_picture
from jobs.view.progress import counted
from models import copies, quality

PAIR_POOL, PAIRS = 1000, 1000  # slices from which pairs are drawn, and pairs per class, for MS-SSIM
DISTANCES = {  # what the numbers in the pictures of the closest are
    space: f"Below each generated slice its nearest training slice and their distance: 1 - {what}. 0 is a copy."
    for space, what in (("pixels", "correlation of pixels, at the best move"), ("features", "cosine of features"))
}
Measured = tuple[torch.Tensor, torch.Tensor]  # features (N, D), thumbnails (N, C, s, s)


def evaluate(
    open_on: Callable[[torch.device], Any],
    output: Callable[[Any], Output],
    *,
    number: int = 5000,
    seed: int = 0,
    label_of: Callable[[Any], Asked] = lambda model: "all",
    reference: Reference = Reference(),
    how_of: Callable[[Any], dict] = lambda model: {},
    device: str = "auto",
) -> None:
    """metrics.json: generated slices against held-out ones, and training slices against held-out ones beside them.

    Runs on all ranks of a torchrun, if there are several. open_on(device): the model. output(model): where to.
    label_of(model): what it is told of each slice; `all` of a model with columns follows rows of the training slices.
    how_of(model): what its `sample` takes beside number, seed and label.
    """
    clock = [time.monotonic()]
    with ranks.Meeting() as meeting:
        rt = collectives.init_runtime(0, meeting, devices.choose_device(meeting, device))
    model = open_on(rt.device)
    how = how_of(model)
    label = label_of(model)
    given = given_features(reference.feature_weights)
    real = open_data(model, reference.data, say if rt.rank == 0 else lambda text: None)
    if model.columns and label == "all":
        label = training_rows(real.train, model.columns, number, seed)
    values = model.labels(label, list(range(number)))
    labels = classes_of(values, model.columns) if values is not None and model.classes else None
    settings = model.settings(seed=seed, label=label, **how)
    settings |= {"number": number, "data": real.digest, "feature_weights": reference.feature_weights or ""}
    out = output(model).claim(model.nimg, settings)
    network, features_name = open_features(given, real.train, out.folder, rt)
    images_of = generated(model.squared(), seed, label, how)
    clock.append(time.monotonic())
    fake = measure(rt, network, images_of, number, "generated")
    clock.append(time.monotonic())
    train = measure(rt, network, lambda r: rows_of(real.train, r), len(real.train), "training slices")
    heldout = measure(rt, network, lambda r: rows_of(real.heldout, r), len(real.heldout), "held-out slices")
    clock.append(time.monotonic())
    collectives.shutdown(rt)
    if rt.rank:
        return
    count = min(number, len(real.train))
    figures = {
        "distances": distances_of(fake[0], train[0], heldout[0], seed),
        "ms_ssim": diversity_of_pairs(model, real, images_of, labels, number, seed),
    }  # fmt: skip
    if labels is not None:
        sets = ((fake[0], labels), (train[0], real.labels(real.train)), (heldout[0], real.labels(real.heldout)))
        known = [(x[(y >= 0).to(x.device)], y[y >= 0].to(x.device)) for x, y in sets]
        if all(len(y) for _, y in known):
            figures["class_fidelity"] = quality.class_fidelity(known[0], known[1], known[2], len(model.classes))
    sides = fake[0], train[0], heldout[0]
    figures |= told_figures(model.squared(), network, real, values, sides, seed, how)
    figures["copying"] = copying_figures((fake, train, heldout), real, images_of, model, out)  # last: it writes
    clock.append(time.monotonic())
    notes = notes_on(model, real, count, number, int(fake[0].shape[1])) + notes_on_copies(figures["copying"])
    phases = ("start", "generated", "real slices", "figures")
    seconds = {name: round(b - a, 2) for name, (a, b) in zip(phases, pairwise(clock), strict=True)}
    settings["features"] = features_name
    about = real.about()
    more = {"data": about, "compared": count, **figures, "notes": notes, "ranks": rt.world, "seconds": seconds}
    out.json("metrics.json", model, settings, **more)
    print_figures(figures, features_name, about, notes)
    out.tell(model, f"{number} slices evaluated", "metrics.json", "copies-pixels.png", "copies-features.png")


def distances_of(fake: torch.Tensor, train: torch.Tensor, heldout: torch.Tensor, seed: int) -> dict[str, dict]:
    """Figures of generated features (N, D) and of as many training ones, both against held-out ones."""
    count = min(len(fake), len(train))
    spread = torch.from_numpy(evenly(len(train), count))  # over all training subjects

    def draw() -> torch.Generator:  # the same subsets for both
        return randomness.generator(seed, 0, "predict kid")

    return {
        "generated": quality.set_figures(fake[:count], heldout, draw()),
        "training slices": quality.set_figures(train[spread], heldout, draw()),
    }


def told_figures(
    model: Any,
    network: torch.nn.Module,
    real: RealSlices,
    values: torch.Tensor | None,
    features: Sequence[torch.Tensor],
    seed: int,
    how: dict,
) -> dict:
    """Whether the columns that the model is told show in its pictures, and how good they are in each group; {} of a
    model without any. features: of generated slices, told `values`, of training and of held-out ones."""
    if not model.columns or values is None:
        return {}

    def along(indices: Sequence[int], rows: Sequence[dict]) -> torch.Tensor:
        parts = [model.sample(indices=[i], seed=seed, label=row, **how) for i, row in zip(indices, rows, strict=True)]
        return network(torch.from_numpy(np.concatenate(parts)))

    of_real = [torch.from_numpy(values_of(pack, model.columns)) for pack in (real.train, real.heldout)]
    fake, train, held = (Told(x, v) for x, v in zip(features, (values, *of_real), strict=True))
    rows = training_rows(real.train, model.columns, STRIPS, seed)
    draw_kid = partial(randomness.generator, seed, 0, "predict kid")
    return {
        "obedience": obedience(model.columns, fake, train, held, rows, along),
        "groups": group_figures(model.columns, fake, train, held, draw_kid),
    }


def copying_figures(
    sets: tuple[Measured, Measured, Measured], real: RealSlices, images_of: Images, model: Trained, out: Output
) -> dict:
    """How near generated slices are to training ones by pixels, over all moves, and by features, with a picture of the
    closest of each."""
    fake, train, heldout = sets
    groups = real.subjects(real.heldout).to(fake[0].device)
    found: dict[str, dict] = {}
    for space, k, centre in (("pixels", 1, None), ("features", 0, train[0].mean(0))):
        track = lambda starts: counted(starts, "copies, parts")  # noqa: E731
        found[space], pairs = quality.copying(fake[k], train[k], heldout[k], groups, centre, track=track)
        fakes = images_of([pair.generated for pair in pairs])
        reals = np.stack([real.train.images[pair.training] for pair in pairs])
        moves = [pair.move for pair in pairs if pair.move is not None]
        laid = copies.moved(fakes.float(), torch.stack(moves)).round().byte().numpy() if moves else None
        found[space]["closest"] = [
            {"generated": pair.generated, "training": real.train.names[pair.training], "distance": pair.distance}
            | ({} if pair.move is None else {"move": copies.in_words(pair.move)})
            for pair in pairs
        ]
        whole, real_ones = model.original(fakes.numpy()), model.original(reals)
        shown, captions = pairs_picture(whole, real_ones, pairs, None if laid is None else model.original(laid))
        out.grid(f"copies-{space}.png", shown, PAIR_COLUMNS, **captions, note=DISTANCES[space])
    return found


def diversity_of_pairs(
    model: Trained, real: RealSlices, images_of: Images, labels: torch.Tensor | None, number: int, seed: int
) -> dict:
    """MS-SSIM of random pairs within each class: of generated slices, and of held-out ones of different subjects."""
    pool = min(number, PAIR_POOL)
    fakes = images_of(range(pool))
    rows = torch.linspace(0, len(real.heldout) - 1, min(len(real.heldout), PAIR_POOL)).round().long()
    reals, groups = rows_of(real.heldout, rows.numpy()), real.subjects(real.heldout)[rows]
    fake_labels = torch.zeros(pool, dtype=torch.int64) if labels is None else labels[:pool]
    real_labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else real.labels(real.heldout)[rows]
    sets = {"generated": (fakes, torch.arange(pool), fake_labels), "held-out slices": (reals, groups, real_labels)}
    found: dict = {}
    for k, name in enumerate(model.classes or ["all"]):
        for source, (images, subjects, of_class) in sets.items():
            here = (of_class == k).nonzero()[:, 0]
            draw = randomness.generator(seed, k, f"predict pairs {source}")
            pairs = here[quality.draw_pairs(subjects[here], PAIRS, draw)]
            if len(pairs) >= 2:
                values = quality.pair_similarity(images, pairs)
                about = {"mean": float(values.mean()), "sd": float(values.std()), "pairs": len(pairs)}
                found.setdefault(name, {})[source] = about
    return found


def notes_on_copies(copying: dict) -> list[str]:
    """Held-out slices that are training slices."""
    return [
        f"{f['heldout_copies']} held-out slices are nearly the same as training slices (by {space}): the same pictures "
        "are on both sides of the split; they were left out of the comparison of copies"
        for space, f in copying.items()
        if f["heldout_copies"]
    ]


def notes_on(model: Trained, real: RealSlices, compared: int, number: int, dim: int) -> list[str]:
    """What a reader of the figures has to know."""
    heldout, unknown = len(real.heldout), sum(not subject for subject in real.heldout.subjects)
    notes = [f"distances compare sets of {compared:,} slices with {heldout:,} held-out ones, both kinds alike"]
    for column in model.columns:
        if not any(cells_of(real.heldout, column.name) or ()):
            notes.append(
                f"{column.name} of the held-out slices is unknown: whether it is obeyed cannot be told beside them"
            )
    if model.columns and not model.classes:
        notes.append("pairs for MS-SSIM are of all slices together: the model is told no class")
    if compared < number:
        notes.append(f"the first {compared:,} of {number:,} generated slices, as there are no more training slices")
    if model.config.get("split") == "all":
        notes.append(
            "the model was trained with --split all, so on these held-out slices too: copies cannot be told here"
        )
    if len(set(real.heldout.subjects)) == 1 and not unknown:
        notes.append("all held-out slices are of one person: the distance ratio of copies says nothing")
    if unknown:
        notes.append(
            f"the subjects of {unknown:,} held-out slices are unknown: pairs of one brain may be among the real "
            "pairs, and "
            "the distance ratio of copies is then too low"
        )
    if heldout < 10 * dim:
        notes.append(
            f"{heldout:,} held-out slices are few for {dim} features: the FID is much raised by that, for real "
            "slices as "
            "well; judge by the difference to them, or by the KID"
        )
    return notes
