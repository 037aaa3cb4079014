"""Scales of least weighted output error: a group's candidates one by one, all other groups as they now are.

    min over tables   sum_t sum_a weight_ta (z^_ta - z_ta)^2        z^ = sum over groups j of part(j, table_j),  (n, N)

The parts say what is quantized. Of a weight each output has a table of its own, and all of them are chosen at once; a table
of an input concerns all outputs, and the sum over them decides. The same holds for whatever else is a sum of parts, such as
the products of attention. A candidate takes one part, n g N multiplications for g channels, and no more memory than a few
matrices (n, N), however many there are.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.numerics import Table, grouped, range_table
from dither.probes import seen_ranges
from dither.spec import Act, Grid, Int, TwoRegion

__all__ = ["Ratios", "group_ranges", "has_candidates", "search", "shrunk", "weighted_error"]

MOST_STEPS = 1000

Part: TypeAlias = Callable[[int, Table], Tensor]
"""What a group contributes to the output under its table (M, 1): a new tensor (n, N)."""


@dataclass(frozen=True)
class Ratios:
    """Candidates of a range, as fractions of the full one: ``low + i (high - low) / steps``, i < steps (PTQ4ViT).

    Args:
        stage: whose fields these are, for messages.
        low, high, steps: above.
    """

    stage: str
    low: float
    high: float
    steps: int

    def check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        if not 1 <= self.steps <= MOST_STEPS:
            raise BadRecipe(f"{self.stage}.steps {self.steps}: must be 1 to {MOST_STEPS}")
        if not 0 < self.low < math.inf:
            raise BadRecipe(f"{self.stage}.low {self.low:g}: must be positive and finite")
        if not self.low < self.high < math.inf:
            raise BadRecipe(f"{self.stage}.high {self.high:g}: must be finite, and above low, which is {self.low:g}")

    def __iter__(self) -> Iterator[float]:
        return (self.low + i * (self.high - self.low) / self.steps for i in range(self.steps))


def _whole(lo: Tensor, hi: Tensor, grid: Int, ratios: Iterable[float]) -> Iterator[Table]:
    """Both ends shrunk alike, so that a zero point stays."""
    return (range_table(lo * ratio, hi * ratio, grid) for ratio in ratios)


def _upper(lo: Tensor, hi: Tensor, grid: TwoRegion, ratios: Iterable[float]) -> Iterator[Table]:
    """The upper region alone, as the lower one has no tail: GELU is never below -0.17 (PTQ4ViT)."""
    return (range_table(lo, hi * ratio, grid) for ratio in ratios)


_CANDIDATES: dict[type[Any], Callable[[Tensor, Tensor, Any, Iterable[float]], Iterator[Table]]] = {
    Int: _whole,
    TwoRegion: _upper,
}


def has_candidates(grid: Grid) -> bool:
    """Whether ``shrunk`` knows this grid; regions of probabilities have no range that could shrink."""
    return type(grid) in _CANDIDATES and not (isinstance(grid, TwoRegion) and not grid.signed)


def shrunk(lo: Tensor, hi: Tensor, grid: Grid, ratios: Iterable[float]) -> Iterator[Table]:
    """Tables for shares of the ranges [lo, hi], shaped like these."""
    return _CANDIDATES[type(grid)](lo, hi, grid, ratios)


def weighted_error(gap: Tensor, weight: Tensor) -> Tensor:
    """Of each output, (N,): the sum over tokens of weight gap^2, both (n, N). ``gap`` is overwritten."""
    return gap.square_().mul_(weight).sum(0)


def search(
    start: Table, candidates: Callable[[int], Iterable[Table]], part: Part, target: Tensor, weight: Tensor
) -> tuple[dict[str, Tensor], float]:
    """One sweep over the groups; each takes its best candidate if that is better than what it has.

    Args:
        start: tensors (M, G); M is N where each output has a table of its own, or 1 where all share one.
        candidates: tables (M, 1) of a group; the first of equals counts.
        part: what a group contributes.
        target: z (n, N).
        weight: of each squared error, (n, N), not negative.

    Returns:
        The table, and the error that is left.
    """
    now = dict(start)
    outputs, groups = next(iter(now.values())).shape

    def error(gap: Tensor) -> Tensor:
        found = weighted_error(gap, weight)
        return (found if outputs > 1 else found.sum(0, keepdim=True))[:, None]  # (M, 1)

    gap = -target
    for j in range(groups):
        gap += part(j, _column(now, j))
    least = error(gap.clone())
    for j in range(groups):
        mine = _column(now, j)
        rest = gap.sub_(part(j, mine))
        for table in candidates(j):
            found = error(part(j, table).add_(rest))
            better = found < least
            mine = {key: torch.where(better, table[key], have) for key, have in mine.items()}
            least = torch.where(better, found, least)
        gap = rest.add_(part(j, mine))
        now = {key: torch.cat([t[:, :j], mine[key], t[:, j + 1 :]], 1) for key, t in now.items()}
    return now, float(least.sum(dtype=torch.float64))


def _column(table: Table, j: int) -> dict[str, Tensor]:
    return {key: tensor[:, j : j + 1] for key, tensor in table.items()}


def group_ranges(act: Act, lo: Tensor, hi: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges (R, G) of a static table from those of channels by clock row (R', K), which are infinite where no call fell.

    Such a row takes the range of all others.
    """
    if act.rows == 1:
        lo, hi = lo.amin(0, keepdim=True), hi.amax(0, keepdim=True)
    return seen_ranges(grouped(lo, act.grid.group).amin(-1), grouped(hi, act.grid.group).amax(-1))
