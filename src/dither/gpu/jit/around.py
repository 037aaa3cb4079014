"""What lies between an activation and a product, one row at a time and in one pass: norm, scale, rotation, codes.

A row is a tile (lines, columns). Each line is what one small matrix rotates, or what has a range of its own; a rotation that
reaches over lines is a second product, from the other side. Values are rounded to the dtype of x wherever they would be if
each step were a call of its own, so that together and apart give the same codes.
"""

import triton
import triton.language as tl

from dither.gpu.jit.numbers import codes_of
from dither.gpu.jit.quantize import as_int8, write_ranges

__all__ = ["rows_around"]


@triton.jit
def narrowed(y, x):
    """As it would be read again, had it been written in the dtype of x."""
    return y.to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def modulated(y, x, shift, gain, c, mask, sample, SIZE, ACROSS, EPS):
    """``LayerNorm(y) (1 + gain) + shift`` of a row; 0 where a mask ends."""
    mean = tl.sum(y) / SIZE
    y = tl.where(mask, y - mean, 0.0)
    y = y * tl.rsqrt(tl.sum(y * y) / SIZE + EPS)
    g = tl.load(gain + sample.to(tl.int64) * ACROSS + c, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(shift + sample.to(tl.int64) * ACROSS + c, mask=mask, other=0.0).to(tl.float32)
    return narrowed(tl.where(mask, y * (1.0 + g) + b, 0.0), x)


@triton.jit
def upper_part(y):
    """What tf32 keeps of float32."""
    return (y.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def rotated(y, x, signs, inner, outer, c, mask, NORM, A: tl.constexpr, B: tl.constexpr):
    """``outer (y * signs) inner * NORM``. Entries are +1 and -1, so products are exact on tensor cores in half precision.

    What is float32 goes through them in two parts of tf32, which lose nothing that a sum in float32 would keep.
    """
    i, j, k = tl.arange(0, A), tl.arange(0, B), tl.arange(0, B)
    narrow: tl.constexpr = x.dtype.element_ty
    y = y * tl.load(signs + c, mask=mask, other=0).to(tl.float32)
    h = tl.load(inner + k[:, None] * B + j[None, :]).to(narrow)
    if narrow == tl.float32:
        high = upper_part(y)
        y = tl.dot(high, h, tl.dot(y - high, h, input_precision="tf32"), input_precision="tf32")
    else:
        y = tl.dot(y.to(narrow), h)
    if outer is not None:
        l = tl.arange(0, A)  # noqa: E741
        g = tl.load(outer + i[:, None] * A + l[None, :]).to(tl.float32)
        high = upper_part(y)
        y = tl.dot(g, high, tl.dot(g, y - high, input_precision="tf32"), input_precision="tf32")
    return narrowed(y * NORM, x)


@triton.jit
def read_lines(
    x, shift, gain, pre, signs, inner, outer, r, i, SIZE, LINES, COLUMNS, TOKENS, ACROSS, EPS, NORM,
    A: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """Lines i of row r, normed, scaled and rotated; where they are in the row; and a mask of what is there."""
    j = tl.arange(0, B)
    c = i[:, None] * COLUMNS + j[None, :]
    mask = (i[:, None] < LINES) & (j[None, :] < COLUMNS)
    y = tl.load(x + r.to(tl.int64) * SIZE + c, mask=mask, other=0.0).to(tl.float32)
    if shift is not None:
        y = modulated(y, x, shift, gain, c, mask, r // TOKENS, SIZE, ACROSS, EPS)
    if pre is not None:
        y = narrowed(y * narrowed(tl.load(pre + c, mask=mask, other=0.0), x), x)
    if signs is not None:
        y = rotated(y, x, signs, inner, outer, c, mask, NORM, A, B)
    return y, c, mask


@triton.jit
def extent(y, GROUPED: tl.constexpr):
    """Least value, greatest value, and 0, or NaN where something is not finite: of each line (A,), or of all (1,)."""
    wrong = tl.where(tl.abs(y) < float("inf"), 0.0, float("nan"))
    if GROUPED:
        return tl.min(y, 1), tl.max(y, 1), tl.sum(wrong, 1)
    else:
        one = tl.zeros((1,), tl.float32)
        return one + tl.min(y), one + tl.max(y), one + tl.sum(wrong)


@triton.jit
def places(r, i, LINES, GROUPED: tl.constexpr):
    """Where scales and sums of lines i of row r are, or those of the row; and a mask of what is there."""
    if GROUPED:
        return r * LINES + i, i < LINES
    else:
        at = r + tl.arange(0, 1)
        return at, at >= 0


@triton.jit
def write_codes(
    y, s, z, r, c, mask, codes, SIZE, BITS: tl.constexpr, SYMMETRIC: tl.constexpr, GROUPED: tl.constexpr,
    HALVES: tl.constexpr,
):  # fmt: skip
    """Codes of some lines; their sums are returned, as ``extent`` does."""
    q = as_int8(codes_of(y, s[:, None], z[:, None], BITS, SYMMETRIC), BITS, SYMMETRIC)
    place = c
    if HALVES:
        place = (c % 2) * (SIZE // 2) + c // 2
    tl.store(codes + r.to(tl.int64) * SIZE + place, q, mask=mask)
    kept = tl.where(mask, q, 0).to(tl.int32)
    if GROUPED:
        return tl.sum(kept, 1)
    else:
        return tl.zeros((1,), tl.int32) + tl.sum(kept)


@triton.jit
def rows_around(
    x, shift, gain, pre, signs, inner, outer, values, codes, scale, zero, sums, table, table_zero,
    SIZE, LINES, COLUMNS, TOKENS, ACROSS, STRIDE, EPS, NORM,
    BITS: tl.constexpr, SYMMETRIC: tl.constexpr, GROUPED: tl.constexpr, HALVES: tl.constexpr,
    A: tl.constexpr, B: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A row (SIZE,) of x, LINES of COLUMNS, which PARTS tiles (A, B) hold.

    Parts of a row that has one range are made twice, for the range and for the codes: what is read again is in a cache, and
    what would be kept does not fit registers.

    Args:
        shift, gain: a row for every sample of TOKENS rows, ACROSS elements from one to the next; None: no norm.
        pre: (SIZE,) float32, what is multiplied by, rounded to the dtype of x; None: nothing.
        signs, inner, outer: (SIZE,), (B, B) and (A, A) int8, 0 beyond what is there; None: no rotation, or not over lines.
        values: where the result goes in the dtype of x, or None.
        codes: where its codes go, or None; the rest as of ``quantize_rows``.
        GROUPED: each line has a range of its own.
        HALVES: codes of even columns come first, odd ones behind.
        PARTS: 1 where there is a norm or an outer matrix, which need the whole row.
    """
    r = tl.program_id(0)
    many = LINES if GROUPED else 1
    low = tl.zeros((1,), tl.float32)
    high, bad = low, low
    for part in range(PARTS):
        i = part * A + tl.arange(0, A)
        y, c, mask = read_lines(
            x, shift, gain, pre, signs, inner, outer, r, i, SIZE, LINES, COLUMNS, TOKENS, ACROSS, EPS, NORM, A, B
        )  # fmt: skip
        if values is not None:
            tl.store(values + r.to(tl.int64) * SIZE + c, y.to(values.dtype.element_ty), mask=mask)
        if codes is not None:
            least, most, wrong = extent(y, GROUPED)
            least, most = tl.minimum(least, 0.0), tl.maximum(most, 0.0)
            if GROUPED or PARTS == 1:
                at, kept = places(r, i, LINES, GROUPED)
                s, z = write_ranges(
                    least, most, wrong, at, kept, scale, zero, table, table_zero, STRIDE, many, BITS, SYMMETRIC
                )  # fmt: skip
                total = write_codes(y, s, z, r, c, mask, codes, SIZE, BITS, SYMMETRIC, GROUPED, HALVES)
                if sums is not None:
                    tl.store(sums + at, total, mask=kept)
            else:
                low, high, bad = tl.minimum(low, least), tl.maximum(high, most), bad + wrong
    if codes is not None and not GROUPED and PARTS > 1:
        at, kept = places(r, tl.arange(0, A), LINES, GROUPED)
        s, z = write_ranges(
            low, high, bad, at, kept, scale, zero, table, table_zero, STRIDE, many, BITS, SYMMETRIC
        )  # fmt: skip
        total = tl.zeros((1,), tl.int32)
        for part in range(PARTS):
            i = part * A + tl.arange(0, A)
            y, c, mask = read_lines(
                x, shift, gain, pre, signs, inner, outer, r, i, SIZE, LINES, COLUMNS, TOKENS, ACROSS, EPS, NORM, A, B
            )  # fmt: skip
            total += write_codes(y, s, z, r, c, mask, codes, SIZE, BITS, SYMMETRIC, GROUPED, HALVES)
        if sums is not None:
            tl.store(sums + at, total, mask=kept)
