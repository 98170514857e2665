"""The numbers that predict.py writes, computed again by hand from the same slices and the same weights file."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_written import call, cells, gan_file, pixels
from written_by_hand import Gan, as_bytes, module_of, read_file, stream

from jobs.predict import evaluate, trained, tsne
from jobs.training.weights import write_weights
from models import projection
from models.vae import VAE

AD, NC = ("AD", 6), ("NC", 9)  # classes, and the scans of each that are trained on
GEOMETRY = {"source_height": 32, "source_width": 32, "square": 32, "crop": 0, "resolution": 32}


def slice_of(scan: int, z: int, bright: bool) -> np.ndarray:
    """A soft picture of its own for every scan, of which slices differ a little; one class is brighter at the top."""
    rng = np.random.default_rng(scan)
    coarse = Image.fromarray(rng.uniform(30, 200, (5, 5)).astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    picture = (
        np.asarray(coarse)
        + 6 * z * y
        - (30 * y if bright else 0)
        + np.random.default_rng([scan, z]).normal(0, 4, (32, 32))
    )
    return np.where(x**2 + y**2 < 0.8, picture, 0).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """45 training slices of 15 scans, 27 held-out ones of 9 others; three slices each, in two classes."""
    root, scan = tmp_path_factory.mktemp("data"), 100
    for split, counts in (("train", (AD, NC)), ("test", (("AD", 4), ("NC", 5)))):
        for label, count in counts:
            for _ in range(count):
                scan += 1
                for z in range(3):
                    path = root / split / label / f"{scan}_{z}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(slice_of(scan, z, label == "AD")).save(path)
    return root


@pytest.fixture(autouse=True)
def packs(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("BRAIN_PACK_DIR", str(tmp_path_factory.getbasetemp() / "packs-figures"))
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # threads


def slices_in(root: Path, split: str) -> tuple[np.ndarray, list[str], list[str], list[int]]:
    """(images (N, 32, 32), names, scans, classes) of a split, by name. Scans as they are told: each by
    its keyed hash."""
    paths = sorted((root / split).glob("*/*.png"))
    images = np.stack([pixels(p) for p in paths])
    names = [str(p.relative_to(root)) for p in paths]
    hashes = [
        "p" + hashlib.blake2b(p.stem.split("_")[0].encode(), key=b"brain slices: people", digest_size=6).hexdigest()
        for p in paths
    ]
    return images, names, hashes, [["AD", "NC"].index(p.parent.name) for p in paths]


class Blocks(torch.nn.Module):
    """Six features that anybody can compute: means of two by three parts."""

    dim = 6

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), (2, 3)).flatten(1) / 16


def features_of(images: np.ndarray) -> np.ndarray:
    """(N, 6) by hand: rows 0-15, 16-31; columns 0-10, 10-21, 21-31 (parts of 32 / 3 reach into each other)."""
    parts = [
        images[:, r : r + 16, a:b].reshape(len(images), -1).mean(1)
        for r in (0, 16)
        for a, b in ((0, 11), (10, 22), (21, 32))
    ]
    return np.stack(parts, 1).astype(float) / 16


# --- the figures, written from their papers ---------------------------------------------------------------------------
def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Heusel 2017, equation 6."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(ca @ cb).astype(complex)).real.sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca) + np.trace(cb) - 2 * root)


def jackknife(a: np.ndarray, b: np.ndarray) -> float:
    parts = np.array_split(np.arange(len(a)), 10)
    left = np.array([frechet(np.delete(a, part, 0), b) for part in parts])
    return math.sqrt(9 / 10 * ((left - left.mean()) ** 2).sum())


def kernel(a: np.ndarray, b: np.ndarray, draw: torch.Generator) -> tuple[float, float]:
    """Binkowski 2018: cubic kernel, unbiased, 100 subsets of half of the smaller set."""
    size, found = min(len(a), len(b)) // 2, []
    for _ in range(100):
        x, y = (s[torch.randperm(len(s), generator=draw)[:size].numpy()] for s in (a, b))
        k = lambda p, q: (p @ q.T / 6 + 1) ** 3  # noqa: E731
        off = ~np.eye(size, dtype=bool)
        found.append(k(x, x)[off].mean() + k(y, y)[off].mean() - 2 * k(x, y).mean())
    return float(np.mean(found)), float(np.std(found, ddof=1))


def manifold(fake: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Kynkaanniemi 2019 with 3 neighbours, Naeem 2020 with 5."""
    apart = lambda p, q: np.linalg.norm(p[:, None] - q[None], axis=2)  # noqa: E731
    radius = lambda p, k: np.sort(apart(p, p), 1)[:, k]  # noqa: E731  (0 is itself)
    cross = apart(fake, real)
    inside = cross <= radius(real, 5)
    return {"precision": (cross <= radius(real, 3)).any(1).mean(), "recall": (radius(fake, 3) >= cross.T).any(1).mean(),
            "density": inside.sum() / (5 * len(fake)), "coverage": inside.any(0).mean()}  # fmt: skip


def copies(fake, train, heldout, scans, centre=None) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Distances 1 - correlation (or 1 - cosine about `centre`), and what they say of copies."""

    def rows(x):
        x = x - (x.mean(1, keepdims=True) if centre is None else centre)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    apart = lambda p, q: 1 - rows(p) @ rows(q).T  # noqa: E731
    to_train, real_to_train = apart(fake, train).min(1), apart(heldout, train).min(1)
    own = np.array([[a == b for b in scans] for a in scans])
    real_to_heldout = np.where(own, 9, apart(heldout, heldout)).min(1)
    ratio, real_ratio = np.median(to_train / apart(fake, heldout).min(1)), np.median(real_to_train / real_to_heldout)
    figures = {
        "below_5th_percentile": (to_train < np.quantile(real_to_train, 0.05)).mean(),
        "nearer_than_heldout": (to_train[:, None] < real_to_train).mean(),
        "median_ratio": ratio, "median_ratio_of_heldout": real_ratio, "relative_ratio": ratio / real_ratio,
    }  # fmt: skip
    real = {scan: real_to_train[[s == scan for s in scans]] for scan in scans}
    kept = {scan: d[d >= np.quantile(real_to_train, 0.05) / 8] for scan, d in real.items()}
    n, least = len(fake), min(d.min() for d in kept.values() if len(d))
    draws = sum(len(d) > 0 for d in kept.values())  # of up to 100 held-out slices all count: as many draws as subjects
    figures |= {
        "nearer_than_any": (to_train < least).sum(), "nearer_than_any_expected": n / (draws + 1),
        "four_times_nearer": (4 * to_train < least).sum(),
        "chance": min(1, *(6 * (1 + draws * 16.0**i / n) ** -(2**i * to_train < least).sum() for i in range(6))),
        "heldout_copies": sum(map(len, real.values())) - sum(map(len, kept.values())),
    }  # fmt: skip
    return figures, to_train, apart(fake, train).argmin(1)


def smooth(images: np.ndarray) -> np.ndarray:
    """(N, H, W) after a Gaussian of a pixel, in whole numbers."""
    weight = np.exp(-(np.arange(-3, 4) ** 2) / 2)
    kernel = np.outer(weight, weight) / weight.sum() ** 2
    x = np.pad(images.astype(float), ((0, 0), (3, 3), (3, 3)), "edge")
    return (np.lib.stride_tricks.sliding_window_view(x, (7, 7), (1, 2)) * kernel).sum((3, 4)).round()


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """MS-SSIM of two 32 px pictures: three scales of Wang 2003's five, weights brought to a sum of 1, a window of 7."""
    offset = np.arange(7) - 3
    g = np.exp(-(offset**2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2
    blur = lambda x: (np.lib.stride_tricks.sliding_window_view(x, (7, 7)) * window).sum((2, 3))  # noqa: E731
    weights, result = np.array([0.0448, 0.2856, 0.3001]), 1.0
    a, b = a / 255, b / 255
    for scale, weight in enumerate(weights / weights.sum()):
        if scale:
            a, b = (x.reshape(len(x) // 2, 2, -1, 2).mean((1, 3)) for x in (a, b))
        ma, mb = blur(a), blur(b)
        va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        value = (2 * cov + 9e-4) / (va + vb + 9e-4)
        if scale == 2:
            value = value * (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4)
        result *= max(value.mean(), 0) ** weight
    return result


def pair_figures(images, groups, here, draw, pairs) -> dict[str, float]:
    """Mean and deviation over random pairs of different groups within `here`."""
    drawn = torch.randint(len(here), (4 * pairs, 2), generator=draw).tolist()
    chosen = [(here[i], here[j]) for i, j in drawn if groups[here[i]] != groups[here[j]]][:pairs]
    values = [similarity(images[i], images[j]) for i, j in chosen]
    return {"mean": np.mean(values), "sd": np.std(values, ddof=1), "pairs": len(chosen)}


def ridge_accuracy(train, labels, test, truth) -> float:
    """A ridge classifier on standardised features, classes weighing alike: the mean over the classes of what it gets
    right."""
    labels, truth = np.array(labels), np.array(truth)
    mean, scale = train.mean(0), train.std(0, ddof=1)
    table = lambda x: np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], 1)  # noqa: E731
    x, weight = table(train), 1 / np.bincount(labels)[labels][:, None]
    gram = x.T @ (weight * x)
    found = np.linalg.solve(gram + 0.01 * np.trace(gram) / 7 * np.eye(7), x.T @ (weight * np.eye(2)[labels]))
    guess = (table(test) @ found).argmax(1)
    return float(np.mean([(guess[truth == k] == k).mean() for k in (0, 1)]))


# --- evaluate ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [33, 51])
def test_every_figure_of_evaluate_by_hand(tmp_path, data, monkeypatch, number):
    """33: fewer generated than training slices, so these are a spread over all patients; 51: more, so the first 45 are
    compared."""
    monkeypatch.setattr(evaluate, "open_features", lambda given, train, out, rt: (Blocks(), "six blocks"))
    monkeypatch.setattr(evaluate, "PAIRS", 9)
    still = dict(MIRRORS=((1.0, 1.0),), GRID_SHIFTS=(0.0,), SHIFT=0.0, ANGLE=0.0, LOG_SCALE=0.0)
    still |= dict(CANDIDATES=99, FINALISTS=99)
    for name, value in still.items():  # the search itself is held in tests/models/test_copies.py
        monkeypatch.setattr(evaluate.copies, name, value)
    path = gan_file(tmp_path / "w.safetensors", geometry=GEOMETRY, classes=["AD", "NC"])
    flags = ("--number", number, "--seed", 6, "--truncation", 0.7, "--device", "cpu", "--out", tmp_path)
    call("evaluate", "--weights", path, "--data", data, *flags)
    found = json.loads((tmp_path / "metrics.json").read_text())

    gan = Gan(path)
    fake = np.stack([gan.draw(gan.w(gan.z(6, i), i % 2), 0.7, None, gan.noise(6, i), i % 2) for i in range(number)])
    train, names, _, train_labels = slices_in(data, "train")
    heldout, _, scans, heldout_labels = slices_in(data, "test")
    f, t, h = features_of(fake), features_of(train), features_of(heldout)
    compared = min(number, 45)
    spread = np.round(np.linspace(0, 44, compared)).astype(int)
    assert found["compared"] == compared
    for side, sample in (("generated", f[:compared]), ("training slices", t[spread])):
        kid, kid_sd = kernel(sample, h, stream(6, 0, "predict kid"))
        expected = {"fid": frechet(sample, h), "fid_error": jackknife(sample, h), "kid": kid, "kid_sd": kid_sd}
        assert found["distances"][side] == pytest.approx(expected | manifold(sample, h), rel=5e-3, abs=1e-4), side

    smoothed = tuple(map(smooth, (fake, train, heldout)))
    for space, sets, centre in (("pixels", smoothed, None), ("features", (f, t, h), t.mean(0))):
        sets = [x.reshape(len(x), -1).astype(float) for x in sets]
        figures, distance, where = copies(*sets, scans, centre)
        written = found["copying"][space]
        assert {k: written[k] for k in figures} == pytest.approx(figures, rel=5e-3, abs=1e-6), space
        order = np.argsort(distance)[:16]
        assert [c["generated"] for c in written["closest"]] == order.tolist()
        assert [c["training"] for c in written["closest"]] == [names[i] for i in where[order]]
        assert [c["distance"] for c in written["closest"]] == pytest.approx(
            distance[order].tolist(), rel=5e-3, abs=1e-5
        )
        picture = Image.open(tmp_path / f"copies-{space}.png")
        grid = np.asarray(picture)[:, picture.width - 8 * 34 - 2 :]
        kinds = (fake, fake, train[where]) if space == "pixels" else (fake, train[where])
        for row in range(2 * len(kinds)):  # generated slices, below each of them it as it was moved, the training slice
            for column in range(8):
                i = order[8 * (row // len(kinds)) + column]
                cell = grid[2 + row * 46 :, 2 + column * 34 :][:32, :32]
                assert np.abs(cell.astype(int) - kinds[row % len(kinds)][i]).max() <= 1

    for k, name in enumerate(("AD", "NC")):
        sides = {
            "generated": (fake, list(range(number)), [i % 2 for i in range(number)]),
            "held-out slices": (heldout, scans, heldout_labels),
        }
        for side, (images, groups, labels) in sides.items():
            here = [i for i, label in enumerate(labels) if label == k]
            draw = stream(6, k, f"predict pairs {side}")
            assert found["ms_ssim"][name][side] == pytest.approx(
                pair_figures(images, groups, here, draw, 9), rel=5e-3, abs=1e-4
            )

    labels = [i % 2 for i in range(number)]
    assert found["class_fidelity"] == pytest.approx(
        {
            "accuracy": ridge_accuracy(t, train_labels, f, labels),
            "accuracy_of_heldout": ridge_accuracy(t, train_labels, h, heldout_labels),
            "train_on_generated": ridge_accuracy(f, labels, h, heldout_labels),
        }
    )
    sides = found["data"]
    assert (
        sides["train"]["slices"],
        sides["train"]["subjects"],
        sides["heldout"]["slices"],
        sides["heldout"]["subjects"],
    ) == (45, 15, 27, 9)
    assert sides["train"]["digest"] != sides["heldout"]["digest"] and "split test" in sides["heldout"]["describe"]
    settings = found["settings"]
    assert (settings["number"], settings["seed"], settings["features"], settings["truncation"]) == (
        number,
        6,
        "six blocks",
        0.7,
    )
    notes = " ".join(found["notes"])
    assert ("the first 45 of 51" in notes) == (number == 51) and "27 held-out slices are few for 6 features" in notes
    assert f"sets of {compared} slices" in notes and "--split all" not in notes and "unknown" not in notes


def test_only_one_class_is_generated_where_one_is_asked_for(tmp_path, data, monkeypatch):
    monkeypatch.setattr(evaluate, "open_features", lambda given, train, out, rt: (Blocks(), "six blocks"))
    monkeypatch.setattr(evaluate, "PAIRS", 9)
    path = gan_file(tmp_path / "w.safetensors", geometry=GEOMETRY, classes=["AD", "NC"])
    call(
        "evaluate",
        "--weights",
        path,
        "--data",
        data,
        "--number",
        24,
        "--class",
        "NC",
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    found, gan = json.loads((tmp_path / "metrics.json").read_text()), Gan(path)
    fake = np.stack([gan.draw(gan.w(gan.z(0, i), 1), noise=gan.noise(0, i)) for i in range(24)])
    heldout = slices_in(data, "test")[0]
    assert found["distances"]["generated"]["fid"] == pytest.approx(
        frechet(features_of(fake), features_of(heldout)), rel=5e-3
    )
    assert "generated" not in found["ms_ssim"].get("AD", {}) and found["settings"]["class"] == "NC"


def test_notes_name_what_spoils_the_figures():
    def notes(split="train", heldout=("a", "b"), compared=10, number=10, dim=1):
        real = types.SimpleNamespace(heldout=types.SimpleNamespace(subjects=list(heldout), __len__=None))
        real.heldout = type("Pack", (), {"subjects": list(heldout), "__len__": lambda self: 50})()
        return " ".join(
            evaluate.notes_on(
                types.SimpleNamespace(config={"split": split}, columns=(), classes=[]), real, compared, number, dim
            )
        )

    assert "--split all" in notes("all") and "--split all" not in notes()
    assert "subjects of 2 held-out slices are unknown" in notes(heldout=("", "a", "")) and "unknown" not in notes()
    assert "the first 10 of 12" in notes(number=12) and "first" not in notes()
    assert "few" in notes(dim=6) and "few" not in notes(dim=5)


# --- tsne -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def seen(monkeypatch) -> list:
    """What t-SNE was given, in turn, as (points, settings); it answers with the first two columns."""
    found = []

    class TSNE:
        def __init__(self, dimensions, **settings):
            assert dimensions == 2
            self.settings = settings

        def fit_transform(self, x):
            found.append((x, self.settings))
            return x[:, :2]

    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.manifold", types.SimpleNamespace(TSNE=TSNE))
    return found


def test_tsne_is_given_held_out_and_generated_slices_and_w(tmp_path, data, monkeypatch, seen):
    monkeypatch.setattr(tsne, "open_features", lambda given, train, out, rt: (Blocks(), "six blocks"))
    path = gan_file(tmp_path / "w.safetensors", geometry=GEOMETRY, classes=["AD", "NC"])
    flags = ("--number", 14, "--seed", 3, "--truncation", 0.5, "--device", "cpu", "--out", tmp_path)
    call("tsne", "--weights", path, "--data", data, *flags)
    gan = Gan(path)
    rows = np.round(np.linspace(0, 26, 14)).astype(int)
    heldout, _, scans, labels = slices_in(data, "test")
    fake = np.stack([gan.draw(gan.w(gan.z(3, i), i % 2), 0.5, None, gan.noise(3, i), i % 2) for i in range(14)])
    (points, settings), (styles, _) = seen
    np.testing.assert_allclose(points, np.concatenate([features_of(heldout[rows]), features_of(fake)]), atol=0.02)
    w = torch.cat([gan.w(gan.z(3, i), i % 2) for i in range(14)])
    np.testing.assert_allclose(styles, w, rtol=1e-4, atol=1e-5)
    assert settings["random_state"] == 3 and settings["perplexity"] == 27 / 3 and settings["init"] == "pca"
    with open(tmp_path / "tsne.csv", newline="") as file:
        table = list(csv.DictReader(file))
    kinds = ["AD", "NC"]
    expected = [("real", kinds[labels[i]], scans[i]) for i in rows]
    expected += [(source, kinds[i % 2], "") for source in ("generated", "w") for i in range(14)]
    assert [(r["source"], r["class"], r["subject"]) for r in table] == expected
    xy = np.concatenate([points[:, :2], styles[:, :2]])
    np.testing.assert_allclose([[float(r["x"]), float(r["y"])] for r in table], xy, rtol=1e-4, atol=1e-6)
    about = json.loads((tmp_path / "tsne.json").read_text())
    assert about["real"] == 14 and about["settings"]["number"] == 14 and about["settings"]["features"] == "six blocks"


# --- VAE --------------------------------------------------------------------------------------------------------------
def vae_file(path, data=None, crop=0):
    torch.manual_seed(3)
    sizes = {"channels": 1, "latent_channels": 2, "width": 8, "down": 4, "num_res": 1}
    vae = VAE(**sizes)
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.2)
    with torch.no_grad():
        vae.decoder[-1].weight.mul_(8)  # some pixels lie outside of -1..1
    config = sizes | {"resolution": 32, "crop": crop, "data": data and str(data)}
    write_weights(
        path,
        {"vae": vae.state_dict()},
        {"job": "vae", "config": config, "classes": [], "geometry": GEOMETRY, "nimg": 0},
    )
    return path, vae.eval()


def head_of(image: np.ndarray) -> np.ndarray:
    """All but the dark pixels that are joined to the border by dark ones (a flood fill, pixel by pixel)."""
    dark, outside = image < 0.05, np.zeros(image.shape, bool)
    last = len(image) - 1
    todo = [
        (r, c) for r in range(last + 1) for c in range(last + 1) if (r in (0, last) or c in (0, last)) and dark[r, c]
    ]
    while todo:
        r, c = todo.pop()
        if 0 <= r <= last and 0 <= c <= last and dark[r, c] and not outside[r, c]:
            outside[r, c] = True
            todo += [(r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)]
    return ~outside


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wang 2004, equation 13, at every place of an 11 px window of sigma 1.5 inside the image."""
    offset = np.arange(11) - 5
    g = np.exp(-(offset**2) / (2 * 1.5**2))
    window = np.outer(g, g) / g.sum() ** 2
    blur = lambda x: (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) * window).sum((2, 3))  # noqa: E731
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))


def scores_of(real: np.ndarray, output: np.ndarray) -> list[float]:
    """l1, psnr, ssim, psnr in the head, ssim in the head of two images (32, 32) in 0..1."""
    head, places = head_of(real), ssim_map(output, real)
    decibels = lambda error: -10 * math.log10(error.mean())  # noqa: E731
    square = (real - output) ** 2
    return [
        np.abs(real - output).mean(),
        decibels(square),
        places.mean(),
        decibels(square[head]),
        places[head[5:-5, 5:-5]].mean(),
    ]


@pytest.mark.parametrize(
    ("flags", "split", "number", "crop"),
    [
        ((), "test", 27, 0),
        (("--split", "train", "--number", 20, "--batch", 7), "train", 20, 0),
        (("--split", "test", "--number", 9), "test", 9, 24),
    ],
)
def test_reconstructions_are_of_the_posterior_mean_and_measured_by_slice(tmp_path, data, flags, split, number, crop):
    """Of the held-out slices where nothing else is asked for, cropped as those that the VAE was trained on."""
    path, vae = vae_file(tmp_path / "w.safetensors", data, crop)
    call("reconstruct", "--weights", path, *flags, "--device", "cpu", "--out", tmp_path)
    images, _, scans, _ = slices_in(data, split)
    if crop:
        inner = [Image.fromarray(image[4:28, 4:28]) for image in images]
        images = np.stack([np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in inner])
    pick = np.round(np.linspace(0, len(images) - 1, number)).astype(int)
    with torch.no_grad():
        real = torch.from_numpy(images[pick]).float()[:, None] / 255
        mean = torch.cat([vae.encode(2 * x[None] - 1)[0] for x in real])
        decoded = torch.cat([vae.decode(z[None]) for z in mean])
        output = ((decoded.clamp(-1, 1) + 1) / 2).double().numpy()[:, 0]
    assert float(decoded.min()) < -1.05 and float(decoded.max()) > 1.05
    real = real.double().numpy()[:, 0]
    names, scores = (
        ["l1", "psnr", "ssim", "psnr_head", "ssim_head"],
        [scores_of(*pair) for pair in zip(real, output, strict=True)],
    )
    with open(tmp_path / "reconstruct.csv", newline="") as file:
        table = list(csv.DictReader(file))
    subjects = sorted({scans[i] for i in pick})
    assert [row["subject"] for row in table] == subjects
    means = np.array(
        [np.mean([s for s, i in zip(scores, pick, strict=True) if scans[i] == name], 0) for name in subjects]
    )
    written = np.array([[float(row[name]) for name in names] for row in table])
    np.testing.assert_allclose(written, means, rtol=2e-4, atol=2e-5)
    assert [int(row["slices"]) for row in table] == [sum(scans[i] == name for i in pick) for name in subjects]
    found = json.loads((tmp_path / "reconstruct.json").read_text())
    assert found["slices"] == number and found["subjects"] == len(subjects) and f"split {split}" in found["data"]
    expected = {name: [means[:, k].mean(), means[:, k].std(ddof=1)] for k, name in enumerate(names)}
    for name, values in expected.items():
        assert found["mean and sd over subjects"][name] == pytest.approx(values, rel=1e-3, abs=1e-5)
    assert found["left out"] == dict.fromkeys(names, 0)
    shown = np.round(np.linspace(0, number - 1, 8)).astype(int)
    grid = cells(pixels(tmp_path / "reconstruct.png"), 3, 8, top=12)
    for column, i in enumerate(shown):
        rows = real[i], output[i], np.minimum(3 * np.abs(real[i] - output[i]), 1)
        for row, values in enumerate(rows):
            assert np.abs(grid[row, column].astype(int) - np.round(255 * values)).max() <= 1


def test_tsne_of_a_vae_is_given_its_posterior_means(tmp_path, data, seen):
    path, vae = vae_file(tmp_path / "w.safetensors", data)
    call("tsne", "--weights", path, "--number", 12, "--device", "cpu", "--out", tmp_path)
    rows = np.round(np.linspace(0, 26, 12)).astype(int)
    images, _, scans, _ = slices_in(data, "test")
    with torch.no_grad():
        mean = vae.encode(torch.from_numpy(images[rows]).float()[:, None] / 127.5 - 1)[0].flatten(1)
    ((points, _),) = seen
    np.testing.assert_allclose(points, mean, rtol=1e-3, atol=1e-4)
    with open(tmp_path / "tsne.csv", newline="") as file:
        assert [row["subject"] for row in csv.DictReader(file)] == [scans[i] for i in rows]


# --- project ----------------------------------------------------------------------------------------------------------
def test_projections_are_of_held_out_slices_and_measured_in_bytes(tmp_path, data, monkeypatch):
    """The search is tests/models/test_projection.py's; here: which slices, which candidates, what is written of the
    result."""
    path = gan_file(tmp_path / "w.safetensors", geometry=GEOMETRY, classes=["AD", "NC"])
    asked, search = [], projection.project

    def spy(G, targets, w, **options):
        asked.append((targets, w, options["steps"]))
        return search(G, targets, w, **options)

    monkeypatch.setattr(projection, "project", spy)
    monkeypatch.setattr(projection, "CANDIDATES", 24)
    call(
        "project",
        "--weights",
        path,
        "--data",
        data,
        "--number",
        3,
        "--steps",
        4,
        "--seed",
        9,
        "--device",
        "cpu",
        "--out",
        tmp_path,
    )
    gan = Gan(path)
    images, names, _, _ = slices_in(data, "test")
    rows, found = [0, 13, 26], json.loads((tmp_path / "project.json").read_text())
    with np.load(tmp_path / "project.npz") as file:
        ws = torch.from_numpy(file["ws"])
        assert file["row"].tolist() == rows
    w = torch.cat([gan.w(gan.z(9, i), i % 2) for i in range(24)])
    for k, row in enumerate(rows):
        targets, candidates, steps = asked[k]
        torch.testing.assert_close(targets[0, 0], torch.from_numpy(images[row]).float() / 127.5 - 1)
        torch.testing.assert_close(candidates, w, rtol=1e-4, atol=1e-5)
        drawn = gan.draw(ws[k : k + 1]).astype(float)
        error = ((drawn - images[row]) ** 2).mean()
        assert found["slices"][k] == {
            "slice": names[row],
            "psnr": pytest.approx(10 * math.log10(255**2 / error), abs=0.01),
        }
        cell = cells(pixels(tmp_path / "project.png"), 3, 3, top=12)[k]
        assert steps == 4 and np.array_equal(cell[0], images[row]) and np.abs(cell[1] - drawn).max() <= 1
        assert np.abs(cell[2].astype(int) - np.minimum(2 * np.abs(drawn - images[row]), 255)).max() <= 2
    losses = [search(gan.G, targets, candidates, steps=4)[1] for targets, candidates, _ in asked]
    assert found["loss"] == pytest.approx([*np.mean(losses, 0), np.mean(losses, 0)[-1]], rel=1e-3)


def test_a_file_of_two_networks_gives_the_averaged_one(tmp_path):
    """What stands in the file under G_ema, not under G."""
    tensors, _ = read_file(gan_file(tmp_path / "w.safetensors"))
    loaded = trained.read_model(tmp_path / "w.safetensors", torch.device("cpu")).G.state_dict()
    state = module_of(tensors, "G_ema")
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)
    assert not torch.equal(state["const"], module_of(tensors, "G")["const"]) and as_bytes(torch.zeros(1)).tolist() == [
        128
    ]
