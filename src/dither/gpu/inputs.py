"""Operators that make int8 codes of inputs (..., K), row by row, and what they replace besides.

    int8_rows         x, or GELU(x), or that times a scale of columns
    int8_modulated    LayerNorm(x) (1 + gain) + shift, of samples
    int8_rotated      (x * signs) H / sqrt(b) in blocks of b, a power of two

Each gives codes (M, K) int8, scales (M, G) float32, and zero points and sums of codes (M, G) int32, which are empty where
nobody asks. G is 1, or the number of groups of a row. Ranges are each row's own, or those of a table (1 or M, G).
"""

from typing import TypeAlias

import torch
from torch import Tensor

from dither.gpu.launch import INNER, NARROW, launch, memory_for, operator, require
from dither.gpu.tiles import block, rows_at_once

__all__ = ["Rows", "gelu", "int8_modulated", "int8_rotated", "int8_rows"]

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
        between: float32 (K,), what GELU is multiplied by, or None.
        bits, symmetric: of the grid.
        groups: G.
        gelu: 0 none, 1 by tanh, 2 by erf; applied first, rounded to the dtype of x.
        halves: even columns first, then odd ones; G is 1.
        sums: whether sums of codes are wanted.

    Raises:
        DitherError: tensors that do not fit each other.
    """
    from dither.gpu.jit.quantize import quantize_rows

    m, k = _shape(x)
    what = f"quantizing {m} rows of {k}"
    with memory_for(what, x):
        _check(x, scale, zero, groups, symmetric, what)
        fits = between is None or (between.dtype == torch.float32 and between.shape == (k,))
        require(fits, what, "between", between)
        require(k % groups == 0 and not (halves and (groups > 1 or k % 2)), what, "x", x)
        found = _empty(x, groups, symmetric, sums)
        size, rows = k // groups, rows_at_once(k // groups)
        launch(
            quantize_rows, (-(-m * groups // rows),), x, _warps(size), 1,
            x=x.contiguous(), **_results(found, symmetric, sums), **_ranges(scale, zero),
            between=None if between is None else between.contiguous(),
            COUNT=m * groups, SIZE=size, GROUPS=groups, BITS=bits, SYMMETRIC=symmetric, GELU=gelu, HALVES=halves, ROWS=rows,
            BLOCK=block(size),
        )  # fmt: skip
    return found


def int8_modulated(
    x: Tensor,
    shift: Tensor,
    gain: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    eps: float,
    bits: int,
    symmetric: bool,
    halves: bool,
    sums: bool,
) -> Rows:
    """Codes of ``LayerNorm(x) (1 + gain) + shift``, x (B, T, K), shift and gain (B, K); the rest as of ``int8_rows``."""
    from dither.gpu.jit.quantize import modulated_rows

    m, k = _shape(x)
    what = f"normalizing and quantizing {m} rows of {k}"
    with memory_for(what, x):
        _check(x, scale, zero, 1, symmetric, what)
        require(x.ndim == 3 and not (halves and k % 2), what, "x", x)
        shift, gain = _same_rows(shift, gain)
        for name, t in (("shift", shift), ("gain", gain)):
            require(t.dtype in NARROW and tuple(t.shape) == (x.shape[0], k), what, name, t)
        found = _empty(x, 1, symmetric, sums)
        rows = rows_at_once(k)
        launch(
            modulated_rows, (-(-m // rows),), x, _warps(k), 1,
            x=x.contiguous(), shift=shift, gain=gain, **_results(found, symmetric, sums), **_ranges(scale, zero), COUNT=m,
            SIZE=k, TOKENS=x.shape[1], ACROSS=shift.stride(0), EPS=eps, BITS=bits, SYMMETRIC=symmetric, HALVES=halves,
            ROWS=rows, BLOCK=block(k),
        )  # fmt: skip
    return found


def int8_rotated(
    x: Tensor,
    signs: Tensor,
    matrix: Tensor,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    symmetric: bool,
    sums: bool,
) -> Rows:
    """Codes of x (..., K) rotated in blocks; the rest as of ``int8_rows``.

    Args:
        signs: int8 (K,).
        matrix: Sylvester's of the block, int8 (b, b), b from 16 to 128.
    """
    from dither.gpu.jit.quantize import hadamard_rows

    (m, k), b = _shape(x), len(matrix)
    what = f"rotating and quantizing {m} rows of {k}"
    with memory_for(what, x):
        _check(x, scale, zero, 1, symmetric, what)
        require(signs.dtype == torch.int8 and signs.shape == (k,), what, "signs", signs)
        fits = matrix.dtype == torch.int8 and matrix.shape == (b, b) and b in (16, 32, 64, 128) and k % b == 0
        require(fits, what, "matrix", matrix)
        found = _empty(x, 1, symmetric, sums)
        launch(
            hadamard_rows, (-(-m // 32),), x, 8 if b == 128 else 4, 1,
            x=x.contiguous(), signs=signs.contiguous(), matrix=matrix.contiguous(), **_results(found, symmetric, sums),
            **_ranges(scale, zero), COUNT=m, SIZE=k, BITS=bits, SYMMETRIC=symmetric, WIDTH=b, ROWS=32,
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
            gelu_all,
            (-(-x.numel() // 1024),),
            x,
            4,
            1,
            x=x,
            out=out,
            COUNT=x.numel(),
            GELU=1 if tanh else 2,
            BLOCK=1024,
        )
    return out


def _shape(x: Tensor) -> tuple[int, int]:
    k = x.shape[-1]
    return x.numel() // max(k, 1), k


def _warps(size: int) -> int:
    held = block(size)
    return 4 if held <= 2048 else 8 if held <= 8192 else 16


def _check(x: Tensor, scale: Tensor | None, zero: Tensor | None, groups: int, symmetric: bool, what: str) -> None:
    m, k = _shape(x)
    require(x.dtype in NARROW and 0 < k <= INNER, what, "x", x)
    may = ((1, groups), (m, groups))
    require(scale is None or (scale.dtype == torch.float32 and tuple(scale.shape) in may), what, "scale", scale)
    if scale is None or symmetric:
        require(zero is None, what, "zero", zero)
    else:
        fits = zero is not None and zero.dtype == torch.uint8 and zero.shape == scale.shape
        require(fits, what, "zero", zero)


def _empty(x: Tensor, groups: int, symmetric: bool, sums: bool) -> Rows:
    """The results, not yet filled; also what graphs know of them."""
    m, k = _shape(x)
    some, none = (m, groups), (0,)
    return (
        x.new_empty((m, k), dtype=torch.int8),
        x.new_empty(some, dtype=torch.float32),
        x.new_empty(none if symmetric else some, dtype=torch.int32),
        x.new_empty(some if sums else none, dtype=torch.int32),
    )


def _results(found: Rows, symmetric: bool, sums: bool) -> dict[str, Tensor | None]:
    codes, scale, zero, total = found
    return {"codes": codes, "scale": scale, "zero": None if symmetric else zero, "sums": total if sums else None}


def _ranges(scale: Tensor | None, zero: Tensor | None) -> dict[str, object]:
    """The table, if there is one; one row that serves all has no way to the next."""
    if scale is None:
        return {"table": None, "table_zero": None, "STRIDE": 0}
    stride = scale.shape[1] if scale.shape[0] > 1 else 0
    return {"table": scale.contiguous(), "table_zero": None if zero is None else zero.contiguous(), "STRIDE": stride}


def _same_rows(shift: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Both with rows equally far from each other: chunks of one modulation are so already."""
    if shift.stride(-1) == gain.stride(-1) == 1 and shift.stride(0) == gain.stride(0):
        return shift, gain
    return shift.contiguous(), gain.contiguous()


operator("triton_gelu(Tensor x, bool tanh) -> Tensor", gelu, lambda x, tanh: x.new_empty(x.shape))
_GRID = "int bits, bool symmetric"
_TABLE = "Tensor? scale, Tensor? zero"
_ROWS = "(Tensor, Tensor, Tensor, Tensor)"
operator(
    f"int8_rows(Tensor x, {_TABLE}, Tensor? between, {_GRID}, int groups, int gelu, bool halves, bool sums) -> {_ROWS}",
    int8_rows,
    lambda x, scale, zero, between, bits, symmetric, groups, gelu, halves, sums: _empty(x, groups, symmetric, sums),
)
operator(
    f"int8_modulated(Tensor x, Tensor shift, Tensor gain, {_TABLE}, float eps, {_GRID}, bool halves, bool sums) -> {_ROWS}",
    int8_modulated,
    lambda x, shift, gain, scale, zero, eps, bits, symmetric, halves, sums: _empty(x, 1, symmetric, sums),
)
operator(
    f"int8_rotated(Tensor x, Tensor signs, Tensor matrix, {_TABLE}, {_GRID}, bool sums) -> {_ROWS}",
    int8_rotated,
    lambda x, signs, matrix, scale, zero, bits, symmetric, sums: _empty(x, 1, symmetric, sums),
)
