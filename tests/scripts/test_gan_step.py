"""One training step, in process: who is updated by what, and that a checkpoint holds all that the next step needs."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import train_gan
from data.batches import Batches, sample_order, to_uint8
from data.pack import ensure_pack
from jobs.config import parsing, specs
from jobs.config.specs import GanConfig
from jobs.predict.gan_look import HeldOut, held_out_for_ada
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, judges
from jobs.training.checkpoint import Checkpoints, Diverged, to_host
from jobs.training.upkeep import Upkeep, due, replace_weights
from jobs.training.weights import read_weights

TINY = (
    "--preset quickstart --data phantom:32 --resolution 32 --channel-base 256 --channel-max 8 --z-dim 16 --w-dim 16 "
    "--batch 8 --mbstd-group 2 --threads 1 --precision fp32 --pl-weight 2 --ada mri --r1-interval 2 --pl-interval 2 "
    "--metric-kimg 0"
).split()


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    return ensure_pack("phantom:32", resolution=32, cache_dir=folder, progress=False, log=lambda text: None)


@pytest.fixture(scope="module")
def held(tmp_path_factory):
    folder, how = tmp_path_factory.mktemp("held"), dict(resolution=32, progress=False, log=lambda text: None)
    return ensure_pack("phantom:32", split="val", cache_dir=folder, **how)


class Bench:
    """A state and the steps on it."""

    def __init__(self, pack, *flags: str, held=None):
        self.c = parsing.parse_config(specs.GanConfig, [*TINY, *flags])
        self.rt = collectives.init_runtime(1)
        classes = len(pack.classes) if self.c.conditional else 0
        self.s = train_gan.build_state(self.c, classes, self.rt.device)
        self.batches = Batches(pack, seed=self.c.seed, batch=self.c.batch, device=self.rt.device)
        self.labels = torch.from_numpy(np.ascontiguousarray(pack.labels))
        self.held = None if held is None else HeldOut(self.c, pack, held, self.rt.device)

    def step(self, nimg: int) -> train_gan.Step:
        dtype = devices.precision_dtype(self.c.precision, self.rt.device)
        networks = self.s.G.synthesis, self.s.D
        return train_gan.Step(self.c, self.rt, self.batches, self.labels, dtype, nimg, *networks, held=self.held)

    def run(self, first: int, last: int) -> None:
        for nimg in range(first, last, self.c.batch):
            train_gan.train_step(self.s, self.step(nimg), nimg)


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


@pytest.mark.parametrize("loss", ["logistic", "rpgan"])
def test_each_phase_updates_its_own_network(pack, loss):
    bench = Bench(pack, "--loss", loss)
    for phase, moves in [
        (train_gan.generator_step, "G"), (train_gan.path_length_step, "G"),
        (train_gan.discriminator_step, "D"), (train_gan.gradient_penalty_step, "D"),
    ]:  # fmt: skip
        before = {name: parameters(getattr(bench.s, name)) for name in ("G", "D")}
        phase(bench.s, bench.step(8))
        changed = {name for name in before if not torch.equal(before[name], parameters(getattr(bench.s, name)))}
        assert changed == {moves}, phase.__name__


def test_the_adversarial_gradient_reaches_every_part_of_the_generator(pack):
    bench = Bench(pack)
    mapping = parameters(bench.s.G.mapping)
    before = {name: p.detach().clone() for name, p in bench.s.G.named_parameters()}
    train_gan.generator_step(bench.s, bench.step(8))
    still = {name for name, p in bench.s.G.named_parameters() if torch.equal(p, before[name])}
    assert not still and not torch.equal(mapping, parameters(bench.s.G.mapping))


def test_the_generator_learns_what_the_discriminator_prefers(pack):
    """With D held, G's steps must raise D(G(z)): the sign of its loss is right."""
    bench = Bench(pack, "--style-mixing", "0", "--ada", "off")
    z = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    before = bench.s.D(bench.s.G(z)).mean().item()
    for nimg in range(0, 80, 8):
        train_gan.generator_step(bench.s, bench.step(nimg))
    assert bench.s.D(bench.s.G(z)).mean().item() > before + 0.1


def equal(a, b) -> bool:
    """Whether two nested states are the same to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_every_live_object_is_in_the_checkpoint(pack, tmp_path):
    """All that six steps have changed is in the file, and a state that was another one is this one after loading it."""
    fresh, bench, checkpoints = Bench(pack), Bench(pack), Checkpoints(tmp_path)
    bench.run(0, 48)
    checkpoints.save(48, bench.s.state_dict())
    checkpoints.wait(raise_errors=True)
    nimg, saved = checkpoints.load_latest()
    fields = "G D G_ema opt_G opt_D scaler_G scaler_D ada averages pl_mean counters"
    assert nimg == 48 and set(saved) == set(fields.split()) == {f.name for f in dataclasses.fields(bench.s)}
    for name in ("G", "D", "G_ema"):
        module = getattr(bench.s, name)
        live = dict(module.named_parameters()) | dict(module.named_buffers())  # those left out of state_dicts as well
        assert live.keys() == saved[name].keys() and all(torch.equal(live[k], saved[name][k]) for k in live)
    for name in ("opt_G", "opt_D"):  # Adam's moments of every parameter, the mapping network's included
        moments = saved[name]["state"].values()
        assert len(moments) == len(list(getattr(bench.s, name[-1]).parameters()))
        assert all({"step", "exp_avg", "exp_avg_sq"} <= set(m) and m["exp_avg_sq"].isfinite().all() for m in moments)
    for name in ("ada", "averages"):
        now, before = vars(getattr(bench.s, name)), vars(getattr(fresh.s, name))
        changed = {key for key in now if not equal(now[key], before[key])}
        assert changed and changed <= set(saved[name]), name
    other = Bench(pack, "--seed", "9")
    other.run(0, 8)
    assert not any(
        equal(other.s.state_dict()[name], bench.s.state_dict()[name]) for name in ("G", "opt_D", "ada", "pl_mean")
    )
    other.s.load_state_dict(saved)
    for name, value in to_host(bench.s.state_dict()).items():
        assert equal(to_host(other.s.state_dict())[name], value), name


@pytest.mark.parametrize("flags", ["", "--loss rpgan --conditional --ada-kimg 0.1"])
def test_a_state_that_went_through_a_checkpoint_steps_alike(pack, held, flags):
    one, two = (Bench(pack, *flags.split(), "--seed", "0", held=held) for _ in range(2))
    one.run(0, 40)
    saved = to_host(one.s.state_dict())
    one.run(40, 80)
    two.run(0, 8)  # whatever it did before must not matter
    two.s.load_state_dict(saved)
    two.run(40, 80)
    for a, b in ((one.s.G, two.s.G), (one.s.D, two.s.D), (one.s.G_ema, two.s.G_ema)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert one.s.averages.means() == two.s.averages.means() and one.s.ada.state_dict() == two.s.ada.state_dict()
    assert one.s.ada.to_generated != 0
    assert torch.equal(one.s.pl_mean, two.s.pl_mean)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains_and_stays_near_fp32(pack, precision):
    exact, reduced = Bench(pack), Bench(pack, "--precision", precision)
    assert reduced.s.scaler_G.is_enabled() == reduced.s.scaler_D.is_enabled() == (precision == "fp16")
    exact.run(0, 8)
    reduced.run(0, 8)
    a, b = exact.s.averages.means(), reduced.s.averages.means()
    for name in ("loss_G", "loss_D", "r1", "path_length"):
        assert b[name] == pytest.approx(a[name], rel=0.1, abs=0.02), name


def test_fp16_survives_an_overflow(pack):
    bench = Bench(pack, "--precision", "fp16")
    bench.run(0, 8)
    before = parameters(bench.s.D)
    bench.s.scaler_D = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6)
    train_gan.discriminator_step(bench.s, bench.step(8))
    assert torch.equal(before, parameters(bench.s.D)) and bench.s.scaler_D.get_scale() < 2.0**120


def test_ema_and_w_average_follow_the_generator(pack):
    bench = Bench(pack)
    before = parameters(bench.s.G_ema)
    bench.run(0, 16)
    assert not torch.equal(before, parameters(bench.s.G_ema))
    assert torch.equal(bench.s.G_ema.w_avg, bench.s.G.w_avg) and bench.s.G.w_avg.abs().sum() > 0


# --- what ADA steers by -----------------------------------------------------------------------------------------------
def test_held_out_slices_are_of_the_classes_of_the_training_slices_and_all_get_their_turn(pack, held):
    c = Bench(pack, "--conditional").c
    theirs, seen = HeldOut(c, pack, held, torch.device("cpu")), []
    for look in range(8):
        order = sample_order(len(pack), c.seed, 8 * look, 8)
        images, told = theirs.rows(8 * look, 0, 8, look)
        assert told.tolist() == [pack.labels[k] for k in order]
        for i, image in enumerate(images):
            (row,) = (j for j in range(len(held)) if np.array_equal(held.images[j], to_uint8(image).numpy()))
            assert held.labels[row] == pack.labels[order[i]]
            seen.append(row)
    assert len(set(seen)) > 0.7 * len(held)
    whole, part = theirs.rows(16, 0, 8, 2), theirs.rows(16, 4, 8, 2)
    assert torch.equal(whole[0][4:], part[0]) and torch.equal(whole[1][4:], part[1])


def test_what_p_follows_is_said(pack, held):
    said: list[str] = []

    def chosen(held_out, *flags: str):
        said.clear()
        return held_out_for_ada(Bench(pack, *flags).c, pack, held_out, device=torch.device("cpu"), say=said.append)

    assert chosen(held, "--loss", "rpgan") is not None and "r_v" in said[0] and "target 0.5" in said[0]
    assert chosen(None, "--loss", "rpgan", "--ada-kimg", "200") is None and "0.3 over the first 60 kimg" in said[0]
    assert chosen(held, "--loss", "logistic") is not None and not said  # shown, not followed
    assert chosen(held, "--loss", "rpgan", "--ada", "off") is None and not said
    assert chosen(pack, "--loss", "rpgan") is None and "no held-out" in said[0]  # of a .pack, which has one split
    labels = np.zeros_like(held.labels)
    one_class = SimpleNamespace(images=held.images, labels=labels, classes=held.classes, digest="other")
    assert chosen(one_class, "--loss", "rpgan", "--conditional") is None and "no held-out" in said[0]


def test_an_overfitting_discriminator_is_seen_in_r_v(pack, held):
    """D that has learnt the training slices by heart: held-out ones are to it what generated ones are, r_v near 1."""
    bench = Bench(pack, "--loss", "rpgan", "--ada-kimg", "0.1", "--lr", "0.01", held=held)
    known = {image.numpy().tobytes() for image in Batches(pack, seed=0, batch=32, device="cpu").rows(0, 0, 32)[0]}

    def by_heart(images, labels, dtype):
        return torch.tensor([2.0 if image.numpy().tobytes() in known else -1.0 for image in images])

    stats = {}
    for name, images in (
        ("logits_real", bench.batches.rows(0, 0, 8)[0]),
        ("logits_held", bench.held.rows(0, 0, 8, 0)[0]),
    ):
        stats[name] = by_heart(images, None, None).mean()
    stats |= {"logits_fake": torch.tensor(-1.0), "sign_real": torch.tensor(1.0)}
    for step in range(8):
        bench.s.ada.step(stats, 8, 8 * step, "r_v")
    assert bench.s.ada.r_v == pytest.approx(1.0) and bench.s.ada.p == pytest.approx(64 / 100)


def test_divergence_skips_the_data_that_caused_it(pack, tmp_path, monkeypatch):
    """One poisoned batch: the run rolls back once, passes over it and finishes, with finite weights."""
    bench, real = Bench(pack), Batches.rows

    def poisoned(self, nimg, start, stop):
        images, labels = real(self, nimg, start, stop)
        return (images * float("nan") if nimg == 24 else images), labels

    monkeypatch.setattr(Batches, "rows", poisoned)
    checkpoints = Checkpoints(tmp_path)
    bench.run(0, 16)
    checkpoints.save(16, bench.s.state_dict())
    bench.run(16, 32)
    with pytest.raises(Diverged) as error:
        bench.s.check_finite()
    said: list[str] = []
    attempt = type("Attempt", (), {"say": staticmethod(said.append)})
    upkeep = Upkeep(bench.c, bench.rt, RunDir(tmp_path), bench.s, checkpoints, attempt)
    back = upkeep.roll_back(32, error.value, "lower --lr")
    assert back == 16 and bench.s.counters["skip"] == 16 and "DIVERGED" in said[0]
    for nimg in range(16, 48, 8):
        train_gan.train_step(bench.s, bench.step(nimg + bench.s.counters["skip"]), nimg)
    bench.s.check_finite()
    with pytest.raises(Diverged, match="again after a roll-back; lower --lr"):
        upkeep.roll_back(48, error.value, "lower --lr")
    upkeep.watchdog.stop()


def test_collapse_is_said_and_marks_the_checkpoint(pack, tmp_path):
    bench, said, run = Bench(pack), [], RunDir(tmp_path / "run")
    run.create()
    attempt = type("Attempt", (), {"say": staticmethod(said.append)})
    upkeep = Upkeep(bench.c, bench.rt, run, bench.s, Checkpoints(run.checkpoints, keep=9), attempt)
    marks = {}
    # A young generator is not a collapsed one; one that varied once and varies no more is, until it varies again.
    for nimg, (diversity, healthy) in {8: (0.1, True), 16: (0.95, True), 24: (0.2, False), 32: (0.9, True)}.items():
        said.clear()
        bench.s.G_ema.const.fill_(nimg)
        judges.judge(bench.c, {"diversity": diversity}, bench.s.counters, nimg, said.append)
        upkeep.save(nimg, {"G_ema": bench.s.G_ema}, {})
        upkeep.checkpoints.wait(raise_errors=True)
        assert any("MODE COLLAPSE" in line for line in said) is not healthy
        aside = run.weights.with_name("weights-healthy.safetensors")
        assert float(read_weights(run.weights)[0]["G_ema.const"].mean()) == nimg
        assert aside.exists() is not healthy
        if not healthy:
            assert float(read_weights(aside)[0]["G_ema.const"].mean()) == 16
        marks[nimg] = healthy
    assert {nimg: about["healthy"] for nimg, about in upkeep.checkpoints.committed().items()} == marks
    upkeep.watchdog.stop()


def test_a_generator_that_never_varied_is_collapsed_too():
    counters, said = {"healthy": True}, []
    judges.judge(GanConfig(), {"diversity": 0.05}, counters, 8000, said.append)
    assert counters["healthy"] and not said
    judges.judge(GanConfig(), {"diversity": 0.05}, counters, 20_000, said.append)
    assert not counters["healthy"] and "0.05" in said[0]


def test_intervals_are_a_function_of_images_seen():
    ticks = [nimg for nimg in range(0, 200, 8) if due(nimg, 8, 0.02)]
    assert ticks == [0, 24, 40, 64, 80, 104, 120, 144, 160, 184]
    assert not any(due(nimg, 8, 0.0) for nimg in range(0, 200, 8))


def test_weights_from_before_a_collapse_stay(tmp_path):
    run = RunDir(tmp_path)
    aside = run.weights.with_name("weights-healthy.safetensors")

    def write(value: float, healthy: bool) -> None:
        replace_weights(run, {"G_ema": {"w": torch.full((2,), value)}}, {"job": "stylegan2", "config": {}}, healthy)

    def value(path) -> float:
        return float(read_weights(path)[0]["G_ema.w"][0])

    write(1.0, True)
    assert not aside.exists()
    write(2.0, False)
    write(3.0, False)
    assert value(run.weights) == 3 and value(aside) == 1
    write(4.0, True)
    assert value(run.weights) == 4 and not aside.exists()
