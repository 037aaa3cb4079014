"""Confidence intervals of a mean over pictures.

BCa bootstrap (Efron 1987): resample the pictures, take percentiles of the resampled means, and correct these for
bias (z0) and for skew (acceleration a; for a mean, a sixth of the skewness over sqrt(n)). PSNR over pictures is
skewed, which the plain t interval ignores; the t interval is here for small samples and as a check.

The sample is one number per picture. For a comparison, pass the differences of pairs drawn with the same seeds:
pairing removes the spread between pictures, which is far larger than the effect.
"""

import numpy as np
from scipy import stats

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = ["bootstrap_mean_interval", "t_interval"]

RESAMPLES = 2000
CHUNK = 2_000_000  # numbers drawn at a time: bounds memory at any sample size


def bootstrap_mean_interval(
    sample: Float64, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """BCa bootstrap interval of the mean of `sample` (N,); the same seed gives the same interval.

    A constant sample gives an interval of no width.
    """
    x = _checked(sample)
    mean = x.mean()
    centred = x - mean
    if not centred.any():
        return float(mean), float(mean)
    means = _resampled_means(centred, resamples, np.random.default_rng(seed))
    # Ties count half: with few distinct values, such as right or wrong, many resampled means equal the mean.
    tie = 1e-12 * np.abs(centred).max()
    below = (np.sum(means < -tie) + 0.5 * np.sum(np.abs(means) <= tie)) / resamples
    z0 = stats.norm.ppf(np.clip(below, 1 / resamples, 1 - 1 / resamples))
    acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
    z = stats.norm.ppf([(1 - level) / 2, (1 + level) / 2])
    shifted = stats.norm.cdf(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
    low, high = mean + np.quantile(means, shifted)
    return float(low), float(high)


def t_interval(sample: Float64, *, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of `sample` (N,)."""
    x = _checked(sample)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    return float(x.mean() - half), float(x.mean() + half)


def _resampled_means(x: Float64, resamples: int, rng: np.random.Generator) -> Float64:
    rows = max(1, CHUNK // len(x))
    parts = [
        x[rng.integers(0, len(x), (min(rows, resamples - start), len(x)))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts)


def _checked(sample: Float64) -> Float64:
    x = np.asarray(sample, dtype=np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise BadValue(f"an interval needs at least 2 values in one row, got shape {x.shape}.")
    if not np.isfinite(x).all():
        raise BadValue("an interval cannot be taken of NaN or infinite values.")
    return x
