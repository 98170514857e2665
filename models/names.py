"""The names by which a configuration chooses among the algorithms of diffusion. Torch-free: command lines read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerKind:
    """What a command line needs to know of a sampler; models/samplers.py has the algorithm."""

    listed_times: bool = False  # can go through a given list of times, the only ones that a Fast-DDPM network knows
    fewest: int = 1  # network calls below which it is far from what it samples
    fresh_noise: bool = False  # draws noise on its way, so that pictures which belong together would flicker


SAMPLERS = {
    "midpoint": SamplerKind(),
    "dpmpp-2m": SamplerKind(),
    "ddim": SamplerKind(listed_times=True),
    "ancestral": SamplerKind(listed_times=True, fresh_noise=True),
    "heun": SamplerKind(fewest=30),
}


def too_few_calls(sampler: str, calls: int) -> str:
    """A line where a sampler needs more network calls than these, '' elsewhere (benchmarks/RESULTS.md has them all)."""
    fewest = SAMPLERS[sampler].fewest
    if calls >= fewest:
        return ""
    return f"warning: {sampler} is far off below {fewest} network calls, and {calls} are asked for; use midpoint"


OF_LISTED_TIMES = tuple(name for name, kind in SAMPLERS.items() if kind.listed_times)
SCHEDULES = ("linear", "scaled-linear", "cosine", "zero-snr", "flow")
TARGETS = ("epsilon", "x0", "v", "flow")
TIME_SETS = ("uniform", "logit-normal", "fast-uniform", "fast-nonuniform")
