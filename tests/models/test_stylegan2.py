"""StyleGAN2 networks against slow references written from the formulas, and against the published sizes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models import filters, stylegan2
from models.gan_losses import gradient_penalty, path_lengths
from models.loading import load_generator
from models.stylegan2 import Discriminator, Generator, mix_styles

TINY = dict(resolution=16, channel_base=128, channel_max=12)


def tiny_generator(seed=0, **changes) -> Generator:
    torch.manual_seed(seed)
    G = Generator(**(TINY | dict(z_dim=6, w_dim=7, mapping_layers=2) | changes))
    with torch.no_grad():  # away from the special point of the start: noise off, biases zero
        for layer in G.layers:
            layer.noise_strength.fill_(0.3)
            layer.bias.normal_()
        for rgb in G.to_rgb:
            rgb.bias.normal_()
    return G


def tiny_discriminator(seed=1, **changes) -> Discriminator:
    torch.manual_seed(seed)
    return Discriminator(**(TINY | dict(mbstd_group=2, mapping_layers=2) | changes))


# --- the resampling filter --------------------------------------------------------------------------------------------
def fir_by_loops(x: np.ndarray, mode: str, padding: int, gain: float) -> np.ndarray:
    """Zeros between pixels (up), zero padding, correlation with [1,3,3,1]/8 in two dimensions, every second pixel
    (down)."""
    taps = np.array([1, 3, 3, 1]) / 8
    batch, channels, height, width = x.shape
    if mode == "up":
        spread = np.zeros((batch, channels, 2 * height, 2 * width))
        spread[:, :, ::2, ::2] = x
        before, after, x = 2, 1, spread
    else:
        before = after = padding
    x = np.pad(x, [(0, 0), (0, 0), (before, after), (before, after)])
    out = np.zeros((batch, channels, x.shape[2] - 3, x.shape[3] - 3))
    for i in range(out.shape[2]):
        for j in range(out.shape[3]):
            for a in range(4):
                for b in range(4):
                    out[:, :, i, j] += gain * taps[a] * taps[b] * x[:, :, i + a, j + b]
    return out[:, :, ::2, ::2] if mode == "down" else out


FIR_CASES = [("up", 1, 4.0), ("down", 1, 1.0), ("same", 1, 4.0), ("same", 2, 1.0)]


@pytest.mark.parametrize("function", [filters._SelfAdjointFir.apply, filters._fir_shifted])
@pytest.mark.parametrize(("mode", "padding", "gain"), FIR_CASES)
def test_fir_equals_loops(function, mode, padding, gain):
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    expected = torch.from_numpy(fir_by_loops(x.numpy(), mode, padding, gain))
    torch.testing.assert_close(function(x, mode, padding, gain), expected)


@pytest.mark.parametrize(("mode", "padding", "gain"), FIR_CASES)
def test_fir_backward_is_the_adjoint_and_twice_differentiable(mode, padding, gain):
    def fir(x):
        return filters._SelfAdjointFir.apply(x, mode, padding, gain)

    x = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn_like(fir(x))
    (adjoint,) = torch.autograd.grad(fir(x), x, y)
    torch.testing.assert_close((fir(x) * y).sum(), (x * adjoint).sum())  # <A x, y> = <x, A' y>
    assert torch.autograd.gradcheck(fir, x)
    assert torch.autograd.gradgradcheck(lambda x: fir(x.square()), x)


def test_fir_double_backward_is_one_convolution_and_not_a_loop_over_channels():
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        (grad,) = torch.autograd.grad(filters.downsample(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert sum(e.count for e in profile.key_averages() if e.key == "aten::convolution") <= 6


def test_resampling_keeps_a_constant_image_and_its_mean_place():
    flat = torch.ones(1, 2, 8, 8)
    for y in (filters.upsample(flat), filters.downsample(flat)):
        torch.testing.assert_close(y[:, :, 2:-2, 2:-2], torch.ones_like(y[:, :, 2:-2, 2:-2]))
    bump = torch.zeros(1, 1, 8, 8)
    bump[..., 3:5, 3:5] = 1  # symmetric about the centre stays so: no shift by half a pixel
    for y in (filters.upsample(bump), filters.downsample(bump)):
        torch.testing.assert_close(y, y.flip(2, 3))


# --- modulated convolution --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("up", [False, True])
def test_modulated_conv_equals_a_filter_per_sample(up):
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    styles = torch.randn(3, 4, dtype=torch.float64)
    y, d = stylegan2.modulated_conv(x, weight, styles, up=up)
    for n in range(3):
        own = torch.empty_like(weight)
        for o in range(6):
            for i in range(4):
                own[o, i] = styles[n, i] * weight[o, i]
            own[o] /= math.sqrt(own[o].square().sum() + 1e-8)
        if up:  # zeros between the pixels, convolution, filter
            wide = F.conv_transpose2d(x[n : n + 1], own.transpose(0, 1), stride=2)
            expected = torch.from_numpy(fir_by_loops(wide.numpy(), "same", 1, 4.0))
        else:
            expected = F.conv2d(x[n : n + 1], own, padding=1)
        torch.testing.assert_close(y[n : n + 1] * d[n, :, None, None], expected)


def test_fp16_scaling_of_weights_and_styles_cancels():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    styles = torch.randn(2, 4) * torch.tensor([[1.0], [3e4]])  # would overflow in fp16 without the scaling
    y, d = stylegan2.modulated_conv(x, weight, styles)
    half, d_half = stylegan2.modulated_conv(x.half(), weight * 3e4, styles)
    assert half.dtype == torch.float16 and half.isfinite().all()
    expected = y * d[:, :, None, None]
    torch.testing.assert_close(half.float() * d_half[:, :, None, None], expected, atol=0.02, rtol=0.02)


def test_synthesis_layer_is_conv_noise_bias_leaky_relu_with_gain():
    torch.manual_seed(0)
    layer = stylegan2.SynthesisLayer(4, 6, 5, 8)
    with torch.no_grad():
        layer.bias.normal_()
        layer.noise_strength.fill_(0.7)
    x, w, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 5), torch.randn(2, 1, 8, 8)
    styles = w @ layer.affine.weight.T / math.sqrt(5) + 1.0
    y, d = stylegan2.modulated_conv(x, layer.weight / math.sqrt(36), styles)
    y = y * d[:, :, None, None] + 0.7 * noise + layer.bias[:, None, None]
    expected = torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)
    torch.testing.assert_close(layer(x, w, noise), expected, atol=1e-5, rtol=1e-5)


def test_to_rgb_has_no_activation_and_no_demodulation():
    torch.manual_seed(0)
    rgb = stylegan2.ToRGB(8, 3, 5)
    with torch.no_grad():
        rgb.bias.normal_()
    x, y, w = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4), torch.randn(2, 5)

    def linear(x):
        return rgb(x, w) - rgb.bias[:, None, None]

    torch.testing.assert_close(linear(2 * x - 3 * y), 2 * linear(x) - 3 * linear(y), atol=1e-5, rtol=1e-5)
    styles = rgb.affine(w)
    with torch.no_grad():
        rgb.affine.weight.mul_(4)
        rgb.affine.bias.mul_(4)
    torch.testing.assert_close(linear(x), torch.einsum("bihw,bi,oi->bohw", x, 4 * styles, rgb.weight) / math.sqrt(8))


def test_synthesis_is_the_sum_of_upsampled_rgb_images():
    G = tiny_generator()
    ws = torch.randn(2, G.num_ws, 7)
    x, image = G.const.expand(2, -1, -1, -1), None
    for i, layer in enumerate(G.layers):
        x = layer(x, ws[:, i], getattr(G, f"noise_{i}"))
        if x.shape[2] in (4, 8, 16) and i in (0, 2, 4):
            rgb = G.to_rgb[i // 2](x, ws[:, i + 1])
            up = 0 if image is None else torch.from_numpy(fir_by_loops(image.detach().numpy(), "up", 1, 4.0)).float()
            image = up + rgb
    torch.testing.assert_close(G.synthesis(ws), image, atol=1e-5, rtol=1e-5)


# --- initialisation and sizes -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("resolution", "channel_base", "channel_max", "millions_g", "millions_d", "digits"),
    [
        (64, 16384, 512, 23.8, 23.4, 1), (64, 32768, 512, 27.0, 26.5, 1), (128, 16384, 512, 24.5, 23.9, 1),
        (128, 32768, 512, 29.3, 28.4, 1), (256, 16384, 512, 24.8, 24.0, 1), (256, 32768, 512, 30.0, 28.9, 1),
        (64, 8192, 256, 8.39, 5.85, 2), (128, 8192, 256, 8.63, 5.97, 2),
    ],
)  # fmt: skip
def test_parameter_counts_are_those_of_the_published_networks(
    resolution, channel_base, channel_max, millions_g, millions_d, digits
):
    size = dict(resolution=resolution, channel_base=channel_base, channel_max=channel_max)
    with torch.device("meta"):
        networks = Discriminator(**size), Generator(**size)
    d, g = (sum(p.numel() for p in network.parameters()) / 1e6 for network in networks)
    assert (round(g, digits), round(d, digits)) == (millions_g, millions_d)


def test_equalised_learning_rate_stores_unit_weights_and_scales_them():
    torch.manual_seed(0)
    layer = stylegan2.EqualLinear(300, 200, lr_multiplier=0.01)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.02)
    assert layer(torch.randn(500, 300)).std().item() == pytest.approx(1, rel=0.03)
    size = dict(resolution=32, channel_base=2048, channel_max=64)
    D, G = Discriminator(**size), Generator(**size)
    layer = G.layers[2]
    for weight in (D.blocks[0].conv0.weight, D.blocks[1].skip, D.linear.weight, layer.weight, layer.affine.weight):
        assert weight.std().item() == pytest.approx(1, rel=0.05)
    assert torch.equal(layer.affine.bias, torch.ones(64))
    assert not any(
        part.bias.any() for part in (layer, G.to_rgb[0], D.from_rgb, D.blocks[0].conv1, D.conv, D.linear, D.out)
    )
    slowed = stylegan2.EqualLinear(3, 4, bias=1.0, lr_multiplier=0.01)
    torch.testing.assert_close(slowed(torch.zeros(1, 3)), torch.ones(1, 4))
    assert all(layer.noise_strength.item() == 0 for layer in G.layers)
    # With such weights the scale of features neither grows nor falls with depth; padding takes a little.
    x = torch.randn(4, 64, 32, 32).contiguous(memory_format=torch.channels_last)
    rms = [
        y.square().mean().sqrt().item() for y in (D.blocks[0].conv0(x), stylegan2.pointwise(x, D.blocks[0].skip / 8))
    ]
    assert rms == pytest.approx([1, 1], abs=0.1)


def directions(x: torch.Tensor) -> float:
    """In how many directions rows (N, dim) spread: the participation ratio of the eigenvalues of their covariance."""
    eigenvalues = torch.linalg.eigvalsh(x.T.cov())
    return float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())


@pytest.mark.parametrize(
    ("dim", "layers", "classes", "least"), [(64, 1, 0, 55), (64, 2, 0, 45), (64, 2, 2, 25), (128, 8, 0, 30)]
)
def test_directions_of_the_latent_reach_the_styles_of_every_layer(dim, layers, classes, least):
    """With matrices ~ N(0, 1) they were 35, 25, 18 and 13 to 18, and the styles had a third fewer than w."""
    torch.manual_seed(0)
    size = dict(resolution=16, channel_base=16 * dim, channel_max=dim, z_dim=dim, w_dim=dim)
    G = Generator(**size, mapping_layers=layers, num_classes=classes)
    with torch.no_grad():
        w = G.mapping(torch.randn(4000, dim), torch.zeros(4000, dtype=torch.int64) if classes else None)
        assert directions(w) > least
        for layer in (*G.layers, *G.to_rgb):
            assert directions(layer.affine(w)) == pytest.approx(directions(w), rel=1e-2)
    D = Discriminator(resolution=16, channel_base=16 * dim, channel_max=dim, num_classes=classes)
    for layer in D.mapping.layers if classes else ():  # of the class alone: as published
        assert directions(layer.weight.detach()) < 0.6 * dim


def test_mapping_multiplier_slows_the_mapping_network_a_hundredfold():
    x = torch.randn(8, 6)
    changes = []
    for multiplier in (1.0, 0.01):
        torch.manual_seed(0)
        layer = stylegan2.EqualLinear(6, 6, lr_multiplier=multiplier)
        before = layer(x)
        with torch.no_grad():
            layer.weight.sub_(0.01)  # one step of Adam: the same length whatever the gradient
        changes.append((layer(x) - before).norm().item())
    assert changes[1] == pytest.approx(changes[0] / 100, rel=1e-3)


def test_mapping_networks_equal_their_formula():
    """z and the class at a mean square of one, side by side, then layers whose weights and biases are stored a hundred
    times larger than they are used (Karras 2019, section 3 and appendix C; Karras 2020b), in D the class alone."""
    G, D = tiny_generator(num_classes=3), tiny_discriminator(num_classes=3)
    z, labels = 3 * torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
    for network, parts in ((G.mapping, [z]), (D.mapping, [])):
        with torch.no_grad():
            for layer in network.layers:
                layer.bias.normal_(0, 100)
        parts = [*parts, network.embedding.detach()[labels]]
        x = torch.cat([p / p.square().mean(1, keepdim=True).sqrt() for p in parts], 1)
        for layer in network.layers:
            assert layer.weight.std().item() == pytest.approx(100, rel=0.4)
            x = 0.01 * (x @ layer.weight.T / math.sqrt(x.shape[1]) + layer.bias)
            x = math.sqrt(2) * torch.where(x > 0, x, 0.2 * x)
        torch.testing.assert_close(network(z if len(parts) > 1 else None, labels), x, atol=1e-5, rtol=1e-4)


def test_fixed_noise_is_the_same_everywhere_and_leaves_the_global_stream_alone():
    torch.manual_seed(5)
    a = Generator(**TINY)
    torch.manual_seed(6)
    b = Generator(**TINY)
    assert torch.equal(a.noise_3, b.noise_3) and not torch.equal(a.const, b.const)
    assert "noise_3" in a.state_dict() and "w_avg" in a.state_dict()


@pytest.mark.parametrize("resolution", [8, 48, 2048])
def test_other_resolutions_are_refused(resolution):
    with pytest.raises(ValueError, match="power of two"):
        Generator(resolution=resolution)


# --- generator: inputs ------------------------------------------------------------------------------------------------
def test_forward_uses_no_global_randomness():
    G, D = tiny_generator(), tiny_discriminator()
    z = torch.randn(4, 6)
    state = torch.get_rng_state()
    first = G(z)
    D(first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(G(z), first)


def test_noise_is_drawn_per_layer_from_the_generator_given_and_changes_the_image():
    G = tiny_generator()
    z = torch.randn(2, 6)
    noise = G.draw_noise(2, torch.Generator().manual_seed(3), "cpu")
    assert [tuple(n.shape) for n in noise] == [(2, 1, *s) for s in G.noise_shapes]
    assert G.noise_shapes == [(4, 4), (8, 8), (8, 8), (16, 16), (16, 16)]
    again = G.draw_noise(2, torch.Generator().manual_seed(3), "cpu")
    image = G(z, noise=noise)
    assert torch.equal(image, G(z, noise=again)) and not torch.allclose(image, G(z))
    rows = G(z[1:], noise=[n[1:] for n in noise])  # a rank's rows give that rank's images
    torch.testing.assert_close(rows, image[1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="draw_noise"):
        G(z, noise=noise[:-1])


def test_w_does_not_depend_on_the_length_of_z():
    G = tiny_generator()
    z = torch.randn(3, 6)
    torch.testing.assert_close(G.mapping(z), G.mapping(7 * z), atol=1e-6, rtol=1e-4)


def test_style_mixing_changes_only_layers_from_the_cutoff_on():
    G = tiny_generator()
    w1, w2 = G.mapping(torch.randn(2, 3, 6).flatten(0, 1)).chunk(2)
    cutoff = torch.tensor([2, 5, G.num_ws])
    ws = mix_styles(w1, w2, cutoff, G.num_ws)
    for row, c in enumerate(cutoff.tolist()):
        for layer in range(G.num_ws):
            assert torch.equal(ws[row, layer], (w1 if layer < c else w2)[row])

    def features(ws):
        seen = []
        hooks = [layer.register_forward_hook(lambda m, i, out: seen.append(out.detach())) for layer in G.layers]
        G.synthesis(ws)
        for hook in hooks:
            hook.remove()
        return seen

    pure, mixed = features(G.broadcast(w1)), features(ws)
    for row, c in enumerate(cutoff.tolist()):
        for layer in range(len(G.layers)):
            moved = (pure[layer][row] - mixed[layer][row]).abs().max().item()
            assert moved < 1e-5 if layer < c else moved > 1e-2, (row, layer)


def test_every_style_reaches_the_image():
    G = tiny_generator()
    ws = torch.randn(1, G.num_ws, 7, requires_grad=True)
    G.synthesis(ws).square().sum().backward()
    assert (ws.grad.abs().sum(2) > 0).all()


def test_truncation_moves_towards_the_average_below_the_cutoff():
    G = tiny_generator()
    G.update_w_avg(torch.full((7,), 2.0), 0.75)
    G.update_w_avg(torch.full((7,), 4.0), 0.5)
    torch.testing.assert_close(G.w_avg, torch.full((7,), 0.5 * 0.5 + 0.5 * 4.0))
    ws = torch.randn(2, G.num_ws, 7)
    expected = G.w_avg + 0.6 * (ws - G.w_avg)
    torch.testing.assert_close(G.truncate(ws, 0.6), expected)
    for psi in (0.99, 1.5):
        torch.testing.assert_close(G.truncate(ws, psi), G.w_avg + psi * (ws - G.w_avg), atol=1e-5, rtol=1e-6)
    part = G.truncate(ws, 0.6, cutoff=2)
    torch.testing.assert_close(part[:, :2], expected[:, :2])
    assert torch.equal(part[:, 2:], ws[:, 2:])
    z = torch.randn(2, 6)
    one, other = G(z, truncation=0.0)
    torch.testing.assert_close(one, other)  # everything is the average
    assert torch.equal(G(z, truncation=1.0), G(z))


# --- discriminator ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("group", "channels"), [(1, 1), (2, 1), (3, 2), (6, 4)])
def test_minibatch_std_equals_loops(group, channels):
    x = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    expected = torch.zeros(6, channels, 3, 3)
    for start in range(0, 6, group):
        rows = x[start : start + group].numpy()
        for c in range(channels):
            part = rows[:, c * (4 // channels) : (c + 1) * (4 // channels)]
            expected[start : start + group, c] = float(np.sqrt(part.var(axis=0) + 1e-8).mean())
    torch.testing.assert_close(stylegan2.minibatch_std(x, group, channels), expected)


def test_minibatch_std_groups_are_contiguous_rows_and_do_not_leak():
    D = tiny_discriminator(mbstd_group=2)
    x = torch.randn(6, 1, 16, 16)
    whole = D(x)
    torch.testing.assert_close(torch.cat([D(x[:2]), D(x[2:])]), whole, atol=1e-5, rtol=1e-5)  # ranks = the whole batch
    changed = x.clone()
    changed[5] = 0
    moved = (D(changed) - whole).abs() > 1e-6
    assert moved.tolist() == [False] * 4 + [True, True]
    with pytest.raises(ValueError, match="groups of 2"):
        D(x[:3])


def test_the_penalty_sees_the_slope_of_the_minibatch_std():
    """Else the discriminator could lean on it at any slope, and generated slices can come out alike."""
    D = tiny_discriminator(mbstd_group=2, mbstd_channels=2)
    x = torch.randn(4, 1, 16, 16, requires_grad=True)
    (of_first,) = torch.autograd.grad(D(x)[0], x)
    assert (of_first.abs().amax((1, 2, 3)) > 0).tolist() == [True, True, False, False]
    # A neighbour moves the logit as its gradient says: by central differences along that gradient.
    step = torch.zeros_like(x)
    step[1] = of_first[1] / of_first[1].norm() * 0.01
    with torch.no_grad():
        rise = (D(x + step)[0] - D(x - step)[0]) / 0.02
    torch.testing.assert_close(rise, of_first[1].norm(), rtol=0.02, atol=0)


def test_discriminator_block_equals_its_formula():
    torch.manual_seed(0)
    block = stylegan2.DiscriminatorBlock(3, 5)
    with torch.no_grad():
        block.conv0.bias.normal_()
        block.conv1.bias.normal_()
    x = torch.randn(2, 3, 8, 8)

    def act(y):
        return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)

    def fir(y, mode, padding):
        return torch.from_numpy(fir_by_loops(y.detach().numpy(), mode, padding, 1.0)).float()

    y = act(F.conv2d(x, block.conv0.weight / math.sqrt(27), block.conv0.bias, padding=1))
    y = act(F.conv2d(fir(y, "same", 2), block.conv1.weight / math.sqrt(27), block.conv1.bias, stride=2))
    skip = F.conv2d(fir(x, "down", 1), block.skip[:, :, None, None] / math.sqrt(3))
    torch.testing.assert_close(block(x), (y + skip) / math.sqrt(2), atol=1e-5, rtol=1e-5)


def test_what_is_before_and_behind_the_blocks_of_the_discriminator_equals_its_formula():
    """fromRGB, minibatch-std as one more channel, a convolution and a layer with leaky ReLU, one without (Karras
    2020a)."""
    D = tiny_discriminator(channels=3)
    with torch.no_grad():
        for part in (D.from_rgb, D.conv, D.linear, D.out):
            part.bias.normal_()
    weights = {
        name: getattr(D, name).weight / math.sqrt(getattr(D, name).weight[0].numel())
        for name in ("from_rgb", "conv", "linear", "out")
    }

    def active(y):
        return math.sqrt(2) * torch.where(y > 0, y, 0.2 * y)

    images = torch.randn(4, 3, 16, 16)
    x = active(F.conv2d(images, weights["from_rgb"], D.from_rgb.bias))
    for block in D.blocks:
        x = block(x)
    x = torch.cat([x, stylegan2.minibatch_std(x, 2)], 1)
    x = active(F.conv2d(x, weights["conv"], D.conv.bias, padding=1)).flatten(1)
    x = active(x @ weights["linear"].T + D.linear.bias) @ weights["out"].T + D.out.bias
    torch.testing.assert_close(D(images), x.squeeze(1), atol=1e-5, rtol=1e-4)


# --- classes ----------------------------------------------------------------------------------------------------------
def test_classes_reach_both_networks_and_are_asked_for():
    G, D = tiny_generator(num_classes=3), tiny_discriminator(num_classes=3)
    z, x = torch.randn(4, 6), torch.randn(4, 1, 16, 16)
    zeros, ones = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    assert not torch.allclose(G(z, zeros), G(z, ones)) and G.mapping.layers[0].weight.shape == (7, 6 + 7)
    assert (D(x, zeros) - D(x, ones)).abs().min() > 1e-6
    D(x, zeros).sum().backward()
    assert D.mapping.embedding.grad[0].abs().sum() > 0 and D.mapping.embedding.grad[1:].abs().sum() == 0
    for network, value in ((G, z), (D, x)):
        with pytest.raises(ValueError, match="3 classes"):
            network(value)


def test_projection_is_the_product_of_features_and_mapped_class_over_root_dim():
    D = tiny_discriminator(num_classes=2)
    seen = {}
    D.out.register_forward_hook(lambda m, i, out: seen.update(features=out))
    labels = torch.tensor([0, 1, 1, 0])
    logits = D(torch.randn(4, 1, 16, 16), labels)
    mapped = D.mapping(None, labels).detach()
    expected = [float(seen["features"][i].detach() @ mapped[i]) / math.sqrt(12) for i in range(4)]
    torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("channels", "resolution"), [(1, 16), (3, 32)])
def test_shapes_without_classes(channels, resolution):
    G = tiny_generator(channels=channels, resolution=resolution)
    D = tiny_discriminator(channels=channels, resolution=resolution)
    images = G(torch.randn(4, 6))
    assert images.shape == (4, channels, resolution, resolution) and images.dtype == torch.float32
    logits = D(images)
    assert logits.shape == (4,) and logits.dtype == torch.float32
    assert G.num_ws == len(G.layers) + 1 == 2 * int(math.log2(resolution)) - 2


# --- precision --------------------------------------------------------------------------------------------------------
@pytest.fixture
def convolutions(monkeypatch):
    """The dtypes of the inputs and weights that reach any convolution."""
    seen = []
    for name in ("conv2d", "conv_transpose2d"):
        real = getattr(F, name)

        def spy(x, weight, *args, real=real, **kwargs):
            seen.append((x.dtype, weight.dtype, weight.shape[-1], x.shape[1], x.shape[2]))
            return real(x, weight, *args, **kwargs)

        monkeypatch.setattr(F, name, spy)
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_fp32_and_really_half_inside(dtype, convolutions):
    G, D = tiny_generator(), tiny_discriminator()
    z = torch.randn(4, 6)
    exact = G(z)
    convolutions.clear()
    images = G(z, dtype=dtype)
    threes = [c for c in convolutions if c[2] == 3]
    assert len(threes) == len(G.layers) and all(c[:2] == (dtype, dtype) for c in threes)
    assert all(c[0] == torch.float32 for c in convolutions if c[3] == 1), "the sum of the RGB images stays fp32"
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    error = (images - exact).square().mean().sqrt() / exact.std()
    assert images.dtype == torch.float32 and 0 < error < tolerance
    logits = D(exact)
    convolutions.clear()
    half = D(exact, dtype=dtype)
    threes = [c for c in convolutions if c[2] == 3]
    assert all(c[:2] == (dtype, dtype) for c in threes if c[4] > 4)
    assert [c[0] for c in threes if c[4] == 4] == [torch.float32]  # minibatch-std and what follows
    assert half.dtype == torch.float32 and 0 < (half - logits).abs().max() < tolerance * max(1, logits.abs().max())
    assert all(p.dtype == torch.float32 for network in (G, D) for p in network.parameters())


def test_fp16_activations_are_clamped_and_others_are_not():
    big = torch.tensor([1e4, -1e5])
    assert stylegan2.leaky_relu_(big.half().clone()).tolist() == [256, -256]
    torch.testing.assert_close(stylegan2.leaky_relu_(big.clone()), torch.tensor([1e4, -2e4]))
    assert stylegan2.leaky_relu_(big.bfloat16()).abs().min() > 9e3


def test_feature_maps_stay_channels_last():
    G, D = tiny_generator(), tiny_discriminator()
    formats = []

    def note(module, inputs, output):
        formats.append(output.is_contiguous(memory_format=torch.channels_last))

    for module in [*G.layers, D.from_rgb, *D.blocks, *(b.conv0 for b in D.blocks)]:
        module.register_forward_hook(note)
    images = G(torch.randn(4, 6))
    assert images.is_contiguous()
    D(images)
    assert all(formats) and len(formats) == 5 + 1 + 2 + 2


def test_bf16_double_backward_agrees_with_fp32():
    wide = dict(channel_base=512, channel_max=32)
    G, D = tiny_generator(**wide), tiny_discriminator(**wide)
    x, z = torch.randn(4, 1, 16, 16), torch.randn(4, 6)
    pl_noise = torch.randn(4, 1, 16, 16)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = x.clone().requires_grad_(True)
        r1 = gradient_penalty(images, D(images, dtype=dtype))
        r1_grads = torch.autograd.grad(r1.mean(), [D.blocks[0].conv1.weight, D.blocks[1].conv0.weight])
        ws = G.broadcast(G.mapping(z))
        lengths = path_lengths(G.synthesis(ws, dtype=dtype), ws, pl_noise)
        pl_grads = torch.autograd.grad(lengths.square().mean(), [G.layers[1].weight, G.mapping.layers[0].weight])
        results[dtype] = r1.detach(), lengths.detach(), *r1_grads, *pl_grads
    for half, exact in zip(results[torch.bfloat16], results[torch.float32], strict=True):
        assert half.dtype == torch.float32 and not torch.equal(half, exact)  # a sign of leaky ReLU may differ
        assert F.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.98
    for half, exact in zip(results[torch.bfloat16][:2], results[torch.float32][:2], strict=True):
        torch.testing.assert_close(half, exact, rtol=0.05, atol=0)


# --- training ---------------------------------------------------------------------------------------------------------
def test_adversarial_gradient_reaches_every_parameter_of_the_generator():
    G, D = tiny_generator(num_classes=2), tiny_discriminator(num_classes=2)
    labels = torch.tensor([0, 1, 0, 1])
    noise = G.draw_noise(4, torch.Generator().manual_seed(0), "cpu")
    F.softplus(-D(G(torch.randn(4, 6), labels, noise=noise), labels)).mean().backward()
    silent = [name for name, p in G.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []


def test_plain_and_eager_filters_give_the_same_networks(monkeypatch):
    G, D = tiny_generator(), tiny_discriminator()
    z = torch.randn(4, 6)

    def results():
        images = G(z)
        x = images.detach().requires_grad_(True)
        penalty = gradient_penalty(x, D(x)).mean()
        return images, penalty, *torch.autograd.grad(penalty, D.blocks[0].conv1.weight)

    eager = results()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(filters._SelfAdjointFir, "apply", None)
    for ours, theirs in zip(results(), eager, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_both_networks_and_the_loss_trace_without_a_graph_break():
    G, D = tiny_generator(), tiny_discriminator()
    z = torch.randn(4, 6)

    def loss(z):
        return F.softplus(-D(G(z))).mean()

    expected = torch.autograd.grad(loss(z), G.const)[0]
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(z), G.const)[0], expected, atol=1e-6, rtol=1e-3)


@pytest.mark.long
def test_compiled_networks_and_regularisers_equal_eager_ones():
    """Regularisers in one compiled function, by torch.func inside it: the only form with a second derivative."""
    G, D = tiny_generator(), tiny_discriminator()
    x, z = torch.randn(4, 1, 16, 16), torch.randn(4, 6)

    def r1(x):
        return torch.func.grad(lambda x: D(x).sum())(x).square().sum((1, 2, 3)).mean()

    weight = D.blocks[0].conv1.weight
    images = x.clone().requires_grad_(True)
    penalty = gradient_penalty(images, D(images)).mean()
    compiled = torch.compile(r1, fullgraph=True)(x)
    torch.testing.assert_close(compiled, penalty, rtol=1e-3, atol=1e-6)
    compiled.backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(penalty, weight)[0], rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(torch.compile(G, fullgraph=True)(z), G(z), rtol=1e-3, atol=1e-4)


# --- an average w of each class ---------------------------------------------------------------------------------------
def conditional_generator(**more) -> Generator:
    torch.manual_seed(3)
    return Generator(
        resolution=16, z_dim=5, w_dim=6, channel_base=64, channel_max=8, mapping_layers=2, num_classes=3, **more
    )


def test_every_class_has_its_average_w():
    G = conditional_generator()
    assert G.w_avg.shape == (3, 6)
    G.w_avg[1] = 7.0
    w, labels = torch.randn(8, 6), torch.tensor([0, 2, 2, 0, 0, 2, 0, 2])
    sums = sum(G.sums_of_w(w[i : i + 2], labels[i : i + 2]) for i in range(0, 8, 2)) / 8  # as ranks and micro-batches
    G.update_w_avg(sums, 0.75)
    G.update_w_avg(sums, 0.5)
    for k in (0, 2):
        torch.testing.assert_close(G.w_avg[k], (0.25 * 0.5 + 0.5) * w[labels == k].mean(0))
    assert bool((G.w_avg[1] == 7).all())  # nobody of that class was there


def test_truncation_keeps_the_distance_of_the_classes():
    """To the average of the own class: at psi 0 every slice is its class's mean, and the means are as far apart as at
    psi 1."""
    G = conditional_generator()
    z, labels = torch.randn(3000, 5), torch.arange(3000) % 3
    with torch.no_grad():
        w = G.mapping(z, labels)
        for k in range(3):
            G.w_avg[k] = w[labels == k].mean(0)
        for psi in (1.0, 0.7, 0.0):
            ws = G.truncate(G.broadcast(w), psi, centre=G.centre(labels))
            torch.testing.assert_close(ws[:, 0], G.w_avg[labels] + psi * (w - G.w_avg[labels]), atol=1e-5, rtol=1e-5)
            means = torch.stack([ws[labels == k, 0].mean(0) for k in range(3)])
            torch.testing.assert_close(torch.cdist(means, means), torch.cdist(G.w_avg, G.w_avg), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(G.centre(), G.w_avg.mean(0))
        one = G(z[:2], labels[:2], truncation=0.0)
        torch.testing.assert_close(one[0], G.synthesis(G.broadcast(G.w_avg[:1]))[0])


def test_weights_with_one_average_for_all_classes_still_load():
    G, other = conditional_generator(), conditional_generator()
    state = dict(G.state_dict()) | {"w_avg": torch.arange(6.0)}
    other.load_state_dict(state)
    assert torch.equal(other.w_avg, torch.arange(6.0).expand(3, 6))
    config = dict(resolution=16, channels=1, z_dim=5, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8)
    loaded = load_generator({f"G_ema.{k}": v for k, v in state.items()}, config, 3)
    assert torch.equal(loaded.w_avg, other.w_avg) and state["w_avg"].shape == (6,)
