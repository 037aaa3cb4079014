"""A linear's place holder while its rounding is learned: it computes with whatever weight it is given, differentiably."""

from torch import Tensor, nn

from dither.spec import LinearSpec
from dither.stages.building import dense_of
from dither.stages.given_weight import GivenWeight
from dither.stages.learned_steps import LearnedSteps
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
        self.given = GivenWeight(old, spec)
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
        rounded = None
        if self.spec.act is not None and self.rounds_inputs:
            rounded = self.given.dynamic if self.steps is None else self.steps
        return self.given(x, self.weight, self.bias, rounded)
