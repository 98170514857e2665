"""What generated pictures of people show, read by a small network that knows the phantoms.

    reader = PictureReader.fit()              # two minutes on one core
    reader.read(images)["age"]                # (N,) from uint8 (N, 64, 64)

The rulers of rulers.py are regressions by nearness: off their phantoms they fall back to the mean, and the texture of a
generated slice is enough for that (a clear plane .85 is read as .65). This reader has learnt on phantoms made worse in
every way that generated ones are, blurred, noisy, grainy, brighter or darker, so that it goes by anatomy."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from rulers import SEEN, person_truth
from torch import nn

from data.phantom_people import person_slice

TARGETS = ("age", "slice", "head", "ventricles")  # as person_truth gives them


def worse(x: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """(B, 1, H, W) in [0, 1]: each picture blurred, with noise and grain in its head, rescaled, moved and mirrored."""

    def uniform() -> torch.Tensor:
        return torch.rand(len(x), 1, 1, 1, generator=gen)

    def noise() -> torch.Tensor:
        return torch.randn(x.shape, generator=gen)

    head, width = (x > 0.04).float(), (1.2 * uniform()).view(-1, 1) + 0.05
    kernel = torch.exp(-0.5 * (torch.arange(-3.0, 4.0) / width) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).view(-1, 1, 7, 1)
    x = F.conv2d(x.transpose(0, 1), kernel, padding=(3, 0), groups=len(x))
    x = F.conv2d(x, kernel.transpose(2, 3), padding=(0, 3), groups=x.shape[1]).transpose(0, 1)
    grain = 3 * F.avg_pool2d(noise(), 3, 1, 1)
    x = x + 0.1 * head * (noise() * uniform() + grain * uniform()) + 0.02 * noise() * uniform()
    x = x * (0.8 + 0.4 * uniform())
    down, right = torch.randint(-2, 3, (2,), generator=gen).tolist()
    return torch.where(uniform() < 0.5, x, x.flip(3)).roll((down, right), (2, 3))


def network(side: int, outputs: int) -> nn.Module:
    """Four strided convolutions and a linear layer, for pictures of `side` pixels."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU()]
    for before, after, stride in ((16, 32, 1), (32, 48, 2), (48, 64, 2), (64, 64, 2)):
        layers += [nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * (side // 16) ** 2, outputs))


@dataclass
class PictureReader:
    """A network and what its outputs are in units of."""

    net: nn.Module
    mean: torch.Tensor
    std: torch.Tensor

    @classmethod
    @functools.cache
    def fit(cls, seed=555, number=4000, epochs=14, side=64, batch=50) -> PictureReader:
        """Learn on freely drawn phantoms, whose truth is known. Age counts where there are ventricles."""
        images = np.stack([person_slice(seed, index, side) for index in range(number)])
        truths = [person_truth(seed, index, grid=64) for index in range(number)]
        x = torch.from_numpy(images)[:, None].float() / 255
        y = torch.tensor([[float(truth[name]) for name in TARGETS] for truth in truths])
        mean, std = y.mean(0), y.std(0)
        counts = torch.ones_like(y)
        counts[:, TARGETS.index("age")] = y[:, TARGETS.index("slice")] < SEEN
        gen, steps = torch.Generator().manual_seed(seed), epochs * (number // batch)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = network(side, len(TARGETS))
            optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
            for step in range(steps):
                if step % (number // batch) == 0:
                    order = torch.randperm(number, generator=gen)
                rows = order[step % (number // batch) * batch :][:batch]
                error = (net(worse(x[rows], gen)) - (y[rows] - mean) / std).square()
                (error * counts[rows]).mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
        return cls(net.eval(), mean, std)

    @torch.no_grad()
    def read(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (N, side, side) -> {target: (N,)}, as person_truth has them."""
        x = torch.from_numpy(np.ascontiguousarray(images))[:, None].float() / 255
        found = torch.cat([self.net(part) for part in x.split(256)]) * self.std + self.mean
        return dict(zip(TARGETS, found.double().numpy().T, strict=True))
