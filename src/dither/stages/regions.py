"""ALLOCATE: two regions for values that crowd near zero (TQ-DiT's MRQ, arXiv 2502.04056; PTQ4ViT, 2111.12293).

    after GELU       [-Q s, 0) and [0, (Q - 1) u]     the input of the feed-forward block's second linear
    after softmax    small and large probabilities    what attention multiplies V with

The regions are disjoint, see ``numerics.regions``; in both releases they overlap and bias all large values. Where they meet
is found when tables are calibrated (``ranges``, ``fisher-scales``).

Whether two regions are worth it differs from layer to layer. With ``choose`` each place takes what makes the least squared
error on sampled values x, each with the ranges that it would get:

    two regions | one asymmetric range | (``dynamic``) one range for each row, found as the model runs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear, attention_tensors
from dither.numerics import act_quantize, dynamic_table, range_table
from dither.probes import RowsByTime
from dither.spec import Act, AttentionSpec, Grid, Int, TwoRegion
from dither.stages.base import Job, Phase
from dither.stages.meanwhile import attending
from dither.stages.scale_search import group_ranges
from dither.stages.splits import best_split
from dither.stages.table_probe import searched

__all__ = ["Regions"]

TWO, ONE, ROWS = "two regions", "one range", "per row"


@dataclass(frozen=True)
class Regions:
    """Gives inputs behind GELU and probabilities two regions, where they are promised to be integers.

    Args:
        gelu: the inputs of second feed-forward linears.
        softmax: the probabilities of attentions.
        shift: the upper steps of probabilities are the lower ones times powers of two, so that partial sums merge by a shift.
        choose: only where it makes less error than one range does.
        dynamic: let ``choose`` also take one range for each row, found as the model runs.
        rows: rows of values kept for each time group, to choose with.
    """

    tag: ClassVar[str] = "regions"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2502.04056"
    gelu: bool = True
    softmax: bool = True
    shift: bool = False
    choose: bool = False
    dynamic: bool = False
    rows: int = 256

    def run(self, job: Job) -> None:
        """Promise other grids."""
        if self.rows < 1:
            raise BadRecipe(f"regions.rows {self.rows}: must be at least 1")
        linears, attentions = self._linears(job), self._attentions(job)
        if not linears and not attentions:
            raise BadRecipe(
                "regions: no input behind a GELU and no probabilities are promised to be integers: put it "
                "behind 'assign' and 'attention', and see regions.gelu and regions.softmax"
            )
        if self.choose:
            samples = _sampled(job, list(linears), list(attentions), self.rows)
            linears = {n: self._chosen(job, n, act, job.specs[n].act, samples[n]) for n, act in linears.items()}
            attentions = {
                n: self._chosen(job, n, act, job.attention[n].probs, samples[n]) for n, act in attentions.items()
            }
        for name, act in linears.items():
            job.promise(name, replace(job.specs[name], act=act))
        for name, act in attentions.items():
            job.attend(name, replace(job.attention[name], probs=act))

    def _linears(self, job: Job) -> dict[str, Act]:
        """What each input behind a GELU would be."""
        layers = job.layers
        return {
            name: replace(spec.act, grid=TwoRegion(spec.act.grid.bits, signed=True, group=spec.act.grid.group))
            for name, spec in job.specs.items()
            if self.gelu and layers[name].kind == "fc2" and spec.rotation is None  # which mixes signs
            if spec.act is not None and _integers(spec.act)
        }

    def _attentions(self, job: Job) -> dict[str, Act]:
        """What the probabilities of each attention would be."""
        found = {}
        for name, spec in job.attention.items():
            if not self.softmax or spec.probs is None or not _integers(spec.probs):
                continue
            if not spec.probs.static:
                raise BadRecipe(
                    f"regions.softmax: attention '{name}' has probabilities with a range for each row, found as the model "
                    "runs, where two regions gain nothing: set attention.static, or regions.softmax=false"
                )
            found[name] = replace(spec.probs, grid=TwoRegion(spec.probs.grid.bits, shift=self.shift))
        return found

    def _chosen(self, job: Job, name: str, two: Act, one: Act | None, values: Sequence[Tensor]) -> Act:
        """The act of least squared error on values (n, K) of each time group."""
        assert one is not None  # see _linears, _attentions
        acts = {TWO: two, ONE: replace(one, grid=Int(one.grid.bits, symmetric=False, group=one.grid.group))}
        if self.dynamic:
            acts[ROWS] = replace(acts[ONE], static=False, rows=1)
        power = sum(float(x.double().square().sum()) for x in values)
        losses = {word: sum(_error(x, act) for x in values) / max(power, 1e-300) for word, act in acts.items()}
        best = min(losses, key=lambda word: losses[word])
        job.note(name, {"regions": {"chosen": best, **{word: float(f"{loss:.4g}") for word, loss in losses.items()}}})
        return acts[best]


def _integers(act: Act) -> bool:
    return isinstance(act.grid, Int) and act.grid.bits > 1


def _error(x: Tensor, act: Act) -> float:
    """Squared error on values (n, K), with the ranges that these values would give."""
    grid: Grid = act.grid
    if not act.static:
        table = dynamic_table(x, grid)
    elif searched(act):
        assert isinstance(grid, TwoRegion)
        table = dict(best_split(x, x.amax(), grid))
    else:
        table = range_table(*group_ranges(act, x.amin(0)[None], x.amax(0)[None]), grid)
    return float((act_quantize(x, grid, table) - x).double().square().sum())


def _sampled(job: Job, linears: Sequence[str], attentions: Sequence[str], rows: int) -> Mapping[str, list[Tensor]]:
    """Some rows of values of each time group that calls fell into, (n, K) each."""
    count = int(max(int(job.rows(call).max()) for call in job.calls)) + 1
    places = {**{n: n for n in linears}, **{n: f"{attention_tensors(n)}probs" for n in attentions}}
    probes = {place: RowsByTime(count, rows, job.seed) for place in places.values()}
    with attending(job, dict.fromkeys(attentions, AttentionSpec())):
        job.observe("sampling values", {place: (probe,) for place, probe in probes.items()})
    found = {name: [p.value for p in probes[place].parts if p.parts] for name, place in places.items()}
    return {n: [_scaled(job, n, x) for x in values] if n in linears else values for n, values in found.items()}


def _scaled(job: Job, name: str, x: Tensor) -> Tensor:
    """What the layer quantizes, given its input."""
    layer = linear_at(job.model, name)
    return layer.transform(x) if isinstance(layer, QLinear) else x
