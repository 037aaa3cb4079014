"""A probe that ends in a table: what calibrates the static ranges of any activation, of a linear or of an attention."""

import torch
from torch import Tensor, nn

from dither.nn import QLinear
from dither.numerics import Table, groups, range_table
from dither.probes import GroupRange, MovingRange, RowsByTime
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
        self.seen: RowsByTime | MovingRange | GroupRange
        if searched(act):
            self.seen = RowsByTime(act.rows, rows, seed)
        elif momentum:
            self.seen = MovingRange(groups(channels, act.grid.group), act.rows, momentum)
        else:
            self.seen = GroupRange(groups(channels, act.grid.group), act.rows)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's activation."""
        self.seen.update(self.layer.transform(x) if isinstance(self.layer, QLinear) else x, rows)

    def table(self, keep: float = 1.0, top: float = 0.0) -> Table:
        """The table (R, G) of what was seen so far.

        Args:
            keep: fraction of a range that is kept.
            top: of a searched table, see ``splits``.
        """
        if isinstance(self.seen, RowsByTime):
            assert isinstance(self.act.grid, TwoRegion)  # see searched
            return best_splits(self.seen, self.act.grid, top)
        lo, hi = self.seen.lo, self.seen.hi  # (R, G)
        seen = torch.isfinite(lo).all(1, keepdim=True)  # rows that no call fell into take the range of all the others
        lo = torch.where(seen, lo, lo[seen[:, 0]].amin(0)) * keep
        hi = torch.where(seen, hi, hi[seen[:, 0]].amax(0)) * keep
        return range_table(lo, hi, self.act.grid)
