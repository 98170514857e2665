"""The GroupNorm that a GPU runs, on a CPU against torch's in fp64 and finite differences."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import norm, unet, vae
from models.norm import normalised


def tensors(dtype, layout=torch.channels_last, mean=3.0):
    draw = torch.Generator().manual_seed(0)
    x, grad = torch.randn(2, 3, 12, 7, 5, generator=draw, dtype=torch.float64)
    weight, bias = torch.randn(2, 12, generator=draw, dtype=torch.float64)
    return (x * 2 + mean).to(dtype, memory_format=layout), grad.to(dtype, memory_format=layout), weight, bias


def results(function, x, grad, weight, bias) -> list[torch.Tensor]:
    x, weight, bias = (v.detach().clone().requires_grad_() for v in (x, weight, bias))
    y = function(x, weight, bias)
    y.backward(grad.to(y.dtype))
    return [y, x.grad, weight.grad, bias.grad]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    "dtype, bound", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 6e-3), (torch.float16, 1e-3)]
)
def test_result_and_gradients_are_torchs_in_fp64_rounded_once(dtype, bound, layout):
    x, grad, weight, bias = tensors(dtype, layout)
    exact = torch.promote_types(dtype, torch.float32)
    ours = results(lambda *v: normalised(*v, 4, 1e-6), x, grad, weight.to(exact), bias.to(exact))
    right = results(lambda x, w, b: F.group_norm(x, 4, w, b, 1e-6), x.double(), grad.double(), weight, bias)
    for value, reference in zip(ours, right, strict=True):
        assert (value.double() - reference).norm() <= bound * reference.norm()
    y, dx, *_ = ours
    assert y.dtype == dx.dtype == dtype and ours[2].dtype == exact
    assert y.is_contiguous(memory_format=layout) and dx.is_contiguous(memory_format=layout)


def test_gradients_are_finite_differences():
    x, _, weight, bias = (v.requires_grad_() for v in tensors(torch.float64))
    assert torch.autograd.gradcheck(lambda *v: normalised(*v, 4, 1e-6), (x, weight, bias))


def test_a_mean_of_a_hundred_deviations_is_no_trouble():
    """Sums of squares lose what the mean's square takes away; fp32 keeps enough."""
    x, _, weight, bias = tensors(torch.float32, mean=200.0)
    right = F.group_norm(x.double(), 4, weight, bias, 1e-6)
    assert (normalised(x, weight.float(), bias.float(), 4, 1e-6) - right).abs().max() < 0.02
    for value in torch.linspace(100, 200, 50):  # whose variance comes out below zero now and then
        constant = normalised(torch.full_like(x, float(value)), weight.float(), bias.float(), 4, 1e-6)
        assert (constant - bias.float().view(-1, 1, 1)).abs().max() < 0.5  # and no NaN


def test_a_cpu_runs_torchs_own_to_the_bit():
    x, _, weight, bias = tensors(torch.float32)
    ours = unet.group_norm(12)
    assert type(ours) is norm.GroupNorm and isinstance(ours, nn.GroupNorm)
    ours.load_state_dict({"weight": weight, "bias": bias})
    assert torch.equal(ours(x), F.group_norm(x, ours.num_groups, ours.weight, ours.bias, 1e-6))


def test_reconstructions_differ_less_than_those_of_another_seed(monkeypatch):
    """A VAE trained in bf16 with either norm, and one of another seed."""
    draw = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.rand(8, 1, 4, 4, generator=draw), 16, mode="bilinear") * 2 - 1

    def trained(seed: int, ours: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = vae.VAE(1, 2, width=8, down=2, num_res=1)
        if ours:
            monkeypatch.setattr(
                norm.GroupNorm, "forward", lambda m, x: normalised(x, m.weight, m.bias, m.num_groups, m.eps)
            )
        optimizer, noise = torch.optim.AdamW(network.parameters(), 2e-3), torch.Generator().manual_seed(seed)
        for _ in range(30):
            with torch.autocast("cpu", torch.bfloat16):
                output, mean, logvar = network(images, torch.randn(8, 2, 8, 8, generator=noise))
            loss = (output - images).abs().mean() + 1e-4 * vae.kl_divergence(mean, logvar).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found = copy.deepcopy(network).decode(network.encode(images)[0])
        monkeypatch.undo()
        return found

    torchs, other_seed, ours = trained(1, False), trained(2, False), trained(1, True)
    assert (torchs - images).abs().mean() < 0.2  # it has learnt
    assert 0 < (ours - torchs).norm() < (other_seed - torchs).norm()
