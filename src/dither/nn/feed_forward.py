"""``QFeedForward``: a feed-forward part whose two linears run in one call, so that what is between them stays in the caches.

    y = W2 act2( rotate2( pre_scale2 * GELU( W1 act1(x) + b1 ) ) ) + b2

The four times wider activations between both are what a small transformer spends most of its time on: writing them, GELU, and
rounding them. In one call they are made, and used up, some rows at a time, where native code runs both linears. Where kernels
of Triton do, GELU is made before the first one's output is written, and the second one's codes are made of that. Wherever
something else looks at what is between, and under autograd, modules run one by one as they always do. To look changes
nothing: GELU is the kernels' own in both cases, and both give the same bits.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from dither.kernels.fusion import Around, Fusion, Turn, fusion_of
from dither.nn.linear import QLinear
from dither.spec import PER_TENSOR, LinearSpec

__all__ = ["NativeGELU", "QFeedForward", "integers", "is_unwatched", "turned"]


class NativeGELU(GELU):
    """In place of a ``GELU`` of diffusers, whose linear it holds: GELU of the device that runs the linear before it.

    Args:
        whole: the other.
    """

    def __init__(self, whole: GELU) -> None:
        nn.Module.__init__(self)  # not GELU's: there is a linear already
        self.proj, self.approximate = whole.proj, whole.approximate
        self.train(whole.training)

    def gelu(self, gate: Tensor) -> Tensor:
        """Of what the linear gives, (..., H)."""
        fusion = fusion_of(gate)
        if fusion is None or integers(self.proj, fusion, gate.dtype) is None:
            y: Tensor = super().gelu(gate)
            return y
        return fusion.gelu(gate, self.approximate == "tanh")


class QFeedForward(FeedForward):
    """In place of a ``FeedForward`` of diffusers, whose modules it holds under the same names.

    Args:
        whole: GELU with a linear before it, dropout, and a linear.
    """

    def __init__(self, whole: FeedForward) -> None:
        nn.Module.__init__(self)  # not FeedForward's: there are modules already
        self.net = whole.net
        self.train(whole.training)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., K) to (..., N)."""
        fusion = fusion_of(hidden_states)
        found = None if fusion is None else self.together(fusion, hidden_states, Around())
        return self._one_by_one(hidden_states, *args, **kwargs) if found is None else found

    def together(self, fusion: Fusion, hidden_states: Tensor, around: Around) -> Tensor | None:
        """(..., K) to (..., N) in one call, with what lies around; None where modules have to run one by one."""
        gelu, dropout, last, *rest = self.net
        dtype = hidden_states.dtype
        first, second = integers(cast(nn.Module, gelu.proj), fusion, dtype), integers(last, fusion, dtype)
        if first is None or second is None or not _by_row(second.spec):
            return None
        between = second.turn(fusion, dtype)
        if between is None or any(type(m) is not nn.Dropout for m in rest):
            return None
        if not is_unwatched((gelu, first, dropout, second, *rest)):
            return None
        x, turn, around = turned(first, fusion, hidden_states, around)
        calls = first.call(x, first.bias, fusion), second.call(x, second.bias, fusion)
        return fusion.feed_forward(calls, (turn, between), gelu.approximate == "tanh", around)

    def _one_by_one(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = super().forward(hidden_states, *args, **kwargs)
        return y


def turned(first: QLinear, fusion: Fusion, x: Tensor, around: Around) -> tuple[Tensor, Turn, Around]:
    """What ``first`` is given, what it does to it in the same call, and what is left to be done around it."""
    turn = first.turn(fusion, x.dtype)
    if turn is not None:
        return x, turn, around
    if around.shift is not None and around.scale is not None:
        x = fusion.modulate(x, around.shift, around.scale, around.eps)
        around = replace(around, shift=None, scale=None)
    return first.transform(x), Turn(), around


def integers(linear: nn.Module, fusion: Fusion, dtype: torch.dtype) -> QLinear | None:
    """The linear, if this device runs it, with nothing besides, on inputs of this dtype, and no gradient is asked for."""
    if type(linear) is not QLinear or torch.is_grad_enabled() or linear.spec.time_bias:
        return None
    return linear if linear.runs_in(fusion, dtype) else None


def _by_row(spec: LinearSpec) -> bool:
    """Whether a row of inputs is rounded without a look at others."""
    return spec.act is not None and (spec.act.static or spec.act.grid.group != PER_TENSOR)


def is_unwatched(modules: Iterable[nn.Module]) -> bool:
    """Whether no hook would miss that these modules run, and none of them drops anything."""
    if cast(Any, nn.modules.module)._has_any_global_hook():
        return False
    return not any(
        m._forward_hooks or m._forward_pre_hooks or (isinstance(m, nn.Dropout) and m.training) for m in modules
    )
