"""predict.py with diffusion networks and VAEs: pictures that repeat, flags that fit, files that are not what they
say."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import predict
from data.batches import to_uint8
from jobs.config import parsing, specs
from jobs.config.specs import DiffusionConfig, VaeConfig
from jobs.predict import commands, evaluate, trained
from jobs.run import stopping
from jobs.training import randomness
from jobs.training.weights import write_weights
from models import encoder, names, samplers, schedules
from models.metrics import by_subject, psnr, ssim
from models.unet import UNet
from models.vae import VAE, LatentScale

VAE_SIZES = {"channels": 1, "latent_channels": 2, "width": 8, "down": 4, "num_res": 1}
GEOMETRY = {"source_height": 30, "source_width": 24, "square": 30, "crop": 0, "resolution": 32}


def randomised(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return module.eval()


def diffusion_file(path, *flags: str, pixel: bool = False, **about):
    c = parsing.parse_config(DiffusionConfig, [*tiny.FLAGS["train_diffusion.py"], *flags])
    torch.manual_seed(0)
    shape = [1, 32, 32] if pixel else [2, 8, 8]
    widths, attention = specs.numbers(c.widths, "widths"), specs.numbers(c.attention, "attention")
    unet = UNet(shape[-1], shape[0], widths=widths, num_res=1, attention_sides=attention, head_dim=8, num_classes=2)
    parts = {
        "unet": randomised(unet).state_dict(),
        "latent_scale": LatentScale(torch.zeros(shape[0]), torch.ones(shape[0])).state_dict(),
    }
    if not pixel:
        parts["vae_decoder"] = randomised(VAE(**VAE_SIZES).decoder).state_dict()
    known = {
        "job": "diffusion",
        "config": parsing.result_fields(c),
        "classes": ["NC", "AD"],
        "geometry": GEOMETRY,
        "nimg": 7000,
        "shape": shape,
        "vae": None if pixel else VAE_SIZES,
    }
    write_weights(path, parts, known | about)
    return path


def vae_file(path):
    c = parsing.parse_config(VaeConfig, tiny.FLAGS["pretrain_vae.py"])
    torch.manual_seed(0)
    about = {
        "job": "vae",
        "config": parsing.result_fields(c) | {"num_res": 1},
        "classes": [],
        "geometry": GEOMETRY,
        "nimg": 0,
    }
    write_weights(path, {"vae": randomised(VAE(**VAE_SIZES)).state_dict()}, about)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return diffusion_file(tmp_path_factory.mktemp("weights") / "weights.safetensors")


def run(*argv) -> int:
    return predict.main(predict.parse_args(predict.__doc__, [str(a) for a in argv]))


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_makes_pictures_at_the_slices_size_that_repeat_in_any_company(weights, tmp_path):
    assert run("generate", "--weights", weights, "--out", tmp_path / "a", "--number", 4, "--steps", 4) == stopping.DONE
    assert run("generate", "--weights", weights, "--out", tmp_path / "b", "--number", 2, "--steps", 4) == stopping.DONE
    names = sorted(p.name for p in (tmp_path / "a").glob("0*.png"))
    assert names == ["000000_NC.png", "000001_AD.png", "000002_NC.png", "000003_AD.png"]
    assert pixels(tmp_path / "a" / names[0]).shape == (30, 24)
    for name in names[:2]:
        assert np.array_equal(pixels(tmp_path / "a" / name), pixels(tmp_path / "b" / name))
    assert not np.array_equal(pixels(tmp_path / "a" / names[0]), pixels(tmp_path / "a" / names[2]))
    assert (
        run("generate", "--weights", weights, "--out", tmp_path / "a", "--number", 4, "--steps", 4, "--format", "npz")
        == stopping.DONE
    )
    with np.load(tmp_path / "a" / "slices.npz") as file:
        assert file["images"].shape == (4, 1, 30, 24) and file["labels"].tolist() == [0, 1, 0, 1]
        assert np.array_equal(file["images"][1, 0], pixels(tmp_path / "a" / names[1]))
    about = json.loads((tmp_path / "a" / "generate.json").read_text())
    assert (
        about["settings"]["sampler"] == "midpoint"
        and about["settings"]["steps"] == 4
        and about["settings"]["guidance"] == 1.0
    )


@pytest.mark.parametrize("sampler", names.SAMPLERS)
def test_every_sampler_and_a_folder_of_other_settings_is_refused(weights, tmp_path, sampler, capsys):
    assert (
        run("generate", "--weights", weights, "--out", tmp_path, "--number", 1, "--steps", 4, "--sampler", sampler)
        == stopping.DONE
    )
    assert (
        run("generate", "--weights", weights, "--out", tmp_path, "--number", 1, "--steps", 6, "--sampler", sampler)
        == stopping.BAD
    )
    assert "steps 4 -> 6" in capsys.readouterr().err


def drawn(model, args, indices) -> np.ndarray:
    """The pictures that generate would write with these flags."""
    return model.sample(indices=indices, seed=args.seed, label=args.label, **commands.how_of(args, model))


def test_ancestral_noise_belongs_to_the_picture_not_to_its_batch(weights, tmp_path):
    args = predict.parse_args(
        predict.__doc__, ["generate", "--weights", str(weights), "--sampler", "ancestral", "--steps", "3"]
    )
    model = commands.model_of(args)
    both = drawn(model, args, [4, 5])
    assert np.abs(both[1].astype(int) - drawn(model, args, [5])[0].astype(int)).max() <= 1


def test_guidance_and_class_change_the_picture(weights):
    def one(*flags):
        args = predict.parse_args(predict.__doc__, ["generate", "--weights", str(weights), "--steps", "2", *flags])
        return drawn(commands.model_of(args), args, [0]).astype(int)

    plain = one("--class", "NC")
    assert not np.array_equal(plain, one("--class", "AD"))
    assert not np.array_equal(plain, one("--class", "NC", "--guidance", "4"))
    assert np.array_equal(plain, one("--class", "0", "--guidance", "1"))


def test_it_denoises_as_the_sampler_itself_does(weights):
    """The picture is the decoder's, of what the free function makes of the same noise."""
    args = predict.parse_args(
        predict.__doc__, ["generate", "--weights", str(weights), "--steps", "4", "--sampler", "ddim", "--square"]
    )
    model = commands.model_of(args)
    noise = torch.randn(2, 8, 8, generator=randomness.generator(0, 3, "predict z"))[None]
    with torch.no_grad():
        guess = lambda x, t: model.net.unet(x, t, torch.tensor([1]))  # noqa: E731
        denoise = samplers.denoiser(guess, schedules.make_schedule("flow"), "flow")
        x0 = samplers.sample(denoise, noise, schedules.make_schedule("flow"), "ddim", 4)
        expected = to_uint8(model.net.decoder(x0)).numpy()
    assert np.abs(drawn(model, args, [3]).astype(int) - expected.astype(int)).max() <= 1


def test_denoise_shows_every_stage(weights, tmp_path):
    assert (
        run("denoise", "--weights", weights, "--out", tmp_path, "--number", 2, "--steps", 6, "--sampler", "ddim")
        == stopping.DONE
    )
    with Image.open(tmp_path / "denoise.gif") as gif:
        assert gif.n_frames >= 2
    assert json.loads((tmp_path / "denoise.json").read_text())["frames"] == 7
    strip = pixels(tmp_path / "denoise.png")
    assert strip.shape[1] > 7 * 24 and strip.shape[0] > 2 * 2 * 30  # states below the estimates


def test_pixels_and_fast_steps(tmp_path, capsys):
    flags = "--space pixel --schedule linear --target v --times fast-uniform --sampler ddim --widths 8,8,8".split()
    path = diffusion_file(tmp_path / "w.safetensors", *flags, pixel=True)
    assert run("generate", "--weights", path, "--out", tmp_path / "out", "--number", 1) == stopping.DONE
    assert json.loads((tmp_path / "out" / "generate.json").read_text())["settings"]["steps"] == 11
    assert run("generate", "--weights", path, "--out", tmp_path / "other", "--steps", "20") == stopping.USAGE
    assert "Fast-DDPM" in capsys.readouterr().err and not list(tmp_path.glob("other/0*"))


@pytest.mark.parametrize(("flags", "says"), [
    (("--truncation", "0.7"), "--guidance"), (("--noise", "fixed"), "--guidance"), (("--class", "MCI"), "choose all"),
])  # fmt: skip
def test_flags_of_the_gan_are_refused(weights, tmp_path, flags, says, capsys):
    assert run("generate", "--weights", weights, "--out", tmp_path, *flags) == stopping.USAGE
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "about",
    [
        {"shape": [2, 8]},
        {"shape": [2, 8, 10**9]},
        {"vae": {"width": 8}},
        {"classes": "NC"},
        {"geometry": {"crop": -1}},
        {"job": "vae"},
        {"vae": VAE_SIZES | {"width": 4096}},
        {"classes": ["NC"]},
        {"config": {"schedule": "evil", "times": "uniform", "target": "flow"}},
        {
            "config": {
                "schedule": "flow",
                "times": "uniform",
                "target": "flow",
                "widths": "9999999",
                "attention": "",
                "num_res": 1,
                "head_dim": 1,
                "resolution": 32,
                "conditional": True,
            }
        },
    ],
)
def test_a_file_that_is_not_what_it_says_gets_one_line(tmp_path, about, capsys):
    path = diffusion_file(tmp_path / "w.safetensors", "--conditional", **about)
    assert run("generate", "--weights", path, "--out", tmp_path / "out", "--number", 1) == stopping.BAD
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and str(path) in error


def test_reconstruct_reports_psnr_and_ssim_by_subject(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path / "packs"))
    path = vae_file(tmp_path / "w.safetensors")
    vae = trained.read_model(path, torch.device("cpu")).vae
    assert run("reconstruct", "--weights", path, "--out", tmp_path / "out", "--data", "phantom:40") == stopping.DONE
    figures = json.loads((tmp_path / "out" / "reconstruct.json").read_text())
    assert figures["slices"] == figures["subjects"] == 4 and "split val" in figures["data"]
    from data.pack import ensure_pack

    pack = ensure_pack("phantom:40", resolution=32, split="val", log=lambda *_: None)
    real = torch.from_numpy(np.array(pack.images)).float() / 255
    with torch.no_grad():
        output = (vae.decode(vae.encode(2 * real - 1)[0]).clamp(-1, 1) + 1) / 2
    scores = figures["mean and sd over subjects"]
    assert scores["psnr"][0] == pytest.approx(float(psnr(output, real).mean()), abs=1e-3)
    assert scores["ssim"][0] == pytest.approx(float(ssim(output, real).mean()), abs=1e-4)
    assert scores["ssim"][1] == pytest.approx(float(ssim(output, real).double().std()), abs=1e-4)
    assert (tmp_path / "out" / "reconstruct.png").is_file()
    lines = (tmp_path / "out" / "reconstruct.csv").read_text().splitlines()
    assert lines[0] == "subject,slices,l1,psnr,ssim,psnr_head,ssim_head" and len(lines) == 5
    means = np.array([[float(x) for x in line.split(",")[1:]] for line in lines[1:]]).mean(0)
    assert means[2] == pytest.approx(scores["psnr"][0], rel=1e-4) and means[4] == pytest.approx(
        scores["psnr_head"][0], rel=1e-4
    )


def test_subjects_count_once_however_many_slices_they_have():
    figures, table = by_subject({"psnr": [10.0, 20.0, 40.0, float("inf")]}, ["a", "a", "b", "b"])
    assert figures["mean and sd over subjects"]["psnr"][0] == pytest.approx((15 + 40) / 2)
    assert figures["left out"]["psnr"] == 1 and figures["subjects"] == 2
    assert table == [["a", 2, 15.0], ["b", 2, 40.0]]


# --- what a diffusion network can do beside generating ----------------------------------------------------------------
@pytest.fixture
def packs(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.getbasetemp() / "packs-denoising"
    monkeypatch.setenv("BRAIN_PACK_DIR", str(folder))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # threads
    monkeypatch.setattr(encoder.train_encoder, "__kwdefaults__", {**encoder.train_encoder.__kwdefaults__, "steps": 5})
    monkeypatch.setattr(evaluate, "PAIRS", 50)


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return diffusion_file(tmp_path_factory.mktemp("conditional") / "weights.safetensors", "--conditional")


def frames_of(path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        found = []
        for i in range(gif.n_frames):
            gif.seek(i)
            found.append(np.asarray(gif.convert("L")).astype(int))
    return found


def test_evaluate_measures_a_diffusion_network_too(conditional, packs, tmp_path):
    flags = (
        "--weights",
        conditional,
        "--data",
        "phantom:200",
        "--number",
        60,
        "--steps",
        2,
        "--sampler",
        "ddim",
        "--device",
        "cpu",
    )
    assert run("evaluate", *flags, "--out", tmp_path / "a") == stopping.DONE
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert found["settings"]["steps"] == 2 and found["settings"]["sampler"] == "ddim" and found["compared"] == 60
    assert found["distances"]["generated"]["kid"] > 5 * abs(found["distances"]["training slices"]["kid"])
    assert found["ms_ssim"].keys() == {"NC", "AD"} and found["class_fidelity"]["accuracy_of_heldout"] > 0
    assert run("evaluate", *flags, "--batch", 7, "--out", tmp_path / "b") == stopping.DONE  # batched differently
    other = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert all(other[k] == found[k] for k in ("distances", "ms_ssim", "copying", "class_fidelity"))


def test_interpolation_turns_the_noise_and_passes_through_the_pictures(conditional, tmp_path):
    flags = ("--weights", conditional, "--number", 3, "--square")
    assert run("generate", *flags, "--steps", 2, "--out", tmp_path / "g") == stopping.DONE
    assert run("interpolate", *flags, "--steps", 3, "--calls", 2, "--out", tmp_path / "i") == stopping.DONE
    frames = frames_of(tmp_path / "i" / "interpolate.gif")
    assert len(frames) == 9
    for k, path in enumerate(sorted((tmp_path / "g").glob("0*.png"))):
        assert np.abs(frames[3 * k] - pixels(path)).max() <= 1
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise([*frames, frames[0]])]
    assert max(steps) > 0 and min(steps) > 0


def test_direction_goes_from_the_prediction_of_one_class_to_that_of_the_other(conditional, tmp_path):
    flags = (
        "--weights",
        conditional,
        "--from",
        "NC",
        "--to",
        "AD",
        "--rows",
        2,
        "--steps",
        3,
        "--strength",
        1,
        "--calls",
        2,
    )
    assert run("direction", *flags, "--square", "--out", tmp_path / "d") == stopping.DONE
    strip = pixels(tmp_path / "d" / "direction.png").astype(int)
    for column, name in ((0, "NC"), (2, "AD")):
        out = tmp_path / name
        assert (
            run(
                "generate",
                "--weights",
                conditional,
                "--class",
                name,
                "--number",
                2,
                "--steps",
                2,
                "--square",
                "--out",
                out,
            )
            == 0
        )
        for row, path in enumerate(sorted(out.glob("0*.png"))):
            cell = strip[12 + 2 + 34 * row :, 2 + 34 * column :][:32, :32]
            assert np.array_equal(cell, pixels(path))
    first, between, last = (strip[14:46, 2 + 34 * k :][:, :32] for k in range(3))
    assert not np.array_equal(first, between) and not np.array_equal(between, last)


def test_tsne_of_a_vae_is_of_its_latents(packs, tmp_path):
    pytest.importorskip("sklearn")
    path = vae_file(tmp_path / "w.safetensors")
    assert (
        run("tsne", "--weights", path, "--data", "phantom:200", "--number", 15, "--out", tmp_path / "t")
        == stopping.DONE
    )
    lines = (tmp_path / "t" / "tsne.csv").read_text().splitlines()
    assert (
        lines[0] == "source,x,y,class,subject"
        and len(lines) == 16
        and all(line.startswith("real,") for line in lines[1:])
    )
    assert json.loads((tmp_path / "t" / "tsne.json").read_text())["settings"]["features"].startswith("latents")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("mix",), 78, "needs those of a stylegan2 run"),
        (("project",), 78, "needs those of a stylegan2 run"),
        (("reconstruct",), 78, "needs those of a vae run"),
        (("denoise", "--class", "MCI"), 2, "choose all, NC (0), AD (1)"),
        (("interpolate", "--space", "w"), 2, "--space is a flag of a StyleGAN2"),
        (("interpolate", "--sampler", "ancestral"), 2, "ancestral"),
        (("direction", "--sampler", "ancestral"), 2, "ancestral"),
        (("direction", "--to", "MCI"), 2, "choose from NC, AD"),
        (("evaluate", "--truncation", "0.5"), 2, "--guidance"),
        (("evaluate", "--data", "nowhere-at-all"), 78, "nowhere-at-all"),
    ],
)
def test_wrong_use_of_a_diffusion_network_gets_one_line(conditional, packs, tmp_path, argv, code, says, capsys):
    assert run(argv[0], "--weights", conditional, "--out", tmp_path / "out", *argv[1:]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error


@pytest.mark.parametrize("command", ["generate", "evaluate", "interpolate", "mix", "project", "direction", "denoise"])
def test_a_vae_where_a_generator_is_needed_gets_one_line(tmp_path, command, capsys):
    path = vae_file(tmp_path / "w.safetensors")
    assert run(command, "--weights", path, "--out", tmp_path / "out") == 78
    error = capsys.readouterr().err
    assert (
        error.startswith("error: ")
        and error.count("\n") == 1
        and "a 'vae' job" in error
        and not (tmp_path / "out").exists()
    )
