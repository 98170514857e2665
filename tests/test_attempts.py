"""What happens before and around training: refusals on all ranks, changed data, changed flags, stops while packing."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from jobs.checkpoint import Checkpoints
from jobs.log import Averages
from jobs.loop import FRESH_COUNTERS, State
from jobs.rundir import process_space

SHORT = ("--total-kimg", "0.04", "--log-kimg", "0.008")


@pytest.fixture(scope="module")
def finished(packs, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert tiny.train(run, *SHORT, packs=packs) == 0, tiny.output(run)
    return run


def copy(run, to):
    subprocess.run(["cp", "-a", str(run), str(to)], check=True)
    return to


def pictures(folder, count: int, shade: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image = np.random.default_rng([i, shade]).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(image).save(folder / f"{shade}_{i}.png")


def test_all_ranks_leave_when_rank_0_refuses(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    processes = tiny.start(run, *SHORT, "--total-kimg", "0.08", "--gamma", "9", packs=packs, ranks=2)
    assert tiny.finish(processes) == [78, 78]
    assert "--gamma 0.1 -> 9" in tiny.output(run, 0) and "error" not in tiny.output(run, 1)


def test_a_divergence_in_the_optimizer_alone_ends_all_ranks_alike(packs, tmp_path):
    """Adam's second moment overflows while the weights are still finite: seen where a checkpoint is due, on every rank."""
    for ranks in (1, 2):
        run = tmp_path / str(ranks)
        flags = ("--total-kimg", "0.4", "--gamma", "1e25", "--r1-interval", "2")
        assert tiny.finish(tiny.start(run, *flags, packs=packs, ranks=ranks)) == [77] * ranks
        assert "again after a roll-back" in tiny.output(run)


def test_the_next_start_completes_the_marks_of_a_done_run_that_was_killed_at_its_last_moment(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    status = json.loads((run / "status.json").read_text()) | {"state": "running", "pid": 1 << 22}
    (run / "status.json").write_text(json.dumps(status))
    lines = (run / "attempts.jsonl").read_text().splitlines()
    (run / "attempts.jsonl").write_text("\n".join(line for line in lines if json.loads(line)["event"] != "end") + "\n")
    dead = {
        "token": "0" * 16,
        "host": socket.gethostname(),
        "space": process_space(),
        "pid": 1 << 22,
        "start": "7",
        "since": 0.0,
    }
    (run / "LOCK").write_text(json.dumps(dead))
    (run / f".status.json.tmp.{socket.gethostname()}.{1 << 22}.0").touch()
    assert tiny.train(run, *SHORT, packs=packs) == 0
    assert "is done" in tiny.output(run)
    after = json.loads((run / "status.json").read_text())
    assert after["state"] == "done" and after["total_kimg"] == status["total_kimg"] and after["kimg"] == status["kimg"]
    assert [json.loads(line)["event"] for line in (run / "attempts.jsonl").read_text().splitlines()] == ["start", "end"]
    assert not [p.name for p in run.iterdir() if p.name == "LOCK" or ".tmp." in p.name]


def test_a_damaged_config_is_named(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    (run / "config.json").write_text((run / "config.json").read_text().replace('"crop"', '"krop"'))
    (run / "DONE").unlink()
    assert tiny.train(run, *SHORT, packs=packs) == 78
    assert (
        tiny.output(run)
        .splitlines()[-1]
        .startswith(f"error: {run / 'config.json'}: the stored config has unknown fields 'krop'")
    )


def test_moments_of_another_memory_layout_are_laid_out_anew():
    """A checkpoint of a GPU, channels_last, is continued on a CPU: fused Adam pairs by place in memory, not by index."""

    class Own(State):
        def __init__(self, layout):
            torch.manual_seed(0)
            self.net = torch.nn.Conv2d(3, 4, 3).to(memory_format=layout)
            self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1, fused=True)
            self.averages, self.counters = Averages(), dict(FRESH_COUNTERS)

        def step(self):
            slope = torch.arange(108.0).reshape(4, 3, 3, 3).sin()
            self.net.weight.grad = torch.empty_like(self.net.weight).copy_(
                slope
            )  # in the layout of the weight, as autograd's
            self.net.bias.grad = torch.ones(4)
            self.optimizer.step()

    first = Own(torch.channels_last)
    first.step()
    second = Own(torch.contiguous_format)
    second.load_state_dict(copy_of(first.state_dict()))
    for state in (first, second):
        state.step()
    assert first.net.weight.stride() != second.net.weight.stride()
    torch.testing.assert_close(first.net.weight, second.net.weight, rtol=0, atol=0)


def copy_of(state: dict) -> dict:
    """As it comes from a checkpoint."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_only_rank_0_packs(tmp_path):
    run, packs = tmp_path / "run", tmp_path / "packs"
    assert tiny.train(run, *SHORT, packs=packs, ranks=2) == 0, tiny.output(run)
    text = tiny.output(run, 0) + tiny.output(run, 1)
    assert text.count("packing 48") == 1 and len(list(packs.iterdir())) == 1


def test_another_learning_rate_takes_effect(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    before = Checkpoints(run / "checkpoints").load_latest()[1]
    assert tiny.train(run, *SHORT, "--total-kimg", "0.08", "--lr", "1e-20", "--override", packs=packs) == 0
    after = Checkpoints(run / "checkpoints").load_latest()[1]
    assert after["opt_G"]["param_groups"][0]["lr"] < 1e-19
    assert torch.equal(before["G"]["const"], after["G"]["const"])


def test_changed_data_are_refused(packs, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    for i, name in enumerate("pq"):
        pictures(data / name, 12, i)
    flags = (*SHORT, "--data", str(data), "--conditional")
    assert tiny.train(run, *flags, packs=packs) == 0, tiny.output(run)
    pictures(data / "p", 1, shade=7)
    longer = (*flags, "--total-kimg", "0.08")
    assert tiny.train(run, *longer, packs=packs) == 78
    assert "the slices (train) are not those that the run began with" in tiny.output(run)
    assert tiny.train(run, *longer, "--override", packs=packs) == 0
    pictures(data / "z", 3)
    assert tiny.train(run, *flags, "--total-kimg", "0.12", "--override", packs=packs) == 78
    assert "the run learns the classes p, q, the data have p, q, z" in tiny.output(run)


def test_accumulation_may_change_on_resume(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    assert tiny.train(run, *SHORT, "--total-kimg", "0.08", "--accumulate", "2", packs=packs) == 0, tiny.output(run)


def test_less_than_was_seen_is_refused(finished, packs, tmp_path):
    run = copy(finished, tmp_path / "run")
    (run / "DONE").unlink()
    assert tiny.train(run, *SHORT, "--total-kimg", "0.016", packs=packs) == 78
    assert "has seen 0.04 kimg already" in tiny.output(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGINT, 0)])
def test_stopping_while_packing(tmp_path, number, code):
    run, packs = tmp_path / "run", tmp_path / "packs"
    (process,) = tiny.start(run, "--data", "phantom:100000", "--resolution", "64", packs=packs)
    tiny.wait_until(lambda: list(packs.glob(".*.tmp")))
    process.send_signal(number)
    assert process.wait(300) == code, tiny.output(run)
    assert "before the training began" in tiny.output(run) and "Traceback" not in tiny.output(run)
    assert not list(packs.iterdir())


@pytest.mark.parametrize(("flags", "text"), [
    (("--total-kimg", "inf"), "--total-kimg inf: must be a finite number"), (("--max-bad", "5"), "--max-bad 5"),
    (("--init-from", "/nonexistent"), "no checkpoint there"), (("--crop", "300"), None),
    (("--pl-decay", "7"), "--pl-decay 7"), (("--ada-target", "9"), "--ada-target 9"),
])  # fmt: skip
def test_dry_run_finds_what_the_run_would(flags, text, tmp_path, packs):
    data = tmp_path / "data"
    pictures(data, 5)
    words = ["train_gan.py", *tiny.TINY, "--data", data, *flags, "--dry-run", "--run", tmp_path / "run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "Traceback" not in done.stderr
    assert (text or "--crop 300 is larger than the slices") in done.stderr
    assert not (tmp_path / "run").exists()


def test_dry_run_compares_with_the_run_and_shows_warnings(finished, tmp_path, packs):
    words = ["train_gan.py", *tiny.TINY, "--run", finished, "--gamma", "77", "--dry-run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "--gamma 0.1 -> 77" in done.stderr
    pictures(tmp_path / "data" / "train" / "AD", 5)
    words = ["train_gan.py", *tiny.TINY, "--data", tmp_path / "data", "--conditional", "--dry-run"]
    done = tiny.forks.run(words, tiny.environment(packs))
    assert done.returncode == 78 and "fewer than two classes" in done.stderr


def test_class_folders_with_bytes_that_are_no_text(packs, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    pictures(data / "plain", 6)
    try:
        pictures(data / b"caf\xe9".decode(errors="surrogateescape"), 6, 1)
    except OSError:
        pytest.skip("this file system has text names only")
    assert tiny.train(run, *SHORT, "--data", str(data), "--conditional", packs=packs) == 0, tiny.output(run)
    assert json.loads((run / "data.json").read_text())["classes"] == ["caf%E9", "plain"]


def test_a_damaged_pack_in_the_cache_is_built_again(packs, tmp_path):
    run = tmp_path / "run"
    own = tmp_path / "packs"
    assert tiny.train(run, *SHORT, packs=own) == 0
    (pack,) = own.iterdir()
    content = bytearray(pack.read_bytes())
    content[-1000:] = bytes(1000)
    pack.write_bytes(content)
    assert tiny.train(tmp_path / "again", *SHORT, packs=own) == 0
    assert "do not match their SHA-256" in tiny.output(tmp_path / "again")
    assert tiny.weights_hash(run) == tiny.weights_hash(tmp_path / "again")


def test_eta_stays_in_the_heartbeat(packs, tmp_path):
    run = tmp_path / "run"
    (process,) = tiny.start(run, "--total-kimg", "40", packs=packs)
    try:
        tiny.wait_until(
            lambda: (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) > 3
        )
        time.sleep(6)  # a heartbeat is written every few seconds at most
        status = json.loads((run / "status.json").read_text())
    finally:
        tiny.kill([process])
    assert status["state"] == "running" and status["eta_s"] > 0


LEAVE = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace as Names
from jobs import runtime
from jobs.loop import Upkeep
rt = runtime.init_runtime(1, runtime.Meeting())
folder = Path(sys.argv[1])

def write(raise_errors):  # a checkpoint on slow storage
    if rt.rank == 0:
        time.sleep(3)
        (folder / "written").touch()

attempt = Names(say=lambda text: None, end=lambda code, state, reason: code)
upkeep = Names(rt=rt, attempt=attempt, total=100, level=2, checkpoints=Names(wait=write), watchdog=Names(stop=lambda: None),
               watch=Names(describe=lambda level: "USR2"))
if sys.argv[2] == str(rt.rank):
    os._exit(9)
code = Upkeep.leave(upkeep, Names(main=False), 50, "")
sys.exit(code if (folder / "written").exists() else 1)
"""


@pytest.mark.parametrize(("dead", "codes"), [("none", [85, 85]), ("1", [85, 9])])
def test_no_rank_leaves_before_rank_0_has_written(tmp_path, dead, codes):
    """srun kills what is left of a step when one rank has left, within half a minute; a save may take longer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        tiny.forks.Forked(
            ["-c", LEAVE, tmp_path, dead],
            env=tiny.environment(tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                                 MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        )
        for rank in range(2)
    ]  # fmt: skip
    assert tiny.finish(ranks) == codes
