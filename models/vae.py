"""KL-VAE of images: encoder, decoder, and the losses that train them (Kingma and Welling 2014; Rombach 2022).

Images are (B, C, R, R) in -1 .. 1, latents (B, L, R / down, R / down). All losses are means per value, so that their
weights mean the same at every size: a KL weight of a program that sums over the latents or the pixels is another
number.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.metrics import ssim
from models.unet import Attention, group_norm

MULTIPLIERS = (1, 2, 4, 4)  # of the width, per halving
LOGVAR_RANGE = (-30.0, 20.0)
ACTIVE_VARIANCE = 0.01  # a latent channel whose mean varies less over the data carries nothing (Burda 2016, section 2)
MAX_GAN_WEIGHT = 1e4


# --- networks ---------------------------------------------------------------------------------------------------------
class ResBlock(nn.Module):
    """GroupNorm, SiLU, 3x3, twice. (B, C_in, h, w) -> (B, C_out, h, w)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1, self.conv1 = group_norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = group_norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class Upsample(nn.Module):
    """Nearest neighbours, then 3x3: (B, C, h, w) -> (B, C, 2h, 2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(channels: int) -> list[nn.Module]:
    """The blocks at the lowest resolution: residual, attention, residual."""
    return [ResBlock(channels, channels), Attention(channels, math.gcd(64, channels)), ResBlock(channels, channels)]


def widths_of(width: int, down: int) -> list[int]:
    """Channels at each resolution, finest first; down = 2, 4 or 8 halves once, twice or three times."""
    if down not in (2, 4, 8):
        raise ValueError(f"down {down}: choose 2, 4 or 8")
    return [width * m for m in MULTIPLIERS[: down.bit_length()]]


class VAE(nn.Module):
    """Encoder and decoder. `encode` gives the posterior's mean and log-variance, `decode` an image."""

    def __init__(self, channels: int = 1, latent_channels: int = 8, width: int = 64, down: int = 8, num_res: int = 2):
        super().__init__()
        widths = widths_of(width, down)
        self.down, self.latent_channels = down, latent_channels
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        c = widths[0]
        for i, w in enumerate(widths):
            for _ in range(num_res):
                layers.append(ResBlock(c, w))
                c = w
            if i < len(widths) - 1:
                layers.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
        layers += [*middle(c), group_norm(c), nn.SiLU(), nn.Conv2d(c, 2 * latent_channels, 3, padding=1)]
        self.encoder = nn.Sequential(*layers)

        layers = [nn.Conv2d(latent_channels, c, 3, padding=1), *middle(c)]
        for i, w in reversed(list(enumerate(widths))):
            for _ in range(num_res):
                layers.append(ResBlock(c, w))
                c = w
            if i:
                layers.append(Upsample(c))
        layers += [group_norm(c), nn.SiLU(), nn.Conv2d(c, channels, 3, padding=1)]
        self.decoder = nn.Sequential(*layers)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), each (B, L, R / down, R / down) float32."""
        mean, logvar = self.encoder(images).float().chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def decode(self, z: Tensor) -> Tensor:
        """(B, L, h, w) to (B, C, h down, w down) float32, not clamped."""
        return self.decoder(z).float()

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction of a sample, mean, logvar); `noise` (B, L, h, w) standard normal picks the sample."""
        mean, logvar = self.encode(images)
        return self.decode(posterior_sample(mean, logvar, noise)), mean, logvar


class PatchDiscriminator(nn.Module):
    """PatchGAN with `layers` halvings (Isola 2017). (B, C, R, R) -> logits (B, 1, h, w), one per patch.

    GroupNorm instead of BatchNorm: no statistics over the batch, so the number of ranks does not matter.
    """

    def __init__(self, channels: int = 1, width: int = 64, layers: int = 3):
        super().__init__()
        modules: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        c = width
        for i in range(1, layers + 1):
            w = width * min(2**i, 8)
            modules += [nn.Conv2d(c, w, 4, stride=2 if i < layers else 1, padding=1), group_norm(w), nn.LeakyReLU(0.2)]
            c = w
        self.model = nn.Sequential(*modules, nn.Conv2d(c, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, R, R) -> logits (B, 1, h, w) fp32, one per patch."""
        return self.model(images).float()


# --- losses, one value per image --------------------------------------------------------------------------------------
def posterior_sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """mean + exp(logvar / 2) noise (Kingma and Welling 2014, section 2.4)."""
    return mean + (0.5 * logvar).exp() * noise


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """(B,) KL(N(mean, exp(logvar)) || N(0, 1)) in nats per latent value (Kingma and Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)


def reconstruction_loss(output: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """(B,) mean over pixels and channels of |difference| or its square, on the scale -1 .. 1."""
    difference = output - target
    values = difference.abs() if kind == "l1" else difference.square()
    return values.flatten(1).mean(1)


def structure_loss(output: Tensor, target: Tensor, scales: int = 3) -> Tensor:
    """(B,) a perceptual term that needs no other network: 1 - SSIM plus the L1 distance of the gradients, over scales.

    Each scale halves the images (mean of 2 x 2); SSIM as in `metrics.ssim` with a window of 7 (Wang 2004).
    """
    total = torch.zeros(len(output), device=output.device)
    used = 0
    for _ in range(scales):
        if output.shape[-1] < 8:
            break
        dy = (output.diff(dim=-2) - target.diff(dim=-2)).abs().flatten(1).mean(1)
        dx = (output.diff(dim=-1) - target.diff(dim=-1)).abs().flatten(1).mean(1)
        similarity = ssim((output + 1) / 2, (target + 1) / 2, window=7)
        total = total + (1 - similarity) + dx + dy
        output, target, used = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2), used + 1
    return total / max(used, 1)


def hinge_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """(B,) max(0, 1 - D(real)) / 2 + max(0, 1 + D(fake)) / 2, mean over patches (Lim and Ye 2017)."""
    loss = F.relu(1 - real_logits) + F.relu(1 + fake_logits)
    return 0.5 * loss.flatten(1).mean(1)


def hinge_g_loss(fake_logits: Tensor) -> Tensor:
    """(B,) -D(fake), mean over patches."""
    return -fake_logits.flatten(1).mean(1)


def balanced_weight(reconstruction_norm: Tensor, adversarial_norm: Tensor) -> Tensor:
    """Weight that makes the adversarial gradient on the image as long as that of the reconstruction, clamped.

    Esser 2021, equation 7, takes the gradients of the last layer; on the image itself (Defossez 2023, section 3.4) the
    sums over rows are plain numbers, which ranks and micro-batches can add.
    """
    return (reconstruction_norm / (adversarial_norm + 1e-4)).clamp(0, MAX_GAN_WEIGHT).detach()


# --- latents ----------------------------------------------------------------------------------------------------------
def latent_figures(mean: Tensor, square: Tensor, sd: Tensor, variance: Tensor) -> dict[str, float]:
    """What the latents are like, from means over slices and places, (L,) each: of the posterior mean, of its square,
    and of the posterior's standard deviation and variance.

    active_channels: how many posterior means vary over the data (Burda 2016). latent_mean, latent_std (RMS over the
    channels, with its least and largest): of posterior samples. posterior_std near 1 with few active channels is
    posterior collapse.
    """
    spread = (square - mean**2).clamp(min=0)
    total = (spread + variance).sqrt()
    return {
        "active_channels": int((spread > ACTIVE_VARIANCE).sum()),
        "latent_mean": float(mean.mean()),
        "latent_std": float(total.square().mean().sqrt()),
        "latent_std_min": float(total.min()),
        "latent_std_max": float(total.max()),
        "posterior_std": float(sd.mean()),
    }


class LatentScale(nn.Module):
    """Shift and scale of latents (or pixels) per channel to mean 0 and standard deviation 1, measured over the whole
    data."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        """mean, std (L,)."""
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def normalise(self, z: Tensor) -> Tensor:
        """(B, L, h, w) of the encoder -> mean 0, standard deviation 1 per channel."""
        return (z - self.mean) / self.std

    def restore(self, z: Tensor) -> Tensor:
        """The inverse of normalise: what the decoder takes."""
        return z * self.std + self.mean
