"""Networks from the tensors and the config of a weights file, which may be damaged or a stranger's.

Everything is checked before anything large is allocated. All functions raise ValueError, one line, on what does not
fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from models import names, schedules
from models.conditions import Told, classes_and_attributes
from models.stylegan2 import Generator, average_of_each_class, channels_at, resolutions
from models.unet import UNet
from models.vae import VAE, LatentScale

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that weights may be stored in
GAN_FIELDS = "resolution channels z_dim w_dim mapping_layers channel_base channel_max".split()
VAE_FIELDS = "channels latent_channels width down num_res".split()
AGAIN = "copy the file again from the run"


# --- StyleGAN2 --------------------------------------------------------------------------------------------------------
def load_generator(tensors: dict[str, Tensor], config: dict, num_classes: Told) -> Generator:
    """The averaged generator of a stylegan2 run."""
    sizes = {name: bounded(config, name, 1 << 20) for name in GAN_FIELDS}
    if sizes["channels"] not in (1, 3) or sizes["mapping_layers"] > 64:
        raise ValueError(f"its config is that of no network of this toolkit; {AGAIN}")
    state = part(tensors, "G_ema")
    try:
        if smallest_size(sizes, num_classes) > sum(v.numel() for v in state.values()):
            raise ValueError(f"too small for the network of its config; {AGAIN}")
        with torch.device("meta"):  # nothing is drawn that the weights replace
            G = Generator(**sizes, num_classes=num_classes)
    except ValueError as error:
        raise ValueError(of_no_network(error)) from None
    average_of_each_class(G, state)
    fill(G, state)
    return G


def smallest_size(c: dict, num_classes: Told) -> int:
    """How many numbers the large tensors of a generator hold, from its arguments alone."""
    widths = [channels_at(r, c["channel_base"], c["channel_max"]) for r in resolutions(c["resolution"])]
    num_classes, attributes = classes_and_attributes(num_classes)
    w, beside = c["w_dim"], c["w_dim"] // 2 if attributes else 0
    told = num_classes * w + sum((a.levels + 1 if a.levels else beside) * beside for a in attributes)
    sizes = [c["z_dim"] + (beside or (w if told else 0)), *[w] * (c["mapping_layers"] - 1), w - beside]
    mapping = sum(before * after for before, after in pairwise(sizes)) + told
    return mapping + 9 * sum(after * (before + after) for before, after in pairwise(widths)) + 9 * widths[0] ** 2


# --- VAE --------------------------------------------------------------------------------------------------------------
def load_vae(tensors: dict[str, Tensor], config: dict) -> VAE:
    """The VAE of a vae run."""
    try:
        with torch.device("meta"):  # nothing is allocated before the file's tensors are known to fit
            vae = VAE(**{name: bounded(config, name, 4096) for name in VAE_FIELDS})
    except ValueError as error:
        raise ValueError(of_no_network(error)) from None
    fill(vae, part(tensors, "vae"))
    return vae


# --- diffusion --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Denoiser:
    """A denoising network with what turns its samples into slices."""

    unet: UNet
    scale: LatentScale
    decoder: nn.Module | None  # None where it was trained on pixels
    schedule: schedules.Schedule
    target: str
    times: Tensor | None  # the only times that it knows, falling; None where it knows all
    shape: tuple[int, int, int]  # (C, h, w) of what it denoises

    def to(self, device: torch.device) -> Denoiser:
        """Move all its networks; returns itself, as nn.Module.to does."""
        for module in (self.unet, self.scale, self.decoder):
            if module is not None:
                module.to(device)
        return self


def load_denoiser(tensors: dict[str, Tensor], about: dict, num_classes: Told) -> Denoiser:
    """The averaged network of a diffusion run, and the decoder of the VAE that it was trained with."""
    c, shape, of_vae = about["config"], about.get("shape"), about.get("vae")
    if not isinstance(shape, list) or len(shape) != 3 or any(type(n) is not int or not 1 <= n <= 4096 for n in shape):
        raise ValueError(f"its shape is malformed; {AGAIN}")
    try:
        schedule, times = schedules.make_schedule(str(c.get("schedule"))), str(c.get("times"))
        if c.get("target") not in names.TARGETS or times not in names.TIME_SETS:
            raise ValueError(f"target {c.get('target')!r}, times {times!r}")
        widths, sides = whole_numbers(c, "widths"), whole_numbers(c, "attention")
        num_res, head_dim = (bounded(c, name, 4096) for name in ("num_res", "head_dim"))
        if not 1 <= len(widths) <= 8 or max(widths) > 8192 or num_res > 16:
            raise ValueError(f"widths {c.get('widths')!r}, num_res {num_res}")
        known = schedules.fast_times(times, bounded(c, "fast_steps", 1000)) if times.startswith("fast-") else None
        with torch.device("meta"):
            unet = UNet(
                shape[-1],
                shape[0],
                widths=widths,
                num_res=num_res,
                attention_sides=sides,
                head_dim=head_dim,
                dropout=0.0,
                num_classes=num_classes,
            )
            vae = None if of_vae is None else VAE(**{name: bounded(of_vae, name, 4096) for name in VAE_FIELDS})
            scale = LatentScale(torch.empty(shape[0]), torch.empty(shape[0]))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(of_no_network(error)) from None
    fill(unet, part(tensors, "unet"))
    fill(scale, part(tensors, "latent_scale"))
    if vae is not None:
        fill(vae.decoder, part(tensors, "vae_decoder"))
    return Denoiser(unet, scale, None if vae is None else vae.decoder, schedule, c["target"], known, tuple(shape))


# --- checks -----------------------------------------------------------------------------------------------------------
def bounded(values: dict, name: str, high: int) -> int:
    """A whole number of a config, from 1 to `high`."""
    if not isinstance(values, dict) or type(values.get(name)) is not int or not 1 <= values[name] <= high:
        raise ValueError(f"{name} is {values.get(name)!r} in its config; {AGAIN}")
    return values[name]


def whole_numbers(values: dict, name: str) -> tuple[int, ...]:
    """A config's '64,128' as (64, 128)."""
    numbers = tuple(int(text) for text in str(values.get(name)).split(",") if text.strip())
    if any(n < 1 for n in numbers):
        raise ValueError(f"{name} is {values.get(name)!r}")
    return numbers


def of_no_network(error: Exception) -> str:
    """What to tell of a config from which no network can be built: one line with the fix."""
    text = str(error)
    return text if text.endswith(AGAIN) else f"its config is of no network ({text}); {AGAIN}"


def part(tensors: dict[str, Tensor], module: str) -> dict[str, Tensor]:
    """The tensors of one module, by their names in it."""
    return {k.removeprefix(f"{module}."): v for k, v in tensors.items() if k.startswith(f"{module}.")}


def check_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """ValueError unless the tensors are those of the network, and finite."""
    expected = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    missing, unknown = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    other = [k for k in expected if k in state and tuple(state[k].shape) != expected[k]]
    bad = [k for k, v in state.items() if v.dtype not in FLOATS or not bool(torch.isfinite(v).all())]
    found = {"lacks": missing, "has unknown": unknown, "has another shape of": other, "has no finite numbers in": bad}
    for what, keys in found.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            listed = ", ".join(keys[:3]) + more
            raise ValueError(f"{what} {listed}; use weights that this version's train scripts wrote")


def fill(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a network of the meta device its tensors, in fp32, to be used and not trained."""
    check_state(module, state)
    module.load_state_dict({k: v.float() for k, v in state.items()}, assign=True)
    module.eval().requires_grad_(False)
