"""Kernels of Triton, on NVIDIA GPUs from Ampere on.

    triton_int8      y = s_x s_w [ sum a c - z_x sum c - z_w sum a + K z_x z_w ] + bias,  summed over groups
    triton_decode    y = x decode(weight)^T + bias      of few rows, such as those of modulation; of more, on decoded weights

``triton_int8`` sums the integers that ``cpu_int8`` and ``int8_mm`` do. 4-bit weights with one scale a row are multiplied as
they are stored; 8-bit ones without zero points too; all others become int8 in a scratch tensor, once for each call. Their
zero points are subtracted there, where differences fit int8. What it does in the same call is in ``gpu_linears``.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.gpu import MOST_ROWS, can_run
from dither.kernels.fusion import Around, Fusion, Turn
from dither.kernels.gpu_inputs import DTYPES, rotates, turned_alone
from dither.kernels.gpu_linears import bias_of, branch, feed_forward, gated, linears, rounds_alike
from dither.kernels.gpu_weights import decoded, prepare, prepare_weight_only, stored_as
from dither.kernels.table import Inputs, Kernel, Shape, takes
from dither.spec import Gaussian, Int, LinearSpec, Nested, Trellis

__all__ = ["TRITON", "TRITON_DECODE", "TRITON_INT8"]

_MOST_INPUTS = 1 << 15  # a row fits one program, and sums fit 32 bits
_MOST_BESIDE = 1 << 14  # registers of a program hold a row


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is not None and takes(spec.act.grid) and _has_integers(spec, shape) and can_run(device)


def _fits_weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is None and _has_integers(spec, shape) and can_run(device)


def _has_integers(spec: LinearSpec, shape: Shape) -> bool:
    """Whether codes of the weight are, or name, integers, and not too many a row."""
    return isinstance(spec.weight, Int | Nested | Gaussian | Trellis) and min(shape) > 0 and shape[1] <= _MOST_INPUTS


def _takes(x: Tensor) -> bool:
    return x.dtype in DTYPES and 0 < x.shape[-1] <= _MOST_BESIDE and can_run(x.device)


def _turns(spec: LinearSpec, inputs: int, dtype: torch.dtype) -> bool:
    return dtype in DTYPES and (spec.rotation is None or rotates(spec.rotation.block, inputs))


def _run(call: Inputs) -> Tensor:
    x = call.x if call.x.dtype in DTYPES else call.x.float()
    return linears([replace(call, x=x)], Turn(), Around())[0].to(call.x.dtype)


def _run_weight_only(call: Inputs) -> Tensor:
    x = call.x if call.x.dtype in DTYPES else call.x.float()
    ready, stored = call.prepared, stored_as(call.spec.weight, call.shape)
    if "zero" in ready:
        stored = replace(stored, sub=0)  # the difference is taken as it is: it need not fit int8
    if x.numel() <= MOST_ROWS * call.shape[1]:
        y: Tensor = torch.ops.dither.few_rows(
            x,
            call.weight["codes"],
            ready["scale"],
            ready.get("zero"),
            ready.get("table"),
            bias_of(call),
            stored.numbers(),
        )
        return y.to(call.x.dtype)
    weight = _dense(call).to(call.x.dtype)
    return F.linear(call.x, weight, None if call.bias is None else call.bias.to(call.x.dtype))


def _dense(call: Inputs) -> Tensor:
    """The weight (N, K) float32."""
    (n, k), ready = call.shape, call.prepared
    count = ready["scale"].shape[1]
    w = decoded(call).view(n, count, k // count).float()
    if "zero" in ready and stored_as(call.spec.weight, call.shape).bits == 8:
        w = w - (ready["zero"].float() - 128.0)[:, :, None]
    return (w * ready["scale"][:, :, None]).view(n, k)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return turned_alone(x, Turn(), Around(shift, scale, eps))


def _turn(x: Tensor, turn: Turn) -> Tensor:
    return turned_alone(x, turn, Around())


def _gelu(x: Tensor, tanh: bool) -> Tensor:
    y: Tensor = torch.ops.dither.triton_gelu(x, tanh)
    return y


TRITON_INT8 = Kernel("triton_int8", True, _fits, prepare, _run)
TRITON_DECODE = Kernel("triton_decode", True, _fits_weight_only, prepare_weight_only, _run_weight_only)
TRITON = Fusion(
    TRITON_INT8, _takes, _turns, branch, rounds_alike, True, linears, feed_forward, _modulate, _turn, gated, _gelu
)
