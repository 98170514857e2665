"""Draws that are the same on every model of GPU: the counter against whole numbers of Python, and its statistics."""

from __future__ import annotations

import math

import pytest
import torch

from models import draws
from models.draws import counted_normals, counted_words

CPU, MASK = torch.device("cpu"), 0xFFFFFFFF
KEYS = [(0, 0), (-1, 123456789), (2147483647, -2147483648), (-2147483648, 77)]


def word(counter: int, key: tuple[int, int]) -> int:
    """triple32 as its author writes it, on unsigned numbers, with the two words of the key."""
    x = (counter + key[0]) & MASK
    x ^= x >> 17
    x = x * 0xED5AD4BB & MASK
    x ^= key[1] & MASK
    x ^= x >> 11
    x = x * 0xAC4C1B51 & MASK
    x ^= x >> 15
    x = x * 0x31848BAB & MASK
    return x ^ x >> 14


@pytest.mark.parametrize("key", KEYS)
def test_words_are_those_of_whole_numbers(key):
    found = [int(x) & MASK for x in counted_words(1000, key, CPU)]
    assert found == [word(i, key) for i in range(1000)]


@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_normals_are_box_and_mullers_of_the_words(count):
    key, half = (11, -5), (count + 1) // 2
    for i, value in enumerate(counted_normals(count, key, CPU).tolist()):
        pair = i % half
        u, v = ((word(w, key) >> 8) / 2**24 for w in (pair, pair + half))
        r, angle = math.sqrt(-2 * math.log(u + 2.0**-24)), 2 * math.pi * v
        assert value == pytest.approx(r * (math.cos(angle) if i < half else math.sin(angle)), rel=1e-4, abs=2e-5)


def test_the_shortest_and_the_longest_are_finite(monkeypatch):
    """The logarithm never meets 0, also where a word is."""
    with monkeypatch.context() as patch:
        patch.setattr(draws, "counted_words", lambda count, key, device: torch.zeros(count, dtype=torch.int32))
        assert counted_normals(4, (0, 0), CPU).isfinite().all()
    assert counted_normals(1 << 22, (3, 4), CPU).isfinite().all()
    assert 4.8 < counted_normals(1 << 22, (3, 4), CPU).abs().max() < math.sqrt(2 * 24 * math.log(2)) + 1e-3


@pytest.mark.parametrize("key", KEYS)
def test_moments_and_quantiles_are_those_of_the_normal_distribution(key):
    """Each within five standard errors; the largest distance of the distribution functions (Kolmogorov) below its 1e-5
    quantile, 2.47 / sqrt(n)."""
    n = 1 << 20
    x = counted_normals(n, key, CPU).double()
    for power, expected, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(x.pow(power).mean() - expected) < 5 * math.sqrt(spread / n), power
    ordered = x.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    own = 0.5 * (1 + torch.erf(ordered / math.sqrt(2)))
    assert max((own - steps[:-1]).max(), (steps[1:] - own).max()) < 2.47 / math.sqrt(n)


def test_neighbours_rows_and_streams_have_nothing_to_do_with_each_other():
    """Correlations of values and of squares: with what stands k further on, and with streams of keys
    that differ in one bit."""
    n = 1 << 20
    a = counted_normals(n + 4096, (1000, 5), CPU)
    others = [a[k : n + k] for k in (1, 2, 3, 64, 256, 4096)]
    others += [
        counted_normals(n, key, CPU) for key in ((1001, 5), (1000, 4), (1000, 5 ^ (1 << 31)), (1000 ^ (1 << 20), 5))
    ]
    others.append(a[:n].flip(0))
    for other in others:
        assert abs((a[:n] * other).mean()) < 5 / math.sqrt(n)
        assert abs(((a[:n] ** 2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / math.sqrt(n)


def test_every_bit_of_the_counter_and_of_the_key_turns_half_of_the_words_bits():
    counters = torch.arange(4096, dtype=torch.int32)
    base = [int(w) & MASK for w in counted_words(4096, (9, 10), CPU)]
    for bit in range(32):
        flip = (1 << bit) - (1 << 32 if bit == 31 else 0)
        turned = [int(w) & MASK for w in counted_words(4096, (9, 10 ^ flip), CPU)]
        share = sum((a ^ b).bit_count() for a, b in zip(base, turned, strict=True)) / (32 * 4096)
        assert abs(share - 0.5) < 0.02, bit
    assert len(set(base)) == len(counters)


def test_on_a_cpu_they_are_torchs_own_to_the_last_bit():
    """Of one stream, in this order, however many."""
    shapes = [(3, 5), (1 << 18,), (2, 2, 2)]
    own = torch.Generator().manual_seed(4)
    found = [*draws.normals(shapes, torch.Generator().manual_seed(4), CPU)]
    assert all(torch.equal(x, torch.randn(*shape, generator=own)) for x, shape in zip(found, shapes, strict=True))
    x = torch.ones(2)
    assert draws.moved(x, "cpu") is x


def test_on_a_device_few_are_copied_and_many_are_counted(monkeypatch):
    """On this `device`, which only knows shapes, and with its counter told to count on the CPU."""
    made = []
    monkeypatch.setattr(draws, "counted_normals", lambda *args: made.append(args) or counted_normals(*args[:2], CPU))
    few, many = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    assert draws.normal((draws.MANY,), few, "meta").device.type == "meta" and not made
    shapes = [(draws.MANY, 1), (2, 3), (5,)]
    found = draws.normals(shapes, many, "meta")
    ((count, key, device),) = made
    assert (count, device) == (draws.MANY + 11, "meta") and [x.shape for x in found] == [torch.Size(s) for s in shapes]
    assert torch.equal(torch.cat([x.flatten() for x in found]), counted_normals(count, key, CPU))
    assert draws.normals(shapes, torch.Generator().manual_seed(5), "meta") and made[1][1] != key


def test_what_is_drawn_on_a_gpu_does_not_ask_the_gpu(monkeypatch):
    """Whatever its number of multiprocessors: no random function of torch's runs there."""

    def on_a_gpu(name, real):
        def draw(*args, **how):
            assert torch.device(how.get("device") or "cpu").type == "cpu", name
            return real(*args, **how)

        return draw

    for name in ("randn", "rand", "randint", "randperm"):
        monkeypatch.setattr(torch, name, on_a_gpu(name, getattr(torch, name)))
    from models import augment, schedules
    from models.stylegan2 import Generator

    gen = torch.Generator().manual_seed(0)
    G = Generator(resolution=32, channels=1, num_classes=0, channel_base=64, channel_max=8, z_dim=8, w_dim=8)
    assert all(x.is_meta for x in G.draw_noise(64, gen, "meta"))
    assert all(x.is_meta for x in augment.draw_augmentation(8, 0.5, 32, gen, "meta", augment.KINDS["mri"]).values())
    for times in ("uniform", "logit-normal", "fast-uniform", "fast-nonuniform"):
        assert schedules.draw_times(8, times, gen, "meta").is_meta


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (4, 12), (12, 4)])
def test_an_orthogonal_matrix_keeps_lengths_and_has_a_mean_square_of_one(rows, columns):
    torch.manual_seed(1)
    a, b = (draws.orthogonal(rows, columns) for _ in range(2))
    assert a.shape == (rows, columns) and a.dtype == torch.float32 and not torch.allclose(a, b)
    small = a @ a.T if rows <= columns else a.T @ a
    torch.testing.assert_close(small, max(rows, columns) * torch.eye(min(rows, columns)), atol=1e-5, rtol=1e-5)
    assert a.square().mean().item() == pytest.approx(1, abs=1e-6)
    torch.manual_seed(1)
    assert torch.equal(draws.orthogonal(rows, columns), a)
