"""The mutation run (tests/mutants): its faults apply to the code as it is, and it tells killed from survived.

The run itself is `python -m tests.mutants`, at the end of tests/run.sh --long.
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from importlib import import_module
from pathlib import Path

import pytest
import tiny

from tests.mutants import Fault, harness

LISTS = harness.collect()
FAULTS = [fault for faults in LISTS.values() for fault in faults]
SCRIPTS = ("launch.py", "predict.py", "pretrain_vae.py", "train_diffusion.py", "train_gan.py")


# --- the project's own faults -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", LISTS)
def test_every_fault_applies_to_the_code_as_it_is(name):
    assert harness.misfits(LISTS[name]) == []


def test_no_two_faults_are_the_same():
    planted = Counter((fault.file, harness.faulty_text(fault)) for fault in FAULTS)
    assert [file for (file, _), count in planted.items() if count > 1] == []


def functions(path: Path) -> set[str]:
    """Names of the functions of a test file as pytest writes them: `name` and `Class::name`."""
    tree = ast.parse(path.read_text())
    groups = [("", tree), *((f"{node.name}::", node) for node in tree.body if isinstance(node, ast.ClassDef))]
    return {before + node.name for before, group in groups for node in group.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", LISTS)
def test_the_named_tests_exist(name):
    known = {}
    for fault in LISTS[name]:
        assert fault.tests, fault
        for argument in fault.tests:
            file, _, function = argument.partition("::")
            assert file.startswith("tests/") and (tiny.ROOT / file).is_file(), argument
            known[file] = known.get(file) or functions(tiny.ROOT / file)
            assert not function or function.partition("[")[0] in known[file], argument


# --- the harness, on a project of one file ----------------------------------------------------------------------------
PRODUCT = """
    def double(x):
        return 2 * x

    def unheeded(x):
        return x + 1

    def count(n):
        while n > 0:
            n -= 1
        return n
"""
TESTS = """
    import os, subprocess, sys
    import pytest, thing

    def test_double():
        assert thing.double(3) == 6

    def test_double_in_a_process_that_writes_bytecode():
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        command = [sys.executable, "-c", "import thing; print(thing.double(3))"]
        said = subprocess.run(command, env=env, capture_output=True)
        assert said.stdout.split() == [b"6"]

    def test_unheeded():
        thing.unheeded(1)

    def test_count():
        subprocess.Popen(["sleep", "567"], start_new_session=True)
        assert thing.count(3) == 0

    def test_red():
        assert False

    def test_skipped():
        pytest.skip("not here")

    def test_endless():
        open(os.environ["SAMPLE_BEGUN"], "w").close()
        subprocess.run(["sleep", "567"])
"""
DOUBLE = ("thing.py", "return 2 * x", "return 3 * x")
DOUBLED, IN_A_PROCESS = (
    "tests/test_thing.py::test_double",
    "tests/test_thing.py::test_double_in_a_process_that_writes_bytecode",
)


@pytest.fixture
def sample(tmp_path):
    """sample(faults...) -> start(words...) -> the process `python WORDS` in a small project with these faults."""
    root = tmp_path / "project"
    (root / "tests" / "mutants").mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "harness.py"):
        shutil.copy(tiny.ROOT / "tests" / "mutants" / name, root / "tests" / "mutants" / name)
    (root / "thing.py").write_text(textwrap.dedent(PRODUCT))
    (root / "tests" / "test_thing.py").write_text(textwrap.dedent(TESTS))
    (tmp_path / "tmp").mkdir()
    env = dict(os.environ, TMPDIR=str(tmp_path / "tmp"), SAMPLE_BEGUN=str(tmp_path / "begun"))

    def with_faults(*faults: tuple[str, str, str, tuple[str, ...]]):
        lines = ["from tests.mutants import Fault", "", f"FAULTS = [Fault(*fault) for fault in {list(faults)!r}]"]
        (root / "tests" / "mutants" / "some.py").write_text("\n".join(lines))

        def start(*words: str) -> subprocess.Popen:
            return subprocess.Popen(
                [sys.executable, *words], cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )

        return start

    yield with_faults
    assert list((tmp_path / "tmp").glob("mutants-*")) == []
    assert (root / "thing.py").read_text() == textwrap.dedent(PRODUCT)


def left_behind(tmp_path: Path) -> list[str]:
    """Processes of the sample's tests that live on."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (
                b"\0567\0" in (process / "cmdline").read_bytes()
                and os.fsencode(tmp_path) in (process / "environ").read_bytes()
            ):
                found.append(process.name)
        except OSError:
            pass
    return found


def test_killed_and_survived_are_told_apart(sample):
    start = sample(
        (*DOUBLE, (DOUBLED,)),
        (*DOUBLE, (IN_A_PROCESS,)),
        ("thing.py", "return x + 1", "return x - 1", ("tests/test_thing.py::test_unheeded", DOUBLED)),
    )
    harness_run = start("-m", "tests.mutants", "--jobs", "2")
    said = harness_run.communicate(timeout=300)[0]
    assert harness_run.returncode == 1, said
    assert "| thing.py | 3 | 2 | 1 |" in said and "2 of 3 faults killed: 66.7 %" in said
    assert said.count("SURVIVED: thing.py:6\n    before\n        return x + 1\n    after\n        return x - 1\n") == 1


def test_without_a_survivor_all_is_well(sample):
    harness_run = sample((*DOUBLE, (DOUBLED,)), ("thing.py", "> 0", "> 1", ("tests/test_thing.py::test_count",)))(
        "-m", "tests.mutants", "--only", "2 *"
    )
    said = harness_run.communicate(timeout=300)[0]
    assert harness_run.returncode == 0 and "1 of 1 faults killed" in said, said


@pytest.mark.parametrize("faults", [{
    "stands there 0 times": ("thing.py", "return 5 * x", "return 3 * x", (DOUBLED,)),
    "stands there 3 times": ("thing.py", "return ", "return 3 * ", (DOUBLED,)),
    "not Python any more": ("thing.py", "return 2 * x", "return (2 * x", (DOUBLED,)),
}, {
    "test_red is red without a fault": (*DOUBLE, ("tests/test_thing.py::test_red",)),
    "test_skipped is skipped here": (*DOUBLE, ("tests/test_thing.py::test_skipped", DOUBLED)),
    "test_absent is not there": (*DOUBLE, (DOUBLED, "tests/test_thing.py::test_absent")),
}], ids=["faults", "tests"])  # fmt: skip
def test_what_cannot_be_judged_is_said_and_not_counted(sample, faults):
    harness_run = sample(*faults.values())("-m", "tests.mutants")
    said = harness_run.communicate(timeout=300)[0]
    assert harness_run.returncode == 2 and "faults killed" not in said, said
    assert [words for words in faults if words not in said] == [], said


def test_a_fault_that_hangs_is_killed_with_all_its_processes(sample, tmp_path):
    program = """if True:
        import tempfile, pathlib
        from tests.mutants import harness, some
        fault, files = some.FAULTS[0], harness.project_files()
        tasks = [harness.Task(fault.tests, fault, 5), harness.Task(fault.tests, None, 60)]
        for result in harness.run(tasks, 2, files, pathlib.Path(tempfile.mkdtemp(prefix="mutants-"))):
            print(result.verdict)
    """
    python = sample(("thing.py", "n -= 1", "n -= 0", ("tests/test_thing.py::test_count",)))("-c", program)
    assert set(python.communicate(timeout=300)[0].splitlines()) == {"survived", "killed (time: over 5 s)"}
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_interrupts_it_finds_nothing_left(sample, tmp_path, number):
    harness_run = sample((*DOUBLE, ("tests/test_thing.py::test_endless",)))("-m", "tests.mutants")
    tiny.wait_until((tmp_path / "begun").exists, 120)
    harness_run.send_signal(number)
    said = harness_run.communicate(timeout=60)[0]
    assert harness_run.returncode == 130, said
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    "file, survivors, code",
    [
        ("launch.py", 1, 0),
        ("launch.py", 2, 1),
        ("train_gan.py", 1, 1),
        ("jobs/training/checkpoint.py", 1, 1),
        ("train_gan.py", 0, 0),
    ],
)
def test_one_in_twenty_may_survive_but_none_in_a_training_step(file, survivors, code, tmp_path, monkeypatch, capsys):
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text("a = 1\n")
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    task = harness.Task(("tests/test_a.py",), Fault(file, "a = 1", "a = 2", ("tests/test_a.py",)))
    results = [harness.Result(task, 1.0, int(i >= survivors)) for i in range(20)]
    assert import_module("tests.mutants.__main__").judge(results) == code
    assert f"{20 - survivors} of 20 faults killed" in capsys.readouterr().out


def test_there_are_enough_of_them():
    in_the_scripts = [fault for fault in FAULTS if fault.file in SCRIPTS or fault.file.startswith("jobs/")]
    assert len(FAULTS) >= 150 and len(in_the_scripts) >= 80
