"""Public implementations of StyleGAN2 that benchmarks/gan.py compares with, each at the toolkit's widths.

stylegan2-pytorch comes from pip. The other two are no packages: they are imported from a checkout that the user names,
and what of them does not run on this machine or with this torch is adapted here, at run time.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

MAPPING_LAYERS, W_DIM = 8, 512
LR, BETAS = 2e-3, (0.0, 0.99)


@dataclass(frozen=True)
class Shape:
    """What all sides of a comparison have in common: pixels, images per step, channel_base / r feature maps at
    resolution r, channel_max at most."""

    resolution: int
    batch: int
    channel_base: int = 8192
    channel_max: int = 256


class Lucidrains:
    """stylegan2-pytorch: whole iterations of its own Trainer.

    It regularises within the main backward passes, so the cost of a penalty is the difference between an iteration
    with and one without it.
    """

    dtype = torch.float32

    def __init__(self, shape: Shape, device: torch.device, folder: str):
        """Its trainer, as wide as our networks, on images that are in memory."""
        peer, batch, resolution = import_peer(device), shape.batch, shape.resolution
        capacity = max(
            1, shape.channel_base // resolution // 4
        )  # its discriminator starts with 4 x capacity feature maps
        with (
            redirect_stdout(StringIO()),
            mock.patch.object(peer, "Generator", partial(peer.Generator, fmap_max=shape.channel_max)),
        ):  # its averaged generator ignores fmap_max and then does not fit the weights
            self.trainer = peer.Trainer(
                base_dir=folder, image_size=resolution, batch_size=batch, network_capacity=capacity,
                fmap_max=shape.channel_max, style_depth=MAPPING_LAYERS,
            )  # fmt: skip
            self.trainer.init_GAN()
        self.name, self.batch, self.device = "stylegan2-pytorch, float32", batch, device
        self.networks = torch.nn.ModuleList([self.trainer.GAN.G, self.trainer.GAN.S]), self.trainer.GAN.D
        self.trainer.loader = in_memory(batch, resolution, device)
        self.sampler = peer.ModelLoader.__new__(peer.ModelLoader)  # its constructor wants a saved model
        self.sampler.model = self.trainer
        # Its schedule is a function of the step: 4 has a gradient penalty, 5024 that and path length, 1 neither.
        schedule = {"main": 1, "gp": 4, "gp+pl": 5024}
        self.tasks = {name: partial(self.iterate, steps) for name, steps in schedule.items()}
        self.tasks["inference"] = self.inference
        self.iterate(5024)  # the first path-length step only notes the mean length

    def iterate(self, steps: int) -> None:
        """`steps` iterations of the trainer, whatever it does in each."""
        self.trainer.steps = steps
        self.trainer.train()

    @torch.no_grad()
    def inference(self) -> None:
        """One batch of its generator's pictures."""
        z = torch.randn(self.batch, self.trainer.GAN.G.latent_dim, device=self.device)
        self.sampler.styles_to_images(self.sampler.noise_to_styles(z))

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        """Costs of phases from those of whole iterations, by difference."""
        main, gp, both = cost["main"], cost["gp"], cost["gp+pl"]
        return {"main": main, "r1": gp - main, "pl": both - gp, "inference": cost["inference"]}


def in_memory(batch: int, resolution: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Batches (B, 3, H, W) of noise that never wait for a disk."""
    images = torch.rand(8 * batch, 3, resolution, resolution, device=device)
    while True:
        yield images[torch.randint(len(images), (batch,), device=device)]


def import_peer(device: torch.device) -> types.ModuleType:
    """Import stylegan2_pytorch where it refuses to: without CUDA, and without packages that it imports but training
    does not use (its logger, command line, and vector quantiser). On a CPU its `.cuda()` calls become no-ops."""
    unused = {"aim": {}, "fire": {}, "vector_quantize_pytorch": {"VectorQuantize": None}}
    for name, attributes in unused.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    try:
        import kornia  # noqa: F401  before CUDA is faked, which is for the peer's assertion alone

        with mock.patch("torch.cuda.is_available", return_value=True):
            import stylegan2_pytorch.stylegan2_pytorch as peer
    except ImportError as error:
        sys.exit(f"{error}; run: pip install --no-deps -r benchmarks/requirements.txt")
    finally:
        for name in unused:
            del sys.modules[name]
    if device.type == "cpu":
        torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
    return peer


class NVlabs:
    """stylegan2-ada-pytorch: its own networks and loss object, phase by phase, in its best working precision."""

    def __init__(self, folder: Path, shape: Shape, device: torch.device):
        """Its networks and loss from a clone in `folder`, as wide as ours."""
        networks, loss, upfirdn2d, gradfix = import_nvlabs(folder)
        half = dict(num_fp16_res=4, conv_clamp=256) if device.type == "cuda" else {}
        widths = dict(channel_base=shape.channel_base, channel_max=shape.channel_max, **half)
        batch, resolution = shape.batch, shape.resolution
        image = dict(c_dim=0, img_resolution=resolution, img_channels=1)
        self.G = networks.Generator(
            z_dim=W_DIM, w_dim=W_DIM, mapping_kwargs=dict(num_layers=MAPPING_LAYERS), synthesis_kwargs=widths, **image
        )
        self.D = networks.Discriminator(**widths, **image)
        self.networks = self.G, self.D
        for net in self.networks:
            net.train().requires_grad_(False).to(device)
        self.G_ema = [p.detach().clone() for p in self.G.parameters()]
        self.opt = {net: torch.optim.Adam(net.parameters(), lr=LR, betas=BETAS, eps=1e-8) for net in (self.G, self.D)}
        self.loss = loss.StyleGAN2Loss(
            device=device, G_mapping=self.G.mapping, G_synthesis=self.G.synthesis, D=self.D, r1_gamma=1
        )
        gradfix.enabled = True  # it then says itself where it does not support this torch
        self.batch, self.device, self.dtype = batch, device, torch.float16 if half else torch.float32
        self.images = torch.rand(batch, 1, resolution, resolution, device=device) * 2 - 1
        self.none = torch.zeros(batch, 0, device=device)
        self.tasks = {"main": self.main, "r1": partial(self.phase, "Dreg"), "pl": partial(self.phase, "Greg"),
                      "inference": self.inference}  # fmt: skip
        self.main()
        kernels = "CUDA ops" if upfirdn2d._plugin is not None else "reference ops"
        self.name = f"NVlabs, {'float16' if half else 'float32'}, {kernels}"

    def phase(self, name: str) -> None:
        """One of its loss's phases, with the optimizer's step."""
        net = self.G if name.startswith("G") else self.D
        z = torch.randn(self.batch, W_DIM, device=self.device)
        net.requires_grad_(True)
        self.opt[net].zero_grad(set_to_none=True)
        self.loss.accumulate_gradients(
            phase=name, real_img=self.images, real_c=self.none, gen_z=z, gen_c=self.none, sync=True, gain=1
        )
        net.requires_grad_(False)
        self.opt[net].step()

    def main(self) -> None:
        """An iteration of both networks without a regulariser, and the EMA."""
        self.phase("Gmain")
        self.phase("Dmain")
        torch._foreach_lerp_(self.G_ema, list(self.G.parameters()), 0.001)

    @torch.no_grad()
    def inference(self) -> None:
        """One batch of its generator's pictures."""
        self.G.eval()
        self.G(torch.randn(self.batch, W_DIM, device=self.device), self.none)
        self.G.train()

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        """Its phases are timed one by one: nothing to work out."""
        return cost


class Rosinality:
    """stylegan2-pytorch of rosinality: its networks, with the textbook form of its losses."""

    def __init__(self, folder: Path, shape: Shape, device: torch.device):
        """Its networks from a clone in `folder`, and two optimizers."""
        model, batch, resolution = import_rosinality(folder, shape, device), shape.batch, shape.resolution
        self.G = model.Generator(resolution, W_DIM, MAPPING_LAYERS).to(device)
        self.D = model.Discriminator(resolution).to(device)
        self.G_ema = [p.detach().clone() for p in self.G.parameters()]
        self.opt = {net: torch.optim.Adam(net.parameters(), lr=LR, betas=BETAS) for net in (self.G, self.D)}
        self.batch, self.device, self.dtype, self.networks = batch, device, torch.float32, (self.G, self.D)
        self.images = torch.rand(batch, 3, resolution, resolution, device=device) * 2 - 1
        self.name = "rosinality, float32" + (", CUDA ops" if device.type == "cuda" else ", native ops")
        self.tasks = {"main": self.main, "r1": self.r1, "pl": self.pl, "inference": self.inference}

    def generate(self, batch: int, **more):
        """A batch of its generator; `more` goes to it."""
        return self.G(list(torch.randn(2, batch, W_DIM, device=self.device).unbind()), **more)

    def step(self, net: torch.nn.Module, loss: torch.Tensor) -> None:
        """Backward and one step of this network's optimizer."""
        self.opt[net].zero_grad(set_to_none=True)
        loss.backward()
        self.opt[net].step()

    def main(self) -> None:
        """An iteration of both networks without a regulariser, and the EMA."""
        self.G.requires_grad_(False)
        fake, _ = self.generate(self.batch)
        self.step(self.D, F.softplus(self.D(fake)).mean() + F.softplus(-self.D(self.images)).mean())
        self.G.requires_grad_(True)
        self.D.requires_grad_(False)
        self.step(self.G, F.softplus(-self.D(self.generate(self.batch)[0])).mean())
        self.D.requires_grad_(True)
        torch._foreach_lerp_(self.G_ema, list(self.G.parameters()), 0.001)

    def r1(self) -> None:
        """The gradient penalty alone."""
        images = self.images.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(self.D(images).sum(), images, create_graph=True)
        self.step(self.D, slope.square().sum((1, 2, 3)).mean())

    def pl(self) -> None:
        """The path length penalty alone, on half a batch."""
        image, w = self.generate(self.batch // 2, return_latents=True)
        noise = torch.randn_like(image) / image.shape[-1]
        (slope,) = torch.autograd.grad((image * noise).sum(), w, create_graph=True)
        lengths = slope.square().sum(2).mean(1).sqrt()
        self.step(self.G, (lengths - lengths.mean().detach()).square().mean())

    @torch.no_grad()
    def inference(self) -> None:
        """One batch of its generator's pictures."""
        self.G([torch.randn(self.batch, W_DIM, device=self.device)])

    @staticmethod
    def phases(cost: dict[str, float]) -> dict[str, float]:
        """Its phases are timed one by one: nothing to work out."""
        return cost


# --- imports that need help ------------------------------------------------------------------------------------------
def import_nvlabs(folder: Path) -> tuple[types.ModuleType, ...]:
    """(networks, loss, upfirdn2d, conv2d_gradfix) of a checkout of stylegan2-ada-pytorch."""
    warnings.filterwarnings("ignore", message="conv2d_gradfix not supported")
    sys.modules.setdefault("requests", types.ModuleType("requests"))  # it fetches weights, here it does not
    if "distutils" not in sys.modules and sys.version_info >= (3, 12):
        for name in ("distutils", "distutils.util"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["distutils.util"].strtobool = bool
    sys.path.insert(0, str(folder))
    try:
        names = "training.networks", "training.loss", "torch_utils.ops.upfirdn2d", "torch_utils.ops.conv2d_gradfix"
        return tuple(importlib.import_module(name) for name in names)
    finally:
        sys.path.remove(str(folder))


def import_rosinality(folder: Path, shape: Shape, device: torch.device) -> types.ModuleType:
    """model.py of a checkout, at our widths. Its CUDA kernels are built where there is a GPU."""
    source = (folder / "model.py").read_text()
    width = lambda m: f"{m[1]}: {min(shape.channel_base // int(m[1]), shape.channel_max)},"  # noqa: E731
    source = re.sub(r"(\d+): \d+(?: \* channel_multiplier)?,", width, source)
    model = types.ModuleType("rosinality_model")
    sys.path.insert(0, str(folder))
    warnings.filterwarnings("ignore", message="conv2d_gradfix not supported")
    try:
        if device.type == "cuda":
            exec(compile(source, str(folder / "model.py"), "exec"), vars(model))
        else:
            with mock.patch("torch.utils.cpp_extension.load", return_value=None):
                exec(compile(source, str(folder / "model.py"), "exec"), vars(model))
    finally:
        sys.path.remove(str(folder))
    return model


def class_of_checkout(folder: Path) -> type:
    """The peer whose checkout this is."""
    if (folder / "training" / "networks.py").is_file():
        return NVlabs
    if (folder / "model.py").is_file() and (folder / "op").is_dir():
        return Rosinality
    sys.exit(f"benchmarks.gan: --peer-dir {folder}: neither stylegan2-ada-pytorch nor rosinality's stylegan2-pytorch")
