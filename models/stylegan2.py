"""StyleGAN2 (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN"), pure PyTorch.

Generator: mapping network, modulated convolutions with demodulation, FIR-filtered upsampling, per-layer noise, skip
connections to RGB. Discriminator: residual, with minibatch standard deviation and, for classes, a projection head
(Miyato and Koyama 2018). Learning rates are equalised (Karras et al. 2018). Images are (B, C, R, R) in [-1, 1].

`dtype` is the type the convolutions run in. Always fp32: the mapping network, styles, demodulation factors, the sum of
the RGB outputs, minibatch standard deviation, the discriminator's last layers, and the stored weights. Feature maps are
channels_last throughout.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LRELU_GAIN = math.sqrt(2)
CLAMP = 256.0  # of feature maps in fp16, whose largest number is 65,504


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution."""
    return min(channel_base // resolution, channel_max)


def lrelu(x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Leaky ReLU with slope 0.2, scaled to keep the variance."""
    x = F.leaky_relu(x, 0.2) * LRELU_GAIN
    return x.clamp(-CLAMP, CLAMP) if dtype == torch.float16 else x


# --- layers -----------------------------------------------------------------------------------------------------------
class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate: weights are stored as N(0, 1) / lr_multiplier and scaled at
    run time by lr_multiplier / sqrt(fan_in). Runs in fp32."""

    def __init__(self, fan_in: int, fan_out: int, bias: float = 0.0, lr_multiplier: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((fan_out,), bias / lr_multiplier))
        self.scale, self.lr_multiplier, self.activate = lr_multiplier / math.sqrt(fan_in), lr_multiplier, activate

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)
        return lrelu(x) if self.activate else x


def fir_kernel() -> Tensor:
    """The separable low-pass [1, 3, 3, 1], normalised to sum 1: (4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8.0
    return torch.outer(taps, taps)


class _FirDown(torch.autograd.Function):
    """y = FIR(x) at stride 2 (or 1), per channel. Its adjoint is _FirUp and back again, so gradients of gradients stay two
    depthwise convolutions, where ATen's own double backward would loop over the channels."""

    @staticmethod
    def forward(ctx, x: Tensor, stride: int, pad: int, out_pad: int) -> Tensor:
        ctx.stride, ctx.pad, ctx.out_pad = stride, pad, out_pad
        return _depthwise(x, stride, pad)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _FirUp.apply(grad, ctx.stride, ctx.pad, ctx.out_pad), None, None, None


class _FirUp(torch.autograd.Function):
    """The adjoint of _FirDown: zero insertion, then the same (symmetric) FIR."""

    @staticmethod
    def forward(ctx, x: Tensor, stride: int, pad: int, out_pad: int) -> Tensor:
        ctx.stride, ctx.pad, ctx.out_pad = stride, pad, out_pad
        return _depthwise_transposed(x, stride, pad, out_pad)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _FirDown.apply(grad, ctx.stride, ctx.pad, ctx.out_pad), None, None, None


def _kernel_for(x: Tensor) -> Tensor:
    c = x.shape[1]
    return fir_kernel().to(x.device, x.dtype).expand(c, 1, 4, 4).contiguous()


def _depthwise(x: Tensor, stride: int, pad: int) -> Tensor:
    return F.conv2d(x, _kernel_for(x), stride=stride, padding=pad, groups=x.shape[1])


def _depthwise_transposed(x: Tensor, stride: int, pad: int, out_pad: int) -> Tensor:
    return F.conv_transpose2d(x, _kernel_for(x), stride=stride, padding=pad, output_padding=out_pad, groups=x.shape[1])


def fir_down(x: Tensor) -> Tensor:
    """Low-pass and keep every second pixel: (B, C, H, W) -> (B, C, H/2, W/2)."""
    if torch.compiler.is_compiling():
        return _depthwise(x, 2, 1)
    return _FirDown.apply(x, 2, 1, 0)


def fir_up(x: Tensor) -> Tensor:
    """Insert zeros, low-pass, gain 4: (B, C, H, W) -> (B, C, 2H, 2W)."""
    if torch.compiler.is_compiling():
        return _depthwise_transposed(x, 2, 1, 0) * 4.0
    return _FirUp.apply(x, 2, 1, 0) * 4.0


def fir_same(x: Tensor, pad: int, gain: float = 1.0) -> Tensor:
    """Low-pass at the same rate with `pad` zeros around: (B, C, H, W) -> (B, C, H + 2 pad - 3, W + 2 pad - 3)."""
    if torch.compiler.is_compiling():
        return _depthwise(x, 1, pad) * gain
    y = _FirDown.apply(x, 1, pad, 0)
    return y if gain == 1.0 else y * gain


class ModulatedConv(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output is demodulated (Karras 2020, equations 1-3).

    The scaling is done on the activations, so that all samples share one weight and one dense convolution:
    y = demod * conv(s * x, w), demod_o = 1 / sqrt(sum_i s_i^2 sum_k w_oik^2 + 1e-8), which is one matrix product.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel: int, w_dim: int, up: bool = False, demodulate: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.affine = EqualLinear(w_dim, fan_in, bias=1.0)
        self.scale, self.up, self.demodulate = 1 / math.sqrt(fan_in * kernel**2), up, demodulate

    def forward(self, x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
        s, weight = self.affine(w), self.weight * self.scale  # (B, I), (O, I, k, k)
        if self.demodulate:
            if dtype == torch.float16:  # keeps x * s and the sums in range; demodulation divides it out again
                s = s / s.detach().abs().amax(1, keepdim=True).clamp_min(1e-8)
                weight = weight / weight.detach().square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-8) * self.scale
            demod = torch.rsqrt(s.square() @ weight.square().sum((2, 3)).t() + 1e-8)  # (B, O)
        x = x * s[:, :, None, None].to(dtype)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        if self.up:  # convolution at half rate, then the low-pass that removes the zero-insertion images
            x = fir_same(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), pad=1, gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
        return x * demod[:, :, None, None].to(dtype) if self.demodulate else x


class StyleLayer(nn.Module):
    """Modulated 3x3 convolution, noise with a learned strength, bias, leaky ReLU."""

    def __init__(self, fan_in: int, fan_out: int, w_dim: int, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(fan_in, fan_out, 3, w_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor, dtype: torch.dtype) -> Tensor:
        x = self.conv(x, w, dtype)
        x = x + (noise * self.noise_strength).to(dtype) + self.bias[:, None, None].to(dtype)
        return lrelu(x, dtype)


class ToImage(nn.Module):
    """Modulated 1x1 convolution to the image channels: no demodulation, no activation. The result is fp32."""

    def __init__(self, fan_in: int, channels: int, w_dim: int):
        super().__init__()
        self.conv = ModulatedConv(fan_in, channels, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
        return self.conv(x, w, dtype).float() + self.bias[:, None, None]


# --- the mapping network ----------------------------------------------------------------------------------------------
class Mapping(nn.Module):
    """z (and a class) to w: normalisation, then fully connected layers with a hundredth of the learning rate."""

    def __init__(self, z_dim: int, w_dim: int, num_classes: int, layers: int, lr_multiplier: float = 0.01):
        super().__init__()
        self.embed = EqualLinear(num_classes, w_dim) if num_classes else None
        self.num_classes = num_classes
        sizes = [z_dim + (w_dim if num_classes else 0)] + [w_dim] * layers
        self.layers = nn.ModuleList(
            EqualLinear(a, b, lr_multiplier=lr_multiplier, activate=True) for a, b in zip(sizes[:-1], sizes[1:], strict=True)
        )

    def forward(self, z: Tensor | None, labels: Tensor | None = None) -> Tensor:
        parts = [] if z is None else [normalize(z.float())]
        if self.embed is not None:
            if labels is None:
                raise ValueError(f"this network was trained on {self.num_classes} classes: labels are needed")
            parts.append(normalize(self.embed(F.one_hot(labels, self.num_classes).float())))
        x = torch.cat(parts, 1)
        for layer in self.layers:
            x = layer(x)
        return x


def normalize(x: Tensor) -> Tensor:
    """Scale rows to a mean square of 1."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


def mix_styles(w1: Tensor, w2: Tensor, cutoff: Tensor, num_ws: int) -> Tensor:
    """Styles of `w1` for the layers before `cutoff`, of `w2` from there on (Karras 2019, section 3.1).

    w1, w2 (B, w_dim); cutoff (B,) int64, num_ws for no mixing. Returns (B, num_ws, w_dim). A mask, not a slice: the shape
    does not depend on the draw.
    """
    second = torch.arange(num_ws, device=w1.device)[None, :, None] >= cutoff[:, None, None]
    return torch.where(second, w2[:, None], w1[:, None])


# --- the generator ----------------------------------------------------------------------------------------------------
class Generator(nn.Module):
    """z (B, z_dim) [, labels (B,)] -> images (B, C, R, R)."""

    def __init__(
        self, *, resolution: int, channels: int = 1, z_dim: int = 512, w_dim: int = 512, num_classes: int = 0,
        mapping_layers: int = 8, channel_base: int = 16384, channel_max: int = 512,
    ):  # fmt: skip
        super().__init__()
        self.resolution, self.channels, self.z_dim, self.w_dim = resolution, channels, z_dim, w_dim
        self.mapping = Mapping(z_dim, w_dim, num_classes, mapping_layers)
        sizes = [4 * 2**i for i in range(int(math.log2(resolution)) - 1)]
        width = {r: channels_at(r, channel_base, channel_max) for r in sizes}
        self.constant = nn.Parameter(torch.randn(width[4], 4, 4))
        self.layers, self.to_image = nn.ModuleList([StyleLayer(width[4], width[4], w_dim)]), nn.ModuleList()
        for r in sizes[1:]:
            self.layers += [StyleLayer(width[r // 2], width[r], w_dim, up=True), StyleLayer(width[r], width[r], w_dim)]
        self.to_image += [ToImage(width[r], channels, w_dim) for r in sizes]
        self.noise_shapes = [(4, 4)] + [(r, r) for r in sizes[1:] for _ in range(2)]
        self.num_ws = len(self.layers) + 1  # the last image layer has a style of its own
        self.register_buffer("w_avg", torch.zeros(w_dim))
        fixed = torch.Generator().manual_seed(0)  # the same for every run and independent of its seed
        for i, (h, w) in enumerate(self.noise_shapes):
            self.register_buffer(f"noise_{i}", torch.randn(1, 1, h, w, generator=fixed))

    def draw_noise(self, batch: int, generator: torch.Generator | None, device) -> list[Tensor]:
        """Fresh noise images, one (batch, 1, h, w) per layer."""
        return [torch.randn(batch, 1, h, w, generator=generator, device=device) for h, w in self.noise_shapes]

    def broadcast(self, w: Tensor) -> Tensor:
        """(B, w_dim) -> (B, num_ws, w_dim)."""
        return w[:, None].expand(-1, self.num_ws, -1)

    def truncate(self, ws: Tensor, psi: float, cutoff: int | None = None) -> Tensor:
        """Pull styles towards the average (Karras 2019, appendix B): 1 leaves them, 0 gives the average image."""
        layers = torch.arange(self.num_ws, device=ws.device)[None, :, None]
        moved = self.w_avg.lerp(ws, psi)
        return moved if cutoff is None else torch.where(layers < cutoff, moved, ws)

    @torch.no_grad()
    def update_w_avg(self, mean_w: Tensor, beta: float) -> None:
        """Moving average of w; `mean_w` (w_dim) is the mean over the global batch."""
        self.w_avg.copy_(mean_w.lerp(self.w_avg, beta))

    def synthesis(self, ws: Tensor, noise: list[Tensor] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Styles (B, num_ws, w_dim) to images (B, C, R, R) fp32. `noise` None: the fixed noise images."""
        if noise is None:
            noise = [getattr(self, f"noise_{i}") for i in range(len(self.layers))]
        x = self.constant.to(dtype).expand(len(ws), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.layers[0](x, ws[:, 0], noise[0], dtype)
        image = self.to_image[0](x, ws[:, 1], dtype)
        for i, to_image in enumerate(list(self.to_image)[1:]):
            a, b = 2 * i + 1, 2 * i + 2
            x = self.layers[a](x, ws[:, a], noise[a], dtype)
            x = self.layers[b](x, ws[:, b], noise[b], dtype)
            image = fir_up(image) + to_image(x, ws[:, b + 1], dtype)
        return image

    def forward(
        self, z: Tensor, labels: Tensor | None = None, *, noise: list[Tensor] | None = None, truncation: float = 1.0,
        truncation_cutoff: int | None = None, dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # fmt: skip
        ws = self.broadcast(self.mapping(z, labels))
        if truncation != 1.0:
            ws = self.truncate(ws, truncation, truncation_cutoff)
        return self.synthesis(ws, noise, dtype)


# --- the discriminator ------------------------------------------------------------------------------------------------
class EqualConv(nn.Module):
    """Convolution with equalised learning rate; `down` low-passes first and then takes every second pixel."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, down: bool = False, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(fan_out)) if bias else None
        self.scale, self.down = 1 / math.sqrt(fan_in * kernel**2), down

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        weight = (self.weight * self.scale).to(dtype, memory_format=torch.channels_last)
        bias = None if self.bias is None else self.bias.to(dtype)
        kernel = weight.shape[2]
        if not self.down:
            return F.conv2d(x, weight, bias, padding=kernel // 2)
        if kernel == 1:  # only every second pixel is needed: filter at stride 2
            return F.conv2d(fir_down(x), weight, bias)
        return F.conv2d(fir_same(x, pad=2), weight, bias, stride=2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the second downsampling, beside a 1x1 shortcut; the sum is scaled by 1/sqrt(2)."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.conv1 = EqualConv(fan_in, fan_in, 3)
        self.conv2 = EqualConv(fan_in, fan_out, 3, down=True)
        self.skip = EqualConv(fan_in, fan_out, 1, down=True, bias=False)

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        y = lrelu(self.conv2(lrelu(self.conv1(x, dtype), dtype), dtype), dtype)
        return (y + self.skip(x, dtype)) * (1 / math.sqrt(2))


def minibatch_std(x: Tensor, group: int, channels: int = 1) -> Tensor:
    """Append `channels` maps of the standard deviation within groups of contiguous rows (Karras 2018, section 3).

    x (B, C, H, W) fp32 -> (B, C + channels, H, W). ValueError if B is not a multiple of the group.
    """
    b, c, h, w = x.shape
    if b % group:
        raise ValueError(f"a batch of {b} has no whole minibatch-std groups of {group}; use a multiple")
    y = x.reshape(b // group, group, channels, c // channels, h, w)
    y = (y - y.mean(1, keepdim=True)).square().mean(1).add(1e-8).sqrt().mean((2, 3, 4))  # (groups, channels)
    y = y.repeat_interleave(group, 0)[:, :, None, None].expand(-1, -1, h, w)
    return torch.cat([x, y], 1)


class Discriminator(nn.Module):
    """Images (B, C, R, R) [, labels (B,)] -> logits (B,) fp32."""

    def __init__(
        self, *, resolution: int, channels: int = 1, num_classes: int = 0, channel_base: int = 16384, channel_max: int = 512,
        mbstd_group: int = 4, mbstd_channels: int = 1, mapping_layers: int = 8,
    ):  # fmt: skip
        super().__init__()
        self.mbstd_group, self.mbstd_channels = mbstd_group, mbstd_channels
        sizes = [4 * 2**i for i in range(int(math.log2(resolution)) - 1)]
        width = {r: channels_at(r, channel_base, channel_max) for r in sizes}
        self.from_image = EqualConv(channels, width[resolution], 1)
        self.blocks = nn.ModuleList(ResidualBlock(width[r], width[r // 2]) for r in reversed(sizes[1:]))
        self.conv = EqualConv(width[4] + mbstd_channels, width[4], 3)
        self.fc = EqualLinear(width[4] * 16, width[4], activate=True)
        self.out = EqualLinear(width[4], width[4] if num_classes else 1)
        self.class_mapping = Mapping(0, width[4], num_classes, mapping_layers) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        x = x.to(dtype, memory_format=torch.channels_last)
        x = lrelu(self.from_image(x, dtype), dtype)
        for block in self.blocks:
            x = block(x, dtype)
        x = minibatch_std(x.float(), self.mbstd_group, self.mbstd_channels)
        x = lrelu(self.conv(x, torch.float32))
        x = self.out(self.fc(x.flatten(1)))
        if self.class_mapping is None:
            return x[:, 0]
        embedding = normalize(self.class_mapping(None, labels))
        return (x * embedding).sum(1) / math.sqrt(x.shape[1])
