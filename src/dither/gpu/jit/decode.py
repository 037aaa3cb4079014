"""Packed weights become int8, whatever they are stored as: integers of 1 to 8 bits, words, or trellises.

A line of codes is one little-endian stream of bits (``numerics.pack``). Integers that are read at fewer bits get their low
bits replaced (``ONES``, ``TURN``: ``numerics.nested``); zero points are subtracted where the difference still fits int8.
"""

import triton
import triton.language as tl

__all__ = ["decode_weight", "field", "value_of"]

INTEGERS = tl.constexpr(0)
WORDS = tl.constexpr(1)
TRELLIS = tl.constexpr(2)


@triton.jit
def field(line, index, mask, BITS: tl.constexpr):
    """Code ``index`` of a line, int32."""
    if BITS == 8:
        return tl.load(line + index, mask=mask, other=0).to(tl.int32)
    bit = index * BITS
    shift = bit & 7
    at = line + (bit >> 3)
    found = tl.load(at, mask=mask, other=0).to(tl.int32) >> shift
    if 8 % BITS != 0:
        for j in tl.static_range(1, (BITS + 6) // 8 + 1):  # bytes that a code may reach into
            more = mask & (shift + BITS > 8 * j)
            found |= (tl.load(at + j, mask=more, other=0).to(tl.int32) << (8 * j)) >> shift
    return found & ((1 << BITS) - 1)


@triton.jit
def value_of(
    codes, table, n, k, mask, LINE, KIND: tl.constexpr, BITS: tl.constexpr, FLIP: tl.constexpr, SUB: tl.constexpr,
    ONES: tl.constexpr, TURN: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """What is stored at rows n and columns k, int32 without zero points.

    Args:
        LINE: bytes from one line of codes to the next.
        DIM: length of a word; rows of a trellis tile.
        COLUMNS: of a trellis tile.
        STATES: bits of a trellis window.
    """
    if KIND == INTEGERS:
        q = field(codes + n.to(tl.int64) * LINE, k, mask, BITS)
        return (((q | ONES) ^ TURN) ^ FLIP) - SUB
    elif KIND == WORDS:
        word = field(codes + n.to(tl.int64) * LINE, k // DIM, mask, BITS)
        return tl.load(table + word * DIM + k % DIM, mask=mask, other=0).to(tl.int32)
    else:
        length: tl.constexpr = DIM * COLUMNS
        line = codes + (n // DIM).to(tl.int64) * LINE
        t = (n % DIM) * COLUMNS + k % COLUMNS
        tile = (k // COLUMNS) * length
        window = tl.zeros_like(t)
        for j in tl.static_range((STATES + BITS - 1) // BITS):
            before = (t + length * STATES - j) % length  # a ring; never negative
            window |= field(line, tile + before, mask, BITS) << (j * BITS)
        window = window & ((1 << STATES) - 1)
        return tl.load(table + window, mask=mask, other=0).to(tl.int32)


@triton.jit
def decode_weight(
    codes, zero, table, out, N, K, LINE, GROUP, GROUPS, KIND: tl.constexpr, BITS: tl.constexpr, FLIP: tl.constexpr,
    SUB: tl.constexpr, ONES: tl.constexpr, TURN: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr,
    STATES: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A tile (ROWS, BLOCK) of the weight (N, K) int8; ``zero`` (N, GROUPS) uint8 is subtracted where it is given."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (n < N)[:, None] & (k < K)[None, :]
    rows = n[:, None] + tl.zeros_like(k)[None, :]
    columns = k[None, :] + tl.zeros_like(n)[:, None]
    v = value_of(
        codes, table, rows, columns, mask, LINE, KIND, BITS, FLIP, SUB, ONES, TURN, DIM, COLUMNS, STATES
    )  # fmt: skip
    if zero is not None:
        v -= tl.load(zero + rows * GROUPS + columns // GROUP, mask=mask, other=0).to(tl.int32)
    tl.store(out + rows.to(tl.int64) * K + columns, v.to(tl.int8), mask=mask)
