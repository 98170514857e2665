"""What predict.py does without torch: it takes seconds to import, and half a gigabyte."""

import json
import os
import subprocess
import sys

import pytest
from tiny import ROOT


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "some"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"job": "stylegan2"}))
    rows = [{"nimg": 1000 * k, "G": 1.0 / k, "D": 1.0} for k in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CODE = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.parametrize(
    "words",
    ["--help", "generate --help", "generate", "report {}", "plot --run {} --out {}/x.png", "release --verify {}"],
)
def test_no_torch_for_help_wrong_flags_and_pages(run, tmp_path, words):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", CODE, "predict.py", *words.format(run, run).split()]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == {"generate": 2, "release --verify {}": 1}.get(words, 0), done.stderr
    assert int(done.stdout.split()[-1]) < 250_000 and "torch is imported" not in done.stderr  # kB
