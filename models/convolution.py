"""Convolutions that can be differentiated twice at the price of convolutions.

ATen writes the gradient of a gradient with respect to the weight as a convolution of one feature map with another: its
kernel is as large as the image, for which no library has a fast path (NVlabs' conv2d_gradfix is for this). But it is a
weight gradient like any other, of other maps. That is written in Python, so it is used only where it is asked for by
`differentiated_twice()`: a plain pass of ATen's costs less.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class How(NamedTuple):
    """A convolution without groups and dilation, besides its tensors."""

    stride: int
    padding: int
    transposed: bool

    def arguments(self) -> tuple:
        """As ATen takes them: stride, padding, dilation, transposed, output padding, groups."""
        return (self.stride,) * 2, (self.padding,) * 2, (1, 1), self.transposed, (0, 0), 1


_twice = 0  # how many differentiated_twice() are open


@contextlib.contextmanager
def differentiated_twice() -> Iterator[None]:
    """For code whose gradient is differentiated again (R1, path length). Without it the result is the same, slowly."""
    global _twice
    _twice += 1
    try:
        yield
    finally:
        _twice -= 1


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0) -> Tensor:
    """F.conv2d: x (B, I, H, W), weight (O, I, k, k), bias (O,) -> (B, O, h, w)."""
    if not _twice:
        return F.conv2d(x, weight, bias, stride, padding)
    return _Convolution.apply(x, weight, bias, How(stride, padding, False))


def conv_transpose2d(x: Tensor, weight: Tensor, *, stride: int = 1) -> Tensor:
    """F.conv_transpose2d: x (B, I, H, W), weight (I, O, k, k) -> (B, O, h, w)."""
    if not _twice:
        return F.conv_transpose2d(x, weight, None, stride)
    return _Convolution.apply(x, weight, None, How(stride, 0, True))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, how: How, wanted: list[bool]) -> tuple:
    """ATen's gradients with respect to x, weight and bias, those that are wanted."""
    sizes = [grad.shape[1]] if wanted[2] else None
    return torch.ops.aten.convolution_backward(grad, x, weight, sizes, *how.arguments(), wanted)


def _asked(ctx, i: int) -> bool:
    """Whether this pass will use the gradient of input i: torch.autograd.grad() for the images needs no weight's."""
    node = ctx.next_functions[i][0] if ctx.needs_input_grad[i] else None
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # of a leaf that torch.autograd.grad() is to return
        return True


class _Convolution(torch.autograd.Function):
    """y = x * weight + bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        return torch.convolution(x, weight, bias, *how.arguments())

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, _, ctx.how = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (x, weight), wanted = ctx.saved_tensors, [_asked(ctx, i) for i in range(3)]
        if not torch.is_grad_enabled():  # the last gradient: one call of ATen's for all
            return *_backward(grad, x, weight, ctx.how, wanted), None
        return (
            _InputGradient.apply(grad, x, weight, ctx.how) if wanted[0] else None,
            _WeightGradient.apply(grad, x, weight, ctx.how) if wanted[1] else None,
            grad.sum((0, 2, 3)) if wanted[2] else None,
            None,
        )


class _InputGradient(torch.autograd.Function):
    """The gradient with respect to x: linear in grad and weight. Of x it takes the shape alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
        return _backward(grad, x, weight, how, [True, False, False])[0]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        grad, _, weight, ctx.how = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx, other: Tensor):
        """`other` has the shape of x."""
        grad, weight = ctx.saved_tensors
        return (
            _Convolution.apply(other, weight, None, ctx.how) if _asked(ctx, 0) else None,
            None,
            _WeightGradient.apply(grad, other, weight, ctx.how) if _asked(ctx, 2) else None,
            None,
        )


class _WeightGradient(torch.autograd.Function):
    """The gradient with respect to the weight: linear in grad and x. Of the weight it takes the shape alone."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, weight: Tensor, how: How) -> Tensor:
        return _backward(grad, x, weight, how, [False, True, False])[1]

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        grad, x, _, ctx.how = inputs
        ctx.save_for_backward(grad, x)

    @staticmethod
    def backward(ctx, other: Tensor):
        """`other` has the shape of the weight."""
        grad, x = ctx.saved_tensors
        return (
            _Convolution.apply(x, other, None, ctx.how) if _asked(ctx, 0) else None,
            _InputGradient.apply(grad, x, other, ctx.how) if _asked(ctx, 1) else None,
            None,
            None,
        )
