"""Cluster profiles (sites.toml): what a site's partitions, limits, hosts and data paths are by default. Torch-free."""

from __future__ import annotations

import os
import socket
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from data.files import read_bytes, words
from jobs.cluster.options import PROFILE, Resources, further
from jobs.config.specs import ConfigError
from jobs.run.owners import others_may_replace

NOTIFY = "notify"  # the one table of the user's file that is no profile
SHIPPED = Path(__file__).parents[1] / "sites.toml"


@dataclass(frozen=True)
class Site(Resources):
    """One profile; the keys are explained in sites.toml. Of the table of options it may give all, as defaults."""

    name: str
    about: str = ""
    hosts: tuple[str, ...] = ()
    recognise: tuple[str, ...] = ()
    time: str = field(default="4:00:00", kw_only=True)
    max_time: str = ""
    cpus: int | None = field(default=4, kw_only=True)
    gres: str = field(default="gpu:{gpus}", kw_only=True)
    margin: int = 180
    requeue: bool = True
    login: str = ""
    jump: str = ""
    remote_dir: str = ""
    note: str = ""
    data: dict[str, str] = field(default_factory=dict)
    partitions: dict[str, dict] = field(default_factory=dict)

    def on(self, partition: str) -> Site:
        """The profile with the values of one partition laid over it. Of a comma list, the first that has any."""
        for name in partition.split(","):
            if name in self.partitions:
                return replace(self, **self.partitions[name])
        return self

    def data_path(self, preset: str) -> str:
        """The site's path of the data that a preset is for; '' if it has none."""
        found = [key for key in self.data if preset.startswith(key)]
        return os.path.expandvars(os.path.expanduser(self.data[max(found, key=len)])) if found else ""


def user_file() -> Path:
    """The user's own profiles, merged over the shipped ones."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "brain-slices" / "sites.toml"


def load_sites() -> dict[str, Site]:
    """All profiles by name. Raises ConfigError that names the file and key that is wrong."""
    merged, mine = _read(SHIPPED), _read_own()
    _merge(merged, {name: table for name, table in mine.items() if name != NOTIFY})
    return {name: _site(name, table, user_file() if mine else SHIPPED) for name, table in merged.items()}


def read_notify() -> dict:
    """The table [notify] of the user's own file: who is told of a run's end. {} without one."""
    table = _read_own().get(NOTIFY, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{user_file()}: {NOTIFY} must be a table, as in [{NOTIFY}]")
    return table


def _read_own() -> dict:
    """The user's own file; {} where there is none."""
    own = user_file()
    try:
        if not own.is_file():
            return {}
    except OSError:
        return {}
    if reason := others_may_replace(own):
        raise ConfigError(f"{own}: {reason}; it decides what is queued in your name: chmod go-w {own}")
    return _read(own)


def choose_site(wanted: str, partitions: Collection[str] | None, hostname: str = "", local: bool = False) -> Site:
    """The profile to use.

    partitions: names that Slurm reports, None where there is no Slurm; local: the job runs here.
    """
    sites = load_sites()
    if wanted:
        if wanted not in sites:
            raise ConfigError(
                f"--site {wanted}: there is no such profile; choose from {', '.join(sites)}, or add it to {user_file()}"
            )
        return sites[wanted]
    for site in sites.values():
        if any(fnmatch(hostname or socket.gethostname(), pattern) for pattern in site.hosts):
            return site
    for site in sites.values():
        if partitions and site.recognise and set(partitions).issuperset(site.recognise):
            return site
    return sites["local" if local else "generic"]


def _read(path: Path) -> dict:
    try:
        return tomllib.loads(read_bytes(path).decode())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({words(error)})") from None


def _merge(base: dict, over: dict) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _site(name: str, table: object, path: Path) -> Site:
    values = _checked(name, table, path)
    partitions = values.get("partitions", {})
    for partition, keys in partitions.items():
        partitions[partition] = _checked(f"{name}.partitions.{partition}", keys, path)
    for key, folder in values.get("data", {}).items():
        if not isinstance(folder, str):
            raise ConfigError(f"{path}: [{name}.data] {key} must be a path in quotes")
    return Site(name=name, **values)


def _checked(name: str, table: object, path: Path) -> dict:
    """The table with lists as tuples, after a check of its keys and types."""
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {name} must be a table, as in [{name}]")
    kinds = {key: type(value) for key, value in vars(Site(name="")).items() if key != "name"}
    kinds |= {key: row.kind for key, row in PROFILE.items()}
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{path}: [{name}] has an unknown key {key}; known are {', '.join(kinds)}")
        if kinds[key] is tuple and isinstance(value, list) and all(isinstance(item, str) for item in value):
            table[key] = tuple(value)
        elif type(value) is not kinds[key]:
            raise ConfigError(f"{path}: [{name}] {key} is {value!r}; it must be of type {kinds[key].__name__}")
        least = PROFILE[key].least if key in PROFILE else None
        if least is not None and table[key] < least:
            raise ConfigError(f"{path}: [{name}] {key} is {value}; at least {least}")
    try:
        further(table.get("slurm", ()))
    except ConfigError as error:
        raise ConfigError(f"{path}: [{name}] {error}") from None
    return table
