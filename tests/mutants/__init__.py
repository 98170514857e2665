"""The project's own mutation run: one-line faults, each with the tests that must notice it.

    python -m tests.mutants [--only TEXT] [--jobs N] [--list]

Every module here but `__main__` holds a list FAULTS. A fault is planted in a copy of the project, its tests run there,
and it must turn them red.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One planted fault: in `file` the text `before`, which stands there exactly once, becomes `after`.

    tests: pytest arguments, of which at least one test must fail: files or node ids, as short a run as notices it.
    """

    file: str
    before: str
    after: str
    tests: tuple[str, ...]
