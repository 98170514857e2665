"""What the figures of a run say about its health, in a line that a person cannot overlook.

A verdict holds until the next look says otherwise. It lives in the counters of a checkpoint and in status.json, where
`launch.py status` and `why` read it. While a run is not healthy, nothing that it makes takes the place of its healthy
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from jobs.config import kinds
from jobs.config.specs import GanConfig, TrainConfig
from jobs.run.vae import COLLAPSE

COLLAPSE_RATIO = 0.35  # generated slices that vary less than this share of the real ones: the generator has collapsed
COLLAPSE_FLOOR = 0.1  # the same for a generator that never varied more
COPIES_RISING = 0.25  # share of the samples, where 0.05 is even: five times what chance gives
FLOOR_AFTER = 20_000  # images after which a generator without any diversity is a collapsed one
NARROW = 0.5  # of the real slices' diversity
AHEAD = {"logistic": 0.2, "rpgan": 0.1}  # loss_D below which D is hardly ever wrong; even is 1.39 and 0.69
AHEAD_LOOKS = 3  # in a row
TOLD_APART = 0.4  # so much more often a probe takes held-out slices of a class for it than those of other classes
LOST = 0.3  # of that, below which generated slices are hardly told apart
SETTLED = 0.1  # of a run's length, after which a VAE or a diffusion network is held to account
SPREAD = (0.5, 1.5)  # of samples over that of the data: outside, they have left the range of the data
VERDICT = "verdict "  # begins their keys in the counters
SICK = {"MODE COLLAPSE", COLLAPSE, "NO RECONSTRUCTION", "OUT OF RANGE"}  # not healthy

Findings = Iterator[tuple[str, str]]  # (name, what it means and what to do)


@dataclass(frozen=True)
class Rule:
    """look(config, row, counters, nimg) yields (name of a verdict, its text); asked where the row has a column that
    begins with `column`. Its verdicts hold until it is asked again."""

    look: Callable[[TrainConfig, dict, dict, int], Findings]
    column: str
    names: tuple[str, ...]


def judge(c: TrainConfig, row: dict, counters: dict, nimg: int, say: Callable[[str], None]) -> None:
    """Look at the columns of a row and write the verdicts and `healthy` into the counters; the same on every rank."""
    if not nimg:  # an untrained network is neither well nor sick
        return
    asked = False  # what a checkpoint says of a run's health stays until the figures are there that say so
    for rule in RULES.get(kinds.name_of(c), ()):
        if any(name.startswith(rule.column) for name in row):
            asked |= not SICK.isdisjoint(rule.names)
            for name in rule.names:
                counters.pop(VERDICT + name, None)
            for name, text in rule.look(c, row, counters, nimg):
                counters[VERDICT + name] = text
                say(f"WARNING: {name}: {text}")
    if asked:
        counters["healthy"] = not any(VERDICT + name in counters for name in SICK)


def verdict(counters: dict) -> str:
    """All that holds, in one line; '' of a run of which nothing bad is known."""
    held = {k.removeprefix(VERDICT): v for k, v in counters.items() if k.startswith(VERDICT)}
    return "; ".join(f"{name}: {text}" for name, text in held.items())


# fmt: off
# --- rules ------------------------------------------------------------------------------------------------------------
def diversity(c, row: dict, counters: dict, nimg: int) -> Findings:
    """A run is collapsed when its diversity was there once and fell below COLLAPSE_RATIO of the real slices', or when
    it is all but gone after the first FLOOR_AFTER images. It narrows while it falls and is below NARROW."""
    low = min(value for name, value in row.items() if name.startswith("diversity"))
    last = counters.get("last_diversity", 0.0)
    counters["best_diversity"] = best = max(counters.get("best_diversity", 0.0), low)
    counters["last_diversity"] = low
    fix = f"try {remedies(c)}"
    if (best > 2 * COLLAPSE_RATIO and low < COLLAPSE_RATIO) or (low < COLLAPSE_FLOOR and nimg >= FLOOR_AFTER):
        yield "MODE COLLAPSE", (
            f"generated slices vary only {low:.2f} times as much as real ones (it was {best:.2f}); the weights "
            f"before it are kept as weights-healthy.safetensors; {fix}"
        )
    elif low < NARROW < best and low < last:
        yield "NARROWING", f"generated slices vary {low:.2f} times as much as real ones, after {best:.2f}; {fix}"


def remedies(c) -> str:
    """What helps against slices that are alike, of what the run does not have yet."""
    if not isinstance(c, GanConfig):
        return "more data or a longer run"
    ada = ", or --ada mri" * (c.ada == "off")
    if c.loss != "rpgan":  # whose path length and mixing are 0 anyway
        return f"--loss rpgan, another --gamma than {c.gamma:g}{ada}"
    length, mixing = "--pl-weight 0, " * bool(c.pl_weight), "--style-mixing 0, " * bool(c.style_mixing)
    return f"{length}{mixing}another --gamma than {c.gamma:g}{ada}"


def ahead(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether D has been far ahead of G for AHEAD_LOOKS looks."""
    if "loss_D" not in row:
        return
    counters["ahead"] = counters.get("ahead", 0) + 1 if row["loss_D"] < AHEAD[c.loss] else 0
    if counters["ahead"] >= AHEAD_LOOKS:
        yield "D FAR AHEAD", (
            f"D's loss is {row['loss_D']:.2g} at {counters['ahead']} looks in a row: it is hardly ever wrong, and G "
            f"learns little from it; try {remedies(c)}"
        )


def copies(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether samples turn into training slices."""
    if row["copies"] > COPIES_RISING:
        yield "COPIES", (
            f"{100 * row['copies']:.0f} % of the samples are nearer to a training slice than 95 % of held-out "
            f"slices are (5 % is even): it learns slices by heart; use more data, or --at best"
        )


def classes(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether slices of a class are told from the others as those of held-out people are.

    What counts is how much more often a probe takes slices of a class for it than those of the others (Youden's index):
    0 where the class makes no difference, whatever mixture is made and however many classes there are.
    """
    lost = []
    for name in (key.removeprefix("found_") for key in row if key.startswith("found_")):
        found, taken, *held = (row.get(of + name, 0.0) for of in ("found_", "taken_", "real_found_", "real_taken_"))
        if held[0] - held[1] >= TOLD_APART and found - taken < LOST * (held[0] - held[1]):
            lost.append(f"{name} ({found:.0%} and {taken:.0%}; of held-out ones {held[0]:.0%} and {held[1]:.0%})")
    if lost and nimg >= SETTLED * c.total_kimg * 1000:
        yield "CLASS LOST", (
            "slices made as a class are hardly taken for it more often than others are: "
            f"{', '.join(lost)}; try a longer run, or balance the classes"
        )


def posterior(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether the latents carry anything."""
    if not row["active_channels"] and nimg >= SETTLED * c.total_kimg * 1000:
        yield COLLAPSE, (
            "no channel of the latents carries anything of the slices (active_channels 0): they are noise, which a "
            f"diffusion network would learn; use a smaller --kl-weight than {c.kl_weight:g}"
        )


def reconstruction(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether reconstructions are better than one picture for all."""
    psnr = next(row[name] for name in ("val_psnr", "train_psnr") if name in row)
    if psnr <= row["mean_slice_psnr"] and nimg >= SETTLED * c.total_kimg * 1000:
        yield "NO RECONSTRUCTION", (
            f"reconstructions ({psnr:.1f} dB) are no better than the mean of the training slices "
            f"({row['mean_slice_psnr']:.1f} dB); use a smaller --kl-weight or --lr"
        )


def spread(c, row: dict, counters: dict, nimg: int) -> Findings:
    """Whether samples are as wide as the data that they are to be like."""
    value = row["sample_spread"]
    if not SPREAD[0] <= value <= SPREAD[1] and nimg >= SETTLED * c.total_kimg * 1000:
        yield "OUT OF RANGE", (
            f"samples are {value:.2f} times as wide as the data, of which no slices can be made; "
            "use a smaller --lr, more --steps, or another --sampler"
        )


# fmt: on
DIVERSITY = Rule(diversity, "diversity", ("MODE COLLAPSE", "NARROWING"))
COPIES, CLASSES = Rule(copies, "copies", ("COPIES",)), Rule(classes, "found_", ("CLASS LOST",))
RULES = {
    "stylegan2": (DIVERSITY, Rule(ahead, "diversity", ("D FAR AHEAD",)), COPIES, CLASSES),
    "vae": (
        Rule(posterior, "active_channels", (COLLAPSE,)),
        Rule(reconstruction, "mean_slice_psnr", ("NO RECONSTRUCTION",)),
    ),
    "diffusion": (DIVERSITY, Rule(spread, "sample_spread", ("OUT OF RANGE",)), COPIES, CLASSES),
}
