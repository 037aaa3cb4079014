"""Improved precision and recall of generated pictures (Kynkaanniemi 2019, arXiv 1904.06991), by ADM's convention.

Around each feature vector stands a ball whose radius is the distance to its k-th nearest neighbour in its own set, itself
excluded; k = 3. Then

    precision = share of generated pictures inside any ball of a real one
    recall    = share of real pictures inside any ball of a generated one

Both depend strongly on the two counts: ADM takes 10 000 real pictures and all generated ones. Compare equal counts only.
Distances are float32, as features of 2048 dimensions ask for speed; the mean is taken off first, so little is lost.

**Differences.** Precision is a mean over generated pictures, with the real ones fixed, so a pair of the same seed changes
it by -1, 0 or 1: the interval is that of Agresti and Min (2005) for matched proportions, Wald's after half a count is
added to each cell of the table, which keeps its width when no picture changed sides. Recall is such a mean over the *real*
pictures, but the balls that hold them are a sample too. With d_r the change at real picture r, between random halves A and
B of the seeds,

    SE^2 = (Agresti and Min's SE)^2 + E[ mean_r(d_r^A - d_r^B)^2 - var_r(d_r^A - d_r^B) / M ] / 4

The second term is the variance of recall over generated sets: two halves are independent, a set of half the size varies
twice as much, and what the finite real set adds is taken off. Halves of few pictures vary less than that: in simulation
(``benchmarks/coverage.py``) SE is a tenth too small at 128 pictures and right at 512, so it is taken times 1 + 16 / N. (A
jackknife is of no use here: membership in a ball jumps, and it overstates the variance up to fourfold.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from dither.errors import BadValue
from dither.evaluation.checks import feature_rows, same_width

__all__ = [
    "FEWEST",
    "HALVINGS",
    "NEAREST",
    "ManifoldChange",
    "PrecisionRecall",
    "manifold_change",
    "matched_proportions",
    "precision_recall",
]

Float32: TypeAlias = npt.NDArray[np.float32]
Bools: TypeAlias = npt.NDArray[np.bool_]

NEAREST = 3
HALVINGS = 20
FEWEST = 80  # so that a half still has ten times the pictures of a neighbourhood
Z95 = float(stats.norm.ppf(0.975))
FEW = 16  # pictures, of the factor of the standard error of recall
SPARE = 24  # neighbours kept beyond the k-th, so that those of a half are among them
BLOCK = 8_000_000  # distances held at a time


@dataclass(frozen=True)
class PrecisionRecall:
    """Both shares, and which pictures they count: `inside` (N,) of the generated, `covered` (M,) of the real."""

    precision: float
    recall: float
    inside: Bools
    covered: Bools


@dataclass(frozen=True)
class ManifoldChange:
    """Precision and recall of both sets, quantized minus full precision, with 95 % intervals and standard errors."""

    quantized: PrecisionRecall
    full: PrecisionRecall
    precision_ci95: tuple[float, float]
    precision_se: float
    recall_ci95: tuple[float, float]
    recall_se: float


def precision_recall(generated: npt.NDArray[Any], real: npt.NDArray[Any], *, k: int = NEAREST) -> PrecisionRecall:
    """Precision and recall of features `generated` (N, D) against `real` (M, D); both need more than k rows."""
    fake, truth = _checked(generated, real, k)
    inside = _inside(fake, truth, _radii(truth, k)[None])[0]
    covered = _inside(truth, fake, _radii(fake, k)[None])[0]
    return PrecisionRecall(float(inside.mean()), float(covered.mean()), inside, covered)


def manifold_change(
    quantized: npt.NDArray[Any], full: npt.NDArray[Any], real: npt.NDArray[Any], *, k: int = NEAREST
) -> ManifoldChange:
    """What quantization did to precision and recall; row i of both sets (N, D) comes from the same seed."""
    if quantized.shape != full.shape:
        raise BadValue(f"features of shape {quantized.shape} and {full.shape} cannot be paired.")
    feature_rows(quantized, "the change of precision and recall", FEWEST)
    members = _halves(len(full))  # (1 + 2 H, N)
    sides, covered = [], []
    for generated in (quantized, full):
        fake, truth = _checked(generated, real, k)
        inside = _inside(fake, truth, _radii(truth, k)[None])[0]
        covered.append(_inside(truth, fake, _radii_of_subsets(fake, k, members)))  # (1 + 2 H, M)
        sides.append(PrecisionRecall(float(inside.mean()), float(covered[-1][0].mean()), inside, covered[-1][0]))
    low, high, precision_se = matched_proportions(sides[0].inside, sides[1].inside)
    real_low, real_high, real_se = matched_proportions(sides[0].covered, sides[1].covered)
    recall_se = float(np.sqrt(real_se**2 + _variance_over_sets(covered[0][1:], covered[1][1:])))
    recall_se *= 1 + FEW / len(full)
    centre, half = (real_low + real_high) / 2, Z95 * recall_se
    return ManifoldChange(sides[0], sides[1], (low, high), precision_se, (centre - half, centre + half), recall_se)


def matched_proportions(a: Bools, b: Bools, *, level: float = 0.95) -> tuple[float, float, float]:
    """Interval (low, high) of mean(a) - mean(b) over matched rows (N,), and its standard error (Agresti and Min 2005)."""
    n = len(a) + 2
    gained, lost = np.sum(a & ~b) + 0.5, np.sum(b & ~a) + 0.5
    centre = (gained - lost) / n
    se = float(np.sqrt((gained + lost) - (gained - lost) ** 2 / n) / n)
    half = stats.norm.ppf((1 + level) / 2) * se
    return float(centre - half), float(centre + half), se


def _checked(generated: npt.NDArray[Any], real: npt.NDArray[Any], k: int) -> tuple[Float32, Float32]:
    if k < 1:
        raise BadValue(f"precision and recall need k of at least 1, got {k}.")
    a = feature_rows(generated, "precision or recall", k + 2)
    b = feature_rows(real, "precision or recall", k + 2)
    same_width(a, b, "precision or recall")
    centre = b.mean(axis=0)
    return (a - centre).astype(np.float32), (b - centre).astype(np.float32)


def _radii(x: Float32, k: int) -> Float32:
    """Squared distance (N,) of each row to its k-th nearest other row."""
    radii = np.empty(len(x), np.float32)
    for rows, distances in _distances(x, x):
        _leave_out_self(distances, rows)
        radii[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _halves(n: int) -> Bools:
    """Members of the whole set, and of both halves of each halving: (1 + 2 H, N)."""
    # A fixed shuffle: labels often come in turn, and halves must not be classes.
    halves = [np.random.default_rng(seed).permutation(n) % 2 == 0 for seed in range(HALVINGS)]
    return np.stack([np.ones(n, np.bool_), *(side for half in halves for side in (half, ~half))])


def _variance_over_sets(quantized: Bools, full: Bools) -> float:
    """Variance of the change of recall over generated sets, from who is covered by each half (2 H, M)."""
    change = quantized.astype(np.float64) - full  # (2 H, M)
    between = change[0::2] - change[1::2]  # (H, M)
    excess = between.mean(axis=1) ** 2 - between.var(axis=1, ddof=1) / between.shape[1]
    return max(float(excess.mean()) / 4, 0.0)


def _radii_of_subsets(x: Float32, k: int, members: Bools) -> Float32:
    """Radii (S, N) within each subset of the rows; a row that is no member has no ball (-1)."""
    kept = min(k + SPARE, len(x) - 1)
    radii = np.empty(members.shape, np.float32)
    for rows, distances in _distances(x, x):
        _leave_out_self(distances, rows)
        nearest = np.argpartition(distances, kept - 1, axis=1)[:, :kept]
        near = np.take_along_axis(distances, nearest, axis=1)  # (B, kept)
        for i, member in enumerate(members):
            among = np.where(member[nearest], near, np.float32(np.inf))
            radius = np.partition(among, k - 1, axis=1)[:, k - 1]
            short = np.isinf(radius)  # fewer than k of those kept are members
            if short.any():
                among = np.where(member, distances[short], np.float32(np.inf))
                radius[short] = np.partition(among, k - 1, axis=1)[:, k - 1]
            radii[i, rows] = np.where(member[rows], radius, np.float32(-1))
    return radii


def _inside(points: Float32, centres: Float32, radii: Float32) -> Bools:
    """Whether each point (P,) lies in any ball, for each set of radii (R, N): (R, P)."""
    inside = np.empty((len(radii), len(points)), np.bool_)
    for rows, distances in _distances(points, centres):
        for i, radius in enumerate(radii):
            inside[i, rows] = (distances <= radius).any(axis=1)
    return inside


def _distances(a: Float32, b: Float32) -> Iterator[tuple[slice, Float32]]:
    """Squared distances of some rows of `a` at a time to all of `b`."""
    norms_a, norms_b = np.sum(a * a, axis=1), np.sum(b * b, axis=1)
    step = max(1, BLOCK // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        yield rows, np.maximum(norms_a[rows, None] + norms_b - 2 * (a[rows] @ b.T), 0)


def _leave_out_self(distances: Float32, rows: slice) -> None:
    distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
