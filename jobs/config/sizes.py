"""Rough sizes of a job before it runs: parameters, memory per GPU, checkpoints."""

from __future__ import annotations

from jobs.config.specs import DiffusionConfig, VaeConfig, numbers


def gan_memory_gb(config, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: weights, Adam, EMA and gradients, plus the activations of one D step.

    Activations: about 5 tensors of (batch, channels, r, r) per resolution are alive at the peak of the discriminator's
    step on generated and real images together; fp16 takes its penalties in fp32. Fitted to what tests/fake_steps.py
    finds, a tenth above it.
    """
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = {"fp32": 4, "fp16": 3.4}.get(config.precision, 2)
    activations, r = 0.0, 4
    while r <= config.resolution:
        c = min(config.channel_base // r, config.channel_max)
        activations += 2 * micro * 5 * c * r * r * bytes_per_value
        r *= 2
    return (gan_parameters(config) * 4 * 4.5 + activations) / 1e9


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


def vae_memory_gb(config: VaeConfig, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: weights, AdamW, EMA and gradients, plus the activations of one step."""
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = 4 if config.precision == "fp32" else 2
    activations, r = 0.0, config.resolution
    for m in (1, 2, 4, 4)[: config.down.bit_length()]:
        activations += micro * (2 * config.num_res + 1) * 7 * config.width * m * r * r * bytes_per_value
        r //= 2
    if config.perceptual_file:  # VGG-16 has 540 values per pixel that its gradient needs
        activations += micro * 540 * config.resolution**2 * bytes_per_value
    return ((vae_parameters(config) * 5 + untrained_parameters(config)) * 4 + activations) / 1e9


def vae_checkpoint_gb(config: VaeConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA; and a discriminator that takes no
    part, as it was made."""
    return (vae_parameters(config) * 4 + untrained_parameters(config)) * 4 / 1e9


def unet_parameters(config: DiffusionConfig) -> float:
    """Rough number of parameters of the U-Net."""
    widths = numbers(config.widths, "widths")
    return sum((2 * config.num_res + 1) * 25 * w * w for w in widths) + 40 * widths[-1] ** 2


def diffusion_memory_gb(config: DiffusionConfig, world: int = 1) -> float:
    """Rough peak memory per GPU in GB: as for the VAE; latents count as an eighth of the resolution."""
    micro = config.batch / (world * config.accumulate)
    bytes_per_value = 4 if config.precision == "fp32" else 2
    activations, r = 0.0, config.resolution // (8 if config.space == "latent" else 1)
    for w in numbers(config.widths, "widths"):
        activations += micro * (2 * config.num_res + 1) * 14 * w * r * r * bytes_per_value
        r //= 2
    return (unet_parameters(config) * 4 * 5 + activations) / 1e9


def diffusion_checkpoint_gb(config: DiffusionConfig) -> float:
    """Rough size of one checkpoint in GB: fp32 weights, AdamW's two moments, the EMA."""
    return unet_parameters(config) * 4 * 4 / 1e9
