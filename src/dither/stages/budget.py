"""Spending a budget of bits: the paper's greedy division, and the exact integer program.

An *item* gets one width: a unit in a time range, or a unit at all times. With sizes n (weights of its layers), widths
w_0 < w_1 < ... and the loss L(w) that was measured when it alone had width w:

    spend at most    average * sum n    bits,    sum n w(item)

Greedy (ViDiT-Q, arXiv 2406.02540). Everything starts at its narrowest. Inside a role, steps to wider codes are sorted by
what they gain by the role's own metric for each bit; steps that only pay together are one (the convex hull of L). Roles have
no common metric, so their shares of the bits are in proportion to their mean squared error to full precision: the next step
is that of the role with the least (bits spent + cost of its step) / error. This order does not depend on the budget, which
only says where to stop: layer by layer, so that little is left over, and more bits never make anything worse.

Program. The widths of least summed ``L`` under the budget; see ``stages.solver``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, inf

from dither.errors import BadRecipe
from dither.stages.solver import SLACK, Limit, choose

__all__ = ["Item", "Optimum", "average_of", "check_average", "expected", "greedy", "optimum"]


@dataclass(frozen=True)
class Item:
    """One thing to choose a width for.

    Args:
        role: what its loss is about; losses of different roles are not compared.
        sizes: weights of its layers.
        widths: to choose from, ascending.
        losses: by the role's metric, for each width.
        errors: mean squared error to full precision, for each width.
    """

    role: str
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    losses: tuple[float, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True)
class Optimum:
    """What the integer program found.

    Args:
        widths: of each item.
        gap: how much less the loss could at most be, as a fraction of it; 0 where the optimum is proved.
    """

    widths: tuple[int, ...]
    gap: float


@dataclass(frozen=True)
class _Step:
    """One item from a width to a wider one, by their indices."""

    item: int
    low: int
    high: int
    gain: float
    error: float


def check_average(field: str, average: float, items: Sequence[Item]) -> None:
    """BadRecipe names the smallest average that these widths allow, if the one asked for is smaller."""
    least = average_of(items, [[item.widths[0]] * len(item.sizes) for item in items])
    if average < least - SLACK:
        up = -floor(-least * 1000 + SLACK) / 1000  # rounded up, so that what is named can be met
        raise BadRecipe(f"{field} {average:g}: the smallest average that these widths and layers allow is {up:g} bits")


def average_of(items: Sequence[Item], widths: Sequence[Sequence[int]]) -> float:
    """Bits per weight when the layers of each item have these widths."""
    spent = sum(
        n * w for item, chosen in zip(items, widths, strict=True) for n, w in zip(item.sizes, chosen, strict=True)
    )
    return spent / _total(items)


def expected(items: Sequence[Item], widths: Sequence[Sequence[int]]) -> dict[str, float]:
    """Losses summed over the items of each role, and errors over all (``mse``), as if effects added up.

    A layer counts for its share of the item's weights.
    """
    found: dict[str, float] = {"mse": 0.0}
    for item, chosen in zip(items, widths, strict=True):
        for n, w in zip(item.sizes, chosen, strict=True):
            part, i = n / sum(item.sizes), item.widths.index(w)
            found["mse"] += part * item.errors[i]
            found[item.role] = found.get(item.role, 0.0) + part * item.losses[i]
    return found


def greedy(items: Sequence[Item], average: float) -> list[list[int]]:
    """Width of every layer of every item, for an average that ``check_average`` allows."""
    widths = [[item.widths[0]] * len(item.sizes) for item in items]
    left = average * _total(items) * (1 + SLACK) - sum(sum(item.sizes) * item.widths[0] for item in items)
    for step in _in_order(items):
        item = items[step.item]
        for j, n in enumerate(item.sizes):
            left -= n * (item.widths[step.high] - item.widths[step.low])
            if left < 0:
                return widths
            widths[step.item][j] = item.widths[step.high]
    return widths


def optimum(items: Sequence[Item], average: float, seconds: float) -> Optimum:
    """The widths of least summed ``errors``.

    Args:
        items: to choose for; all layers of one get the same width.
        average: that ``check_average`` allows.
        seconds: that the solver may take.

    Raises:
        DitherError: no allocation was found in this time.
    """
    costs = [[sum(item.sizes) * w for w in item.widths] for item in items]
    best = choose([item.errors for item in items], [Limit(costs, average * _total(items))], seconds)
    return Optimum(tuple(item.widths[i] for item, i in zip(items, best.options, strict=True)), best.gap)


def _total(items: Sequence[Item]) -> int:
    return sum(sum(item.sizes) for item in items)


def _in_order(items: Sequence[Item]) -> Iterator[_Step]:
    """Every step of every item, those of a role by gain, the roles by turns in proportion to their errors."""
    queues: dict[str, list[_Step]] = {}
    error, spent = dict[str, float](), dict[str, int]()
    for i, item in enumerate(items):
        queues.setdefault(item.role, []).extend(_steps(i, item))
        error[item.role] = error.get(item.role, 0.0) + item.errors[0]
        spent[item.role] = 0
    for queue in queues.values():
        queue.sort(key=lambda s: (-s.gain, -s.error))  # stable: of equals, the one of the earlier item
        queue.reverse()

    def cost(step: _Step) -> int:
        item = items[step.item]
        return sum(item.sizes) * (item.widths[step.high] - item.widths[step.low])

    def behind(role: str) -> tuple[float, int]:
        after = spent[role] + cost(queues[role][-1])
        return (after / error[role] if error[role] > 0 else inf, after)

    while open_ones := [role for role, queue in queues.items() if queue]:
        role = min(open_ones, key=behind)
        step = queues[role].pop()
        spent[role] += cost(step)
        yield step


def _steps(index: int, item: Item) -> list[_Step]:
    """Steps along the lower convex hull of the losses, so that each gains less for a bit than the one before it."""
    hull: list[int] = []
    for j in range(len(item.widths)):
        while len(hull) > 1 and _slope(item, hull[-2], hull[-1]) <= _slope(item, hull[-2], j):
            hull.pop()
        hull.append(j)
    size = sum(item.sizes)
    return [
        _Step(index, a, b, _slope(item, a, b) / size, _slope(item, a, b, item.errors) / size) for a, b in pairwise(hull)
    ]


def _slope(item: Item, low: int, high: int, values: Sequence[float] = ()) -> float:
    """What is gained for each bit of width."""
    ys = values or item.losses
    return (ys[low] - ys[high]) / (item.widths[high] - item.widths[low])
