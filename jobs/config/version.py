"""The toolkit's version, which pyproject.toml says. Torch-free."""

from __future__ import annotations

import tomllib

from jobs.config.specs import ROOT


def version() -> str:
    """As in pyproject.toml; the snapshot of a run has that file too."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
