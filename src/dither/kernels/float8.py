"""Float8 linear on ``torch._scaled_mm``: float8 x float8, summed in float32, on NVIDIA GPUs from Ada on.

    y = s_x s_w sum_k a c + bias        a, c: the E4M3 numbers of ``numerics.float8``;  s_x per row or tensor, s_w per output

Products of two E4M3 numbers are exact, and sums are float32's: without ``use_fast_accum``, which keeps fewer bits. On Hopper
and on Blackwell's data center GPUs, an output in bfloat16 is scaled and gets its bias inside the call (row-wise scaling).
Otherwise the call returns float32 sums of unscaled numbers, and the rest is done behind it: not all releases scale rows for
other outputs, and some do it in the wrong stream on Ada (pytorch issue 177651) or wrongly on small Blackwells (192707).

The CPU runs the same calls, by decoding first. That is no arithmetic of 8 bits, so that the kernel is not chosen there; tests
check it there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dither.gpu import multiplies_float8, scales_rows
from dither.kernels.table import Inputs, Kernel, Shape, rows_of
from dither.numerics import FLOAT8, act_codes, dynamic_table
from dither.spec import Act, Float8, LinearSpec

__all__ = ["SCALED_MM"]

_ALIGNED = 16
"""Both widths are multiples of it: rows of float8 start at 16 bytes."""


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    if spec.act is None or not all(_is_whole(f) for f in (spec.weight, spec.act.grid)):
        return False
    return all(n > 0 and n % _ALIGNED == 0 for n in shape) and multiplies_float8(device)


def _is_whole(fmt: object) -> bool:
    """Float8 without groups."""
    return isinstance(fmt, Float8) and fmt.group <= 0


def _prepare(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A scale for each output, (1, N), and a scale that changes nothing."""
    scale = weight["scale"].reshape(1, -1).expand(1, shape[0]).contiguous()
    return {"scale": scale, "one": scale.new_ones(())}


def _run(call: Inputs) -> Tensor:
    n, k = call.shape
    x = call.x.reshape(-1, k)  # (M, K)
    if not len(x):  # torch takes no empty product
        return call.x.new_empty(*call.x.shape[:-1], n)
    act = call.spec.act
    assert isinstance(act, Act)  # see _fits
    table = dynamic_table(x, act.grid) if call.table is None else {"scale": rows_of(call.table["scale"], call.x)}
    a = act_codes(x, act.grid, table).view(FLOAT8)
    y = _product(a, table["scale"], call)
    return y.reshape(*call.x.shape[:-1], n).to(call.x.dtype)


def _product(a: Tensor, scale: Tensor, call: Inputs) -> Tensor:
    """(M, N) bfloat16 or float32 of numbers a (M, K) with scales (M, 1) or (1, 1)."""
    weight, ready, bias = call.weight["codes"].view(FLOAT8).t(), call.prepared, call.bias
    if _scales_inside(call):
        rows = scale.expand(len(a), 1).contiguous()
        return torch._scaled_mm(a, weight, rows, ready["scale"], bias, out_dtype=torch.bfloat16)
    y = torch._scaled_mm(a, weight, ready["one"], ready["one"], out_dtype=torch.float32)
    y = y.mul_(scale).mul_(ready["scale"])
    return y if bias is None else y.add_(bias.float())


def _scales_inside(call: Inputs) -> bool:
    """Whether the product itself applies scales and bias: nothing of the output is lost by it, and it is right here."""
    narrow = call.x.dtype == torch.bfloat16 and (call.bias is None or call.bias.dtype == torch.bfloat16)
    return narrow and scales_rows(call.x.device)


SCALED_MM = Kernel("scaled_mm", True, _fits, _prepare, _run)
