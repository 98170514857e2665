"""Why a run stops is known on rank 0, whichever rank heard of it: what is done next depends on it
(jobs/cluster/requeue.py)."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
import torch

from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.training import collectives, ranks
from jobs.training.upkeep import Upkeep


@pytest.fixture(autouse=True)
def no_job(monkeypatch):
    for name in [k for k in os.environ if k.startswith("SLURM_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("heard", "reason"), [("USR1", "USR1"), ("USR2", "USR2"), ("TERM", "TERM"), ("INT", "Ctrl-C")])
def test_a_signal_that_reaches_another_rank_first_is_named_as_if_it_had_come_here(monkeypatch, heard, reason):
    here, there = stopping.StopWatch(), stopping.StopWatch()
    told = [here.tell()]
    monkeypatch.setattr(stopping, "_received", [heard])
    level = here.hear(max([*told, there.tell()]))
    assert told == [0] and level == (3 if heard == "INT" else 2)
    monkeypatch.setattr(stopping, "_received", [])
    assert here.describe(level) == reason and here.poll() == 0


def test_of_two_ranks_reasons_a_persons_counts(monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(time.time() + 60))
    by_clock = stopping.StopWatch(margin=120)
    monkeypatch.delenv("SLURM_JOB_END_TIME")
    (tmp_path / "STOP").touch()
    by_person, silent = stopping.StopWatch(RunDir(tmp_path)), stopping.StopWatch()
    told = [by_clock.tell(), by_person.tell(), silent.tell()]
    for watch in (by_clock, by_person, silent):
        level = watch.hear(max(told))
        assert level == 3 and watch.describe(level) == "STOP file"
    (tmp_path / "SAVE").touch()
    (tmp_path / "STOP").unlink()
    saving = stopping.StopWatch(RunDir(tmp_path))
    assert (
        silent.hear(max(saving.tell(), stopping.StopWatch().tell())) == stopping.SAVE
        and silent.describe(1) == "SAVE file"
    )


def test_ranks_tell_each_other_why_they_stop(monkeypatch):
    """A signal to all of a job's ranks may reach rank 1 a step before rank 0, which records it."""
    told = []

    def agree_max(rt: ranks.Runtime, values: list[int]) -> list[int]:
        told.append(values)
        return [max(column) for column in zip(*told, strict=True)]

    monkeypatch.setattr(collectives, "agree_max", agree_max)
    for rank, heard in ((1, ["TERM"]), (0, [])):
        monkeypatch.setattr(stopping, "_received", heard)
        upkeep = SimpleNamespace(
            rt=ranks.Runtime(rank, 2, rank, torch.device("cpu"), 1),
            watchdog=SimpleNamespace(pat=lambda: None),
            saved_at=0,
            saved_time=0.0,
            c=SimpleNamespace(checkpoint_minutes=0.0, batch=8, checkpoint_kimg=0.0),
            watch=stopping.StopWatch(),
            total=100,
        )
        assert Upkeep.agree(upkeep, 8) and upkeep.ending
        assert upkeep.level == 2 and upkeep.watch.describe(2) == "TERM"
    assert len(told) == 2 and told[0] > told[1] == [0, 0]
