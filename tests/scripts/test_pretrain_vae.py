"""pretrain_vae.py: one training step in this process, and whole runs as real processes, killed and resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import pretrain_vae as script
from data.batches import Batches, to_float
from data.latents import latents_path, open_latents
from data.pack import ensure_pack
from jobs.config import parsing, specs
from jobs.config.specs import ConfigError, VaeConfig
from jobs.training import randomness, ranks
from jobs.training.weights import read_weights

SCRIPT = "pretrain_vae.py"
LENGTH = ("--total-kimg", "0.4")


# --- one step ---------------------------------------------------------------------------------------------------------
def config(*flags: str) -> VaeConfig:
    return parsing.parse_config(VaeConfig, [*tiny.FLAGS[SCRIPT], *flags])


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return ensure_pack("phantom:24", resolution=32, cache_dir=tmp_path_factory.mktemp("packs"), log=lambda *_: None)


def steps(c: VaeConfig, pack, number: int, s=None, nimg: int = 0):
    rt = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)
    s = script.build_state(c, rt.device) if s is None else s
    batches = Batches(pack, seed=c.seed, batch=c.batch, device="cpu")
    for i in range(number):
        at = nimg + i * c.batch
        script.train_step(s, script.Step(c, rt, batches, torch.float32, at, at + s.counters["skip"], s.vae))
    return s


def changed(module, before: dict) -> list[str]:
    return [k for k, v in module.state_dict().items() if not torch.equal(v, before[k])]


def copy(module) -> dict:
    return {k: v.clone() for k, v in module.state_dict().items()}


def test_the_discriminator_joins_at_its_time_and_not_before(pack):
    c = config("--gan-start-kimg", "0.008")
    s = script.build_state(c, torch.device("cpu"))
    before = copy(s.D)
    steps(c, pack, 1, s)
    assert not changed(s.D, before) and float(s.gan_balance) == 0
    steps(c, pack, 1, s, nimg=8)
    assert changed(s.D, before) and float(s.gan_balance) > 0
    assert {"loss_pixels", "loss_structure", "kl", "loss_D", "loss_adversarial", "grad_norm"} == set(s.averages.means())


def test_the_adversarial_loss_reaches_the_decoder(pack):
    """With the balance at work, the update of the decoder depends on the discriminator."""
    weights = []
    for seed in (1, 2):
        c = config("--gan-start-kimg", "0")
        s = script.build_state(c, torch.device("cpu"))
        s.gan_balance.fill_(1.0)
        torch.manual_seed(seed)
        for p in s.D.parameters():
            torch.nn.init.normal_(p, std=0.1)
        steps(c, pack, 1, s)
        weights.append(copy(s.vae.decoder))
    assert any(not torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_the_two_part_backward_equals_the_plain_gradient(pack):
    """Differentiating to the image first and then through the decoder is the chain rule: the same gradient."""
    c = dataclasses.replace(config(), gan_weight=0.0, clip=1e9)
    s = script.build_state(c, torch.device("cpu"))
    images, _ = Batches(pack, seed=c.seed, batch=c.batch, device="cpu").rows(0, 0, 8)
    noise = torch.randn(8, 2, 8, 8, generator=randomness.generator(c.seed, 0, "posterior"))
    output, mean, logvar = s.vae(images, noise)
    loss = script.reconstruction_loss(output, images) + c.structure_weight * script.structure_loss(output, images)
    (loss + c.kl_weight * script.kl_divergence(mean, logvar)).mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in s.vae.parameters()])
    s.vae.zero_grad()
    steps(c, pack, 1, s)
    assert s.averages.means()["grad_norm"] == pytest.approx(float(expected), rel=1e-4)


def test_the_perceptual_term_of_a_given_file_adds_its_gradient(pack, tmp_path):
    """The step's gradient with the file is that of the whole sum of losses in one plain backward pass."""
    from test_perceptual import narrow

    torch.save(narrow(), tmp_path / "vgg.pth")
    flags = ("--perceptual-file", str(tmp_path / "vgg.pth"), "--perceptual-weight", "0.7", "--gan-weight", "0")
    c = config(*flags, "--clip", "1e9")
    s = script.build_state(c, torch.device("cpu"))
    network = script.open_perceptual(c, torch.device("cpu"))
    images, _ = Batches(pack, seed=c.seed, batch=c.batch, device="cpu").rows(0, 0, 8)
    noise = torch.randn(8, 2, 8, 8, generator=randomness.generator(c.seed, 0, "posterior"))
    output, mean, logvar = s.vae(images, noise)
    loss = script.reconstruction_loss(output, images) + c.structure_weight * script.structure_loss(output, images)
    loss = loss + 0.7 * network(output, images) + c.kl_weight * script.kl_divergence(mean, logvar)
    loss.mean().backward()
    expected = torch.nn.utils.get_total_norm([p.grad for p in s.vae.parameters()])
    s.vae.zero_grad()
    rt = ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)
    batches = Batches(pack, seed=c.seed, batch=c.batch, device="cpu")
    script.train_step(s, script.Step(c, rt, batches, torch.float32, 0, 0, s.vae, network))
    assert s.averages.means()["grad_norm"] == pytest.approx(float(expected), rel=1e-4)
    assert s.averages.means()["loss_perceptual"] == pytest.approx(
        float(network(output, images).mean().detach()), rel=1e-4
    )


def test_a_file_that_is_no_vgg_is_refused_in_one_line(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="--perceptual-file"):
        script.open_perceptual(config("--perceptual-file", str(tmp_path / "other.pth")), torch.device("cpu"))
    with pytest.raises(ConfigError, match="no such file"):
        config("--perceptual-file", str(tmp_path / "none.pth"))


PLATEAU = (
    "--decay plateau --plateau-kimg 0.024 --warmup-kimg 0 --lr 1e-12".split()
)  # a window sees each of the 24 slices


def test_on_a_plateau_the_rate_is_halved_and_a_checkpoint_knows(pack):
    """With a rate of almost nothing the loss cannot fall: every window after the first halves the rate."""
    c = config(*PLATEAU, "--gan-weight", "0")
    s = steps(c, pack, 7)  # two windows and a third of one
    assert s.counters["lr_factor"] == 0.5 and s.window[1] == 8
    assert s.opt_vae.param_groups[0]["lr"] == pytest.approx(0.5e-12)
    other = script.build_state(c, torch.device("cpu"))
    other.load_state_dict(s.state_dict())
    steps(c, pack, 2, other, nimg=56)
    assert other.counters["lr_factor"] == 0.25 and other.window[1] == 0
    falling = steps(config(*PLATEAU, "--gan-weight", "0", "--lr", "3e-3"), pack, 6)
    assert falling.counters["lr_factor"] == 1.0


def test_losses_before_and_after_the_discriminator_joins_are_not_compared(pack):
    """It joins in the second window, which the first would otherwise call a plateau; the third is compared with the
    second."""
    flags = (*PLATEAU, "--gan-start-kimg", "0.032")
    assert steps(config(*flags), pack, 6).counters["lr_factor"] == 1.0
    assert steps(config(*flags), pack, 9).counters["lr_factor"] == 0.5


def test_nor_where_it_joins_just_between_two_windows(pack):
    """The second window is a plateau beside the first; the third, the first with the discriminator, is compared with
    nothing."""
    flags = (*PLATEAU, "--gan-start-kimg", "0.048")
    for number, factor in ((6, 0.5), (9, 0.5), (12, 0.25)):
        assert steps(config(*flags), pack, number).counters["lr_factor"] == factor


def test_gradients_are_clipped_before_the_step(pack):
    """SGD in place of AdamW shows the gradient that the step took: its norm is the bound, not the raw norm."""
    c = dataclasses.replace(config(), gan_weight=0.0, clip=0.01, warmup_kimg=0.0, decay_kimg=0.0)
    s = script.build_state(c, torch.device("cpu"))
    s.opt_vae = torch.optim.SGD(s.vae.parameters(), lr=c.lr)
    before = [p.detach().clone() for p in s.vae.parameters()]
    steps(c, pack, 1, s)
    moved = torch.nn.utils.get_total_norm([p.detach() - b for p, b in zip(s.vae.parameters(), before, strict=True)])
    assert s.averages.means()["grad_norm"] > 0.1
    assert float(moved) == pytest.approx(c.lr * 0.01, rel=1e-3)


def test_a_checkpoint_names_every_live_object_and_restores_it(pack):
    c = config("--gan-start-kimg", "0")
    s = steps(c, pack, 2)
    state = {k: v for k, v in s.state_dict().items()}
    assert set(state) == set(vars(s)) == {f.name for f in dataclasses.fields(script.TrainState)}
    import io

    file = io.BytesIO()
    torch.save(state, file)
    steps(c, pack, 2, s, nimg=16)  # the run that goes on
    other = script.build_state(dataclasses.replace(c, seed=9), torch.device("cpu"))
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    steps(c, pack, 2, other, nimg=16)
    for name in ("vae", "vae_ema", "D"):
        assert not changed(getattr(other, name), copy(getattr(s, name))), name
    assert torch.equal(other.gan_balance, s.gan_balance) and other.averages.means() == s.averages.means()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--batch", "0"), "--batch"),
        (("--lr", "nan"), "--lr"),
        (("--clip", "0"), "--clip"),
        (("--kl-weight", "-1"), "--kl-weight"),
        (("--resolution", "50"), "multiple of"),
        (("--preset", "adni999"), "adni256-ldm"),
        (("--batch", "6", "--accumulate", "4"), "multiple of 4"),
    ],
)
def test_wrong_values_are_refused(flags, says):
    with pytest.raises(ConfigError, match=says):
        config(*flags)


def test_slices_of_training_and_of_other_patients(tmp_path, monkeypatch):
    """The split that was asked for, of the size that was asked for; rank 0 alone reads all of a pack."""
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path))
    for flags, splits in (
        ((), ("train", "val")), (("--split", "val"), ("val", "test")), (("--val-split", "none"), ("train", None)),
    ):  # fmt: skip
        found = script.open_data(config("--data", "phantom:40", *flags), 0, lambda *_: None)
        assert tuple(pack and pack.meta["split"] for pack in found) == splits
        assert all(pack.images.shape[1:] == (1, 32, 32) for pack in found if pack)
    asked = []
    for name in ("ensure_pack", "ensure_held_out"):
        monkeypatch.setattr(script, name, lambda *args, **parameters: asked.append((args, parameters)))
    c = config("--data", "phantom:40", "--crop", "24", "--channels", "3", "--max-bad", "0.3")
    for rank in (0, 1):
        script.open_data(c, rank, print)
    assert [args for args, _ in asked] == 2 * [("phantom:40",), ("phantom:40", "auto")]
    assert [p.get("split", p.get("train_split")) for _, p in asked] == 4 * ["train"]
    assert [(p["verify"], p["progress"]) for _, p in asked] == [(True, True)] * 2 + [(False, False)] * 2
    for _, p in asked:
        assert (p["resolution"], p["channels"], p["crop"], p["max_bad"]) == (32, 3, 24, 0.3)


# --- whole runs -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def reference(packs, tmp_path_factory) -> Path:
    """The run that nobody disturbed, from a new interpreter."""
    run = tmp_path_factory.mktemp("reference") / "run"
    assert tiny.train(run, *LENGTH, packs=packs, script=SCRIPT, anew=True) == 0, tiny.output(run)
    return run


def test_finished_run_has_everything_and_has_learnt(reference):
    for name in ["DONE", "config.json", "metrics.jsonl", "weights.safetensors", "plots/losses.png", "samples/reals.png",
                 "samples/00000.400.png"]:  # fmt: skip
        assert (reference / name).is_file(), name
    rows = tiny.rows(reference)
    first, last = (next(r for r in order if "val_psnr" in r) for order in (rows, rows[::-1]))
    assert last["val_psnr"] > first["val_psnr"] + 2 and last["val_ssim"] > first["val_ssim"]
    figures = {"val_psnr_head", "val_ssim_head", "active_channels", "latent_mean", "latent_std", "posterior_std"}
    assert figures | {"gan_balance"} <= set(last)


def test_the_end_of_a_run_writes_the_latents_that_diffusion_takes(reference, packs):
    """Mean and log-variance of every slice under the weights that were written, and the scale of each channel."""
    sha = hashlib.sha256((reference / "weights.safetensors").read_bytes()).hexdigest()
    tensors, about = read_weights(reference / "weights.safetensors")
    vae = script.build_vae(parsing.from_dict(VaeConfig, specs.read_json(reference / "config.json")))
    vae.load_state_dict({k.removeprefix("vae."): v for k, v in tensors.items()})
    assert about["job"] == "vae"
    for split, number in (("train", 48), ("val", 4)):
        pack = ensure_pack("phantom:48", resolution=32, split=split, cache_dir=packs, log=lambda *_: None)
        latents = open_latents(latents_path(pack, sha, packs), pack, sha)
        assert latents is not None and len(latents) == len(pack.images) >= number
        with torch.no_grad():
            mean, logvar = vae.encode(to_float(torch.from_numpy(np.array(pack.images))))
        values = torch.from_numpy(np.array(latents.values)).float()
        assert torch.allclose(values[:, 0], mean, atol=5e-3) and torch.allclose(values[:, 1], logvar, atol=5e-3)
        assert latents.mean.shape == latents.std.shape == (2,)
    assert "latents per channel" in tiny.output(reference)


def test_killed_at_random_moments_ends_with_the_same_weights(reference, packs, tmp_path):
    tiny.kill_at_random_moments(tmp_path / "run", *LENGTH, packs=packs, kills=2, seed=1, script=SCRIPT)
    tiny.assert_same_run(tmp_path / "run", reference)


def test_two_ranks_killed_end_with_the_same_weights_and_the_losses_of_one(reference, packs, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.train(whole, *LENGTH, packs=packs, ranks=2, script=SCRIPT) == 0, tiny.output(whole)
    tiny.kill_at_random_moments(parts, *LENGTH, packs=packs, kills=2, seed=2, ranks=2, script=SCRIPT)
    tiny.assert_same_run(parts, whole)
    one, two = tiny.rows(reference), tiny.rows(whole)
    assert len(one) == len(two) and "val_psnr" in one[4]  # which the ranks have measured on halves of the slices
    for a, b in zip(one[:5], two[:5], strict=True):  # later, Adam has blown rounding up
        assert set(a) == set(b)
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=5e-3, abs=1e-4), (a["nimg"], key)


def test_accumulation_gives_the_same_losses(reference, packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--total-kimg", "0.16", "--accumulate", "4")
    assert tiny.train(run, *flags, packs=packs, script=SCRIPT) == 0, tiny.output(run)
    for a, b in zip(tiny.rows(reference)[:4], tiny.rows(run)[:4], strict=True):
        for key in a:
            assert a[key] == pytest.approx(b[key], rel=5e-3, abs=1e-4), (a["nimg"], key)


def test_divergence_rolls_back_once_then_stops_with_77(packs, tmp_path):
    run = tmp_path / "run"
    assert tiny.train(run, *LENGTH, "--lr", "1e30", packs=packs, script=SCRIPT) == 77
    assert tiny.output(run).count("DIVERGED") == 1
    assert all(json.loads(p.read_text())["nimg"] == 0 for p in (run / "checkpoints").glob("*.json"))


def test_another_architecture_is_refused(reference, packs):
    before = tiny.weights_hash(reference)
    flags = ("--total-kimg", "0.8", "--latent-channels", "4", "--override")
    assert tiny.train(reference, *flags, packs=packs, script=SCRIPT) == 78
    assert "--latent-channels 2 -> 4" in tiny.output(reference) and tiny.weights_hash(reference) == before
