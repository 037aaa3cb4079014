"""The operator that makes int8 codes of inputs (..., K), row by row; what comes before it besides is in ``around``.

    int8_rows    x, or GELU(x), or that times a scale of columns

It gives codes (M, K) int8, scales (M, G) float32, and zero points and sums of codes (M, G) int32, which are empty where
nobody asks. G is 1, or the number of groups of a row. Ranges are each row's own, or those of a table (1 or M, G).
"""

from typing import TypeAlias

import torch
from torch import Tensor

from dither.gpu.launch import INNER, NARROW, launch, memory_for, operator, require
from dither.gpu.tiles import block, rows_at_once

__all__ = ["Rows", "check_ranges", "empty_rows", "gelu", "int8_rows", "ranges", "results", "shape_of", "warps_for"]

Rows: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Codes, scales, zero points, sums."""


def int8_rows(
    x: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    between: Tensor | None,
    bits: int,
    symmetric: bool,
    groups: int,
    gelu: int,
    halves: bool,
    sums: bool,
) -> Rows:
    """Codes of x (..., K).

    Args:
        x: float32, float16 or bfloat16.
        scale, zero: float32 and uint8 (1 or M, G), or None: dynamic.
        between: float32 (K,), what GELU is multiplied by, rounded to the dtype of x; or None.
        bits, symmetric: of the grid.
        groups: G.
        gelu: 0 none, 1 by tanh, 2 by erf; applied first, rounded to the dtype of x.
        halves: even columns first, then odd ones; G is 1.
        sums: whether sums of codes are wanted.

    Raises:
        DitherError: tensors that do not fit each other.
    """
    from dither.gpu.jit.quantize import quantize_rows

    m, k = shape_of(x)
    what = f"quantizing {m} rows of {k}"
    with memory_for(what, x):
        check_ranges(x, scale, zero, groups, symmetric, what)
        fits = between is None or (between.dtype == torch.float32 and between.shape == (k,))
        require(fits, what, "between", between)
        require(k % groups == 0 and not (halves and (groups > 1 or k % 2)), what, "x", x)
        found = empty_rows(x, groups, symmetric, sums)
        size, rows = k // groups, rows_at_once(k // groups)
        launch(
            quantize_rows, (-(-m * groups // rows),), x, warps_for(size), 1,
            x=x.contiguous(), **results(found, symmetric, sums), **ranges(scale, zero),
            between=None if between is None else between.contiguous(),
            COUNT=m * groups, SIZE=size, GROUPS=groups, BITS=bits, SYMMETRIC=symmetric, GELU=gelu, HALVES=halves, ROWS=rows,
            BLOCK=block(size),
        )  # fmt: skip
    return found


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """GELU of x, float32, float16 or bfloat16, with the bits that it has in an epilogue."""
    from dither.gpu.jit.quantize import gelu_all

    what = f"GELU of {x.numel()} values"
    with memory_for(what, x):
        require(x.dtype in NARROW, what, "x", x)
        x = x.contiguous()
        out = torch.empty_like(x)
        launch(
            gelu_all, (-(-x.numel() // 1024),), x, 4, 1, x=x, out=out, COUNT=x.numel(), GELU=1 if tanh else 2, BLOCK=1024
        )  # fmt: skip
    return out


def shape_of(x: Tensor) -> tuple[int, int]:
    """Rows and columns of (..., K)."""
    k = x.shape[-1]
    return x.numel() // max(k, 1), k


def warps_for(size: int) -> int:
    """Warps whose registers hold so many elements."""
    held = block(size)
    return 4 if held <= 2048 else 8 if held <= 8192 else 16


def check_ranges(x: Tensor, scale: Tensor | None, zero: Tensor | None, groups: int, symmetric: bool, what: str) -> None:
    """Refuse inputs, and tables of ranges, that do not fit each other."""
    m, k = shape_of(x)
    require(x.dtype in NARROW and 0 < k <= INNER, what, "x", x)
    may = ((1, groups), (m, groups))
    require(scale is None or (scale.dtype == torch.float32 and tuple(scale.shape) in may), what, "scale", scale)
    if scale is None or symmetric:
        require(zero is None, what, "zero", zero)
    else:
        fits = zero is not None and zero.dtype == torch.uint8 and zero.shape == scale.shape
        require(fits, what, "zero", zero)


def empty_rows(x: Tensor, groups: int, symmetric: bool, sums: bool) -> Rows:
    """The results, not yet filled; also what graphs know of them."""
    m, k = shape_of(x)
    some, none = (m, groups), (0,)
    return (
        x.new_empty((m, k), dtype=torch.int8),
        x.new_empty(some, dtype=torch.float32),
        x.new_empty(none if symmetric else some, dtype=torch.int32),
        x.new_empty(some if sums else none, dtype=torch.int32),
    )


def results(found: Rows, symmetric: bool, sums: bool) -> dict[str, Tensor | None]:
    """Where kernels write; None where nobody asks."""
    codes, scale, zero, total = found
    return {"codes": codes, "scale": scale, "zero": None if symmetric else zero, "sums": total if sums else None}


def ranges(scale: Tensor | None, zero: Tensor | None) -> dict[str, object]:
    """The table, if there is one; one row that serves all has no way to the next."""
    if scale is None:
        return {"table": None, "table_zero": None, "STRIDE": 0}
    stride = scale.shape[1] if scale.shape[0] > 1 else 0
    return {"table": scale.contiguous(), "table_zero": None if zero is None else zero.contiguous(), "STRIDE": stride}


operator("triton_gelu(Tensor x, bool tanh) -> Tensor", gelu, lambda x, tanh: x.new_empty(x.shape))
_GRID = "int bits, bool symmetric"
_TABLE = "Tensor? scale, Tensor? zero"
_ROWS = "(Tensor, Tensor, Tensor, Tensor)"
operator(
    f"int8_rows(Tensor x, {_TABLE}, Tensor? between, {_GRID}, int groups, int gelu, bool halves, bool sums) -> {_ROWS}",
    int8_rows,
    lambda x, scale, zero, between, bits, symmetric, groups, gelu, halves, sums: empty_rows(x, groups, symmetric, sums),
)
