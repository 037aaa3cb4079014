"""What is reconstructed together, in which order, and on what: blocks or single linears, with inputs and targets.

Inside a block of a walk, targets are what the full-precision model gives there, and inputs what the quantized model gives. A
linear outside of all blocks is its own target: what its full-precision weight makes of the inputs that it receives.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dither.calibrate import PairStep, lockstep, replay, tapped
from dither.models.base import Call
from dither.stages.base import Job
from dither.stages.effects import Weigh, alike
from dither.stages.minibatches import Samples, some_of

__all__ = ["Draw", "Drawn", "Part", "full_precision", "parts_of", "some_calls", "walked"]


@dataclass(frozen=True)
class Drawn:
    """Denoiser calls to train on.

    Args:
        calls: of few samples each.
        rows: clock rows of their samples, (B,) int64 each.
        weights: of their samples, (B,) each.
    """

    calls: Sequence[Call]
    rows: Sequence[Tensor]
    weights: Sequence[Tensor]


Draw: TypeAlias = Callable[[], Drawn]


@dataclass(frozen=True)
class Part:
    """Linears that are reconstructed together.

    Args:
        name: of the block, or of the linear alone.
        layers: the linears.
        block: that the part is or lies in; empty outside of all.
    """

    name: str
    layers: tuple[str, ...]
    block: str


def parts_of(job: Job, names: Sequence[str], blocks: bool) -> list[Part]:
    """Block by block, whole or one linear after the other, then what lies outside of all."""
    layers = job.layers
    found = []
    for block in job.adapter.blocks(job.model):
        inside = tuple(n for n in layers if n in names and layers[n].block == block)
        if blocks and inside:
            found.append(Part(block, inside, block))
        else:
            found += [Part(n, (n,), block) for n in inside]
    return found + [Part(n, (n,), "") for n in layers if n in names and not layers[n].block]


def full_precision(job: Job, module: nn.Module) -> nn.Module:
    """A copy that stays as it is, under the job's own clock."""
    return copy.deepcopy(module, {id(job.clock): job.clock})


def some_calls(job: Job, every: Sequence[Call], samples: int, weigh: Weigh = alike) -> Drawn:
    """Calls with at most so many samples of all together: an equal share of each call, at random, or one of every few
    calls."""
    chosen = every[:: -(-len(every) // samples)]
    share = samples // len(chosen)
    make = torch.Generator().manual_seed(job.seed)
    calls, rows, weights = [], [], []
    for call, counts in zip(chosen, weigh(job, chosen), strict=True):
        now = job.rows(call)
        index = torch.randperm(len(now), generator=make)[:share].sort().values
        calls.append(some_of(call, len(now), index.tolist()))
        rows.append(now[index])
        weights.append(counts[index])
    return Drawn(calls, rows, weights)


def walked(
    job: Job, parts: Sequence[Part], exact: nn.Module, draw: Draw, lacking: Callable[[Part], bool]
) -> Iterator[tuple[Part, Samples | None]]:
    """Every part in order, with what to train it on; None where nothing of it is lacking.

    Quantize a part before asking for the next one. Once nothing is lacking, nothing is walked any more.

    Args:
        job: whose model is walked.
        parts: in order.
        exact: the full-precision model: the job's own, which may change part by part, or a copy.
        draw: asked only if anything is lacking.
        lacking: whether a part must be trained.
    """
    inside, outside = [p for p in parts if p.block], [p for p in parts if not p.block]
    drawn = draw() if any(map(lacking, parts)) else Drawn((), (), ())
    apart = None if exact is job.model else exact
    if any(map(lacking, inside)):
        for step in lockstep(job.model, job.adapter, drawn.calls, drawn.rows, job.clock.tell, apart):
            mine = [p for p in inside if p.block == step.name]
            yield from _within(job, step, mine, apart, drawn, lacking)
            inside = [p for p in inside if p not in mine]
            if not any(map(lacking, inside)):
                break
    yield from ((part, None) for part in inside)
    for part in outside:
        if lacking(part):
            received, _ = tapped(job.model, part.name, drawn.calls, drawn.rows, job.clock.tell)
            own = exact.get_submodule(part.name)
            given = [_answer(job, own, *pair) for pair in zip(received, drawn.rows, strict=True)]
            yield part, Samples(received, given, drawn.rows, drawn.weights)
        else:
            yield part, None


def _answer(job: Job, module: nn.Module, call: Call, rows: Tensor) -> Tensor:
    job.clock.tell(rows)
    answer: Tensor = replay(module, call)
    return answer.cpu()


def _within(
    job: Job,
    step: PairStep,
    parts: Sequence[Part],
    exact: nn.Module | None,
    drawn: Drawn,
    lacking: Callable[[Part], bool],
) -> Iterator[tuple[Part, Samples | None]]:
    """Parts of one block of a walk; ``exact`` as of ``lockstep``."""
    block = step.module if exact is None else exact.get_submodule(step.name)
    if exact is None and any(p.name != step.name for p in parts):  # no longer exact when its second linear comes
        block = full_precision(job, block)
    for part in parts:
        if not lacking(part):
            yield part, None
        elif part.name == step.name:
            yield part, Samples(step.calls, step.targets, drawn.rows, drawn.weights)
        else:
            name = part.name.removeprefix(f"{step.name}.")
            received, _ = tapped(job.model.get_submodule(step.name), name, step.calls, drawn.rows, job.clock.tell)
            _, given = tapped(block, name, step.exact, drawn.rows, job.clock.tell)
            yield part, Samples(received, given, drawn.rows, drawn.weights)
