"""Plant the faults one at a time, each in a copy of the project, and see whether the tests notice.

    python -m tests.mutants                        # all of them
    python -m tests.mutants --only requeue.py      # those with this text in them; may be repeated
    python -m tests.mutants --list                 # only name them

First the named tests run without a fault: nothing is judged by tests that are red, skipped or not there. Exit code 0 when
at least 95 % of the faults are killed and none survives in the files that may not be wrong unnoticed, 1 when not, 2 when
nothing can be said.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants import Fault, harness
from tests.mutants.harness import HarnessError, Result, Task

WANTED = 0.95
# A training step, a checkpoint, a requeue decision and a written weight: what is wrong here is trained on for days.
NO_SURVIVOR = (
    "train_gan.py", "pretrain_vae.py", "train_diffusion.py", "jobs/run/attempt.py", "jobs/run/resume.py",
    "jobs/cluster/decide.py", "jobs/cluster/requeue.py", "jobs/training/checkpoint.py", "jobs/training/collectives.py", "jobs/training/devices.py",
    "jobs/training/randomness.py", "jobs/training/ranks.py", "jobs/training/upkeep.py", "jobs/training/watchdog.py",
    "jobs/training/weights.py", "models/augment.py", "models/ema.py", "models/gan_losses.py", "models/optim.py",
    "models/samplers.py", "models/schedules.py", "models/targets.py",
)  # fmt: skip


def chosen(only: list[str]) -> list[Fault]:
    """The faults with any of the texts in their file, list, change or tests; all without one. Harmless on one line."""
    found = []
    for name, faults in harness.collect().items():
        for fault in faults:
            fields = (name, fault.file, fault.before, fault.after, *fault.tests)
            if not only or any(text in value for text in only for value in fields):
                found.append(fault)
    if not found:
        raise HarnessError("no fault is chosen")
    return found


def title(fault: Fault) -> str:
    def short(text: str) -> str:
        text = " ".join(text.split())
        return text if len(text) <= 60 else text[:57] + "..."

    return f"{fault.file}:{harness.line_of(fault)}: {short(fault.before)}  ->  {short(fault.after)}"


def indented(text: str) -> str:
    return "".join(f"        {line}\n" for line in text.splitlines())


def trouble(result: Result) -> str:
    """Why the tests of a run without a fault can judge nothing; empty when they are green."""
    output = "\n" + indented(result.output[-4000:])
    if result.verdict != "survived":
        words = " ".join(result.task.tests)
        return f"{words} is not there{output}" if not result.outcomes else f"{words} is red without a fault{output}"
    for argument in result.task.tests:
        ends = {outcome for test, outcome in result.outcomes.items() if harness.named_by(argument, test)}
        if "passed" not in ends:
            return f"{argument} is skipped here" if ends else f"{argument} is not there{output}"
    return ""


def table(results: list[Result]) -> list[str]:
    rows = ["| file | faults | killed | survived | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    for file in sorted({result.task.fault.file for result in results}):
        of_it = [result for result in results if result.task.fault.file == file]
        survived = sum(result.verdict == "survived" for result in of_it)
        spent = sum(result.seconds for result in of_it)
        rows.append(f"| {file} | {len(of_it)} | {len(of_it) - survived} | {survived} | {spent:.0f} |")
    return rows


def judge(results: list[Result]) -> int:
    """Print the table and the survivors; the exit code."""
    survivors = [result.task.fault for result in results if result.verdict == "survived"]
    print("\n".join(["", *table(results), ""]))
    for fault in survivors:
        mark = ", where none may survive" if fault.file in NO_SURVIVOR else ""
        print(f"SURVIVED{mark}: {fault.file}:{harness.line_of(fault)}")
        print(
            f"    before\n{indented(fault.before)}    after\n{indented(fault.after)}    tests {' '.join(fault.tests)}\n"
        )
    killed = len(results) - len(survivors)
    grave = [fault for fault in survivors if fault.file in NO_SURVIVOR]
    print(
        f"{killed} of {len(results)} faults killed: {100 * killed / len(results):.1f} % ({100 * WANTED:.0f} % wanted)"
    )
    return int(killed < WANTED * len(results) or bool(grave))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="faults with this text in them")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="how many at a time")
    parser.add_argument("--list", action="store_true", help="only name them")
    args = parser.parse_args()
    faults = chosen(args.only)
    if problems := harness.misfits(faults):
        raise HarnessError("\n".join(problems))
    if args.list:
        print("\n".join(f"{title(fault)}\n        {' '.join(fault.tests)}" for fault in faults))
        return 0
    began = time.monotonic()
    files = harness.project_files()
    harness.import_libraries(files)
    sets = list(dict.fromkeys(fault.tests for fault in faults))

    def run(tasks: list[Task]):
        return harness.run(tasks, max(args.jobs, 1), files, Path(tempfile.mkdtemp(prefix="mutants-")))

    print(f"{len(faults)} faults; first their {len(sets)} sets of tests without a fault")
    seconds, problems = {}, []
    for result in run([Task(tests) for tests in sets]):
        seconds[result.task.tests] = result.seconds
        problem = trouble(result)
        problems += [problem] if problem else []
        number, words = f"[{len(seconds)}/{len(sets)}]", " ".join(result.task.tests)
        print(f"{number} {'NOT GREEN' if problem else 'green'}, {result.seconds:.1f} s: {words}", flush=True)
    if problems:
        raise HarnessError("\n".join(problems))

    # The long ones first. What takes 20 times as long as without the fault hangs.
    tasks = [Task(fault.tests, fault, max(120, 20 * seconds[fault.tests])) for fault in faults]
    results = []
    for result in run(sorted(tasks, key=lambda task: -seconds[task.tests])):
        results.append(result)
        number, by = f"[{len(results)}/{len(tasks)}]", f"  [{result.noticed_by}]" if result.noticed_by else ""
        print(f"{number} {result.verdict}, {result.seconds:.1f} s: {title(result.task.fault)}{by}", flush=True)
    wrong = [result for result in results if result.verdict.startswith("error")]
    if wrong:
        raise HarnessError(
            "\n".join(f"{title(r.task.fault)}: {r.verdict}\n{indented(r.output[-4000:])}" for r in wrong)
        )
    code = judge(results)
    spent = sum(result.seconds for result in results)
    print(f"{spent:.0f} s of tests, {args.jobs} at a time, {(time.monotonic() - began) / 60:.1f} minutes in all")
    return code


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
