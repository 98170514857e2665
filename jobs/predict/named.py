"""Runs and weights files by the names that a person gives them. Torch-free."""

from __future__ import annotations

from pathlib import Path

from data.files import leads_out
from jobs.config.specs import ConfigError
from jobs.run.find import find_run
from jobs.run.rundir import RunDir


class UsageError(Exception):
    """A flag or an argument that does not fit this model; the text is one line that names the fix. Exit code 2."""


def weights_of(run: str | Path) -> Path:
    """The weights file of a run, or the file itself."""
    path = Path(run)
    if path.suffix == ".safetensors" and not path.is_dir():
        return path
    weights = RunDir(run_of(str(run))).weights
    if not weights.is_file():
        raise ConfigError(f"{run}: has no weights yet; training writes them at its first checkpoint")
    if leads_out(weights, weights.parent):
        raise ConfigError(f"{weights}: a link that leads out of the run; name the file itself with --weights")
    return weights


def run_of(text: str) -> Path:
    """The run directory that a person means, or a folder with a part of one, such as its weights alone.

    ConfigError where there is none.
    """
    try:
        return find_run(text)
    except LookupError as error:
        if Path(text).is_dir():
            return Path(text).absolute()
        raise ConfigError(f"--run {text}: {error.args[0]}") from None
