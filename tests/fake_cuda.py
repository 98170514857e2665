"""A GPU that is not there: meta tensors that say they are on `cuda:0`, and a ledger of what is done to them.

    with fake_cuda() as ledger:
        train_step(...)          # any code that asks torch.cuda.is_available() and uses device "cuda"
    ledger.stalls, ledger.launches, ledger.peak, ledger.bytes, ledger.large_kernels

Nothing is computed, so a full-size step takes seconds on a laptop. CPU tensors stay real; whatever comes back from the
device is zeros. It sees: tensors and generators of the wrong device, each place where the host waits for the device,
shapes, types and layouts of every operation, the memory that tensors hold. It cannot see the speed of a kernel, what
cuDNN chooses, workspaces, numbers, NCCL, streams, the driver.
"""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections import Counter
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.training.throughput import FlopCounter
from models import filters

ROOT = Path(__file__).resolve().parent.parent
CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
HALF = (torch.float16, torch.bfloat16)
GRAIN = 512  # bytes; the caching allocator rounds up to it
CHUNK = 320 * 65536  # elements that one launch of a _foreach_ operation works through
# An A100 of 40 GB: bytes/s at 80 % of its memory, FLOP/s at 60 % of its bf16 and at 50 % of its TF32 peak.
BANDWIDTH, HALF_RATE, TF32_RATE = 0.8 * 1.555e12, 0.6 * 312e12, 0.5 * 156e12
COUNTED = ("nonzero", "_unique2", "bincount", "masked_select")  # whose results have a size that the host must learn
aten = torch.ops.aten


@dataclass
class Ledger:
    """What was done to the device."""

    stalls: Counter = field(default_factory=Counter)  # (operation, Place) where the host waited for the device
    launches: int = 0  # of kernels, each operation that is no view counted once
    bytes: int = 0  # read and written by them, each operand once
    seconds: float = 0.0  # by the roofline of an A100
    operations: Counter = field(default_factory=Counter)  # bytes by name
    large_kernels: list[str] = field(default_factory=list)  # convolutions of several channels with a kernel above 4
    live: int = 0  # bytes of all tensors
    peak: int = 0
    flops: FlopCounter = field(default_factory=FlopCounter)

    def begin(self) -> None:
        """Count from here; what lives, lives on."""
        self.stalls, self.operations, self.large_kernels = Counter(), Counter(), []
        self.launches, self.bytes, self.seconds, self.peak = 0, 0, 0.0, self.live
        self.flops.flops = 0

    def copy(self) -> Ledger:
        """What it says now."""
        return replace(self, stalls=self.stalls.copy(), operations=self.operations.copy(), flops=copy(self.flops))

    def take(self, storage: torch.UntypedStorage) -> None:
        size = -(-storage.nbytes() // GRAIN) * GRAIN
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.give, size)

    def give(self, size: int) -> None:
        self.live -= size

    def stall(self, name: str) -> None:
        self.stalls[name, place()] += 1


class Place(NamedTuple):
    """A line of the toolkit."""

    file: str
    function: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}, {self.function}"


def place() -> Place:
    """Of the innermost frame of the toolkit."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and "site-packages" not in path.parts and path.name != "fake_cuda.py":
            return Place(str(path.relative_to(ROOT)), frame.f_code.co_qualname, frame.f_lineno)
        frame = frame.f_back
    return Place("?", "?", 0)


def on_device(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def tensors_in(values) -> list[torch.Tensor]:
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
    return found


def channels_last(x: torch.Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def size_of(tensors: list[torch.Tensor]) -> int:
    """Bytes that an operation must touch; what is expanded is read once."""
    total = 0
    for x in tensors:
        numbers = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)
        total += numbers * x.element_size()
    return total


# --- below autograd: every operation ----------------------------------------------------------------------------------
class Device(TorchDispatchMode):
    """Runs the operations of the device and writes them down."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger, self.known, self.pinned = ledger, weakref.WeakSet(), weakref.WeakSet()
        self.inside = False  # an operation's meta kernel, which shall see meta tensors

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors_in([*args, *kwargs.values()])
        there = kwargs.get("device") == META or any(x.is_meta for x in given)
        if not there:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func._can_decompose():  # elsewhere autograd has done so
            with self:
                return func.decompose(*args, **kwargs)
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            return self.copy(func, args, kwargs)
        if name in ("_local_scalar_dense", "equal", "is_nonzero"):
            self.ledger.stall(name)
            x = args[0]
            return (
                True if name != "_local_scalar_dense" or x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1
            )
        if name in COUNTED:
            self.ledger.stall(name)
            out = func(*(torch.ones_like(a, device=CPU) if on_device(a) else a for a in args), **kwargs)
            out = tuple(o.to(META) for o in out) if isinstance(out, tuple) else out.to(META)
            return self.counted(out)
        if name in ("index", "index_put_", "index_put") and self.odd_index(args[1]):
            self.ledger.stall(name)
            given = [x for x in given if x.is_meta]
            args = (args[0], [self.index(i) for i in args[1]], *args[2:])
        self.check(func, given)
        return self.run(func, name, args, kwargs, given)

    def call(self, func, args, kwargs):
        outer, self.inside = self.inside, True
        try:
            return func(*args, **kwargs)
        finally:
            self.inside = outer

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """Host memory that the device reads by itself."""
        self.pinned.add(x.untyped_storage())
        return x

    def odd_index(self, indices) -> bool:
        """A mask, whose count the host must know, or an index in host memory."""
        return any(i is not None and (not i.is_meta or i.dtype in (torch.bool, torch.uint8)) for i in indices)

    def index(self, i: torch.Tensor | None) -> torch.Tensor | None:
        """On the device; a mask of it, whose numbers nobody knows, takes all."""
        if i is None or i.dtype not in (torch.bool, torch.uint8):
            return i if i is None or i.is_meta else torch.empty_like(i, device=META)
        return torch.empty(i.numel(), dtype=torch.int64, device=META)

    def check(self, func, given: list[torch.Tensor]) -> None:
        if strange := [x for x in given if not x.is_meta and x.dim()]:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and "
                f"{strange[0].device}! ({func}, {place()})"
            )

    def copy(self, func, args, kwargs):
        """Within the device, or between it and the host: then the host waits, unless its memory is pinned and it need
        not."""
        into = func is aten.copy_.default
        source = args[1] if into else args[0]
        target = args[0].is_meta if into else (kwargs["device"] == META if kwargs.get("device") else source.is_meta)
        if source.is_meta and target:
            return self.run(func, "copy_" if into else "_to_copy", args, kwargs, tensors_in(args))
        free = (args[2] if into and len(args) > 2 else kwargs.get("non_blocking", False)) and (
            source.is_meta or source.untyped_storage() in self.pinned
        )
        if not free and (source.dim() or source.is_meta or not into):
            self.ledger.stall("to device" if target else "to host")
        if into:
            return args[0] if target else args[0].fill_(source.dtype == torch.bool)
        how = {k: v for k, v in kwargs.items() if k != "non_blocking" and v is not None}
        how.setdefault("dtype", source.dtype)
        if not target:
            value = source.dtype == torch.bool  # flags are up, as .item() has them; all else is zero
            return torch.full_like(source, value, **{**how, "device": CPU, "pin_memory": False})
        return self.counted(torch.empty_like(source, **{**how, "device": META, "pin_memory": False}))

    def counted(self, out):
        for x in tensors_in([out] if isinstance(out, torch.Tensor) else out if isinstance(out, (list, tuple)) else []):
            storage = x.untyped_storage()
            if storage not in self.known:
                self.known.add(storage)
                self.ledger.take(storage)
        return out

    def run(self, func, name: str, args, kwargs, given):
        model = MODELS.get(name)
        out = self.call(partial(model, func) if model else func, args, kwargs)
        made = tensors_in([out] if isinstance(out, torch.Tensor) else out if isinstance(out, (list, tuple)) else [])
        before = {id(x.untyped_storage()) for x in given}
        fresh = [x for x in made if id(x.untyped_storage()) not in before]
        self.counted(out)
        if name in ("empty", "empty_like", "empty_strided", "new_empty", "detach", "new_empty_strided"):
            return out
        if not fresh and not func._schema.is_mutable:
            return out  # a view
        self.write_down(func, name, args, kwargs, out, given, fresh)
        return out

    def laid_out_anew(self, name: str, given: list[torch.Tensor]) -> list[torch.Tensor]:
        """Maps that the operation copies first: a convolution to channels_last where x or the weight are, a norm to
        NCHW."""
        maps = [x for x in given if x.dim() == 4]
        if "group_norm" in name:
            return [x for x in maps if channels_last(x)]
        if "convolution" in name and any(channels_last(x) for x in maps):
            return [x for x in maps if not x.is_contiguous(memory_format=torch.channels_last)]
        return []

    def write_down(self, func, name, args, kwargs, out, given, fresh) -> None:
        ledger, moved = self.ledger, size_of(given) + size_of(fresh)
        ledger.launches += max(sum(x.numel() for x in given) // CHUNK, 1) if "foreach" in name or "fused" in name else 1
        if name in ("convolution", "convolution_backward"):
            weight, groups = (args[1], args[8]) if name == "convolution" else (args[2], args[9])
            ledger.launches += 0 if name == "convolution" else args[10][0] + args[10][1] - 1
            if groups == 1 and max(weight.shape[2:]) > 4 and weight.shape[:2].numel() > 1:
                shapes = " * ".join(str(tuple(x.shape)) for x in tensors_in(args)[:2])
                ledger.large_kernels.append(f"{shapes} at {place()}")
        maps = self.laid_out_anew(name, given)
        ledger.launches += len(maps)
        moved += 2 * size_of(maps)
        ledger.peak = max(ledger.peak, ledger.live + size_of(maps))
        if "group_norm" in name:  # its kernels read the maps once for the sums and once more
            moved += size_of([x for x in given if x.dim() == 4])
        before = ledger.flops.flops
        ledger.flops.note(func, out, args, kwargs)
        rate = HALF_RATE if any(x.dtype in HALF for x in given + fresh) else TF32_RATE
        ledger.bytes += moved
        ledger.operations[name] += moved
        ledger.seconds += max(moved / BANDWIDTH, (ledger.flops.flops - before) / rate)


# --- operations whose meta kernel differs from CUDA's -----------------------------------------------------------------
def _convolution(func, *args):
    """cuDNN's result is channels_last where x or the weight are."""
    out = func(*args)
    layout = torch.channels_last if channels_last(args[0]) or channels_last(args[1]) else torch.contiguous_format
    return torch.empty_like(out, memory_format=layout) if out.dim() == 4 else out


def _convolution_backward(func, *args):
    """cuDNN's gradients have the layout of the input."""
    out = list(func(*args))
    layout = torch.channels_last if channels_last(args[1]) or channels_last(args[2]) else torch.contiguous_format
    for i in range(2):
        if out[i] is not None and out[i].dim() == 4:
            out[i] = torch.empty_like(out[i], memory_format=layout)
    return tuple(out)


def _group_norm(func, *args):
    """CUDA's has one layout, NCHW; mean and 1 / std per group."""
    x, _, _, batch, _, _, groups, _ = args
    if x.dtype not in HALF and any(w is not None and w.dtype in HALF for w in args[1:3]):
        raise RuntimeError("mixed dtype: expect parameter to have scalar type of Float")
    stats = [x.new_empty(batch, groups) for _ in range(2)]
    return torch.empty_like(x, memory_format=torch.contiguous_format), *stats


def _group_norm_backward(func, *args):
    _, x, _, _, weight, *_, wanted = args
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
    vector = [torch.empty_like(weight) if weight is not None and want else None for want in wanted[1:]]
    return dx, *vector


def _nothing(func, *args):
    return None


MODELS = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_group_norm": _group_norm,
    "native_group_norm_backward": _group_norm_backward,
    "_amp_foreach_non_finite_check_and_unscale_": _nothing,
}


# --- above autograd: devices, generators, autocast --------------------------------------------------------------------
LOWER = set(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu addmm addmv addr matmul __matmul__ "
    "__rmatmul__ einsum mm mv linear addbmm baddbmm bmm scaled_dot_product_attention".split()
)  # torch's lists for CUDA
SINGLE = set(
    "__pow__ __rpow__ __rdiv__ __rtruediv__ acos asin binary_cross_entropy_with_logits cosh cdist cosine_similarity "
    "cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm layer_norm kl_div l1_loss log log10 log_softmax "
    "log1p log2 mse_loss nll_loss norm pow square prod reciprocal rsqrt sinh smooth_l1_loss softmax softplus sum "
    "tan".split()
)
WIDEST = set("addcdiv addcmul atan2 cat stack dot grid_sample grid_sampler index_put scatter_add".split())


def hosted(value):
    """A device argument as this machine can take it."""
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return META
    return META if isinstance(value, torch.device) and value.type == "cuda" else value


class Front(TorchFunctionMode):
    """Turns `cuda` into `meta` in arguments, compares the devices of generators, and applies autocast's lists."""

    def __init__(self, device: Device):
        super().__init__()
        self.device, self.cast = device, {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func is torch.device or name in ("__get__", "__set__"):
            return func(*args, **kwargs)
        args = tuple(hosted(a) for a in args) if name not in ("tensor", "as_tensor") else args
        if name == "cuda":
            return self.__torch_function__(torch.Tensor.to, types, (args[0], META), kwargs)
        if name in ("tensor", "as_tensor") and hosted(kwargs.get("device")) == META:
            del kwargs["device"]
            return func(*args, **kwargs).to(META)
        if "device" in kwargs:
            kwargs["device"] = hosted(kwargs["device"])
        if kwargs.get("generator") is not None:
            self.compare(kwargs, args)
        if name == "pin_memory":
            return self.device.pin(args[0].clone())
        if torch.is_autocast_enabled("cuda"):
            args, kwargs = self.autocast(name, args, kwargs)
        if name == "scaled_dot_product_attention" and on_device(args[0]):
            return attention(*args, **kwargs)
        return func(*args, **kwargs)

    def compare(self, kwargs, args) -> None:
        """A generator must be on the device of what it fills."""
        of = kwargs.pop("generator")
        tensors = tensors_in(args)
        there = kwargs.get("device") == META or any(x.is_meta for x in tensors)
        if (of.device.type == "cuda") != there:
            wanted = "cuda" if there else "cpu"
            raise RuntimeError(
                f"Expected a '{wanted}' device type for generator but found '{of.device.type}' ({place()})"
            )
        if not there:
            kwargs["generator"] = of

    def autocast(self, name: str, args, kwargs):
        floats = [x for x in tensors_in([*args, *kwargs.values()]) if x.is_meta and x.is_floating_point()]
        if not floats or any(x.dtype == torch.float64 for x in floats):
            return args, kwargs
        if name in LOWER:
            dtype = torch.get_autocast_dtype("cuda")
        elif name in SINGLE or (name in WIDEST and any(x.dtype == torch.float32 for x in floats)):
            dtype = torch.float32
        else:
            return args, kwargs

        def cast(value):
            if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
                return type(value)(cast(v) for v in value)
            if not (on_device(value) and value.is_floating_point()) or value.dtype == dtype:
                return value
            if not (value.is_leaf and value.requires_grad):
                return value.to(dtype)
            if id(value) not in self.cast:  # a weight, kept until the block ends
                self.cast[id(value)] = value.to(dtype)
            return self.cast[id(value)]

        return tuple(cast(a) for a in args), {k: cast(v) for k, v in kwargs.items()}


def attention(q, k, v, *, scale=None, **kwargs):
    """The fused kernels that CUDA takes: flash in half precision, the memory-efficient one in fp32."""
    if q.dtype in HALF:
        return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(q, k, v, None, q.requires_grad, scale=scale)[0]


class Generator(torch.Generator):
    """A generator that says where it was made for."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.of = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.of


# --- all together -----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def fake_cuda(memory: float = 40e9, capability: tuple[int, int] = (8, 0)):
    """A GPU of `memory` bytes for the time of the block; gives its Ledger."""
    ledger = Ledger()
    device = Device(ledger)
    front = Front(device)
    engine = torch.autograd._engine_run_backward

    def backward(*args, **kwargs):
        # torch.autograd.grad calls the engine with the mode taken off, but backwards written in Python need it.
        with front if not torch._C._len_torch_function_stack() else contextlib.nullcontext():
            return engine(*args, **kwargs)

    empty, plain = torch.empty, torch._C.TensorBase.device

    def pinned_empty(*args, pin_memory=False, **kwargs):  # also in other threads, which have no modes
        made = empty(*args, **kwargs)
        return device.pin(made) if pin_memory else made

    named = SimpleNamespace(name="NVIDIA A100 that is not there", total_memory=int(memory), uuid="0",
                            major=capability[0], minor=capability[1], multi_processor_count=108)  # fmt: skip
    answers = {
        "is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0,
        "set_device": lambda d: None, "get_device_capability": lambda d=None: capability,
        "get_device_name": lambda d=None: named.name, "get_device_properties": lambda d=None: named,
        "mem_get_info": lambda d=None: (int(memory) - ledger.live, int(memory)),
        "max_memory_allocated": lambda d=None: ledger.peak, "memory_allocated": lambda d=None: ledger.live,
        "reset_peak_memory_stats": lambda d=None: None, "synchronize": lambda d=None: ledger.stall("synchronize"),
        "is_bf16_supported": lambda *a, **k: True, "manual_seed_all": lambda s: None, "manual_seed": lambda s: None,
        "is_current_stream_capturing": lambda: False, "is_initialized": lambda: True, "_lazy_init": lambda: None,
        "empty_cache": lambda: None,
    }  # fmt: skip
    filters._fir_kernel.cache_clear()
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        if hasattr(torch, "accelerator"):
            quiet = SimpleNamespace(is_capturing=lambda: False)
            stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda *a: quiet))
        is_on = property(lambda x: CUDA if x.is_meta and not device.inside else plain.__get__(x))
        stack.enter_context(mock.patch.object(torch.Tensor, "device", is_on, create=True))
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", property(lambda x: x.is_meta), create=True))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch, "empty", pinned_empty))
        stack.enter_context(mock.patch.object(torch.autograd, "_engine_run_backward", backward))
        forget = torch.clear_autocast_cache
        stack.enter_context(mock.patch.object(torch, "clear_autocast_cache", lambda: (front.cast.clear(), forget())[1]))
        stack.enter_context(device)
        stack.enter_context(front)
        try:
            yield ledger
        finally:
            filters._fir_kernel.cache_clear()
