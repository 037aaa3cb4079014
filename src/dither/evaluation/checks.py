"""What every metric asks of the rows of features it is given, and the sentence when they are too few."""

from typing import Any

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = ["TooFewSamples", "feature_rows", "same_width"]


class TooFewSamples(BadValue):
    """Fewer samples than a metric needs to mean anything; the message says how many it needs."""


def feature_rows(array: npt.NDArray[Any], metric: str, at_least: int = 2) -> Float64:
    """Rows (N, D) in float64, finite and at least so many.

    Raises:
        TooFewSamples: fewer rows than `metric` needs.
        BadValue: another shape, or NaN or infinite values.
    """
    x = np.asarray(array, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 1:
        raise BadValue(f"{metric} needs rows of shape (N, D), got {x.shape}.")
    if len(x) < at_least:
        raise TooFewSamples(f"{metric} needs at least {at_least} samples, got {len(x)}.")
    if not np.isfinite(x).all():
        raise BadValue(f"{metric} cannot be taken of NaN or infinite values.")
    return x


def same_width(a: Float64, b: Float64, metric: str) -> None:
    """Raise BadValue unless both (N, D) and (M, D) have one D."""
    if a.shape[1] != b.shape[1]:
        raise BadValue(f"{metric} cannot compare features of {a.shape[1]} and {b.shape[1]} dimensions.")
