"""Everything one does with a trained model: pictures, films, what is in its latents, and how good it is.

    python predict.py generate --run runs/stylegan2-1a2b3c4d --number 64          any number; an interrupted one goes on
    python predict.py generate --run runs/diffusion-1a2b3c4d --class AD --guidance 1.5 --steps 10
    python predict.py generate --run RUN --seeds 3,17,40-50 --format nifti        of named seeds; other formats
    python predict.py interpolate --run RUN                                       a film through latents
    python predict.py mix --run RUN --rows 4 --cols 6 --styles coarse             StyleGAN2
    python predict.py project --run RUN                                           StyleGAN2: real slices in W+
    python predict.py direction --run RUN --from AD --to NC                       StyleGAN2, diffusion
    python predict.py denoise --run RUN                                           diffusion
    python predict.py explore RUN                                                 a page with sliders, until Ctrl-C
    python predict.py reconstruct --run runs/vae-1a2b3c4d                         VAE: PSNR and SSIM by subject
    python predict.py tsne --run RUN                                              features or latents on a plane
    python predict.py evaluate --run RUN --number 5000                            how good, how varied, copied or not
    python predict.py export --run RUN --format onnx                              ONNX, torch.export, diffusers
    python predict.py release --run RUN --number 500                              a screened cohort to share
    python predict.py plot --run RUN_A --run RUN_B                                losses, also while runs train
    python predict.py film --run RUN                                              its samples over its training
    python predict.py report RUN_A RUN_B                                          one HTML page about runs
    python predict.py card RUN                                                    a model card beside the weights

--weights FILE does instead of --run. The latent of picture i is a function of (seed, i) alone: the same in every
subcommand and in every batch. A weights file is read as data, nothing in it is ever executed.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("predict.py needs Python 3.11 or newer; this is " + sys.version.split()[0])

import argparse
import os
import signal
from functools import partial

from data.files import say
from data.installed import need
from jobs.predict.flags import parse_args

if __name__ == "__main__":
    ARGS = parse_args(__doc__)  # before torch, which takes seconds to import: --help and wrong flags answer at once
    need("numpy", "PIL", "matplotlib")
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is open yet

from data.walk import DataError
from jobs.config.specs import ConfigError
from jobs.predict import pages
from jobs.predict.card import card
from jobs.predict.film import film
from jobs.predict.named import UsageError
from jobs.predict.output import output_of
from jobs.predict.verify import verify
from jobs.run import faults, stopping

PAGES = {  # of what runs have written: no model, and no torch
    "plot": lambda args: pages.plot(args.run, args.out, from_kimg=args.from_kimg, to_kimg=args.to_kimg),
    "card": lambda args: card(args.run, args.out),
    "film": lambda args: film(args.run, partial(output_of, args), fps=args.fps),
    "report": lambda args: pages.report(args.run, args.out),
    "release": lambda args: verify(args.verify),
}


def is_page(args: argparse.Namespace) -> bool:
    """Whether the command needs no model: of `release` to check one alone."""
    return args.command in PAGES and getattr(args, "verify", "") is not None


def run(args: argparse.Namespace) -> int | None:
    """Run the command that `args` name; an exit code where it has one of its own."""
    if is_page(args):
        return PAGES[args.command](args)
    from jobs.predict import commands  # torch takes seconds to import, and half a gigabyte

    if args.command == "explore":
        args.announce = tell_page
    commands.run(args)
    return None


def tell_page(port: int, path: str) -> None:
    """Where the page of explore is, also from another computer."""
    from jobs.cluster import serve, show

    show.say_tunnel(serve.site_here(), str(port), "The page", 6007, path)


def main(args: argparse.Namespace) -> int:
    """Run one command; what it raises becomes one plain line and an exit code."""
    try:
        return run(args) or stopping.DONE
    except KeyboardInterrupt as error:
        say(f"interrupted; {str(error) or 'the same command goes on or starts again'}", sys.stderr)
        return 130
    except (UsageError, ConfigError, DataError) as error:
        text, code = str(error), stopping.USAGE if isinstance(error, UsageError) else stopping.BAD
    except stopping.PeerLost as error:
        text, code = str(error), stopping.TRANSIENT
    except faults.GpuFault as error:
        text, code = str(error), error.exit_code
    except RuntimeError as error:
        fault = faults.named(error, lambda: f"it does not hold {args.batch} pictures at once; use a smaller --batch")
        if fault is None:
            raise
        text, code = str(fault), fault.exit_code
    except OSError as error:
        what = f"{error.filename or args.command}: {error.strerror or error}"
        text, code = f"{what}; check the path, its permissions and the free space", stopping.BAD
    say(f"error: {text}", sys.stderr)
    return code


if __name__ == "__main__":
    if not is_page(ARGS):
        need("torch", "safetensors")
        import jobs.predict.commands  # noqa: F401
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(ARGS))
