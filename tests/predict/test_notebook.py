"""docs/notebook.ipynb runs from top to bottom on a real run, and shows what the command line would."""

from __future__ import annotations

import numpy as np
import pytest
from inprocess import run_main
from tiny import ROOT

from jobs.predict import load


@pytest.fixture(scope="module")
def run(tmp_path_factory, packs):
    path = tmp_path_factory.mktemp("notebook") / "run"
    assert run_main("train_gan.py", "--run", str(path), "--total-kimg", "0.08", packs=packs).code == 0
    return path


def test_the_notebook_runs(run, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("RUN", str(run))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert len(book.cells) == 10
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4 and "(8, 1, 32, 32)" in str(outputs)


def test_the_same_seed_gives_the_same_pictures_by_name_path_and_file(run):
    one, two = load(run), load(run / "weights.safetensors")
    assert np.array_equal(one.sample(3, seed=4), two.sample(indices=[0, 1, 2], seed=4))
