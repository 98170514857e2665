"""The pre-flight knows which GPUs the installed torch has kernels for, names a wheel that fits, and what fits a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_cluster_rules import small
from test_launch import options

from jobs.cluster import doctor, preflight, sites, wheels
from jobs.cluster.plan import make_plan
from jobs.cluster.slurm import Partition
from jobs.config import parsing, specs
from jobs.config.cards import card_of

CU130 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"  # of torch 2.14.1+cu130
CU126 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"  # of torch 2.8.0+cu126


def partition_of(*kinds: str) -> Partition:
    """A partition whose nodes have one of each of these."""
    return Partition("p", True, 3600, None, 1, 8, 1, None, False, dict.fromkeys(kinds, 1))


@pytest.fixture
def torch_of(monkeypatch, tmp_path):
    """torch_of(kernels): the installed torch has these. Returns how often it was asked."""
    asked: list[list[str]] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(wheels, "driver_cuda", lambda: "")

    def has(kernels: str, fails: bool = False):
        def run(command, **how):
            asked.append(command)
            if fails:
                raise subprocess.CalledProcessError(1, command)
            return SimpleNamespace(stdout=kernels + "\n")

        monkeypatch.setattr(wheels.subprocess, "run", run)
        return asked

    return has


@pytest.mark.parametrize(
    ("gres", "capability", "gb"),
    [
        ("gpu:a100:2", (8, 0), 40),
        ("gpu:nvidia_a100_80gb_pcie:1", (8, 0), 80),
        ("gpu:a100_1g.5gb:1", (8, 0), 5),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 40),
        ("gpu:p100", (6, 0), 12),
        ("gpu:tesla_v100-sxm2-32gb:4", (7, 0), 32),
        ("gpu:rtx_3090:1", (8, 6), 24),
        ("gpu:rtx2080ti:1", (7, 5), 8),
        ("gpu:l40s", (8, 9), 48),
        ("gpu:l4", (8, 9), 24),
        ("gpu:h100", (9, 0), 80),
    ],
)
def test_a_card_by_the_name_that_slurm_has_for_it(gres, capability, gb):
    card = card_of(gres)
    assert card is not None and (card.capability, card.gb) == (capability, gb)


@pytest.mark.parametrize("gres", ["gpu:1", "gpu:4", "", "shard:2", "gpu:xa100y", "gpu:mi250", "gpu:rtx6000"])
def test_a_name_that_says_nothing(gres):
    assert card_of(gres) is None


@pytest.mark.parametrize(
    ("kernels", "capability", "runs"),
    [
        (CU130, (7, 5), True), (CU130, (8, 9), True), (CU130, (10, 3), True), (CU130, (6, 0), False),
        (CU130, (7, 0), False), (CU126, (6, 1), True), (CU126, (7, 0), True), (CU126, (10, 0), False),
        (CU126, (3, 7), False), (CU126 + " compute_90", (12, 0), True), ("sm_86", (8, 0), False),
        ("sm_90a", (9, 0), False), ("", (8, 0), False),
    ],
)  # fmt: skip
def test_what_runs_on_what(kernels, capability, runs):
    """Machine code on the same major version from its minor on, PTX on everything newer (CUDA C++ guide, 3.1)."""
    assert wheels.runs_on(wheels.parse_kernels(kernels), capability) is runs


@pytest.mark.parametrize(
    ("gres", "kernels", "cuda", "fix"),
    [
        ("gpu:p100:1", CU130, "13.0", '"torch<2.15" --index-url https://download.pytorch.org/whl/cu126'),
        ("gpu:v100:1", CU130, "13.0", "whl/cu126"),
        ("gpu:b200:1", CU126, "12.6", '"torch" --index-url https://download.pytorch.org/whl/cu130'),
        ("gpu:k80:1", CU130, "13.0", "no torch that this toolkit runs with"),
        ("gpu:k80:1", CU126, "12.6", "no torch that this toolkit runs with"),
        ("gpu:p100:1", CU126, "12.6", ""),
        ("gpu:h100:1", CU130, "13.0", ""),
        ("gpu:1", CU130, "13.0", ""),
    ],
)
def test_a_card_without_kernels_is_refused_with_a_wheel_that_has_them(torch_of, gres, kernels, cuda, fix):
    torch_of(kernels)
    rows = wheels.check_cards([gres, gres], cuda)
    assert [level for level, *_ in rows] == (["fail"] if fix else []) and all(fix in row[2] for row in rows)
    if fix:
        ((_, text, _),) = rows
        assert gres.split(":")[1].upper() in text and f"CUDA {cuda}" in text and kernels.split()[0][3] in text


def test_torch_is_asked_once_for_each_installation_and_never_for_an_a100(torch_of, tmp_path):
    asked = torch_of(CU130)
    assert wheels.check_cards(["gpu:a100:1", "gpu:a30:1", "gpu:l4:1"], "13.0") == [] and asked == []
    assert wheels.kernels_of_torch() == wheels.kernels_of_torch() == wheels.parse_kernels(CU130)
    assert len(asked) == 1 and asked[0][:2] == [sys.executable, "-c"]
    (cache,) = (tmp_path / "cache").rglob("*.json")
    for damaged in ("{", "[]", '{"x": 1}'):
        cache.write_text(damaged)
        assert wheels.kernels_of_torch()
    assert len(asked) == 4


def test_a_torch_that_does_not_answer_refuses_nothing(torch_of):
    torch_of("", fails=True)
    assert wheels.check_cards(["gpu:p100:1"], "13.0") == []


def test_the_installed_torch_says_what_it_has():
    """Also where there is no GPU, and without a GPU's list of kernels."""
    said = subprocess.run(
        [sys.executable, "-c", wheels.QUESTION], capture_output=True, text=True, timeout=200, check=True
    )
    assert bool(wheels.parse_kernels(said.stdout)) == bool(preflight.torch_cuda())


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("12.4", "13.0", "driver from 580 on"), ("11.8", "12.6", "driver from 525 on"), ("13.0", "13.2", ""),
        ("13.0", "12.6", ""), ("", "13.0", ""),
    ],
)  # fmt: skip
def test_the_drivers_cuda_against_torchs(torch_of, monkeypatch, driver, cuda, words):
    """Within a major version any driver does (CUDA's minor version compatibility)."""
    monkeypatch.setattr(wheels, "driver_cuda", lambda: driver)
    rows = wheels.check_cards([], cuda)
    assert [level for level, *_ in rows] == (["warn"] if words else []) and all(words in row[2] for row in rows)


def test_the_drivers_cuda_is_what_nvidia_smi_says(monkeypatch):
    head = "| NVIDIA-SMI 535.54.03    Driver Version: 535.54.03    CUDA Version: 12.2     |\n"
    monkeypatch.setattr(wheels.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=head))
    assert wheels.driver_cuda() == "12.2"
    monkeypatch.setattr(wheels.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="No devices were found"))
    assert wheels.driver_cuda() == ""


def test_the_preflight_asks_for_the_card_of_the_gres_else_for_those_of_the_partition(torch_of, tmp_path, monkeypatch):
    torch_of(CU130)
    monkeypatch.setattr(preflight, "torch_cuda", lambda: "13.0")
    monkeypatch.setattr(preflight, "filesystem", lambda path: "ext4")

    def levels(gres: str, *kinds: str) -> list[str]:
        plan = replace(small(tmp_path), gpus=1, gres=gres, partition="p", local=False)
        return [check.level for check in preflight.check_packages(plan, {"p": partition_of(*kinds)})]

    assert levels("gpu:p100:1", "gpu:p100") == ["ok", "fail"] and levels("gpu:1", "gpu:p100") == ["ok", "fail"]
    assert levels("gpu:a100:1", "gpu:a100", "gpu:p100") == ["ok"] and levels("gpu:1", "gpu:a100") == ["ok"]
    assert levels("gpu:1", "gpu:a100", "gpu:p100") == ["ok", "warn"]  # it may get the other one


def test_the_doctor_looks_at_all_partitions(torch_of, tmp_path, monkeypatch):
    torch_of(CU130)
    found = {"a": partition_of("gpu:a100"), "p": partition_of("gpu:p100")}
    monkeypatch.setattr(doctor.slurm, "available", lambda: True)
    monkeypatch.setattr(doctor.slurm, "partitions", lambda: found)
    monkeypatch.setattr(doctor, "torch_cuda", lambda: "13.0")
    checks = doctor.check_machine("generic", Path(tmp_path))
    (check,) = [check for check in checks if "compute capability" in check.text]
    assert check.level == "warn" and "P100" in check.text and "cu126" in check.fix


# --- what fits into a card --------------------------------------------------------------------------------------------
def planned(*flags: str, gres: str = "gpu:a100:1", kinds: tuple[str, ...] = (), **more):
    """The plan of launch.py for a StyleGAN2 on one GPU of this gres, in a partition that has these kinds."""
    site = replace(sites.load_sites()["generic"], gres=gres)
    partitions = {"p": partition_of(*kinds)} if kinds else None
    return make_plan(options(partition="p", **more), ["--data", "phantom", *flags], site, partitions)


@pytest.mark.parametrize(
    ("gres", "kinds", "more", "batch"),
    [
        ("gpu:a100:1", (), {}, (192, 1)),
        ("gpu:a100:2", (), dict(gpus=2), (392, 1)),
        ("gpu:v100:1", (), {}, (64, 2)),  # in fp32, with 16 GB
        ("gpu:1", ("gpu:a100", "gpu:v100"), {}, (64, 2)),  # the smallest that it may get
        ("gpu:1", ("gpu:a100",), dict(nodes=2), (392, 1)),
    ],
)
def test_batch_auto_is_that_of_the_card_that_is_asked_for(tmp_path, monkeypatch, capsys, gres, kinds, more, batch):
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    flags = ("--preset", "adni256", "--batch", "auto")
    plan = planned(*flags, gres=gres, kinds=kinds, **more)
    assert (plan.config.batch, plan.config.accumulate) == batch
    assert capsys.readouterr().err.startswith(f"--batch auto: --batch {batch[0]} --accumulate {batch[1]}, about")
    flags = ("--preset", "adni256", "--batch", str(batch[0]), "--accumulate", str(batch[1]))
    same = planned(*flags, gres=gres, kinds=kinds, **more)
    assert plan.run == same.run and plan.config == same.config


def test_batch_auto_needs_to_know_the_gpu_and_a_run_keeps_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    for gres, gpus in (("gpu:1", 1), ("gpu:a100:1", 0)):
        with pytest.raises(specs.ConfigError, match="give --batch N"):
            planned("--batch", "auto", gres=gres, gpus=gpus)
    plan = planned("--batch", "auto", name="x")
    plan.run.mkdir(parents=True)
    (plan.run / "config.json").write_text(parsing.to_json(plan.config))
    again = planned("--batch", "auto", name="x", gres="gpu:v100:1")  # another card next week
    assert again.config == plan.config


def test_a_step_that_does_not_fit_is_said_with_the_flags_that_do(tmp_path, monkeypatch):
    monkeypatch.setattr(specs, "ROOT", tmp_path)
    assert preflight.check_memory(planned("--preset", "adni256")) == []
    assert preflight.check_memory(planned("--preset", "adni256", gres="gpu:1")) == []
    (warned,) = preflight.check_memory(planned("--preset", "adni256", gres="gpu:v100:1"))
    assert (
        warned.level == "warn" and "23 GB, and a V100 may have 16 GB" in warned.text and "--accumulate 2" in warned.fix
    )
    for gres, gb in (("gpu:a100:1", 12), ("gpu:v100:1", 23)):
        (line,) = preflight.check_config(planned("--preset", "adni256", gres=gres))
        assert line.level == "ok" and f"about {gb} GB per GPU" in line.text
