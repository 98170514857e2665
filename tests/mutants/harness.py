"""Collects the planted faults, and runs pytest in copies of the project, one forked process for each.

This process imports the third-party libraries once (torch costs six seconds) and nothing of the project but the lists,
so that a child has only the copy's modules to load. Every run has a fresh copy: no file, no bytecode and no example
database of a faulty run can be seen by another one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import tests.mutants
from tests.mutants import Fault

ROOT = Path(__file__).resolve().parents[2]


class HarnessError(Exception):
    """Nothing can be said about the tests: a fault that does not apply, tests that are red without one."""


# --- the faults -------------------------------------------------------------------------------------------------------
def collect() -> dict[str, list[Fault]]:
    """The list FAULTS of every module in the package, by the module's name."""
    names = sorted(module.name for module in pkgutil.iter_modules(tests.mutants.__path__))
    return {
        name: list(importlib.import_module(f"tests.mutants.{name}").FAULTS)
        for name in names
        if name not in ("__main__", "harness")
    }


def faulty_text(fault: Fault) -> str:
    """The file's text with the fault in it; HarnessError where the fault does not apply."""
    path = ROOT / fault.file
    if not path.is_file():
        raise HarnessError(f"{fault.file}: there is no such file")
    text = path.read_text()
    if (count := text.count(fault.before)) != 1:
        raise HarnessError(f"{fault.file}: stands there {count} times, not once: {fault.before!r}")
    if fault.before == fault.after:
        raise HarnessError(f"{fault.file}: the fault changes nothing: {fault.before!r}")
    return text.replace(fault.before, fault.after)


def misfits(faults: list[Fault]) -> list[str]:
    """What is wrong with them, one line each: they do not apply, or leave what is no Python."""
    found = []
    for fault in faults:
        try:
            text = faulty_text(fault)
            if fault.file.endswith(".py"):
                compile(text, fault.file, "exec", dont_inherit=True)
        except HarnessError as error:
            found.append(str(error))
        except SyntaxError as error:
            found.append(f"{fault.file}: not Python any more with {fault.after!r}: {error}")
    return found


def line_of(fault: Fault) -> int:
    text = (ROOT / fault.file).read_text()
    return text.count("\n", 0, text.index(fault.before)) + 1


def named_by(argument: str, test: str) -> bool:
    """Whether the pytest argument (file or node id) stands for this test."""
    return test == argument or test.startswith((f"{argument}::", f"{argument}["))


# --- copies -----------------------------------------------------------------------------------------------------------
def project_files() -> list[Path]:
    """What git tracks or would take, relative to the root; without git all but what runs and tools leave."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        out = subprocess.run(listing, capture_output=True, check=True).stdout
        if found := sorted({Path(os.fsdecode(name)) for name in out.split(b"\0") if name}):
            return [path for path in found if (ROOT / path).is_file()]
    left_out = {"__pycache__", "runs", "packs"}
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(
        path for path in found if not any(part in left_out or part.startswith(".") for part in path.parts)
    )  # fmt: skip


def copy_project(files: list[Path], to: Path) -> None:
    for path in files:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, to / path)


# --- one run of pytest ------------------------------------------------------------------------------------------------
def import_libraries(files: list[Path]) -> None:
    """Import whatever third-party module the project's files import, wherever it is installed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as tests/conftest.py does, and no thread may run when we fork
    os.environ.setdefault("MPLBACKEND", "Agg")
    sys.dont_write_bytecode = True
    own = {path.parts[0].removesuffix(".py") for path in files} | {path.stem for path in files if path.suffix == ".py"}
    names = set()
    for path in files:
        if path.suffix == ".py" and path.parts[0] != "benchmarks":
            names |= set(re.findall(r"^\s*(?:import|from)\s+([\w.]+)", (ROOT / path).read_text(), re.MULTILINE))
    for name in sorted(names):
        if name.split(".")[0] not in own | sys.stdlib_module_names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


class Recorder:
    """A pytest plugin: how each test ended. Slow tests run only where they are named themselves."""

    def __init__(self, arguments: tuple[str, ...] = ()) -> None:
        self.outcomes: dict[str, str] = {}
        self.named = [argument for argument in arguments if "::" in argument]

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        def wanted(item: pytest.Item) -> bool:
            named = any(named_by(argument, item.nodeid) for argument in self.named)
            return not item.get_closest_marker("gpu") and (named or not item.get_closest_marker("long"))

        items[:] = filter(wanted, items)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = "failed" if report.failed else report.outcome

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = "cannot be collected"


@dataclass(frozen=True)
class Task:
    """Run these tests with this fault, or without one."""

    tests: tuple[str, ...]
    fault: Fault | None = None
    limit: float = 1200  # seconds


@dataclass
class Result:
    task: Task
    seconds: float
    code: int | None  # pytest's, None if it did not come to its end
    how: str = ""  # then: why
    outcomes: dict[str, str] = field(default_factory=dict)
    output: str = ""

    @property
    def verdict(self) -> str:
        """`killed` with the reason where it is not a failed test, `survived`, or `error` of the run itself."""
        if self.code is None:
            return f"killed ({self.how})"
        if self.code == pytest.ExitCode.OK:
            return "survived"
        if self.code == pytest.ExitCode.TESTS_FAILED:
            return "killed"
        if self.code == pytest.ExitCode.INTERRUPTED:
            return "killed (collection)" if "cannot be collected" in self.outcomes.values() else "killed (interrupted)"
        return f"error (pytest ended with {self.code})"

    @property
    def noticed_by(self) -> str:
        return next((test for test, outcome in self.outcomes.items() if outcome not in ("passed", "skipped")), "")


def _child(folder: Path, task: Task) -> None:
    """In the forked process: pytest in the copy, as `python -m pytest` would do it there."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.chdir(folder / "copy")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "__main__")]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    here = {ROOT, ROOT / "tests"}
    sys.path[:] = [os.getcwd(), *(entry for entry in sys.path if Path(entry).resolve() not in here)]
    for name in [name for name in os.environ if name.startswith("PYTEST_")] + ["PYTHONPYCACHEPREFIX"]:
        os.environ.pop(name, None)
    if paths := os.environ.get("PYTHONPATH"):
        others = (entry for entry in paths.split(os.pathsep) if Path(entry).resolve() not in here)
        os.environ["PYTHONPATH"] = os.pathsep.join(others)
    # Faulty packs and whatever else is left behind end with the copy.
    for name, value in (("TMPDIR", "tmp"), ("XDG_CACHE_HOME", "cache")):
        (folder / value).mkdir()
        os.environ[name] = str(folder / value)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    tempfile.tempdir = None
    recorder = Recorder(task.tests)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir=.", f"--basetemp={folder / 'pytest'}"]
    if "hypothesis" in sys.modules:
        options.append("--hypothesis-seed=0")  # the same verdict tomorrow
    code = pytest.main([*options, *task.tests], plugins=[recorder])
    (folder / "result.json").write_text(json.dumps([int(code), recorder.outcomes]))


def _start(folder: Path, files: list[Path], task: Task) -> int:
    copy_project(files, folder / "copy")
    if task.fault:
        (folder / "copy" / task.fault.file).write_text(faulty_text(task.fault))
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    try:
        _child(folder, task)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(0)


def _kill_all(pid: int, folder: Path) -> None:
    """The run's process group, and what its tests detached from it: those carry the folder in their environment."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (process / "environ").read_bytes() and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGKILL)


def _result(folder: Path, task: Task, seconds: float, status: int | None) -> Result:
    output = (folder / "output").read_text(errors="replace") if (folder / "output").exists() else ""
    if status is None:
        return Result(task, seconds, None, f"time: over {task.limit:.0f} s", output=output)
    if not (folder / "result.json").exists():
        how = f"died: signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "died"
        return Result(task, seconds, None, how, output=output)
    code, outcomes = json.loads((folder / "result.json").read_text())
    return Result(task, seconds, code, "", outcomes, output)


def run(tasks: list[Task], jobs: int, files: list[Path], room: Path) -> Iterator[Result]:
    """The results as they come, `jobs` at a time. Whoever leaves early, by Ctrl-C too, leaves no process and no copy."""
    waiting, running, signals = list(tasks), {}, []
    # Noted and acted upon between two steps: an exception at any moment could lose the number of a child just made.
    noted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in noted}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                folder, task = Path(tempfile.mkdtemp(dir=room)), waiting.pop(0)
                running[_start(folder, files, task)] = (folder, task, time.monotonic())
            time.sleep(0.02)
            if signals:
                raise KeyboardInterrupt
            for pid, (folder, task, begun) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                seconds = time.monotonic() - begun
                if not ended and seconds < task.limit:
                    continue
                _kill_all(pid, folder)
                if not ended:
                    os.waitpid(pid, 0)
                del running[pid]
                result = _result(folder, task, seconds, status if ended else None)
                shutil.rmtree(folder, ignore_errors=True)
                yield result
    finally:
        for pid, (folder, _, _) in running.items():
            _kill_all(pid, folder)
            os.waitpid(pid, 0)
        shutil.rmtree(room, ignore_errors=True)
        for number, handler in handlers.items():
            signal.signal(number, handler)
