"""WEIGHT: scales of weights and static inputs by Fisher-weighted output error (TQ-DiT's HO, arXiv 2502.04056, eq. 13-17).

    min over scales   E sum_a g_a^2 (z^_a - z_a)^2        z = x W^T of a layer,  z^ = Q(x) Q(W)^T,  g = dL/dz

as in PTQ4ViT (arXiv 2111.12293). Both sides are searched by turns, each with the other as it then is, from the full range on:

    scale_w given Q(x)      of each output channel (and group) by itself, or one for the tensor
    scale_x given Q(W)      of each time group (and channel group), by the tokens of that time group (eq. 9-12)

L must not be the error of a model that nothing has moved yet: see ``gradients``. Inputs are those of full precision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.numerics import Table, dynamic_table, int_table, range_table
from dither.spec import Int, LinearSpec
from dither.stages.base import MEASURED, Job, Phase
from dither.stages.effects import alike, row_weights
from dither.stages.gradients import Passes, Sample
from dither.stages.scale_search import Ratios, group_ranges, has_candidates
from dither.stages.sides import Scales, Sides, by_turns

__all__ = ["FisherScales"]

MOST_ROUNDS = 100
WEIGHT, ACT, ERROR = "weight_", "act_", "error"


@dataclass(frozen=True)
class FisherScales:
    """Searches integer weights, whose grids are left for the stage that rounds, and static inputs, whose tables are left for
    ``ranges``. Weights of other formats are left alone, and so are layers that a stage has finished.

    Args:
        weights: search the scales of weights; otherwise they are taken from min to max, or as ``clip`` has found them.
        inputs: search the scales of static inputs; otherwise they are taken from min to max.
        steps, low, high: candidates, as fractions of the full range: ``low + i (high - low) / steps``.
        rounds: times that both sides have their turn, at most; after two there is hardly anything left to gain.
        quantized: gradients of the squared error at the quantized point; otherwise of random signs times the output.
        calls: calibration calls that are looked at, at most, evenly spread over those that were recorded.
        rows: tokens kept of each layer, in equal shares for the time groups.
        probes: draws of signs.
        trajectory: an error counts as much as it changes the final picture at its noise level, see ``effects``; otherwise
            alike at all of them.
    """

    tag: ClassVar[str] = "fisher-scales"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2502.04056"
    weights: bool = True
    inputs: bool = True
    steps: int = 100
    low: float = 0.01
    high: float = 1.2
    rounds: int = 2
    quantized: bool = False
    calls: int = 16
    rows: int = 512
    probes: int = 1
    trajectory: bool = False

    def run(self, job: Job) -> None:
        """Fill ``job.grids`` and ``job.tables``."""
        passes = self._check()
        names = self._chosen(job)
        lacking = job.lacks(f"{MEASURED}{self.tag}.{name}" for name in names)
        samples = passes.samples(job, names) if lacking else {}
        for i, name in enumerate(names):
            found = job.kept(f"{self.tag}.{name}", partial(self._found, job, name, samples))
            samples.pop(name, None)
            if grid := _part(found, WEIGHT):
                device = job.dense(name).device
                job.grids[name] = (grid["scale"].to(device), grid["zero"].to(device) if "zero" in grid else None)
            if table := _part(found, ACT):
                job.tables[name] = {ACT + key: tensor for key, tensor in table.items()}
            job.note(name, {"fisher_scales": {"error": float(f"{float(found[ERROR]):.4g}")}})
            job.progress("searching scales", i + 1, len(names))

    def _check(self) -> Passes:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise BadRecipe(f"{self.tag}.rounds {self.rounds}: must be 1 to {MOST_ROUNDS}")
        self._ratios.check()
        weigh = row_weights if self.trajectory else alike
        passes = Passes(self.tag, self.calls, self.rows, self.probes, self.quantized, weigh)
        passes.check()
        return passes

    @property
    def _ratios(self) -> Ratios:
        return Ratios(self.tag, self.low, self.high, self.steps)

    def _chosen(self, job: Job) -> list[str]:
        """Layers to search. BadRecipe where there is none, and where one cannot be searched."""
        names = []
        for name, spec in job.specs.items():
            weight, inputs = self._searched(spec)
            if name in job.done or not (weight or inputs):
                continue
            if (weight and name in job.grids) or (inputs and name in job.tables):
                raise BadRecipe(
                    f"{self.tag}: another stage has searched the ranges of layer '{name}': leave one of them out"
                )
            if inputs and spec.act is not None and not has_candidates(spec.act.grid):
                raise BadRecipe(
                    f"{self.tag}.inputs: the inputs of layer '{name}' are {spec.act}, which it cannot search"
                )
            names.append(name)
        if not names:
            raise BadRecipe(f"{self.tag}: no unfinished layer has an integer weight or static inputs to search")
        return names

    def _searched(self, spec: LinearSpec) -> tuple[bool, bool]:
        """Whether the weight is, and whether the inputs are."""
        static = spec.act is not None and spec.act.static
        return self.weights and isinstance(spec.weight, Int), self.inputs and static

    def _found(self, job: Job, name: str, samples: Mapping[str, Sample]) -> Mapping[str, Tensor]:
        """Tables of the sides that are searched, and the error that they leave of that of the full ranges."""
        sides = _sides(job, name, samples[name], self._ratios)
        weight, inputs = self._searched(job.specs[name])
        scales, error = by_turns(sides, _start(job, name, sides), weight, inputs, self.rounds)
        found = {WEIGHT + key: t for key, t in scales.weight.items() if weight}
        found |= {ACT + key: t.cpu() for key, t in scales.act.items() if inputs}
        return {**found, ERROR: torch.tensor(error, dtype=torch.float64)}


def _sides(job: Job, name: str, sample: Sample, ratios: Ratios) -> Sides:
    spec, w = job.specs[name], job.dense(name).float()
    act, lo, hi, rows = spec.act, sample.lo, sample.hi, sample.rows
    if act is not None and act.static:
        lo, hi = group_ranges(act, lo, hi)
        rows = rows if act.rows > 1 else torch.zeros_like(rows)
    x, importance, rows, lo, hi = (t.to(w.device) for t in (sample.x, sample.weight, rows, lo, hi))
    fmt = spec.weight if isinstance(spec.weight, Int) else None  # how other formats round is not known yet
    return Sides(x, importance, rows, w, fmt, act, lo, hi, ratios)


def _start(job: Job, name: str, sides: Sides) -> Scales:
    """Full ranges, or what an earlier stage has found."""
    weight: Table = {}
    if name in job.grids:
        weight = int_table(*job.grids[name])
    elif sides.fmt is not None:
        weight = dynamic_table(sides.w, sides.fmt)
    if sides.act is None or not sides.act.static:
        return Scales(weight, {})
    if name in job.tables:
        return Scales(weight, {key: t.to(sides.w.device) for key, t in _part(job.tables[name], ACT).items()})
    return Scales(weight, range_table(sides.lo, sides.hi, sides.act.grid))


def _part(found: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    return {key.removeprefix(head): tensor for key, tensor in found.items() if key.startswith(head)}
