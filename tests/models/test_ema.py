"""The moving average against a loop over images and over parameters."""

import copy

import pytest
import torch

from models.ema import ema_beta, update_ema
from models.stylegan2 import Generator


def test_beta_halves_after_the_half_life_whatever_the_batch():
    for batch in (8, 32, 64):
        kept = 1.0
        for nimg in range(1_000_000, 1_000_000 + 2_000 * 8, batch):
            kept *= ema_beta(nimg, batch, half_life_kimg=16, ramp_up=0.05)
        assert kept == pytest.approx(0.5, rel=1e-9)


def test_ramp_up_limits_the_half_life_at_the_start():
    assert ema_beta(1000, 32, 10) == ema_beta(1000, 32, 10, 0.05)
    assert ema_beta(1000, 32, 10, 0.05) == pytest.approx(0.5 ** (32 / 50))
    assert ema_beta(200_000, 32, 10, 0.05) == pytest.approx(0.5 ** (32 / 10_000))
    assert ema_beta(1000, 32, 10, None) == ema_beta(1000, 32, 10, 0) == pytest.approx(0.5 ** (32 / 10_000))
    assert ema_beta(0, 32, 10, 0.05) == 0 and ema_beta(5000, 32, 0, 0.05) == 0


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)
        self.register_buffer("w_avg", torch.randn(5))
        self.register_buffer("count", torch.tensor(3))


def test_update_equals_a_loop_and_copies_buffers():
    torch.manual_seed(0)
    module = Small()
    average = copy.deepcopy(module).requires_grad_(False)
    expected = {k: v.clone() for k, v in average.named_parameters()}
    for beta in (0.9, 0.99, 0.3):
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p))
            module.w_avg.normal_()
            module.count.add_(1)
        before = {k: v.detach().clone() for k, v in module.named_parameters()}
        update_ema(average, module, beta)
        for name, p in module.named_parameters():
            expected[name] = beta * expected[name] + (1 - beta) * p.detach()
            assert torch.equal(p, before[name])
        for name, p in average.named_parameters():
            torch.testing.assert_close(p, expected[name])
        assert torch.equal(average.w_avg, module.w_avg) and average.count == module.count
        assert average.w_avg.data_ptr() != module.w_avg.data_ptr()


def test_constants_are_not_copied():
    module, average = Small(), Small()
    module.constants = ["count"]
    module.w_avg.fill_(1.0), module.count.fill_(9)
    update_ema(average, module, 0.5)
    assert torch.equal(average.w_avg, module.w_avg) and average.count == 3


def test_the_constants_of_a_generator_are_its_fixed_noise():
    G = Generator(resolution=16, channel_base=64, channel_max=4, z_dim=4, w_dim=4, mapping_layers=1)
    assert {name for name, _ in G.named_buffers()} - set(G.constants) == {"w_avg"}


def test_beta_zero_copies_exactly():
    torch.manual_seed(0)
    module, average = Small(), Small()
    update_ema(average, module, 0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(average.state_dict().values(), module.state_dict().values(), strict=True)
    )
