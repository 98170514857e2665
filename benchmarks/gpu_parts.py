"""The four parts of benchmarks/gpu.py: what each piece runs and what it tells. Each has the shapes of a GPU and, for a
rehearsal, tiny ones; the code is the same."""

from __future__ import annotations

import json
import math
import re
import statistics
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import diffusion, gan, machine
from benchmarks.gpu import Day, Part, Piece, Unfinished
from benchmarks.peers import Shape
from benchmarks.precision import COLUMNS
from data.batches import to_float
from data.files import is_number
from data.pack import ensure_held_out, ensure_pack
from data.packfile import Pack
from jobs.view.plots import Curves, plot_losses
from models.metrics import by_subject, psnr

# --- a: the tests -----------------------------------------------------------------------------------------------------
OUTCOME = re.compile(r"^(tests/\S+?::.+?) (PASSED|FAILED|ERROR|SKIPPED)\b", re.MULTILINE)


def outcomes(log: Path) -> dict[str, str]:
    """{test: how it ended last} of what pytest -vv has said in all calls."""
    return dict(OUTCOME.findall(log.read_text(errors="replace"))) if log.exists() else {}


def tests(day: Day) -> str:
    """pytest -m gpu; what has passed in an earlier call is not run again."""
    log = day.out / "pytest.out"
    passed = [word for name, how in outcomes(log).items() if how == "PASSED" for word in ("--deselect", name)]
    # All tests would have to be imported for a rehearsal: it takes the file that has nearly all.
    where = "tests/scripts/test_gpu.py" if day.rehearse else "tests"
    failed = ""
    try:
        day.start("pytest", "-m", "pytest", "-m", "gpu", "-vv", "--tb=short", where, *passed)
    except machine.Failed as error:
        failed = error.line()
    found = outcomes(log)
    table = machine.table(["test", "outcome"], [[f"`{name}`", how.lower()] for name, how in found.items()])
    if failed or not found:
        raise Unfinished(f"Failed: {failed or 'pytest has run no test'}\n\n{table}")
    return table


# --- b: speed ---------------------------------------------------------------------------------------------------------
def speed(resolution: int, day: Day) -> str:
    """StyleGAN2 beside its public implementations; at 256 px at the widths of adni256."""
    shape = Shape(resolution, 64, 16384, 512) if resolution == 256 else Shape(resolution, 64)
    if day.rehearse:
        shape = Shape(resolution // 16, 8, 128, 8)
    # At 256 px the peers need the memory that fp32 would hold.
    precisions = ("auto",) if resolution == 256 else ("fp32", "auto")
    rounds, threads = (1, 1) if day.rehearse else (5, 0)
    return gan.compare(shape, rounds, threads, day.device, day.checkouts, precisions)


def unet(day: Day) -> str:
    """The U-Net's step and sampling beside diffusers and MONAI."""
    if day.rehearse:
        return diffusion.compare(2, 1, 1, day.device, (64, 64, 64))
    return diffusion.compare(128, 5, 0, day.device)


# --- c and d: training ------------------------------------------------------------------------------------------------
ROWS = {"images/s": "img_per_s", "share of the measured peak": "peak_share", "GB of the GPU": "gpu_gb"}
TINY = (
    "--device cpu --preset quickstart --resolution 32 --batch 8 --threads 1 --total-kimg 0.08 --log-kimg 0.016 "
    "--sample-kimg 0.04 --checkpoint-minutes 0"
).split()
TINY_OF = {
    "train_gan.py": "--channel-base 256 --channel-max 8 --z-dim 16 --w-dim 16 --mbstd-group 2 --metric-kimg 0".split(),
    "pretrain_vae.py": "--width 8 --latent-channels 2".split(),
    "train_diffusion.py": "--widths 8,16 --head-dim 8 --attention 4 --steps 4 --metric-kimg 0".split(),
}
LARGE = ["--checkpoint-minutes", "2", "--log-kimg", "1", "--sample-kimg", "10"]


def trained(day: Day, name: str, script: str, preset: str, seconds: float, *flags: str) -> str:
    """Train for so many seconds, or on from where an earlier call was cut short; the table of how fast, and what the
    log says last."""
    how = [*TINY, *TINY_OF[script]] if day.rehearse else ["--preset", preset, *LARGE]
    words = [script, "--run", str(day.run(name)), *how, "--data", day.data, *flags]
    day.start(name, *words, seconds=seconds)
    log = metrics(day, name)
    if not log:
        raise machine.Failed(f"{script} has logged nothing; see {name}.out")
    rows = [["images trained on", str(log[-1]["nimg"])]]
    for label, column in ROWS.items():
        values = [row[column] for row in log[1:] or log if row.get(column) is not None]  # the first has the start in it
        rows.append([label, machine.spread(values) if values else "-"])
    rows += [[f"{key}, last", f"{value:.4g}"] for key, value in log[-1].items() if key in COLUMNS or "loss" in key
             if isinstance(value, (int, float))]  # fmt: skip
    return machine.table([f"`{' '.join([script, *how, *flags[:2]])}`" if not day.rehearse else script, name], rows)


def metrics(day: Day, name: str) -> list[dict]:
    """The rows of a run's log."""
    path = day.run(name) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stylegan2(precision: str, seconds: float, day: Day) -> str:
    """StyleGAN2 in one precision; a CPU has no fp16."""
    taken = "bf16" if day.rehearse and precision == "fp16" else precision
    return trained(day, f"gan-{precision}", "train_gan.py", "adni256", seconds, "--precision", taken)


def curves(day: Day) -> str:
    """How far the losses of half precision lie from those of fp32, over the images that all have seen."""
    logs = {name: {row["nimg"]: row for row in metrics(day, f"gan-{name}")} for name in ("fp32", "bf16", "fp16")}
    common = sorted(set.intersection(*map(set, logs.values())))
    if not common:
        raise machine.Failed("the three runs have no images in common: each of them must have trained")
    rows = []
    for column in COLUMNS:
        values = {name: [of[n][column] for n in common if is_number(of[n].get(column))] for name, of in logs.items()}
        if values["fp32"] and len({len(v) for v in values.values()}) == 1:
            off = [math.sqrt(statistics.fmean((a - b) ** 2 for a, b in zip(values[name], values["fp32"], strict=True)))
                   for name in ("bf16", "fp16")]  # fmt: skip
            rows.append([column, *(f"{v[-1]:.3g}" for v in values.values()), *(f"{x:.3g}" for x in off)])
    png = day.out / "curves.png"
    plot_losses({name: Curves(list(of.values())) for name, of in logs.items()}, png)
    columns = ["curve", *(f"{name}, last" for name in logs), "RMS of bf16 to fp32", "RMS of fp16 to fp32"]
    about = f"Over the first {common[-1]} images, which all three have seen; one seed each.\n\n"
    return about + machine.table(columns, rows) + "\n\n" + day.show(png, "gpu-curves.png", "losses in three precisions")


def quality(run: str, number: int, day: Day) -> str:
    """Frechet and kernel distance of a run beside those of training slices, and its newest grid."""
    out, number = day.out / f"evaluate-{run}", 20 if day.rehearse else number
    where = ["--device", "cpu"] if day.rehearse else []
    model = ["--run", str(day.run(run)), "--out", str(out)]
    day.start(f"evaluate-{run}", "predict.py", "evaluate", *model, "--number", str(number), *where)
    found = json.loads((out / "metrics.json").read_text())
    rows = [[name, f"{f['fid']:.2f} +- {f['fid_error']:.2f}", f"{1000 * f['kid']:.1f} +- {1000 * f['kid_sd']:.1f}"]
            for name, f in found["distances"].items()]  # fmt: skip
    grids = sorted((day.run(run) / "samples").glob("[0-9]*.png"))
    picture = day.show(grids[-1], f"gpu-{run}.png", f"samples of {run}") if grids else "No picture: it drew none."
    columns = [f"{found['compared']} slices against held-out ones", "Frechet distance", "kernel distance x 1000"]
    return machine.table(columns, rows) + "\n\n" + picture


# --- d: the VAE against the best linear codec ------------------------------------------------------------------------
class LinearCodec:
    """The linear code of least squared error with as many numbers as a VAE's latents: the first `channels` principal
    components of patches of down x down pixels. A VAE that does not reach it has learnt nothing."""

    def __init__(self, images: np.ndarray, down: int, channels: int, chunk: int = 64):
        """From training slices (N, C, R, R) uint8."""
        total, outer, count, self.down = 0.0, 0.0, 0, down
        for start in range(0, len(images), chunk):
            x = self.patches(torch.from_numpy(np.array(images[start : start + chunk]))).double()
            total, outer, count = total + x.sum(0), outer + x.T @ x, count + len(x)
        self.mean = total / count
        _, vectors = torch.linalg.eigh(outer / count - torch.outer(self.mean, self.mean))  # ascending
        self.basis = vectors[:, -channels:]

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, R, R) uint8 -> (B patches, C down^2) in 0..1."""
        x = F.unfold((to_float(images) + 1) / 2, self.down, stride=self.down)
        return x.transpose(1, 2).flatten(0, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, R, R) uint8 -> what is left of them after the code, in 0..1."""
        x = self.patches(images).double() - self.mean
        x = (x @ self.basis @ self.basis.T + self.mean).float().unflatten(0, (len(images), -1))
        return F.fold(x.transpose(1, 2), images.shape[-2:], self.down, stride=self.down).clamp(0, 1)


def linear_psnr(train: Pack, heldout: Pack, down: int, channels: int) -> float:
    """dB of the linear codec on held-out slices, averaged as predict.py reconstruct averages."""
    codec, values = LinearCodec(train.images, down, channels), []
    for start in range(0, len(heldout), 64):
        images = torch.from_numpy(np.array(heldout.images[start : start + 64]))
        values += psnr(codec(images), (to_float(images) + 1) / 2).double().tolist()
    subjects = [subject or name for subject, name in zip(heldout.subjects, heldout.names, strict=True)]
    return by_subject({"psnr": values}, subjects)[0]["mean and sd over subjects"]["psnr"][0]


def reconstruction(day: Day) -> str:
    """PSNR of the VAE on held-out slices beside that of the linear codec."""
    out, where = day.out / "reconstruct", ["--device", "cpu"] if day.rehearse else []
    day.start("reconstruct", "predict.py", "reconstruct", "--run", str(day.run("vae")), "--out", str(out), *where)
    found = json.loads((out / "reconstruct.json").read_text())["mean and sd over subjects"]
    config = json.loads((day.run("vae") / "config.json").read_text())
    how = {key: config[key] for key in ("resolution", "channels", "crop")} | {"log": lambda _: None}
    train = ensure_pack(day.data, cache_dir=day.out / "packs", progress=False, **how)
    heldout = ensure_held_out(day.data, "auto", cache_dir=day.out / "packs", progress=False, **how) or train
    floor, (reached, sd) = linear_psnr(train, heldout, config["down"], config["latent_channels"]), found["psnr"]
    rows = [["the VAE", f"{reached:.2f} +- {sd:.2f}"], ["the best linear codec", f"{floor:.2f}"],
            ["the VAE lies above it by", f"{reached - floor:.2f}"]]  # fmt: skip
    columns = [f"held-out slices, {config['latent_channels']} channels, {config['down']}-fold smaller", "PSNR, dB"]
    return machine.table(columns, rows) + "\n\n" + day.show(out / "reconstruct.png", "gpu-vae.png", "through the VAE")


def autoencoder(seconds: float, day: Day) -> str:
    """The VAE."""
    return trained(day, "vae", "pretrain_vae.py", "adni256-ldm", seconds)


def latent_diffusion(seconds: float, day: Day) -> str:
    """Diffusion on the latents of that VAE."""
    return trained(day, "diffusion", "train_diffusion.py", "adni256-ldm", seconds, "--vae", str(day.run("vae")))


PARTS = {
    "a": Part("tests", "`pytest -m gpu`, what earlier calls have passed left out.", (Piece("pytest", 60, tests),)),
    "b": Part(
        "speed",
        f"{gan.NOTES}\n\n{diffusion.NOTES.split('. The first')[0]}.",
        (
            *(Piece(f"StyleGAN2, {size} px", 110, partial(speed, size), size < 256) for size in (64, 128, 256)),
            Piece("U-Net", 60, unet),
        ),
    ),
    "c": Part(
        "StyleGAN2 at 256 px",
        "`--preset adni256` for minutes, not to the end: whether it trains, how fast, and whether precisions differ.",
        (
            *(
                Piece(name, seconds + 20, partial(stylegan2, name, seconds))
                for name, seconds in (("bf16", 200), ("fp16", 80), ("fp32", 110))
            ),
            Piece("curves", 5, curves),
            Piece("distances", 45, partial(quality, "gan-bf16", 2000)),
        ),
    ),
    "d": Part(
        "VAE and latent diffusion at 256 px",
        "`--preset adni256-ldm` for minutes, not to the end.",
        (
            Piece("VAE", 245, partial(autoencoder, 225)),
            Piece("reconstruction", 40, reconstruction),
            Piece("diffusion", 130, partial(latent_diffusion, 120)),
            Piece("distances", 45, partial(quality, "diffusion", 1000), again=True),
        ),
    ),
}
