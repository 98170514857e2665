"""The VAE and its losses: shapes, closed forms, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from models import vae as v


@pytest.mark.parametrize(("down", "channels", "latent"), [(2, 1, 3), (4, 3, 4), (8, 1, 8)])
def test_shapes(down, channels, latent):
    model = v.VAE(channels, latent, width=8, down=down, num_res=1)
    images = torch.randn(2, channels, 32, 32)
    noise = torch.randn(2, latent, 32 // down, 32 // down)
    output, mean, logvar = model(images, noise)
    assert output.shape == images.shape and mean.shape == logvar.shape == noise.shape
    assert torch.equal(output, model.decode(mean + (logvar / 2).exp() * noise))
    with pytest.raises(ValueError, match="2, 4 or 8"):
        v.VAE(down=3)


# --- the networks, layer by layer from their tensors ------------------------------------------------------------------
class Tensors:
    """A state dict whose layers are applied by name."""

    def __init__(self, module: torch.nn.Module):
        self.values = module.state_dict()

    def conv(self, name: str, x, **kwargs):
        return F.conv2d(x, self.values[f"{name}.weight"], self.values[f"{name}.bias"], **kwargs)

    def norm(self, name: str, x):
        """GroupNorm of 32 groups; fewer where they do not divide the channels or would have less than two in each."""
        groups = next(g for g in (32, 16, 8, 4, 2, 1) if x.shape[1] % (2 * g) == 0)
        return F.group_norm(x, groups, self.values[f"{name}.weight"], self.values[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, x):
        """He 2016 with the norm first: two times norm, SiLU, 3 x 3; the input is added, by 1 x 1 where the channels
        change."""
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.skip", x) if f"{name}.skip.weight" in self.values else x)

    def attention(self, name: str, x, heads: int):
        """Vaswani 2017 over the pixels, on the normalised input, which is added to the result."""
        n, c, h, w = x.shape
        flat = self.norm(f"{name}.norm", x).reshape(n, c, h * w).permute(0, 2, 1)
        qkv = F.linear(flat, self.values[f"{name}.qkv.weight"], self.values[f"{name}.qkv.bias"])
        q, k, v = (t.reshape(n, h * w, heads, c // heads).transpose(1, 2) for t in qkv.chunk(3, dim=2))
        weights = (q @ k.transpose(2, 3) / (c // heads) ** 0.5).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(n, h * w, c)
        out = F.linear(out, self.values[f"{name}.out.weight"], self.values[f"{name}.out.bias"])
        return x + out.permute(0, 2, 1).reshape(n, c, h, w)


def awake(module: torch.nn.Module) -> torch.nn.Module:
    """Layers that start at zero get weights, all biases and norms other numbers than 0 and 1."""
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.dim() == 1 or not p.any():
                p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize(("down", "width", "heads"), [(2, 8, 1), (4, 8, 1), (8, 32, 2)])
def test_the_networks_are_those_of_rombach_2022(down, width, heads):
    """Two residual blocks per resolution, widths 1, 2, 4, 4, strided and nearest-neighbour resampling, attention in the
    middle."""
    model = awake(v.VAE(1, 3, width=width, down=down, num_res=2))
    images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    t, levels = Tensors(model), {2: 2, 4: 3, 8: 4}[down]
    number = iter(range(100))
    name = lambda half: f"{half}.{next(number)}"  # noqa: E731

    x = t.conv(name("encoder"), images, padding=1)
    for level in range(levels):
        for _ in range(2):
            x = t.block(name("encoder"), x)
        assert x.shape[1:] == (width * (1, 2, 4, 4)[level], 16 >> level, 16 >> level)
        x = t.conv(name("encoder"), x, stride=2, padding=1) if level < levels - 1 else x
    x = t.block(name("encoder"), x)
    x = t.attention(name("encoder"), x, heads)
    x = t.block(name("encoder"), x)
    x = F.silu(t.norm(name("encoder"), x))
    next(number)  # the SiLU has a number of its own
    mean, logvar = t.conv(name("encoder"), x, padding=1).chunk(2, dim=1)
    for ours, theirs in zip(model.encode(images), (mean, logvar), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)

    number = iter(range(100))
    x = t.conv(name("decoder"), mean, padding=1)
    x = t.block(name("decoder"), x)
    x = t.attention(name("decoder"), x, heads)
    x = t.block(name("decoder"), x)
    for level in reversed(range(levels)):
        for _ in range(2):
            x = t.block(name("decoder"), x)
        if level:
            x = t.conv(f"{name('decoder')}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    x = F.silu(t.norm(name("decoder"), x))
    next(number)
    assert torch.allclose(model.decode(mean), t.conv(name("decoder"), x, padding=1), atol=1e-4)


@torch.no_grad()
def test_the_discriminator_is_that_of_isola_2017():
    """4 x 4 convolutions: three of stride 2, one of stride 1, one to a logit per patch; slope 0.2, no norm in the
    first."""
    model = awake(v.PatchDiscriminator(1, width=8))
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    t = Tensors(model)
    x = F.leaky_relu(t.conv("model.0", images, stride=2, padding=1), 0.2)
    for place, stride, width in ((2, 2, 16), (5, 2, 32), (8, 1, 64)):
        x = F.leaky_relu(t.norm(f"model.{place + 1}", t.conv(f"model.{place}", x, stride=stride, padding=1)), 0.2)
        assert x.shape[1] == width
    assert torch.allclose(model(images), t.conv("model.11", x, padding=1), atol=1e-5)
    assert v.PatchDiscriminator(1, width=8, layers=5).model[-1].weight.shape[1] == 64  # never wider than 8 times


def test_rows_are_independent_and_every_parameter_learns():
    torch.manual_seed(0)
    model = v.VAE(1, 4, width=8, down=4, num_res=1)
    images = torch.randn(3, 1, 16, 16, requires_grad=True)
    output, mean, logvar = model(images, torch.randn(3, 4, 4, 4))
    (output[1].square().sum() + v.kl_divergence(mean, logvar)[1]).backward()
    assert images.grad[1].abs().max() > 0 and images.grad[[0, 2]].abs().max() == 0
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Behind an attention whose last layer starts at zero nothing learns in the first step.
    assert all(".qkv." in name or ".norm." in name for name in silent)


def test_kl_against_torch_distributions_per_value():
    mean, logvar = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean((1, 2, 3))
    assert torch.allclose(v.kl_divergence(mean, logvar), expected, atol=1e-6)
    bigger = v.kl_divergence(mean.repeat(1, 1, 4, 4), logvar.repeat(1, 1, 4, 4))
    assert torch.allclose(bigger, expected, atol=1e-6)  # mean units: the size of the latent does not matter


def test_posterior_samples_have_its_mean_and_spread():
    mean, logvar = torch.full((20000, 1), 2.0), torch.full((20000, 1), math.log(0.25))
    z = v.posterior_sample(mean, logvar, torch.randn(20000, 1, generator=torch.Generator().manual_seed(0)))
    assert float(z.mean()) == pytest.approx(2, abs=0.02) and float(z.std()) == pytest.approx(0.5, abs=0.01)


def test_logvar_is_bounded():
    model = v.VAE(1, 2, width=8, down=2, num_res=1)
    torch.nn.init.constant_(model.encoder[-1].bias, 1e6)
    assert model.encode(torch.zeros(1, 1, 8, 8))[1].max() == 20
    torch.nn.init.constant_(model.encoder[-1].bias, -1e6)
    assert model.encode(torch.zeros(1, 1, 8, 8))[1].min() == -30


def test_reconstruction_losses():
    a, b = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    assert v.reconstruction_loss(a, b).tolist() == [0.5, 0.5]
    assert v.reconstruction_loss(a, b, "mse").tolist() == [0.25, 0.25]


def test_the_structure_term_punishes_blur_more_than_a_shift_of_grey():
    gen = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 1, 16, 16, generator=gen), 32, mode="nearest") * 1.6 - 0.8
    blurred = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
    l1 = v.reconstruction_loss(blurred, image)
    shifted = image + l1  # the same L1 distance
    assert torch.allclose(v.reconstruction_loss(shifted, image), l1)
    assert v.structure_loss(blurred, image) > 3 * v.structure_loss(shifted, image)
    assert v.structure_loss(image, image).abs().max() < 1e-4


def test_hinge_losses():
    real, fake = torch.tensor([[2.0, 0.0]]), torch.tensor([[-3.0, 0.5]])
    assert float(v.hinge_d_loss(real, fake)) == pytest.approx((0 + 1 + 0 + 1.5) / 4)
    assert float(v.hinge_g_loss(fake)) == pytest.approx(1.25)


def test_the_adversarial_weight_equalises_the_gradients_and_is_bounded():
    assert float(v.balanced_weight(torch.tensor(3.0), torch.tensor(1.5))) == pytest.approx(2.0, rel=1e-3)
    assert float(v.balanced_weight(torch.tensor(1e9), torch.tensor(0.0))) == 1e4


def test_the_patch_discriminator_sees_patches():
    torch.manual_seed(0)
    D = v.PatchDiscriminator(1, width=8, layers=2)
    images = torch.randn(2, 1, 64, 64, requires_grad=True)
    logits = D(images)
    assert logits.shape[:2] == (2, 1) and logits.shape[-1] in range(13, 17)
    logits[0, 0, 0, 0].backward()
    assert images.grad[1].abs().max() == 0


def test_latent_figures():
    gen = torch.Generator().manual_seed(0)
    means = torch.randn(4000, 3, 2, 2, generator=gen)
    means[:, 1] = 0.6 + 0.01 * means[:, 1]  # constant over the data: carries nothing whatever its level
    means[:, 2] *= 2
    sd = torch.full_like(means, 0.5)
    samples = means + sd * torch.randn(means.shape, generator=gen)
    figures = v.latent_figures(*(x.double().mean((0, 2, 3)) for x in (means, means**2, sd, sd**2)))
    stds = samples.transpose(0, 1).flatten(1).std(1)
    assert figures["active_channels"] == 2 and figures["posterior_std"] == pytest.approx(0.5)
    assert figures["latent_mean"] == pytest.approx(float(samples.mean()), abs=0.02)
    assert figures["latent_std_min"] == pytest.approx(float(stds.min()), rel=0.02)
    assert figures["latent_std_max"] == pytest.approx(float(stds.max()), rel=0.02)
    assert figures["latent_std"] == pytest.approx(float(stds.square().mean().sqrt()), rel=0.02)


def test_a_channel_counts_as_active_from_a_variance_of_a_hundredth():
    """Burda 2016, section 2: the posterior means' variance over the data, whatever the posteriors' own."""
    variance = torch.tensor([0.005, 0.009, 0.011, 0.5], dtype=torch.float64)
    mean, ones = torch.full((4,), 3.0).double(), torch.ones(4).double()
    assert v.latent_figures(mean, mean**2 + variance, ones, ones)["active_channels"] == 2


def test_it_learns_to_reconstruct():
    """A few steps on smooth blobs: the error falls far below that of the mean image."""
    torch.manual_seed(0)
    model = v.VAE(1, 4, width=8, down=2, num_res=1)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    centre = torch.rand(16, 2, 1, 1) - 0.5
    images = (2 * torch.exp(-8 * ((x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2)) - 1)[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        output, mean, logvar = model(images, torch.randn(16, 4, 8, 8))
        loss = (v.reconstruction_loss(output, images, "mse") + 1e-4 * v.kl_divergence(mean, logvar)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = v.reconstruction_loss(model.decode(model.encode(images)[0]), images, "mse").mean()
    assert error < 0.1 * images.var(0, unbiased=False).mean()


def test_the_structure_term_is_the_mean_over_the_scales_that_there_are():
    """At 8 px there is one scale, at 16 two: below 8 no window fits."""
    for side, scales in ((8, 1), (16, 2), (32, 3), (64, 3)):
        a, b = (2 * torch.rand(2, 2, 1, side, side, generator=torch.Generator().manual_seed(0)) - 1).unbind(0)
        parts = []
        for _ in range(scales):
            parts.append(v.structure_loss(a, b, scales=1))
            a, b = (torch.nn.functional.avg_pool2d(x, 2) for x in (a, b))
        whole = (2 * torch.rand(2, 2, 1, side, side, generator=torch.Generator().manual_seed(0)) - 1).unbind(0)
        assert torch.allclose(v.structure_loss(*whole), sum(parts) / scales, atol=1e-5)
