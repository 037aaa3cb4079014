"""Second moments of what a linear multiplies, streamed over calibration calls: the Hessian of its squared output error.

    H = sum_t w_t  x^ x^^T / sum_t w_t        m^ = mean x^        m = mean x

x is the layer's input after its online transforms, x^ the same as the layer will see it, quantized; without quantized
inputs both are one. w_t weighs a range of the noise level. Linears that read one tensor in one way share one H. Conditional
and unconditional rows are both in it, as the sampler made them.

What a modulation linear reads follows from noise level and class alone: its moments are sums over every class and many
noise levels, in closed form, without a picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dither.calibrate import BlockStep
from dither.clock import Clock
from dither.errors import BadRecipe, BadValue
from dither.models.base import Conditioning, linear_at
from dither.nn import QLinear
from dither.numerics import act_quantize, dynamic_table
from dither.spec import Act
from dither.stages.base import Job
from dither.stages.channels import equal_edges, ranges_of, sites_of
from dither.stages.data_free import levels_between

__all__ = ["Gather", "Moments", "chunks"]

GIB = 1 << 30


class Moments:
    """A probe: moments of one layer's input.

    Args:
        layer: whose input it is; its online transforms are applied.
        act: how the input is quantized; None: not, or not yet (static ranges come later).
        weights: of the ranges of the noise level that ``rows`` counts.
    """

    def __init__(self, layer: nn.Linear, act: Act | None, weights: Tensor) -> None:
        k = layer.in_features
        self.layer, self.act, self.weights = layer, act, weights
        self.rows = 0
        self._mass = 0.0
        self._h = torch.zeros(k, k)
        self._seen, self._plain = torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input x (B, ..., K); ``rows`` (B,) are the ranges of the samples' noise levels."""
        weights = self.weights.to(x.device)[rows.to(x.device)]  # (B,)
        if x.ndim < 2 or x.shape[0] % len(weights):  # one input for all samples
            weights = weights.mean()[None]
        self.add(x, weights)

    def add(self, x: Tensor, weights: Tensor) -> None:
        """The same with a weight for each of B samples, which have equally many rows in x (..., K)."""
        plain = self.layer.transform(x) if isinstance(self.layer, QLinear) else x
        plain = plain.detach().float()
        seen = plain
        if self.act is not None:
            seen = act_quantize(plain, self.act.grid, dynamic_table(plain, self.act.grid))
        plain, seen = plain.reshape(-1, plain.shape[-1]), seen.reshape(-1, plain.shape[-1])  # (n, K)
        self.rows += len(plain)
        self._mass += float(weights.sum()) * (len(plain) // len(weights))
        alike = bool((weights == weights[0]).all())
        weight = float(weights[0]) if alike else 1.0
        heavy, lifted = seen, plain
        if not alike:  # a copy of all inputs, which the usual case does without
            each = weights.float().repeat_interleave(len(plain) // len(weights))[:, None]  # (n, 1)
            heavy, lifted = seen * each, plain * each
        self._h = self._h.to(x.device).addmm_(heavy.T, seen, alpha=weight)
        self._seen = self._seen.to(x.device) + weight * heavy.sum(0, dtype=torch.float64)
        self._plain = self._plain.to(x.device) + weight * lifted.sum(0, dtype=torch.float64)

    @property
    def h(self) -> Tensor:
        """H (K, K)."""
        return self._h / self._mass

    @property
    def seen(self) -> Tensor:
        """m^ (K,)."""
        return (self._seen / self._mass).float()

    @property
    def plain(self) -> Tensor:
        """m (K,)."""
        return (self._plain / self._mass).float()


@dataclass(frozen=True)
class Gather:
    """How moments are gathered; the fields are those of a stage.

    Args:
        stage: its tag, for messages.
        quantized: inputs as the layer will see them; otherwise in full precision.
        weights: of equal ranges of the noise level, from low to high; empty: all alike.
        least: rows that a layer must see.
        levels: noise levels at which modulation is looked at in closed form; 0: measure it like all others.
    """

    stage: str
    quantized: bool = True
    weights: tuple[float, ...] = ()
    least: int = 1
    levels: int = 0

    def check(self) -> None:
        """BadRecipe names a field that makes no sense."""
        if any(not 0 <= w < float("inf") for w in self.weights) or (self.weights and not any(self.weights)):
            raise BadRecipe(f"{self.stage}.time_weights {list(self.weights)}: must be finite, not negative, not all 0")
        if self.least < 1:
            raise BadRecipe(f"{self.stage}.rows {self.least}: must be at least 1")
        if not 0 <= self.levels <= 1000:
            raise BadRecipe(f"{self.stage}.levels {self.levels}: must be 0 to 1000")

    def observed(self, job: Job, names: Sequence[str], what: str, block: BlockStep | None = None) -> dict[str, Moments]:
        """Moments of these layers; one pass over the calibration calls, or over those of a block of a walk.

        Raises:
            BadValue: a layer saw too few rows, or only noise levels that weigh nothing.
        """
        found, known = self._probes(job, names)
        closed = self._closed(job, known)
        readers = {first: (probe,) for first, probe in known.items() if first not in closed}
        if readers:
            job.observe(what, readers, ranges_of(job, equal_edges(max(len(self.weights), 1))), block)
        for first, probe in known.items():
            if first not in closed and probe.rows < self.least:
                raise BadValue(
                    f"layer '{first}' has seen {probe.rows} calibration rows, and {self.stage}.rows asks for "
                    f"{self.least}: calibrate with more samples, calls or steps"
                )
            if not probe._mass > 0:
                raise BadValue(f"layer '{first}' was only seen at noise levels that {self.stage}.time_weights weighs 0")
        return found

    def _probes(self, job: Job, names: Sequence[str]) -> tuple[dict[str, Moments], dict[str, Moments]]:
        """Each layer's moments, and those to observe: readers of one site share one if they see it alike."""
        sites = sites_of(job)
        weights = torch.tensor(self.weights or (1.0,))
        shared: dict[tuple[object, ...], Moments] = {}
        found, first = dict[str, Moments](), dict[str, Moments]()
        for name in names:
            layer, act = linear_at(job.model, name), job.specs[name].act
            act = None if act is None or act.static or not self.quantized else act
            key = (sites.get(name, name), act, _transform(layer))
            if key not in shared:
                shared[key] = first[name] = Moments(layer, act, weights)
            found[name] = shared[key]
        return found, first

    def _closed(self, job: Job, probes: Mapping[str, Moments]) -> set[str]:
        """Fills the moments of layers whose inputs are known without a call; their names."""
        known = {r: s.inputs for s in job.adapter.sites(job.model) for r in s.readers if s.inputs is not None}
        chosen = {name for name in probes if name in known and self.levels}
        if chosen:
            branches = torch.cat([job.adapter.branch(job.model, call) for call in job.calls])
            share = float((branches == 1).float().mean())
        for name in chosen:
            _sum(job.model, probes[name], known[name], levels_between(0, 1, self.levels), self.weights, share)
        return chosen


def _transform(layer: nn.Linear) -> object:
    """What tells apart how layers transform one input."""
    return layer._transform_key() if isinstance(layer, QLinear) else b""


def _sum(
    model: nn.Module, probe: Moments, inputs: Conditioning, levels: Tensor, weights: Sequence[float], share: float
) -> None:
    """``share`` of the rows are unconditional, as the sampler asks for them."""
    ranges = Clock(equal_edges(max(len(weights), 1)))
    table = torch.tensor(weights or (1.0,))
    for i in range(len(levels)):
        level = levels[i : i + 1]
        rows, null = inputs(model, level)  # (classes, K), (classes,)
        each = torch.where(null, share / null.sum().clamp(min=1), (1 - share) / (~null).sum().clamp(min=1))
        probe.add(rows, each * float(table[ranges.rows_at(level, torch.zeros_like(level))]))


def chunks(
    job: Job, gather: Gather, names: Sequence[str], limit: float, what: str, lacking: Callable[[Sequence[str]], bool]
) -> Iterator[tuple[tuple[str, ...], dict[str, Moments]]]:
    """Layers with their moments, as many at a time as ``limit`` GiB hold; each chunk is a pass over all calls.

    Moments of a chunk are gone when the next is asked for. Where nothing of one is ``lacking`` it has none, and no pass.
    """
    for part in _parts(job, names, limit):
        found = gather.observed(job, part, what) if lacking(part) else {}
        yield part, found
        found.clear()


def _parts(job: Job, names: Sequence[str], limit: float) -> Iterator[tuple[str, ...]]:
    """Layers whose Hessians, one for each site, take at most ``limit`` GiB; at least one layer."""
    sites = sites_of(job)
    part: list[str] = []
    held: dict[str, float] = {}
    for name in names:
        width = linear_at(job.model, name).in_features
        size = width * width * 4 / GIB
        key = sites.get(name, name)
        if part and key not in held and sum(held.values()) + size > limit:
            yield tuple(part)
            part, held = [], {}
        part.append(name)
        held[key] = size
    if part:
        yield tuple(part)
