"""Kernels under autograd: the straight-through estimator (arXiv 1308.3432).

    forward    y = kernel(x), the same bits as without gradients
    backward   dL/dx = dL/dy decode(weight),   dL/dbias = sum dL/dy

as if rounding the input were the identity, so that LoRA adapters and guidance can be trained through integer kernels. The
packed weight itself gets no gradient. Whatever else rounds an activation passes gradients as they are, too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dither.kernels.fusion import Fusion, Turn, fusion_of
from dither.kernels.table import Inputs, Kernel
from dither.numerics import decode, rotate, unrotate
from dither.spec import LinearSpec, Rotation

__all__ = ["asks", "run", "straight_through", "turned"]


def run(kernel: Kernel, inputs: Inputs) -> Tensor:
    """Run a kernel, (..., K) to (..., N), so that x and bias get gradients where they ask for them."""
    x, bias = inputs.x, inputs.bias
    if asks(x, bias):
        y: Tensor = _StraightThrough.apply(x, bias, kernel, inputs)  # type: ignore[no-untyped-call]
        return y
    return kernel.run(inputs)


def asks(x: Tensor, bias: Tensor | None) -> bool:
    """Whether inputs or a bias want gradients now."""
    return torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))


def straight_through(x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    """``rounded(x)``, of the shape of x; where x asks for a gradient it gets that of the result."""
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Rounded.apply(x, rounded)  # type: ignore[no-untyped-call]
        return y
    return rounded(x)


def turned(x: Tensor, signs: Tensor, block: int) -> Tensor:
    """``numerics.rotate`` in the dtype of x, (..., K); as linears of its device do it, with gradients or without."""
    fusion, spec = fusion_of(x), LinearSpec(None, rotation=Rotation(block))
    if fusion is None or not fusion.turns(spec, x.shape[-1], x.dtype):
        return rotate(x, signs, block).to(x.dtype)  # it works in float32
    turn = Turn(None, signs, block)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Turned.apply(x, turn, fusion)  # type: ignore[no-untyped-call]
        return y
    return fusion.turn(x, turn)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Turn, fusion: Fusion) -> Tensor:
        ctx.turn = turn
        return fusion.turn(x, turn)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return unrotate(grad, ctx.turn.signs, ctx.turn.block).to(grad.dtype), None, None


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.dtype = x.dtype
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.to(ctx.dtype), None


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, kernel: Kernel, inputs: Inputs) -> Tensor:
        ctx.inputs_of = inputs.spec, inputs.shape, inputs.weight
        ctx.dtypes = x.dtype, None if bias is None else bias.dtype
        return kernel.run(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        spec, shape, stored = ctx.inputs_of
        dx = db = None
        if ctx.needs_input_grad[0]:
            weight = stored["dense"].float() if spec.weight is None else decode(stored, spec.weight, shape)  # (N, K)
            dx = (grad.float() @ weight).to(ctx.dtypes[0])  # (..., K)
        if ctx.needs_input_grad[1]:
            db = grad.float().flatten(0, -2).sum(0).to(ctx.dtypes[1])  # (N,)
        return dx, db, None, None
