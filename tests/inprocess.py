"""The train scripts' main() in this process: what a command line does, for the price of its work and not of its imports."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from tiny import FLAGS, ROOT

from jobs.run import stopping
from jobs.run.attempt import report_and_code

# Ranks and jobs of whoever runs the tests are not those of the run under test.
FOREIGN = ("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it printed to standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def run_main(script: str, *flags: str, packs: Path, tiny: bool = True, **env: str) -> Outcome:
    """`python SCRIPT FLAGS` without a new process. `tiny`: after the flags of tests/tiny.py, which the given ones override.

    Signals that were noted, exception hooks and the thread count are put back, so that calls do not see each other.
    """
    module = importlib.import_module(script.removesuffix(".py"))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)} | {"BRAIN_PACK_DIR": str(packs)} | env
    argv = [str(ROOT / script), *(FLAGS[script] if tiny else ()), *flags]
    out, err, threads, hook = io.StringIO(), io.StringIO(), torch.get_num_threads(), threading.excepthook
    stopping._received.clear()
    try:
        with (
            mock.patch.dict(os.environ, clean, clear=True), mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        ):  # fmt: skip
            code = report_and_code(module.main)
    except SystemExit as error:
        code = stopping.exit_code(error)
    except Exception as error:
        code = stopping.exit_code(error)
        err.write(f"\nTraceback: {error!r}\n")
    finally:
        stopping._received.clear()
        torch.set_num_threads(threads)
        threading.excepthook = hook
    return Outcome(code, out.getvalue(), err.getvalue())
