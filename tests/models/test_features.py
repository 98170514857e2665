"""Networks that make features, step by step: how the encoder is trained, what its views are, and the transformer
written out."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from models import encoder, vit
from models.encoder import (
    Encoder,
    Pretrained,
    class_weights,
    encoder_size,
    load_pretrained,
    random_view,
    standardise,
    train_encoder,
)


def slices(n: int = 12, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 1, size, size), np.uint8)


# --- training ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("labels", [[0, 1, 0, 0, -1, 1, 0, 0, 0, -1, 0, 0], None])
def test_three_steps_of_training_by_hand(labels):
    """NT-Xent on two views, cross entropy of both with classes weighing alike, AdamW with a rate that rises over 50
    steps and falls."""
    images, classes = slices(), 0 if labels is None else 2
    labels = torch.tensor([-1] * 12 if labels is None else labels)
    trained = train_encoder(images, labels, classes, seed=7, steps=3)

    torch.manual_seed(7)
    net, draw = Encoder(channels=1, size=32, classes=classes), torch.Generator().manual_seed(7)
    names = [name for name, _ in net.named_parameters()]
    moments = {name: (torch.zeros(()), torch.zeros(())) for name in names}
    for step in range(3):
        rows = torch.randperm(12, generator=draw)[:64]
        x = torch.from_numpy(images[rows.numpy()]).float() / 127.5 - 1
        one, two = random_view(x, draw), random_view(x, draw)
        maps, y = [], torch.cat([one, two])
        for stage in net.stages:
            y = stage(y)
            maps.append(y.mean((2, 3)))
        features = torch.cat([maps[2], maps[3]], 1)
        z = net.projection(features)
        z = z / z.norm(dim=1, keepdim=True)
        alike = (z @ z.T / 0.2).exp()
        own = torch.stack([alike[i, (i + 12) % 24] / (alike[i].sum() - alike[i, i]) for i in range(24)])
        loss = -own.log().mean()
        if classes:
            wanted = torch.cat([labels[rows], labels[rows]])
            weight = torch.tensor([10 / (2 * 8), 10 / (2 * 2)])
            logits = net.classifier(features).log_softmax(1)
            known = wanted >= 0
            w = weight[wanted[known]]
            loss = loss - (w * logits[known, wanted[known]]).sum() / w.sum()
        used = [(name, p) for name, p in net.named_parameters()]
        slopes = torch.autograd.grad(loss, [p for _, p in used])
        rate = 2e-3 * min((step + 1) / 50, (3 - step) / 3)
        with torch.no_grad():
            for (name, p), slope in zip(used, slopes, strict=True):
                m, v = moments[name]
                m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
                moments[name] = m, v
                p -= rate * 0.01 * p
                p -= rate * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    for name, p in net.named_parameters():
        torch.testing.assert_close(trained.get_parameter(name), p.detach(), rtol=1e-3, atol=3e-5, msg=name)
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_features_are_standardised_over_the_training_slices():
    net = Encoder(channels=1, size=32, classes=0).eval()
    images = slices(70)
    with torch.no_grad():
        raw = net.pooled(torch.from_numpy(images).float() / 127.5 - 1)
        standardise(net, images, torch.Generator().manual_seed(0))
        torch.testing.assert_close(net.mean, raw.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net.std, raw.std(0).clamp_min(1e-4), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(net(torch.from_numpy(images)), (raw - raw.mean(0)) / net.std, rtol=1e-3, atol=1e-3)
        standardise(net, images, torch.Generator().manual_seed(0), count=9)
        rows = torch.randperm(70, generator=torch.Generator().manual_seed(0))[:9]  # any nine, not the first
        torch.testing.assert_close(net.mean, raw[rows].mean(0), rtol=1e-4, atol=1e-5)
        standardise(net, images[:1], torch.Generator().manual_seed(0))
        assert bool((net.std == 1).all())  # of one slice there is no deviation


def test_the_features_are_the_third_and_the_fourth_stage():
    net = Encoder(channels=1, size=32, classes=3)
    x = torch.randn(2, 1, 32, 32)
    a = net.stages[2](net.stages[1](net.stages[0](x)))
    torch.testing.assert_close(net.pooled(x), torch.cat([a.mean((2, 3)), net.stages[3](a).mean((2, 3))], 1))
    assert net.dim == 48 + 64 and a.shape == (2, 48, 4, 4) and net.classifier.weight.shape == (3, 112)


def test_sizes_and_weights():
    assert [encoder_size(r) for r in (32, 64, 128, 256)] == [32, 64, 128, 128]
    assert class_weights(torch.tensor([0, 0, 0, 1, -1, 2, 2]), 3).tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    assert class_weights(torch.tensor([0, 0, -1]), 2).tolist() == pytest.approx(
        [3 / 4, 3 / 2]
    )  # nobody of the second: as if one


def test_a_view_is_moved_lit_and_hidden_in_part():
    """Each of 120 views undone: a shift by at most 6 % (it wraps), one factor on the light of all, one dark
    rectangle."""
    x = torch.rand(1, 1, 50, 50, generator=torch.Generator().manual_seed(0)) * 1.2 - 0.9
    views = random_view(x.expand(120, -1, -1, -1), torch.Generator().manual_seed(1))
    shifts, factors, heights, widths = [], [], [], []
    shifted = {(dy, dx): x[0, 0].roll((dy, dx), (0, 1)) for dy in range(-4, 5) for dx in range(-4, 5)}
    for view in views[:, 0]:
        dark = view == -1
        rows, columns = dark.any(1).nonzero()[:, 0], dark.any(0).nonzero()[:, 0]
        if len(rows):
            assert bool(dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all())
            inside = int(rows[0]) > 0 and int(rows[-1]) < 49 and int(columns[0]) > 0 and int(columns[-1]) < 49
            if inside:
                heights.append(len(rows))
                widths.append(len(columns))
        ratios = {k: ((view + 1) / (y + 1))[~dark] for k, y in shifted.items()}
        best = min(ratios, key=lambda k: float(ratios[k].std()))
        assert float(ratios[best].std()) < 1e-4
        shifts.append(best)
        factors.append(float(ratios[best].mean()))
    assert {dy for dy, _ in shifts} == {dx for _, dx in shifts} == set(range(-3, 4))  # 6 % of 50 px
    assert any(dy != dx for dy, dx in shifts)
    assert 0.7 <= min(factors) < 0.8 and 1.2 < max(factors) <= 1.3 and abs(np.mean(factors) - 1) < 0.04
    for lengths in (heights, widths):  # a tenth to four tenths of 50 px
        assert 5 <= min(lengths) < 9 and 15 < max(lengths) <= 21


# --- networks of others -----------------------------------------------------------------------------------------------
class Seen(torch.nn.Module):
    """A network that hands out what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("channels", [1, 3])
def test_slices_become_normalised_colour_of_the_networks_size(channels):
    """Antialiased bicubic resizing as Pillow's, in 0..1, less the mean, by the deviation of each colour."""
    images = np.random.default_rng(1).integers(0, 256, (2, channels, 40, 40), np.uint8)
    made = Pretrained(Seen(), 12, 0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    found = made(torch.from_numpy(images)).view(2, 3, 12, 12)
    for i in range(2):
        for c in range(3):
            plane = Image.fromarray(images[i, c % channels].astype(np.float32)).resize(
                (12, 12), Image.Resampling.BICUBIC
            )
            expected = (np.clip(np.asarray(plane) / 255, 0, 1) - (0.1, 0.2, 0.3)[c]) / (0.5, 0.6, 0.7)[c]
            np.testing.assert_allclose(found[i, c], expected, atol=2e-3)


@pytest.mark.parametrize(("key", "function", "size", "mean", "std", "name"), [
    ("layer4.2.conv3.weight", "resnet50", 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "ResNet-50"),
    ("Mixed_7c.branch_pool.conv.weight", "inception_v3", 299, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "Inception v3"),
    ("Mixed_7c.branch_pool.conv.weight", "inception_v3", 299, (128 / 255,) * 3, (128 / 255,) * 3, "FID's Inception v3"),
])  # fmt: skip
def test_each_network_has_its_own_size_and_normalisation(tmp_path, monkeypatch, key, function, size, mean, std, name):
    """Those that it was trained with. (The network itself is torchvision's; here a stand-in of one tensor.)"""
    from torchvision import models

    built = []

    class Small(torch.nn.Module):
        def __init__(self):
            super().__init__()
            part = self
            for step in key.split(".")[:-1]:
                part.add_module(step, torch.nn.Module())
                part = getattr(part, step)
            part.weight = torch.nn.Parameter(torch.zeros(2))

    monkeypatch.setattr(models, function, lambda **options: built.append(options) or Small())
    pooled = []
    monkeypatch.setattr(encoder, "pool_as_fid", pooled.append)
    classes = 1008 if name.startswith("FID") else 1000
    head = {"fc.weight": torch.zeros(classes, 1), "AuxLogits.conv0.weight": torch.zeros(3)}
    torch.save({"model": {"module." + key: torch.ones(2), **head}, "epoch": torch.zeros(1)}, tmp_path / "w.pth")
    made, found = load_pretrained(tmp_path / "w.pth")
    assert found == name and made.size == size and made.dim == 2048 and not made.training
    assert made.mean.flatten().tolist() == pytest.approx(mean) and made.std.flatten().tolist() == pytest.approx(std)
    assert made.network.state_dict()[key].tolist() == [1, 1] and not any(p.requires_grad for p in made.parameters())
    assert isinstance(made.network.fc, torch.nn.Identity) and built[0]["weights"] is None
    assert pooled == ([made.network] if classes == 1008 else [])
    if function == "inception_v3":
        assert built[0]["aux_logits"] is False and built[0]["transform_input"] is False


def test_an_inception_that_does_not_say_whose_it_is_is_refused(tmp_path):
    torch.save({"Mixed_7c.branch_pool.conv.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"fc\.weight.*FID") as refused:
        load_pretrained(tmp_path / "w.pth")
    assert len(str(refused.value).splitlines()) == 1


def test_fids_inception_pools_as_it_did():
    """Averages over the pixels that are there, by hand; the last block's maximum; the other branches as they are."""
    from torchvision.models import inception

    torch.manual_seed(0)
    network = torch.nn.Module()
    network.Mixed_5b, network.Mixed_6b = inception.InceptionA(8, 4), inception.InceptionC(8, 8)
    network.Mixed_6a, network.Mixed_7b, network.Mixed_7c = (
        f(8) for f in (inception.InceptionB, *[inception.InceptionE] * 2)
    )
    network.eval()
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        before = {name: block(x) for name, block in network.named_children()}
        encoder.pool_as_fid(network)
        for _ in range(2):  # nothing is left from the first time
            after = {name: block(x) for name, block in network.named_children()}
        for name, kind in (("Mixed_5b", "mean"), ("Mixed_6b", "mean"), ("Mixed_7b", "mean"), ("Mixed_7c", "max")):
            pooled = torch.zeros_like(x)
            for i in range(5):
                for j in range(5):
                    there = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(2)
                    pooled[:, :, i, j] = there.mean(2) if kind == "mean" else there.amax(2)
            own = getattr(network, name).branch_pool
            expected = F.relu(own.bn(F.conv2d(pooled, own.conv.weight)))
            width = expected.shape[1]
            torch.testing.assert_close(after[name][:, -width:], expected, atol=1e-5, rtol=1e-4)
            assert torch.equal(after[name][:, :-width], before[name][:, :-width])
            assert not torch.allclose(after[name][:, -width:], before[name][:, -width:])
    assert torch.equal(after["Mixed_6a"], before["Mixed_6a"])


@pytest.mark.parametrize("outer", ["teacher", "state_dict", "model", None])
def test_the_state_of_the_teacher_is_taken(tmp_path, outer):
    """DINO's files hold a student as well, whose features are worse."""
    state = {"a": torch.ones(1)}
    torch.save(state if outer is None else {"student": {"a": torch.zeros(1)}, outer: state}, tmp_path / "w.pth")
    assert encoder.read_state(tmp_path / "w.pth")["a"].tolist() == [1]


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("torch FloatStorage", True),
        ("collections OrderedDict", True),
        ("torch._utils _rebuild_tensor_v2", True),
        ("torch._utils _rebuild_parameter", True),
        ("collections OrderedDictionary", False),
        ("os system", False),
        ("torch FloatStorage2", False),
        ("mytorch FloatStorage", False),
        ("torch._utils _rebuild_tensor_v2x", False),
        ("builtins bytearray", False),
    ],
)
def test_only_the_names_of_tensors_may_stand_in_a_weights_file(name, fine):
    """Whole names: one that only begins like one of these is another one."""
    nothing, module = b"\x80\x02K\x01.", name.split()
    file = io.BytesIO(3 * nothing + f"c{module[0]}\n{module[1]}\n.".encode() + nothing)
    if fine:
        return encoder.check_names(file)
    with pytest.raises(ValueError, match="it names"):
        encoder.check_names(file)


# --- the transformer --------------------------------------------------------------------------------------------------
def transformer(registers: int = 0, scaled: bool = True, places: int = 9) -> tuple[vit.VisionTransformer, dict]:
    torch.manual_seed(0)
    made = vit.VisionTransformer(128, 2, 96, 4, places, layer_scale=scaled, registers=registers).eval()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made, dict(made.state_dict())


def written_by_hand(state: dict, images: torch.Tensor, registers: bool, scaled: bool) -> torch.Tensor:
    """Dosovitskiy 2021 with softmax(q k / sqrt(64)) v written out; layer scale of Touvron 2021, registers of Darcet
    2024."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / (var + 1e-6).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    linear = lambda x, name: x @ state[f"{name}.weight"].T + state[f"{name}.bias"]  # noqa: E731
    kernel = state["patch_embed.proj.weight"]
    side = images.shape[-1] // 4
    patches = (
        images.reshape(len(images), 3, side, 4, side, 4).permute(0, 2, 4, 1, 3, 5).reshape(len(images), side * side, -1)
    )
    x = patches @ kernel.reshape(128, -1).T + state["patch_embed.proj.bias"] + state["pos_embed"][:, 1:]
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    more = [state["register_tokens"].expand(len(x), -1, -1)] if registers else []
    x = torch.cat([first, *more, x], 1)
    for block in ("blocks.0", "blocks.1"):
        q, k, v = (
            y.unflatten(2, (2, 64)).transpose(1, 2)
            for y in linear(normed(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, 2)
        )
        attention = (q @ k.transpose(2, 3) / 8).softmax(-1) @ v
        mixed = linear(attention.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + (mixed * state[f"{block}.ls1.gamma"] if scaled else mixed)
        y = linear(normed(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        mixed = linear(y * 0.5 * (1 + torch.erf(y / math.sqrt(2))), f"{block}.mlp.fc2")
        x = x + (mixed * state[f"{block}.ls2.gamma"] if scaled else mixed)
    return normed(x, "norm")[:, 0]


@pytest.mark.parametrize(("registers", "scaled"), [(0, False), (0, True), (3, True)])
def test_the_transformer_written_out(registers, scaled):
    made, state = transformer(registers, scaled)
    images = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1)).double()
    made.double()
    state = {k: v.double() for k, v in state.items()}
    with torch.no_grad():
        torch.testing.assert_close(
            made(images), written_by_hand(state, images, bool(registers), scaled), rtol=1e-7, atol=1e-7
        )
    made.float()
    images = images.float()
    rebuilt, name = vit.build_transformer(state | {"mask_token": torch.zeros(1), "head.weight": torch.zeros(1)})
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(images), made(images))
    assert name == f"{'DINOv2' if scaled else 'DINO'} ViT-128/4" and vit.is_transformer(state)


def cubic(x: float, a: float = -0.75) -> float:
    """Keys' kernel (1981)."""
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize("side", [2, 5, 7])
def test_positions_without_registers_are_resized_by_a_factor_with_a_tenth_of_a_patch(side):
    """As in the repositories of DINO and DINOv2: place i of the new grid is (i + 0.5) known / (side + 0.1) - 0.5 of the
    old one, four neighbours, those beyond the edge are the edge's."""
    made, _ = transformer()
    with torch.no_grad():
        grid, weights = made.pos_embed[0, 1:].view(3, 3, 128), torch.zeros(side, 3)
        for i in range(side):
            place = (i + 0.5) * 3 / (side + 0.1) - 0.5
            for k in range(math.floor(place) - 1, math.floor(place) + 3):
                weights[i, min(max(k, 0), 2)] += cubic(place - k)
        expected = torch.einsum("ia,jb,abc->ijc", weights, weights, grid)
        torch.testing.assert_close(made.positions(side).view(side, side, 128), expected, atol=1e-4, rtol=1e-4)


def test_positions_are_resized_in_place():
    """A grid of 3 x 3 on more and on fewer patches: rows stay rows, columns columns. (With registers: by the size.)"""
    made, _ = transformer(registers=3)
    with torch.no_grad():
        made.pos_embed.zero_()
        made.pos_embed[0, 1:, 0] = torch.arange(3.0).repeat_interleave(3)  # the row
        made.pos_embed[0, 1:, 1] = torch.arange(3.0).repeat(3)  # the column
        assert torch.equal(made.positions(3), made.pos_embed[:, 1:])
        for side in (2, 6, 9):
            grid = made.positions(side).view(side, side, 128)
            assert bool((grid[1:, :, 0] > grid[:-1, :, 0]).all()) and bool((grid[:, 1:, 1] > grid[:, :-1, 1]).all())
            torch.testing.assert_close(grid[:, :1, 0].expand(-1, side), grid[:, :, 0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(grid[:1, :, 1].expand(side, -1), grid[:, :, 1], rtol=1e-4, atol=1e-5)
            assert float(F.relu(grid[..., 2:].abs()).max()) < 1e-6 and abs(float(grid[..., 0].mean()) - 1) < 1e-3
