"""What a diffusion run shows while it trains: grids, their diversity, and the loss on other patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from data.batches import to_float, to_uint8
from data.latents import Latents
from data.packfile import Pack
from jobs.config.specs import DiffusionConfig
from jobs.predict.conditions import grid_labels, labels_of
from jobs.predict.latent_space import CHUNK, Data
from jobs.training import collectives, randomness, ranks
from jobs.view.grids import image_grid
from models import samplers, schedules, targets
from models.draws import normal
from models.metrics import class_diversity, diversity_ratio
from models.optim import memory_layout
from models.unet import UNet
from models.vae import LatentScale, posterior_sample

LOOKED_AT = 256  # slices of other patients that the validation loss is taken over
GRID_CHUNK = 16  # the same for the slices of a grid
BINS = 4  # of noise levels, each with a validation loss of its own


# --- one step ---------------------------------------------------------------------------------------------------------
def predictor(network: Callable, labels: torch.Tensor | None, dtype: torch.dtype) -> targets.Denoise:
    """network(x, t, labels) as a function of (x, t), under autocast."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return network(x.contiguous(memory_format=memory_layout(x.device)), t, labels).float()

    return predict


# --- what a person sees -----------------------------------------------------------------------------------------------
class Sampler:
    """Grids from fixed noise, their diversity, and the loss on other patients at fixed times and noise."""

    def __init__(
        self,
        c: DiffusionConfig,
        pack: Pack,
        data: Data,
        held_out: Pack | None,
        held_out_latents: Latents | None,
        schedule: schedules.Schedule,
        rt: ranks.Runtime,
        dtype: torch.dtype,
    ):
        self.c, self.data, self.schedule, self.rt, self.dtype = c, data, schedule, rt, dtype
        self.classes, self.columns = pack.classes, data.columns
        self.width = 8 if c.resolution <= 128 else 6
        self.number = self.width * (6 if c.resolution <= 128 else 4)
        gen = randomness.generator(c.seed, 0, "grid")
        self.noise = normal((self.number, *data.shape), gen, rt.device)
        count = min(64, len(pack.labels))
        pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().tolist()
        self.real = to_float(torch.stack([torch.from_numpy(pack.images[i].copy()) for i in pick])).to(rt.device)
        self.real_labels = torch.from_numpy(labels_of(pack, data.columns)[pick]).to(rt.device)
        self.labels, self.captions = grid_labels(c, pack, data.columns, self.real_labels, self.number, self.width)
        self.prefix = "train_loss" if held_out is None else "val_loss"
        looked_at = (pack, data.latents) if held_out is None else (held_out, held_out_latents)
        self.looked_at = self._fixed(*looked_at, rt.device)

    def _fixed(self, pack: Pack, latents: Latents | None, device: torch.device) -> tuple:
        """(x0, labels, noise, t) of slices spread over the patients, always the same."""
        count = min(LOOKED_AT, len(pack.labels))
        pick = torch.linspace(0, len(pack.labels) - 1, count).round().long().numpy()
        gen = randomness.generator(self.c.seed, 0, "validation")
        if latents is None:
            x0 = to_float(torch.from_numpy(pack.images[pick])).to(device)
        else:
            mean, logvar = torch.from_numpy(latents.values[pick]).to(device).float().unbind(1)
            sample = posterior_sample(mean, logvar, normal(mean.shape, gen, device))
            x0 = self.data.scale.normalise(sample)
        labels = torch.from_numpy(labels_of(pack, self.columns)[pick]).to(device) if self.c.labelled else None
        # Spread as evenly as can be, over all and over those of any one patient.
        t = (torch.arange(count, device=device) * 0.6180339887498949 + 0.5) % 1
        if self.c.times.startswith("fast-"):
            steps = torch.tensor(schedules.fast_steps(self.c.times, self.c.fast_steps), device=device)
            t = steps[(t * len(steps)).long()].float() / (schedules.T - 1)
        return x0, labels, normal(x0.shape, gen, device), t

    def reals(self):
        """A grid of real slices, laid out as the samples are."""
        captions = None if self.labels is None else self.captions(self.real_labels[: self.number])
        return image_grid(to_uint8(self.real[: self.number]).cpu().numpy(), self.width, labels=captions)

    def mine(self, number: int, size: int) -> list[torch.Tensor]:
        """The chunks of 0 .. number - 1 that this rank takes. A chunk is the same for any number of ranks."""
        chunks = torch.arange(number, device=self.rt.device).split(size)
        return list(chunks[self.rt.rank :: self.rt.world])

    @torch.no_grad()
    def __call__(self, unet: UNet, scale: LatentScale, nimg: int):
        """(picture of the grid or None, {figures}), on all ranks at once. Diversity is 1 where generated slices vary as
        much as real ones, sample_spread where what is denoised is as wide as the data (RMS of latents or pixels)."""
        mine, squares = self.samples(unet, scale)
        images = collectives.reduce_sum(self.rt, mine)
        figures = self.validate(unet)
        if nimg:  # an untrained network's noise says nothing
            width = (collectives.reduce_sum(self.rt, squares) / self.noise.numel()).sqrt()
            figures["sample_spread"] = float(width / self.looked_at[0].square().mean().sqrt().clamp_min(1e-6))
            figures["diversity"] = float(diversity_ratio(images, self.real))
            by_class = not self.columns
            real = class_diversity(self.real, self.real_labels) if by_class else {}
            made = class_diversity(images, self.labels) if by_class and self.labels is not None else {}
            for k, value in made.items():
                if real.get(k):
                    figures[f"diversity_{self.classes[k]}"] = float(value / real[k])
        if self.rt.rank:
            return None, figures
        captions = None if self.labels is None else self.captions(self.labels)
        return image_grid(to_uint8(images).cpu().numpy(), self.width, labels=captions), figures

    def samples(self, unet: UNet, scale: LatentScale) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (number, C, R, R) in -1 .. 1 of the fixed noise, zero where they are other ranks'; sum of squares of
        the clean samples of this rank, before the decoder)."""
        squares = torch.zeros((), device=self.rt.device)
        images = torch.zeros(self.number, self.c.channels, self.c.resolution, self.c.resolution, device=self.rt.device)
        for i in self.mine(self.number, GRID_CHUNK):
            gen = randomness.generator(self.c.seed, int(i[0]), "ancestral")
            labels = None if self.labels is None else self.labels[i]
            x0 = self.denoised(unet, self.noise[i], labels, gen)
            squares += x0.square().sum()
            images[i] = self.data.to_images(x0, scale, self.dtype)
        return images, squares

    def denoised(
        self, unet: UNet, noise: torch.Tensor, labels: torch.Tensor | None, gen: torch.Generator
    ) -> torch.Tensor:
        """Clean samples (B, c, h, w) of noise of that shape; `gen` draws what ancestral sampling adds."""
        c = self.c
        times = schedules.fast_times(c.times, c.fast_steps) if c.times.startswith("fast-") else None
        predict = predictor(unet, labels, self.dtype)
        denoise = samplers.denoiser(predict, self.schedule, c.target, clamp=float(c.space == "pixel"))
        fresh = partial(noise_like, gen)
        return samplers.sample(denoise, noise, self.schedule, c.sampler, c.steps, times=times, fresh=fresh)

    def draws(self, unet: UNet, scale: LatentScale, labels: torch.Tensor) -> Callable[[Sequence[int]], torch.Tensor]:
        """What figures are taken of: indices -> uint8 (B, C, R, R), each with its noise and its row of `labels`
        (N, ...), at every tick the same."""

        @torch.no_grad()
        def images_of(indices: Sequence[int]) -> torch.Tensor:
            images = []
            for i in torch.tensor(list(indices), device=self.rt.device).split(GRID_CHUNK):
                gen = randomness.generator(self.c.seed, int(i[0]), "metric")
                noise = normal((len(i), *self.data.shape), gen, self.rt.device)
                x0 = self.denoised(unet, noise, labels[i] if self.c.labelled else None, gen)
                images.append(to_uint8(self.data.to_images(x0, scale, self.dtype)))
            return torch.cat(images)

        return images_of

    @torch.no_grad()
    def validate(self, unet: UNet) -> dict[str, float]:
        """Loss on other patients (where there are any), over all and over each quarter of the times (0: least
        noise)."""
        x0, labels, noise, t = self.looked_at
        losses = torch.zeros(len(x0), device=self.rt.device)
        for i in self.mine(len(x0), CHUNK):
            predict = predictor(unet, None if labels is None else labels[i], self.dtype)
            losses[i] = targets.diffusion_loss(
                predict, x0[i], noise[i], t[i], self.schedule, target=self.c.target, min_snr_gamma=self.c.min_snr_gamma
            )
        losses = collectives.reduce_sum(self.rt, losses)
        figures = {self.prefix: float(losses.mean())}
        for k in range(BINS):
            inside = (t * BINS).long().clamp(max=BINS - 1) == k
            if bool(inside.any()):
                figures[f"{self.prefix}_{k}"] = float(losses[inside].mean())
        return figures


def noise_like(gen: torch.Generator, x: torch.Tensor) -> torch.Tensor:
    """Fresh Gaussian noise of the shape of x."""
    return normal(x.shape, gen, x.device)
