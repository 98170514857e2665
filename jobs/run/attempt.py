"""One attempt at a run: it takes the lock, records how it went, gives the exit code.

Shared by the train scripts. Torch-free; the errors that a script itself can name are handed in.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial

from data.files import atomic_write, is_number, plain, say
from jobs.config import rules, specs
from jobs.config.rules import CHOICES
from jobs.config.specs import ConfigError, TrainConfig
from jobs.run import budget, faults, stopping
from jobs.run.own_job import job_id, process_began, restart_count
from jobs.run.resume import compare_with_run, write_config
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.run.vae import copied_vae


class Attempt:
    """Context manager around one attempt. On every rank; only rank 0 writes."""

    def __init__(self, run: RunDir, config: TrainConfig, rank: int, world: int = 1):
        self.run, self.config, self.rank, self.world = run, config, rank, world
        self.started, self.total, self.recorded = time.monotonic(), 0, False
        self.nimg: int | None = None
        self.spent_at: float | None = None  # when the run's GPU hours are used up
        self.verdict = ""  # what the figures say against the run
        self.printer: Callable[[str], None] = say

    def say(self, text: str) -> None:
        """One line for the person and the log; above the progress bar where there is one."""
        if self.rank == 0:
            self.printer(plain(text, keep="\n"))

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
            in_use = 0 if machine.get("device", "cpu") == "cpu" else machine.get("world", 1)
            given = budget.allocated(in_use)
            self.run.attempt_start(nimg=nimg, **given, **facts)
            self.spent_at = budget.ends(self.run.path, given["gpus"])
            self.recorded = True
            self.run.status(state=RunState.RUNNING, kimg=nimg / 1000, total_kimg=total / 1000, reason="")

    def heartbeat(self, nimg: int, images_per_second: float = 0.0) -> None:
        """Tell status.json where the run is; also when the images per second are not known yet (0)."""
        self.nimg = nimg
        if self.rank == 0:
            left = max(self.total - nimg, 0)  # the last batch may go beyond
            eta = left / images_per_second if images_per_second > 0 else None
            step = nimg // self.config.batch
            self.run.status(
                state=RunState.RUNNING,
                step=step,
                kimg=nimg / 1000,
                total_kimg=self.total / 1000,
                reason="",
                verdict=self.verdict,
                **({} if eta is None else {"eta_s": round(eta)}),
            )

    def end(self, code: int, state: str, reason: str) -> int:
        """Record the end once and hand the exit code back."""
        if self.rank == 0:
            if self.recorded:
                seconds = round(time.monotonic() - self.started, 1)
                used = budget.cpu_seconds()
                self.run.attempt_end(nimg=self.nimg or 0, reason=reason, seconds=seconds, code=code, cpu_seconds=used)
                self.recorded = False
            self.run.status(state=state, reason=reason, code=code, verdict=self.verdict)
        return code

    def __exit__(self, kind, error, traceback) -> None:
        """A fault of the GPU leaves as one line that says what to do, whatever torch called it."""
        fault = faults.named(error, partial(rules.less_memory, self.config, self.world))
        error = fault or error
        if self.rank == 0:
            code = stopping.exit_code(error)
            # Also before the attempt has begun: the next one hears why this one did not.
            if error is not None and (self.recorded or code == stopping.TRANSIENT):
                state = {stopping.DIVERGED: RunState.DIVERGED, stopping.TRANSIENT: RunState.CONTINUE}.get(
                    code, RunState.FAILED
                )
                self.end(code, state, f"{type(error).__name__}: {error}".splitlines()[0][:500])
            if self.run.proposed and code == stopping.BAD:  # refused: the next command may say something else
                self.run.config.unlink(missing_ok=True)
                copied_vae(self.run.path).unlink(missing_ok=True)
            self.run.unlock()
        if fault is not None:
            raise fault from None


def prepare_run(run: RunDir, config: TrainConfig, say: Callable[[str], None]) -> bool:
    """Rank 0, under the lock: compare with the stored config, lift or obey STOP. False: nothing to do.

    A STOP ends every attempt that was queued before it was written, and all that Slurm starts by itself; a person who
    types the command later lifts it.
    """
    if changed := compare_with_run(run, config):
        say(f"Override: {changed}")
        run.note("override", changed=changed)
    if run.stop_requested():
        queued = bool(job_id() and restart_count()) or os.environ.get("LAUNCHED_RUN") == str(run.path)
        if run.stop_holds(None if queued else process_began()):
            say(f"{run.path} was stopped by a person (STOP); nothing to do")
            if not run.done():
                run.status(state=RunState.STOPPED, reason="STOP file")
            return False
        say("The STOP of this run is lifted")
    if run.read_config() is None:
        write_config(run, config)
        run.proposed = True
    return True


def adopt_config(run: RunDir, config: TrainConfig) -> None:
    """Rank 0, when nothing can be refused any more: the run is one of this config, and no longer done if it is longer
    now."""
    run.unmark_done()
    write_config(run, config)
    run.proposed = False


def check_data(
    run: RunDir,
    config,
    classes: list[str],
    digests: dict[str, str],
    say,
    augmentation: list[float] | None = None,
    conditions: list[dict] | None = None,
    slices: int = 0,
) -> None:
    """Rank 0: the data are those that the run began with, else ConfigError. `digests` of their contents, by split;
    `augmentation`: what this code draws for it, as numbers; `conditions`: what is known of the columns that the run is
    conditioned on; `slices`: how many are trained on, which is an epoch."""
    path = run.path / "data.json"
    before = specs.read_json(path) if path.exists() else {}
    if not all(isinstance(before.get(key, kind()), kind) for key, kind in (("classes", list), ("digests", dict))):
        raise ConfigError(f"{path}: is damaged; restore it, or use another --run")
    if before and getattr(config, "conditional", False) and before.get("classes") != classes:
        raise ConfigError(
            f"{run.path}: the run learns the classes {', '.join(map(str, before.get('classes', [])))}, the data have "
            f"{', '.join(classes)}; "
            "restore them, or use another --run"
        )
    old, drawn = before.get("digests", {}), before.get("augmentation")
    differ = [f"slices ({split})" for split, digest in digests.items() if old.get(split, digest) != digest]
    if drawn is not None and augmentation is not None and not _close(drawn, augmentation):
        differ.append("random augmentations")  # another version of the code draws otherwise
    if changes := _other_columns(before.get("conditions"), conditions):
        raise ConfigError(
            f"{run.path}: the table is not the one that the run began with: {changes}; restore it, or use another --run"
        )
    if differ and not config.override:
        raise ConfigError(
            f"{run.path}: the {' and the '.join(differ)} are not those that the run began with; restore them, use "
            "another --run, or go on with the new ones: --override"
        )
    if differ:
        say(f"Override: other {' and '.join(differ)}")
        run.note("override", changed=", ".join(differ))
    after: dict = {"classes": classes, "digests": old | digests}
    if slices:
        after["slices"] = slices
    if chosen := {name: value for name in CHOICES if (value := getattr(config, name, ""))}:
        after["choices"] = chosen
    if conditions:
        after["conditions"] = conditions
    if augmentation is not None or drawn is not None:
        after["augmentation"] = augmentation if differ or drawn is None else drawn
    known = before.get("slices", 0) == slices
    if differ or not before or not known or set(digests) - set(old) or (drawn is None and augmentation is not None):
        atomic_write(path, json.dumps(after, indent=2, sort_keys=True) + "\n")


def learnt_others(run: RunDir) -> bool:
    """Whether the run went on with other training slices than it began with, as prepare_run and check_data noted."""
    noted = (str(line.get("changed")) for line in run.read_attempts() if line["event"] == "override")
    return any(re.search(r"slices \((?!held out)|--split ", changed) for changed in noted)


def _other_columns(before: object, now: list[dict] | None) -> str:
    """How the columns differ from those that a run began with, in words; '' where they do not."""
    old = {one.get("name"): one for one in before if isinstance(one, dict)} if isinstance(before, list) else {}
    said = []
    for one in now or ():
        was = old.get(one["name"])
        if was is None or was == one:
            continue
        facts = [f"{k} {was.get(k)} -> {v}" for k, v in one.items() if k != "digest" and was.get(k) != v]
        said.append(f"{one['name']} ({', '.join(facts) or 'its values belong to other slices'})")
    return "; ".join(said)


def _close(a, b) -> bool:
    """Whether two lists of numbers are the same but for the last digit, which is the machine's."""
    if not isinstance(a, list) or not isinstance(b, list) or len(a) != len(b):
        return False
    return all(is_number(x) and abs(x - y) < 0.0015 for x, y in zip(a, b, strict=True))


def report_and_code(main) -> int:
    """Run main(); turn what it raises into one plain line and an exit code (jobs/run/stopping.py lists the codes).

    An exception with an `exit_code` of its own was foreseen; any other keeps its traceback, below its plain line, with
    code 1.
    """
    stopping.left_with = code = _reported(main)
    return code


def _reported(main) -> int:
    try:
        return main()
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from the last checkpoint", sys.stderr)
        return 130
    except stopping.Stopped as asked:
        say(f"Stopped before the training began ({asked}). The same command goes on from here.", sys.stderr)
        return asked.exit_code
    except Exception as error:
        code = stopping.exit_code(error)
        text = (
            str(error)
            if code == stopping.BAD or isinstance(error, faults.GpuFault)
            else f"{type(error).__name__}: {error}"
        )
        if isinstance(error, OSError) and code in (stopping.BAD, stopping.TRANSIENT):
            where = f"{error.filename}: " if error.filename else ""
            fix = (
                "free some space or quota, or choose another --run"
                if code == stopping.BAD
                else "the file server may be back for the next attempt"
            )
            text = f"{where}{error.strerror}; {fix}"
        say(f"error: {text}", sys.stderr)
        if code == 1:
            stopping.left_with = code
            raise
        return code
