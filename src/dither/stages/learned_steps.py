"""Static activation tables whose step sizes are learned (LSQ, arXiv 1902.08153), zero points frozen.

    x^ = s (clip(round(x / s) + z) - z)        dL/ds = sum dL/dx^ (x^ - [x in range] x) / s        dL/dx = [x in range] dL/dx^

Rounding counts as the identity. What is learned is the logarithm of s against its start: a step stays positive, and one
learning rate suits steps of any size.
"""

from typing import Any

import torch
from torch import Tensor

from dither.clock import Clock
from dither.kernels.gradient import straight_through
from dither.numerics import Table, act_quantize, dynamic_table, fake_quantize, grouped, int_table
from dither.spec import Grid, Int

__all__ = ["LearnedSteps", "dynamic"]

HALF = 0.5 + 1e-4
"""Steps that rounding may move a value by; what moves further was clipped."""


class LearnedSteps:
    """Rounds a layer's inputs by a table, each sample by the row of its time.

    Args:
        table: ``scale`` (R, G), and ``zero`` where there are zero points.
        grid: of the codes.
        clock: says which row.
    """

    def __init__(self, table: Table, grid: Int, clock: Clock) -> None:
        self.grid, self.clock = grid, clock
        self.start, self.zero = table["scale"], table.get("zero")
        self.log = torch.zeros_like(self.start).requires_grad_()

    def __call__(self, x: Tensor) -> Tensor:
        """x (B, ..., K) at the values that its codes stand for, float32."""
        scale = self.clock.pick(self.start * self.log.exp(), x)
        zero = None if self.zero is None else self.clock.pick(self.zero, x)
        if not torch.is_grad_enabled():
            return fake_quantize(x, self.grid, scale, zero)
        rounded: Tensor = _Rounded.apply(x, scale, zero, self.grid)  # type: ignore[no-untyped-call]
        return rounded

    def restart(self) -> None:
        """Back to the table as it began."""
        with torch.no_grad():
            self.log.zero_()

    def table(self) -> dict[str, Tensor]:
        """The table as it now is."""
        return int_table((self.start * self.log.exp()).detach(), self.zero)


def dynamic(x: Tensor, grid: Grid) -> Tensor:
    """x (..., K) on a grid with ranges of its own, float32; nothing is out of range, and gradients pass straight through."""
    return straight_through(x, lambda x: act_quantize(x, grid, dynamic_table(x, grid)))


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero: Tensor | None, grid: Int) -> Tensor:
        y = fake_quantize(x, grid, scale, zero)
        ctx.save_for_backward(x, y, scale)
        ctx.group = grid.group
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, y, scale = ctx.saved_tensors
        dx = ds = None
        step = torch.where(scale == 0, torch.inf, scale).unsqueeze(-1)  # (..., G, 1)
        plain, y, grad = (grouped(t.float(), ctx.group) for t in (x, y, grad))  # (..., G, g)
        passed = grad * ((y - plain).abs_() <= HALF * step)
        if ctx.needs_input_grad[1]:
            ds = (grad * y - passed * plain).sum(-1).div(step.squeeze(-1)).sum_to_size(scale.shape)
        if ctx.needs_input_grad[0]:
            dx = passed.flatten(-2).to(x.dtype)
        return dx, ds, None, None
