"""GroupNorm that keeps the type and the layout of its input (Wu and He 2018).

CUDA's autocast runs torch's in fp32, and its kernel knows NCHW alone: a half-precision channels_last map becomes an
fp32 one in another layout, is kept as such for the backward pass, and copied back before the next convolution. Only
sums need fp32, so only they get it here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HALF = (torch.float16, torch.bfloat16)


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm; of half-precision maps on a GPU the result has their type and layout. (B, C, h, w) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        if x.device.type != "cuda" or x.dtype not in HALF:  # a CPU's kernel knows both layouts and types
            return super().forward(x)
        if torch.compiler.is_compiling():  # which fuses the casts into what stands around them
            return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)
        return normalised(x, self.weight, self.bias, self.num_groups, self.eps)


def normalised(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, mean and variance of each sample's `groups` parts of the channels.

    x (B, C, h, w), weight and bias (C,) fp32 -> (B, C, h, w) in the type and layout of x; sums and products are fp32.
    """
    return _GroupNorm.apply(x, weight, bias, groups, eps)[0]


def _line(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """x * factor + offset in one pass, in the type of x, rounded once: (B, C, h, w); the others may be (B, C, 1, 1)."""
    return torch.addcmul(offset, x, factor, out=torch.empty_like(x))


class _GroupNorm(torch.autograd.Function):
    """With r = 1 / std of the group and n = its size, for each channel: y = (r w) x + (b - mean r w).

    With g the gradient of y, m1 = sum(w g) / n and m2 = sum(w g (x - mean) r) / n over the group:
    dx = (r w) g - r^2 m2 x + (r^2 m2 mean - r m1).
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float):
        exact = torch.promote_types(x.dtype, torch.float32)
        batch, channels, height, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            share = 1 / (height * width)
            total = x.sum((2, 3), dtype=exact).view(batch, groups, -1)
            length = torch.linalg.vector_norm(x, dim=(2, 3), dtype=exact).view(batch, groups, -1)
            mean = total.mean(2, keepdim=True) * share  # (B, groups, 1)
            var = (length.square().mean(2, keepdim=True) * share - mean.square()).clamp_min(0)
            r = (var + eps).rsqrt()
            factor = r * weight.view(groups, -1)  # (B, groups, C / groups)
            offset = torch.addcmul(bias.view(groups, -1), mean, factor, value=-1)
            shape = (batch, channels, 1, 1)
            return _line(x, factor.view(shape), offset.view(shape)), mean, r

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, *_ = inputs
        _, mean, r = output
        ctx.mark_non_differentiable(mean, r)
        ctx.save_for_backward(x, weight, mean, r)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, *_):
        x, weight, mean, r = ctx.saved_tensors
        (batch, channels, height, width), groups = x.shape, mean.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            w = weight.view(groups, -1)
            of_bias = grad.sum((2, 3), dtype=mean.dtype).view(batch, groups, -1)
            of_weight = (grad * x).sum((2, 3), dtype=mean.dtype).view(batch, groups, -1)
            of_weight = torch.addcmul(of_weight, mean, of_bias, value=-1) * r  # sums of g (x - mean) r
            share = 1 / (height * width)
            m1 = (of_bias * w).mean(2, keepdim=True) * share
            m2 = (of_weight * w).mean(2, keepdim=True) * share
            along = r.square() * m2
            shape = (batch, channels, 1, 1)
            spread = [v.expand(-1, -1, w.shape[1]).reshape(shape) for v in (-along, along * mean - r * m1)]
            dx = _line(grad, (r * w).view(shape), _line(x, *spread)) if ctx.needs_input_grad[0] else None
            return dx, of_weight.sum(0).flatten(), of_bias.sum(0).flatten(), None, None
