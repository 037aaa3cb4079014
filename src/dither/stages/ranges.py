"""ACT: static activation ranges, one row of scales for each time group (and CFG branch).

Dynamic ranges need nothing from here. A static table is calibrated with the weights already quantized and activations still
exact: the min-max of each channel group, after the layer's online transforms, over all calls whose noise level falls into
the row's time group, shrunk by ``keep``. With a ``momentum`` m it is instead a moving average over these calls, as in the
static baseline of Q-DiT's released code (arXiv 2406.17343, m = 0.9), where an outlier of one call counts for little:

    lo <- m lo + (1 - m) min of this call        hi <- m hi + (1 - m) max of this call

Time groups are equal parts of the normalized noise level (TQ-DiT, arXiv 2502.04056, section 3.3), so one table
serves any number of sampling steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear
from dither.numerics import grid, grouped, groups
from dither.probes import MinMax, MovingRange
from dither.spec import Act
from dither.stages.base import Job, Phase

__all__ = ["InputRange", "Ranges"]


@dataclass(frozen=True)
class Ranges:
    """Calibrates the layers whose activations are static; does nothing where they are dynamic.

    A table that a stage before has found (``job.tables``) is taken as it is.

    Args:
        keep: fraction of the observed range that is kept.
        momentum: share of the range so far in its moving average; 0 takes the min-max over all calls.
    """

    tag: ClassVar[str] = "ranges"
    phase: ClassVar[Phase] = Phase.ACT
    paper: ClassVar[str] = ""
    keep: float = 1.0
    momentum: float = 0.0

    def run(self, job: Job) -> None:
        """Fill and switch on every static table."""
        if not 0 < self.keep <= 1:
            raise BadRecipe(f"ranges.keep {self.keep}: must lie in (0, 1]")
        if not 0 <= self.momentum < 1:
            raise BadRecipe(f"ranges.momentum {self.momentum}: must lie in [0, 1)")
        static = {n: s.act for n, s in job.specs.items() if s.act is not None and s.act.static}
        probes = {
            n: InputRange(linear_at(job.model, n), act, self.momentum)
            for n, act in static.items()
            if n not in job.tables
        }
        if probes:
            job.observe("measuring ranges", {n: (p,) for n, p in probes.items()})
        for name in static:
            job.activate(name, probes[name].table(self.keep) if name in probes else job.tables[name])


class InputRange:
    """A probe: ranges of what a layer quantizes, its input after its online transforms.

    Args:
        layer: whose input it is.
        act: how the input is to be quantized.
        momentum: as of ``Ranges``.
    """

    def __init__(self, layer: nn.Linear, act: Act, momentum: float = 0.0) -> None:
        self.layer, self.act = layer, act
        channels, count = layer.in_features, groups(layer.in_features, act.grid.group)
        self.seen = MovingRange(count, act.rows, momentum) if momentum else MinMax(channels, act.rows)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        self.seen.update(self.layer.transform(x) if isinstance(self.layer, QLinear) else x, rows)

    def table(self, keep: float = 1.0) -> dict[str, Tensor]:
        """``act_scale`` and, where there are zero points, ``act_zero`` (R, G) of the range so far, shrunk by ``keep``."""
        lo, hi = _by_group(self.seen, self.act)  # (R, G)
        seen = torch.isfinite(lo).all(1, keepdim=True)  # rows that no call fell into take the range of all the others
        lo = torch.where(seen, lo, lo[seen[:, 0]].amin(0)) * keep
        hi = torch.where(seen, hi, hi[seen[:, 0]].amax(0)) * keep
        scale, zero = grid(lo, hi, self.act.grid)
        return {"act_scale": scale} if zero is None else {"act_scale": scale, "act_zero": zero}


def _by_group(probe: MinMax | MovingRange, act: Act) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each channel group, (R, G) each."""
    if isinstance(probe, MovingRange):
        return probe.lo, probe.hi
    return grouped(probe.lo, act.grid.group).amin(-1), grouped(probe.hi, act.grid.group).amax(-1)
