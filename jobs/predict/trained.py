"""A trained model: what its weights file says, how it is opened, and what all kinds have in common.

The latent of picture i is a function of (seed, i) alone: the same in every command and in every batch. A weights file
is read as data, nothing in it is ever executed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from data.batches import to_uint8
from data.columns import Column
from data.files import is_number, sha256_of
from data.packfile import check_geometry, odd_class, restore
from data.volumes import PLANES
from data.walk import DataError
from jobs.config import kinds
from jobs.config.specs import ConfigError
from jobs.predict.conditions import (
    Asked,
    caption,
    class_named,
    only_class,
    parse_row,
    read_about,
    rows_of,
    say_once,
    told_of,
)
from jobs.predict.named import UsageError, weights_of
from jobs.training import devices, randomness
from jobs.training.weights import WeightsError, check_header, read_weights
from models import loading


@dataclass(frozen=True)
class Flag:
    """A flag of predict.py that only some kinds of model have."""

    name: str
    place: str  # in the parsed arguments
    argument: str = ""  # of `sample`, where that takes it
    unset: object = None


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a weights file says of its network, and how to run it. `load` makes one."""

    KIND: ClassVar[str]  # what a person calls such a model
    FLAGS: ClassVar[tuple[Flag, ...]] = ()

    job: str
    path: str
    sha256: str  # of the weights file
    config: dict  # of the run, as its file has it
    classes: list[str]  # [] where the network is not conditional
    geometry: dict  # for data.packfile.restore; {} where pictures stay square
    nimg: int
    measured: dict  # {figure: value} of these weights while they trained; {} where they were not picked by one
    columns: Sequence[Column] = ()  # what the network is told of a slice, where that is more than its class
    spacing: float = 0.0  # mm per pixel of the slices at their own size, 0 where the data did not say
    plane: str = ""  # of volumes that the slices were cut in; '' where nobody says
    floats: bool = False  # pictures are float32 in 0..1, as the network draws them, not uint8
    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1  # pictures per pass

    @property
    def resolution(self) -> int:
        """Side of the training square in pixels."""
        return self.config["resolution"]

    @property
    def channels(self) -> int:
        """1 (grey) or 3."""
        return self.config["channels"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the pictures."""
        g = self.geometry
        return (g["source_height"], g["source_width"]) if g else (self.resolution, self.resolution)

    @property
    def seen(self) -> str:
        """`24 kimg`, and the figure that picked these weights, if one did."""
        figures = "".join(f", {name} {value:.3g}" for name, value in self.measured.items())
        return f"{self.nimg / 1000:g} kimg{figures}"

    @property
    def about(self) -> dict:
        """What every file of settings says of the model: with other values the pictures are others."""
        height, width = self.size
        precision = str(self.dtype).removeprefix("torch.")
        return {"weights_sha256": self.sha256, "size": f"{width}x{height}", "precision": precision}

    def autocast(self) -> contextlib.AbstractContextManager:
        """The type that its networks run in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def restored(self, images: torch.Tensor) -> np.ndarray:
        """Pictures (B, C, R, R) in -1..1 as uint8 (B, C, H, W), or floats where they were asked for."""
        if self.floats:
            return self.original(((images.detach().float().clamp(-1, 1) + 1) / 2).cpu().numpy())
        return self.original(to_uint8(images).cpu().numpy())

    def original(self, squares: np.ndarray) -> np.ndarray:
        """Pictures (B, C, R, R) at the slices' own size, (B, C, H, W); the same of a model that keeps squares."""
        return restore(squares, self.geometry) if self.geometry else squares

    @staticmethod
    def stream(seed: int | None, index: int, purpose: str) -> torch.Generator:
        """The randomness of picture `index` of a seed; without a seed `index` is one, of which this is picture 0."""
        return randomness.generator(*((index, 0) if seed is None else (seed, index)), purpose)

    def squared(self) -> Any:
        """The same model, whose pictures keep the training square: what is measured is measured there."""
        return replace(self, geometry={})

    def unrounded(self) -> Any:
        """The same model, whose pictures are float32 in 0..1: `sample` and others then return the network's own
        values."""
        return replace(self, floats=True)

    def labels(self, label: Asked, indices: Sequence[int]) -> torch.Tensor | None:
        """What the network is told of the pictures `indices`: labels (B,) int64, or values (B, columns) float32; None
        where it is not conditional.

        `label`: a class by name or number, or `all`, which takes the classes in turn; {column: value}, in which what is
        left out is unknown; or several such rows, which are taken in turn. UsageError where there is no such.
        """
        if self.columns:
            rows = rows_of(label, self.classes)
            told = {i: parse_row(rows[i], self.columns, say_once) for i in {i % len(rows) for i in indices}}
            return torch.tensor([told[i % len(rows)] for i in indices], dtype=torch.float32)
        if not isinstance(label, str):
            label = only_class(label, self.classes)
        if label == "all":
            return torch.tensor([i % len(self.classes) for i in indices]) if self.classes else None
        if not self.classes:
            raise UsageError(f"--class {label}: this model was trained without classes; leave --class out")
        name = class_named(label, self.classes)
        if name not in self.classes:
            names = ", ".join(f"{name} ({i})" for i, name in enumerate(self.classes))
            raise UsageError(f"--class {label}: no such class; choose all, {names}")
        return torch.full((len(indices),), self.classes.index(name))

    def known(self, label: Asked, indices: Sequence[int]) -> list[str] | None:
        """What the network is told of each picture, in a few letters; None where it is not conditional."""
        labels = self.labels(label, indices)
        if labels is None:
            return None
        if self.columns:
            return [caption(row, self.columns) for row in labels.tolist()]
        return [self.classes[k] for k in labels.tolist()]

    def captions(self, label: Asked, indices: Sequence[int]) -> list[str]:
        """One caption each: 7 AD, or 7 without classes."""
        known = self.known(label, indices) or [""] * len(indices)
        return [f"{i} {text}".rstrip() for i, text in zip(indices, known, strict=True)]

    def features(self, images: np.ndarray, *, feature_weights: str = "", data: str = "") -> np.ndarray:
        """uint8 (B, C, R, R) slices at the training resolution -> features (B, D) fp32 that `evaluate` measures with.

        feature_weights: a state dict to measure with; without it the small encoder of the training slices (`data`, else
        what the run was trained on), which is trained once, in minutes, and kept beside their pack.
        """
        from jobs.predict.features import features_of

        return features_of(self, images, feature_weights=feature_weights, data=data)


def load(
    run: str | Path,
    *,
    at: str | float = "last",
    device: str = "auto",
    precision: str = "fp32",
    batch: int = 32,
    square: bool = False,
) -> Any:
    """The model of a run (name, beginning of a name, path or job id), or of a weights.safetensors file.

    at: which weights of the run: last, best, or the kimg of some that --keep-weights kept. device: auto, cpu or cuda.
    precision: fp32, bf16, fp16, or auto. batch: pictures per pass on a GPU. square: keep the training square instead of
    the slices' own size. Returns a GanModel, DiffusionModel or VaeModel. Raises ConfigError, one line that names the
    fix.
    """
    return open_model(
        weights_of(run, at if isinstance(at, str) else f"{at:.10g}"),
        device=device,
        precision=precision,
        batch=batch,
        square=square,
    )


def open_model(
    path: Path,
    *,
    device: str | torch.device = "auto",
    precision: str = "fp32",
    batch: int = 32,
    square: bool = False,
    jobs: Sequence[str] = (),
) -> Any:
    """The model in a weights file, of one of the `jobs` where some are named. ConfigError on anything else;
    GpuFault where a GPU was given or asked for and cannot be used."""
    if device == "cuda" and not torch.cuda.is_available() and not devices.gpu_given():
        raise ConfigError("--device cuda: this machine has no GPU that torch can use; use --device cpu")
    if isinstance(device, str):
        device = devices.own_device(device)
    dtype = devices.precision_dtype(precision, device)
    # How a CPU's matrix products round depends on the number of rows. One at a time is hardly slower there, and makes
    # every picture the same bits in whatever company it is generated.
    return read_model(path, device, jobs=jobs, dtype=dtype, batch=1 if device.type == "cpu" else batch, square=square)


def read_model(
    path: Path,
    device: torch.device,
    *,
    jobs: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
    square: bool = False,
) -> Any:
    """Read a model from its weights file. Raises ConfigError, one line, on anything that is not one of the `jobs`.

    Whatever sizes the file claims, nothing is allocated unless the file itself is about as large.
    """
    tensors, about, sha256 = read_snapshot(Path(path))
    job, config = str(about.get("job")), about["config"]
    if job not in (jobs or kinds.JOBS) or job not in kinds.JOBS:
        known = f"; with such a model: {', '.join(kinds.JOBS[job].predicts)}" if job in kinds.JOBS else ""
        wanted = " or ".join(f"a {name}" for name in jobs or kinds.JOBS)
        raise ConfigError(f"{path}: weights of a {job!r} job; this command needs those of {wanted} run{known}")
    classes, geometry, nimg = checked_about(path, about)
    conditional = config.get("conditional") is True
    try:
        config = config | {name: loading.bounded(config, name, 1 << 20) for name in ("resolution", "channels")}
        about = about | {"config": config}
        kind: Any = kinds.JOBS[job].model()
        columns = read_about(about.get("conditions"))
        networks = kind.networks(tensors, about, told_of(columns, classes, conditional), device)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if geometry and geometry["resolution"] != config["resolution"]:
        raise ConfigError(f"{path}: its geometry is not that of its network; copy the file again from the run")
    return kind(
        job=job,
        path=str(path),
        sha256=sha256,
        config=config,
        classes=classes if conditional else [],
        geometry={} if square else geometry,
        nimg=nimg,
        measured=measured_of(about),
        columns=columns,
        spacing=spacing_of(about, square),
        plane=plane_of(about),
        device=device,
        dtype=dtype,
        batch=batch,
        **networks,
    )


def read_snapshot(path: Path) -> tuple[dict, dict, str]:
    """(tensors, about, SHA-256) of one version of the file: a run that still trains replaces it now and then."""
    for _ in range(5):
        try:
            check_header(path)  # before a file of any size is hashed
            before = sha256_of(path)
            tensors, about = read_weights(path)
            if sha256_of(path) == before:
                return tensors, about, before
        except (WeightsError, OSError) as error:
            raise ConfigError(" ".join(str(error).split())) from None
    raise ConfigError(f"{path}: changes all the time; copy it and use --weights")


def checked_about(path: Path, about: dict) -> tuple[list[str], dict, int]:
    """(classes, geometry, nimg) of a weights file that may be a stranger's."""
    classes, geometry, nimg = about.get("classes"), about.get("geometry") or {}, about.get("nimg")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or odd_class(classes):
        raise ConfigError(f"{path}: its list of classes is malformed; copy the file again from the run")
    try:
        if geometry:
            check_geometry(geometry)
    except DataError as error:
        raise ConfigError(f"{path}: {error}; copy the file again from the run") from None
    return classes, geometry, int(nimg) if type(nimg) is int and is_number(nimg) else 0


def spacing_of(about: dict, square: bool) -> float:
    """Mm per pixel of the pictures, from a file that may be a stranger's; 0 where it does not say."""
    mm, geometry = about.get("spacing"), about.get("geometry") or {}
    if not is_number(mm) or not 0 < mm <= 100:
        return 0.0
    return mm * ((geometry["crop"] or geometry["square"]) / geometry["resolution"] if square and geometry else 1)


def plane_of(about: dict) -> str:
    """One of PLANES: what the pack says, else (of files before packs did) what the run was told; else ''."""
    said = (str(place.get("plane")) for place in (about, about["config"]))
    return next((plane for plane in said if plane in PLANES), "")


def measured_of(about: dict) -> dict:
    """The figure that picked these weights, of a file that may be a stranger's: a known column and a number."""
    found = about.get("measured")
    known = {c.name for c in kinds.known_columns() if c.judges}
    return {k: v for k, v in found.items() if k in known and is_number(v)} if isinstance(found, dict) else {}
