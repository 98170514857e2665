"""What predict.py draws is, pixel for pixel, a sample drawn by hand from the weights file
(tests/written_by_hand.py)."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image
from written_by_hand import (
    Diffusion,
    Gan,
    angle_walk,
    as_bytes,
    ddim,
    flow_midpoint,
    restored,
    seed_of,
    signal_shares,
    stream,
)

import predict
from data.batches import to_uint8
from data.packfile import restore
from jobs.predict.direction import end_classes
from jobs.training.weights import write_weights
from models.stylegan2 import Generator
from models.styles import slerp
from models.unet import UNet
from models.vae import VAE, LatentScale

CLASSES = ["NC", "AD", "MCI"]  # not in the order of the alphabet, and not two
ADNI = {"source_height": 60, "source_width": 64, "square": 64, "crop": 0, "resolution": 32}
CROPPED = {"source_height": 50, "source_width": 44, "square": 56, "crop": 40, "resolution": 32}
VAE_SIZES = {"channels": 1, "latent_channels": 2, "width": 8, "down": 4, "num_res": 1}


def gan_file(path, conditional=True, geometry=ADNI, classes=CLASSES, channels=1):
    """Random weights, away from the start of training, and those of another network under a name that nothing reads."""
    sizes = dict(
        resolution=32, channels=channels, z_dim=16, w_dim=12, mapping_layers=2, channel_base=128, channel_max=8
    )
    torch.manual_seed(1)
    states = {}
    for name in ("G", "G_ema"):
        G = Generator(**sizes, num_classes=len(classes) if conditional else 0)
        with torch.no_grad():
            G.w_avg.normal_()
            for layer in G.layers:
                layer.noise_strength.fill_(0.3)
        states[name] = G.state_dict()
    config = sizes | {"conditional": conditional, "crop": 0}
    about = {"job": "stylegan2", "config": config, "classes": classes, "geometry": geometry, "nimg": 5000}
    write_weights(path, states, about)
    return path


def diffusion_file(path, schedule, target, *, pixel=False, conditional=True, times="uniform", geometry=ADNI):
    """Random weights; the latents (or pixels) of a mean and a spread that no channel shares."""
    torch.manual_seed(2)
    shape = [1, 32, 32] if pixel else [2, 8, 8]
    unet = UNet(shape[-1], shape[0], widths=(8, 16), num_res=1, attention_sides=(4,), head_dim=8,
                num_classes=len(CLASSES) if conditional else 0)  # fmt: skip
    parts = [unet] if pixel else [unet, VAE(**VAE_SIZES).decoder]
    for p in (p for part in parts for p in part.parameters()):
        torch.nn.init.normal_(p, std=0.2)
    mean, std = torch.tensor([0.4, -0.7])[: shape[0]], torch.tensor([0.6, 1.7])[: shape[0]]
    states = {"unet": unet.state_dict(), "latent_scale": LatentScale(mean, std).state_dict()}
    if not pixel:
        states["vae_decoder"] = parts[1].state_dict()
    config = {
        "resolution": 32,
        "channels": 1,
        "conditional": conditional,
        "schedule": schedule,
        "target": target,
        "times": times,
        "fast_steps": 10,
        "widths": "8,16",
        "num_res": 1,
        "attention": "4",
        "head_dim": 8,
    }
    about = {
        "job": "diffusion",
        "config": config,
        "classes": CLASSES,
        "geometry": geometry,
        "nimg": 5000,
        "shape": shape,
        "vae": None if pixel else VAE_SIZES,
    }
    write_weights(path, states, about)
    return path


def call(*argv) -> None:
    assert predict.main(predict.parse_args(predict.__doc__, [str(a) for a in argv])) == 0


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def frames_of(path) -> list[np.ndarray]:
    with Image.open(path) as gif:
        found = []
        for i in range(gif.n_frames):
            gif.seek(i)
            found.append(np.asarray(gif.convert("L")))
    return found


def cells(picture: np.ndarray, rows: int, columns: int, height=32, width=32, top=None) -> np.ndarray:
    """The pictures (rows, columns, h, w) of a grid: 2 px between, and captions left and above of whatever size; `top`
    where there is a note below."""
    top = picture.shape[0] - rows * (height + 2) - 2 if top is None else top
    left = picture.shape[1] - columns * (width + 2) - 2
    return np.array([[picture[top + 2 + r * (height + 2) :, left + 2 + c * (width + 2) :][:height, :width]
                      for c in range(columns)] for r in range(rows)])  # fmt: skip


def alike(a: np.ndarray, b: np.ndarray) -> None:
    """Equal but for roundings: another order of the same sums may turn a half the other way in a rare pixel."""
    difference = np.abs(a.astype(int) - b.astype(int))
    assert a.shape == b.shape and difference.max() <= 1 and (difference > 0).mean() < 0.02, difference.max()
    assert b.std() > 5, "a picture without contrast shows nothing"


# --- StyleGAN2 --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("flags", "psi", "cutoff", "fixed"), [
    ((), 1.0, None, False), (("--truncation", 0.4), 0.4, None, False), (("--noise", "fixed"), 1.0, None, True),
    (("--truncation", -0.5, "--truncation-cutoff", 3, "--noise", "fixed"), -0.5, 3, True),
])  # fmt: skip
@pytest.mark.parametrize("conditional", [True, False])
def test_generate_draws_what_the_file_holds(tmp_path, conditional, flags, psi, cutoff, fixed):
    path = gan_file(tmp_path / "w.safetensors", conditional, geometry=CROPPED)
    call("generate", "--weights", path, "--number", 4, "--seed", 11, *flags, "--out", tmp_path / "out")
    gan = Gan(path)
    for i in range(4):
        label = i % 3 if conditional else None
        noise = None if fixed else gan.noise(11, i)
        square = gan.draw(gan.w(gan.z(11, i), label), psi, cutoff, noise, label)
        name = f"00000{i}_{CLASSES[i % 3]}.png" if conditional else f"00000{i}.png"
        np.testing.assert_array_equal(pixels(tmp_path / "out" / name), restored(square, CROPPED))
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.text == {"index": str(i), "seed": "11", "weights_sha256": sha}
        assert square.std() > 10
    about = json.loads((tmp_path / "out/generate.json").read_text())
    assert about["z_seeds"] == [seed_of(11, i, "predict z") for i in range(4)] and about["number"] == 4
    settings = {k: about["settings"][k] for k in ("seed", "class", "truncation", "truncation_cutoff", "noise", "size")}
    assert settings == {"seed": 11, "class": "all", "truncation": psi, "truncation_cutoff": cutoff, "size": "44x50",
                        "noise": "fixed" if fixed else "random"}  # fmt: skip
    assert about["command"] == "generate" and about["nimg"] == 5000
    assert about["classes"] == (CLASSES if conditional else [])


@pytest.mark.parametrize(("choice", "label"), [("MCI", 2), ("0", 0), ("1", 1)])
def test_the_class_asked_for_is_the_class_drawn(tmp_path, choice, label):
    path = gan_file(tmp_path / "w.safetensors")
    flags = (
        "--number",
        2,
        "--class",
        choice,
        "--noise",
        "fixed",
        "--square",
        "--format",
        "npz",
        "--out",
        tmp_path / "out",
    )
    call("generate", "--weights", path, *flags)
    gan = Gan(path)
    with np.load(tmp_path / "out/slices.npz") as file:
        assert file["labels"].tolist() == [label] * 2 and file["images"].shape == (2, 1, 32, 32)
        for i in range(2):
            expected = gan.draw(gan.w(gan.z(0, i), label))
            np.testing.assert_array_equal(file["images"][i, 0], expected)
            np.testing.assert_array_equal(pixels(tmp_path / f"out/00000{i}_{CLASSES[label]}.png"), expected)


def test_a_network_without_classes_has_no_labels(tmp_path):
    path = gan_file(tmp_path / "w.safetensors", conditional=False)
    call("generate", "--weights", path, "--number", 2, "--format", "npz", "--out", tmp_path / "out")
    with np.load(tmp_path / "out/slices.npz") as file:
        assert file["labels"].tolist() == [-1, -1] and file["labels"].dtype.kind == "i"


def test_truncation_of_zero_draws_the_average_style(tmp_path):
    """The stored mean of w of its class through the synthesis network, whatever the latent."""
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("--number", 3, "--truncation", 0, "--noise", "fixed", "--square", "--out", tmp_path / "out")
    call("generate", "--weights", path, *flags)
    gan = Gan(path)
    averages = [gan.draw(gan.w_avg[k][None]) for k in range(3)]
    drawn = [pixels(p) for p in sorted((tmp_path / "out").glob("0*.png"))]
    assert len(drawn) == 3 and averages[0].std() > 10 and not np.array_equal(averages[0], averages[1])
    for image, average in zip(drawn, averages, strict=True):
        np.testing.assert_array_equal(image, average)


@pytest.mark.parametrize("space", ["z", "w", None])
@pytest.mark.parametrize("choice", ["all", "AD"])
def test_the_film_walks_by_equal_steps(tmp_path, space, choice):
    """Every frame: in w along a line, in z along a great circle, between two classes the w of both."""
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("--seed", 4, "--class", choice, "--truncation", 0.8, "--truncation-cutoff", 4, "--number", 3, "--steps", 3)
    more = () if space is None else ("--space", space)
    call("interpolate", "--weights", path, *flags, *more, "--square", "--fps", 10, "--out", tmp_path / "out")
    gan, frames = Gan(path), frames_of(tmp_path / "out/interpolate.gif")
    assert len(frames) == 9
    for k in range(3):
        ends = [(gan.z(4, i), i if choice == "all" else 1) for i in (k, (k + 1) % 3)]
        for j in range(3):
            zs = [z for z, _ in ends]
            if space == "z":
                zs = [angle_walk(*zs, j / 3) if j else zs[0]] * 2
            w0, w1 = (gan.w(z, label) for z, (_, label) in zip(zs, ends, strict=True))
            c0, c1 = (gan.w_avg[label] for _, label in ends)
            alike(frames[3 * k + j], gan.draw(w0 + j / 3 * (w1 - w0), 0.8, 4, of=c0 + j / 3 * (c1 - c0)))
    strip = cells(pixels(tmp_path / "out/strip.png"), 3, 3)
    np.testing.assert_array_equal(strip.reshape(9, 32, 32), frames)
    with Image.open(tmp_path / "out/interpolate.gif") as gif:
        assert gif.info["duration"] == 100 and gif.info["loop"] == 0
    about = json.loads((tmp_path / "out/interpolate.json").read_text())
    assert about["frames"] == 9 and about["settings"]["space"] == (space or "w")
    assert about["settings"]["frames_per_latent"] == 3 and about["settings"]["fps"] == 10


def test_a_long_film_has_a_strip_spread_over_each_segment(tmp_path):
    path = gan_file(tmp_path / "w.safetensors")
    call("interpolate", "--weights", path, "--number", 2, "--steps", 20, "--square", "--out", tmp_path / "out")
    frames, strip = frames_of(tmp_path / "out/interpolate.gif"), cells(pixels(tmp_path / "out/strip.png"), 2, 8)
    for k in range(2):
        for j in range(8):  # 0, 2, 5, 7, 10 ... of 20
            np.testing.assert_array_equal(strip[k, j], frames[20 * k + 20 * j // 8])


def test_mixed_pictures_have_their_styles_from_both_sides(tmp_path):
    """Row sources 0 and 1 at the left, column sources 2 to 4 on top; truncation before the styles are mixed."""
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("--rows", 2, "--cols", 3, "--styles", "1-3", "--truncation", 0.5, "--truncation-cutoff", 3, "--seed", 6)
    call("mix", "--weights", path, *flags, "--square", "--out", tmp_path / "out")
    gan = Gan(path)
    ws = [gan.w(gan.z(6, i), i % 3)[:, None].repeat(1, gan.G.num_ws, 1) for i in range(5)]
    for i in range(5):
        ws[i][:, :3] = gan.w_avg[i % 3] + 0.5 * (ws[i][:, :3] - gan.w_avg[i % 3])
    grid = cells(pixels(tmp_path / "out/mix.png"), 3, 4, top=12)
    for r in range(2):
        np.testing.assert_array_equal(grid[1 + r, 0], gan.draw(ws[r]))
        for c in range(3):
            both = ws[r].clone()
            both[:, 1:4] = ws[2 + c][:, 1:4]
            np.testing.assert_array_equal(grid[1 + r, 1 + c], gan.draw(both))
    for c in range(3):
        np.testing.assert_array_equal(grid[0, 1 + c], gan.draw(ws[2 + c]))
    about = json.loads((tmp_path / "out/mix.json").read_text())
    assert about["left"] == [0, 1] and about["top"] == [2, 3, 4] and about["layers_from_top"] == [1, 3]


def test_a_direction_is_the_mean_over_the_same_latents(tmp_path):
    """Rows start in their own place in the one class; the steps lead on beyond the other."""
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("--from", "MCI", "--to", "NC", "--rows", 2, "--steps", 4, "--strength", 1.5, "--seed", 3)
    call("direction", "--weights", path, *flags, "--square", "--device", "cpu", "--out", tmp_path / "out")
    gan = Gan(path)
    z = torch.cat([gan.z(3, i) for i in range(512)])
    with torch.no_grad():
        start, end = (gan.G.mapping(z, torch.full((512,), k)) for k in (2, 0))
    step = (end - start).mean(0)
    strip = cells(pixels(tmp_path / "out/direction.png"), 2, 4, top=12)
    for r in range(2):
        for j, amount in enumerate((0, 0.5, 1, 1.5)):
            alike(strip[r, j], gan.draw(start[r : r + 1] + amount * step))
    about = json.loads((tmp_path / "out/direction.json").read_text())
    assert about["amounts"] == [0, 0.5, 1, 1.5] and about["length"] == pytest.approx(float(step.norm()), rel=1e-3)
    assert (about["settings"]["from"], about["settings"]["to"]) == ("MCI", "NC") and "recognised_as_end" not in about
    assert (about["settings"]["truncation"], about["settings"]["noise"], about["settings"]["class"]) == (
        1.0,
        "fixed",
        "all",
    )


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(CLASSES, ("AD", "NC")), (["b", "a", "c"], ("b", "a")), (["MCI", "AD"], ("MCI", "AD"))],
)
def test_default_classes_of_a_direction(classes, expected):
    assert end_classes(("", ""), classes) == expected
    assert end_classes(expected[::-1], classes) == expected[::-1]


def test_walks_between_parallel_vectors_are_straight():
    """No one great circle leads from a to a multiple of it, or to its opposite."""
    a, t = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.25]])
    torch.testing.assert_close(slerp(a, 3 * a, t), 1.5 * a)
    torch.testing.assert_close(slerp(a, -a, t), 0.5 * a)
    b = torch.tensor([[-4.0, 3.0]])  # a right angle away: an eighth of a turn halfway
    torch.testing.assert_close(slerp(a, b, torch.tensor([[0.5]])), (a + b) / 2**0.5)


# --- diffusion --------------------------------------------------------------------------------------------------------
def test_ddim_is_the_loop_of_its_paper(tmp_path):
    """Network for epsilon on the schedule of latent diffusion, in 4 calls, guided, from latents with a scale."""
    path = diffusion_file(tmp_path / "w.safetensors", "scaled-linear", "epsilon", geometry=CROPPED)
    flags = ("--sampler", "ddim", "--steps", 4, "--guidance", 1.7, "--number", 4, "--seed", 5)
    call("generate", "--weights", path, *flags, "--out", tmp_path / "out")
    net = Diffusion(path)
    for i in range(4):
        guess = lambda x, t, k=i % 3: net.predict(x, t, k, 1.7)  # noqa: E731
        x0 = ddim(guess, net.noise(5, i), signal_shares("scaled-linear"), [999, 749, 499, 249])[1][-1]
        alike(pixels(tmp_path / f"out/00000{i}_{CLASSES[i % 3]}.png"), restored(net.decode(x0), CROPPED))
    about = json.loads((tmp_path / "out/generate.json").read_text())["settings"]
    assert (about["sampler"], about["steps"], about["guidance"], about["seed"]) == ("ddim", 4, 1.7, 5)


@pytest.mark.parametrize(
    ("flags", "label", "guidance"),
    [
        (("--class", "AD"), 1, 1.0),
        (("--class", "MCI", "--guidance", 2), 2, 2.0),
        (("--class", "0", "--guidance", 0), None, 1.0),
    ],
)
def test_flow_by_the_midpoint_rule(tmp_path, flags, label, guidance):
    """The default: a velocity, 6 calls in 3 equal steps, the noise of picture i, the latents' scale, the decoder."""
    path = diffusion_file(tmp_path / "w.safetensors", "flow", "flow")
    call("generate", "--weights", path, "--steps", 6, "--number", 2, *flags, "--square", "--out", tmp_path / "out")
    net = Diffusion(path)
    for i, picture in enumerate(sorted((tmp_path / "out").glob("0*.png"))):
        speed = lambda x, t: net.predict(x, t, label, guidance)  # noqa: E731
        alike(pixels(picture), net.decode(flow_midpoint(speed, net.noise(0, i), 6)))
    about = json.loads((tmp_path / "out/generate.json").read_text())["settings"]
    assert (about["sampler"], about["steps"], about["guidance"]) == ("midpoint", 6, 0 if label is None else guidance)


def test_ancestral_noise_is_a_stream_of_the_picture(tmp_path):
    path = diffusion_file(tmp_path / "w.safetensors", "scaled-linear", "v", conditional=False)
    flags = ("--sampler", "ancestral", "--steps", 4, "--number", 2, "--square", "--out", tmp_path / "out")
    call("generate", "--weights", path, *flags, "--seed", 8)
    net = Diffusion(path)
    for i in range(2):
        draw = stream(8, i, "predict fresh noise")
        guess = lambda x, t: net.predict(x, t, None)  # noqa: E731
        fresh = lambda draw=draw: torch.randn(2, 8, 8, generator=draw)  # noqa: E731
        shares = signal_shares("scaled-linear")
        x0 = ddim(guess, net.noise(8, i), shares, [999, 749, 499, 249], target="v", fresh=fresh)[1][-1]
        alike(pixels(tmp_path / f"out/00000{i}.png"), net.decode(x0))


def test_pixels_on_fast_steps_are_clamped_on_the_way(tmp_path):
    """A network without a decoder, trained on Fast-DDPM's list: its own steps and DDIM, estimates kept in -1..1."""
    path = diffusion_file(tmp_path / "w.safetensors", "linear", "epsilon", pixel=True, times="fast-uniform")
    call("generate", "--weights", path, "--number", 2, "--square", "--out", tmp_path / "out")
    net, steps = Diffusion(path), [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0]
    for i in range(2):
        guess = lambda x, t, k=i: net.predict(x, t, k)  # noqa: E731
        estimates = ddim(guess, net.noise(0, i), signal_shares("linear"), steps, clamp=True)[1]
        alike(pixels(tmp_path / f"out/00000{i}_{CLASSES[i]}.png"), net.decode(estimates[-1]))
    assert sum(bool((e.abs() == 1).any()) for e in estimates) > 2
    about = json.loads((tmp_path / "out/generate.json").read_text())["settings"]
    assert (about["sampler"], about["steps"]) == ("ddim", 11)


def test_latents_are_not_clamped(tmp_path):
    """The same network on latents: what reaches beyond -1..1 stays."""
    path = diffusion_file(tmp_path / "w.safetensors", "linear", "epsilon", times="fast-nonuniform")
    call("generate", "--weights", path, "--number", 1, "--square", "--out", tmp_path / "out")
    net, steps = Diffusion(path), [999, 949, 899, 849, 799, 699, 599, 399, 199, 0]
    estimates = ddim(lambda x, t: net.predict(x, t, 0), net.noise(0, 0), signal_shares("linear"), steps)[1]
    assert max(float(e.abs().max()) for e in estimates) > 1.5
    alike(pixels(tmp_path / "out/000000_NC.png"), net.decode(estimates[-1]))


def test_denoise_shows_estimates_above_states(tmp_path):
    """Strip and film: at every call what the network is given and its estimate, decoded; at the end the result."""
    path = diffusion_file(tmp_path / "w.safetensors", "scaled-linear", "epsilon")
    flags = ("--sampler", "ddim", "--steps", 4, "--number", 3, "--seed", 2, "--fps", 4, "--square")
    call("denoise", "--weights", path, *flags, "--out", tmp_path / "out")
    net, shares, steps = Diffusion(path), signal_shares("scaled-linear"), [999, 749, 499, 249]
    strip, film = cells(pixels(tmp_path / "out/denoise.png"), 6, 5), frames_of(tmp_path / "out/denoise.gif")
    for i in range(3):
        guess = lambda x, t, k=i % 3: net.predict(x, t, k)  # noqa: E731
        states, estimates = ddim(guess, net.noise(2, i), shares, steps)
        for j in range(5):
            seen = net.decode(estimates[min(j, 3)]), net.decode(states[j] if j < 4 else estimates[3])
            alike(strip[2 * i, j], seen[0])
            alike(strip[2 * i + 1, j], seen[1])
    about = json.loads((tmp_path / "out/denoise.json").read_text())
    assert about["noise"] == pytest.approx([1 - shares[k] for k in steps], abs=1e-6) and about["frames"] == 5
    with Image.open(tmp_path / "out/denoise.gif") as gif:
        gif.seek(1)
        assert gif.info["duration"] == 250
    # The film: one picture a row, its noisy state, then the estimate beside it.
    for j in (0, 3):
        shown = cells(film[j], 3, 2)
        np.testing.assert_array_equal(shown[:, 0], strip[1::2, j])
        np.testing.assert_array_equal(shown[:, 1], strip[::2, j])


def test_the_film_of_a_diffusion_network_turns_noise_and_blends_predictions(tmp_path):
    path = diffusion_file(tmp_path / "w.safetensors", "flow", "flow")
    flags = ("--number", 3, "--steps", 3, "--calls", 2, "--guidance", 1.4, "--seed", 7, "--square")
    call("interpolate", "--weights", path, *flags, "--out", tmp_path / "out")
    net, frames = Diffusion(path), frames_of(tmp_path / "out/interpolate.gif")
    assert len(frames) == 9
    for k in range(3):
        a, b = k, (k + 1) % 3
        for j in range(3):
            share, noise = j / 3, net.noise(7, a)
            if j:
                noise = angle_walk(noise, net.noise(7, b), share)

            def speed(x, t, a=a, b=b, share=share):
                return (1 - share) * net.predict(x, t, a, 1.4) + share * net.predict(x, t, b, 1.4)

            alike(frames[3 * k + j], net.decode(flow_midpoint(speed, noise, 2)))


def test_a_direction_of_a_diffusion_network_blends_predictions_at_the_same_noise(tmp_path):
    path = diffusion_file(tmp_path / "w.safetensors", "flow", "flow")
    flags = ("--from", "AD", "--to", "MCI", "--rows", 2, "--steps", 3, "--strength", 2, "--calls", 2, "--seed", 1)
    call("direction", "--weights", path, *flags, "--square", "--device", "cpu", "--out", tmp_path / "out")
    net, strip = Diffusion(path), cells(pixels(tmp_path / "out/direction.png"), 2, 3, top=12)
    for r in range(2):
        for j, share in enumerate((0, 1, 2)):

            def speed(x, t, share=share):
                return (1 - share) * net.predict(x, t, 1) + share * net.predict(x, t, 2)

            alike(strip[r, j], net.decode(flow_midpoint(speed, net.noise(1, r), 2)))


# --- rounding and the original size -----------------------------------------------------------------------------------
def test_floats_become_the_nearest_bytes():
    """0 is -1 and 255 is 1; halves go to the even one, what lies outside is cut."""
    steps = torch.tensor([-9.0, -1.0, -1 + 0.4 / 127.5, -1 + 0.6 / 127.5, 0.0, 1.0, 9.0])
    assert to_uint8(steps).tolist() == [0, 0, 0, 1, 128, 255, 255] == as_bytes(steps).tolist()


@pytest.mark.parametrize("geometry", [ADNI, CROPPED, {**CROPPED, "crop": 41}, {**ADNI, "source_height": 33}])
def test_restored_pictures_lie_where_the_slices_lay(geometry):
    square = np.random.default_rng(0).integers(0, 256, (2, 1, 32, 32), np.uint8)
    back = restore(square, geometry)
    for image, original in zip(back, square, strict=True):
        np.testing.assert_array_equal(image[0], restored(original[0], geometry))


# --- how large pictures are -------------------------------------------------------------------------------------------
def test_a_command_shows_slices_at_their_own_size_unless_asked_for_squares(tmp_path):
    """As `generate` does. What is computed is the same."""
    path = gan_file(tmp_path / "w.safetensors", geometry=CROPPED)
    flags = ("direction", "--weights", path, "--rows", 1, "--steps", 2, "--device", "cpu")
    call(*flags, "--out", tmp_path / "whole")
    call(*flags, "--square", "--out", tmp_path / "square")
    whole = cells(pixels(tmp_path / "whole/direction.png"), 1, 2, 50, 44, top=12)
    squares = cells(pixels(tmp_path / "square/direction.png"), 1, 2, top=12)
    for a, b in zip(whole[0], squares[0], strict=True):
        np.testing.assert_array_equal(a, restored(b, CROPPED))


def test_pictures_for_people_are_enlarged_and_slices_are_not(tmp_path):
    path = gan_file(tmp_path / "w.safetensors")
    flags = ("--weights", path, "--number", 2, "--square", "--scale", 3)
    call("generate", *flags, "--out", tmp_path / "g")
    call("interpolate", *flags, "--steps", 1, "--out", tmp_path / "i")
    slices = [pixels(file) for file in sorted((tmp_path / "g").glob("0*.png"))]
    assert [image.shape for image in slices] == [(32, 32)] * 2
    grid = cells(pixels(tmp_path / "g/grid.png"), 1, 2, 96, 96, top=0)
    for shown, image in zip(grid[0], slices, strict=True):
        np.testing.assert_array_equal(shown, image.repeat(3, 0).repeat(3, 1))
    frames, strip = frames_of(tmp_path / "i/interpolate.gif"), cells(pixels(tmp_path / "i/strip.png"), 2, 1, 96, 96)
    for k in range(2):
        np.testing.assert_array_equal(frames[k], strip[k, 0])
        np.testing.assert_array_equal(frames[k], frames[k][::3, ::3].repeat(3, 0).repeat(3, 1))
