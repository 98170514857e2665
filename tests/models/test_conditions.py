"""What a network is told: embeddings of levels and numbers, unknown values, guidance by column."""

import math

import pytest
import torch
from torch import nn

from models.conditions import Attribute, ConditionEmbedding, Reader, drop_values, fourier
from models.stylegan2 import Discriminator, EqualLinear, Generator
from models.styles import styles_of
from models.unet import UNet, guided

NAN = math.nan
ATTRIBUTES = (Attribute(2), Attribute(0, 70.0, 10.0))


@pytest.fixture
def embedding():
    torch.manual_seed(0)
    return ConditionEmbedding(ATTRIBUTES, 6, nn.Linear)


def test_fourier_features_by_hand():
    u = torch.tensor([0.5, -1.25])
    for row, x in zip(fourier(u).tolist(), u.tolist(), strict=True):
        waves = [2 * math.pi * x / period for period in (8, 4, 2, 1)]
        assert row == pytest.approx([x, *map(math.sin, waves), *map(math.cos, waves)], abs=1e-6)


def test_the_embedding_is_the_sum_over_the_root_of_the_number(embedding):
    level, number = embedding.parts
    values = torch.tensor([[1.0, 80.0], [0.0, NAN], [NAN, 65.0], [NAN, NAN]])

    def of_number(v):
        return number.second(nn.functional.silu(number.first(fourier(torch.tensor([(v - 70) / 10])))))[0]

    expected = [
        level.weight[1] + of_number(80.0),
        level.weight[0] + number.unknown,
        level.weight[2] + of_number(65.0),
        level.weight[2] + number.unknown,
    ]
    assert torch.allclose(embedding(values), torch.stack(expected) / math.sqrt(2), atol=1e-6)


def test_an_unknown_number_learns_its_own_vector_and_spoils_no_gradient(embedding):
    embedding(torch.tensor([[NAN, NAN], [1.0, 90.0]])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in embedding.parameters())
    assert embedding.parts[1].unknown.grad.eq(2**-0.5).all()
    embedding.zero_grad()
    embedding(torch.tensor([[1.0, 90.0]])).sum().backward()
    assert not embedding.parts[1].unknown.grad.any()


def test_values_of_another_width_are_refused(embedding):
    with pytest.raises(ValueError, match=r"\(3, 1\), expected \(batch, 2\)"):
        embedding(torch.zeros(3, 1))


def test_values_are_dropped_for_the_whole_batch_whoever_asks_for_which_rows():
    values = torch.arange(4000.0 * 3).view(4000, 3)
    whole = drop_values(values, 4000, 0, 0.1, torch.Generator().manual_seed(5))
    parts = [
        drop_values(values[a:b], 4000, a, 0.1, torch.Generator().manual_seed(5)) for a, b in ((0, 1000), (1000, 4000))
    ]
    assert torch.cat(parts).equal(whole) or torch.cat(parts).isnan().equal(whole.isnan())
    known = whole.isnan().logical_not()
    assert whole[known].equal(values[known])
    missing = whole.isnan().double()
    assert missing.all(1).double().mean() == pytest.approx(0.1 + 0.9 * 0.001, abs=0.015)
    assert missing.mean(0).tolist() == pytest.approx([0.19] * 3, abs=0.02)
    assert not drop_values(values, 4000, 0, 0.0, torch.Generator()).isnan().any()


def small_unet():
    torch.manual_seed(1)
    net = UNet(8, 1, widths=(8, 16), num_res=1, attention_sides=(), head_dim=8, num_classes=ATTRIBUTES).eval()
    for p in net.parameters():  # last layers start at zero, and would say the same of everything
        if not p.any() and p.dim() > 1:
            nn.init.normal_(p, std=0.1)
    return net.requires_grad_(False)


def test_a_unet_that_is_told_nothing_is_told_that_all_is_unknown():
    net, x, t = small_unet(), torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    nothing = torch.full((2, 2), NAN)
    assert net(x, t).equal(net(x, t, nothing)) and net.nothing(x).isnan().all()
    told = net(x, t, torch.tensor([[1.0, 80.0], [1.0, 80.0]]))
    assert not torch.allclose(told, net(x, t)) and not torch.allclose(told, net(x, t, torch.tensor([[1.0, 60.0]] * 2)))


def test_guidance_by_column_is_the_sum_of_what_each_column_adds():
    net, x, t = small_unet(), torch.randn(3, 1, 8, 8), torch.tensor([0.2, 0.5, 0.9])
    values = torch.tensor([[0.0, 80.0], [1.0, 60.0], [1.0, NAN]])
    cond, none = net(x, t, values), net(x, t)
    no_class = net(x, t, torch.stack([torch.full((3,), NAN), values[:, 1]], 1))
    no_age = net(x, t, torch.stack([values[:, 0], torch.full((3,), NAN)], 1))
    both = cond + 1.5 * (cond - no_class) - 0.5 * (cond - no_age)
    assert torch.allclose(guided(net, x, t, values, {0: 2.5, 1: 0.5}), both, atol=1e-5)
    assert torch.allclose(guided(net, x, t, values, {1: 3.0}), cond + 2 * (cond - no_age), atol=1e-5)
    assert torch.allclose(guided(net, x, t, values, 2.0), none + 2 * (cond - none), atol=1e-5)
    assert guided(net, x, t, values, {}).equal(cond) and guided(net, x, t, values, 1.0).equal(cond)
    assert guided(net, x, t, values, 0.0).equal(none)


def small_gan():
    torch.manual_seed(2)
    shape = dict(resolution=16, channel_base=64, channel_max=8, mapping_layers=2, num_classes=ATTRIBUTES)
    return Generator(**shape, z_dim=8, w_dim=8), Discriminator(**shape, mbstd_group=2)


def test_a_generator_and_a_discriminator_hear_each_attribute():
    G, D = small_gan()
    z, values = torch.randn(4, 8), torch.tensor([[0.0, 80.0], [1.0, 80.0], [1.0, 60.0], [NAN, NAN]])
    ws, w = styles_of(G, z, z, torch.full((4,), 3), values)
    assert ws.shape == (4, G.num_ws, 8) and torch.allclose(w, G.mapping(z, values), atol=1e-5) and G.w_avg.shape == (8,)
    alike = G.mapping(z[:1].expand(4, -1), values)
    assert all(not torch.allclose(alike[i], alike[j], atol=1e-3) for i in range(4) for j in range(i))
    images = torch.randn(4, 1, 16, 16)
    logits = D(images, values)
    features = D.out(D.linear(D.conv(torch.zeros(4, 9, 4, 4)).flatten(1)))  # of no picture: only to see the product
    assert logits.shape == (4,) and features.shape == (4, 8)
    assert not torch.allclose(logits, D(images, values.nan_to_num(0.0)))
    with pytest.raises(ValueError, match="knows 2 attributes"):
        G.mapping(z)


def test_half_of_w_is_what_it_is_told_whatever_the_latent():
    G, _ = small_gan()
    z, values = torch.randn(2, 8), torch.tensor([[1.0, 80.0], [NAN, 60.0]])
    told = G.mapping.conditions(values)
    told = told / told.square().mean(1, keepdim=True).sqrt()
    for latent in (z, torch.randn(2, 8)):
        w = G.mapping(latent, values)
        assert w.shape == (2, 8) and torch.allclose(w[:, 4:], told, atol=1e-4)
    x = torch.cat([z / z.square().mean(1, keepdim=True).sqrt(), told], 1)
    for layer in G.mapping.layers:
        x = layer(x)
    assert torch.allclose(G.mapping(z, values)[:, :4], x, atol=1e-4)
    with pytest.raises(ValueError, match="w_dim 1 holds no latent"):
        Generator(resolution=16, w_dim=1, num_classes=ATTRIBUTES)


def test_the_discriminators_logit_is_the_projection_on_the_sum_of_the_embeddings():
    """Miyato 2018, equation 3, without the term that does not see the condition."""
    _, D = small_gan()
    images = torch.randn(2, 1, 16, 16)
    seen = []
    D.out.register_forward_hook(lambda module, args, out: seen.append(out))
    logits = D(images, torch.tensor([[1.0, 75.0], [0.0, NAN]]))
    embedded = D.conditions(torch.tensor([[1.0, 75.0], [0.0, NAN]]))
    assert torch.allclose(logits, (seen[0] * embedded).sum(1) / math.sqrt(8), atol=1e-6)
    assert isinstance(D.conditions.parts[1].first, EqualLinear)


def test_what_is_read_is_compared_with_what_is_known_alone():
    torch.manual_seed(3)
    reader = Reader((Attribute(3), Attribute(0, 70.0, 10.0)), 5, nn.Linear)
    shown = torch.randn(4, 5)
    read = reader.out(shown).detach()
    values = torch.tensor([[2.0, 80.0], [0.0, NAN], [NAN, 65.0], [NAN, NAN]])
    level = [-math.log(float(row.softmax(0)[k])) / math.log(3) for row, k in zip(read[:2, :3], (2, 0), strict=True)]
    number = [float(read[0, 3] - 1.0) ** 2, float(read[2, 3] + 0.5) ** 2]
    expected = [(level[0] + number[0]) / 2, level[1], number[1], 0.0]
    found = reader(shown, values)
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    found.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in reader.parameters())


def test_the_discriminator_reads_only_where_it_is_asked_to():
    _, D = small_gan()
    images, values = torch.randn(2, 1, 16, 16), torch.tensor([[1.0, 75.0], [0.0, NAN]])
    logits, misread = D(images, values, read=True)
    assert logits.equal(D(images, values)) and misread.shape == (2,) and bool((misread > 0).all())
