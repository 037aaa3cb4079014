"""ACT: static activation ranges, one row of scales for each time group (and CFG branch).

Dynamic ranges need nothing from here. A static table is calibrated with the weights already quantized and activations still
exact: the min-max of each channel group over all calls whose noise level falls into the row's time group, shrunk by
``keep``. Time groups are equal parts of the normalized noise level (TQ-DiT, arXiv 2502.04056, section 3.3), so one table
serves any number of sampling steps.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dither.calibrate import MinMax
from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.numerics import grid, grouped
from dither.spec import Act
from dither.stages.base import Job, Phase

__all__ = ["Ranges"]


@dataclass(frozen=True)
class Ranges:
    """Calibrates the layers whose activations are static; does nothing where they are dynamic.

    Args:
        keep: fraction of the observed range that is kept.
    """

    tag: ClassVar[str] = "ranges"
    phase: ClassVar[Phase] = Phase.ACT
    paper: ClassVar[str] = ""
    keep: float = 1.0

    def run(self, job: Job) -> None:
        """Fill and switch on every static table."""
        if not 0 < self.keep <= 1:
            raise BadRecipe(f"ranges.keep {self.keep}: must lie in (0, 1]")
        static = {n: s.act for n, s in job.specs.items() if s.act is not None and s.act.static}
        if not static:
            return
        probes = {n: MinMax(linear_at(job.model, n).in_features, act.rows) for n, act in static.items()}
        job.observe("measuring ranges", {n: (p,) for n, p in probes.items()})
        for name, act in static.items():
            job.activate(name, self._table(probes[name], act))

    def _table(self, probe: MinMax, act: Act) -> dict[str, Tensor]:
        seen = torch.isfinite(probe.lo).all(1)
        lo, hi = probe.lo[seen], probe.hi[seen]  # rows that no call fell into take the range of all the others
        lo = torch.where(seen[:, None], probe.lo, lo.amin(0)) * self.keep
        hi = torch.where(seen[:, None], probe.hi, hi.amax(0)) * self.keep
        if act.grid.group > 0:
            lo, hi = grouped(lo, act.grid.group).amin(-1), grouped(hi, act.grid.group).amax(-1)  # (R, G)
        else:
            lo, hi = lo.amin(1, keepdim=True), hi.amax(1, keepdim=True)  # (R, 1)
        scale, zero = grid(lo, hi, act.grid)
        return {"act_scale": scale} if zero is None else {"act_scale": scale, "act_zero": zero}
