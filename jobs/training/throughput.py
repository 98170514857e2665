"""How well a run uses its machine: FLOPs counted while steps run, against what this device reaches at its best."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

PEAK_SECONDS = 0.1  # of measuring


def _convolution(out, x, weight, *more) -> int:
    """FLOPs (2 per multiply-add) of one convolution. Depthwise ones are resampling filters, work that another
    implementation may not have: they count as nothing."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, groups = more
    if groups > 1 and weight.shape[1] == 1:
        return 0
    pixels = x.shape if transposed else out.shape  # each of these meets its group's whole kernel
    return 2 * pixels[0] * pixels[2:].numel() * weight.numel()


def _convolution_backward(_, grad_out, x, weight, *args) -> int:
    """Each wanted gradient costs what the convolution did."""
    *conv_args, wanted = args
    return _convolution(grad_out, x, weight, *conv_args) * (wanted[0] + wanted[1])


def _attention(_, query, key, value, *__) -> int:
    """Two matrix products of (B, heads, N, d) by (B, heads, M, d)."""
    *outer, rows, width = query.shape
    products = rows * key.shape[-2] * (width + value.shape[-1])
    for side in outer:
        products *= side
    return 2 * products


def _attention_backward(_, __, query, key, value, *___) -> int:
    """Five products for the forward pass's two: the scores once more, and a gradient for each factor of both."""
    return _attention(None, query, key, value) * 5 // 2


_aten = torch.ops.aten
_FORMULAS: dict[Any, Callable[..., int]] = {
    _aten.convolution: _convolution,
    _aten.convolution_backward: _convolution_backward,
}
if hasattr(_aten, "_scaled_dot_product_flash_attention_for_cpu"):  # torch counts only those of GPUs
    _FORMULAS[_aten._scaled_dot_product_flash_attention_for_cpu] = _attention
    _FORMULAS[_aten._scaled_dot_product_flash_attention_for_cpu_backward] = _attention_backward


class FlopCounter(TorchDispatchMode):
    """Counts the work of dense convolutions, matrix products and attention while they run, forward and backward.

    torch's FlopCounterMode multiplies the weight gradient of a grouped convolution by the number of groups, and does
    not survive gradients of gradients; its formulas for matrix products and for attention on GPUs are used here.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.note(func, out, args, kwargs or {})
        return out

    def note(self, func, out, args, kwargs) -> None:
        """Count one operation that has run."""
        if func.overloadpacket in _FORMULAS:
            self.flops += _FORMULAS[func.overloadpacket](out, *args)
        elif func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)


def no_wait() -> None:
    """A CPU has finished when the call returns."""


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s that the device reaches where nothing is in the way: of a large matrix product on a GPU, of a 3x3
    convolution of 256 channels on a CPU, whose convolutions may be twice as fast as its matrix products."""
    task: Callable[[], object]
    wait: Callable[[], None]
    if device.type == "cuda":
        n = 8192
        a, flops = torch.ones(n, n, device=device, dtype=dtype), 2 * n**3
        task, wait = partial(torch.matmul, a, a), torch.cuda.synchronize
    else:
        x = torch.ones(2, 256, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.ones(256, 256, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
        flops = 2 * x.numel() * 9 * 256
        task = partial(torch.nn.functional.conv2d, x, weight, padding=1)
        wait = no_wait
    best, since = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - since < PEAK_SECONDS:
        wait()
        start = time.perf_counter()
        task()
        wait()
        best = min(best, time.perf_counter() - start)
    return flops / best


def count_flops(task: Callable[[], object]) -> int:
    """The work of `task`, which is called once.

    Not for a step of the run itself: autograd lays out gradients differently under a counter, then sums them in another
    order, and the last bit of the weights would depend on which step was counted.
    """
    with FlopCounter() as counter:
        task()
    return counter.flops
