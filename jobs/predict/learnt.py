"""Which slices weights learnt from, as far as their run, and those that it began with, say so."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from data.files import read_object, sha256_of
from data.packfile import Pack
from jobs.config.specs import ConfigError
from jobs.predict.trained import Trained
from jobs.run.attempt import learnt_others
from jobs.run.rundir import RunDir
from jobs.run.vae import copied_vae
from jobs.training.weights import WeightsError, read_weights

DEPTH = 8  # runs that began with the weights of one another


def unsure(model: Trained, train: Pack, run: RunDir | None) -> str:
    """Why it is not known that weights learnt from the slices of `train` alone; '' where it is. ConfigError where they
    learnt from others: copies of those would not be found."""
    refuse_split(model.path, model.config)
    return unsure_of_run(run, train, "their run") if run else "the weights were given as a file"


def unsure_of_run(run: RunDir, train: Pack, who: str, depth: int = 0) -> str:
    """The same of a run, and of all whose weights it began with. who: what it is to a reader, without its name."""
    config, data = (read_object(run.path / name, run.path)[0] for name in ("config.json", "data.json"))
    digests, began, space = data.get("digests"), config.get("init_from"), config.get("space")
    if lacking := [name for name, found in (("config.json", config), ("data.json", data)) if not found]:
        return f"{who} has no {lacking[0]} that can be read"
    refuse_split(str(run.path), config)
    digest = digests.get("train") if isinstance(digests, dict) else None
    if digest is None:
        return f"data.json of {who} does not say which slices it had"
    if digest != train.digest:
        fix = "train without these weights, on these slices alone" if depth else "name them with --data"
        refuse(f"{train.path}: not the slices that {run.path} was trained on", fix)
    if not run.attempts.is_file():
        return f"{who} has no attempts.jsonl"
    if learnt_others(run):
        refuse(f"{run.path}: went on with other slices (--override)", "train one on the same slices throughout")
    if depth == DEPTH:
        return "too many runs began with the weights of one another"
    why = unsure_of_vae(run, train, depth) if space == "latent" else ""
    if began and isinstance(began, str):
        why = unsure_of_run(RunDir(began), train, "the run that they began with (--init-from)", depth + 1) or why
    return why


def unsure_of_vae(run: RunDir, train: Pack, depth: int) -> str:
    """The same of the VAE that a run has copied: by the run that still has these very weights."""
    copy = copied_vae(run.path)
    try:
        refuse_split(str(copy), read_weights(copy)[1]["config"])
        size, sha = copy.stat().st_size, sha256_of(copy)
    except (OSError, WeightsError):
        return f"their run has no {copy.name} that can be read"
    named = Path(str(read_object(run.config, run.path)[0].get("vae") or run.path))
    beside = [named, named / "weights.safetensors", *sorted(run.path.parent.glob("*/weights.safetensors"))]
    for weights in beside:
        if weights.is_file() and weights.stat().st_size == size and sha256_of(weights) == sha:
            return unsure_of_run(RunDir(weights.parent), train, "the run of their VAE", depth + 1)
    return "the run of their VAE is not there, or has other weights now"


def refuse_split(name: str, config: dict) -> None:
    """ConfigError for weights that learnt from people who count as held out."""
    if (split := config.get("split", "train")) != "train":
        raise ConfigError(
            f"{name}: trained with --split {split}, so on held-out people too, and nobody can say how near to a "
            "training slice is too near; train one with --split train"
        )


def refuse(what: str, remedy: str) -> NoReturn:
    """ConfigError for weights that learnt from slices which are not compared with."""
    raise ConfigError(f"{what}, so copies of those would not be found; {remedy}")
