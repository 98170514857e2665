"""One attempt at a run: it takes the lock, checks the config against the run's, records how it went, gives the exit code.

Shared by the train scripts. Torch-free; the errors that a script itself can name are handed in.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict

from jobs import specs, stop
from jobs.rundir import RunDir, RunDirError
from jobs.specs import ConfigError


class Attempt:
    """Context manager around one attempt. On every rank; only rank 0 writes."""

    def __init__(self, run: RunDir, config, rank: int):
        self.run, self.config, self.rank = run, config, rank
        self.started, self.nimg, self.total, self.recorded = time.monotonic(), None, 0, False
        self.printer = print

    def say(self, text: str) -> None:
        """One line for the person and the log; above the progress bar where there is one."""
        if self.rank == 0:
            self.printer(text)

    def __enter__(self) -> Attempt:
        if self.rank == 0:
            self.run.create()
            self.run.lock()
        return self

    def begin(self, nimg: int, total: int, machine: dict, **facts) -> None:
        """Note the start in attempts.jsonl, and where the results come from (`machine`: runtime.facts)."""
        self.nimg, self.total = nimg, total
        if self.rank == 0:
            self.run.write_provenance([sys.executable, *sys.argv], **machine)
            self.run.attempt_start(nimg=nimg, **facts)
            self.recorded = True
            self.run.status(state="running", kimg=nimg / 1000, total_kimg=total / 1000, reason="")

    def heartbeat(self, nimg: int, images_per_second: float = 0.0, **fields) -> None:
        self.nimg = nimg
        if self.rank == 0:
            eta = (self.total - nimg) / images_per_second if images_per_second > 0 else None
            step = nimg // self.config.batch
            self.run.status(
                state="running", step=step, kimg=nimg / 1000, total_kimg=self.total / 1000,
                eta_s=None if eta is None else round(eta), reason="", **fields,
            )  # fmt: skip

    def end(self, code: int, state: str, reason: str) -> int:
        """Record the end once and hand the exit code back."""
        if self.rank == 0:
            if self.recorded:
                seconds = round(time.monotonic() - self.started, 1)
                self.run.attempt_end(nimg=self.nimg or 0, reason=reason, seconds=seconds, code=code)
                self.recorded = False
            self.run.status(state=state, reason=reason, code=code)
        return code

    def __exit__(self, kind, error, traceback) -> None:
        if self.rank == 0:
            if error is not None and self.recorded:
                code = code_of(error)
                state = {stop.DIVERGED: "diverged", stop.TRANSIENT: "continue"}.get(code, "failed")
                self.end(code, state, f"{kind.__name__}: {error}".splitlines()[0][:500])
            self.run.unlock()


def code_of(error: BaseException) -> int:
    """The exit code that an exception means."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt):
        return 130
    return getattr(error, "exit_code", 1)


def prepare_run(run: RunDir, config, say) -> bool:
    """Rank 0, under the lock: compare with the stored config, lift or obey STOP, store the config. False: nothing to do.

    A STOP file ends every attempt that Slurm started by itself; a person who types the command lifts it.
    """
    stored = run.read_config()
    new = asdict(config)
    if stored is not None:
        old = asdict(specs.from_dict(type(config), stored))
        changed = {k: (old[k], new[k]) for k in new if old[k] != new[k] and k not in specs.FREE}
        architecture = {k: v for k, v in changed.items() if k in specs.ARCHITECTURE}
        text = ", ".join(f"--{k.replace('_', '-')} {a} -> {b}" for k, (a, b) in (architecture or changed).items())
        if architecture:
            raise ConfigError(
                f"{run.path}: the run has another architecture ({text}); use --name or --run for a new run"
            )
        if changed and not config.override:
            raise ConfigError(
                f"{run.path}: the run was started with other flags ({text}); --override goes on anyway, another --run starts afresh"
            )
        if changed:
            say(f"Override: {text}")
            run.note("override", changed=text)
    if run.stop_requested():
        if os.environ.get("SLURM_JOB_ID") and int(os.environ.get("SLURM_RESTART_COUNT", "0") or 0) > 0:
            say(f"{run.path} was stopped by a person (STOP); nothing to do")
            return False
        run.lift_stop()
        say("The STOP of this run is lifted")
    run.unmark_done()
    run.write_config(new)
    return True


def report_and_code(main, bad_input: tuple[type[BaseException], ...]) -> int:
    """Run main(); turn what it raises into one plain line and an exit code (jobs/stop.py lists the codes).

    `bad_input`: the script's exceptions that mean bad data or config. What nobody foresaw keeps its traceback, below
    its plain line, with code 1.
    """
    try:
        return main()
    except (ConfigError, RunDirError, *bad_input) as error:
        print(f"error: {error}", file=sys.stderr)
        return stop.BAD
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception as error:
        code = code_of(error)
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        if code == 1:
            raise
        return code
