"""The numbers of a StyleGAN2 that follow from its resolution, batch and loss where none is given; and --condition in
its one spelling.

Worked out once, when the command line is read: RUN/config.json holds the numbers, and a run that has begun keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from data.files import is_phantom
from jobs.config.specs import AUTO, ConfigError, GanConfig, SamplingConfig, TrainConfig

Config = TypeVar("Config", bound=TrainConfig)

MBSTD_GROUP = 4  # rows, where the batch has as many


def rule(c: GanConfig) -> dict[str, float]:
    """{field: its number} for this resolution, batch, loss and start.

    gamma, the half-life of the EMA and the group are those of StyleGAN2-ADA's `auto` (Karras 2020b, the authors' code):
    0.0002 R^2 / B, 10 / 32 kimg per image of the batch, 4. Relativistic pairing needs a stronger penalty: 0.5 every 8
    steps at 64 px and batch 16 was measured here (benchmarks/NOTES.md), ten times that rule, and it is scaled alike;
    R3GAN's own (Huang 2024: 2 falling to 0.2 at 64 px, 150 to 15 at 256 px, every step) is larger and rises faster.
    With penalties every second step, no path length and no mixed styles (R3GAN has neither), runs of different seeds
    came out alike (benchmarks/NOTES.md). ADA's targets and speeds: Karras 2020b, section 3, and the authors'
    code.
    """
    pairs = c.loss == "rpgan"
    return {
        "gamma": float(f"{(0.002 if pairs else 0.0002) * c.resolution**2 / c.batch:.4g}"),
        "r1_interval": 2 if pairs else 16,
        "pl_weight": 0.0 if pairs else 2.0,
        "style_mixing": 0.0 if pairs else 0.9,
        "ema_kimg": c.batch * 10 / 32,
        "mbstd_group": math.gcd(c.batch, MBSTD_GROUP),
        "ada_target": 0.5 if pairs else 0.6,
        "ada_kimg": 100.0 if c.init_from else 500.0,
    }


def derived(config: Config, begun: Callable[[], Config | None] = lambda: None) -> Config:
    """The config with a number wherever it says auto: the run's own where it has `begun`, else rule()'s."""
    if not isinstance(config, GanConfig) or config.batch < 1:  # such a batch is refused by the checks
        return config
    found: dict[str, Any] = {name: value for name, value in rule(config).items() if getattr(config, name) == AUTO}
    before = begun() if found else None
    if before is not None:
        found |= {name: own for name in found if (own := getattr(before, name)) != AUTO}
    return replace(config, **found)


def conditioned(config: Config) -> Config:
    """The config with --condition in one spelling: class first and by --conditional, then the others in order; class
    alone is --conditional. Phantoms are then those that have such columns."""
    if not isinstance(config, SamplingConfig) or not config.condition:
        return config
    names = [name.strip() for name in config.condition.split(",")]
    names = ["class" if name.lower() == "class" else name for name in names]
    if not all(names) or len({name.lower() for name in names}) < len(names):
        text = "write each column once, with commas between, such as class,age,slice"
        raise ConfigError(f"--condition {config.condition}: {text}")
    others = sorted(set(names) - {"class"})
    conditional = config.labelled_by_class or "class" in names
    people = ":people" * (bool(others) and is_phantom(config.data) and not config.data.endswith(":people"))
    changes: dict[str, Any] = {
        "conditional": conditional,
        "condition": ",".join(["class"] * conditional + others) if others else "",
        "data": config.data + people,
    }
    return replace(config, **changes)


def recipe_line(c: GanConfig) -> str:
    """What the run's numbers follow from and which do not follow, in one line."""
    own = {name: (getattr(c, name), value) for name, value in rule(c).items()}
    follow = ", ".join(f"{flag(name)} {value:g}" for name, (value, its) in own.items() if value == its)
    given = ", ".join(f"{flag(name)} {value:g} (not {its:g})" for name, (value, its) in own.items() if value != its)
    start = ", --init-from" if c.init_from else ""
    line = f"from {c.resolution} px, --batch {c.batch}, --loss {c.loss}{start}: {follow or 'nothing'}"
    return f"{line}; given: {given}" if given else line


def flag(name: str) -> str:
    """--r1-interval of r1_interval."""
    return "--" + name.replace("_", "-")
