"""The project's own mutation run: one-line faults, each with the tests that must notice it.

    python -m tests.mutants [--only TEXT] [--jobs N] [--list]

Every module here but `__main__` and `harness` holds a list FAULTS. A fault is planted in a copy of the project, its
tests run there, and one of them must turn red. To add a fault:

1. Append `Fault(file, before, after, tests)` to the list that fits, or make a new module with a list: it finds itself.
2. `python -m tests.mutants --only TEXT`, where TEXT is part of the fault. If it survives, write the test that notices it.

Record what a person could really get wrong (a sign, two arguments exchanged, `>` for `>=`, a write left out), and name
the fastest tests that notice it. A fault that breaks the import or changes nothing shows nothing.
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
