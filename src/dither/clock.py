"""The clock of a model: which row of its tables each sample of the running call uses.

Every table of a layer has a leading axis of rows: one for each time group, times one for each CFG branch, or a single row
for all. Groups are cut on the normalized noise level, never on a raw timestep, whose scale differs between families.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dither.errors import BadCheckpoint

__all__ = ["Clock", "ClockHook", "Read", "start_clock"]

Read: TypeAlias = Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Tensor, Tensor]]
"""Arguments of a denoiser call -> normalized noise level (B,) and branch (B,)."""


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

    def rows_at(self, level: Tensor, branch: Tensor) -> Tensor:
        """Table rows of samples at these normalized noise levels (B,) and branches (B,), (B,) int64."""
        group = torch.bucketize(level.float(), self.edges.to(level.device), right=True)
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
