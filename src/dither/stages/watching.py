"""Recorded calls replayed with gradients: some samples at a time, every use of the layers in question watched.

``pieces`` cuts a call, ``watched`` keeps what each layer multiplies and gives, ``gradients`` takes a scalar back to what they
gave. No parameter gets a gradient, and the model is left as it was. A piece's graph is what takes memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dither.calibrate import replay
from dither.errors import BadModel
from dither.models.base import Call, linear_at
from dither.nn import QLinear
from dither.stages.base import Job
from dither.stages.minibatches import some_of

__all__ = ["Piece", "Uses", "answer", "by_sample", "gradients", "inputs", "pieces", "signs", "spread", "watched"]

SAMPLES = 4
"""Of a call at a time."""

Uses: TypeAlias = Mapping[str, list[tuple[Tensor, Tensor]]]
"""By layer, each use: what the weight is multiplied with, and the output in the graph."""


@dataclass(frozen=True)
class Piece:
    """Some samples of a recorded call.

    Args:
        index: of the call.
        part: which of its samples.
        rows: their clock rows, (B,) int64.
        call: the call with these samples alone.
    """

    index: int
    part: slice
    rows: Tensor
    call: Call


def spread(count: int, most: int) -> list[int]:
    """At most this many of ``count`` indices, in the middles of equal parts."""
    parts = min(count, most)
    return [(2 * i + 1) * count // (2 * parts) for i in range(parts)]


def pieces(job: Job, index: int) -> Iterator[Piece]:
    """A recorded call in pieces; the clock is told the time of each."""
    call = job.calls[index]
    rows = job.rows(call)
    for start in range(0, len(rows), SAMPLES):
        part = slice(start, min(start + SAMPLES, len(rows)))
        job.clock.tell(rows[part])
        yield Piece(index, part, rows[part], some_of(call, len(rows), range(part.start, part.stop)))


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[Uses]:
    """While inside, gradients are on, for outputs of these layers alone, and each use of them is kept."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    with torch.enable_grad(), _without_weight_gradients(model), ExitStack() as stack:
        for name, uses in seen.items():
            stack.callback(linear_at(model, name).register_forward_hook(_keeper(uses)).remove)
        yield seen


def answer(model: nn.Module, piece: Piece, seen: Uses) -> Tensor:
    """What the denoiser returns, or the first of it, (B, ...) float32. BadModel names a layer that was not reached."""
    output = replay(model, piece.call, gradients=True)
    if isinstance(output, Mapping):  # as outputs of diffusers are
        output = tuple(output.values())
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise BadModel(f"the denoiser returns {type(first).__name__} where a tensor is needed")
    if missed := [name for name, uses in seen.items() if not uses]:
        raise BadModel(f"calibration: denoiser call {piece.index} did not reach layer '{missed[0]}': exclude it")
    return first.float()


def signs(like: Tensor, make: torch.Generator) -> Tensor:
    """Independent +-1."""
    return torch.randint(2, like.shape, generator=make).mul(2).sub(1).to(like.device)


def inputs(seen: Uses, batch: int) -> Iterator[tuple[str, Tensor]]:
    """What each layer multiplies, (B, T, K), the tokens of all its uses side by side."""
    for name, uses in seen.items():
        yield name, torch.cat([by_sample(x, batch) for x, _ in uses], 1)


def gradients(loss: Tensor, seen: Uses, batch: int, *, last: bool = True) -> Iterator[tuple[str, Tensor]]:
    """The loss by what each layer gives, (B, T, N), as ``inputs``; 0 where it does not depend on it.

    Args:
        loss: a scalar made of ``answer``.
        seen: by ``watched``.
        batch: samples of the piece.
        last: the graph is not needed again.
    """
    outputs = [out for uses in seen.values() for _, out in uses]
    found = iter(torch.autograd.grad(loss, outputs, retain_graph=not last, allow_unused=True))
    for name, uses in seen.items():
        parts = [(out, next(found)) for _, out in uses]
        yield name, torch.cat([by_sample(torch.zeros_like(out) if e is None else e, batch) for out, e in parts], 1)


def by_sample(x: Tensor, batch: int) -> Tensor:
    """(B, T, C) float32; what belongs to all samples, such as one embedding, counts as one sample."""
    x = x.detach().float()
    return x.reshape(batch if x.ndim > 1 and x.shape[0] % batch == 0 else 1, -1, x.shape[-1])


@contextmanager
def _without_weight_gradients(model: nn.Module) -> Iterator[None]:
    """While inside, no parameter asks for a gradient: outputs of layers are all that does."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in before:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in before:
            p.requires_grad_(flag)


def _keeper(uses: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        x = args[0]
        if isinstance(module, QLinear):
            with torch.no_grad():
                x = module.transform(x)
        if not output.requires_grad:
            output.requires_grad_()  # nothing before it is watched: the graph begins here
        uses.append((x, output))

    return hook
