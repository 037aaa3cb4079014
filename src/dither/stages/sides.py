"""The two sides of a linear, its weight and its inputs, and the search for their scales by turns.

    z^ = Q(x) Q(W)^T   against   z = x W^T        each side given the other as it then is; see ``scale_search`` for the error

A static table has a row for each time group. Each is judged by the tokens of its own, so all rows together cost what one
row would. A turn takes 2 n K N operations for each candidate.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dither.numerics import Table, act_quantize, dynamic_table, grouped, int_range
from dither.spec import Act, Int
from dither.stages.scale_search import Ratios, search, shrunk, weighted_error

__all__ = ["Scales", "Sides", "by_turns"]


@dataclass(frozen=True)
class Scales:
    """Of both sides.

    Args:
        weight: table of the weight, (N, G) or (1, 1); empty where it is taken as it is.
        act: table of static inputs, (R, G); else empty.
    """

    weight: Table
    act: Table


@dataclass(frozen=True)
class Sides:
    """One linear and a sample of its inputs.

    Args:
        x: tokens, (n, K).
        importance: of each squared error, (n, N).
        rows: which row of the static table each token reads, (n,).
        w: (N, K).
        fmt: of the weight; None: as it is.
        act: of the inputs; None: as they are. Dynamic ranges per tensor are those of the sample.
        lo, hi: full ranges of static inputs, (R, G).
        ratios: candidates.
    """

    x: Tensor
    importance: Tensor
    rows: Tensor
    w: Tensor
    fmt: Int | None
    act: Act | None
    lo: Tensor
    hi: Tensor
    ratios: Ratios

    @cached_property
    def target(self) -> Tensor:
        """z (n, N)."""
        return self.x @ self.w.T

    def error(self, scales: Scales) -> float:
        """What scales leave."""
        gap = self._inputs(scales.act) @ self._weight(scales.weight).T - self.target
        return float(weighted_error(gap, self.importance).sum(dtype=torch.float64))

    def best_weight(self, now: Scales) -> tuple[Scales, float]:
        """Better scales of the weight for these of the inputs, and what is left."""
        assert self.fmt is not None
        fmt = self.fmt
        x, w = grouped(self._inputs(now.act), fmt.group), grouped(self.w, fmt.group)  # (n, G, g), (N, G, g)
        lo, hi = int_range(self.w, fmt)  # (N, G) or (1, 1)
        found, error = search(
            now.weight,
            lambda j: shrunk(lo[:, j : j + 1], hi[:, j : j + 1], fmt, self.ratios),
            lambda j, table: x[:, j] @ act_quantize(w[:, j], fmt, table).T,
            self.target,
            self.importance,
        )
        return Scales(found, now.act), error

    def best_inputs(self, now: Scales) -> tuple[Scales, float]:
        """Better scales of the inputs for these of the weight, and what is left."""
        assert self.act is not None
        w = grouped(self._weight(now.weight), self.act.grid.group)  # (N, G, g)
        tables, left = [], 0.0
        for row in range(self.act.rows):
            mine = self.rows == row
            table, error = self._best_row(row, mine if bool(mine.any()) else torch.ones_like(mine), now.act, w)
            tables.append(table)
            left += error if bool(mine.any()) else 0.0
        return Scales(now.weight, {key: torch.cat([t[key] for t in tables]) for key in tables[0]}), left

    def _best_row(self, row: int, mine: Tensor, now: Table, w: Tensor) -> tuple[Table, float]:
        """A row (1, G) of the static table, by these tokens."""
        assert self.act is not None
        grid, part = self.act.grid, slice(row, row + 1)
        x = grouped(self.x[mine], grid.group)  # (n, G, g)
        lo, hi = self.lo[part], self.hi[part]  # (1, G)
        return search(
            {key: t[part] for key, t in now.items()},
            lambda j: shrunk(lo[:, j : j + 1], hi[:, j : j + 1], grid, self.ratios),
            lambda j, table: act_quantize(x[:, j], grid, table) @ w[:, j].T,
            self.target[mine],
            self.importance[mine],
        )

    def _inputs(self, table: Table) -> Tensor:
        """Q(x)."""
        if self.act is None:
            return self.x
        if not self.act.static:
            return act_quantize(self.x, self.act.grid, dynamic_table(self.x, self.act.grid))
        return act_quantize(self.x, self.act.grid, {key: t[self.rows] for key, t in table.items()})

    def _weight(self, table: Table) -> Tensor:
        """Q(W)."""
        return self.w if self.fmt is None else act_quantize(self.w, self.fmt, table)


def by_turns(sides: Sides, start: Scales, weight: bool, inputs: bool, rounds: int) -> tuple[Scales, float]:
    """Better scales of the weight, the inputs, or both by turns, until ``rounds`` are over or nothing gets better.

    Returns:
        The scales, and their error as a share of that of ``start``.
    """
    turns = [turn for on, turn in ((weight, sides.best_weight), (inputs, sides.best_inputs)) if on]
    scales, first = start, sides.error(start)
    error = first
    for _ in range(rounds):
        before = error
        for turn in turns:
            scales, error = turn(scales)
        if len(turns) < 2 or not error < before:
            break
    return scales, error / first if first > 0 else 1.0
