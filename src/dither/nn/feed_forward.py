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

from dither.kernels import Kernel
from dither.kernels.cpu import CPU_INT8, Around, Turn, feed_forward
from dither.kernels.gpu import DTYPES, TRITON_INT8
from dither.kernels.gpu import feed_forward as feed_forward_on_gpu
from dither.kernels.native_calls import TYPES
from dither.kernels.native_ops import OPS
from dither.nn.linear import QLinear
from dither.spec import PER_TENSOR, LinearSpec

__all__ = ["NativeGELU", "QFeedForward", "integers", "is_unwatched", "turned"]


class NativeGELU(GELU):
    """In place of a ``GELU`` of diffusers, whose linear it holds: GELU in native code behind a linear that runs there.

    Args:
        whole: the other.
    """

    def __init__(self, whole: GELU) -> None:
        nn.Module.__init__(self)  # not GELU's: there is a linear already
        self.proj, self.approximate = whole.proj, whole.approximate
        self.train(whole.training)

    def gelu(self, gate: Tensor) -> Tensor:
        """Of what the linear gives, (..., H)."""
        if gate.dtype in DTYPES and integers(self.proj, TRITON_INT8) is not None:
            given: Tensor = torch.ops.dither.triton_gelu(gate, self.approximate == "tanh")
            return given
        if gate.dtype not in TYPES or integers(self.proj) is None:
            y: Tensor = super().gelu(gate)
            return y
        found: Tensor = OPS.gelu(gate, self.approximate == "tanh")
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
        found = self.together(hidden_states, Around())
        found = self._on_gpu(hidden_states) if found is None else found
        return self._one_by_one(hidden_states, *args, **kwargs) if found is None else found

    def together(self, hidden_states: Tensor, around: Around) -> Tensor | None:
        """(..., K) to (..., N) in one call, with what lies around; None where modules have to run one by one."""
        gelu, dropout, last, *rest = self.net
        first, second = integers(cast(nn.Module, gelu.proj)), integers(last)
        if first is None or second is None or not _takes(second, hidden_states.dtype):
            return None
        if not is_unwatched((gelu, first, dropout, second, *rest)) or any(type(m) is not nn.Dropout for m in rest):
            return None
        x, turn, around = turned(first, hidden_states, around)
        between = second.turn(x.dtype)
        assert between is not None  # see _takes
        calls = first.inputs(x, first.bias, first.ways[0]), second.inputs(x, second.bias, second.ways[0])
        return feed_forward(calls, (turn, between), gelu.approximate == "tanh", around)

    def _on_gpu(self, hidden_states: Tensor) -> Tensor | None:
        """By kernels of Triton; None where modules have to run one by one."""
        gelu, dropout, last, *rest = self.net
        first, second = integers(cast(nn.Module, gelu.proj), TRITON_INT8), integers(last, TRITON_INT8)
        if first is None or second is None or not _gives_rows(second, hidden_states.dtype):
            return None
        if not is_unwatched((gelu, first, dropout, second)):
            return None
        x = first.transform(hidden_states)
        one, two = first.inputs(x, first.bias, first.ways[0]), second.inputs(x, second.bias, second.ways[0])
        between = second.get_buffer("pre_scale").flatten() if second.spec.pre_scale else None
        y = feed_forward_on_gpu(one, two, between, gelu.approximate == "tanh")
        for module in rest:
            y = module(y)
        return y

    def _one_by_one(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = super().forward(hidden_states, *args, **kwargs)
        return y


def turned(first: QLinear, x: Tensor, around: Around) -> tuple[Tensor, Turn, Around]:
    """What ``first`` is given, what it does to it in the same call, and what is left to be done around it."""
    turn = first.turn(x.dtype)
    if turn is not None:
        return x, turn, around
    if around.shift is not None:
        x, around = OPS.modulate(x, around.shift, around.scale, around.eps), replace(around, shift=None, scale=None)
    return first.transform(x), Turn(), around


def integers(linear: nn.Module, kernel: Kernel = CPU_INT8) -> QLinear | None:
    """The linear, if this kernel runs it, with nothing besides, and no gradient is asked for."""
    if type(linear) is not QLinear or torch.is_grad_enabled():
        return None
    plain = linear.spec.lowrank is None and not linear.spec.time_bias
    return linear if plain and linear.kernel is kernel else None


def _takes(second: QLinear, dtype: torch.dtype) -> bool:
    """Whether the second linear's inputs can be made, and rounded, a few rows at a time, to the same bits."""
    return _by_row(second.spec) and second.turn(dtype) is not None


def _gives_rows(second: QLinear, dtype: torch.dtype) -> bool:
    """Whether the second linear's inputs are rounded row by row, and scaled to the same bits, by kernels of Triton."""
    spec = second.spec
    scaled = not spec.pre_scale or (spec.pre_scale == 1 and dtype == torch.float32)
    return _by_row(spec) and scaled and spec.rotation is None and dtype in DTYPES


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
