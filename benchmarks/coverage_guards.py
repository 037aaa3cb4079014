"""Cells of ``coverage`` for the guards: changes of a metric to data, by the code that prints them.

Real pictures are a sample for KID, CMMD and recall, so each repeat draws others. Precision takes them as given: one set of
them for all repeats. Recall of few pictures is that of so many, since their radii depend on the count: its
truth is the mean over many sets of the same size.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from benchmarks import populations
from benchmarks.coverage_cell import Cell, inside
from benchmarks.populations import CHANGES, DIMENSION, Rng, Rows
from dither.errors import BadValue
from dither.evaluation import inception_score, manifold, mmd
from dither.evaluation.guards import Crowd, RealCrowd, quality_guards

REAL = 512
CHANGED = ("nothing", "moderate")
TRUTH_SETS, TRUTH_SIZE = 40, 2000
RECALL_SETS, RECALL_REAL = 400, 1000
KID_SQUARE = 0.4  # mean square of a feature, about that of Inception's
FEW_CHANGES = "wide on purpose: counts of a few changed pictures allow no exact interval"

FEW_DECIDE = (
    "wide where nothing differs: the few pictures that changed most decide the difference and its error together"
)


def guard_cells() -> dict[str, Cell]:
    cells = {}
    for change in CHANGED:
        for metric, (sizes, module) in METRICS.items():
            for n in sizes:

                def holds(truth: float, rng: Rng, metric: str = metric, change: str = change, n: int = n) -> bool:
                    return inside(printed_interval(metric, *sample(metric, change, n, rng)), truth)

                cells[f"{metric} {change}-{n}"] = Cell(
                    f"difference of {NAMES[metric]}",
                    f"{change} changed",
                    n,
                    holds,
                    lambda metric=metric, change=change, n=n: truth(metric, change, n),
                    ("guards", module),
                    DIMENSION,
                    costly=True,
                    wide=WIDE.get(metric, "") if CHANGES[change].mixed else "",
                )
    return cells


METRICS = {
    "kid": ((64, 256), "mmd"),
    "cmmd": ((64, 256), "mmd"),
    "inception_score": ((128, 512), "inception_score"),
    "precision": ((128, 512), "manifold"),
    "recall": ((128, 512), "manifold"),
}
WIDE = {"precision": FEW_CHANGES, "kid": FEW_DECIDE, "cmmd": FEW_DECIDE}  # where nothing differs
NAMES = {
    "kid": "KID to real pictures",
    "cmmd": "CMMD to real pictures",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
}


def sample(metric: str, change: str, n: int, rng: Rng) -> tuple[Rows, Rows, Rows]:
    """Features of full precision and quantized pairs (n, D), and of real pictures (M, D)."""
    pair = populations.draw(CHANGES[change], n, rng)
    real = fixed_real() if metric == "precision" else populations.draw_real(REAL, rng)
    full, quantized, real = (scaled(metric, x) for x in (*pair, real))
    return full, quantized, real


def printed_interval(metric: str, full: Rows, quantized: Rows, real: Rows) -> tuple[float, float]:
    """Interval of the difference, as the guard prints it. Raises BadValue with the reason where it prints none."""
    guard = "precision_recall" if metric in ("precision", "recall") else metric
    crowds = (Crowd(x, populations.normal_logits(x)) for x in (full, quantized))
    rows = quality_guards(*crowds, RealCrowd(real), features="simulated", guards=(guard,))
    row = next(row for row in rows if row["metric"] == metric)
    if row["difference_ci95"] is None:
        raise BadValue(str(row["reason"]))
    low, high = row["difference_ci95"]
    return low, high


@cache
def truth(metric: str, change: str, n: int) -> float:
    """What the interval should hold."""
    if CHANGES[change].mixed:
        return 0.0  # the distribution is the same, whatever the metric
    if metric in ("precision", "recall"):
        return manifold_truth(metric, change, n)
    return mean_difference(metric, change)


@cache
def mean_difference(metric: str, change: str) -> float:
    """Mean over many large sets; the estimates have no bias that would matter at their size."""
    rng = np.random.default_rng(97)
    found = []
    for _ in range(TRUTH_SETS):
        full, quantized = populations.draw(CHANGES[change], TRUTH_SIZE, rng)
        real = populations.draw_real(TRUTH_SIZE, rng)
        found.append(DIFFERENCES[metric](*(scaled(metric, x) for x in (quantized, full, real))))
    return float(np.mean(found))


DIFFERENCES: dict[str, Callable[[Rows, Rows, Rows], float]] = {
    "kid": lambda quantized, full, real: mmd.kid_difference(quantized, full, real)[0],
    "cmmd": lambda quantized, full, real: mmd.cmmd_difference(quantized, full, real)[0],
    "inception_score": lambda quantized, full, real: inception_score.inception_score_difference(
        *(populations.normal_logits(x) for x in (quantized, full))
    )[0],
}


def manifold_truth(metric: str, change: str, n: int) -> float:
    """Mean difference of precision or recall over many sets of n pictures."""
    rng = np.random.default_rng(96)
    # With the real pictures given, precision is a mean over pictures: that of large sets is that of sets of n.
    sets, size = (TRUTH_SETS, TRUTH_SIZE) if metric == "precision" else (RECALL_SETS, n)
    found = []
    for _ in range(sets):
        pair = populations.draw(CHANGES[change], size, rng)
        real = fixed_real() if metric == "precision" else populations.draw_real(RECALL_REAL, rng)
        full, quantized = (manifold.precision_recall(x, real) for x in pair)
        found.append(getattr(quantized, metric) - getattr(full, metric))
    return float(np.mean(found))


@cache
def fixed_real() -> Rows:
    return populations.draw_real(REAL, np.random.default_rng(95))


def scaled(metric: str, rows: Rows) -> Rows:
    """Features of the size that the kernel of a metric is made for."""
    if metric == "cmmd":
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float64)
    if metric == "kid":
        return np.asarray(rows * np.sqrt(KID_SQUARE / np.square(fixed_real()).mean()), dtype=np.float64)
    return rows
