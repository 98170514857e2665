"""Configurations in files: `--config FILE` as the flags that it stands for, and a configuration as TOML. Torch-free.

A file is turned into flags before anything else looks at the command line, so it means what those flags mean: the same
run, the same name, `auto` and presets included.
"""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from data.files import open_regular, read_json, words
from jobs.config import kinds, recipe
from jobs.config.help import described
from jobs.config.specs import ConfigError, GanConfig, TrainConfig

# Of one command, not of what is trained: a run's config.json has them all the same, where they are passed over.
NOT_TAKEN = ("run", "dry_run", "override", "toml")
LARGEST = 1 << 20  # bytes


def spread(argv: Sequence[str], *classes: type[TrainConfig]) -> list[str]:
    """The words with those of `--config FILE` in front, which any of the classes must know; later flags win.

    Raises ConfigError where the file is no configuration, or names another preset than the command line.
    """
    rest, files = [], []
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag != "--config":
            rest.append(word)
        elif path := value if equals else next(words, ""):
            files.append(path)
        else:
            raise ConfigError("--config: name a file, the config.json of a run or a TOML file")
    if not files:
        return rest
    if len(files) > 1:
        raise ConfigError(f"--config {files[1]}: one file is enough; put what differs into flags")
    values = read_config(files[0])
    defaults = {f.name: getattr(cls(), f.name) for cls in classes for f in fields(cls)}
    check_values(files[0], values, defaults, " or ".join(kinds.name_of(cls) for cls in classes))
    values = {name: value for name, value in values.items() if value != "" or defaults[name] != ""}  # "": not given
    preset = value_of("preset", rest)
    if preset and values.get("preset", preset) != preset:
        raise ConfigError(f"--preset {preset}: {files[0]} has preset {values['preset']}; leave one of them out")
    return [flag_of(name, value) for name, value in values.items()] + rest


def value_of(name: str, argv: Sequence[str]) -> str:
    """What the last flag of this name says; '' where there is none."""
    at = max((i for i, word in enumerate(argv) if word.partition("=")[0] == f"--{name}"), default=None)
    return "" if at is None else argv[at].partition("=")[2] or "".join(argv[at + 1 : at + 2])


def dashed(name: str) -> str:
    """total-kimg of total_kimg."""
    return name.replace("_", "-")


def flag_of(name: str, value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool):
        return f"--{dashed(name)}" if value else f"--no-{dashed(name)}"
    return f"--{dashed(name)}={value}"


def read_config(path: str) -> dict[str, Any]:
    """{field: value} of a run's config.json (the run will do), or of a TOML file."""
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "config.json"
    try:
        if file.suffix == ".toml":
            with open_regular(file) as text:
                values = tomllib.loads(text.read(LARGEST).decode())
        else:
            values = {name: v for name, v in read_json(file).items() if name not in NOT_TAKEN}
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path}: cannot be read as JSON or TOML ({words(error)})") from None
    if found := [name for name in NOT_TAKEN if name in values]:
        raise ConfigError(f"--config {path}: {found[0]} is of one command; leave it out there, and give it as a flag")
    return {name.replace("-", "_"): value for name, value in values.items()}


def check_values(path: str, values: Mapping[str, Any], defaults: Mapping[str, Any], of: str) -> None:
    """ConfigError for a key that there is not among the `defaults`, and for a value of another type."""
    auto = {*recipe.rule(GanConfig()), "batch"}
    for name, value in values.items():
        if name not in defaults:
            raise ConfigError(f"--config {path}: {name[:40]!r} is no flag of {of}; --help lists them")
        kind = type(defaults[name])
        fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
        fits = fits and isinstance(value, bool) == (kind is bool)
        if not fits and not (value == "auto" and name in auto):
            wanted = {float: "a number", int: "a whole number", bool: "true or false"}.get(kind, "a text in quotes")
            raise ConfigError(f"--config {path}: {name} is {str(value)[:60]!r}; write {wanted}")


def job_in(argv: Sequence[str]) -> str:
    """The job that the file of `--config` is of, where only one has all of its keys; '' else."""
    path = value_of("config", argv)
    found = kinds.jobs_of(read_config(path)) if path else []
    return found[0] if len(found) == 1 else ""


def to_toml(config: TrainConfig) -> str:
    """The configuration as a file for --config, in the groups of --help and with its words. What follows from other
    flags says auto, so that it still follows when one of those changes."""
    values, about = asdict(config), described(type(config))
    follows = {k for k, v in recipe.rule(config).items() if values[k] == v} if isinstance(config, GanConfig) else set()
    job = kinds.name_of(config)
    lines = [f"# A configuration of {kinds.JOBS[job].script}: --config FILE takes it, and flags override it."]
    lines += [f"# It was written for the run {config.run}, which --run names, not this file."]
    group = ""
    for name, (title, text) in about.items():
        if name in NOT_TAKEN:
            continue
        if title != group:
            group = title
            lines += ["", f"# --- {title} {'-' * (100 - len(title))}"]
        value = '"auto"' if name in follows else json.dumps(values[name], ensure_ascii=False)
        lines += [f"# {line}" for line in textwrap.wrap(text, 110, break_on_hyphens=False)]
        lines += [f"{name} = {value}" + (f"  # {values[name]:g} here" if name in follows else "")]
    return "\n".join(lines) + "\n"
