"""A VAE and a diffusion network at 48 px, which is no power of two, from phantoms to pictures."""

from __future__ import annotations

import json

import numpy as np
from inprocess import run_main, run_predict
from PIL import Image

from jobs.predict import load

SMALL = (
    "--resolution 48 --data phantom:24 --batch 8 --total-kimg 0.008 --checkpoint-kimg 0 --log-kimg 1 --sample-kimg 1"
)


def test_48_pixels_from_phantoms_to_pictures(packs, tmp_path):
    vae, run = tmp_path / "vae", tmp_path / "run"
    outcome = run_main("pretrain_vae.py", "--run", str(vae), *SMALL.split(), "--down", "4", packs=packs)
    assert outcome.code == 0, outcome.said
    unet = "--widths 8,16 --attention 16 --sampler heun --steps 3".split()
    words = ("train_diffusion.py", "--run", str(run), "--vae", str(vae), *SMALL.split(), *unet)
    assert "heun is far off below 30" in run_main(*words, "--dry-run", packs=packs).said
    outcome = run_main(*words, packs=packs)
    assert outcome.code == 0, outcome.said
    assert "none of the sides 12,6" in outcome.said and "heun is far off below 30" in outcome.said
    out = tmp_path / "out"
    words = ("generate", "--run", str(run), "--number", "2", "--sampler", "heun", "--steps", "3", "--out", str(out))
    outcome = run_predict(*words, packs=packs)
    assert outcome.code == 0 and outcome.said.count("heun is far off below 30") == 1, outcome.said
    pictures = [np.asarray(Image.open(path)) for path in sorted(out.rglob("*.png")) if "grid" not in path.name]
    assert {picture.shape for picture in pictures} == {(48, 48)}
    assert load(run).sample(2, seed=0, steps=2).shape == (2, 1, 48, 48)
    out = tmp_path / "back"
    outcome = run_predict("reconstruct", "--run", str(vae), "--number", "8", "--out", str(out), packs=packs)
    assert outcome.code == 0 and json.loads((vae / "config.json").read_text())["resolution"] == 48, outcome.said
