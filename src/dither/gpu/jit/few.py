"""Few rows with packed weights and inputs in full precision: what modulation is made of, bound by reading the weight.

    y[m, n] = sum over groups g of  s_w[n, g]  sum over k in g of  x[m, k] (c[n, k] - z_w[n, g])        + bias

Integers of magnitude up to 256 are exact in float16 and bfloat16, so tensor cores multiply in the dtype of x, sums are
float32, and only scales round.
"""

import triton
import triton.language as tl

from dither.gpu.jit.decode import value_of

__all__ = ["multiply_few"]


@triton.jit
def multiply_few(
    x, codes, scale, zero, table, bias, out, M, N, K, LINE, GROUPS, SIZE,
    KIND: tl.constexpr, BITS: tl.constexpr, FLIP: tl.constexpr, SUB: tl.constexpr, ONES: tl.constexpr,
    TURN: tl.constexpr, DIM: tl.constexpr, COLUMNS: tl.constexpr, STATES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """All M <= BM rows, BN outputs. ``scale`` and ``zero`` are (N, GROUPS), a group SIZE columns."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    k = tl.arange(0, BK)
    mask_m, mask_n = m < M, n < N
    rows = n[:, None] + tl.zeros_like(k)[None, :]
    y = tl.zeros((BN, BM), tl.float32)
    for g in range(0, GROUPS):
        part = tl.zeros((BN, BM), tl.float32)
        z = tl.zeros((BN,), tl.int32)
        if zero is not None:
            z = tl.load(zero + n * GROUPS + g, mask=mask_n, other=0).to(tl.int32)
        for start in range(0, SIZE, BK):
            inside = k < SIZE - start
            at = g * SIZE + start + k
            columns = at[None, :] + tl.zeros_like(n)[:, None]
            mask = mask_n[:, None] & inside[None, :]
            v = value_of(
                codes, table, rows, columns, mask, LINE, KIND, BITS, FLIP, SUB, ONES, TURN, DIM, COLUMNS, STATES
            )  # fmt: skip
            seen = tl.load(x + m[None, :] * K + at[:, None], mask=mask_m[None, :] & inside[:, None], other=0.0)
            part = tl.dot((v - z[:, None]).to(seen.dtype), seen, part, input_precision="ieee")
        y += part * tl.load(scale + n * GROUPS + g, mask=mask_n, other=0.0)[:, None]
    if bias is not None:
        y += tl.load(bias + n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    at = m[None, :] * N + n[:, None]
    tl.store(out + at, y.to(out.dtype.element_ty), mask=mask_m[None, :] & mask_n[:, None])
