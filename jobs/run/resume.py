"""Whether a run may go on with a configuration: the one comparison with the stored one. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, replace

from data.files import is_number
from jobs.config import kinds, parsing, recorded, rules
from jobs.config.specs import ConfigError, TrainConfig
from jobs.run import stopping
from jobs.run.rundir import RunDir


def end_dry_run(config: TrainConfig, say: Callable[[str], None], data_bytes: float = 0.0) -> int:
    """The last part of a script's --dry-run: the run it would go on with, and the memory it needs, that of the data
    apart. The resolved config goes to standard output, all else through `say`."""
    compare_with_run(RunDir(config.run), config)
    if line := rules.patience_note(config):
        say(line)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    memory = kinds.JOBS[kinds.name_of(config)].memory_gb(config, world)
    data = f"; the data take {data_bytes / 1e9:.2g} GB more where that leaves room" if data_bytes else ""
    say(f"memory: about {memory:.1f} GB per GPU at --batch {config.batch}, {world} GPU(s){data}")
    print(recorded.to_toml(config) if config.toml else parsing.to_json(config))
    return stopping.DONE


def compare_with_run(run: RunDir, config: TrainConfig) -> str:
    """What differs from the stored config and matters, as text; '' if nothing does. Raises ConfigError where the run
    cannot go on like that."""
    stored = run.read_config()
    if stored is None:
        return ""
    new = asdict(config)
    kinds.check_same_job(run.path, stored, kinds.name_of(config))
    try:
        old = asdict(parsing.from_dict(type(config), stored))
    except ConfigError as error:
        raise ConfigError(f"{run.config}: {error}; restore it, or use another --run") from None
    changed = {k: (old[k], new[k]) for k in new if old[k] != new[k] and k not in rules.FREE}
    architecture = {k: v for k, v in changed.items() if k in rules.ARCHITECTURE}
    text = ", ".join(
        f"--{k.replace('_', '-')} {str(a)[:200]} -> {b}" for k, (a, b) in (architecture or changed).items()
    )
    if architecture:
        raise ConfigError(f"{run.path}: the run has another architecture ({text}); use another --run for a new run")
    if changed and not config.override:
        raise ConfigError(
            f"{run.path}: the run was started with other flags ({text}); --override goes on anyway, another --run "
            "starts afresh"
        )
    seen = run.newest_checkpoint() / 1000
    if config.total_kimg < old["total_kimg"] and seen > config.total_kimg:
        raise ConfigError(
            f"{run.path}: the run has seen {seen:g} kimg already, more than --total-kimg {config.total_kimg:g}; "
            "raise it"
        )
    return text


def store_config(run: RunDir, config: TrainConfig) -> None:
    """Make config.json that of this configuration, from which every process of the run reads it.

    Raises ConfigError where the run cannot go on like that; what --override changes is noted in attempts.jsonl.
    """
    if changed := compare_with_run(run, config):
        run.note("override", changed=changed)
    write_config(run, config)


def write_config(run: RunDir, config: TrainConfig) -> None:
    """config.json, whatever stood there; a finished run that is longer now is no longer done."""
    before = run.read_config() or {}
    if is_number(before.get("total_kimg")) and config.total_kimg > before["total_kimg"]:
        run.unmark_done()
    # These are of one command, not of the run: launch.py asks for a GPU where it planned one.
    device = "auto" if config.device == "cuda" else config.device
    stored = asdict(replace(config, dry_run=False, toml=False, override=False, device=device))
    if stored != before:
        run.write_config(stored)
