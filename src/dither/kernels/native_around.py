"""What lies around linears in native code, by itself and beside a linear: norms, rotations, gates.

modulate    (x - mean) / sqrt(variance + eps) (1 + scale) + shift
turn        (pre x signs) H / sqrt(block)
gated       residual + gate y
"""

import ctypes
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.errors import DitherError
from dither.kernels.native_calls import TYPES, Around, address, check, done, in_order, native, rows_in
from dither.numerics import hadamard_order, paley_matrix

__all__ = ["beside_linear", "gated", "modulate", "turn", "turned_by"]


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``(x - mean) / sqrt(variance + eps) (1 + scale) + shift``, with the bits that it has before ``linears_int8``.

    Args:
        x: (B, T, K) float32 or bfloat16.
        shift, scale: (B, K) float32.
        eps: as of a layer norm.
    """
    return _alone(x, [shift, scale, *[None] * 4], eps)


def gated(y: Tensor, gate: Tensor, residual: Tensor) -> Tensor:
    """``residual + gate y``, with the bits that it has behind ``linears_int8``.

    Args:
        y, residual: (B, T, N) float32 or bfloat16.
        gate: (B, N) float32.
    """
    return _alone(y, [None, None, gate, residual, *[None] * 2], 0.0)


def turn(x: Tensor, pre: Tensor | None, signs: Tensor | None, block: int) -> Tensor:
    """``(pre x signs) H / sqrt(block)`` block by block, as ``numerics.rotate``, with the bits of ``linears_int8``.

    Args:
        x: (..., K) float32; or bfloat16, without ``pre``.
        pre: (K,) float32 or None.
        signs: (K,) int8, or None: no rotation.
        block: of the rotation.
    """
    return _alone(x.unsqueeze(0), [None, None, None, None, pre, signs], 0.0, block).squeeze(0)


def _alone(x: Tensor, around: list[Tensor | None], eps: float, block: int = 0) -> Tensor:
    width, rows = x.shape[-1], rows_in(x)
    if x.dtype not in TYPES:
        given = f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
        raise DitherError(f"inputs are {given}: float32 and bfloat16 are known")
    beside, kept = beside_linear(x, around, eps, width, block)
    x = x.contiguous()
    y = torch.empty_like(x)
    fields = {"tokens": 1, **beside, "x": x.data_ptr(), "type": TYPES[x.dtype], "out": y.data_ptr()}
    call = Around(**fields, rows=rows, width=width, threads=torch.get_num_threads())
    done(rows and native("int8").dither_around(ctypes.byref(call)), {"inputs": width, "outputs": width}, rows)
    del kept  # until now
    return y


Beside: TypeAlias = tuple[dict[str, Any], list[Tensor]]
"""Fields of a structure, and the tensors that must live until native code is done."""


def beside_linear(x: Tensor, around: list[Tensor | None], eps: float, outputs: int, block: int) -> Beside:
    """What lies around a linear of so many outputs."""
    fields: dict[str, Any] = {}
    kept: list[Tensor] = []
    if not any(t is not None for t in around):
        return fields, kept
    shift, scale, gate, residual, *turned = around
    samples, width = x.shape[0], x.shape[-1]
    if any(t is not None for t in (shift, scale, gate, residual)):
        fields = {"tokens": x.shape[1] if x.ndim == 3 else 0, "eps": eps}
    if shift is not None or scale is not None:
        shift = _beside(x, "shift", shift, (samples, width), torch.float32)
        scale = _beside(x, "scale", scale, (samples, width), torch.float32)
        if shift.stride(0) != scale.stride(0):
            shift, scale = shift.contiguous(), scale.contiguous()
        fields |= {"shift": shift.data_ptr(), "norm_scale": scale.data_ptr(), "norm_stride": shift.stride(0)}
        kept += [shift, scale]
    if gate is not None or residual is not None:
        gate = _beside(x, "gate", gate, (samples, outputs), torch.float32)
        residual = _beside(x, "residual", residual, (*x.shape[:-1], outputs), x.dtype).contiguous()
        fields |= {"gate": gate.data_ptr(), "gate_stride": gate.stride(0), "residual": residual.data_ptr()}
        kept += [gate, residual]
    more, held = turned_by(turned, block, width, x.dtype)
    return fields | more, kept + held


def _beside(x: Tensor, name: str, t: Tensor | None, want: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor, rows of it in order, if it is what x wants."""
    if t is None or x.ndim != 3 or tuple(t.shape) != want or t.dtype != dtype:
        given = "nothing" if t is None else f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}"
        asked = f"{str(dtype).removeprefix('torch.')} {want}"
        raise DitherError(f"{name} is {given} for inputs {tuple(x.shape)}, not {asked}")
    return t if t.stride(-1) == 1 and t.ndim == 2 and t.stride(0) > 0 else t.contiguous()


def turned_by(turned: list[Tensor | None], block: int, width: int, dtype: torch.dtype) -> Beside:
    """Scales and a rotation of ``width`` inputs."""
    if not any(t is not None for t in turned):
        return {}, []
    pre, signs = turned
    told = {"inputs": width, "outputs": width}
    check("pre", pre, told, pre is None or (pre.dtype == dtype == torch.float32 and tuple(pre.shape) == (width,)))
    check("signs", signs, told, signs is None or (signs.dtype == torch.int8 and tuple(signs.shape) == (width,)))
    order = 1 if signs is None else hadamard_order(block)[0]
    held = in_order(pre, signs, None if order == 1 else paley_matrix(block))
    places = dict(zip(("pre", "signs", "matrix"), map(address, held), strict=True))
    return {**places, "block": block, "order": order}, [t for t in held if t is not None]
