"""Operators of torch on native code, with shapes for graphs: linears, feed-forward parts, and what lies around them.

Shapes and dtypes are looked at before native code reads memory; see ``native_calls``.
"""

import ctypes
from ctypes import c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.kernels.native_calls import (
    MOST_ROWS,
    MOST_TOGETHER,
    TYPES,
    Around,
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
    return linears_int8(x, [], 0.0, given, [outputs])[0]


def linears_int8(
    x: Tensor, around: list[Tensor | None], eps: float, given: list[Tensor | None], outputs: list[int]
) -> list[Tensor]:
    """Linears that read one tensor, which becomes codes once: the bits that ``linear_int8`` has for each.

    Args:
        x: (..., K) float32 or bfloat16.
        around: nothing, or what happens before and after: shift, scale, gate, residual, of which those of a pair may be None.
            With shift and scale (B, K), x (B, T, K) is first what ``modulate`` makes of it; with gate (B, N) and residual
            (B, T, N), the one output is what ``gated`` makes of it.
        eps: of ``modulate``.
        given: what ``linear_int8`` takes between x and ``outputs``, of one linear after the other.
        outputs: N of each.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the numbers say; or inputs would not be rounded alike.
    """
    each = len(given) // max(len(outputs), 1)
    if not 0 < len(outputs) <= MOST_TOGETHER or each * len(outputs) != len(given):
        raise DitherError(f"{len(given)} tensors of {len(outputs)} linears: {MOST_TOGETHER} may read one tensor")
    rows, held, calls, made = rows_in(x), [], (Linear * len(outputs))(), []
    beside, kept = _around(x, around, eps, outputs[0] if len(outputs) == 1 else 0)
    x = x.contiguous()
    for i, many in enumerate(outputs):
        *tensors, facts = given[i * each : (i + 1) * each]
        assert facts is not None
        told = told_of(facts, many)
        check_integers(told, rows, *tensors)
        check("x", x, told, x.dtype in TYPES and x.shape[-1] == told["inputs"])
        held.append(in_order(*tensors))
        made.append(x.new_empty(*x.shape[:-1], many))
        calls[i] = Linear(**linear(told, rows, *held[-1]), **ends(x, made[-1]), **beside)
    done(rows and native("int8").dither_linears(calls, c_int64(len(outputs))), told, rows)
    del held, kept  # until now
    return made


def feed_forward_int8(
    x: Tensor,
    around: list[Tensor | None],
    eps: float,
    first: list[Tensor | None],
    second: list[Tensor | None],
    between: Tensor | None,
    tanh: bool,
    outputs: int,
) -> Tensor:
    """(..., K) to (..., N) in the dtype of x: two linears of integers with a GELU between them.

    The same bits as ``linear_int8``, ``gelu`` and ``linear_int8`` one after the other.

    Args:
        x: (..., K) float32 or bfloat16.
        around: as of ``linears_int8``.
        eps: of ``modulate``.
        first, second: what ``linear_int8`` takes between x and ``outputs``, of each linear.
        between: what activations (H) are multiplied by, float32, or None.
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
    hidden = (one["outputs"],)
    check(
        "between", between, two, between is None or (between.dtype == torch.float32 and tuple(between.shape) == hidden)
    )
    if two["inputs"] != one["outputs"] or two["outputs"] != outputs:
        raise DitherError(
            f"linears of {two['inputs']} to {two['outputs']} behind {one['outputs']} were asked for {outputs}"
        )
    beside, kept = _around(x, around, eps, outputs)
    y = x.new_empty(*x.shape[:-1], outputs)
    x, by = x.contiguous(), None if between is None else between.contiguous()
    last = {name: value for name, value in beside.items() if name not in ("shift", "norm_scale")}
    beside["gate"] = None
    call = FeedForward(
        Linear(**ahead, **ends(x, y), **beside),
        Linear(**behind, **ends(x, y), **last),
        address(by),
        int(tanh),
        int(x.dtype == torch.bfloat16),
    )
    done(rows and native("int8").dither_feed_forward(ctypes.byref(call)), two, rows)
    del held, kept  # until now
    return y


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) (1 + scale) + shift``, with the bits that it has before ``linears_int8``.

    Args:
        x: (B, T, K) float32 or bfloat16.
        shift, scale: (B, K) float32.
        eps: as of a layer norm.
    """
    return _alone(x, [shift, scale, None, None], eps)


def gated(y: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """``residual + gate y``, with the bits that it has behind ``linears_int8``.

    Args:
        y, residual: (B, T, N) float32 or bfloat16.
        gate: (B, N) float32.
    """
    return _alone(y, [None, None, gate, residual], 0.0)


def _alone(x: Tensor, around: list[Tensor | None], eps: float) -> Tensor:
    if x.dtype not in TYPES:
        raise DitherError(
            f"inputs are {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}: float32 and bfloat16 are known"
        )
    beside, kept = _around(x, around, eps, x.shape[-1])
    x = x.contiguous()
    y, rows = torch.empty_like(x), rows_in(x)
    call = Around(
        x=x.data_ptr(), type=TYPES[x.dtype], rows=rows, width=x.shape[-1], threads=torch.get_num_threads(), out=y.data_ptr(),
        **beside,
    )  # fmt: skip
    done(
        rows and native("int8").dither_around(ctypes.byref(call)), {"inputs": x.shape[-1], "outputs": x.shape[-1]}, rows
    )
    del kept  # until now
    return y


def _around(x: Tensor, around: list[Tensor | None], eps: float, outputs: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Fields of what lies around a linear of so many outputs, and the tensors that must live meanwhile."""
    if not any(t is not None for t in around):
        return {}, []
    shift, scale, gate, residual = around
    shape = tuple(x.shape)

    def fits(name: str, t: Tensor | None, want: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if t is None or x.ndim != 3 or tuple(t.shape) != want or t.dtype != dtype:
            given = "nothing" if t is None else f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
            raise DitherError(f"{name} is {given} for inputs {shape}, not {str(dtype).removeprefix('torch.')} {want}")
        return t if t.stride(-1) == 1 and want == (shape[0], want[-1]) and t.stride(0) > 0 else t.contiguous()

    fields: dict[str, Any] = {"tokens": shape[1] if x.ndim == 3 else 0, "eps": eps}
    kept: list[Tensor] = []
    if shift is not None or scale is not None:
        size = (shape[0], shape[-1])
        shift, scale = fits("shift", shift, size, torch.float32), fits("scale", scale, size, torch.float32)
        if shift.stride(0) != scale.stride(0):
            shift, scale = shift.contiguous(), scale.contiguous()
        fields |= {"shift": shift.data_ptr(), "norm_scale": scale.data_ptr(), "norm_stride": shift.stride(0)}
        kept += [shift, scale]
    if gate is not None or residual is not None:
        gate = fits("gate", gate, (shape[0], outputs), torch.float32)
        residual = fits("residual", residual, (*shape[:-1], outputs), x.dtype).contiguous()
        fields |= {"gate": gate.data_ptr(), "gate_stride": gate.stride(0), "residual": residual.data_ptr()}
        kept += [gate, residual]
    return fields, kept


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


_WEIGHTS = "Tensor codes, Tensor scale, Tensor? zero, Tensor? table"
_RANGES = "Tensor? act_scale, Tensor? act_upper, Tensor? act_zero"
_AROUND = "Tensor x, Tensor?[] around, float eps"
_LIBRARY = torch.library.Library("dither", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema, _run, _fake in (
    (
        f"linear_int8(Tensor x, {_WEIGHTS}, {_RANGES}, Tensor? bias, Tensor facts, int outputs) -> Tensor",
        linear_int8,
        _like,
    ),
    (f"linears_int8({_AROUND}, Tensor?[] given, int[] outputs) -> Tensor[]", linears_int8, _likes),
    (f"linear_few(Tensor x, {_WEIGHTS}, Tensor? bias, Tensor facts, int outputs) -> Tensor", linear_few, _like),
    (
        f"feed_forward_int8({_AROUND}, Tensor?[] first, Tensor?[] second, Tensor? between, bool tanh, int outputs) -> Tensor",
        feed_forward_int8,
        _like,
    ),
    ("gelu(Tensor x, bool tanh) -> Tensor", gelu, lambda x, *_: x.new_empty(x.shape)),
    (
        "modulate(Tensor x, Tensor shift, Tensor scale, float eps) -> Tensor",
        modulate,
        lambda x, *_: x.new_empty(x.shape),
    ),
    ("gated(Tensor y, Tensor gate, Tensor residual) -> Tensor", gated, lambda y, *_: y.new_empty(y.shape)),
):
    _name = _schema.partition("(")[0]
    _LIBRARY.define(_schema)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dither::{_name}", _fake, lib=_LIBRARY)

OPS = torch.ops.dither
"""What this file defines, as operators."""
