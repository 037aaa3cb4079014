"""Frechet distance between Gaussian fits of features, with its bias, its standard error and intervals that hold.

    FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)            (Dowson and Landau 1982; FID: arXiv 1706.08500)

It is called FID only with one particular Inception network, so here it is FD and its features are named.

**Standard error.** The influence of picture i on FD to a fixed reference (m, C), with x_i the centred features and
T = C^(1/2) (C^(1/2) S C^(1/2))^(-1/2) C^(1/2) the optimal transport map from N(0, S) to N(0, C):

    IF_i = 2 x_i.(mu - m) + x_i^T (I - T) x_i   (centred),        SE = sd(IF) / sqrt(n)

Two distances from the same seeds are compared by the spread of the difference of their influences. The percentile
bootstrap is not used: resampling adds the bias once more, and its interval need not even contain the estimate.

**Bias.** E[FD of n samples] = FD + c/n. Between two samples of n and m of one distribution with eigenvalues l,

    E[FD] = (1/n + 1/m) (sum l_i + sum_ij l_i l_j / (2 (l_i + l_j)) + sum l_i / 4)        (Gaussian, first order)

so distances at different n must not be compared. Richardson's 2 FD_n - (mean FD of halves) removes the c/n term.

The distance between two *paired* sets is a case of its own, near zero: see ``frechet_pairs``.
"""

import numpy as np

from dither.errors import BadValue
from dither.evaluation.protocol import Float64

__all__ = [
    "fit_gaussian",
    "frechet_distance",
    "influence",
    "matrix_power",
    "null_bias",
    "paired_influence",
    "richardson",
    "sample_distance",
    "standard_error",
    "transport",
]

HALVINGS = 8


def fit_gaussian(features: Float64) -> tuple[Float64, Float64]:
    """Mean (D,) and covariance (D, D) with ddof=1 of features (N, D), in float64."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise BadValue(f"a Gaussian fit needs features of shape (N >= 2, D), got {x.shape}.")
    if not np.isfinite(x).all():
        raise BadValue("features contain NaN or infinite values.")
    centred = x - x.mean(axis=0)
    return x.mean(axis=0), centred.T @ centred / (len(x) - 1)


def frechet_distance(mu1: Float64, sigma1: Float64, mu2: Float64, sigma2: Float64) -> float:
    """Squared Frechet distance of N(mu1, sigma1) and N(mu2, sigma2), at least 0; singular covariances are fine."""
    if mu1.shape != mu2.shape or sigma1.shape != sigma2.shape:
        raise BadValue(f"features of dimension {mu1.shape} and {mu2.shape} cannot be compared.")
    return max(_distance_to(matrix_power(sigma1, 0.5), mu1, sigma1, mu2, sigma2), 0.0)


def _distance_to(root1: Float64, mu1: Float64, sigma1: Float64, mu2: Float64, sigma2: Float64) -> float:
    """Distance with the root of `sigma1` known, which is half the work."""
    # tr (S1 S2)^(1/2) is the sum of roots of the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2).
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(_symmetric(root1 @ sigma2 @ root1)), 0, None)).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * cross)


def sample_distance(a: Float64, b: Float64) -> float:
    """Distance between features `a` (N, D) and `b` (M, D); where both are few it needs no D x D matrix.

    With centred rows X, Y the cross term tr (S1 S2)^(1/2) is the sum of the singular values of X Y^T (N, M), over
    sqrt((N - 1) (M - 1)).
    """
    if max(a.shape[0], b.shape[0]) >= a.shape[-1] or a.ndim != 2 or a.shape[1:] != b.shape[1:]:
        return frechet_distance(*fit_gaussian(a), *fit_gaussian(b))
    x, y = (np.asarray(rows - rows.mean(axis=0), dtype=np.float64) / np.sqrt(len(rows) - 1) for rows in (a, b))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    distance = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.square(x).sum() + np.square(y).sum() - 2 * cross
    return max(float(distance), 0.0)


def influence(features: Float64, mu: Float64, sigma: Float64) -> Float64:
    """Influence (N,) of each row of `features` (N, D) on its distance to the fixed N(mu, sigma)."""
    own_mu, own_sigma = fit_gaussian(features)
    root = matrix_power(sigma, 0.5)
    towards = root @ matrix_power(_symmetric(root @ own_sigma @ root), -0.5) @ root
    x = np.asarray(features, dtype=np.float64) - own_mu
    linear = 2 * x @ (own_mu - mu)
    quadratic = np.sum(x * x, axis=1) - np.sum((x @ towards) * x, axis=1)
    values = linear + quadratic
    return np.asarray(values - values.mean(), dtype=np.float64)


def paired_influence(a: Float64, b: Float64) -> Float64:
    """Influence (N,) of each pair on the distance between `a` and `b` (N, D), row i of both from the same seed."""
    if a.shape != b.shape:
        raise BadValue(f"features of shape {a.shape} and {b.shape} cannot be paired.")
    return influence(a, *fit_gaussian(b)) + influence(b, *fit_gaussian(a))


def standard_error(influences: Float64) -> float:
    """Standard error of an estimate from the influences (N,) of its samples."""
    return float(np.std(influences, ddof=1) / np.sqrt(len(influences)))


def null_bias(sigma: Float64, n: int, m: int | None = None) -> float:
    """What FD shows on average when nothing differs: `n` samples against `m` others (None: against the truth)."""
    values = np.clip(np.linalg.eigvalsh(_symmetric(sigma)), 0, None)  # (D,)
    values = values[values > 0]
    pairs = np.outer(values, values) / (2 * (values[:, None] + values[None, :]))
    scale = 1 / n + (1 / m if m else 0.0)
    return float(scale * (1.25 * values.sum() + pairs.sum()))


def richardson(features: Float64, mu: Float64, sigma: Float64, *, halvings: int = HALVINGS) -> float:
    """Distance to N(mu, sigma) with the c/n bias removed; may be negative near 0, as an unbiased estimate must.

    Halves are those of `halvings` fixed shuffles, the same for all sets of one size. Labels come in order or in turn, so
    that a first half, or the even rows, would hold other classes than the rest; and one halving alone adds as much noise
    near 0 as there is, several a fraction of it.
    """
    x = np.asarray(features, dtype=np.float64)
    if len(x) < 4:
        raise BadValue(f"removing the bias needs at least 4 samples, got {len(x)}.")
    root = matrix_power(sigma, 0.5)
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(halvings):
        order = rng.permutation(len(x))
        halves += [_distance_to(root, mu, sigma, *fit_gaussian(x[order[start::2]])) for start in (0, 1)]
    return 2 * _distance_to(root, mu, sigma, *fit_gaussian(x)) - float(np.mean(halves))


def _symmetric(matrix: Float64) -> Float64:
    return np.asarray((matrix + matrix.T) / 2, dtype=np.float64)


def transport(source: Float64, target: Float64) -> Float64:
    """Optimal map (D, D) from N(0, source) to N(0, target), for a source of full rank."""
    root, inverse = matrix_power(source, 0.5), matrix_power(source, -0.5)
    return _symmetric(inverse @ matrix_power(_symmetric(root @ target @ root), 0.5) @ inverse)


def matrix_power(matrix: Float64, exponent: float) -> Float64:
    """Power of a symmetric positive semidefinite matrix; directions of no variance stay at zero."""
    values, vectors = np.linalg.eigh(_symmetric(np.asarray(matrix, dtype=np.float64)))
    floor = max(values.max(), 0.0) * len(values) * np.finfo(np.float64).eps
    kept = values > floor
    powered = np.zeros_like(values)
    powered[kept] = values[kept] ** exponent
    return np.asarray((vectors * powered) @ vectors.T, dtype=np.float64)
