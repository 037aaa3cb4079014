"""Calls of native kernels on small linears, and native code as a fresh process finds it."""

import torch

from dither.kernels import choose, means, native_calls
from dither.kernels.table import Inputs
from dither.native import build, library
from dither.numerics import encode
from dither.spec import Act, Gaussian, Int, LinearSpec, Nested, Trellis, TwoRegion

CPU = torch.device("cpu")
SPECS = [
    LinearSpec(Int(8), Act(Int(8))),
    LinearSpec(Int(8, False), Act(Int(8, False))),
    LinearSpec(Int(4, False, 24), Act(Int(6, False, 8))),
    LinearSpec(Nested(Int(8, False), 3), Act(Int(8))),
    LinearSpec(Trellis(2, 12, 16, 24), Act(Int(8))),
    LinearSpec(Gaussian(4, 256), Act(Int(8, False))),
    LinearSpec(Int(8), Act(TwoRegion(8, True))),
    LinearSpec(Int(3, False, 24)),
    LinearSpec(Trellis(3, 12, 16, 24)),
]


def call_of(spec, x, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    k = x.shape[-1]
    stored = encode(torch.randn(n, k, generator=generator), spec.weight)
    kernel = choose(spec, (n, k), CPU)
    bias = torch.randn(n, generator=generator)
    return kernel, Inputs(x, spec, (n, k), stored, None, bias, kernel.prepare(spec, (n, k), stored))


def forget():
    for cached in (library, native_calls._means, native_calls._has):
        cached.cache_clear()


def instructions(monkeypatch):
    """Names of the sets of instructions that this CPU has, as native code comes to use them; with the fixture ``afresh``."""
    for name, (needs, _) in build.INSTRUCTIONS.items():
        if needs and needs not in build._cpu().split():
            continue
        monkeypatch.setenv("DITHER_NATIVE", name)
        forget()
        assert means()
        yield name
