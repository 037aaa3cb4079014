"""ALLOCATE: the exact allocation of group sizes on a loss that adds up, which Q-DiT compares its search with.

Each unit alone gets each of its sizes, weight and input, while all else stays in full precision. What that does is measured
on the pictures of a short trajectory, or without drawing any on the unit's own outputs for sampled calibration tokens x:

    loss(u, g) = mean squared error of the pictures      or      sum over its layers of
                 || Q_g(x) Q_g(W)^T - x W^T ||^2 / || x W^T ||^2

With these numbers the best sizes under the limits are an integer program (Q-DiT, arXiv 2406.17343, "ILP"), which HiGHS
solves to the proven optimum. What it cannot see is how units act on each other; the evolutionary search can.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import torch
from torch import Tensor

from dither.calibrate import RowSample
from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.spec import Act, Format
from dither.stages import roles
from dither.stages.adding_up import check_seconds, settle_least
from dither.stages.base import Job, Phase, StudySettings
from dither.stages.granularity import SIZES, Limits, Problem, Unit, problem_of, resized
from dither.stages.sensitivity import Variant, measure
from dither.stages.widths import check_drawing

__all__ = ["GroupProgram"]


@dataclass(frozen=True)
class GroupProgram:
    """Group sizes of least summed loss.

    Args:
        sizes: to choose from.
        bits: most stored bits per weight on average; None: what the size that ``assign`` gave takes.
        bitops: most bit operations per multiply-accumulate on average; None: what that size takes.
        pictures: judge by pictures; otherwise by each layer's output on calibration tokens.
        samples: pictures a drawing.
        steps: of the sampler.
        guidance: of the sampler.
        rows: tokens kept for each unit, without pictures.
        seconds: that the solver may take; if they do not suffice, what it has is taken and its gap noted.
    """

    tag: ClassVar[str] = "group-program"
    phase: ClassVar[Phase] = Phase.ALLOCATE
    paper: ClassVar[str] = "2406.17343"
    sizes: tuple[int, ...] = SIZES
    bits: float | None = None
    bitops: float | None = None
    pictures: bool = True
    samples: int = 8
    steps: int = 5
    guidance: float = 1.5
    rows: int = 1024
    seconds: float = 60.0

    def run(self, job: Job) -> None:
        """Measure, solve, and promise."""
        check_drawing(self.tag, self.samples, self.steps)
        check_seconds(self.tag, self.seconds)
        if self.rows < 1:
            raise BadRecipe(f"{self.tag}.rows {self.rows}: must be at least 1")
        problem = problem_of(job, self.tag, self.sizes, Limits(self.bits, self.bitops))
        if self.pictures:
            settings = StudySettings(self.samples, self.steps, self.guidance)
            losses, judge = _by_pictures(job, problem, settings), "mean squared error of the final states"
            drawings = 1 + sum(len(unit.sizes) for unit in problem.units)  # the first is of full precision
            cost = drawings * self.samples * self.steps * (2 if self.guidance > 1 else 1)
        else:
            losses, judge = _by_outputs(job, problem, self.rows), "relative squared error of each layer's output"
            cost = sum(len(job.rows(call)) for call in job.calls)
        settle_least(job, self.tag, problem, losses, self.seconds, {"judge": judge, "model_samples": cost})


def _by_pictures(job: Job, problem: Problem, settings: StudySettings) -> list[list[float]]:
    """Squared error of pictures for each unit and size."""
    variants = [(roles.Unit(u.name, "", u.layers), [_variant(job, size) for size in u.sizes]) for u in problem.units]
    found = measure(job, job.study(settings), variants, ())
    return [[found[unit.name, 0, v.name]["mse"] for v in choices] for unit, choices in variants]


def _variant(job: Job, size: int) -> Variant:
    return Variant(_key(size), partial(_weight, job, size), partial(_act, job, size))


def _weight(job: Job, size: int, name: str) -> Format | None:
    return resized(job.specs[name], size).weight


def _act(job: Job, size: int, name: str) -> Act | None:
    return resized(job.specs[name], size).act


def _key(size: int) -> str:
    return f"g{size}"


def _by_outputs(job: Job, problem: Problem, rows: int) -> list[list[float]]:
    """Relative squared error of outputs for each unit and size."""

    @cache  # a resumed job that has every number needs no tokens
    def tokens() -> Mapping[str, Tensor]:
        probes = {unit.layers[0]: RowSample(rows, seed=job.seed) for unit in problem.units}  # a unit reads one tensor
        job.observe("sampling inputs", {name: (probe,) for name, probe in probes.items()})
        return {unit.name: probes[unit.layers[0]].value for unit in problem.units}

    def errors(unit: Unit) -> dict[str, float]:
        x = tokens()[unit.name]
        return {_key(size): sum(_output_error(job, name, size, x) for name in unit.layers) for size in unit.sizes}

    losses = []
    for done, unit in enumerate(problem.units, 1):
        found = job.measured(f"{unit.name}.outputs", partial(errors, unit))
        losses.append([found[_key(size)] for size in unit.sizes])
        job.progress("measuring outputs", done, len(problem.units))
    return losses


def _output_error(job: Job, name: str, size: int, x: Tensor) -> float:
    """Of a layer at this size on tokens x (n, K), online transforms included."""
    linear, spec = linear_at(job.model, name), resized(job.specs[name], size)
    dense = job.dense(name)
    x = x.to(dense.device, dense.dtype)
    with torch.no_grad():
        full = linear(x).float()  # (n, N)
        gap = job.imitation(name, spec.weight, spec.act)(x).float() - full
        product = full if linear.bias is None else full - linear.bias.float()
        return float(gap.square().sum() / product.square().sum().clamp(min=torch.finfo(torch.float32).tiny))
