"""A trained VAE: slices to latents and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.batches import to_float
from jobs.predict.trained import Trained
from models import loading
from models.conditions import Told
from models.vae import VAE


@dataclass(frozen=True, kw_only=True)
class VaeModel(Trained):
    """A trained VAE."""

    KIND = "VAE"

    vae: VAE

    @staticmethod
    def networks(tensors: dict, about: dict, num_classes: Told, device: torch.device) -> dict:
        """The networks of a weights file, as fields of this class. ValueError on what does not fit."""
        return {"vae": loading.load_vae(tensors, about["config"]).to(device)}

    @torch.inference_mode()
    def encode(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, R, R) -> means of the posterior (B, c, h, w) fp32."""
        pixels = torch.as_tensor(images)
        with self.autocast():
            parts = [self.vae.encode(to_float(part.to(self.device)))[0] for part in pixels.split(self.batch)]
        return torch.cat(parts).float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, c, h, w) -> images fp32 (B, C, R, R) in 0..1."""
        with self.autocast():
            parts = [self.vae.decode(part) for part in latents.split(self.batch)]
        return (torch.cat(parts).float().clamp(-1, 1) + 1) / 2
