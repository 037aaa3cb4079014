"""What a device can run in the same call as its linears: the frame that blocks and feed-forward parts are written in.

    before     LayerNorm(x) (1 + scale) + shift        Around
               (pre x signs) H / sqrt(block)           Turn
    behind     residual + gate y                       Around
               y + (x A^T) B^T                         Inputs.branch

A ``Fusion`` is one such device: native code on CPUs, kernels of Triton on GPUs. It runs linears of its own kernel with what
lies around them, and offers each part alone where something else has to run between, with the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from dither.kernels.table import Inputs, Kernel
from dither.spec import LinearSpec

__all__ = ["FUSIONS", "Around", "Branch", "Fusion", "Turn", "fusion_of"]

Branch: TypeAlias = tuple[Tensor, Tensor]
"""A (R, K) and B (N, R)."""


@dataclass(frozen=True)
class Turn:
    """What happens to inputs before they are rounded: ``(pre x signs) H / sqrt(block)``.

    Args:
        pre: (K,) float32, or None.
        signs: (K,) int8, or None: no rotation.
        block: of the rotation.
    """

    pre: Tensor | None = None
    signs: Tensor | None = None
    block: int = 0

    @property
    def tensors(self) -> list[Tensor | None]:
        """As operators take them."""
        return [self.pre, self.signs]

    @property
    def is_nothing(self) -> bool:
        """Whether inputs stay as they are."""
        return self.pre is None and self.signs is None


@dataclass(frozen=True)
class Around:
    """What happens before and after linears, in the same call: ``modulate`` of inputs, ``gated`` of the one output.

    Args:
        shift, scale: (B, K) float32, or None.
        eps: of the layer norm.
        gate: (B, N) float32, or None.
        residual: (B, T, N), what is added to.
    """

    shift: Tensor | None = None
    scale: Tensor | None = None
    eps: float = 0.0
    gate: Tensor | None = None
    residual: Tensor | None = None

    def tensors(self, turn: Turn) -> list[Tensor | None]:
        """As operators take them, with what happens between the norm and the linear."""
        return [self.shift, self.scale, self.gate, self.residual, *turn.tensors]


@dataclass(frozen=True)
class Fusion:
    """One device.

    Args:
        kernel: whose linears it runs.
        takes: whether activations x are of a dtype, a device and a width that it knows.
        turns: whether it scales and rotates what a linear (spec, K) is given, in a dtype, by one row of scales.
        branch: a low-rank branch as its epilogues take it, or None: they do not know this one, or any.
        alike: whether two linears of K inputs turn one tensor into the same codes, if their stored ranges are equal.
        rereads: a linear is better served by x, whatever has to be done to it, than by what others have made of it.
        linears: outputs of linears that read one x and are alike, as it was before ``Turn``; and what lies around them.
        feed_forward: two linears with a GELU between them, by tanh or not; the second one's x gives its rows alone.
        modulate: of x (B, T, K), by shift and scale (B, K), and eps.
        turn: of x (..., K).
        gated: of y (B, T, N), by a gate (B, N) and what is added to.
        gelu: of x, by tanh or not.
    """

    kernel: Kernel
    takes: Callable[[Tensor], bool]
    turns: Callable[[LinearSpec, int, torch.dtype], bool]
    branch: Callable[[Tensor, Tensor], Branch | None] | None
    alike: Callable[[LinearSpec, LinearSpec, int], bool]
    rereads: bool
    linears: Callable[[Sequence[Inputs], Turn, Around], list[Tensor]]
    feed_forward: Callable[[tuple[Inputs, Inputs], tuple[Turn, Turn], bool, Around], Tensor]
    modulate: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    turn: Callable[[Tensor, Turn], Tensor]
    gated: Callable[[Tensor, Tensor, Tensor], Tensor]
    gelu: Callable[[Tensor, bool], Tensor]


FUSIONS: list[Fusion] = []
"""Filled by ``dither.kernels``."""


def fusion_of(x: Tensor) -> Fusion | None:
    """What can run activations like x with more in one call; None where nothing can."""
    return next((fusion for fusion in FUSIONS if fusion.takes(x)), None)
