"""A denoising network as a folder that the package diffusers loads: UNet2DModel, its scheduler, and a program to copy.

What maps: residual blocks, attention, halvings and doublings have the same places and shapes. UNet2DModel has one
number of groups for every GroupNorm and one size of attention heads; the names of the weights differ, and the
projections to queries, keys and values are one matrix here. Noise levels: the flow schedule goes through FlowMatchEuler
in continuous time 1000 t, with sines before cosines and no shift of frequencies. The other schedules are tables of 1000
steps, of which step k is t = k / 999 here: the embedding of each step goes into a table (time_embedding_type
"learned"), and the betas into DDIM. AutoencoderKL does not map: its one head of attention and one number of groups meet
in no width of the VAE here, and its encoder pads its halvings on one side. So the decoder is a program of torch.export.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.files import plain
from jobs.predict.autoencoder import VaeModel
from jobs.predict.card import quoted
from jobs.predict.denoiser import DiffusionModel
from jobs.predict.trained import Trained
from models import samplers
from models.loading import Denoiser
from models.norm import GroupNorm
from models.schedules import Schedule, T
from models.unet import Attention, UNet, time_embedding

STEPS = 20  # of the check, and of the program
PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}
RENAMED = (
    (r"^embed_time\.0", "time_embedding.linear_1"),
    (r"^embed_time\.2", "time_embedding.linear_2"),
    (r"^embed_class", "class_embedding"),
    (r"^norm_out", "conv_norm_out"),
    (r"^(down|up)\.(\d+)\.blocks", r"\1_blocks.\2.resnets"),
    (r"^(down|up)\.(\d+)\.attentions", r"\1_blocks.\2.attentions"),
    (r"^(down|up)sample\.(\d+)", r"\1_blocks.\2.\1samplers.0.conv"),
    (r"^middle\.0", "mid_block.resnets.0"),
    (r"^middle\.1", "mid_block.attentions.0"),
    (r"^middle\.2", "mid_block.resnets.1"),
    (r"(resnets\.\d+)\.emb\b", r"\1.time_emb_proj"),
    (r"(resnets\.\d+)\.skip\b", r"\1.conv_shortcut"),
    (r"(attentions\.\d+)\.norm\b", r"\1.group_norm"),
    (r"(attentions\.\d+)\.out\b", r"\1.to_out.0"),
)


# --- what maps --------------------------------------------------------------------------------------------------------
def why_not(model: Trained) -> str:
    """Why no model of this kind becomes a folder of diffusers."""
    return autoencoder_difference(model.vae) if isinstance(model, VaeModel) else f"diffusers has no {model.KIND}"


def autoencoder_difference(vae: nn.Module) -> str:
    """How a VAE, or its decoder, differs from AutoencoderKL."""
    heads = max(m.heads for m in vae.modules() if isinstance(m, Attention))
    found = [f"one head of attention (this VAE {heads})"] if heads > 1 else []
    if len(groups := groups_of(vae)) > 1:
        found.append(f"one number of groups in its norms (this VAE {listed(groups)})")
    return f"AutoencoderKL has {', '.join([*found, 'halvings padded on one side (this VAE on both)'])}"


def groups_of(module: nn.Module) -> set[int]:
    """The numbers of groups of all GroupNorms."""
    return {m.num_groups for m in module.modules() if isinstance(m, GroupNorm)}


def listed(numbers: Iterable[int]) -> str:
    """`8, 16 and 32`."""
    *first, last = (str(n) for n in sorted(numbers))
    return " and ".join([", ".join(first), last] if first else [last])


def head_dim(unet: UNet) -> int | None:
    """Channels of a head as UNet2DModel takes them: None for one head everywhere. ValueError where there is no such."""
    layers = [m for m in unet.modules() if isinstance(m, Attention)]
    dims = {layer.qkv.in_features // layer.heads for layer in layers}
    if len(dims) > 1 and any(layer.heads > 1 for layer in layers):
        raise ValueError(f"UNet2DModel has one size of attention heads, this network heads of {listed(dims)} channels")
    return dims.pop() if len(dims) == 1 else None


def obstacles(model: DiffusionModel) -> str:
    """What keeps this network from being a UNet2DModel with a scheduler of diffusers; '' where nothing does."""
    net = model.net
    found = []
    if len(groups_of(net.unet)) > 1:
        found.append(f"UNet2DModel has one number of groups in its norms, this network {listed(groups_of(net.unet))} "
                     "(--widths in multiples of 64 have one)")  # fmt: skip
    try:
        head_dim(net.unet)
    except ValueError as error:
        found.append(str(error))
    unknown = [name for name in net.unet.state_dict() if not re.match(
        r"(embed_time|embed_class|conv_in|down|downsample|middle|up|upsample|norm_out|conv_out)\.", name)]  # fmt: skip
    if unknown:
        found.append(f"UNet2DModel has no {plain(unknown[0])}")
    if (net.schedule.name == "flow") != (net.target == "flow"):
        found.append(f"diffusers has no scheduler for the target {net.target} on the schedule {net.schedule.name}")
    if net.times is not None:
        found.append(f"no deterministic scheduler of diffusers goes through the {len(net.times)} steps of Fast-DDPM "
                     "that this network knows")  # fmt: skip
    return "; ".join(found)


# --- the network and its scheduler ------------------------------------------------------------------------------------
def unet_config(net: Denoiser) -> dict:
    """The arguments of UNet2DModel."""
    unet, flow = net.unet, net.schedule.name == "flow"
    levels: list[Any] = list(unet.down)
    kinds = ["Attn" if isinstance(level.attentions[0], Attention) else "" for level in levels]
    return {
        "sample_size": net.shape[-1],
        "in_channels": net.shape[0],
        "out_channels": net.shape[0],
        "time_embedding_type": "positional" if flow else "learned",
        "freq_shift": 0,
        "flip_sin_to_cos": False,
        "num_train_timesteps": T,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": [level.blocks[-1].conv2.out_channels for level in levels],
        "layers_per_block": len(levels[0].blocks),
        "attention_head_dim": head_dim(unet),
        "norm_num_groups": unet.norm_out.num_groups,
        "norm_eps": unet.norm_out.eps,
        "num_class_embeds": unet.num_classes + 1 if unet.num_classes else None,
    }


def unet_state(net: Denoiser) -> dict[str, Tensor]:
    """The weights by the names of UNet2DModel."""
    state = {}
    for name, value in net.unet.state_dict().items():
        for before, after in RENAMED:
            name = re.sub(before, after, name)
        if ".qkv." in name:
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                state[name.replace(".qkv.", f".to_{letter}.")] = third.clone()
        else:
            state[name] = value
    if net.schedule.name != "flow":
        state["time_proj.weight"] = time_embedding(torch.arange(T) / (T - 1), net.unet.base)
    return state


def betas(schedule: Schedule) -> list[float]:
    """The betas of a table of angles: alpha_bar of a step is cos^2 (Ho 2020, section 2)."""
    alpha_bar = schedule.angles.cos().square()
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return (1 - alpha_bar / before).tolist()


def scheduler_of(net: Denoiser):
    """FlowMatchEulerDiscreteScheduler for the flow schedule, else DDIMScheduler."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if net.schedule.name == "flow":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=T)
    return DDIMScheduler(
        num_train_timesteps=T,
        trained_betas=betas(net.schedule),
        prediction_type=PREDICTIONS[net.target],
        timestep_spacing="trailing",
        clip_sample=net.decoder is None,
    )


# --- the folder -------------------------------------------------------------------------------------------------------
def write(model: DiffusionModel, folder: Path, noise: Callable[..., Tensor]) -> list[tuple[Tensor, Tensor]]:
    """unet/, scheduler/ and README.md in `folder`. Returns (sample of diffusers, read again from the folder; the same
    by predict.py) for each class, and for no class."""
    from diffusers import UNet2DModel

    net = model.net
    unet = UNet2DModel(**unet_config(net))
    unet.load_state_dict(unet_state(net))
    unet.save_pretrained(folder / "unet")
    scheduler_of(net).save_pretrained(folder / "scheduler")
    (folder / "README.md").write_text(readme(model), encoding="utf-8")
    again = UNet2DModel.from_pretrained(folder / "unet").eval()
    scheduler = type(scheduler_of(net)).from_pretrained(folder / "scheduler")
    number = net.unet.num_classes + 1
    start = noise(3, number, net.shape)
    labels = torch.arange(number) if net.unet.num_classes else None
    with torch.inference_mode():
        theirs, times = sampled(again, scheduler, start, labels)
        clamp = float(net.decoder is None and net.schedule.name != "flow")  # the flow scheduler has none
        denoise = samplers.denoiser(lambda x, t: net.unet(x, t, labels), net.schedule, net.target, clamp=clamp)
        own = samplers.ddim(denoise, start, net.schedule, times)
    return list(zip(theirs, own, strict=True))


def sampled(unet: nn.Module, scheduler, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """(samples, times in 0..1) of diffusers from noise x, as its README says."""
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.set_timesteps(STEPS)
        times, options = scheduler.timesteps.double() / (T - 1), {"use_clipped_model_output": True}
    else:
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / STEPS, STEPS).tolist())
        times, options = scheduler.timesteps.double() / T, {}
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x, **options).prev_sample
    return x, times


README = """# {title}

Written by `predict.py export --format diffusers` from weights at {seen} (SHA-256 `{sha256}`).

* `unet/`: a UNet2DModel. `scheduler/`: a {scheduler}.
* `decoder.pt2`: {decoder}.
{classes}
```python
import torch
from diffusers import {scheduler}, UNet2DModel
from PIL import Image

folder, steps, number = ".", {steps}, 4
unet = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
scheduler = {scheduler}.from_pretrained(folder, subfolder="scheduler")
decode = torch.export.load(f"{{folder}}/decoder.pt2").module()

x = torch.randn(number, {shape}, generator=torch.Generator().manual_seed(0))
labels = {labels}
scheduler.set_timesteps({set_timesteps})
with torch.inference_mode():
    for t in scheduler.timesteps:
        x = scheduler.step(unet(x, t, class_labels=labels).sample, t, x{options}).prev_sample
    images = decode(latents=x)  # (number, {channels}, {side}, {side}) in -1..1
for i, image in enumerate(((images + 1) * 127.5).round().byte().numpy()):
    Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(f"{{i}}.png")
```

The pictures are those of `--sampler ddim`{but}, at the training square. Nothing here is for medical use.
"""


def readme(model: DiffusionModel) -> str:
    """What is in the folder, and a program that draws pictures with it."""
    net, flow, classes = model.net, model.net.schedule.name == "flow", model.classes
    pixel = net.decoder is None
    difference = "" if net.decoder is None else f", as {autoencoder_difference(net.decoder)}"
    named = ", ".join(f"{i} {quoted(name)}" for i, name in enumerate(classes))
    return README.format(
        title=quoted(Path(model.path).absolute().parent.name),
        seen=model.seen,
        sha256=model.sha256,
        scheduler="FlowMatchEulerDiscreteScheduler" if flow else "DDIMScheduler",
        decoder=f"from samples to images, with the scale of the latents. A program of torch.export{difference}",
        classes=f"* Labels: {named}, {len(classes)} no class (for guidance).\n" if classes else "",
        steps=STEPS,
        shape=", ".join(str(n) for n in net.shape),
        labels=f"torch.arange(number) % {len(classes)}" if classes else "None",
        set_timesteps="sigmas=torch.linspace(1, 1 / steps, steps).tolist()" if flow else "steps",
        options="" if flow else ", use_clipped_model_output=True",
        channels=model.channels,
        side=model.resolution,
        but=", within a thousandth of where its steps lie" * flow + " and without its cut to -1..1" * (flow and pixel),
    )
