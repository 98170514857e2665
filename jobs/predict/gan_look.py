"""What a StyleGAN2 run shows while it trains: grids, and the diversity of generated against real slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from data.batches import Batches, flip_coins, on_device, sample_order, to_float, to_uint8
from data.columns import Column
from data.packfile import Pack
from jobs.config.specs import GanConfig
from jobs.predict.conditions import grid_labels, labels_of
from jobs.training import randomness, ranks
from jobs.view.grids import image_grid
from models.augment import P_SCHEDULED
from models.draws import normal
from models.metrics import class_diversity, diversity_ratio
from models.stylegan2 import Generator


# --- what ADA steers by -----------------------------------------------------------------------------------------------
class HeldOut:
    """Slices that D does not learn from, a batch at a time, each of the class of the training slice in its row: a
    relativistic D has a level of its own for every class. With attributes they bring their own values."""

    def __init__(self, c: GanConfig, pack: Pack, held_out: Pack, device: torch.device, columns: Sequence[Column] = ()):
        self.c, self.labels, self.images, self.device = c, pack.labels, held_out.images, device
        self.values = labels_of(held_out, columns) if columns else None
        self.by_class = c.conditional and not columns
        classes = range(len(pack.classes)) if self.by_class else ()
        self.of_class = [np.flatnonzero(held_out.labels == k) for k in classes] or [np.arange(len(held_out.labels))]

    def rows(self, position: int, start: int, stop: int, look: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(stop - start, C, R, R) in -1..1 for these rows of the global batch at `position`, and what D is told of
        them; `look` counts the batches that were asked for."""
        seed, count = self.c.seed, stop - start
        classes = self.labels[sample_order(len(self.labels), seed, position + start, count)]
        own = [self.of_class[k if self.by_class else 0] for k in classes]
        place = look * self.c.batch + start
        index = [of[sample_order(len(of), seed, place + i, 1)[0]] for i, of in enumerate(own)]
        images = to_float(on_device(self.images[index], self.device))
        if self.c.hflip:
            coins = on_device(flip_coins(seed, position + start, count), self.device)
            images = torch.where(coins[:, None, None, None], images.flip(-1), images)
        told = classes if self.by_class else None if self.values is None else self.values[index]
        return images, None if told is None else on_device(told, self.device)


def held_out_for_ada(
    c: GanConfig,
    pack: Pack,
    held_out: Pack | None = None,
    *,
    columns: Sequence[Column] = (),
    device: torch.device,
    say: Callable[[str], None],
) -> HeldOut | None:
    """Held-out slices for r_v; None where nothing is augmented or a class has none. Says what p follows, where it is
    not D's signs on the training slices."""
    if c.ada == "off":
        return None
    found = None
    # A .pack holds one split: what is opened beside it is itself.
    if held_out is not None and held_out.digest != pack.digest and held_out.classes == pack.classes:
        found = HeldOut(c, pack, held_out, device, columns)
        found = found if all(map(len, found.of_class)) else None
    if c.loss == "rpgan" and found is not None:
        number = sum(map(len, found.of_class))
        say(f"ADA: p follows r_v on {number:,} held-out slices, target {c.ada_target:g}")
    elif c.loss == "rpgan":
        end = P_SCHEDULED * c.ada_kimg
        say(f"ADA: no held-out slices of each class, so p rises to {P_SCHEDULED:g} over the first {end:g} kimg")
    return found


# --- what a person sees -----------------------------------------------------------------------------------------------
class Sampler:
    """Grids from fixed latents, and the diversity of generated against real slices."""

    def __init__(
        self,
        c: GanConfig,
        pack: Pack,
        batches: Batches,
        rt: ranks.Runtime,
        dtype: torch.dtype,
        columns: Sequence[Column] = (),
    ):
        self.c, self.width = c, 8 if c.resolution <= 128 else 6
        self.number, self.dtype, self.classes = self.width * (6 if c.resolution <= 128 else 4), dtype, pack.classes
        self.z = normal((self.number, c.z_dim), randomness.generator(c.seed, 0, "grid"), rt.device)
        count = min(64, len(pack.labels))
        self.real, self.real_labels = batches.rows(0, 0, count)
        self.labels, self.captions = grid_labels(c, pack, columns, self.real_labels, self.number, self.width)

    def reals(self):
        """A grid of real slices, laid out as the samples are."""
        captions = None if self.labels is None else self.captions(self.real_labels[: self.number])
        return image_grid(to_uint8(self.real[: self.number]).cpu().numpy(), self.width, labels=captions)

    def __call__(self, G_ema: Generator, nimg: int):
        """(grid picture, {diversity figures}); diversity is 1 where generated slices vary as much as real ones. None of
        an untrained generator, whose noise says nothing."""
        with torch.no_grad():
            parts = torch.arange(self.number, device=self.z.device).split(8)
            labels = self.labels
            images = torch.cat(
                [G_ema(self.z[i], None if labels is None else labels[i], dtype=self.dtype) for i in parts]
            )
        ratio = diversity_ratio(images, self.real)
        figures = {} if math.isnan(ratio) or not nimg else {"diversity": ratio}
        if labels is not None and nimg and not self.c.condition:
            real = class_diversity(self.real, self.real_labels)
            for k, value in class_diversity(images, labels).items():
                if real.get(k):
                    figures[f"diversity_{self.classes[k]}"] = float(value / real[k])
        captions = None if labels is None else self.captions(labels)
        return image_grid(to_uint8(images).cpu().numpy(), self.width, labels=captions), figures

    def draws(self, G_ema: Generator, labels: torch.Tensor) -> Callable[[Sequence[int]], torch.Tensor]:
        """What figures are taken of: indices -> uint8 (B, C, R, R), each with a latent, noise and its row of `labels`
        (N, ...), at every tick the same."""
        c, device = self.c, self.z.device
        z = normal((len(labels), c.z_dim), randomness.generator(c.seed, 0, "metric z"), device)

        @torch.no_grad()
        def images_of(indices: Sequence[int]) -> torch.Tensor:
            images = []
            for i in torch.tensor(list(indices), device=device).split(8):
                noise = G_ema.draw_noise(len(i), randomness.generator(c.seed, int(i[0]), "metric noise"), device)
                told = labels[i] if c.labelled else None
                images.append(to_uint8(G_ema(z[i], told, noise=noise, dtype=self.dtype)))
            return torch.cat(images)

        return images_of
