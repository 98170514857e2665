"""Sweeps: one run per combination of values, queued as one job array. Torch-free."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from data.files import atomic_write, say
from jobs.cluster import preflight, show, slurm, status, submit
from jobs.cluster.options import Options
from jobs.cluster.plan import Plan
from jobs.cluster.queueing import Partitions, launch, plan_or_hint, refused, show_dry_run, stored_total
from jobs.cluster.sites import Site
from jobs.cluster.terminal import facts, paint
from jobs.config import kinds
from jobs.config.parsing import result_fields
from jobs.config.specs import ConfigError
from jobs.run.find import RUNS, read_sweep, typed
from jobs.run.resume import compare_with_run
from jobs.run.rundir import RunDir
from jobs.run.states import FINAL, RunState
from jobs.run.stopping import BAD, DONE


def sweep(options: Options, flags: list[str], site: Site, partitions: Partitions, own_flags: Sequence[str] = ()) -> int:
    """One run per combination of values, queued as one job array; points that are live or done are left alone."""
    names, combinations = parse_sweep(options)
    if options.local and not (options.wait or options.dry_run):
        raise ConfigError("--sweep --local runs its points one after another: add --wait")
    plans, points = [], []
    for values in combinations:
        label = ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))
        point = replace(options, name=f"{options.name}-{label}".replace("/", "_") if options.name else "")
        extra = [part for name, value in zip(names, values, strict=True) for part in (f"--{name}", value)]
        plan = plan_or_hint(point, [*flags, *extra], site, partitions, own_flags)
        plans.append(plan)
        points.append({"values": dict(zip(names, values, strict=True)), "run": str(plan.run)})
    folder = RUNS / (options.name or f"{options.job}-sweep-{digest(plans[0], names)}")
    return check_and_queue(plans, folder, options, partitions, with_earlier(folder, points))


def resume_sweep(plans: list[Plan], folder: Path, options: Options, partitions: Partitions) -> int | None:
    """Go on with points of a sweep as one array, with the throttle that it had. Returns the exit code; None where the
    points do not ask for the same and no array can hold them."""
    asked = [replace(plan, run=folder, config=plans[0].config, options={}) for plan in plans]
    if asked[0].local:
        return None
    if any(one != asked[0] for one in asked):
        say(f"{folder.name}: its points ask for different things, so each is a job of its own.", sys.stderr)
        return None
    return check_and_queue(plans, folder, options, partitions, read_sweep(folder) or [])


def check_and_queue(
    plans: list[Plan], folder: Path, options: Options, partitions: Partitions, points: list[dict]
) -> int:
    """Check these plans of a sweep together, and queue them as one array. Returns the exit code.

    points: all that the sweep has, for its sweep.json.
    """
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
    code = queue_sweep(plans, folder, options)
    return show.wait_for_points([plan.run for plan in plans], folder) if options.wait and code == DONE else code


def digest(plan: Plan, names: Sequence[str]) -> str:
    """8 hex digits of what is swept and of all that is not: the same command with more values is the same sweep."""
    swept = {name.replace("-", "_") for name in names}
    fixed = {name: value for name, value in result_fields(plan.config).items() if name not in swept}
    return hashlib.sha256(json.dumps([sorted(swept), fixed], sort_keys=True).encode()).hexdigest()[:8]


def with_earlier(folder: Path, points: list[dict]) -> list[dict]:
    """The points that the sweep has already, and behind them those that are new."""
    known = read_sweep(folder)
    if not known:
        return points
    names = list(known[0]["values"])
    if set(names) != set(points[0]["values"]):
        raise ConfigError(f"{folder.name} is a sweep of {', '.join(names)} already; give this one another --name")
    runs = {point["run"] for point in known}
    new = [point for point in points if point["run"] not in runs]
    return known + [point | {"values": {name: point["values"][name] for name in names}} for point in new]


def parse_sweep(options: Options) -> tuple[list[str], list[tuple[str, ...]]]:
    """(names of the swept flags, one tuple of values per point)."""
    known = {field.name.replace("_", "-") for field in fields(kinds.job(options.job).config)}
    names: list[str] = []
    values: list[list[str]] = []
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


def queue_sweep(plans: list[Plan], folder: Path, options: Options) -> int:
    """Queue those points that are neither live nor done as one array. Returns the exit code."""
    (folder / "logs" / "submitit").mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.ExitStack() as locks:
        locks.enter_context(submit.submit_lock(folder))
        for plan in plans:
            RunDir(plan.run).create()
            locks.enter_context(submit.submit_lock(plan.run))
        jobs = status.all_jobs()
        if isinstance(jobs, status.Silent):
            raise slurm.NoAnswer("nothing queued: Slurm does not answer; try again")
        for plan in plans:
            compare_with_run(RunDir(plan.run), plan.config)
        views = {plan.run: status.view_run(plan.run, jobs) for plan in plans}
        todo = [
            p
            for p in plans
            if views[p.run].state in FINAL - {RunState.DONE}
            or views[p.run].state == RunState.NEW
            or (views[p.run].state == RunState.DONE and p.config.total_kimg > (stored_total(p.run) or 0))
        ]
        for plan in todo:
            submit.prepare(plan)
        ids = submit.submit_slurm(todo, folder=folder if len(todo) > 1 else None) if todo else []
    for plan, job_id in zip(todo, ids, strict=True):
        if len(todo) > 1:  # an array logs into the sweep's folder; each run shows its own
            link = plan.run / "logs" / f"{job_id}.out"
            link.unlink(missing_ok=True)
            link.symlink_to(folder / "logs" / f"{job_id}.out")
    say_queued(todo, ids, len(plans) - len(todo), folder, options)
    live = [run for run, view in views.items() if view.state not in FINAL and run not in {plan.run for plan in todo}]
    if told := [run.name for run in live if RunDir(run).stop_requested()]:
        names = ", ".join(told)
        raise slurm.NoAnswer(f"nothing queued for what was told to stop, {names}; try again when it has stopped")
    return DONE


def say_queued(todo: list[Plan], ids: list[str], left: int, folder: Path, options: Options) -> None:
    """Which points were queued, how many were left alone, and what to type next."""
    if options.json:
        runs = [str(plan.run) for plan in todo]
        print(json.dumps({"sweep": str(folder), "runs": runs, "job_ids": ids, "queued": bool(ids)}))
        return
    if todo:
        print(
            f"Queued {len(todo)} of {len(todo) + left} points of {paint(folder.name, 'bold')} on {todo[0].partition}: "
            f"jobs {ids[0]} to {ids[-1]}."
        )
    if left:
        print(f"{left} point{'s are' if left > 1 else ' is'} live or done already.")
    facts(
        [
            ("compare", f"python launch.py status {typed(folder)}"),
            ("curves", f"python launch.py tensorboard {typed(folder)}"),
        ]
    )
