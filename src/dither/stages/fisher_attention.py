"""WEIGHT: ranges of attention's static factors by Fisher-weighted error of its two products (TQ-DiT's HO, arXiv 2502.04056).

    Z = scale q k^T      min over scales of q, k         E sum (dL/dZ)^2 (Q(q) Q(k)^T scale - Z)^2       of each head
    Y = A v              min over the split of A, then over scales of v         E sum (dL/dY)^2 (Y^ - Y)^2

as in PTQ4ViT (arXiv 2111.12293): q and k by turns, A with v as it is, v with A rounded. Gradients are those of ``gradients``:
L is the output times random signs. All heads, and all time groups, are searched by themselves, on whole samples: a score
depends on all keys. Factors that are not static are rounded as they will be. What has no candidates keeps its full range.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dither.errors import BadRecipe
from dither.nn import attention_tensors, detach, widths_of
from dither.numerics import Table, act_quantize, dynamic_table, groups, range_table
from dither.probes import GroupRange, seen_ranges
from dither.spec import AttentionSpec, Grid, TwoRegion
from dither.stages.attention_samples import AttentionSample, attention_samples, picked
from dither.stages.base import MEASURED, Job, Phase
from dither.stages.scale_search import Ratios, has_candidates, shrunk
from dither.stages.splits import best_split, split_tables
from dither.stages.watching import spread

__all__ = ["FisherAttention"]

BYTES = 1 << 30
"""Of sampled factors and gradients in memory: as many attentions at a time as these hold, one at least."""
MOST_ROUNDS = 100


@dataclass(frozen=True)
class FisherAttention:
    """Searches the static ranges of q, k, v and probabilities; ``ranges`` takes them as they are.

    Args:
        steps, low, high: candidates, as fractions of the full range: ``low + i (high - low) / steps``.
        rounds: times that q and k have their turn, at most.
        calls: calibration calls that are looked at, at most, evenly spread over those that were recorded.
        samples: of each time group, at most.
        top: upper end of the upper region of probabilities (TQ-DiT: 1); 0: the largest that was observed.
    """

    tag: ClassVar[str] = "fisher-attention"
    phase: ClassVar[Phase] = Phase.WEIGHT
    paper: ClassVar[str] = "2502.04056"
    steps: int = 100
    low: float = 0.01
    high: float = 1.2
    rounds: int = 2
    calls: int = 16
    samples: int = 4
    top: float = 0.0

    def run(self, job: Job) -> None:
        """Fill ``job.tables`` of every attention that has static factors."""
        self._check()
        specs = {name: spec for name, spec in job.attention.items() if spec.static}
        if not specs:
            raise BadRecipe(f"{self.tag}: no attention has static ranges to search")
        if taken := next((name for name in specs if name in job.tables), None):
            raise BadRecipe(
                f"{self.tag}: another stage has found the ranges of attention '{taken}': leave one of them out"
            )
        lacking = [name for name in specs if job.lacks([f"{MEASURED}{self.tag}.{name}"])]
        factors = _factors(job, specs) if lacking else {}
        chosen = picked(job, spread(len(job.calls), self.calls), self.samples) if lacking else {}
        samples: dict[str, list[AttentionSample]] = {}
        for names in _batches(factors, sum(map(len, chosen.values()))):
            if set(names) & set(lacking):  # all of them, as before an interruption: who watches changes the last places
                samples = attention_samples(job, names, chosen, self.tag)
            for name in names:
                self._keep(job, name, partial(self._found, job, specs[name], samples.get(name, ()), factors[name]))
        for name in specs if not lacking else ():
            self._keep(job, name, dict)

    def _keep(self, job: Job, name: str, make: Callable[[], Mapping[str, Tensor]]) -> None:
        job.tables[name] = job.kept(f"{self.tag}.{name}", make)
        job.progress("searching scales of attention", len(set(job.tables) & set(job.attention)), len(job.attention))

    def _check(self) -> None:
        for field, value in (("rounds", self.rounds), ("calls", self.calls), ("samples", self.samples)):
            if value < 1 or (field == "rounds" and value > MOST_ROUNDS):
                raise BadRecipe(f"{self.tag}.{field} {value}: must be at least 1, and rounds at most {MOST_ROUNDS}")
        if not 0 <= self.top <= 1:
            raise BadRecipe(f"{self.tag}.top {self.top}: a probability, or 0 for the largest that is observed")
        self._ratios.check()

    @property
    def _ratios(self) -> Ratios:
        return Ratios(self.tag, self.low, self.high, self.steps)

    def _found(
        self, job: Job, spec: AttentionSpec, samples: Sequence[AttentionSample], factors: Mapping[str, "_Factor"]
    ) -> dict[str, Tensor]:
        """Tables ``PART.NAME`` (R, G) of the static parts; a time group without samples is searched by those of all."""
        device = next(job.model.parameters()).device
        ranges = {part: seen_ranges(p.lo.to(device), p.hi.to(device)) for part, p in factors.items()}
        if self.top and "probs" in ranges and isinstance(spec.static["probs"].grid, TwoRegion):
            lo, hi = ranges["probs"]
            ranges["probs"] = lo, torch.full_like(hi, self.top)
        (many,) = {act.rows for act in spec.static.values()}  # time groups are those of the clock
        rows = []
        for row in range(many):
            mine = [s for s in samples if s.row == row] if many > 1 else samples
            products = _Products(spec, [_Exact.of(sample, device) for sample in mine or samples])
            here = {part: (lo[row : row + 1], hi[row : row + 1]) for part, (lo, hi) in ranges.items()}
            rows.append(_searched(products, here, self._ratios, self.rounds))
        return {
            f"{part}.{key}": torch.cat([row[part][key] for row in rows]).cpu()
            for part in ranges
            for key in rows[0][part]
        }


class _Factor(GroupRange):
    """Ranges, and how many values one picture has."""

    values = 0

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's factor."""
        super().update(x, rows)
        self.values = max(self.values, x[0].numel())


def _factors(job: Job, specs: Mapping[str, AttentionSpec]) -> dict[str, dict[str, _Factor]]:
    """What static parts of attentions were, over all calls."""
    found: dict[str, dict[str, _Factor]] = {}
    for name, spec in specs.items():
        channels = widths_of(job.model.get_submodule(name)).channels
        job.rounded_attention(name, AttentionSpec(), {})  # to look at
        found[name] = {
            part: _Factor(groups(channels[part], act.grid.group), act.rows) for part, act in spec.static.items()
        }
    probes = {attention_tensors(name) + part: (p,) for name, parts in found.items() for part, p in parts.items()}
    job.observe("measuring ranges of attention", probes)
    for name in specs:
        detach(job.model.get_submodule(name))
    return found


def _batches(factors: Mapping[str, Mapping[str, _Factor]], samples: int) -> list[list[str]]:
    """Names in their order, as many together as ``BYTES`` hold."""
    found: list[list[str]] = []
    room = 0
    for name, parts in factors.items():
        need = 4 * samples * 4 * max(p.values for p in parts.values())  # q, k, v and a gradient
        if not found or need > room:
            found.append([])
            room = BYTES
        found[-1].append(name)
        room -= need
    return found


def _searched(
    products: "_Products", ranges: Mapping[str, tuple[Tensor, Tensor]], ratios: Ratios, rounds: int
) -> dict[str, Table]:
    """A row (1, G) of each static part, from full ranges (1, G)."""
    spec = products.spec
    tables = {part: _full(products, part, lo, hi) for part, (lo, hi) in ranges.items()}

    def turn(part: str) -> bool:
        """Whether a better table was found."""
        act = spec.static[part]
        tried = [tables[part], *_candidates(act.grid, *ranges[part], ratios)]
        others = products.others(part, tables)
        errors = torch.stack([products.error(part, table, others) for table in tried])  # (C, G)
        best = errors.argmin(0)  # the first of equals
        tables[part] = {key: torch.cat([t[key] for t in tried]).gather(0, best[None]) for key in tables[part]}
        return bool(best.any())

    for _ in range(rounds):
        turned = [turn(part) for part in ("q", "k") if part in tables]
        if not any(turned):
            break
    for part in ("probs", "v"):
        if part in tables:
            turn(part)
    return tables


def _full(products: "_Products", part: str, lo: Tensor, hi: Tensor) -> Table:
    """The table of a full range; of two regions of probabilities, that of least squared error."""
    grid = products.spec.static[part].grid
    if isinstance(grid, TwoRegion) and not grid.signed:
        a = torch.cat([x.a.flatten() for x in products.samples])
        return {key: t.reshape(1, 1) for key, t in best_split(a, hi.flatten()[0], grid).items()}
    return range_table(lo, hi, grid)


def _candidates(grid: Grid, lo: Tensor, hi: Tensor, ratios: Ratios) -> list[Table]:
    if isinstance(grid, TwoRegion) and not grid.signed:
        return [{key: t.reshape(1, 1) for key, t in table.items()} for table in split_tables(hi.flatten()[0], grid)]
    return list(shrunk(lo, hi, grid, ratios)) if has_candidates(grid) else []


@dataclass(frozen=True)
class _Exact:
    """What a sample's products are without rounding, and what errors of each value count.

    Args:
        q, k, v: (H, N, d), (H, M, d), (H, M, e).
        a: (H, N, M), as are scores.
        y: (H, N, e).
        by_scores, by_y: squared gradients of either.
        scale: of scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    a: Tensor
    y: Tensor
    by_scores: Tensor
    by_y: Tensor
    scale: float

    @property
    def factors(self) -> dict[str, Tensor]:
        """By the names of parts."""
        return {"q": self.q, "k": self.k, "v": self.v, "probs": self.a}

    @staticmethod
    def of(sample: AttentionSample, device: torch.device) -> "_Exact":
        """Computed anew: of what is sampled, q, k, v and a gradient are the least."""
        q, k, v, g = (t.to(device) for t in (sample.q, sample.k, sample.v, sample.gradient))
        scores = q @ k.mT * sample.scale
        a = (scores if sample.mask is None else scores + sample.mask.to(device)).softmax(-1)
        slope = g @ v.mT  # by A
        slope = a * (slope - (slope * a).sum(-1, keepdim=True))
        return _Exact(q, k, v, scores, a, a @ v, slope.square(), g.square(), sample.scale)


@dataclass(frozen=True)
class _Products:
    """Both products of samples that share a row of each table."""

    spec: AttentionSpec
    samples: Sequence[_Exact]

    def others(self, part: str, tables: Mapping[str, Table]) -> list[Tensor]:
        """The other factor of a part's product in each sample, rounded once for all candidates; v as it is beside A."""
        other = {"q": "k", "k": "q", "v": "probs"}.get(part)
        if other is None:
            return [x.v for x in self.samples]
        return [self._rounded(other, x.factors[other], tables.get(other, {})) for x in self.samples]

    def error(self, part: str, table: Table, others: Sequence[Tensor]) -> Tensor:
        """What rounding of a part costs beside ``others``: of each of its groups, (G,)."""
        each = torch.stack([self._error(x, part, table, other) for x, other in zip(self.samples, others, strict=True)])
        return each.sum(0).reshape(next(iter(table.values())).shape[1], -1).sum(1)

    def _error(self, x: _Exact, part: str, table: Table, other: Tensor) -> Tensor:
        """Of each head (H,) for q and k, each channel (H e,) for v, and all in one (1,) for probabilities."""
        mine = self._rounded(part, x.factors[part], table)
        if part in ("q", "k"):
            q, k = (mine, other) if part == "q" else (other, mine)
            return (x.by_scores * (q @ k.mT * x.scale - x.scores).square()).sum((1, 2))
        a, v = (mine, other) if part == "probs" else (other, mine)
        each = (x.by_y * (a @ v - x.y).square()).sum(1).flatten()
        return each if part == "v" else each.sum()[None]

    def _rounded(self, part: str, x: Tensor, table: Table) -> Tensor:
        """(H, N, d), whose heads lie side by side for tables; probabilities have no channels."""
        act = self.spec.parts[part]
        if act is None:
            return x
        flat = x.flatten(0, 1) if part == "probs" else x.transpose(0, 1).flatten(1)
        y = act_quantize(flat, act.grid, table if act.static else dynamic_table(flat, act.grid))
        return y.view_as(x) if part == "probs" else y.reshape(x.shape[1], len(x), -1).transpose(0, 1)
