"""benchmarks/gpu.sh: rehearsed whole on a CPU, and what it does where a piece fails, hangs, or finds no time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT

from benchmarks import gpu, gpu_parts, machine, quality, quality_sides

CPU = torch.device("cpu")


def day(folder: Path, seconds: float = 100.0) -> gpu.Day:
    return gpu.Day(folder, folder / "RESULTS.md", True, "phantom:200", [], CPU, time.monotonic() + seconds)


def part(*pieces: gpu.Piece) -> dict[str, gpu.Part]:
    return {"a": gpu.Part("title", "About.", pieces)}


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_whole_day_is_rehearsed(tmp_path):
    """Each piece runs and stands in its section, and nothing of it in the figures that were measured."""
    measured = machine.RESULTS.read_bytes()
    env = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--rehearse", "--limit", "2800", "--out", str(tmp_path)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=2900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    text = (tmp_path / "RESULTS.md").read_text()
    sections = dict(section.split("\n", 1) for section in text.split("\n## ")[1:])
    assert [title[:5] for title in sections] == ["GPU a", "GPU b", "GPU c", "GPU d"]
    pieces = [piece for of in gpu_parts.PARTS.values() for piece in of.pieces if not piece.again]
    assert text.count("no figure of a GPU") == len(pieces) and "Failed" not in text
    for section, of in zip(sections.values(), gpu_parts.PARTS.values(), strict=True):
        assert all(f"### {piece.name}\n" in section for piece in of.pieces)
    for word in ("test_nccl_with_one_rank` | passed", "largest kernels of `main`", "largest kernels of `step`",
                 "RMS of bf16 to fp32", "kernel distance x 1000", "the best linear codec"):  # fmt: skip
        assert word in text, word
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"gpu-curves.png", "gpu-gan-bf16.png", "gpu-vae.png"}
    assert machine.RESULTS.read_bytes() == measured


def test_a_piece_that_fails_is_tried_again_and_one_that_is_there_is_not(tmp_path, capsys):
    calls = []

    def fails_once(_):
        calls.append("b")
        if calls.count("b") == 1:
            raise machine.Failed("Traceback\nValueError: no | luck\n")
        return "second try"

    parts = part(gpu.Piece("good", 1, lambda _: calls.append("a") or "figures"), gpu.Piece("bad", 1, fails_once))
    assert gpu.work(day(tmp_path), parts) == 1
    text = (tmp_path / "RESULTS.md").read_text()
    assert "figures" in text and "Failed: ValueError: no / luck" in text
    assert "a, bad" in capsys.readouterr().out
    assert gpu.work(day(tmp_path), parts) == 0 and calls == ["a", "b", "b"]
    text = (tmp_path / "RESULTS.md").read_text()
    assert "second try" in text and "figures" in text and "Failed" not in text


def test_what_finds_no_time_is_left_and_what_hangs_is_given_up(tmp_path, capsys):
    signal.signal(signal.SIGALRM, gpu.out_of_time)
    hangs, late = gpu.Piece("hangs", 1, lambda _: time.sleep(60)), gpu.Piece("late", 1, lambda _: "never")
    since = time.monotonic()
    assert gpu.work(day(tmp_path, 6), part(hangs, late)) == 1
    assert time.monotonic() - since < 30
    assert "within the time of the call" in (tmp_path / "RESULTS.md").read_text()
    assert "left for another call: a, late" in capsys.readouterr().out
    assert gpu.work(day(tmp_path, 1), part(late)) == 75
    assert "### late\n\nNot measured yet." not in (tmp_path / "RESULTS.md").read_text().split("hangs")[0]


@pytest.mark.parametrize("leaves, expected", [("sys.exit(75)", (75, True)), ("None", None)])
def test_a_process_is_asked_to_end_and_then_made_to(leaves, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAVE", 5.0 if expected else 0.5)
    code = f"import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: {leaves})\nprint('on', flush=True)\n"
    command = [sys.executable, "-c", f"{code}while True: time.sleep(0.1)"]
    if expected:
        assert gpu.run_for(command, 3.0, tmp_path / "log", dict(os.environ)) == expected
    else:
        with pytest.raises(machine.Failed, match="did not end"):
            gpu.run_for(command, 3.0, tmp_path / "log", dict(os.environ))
    assert (tmp_path / "log").read_text() == "on\n"


def test_a_training_that_is_asked_to_end_has_done_well_and_one_that_breaks_has_not(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "run_for", lambda *_: (75, True))
    assert day(tmp_path).start("x", "train_gan.py", seconds=3) == 75
    monkeypatch.setattr(gpu, "run_for", lambda _, __, log, ___: log.write_text("so\nerror: why\n") and (75, False))
    with pytest.raises(machine.Failed, match="code 75: error: why"):
        day(tmp_path).start("x", "train_gan.py", seconds=3)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "a"])
    with pytest.raises(SystemExit) as left:
        gpu.main()
    assert left.value.code == 2 and "--rehearse" in capsys.readouterr().err


def test_tests_that_have_passed_are_not_run_again(tmp_path, monkeypatch):
    commands = []

    def pytest_of(command, _, log, __):
        commands.append(command)
        with open(log, "a") as file:
            file.write(
                f"tests/a.py::x[1 2] PASSED [ 5%]\ntests/a.py::y {'PASSED' if commands[1:] else 'FAILED'} [ 9%]\n"
            )
        return (0 if commands[1:] else 1), False

    monkeypatch.setattr(gpu, "run_for", pytest_of)
    with pytest.raises(gpu.Unfinished, match=r"code 1(.|\n)*y` \| failed"):
        gpu_parts.tests(day(tmp_path))
    assert "y` | passed" in gpu_parts.tests(day(tmp_path))
    assert "--deselect" not in commands[0] and commands[1][-2:] == ["--deselect", "tests/a.py::x[1 2]"]


# --- what the tables are made of --------------------------------------------------------------------------------------
class Plain:
    """A side that starts; `task` may fail."""

    name, device, dtype = "plain", CPU, torch.float32

    def __init__(self, breaks: str = ""):
        if breaks == "start":
            sys.exit("No module named 'x'; run: pip install x")
        net = torch.nn.Linear(64, 64)
        self.networks, self.tasks = (net,), {"product": lambda: net(torch.ones(64, 64 if not breaks else 3))}


def test_a_peer_that_is_not_there_or_breaks_is_a_line_of_the_table():
    starts = {name: lambda name=name: machine.Side(Plain, name.strip("-")) for name in ("", "start", "task")}
    here, absent = machine.present(starts)
    try:
        assert list(here) == [""] and list(absent) == ["start", "task"]
        assert absent["start"] == "No module named 'x'; run: pip install x" and "RuntimeError: mat1" in absent["task"]
        rows = machine.absent_rows(absent, 3)
        assert rows[0] == ["start: not measured: No module named 'x'; run: pip install x", "", ""]
        found = here[""].kernels("product")
        # Which is the largest depends on what else the machine does in these microseconds.
        assert "aten::addmm" in [name for name, *_ in found] and found == sorted(found, key=lambda row: -row[1])
        assert 0.99 < sum(share for *_, share in found) <= 1.0001 and "`aten::addmm`" in machine.kernels_table(
            here[""], "product"
        )
    finally:
        here[""].close()


@pytest.mark.parametrize(
    "state, words",
    [(("0123456789", False), "0123456"), (("0123456789", True), "0123456 with changes"), ((None, None), "unknown")],
)
def test_a_figure_names_the_code_that_it_is_of(monkeypatch, tmp_path, state, words):
    seen = []
    monkeypatch.setattr(
        machine, "git_state", lambda root: seen.append(root) or dict(git_commit=state[0], git_dirty=state[1])
    )
    monkeypatch.setattr(quality, "RECORD", tmp_path / "none")
    monkeypatch.setattr(quality, "of_training_slices", lambda data, seed: {})
    assert f"- commit {words}, Python" in machine.header(CPU, [])
    quality.fill(tmp_path, quality_sides.Task("training", "", 0, 0.0, "", ""), "phantom:20")
    (result,) = quality.results(tmp_path)
    assert f", commit {words}, " in result["on"] and set(seen) == {ROOT}


def test_versions_of_what_is_not_installed():
    assert "no-such-package is not installed" in machine.header(CPU, ["torch", "no-such-package"])
    assert machine.missing("torch", "") == ""
    assert machine.missing("no_such_module", "run: x") == "No module named 'no_such_module'; run: x"


def test_the_linear_codec_is_the_best_of_its_size():
    """By the singular values of the patches, whose squares beyond the first are the least possible error."""
    rng = np.random.default_rng(0)
    images = (rng.random((20, 1, 8, 8)) * 60 + 100).astype(np.uint8)
    codec = gpu_parts.LinearCodec(images, 4, 3, chunk=7)
    error = ((codec(torch.from_numpy(images)) - torch.from_numpy(images) / 255) ** 2).sum()
    patches = images.reshape(20, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 16) / 255
    values = np.linalg.svd(patches - patches.mean(0), compute_uv=False)
    assert float(error) == pytest.approx((values[3:] ** 2).sum(), rel=1e-4)
    whole = gpu_parts.LinearCodec(images, 4, 16)
    torch.testing.assert_close(whole(torch.from_numpy(images)), torch.from_numpy(images) / 255)
