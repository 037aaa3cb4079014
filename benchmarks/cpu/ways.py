"""The ways to run a module: in floating point, compiled, or with its linears in a format of dither's.

Weights of the cases repeat a square, so that a format whose encoder searches for minutes encodes the square alone: the
stored tensors are those of the whole weight, and a kernel does not know.
"""

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cpu.attention import ONE_REGION, TWO_REGIONS, products, put_attention, simulate
from dither.kernels import named
from dither.nn import Clock, QLinear, build, fuse
from dither.nn import replace as put
from dither.numerics import encode, fitting, random_signs, rotate
from dither.spec import Act, Format, Gaussian, Int, LinearSpec, Rotation, Trellis

__all__ = ["SQUARE", "WAYS", "Simulated", "Way", "encoded", "in_way", "kernels_of", "on_reference", "repeat_a_square"]

SQUARE = 384
"""Divides every width of DiT-XL/2 and of FLUX."""
MODULATION = re.compile(r"norm1\.linear$")
LINEARS = re.compile(r"(^|\.)(norm1\.linear|attn1\.to_[qkv]|attn1\.to_out\.0|ff\.net\.0\.proj|ff\.net\.2|of\.\d+)$")
"""Which linears of a case are quantized: embedders and last projections never are."""
INPUTS = Act(Int(8))


class Simulated(Exception):
    """A layer would run simulated: its time would say nothing."""


@dataclass(frozen=True)
class Way:
    """One way to run a module.

    Args:
        weight: format of weights; None leaves linears in floating point.
        adaln: format of modulation weights, whose inputs are never quantized.
        act: how inputs are quantized; None: weights alone are.
        rotation: width of the blocks in which inputs are rotated, as far as it divides theirs; 0: they are not.
        dtype: of inputs and of what is not quantized.
        compiled: by ``torch.compile``.
        kernel: to prefer to what is chosen; empty: none.
        attention: of products in 8 bits, the regions of the softmax; empty: they stay in floating point.
    """

    weight: Format | None = None
    adaln: Format | None = None
    act: Act | None = INPUTS
    rotation: int = 0
    dtype: torch.dtype = torch.float32
    compiled: bool = False
    kernel: str = ""
    attention: str = ""

    @property
    def quantizes(self) -> bool:
        """Whether anything is in fewer bits."""
        return self.weight is not None or self.attention != ""


_BF16 = torch.bfloat16
_W4G = Int(4, group=128)
_WORDS = Gaussian(4, 256)
WAYS: dict[str, Way] = {
    "float32": Way(),
    "float32, compiled": Way(compiled=True),
    "bfloat16": Way(dtype=_BF16),
    "bfloat16, compiled": Way(dtype=_BF16, compiled=True),
    "W8A8 without native code": Way(Int(8), Int(8), kernel="int8_mm"),
    "W8A8": Way(Int(8), Int(8)),
    "W8A8, rotated": Way(Int(8), Int(8), rotation=128),
    "W8A8 in bfloat16": Way(Int(8), Int(8), dtype=_BF16),
    "W8A8 in bfloat16, compiled": Way(Int(8), Int(8), dtype=_BF16, compiled=True),
    "W8A8, attention too": Way(Int(8), Int(8), attention=ONE_REGION),
    "W8A8, attention too, in bfloat16": Way(Int(8), Int(8), attention=ONE_REGION, dtype=_BF16),
    "W4A8": Way(Int(4), Int(4)),
    "W4A8 in bfloat16": Way(Int(4), Int(4), dtype=_BF16),
    "W4A8, rotated": Way(Int(4), Int(4), rotation=128),
    "W4A8, groups of 128": Way(_W4G, _W4G),
    "W3A8, trellis": Way(Trellis(3), Int(4)),
    "W2A8, trellis": Way(Trellis(2), Int(4)),
    "W2A8, trellis, rotated": Way(Trellis(2), Int(4), rotation=128),
    "W2A8, universal words": Way(_WORDS, Int(4)),
    "W8, weights alone": Way(Int(8), Int(8), act=None),
    "W4, weights alone": Way(Int(4), Int(4), act=None),
    "W4 in groups of 128, weights alone": Way(_W4G, _W4G, act=None),
    "W2 trellis, weights alone": Way(Trellis(2), Trellis(2), act=None),
    "W2 universal words, weights alone": Way(_WORDS, _WORDS, act=None),
    "int8": Way(attention=ONE_REGION),
    "int8, two regions": Way(attention=TWO_REGIONS),
}


def in_way(module: nn.Module, way: Way, inputs: tuple[Tensor, ...]) -> nn.Module:
    """A copy of the module that runs this way; not compiled yet. Simulated if a layer of it would be.

    ``inputs``, of float32, tell the ranges that are stored.
    """
    leaving = {} if way.weight is None else {id(linear.weight): linear.weight for _, linear in linears(module)}
    made = copy.deepcopy(module, leaving)  # what is about to be replaced is not copied
    if way.weight is not None:
        clocks: dict[str, Clock] = {}
        for name, linear in linears(made):
            clock = clocks.setdefault(name.rpartition(".")[0], Clock())  # q, k and v share what they read
            put(made, name, quantized(name, linear, way, clock))
        fuse(made)
    if way.attention:
        put_attention(made, way.attention, inputs)
    nn.Module.to(made, way.dtype)  # a diffusers model warns
    for layer in quantized_layers(made):
        if way.kernel:
            kernel = named(way.kernel)
            fits = kernel.when(layer.spec, layer.shape, torch.device("cpu"))
            layer.kernel = kernel if fits else named("dequantize")
        if layer.simulated:
            raise Simulated(f"simulated here: {layer.spec.weight} with {layer.spec.act}")
    for own in products(made):
        if own.simulated:
            raise Simulated(f"simulated here: attention with {own.spec.probs}")
    return made


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Those that a way quantizes, by path."""
    for name, linear in list(module.named_modules()):
        if isinstance(linear, nn.Linear) and LINEARS.search(name):
            yield name, linear


def quantized(name: str, linear: nn.Linear, way: Way, clock: Clock) -> QLinear:
    """A layer that computes what the linear does, in the formats of the way."""
    w = linear.weight.detach()  # (N, K)
    spec, tensors = LinearSpec(fitted(way.weight, w), way.act), {}
    if MODULATION.search(name):
        spec = LinearSpec(fitted(way.adaln, w))
    elif way.rotation:
        block = math.gcd(way.rotation, w.shape[1])
        spec = replace(spec, rotation=Rotation(block))
        tensors["rotation_signs"] = repeated_signs(w.shape[1])
        w = rotate(w.double(), tensors["rotation_signs"], block).float()
    assert spec.weight is not None
    tensors |= {f"weight_{part}": tensor for part, tensor in encoded(w, spec.weight).items()}
    made = build(spec, linear, clock)
    assert isinstance(made, QLinear)
    return made.load(tensors)


def fitted(fmt: Format | None, w: Tensor) -> Format | None:
    """With groups and tiles that divide the weight (N, K)."""
    if isinstance(fmt, Int):
        return fitting(fmt, w.shape[1])
    if isinstance(fmt, Trellis):
        return replace(fmt, rows=math.gcd(w.shape[0], fmt.rows), columns=math.gcd(w.shape[1], fmt.columns))
    return fmt


def repeated_signs(width: int) -> Tensor:
    """Signs of a rotation (K,) that leave a weight that repeats a square one that does."""
    return random_signs(SQUARE, 0).repeat(width // SQUARE) if width % SQUARE == 0 else random_signs(width, 0)


def encoded(w: Tensor, fmt: Format) -> dict[str, Tensor]:
    """``encode(w, fmt)``; of a weight (N, K) that repeats a square, from the square."""
    n, k = w.shape
    square = w[:SQUARE, :SQUARE]
    crossed = isinstance(fmt, Int) and fmt.group > 0 and SQUARE % fmt.group  # by a group that lies in two squares
    if crossed or n % SQUARE or k % SQUARE or not torch.equal(w, square.repeat(n // SQUARE, k // SQUARE)):
        return encode(w, fmt)
    parts = encode(square, fmt)  # one column is one scale for the whole row
    return {name: t.repeat(n // SQUARE, k // SQUARE if t.shape[1] > 1 else 1) for name, t in parts.items()}


@torch.no_grad()
def repeat_a_square(module: nn.Module) -> None:
    """Make each weight that will be quantized repeat its first square."""
    for _, linear in linears(module):
        n, k = linear.weight.shape
        linear.weight.copy_(linear.weight[:SQUARE, :SQUARE].repeat(n // SQUARE, k // SQUARE))


def quantized_layers(module: nn.Module) -> list[QLinear]:
    """All of them."""
    return [layer for layer in module.modules() if isinstance(layer, QLinear)]


def kernels_of(module: nn.Module) -> list[str]:
    """Names of the kernels that run its quantized layers and products."""
    return sorted(
        {*(layer.kernel.name for layer in quantized_layers(module)), *(own.kernel for own in products(module))}
    )


def on_reference(module: nn.Module) -> Any:
    """A copy whose quantized layers run on the reference kernel, in floating point."""
    other = copy.deepcopy(module)
    for layer in quantized_layers(other):
        layer.kernel = named("reference")
    simulate(other)
    return other
