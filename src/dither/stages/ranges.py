"""ACT: static activation ranges, one row of scales for each time group (and CFG branch), of linears and of attentions.

Dynamic ranges need nothing from here. A static table is calibrated with the weights already quantized and activations still
exact: the min-max of each channel group, after the layer's online transforms, over all calls whose noise level falls into
the row's time group, shrunk by ``keep``. With a ``momentum`` m it is instead a moving average over these calls, as in the
static baseline of Q-DiT's released code (arXiv 2406.17343, m = 0.9), where an outlier of one call counts for little:

    lo <- m lo + (1 - m) min of this call        hi <- m hi + (1 - m) max of this call

Two regions of probabilities have no range: where they meet is searched, see ``splits``. Time groups are parts of the
normalized noise level (TQ-DiT, arXiv 2502.04056, section 3.3), so one table serves any number of sampling steps.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.nn import attention_tensors, widths_of
from dither.spec import Act, AttentionSpec
from dither.stages.base import Job, Phase
from dither.stages.table_probe import TableProbe

__all__ = ["Ranges"]


@dataclass(frozen=True)
class Ranges:
    """Calibrates whatever is static, and switches on what attentions are to round; dynamic linears need nothing.

    A table that a stage before has found (``job.tables``) is taken as it is.

    Args:
        keep: fraction of the observed range that is kept.
        momentum: share of the range so far in its moving average; 0 takes the min-max over all calls.
        top: upper end of the upper region of probabilities (TQ-DiT: 1); 0: the largest that was observed.
        rows: rows of probabilities kept for each time group, to search where their regions meet.
    """

    tag: ClassVar[str] = "ranges"
    phase: ClassVar[Phase] = Phase.ACT
    paper: ClassVar[str] = ""
    keep: float = 1.0
    momentum: float = 0.0
    top: float = 0.0
    rows: int = 256

    def run(self, job: Job) -> None:
        """Fill and switch on every static table."""
        self._check()
        static = {n: s.act for n, s in job.specs.items() if s.act is not None and s.act.static}
        linears = {n: linear_at(job.model, n) for n in static if n not in job.tables}
        probes = {n: self._probe(job, static[n], layer.in_features, layer) for n, layer in linears.items()}
        parts = {name: spec.static for name, spec in job.attention.items() if name not in job.tables}
        for name, acts in parts.items():
            channels = widths_of(job.model.get_submodule(name)).channels
            job.rounded_attention(name, AttentionSpec(), {})  # to look at
            probes |= {_place(name, part): self._probe(job, act, channels[part]) for part, act in acts.items()}
        if probes:
            job.observe("measuring ranges", {n: (p,) for n, p in probes.items()})
        tables = {n: p.table(self.keep, self.top) for n, p in probes.items()}
        for name in static:
            found = {f"act_{key}": t for key, t in tables.get(name, {}).items()}
            job.activate(name, found or job.tables[name])
        for name, spec in job.attention.items():
            own = {part: tables[_place(name, part)] for part in parts.get(name, {})}
            found = {f"{part}.{key}": t for part, table in own.items() for key, t in table.items()}
            job.rounded_attention(name, spec, found or job.tables.get(name, {}))

    def _check(self) -> None:
        if not 0 < self.keep <= 1:
            raise BadRecipe(f"ranges.keep {self.keep}: must lie in (0, 1]")
        if not 0 <= self.momentum < 1:
            raise BadRecipe(f"ranges.momentum {self.momentum}: must lie in [0, 1)")
        if not 0 <= self.top <= 1:
            raise BadRecipe(f"ranges.top {self.top}: a probability, or 0 for the largest that is observed")
        if self.rows < 1:
            raise BadRecipe(f"ranges.rows {self.rows}: must be at least 1")

    def _probe(self, job: Job, act: Act, channels: int, layer: nn.Linear | None = None) -> TableProbe:
        return TableProbe(act, channels, layer, self.momentum, self.rows, job.seed)


def _place(name: str, part: str) -> str:
    """Where a part of an attention can be looked at."""
    return attention_tensors(name) + part
