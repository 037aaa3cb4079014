"""The exact choice of one option for each item, when options have losses and costs that add up.

    min sum_i sum_j L_ij x_ij      sum_j x_ij = 1,      sum_i sum_j c_ij x_ij <= most      for each limit,  x binary

by HiGHS (through SciPy), whose tolerances are absolute. So losses are scaled, and costs become whole numbers with nothing in
common: what every choice costs at least is taken away, and the greatest common divisor of the rest is one. Half of one above
a limit then lets nothing more in, and no tolerance matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd, lcm

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from dither.errors import DitherError

__all__ = ["SLACK", "Choice", "Limit", "choose"]

SLACK = 1e-9
"""Of a limit, as a fraction of it: limits come as averages in floating point."""
UNITS = 1e4
"""Losses are scaled to this sum before HiGHS sees them."""
FINEST = 10**6
"""Largest denominator of a cost: where an input belongs to several samples, each has a fraction of it."""
OPTIMAL, OUT_OF_TIME = 0, 1


@dataclass(frozen=True)
class Limit:
    """One sum that must not be exceeded.

    Args:
        costs: of each item's options; whole numbers or fractions of small denominators.
        most: of the sum over items.
    """

    costs: Sequence[Sequence[float]]
    most: float


@dataclass(frozen=True)
class Choice:
    """What the solver found.

    Args:
        options: index of each item's option.
        gap: how much less the loss could at most be, as a fraction of it; 0 where the optimum is proved.
    """

    options: tuple[int, ...]
    gap: float


def choose(losses: Sequence[Sequence[float]], limits: Sequence[Limit], seconds: float) -> Choice:
    """The options of least summed loss.

    Args:
        losses: of each item's options.
        limits: all of which the cheapest options keep together.
        seconds: that the solver may take; if they do not suffice, the best choice that it has is taken.

    Raises:
        DitherError: no choice was found in this time.
    """
    owners = [i for i, options in enumerate(losses) for _ in options]
    one_each = np.zeros((len(losses), len(owners)))
    one_each[owners, range(len(owners))] = 1
    scale = UNITS / (sum(max(options) for options in losses) or UNITS)
    whole = [_whole(limit) for limit in limits]
    found = milp(
        np.array([x for options in losses for x in options]) * scale,
        integrality=np.ones(len(owners)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            *(LinearConstraint(costs[None], ub=most + 0.5) for costs, most in whole),
        ],
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    if found.x is None or found.status not in (OPTIMAL, OUT_OF_TIME):
        raise DitherError(f"no allocation was found in {seconds:g} seconds: {found.message}")
    chosen = np.flatnonzero(found.x > 0.5)
    assert len(chosen) == len(losses)
    assert all(costs[chosen].sum() <= most for costs, most in whole)
    first = np.flatnonzero(np.diff(owners, prepend=-1))  # where each item's options begin
    return Choice(tuple((chosen - first).tolist()), 0.0 if found.status == OPTIMAL else float(found.mip_gap))


def _whole(limit: Limit) -> tuple[NDArray[np.float64], float]:
    """Costs above each item's cheapest option, and what is left for them, in the largest unit that makes all whole."""
    exact = [[Fraction(c).limit_denominator(FINEST) for c in options] for options in limit.costs]
    least = [min(options) for options in exact]
    above = [c - low for options, low in zip(exact, least, strict=True) for c in options]
    part = lcm(*(c.denominator for c in above))
    unit = Fraction(gcd(*(int(c * part) for c in above)) or 1, part)
    left = Fraction(limit.most * (1 + SLACK)) - sum(least)
    costs = np.array([float(c / unit) for c in above])
    return costs, min(floor(left / unit), costs.sum())  # a limit far above all costs is none
