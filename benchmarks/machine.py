"""What every benchmark shares: the machine and the versions, medians with their spread, and sections of RESULTS.md."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from jobs.config.specs import ROOT
from jobs.run.rundir import git_state
from jobs.training.throughput import count_flops, device_peak

LARGEST = 10  # kernels of a profile
RESULTS = Path(__file__).with_name("RESULTS.md")
INTRODUCTION = """# Benchmarks

Every figure below was measured by the command of its section, with the peer in the same run on the same machine: read
the ratios, not the absolute speeds. Cells are medians over interleaved repetitions, with the quartiles in brackets.
"""


def cpu_name() -> str:
    """The CPU's model name, or the architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def header(device: torch.device, packages: list[str]) -> str:
    """Date, machine, threads, code and versions, as Markdown list items."""
    machine = f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"
    if device.type == "cuda":
        machine += f", {torch.cuda.get_device_name(device)}"
    versions = ", ".join(map(version, packages))
    load = "/".join(f"{x:.1f}" for x in os.getloadavg())
    lines = [
        f"- {datetime.date.today()}, {machine}, {torch.get_num_threads()} threads, {platform.system()}",
        f"- {commit()}, Python {platform.python_version()}, {versions}",
        f"- load average when the run began: {load} (1, 5, 15 minutes)",
    ]
    return "\n".join(lines)


def version(package: str) -> str:
    """A package with its version, in words."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed"


def commit() -> str:
    """The commit of the code that is measured, in words: figures of another tree than was meant must show."""
    state = git_state(ROOT)
    name = (state["git_commit"] or "unknown")[:7]
    return f"commit {name}" + (" with changes" if state["git_dirty"] else "")


def missing(module: str, fix: str) -> str:
    """Why this module cannot be imported and what to do, in one line; '' where it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"{error}; {fix}"
    return ""


class Failed(SystemExit):
    """A side could not do what it was asked. Where nobody takes it, it ends the benchmark with all of its text."""

    def line(self) -> str:
        """What happened, in one line for a cell of a table."""
        lines = [line.strip() for line in str(self).splitlines() if line.strip()]
        return (lines or ["it ended without a word"])[-1].replace("|", "/")[:240]


class Side:
    """One implementation, in a process of its own: what it does to the allocator, the threads or torch touches no
    other.

    `make(*args)` builds it there. It has `name`, `device`, `dtype` (of its convolutions), `networks` and `tasks`,
    {name: callable}; here it is known by its name, its type, the parameters of each network and its tasks' names.
    """

    def __init__(self, make: Callable, *args):
        """Start a process of its own, which makes the side by `make(*args)`."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self.process.start()
        theirs.close()
        self.name, self.dtype, self.parameters, self.tasks = self._answer()

    def seconds(self, task: str) -> float:
        """Of one call of a task."""
        return self._ask("seconds", task)

    def flops(self, task: str) -> float:
        """Floating-point operations of one call of a task."""
        return self._ask("flops", task)

    def peak_gb(self, task: str) -> float:
        """Most memory that a task held, in GB."""
        return self._ask("peak_gb", task)

    def ceiling(self) -> float:
        """FLOP/s that its device reaches in its type."""
        return self._ask("ceiling", "")

    def resident_gb(self) -> float:
        """The largest memory that the system saw its process use, in GB."""
        return self._ask("resident_gb", "")

    def kernels(self, task: str) -> list[tuple[str, float, int, float]]:
        """(name, milliseconds, calls, share of all) of the LARGEST kernels of one call, the largest first."""
        return self._ask("kernels", task)

    def close(self) -> None:
        """End the process, also one that hangs."""
        self.pipe.close()
        self.process.join(20)
        self.process.kill()

    def _ask(self, what: str, task: str):
        """Ask the process and wait."""
        self.pipe.send((what, task))
        return self._answer()

    def _answer(self):
        """What the process answers; raises Failed with its error."""
        try:
            answer, error = self.pipe.recv()
        except EOFError:
            answer, error = None, "a side of the benchmark died"
        if error:
            raise Failed(error)
        return answer


def present(starts: dict[str, Callable[[], Side]]) -> tuple[dict[str, Side], dict[str, str]]:
    """({name: side} of those that start and do each of their tasks once, {name: why not} of all others).

    A peer that is not installed, does not build its kernels or does not fit into the memory is a line of the table: it
    takes nothing from the others' figures.
    """
    sides, absent = {}, {}
    for name, start in starts.items():
        side = None
        try:
            side = start()
            for task in side.tasks:
                side.seconds(task)
            sides[name] = side
        except Failed as error:
            absent[name] = error.line()
            if side:
                side.close()
    return sides, absent


def absent_rows(absent: dict[str, str], columns: int) -> list[list[str]]:
    """A row of a table for each side that could not be measured."""
    return [[f"{name}: not measured: {why}", *[""] * (columns - 1)] for name, why in absent.items()]


def _serve(pipe, make: Callable, args: tuple) -> None:
    """The process of a Side: build it, then answer until nobody asks."""
    try:
        side = make(*args)
        parameters = [sum(p.numel() for p in net.parameters()) for net in side.networks]
        pipe.send(((side.name, side.dtype, parameters, list(side.tasks)), ""))
        while True:
            what, name = pipe.recv()
            pipe.send((_measure(side, what, side.tasks.get(name)), ""))
    except EOFError:
        return
    except SystemExit as error:
        pipe.send((None, str(error) or "a side of the benchmark left"))
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def _measure(side, what: str, task: Callable[[], object] | None):
    """One figure of a side: its device's peak, or the FLOPs, the memory or the kernels of a task."""
    if what == "kernels":
        return kernels(task, side.device)
    if what == "ceiling":
        return device_peak(side.device, side.dtype)
    if what == "flops":
        return count_flops(task)
    if what == "peak_gb":
        return peak_gb(task, side.device)
    if what == "resident_gb":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return timed(task, side.device)


def ceilings(sides: list[Side]) -> list[float]:
    """FLOP/s that the device reaches in the type of each side: the best that any side of this type finds, as the
    allocator of some processes is in its way."""
    found = [(side.dtype, side.ceiling()) for side in sides]
    return [max(best for dtype, best in found if dtype == side.dtype) for side in sides]


def in_turn(tasks: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each task of this process in each round; every other round runs them backwards.

    They are warm already.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name in list(tasks) if number % 2 == 0 else list(tasks)[::-1]:
            seconds[name].append(timed(tasks[name], device))
    return seconds


def timed(task: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    task()
    synchronise(device)
    return time.perf_counter() - start


def interleaved(
    sides: list[Side], rounds: int, order: tuple[str, ...], warm_up: int = 1
) -> list[dict[str, list[float]]]:
    """Seconds of each task of each side in each round. Every round runs every task, every other one backwards, so that
    a change in the machine's load meets all of them; the same task of all sides is measured in a row."""
    seconds = [{name: [] for name in side.tasks} for side in sides]
    turns = [(name, i) for name in order for i, side in enumerate(sides) if name in side.tasks]
    for number in range(-warm_up, rounds):
        for name, i in turns if number % 2 == 0 else turns[::-1]:
            took = sides[i].seconds(name)
            if number >= 0:
                seconds[i][name].append(took)
    return seconds


def peak_gb(task: Callable[[], object], device: torch.device) -> float:
    """Memory that tensors made by `task` hold at its worst moment, on top of what was there before, in GB."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        task()
        synchronise(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        task()
    held = worst = 0
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        worst = max(worst, held)
    return worst / 1e9


def kernels(task: Callable[[], object], device: torch.device) -> list[tuple[str, float, int, float]]:
    """(name, milliseconds, calls, share of all) of what takes longest in one call: kernels on a GPU, operators on a
    CPU."""
    gpu = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CUDA if gpu else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        task()
        synchronise(device)
    found = [
        (event.key, (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1000, event.count)
        for event in profile.key_averages()
    ]
    total = sum(ms for _, ms, _ in found) or 1.0
    return [(name, ms, calls, ms / total) for name, ms, calls in sorted(found, key=lambda e: -e[1])[:LARGEST]]


def kernels_table(side: Side, task: str) -> str:
    """The table of the LARGEST kernels of one call of a task."""
    rows = [[f"`{name[:100].replace('|', '/')}`", number(ms), str(calls), f"{100 * share:.1f}"]
            for name, ms, calls, share in side.kernels(task)]  # fmt: skip
    return table([f"largest kernels of `{task}`, {side.name}", "ms", "calls", "% of all"], rows)


def command(module: str) -> str:
    """The command line of this run, as Markdown; of a folder only its name."""
    words = [a if not a.startswith("/") else a.rstrip("/").rsplit("/", 1)[-1] for a in sys.argv[1:] if a != "--write"]
    return f"`{' '.join(['python -m', module, *words])}`"


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, where there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(values: list[float]) -> str:
    """`median [lower quartile-upper quartile]`, to three significant digits."""
    if len(values) < 2:
        return number(values[0])
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{number(statistics.median(values))} [{number(low)}-{number(high)}]"


def number(value: float) -> str:
    """Three significant digits, and all before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first row is the head."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(title: str, text: str, path: Path = RESULTS) -> None:
    """Insert or replace the section `## title` of RESULTS.md; the other sections stay as they are."""
    old = path.read_text() if path.exists() else INTRODUCTION
    introduction, *sections = old.split("\n## ")
    kept = {s.split("\n", 1)[0].strip(): s.rstrip("\n") for s in sections}
    kept[title] = f"{title}\n\n{text.strip()}"
    path.write_text(introduction.rstrip("\n") + "\n" + "".join(f"\n## {kept[key]}\n" for key in sorted(kept)))
