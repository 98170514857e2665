"""Networks that turn slices into the feature vectors in which quality is measured.

`Encoder` is small and trained here, on the training slices themselves: contrastively (Chen 2020, SimCLR), and on the
classes where there are any. `Pretrained` runs an Inception, a ResNet or a DINO whose weights file the user has; nothing
is downloaded. Features of different networks, or of encoders of different data, are in different units and never
compared.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import vit

VERSION = 2  # of the encoder and its training: raise it when either changes
WIDTHS = (16, 32, 48, 64)  # of the four stages, each at half the size of the one before
MAX_SIZE = 128  # larger slices are averaged down to this many pixels
BATCH, LR = 64, 2e-3
EPOCHS, FEWEST_STEPS, MOST_STEPS = 6, 100, 1500  # how often each slice is seen, within these numbers of steps
TEMPERATURE = 0.2
SHIFT, CONTRAST, BRIGHTNESS = 0.06, 0.2, 0.1  # of the views; relative to the width, to 1, to the range
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """uint8 slices (B, C, R, R) -> (B, dim) features of mean 0 and deviation 1 over the training slices.

    Group norm, so that a slice's features do not depend on its batch. The features are the means over space of the
    third and the fourth stage: what the texture and what the anatomy is like.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, channels: int, size: int, classes: int):
        super().__init__()
        self.channels, self.size, self.classes = channels, size, classes
        self.dim = WIDTHS[2] + WIDTHS[3]
        before, stages = channels, []
        for i, width in enumerate(WIDTHS):
            convolution = nn.Conv2d(before, width, 5 if i == 0 else 3, 2, 2 if i == 0 else 1)
            stages.append(nn.Sequential(convolution, nn.GroupNorm(8, width), nn.SiLU()))
            before = width
        self.stages = nn.ModuleList(stages)
        self.projection = nn.Sequential(nn.Linear(self.dim, self.dim), nn.SiLU(), nn.Linear(self.dim, 64))
        self.classifier = nn.Linear(self.dim, classes) if classes else None
        self.register_buffer("mean", torch.zeros(self.dim))
        self.register_buffer("std", torch.ones(self.dim))

    def pooled(self, x: Tensor) -> Tensor:
        """x (B, C, size, size) in -1..1 -> (B, dim), not yet standardised."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x.mean((2, 3)))
        return torch.cat(maps[2:], 1)

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (B, C, R, R) -> float (B, C, size, size) in -1..1."""
        x = images.to(self.mean.device).float() / 127.5 - 1
        return x if x.shape[-1] == self.size == x.shape[-2] else F.adaptive_avg_pool2d(x, self.size)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, R, R) -> (B, dim) fp32. ValueError for another number of channels."""
        if images.dtype != torch.uint8 or images.shape[1] != self.channels:
            raise ValueError(
                f"the encoder takes uint8 with {self.channels} channels, got {images.dtype} {images.shape}"
            )
        return (self.pooled(self.prepare(images)) - self.mean) / self.std


def encoder_size(resolution: int) -> int:
    """Pixels at which slices of `resolution` are encoded."""
    return min(resolution, MAX_SIZE)


def steps_for(count: int) -> int:
    """Training steps for `count` slices: each is seen EPOCHS times; few slices are soon known, many need not all be."""
    return min(max(EPOCHS * count // BATCH, FEWEST_STEPS), MOST_STEPS)


States = dict[str, dict[str, Tensor]]  # part -> its tensors by name


class Unfinished(Protocol):
    """Where a training that was interrupted has left its state."""

    def load(self, steps: int) -> tuple[int, States] | None:
        """(steps done, state) of a training of so many steps; None to begin."""

    def after(self, done: int, steps: int, states: Callable[[], States]) -> None:
        """Called after every step; `states()` is what the next one depends on."""


def states_of(encoder: Encoder, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> States:
    """All that the next step depends on, beside the data and its number."""
    moments = {f"{i}.{k}": v for i, held in optimizer.state_dict()["state"].items() for k, v in held.items()}
    return {"encoder": encoder.state_dict(), "optimizer": moments, "draw": {"state": draw.get_state()}}


def restore(states: States, encoder: Encoder, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> None:
    """Take over what `states_of` gave."""
    encoder.load_state_dict(states["encoder"])
    held: dict[int, dict[str, Tensor]] = {}
    for name, value in states["optimizer"].items():
        number, _, key = name.partition(".")
        held.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})
    draw.set_state(states["draw"]["state"])


def train_encoder(
    images,
    labels: Tensor,
    classes: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    steps: int | None = None,
    track: Callable[[range], Iterable[int]] = iter,
    unfinished: Unfinished | None = None,
) -> Encoder:
    """An Encoder of uint8 images (N, C, R, R), an array or a memory map, with labels (N,) in 0..classes-1 or -1.

    A function of the data and the seed on one kind of machine, also where `unfinished` lets it go on after an
    interruption. `steps`: by default steps_for() the set. `track` wraps those that are to be done, a range, for a
    progress bar.
    Two views of each slice are to be recognised among those of the others. Views are moved, lit differently and have a
    part hidden; they are never turned, scaled, blurred or made noisy, as features must see all these.
    """
    steps = steps_for(len(images)) if steps is None else steps
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(channels=images.shape[1], size=encoder_size(images.shape[-1]), classes=classes).to(device)
    labels = labels.to(device)
    weights = class_weights(labels, classes) if classes else None
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=LR, weight_decay=1e-2)
    batch = min(BATCH, len(images))
    done, states = (unfinished and unfinished.load(steps)) or (0, None)
    if states is not None:
        restore(states, encoder, optimizer, draw)
    for step in track(range(done, steps)):
        for group in optimizer.param_groups:
            group["lr"] = LR * min((step + 1) / 50, (steps - step) / steps)
        rows = torch.randperm(len(images), generator=draw)[:batch]
        x = encoder.prepare(torch.from_numpy(images[rows.numpy()]))
        features = encoder.pooled(torch.cat([random_view(x, draw), random_view(x, draw)]))
        loss = contrastive_loss(encoder.projection(features), TEMPERATURE)
        if encoder.classifier is not None and bool((labels[rows] >= 0).any()):
            target = labels[rows].repeat(2)
            loss = loss + F.cross_entropy(encoder.classifier(features), target, weights, ignore_index=-1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if unfinished is not None:
            unfinished.after(step + 1, steps, lambda: states_of(encoder, optimizer, draw))
    encoder.eval().requires_grad_(False)
    standardise(encoder, images, draw)
    return encoder


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """(classes,) so that every class has the same share in the loss."""
    counts = torch.bincount(labels[labels >= 0], minlength=classes).clamp_min(1)
    return counts.sum() / (classes * counts.float())


@torch.no_grad()
def standardise(encoder: Encoder, images, draw: torch.Generator, count: int = 4096) -> None:
    """Set mean and deviation of the features to those of up to `count` training slices."""
    rows = torch.randperm(len(images), generator=draw)[:count].sort().values.numpy()
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    features = torch.cat([encoder.pooled(encoder.prepare(torch.from_numpy(images[part]))) for part in parts])
    encoder.mean.copy_(features.mean(0))
    encoder.std.copy_(features.std(0).clamp_min(1e-4) if len(features) > 1 else torch.ones_like(encoder.std))


def random_view(x: Tensor, draw: torch.Generator) -> Tensor:
    """x (B, C, S, S) in -1..1 -> the same slices, each moved, lit differently and with a part hidden."""
    b, _, size, _ = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(b, generator=draw) * (high - low) + low).to(x.device)

    reach = max(round(SHIFT * size), 1)
    shift = torch.randint(-reach, reach + 1, (2, b), generator=draw).to(x.device)
    line = torch.arange(size, device=x.device)
    rows, columns = ((line + s[:, None]) % size for s in shift)  # the frame around a head is dark: it may wrap
    x = x[
        torch.arange(b, device=x.device)[:, None, None, None],
        torch.arange(x.shape[1], device=x.device)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    contrast, brightness = uniform(1 - CONTRAST, 1 + CONTRAST), uniform(-BRIGHTNESS, BRIGHTNESS)
    lit = (x + 1) * (contrast + brightness)[:, None, None, None] - 1  # black stays black
    side, top, left = (uniform(*span)[:, None] * size for span in ((0.1, 0.4), (0, 0.8), (0, 0.8)))
    hidden_rows, hidden_columns = ((line >= start) & (line < start + side) for start in (top, left))
    return lit.masked_fill((hidden_rows[:, :, None] & hidden_columns[:, None, :])[:, None], -1.0)


def contrastive_loss(projected: Tensor, temperature: float) -> Tensor:
    """NT-Xent (Chen 2020, eq. 1): rows i and i + B of projected (2B, D) are views of one slice."""
    z = F.normalize(projected, dim=1)
    similarity = z @ z.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), float("-inf"))
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z) // 2))


# --- a torchvision network whose weights the user has -----------------------------------------------------------------
class Pretrained(nn.Module):
    """uint8 slices (B, 1 or 3, H, W) -> (B, dim) features of a network that takes normalised RGB of `size` pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, size: int, dim: int, mean: tuple, std: tuple):
        super().__init__()
        self.network, self.size, self.dim = network, size, dim
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Antialiased resizing, which matters more than the network (Parmar 2022)."""
        x = images.to(self.mean.device).float() / 255
        x = x.expand(-1, 3, -1, -1)
        x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        return self.network((x - self.mean) / self.std).float()


def load_pretrained(path: str | Path) -> tuple[Pretrained, str]:
    """(network, its name) from a state dict (.pth or .safetensors), recognised by its tensors: torchvision's
    inception_v3 or resnet50 (DINO's ResNet-50 too), the Inception of FID (1008 classes, as pytorch-fid and
    torch-fidelity convert it), a transformer of DINO or DINOv2.

    Weights are read as data. ValueError, one line, on anything else.
    """
    from torchvision import models  # a second to import

    state = read_state(Path(path))
    state = {k.removeprefix("module.").removeprefix("backbone."): v.float() for k, v in state.items()}
    classes = len(state.get("fc.weight", ()))
    state = {k: v for k, v in state.items() if not k.startswith(("fc.", "AuxLogits."))}
    known = {"Mixed_7c.branch_pool.conv.weight", "layer4.2.conv3.weight"} & set(state)
    if not known and not vit.is_transformer(state):
        raise ValueError(
            f"{path}: not the weights of an inception_v3, a resnet50 or a DINO; leave --feature-weights out"
        )
    try:
        if not known:
            network, name = vit.build_transformer(state)
            made = Pretrained(network, 224, network.norm.weight.numel(), IMAGENET_MEAN, IMAGENET_STD)
        elif "layer4.2.conv3.weight" in known:
            network, name = models.resnet50(weights=None), "ResNet-50"
            made = Pretrained(network, 224, 2048, IMAGENET_MEAN, IMAGENET_STD)
        elif not classes:
            raise ValueError("its fc.weight is missing, which tells the Inception of FID from torchvision's")
        else:
            network = models.inception_v3(weights=None, init_weights=False, aux_logits=False, transform_input=False)
            made, name = Pretrained(network, 299, 2048, (0.5,) * 3, (0.5,) * 3), "Inception v3"
            if classes == FID_CLASSES:
                pool_as_fid(network)
                made, name = Pretrained(network, 299, 2048, FID_SCALE, FID_SCALE), "FID's Inception v3"
        if known:
            network.fc = nn.Identity()
            network.load_state_dict(state)
    except (RuntimeError, ValueError, IndexError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: not quite the weights of a known network ({first}); use the published state dict"
        ) from None
    return made.eval().requires_grad_(False), name


FID_CLASSES = 1008  # of the network of 2015 that FID is defined by (Heusel 2017)
FID_SCALE = (128 / 255,) * 3  # it takes (x - 128) / 128


def pool_as_fid(network: nn.Module) -> None:
    """Let the pooling branches of torchvision's Inception pool as that network does: averages are of the pixels that
    are there, without the padding, and the last block takes the maximum."""

    def repool(block, pool: Callable[[Tensor], Tensor]) -> None:
        seen: list[Tensor] = []
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        block.branch_pool.register_forward_pre_hook(lambda _, args: (pool(seen.pop()),))

    for name, block in network.named_children():
        if name == "Mixed_7c":
            repool(block, partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))
        elif hasattr(block, "branch_pool"):  # the others only take the maximum where they halve
            repool(block, partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False))


MAX_INDEX = 16 << 20  # bytes of what says which tensors a file holds


def check_names(file) -> None:
    """ValueError unless a .pt or .pth is uncompressed and names tensors alone; nothing in it is run for that.

    `weights_only` keeps code out, but would call bytearray(10**12), and unpack a small file into all of the memory.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are compressed")
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if any(archive.getinfo(name).file_size > MAX_INDEX for name in names):
                raise ValueError("its list of tensors is too large")
            streams = [io.BytesIO(archive.read(name)) for name in names]
    else:  # the older format: magic number, version, machine, state dict and storage names in turn, then the numbers
        file.seek(0)
        streams = [file] * 5
    for stream in streams:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "GLOBAL" and not _tensors.fullmatch(str(argument)):
                raise ValueError(f"it names {str(argument).replace(' ', '.')[:80]}")
            if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
                raise ValueError(f"it holds an object ({opcode.name})")


_tensors = re.compile(r"torch \w+Storage|torch\._utils _rebuild_(tensor_v2|parameter)|collections OrderedDict")


def read_state(path: Path, flag: str = "--feature-weights") -> dict[str, Tensor]:
    """A state dict, also where it lies under `teacher`, `state_dict` or `model` in the file.

    ValueError, naming the flag, on anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file; check {flag}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        with open(path, "rb") as file:
            check_names(file)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost anything
        first = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path}: cannot be read as weights ({first}); use a state dict without code in it") from None
    for key in ("teacher", "state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: no state dict; use a file that holds tensors by name")
    return state
