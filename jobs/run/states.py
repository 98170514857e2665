"""States of a run, and the error that a run directory raises."""

from __future__ import annotations

from jobs.run.stopping import BAD


class RunDirError(Exception):
    """The run directory cannot be used; the text is one line that names the fix. Exit code 78."""

    exit_code = BAD
