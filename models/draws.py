"""Random numbers that are the same on every model of GPU.

What a GPU draws for a seed depends on its number of multiprocessors as soon as one launch of threads is not enough.
So a generator of the CPU is the source of everything: few numbers are drawn there and copied, many are made on the
device by a counter of which the generator draws the key. On a CPU all are torch's own. (Dropout alone is the device's.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MANY = 1 << 17  # numbers above which a GPU makes them itself: drawing these on a CPU takes a millisecond
BITS = 24  # of a fp32 uniform


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A small tensor of the CPU on the device. Nobody waits for it: a GPU fetches it from pinned memory."""
    device = torch.device(device)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """N(0, 1) fp32 of this shape on the device."""
    return normals([shape], generator, device)[0]


def normals(shapes: Sequence[Sequence[int]], generator: torch.Generator, device: torch.device | str) -> list[Tensor]:
    """N(0, 1) fp32 of these shapes on the device; where they are many, in one go."""
    sizes = [math.prod(shape) for shape in shapes]
    if torch.device(device).type == "cpu" or sum(sizes) <= MANY:
        return [moved(torch.randn(*shape, generator=generator, device="cpu"), device) for shape in shapes]
    key = torch.randint(-(1 << 31), 1 << 31, (2,), generator=generator).tolist()
    parts = counted_normals(sum(sizes), key, device).split(sizes)
    return [part.view(*shape) for part, shape in zip(parts, shapes, strict=True)]


def orthogonal(rows: int, columns: int) -> Tensor:
    """(rows, columns) fp32: a random matrix whose rows (or columns, where there are fewer) are orthogonal (Saxe 2014),
    with a mean square of one. In double precision: on unlike processors one of a million differs in its last bit."""
    weight = torch.empty(rows, columns, dtype=torch.float64)
    return nn.init.orthogonal_(weight, gain=math.sqrt(max(rows, columns))).float()


def counted_normals(count: int, key: Sequence[int], device: torch.device | str) -> Tensor:
    """(count,) fp32: N(0, 1) by Box and Muller (1958) from words 0 to count - 1 of a key."""
    half = (count + 1) // 2
    a, b = counted_words(2 * half, key, device).bitwise_right_shift_(32 - BITS).bitwise_and_((1 << BITS) - 1).chunk(2)
    radius = (a + 1).float().mul_(2.0**-BITS).log_().mul_(-2).sqrt_()
    angle = b.float().mul_(2 * math.pi * 2.0**-BITS)
    return torch.cat([radius * angle.cos(), radius.mul_(angle.sin_())])[:count]


def counted_words(count: int, key: Sequence[int], device: torch.device | str) -> Tensor:
    """(count,) int32, all 32 bits random: a mix of the counter and two words of key, the same on every device.

    The mix is triple32 of Wellons' Hash Prospector (2018), a bijection of 32 bits in which each bit of the input turns
    about half of the output's; the second word of the key enters after its first round.
    """
    x = torch.arange(count, dtype=torch.int32, device=device).add_(key[0])
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x.bitwise_xor_(_shifted(x, shift)).mul_(_signed(factor))
        if shift == 17:
            x.bitwise_xor_(key[1])
    return x.bitwise_xor_(_shifted(x, 14))


def _shifted(x: Tensor, by: int) -> Tensor:
    """x >> by of unsigned 32 bits; torch's int32 would draw its sign along."""
    return x.bitwise_right_shift(by).bitwise_and_((1 << (32 - by)) - 1)


def _signed(word: int) -> int:
    """An unsigned 32-bit word as int32 has it."""
    return word - (1 << 32) if word >> 31 else word
