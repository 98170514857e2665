"""Averages of scalars between two rows of the log."""

from __future__ import annotations

import torch


class Averages:
    """Means of scalars since the last reset, summed on the device so that a step does not wait for the GPU."""

    def __init__(self):
        self.sums = torch.zeros(0, dtype=torch.float64)  # one of each name, in one tensor
        self.counts: dict[str, int] = {}  # their names, in the same order

    def add(self, values: dict[str, torch.Tensor | float]) -> None:
        """One more value of each; scalars on any device."""
        found = {name: torch.as_tensor(value).detach() for name, value in values.items()}
        for name in found:
            self.counts[name] = self.counts.get(name, 0) + 1
        device = next((v.device for v in found.values() if v.device.type != "cpu"), torch.device("cpu"))
        missing = torch.zeros((), device=device)
        stacked = torch.stack([found.get(name, missing).to(device) for name in self.counts]).double()
        before = torch.nn.functional.pad(self.sums.to(device), (0, len(stacked) - len(self.sums)))
        self.sums = before + stacked

    def means(self) -> dict[str, float]:
        """{name: mean since the last reset}; this waits for the device."""
        return {k: total / n for (k, n), total in zip(self.counts.items(), self.sums.tolist(), strict=True)}

    def reset(self) -> None:
        """Begin the next interval."""
        self.sums, self.counts = torch.zeros(0, dtype=torch.float64), {}

    def state_dict(self) -> dict:
        """What has been summed so far: a resumed interval goes on."""
        return {"sums": dict(zip(self.counts, self.sums, strict=True)), "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict."""
        self.counts, sums = dict(state["counts"]), [state["sums"][name] for name in state["counts"]]
        self.sums = torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)
