"""GAN losses and regularisers against their formulas, finite differences and an explicit Jacobian."""

import math

import pytest
import torch

from models import gan_losses
from models.stylegan2 import Discriminator, Generator


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_losses_equal_their_formulas_row_by_row():
    real, fake = [0.3, -1.2, 2.0], [-0.7, 0.4, 1.0]
    r, f = torch.tensor(real), torch.tensor(fake)
    pairs = list(zip(real, fake, strict=True))
    expected = {
        "logistic": ([softplus(-b) for _, b in pairs], [softplus(b) + softplus(-a) for a, b in pairs]),
        "rpgan": ([softplus(a - b) for a, b in pairs], [softplus(b - a) for a, b in pairs]),
    }
    for kind, (generator, discriminator) in expected.items():
        torch.testing.assert_close(gan_losses.generator_loss(f, r, kind=kind), torch.tensor(generator))
        torch.testing.assert_close(gan_losses.discriminator_loss(r, f, kind), torch.tensor(discriminator))


def test_the_generator_wants_larger_logits_and_its_gradient_does_not_vanish():
    fake = torch.tensor([-8.0], requires_grad=True)  # the discriminator is sure that it is generated
    for real in (None, torch.tensor([0.0])):
        loss = gan_losses.generator_loss(fake, real, kind="logistic" if real is None else "rpgan")
        assert torch.autograd.grad(loss, fake)[0].item() < -0.99


def test_unknown_kind_and_missing_real_logits_are_refused():
    with pytest.raises(ValueError, match="logistic, rpgan"):
        gan_losses.generator_loss(torch.zeros(1), kind="hinge")
    with pytest.raises(ValueError, match="logistic, rpgan"):
        gan_losses.discriminator_loss(torch.zeros(1), torch.zeros(1), "hinge")
    with pytest.raises(ValueError, match="real_logits"):
        gan_losses.generator_loss(torch.zeros(1), kind="rpgan")


# --- gradient penalty -------------------------------------------------------------------------------------------------
def test_gradient_penalty_of_linear_and_quadratic_discriminators():
    x = torch.randn(3, 2, 4, 4, requires_grad=True)
    a = torch.randn(2, 4, 4)
    linear = gan_losses.gradient_penalty(x, (x * a).sum((1, 2, 3)))  # the gradient is a
    torch.testing.assert_close(linear, a.square().sum().expand(3))
    quadratic = gan_losses.gradient_penalty(x, x.square().sum((1, 2, 3)))  # the gradient is 2x
    torch.testing.assert_close(quadratic, 4 * x.square().sum((1, 2, 3)))
    torch.testing.assert_close(torch.autograd.grad(quadratic.sum(), x)[0], 8 * x)


def test_gradient_penalty_and_its_own_gradient_equal_finite_differences():
    torch.manual_seed(0)
    D = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(48, 1)
    ).double()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)

    def by_differences(x, h=1e-5):
        total = torch.zeros(len(x), dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                step = torch.zeros_like(x)
                step[:, 0, i, j] = h
                total += ((D(x + step) - D(x - step)).squeeze(1) / (2 * h)).detach() ** 2
        return total

    images = x.clone().requires_grad_(True)
    penalty = gan_losses.gradient_penalty(images, D(images).squeeze(1))
    torch.testing.assert_close(penalty.detach(), by_differences(x), rtol=1e-6, atol=1e-9)
    (grad,) = torch.autograd.grad(penalty.sum(), D[0].weight)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            D[0].weight[1, 0, 2, 0] += sign * 1e-4
            values.append(by_differences(x).sum())
            D[0].weight[1, 0, 2, 0] -= sign * 1e-4
    assert grad[1, 0, 2, 0].item() == pytest.approx(((values[0] - values[1]) / 2e-4).item(), rel=1e-3)


def test_gradient_penalty_of_the_real_discriminator_equals_finite_differences():
    torch.manual_seed(0)
    D = Discriminator(resolution=16, channel_base=128, channel_max=8, mbstd_group=1)
    x = torch.randn(2, 1, 16, 16)
    images = x.clone().requires_grad_(True)
    penalty = gan_losses.gradient_penalty(images, D(images))
    (grad,) = torch.autograd.grad(D(images).sum(), images)
    direction = (
        grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    )  # along it the slope is the norm of the gradient
    slope = (D(x + 0.01 * direction) - D(x - 0.01 * direction)) / 0.02
    torch.testing.assert_close(slope.square(), penalty, rtol=0.02, atol=1e-6)


# --- path length ------------------------------------------------------------------------------------------------------
def test_path_lengths_equal_the_explicit_jacobian():
    torch.manual_seed(0)
    G = Generator(resolution=16, channel_base=64, channel_max=4, z_dim=3, w_dim=3, mapping_layers=1)
    ws = torch.randn(2, G.num_ws, 3, requires_grad=True)
    y = torch.randn(2, 1, 16, 16)
    lengths = gan_losses.path_lengths(G.synthesis(ws), ws, y)
    for n in range(2):
        jacobian = torch.func.jacrev(lambda w: G.synthesis(w[None])[0])(ws[n].detach())  # (1, 16, 16, num_ws, w_dim)
        pulled = torch.einsum("chw,chwld->ld", y[n] / 16, jacobian.detach())
        expected = math.sqrt(sum(float(pulled[layer].norm()) ** 2 for layer in range(G.num_ws)) / G.num_ws)
        assert lengths[n].item() == pytest.approx(expected, rel=1e-4)


def test_path_length_of_a_linear_generator_is_that_of_its_matrix_per_layer():
    ws = torch.zeros(2, 3, 4, requires_grad=True)  # rows, layers, w
    a = torch.randn(3, 4, 5 * 7)
    y = torch.randn(2, 1, 5, 7)
    images = torch.einsum("bld,ldp->bp", ws, a).reshape(2, 1, 5, 7)
    lengths = gan_losses.path_lengths(images, ws, y)
    pulled = torch.einsum("ldp,bp->bld", a, y.flatten(1)) / math.sqrt(35)
    torch.testing.assert_close(lengths, pulled.norm(dim=2).square().mean(1).sqrt())


def test_path_length_penalty_trains_the_generator():
    torch.manual_seed(0)
    G = Generator(resolution=16, channel_base=64, channel_max=4, z_dim=3, w_dim=3, mapping_layers=1)
    ws = G.broadcast(G.mapping(torch.randn(2, 3)))
    lengths = gan_losses.path_lengths(G.synthesis(ws), ws, torch.randn(2, 1, 16, 16))
    mean = torch.tensor(0.5)
    penalty = gan_losses.path_length_penalty(lengths, mean)
    torch.testing.assert_close(penalty, (lengths - 0.5) ** 2)
    penalty.mean().backward()
    for p in (G.const, G.layers[1].weight, G.mapping.layers[0].weight, G.to_rgb[2].weight):
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0
