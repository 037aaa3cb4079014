"""ALLOCATE: a row of static ranges for each time group, and for each CFG branch (TQ-DiT's TGQ, arXiv 2502.04056, eq. 9-12).

    the paper    G_i = {t : (i - 1) T / G <= t <= i T / G - 1}: equal parts of a sampler's T steps
    here         equal parts of the normalized noise level, so that one table serves any number of steps
    learned      G_1 .. G_G contiguous, of least   sum_i sum over levels l in G_i of |f_l - mean_(G_i) f|^2

f_l says what the tables of all static inputs would hold if noise level l had a row of its own. Of each channel group's range
[lo, hi], 0 included, it has log(hi - lo), and lo / (hi - lo) where the grid has a zero point (log max(-lo, hi) where it has
none); so a squared difference is a squared relative error of a range. Each table counts once, however many groups it has.
Edges lie half-way between the levels that they part.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from dither.errors import BadModel, BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear, attention_tensors, widths_of
from dither.numerics import groups
from dither.probes import GroupRange
from dither.spec import Act, AttentionSpec, Float8, Int
from dither.stages.base import Job, Phase
from dither.stages.change_points import cut
from dither.stages.channels import equal_edges
from dither.stages.meanwhile import attending

__all__ = ["TimeGroups", "range_features"]

MOST_GROUPS = 1000
SMALLEST = 1e-6
"""Share of a channel group's widest range below which ranges all count the same."""


@dataclass(frozen=True)
class TimeGroups:
    """Gives every static table that is promised rows by time; does nothing where activations are dynamic.

    Args:
        groups: of the noise level; with ``learned`` or ``budget`` at most so many.
        branches: 2 gives unconditional rows tables of their own.
        learned: edges where the inputs' ranges change most, by one pass over the calibration calls, instead of equal parts.
        budget: share of the ranges' squared differences over all levels that may remain inside groups; with ``learned``
            the fewest groups that keep it are taken. None: all groups that help.
    """

    tag: ClassVar[str] = "time-groups"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2502.04056"
    groups: int = 10
    branches: int = 1
    learned: bool = False
    budget: float | None = None

    def run(self, job: Job) -> None:
        """Cut the clock, and promise each static table a row for each of its rows."""
        self._check()
        linears = {n: s.act for n, s in job.specs.items() if s.act is not None and s.act.static}
        attentions = {n: s for n, s in job.attention.items() if s.static}
        if not (linears or attentions) or self.groups * self.branches == 1:
            return
        edges = self._learned(job, linears, attentions) if self.learned else equal_edges(self.groups)
        job.set_clock(edges, self.branches)
        rows = job.clock.size
        for name, act in linears.items():
            job.promise(name, replace(job.specs[name], act=replace(act, rows=rows)))
        for name, spec in attentions.items():
            job.attend(name, replace(spec, **{part: replace(act, rows=rows) for part, act in spec.static.items()}))
        _tell_empty(job, rows)

    def _check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        if not 1 <= self.groups <= MOST_GROUPS:
            raise BadRecipe(f"time-groups.groups {self.groups}: must be 1 to {MOST_GROUPS}")
        if self.branches not in (1, 2):
            raise BadRecipe(f"time-groups.branches {self.branches}: must be 1 or 2 (conditional, unconditional)")
        if self.budget is None:
            return
        if not self.learned:
            raise BadRecipe(f"time-groups.budget {self.budget}: only learned groups have one: set time-groups.learned")
        if not 0 < self.budget < 1:
            raise BadRecipe(f"time-groups.budget {self.budget}: must lie in (0, 1)")

    def _learned(
        self, job: Job, linears: Mapping[str, Act], attentions: Mapping[str, AttentionSpec]
    ) -> tuple[float, ...]:
        """Edges where ranges change."""
        if job.time_edges:
            raise BadRecipe(
                f"time-groups.learned: another stage has cut the noise level at {[round(e, 4) for e in job.time_edges]} "
                "already: leave one of the two out"
            )
        levels, rows = _levels(job)
        if len(levels) < self.groups:
            raise BadRecipe(
                f"time-groups.groups {self.groups}: the calibration calls have only {len(levels)} noise levels; ask for "
                "fewer groups, or calibrate with more steps and calls"
            )

        def observed() -> Mapping[str, Tensor]:
            probes = _probes(job, linears, attentions, len(levels))
            return {"features": _observed(job, probes, list(attentions), rows, levels)}

        features = job.kept(f"{self.tag}.features", observed)["features"]
        found = cut(features, self.groups, self.budget or 0.0)
        edges = tuple((float(levels[i - 1]) + float(levels[i])) / 2 for i in found.starts)
        job.note(self.tag, {"edges": [round(e, 6) for e in edges], "left": found.left, "levels": len(levels)})
        return edges


def _levels(job: Job) -> tuple[Tensor, Sequence[Tensor]]:
    """The noise levels of all calls, ascending (L,) float64, and for each call the index of each sample's, (B,) int64."""
    known = [job.adapter.noise_level(job.model, call).double() for call in job.calls]
    levels = torch.tensor(sorted({level for k in known for level in k.tolist()}), dtype=torch.float64)
    return levels, [torch.searchsorted(levels, k) for k in known]


class _Groups:
    """A probe: least and greatest value of each channel group, for each level, of what is to be quantized.

    Args:
        act: how.
        channels: of the values.
        levels: how many.
        layer: whose input it is, whose online transforms are applied.
    """

    def __init__(self, act: Act, channels: int, levels: int, layer: nn.Linear | None = None) -> None:
        self.act, self.layer = act, layer
        self.ends = GroupRange(groups(channels, act.grid.group), levels)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's values (B, ..., K)."""
        self.ends.update(self.layer.transform(x) if isinstance(self.layer, QLinear) else x, rows)


def _probes(
    job: Job, linears: Mapping[str, Act], attentions: Mapping[str, AttentionSpec], levels: int
) -> dict[str, _Groups]:
    """By where they look."""
    layers = {name: linear_at(job.model, name) for name in linears}
    found = {name: _Groups(linears[name], layer.in_features, levels, layer) for name, layer in layers.items()}
    for name, spec in attentions.items():
        channels = widths_of(job.model.get_submodule(name)).channels
        for part, act in spec.static.items():
            found[attention_tensors(name) + part] = _Groups(act, channels[part], levels)
    return found


def _observed(
    job: Job, probes: Mapping[str, _Groups], attentions: Sequence[str], rows: Sequence[Tensor], levels: Tensor
) -> Tensor:
    """``range_features`` of all tables side by side, (L, D)."""
    with attending(job, dict.fromkeys(attentions, AttentionSpec())):
        job.observe("measuring ranges by noise level", {place: (p,) for place, p in probes.items()}, rows)
    for place, probe in probes.items():
        if bool((missed := ~torch.isfinite(probe.ends.lo).all(1).cpu()).any()):
            raise BadModel(
                f"calibration: no denoiser call of noise level {float(levels[missed][0]):g} reached '{place}': exclude it"
            )
    return torch.cat([range_features(p.ends.lo, p.ends.hi, p.act).cpu() for p in probes.values()], 1)


def range_features(lo: Tensor, hi: Tensor, act: Act) -> Tensor:
    """What static tables would hold for ranges (L, G), as numbers (L, D) whose differences are relative errors."""
    lo, hi = lo.double().clamp(max=0.0), hi.double().clamp(min=0.0)
    centred = isinstance(act.grid, Float8) or (isinstance(act.grid, Int) and act.grid.symmetric)
    size = torch.maximum(-lo, hi) if centred else hi - lo
    size = size.maximum(size.amax(0) * SMALLEST).clamp(min=torch.finfo(torch.float32).tiny)
    features: Tensor = size.log() if centred else torch.cat([size.log(), lo / size], 1)
    return features / math.sqrt(lo.shape[1])


def _tell_empty(job: Job, rows: int) -> None:
    """Say and note which rows have no calibration call: ``ranges`` gives them the range of all others."""
    seen = {r for call in job.calls for r in job.rows(call).tolist()}
    if empty := sorted(set(range(rows)) - seen):
        job.note(TimeGroups.tag, {"empty_rows": empty})
        job.progress(f"{len(empty)} of {rows} rows by time see no calibration call; time groups", 1, 1)
