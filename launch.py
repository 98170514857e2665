"""Queue, watch and steer training runs from a login node, or run them on this machine.

    python launch.py --partition a100 --job stylegan2 --data /path/to/ADNI    # check, queue, return
    python launch.py status                                                   # all runs in one table
    python launch.py --local --wait --job stylegan2 --preset quickstart       # the same without Slurm

The same command means the same run: a live job is reported and not doubled, a stopped one goes on, a finished one is
named.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("launch.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

import argparse
import contextlib
import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

from data.files import say
from jobs.cluster import doctor, serve, show, slurm, status, submit, terminal, why
from jobs.cluster.options import MAX_RESTARTS, Options, is_given
from jobs.cluster.plan import make_plan
from jobs.cluster.queueing import launch, pipeline, plan_or_hint, slurm_partitions
from jobs.cluster.sites import choose_site
from jobs.cluster.steer import resume_options, stop_run
from jobs.cluster.sweep import read_sweep, sweep
from jobs.cluster.terminal import facts, paint
from jobs.config import kinds
from jobs.config.parsing import parse_config
from jobs.config.specs import ConfigError
from jobs.config.version import version
from jobs.run.find import RUNS, find_run, read_jobs, run_folders
from jobs.run.states import RunDirError, RunState
from jobs.run.stopping import BAD, DONE, TRANSIENT, USAGE

USAGE_TEXT = """
python launch.py --partition a100 --job {stylegan2,...} [options] [-- training flags]
       python launch.py {status,logs,stop,resume,why,tensorboard,doctor} [RUN] [--help]
"""
EPILOG = """
then:
  status [RUN]           what every run is doing, or one in detail
  logs RUN [-f]          the newest log
  why RUN                why it failed, waits or stopped, and what to do
  stop RUN [--now]       save and stop; --now does not wait for a save that hangs
  resume RUN             go on with a stopped, failed or interrupted run, with the options it had
  tensorboard [RUN ...]  serve the curves, and print the ssh tunnel to them
  doctor                 check this machine, the environment and the cluster

training flags are those of the job's script and may stand before or after the `--`:
  python launch.py --job stylegan2 -- --help
"""


# --- queueing ---------------------------------------------------------------------------------------------------------
def queue_parser() -> argparse.ArgumentParser:
    """The options of launch.py itself; what it does not know are training flags."""
    parser = argparse.ArgumentParser(
        prog="launch.py",
        usage=USAGE_TEXT.strip(),
        description=__doc__.split("\n\n")[0],
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version())
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--job", metavar="JOB", help=f"{', '.join(kinds.JOBS)}, or pipeline (the VAE, then diffusion on it)"
    )
    what.add_argument("--preset", default="", metavar="NAME", help="a named configuration; training flags override it")
    what.add_argument("--name", default="", help="name of the run (default: one that follows from the configuration)")
    what.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="FLAG=A,B,...",
        help="one run per value, as a job array; may be repeated",
    )
    what.add_argument("--after", default="", metavar="RUN", help="start when that run is done")
    add_resources(parser.add_argument_group("where and with what"))
    how = parser.add_argument_group("how")
    how.add_argument("--local", action="store_true", help="run on this machine, without Slurm")
    how.add_argument("--wait", action="store_true", help="show the log and return when the run is over")
    how.add_argument(
        "--dry-run", action="store_true", help="print the config, the sbatch text and the checks; queue nothing"
    )
    how.add_argument("--shared", action="store_true", help="let your group read the run (default: only you can)")
    how.add_argument("--json", action="store_true", help="print one JSON object per run")
    return parser


def add_resources(group) -> None:
    """The options that say where a job runs and with what."""
    group.add_argument("--partition", default="", metavar="P", help="Slurm partition; a comma list is allowed")
    group.add_argument("--gpus", type=int, metavar="N", help="GPUs per node (default 1; 0 for a CPU partition)")
    group.add_argument("--nodes", type=int, metavar="N", help="nodes (default 1)")
    group.add_argument("--cpus", type=int, metavar="N", help="CPU cores per GPU")
    group.add_argument(
        "--time",
        default="",
        metavar="H:MM:SS",
        help="limit of one attempt; the job requeues itself until the run is done",
    )
    group.add_argument("--account", default="", help="Slurm account")
    group.add_argument("--qos", default="", help="Slurm quality of service")
    group.add_argument(
        "--max-restarts",
        type=int,
        metavar="N",
        help=f"give up after so many restarts (default {MAX_RESTARTS}; pre-emptions do not count)",
    )
    group.add_argument("--site", default="", metavar="PROFILE", help="profile of jobs/sites.toml (default: recognised)")


def queue_command(argv: list[str]) -> int:
    """Check and queue a run, a sweep or a pipeline."""
    parser = queue_parser()
    given, flags = split_flags(parser, argv)
    options = options_of(given)
    if not options.job and options.name:
        options = replace(options, job=read_jobs(RUNS / options.name).get("job", ""))
    if not options.job:
        parser.error(f"--job is missing: {', '.join(kinds.JOBS)} or pipeline")
    if {"-h", "--help"} & set(flags) and options.job in kinds.JOBS:
        parse_config(kinds.JOBS[options.job].config, ["--help"])  # exits
    options.check()
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    if options.after:
        options = replace(options, after=str(find_run(options.after, RUNS)))
    if options.job == "pipeline":
        return pipeline(options, flags, site, partitions)
    own_flags = [name for action in parser._actions for name in action.option_strings]
    if options.sweep:
        return sweep(options, flags, site, partitions, own_flags)
    return launch(plan_or_hint(options, flags, site, partitions, own_flags), options, partitions)


def split_flags(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(launch.py's own options, training flags): the latter may stand before or after a `--`."""
    cut = argv.index("--") if "--" in argv else len(argv)
    given, flags = parser.parse_known_args(argv[:cut])
    return given, flags + argv[cut + 1 :]


def options_of(given: argparse.Namespace) -> Options:
    """argparse's answer, typed."""
    return Options(**vars(given) | {"sweep": tuple(given.sweep)})


# --- watching ---------------------------------------------------------------------------------------------------------
def verb_parser(verb: str, text: str, run: str = "") -> argparse.ArgumentParser:
    """The parser of a verb; `run`: how many runs it names (one, ?, *)."""
    parser = argparse.ArgumentParser(prog=f"launch.py {verb}", description=text, allow_abbrev=False)
    if run:
        about = "name, beginning of a name, path or job id"
        parser.add_argument(
            "run",
            metavar="RUN",
            help=about,
            nargs=None if run == "one" else run,
            default=[] if run == "*" else None,
        )
    return parser


def status_command(argv: list[str]) -> int:
    """`launch.py status`."""
    parser = verb_parser(
        "status", "What every run is doing, or one run in detail. The runs touched last stand last.", "?"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, for scripts")
    options = parser.parse_args(argv)
    run = find_run(options.run, RUNS) if options.run else None
    points = read_sweep(run) if run else None
    folders = [Path(point["run"]) for point in points] if points else [run] if run else run_folders(RUNS)
    jobs = status.all_jobs()
    views = [status.view_run(folder, jobs) for folder in folders]
    if options.json:
        extra = [{"sweep": point["values"]} for point in points] if points else [{} for _ in views]
        print(json.dumps([asdict(view) | more for view, more in zip(views, extra, strict=True)]))
    elif points:
        show.show_sweep(points, views)
    elif run:
        show.show_run(views[0], run)
    elif views:
        show.show_runs(views)
    else:
        say(f"No runs in {RUNS} yet. Start one:  python launch.py --local --wait --job stylegan2 --preset quickstart")
    return DONE


def logs_command(argv: list[str]) -> int:
    """`launch.py logs`."""
    parser = verb_parser("logs", "The newest log of a run.", "one")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on showing what is written, through requeues, until Ctrl-C"
    )
    parser.add_argument(
        "-n", "--lines", type=int, default=50, metavar="N", help="how many lines from the end (default 50)"
    )
    options = parser.parse_args(argv)
    run = find_run(options.run, RUNS)
    follower = show.Follower(run, at_end=True)  # from here on: what is written meanwhile must be shown once
    log = why.newest_log(run)
    if log is None and not options.follow:
        say(f"{run.name} has no log yet: its job has not started. python launch.py status {run.name}")
        return DONE
    if log is not None:
        print(paint(f"==> {log}", "grey", sys.stderr), file=sys.stderr)
        text = why.tail(log, 1 << 20, follower.seen.get(log, 0) if options.follow else None)
        print("\n".join(text.rstrip("\n").splitlines()[-max(options.lines, 1) :]), flush=True)
    if options.follow:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                follower.show()
                time.sleep(0.5)
    return DONE


def why_command(argv: list[str]) -> int:
    """`launch.py why`."""
    parser = verb_parser("why", "Why a run failed, waits or stopped, and what to do about it.", "one")
    parser.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    options = parser.parse_args(argv)
    run = find_run(options.run, RUNS)
    view, cause = why.explain(run, status.all_jobs())
    if options.json:
        print(json.dumps({"run": view.name, "state": view.state, **asdict(cause)}))
        return DONE
    print(f"{paint(view.name, 'bold')}: {paint(view.state, terminal.STATE_COLOURS.get(view.state, ''))}")
    log = why.newest_log(run)
    facts(
        [
            ("cause", cause.text),
            ("line", cause.line),
            ("fix", cause.fix),
            ("log", str(log) if log and view.state != RunState.QUEUED else ""),
        ]
    )
    return DONE


# --- steering ---------------------------------------------------------------------------------------------------------
def stop_command(argv: list[str]) -> int:
    """`launch.py stop`."""
    parser = verb_parser("stop", "Save and stop a run. It stays stopped until it is launched or resumed.", "one")
    parser.add_argument(
        "--now",
        action="store_true",
        help="do not wait for the next step: end the job; it saves if it can, within seconds",
    )
    options = parser.parse_args(argv)
    run = find_run(options.run, RUNS)
    stopped = [stop_run(Path(point["run"]), options.now) for point in read_sweep(run) or [{"run": str(run)}]]
    return max(stopped)


def resume_command(argv: list[str]) -> int:
    """`launch.py resume`."""
    text = "Go on with a run, with the options it had; those given here replace them. Training flags after --."
    parser = verb_parser("resume", text, "one")
    add_resources(parser)
    for name, about in (
        ("local", "on this machine"),
        ("wait", "show the log until the run is over"),
        ("dry-run", "queue nothing"),
        ("json", "print JSON"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=about)
    given, flags = split_flags(parser, argv)
    run = find_run(given.run, RUNS)
    if points := read_sweep(run):
        return max(resume_command([point["run"], *argv[1:]]) for point in points)
    typed = {name: value for name, value in vars(given).items() if name != "run" and is_given(value)}
    options = resume_options(run, typed)
    options.check()
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    return launch(make_plan(options, [*flags, "--run", str(run)], site, partitions), options, partitions)


# --- curves, health ---------------------------------------------------------------------------------------------------
def tensorboard_command(argv: list[str]) -> int:
    """`launch.py tensorboard`."""
    text = (
        "Serve the curves and sample grids of all runs, or of some, on this machine's loopback; print the ssh tunnel."
    )
    parser = verb_parser("tensorboard", text, "*")
    parser.add_argument("--port", type=int, default=0, help="port here (default: a free one)")
    parser.add_argument("--site", default="", metavar="PROFILE", help="profile with the names of login and jump host")
    options = parser.parse_args(argv)
    named = [find_run(text, RUNS) for text in options.run]
    runs = [Path(point["run"]) for run in named for point in read_sweep(run) or [{"run": str(run)}]]
    site = choose_site(options.site, slurm.partitions() if slurm.available() else None, local=True)
    return serve.tensorboard(runs, options.port, site)


def doctor_command(argv: list[str]) -> int:
    """`launch.py doctor`."""
    parser = verb_parser("doctor", "Check this machine, the environment and the cluster.")
    parser.add_argument(
        "--site", default="", metavar="PROFILE", help="profile of jobs/sites.toml (default: recognised)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, for scripts")
    options = parser.parse_args(argv)
    checks = doctor.check_machine(options.site, RUNS)
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        terminal.say_checks(checks)
        failed = sum(check.level == "fail" for check in checks)
        say(f"\n{failed} problem{'s' if failed > 1 else ''} to fix." if failed else "\nAll well.")
    return BAD if any(check.level == "fail" for check in checks) else DONE


VERBS = {
    "status": status_command, "logs": logs_command, "why": why_command, "stop": stop_command, "resume": resume_command,
    "tensorboard": tensorboard_command, "doctor": doctor_command,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the verb, or queue. Returns the exit code."""
    if argv and argv[0] in VERBS:
        return VERBS[argv[0]](argv[1:])
    if not argv or argv[0] == "help":
        argv = ["--help"]
    elif not argv[0].startswith("-"):
        raise LookupError(
            f"{argv[0]}: there is no such command; choose from {', '.join(VERBS)}, or queue a run with --job"
        )
    return queue_command(argv)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # the bars of progress on a terminal that is not Unicode
    try:
        sys.exit(main(sys.argv[1:]))
    except LookupError as error:
        terminal.error(str(error.args[0] if error.args else error))
        sys.exit(USAGE)
    except (ConfigError, RunDirError, submit.SubmitError, slurm.SlurmError) as error:
        terminal.error(str(error))
        sys.exit(TRANSIENT if isinstance(error, slurm.NoAnswer) else BAD)
    except BrokenPipeError:  # `launch.py status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    except KeyboardInterrupt:
        sys.exit(130)
