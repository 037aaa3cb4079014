"""The clock of a model: which row of its tables each sample of the running call uses.

Every table of a layer has a leading axis of rows: one for each time group, times one for each CFG branch, or a single row
for all. Groups are cut on the normalized noise level, never on a raw timestep, whose scale differs between families.

The clock also remembers the last input that a layer transformed: q, k and v read one tensor, and one transform of it.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dither.errors import BadCheckpoint

__all__ = ["Clock", "ClockHook", "Last", "Read", "start_clock"]

Read: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, Tensor]]
"""Arguments of a denoiser call -> normalized noise level (B,) and branch (B,)."""


class Last:
    """The last tensor that was transformed, how, and the result; all forgotten as soon as the tensor is no longer used.

    A copy of it, also in another process, remembers nothing.
    """

    def __init__(self) -> None:
        self._of: weakref.ref[Tensor] | None = None
        self._how: tuple[int, bytes] = (0, b"")  # version of the tensor, key of the transform
        self._result: Tensor | None = None

    def get(self, x: Tensor, key: bytes) -> Tensor | None:
        """The result for this very tensor, unchanged since, under this key; or None."""
        if self._of is None or self._of() is not x or self._how != (x._version, key):
            return None
        return self._result

    def put(self, x: Tensor, key: bytes, result: Tensor) -> None:
        """Remember this result in place of the one before."""
        self._of, self._how, self._result = weakref.ref(x, self._forget), (x._version, key), result

    def _forget(self, of: "weakref.ref[Tensor]") -> None:
        if of is self._of:
            self._of = self._result = None

    def __reduce__(self) -> tuple[type["Last"], tuple[()]]:
        return Last, ()


class Clock:
    """Which row of its tables each sample of the running call uses; set once a model call, shared by all layers.

    Args:
        edges: inner edges of the time groups on the normalized noise level, ascending.
        branches: 2 if unconditional rows have rows of their own.
    """

    def __init__(self, edges: tuple[float, ...] = (), branches: int = 1) -> None:
        self.edges = torch.tensor(edges, dtype=torch.float32)
        self.branches = branches
        self.row = torch.zeros(1, dtype=torch.int64)
        self.last = Last()

    @property
    def size(self) -> int:
        """Rows of a full table."""
        return (len(self.edges) + 1) * self.branches

    def rows_at(self, level: Tensor, branch: Tensor) -> Tensor:
        """Table rows of samples at these normalized noise levels (B,) and branches (B,), (B,) int64."""
        if self.edges.device != level.device:
            self.edges = self.edges.to(level.device)  # once: a copy at each call could not be captured in a graph
        group = torch.bucketize(level.float().contiguous(), self.edges, right=True)
        return group * self.branches + (branch if self.branches > 1 else 0)

    def set(self, level: Tensor, branch: Tensor) -> None:
        """Tell the time of the call that is about to run."""
        self.tell(self.rows_at(level, branch))

    def tell(self, rows: Tensor) -> None:
        """The same, as table rows (B,) int64."""
        self.row = rows

    def pick(self, table: Tensor, x: Tensor) -> Tensor:
        """Rows of a table (R, W) that broadcast against x (B, ..., W); a table of one row serves every time."""
        if table.shape[0] == 1:
            return table[0]
        rows = table[self.row.to(table.device)]  # (B or 1, W)
        if rows.shape[0] > 1 and x.shape[0] != rows.shape[0]:  # a layer that folds frames or heads into the batch
            if x.shape[0] % rows.shape[0]:
                raise BadCheckpoint(f"input batch {x.shape[0]} is no multiple of the clock's batch {rows.shape[0]}")
            rows = rows.repeat_interleave(x.shape[0] // rows.shape[0], dim=0)
        return rows.view(rows.shape[0], *(1,) * (x.ndim - 2), table.shape[1])


class ClockHook:
    """A forward pre-hook of the whole denoiser that reads its arguments and sets the clock."""

    def __init__(self, clock: Clock, read: Read) -> None:
        self.clock = clock
        self.read = read

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the clock from the arguments of the call."""
        self.clock.set(*self.read(args, kwargs))


def start_clock(model: nn.Module, clock: Clock, read: Read) -> None:
    """Let a hook on the model set the clock at each call, unless every table has one row."""
    if len(clock.edges) or clock.branches > 1:
        model.register_forward_pre_hook(ClockHook(clock, read), with_kwargs=True)
