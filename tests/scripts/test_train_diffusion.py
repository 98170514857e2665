"""train_diffusion.py: the VAE it finds, one training step in this process, and whole runs, killed and resumed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from ventricles import measure_ventricle

import predict
import train_diffusion as script
from data.latents import Latents, latents_path
from data.pack import ensure_pack
from jobs.config import parsing
from jobs.config.specs import ConfigError, DiffusionConfig, VaeConfig
from jobs.predict import diffusion_look, latent_space
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, ranks
from jobs.training.weights import read_weights, write_weights
from models import schedules
from models.vae import VAE, LatentScale

SCRIPT = "train_diffusion.py"
LENGTH = ("--total-kimg", "0.4")
CPU = torch.device("cpu")


def config(*flags: str) -> DiffusionConfig:
    return parsing.parse_config(DiffusionConfig, [*tiny.FLAGS[SCRIPT], *flags])


# --- one step ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return ensure_pack("phantom:24", resolution=32, cache_dir=tmp_path_factory.mktemp("packs"), log=lambda *_: None)


def pixels(pack, *flags: str):
    """(config, data, state) of a run on pixels, small enough to step in a test."""
    c = config("--space", "pixel", "--widths", "8,8,8", "--attention", "8", *flags)
    data = script.Data(c, pack, None, None, CPU)
    return c, data, script.build_state(c, data, len(pack.classes), CPU)


def step(c, data, s, nimg=0, rank=0, world=1):
    rt = ranks.Runtime(rank, world, rank, CPU, 1)
    script.train_step(c, rt, s, data, schedules.make_schedule(c.schedule), s.unet, torch.float32, nimg)


def test_gradients_are_clipped_before_the_step(pack):
    """SGD in place of AdamW shows the gradient that the step took: its norm is the bound, not the raw norm."""
    c, data, s = pixels(pack, "--clip", "0.01", "--warmup-kimg", "0", "--decay-kimg", "0")
    s.opt = torch.optim.SGD(s.unet.parameters(), lr=c.lr)
    before = [p.detach().clone() for p in s.unet.parameters()]
    step(c, data, s)
    moved = torch.nn.utils.get_total_norm([p.detach() - b for p, b in zip(s.unet.parameters(), before, strict=True)])
    assert s.averages.means()["grad_norm"] > 0.1 and float(moved) == pytest.approx(c.lr * 0.01, rel=1e-3)


def test_the_loss_scale_is_undone_before_clipping(pack):
    """A scaler that multiplies by 1024 must not change the norm that is clipped, nor the step."""

    class Scaler:
        def scale(self, x):
            return x * 1024

        def unscale_(self, optimizer):
            for group in optimizer.param_groups:
                for p in group["params"]:
                    p.grad /= 1024

        def step(self, optimizer):
            optimizer.step()

        def update(self):
            pass

    plain, scaled = pixels(pack, "--clip", "0.5"), pixels(pack, "--clip", "0.5")
    scaled[2].scaler = Scaler()
    step(*plain)
    step(*scaled)
    assert scaled[2].averages.means() == pytest.approx(plain[2].averages.means(), rel=1e-5)
    for a, b in zip(plain[2].unet.parameters(), scaled[2].unet.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_dropped_labels_train_the_unconditional_embedding(pack):
    for rate, moves in ((0.0, False), (0.99, True)):
        c, data, s = pixels(pack, "--class-dropout", str(rate), "--weight-decay", "0")
        for p in s.unet.parameters():  # the last layers start at zero and would let no gradient through
            torch.nn.init.normal_(p, std=0.1)
        before = s.unet.embed_class.weight.detach().clone()
        step(c, data, s)
        assert bool((s.unet.embed_class.weight[-1] != before[-1]).any()) == moves


def test_dropout_repeats_with_the_position_and_differs_between_ranks(pack, monkeypatch):
    """Its only seed is (seed, position, rank): the same step twice has the same masks, on whatever state the process
    is; another position or rank has others. (What two real ranks do with it: test_reference_diffusion.py.)"""
    monkeypatch.setattr(collectives.dist, "all_reduce", lambda *_, **__: None)  # a rank of two, alone
    c, data, s = pixels(pack, "--dropout", "0.5")

    def masks(nimg: int, rank: int) -> torch.Tensor:
        other, seen = copy.deepcopy(s), []
        other.unet.middle[0].dropout.register_forward_hook(lambda _, x, out: seen.append((out == 0) & (x[0] != 0)))
        torch.manual_seed(len(drawn))
        step(c, data, other, nimg, rank, world=2)
        return torch.stack(seen)

    drawn: list[torch.Tensor] = []
    for nimg, rank in ((8, 0), (8, 0), (8, 1), (16, 0)):
        drawn.append(masks(nimg, rank))
    first, again, of_rank_1, later = drawn
    assert torch.equal(first, again) and 0.4 < float(first.float().mean()) < 0.6
    assert all(float((first != other).float().mean()) > 0.4 for other in (of_rank_1, later))


def test_a_checkpoint_names_every_live_object_and_restores_it(pack):
    c, data, s = pixels(pack, "--dropout", "0.3")
    for i in range(2):
        step(c, data, s, nimg=8 * i)
    state = s.state_dict()
    assert set(state) == set(vars(s)) == {f.name for f in dataclasses.fields(script.TrainState)}
    assert set(state["scale"]) == {"mean", "std"}
    file = io.BytesIO()
    torch.save(state, file)
    step(c, data, s, nimg=16)
    other = script.build_state(dataclasses.replace(c, seed=9), data, len(pack.classes), CPU)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    step(c, data, other, nimg=16)
    for name in ("unet", "unet_ema"):
        for a, b in zip(getattr(s, name).parameters(), getattr(other, name).parameters(), strict=True):
            assert torch.equal(a, b), name
    assert s.averages.means() == other.averages.means()


def test_latents_are_scaled_by_their_own_figures():
    """Mean 0 and deviation 1 in every channel, measured on these latents; no other model's constant."""
    gen = np.random.default_rng(0)
    mean = gen.normal(3, 5, (400, 2, 4, 4)) * np.array([1, 0.1])[:, None, None]
    values = np.stack([mean, np.full_like(mean, math.log(0.01))], axis=1).astype(np.float16)
    spread = np.sqrt(values[:, 0].astype(float).var((0, 2, 3)) + 0.01)
    latents = Latents("", values, np.zeros(400, np.int64), values[:, 0].astype(float).mean((0, 2, 3)), spread)
    data = script.Data(config(), types.SimpleNamespace(classes=[]), latents, None, CPU)
    x0, _ = data.rows(0, 0, 400, torch.randn(400, 2, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(x0.mean((0, 2, 3)), torch.zeros(2), atol=0.01)
    assert torch.allclose(x0.std((0, 2, 3)), torch.ones(2), atol=0.01)
    assert not hasattr(data, "encoder") and torch.allclose(
        data.scale.restore(x0).mean((0, 2, 3)), torch.tensor(latents.mean).float(), atol=0.05
    )


def test_images_of_clean_samples_lie_between_black_and_white(pack):
    """Pixels and decoded latents alike, 70 at once in parts that fit the device; latents by the scale that is given."""
    seen = []

    def decode(z):
        seen.append(len(z))
        return z[:, :1]

    values = np.zeros((24, 2, 2, 4, 4), np.float16)
    latents = Latents("", values, np.zeros(24, np.int64), np.array([1.0, 0.0]), np.array([2.0, 1.0]))
    vae = types.SimpleNamespace(decoder=types.SimpleNamespace(to=lambda _: decode))
    x = torch.randn(70, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    data = script.Data(config(), pack, latents, vae, CPU)
    assert torch.allclose(data.to_images(x, data.scale, torch.float32), (2 * x[:, :1] + 1).clamp(-1, 1), atol=1e-6)
    other = LatentScale(torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0]))
    assert torch.allclose(data.to_images(x, other, torch.float32), (3 * x[:, :1]).clamp(-1, 1), atol=1e-6)
    assert seen == 2 * [32, 32, 6]
    plain = script.Data(config("--space", "pixel"), pack, None, None, CPU)
    assert torch.equal(plain.to_images(3 * x, plain.scale, torch.float32), (3 * x).clamp(-1, 1))


def test_the_loss_on_other_patients_repeats_and_is_told_by_noise_level(pack):
    c, data, s = pixels(pack)
    rt = ranks.Runtime(0, 1, 0, CPU, 1)
    other = ensure_pack(
        "phantom:160", resolution=32, split="val", log=lambda *_: None, cache_dir=Path(pack.path).parent
    )
    schedule = schedules.make_schedule(c.schedule)
    sampler = diffusion_look.Sampler(c, pack, data, other, None, schedule, rt, torch.float32)
    first = sampler.validate(s.unet)
    torch.manual_seed(1)
    again = diffusion_look.Sampler(c, pack, data, other, None, schedule, rt, torch.float32).validate(s.unet)
    assert first == again and set(first) == {"val_loss", *(f"val_loss_{k}" for k in range(4))}
    # The untrained network says 0, so a loss is the mean square of noise - x0, whatever the time.
    x0, _, noise, t = sampler.looked_at
    losses = (noise - x0).square().flatten(1).mean(1)
    assert first["val_loss"] == pytest.approx(float(losses.mean()), rel=1e-4)
    for k in range(4):
        inside = (t >= k / 4) & (t < (k + 1) / 4)
        assert abs(int(inside.sum()) - len(t) / 4) <= 1
        assert first[f"val_loss_{k}"] == pytest.approx(float(losses[inside].mean()), rel=1e-4)
    alone = diffusion_look.Sampler(c, pack, data, None, None, schedule, rt, torch.float32).validate(s.unet)
    assert set(alone) == {"train_loss", *(f"train_loss_{k}" for k in range(4))}


# --- flags and the choice of the VAE ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--target", "epsilon"), "pure noise"),
        (("--schedule", "zero-snr", "--target", "epsilon"), "--target v"),
        ("--times fast-nonuniform --sampler ddim --fast-steps 3".split(), "4 to 1000"),
        (("--widths", "8,x"), "whole numbers"),
        (("--times", "fast-uniform"), "--sampler ddim"),
        (("--dropout", "1"), "probability"),
        (("--space", "pixel", "--vae", "x"), "--vae"),
        (("--steps", "0"), "--steps"),
        (("--batch", "7", "--accumulate", "2"), "multiple of 2"),
    ],
)
def test_wrong_values_are_refused(flags, says):
    with pytest.raises(ConfigError, match=says):
        config(*flags)


def vae_run(folder: Path, done: bool = True, **fields) -> Path:
    """A finished VAE run of 32 px, as far as train_diffusion.py looks at one."""
    run = RunDir(folder)
    run.create()
    c = parsing.parse_config(VaeConfig, tiny.FLAGS["pretrain_vae.py"])
    c = dataclasses.replace(c, run=str(folder), **fields)
    torch.manual_seed(0)
    vae = VAE(c.channels, c.latent_channels, width=c.width, down=c.down, num_res=c.num_res)
    about = {"job": "vae", "config": parsing.result_fields(c), "nimg": 0}
    write_weights(run.weights, {"vae": vae.state_dict()}, about)
    run.write_config(dataclasses.asdict(c))
    if done:
        run.mark_done()
    return folder


def test_the_newest_finished_vae_that_fits_is_taken(tmp_path):
    c = config("--run", str(tmp_path / "diffusion"))
    with pytest.raises(ConfigError, match="pipeline"):
        script.find_vae(c)
    for age, name in ((3, "a"), (5, "b"), (4, "c")):
        os.utime(vae_run(tmp_path / name) / "DONE", (1e9 + age, 1e9 + age))
        os.utime(tmp_path / name / "weights.safetensors", (1e9 - age, 1e9 - age))
    assert script.find_vae(c) == tmp_path / "b" / "weights.safetensors"
    for named in (tmp_path / "a", tmp_path / "a" / "weights.safetensors"):
        assert script.find_vae(dataclasses.replace(c, vae=str(named))) == tmp_path / "a" / "weights.safetensors"


def of_another_job(folder: Path) -> None:
    stored = json.loads((folder / "config.json").read_text())
    del stored["latent_channels"]
    (folder / "config.json").write_text(json.dumps(stored))


UNFIT = {
    "data": {"data": "phantom:7"}, "resolution": {"resolution": 64}, "channels": {"channels": 3}, "crop": {"crop": 16},
    "unfinished": {"done": False}, "no weights": lambda f: (f / "weights.safetensors").unlink(),
    "another job": of_another_job, "damaged": lambda f: (f / "config.json").write_text("{"),
    "anybody's": lambda f: f.chmod(0o777),
}  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_a_vae_run_that_does_not_fit_is_passed_over(tmp_path, name):
    """Each for one reason alone; and an older one that fits is taken instead."""
    c = config("--run", str(tmp_path / "diffusion"))
    unfit = UNFIT[name]
    folder = vae_run(tmp_path / "unfit", **(unfit if isinstance(unfit, dict) else {}))
    if not isinstance(unfit, dict):
        assert script.find_vae(c).parent == folder
        unfit(folder)
    with pytest.raises(ConfigError, match="pipeline"):
        script.find_vae(c)
    os.utime(vae_run(tmp_path / "old") / "DONE", (1e9, 1e9))
    assert script.find_vae(c) == tmp_path / "old" / "weights.safetensors"


@pytest.mark.parametrize("name", ["resolution", "channels", "crop"])
def test_weights_of_a_vae_for_other_images_are_refused(tmp_path, name):
    folder = vae_run(tmp_path / "vae", **UNFIT[name])
    with pytest.raises(ConfigError, match=f"trained with --{name} {UNFIT[name][name]}, this run has --{name} "):
        script.load_vae(config(), folder / "weights.safetensors")


def test_weights_that_are_of_no_vae_are_refused(tmp_path):
    folder = vae_run(tmp_path / "vae")
    path = folder / "weights.safetensors"
    tensors, about = read_weights(path)
    del about["sha256"]
    vae = script.load_vae(config(), path)
    assert all(torch.equal(v, tensors[f"vae.{k}"]) for k, v in vae.state_dict().items())
    write_weights(path, {"vae": vae.state_dict()}, about | {"job": "diffusion"})
    with pytest.raises(ConfigError, match="weights of a diffusion run"):
        script.load_vae(config(), path)
    write_weights(path, {"vae": vae.encoder.state_dict()}, about)
    with pytest.raises(ConfigError, match="--vae"):
        script.load_vae(config(), path)


def test_the_vae_is_copied_once_so_that_its_run_may_go_on(tmp_path):
    c, said = config("--run", str(tmp_path / "diffusion")), []
    vae = vae_run(tmp_path / "vae")
    run = RunDir(c.run)
    run.create()
    script.adopt_vae(c, run, said.append)
    first = script.copied_vae(run.path).read_bytes()
    assert first == (vae / "weights.safetensors").read_bytes() and not any("WARNING" in line for line in said)
    vae_run(vae, latent_channels=3)
    script.adopt_vae(c, run, said.append)
    assert script.copied_vae(run.path).read_bytes() == first and len(said) == 1
    other = RunDir(tmp_path / "other")
    other.create()
    (vae / "DONE").unlink()
    script.adopt_vae(dataclasses.replace(c, run=str(other.path), vae=str(vae)), other, said.append)
    assert (
        "WARNING" in said[1]
        and script.copied_vae(other.path).read_bytes() == (vae / "weights.safetensors").read_bytes()
    )


def test_one_that_does_not_fit_is_never_copied(tmp_path):
    c = config("--run", str(tmp_path / "diffusion"), "--vae", str(vae_run(tmp_path / "vae", resolution=64)))
    run = RunDir(c.run)
    run.create()
    with pytest.raises(ConfigError, match="--resolution 64"):
        script.adopt_vae(c, run, print)
    assert not script.copied_vae(run.path).exists()


# --- packs and latents ------------------------------------------------------------------------------------------------
def test_slices_of_training_and_of_other_patients_and_their_latents(tmp_path, monkeypatch):
    """In this order, under the copied VAE; rank 0 alone chooses the VAE and reads all of a cache."""
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    c = config(
        "--run",
        str(tmp_path / "run"),
        "--vae",
        str(vae_run(tmp_path / "vae")),
        "--data",
        "phantom:40",
        "--threads",
        "1",
    )
    run, verified, ensure, threads = RunDir(c.run), [], latent_space.ensure_latents, []
    run.create()
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(devices, "default_threads", lambda ranks: 7 * ranks)
    monkeypatch.setattr(latent_space, "ensure_latents", lambda *a, **k: verified.append(k["verify"]) or ensure(*a, **k))
    packs, latents, _ = script.open_data(c, run, ranks.Meeting(), torch.device("cpu"), lambda *_: None)
    assert [p.meta["split"] for p in packs] == ["train", "val"]
    sha = hashlib.sha256(script.copied_vae(run.path).read_bytes()).hexdigest()
    for pack, found in zip(packs, latents, strict=True):
        assert found.path == str(latents_path(pack, sha)) and np.array_equal(found.labels, pack.labels)
    monkeypatch.setattr(script, "adopt_vae", lambda *_: pytest.fail("not on this rank"))
    again = script.open_data(
        c, run, types.SimpleNamespace(rank=1, world=2, local_rank=1), torch.device("cpu"), lambda *_: None
    )
    assert [x.path for x in again[1]] == [x.path for x in latents] and verified == [True, True, False, False]
    script.encode_packs(
        dataclasses.replace(c, threads=0), run, packs, ranks.Meeting(), torch.device("cpu"), lambda *_: None
    )
    assert threads == [1, 1, 7]
    for flags, splits in ((("--split", "val"), ["val", "test"]), (("--val-split", "none"), ["train"])):
        c = config("--run", str(tmp_path / "run"), "--space", "pixel", "--data", "phantom:40", *flags)
        packs, latents, _ = script.open_data(c, run, ranks.Meeting(), torch.device("cpu"), lambda *_: None)
        assert [p.meta["split"] for p in packs] == splits and latents == []


def test_a_conditional_run_needs_a_class_for_every_slice(tmp_path, monkeypatch):
    labels = np.array([0, 1, 1, -1])
    found = types.SimpleNamespace(classes=["AD", "NC"], labels=labels)
    monkeypatch.setattr(script, "ensure_pack", lambda *_, **__: found)
    monkeypatch.setattr(script, "ensure_held_out", lambda *_, **__: None)
    c = config("--space", "pixel", "--conditional", "--run", str(tmp_path / "run"))
    with pytest.raises(ConfigError, match="without a class"):
        script.open_data(c, RunDir(c.run), ranks.Meeting(), torch.device("cpu"), print)
    plain = dataclasses.replace(c, conditional=False)
    assert script.open_data(plain, RunDir(c.run), ranks.Meeting(), torch.device("cpu"), print) == ([found], [], None)
    labels[3] = 0
    assert script.open_data(c, RunDir(c.run), ranks.Meeting(), torch.device("cpu"), print) == ([found], [], None)


# --- whole runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> str:
    return str(vae_run(tmp_path_factory.mktemp("vae") / "vae"))


@pytest.fixture(scope="module")
def reference(packs, vae, tmp_path_factory) -> Path:
    """The run that nobody disturbed, from a new interpreter."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert tiny.train(run, *LENGTH, "--vae", vae, packs=packs, script=SCRIPT, anew=True) == 0, tiny.output(run)
    return run


def test_finished_run_has_everything_and_has_learnt(reference):
    for name in [
        "DONE",
        "vae.safetensors",
        "metrics.jsonl",
        "weights.safetensors",
        "plots/losses.png",
        "samples/reals.png",
        "samples/00000.400.png",
    ]:
        assert (reference / name).is_file(), name
    rows = tiny.rows(reference)
    first, last = (next(r for r in order if "val_loss" in r) for order in (rows, rows[::-1]))
    assert last["val_loss"] < first["val_loss"]
    assert {"diversity", "diversity_AD", "loss", "grad_norm", "lr"} <= set(last)
    tensors, about = read_weights(reference / "weights.safetensors")
    rooms = {key.split(".")[0] for key in tensors}
    assert rooms == {"unet", "latent_scale", "vae_decoder"}
    assert (
        about["job"] == "diffusion" and about["vae"]["down"] == 4 and about["shape"] == [2, 8, 8] and about["classes"]
    )


def test_the_encoder_runs_once_and_never_in_training(reference, packs, vae, tmp_path):
    """A second run on the same slices and VAE takes the latents from the cache, unread by any encoder."""
    caches = sorted(packs.glob("latents-*.npy"))
    stamps = [p.stat().st_mtime_ns for p in caches]
    assert len(caches) == 2  # training slices and other patients
    run = tmp_path / "run"
    assert tiny.train(run, "--total-kimg", "0.016", "--vae", vae, packs=packs, script=SCRIPT) == 0, tiny.output(run)
    text = tiny.output(run)
    assert text.count("re-used") >= 2 and "encoding" not in text
    assert sorted(packs.glob("latents-*.npy")) == caches and [p.stat().st_mtime_ns for p in caches] == stamps


def test_killed_at_random_moments_ends_with_the_same_weights(reference, packs, vae, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, "--vae", vae, packs=packs, kills=2, seed=1, script=SCRIPT)
    tiny.assert_same_run(tmp_path / "run", reference)


def test_two_ranks_killed_end_with_the_same_weights(packs, vae, tmp_path):
    whole, parts, flags = tmp_path / "whole", tmp_path / "parts", (*LENGTH, "--vae", vae)
    assert tiny.train(whole, *flags, packs=packs, ranks=2, script=SCRIPT) == 0, tiny.output(whole)
    tiny.kill_at_random_moments(parts, *flags, packs=packs, kills=2, seed=2, ranks=2, script=SCRIPT)
    tiny.assert_same_run(parts, whole)


def test_ranks_and_accumulation_do_not_change_the_losses(packs, vae, tmp_path):
    flags = ("--total-kimg", "0.16", "--log-kimg", "0.016", "--dropout", "0", "--vae", vae)
    one, two, parts = tmp_path / "one", tmp_path / "two", tmp_path / "parts"
    assert tiny.train(one, *flags, packs=packs, script=SCRIPT) == 0, tiny.output(one)
    assert tiny.train(two, *flags, packs=packs, ranks=2, script=SCRIPT) == 0, tiny.output(two)
    assert tiny.train(parts, *flags, "--accumulate", "4", packs=packs, script=SCRIPT) == 0, tiny.output(parts)
    for other in (two, parts):
        assert len(tiny.rows(one)) == len(tiny.rows(other)) == 11
        for a, b in zip(tiny.rows(one), tiny.rows(other), strict=True):
            assert set(a) == set(b)
            for key in a:
                assert a[key] == pytest.approx(b[key], rel=2e-3, abs=1e-4), (a["nimg"], key)


def test_pixels_and_fast_times(packs, tmp_path):
    run = tmp_path / "run"
    flags = "--total-kimg 0.032 --space pixel --schedule linear --target epsilon --times fast-nonuniform"
    flags += " --sampler ddim --widths 8,8,8"
    assert tiny.train(run, *flags.split(), packs=packs, script=SCRIPT) == 0, tiny.output(run)
    tensors, about = read_weights(run / "weights.safetensors")
    assert about["vae"] is None and not any(key.startswith("vae_decoder") for key in tensors)


def test_divergence_rolls_back_once_then_stops_with_77(packs, vae, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, *LENGTH, "--lr", "1e30", "--vae", vae, packs=packs, script=SCRIPT) == 77
    assert tiny.output(run).count("DIVERGED") == 1
    assert all(json.loads(p.read_text())["nimg"] == 0 for p in (run / "checkpoints").glob("*.json"))


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_the_quickstarts_make_phantoms_whose_ventricles_tell_the_classes_apart(tmp_path):
    """Both presets as they are, then slices in 10 calls: AD's ventricles are larger than NC's, by at least half of what
    they are on real phantoms and by far more than chance."""
    vae, run, out = tmp_path / "vae", tmp_path / "diffusion", tmp_path / "out"
    for name, flags in (("pretrain_vae.py", ["--run", vae]), (SCRIPT, ["--run", run, "--vae", vae])):
        command = [sys.executable, name, "--preset", "quickstart", *map(str, flags)]
        assert subprocess.run(command, cwd=tiny.ROOT, env=tiny.environment(tmp_path)).returncode == 0
    last = [row for row in tiny.rows(vae) if "val_psnr" in row][-1]
    assert last["val_psnr"] > 26 and last["val_ssim_head"] > 0.85 and last["active_channels"] >= 4
    assert [row for row in tiny.rows(run) if "diversity" in row][-1]["diversity"] > 0.6
    flags = ["generate", "--run", run, "--out", out, "--number", 200, "--steps", 10, "--format", "npz"]
    assert predict.main(predict.parse_args(list(map(str, flags)))) == 0
    with np.load(out / "slices.npz") as made:
        fake = {k: np.array([measure_ventricle(i[0]) for i in made["images"][made["labels"] == k]]) for k in (0, 1)}
    pack = ensure_pack("phantom:2000", resolution=64, cache_dir=tmp_path, log=lambda *_: None)
    real = {k: np.array([measure_ventricle(i[0]) for i in pack.images[pack.labels == k][:200]]) for k in (0, 1)}
    AD, NC = pack.classes.index("AD"), pack.classes.index("NC")
    difference = fake[AD].mean() - fake[NC].mean()
    error = math.hypot(*(fake[k].std(ddof=1) / len(fake[k]) ** 0.5 for k in (AD, NC)))
    assert difference > 0.5 * (real[AD].mean() - real[NC].mean()) and difference > 5 * error


def test_without_a_vae_one_line_names_what_to_do(packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, *LENGTH, packs=packs, script=SCRIPT) == 78
    lines = [line for line in tiny.output(run).splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "pretrain_vae.py" in lines[0] and "pipeline" in lines[0]
