"""What each job can be told: one frozen dataclass of flat fields per train script. Never imports torch.

The field order is the order of `--help`; the docstring below a field is its help text. A value comes from, in rising
order of precedence: the field's default, the preset, the flag on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import data.files as files

# What models/names.py has algorithms for. This room imports no models; tests/config/test_specs.py holds the two equal.
Schedule = Literal["linear", "scaled-linear", "cosine", "zero-snr", "flow"]
Target = Literal["epsilon", "x0", "v", "flow"]
Times = Literal["uniform", "logit-normal", "fast-uniform", "fast-nonuniform"]
Sampler = Literal["midpoint", "dpmpp-2m", "ddim", "ancestral", "heun"]
AUTO = -2  # of a number that follows from the other flags (jobs/config/recipe.py); no number of its kind is that small
OF_LISTED_TIMES = ("ddim", "ancestral")  # samplers that can go through the few times a Fast-DDPM network knows

ROOT = Path(__file__).resolve().parents[2]


class ConfigError(Exception):
    """A configuration that cannot run; the text is one line that names the fix. Exit code 78."""

    exit_code = 78


@dataclass(frozen=True)
class TrainConfig:
    """What every training run has; no job of its own."""

    # --- the run ------------------------------------------------------------------------------------------------------
    run: str = ""
    """Run directory on shared storage.

    Default: runs/<job>-<8 hex of the config>, so the same config is the same run.
    """
    preset: str = ""
    """A named configuration that the other flags override."""
    data: str = ""
    """A folder of slices (its layout is recognised), a table .csv of data.scan, a .pack file, or phantom[:N]."""
    split: Literal["train", "test", "val", "all"] = "train"
    """Which part of the data to train on."""
    val_split: Literal["auto", "val", "test", "none"] = "auto"
    """Other patients to measure on. auto: val where the data have it, else test, else none."""
    max_bad: float = 0.01
    """Stop when more than this fraction of the image files cannot be read."""
    seed: int = 0
    """Every random draw is a function of this seed and of the number of images seen."""
    dry_run: bool = False
    """Check everything, print the resolved config as JSON, and exit."""
    toml: bool = False
    """As --dry-run, with the config as TOML and a comment on each flag: a file for --config."""
    override: bool = False
    """Resume although flags differ from the run's config (logged), or train on a collapsed VAE.

    Architecture can never differ."""
    init_from: str = ""
    """Start a new run from the weights of this run directory."""

    # --- data ---------------------------------------------------------------------------------------------------------
    resolution: int = 256
    """Side of the square training images in pixels, from 32 to 512.

    StyleGAN2: a power of two. VAE: a multiple of --down. Diffusion: what its U-Net can halve, once for each of --widths
    but the first.
    """
    channels: Literal[1, 3] = 1
    """Image channels: 1 (grey) or 3."""
    crop: int = 0
    """Crop this many pixels from the middle of the padded slice before resizing (0: none). Undone when generating."""

    include: str = ""
    """Use only files whose path or name fits one of these globs, separated by commas, such as *_T1w.*"""
    exclude: str = ""
    """Leave files out whose path or name fits one of these globs, separated by commas."""
    table: str = ""
    """A .csv or .tsv that is joined to the files by file, scan, or person (and session): person, class, split, more."""
    plane: Literal["", "axial", "coronal", "sagittal"] = ""
    """Plane in which volumes are cut. Default: axial."""
    slices: str = ""
    """Share LO:HI of the head's extent, from its lowest slice, that is used, such as 0.3:0.7. Default: all of it."""
    range: str = ""
    """Grey values LO:HI that become black and white. Default: decided once for the whole set, and said."""
    spacing: str = ""
    """Mm per pixel that volumes are resampled to in plane. Default: the median of the set."""
    volume: str = ""
    """Which volume of 4-D files is used, counted from 0."""

    # --- optimisation -------------------------------------------------------------------------------------------------
    batch: int = 64
    """Global batch size, over all GPUs and accumulation steps.

    auto: the largest that the GPUs hold; where that is below the preset's, the preset's with --accumulate.
    """
    accumulate: int = 1
    """Micro-batches per step on each GPU; the result stays the same, memory falls."""
    total_kimg: float = 2000.0
    """Length of the run in thousands of images seen. May be raised later to go on with a finished run."""
    ema_kimg: float = 200.0
    """Half-life of the moving average of the weights, in kimg."""
    ema_rampup: float = 0.05
    """The half-life is at most this fraction of the images seen (0: no ramp-up)."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Type the convolutions run in. auto: bf16 where the device is fast at it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU where there is one, and only a GPU where Slurm gave one. cpu: never a GPU. cuda: a GPU or nothing."""
    compile: bool = False
    """torch.compile the networks; the first steps take minutes. On a CPU it needs a C++ compiler."""
    threads: int = 0
    """CPU threads per process (0: all that the job was given)."""

    # --- logging and checkpoints --------------------------------------------------------------------------------------
    log_kimg: float = 4.0
    """Kimg between rows in metrics.jsonl and TensorBoard."""
    sample_kimg: float = 50.0
    """Kimg between sample grids and the figures that belong to them."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints (fractions allowed)."""
    checkpoint_kimg: float = 0.0
    """Kimg between checkpoints, on top of the minutes (0: off)."""
    keep: int = 2
    """Checkpoints to keep, besides the last healthy one."""
    keep_weights: int = 0
    """Weights files to keep on the way, evenly spaced; predict.py --at KIMG takes one of them."""
    stop_when_worse: bool = False
    """End the run, as done, when a third of it and three looks have passed without anything better."""


@dataclass(frozen=True)
class SamplingConfig(TrainConfig):
    """What the kinds share that draw slices from nothing; no job of its own."""

    # --- data ---------------------------------------------------------------------------------------------------------
    condition: str = ""
    """Columns that the network is told of each slice, such as class,age,sex,slice; any of them may be unknown.

    class and slice (its place along the axis, 0 to 1) are there where the data have them, all others come from a table.
    """

    # --- figures while it trains --------------------------------------------------------------------------------------
    metric_kimg: float = 0.0
    """Kimg between KID, FID, precision, recall and coverage on other patients, by which the best weights are kept.

    0: off; then no best weights are kept.
    """
    feature_weights: str = ""
    """Network to measure with, as of predict.py evaluate. Default: a small encoder of the training slices, made once.
    """

    @property
    def labelled(self) -> bool:
        """Whether the network is told anything of a slice."""
        return bool(self.condition) or self.labelled_by_class

    @property
    def labelled_by_class(self) -> bool:
        """Whether that is, or begins with, its class."""
        return bool(getattr(self, "conditional", False))


@dataclass(frozen=True)
class GanConfig(SamplingConfig):
    """Train a StyleGAN2 on brain-MRI slices. Run the same command again to resume."""

    # --- the run ------------------------------------------------------------------------------------------------------
    preset: str = ""
    """A named configuration that the other flags override: adni256, adni128, oasis128, oasis64, quickstart."""

    # --- data ---------------------------------------------------------------------------------------------------------
    conditional: bool = False
    """Condition both networks on the class label (projection discriminator): --condition class."""
    hflip: bool = False
    """Mirror training slices left-right at random. Off: a brain's sides are not the same."""

    # --- networks -----------------------------------------------------------------------------------------------------
    z_dim: int = 512
    """Size of the latent z."""
    w_dim: int = 512
    """Size of the intermediate latent w."""
    mapping_layers: int = 8
    """Layers of the mapping network."""
    channel_base: int = 16384
    """Feature maps at resolution r are channel_base / r, at most channel-max."""
    channel_max: int = 512
    """Largest number of feature maps."""
    mbstd_group: int = AUTO
    """Group size of the minibatch standard deviation (contiguous rows of the batch).

    auto (-2): the largest of 4, 2 and 1 that divides --batch.
    """

    # --- objective ----------------------------------------------------------------------------------------------------
    loss: Literal["logistic", "rpgan"] = "rpgan"
    """rpgan: relativistic pairing, with R1 and R2. logistic: non-saturating, with R1: StyleGAN2-ADA's, and narrower."""
    gamma: float = float(AUTO)
    """Weight of the R1 (and R2) penalty (0: off). The knob to turn per data set: a factor of 2 and 4 either way.

    auto (-2): 0.002 x resolution squared / batch; with --loss logistic a tenth of that.
    """
    r1_interval: int = AUTO
    """Steps between gradient penalties (lazy regularisation). auto (-2): 2; with --loss logistic 16."""
    pl_weight: float = float(AUTO)
    """Weight of the path-length regularisation (0: off). auto (-2): 0; with --loss logistic 2."""
    pl_interval: int = 4
    """Steps between path-length regularisations."""
    pl_decay: float = 0.01
    """Decay of the running mean of path lengths."""
    style_mixing: float = float(AUTO)
    """Probability that a generated image mixes the styles of two latents. auto (-2): 0; with --loss logistic 0.9."""
    ada: Literal["off", "mri", "mri-flip"] = "mri"
    """Adaptive discriminator augmentation: shifts, scales, small rotations, brightness, contrast; mri-flip adds
    mirroring."""
    ada_target: float = float(AUTO)
    """What ADA steers to: the overfitting r_v against held-out slices, with --loss logistic the mean sign of D(real).

    auto (-2): 0.5; with --loss logistic 0.6.
    """
    ada_kimg: float = float(AUTO)
    """Kimg in which ADA's probability can move from 0 to 1. auto (-2): 500; with --init-from 100."""

    # --- optimisation -------------------------------------------------------------------------------------------------
    total_kimg: float = 5000.0
    """Length of the run in thousands of images seen. May be raised later to go on with a finished run."""
    lr: float = 0.0025
    """Adam learning rate of both networks."""
    ema_kimg: float = float(AUTO)
    """Half-life of the moving average of the generator's weights, in kimg. auto (-2): batch x 10 / 32."""


@dataclass(frozen=True)
class DenoisingConfig(TrainConfig):
    """What the VAE and the diffusion network share; no job of its own."""

    # --- the run ------------------------------------------------------------------------------------------------------
    preset: str = ""
    """A named configuration that the other flags override: adni256-ldm, quickstart."""

    # --- optimisation -------------------------------------------------------------------------------------------------
    lr: float = 1e-4
    """AdamW learning rate, after the warm-up."""
    warmup_kimg: float = 20.0
    """Kimg over which the learning rate rises from 0."""
    decay_kimg: float = 0.0
    """Kimg from the start in which the learning rate falls to a tenth along a cosine, to stay there (0: constant)."""
    weight_decay: float = 0.01
    """AdamW weight decay of matrices and convolutions; biases and norms have none."""
    clip: float = 1.0
    """Largest norm of the gradient; longer ones are shortened to it."""


@dataclass(frozen=True)
class VaeConfig(DenoisingConfig):
    """Train a KL-VAE on brain-MRI slices. Run the same command again to resume."""

    # --- network ------------------------------------------------------------------------------------------------------
    down: Literal[2, 4, 8] = 8
    """Pixels per latent along each side."""
    latent_channels: int = 8
    """Channels of the latents. 8 at down 8 reconstruct much better than 4 at twice the size of the cache."""
    width: int = 64
    """Channels at full resolution; 2, 4 and 4 times as many at each halving."""
    num_res: int = 2
    """Residual blocks per resolution."""
    hflip: bool = False
    """Mirror training slices left-right at random. Off: a brain's sides are not the same."""

    # --- learning rate ------------------------------------------------------------------------------------------------
    decay: Literal["cosine", "plateau"] = "cosine"
    """How the learning rate falls. cosine: over decay-kimg; plateau: by half when the loss stops falling."""
    plateau_kimg: float = 50.0
    """Plateau: kimg over which the training loss is averaged; it halves the rate unless that fell by 1 %."""

    # --- objective, all in means per value ----------------------------------------------------------------------------
    loss: Literal["l1", "mse"] = "l1"
    """Distance of pixels, on the scale -1 .. 1."""
    kl_weight: float = 1e-4
    """Weight of the KL divergence per latent value. Higher: smoother latents, blurrier slices."""
    structure_weight: float = 0.1
    """Weight of the perceptual term that needs no other network: SSIM and gradients at three scales (0: off)."""
    perceptual_file: str = ""
    """Weights of torchvision's vgg16 (.pth or .safetensors) for a perceptual term from its features. Default: none."""
    perceptual_weight: float = 0.1
    """Weight of that term."""
    gan_weight: float = 0.5
    """Weight of the patch discriminator's gradient relative to that of the reconstruction (0: no discriminator)."""
    gan_start_kimg: float = 200.0
    """Kimg after which the discriminator joins."""
    disc_width: int = 64
    """Channels of the patch discriminator's first layer."""


@dataclass(frozen=True)
class DiffusionConfig(DenoisingConfig, SamplingConfig):
    """Train a diffusion U-Net, on the latents of a VAE or on pixels. Run the same command again to resume."""

    # --- what it runs on ----------------------------------------------------------------------------------------------
    space: Literal["latent", "pixel"] = "latent"
    """latent: on the latents of a VAE. pixel: on the images themselves (64 px and below)."""
    vae: str = ""
    """Run directory of the VAE.

    Default: the newest finished one beside this run with the same data, resolution, channels and crop.
    """
    conditional: bool = False
    """Condition on the class label, with classes dropped at random for guidance: --condition class."""
    class_dropout: float = 0.1
    """Probability that a label is dropped in training; of --condition, that all of a slice's values are, and each."""

    # --- network ------------------------------------------------------------------------------------------------------
    widths: str = "64,128,256"
    """Channels at each resolution of the U-Net, finest first; each resolution is half of the one before."""
    num_res: int = 2
    """Residual blocks per resolution."""
    attention: str = "16,8"
    """Sides of the feature maps, in pixels, that have self-attention."""
    head_dim: int = 64
    """Channels of an attention head."""
    dropout: float = 0.1
    """Dropout inside the residual blocks; 0.2 for fewer than 10,000 slices."""

    # --- diffusion ----------------------------------------------------------------------------------------------------
    schedule: Schedule = "flow"
    """Noise schedule.

    flow: straight lines from data to noise; zero-snr: scaled-linear, rescaled to end at pure noise.
    """
    target: Target = "flow"
    """What the network predicts."""
    times: Times = "logit-normal"
    """Training times. fast-*: only the steps of Fast-DDPM, for its own few-step sampling."""
    fast_steps: int = 10
    """Steps of fast-uniform and fast-nonuniform."""
    min_snr_gamma: float = 0.0
    """Weight the loss by min(SNR, this) on x0 (0: off). 5 suits uniform times with epsilon or v."""
    sampler: Sampler = "midpoint"
    """Sampler of the grids while training."""
    steps: int = 20
    """Network calls per sample of the grids."""


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises ConfigError, one line, for anything else."""
    try:
        return files.read_json(path)
    except (OSError, ValueError) as error:
        text = f"{path}: cannot be read as JSON ({files.words(error)}); restore it, or use another --run"
        raise ConfigError(text) from None


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """'64,128' as (64, 128)."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if (not values and flag == "widths") or any(v < 1 for v in values) or (text.strip() and not values):
        raise ConfigError(f"--{flag} {text!r}: write whole numbers with commas, such as 64,128,256")
    return values
