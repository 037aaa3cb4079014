"""Arithmetic that kernels share: rounding half to even, codes of the ``Int`` grid, GELU."""

import triton
import triton.language as tl

__all__ = ["codes_of", "gelu_erf", "gelu_tanh", "grid_of", "round_even"]


@triton.jit
def round_even(x):
    """Half to even for |x| < 2^22: behind 1.5 * 2^23 a float32 has no room for a fraction."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def gelu_tanh(x):
    """``x / 2 (1 + tanh(u)) = x / (1 + exp(-2 u))``, u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x / (1.0 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))


@triton.jit
def gelu_erf(x):
    """``x / 2 (1 + erf(x / sqrt(2)))``."""
    return 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))


@triton.jit
def grid_of(low, high, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Scale and zero point (float32) of ranges [low, high] that contain 0, as ``numerics.grid`` has them."""
    if SYMMETRIC:
        scale = tl.div_rn(tl.maximum(-low, high), float((1 << (BITS - 1)) - 1))
    else:
        scale = tl.div_rn(tl.minimum(high - low, 3.4028234663852886e38), float((1 << BITS) - 1))
    scale = tl.where(scale < 1.1754943508222875e-38, 0.0, scale)
    if SYMMETRIC:
        zero = tl.zeros_like(scale)
    else:
        zero = round_even(tl.div_rn(-low, tl.where(scale == 0.0, float("inf"), scale)))
        zero = tl.minimum(tl.maximum(zero, 0.0), float((1 << BITS) - 1))
    return scale, zero


@triton.jit
def codes_of(x, scale, zero, BITS: tl.constexpr, SYMMETRIC: tl.constexpr):
    """Nearest codes as float32, all broadcast. A scale of 0 gives the code of 0; what is not a number gives some code."""
    if SYMMETRIC:
        least = -float(1 << (BITS - 1))
        most = float((1 << (BITS - 1)) - 1)
    else:
        least = 0.0
        most = float((1 << BITS) - 1)
    q = tl.div_rn(x, tl.where(scale == 0.0, float("inf"), scale))
    q = tl.where(q == q, q, 0.0)  # noqa: PLR0124  # NaN has no place among integers
    q = round_even(tl.minimum(tl.maximum(q, -1024.0), 1024.0)) + zero  # far outside: rounding is exact up to 2^22
    return tl.minimum(tl.maximum(q, least), most)
