"""StyleGAN2 networks: mapping, skip synthesis and residual discriminator (Karras 2019, 2020a, 2020b).

Shapes: B batch, C image channels, R resolution, I/O channels in/out of a layer. Images are (B, C, R, R) fp32 in about
[-1, 1]. Weights are stored in fp32 and cast in every forward: the argument `dtype` is what the convolutions really run
in, while mapping, styles, demodulation, the sum of the toRGB images, minibatch-std, the discriminator's last layers and
the logits stay fp32. Feature maps are channels_last from end to end.

No forward draws random numbers: noise comes in as tensors, or is the fixed one that every Generator carries.

Karras 2019: A Style-Based Generator Architecture for GANs, arXiv 1812.04948.
Karras 2020a: Analyzing and Improving the Image Quality of StyleGAN, arXiv 1912.04958.
Karras 2020b: Training GANs with Limited Data, arXiv 2006.06676 (mixed precision, projection discriminator).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from models.conditions import ConditionEmbedding, Reader, Told, classes_and_attributes
from models.convolution import conv2d, conv_transpose2d
from models.draws import normals, orthogonal
from models.filters import blur, downsample, upsample

SQRT2 = math.sqrt(2)
SLOPE = 0.2  # of leaky ReLU
CLAMP = 256.0  # largest activation in fp16, whose range ends at 65504 (Karras 2020b, appendix)
MAPPING_LR = 0.01  # learning rate of the mapping network relative to the others (Karras 2019, appendix C)
NOISE_SEED = 20200  # of the fixed noise; the same images on every machine


# --- layers ----------------------------------------------------------------------------------------------------------
def normalise(x: torch.Tensor) -> torch.Tensor:
    """(B, N) scaled to a mean square of one in every row."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def leaky_relu_(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU in place, without its gain sqrt(2), which callers fold into weights: f(g x) = g f(x) for any g > 0.

    In place, because a convolution does not need its output again: one feature map less to allocate and to keep.
    """
    x = F.leaky_relu_(x, SLOPE)
    return x.clamp(-CLAMP, CLAMP) if x.dtype == torch.float16 else x


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """1x1 convolution of channels_last x (B, I, H, W) with weight (O, I).

    One matrix product, except on a CPU, whose convolutions reach twice the speed of its matrix products in fp32.
    """
    if x.device.type == "cpu":
        return conv2d(x, weight[:, :, None, None], bias)
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class EqualLinear(nn.Module):
    """Fully connected layer with equalised learning rate (Karras 2018): weights that `start` as N(0, 1) or as an
    orthogonal matrix of the same mean square, scaled when used.

    A multiplier below one slows the layer: weights are stored that much larger, and scaled back (Karras 2019, app. C).
    """

    def __init__(self, inputs: int, outputs: int, *, bias=0.0, lr_multiplier=1.0, activate=False, start=torch.randn):
        super().__init__()
        self.weight = nn.Parameter(start(outputs, inputs) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.lr_multiplier, self.activate = lr_multiplier, activate
        self.gain = SQRT2 if activate else 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs) of any float type -> (B, outputs) fp32."""
        scale = self.lr_multiplier * self.gain
        x = F.linear(x.float(), self.weight * (scale / math.sqrt(self.weight.shape[1])), self.bias * scale)
        return F.leaky_relu(x, SLOPE) if self.activate else x


class MappingNetwork(nn.Module):
    """z (B, z_dim) and, with classes, labels (B,) int64 -> w (B, w_dim) fp32 (Karras 2019, section 2).

    The class embedding is normalised as z is, and concatenated to it (Karras 2020b). z_dim 0 maps the class alone. With
    attributes their values (B, A), as of models.conditions, stand in place of the labels, and the second half of w is
    their embedding itself: the layers mix z into all that they give, so that no style could tell an age from a latent.

    `start` draws the layers' weights. They hardly move, and products of normal matrices pass few of z's directions on.
    So all matrices of a Generator from z to the styles start orthogonal (benchmarks/NOTES.md).
    """

    def __init__(self, z_dim: int, w_dim: int, *, num_classes: Told = 0, layers: int = 8, start=torch.randn):
        super().__init__()
        num_classes, attributes = classes_and_attributes(num_classes)
        self.z_dim, self.num_classes, self.attributes = z_dim, num_classes, len(attributes)
        if attributes and w_dim < 2:
            raise ValueError("w_dim 1 holds no latent beside the attributes: use at least 2")
        beside = w_dim // 2 if attributes else 0
        if attributes:
            self.conditions = ConditionEmbedding(attributes, beside, EqualLinear)
        elif num_classes:
            self.embedding = nn.Parameter(torch.randn(num_classes, w_dim))
        widths = [z_dim + (beside or (w_dim if num_classes else 0))] + [w_dim] * (layers - 1) + [w_dim - beside]
        self.layers = nn.ModuleList(
            EqualLinear(i, o, lr_multiplier=MAPPING_LR, activate=True, start=start) for i, o in pairwise(widths)
        )

    def forward(self, z: torch.Tensor | None, labels: torch.Tensor | None = None) -> torch.Tensor:
        """z (B, z_dim) or None, labels (B,) int64 or values (B, A) -> w (B, w_dim) fp32. Raises ValueError where they
        are missing."""
        parts = [normalise(z.float())] if z is not None and self.z_dim else []
        if self.attributes:
            if labels is None:
                raise ValueError(f"this network knows {self.attributes} attributes: pass values, (batch, attributes)")
            parts.append(normalise(self.conditions(labels)))
        elif self.num_classes:
            if labels is None:
                raise ValueError(f"this network knows {self.num_classes} classes: pass labels, int64 of shape (batch,)")
            parts.append(normalise(F.embedding(labels, self.embedding)))
        x = torch.cat(parts, 1)
        for layer in self.layers:
            x = layer(x)
        return torch.cat([x, parts[-1]], 1) if self.attributes else x


# --- generator -------------------------------------------------------------------------------------------------------
def demodulation(weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Weight (O, I, k, k), styles (B, I) -> (B, O), one over the norm of each modulated filter (Karras 2020a, eq. 3).

    The squared norm is sum_i s_i^2 sum_k w_oik^2: one matrix product, and no weights per sample.
    """
    return (styles.square() @ weight.square().sum((2, 3)).T + 1e-8).rsqrt()


def modulated_conv(
    x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor, *, up: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolution whose input channels are scaled by each sample's styles (Karras 2020a, section 2.2).

    x (B, I, H, W) in the dtype to compute in; weight (O, I, 3, 3) and styles (B, I) fp32. Returns y (B, O, H, W), twice
    the size with `up`, and d (B, O) fp32: the demodulated result is y * d[:, :, None, None]. Scaling activations with
    one shared weight is the same as a weight per sample, and avoids grouped convolutions. d is left to the caller, who
    has a multiply-add to do anyway.
    """
    if x.dtype == torch.float16:
        # Demodulation cancels any scale of weights and styles, so both are brought near one: sums stay in range.
        weight = weight / (weight.abs().amax((1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()) + 1e-12)
        styles = styles / (styles.abs().amax(1, keepdim=True) + 1e-12)
    d = demodulation(weight, styles)
    x = x * styles.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype, memory_format=torch.channels_last)
    if up:  # at the low resolution a transposed convolution costs a quarter of one after upsampling
        return blur(conv_transpose2d(x, weight.transpose(0, 1), stride=2), 1, gain=4.0), d
    return conv2d(x, weight, padding=1), d


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU (Karras 2020a, figure 2d); doubles the size with `up`."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, resolution: int, *, up=False, start=torch.randn):
        super().__init__()
        self.up, self.resolution = up, resolution
        self.affine = EqualLinear(w_dim, inputs, bias=1.0, start=start)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor, w: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """x (B, I, h, h) in the dtype to compute in, w (B, w_dim), noise (B or 1, 1, H, H) -> (B, O, H, H)."""
        weight = self.weight * (1 / math.sqrt(self.weight[0].numel()))
        y, d = modulated_conv(x, weight, self.affine(w), up=self.up)
        # The gain of the activation is folded into the three small tensors.
        d, bias = (d * SQRT2).to(y.dtype), (self.bias * SQRT2).to(y.dtype)
        y = torch.addcmul(bias[:, None, None], y, d[:, :, None, None])
        return leaky_relu_(y.add_((noise * (self.noise_strength * SQRT2)).to(y.dtype)))


class ToRGB(nn.Module):
    """Features to image: modulated 1x1 convolution without demodulation and without activation (Karras 2020a)."""

    def __init__(self, inputs: int, channels: int, w_dim: int, *, start=torch.randn):
        super().__init__()
        self.affine = EqualLinear(w_dim, inputs, bias=1.0, start=start)
        self.weight = nn.Parameter(torch.randn(channels, inputs))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """x (B, I, H, W), w (B, w_dim) -> (B, C, H, W) fp32."""
        batch, inputs, height, width = x.shape
        styles = self.affine(w) * (1 / math.sqrt(inputs))
        # With so few outputs a weight per sample is small, and saves scaling the activations.
        weight = (self.weight * styles[:, None]).to(x.dtype).transpose(1, 2)  # (B, I, C)
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, inputs) @ weight
        if x.dtype == torch.float16:
            pixels = pixels.clamp(-CLAMP, CLAMP)
        return (pixels.float() + self.bias).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


class Generator(nn.Module):
    """Mapping network, and synthesis with skip connections: the image is the sum of upsampled toRGB outputs.

    `w_avg` is the running mean of w, with classes one of each, so that truncation does not move classes together; the
    train script keeps it (update_w_avg), as it must average over ranks. `start` draws what leads from z to the styles.
    """

    start: Callable = staticmethod(orthogonal)
    w_avg: torch.Tensor

    def __init__(
        self,
        *,
        resolution: int,
        channels: int = 1,
        z_dim: int = 512,
        w_dim: int = 512,
        num_classes: Told = 0,
        mapping_layers: int = 8,
        channel_base: int = 16384,
        channel_max: int = 512,
    ):
        super().__init__()
        told, (num_classes, _) = num_classes, classes_and_attributes(num_classes)
        sizes = resolutions(resolution)
        widths = [channels_at(r, channel_base, channel_max) for r in sizes]
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        self.z_dim, self.w_dim = z_dim, w_dim
        self.num_ws = 2 * len(sizes)  # one per convolution and one for the last toRGB
        self.mapping = MappingNetwork(z_dim, w_dim, num_classes=told, layers=mapping_layers, start=self.start)
        self.register_buffer("w_avg", torch.zeros(num_classes, w_dim) if num_classes else torch.zeros(w_dim))
        self.register_load_state_dict_pre_hook(average_of_each_class)
        self.const = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.layers = nn.ModuleList([SynthesisLayer(widths[0], widths[0], w_dim, 4, start=self.start)])
        self.to_rgb = nn.ModuleList([ToRGB(widths[0], channels, w_dim, start=self.start)])
        for r, before, width in zip(sizes[1:], widths[:-1], widths[1:], strict=True):
            self.layers.append(SynthesisLayer(before, width, w_dim, r, up=True, start=self.start))
            self.layers.append(SynthesisLayer(width, width, w_dim, r, start=self.start))
            self.to_rgb.append(ToRGB(width, channels, w_dim, start=self.start))
        generator = torch.Generator().manual_seed(NOISE_SEED)
        self.constants = [f"noise_{i}" for i in range(len(self.layers))]  # buffers that training does not change
        for name, noise in zip(self.constants, self.draw_noise(1, generator, "cpu"), strict=True):
            self.register_buffer(name, noise)

    @property
    def noise_shapes(self) -> list[tuple[int, int]]:
        """(H, W) of the noise of each convolution, in order."""
        layers: Iterable[Any] = self.layers
        return [(layer.resolution, layer.resolution) for layer in layers]

    def draw_noise(self, batch: int, generator: torch.Generator, device: torch.device | str) -> list[torch.Tensor]:
        """Noise ~ N(0, 1) for `synthesis`: a list of (batch, 1, H, W) fp32 on `device`, from a generator of the CPU."""
        return normals([(batch, 1, h, w) for h, w in self.noise_shapes], generator, device)

    def broadcast(self, w: torch.Tensor) -> torch.Tensor:
        """w (B, w_dim) -> ws (B, num_ws, w_dim), the same style in every layer."""
        return w[:, None].expand(-1, self.num_ws, -1)

    def centre(self, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Where truncation pulls to: (w_dim,); with classes (B, 1, w_dim), the average w of each of labels (B,)."""
        if not self.num_classes:
            return self.w_avg
        return self.w_avg.mean(0) if labels is None else self.w_avg[labels.to(self.w_avg.device)][:, None]

    def truncate(
        self, ws: torch.Tensor, psi: float, cutoff: int | None = None, centre: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Move styles of the layers below `cutoff` (None: of all) towards the average w (Karras 2019, appendix B), or
        towards another `centre`."""
        if psi == 1:
            return ws
        cutoff = self.num_ws if cutoff is None else cutoff
        centre = self.centre() if centre is None else centre
        below = (torch.arange(self.num_ws, device=ws.device) < cutoff)[:, None]
        return torch.where(below, centre + psi * (ws - centre), ws)

    def sums_of_w(self, w: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """What update_w_avg takes the mean of: the sum of w (B, w_dim), (w_dim,); with classes (classes, w_dim + 1),
        the sum of each and how many of the rows are of it."""
        if not self.num_classes or labels is None:
            return w.sum(0)
        # A product, not a scatter: in the same order on a GPU each time.
        members = labels[:, None] == torch.arange(self.num_classes, device=w.device)
        return members.to(w).T @ F.pad(w, (0, 1), value=1.0)

    @torch.no_grad()
    def update_w_avg(self, mean_w: torch.Tensor, beta: float) -> None:
        """w_avg <- beta w_avg + (1 - beta) mean w; mean_w is sums_of_w of the global batch over the size of the batch.

        A class of which the batch has none keeps its average.
        """
        if not self.num_classes:
            self.w_avg.lerp_(mean_w.to(self.w_avg), 1 - beta)
            return
        total, share = mean_w.to(self.w_avg).split([self.w_dim, 1], 1)
        self.w_avg.lerp_(total / share.clamp_min(1e-12), (1 - beta) * (share > 0))

    def synthesis(
        self, ws: torch.Tensor, noise: list[torch.Tensor] | None = None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """ws (B, num_ws, w_dim) -> images (B, C, R, R) fp32. noise: from draw_noise, or None for the fixed noise.

        Layer i takes ws[:, i]; the toRGB after it shares the style of the layer that follows.
        Raises ValueError for a wrong number of styles or noise tensors.
        """
        if ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws has shape {tuple(ws.shape)}, expected (batch, {self.num_ws}, {self.w_dim})")
        if noise is None:
            noise = [getattr(self, f"noise_{i}") for i in range(len(self.layers))]
        if len(noise) != len(self.layers):
            raise ValueError(f"{len(noise)} noise tensors for {len(self.layers)} layers; use draw_noise")
        ws = ws.float()
        x = self.const.to(dtype).expand(ws.shape[0], -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image = None
        for i, layer in enumerate(self.layers):
            x = layer(x, ws[:, i], noise[i])
            if i % 2 == 0:  # the last layer of its resolution
                rgb = self.to_rgb[i // 2](x, ws[:, i + 1])
                image = rgb if image is None else upsample(image) + rgb
        assert image is not None
        return image.contiguous()

    def forward(
        self,
        z: torch.Tensor,
        labels: torch.Tensor | None = None,
        *,
        noise: list[torch.Tensor] | None = None,
        truncation: float = 1.0,
        truncation_cutoff: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """z (B, z_dim), labels (B,) int64 or None -> images (B, C, R, R) fp32."""
        ws = self.broadcast(self.mapping(z, labels))
        ws = self.truncate(ws, truncation, truncation_cutoff, self.centre(labels))
        return self.synthesis(ws, noise, dtype=dtype)


class PublishedGenerator(Generator):
    """A Generator whose matrices from z to the styles start normal (Karras 2019, 2020a)."""

    start = staticmethod(torch.randn)


def average_of_each_class(module: Generator, state: dict[str, torch.Tensor], prefix: str = "", *_) -> None:
    """Weights of before every class had an average of its own: the one that they have is that of each."""
    average = state.get(f"{prefix}w_avg")
    if module.num_classes and average is not None and average.ndim == 1:
        state[f"{prefix}w_avg"] = average.expand(module.num_classes, -1).clone()


def mix_styles(w1: torch.Tensor, w2: torch.Tensor, cutoff: torch.Tensor, num_ws: int) -> torch.Tensor:
    """Style mixing (Karras 2019, section 3.1): w1 (B, w_dim) in layers before `cutoff`, w2 from there on.

    cutoff (B,) int64, one per sample (num_ws: no mixing) -> ws (B, num_ws, w_dim). A mask, so no shape depends on it.
    """
    first = torch.arange(num_ws, device=w1.device) < cutoff[:, None]
    return torch.where(first[:, :, None], w1[:, None], w2[:, None])


# --- discriminator ---------------------------------------------------------------------------------------------------
def minibatch_std(x: torch.Tensor, group: int, channels: int = 1) -> torch.Tensor:
    """(B, C, H, W) -> (B, channels, H, W): how much the samples of a group differ (Karras 2018, section 3).

    A group is `group` consecutive rows, so that ranks and halves of a batch that hold whole groups give the same result
    as the whole. Standard deviation over the group, averaged over pixels and each of `channels` parts of the features.
    Raises ValueError where the batch is not a multiple of the group.
    """
    batch, features, height, width = x.shape
    if batch % group:
        raise ValueError(f"{batch} rows do not divide into minibatch-std groups of {group}: use a multiple of {group}")
    y = x.float().reshape(batch // group, group, channels, features // channels, height, width)
    std = (y.var(1, correction=0) + 1e-8).sqrt().mean((2, 3, 4))  # (B / group, channels)
    return std.repeat_interleave(group, 0)[:, :, None, None].expand(-1, -1, height, width)


class EqualConv(nn.Module):
    """Convolution with equalised learning rate, bias and leaky ReLU; `down` halves the size behind a low-pass filter.

    `gain` multiplies the result. It and the gain of the activation are folded into the weight and the bias.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, down: bool = False, gain: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.down, self.kernel, self.gain = down, kernel, gain * SQRT2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, I, H, W) in the type to compute in -> (B, O, H, W), half the size with `down`."""
        weight = self.weight * (self.gain / math.sqrt(self.weight[0].numel()))
        bias = (self.bias * self.gain).to(x.dtype)
        if self.kernel == 1:  # of few channels; in place before the view, which autograd would else copy back
            y = leaky_relu_(F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0].to(x.dtype), bias))
            return y.permute(0, 3, 1, 2)
        weight = weight.to(x.dtype, memory_format=torch.channels_last)
        if self.down:
            return leaky_relu_(conv2d(blur(x, 2), weight, bias, stride=2))
        return leaky_relu_(conv2d(x, weight, bias, padding=1))


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a linear skip, (B, I, H, H) -> (B, O, H/2, H/2) (Karras 2020a, section 4.1)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv0 = EqualConv(inputs, inputs)
        self.conv1 = EqualConv(inputs, outputs, down=True, gain=1 / SQRT2)
        self.skip = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The sum of two branches is divided by sqrt(2) to keep the variance: here through the gain of either branch.
        """(B, I, H, H) in the type to compute in -> (B, O, H/2, H/2)."""
        skip = (self.skip * (1 / math.sqrt(2 * self.skip.shape[1]))).to(x.dtype)
        return self.conv1(self.conv0(x)) + pointwise(downsample(x), skip)


class Discriminator(nn.Module):
    """Residual discriminator; with classes or attributes, a projection discriminator (Miyato 2018, Karras 2020b)."""

    def __init__(
        self,
        *,
        resolution: int,
        channels: int = 1,
        num_classes: Told = 0,
        channel_base: int = 16384,
        channel_max: int = 512,
        mbstd_group: int = 4,
        mbstd_channels: int = 1,
        mapping_layers: int = 8,
    ):
        super().__init__()
        num_classes, attributes = classes_and_attributes(num_classes)
        sizes = resolutions(resolution)[::-1]
        widths = [channels_at(r, channel_base, channel_max) for r in sizes]
        last = widths[-1]
        if mbstd_channels and last % mbstd_channels:
            raise ValueError(f"mbstd_channels {mbstd_channels} must divide the {last} features at 4 px")
        self.resolution, self.channels, self.num_classes = resolution, channels, num_classes
        self.mbstd_group, self.mbstd_channels = mbstd_group, mbstd_channels
        self.from_rgb = EqualConv(channels, widths[0], kernel=1)
        self.blocks = nn.ModuleList(DiscriminatorBlock(i, o) for i, o in pairwise(widths))
        self.conv = EqualConv(last + mbstd_channels, last)
        self.linear = EqualLinear(last * 16, last, activate=True)
        self.projects = bool(num_classes or attributes)
        self.out = EqualLinear(last, last if self.projects else 1)
        # Attributes are projected as they are, each by itself: layers in between learn a hundred times more slowly.
        if attributes:
            self.conditions = ConditionEmbedding(attributes, last, EqualLinear)
            self.reader = Reader(attributes, last, EqualLinear)
        elif num_classes:
            self.mapping = MappingNetwork(0, last, num_classes=num_classes, layers=mapping_layers)

    def forward(
        self,
        x: torch.Tensor,
        labels: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        read: bool = False,
    ) -> Any:
        """Images (B, C, R, R) in [-1, 1], labels (B,) int64, values (B, A) or None -> logits (B,) fp32; B a multiple of
        mbstd_group.

        read: also how far the values are from what the images show, (B,), of a network with attributes.
        """
        x = self.from_rgb(x.to(dtype, memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        x = x.float()
        if self.mbstd_channels:
            x = torch.cat([x, minibatch_std(x, self.mbstd_group, self.mbstd_channels)], 1)
        shown = self.linear(self.conv(x).flatten(1))
        x = self.out(shown)
        if self.projects:
            features = self.mapping(None, labels) if self.num_classes else self.conditions(labels)
            logits = (x * features).sum(1) * (1 / math.sqrt(features.shape[1]))
            return (logits, self.reader(shown, labels)) if read else logits
        return x.squeeze(1)


# --- sizes -----------------------------------------------------------------------------------------------------------
def resolutions(resolution: int) -> list[int]:
    """[4, 8, ..., resolution]. Raises ValueError where it is not a power of two from 16 to 1024."""
    if resolution not in (16, 32, 64, 128, 256, 512, 1024):
        raise ValueError(f"resolution {resolution}: use a power of two from 16 to 1024")
    return [2**i for i in range(2, int(math.log2(resolution)) + 1)]


def channels_at(resolution: int, channel_base: int, channel_max: int) -> int:
    """Feature maps at a resolution. Raises ValueError where there would be none."""
    channels = min(channel_base // resolution, channel_max)
    if channels < 1:
        raise ValueError(
            f"channel_base {channel_base} leaves no features at {resolution} px: use at least {resolution}"
        )
    return channels
