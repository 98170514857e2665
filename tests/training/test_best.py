"""The best weights of a run: which they are, that they fit their checkpoint, and what is said of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections import defaultdict
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import tiny
import torch
from by_hand import two_ranks
from inprocess import run_main, run_predict

import train_gan
from data.pack import ensure_pack
from jobs.cluster import show, status
from jobs.config import kinds, rules, sizes
from jobs.config.specs import ConfigError, GanConfig, VaeConfig
from jobs.predict.features import read_encoder
from jobs.predict.gan_look import Sampler
from jobs.predict.named import UsageError, weights_of
from jobs.predict.trained import load
from jobs.predict.yardstick import Yardstick
from jobs.run.rundir import RunDir
from jobs.run.states import RunState
from jobs.training import best, checkpoint, ranks, upkeep
from jobs.training.checkpoint import Diverged
from jobs.training.upkeep import State, Upkeep
from jobs.training.weights import read_weights, write_weights
from jobs.view.figures import weights_of as said_of
from jobs.view.report import facts
from models import encoder, quality
from models.encoder import encoder_size
from models.loading import load_generator

FLAGS = (
    "--data phantom:200 --total-kimg 0.064 --log-kimg 0.024 --sample-kimg 0.048 --checkpoint-kimg 0.016 "
    "--metric-kimg 0.016 --keep-weights 2"
).split()


# --- the rule ---------------------------------------------------------------------------------------------------------
def looked(values: list[float], of: str = "x", name: str = "kid", **counters) -> dict:
    counters = {"healthy": True, **counters}
    for i, value in enumerate(values, 1):
        best.look(counters, {name: value, "fid": 1.0}, of, 10 * i)
    return counters


def test_the_best_is_the_lowest_so_far_and_the_first_of_equal_ones():
    counters = looked([3.0, 1.0, 2.0, 1.0])
    assert (counters["best_figure"], counters["best_nimg"], counters["looked_nimg"]) == (1.0, 20, 40)
    assert best.measured(counters) == {"kid": 1.0}
    assert best.columns(counters) == {"best_kid": 1.0, "best_kimg": 0.02}
    assert kinds.best_text(best.columns(counters)) == "kid 1 at 0.02 kimg"
    assert looked([2.0, math.nan])["best_figure"] == 2.0  # what is no number is no figure
    assert looked([2.0], name="val_l1")["best_of"] == "val_l1 x"


def test_a_run_that_is_not_healthy_has_no_best_weights():
    counters = looked([1.0, 0.5], healthy=False)
    assert "best_nimg" not in counters and best.columns(counters) == {} and not best.stale(counters, 1)
    counters["healthy"] = True
    best.look(counters, {"kid": 0.7}, "x", 30)
    counters["healthy"] = False
    best.look(counters, {"kid": 0.1}, "x", 40)
    assert (counters["best_figure"], counters["best_nimg"]) == (0.7, 30)


def test_without_a_figure_and_before_the_first_step_nothing_is_written_down():
    counters = {"healthy": True}
    best.look(counters, {"diversity": 1.0}, "x", 10)
    best.look(counters, {"kid": 1.0}, "x", 0)
    assert counters == {"healthy": True}


def test_figures_in_other_units_start_anew():
    counters = looked([1.0, 2.0])
    best.look(counters, {"kid": 50.0}, "another network", 30)
    assert (counters["best_figure"], counters["best_nimg"]) == (50.0, 30)
    best.look(counters, {"val_l1": 70.0}, "another network", 40)
    assert best.columns(counters) == {"best_val_l1": 70.0, "best_kimg": 0.04}


def test_a_third_of_the_run_without_anything_better_is_said_once():
    counters, said, stale = {"healthy": True}, [], []
    for i, value in enumerate([3.0, 2.0, 5.0, 5.0, 5.0, 1.0, 5.0, 5.0, 5.0], 1):
        was = best.stale(counters, 90)
        best.look(counters, {"kid": value}, "x", 10 * i)
        best.warn(counters, was, 90, said.append)
        stale.append(best.stale(counters, 90))
    assert stale == [False] * 4 + [True] + [False] * 2 + [False, True]
    assert len(said) == 2 and "nothing better than kid 2 at 0.02 kimg for a third of the run" in said[0]
    assert not best.stale(counters, 91) and "--stop-when-worse ends a run here" in said[1]
    best.warn(counters, False, 90, said.append, ends=True)
    assert "The run ends here: --stop-when-worse" in said[2]


@pytest.mark.parametrize(("cls", "flags", "fix"), [
    (GanConfig, dict(total_kimg=28.0, metric_kimg=6.9), ""), (GanConfig, dict(total_kimg=28.0, metric_kimg=7.0), "5.6"),
    (GanConfig, dict(total_kimg=28.0), "--metric-kimg 5.6"), (VaeConfig, dict(sample_kimg=4.0), ""),
    (VaeConfig, dict(sample_kimg=40.0, total_kimg=100.0), "--sample-kimg 20"),
])  # fmt: skip
def test_a_run_that_is_to_stop_when_worse_looks_often_enough(cls, flags, fix):
    """The best, and three looks that are worse, before the end."""
    c = cls(data="phantom", stop_when_worse=True, **flags)
    line = rules.patience_note(c)
    assert line.endswith(fix) and bool(line) == bool(fix) and not rules.patience_note(replace(c, stop_when_worse=False))


def test_that_it_looks_too_seldom_is_said_by_a_run_and_by_its_dry_run(room):
    words = ("train_gan.py", *FLAGS, "--stop-when-worse", "--run", room / "seldom")
    dry = run_main(*words, "--dry-run", packs=room / "packs")
    assert dry.code == 0 and dry.said.count("--stop-when-worse ends nothing here") == 1, dry.said
    outcome = quick(room, room / "seldom", "--stop-when-worse")
    assert outcome.code == 0 and outcome.said.count("--stop-when-worse ends nothing here") == 1, outcome.said


def test_one_unlucky_look_is_not_a_third_of_a_run():
    assert not best.stale(looked([1.0, 2.0]), 30) and not best.stale(looked([1.0, 2.0, 2.0]), 30)
    assert best.stale(looked([1.0, 2.0, 2.0, 2.0]), 30)


def test_a_run_that_ended_early_and_is_made_longer_has_all_its_patience_again():
    counters = looked([1.0, 2.0, 2.0, 2.0, 2.0])
    for total in (60, 60):
        best.renew(counters, total)
        assert best.stale(counters, total)
    best.renew(counters, 90)
    assert not best.stale(counters, 90)
    for nimg in (60, 70, 80):
        assert not best.stale(counters, 90)
        best.look(counters, {"kid": 2.0}, "x", nimg)
    assert best.stale(counters, 90)


def test_best_weights_of_a_checkpoint_that_was_never_finished_never_were(tmp_path):
    """A killed run wrote them and not the checkpoint, or the checkpoint and did not get to give them their name."""
    run, weights = RunDir(tmp_path), {"G_ema": {"w": torch.zeros(2)}}
    for kept, nimg, counters in (("old", 20, {"best_nimg": 10}), ("new", 20, {"best_nimg": 20}), ("old", 20, {})):
        write_weights(run.best, weights, {"config": {}, "nimg": 10})
        write_weights(run.waiting_best, weights, {"config": {}, "nimg": nimg})
        best.settle(run, counters)
        assert read_weights(run.best)[1]["nimg"] == {"old": 10, "new": 20}[kept] and not run.waiting_best.exists()
    run.waiting_best.write_bytes(b"half")
    best.settle(run, {"best_nimg": 10})
    assert run.best.exists() and not run.waiting_best.exists()


# --- one run ----------------------------------------------------------------------------------------------------------
def quick(room, run, *flags):
    """main() with an encoder of two steps, and without what is for people only and costs more than the training."""
    board = SimpleNamespace(scalars=lambda *_: None, image=lambda *_: None, about=lambda *_: None, close=lambda: None)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (encoder, "FEWEST_STEPS", 2), (encoder, "EPOCHS", 0), (upkeep, "plot_losses", lambda *_: None),
            (upkeep, "TensorBoard", lambda *_, **__: board), (os, "fsync", lambda _: None),
            (train_gan, "step_flops", lambda *_: defaultdict(float)),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(target, name, value))
        return run_main("train_gan.py", *FLAGS, *flags, "--run", run, packs=room / "packs")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    return tmp_path_factory.mktemp("best")


@pytest.fixture(scope="module")
def trained(room) -> RunDir:
    outcome = quick(room, room / "run")
    assert outcome.code == 0 and "ends nothing here" not in outcome.said, outcome.said
    (room / "said").write_text(outcome.said)
    return RunDir(room / "run")


def test_a_run_measures_its_samples_and_keeps_its_best_weights(room, trained):
    rows = tiny.rows(trained.path, timing=True)
    at = {row["nimg"]: row["kid"] for row in rows if "kid" in row}
    assert list(at) == [16, 32, 48, 64] and len({row["kid_train"] for row in rows if "kid" in row}) == 1
    for name in ("fid", "precision", "recall", "coverage"):
        assert all(name in row and f"{name}_train" in row for row in rows if "kid" in row)
    assert all(0 <= row["metric_wait"] < 1 for row in rows if "metric_wait" in row) and rows[-1]["metric_wait"] > 0
    lowest = min(at, key=at.get)
    about = read_weights(trained.best)[1]
    assert about["nimg"] == lowest and about["measured"] == {"kid": at[lowest]}
    assert (rows[-1]["best_kid"], rows[-1]["best_kimg"]) == (at[lowest], lowest / 1000)
    kept = {path.name: read_weights(path)[1]["nimg"] for path in trained.kept().values()}
    assert kept == {"weights-0.024.safetensors": 24, "weights-0.048.safetensors": 48}
    said = (room / "said").read_text()
    assert "KID" in said and f"best         kid {at[lowest]:.4g} at {lowest / 1000:g} kimg" in said
    curve = next(line for line in said.splitlines() if line.startswith("  kid "))
    assert all(f"{value:.3g} at {nimg / 1000:g}" in curve for nimg, value in at.items()) and "training slices" in curve


@pytest.fixture(scope="module")
def remade(room, trained):
    """(draw(labels), feature network, packs) of the end of the run, made again of what it left."""
    tensors, about = read_weights(trained.weights)
    G = load_generator(tensors, about["config"], 0)
    packs = [ensure_pack("phantom:200", resolution=32, split=s, cache_dir=room / "packs", log=lambda _: None)
             for s in ("train", "val")]  # fmt: skip
    (path,) = (room / "packs").glob("encoder-*.safetensors")
    network = read_encoder(path, dict(channels=1, size=encoder_size(32), classes=2), packs[0].digest)
    c = SimpleNamespace(z_dim=16, seed=0, labelled=False)
    sampler = mock.Mock(c=c, z=torch.zeros(1), dtype=torch.float32)
    return partial(Sampler.draws, sampler, G), network, packs


def kid(a: torch.Tensor, b: torch.Tensor) -> float:
    """The unbiased estimate, pair by pair."""

    def mean(x, y) -> float:
        values = [
            (float(p @ q) / len(p) + 1) ** 3 for i, p in enumerate(x) for j, q in enumerate(y) if x is not y or i != j
        ]
        return sum(values) / len(values)

    return mean(a, a) + mean(b, b) - 2 * mean(a, b)


def test_figures_are_those_of_the_same_samples_measured_by_hand(trained, remade):
    """The last ones: latents, noise and features drawn again; KID in a slow loop."""
    draws, network, packs = remade
    draw = draws(torch.zeros(64, dtype=torch.int64))
    fake, real = (
        network(torch.cat([draw(range(50)), draw(range(50, 64))])).double(),
        network(torch.from_numpy(packs[1].images[:].copy())).double(),
    )
    spread = [round(i * 199 / 63) for i in range(64)]
    train = network(torch.from_numpy(packs[0].images[spread])).double()
    row = tiny.rows(trained.path)[-1]
    assert row["kid"] == pytest.approx(kid(fake, real), rel=1e-4)
    assert row["kid_train"] == pytest.approx(kid(train, real), rel=1e-3)
    expected = quality.set_figures(fake, real, torch.Generator().manual_seed(0))  # held against others elsewhere
    for name in ("fid", "precision", "recall", "coverage"):
        assert row[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_was_cut_off_is_the_undisturbed_one(room, trained):
    """Killed after its best weights were written and before their checkpoint was: they are found again, to the bit."""
    run, commit, nimg = RunDir(room / "cut"), checkpoint.atomic_write, read_weights(trained.best)[1]["nimg"]

    def dying(path, content):
        if path.name == f"{nimg:012d}.json":
            raise SystemExit  # which ends its thread without a word
        commit(path, content)

    with mock.patch.object(checkpoint, "atomic_write", dying):
        quick(room, run.path, "--total-kimg", str(nimg / 1000), "--keep-weights", "0")
    (run.path / "DONE").unlink()
    assert run.waiting_best.exists() and read_weights(run.best)[1]["nimg"] < nimg
    outcome = quick(room, run.path)
    assert outcome.code == 0, outcome.said
    assert tiny.rows(run.path) == tiny.rows(trained.path)
    for name in ("weights.safetensors", "weights-best.safetensors"):
        assert (run.path / name).read_bytes() == (trained.path / name).read_bytes()


def test_a_roll_back_takes_the_best_back():
    """What was found in steps that were taken back is no best and is never written; a checkpoint's best stays."""
    kept, before = object.__new__(Upkeep), looked([3.0, 2.0])
    kept.s, kept.rt = State(), ranks.Runtime(0, 1, 0, torch.device("cpu"), 1)
    kept.s.counters = {"rollbacks": 0, "skip": 0, **before}
    kept.checkpoints = mock.Mock()
    kept.checkpoints.load_latest.return_value = (20, {"counters": dict(kept.s.counters)})
    kept.attempt, kept.held, kept.held_at, kept.holding = mock.Mock(), None, -1, threading.Lock()
    best.look(kept.s.counters, {"kid": 1.0}, "x", 30)
    kept.hold(30, {"net": torch.nn.Linear(1, 1)})
    assert kept.held[1] == {"nimg": 30, "measured": {"kid": 1.0}}
    assert kept.roll_back(40, Diverged("nan"), "") == 20
    assert kept.held is None and best.measured(kept.s.counters) == {"kid": 2.0}
    kept.hold(20, {"net": torch.nn.Linear(1, 1)})
    assert kept.held is None  # that one is on disk


def test_two_ranks_draw_and_decide_as_one(trained, remade, monkeypatch):
    """Each makes its share of the slices; both have the figures of one process, to the last digit."""
    draws, network, packs = remade
    made = two_ranks(monkeypatch, lambda rt: Yardstick(rt, (network, "x"), packs, draws, 64)())
    row = tiny.rows(trained.path)[-1]
    assert made[0] == made[1] == {name: row[name] for name in made[0]} and len(made[0]) == 11


# --- who uses them ----------------------------------------------------------------------------------------------------
def test_predict_takes_the_weights_it_is_told_and_says_which(room, trained, tmp_path):
    assert weights_of(trained.path) == trained.weights and weights_of(trained.path, "best") == trained.best
    assert weights_of(trained.path, "0.024") == weights_of(trained.path, "0.0241") == trained.kept_weights(24)
    with pytest.raises(ConfigError, match=r"there are 0\.024, 0\.048"):
        weights_of(trained.path, "0.04")
    for wrong in ("worst", "nan"):
        with pytest.raises((UsageError, ConfigError), match=f"--at {wrong}"):
            weights_of(trained.path, wrong)
    with pytest.raises(UsageError, match="--at best"):
        weights_of(trained.weights, "best")
    model = load(trained.path, at="best", device="cpu")
    assert (model.path, model.nimg) == (str(trained.best), read_weights(trained.best)[1]["nimg"])
    assert load(trained.path, at=0.048, device="cpu").nimg == 48 and load(trained.path, device="cpu").measured == {}
    out = tmp_path / "out"
    done = run_predict("generate", "--run", trained.path, "--at", "best", "--number", 2, "--out", out,
                       "--device", "cpu", packs=room / "packs")  # fmt: skip
    kid = model.measured["kid"]
    assert done.code == 0 and f"({model.nimg / 1000:g} kimg, kid {kid:.3g})" in done.out, done.said
    about = json.loads((out / "generate.json").read_text())
    assert about["measured"] == {"kid": kid} and said_of(about).startswith(f" at {model.nimg / 1000:g} kimg (best kid ")
    both = run_predict("generate", "--weights", trained.best, "--at", "best", packs=room / "packs")
    assert both.code == 2 and "--at best" in both.err
    assert facts(trained, {}, {})["best weights"] == kinds.best_text(tiny.rows(trained.path)[-1])


def test_a_run_without_best_weights_says_how_to_get_them(tmp_path):
    run = RunDir(tmp_path / "run")
    run.create()
    write_weights(run.weights, {}, {"config": {}})
    with pytest.raises(ConfigError, match="--metric-kimg"):
        weights_of(run.path, "best")
    os.symlink("/etc/hostname", run.best)
    with pytest.raises(ConfigError, match="leads out"):
        weights_of(run.path, "best")


def test_the_room_that_a_run_needs_has_its_weights_in_it():
    few, many = (GanConfig(keep_weights=n) for n in (0, 8))
    assert sizes.disk_gb(many, 1.0) - sizes.disk_gb(few, 1.0) == 2.0 and sizes.disk_gb(few, 1.0) == 4.75


def test_status_names_the_best_figure_and_why_a_run_ended_early(tmp_path, capsys):
    run = RunDir(tmp_path / "brains")
    run.create()
    run.metrics.write_text(json.dumps({"nimg": 30000, "kid": 0.5, "best_kid": 0.25, "best_kimg": 12.0}) + "\n")
    for reason, note in (("finished", ""), ("nothing better than kid 0.25", "nothing better than kid 0.25")):
        run.status(state=RunState.DONE, reason=reason, code=0)
        run.mark_done()
        view = status.view_run(run.path, None)
        assert (view.state, view.note) == (RunState.DONE, note)
        run._status = {}
    show.show_run(view, run.path)
    said = capsys.readouterr().out
    assert "kid 0.25 at 12 kimg" in said and "nothing better than kid 0.25" in said and "best_kid" not in said
    assert show.told([view.metrics]) == ["kid", "best_kid", "best_kimg"]
