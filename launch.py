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
import os
from dataclasses import replace
from pathlib import Path

from data.files import say
from data.installed import need
from jobs.cluster import (
    choose,
    clean,
    doctor,
    logs,
    remote,
    serve,
    show,
    slurm,
    status,
    steer,
    submit,
    terminal,
    usage,
    why,
)
from jobs.cluster.choose import all_runs, chosen, verb_parser
from jobs.cluster.options import Options, add_flags, from_shell, is_given, options_of
from jobs.cluster.plan import Plan, make_plan
from jobs.cluster.queueing import Partitions, launch, pipeline, plan_or_hint, slurm_partitions
from jobs.cluster.sites import choose_site
from jobs.cluster.sweep import resume_sweep, sweep
from jobs.config import kinds
from jobs.config.parsing import answer_at_once
from jobs.config.recorded import job_in
from jobs.config.specs import ConfigError
from jobs.config.version import version
from jobs.run.find import find_run, members, read_jobs, read_sweep
from jobs.run.states import RunDirError, RunState
from jobs.run.stopping import BAD, DONE, TRANSIENT, USAGE

USAGE_TEXT = """
python launch.py --partition a100 --job {stylegan2,...} [options] [-- training flags]
       python launch.py {status,logs,stop,resume,why,usage,clean,tensorboard,doctor} [RUN ...] [--help]
       python launch.py --host LOGIN ... | python launch.py pull RUN --host LOGIN
"""
EPILOG = """
then:
  status [RUN ...]       what every run is doing, or one in detail; --watch shows it again and again
  logs RUN [-f]          the newest log
  why RUN                why it failed, waits or stopped, and what to do
  stop RUN [--now]       save and stop; --now does not wait for a save that hangs
  resume RUN | --failed  go on with a stopped, failed or interrupted run, with the options it had
  usage [RUN ...]        GPU hours: asked for, used, lost to restarts
  clean [RUN ...]        what runs hold on the disk; deletes what finished ones no longer need
  tensorboard [RUN ...]  serve the curves, and print the ssh tunnel to them
  --host LOGIN ...       the same on a login node, through ssh (--host-dir: the clone's folder there)
  pull RUN --host LOGIN  copy pictures, report, curves and weights from there
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
    for group, title in (("what", "what to run"), ("where", "where and with what"), ("how", "how")):
        add_flags(parser.add_argument_group(title), group)
    return parser


def queue_command(argv: list[str]) -> int:
    """Check and queue a run, a sweep or a pipeline."""
    parser = queue_parser()
    given, flags = split_flags(parser, argv)
    options = options_of(given)
    if not options.job and options.name:
        options = replace(options, job=read_jobs(choose.RUNS / options.name).get("job", ""))
    if not options.job:
        options = replace(options, job=job_in(flags))
    if not options.job:
        parser.error(f"--job is missing: {', '.join(kinds.JOBS)} or pipeline")
    job = None if options.job == "pipeline" else kinds.job(options.job)
    if job and {"-h", "--help"} & set(flags):
        answer_at_once(job.config, flags)  # exits
    need("tyro", "submitit")
    options = options if options.local else from_shell(options)
    options.check()
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    if options.after:
        options = replace(options, after=str(find_run(options.after, choose.RUNS)))
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


# --- steering ---------------------------------------------------------------------------------------------------------
def resume_command(argv: list[str]) -> int:
    """`launch.py resume`."""
    text = "Go on with runs, with the options they had; those given here replace them. Training flags after --."
    parser = verb_parser("resume", text, "*")
    parser.add_argument("--failed", action="store_true", help="every run that ended without being done or stopped")
    for group in ("what", "where", "how"):
        add_flags(parser, group, only="resume")
    given, flags = split_flags(parser, argv)
    while flags and not flags[0].startswith("-"):  # runs that stood behind an option
        given.run.append(flags.pop(0))
    runs = chosen(given.run)
    if given.failed:
        jobs = status.all_jobs()
        runs = [run for run in runs or all_runs() if status.view_run(run, jobs).state in ENDED_BADLY]
        if not runs and isinstance(jobs, status.Silent):
            raise slurm.NoAnswer("Slurm does not answer, so which runs have failed is not known; try again")
        if not runs:
            say("No run has failed.")
    elif not runs:
        parser.error("name a run, or give --failed")
    typed = {name: v for name, v in vars(options_of(given)).items() if is_given(v)}
    named = dict.fromkeys(find_run(name, choose.RUNS) for name in given.run)
    points = {one: [run for run in members(one) if run in runs] for one in named if read_sweep(one)}
    alone = [run for run in runs if not any(run in some for some in points.values())]
    return steer.each([*points, *alone], lambda one: resume(one, points.get(one, [one]), typed, flags))


def resume(named: Path, runs: list[Path], typed: dict, flags: list[str]) -> int:
    """Go on with a run, or with these points of a sweep: as one array, where they ask for the same. Returns the exit
    code."""
    code = None
    with contextlib.suppress(ConfigError, RunDirError):  # of one point: said below, where the others have their turn
        if len(runs) > 1:
            made = [plan_again(run, typed, flags) for run in runs]
            code = resume_sweep([plan for plan, *_ in made], named, *made[0][1:])
    if code is not None:
        return code
    return steer.each(runs, lambda run: launch(*plan_again(run, typed, flags)))


def plan_again(run: Path, typed: dict, flags: list[str]) -> tuple[Plan, Options, Partitions]:
    """The plan of a run that goes on, with its options and what Slurm offers."""
    options = steer.resume_options(run, typed)
    options = options if options.local else from_shell(options)
    options.check()
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    return make_plan(options, [*flags, "--run", str(run)], site, partitions), options, partitions


# What `resume --failed` goes on with. A run that diverged needs other flags first.
ENDED_BADLY = (RunState.FAILED, RunState.STUCK, RunState.CUT_OFF, RunState.INTERRUPTED)
VERBS = {
    "status": show.status_command, "logs": logs.logs_command, "why": why.why_command, "stop": steer.stop_command,
    "resume": resume_command, "usage": usage.usage_command, "clean": clean.clean_command, "pull": remote.pull_command,
    "tensorboard": serve.tensorboard_command, "doctor": doctor.doctor_command,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the verb, or queue; with --host, there. Returns the exit code."""
    elsewhere, argv = remote.split(argv)
    if elsewhere:
        return remote.run_there(elsewhere, argv)
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
