"""Networks from tensors and a config that may be anybody's: what is taken, what is refused, and that what is taken is
as it was saved."""

from __future__ import annotations

import pytest
import torch
from test_written import VAE_SIZES, diffusion_file, gan_file
from written_by_hand import read_file

from models import loading
from models.vae import VAE

SIZES = dict(resolution=32, channels=1, z_dim=16, w_dim=12, mapping_layers=2, channel_base=128, channel_max=8)


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    tensors, about = read_file(gan_file(tmp_path_factory.mktemp("gan") / "w.safetensors"))
    return tensors, about["config"]


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    return read_file(
        diffusion_file(tmp_path_factory.mktemp("diffusion") / "w.safetensors", "linear", "v", times="fast-uniform")
    )


# --- what is taken ----------------------------------------------------------------------------------------------------
def ready(module: torch.nn.Module) -> bool:
    """To be used and not trained, in single precision."""
    numbers = [*module.parameters(), *module.buffers()]
    return (
        not any(m.training for m in module.modules())
        and not any(p.requires_grad for p in numbers)
        and {p.dtype for p in numbers} == {torch.float32}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_networks_come_back_in_single_precision_and_ready(gan, denoiser, dtype):
    tensors, config = gan
    G = loading.load_generator({k: v.to(dtype) for k, v in tensors.items()}, config, 3)
    assert ready(G) and all(torch.equal(v, tensors[f"G_ema.{k}"].to(dtype).float()) for k, v in G.state_dict().items())
    tensors, about = denoiser
    net = loading.load_denoiser({k: v.to(dtype) for k, v in tensors.items()}, about, 3)
    for name, module in (("unet", net.unet), ("latent_scale", net.scale), ("vae_decoder", net.decoder)):
        assert ready(module) and all(
            torch.equal(v, tensors[f"{name}.{k}"].to(dtype).float()) for k, v in module.state_dict().items()
        )
    vae = VAE(**VAE_SIZES)
    state = {f"vae.{k}": v.to(dtype) for k, v in vae.state_dict().items()}
    loaded = loading.load_vae(state | {"vae_decoder.0.weight": torch.zeros(1)}, VAE_SIZES)  # of another module
    assert ready(loaded) and all(torch.equal(v, state[f"vae.{k}"].float()) for k, v in loaded.state_dict().items())


def test_loading_a_generator_draws_nothing(gan):
    """Its weights come from the file: none are drawn that these would replace."""
    before = torch.get_rng_state()
    loading.load_generator(*gan, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_denoiser_knows_its_times_its_target_and_its_shape(denoiser):
    tensors, about = denoiser
    net = loading.load_denoiser(tensors, about, 3)
    assert (net.target, net.schedule.name, net.shape, net.unet.num_classes) == ("v", "linear", (2, 8, 8), 3)
    assert (net.times * 999).round().tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0]
    config = about["config"] | {"times": "logit-normal"}
    assert loading.load_denoiser(tensors, about | {"config": config}, 3).times is None
    assert not any(isinstance(m, torch.nn.Dropout) and m.p for m in net.unet.modules())
    pixels = {k: v for k, v in tensors.items() if not k.startswith("vae")}
    assert loading.load_denoiser(pixels, about | {"vae": None}, 3).decoder is None
    assert net.to(torch.device("cpu")) is net


def test_the_tensors_of_a_module_are_those_under_its_whole_name():
    tensors = {name: torch.zeros(1) for name in ("G.a", "G_ema.a", "G_ema.b.c", "Gb.a", "vae.x", "vae_decoder.x")}
    assert set(loading.part(tensors, "G")) == {"a"} and set(loading.part(tensors, "G_ema")) == {"a", "b.c"}
    assert set(loading.part(tensors, "vae")) == {"x"} and loading.part(tensors, "D") == {}


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change",
    [
        {"channels": 2},
        {"mapping_layers": 65},
        {"resolution": 48},
        {"z_dim": 0},
        {"w_dim": True},
        {"channel_base": (1 << 20) + 1},
        {"channel_max": "8"},
        {"channel_base": 16},
        {"z_dim": None},
        {"mapping_layers": 2.0},
    ],
)
def test_configs_of_no_generator(gan, change):
    tensors, config = gan
    with pytest.raises(ValueError, match="config") as error:
        loading.load_generator(tensors, config | change, 3)
    assert "\n" not in str(error.value) and str(error.value).count(loading.AGAIN) == 1


def test_sizes_are_checked_before_anything_is_built(gan, monkeypatch):
    """Also those of the classes' embedding, of which a file may claim any number."""
    tensors, config = gan
    monkeypatch.setattr(loading, "Generator", None)
    for claim, classes in (
        ({"channel_base": 1 << 20, "channel_max": 1 << 20}, 3),
        ({"w_dim": 1 << 20}, 3),
        ({}, 1 << 20),
    ):
        with pytest.raises(ValueError, match="too small"):
            loading.load_generator(tensors, config | claim, classes)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: t.pop("G_ema.const"), "lacks const"),
        (lambda t: t.update({"G_ema.more": torch.zeros(1)}), "has unknown more"),
        (lambda t: t.update({"G_ema.const": t["G_ema.const"].flatten()}), "has another shape of const"),
        (lambda t: t["G_ema.const"].view(-1)[:1].fill_(float("inf")), "has no finite numbers in const"),
        (lambda t: t["G_ema.const"].view(-1)[:1].fill_(float("nan")), "has no finite numbers in const"),
        (lambda t: t.update({"G_ema.w_avg": torch.zeros(12, dtype=torch.int64)}), "has no finite numbers in w_avg"),
        (
            lambda t: [t.pop(k) for k in list(t) if k.startswith("G_ema.layers.0.")],
            r"lacks layers\.0\.affine\.bias, .* and 2 more",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(gan, spoil, says):
    tensors = {k: v.clone() for k, v in gan[0].items()}
    spoil(tensors)
    with pytest.raises(ValueError, match=says):
        loading.load_generator(tensors, gan[1], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"widths": "0,8"},
        {"widths": ""},
        {"widths": ",".join(["8"] * 9)},
        {"widths": "8,8193"},
        {"widths": "x"},
        {"num_res": 17},
        {"num_res": 0},
        {"head_dim": 0},
        {"head_dim": 4097},
        {"attention": "-1"},
        {"target": "w"},
        {"times": "often"},
        {"schedule": "none"},
        {"target": None},
        {"times": "fast-uniform", "fast_steps": 1001},
        {"times": "fast-nonuniform", "fast_steps": 3},
        {"fast_steps": "10"},
    ],
)
def test_configs_of_no_denoiser(denoiser, change):
    tensors, about = denoiser
    with pytest.raises(ValueError) as error:
        loading.load_denoiser(tensors, about | {"config": about["config"] | change}, 3)
    assert loading.AGAIN in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [2, 8]},
        {"shape": (2, 8, 8)},
        {"shape": [2, 8, 0]},
        {"shape": [2, 8, 4097]},
        {"shape": [True, 8, 8]},
        {"vae": {}},
        {"vae": VAE_SIZES | {"width": 4097}},
        {"vae": VAE_SIZES | {"down": 0}},
        {"shape": None},
        {"vae": 5},
    ],
)
def test_denoisers_of_no_shape_and_no_decoder(denoiser, change):
    tensors, about = denoiser
    with pytest.raises(ValueError, match="copy the file again"):
        loading.load_denoiser(tensors, about | change, 3)


@pytest.mark.parametrize("change", [{"width": 0}, {"width": 4097}, {"latent_channels": None}, {"down": 3}])
def test_configs_of_no_vae(change):
    state = {f"vae.{k}": v for k, v in VAE(**VAE_SIZES).state_dict().items()}
    with pytest.raises(ValueError, match="copy the file again"):
        loading.load_vae(state, VAE_SIZES | change)
