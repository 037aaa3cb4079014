"""The product: int8 (M, K) times int8 (N, K) transposed in int32, and all that follows it before anything is written.

    y = s_x s_w [ sum a c - z_x sum c - z_w sum a + K z_x z_w ] + bias         then GELU         then residual + gate * y

Sums are exact. With groups the bracket and both scales are taken segment by segment, and segments add in float32. Both
operands have K innermost, as tensor cores want 8-bit ones.
"""

import triton
import triton.language as tl

from dither.gpu.jit.numbers import codes_of, gelu_erf, gelu_tanh
from dither.gpu.jit.quantize import as_int8

__all__ = ["multiply", "multiply_groups", "multiply_nibbles"]


@triton.jit
def place(M, N, BM: tl.constexpr, BN: tl.constexpr):
    """Rows and columns of the tile that a program computes: eight rows of tiles share what they read of the other operand."""
    across, down = tl.cdiv(M, BM), tl.cdiv(N, BN)
    pid = tl.program_id(0)
    width = 8 * down
    first = (pid // width) * 8
    size = tl.minimum(across - first, 8)
    m = (first + (pid % width) % size) * BM + tl.arange(0, BM)
    return m, (pid % width) // size * BN + tl.arange(0, BN)


@triton.jit
def corrected(acc, za, wsum, zw, asum, COUNT):
    """The bracket, int32; ``za``, ``asum`` broadcast along outputs, ``zw``, ``wsum`` along rows; None: not needed."""
    if za is not None:
        acc -= za * wsum
    if zw is not None:
        if za is not None:
            acc -= zw * (asum - COUNT * za)
        else:
            acc -= zw * asum
    return acc


@triton.jit
def finish(
    y, out, bias, left, right, gate, residual, out_scale, out_zero, marks, m, n, mask_m, mask_n, N, SPAN, ACROSS, OUT_STRIDE,
    GELU: tl.constexpr, RANK: tl.constexpr, OUT_BITS: tl.constexpr, OUT_SYMMETRIC: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """Everything behind the scales, of a tile y (m, n) float32, and the store.

    Codes of the output are those of values rounded to NARROW. A row with values that are not finite gets the mark NaN.
    """
    mask = mask_m[:, None] & mask_n[None, :]
    if bias is not None:
        y += tl.load(bias + n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
    if left is not None:
        c = tl.arange(0, RANK)
        a = tl.load(left + m.to(tl.int64)[:, None] * RANK + c[None, :], mask=mask_m[:, None], other=0.0)
        b = tl.load(right + n[None, :] * RANK + c[:, None], mask=mask_n[None, :], other=0.0)
        y = tl.dot(a, b, y, input_precision="ieee")
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    if GELU != 0:
        y = y.to(NARROW).to(tl.float32)  # as the linear alone would have given it
        y = gelu_tanh(y) if GELU == 1 else gelu_erf(y)
    if gate is not None or residual is not None:
        y = y.to(NARROW).to(tl.float32)  # so too
    if gate is not None:
        sample = (m // SPAN).to(tl.int64)[:, None] * ACROSS + n[None, :]
        y = y * tl.load(gate + sample, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        y = y + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)
    if out_scale is not None:
        y = y.to(NARROW).to(tl.float32)
        bad = tl.max(tl.where(mask & (tl.abs(y) < float("inf")), 0, mask.to(tl.int32)), 1)
        tl.store(marks + m, tl.full(m.shape, float("nan"), tl.float32), mask=mask_m & (bad > 0))
        s = tl.load(out_scale + m * OUT_STRIDE, mask=mask_m, other=0.0)
        z = tl.zeros_like(s)
        if out_zero is not None:
            z = tl.load(out_zero + m * OUT_STRIDE, mask=mask_m, other=0).to(tl.float32)
        q = codes_of(y, s[:, None], z[:, None], OUT_BITS, OUT_SYMMETRIC)
        tl.store(out + at, as_int8(q, OUT_BITS, OUT_SYMMETRIC), mask=mask)
    else:
        tl.store(out + at, y.to(NARROW), mask=mask)


@triton.jit
def scaled(
    acc, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, m, n, mask_m, mask_n, M_STRIDE, N_STRIDE, S_STRIDE, ga, gw, s, N,
    COUNT,
):  # fmt: skip
    """One segment's integer sums (m, n) as float32, corrected and scaled; ``ga``, ``gw``, ``s`` say which groups it is in."""
    za = None
    wsum = None
    zw = None
    asum = None
    if a_zero is not None:
        za = tl.load(a_zero + m * M_STRIDE + ga, mask=mask_m, other=0)[:, None]
        wsum = tl.load(w_sum + s * N + n, mask=mask_n, other=0)[None, :]
    if w_zero is not None:
        zw = tl.load(w_zero + n * N_STRIDE + gw, mask=mask_n, other=0)[None, :]
        asum = tl.load(a_sum + m * S_STRIDE + s, mask=mask_m, other=0)[:, None]
    y = corrected(acc, za, wsum, zw, asum, COUNT).to(tl.float32)
    y = y * tl.load(a_scale + m * M_STRIDE + ga, mask=mask_m, other=0.0)[:, None]
    return y * tl.load(w_scale + n * N_STRIDE + gw, mask=mask_n, other=0.0)[None, :]


@triton.jit
def multiply(
    a, w, out, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, bias, left, right, gate, residual, out_scale, out_zero,
    marks, M, N, K, SPAN, ACROSS, OUT_STRIDE,
    GELU: tl.constexpr, RANK: tl.constexpr, OUT_BITS: tl.constexpr, OUT_SYMMETRIC: tl.constexpr, NARROW: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """One tile (BM, BN); one scale a row on either side."""
    m, n = place(M, N, BM, BN)
    k = tl.arange(0, BK)
    a_at = a + (m % M).to(tl.int64)[:, None] * K + k[None, :]  # rows beyond the last are read again, and not written
    w_at = w + (n % N).to(tl.int64)[None, :] * K + k[:, None]
    acc = tl.zeros((BM, BN), tl.int32)
    for start in range(0, K, BK):
        if EVEN:
            acc = tl.dot(tl.load(a_at), tl.load(w_at), acc, out_dtype=tl.int32)
        else:
            left_over = k < K - start
            x = tl.load(a_at, mask=left_over[None, :], other=0)
            acc = tl.dot(x, tl.load(w_at, mask=left_over[:, None], other=0), acc, out_dtype=tl.int32)
        a_at += BK
        w_at += BK
    mask_m, mask_n = m < M, n < N
    y = scaled(
        acc, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, m, n, mask_m, mask_n, 1, 1, 1, 0, 0, 0, N, K
    )  # fmt: skip
    finish(
        y, out, bias, left, right, gate, residual, out_scale, out_zero, marks, m, n, mask_m, mask_n, N, SPAN, ACROSS,
        OUT_STRIDE, GELU, RANK, OUT_BITS, OUT_SYMMETRIC, NARROW,
    )  # fmt: skip


@triton.jit
def multiply_nibbles(
    a, w, out, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, bias, left, right, gate, residual, out_scale, out_zero,
    marks, M, N, K, SPAN, ACROSS, OUT_STRIDE,
    GELU: tl.constexpr, RANK: tl.constexpr, OUT_BITS: tl.constexpr, OUT_SYMMETRIC: tl.constexpr, NARROW: tl.constexpr,
    EVEN: tl.constexpr,
    UNSIGNED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same with 4-bit weights (N, K / 2), two columns a byte, that are never unpacked.

    A nibble in the upper half of a byte, read as int8, is 16 times itself; so sums are 16 times too large, exactly. Inputs
    have their even columns first, odd ones behind. Unsigned codes become signed by flipping their highest bits: they move
    by -8. The weight is the first operand, in registers, where it is shifted; the tile is computed transposed.
    """
    m, n = place(M, N, BM, BN)
    k = tl.arange(0, BK)  # of pairs
    half = K // 2
    a_at = a + (m % M).to(tl.int64)[None, :] * K + k[:, None]
    w_at = w + (n % N).to(tl.int64)[:, None] * half + k[None, :]
    acc = tl.zeros((BN, BM), tl.int32)
    for start in range(0, half, BK):
        if EVEN:
            pairs = tl.load(w_at)
            low, high = tl.load(a_at), tl.load(a_at + half)
        else:
            left_over = k < half - start
            pairs = tl.load(w_at, mask=left_over[None, :], other=0)
            low = tl.load(a_at, mask=left_over[:, None], other=0)
            high = tl.load(a_at + half, mask=left_over[:, None], other=0)
        if UNSIGNED:
            pairs = pairs ^ 0x88  # beyond the last column too, where inputs are 0
        acc = tl.dot((pairs << 4).to(tl.int8, bitcast=True), low, acc, out_dtype=tl.int32)
        acc = tl.dot((pairs & 0xF0).to(tl.int8, bitcast=True), high, acc, out_dtype=tl.int32)
        a_at += BK
        w_at += BK
    acc = tl.trans(acc) >> 4
    mask_m, mask_n = m < M, n < N
    y = scaled(
        acc, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, m, n, mask_m, mask_n, 1, 1, 1, 0, 0, 0, N, K
    )  # fmt: skip
    finish(
        y, out, bias, left, right, gate, residual, out_scale, out_zero, marks, m, n, mask_m, mask_n, N, SPAN, ACROSS,
        OUT_STRIDE, GELU, RANK, OUT_BITS, OUT_SYMMETRIC, NARROW,
    )  # fmt: skip


@triton.jit
def multiply_groups(
    a, w, out, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, bias, left, right, gate, residual, out_scale, out_zero,
    marks, M, N, K, SPAN, ACROSS, OUT_STRIDE, SEGMENTS, SIZE, A_GROUPS, W_GROUPS,
    GELU: tl.constexpr, RANK: tl.constexpr, OUT_BITS: tl.constexpr, OUT_SYMMETRIC: tl.constexpr, NARROW: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The same with groups of columns on either side: SEGMENTS runs of SIZE columns lie in one group each."""
    m, n = place(M, N, BM, BN)
    k = tl.arange(0, BK)
    mask_m, mask_n = m < M, n < N
    a_row = a + (m % M).to(tl.int64)[:, None] * K
    w_row = w + (n % N).to(tl.int64)[None, :] * K
    y = tl.zeros((BM, BN), tl.float32)
    for s in range(0, SEGMENTS):
        acc = tl.zeros((BM, BN), tl.int32)
        for start in range(0, SIZE, BK):
            at = s * SIZE + start + k
            if EVEN:
                acc = tl.dot(tl.load(a_row + at[None, :]), tl.load(w_row + at[:, None]), acc, out_dtype=tl.int32)
            else:
                inside = k < SIZE - start
                x = tl.load(a_row + at[None, :], mask=inside[None, :], other=0)
                acc = tl.dot(x, tl.load(w_row + at[:, None], mask=inside[:, None], other=0), acc, out_dtype=tl.int32)
        y += scaled(
            acc, a_scale, a_zero, a_sum, w_scale, w_zero, w_sum, m, n, mask_m, mask_n, A_GROUPS, W_GROUPS, SEGMENTS,
            s * A_GROUPS // SEGMENTS, s * W_GROUPS // SEGMENTS, s, N, SIZE,
        )  # fmt: skip
    finish(
        y, out, bias, left, right, gate, residual, out_scale, out_zero, marks, m, n, mask_m, mask_n, N, SPAN, ACROSS,
        OUT_STRIDE, GELU, RANK, OUT_BITS, OUT_SYMMETRIC, NARROW,
    )  # fmt: skip
