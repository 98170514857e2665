"""The columns of metrics.jsonl: one row each says where a person sees it. Torch-free.

A column that a run writes and no row names goes to TensorBoard's last group, `other`, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column. A name that ends in `_*` stands for all that begin alike: a class, a quarter of the noise levels."""

    name: str
    group: str  # of TensorBoard
    panel: str = ""  # of losses.png; '' leaves it out
    short: str = ""  # in the progress line; '' leaves it out
    told: bool = False  # in `launch.py status RUN` and in the table of a sweep
    higher: bool = False  # is better; of the others the lower is, where either is
    judges: bool = False  # the best weights of a run are those with the best of this figure
    off_at_zero: bool = False  # never anything but zero, it belongs to something that is switched off

    def matches(self, name: str) -> bool:
        """Whether this row is of the column `name`."""
        return name == self.name or (self.name.endswith("_*") and name.startswith(self.name[:-1]))


GROUPS = (  # of TensorBoard, in the order in which they stand there
    "loss", "quality", "validation", "health", "discriminator", "regularisers", "latents", "optimiser", "speed"
)  # fmt: skip
LOSS, DIVERSITY, PENALTIES = "loss", "diversity", "regularisers"
ADA = "ADA's p, and what it steers by"
OTHER_PATIENTS = "loss on other patients"
PSNR, SSIM, SPREAD = "PSNR of reconstructions, dB", "SSIM of reconstructions", "spread of the latents"
KID, FID, REACH = "KID", "FID", "precision, recall, coverage"
GOALS = {DIVERSITY: (1.0, "as varied as real slices")}  # of a panel: what its curves should come to, and why
TRAIN = "_train"  # ends the names of figures of real training slices: what the same without it may come to

# Generated slices against held-out ones, and real training slices against the same.
QUALITY = (
    Column("kid", "quality", KID, "KID", told=True, judges=True),
    Column("fid", "quality", FID, "FID", told=True),
    Column("precision", "quality", REACH, told=True, higher=True),
    Column("recall", "quality", REACH, "rec", told=True, higher=True),
    Column("coverage", "quality", REACH, told=True, higher=True),
    Column("kid_train", "quality", KID),
    Column("fid_train", "quality", FID),
    Column("precision_train", "quality", REACH, higher=True),
    Column("recall_train", "quality", REACH, higher=True),
    Column("coverage_train", "quality", REACH, higher=True),
    Column("best_kid", "quality", told=True),
    # Shares of slices: nearer to a training slice than 95 % of held-out ones; what a probe of real slices takes for a
    # class, of its own (found) and of all others (taken).
    Column("copies", "quality"),
    Column("found_*", "quality", higher=True),
    Column("real_found_*", "quality", higher=True),
    Column("taken_*", "quality", higher=False),
    Column("real_taken_*", "quality", higher=False),
)
GENERATIVE = (
    Column("diversity", "health", DIVERSITY, "div", told=True, higher=True),
    Column("diversity_*", "health", DIVERSITY, higher=True),
    *QUALITY,
)
GAN = (
    Column("loss_D", "loss", LOSS, "D", told=True),
    Column("loss_G", "loss", LOSS, "G", told=True),
    Column("logits_real", "discriminator", "D's logits"),
    Column("logits_fake", "discriminator", "D's logits"),
    Column("logits_held", "discriminator", "D's logits"),
    Column("sign_real", "discriminator"),
    Column("r1", "regularisers", PENALTIES, "r1", off_at_zero=True),
    Column("r2", "regularisers", PENALTIES, off_at_zero=True),
    Column("pl_penalty", "regularisers", PENALTIES, off_at_zero=True),
    Column("path_length", "regularisers", PENALTIES, "pl", off_at_zero=True),
    Column("pl_mean", "regularisers"),
    Column("ada_p", "health", ADA, "ada", off_at_zero=True),
    Column("r_t", "health", ADA),
    Column("r_v", "health", ADA, "r_v"),
    *GENERATIVE,
)
OPTIMISER = (Column("grad_norm", "optimiser"), Column("lr", "optimiser"))
VAE = (
    Column("loss_pixels", "loss", LOSS, "pixels", told=True),
    Column("loss_structure", "loss", LOSS),
    Column("loss_perceptual", "loss", LOSS),
    Column("loss_adversarial", "loss", LOSS),
    Column("loss_D", "loss", LOSS, "D"),
    Column("kl", "regularisers", PENALTIES, "kl", told=True),
    Column("val_psnr", "validation", PSNR, "PSNR", told=True, higher=True),
    Column("val_ssim", "validation", SSIM, "SSIM", told=True, higher=True),
    Column("val_psnr_head", "validation", PSNR, higher=True),
    Column("val_ssim_head", "validation", SSIM, higher=True),
    Column("mean_slice_psnr", "validation"),
    Column("val_l1", "validation", judges=True),
    Column("best_val_l1", "validation", told=True),
    Column("train_psnr", "validation", PSNR, "PSNR", told=True, higher=True),
    Column("train_ssim", "validation", SSIM, "SSIM", told=True, higher=True),
    Column("train_psnr_head", "validation", PSNR, higher=True),
    Column("train_ssim_head", "validation", SSIM, higher=True),
    Column("train_l1", "validation", judges=True),
    Column("best_train_l1", "validation", told=True),
    Column("latent_std", "latents", SPREAD),
    Column("posterior_std", "latents", SPREAD),
    Column("active_channels", "latents"),
    Column("latent_mean", "latents"),
    Column("latent_std_min", "latents"),
    Column("latent_std_max", "latents"),
    Column("gan_balance", "optimiser"),
    *OPTIMISER,
)
DIFFUSION = (
    Column("loss", "loss", LOSS, "loss", told=True),
    Column("val_loss", "validation", OTHER_PATIENTS, "val", told=True),
    Column("val_loss_*", "validation", OTHER_PATIENTS),
    Column("train_loss", "validation", OTHER_PATIENTS, "train", told=True),
    Column("train_loss_*", "validation", OTHER_PATIENTS),
    Column("sample_spread", "health"),
    *GENERATIVE,
    *OPTIMISER,
)
# What every run logs of the machine, and where it is.
COMMON = (
    Column("best_kimg", "quality", told=True),
    Column("img_per_s", "speed", told=True, higher=True),
    Column("sec_per_kimg", "speed"),
    Column("tflops", "speed", higher=True),
    Column("peak_share", "speed", higher=True),
    Column("data_wait", "speed"),
    Column("checkpoint_wait", "speed"),
    Column("metric_wait", "speed"),
    Column("gpu_gb", "speed", short="GB"),
    Column("gpu_util", "speed"),
    Column("rss_gb", "speed"),
)
PLACE = ("nimg", "kimg")  # no columns but the place of a row
