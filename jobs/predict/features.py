"""Real slices, and the features that generated and real ones are compared by."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data.files import say, sha256_of
from data.pack import ensure_pack
from data.packfile import Pack
from data.records import Choices
from jobs.config.specs import ConfigError
from jobs.predict.conditions import Asked
from jobs.predict.named import UsageError
from jobs.predict.trained import Trained
from jobs.predict.unfinished import UnfinishedEncoder
from jobs.training import collectives, ranks
from jobs.training.weights import WeightsError, read_weights, write_weights
from jobs.view.progress import counted
from models import encoder, quality
from models.encoder import load_pretrained

MEASURE_CHUNK = 50  # slices of which features are made at once, for any number of ranks
MEASURE_BATCH = 10  # of a chunk, per pass on a CPU
MIN_HELDOUT = 20

Images = Callable[[Sequence[int]], torch.Tensor]  # indices -> uint8 (B, C, R, R)
Network = tuple[torch.nn.Module, str]  # uint8 (B, C, R, R) -> (B, D), and its name


@dataclass(frozen=True)
class Reference:
    """What to measure against, and with what: real slices (default: what the run was trained on) and feature
    weights."""

    data: str = ""
    feature_weights: str | None = None


@dataclass(frozen=True)
class RealSlices:
    """The training split and the held-out one, at the model's resolution."""

    train: Pack
    heldout: Pack

    @property
    def digest(self) -> str:
        """64 letters of both."""
        return self.train.digest[:32] + self.heldout.digest[:32]

    def labels(self, pack: Pack) -> torch.Tensor:
        """(N,) int64 classes of a pack's slices."""
        return torch.from_numpy(np.array(pack.labels))

    def subjects(self, pack: Pack) -> torch.Tensor:
        """(N,) int64: the same number for slices of one subject; a slice of an unknown one is its own."""
        numbers: dict[str, int] = {}
        keys = [subject or f"slice {name}" for subject, name in zip(pack.subjects, pack.names, strict=True)]
        return torch.tensor([numbers.setdefault(key, len(numbers)) for key in keys])

    def about(self) -> dict:
        """Which real slices the figures are about."""
        sides = {"train": self.train, "heldout": self.heldout}
        return {
            name: {
                "slices": len(p),
                "subjects": len(set(p.subjects) - {""}),
                "describe": p.meta["describe"],
                "digest": p.digest,
            }
            for name, p in sides.items()
        }


def told_apart(pack: Pack) -> str:
    """Whom the split kept on one side, as Source.describe says it: patient, scan, or '' where no name told."""
    found = re.search(r" of [\d,]+ (patient|scan)s", str(pack.meta["describe"]).partition(":")[2])
    return found[1] if found else ""


def data_of(model: Trained, data: str) -> str:
    """`data`, else what the run was trained on. UsageError where neither is known."""
    spec = data or model.config.get("data")
    if not isinstance(spec, str) or not spec or "\0" in spec:
        raise UsageError(f"{model.path} does not say what it was trained on; name the real slices with --data")
    return spec


def shape_of(model: Trained) -> dict:
    """What ensure_pack needs to make slices as the model was trained on."""
    crop = model.config.get("crop")
    choices = Choices.of(model.config)
    side = crop if isinstance(crop, int) else 0
    told = model.config.get("condition")
    shape = dict(resolution=model.resolution, channels=model.channels, crop=side, choices=choices)
    return shape | ({"condition": told} if isinstance(told, str) and told else {})


def open_data(model: Trained, data: str = "", say: Callable[[str], None] = say) -> RealSlices:
    """Both splits of `data`, or of what the run was trained on. ConfigError where nothing is held out."""
    spec = data_of(model, data)
    if spec.lower().endswith(".pack"):
        raise UsageError(f"{spec}: a pack holds one split; name the folder that it was packed from with --data")
    shape = shape_of(model)
    train, heldout = (ensure_pack(spec, split=s, log=say, progress=False, **shape) for s in ("train", "test"))
    if train.digest == heldout.digest:
        raise ConfigError(
            f"{spec} is one side of a split, so nothing is held out; name the folder above it with --data"
        )
    if len(heldout) < MIN_HELDOUT:
        raise ConfigError(f"{spec}: only {len(heldout)} held-out slices, and figures need {MIN_HELDOUT}; use more data")
    if model.classes and list(train.classes) != model.classes:
        raise ConfigError(
            f"{spec}: its classes are {', '.join(train.classes) or 'none'}, the model's {', '.join(model.classes)}; "
            "name the data that the model was trained on with --data"
        )
    return RealSlices(train, heldout)


def evenly(number: int, count: int) -> np.ndarray:
    """Up to `count` of the rows 0 .. number - 1, int64 (count,), evenly: over all patients, who lie in order."""
    return torch.linspace(0, number - 1, min(count, number)).round().long().numpy()


def rows_of(pack: Pack, rows) -> torch.Tensor:
    """uint8 (B, C, R, R) of the rows of a pack."""
    return torch.from_numpy(np.array(pack.images[rows]))


def given_features(feature_weights: str | None) -> Network | None:
    """The network in a file of feature weights; None without one. Read before anything that takes long."""
    if not feature_weights:
        return None
    try:
        network, name = load_pretrained(feature_weights)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return network, f"{name}, {Path(feature_weights).name} {sha256_of(feature_weights)[:12]}"


def open_features(given: Network | None, train: Pack, out: Path, rt: ranks.Runtime) -> Network:
    """The given ones, else of the encoder of these training slices, which rank 0 trains where there is none yet."""
    if given is not None:
        return given[0].to(rt.device), given[1]
    folder = Path(train.path).parent
    folder = folder if os.access(folder, os.W_OK) else out
    path = folder / f"encoder-v{encoder.VERSION}-{train.digest[:16]}.safetensors"
    shape = dict(
        channels=train.images.shape[1], size=encoder.encoder_size(train.images.shape[-1]), classes=len(train.classes)
    )
    network = read_encoder(path, shape, train.digest)
    if network is None and rt.rank == 0:
        say(f"training the feature encoder on {len(train):,} slices, once; it is kept as {path}")
        labels = torch.from_numpy(np.array(train.labels))
        unfinished = UnfinishedEncoder(path.with_suffix(".part"), shape | {"pack": train.digest, "seed": 0})
        with unfinished.interruptible():
            network = encoder.train_encoder(
                train.images,
                labels,
                shape["classes"],
                seed=0,
                device=rt.device,
                track=lambda steps: counted(steps, "feature encoder, steps", steps.start),
                unfinished=unfinished,
            )
            # Of two jobs that trained one at the same time all use the first one's: figures are of one encoder.
            first = read_encoder(path, shape, train.digest)
            if first is None:
                write_weights(path, {"encoder": network.state_dict()}, {"config": shape, "pack": train.digest})
            network = first or network
            unfinished.remove()
    elif network is None:
        ranks.wait_for(lambda: read_encoder(path, shape, train.digest), "rank 0 to train the feature encoder", 7200)
        network = read_encoder(path, shape, train.digest)
    assert network is not None
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
    rt: ranks.Runtime, network: torch.nn.Module, images_of: Images, count: int, what: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(features (count, D) fp32, thumbnails (count, C, s, s) uint8) of slices 0 to count-1, on every rank.

    Ranks take whole chunks in turn, and a chunk holds the same slices for any number of ranks, so the figures do not
    depend on it. Only the features and the thumbnails are kept. `what` is for the progress line; '' for none.
    """
    features = thumbs = None
    chunks = [range(i, min(i + MEASURE_CHUNK, count)) for i in range(0, count, MEASURE_CHUNK)]
    mine = chunks[rt.rank :: rt.world]
    for chunk in counted(mine, f"{what}, chunks") if what and rt.rank == 0 else mine:
        images = images_of(chunk)
        f, t = network(images), quality.thumbnails(images)
        if features is None or thumbs is None:
            features = torch.zeros(count, f.shape[1], device=rt.device)
            thumbs = torch.zeros(count, *t.shape[1:], dtype=torch.uint8, device=rt.device)
        features[chunk.start : chunk.stop] = f
        thumbs[chunk.start : chunk.stop] = t.to(rt.device)
    if features is None or thumbs is None:  # more ranks than chunks
        images = images_of(chunks[0])
        features = torch.zeros(count, network(images).shape[1], device=rt.device)
        thumbs = torch.zeros(count, *quality.thumbnails(images).shape[1:], dtype=torch.uint8, device=rt.device)
    return collectives.reduce_sum(rt, features), collectives.reduce_sum(rt, thumbs)


def generated(model, seed: int, label: Asked, how: dict) -> Images:
    """The generated slices by their indices; `how` as model.sample takes it."""
    if model.device.type == "cpu":  # chunks are the same for any --batch and any number of ranks: passes can be larger
        model = replace(model, batch=MEASURE_BATCH)
    return lambda indices: torch.from_numpy(model.sample(indices=list(indices), seed=seed, label=label, **how))


def features_of(model: Trained, images: np.ndarray, *, feature_weights: str = "", data: str = "") -> np.ndarray:
    """Features (B, D) fp32 of uint8 (B, C, R, R); see Trained.features."""
    rt = ranks.Runtime(0, 1, 0, model.device, torch.get_num_threads())
    given = given_features(feature_weights)
    if given is None:
        train = ensure_pack(data_of(model, data), split="train", progress=False, **shape_of(model))
        given = open_features(None, train, Path(train.path).parent, rt)
    network, _ = given
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    parts = [network.to(model.device)(part) for part in pixels.split(MEASURE_CHUNK)]
    return torch.cat(parts).float().cpu().numpy()
