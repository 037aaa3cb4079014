"""What formats of Gaussian values share: a unit for their int8, and a deviation for each row, by which it is divided.

The row's scale is refitted by least squares after the search, and bfloat16: what is searched is what is stored.
"""

import torch
from torch import Tensor

from dither.numerics.integer import divisor

__all__ = ["UNIT", "evened", "refitted", "stored_scale"]

UNIT = 29
"""Value of one standard deviation; the largest of 2^16 quantiles is 125."""


def evened(w: Tensor) -> Tensor:
    """w (N, K) with every row of variance 1, or 0."""
    return w / divisor(w.square().mean(1, keepdim=True).sqrt())


def refitted(w: Tensor, values: Tensor) -> Tensor:
    """Deviation (N, 1) of each row of w (N, K) that serves it best with such values (N, K), of variance 1; not negative."""
    best = (w * values).sum(1, keepdim=True) / values.square().sum(1, keepdim=True).clamp(min=1e-6)
    return best.clamp(min=0)


def stored_scale(deviation: Tensor) -> Tensor:
    """(N, 1) bfloat16, by which int8 values are multiplied."""
    return (deviation / UNIT).to(torch.bfloat16)
