"""Resampling with the filter [1, 3, 3, 1] (Karras 2020a), whose backward pass is itself a resampling."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

FIR_TAPS = (1 / 8, 3 / 8, 3 / 8, 1 / 8)  # the low-pass filter around every change of resolution, in one dimension


# --- resampling with the filter [1, 3, 3, 1] -------------------------------------------------------------------------
def upsample(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, 2H, 2W): zeros between the pixels, then the low-pass filter with gain 4."""
    return _fir(x, "up", 1, 4.0)


def downsample(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2): the low-pass filter, then every second pixel."""
    return _fir(x, "down", 1, 1.0)


def blur(x: torch.Tensor, padding: int, gain: float = 1.0) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, H + 2 padding - 3, ...): the low-pass filter alone, zeros outside the image."""
    return _fir(x, "same", padding, gain)


def _fir(x: torch.Tensor, mode: str, padding: int, gain: float) -> torch.Tensor:
    # Inside torch.compile a custom Function would lose its double backward, and plain shifted sums fuse with what is
    # around them. Outside, one depthwise convolution is the fastest, but its second derivative in ATen is a loop over
    # the channels, which the self-adjoint Function avoids.
    if torch.compiler.is_compiling():
        return _fir_shifted(x, mode, padding, gain)
    return _SelfAdjointFir.apply(x, mode, padding, gain)


class _SelfAdjointFir(torch.autograd.Function):
    """The filter is symmetric, so the adjoint of filtering is filtering: up <-> down, padding p <-> 3 - p.

    The backward calls the Function itself and is therefore differentiable any number of times.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, mode: str, padding: int, gain: float) -> torch.Tensor:
        """x (B, C, H, W) filtered."""
        kernel = _fir_kernel(x.shape[1], gain, x.dtype, x.device)
        if mode == "up":
            if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
                # oneDNN's only path for this operation in half precision is thirty times slower than in fp32.
                kernel = _fir_kernel(x.shape[1], gain, torch.float32, x.device)
                return F.conv_transpose2d(x.float(), kernel, stride=2, padding=padding, groups=x.shape[1]).to(x.dtype)
            return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
        return F.conv2d(x, kernel, stride=2 if mode == "down" else 1, padding=padding, groups=x.shape[1])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        """Keep what the backward pass needs."""
        _, ctx.mode, ctx.padding, ctx.gain = inputs

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        """The filter's own adjoint, which is differentiable again."""
        mode = {"up": "down", "down": "up", "same": "same"}[ctx.mode]
        padding = 3 - ctx.padding if mode == "same" else ctx.padding
        return _SelfAdjointFir.apply(grad, mode, padding, ctx.gain), None, None, None


@functools.lru_cache(maxsize=256)
def _fir_kernel(channels: int, gain: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(channels, 1, 4, 4), kept: making it anew would copy from host to GPU in every layer."""
    with torch.inference_mode(False):
        taps = torch.tensor(FIR_TAPS, dtype=torch.float64)
        kernel = (torch.outer(taps, taps) * gain).to(device=device, dtype=dtype)
        return kernel.expand(channels, 1, 4, 4).contiguous(memory_format=torch.channels_last)


def _fir_shifted(x: torch.Tensor, mode: str, padding: int, gain: float) -> torch.Tensor:
    """The same filter as shifted sums, one dimension at a time, of plain differentiable operations."""
    a, b, c, d = (tap * math.sqrt(gain) for tap in FIR_TAPS)
    for dim in (2, 3):
        n = x.shape[dim]
        if mode == "up":  # the even outputs see taps 1 and 3 of the filter, the odd ones 0 and 2
            x = F.pad(x, (1, 1, 0, 0) if dim == 3 else (0, 0, 1, 1))
            left, mid, right = (x.narrow(dim, i, n) for i in range(3))
            x = torch.stack([d * left + b * mid, c * mid + a * right], dim + 1).flatten(dim, dim + 1)
        else:
            x = F.pad(x, (padding, padding, 0, 0) if dim == 3 else (0, 0, padding, padding))
            step, count = (2, n // 2) if mode == "down" else (1, n + 2 * padding - 3)
            parts = [
                x.narrow(dim, i, (count - 1) * step + 1)[(slice(None),) * dim + (slice(None, None, step),)]
                for i in range(4)
            ]
            x = a * parts[0] + b * parts[1] + c * parts[2] + d * parts[3]
    return x
