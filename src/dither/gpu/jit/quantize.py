"""Inputs become int8 codes, row by row: of x itself, of its GELU, of either times a scale.

Every row has its range, dynamic or from a table, and is written with it. Unsigned 8-bit codes move by -128, zero points with
them. A row that holds what is not finite gets the scale NaN, so that its outputs are NaN instead of wrong.
"""

import triton
import triton.language as tl

from dither.gpu.jit.numbers import codes_of, gelu_erf, gelu_tanh, grid_of

__all__ = ["as_int8", "gelu_all", "quantize_rows", "write_ranges"]


@triton.jit
def write_ranges(
    low, high, bad, r, mask, scale, zero, table, table_zero, STRIDE, GROUPS, BITS: tl.constexpr, SYMMETRIC: tl.constexpr
):  # fmt: skip
    """Scale and zero point of some rows, as float32, found or looked up; stored."""
    if table is not None:
        at = (r // GROUPS) * STRIDE + r % GROUPS
        s = tl.load(table + at, mask=mask, other=0.0)
        z = tl.zeros_like(s)
        if table_zero is not None:
            z = tl.load(table_zero + at, mask=mask, other=0).to(tl.float32)
    else:
        s, z = grid_of(low, high, BITS, SYMMETRIC)
    tl.store(scale + r, s + bad, mask=mask)
    if not SYMMETRIC:
        moved: tl.constexpr = 128 if BITS == 8 else 0
        tl.store(zero + r, z.to(tl.int32) - moved, mask=mask)
    return s, z


@triton.jit
def as_int8(q, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Codes as they are stored."""
    if BITS == 8 and not SYMMETRIC:
        q = q - 128.0
    return q.to(tl.int8)


@triton.jit
def write_rows(
    y, r, c, rows, columns, codes, scale, zero, sums, table, table_zero, SIZE, STRIDE, GROUPS,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """Quantize a tile y (rows, columns) of whole rows; 0 where a mask ends. ``c`` says where columns are written."""
    low = tl.minimum(tl.min(y, 1), 0.0)
    high = tl.maximum(tl.max(y, 1), 0.0)
    bad = tl.sum(tl.where(tl.abs(y) < float("inf"), 0.0, float("nan")), 1)  # 0, or NaN
    s, z = write_ranges(
        low, high, bad, r, rows, scale, zero, table, table_zero, STRIDE, GROUPS, BITS, SYMMETRIC
    )  # fmt: skip
    q = as_int8(codes_of(y, s[:, None], z[:, None], BITS, SYMMETRIC), BITS, SYMMETRIC)
    mask = rows[:, None] & columns[None, :]
    tl.store(codes + r.to(tl.int64)[:, None] * SIZE + c[None, :], q, mask=mask)
    if sums is not None:
        tl.store(sums + r, tl.sum(tl.where(mask, q, 0).to(tl.int32), 1), mask=rows)


@triton.jit
def read_rows(x, COUNT, SIZE, HALVES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's rows of x (COUNT, SIZE) as float32, 0 where a mask ends; and r, c, where c is read, and both masks.

    HALVES: even columns come first, odd ones behind, as packed 4-bit weights want them.
    """
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    rows, columns = r < COUNT, c < SIZE
    at = c
    if HALVES:
        half = SIZE // 2
        at = (c % half) * 2 + c // half
    mask = rows[:, None] & columns[None, :]
    y = tl.load(x + r.to(tl.int64)[:, None] * SIZE + at[None, :], mask=mask, other=0.0).to(tl.float32)
    return y, r, c, at, rows, columns


@triton.jit
def quantize_rows(
    x, codes, scale, zero, sums, table, table_zero, between, COUNT, SIZE, STRIDE, GROUPS,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr, GELU: tl.constexpr, HALVES: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows (COUNT, SIZE) of x, each a token or one of its GROUPS groups.

    Args:
        table, table_zero: static ranges, a row of GROUPS for every STRIDE; None: dynamic.
        between: what columns are multiplied by behind GELU, rounded to the dtype of x; or None.
        GELU: 0 none, 1 by tanh, 2 by erf; rounded to the dtype of x.
        HALVES: as of ``read_rows``.
    """
    y, r, c, at, rows, columns = read_rows(x, COUNT, SIZE, HALVES, ROWS, BLOCK)
    if GELU == 1:
        y = gelu_tanh(y).to(x.dtype.element_ty).to(tl.float32)
    if GELU == 2:
        y = gelu_erf(y).to(x.dtype.element_ty).to(tl.float32)
    if between is not None:
        narrow = tl.load(between + at, mask=columns, other=0.0).to(x.dtype.element_ty).to(tl.float32)
        y = (y * narrow[None, :]).to(x.dtype.element_ty).to(tl.float32)
    write_rows(
        y, r, c, rows, columns, codes, scale, zero, sums, table, table_zero, SIZE, STRIDE, GROUPS, BITS, SYMMETRIC
    )  # fmt: skip


@triton.jit
def gelu_all(x, out, COUNT, GELU: tl.constexpr, BLOCK: tl.constexpr):
    """GELU of COUNT elements, by tanh (1) or by erf (2): that of an epilogue, alone."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x + at, mask=at < COUNT, other=0.0).to(tl.float32)
    y = gelu_tanh(y) if GELU == 1 else gelu_erf(y)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=at < COUNT)
