"""A linear's place holder while its rounding is learned: it computes with whatever weight it is given, differentiably.

What it computes is what the ``QLinear`` of the same spec will: online transforms, rounded inputs, the low-rank branch.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dither.nn import QLinear
from dither.numerics import decode
from dither.spec import Int, LinearSpec
from dither.stages.building import dense_of
from dither.stages.learned_steps import LearnedSteps, dynamic
from dither.stages.soft_rounding import SoftRounding

__all__ = ["StandIn"]


class StandIn(nn.Module):
    """In a linear's place.

    Args:
        old: the linear, in full precision; its transforms, branch and bias are used.
        spec: what it is to become.
        rounding: of its weight.
        steps: of its static inputs, or None.
    """

    def __init__(self, old: nn.Linear, spec: LinearSpec, rounding: SoftRounding, steps: LearnedSteps | None) -> None:
        super().__init__()
        self.old, self.spec, self.rounding, self.steps = old, spec, rounding, steps
        self.dense = self.weight = dense_of(old)
        self.rounds_inputs = True
        self.eval()  # as the model that it is trained in

    @property
    def bias(self) -> nn.Parameter | None:
        """(N,), as it is."""
        return self.old.bias

    def decide(self, codes: Tensor) -> None:
        """Compute with these codes (N, K) from now on."""
        self.weight = self.rounding.value(codes)

    def restart(self) -> None:
        """Back to the codes and the steps that it began with."""
        self.rounding.settle(self.rounding.first)
        self.decide(self.rounding.first)
        if self.steps is not None:
            self.steps.restart()

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N), in the dtype of x."""
        plain = self.old.transform(x) if isinstance(self.old, QLinear) else x
        if self.spec.act is None or not self.rounds_inputs:
            y = F.linear(plain, self.weight.to(x.dtype), self.bias)
        else:
            assert isinstance(self.spec.act.grid, Int)
            seen = self.steps(plain) if self.steps is not None else dynamic(plain, self.spec.act.grid)
            bias = None if self.bias is None else self.bias.float()
            y = F.linear(seen, self.weight.float(), bias).to(x.dtype)
        if self.spec.lowrank is None:
            return y
        return y + (plain @ self._branch("lowrank_a").to(x.dtype).T) @ self._branch("lowrank_b").to(x.dtype).T

    def _branch(self, prefix: str) -> Tensor:
        """One factor of the low-rank branch."""
        assert isinstance(self.old, QLinear)
        assert self.spec.lowrank is not None
        (n, k), low = self.old.shape, self.spec.lowrank
        stored, shape = self.old.stored(prefix), (low.rank, k) if prefix == "lowrank_a" else (n, low.rank)
        return stored["dense"] if low.weight is None else decode(stored, low.weight, shape)
