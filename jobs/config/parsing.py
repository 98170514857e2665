"""From a command line or a stored config.json to a resolved configuration, and its name."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from jobs.config.presets import DEFAULT_PRESET, PRESETS
from jobs.config.rules import FREE, check
from jobs.config.specs import ROOT, ConfigError, DiffusionConfig, GanConfig, VaeConfig, read_json

JOB_NAME = {GanConfig: "stylegan2", VaeConfig: "vae", DiffusionConfig: "diffusion"}


def parse_config(cls, argv: list[str] | None = None):
    """Resolve a config from the command line. Wrong flags exit with code 2; wrong values raise ConfigError.

    With `--run` of an existing run and no `--preset`, the run's own config is what the flags are laid over, so that
    `--run DIR` alone resumes it.
    """
    import tyro  # slow to import, and launch.py needs the presets only

    argv = list(sys.argv[1:] if argv is None else argv)
    preset, run = _flag(argv, "preset"), _flag(argv, "run")
    base = cls()
    stored = Path(run, "config.json").expanduser() if run else None
    if preset is None and stored is not None and stored.is_file():
        base = from_dict(cls, read_json(stored))
    else:
        name = DEFAULT_PRESET[cls] if preset is None else preset
        if name not in PRESETS[cls]:
            raise ConfigError(f"--preset {name}: there is no such preset; choose from {', '.join(PRESETS[cls])}")
        base = replace(base, **PRESETS[cls][name], preset=name)
    base = replace(base, dry_run=False, override=False, **({"run": run} if run else {}))
    config = tyro.cli(
        cls, args=argv, default=base, prog=Path(sys.argv[0]).name, config=(tyro.conf.HelptextFromCommentsOff,)
    )
    config = replace(config, data=_absolute_data(config.data), init_from=_absolute(config.init_from))
    if isinstance(config, DiffusionConfig):
        config = replace(config, vae=_absolute(config.vae))
    if isinstance(config, VaeConfig):
        config = replace(config, perceptual_file=_absolute(config.perceptual_file))
    config = replace(config, run=_absolute(config.run) if config.run else str(ROOT / "runs" / default_name(config)))
    check(config)
    return config


def _flag(argv: list[str], name: str) -> str | None:
    """Value of `--name VALUE` or `--name=VALUE` (the last one), without parsing the rest."""
    value = None
    for i, arg in enumerate(argv):
        if arg == f"--{name}" and i + 1 < len(argv):
            value = argv[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.split("=", 1)[1]
    return value


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _absolute_data(spec: str) -> str:
    """Data paths become absolute, so that a requeued job in another folder means the same; `phantom[:N]` is no path."""
    return spec if not spec or spec == "phantom" or spec.startswith("phantom:") else _absolute(spec)


def from_dict(cls, values: dict):
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
            raise ConfigError(f"the stored config's {name} is {value!r}, expected {type(default).__name__}")
    return cls(**values)


def result_fields(config) -> dict:
    """The fields that change the result: what names a run, and what a weights file says of its origin."""
    return {k: v for k, v in sorted(asdict(config).items()) if k not in FREE}


def config_hash(config) -> str:
    """8 hex digits over the fields that change the result."""
    content = result_fields(config)
    if config.init_from:
        content["init_from"] = config.init_from
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def default_name(config) -> str:
    """Name of a run that was given none: its job and its config_hash."""
    return f"{JOB_NAME[type(config)]}-{config_hash(config)}"


def to_json(config) -> str:
    """A config as JSON, its fields sorted."""
    return json.dumps(asdict(config), indent=2, sort_keys=True)
