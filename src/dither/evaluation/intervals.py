"""Confidence intervals of a mean over pictures.

BCa bootstrap (Efron 1987): resample the pictures, take percentiles of the resampled means, and correct these for
bias (z0) and for skew (acceleration a; for a mean, a sixth of the skewness over sqrt(n)). PSNR over pictures is
skewed, which the plain t interval ignores; the t interval is here for small samples and as a check. A bootstrap does not
know that the spread is estimated too, so percentiles are taken for z sqrt(n / (n - 1)) with z of Student's t (Hesterberg
2015, arXiv 1411.5279): without that, 16 pictures cover 91% instead of 95%.

The sample is one number per picture. For a comparison, pass the differences of pairs drawn with the same seeds:
pairing removes the spread between pictures, which is far larger than the effect. Several seeds of one prompt are no
independent pictures: `cluster_interval`. Right or wrong is no measurement: `paired_proportion_interval`.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = [
    "bootstrap_mean_interval",
    "cluster_interval",
    "paired_mean_interval",
    "paired_proportion_interval",
    "t_interval",
]

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
    z = stats.t.ppf([(1 - level) / 2, (1 + level) / 2], len(x) - 1) * np.sqrt(len(x) / (len(x) - 1))
    shifted = stats.norm.cdf(z0 + (z0 + z) / (1 - acceleration * (z0 + z)))
    low, high = mean + np.quantile(means, shifted)
    return float(low), float(high)


def paired_mean_interval(
    a: Float64, b: Float64, *, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Mean of `b` - `a` (N,), values of the same pictures, and its BCa interval."""
    if np.shape(a) != np.shape(b):
        raise BadValue(f"values of shape {np.shape(a)} and {np.shape(b)} cannot be paired.")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    interval = bootstrap_mean_interval(differences, level=level, seed=seed)
    return float(differences.mean()), interval


def cluster_interval(
    sample: Float64, clusters: Sequence[Hashable], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """BCa interval of the mean of `sample` (N,) where pictures of one cluster (prompt, class) go together.

    Each cluster gives one value: the mean, and how far the cluster pulls at it; only clusters are independent.
    """
    x = _checked(sample)
    if len(clusters) != len(x):
        raise BadValue(f"{len(x)} values cannot belong to {len(clusters)} clusters: each needs one.")
    places = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    if len(places) < 2:
        raise BadValue("an interval over clusters needs at least 2 of them.")
    pulls = np.zeros(len(places))
    np.add.at(pulls, [places[name] for name in clusters], x - x.mean())
    return bootstrap_mean_interval(x.mean() + pulls * (len(places) / len(x)), level=level, seed=seed)


def paired_proportion_interval(gained: int, lost: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of (`gained` - `lost`) / n, a difference of two shares among the same `n` pictures.

    Args:
        gained: pictures right in the second set only.
        lost: pictures right in the first set only.
        n: all pictures.
        level: of the interval.

    Wald's with half a picture added to each cell of the table (Agresti and Min 2005). Unlike a bootstrap it has width where
    nothing was gained or lost; where fewer than about 5 pictures were, it errs on the wide side.
    """
    if not (n >= 1 and gained >= 0 and lost >= 0 and gained + lost <= n):
        raise BadValue(f"{gained} gained and {lost} lost cannot be counted among {n} pictures.")
    up, down = (gained + 0.5) / (n + 2), (lost + 0.5) / (n + 2)
    half = stats.norm.ppf((1 + level) / 2) * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(float(up - down - half), -1.0), min(float(up - down + half), 1.0)


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
