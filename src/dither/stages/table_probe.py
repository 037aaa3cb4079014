"""A probe that ends in a table: what calibrates the static ranges of any activation, of a linear or of an attention."""

import torch
from torch import Tensor, nn

from dither.nn import QLinear
from dither.numerics import Table, groups, range_table
from dither.probes import GroupRange, MovingRange, RowsByTime, seen_ranges
from dither.spec import Act, TwoRegion
from dither.stages.splits import best_splits

__all__ = ["TableProbe", "searched"]


def searched(act: Act) -> bool:
    """Whether a range does not say all: where two regions of probabilities meet is searched on samples."""
    return isinstance(act.grid, TwoRegion) and not act.grid.signed


class TableProbe:
    """Watches an activation and makes its table.

    Args:
        act: how it is to be quantized.
        channels: K of what is seen (..., K).
        layer: the linear whose input it is; ranges are those after its online transforms.
        momentum: share of the range so far in its moving average; 0: the min-max over all calls.
        rows: rows kept for each row of the table, where the table is searched.
        seed: of which are kept.
    """

    def __init__(
        self,
        act: Act,
        channels: int,
        layer: nn.Linear | None = None,
        momentum: float = 0.0,
        rows: int = 256,
        seed: int = 0,
    ) -> None:
        self.act, self.layer = act, layer
        self.samples = RowsByTime(act.rows, rows, seed) if searched(act) else None
        count, moving = groups(channels, act.grid.group), momentum > 0 and self.samples is None
        self.range = MovingRange(count, act.rows, momentum) if moving else GroupRange(count, act.rows)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's activation."""
        x = self.layer.transform(x) if isinstance(self.layer, QLinear) else x
        self.range.update(x, rows)
        if self.samples is not None:
            self.samples.update(x, rows)

    def table(self, keep: float = 1.0, top: float = 0.0) -> Table:
        """The table (R, G) of what was seen so far.

        Args:
            keep: fraction of a range that is kept.
            top: end of the upper region of a searched table; 0: the largest value of the time group, sampled or not.
        """
        lo, hi = seen_ranges(self.range.lo, self.range.hi)  # (R, G)
        if self.samples is None:
            return range_table(lo * keep, hi * keep, self.act.grid)
        assert isinstance(self.act.grid, TwoRegion)  # see searched
        return best_splits(self.samples, torch.full_like(hi[:, 0], top) if top else hi[:, 0], self.act.grid)
