"""Operators of torch on native code, with shapes for graphs: linears, feed-forward parts, and the GELU of these.

Numbers that say how a weight is stored come as one tensor of integers; ``FACTS`` are their names. Shapes and dtypes are
looked at before native code reads memory.
"""

import ctypes
from collections.abc import Mapping
from ctypes import c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.native import library

__all__ = ["FACTS", "INTEGERS", "MOST_ROWS", "TRELLIS", "TYPES", "WORDS", "has_few", "means"]

MEANS = ("AVX2", "AVX-VNNI", "AVX-512 VNNI", "AMX")
INTEGERS, WORDS, TRELLIS = range(3)
"""What codes are: integers themselves, indices of words, or bits of a trellis."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Of inputs and outputs."""
MOST_ROWS = 16
"""Of ``linear_few``."""
FACTS = (
    "kind", "outputs", "inputs", "bits", "flip", "sub", "ones", "turn", "dim", "columns", "states", "scale_rows",
    "weight_groups", "zero_moved", "act_bits", "act_symmetric", "act_regions", "act_groups", "segments",
)  # fmt: skip


def _fields(text: str) -> list[tuple[str, Any]]:
    """``name`` is an integer, ``*name`` an address."""
    return [(name.lstrip("*"), c_void_p if name.startswith("*") else c_int64) for name in text.split()]


_WEIGHT = (
    "kind outputs inputs *codes stride bits flip sub ones turn *table dim columns states *scale *zero scale_rows "
    "weight_groups zero_moved"
)


class _Linear(ctypes.Structure):
    """``dither::Linear``."""

    _fields_ = _fields(
        f"{_WEIGHT} *x x_type rows act_bits act_symmetric act_regions *act_scale *act_upper *act_zero act_stride act_groups "
        "segments *bias *out out_type threads tiles"
    )


class _FeedForward(ctypes.Structure):
    """``dither::FeedForward``."""

    _fields_ = [("first", _Linear), ("second", _Linear), *_fields("*between tanh narrow")]


class _Few(ctypes.Structure):
    """``dither::Few``."""

    _fields_ = _fields(f"{_WEIGHT} *x rows *bias *out threads")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # graphs need not look into it
def means() -> str | None:
    """The instructions that sum integers here; None where native code does not."""
    return _means()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_few() -> bool:
    """Whether there is native code for a few rows."""
    return _has_few()


@lru_cache
def _means() -> str | None:
    native = library("int8")
    if native is None:
        return None
    native.dither_linear.restype = native.dither_feed_forward.restype = native.dither_means.restype = c_int64
    found = int(native.dither_means())
    return None if found < 0 else MEANS[found]


@lru_cache
def _has_few() -> bool:
    native = library("few")
    if native is None:
        return False
    native.dither_few.restype = c_int64
    return True


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
    rows = _rows(x)
    given = (codes, scale, zero, table, act_scale, act_upper, act_zero, bias)
    told = _told(facts, outputs)
    _check_integers(told, rows, *given)
    _check("x", x, told, x.dtype in TYPES and x.shape[-1] == told["inputs"])
    y = x.new_empty(*x.shape[:-1], outputs)
    places = _places(x, *given)
    call = _Linear(**_linear(told, rows, *places[1:]), **_ends(places[0], y))
    _done(rows and _library("int8").dither_linear(ctypes.byref(call)), told, rows)
    return y


def feed_forward_int8(
    x: Tensor, first: list[Tensor | None], second: list[Tensor | None], between: Tensor | None, tanh: bool, outputs: int
) -> Tensor:
    """(..., K) to (..., N) in the dtype of x: two linears of integers with a GELU between them.

    The same bits as ``linear_int8``, ``gelu`` and ``linear_int8`` one after the other.

    Args:
        x: (..., K) float32 or bfloat16.
        first, second: what ``linear_int8`` takes between x and ``outputs``, of each linear.
        between: what activations (H) are multiplied by, float32, or None.
        tanh: GELU is the approximation by tanh.
        outputs: N.

    Raises:
        DitherError: a tensor has not the shape or the dtype that the numbers say.
    """
    rows, calls, held = _rows(x), [], []
    for given in (first, second):
        *tensors, facts = given
        assert facts is not None
        told = _named(facts)
        _check_integers(told, rows, *tensors)
        held.append(_places(*tensors))
        calls.append((told, _linear(told, rows, *held[-1])))
    (one, before), (two, behind) = calls
    _check("x", x, one, x.dtype in TYPES and x.shape[-1] == one["inputs"])
    hidden = (one["outputs"],)
    _check(
        "between", between, two, between is None or (between.dtype == torch.float32 and tuple(between.shape) == hidden)
    )
    if two["inputs"] != one["outputs"] or two["outputs"] != outputs:
        raise DitherError(
            f"linears of {two['inputs']} to {two['outputs']} behind {one['outputs']} were asked for {outputs}"
        )
    y = x.new_empty(*x.shape[:-1], outputs)
    x, by = x.contiguous(), None if between is None else between.contiguous()
    ends = _ends(x, y)
    call = _FeedForward(
        _Linear(**before, **ends),
        _Linear(**behind, **ends),
        None if by is None else by.data_ptr(),
        int(tanh),
        int(x.dtype == torch.bfloat16),
    )
    _done(rows and _library("int8").dither_feed_forward(ctypes.byref(call)), two, rows)
    return y


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU of x, float32 or bfloat16, with the bits that it has in ``feed_forward_int8``."""
    if x.dtype not in TYPES:
        raise DitherError(f"gelu of {str(x.dtype).removeprefix('torch.')}: float32 and bfloat16 are known")
    x = x.contiguous()
    y = torch.empty_like(x)
    numbers = (c_int64(TYPES[x.dtype]), c_int64(x.numel()), c_int64(int(tanh)), c_int64(torch.get_num_threads()))
    _library("int8").dither_gelu(c_void_p(x.data_ptr()), *numbers, c_void_p(y.data_ptr()))
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
    told = _told(facts, outputs)
    rows = _rows(x)
    _check_weight(told, codes, scale, zero, table, bias)
    _check("x", x, told, x.dtype == torch.float32 and x.shape[-1] == told["inputs"] and rows <= MOST_ROWS)
    y = x.new_empty(*x.shape[:-1], told["outputs"])
    places = _places(x, codes, scale, zero, table, bias)
    names = ("x", "codes", "scale", "zero", "table", "bias")
    fields = {name for name, _ in _Few._fields_}
    numbers = {name: value for name, value in told.items() if name in fields}
    call = _Few(
        **numbers, **dict(zip(names, map(_at, places), strict=True)), stride=codes.shape[1], rows=rows, out=y.data_ptr(),
        threads=torch.get_num_threads(),
    )  # fmt: skip
    _done(rows and _library("few").dither_few(ctypes.byref(call)), told, rows)
    return y


def _named(facts: Tensor) -> dict[str, int]:
    return dict(zip(FACTS, facts.tolist(), strict=True))


def _told(facts: Tensor, outputs: int) -> dict[str, int]:
    told = _named(facts)
    if told["outputs"] != outputs:
        raise DitherError(f"a linear of {told['outputs']} outputs was asked for {outputs}")
    return told


def _rows(x: Tensor) -> int:
    return x.numel() // max(x.shape[-1], 1)


def _library(name: str) -> ctypes.CDLL:
    found = library(name)
    if found is None:
        raise DitherError(f"there is no native code for '{name}' here")
    return found


def _places(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors whose memory is in order; they must live until native code is done."""
    return [None if t is None else t.contiguous() for t in tensors]


def _at(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _linear(told: Mapping[str, int], rows: int, *given: Tensor | None) -> dict[str, Any]:
    """Fields of ``_Linear`` but for where its inputs and outputs are."""
    codes, act_scale = given[0], given[4]
    assert codes is not None
    stride = told["act_groups"] if act_scale is not None and act_scale.shape[0] > 1 else 0
    names = ("codes", "scale", "zero", "table", "act_scale", "act_upper", "act_zero", "bias")
    places = dict(zip(names, map(_at, given), strict=True))
    own = {"stride": codes.shape[1], "rows": rows, "act_stride": stride, "threads": torch.get_num_threads(), "tiles": 1}
    return {**told, **places, **own}


def _ends(x: Tensor | None, y: Tensor) -> dict[str, Any]:
    assert x is not None
    return {"x": x.data_ptr(), "x_type": TYPES[x.dtype], "out": y.data_ptr(), "out_type": TYPES[y.dtype]}


def _done(status: int, told: Mapping[str, int], rows: int) -> None:
    size = f"a linear of {told['outputs']} x {told['inputs']} and {rows} rows"
    if status == 2:
        raise MemoryError(f"no memory for {size}")
    if status:
        raise DitherError(f"native code does not know {size}: {dict(told)}")


def _check(name: str, tensor: Tensor | None, told: Mapping[str, int], fits: bool) -> None:
    if fits:
        return
    what = "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    raise DitherError(f"a linear of {told['outputs']} x {told['inputs']} cannot run: {name} is {what}")


def _check_integers(told: Mapping[str, int], rows: int, *given: Tensor | None) -> None:
    """What ``linear_int8`` takes behind x."""
    codes, scale, zero, table, act_scale, act_upper, act_zero, bias = given
    _check_weight(told, codes, scale, zero, table, bias)
    ranges = None if act_scale is None else tuple(act_scale.shape)
    may = ((1, told["act_groups"]), (rows, told["act_groups"]))
    _check("act_scale", act_scale, told, act_scale is None or (act_scale.dtype == torch.float32 and ranges in may))
    upper = (act_scale is not None and bool(told["act_regions"]), torch.float32)
    if told["act_symmetric"]:
        _check("act_zero", act_zero, told, act_zero is None)
    for name, t, (needed, dtype) in (("act_upper", act_upper, upper), ("act_zero", act_zero, (False, torch.uint8))):
        _check(name, t, told, not needed if t is None else t.dtype == dtype and tuple(t.shape) == ranges)


def _check_weight(
    told: Mapping[str, int],
    codes: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
) -> None:
    n, k, kind, dim = (told[name] for name in ("outputs", "inputs", "kind", "dim"))
    lines, each = (n // dim, k * dim) if kind == TRELLIS else (n, k // dim if kind == WORDS else k)
    shape = (lines, (each * told["bits"] + 7) // 8)
    scales = (told["scale_rows"], told["weight_groups"])
    named = 0 if kind == INTEGERS else 1 << told["states"] if kind == TRELLIS else dim << told["bits"]
    _check("codes", codes, told, codes is not None and codes.dtype == torch.uint8 and tuple(codes.shape) == shape)
    _check("scale", scale, told, scale is not None and scale.dtype == torch.float32 and tuple(scale.shape) == scales)
    _check("zero", zero, told, zero is None or (zero.dtype == torch.uint8 and tuple(zero.shape) == scales))
    _check("table", table, told, named == 0 if table is None else table.dtype == torch.int8 and table.numel() == named)
    _check("bias", bias, told, bias is None or (bias.dtype == torch.float32 and tuple(bias.shape) == (n,)))


def _like(x: Tensor, *rest: Any) -> Tensor:
    """The result's shape and dtype, for graphs."""
    return x.new_empty(*x.shape[:-1], rest[-1])


_WEIGHTS = "Tensor x, Tensor codes, Tensor scale, Tensor? zero, Tensor? table"
_OPS = torch.library.Library("dither", "FRAGMENT")  # type: ignore[no-untyped-call]
for _name, _ranges, _run in (
    ("linear_int8", ", Tensor? act_scale, Tensor? act_upper, Tensor? act_zero", linear_int8),
    ("linear_few", "", linear_few),
):
    _OPS.define(f"{_name}({_WEIGHTS}{_ranges}, Tensor? bias, Tensor facts, int outputs) -> Tensor")  # type: ignore[no-untyped-call]
    _OPS.impl(_name, _run, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"dither::{_name}", _like, lib=_OPS)
_OPS.define("gelu(Tensor x, bool tanh) -> Tensor")  # type: ignore[no-untyped-call]
_OPS.impl("gelu", gelu, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("dither::gelu", lambda x, tanh: x.new_empty(x.shape), lib=_OPS)
_OPS.define(  # type: ignore[no-untyped-call]
    "feed_forward_int8(Tensor x, Tensor?[] first, Tensor?[] second, Tensor? between, bool tanh, int outputs) -> Tensor"
)
_OPS.impl("feed_forward_int8", feed_forward_int8, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("dither::feed_forward_int8", _like, lib=_OPS)
