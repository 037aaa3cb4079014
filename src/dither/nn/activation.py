"""``QActivation``: an activation under an ``Act``, as a module with a table of its own.

It is simulated: the values that the codes stand for, in the dtype of the input. Gradients pass straight through
(arXiv 1308.3432). Without an ``Act`` it is the identity, and a place where calibration can look.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dither.clock import Clock
from dither.kernels.gradient import straight_through
from dither.nn.buffers import keep_dtypes, take
from dither.numerics import act_quantize, dynamic_table, table_layout
from dither.spec import Act

__all__ = ["QActivation"]


class QActivation(nn.Module):
    """Rounds what passes through it.

    Args:
        act: how; None passes everything on as it is.
        channels: K of its input (..., K); of no meaning where ranges are per row or per tensor.
        clock: of the model, for tables of several rows.
        device: of the empty table.
    """

    def __init__(self, act: Act | None, channels: int, clock: Clock, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.act = act
        self.clock = clock
        for name, (shape, dtype) in ({} if act is None else table_layout(act, channels)).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=device))

    def packed(self) -> dict[str, Tensor]:
        """The table: buffers whose dtype is part of what they mean."""
        return dict(self.named_buffers(recurse=False))

    def load(self, tensors: Mapping[str, Tensor]) -> "QActivation":
        """Take these tensors as the buffers of the same names, without a copy; names, shapes and dtypes must fit."""
        take(self, tensors, self.act)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., K) in its own dtype."""
        if self.act is None:
            return x
        return straight_through(x, self._rounded)

    def stored(self, x: Tensor) -> dict[str, Tensor]:
        """The table's rows for the samples of x (B, ..., K), which broadcast against it; nothing if ranges are dynamic."""
        return {name: self.clock.pick(t, x) for name, t in self._buffers.items() if t is not None}

    def _rounded(self, x: Tensor) -> Tensor:
        assert self.act is not None  # see forward
        wide = x.float()
        table = self.stored(x) if self.act.static else dynamic_table(wide, self.act.grid)
        return act_quantize(wide, self.act.grid, table).to(x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QActivation":
        """Move or cast; the table keeps its dtypes."""
        kept = self.packed()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        keep_dtypes(self, kept)
        return self

    def extra_repr(self) -> str:
        """The format."""
        return str(self.act or "full precision")
