"""The command line of predict.py. Torch-free: --help and wrong flags answer at once."""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable

from jobs.config.version import version
from models.names import SAMPLERS

FORMATS = ("onnx", "torch", "diffusers")  # of export
PICTURES = ("png", "png16", "nifti", "npz")  # of generate
MAX_NUMBER, MAX_SEEDS = 10**7, 10**6  # pictures in one folder; seeds that are named
SEED = re.compile(r"[0-9]{1,18}")
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


def seeds(text: str) -> list[int]:
    """argparse type: whole numbers and ranges with commas between, such as 3,17,40-50, in this order."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not SEED.fullmatch(low) or not SEED.fullmatch(high if dash else low):
            raise argparse.ArgumentTypeError(f"{part.strip()!r} is no seed; write such as 3,17,40-50")
        first, last = int(low), int(high or low)
        if first > last:
            raise argparse.ArgumentTypeError(f"{part.strip()} runs backwards; write {last}-{first}")
        if len(found) + last - first >= MAX_SEEDS:
            raise argparse.ArgumentTypeError(f"more than {MAX_SEEDS:,} seeds; use --number")
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        twice = next(seed for seed, count in Counter(found).items() if count > 1)
        raise argparse.ArgumentTypeError(f"{twice} stands there twice; name each seed once")
    return found


def spans(found: Iterable[int]) -> str:
    """The same as text, in order: 3,17,40-50."""
    ends: list[list[int]] = []
    for seed in sorted(found):
        if ends and seed == ends[-1][1] + 1:
            ends[-1][1] = seed
        else:
            ends.append([seed, seed])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in ends)


def guidance(text: str) -> float | dict[str, float]:
    """argparse type: a number, or COLUMN=NUMBER with commas between."""
    if "=" not in text:
        return number(text)
    return {name: number(value) for name, _, value in (part.partition("=") for part in text.split(","))}


# fmt: off
def out_flags(p: argparse.ArgumentParser, more: str, overwrite: bool = True) -> None:
    """Where a command writes, and whether it may be told to replace what is there."""
    p.add_argument("--out", metavar="DIR", help=f"where to write (default RUN/predictions/COMMAND/NAME, {more})")
    if overwrite:
        p.add_argument("--overwrite", action="store_true", help="replace what other settings have made in that folder")
    else:
        p.set_defaults(overwrite=False)


def model_flags(pictures: bool = True, runs: bool = True, verify: bool = False) -> argparse.ArgumentParser:
    """Flags of every subcommand that takes a model; `pictures`: it shows slices. Without `runs` they say which model,
    and no more. `verify`: a folder that was written may be checked instead."""
    p = argparse.ArgumentParser(add_help=False)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--run", help="run directory; --at says which of its weights are used")
    where.add_argument("--weights", metavar="FILE", help="a weights.safetensors file")
    if verify:
        where.add_argument("--verify", metavar="DIR", help="check a release instead: every file is there, as it was "
                                                           "written; needs no torch, model or data")
    p.add_argument("--at", default="last", metavar="best|last|KIMG",
                   help="of --run: its last weights, those of the best figure while it trained, or of those that "
                        "--keep-weights kept the ones at KIMG (default %(default)s)")
    out_flags(p, "./predictions/COMMAND/NAME with --weights; NAME is the kimg and what is asked for otherwise than by "
                 "default", overwrite=not verify)
    if not runs:
        p.set_defaults(device="cpu", precision="fp32", batch=1, square=True, scale=1)
        return p
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
        p.set_defaults(scale=1)
        if not verify:
            p.add_argument("--scale", type=whole(1, 16), default=1, metavar="N",
                           help="grids, strips and films N times as large, of small networks; single slices stay as "
                                "they are (default %(default)s)")
    else:
        p.set_defaults(square=True, scale=1)
    return p


def class_flag() -> argparse.ArgumentParser:
    """The flag of every subcommand that samples a network."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--class", dest="label", metavar="NAME|INDEX|all", default="all",
                   help="class of the pictures; all takes the classes in turn (default %(default)s)")
    p.add_argument("--set", dest="row", action="append", default=[], metavar="COLUMN=VALUE",
                   help="what the model is told, such as age=80; give it again for other columns. A column that is not "
                        "set is unknown")
    return p


def gan_flags() -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a StyleGAN2."""
    p = argparse.ArgumentParser(add_help=False)
    group = p.add_argument_group("StyleGAN2")
    group.add_argument("--truncation", type=number, default=1.0, metavar="PSI",
                       help="1 samples what was learnt; below 1, 0.7 say, pictures are cleaner and more alike "
                            "(default 1)")
    group.add_argument("--truncation-cutoff", type=whole(0, 64), metavar="N", help="truncate only the first N layers")
    p.set_defaults(noise=None)
    return p


def diffusion_flags(calls: str = "--steps") -> argparse.ArgumentParser:
    """Flags of every subcommand that samples a diffusion network; `calls`: the flag for the network calls."""
    p = argparse.ArgumentParser(add_help=False)
    group = p.add_argument_group("diffusion")
    group.add_argument("--sampler", choices=tuple(SAMPLERS),
                       help="default midpoint; ddim where the network was trained on Fast-DDPM's steps")
    group.add_argument(calls, dest="calls", type=whole(1, 10000), metavar="N", help="network calls per picture "
                                                                                    "(default 20)")
    group.add_argument("--guidance", type=guidance, metavar="G|COLUMN=G,...",
                       help="classifier-free guidance; 1 samples what was learnt, above 1 is more typical of the "
                            "class, or of one column, such as age=2 (default 1)")
    return p


def add_denoise(commands, parents: list) -> None:
    """The subcommand `denoise` and its flags."""
    line = "how a diffusion network makes pictures of noise: its estimates beside the noisy states, a strip and a GIF"
    p = commands.add_parser("denoise", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, 64), default=4, metavar="N", help="how many pictures (default "
                                                                               "%(default)s)")
    p.add_argument("--fps", type=whole(1, 50), default=5, help="frames per second (default %(default)s)")


def add_reconstruct(commands, parents: list) -> None:
    """The subcommand `reconstruct` and its flags."""
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
                   help="state dict of torchvision's inception_v3 or resnet50, or of a DINO or DINOv2, to "
                        "measure with; "
                        "without it a small encoder is trained on the training slices, once, in minutes, and kept "
                        "beside their pack")
    return p


def add_generate(commands, parents: list) -> None:
    """The subcommand `generate` and its flags."""
    line = "pictures from random latents, a grid and generate.json; an interrupted command goes on where it stopped"
    p = commands.add_parser("generate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, MAX_NUMBER), metavar="N",
                   help="how many pictures (default 64; of --like one for each row, of --vary 4 brains)")
    p.add_argument("--seeds", type=seeds, metavar="3,17,40-50",
                   help="instead of --seed and --number: the first picture of each of these seeds, named by it; with "
                        "--class all the classes take turns by the seed")
    p.add_argument("--like", metavar="TABLE.csv",
                   help="one picture for each row of a table with columns that the model is told")
    p.add_argument("--vary", action="append", default=[], metavar="COLUMN=A:B:N",
                   help="the same brains along a column, such as age=55:90:8, as a strip and a GIF; of a column of "
                        "levels its name alone; twice: a grid")
    p.add_argument("--noise", choices=("random", "fixed"),
                   help="of a StyleGAN2; random: each picture its own, as in training; fixed: all the same (default "
                        "random)")
    p.add_argument("--format", choices=PICTURES, default="png",
                   help="png: 8 bits; png16: 16 bits of grey, from the network's own values; nifti: the same as floats "
                        "from 0 to 1, a .nii.gz each; npz: PNGs, and all of them in slices.npz: images uint8 "
                        "(N, C, H, W), labels (-1: no classes), index and seed, as the rows of generated.csv (default "
                        "%(default)s)")


def add_mix(commands, parents: list) -> None:
    """The subcommand `mix` and its flags."""
    line = "a grid of pictures whose styles are mixed (Karras 2019, figure 3)"
    p = commands.add_parser("mix", parents=parents, help=line, description=line)
    p.add_argument("--rows", type=whole(1, 64), default=4, metavar="N",
                   help="sources at the left (default %(default)s)")
    p.add_argument("--cols", type=whole(1, 64), default=6, metavar="N", help="sources on top (default %(default)s)")
    p.add_argument("--styles", default="coarse", metavar="coarse|middle|fine|A-B",
                   help="layers that follow the source on top: those of 4-8 px, of 16-32 px, of 64 px and more, or "
                        "numbers from 0 (default %(default)s)")


def add_interpolate(commands, parents: list) -> None:
    """The subcommand `interpolate` and its flags."""
    line = "a looping GIF through random latents, and a strip of its frames"
    p = commands.add_parser("interpolate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(2, 1000), default=6, metavar="N",
                   help="latents to visit (default %(default)s)")
    p.add_argument("--vary", metavar="COLUMN=A:B:N", help="go along a column on the way, and back: one value for each "
                                                          "latent, N in place of --number")
    p.add_argument("--steps", type=whole(1, 1000), default=24, metavar="N",
                   help="frames from one latent to the next (default %(default)s)")
    p.add_argument("--space", choices=("z", "w"),
                   help="of a StyleGAN2: spherical in z, or linear in w (default w); a diffusion network has z alone")
    p.add_argument("--fps", type=whole(1, 50), default=20, help="frames per second (default %(default)s)")


def add_evaluate(commands, parents: list) -> None:
    """The subcommand `evaluate` and its flags."""
    line = ("Frechet and kernel distance, precision to coverage, diversity, copies and class fidelity of generated "
            "slices "
            "beside the same figures of real ones; with several GPUs: torchrun --nproc-per-node N -- predict.py "
            "evaluate ...")
    p = commands.add_parser("evaluate", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(20, MAX_NUMBER), default=5000, metavar="N",
                   help="slices to generate (default %(default)s)")


def add_tsne(commands, parents: list) -> None:
    """The subcommand `tsne` and its flags."""
    line = ("t-SNE of real and generated slices' features by class and by subject, of a StyleGAN2's w by class, of "
            "a VAE's "
            "latents by class and by subject; needs scikit-learn")
    p = commands.add_parser("tsne", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(10, 20_000), default=500, metavar="N",
                   help="generated and, at most, real slices (default %(default)s)")


def add_project(commands, parents: list) -> None:
    """The subcommand `project` and its flags."""
    line = "find the styles that draw real slices: target, result and difference side by side"
    p = commands.add_parser("project", parents=parents, help=line, description=line + "; --data may be one picture")
    p.add_argument("--number", type=whole(1, 256), default=4, metavar="N",
                   help="held-out slices to project (default %(default)s)")
    p.add_argument("--steps", type=whole(1, 100_000), default=300, metavar="N",
                   help="steps of the search (default %(default)s)")


def add_direction(commands, parents: list) -> None:
    """The subcommand `direction` and its flags."""
    line = ("from one class to the other: along the direction in w of a StyleGAN2, or from one class's prediction "
            "to the "
            "other's in a diffusion network")
    p = commands.add_parser("direction", parents=parents, help=line, description=line)
    p.add_argument("--from", dest="start", metavar="CLASS",
                   help="class to start from (default AD, else the first), or COLUMN=VALUE, such as age=60")
    p.add_argument("--to", dest="end", metavar="CLASS",
                   help="class to go to (default NC, else the second), or COLUMN=VALUE")
    p.add_argument("--rows", type=whole(1, 64), default=4, metavar="N", help="latents to move (default %(default)s)")
    p.add_argument("--steps", type=whole(2, 64), default=7, metavar="N", help="pictures in a row (default %(default)s)")
    p.add_argument("--strength", type=number, default=1.5, metavar="S",
                   help="1 goes as far as the classes lie apart on average (default %(default)s)")


def add_export(commands, parents: list) -> None:
    """The subcommand `export` and its flags."""
    line = "the networks for other tools, checked against predict.py's own pictures; fp32, a batch of any size"
    p = commands.add_parser("export", parents=parents, help=line, description=line)
    p.add_argument("--format", choices=FORMATS, required=True,
                   help="onnx: for ONNX Runtime; torch: programs for torch.export.load; diffusers: of a diffusion "
                        "network, a folder with a UNet2DModel and its scheduler")


def add_release(commands, parents: list) -> None:
    """The subcommand `release` and its flags."""
    line = ("a synthetic cohort to share: slices of which each is screened for copies, for lying where real slices do "
            "and for its class, in folders for this toolkit and ImageFolder, with manifest, checksums and datasheet")
    p = commands.add_parser("release", parents=parents, help=line, description=line)
    p.add_argument("--number", type=whole(1, MAX_NUMBER), metavar="N",
                   help="slices of each class (default 100), or of each row of --like (default 1)")
    p.add_argument("--like", metavar="TABLE.csv",
                   help="slices for each row of a table with columns that the model is told; its values stand in "
                        "manifest.csv, so give one whose rows may be shared")
    p.add_argument("--terms", metavar="FILE",
                   help="text for the datasheet: whose the source data are, consent, terms of use; may be given later")
    p.set_defaults(noise=None)


def add_report(commands) -> None:
    """The subcommand `report` and its flags."""
    line = "one self-contained HTML page about runs: curves, samples over time, figures, configuration, cost"
    p = commands.add_parser("report", help=line, description=line)
    p.add_argument("run", nargs="+", metavar="RUN", help="run directories")
    p.add_argument("--out", metavar="FILE", help="HTML file (default report.html in the first run)")


def add_film(commands) -> None:
    """The subcommand `film` and its flags."""
    line = "the samples of a run over its training, as a GIF and, with imageio-ffmpeg, an MP4; works while it trains"
    p = commands.add_parser("film", help=line, description=line)
    p.add_argument("--run", required=True, help="run directory")
    out_flags(p, "named by the last kimg")
    p.add_argument("--fps", type=whole(1, 50), default=5, help="frames per second (default %(default)s)")


def add_card(commands) -> None:
    """The subcommand `card` and its flags."""
    line = "a model card in the form of the Hugging Face Hub, beside a run's weights: use, data, figures, limits"
    p = commands.add_parser("card", help=line, description=line)
    p.add_argument("run", metavar="RUN", help="run directory")
    p.add_argument("--out", metavar="FILE", help="Markdown file (default README.md in the run)")


def add_explore(commands) -> None:
    """The subcommand `explore` and its flags."""
    line = "a page on this machine alone: sliders, and the picture that they make beside its nearest training slice"
    p = commands.add_parser("explore", help=line, description=line + "; writes nothing, Ctrl-C ends it")
    p.add_argument("run", metavar="RUN", help="run directory, or a weights.safetensors file")
    p.add_argument("--at", default="last", metavar="best|last|KIMG", help="which weights of the run (default "
                                                                          "%(default)s)")
    p.add_argument("--data", metavar="SPEC", help="real slices (default: what the run was trained on)")
    p.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                   help="auto is a GPU where there is one (default %(default)s)")
    p.add_argument("--port", type=whole(0, 65535), default=0, help="port here (default: a free one)")
    p.set_defaults(weights=None, precision="fp32", batch=1, square=False)


def add_plot(commands) -> None:
    """The subcommand `plot` and its flags."""
    line = "loss curves from metrics.jsonl, of one run or of several over each other; works while they train"
    p = commands.add_parser("plot", help=line, description=line)
    p.add_argument("--run", action="append", required=True, help="run directory; give it again to compare runs")
    p.add_argument("--out", metavar="FILE",
                   help="x.png, x.pdf or x.svg (default RUN/plots/losses.png; of several runs "
                        "plots/losses-compared.png in the first)")
    p.add_argument("--from-kimg", type=number, default=0.0, metavar="KIMG", help="leave out what came before")
    p.add_argument("--to-kimg", type=number, default=math.inf, metavar="KIMG", help="leave out what came after")
# fmt: on


def command_line(about: str, kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser, with all subcommands; `about` is what --help says first."""
    parser = kind(prog="predict.py", description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model, of_class, gan = model_flags(), class_flag(), gan_flags()
    diffuse, calls = diffusion_flags(), diffusion_flags("--calls")
    add_generate(commands, [model, of_class, gan, diffuse])
    add_denoise(commands, [model, of_class, diffuse])
    add_mix(commands, [model, of_class, gan])
    add_interpolate(commands, [model, of_class, gan, calls])
    no_slices, data, features = model_flags(pictures=False), data_flag(), feature_flag()
    add_reconstruct(commands, [model])
    add_evaluate(commands, [model, of_class, gan, diffuse, data, features])
    add_tsne(commands, [no_slices, of_class, gan, diffuse, data, features])
    add_project(commands, [model, data])
    add_direction(commands, [model, calls, data, features])
    add_export(commands, [model_flags(runs=False)])
    add_release(commands, [model_flags(verify=True), of_class, gan, diffuse, data, features])
    add_plot(commands)
    add_report(commands)
    add_card(commands)
    add_film(commands)
    add_explore(commands)
    return parser


def changed(args: argparse.Namespace) -> dict[str, object]:
    """{flag without its dashes: value} of what is asked for otherwise than by default, in the order of --help."""
    (commands,) = (action.choices for action in command_line("")._actions if isinstance(action.choices, dict))
    flags = [a for a in commands[args.command]._actions if a.option_strings]  # argparse has no public list of them
    found = {a.option_strings[-1].lstrip("-"): (getattr(args, a.dest, a.default), a.default) for a in flags}
    return {flag: value for flag, (value, default) in found.items() if value != default and flag != "help"}


def parse_args(about: str, argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong flag prints the usage and one line, and exits with code 2."""
    return command_line(about).parse_args(argv)
