"""Attempts at tiny runs, forked from a process that has imported torch once, and what must hold after each of them."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401 (imported here once, not by every attempt)
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import pretrain_vae
import train_diffusion
import train_gan
from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.training import checkpoint
from tests import tiny
from tests.faults.report import newest_whole

MAINS = {"train_gan.py": train_gan, "pretrain_vae.py": pretrain_vae, "train_diffusion.py": train_diffusion}
GAN, VAE, DIFFUSION = MAINS
SHAPE = "--data phantom:24 --total-kimg 0.096 --checkpoint-kimg 0.016 --log-kimg 0.016 --sample-kimg 0.048"
FLAGS = {
    GAN: [*tiny.FLAGS[GAN], *SHAPE.split(), "--r1-interval", "4"],
    VAE: [*tiny.FLAGS[VAE], *SHAPE.split(), "--gan-start-kimg", "0.032"],
    DIFFUSION: [*tiny.FLAGS[DIFFUSION], *SHAPE.split()],
}
TOTAL, BATCH = 96, 8  # images
HANG = 600.0  # seconds after which an attempt counts as hanging; one takes a few on an idle machine


class Violation(AssertionError):
    """A fault did not have its declared outcome; the text says which attempt did what."""


@dataclass
class Attempt:
    """One started process: a rank of an attempt."""

    pid: int
    out: Path
    code: int | None = None  # exit code, negative for a signal

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def work(self) -> float:
        """CPU seconds that it has used: unlike the clock they say how far it is on a busy machine too."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = HANG) -> int:
        """The exit code; a process that outlives the bound is killed and is a violation."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                raise Violation(f"hung for more than {seconds:g} s\n{self.text()}")
            time.sleep(0.01)
        return self.code

    def text(self) -> str:
        return self.out.read_text(errors="replace") if self.out.exists() else ""


class Lab:
    """A folder with the packs, the undisturbed runs and the runs under test."""

    def __init__(self, folder: Path):
        self.folder, self.packs, self.logs = folder, folder / "packs", folder / "logs"
        for made in (self.packs, self.logs, folder / "runs"):
            made.mkdir(parents=True, exist_ok=True)

    def reference(self, script: str, ranks: int = 1) -> Path:
        return self.folder / f"reference-{Path(script).stem}-{ranks}"

    def halfway(self, script: str) -> Path:
        """A run that was killed at 56 of its 96 images."""
        return self.folder / f"halfway-{Path(script).stem}"

    def new(self, name: str, halfway: str = "") -> Path:
        """Path of a run of its own, which does not exist yet, or a copy of the half-finished run of a script."""
        path = self.folder / "runs" / name
        if halfway:
            subprocess.run(["cp", "-a", str(self.halfway(halfway)), str(path)], check=True)
        return path

    def note_work(self, script: str, seconds: float) -> None:
        (self.folder / f"work-{Path(script).stem}").write_text(str(seconds))

    def work(self, script: str) -> float:
        """CPU seconds of an undisturbed attempt."""
        return float((self.folder / f"work-{Path(script).stem}").read_text())

    def flags(self, script: str) -> list[str]:
        return FLAGS[script] + (["--vae", str(self.reference(VAE))] if script == DIFFUSION else [])

    # --- attempts -----------------------------------------------------------------------------------------------------
    def start(
        self, run: Path, script: str, *flags: str, ranks: int = 1, hook: Callable[[int], None] | None = None,
        packs: Path | None = None, **env: str,
    ) -> list[Attempt]:  # fmt: skip
        """Fork one process per rank. `hook(rank)` is called in each before the script begins: it prepares the fault."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        label, attempts = "-".join(run.parts[-2:]), []
        number = len(list(self.logs.glob(f"{label}.*.0.out")))
        argv = [script, "--run", str(run), *self.flags(script), *flags]
        for rank in range(ranks):
            variables = tiny.environment(packs or self.packs, **env)
            if ranks > 1:
                variables |= dict(
                    RANK=str(rank),
                    LOCAL_RANK=str(rank),
                    WORLD_SIZE=str(ranks),
                    LOCAL_WORLD_SIZE=str(ranks),
                    MASTER_ADDR="127.0.0.1",
                    MASTER_PORT=port,
                )
            out = self.logs / f"{label}.{number:02d}.{rank}.out"
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if not pid:
                _be_a_training_process(script, argv, variables, out, (lambda r=rank: hook(r)) if hook else None)
            attempts.append(Attempt(pid, out))
        return attempts

    def wait(self, run: Path, attempts: list[Attempt], least: int = -1, seconds: float = HANG) -> list[int]:
        """Exit codes of all ranks, once the things that hold for every attempt were checked.

        `least`: see newest_whole.
        """
        try:
            codes = [attempt.wait(seconds) for attempt in attempts]
        finally:
            for attempt in attempts:
                attempt.send(signal.SIGKILL)
        check_attempt(run, attempts, least)
        return codes

    def attempt(self, run: Path, script: str, *flags: str, expect: tuple[int, ...] = (0,), **options) -> Attempt:
        """One attempt to its end; a violation if it ends with another code than one of `expect`. Returns rank 0's."""
        least = newest_whole(run)
        attempts = self.start(run, script, *flags, **options)
        codes = self.wait(run, attempts, least)
        if not set(codes) <= set(expect):
            raise Violation(f"{run.name}: exit codes {codes}, expected {expect}\n{attempts[0].text()}")
        return attempts[0]

    def said(self, run: Path) -> str:
        """What rank 0 of all attempts at a run has printed."""
        return "".join(
            path.read_text(errors="replace") for path in sorted(self.logs.glob(f"{'-'.join(run.parts[-2:])}.*.0.out"))
        )

    def finish(self, run: Path, script: str, ranks: int = 1, **options) -> None:
        """Run it to its end without any fault and compare it with the undisturbed run."""
        self.attempt(run, script, ranks=ranks, **options)
        same_as(run, self.reference(script, ranks))


def _be_a_training_process(script: str, argv: list[str], env: dict, out: Path, hook: Callable | None) -> None:
    """In the forked child: what `python -u script ...` would do from here on. Does not return."""
    code = 1
    try:
        os.setpgid(0, 0)
        handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, write_through=True)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = argv
        random.seed()
        stopping.install_handlers()
        checkpoint.PAUSE = 0.05  # between retries of a failed write
        if hook:
            hook()
        code = MAINS[script].report_and_code(MAINS[script].main)
    except SystemExit as leaving:
        code = stopping.exit_code(leaving)
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # what the interpreter does at its end: wait for threads, then the exit handlers
        atexit._run_exitfuncs()
    os._exit(code)


# --- what must hold ---------------------------------------------------------------------------------------------------
def starts(run: Path) -> list[dict]:
    return [line for line in RunDir(run).read_attempts() if line.get("event") == "start"]


def check_attempt(run: Path, attempts: list[Attempt], least: int) -> None:
    """No traceback without a plain first line, no older state than `least`, no silent fresh start."""
    for attempt in attempts:
        text = attempt.text()
        before, found, _ = text.partition("Traceback (most recent call last)")
        if found and not any(line.startswith("error: ") for line in before.splitlines()[-3:]):
            raise Violation(f"{run.name}: a traceback without a plain first line\n{text}")
        if (
            attempt.code in (2, 78)
            and not any(line.startswith("error: ") for line in text.splitlines())
            and attempt is attempts[0]
        ):
            raise Violation(f"{run.name}: refused without an error line\n{text}")
    text = attempts[0].text()
    at = [
        line for line in text.splitlines() if line.startswith(f"{run}: starting") or line.startswith(f"{run}: resuming")
    ]
    if at and least >= 0:
        begun = round(1000 * float(at[0].split(" at ")[1].split(" of ")[0]))
        if "starting" in at[0].split(" at ")[0][len(str(run)) :]:
            raise Violation(f"{run.name}: a fresh start, with a whole checkpoint at {least}\n{text}")
        if begun < least:
            raise Violation(f"{run.name}: began at {begun}, older than the whole checkpoint at {least}\n{text}")


def same_as(run: Path, reference: Path) -> None:
    """The finished run is the reference: weights bit for bit, rows but for timings, marks of the end."""
    if not (run / "DONE").exists() or RunDir(run).read_status().get("state") != "done":
        raise Violation(f"{run.name}: not done")
    if tiny.weights_hash(run) != tiny.weights_hash(reference):
        raise Violation(f"{run.name}: other weights than {reference.name}")
    if tiny.rows(run) != tiny.rows(reference):
        raise Violation(f"{run.name}: other rows than {reference.name}")
    if torn := [p.name for p in run.rglob(".*.tmp.*")]:
        raise Violation(f"{run.name}: unfinished files are left: {torn}")
    if (run / "LOCK").exists():
        raise Violation(f"{run.name}: the lock is left")


def tree(run: Path) -> dict[str, str]:
    """{path: SHA-256} of all files below a run but the lock: equal before and after what must change nothing."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and not path.name.startswith("LOCK")
    }


def clear(run: Path) -> None:
    """Remove a run under test."""
    shutil.rmtree(run, ignore_errors=True)
