"""What a VAE run shows while it trains: reconstructions, and how true they are on other patients."""

from __future__ import annotations

import torch

from data.batches import to_float, to_uint8
from data.packfile import Pack
from jobs.config.specs import VaeConfig
from jobs.predict.features import evenly
from jobs.training import collectives, ranks
from jobs.view.grids import image_grid
from models.metrics import head_mask, psnr, ssim
from models.vae import (
    VAE,
    latent_figures,
)

LOOKED_AT = 256  # slices of other patients that the figures are taken over
CHUNK = 32  # of them go through the network at once; ranks take chunks in turn


# --- what a person sees -----------------------------------------------------------------------------------------------
class Reconstructions:
    """Slices above their reconstructions, and how true these are on patients that the VAE does not train on."""

    def __init__(self, c: VaeConfig, pack: Pack, held_out: Pack | None, rt: ranks.Runtime, dtype: torch.dtype):
        source = pack if held_out is None else held_out
        self.count = min(LOOKED_AT, len(source.labels))
        self.of = f"{self.count} of {source.digest[:12]}"  # the slices that the figures are of
        pick = torch.linspace(0, len(source.labels) - 1, self.count).round().long().split(CHUNK)  # over all patients
        self.rt, self.dtype = rt, dtype
        self.prefix, self.columns = ("train" if held_out is None else "val"), 8 if c.resolution <= 128 else 6
        self.images = [  # of this rank
            to_float(torch.stack([torch.from_numpy(source.images[i].copy()) for i in part.tolist()])).to(rt.device)
            for part in pick[rt.rank :: rt.world]
        ]
        self.masks = [head_mask((images + 1) / 2) for images in self.images]
        learnt = evenly(len(pack.labels), LOOKED_AT)
        self.mean_slice = to_float(torch.from_numpy(pack.images[learnt])).mean(0, keepdim=True).to(rt.device)

    def reals(self):
        """The slices that are looked at, uint8 picture."""
        return image_grid(to_uint8(self.images[0][: 4 * self.columns]).cpu().numpy(), self.columns)

    @torch.no_grad()
    def __call__(self, vae: VAE):
        """(grid or None, {figures}), on all ranks at once: PSNR in dB and SSIM of the posterior mean's image, over all
        pixels and inside the head; active channels, mean and deviation of the latents, mean deviation of their
        posteriors."""
        sums = torch.zeros(6, 2, dtype=torch.float64, device=self.rt.device)
        moments, shown = torch.zeros(4, vae.latent_channels, dtype=torch.float64, device=self.rt.device), None
        for images, mask in zip(self.images, self.masks, strict=True):
            with torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                mean, logvar = vae.encode(images)
                output = vae.decode(mean).clamp(-1, 1)
            shown = output if shown is None else shown
            a, b = (output + 1) / 2, (images + 1) / 2
            values = torch.stack(
                [
                    (a - b).abs().flatten(1).mean(1).double(),
                    psnr(a, b),
                    ssim(a, b).double(),
                    psnr(a, b, mask),
                    ssim(a, b, mask).double(),
                    psnr(((self.mean_slice + 1) / 2).expand_as(b), b),
                ]
            )
            finite = torch.isfinite(values)  # a slice without a head has no figure inside it
            sums += torch.stack([values.nan_to_num(0, 0, 0).sum(1), finite.sum(1).double()], dim=1)
            z, spread = (v.double().transpose(0, 1).flatten(1) for v in (mean, (0.5 * logvar).exp()))
            means = torch.stack([v.mean(1) for v in (z, z.square(), spread, spread.square())])
            moments += means * len(images) / self.count
        sums, moments = collectives.reduce_sum(self.rt, sums), collectives.reduce_sum(self.rt, moments)
        names = ("l1", "psnr", "ssim", "psnr_head", "ssim_head")
        *means_of, of_mean_slice = (sums[:, 0] / sums[:, 1]).tolist()
        figures = dict(zip((f"{self.prefix}_{k}" for k in names), means_of, strict=True))
        figures["mean_slice_psnr"] = of_mean_slice
        figures |= latent_figures(*moments)
        return (None if self.rt.rank or shown is None else self.grid(shown)), figures

    def grid(self, output: torch.Tensor):
        """Slices above, their reconstructions below."""
        n = min(self.columns, len(output))
        pairs = [t[i * n : (i + 1) * n] for i in range(4) for t in (self.images[0], output)]
        rows = [row for row in pairs if len(row) == n]  # what does not fill a row would stand under another one's name
        names = ["slice", "the VAE's"] * (len(rows) // 2)
        return image_grid(to_uint8(torch.cat(rows)).cpu().numpy(), n, row_labels=names)
