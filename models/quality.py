"""How good generated slices are: distances between sets of feature vectors, diversity of pairs, copies of the training
set.

Everything here takes feature arrays (one row per image) or uint8 images and knows no network. A figure is only worth
something beside the same figure of real slices (training against held-out ones), and only in the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models import copies
from models.metrics import ssim_terms

CHUNK = 1024  # rows of a distance matrix that are in memory at once
MS_SSIM_BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang 2003, table 1
NEIGHBOURS = 3  # of a real sample that its ball reaches to (Kynkaanniemi 2019)
THUMBNAIL = 64  # pixels at which images are compared with the training set (Akbar 2023)


def check_features(*sets: Tensor) -> None:
    """ValueError unless all are (N, D) of the same D, finite, with at least two rows."""
    for x in sets:
        if x.ndim != 2 or x.shape[1] != sets[0].shape[1] or len(x) < 2:
            raise ValueError(f"features must be (N >= 2, D) of one D, got {[tuple(s.shape) for s in sets]}")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise ValueError("features are not finite: the images or the feature weights are damaged")


# --- Frechet distance -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and scatter sum (x - mean)(x - mean)^T (D, D) of a set, in fp64; sets add up (Chan 1979)."""

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """features (N, D) -> their moments."""
        x = features.double()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: Moments) -> Moments:
        n, delta = self.count + other.count, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / n)
        return Moments(n, self.mean + delta * (other.count / n), scatter)

    @property
    def covariance(self) -> Tensor:
        """(D, D), unbiased."""
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """The symmetric root of the covariance (D, D); the jackknife needs that of the real slices often."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """Frechet distance of two Gaussians (Dowson 1982; FID of Heusel 2017, eq. 6):
    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_b^1/2 C_a C_b^1/2)^1/2), 0 for equal moments.

    The matrix in the last root is symmetric, so its eigenvalues are found stably, also where the covariances are
    singular.
    """
    inner = b.root @ a.covariance @ b.root
    trace = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace
    return max(float(distance), 0.0)


def frechet_with_error(fake: Tensor, real: Tensor, groups: int = 10) -> tuple[float, float]:
    """(Frechet distance of the two sets, its standard error over the choice of generated samples).

    fake (N, D), real (M, D). The error is the jackknife that leaves out one of `groups` contiguous parts of `fake` at a
    time; a bootstrap would repeat samples, which alone raises the distance. With few samples the distance itself is
    biased upwards, by much where D is near N: compare sets of equal N only.
    """
    check_features(fake, real)
    target = Moments.of(real)
    parts = [Moments.of(part) for part in fake.tensor_split(min(groups, len(fake) // 2))]
    whole = frechet_distance(sum_of(parts), target)
    if len(parts) < 2:
        return whole, float("nan")
    left = torch.tensor([frechet_distance(sum_of(parts[:i] + parts[i + 1 :]), target) for i in range(len(parts))])
    return whole, float(((len(left) - 1) / len(left) * (left - left.mean()).square().sum()).sqrt())


def sum_of(parts: list[Moments]) -> Moments:
    """The moments of several parts taken together; at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


# --- kernel distance --------------------------------------------------------------------------------------------------
def kernel_distance(
    fake: Tensor, real: Tensor, generator: torch.Generator, *, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3 (Binkowski 2018, section 3): (mean, standard deviation) over
    `subsets` random subsets of both sets. Near 0, and as often below as above, where the distributions are equal.

    fake (N, D), real (M, D), generator on the CPU. The deviation is that of one subset of the size used, which is at
    most half of either set; unlike the Frechet distance the mean does not depend on that size.
    """
    check_features(fake, real)
    size = max(min(size, len(fake) // 2, len(real) // 2), 2)
    estimates = []
    for _ in range(subsets):
        x = fake[torch.randperm(len(fake), generator=generator)[:size].to(fake.device)].double()
        y = real[torch.randperm(len(real), generator=generator)[:size].to(real.device)].double()
        estimates.append(squared_mmd(x, y))
    found = torch.stack(estimates)
    return float(found.mean()), float(found.std())


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate (Gretton 2012, eq. 3) with the cubic kernel; x (N, D), y (M, D) -> ()."""
    xx, yy, xy = ((a @ b.T / x.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return within - 2 * xy.mean()


# --- precision, recall, density, coverage -----------------------------------------------------------------------------
def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """a (N, D), b (M, D) -> (N, M) in fp64: in fp32 the product form loses the distances of near neighbours."""
    a, b = a.double(), b.double()
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)


def knn_radii(x: Tensor, ks: tuple[int, ...]) -> list[Tensor]:
    """For each k the squared distance (N,) from every row of x (N, D) to its k-th nearest other row."""
    if max(ks) >= len(x):
        raise ValueError(f"{len(x)} samples have no {max(ks)}-th neighbour; use at least {max(ks) + 1}")
    rows = []
    for start in range(0, len(x), CHUNK):
        d = squared_distances(x[start : start + CHUNK], x)
        d[torch.arange(len(d)), torch.arange(start, start + len(d))] = -1  # itself comes first, also among its copies
        rows.append(d.topk(max(ks) + 1, largest=False, sorted=True).values[:, list(ks)])
    return list(torch.cat(rows).T)


def in_a_ball(distances: Tensor, radii: Tensor) -> Tensor:
    """Which rows of squared distances (N, M) to real samples reach into the ball of one, squared radii (M,): bool (N,).
    The share of them is the precision (Kynkaanniemi 2019, eq. 1)."""
    return (distances <= radii).any(1)


def manifold_figures(fake: Tensor, real: Tensor, *, k: int = NEIGHBOURS, k_density: int = 5) -> dict[str, float]:
    """precision and recall (Kynkaanniemi 2019, eq. 1 and 2) with k neighbours, density and coverage (Naeem 2020, eq. 3
    and 4) with k_density. fake (N, D), real (M, D).

    Precision: share of generated samples inside a ball around a real one, whose radius reaches that one's k-th real
    neighbour; recall: the same with the roles exchanged. Density counts the balls (it may exceed 1), coverage is the
    share of real samples whose ball holds a generated one; they are less led astray by outliers.
    """
    check_features(fake, real)
    centre = real.double().mean(0)
    fake, real = fake.double() - centre, real.double() - centre
    near, near_density = knn_radii(real, (k, k_density))
    (around_fake,) = knn_radii(fake, (k,))
    precise, balls = 0, 0
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for start in range(0, len(fake), CHUNK):
        d = squared_distances(fake[start : start + CHUNK], real)
        precise += int(in_a_ball(d, near).sum())
        inside = d <= near_density
        balls += int(inside.sum())
        covered |= inside.any(0)
        recalled |= (d <= around_fake[start : start + CHUNK, None]).any(0)
    return {
        "precision": precise / len(fake),
        "recall": float(recalled.double().mean()),
        "density": balls / (k_density * len(fake)),
        "coverage": float(covered.double().mean()),
    }


def set_figures(samples: Tensor, heldout: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Every figure that compares a set of features (N, D) with that of the held-out slices (M, D); generator as of
    kernel_distance."""
    fid, error = frechet_with_error(samples, heldout)
    kid, deviation = kernel_distance(samples, heldout, generator)
    return {"fid": fid, "fid_error": error, "kid": kid, "kid_sd": deviation} | manifold_figures(samples, heldout)


def quick_figures(samples: Tensor, heldout: Tensor) -> dict[str, float]:
    """kid, fid, precision, recall and coverage of a few hundred samples (N, D) against held-out slices (M, D): no
    errors, no draws. KID is the one unbiased estimate over all rows of both."""
    check_features(samples, heldout)
    fid = frechet_distance(Moments.of(samples), Moments.of(heldout))
    reach = manifold_figures(samples, heldout)
    kid = float(squared_mmd(samples.double(), heldout.double()))
    return {"kid": kid, "fid": fid, **{name: reach[name] for name in ("precision", "recall", "coverage")}}


# --- MS-SSIM ----------------------------------------------------------------------------------------------------------
def ms_ssim_scales(height: int, width: int) -> tuple[int, tuple[float, ...]]:
    """(window, weights of the scales) for images of that size: Wang's 11 and five scales from 176 px on, below that 7
    and as many scales (of at most five) as leave the smallest image as large as the window, fewer weights summing to 1.
    """
    side = min(height, width)
    window = 11 if side >= 176 else 7
    count = sum(side >> scale >= window for scale in range(len(MS_SSIM_BETAS)))
    if count < 2:
        raise ValueError(f"MS-SSIM needs images of at least 14 px, got {height} x {width}")
    total = 1.0 if count == len(MS_SSIM_BETAS) else sum(MS_SSIM_BETAS[:count])  # Wang's five are used as printed
    return window, tuple(beta / total for beta in MS_SSIM_BETAS[:count])


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang 2003, eq. 7) of image pairs a, b uint8 (B, C, H, W) -> (B,), 1 for equal.

    Gaussian window of sigma 1.5, no padding, data range 255 whatever the images hold. Negative structure counts as 0.
    """
    if a.dtype != torch.uint8 or a.shape != b.shape or b.dtype != torch.uint8:
        raise ValueError(
            f"ms_ssim takes two uint8 batches of one shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        )
    window, weights = ms_ssim_scales(*a.shape[-2:])
    x, y = (images.float().flatten(0, 1)[:, None] / 255 for images in (a, b))
    product = torch.ones(len(x), device=a.device)
    for scale, weight in enumerate(weights):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        light, light_most, structure, structure_most = ssim_terms(x, y, window)
        last = scale == len(weights) - 1
        values = structure / structure_most * (light / light_most if last else 1.0)
        value = values.flatten(1).mean(1)
        product = product * value.clamp_min(0) ** weight
    return product.view(len(a), -1).mean(1)


def draw_pairs(groups: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """(P, 2) int64, P <= pairs: random pairs of rows that are not in one group; groups (N,) int64 on the CPU.

    A group is a subject: neighbouring slices of one brain are alike and say nothing about diversity.
    """
    if len(groups) < 2:
        return torch.empty(0, 2, dtype=torch.int64)
    drawn = torch.randint(len(groups), (4 * pairs, 2), generator=generator)
    keep = (drawn[:, 0] != drawn[:, 1]) & (groups[drawn[:, 0]] != groups[drawn[:, 1]])
    return drawn[keep][:pairs]


def pair_similarity(images: Tensor, pairs: Tensor, batch: int = 50) -> Tensor:
    """MS-SSIM (P,) of pairs (P, 2) of the images, uint8 (N, C, H, W)."""
    return torch.cat([ms_ssim(images[part[:, 0]], images[part[:, 1]]) for part in pairs.split(batch)])


# --- copies of the training set ---------------------------------------------------------------------------------------
def thumbnails(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> uint8 (N, C, s, s), averaged down to s = 64 px where they are larger."""
    x = images.float()
    if max(x.shape[-2:]) > THUMBNAIL:
        x = F.adaptive_avg_pool2d(x, THUMBNAIL)
    return x.round().to(torch.uint8)


def unit_rows(x: Tensor, centre: Tensor | None = None) -> Tensor:
    """Rows (N, D) less their own mean (or less `centre` (D,)), of length 1: dot products are correlations (cosines)."""
    x = x.float()
    x = x - (x.mean(1, keepdim=True) if centre is None else centre.float())
    return x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)


def nearest(
    query: Tensor, bank: Tensor, groups: tuple[Tensor, Tensor] | None = None, centre: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(distance (N,), index (N,)) of the nearest row of bank (M, D) to each row of query (N, D): 1 - correlation, or
    1 - cosine about `centre`. Rows of a pair of equal `groups` (of query, of bank) are not neighbours. Any dtype; in
    chunks.
    """
    best = torch.full((len(query),), -2.0, device=query.device)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(bank), CHUNK):
        part = unit_rows(bank[start : start + CHUNK], centre)
        for row in range(0, len(query), CHUNK):
            rows = slice(row, row + CHUNK)
            similarity = unit_rows(query[rows], centre) @ part.T
            if groups is not None:
                similarity[groups[0][rows, None] == groups[1][None, start : start + CHUNK]] = -2.0
            value, where = similarity.max(1)
            better = value > best[rows]
            best[rows] = torch.where(better, value, best[rows])
            index[rows] = torch.where(better, where + start, index[rows])
    return (1 - best).clamp_min(0), index


class Pair(NamedTuple):
    """A sample and its nearest training slice, by their rows; of pictures the move that lays one over the other."""

    generated: int
    training: int
    distance: float
    move: Tensor | None


def found_near(
    query: Tensor,
    bank: Tensor,
    groups: tuple[Tensor, Tensor] | None = None,
    centre: Tensor | None = None,
    track: Callable[[range], Iterable[int]] = iter,
) -> copies.Found:
    """The nearest of bank to each of query: of thumbnails over all moves, of features by `nearest`."""
    check_features(query.flatten(1), bank.flatten(1))
    if query.ndim == 4:
        return copies.search(query, bank, groups, track)
    return copies.Found(*nearest(query, bank, groups, centre), None)


def copying(
    fake: Tensor,
    train: Tensor,
    heldout: Tensor,
    heldout_groups: Tensor,
    centre: Tensor | None = None,
    pairs: int = 16,
    track: Callable[[range], Iterable[int]] = iter,
) -> tuple[dict[str, float], list[Pair]]:
    """Whether generated samples are copies: (figures, the closest pairs).

    fake (N, D), train (M, D), heldout (H, D) hold features; or (N, C, S, S) uint8 each hold thumbnails, which are
    compared over all moves (models/copies.py, with its `track`). heldout_groups (H,): the subjects as numbers.
    Beside what `nearer_than_any` gives: `below_5th_percentile`: share of samples nearer to a training slice than 95 %
    of held-out slices are (Dar 2025); 0.05 is what held-out slices have. `nearer_than_heldout`: probability that a
    sample is nearer to the training set than a held-out slice is (Meehan 2020); 0.5 is even, 1 copying. `median_ratio`:
    nearest training over nearest held-out distance. The training set is larger, which alone makes it less than 1:
    `median_ratio_of_heldout` is the same of held-out slices, whose own subject is left out, and `relative_ratio` the
    quotient: about 1 is good, 0 copying.
    """

    near = partial(found_near, centre=centre, track=track)
    found = near(fake, train)
    to_train, to_heldout = found.distance, near(fake, heldout).distance
    real_to_train = near(heldout, train).distance
    real_to_heldout = near(heldout, heldout, (heldout_groups, heldout_groups)).distance
    ratio = float((to_train / to_heldout.clamp_min(1e-6)).median())
    real_ratio = float((real_to_train / real_to_heldout.clamp_min(1e-6)).median())
    ranked = real_to_train.sort().values
    above = len(ranked) - torch.searchsorted(ranked, to_train, right=True)
    ties = torch.searchsorted(ranked, to_train, right=True) - torch.searchsorted(ranked, to_train)
    figures = nearer_than_any(to_train, real_to_train, heldout_groups) | {
        "below_5th_percentile": float(
            (to_train < real_to_train[no_copies(real_to_train)].quantile(0.05)).double().mean()
        ),
        "nearer_than_heldout": float((above + ties / 2).double().mean() / len(ranked)),
        "median_ratio": ratio,
        "median_ratio_of_heldout": real_ratio,
        "relative_ratio": ratio / max(real_ratio, 1e-6),
    }
    order = to_train.argsort(stable=True)[:pairs].tolist()
    moves = [None if found.move is None else found.move[i].cpu() for i in order]
    return figures, [Pair(i, int(found.index[i]), float(to_train[i]), m) for i, m in zip(order, moves, strict=True)]


def no_copies(real_to_train: Tensor) -> Tensor:
    """Which held-out slices are no training slices themselves, bool (H,): those not nearer than a sixteenth of the
    median, an eighth of the 5th percentile where the share nearer than d falls as d^4. Copies would hide behind the
    others, so these are left out."""
    return real_to_train >= real_to_train.median() / 16


def nearest_heldout(real_to_train: Tensor) -> Tensor:
    """The least distance of a held-out slice (H,) to the training set, copies left out: who is nearer, is nearer than
    any person is whom the model has not seen."""
    return real_to_train[no_copies(real_to_train)].min()


def nearer_than_any(to_train: Tensor, real_to_train: Tensor, groups: Tensor) -> dict[str, float]:
    """Samples' distances to the training set (N,) beside those of held-out slices (H,), of subjects `groups` (H,).

    `nearer_than_any`: how many samples are below the least held-out distance, `_expected`: N / (H + 1), what
    exchangeability gives; `four_times_nearer`: how many are below a quarter of it. `chance`: of so many or more, where
    samples are to the training set what held-out slices are. The first k of N + H all are samples with a chance of at
    most (N / (N + H))^k. Of those that are r times nearer there are r^4 times fewer, and so N counts: slices vary in
    eight directions or more, and the share nearer than d (1 - correlation, a squared length) falls at least as d^4. The
    least chance over r, times the number of looks, is given.

    Slices of one subject are alike, and so are not H draws: H is lessened by the share of different subjects among the
    nearest twentieth, at least 100. `heldout_copies`: held-out slices that are training slices themselves (no_copies).
    """
    kept = no_copies(real_to_train)
    real, who = real_to_train[kept], groups[kept]
    nearest_ones = real.argsort()[: max(len(real) // 20, 100)]
    n, draws = len(to_train), len(real) * len(who[nearest_ones].unique()) / len(nearest_ones)
    least = nearest_heldout(real_to_train)
    counts = {r: int((to_train < least / r).sum()) for r in (1, 2, 4, 8, 16, 32)}
    chance = min((n / r**4 / (n / r**4 + draws)) ** count for r, count in counts.items())
    return {
        "nearer_than_any": counts[1],
        "nearer_than_any_expected": n / (draws + 1),
        "four_times_nearer": counts[4],
        "chance": min(len(counts) * chance, 1.0),
        "heldout_copies": int((~kept).sum()),
    }


class CopyWatch:
    """Whether the samples of a run turn into training slices: for every tick, with a few hundred samples.

    Of thumbnails, uint8 (N, C, S, S), over all moves; 14 ms of a CPU for each sample beside 20,000 slices. Features are
    cheaper, and blind to a copy that is moved by a pixel. The figure of a sample is its distance to the nearest
    training slice over that to the nearest held-out one: what is hard, easy or blurred about it is in both. Held-out
    slices, of two subjects or more, have such ratios too, their own subject left out.
    """

    def __init__(self, train: Tensor, heldout: Tensor, heldout_groups: Tensor, centre: Tensor | None = None):
        """train (M, ...), heldout (H, ...), as many of them as there is time for, heldout_groups (H,) their subjects as
        numbers; centre: of features."""
        self.train, self.heldout, self.centre = train, heldout, centre
        own = self.near(heldout, heldout, (heldout_groups, heldout_groups))
        to_train = self.near(heldout, train)
        self.threshold = (to_train / own.clamp_min(1e-6))[no_copies(to_train)].quantile(0.05)

    def near(self, query: Tensor, bank: Tensor, groups: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(N,) distances."""
        return found_near(query, bank, groups, self.centre).distance

    def share(self, samples: Tensor) -> float:
        """The share of samples (N, ...) whose ratio is below that of 95 % of held-out slices:
        about 0.05, 1 of copies."""
        ratio = self.near(samples, self.train) / self.near(samples, self.heldout).clamp_min(1e-6)
        return float((ratio < self.threshold).double().mean())


# --- classes ----------------------------------------------------------------------------------------------------------
class LinearProbe:
    """A ridge classifier on features, in closed form and so the same on every run; classes weigh alike."""

    def __init__(self, features: Tensor, labels: Tensor, classes: int, ridge: float = 0.01):
        """features (N, D), labels (N,) in 0..classes-1."""
        x = features.double()
        self.mean, self.scale = x.mean(0), x.std(0).clamp_min(1e-6)
        x = self._standard(features)
        counts = torch.bincount(labels, minlength=classes).clamp_min(1).double()
        weight = (1 / counts)[labels][:, None]
        target = F.one_hot(labels, classes).double()
        gram = x.T @ (weight * x)
        damping = ridge * gram.trace() / len(gram) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        self.weight = torch.linalg.solve(gram + damping, x.T @ (weight * target))

    def _standard(self, features: Tensor) -> Tensor:
        x = (features.double() - self.mean) / self.scale
        return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], 1)

    def predict(self, features: Tensor) -> Tensor:
        """features (N, D) -> class (N,) int64."""
        return (self._standard(features) @ self.weight).argmax(1)


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes present of the share that is recognised; 1 / classes is chance."""
    return float(torch.stack([(predicted[labels == k] == k).double().mean() for k in labels.unique()]).mean())


def class_fidelity(
    fake: tuple[Tensor, Tensor], train: tuple[Tensor, Tensor], heldout: tuple[Tensor, Tensor], classes: int
) -> dict[str, float]:
    """How well classes can be told apart, each argument (features (N, D), labels (N,)), as balanced accuracies.

    `accuracy`: trained on real training slices, tested on generated ones; `accuracy_of_heldout`: on real held-out ones,
    which is what to expect; `train_on_generated`: trained on generated slices, tested on held-out ones (TSTR).
    Both of the first two being low means that the features do not show the class, not that the samples are wrong.
    """
    on_real = LinearProbe(*train, classes)
    on_fake = LinearProbe(*fake, classes)
    return {
        "accuracy": balanced_accuracy(on_real.predict(fake[0]), fake[1]),
        "accuracy_of_heldout": balanced_accuracy(on_real.predict(heldout[0]), heldout[1]),
        "train_on_generated": balanced_accuracy(on_fake.predict(heldout[0]), heldout[1]),
    }
