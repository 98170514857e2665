"""Convolutions with a double backward of their own, against ATen's and finite differences."""

import pytest
import torch
import torch.nn.functional as F

from models import convolution

# kernel, stride, padding, transposed; all that StyleGAN2 has
KINDS = [(3, 1, 1, False), (3, 2, 0, False), (1, 1, 0, False), (3, 2, 0, True)]


def both(kernel: int, stride: int, padding: int, transposed: bool):
    """(ours for two derivatives, ATen's), functions of x, weight and bias."""
    ours = convolution.differentiated_twice()
    if transposed:
        return (
            ours(lambda x, w, b: convolution.conv_transpose2d(x, w, stride=stride)),
            lambda x, w, b: F.conv_transpose2d(x, w, None, stride),
        )
    return (
        ours(lambda x, w, b: convolution.conv2d(x, w, b, stride=stride, padding=padding)),
        lambda x, w, b: F.conv2d(x, w, b, stride, padding),
    )


def tensors(kernel, transposed, dtype, side=9, layout=torch.channels_last):
    draw = torch.Generator().manual_seed(kernel + 10 * transposed)
    shapes = (3, 4) if transposed else (4, 3)
    x = torch.randn(2, 3, side, side, generator=draw, dtype=torch.float64).to(dtype, memory_format=layout)
    weight = torch.randn(*shapes, kernel, kernel, generator=draw, dtype=torch.float64).to(dtype, memory_format=layout)
    return x, weight, torch.randn(4, generator=draw, dtype=torch.float64).to(dtype)


def twice(function, values) -> list[torch.Tensor]:
    """The result, the slope of a loss along x as R1 takes it, and the gradients of that slope's square."""
    x, weight, bias = (v.detach().requires_grad_() for v in values)
    y = function(x, weight * 0.5, bias)
    (slope,) = torch.autograd.grad((y * y.detach().cos() + y.square()).sum(), x, create_graph=True)
    slope.square().sum().backward()
    return [y, slope, x.grad, weight.grad, bias.grad]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_result_and_both_derivatives_are_atens(kind, dtype, bound):
    kernel, _, _, transposed = kind
    for layout in (torch.channels_last, torch.contiguous_format):
        values = tensors(kernel, transposed, dtype, layout=layout)
        for ours, atens in zip(*(twice(f, values) for f in both(*kind)), strict=True):
            if atens is None:  # the bias of a transposed one
                assert ours is None
                continue
            assert ours.dtype == dtype and (ours - atens).norm() <= bound * atens.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_one_derivative_is_atens_to_the_bit(kind):
    kernel, _, _, transposed = kind
    found = []
    for function in both(*kind):
        x, weight, bias = (v.requires_grad_() for v in tensors(kernel, transposed, torch.float32))
        y = function(x, weight, bias)
        (y.square().sum() if transposed else (y.square() + y).sum()).backward()
        found.append([y, x.grad, weight.grad] + ([] if transposed else [bias.grad]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_are_finite_differences(kind):
    kernel, _, _, transposed = kind
    ours, _ = both(*kind)
    values = tuple(v.requires_grad_() for v in tensors(kernel, transposed, torch.float64, side=5))
    of_all = values[:2] if transposed else values
    assert torch.autograd.gradcheck(lambda *v: ours(*v, *values[len(v) :]), of_all)
    assert torch.autograd.gradgradcheck(lambda *v: ours(*v, *values[len(v) :]), of_all)


def test_no_gradient_is_computed_that_nobody_asked_for():
    """The slope along the images needs no gradient of any weight: a third of the work of a penalty's first pass."""
    calls = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.convolution_backward:
                calls.append(list(args[-1]))
            return func(*args, **(kwargs or {}))

    x, weight, bias = (v.requires_grad_() for v in tensors(3, False, torch.float32))
    with Watch(), convolution.differentiated_twice():
        y = convolution.conv2d(x, weight * 1, bias, padding=1)
        torch.autograd.grad(y.square().sum(), x, create_graph=True)
        torch.autograd.grad(convolution.conv2d(x, weight, bias, padding=1).sum(), x)
        torch.autograd.grad(convolution.conv2d(x, weight, bias, padding=1).sum(), (weight, bias))
        convolution.conv2d(x, weight, bias, padding=1).sum().backward()
    assert calls == [[True, False, False], [True, False, False], [False, True, True], [True, True, True]]


def test_what_is_differentiated_once_is_left_to_aten():
    """Its graph is built in C++: the one in Python costs a tenth of a millisecond a convolution."""
    x, weight, bias = (v.requires_grad_() for v in tensors(3, False, torch.float32))

    def nodes() -> list[str]:
        both = convolution.conv2d(x, weight, bias), convolution.conv_transpose2d(x, weight.transpose(0, 1))
        return [y.grad_fn.name() for y in both]

    assert nodes() == ["ConvolutionBackward0"] * 2
    with convolution.differentiated_twice():
        with convolution.differentiated_twice():
            assert nodes() == ["_ConvolutionBackward"] * 2
        assert nodes() == ["_ConvolutionBackward"] * 2
    with pytest.raises(KeyError), convolution.differentiated_twice():
        raise KeyError
    assert nodes() == ["ConvolutionBackward0"] * 2
