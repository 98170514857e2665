"""The feature encoder: repeatable, independent of the batch, and it sees what is wrong with slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data.phantom import phantom_label, phantom_slice
from models import encoder
from models.encoder import Encoder, contrastive_loss, load_pretrained, random_view, train_encoder
from models.quality import LinearProbe, balanced_accuracy, frechet_with_error


def slices(n: int, seed: int = 0, size: int = 32) -> tuple[np.ndarray, torch.Tensor]:
    images = np.stack([phantom_slice(seed, i, size) for i in range(n)])[:, None]
    return images, torch.tensor([phantom_label(seed, i) for i in range(n)])


@pytest.fixture(scope="module")
def trained() -> tuple[Encoder, np.ndarray, torch.Tensor]:
    images, labels = slices(160)
    return train_encoder(images, labels, 2, seed=0, steps=60), images, labels


def test_is_a_function_of_data_and_seed():
    images, labels = slices(24)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two, other = (train_encoder(images, labels, 2, seed=s, steps=3).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one) and not all(torch.equal(one[k], other[k]) for k in one)
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's randomness is touched


def test_features_do_not_depend_on_the_batch_and_are_standardised(trained):
    network, images, _ = trained
    x = torch.from_numpy(images)
    whole = network(x)
    torch.testing.assert_close(torch.cat([network(part) for part in x.split(7)]), whole, atol=1e-4, rtol=1e-4)
    assert whole.shape == (160, network.dim) and whole.dtype == torch.float32
    torch.testing.assert_close(whole.mean(0), torch.zeros(network.dim), atol=1e-3, rtol=0)
    torch.testing.assert_close(whole.std(0), torch.ones(network.dim), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="1 channels"):
        network(x.expand(-1, 3, -1, -1))


def test_sees_classes_and_faults(trained):
    network, images, labels = trained
    heldout, truth = slices(60, seed=1)
    features, reference = network(torch.from_numpy(images)), network(torch.from_numpy(heldout))
    assert balanced_accuracy(LinearProbe(features, labels, 2).predict(reference), truth) > 0.75
    x = torch.from_numpy(images[:60])
    faults = {
        "none": x,
        "blurred": torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1).to(torch.uint8),
        "noisy": (x + 20 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        .clamp(0, 255)
        .to(torch.uint8),
        "upside down": x.flip(2),
        "one slice": x[:1].repeat(60, 1, 1, 1),
    }
    distance = {name: frechet_with_error(network(images), reference)[0] for name, images in faults.items()}
    assert all(value > 1.3 * distance["none"] for name, value in distance.items() if name != "none"), distance


def test_without_classes_and_larger_slices_are_averaged_down(monkeypatch):
    monkeypatch.setattr(encoder, "MAX_SIZE", 32)
    images, _ = slices(12, size=64)
    network = train_encoder(images, torch.full((12,), -1), 0, seed=0, steps=2)
    assert network.classifier is None and network.size == 32
    small = images.reshape(12, 1, 32, 2, 32, 2).mean((3, 5))
    expected = torch.from_numpy(small).float() / 127.5 - 1
    torch.testing.assert_close(network.prepare(torch.from_numpy(images)), expected, atol=1e-5, rtol=0)


def test_contrastive_loss_is_its_definition():
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double()
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    total = 0.0
    for i in range(6):
        others = [np.exp(unit[i] @ unit[k] / 0.5) for k in range(6) if k != i]
        total -= np.log(np.exp(unit[i] @ unit[(i + 3) % 6] / 0.5) / np.sum(others))
    assert float(contrastive_loss(z, 0.5)) == pytest.approx(total / 6, rel=1e-9)


def test_views_keep_black_black_and_the_size_of_the_brain():
    x = torch.full((40, 1, 64, 64), -1.0)
    x[:, :, 24:40, 28:36] = 0.2
    views = random_view(x, torch.Generator().manual_seed(0))
    assert views.shape == x.shape and float(views.min()) == -1.0
    lit = (views > -0.9).sum((1, 2, 3))
    assert int(lit.max()) == 16 * 8  # never larger: no scaling
    assert len({tuple(v.flatten().tolist()) for v in views}) > 30


def test_pretrained_networks_are_known_by_their_tensors(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    network = models.resnet50(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "r50.pth")
    loaded, name = load_pretrained(tmp_path / "r50.pth")
    assert name == "ResNet-50"
    grey = torch.from_numpy(slices(2, size=224)[0])
    colour = (grey.float().repeat(1, 3, 1, 1) / 255 - loaded.mean) / loaded.std
    network.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(loaded(grey), network(colour), atol=1e-4, rtol=1e-4)
    assert loaded(grey).shape == (2, loaded.dim)


def vit_state(reference: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of torchvision's transformer under DINO's names."""
    state = reference.state_dict()
    names = {
        "ln_1": "norm1",
        "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj": "attn.proj",
        "mlp.0": "mlp.fc1",
        "mlp.3": "mlp.fc2",
        "encoder.layers.encoder_layer_": "blocks.",
        "conv_proj": "patch_embed.proj",
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
        "encoder.ln": "norm",
    }
    found = {}
    for key, value in state.items():
        if not key.startswith("heads"):
            for old, new in names.items():
                key = key.replace(old, new)
            found[key] = value
    return found


def test_a_dino_transformer_is_the_known_architecture(tmp_path):
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    reference = VisionTransformer(
        image_size=224, patch_size=32, num_layers=2, num_heads=2, hidden_dim=128, mlp_dim=256
    ).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = vit_state(reference)
    prefixed = {f"module.backbone.{k}": v for k, v in state.items()} | {"module.head.mlp.0.weight": torch.zeros(3)}
    torch.save({"student": {}, "teacher": prefixed}, tmp_path / "dino.pth")
    network, name = load_pretrained(tmp_path / "dino.pth")
    assert name == "DINO ViT-128/32" and network.dim == 128
    grey = torch.from_numpy(slices(2, size=224)[0])
    reference.heads = torch.nn.Identity()
    with torch.no_grad():
        expected = reference((grey.float().repeat(1, 3, 1, 1) / 255 - network.mean) / network.std)
    torch.testing.assert_close(network(grey), expected, atol=1e-4, rtol=1e-4)
    scaled = state | {f"blocks.{i}.{ls}.gamma": torch.zeros(128) for i in range(2) for ls in ("ls1", "ls2")}
    torch.save(scaled, tmp_path / "dinov2.pth")
    network, name = load_pretrained(tmp_path / "dinov2.pth")
    assert name == "DINOv2 ViT-128/32"
    norm = torch.nn.functional.layer_norm(  # scales of 0 leave only the class token
        state["cls_token"][0] + state["pos_embed"][0, :1], (128,), state["norm.weight"], state["norm.bias"], 1e-6
    )
    torch.testing.assert_close(network(grey), norm.expand(2, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("content", ["missing", "text", "pickle", "other"])
def test_wrong_weights_get_one_line(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content == "text":
        path.write_text("hello")
    elif content == "pickle":
        path = tmp_path / "weights.pth"
        torch.save({"network": torch.nn.Linear(1, 1)}, path)  # code inside: never executed
    elif content == "other":
        save_file({"a.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError) as error:
        load_pretrained(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
