"""Everything one does with a trained model: pictures, style mixing, interpolation, reconstruction, loss curves.

    python predict.py generate --run runs/stylegan2-1a2b3c4d --number 64
    python predict.py generate --run RUN --number 50000 --class AD --truncation 0.7 --out FOLDER
    python predict.py mix --run RUN --rows 4 --cols 6 --styles coarse
    python predict.py interpolate --run RUN --number 6 --steps 30
    python predict.py plot --run RUN_A --run RUN_B

    python predict.py generate --run runs/diffusion-1a2b3c4d --number 64 --class AD --guidance 1.5 --steps 10
    python predict.py denoise --run runs/diffusion-1a2b3c4d
    python predict.py reconstruct --run runs/vae-1a2b3c4d

The latent of picture i is a function of (seed, i) alone: the same in every subcommand and in every batch. A weights
file is read as data, nothing in it is ever executed.
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


def gan_flags() -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a GAN."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--class", dest="label", metavar="NAME|INDEX|all", default="all",
                   help="class of the pictures; all takes the classes in turn (default %(default)s)")
    p.add_argument("--truncation", type=number, default=1.0, metavar="PSI",
                   help="1 samples what was learnt; below 1, 0.7 say, pictures are cleaner and more alike (default 1)")
    p.add_argument("--truncation-cutoff", type=whole(0, 64), metavar="N", help="truncate only the first N layers")
    return p


def diffusion_flags() -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a diffusion network."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--sampler", choices=("midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"),
                   help="of a diffusion network (default midpoint; ddim where it was trained on Fast-DDPM's steps)")
    p.add_argument("--steps", type=whole(1, 10000), metavar="N",
                   help="network calls per picture of a diffusion network (default 20)")
    p.add_argument("--guidance", type=number, metavar="G",
                   help="classifier-free guidance; 1 samples what was learnt, above 1 is more typical of the class (default 1)")
    return p


def add_denoise(commands, parents: list) -> None:
    line = "how a diffusion network makes pictures of noise: a strip of its estimates, and a GIF"
    p = commands.add_parser("denoise", parents=parents, help=line, description=line)
    p.add_argument("--class", dest="label", metavar="NAME|INDEX|all", default="all",
                   help="class of the pictures; all takes the classes in turn (default %(default)s)")
    p.add_argument("--number", type=whole(1, 64), default=4, metavar="N", help="how many pictures (default %(default)s)")
    p.add_argument("--fps", type=whole(1, 50), default=5, help="frames per second (default %(default)s)")


def add_reconstruct(commands, parents: list) -> None:
    line = "slices through a VAE and back: a grid, and PSNR and SSIM as JSON"
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
                   help="state dict of torchvision's inception_v3 or resnet50 to measure with; without it a small "
                        "encoder is trained on the training slices, once, in minutes, and kept beside their pack")
    return p


def add_generate(commands, parents: list) -> None:
    line = "PNGs from random latents, a grid and generate.json; an interrupted command goes on where it stopped"
    p = commands.add_parser("generate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, MAX_NUMBER), default=64, metavar="N",
                   help="how many pictures (default %(default)s)")
    p.add_argument("--noise", choices=("random", "fixed"), default="random",
                   help="random: each picture its own, as in training; fixed: all the same (default %(default)s)")
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
    p.add_argument("--space", choices=("z", "w"), default="w",
                   help="spherical in z, or linear in w (default %(default)s)")
    p.add_argument("--fps", type=whole(1, 50), default=20, help="frames per second (default %(default)s)")


def add_evaluate(commands, parents: list) -> None:
    line = ("Frechet and kernel distance, precision to coverage, diversity, copies and class fidelity of generated slices "
            "beside the same figures of real ones; also under torchrun")
    p = commands.add_parser("evaluate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(20, MAX_NUMBER), default=5000, metavar="N",
                   help="slices to generate (default %(default)s)")


def add_tsne(commands, parents: list) -> None:
    line = "t-SNE of real and generated slices' features, by class and by subject, and of the latents w by class"
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
    line = "move latents along the direction in w that leads from one class to the other"
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
    model, gan, diffuse = model_flags(), gan_flags(), diffusion_flags()
    add_generate(commands, [model, gan, diffuse])
    add_denoise(commands, [model, diffuse])
    add_reconstruct(commands, [model])
    add_mix(commands, [model, gan])
    add_interpolate(commands, [model, gan])
    square, data, features = model_flags(pictures=False), data_flag(), feature_flag()
    add_evaluate(commands, [square, gan, data, features])
    add_tsne(commands, [square, gan, data, features])
    add_project(commands, [square, data])
    add_direction(commands, [square, data, features])
    add_plot(commands)
    add_report(commands)
    return parser.parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # now, as torch takes seconds to import: --help and wrong flags answer at once
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is open yet

import hashlib
import io
import json
import re
import tempfile
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.batches import to_float, to_uint8
from data.pack import Pack, check_geometry, ensure_held_out, ensure_pack, restore
from data.sources import DataError
from jobs import runtime, specs, stop
from jobs.log import BACKGROUND, image_grid, plot_losses, read_metrics, save_png
from jobs.report import write_page
from jobs.rundir import RunDir, atomic_file, atomic_write
from jobs.specs import ConfigError
from jobs.weights import WeightsError, read_weights, write_weights
from models import diffusion, encoder, projection, quality
from models.encoder import load_pretrained
from models.metrics import head_mask, psnr, ssim
from models.stylegan2 import Generator, channels_at, resolutions
from models.unet import UNet, guided
from models.vae import VAE, LatentScale

GRID = 64  # pictures in a grid at most
STRIP_ROWS, STRIP_COLUMNS = 16, 8
MAX_FRAMES = 20_000  # of a GIF, which is put together in memory
MEASURE_CHUNK = 50  # slices of which features are made at once, for any number of ranks
MIN_HELDOUT = 20
DIRECTION_SAMPLES = 512  # latents over which the classes' difference in w is averaged
PAIR_POOL, PAIRS = 1000, 1000  # slices from which pairs are drawn, and pairs per class, for MS-SSIM
WRITERS = 4  # threads that encode PNGs while the next batch is computed
PICTURE = re.compile(r"\d{6,}(_[\w.-]+)?\.png", re.ASCII)  # what generate writes
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that weights may be stored in
VAE_FIELDS = "channels latent_channels width down num_res".split()
DENOISE_COLUMNS = 10  # of a strip at most
GAN_FIELDS = "resolution channels z_dim w_dim mapping_layers channel_base channel_max".split()


class UsageError(Exception):
    """A flag that does not fit this model; the text is one line that names the fix. Exit code 2."""


# --- the model --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class GanModel:
    """A trained generator, what its weights file says of it, and how to run it."""

    G: Generator
    classes: list[str]  # [] where the generator is not conditional
    geometry: dict  # for data.pack.restore; {} where pictures stay square
    nimg: int
    config: dict  # of the run, as its file has it
    path: str
    sha256: str  # of the weights file
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        g = self.geometry
        return (g["source_height"], g["source_width"]) if g else (self.G.resolution, self.G.resolution)

    def settings(self, args: argparse.Namespace) -> dict:
        """What decides the pictures of `generate`."""
        return settings_of(self, args, "truncation", "truncation_cutoff", "noise")

    def pictures(self, args: argparse.Namespace, indices: list[int]) -> np.ndarray:
        """uint8 (B, C, H, W) of the pictures `indices`."""
        noise = draw_noise(self, args.seed, indices) if args.noise == "random" else None
        return synthesise(self, styles_of(self, args, indices), noise)


def load_generator(
    path: Path, device: torch.device, *, dtype: torch.dtype = torch.float32, batch: int = 1, square: bool = False
) -> GanModel:
    """Read a StyleGAN2 from its weights file. Raises ConfigError, one line, on anything that is not one.

    Whatever sizes the file claims, nothing is allocated unless the file itself is about as large.
    """
    tensors, about, sha256 = read_snapshot(Path(path))
    if about.get("job") != "stylegan2":
        raise ConfigError(f"{path}: weights of a {about.get('job')!r} job; this command needs those of a stylegan2 run")
    classes, nimg = about.get("classes"), about.get("nimg")
    if not isinstance(classes, list) or not all(isinstance(c, str) and c.isprintable() for c in classes):
        raise ConfigError(f"{path}: its list of classes is malformed; copy the file again from the run")
    conditional = about["config"].get("conditional") is True
    prefix = "G_ema."
    state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    config = gan_config(path, about["config"])
    num_classes = len(classes) if conditional else 0
    try:
        if smallest_size(config, num_classes) > sum(v.numel() for v in state.values()):
            raise ConfigError(f"{path}: too small for the network of its config; copy the file again from the run")
        G = Generator(**config, num_classes=num_classes)
    except ValueError as error:
        raise ConfigError(f"{path}: its config is of no network ({error}); copy the file again from the run") from None
    check_state(path, G, state)
    G.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    geometry = about.get("geometry") or {}
    if geometry:
        try:
            check_geometry(geometry)
        except DataError as error:
            raise ConfigError(f"{path}: {error}; copy the file again from the run") from None
        if geometry["resolution"] != G.resolution:
            raise ConfigError(f"{path}: its geometry is not that of its network; copy the file again from the run")
    return GanModel(
        G.to(device).eval().requires_grad_(False), classes if conditional else [], {} if square else geometry,
        nimg if isinstance(nimg, int) else 0, about["config"], str(path), sha256, device, dtype, batch,
    )  # fmt: skip


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


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gan_config(path: Path, config: dict) -> dict:
    """The generator's arguments from a file that may be a stranger's."""
    for name in GAN_FIELDS:
        if type(config.get(name)) is not int or not 1 <= config[name] <= 1 << 20:
            raise ConfigError(f"{path}: {name} is {config.get(name)!r} in its config; copy the file again from the run")
    if config["channels"] not in (1, 3) or config["mapping_layers"] > 64:
        raise ConfigError(f"{path}: its config is that of no network of this toolkit; copy the file again from the run")
    return {name: config[name] for name in GAN_FIELDS}


def smallest_size(c: dict, num_classes: int) -> int:
    """How many numbers the large tensors of a generator hold, from its arguments alone."""
    widths = [channels_at(r, c["channel_base"], c["channel_max"]) for r in resolutions(c["resolution"])]
    inputs = c["z_dim"] + (c["w_dim"] if num_classes else 0)
    mapping = inputs * c["w_dim"] + (c["mapping_layers"] - 1) * c["w_dim"] ** 2 + num_classes * c["w_dim"]
    return mapping + 9 * sum(after * (before + after) for before, after in pairwise(widths)) + 9 * widths[0] ** 2


def check_state(path: Path, G: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """ConfigError unless the tensors are those of the network, and finite."""
    expected = {k: tuple(v.shape) for k, v in G.state_dict().items()}
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    other = [k for k in expected if k in state and tuple(state[k].shape) != expected[k]]
    bad = [k for k, v in state.items() if v.dtype not in FLOATS or not bool(torch.isfinite(v).all())]
    found = {"lacks": missing, "has unknown": unknown, "has another shape of": other, "has no finite numbers in": bad}
    for what, names in found.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ConfigError(
                f"{path}: {what} {', '.join(names[:3])}{more}; use weights that this version's train scripts wrote"
            )


def open_model(args: argparse.Namespace, device: torch.device | None = None) -> GanModel:
    """The GAN that --run or --weights names, on `device`, else on the one that --device names."""
    path, device, dtype = where_and_how(args, device)
    return load_generator(path, device, dtype=dtype, batch=batch_of(args, device), square=args.square)


def where_and_how(
    args: argparse.Namespace, device: torch.device | None = None
) -> tuple[Path, torch.device, torch.dtype]:
    """(weights file, device, type of the convolutions)."""
    path = Path(args.weights) if args.weights else find_run(args.run).weights
    if args.run and not path.is_file():
        raise ConfigError(f"{args.run}: has no weights yet; training writes them at its first checkpoint")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; use --device cpu")
    device = device or torch.device("cpu" if args.device == "cpu" or not torch.cuda.is_available() else "cuda")
    return path, device, runtime.precision_dtype(args.precision, device)


def batch_of(args: argparse.Namespace, device: torch.device) -> int:
    """How a CPU's matrix products round depends on the number of rows. One at a time is hardly slower there, and makes
    every picture the same bits in whatever company it is generated."""
    return 1 if device.type == "cpu" else args.batch


def find_run(path: str) -> RunDir:
    if not Path(path).is_dir():
        raise ConfigError(
            f"--run {path}: there is no such run directory; give the folder that holds the run's config.json"
        )
    return RunDir(path)


@dataclass(frozen=True)
class DiffusionModel:
    """A trained denoising network with its decoder, what its weights file says of it, and how to run it."""

    unet: UNet
    scale: LatentScale
    decoder: torch.nn.Module | None  # None where it was trained on pixels
    schedule: diffusion.Schedule
    target: str
    times: torch.Tensor | None  # the only times that it knows, falling; None where it knows all
    shape: tuple[int, int, int]  # (C, h, w) of what it denoises
    resolution: int
    classes: list[str]  # [] where it is not conditional
    geometry: dict  # for data.pack.restore; {} where pictures stay square
    nimg: int
    path: str
    sha256: str  # of the weights file
    device: torch.device
    dtype: torch.dtype
    batch: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        g = self.geometry
        return (g["source_height"], g["source_width"]) if g else (self.resolution, self.resolution)

    def settings(self, args: argparse.Namespace) -> dict:
        """What decides the pictures of `generate`."""
        sampler, steps, guidance = self.way(args)
        return settings_of(self, args) | {"sampler": sampler, "steps": steps, "guidance": guidance}

    def way(self, args: argparse.Namespace) -> tuple[str, int, float]:
        """(sampler, network calls, guidance) as asked, or the defaults."""
        if self.times is None:
            return args.sampler or "midpoint", args.steps or 20, 1.0 if args.guidance is None else args.guidance
        if args.sampler not in (None, "ddim", "ancestral") or args.steps not in (None, len(self.times)):
            raise UsageError(
                f"this network knows the {len(self.times)} steps of Fast-DDPM alone; leave --steps out, and use --sampler ddim or ancestral"
            )
        return args.sampler or "ddim", len(self.times), 1.0 if args.guidance is None else args.guidance

    def pictures(self, args: argparse.Namespace, indices: list[int], watch=None) -> np.ndarray:
        """uint8 (B, C, H, W) of the pictures `indices`; `watch` is shown each estimate of all of them, likewise uint8."""
        sampler, steps, guidance = self.way(args)
        labels = choose_labels(self, args.label, indices)
        labels = None if labels is None else labels.to(self.device)
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.streams(args, indices, "predict z")])
        streams = self.streams(args, indices, "predict fresh noise")

        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                return guided(self.unet, x, t, labels, guidance).float()

        def fresh(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.randn(self.shape, generator=g) for g in streams]).to(x)

        with torch.inference_mode():
            denoise = diffusion.denoiser(predict, self.schedule, self.target, clamp=float(self.decoder is None))
            x0 = diffusion.sample(
                denoise, noise.to(self.device), self.schedule, sampler, steps, times=self.times, fresh=fresh,
                watch=None if watch is None else lambda x: watch(self.decode(x)),
            )  # fmt: skip
            return self.decode(x0)

    def streams(self, args: argparse.Namespace, indices: list[int], purpose: str) -> list[torch.Generator]:
        """One random stream per picture, on the CPU, so that every device and every company gives the same picture."""
        return [runtime.generator(args.seed, i, purpose) for i in indices]

    def decode(self, x0: torch.Tensor) -> np.ndarray:
        """Clean samples (B, C, h, w) to uint8 (B, C, H, W)."""
        x0 = self.scale.restore(x0)
        if self.decoder is not None:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                x0 = self.decoder(x0).float()
        images = to_uint8(x0).cpu().numpy()
        return restore(images, self.geometry) if self.geometry else images


# --- from latents to pictures -----------------------------------------------------------------------------------------
def choose_labels(model: GanModel | DiffusionModel, choice: str, indices: list[int]) -> torch.Tensor | None:
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
    rows = [torch.randn(model.G.z_dim, generator=runtime.generator(seed, i, "predict z")) for i in indices]
    return torch.stack(rows).to(model.device)


def draw_noise(model: GanModel, seed: int, indices: list[int]) -> list[torch.Tensor]:
    """Noise of the pictures `indices` for every layer: a list of (B, 1, H, W) fp32."""
    rows = [model.G.draw_noise(1, runtime.generator(seed, i, "predict noise"), "cpu") for i in indices]
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
        images.append(to_uint8(model.G.synthesis(ws[rows], part, dtype=model.dtype)).cpu().numpy())
    images = np.concatenate(images)
    return restore(images, model.geometry) if model.geometry else images


def styles_of(model: GanModel, args: argparse.Namespace, indices: list[int]) -> torch.Tensor:
    """ws (B, num_ws, w_dim) of the pictures `indices`, truncated as asked."""
    w = map_latents(model, draw_z(model, args.seed, indices), choose_labels(model, args.label, indices))
    return model.G.truncate(model.G.broadcast(w), args.truncation, args.truncation_cutoff)


def captions_of(model: GanModel, choice: str, indices: list[int]) -> list[str]:
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


def settings_of(model: GanModel | DiffusionModel, args: argparse.Namespace, *more: str) -> dict:
    """What decides the pictures; with other settings they are other pictures."""
    names = ("seed", "label", *more)
    size = f"{model.size[1]}x{model.size[0]}"
    fixed = {"weights_sha256": model.sha256, "size": size, "precision": str(model.dtype).removeprefix("torch.")}
    return {("class" if k == "label" else k): getattr(args, k) for k in names} | fixed


def write_json(path: Path, model: GanModel, args: argparse.Namespace, settings: dict, **more) -> None:
    about = {"command": args.command, "weights": model.path, "nimg": model.nimg, "classes": model.classes}
    atomic_write(path, json.dumps({**about, "settings": settings, **more}, indent=1) + "\n")


def report(model: GanModel, what: str, paths: list) -> int:
    print(f"{what} of {model.size[1]}x{model.size[0]} from {model.path} ({model.nimg / 1000:g} kimg)")
    for path in paths:
        print(f"  {path}")
    return stop.DONE


# --- generate ---------------------------------------------------------------------------------------------------------
def generate(args: argparse.Namespace) -> int:
    """Pictures 0 to N-1 as PNGs, a grid of the first, and generate.json. Pictures that are there already are kept."""
    model = open_sampler(args)
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
    seeds = [runtime.seed_of(args.seed, i, "predict z") for i in range(number)]
    write_json(out / "generate.json", model, args, settings, number=number, z_seeds=seeds)
    paths = [out / "grid.png", out / "generate.json"]
    if args.npz:
        write_npz(out / "slices.npz", model, args)
        paths.append(out / "slices.npz")
    span = names[0] if args.number == 1 else f"{names[0]} ... {file_name(model, args.label, args.number - 1)}"
    kept = f" ({args.number - made} were there already)" if made < args.number else ""
    return report(
        model,
        f"{args.number} picture{'s' * (args.number > 1)}{kept}",
        [out / span, *paths],
    )


def write_npz(path: Path, model: GanModel, args: argparse.Namespace) -> None:
    """The PNGs of generate as one file for np.load, written picture by picture: any number needs no memory."""
    shape = (args.number, model.G.channels, *model.size)
    labels = choose_labels(model, args.label, list(range(args.number)))
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as images:
            np.lib.format.write_array_header_1_0(images, header)
            for i in tqdm(range(args.number), desc=path.name, unit=" pictures", disable=None):
                images.write(read_picture(path.parent / file_name(model, args.label, i)).tobytes())
        with archive.open("labels.npy", "w") as column:
            np.lib.format.write_array(column, np.full(args.number, -1) if labels is None else labels.numpy())


def file_name(model: GanModel, choice: str, index: int) -> str:
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


def is_complete(path: Path, size: tuple[int, int]) -> bool:
    """Whether the file is a whole PNG of (height, width); its checksums are verified."""
    if not path.is_file():
        return False
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            picture.verify()
            return picture.size == size[::-1]
    except Exception:  # a damaged PNG raises almost anything; it is made again
        return False


def wait(jobs: list) -> None:
    for job in jobs:
        job.result()


def write_picture(out: Path, model: GanModel, args: argparse.Namespace, index: int, image: np.ndarray) -> None:
    """image uint8 (C, H, W) as a PNG whose text chunks say how to make it again."""
    text = {"index": str(index), "seed": str(args.seed), "weights_sha256": model.sha256}
    save_png(out / file_name(model, args.label, index), as_picture(image), text)


def as_picture(image: np.ndarray) -> Image.Image:
    """uint8 (C, H, W), C 1 or 3."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))


def read_picture(path: Path) -> np.ndarray:
    """uint8 (C, H, W) of a PNG that generate wrote."""
    with Image.open(path, formats=("PNG",)) as picture:
        pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


# --- diffusion --------------------------------------------------------------------------------------------------------
def open_sampler(args: argparse.Namespace) -> GanModel | DiffusionModel:
    """The model that --run or --weights names, whose job says what it is; flags of the other kind are refused."""
    path, device, dtype = where_and_how(args)
    try:
        job = read_weights(path)[1].get("job")
    except (WeightsError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if job == "vae":
        raise ConfigError(
            f"{path}: weights of a 'vae' job, which cannot generate by itself; use those of a stylegan2 or a diffusion run"
        )
    if job != "diffusion":
        if any(value is not None for value in (args.sampler, args.steps, args.guidance)):
            raise UsageError(
                "--sampler, --steps and --guidance are of diffusion networks; this is a StyleGAN2, see --truncation"
            )
        return open_model(args)
    if args.truncation != 1 or args.truncation_cutoff is not None or args.noise != "random":
        raise UsageError("--truncation and --noise are of StyleGAN2; this is a diffusion network, see --guidance")
    return load_diffusion(path, device, dtype=dtype, batch=batch_of(args, device), square=args.square)


def load_diffusion(path: Path, device: torch.device, *, dtype: torch.dtype, batch: int, square: bool) -> DiffusionModel:
    """Read a diffusion network from its weights file. Raises ConfigError, one line, on anything that is not one."""
    tensors, about, sha256 = read_snapshot(Path(path))
    if about.get("job") != "diffusion":
        raise ConfigError(f"{path}: weights of a {about.get('job')!r} job; this command needs those of a diffusion run")
    classes, geometry, nimg = checked_about(path, about)
    c, shape, of_vae = about["config"], about.get("shape"), about.get("vae")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or not 1 <= n <= 4096 for n in shape):
        raise ConfigError(f"{path}: its shape is malformed; copy the file again from the run")
    conditional = c.get("conditional") is True
    try:
        schedule, times = diffusion.make_schedule(str(c.get("schedule"))), str(c.get("times"))
        if c.get("target") not in diffusion.TARGETS or times not in diffusion.TIME_SETS:
            raise ValueError(f"target {c.get('target')!r}, times {times!r}")
        widths, sides = (
            specs.numbers(str(c.get("widths")), "widths"),
            specs.numbers(str(c.get("attention")), "attention"),
        )
        num_res, head_dim = (bounded(c, name, 4096) for name in ("num_res", "head_dim"))
        if len(widths) > 8 or max(widths) > 8192 or num_res > 16:
            raise ValueError(f"widths {c.get('widths')!r}, num_res {num_res}")
        fast = diffusion.fast_times(times, bounded(c, "fast_steps", 1000)) if times.startswith("fast-") else None
        with torch.device("meta"):  # nothing is allocated before the file's tensors are known to fit
            unet = UNet(
                shape[-1], shape[0], widths=widths, num_res=num_res, attention_sides=sides, head_dim=head_dim,
                dropout=0.0, num_classes=len(classes) if conditional else 0,
            )  # fmt: skip
            vae = None if of_vae is None else VAE(**{name: bounded(of_vae, name, 4096) for name in VAE_FIELDS})
            scale = LatentScale(torch.empty(shape[0]), torch.empty(shape[0]))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: its config is of no network ({error}); copy the file again from the run") from None
    parts = {"unet": unet, "latent_scale": scale} | ({} if vae is None else {"vae_decoder": vae.decoder})
    for name, module in parts.items():
        state = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
        check_state(path, module, state)
        module.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
        module.to(device).eval().requires_grad_(False)
    return DiffusionModel(
        unet, scale, None if vae is None else vae.decoder, schedule, c["target"], fast, tuple(shape),
        bounded(c, "resolution", 4096), classes if conditional else [], {} if square else geometry, nimg, str(path), sha256,
        device, dtype, batch,
    )  # fmt: skip


def bounded(values: dict, name: str, high: int) -> int:
    """A whole number of a config that may be a stranger's, from 1 to `high`."""
    if type(values.get(name)) is not int or not 1 <= values[name] <= high:
        raise ValueError(f"{name} is {values.get(name)!r}")
    return values[name]


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


def denoise(args: argparse.Namespace) -> int:
    """The estimates of the clean picture on the way from noise: rows are pictures, columns steps, the last is the result."""
    path, device, dtype = where_and_how(args)
    model = load_diffusion(path, device, dtype=dtype, batch=batch_of(args, device), square=args.square)
    indices = list(range(args.number))
    choose_labels(model, args.label, indices)
    out = out_folder(args)
    rows = []  # per picture (frames, C, H, W)
    for i in tqdm(indices, unit=" pictures", disable=None):
        frames: list[np.ndarray] = []
        result = model.pictures(args, [i], watch=lambda images, frames=frames: frames.append(images[0]))
        rows.append(np.stack([*frames, result[0]]))
    count = len(rows[0])
    shown = np.unique(np.linspace(0, count - 1, min(count, DENOISE_COLUMNS)).round().astype(int))
    captions = [
        text for caption in captions_of(model, args.label, indices) for text in [caption, *[""] * (len(shown) - 1)]
    ]
    save_png(out / "denoise.png", image_grid(np.concatenate([row[shown] for row in rows]), len(shown), labels=captions))
    columns = math.ceil(math.sqrt(args.number))
    grids = [np.asarray(image_grid(np.stack([row[k] for row in rows]), columns)) for k in range(count)]
    frames = np.stack([g[None] if g.ndim == 2 else g.transpose(2, 0, 1) for g in grids])
    hold = np.repeat(frames[-1:], args.fps, axis=0)  # the result stays for a second
    atomic_write(out / "denoise.gif", gif_of(np.concatenate([frames, hold]), args.fps))
    write_json(
        out / "denoise.json", model, args, model.settings(args) | {"number": args.number, "fps": args.fps}, frames=count
    )
    what = f"{args.number} picture{'s' * (args.number > 1)} in {count} stages"
    return report(model, what, [out / name for name in ("denoise.png", "denoise.gif", "denoise.json")])


# --- reconstruct ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class VaeModel:
    """A trained VAE and what its weights file says of it."""

    vae: VAE
    config: dict
    classes: list[str]
    nimg: int
    path: str
    sha256: str
    device: torch.device
    dtype: torch.dtype
    batch: int

    @property
    def size(self) -> tuple[int, int]:
        return self.config["resolution"], self.config["resolution"]

    @torch.inference_mode()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """images float32 (B, C, R, R) in 0 .. 1 -> the same, through the posterior's mean."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = [self.vae.decode(self.vae.encode(part)[0]) for part in (2 * images - 1).split(self.batch)]
        return ((torch.cat(outputs).clamp(-1, 1) + 1) / 2).float()


def load_vae(path: Path, device: torch.device, *, dtype: torch.dtype, batch: int) -> VaeModel:
    """Read a VAE from its weights file. Raises ConfigError, one line, on anything that is not one."""
    tensors, about, sha256 = read_snapshot(Path(path))
    if about.get("job") != "vae":
        raise ConfigError(f"{path}: weights of a {about.get('job')!r} job; this command needs those of a vae run")
    classes, _, nimg = checked_about(path, about)
    try:
        bounded(about["config"], "resolution", 4096)
        with torch.device("meta"):
            vae = VAE(**{name: bounded(about["config"], name, 4096) for name in VAE_FIELDS})
    except ValueError as error:
        raise ConfigError(f"{path}: its config is of no network ({error}); copy the file again from the run") from None
    state = {k.removeprefix("vae."): v for k, v in tensors.items() if k.startswith("vae.")}
    check_state(path, vae, state)
    vae.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    vae.to(device).eval().requires_grad_(False)
    return VaeModel(vae, about["config"], classes, nimg, str(path), sha256, device, dtype, batch)


def reconstruct(args: argparse.Namespace) -> int:
    """PSNR and SSIM of slices against their reconstructions, over all pixels and inside the head, and a grid of both."""
    path, device, dtype = where_and_how(args)
    model = load_vae(path, device, dtype=dtype, batch=batch_of(args, device))
    pack = slices_of(model, args)
    number = min(args.number or len(pack), len(pack))
    pick = np.linspace(0, len(pack) - 1, number).round().astype(int)
    out = out_folder(args)
    scores: dict[str, list[float]] = {name: [] for name in ("l1", "psnr", "ssim", "psnr_head", "ssim_head")}
    shown = []
    for start in tqdm(range(0, number, args.batch), unit=" batches", disable=None):
        pixels = torch.from_numpy(np.array(pack.images[pick[start : start + args.batch]]))
        real = (to_float(pixels.to(device)) + 1) / 2
        output = model.reconstruct(real)
        mask = head_mask(real)
        values = ((real - output).abs().flatten(1).mean(1), psnr(output, real), ssim(output, real),
                  psnr(output, real, mask), ssim(output, real, mask))  # fmt: skip
        for name, value in zip(scores, values, strict=True):
            scores[name] += value.double().tolist()
        if len(shown) < 8:
            both = zip(real, output, strict=True)
            shown += [torch.stack([a, b, (3 * (a - b).abs()).clamp(max=1)]) for a, b in both][: 8 - len(shown)]
    figures = by_subject(scores, [pack.subjects[i] or pack.names[i] for i in pick])
    grid = (torch.stack(shown, dim=1).flatten(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    rows = ["slice", "through the VAE", "3 x difference"]
    save_png(out / "reconstruct.png", image_grid(grid, len(shown), row_labels=rows))
    about = {
        "command": args.command,
        "weights": model.path,
        "nimg": model.nimg,
        "data": pack.meta["describe"],
        "slices": number,
    }
    atomic_write(
        out / "reconstruct.json", json.dumps({**about, "weights_sha256": model.sha256, **figures}, indent=1) + "\n"
    )
    for name, (mean, sd) in figures["mean and sd over subjects"].items():
        print(f"{name:10} {mean:8.4g} +- {sd:.3g}")
    return report(
        model, f"{number} slices of {figures['subjects']} subjects", [out / "reconstruct.png", out / "reconstruct.json"]
    )


def slices_of(model: VaeModel, args: argparse.Namespace) -> Pack:
    """The pack of --data at the VAE's size, of patients that it was not trained on where there are any."""
    c, data = model.config, args.data or model.config.get("data")
    if not isinstance(data, str) or not data:
        raise ConfigError("the weights do not say what they were trained on; name slices with --data")
    shape = {"resolution": c["resolution"], "channels": c["channels"], "crop": int(c.get("crop") or 0)}
    try:
        if args.split != "auto":
            return ensure_pack(data, split=args.split, **shape)
        return ensure_held_out(data, "auto", **shape) or ensure_pack(data, **shape)
    except DataError as error:
        raise ConfigError(str(error)) from None


def by_subject(scores: dict[str, list[float]], subjects: list[str]) -> dict:
    """Mean over each subject's slices, then mean and standard deviation over the subjects: slices of one are not independent.

    What is not finite (a slice without a head, an exact copy) is left out and counted.
    """
    names = sorted(set(subjects))
    index = np.array([names.index(s) for s in subjects])
    figures, left_out = {}, {}
    for score, values in scores.items():
        values = np.array(values)
        finite = np.isfinite(values)
        means = np.array(
            [values[finite & (index == k)].mean() for k in range(len(names)) if (finite & (index == k)).any()]
        )
        left_out[score] = int((~finite).sum())
        sd = float(means.std(ddof=1)) if len(means) > 1 else 0.0
        figures[score] = [float(means.mean()) if len(means) else math.nan, sd]
    return {"mean and sd over subjects": figures, "subjects": len(names), "left out": left_out}


# --- mix --------------------------------------------------------------------------------------------------------------
def mix(args: argparse.Namespace) -> int:
    """A grid: cell (r, c) has the styles of column source c in the layers `--styles`, and of row source r elsewhere."""
    model = open_model(args)
    first, last = style_layers(model.G, args.styles)
    at_left = list(range(args.rows))
    on_top = list(range(args.rows, args.rows + args.cols))
    left, top = styles_of(model, args, at_left), styles_of(model, args, on_top)
    out = out_folder(args)
    top_images = synthesise(model, top)
    rows = [np.full_like(top_images[:1], BACKGROUND), top_images]  # the empty corner, then the sources
    for ws in tqdm(left, unit=" rows", disable=None):
        rows += [synthesise(model, ws[None]), synthesise(model, mix_layers(ws.expand_as(top), top, first, last))]
    captions = ["", *captions_of(model, args.label, on_top)]
    for caption in captions_of(model, args.label, at_left):
        captions += [caption, *[""] * args.cols]
    save_png(out / "mix.png", image_grid(np.concatenate(rows), args.cols + 1, labels=captions))
    settings = settings_of(model, args, "truncation", "truncation_cutoff", "rows", "cols", "styles")
    write_json(out / "mix.json", model, args, settings, layers_from_top=[first, last], left=at_left, top=on_top)
    what = f"{args.rows} x {args.cols} mixed pictures (layers {first}-{last} from the top)"
    return report(model, what, [out / "mix.png", out / "mix.json"])


def mix_layers(ws: torch.Tensor, other: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """ws, other (B, num_ws, w_dim) -> ws with the layers first to last (inclusive) of `other`."""
    layers = torch.arange(ws.shape[1], device=ws.device)[:, None]
    return torch.where((layers >= first) & (layers <= last), other, ws)


def style_layers(G: Generator, styles: str) -> tuple[int, int]:
    """First and last layer of "coarse" (4-8 px), "middle" (16-32 px), "fine" (64 px and more) or "A-B"."""
    sizes = [h for h, _ in G.noise_shapes]
    sizes.append(sizes[-1])  # the last toRGB has a style of its own
    low, high = {"coarse": (4, 8), "middle": (16, 32), "fine": (64, 1024)}.get(styles, (0, 0))
    layers = [i for i, size in enumerate(sizes) if low <= size <= high]
    match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", styles, re.ASCII)
    if match:
        layers = range(int(match[1]), int(match[2] or match[1]) + 1)
    if not layers or layers[-1] >= G.num_ws:
        raise UsageError(
            f"--styles {styles}: this {G.resolution} px network has the layers 0-{G.num_ws - 1}; choose coarse, "
            f"middle, {'fine, ' if G.resolution >= 64 else ''}or A-B with A <= B among them"
        )
    return layers[0], layers[-1]


# --- interpolate ------------------------------------------------------------------------------------------------------
def interpolate(args: argparse.Namespace) -> int:
    """From latent 0 to 1, 2, ... and back to 0, as a GIF that loops. Noise is fixed: it would flicker."""
    if args.number * args.steps > MAX_FRAMES:
        raise UsageError(
            f"--number {args.number} x --steps {args.steps} are more than {MAX_FRAMES} frames; lower one of them"
        )
    model = open_model(args)
    keys = list(range(args.number))
    z, labels = draw_z(model, args.seed, keys), choose_labels(model, args.label, keys)
    out = out_folder(args)
    frames, strip, captions = [], [], []
    columns = min(args.steps, STRIP_COLUMNS)
    shown = [args.steps * j // columns for j in range(columns)]
    for k in tqdm(keys, unit=" latents", disable=None):
        w = segment(model, z, labels, k, (k + 1) % args.number, args.steps, args.space)
        ws = model.G.truncate(model.G.broadcast(w), args.truncation, args.truncation_cutoff)
        images = synthesise(model, ws)
        frames.append(images)
        if k < STRIP_ROWS:
            strip.append(images[shown])
            captions += [*captions_of(model, args.label, [k]), *[""] * (columns - 1)]
    frames = np.concatenate(frames)
    atomic_write(out / "interpolate.gif", gif_of(frames, args.fps))
    save_png(out / "strip.png", image_grid(np.concatenate(strip), columns, labels=captions))
    settings = settings_of(model, args, "truncation", "truncation_cutoff", "number", "steps", "space", "fps")
    write_json(out / "interpolate.json", model, args, settings, frames=len(frames))
    paths = [out / name for name in ("interpolate.gif", "strip.png", "interpolate.json")]
    return report(model, f"{len(frames)} frames", paths)


def gif_of(images: np.ndarray, fps: int) -> bytes:
    """uint8 (N, C, H, W) as a GIF that loops for ever. Grey is kept exactly, colour is cut to 256 of each frame."""
    frames = [as_picture(image) for image in images]
    if images.shape[1] == 1:
        # Left to itself, Pillow gives all frames the greys that the first one has.
        frames = [Image.frombytes("P", frame.size, frame.tobytes()) for frame in frames]
        for frame in frames:
            frame.putpalette(bytes(grey for grey in range(256) for _ in range(3)))
    buffer = io.BytesIO()
    delay = round(100 / fps) * 10  # a GIF counts in hundredths of a second
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=delay, loop=0, optimize=False)
    return buffer.getvalue()


def segment(
    model: GanModel, z: torch.Tensor, labels: torch.Tensor | None, a: int, b: int, steps: int, space: str
) -> torch.Tensor:
    """w (steps, w_dim) from latent a (included) to latent b (not included).

    The class cannot turn by degrees in z, so between two classes the w of both are blended.
    """
    t = (torch.arange(steps, device=z.device) / steps)[:, None]
    from_z, to_z = z[a : a + 1].expand(steps, -1), z[b : b + 1].expand(steps, -1)
    if space == "z":
        from_z = to_z = slerp(from_z, to_z, t)
    from_w = map_latents(model, from_z, None if labels is None else labels[a].expand(steps))
    to_w = map_latents(model, to_z, None if labels is None else labels[b].expand(steps))
    return torch.lerp(from_w, to_w, t)


def slerp(a: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Spherical interpolation (Shoemake 1985): a, b (B, D), t (B, 1) from 0 to 1 -> (B, D); exactly a at 0."""
    cosine = torch.cosine_similarity(a, b, dim=1)[:, None].clamp(-1, 1)
    omega = torch.acos(cosine)
    sine = torch.sin(omega)
    turned = (torch.sin((1 - t) * omega) / sine) * a + (torch.sin(t * omega) / sine) * b
    return torch.where(sine < 1e-4, torch.lerp(a, b, t), turned)  # (anti)parallel: there is no one great circle


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


def open_data(args: argparse.Namespace, model: GanModel, say) -> RealSlices:
    """Both splits of --data, or of what the run was trained on. ConfigError where nothing is held out."""
    spec = args.data or model.config.get("data")
    crop = model.config.get("crop")
    if not isinstance(spec, str) or not spec:
        raise UsageError(f"{model.path} does not say what it was trained on; name the real slices with --data")
    if spec.lower().endswith(".pack"):
        raise UsageError(f"{spec}: a pack holds one split; name the folder that it was packed from with --data")
    shape = dict(resolution=model.G.resolution, channels=model.G.channels, crop=crop if isinstance(crop, int) else 0)
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


def open_features(args: argparse.Namespace, train: Pack, out: Path, rt: runtime.Runtime) -> tuple[torch.nn.Module, str]:
    """(network uint8 (B, C, R, R) -> (B, D), its name). Rank 0 trains the encoder where there is none yet."""
    if args.feature_weights:
        try:
            network, name = load_pretrained(args.feature_weights)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return network.to(
            rt.device
        ), f"{name}, {Path(args.feature_weights).name} {sha256_of(args.feature_weights)[:12]}"
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
        runtime.wait_for(lambda: read_encoder(path, shape, train.digest), "rank 0 to train the feature encoder", 7200)
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
    rt: runtime.Runtime, network: torch.nn.Module, images_of, count: int, what: str
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
    return runtime.reduce_sum(rt, features), runtime.reduce_sum(rt, thumbs)


def generated(model: GanModel, args: argparse.Namespace):
    """range or list of indices -> the generated slices, uint8 (B, C, R, R), each with noise of its own as in training."""

    def images_of(indices) -> torch.Tensor:
        indices = list(indices)
        noise = draw_noise(model, args.seed, indices)
        return torch.from_numpy(synthesise(model, styles_of(model, args, indices), noise))

    return images_of


# --- evaluate ---------------------------------------------------------------------------------------------------------
def evaluate(args: argparse.Namespace) -> int:
    """metrics.json: generated slices against held-out ones, and training slices against held-out ones beside them."""
    started = time.monotonic()
    rt = runtime.init_runtime()
    if rt.world == 1 and args.device == "cpu":
        rt = replace(rt, device=torch.device("cpu"))
    model = open_model(args, rt.device)
    say = print if rt.rank == 0 else lambda text: None
    real = open_data(args, model, say)
    out = out_folder(args)
    network, features_name = open_features(args, real.train, out, rt)
    images_of = generated(model, args)
    fake, fake_thumbs = measure(rt, network, images_of, args.number, "generated")
    train, train_thumbs = measure(rt, network, lambda r: rows_of(real.train, r), len(real.train), "training slices")
    heldout, heldout_thumbs = measure(
        rt, network, lambda r: rows_of(real.heldout, r), len(real.heldout), "held-out slices"
    )
    runtime.shutdown(rt)
    if rt.rank:
        return stop.DONE
    labels = choose_labels(model, args.label, list(range(args.number)))
    subjects = real.subjects(real.heldout)
    count = min(args.number, len(train))
    spread = torch.linspace(0, len(train) - 1, count).round().long()  # over all training subjects
    distances = {
        "generated": set_figures(fake[:count], heldout, args.seed),
        "training slices": set_figures(train[spread], heldout, args.seed),
    }
    groups = subjects.to(rt.device)
    copies = {}
    spaces = {
        "pixels": (fake_thumbs, train_thumbs, heldout_thumbs, None),
        "features": (fake, train, heldout, train.mean(0)),
    }
    for space, (a, b, c, centre) in spaces.items():
        copies[space], pairs = quality.copying(a, b, c, groups, centre)
        save_png(out / f"copies-{space}.png", pairs_picture(pairs, images_of, real.train))
        copies[space]["closest"] = [
            {"generated": i, "training": real.train.names[j], "distance": d} for i, j, d in pairs
        ]
    figures = {
        "distances": distances,
        "ms_ssim": diversity_of_pairs(args, model, real, images_of, labels),
        "copying": copies,
    }
    if labels is not None:
        sets = [(x, y.to(rt.device)) for x, y in
                ((fake, labels), (train, real.labels(real.train)), (heldout, real.labels(real.heldout)))]  # fmt: skip
        figures["class_fidelity"] = quality.class_fidelity(*sets, len(model.classes))
    notes = notes_on(count, args.number, len(heldout), fake.shape[1])
    about = data_settings(real)
    settings = settings_of(model, args, "number") | {"features": features_name}
    write_json(out / "metrics.json", model, args, settings, data=about, compared=count, **figures, notes=notes,
               ranks=rt.world, seconds=round(time.monotonic() - started, 1))  # fmt: skip
    print_figures(figures, features_name, about, notes)
    names = ("metrics.json", "copies-pixels.png", "copies-features.png")
    return report(model, f"{args.number} slices evaluated", [out / name for name in names])


def data_settings(real: RealSlices) -> dict:
    """Which real slices the figures are about."""
    sides = {"train": real.train, "heldout": real.heldout}
    about = {
        name: {"slices": len(p), "subjects": len(set(p.subjects) - {""}), "describe": p.meta["describe"],
               "digest": p.digest} for name, p in sides.items()
    }  # fmt: skip
    return about


def set_figures(samples: torch.Tensor, heldout: torch.Tensor, seed: int) -> dict[str, float]:
    """Every figure that compares a set of features (N, D) with that of the held-out slices (M, D)."""
    fid, error = quality.frechet_with_error(samples, heldout)
    kid, deviation = quality.kernel_distance(samples, heldout, runtime.generator(seed, 0, "predict kid"))
    return {"fid": fid, "fid_error": error, "kid": kid, "kid_sd": deviation} | quality.manifold_figures(
        samples, heldout
    )


def diversity_of_pairs(args: argparse.Namespace, model: GanModel, real: RealSlices, images_of, labels) -> dict:
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
            draw = runtime.generator(args.seed, k, f"predict pairs {source}")
            pairs = here[quality.draw_pairs(subjects[here], PAIRS, draw)]
            if len(pairs) >= 2:
                values = quality.pair_similarity(images, pairs)
                about = {"mean": float(values.mean()), "sd": float(values.std()), "pairs": len(pairs)}
                found.setdefault(name, {})[source] = about
    return found


def pairs_picture(pairs: list, images_of, train: Pack, columns: int = 8) -> Image.Image:
    """Generated slices above their nearest training slices, the closest first."""
    fakes = images_of([i for i, _, _ in pairs]).numpy()
    reals = np.stack([train.images[j] for _, j, _ in pairs])
    shown, captions, rows = [], [], []
    for start in range(0, len(pairs), columns):
        part = slice(start, start + columns)
        blank = columns - len(fakes[part])
        empty = np.full((blank, *fakes.shape[1:]), BACKGROUND, np.uint8)
        shown += [fakes[part], empty, reals[part], empty]
        captions += [f"no. {i}" for i, _, _ in pairs[part]] + [""] * blank
        captions += [f"{d:.3f}" for _, _, d in pairs[part]] + [""] * blank
        rows += ["generated", "training"]
    return image_grid(np.concatenate(shown), columns, labels=captions, row_labels=rows)


def notes_on(compared: int, number: int, heldout: int, dim: int) -> list[str]:
    """What a reader of the figures has to know."""
    notes = [f"distances compare sets of {compared:,} slices with {heldout:,} held-out ones, both kinds alike"]
    if compared < number:
        notes.append(f"the first {compared:,} of {number:,} generated slices, as there are no more training slices")
    if heldout < 10 * dim:
        notes.append(
            f"{heldout:,} held-out slices are few for {dim} features: the FID is much raised by that, for real slices as well; "
            "judge by the difference to them, or by the KID"
        )
    return notes


def print_figures(figures: dict, features: str, data: dict, notes: list[str]) -> None:
    """The table for a person; metrics.json has the digits."""
    print(f"features: {features}")
    print(f"held-out: {data['heldout']['describe']}")
    print(f"{'':18}{'FID':>16}{'KID x 1000':>18}{'precision':>11}{'recall':>9}{'density':>9}{'coverage':>10}")
    for name, f in figures["distances"].items():
        fid, kid = f"{f['fid']:.2f} +- {f['fid_error']:.2f}", f"{1000 * f['kid']:.2f} +- {1000 * f['kid_sd']:.2f}"
        rest = f"{f['precision']:>11.3f}{f['recall']:>9.3f}{f['density']:>9.3f}{f['coverage']:>10.3f}"
        print(f"{name:18}{fid:>16}{kid:>18}{rest}")
    for name, sides in figures["ms_ssim"].items():
        print(f"MS-SSIM of pairs, {name}: " + ", ".join(f"{side} {v['mean']:.3f}" for side, v in sides.items()))
    for space, f in figures["copying"].items():
        print(
            f"copies by {space}: {100 * f['below_5th_percentile']:.1f} % nearer than the 5th percentile of held-out slices "
            f"(5 % is even), distance ratio {f['relative_ratio']:.2f} (1 is even)"
        )
    if "class_fidelity" in figures:
        f = figures["class_fidelity"]
        print(
            f"classes recognised: generated {f['accuracy']:.3f}, held-out {f['accuracy_of_heldout']:.3f}, held-out after "
            f"training on generated {f['train_on_generated']:.3f}"
        )
    for note in notes:
        print(f"note: {note}")


# --- tsne -------------------------------------------------------------------------------------------------------------
def tsne(args: argparse.Namespace) -> int:
    """Features of real and generated slices in two dimensions, by class and by subject; w by class; and a CSV of them."""
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        raise ConfigError("tsne needs scikit-learn, which nothing else does: pip install scikit-learn") from None
    rt = alone(args)
    model = open_model(args, rt.device)
    labels = choose_labels(model, args.label, list(range(args.number)))
    real = open_data(args, model, print)
    out = out_folder(args)
    network, features_name = open_features(args, real.train, out, rt)
    fake, _ = measure(rt, network, generated(model, args), args.number, "generated")
    rows = torch.linspace(0, len(real.heldout) - 1, min(args.number, len(real.heldout))).round().long()
    truth, _ = measure(rt, network, lambda r: rows_of(real.heldout, rows[r.start : r.stop].numpy()), len(rows), "real")

    def embed(x: torch.Tensor) -> np.ndarray:
        perplexity = min(30.0, (len(x) - 1) / 3)
        settings = dict(init="pca", perplexity=perplexity, random_state=args.seed % (1 << 32))
        return TSNE(2, **settings).fit_transform(x.double().cpu().numpy())

    points = embed(torch.cat([truth, fake]))
    classes = real.heldout.classes
    real_classes = [classes[k] if k >= 0 else "" for k in real.labels(real.heldout)[rows].tolist()]
    fake_classes = ["" if labels is None else model.classes[int(labels[i])] for i in range(args.number)]
    subjects = [real.heldout.subjects[i] for i in rows.tolist()]
    table = [("real", *point, k, s) for point, k, s in zip(points[: len(rows)], real_classes, subjects, strict=True)]
    table += [("generated", *point, k, "") for point, k in zip(points[len(rows) :], fake_classes, strict=True)]
    if model.classes:
        z = draw_z(model, args.seed, list(range(args.number)))
        table += [("w", *p, k, "") for p, k in zip(embed(map_latents(model, z, labels)), fake_classes, strict=True)]
    lines = ["source,x,y,class,subject", *(f"{a},{x:.5g},{y:.5g},{quoted(k)},{quoted(s)}" for a, x, y, k, s in table)]
    atomic_write(out / "tsne.csv", "\n".join(lines) + "\n")
    atomic_write(out / "tsne.png", scatter_plots(table, features_name))
    settings = settings_of(model, args, "number") | {"features": features_name}
    write_json(out / "tsne.json", model, args, settings, data=data_settings(real), real=len(rows))
    return report(
        model, f"t-SNE of {len(rows)} real and {args.number} generated slices",
        [out / name for name in ("tsne.png", "tsne.csv", "tsne.json")],
    )  # fmt: skip


def alone(args: argparse.Namespace) -> runtime.Runtime:
    """One process on the device that --device names."""
    cuda = args.device != "cpu" and torch.cuda.is_available()
    return runtime.Runtime(0, 1, 0, torch.device("cuda" if cuda else "cpu"), torch.get_num_threads())


def quoted(text: str) -> str:
    """A CSV field; names may hold anything."""
    return '"' + text.replace('"', '""') + '"' if re.search(r'[",\n\r]', text) else text


def scatter_plots(table: list[tuple], features: str, most: int = 9) -> bytes:
    """A PNG of (source, x, y, class, subject): by class, by subject (the `most` frequent ones), and w by class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slices, styles = [r for r in table if r[0] != "w"], [r for r in table if r[0] == "w"]
    counts = Counter(r[4] for r in slices if r[4])
    named = {s for s, n in counts.most_common(most) if n > 1}
    panels = [("features, by class", slices, lambda r: " ".join(filter(None, (r[0], r[3])))),
              ("features, by subject", slices, lambda r: r[4] if r[4] in named else f"{r[0]}, others" if named else r[0]),
              ("latents w, by class", styles, lambda r: r[3])]  # fmt: skip
    panels = [panel for panel in panels if panel[1] and (panel[0] != "features, by subject" or named)]
    figure = Figure(figsize=(5.5 * len(panels), 5.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, (title, rows, group_of) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        groups = sorted({group_of(r) for r in rows}, key=lambda g: ("generated" not in g and "others" not in g, g))
        for i, group in enumerate(groups):  # what is many comes first, so that it covers nothing
            xy = np.array([r[1:3] for r in rows if group_of(r) == group], float)
            color = "0.75" if "others" in group or group == "generated" else f"C{i % 10}"
            marker = "x" if group.startswith("generated") else "o"
            axis.scatter(*xy.T, s=14, marker=marker, linewidths=0.8, color=color, label=group[:24], alpha=0.8)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3)
    figure.suptitle(features, fontsize=8, color="0.4")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


# --- project ----------------------------------------------------------------------------------------------------------
def project(args: argparse.Namespace) -> int:
    """Held-out slices in W+: target, result and difference, with the PSNR of each and the styles found."""
    model = open_model(args)
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
    captions = [text for value in psnr for text in ("", f"{value:.1f} dB", "")]
    columns = ["real slice", "projection", "difference x 2"]
    save_png(out / "project.png", image_grid(shown, 3, labels=captions, column_labels=columns))
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
    """A strip per latent, from its own class along the mean difference of the classes in w."""
    rt = alone(args)
    model = open_model(args, rt.device)
    args.label, args.truncation, args.truncation_cutoff = "all", 1.0, None  # what the samples are drawn with
    out = out_folder(args)
    start, end, w_start, step, recognise = class_direction(args, model, out, rt)
    amounts = [args.strength * j / (args.steps - 1) for j in range(args.steps)]
    ws = torch.stack([w + t * step for w in w_start for t in amounts])
    images = synthesise(model, model.G.broadcast(ws))
    labels = [{0.0: start, 1.0: f"{end} (1)"}.get(t, f"{t:.3g}") for t in amounts]
    save_png(out / "direction.png", image_grid(images, args.steps, column_labels=labels))
    settings = {k: getattr(args, k) for k in ("seed", "rows", "steps", "strength")} | {"from": start, "to": end}
    more = {} if recognise is None else {"recognised_as_end": recognise(images)}
    write_json(out / "direction.json", model, args, settings | {"weights_sha256": model.sha256}, amounts=amounts,
               length=float(step.norm()), **more)  # fmt: skip
    what = f"{len(w_start)} x {args.steps} pictures from {start} to {end}"
    return report(model, what, [out / "direction.png", out / "direction.json"])


def class_direction(args: argparse.Namespace, model: GanModel, out: Path, rt: runtime.Runtime):
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
    real = open_data(args, model, print)
    start, end = end_classes(args, list(real.train.classes))
    network, _ = open_features(args, real.train, out, rt)
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
    plot_losses(rows if len(runs) > 1 else next(iter(rows.values())), png, args.from_kimg, args.to_kimg)
    for name, found in rows.items():
        print(f"{name}: {len(found)} rows up to {found[-1]['nimg'] / 1000:g} kimg")
    print(f"  {png}")
    return stop.DONE


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
    return stop.DONE


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
        text, code = str(error), stop.USAGE if isinstance(error, UsageError) else stop.BAD
    except runtime.PeerLost as error:
        text, code = str(error), stop.TRANSIENT
    except torch.OutOfMemoryError:
        text, code = f"the GPU's memory does not hold {args.batch} pictures at once; use a smaller --batch", stop.BAD
    except OSError as error:
        what = f"{error.filename or args.command}: {error.strerror or error}"
        text, code = f"{what}; check the path, its permissions and the free space", stop.BAD
    print(f"error: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(ARGS))
