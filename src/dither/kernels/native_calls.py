"""What operators on native code share: its structures as ctypes, and what is looked at before it reads memory.

Numbers that say how a weight is stored come as one tensor of integers; ``FACTS`` are their names.
"""

import ctypes
from collections.abc import Mapping
from ctypes import c_double, c_int64, c_void_p
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.native import library

__all__ = [
    "FACTS", "INTEGERS", "MOST_ROWS", "MOST_TOGETHER", "TRELLIS", "TYPES", "WORDS", "Around", "FeedForward", "Few", "Linear",
    "address", "check", "check_integers", "check_weight", "done", "ends", "fields", "has_attention", "has_few", "in_order",
    "linear", "means", "named", "native", "raised", "rows_in", "told_of",
]  # fmt: skip

MEANS = ("AVX2", "AVX-VNNI", "AVX-512 VNNI", "AMX")
INTEGERS, WORDS, TRELLIS = range(3)
"""What codes are: integers themselves, indices of words, or bits of a trellis."""
TYPES = {torch.float32: 0, torch.bfloat16: 1}
"""Of inputs and outputs."""
MOST_ROWS = 32
"""Of ``linear_few``."""
MOST_TOGETHER = 4
"""Linears of ``linears_int8``."""
FACTS = (
    "kind", "outputs", "inputs", "bits", "flip", "sub", "ones", "turn", "dim", "columns", "states", "pairs", "scale_rows",
    "weight_groups", "zero_moved", "act_bits", "act_symmetric", "act_regions", "act_groups", "segments",
)  # fmt: skip


def fields(text: str) -> list[tuple[str, Any]]:
    """``name`` is an integer, ``*name`` an address, ``.name`` a number with a point."""
    kinds = {"*": c_void_p, ".": c_double}
    return [(name.lstrip("*."), kinds.get(name[0], c_int64)) for name in text.split()]


_WEIGHT = (
    "kind outputs inputs *codes stride bits flip sub ones turn *table dim columns states pairs *scale *zero scale_rows "
    "weight_groups zero_moved"
)
_AROUND = "*shift *norm_scale norm_stride .eps *pre *signs *matrix block order *gate gate_stride *residual"


class Linear(ctypes.Structure):
    """``dither::Linear``."""

    _fields_ = fields(
        f"{_WEIGHT} *x x_type rows act_bits act_symmetric act_regions *act_scale *act_upper *act_zero act_stride act_groups "
        f"segments *bias *out out_type threads tiles tokens before narrow {_AROUND}"
    )


class FeedForward(ctypes.Structure):
    """``dither::FeedForward``."""

    _fields_ = [("first", Linear), ("second", Linear), *fields("tanh")]


class Around(ctypes.Structure):
    """``Around``."""

    _fields_ = fields(f"*x type rows width tokens threads {_AROUND} *out")


class Few(ctypes.Structure):
    """``dither::Few``."""

    _fields_ = fields(f"{_WEIGHT} *x rows *bias *out threads")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # graphs need not look into it
def means() -> str | None:
    """The instructions that sum integers here; None where native code does not."""
    return _means()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_few() -> bool:
    """Whether there is native code for a few rows."""
    return _has("few")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_attention() -> bool:
    """Whether there is native code for attention on quantized factors."""
    return means() is not None and _has("attention")


@lru_cache
def _means() -> str | None:
    code = library("int8")
    if code is None:
        return None
    for function in (code.dither_linears, code.dither_feed_forward, code.dither_around, code.dither_means):
        function.restype = c_int64
    found = int(code.dither_means())
    return None if found < 0 else MEANS[found]


@lru_cache
def _has(name: str) -> bool:
    """Whether there is a library whose one function is ``dither_<name>``."""
    code = library(name)
    if code is not None:
        getattr(code, f"dither_{name}").restype = c_int64
    return code is not None


def named(facts: Tensor) -> dict[str, int]:
    """Numbers of ``FACTS`` by name."""
    return dict(zip(FACTS, facts.tolist(), strict=True))


def told_of(facts: Tensor, outputs: int) -> dict[str, int]:
    """``named``, if these are the facts of so many outputs."""
    told = named(facts)
    if told["outputs"] != outputs:
        raise DitherError(f"a linear of {told['outputs']} outputs was asked for {outputs}")
    return told


def rows_in(x: Tensor) -> int:
    """M of (..., K)."""
    return x.numel() // max(x.shape[-1], 1)


def native(name: str) -> ctypes.CDLL:
    """The library; DitherError if it is not there."""
    found = library(name)
    if found is None:
        raise DitherError(f"there is no native code for '{name}' here")
    return found


def in_order(*tensors: Tensor | None) -> list[Tensor | None]:
    """Tensors whose memory is in order; they must live until native code is done."""
    return [None if t is None else t.contiguous() for t in tensors]


def address(t: Tensor | None) -> int | None:
    """Where its memory begins."""
    return None if t is None else t.data_ptr()


def linear(told: Mapping[str, int], rows: int, *given: Tensor | None) -> dict[str, Any]:
    """Fields of ``Linear`` but for where its inputs and outputs are."""
    codes, act_scale = given[0], given[4]
    assert codes is not None
    stride = told["act_groups"] if act_scale is not None and act_scale.shape[0] > 1 else 0
    names = ("codes", "scale", "zero", "table", "act_scale", "act_upper", "act_zero", "bias")
    places = dict(zip(names, map(address, given), strict=True))
    own = {"stride": codes.shape[1], "rows": rows, "act_stride": stride, "threads": torch.get_num_threads(), "tiles": 1}
    return {**told, **places, **own}


def ends(x: Tensor, y: Tensor) -> dict[str, Any]:
    """Where inputs and outputs are."""
    return {"x": x.data_ptr(), "x_type": TYPES[x.dtype], "out": y.data_ptr(), "out_type": TYPES[y.dtype]}


def done(status: int, told: Mapping[str, int], rows: int) -> None:
    """Raise what a status says."""
    raised(status, f"a linear of {told['outputs']} x {told['inputs']} and {rows} rows", told)


def raised(status: int, what: str, told: Mapping[str, int]) -> None:
    """Raise what a status says of something."""
    if status == 2:
        raise MemoryError(f"no memory for {what}")
    if status:
        raise DitherError(f"native code does not know {what}: {dict(told)}")


def check(name: str, tensor: Tensor | None, told: Mapping[str, int], fits: bool) -> None:
    """Raise DitherError, naming the tensor, unless it fits."""
    if fits:
        return
    what = "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    raise DitherError(f"a linear of {told['outputs']} x {told['inputs']} cannot run: {name} is {what}")


def check_integers(told: Mapping[str, int], rows: int, *given: Tensor | None) -> None:
    """What ``linear_int8`` takes behind x."""
    codes, scale, zero, table, act_scale, act_upper, act_zero, bias = given
    check_weight(told, codes, scale, zero, table, bias)
    ranges = None if act_scale is None else tuple(act_scale.shape)
    may = ((1, told["act_groups"]), (rows, told["act_groups"]))
    check("act_scale", act_scale, told, act_scale is None or (act_scale.dtype == torch.float32 and ranges in may))
    upper = (act_scale is not None and bool(told["act_regions"]), torch.float32)
    if told["act_symmetric"]:
        check("act_zero", act_zero, told, act_zero is None)
    for name, t, (needed, dtype) in (("act_upper", act_upper, upper), ("act_zero", act_zero, (False, torch.uint8))):
        check(name, t, told, not needed if t is None else t.dtype == dtype and tuple(t.shape) == ranges)


def check_weight(
    told: Mapping[str, int],
    codes: Tensor | None,
    scale: Tensor | None,
    zero: Tensor | None,
    table: Tensor | None,
    bias: Tensor | None,
) -> None:
    """What all linears take."""
    n, k, kind, dim = (told[name] for name in ("outputs", "inputs", "kind", "dim"))
    lines, each = (n // dim, k * dim) if kind == TRELLIS else (n, k // dim if kind == WORDS else k)
    shape = (lines, (each * told["bits"] + 7) // 8)
    scales = (told["scale_rows"], told["weight_groups"])
    windows = 2 << told["states"] + told["bits"] if told["pairs"] else 1 << told["states"]
    words = 0 if kind == INTEGERS else windows if kind == TRELLIS else dim << told["bits"]
    check("codes", codes, told, codes is not None and codes.dtype == torch.uint8 and tuple(codes.shape) == shape)
    check("scale", scale, told, scale is not None and scale.dtype == torch.float32 and tuple(scale.shape) == scales)
    check("zero", zero, told, zero is None or (zero.dtype == torch.uint8 and tuple(zero.shape) == scales))
    check("table", table, told, words == 0 if table is None else table.dtype == torch.int8 and table.numel() == words)
    check("bias", bias, told, bias is None or (bias.dtype == torch.float32 and tuple(bias.shape) == (n,)))
