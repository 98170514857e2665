"""`launch.py tensorboard`: the curves of runs, served on this machine's loopback until Ctrl-C. Torch-free."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from data.files import say
from jobs.cluster import show, slurm
from jobs.cluster.choose import chosen, verb_parser
from jobs.cluster.sites import Site, choose_site
from jobs.run.find import RUNS, run_folders
from jobs.run.stopping import BAD, DONE, TRANSIENT

RELOAD = 15  # seconds between two looks at the logs
NOTICES = re.compile(
    r"TensorFlow installation not found|experimental fast data loading|--load_fast=false|github.com/tensorflow|^\s*$"
)


def tensorboard_command(argv: list[str]) -> int:
    """`launch.py tensorboard`."""
    text = (
        "Serve the curves and sample grids of all runs, or of some, on this machine's loopback; print the ssh tunnel."
    )
    parser = verb_parser("tensorboard", text, "*")
    parser.add_argument("--port", type=int, default=0, help="port here (default: a free one)")
    parser.add_argument("--site", default="", metavar="PROFILE", help="profile with the names of login and jump host")
    parser.add_argument("--no-tunnel", action="store_true", help="do not print the ssh tunnel: it is open already")
    parser.add_argument("--host", metavar="LOGIN", help="on that login node, with the tunnel opened from here")
    options = parser.parse_intermixed_args(argv)
    runs = chosen(options.run)
    return tensorboard(runs, options.port, None if options.no_tunnel else site_here(options.site))


def site_here(named: str = "") -> Site:
    """The profile whose login and jump host lead here."""
    return choose_site(named, slurm.partitions() if slurm.available() else None, local=True)


def tensorboard(runs: Iterable[Path], port: int, site: Site | None) -> int:
    """Serve the curves and sample grids of these runs, or of all in runs/, and print the ssh tunnel to them.

    site: whose tunnel; None prints none.
    """
    runs, text = list(dict.fromkeys(runs)), str(port or free_port())
    with tempfile.TemporaryDirectory(prefix="brain-slices-tensorboard-") as folder, ExitStack() as at_end:
        link(Path(folder), runs or run_folders(RUNS))
        if not runs:  # those that begin while it serves come to it
            ended = threading.Event()
            thread = threading.Thread(target=keep_linking, args=(Path(folder), ended), daemon=True)
            thread.start()
            at_end.callback(thread.join)  # before the folder goes
            at_end.callback(ended.set)
        command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", text,
                   "--reload_interval", str(RELOAD), "--samples_per_plugin", "images=200",
                   "--logdir", folder]  # fmt: skip
        if site is not None:
            show.say_tunnel(site, text)
        return serve(command)


def link(shown: Path, runs: Iterable[Path]) -> None:
    """A link to the logs of each run under the run's own name: what TensorBoard calls it by. Commas and colons in names
    leave nothing else, as --logdir_spec takes neither."""
    for run in runs:
        name = run.name if run.parent == RUNS else str(run).replace("/", "_")
        with contextlib.suppress(FileExistsError):
            (shown / name).symlink_to(run / "tensorboard")


def keep_linking(shown: Path, ended: threading.Event) -> None:
    """New runs too, until it is over."""
    while not ended.wait(RELOAD):
        with contextlib.suppress(OSError):
            link(shown, run_folders(RUNS))


def serve(command: list[str]) -> int:
    """Run TensorBoard until Ctrl-C, without its notices; it ends with this process. Its exit code, TRANSIENT where its
    port is taken."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(DONE))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    assert process.stderr is not None
    taken = False
    try:
        for line in process.stderr:
            taken |= "could not bind" in line
            if not NOTICES.search(line):
                say(line.rstrip("\n"), sys.stderr)
        code = process.wait()
        return TRANSIENT if taken else min(code, BAD)  # its own 255 would be taken for one of ssh
    except KeyboardInterrupt:
        return DONE
    finally:
        process.terminate()


def free_port() -> int:
    """A port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
