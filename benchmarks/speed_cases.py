"""What ``benchmarks.speed`` runs in a fresh process for each number of threads: correctness first, then time by turns."""

import argparse
import copy
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

import dither
from benchmarks.common import by_turns, milliseconds, speedup
from benchmarks.xl_steps import CONFIG
from dither import zoo
from dither.kernels import Kernel, named
from dither.nn import QLinear
from dither.spec import Act, Bits, Int, Recipe, Trellis
from dither.stages import Assign, Rtn, describe

WIDTH, TOKENS, PICTURES = 1152, 256, 64
LINEARS = {"attn1.to_q": WIDTH, "ff.net.0.proj": WIDTH, "ff.net.2": 4 * WIDTH, "norm1.linear": WIDTH}
"""Inputs of each; the last one, of modulation, sees a row for each picture, and has weights alone quantized."""
INPUTS = Act(Int(8))


@dataclass(frozen=True)
class Way:
    """One way to run a module.

    Args:
        weight: format of weights, inputs being of 8 bits a token; None leaves both in floating point.
        adaln: integers of modulation weights.
        dtype: of inputs and of what is not quantized.
        kernel: to prefer; empty: whatever is chosen.
        peer: another library's way, by name.
    """

    weight: Int | Trellis | None = None
    adaln: Int | None = None
    dtype: torch.dtype = torch.float32
    kernel: str = ""
    peer: str = ""


WAYS = {
    "float32": Way(),
    "bfloat16": Way(dtype=torch.bfloat16),
    "bfloat16, compiled": Way(dtype=torch.bfloat16, peer="compile"),
    "torch's dynamic int8": Way(peer="dynamic"),
    "W8A8 without native code": Way(Int(8), Int(8), kernel="int8_mm"),
    "W8A8": Way(Int(8), Int(8)),
    "W8A8 in bfloat16": Way(Int(8), Int(8), torch.bfloat16),
    "W4A8": Way(Int(4), Int(4)),
    "W4A8, groups of 128": Way(Int(4, group=128), Int(4, group=128)),
    "W2A8, trellis": Way(Trellis(2), Int(4)),
}
SAME_CODES = 1e-5
"""Relative difference that the order of float32 sums explains between a linear's kernel and the reference."""

Case = tuple[str, dict[str, Callable[[], Tensor]], dict[str, Callable[[], Tensor]]]
"""Name; a call for each precision; for each quantized one, the same with the reference kernel."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        rows = [measure(*case, given.rounds) for case in (*xl_cases(), zoo_case())]
    sys.stdout.write(json.dumps(rows) + "\n")


def measure(
    name: str, calls: dict[str, Callable[[], Tensor]], references: dict[str, Callable[[], Tensor]], rounds: int
) -> dict[str, Any]:
    """One row of the results."""
    full = calls["float32"]()
    errors = {p: distance(call(), full) for p, call in calls.items() if p != "float32"}
    gaps = {p: distance(calls[p](), reference()) for p, reference in references.items()}
    exact = [gap for p, gap in gaps.items() if WAYS[p].dtype == torch.float32]
    if "linear" in name and max(exact) > SAME_CODES:
        raise AssertionError(f"{name}: a kernel does not compute what the reference does: {gaps}")
    times = by_turns(calls, rounds)
    return {
        "case": name,
        "times_faster_than_float32": {p: speedup(times, p, "float32") for p in calls if p != "float32"},
        "times_faster_than_bfloat16": {
            p: speedup(times, p, "bfloat16") for p in calls if p not in ("float32", "bfloat16")
        },
        "relative_error_to_float32": errors,
        "relative_error_to_reference_kernel": gaps,
        "median_ms_this_machine_shared": milliseconds(times),
    }


def distance(got: Tensor, want: Tensor) -> float:
    """``||got - want|| / ||want||``."""
    return float((got.float() - want.float()).norm() / want.float().norm())


def xl_cases() -> Iterator[Case]:
    """One block of DiT-XL/2's width, random weights, on one guided picture; and its linears alone."""
    models = in_all_ways(DiTTransformer2DModel(**{**CONFIG, "num_layers": 1}).eval())
    blocks = {p: model.transformer_blocks[0] for p, model in models.items()}
    for path, width in LINEARS.items():
        rows = 2 if path == "norm1.linear" else 2 * TOKENS
        yield linear_case(path, torch.randn(rows, width), {p: block.get_submodule(path) for p, block in blocks.items()})
    state, time, label = torch.randn(2, TOKENS, WIDTH), torch.tensor([500, 500]), torch.tensor([1, 1000])

    def call(block: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        x = state.to(dtype)
        return lambda: block(x, timestep=time, class_labels=label)  # type: ignore[no-any-return]

    yield f"DiT-XL/2 block, {TOKENS} tokens x 2", *timed(blocks, call)


def linear_case(path: str, x: Tensor, linears: dict[str, nn.Module]) -> Case:
    """One linear of the block."""

    def call(linear: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        mine = x.to(dtype)
        return lambda: linear(mine)  # type: ignore[no-any-return]

    shape = f"{x.shape[1]} -> {linears['float32'].out_features}"
    return f"linear {path}, {shape}, {x.shape[0]} rows", *timed(linears, call)


def zoo_case() -> Case:
    """One call of the zoo's denoiser as sampling makes it, with guidance."""
    models = in_all_ways(zoo.load("fashion").transformer)
    config, rows = models["float32"].config, 2 * PICTURES
    state = torch.randn(rows, config.in_channels, config.sample_size, config.sample_size)
    time, label = torch.full((rows,), 500), torch.arange(rows) % (config.num_embeds_ada_norm + 1)

    def call(model: nn.Module, dtype: torch.dtype) -> Callable[[], Tensor]:
        x = state.to(dtype)
        return lambda: model(x, timestep=time, class_labels=label, return_dict=False)[0]  # type: ignore[no-any-return]

    return f"zoo:fashion denoiser, {PICTURES} pictures x 2", *timed(models, call)


def timed(
    modules: dict[str, Any], call: Callable[[nn.Module, torch.dtype], Callable[[], Tensor]]
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable[[], Tensor]]]:
    """The calls of a case."""
    slow = {p: with_reference(module) for p, module in modules.items() if WAYS[p].weight is not None}
    ready = {p: torch.compile(m) if WAYS[p].peer == "compile" else m for p, m in modules.items()}
    return (
        {p: call(module, WAYS[p].dtype) for p, module in ready.items()},
        {p: call(module, WAYS[p].dtype) for p, module in slow.items()},
    )


def in_all_ways(model: Any) -> dict[str, Any]:
    """Copies of the model, quantized round to nearest where the way says so."""
    found = {}
    for name, way in WAYS.items():
        made = copy.deepcopy(model)
        if way.weight is not None:
            assert way.adaln is not None
            stages = (Assign(weight=way.weight, act=INPUTS, adaln=way.adaln, fit=True), Rtn())
            dither.quantize(made, Recipe("speed", "", Bits(way.weight.bits, 8), describe(stages)))
        if way.peer == "dynamic":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch says that it will move to another package
                made = torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)
        nn.Module.to(made, way.dtype)  # a diffusers model warns
        for layer in made.modules():
            if way.kernel and isinstance(layer, QLinear):
                layer.kernel = torch_alone(layer, way.kernel)
        found[name] = made
    return found


def torch_alone(layer: QLinear, name: str) -> Kernel:
    """This kernel, or what runs without native code where it cannot."""
    found = named(name)
    return found if found.when(layer.spec, layer.shape, torch.device("cpu")) else named("dequantize")


def with_reference(module: nn.Module) -> nn.Module:
    """A copy whose layers run on the reference kernel, in floating point."""
    other = copy.deepcopy(module)
    for layer in other.modules():
        if isinstance(layer, QLinear):
            layer.kernel = named("reference")
    return other


if __name__ == "__main__":
    main()
