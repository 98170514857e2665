"""Who imports whom: the rooms of the toolkit stay apart, for every file; and what no file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from jobs.config import kinds

# Room -> what its files may import of the toolkit besides their own room. The arrows point down only.
MAY_IMPORT = {
    "data": set(),
    "models": set(),
    "jobs.config": {"data.files"},
    "jobs.run": {"data.files", "jobs.config"},
    "jobs.view": {"data.files", "jobs.config", "jobs.run"},
    "jobs.training": {"data.files", "jobs.config", "jobs.run", "jobs.view"},
    "jobs.cluster": {"data.files", "jobs.config", "jobs.run"},
    "jobs.predict": {"data", "models", "jobs.config", "jobs.run", "jobs.view", "jobs.training"},
}
# The table of jobs names the class of each kind's trained models; it is imported when somebody asks for it.
LAZY = {("jobs.config.kinds", "jobs.predict")}
HEAVY = {"torch", "torchvision", "numpy", "PIL", "matplotlib", "tensorboard"}
TORCH_FREE_ROOMS = ("jobs.config", "jobs.run", "jobs.cluster")
TORCH_FREE_FILES = (
    "data.files", "models.names", "jobs.predict.flags", "jobs.predict.named", "jobs.view.progress", "launch",
)  # fmt: skip
SCRIPTS = tuple(sorted(path.name for path in ROOT.glob("*.py")))
MOST_LINES, MOST_PARAMETERS, MOST_FUNCTION_LINES = 500, 8, 80


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "jobs" else parts[0]


FILES = {module_of(path): path for room in ("data", "models", "jobs") for path in sorted((ROOT / room).rglob("*.py"))}
FILES |= {module_of(ROOT / name): ROOT / name for name in SCRIPTS}


def imports(path: Path, at_import: bool = False) -> set[str]:
    """Every module that a file imports, wherever in it; `at_import`: only what is imported with it."""
    tree, found = ast.parse(path.read_text()), set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("module", [m for m in FILES if m.split(".")[0] in ("data", "models", "jobs")])
def test_arrows_point_down(module):
    """Also inside of functions. A helper never imports a script."""
    if module == "jobs":
        return
    room = room_of(module)
    known = {other for other in imports(FILES[module]) if other in FILES}
    for other in known:
        lazily = (module, room_of(other)) in LAZY
        assert room_of(other) == room or {other, room_of(other)} & MAY_IMPORT[room] or lazily, (
            f"{module} imports {other}"
        )
    for other in known & imports(FILES[module], at_import=True):
        assert (module, room_of(other)) not in LAZY, f"{module} imports {other} at once"


@pytest.mark.parametrize("module", [m for m in FILES if room_of(m) in TORCH_FREE_ROOMS or m in TORCH_FREE_FILES])
def test_this_file_never_imports_torch_numpy_or_pillow(module):
    found = {name.split(".")[0] for name in imports(FILES[module])}
    assert not found & HEAVY


def test_the_torch_free_part_is_free_of_torch_when_it_runs():
    """Whatever the files import in turn."""
    names = sorted(m for m in FILES if room_of(m) in TORCH_FREE_ROOMS or m in TORCH_FREE_FILES)
    code = (
        f"import importlib, sys; [importlib.import_module(m) for m in {names!r}]; print({HEAVY!r} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


@pytest.mark.parametrize("module", FILES)
def test_files_and_functions_are_of_a_size_to_read(module):
    text = FILES[module].read_text()
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x]
            assert len([name for name in names if name not in ("self", "cls")]) <= MOST_PARAMETERS, node.name
            assert node.end_lineno - node.lineno < MOST_FUNCTION_LINES or node.name == "train", node.name


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_interpreter_gets_one_line(script):
    """The version check stands before everything that an old Python could not import or parse."""
    tree = ast.parse((ROOT / script).read_text(), feature_version=(3, 8))
    statements = [n for n in tree.body if not isinstance(n, ast.Expr)]
    check = next(n for n in statements if isinstance(n, ast.If))
    assert "version_info" in ast.unparse(check.test)
    before = statements[: statements.index(check)]
    assert [ast.unparse(n) for n in before] == ["import sys"]


def test_the_handlers_stand_before_torch_in_the_train_scripts():
    for script in (job.script for job in kinds.JOBS.values()):
        text = (ROOT / script).read_text()
        assert text.index("install_handlers()") < text.index("import torch"), script


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_says_its_version(script):
    import tomllib

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    done = subprocess.run([sys.executable, script, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == [version] and f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
