"""What may lie in the place of a file of a run, and a run to put it into."""

from __future__ import annotations

import functools
import json
import os
import socket
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cluster import show, status, why
from jobs.run.rundir import RunDir

FILES = ("config.json", "status.json", "attempts.jsonl", "metrics.jsonl", "jobs.json")
SECONDS, MEMORY = 5, 200 << 20


# --- what a hostile place in a run may be -----------------------------------------------------------------------------
def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(6 << 30)


def bound_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def link_out(path: Path) -> None:
    outside = path.parent.parent / "private.json"
    outside.write_text('{"secret": "a private thing", "state": "done", "event": "start", "nimg": 8}\n')
    path.symlink_to(outside)


ODD = {
    "sparse": sparse,
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": bound_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link out": link_out,
    "deep": lambda path: path.write_text("[" * 100_000),
    "half a character": lambda path: path.write_bytes(b'{"state": "\\ud800", "x": "\xed\xa0\x80"}\n'),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
}


def make_run(folder: Path, name: str = "run") -> RunDir:
    run = RunDir(folder / name)
    run.create()
    run.write_config({"data": "phantom:8", "resolution": 32, "total_kimg": 1.0})
    (run.path / "status.json").write_text('{"state": "stopped", "kimg": 0.5, "total_kimg": 1.0, "updated": 5.0}\n')
    (run.path / "jobs.json").write_text('{"job": "vae", "submitted": [{"id": "7", "kind": "main", "time": 3}]}\n')
    run.attempts.write_text('{"event": "start", "attempt": 1, "time": 5.0, "nimg": 0}\n')
    run.metrics.write_text('{"nimg": 500, "kimg": 0.5, "loss_pixels": 0.25}\n')
    return run


def put(run: RunDir, name: str, kind: str) -> None:
    (run.path / name).unlink(missing_ok=True)
    ODD[kind](run.path / name)


def bounded(test: Callable) -> Callable:
    """The test ends within SECONDS of work, and nothing in it takes MEMORY. A page needs no curves for that."""

    @functools.wraps(test)
    def run(*arguments, **named):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("jobs.view.report.draw_panels", lambda runs: [])
            tracemalloc.start()
            began = time.process_time()
            try:
                test(*arguments, **named)
                peak, seconds = tracemalloc.get_traced_memory()[1], time.process_time() - began
            finally:
                tracemalloc.stop()
        assert seconds < SECONDS and peak < MEMORY, (seconds, peak)

    return pytest.mark.timeout(120)(run)  # what hangs is red


def look(run: RunDir) -> str:
    """All that launch.py and the report make of a run."""
    view = status.view_run(run.path, {})
    show.show_run(view, run.path)
    cause = why.explain(run.path, None)[1]
    return json.dumps([view.note, cause.text, cause.fix, cause.line], allow_nan=False)
