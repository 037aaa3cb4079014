"""Operators of torch on native code, with shapes for graphs: linears, feed-forward parts, and what lies around them.

Shapes and dtypes are looked at before native code reads memory; see ``native_calls``.
"""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.kernels.native_around import beside_linear, gated, modulate, turn, turned_by
from dither.kernels.native_calls import (
    MOST_ROWS,
    MOST_TOGETHER,
    TYPES,
    FeedForward,
    Few,
    Linear,
    address,
    check,
    check_integers,
    check_weight,
    done,
    ends,
    in_order,
    linear,
    named,
    native,
    rows_in,
    told_of,
)

__all__ = ["OPS"]


def linear_int8(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    act_scale: Tensor | None,
    act_upper: Tensor | None,
    act_zero: Tensor | None,
    bias: Tensor | None,
    facts: Tensor,
    outputs: int,
) -> Tensor:
    """(..., K) to (..., N) in the dtype of x, with inputs and weights of small integers.

    Args:
        x: (..., K) float32 or bfloat16.
        codes, scale, zero: as they are stored; scales float32.
        table: what codes name, int8; None where they are integers themselves.
        act_scale, act_upper, act_zero: static ranges (M or 1, groups); None where they are found from x.
        bias: (N,) float32 or None.
        facts: numbers of ``FACTS``, int64.
        outputs: N, which graphs have to know.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the numbers say.
    """
    given = [codes, scale, zero, table, act_scale, act_upper, act_zero, bias, facts]
    return linears_int8(x, [], 0.0, 0, given, [outputs])[0]


def linears_int8(
    x: Tensor, around: list[Tensor | None], eps: float, block: int, given: list[Tensor | None], outputs: list[int]
) -> list[Tensor]:
    """Linears that read one tensor, which becomes codes once: the bits that ``linear_int8`` has for each.

    Args:
        x: (..., K) float32 or bfloat16.
        around: nothing, or what happens before and after: shift, scale, gate, residual, pre, signs, any of which may
            be None. With shift and scale (B, K), x (B, T, K) is first what ``modulate`` makes of it; with pre or signs
            (K,), then what ``turn`` makes of it; with gate (B, N) and residual (B, T, N), the one output is what ``gated``
            makes of it.
        eps: of ``modulate``.
        block: of ``turn``.
        given: what ``linear_int8`` takes between x and ``outputs``, of one linear after the other.
        outputs: N of each.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the numbers say; or inputs would not be rounded alike.
    """
    each = len(given) // max(len(outputs), 1)
    if not 0 < len(outputs) <= MOST_TOGETHER or each * len(outputs) != len(given):
        raise DitherError(f"{len(given)} tensors of {len(outputs)} linears: {MOST_TOGETHER} may read one tensor")
    rows, held, calls, made = rows_in(x), [], (Linear * len(outputs))(), []
    beside, kept = beside_linear(x, around, eps, outputs[0] if len(outputs) == 1 else 0, block)
    x, narrow = x.contiguous(), int(x.dtype == torch.bfloat16)
    for i, many in enumerate(outputs):
        *tensors, facts = given[i * each : (i + 1) * each]
        assert facts is not None
        told = told_of(facts, many)
        check_integers(told, rows, *tensors)
        check("x", x, told, x.dtype in TYPES and x.shape[-1] == told["inputs"])
        held.append(in_order(*tensors))
        made.append(x.new_empty(*x.shape[:-1], many))
        calls[i] = Linear(**linear(told, rows, *held[-1]), **ends(x, made[-1]), **beside, narrow=narrow)
        beside = {}  # the others read the codes of the first one
    done(rows and native("int8").dither_linears(calls, c_int64(len(outputs))), told, rows)
    del held, kept  # until now
    return made


def feed_forward_int8(
    x: Tensor,
    around: list[Tensor | None],
    eps: float,
    blocks: list[int],
    first: list[Tensor | None],
    second: list[Tensor | None],
    between: list[Tensor | None],
    tanh: bool,
    outputs: int,
) -> Tensor:
    """(..., K) to (..., N) in the dtype of x: two linears of integers with a GELU between them.

    The same bits as ``linear_int8``, ``gelu`` and ``linear_int8`` one after the other.

    Args:
        x: (..., K) float32 or bfloat16.
        around: as of ``linears_int8``.
        eps: of ``modulate``.
        blocks: of ``turn`` before the first linear, and before the second one.
        first, second: what ``linear_int8`` takes between x and ``outputs``, of each linear.
        between: pre and signs of what ``turn`` makes of activations, or nothing.
        tanh: GELU is the approximation by tanh.
        outputs: N.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the numbers say.
    """
    rows, calls, held = rows_in(x), [], []
    for given in (first, second):
        *tensors, facts = given
        assert facts is not None
        told = named(facts)
        check_integers(told, rows, *tensors)
        held.append(in_order(*tensors))
        calls.append((told, linear(told, rows, *held[-1])))
    (one, ahead), (two, behind) = calls
    check("x", x, one, x.dtype in TYPES and x.shape[-1] == one["inputs"])
    if two["inputs"] != one["outputs"] or two["outputs"] != outputs:
        raise DitherError(
            f"linears of {two['inputs']} to {two['outputs']} behind {one['outputs']} were asked for {outputs}"
        )
    beside, kept = beside_linear(x, around, eps, outputs, blocks[0])
    turned, signs = turned_by(between, blocks[1], two["inputs"], torch.float32)
    y = x.new_empty(*x.shape[:-1], outputs)
    x = x.contiguous()
    behind |= {name: value for name, value in beside.items() if name in ("tokens", "gate", "gate_stride", "residual")}
    beside["gate"] = None
    narrow = int(x.dtype == torch.bfloat16)
    call = FeedForward(
        Linear(**ahead, **ends(x, y), **beside, narrow=narrow),
        Linear(**behind, **ends(x, y), **turned, narrow=narrow),
        int(tanh),
    )
    done(rows and native("int8").dither_feed_forward(ctypes.byref(call)), two, rows)
    del held, kept, signs  # until now
    return y


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU of x, float32 or bfloat16, with the bits that it has in ``feed_forward_int8``."""
    if x.dtype not in TYPES:
        raise DitherError(f"gelu of {str(x.dtype).removeprefix('torch.')}: float32 and bfloat16 are known")
    x = x.contiguous()
    y = torch.empty_like(x)
    numbers = (c_int64(TYPES[x.dtype]), c_int64(x.numel()), c_int64(int(tanh)), c_int64(torch.get_num_threads()))
    native("int8").dither_gelu(c_void_p(x.data_ptr()), *numbers, c_void_p(y.data_ptr()))
    return y


def linear_few(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
    facts: Tensor,
    outputs: int,
) -> Tensor:
    """(..., K) to (..., N), float32, of at most ``MOST_ROWS`` rows; arguments and errors as of ``linear_int8``."""
    told = told_of(facts, outputs)
    rows = rows_in(x)
    check_weight(told, codes, scale, zero, table, bias)
    check("x", x, told, x.dtype == torch.float32 and x.shape[-1] == told["inputs"] and rows <= MOST_ROWS)
    y = x.new_empty(*x.shape[:-1], told["outputs"])
    held = in_order(x, codes, scale, zero, table, bias)
    names = ("x", "codes", "scale", "zero", "table", "bias")
    fields = {name for name, _ in Few._fields_}
    numbers = {name: value for name, value in told.items() if name in fields}
    call = Few(
        **numbers, **dict(zip(names, map(address, held), strict=True)), stride=codes.shape[1], rows=rows, out=y.data_ptr(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    done(rows and native("few").dither_few(ctypes.byref(call)), told, rows)
    del held  # until now
    return y


def _like(x: Tensor, *rest: Any) -> Tensor:
    """The result's shape and dtype, for graphs."""
    return x.new_empty(*x.shape[:-1], rest[-1])


def _likes(x: Tensor, *rest: Any) -> list[Tensor]:
    return [_like(x, many) for many in rest[-1]]


def _same(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


_WEIGHTS = "Tensor codes, Tensor scale, Tensor? zero, Tensor? table"
_RANGES = "Tensor? act_scale, Tensor? act_upper, Tensor? act_zero"
_LAST = "Tensor? bias, Tensor facts, int outputs) -> Tensor"
_AROUND = "Tensor x, Tensor?[] around, float eps"
_BOTH = "Tensor?[] first, Tensor?[] second, Tensor?[] between"
_LIBRARY = torch.library.Library("dither", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema, _run, _fake in (
    (f"linear_int8(Tensor x, {_WEIGHTS}, {_RANGES}, {_LAST}", linear_int8, _like),
    (f"linears_int8({_AROUND}, int block, Tensor?[] given, int[] outputs) -> Tensor[]", linears_int8, _likes),
    (f"linear_few(Tensor x, {_WEIGHTS}, {_LAST}", linear_few, _like),
    (
        f"feed_forward_int8({_AROUND}, int[] blocks, {_BOTH}, bool tanh, int outputs) -> Tensor",
        feed_forward_int8,
        _like,
    ),
    ("gelu(Tensor x, bool tanh) -> Tensor", gelu, _same),
    ("modulate(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor", modulate, _same),
    ("turn(Tensor x, Tensor? pre, Tensor? signs, int block) -> Tensor", turn, _same),
    ("gated(Tensor y, Tensor gate, Tensor residual) -> Tensor", gated, _same),
):
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dither::{_name}", _fake, lib=_LIBRARY)

OPS = torch.ops.dither
"""What this file defines, as operators."""
