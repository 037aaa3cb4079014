"""How often subsets of the pictures find an order that is known beforehand: shares, their intervals, and Kendall's tau.

A subset of n pictures plays the part of an evaluation of n pictures. Random subsets overlap, so a share over a thousand of
them is not a thousand trials. It is the (incomplete) U-statistic of degree n over N pictures, whose variance is at most n/N
of one subset's (Hoeffding 1948): its interval is that of N // n trials (Clopper and Pearson), and therefore too wide rather
than too narrow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from dither.evaluation.frechet import fit_gaussian, frechet_distance
from dither.evaluation.protocol import Float64, RealStats

__all__ = ["MEASURES", "Drawn", "Measure", "find_order", "share_interval", "shuffled"]

Rows: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Drawn:
    """Numbers of N pictures in full precision and at every width, best width first; row i of all is of one seed.

    Args:
        labels: (N,).
        full: features (N, D).
        quantized: features (N, D) a width.
        psnr, ssim: to full precision, (N,) a width.
        real: of real pictures.
    """

    labels: npt.NDArray[Any]
    full: Float64
    quantized: Sequence[Float64]
    psnr: Sequence[Float64]
    ssim: Sequence[Float64]
    real: RealStats


Measure: TypeAlias = Callable[[Drawn, Rows, Rows], list[float]]
"""One number a width, more meaning worse, of these pictures; the second rows are as many pictures of other seeds."""


def paired_fd(drawn: Drawn, rows: Rows, other: Rows) -> list[float]:
    """FD to full precision, same seeds."""
    full = fit_gaussian(drawn.full[rows])
    return [frechet_distance(*full, *fit_gaussian(features[rows])) for features in drawn.quantized]


def unpaired_fd(drawn: Drawn, rows: Rows, other: Rows) -> list[float]:
    """FD to full precision, drawn with other seeds."""
    full = fit_gaussian(drawn.full[other])
    return [frechet_distance(*full, *fit_gaussian(features[rows])) for features in drawn.quantized]


def fd_to_real(drawn: Drawn, rows: Rows, other: Rows) -> list[float]:
    """FD to real pictures, as FID is used; all widths on the same seeds, which helps it."""
    real = drawn.real
    return [frechet_distance(*fit_gaussian(features[rows]), real.mu, real.sigma) for features in drawn.quantized]


def psnr(drawn: Drawn, rows: Rows, other: Rows) -> list[float]:
    """Mean PSNR to full precision, negated."""
    return [-float(values[rows].mean()) for values in drawn.psnr]


def ssim(drawn: Drawn, rows: Rows, other: Rows) -> list[float]:
    """Mean SSIM to full precision, negated."""
    return [-float(values[rows].mean()) for values in drawn.ssim]


MEASURES: Mapping[str, Measure] = {
    "fd_paired": paired_fd,
    "psnr": psnr,
    "ssim": ssim,
    "fd_to_real": fd_to_real,
    "fd_unpaired": unpaired_fd,
}


def find_order(drawn: Drawn, measure: Measure, n: int, subsets: int, seed: int) -> dict[str, Any]:
    """How often `measure` finds the order of the widths with n pictures.

    Returns:
        ``order``: share of subsets that rank all widths rightly, its interval, and how many of the disjoint subsets;
        ``pairs``: the same of each width and its worse neighbour, with their ``separation``;
        ``kendall_tau``: to the known order, mean and 5 % quantile over subsets.
    """
    total = len(drawn.labels)
    rng = np.random.default_rng(seed)
    orders = [shuffled(drawn.labels, rng) for _ in range(subsets)]
    scores = np.array([measure(drawn, order[:n], order[n : 2 * n]) for order in orders])  # (subsets, widths)
    blocks = [np.roll(np.arange(total), -start) for start in range(0, total - n + 1, n)]
    apart = np.array([measure(drawn, block[:n], block[n : 2 * n]) for block in blocks])  # (N // n, widths)
    gaps, gaps_apart = np.diff(scores, axis=1), np.diff(apart, axis=1)  # positive where rightly ordered
    tau = [stats.kendalltau(row, np.arange(len(row))).statistic for row in scores]
    pairs = [
        {**share(gap > 0, gap_apart > 0), "separation": separation(gap, n, total)}
        for gap, gap_apart in zip(gaps.T, gaps_apart.T, strict=True)
    ]
    return {
        "n": n,
        "order": share(np.all(gaps > 0, axis=1), np.all(gaps_apart > 0, axis=1)),
        "pairs": pairs,
        "kendall_tau": {"mean": float(np.mean(tau)), "q05": float(np.quantile(tau, 0.05))},
    }


def share(right: npt.NDArray[np.bool_], right_apart: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Share of random subsets that are right, its interval, and the count of disjoint ones."""
    found = float(right.mean())
    return {
        "share": found,
        "ci95": list(share_interval(found, len(right_apart))),
        "disjoint": [int(right_apart.sum()), len(right_apart)],
    }


def separation(gaps: Float64, n: int, total: int) -> dict[str, Any]:
    """Mean over standard deviation of a gap (subsets,) between evaluations of n pictures, with a 95 % interval.

    Below 0, the worse width looks better on average. The spread of subsets is corrected for their overlap. The interval is
    that of a standardized mean: the mean of N pictures has n / N of the variance of that of n, the deviation 1 / (2 N).
    """
    found = float(gaps.mean() / gaps.std(ddof=1) * np.sqrt(1 - n / total))
    half = 1.96 * float(np.sqrt(n / total + found**2 / (2 * total)))
    return {"mean": found, "ci95": [found - half, found + half]}


def share_interval(found: float, trials: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share that carries as much information as so many trials."""
    right = found * trials
    low = stats.beta.ppf(0.025, right, trials - right + 1) if right > 0 else 0.0
    high = stats.beta.ppf(0.975, right + 1, trials - right) if right < trials else 1.0
    return float(low), float(high)


def shuffled(labels: npt.NDArray[Any], rng: np.random.Generator) -> Rows:
    """A random order (N,) of the rows in which the labels still take turns as they did."""
    order = np.arange(len(labels))
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        order[mine] = rng.permutation(mine)
    return order
