"""Maximum mean discrepancy of two sets of features: KID and CMMD, with standard errors that also hold near zero.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)                                      (Gretton 2012, JMLR 13)

KID (arXiv 1801.01401): k(x, y) = (x.y / D + 1)^3 on Inception features; the unbiased estimate leaves i = j out of the
first two means, so that it scatters around 0, and below, when nothing differs. `kid_subsets` is the other form in use:
mean and spread over random subsets, 100 of 1000.
CMMD (arXiv 2401.09603): k(x, y) = exp(-|x - y|^2 / (2 10^2)) on CLIP embeddings, times 1000, with i = j left in: biased
upwards by about 1000 (1/n + 1/m)(1 - E k), so it is compared only at one n and m. Differences leave i = j out.

**Standard error.** Given y, the estimate is a U-statistic in x with the kernel h(i, j) = k(x_i, x_j) - f_i - f_j, where
f_i = mean_j k(x_i, y_j). With h = mean + g_i + g_j + e_ij (Hoeffding), z = var g and e = var e_ij,

    Var = 4 z / n + 2 e / (n (n - 1))

The first term alone, the usual influence function, vanishes when nothing differs. The same for y given x is added, and
the 4 e_xy / (n m) that both hold is taken off once. The difference of two sets from the same seeds is the same statistic
with k(q_i, q_j) - k(f_i, f_j) for its kernel: a pair of pictures is one sample. Matrices are streamed in blocks of rows.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue
from dither.evaluation.checks import feature_rows, same_width
from dither.evaluation.protocol import Float64

__all__ = ["cmmd", "cmmd_difference", "kid", "kid_difference", "kid_subsets"]

Kernel: TypeAlias = Callable[[Float64, Float64], Float64]  # (n, D), (m, D) -> (n, m)
Block: TypeAlias = Callable[[slice], Float64]  # some rows of a kernel matrix

BLOCK = 4_000_000  # numbers of a kernel matrix held at a time
FEWEST = 8  # the variance of a U-statistic cannot be told from fewer
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


def kid(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[float, float]:
    """Unbiased KID between all of `x` (N, D) and all of `y` (M, D), and its standard error; negative values are fine."""
    x, y = _checked(x, y, "KID")
    xx, yy, xy, se = _estimate(x, y, _cubic)
    return xx + yy - 2 * xy, se


def kid_difference(quantized: npt.NDArray[Any], full: npt.NDArray[Any], real: npt.NDArray[Any]) -> tuple[float, float]:
    """KID of `quantized` minus KID of `full` (N, D), both to `real` (M, D), and its paired standard error."""
    return _paired(quantized, full, real, _cubic, "KID")


def kid_subsets(
    x: npt.NDArray[Any], y: npt.NDArray[Any], *, subsets: int = 100, size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
    """Mean and population standard deviation of KID over random subsets, drawn as torch-fidelity draws them.

    The spread over subsets is that of a set of `size` pictures: it is no standard error of the mean.
    """
    x, y = _checked(x, y, "KID", size)
    if subsets < 1 or size < 2:
        raise BadValue(f"KID needs at least 1 subset of 2, got {subsets} of {size}.")
    random = np.random.RandomState(seed)  # the legacy stream: other evaluators' numbers come from it
    values = []
    for _ in range(subsets):
        a = x[random.choice(len(x), size, replace=False)]
        b = y[random.choice(len(y), size, replace=False)]
        inner = sum(_off_diagonal_mean(part) for part in (a, b))
        values.append(inner - 2 * _cubic(a, b).mean())
    return float(np.mean(values)), float(np.std(values))


def cmmd(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> tuple[float, float]:
    """CMMD, the biased form times 1000, between `x` (N, D) and `y` (M, D), and its standard error."""
    x, y = _checked(x, y, "CMMD")
    xx, yy, xy, se = _estimate(x, y, _gaussian)
    n, m = len(x), len(y)
    value = ((n - 1) * xx + 1) / n + ((m - 1) * yy + 1) / m - 2 * xy  # k(x, x) = 1 is the diagonal
    return CMMD_SCALE * value, CMMD_SCALE * se


def cmmd_difference(quantized: npt.NDArray[Any], full: npt.NDArray[Any], real: npt.NDArray[Any]) -> tuple[float, float]:
    """CMMD of `quantized` minus CMMD of `full` (N, D), both to `real` (M, D), unbiased, and its paired standard error."""
    value, se = _paired(quantized, full, real, _gaussian, "CMMD")
    return CMMD_SCALE * value, CMMD_SCALE * se


def _cubic(x: Float64, y: Float64) -> Float64:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3, dtype=np.float64)


def _gaussian(x: Float64, y: Float64) -> Float64:
    squared = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1) - 2 * (x @ y.T)
    return np.asarray(np.exp(-np.maximum(squared, 0) / (2 * CMMD_SIGMA**2)), dtype=np.float64)


def _estimate(x: Float64, y: Float64, kernel: Kernel) -> tuple[float, float, float, float]:
    """Means of k(x, x') and k(y, y') without i = j, mean of k(x, y), and the standard error of MMD^2."""
    f, g, cross = _cross(lambda rows: kernel(x[rows], y), len(x), len(y))
    xx, variance_x = _u_statistic(lambda rows: kernel(x[rows], x), f)
    yy, variance_y = _u_statistic(lambda rows: kernel(y[rows], y), g)
    both = variance_x + variance_y - 4 * cross / (len(x) * len(y))
    # Each part already holds the shared term, so the sum cannot truly be below either.
    return xx, yy, float(f.mean()), float(np.sqrt(max(both, variance_x, variance_y)))


def _paired(
    quantized: npt.NDArray[Any], full: npt.NDArray[Any], real: npt.NDArray[Any], kernel: Kernel, metric: str
) -> tuple[float, float]:
    if quantized.shape != full.shape:
        raise BadValue(f"features of shape {quantized.shape} and {full.shape} cannot be paired.")
    a, y = _checked(quantized, real, metric)
    b, _ = _checked(full, real, metric)
    f, g, cross = _cross(lambda rows: kernel(a[rows], y) - kernel(b[rows], y), len(a), len(y))
    inner, variance_x = _u_statistic(lambda rows: kernel(a[rows], a) - kernel(b[rows], b), f)
    variance_y = float(4 * g.var(ddof=1) / len(y))
    both = variance_x + variance_y - 4 * cross / (len(a) * len(y))
    return float(inner - 2 * f.mean()), float(np.sqrt(max(both, variance_x, variance_y)))


def _cross(block: Block, n: int, m: int) -> tuple[Float64, Float64, float]:
    """Means of the rows (n,) and of the columns (m,) of a matrix, and the variance that neither explains."""
    rows, columns, squares = np.empty(n), np.zeros(m), 0.0
    for part in _blocks(n, m):
        values = block(part)
        rows[part] = values.mean(axis=1)
        columns += values.sum(axis=0) / n
        squares += float(np.square(values).sum()) / (n * m)
    rest = squares - np.square(rows).mean() - np.square(columns).mean() + rows.mean() ** 2
    return rows, columns, max(float(rest), 0.0)


def _u_statistic(block: Block, f: Float64) -> tuple[float, float]:
    """Mean of the matrix without its diagonal, and the variance of the mean of h(i, j) = k(i, j) - f_i - f_j."""
    n = len(f)
    rows, squares = np.empty(n), 0.0
    for part in _blocks(n, n):
        values = block(part) - f[part, None] - f
        values[np.arange(len(values)), np.arange(part.start, part.stop)] = 0
        rows[part] = values.sum(axis=1) / (n - 1)
        squares += float(np.square(values).sum()) / (n * (n - 1))
    mean = rows.mean()
    whole = max(squares - mean**2, 0.0)  # var h = 2 z + e
    of_rows = rows.var(ddof=1)  # ((n - 2) / (n - 1))^2 z + (n - 2) / (n - 1)^2 e
    linear, rest = ((n - 2) / (n - 1)) ** 2, (n - 2) / (n - 1) ** 2
    z = max((of_rows - rest * whole) / (linear - 2 * rest), 0.0)
    e = max(whole - 2 * z, 0.0)
    return float(mean + 2 * f.mean()), float(4 * z / n + 2 * e / (n * (n - 1)))


def _blocks(n: int, m: int) -> Iterator[slice]:
    step = max(1, BLOCK // m)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _off_diagonal_mean(x: Float64) -> float:
    matrix = _cubic(x, x)
    return float((matrix.sum() - np.trace(matrix)) / (len(x) * (len(x) - 1)))


def _checked(x: npt.NDArray[Any], y: npt.NDArray[Any], metric: str, at_least: int = FEWEST) -> tuple[Float64, Float64]:
    a, b = feature_rows(x, metric, at_least), feature_rows(y, metric, at_least)
    same_width(a, b, metric)
    return a, b
