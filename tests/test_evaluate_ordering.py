"""The figures of evaluate rank an untrained, a half-trained and a trained generator, on phantoms of known anatomy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tiny import ROOT, environment

GAN = (
    "train_gan.py --preset quickstart --data phantom:800 --resolution 32 --channel-base 512 --channel-max 32 --conditional "
    "--batch 16 --ema-kimg 0.5"
)
DIFFUSION = (
    "train_diffusion.py --preset quickstart --data phantom:800 --space pixel --resolution 32 --widths 32,64 --attention 8 "
    "--head-dim 32 --ema-kimg 0.3 --warmup-kimg 0.2 --decay-kimg 12"
)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("command", "kimg", "flags"), [
    pytest.param(GAN, (0.032, 2, 12), (), id="stylegan2"),
    pytest.param(DIFFUSION, (0.064, 2, 12), ("--steps", "10"), id="diffusion"),
])  # fmt: skip
def test_more_training_is_better_by_every_distance(command, kimg, flags, tmp_path):
    env = environment(tmp_path / "packs", CUDA_VISIBLE_DEVICES="", SLURM_CPUS_PER_TASK="1")  # threads
    run, found = tmp_path / "run", []
    for total in kimg:  # the same run, extended
        train = [
            sys.executable,
            *command.split(),
            "--run",
            str(run),
            "--total-kimg",
            str(total),
            "--log-kimg",
            "1",
            "--sample-kimg",
            "100",
        ]
        done = subprocess.run(train, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        evaluate = [sys.executable, "predict.py", "evaluate", "--run", str(run), "--number", "200", *flags]
        done = subprocess.run(evaluate, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads((run / "predictions" / "evaluate" / "metrics.json").read_text()))
        print(total, json.dumps({k: found[-1][k] for k in ("distances", "ms_ssim", "class_fidelity")}), os.linesep)
    assert len({f["settings"]["features"] for f in found}) == 1
    fid, kid, coverage = ([f["distances"]["generated"][name] for f in found] for name in ("fid", "kid", "coverage"))
    assert fid[0] > 1.5 * fid[1] > 1.5 * 1.2 * fid[2] > found[-1]["distances"]["training slices"]["fid"]
    assert kid[0] > 1.5 * kid[1] > 1.5 * 1.2 * kid[2] > 0
    assert coverage[0] < 0.1 and coverage[0] <= coverage[1] <= coverage[2] and coverage[2] > 0.2
    for k in (0, 2):  # real slices look the same at every stage
        assert found[k]["distances"]["training slices"] == pytest.approx(found[1]["distances"]["training slices"])
