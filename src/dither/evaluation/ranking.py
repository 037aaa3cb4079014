"""Which of several results differ, and which ranks each may have.

All pairs are compared at once on the same pictures, with intervals that hold together: with probability `level` not one
of them misses its true difference. Two results whose interval contains zero are not ranked, so a result has a range of
ranks: best = 1 + number of results that are surely better, worst = K - number that are surely worse.

For means per picture (PSNR, SSIM), the max-t bootstrap (Romano and Wolf 2005): resample the pictures, the same for all
results, and take the quantile c of the largest studentized error among pairs; the intervals are d_ij +- c SE_ij. It uses
how the results go together and so is narrower than Bonferroni. For Frechet distances, differences of ``frechet``
estimates with Sidak's correction, since resampling biases them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from dither.errors import BadValue
from dither.evaluation.frechet_pairs import DistanceEstimate, estimate_difference
from dither.evaluation.protocol import Float64

__all__ = ["Difference", "pairwise", "pairwise_frechet", "rank_ranges", "ranks_of"]

RESAMPLES = 2000
CHUNK = 4_000_000  # numbers held at a time while resampling


@dataclass(frozen=True)
class Difference:
    """Result `a` minus result `b`, with an interval that holds together with those of all other pairs."""

    a: int
    b: int
    difference: float
    ci95: tuple[float, float]

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.ci95[0] <= 0 <= self.ci95[1]


def pairwise(samples: Float64, *, level: float = 0.95, seed: int = 0) -> tuple[Difference, ...]:
    """Simultaneous intervals of the differences of means of all pairs of results.

    Args:
        samples: (K, N) value of each of K results on the same N pictures.
        level: probability that all intervals hold.
        seed: of the resampling; the same seed gives the same intervals.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 2 or not np.isfinite(x).all():
        raise BadValue(f"comparing results needs finite values (K, N >= 2) on the same pictures, got shape {x.shape}.")
    pairs = list(combinations(range(len(x)), 2))
    if not pairs:
        return ()
    differences = np.stack([x[a] - x[b] for a, b in pairs])  # (P, N)
    means = differences.mean(axis=1)
    errors = differences.std(axis=1, ddof=1) / np.sqrt(x.shape[1])
    half = _max_t_quantile(differences - means[:, None], level, seed) * errors
    return tuple(
        Difference(a, b, float(mean), (float(mean - h), float(mean + h)))
        for (a, b), mean, h in zip(pairs, means, half, strict=True)
    )


def pairwise_frechet(estimates: Sequence[DistanceEstimate], *, level: float = 0.95) -> tuple[Difference, ...]:
    """The same for Frechet distances of K quantized sets to one full-precision set, all from the same seeds."""
    pairs = list(combinations(range(len(estimates)), 2))
    if not pairs:
        return ()
    each = 1 - (1 - level ** (1 / len(pairs)))
    found = []
    for a, b in pairs:
        difference, interval = estimate_difference(estimates[a], estimates[b], level=each)
        found.append(Difference(a, b, difference, interval))
    return tuple(found)


def rank_ranges(
    samples: Float64, *, higher_is_better: bool = True, level: float = 0.95, seed: int = 0
) -> tuple[tuple[int, int], ...]:
    """Range of ranks (best, worst), 1 = first, of each of K results with values `samples` (K, N) on the same pictures."""
    found = pairwise(samples, level=level, seed=seed)
    return ranks_of(found, len(samples), higher_is_better=higher_is_better)


def ranks_of(differences: Sequence[Difference], count: int, *, higher_is_better: bool) -> tuple[tuple[int, int], ...]:
    """Ranges of ranks of `count` results from the intervals of all their pairs; lower is better for distances."""
    better, worse = [0] * count, [0] * count  # rivals that are surely better, surely worse
    for pair in differences:
        if pair.distinguishable:
            a_wins = (pair.difference > 0) == higher_is_better
            winner, loser = (pair.a, pair.b) if a_wins else (pair.b, pair.a)
            better[loser] += 1
            worse[winner] += 1
    return tuple((1 + over, count - under) for over, under in zip(better, worse, strict=True))


def _max_t_quantile(centred: Float64, level: float, seed: int) -> float:
    """Quantile of the largest studentized error among pairs with centred differences (P, N), by resampling pictures."""
    count, n = centred.shape
    varying = centred[centred.any(axis=1)]
    if not len(varying):
        return 0.0
    rng = np.random.default_rng(seed)
    rows = max(1, min(RESAMPLES, CHUNK // max(n, count)))
    largest = []
    for start in range(0, RESAMPLES, rows):
        # How often each picture was drawn: one matrix product then resamples all pairs.
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(rows, RESAMPLES - start)).astype(np.float64)  # (R, N)
        means = drawn @ varying.T / n  # (R, P)
        variances = (drawn @ np.square(varying).T / n - np.square(means)) * n / (n - 1)
        floor = 1e-3 * np.square(varying).mean(axis=1)  # a resample of one repeated picture has no spread
        largest.append((np.abs(means) / np.sqrt(np.maximum(variances, floor) / n)).max(axis=1))
    plain = stats.t.ppf((1 + level) / 2, n - 1)  # never narrower than one pair's own interval
    return float(max(np.quantile(np.concatenate(largest), level), plain))
