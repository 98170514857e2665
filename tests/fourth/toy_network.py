"""The mean and the spread of slices, pixel by pixel."""

import torch
from torch import nn


class Toy(nn.Module):
    """Independent normal pixels."""

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(channels, resolution, resolution))
        self.log_sd = nn.Parameter(torch.zeros(channels, resolution, resolution))

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Negative log likelihood of images (B, C, R, R), without its constant."""
        return (self.log_sd + 0.5 * ((images - self.mean) / self.log_sd.exp()) ** 2).mean()

    def pictures(self, noise: torch.Tensor) -> torch.Tensor:
        """noise (B, C, R, R) -> pictures (B, C, R, R)."""
        return self.mean + self.log_sd.exp() * noise
