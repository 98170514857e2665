"""Everything one does with a trained model: pictures, films, what is in its latents, and how good it is.

    python predict.py generate --run runs/stylegan2-1a2b3c4d --number 64          any number; an interrupted one goes on
    python predict.py generate --run runs/diffusion-1a2b3c4d --class AD --guidance 1.5 --steps 10
    python predict.py interpolate --run RUN                                       a film through latents
    python predict.py mix --run RUN --rows 4 --cols 6 --styles coarse             StyleGAN2
    python predict.py project --run RUN                                           StyleGAN2: real slices in W+
    python predict.py direction --run RUN --from AD --to NC                       StyleGAN2, diffusion
    python predict.py denoise --run RUN                                           diffusion
    python predict.py reconstruct --run runs/vae-1a2b3c4d                         VAE: PSNR and SSIM by subject
    python predict.py tsne --run RUN                                              features or latents on a plane
    python predict.py evaluate --run RUN --number 5000                            how good, how varied, copied or not
    python predict.py plot --run RUN_A --run RUN_B                                losses, also while runs train
    python predict.py report RUN_A RUN_B                                          one HTML page about runs

--weights FILE does instead of --run. The latent of picture i is a function of (seed, i) alone: the same in every
subcommand and in every batch. A weights file is read as data, nothing in it is ever executed.
"""
# ruff: noqa: E402  (the command line is parsed before torch is imported)

import sys

if sys.version_info < (3, 11):
    sys.exit("predict.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

import argparse
import math
import os
import signal

MAX_NUMBER = 10**7  # pictures in one folder
CALLS_COMMANDS = ("interpolate", "direction")  # where --steps counts pictures, and network calls are --calls


def whole(low: int, high: int):
    """argparse type: a whole number from low to high."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not from {low} to {high}")
        return value

    return parse


def number(text: str) -> float:
    """argparse type: a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


# fmt: off
def model_flags(pictures: bool = True) -> argparse.ArgumentParser:
    """Flags of every subcommand that runs a model; `pictures`: those of the slices' original size may be asked for."""
    p = argparse.ArgumentParser(add_help=False)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--run", help="run directory; its weights.safetensors is used")
    where.add_argument("--weights", metavar="FILE", help="a weights.safetensors file")
    p.add_argument("--out", metavar="DIR",
                   help="where to write (default RUN/predictions/COMMAND, or ./predictions/COMMAND with --weights)")
    p.add_argument("--seed", type=int, default=0,
                   help="picture i is a function of the seed and i (default %(default)s)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                   help="auto is a GPU where there is one (default %(default)s)")
    p.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="fp32",
                   help="type of the convolutions; auto is bf16 where the device is fast at it (default %(default)s)")
    p.add_argument("--batch", type=whole(1, 4096), default=32,
                   help="pictures per pass on a GPU (default %(default)s); a CPU takes one at a time")
    if pictures:
        p.add_argument("--square", action="store_true",
                       help="keep the training square instead of the slices' original size")
    else:
        p.set_defaults(square=True)
    return p


def class_flag() -> argparse.ArgumentParser:
    """The flag of every subcommand that samples a network."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--class", dest="label", metavar="NAME|INDEX|all", default="all",
                   help="class of the pictures; all takes the classes in turn (default %(default)s)")
    return p


def gan_flags() -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a StyleGAN2."""
    p = argparse.ArgumentParser(add_help=False)
    group = p.add_argument_group("StyleGAN2")
    group.add_argument("--truncation", type=number, default=1.0, metavar="PSI",
                       help="1 samples what was learnt; below 1, 0.7 say, pictures are cleaner and more alike (default 1)")
    group.add_argument("--truncation-cutoff", type=whole(0, 64), metavar="N", help="truncate only the first N layers")
    p.set_defaults(noise=None)
    return p


def diffusion_flags(calls: str = "--steps") -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a diffusion network; `calls`: the flag for the network calls."""
    p = argparse.ArgumentParser(add_help=False)
    group = p.add_argument_group("diffusion")
    group.add_argument("--sampler", choices=("midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"),
                       help="default midpoint; ddim where the network was trained on Fast-DDPM's steps")
    group.add_argument(calls, dest="calls", type=whole(1, 10000), metavar="N", help="network calls per picture (default 20)")
    group.add_argument("--guidance", type=number, metavar="G",
                       help="classifier-free guidance; 1 samples what was learnt, above 1 is more typical of the class (default 1)")
    return p


def add_denoise(commands, parents: list) -> None:
    line = "how a diffusion network makes pictures of noise: its estimates beside the noisy states, a strip and a GIF"
    p = commands.add_parser("denoise", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, 64), default=4, metavar="N", help="how many pictures (default %(default)s)")
    p.add_argument("--fps", type=whole(1, 50), default=5, help="frames per second (default %(default)s)")


def add_reconstruct(commands, parents: list) -> None:
    line = "slices through a VAE and back: a grid, PSNR and SSIM whole and inside the head, by subject, as JSON and CSV"
    p = commands.add_parser("reconstruct", parents=parents, help=line, description=line)
    p.add_argument("--data", metavar="SPEC", help="slices, as the train scripts take them (default: those of the run)")
    p.add_argument("--split", choices=("auto", "train", "test", "val", "all"), default="auto",
                   help="auto is val where the data have it, else test (default %(default)s)")
    p.add_argument("--number", type=whole(1, MAX_NUMBER), metavar="N",
                   help="how many slices, spread over the split (default: all)")


def data_flag() -> argparse.ArgumentParser:
    """The flag of every subcommand that needs real slices."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--data", metavar="SPEC", help="real slices (default: what the run was trained on)")
    return p


def feature_flag() -> argparse.ArgumentParser:
    """The flag of every subcommand that measures features."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--feature-weights", metavar="FILE",
                   help="state dict of torchvision's inception_v3 or resnet50, or of a DINO or DINOv2, to measure with; "
                        "without it a small encoder is trained on the training slices, once, in minutes, and kept "
                        "beside their pack")
    return p


def add_generate(commands, parents: list) -> None:
    line = "PNGs from random latents, a grid and generate.json; an interrupted command goes on where it stopped"
    p = commands.add_parser("generate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, MAX_NUMBER), default=64, metavar="N",
                   help="how many pictures (default %(default)s)")
    p.add_argument("--noise", choices=("random", "fixed"),
                   help="of a StyleGAN2; random: each picture its own, as in training; fixed: all the same (default random)")
    p.add_argument("--npz", action="store_true",
                   help="also all of them in slices.npz: images uint8 (N, C, H, W), labels (-1: no classes)")
    p.add_argument("--overwrite", action="store_true", help="replace the pictures of other settings in the same folder")


def add_mix(commands, parents: list) -> None:
    line = "a grid of pictures whose styles are mixed (Karras 2019, figure 3)"
    p = commands.add_parser("mix", parents=parents, help=line, description=line)
    p.add_argument("--rows", type=whole(1, 64), default=4, metavar="N",
                   help="sources at the left (default %(default)s)")
    p.add_argument("--cols", type=whole(1, 64), default=6, metavar="N", help="sources on top (default %(default)s)")
    p.add_argument("--styles", default="coarse", metavar="coarse|middle|fine|A-B",
                   help="layers that follow the source on top: those of 4-8 px, of 16-32 px, of 64 px and more, or "
                        "numbers from 0 (default %(default)s)")


def add_interpolate(commands, parents: list) -> None:
    line = "a looping GIF through random latents, and a strip of its frames"
    p = commands.add_parser("interpolate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(2, 1000), default=6, metavar="N",
                   help="latents to visit (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 1000), default=24, metavar="N",
                   help="frames from one latent to the next (default %(default)s)")
    p.add_argument("--space", choices=("z", "w"),
                   help="of a StyleGAN2: spherical in z, or linear in w (default w); a diffusion network has z alone")
    p.add_argument("--fps", type=whole(1, 50), default=20, help="frames per second (default %(default)s)")


def add_evaluate(commands, parents: list) -> None:
    line = ("Frechet and kernel distance, precision to coverage, diversity, copies and class fidelity of generated slices "
            "beside the same figures of real ones; with several GPUs: torchrun --nproc-per-node N -- predict.py evaluate ...")
    p = commands.add_parser("evaluate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(20, MAX_NUMBER), default=5000, metavar="N",
                   help="slices to generate (default %(default)s)")


def add_tsne(commands, parents: list) -> None:
    line = ("t-SNE of real and generated slices' features by class and by subject, of a StyleGAN2's w by class, of a VAE's "
            "latents by class and by subject; needs scikit-learn")
    p = commands.add_parser("tsne", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(10, 20_000), default=500, metavar="N",
                   help="generated and, at most, real slices (default %(default)s)")


def add_project(commands, parents: list) -> None:
    line = "find the styles that draw real slices: target, result and difference side by side"
    p = commands.add_parser("project", parents=parents, help=line, description=line + "; --data may be one picture")
    p.add_argument("--number", type=whole(1, 256), default=4, metavar="N",
                   help="held-out slices to project (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 100_000), default=300, metavar="N",
                   help="steps of the search (default %(default)s)")


def add_direction(commands, parents: list) -> None:
    line = ("from one class to the other: along the direction in w of a StyleGAN2, or from one class's prediction to the "
            "other's in a diffusion network")
    p = commands.add_parser("direction", parents=parents, help=line, description=line)
    p.add_argument("--from", dest="start", metavar="CLASS", help="class to start from (default AD, else the first)")
    p.add_argument("--to", dest="end", metavar="CLASS", help="class to go to (default NC, else the second)")
    p.add_argument("--rows", type=whole(1, 64), default=4, metavar="N", help="latents to move (default %(default)s)")
    p.add_argument("--steps", type=whole(2, 64), default=7, metavar="N", help="pictures in a row (default %(default)s)")
    p.add_argument("--strength", type=number, default=1.5, metavar="S",
                   help="1 goes as far as the classes lie apart on average (default %(default)s)")


def add_report(commands) -> None:
    line = "one self-contained HTML page about runs: curves, samples over time, figures, configuration, cost"
    p = commands.add_parser("report", help=line, description=line)
    p.add_argument("run", nargs="+", metavar="RUN", help="run directories")
    p.add_argument("--out", metavar="FILE", help="HTML file (default report.html in the first run)")


def add_plot(commands) -> None:
    line = "loss curves from metrics.jsonl, of one run or of several over each other; works while they train"
    p = commands.add_parser("plot", help=line, description=line)
    p.add_argument("--run", action="append", required=True, help="run directory; give it again to compare runs")
    p.add_argument("--out", metavar="FILE",
                   help="PNG (default RUN/plots/losses.png; of several runs plots/losses-compared.png in the first)")
    p.add_argument("--from-kimg", type=number, default=0.0, metavar="KIMG", help="leave out what came before")
    p.add_argument("--to-kimg", type=number, default=math.inf, metavar="KIMG", help="leave out what came after")
# fmt: on


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong flag prints the usage and one line, and exits with code 2."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="predict.py", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model, of_class, gan = model_flags(), class_flag(), gan_flags()
    diffuse, calls = diffusion_flags(), diffusion_flags("--calls")
    add_generate(commands, [model, of_class, gan, diffuse])
    add_denoise(commands, [model, of_class, diffuse])
    add_mix(commands, [model, of_class, gan])
    add_interpolate(commands, [model, of_class, gan, calls])
    square, data, features = model_flags(pictures=False), data_flag(), feature_flag()
    add_reconstruct(commands, [square])
    add_evaluate(commands, [square, of_class, gan, diffuse, data, features])
    add_tsne(commands, [square, of_class, gan, diffuse, data, features])
    add_project(commands, [square, data])
    add_direction(commands, [square, calls, data, features])
    add_plot(commands)
    add_report(commands)
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # now, as torch takes seconds to import: --help and wrong flags answer at once
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is open yet

import csv
import io
import json
import re
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.batches import to_float, to_uint8
from data.files import atomic_file, atomic_write
from data.pack import Pack, check_geometry, ensure_held_out, ensure_pack, restore
from data.packfile import sha256_of
from data.sources import DataError
from jobs.config.specs import ConfigError
from jobs.run import stopping
from jobs.run.rundir import RunDir
from jobs.training import collectives, devices, randomness, ranks
from jobs.training.weights import WeightsError, read_weights, write_weights
from jobs.view.grids import BACKGROUND, image_grid, save_png
from jobs.view.metrics import read_metrics
from jobs.view.pictures import (
    as_picture,
    denoise_gif,
    denoise_strip,
    gif_of,
    is_complete,
    pairs_picture,
    read_picture,
    scatter_plots,
)
from jobs.view.plots import plot_losses
from jobs.view.report import print_figures, restarts_of, write_page
from models import diffusion, encoder, loading, projection, quality
from models.encoder import load_pretrained
from models.loading import Denoiser
from models.metrics import by_subject, head_mask, psnr, ssim
from models.stylegan2 import Generator
from models.styles import mix_layers, slerp, style_layers
from models.unet import guided
from models.vae import VAE

GRID = 64  # pictures in a grid at most
STRIP_ROWS, STRIP_COLUMNS = 16, 8
MAX_FRAMES = 20_000  # of a GIF, which is put together in memory
MEASURE_CHUNK = 50  # slices of which features are made at once, for any number of ranks
MEASURE_BATCH = 10  # of a chunk, per pass on a CPU
MIN_HELDOUT = 20
DIRECTION_SAMPLES = 512  # latents over which the classes' difference in w is averaged
PAIR_POOL, PAIRS = 1000, 1000  # slices from which pairs are drawn, and pairs per class, for MS-SSIM
WRITERS = 4  # threads that encode PNGs while the next batch is computed
PICTURE = re.compile(r"\d{6,}(_[\w.-]+)?\.png", re.ASCII)  # what generate writes
RECONSTRUCT_COLUMNS = 8  # at most


class UsageError(Exception):
    """A flag that does not fit this model; the text is one line that names the fix. Exit code 2."""


# --- the model --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trained:
    """What a weights file says of its network, and how to run it."""

    path: str
    sha256: str  # of the weights file
    config: dict  # of the run, as its file has it
    classes: list[str]  # [] where the network is not conditional
    geometry: dict  # for data.pack.restore; {} where pictures stay square
    nimg: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1

    @property
    def resolution(self) -> int:
        return self.config["resolution"]

    @property
    def channels(self) -> int:
        return self.config["channels"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        g = self.geometry
        return (g["source_height"], g["source_width"]) if g else (self.resolution, self.resolution)

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def restored(self, images: torch.Tensor) -> np.ndarray:
        """Pictures (B, C, R, R) in -1..1 as uint8 (B, C, H, W)."""
        images = to_uint8(images).cpu().numpy()
        return restore(images, self.geometry) if self.geometry else images


@dataclass(frozen=True)
class GanModel(Trained):
    """A trained StyleGAN2."""

    G: Generator | None = None

    def settings(self, args: argparse.Namespace) -> dict:
        """What decides the pictures."""
        return settings_of(self, args, "truncation", "truncation_cutoff") | {"noise": args.noise or "random"}

    def pictures(self, args: argparse.Namespace, indices: list[int]) -> np.ndarray:
        """uint8 (B, C, H, W) of the pictures `indices`."""
        noise = None if args.noise == "fixed" else draw_noise(self, args.seed, indices)
        return synthesise(self, styles_of(self, args, indices), noise)


@dataclass(frozen=True)
class DiffusionModel(Trained):
    """A trained denoising network with its decoder."""

    net: Denoiser | None = None

    def settings(self, args: argparse.Namespace) -> dict:
        """What decides the pictures."""
        sampler, calls, guidance = self.way(args)
        return settings_of(self, args) | {"sampler": sampler, "steps": calls, "guidance": guidance}

    def way(self, args: argparse.Namespace) -> tuple[str, int, float]:
        """(sampler, network calls, guidance) as asked, or the defaults."""
        guidance, known = 1.0 if args.guidance is None else args.guidance, self.net.times
        if known is None:
            return args.sampler or "midpoint", args.calls or 20, guidance
        if args.sampler not in (None, "ddim", "ancestral") or args.calls not in (None, len(known)):
            flag = "--calls" if args.command in CALLS_COMMANDS else "--steps"
            raise UsageError(
                f"this network knows the {len(known)} steps of Fast-DDPM alone; leave {flag} out, and use --sampler ddim "
                "or ancestral"
            )
        return args.sampler or "ddim", len(known), guidance

    def pictures(self, args: argparse.Namespace, indices: list[int]) -> np.ndarray:
        """uint8 (B, C, H, W) of the pictures `indices`."""
        found = []
        for start in range(0, len(indices), self.batch):
            part = indices[start : start + self.batch]
            streams = [randomness.generator(args.seed, i, "predict fresh noise") for i in part]
            labels = choose_labels(self, args.label, part)
            found.append(self.sample(args, self.draw(args.seed, part), labels, streams=streams))
        return np.concatenate(found)

    def draw(self, seed: int, indices: list[int]) -> torch.Tensor:
        """Noise (B, C, h, w) of the pictures `indices`, drawn on the CPU, so that every device has the same."""
        rows = [torch.randn(self.net.shape, generator=randomness.generator(seed, i, "predict z")) for i in indices]
        return torch.stack(rows).to(self.device)

    @torch.inference_mode()
    def sample(
        self, args: argparse.Namespace, noise: torch.Tensor, labels: torch.Tensor | None, *, streams=(), watch=None,
        towards: torch.Tensor | None = None, share: torch.Tensor | None = None,
    ) -> np.ndarray:  # fmt: skip
        """noise (B, C, h, w) denoised, uint8 (B, C, H, W).

        `streams`: a generator per picture for the noise that ancestral sampling adds. `towards` (B,): labels of another
        class, of whose prediction there is `share` (B,) and of `labels` the rest, also beyond 1. `watch(x, x0, t)` sees
        what the network is given and its estimate, at every call.
        """
        sampler, calls, guidance = self.way(args)
        labels = None if labels is None else labels.to(self.device)

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with self.autocast():
                here = guided(self.net.unet, x, t, labels, guidance).float()
                if towards is None or torch.equal(towards, labels):
                    return here
                there = guided(self.net.unet, x, t, towards, guidance).float()
            return here + share.view(-1, 1, 1, 1) * (there - here)

        estimate = diffusion.denoiser(
            predict, self.net.schedule, self.net.target, clamp=float(self.net.decoder is None)
        )

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            x0 = estimate(x, t)
            if watch is not None:
                watch(x, x0, t)
            return x0

        def fresh(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.randn(self.net.shape, generator=g) for g in streams]).to(x)

        return self.decode(
            diffusion.sample(denoise, noise, self.net.schedule, sampler, calls, times=self.net.times, fresh=fresh)
        )

    def decode(self, x0: torch.Tensor) -> np.ndarray:
        """Clean samples (B, C, h, w) to uint8 (B, C, H, W)."""
        x0 = self.net.scale.restore(x0)
        if self.net.decoder is not None:
            with self.autocast():
                x0 = self.net.decoder(x0).float()
        return self.restored(x0)


@dataclass(frozen=True)
class VaeModel(Trained):
    """A trained VAE."""

    vae: VAE | None = None

    @torch.inference_mode()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, R, R) -> means of the posterior (B, c, h, w) fp32."""
        with self.autocast():
            parts = [self.vae.encode(to_float(part.to(self.device)))[0] for part in images.split(self.batch)]
        return torch.cat(parts).float()

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents (B, c, h, w) -> images fp32 (B, C, R, R) in 0..1."""
        with self.autocast():
            parts = [self.vae.decode(part) for part in latents.split(self.batch)]
        return (torch.cat(parts).float().clamp(-1, 1) + 1) / 2


def open_model(
    args: argparse.Namespace, *jobs: str, device: torch.device | None = None
) -> GanModel | DiffusionModel | VaeModel:
    """The model that --run or --weights names, of one of the `jobs`, on `device`, else on the one that --device names.

    UsageError for flags of the other kind of model, ConfigError where the file holds no model that this command can use.
    """
    path = Path(args.weights) if args.weights else find_run(args.run).weights
    if args.run and not path.is_file():
        raise ConfigError(f"{args.run}: has no weights yet; training writes them at its first checkpoint")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; use --device cpu")
    device = device or torch.device("cpu" if args.device == "cpu" or not torch.cuda.is_available() else "cuda")
    dtype = devices.precision_dtype(args.precision, device)
    # How a CPU's matrix products round depends on the number of rows. One at a time is hardly slower there, and makes
    # every picture the same bits in whatever company it is generated.
    batch = 1 if device.type == "cpu" else args.batch
    model = load_model(path, device, jobs=jobs, dtype=dtype, batch=batch, square=args.square)
    check_flags(args, model)
    return model


def find_run(path: str) -> RunDir:
    if not Path(path).is_dir():
        raise ConfigError(
            f"--run {path}: there is no such run directory; give the folder that holds the run's config.json"
        )
    return RunDir(path)


def check_flags(args: argparse.Namespace, model: Trained) -> None:
    """UsageError for a flag that this kind of model does not have."""
    calls = "--calls" if args.command in CALLS_COMMANDS else "--steps"
    of_gans = {"--truncation": ("truncation", 1.0), "--truncation-cutoff": ("truncation_cutoff", None),
               "--noise": ("noise", None), "--space": ("space", None)}  # fmt: skip
    of_diffusion = {"--sampler": ("sampler", None), calls: ("calls", None), "--guidance": ("guidance", None)}
    kinds = ((GanModel, of_diffusion, "diffusion networks; this is a StyleGAN2, see --truncation"),
             (DiffusionModel, of_gans, "StyleGAN2; this is a diffusion network, see --guidance"),
             (VaeModel, of_diffusion | of_gans, "generators; this is a VAE"))  # fmt: skip
    for kind, flags, of_what in kinds:
        wrong = [flag for flag, (name, unset) in flags.items() if getattr(args, name, unset) != unset]
        if isinstance(model, kind) and wrong:
            raise UsageError(f"{wrong[0]} is a flag of {of_what}")


def load_model(
    path: Path, device: torch.device, *, jobs: tuple[str, ...] = ("stylegan2", "diffusion", "vae"),
    dtype: torch.dtype = torch.float32, batch: int = 1, square: bool = False,
) -> GanModel | DiffusionModel | VaeModel:  # fmt: skip
    """Read a model from its weights file. Raises ConfigError, one line, on anything that is not one of the `jobs`.

    Whatever sizes the file claims, nothing is allocated unless the file itself is about as large.
    """
    tensors, about, sha256 = read_snapshot(Path(path))
    job, config = about.get("job"), about["config"]
    if job not in jobs:
        known = {"vae": "; a VAE can reconstruct and tsne", "diffusion": "", "stylegan2": ""}
        wanted = " or ".join(f"a {name}" for name in jobs)
        raise ConfigError(
            f"{path}: weights of a {job!r} job; this command needs those of {wanted} run{known.get(str(job), '')}"
        )
    classes, geometry, nimg = checked_about(path, about)
    conditional = config.get("conditional") is True
    num_classes = len(classes) if conditional else 0
    try:
        config = config | {name: loading.bounded(config, name, 1 << 20) for name in ("resolution", "channels")}
        if job == "vae":
            network = {"vae": loading.load_vae(tensors, config).to(device)}
        elif job == "diffusion":
            network = {"net": loading.load_denoiser(tensors, about, num_classes).to(device)}
        else:
            network = {"G": loading.load_generator(tensors, config, num_classes).to(device)}
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if geometry and geometry["resolution"] != config["resolution"]:
        raise ConfigError(f"{path}: its geometry is not that of its network; copy the file again from the run")
    kind = {"vae": VaeModel, "diffusion": DiffusionModel}.get(job, GanModel)
    return kind(str(path), sha256, config, classes if conditional else [], {} if square else geometry, nimg,
                device, dtype, batch, **network)  # fmt: skip


def read_snapshot(path: Path) -> tuple[dict, dict, str]:
    """(tensors, about, SHA-256) of one version of the file: a run that still trains replaces it now and then."""
    for _ in range(5):
        try:
            before = sha256_of(path) if path.is_file() else ""
            tensors, about = read_weights(path)
            if sha256_of(path) == before:
                return tensors, about, before
        except (WeightsError, OSError) as error:
            raise ConfigError(" ".join(str(error).split())) from None
    raise ConfigError(f"{path}: changes all the time; copy it and use --weights")


def checked_about(path: Path, about: dict) -> tuple[list[str], dict, int]:
    """(classes, geometry, nimg) of a weights file that may be a stranger's."""
    classes, geometry, nimg = about.get("classes"), about.get("geometry") or {}, about.get("nimg")
    if not isinstance(classes, list) or not all(isinstance(c, str) and c.isprintable() for c in classes):
        raise ConfigError(f"{path}: its list of classes is malformed; copy the file again from the run")
    try:
        if geometry:
            check_geometry(geometry)
    except DataError as error:
        raise ConfigError(f"{path}: {error}; copy the file again from the run") from None
    return classes, geometry, nimg if isinstance(nimg, int) else 0


# --- from latents to pictures -----------------------------------------------------------------------------------------
def choose_labels(model: Trained, choice: str, indices: list[int]) -> torch.Tensor | None:
    """Labels (B,) int64 of the pictures `indices`; None where the generator is not conditional."""
    if choice == "all":
        return torch.tensor([i % len(model.classes) for i in indices]) if model.classes else None
    if not model.classes:
        raise UsageError(f"--class {choice}: this model was trained without classes; leave --class out")
    if choice not in model.classes and not (choice.isdecimal() and int(choice) < len(model.classes)):
        names = ", ".join(f"{name} ({i})" for i, name in enumerate(model.classes))
        raise UsageError(f"--class {choice}: no such class; choose all, {names}")
    label = model.classes.index(choice) if choice in model.classes else int(choice)
    return torch.full((len(indices),), label)


def draw_z(model: GanModel, seed: int, indices: list[int]) -> torch.Tensor:
    """(B, z_dim) fp32: the latents of the pictures `indices`, drawn on the CPU, so that every device has the same."""
    rows = [torch.randn(model.G.z_dim, generator=randomness.generator(seed, i, "predict z")) for i in indices]
    return torch.stack(rows).to(model.device)


def draw_noise(model: GanModel, seed: int, indices: list[int]) -> list[torch.Tensor]:
    """Noise of the pictures `indices` for every layer: a list of (B, 1, H, W) fp32."""
    rows = [model.G.draw_noise(1, randomness.generator(seed, i, "predict noise"), "cpu") for i in indices]
    return [torch.cat(layer).to(model.device) for layer in zip(*rows, strict=True)]


@torch.inference_mode()
def map_latents(model: GanModel, z: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
    """z (B, z_dim), labels (B,) or None -> w (B, w_dim)."""
    parts = [None] * len(z) if labels is None else labels.to(model.device).split(model.batch)
    return torch.cat([model.G.mapping(z_part, part) for z_part, part in zip(z.split(model.batch), parts, strict=False)])


@torch.inference_mode()
def synthesise(model: GanModel, ws: torch.Tensor, noise: list[torch.Tensor] | None = None) -> np.ndarray:
    """ws (B, num_ws, w_dim), noise as draw_noise gives it or None for the fixed one -> uint8 (B, C, H, W)."""
    images = []
    for start in range(0, len(ws), model.batch):
        rows = slice(start, start + model.batch)
        part = None if noise is None else [layer[rows] for layer in noise]
        images.append(model.restored(model.G.synthesis(ws[rows], part, dtype=model.dtype)))
    return np.concatenate(images)


def styles_of(model: GanModel, args: argparse.Namespace, indices: list[int]) -> torch.Tensor:
    """ws (B, num_ws, w_dim) of the pictures `indices`, truncated as asked."""
    w = map_latents(model, draw_z(model, args.seed, indices), choose_labels(model, args.label, indices))
    return model.G.truncate(model.G.broadcast(w), args.truncation, args.truncation_cutoff)


def captions_of(model: Trained, choice: str, indices: list[int]) -> list[str]:
    """One caption each: 7 AD, or 7 without classes."""
    labels = choose_labels(model, choice, indices)
    return [str(i) if labels is None else f"{i} {model.classes[int(labels[k])]}" for k, i in enumerate(indices)]


# --- what is written --------------------------------------------------------------------------------------------------
def out_folder(args: argparse.Namespace) -> Path:
    """The folder to write into; made, and found to be writable, before anything is computed."""
    base = Path(args.run) if args.run else Path()
    out = Path(args.out) if args.out else base / "predictions" / args.command
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass
    return out


def settings_of(model: Trained, args: argparse.Namespace, *more: str) -> dict:
    """What decides the pictures; with other settings they are other pictures."""
    names = ("seed", "label", *more)
    size = f"{model.size[1]}x{model.size[0]}"
    fixed = {"weights_sha256": model.sha256, "size": size, "precision": str(model.dtype).removeprefix("torch.")}
    return {("class" if k == "label" else k): getattr(args, k) for k in names} | fixed


def write_json(path: Path, model: Trained, args: argparse.Namespace, settings: dict, **more) -> None:
    about = {"command": args.command, "weights": model.path, "nimg": model.nimg, "classes": model.classes}
    atomic_write(path, json.dumps({**about, "settings": settings, **more}, indent=1) + "\n")


def write_csv(path: Path, head: list[str], rows: list[list]) -> None:
    """Numbers with six digits, nothing where there is none; names may hold anything."""
    text = io.StringIO()
    cells = [[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in rows]
    csv.writer(text, lineterminator="\n").writerows([head, *cells])
    atomic_write(path, text.getvalue())


def report(model: Trained, what: str, paths: list) -> int:
    print(f"{what} of {model.size[1]}x{model.size[0]} from {model.path} ({model.nimg / 1000:g} kimg)")
    for path in paths:
        print(f"  {path}")
    return stopping.DONE


# --- generate ---------------------------------------------------------------------------------------------------------
def generate(args: argparse.Namespace) -> int:
    """Pictures 0 to N-1 as PNGs, a grid of the first, and generate.json. Pictures that are there already are kept."""
    model = open_model(args, "stylegan2", "diffusion")
    choose_labels(model, args.label, [0])  # a wrong class is found before anything is written
    out = out_folder(args)
    settings = model.settings(args)
    number = max(args.number, claim(out, settings, args.overwrite))  # more of the same may be added, never less
    write_json(out / "generate.json", model, args, settings, number=number)
    made, writing = 0, []
    with ThreadPoolExecutor(WRITERS) as pool, tqdm(total=args.number, unit=" pictures", disable=None) as bar:
        for start in range(0, args.number, model.batch):
            indices = range(start, min(start + model.batch, args.number))
            todo = [i for i in indices if not is_complete(out / file_name(model, args.label, i), model.size)]
            if todo:
                images = model.pictures(args, todo)
                wait(writing)  # so that at most two batches are in memory
                writing = [
                    pool.submit(write_picture, out, model, args, i, x) for i, x in zip(todo, images, strict=True)
                ]
                made += len(todo)
            bar.update(len(indices))
        wait(writing)
    first = list(range(min(args.number, GRID)))
    captions = [model.classes[int(k)] for k in choose_labels(model, args.label, first)] if model.classes else None
    names = [file_name(model, args.label, i) for i in first]
    shown = np.stack([read_picture(out / name) for name in names])
    save_png(out / "grid.png", image_grid(shown, math.ceil(math.sqrt(len(first))), labels=captions))
    seeds = [randomness.seed_of(args.seed, i, "predict z") for i in first]
    write_json(out / "generate.json", model, args, settings, number=number, z_seeds=seeds)
    paths = [out / "grid.png", out / "generate.json"]
    if args.npz:
        write_npz(out / "slices.npz", model, args)
        paths.append(out / "slices.npz")
    span = names[0] if args.number == 1 else f"{names[0]} ... {file_name(model, args.label, args.number - 1)}"
    kept = f" ({args.number - made} were there already)" if made < args.number else ""
    return report(model, f"{args.number} picture{'s' * (args.number > 1)}{kept}", [out / span, *paths])


def write_npz(path: Path, model: Trained, args: argparse.Namespace) -> None:
    """The PNGs of generate as one file for np.load, written picture by picture: any number needs no memory."""
    shape = (args.number, model.channels, *model.size)
    labels = choose_labels(model, args.label, list(range(args.number)))
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)
            for i in tqdm(range(args.number), desc=path.name, unit=" pictures", disable=None):
                images.write(read_picture(path.parent / file_name(model, args.label, i)).tobytes())
        with archive.open("labels.npy", "w") as column:
            np.lib.format.write_array(column, np.full(args.number, -1) if labels is None else labels.numpy())


def file_name(model: Trained, choice: str, index: int) -> str:
    """000007.png, or 000007_AD.png; a class name may hold anything, a file name may not."""
    labels = choose_labels(model, choice, [index])
    name = "" if labels is None else "_" + re.sub(r"[^A-Za-z0-9.-]", "-", model.classes[int(labels)])[:60]
    return f"{index:06d}{name}.png"


def claim(out: Path, settings: dict, overwrite: bool) -> int:
    """How many pictures of these settings `out` is meant to hold so far. Raises ConfigError where it holds others."""
    about, remedy = out / "generate.json", "use another --out, or --overwrite to replace them"
    if overwrite:
        about.unlink(missing_ok=True)  # first: pictures without it are never taken for those of the new settings
        for path in pictures_in(out):
            path.unlink()
    if not about.exists():
        if pictures_in(out):
            raise ConfigError(f"{out}: holds pictures without a generate.json; {remedy}")
        return 0
    try:
        stored = json.loads(about.read_text())
        old, count = dict(stored["settings"]), min(int(stored["number"]), MAX_NUMBER)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{about}: cannot be read; {remedy}") from None
    changed = [f"{k} {str(old.get(k))[:12]} -> {str(v)[:12]}" for k, v in settings.items() if old.get(k) != v]
    if changed:
        raise ConfigError(f"{out}: holds pictures of other settings ({', '.join(changed)}); {remedy}")
    return count


def pictures_in(out: Path) -> list[Path]:
    return [p for p in out.iterdir() if PICTURE.fullmatch(p.name) and p.is_file()]


def wait(jobs: list) -> None:
    for job in jobs:
        job.result()


def write_picture(out: Path, model: Trained, args: argparse.Namespace, index: int, image: np.ndarray) -> None:
    """image uint8 (C, H, W) as a PNG whose text chunks say how to make it again."""
    text = {"index": str(index), "seed": str(args.seed), "weights_sha256": model.sha256}
    save_png(out / file_name(model, args.label, index), as_picture(image), text)


# --- denoise ----------------------------------------------------------------------------------------------------------
def denoise(args: argparse.Namespace) -> int:
    """The way from noise to a picture: what the network is given at each call, and above it what it makes of that."""
    model = open_model(args, "diffusion")
    indices = list(range(args.number))
    labels = choose_labels(model, args.label, indices)
    out = out_folder(args)
    stages, noise_share = [], []  # per picture (frames, 2, C, H, W): estimate and state
    for i in tqdm(indices, unit=" pictures", disable=None):
        frames, noise_share = [], []

        def watch(x: torch.Tensor, x0: torch.Tensor, t: torch.Tensor, frames=frames, share=noise_share) -> None:
            frames.append(np.stack([model.decode(x0)[0], model.decode(x)[0]]))
            alpha, sigma = (float(v) for v in model.net.schedule.alpha_sigma(t[:1].double().cpu()))
            share.append(sigma**2 / (alpha**2 + sigma**2))

        part = None if labels is None else labels[i : i + 1]
        streams = [randomness.generator(args.seed, i, "predict fresh noise")]
        result = model.sample(args, model.draw(args.seed, [i]), part, streams=streams, watch=watch)[0]
        stages.append(np.stack([*frames, np.stack([result, result])]))
    stages = np.stack(stages)
    captions = [f"{100 * share:.0f} % noise" for share in noise_share] + ["result"]
    save_png(out / "denoise.png", denoise_strip(stages, captions, captions_of(model, args.label, indices)))
    atomic_write(out / "denoise.gif", denoise_gif(stages, captions, args.fps))
    settings = model.settings(args) | {"number": args.number, "fps": args.fps}
    write_json(out / "denoise.json", model, args, settings, frames=len(captions), noise=noise_share)
    what = f"{args.number} picture{'s' * (args.number > 1)} in {len(captions)} stages"
    return report(model, what, [out / name for name in ("denoise.png", "denoise.gif", "denoise.json")])


# --- reconstruct ------------------------------------------------------------------------------------------------------
def reconstruct(args: argparse.Namespace) -> int:
    """PSNR and SSIM of slices against their reconstructions, over all pixels and inside the head, and a grid of both."""
    model = open_model(args, "vae")
    pack = slices_of(model, args)
    number = min(args.number or len(pack), len(pack))
    pick = np.linspace(0, len(pack) - 1, number).round().astype(int)
    out = out_folder(args)
    scores: dict[str, list[float]] = {name: [] for name in ("l1", "psnr", "ssim", "psnr_head", "ssim_head")}
    shown, wanted = [], set(np.linspace(0, number - 1, min(number, RECONSTRUCT_COLUMNS)).round().astype(int).tolist())
    for start in tqdm(range(0, number, args.batch), unit=" batches", disable=None):
        pixels = rows_of(pack, pick[start : start + args.batch])
        output = model.decode(model.encode(pixels))
        real = (to_float(pixels.to(model.device)) + 1) / 2
        mask = head_mask(real)
        values = ((real - output).abs().flatten(1).mean(1), psnr(output, real), ssim(output, real),
                  psnr(output, real, mask), ssim(output, real, mask))  # fmt: skip
        for name, value in zip(scores, values, strict=True):
            scores[name] += value.double().tolist()
        for i in (i for i in range(len(pixels)) if start + i in wanted):
            shown.append(torch.stack([real[i], output[i], (3 * (real[i] - output[i]).abs()).clamp(max=1)]))
    figures, table = by_subject(scores, [pack.subjects[i] or pack.names[i] for i in pick])
    grid = (torch.stack(shown, dim=1).flatten(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    rows = ["slice", "through the VAE", "3 x difference"]
    captions = [f"{scores['psnr'][i]:.1f} dB" for i in sorted(wanted)]
    save_png(out / "reconstruct.png", image_grid(grid, len(shown), row_labels=rows, column_labels=captions))
    write_csv(out / "reconstruct.csv", ["subject", "slices", *scores], table)
    settings = {
        "weights_sha256": model.sha256,
        "split": args.split,
        "precision": str(model.dtype).removeprefix("torch."),
    }
    write_json(out / "reconstruct.json", model, args, settings, data=pack.meta["describe"], slices=number, **figures)
    for name, (mean, sd) in figures["mean and sd over subjects"].items():
        print(f"{name:10} {mean:8.4g} +- {sd:.3g}")
    paths = [out / f"reconstruct.{kind}" for kind in ("png", "csv", "json")]
    return report(model, f"{number} slices of {figures['subjects']} subjects", paths)


def slices_of(model: VaeModel, args: argparse.Namespace) -> Pack:
    """The pack of --data at the VAE's size, of patients that it was not trained on where there are any."""
    c, data = model.config, args.data or model.config.get("data")
    if not isinstance(data, str) or not data:
        raise ConfigError("the weights do not say what they were trained on; name slices with --data")
    shape = {"resolution": c["resolution"], "channels": c["channels"], "crop": int(c.get("crop") or 0)}
    try:
        if args.split != "auto":
            return ensure_pack(data, split=args.split, **shape)
        said: list[str] = []  # only what turned out well: an error is one line
        pack = ensure_held_out(data, "auto", log=said.append, **shape) or ensure_pack(data, log=said.append, **shape)
        print("\n".join(said))
        return pack
    except DataError as error:
        raise ConfigError(str(error)) from None


# --- mix --------------------------------------------------------------------------------------------------------------
def mix(args: argparse.Namespace) -> int:
    """A grid: cell (r, c) has the styles of column source c in the layers `--styles`, and of row source r elsewhere."""
    model = open_model(args, "stylegan2")
    try:
        first, last = style_layers(model.G, args.styles)
    except ValueError as error:
        raise UsageError(str(error)) from None
    at_left = list(range(args.rows))
    on_top = list(range(args.rows, args.rows + args.cols))
    left, top = styles_of(model, args, at_left), styles_of(model, args, on_top)
    out = out_folder(args)
    top_images = synthesise(model, top)
    rows = [np.full_like(top_images[:1], BACKGROUND), top_images]  # the empty corner, then the sources
    for ws in tqdm(left, unit=" rows", disable=None):
        rows += [synthesise(model, ws[None]), synthesise(model, mix_layers(ws.expand_as(top), top, first, last))]
    titles = {"column_labels": ["", *captions_of(model, args.label, on_top)],
              "row_labels": ["", *captions_of(model, args.label, at_left)]}  # fmt: skip
    save_png(out / "mix.png", image_grid(np.concatenate(rows), args.cols + 1, **titles))
    settings = settings_of(model, args, "truncation", "truncation_cutoff", "rows", "cols", "styles")
    write_json(out / "mix.json", model, args, settings, layers_from_top=[first, last], left=at_left, top=on_top)
    what = f"{args.rows} x {args.cols} mixed pictures (layers {first}-{last} from the top)"
    return report(model, what, [out / "mix.png", out / "mix.json"])


# --- interpolate ------------------------------------------------------------------------------------------------------
def interpolate(args: argparse.Namespace) -> int:
    """From latent 0 to 1, 2, ... and back to 0, as a GIF that loops. Noise is fixed: it would flicker."""
    if args.number * args.steps > MAX_FRAMES:
        raise UsageError(
            f"--number {args.number} x --steps {args.steps} are more than {MAX_FRAMES} frames; lower one of them"
        )
    model = open_model(args, "stylegan2", "diffusion")
    if args.sampler == "ancestral":
        raise UsageError(
            "--sampler ancestral adds new noise to every frame; leave it out, or use midpoint, dpmpp-2m or ddim"
        )
    keys = list(range(args.number))
    choose_labels(model, args.label, keys)
    out = out_folder(args)
    frames, strip = [], []
    columns = min(args.steps, STRIP_COLUMNS)
    shown = [args.steps * j // columns for j in range(columns)]
    for k in tqdm(keys, unit=" latents", disable=None):
        walk = walk_noise if isinstance(model, DiffusionModel) else walk_styles
        images = walk(model, args, k, (k + 1) % args.number)
        frames.append(images)
        if k < STRIP_ROWS:
            strip.append(images[shown])
    frames = np.concatenate(frames)
    atomic_write(out / "interpolate.gif", gif_of(frames, args.fps))
    save_png(
        out / "strip.png",
        image_grid(np.concatenate(strip), columns, row_labels=captions_of(model, args.label, keys[: len(strip)])),
    )
    if isinstance(model, DiffusionModel):
        settings = model.settings(args) | {"space": "z"}
    else:
        settings = settings_of(model, args, "truncation", "truncation_cutoff") | {"space": args.space or "w"}
    settings |= {"frames_per_latent": args.steps, "number": args.number, "fps": args.fps}
    write_json(out / "interpolate.json", model, args, settings, frames=len(frames))
    paths = [out / name for name in ("interpolate.gif", "strip.png", "interpolate.json")]
    return report(model, f"{len(frames)} frames", paths)


def walk_styles(model: GanModel, args: argparse.Namespace, a: int, b: int) -> np.ndarray:
    """uint8 (steps, C, H, W) from latent a (included) to latent b (not included) of a StyleGAN2."""
    w = segment(
        model, draw_z(model, args.seed, [a, b]), choose_labels(model, args.label, [a, b]), args.steps, args.space
    )
    return synthesise(model, model.G.truncate(model.G.broadcast(w), args.truncation, args.truncation_cutoff))


def walk_noise(model: DiffusionModel, args: argparse.Namespace, a: int, b: int) -> np.ndarray:
    """uint8 (steps, C, H, W) from picture a (included) to picture b (not included) of a diffusion network: the noise
    turns from one to the other, and between two classes the predictions of both are blended."""
    ends, labels = model.draw(args.seed, [a, b]).flatten(1), choose_labels(model, args.label, [a, b])
    images = []
    for amounts in (torch.arange(args.steps) / args.steps).to(model.device).split(model.batch):
        n = len(amounts)
        noise = slerp(ends[:1].expand(n, -1), ends[1:].expand(n, -1), amounts[:, None]).view(n, *model.net.shape)
        here, there = (None, None) if labels is None else (label.expand(n).to(model.device) for label in labels)
        images.append(model.sample(args, noise, here, towards=there, share=amounts))
    return np.concatenate(images)


def segment(
    model: GanModel, z: torch.Tensor, labels: torch.Tensor | None, steps: int, space: str | None
) -> torch.Tensor:
    """w (steps, w_dim) from the first of two latents z (2, z_dim) to the second, which is not included.

    The class cannot turn by degrees in z, so between two classes the w of both are blended.
    """
    t = (torch.arange(steps, device=z.device) / steps)[:, None]
    from_z, to_z = z[:1].expand(steps, -1), z[1:].expand(steps, -1)
    if space == "z":
        from_z = to_z = slerp(from_z, to_z, t)
    from_w = map_latents(model, from_z, None if labels is None else labels[0].expand(steps))
    to_w = map_latents(model, to_z, None if labels is None else labels[1].expand(steps))
    return torch.lerp(from_w, to_w, t)


# --- real slices and the features of both ---------------------------------------------------------------------------
@dataclass(frozen=True)
class RealSlices:
    """The training split and the held-out one, at the model's resolution."""

    train: Pack
    heldout: Pack

    def labels(self, pack: Pack) -> torch.Tensor:
        return torch.from_numpy(np.array(pack.labels))

    def subjects(self, pack: Pack) -> torch.Tensor:
        """(N,) int64: the same number for slices of one subject; a slice of an unknown one is its own."""
        numbers: dict[str, int] = {}
        keys = [subject or f"slice {name}" for subject, name in zip(pack.subjects, pack.names, strict=True)]
        return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])


def open_data(args: argparse.Namespace, model: Trained, say) -> RealSlices:
    """Both splits of --data, or of what the run was trained on. ConfigError where nothing is held out."""
    spec = args.data or model.config.get("data")
    crop = model.config.get("crop")
    if not isinstance(spec, str) or not spec:
        raise UsageError(f"{model.path} does not say what it was trained on; name the real slices with --data")
    if spec.lower().endswith(".pack"):
        raise UsageError(f"{spec}: a pack holds one split; name the folder that it was packed from with --data")
    shape = dict(resolution=model.resolution, channels=model.channels, crop=crop if isinstance(crop, int) else 0)
    train, heldout = (ensure_pack(spec, split=s, log=say, progress=False, **shape) for s in ("train", "test"))
    if len(heldout) < MIN_HELDOUT:
        raise ConfigError(f"{spec}: only {len(heldout)} held-out slices, and figures need {MIN_HELDOUT}; use more data")
    if model.classes and list(train.classes) != model.classes:
        raise ConfigError(
            f"{spec}: its classes are {', '.join(train.classes) or 'none'}, the model's {', '.join(model.classes)}; "
            "name the data that the model was trained on with --data"
        )
    return RealSlices(train, heldout)


def rows_of(pack: Pack, rows) -> torch.Tensor:
    """uint8 (B, C, R, R) of the rows of a pack."""
    return torch.from_numpy(np.array(pack.images[rows]))


def given_features(args: argparse.Namespace) -> tuple[torch.nn.Module, str] | None:
    """What open_features returns, of --feature-weights; None without it. Read before anything that takes long."""
    if not args.feature_weights:
        return None
    try:
        network, name = load_pretrained(args.feature_weights)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return network, f"{name}, {Path(args.feature_weights).name} {sha256_of(args.feature_weights)[:12]}"


def open_features(given, train: Pack, out: Path, rt: ranks.Runtime) -> tuple[torch.nn.Module, str]:
    """(network uint8 (B, C, R, R) -> (B, D), its name): the given ones, else of the encoder of these training slices,
    which rank 0 trains where there is none yet."""
    if given is not None:
        return given[0].to(rt.device), given[1]
    folder = Path(train.path).parent
    folder = folder if os.access(folder, os.W_OK) else out
    path = folder / f"encoder-v{encoder.VERSION}-{train.digest[:16]}.safetensors"
    shape = dict(channels=train.images.shape[1], size=encoder.encoder_size(train.images.shape[-1]),
                 classes=len(train.classes))  # fmt: skip
    network = read_encoder(path, shape, train.digest)
    if network is None and rt.rank == 0:
        print(f"training the feature encoder on {len(train):,} slices, once; it is kept as {path}")
        labels = torch.from_numpy(np.array(train.labels))
        network = encoder.train_encoder(
            train.images, labels, shape["classes"], seed=0, device=rt.device,
            track=lambda steps: tqdm(steps, unit=" steps", disable=None),
        )  # fmt: skip
        write_weights(path, {"encoder": network.state_dict()}, {"config": shape, "pack": train.digest})
    elif network is None:
        ranks.wait_for(lambda: read_encoder(path, shape, train.digest), "rank 0 to train the feature encoder", 7200)
        network = read_encoder(path, shape, train.digest)
    classes = f", told apart {', '.join(train.classes)}" if train.classes else ""
    name = f"encoder v{encoder.VERSION} trained on pack {train.digest[:12]} ({len(train):,} slices{classes})"
    return network.to(rt.device), name


def read_encoder(path: Path, shape: dict, digest: str) -> encoder.Encoder | None:
    """The encoder that was trained on the pack `digest` before; None where there is none that can be used."""
    try:
        tensors, about = read_weights(path)
    except WeightsError:
        return None
    network = encoder.Encoder(**shape)
    state = {k.removeprefix("encoder."): v for k, v in tensors.items()}
    expected = {k: v.shape for k, v in network.state_dict().items()}
    if about["config"] != shape or about.get("pack") != digest or {k: v.shape for k, v in state.items()} != expected:
        return None
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def measure(
    rt: ranks.Runtime, network: torch.nn.Module, images_of, count: int, what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(features (count, D) fp32, thumbnails (count, T) uint8) of slices 0 to count-1, on every rank.

    `images_of(range)` makes uint8 (B, C, R, R). Ranks take whole chunks in turn, and a chunk holds the same slices for
    any number of ranks, so the figures do not depend on it. Only the features and the thumbnails are kept.
    """
    features = thumbs = None
    chunks = [range(i, min(i + MEASURE_CHUNK, count)) for i in range(0, count, MEASURE_CHUNK)]
    for chunk in tqdm(chunks[rt.rank :: rt.world], desc=what, unit=" chunks", disable=None if rt.rank == 0 else True):
        images = images_of(chunk)
        f, t = network(images), quality.thumbnails(images)
        if features is None:
            features = torch.zeros(count, f.shape[1], device=rt.device)
            thumbs = torch.zeros(count, t.shape[1], dtype=torch.uint8, device=rt.device)
        features[chunk.start : chunk.stop] = f
        thumbs[chunk.start : chunk.stop] = t.to(rt.device)
    if features is None:  # more ranks than chunks
        images = images_of(chunks[0])
        features = torch.zeros(count, network(images).shape[1], device=rt.device)
        thumbs = torch.zeros(count, quality.thumbnails(images).shape[1], dtype=torch.uint8, device=rt.device)
    return collectives.reduce_sum(rt, features), collectives.reduce_sum(rt, thumbs)


def generated(model: GanModel | DiffusionModel, args: argparse.Namespace):
    """range or list of indices -> the generated slices, uint8 (B, C, R, R)."""
    if model.device.type == "cpu":  # chunks are the same for any --batch and any number of ranks: passes can be larger
        model = replace(model, batch=MEASURE_BATCH)
    return lambda indices: torch.from_numpy(model.pictures(args, list(indices)))


# --- evaluate ---------------------------------------------------------------------------------------------------------
def evaluate(args: argparse.Namespace) -> int:
    """metrics.json: generated slices against held-out ones, and training slices against held-out ones beside them."""
    clock = [time.monotonic()]
    rt = collectives.init_runtime()
    if rt.world == 1 and args.device == "cpu":
        rt = replace(rt, device=torch.device("cpu"))
    model = open_model(args, "stylegan2", "diffusion", device=rt.device)
    labels = choose_labels(model, args.label, list(range(args.number)))
    given = given_features(args)
    real = open_data(args, model, print if rt.rank == 0 else lambda text: None)
    out = out_folder(args)
    network, features_name = open_features(given, real.train, out, rt)
    images_of = generated(model, args)
    clock.append(time.monotonic())
    fake = measure(rt, network, images_of, args.number, "generated")
    clock.append(time.monotonic())
    train = measure(rt, network, lambda r: rows_of(real.train, r), len(real.train), "training slices")
    heldout = measure(rt, network, lambda r: rows_of(real.heldout, r), len(real.heldout), "held-out slices")
    clock.append(time.monotonic())
    collectives.shutdown(rt)
    if rt.rank:
        return stopping.DONE
    count = min(args.number, len(real.train))
    spread = torch.linspace(0, len(real.train) - 1, count).round().long()  # over all training subjects

    def draw() -> torch.Generator:  # the same subsets for both
        return randomness.generator(args.seed, 0, "predict kid")

    figures = {
        "distances": {"generated": quality.set_figures(fake[0][:count], heldout[0], draw()),
                      "training slices": quality.set_figures(train[0][spread], heldout[0], draw())},
        "ms_ssim": diversity_of_pairs(args, model, real, images_of, labels),
        "copying": copying_figures(fake, train, heldout, real, images_of, out),
    }  # fmt: skip
    if labels is not None:
        sets = ((fake[0], labels), (train[0], real.labels(real.train)), (heldout[0], real.labels(real.heldout)))
        sets = [(x[(y >= 0).to(x.device)], y[y >= 0].to(x.device)) for x, y in sets]
        figures["class_fidelity"] = quality.class_fidelity(*sets, len(model.classes))
    clock.append(time.monotonic())
    notes = notes_on(model, real, count, args.number, network.dim)
    phases = ("start", "generated", "real slices", "figures")
    seconds = {name: round(b - a, 2) for name, (a, b) in zip(phases, pairwise(clock), strict=True)}
    about, settings = data_settings(real), model.settings(args) | {"number": args.number, "features": features_name}
    write_json(out / "metrics.json", model, args, settings, data=about, compared=count, **figures, notes=notes,
               ranks=rt.world, seconds=seconds)  # fmt: skip
    print_figures(figures, features_name, about, notes)
    names = ("metrics.json", "copies-pixels.png", "copies-features.png")
    return report(model, f"{args.number} slices evaluated", [out / name for name in names])


def copying_figures(fake: tuple, train: tuple, heldout: tuple, real: RealSlices, images_of, out: Path) -> dict:
    """How near generated slices are to training ones by pixels and by features, with a picture of the closest of each;
    the three are what measure() found: (features, thumbnails)."""
    groups = real.subjects(real.heldout).to(fake[0].device)
    found = {}
    for space, k, centre in (("pixels", 1, None), ("features", 0, train[0].mean(0))):
        found[space], pairs = quality.copying(fake[k], train[k], heldout[k], groups, centre)
        closest = [{"generated": i, "training": real.train.names[j], "distance": d} for i, j, d in pairs]
        found[space]["closest"] = closest
        fakes, reals = (
            images_of([i for i, _, _ in pairs]).numpy(),
            np.stack([real.train.images[j] for _, j, _ in pairs]),
        )
        save_png(out / f"copies-{space}.png", pairs_picture(fakes, reals, pairs))
    return found


def data_settings(real: RealSlices) -> dict:
    """Which real slices the figures are about."""
    sides = {"train": real.train, "heldout": real.heldout}
    about = {
        name: {"slices": len(p), "subjects": len(set(p.subjects) - {""}), "describe": p.meta["describe"],
               "digest": p.digest} for name, p in sides.items()
    }  # fmt: skip
    return about


def diversity_of_pairs(args: argparse.Namespace, model: Trained, real: RealSlices, images_of, labels) -> dict:
    """MS-SSIM of random pairs within each class: of generated slices, and of held-out ones of different subjects."""
    pool = min(args.number, PAIR_POOL)
    fakes = images_of(range(pool))
    rows = torch.linspace(0, len(real.heldout) - 1, min(len(real.heldout), PAIR_POOL)).round().long()
    reals, groups = rows_of(real.heldout, rows.numpy()), real.subjects(real.heldout)[rows]
    fake_labels = torch.zeros(pool, dtype=torch.int64) if labels is None else labels[:pool]
    real_labels = torch.zeros(len(rows), dtype=torch.int64) if labels is None else real.labels(real.heldout)[rows]
    sets = {"generated": (fakes, torch.arange(pool), fake_labels), "held-out slices": (reals, groups, real_labels)}
    found: dict = {}
    for k, name in enumerate(model.classes or ["all"]):
        for source, (images, subjects, of_class) in sets.items():
            here = (of_class == k).nonzero()[:, 0]
            draw = randomness.generator(args.seed, k, f"predict pairs {source}")
            pairs = here[quality.draw_pairs(subjects[here], PAIRS, draw)]
            if len(pairs) >= 2:
                values = quality.pair_similarity(images, pairs)
                about = {"mean": float(values.mean()), "sd": float(values.std()), "pairs": len(pairs)}
                found.setdefault(name, {})[source] = about
    return found


def notes_on(model: Trained, real: RealSlices, compared: int, number: int, dim: int) -> list[str]:
    """What a reader of the figures has to know."""
    heldout, unknown = len(real.heldout), sum(not subject for subject in real.heldout.subjects)
    notes = [f"distances compare sets of {compared:,} slices with {heldout:,} held-out ones, both kinds alike"]
    if compared < number:
        notes.append(f"the first {compared:,} of {number:,} generated slices, as there are no more training slices")
    if model.config.get("split") == "all":
        notes.append(
            "the model was trained with --split all, so on these held-out slices too: copies cannot be told here"
        )
    if unknown:
        notes.append(
            f"the subjects of {unknown:,} held-out slices are unknown: pairs of one brain may be among the real pairs, and "
            "the distance ratio of copies is then too low"
        )
    if heldout < 10 * dim:
        notes.append(
            f"{heldout:,} held-out slices are few for {dim} features: the FID is much raised by that, for real slices as well; "
            "judge by the difference to them, or by the KID"
        )
    return notes


# --- tsne -------------------------------------------------------------------------------------------------------------
def tsne(args: argparse.Namespace) -> int:
    """t-SNE, a picture and a CSV of it: features of real and generated slices by class and by subject, and the w of a
    StyleGAN2 by class; the latents of real slices by class and by subject where the model is a VAE."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError("tsne needs scikit-learn, which nothing else does: pip install scikit-learn") from None
    rt = alone(args)
    model = open_model(args, "stylegan2", "diffusion", "vae", device=rt.device)
    if isinstance(model, VaeModel) and args.feature_weights:
        raise UsageError("--feature-weights: of a VAE the latents themselves are shown; leave it out")
    labels = choose_labels(model, args.label, list(range(args.number)))
    given = given_features(args)
    real = open_data(args, model, print)
    rows = torch.linspace(0, len(real.heldout) - 1, min(args.number, len(real.heldout))).round().long()
    out = out_folder(args)

    def embed(x: torch.Tensor) -> np.ndarray:
        perplexity = min(30.0, (len(x) - 1) / 3)
        settings = dict(init="pca", perplexity=perplexity, random_state=args.seed % (1 << 32))
        return TSNE(2, **settings).fit_transform(x.double().cpu().numpy())

    classes = real.heldout.classes
    real_classes = [classes[k] if k >= 0 else "" for k in real.labels(real.heldout)[rows].tolist()]
    subjects = [real.heldout.subjects[i] for i in rows.tolist()]
    fake_classes = ["" if labels is None else model.classes[int(labels[i])] for i in range(args.number)]
    if isinstance(model, VaeModel):
        what, settings = (
            f"latents (means) of {Path(model.path).absolute().parent.name}",
            {"seed": args.seed, "weights_sha256": model.sha256},
        )
        parts = tqdm(rows.split(MEASURE_CHUNK), unit=" chunks", disable=None)
        latents = torch.cat([model.encode(rows_of(real.heldout, part.numpy())) for part in parts])
        points = embed(latents.flatten(1))
        table = [("real", *point, k, s) for point, k, s in zip(points, real_classes, subjects, strict=True)]
    else:
        network, what = open_features(given, real.train, out, rt)
        fake, _ = measure(rt, network, generated(model, args), args.number, "generated")
        truth, _ = measure(
            rt, network, lambda r: rows_of(real.heldout, rows[r.start : r.stop].numpy()), len(rows), "real"
        )
        settings = model.settings(args)
        points = embed(torch.cat([truth, fake]))
        table = [("real", *point, k, s) for point, k, s in zip(points, real_classes, subjects, strict=False)]
        table += [("generated", *point, k, "") for point, k in zip(points[len(rows) :], fake_classes, strict=True)]
    if isinstance(model, GanModel) and model.classes:
        z = draw_z(model, args.seed, list(range(args.number)))
        table += [("w", *p, k, "") for p, k in zip(embed(map_latents(model, z, labels)), fake_classes, strict=True)]
    write_csv(
        out / "tsne.csv",
        ["source", "x", "y", "class", "subject"],
        [[a, float(x), float(y), k, s] for a, x, y, k, s in table],
    )
    atomic_write(out / "tsne.png", scatter_plots(table, "latents" if isinstance(model, VaeModel) else "features", what))
    settings |= {"number": args.number, "features": what}
    write_json(out / "tsne.json", model, args, settings, data=data_settings(real), real=len(rows))
    made = "" if isinstance(model, VaeModel) else f" and {args.number} generated"
    return report(
        model, f"t-SNE of {len(rows)} real{made} slices", [out / f"tsne.{kind}" for kind in ("png", "csv", "json")]
    )


def alone(args: argparse.Namespace) -> ranks.Runtime:
    """One process on the device that --device names."""
    cuda = args.device != "cpu" and torch.cuda.is_available()
    return ranks.Runtime(0, 1, 0, torch.device("cuda" if cuda else "cpu"), torch.get_num_threads())


# --- project ----------------------------------------------------------------------------------------------------------
def project(args: argparse.Namespace) -> int:
    """Held-out slices in W+: target, result and difference, with the PSNR of each and the styles found."""
    model = open_model(args, "stylegan2")
    pack = open_targets(args, model)
    rows = torch.linspace(0, len(pack) - 1, min(args.number, len(pack))).round().long().unique()
    targets = rows_of(pack, rows.numpy())
    out = out_folder(args)
    candidates = list(range(projection.CANDIDATES))
    w = map_latents(model, draw_z(model, args.seed, candidates), choose_labels(model, "all", candidates))
    ws, results, history = [], [], []
    with tqdm(total=len(rows) * args.steps, unit=" steps", disable=None) as bar:

        def track(steps):
            for step in steps:
                yield step
                bar.update(len(part))

        for part in targets.split(model.batch):  # alone on a CPU: a slice's result does not depend on the others
            found, losses = projection.project(
                model.G, to_float(part).to(model.device), w.clone(), steps=args.steps, batch=32, track=track
            )
            ws.append(found)
            results.append(synthesise(model, found))
            history.append(losses)
    results, targets = np.concatenate(results), targets.numpy()
    difference = np.abs(results.astype(np.int16) - targets)
    psnr = [10 * math.log10(255**2 / max(float((d.astype(float) ** 2).mean()), 1e-3)) for d in difference]
    shown = np.stack([targets, results, np.minimum(2 * difference, 255).astype(np.uint8)], 1).reshape(
        -1, *targets.shape[1:]
    )
    columns, rows_psnr = ["real slice", "projection", "difference x 2"], [f"{value:.1f} dB" for value in psnr]
    save_png(out / "project.png", image_grid(shown, 3, row_labels=rows_psnr, column_labels=columns))
    np.savez(out / "project.npz", ws=torch.cat(ws).cpu().numpy(), row=rows.numpy())
    found = [{"slice": pack.names[i], "psnr": value} for i, value in zip(rows.tolist(), psnr, strict=True)]
    settings = {"seed": args.seed, "steps": args.steps, "weights_sha256": model.sha256, "data": pack.digest}
    loss = [float(value) for value in np.mean(history, 0)]
    write_json(
        out / "project.json", model, args, settings, slices=found, loss=[*loss[:: max(args.steps // 50, 1)], loss[-1]]
    )
    what = f"{len(rows)} projections, PSNR {np.mean(psnr):.1f} dB on average,"
    return report(model, what, [out / name for name in ("project.png", "project.npz", "project.json")])


def open_targets(args: argparse.Namespace, model: GanModel) -> Pack:
    """The slices of one picture or pack that --data names, else the held-out ones of the data."""
    spec = args.data or model.config.get("data")
    if not isinstance(spec, str) or not spec:
        raise UsageError(f"{model.path} does not say what it was trained on; name the real slices with --data")
    crop = model.config.get("crop")
    split = "all" if Path(spec).is_file() and not spec.lower().endswith(".pack") else "test"
    return ensure_pack(
        spec, split=split, resolution=model.G.resolution, channels=model.G.channels,
        crop=crop if isinstance(crop, int) else 0, log=lambda line: None, progress=False,
    )  # fmt: skip


# --- direction --------------------------------------------------------------------------------------------------------
def direction(args: argparse.Namespace) -> int:
    """A strip per latent, from its own class to the other one and beyond."""
    rt = alone(args)
    model = open_model(args, "stylegan2", "diffusion", device=rt.device)
    args.label, args.truncation, args.truncation_cutoff, args.noise = "all", 1.0, None, "fixed"
    if isinstance(model, DiffusionModel) and args.sampler == "ancestral":
        raise UsageError(
            "--sampler ancestral adds new noise to every picture; leave it out, or use midpoint, dpmpp-2m or ddim"
        )
    out = out_folder(args)
    amounts = [args.strength * j / (args.steps - 1) for j in range(args.steps)]
    if isinstance(model, DiffusionModel):
        start, end, images, more = blended_strip(args, model, amounts)
    else:
        start, end, w_start, step, recognise = class_direction(args, model, out, rt)
        ws = torch.stack([w + t * step for w in w_start for t in amounts])
        images = synthesise(model, model.G.broadcast(ws))
        more = {"length": float(step.norm())} | ({} if recognise is None else {"recognised_as_end": recognise(images)})
    labels = [{0.0: start, 1.0: f"{end} (1)"}.get(t, f"{t:.3g}") for t in amounts]
    save_png(out / "direction.png", image_grid(images, args.steps, column_labels=labels))
    settings = {k: getattr(args, k) for k in ("seed", "rows", "steps", "strength")} | {"from": start, "to": end}
    write_json(out / "direction.json", model, args, model.settings(args) | settings, amounts=amounts, **more)
    what = f"{len(images) // args.steps} x {args.steps} pictures from {start} to {end}"
    return report(model, what, [out / "direction.png", out / "direction.json"])


def blended_strip(
    args: argparse.Namespace, model: DiffusionModel, amounts: list[float]
) -> tuple[str, str, np.ndarray, dict]:
    """(start class, end class, uint8 (rows * steps, C, H, W), {}): the same noise denoised with both classes' predictions,
    of which the end's has the share that `amounts` says; beyond 1 it is guidance away from the start."""
    if not model.classes:
        raise ConfigError(
            f"{model.path}: trained without classes, so nothing leads from one to the other; train with --conditional"
        )
    start, end = end_classes(args, model.classes)
    a, b = (torch.tensor([model.classes.index(name)], device=model.device) for name in (start, end))
    images = []
    for i in tqdm(range(args.rows), unit=" rows", disable=None):
        noise = model.draw(args.seed, [i])
        for part in torch.tensor(amounts, device=model.device).split(model.batch):
            n = len(part)
            images.append(model.sample(args, noise.expand(n, -1, -1, -1), a.expand(n), towards=b.expand(n), share=part))
    return start, end, np.concatenate(images), {}


def class_direction(args: argparse.Namespace, model: GanModel, out: Path, rt: ranks.Runtime):
    """(start class, end class, w (rows, w_dim) of the start class, step (w_dim,), images -> share of the end class).

    A conditional generator gives the step by mapping the same z to both classes. Of another one, samples are sorted into
    classes by a linear probe on features of real training slices, which then also judges the strip.
    """
    indices = list(range(DIRECTION_SAMPLES))
    z = draw_z(model, args.seed, indices)
    if model.classes:
        start, end = end_classes(args, model.classes)
        sides = [map_latents(model, z, torch.full((len(z),), model.classes.index(name))) for name in (start, end)]
        return start, end, sides[0][: args.rows], (sides[1] - sides[0]).mean(0), None
    given = given_features(args)
    real = open_data(args, model, print)
    start, end = end_classes(args, list(real.train.classes))
    network, _ = open_features(given, real.train, out, rt)
    train, _ = measure(rt, network, lambda r: rows_of(real.train, r), len(real.train), "training slices")
    labels = real.labels(real.train)
    known = labels >= 0
    probe = quality.LinearProbe(train[known], labels[known].to(train.device), len(real.train.classes))
    w = map_latents(model, z, None)

    def drawn(r: range) -> torch.Tensor:  # with the fixed noise of the strip
        return torch.from_numpy(synthesise(model, model.G.broadcast(w[r.start : r.stop])))

    fake, _ = measure(rt, network, drawn, len(indices), "generated")
    found = probe.predict(fake)
    a, b = (real.train.classes.index(name) for name in (start, end))
    if min(int((found == a).sum()), int((found == b).sum())) < max(args.rows, 8):
        raise ConfigError(
            f"{model.path}: too few of {len(indices)} samples look like {start} or like {end}; train longer"
        )
    w = map_latents(model, z, None)

    def recognise(images: np.ndarray) -> list[float]:
        is_end = (probe.predict(network(torch.from_numpy(images))) == b).view(-1, args.steps)
        return is_end.double().mean(0).tolist()

    return start, end, w[found == a][: args.rows], w[found == b].mean(0) - w[found == a].mean(0), recognise


def end_classes(args: argparse.Namespace, classes: list[str]) -> tuple[str, str]:
    """--from and --to; AD and NC, or the first two classes, where they are not given."""
    if len(classes) < 2:
        raise ConfigError("direction needs two classes, in the model or in the data; name labelled data with --data")
    default = ("AD", "NC") if {"AD", "NC"} <= set(classes) else tuple(classes[:2])
    chosen = args.start or default[0], args.end or default[1]
    for name in chosen:
        if name not in classes:
            raise UsageError(f"--from/--to {name}: no such class; choose from {', '.join(classes)}")
    if chosen[0] == chosen[1]:
        raise UsageError(f"--from and --to are both {chosen[0]}; choose two of {', '.join(classes)}")
    return chosen


# --- plot -------------------------------------------------------------------------------------------------------------
def plot(args: argparse.Namespace) -> int:
    """Loss curves over kimg; reads what is there, so a run may be training."""
    if args.from_kimg > args.to_kimg:
        raise UsageError(f"--from-kimg {args.from_kimg:g} lies behind --to-kimg {args.to_kimg:g}; exchange them")
    runs = [find_run(path) for path in {Path(path).resolve(): path for path in args.run}.values()]
    names = [run.path.absolute().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    rows = {name: read_metrics(run.metrics) for name, run in zip(names, runs, strict=True)}
    for run, found in zip(runs, rows.values(), strict=True):
        if not found:
            raise ConfigError(
                f"{run.path}: no losses in metrics.jsonl yet; the first row comes after --log-kimg thousand images"
            )
        last = found[-1]["nimg"] / 1000
        if not any(args.from_kimg <= row["nimg"] / 1000 <= args.to_kimg for row in found):
            raise UsageError(
                f"{run.path}: no rows from {args.from_kimg:g} to {args.to_kimg:g} kimg; it has 0 to {last:g}"
            )
    default = runs[0].plots / ("losses.png" if len(runs) == 1 else "losses-compared.png")
    png = Path(args.out) if args.out else default
    if png.is_dir():
        raise UsageError(f"--out {png}: a folder; name a PNG file in it")
    if len(runs) > 1:
        plot_losses(rows, png, args.from_kimg, args.to_kimg)
    else:
        restarts = [kimg for kimg in restarts_of(runs[0]) if args.from_kimg <= kimg <= args.to_kimg]
        plot_losses(rows[names[0]], png, args.from_kimg, args.to_kimg, restarts)
    for name, found in rows.items():
        print(f"{name}: {len(found)} rows up to {found[-1]['nimg'] / 1000:g} kimg")
    print(f"  {png}")
    return stopping.DONE


# --- report -----------------------------------------------------------------------------------------------------------
def write_report(args: argparse.Namespace) -> int:
    """The page about the runs; reads what is there, so they may be training."""
    runs = [find_run(path) for path in {Path(path).resolve(): path for path in args.run}.values()]
    for run in runs:
        if not run.config.is_file():
            raise ConfigError(f"{run.path}: no config.json, so it is no run directory; give the folder of a run")
    html = Path(args.out) if args.out else runs[0].path / "report.html"
    if html.is_dir():
        raise UsageError(f"--out {html}: a folder; name an HTML file in it")
    html.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(html, write_page(runs))
    print(f"report on {len(runs)} run{'s' * (len(runs) > 1)}, {html.stat().st_size / 1e6:.1f} MB\n  {html}")
    return stopping.DONE


def main(args: argparse.Namespace) -> int:
    commands = {
        "generate": generate, "denoise": denoise, "reconstruct": reconstruct, "mix": mix, "interpolate": interpolate, "plot": plot,
        "evaluate": evaluate, "tsne": tsne, "project": project, "direction": direction, "report": write_report,
    }  # fmt: skip
    try:
        return commands[args.command](args)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on or starts again", file=sys.stderr)
        return 130
    except (UsageError, ConfigError, DataError) as error:
        text, code = str(error), stopping.USAGE if isinstance(error, UsageError) else stopping.BAD
    except ranks.PeerLost as error:
        text, code = str(error), stopping.TRANSIENT
    except torch.OutOfMemoryError:
        text, code = f"the GPU's memory does not hold {args.batch} pictures at once; use a smaller --batch", stopping.BAD
    except OSError as error:
        what = f"{error.filename or args.command}: {error.strerror or error}"
        text, code = f"{what}; check the path, its permissions and the free space", stopping.BAD
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(ARGS))
