"""Stopping a run, and the options with which it goes on. Torch-free."""

from __future__ import annotations

import contextlib
import getpass
import os
import signal
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from data.files import atomic_write, say, words
from jobs.cluster import slurm, status, submit, terminal
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.options import OF_SLURM, REMEMBERED, TABLE, Options
from jobs.cluster.terminal import facts
from jobs.config import kinds
from jobs.config.parsing import from_dict
from jobs.config.specs import ConfigError
from jobs.run.find import read_jobs, typed
from jobs.run.owners import others_may_replace
from jobs.run.rundir import RunDir
from jobs.run.states import RunDirError, RunState
from jobs.run.stopping import BAD, DONE, TRANSIENT


def stop_command(argv: list[str]) -> int:
    """`launch.py stop`."""
    parser = verb_parser("stop", "Save and stop runs. They stay stopped until they are launched or resumed.", "+")
    parser.add_argument(
        "--now",
        action="store_true",
        help="do not wait for the next step: end the job; it saves if it can, within seconds",
    )
    options = parser.parse_intermixed_args(argv)
    return each(chosen(options.run), lambda run: stop_run(run, options.now))


def each(runs: Iterable[Path], work: Callable[[Path], int]) -> int:
    """The work on every run: where it fails on one, that is said and the others have their turn. The worst exit
    code."""
    worst, runs = DONE, list(runs)
    for run in runs:
        try:
            code = work(run)
        except (ConfigError, RunDirError, submit.SubmitError, slurm.SlurmError, OSError) as error:
            if len(runs) == 1:
                raise
            terminal.error(f"{run.name}: {words(error)}" if isinstance(error, OSError) else f"{run.name}: {error}")
            code = TRANSIENT if isinstance(error, slurm.NoAnswer) else BAD
        except SystemExit as leaving:  # training flags that are wrong for this run: the parser has said so
            if len(runs) == 1:
                raise
            terminal.error(f"{run.name}: nothing done, for the flags above")
            code = leaving.code if isinstance(leaving.code, int) else BAD
        worst = max(worst, code)
    return worst


def stop_run(run: Path, now: bool) -> int:
    """STOP ends the running attempt with a save, and the whole chain; what has not started is taken out of the
    queue."""
    jobs = status.all_jobs()
    live, holder = status.live_jobs(run, jobs or {}), status.holder_of(run, jobs)
    state = status.view_run(run, jobs).state
    if not live and holder is None and not status.starting_process(run) and state != RunState.UNKNOWN:
        say(f"{run.name} is not running ({state}).")
        return DONE
    here = holder is not None and holder.get("host") == socket.gethostname()
    written = f"{getpass.getuser()} at {time.strftime('%F %T')}, launch.py stop{' --now' if now else ''}\n"
    unwritten = ""
    try:
        atomic_write(run / "STOP", written)
    except OSError as error:
        unwritten = words(error)
        theirs = run.stat().st_uid not in (os.getuid(), 0)
        if not live and (theirs or not here):
            reason = others_may_replace(run) if theirs else f"STOP cannot be written ({unwritten})"
            fix = "only they can stop it" if theirs else "make room and try again, or end its process where it runs"
            raise RunDirError(f"{run}: {reason}, so it is not stopped; {fix}") from None
        now = True  # the job itself is ended, which saves if it can
    if isinstance(jobs, status.Silent) and now and not here:
        state = RunState.UNKNOWN  # its job cannot be ended
    waiting = [job for job in live if not job.at_work and job.state != "COMPLETING"]
    running = [job for job in live if job not in waiting]
    try:
        ended = [job.id for job in waiting + (running if now else [])]
        for job_id in ended + submit.widener(run, jobs or {}, ended):
            slurm.cancel(job_id)
    except slurm.NoAnswer:
        state = RunState.UNKNOWN
    if holder is not None and here and not running and now:
        os.kill(holder["pid"], signal.SIGTERM)
    if unwritten:
        say(f"{run.name}: STOP cannot be written ({unwritten}), so it is ended now; it saves if it can.")
    elif state == RunState.UNKNOWN:
        say(
            f"{run.name}: Slurm does not answer. STOP is written: if it runs it saves and stops within its next step, "
            "if it waits it leaves as soon as it begins."
        )
        return TRANSIENT if now else DONE
    elif state == RunState.SUSPENDED and not now:
        say(f"{run.name} is suspended: it saves and stops once it goes on; --now ends it.")
    elif running or holder is not None or not live:
        say(f"{run.name} " + ("is ended now; it saves if it can." if now else "saves and stops within its next step."))
    else:
        submit.write_state(run, RunState.STOPPED, "taken out of the queue")
        say(f"{run.name} is taken out of the queue (job {', '.join(job.id for job in waiting)}).")
    facts([("go on", f"python launch.py resume {typed(run)}")])
    return DONE


def job_of(run: Path) -> str:
    """Which job a run that was started without launch.py is of, by the fields of its config."""
    stored = RunDir(run).read_config()
    if stored is None:
        raise ConfigError(
            f"{run}: no config.json and no jobs.json, so there is nothing to resume; launch it with --job"
        )
    for name in kinds.jobs_of(stored):
        with contextlib.suppress(ConfigError):
            from_dict(kinds.JOBS[name].config, stored)
            return name
    raise ConfigError(f"{run}: its config.json is of no job of this version")


def resume_options(run: Path, typed: dict) -> Options:
    """The options that a run goes on with: those that it was queued with, and over them those that were typed now."""
    recorded = read_jobs(run)
    stored = recorded.get("options")
    known = {name: value for name, value in stored.items() if name in REMEMBERED} if isinstance(stored, dict) else {}
    for name, value in known.items():
        wanted = TABLE[name].kind
        known[name] = value = tuple(value) if wanted is tuple and isinstance(value, list) else value
        words = value if isinstance(value, tuple) else (str(value),)
        if type(value) is not wanted or not all(isinstance(word, str) and word.isprintable() for word in words):
            raise ConfigError(f"{run}/jobs.json: is damaged ({name}); move it away and launch the run with --job")
    if typed.get("slurm"):  # a key that was typed replaces that key
        typed = typed | {"slurm": (*known.get("slurm", ()), *typed["slurm"])}
    if typed.get("gres") or typed.get("gpus") is not None:  # each of them says how many GPUs
        known = {name: value for name, value in known.items() if name not in ("gres", "gpus") or "{gpus}" in str(value)}
    if typed.get("partition"):  # a run of this machine moves to the cluster
        known.pop("local", None)
    if typed.get("local"):  # and back: what Slurm was told means nothing here
        known = {name: value for name, value in known.items() if name not in OF_SLURM}
    return Options(**known | typed | {"job": recorded.get("job") or job_of(run), "after": recorded.get("after", "")})
