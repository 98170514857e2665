"""How good the slices of a run are while it trains: KID, FID, precision, recall and coverage against other patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from data.build import packing_of
from data.columns import Column
from data.pack import ensure_held_out, ensure_pack
from data.packfile import Pack
from jobs.config import rules
from jobs.predict.conditions import labels_of
from jobs.predict.features import (
    MIN_HELDOUT,
    Images,
    Network,
    RealSlices,
    evenly,
    given_features,
    measure,
    open_features,
    rows_of,
)
from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, ranks
from models import quality

SAMPLES, FEWEST = 250, 64  # slices that are drawn at a time, and as many training slices beside them
HELD_OUT = 1000  # slices of other patients, at most
COPIED = 20_000  # training slices that samples may be copies of, at most: who copies takes any of them
WATCHED = 64  # samples that are looked at for that, and as many held-out slices, each beside all those
PROBED = 2000  # training slices that tell the classes apart
FEW = 20  # slices of a class, of which a share says nothing
SHARE = 0.02  # of a run's time that the samples may take, where FEWEST of them do not take more
CALLS_OF_A_STEP = 3  # a training image costs a pass forward and one back, of twice the work


def samples_for(metric_kimg: float, calls: int) -> int:
    """How many slices are drawn each `metric_kimg`: SAMPLES, or fewer where each takes many network calls."""
    return min(SAMPLES, max(FEWEST, int(SHARE * 1000 * metric_kimg * CALLS_OF_A_STEP / calls)))


def open_data(
    c, run: RunDir, meeting: ranks.Meeting, device: torch.device, say: Callable[[str], None]
) -> tuple[list[Pack], Network | None]:
    """Packs of the training slices and, where figures are taken or ADA looks at them, of other patients'; the network
    for the figures."""
    main, given = meeting.rank == 0, given_network(c)
    how = packing_of(c) | {"log": say, "progress": main, "poll": stopping.raise_if_asked}
    packs = [ensure_pack(c.data, split=c.split, verify=main, **how)]
    rules.check_classes(c, packs[0].classes, bool((packs[0].labels < 0).any()))
    if c.metric_kimg or c.ada != "off":
        held_out = ensure_held_out(c.data, c.val_split, train_split=c.split, verify=main, **how)
        packs += [held_out] if held_out is not None else []
    return packs, open_network(c, given, run, packs[0], meeting, device)


def given_network(c) -> Network | None:
    """The network in --feature-weights, where figures are taken; read before anything that takes long."""
    return given_features(c.feature_weights) if c.metric_kimg else None


def open_network(
    c, given: Network | None, run: RunDir, train: Pack, meeting: ranks.Meeting, device: torch.device
) -> Network | None:
    """The network that figures are taken with, trained where there is none beside the pack; None where none are.

    Before there is a process group, as packs are built: no collective waits for it. Rank 0 comes first; who does not
    find what it left, on a node with packs of its own, makes the same.
    """
    if not c.metric_kimg:
        return None
    threads = c.threads or devices.default_threads(ranks.local_world(meeting.world))
    torch.set_num_threads(threads)
    return open_features(given, train, run.path, ranks.Runtime(0, 1, meeting.local_rank, device, threads))


def enough(own: torch.Tensor) -> bool:
    """Whether FEW slices are of a class and FEW are not, own (N,) bool: else a share of them says nothing."""
    return min(int(own.sum()), int((~own).sum())) >= FEW


class Yardstick:
    """What generated slices are measured with: features of other patients' slices, and the figures of real ones."""

    def __init__(
        self,
        rt: ranks.Runtime,
        network: Network,
        packs: list[Pack],
        draw: Callable[[torch.Tensor], Images],
        number: int,
        say: Callable[[str], None] = lambda text: None,
        classes: Sequence[str] = (),
        columns: Sequence[Column] = (),
    ):
        """packs: of the training slices and, where there are any, of other patients'. draw(labels (N, ...)): the
        generated slices by their indices, `number` of them. classes, columns: what the run is conditioned on, if at
        all.

        Where too few are held out the training slices are the measure, in two halves that have no slice in common.
        """
        self.rt, self.network, self.draw = rt, network[0], draw
        train, held = packs[0], packs[-1]
        if len(packs) > 1 and len(held) >= MIN_HELDOUT:
            self.number = min(number, len(train))
            rows, held_rows = evenly(len(train), self.number), evenly(len(held), HELD_OUT)
        else:
            held, self.number = train, min(number, len(train) // 2)
            rows, held_rows = (evenly(len(train), 2 * self.number)[half::2] for half in (0, 1))
            if len(packs) > 1:
                say(f"only {len(packs[1])} held-out slices; KID and the rest are taken against training slices")
        self.labels = torch.from_numpy(np.array(train.labels[rows], np.int64)).to(rt.device)
        # What samples are told is what is known of these training slices.
        self.told = torch.from_numpy(labels_of(train, columns)[rows]).to(rt.device) if columns else self.labels
        self.heldout = self.features(lambda r: rows_of(held, held_rows[r]), len(held_rows))
        learnt = self.features(lambda r: rows_of(train, rows[r]), len(rows))
        real = self.figures(learnt)
        self.real = {f"{name}_train": value for name, value in real.items()}
        self.watch: quality.CopyWatch | None = None
        self.probe: quality.LinearProbe | None = None
        if held is not train:
            self.look_for_copies(train, held, say)
        if classes and held is train:  # whose classes the probe knows by heart
            say("no class is looked for: too few slices are held out")
        elif classes and list(held.classes) != list(classes):
            say(f"no class is looked for: the held-out slices are of {', '.join(held.classes) or 'none'}")
        elif classes:
            self.look_for_classes(classes, train, torch.from_numpy(np.array(held.labels[held_rows], np.int64)), say)
        # Figures of another network or of other slices are in other units.
        self.of = f"{network[1]}, {len(held_rows)} of {held.digest[:12]}"

    def features(self, images_of: Images, count: int) -> torch.Tensor:
        """(count, D), on every rank, of slices that the ranks make in turn."""
        return self.measured(images_of, count)[0]

    def measured(self, images_of: Images, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and thumbnails (count, C, s, s) beside them."""
        return measure(self.rt, self.network, images_of, count, "")

    def figures(self, features: torch.Tensor) -> dict[str, float]:
        """Figures of a set of features. Rank 0 computes, so that all ranks decide by the same numbers."""
        names = ("kid", "fid", "precision", "recall", "coverage")
        values = torch.zeros(len(names), dtype=torch.float64, device=self.rt.device)
        if self.rt.rank == 0:
            found = quality.quick_figures(features, self.heldout)
            values += torch.tensor([found[name] for name in names], dtype=torch.float64, device=self.rt.device)
        return dict(zip(names, collectives.reduce_sum(self.rt, values).tolist(), strict=True))

    def look_for_copies(self, train: Pack, held: Pack, say: Callable[[str], None]) -> None:
        """Thumbnails of training slices, which samples are not to be too near to."""
        known, others = evenly(len(train), COPIED), evenly(len(held), WATCHED)
        people = RealSlices(train, held).subjects(held)[torch.from_numpy(others)]
        if len(people.unique()) < 2:  # whose own distances say nothing
            return say("copies are not looked for: all held-out slices are of one person")
        learnt, unseen = (quality.thumbnails(rows_of(*of)) for of in ((train, known), (held, others)))
        device = self.rt.device
        self.watch = quality.CopyWatch(learnt.to(device), unseen.to(device), people.to(device))

    def look_for_classes(
        self, classes: Sequence[str], train: Pack, of_heldout: torch.Tensor, say: Callable[[str], None]
    ) -> None:
        """A probe of training slices' classes, and what it finds among the held-out ones."""
        rows, self.classes = evenly(len(train), PROBED), classes
        learnt = self.features(lambda r: rows_of(train, rows[r]), len(rows))
        labels = torch.from_numpy(np.array(train.labels[rows], np.int64)).to(learnt.device)
        self.probe = quality.LinearProbe(learnt[labels >= 0], labels[labels >= 0], len(classes))
        self.real |= {f"real_{k}": v for k, v in self.found(self.heldout, of_heldout.to(learnt.device)).items()}
        few = [name for k, name in enumerate(classes) if not (enough(self.labels == k) and enough(of_heldout == k))]
        if few:
            text = f"it takes {FEW} samples and {FEW} held-out slices of a class, and as many of others"
            say(f"no look at whether a class is lost, for {', '.join(few)}: {text}")

    def found(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        """{found_CLASS: share of the class's slices that the probe takes for it, taken_CLASS: of all others},
        where there are enough of both."""
        assert self.probe is not None
        guess, found = self.probe.predict(features), {}
        for k, name in enumerate(self.classes):
            own = labels == k
            if enough(own):
                found[f"found_{name}"], found[f"taken_{name}"] = (
                    float((guess[rows] == k).double().mean()) for rows in (own, ~own)
                )
        return found

    def __call__(self) -> dict[str, float]:
        """Figures of generated slices, and those of as many training slices beside them; on all ranks at once."""
        features, thumbs = self.measured(self.draw(self.told), self.number)
        figures = self.figures(features) | self.real
        if self.watch is not None:
            figures["copies"] = self.watch.share(thumbs[evenly(len(thumbs), WATCHED)])
        return figures | (self.found(features, self.labels) if self.probe is not None else {})


def open_yardstick(
    c,
    rt: ranks.Runtime,
    network: Network | None,
    packs: list[Pack],
    draw: Callable[[torch.Tensor], Images],
    say: Callable[[str], None],
    calls: int = 1,
    columns: Sequence[Column] = (),
) -> Yardstick | None:
    """The yardstick of a run whose samples take `calls` network calls each; None where no figures are taken."""
    if network is None:
        return None
    if len(packs[0]) < 2 * MIN_HELDOUT:
        say(f"no KID and the like: {len(packs[0])} training slices are too few, they need {2 * MIN_HELDOUT}")
        return None
    network = network[0].to(rt.device), network[1]
    if rt.world > 1:  # a rank on another node may have made its own
        for value in network[0].state_dict().values():
            value.copy_(collectives.reduce_sum(rt, value.clone() if rt.rank == 0 else torch.zeros_like(value)))
    classes = packs[0].classes if c.conditional else ()
    return Yardstick(rt, network, packs, draw, samples_for(c.metric_kimg, calls), say, classes, columns)
