"""--compile on a CPU, with the tracing of a GPU's and without its kernels: what is compiled is one graph per shape,
every shape on its own, and trains the same networks."""

from __future__ import annotations

from functools import partial

import fake_steps
import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import is_symbolic

from jobs.training import ranks

GAN = (
    "--preset quickstart --resolution 32 --channel-base 256 --channel-max 8 --z-dim 16 --w-dim 16 --batch 8 "
    "--mbstd-group 2 --precision fp32 --gamma 0 --metric-kimg 0"
).split()
VAE = "--preset quickstart --resolution 32 --batch 8 --width 8 --latent-channels 2 --precision bf16".split()
DIFFUSION = (
    "--preset quickstart --batch 8 --widths 8,16 --head-dim 8 --attention 4 --precision bf16 --space pixel "
    "--resolution 32 --metric-kimg 0"
).split()
# G of one batch; D of one batch in G's step, with and without a gradient, and of two in its own.
GRAPHS = {"gan": 5, "vae": 1, "diffusion": 1}


JOBS = [pytest.param("gan", GAN, marks=pytest.mark.long), pytest.param("vae", VAE, marks=pytest.mark.long),
        ("diffusion", DIFFUSION)]  # fmt: skip


@pytest.mark.parametrize("kind, flags", JOBS)
def test_compiled_steps_are_the_eager_ones(kind, flags, monkeypatch):
    monkeypatch.setattr(fake_steps, "runtime", lambda: ranks.Runtime(0, 1, 0, torch.device("cpu"), 1))
    graphs: list[bool] = []

    def backend(graph, inputs):
        graphs.append(any(isinstance(x, torch.SymInt) or any(map(is_symbolic, x.shape)) for x in inputs))
        return aot_eager(graph, inputs)

    def trained(compiled: bool) -> list[torch.Tensor]:
        bench = fake_steps.MAKE[kind](*flags)
        if compiled:
            bench.compile()
        for nimg in (8, 16, 24):
            bench.step(nimg)
        return [p.detach() for v in vars(bench.s).values() if isinstance(v, torch.nn.Module) for p in v.parameters()]

    eager = trained(False)
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled = trained(True)
    torch._dynamo.reset()
    assert not counters["graph_break"] and not any(graphs) and 1 <= len(graphs) <= GRAPHS[kind]
    lengths = [sum(float((a - b).square().sum()) for a, b in zip(one, eager, strict=True)) ** 0.5
               for one in (compiled, [torch.zeros_like(p) for p in eager])]  # fmt: skip
    assert lengths[0] <= (2e-3 if "bf16" in flags else 1e-4) * lengths[1]
