"""What launch.py shows: the table of runs, one run in detail, sweeps side by side, logs as they grow. Torch-free."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import socket
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from data.files import is_number, open_regular, plain, read_object, say
from jobs.cluster import choose, quota, status, terminal, why
from jobs.cluster.choose import verb_parser
from jobs.cluster.terminal import facts, paint, table
from jobs.config import kinds, wording
from jobs.run.find import find_run, read_jobs, read_sweep, typed
from jobs.run.own_job import job_id
from jobs.run.rundir import RunDir
from jobs.run.states import FINAL, RunState, Verdict
from jobs.run.stopping import DONE
from jobs.run.vae import useful, verdict_of

LOOKS = 3  # at an ended run before it counts as over: between two attempts it looks so, too

JSON_VERSION = 1  # of what `status --json` prints; it grows when a field goes or changes its meaning
WATCH_S = 5.0


# --- launch.py status -------------------------------------------------------------------------------------------------
def status_command(argv: list[str]) -> int:
    """`launch.py status`."""
    about = "What every run is doing, or one run in detail. The runs touched last stand last."
    parser = verb_parser("status", about, "*")
    parser.add_argument("--json", action="store_true", help='one JSON object, {"version": 1, "runs": [...]}')
    parser.add_argument(
        "--watch", nargs="?", type=float, const=WATCH_S, metavar="SECONDS",
        help=f"show it again every so many seconds ({WATCH_S:g}), until Ctrl-C",
    )  # fmt: skip
    parser.add_argument(
        "--best", default="", metavar="COLUMN", help="of a sweep: its points by that column, best first"
    )
    options = parser.parse_intermixed_args(argv)
    if options.watch is None:
        show_status(options.run, options.json, best=options.best)
        return DONE
    if not options.watch >= 1:
        parser.error(f"--watch {options.watch:g}: at least 1 second, as the cluster's controller is asked each time")
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            show_status(options.run, options.json, best=options.best, clear=sys.stdout.isatty() and not options.json)
            sys.stdout.flush()
            time.sleep(options.watch)
    return DONE


def show_status(names: list[str], as_json: bool, clear: bool = False, best: str = "") -> None:
    """One look at the runs of these names, or at all. `clear`: on an empty screen, once all is known.

    best: a column of metrics.jsonl by which the points of a sweep are told, the best one first.
    """
    run = find_run(names[0], choose.RUNS) if len(names) == 1 else None
    points = read_sweep(run) if run else None
    folders = choose.chosen(names) if names else choose.all_runs()
    jobs = status.all_jobs()
    views = [status.view_run(folder, jobs) for folder in folders]
    if best and not points:
        raise LookupError(f"--best {best}: name one sweep, python launch.py status SWEEP --best {best}")
    if best and points:
        points, views = by_column(points, views, best)
    if clear:
        print("\x1b[H\x1b[2J", end="")
    if as_json:
        extra = [{"sweep": point["values"]} for point in points] if points else [{} for _ in views]
        runs = [asdict(view) | more for view, more in zip(views, extra, strict=True)]
        print(json.dumps({"version": JSON_VERSION, "runs": runs}))
    elif points:
        show_sweep(points, views, best)
    elif run and views:
        show_run(views[0], run)
    elif views:
        show_runs(views)
        if room := quota.used_and_limit_gb(choose.RUNS, timeout=2):
            say(f"\nquota: {room[0]:.1f} of {room[1]:.1f} GB used; python launch.py clean shows by what")
    else:
        first = "python launch.py --local --wait --job stylegan2 --preset quickstart"
        say(f"No runs in {choose.RUNS} yet. Start one:  {first}")


def next_steps(run: Path, state: str) -> None:
    """The commands that make sense now, ready to be copied."""
    name = typed(run)
    ours = wording.python()
    steps = {
        "watch": f"{ours} launch.py status {name}",
        "log": f"{ours} launch.py logs {name} -f",
        "why": f"{ours} launch.py why {name}",
        "stop": f"{ours} launch.py stop {name}",
        "go on": f"{ours} launch.py resume {name}",
        "curves": f"{ours} launch.py tensorboard",
    }
    wanted = "curves" if state == RunState.DONE else "why go_on curves" if state in FINAL else "watch log stop curves"
    then = [("next", f"{ours} {words}") for words in (after(run) if state == RunState.DONE else ())]
    rest = [(word.replace("_", " "), steps[word.replace("_", " ")]) for word in wanted.split()]
    facts([("run", str(run)), *then, *rest])


def after(run: Path) -> list[str]:
    """What one does with this finished run; nothing where nobody can say what it is a run of."""
    config, jobs = read_object(run / "config.json", run)[0], read_jobs(run)
    options = jobs.get("options")
    here = isinstance(options, dict) and options.get("local") is True
    found = [name for name in (jobs.get("job"), *kinds.jobs_of(config)) if name in kinds.JOBS]
    where = "--local " if here else ""
    commands = kinds.next_commands(found[0], config, typed(run), launched=True, where=where) if found else []
    return useful(commands, verdict_of(run / "weights.safetensors"))


def progress(view, narrow: bool = False) -> str:
    """A bar and the kimg of a run, '' where they are not known; `narrow`: without the bar."""
    if view.kimg is None:
        return ""
    bar = "" if narrow else terminal.bar(view.kimg, view.total_kimg) + " "
    return f"{bar}{view.kimg:.4g}/{view.total_kimg or 0:g} kimg"


def gpu_use(view) -> str:
    """Load and memory of the GPU of a live run, as its heartbeat tells."""
    if view.state != RunState.RUNNING or view.gpu_util is None:
        return ""
    return f"{view.gpu_util:.0f}%" + (f" {view.gpu_gb:.0f} GB" if view.gpu_gb else "")


def show_runs(views) -> None:
    """The table of `launch.py status`."""
    header = ["RUN", "STATE", "JOB", "ON", "TIME", "PROGRESS", "LEFT", "RESTARTS", "GPU", "NOTE"]
    spare = ["GPU", "RESTARTS", "ON", "JOB", "LEFT", "TIME"]  # the first that a narrow terminal goes without
    rows, narrow = [], terminal.width() < 100
    for v in views:
        time_ = (
            ""
            if v.elapsed_s is None
            else wording.clock(v.elapsed_s) + (f"/{wording.clock(v.limit_s)}" if v.limit_s else "")
        )
        live = v.state not in FINAL
        where = (v.node or v.partition) if live else ""
        eta = wording.short_time(v.eta_s) if v.state == RunState.RUNNING else ""
        rows.append(
            [
                v.name,
                v.state,
                v.job_id if live else "",
                where,
                time_,
                progress(v, narrow),
                eta,
                str(v.restarts or ""),
                gpu_use(v),
                v.told,
            ]
        )
    left_out = table(header, rows, {1: terminal.STATE_COLOURS}, spare=spare)
    say_left_out(left_out)


def say_left_out(columns: list[str]) -> None:
    """Which columns the terminal is too narrow for, and where they are to be seen."""
    if columns:
        text = f"not shown for want of room: {', '.join(columns)} (a wider terminal, status RUN or status --json)"
        say("\n" + "\n".join(textwrap.wrap(text, terminal.width())))


def show_run(view, run: Path) -> None:
    """One run in detail, `launch.py status RUN`."""
    print(f"{paint(view.name, 'bold')}: {paint(view.state, terminal.STATE_COLOURS.get(view.state, ''))}")
    elapsed = (
        wording.clock(view.elapsed_s) + (f" of {wording.clock(view.limit_s)}" if view.limit_s else "")
        if view.elapsed_s is not None
        else ""
    )
    numbers = [f"{name} {view.metrics[name]:.4g}" for name in told([view.metrics]) if not name.startswith("best_")]
    where = f" on {view.node}" if view.node else f" in {view.partition}" if view.partition else ""
    age = (
        f"{wording.short_time(time.time() - view.updated)} ago"
        if view.updated and view.state != RunState.QUEUED
        else ""
    )
    facts(
        [
            ("note", view.told),
            ("job", f"{view.job_id}{where}" if view.job_id and view.state not in FINAL else ""),
            ("time", elapsed),
            ("progress", progress(view)),
            ("left", wording.short_time(view.eta_s) if view.state == RunState.RUNNING else ""),
            ("restarts", str(view.restarts or "")),
            ("GPU", gpu_use(view)),
            ("last", ", ".join(numbers)),
            ("best", kinds.best_text(view.metrics)),
            ("ended" if view.state in FINAL else "heartbeat", age),
        ]
    )
    attempts = attempt_rows(RunDir(run).read_attempts())
    if attempts:
        print()
        table(["ATTEMPT", "JOB", "NODE", "BEGAN", "RAN", "FROM", "TO", "ENDED"], attempts[-8:])
    print()
    next_steps(run, view.state)


OUTCOMES: dict[str, str] = {
    Verdict.REQUEUE: "requeued",
    Verdict.CHAIN: "next job",
    Verdict.BUDGET: "out of budget",
    Verdict.DONE: "",
    Verdict.STOPPED: "",
    Verdict.FAILED: "",
}


def attempt_rows(lines: list[dict]) -> list[list[str]]:
    """One row per attempt (number, job, node, began, ran, from, to, ended), from the lines of attempts.jsonl."""
    rows: dict[int, list[str]] = {}
    for line in lines:
        number, event = line.get("attempt"), line.get("event")
        kimg = f"{line['nimg'] / 1000:g}" if is_number(line.get("nimg")) else ""
        if type(number) is not int:
            number = 0
        if event == "start" and number:
            began = wording.short_date(line["time"]) if line.get("time") else ""
            rows[number] = [
                str(number),
                str(line.get("job_id") or ""),
                str(line.get("node") or ""),
                began,
                "",
                kimg,
                "",
                "",
            ]
        elif event == "end" and number in rows:
            code = f" (code {line['code']})" if line.get("code") not in (None, 0, 85) else ""
            ended = f"{str(line.get('reason', ''))[:500]}{code}"
            rows[number][4:] = [wording.short_time(line.get("seconds")), rows[number][5], kimg, ended]
        elif event == "decision" and rows:
            verdict = str(line.get("decision", ""))
            row = rows[max(rows)]
            row[7] = ", ".join(
                part for part in (row[7] or str(line.get("why", ""))[:500], OUTCOMES.get(verdict, verdict)) if part
            )
    return list(rows.values())


def told(rows: list[dict]) -> list[str]:
    """The columns to tell a person of, where one of these rows of metrics.jsonl has them."""
    return [c.name for c in kinds.known_columns() if c.told and any(is_number(row.get(c.name)) for row in rows)]


def by_column(points: list[dict], views: list, column: str) -> tuple[list[dict], list]:
    """The points and their views, best first by the column's last value; those that have none stand last."""
    figures = [view.metrics.get(column) for view in views]
    if not any(map(is_number, figures)):
        logged = sorted({name for view in views for name in view.metrics})
        raise LookupError(f"--best {column}: no point has logged it; there are {', '.join(logged) or 'no columns yet'}")
    sign = -1 if any(c.higher and c.matches(column) for c in kinds.known_columns()) else 1
    order = sorted(range(len(views)), key=lambda i: sign * figures[i] if is_number(figures[i]) else math.inf)
    return [points[i] for i in order], [views[i] for i in order]


def show_sweep(points: list[dict], views, best: str = "") -> None:
    """The points side by side: swept values, state, progress, and the figures of the last log row.

    best: the column by which they are ordered.
    """
    swept = list(points[0]["values"])
    wanted = told([view.metrics for view in views])
    wanted += [best] if best and best not in wanted else []
    rows = []
    for point, view in zip(points, views, strict=True):
        figures = [f"{view.metrics[name]:.4g}" if is_number(view.metrics.get(name)) else "" for name in wanted]
        rows.append([*point["values"].values(), view.state, progress(view), *figures, view.name])
    header = [*(name.upper() for name in swept), "STATE", "PROGRESS", *wanted, "RUN"]
    colours = {len(swept): terminal.STATE_COLOURS}
    say_left_out(table(header, rows, colours, right=set(wanted), spare=wanted[::-1]))
    if best:
        values = ", ".join(f"{name}={value}" for name, value in points[0]["values"].items())
        say(f"Best by {best}: {views[0].name} ({values}), {views[0].metrics[best]:.4g} at {views[0].kimg or 0:g} kimg.")


class Follower:
    """Shows what is added to the run's logs, also in the new file of a later job."""

    def __init__(self, run: Path, at_end: bool):
        self.run, self.seen = run, {}
        if at_end:
            self.seen = {path: path.stat().st_size for path in why.log_files(run)}

    def show(self, before=lambda: None) -> bool:
        """Print what the logs have gained since the last call; `before()` is called ahead of each piece. Whether there
        was any."""
        shown = False
        for path in why.log_files(self.run):
            with contextlib.suppress(OSError), open_regular(path) as file:
                file.seek(self.seen.get(path, 0))
                if text := file.read(1 << 20):
                    before()
                    print(why.clean(text.decode(errors="replace")), end="", flush=True)
                    self.seen[path], shown = file.tell(), True
        return shown


def wait_for(run: Path, local: bool, stop: Callable) -> int:
    """Show the log until the run is over.

    Ctrl-C stops a local run with stop(run, now), a Slurm job goes on. Returns its exit code.
    """
    follower, bad_looks, jobs, asked = Follower(run, at_end=not local), 0, None, 0.0
    live = sys.stdout.isatty()

    def clear() -> None:
        print("\r\x1b[K" if live else "", end="")

    try:
        while bad_looks < LOOKS:
            if not local and time.monotonic() - asked > 5:
                jobs, asked = status.all_jobs(), time.monotonic()
            view = status.view_run(run, {} if local else jobs)
            follower.show(clear)
            if live:
                clear()
                left = f", {wording.short_time(view.eta_s)} left" if view.eta_s else ""
                print(plain(f"{view.state}  {progress(view)}{left}")[: terminal.width() - 1], end="\r", flush=True)
            bad_looks = bad_looks + 1 if view.state in FINAL else 0
            time.sleep(0.5 if local else 1.0)
    except KeyboardInterrupt:
        clear()
        if not local:
            say(f"The job goes on. python launch.py stop {typed(run)} stops it.")
            return DONE
        print("Stopping; it saves first.", flush=True)
        stop(run, now=False)
        with contextlib.suppress(KeyboardInterrupt):
            while status.live_process(run):
                time.sleep(0.2)
        follower.show(clear)
        return 130
    follower.show(clear)
    clear()
    return DONE if view.state == RunState.DONE else say_end(run, view)


def wait_for_points(runs: list[Path], folder: Path) -> int:
    """A line for each point of the sweep as it ends, until all are over. Returns the largest of their exit codes."""
    code, looks = DONE, dict.fromkeys(runs, 0)
    try:
        while looks:
            jobs = status.all_jobs()
            for run in list(looks):
                view = status.view_run(run, jobs)
                looks[run] = looks[run] + 1 if view.state in FINAL else 0
                if view.state == RunState.DONE or looks[run] == LOOKS:
                    code = max(code, say_end(run, view))
                    del looks[run]
            time.sleep(2.0 if looks else 0.0)
    except KeyboardInterrupt:
        say(f"The jobs go on. python launch.py stop {typed(folder)} stops them.")
    return code


def say_end(run: Path, view) -> int:
    """How a run ended, in one line. Returns its exit code."""
    say(f"{run.name}: {view.state}{f' ({view.told})' if view.told else ''}")
    return DONE if view.state in (RunState.DONE, RunState.STOPPED) else view.code or 1


def say_tunnel(site, port: str, what: str = "TensorBoard", local: int = 6006, path: str = "") -> None:
    """Where to point a browser, and the ssh line that leads there from the user's own computer, to its port `local`.
    path: of the page, behind host and port."""
    here, me = socket.gethostname(), getpass.getuser()
    print(f"{what} on {here}, on loopback only. Ctrl-C ends it.")
    if site.login or os.environ.get("SSH_CONNECTION"):
        login, tunnel = site.login or here, f"ssh -N -L {local}:127.0.0.1:{port}"
        jump = f"{me}@{site.jump}" if site.jump else ""
        rows = [("on your computer", " ".join(filter(None, [tunnel, jump and f"-J {jump}", f"{me}@{login}"])))]
        if jump:
            rows.append(("on campus or VPN", f"{tunnel} {me}@{login}"))
        if here.split(".")[0] != login.split(".")[0]:  # one of several login nodes behind one name
            rows.append(
                (f"if that is not {here}", f"{tunnel} -J {','.join(filter(None, [jump, f'{me}@{login}']))} {me}@{here}")
            )
        if job_id():  # on the node of a job, which no other row leads to
            rows = [("on your computer", rows[-1][1])]
        facts([*rows, ("then open", f"http://localhost:{local}{path}")])
    else:
        facts([("open", f"http://localhost:{port}{path}")])
    sys.stdout.flush()
