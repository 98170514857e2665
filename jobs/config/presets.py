"""Presets: named configurations that flags override."""

from __future__ import annotations

# One preset per published system that students start from. What they leave out of gamma, intervals, EMA and groups
# follows from their resolution, batch and loss (recipe.py), so that it still fits when a flag changes one of these.
GAN_PRESETS: dict[str, dict] = {
    "adni256": dict(resolution=256, batch=64, total_kimg=5000.0, metric_kimg=50.0),
    "adni128": dict(resolution=128, batch=64, total_kimg=4000.0, metric_kimg=50.0),
    "oasis128": dict(resolution=128, batch=64, total_kimg=3000.0, metric_kimg=50.0),
    "oasis64": dict(resolution=64, crop=208, batch=64, total_kimg=2000.0, metric_kimg=50.0),
    # Small enough for two CPU cores and a few minutes.
    "quickstart": dict(
        data="phantom:2000", resolution=64, batch=16, total_kimg=28.0, channel_base=1024, channel_max=64,
        z_dim=64, w_dim=64, mapping_layers=2, ema_kimg=1.5, ema_rampup=0.1,
        ada="off", lr=0.004, log_kimg=0.5, sample_kimg=4.0, checkpoint_minutes=1.0,
        metric_kimg=4.0,
    ),
}  # fmt: skip

VAE_PRESETS: dict[str, dict] = {
    "adni256-ldm": dict(resolution=256, batch=32, total_kimg=1500.0, decay_kimg=1500.0, ema_kimg=50.0),
    # Small enough for two CPU cores and a few minutes.
    "quickstart": dict(
        data="phantom:2000",
        resolution=64,
        batch=8,
        total_kimg=12.0,
        precision="fp32",
        down=4,
        latent_channels=8,
        width=16,
        num_res=1,
        gan_weight=0.0,
        lr=2e-3,
        warmup_kimg=0.5,
        decay_kimg=12.0,
        ema_kimg=0.5,
        log_kimg=0.5,
        sample_kimg=4.0,
        checkpoint_minutes=1.0,
    ),
}

DIFFUSION_PRESETS: dict[str, dict] = {
    "adni256-ldm": dict(
        resolution=256,
        batch=128,
        total_kimg=10000.0,
        lr=2e-4,
        warmup_kimg=130.0,
        decay_kimg=10000.0,
        ema_kimg=500.0,
        widths="128,256,256",
        conditional=True,
        sample_kimg=200.0,
        log_kimg=10.0,
        metric_kimg=200.0,
    ),
    "quickstart": dict(
        data="phantom:2000",
        resolution=64,
        batch=32,
        total_kimg=60.0,
        precision="fp32",
        lr=1e-3,
        warmup_kimg=1.0,
        decay_kimg=60.0,
        ema_kimg=2.0,
        widths="48,96",
        num_res=1,
        attention="8",
        head_dim=48,
        dropout=0.0,
        conditional=True,
        log_kimg=1.0,
        sample_kimg=12.0,
        checkpoint_minutes=1.0,
        metric_kimg=20.0,
    ),
}
