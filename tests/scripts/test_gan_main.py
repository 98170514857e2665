"""main() and train() of train_gan.py in this process: what is built, looked at, judged, saved and refused.

The step itself is held by test_reference_gan.py, killing and resuming by test_train_gan.py.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from inprocess import run_main
from PIL import Image
from safetensors.torch import load_file

import train_gan
from data.batches import Batches
from data.pack import ensure_pack
from jobs.config import parsing, sizes, specs
from jobs.config.specs import GanConfig
from jobs.predict import gan_look, yardstick
from jobs.run import stopping
from jobs.training import devices, judges, randomness, ranks, upkeep
from jobs.training.upkeep import Record
from jobs.training.weights import read_weights
from models import augment
from models.stylegan2 import Generator

CPU = torch.device("cpu")
NO_CHECKPOINTS = ("--checkpoint-kimg", "0", "--log-kimg", "1", "--sample-kimg", "1")


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    """On the CPU, without the plot of the losses at the end (test_log.py has it)."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(upkeep, "plot_losses", lambda *args: None)


def config(*flags: str) -> specs.GanConfig:
    return parsing.parse_config(specs.GanConfig, ["--preset", "quickstart", "--run", "unused", *flags])


def checkpoint(run: Path, nimg: int) -> dict:
    return torch.load(run / "checkpoints" / f"{nimg:012d}.pt", weights_only=True)


def sidecars(run: Path) -> dict[int, bool]:
    """{images: healthy} of the committed checkpoints."""
    found = [json.loads(path.read_text()) for path in sorted((run / "checkpoints").glob("*.json"))]
    return {about["nimg"]: about["healthy"] for about in found}


# --- what is built ---------------------------------------------------------------------------------------------------
def test_networks_optimizers_and_ada_are_as_the_flags_say():
    c = config(
        *(
            "--resolution 32 --channels 3 --channel-base 256 --channel-max 16 --z-dim 6 --w-dim 10 --mapping-layers 3 "
            "--mbstd-group 2 "
            "--batch 8 --lr 0.01 --pl-weight 2 --pl-interval 4 --gamma 1 --r1-interval 16 --ada mri --ada-target 0.3 "
            "--ada-kimg 7 --seed 3"
        ).split()
    )
    s = train_gan.build_state(c, 5, CPU)
    for G in (s.G, s.G_ema):
        assert (G.resolution, G.channels, G.num_classes, G.z_dim, G.w_dim) == (32, 3, 5, 6, 10)
        assert len(G.mapping.layers) == 3
        assert [layer.weight.shape[0] for layer in G.layers] == [16] * 5 + [8] * 2
    assert (s.D.resolution, s.D.channels, s.D.num_classes, s.D.mbstd_group) == (32, 3, 5, 2)
    assert len(s.D.mapping.layers) == 3 and s.D.from_rgb.weight.shape[0] == 8 and s.D.linear.weight.shape[0] == 16
    for (key, a), b in zip(s.G.state_dict().items(), s.G_ema.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), key
    assert not any(p.requires_grad for p in s.G_ema.parameters())
    for optimizer, module, k in ((s.opt_G, s.G, 4), (s.opt_D, s.D, 16)):
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in module.parameters()]
        ours = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        assert ours == pytest.approx((0.01 * k / (k + 1), 0, 0.99 ** (k / (k + 1)), 1e-8, 0), abs=0)
    assert (s.ada.target, s.ada.speed_kimg, s.ada.p) == (0.3, 7, 0)
    assert float(s.pl_mean) == 0 and s.counters == {
        "skip": 0, "rollbacks": 0, "healthy": True,
    }  # fmt: skip
    again, other = train_gan.build_state(c, 5, CPU), train_gan.build_state(replace(c, seed=4), 5, CPU)
    assert torch.equal(s.D.linear.weight, again.D.linear.weight) and torch.equal(s.G.const, again.G.const)
    assert not torch.equal(s.D.linear.weight, other.D.linear.weight) and not torch.equal(s.G.const, other.G.const)


@pytest.mark.parametrize(("flags", "rates"), [
    (("--pl-weight", "0", "--gamma", "0"), (0.01, 0.01)),
    (("--pl-weight", "0", "--gamma", "1", "--r1-interval", "1"), (0.01, 0.005)),
    (("--pl-weight", "1", "--pl-interval", "1", "--gamma", "0"), (0.005, 0.01)),
])  # fmt: skip
def test_without_a_penalty_adam_is_not_corrected_for_it(flags, rates):
    s = train_gan.build_state(config("--lr", "0.01", "--resolution", "32", *flags), 0, CPU)
    assert (s.opt_G.param_groups[0]["lr"], s.opt_D.param_groups[0]["lr"]) == pytest.approx(rates, abs=0)
    assert [o.param_groups[0]["betas"][1] for o in (s.opt_G, s.opt_D)] == pytest.approx(
        [0.99 ** (r / 0.01) for r in rates]
    )


def test_penalties_come_every_few_steps_and_not_without_a_weight():
    c = replace(config(), batch=8, pl_weight=2.0, pl_interval=2, gamma=1.0, r1_interval=3)
    seen = [train_gan.penalties_due(c, nimg) for nimg in range(0, 56, 8)]
    assert seen == [(k % 2 == 0, k % 3 == 0) for k in range(7)]
    assert train_gan.penalties_due(replace(c, pl_weight=0.0), 0) == (False, True)
    assert train_gan.penalties_due(replace(c, gamma=0.0), 0) == (True, False)


# --- reduced precision -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def pack(packs):
    return ensure_pack("phantom:32", resolution=32, cache_dir=packs, progress=False, log=lambda text: None)


def one_step(pack, c: specs.GanConfig) -> tuple[train_gan.TrainState, train_gan.Step]:
    torch.set_num_threads(1)
    rt = ranks.Runtime(0, 1, 0, CPU, 1)
    s = train_gan.build_state(c, len(pack.classes) if c.conditional else 0, CPU)
    step = train_gan.Step(
        c, rt, Batches(pack, seed=c.seed, batch=c.batch, device=CPU), torch.from_numpy(pack.labels),
        devices.precision_dtype(c.precision, CPU), 0, s.G.synthesis, s.D,
    )  # fmt: skip
    return s, step


SMALL = (
    "--resolution 32 --channel-base 128 --channel-max 8 --z-dim 6 --w-dim 10 --batch 8 --mbstd-group 2 --pl-weight 2 "
    "--pl-interval 2 "
    "--gamma 1 --r1-interval 2 --ada mri"
).split()


def test_the_convolutions_of_each_phase_run_in_its_type(pack, monkeypatch):
    """fp16 in the losses; fp32 in the penalties, which take gradients of gradients and have no loss scale."""
    s, step = one_step(pack, config(*SMALL, "--loss", "rpgan", "--precision", "fp16"))
    seen: set = set()
    synthesis = type(s.G).synthesis

    def watched(self, ws, noise=None, dtype=None):
        seen.add(("G", dtype))
        return synthesis(self, ws, noise, dtype)

    monkeypatch.setattr(type(s.G), "synthesis", watched)
    s.D.register_forward_pre_hook(lambda module, args, kwargs: seen.add(("D", kwargs["dtype"])), with_kwargs=True)
    half, full = torch.float16, torch.float32
    for phase, types in (
        (train_gan.generator_step, {("G", half), ("D", half)}),
        (train_gan.path_length_step, {("G", full)}),
        (train_gan.discriminator_step, {("G", half), ("D", half)}),
        (train_gan.gradient_penalty_step, {("G", half), ("D", full)}),
    ):
        seen.clear()
        step.synthesis = s.G.synthesis
        phase(s, step)
        assert seen == types, phase.__name__
    seen.clear()
    gan_look.Sampler(step.c, pack, step.batches, step.rt, step.dtype)(s.G_ema, 8)
    assert seen == {("G", half)}
    assert [train_gan.exact_dtype(t) for t in (half, torch.bfloat16, full)] == [full, torch.bfloat16, full]


@pytest.mark.parametrize("phase", ["generator_step", "path_length_step", "discriminator_step", "gradient_penalty_step"])
def test_a_loss_scale_is_undone_before_the_step_and_penalties_have_none(pack, phase):
    """Adam's first step does not depend on the size of a gradient, its mean squares do."""
    squares = []
    for precision in ("fp32", "fp16"):
        s, step = one_step(pack, config(*SMALL, "--precision", precision))
        if precision == "fp16":
            s.scaler_G, s.scaler_D = (torch.amp.GradScaler("cpu", init_scale=2.0**k) for k in (6, 9))
        getattr(train_gan, phase)(s, step)
        stepped = s.opt_G if phase in ("generator_step", "path_length_step") else s.opt_D
        squares.append(sum(float(moments["exp_avg_sq"].sum()) for moments in stepped.state.values()))
    assert squares[1] == pytest.approx(squares[0], rel=0.1)


def test_the_compiled_networks_are_for_the_losses_alone(packs, tmp_path, monkeypatch):
    """Penalties take the plain ones: a compiled network has no gradient of its gradient."""
    calls: list[str] = []
    types: set[torch.dtype] = set()

    def compiled(function, dynamic):
        name = "D" if isinstance(function, torch.nn.Module) else "G"

        def call(*args, dtype):
            calls.append(name)
            types.add(dtype)
            return function(*args, dtype=dtype)

        return call

    phases = {}
    for name in ("generator_step", "path_length_step", "discriminator_step", "gradient_penalty_step"):
        phase = getattr(train_gan, name)

        def counted(s, step, name=name, phase=phase):
            before = len(calls)
            phase(s, step)
            phases[name] = set(calls[before:])

        monkeypatch.setattr(train_gan, name, counted)
    monkeypatch.setattr(train_gan, "compiles", lambda asked, *_: asked)
    monkeypatch.setattr(torch, "compile", compiled)
    flags = ("--total-kimg", "0.008", "--loss", "rpgan", *NO_CHECKPOINTS)
    half = ("--compile", "--precision", "bf16")
    assert run_main("train_gan.py", "--run", str(tmp_path / "a"), *half, *flags, packs=packs).code == 0
    both, none = {"G", "D"}, set()
    assert phases == dict(
        generator_step=both, path_length_step=none, discriminator_step=both, gradient_penalty_step=none
    )
    assert types == {torch.bfloat16}
    assert json.loads((tmp_path / "a" / "provenance.json").read_text())["precision"] == "bfloat16"
    calls.clear()
    assert run_main("train_gan.py", "--run", str(tmp_path / "b"), *flags, packs=packs).code == 0
    assert not calls


# --- what a person sees ----------------------------------------------------------------------------------------------
def rms_distance(images: torch.Tensor) -> float:
    """Root mean square distance of all pairs of different images, at 16 px."""
    x = torch.nn.functional.avg_pool2d(images, images.shape[-1] // 16).double().flatten(1)
    pairs = [(i, j) for i in range(len(x)) for j in range(i)]
    return math.sqrt(np.mean([float((x[i] - x[j]).square().mean()) for i, j in pairs]))


def tiles(picture: Image.Image, columns: int, count: int, side: int, caption: int = 0) -> np.ndarray:
    """The images of a grid, which have two pixels between and around them."""
    pixels = np.asarray(picture)
    corners = [(2 + i // columns * (side + caption + 2), 2 + i % columns * (side + 2)) for i in range(count)]
    return np.stack([pixels[y : y + side, x : x + side] for y, x in corners])


def as_bytes(images: torch.Tensor) -> np.ndarray:
    return ((images[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


@pytest.mark.parametrize(("conditional", "count"), [(False, 90), (True, 40)])
def test_grids_and_diversity_are_of_fixed_latents_against_the_first_reals(conditional, count):
    c = config("--resolution", "32", "--z-dim", "6", "--w-dim", "10", "--seed", "3", "--channel-base", "128",
               *(["--conditional"] if conditional else []))  # fmt: skip
    random = np.random.default_rng(0)
    pack = SimpleNamespace(
        images=random.integers(0, 256, (count, 1, 32, 32), dtype=np.uint8), classes=["NC", "MCI", "AD"],
        labels=random.integers(0, 3, count),
    )  # fmt: skip
    s = train_gan.build_state(c, 3 if conditional else 0, CPU)
    batches, rt = Batches(pack, seed=c.seed, batch=16, device=CPU), ranks.Runtime(0, 1, 0, CPU, 1)
    sampler = gan_look.Sampler(c, pack, batches, rt, torch.float32)
    with torch.no_grad():
        for p in s.G.parameters():
            p.zero_()  # only the moving average is looked at
    picture, figures = sampler(s.G_ema, 8)

    z = torch.randn(48, 6, generator=randomness.generator(3, 0, "grid"))
    labels = torch.tensor([row % 3 for row in range(6) for _ in range(8)]) if conditional else None
    images = s.G_ema(z, labels)
    real, real_labels = batches.rows(0, 0, min(count, 64))
    caption = 12 if conditional else 0
    difference = tiles(picture, 8, 48, 32, caption).astype(int) - as_bytes(images)
    assert picture.size == (8 * 34 + 2, 6 * (34 + caption) + 2) and np.abs(difference).max() <= 1
    assert figures["diversity"] == pytest.approx(rms_distance(images) / rms_distance(real), rel=1e-4)
    shown = min(count, 48)
    reals = sampler.reals()
    assert np.array_equal(tiles(reals, 8, shown, 32, caption), as_bytes(real[:shown]))
    if not conditional:
        assert set(figures) == {"diversity"}
        return
    assert set(figures) == {"diversity", "diversity_NC", "diversity_MCI", "diversity_AD"}
    for k, name in enumerate(pack.classes):
        expected = rms_distance(images[labels == k]) / rms_distance(real[real_labels == k])
        assert figures[f"diversity_{name}"] == pytest.approx(expected, rel=1e-4)
    for grid, of in ((picture, labels), (reals, real_labels)):  # the same words are the same pixels, below each image
        words = {}
        for i, k in enumerate(of[:shown].tolist()):
            x, y = 2 + i % 8 * 34, 2 + i // 8 * 46 + 32
            words.setdefault(k, set()).add(np.asarray(grid)[y : y + 12, x - 1 : x + 33].tobytes())
        assert all(len(w) == 1 for w in words.values()) and len(set.union(*words.values())) == 3


def test_grids_of_large_slices_are_smaller_and_equal_reals_have_no_diversity():
    pack = SimpleNamespace(images=np.zeros((5, 1, 32, 32), np.uint8), classes=["NC"], labels=np.zeros(5, np.int64))
    c = config("--resolution", "32")
    rt, batches = ranks.Runtime(0, 1, 0, CPU, 1), Batches(pack, seed=0, batch=16, device=CPU)
    sizes = {}
    for side in (32, 128, 256):
        sampler = gan_look.Sampler(replace(c, resolution=side), pack, batches, rt, torch.float32)
        sizes[side] = (sampler.width, len(sampler.z))
    assert sizes == {32: (8, 48), 128: (8, 48), 256: (6, 24)}
    s = train_gan.build_state(c, 0, CPU)
    sampler = gan_look.Sampler(c, pack, batches, rt, torch.float32)
    assert sampler(s.G_ema, 0)[1] == {}  # an untrained network's noise says nothing
    assert sampler(s.G_ema, 10**6)[1] == {}  # nothing to compare with, no verdict


# --- collapse --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("seen", "nimg", "collapsed"), [
    ([0.71, 0.34], 8, True), ([0.69, 0.34], 8, False),  # it must have been there once: at twice the limit
    ([0.9, 0.35], 8, False), ([0.9, 0.349], 8, True), ([0.9, 0.1, 0.9], 8, False),
    ([0.9, 0.5, 0.34], 8, True),  # the best of all looks counts, not the last
    ([0.099], 20_000, True), ([0.099], 19_992, False), ([0.1], 20_000, False), ([0.2], 10**6, False),
])  # fmt: skip
def test_when_a_run_counts_as_collapsed(seen, nimg, collapsed):
    counters, said = {"healthy": True}, []
    for value in seen:
        said.clear()
        judges.judge(GanConfig(), {"diversity": 0.95, "diversity_AD": value}, counters, nimg, said.append)
    assert counters["healthy"] is not collapsed and any("MODE COLLAPSE" in line for line in said) is collapsed
    assert counters["best_diversity"] == max(seen)
    before = dict(counters)
    judges.judge(GanConfig(), {}, counters, nimg, said.append)
    assert counters == before


def test_checkpoints_of_a_collapsed_run_are_not_the_healthy_ones(packs, tmp_path, monkeypatch):
    """The last look before a checkpoint is its mark; the newest healthy one outlives --keep, and its weights stay
    beside the collapsed ones. A look at an untrained generator says nothing."""
    values = dict(zip(range(0, 56, 8), [0.01, 0.8, 0.8, 0.2, 0.2, 0.3, 0.34], strict=True))
    looked: list[int] = []

    def ratio(fake, real):
        looked.append(8 * len(looked))
        return values[looked[-1]]

    kinds, step_done, run = [], Record.step_done, tmp_path / "run"
    monkeypatch.setattr(gan_look, "diversity_ratio", ratio)
    monkeypatch.setattr(
        Record, "step_done", lambda self, nimg, kind: (kinds.append((nimg, kind)), step_done(self, nimg, kind))
    )
    often = ("--sample-kimg", "0.008", "--checkpoint-kimg", "0.008", "--log-kimg", "0.008")
    flags = ("--run", str(run), *often, "--keep", "1", "--pl-interval", "2", "--r1-interval", "3")
    outcome = run_main("train_gan.py", *flags, "--total-kimg", "0.032", packs=packs)
    assert outcome.code == 0 and outcome.said.count("WARNING: MODE COLLAPSE") == 2, outcome.said
    assert outcome.said.count("  but          MODE COLLAPSE") == 1
    assert sidecars(run) == {16: True, 32: False}
    healthy, reals = checkpoint(run, 16)["G_ema"], (run / "samples" / "reals.png").stat()
    outcome = run_main("train_gan.py", *flags, "--total-kimg", "0.048", packs=packs)
    assert outcome.code == 0 and outcome.said.count("WARNING: MODE COLLAPSE") == 2, outcome.said
    assert outcome.said.count("  but          MODE COLLAPSE") == 1
    assert sidecars(run) == {16: True, 48: False} and looked == list(range(0, 56, 8))
    assert (run / "samples" / "reals.png").stat().st_ino == reals.st_ino  # drawn for a fresh run only
    aside, now = load_file(run / "weights-healthy.safetensors"), load_file(run / "weights.safetensors")
    last = checkpoint(run, 48)
    for key, value in healthy.items():
        assert torch.equal(aside[f"G_ema.{key}"], value) and torch.equal(now[f"G_ema.{key}"], last["G_ema"][key])
    assert last["counters"] == {
        "skip": 0,
        "rollbacks": 0,
        "healthy": False,
        "best_diversity": 0.8,
        "last_diversity": 0.34,
        "ahead": 0,
    } | {name: text for name, text in last["counters"].items() if name == "verdict MODE COLLAPSE"}
    assert "0.34" in last["counters"]["verdict MODE COLLAPSE"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("diversity") for row in rows] == [None, *list(values.values())[1:]]
    # The work of a step is counted by what was due at its beginning.
    assert kinds == [(nimg + 8, (nimg % 16 == 0, nimg % 24 == 0)) for nimg in range(0, 48, 8)]


# --- main() ----------------------------------------------------------------------------------------------------------
def test_main_hands_its_flags_to_the_data_and_writes_where_its_weights_come_from(packs, tmp_path, monkeypatch):
    """The pack of these flags and of no others; classes and geometry in the weights; a start from another run's
    weights."""
    asked, made = [], []

    def watched(*args, **kwargs):
        asked.append((args, kwargs))
        made.append(ensure_pack(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(yardstick, "ensure_pack", watched)
    first, run = tmp_path / "first", tmp_path / "run"
    flags = (
        "--data",
        "phantom:24",
        "--crop",
        "192",
        "--channels",
        "3",
        "--split",
        "test",
        "--max-bad",
        "0.25",
        "--threads",
        "1",
        "--conditional",
        "--seed",
        "2",
        "--ada-kimg",
        "0.01",
        "--ada-target",
        "-1",
        *NO_CHECKPOINTS,
    )
    assert run_main("train_gan.py", "--run", str(first), *flags, "--total-kimg", "0.032", packs=packs).code == 0
    (((data,), parameters),) = asked
    keys = "resolution channels crop split max_bad verify progress poll"
    expected = (32, 3, 192, "test", 0.25, True, True, stopping.raise_if_asked)
    assert data == "phantom:24" and tuple(parameters[key] for key in keys.split()) == expected
    _, about = read_weights(first / "weights.safetensors")
    geometry = about["geometry"]
    assert (geometry["crop"], geometry["resolution"], geometry["square"]) == (192, 32, 256)
    assert about["classes"] == ["NC", "AD"] and about["job"] == "stylegan2" and about["nimg"] == 32
    assert about["config"]["crop"] == 192 and about["config"]["seed"] == 2 and "keep" not in about["config"]
    data = json.loads((first / "data.json").read_text())
    drawn = augment.fingerprint(augment.KINDS["mri"])
    assert data == {"classes": ["NC", "AD"], "digests": {"test": made[0].digest}, "slices": 2, "augmentation": drawn}
    begun = json.loads((first / "attempts.jsonl").read_text().splitlines()[0])
    assert (begun["nimg"], begun["precision"], begun["world"], begun["threads"]) == (0, "float32", 1, 1)

    # Networks from there, all else from the beginning; once, and not again when the run goes on.
    loads = []
    load = train_gan.load_initial_weights
    monkeypatch.setattr(train_gan, "load_initial_weights", lambda *args: (loads.append(args[1:3]), load(*args)))
    flags = ("--run", str(run), *flags, "--init-from", str(first))
    assert run_main("train_gan.py", *flags, "--keep", "9", "--total-kimg", "0.008", packs=packs).code == 0
    old, new = checkpoint(first, 32), checkpoint(run, 0)
    for name in ("G", "D", "G_ema"):
        assert all(torch.equal(old[name][key], new[name][key]) for key in old[name]), name
        assert not torch.equal(
            old[name]["mapping.layers.0.weight"], checkpoint(first, 0)[name]["mapping.layers.0.weight"]
        )
    assert not new["opt_G"]["state"] and not new["opt_D"]["state"]
    assert old["ada"]["p"] == 0.8 and new["ada"]["p"] == 0 and old["pl_mean"] > 0 and new["pl_mean"] == 0
    assert run_main("train_gan.py", *flags, "--keep", "9", "--total-kimg", "0.016", packs=packs).code == 0
    assert loads == [(("G", "D", "G_ema"), str(first))]
    assert [json.loads(line)["nimg"] for line in (run / "attempts.jsonl").read_text().splitlines()] == [0, 8, 8, 16]
    assert json.loads((run / "config.json").read_text())["total_kimg"] == 0.016


def test_a_finished_or_stopped_run_is_left_alone(packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--run", str(run), "--total-kimg", "0.008", *NO_CHECKPOINTS)
    assert run_main("train_gan.py", *flags, packs=packs).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "status.json"}
    outcome = run_main("train_gan.py", *flags, packs=packs)
    assert outcome.code == 0 and "is done" in outcome.said and f"generate --run {run} --number 64" in outcome.said
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "status.json"}
    # A person's STOP holds for what Slurm starts again by itself, and not for a person's next command.
    (run / "STOP").touch()
    os.utime(run / "STOP", (1e9, 1e9))  # long before this process began
    longer = ("--run", str(run), "--total-kimg", "0.016", *NO_CHECKPOINTS)
    outcome = run_main("train_gan.py", *longer, packs=packs, SLURM_JOB_ID="1", SLURM_RESTART_COUNT="1")
    assert outcome.code == 0 and sorted(sidecars(run)) == [0, 8] and (run / "STOP").exists()
    assert json.loads((run / "config.json").read_text())["total_kimg"] == 0.008 and (run / "DONE").exists()
    assert run_main("train_gan.py", *longer, packs=packs).code == 0
    assert sorted(sidecars(run)) == [8, 16] and not (run / "STOP").exists()


def test_a_finished_run_of_other_flags_is_not_said_to_be_done(packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--run", str(run), "--total-kimg", "0.008", *NO_CHECKPOINTS)
    assert run_main("train_gan.py", *flags, packs=packs).code == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more, said in (("--lr", "0.01"), "--lr"), (("--seed", "9"), "--seed"), (("--z-dim", "8"), "architecture"):
        outcome = run_main("train_gan.py", *flags, *more, packs=packs)
        assert outcome.code == 78 and said in outcome.said and "is done" not in outcome.said
    outcome = run_main("pretrain_vae.py", "--run", str(run), packs=packs)
    assert outcome.code == 78 and "is a run of stylegan2, not of vae" in outcome.said
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_other_data_are_refused(packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--run", str(run), "--total-kimg", "0.008", *NO_CHECKPOINTS)
    assert run_main("train_gan.py", *flags, packs=packs).code == 0
    about = json.loads((run / "data.json").read_text())
    about["digests"]["train"] = "0" * 64
    (run / "data.json").write_text(json.dumps(about))
    longer = (*flags[:2], "--total-kimg", "0.016", *NO_CHECKPOINTS)
    assert run_main("train_gan.py", *longer, packs=packs).code == 78
    assert sorted(sidecars(run)) == [0, 8] and json.loads((run / "config.json").read_text())["total_kimg"] == 0.008
    assert (run / "DONE").exists()  # what is refused has changed nothing


def test_classes_that_are_not_there_are_refused_before_anything_is_trained(packs, tmp_path):
    data = tmp_path / "flat"
    data.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{i}.png")
    flags = ("--run", str(tmp_path / "run"), "--data", str(data), "--conditional", "--total-kimg", "0.008")
    for more in ((), ("--dry-run",)):
        outcome = run_main("train_gan.py", *flags, *more, packs=packs)
        assert outcome.code == 78 and "--conditional" in outcome.said and "Traceback" not in outcome.said
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_batch_that_does_not_fall_into_the_ranks_of_a_slurm_step_is_refused(packs, tmp_path):
    """torchrun's WORLD_SIZE is known when flags are read, the ranks of a Slurm step are not."""
    outcome = run_main("train_gan.py", "--run", str(tmp_path / "run"), packs=packs,
                       SLURM_PROCID="0", SLURM_STEP_ID="0", SLURM_STEP_NUM_TASKS="3", SLURM_JOB_ID="1")  # fmt: skip
    assert outcome.code == 78 and "3 ranks" in outcome.said and not (tmp_path / "run").exists()


def test_a_dry_run_prints_the_config_alone_to_standard_output(packs, tmp_path):
    run = tmp_path / "run"
    outcome = run_main("train_gan.py", "--run", str(run), "--dry-run", "--batch", "16", packs=packs, WORLD_SIZE="2")
    assert outcome.code == 0 and not run.exists()
    printed = json.loads(outcome.out)
    c = parsing.from_dict(specs.GanConfig, printed)
    assert printed == asdict(c) and c.batch == 16 and c.resolution == 32
    assert f"{sizes.gan_memory_gb(c, 2):.1f} GB" in outcome.err and "2 GPU(s)" in outcome.err
    assert run_main("train_gan.py", "--run", str(run), "--total-kimg", "0.008", *NO_CHECKPOINTS, packs=packs).code == 0
    outcome = run_main("train_gan.py", "--run", str(run), "--dry-run", "--channel-max", "4", packs=packs)
    assert outcome.code == 78 and "--channel-max 8 -> 4" in outcome.said


def test_the_last_grid_is_of_the_weights_that_were_saved(packs, tmp_path):
    run = tmp_path / "run"
    flags = ("--run", str(run), "--total-kimg", "0.024", "--lr", "0.02", *NO_CHECKPOINTS)
    assert run_main("train_gan.py", *flags, packs=packs).code == 0
    assert sorted(path.name for path in (run / "samples").glob("*.png")) == [
        "00000.000.png",
        "00000.024.png",
        "reals.png",
    ]
    G = Generator(resolution=32, channel_base=256, channel_max=8, z_dim=16, w_dim=16, mapping_layers=2)
    z = torch.randn(48, 16, generator=randomness.generator(0, 0, "grid"))
    for nimg, file in ((0, "00000.000.png"), (24, "00000.024.png")):
        state = checkpoint(run, nimg)
        G.load_state_dict(state["G_ema"])
        with Image.open(run / "samples" / file) as picture:
            shown = tiles(picture, 8, 48, 32).astype(int)
        with torch.no_grad():
            assert np.abs(shown - as_bytes(G(z))).max() <= 1
            G.load_state_dict(state["G"])
            assert nimg == 0 or np.abs(shown - as_bytes(G(z))).max() > 1
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["ada_p"] == checkpoint(run, 24)["ada"]["p"] and last["pl_mean"] == float(checkpoint(run, 24)["pl_mean"])
