"""Counted work against the closed form; counting changes nothing."""

import pytest
import torch
from torch import nn

from jobs.throughput import FlopCounter, Work, matrix_peak

CPU = torch.device("cpu")


def counted(task) -> int:
    with FlopCounter() as counter:
        task()
    return counter.flops


def test_convolutions_in_closed_form():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    dense, strided = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=2, padding=1)
    transposed = nn.ConvTranspose2d(3, 5, 2, stride=2)
    filters = nn.Conv2d(3, 3, 3, groups=3)
    forward = 2 * 2 * 64 * 9 * 3 * 5
    assert counted(lambda: dense(x)) == forward
    assert counted(lambda: strided(x)) == forward // 4
    assert counted(lambda: transposed(x)) == 2 * 2 * 64 * 4 * 3 * 5
    assert counted(lambda: filters(x)) == 0  # resampling filters are no work
    assert counted(lambda: dense(x).sum().backward()) == 3 * forward  # for the input and for the weight
    dense.weight.requires_grad_(False)
    assert counted(lambda: dense(x).sum().backward()) == 2 * forward


def test_grouped_convolutions_count_once():
    x, w = torch.randn(1, 8, 8, 8), torch.randn(12, 2, 3, 3, requires_grad=True)
    one = 2 * 64 * 9 * 2 * 12
    assert counted(lambda: nn.functional.conv2d(x, w, padding=1, groups=4).sum().backward()) == 2 * one


def test_matrix_products_and_attention():
    a, b = torch.randn(4, 7, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    assert counted(lambda: (a @ b).sum().backward()) == 3 * 2 * 4 * 7 * 5
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    forward = 2 * 2 * 2 * 3 * 16 * 16 * 8
    assert counted(lambda: nn.functional.scaled_dot_product_attention(q, k, v)) == forward
    backward = counted(lambda: nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()) - forward
    assert backward in (2 * forward, 5 * forward // 2)  # the scores are kept, or computed once more


def test_the_first_step_of_each_kind_is_counted_and_stands_for_the_others():
    work = Work(CPU, torch.float32)
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    one = 2 * 3 * 6 * 4
    for times, kind in ((1, "plain"), (2, "penalty"), (1, "plain"), (2, "penalty")):
        with work.step(kind):
            for _ in range(times):
                layer(x)
    assert work.cost == {"plain": one, "penalty": 2 * one} and work.flops == 6 * one
    figures = work.figures(int(0.25 * work.peak), 0.5)
    assert figures["peak_share"] == pytest.approx(0.5, abs=1e-3)
    assert figures["tflops"] == pytest.approx(0.5 * work.peak / 1e12, rel=1e-3)


def test_counting_changes_no_bit_and_survives_a_second_derivative():
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 4, 3)
    x = torch.randn(2, 1, 9, 9, requires_grad=True)

    def penalty():
        layer.zero_grad()
        (slope,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        return layer.weight.grad.clone()

    plain = penalty()
    with FlopCounter():
        assert torch.equal(penalty(), plain)


def test_an_exception_in_a_step_counts_nothing():
    work = Work(CPU, torch.float32)
    with pytest.raises(RuntimeError, match="lost"), work.step():
        raise RuntimeError("lost")
    assert work.flops == 0 and work.cost == {}


def test_the_peak_is_plausible():
    assert 1e8 < matrix_peak(CPU, torch.float32) < 1e14
