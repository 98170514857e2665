"""From a command line or a stored config.json to a resolved configuration, and its name."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from data.files import is_phantom, say
from jobs.config import kinds
from jobs.config.cards import Card
from jobs.config.help import help_text, refuse_unknown
from jobs.config.recipe import conditioned, derived, rule
from jobs.config.recorded import spread
from jobs.config.rules import CHOICES, FREE
from jobs.config.specs import AUTO, ROOT, ConfigError, GanConfig, TrainConfig, read_json
from jobs.config.version import version

Config = TypeVar("Config", bound=TrainConfig)
# Made absolute: a job may run in another folder.
PATH_FIELDS = ("data", "table", "init_from", "vae", "perceptual_file", "feature_weights")


def parse_config(
    cls: type[Config], argv: list[str] | None = None, data_of: Callable[[str], str] = lambda preset: ""
) -> Config:
    """Resolve a config from the command line. Wrong flags exit with code 2; wrong values raise ConfigError.

    With `--run` of an existing run and no `--preset`, the run's own config is what the flags are laid over, so that
    `--run DIR` alone resumes it. data_of(preset): the path of the data where neither flag nor preset names one.
    """
    config, unknown = parse_known(cls, argv, data_of)
    assert not unknown, unknown
    return config


def parse_known(
    cls: type[Config],
    argv: list[str] | None = None,
    data_of: Callable[[str], str] = lambda preset: "",
    let_unknown_pass: bool = False,
) -> tuple[Config, list[str]]:
    """parse_config; with `let_unknown_pass` also the words that are no flags of this class, instead of their
    refusal."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not let_unknown_pass:
        answer_at_once(cls, argv)
    argv = spread(argv, cls)
    import tyro  # slow to import, and launch.py needs the presets only

    argv, fit = take_auto(argv)
    argv = spelled_out(argv)
    base = _base(cls, *_run_and_preset(argv))
    parsed: Any = tyro.cli(  # type: ignore[call-overload]
        cls,
        args=argv,
        default=base,
        prog=Path(sys.argv[0]).name,
        config=(tyro.conf.HelptextFromCommentsOff,),
        return_unknown_args=let_unknown_pass,
    )
    config, unknown = parsed if let_unknown_pass else (parsed, [])
    if fit:
        config = fitted(config, config.run, ranks_here(), local_card)
    config = derived(config, partial(begun_of_this_job, config))
    config = conditioned(replace(config, data=config.data or data_of(config.preset)))
    paths: dict[str, Any] = {name: _absolute(value) for name in PATH_FIELDS if (value := getattr(config, name, ""))}
    config = replace(config, **paths)
    config = replace(config, run=_absolute(config.run) if config.run else str(ROOT / "runs" / default_name(config)))
    kinds.check(config)
    return config, unknown


def answer_at_once(cls: type[TrainConfig], argv: list[str] | None = None) -> None:
    """What needs neither torch nor tyro, each of which takes a while to import: --help, --version, and the refusal of
    flags that there are not. Returns where there is something to do."""
    argv = sys.argv[1:] if argv is None else argv
    if "--version" in argv:
        say(version())
        sys.exit(0)
    if {"-h", "--help"} & set(argv):
        base = cls()
        with contextlib.suppress(ConfigError):
            base = _base(cls, *_run_and_preset(argv))
        say(help_text(base, kinds.JOBS[kinds.name_of(cls)].script))
        sys.exit(0)
    refuse_unknown(cls, argv)


def take_auto(argv: list[str]) -> tuple[list[str], bool]:
    """The words without `--batch auto`, and whether it was there; a later --batch N wins."""
    words, auto = [], False
    rest = iter(argv)
    for word in rest:
        value = word.removeprefix("--batch=") if word.startswith("--batch=") else None
        if word == "--batch" and (value := next(rest, None)) is None:
            words.append(word)
            continue
        if value is not None:
            auto = value == "auto"
        if value != "auto":
            words += [word] if value is None or word != "--batch" else [word, value]
    return words, auto


def spelled_out(argv: list[str]) -> list[str]:
    """The words with the number for `auto` behind each flag that may say so."""
    flags = {f"--{name.replace('_', '-')}" for name in rule(GanConfig())}

    def may(word: str) -> bool:
        return word.partition("=")[0].replace("_", "-") in flags  # tyro takes --r1_interval, too

    words = [word.replace("=auto", f"={AUTO}") if may(word) else word for word in argv]
    return [
        str(AUTO) if word == "auto" and may(before) else word for before, word in zip(["", *words], words, strict=False)
    ]


def begun(config: Config) -> Config | None:
    """The config that is stored where this one's run is, None where nothing is."""
    stored = Path(config.run, "config.json").expanduser()
    return _stored(type(config), stored) if config.run and os.path.lexists(stored) else None


def begun_of_this_job(config: Config) -> Config | None:
    """begun(), and None for what cannot be gone on with: that is refused where the two are compared."""
    with contextlib.suppress(ConfigError):
        return begun(config)
    return None


def fitted(config: Config, run: str, world: int, gpu: Callable[[], Card | None]) -> Config:
    """The config with what `--batch auto` comes to on `world` GPUs of this kind, and says so; of a run that has begun,
    with its own batch. ConfigError where the GPU is unknown."""
    if before := begun(replace(config, run=run)):
        return replace(config, batch=before.batch, accumulate=before.accumulate)
    card = gpu()
    if card is None:
        raise ConfigError("--batch auto: no GPU is named whose memory is known; give --batch N")
    batch, accumulate = kinds.largest_batch(config, world, card)
    config = replace(config, batch=batch, accumulate=accumulate)
    memory = kinds.JOBS[kinds.name_of(config)].memory_gb(config, world, card.capability)
    found = f"--batch {batch} --accumulate {accumulate}, about {memory:.1f} GB on each of {world} x {card.name}"
    say(f"--batch auto: {found}, which has {card.gb:g} GB", to=sys.stderr)
    return config


def ranks_here() -> int:
    """How many processes torchrun or Slurm start for this command."""
    env = os.environ
    return int(env.get("WORLD_SIZE") or env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)


def local_card() -> Card | None:
    """The first GPU of this machine, as nvidia-smi has it; None without one."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        lines = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        name, capability, mib = (text.strip() for text in lines[0].rsplit(",", 2))
        major, minor = capability.split(".")
        return Card(name, (int(major), int(minor)), round(int(mib) * 1.048576e-3, 1))
    return None


def _run_and_preset(argv: list[str]) -> tuple[str | None, str | None]:
    """What --run and --preset say: they choose the values that the other flags are laid over."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--run")
    first.add_argument("--preset")
    known, _ = first.parse_known_args(argv)
    return known.run, known.preset


def _base(cls: type[Config], run: str | None, preset: str | None) -> Config:
    """The values below the flags: of the named preset, else of the stored run, else of the default preset."""
    stored = Path(run, "config.json").expanduser() if run else None
    if preset is None and stored is not None and os.path.lexists(stored):
        base = _stored(cls, stored)
    else:
        job = kinds.JOBS[kinds.name_of(cls)]
        name = job.default_preset if preset is None else preset
        if name not in job.presets:
            raise ConfigError(f"--preset {name}: there is no such preset; choose from {', '.join(job.presets)}")
        base = replace(cls(), **job.presets[name], preset=name)
    base = replace(base, dry_run=False, toml=False, override=False)
    return replace(base, run=run) if run else base


def _stored(cls: type[Config], path: Path) -> Config:
    """The config that a run was started with, if it is one of this job."""
    values = read_json(path)
    kinds.check_same_job(path.parent.absolute(), values, kinds.name_of(cls))
    return from_dict(cls, values)


def _absolute(path: str) -> str:
    """An absolute path, so that a job in another folder means the same; `phantom[:N]` is no path."""
    return path if is_phantom(path) else str(Path(path).expanduser().absolute())


def from_dict(cls: type[Config], values: dict) -> Config:
    """A config from a stored dict; fields that a newer version added keep their defaults, unknown ones are an error."""
    known = {f.name: getattr(cls(), f.name) for f in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        names = ", ".join(repr(name)[:40] for name in unknown[:5])
        raise ConfigError(f"the stored config has unknown fields {names}; it is damaged, or from another version")
    for name, value in values.items():
        default = known[name]
        fits = isinstance(value, (int, float)) if isinstance(default, float) else isinstance(value, type(default))
        if not fits or (isinstance(value, bool) != isinstance(default, bool)):
            raise ConfigError(f"the stored config's {name} is {repr(value)[:100]}, expected {type(default).__name__}")
    return cls(**values)


def result_fields(config: TrainConfig) -> dict:
    """The fields that change the result: what names a run, and what a weights file says of its origin."""
    return {k: v for k, v in sorted(asdict(config).items()) if k not in FREE}


def config_hash(config: TrainConfig) -> str:
    """8 hex digits over the fields that change the result."""
    content = {k: v for k, v in result_fields(config).items() if v or k not in (*CHOICES, "condition")}
    if config.init_from:
        content["init_from"] = config.init_from
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def default_name(config: TrainConfig) -> str:
    """Name of a run that was given none: its job and its config_hash."""
    return f"{kinds.name_of(config)}-{config_hash(config)}"


def to_json(config: TrainConfig) -> str:
    """A config as JSON, its fields sorted."""
    return json.dumps(asdict(config), indent=2, sort_keys=True)
