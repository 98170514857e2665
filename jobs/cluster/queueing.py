"""From a plan to a queued job, or to the words that say why not: one run, or a pipeline of two. Torch-free."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from data.files import is_number, say
from jobs.cluster import preflight, show, slurm, status, submit, terminal
from jobs.cluster.options import Options
from jobs.cluster.plan import Plan, make_plan
from jobs.cluster.preflight import Check
from jobs.cluster.sites import Site
from jobs.cluster.slurm import Partition
from jobs.cluster.steer import stop_run
from jobs.cluster.terminal import facts, paint
from jobs.config import kinds, wording
from jobs.config.parsing import parse_known, to_json
from jobs.config.recorded import spread, to_toml
from jobs.config.specs import ConfigError
from jobs.run.find import members, typed
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.states import FINAL, RunDirError, RunState
from jobs.run.stopping import BAD, DONE

Partitions = Mapping[str, Partition] | None  # what Slurm reports by name; None without Slurm


def slurm_partitions(options: Options) -> Partitions:
    """What Slurm offers; None without Slurm, which only a --dry-run may do without.

    Raises NoAnswer where there is one that is silent.
    """
    if not slurm.absent():
        try:
            return slurm.partitions()
        except slurm.NoAnswer as error:
            if not options.dry_run:
                raise slurm.NoAnswer(f"nothing queued: {error}") from None
            terminal.error(f"{error}; checked without Slurm")
    elif not options.dry_run:
        raise ConfigError(
            "there is no Slurm here: run this on the cluster's login node, add --local to train on this machine, "
            "or --dry-run"
        )
    return None


def plan_or_hint(
    options: Options, flags: list[str], site: Site, partitions: Partitions, own_flags: Sequence[str] = ()
) -> Plan:
    """make_plan; after tyro's own words on wrong flags one line more, for those that were meant for launch.py."""
    try:
        return make_plan(options, flags, site, partitions)
    except SystemExit as leaving:
        if leaving.code:
            for flag in [flag.split("=")[0] for flag in flags if flag.startswith("--")]:
                if near := difflib.get_close_matches(flag, own_flags, n=1, cutoff=0.8):
                    terminal.error(f"{flag}: did you mean {near[0]}?")
            terminal.error(f"training flags are listed by: python launch.py --job {options.job} -- --help")
        raise


def launch(plan: Plan, options: Options, partitions: Partitions) -> int:
    """Check and queue one run, unless it is live or finished. Returns the exit code."""
    if plan.config.toml and not options.dry_run:
        raise ConfigError("--toml prints a configuration: it goes with --dry-run")
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


def already(plan: Plan, options: Options) -> int | None:
    """Exit code if there is nothing to queue: the run is live, or finished and not to be extended. None otherwise.

    Raises ConfigError where the run is one of another job or configuration, NoAnswer where Slurm does not say whether a
    job of the run is queued.
    """
    if not plan.run.exists():
        return None
    compare_with_run(RunDir(plan.run), plan.config)
    jobs = status.all_jobs()
    view = status.view_run(plan.run, jobs)
    if view.state == RunState.UNKNOWN or (isinstance(jobs, status.Silent) and not plan.local):
        raise slurm.NoAnswer(
            f"nothing queued: Slurm does not answer, and {plan.run.name} may have a job already; try again"
        )
    if view.state == RunState.DONE and plan.config.total_kimg <= (stored_total(plan.run) or 0):
        text = (
            f"{plan.run.name} is done ({view.total_kimg or 0:g} kimg). Nothing queued; "
            "a larger --total-kimg goes on from there."
        )
    elif view.state in FINAL or view.state == RunState.NEW or (view.state == RunState.QUEUED and not view.job_id):
        return None
    else:
        where = f" as job {view.job_id}" if view.job_id else ""
        if RunDir(plan.run).stop_requested():
            waits = view.state == RunState.QUEUED
            then = f"python launch.py stop {typed(plan.run)} takes it out" if waits else "try again when it has stopped"
            raise slurm.NoAnswer(f"nothing queued: {plan.run.name} is {view.state}{where} and was told to stop; {then}")
        timed = view.limit_s and view.elapsed_s is not None
        how_long = f", {wording.clock(view.elapsed_s)} of {wording.clock(view.limit_s)}" if timed else ""
        text = f"{plan.run.name} is {view.state} already{where}{how_long}. Nothing queued."
        if view.note:
            text += f"\n  {view.note}"
    if options.json:
        print(json.dumps({"run": str(plan.run), "job_id": view.job_id, "state": view.state, "queued": False}))
    else:
        say(text)
        show.next_steps(plan.run, view.state)
    if options.wait and view.state not in FINAL:
        return show.wait_for(plan.run, plan.local, stop_run)
    return DONE


def stored_total(run: Path) -> float | None:
    """total_kimg of the stored config; None where there is none that can be read."""
    with contextlib.suppress(RunDirError):
        total = (RunDir(run).read_config() or {}).get("total_kimg")
        return total if is_number(total) else None
    return None


def dependency_of(plan: Plan, options: Options) -> tuple[str, str]:
    """(sbatch dependency, words for the user) of a run that comes after another."""
    if not plan.after:
        return "", ""
    first = Path(plan.after)
    left = [run for run in members(first) if not os.path.exists(run / "DONE")]
    if not left:
        return "", ""
    if plan.local:
        raise ConfigError(f"--after {first.name}: {left[0].name} is not done; run it first")
    queue, last = status.all_jobs(), []
    if isinstance(queue, status.Silent) and not options.dry_run:
        text = f"whether {left[0].name} has a job is not known"
        raise slurm.NoAnswer(f"nothing queued: Slurm does not answer, and {text}; try again")
    for run in left:
        if live := status.live_jobs(run, queue or {}):
            last.append(max(live, key=lambda job: int(job.id.split("_")[0])).id)
        elif options.dry_run:
            last.append(f"JOB_OF_{run.name}")
        else:
            way = f"python launch.py resume {typed(run)} first"
            raise ConfigError(f"--after {first.name}: {run.name} is neither done nor queued; {way}")
    jobs = f"job {last[0]}" if len(last) == 1 else f"jobs {', '.join(last)}"
    return f"afterany:{':'.join(last)}", f"starts when {first.name} ({jobs}) is done"


def refused(checks: Iterable[Check], options: Options) -> bool:
    """Show the checks where they matter: all if one fails, else only the warnings."""
    checks = list(checks)
    failed = [check for check in checks if check.level == "fail"]
    if options.json and failed:
        print(json.dumps({"queued": False, "checks": [asdict(check) for check in checks]}))
    elif not options.json:
        terminal.say_checks(checks if failed else [check for check in checks if check.level == "warn"], sys.stderr)
        if failed:
            terminal.error(f"nothing queued: {len(failed)} check{'s' if len(failed) > 1 else ''} failed")
    return bool(failed)


def show_dry_run(plans: list[Plan], text: str, checks: Iterable[Check], options: Options) -> int:
    """The config, the sbatch text and the checks. Returns the exit code."""
    checks = list(checks)
    failed = any(check.level == "fail" for check in checks)
    if plans[0].config.toml:
        say(to_toml(plans[0].config).rstrip())
        terminal.say_checks(checks, sys.stderr)
        return BAD if failed else DONE
    if options.json:
        runs = [{"run": str(plan.run), "command": plan.command(), "config": asdict(plan.config)} for plan in plans]
        print(json.dumps({"runs": runs, "sbatch": text, "checks": [asdict(check) for check in checks]}))
        return BAD if failed else DONE
    for plan in plans:
        print(paint(f"# {plan.run}", "bold"))
        say(to_json(plan.config) if len(plans) == 1 else " ".join(plan.command()))
    print(paint("\n# sbatch text" if text else "\n# command", "bold"))
    say(text.rstrip() if text else " ".join(plans[0].command()))
    print(paint("\n# checks", "bold"))
    terminal.say_checks(checks)
    say("\nNothing queued (--dry-run)." if not failed else "\nNothing queued (--dry-run); it would be refused.")
    return BAD if failed else DONE


def say_queued(plan: Plan, job_id: str, waiting: str, options: Options) -> None:
    """Which job was queued, with what, and what to type next."""
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
        print(
            f"Queued {paint(name, 'bold')} as job {paint(job_id, 'bold')} on {plan.partition}: {nodes}{gpus}, "
            f"{plan.cpus * plan.tasks} cores, {slurm.format_time(plan.minutes * 60)} per attempt; "
            f"{goes_on} until the run is done."
        )
    if waiting:
        say(f"  It {waiting}.")
    if plan.site.note:
        say(f"  {plan.partition}: {plan.site.note}.")
    if options.wait and plan.local:
        facts([("run", str(plan.run)), ("stop", "Ctrl-C; the same command goes on from there")])
    else:
        show.next_steps(plan.run, RunState.QUEUED)


def pipeline(options: Options, flags: list[str], site: Site, partitions: Partitions) -> int:
    """The VAE, then diffusion with its weights, queued to start when the VAE is done. A flag goes to each job that
    knows it.

    Returns the exit code. A flag that neither job knows is refused by name.
    """
    if options.sweep:
        raise ConfigError("--sweep goes with one job, not with a pipeline: sweep --job diffusion -- --vae RUN")
    flags = ["--preset", options.preset, *flags] if options.preset else list(flags)
    flags = spread(flags, kinds.JOBS["vae"].config, kinds.JOBS["diffusion"].config)
    read = {stage: parse_known(kinds.JOBS[stage].config, flags, site.data_path, True) for stage in ("vae", "diffusion")}
    not_of = {stage: _places(flags, unknown) for stage, (_, unknown) in read.items()}
    # What neither knows stays with both, to be refused by name.
    vae_flags = [flag for i, flag in enumerate(flags) if i not in not_of["vae"] - not_of["diffusion"]]
    if read["diffusion"][0].data != read["vae"][0].data:  # the phantoms that --condition asks for
        vae_flags += ["--data", read["diffusion"][0].data]
    diffusion_flags = [flag for i, flag in enumerate(flags) if i not in not_of["diffusion"] - not_of["vae"]]
    first = replace(options, job="vae", name=f"{options.name}-vae" if options.name else "")
    vae = make_plan(first, vae_flags, site, partitions)
    second = replace(options, job="diffusion", after=str(vae.run))
    # On this machine the second stage can only follow by waiting.
    if code := launch(vae, replace(first, wait=options.local), partitions):
        return code
    return launch(make_plan(second, [*diffusion_flags, "--vae", str(vae.run)], site, partitions), second, partitions)


def _places(flags: list[str], some: list[str]) -> set[int]:
    """Where the words `some`, which stand in `flags` in this order, are."""
    places, wanted = set(), list(some)
    for i, flag in enumerate(flags):
        if wanted and flag == wanted[0]:
            places.add(i)
            wanted.pop(0)
    return places
