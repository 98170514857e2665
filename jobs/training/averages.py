"""Averages of scalars between two rows of the log."""

from __future__ import annotations

import torch


class Averages:
    """Means of scalars since the last reset, summed on the device so that a step does not wait for the GPU."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, torch.Tensor | float]) -> None:
        """One more value of each; scalars on any device."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach().double()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """{name: mean since the last reset}; this waits for the device."""
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}

    def reset(self) -> None:
        """Begin the next interval."""
        self.sums, self.counts = {}, {}

    def state_dict(self) -> dict:
        """What has been summed so far: a resumed interval goes on."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict."""
        self.sums, self.counts = {k: v.clone() for k, v in state["sums"].items()}, dict(state["counts"])
