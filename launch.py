"""Queue, watch and steer training runs from a login node, or run them on this machine.

    python launch.py --partition a100 --job stylegan2 --data /path/to/ADNI    # check, queue, return
    python launch.py status                                                   # all runs in one table
    python launch.py --local --wait --job stylegan2 --preset quickstart       # the same without Slurm

The same command means the same run: a live job is reported and not doubled, a stopped one goes on, a finished one is named.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("launch.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

import argparse
import contextlib
import difflib
import getpass
import hashlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, fields
from pathlib import Path

from jobs import preflight, show, slurm, specs, submit, terminal, watch, why
from jobs.plan import REMEMBERED, Plan, is_given, make_plan
from jobs.rundir import RunDir, RunDirError, atomic_write
from jobs.sites import choose_site
from jobs.specs import ConfigError
from jobs.stop import BAD, DONE, USAGE
from jobs.terminal import facts, paint
from jobs.watch import FINAL, RUNS

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
    parser = argparse.ArgumentParser(
        prog="launch.py", usage=USAGE_TEXT.strip(), description=__doc__.split("\n\n")[0], epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_argument_group("what to run")
    what.add_argument(
        "--job", metavar="JOB", help=f"{', '.join(specs.JOBS)}, or pipeline (the VAE, then diffusion on it)"
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
        default=20,
        metavar="N",
        help="give up after so many restarts (default 20; pre-emptions do not count)",
    )
    group.add_argument("--site", default="", metavar="PROFILE", help="profile of jobs/sites.toml (default: recognised)")


def queue_command(argv: list[str]) -> int:
    parser = queue_parser()
    split = argv.index("--") if "--" in argv else len(argv)
    options, flags = parser.parse_known_args(argv[:split])
    flags += argv[split + 1 :]
    if not options.job and options.name:
        options.job = submit.read_jobs(RUNS / options.name).get("job", "")
    if not options.job:
        parser.error(f"--job is missing: {', '.join(specs.JOBS)} or pipeline")
    if {"-h", "--help"} & set(flags) and options.job in specs.JOBS:
        specs.parse(specs.JOBS[options.job].config, ["--help"])  # exits
    check_numbers(options)
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    if options.after:
        options.after = str(watch.find_run(options.after, RUNS))
    if options.job == "pipeline":
        return pipeline(options, flags, site, partitions)
    if options.sweep:
        return sweep(options, flags, site, partitions)
    return launch(plan_or_hint(options, flags, site, partitions), options, partitions)


def plan_or_hint(options, flags: list[str], site, partitions) -> Plan:
    """make_plan; after tyro's own words on wrong flags one line more, for those that were meant for launch.py."""
    try:
        return make_plan(options, flags, site, partitions)
    except SystemExit as stop_:
        if stop_.code:
            known = [name for action in queue_parser()._actions for name in action.option_strings]
            for flag in [flag.split("=")[0] for flag in flags if flag.startswith("--")]:
                if near := difflib.get_close_matches(flag, known, n=1, cutoff=0.8):
                    terminal.error(f"{flag}: did you mean {near[0]}?")
            terminal.error(f"training flags are listed by: python launch.py --job {options.job} -- --help")
        raise


def check_numbers(options) -> None:
    for name, least in (("gpus", 0), ("nodes", 1), ("cpus", 1), ("max_restarts", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: at least {least}")
    if options.local and (options.nodes or 1) > 1:
        raise ConfigError("--local runs on this machine alone: leave --nodes out")


def slurm_partitions(options) -> dict | None:
    """What Slurm offers; None without Slurm, which only a --dry-run may do without."""
    if slurm.available():
        return slurm.partitions()
    if not options.dry_run:
        raise ConfigError(
            "there is no Slurm here: run this on the cluster's login node, add --local to train on this machine, or --dry-run"
        )
    return None


def launch(plan: Plan, options, partitions) -> int:
    """Check and queue one run, unless it is live or finished."""
    if not options.dry_run and (code := already(plan, options)) is not None:
        return code
    dependency, waiting = dependency_of(plan, options)
    # Slurm is asked about the resources; a dependency may be on a job that a dry run has not queued.
    checks = preflight.check_plan(plan, partitions, "" if plan.local else submit.sbatch_text([plan]))
    if options.dry_run:
        text = "" if plan.local else submit.sbatch_text([plan], dependency)
        return show_dry_run([plan], text, checks, options)
    if refused(checks, options):
        return BAD
    RunDir(plan.run).create()
    with submit.submit_lock(plan.run):
        if (code := already(plan, options)) is not None:  # another launch.py was quicker
            return code
        submit.prepare(plan)
        job_id = submit.submit_local(plan) if plan.local else submit.submit_slurm([plan], dependency)[0]
    say_queued(plan, job_id, waiting, options)
    return show.wait_for(plan.run, plan.local, stop_run) if options.wait else DONE


def already(plan: Plan, options) -> int | None:
    """Exit code if there is nothing to queue: the run is live, or finished and not to be extended. None otherwise."""
    if not plan.run.exists():
        return None
    view = watch.view_run(plan.run, watch.all_jobs())
    if view.state == "done" and plan.config.total_kimg <= (stored_total(plan.run) or 0):
        text = f"{plan.run.name} is done ({view.total_kimg or 0:g} kimg). Nothing queued; a larger --total-kimg goes on from there."
    elif view.state in FINAL or view.state == "new" or (view.state == "queued" and not view.job_id):
        return None
    else:
        where = f" as job {view.job_id}" if view.job_id else ""
        time_ = (
            f", {watch.clock(view.elapsed_s)} of {watch.clock(view.limit_s)}"
            if view.limit_s and view.elapsed_s is not None
            else ""
        )
        text = f"{plan.run.name} is {view.state} already{where}{time_}. Nothing queued."
        if view.note:
            text += f"\n  {view.note}"
    if options.json:
        print(json.dumps({"run": str(plan.run), "job_id": view.job_id, "state": view.state, "queued": False}))
    else:
        print(text)
        show.next_steps(plan.run, view.state)
    if options.wait and view.state not in FINAL:
        return show.wait_for(plan.run, plan.local, stop_run)
    return DONE


def stored_total(run: Path) -> float | None:
    with contextlib.suppress(RunDirError):
        return (RunDir(run).read_config() or {}).get("total_kimg")
    return None


def dependency_of(plan: Plan, options) -> tuple[str, str]:
    """(sbatch dependency, words for the user) of a run that comes after another."""
    if not plan.after or plan.local:
        if plan.after and not (Path(plan.after) / "DONE").exists():
            raise ConfigError(f"--after {Path(plan.after).name}: that run is not done; run it first")
        return "", ""
    first = Path(plan.after)
    if (first / "DONE").exists():
        return "", ""
    live = watch.live_jobs(first, watch.all_jobs() or {})
    if live:
        last = max(live, key=lambda job: int(job.id.split("_")[0])).id
        return f"afterany:{last}", f"starts when {first.name} (job {last}) is done"
    if options.dry_run:
        return f"afterany:JOB_OF_{first.name}", ""
    raise ConfigError(
        f"--after {first.name}: that run is neither done nor queued; python launch.py resume {first.name} first"
    )


def refused(checks, options) -> bool:
    """Show the checks where they matter: all if one fails, else only the warnings."""
    failed = [check for check in checks if check.level == "fail"]
    if options.json and failed:
        print(json.dumps({"queued": False, "checks": [asdict(check) for check in checks]}))
    elif not options.json:
        terminal.say_checks(checks if failed else [check for check in checks if check.level == "warn"], sys.stderr)
        if failed:
            terminal.error(f"nothing queued: {len(failed)} check{'s' if len(failed) > 1 else ''} failed")
    return bool(failed)


def show_dry_run(plans: list[Plan], text: str, checks, options) -> int:
    """The config, the sbatch text and the checks."""
    failed = any(check.level == "fail" for check in checks)
    if options.json:
        runs = [{"run": str(plan.run), "command": plan.command(), "config": asdict(plan.config)} for plan in plans]
        print(json.dumps({"runs": runs, "sbatch": text, "checks": [asdict(check) for check in checks]}))
        return BAD if failed else DONE
    for plan in plans:
        print(paint(f"# {plan.run}", "bold"))
        print(specs.to_json(plan.config) if len(plans) == 1 else " ".join(plan.command()))
    if text:
        print(paint("\n# sbatch text", "bold"))
        print(text.rstrip())
    else:
        print(paint("\n# command", "bold"))
        print(" ".join(plans[0].command()))
    print(paint("\n# checks", "bold"))
    terminal.say_checks(checks)
    print("\nNothing queued (--dry-run)." if not failed else "\nNothing queued (--dry-run); it would be refused.")
    return BAD if failed else DONE


def say_queued(plan: Plan, job_id: str, waiting: str, options) -> None:
    if options.json:
        print(json.dumps({"run": str(plan.run), "job_id": job_id, "queued": True}))
        return
    name = plan.run.name
    if plan.local:
        print(f"Started {paint(name, 'bold')} on this machine (process {job_id}).")
    else:
        gpus = f"{plan.gpus} GPU" if plan.gpus else "no GPU"
        nodes = f"{plan.nodes} nodes of " if plan.nodes > 1 else ""
        goes_on = "a successor goes on" if plan.chain else "it requeues itself"
        print(f"Queued {paint(name, 'bold')} as job {paint(job_id, 'bold')} on {plan.partition}: {nodes}{gpus}, {plan.cpus * plan.tasks} cores, "
              f"{slurm.format_time(plan.minutes * 60)} per attempt; {goes_on} until the run is done.")  # fmt: skip
    if waiting:
        print(f"  It {waiting}.")
    if plan.site.note:
        print(f"  {plan.partition}: {plan.site.note}.")
    if options.wait and plan.local:
        facts([("run", str(plan.run)), ("stop", "Ctrl-C; the same command goes on from there")])
    else:
        show.next_steps(plan.run, "queued")


# --- several runs: sweep and pipeline ---------------------------------------------------------------------------------
def sweep(options, flags: list[str], site, partitions) -> int:
    """One run per combination of values, queued as one job array; points that are live or done are left alone."""
    names, combinations = parse_sweep(options, flags)
    if options.local and not (options.wait or options.dry_run):
        raise ConfigError("--sweep --local runs its points one after another: add --wait")
    base = options.name
    plans, points = [], []
    for values in combinations:
        label = ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        options.name = f"{base}-{label}".replace("/", "_") if base else ""
        extra = [part for name, value in zip(names, values, strict=True) for part in (f"--{name}", value)]
        plan = plan_or_hint(options, [*flags, *extra], site, partitions)
        plans.append(plan)
        points.append({"values": dict(zip(names, values, strict=True)), "run": str(plan.run)})
    digest = hashlib.sha256(json.dumps([point["run"] for point in points]).encode()).hexdigest()[:8]
    folder = RUNS / (base or f"{options.job}-sweep-{digest}")
    checks = {check: None for plan in plans for check in preflight.check_plan(plan, partitions)}
    text = "" if options.local else submit.sbatch_text(plans, folder=folder if len(plans) > 1 else None)
    if text and partitions is not None and not any(check.level == "fail" for check in checks):
        checks |= dict.fromkeys(preflight.check_with_slurm(text))
    if options.dry_run:
        return show_dry_run(plans, text, list(checks), options)
    if refused(list(checks), options):
        return BAD
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    atomic_write(folder / "sweep.json", json.dumps({"job": options.job, "points": points}, indent=1) + "\n")
    if options.local:
        return max(launch(plan, options, partitions) for plan in plans)
    return queue_sweep(plans, folder, options)


def parse_sweep(options, flags: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    known = (
        {field.name.replace("_", "-") for field in fields(specs.JOBS[options.job].config)}
        if options.job in specs.JOBS
        else set()
    )
    names, values = [], []
    for item in options.sweep:
        name, equals, text = item.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        if not equals or not all(part.strip() for part in text.split(",")):
            raise ConfigError(f"--sweep {item}: write FLAG=VALUE,VALUE, as in --sweep lr=0.001,0.002")
        if name not in known or name in names or name in ("run", "preset", "dry-run"):
            raise ConfigError(
                f"--sweep {item}: {name} is not a training flag of {options.job} that can be swept, or is given twice"
            )
        names.append(name)
        values.append([part.strip() for part in text.split(",")])
    combinations = list(itertools.product(*values))
    if len(set(combinations)) != len(combinations):
        raise ConfigError(f"--sweep {' '.join(options.sweep)}: the same value twice")
    return names, combinations


def queue_sweep(plans: list[Plan], folder: Path, options) -> int:
    (folder / "logs" / "submitit").mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as locks:
        for plan in plans:
            RunDir(plan.run).create()
            locks.enter_context(submit.submit_lock(plan.run))
        jobs = watch.all_jobs()
        views = {plan.run: watch.view_run(plan.run, jobs) for plan in plans}
        todo = [p for p in plans if views[p.run].state in FINAL - {"done"} or views[p.run].state == "new" or
                (views[p.run].state == "done" and p.config.total_kimg > (stored_total(p.run) or 0))]  # fmt: skip
        for plan in todo:
            submit.prepare(plan)
        ids = submit.submit_slurm(todo, folder=folder if len(todo) > 1 else None) if todo else []
    for plan, job_id in zip(todo, ids, strict=True):
        if len(todo) > 1:  # an array logs into the sweep's folder; each run shows its own
            link = plan.run / "logs" / f"{job_id}.out"
            link.unlink(missing_ok=True)
            link.symlink_to(folder / "logs" / f"{job_id}.out")
    left = len(plans) - len(todo)
    if options.json:
        print(
            json.dumps({"sweep": str(folder), "runs": [str(p.run) for p in todo], "job_ids": ids, "queued": bool(ids)})
        )
        return DONE
    if todo:
        print(
            f"Queued {len(todo)} of {len(plans)} points of {paint(folder.name, 'bold')} on {todo[0].partition}: jobs {ids[0]} to {ids[-1]}."
        )
    if left:
        print(f"{left} point{'s are' if left > 1 else ' is'} live or done already.")
    facts(
        [
            ("compare", f"python launch.py status {folder.name}"),
            ("curves", f"python launch.py tensorboard {folder.name}"),
        ]
    )
    return DONE


def pipeline(options, flags: list[str], site, partitions) -> int:
    """The VAE, then diffusion with its weights, queued to start when the VAE is done. A flag goes to each job that knows it."""
    stages = [name for name in ("vae", "diffusion") if name in specs.JOBS]
    if len(stages) < 2:
        raise ConfigError(f"--job pipeline needs the jobs vae and diffusion; this version has {', '.join(specs.JOBS)}")
    if options.sweep:
        raise ConfigError("--sweep goes with one job, not with a pipeline: sweep --job diffusion -- --vae RUN")
    known = [{field.name for field in fields(specs.JOBS[stage].config)} for stage in stages]
    first = argparse.Namespace(**vars(options) | {"job": "vae", "name": f"{options.name}-vae" if options.name else ""})
    vae = make_plan(first, flags_for(known[0], flags, known[1]), site, partitions)
    second = argparse.Namespace(**vars(options) | {"job": "diffusion", "name": options.name, "after": str(vae.run)})
    diffusion_flags = [*flags_for(known[1], flags, known[0]), "--vae", str(vae.run)]
    wait, first.wait = options.wait, options.local  # on this machine the second stage can only follow by waiting
    if code := launch(vae, first, partitions):
        return code
    second.wait = wait
    return launch(make_plan(second, diffusion_flags, site, partitions), second, partitions)


def flags_for(known: set[str], flags: list[str], other: set[str]) -> list[str]:
    """The flags without those that only the other stage knows. What neither knows stays, to be refused by name."""
    kept, take = [], True
    for flag in flags:
        if flag.startswith("--"):
            name = flag[2:].split("=")[0].replace("-", "_")
            plain = name.removeprefix("no_")
            take = name in known or plain in known or not (name in other or plain in other)
        if take:
            kept.append(flag)
    return kept


# --- watching ---------------------------------------------------------------------------------------------------------
def verb_parser(verb: str, text: str, run: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"launch.py {verb}", description=text, allow_abbrev=False)
    if run:
        about = "name, beginning of a name, path or job id"
        parser.add_argument(
            "run",
            metavar="RUN",
            help=about,
            **({} if run == "one" else {"nargs": run, "default": None if run == "?" else []}),
        )
    return parser


def status_command(argv: list[str]) -> int:
    parser = verb_parser(
        "status", "What every run is doing, or one run in detail. The runs touched last stand last.", "?"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, for scripts")
    options = parser.parse_args(argv)
    run = watch.find_run(options.run, RUNS) if options.run else None
    points = read_sweep(run) if run else None
    folders = [Path(point["run"]) for point in points] if points else [run] if run else watch.run_folders(RUNS)
    jobs = watch.all_jobs()
    views = [watch.view_run(folder, jobs) for folder in folders]
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
        print(f"No runs in {RUNS} yet. Start one:  python launch.py --local --wait --job stylegan2 --preset quickstart")
    return DONE


def read_sweep(run: Path) -> list[dict] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return [
            {"values": dict(point["values"]), "run": point["run"]}
            for point in json.loads((run / "sweep.json").read_text())["points"]
        ]
    return None


def logs_command(argv: list[str]) -> int:
    parser = verb_parser("logs", "The newest log of a run.", "one")
    parser.add_argument(
        "-f", "--follow", action="store_true", help="go on showing what is written, through requeues, until Ctrl-C"
    )
    parser.add_argument(
        "-n", "--lines", type=int, default=50, metavar="N", help="how many lines from the end (default 50)"
    )
    options = parser.parse_args(argv)
    run = watch.find_run(options.run, RUNS)
    follower = show.Follower(run, at_end=True)  # from here on: what is written meanwhile must be shown once
    log = why.newest_log(run)
    if log is None and not options.follow:
        print(f"{run.name} has no log yet: its job has not started. python launch.py status {run.name}")
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
    parser = verb_parser("why", "Why a run failed, waits or stopped, and what to do about it.", "one")
    parser.add_argument("--json", action="store_true", help="one JSON object, for scripts")
    options = parser.parse_args(argv)
    run = watch.find_run(options.run, RUNS)
    view, cause = why.explain(run, watch.all_jobs())
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
            ("log", str(log) if log and view.state != "queued" else ""),
        ]
    )
    return DONE


# --- steering ---------------------------------------------------------------------------------------------------------
def stop_command(argv: list[str]) -> int:
    parser = verb_parser("stop", "Save and stop a run. It stays stopped until it is launched or resumed.", "one")
    parser.add_argument(
        "--now",
        action="store_true",
        help="do not wait for the next step: end the job; it saves if it can, within seconds",
    )
    options = parser.parse_args(argv)
    run = watch.find_run(options.run, RUNS)
    stopped = [stop_run(Path(point["run"]), options.now) for point in read_sweep(run) or [{"run": str(run)}]]
    return max(stopped)


def stop_run(run: Path, now: bool) -> int:
    """STOP ends the running attempt with a save, and the whole chain; what has not started is taken out of the queue."""
    jobs = watch.all_jobs()
    live, holder = watch.live_jobs(run, jobs or {}), watch.live_process(run)
    if not live and holder is None and not watch.starting_process(run):
        print(f"{run.name} is not running ({watch.view_run(run, jobs).state}).")
        return DONE
    atomic_write(
        run / "STOP", f"{getpass.getuser()} at {time.strftime('%F %T')}, launch.py stop{' --now' if now else ''}\n"
    )
    waiting = [job for job in live if job.state == "PENDING"]
    running = [job for job in live if job.state != "PENDING"]
    for job in waiting + (running if now else []):
        slurm.cancel(job.id)
    if holder is not None and not running and now and holder.get("host") == socket.gethostname():
        os.kill(holder["pid"], signal.SIGTERM)
    if running or holder is not None or not live:
        print(
            f"{run.name} " + ("is ended now; it saves if it can." if now else "saves and stops within its next step.")
        )
    else:
        submit.write_state(run, "stopped", "taken out of the queue")
        print(f"{run.name} is taken out of the queue (job {', '.join(job.id for job in waiting)}).")
    facts([("go on", f"python launch.py resume {run.name}")])
    return DONE


def resume_command(argv: list[str]) -> int:
    parser = verb_parser(
        "resume",
        "Go on with a run, with the options it had; those given here replace them. Training flags after --.",
        "one",
    )
    add_resources(parser)
    for name, text in (
        ("local", "on this machine"),
        ("wait", "show the log until the run is over"),
        ("dry-run", "queue nothing"),
        ("json", "print JSON"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    split = argv.index("--") if "--" in argv else len(argv)
    given, flags = parser.parse_known_args(argv[:split])
    flags += argv[split + 1 :]
    run = watch.find_run(given.run, RUNS)
    if points := read_sweep(run):
        return max(resume_command([point["run"], *argv[1:]]) for point in points)
    recorded = submit.read_jobs(run)
    options = argparse.Namespace(**vars(queue_parser().parse_args([])))
    for name, value in recorded.get("options", {}).items():
        if name in REMEMBERED:
            setattr(options, name, value)
    if given.partition:  # a run of this machine moves to the cluster
        options.local = False
    for name, value in vars(given).items():
        if is_given(value) and (name != "max_restarts" or value != 20):
            setattr(options, name, value)
    options.job, options.after = recorded.get("job") or job_of(run), recorded.get("after", "")
    check_numbers(options)
    partitions = None if options.local else slurm_partitions(options)
    site = choose_site(options.site, partitions, local=options.local)
    plan = make_plan(options, [*recorded.get("argv", []), *flags, "--run", str(run)], site, partitions)
    return launch(plan, options, partitions)


def job_of(run: Path) -> str:
    """Which job a run that was started without launch.py is of, by the fields of its config."""
    stored = RunDir(run).read_config()
    if stored is None:
        raise ConfigError(
            f"{run}: no config.json and no jobs.json, so there is nothing to resume; launch it with --job"
        )
    for name, job in specs.JOBS.items():
        with contextlib.suppress(ConfigError):
            specs.from_dict(job.config, stored)
            return name
    raise ConfigError(f"{run}: its config.json is of no job of this version")


# --- curves, health ---------------------------------------------------------------------------------------------------
def tensorboard_command(argv: list[str]) -> int:
    parser = verb_parser(
        "tensorboard",
        "Serve the curves and sample grids of all runs, or of some, on this machine's loopback; print the ssh tunnel.",
        "*",
    )
    parser.add_argument("--port", type=int, default=0, help="port here (default: a free one)")
    parser.add_argument("--site", default="", metavar="PROFILE", help="profile with the names of login and jump host")
    options = parser.parse_args(argv)
    runs = [watch.find_run(text, RUNS) for text in options.run]
    runs = dict.fromkeys(Path(point["run"]) for run in runs for point in read_sweep(run) or [{"run": str(run)}])
    port = str(options.port or free_port())
    site = choose_site(options.site, slurm.partitions() if slurm.available() else None, local=True)
    with tempfile.TemporaryDirectory(prefix="brain-slices-tensorboard-") as chosen:
        for run in runs:  # a folder of links is all that names with commas and colons leave of --logdir_spec
            (Path(chosen) / (run.name if run.parent == RUNS else str(run).replace("/", "_"))).symlink_to(
                run / "tensorboard"
            )
        command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", "--port", port, "--reload_interval", "15",
                   "--samples_per_plugin", "images=200", "--logdir", chosen if runs else str(RUNS)]  # fmt: skip
        show.say_tunnel(site, port)
        return serve(command)


def serve(command: list[str]) -> int:
    """Run TensorBoard until Ctrl-C, without its notices; it ends with this process."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(DONE))
    notices = re.compile(
        r"TensorFlow installation not found|experimental fast data loading|--load_fast=false|github.com/tensorflow|^\s*$"
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
    try:
        for line in process.stderr:
            if not notices.search(line):
                print(line, end="", file=sys.stderr, flush=True)
        return process.wait()
    except KeyboardInterrupt:
        return DONE
    finally:
        process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def doctor_command(argv: list[str]) -> int:
    parser = verb_parser("doctor", "Check this machine, the environment and the cluster.")
    parser.add_argument(
        "--site", default="", metavar="PROFILE", help="profile of jobs/sites.toml (default: recognised)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, for scripts")
    options = parser.parse_args(argv)
    checks = preflight.check_machine(options.site, RUNS)
    if options.json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        terminal.say_checks(checks)
        failed = sum(check.level == "fail" for check in checks)
        print(f"\n{failed} problem{'s' if failed > 1 else ''} to fix." if failed else "\nAll well.")
    return BAD if any(check.level == "fail" for check in checks) else DONE


VERBS = {
    "status": status_command, "logs": logs_command, "why": why_command, "stop": stop_command, "resume": resume_command,
    "tensorboard": tensorboard_command, "doctor": doctor_command,
}  # fmt: skip


def main(argv: list[str]) -> int:
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
        stream.reconfigure(errors="replace")  # the bars of progress on a terminal that is not Unicode
    try:
        sys.exit(main(sys.argv[1:]))
    except LookupError as error:
        terminal.error(str(error.args[0] if error.args else error))
        sys.exit(USAGE)
    except (ConfigError, RunDirError, submit.SubmitError, slurm.SlurmError) as error:
        terminal.error(str(error))
        sys.exit(BAD)
    except BrokenPipeError:  # `launch.py status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    except KeyboardInterrupt:
        sys.exit(130)
