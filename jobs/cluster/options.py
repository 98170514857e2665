"""launch.py's own options, typed. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config.specs import ConfigError

# What `resume` uses again.
REMEMBERED = ("partition", "account", "qos", "time", "nodes", "gpus", "cpus", "site", "shared", "local", "max_restarts",
              "notify", "max_gpu_hours")  # fmt: skip
# What has a meaning on a cluster alone.
OF_SLURM = ("partition", "time", "account", "qos", "cpus", "nodes", "max_restarts")
MAX_RESTARTS = 20


@dataclass(frozen=True)
class Options:
    """What stands on launch.py's command line beside the training flags. None and '' mean: not given."""

    job: str = ""
    preset: str = ""
    name: str = ""
    sweep: tuple[str, ...] = ()
    after: str = ""
    partition: str = ""
    gpus: int | None = None
    nodes: int | None = None
    cpus: int | None = None
    time: str = ""
    account: str = ""
    qos: str = ""
    max_restarts: int | None = None
    notify: str = ""
    max_gpu_hours: float | None = None
    site: str = ""
    local: bool = False
    wait: bool = False
    dry_run: bool = False
    shared: bool = False
    json: bool = False

    def check(self) -> None:
        """Refuse numbers that cannot be, and options that --local would ignore."""
        for name, least in (("gpus", 0), ("nodes", 1), ("cpus", 1), ("max_restarts", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: at least {least}")
        if self.max_gpu_hours is not None and not 0 < self.max_gpu_hours < 1e9:
            raise ConfigError(f"--max-gpu-hours {self.max_gpu_hours:g}: more than 0")
        ignored = [name for name in OF_SLURM if self.local and is_given(getattr(self, name))]
        if ignored:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            raise ConfigError(f"--local runs on this machine, so leave out {names}: they are for a cluster")

    def remembered(self) -> dict:
        """What was typed and `resume` is to use again."""
        return {name: value for name in REMEMBERED if is_given(value := getattr(self, name))}


def is_given(value: object) -> bool:
    """Whether a person gave this option; 0, as in --gpus 0, is a value."""
    return value is not None and value is not False and value != ""
