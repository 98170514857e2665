"""What a real Slurm tells a job of its GPUs, and that a run which was given one it cannot use never goes to the CPU."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch
from test_slurm_training import queue, train  # noqa: F401

from jobs.run.rundir import RunDir
from jobs.training import devices

pytestmark = pytest.mark.timeout(900)
PRINT = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if 'GPU' in k}))"  # a line is whole


@pytest.mark.parametrize(
    ("options", "given"),
    [
        (("-p", "a100", "--gres=gpu:a100:1"), True),
        (("-p", "a100", "--gres=gpu:1", "-n", "2"), True),
        (("-p", "a100", "--gpus=1"), True),
        (("-p", "a100", "--gpus-per-task=1", "-n", "1"), True),
        (("-p", "a100"), False),
        (("-p", "cpu", "-n", "2"), False),
    ],
    ids=["gres", "gres for two", "gpus", "gpus per task", "none", "a partition without"],
)
def test_the_variables_of_a_task(queue, monkeypatch, options, given):  # noqa: F811
    said = queue.run("srun", *options, "-t", "1", queue.env["PYTHON"], "-c", PRINT)
    for line in said.splitlines():
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            monkeypatch.delenv(name)
        for name, value in json.loads(line).items():
            if name.startswith("SLURM_"):
                monkeypatch.setenv(name, value)
        assert devices.gpu_given() is given, line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_cannot_be_used_is_no_cpu_run(queue, tmp_path):  # noqa: F811
    """The nodes' GPUs are names alone. After two attempts on each of two nodes the run is stuck; each attempt says why
    in one line."""
    run = tmp_path / "gpu" / "run"
    job = train(queue, run, "-t", "5", "--gres=gpu:a100:1", flags=("--device", "auto"))
    queue.wait_over(job)
    said = "".join(path.read_text() for path in run.parent.glob("*.log"))
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert lines and all("no usable GPU on node" in line and "--device cpu" in line for line in lines), said
    decisions = [line for line in RunDir(run).read_attempts() if line["event"] == "decision"]
    assert [d["code"] for d in decisions] == [75] * 4 and decisions[-1]["decision"] == "stuck"
    assert len({re.search(r"no usable GPU on node (\w+)", line)[1] for line in lines}) == 2, said
    assert "no usable GPU" in decisions[0]["why"] and RunDir(run).newest_checkpoint() == 0
