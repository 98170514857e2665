"""A trained StyleGAN2: latents, styles, pictures (Karras 2019, 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from data.batches import to_float
from jobs.predict.conditions import Asked, settings_of
from jobs.predict.trained import Flag, Trained
from models import loading, projection
from models.conditions import Told
from models.stylegan2 import Generator
from models.styles import slerp

CENTRE, CENTRE_SEED = 512, 20200  # latents of which the mean w is taken
CENTRES: dict[tuple, torch.Tensor] = {}  # those that were asked for: each is the work of as many pictures' styles


@dataclass(frozen=True, kw_only=True)
class GanModel(Trained):
    """A trained StyleGAN2."""

    KIND = "StyleGAN2"
    FLAGS = (
        Flag("--truncation", "truncation", "truncation", 1.0),
        Flag("--truncation-cutoff", "truncation_cutoff", "truncation_cutoff"),
        Flag("--noise", "noise", "noise"),
        Flag("--space", "space"),
    )

    G: Generator

    @staticmethod
    def networks(tensors: dict, about: dict, num_classes: Told, device: torch.device) -> dict:
        """The networks of a weights file, as fields of this class. ValueError on what does not fit."""
        return {"G": loading.load_generator(tensors, about["config"], num_classes).to(device)}

    def settings(
        self,
        *,
        seed: int = 0,
        label: Asked = "all",
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        noise: str = "random",
    ) -> dict:
        """What decides the pictures of `sample`, for a file beside them."""
        how = {"truncation": truncation, "truncation_cutoff": truncation_cutoff}
        return {"seed": seed, **settings_of(label), **how, **self.about, "noise": noise}

    def sample(
        self,
        number: int = 1,
        seed: int | None = 0,
        label: Asked = "all",
        *,
        indices: Sequence[int] | None = None,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        noise: str = "random",
    ) -> np.ndarray:
        """uint8 (B, C, H, W): pictures 0 to number - 1 of a seed, or those in `indices`; with seed None these are
        seeds, and it is picture 0 of each.

        truncation: psi; 1 samples what was learnt. noise: random, each picture its own, or fixed, all the same.
        """
        indices = list(range(number)) if indices is None else list(indices)
        ws = self.styles(indices, seed, label, truncation=truncation, truncation_cutoff=truncation_cutoff)
        return self.synthesise(ws, None if noise == "fixed" else self.draw_noise(seed, indices))

    def styles(
        self,
        indices: Sequence[int],
        seed: int | None = 0,
        label: Asked = "all",
        *,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> torch.Tensor:
        """ws (B, num_ws, w_dim) of the pictures `indices`, truncated towards the average w (Karras 2019, appendix
        B)."""
        labels = self.labels(label, indices)
        ws = self.G.broadcast(self.map_latents(self.draw_z(seed, indices), labels))
        return self.G.truncate(ws, truncation, truncation_cutoff, self.centre(labels, truncation))

    def centre(self, labels: torch.Tensor | None, truncation: float) -> torch.Tensor | None:
        """Where truncation pulls to: Generator.centre; of a model with columns the mean w of many latents that are told
        the same, (B, 1, w_dim). None where nothing is truncated."""
        if truncation == 1:
            return None
        if not self.columns or labels is None:
            return self.G.centre(labels)
        z = self.draw_z(CENTRE_SEED, range(CENTRE))
        rows, back = labels.nan_to_num(nan=math.inf).unique(dim=0, return_inverse=True)
        rows = torch.where(rows.isinf(), math.nan, rows)
        key, at_once = (self.sha256, str(self.device)), replace(self, batch=CENTRE)  # always as many: the same bits
        for row in rows:
            if (*key, str(row.tolist())) not in CENTRES:
                CENTRES[*key, str(row.tolist())] = at_once.map_latents(z, row.expand(CENTRE, -1)).mean(0)
        return torch.stack([CENTRES[*key, str(row.tolist())] for row in rows])[back][:, None]

    def draw_z(self, seed: int | None, indices: Sequence[int]) -> torch.Tensor:
        """(B, z_dim) fp32: the latents of the pictures `indices`, drawn on the CPU, so that every device has the
        same."""
        rows = [torch.randn(self.G.z_dim, generator=self.stream(seed, i, "predict z")) for i in indices]
        return torch.stack(rows).to(self.device)

    def draw_noise(self, seed: int | None, indices: Sequence[int]) -> list[torch.Tensor]:
        """Noise of the pictures `indices` for every layer: a list of (B, 1, H, W) fp32."""
        rows = [self.G.draw_noise(1, self.stream(seed, i, "predict noise"), "cpu") for i in indices]
        return [torch.cat(layer).to(self.device) for layer in zip(*rows, strict=True)]

    @torch.inference_mode()
    def map_latents(self, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """z (B, z_dim), labels (B,) or None -> w (B, w_dim)."""
        parts = z.split(self.batch)
        of_parts = [None] * len(parts) if labels is None else labels.to(self.device).split(self.batch)
        return torch.cat([self.G.mapping(part, its) for part, its in zip(parts, of_parts, strict=True)])

    @torch.inference_mode()
    def synthesise(self, ws: torch.Tensor, noise: list[torch.Tensor] | None = None) -> np.ndarray:
        """ws (B, num_ws, w_dim), noise as draw_noise gives it or None for the fixed one -> uint8 (B, C, H, W)."""
        images = []
        for start in range(0, len(ws), self.batch):
            rows = slice(start, start + self.batch)
            part = None if noise is None else [layer[rows] for layer in noise]
            images.append(self.restored(self.G.synthesis(ws[rows], part, dtype=self.dtype)))
        return np.concatenate(images)

    def interpolate(
        self,
        a: int,
        b: int,
        steps: int = 24,
        seed: int = 0,
        label: Asked = "all",
        *,
        space: str = "w",
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
    ) -> np.ndarray:
        """uint8 (steps, C, H, W) from picture a (included) to picture b (not included). Noise is fixed: it would
        flicker.

        space: w, linear, or z, along the sphere. The class cannot turn by degrees in z, so between two classes the w of
        both are blended.
        """
        z, labels = self.draw_z(seed, [a, b]), self.labels(label, [a, b])
        t = (torch.arange(steps, device=z.device) / steps)[:, None]
        from_z, to_z = z[:1].expand(steps, -1), z[1:].expand(steps, -1)
        if space == "z":
            from_z = to_z = slerp(from_z, to_z, t)
        ends = [None if labels is None else labels[i : i + 1] for i in (0, 1)]
        from_w, to_w = (
            self.map_latents(of_z, None if end is None else end.repeat_interleave(steps, 0))
            for of_z, end in zip((from_z, to_z), ends, strict=True)
        )
        ws = self.G.broadcast(torch.lerp(from_w, to_w, t))
        from_centre, to_centre = (self.centre(end, truncation) for end in ends)
        one = from_centre is None or to_centre is None
        centre = None if one else torch.lerp(from_centre, to_centre, t[:, None])  # type: ignore[arg-type]
        return self.synthesise(self.G.truncate(ws, truncation, truncation_cutoff, centre))

    def project(
        self,
        images: np.ndarray,
        steps: int = 300,
        seed: int = 0,
        *,
        track: Callable[[Iterable, int], Iterable] | None = None,
    ) -> tuple[np.ndarray, np.ndarray, list[list[float]]]:
        """Real slices uint8 (B, C, R, R) in W+: (ws fp32 (B, num_ws, w_dim), pictures uint8, losses per step of each
        part).

        track(steps, n): wraps the steps of a part of n slices, for a progress bar.
        """
        candidates = list(range(projection.CANDIDATES))
        w = self.map_latents(self.draw_z(seed, candidates), self.labels("all", candidates))
        ws, pictures, history = [], [], []
        # Alone on a CPU: a slice's result does not depend on the others.
        for part in torch.from_numpy(np.ascontiguousarray(images)).split(self.batch):
            found, losses = projection.project(
                self.G,
                to_float(part).to(self.device),
                w.clone(),
                steps=steps,
                batch=32,
                track=partial(_tracked, track, len(part)),
            )
            ws.append(found.cpu().numpy())
            pictures.append(self.synthesise(found))
            history.append(losses)
        return np.concatenate(ws), np.concatenate(pictures), history


def _tracked(track: Callable[[Iterable, int], Iterable] | None, number: int, steps: Iterable) -> Iterable:
    return steps if track is None else track(steps, number)
