"""A linear as it will be under a spec, of a weight that is given at each call: what a layer's place holders compute."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from dither.nn import QLinear
from dither.numerics import decode
from dither.spec import LinearSpec
from dither.stages.learned_steps import dynamic

__all__ = ["GivenWeight"]


@dataclass(frozen=True)
class GivenWeight:
    """Online transforms, rounded inputs and the low-rank branch of the ``QLinear`` to be; differentiable.

    Args:
        old: the linear so far; its transforms and branch are used.
        spec: what it is to become.
    """

    old: nn.Linear
    spec: LinearSpec

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rounded: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """(..., K) to (..., N), in the dtype of x.

        Args:
            x: (..., K).
            weight: (N, K).
            bias: (N,) or None.
            rounded: of inputs; None leaves them in full precision.
        """
        plain = self.old.transform(x) if isinstance(self.old, QLinear) else x
        if rounded is None:
            y = F.linear(plain, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        else:
            y = F.linear(rounded(plain), weight.float(), None if bias is None else bias.float()).to(x.dtype)
        if self.spec.lowrank is None:
            return y
        return y + (plain @ self._branch("lowrank_a").to(x.dtype).T) @ self._branch("lowrank_b").to(x.dtype).T

    def dynamic(self, x: Tensor) -> Tensor:
        """x (..., K) with the ranges that it has by itself, float32; gradients pass straight through."""
        assert self.spec.act is not None
        return dynamic(x, self.spec.act.grid)

    def _branch(self, prefix: str) -> Tensor:
        """One factor of the low-rank branch."""
        assert isinstance(self.old, QLinear)
        assert self.spec.lowrank is not None
        (n, k), low = self.old.shape, self.spec.lowrank
        stored, shape = self.old.stored(prefix), (low.rank, k) if prefix == "lowrank_a" else (n, low.rank)
        return stored["dense"] if low.weight is None else decode(stored, low.weight, shape)
