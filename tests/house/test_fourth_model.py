"""A fourth kind of model, added in the places that CONTRIBUTING.md names and in no other, is found everywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from tiny import ROOT, environment

from jobs.cluster.submit import tracked_files

TOY = ROOT / "tests" / "fourth"
# The places: three files of its own, and a few lines in each of these.
NEW_FILES = {"train_toy.py": "train_toy.py", "models/toy.py": "toy_network.py", "jobs/predict/toy.py": "toy_model.py"}
CONFIG = '''

@dataclass(frozen=True)
class ToyConfig(TrainConfig):
    """Train a toy on brain-MRI slices."""

    lr: float = 0.01
    """Adam's learning rate."""
'''
COLUMNS = """
TOY = (
    Column("toy_loss", "loss", LOSS, "toy", told=True),
    Column("toy_spread", "toys", "spread of the pixels", "spread"),
)
"""
PRESETS = """
TOY_PRESETS: dict[str, dict] = {
    "quickstart": dict(data="phantom:24", resolution=32, batch=8, total_kimg=0.08, log_kimg=0.016, sample_kimg=0.04),
}
"""
ROW = """
    "toy": Job(
        script="train_toy.py",
        config=specs.ToyConfig,
        presets=presets.TOY_PRESETS,
        default_preset="quickstart",
        check=lambda config: rules.check_numbers(config, "lr", ""),
        memory_gb=lambda config, world=1, capability=None: 0.1,
        checkpoint_gb=lambda config: 0.01,
        columns=columns.TOY,
        predicts=("generate",),
        then=("predict.py generate --run {run} --number 16",),
        model=_toy,
    ),
}
"""
LOADER = """
def _toy() -> type:
    from jobs.predict.toy import ToyModel

    return ToyModel


JOBS: dict"""


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the toolkit with the toy in it, and with a run of each of a sweep's two points."""
    root = tmp_path_factory.mktemp("house") / "toolkit"
    for name in tracked_files(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((ROOT / name).read_bytes())
    for there, here in NEW_FILES.items():
        (root / there).write_bytes((TOY / here).read_bytes())
    config = root / "jobs" / "config"
    for file, addition in {"specs.py": CONFIG, "columns.py": COLUMNS, "presets.py": PRESETS}.items():
        with open(config / file, "a") as text:
            text.write(addition)
    kinds = (config / "kinds.py").read_text()
    head, rest = kinds.split("JOBS: dict", 1)
    rows, tail = rest.split("\n}\n", 1)
    head = head.replace("presets, recipe, rules, sizes", "presets, recipe, rules, sizes, specs")
    (config / "kinds.py").write_text(head + LOADER.lstrip("\n") + rows + ROW + tail)
    (root / "said").write_text(
        call(root, "launch.py", "--local", "--wait", "--job", "toy", "--name", "both", "--sweep", "lr=0.01,0.02")
    )
    return root


def call(root, *words: str, code: int = 0) -> str:
    """What a command prints, in the copy."""
    done = subprocess.run(
        [sys.executable, *words], cwd=root, env=environment(root / "packs"), capture_output=True, text=True
    )
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_it_trains_through_the_launcher_and_its_own_figures_are_shown(house):
    run = house / "runs" / "both-lr=0.01"
    assert (run / "DONE").exists() and (run / "weights.safetensors").exists()
    assert re.search(r"kimg.* toy 0\.\d", (house / "said").read_text())  # in the progress line, by its short name
    assert "toy_loss" in call(house, "launch.py", "status", "both-lr=0.01")


def test_status_and_the_table_of_a_sweep_know_it(house):
    table = json.loads(call(house, "launch.py", "status", "--json"))["runs"]
    assert [row["state"] for row in table if row["name"].startswith("both-lr")] == ["done", "done"]
    shown = call(house, "launch.py", "status", "both")
    assert "toy_loss" in shown and "0.02" in shown


def test_tensorboard_groups_its_columns(house):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(house / "runs" / "both-lr=0.01" / "tensorboard"))
    board.Reload()
    assert {"1_loss/toy_loss", "toys/toy_spread"} <= set(board.Tags()["scalars"])


def test_predict_does_with_it_what_its_row_says(house):
    run = str(house / "runs" / "both-lr=0.01")
    call(house, "predict.py", "generate", "--run", run, "--number", "4", "--device", "cpu")
    assert len(list((house / "runs" / "both-lr=0.01" / "predictions" / "generate").glob("*/0*.png"))) == 4
    assert "flag of a StyleGAN2; this is a toy" in call(
        house, "predict.py", "generate", "--run", run, "--truncation", "0.5", "--out", "x", code=2
    )
    assert "'toy' job" in call(house, "predict.py", "evaluate", "--run", run, code=78)


def test_the_launcher_refuses_its_wrong_flags(house):
    assert "--lr -1.0: must be greater than 0" in call(
        house, "launch.py", "--local", "--dry-run", "--job", "toy", "--lr", "-1", code=78
    )
