"""The U-Net: sizes as published, what it depends on, guidance."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_vae import Tensors, awake

from models.unet import UNet, drop_labels, guided, time_embedding


def tiny(**kwargs):
    torch.manual_seed(0)
    kwargs = dict(widths=(8, 16), num_res=1, attention_sides=(4,), head_dim=8) | kwargs
    model = UNet(8, 2, **kwargs)
    for p in model.parameters():  # the zeros of the last layers would hide what is wrong before them
        if not p.any():
            torch.nn.init.normal_(p, std=0.3)
    return model.eval()


@pytest.mark.parametrize(
    ("size", "channels", "widths", "sides", "millions"),
    [
        (32, 4, (64, 128, 256), (16, 8), 16.0576),
        (32, 4, (128, 256, 256), (16, 8), 27.2),
        (32, 4, (128, 256, 512), (16, 8), 64.1),
        (64, 3, (96, 192, 288, 384), (16, 8), 49.6),
        (64, 1, (64, 128, 256, 256), (16, 8), 26.6),
        (128, 1, (64, 128, 128, 256, 256), (16, 8), 29.1),
        (64, 1, (32, 64, 128, 256), (32, 16, 8), 15.9),
    ],
)
def test_parameter_counts_are_those_of_the_published_layout(size, channels, widths, sides, millions):
    with torch.device("meta"):
        model = UNet(size, channels, widths=widths, attention_sides=sides, head_dim=32)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    assert round(count, 4 if millions == 16.0576 else 1) == millions


@torch.no_grad()
@pytest.mark.parametrize(
    ("widths", "num_res", "sides", "head_dim"), [((8, 16), 1, (4,), 8), ((8, 16, 16), 2, (8, 2), 4)]
)
def test_it_is_the_network_of_the_papers_layer_by_layer(widths, num_res, sides, head_dim):
    """Ho 2020 and Dhariwal 2021: the embedding is added between the two halves of a block, every map of the way down is
    joined on the way up, one block more per resolution."""
    model = awake(UNet(8, 2, widths=widths, num_res=num_res, attention_sides=sides, head_dim=head_dim, num_classes=2))
    gen = torch.Generator().manual_seed(1)
    x, time, labels = torch.randn(3, 2, 8, 8, generator=gen), torch.rand(3, generator=gen), torch.tensor([0, 2, 1])
    t = Tensors(model)
    linear = lambda name, v: F.linear(v, t.values[f"{name}.weight"], t.values[f"{name}.bias"])  # noqa: E731
    phase = 1000 * time[:, None] * 10000 ** (-torch.arange(widths[0] // 2) / (widths[0] // 2))
    emb = linear("embed_time.2", F.silu(linear("embed_time.0", torch.cat([phase.sin(), phase.cos()], 1))))
    emb = emb + t.values["embed_class.weight"][labels]

    def block(name, h):
        y = t.conv(f"{name}.conv1", F.silu(t.norm(f"{name}.norm1", h)), padding=1)
        y = y + linear(f"{name}.emb", F.silu(emb))[:, :, None, None]
        y = t.conv(f"{name}.conv2", F.silu(t.norm(f"{name}.norm2", y)), padding=1)
        return y + (t.conv(f"{name}.skip", h) if f"{name}.skip.weight" in t.values else h)

    def seen(name, h):
        heads = max(h.shape[1] // head_dim, 1)
        return t.attention(name, h, heads) if h.shape[-1] in sides or "middle" in name else h

    h = t.conv("conv_in", x, padding=1)
    maps = [h]
    for i in range(len(widths)):
        for j in range(num_res):
            h = seen(f"down.{i}.attentions.{j}", block(f"down.{i}.blocks.{j}", h))
            maps.append(h)
        if i < len(widths) - 1:
            h = t.conv(f"downsample.{i}", h, stride=2, padding=1)
            maps.append(h)
    h = block("middle.2", seen("middle.1", block("middle.0", h)))
    for i in range(len(widths)):
        for j in range(num_res + 1):
            h = seen(f"up.{i}.attentions.{j}", block(f"up.{i}.blocks.{j}", torch.cat([h, maps.pop()], 1)))
        if i < len(widths) - 1:
            h = t.conv(f"upsample.{i}", h.repeat_interleave(2, 2).repeat_interleave(2, 3), padding=1)
    expected = t.conv("conv_out", F.silu(t.norm("norm_out", h)), padding=1)
    assert not maps and expected.abs().max() > 0.1 and torch.allclose(model(x, time, labels), expected, atol=1e-4)


def test_it_starts_at_zero_and_as_identity_blocks():
    model = UNet(8, 2, widths=(8, 16), num_res=1, attention_sides=(4,), head_dim=8)
    x = torch.randn(2, 2, 8, 8)
    assert model(x, torch.rand(2)).abs().max() == 0


def test_every_parameter_gets_a_gradient_and_rows_are_independent():
    model = tiny(num_classes=2)
    x, t, labels = torch.randn(3, 2, 8, 8, requires_grad=True), torch.rand(3), torch.tensor([0, 1, 2])
    out = model(x, t, labels)
    out[1].square().sum().backward()
    assert x.grad[1].abs().max() > 0 and x.grad[0].abs().max() == x.grad[2].abs().max() == 0
    model(x, t, labels).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_time_and_class_matter():
    model, x = tiny(num_classes=2), torch.randn(1, 2, 8, 8)
    out = [model(x, torch.tensor([t]), torch.tensor([k])) for t, k in ((0.1, 0), (0.9, 0), (0.1, 1), (0.1, 2))]
    assert all((out[0] - other).abs().max() > 1e-4 for other in out[1:])
    assert torch.equal(model(x, torch.tensor([0.1]), None), out[3])  # no label is the class "no class"


def test_conditioning_on_the_sum_of_the_embeddings_of_time_and_class():
    """What the blocks see of them is one vector, the sum (Dhariwal and Nichol 2021, section 4)."""
    model, seen = tiny(num_classes=2), []
    model.middle[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    t, labels = torch.rand(3), torch.tensor([0, 1, 2])
    model(torch.randn(3, 2, 8, 8), t, labels)
    phase = 1000 * t[:, None] * 10000 ** (-torch.arange(4) / 4)
    of_time = model.embed_time(torch.cat([phase.sin(), phase.cos()], dim=1))
    assert torch.allclose(seen[0], of_time + model.embed_class.weight[labels], atol=1e-4)


def test_the_time_embedding_tells_neighbouring_steps_apart():
    """Time enters as sines of many periods, not as one raw number: embeddings of any two steps differ clearly."""
    steps = time_embedding(torch.arange(1000) / 999, 64)
    assert steps.abs().max() <= 1
    near = (steps[1:] - steps[:-1]).norm(dim=1)
    assert near.min() > 0.5 and (steps[0] - steps[1:]).norm(dim=1).min() > 0.5
    expected = [f(torch.tensor(123 * 10000 ** (-i / 32))) for f in (torch.sin, torch.cos) for i in range(32)]
    assert torch.allclose(time_embedding(torch.tensor([0.123]), 64)[0], torch.stack(expected), atol=1e-4)


def test_guidance_is_the_textbook_formula_in_one_call():
    model = tiny(num_classes=2)
    x, t, labels = torch.randn(3, 2, 8, 8), torch.rand(3), torch.tensor([0, 1, 1])
    cond, uncond = model(x, t, labels), model(x, t, torch.full((3,), 2))
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(guided(model, x, t, labels, 2.5), uncond + 2.5 * (cond - uncond), atol=1e-5)
    assert torch.allclose(guided(model, x, t, labels, 1.0), cond, atol=1e-6)
    assert torch.allclose(guided(model, x, t, labels, 0.0), uncond, atol=1e-6)
    assert torch.allclose(guided(model, x, t, None, 3.0), uncond, atol=1e-6)
    assert len(calls) == 4


def test_labels_are_dropped_at_the_rate():
    labels = torch.arange(4000) % 2
    dropped = drop_labels(labels, 2, 0.15, torch.Generator().manual_seed(0))
    gone = dropped == 2
    assert 0.12 < gone.float().mean() < 0.18 and torch.equal(dropped[~gone], labels[~gone])
    assert torch.equal(drop_labels(labels, 2, 0.0, torch.Generator()), labels)


def test_channels_last_gives_the_same():
    model, x, t = tiny(), torch.randn(2, 2, 8, 8), torch.rand(2)
    expected = model(x, t)
    model = model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x.to(memory_format=torch.channels_last), t), expected, atol=1e-5)


def test_bf16_autocast_stays_close():
    model, x, t = tiny(), torch.randn(2, 2, 8, 8), torch.rand(2)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, t)
    assert (out.float() - model(x, t)).norm() < 0.05 * model(x, t).norm()


def test_a_side_that_cannot_be_halved_is_refused():
    with pytest.raises(ValueError, match="halved"):
        UNet(20, 1, widths=(8, 8, 8, 8))
