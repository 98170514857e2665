"""Rough sizes of a job before it runs: parameters, memory per GPU, checkpoints.

How many values a step keeps per feature map was fitted to the peaks of real steps on tensors without contents
(tests/fake_cuda.py), from 64 to 256 px; how near it comes stands in benchmarks/NOTES.md. What such tensors cannot show
stands in with_margin().
"""

from __future__ import annotations

from jobs.config.specs import DiffusionConfig, VaeConfig, numbers

Capability = tuple[int, int]
FAST_BF16 = (8, 0)  # compute capability from which a GPU multiplies bf16 in hardware (Ampere)
CONTEXT_GB = 1.0  # CUDA's context, cuDNN's and cuBLAS's workspaces
GAPS = 1.1  # what the allocator holds over what is in use


def with_margin(gb: float) -> float:
    """The memory that a GPU must have free for a step of this peak."""
    return gb * GAPS + CONTEXT_GB


def value_bytes(config, capability: Capability | None = None) -> int:
    """Bytes of a value of a feature map. `auto` on a GPU of unknown capability: as on one of today."""
    half = capability is None or capability >= FAST_BF16 if config.precision == "auto" else config.precision != "fp32"
    return 2 if half else 4


def gan_memory_gb(config, world: int = 1, capability: Capability | None = None) -> float:
    """Rough peak memory per GPU in GB: weights, Adam, EMA and gradients, plus the activations of the largest phase."""
    micro, values, r = config.batch / (world * config.accumulate), 0.0, 4
    while r <= config.resolution:
        values += min(config.channel_base // r, config.channel_max) * r * r
        r *= 2
    per_value = 9.1 * value_bytes(config, capability)
    if config.precision == "fp16" and (config.gamma or config.pl_weight):  # penalties are in fp32 there, and the peak
        per_value *= 1.7
    elif config.loss == "rpgan":  # D sees real rows in G's step, too
        per_value *= 1.2
    return (gan_parameters(config) * 4 * 4.5 + micro * per_value * values) / 1e9


def gan_parameters(config) -> float:
    """Rough number of parameters of G and D together."""
    parameters, r = 0.0, 4
    while r <= config.resolution:
        c = min(config.channel_base // r, config.channel_max)
        parameters += 2 * (2 * 9 * c * c + 2 * c * config.w_dim)
        r *= 2
    return (
        parameters
        + config.mapping_layers * config.w_dim**2
        + 16 * min(config.channel_base // 4, config.channel_max) ** 2
    )


def gan_checkpoint_gb(config) -> float:
    """Rough size of one checkpoint in GB: fp32 weights of G and D, Adam's two moments of both, the EMA of G."""
    return gan_parameters(config) * 4 * 3.5 / 1e9


def vae_parameters(config: VaeConfig) -> float:
    """Rough number of parameters that are trained: encoder, decoder and, where it takes part, discriminator."""
    widths = [config.width * m for m in (1, 2, 4, 4)[: config.down.bit_length()]]
    parameters = 2 * 40 * widths[-1] ** 2 + sum(2 * (2 * config.num_res + 1) * 9 * w * w for w in widths)
    return parameters + vae_discriminator_parameters(config) * bool(config.gan_weight)


def vae_discriminator_parameters(config: VaeConfig) -> float:
    """Rough number of parameters of the patch discriminator."""
    return 16 * 42 * config.disc_width**2


def untrained_parameters(config: VaeConfig) -> float:
    """Rough number of parameters that a VAE's run holds and never trains: a discriminator that takes no part."""
    return 0.0 if config.gan_weight else vae_discriminator_parameters(config)


def vae_memory_gb(config: VaeConfig, world: int = 1, capability: Capability | None = None) -> float:
    """Rough peak memory per GPU in GB: weights, AdamW, EMA and gradients, plus the activations of one step."""
    micro, values, r = config.batch / (world * config.accumulate), 0.0, config.resolution
    for m in (1, 2, 4, 4)[: config.down.bit_length()]:
        values += (12 * config.num_res + 9) * config.width * m * r * r
        r //= 2
    if config.perceptual_file:  # VGG-16 has 540 values per pixel that its gradient needs
        values += 540 * config.resolution**2
    activations = micro * values * value_bytes(config, capability)
    return ((vae_parameters(config) * 5 + untrained_parameters(config)) * 4 + activations) / 1e9


def vae_checkpoint_gb(config: VaeConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA; and a discriminator that takes no
    part, as it was made."""
    return (vae_parameters(config) * 4 + untrained_parameters(config)) * 4 / 1e9


def unet_parameters(config: DiffusionConfig) -> float:
    """Rough number of parameters of the U-Net."""
    widths = numbers(config.widths, "widths")
    return sum((2 * config.num_res + 1) * 25 * w * w for w in widths) + 40 * widths[-1] ** 2


def diffusion_memory_gb(config: DiffusionConfig, world: int = 1, capability: Capability | None = None) -> float:
    """Rough peak memory per GPU in GB: as for the VAE; latents count as an eighth of the resolution."""
    micro, values = config.batch / (world * config.accumulate), 0.0
    r, attended = config.resolution // (8 if config.space == "latent" else 1), numbers(config.attention, "attention")
    for w in numbers(config.widths, "widths"):
        values += (2 * config.num_res + 1) * (11 + 6 * (r in attended)) * w * r * r
        r //= 2
    return (unet_parameters(config) * 4 * 5 + micro * values * value_bytes(config, capability)) / 1e9


def diffusion_checkpoint_gb(config: DiffusionConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA."""
    return unet_parameters(config) * 4 * 4 / 1e9


def disk_gb(config, checkpoint_gb: float) -> float:
    """Rough GB that a run comes to write: its checkpoints, with a healthy one and one that is being written, and its
    weights: the last, the best, those from before a collapse and those kept, each at most a quarter of a checkpoint."""
    return checkpoint_gb * (config.keep + 2 + (3 + config.keep_weights) / 4)
