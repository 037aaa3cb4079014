"""The ``Log2`` grid: powers of two below a top s, and 0.

    q = clamp(round(-log2(x / s)), 0, 2^b - 1)        x' = s 2^-q,  and 0 for the last code

So what lies below ``s 2^-(2^b - 1.5)``, and whatever is not positive, is exactly 0. Codes are uint8.
"""

import torch
from torch import Tensor

from dither.numerics.integer import divisor, flush, grouped
from dither.spec import PER_TENSOR, Log2

__all__ = ["dynamic_log2", "log2_codes", "log2_values"]


def dynamic_log2(x: Tensor, grid: Log2) -> Tensor:
    """The top of each group of x (..., K): (..., G), or (1, ..., 1) per tensor."""
    x = grouped(x.float(), grid.group)
    top = x.amax().reshape((1,) * (x.ndim - 1)) if grid.group == PER_TENSOR else x.amax(-1)
    return flush(top.clamp(min=0.0))


def log2_codes(x: Tensor, top: Tensor, grid: Log2) -> Tensor:
    """Codes (..., K) uint8 of a finite x."""
    share = grouped(x.float(), grid.group) / divisor(top.float()).unsqueeze(-1)
    last = (1 << grid.bits) - 1
    exponent = torch.log2(share.clamp(min=torch.finfo(torch.float32).tiny)).neg_().round_()
    return exponent.clamp_(0, last).to(torch.uint8).flatten(-2)


def log2_values(codes: Tensor, top: Tensor, grid: Log2) -> Tensor:
    """The float32 values (..., K) that codes stand for. This defines the grid."""
    q = grouped(codes.float(), grid.group)
    value = torch.exp2(-q) * top.float().unsqueeze(-1)
    return torch.where(q < (1 << grid.bits) - 1, value, 0.0).flatten(-2)
