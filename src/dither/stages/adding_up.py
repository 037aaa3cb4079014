"""The group sizes of least summed loss, for searches that take what each unit loses as if effects added up.

    min sum_u loss(u, g_u)      under the limits of ``granularity``

That is an integer program, which ``solver`` solves exactly.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

from dither.errors import BadRecipe, BadValue
from dither.stages.base import Job
from dither.stages.granularity import MEASURES, Genome, Problem, settle
from dither.stages.solver import Limit, choose

__all__ = ["check_seconds", "least_sum", "settle_least"]


def check_seconds(tag: str, seconds: float) -> None:
    """BadRecipe names a time for the solver that makes no sense."""
    if not seconds > 0:
        raise BadRecipe(f"{tag}.seconds {seconds:g}: must be positive")


def least_sum(tag: str, problem: Problem, losses: Sequence[Sequence[float]], seconds: float) -> tuple[Genome, float]:
    """The genome of least summed loss, and its gap: how much less it could at most be, as a fraction of it.

    Args:
        tag: of the stage, for messages.
        problem: whose coarsest sizes keep every limit.
        losses: of each unit's sizes.
        seconds: that the solver may take.

    Raises:
        BadValue: a loss is NaN or infinite.
        DitherError: no genome was found in this time.
    """
    for unit, of_unit in zip(problem.units, losses, strict=True):
        for size, loss in zip(unit.sizes, of_unit, strict=True):
            if not isfinite(loss):
                raise BadValue(f"{tag}: the loss of unit '{unit.name}' at group size {size} is {loss}")
    limits = [Limit([unit.costs[m] for unit in problem.units], problem.most[m]) for m in MEASURES]
    best = choose(losses, limits, seconds)
    assert problem.allows(best.options)
    return best.options, best.gap


def settle_least(
    job: Job, tag: str, problem: Problem, losses: Sequence[Sequence[float]], seconds: float, found: Mapping[str, object]
) -> None:
    """Promise the sizes of least summed loss, and note what they lose beside the uniform ones; ``found`` is noted too."""

    def loss(genome: Genome) -> float:
        return float(f"{sum(of_unit[i] for of_unit, i in zip(losses, genome, strict=True)):.6g}")

    genome, gap = least_sum(tag, problem, losses, seconds)
    told = {"loss": loss(genome), "uniform_loss": loss(problem.uniform), "gap": gap}
    settle(job, tag, problem, genome, {**told, **found})
