"""Linears of integers on GPUs, with what lies around them: one kernel makes codes, one product each reads them.

    linears         norm, scale, rotation, rounding | product, low-rank branch, gate, residual
    feed_forward    the same with a GELU at the end of the first product; codes alone between both where ranges are known

A product's epilogue does what follows it before anything is written. Inputs of two regions are two products, one on top of
the other.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.gpu import RANKS, WHOLE
from dither.gpu.inputs import Rows
from dither.kernels.fusion import Around, Branch, Turn
from dither.kernels.gpu_inputs import DTYPES, rounded, turned_alone
from dither.kernels.gpu_weights import decoded, group_counts, nibbles_of
from dither.kernels.table import Inputs, rows_of
from dither.numerics import dynamic_table, groups
from dither.spec import Int, LinearSpec, TwoRegion

__all__ = ["bias_of", "branch", "feed_forward", "gated", "linears", "may_chain", "rounds_alike", "weight_of"]


def rounds_alike(one: LinearSpec, other: LinearSpec, inputs: int) -> bool:
    """Whether two linears of ``inputs`` turn one tensor into the same codes, if their stored ranges are equal."""
    if one.act is None or one.act != other.act:
        return False
    return (nibbles_of(one, (1, inputs)) == WHOLE) == (nibbles_of(other, (1, inputs)) == WHOLE)


def branch(first: Tensor, second: Tensor) -> Branch | None:
    """A branch (R, K) and (N, R) whose rank is one that epilogues have, by rows of 0; None: it is too wide."""
    rank = next((r for r in RANKS if r >= len(first)), None)
    if rank is None:
        return None
    more = rank - len(first)
    return F.pad(first, (0, 0, 0, more)).contiguous(), F.pad(second, (0, more)).contiguous()


def linears(calls: Sequence[Inputs], turn: Turn, around: Around, after: int = 0) -> list[Tensor]:
    """``residual + gate * after(act(turned x) decode(weight)^T + bias + branch)`` of linears that read one x and are alike.

    Args:
        calls: of each; x (..., K) float32, float16 or bfloat16, as it was before it was turned.
        turn: what all of them do to x.
        around: what happens to x before, and, if there is one linear, to its output.
        after: a GELU of outputs: 0 none, 1 by tanh, 2 by erf.
    """
    first = calls[0]
    assert first.spec.act is not None
    grid = first.spec.act.grid
    sums = any("moved" in call.prepared for call in calls)
    if isinstance(grid, TwoRegion):
        x = turned_alone(first.x, turn, around)
        parts = _two_regions(replace(first, x=x), grid, sums)
        return [_both_regions(parts, replace(call, x=x), around, after) for call in calls]
    rows, x = rounded(first, turn, around, sums, any(call.branch is not None for call in calls))
    return [_multiply(rows, replace(call, x=x), x.dtype, around.gate, around.residual, after) for call in calls]


def _two_regions(call: Inputs, grid: TwoRegion, sums: bool) -> tuple[Rows, Rows]:
    """Codes of negative values, which have steps of their own, and of the others; 0 elsewhere."""
    x = call.x
    table = dynamic_table(x, grid) if call.table is None else call.table
    many, halves = groups(call.shape[1], grid.group), nibbles_of(call.spec, call.shape) != WHOLE
    lower, upper = (
        torch.ops.dither.int8_rows(part, rows_of(table[name], x), None, None, grid.bits, True, many, 0, halves, sums)
        for name, part in (("scale", x.clamp(max=0)), ("upper", x.clamp(min=0)))
    )
    return lower, upper


def _both_regions(parts: tuple[Rows, Rows], call: Inputs, around: Around, after: int) -> Tensor:
    """One linear: the product of negative values, and that of the others on top of it."""
    below = _multiply(parts[0], replace(call, bias=None, branch=None), torch.float32, None, None, 0)
    y = _multiply(parts[1], call, torch.float32, None, below, 0).to(call.x.dtype)
    if after:
        y = torch.ops.dither.triton_gelu(y, after == 1)
    return y if around.gate is None or around.residual is None else gated(y, around.gate, around.residual)


def gated(y: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """``residual + gate y``, y and residual (B, T, N), gate (B, N) float32; as an epilogue would have it."""
    return (residual.float() + gate.float()[:, None] * y.float()).to(y.dtype)


def _multiply(
    rows: Rows, call: Inputs, dtype: torch.dtype, gate: Tensor | None, residual: Tensor | None, after: int
) -> Tensor:
    """What is left behind the codes of inputs, (..., N) of ``dtype``; x is what a branch reads."""
    n = call.shape[0]
    flat = None if residual is None else residual.reshape(-1, n)
    left = right = None
    if call.branch is not None:
        left, right = call.x.reshape(-1, call.shape[1]) @ call.branch[0].T, call.branch[1]
    nibbles = nibbles_of(call.spec, call.shape)
    y: Tensor = torch.ops.dither.int8_product(*_operands(rows, call), left, right, gate, flat, after, nibbles, dtype)
    return y.view(*call.x.shape[:-1], n)


def _operands(rows: Rows, call: Inputs) -> tuple[Tensor | None, ...]:
    """What products take first: both sides, and the bias."""
    a, scale, zero, sums = rows
    ready = call.prepared
    inputs = (a, scale, zero if "sums" in ready else None, _segment_sums(a, sums, call))
    return (*inputs, weight_of(call), ready["scale"], ready.get("moved"), ready.get("sums"), bias_of(call))


def _segment_sums(a: Tensor, sums: Tensor, call: Inputs) -> Tensor | None:
    """Sums of codes (M, S), from those of groups unless segments are finer."""
    if "moved" not in call.prepared:
        return None
    of_weights, of_inputs = group_counts(call.spec, call.shape)
    size = math.gcd(call.shape[1] // of_weights, call.shape[1] // of_inputs)
    finer = size != call.shape[1] // of_inputs
    return a.view(len(a), call.shape[1] // size, size).sum(-1, dtype=torch.int32) if finer else sums


def weight_of(call: Inputs) -> Tensor:
    """What the product multiplies with."""
    fmt, codes = call.spec.weight, call.weight["codes"]
    if nibbles_of(call.spec, call.shape) != WHOLE:
        return codes
    if isinstance(fmt, Int) and fmt.bits == 8 and fmt.symmetric:
        return codes.view(torch.int8)
    return decoded(call)


def bias_of(call: Inputs) -> Tensor | None:
    """In a dtype that kernels read."""
    return call.bias if call.bias is None or call.bias.dtype in DTYPES else call.bias.float()


def feed_forward(calls: tuple[Inputs, Inputs], turns: tuple[Turn, Turn], tanh: bool, around: Around) -> Tensor:
    """Two linears with a GELU between them that is made before the first one's output is written.

    Args:
        calls: of the first one, with x as it was before it was turned; and of the second one, whose x gives its rows alone.
        turns: what each does to its inputs.
        tanh: GELU is the approximation by tanh.
        around: what happens to the first one's inputs before, and to the second one's outputs.
    """
    first, second = calls
    after, behind = 1 if tanh else 2, Around(gate=around.gate, residual=around.residual)
    before = replace(around, gate=None, residual=None)
    assert first.spec.act is not None
    chains = first.branch is None and isinstance(first.spec.act.grid, Int) and turns[1].is_nothing and may_chain(second)
    if chains:
        return _chained(first, second, turns[0], before, after, behind)
    hidden = linears([first], turns[0], before, after)[0]
    return linears([replace(second, x=hidden)], turns[1], behind)[0]


def may_chain(second: Inputs) -> bool:
    """Whether the second one's codes can be all that is written of the first one's output: one static range a row."""
    assert second.spec.act is not None
    grid = second.spec.act.grid
    whole = nibbles_of(second.spec, second.shape) == WHOLE and "moved" not in second.prepared
    return whole and isinstance(grid, Int) and grid.group <= 0 and second.table is not None and second.branch is None


def _chained(first: Inputs, second: Inputs, turn: Turn, before: Around, after: int, behind: Around) -> Tensor:
    """``feed_forward`` by codes alone, of the same bits."""
    assert second.spec.act is not None
    grid, table = second.spec.act.grid, second.table
    assert isinstance(grid, Int)
    assert table is not None
    rows, x = rounded(first, turn, before, "moved" in first.prepared, False)
    scale = rows_of(table["scale"], x)
    zero = None if grid.symmetric else rows_of(table["zero"], x)
    nibbles = nibbles_of(first.spec, first.shape)
    codes, scales = torch.ops.dither.int8_product_codes(
        *_operands(rows, first), scale, zero, grid.bits, after, nibbles, x.dtype
    )
    moved = 128 if grid.bits == 8 else 0
    zeros = x.new_empty(0) if zero is None else (zero.to(torch.int32) - moved).expand(len(codes), 1)
    made = (codes, scales, zeros, x.new_empty(0))
    return _multiply(made, second, x.dtype, behind.gate, behind.residual, 0)
