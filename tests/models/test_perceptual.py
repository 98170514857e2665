"""The perceptual distance in VGG's features, against torchvision's network and the formula written out."""

from __future__ import annotations

import pytest
import torch

from models.perceptual import COMPARED, CONVOLUTIONS, VggDistance, load_vgg


def narrow(width: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """State of a VGG-16 of `width` channels everywhere."""
    gen, state, before = torch.Generator().manual_seed(seed), {}, 3
    for place in CONVOLUTIONS:
        state[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=gen) * (2 / (9 * before)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(width, generator=gen)
        before = width
    return state


def test_its_features_are_those_of_torchvision():
    vgg = pytest.importorskip("torchvision.models.vgg")
    torch.manual_seed(0)
    vgg = vgg.make_layers(vgg.cfgs["D"], batch_norm=False).eval()  # vgg16().features
    state = {f"features.{k}": v for k, v in vgg.state_dict().items()}
    images = torch.rand(1, 1, 32, 32) * 2 - 1
    ours = VggDistance(state | {"classifier.0.weight": torch.zeros(1)}).features(images)
    x = (images.expand(-1, 3, -1, -1) + 1) / 2
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    theirs = []
    with torch.no_grad():
        for i, layer in enumerate(vgg):
            x = layer(x)
            if i - 1 in COMPARED:  # after the ReLU that follows the convolution
                theirs.append(x)
    assert [len(t[0]) for t in ours] == [64, 128, 256, 512, 512]
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_distance_is_the_formula_and_reaches_the_output_alone():
    network = VggDistance(narrow())
    a, b = (2 * torch.rand(2, 2, 1, 16, 16, generator=torch.Generator().manual_seed(1)) - 1).unbind(0)
    a.requires_grad_(True)
    b.requires_grad_(True)
    distance = network(a, b)
    expected = torch.zeros(2)
    for f, g in zip(network.features(a), network.features(b), strict=True):
        for n in range(2):
            places = [
                (f[n, :, i, j] / f[n, :, i, j].norm() - g[n, :, i, j] / g[n, :, i, j].norm()).square().sum()
                for i in range(f.shape[2])
                for j in range(f.shape[3])
                if f[n, :, i, j].any() and g[n, :, i, j].any()
            ]
            silent = [f[n, :, i, j].any() != g[n, :, i, j].any() for i in range(f.shape[2]) for j in range(f.shape[3])]
            expected[n] += (torch.stack(places).sum() + sum(silent)).detach() / (f.shape[2] * f.shape[3]) / 5
    assert torch.allclose(distance, expected, atol=1e-4)
    assert network(a, a).abs().max() == 0
    distance.sum().backward()
    assert a.grad.abs().max() > 0 and b.grad is None
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_a_file_is_read_as_data_and_only_vgg16_is_taken(tmp_path):
    path = tmp_path / "vgg.pth"
    torch.save(narrow(), path)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_vgg(path)(images, -images), VggDistance(narrow())(images, -images))
    for name, state in {
        "missing": {k: v for k, v in narrow().items() if "28" not in k},
        "shape": narrow() | {"features.5.weight": torch.zeros(3, 9, 3, 3)},
        "resnet": {"layer4.2.conv3.weight": torch.zeros(1)},
    }.items():
        torch.save(state, tmp_path / name)
        with pytest.raises(ValueError, match="torchvision's vgg16") as error:
            load_vgg(tmp_path / name)
        assert "\n" not in str(error.value) and "--perceptual-file" in str(error.value)
    torch.save(narrow() | {"features.0.bias": torch.full((3,), float("nan"))}, tmp_path / "nan")
    with pytest.raises(ValueError, match="finite"):
        load_vgg(tmp_path / "nan")
    (tmp_path / "code").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="cannot be read"):
        load_vgg(tmp_path / "code")
