"""The oracle: decode the weight, fake-quantize the input, multiply in float32. Runs every format on every device.

Without activation quantization this is the real thing (weight-only: decode, then a floating-point product), and goes by
the name ``dequantize``; with it, it is a simulation.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.kernels.table import Inputs, Kernel, Shape
from dither.numerics import act_quantize, decode, dynamic_table
from dither.spec import Float8, Int, LinearSpec, Nested

__all__ = ["DEQUANTIZE", "REFERENCE", "quantized_input"]

_CACHED = 1 << 19  # weights decoded at once on the CPU: 2 MiB


def quantized_input(call: Inputs) -> Tensor:
    """The input after activation quantization, (..., K) float32."""
    x = call.x.float()
    if call.spec.act is None:
        return x
    grid = call.spec.act.grid
    return act_quantize(x, grid, dynamic_table(x, grid) if call.table is None else call.table)


def _run(call: Inputs) -> Tensor:
    fmt = call.spec.weight
    weight = call.weight["dense"].float() if fmt is None else decode(call.weight, fmt, call.shape)  # (N, K)
    bias = None if call.bias is None else call.bias.float()
    return F.linear(quantized_input(call), weight, bias).to(call.x.dtype)


def _run_weight_only(call: Inputs) -> Tensor:
    """In the dtype of x, as the full-precision linear would."""
    fmt, (n, k) = call.spec.weight, call.shape
    bias = None if call.bias is None else call.bias.to(call.x.dtype)
    rows = max(1, _CACHED // k)
    large = n > rows and call.x.device.type == "cpu" and not torch.compiler.is_compiling()
    if large and isinstance(fmt, Int | Float8 | Nested):
        return _run_in_parts(call, fmt, bias, rows)
    weight = call.weight["dense"] if fmt is None else decode(call.weight, fmt, call.shape)  # (N, K)
    return F.linear(call.x, weight.to(call.x.dtype), bias)


def _run_in_parts(call: Inputs, fmt: Int | Float8 | Nested, bias: Tensor | None, rows: int) -> Tensor:
    """Some rows of the weight at a time, decoded in the caches: the whole float32 weight never exists."""
    n, k = call.shape
    y = call.x.new_empty(*call.x.shape[:-1], n)
    for start in range(0, n, rows):
        part = slice(start, min(start + rows, n))
        stored = {name: t[part] if t.shape[0] == n else t for name, t in call.weight.items()}  # or one row for all
        weight = decode(stored, fmt, (part.stop - start, k)).to(call.x.dtype)
        y[..., part] = F.linear(call.x, weight, None if bias is None else bias[part])
    return y


def _weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is None


def _always(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return True


def _nothing(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {}


DEQUANTIZE = Kernel("dequantize", True, _weight_only, _nothing, _run_weight_only)
REFERENCE = Kernel("reference", False, _always, _nothing, _run)
