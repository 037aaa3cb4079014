"""Samples of recorded calls, taken apart and put together anew: mini-batches over all times and pictures.

A call has B samples. Its tensors whose first axis is B, or that of its first tensor (where frames are folded into the batch,
several rows a sample), belong to samples; all else is shared by them. Samples of two calls fit into one batch where what they
share is equal and what belongs to each has one shape. Tensors are sliced when a batch is drawn; nothing is held twice.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from dither.errors import BadModel
from dither.models.base import Call

__all__ = ["Batch", "Samples", "leaves", "some_of"]


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Args:
        call: of these alone.
        target: what the call is to give.
        rows: clock rows, (b,) int64.
        weights: of each sample in the loss, (b,).
    """

    call: Call
    target: Any
    rows: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Samples:
    """All samples of some calls.

    Args:
        calls: on the CPU.
        targets: what each call is to give.
        rows: clock rows of each call's samples, (B,) int64.
        weights: of each call's samples, (B,).
    """

    calls: Sequence[Call]
    targets: Sequence[Any]
    rows: Sequence[Tensor]
    weights: Sequence[Tensor]
    _pools: list[list[tuple[int, int]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        pools: dict[Hashable, list[tuple[int, int]]] = {}
        for i, (call, rows) in enumerate(zip(self.calls, self.rows, strict=True)):
            key = _kind((call.args, dict(call.kwargs)), len(rows), _leading(call, len(rows)))
            pools.setdefault(key, []).extend((i, j) for j in range(len(rows)))
        self._pools.extend(pools.values())

    @classmethod
    def alike(cls, calls: Sequence[Call], targets: Sequence[Any], rows: Sequence[Tensor]) -> "Samples":
        """Samples that all count the same."""
        return cls(calls, targets, rows, [torch.ones(len(now)) for now in rows])

    def whole(self) -> Iterator[Batch]:
        """Every call as it is."""
        for call, target, rows, weights in zip(self.calls, self.targets, self.rows, self.weights, strict=True):
            yield Batch(call, target, rows, weights)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """At most this many different samples that fit together, each as likely as any other."""
        sizes = torch.tensor([float(len(pool)) for pool in self._pools])
        pool = self._pools[int(torch.multinomial(sizes, 1, generator=generator))]
        return self.of([pool[i] for i in torch.randperm(len(pool), generator=generator)[:count].tolist()])

    def of(self, picks: Sequence[tuple[int, int]]) -> Batch:
        """The samples of these calls and indices in them, which must fit together."""
        first, size = self.calls[picks[0][0]], len(self.rows[picks[0][0]])
        lead = _leading(first, size)
        args = [(self.calls[i].args, dict(self.calls[i].kwargs)) for i, _ in picks]
        each = [j for _, j in picks]
        call = Call(*_gathered(args, each, size, lead))
        target = _gathered([self.targets[i] for i, _ in picks], each, size, lead)
        rows, weights = (torch.stack([of[i][j] for i, j in picks]) for of in (self.rows, self.weights))
        return Batch(call, target, rows, weights)


def some_of(call: Call, batch: int, index: Sequence[int]) -> Call:
    """The call of these of its samples alone."""
    same = [(call.args, dict(call.kwargs))] * len(index)
    return Call(*_gathered(same, index, batch, _leading(call, batch)))


def leaves(value: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list | tuple) else []


def _leading(call: Call, batch: int) -> int:
    """Length of the first axis of a call's first tensor: a whole number of rows for each sample."""
    first = next(iter(leaves((call.args, dict(call.kwargs)))), None)
    if first is None or first.ndim == 0 or first.shape[0] % batch:
        shape = None if first is None else tuple(first.shape)
        raise BadModel(f"the first tensor {shape} of a call does not have rows for each of its {batch} samples")
    return int(first.shape[0])


def _rows_each(tensor: Tensor, batch: int, lead: int) -> int:
    """How many rows of a tensor belong to each sample; 0 where all share it."""
    length = tensor.shape[0] if tensor.ndim else 0
    return lead // batch if length == lead else int(length == batch)


def _gathered(values: Sequence[Any], each: Sequence[int], batch: int, lead: int) -> Any:
    """Sample ``each[i]`` of ``values[i]``, all of one structure, put together."""
    first = values[0]
    if isinstance(first, Tensor):
        rows = _rows_each(first, batch, lead)
        parts = [v[j * rows : (j + 1) * rows] for v, j in zip(values, each, strict=True)]
        return torch.cat(parts) if rows else first
    if isinstance(first, list | tuple):
        return type(first)(_gathered([v[k] for v in values], each, batch, lead) for k in range(len(first)))
    if isinstance(first, Mapping):
        return {k: _gathered([v[k] for v in values], each, batch, lead) for k in first}
    return first


def _kind(value: Any, batch: int, lead: int) -> Hashable:
    """Equal for values whose samples fit into one batch."""
    if isinstance(value, Tensor):
        if rows := _rows_each(value, batch, lead):
            return rows, tuple(value.shape[1:]), value.dtype
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return tuple(value.shape), value.dtype, sha256(flat.numpy().tobytes()).digest()
    if isinstance(value, list | tuple):
        return type(value), tuple(_kind(v, batch, lead) for v in value)
    if isinstance(value, Mapping):
        return tuple((k, _kind(v, batch, lead)) for k, v in value.items())
    return repr(value)
