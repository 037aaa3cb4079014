"""Whole denoisers: DiT-XL/2 at both sizes and several batches, and a block as wide as FLUX's, by every variant."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.blocks import FLUX, PARTS, XL, Block, Denoiser, Formats, Size, denoiser, quantized, simulated
from benchmarks.gpu.clock import Budget, called, replayed
from benchmarks.gpu.layers import attempt, distance
from dither.errors import DitherError
from dither.nn import replace as put

MOST_ERROR = 2e-2
"""Of one block against its simulation, relative: attention is bfloat16 in both, and codes next to ties differ."""
MOST_ERROR_OF_FLOAT8 = 6e-2
"""The same in float8: codes are up to 1/8 apart, so that what bfloat16 rounds differently weighs more. Linears alone are held
against float64."""


@dataclass(frozen=True)
class Case:
    """What a denoiser is called with: samples, both CFG branches counted, and tokens of each."""

    name: str
    size: Size
    samples: int
    tokens: int


CASES = (
    Case("DiT-XL/2 256 px, batch 1", XL, 2, 256),
    Case("DiT-XL/2 256 px, batch 8", XL, 16, 256),
    Case("DiT-XL/2 512 px, batch 8", XL, 16, 1024),
    Case("FLUX-size block, 4608 tokens", FLUX, 1, 4608),
    Case("DiT-XL/2 256 px, batch 32", XL, 64, 256),
    Case("DiT-XL/2 512 px, batch 1", XL, 2, 1024),
)
"""The most telling first: what the budget leaves no time for is missing at the end."""

Make = Callable[[Size], Denoiser]


def eager(size: Size) -> Denoiser:
    return denoiser(size, "cuda", torch.bfloat16)


def compiled(size: Size) -> Denoiser:
    """Block by block: one compilation serves all."""
    return _compiled(eager(size))


def _compiled(model: Denoiser) -> Denoiser:
    for block in model.blocks:
        block.compile(dynamic=False)
    return model


def ours(formats: Formats) -> Make:
    def make(size: Size) -> Denoiser:
        model = quantized(eager(size), formats)
        check(model.blocks[0], size)
        return model

    return make


def ours_float8(size: Size) -> Denoiser:
    """What is between products is left to torch's compiler, as in blocks that peers quantize, but for norms."""
    model = quantized(eager(size), Formats(None))
    check(model.blocks[0], size, MOST_ERROR_OF_FLOAT8)
    return _compiled(model)


def check(block: nn.Module, size: Size, most: float = MOST_ERROR) -> None:
    """DitherError if a block is not what its simulation gives."""
    assert isinstance(block, Block)
    x, c = inputs(Case("check", size, 2, 64))
    with torch.no_grad():
        error = distance(block(x, c) - x, simulated(block)(x, c) - x)
    if error > most:
        raise DitherError(f"a block is wrong by {error:.2g}: not timed")


def torchao_int8(size: Size) -> Denoiser:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _torchao(size, Int8DynamicActivationInt8WeightConfig())


def torchao_float8(size: Size) -> Denoiser:
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow

    return _torchao(size, Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))


def _torchao(size: Size, config: Any) -> Denoiser:
    from torchao.quantization import quantize_

    model = eager(size)
    quantize_(model, config, filter_fn=lambda module, name: isinstance(module, nn.Linear) and not name.endswith("ada"))
    return _compiled(model)


def gemlite_int8(size: Size) -> Denoiser:
    from gemlite.helper import A8W8_INT8_dynamic

    model, make = eager(size), A8W8_INT8_dynamic(device="cuda:0", dtype=torch.bfloat16)
    for block in model.blocks:
        assert isinstance(block, Block)
        for name in PARTS:
            put(block, name, make.from_linear(block.get_submodule(name)))
    return _compiled(model)


BASE = "bfloat16 compiled"
VARIANTS: dict[str, Make] = {
    "bfloat16 eager": eager,
    BASE: compiled,
    "ours w8a8": ours(Formats(8)),
    "ours w8a8 static": ours(Formats(8, static=True)),
    "ours fp8": ours_float8,
    "ours w4a8": ours(Formats(4)),
    "ours w4a8 rotated": ours(Formats(4, rotated=True)),
    "ours w2a8": ours(Formats(2)),
    "torchao int8": torchao_int8,
    "torchao float8 by rows": torchao_float8,
    "gemlite int8": gemlite_int8,
    "bfloat16 eager, again": eager,
    f"{BASE}, again": compiled,
}
"""The last two say how much the clock drifted: what is nearer than that is no difference."""


def inputs(case: Case) -> tuple[Tensor, Tensor]:
    make = torch.Generator("cuda").manual_seed(1)
    d = case.size.width
    x = torch.randn(case.samples, case.tokens, d, device="cuda", generator=make)
    return x.bfloat16(), torch.randn(case.samples, d, device="cuda", generator=make).bfloat16()


def cell(make: Make, case: Case) -> dict[str, Any]:
    """One variant in one case: times with and without a graph, memory of weights and at the peak."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    model = make(case.size)
    gc.collect()
    held = torch.cuda.memory_allocated() - before
    x, c = inputs(case)
    with torch.no_grad():
        model(x, c)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        model(x, c)
        peak = torch.cuda.max_memory_allocated() - before
        graph, plain = replayed(lambda: model(x, c)), called(lambda: model(x, c))
    return {"graph": graph.told(), "no graph": plain.told(), "weight_bytes": held, "peak_bytes": peak}


def measured(budget: Budget, longest: float = 60.0) -> list[dict[str, Any]]:
    """All cells, case by case, until a cell could take longer than what is left."""
    found: list[dict[str, Any]] = []
    for case in CASES:
        for name, make in VARIANTS.items():
            known: Any = "n/a (no time was left)"
            if budget.left > longest:
                torch.compiler.reset()
                known = attempt(lambda make=make, case=case: cell(make, case))  # type: ignore[misc]
            found.append({"case": case.name, "variant": name, "found": known})
            print(f"{case.name}: {name}: {known}", flush=True)
    return found
