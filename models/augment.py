"""ADA: adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with Limited Data"), for MR slices.

What the discriminator sees, real or generated, is shifted, scaled, turned a little and changed in brightness, each with
probability p; the controller raises p while the discriminator overfits. Such augmentations do not leak into the
generated images while p stays below 0.8 (section 2.2). Never vertical flips; mirroring only in `mri-flip`, for data
whose sides may be exchanged.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.draws import moved

KINDS = {
    "mri": ("shift", "scale", "rotate", "stretch", "brightness", "contrast"),
    "mri-flip": ("mirror", "shift", "scale", "rotate", "stretch", "brightness", "contrast"),
}
WARPS = ("mirror", "scale", "stretch", "rotate", "shift")  # in the order of their coins
SHIFT = 0.125  # largest shift as a share of the side (appendix B)
ROTATE = 15.0  # largest rotation in degrees: a head may be tilted, not lie on its side
SCALE_STD, STRETCH_STD, BRIGHTNESS_STD, CONTRAST_STD = 0.2, 0.2, 0.2, 0.5  # log2 for all but brightness (appendix B)
PACE = 0.9  # what is left of r_v's differences at the next look, four steps later
P_SCHEDULED = 0.3  # of a relativistic loss without held-out slices, as R3GAN ends (Huang 2024)
BACKGROUND = -1.0  # black; what lies outside of the image


def draw_augmentation(
    batch: int, p: float, resolution: int, generator, device, kinds: tuple[str, ...]
) -> dict[str, Tensor]:
    """Every random decision for a global batch, as tensors on the device whose first dimension is the batch.

    Returns `grid` (B, 2, 3), the map from output to input coordinates in [-1, 1] that F.affine_grid takes, and
    `contrast`, `brightness` (B,). The number of draws does not depend on p or on the kinds.
    """
    uniform = torch.rand(batch, 6, generator=generator)
    normal = torch.randn(batch, 4, generator=generator)
    coins = torch.rand(batch, 7, generator=generator) < p

    def when(kind: str, column: int, value: Tensor, neutral: float) -> Tensor:
        on = coins[:, column] & (kind in kinds)
        return torch.where(on, value, torch.full_like(value, neutral))

    mirror = when("mirror", 0, torch.where(uniform[:, 0] < 0.5, -1.0, 1.0), 1.0)
    scale = when("scale", 1, torch.exp2(normal[:, 0] * SCALE_STD), 1.0)
    stretch = when("stretch", 2, torch.exp2(normal[:, 1] * STRETCH_STD), 1.0)
    angle = when("rotate", 3, (uniform[:, 1] * 2 - 1) * math.radians(ROTATE), 0.0)
    # Whole pixels, so that a shift alone does not blur; [-1, 1] spans `resolution` pixels.
    pixels = torch.round((uniform[:, 2:4] * 2 - 1) * SHIFT * resolution)
    dx, dy = (when("shift", 4, pixels[:, i] * 2 / resolution, 0.0) for i in range(2))
    cos, sin = angle.cos(), angle.sin()
    # Inverse map: undo the shift, turn back, then divide by the magnifications.
    ax, ay = mirror / (scale * stretch), stretch / scale
    linear = torch.stack([ax * cos, ax * sin, -ay * sin, ay * cos], 1).view(batch, 2, 2)
    offset = -(linear @ torch.stack([dx, dy], 1)[:, :, None])
    params = {
        "grid": torch.cat([linear, offset], 2),
        "brightness": when("brightness", 5, normal[:, 2] * BRIGHTNESS_STD, 0.0),
        "contrast": when("contrast", 6, torch.exp2(normal[:, 3] * CONTRAST_STD), 1.0),
        # Rows that are left as they are skip the resampling in `augment`.
        "warped": torch.stack([coins[:, i] & (kind in kinds) for i, kind in enumerate(WARPS)]).any(0),
    }
    return {name: moved(value, device) for name, value in params.items()}


def fingerprint(kinds: tuple[str, ...]) -> list[float]:
    """What is drawn for eight images, as numbers: a run resumed by code that draws otherwise would become another
    run."""
    drawn = draw_augmentation(8, 0.5, 64, torch.Generator().manual_seed(0), torch.device("cpu"), kinds)
    return [round(x, 3) for value in drawn.values() for x in value.float().flatten().tolist()]


def rows(params: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    """The parameters of some rows of the global batch."""
    return {name: value[start:stop] for name, value in params.items()}


def augment(images: Tensor, params: dict[str, Tensor]) -> Tensor:
    """Apply drawn augmentations to images (B, C, R, R) in [-1, 1]; differentiable. Untouched rows stay exactly as they
    are.

    One bilinear resampling, exact for shifts by whole pixels. Brightness and contrast act on the distance from black,
    so that the background stays black.
    """
    b, c, h, w = images.shape
    x = (images - BACKGROUND).float()
    grid = F.affine_grid(params["grid"], [b, c, h, w], align_corners=False)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x = torch.where(params["warped"][:, None, None, None], moved, x)
    inside = x.clamp(0, 1)  # brightness reaches full strength over a head and none over the background
    x = x * params["contrast"][:, None, None, None] + inside * params["brightness"][:, None, None, None]
    return x + BACKGROUND


def augmented(images: Tensor, params: dict, start: int, stop: int) -> Tensor:
    """Rows start to stop of a global batch as D sees them; {}: as they are."""
    return augment(images, rows(params, start, stop)) if params else images


class AdaController:
    """Steers p so that one figure of overfitting stays at `target` (section 3).

    r_t: the mean sign of D(real), for logits that have a zero. r_v: (E[D(train)] - E[D(held out)]) / (E[D(train)] -
    E[D(generated)]) (equation 1), for which only differences count; 0 is no overfitting, 1 is all of it.
    """

    def __init__(self, target: float = 0.6, speed_kimg: float = 500.0, interval: int = 4, p_max: float = 0.8):
        self.target, self.speed_kimg, self.interval, self.p_max = target, speed_kimg, interval, p_max
        self.p, self.r_t, self.steps, self.images, self.count = 0.0, 0.0, 0, 0.0, 0.0
        self.sign_sum: Tensor | float = 0.0
        self.r_v, self.to_held, self.to_generated = 0.0, 0.0, 0.0  # the two differences of r_v, over about 40 steps

    @property
    def looks(self) -> bool:
        """Whether p moves at the end of this step: then D is asked about held-out slices."""
        return (self.steps + 1) % self.interval == 0

    def step(self, stats: dict[str, Tensor], batch: int, nimg: int, by: str) -> None:
        """After a step of `batch` images from `nimg` on, whose means () are `stats`. `by`: r_t, r_v, or schedule where
        nothing can be measured: p then rises to P_SCHEDULED as fast as it may move."""
        self.add(stats["sign_real"] * batch, batch)
        if "logits_held" in stats:
            self.compare(stats["logits_real"], stats["logits_held"], stats["logits_fake"])
        self.update(batch, by)
        if by == "schedule":
            self.p = min((nimg + batch) / (self.speed_kimg * 1000), P_SCHEDULED) if self.speed_kimg else 0.0

    def add(self, sign_sum: Tensor, count: float) -> None:
        """Add the sum of the signs of D(real) over `count` samples; stays on the device until p moves."""
        self.sign_sum, self.count = self.sign_sum + sign_sum.detach().double(), self.count + count

    def compare(self, train: Tensor, held_out: Tensor, generated: Tensor) -> None:
        """Take in the mean logits () of one step for r_v, which is 0 while D cannot tell generated from real."""
        self.to_held = PACE * self.to_held + (1 - PACE) * float(train - held_out)
        self.to_generated = PACE * self.to_generated + (1 - PACE) * float(train - generated)
        self.r_v = self.to_held / self.to_generated if self.to_generated > 0 else 0.0

    def update(self, batch: int, by: str = "r_t") -> None:
        """Once per step; every `interval` steps p moves by at most the images since, over speed_kimg, unless it follows
        a schedule."""
        self.steps, self.images = self.steps + 1, self.images + batch
        if self.steps % self.interval:
            return
        self.r_t = float(self.sign_sum) / max(self.count, 1.0)
        figure = {"r_t": self.r_t, "r_v": self.r_v, "schedule": self.target}[by]
        direction = (figure > self.target) - (figure < self.target)
        move = self.images / (self.speed_kimg * 1000) if self.speed_kimg else 0.0
        self.p = min(max(self.p + direction * move, 0.0), self.p_max)
        self.sign_sum, self.count, self.images = 0.0, 0.0, 0.0

    def state_dict(self) -> dict:
        """Target, speed, strength p and the signs gathered since its last change."""
        return {
            "p": self.p,
            "r_t": self.r_t,
            "steps": self.steps,
            "images": self.images,
            "count": self.count,
            "sign_sum": float(self.sign_sum),
            "r_v": self.r_v,
            "to_held": self.to_held,
            "to_generated": self.to_generated,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a state_dict; one of before r_v has none of it."""
        for name in self.state_dict().keys() & state.keys():
            setattr(self, name, state[name])
