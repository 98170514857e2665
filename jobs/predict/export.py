"""`export`: the networks of a model in forms that other tools load, checked against predict.py's own before they are
kept.

torch: programs of torch.export, which torch alone runs. onnx: for ONNX Runtime and what reads ONNX. diffusers: the
folder of jobs/predict/diffusers_folder.py. All are fp32, of a batch of any size, and give the training square.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data.files import plain, say, words
from jobs.config.specs import ConfigError
from jobs.predict import diffusers_folder
from jobs.predict.autoencoder import VaeModel
from jobs.predict.denoiser import DiffusionModel
from jobs.predict.gan import GanModel
from jobs.predict.named import UsageError
from jobs.predict.output import Output
from jobs.predict.trained import Trained
from models.stylegan2 import Generator
from models.vae import VAE, LatentScale

CHECKS = ((0, 1), (1, 3), (2, 4))  # (seed, pictures) that are compared
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "diffusers": ("diffusers",)}
TOLERANCE = 1e-3  # of the largest value: of images in -1..1 an eighth of one of 256 greys


# --- what is exported -------------------------------------------------------------------------------------------------
class Pictures(nn.Module):
    """A generator with its fixed noise. z (B, z_dim), labels (B,) int64 where there are classes, truncation () ->
    images (B, C, R, R) in -1..1."""

    def __init__(self, G: Generator):
        super().__init__()
        self.G = G

    def forward(self, z: Tensor, truncation: Tensor, labels: Tensor | None = None) -> Tensor:
        """As Generator.forward, but with truncation as a tensor, which needs no branch."""
        centre = self.G.centre(labels)
        ws = self.G.broadcast(self.G.mapping(z, labels))
        return self.G.synthesis(centre + truncation * (ws - centre)).clamp(-1, 1)


class Decoder(nn.Module):
    """Latents (B, c, h, w) as the denoising network makes them -> images (B, C, R, R) in -1..1."""

    def __init__(self, scale: LatentScale | None, decoder: nn.Module | None):
        super().__init__()
        self.scale, self.decoder = scale, decoder

    def forward(self, latents: Tensor) -> Tensor:
        """The scale of the latents undone, then the decoder of the VAE, as far as there are such."""
        x = latents if self.scale is None else self.scale.restore(latents)
        return (x if self.decoder is None else self.decoder(x)).clamp(-1, 1)


class Encoder(nn.Module):
    """Images (B, C, R, R) in -1..1 -> means of the posterior (B, c, h, w)."""

    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, images: Tensor) -> Tensor:
        """VAE.encode without its log-variances."""
        return self.vae.encode(images)[0]


@dataclass(frozen=True)
class Part:
    """One network of a model, as a function of tensors by name. What has no rows (truncation) has the shape ()."""

    name: str
    module: nn.Module
    examples: Callable[[int, int], dict[str, Tensor]]  # (seed, pictures) -> inputs
    own: Callable[..., Tensor]  # what predict.py computes of the same inputs
    output: str


def parts_of(model: Trained) -> list[Part]:
    """The networks of a model."""
    if isinstance(model, GanModel):
        return [generator_part(model)]
    if isinstance(model, DiffusionModel):
        return [denoiser_part(model), decoder_part(model)]
    assert isinstance(model, VaeModel)
    vae, shape = model.vae, (model.channels, model.resolution, model.resolution)
    latents = (vae.latent_channels, *(side // vae.down for side in shape[1:]))

    def own_latents(images: Tensor) -> Tensor:
        return vae.encode(images)[0]

    def own_images(latents: Tensor) -> Tensor:
        return model.decode(latents) * 2 - 1

    return [
        Part("encoder", Encoder(vae), noise_of("images", shape), own_latents, "latents"),
        Part("decoder", Decoder(None, vae.decoder), noise_of("latents", latents), own_images, "images"),
    ]


def noise(seed: int, number: int, shape: tuple[int, ...]) -> Tensor:
    """(number, *shape) standard normal."""
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(seed))


def noise_of(name: str, shape: tuple[int, ...]) -> Callable[[int, int], dict[str, Tensor]]:
    """Examples of a network with one input."""
    return lambda seed, number: {name: noise(seed, number, shape)}


def generator_part(model: GanModel) -> Part:
    """z, truncation and, with classes, labels to images."""

    def examples(seed: int, number: int) -> dict[str, Tensor]:
        rows = list(range(number))
        inputs = {"z": model.draw_z(seed, rows), "truncation": torch.tensor(1.0 - 0.3 * (seed % 2))}
        labels = model.labels("all", rows)
        return inputs if labels is None else inputs | {"labels": labels}

    def own(z: Tensor, truncation: Tensor, labels: Tensor | None = None) -> Tensor:
        return model.G(z, labels, truncation=float(truncation)).clamp(-1, 1)

    return Part("generator", Pictures(model.G), examples, own, "images")


def denoiser_part(model: DiffusionModel) -> Part:
    """x, t in 0..1 and, with classes, labels to the target of training."""
    net = model.net

    def examples(seed: int, number: int) -> dict[str, Tensor]:
        inputs = {"x": noise(seed, number, net.shape), "t": noise(seed, number, ()).sigmoid()}
        labels = model.labels("all", list(range(number)))
        return inputs if labels is None else inputs | {"labels": labels}

    return Part("denoiser", net.unet, examples, net.unet, "prediction")


def decoder_part(model: DiffusionModel) -> Part:
    """Clean samples of the denoising network to images."""
    net = model.net

    def own(latents: Tensor) -> Tensor:
        x = net.scale.restore(latents)
        return (x if net.decoder is None else net.decoder(x)).clamp(-1, 1)

    module = Decoder(net.scale, net.decoder)
    return Part("decoder", module, noise_of("latents", net.shape), own, "images")


# --- the forms --------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def quiet():
    """Without the notes of exporters, which are for their authors."""
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def program_of(part: Part) -> torch.export.ExportedProgram:
    """The network as a program of torch.export, of a batch of any size. ConfigError where this torch cannot."""
    examples = part.examples(0, 2)
    rows = torch.export.Dim("batch")
    dynamic = {name: {0: rows} if value.ndim else {} for name, value in examples.items()}
    try:
        with quiet():
            module = part.module.eval()
            return torch.export.export(module, (), kwargs=examples, dynamic_shapes=dynamic, strict=False)
    except Exception as error:  # of another kind in every version
        why = plain(words(error))[:200]
        raise ConfigError(
            f"torch {torch.__version__} cannot export the {part.name} ({why}); use a newer torch"
        ) from error


def write_torch(part: Part, folder: Path) -> float:
    """NAME.pt2, for torch.export.load. Returns the largest difference to predict.py's own outputs."""
    path = folder / f"{part.name}.pt2"
    with quiet():
        torch.export.save(program_of(part), path)
        again = torch.export.load(path).module()
    return difference(part, lambda inputs: again(**inputs))


def write_onnx(part: Part, folder: Path) -> float:
    """NAME.onnx, for ONNX Runtime. Returns the largest difference to predict.py's own outputs."""
    import onnxruntime

    path, program, examples = folder / f"{part.name}.onnx", program_of(part), part.examples(0, 2)
    try:
        with quiet():
            torch.onnx.export(
                program, (), path, kwargs=examples, input_names=list(examples), output_names=[part.output],
                dynamic_shapes={name: {0: "batch"} if value.ndim else {} for name, value in examples.items()},
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as error:  # of another kind in every version
        why = plain(words(error))[:200]
        raise ConfigError(f"torch {torch.__version__} cannot write the {part.name} as ONNX ({why}); use a newer torch "
                          "and onnxscript, or --format torch") from error  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return difference(
        part, lambda inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])
    )


def difference(part: Part, exported: Callable[[dict[str, Tensor]], Tensor]) -> float:
    """The largest difference of an exported network's outputs to predict.py's own, over seeds, classes and sizes of
    batch."""
    found = []
    with torch.inference_mode():
        for key in CHECKS:
            inputs = part.examples(*key)
            found.append(gap(exported(inputs), part.own(**inputs)))
    return check(part.name, found)


def gap(theirs: Tensor, own: Tensor) -> float:
    """The largest difference, as a share of the largest value where that is above 1."""
    return float((theirs - own).abs().max()) / max(1.0, float(own.abs().max()))


def check(what: str, found: list[float]) -> float:
    """The largest of some differences. ConfigError where it is too large, or no number."""
    largest = max(found, key=lambda value: (value != value, value))
    if not largest <= TOLERANCE:
        raise ConfigError(f"the exported {what} differs from predict.py's own by {largest:.2g} of the largest "
                          "value, so nothing is kept; use another --format, or another version of torch")  # fmt: skip
    return largest


def require(form: str) -> None:
    """ConfigError where a package is missing that a form needs, and nothing else does."""
    missing = [name for name in PACKAGES.get(form, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"--format {form} needs {', '.join(missing)}, which nothing else does: "
                          f"pip install {' '.join(missing)}")  # fmt: skip


# --- the command ------------------------------------------------------------------------------------------------------
def export(model, out: Output, form: str) -> None:
    """Write the networks of a model in one of the forms, with FORM.json that says what goes in and comes out.

    Files get their names only when all of them have passed the check. ConfigError, and nothing is left, where one does
    not; UsageError where the form is not for this kind of model.
    """
    if form == "diffusers":
        if not isinstance(model, DiffusionModel):
            raise UsageError(f"--format diffusers: {diffusers_folder.why_not(model)}; use --format onnx or torch")
        if found := diffusers_folder.obstacles(model):
            raise ConfigError(f"--format diffusers: {found}; use --format onnx or torch")
    require(form)
    settings = {"format": form, "weights_sha256": model.sha256}
    new = [path for path in (out.folder, *out.folder.parents) if not path.exists()]
    try:
        out = out.claim(model.nimg, settings)
        with tempfile.TemporaryDirectory(prefix=".export.", dir=out.folder) as staged:
            folder = Path(staged) / "new"
            folder.mkdir()
            if form == "diffusers":
                largest, networks = write_diffusers(model, folder / "diffusers"), {}
            else:
                parts = parts_of(model)
                write = write_onnx if form == "onnx" else write_torch
                largest = max([write(part, folder) for part in parts])
                networks = {part.name: shapes(part) for part in parts}
            names = sorted(path.name for path in folder.iterdir())
            for name in names:
                if (out / name).is_dir():  # of before; goes with the staging
                    os.replace(out / name, Path(staged) / f"old-{name}")
                os.replace(folder / name, out / name)
    except BaseException:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()
        raise
    facts = {"networks": networks, "largest_difference": largest, "torch": torch.__version__}
    out.json(f"{form}.json", model, settings, **facts)
    if form == "diffusers" and model.net.decoder is not None:
        difference = diffusers_folder.autoencoder_difference(model.net.decoder)
        say(f"no vae/: {difference}; decoder.pt2 is a program of torch.export instead")
    out.tell(model, f"{form}, equal to predict.py's own within {largest:.1g},", *names, f"{form}.json")


def write_diffusers(model: DiffusionModel, folder: Path) -> float:
    """The folder of jobs/predict/diffusers_folder.py, and the decoder, which diffusers does not have, beside the
    U-Net."""
    folder.mkdir()
    largest = write_torch(decoder_part(model), folder)
    with quiet():
        return max(largest, check("folder", [gap(*pair) for pair in diffusers_folder.write(model, folder, noise)]))


def shapes(part: Part) -> dict[str, dict]:
    """{inputs, outputs: {name: type and shape}}, `batch` for the rows."""
    with torch.inference_mode():
        inputs = part.examples(0, 2)
        output = part.own(**inputs)

    def of(t: Tensor) -> list:
        return [str(t.dtype).removeprefix("torch."), *(["batch"] if t.ndim else []), *t.shape[1:]]

    return {"inputs": {name: of(t) for name, t in inputs.items()}, "outputs": {part.output: of(output)}}
