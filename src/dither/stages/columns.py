"""Rounding a weight column by column, each error passed on to the columns that come later (GPTQ, arXiv 2210.17323).

    min over W' in the format of   tr (W - W') H (W - W')^T

    H^-1 = U^T U, U upper triangular        for j = 1 .. K:
        w'_j = round(w_j)        e = (w_j - w'_j) / U_jj        w_i -= e U_ji  for i > j

The range of a group of columns is taken when the first of them is reached, from weights that hold all errors so far. (The
original's lazy blocks read it from weights that are not up to date where a group begins inside a block.) Columns are worked
on in blocks, so that the rest of W is updated by few large products; blocks begin where groups do.

In order of activation the groups with the largest H_jj come first, and inside a group the columns: so ranges stay those of
neighbours, as the format stores them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from dither.errors import BadValue
from dither.numerics import dynamic_grid, from_codes, groups, to_codes
from dither.spec import PER_ROW, PER_TENSOR, Int

__all__ = ["Factor", "Grid", "Rounded", "damped_root", "factor", "round_columns"]

Grid: TypeAlias = Callable[[Tensor, Int, Tensor], tuple[Tensor, Tensor | None]]
"""From a group's weights (N, g), its format per row and U's diagonal there (g,) to scale (N, 1) and zero."""

MOST_DAMP = 1e4
FIRST_DAMP = 1e-6
UNSEEN = 1e-5
"""Pivots below this share of the mean diagonal belong to directions without input, as far as float32 can tell."""


@dataclass(frozen=True)
class Factor:
    """U of a damped H.

    Args:
        u: (K, K) upper triangular; H^-1 = U^T U.
        damp: what was added to the diagonal, as a share of its mean.
        rank_deficient: H had directions without any input.
    """

    u: Tensor
    damp: float
    rank_deficient: bool


@dataclass(frozen=True)
class Rounded:
    """A rounded weight.

    Args:
        codes: (N, K).
        scale: (N, G) or (1, 1).
        zero: the same, or None.
        error: the objective above, with the damped H.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    error: float


def factor(h: Tensor, damp: float, rows: int) -> Factor:
    """U of H (K, K), damped by a share of its mean diagonal, and more where that is not enough.

    Args:
        h: positive semidefinite.
        damp: at first.
        rows: that H is a mean over: fewer than K cannot fill it.

    Raises:
        BadValue: H holds NaN or infinity, or nothing makes it positive definite.
    """
    if not bool(torch.isfinite(h).all()):
        raise BadValue("its Hessian holds NaN or infinity")
    deficient = rows < len(h) or not _is_filled(h)
    while True:
        lower, used = damped_root(h, damp)
        deficient |= used > damp
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and bool(torch.isfinite(upper).all()):
            return Factor(upper, used, deficient)
        damp, deficient = max(10 * used, FIRST_DAMP), True


def _is_filled(h: Tensor) -> bool:
    """Whether all directions have inputs: many rows may still be the same few."""
    hardly = h.clone()
    hardly.diagonal().add_(FIRST_DAMP * _unit(h))
    lower, failed = torch.linalg.cholesky_ex(hardly)
    return not failed and float(lower.diagonal().square().min()) > UNSEEN * _unit(h)


def damped_root(h: Tensor, damp: float) -> tuple[Tensor, float]:
    """L (K, K) lower triangular of a damped H = L L^T, and the damping that it took, as a share of the mean diagonal.

    Raises:
        BadValue: nothing makes it positive definite.
    """
    unit = _unit(h)
    while damp <= MOST_DAMP:
        damped = h.clone()
        damped.diagonal().add_(damp * unit + (h.diagonal() <= 0) * unit)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return lower, damp
        damp = max(10 * damp, FIRST_DAMP)
    raise BadValue("its Hessian cannot be made positive definite by damping")


def _unit(h: Tensor) -> float:
    mean = float(h.diagonal().mean())
    return mean if mean > 0 else 1.0


def round_columns(
    w: Tensor, h: Tensor, fmt: Int, how: Callable[[Tensor], Factor], grid: Grid, block: int, by_activation: bool
) -> tuple[Rounded, Factor]:
    """Codes of a weight for a Hessian.

    Args:
        w: (N, K) float32, finite.
        h: (K, K).
        fmt: of the codes.
        how: factors H, with its columns in the order in which they are rounded.
        grid: a group's range.
        block: columns at a time, about.
        by_activation: in descending order of H's diagonal; otherwise as they are.
    """
    k = w.shape[1]
    width = k // groups(k, fmt.group)
    order = _order(h.diagonal(), width) if by_activation else torch.arange(k, device=h.device)
    moved = not bool((order == torch.arange(k, device=h.device)).all())
    found = how(h[order][:, order] if moved else h)
    given = dynamic_grid(w, fmt) if fmt.group == PER_TENSOR else None
    codes, scales, zeros, error = _loop((w[:, order] if moved else w).clone(), found.u, fmt, grid, width, block, given)
    back = order.argsort()
    turned = order[::width].div(width, rounding_mode="floor").argsort()  # groups as they stand in w
    if given is not None:
        scale, zero = given
    else:
        scale = torch.cat(scales, 1)[:, turned]
        zero = None if fmt.symmetric else torch.cat([z for z in zeros if z is not None], 1)[:, turned]
    return Rounded(codes[:, back], scale.contiguous(), zero, error), found


def _order(diagonal: Tensor, width: int) -> Tensor:
    """Columns (K,): groups by their largest value, descending; inside each, columns by theirs."""
    groups_ = diagonal.reshape(-1, width)  # (G, g)
    inside = groups_.argsort(dim=1, descending=True, stable=True)
    first = groups_.amax(1).argsort(dim=0, descending=True, stable=True)
    columns: Tensor = inside + width * torch.arange(len(groups_), device=diagonal.device)[:, None]
    return columns[first].reshape(-1)


def _block(width: int, block: int) -> int:
    """Columns at a time, so that groups never begin inside a block that does not hold all of them."""
    if width <= block:
        return block // width * width
    return max(b for b in range(1, block + 1) if width % b == 0)


def _loop(
    w: Tensor, u: Tensor, fmt: Int, grid: Grid, width: int, block: int, given: tuple[Tensor, Tensor | None] | None
) -> tuple[Tensor, list[Tensor], list[Tensor | None], float]:
    """Changes w (N, K). Codes, scale and zero of each group, and the error."""
    n, k = w.shape
    one = replace(fmt, group=PER_ROW)
    codes = torch.empty(n, k, dtype=torch.int8 if fmt.symmetric and fmt.bits > 1 else torch.uint8, device=w.device)
    scales: list[Tensor] = []
    zeros: list[Tensor | None] = []
    error = 0.0
    step = _block(width, block)
    scale, zero = (None, None) if given is None else given
    for start in range(0, k, step):
        stop = min(start + step, k)
        part, here = w[:, start:stop].contiguous(), u[start:stop, start:stop]
        errors = torch.empty_like(part)
        for i in range(stop - start):
            j = start + i
            if given is None and j % width == 0:
                inside = part[:, i : i + width] if width <= step else w[:, j : j + width]
                scale, zero = grid(inside, one, u.diagonal()[j : j + width])
                scales.append(scale)
                zeros.append(zero)
            assert scale is not None
            column = part[:, i : i + 1]
            code = to_codes(column, scale, zero, one)  # (N, 1)
            codes[:, j : j + 1] = code
            e = (column - from_codes(code, scale, zero, one)) / here[i, i]
            errors[:, i : i + 1] = e
            part[:, i + 1 :].addmm_(e, here[i : i + 1, i + 1 :], alpha=-1)
        error += float(errors.square().sum())
        w[:, stop:].addmm_(errors, u[start:stop, stop:], alpha=-1)
    return codes, scales, zeros, error
