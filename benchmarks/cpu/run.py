"""What every candidate is, ours or a peer's: a forward of tensors, and the dtype that its inputs have."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A module's ``forward`` of tensors, however it is computed.

    Args:
        call: the forward.
        dtype: of its floating-point inputs.
    """

    call: Callable[..., Tensor]
    dtype: torch.dtype = torch.float32

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The output for inputs of any dtype."""
        return self.call(*self.cast(inputs))

    def cast(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs as ``call`` wants them; a candidate is not timed while it casts."""
        return tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)
