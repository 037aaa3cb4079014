"""Choosing a group size for each layer: the problem that all searches have in common.

Q-DiT (arXiv 2406.17343, section 3.2) gives each layer a group size of its own, the same for its weights and its inputs,
because neither quality nor cost follows the size evenly. A *unit* is what shares one: the linears that read one tensor.

    min over g   loss(g)      bits(g) <= limit,  BitOps(g) <= limit       both as ``cost`` counts them

Layers that ``assign`` gave a group size take part. Without limits the searched sizes may cost what that uniform one does, so
that what is compared is equally large.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.spec import Int, LinearSpec
from dither.stages.base import Job
from dither.stages.cost import bit_operations, weight_bits

__all__ = [
    "MEASURES",
    "SIZES",
    "Genome",
    "Limits",
    "Problem",
    "Unit",
    "check_dynamic",
    "problem_of",
    "resized",
    "settle",
]

SIZES = (32, 64, 96, 128, 192, 288, 384, 576, 768)
"""Multiples of 32, the depth of an int8 tensor-core product. Those that divide a layer's width are its choices."""
MEASURES = ("bits", "bitops")
SLACK = 1e-9
DIGITS = 1e5
"""Of limits that messages name."""

Genome = tuple[int, ...]
"""For each unit, the index of its size."""


@dataclass(frozen=True)
class Unit:
    """Linears with one group size.

    Args:
        name: of the site they read, or of the linear.
        layers: their names.
        sizes: to choose from, descending: each costs more than the one before it.
        costs: for each of ``MEASURES``, the cost of each size.
    """

    name: str
    layers: tuple[str, ...]
    sizes: tuple[int, ...]
    costs: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Limits:
    """What the sizes may cost on average; None: as much as the uniform size that ``assign`` gave.

    Args:
        bits: stored bits per weight.
        bitops: bit operations per multiply-accumulate.
    """

    bits: float | None = None
    bitops: float | None = None


@dataclass(frozen=True)
class Problem:
    """Units, and how much they may cost together.

    Args:
        units: to choose for.
        most: for each of ``MEASURES``, the limit of the sum of costs.
        per: for each of ``MEASURES``, what divides a sum of costs into the average that people read.
        uniform: the sizes nearest to the one that ``assign`` gave: of those that are no finer, the finest.
    """

    units: tuple[Unit, ...]
    most: Mapping[str, float]
    per: Mapping[str, float]
    uniform: Genome

    def cost(self, genome: Genome, measure: str) -> float:
        """The average that people read: bits per weight, or bit operations per multiply-accumulate."""
        return sum(u.costs[measure][i] for u, i in zip(self.units, genome, strict=True)) / self.per[measure]

    def allows(self, genome: Genome) -> bool:
        """Whether every limit is kept."""
        return all(self.cost(genome, m) * self.per[m] <= self.most[m] * (1 + SLACK) for m in MEASURES)

    def sizes(self, genome: Genome) -> dict[str, int]:
        """Group size of each layer."""
        return {n: u.sizes[i] for u, i in zip(self.units, genome, strict=True) for n in u.layers}


def problem_of(job: Job, tag: str, sizes: Sequence[int], limits: Limits) -> Problem:
    """The problem of this job's layers.

    Args:
        job: after ``assign``.
        tag: of the stage, for messages.
        sizes: to choose from.
        limits: asked for.

    Raises:
        BadRecipe: no layer has groups, a layer has no choice, or a limit is less than the coarsest sizes cost; the least
            that can be asked for is named.
    """
    if not sizes or any(s < 1 for s in sizes):
        raise BadRecipe(f"{tag}.sizes {list(sizes)}: name at least one group size, all positive")
    members = _members(job)
    if not members:
        raise BadRecipe(f"{tag}: no layer has a group size to search for; give assign.weight.group one")
    choices = {name: _choices(job, tag, layers, sizes) for name, layers in members.items()}
    found = [n for layers in members.values() for n in layers]
    bits = _sums(job, tag, "bits", members, choices, dict.fromkeys(found, 1.0), limits.bits)  # first: it needs no data
    bitops = _sums(job, tag, "bitops", members, choices, _tokens(job, found), limits.bitops)
    units = tuple(
        Unit(name, layers, choices[name], {"bits": bits.costs[name], "bitops": bitops.costs[name]})
        for name, layers in members.items()
    )
    given = {u.name: _group(job.specs[u.layers[0]]) for u in units}
    uniform = tuple(max((i for i, s in enumerate(u.sizes) if s >= given[u.name]), default=0) for u in units)
    most, per = {"bits": bits.most, "bitops": bitops.most}, {"bits": bits.per, "bitops": bitops.per}
    return Problem(units, most, per, uniform)


def resized(spec: LinearSpec, size: int) -> LinearSpec:
    """The spec with this group size for its weight, and for its input where that has groups too."""
    assert isinstance(spec.weight, Int)
    act = spec.act
    if act is not None and act.grid.group > 0:
        act = replace(act, grid=replace(act.grid, group=size))
    return replace(spec, weight=replace(spec.weight, group=size), act=act)


def settle(job: Job, tag: str, problem: Problem, genome: Genome, found: Mapping[str, object]) -> None:
    """Promise the sizes, and note them with what they cost; ``found`` is what else the stage has to tell."""
    for name, size in problem.sizes(genome).items():
        job.promise(name, resized(job.specs[name], size))
    costs = {m: float(f"{problem.cost(genome, m):.6g}") for m in MEASURES}
    limits = {m: float(f"{problem.most[m] / problem.per[m]:.6g}") for m in MEASURES}
    job.note(tag, {"groups": problem.sizes(genome), "costs": costs, "limits": limits, **found})


def _members(job: Job) -> dict[str, tuple[str, ...]]:
    """Layers with a group size, by unit: those of a site that have one size and one kind of input, else alone."""
    grouped = {n for n, s in job.specs.items() if isinstance(s.weight, Int) and s.weight.group > 0}
    found: dict[str, tuple[str, ...]] = {}
    for site in job.adapter.sites(job.model):
        readers = tuple(r for r in site.readers if r in grouped)
        if readers and len({(_group(job.specs[r]), job.specs[r].act) for r in readers}) == 1:
            found[site.name] = readers
    together = {name for names in found.values() for name in names}
    found |= {name: (name,) for name in job.specs if name in grouped - together}
    return found


def _choices(job: Job, tag: str, layers: tuple[str, ...], sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes of a unit, descending. Where none is coarser than what ``assign`` gave, the whole width is one too: finer sizes
    elsewhere must be paid for somewhere."""
    width = linear_at(job.model, layers[0]).in_features
    for layer in layers:
        _check_layer(job, tag, layer)
    choices = {s for s in sizes if width % s == 0}
    if not choices:
        raise BadRecipe(f"{tag}.sizes {list(sizes)}: none divides the {width} input channels of layer '{layers[0]}'")
    if max(choices) <= _group(job.specs[layers[0]]):
        choices.add(width)
    return tuple(sorted(choices, reverse=True))


def _check_layer(job: Job, tag: str, name: str) -> None:
    if name in job.varied:
        raise BadRecipe(f"{tag}: layer '{name}' changes its width over time already")
    check_dynamic(tag, name, job.specs[name])


def check_dynamic(tag: str, name: str, spec: LinearSpec) -> None:
    """BadRecipe names a layer whose input has static ranges: no search can imitate it."""
    if spec.act is not None and spec.act.static:
        raise BadRecipe(
            f"{tag}: layer '{name}' has static activations, whose ranges are not known while sizes are searched"
        )


@dataclass(frozen=True)
class _Sums:
    """One measure: costs of each unit's sizes, the limit of their sum, and what divides it."""

    costs: Mapping[str, tuple[float, ...]]
    most: float
    per: float


def _sums(
    job: Job,
    tag: str,
    measure: str,
    members: Mapping[str, tuple[str, ...]],
    choices: Mapping[str, tuple[int, ...]],
    tokens: Mapping[str, float],
    limit: float | None,
) -> _Sums:
    """Of a limit that can be met; BadRecipe names the least that can be."""

    def cost(name: str, spec: LinearSpec) -> float:
        linear = linear_at(job.model, name)
        shape = (linear.out_features, linear.in_features)
        return float(weight_bits(spec, shape)) if measure == "bits" else bit_operations(spec, shape, tokens[name])

    costs = {
        unit: tuple(sum(cost(n, resized(job.specs[n], size)) for n in layers) for size in choices[unit])
        for unit, layers in members.items()
    }
    per = sum(tokens[n] * job.dense(n).numel() for n in tokens)
    if limit is not None and not 0 < limit < inf:
        raise BadRecipe(f"{tag}.{measure} {limit:g}: must be positive and finite")
    most = sum(cost(n, job.specs[n]) for n in tokens) if limit is None else limit * per
    least = sum(of_sizes[0] for of_sizes in costs.values())
    if least > most * (1 + SLACK):
        what = "bits per weight" if measure == "bits" else "bit operations per multiply-accumulate"
        named = ceil(least / per * DIGITS) / DIGITS  # rounded up, so that what is named can be met
        raise BadRecipe(
            f"{tag}.{measure} {most / per:.6g}: the coarsest sizes take {named:.10g} {what}; nothing less can be met"
        )
    return _Sums(costs, most, per)


def _group(spec: LinearSpec) -> int:
    assert isinstance(spec.weight, Int)
    return spec.weight.group


class _Rows:
    """A probe: rows of an input for each sample."""

    def __init__(self) -> None:
        self.value = 0.0

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input x (B, ..., K)."""
        self.value = max(self.value, x[..., 0].numel() / rows.shape[0])


def _tokens(job: Job, names: Sequence[str]) -> dict[str, float]:
    """Input rows that one sample has in each layer, from one calibration call."""
    counts = {name: _Rows() for name in names}
    with torch.no_grad():
        job.observe("", {name: (probe,) for name, probe in counts.items()}, first=1)
    return {name: probe.value for name, probe in counts.items()}
