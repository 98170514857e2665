"""Which generated slices may be shared: the tests that `evaluate` makes of sets, made of one slice at a time, each with
its limit from people whom the model has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from data.columns import CLASS, Column, values_of
from data.packfile import Pack
from jobs.config.specs import ConfigError
from jobs.predict.evaluate import Measured
from jobs.predict.features import RealSlices
from jobs.predict.obedience import Told, agreed, probe_of
from jobs.predict.trained import Trained
from models import copies, quality

PIXELS, FEATURES = "too near to a training slice, by pixels", "too near to a training slice, by features"
OUTSIDE = "outside of where real slices lie"
SHOWN = (
    0.5  # correlation with what is known of held-out slices, or so far from chance to certainty, to judge by a probe
)
CLOSE = 0.95  # of held-out slices pass the tests whose limit can be moved: balls, and numbers that are read


def told_columns(model: Trained) -> Sequence[Column]:
    """What the model is told, its class as a column too."""
    return model.columns or ([Column(CLASS, tuple(model.classes))] if model.classes else [])


def told_values(values: Tensor | None, columns: Sequence[Column]) -> Tensor:
    """What `labels` gives for n pictures as (n, columns) float32, NaN for unknown; n x 0 columns of a model that is
    told nothing is (0, 0)."""
    if values is None or not columns:
        return torch.zeros(0, 0)
    found = values.float().reshape(len(values), len(columns)).clone()
    return found if values.is_floating_point() else found.masked_fill(found < 0, torch.nan)


def known_values(pack: Pack, model: Trained, columns: Sequence[Column]) -> Tensor:
    """What is known of real slices, (N, columns) as told_values."""
    if model.columns:
        return torch.from_numpy(values_of(pack, columns))
    return told_values(torch.from_numpy(pack.labels.copy()), columns)


class Screen:
    """The tests. `held_out`: {test: share of held-out slices that would not pass}; `notes`: what is not tested, and
    why."""

    def __init__(self, model: Trained, real: RealSlices, train: Measured, heldout: Measured, asked: Tensor):
        """train, heldout: (features, thumbnails) of the real slices; asked (slices, columns): what will be asked for.

        ConfigError where held-out slices cannot say how near is too near.
        """
        features, thumbs = train
        self.bank, self.features, self.centre = copies.Bank(thumbs), features, features.mean(0)
        least = {name: quality.nearest_heldout(d) for name, d in self.nearest(*heldout).items()}
        if not all(limit > 0 for limit in least.values()):
            raise ConfigError(
                "the held-out slices are the same pictures as the training slices, so nobody can say how near is too "
                "near; split the data by person, see docs/data.md"
            )
        self.limits = {name: float(limit) for name, limit in least.items()}
        self.probes: dict[str, tuple] = {}
        self.notes: list[str] = []
        points = features.double() - self.centre.double()
        self.points, (self.radii,) = points, quality.knn_radii(points, (quality.NEIGHBOURS,))
        self.enlarge(heldout[0])
        self.held_out: dict[str, float] = dict.fromkeys(self.limits, 0.0)
        self.held_out[OUTSIDE] = float(self.outside(heldout[0]).double().mean())
        columns = told_columns(model)
        if asked.numel():
            learnt, unseen = (
                Told(x[0], known_values(pack, model, columns))
                for x, pack in ((train, real.train), (heldout, real.heldout))
            )
            self.look_for(columns, learnt, unseen, asked)

    def look_for(self, columns: Sequence[Column], train: Told, held: Told, asked: Tensor) -> None:
        """A probe for each column of which something is asked, where it reads held-out slices well enough to judge."""
        for i, column in enumerate(columns):
            if bool(asked[:, i].isnan().all()):
                continue
            probe = probe_of(train, i, column)
            found, words = agreed(probe, held, i, column), "there are too few real slices to learn it from"
            chance = 1 / max(len(column.levels), 1)
            if "accuracy" in found:
                well = found["accuracy"] >= chance + SHOWN * (1 - chance)
                words = f"a classifier finds it in only {100 * found['accuracy']:.0f} % of held-out slices"
            else:
                well = found.get("r", 0.0) >= SHOWN
                words = (
                    f"what is read off held-out slices follows it with r {found.get('r', 0):.2f} only"
                    if found
                    else words
                )
            if probe is None or not well:
                self.notes.append(f"Not screened: {column.name}, as {words}.")
                continue
            x, y = held.of(i)
            off = (probe(x) - y).abs().double()
            limit = 0.5 if column.levels else float(off.quantile(CLOSE))
            name = "read as another class" if column.name == CLASS else f"{column.name} not as asked"
            self.probes[name] = i, probe, limit
            self.held_out[name] = float((off > limit).double().mean())

    def nearest(self, features: Tensor, thumbs: Tensor) -> dict[str, Tensor]:
        """Distances (N,) to the nearest training slice."""
        found = copies.search(thumbs, self.bank).distance
        return {PIXELS: found, FEATURES: quality.nearest(features, self.features, centre=self.centre)[0]}

    def outside(self, features: Tensor) -> Tensor:
        """Which of (N, D) lie in no ball around a training slice, bool (N,): the precision's test."""
        return ~torch.cat([quality.in_a_ball(d, self.radii) for d in self.to_points(features)])

    def to_points(self, features: Tensor) -> Iterator[Tensor]:
        """Squared distances (n, M) of parts of the features (N, D) to the training slices."""
        for part in (features.double() - self.centre.double()).split(quality.CHUNK):
            yield quality.squared_distances(part, self.points)

    def enlarge(self, heldout: Tensor) -> None:
        """Let the balls hold as many held-out slices (H, D) as may be asked of generated ones: where a person has many
        slices, a ball reaches to that person's own neighbours, and no other person lies in it."""
        need = torch.cat([(d / self.radii.clamp_min(1e-12)).amin(1) for d in self.to_points(heldout)]).quantile(CLOSE)
        if need > 1:
            self.radii = self.radii.clamp_min(1e-12) * need
            self.notes.append(
                f"The balls were made {float(need.sqrt()):.2f} times as large, so that {100 * CLOSE:.0f} % of held-out "
                "slices lie in them."
            )

    def failed(self, features: Tensor, thumbs: Tensor, told: Tensor) -> dict[str, Tensor]:
        """{test: which of N slices fail it, bool (N,)}, told (N, columns) as told_values."""
        found = {name: d < self.limits[name] for name, d in self.nearest(features, thumbs).items()}
        found[OUTSIDE] = self.outside(features)
        for name, (i, probe, limit) in self.probes.items():
            found[name] = (probe(features) - told[:, i].to(features.device)).abs() > limit
        return {name: which.cpu() for name, which in found.items()}
