"""The scripts' main() in this process: what a command line does, for the price of its work and not of its imports."""

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
from jobs.training import watchdog

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


def run_main(script: str, *flags, packs: Path, tiny: bool = True, **env: str) -> Outcome:
    """`python SCRIPT FLAGS` without a new process. `tiny`: after the flags of tests/tiny.py, which the given ones
    override.

    Signals that were noted, exception hooks and the thread count are put back, so that calls do not see each other.
    What only a process of its own has is not there: handlers of signals, the exit itself, ranks beside this one.
    """
    module = importlib.import_module(script.removesuffix(".py"))
    argv = [str(ROOT / script), *(FLAGS[script] if tiny else ()), *map(str, flags)]
    return _outcome(lambda: report_and_code(module.main), argv, {"BRAIN_PACK_DIR": str(packs)} | env)


def run_predict(*words, packs: Path, **env: str) -> Outcome:
    """`python predict.py WORDS` without a new process, on the CPU with one thread."""
    module = importlib.import_module("predict")
    argv = [str(ROOT / "predict.py"), *map(str, words)]
    variables = {"BRAIN_PACK_DIR": str(packs), "CUDA_VISIBLE_DEVICES": "", "SLURM_CPUS_PER_TASK": "1"} | env
    return _outcome(lambda: module.main(module.parse_args(module.__doc__, argv[1:])), argv, variables)


def _outcome(main, argv: list[str], env: dict[str, str]) -> Outcome:
    """Call main() as the process of a command line would, under a clean environment with `env` added.

    A watchdog that a run which raised has left behind would end this process half an hour later: it is stopped.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)} | env
    out, err, threads, hook = io.StringIO(), io.StringIO(), torch.get_num_threads(), threading.excepthook
    dogs, begin = [], watchdog.Watchdog.__init__

    def noted(dog: watchdog.Watchdog, seconds: float) -> None:
        dogs.append(dog)
        begin(dog, seconds)

    stopping._received.clear()
    try:
        with (
            mock.patch.object(watchdog.Watchdog, "__init__", noted),
            mock.patch.dict(os.environ, clean, clear=True), mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        ):  # fmt: skip
            code = main()
    except SystemExit as error:
        code = stopping.exit_code(error)
    except Exception as error:
        code = stopping.exit_code(error)
        err.write(f"\nTraceback: {error!r}\n")
    finally:
        for dog in dogs:
            dog.stop()
        stopping._received.clear()
        torch.set_num_threads(threads)
        threading.excepthook = hook
    return Outcome(code, out.getvalue(), err.getvalue())
