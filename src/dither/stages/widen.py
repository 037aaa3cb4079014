"""ALLOCATE: more bits for chosen layers, at all times or in some ranges of the noise level.

What a released configuration says by name, and what one learns by hand: the first and the last block, the feed-forward
layers, the noisiest quarter of the steps.

    bits(layer, t) = max of what the layer has and of what every Widen that finds it says at t

Where the widths of a layer change over time its weight is stored once, at the widest; narrower ones read the high bits of the
same codes (``spec.Nested``). Grids stay as ``assign`` made them, only their widths change, and nothing is ever narrowed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

from dither.errors import BadRecipe
from dither.models.base import Layer
from dither.spec import Format, Int, LinearSpec, Timed, Views
from dither.stages.base import Job, Phase
from dither.stages.channels import Times, equal_edges
from dither.stages.incoherence import named
from dither.stages.known import check_widths, of_width
from dither.stages.nesting import views_of

__all__ = ["Widen"]

MOST_RANGES = 100


@dataclass(frozen=True)
class Widen:
    """Raise the widths of some layers.

    Args:
        layers: regular expression; layers whose name it finds. Empty: all that are to be quantized.
        blocks: indices of blocks, negative ones from the end; empty: all.
        ranges: equal parts of the noise level that ``at`` counts.
        at: indices of these parts, from low to high noise; empty: always.
        weight: bits of the weight; None leaves it.
        act: bits of the activation, where it is quantized; None leaves it.
    """

    tag: ClassVar[str] = "widen"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = ""
    layers: str = ""
    blocks: tuple[int, ...] = ()
    ranges: int = 1
    at: tuple[int, ...] = ()
    weight: int | None = None
    act: int | None = None

    def run(self, job: Job) -> None:
        """Promise the wider formats."""
        self._check()
        chosen = self._chosen(job)
        times = self._times(job)
        here = [not self.at or i in self.at for i in times.select]  # for each row of the clock
        for name in chosen:
            now = _runs(job, name, len(here))
            wider = [_wider(name, run, self) if yes else run for run, yes in zip(now, here, strict=True)]
            _promise(job, name, wider)

    def _check(self) -> None:
        """Refuse fields that make no sense."""
        if self.weight is None and self.act is None:
            raise BadRecipe("widen: give widen.weight or widen.act, the bits to widen to")
        for field, bits in (("weight", self.weight), ("act", self.act)):
            if bits is not None and not 1 <= bits <= 8:
                raise BadRecipe(f"widen.{field} {bits}: the width must be 1 to 8 bits")
        if not 1 <= self.ranges <= MOST_RANGES:
            raise BadRecipe(f"widen.ranges {self.ranges}: must be 1 to {MOST_RANGES}")
        for i in self.at:
            if not 0 <= i < self.ranges:
                raise BadRecipe(
                    f"widen.at {i}: there are {self.ranges} ranges, 0 (the least noise) to {self.ranges - 1}"
                )

    def _chosen(self, job: Job) -> list[str]:
        """Names of the layers to widen, which are all to be quantized."""
        blocks = list(job.adapter.blocks(job.model))
        for i in self.blocks:
            if not -len(blocks) <= i < len(blocks):
                raise BadRecipe(f"widen.blocks {i}: the model has {len(blocks)} blocks, 0 to {len(blocks) - 1}")
        inside = {blocks[i] for i in self.blocks}
        found = named("widen.layers", self.layers, list(job.layers))
        chosen = [
            layer.name
            for layer in job.layers.values()
            if layer.name in found and (not inside or layer.block in inside) and self._concerns(job, layer)
        ]
        if not chosen:
            raise BadRecipe(f"{self} finds no layer that 'assign' quantizes")
        return chosen

    def _concerns(self, job: Job, layer: Layer) -> bool:
        """Whether a side of the layer that is to be widened is quantized at all."""
        spec = job.specs.get(layer.name, LinearSpec())
        return (self.weight is not None and spec.weight is not None) or (self.act is not None and spec.act is not None)

    def _times(self, job: Job) -> Times:
        """The ranges on the job's clock, which is set here unless another stage has cut it finer."""
        if len(set(self.at)) in (0, self.ranges):
            return Times.whole(job)
        return Times.on_clock(job, f"widen.ranges {self.ranges}", equal_edges(self.ranges))

    def __str__(self) -> str:
        """What chooses the layers, for messages."""
        parts = [f"widen.layers '{self.layers}'"] if self.layers else []
        parts += [f"widen.blocks {list(self.blocks)}"] if self.blocks else []
        return " with ".join(parts) or "widen"


def _runs(job: Job, name: str, rows: int) -> list[LinearSpec]:
    """What runs of a layer in each row of the clock, with all weights as plain integers of their width."""
    varied = job.varied.get(name)
    if isinstance(varied, Timed):
        raise BadRecipe(
            f"widen: layer '{name}' has a bank of weights for each time already; put 'widen' before that stage"
        )
    if varied is None:
        return [job.specs[name]] * rows
    whole = cast(Int, varied.base.weight)
    views = [varied.views[i] for i in varied.select]
    return [replace(varied.base, weight=replace(whole, bits=v.bits), act=v.act) for v in views]


def _wider(name: str, spec: LinearSpec, to: Widen) -> LinearSpec:
    """The spec with each side that is quantized at least as wide as asked for."""
    weight, act = spec.weight, spec.act
    if to.weight is not None and weight is not None:
        if not isinstance(weight, Int):
            raise BadRecipe(f"widen.weight: layer '{name}' has weight {weight}, and only integers can be widened")
        weight = replace(weight, bits=max(weight.bits, to.weight))
    if to.act is not None and act is not None:
        check_widths("widen.act", name, act)
        act = of_width(act, max(act.grid.bits, to.act))
    return replace(spec, weight=weight, act=act)


def _promise(job: Job, name: str, runs: Sequence[LinearSpec]) -> None:
    """One spec where nothing changes over time, else views of the widest weight; notes what runs, by noise level."""
    groups = runs[:: job.branches]
    weights = [_bits(r.weight) for r in groups]
    acts = [None if r.act is None else r.act.grid.bits for r in groups]
    if len(set(runs)) == 1:
        job.promise(name, runs[0])
    else:
        job.vary(name, _views(name, runs))
    job.note(name, {"widths": {"weight": weights, "act": acts}})


def _bits(weight: Format | None) -> int | None:
    return None if weight is None else weight.bits


def _views(name: str, runs: Sequence[LinearSpec]) -> Views:
    """The weight stored once, at its widest; one view for each pair of widths that runs at some time."""
    if not isinstance(runs[0].weight, Int):
        raise BadRecipe(f"widen.at: layer '{name}' has no integer weights, and only such layers change over time")
    if any(r.act is not None and r.act.static for r in runs):
        raise BadRecipe(
            f"widen.at: layer '{name}' has static activations, whose ranges serve one width; widen it always"
        )
    return views_of(runs)
