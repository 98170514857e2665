"""`launch.py logs`: the newest log of one run or several, and what is added to it. Torch-free."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from data.files import say
from jobs.cluster import show, why
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.terminal import paint
from jobs.run.find import typed
from jobs.run.stopping import DONE


def logs_command(argv: list[str]) -> int:
    """`launch.py logs`."""
    parser = verb_parser("logs", "The newest log of a run, or of each point of a sweep.", "+")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on showing what is written, through requeues, until Ctrl-C"
    )
    parser.add_argument("-n", "--lines", type=int, metavar="N", help="lines from the end (default 50; of several, 10)")
    options = parser.parse_intermixed_args(argv)
    runs = chosen(options.run)
    lines = options.lines if options.lines is not None else 50 if len(runs) == 1 else 10
    followers = [show.Follower(run, at_end=True) for run in runs]  # from here on: what is written meanwhile comes once
    for run, follower in zip(runs, followers, strict=True):
        show_end(run, lines, follower if options.follow else None)
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            last = None if len(runs) > 1 else runs[0]
            while True:
                for run, follower in zip(runs, followers, strict=True):
                    if follower.show(before=(lambda: None) if run == last else lambda run=run: heading(run.name)):
                        last = run
                time.sleep(0.5)
    return DONE


def show_end(run: Path, lines: int, follower: show.Follower | None) -> None:
    """The last lines of the newest log under its name; with a follower, as far as that one has not to show it."""
    log = why.newest_log(run)
    if log is None:
        if follower is None:
            say(f"{run.name} has no log yet: its job has not started. python launch.py status {typed(run)}")
        return
    heading(str(log))
    text = why.tail(log, 1 << 20, follower.seen.get(log, 0) if follower else None)
    print("\n".join(text.rstrip("\n").splitlines()[-max(lines, 1) :]), flush=True)


def heading(text: str) -> None:
    """Whose lines follow: on standard error, as what is asked for is the log itself."""
    print(paint(f"==> {text}", "grey", sys.stderr), file=sys.stderr, flush=True)
