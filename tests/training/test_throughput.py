"""Counted work against the closed form, and against a real step."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import train_gan
from benchmarks import machine
from data.batches import Batches
from data.pack import ensure_pack
from jobs.config import specs
from jobs.training import collectives, throughput
from jobs.training.throughput import count_flops, device_peak

CPU = torch.device("cpu")


def test_convolutions_in_closed_form():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    dense, strided = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=2, padding=1)
    transposed = nn.ConvTranspose2d(3, 5, 2, stride=2)
    filters = nn.Conv2d(3, 3, 3, groups=3)
    forward = 2 * 2 * 64 * 9 * 3 * 5
    assert count_flops(lambda: dense(x)) == forward
    assert count_flops(lambda: strided(x)) == forward // 4
    assert count_flops(lambda: transposed(x)) == 2 * 2 * 64 * 4 * 3 * 5
    assert count_flops(lambda: filters(x)) == 0  # resampling filters are no work
    assert count_flops(lambda: dense(x).sum().backward()) == 3 * forward  # for the input and for the weight
    dense.weight.requires_grad_(False)
    assert count_flops(lambda: dense(x).sum().backward()) == 2 * forward


def test_grouped_convolutions_count_once():
    x, w = torch.randn(1, 8, 8, 8), torch.randn(12, 2, 3, 3, requires_grad=True)
    one = 2 * 64 * 9 * 2 * 12
    assert count_flops(lambda: nn.functional.conv2d(x, w, padding=1, groups=4).sum().backward()) == 2 * one


def test_matrix_products_and_attention():
    a, b = torch.randn(4, 7, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    assert count_flops(lambda: (a @ b).sum().backward()) == 3 * 2 * 4 * 7 * 5
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * 2 * 3 * 16 * 16 * 8
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v)) == forward
    backward = count_flops(lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()) - forward
    assert backward in (2 * forward, 5 * forward // 2)  # the scores are kept, or computed once more


def test_a_second_derivative_counts():
    layer, x = nn.Conv2d(1, 4, 3, bias=False), torch.randn(2, 1, 9, 9, requires_grad=True)
    one = 2 * 2 * 49 * 9 * 4

    def penalty():
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()

    # Forward, gradient for x; then of that for its two factors, and of the forward pass for the weight and for x.
    assert count_flops(penalty) == 6 * one


@pytest.mark.parametrize("batch", [2, 4])
def test_flops_of_a_training_step_are_those_of_the_real_one(batch, tmp_path):
    c = replace(
        specs.GanConfig(),
        data="phantom",
        resolution=32,
        batch=batch,
        channel_base=256,
        channel_max=8,
        z_dim=16,
        w_dim=16,
        mbstd_group=2,
        precision="fp32",
        pl_interval=2,
        r1_interval=3,
    )
    rt = collectives.init_runtime(1)
    pack = ensure_pack("phantom:8", resolution=32, cache_dir=tmp_path, progress=False, log=lambda *_: None)
    s, batches = train_gan.build_state(c, 0, CPU), Batches(pack, seed=0, batch=batch, device=CPU)
    flops = train_gan.step_flops(c, rt, 0, torch.float32)
    for number, kind in enumerate([(True, True), (False, False), (True, False), (False, True)]):
        step = train_gan.Step(
            c, rt, batches, torch.zeros(8, dtype=torch.int64), torch.float32, 0, s.G.synthesis, s.D, torch.zeros(16)
        )
        assert train_gan.penalties_due(c, number * batch) == kind
        assert count_flops(lambda: train_gan.train_step(s, step, number * batch)) == flops[kind] * batch  # noqa: B023


def test_the_peak_is_plausible():
    assert 1e8 < device_peak(CPU, torch.float32) < 1e14


def test_the_peak_is_the_fastest_of_its_calls(monkeypatch):
    """Of three that took 3, 1 and 2 s, by a clock that is read at the start, around each and between them."""
    readings = iter([0, 0, 3, 3, 3, 4, 4, 4, 6, 6])
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(readings))
    monkeypatch.setattr(throughput, "PEAK_SECONDS", 5)
    values, per_value = 2 * 256 * 32 * 32, 2 * 9 * 256
    assert device_peak(CPU, torch.float32) == values * per_value / 1.0


def test_benchmarks_measure_every_task_in_every_round():
    calls = []
    tasks = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = machine.in_turn(tasks, 3, torch.device("cpu"))
    assert calls == ["a", "b", "b", "a", "a", "b"] and {k: len(v) for k, v in seconds.items()} == {"a": 3, "b": 3}
    side = machine.Side(Counting, 2)
    try:
        assert (side.name, side.dtype, side.parameters, side.tasks) == ("counting", torch.float32, [12], ["product"])
        (found,) = machine.interleaved([side], 2, ("product", "another"), warm_up=1)
        assert len(found["product"]) == 2 and min(found["product"]) > 0
        assert side.flops("product") == 2 * 2 * 3 * 4 and side.resident_gb() > 0.01
    finally:
        side.close()


class Counting:
    """A side of a benchmark: one matrix product of (rows, 3) by (3, 4)."""

    name, device, dtype = "counting", torch.device("cpu"), torch.float32

    def __init__(self, rows: int):
        net = torch.nn.Linear(3, 4, bias=False)
        self.networks, self.tasks = (net,), {"product": lambda: net(torch.ones(rows, 3))}
