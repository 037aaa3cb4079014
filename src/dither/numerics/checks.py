"""What every format asks of a weight before it touches it: two axes, at least one element, no NaN, no infinity."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dither.errors import BadFormat, BadValue

__all__ = ["require_finite", "require_matrix"]


def require_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """The shape as (N, K). Raises BadFormat unless there are two axes, neither of them empty."""
    if len(shape) != 2 or min(shape) < 1:
        raise BadFormat(f"weight of shape {tuple(shape)}: formats store a matrix (outputs, inputs) that is not empty")
    return shape[0], shape[1]


def require_finite(w: Tensor) -> None:
    """Raises BadValue, with a count, when ``w`` holds NaN or infinity."""
    bad = w.numel() - int(torch.isfinite(w).sum())
    if bad:
        raise BadValue(f"weight of shape {tuple(w.shape)} holds {bad} values that are NaN or infinite")
