"""A trained denoising network with its decoder: from noise to pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.predict.conditions import Asked, say_once, settings_of
from jobs.predict.named import UsageError
from jobs.predict.trained import Flag, Trained
from models import loading, samplers
from models.conditions import Told
from models.loading import Denoiser
from models.names import OF_LISTED_TIMES, SAMPLERS, too_few_calls
from models.styles import slerp
from models.unet import guided

Guidance = float | Mapping[str, float]  # for all that is known, or of a column


class Way(NamedTuple):
    """How to come from noise to a picture."""

    sampler: str
    steps: int  # network calls
    guidance: Guidance


@dataclass(frozen=True, kw_only=True)
class DiffusionModel(Trained):
    """A trained denoising network with its decoder."""

    KIND = "diffusion network"
    FLAGS = (
        Flag("--guidance", "guidance", "guidance"),
        Flag("--sampler", "sampler", "sampler"),
        Flag("--steps", "calls", "steps"),
    )

    net: Denoiser

    @staticmethod
    def networks(tensors: dict, about: dict, num_classes: Told, device: torch.device) -> dict:
        """The networks of a weights file, as fields of this class. ValueError on what does not fit."""
        return {"net": loading.load_denoiser(tensors, about, num_classes).to(device)}

    def way(self, sampler: str | None = None, steps: int | None = None, guidance: Guidance | None = None) -> Way:
        """As asked, or the defaults: 20 calls of midpoint; DDIM at the steps that a Fast-DDPM network knows."""
        strength, known = 1.0 if guidance is None else guidance, self.net.times
        there = [column.name for column in self.columns]
        if isinstance(strength, Mapping) and (other := set(strength) - set(there)):
            raise UsageError(f"--guidance {min(other)}: this model is conditioned on {', '.join(there) or 'no column'}")
        if known is None:
            way = Way(sampler or "midpoint", steps or 20, strength)
            if line := too_few_calls(way.sampler, way.steps):
                say_once(line)
            return way
        if sampler not in (None, *OF_LISTED_TIMES) or steps not in (None, len(known)):
            raise UsageError(
                f"this network knows the {len(known)} steps of Fast-DDPM alone; leave the number of network calls "
                f"out, and use --sampler {' or '.join(OF_LISTED_TIMES)}"
            )
        return Way(sampler or "ddim", len(known), strength)

    def settings(
        self,
        *,
        seed: int = 0,
        label: Asked = "all",
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> dict:
        """What decides the pictures of `sample`, for a file beside them."""
        return {"seed": seed, **settings_of(label), **self.about, **self.way(sampler, steps, guidance)._asdict()}

    def sample(
        self,
        number: int = 1,
        seed: int | None = 0,
        label: Asked = "all",
        *,
        indices: Sequence[int] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """uint8 (B, C, H, W): pictures 0 to number - 1 of a seed, or those in `indices`; with seed None these are
        seeds, and it is picture 0 of each.

        sampler: one of models.names.SAMPLERS. steps: network calls per picture. guidance: classifier-free
        guidance (Ho 2022); 1 samples what was learnt.
        """
        indices, way = list(range(number)) if indices is None else list(indices), self.way(sampler, steps, guidance)
        found = []
        for start in range(0, len(indices), self.batch):
            part = indices[start : start + self.batch]
            streams = [self.stream(seed, i, "predict fresh noise") for i in part]
            found.append(self.denoised(self.draw(seed, part), self.labels(label, part), way, streams=streams))
        return np.concatenate(found)

    def draw(self, seed: int | None, indices: Sequence[int]) -> torch.Tensor:
        """Noise (B, C, h, w) of the pictures `indices`, drawn on the CPU, so that every device has the same."""
        rows = [torch.randn(self.net.shape, generator=self.stream(seed, i, "predict z")) for i in indices]
        return torch.stack(rows).to(self.device)

    @torch.inference_mode()
    def denoised(
        self,
        noise: torch.Tensor,
        labels: torch.Tensor | None,
        way: Way,
        *,
        streams: Sequence[torch.Generator] = (),
        watch: Callable | None = None,
        towards: torch.Tensor | None = None,
        share: torch.Tensor | None = None,
    ) -> np.ndarray:
        """noise (B, C, h, w) denoised, uint8 (B, C, H, W).

        `streams`: a generator per picture for the noise that ancestral sampling adds. `towards` (B,): labels of another
        class, of whose prediction there is `share` (B,) and of `labels` the rest, also beyond 1. `watch(x, x0, t)` sees
        what the network is given and its estimate, at every call.
        """
        labels = None if labels is None else labels.to(self.device)
        strength: Any = way.guidance
        if isinstance(strength, Mapping):
            names = [column.name for column in self.columns]
            strength = {names.index(name): value for name, value in strength.items() if value != 1}
            for i in strength:
                if labels is not None and bool(labels[:, i].isnan().any()):
                    say_once(f"warning: --guidance {names[i]}: not set of every picture, and unknown has no guidance")

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                here = guided(self.net.unet, x, t, labels, strength).float()
                if towards is None or labels is None or share is None or torch.equal(towards, labels):
                    return here
                there = guided(self.net.unet, x, t, towards, strength).float()
            return here + share.view(-1, 1, 1, 1) * (there - here)

        estimate = samplers.denoiser(predict, self.net.schedule, self.net.target, clamp=float(self.net.decoder is None))

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            x0 = estimate(x, t)
            if watch is not None:
                watch(x, x0, t)
            return x0

        def fresh(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.randn(self.net.shape, generator=g) for g in streams]).to(x)

        x0 = samplers.sample(
            denoise, noise, self.net.schedule, way.sampler, way.steps, times=self.net.times, fresh=fresh
        )
        return self.decode(x0)

    def decode(self, x0: torch.Tensor) -> np.ndarray:
        """Clean samples (B, C, h, w) to uint8 (B, C, H, W)."""
        x0 = self.net.scale.restore(x0)
        if self.net.decoder is not None:
            with self.autocast():
                x0 = self.net.decoder(x0).float()
        return self.restored(x0)

    def interpolate(
        self,
        a: int,
        b: int,
        steps: int = 24,
        seed: int = 0,
        label: Asked = "all",
        *,
        sampler: str | None = None,
        calls: int | None = None,
        guidance: Guidance | None = None,
    ) -> np.ndarray:
        """uint8 (steps, C, H, W) from picture a (included) to picture b (not included): the noise turns from one to the
        other, and between two classes the predictions of both are blended. calls: network calls per picture."""
        way, ends, labels = (
            self.still_way(sampler, calls, guidance),
            self.draw(seed, [a, b]).flatten(1),
            self.labels(label, [a, b]),
        )
        images = []
        for amounts in (torch.arange(steps) / steps).to(self.device).split(self.batch):
            n = len(amounts)
            noise = slerp(ends[:1].expand(n, -1), ends[1:].expand(n, -1), amounts[:, None]).view(n, *self.net.shape)
            here, there = (None if labels is None else labels[i : i + 1].repeat_interleave(n, 0) for i in (0, 1))
            there = None if there is None else there.to(self.device)
            images.append(self.denoised(noise, here, way, towards=there, share=amounts))
        return np.concatenate(images)

    def still_way(self, sampler: str | None, calls: int | None, guidance: Guidance | None) -> Way:
        """The way for pictures that belong together: new noise in each would make them flicker."""
        if sampler is not None and SAMPLERS[sampler].fresh_noise:
            still = ", ".join(name for name, kind in SAMPLERS.items() if not kind.fresh_noise)
            raise UsageError(f"--sampler {sampler} adds new noise to every picture; leave it out, or use {still}")
        return self.way(sampler, calls, guidance)

    def denoise(
        self,
        index: int = 0,
        seed: int = 0,
        label: Asked = "all",
        *,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: Guidance | None = None,
    ) -> tuple[np.ndarray, list[float]]:
        """The way from noise to picture `index`: (stages, share of noise in each but the last).

        stages uint8 (calls + 1, 2, C, H, W): at each network call the estimate and the state it was made from; last the
        result, twice.
        """
        frames: list[np.ndarray] = []
        noise_share: list[float] = []

        def watch(x: torch.Tensor, x0: torch.Tensor, t: torch.Tensor) -> None:
            frames.append(np.stack([self.decode(x0)[0], self.decode(x)[0]]))
            alpha, sigma = (float(v) for v in self.net.schedule.alpha_sigma(t[:1].double().cpu()))
            noise_share.append(sigma**2 / (alpha**2 + sigma**2))

        streams = [self.stream(seed, index, "predict fresh noise")]
        way, labels = self.way(sampler, steps, guidance), self.labels(label, [index])
        result = self.denoised(self.draw(seed, [index]), labels, way, streams=streams, watch=watch)[0]
        return np.stack([*frames, np.stack([result, result])]), noise_share
