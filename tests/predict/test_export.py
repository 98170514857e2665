"""`predict.py export`: what another tool draws of the files is what predict.py draws; wrong use and wrong files leave
nothing."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predict import one_line
from test_written import ADNI, CLASSES, VAE_SIZES, call, diffusion_file, gan_file, pixels

import predict
from jobs.predict import commands, diffusers_folder, export, trained
from jobs.training.weights import write_weights
from models import schedules
from models.unet import UNet, time_embedding
from models.vae import VAE, LatentScale

SEEDS = (5, 6, 7)
ROWS = 3


def package(*names: str):
    """Skip, saying why, where an optional package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def code_of(*argv) -> int:
    return predict.main(predict.parse_args(predict.__doc__, [str(a) for a in argv]))


def vae_file(path):
    torch.manual_seed(3)
    vae = VAE(**VAE_SIZES)
    config = VAE_SIZES | {"resolution": 32, "conditional": False, "crop": 0}
    about = {"job": "vae", "config": config, "classes": [], "geometry": ADNI, "nimg": 5000}
    write_weights(path, {"vae": vae.state_dict()}, about)
    return path


def wide_file(path, schedule, target, *, pixel=False, conditional=True, **changes):
    """A denoising network whose norms all have 32 groups; weights that make its predictions about as large as noise."""
    torch.manual_seed(4)
    config = {"widths": "64,128", "num_res": 1, "attention": "8,4", "head_dim": 32, "times": "uniform"} | changes
    shape = [1, 8, 8] if pixel else [2, 8, 8]
    unet = UNet(8, shape[0], widths=loaded(config["widths"]), num_res=config["num_res"],
                attention_sides=loaded(config["attention"]), head_dim=config["head_dim"],
                num_classes=len(CLASSES) if conditional else 0)  # fmt: skip
    for name, p in unet.named_parameters():
        torch.nn.init.normal_(p, std=0.05 if p.ndim > 1 else 0.2)
        if "norm" in name and name.endswith("weight"):
            p.data += 1
    mean, std = torch.tensor([0.4, -0.7])[: shape[0]], torch.tensor([0.6, 1.7])[: shape[0]]
    scale = LatentScale(torch.zeros(1), torch.ones(1)) if pixel else LatentScale(mean, std)
    states = {"unet": unet.state_dict(), "latent_scale": scale.state_dict()}
    if not pixel:
        states["vae_decoder"] = VAE(**VAE_SIZES).decoder.state_dict()
    about = {
        "job": "diffusion",
        "config": config | {"resolution": 8 if pixel else 32, "channels": 1, "conditional": conditional,
                            "schedule": schedule, "target": target, "fast_steps": 10},
        "classes": CLASSES,
        "geometry": {},
        "nimg": 5000,
        "shape": shape,
        "vae": None if pixel else VAE_SIZES,
    }  # fmt: skip
    write_weights(path, states, about)
    return path


def loaded(numbers: str) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers.split(",") if n)


def model_of(path):
    return trained.read_model(path, torch.device("cpu"), square=True)


def drawn(model, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(inputs, images as bytes) of a StyleGAN2's first pictures, by predict.py's Python interface."""
    inputs = {"z": model.draw_z(seed, range(ROWS)), "labels": torch.arange(ROWS) % len(CLASSES)}
    return inputs, torch.from_numpy(model.sample(ROWS, seed, noise="fixed", truncation=0.5))


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1) * 127.5).round().byte()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bytes that differ by rounding alone."""
    return bool(((a.int() - b.int()).abs() <= 1).all()) and float((a != b).float().mean()) < 0.01


# --- torch ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One folder for each kind, written by the command itself."""
    folder = tmp_path_factory.mktemp("export")
    files = {
        "gan": gan_file(folder / "gan.safetensors"),
        "vae": vae_file(folder / "vae.safetensors"),
        "diffusion": diffusion_file(folder / "diffusion.safetensors", "flow", "flow"),
    }
    for name, path in files.items():
        call("export", "--weights", path, "--format", "torch", "--out", folder / name)
    return folder


def program(path):
    return torch.export.load(path).module()


def test_a_program_draws_the_pictures_of_generate(programs):
    model, generator = model_of(programs / "gan.safetensors"), program(programs / "gan" / "generator.pt2")
    for seed in SEEDS:
        inputs, expected = drawn(model, seed)
        assert close(as_bytes(generator(**inputs, truncation=torch.tensor(0.5))), expected)
        assert not close(as_bytes(generator(**inputs, truncation=torch.tensor(1.0))), expected)
    one = {name: value[:1] for name, value in inputs.items()}
    assert close(as_bytes(generator(**one, truncation=torch.tensor(0.5))), expected[:1])
    about = json.loads((programs / "gan" / "torch.json").read_text())
    assert about["networks"]["generator"] == {
        "inputs": {"z": ["float32", "batch", 16], "truncation": ["float32"], "labels": ["int64", "batch"]},
        "outputs": {"images": ["float32", "batch", 1, 32, 32]},
    }
    assert about["classes"] == CLASSES and about["largest_difference"] <= export.TOLERANCE


def test_programs_of_a_vae_encode_and_decode(programs):
    model = model_of(programs / "vae.safetensors")
    images = torch.randint(0, 256, (ROWS, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = program(programs / "vae" / "encoder.pt2")(images=images / 127.5 - 1)
    torch.testing.assert_close(latents, model.encode(images), atol=1e-4, rtol=1e-4)
    decoded = program(programs / "vae" / "decoder.pt2")(latents=latents)
    torch.testing.assert_close((decoded + 1) / 2, model.decode(latents), atol=1e-4, rtol=1e-4)


def test_programs_of_a_diffusion_network_are_its_two_networks(programs):
    net = model_of(programs / "diffusion.safetensors").net
    x, t = torch.randn(ROWS, *net.shape), torch.rand(ROWS)
    labels = torch.tensor([0, 2, 3])  # 3: no class
    prediction = program(programs / "diffusion" / "denoiser.pt2")(x=x, t=t, labels=labels)
    torch.testing.assert_close(prediction, net.unet(x, t, labels), atol=1e-4, rtol=1e-4)
    images = program(programs / "diffusion" / "decoder.pt2")(latents=x)
    torch.testing.assert_close(images, net.decoder(net.scale.restore(x)).clamp(-1, 1), atol=1e-4, rtol=1e-4)


def test_an_export_that_differs_leaves_nothing(tmp_path, monkeypatch, capsys):
    """The first network is right, the second is not: the first is not kept either."""
    path, out = gan_file(tmp_path / "w.safetensors"), tmp_path / "new/out"

    def part(name, factor):
        return export.Part(name, torch.nn.Tanh(), lambda *key: {"input": export.noise(*key, (2,))},
                           lambda input: factor * input.tanh(), "output")  # fmt: skip

    monkeypatch.setattr(export, "parts_of", lambda model: [part("first", 1.0), part("second", 0.99)])
    said = one_line(capsys, code_of("export", "--weights", path, "--format", "torch", "--out", out), 78)
    assert "the exported second differs" in said and not (tmp_path / "new").exists()
    out.mkdir(parents=True)
    (out / "generator.pt2").write_text("of before")
    assert code_of("export", "--weights", path, "--format", "torch", "--out", out) == 78
    assert {p.name: p.read_text() for p in out.iterdir()} == {"generator.pt2": "of before"}


@pytest.mark.parametrize("found", [[0.0, float("nan")], [float("nan"), 0.0], [2e-3], [float("inf")]])
def test_no_number_and_a_large_one_fail_the_check(found):
    with pytest.raises(trained.ConfigError, match="nothing is kept"):
        export.check("x", found)
    assert export.check("x", [1e-4, 1e-3, 0.0]) == 1e-3


def test_a_difference_is_a_share_of_large_values_alone():
    for own, expected in ((torch.tensor([0.1, -0.2]), 0.05), (torch.tensor([4.0, -10.0]), 0.005)):
        assert export.gap(own + 0.05, own) == pytest.approx(expected, rel=1e-3)
    assert not export.gap(own, own * torch.nan) <= 1


# --- wrong use --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("form", "missing"), [("onnx", "onnxruntime"), ("diffusers", "diffusers")])
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, capsys, form, missing):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == missing else there("torch"))
    path = wide_file(tmp_path / "w.safetensors", "flow", "flow")
    said = one_line(capsys, code_of("export", "--weights", path, "--format", form, "--out", tmp_path / "out"), 78)
    assert f"--format {form} needs {missing}, " in said and said.endswith(f"pip install {missing}\n")
    assert not (tmp_path / "out").exists()


def test_forms_that_a_kind_of_model_has_not(tmp_path, capsys):
    gan, vae = gan_file(tmp_path / "g.safetensors"), vae_file(tmp_path / "v.safetensors")
    says = {
        gan: "diffusers has no StyleGAN2",
        vae: "(this VAE 4, 8 and 16), halvings padded on one side (this VAE on both)",
    }
    for path, text in says.items():
        code = code_of("export", "--weights", path, "--format", "diffusers", "--out", tmp_path / "out")
        assert text in one_line(capsys, code, 2) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (dict(widths="48,96"), "one number of groups in its norms, this network 8, 16 and 32 (--widths in multiples"),
        (dict(widths="64,128,256", attention="8", head_dim=128), "heads of 64 and 128 channels"),
        (dict(target="v"), "no scheduler for the target v on the schedule flow"),
        (dict(schedule="cosine"), "no scheduler for the target flow on the schedule cosine"),
        (dict(times="fast-uniform", schedule="linear", target="epsilon"), "the 11 steps of Fast-DDPM"),
    ],
)
def test_what_does_not_map_is_named(tmp_path, capsys, changes, text):
    path = wide_file(tmp_path / "w.safetensors", **{"schedule": "flow", "target": "flow"} | changes)
    said = one_line(capsys, code_of("export", "--weights", path, "--format", "diffusers", "--out", tmp_path / "o"), 78)
    assert text in said and "--format onnx or torch" in said and not (tmp_path / "o").exists()


# --- the parts of the folder that need no diffusers -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["linear", "scaled-linear", "cosine", "zero-snr"])
def test_betas_give_the_signal_shares_of_every_step(name):
    schedule = schedules.make_schedule(name)
    alpha, _ = schedule.alpha_sigma(torch.arange(1000, dtype=torch.float64) / 999)
    betas = torch.tensor(diffusers_folder.betas(schedule), dtype=torch.float32)
    torch.testing.assert_close((1 - betas).cumprod(0).sqrt(), alpha.float(), atol=1e-5, rtol=1e-3)


def test_weights_have_the_names_of_diffusers(tmp_path):
    model = model_of(wide_file(tmp_path / "w.safetensors", "linear", "epsilon"))
    state, own = diffusers_folder.unet_state(model.net), model.net.unet.state_dict()
    assert torch.equal(state["down_blocks.0.resnets.0.time_emb_proj.weight"], own["down.0.blocks.0.emb.weight"])
    assert torch.equal(state["up_blocks.0.resnets.1.conv_shortcut.bias"], own["up.0.blocks.1.skip.bias"])
    assert torch.equal(state["down_blocks.0.downsamplers.0.conv.weight"], own["downsample.0.weight"])
    qkv = own["middle.1.qkv.weight"]
    for i, letter in enumerate("qkv"):
        assert torch.equal(state[f"mid_block.attentions.0.to_{letter}.weight"], qkv[128 * i : 128 * (i + 1)])
    assert torch.equal(state["time_proj.weight"][500], time_embedding(torch.tensor([500 / 999]), 64)[0])
    assert "time_proj.weight" not in diffusers_folder.unet_state(
        model_of(wide_file(tmp_path / "f.safetensors", "flow", "flow")).net
    )


# --- onnx -------------------------------------------------------------------------------------------------------------
@package("onnx", "onnxscript", "onnxruntime")
def test_onnx_draws_the_pictures_of_generate(tmp_path):
    import onnxruntime

    path = gan_file(tmp_path / "w.safetensors")
    call("export", "--weights", path, "--format", "onnx", "--out", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "generator.onnx", providers=["CPUExecutionProvider"])
    assert [i.shape[0] for i in session.get_inputs() if i.shape] == ["batch", "batch"]
    for seed in SEEDS:
        inputs, expected = drawn(model_of(path), seed)
        for rows in (1, ROWS):
            feed = {k: v[:rows].numpy() for k, v in inputs.items()} | {"truncation": np.array(0.5, np.float32)}
            assert close(as_bytes(torch.from_numpy(session.run(None, feed)[0])), expected[:rows])


@package("onnx", "onnxscript", "onnxruntime")
def test_onnx_has_the_networks_of_the_other_kinds(tmp_path):
    files = {"v": vae_file(tmp_path / "v.safetensors"), "d": diffusion_file(tmp_path / "d.safetensors", "flow", "flow")}
    for name, path in files.items():
        call("export", "--weights", path, "--format", "onnx", "--out", tmp_path / name)
        assert json.loads((tmp_path / name / "onnx.json").read_text())["largest_difference"] < 1e-4
    found = {name: sorted(p.name for p in (tmp_path / name).glob("*.onnx")) for name in files}
    assert found == {"v": ["decoder.onnx", "encoder.onnx"], "d": ["decoder.onnx", "denoiser.onnx"]}


# --- diffusers --------------------------------------------------------------------------------------------------------
@package("diffusers")
@pytest.mark.parametrize(
    ("schedule", "target", "changes"),
    [
        ("flow", "flow", {}),
        ("flow", "flow", dict(pixel=True, conditional=False, widths="64,64", attention="", head_dim=64)),
        ("linear", "epsilon", dict(pixel=True, num_res=2, attention="4", head_dim=64)),
        ("scaled-linear", "x0", dict(conditional=False)),
        ("cosine", "v", dict(pixel=True)),
        ("zero-snr", "v", {}),
    ],
)
def test_diffusers_draws_the_same_samples(tmp_path, schedule, target, changes):
    """Whole samples of every class, by whole samplers, from the files."""
    path = wide_file(tmp_path / "w.safetensors", schedule, target, **changes)
    call("export", "--weights", path, "--format", "diffusers", "--out", tmp_path / "out")
    assert json.loads((tmp_path / "out/diffusers.json").read_text())["largest_difference"] < 1e-4
    folder = tmp_path / "out/diffusers"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "decoder.pt2", "scheduler", "unet"]
    call("export", "--weights", path, "--format", "diffusers", "--out", tmp_path / "out")  # again, over the old one
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["diffusers", "diffusers.json"]


@package("diffusers")
def test_the_program_of_the_folder_draws_what_ddim_draws(tmp_path):
    """The text block of its README.md, run as it stands, beside predict.py's own sampler from the same noise."""
    path = wide_file(tmp_path / "w.safetensors", "linear", "epsilon")
    call("export", "--weights", path, "--format", "diffusers", "--out", tmp_path)
    folder = tmp_path / "diffusers"
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    model = model_of(path)
    noise = torch.randn(4, *model.net.shape, generator=torch.Generator().manual_seed(0))
    expected = model.denoised(noise, torch.arange(4) % 3, model.way("ddim", 20, 1.0))
    for i in range(4):
        assert close(torch.from_numpy(pixels(folder / f"{i}.png").copy())[None], torch.from_numpy(expected[i]))


@package("diffusers")
def test_a_folder_that_draws_others_leaves_nothing(tmp_path, monkeypatch, capsys):
    path = wide_file(tmp_path / "w.safetensors", "linear", "epsilon", pixel=True)
    monkeypatch.setattr(diffusers_folder, "PREDICTIONS", {"epsilon": "v_prediction"})
    said = one_line(capsys, code_of("export", "--weights", path, "--format", "diffusers", "--out", tmp_path / "o"), 78)
    assert "the exported folder differs" in said and not (tmp_path / "o").exists()


def test_export_needs_no_gpu_and_no_type(tmp_path):
    args = predict.parse_args(predict.__doc__, ["export", "--weights", "w", "--format", "onnx"])
    assert (args.device, args.precision, args.square) == ("cpu", "fp32", True) and commands.opening(args)["batch"] == 1
    assert not hasattr(args, "seed") and Path(args.weights).name == "w"
