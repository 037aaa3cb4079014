"""``QFeedForward``: a feed-forward part whose two linears run in one call, so that what is between them stays in the caches.

    y = W2 act2( pre_scale2 * GELU( W1 act1(x) + b1 ) ) + b2

The four times wider activations between both are what a small transformer spends most of its time on: writing them, GELU, and
rounding them. In one call they are made, and used up, some rows at a time, where native code runs both linears. Where kernels
of Triton do, GELU is made before the first one's output is written, and the second one's codes are made of that. Wherever
something else looks at what is between, and under autograd, modules run one by one as they always do. To look changes
nothing: GELU is the kernels' own in both cases, and both give the same bits.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from dither.kernels.cpu import CPU_INT8, feed_forward
from dither.kernels.gpu import TRITON_INT8
from dither.kernels.gpu import feed_forward as feed_forward_on_gpu
from dither.kernels.native_ops import TYPES
from dither.nn.linear import QLinear
from dither.spec import PER_TENSOR, LinearSpec

__all__ = ["NativeGELU", "QFeedForward"]


class NativeGELU(GELU):
    """In place of a ``GELU`` of diffusers, whose linear it holds: GELU of the kernels behind a linear that they run.

    Args:
        whole: the other.
    """

    def __init__(self, whole: GELU) -> None:
        nn.Module.__init__(self)  # not GELU's: there is a linear already
        self.proj, self.approximate = whole.proj, whole.approximate
        self.train(whole.training)

    def gelu(self, gate: Tensor) -> Tensor:
        """Of what the linear gives, (..., H)."""
        linear = _integers(self.proj)
        if linear is None or gate.dtype not in _dtypes(linear):
            y: Tensor = super().gelu(gate)
            return y
        by = torch.ops.dither.gelu if linear.kernel is CPU_INT8 else torch.ops.dither.triton_gelu
        found: Tensor = by(gate, self.approximate == "tanh")
        return found


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
        gelu, dropout, last, *rest = self.net
        first, second = _integers(cast(nn.Module, gelu.proj)), _integers(last)
        if first is None or second is None or first.kernel is not second.kernel:
            return self._one_by_one(hidden_states, *args, **kwargs)
        if hidden_states.dtype not in _dtypes(first) or not _takes(second.spec, hidden_states.dtype):
            return self._one_by_one(hidden_states, *args, **kwargs)
        if not _is_unwatched((gelu, first, dropout, second)):
            return self._one_by_one(hidden_states, *args, **kwargs)
        x = first.transform(hidden_states)
        one = first.inputs(x, first.bias, first.ways[0])
        two = second.inputs(x, second.bias, second.ways[0])
        between = second.get_buffer("pre_scale").flatten() if second.spec.pre_scale else None
        both = feed_forward if first.kernel is CPU_INT8 else feed_forward_on_gpu
        y = both(one, two, between, gelu.approximate == "tanh")
        for module in rest:
            y = module(y)
        return y

    def _one_by_one(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = super().forward(hidden_states, *args, **kwargs)
        return y


def _integers(linear: nn.Module) -> QLinear | None:
    """The linear, if a kernel of integers runs it, with nothing besides, and no gradient is asked for."""
    if type(linear) is not QLinear or torch.is_grad_enabled():
        return None
    plain = linear.spec.lowrank is None and not linear.spec.time_bias
    return linear if plain and any(linear.kernel is k for k in (CPU_INT8, TRITON_INT8)) else None


def _dtypes(linear: QLinear) -> Iterable[torch.dtype]:
    """Of inputs that stay as they are between two linears of this one's kernel."""
    return TYPES if linear.kernel is CPU_INT8 else (*TYPES, torch.float16)


def _takes(spec: LinearSpec, dtype: torch.dtype) -> bool:
    """Whether the second linear's inputs can be made, and rounded, a few rows at a time, to the same bits."""
    by_row = spec.act is not None and (spec.act.static or spec.act.grid.group != PER_TENSOR)
    scaled = not spec.pre_scale or (spec.pre_scale == 1 and dtype == torch.float32)
    return by_row and scaled and spec.rotation is None


def _is_unwatched(modules: Iterable[nn.Module]) -> bool:
    """Whether no hook would miss that these modules run, and none of them drops anything."""
    if cast(Any, nn.modules.module)._has_any_global_hook():
        return False
    return not any(
        m._forward_hooks or m._forward_pre_hooks or (isinstance(m, nn.Dropout) and m.training) for m in modules
    )
