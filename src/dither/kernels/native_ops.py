"""Operators of torch on the native code: ``dither::linear_int8`` and ``dither::linear_few``, with shapes for graphs.

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
    native.dither_linear.restype = native.dither_means.restype = c_int64
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
    told = _told(facts, outputs)
    rows = _rows(x)
    _check_weight(told, codes, scale, zero, table, bias)
    _check("x", x, told, x.dtype in TYPES and x.shape[-1] == told["inputs"])
    ranges = None if act_scale is None else tuple(act_scale.shape)
    may = ((1, told["act_groups"]), (rows, told["act_groups"]))
    _check("act_scale", act_scale, told, act_scale is None or (act_scale.dtype == torch.float32 and ranges in may))
    upper = (act_scale is not None and bool(told["act_regions"]), torch.float32)
    for name, t, (needed, dtype) in (("act_upper", act_upper, upper), ("act_zero", act_zero, (False, torch.uint8))):
        _check(name, t, told, not needed if t is None else t.dtype == dtype and tuple(t.shape) == ranges)
    y = x.new_empty(*x.shape[:-1], told["outputs"])
    places = _places(x=x, codes=codes, scale=scale, zero=zero, table=table, act_scale=act_scale, act_upper=act_upper,
                     act_zero=act_zero, bias=bias)  # fmt: skip
    stride = told["act_groups"] if ranges is not None and ranges[0] > 1 else 0
    call = _Linear(
        **told, **_addresses(places), stride=codes.shape[1], x_type=TYPES[x.dtype], rows=rows, act_stride=stride,
        out=y.data_ptr(), out_type=TYPES[y.dtype], threads=torch.get_num_threads(), tiles=1,
    )  # fmt: skip
    _done(rows and _library("int8").dither_linear(ctypes.byref(call)), told, rows)
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
    places = _places(x=x, codes=codes, scale=scale, zero=zero, table=table, bias=bias)
    fields = {name for name, _ in _Few._fields_}
    numbers = {name: value for name, value in told.items() if name in fields}
    call = _Few(
        **numbers, **_addresses(places), stride=codes.shape[1], rows=rows, out=y.data_ptr(), threads=torch.get_num_threads()
    )  # fmt: skip
    _done(rows and _library("few").dither_few(ctypes.byref(call)), told, rows)
    return y


def _told(facts: Tensor, outputs: int) -> dict[str, int]:
    told = dict(zip(FACTS, facts.tolist(), strict=True))
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


def _places(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    """Tensors whose memory is in order; they must live until native code is done."""
    return {name: None if t is None else t.contiguous() for name, t in tensors.items()}


def _addresses(places: Mapping[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if t is None else t.data_ptr() for name, t in places.items()}


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


def _check_weight(
    told: Mapping[str, int],
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
) -> None:
    n, k, kind, dim = (told[name] for name in ("outputs", "inputs", "kind", "dim"))
    lines, each = (n // dim, k * dim) if kind == TRELLIS else (n, k // dim if kind == WORDS else k)
    shape = (lines, (each * told["bits"] + 7) // 8)
    scales = (told["scale_rows"], told["weight_groups"])
    named = 0 if kind == INTEGERS else 1 << told["states"] if kind == TRELLIS else dim << told["bits"]
    _check("codes", codes, told, codes.dtype == torch.uint8 and tuple(codes.shape) == shape)
    _check("scale", scale, told, scale.dtype == torch.float32 and tuple(scale.shape) == scales)
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
