"""A trained toy: what predict.py can do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from models.toy import Toy

from jobs.predict.trained import Trained
from models import loading


@dataclass(frozen=True, kw_only=True)
class ToyModel(Trained):
    """A trained toy."""

    KIND = "toy"

    toy: Toy

    @staticmethod
    def networks(tensors: dict, about: dict, num_classes: int, device: torch.device) -> dict:
        """The networks of a weights file, as fields of this class. ValueError on what does not fit."""
        toy = Toy(about["config"]["channels"], about["config"]["resolution"])
        loading.fill(toy, loading.part(tensors, "toy"))
        return {"toy": toy.to(device)}

    def settings(self, *, seed: int = 0, label: str = "all") -> dict:
        """What decides the pictures of `sample`, for a file beside them."""
        return {"seed": seed, "class": label, **self.about}

    def sample(
        self, number: int = 1, seed: int = 0, label: str = "all", *, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """uint8 (B, C, H, W)."""
        shape = (self.channels, self.resolution, self.resolution)
        noise = [
            torch.randn(shape, generator=self.stream(seed, i, "predict z"))
            for i in (range(number) if indices is None else indices)
        ]
        return self.restored(self.toy.pictures(torch.stack(noise)))
