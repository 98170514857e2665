"""Batches: the data at a position are a function of (seed, position) alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batches import Batches, flip_coins, sample_order, to_float, to_uint8

N = 37


@pytest.fixture
def pack():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(N)  # every image carries its number (and is read back from it)
    return SimpleNamespace(images=images, labels=np.arange(N, dtype=np.int64) % 3)


def numbers(images: torch.Tensor) -> list[int]:
    return to_uint8(images)[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("n", [1, 2, 5, 37])
def test_order_is_a_permutation_per_epoch(n):
    order = sample_order(n, 3, 0, 4 * n)
    assert order.dtype == np.int64
    for epoch in order.reshape(4, n):
        assert sorted(epoch) == list(range(n))
    if n == 37:
        assert len({tuple(e) for e in order.reshape(4, n)}) == 4, "all epochs have the same order"
        assert not np.array_equal(order, sample_order(n, 4, 0, 4 * n)), "the seed changes nothing"


def test_order_may_be_cut_anywhere():
    whole = sample_order(N, 0, 0, 5 * N)
    rng = np.random.default_rng(0)
    for _ in range(200):
        start = int(rng.integers(0, 4 * N))
        count = int(rng.integers(0, 5 * N - start))
        assert np.array_equal(sample_order(N, 0, start, count), whole[start : start + count])
    far = 10**12
    assert np.array_equal(sample_order(N, 0, far, 3 * N)[50:], sample_order(N, 0, far + 50, 3 * N - 50))


def test_order_never_changes_between_versions():
    """Runs resume with a newer NumPy: the order must be the same for ever."""
    assert sample_order(10, 0, 0, 10).tolist() == ORDER_10_0
    assert flip_coins(0, 0, 12).astype(int).tolist() == COINS_0


ORDER_10_0 = [7, 9, 1, 3, 4, 8, 5, 6, 0, 2]
COINS_0 = [1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0]


def test_order_is_uniform():
    """First places of 4000 epochs: each of 5 images is there a fifth of the time (5 sigma)."""
    first = sample_order(5, 1, 0, 20_000).reshape(-1, 5)[:, 0]
    assert np.abs(np.bincount(first, minlength=5) - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)


@pytest.mark.parametrize("arguments", [(0, 0, 0, 1), (5, 0, -1, 1), (5, 0, 0, -1)])
def test_order_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match="sample_order"):
        sample_order(*arguments)


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("hflip", [False, True])
def test_any_batch_size_resume_and_cut_give_the_same_sequence(pack, place, hflip):
    reference = Batches(pack, seed=7, batch=N, device="cpu", hflip=hflip)
    images, labels = reference.rows(0, 0, 6 * N)
    for batch, ranks in ((1, 1), (8, 2), (12, 3), (50, 5)):
        batches = Batches(pack, seed=7, batch=batch, device="cpu", hflip=hflip, place=place)
        for nimg in (0, batch, 2 * batch, 13):  # 13: as if resumed between batches of another size
            share = batch // ranks
            for rank in range(ranks):
                for _ in range(2):  # a step may ask twice
                    x, y = batches.rows(nimg, rank * share, (rank + 1) * share)
                    cut = slice(nimg + rank * share, nimg + (rank + 1) * share)
                    assert torch.equal(x, images[cut]) and torch.equal(y, labels[cut])
        batches.close()
    assert images.dtype == torch.float32 and labels.dtype == torch.int64


def test_images_and_labels_belong_together(pack):
    images, labels = Batches(pack, seed=1, batch=N, device="cpu").rows(0, 0, N)
    found = numbers(images)
    assert sorted(found) == list(range(N)) and labels.tolist() == [n % 3 for n in found]
    assert np.array_equal(to_uint8(images).numpy(), pack.images[found])


def test_flip_is_left_right_never_vertical_and_half_the_time(pack):
    plain, _ = Batches(pack, seed=2, batch=N, device="cpu").rows(0, 0, 40 * N)
    flipped, _ = Batches(pack, seed=2, batch=N, device="cpu", hflip=True).rows(0, 0, 40 * N)
    same = (plain == flipped).flatten(1).all(1)
    mirrored = (plain.flip(-1) == flipped).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 5 * 0.5 / np.sqrt(40 * N)
    per_image = {n: set() for n in range(N)}
    for position, n in enumerate(sample_order(N, 2, 0, 40 * N)):
        per_image[int(n)].add(bool(mirrored[position]))
    assert all(len(s) == 2 for s in per_image.values()), "the coin hangs on the image, not on the position"


def test_the_seed_changes_the_order_and_the_coins(pack):
    """Runs of other seeds see other batches, flipped otherwise."""
    for seed in (1, 2):
        assert not np.array_equal(flip_coins(0, 0, 64), flip_coins(seed, 0, 64))
    plain = [Batches(pack, seed=s, batch=N, device="cpu").rows(0, 0, N)[0] for s in (0, 1)]
    assert not torch.equal(*plain)


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_flip_leaves_the_label_and_an_unknown_class_stays_unknown(pack, place):
    pack.labels = np.arange(N, dtype=np.int64) % 4 - 1
    plain, flipped = (Batches(pack, seed=3, batch=N, device="cpu", hflip=h, place=place) for h in (False, True))
    labels = flipped.rows(N, 0, N)[1]
    assert torch.equal(plain.rows(N, 0, N)[1], labels) and int(labels.min()) == -1
    assert labels.tolist() == [int(k) % 4 - 1 for k in sample_order(N, 3, N, N)]
    plain.close(), flipped.close()


def test_the_thread_reads_one_batch_ahead_and_every_piece_once(pack):
    """A step may ask for its rows twice (D, then G); the next batch is under way before anybody asks for it."""
    gathered = []

    class Counting(Batches):
        def _gather(self, first, count):
            gathered.append((first, count))
            return super()._gather(first, count)

    batches = Counting(pack, seed=5, batch=8, device="cpu", place="host")
    for nimg in (0, 8, 16):
        for _ in range(2):
            batches.rows(nimg, 2, 6)
        assert (nimg + 8, 2, 6) in batches._pending
    batches.close()
    assert sorted(gathered) == [(2, 4), (10, 4), (18, 4), (26, 4)] or sorted(gathered) == [(2, 4), (10, 4), (18, 4)]


def test_prefetch_changes_nothing(pack):
    a, b = (Batches(pack, seed=5, batch=4, device="cpu", place="host") for _ in range(2))
    for nimg in (0, 4, 8, 100, 4):  # also jumps: a roll-back skips data
        a.prefetch(nimg, 0, 4)
        assert torch.equal(a.rows(nimg, 0, 4)[0], b.rows(nimg, 0, 4)[0])
    assert len(a._pending) < 10
    a.close(), b.close()


def test_float_and_uint8_are_inverse():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_float(values).min() == -1 and to_float(values).max() == 1
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_a_real_pack_of_one_slice(tmp_path):
    from data.pack import ensure_pack

    pack = ensure_pack("phantom:1", resolution=16, cache_dir=tmp_path, progress=False, log=lambda _: None)
    for place in ("auto", "host"):
        batches = Batches(pack, seed=0, batch=3, device="cpu", place=place)
        images, labels = batches.rows(5, 0, 3)
        assert (to_uint8(images).numpy() == pack.images).all() and images.shape == (3, 1, 16, 16) and len(labels) == 3
        assert "1 slices" in batches.placement
        batches.close()
    with pytest.raises(ValueError, match="place"):
        Batches(pack, seed=0, batch=3, device="cpu", place="gpu")


@pytest.mark.gpu
def test_gpu_has_the_same_batches(pack):
    reference, _ = Batches(pack, seed=0, batch=8, device="cpu", hflip=True).rows(3, 0, 80)
    for place in ("device", "host"):
        batches = Batches(pack, seed=0, batch=8, device="cuda", hflip=True, place=place)
        assert torch.equal(batches.rows(3, 0, 80)[0].cpu(), reference)
        batches.close()
