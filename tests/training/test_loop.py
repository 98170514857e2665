"""jobs/training/upkeep.py by itself, on a state of a few numbers and a clock of the test's: rows, speeds, saves,
roll-back, the end."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from PIL import Image

from jobs.config import parsing, specs
from jobs.run import lock, rundir, stopping
from jobs.run.attempt import Attempt
from jobs.run.rundir import RunDir
from jobs.training import checkpoint, collectives, ranks, upkeep
from jobs.training.averages import Averages
from jobs.training.checkpoint import CheckpointError, Checkpoints, Diverged
from jobs.training.upkeep import FRESH_COUNTERS, Record, State, Upkeep, due
from jobs.training.weights import read_weights

CPU = torch.device("cpu")


class Toy(State):
    """Of everything that a script's state holds one: networks, optimizer, scaler, averages, a running mean,
    counters."""

    def __init__(self, lr: float = 0.1, betas: tuple[float, float] = (0.0, 0.9), value: float = 1.0):
        self.net, self.ema = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
        for module in (self.net, self.ema):
            torch.nn.init.constant_(module.weight, value)
        self.opt = torch.optim.Adam(self.net.parameters(), lr=lr, betas=betas)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
        self.mean = torch.zeros(())
        self.averages, self.counters = Averages(), {**FRESH_COUNTERS, "best": 0.0}

    def step(self, slope: float = 1.0) -> None:
        self.net.weight.grad = torch.full_like(self.net.weight, slope)
        self.opt.step()
        self.mean += slope


class Clock:
    """Stands in for the module `time` of the loop and of the stop watch: nothing passes by itself."""

    def __init__(self):
        self.now = 5000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.8e9 + self.now


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [k for k in os.environ if k.startswith(("SLURM_", "RANK", "WORLD_SIZE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(stopping, "_received", [])
    monkeypatch.setattr(rundir, "STATUS_BEAT", 0.0)
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(upkeep, "time", clock)
    monkeypatch.setattr(stopping, "time", clock)
    return clock


class Board:
    """What would go to TensorBoard."""

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step, self.rows, self.pictures, self.closed = folder, purge_step, [], [], False
        self.given: list = []

    def rewind(self, nimg: int) -> None:
        self.rows = [row for row in self.rows if row[0] <= nimg]

    def scalars(self, row: dict, nimg: int) -> None:
        self.rows.append((nimg, row["nimg"]))

    def about(self, config: dict, nimg: int) -> None:
        self.given.append((config, nimg))

    def image(self, name: str, picture, nimg: int) -> None:
        self.pictures.append((name, nimg))

    def close(self) -> None:
        self.closed = True


class Bench:
    """One rank of a run in `folder`, with the helpers that a script makes at its start."""

    def __init__(self, folder: Path, monkeypatch, rank: int = 0, world: int = 1, **fields):
        flags = dict(checkpoint_minutes=0.0, checkpoint_kimg=0.0, log_kimg=0.016, sample_kimg=0.032, total_kimg=0.048)
        self.c = dataclasses.replace(parsing.parse_config(specs.GanConfig, tiny.TINY), **flags | fields)
        self.rt, self.run, self.said = ranks.Runtime(rank, world, rank, CPU, 1), RunDir(folder), []
        self.run.create()
        self.s, self.attempt = Toy(), Attempt(self.run, self.c, rank)
        self.attempt.printer = self.said.append
        self.checkpoints = Checkpoints(self.run.checkpoints, keep=self.c.keep, say=self.said.append)
        self.upkeep = Upkeep(self.c, self.rt, self.run, self.s, self.checkpoints, self.attempt)
        monkeypatch.setattr(upkeep, "TensorBoard", Board)
        monkeypatch.setattr(upkeep, "device_peak", lambda device, dtype: 1e12)

    def record(self, found: int, waits=dict, flops=None) -> Record:
        flops = {None: 1e9} if flops is None else flops
        return Record(self.c, self.rt, self.run, self.attempt, found, torch.float32, lambda: flops, waits)

    def save(self, nimg: int) -> None:
        self.upkeep.save(nimg, {"ema": self.s.ema}, {"classes": ["a"]})
        self.checkpoints.wait(raise_errors=True)

    def markers(self) -> dict[int, bool]:
        """{images: healthy} of the checkpoints on disk."""
        return {int(p.stem): json.loads(p.read_text())["healthy"] for p in sorted(self.run.checkpoints.glob("*.json"))}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Makes Bench objects; their watchdogs end with the test."""
    made = []

    def make(name: str = "run", **fields) -> Bench:
        made.append(Bench(tmp_path / name, monkeypatch, **fields))
        return made[-1]

    yield make
    for b in made:
        b.upkeep.watchdog.stop()


def peers(monkeypatch, *of_others: list[int], loaded: int = -1) -> list:
    """Another rank that says these values one after the other (then zeros), and a rank 0 that has found `loaded`."""
    left, asked = list(of_others), []

    def agree_max(rt, values):
        asked.append(list(values))
        other = left.pop(0) if left else [0] * len(values)
        return [max(pair) for pair in zip(values, other, strict=True)]

    monkeypatch.setattr(collectives, "agree_max", agree_max)
    monkeypatch.setattr(collectives, "from_rank_0", lambda rt, value: value if rt.rank == 0 else loaded)
    return asked


# --- intervals --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch", [1, 8, 24])
@pytest.mark.parametrize("images", [1, 8, 20, 24, 57, 1001, 4010])  # 4.01 kimg are 4009.9999 images
def test_an_interval_is_due_in_the_step_that_reaches_a_multiple_of_it(images, batch):
    """From the definition: one of 0, images, 2 images, ...

    is among the images that the step has seen, or it is the start.
    """
    for nimg in range(0, 3 * images + batch, batch):
        reached = any(nimg - batch < multiple <= nimg for multiple in range(0, nimg + images, images))
        assert due(nimg, batch, images / 1000) == reached, nimg
    assert not due(0, batch, 0.0) and not due(images, batch, 0.0)


# --- state ------------------------------------------------------------------------------------------------------------
def test_a_state_comes_back_but_the_configuration_rules_over_its_rates():
    """Moments, scale, means and counters are the checkpoint's; learning rate and betas those of the command line."""
    first = Toy(lr=0.1)
    first.step(), first.step(3.0)
    first.averages.add({"loss": 2.0})
    first.scaler.scale(torch.ones(()))
    first.scaler._scale.fill_(32.0)
    first.counters |= {"skip": 16, "rollbacks": 1, "healthy": False, "best": 0.75}
    state = checkpoint.to_host(first.state_dict())
    second = Toy(lr=0.5, betas=(0.5, 0.99), value=7.0)
    mean = second.mean
    second.counters["left over"] = 1
    second.load_state_dict(state)
    assert torch.equal(second.net.weight, first.net.weight) and second.mean is mean and float(mean) == 4.0
    group, moments = second.opt.param_groups[0], second.opt.state[second.net.weight]
    assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.99)) and group["params"][0] is second.net.weight
    assert torch.equal(moments["exp_avg_sq"], first.opt.state[first.net.weight]["exp_avg_sq"]) and moments["step"] == 2
    assert second.scaler.get_scale() == 32.0 and second.averages.means() == {"loss": 2.0}
    assert second.counters == {"skip": 16, "rollbacks": 1, "healthy": False, "best": 0.75}
    second.counters["skip"] = 0
    assert state["counters"]["skip"] == 16  # the loaded one is a copy


def test_a_fresh_run_skips_nothing_and_is_healthy():
    assert FRESH_COUNTERS == {"skip": 0, "rollbacks": 0, "healthy": True}


def test_one_bad_parameter_or_one_bad_loss_is_a_divergence():
    for where in ("net", "ema"):
        s = Toy()
        s.check_finite()
        with torch.no_grad():
            getattr(s, where).weight[0, 1] = float("nan")
        with pytest.raises(Diverged, match="parameters"):
            s.check_finite()
    for bad in (float("nan"), float("inf"), -float("inf")):
        s = Toy()
        s.averages.add({"loss_G": bad, "loss_D": 1.0})
        with pytest.raises(Diverged, match=r"^loss_G not finite"):
            s.check_finite()


def test_the_optimizer_takes_the_clipped_mean_of_the_unscaled_gradients(monkeypatch):
    """Two ranks with gradients (3, 4) and (9, 12), loss scale 4: mean (6, 8), norm 10, clipped to 5, rate 0.5."""
    net = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(net.weight)
    opt = torch.optim.SGD(net.parameters(), lr=99.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)
    scaler.scale(torch.ones(()))  # begins its life

    def mean(rt, parameters):
        for p in parameters:
            p.grad = (p.grad + torch.tensor([[36.0, 48.0]])) / 2

    monkeypatch.setattr(collectives, "reduce_mean_gradients", mean)
    net.weight.grad = torch.tensor([[12.0, 16.0]])
    norm = upkeep.optimizer_step(ranks.Runtime(0, 2, 0, CPU, 1), net, opt, scaler, 0.5, 5.0)
    assert float(norm) == pytest.approx(10.0)
    assert net.weight.tolist()[0] == pytest.approx([-0.5 * 3.0, -0.5 * 4.0])
    assert net.weight.grad is None and scaler.get_scale() == 8.0
    net.weight.grad = torch.tensor([[float("inf"), 0.0]])
    before = net.weight.tolist()
    upkeep.optimizer_step(ranks.Runtime(0, 2, 0, CPU, 1), net, opt, scaler, 0.5, 5.0)
    assert net.weight.tolist() == before and scaler.get_scale() == 4.0  # left out, and a smaller scale from here on


# --- the record -------------------------------------------------------------------------------------------------------
def rows(b: Bench) -> list[dict]:
    return [json.loads(line) for line in b.run.metrics.read_text().splitlines()]


def drive(b: Bench, record: Record, clock: Clock, places, waited: dict, looked: list, seconds: float = 0.5) -> None:
    """Steps of 8 images up to each of `places`, 50 ms of each waited for the data.

    Steps to an odd multiple are heavy.
    """

    def look(nimg: int):
        looked.append(nimg)
        return Image.new("L", (4, 4)), {"diversity": 0.5}

    for nimg in places:
        if nimg:
            b.s.averages.add({"loss": float(nimg)})
            clock.now += seconds
            waited["data_wait"] += 0.1 * seconds
            record.step_done(nimg, "heavy" if nimg % 16 else "plain")
        record.tick(nimg, b.s, look, lambda: {"ada_p": 0.25})
        record.tick(nimg, b.s, look, lambda: {"ada_p": 9.0})  # once per place


FLOPS = {"plain": 2e9, "heavy": 6e9}


@pytest.mark.parametrize("world", [1, 2])
def test_rows_hold_means_and_speeds_since_the_row_before(bench, clock, capsys, world):
    """Steps of 8 images and half a second: 16 images per second, 8 GFLOPs x 8 images per second and device."""
    b, waited, looked = bench(world=world), {"data_wait": 100.0}, []
    b.run.metrics.write_text('{"nimg": 0, "note": "of an attempt that was killed before its first checkpoint"}\n')
    record = b.record(-1, lambda: dict(waited), FLOPS)
    record.show("reals.png", "reals", Image.new("L", (4, 4)), 0)
    b.attempt.begin(0, 48, {})
    drive(b, record, clock, [0, 8], waited, looked)
    status = b.run.read_status()  # a step is a sign of life; how long it will take is not known yet
    assert (status["kimg"], status["step"], status["state"], status["total_kimg"]) == (0.008, 1, "running", 0.048)
    assert "eta_s" not in status
    drive(b, record, clock, [16], waited, looked)
    assert b.run.read_status()["eta_s"] == 2  # 32 images at 16 per second
    drive(b, record, clock, [24, 32, 40, 48], waited, looked, seconds=1.0)
    assert looked == [0, 32, 48]  # sample intervals, and the end
    first, *others = rows(b)
    assert first == {"nimg": 0, "kimg": 0.0, "ada_p": 0.25, "diversity": 0.5}
    tera = 0.064 / world
    for row, nimg, loss, speed in zip(others, (16, 32, 48), (12.0, 28.0, 44.0), (16.0, 8.0, 8.0), strict=True):
        rate = tera * speed / 16
        expected = {"nimg": nimg, "kimg": nimg / 1000, "loss": loss, "ada_p": 0.25, "img_per_s": speed,
                    "sec_per_kimg": 1000 / speed, "data_wait": 0.1, "tflops": rate, "peak_share": rate}  # fmt: skip
        assert row == pytest.approx(expected | ({"diversity": 0.5} if nimg > 16 else {}))
    assert b.run.read_status()["eta_s"] == 0
    assert record.board.rows == [(n, n) for n in (0, 16, 32, 48)] and record.board.purge_step == 0
    assert record.board.pictures == [("samples", 0), ("samples", 32), ("samples", 48)]
    assert record.board.given == [(parsing.result_fields(b.c), 0)]
    names = sorted(p.name for p in b.run.samples.iterdir())
    assert names == ["00000.000.png", "00000.032.png", "00000.048.png", "reals.png"]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:4] for line in lines] == [
        ["kimg", f"0.0{n}/0.048", f"{100 * n / 48:.1f}%", "img/s"] for n in (16, 32, 48)
    ]
    assert b.attempt.printer == record.progress.write  # above the bar from here on


def test_a_resumed_record_goes_on_where_the_checkpoint_was(bench, clock):
    """The row of that place is there; later ones are taken back; what was waited before is not this attempt's."""
    b, looked = bench(total_kimg=1.0), []
    b.run.metrics.write_text("".join(json.dumps({"nimg": n, "loss": 0.0}) + "\n" for n in (0, 16, 32)))
    waited = {"data_wait": 7.0}
    record = b.record(16, lambda: dict(waited), FLOPS)
    b.attempt.begin(16, 1000, {})
    assert [row["nimg"] for row in rows(b)] == [0, 16] and record.board.purge_step == 17
    clock.now += 3.0  # until the first step
    record.tick(16, b.s, lambda nimg: pytest.fail("a second look"), dict)
    assert len(rows(b)) == 2
    drive(b, record, clock, [24, 32], waited, looked)
    last = rows(b)[-1]
    assert (last["nimg"], last["loss"], looked) == (32, 28.0, [32])
    assert (last["img_per_s"], last["data_wait"]) == (16 / 4.0, 0.1 / 4.0)  # of 3 s and two steps


def test_a_run_that_has_its_first_checkpoint_is_not_a_fresh_one(bench, clock):
    b = bench()
    b.run.metrics.write_text('{"nimg": 0}\n{"nimg": 16}\n')
    record = b.record(0)
    assert rows(b) == [{"nimg": 0}] and record.board.purge_step == 1


def test_after_a_roll_back_the_later_rows_never_were(bench, clock):
    b, waited, looked = bench(total_kimg=1.0), {"data_wait": 0.0}, []
    record = b.record(-1, lambda: dict(waited), FLOPS)
    b.attempt.begin(0, 1000, {})
    drive(b, record, clock, [0, 8, 16, 24, 32, 40], waited, looked)
    clock.now += 100.0
    record.rewind(16)
    b.s.averages.reset()
    record.tick(16, b.s, lambda nimg: pytest.fail("the row of that place is there"), dict)
    assert [row["nimg"] for row in rows(b)] == [0, 16]
    drive(b, record, clock, [24, 32], waited, looked)
    assert [row["nimg"] for row in rows(b)] == [0, 16, 32] and looked == [0, 32, 32]
    assert rows(b)[-1]["img_per_s"] == 16.0 and rows(b)[-1]["tflops"] == pytest.approx(0.064)


def test_the_bar_moves_with_every_step_and_back_with_a_roll_back(bench, clock):
    b, places = bench(), []
    record = b.record(-1)
    record.progress = SimpleNamespace(update=places.append)
    for nimg in (8, 16):
        record.step_done(nimg)
    record.rewind(8)
    assert places == [8, 16, 8]


def test_another_rank_looks_at_the_run_and_writes_nothing(bench, clock):
    """Whether the run is healthy must be known on all ranks; means are taken back on all of them."""
    b, waited, looked = bench(rank=1, world=2), {"data_wait": 0.0}, []
    before = sorted(p.name for p in b.run.path.rglob("*"))
    record = b.record(-1, lambda: dict(waited), FLOPS)
    record.show("reals.png", "reals", Image.new("L", (4, 4)), 0)
    drive(b, record, clock, [0, 8, 16, 24, 32], waited, looked)
    record.rewind(16)
    assert looked == [0, 32] and b.s.averages.means() == {}
    assert sorted(p.name for p in b.run.path.rglob("*")) == before


def test_a_row_is_not_written_over_a_divergence(bench, clock):
    b = bench()
    record = b.record(-1)
    b.s.averages.add({"loss": float("nan")})
    with pytest.raises(Diverged):
        record.tick(16, b.s, lambda nimg: (None, {}), dict)
    assert not b.run.metrics.exists()


# --- when to save, and what -------------------------------------------------------------------------------------------
def places_saved(b: Bench, clock: Clock, places, seconds: float = 10.0) -> list[int]:
    """Where all ranks save, in steps of so many seconds; ends where the run does."""
    saved = []
    for nimg in places:
        if b.upkeep.agree(nimg):
            saved.append(nimg)
            b.upkeep.saved_at, b.upkeep.saved_time = nimg, clock.now
            assert not b.upkeep.agree(nimg)  # not twice at one place
        if b.upkeep.ending:
            break
        clock.now += seconds
    return saved


@pytest.mark.parametrize(
    ("fields", "saved"),
    [
        ({}, [0, 400]),  # a fresh run at once, and the end
        (
            {"checkpoint_minutes": 1.0},
            [0, 56, 112, 168, 224, 280, 336, 392, 400],
        ),  # more than a minute since the last: 70 s
        ({"checkpoint_minutes": 0.25}, [0, *range(16, 401, 16)]),  # 20 s are more than a quarter of a minute
        ({"checkpoint_kimg": 0.1}, [0, 104, 200, 304, 400]),
        (
            {"checkpoint_kimg": 0.1, "checkpoint_minutes": 1.5},
            [0, 80, 104, 184, 200, 280, 304, 384, 400],
        ),  # on top of each other
    ],
)
def test_checkpoints_come_by_the_minute_and_by_the_kimg(bench, clock, fields, saved):
    b = bench(total_kimg=0.4, **fields)
    assert places_saved(b, clock, range(0, 480, 8)) == saved
    assert b.upkeep.ending


def test_all_ranks_save_when_the_clock_of_rank_0_says_so(bench, clock, monkeypatch):
    """The minutes are rank 0's alone: two clocks would disagree about a step now and then."""
    asked = peers(monkeypatch, [0, 0], [0, 0], [0, 1])
    b = bench(rank=1, world=2, checkpoint_minutes=0.1)
    b.upkeep.saved_at = 0
    clock.now += 1000.0
    assert [b.upkeep.agree(n) for n in (8, 16, 24)] == [False, False, True] and not b.upkeep.ending
    assert asked == [[0, 0]] * 3
    asked = peers(monkeypatch)
    b = bench("other", rank=0, world=2, checkpoint_minutes=0.1)
    b.upkeep.saved_at = 0
    clock.now += 1000.0
    assert b.upkeep.agree(8) and asked == [[0, 1]]


@pytest.mark.parametrize(
    ("level", "saves", "ends"), [(0, False, False), (1, True, False), (2, True, True), (3, True, True)]
)
def test_the_highest_level_of_all_ranks_decides(bench, clock, monkeypatch, level, saves, ends):
    peers(monkeypatch, [level, 0])
    b = bench(rank=1, world=2)
    b.upkeep.saved_at = 0
    assert (b.upkeep.agree(8), b.upkeep.ending, b.upkeep.level) == (saves, ends, level)


def test_stop_and_save_files_are_rank_0s_to_see(bench, clock):
    b, other = bench(), bench(rank=1)
    for of in (b, other):
        of.upkeep.saved_at = 0
    (b.run.path / "SAVE").touch()
    assert not other.upkeep.agree(8) and (b.run.path / "SAVE").exists()
    assert b.upkeep.agree(8) and not b.upkeep.ending and not (b.run.path / "SAVE").exists()
    clock.now += 2.0
    assert not b.upkeep.agree(16)
    (b.run.path / "STOP").touch()
    clock.now += 2.0
    assert not other.upkeep.agree(24) and not other.upkeep.ending
    assert b.upkeep.agree(24) and b.upkeep.ending and (b.run.path / "STOP").exists()


def test_a_signal_stops_at_the_next_step_even_where_a_checkpoint_was_just_made(bench, clock):
    b = bench()
    b.upkeep.saved_at = 8
    stopping._received.append("USR2")
    assert b.upkeep.agree(8) is False and b.upkeep.ending


def test_a_step_that_is_over_pats_the_watchdog(bench, clock):
    b = bench()
    b.upkeep.watchdog._last = 0.0
    b.upkeep.agree(8)
    assert b.upkeep.watchdog._last > 0.0
    assert b.upkeep.watchdog.seconds == upkeep.HANG_SECONDS == 1800


def test_a_save_is_the_state_and_the_weights_that_go_with_it(bench, clock, monkeypatch):
    """Both are taken at once: what the next steps do while the writer works is in neither."""
    b = bench(total_kimg=9.0)
    b.save(0)
    b.s.step()
    with torch.no_grad():
        b.s.ema.weight.fill_(0.25)
    b.s.counters["best"] = 0.5
    gate, real = threading.Event(), checkpoint.free_bytes
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: gate.wait(20) and real(folder))
    clock.now += 60.0
    b.upkeep.save(16, {"ema": b.s.ema}, {"classes": ["a"], "geometry": {"crop": 3}})
    held = {name: value.clone() for name, value in b.s.net.state_dict().items()}
    with torch.no_grad():
        b.s.ema.weight.fill_(9.0), b.s.net.weight.fill_(9.0)
    b.s.counters["best"] = 9.0
    gate.set()
    b.checkpoints.wait(raise_errors=True)
    assert (b.upkeep.saved_at, b.upkeep.saved_time) == (16, clock.now)
    assert b.upkeep.waits() == {"checkpoint_wait": b.checkpoints.blocked_seconds} and b.checkpoints.blocked_seconds > 0
    nimg, state = b.checkpoints.load_latest()
    assert nimg == 16 and set(state) == set(vars(b.s)) and torch.equal(state["net"]["weight"], held["weight"])
    assert state["counters"]["best"] == 0.5
    tensors, about = read_weights(b.run.weights)
    assert set(tensors) == {"ema.weight"} and tensors["ema.weight"].eq(0.25).all()
    assert {k: about[k] for k in ("nimg", "job", "classes", "geometry")} == {
        "nimg": 16, "job": "stylegan2", "classes": ["a"], "geometry": {"crop": 3},
    }  # fmt: skip
    config = about["config"]
    assert config["resolution"] == 32 and config["gamma"] == 0.1 and not {"run", "total_kimg", "keep"} & set(config)


def test_only_rank_0_writes_but_every_rank_knows_when_it_saved(bench, clock):
    b = bench(rank=1, world=2)
    b.upkeep.save(8, {"ema": b.s.ema}, {})
    assert (b.upkeep.saved_at, b.upkeep.saved_time) == (8, clock.now)
    assert b.markers() == {} and not b.run.weights.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_finite_is_never_saved_and_every_rank_sees_it(bench, clock, rank):
    """Also where only Adam's moment or a running mean is bad: all ranks must roll back together."""
    for spoil in ("parameter", "moment", "mean"):
        b = bench(spoil, rank=rank, world=2)
        b.s.step()
        b.upkeep.saved_at = 0
        bad = {"parameter": b.s.net.weight, "moment": b.s.opt.state[b.s.net.weight]["exp_avg_sq"], "mean": b.s.mean}
        with torch.no_grad():
            bad[spoil].fill_(float("inf"))
        with pytest.raises(Diverged):
            b.upkeep.save(8, {"ema": b.s.ema}, {})
        assert b.upkeep.saved_at == 0 and b.markers() == {}


def test_checkpoints_of_a_collapsed_run_are_not_healthy_ones(bench, clock):
    """The last healthy one outlives them, and so do the weights of that moment."""
    b = bench(keep=2)
    aside = b.run.path / "weights-healthy.safetensors"
    for nimg, healthy in ((0, True), (8, True), (16, False), (24, False), (32, False)):
        with torch.no_grad():
            b.s.ema.weight.fill_(float(nimg))
        b.s.counters["healthy"] = healthy
        b.save(nimg)
        assert aside.exists() != healthy
    assert b.markers() == {8: True, 24: False, 32: False}
    assert read_weights(b.run.weights)[0]["ema.weight"].eq(32).all()
    tensors, about = read_weights(aside)
    assert tensors["ema.weight"].eq(8).all() and about["nimg"] == 8
    b.s.counters["healthy"] = True
    b.save(40)
    assert b.markers() == {32: False, 40: True} and not aside.exists()


def test_weights_from_before_a_collapse_are_whole_or_not_there(bench, clock):
    """No file can be as large as they are: the copy is begun, fails, and is made anew when there is room."""
    b = bench()
    with torch.no_grad():
        b.s.ema.weight.fill_(8.0)
    b.s.ema.register_buffer("much", torch.ones(100_000))
    b.save(8)
    size = b.run.weights.stat().st_size
    b.s.ema.much = torch.ones(1)
    with torch.no_grad():
        b.s.ema.weight.fill_(16.0)
    aside, about = b.run.path / "weights-healthy.safetensors", {"config": {}, "job": "x"}
    new = {"ema": b.s.ema.state_dict()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
        with pytest.raises(OSError):
            upkeep.replace_weights(b.run, new, about, healthy=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not aside.exists() and read_weights(b.run.weights)[0]["ema.weight"].eq(8).all()
    upkeep.replace_weights(b.run, new, about, healthy=False)
    assert (
        read_weights(aside)[0]["ema.weight"].eq(8).all() and read_weights(b.run.weights)[0]["ema.weight"].eq(16).all()
    )


def test_the_first_checkpoint_finds_a_full_disk_at_once_and_a_later_one_does_not_stop_the_run(
    bench, clock, monkeypatch
):
    full = bench("full")
    real = checkpoint.free_bytes
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 0)
    with pytest.raises(CheckpointError, match="0 MB are free"):
        full.upkeep.save(0, {"ema": full.s.ema}, {})
    monkeypatch.setattr(checkpoint, "free_bytes", real)
    later = bench("later")
    later.save(0)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 0)
    later.upkeep.save(8, {"ema": later.s.ema}, {})
    later.checkpoints.wait()
    assert later.markers() == {0: True} and "WARNING" in later.said[-1]


# --- resume, roll-back ------------------------------------------------------------------------------------------------
def test_resuming_takes_the_newest_checkpoint_on_every_rank(bench, clock, monkeypatch):
    b = bench(keep=3)
    assert b.upkeep.resume() == -1
    for nimg in (0, 8, 16):
        b.s.step()
        b.save(nimg)
    for rank in (0, 1):
        peers(monkeypatch, loaded=8)  # rank 0 may have found the newest one damaged: its word counts
        again = bench(rank=rank, world=2)
        if rank:
            monkeypatch.setattr(again.checkpoints, "load_latest", lambda: pytest.fail("rank 0 judges what is newest"))
        found = again.upkeep.resume()
        assert found == again.upkeep.saved_at == (16 if rank == 0 else 8)
        assert float(again.s.mean) == (3.0 if rank == 0 else 2.0)
    peers(monkeypatch, loaded=0)  # a checkpoint at no images is one too
    again = bench(rank=1, world=2)
    assert again.upkeep.resume() == 0 and float(again.s.mean) == 1.0


def test_an_attempt_begins_where_its_checkpoint_is_and_says_with_what(bench, clock):
    for found, word in ((-1, "starting at 0"), (0, "resuming at 0"), (16, "resuming at 0.016")):
        b = bench(f"run{found}")
        batches = SimpleNamespace(placement="host memory", count=24)
        assert b.upkeep.begin(found, torch.bfloat16, batches) == max(found, 0)
        assert "24 images per epoch, 2 epochs in all" in b.said[-2]
        assert b.said[-1] == f"{b.run.path}: {word} of 0.048 kimg, bfloat16 on 1 x cpu, data in host memory"
        (start,) = [line for line in b.run.read_attempts() if line["event"] == "start"]
        assert (start["nimg"], start["precision"], start["world"], start["threads"]) == (
            max(found, 0),
            "bfloat16",
            1,
            1,
        )
        about = json.loads((b.run.path / "provenance.json").read_text())
        assert about["precision"] == "bfloat16" and b.run.read_status()["kimg"] == max(found, 0) / 1000


def test_a_roll_back_goes_to_the_newest_checkpoint_and_past_the_data(bench, clock, monkeypatch):
    """It waits for the write under way; the images between are skipped on top of what was skipped; once."""
    b = bench(checkpoint_minutes=1.0)
    b.save(8)
    b.s.counters["skip"] = 40
    b.s.step()
    weight = b.s.net.weight.detach().clone()
    gate, real = threading.Event(), checkpoint.free_bytes
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: gate.wait(20) and real(folder))
    b.upkeep.save(24, {"ema": b.s.ema}, {})
    with torch.no_grad():
        b.s.net.weight.fill_(float("nan"))
    b.s.counters["skip"] = 0
    threading.Timer(0.3, gate.set).start()
    clock.now += 100.0
    assert b.upkeep.roll_back(64, Diverged("x"), "advice") == 24
    assert torch.equal(b.s.net.weight, weight)
    assert (b.s.counters["skip"], b.s.counters["rollbacks"]) == (40 + 40, 1)
    assert (b.upkeep.saved_at, b.upkeep.saved_time) == (24, clock.now)
    assert not b.upkeep.agree(24)  # it is there already
    assert any("DIVERGED at 0.064 kimg: x" in line and "0.024 kimg" in line for line in b.said)
    with pytest.raises(Diverged, match="x, again after a roll-back; advice"):
        b.upkeep.roll_back(72, Diverged("x"), "advice")


def test_without_a_checkpoint_there_is_nothing_to_roll_back_to(bench, clock):
    error = Diverged("at once")
    with pytest.raises(Diverged) as raised:
        bench().upkeep.roll_back(0, error, "advice")
    assert raised.value is error


# --- the end ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("nimg", "level", "code", "state", "reason"), [
    (48, 0, 0, "done", "finished"),
    (48, 2, 0, "done", "finished"),  # a signal with the last image: done all the same
    (16, 2, 85, "continue", "a signal to another rank"),
    (16, 3, 0, "stopped", "a person's stop"),
])  # fmt: skip
def test_how_an_attempt_ends(bench, clock, nimg, level, code, state, reason):
    b = bench()
    record = b.record(-1)
    b.attempt.begin(0, 48, {})
    b.attempt.heartbeat(nimg)
    b.upkeep.level = level
    assert b.upkeep.leave(record, nimg) == code
    status, end = b.run.read_status(), b.run.read_attempts()[-1]
    assert (status["state"], status["reason"], status["code"], status["kimg"]) == (state, reason, code, nimg / 1000)
    assert (end["event"], end["code"], end["reason"], end["nimg"]) == ("end", code, reason, nimg)
    assert b.run.done() == record.board.closed == (state == "done")
    assert (b.run.plots / "losses.png").is_file() and b.upkeep.watchdog._stopped.is_set()


def test_a_run_whose_last_checkpoint_was_not_written_is_not_done(bench, clock, monkeypatch):
    b = bench()
    b.save(0)
    record = b.record(0)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda folder: 0)
    b.upkeep.save(48, {"ema": b.s.ema}, {})
    with pytest.raises(CheckpointError):
        b.upkeep.leave(record, 48)
    assert not b.run.done() and b.markers() == {0: True}


def test_rank_0_ends_well_without_the_others_and_the_others_not_without_rank_0(bench, clock, monkeypatch):
    def gone(rt, values):
        raise ranks.PeerLost("another rank is gone")

    monkeypatch.setattr(collectives, "agree_max", gone)
    b, other = bench(), bench(rank=1, world=2)
    assert b.upkeep.leave(b.record(-1), 48) == 0 and b.run.done()
    with pytest.raises(ranks.PeerLost):
        other.upkeep.leave(other.record(-1), 48)


def test_only_rank_0_marks_the_end(bench, clock):
    b = bench(rank=1, world=2)
    meeting = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "agree_max", lambda rt, values: meeting.append(values) or values)
        assert b.upkeep.leave(b.record(-1), 48) == 0
    assert not b.run.done() and len(meeting) == 1  # it waits for rank 0 to have written everything


# --- starting from other weights, finished runs -----------------------------------------------------------------------
def test_initial_weights_are_those_of_the_named_networks_alone(bench, clock):
    old = bench("old")
    with torch.no_grad():
        old.s.net.weight.fill_(3.0), old.s.ema.weight.fill_(4.0)
    old.s.step()
    old.save(8)
    s = Toy(value=7.0)
    upkeep.load_initial_weights(s, ("net", "ema"), str(old.run.path), print)
    assert torch.equal(s.net.weight, old.s.net.weight) and s.ema.weight.eq(4).all()
    assert float(s.mean) == 0 and not s.opt.state  # the rest begins anew
    s = Toy(value=7.0)
    upkeep.load_initial_weights(s, ("ema",), str(old.run.path), print)
    assert s.net.weight.eq(7).all() and s.ema.weight.eq(4).all()


def test_initial_weights_that_do_not_fit_or_are_not_there_are_one_line(bench, clock):
    old = bench("old")
    old.save(8)
    other = SimpleNamespace(net=torch.nn.Linear(3, 1, bias=False), more=torch.nn.Linear(2, 1))
    for names, says in ((("net",), "another architecture"), (("more",), "another architecture")):
        with pytest.raises(specs.ConfigError, match=says) as error:
            upkeep.load_initial_weights(other, names, str(old.run.path), print)
        assert "\n" not in str(error.value)
    with pytest.raises(specs.ConfigError, match="no checkpoint there"):
        upkeep.load_initial_weights(other, ("net",), str(old.run.path / "nothing"), print)


def test_compiling_is_done_where_it_is_asked_for_and_can_be(tmp_path, monkeypatch):
    """The cache lies with the run, unless its owner has said where."""
    cuda, run, said = torch.device("cuda", 0), RunDir(tmp_path), []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.delenv("CXX", raising=False)
    assert not upkeep.compiles(False, cuda, run, said.append) and "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    monkeypatch.setattr(upkeep.shutil, "which", lambda name: None)
    assert not upkeep.compiles(False, CPU, run, said.append) and not said
    assert not upkeep.compiles(True, CPU, run, said.append) and len(said) == 1
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert upkeep.compiles(True, cuda, run, said.append)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "compiled")
    monkeypatch.setattr(upkeep.shutil, "which", lambda name: name)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    assert upkeep.compiles(True, CPU, run, said.append) and len(said) == 1
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_a_run_is_done_unless_it_is_to_be_longer_now(bench, clock, capsys):
    b = bench()
    c, run = b.c, b.run
    run.write_config(dataclasses.asdict(c))

    def done(total: float, rank: int = 0) -> bool:
        return upkeep.already_done(dataclasses.replace(c, total_kimg=total), run, rank)

    assert not done(c.total_kimg)
    run.mark_done()
    run.status(state="done")
    capsys.readouterr()
    assert done(c.total_kimg, rank=1) and capsys.readouterr().out == ""
    (run.samples / "00000.008.png").touch(), (run.samples / "00000.016.png").touch()
    assert done(c.total_kimg) and done(c.total_kimg / 2) and not done(c.total_kimg * 2)
    said = capsys.readouterr().out
    assert "is done" in said and "00000.016.png" in said and f"generate --run {run.path}" in said


@pytest.mark.parametrize("left", ["status", "lock"])
def test_what_a_process_killed_at_its_last_moment_left_is_completed(bench, clock, left):
    b = bench()
    b.run.write_config(dataclasses.asdict(b.c))
    b.attempt.begin(0, 48, {})
    (b.run.checkpoints / f"{48:012d}.json").write_text("{}")
    b.run.mark_done()
    if left == "lock":  # between the status and the end of the lock
        b.attempt.end(0, "done", "finished")
        dead = {"token": "0" * 16, "host": rundir.socket.gethostname(), "space": lock.process_space(), "pid": 1 << 22}
        b.run.lockfile.write_text(json.dumps(dead | {"start": "7"}))
    assert upkeep.already_done(b.c, RunDir(b.run.path), 0)
    lines = b.run.read_attempts()
    assert [line["event"] for line in lines] == ["start", "end"] and lines[-1]["nimg"] == (
        48 if left == "status" else 0
    )
    status = b.run.read_status()
    assert (status["state"], status["code"], status["total_kimg"]) == ("done", 0, 0.048) and not b.run.lockfile.exists()
