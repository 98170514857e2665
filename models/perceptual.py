"""A perceptual distance from a VGG network whose weights file the user has (Johnson 2016; Zhang 2018).

Nothing is downloaded.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import IMAGENET_MEAN, IMAGENET_STD, read_state

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # their places in torchvision's vgg16().features
COMPARED = (2, 7, 14, 21, 28)  # after the last convolution before each halving, and after the last of all


class VggDistance(nn.Module):
    """Distance of two sets of images in the features of VGG-16, (B,): per layer, the squared distance of the features
    of each place, brought to length 1, averaged over the places; then the mean over the five layers (Zhang 2018,
    equation 1, with equal weights)."""

    mean: Tensor
    std: Tensor

    def __init__(self, state: dict[str, Tensor]):
        """`state`: features.<n>.weight and .bias as torchvision names them; any widths.

        ValueError where it is something else.
        """
        super().__init__()
        self.convolutions = nn.ModuleList()
        before = 3
        for place in CONVOLUTIONS:
            weight, bias = state.get(f"features.{place}.weight"), state.get(f"features.{place}.bias")
            if weight is None or bias is None or weight.shape[1:] != (before, 3, 3) or bias.shape != weight.shape[:1]:
                raise ValueError(f"features.{place} is not that of torchvision's vgg16")
            before = len(weight)
            convolution = nn.Conv2d(weight.shape[1], before, 3, padding=1)
            convolution.load_state_dict({"weight": weight.float(), "bias": bias.float()})
            self.convolutions.append(convolution)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1))
        self.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """images (B, 1 or 3, R, R) in -1 .. 1 -> five maps (B, C, h, w), each half as large as the one before."""
        x = ((images + 1) / 2 - self.mean) / self.std
        maps = []
        for place, convolution in zip(CONVOLUTIONS, self.convolutions, strict=True):
            x = F.relu(convolution(x))
            if place in COMPARED:
                maps.append(x)
                x = F.max_pool2d(x, 2) if min(x.shape[-2:]) > 1 else x
        return maps

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """output, target (B, 1 or 3, R, R) in -1 ..

        1 -> (B,): mean squared distance of the maps, normalised over their channels.
        """
        with torch.no_grad():
            wanted = self.features(target)
        total = torch.zeros(len(output), device=output.device)
        for a, b in zip(self.features(output), wanted, strict=True):
            a, b = (F.normalize(v.float(), dim=1, eps=1e-6) for v in (a, b))
            total = total + (a - b).square().sum(1).flatten(1).mean(1)
        return total / len(wanted)


def load_vgg(path: str | Path) -> VggDistance:
    """From a state dict of torchvision's vgg16 (.pth or .safetensors), read as data.

    ValueError, one line, on anything else.
    """
    state = read_state(Path(path), "--perceptual-file")
    try:
        network = VggDistance(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; give --perceptual-file a state dict of torchvision's vgg16") from None
    if not all(math.isfinite(float(p.abs().sum())) for p in network.parameters()):
        raise ValueError(f"{path}: its numbers are not finite; copy the file again")
    return network
