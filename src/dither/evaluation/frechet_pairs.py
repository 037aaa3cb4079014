"""Frechet distance between two sets drawn with the same seeds: free of bias, with an interval that holds near zero too.

When little changed, the distance is a quadratic form in means of n pairs. With features a_i, b_i, and centred x_i, y_i
in the eigenbasis of their common covariance, of eigenvalues l,

    FD ~ V = |mean z|^2,   z_i = (b_i - a_i, (y_i y_i^T - x_i x_i^T)_jk / sqrt(2 (l_j + l_k))),   K_ij = z_i.z_j.

Like any square of a mean, V is a U-statistic plus what pictures have in common with themselves (Hoeffding 1948):
K_ii says nothing about the truth but adds tr cov(z) / n, which near zero is all that one sees. With w = that / V, the share
of noise in V, and C the centred K,

    unbiased = FD - bias - w^2 (FD - V)
    Var = v1 / n + 2 v2 / n^2,   v1 = Var(h_i) - 4 w^2 v2 / n,   h_i = 2 mean_(j != i) K_ij,   v2 = mean_(i != j) C_ij^2

v1 vanishes with the distance and v2 does not. Where all is noise, w = 1, this is the U-statistic of V and its variance; far
from zero, w = 0, it is FD itself, with a variance a little on the wide side. The influences of ``frechet`` are not used:
near zero a picture's own product makes their spread up to ten times too wide.

**Bias.** Far from zero the second derivative of FD is that of sets brought half way to each other by the transport map T
(``frechet``), x -> T^(1/2) x and y -> T^(-1/2) y, and bias = tr cov(z) / n of these. The map of a sample also follows its
noise, which would take up to D / 2n of the bias away, so near zero it must be left out: the power is (1 - w)^2 / 2.

**Interval.** v1 grows in proportion to the distance, so an estimate that comes out low comes with too small an error,
and estimate +- 1.96 SE misses on one side (it covers 85% where 95% are claimed). As Wilson does for a proportion, the
interval is made of all distances t that would not be rejected with their own variance:

    (unbiased - t)^2 <= q^2 (s t + 2 v2 / n^2),    s = max( v1 / n / max(unbiased, SE), (v1 / n + 4 v2 / n^2) / FD ).

The first slope s passes through the variance at the estimate itself; near zero it is a ratio of two noises, and the
second one, the same ratio of the noise that FD holds, takes over.

**Few pictures.** Covariances fitted to few pictures follow them, which makes h_i too small: with 2 pictures a dimension the
error comes out a tenth too low. So v1 is multiplied by 1 + (4 D / n - 1) / 3 below n = 4 D, from where on nothing is missing.

Chosen by simulation (``benchmarks/coverage.py``): the jackknife and Richardson's halves centre as well but are 1.3 to 2
times as noisy near zero, and the bootstrap is inconsistent there. Below `needed_samples` the covariances are too poorly
known, and nothing is printed.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from dither.errors import BadValue
from dither.evaluation import frechet
from dither.evaluation.protocol import Float64

__all__ = [
    "DistanceEstimate",
    "ReferenceChange",
    "difference_interval",
    "estimate_difference",
    "estimate_distance",
    "needed_samples",
    "paired_interval",
    "reference_change",
]

SETTLED = 4  # pictures a dimension beyond which spreads of fitted covariances are as large as those of exact ones
KERNEL_ROWS = 512  # pairs between which K is computed, which costs rows^2 D^2; v2 needs no more
RIDGE = 1e-3  # of the mean variance


@dataclass(frozen=True)
class DistanceEstimate:
    """Frechet distance of two sets in pairs.

    Attributes:
        distance: FD as defined; never below 0, and too high by about c/n.
        bias: what the pictures' own products add to it.
        unbiased: without bias; around 0 it may be negative.
        linear: (N,) h_i, how much each pair pulls at the distance.
        kernel: (M, M) centred products C_ij of M of the pairs, zero on the diagonal.
        noise: w^2, between 0 and 1.
        few: by how much v1 is increased because there are few pictures.
    """

    distance: float
    bias: float
    unbiased: float
    linear: Float64
    kernel: Float64
    noise: float
    few: float = 1.0

    @property
    def standard_error(self) -> float:
        """Of `unbiased`."""
        return float(np.sqrt(sum(_variances(self.linear, self.kernel, self.noise, self.few))))

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval of the distance of the two populations; its lower end is at least 0."""
        if self.distance == 0:
            return 0.0, 0.0
        linear, quadratic = _variances(self.linear, self.kernel, self.noise, self.few)
        slope = max(linear / max(self.unbiased, self.standard_error), (linear + 2 * quadratic) / self.distance)
        q = stats.t.ppf((1 + level) / 2, len(self.linear) - 1)
        shift = q**2 * slope / 2
        centre = self.unbiased + shift
        # Far below zero no distance fits: then the interval is what noise alone would give.
        squared = max(shift**2 + 2 * shift * self.unbiased + q**2 * quadratic, 0.0)
        return max(centre - float(np.sqrt(squared)), 0.0), max(centre + float(np.sqrt(squared)), 0.0)


def needed_samples(dimension: int) -> int:
    """Fewest pictures for which intervals of Frechet distances in features of this dimension hold."""
    return 2 * dimension


def estimate_distance(full: Float64, quantized: Float64) -> DistanceEstimate:
    """Estimate from features (N, D) of both sets, row i of both from the same seed.

    Raises:
        BadValue: features that do not pair, or fewer than `needed_samples`.
    """
    a, b = np.asarray(full, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    _check(a, b)
    n = len(a)
    (mu_a, s_a), (mu_b, s_b) = frechet.fit_gaussian(a), frechet.fit_gaussian(b)
    distance = frechet.frechet_distance(mu_a, s_a, mu_b, s_b)
    weights, vectors = _weights((s_a + s_b) / 2)
    x, y, shift = (a - mu_a) @ vectors, (b - mu_b) @ vectors, (b - a) @ vectors
    moved = vectors.T @ (s_b - s_a) @ vectors * ((n - 1) / n)  # mean of y y^T - x x^T
    mean = shift.mean(axis=0)  # of z: (mean, moved)
    form = float(np.square(mean).sum() + (weights * np.square(moved)).sum())  # V
    with_mean = shift @ mean + ((y @ (weights * moved)) * y - (x @ (weights * moved)) * x).sum(axis=1)  # z_i.mean
    own = np.square(shift).sum(axis=1) + _own_products(x, y, weights)  # K_ii
    noise = min(float((own.mean() - form) / (n - 1)) / form, 1.0) if form > 0 else 0.0
    bias = _bias(a - mu_a, b - mu_b, s_a, s_b, (1 - noise) ** 2 / 2)
    return DistanceEstimate(
        distance=distance,
        bias=bias,
        unbiased=distance - bias - noise**2 * (distance - form),
        linear=2 * (n * with_mean - own) / (n - 1),
        kernel=_kernel(x, y, shift - mean, moved, weights),
        noise=noise**2,
        few=1 + max(SETTLED * a.shape[1] / n - 1, 0.0) / 3,
    )


def paired_interval(full: Float64, quantized: Float64, *, level: float = 0.95) -> tuple[float, float]:
    """Interval of the Frechet distance between two sets in pairs (N, D), at the limit of many pictures."""
    return estimate_distance(full, quantized).interval(level)


def estimate_difference(
    a: DistanceEstimate, b: DistanceEstimate, *, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Distance `a` minus distance `b`, with interval: two quantized sets against one full-precision set, same seeds."""
    if a.linear.shape != b.linear.shape:
        raise BadValue(f"distances of {len(a.linear)} and {len(b.linear)} pictures cannot be compared pair by pair.")
    half = stats.t.ppf((1 + level) / 2, len(a.linear) - 1) * np.sqrt(
        sum(_variances(a.linear - b.linear, a.kernel - b.kernel, max(a.noise, b.noise), max(a.few, b.few)))
    )
    difference = a.unbiased - b.unbiased
    return difference, (float(difference - half), float(difference + half))


@dataclass(frozen=True)
class ReferenceChange:
    """FD(quantized, reference) - FD(full, reference) of `n` pairs, free of bias, with its standard error."""

    difference: float
    standard_error: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval of the difference."""
        half = stats.t.ppf((1 + level) / 2, self.n - 1) * self.standard_error
        return float(self.difference - half), float(self.difference + half)


def reference_change(full: Float64, quantized: Float64, mu: Float64, sigma: Float64) -> ReferenceChange:
    """How much farther from the reference N(mu, sigma), taken as exact, the quantized set of pairs (N, D) is.

    Both distances have their bias removed by halves, and their error is that of the difference of influences: pairs
    share most of their noise.
    """
    a, b = np.asarray(full, dtype=np.float64), np.asarray(quantized, dtype=np.float64)
    _check(a, b)
    difference = frechet.richardson(b, mu, sigma) - frechet.richardson(a, mu, sigma)
    influences = frechet.influence(b, mu, sigma) - frechet.influence(a, mu, sigma)
    return ReferenceChange(difference, frechet.standard_error(influences), len(a))


def difference_interval(
    full: Float64, quantized: Float64, mu: Float64, sigma: Float64, *, level: float = 0.95
) -> tuple[float, tuple[float, float]]:
    """Difference of `reference_change`, and its interval."""
    change = reference_change(full, quantized, mu, sigma)
    return change.difference, change.interval(level)


def _check(a: Float64, b: Float64) -> None:
    if a.shape != b.shape or a.ndim != 2:
        raise BadValue(f"features of shape {a.shape} and {b.shape} cannot be paired.")
    needed = needed_samples(a.shape[1])
    if len(a) < needed:
        raise BadValue(
            f"an interval of a Frechet distance in {a.shape[1]} features needs at least {needed} pictures, got {len(a)}."
        )


def _bias(x: Float64, y: Float64, s_x: Float64, s_y: Float64, power: float) -> float:
    """tr cov(z) / n of centred rows (N, D) with covariances `s_x`, `s_y`, brought together by that power of T."""
    n, dimension = x.shape
    # Directions of next to no variance would have wild maps.
    ridge = np.eye(dimension) * (RIDGE * (np.trace(s_x) + np.trace(s_y)) / (2 * dimension) + np.finfo(np.float64).tiny)
    transport = frechet.transport(s_x + ridge, s_y + ridge)
    shift = y - x
    x, y = x @ frechet.matrix_power(transport, power), y @ frechet.matrix_power(transport, -power)
    weights, vectors = _weights((x.T @ x + y.T @ y) / (2 * (n - 1)))
    x, y = x @ vectors, y @ vectors
    mean = (y.T @ y - x.T @ x) / n
    own = np.square(shift).sum(axis=1) + _own_products(x, y, weights)
    return float(max(own.mean() - (weights * np.square(mean)).sum(), 0.0) / (n - 1))


def _weights(sigma: Float64) -> tuple[Float64, Float64]:
    """1 / (2 (l_j + l_k)) (D, D) and the eigenvectors (D, D) of a covariance."""
    values, vectors = np.linalg.eigh(sigma)
    values = np.clip(values, 1e-12 * values[-1] if values[-1] > 0 else 1.0, None)  # directions of no variance
    return np.asarray(1 / (2 * (values[:, None] + values[None, :]))), np.asarray(vectors)


def _own_products(x: Float64, y: Float64, weights: Float64) -> Float64:
    """Covariance part (N,) of K_ii: sum_jk weights_jk (y_j y_k - x_j x_k)^2, multiplied out."""
    xx, yy, xy = x * x, y * y, x * y
    return np.asarray(((yy @ weights) * yy - 2 * (xy @ weights) * xy + (xx @ weights) * xx).sum(axis=1))


def _kernel(x: Float64, y: Float64, shift: Float64, moved: Float64, weights: Float64) -> Float64:
    """Centred products (M, M) of up to KERNEL_ROWS pairs spread over the sample, zero on the diagonal."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), KERNEL_ROWS)).round().astype(int))
    x, y = x[rows], y[rows]
    kernel = shift[rows] @ shift[rows].T
    for j in range(x.shape[1]):  # z has D^2 parts: D at a time, and those beyond the diagonal count twice
        factor = np.sqrt(weights[j, j:] * np.where(np.arange(j, x.shape[1]) == j, 1.0, 2.0))
        z = (y[:, j : j + 1] * y[:, j:] - x[:, j : j + 1] * x[:, j:] - moved[j, j:]) * factor  # (M, D - j)
        kernel += z @ z.T
    np.fill_diagonal(kernel, 0.0)
    return np.asarray(kernel, dtype=np.float64)


def _variances(linear: Float64, kernel: Float64, noise: float, few: float) -> tuple[float, float]:
    """Both parts of the variance of an estimate: v1 / n and 2 v2 / n^2."""
    n, m = len(linear), len(kernel)
    v2 = float(np.square(kernel).sum() / (m * (m - 1)))
    v1 = max(float(linear.var(ddof=1)) - 4 * noise * v2 / n, 0.0)
    return few * v1 / n, 2 * v2 / n**2
