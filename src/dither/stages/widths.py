"""Choosing a width for each layer and time range: what the greedy and the exact stage have in common.

    check       the fields, and whether any allocation meets the budgets, before anything is measured
    measure     what each unit does to pictures, weights and inputs apart
    allocate    one problem for the weights, one for the inputs
    settle      ``job.promise`` where a layer's widths stay, ``job.vary`` where they change with the noise level

Averages are over weight counts (those of inputs too: a linear's work grows with its weights) and over equal ranges of the
noise level, and count codes alone. Layers that an earlier stage left in full precision are not among them. A modulation
layer never gets fewer bits than that stage gave it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from dither.errors import BadRecipe
from dither.models.base import Layer, linear_at
from dither.spec import Act, Format, Int, LinearSpec, Nested, Timed
from dither.stages.base import Job, Study
from dither.stages.budget import Item, check_average
from dither.stages.channels import Times, check_edges, equal_edges
from dither.stages.known import check_widths, of_width
from dither.stages.nesting import views_of
from dither.stages.roles import Unit, units_of
from dither.stages.sensitivity import Losses, Variant, measure

__all__ = ["SIDES", "Asked", "Problem", "Side", "Solution", "check_drawing"]

Side: TypeAlias = Literal["weight", "act"]
SIDES: tuple[Side, ...] = ("weight", "act")
MOST_RANGES = 1000
Solution: TypeAlias = Sequence[Sequence[int]]
"""Width of every layer of every item."""


@dataclass(frozen=True)
class Problem:
    """The choice of one side's widths.

    Args:
        side: weights or inputs.
        average: the budget.
        units: to choose for, each with its widths, ascending.
        items: one for each unit and time range, or one for each unit where ``whole``.
        whole: one width at all times.
    """

    side: Side
    average: float
    units: tuple[tuple[Unit, tuple[int, ...]], ...]
    items: tuple[Item, ...]
    whole: bool


@dataclass(frozen=True)
class Asked:
    """The fields of a stage that chooses widths; see ``Mixed``."""

    tag: str
    averages: Mapping[Side, float | None]
    widths: Mapping[Side, tuple[int, ...]]
    ranges: int
    stored: bool
    nested: bool
    by_layer: bool = False

    @property
    def edges(self) -> tuple[float, ...]:
        """Inner edges of the time ranges."""
        return equal_edges(self.ranges)

    @property
    def sides(self) -> tuple[Side, ...]:
        """Those that are mixed."""
        return tuple(side for side in SIDES if self.averages[side] is not None)

    def problems(self, job: Job) -> tuple[Problem, ...]:
        """What is to be chosen, still without losses. BadRecipe if it cannot be."""
        self._check(job)
        return tuple(self._problem(job, side) for side in self.sides)

    def measured(self, job: Job, study: Study, problems: Sequence[Problem]) -> tuple[Problem, ...]:
        """The problems with the losses of their items."""
        units = [(u, self._variants(job, p.side, widths)) for p in problems for u, widths in p.units]
        losses = measure(job, study, units, self.edges)
        for problem in problems:
            self._note_sensitivity(job, problem, losses)
        return tuple(replace(p, items=self._known_items(p, losses)) for p in problems)

    def _known_items(self, problem: Problem, losses: Mapping[tuple[str, int, str], Losses]) -> tuple[Item, ...]:
        places = zip(self._places(problem), problem.items, strict=True)
        return tuple(
            _filled(item, [[losses.get((unit.name, r, _name(problem.side, w)), {}) for r in at] for w in widths])
            for (unit, widths, at), item in places
        )

    def settle(self, job: Job, solutions: Sequence[tuple[Problem, Solution]]) -> None:
        """Tell the job what was chosen."""
        by_layer: dict[str, dict[Side, list[int]]] = {}
        for problem, solution in solutions:
            for (unit, _, at), widths in zip(self._places(problem), solution, strict=True):
                for name, width in zip(unit.layers, widths, strict=True):
                    chosen = by_layer.setdefault(name, {}).setdefault(problem.side, [0] * self.ranges)
                    for r in at:
                        chosen[r] = width
        specs = {name: self._specs(job.specs[name], chosen) for name, chosen in by_layer.items()}
        if any(len(set(over_time)) > 1 for over_time in specs.values()) and not job.time_edges:
            job.set_clock(self.edges, 1)
        for name, over_time in specs.items():
            acts = [None if s.act is None else s.act.grid.bits for s in over_time]
            job.note(name, {"widths": {"weight": [_bits(s, "weight") for s in over_time], "act": acts}})
            self._tell(job, name, over_time)

    def _check(self, job: Job) -> None:
        for side in self.sides:
            widths = self.widths[side]
            if not widths or list(widths) != sorted(set(widths)) or not (widths[0] >= 1 and widths[-1] <= 8):
                raise BadRecipe(f"{self.tag}.{side}_widths {list(widths)}: must ascend from at least 1 to at most 8")
        if not 1 <= self.ranges <= MOST_RANGES:
            raise BadRecipe(f"{self.tag}.ranges {self.ranges}: must be 1 to {MOST_RANGES}")
        if (job.time_edges, job.branches) != ((), 1):
            check_edges(job, f"{self.tag}.ranges {self.ranges}", self.edges)

    def _problem(self, job: Job, side: Side) -> Problem:
        average, whole = self.averages[side], self.stored and side == "weight"
        assert average is not None
        layers = {x.name: x for x in job.layers.values() if self._is_mixed(job, x, side)}
        if not layers:
            raise BadRecipe(
                f"{self.tag}.{side} {average:g}: no layer has quantized {side}s to mix; put 'assign' before"
            )
        units = tuple((u, self._choices(job, layers, u, side)) for u in units_of(layers.values(), self.by_layer))
        items = []
        for unit, widths in units:
            sizes = tuple(_size(job, name) for name in unit.layers)
            nothing = (0.0,) * len(widths)
            items += [Item(unit.role, sizes, widths, nothing, nothing)] * (1 if whole else self.ranges)
        check_average(f"{self.tag}.{side}", average, items)
        return Problem(side, average, units, tuple(items), whole)

    def _is_mixed(self, job: Job, layer: Layer, side: Side) -> bool:
        spec = job.specs.get(layer.name, LinearSpec())
        if layer.name in job.varied:
            raise BadRecipe(f"{self.tag}: layer '{layer.name}' changes its width over time already")
        if (spec.weight if side == "weight" else spec.act) is None:
            return False
        if not isinstance(spec.weight, Int):
            raise BadRecipe(
                f"{self.tag}: layer '{layer.name}' has {spec.weight} weights, and only integers can be mixed"
            )
        if side == "act" and spec.act is not None:
            check_widths(f"{self.tag}.act", layer.name, spec.act)
        if spec.act is not None and spec.act.static and not (self.stored and side == "weight"):
            raise BadRecipe(
                f"{self.tag}: layer '{layer.name}' has static activations, and only dynamic ones can change over time"
            )
        return True

    def _choices(self, job: Job, layers: Mapping[str, Layer], unit: Unit, side: Side) -> tuple[int, ...]:
        """A unit's widths. Modulation keeps at least what it was given."""
        given = max((_bits(job.specs[n], side) for n in unit.layers if layers[n].kind == "adaln"), default=0)
        return (given, *(w for w in self.widths[side] if w > given)) if given else self.widths[side]

    def _places(self, problem: Problem) -> list[tuple[Unit, tuple[int, ...], tuple[int, ...]]]:
        """Unit, widths and time ranges of each item."""
        if problem.whole:
            return [(unit, widths, tuple(range(self.ranges))) for unit, widths in problem.units]
        return [(unit, widths, (r,)) for unit, widths in problem.units for r in range(self.ranges)]

    def _variants(self, job: Job, side: Side, widths: tuple[int, ...]) -> list[Variant]:
        """What a unit is turned into to be measured: every width but the widest."""
        top = widths[-1] if self.nested and not self.stored else 0
        if side == "weight":
            return [Variant(_name(side, w), partial(_weight, job, top, w), _none) for w in widths[:-1]]
        return [Variant(_name(side, w), _none, partial(_act, job, w)) for w in widths[:-1]]

    def _note_sensitivity(self, job: Job, problem: Problem, losses: Mapping[tuple[str, int, str], Losses]) -> None:
        for unit, widths in problem.units:
            shown = {}
            for w in widths[:-1]:
                over_time = [losses[unit.name, r, _name(problem.side, w)] for r in range(self.ranges)]
                shown[_name(problem.side, w)] = {
                    key: [float(f"{x[key]:.3g}") for x in over_time]
                    for key in ("mse", unit.role)
                    if key in over_time[0]
                }
            for name in unit.layers:
                known = job.notes.get(name, {}).get("sensitivity", {})
                job.note(name, {"sensitivity": {**known, "role": unit.role, **shown}})

    def _specs(self, spec: LinearSpec, chosen: Mapping[Side, Sequence[int]]) -> list[LinearSpec]:
        """A layer's spec in each time range, from low to high noise."""
        specs = [spec] * self.ranges
        if "weight" in chosen:
            assert isinstance(spec.weight, Int)
            specs = [
                replace(s, weight=replace(spec.weight, bits=b)) for s, b in zip(specs, chosen["weight"], strict=True)
            ]
        if "act" in chosen:
            assert spec.act is not None
            acts = [of_width(spec.act, b) for b in chosen["act"]]
            specs = [replace(s, act=act) for s, act in zip(specs, acts, strict=True)]
        return specs

    def _tell(self, job: Job, name: str, specs: Sequence[LinearSpec]) -> None:
        kinds = tuple(dict.fromkeys(specs))
        if len(kinds) == 1:
            job.promise(name, kinds[0])
            return
        runs = [specs[r] for r in Times.cut(job, self.edges).select]
        if self.nested or len({_bits(s, "weight") for s in kinds}) == 1:
            job.vary(name, views_of(runs))
        else:
            job.vary(name, Timed(kinds, tuple(map(kinds.index, runs))))


def check_drawing(tag: str, samples: int, steps: int) -> None:
    """BadRecipe names the field of a drawing that makes no sense."""
    for field, value in (("samples", samples), ("steps", steps)):
        if value < 1:
            raise BadRecipe(f"{tag}.{field} {value}: must be at least 1")


def _filled(item: Item, losses: Sequence[Sequence[Losses]]) -> Item:
    """An item with losses [width][range], summed over its ranges. More bits never count as a loss: that is noise."""

    def column(key: str) -> tuple[float, ...]:
        sums = [sum(x.get(key, 0.0) for x in over_time) for over_time in losses]  # the widest has none: 0
        for i, _ in enumerate(sums[1:], 1):
            sums[i] = min(sums[i - 1], sums[i])
        return tuple(sums)

    return replace(item, losses=column(item.role), errors=column("mse"))


def _none(name: str) -> None:
    """Full precision."""


def _weight(job: Job, top: int, bits: int, name: str) -> Format:
    """The format of a layer's weight at this width; the high bits of ``top`` bits, if there is a top."""
    fmt = job.specs[name].weight
    assert isinstance(fmt, Int)
    return Nested(replace(fmt, bits=top), bits) if top > bits else replace(fmt, bits=bits)


def _act(job: Job, bits: int, name: str) -> Act:
    act = job.specs[name].act
    assert act is not None
    return of_width(act, bits)


def _bits(spec: LinearSpec, side: Side) -> int:
    if side == "weight":
        assert isinstance(spec.weight, Int)
        return spec.weight.bits
    assert spec.act is not None
    return spec.act.grid.bits


def _size(job: Job, name: str) -> int:
    linear = linear_at(job.model, name)
    return linear.in_features * linear.out_features


def _name(side: Side, bits: int) -> str:
    return f"{side[0]}{bits}"
