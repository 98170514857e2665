"""Who imports whom, and how fast the torch-free part answers: the rooms of the toolkit stay apart."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {"data", "models", "jobs"}
TORCH_FREE = ["specs", "stop", "rundir", "attempt"]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_rooms_do_not_import_each_other(room):
    files = list((ROOT / room).glob("*.py"))
    assert len(files) >= 4
    for path in files:
        others = {name.split(".")[0] for name in imports(path)} & (ROOMS - {room})
        assert not others, f"{path.name} imports {others}"
        assert not any(name.startswith(("train_", "predict", "launch")) for name in imports(path)), path


@pytest.mark.parametrize("name", TORCH_FREE)
def test_this_part_of_jobs_never_imports_torch(name):
    code = f"import sys, jobs.{name}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("script", ["train_gan.py", "pretrain_vae.py", "train_diffusion.py", "predict.py"])
def test_an_old_interpreter_gets_one_line(script):
    """The version check stands before everything that an old Python could not import or parse."""
    tree = ast.parse((ROOT / script).read_text(), feature_version=(3, 8))
    statements = [n for n in tree.body if not isinstance(n, ast.Expr)]
    assert isinstance(statements[0], (ast.Import, ast.ImportFrom)) and isinstance(statements[1], (ast.If, ast.Import))
    check = next(n for n in statements if isinstance(n, ast.If))
    assert "version_info" in ast.unparse(check.test)
    before = statements[: statements.index(check)]
    assert all(name.split(".")[0] in ("sys", "__future__") for n in before for name in
               ([a.name for a in n.names] if isinstance(n, ast.Import) else [n.module]))  # fmt: skip


def test_the_handlers_stand_before_torch_in_the_train_scripts():
    for script in ("train_gan.py", "pretrain_vae.py", "train_diffusion.py"):
        text = (ROOT / script).read_text()
        assert text.index("install_handlers()") < text.index("import torch"), script
