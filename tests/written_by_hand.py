"""What predict.py promises of a weights file, written again with plain code: only the networks are the product's.

Files are parsed byte by byte, seeds are hashed here, samplers are the loops of their papers.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.stylegan2 import Generator
from models.unet import UNet
from models.vae import VAE


def read_file(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, about) of a safetensors file: length of the header, header, numbers."""
    raw = Path(path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head, numbers = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    about = json.loads(head.pop("__metadata__")["config"])
    tensors = {}
    for name, entry in head.items():
        assert entry["dtype"] == "F32"
        begin, end = entry["data_offsets"]
        tensors[name] = torch.from_numpy(np.frombuffer(numbers[begin:end], "<f4").reshape(entry["shape"]).copy())
    return tensors, about


def module_of(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")}


def seed_of(seed: int, index: int, purpose: str) -> int:
    """63 bits of BLAKE2b of `seed/index/purpose`."""
    digest = hashlib.blake2b(f"{seed}/{index}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") // 2


def stream(seed: int, index: int, purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(seed, index, purpose))


def as_bytes(images: torch.Tensor) -> np.ndarray:
    """Floats -1..1 to 0..255, rounded, what lies outside is cut."""
    return ((images.detach() + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)


def middle(length: int, size: int) -> slice:
    return slice((length - size) // 2, (length - size) // 2 + size)


def restored(square: np.ndarray, geometry: dict) -> np.ndarray:
    """A square (R, R) back in the slice that it was cut from: enlarged, black around it, the padding taken off."""
    side = geometry["crop"] or geometry["square"]
    large = np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BICUBIC))
    whole = np.zeros((geometry["square"],) * 2, np.uint8)
    whole[middle(geometry["square"], side), middle(geometry["square"], side)] = large
    return whole[
        middle(geometry["square"], geometry["source_height"]), middle(geometry["square"], geometry["source_width"])
    ]


def angle_walk(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Shoemake 1985: a part t of the way along the great circle from a to b (any shape, flattened for the angle)."""
    cosine = float((a.double() * b.double()).sum() / (a.double().norm() * b.double().norm()))
    omega = math.acos(cosine)
    return (math.sin((1 - t) * omega) * a.double() + math.sin(t * omega) * b.double()).div(math.sin(omega)).float()


# --- StyleGAN2 --------------------------------------------------------------------------------------------------------
class Gan:
    """A StyleGAN2 from its file."""

    def __init__(self, path: Path):
        tensors, self.about = read_file(path)
        c, state = self.about["config"], module_of(tensors, "G_ema")
        names = "resolution channels z_dim w_dim mapping_layers channel_base channel_max".split()
        self.classes = self.about["classes"] if c["conditional"] else []
        self.G = Generator(**{k: c[k] for k in names}, num_classes=len(self.classes)).eval()
        self.G.load_state_dict(state)
        self.w_avg = state["w_avg"]

    def z(self, seed: int, index: int) -> torch.Tensor:
        return torch.randn(1, self.G.z_dim, generator=stream(seed, index, "predict z"))

    @torch.no_grad()
    def w(self, z: torch.Tensor, label: int | None) -> torch.Tensor:
        return self.G.mapping(z, None if label is None else torch.tensor([label]))

    @torch.no_grad()
    def draw(self, w: torch.Tensor, psi: float = 1.0, cutoff: int | None = None, noise=None, of=None) -> np.ndarray:
        """(R, R) bytes of one w (1, w_dim) or of ws (1, layers, w_dim). psi pulls to the average w; with classes to
        that of the class `of`, or to the point `of`."""
        ws = w[:, None].repeat(1, self.G.num_ws, 1) if w.dim() == 2 else w.clone()
        if psi != 1:
            centre = self.w_avg[of] if isinstance(of, int) else self.w_avg if of is None else of
            ws[:, :cutoff] = centre + psi * (ws[:, :cutoff] - centre)
        return as_bytes(self.G.synthesis(ws, noise))[0, 0]

    def noise(self, seed: int, index: int) -> list[torch.Tensor]:
        """Of the layers at 4, 8, 8, 16, 16 ... px in turn, of one stream."""
        sizes = [4] + [2**k for k in range(3, int(math.log2(self.G.resolution)) + 1) for _ in range(2)]
        draw = stream(seed, index, "predict noise")
        return [torch.randn(1, 1, s, s, generator=draw) for s in sizes]


# --- diffusion --------------------------------------------------------------------------------------------------------
def signal_shares(schedule: str) -> np.ndarray:
    """(1000,) cumulative products of 1 - beta (Ho 2020; Rombach 2022)."""
    if schedule == "linear":
        betas = np.linspace(1e-4, 0.02, 1000)
    else:
        betas = np.linspace(math.sqrt(0.0015), math.sqrt(0.0195), 1000) ** 2
    return np.cumprod(1 - betas)


class Diffusion:
    """A diffusion network from its file."""

    def __init__(self, path: Path):
        tensors, self.about = read_file(path)
        c, self.shape = self.about["config"], self.about["shape"]
        self.classes = self.about["classes"] if c["conditional"] else []
        widths, attention = ([int(n) for n in c[k].split(",")] for k in ("widths", "attention"))
        self.unet = UNet(
            self.shape[-1], self.shape[0], widths=widths, num_res=c["num_res"], attention_sides=attention,
            head_dim=c["head_dim"], num_classes=len(self.classes),
        ).eval()  # fmt: skip
        self.unet.load_state_dict(module_of(tensors, "unet"))
        self.mean, self.std = (tensors[f"latent_scale.{k}"].view(-1, 1, 1) for k in ("mean", "std"))
        self.decoder = None
        if self.about["vae"] is not None:
            self.decoder = VAE(**self.about["vae"]).decoder.eval()
            self.decoder.load_state_dict(module_of(tensors, "vae_decoder"))

    def noise(self, seed: int, index: int) -> torch.Tensor:
        return torch.randn(1, *self.shape, generator=stream(seed, index, "predict z"))

    @torch.no_grad()
    def predict(self, x: torch.Tensor, t: float, label: int | None, guidance: float = 1.0) -> torch.Tensor:
        """uncond + guidance (cond - uncond) (Ho and Salimans 2022); "no class" is the label after the last one."""
        t = torch.tensor([t], dtype=torch.float32)
        if label is None:
            return self.unet(x, t, None)
        cond = self.unet(x, t, torch.tensor([label]))
        if guidance == 1:
            return cond
        uncond = self.unet(x, t, torch.tensor([len(self.classes)]))
        return uncond + guidance * (cond - uncond)

    @torch.no_grad()
    def decode(self, x0: torch.Tensor) -> np.ndarray:
        """(R, R) bytes of a clean sample (1, C, h, w)."""
        x0 = x0.float() * self.std + self.mean
        return as_bytes(x0 if self.decoder is None else self.decoder(x0))[0, 0]


def ddim(predict, noise, shares, steps, *, target="epsilon", clamp=False, fresh=None):
    """Song 2021, equation 12, over falling `steps` of 0..999: ([what the network sees], [its estimates]), the last
    estimate is the sample. `fresh()`: eta = 1, and the noise that this adds."""
    x, states, estimates = noise.double(), [], []
    for i, k in enumerate(steps):
        alpha, sigma = math.sqrt(shares[k]), math.sqrt(1 - shares[k])
        output = predict(x.float(), k / 999).double()
        x0 = (x - sigma * output) / alpha if target == "epsilon" else alpha * x - sigma * output  # else v
        x0 = x0.clamp(-1, 1) if clamp else x0
        states.append(x.float())
        estimates.append(x0.float())
        if i + 1 == len(steps):
            return states, estimates
        epsilon, share = (x - alpha * x0) / sigma, shares[steps[i + 1]]
        spread = 0.0
        if fresh is not None:
            spread = math.sqrt((1 - share) / (1 - shares[k])) * math.sqrt(1 - shares[k] / share)
        x = math.sqrt(share) * x0 + math.sqrt(1 - share - spread**2) * epsilon
        if fresh is not None:
            x = x + spread * fresh().double()
    raise AssertionError


def flow_midpoint(velocity, noise, calls):
    """dx / dt = velocity(x, t) from t = 1 to 0 by the midpoint rule in calls / 2 equal steps (Lipman 2023)."""
    x, number = noise.double(), calls // 2
    for i in range(number):
        t, h = 1 - i / number, 1 / number
        half = x - h / 2 * velocity(x.float(), t).double()
        x = x - h * velocity(half.float(), t - h / 2).double()
    return x.float()
