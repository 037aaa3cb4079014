"""The oracle: decode the weight, fake-quantize the input, multiply in float32. Runs every format on every device.

Without activation quantization this is the real thing (weight-only: decode, then a floating-point product), and goes by
the name ``dequantize``; with it, it is a simulation.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.kernels.table import Inputs, Kernel, Shape
from dither.numerics import decode, dynamic_grid, fake_quantize
from dither.spec import LinearSpec

__all__ = ["DEQUANTIZE", "REFERENCE", "quantized_input"]


def quantized_input(call: Inputs) -> Tensor:
    """The input after activation quantization, (..., K) float32."""
    x = call.x.float()
    if call.spec.act is None:
        return x
    grid = call.spec.act.grid
    scale, zero = (call.scale, call.zero) if call.scale is not None else dynamic_grid(x, grid)
    return fake_quantize(x, grid, scale, zero)


def _run(call: Inputs) -> Tensor:
    fmt = call.spec.weight
    weight = call.weight["dense"].float() if fmt is None else decode(call.weight, fmt, call.shape)  # (N, K)
    bias = None if call.bias is None else call.bias.float()
    return F.linear(quantized_input(call), weight, bias).to(call.x.dtype)


def _run_weight_only(call: Inputs) -> Tensor:
    """In the dtype of x, as the full-precision linear would."""
    fmt = call.spec.weight
    weight = call.weight["dense"] if fmt is None else decode(call.weight, fmt, call.shape)  # (N, K)
    bias = None if call.bias is None else call.bias.to(call.x.dtype)
    return F.linear(call.x, weight.to(call.x.dtype), bias)


def _weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is None


def _always(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return True


def _nothing(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {}


DEQUANTIZE = Kernel("dequantize", True, _weight_only, _nothing, _run_weight_only)
REFERENCE = Kernel("reference", False, _always, _nothing, _run)
