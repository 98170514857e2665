"""How many threads compute: what may be used, what is fastest on a busy machine, and that a run keeps its number."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from data import files
from jobs.run.rundir import RunDir
from jobs.training import devices, told

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("own", "limits", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),  # a container sees its own top, version 2
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "cpu.max": "800000 100000"}, 2),
        ("4:cpu,cpuacct:/x\n", {"cpu/x/cpu.cfs_quota_us": "300000", "cpu/x/cpu.cfs_period_us": "100000"}, 3),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("5:memory:/x\n", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_the_quota_of_the_cgroups(own, limits, quota, tmp_path, monkeypatch):
    for name, text in limits.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    if own is not None:
        (tmp_path / "cgroup").write_text(own)
    monkeypatch.setattr(files, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(files, "OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(files.os, "sched_getaffinity", lambda pid: set(range(4)), raising=False)
    assert files.cpu_quota() == quota and files.usable_cores() == max(int(min(quota, 4)), 1)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({8: 1.0, 4: 1.8, 2: 3.5, 1: 7.0}, (8, 1.0)),
        ({8: 1.0, 4: 0.8, 2: 0.9, 1: 1.0}, (8, 1.0)),  # not clearly
        ({8: 15.0, 4: 9.0, 2: 2.0, 1: 1.0}, (1, 15.0)),
        ({6: 4.0, 3: 1.0, 1: 2.0}, (3, 4.0)),
        ({1: 1.0}, (1, 1.0)),
    ],
)
def test_fewer_threads_only_where_they_are_clearly_faster(times, expected):
    assert devices.fastest_threads(max(times), times.__getitem__) == expected


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "default_threads", lambda ranks: 4)
    monkeypatch.setattr(devices, "fastest_threads", lambda most: (1, 15.0))
    run = RunDir(tmp_path / "run")
    run.create()
    return run


def test_a_run_keeps_its_number_of_threads(run):
    """The busy machine decides at the first start alone; what is not usual is said."""

    def chosen(asked: int = 0, world: int = 1, device: torch.device = CPU) -> tuple[int, str]:
        said: list[str] = []
        threads = devices.choose_threads(asked, run, world, device, said.append)
        assert len(said) <= 1
        return threads, "".join(said)

    threads, said = chosen()
    assert threads == 1 and "threads: 1 of 4, 15.0 times as fast" in said and "--threads 4" in said
    assert (
        chosen(asked=3) == (3, "") and chosen(world=2) == (4, "") and chosen(device=torch.device("cuda", 0)) == (4, "")
    )
    run.note("start", threads=2, nimg=0)
    assert chosen()[0] == 1  # nothing was saved: it starts again
    (run.checkpoints / "000000000008.json").write_text("{}")
    threads, said = chosen()
    assert threads == 2 and "as before" in said and "--threads 4" in said
    run.note("start", threads=4, nimg=8)
    assert chosen() == (4, "") and chosen(asked=1) == (1, "")
    run.note("start", threads=9, nimg=8)
    threads, said = chosen()
    assert threads == 4 and "the attempt before had 9" in said


def test_steps_that_become_slow_on_a_busy_machine_are_told_once(monkeypatch):
    load = SimpleNamespace(now=1.0)
    monkeypatch.setattr(devices.os, "getloadavg", lambda: (load.now, 0.0, 0.0))
    monkeypatch.setattr(devices.os, "cpu_count", lambda: 2)
    slow = devices.Slowdown()
    assert not slow.look({"img_per_s": 5.0}, 2) and not slow.look({"img_per_s": 14.0}, 2)
    assert not slow.look({"img_per_s": 0.9}, 2)  # slow, and nobody else is there
    load.now = 7.0
    assert not slow.look({"img_per_s": 13.0}, 2) and not slow.look({"img_per_s": 1.5, "metric_wait": 0.9}, 2)
    words = slow.look({"img_per_s": 0.9}, 2)
    assert "WARNING: 0.9 images per second, after 15 before" in words and "load 7.0 on 2 cores" in words
    assert "--threads 1" in words and not slow.look({"img_per_s": 0.8}, 2)
    assert not slow.look({"img_per_s": 12.0}, 2) and "quiet" in slow.look({"img_per_s": 0.8}, 1)


def test_the_size_of_a_run_in_words():
    """Averages of networks are copies; one network needs no list."""
    nets = {"G": torch.nn.Linear(999, 1), "D": torch.nn.Linear(9, 1), "G_ema": torch.nn.Linear(999, 1), "counters": {}}
    words = told.size_of(SimpleNamespace(**nets), 28_000, 1600)
    assert words == "1.01 k parameters (G 1 k, D 10), 1,600 images per epoch, 17.5 epochs in all"
    one = SimpleNamespace(unet=torch.nn.Linear(1999, 1000), unet_ema=nets["D"])
    assert told.size_of(one, 1000, 10).startswith("2 M parameters, 10 images")
