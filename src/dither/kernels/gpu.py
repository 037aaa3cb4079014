"""Kernels of Triton, on NVIDIA GPUs from Ampere on.

    triton_int8      y = s_x s_w [ sum a c - z_x sum c - z_w sum a + K z_x z_w ] + bias,  summed over groups
    triton_decode    y = x decode(weight)^T + bias      of few rows, such as those of modulation; of more, on decoded weights

``triton_int8`` sums the integers that ``cpu_int8`` and ``int8_mm`` do. 4-bit weights with one scale a row are multiplied as
they are stored; 8-bit ones without zero points too; all others become int8 in a scratch tensor, once for each call. Their
zero points are subtracted there, where differences fit int8. Inputs of two regions are two products, one on top of the other.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.gpu import MOST_ROWS, WHOLE, can_run
from dither.gpu.inputs import Rows
from dither.kernels.gpu_weights import group_counts, nibbles_of, prepare, prepare_weight_only, stored_as
from dither.kernels.table import Inputs, Kernel, Shape, rows_of, takes
from dither.numerics import dynamic_table, groups
from dither.spec import PER_TENSOR, Gaussian, Int, LinearSpec, Nested, Trellis, TwoRegion

__all__ = ["DTYPES", "TRITON_DECODE", "TRITON_INT8", "feed_forward", "linear", "modulated", "modulated_feed_forward"]

_MOST_INPUTS = 1 << 15  # a row fits one program, and sums fit 32 bits
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of inputs that kernels read as they are."""


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is not None and takes(spec.act.grid) and _has_integers(spec, shape) and can_run(device)


def _fits_weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    return spec.act is None and _has_integers(spec, shape) and can_run(device)


def _has_integers(spec: LinearSpec, shape: Shape) -> bool:
    """Whether codes of the weight are, or name, integers, and not too many a row."""
    return isinstance(spec.weight, Int | Nested | Gaussian | Trellis) and min(shape) > 0 and shape[1] <= _MOST_INPUTS


def _weight(call: Inputs) -> Tensor:
    """What the product multiplies with."""
    fmt, codes = call.spec.weight, call.weight["codes"]
    if nibbles_of(call.spec, call.shape) != WHOLE:
        return codes
    if isinstance(fmt, Int) and fmt.bits == 8 and fmt.symmetric:
        return codes.view(torch.int8)
    return _decoded(call)


def _decoded(call: Inputs) -> Tensor:
    """(N, K) int8 in a scratch tensor."""
    ready = call.prepared
    stored = stored_as(call.spec.weight, call.shape)
    zero = ready.get("zero") if stored.bits < 8 else None
    w: Tensor = torch.ops.dither.int8_weight(call.weight["codes"], zero, ready.get("table"), stored.numbers())
    return w


def linear(
    call: Inputs,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
    between: Tensor | None = None,
    after: int = 0,
) -> Tensor:
    """``residual + gate * after(act(between * x) decode(weight)^T + bias)``, (..., K) to (..., N) in the dtype of x.

    Args:
        call: of the linear; x may be wider than float32.
        gate: (B, N), a row a sample; or None: 1.
        residual: (..., N) or None: 0.
        between: (K,) float32 or None: 1.
        after: a GELU of the output: 0 none, 1 by tanh, 2 by erf.
    """
    if call.spec.act is not None and isinstance(call.spec.act.grid, TwoRegion):
        return _two_regions(call, call.spec.act.grid, gate, residual, between, after)
    dtype = call.x.dtype if call.x.dtype in DTYPES else torch.float32
    return _multiply(_codes(call, between), call, dtype, gate, residual, after).to(call.x.dtype)


def _codes(call: Inputs, between: Tensor | None = None) -> Rows:
    """Of inputs, as they are or times a scale of columns."""
    x, grid, found = _ranges(call)
    many, (halves, sums) = groups(call.shape[1], grid.group), _wanted(call)
    rows: Rows = torch.ops.dither.int8_rows(
        x, found.get("scale"), found.get("zero"), between, grid.bits, grid.symmetric, many, 0, halves, sums
    )
    return rows


def modulated(call: Inputs, shift: Tensor, gain: Tensor, eps: float, after: int = 0) -> Tensor:
    """``after(act(LayerNorm(x) (1 + gain) + shift) decode(weight)^T + bias)``, (B, T, K) to (B, T, N).

    Args:
        call: of the linear, with x before the norm; its inputs have one range a row, dynamic or static.
        shift, gain: (B, K).
        eps: of the norm.
        after: as of ``linear``.
    """
    x, grid, found = _ranges(call)
    rows = torch.ops.dither.int8_modulated(
        x, shift, gain, found.get("scale"), found.get("zero"), eps, grid.bits, grid.symmetric, *_wanted(call)
    )
    return _multiply(rows, call, x.dtype, None, None, after).to(call.x.dtype)


def _two_regions(
    call: Inputs, grid: TwoRegion, gate: Tensor | None, residual: Tensor | None, between: Tensor | None, after: int
) -> Tensor:
    """``linear`` where negative values have steps of their own: their product, and that of the others on top of it."""
    x = call.x if call.x.dtype in DTYPES else call.x.float()
    x = x if between is None else (x * between).to(x.dtype)
    table = dynamic_table(x, grid) if call.table is None else call.table
    many, (halves, sums) = groups(call.shape[1], grid.group), _wanted(call)
    lower, upper = (
        torch.ops.dither.int8_rows(part, rows_of(table[name], x), None, None, grid.bits, True, many, 0, halves, sums)
        for name, part in (("scale", x.clamp(max=0)), ("upper", x.clamp(min=0)))
    )
    below = _multiply(lower, replace(call, bias=None), torch.float32, None, None, 0)
    y = _multiply(upper, call, torch.float32, None, below, 0).to(x.dtype)
    if after:
        y = torch.ops.dither.triton_gelu(y, after == 1)
    if gate is not None:
        y = gate[:, None] * y
    return (y if residual is None else residual + y).to(call.x.dtype)


def _wanted(call: Inputs) -> tuple[bool, bool]:
    """Whether codes come in halves, and with their sums."""
    return nibbles_of(call.spec, call.shape) != WHOLE, "moved" in call.prepared


def _ranges(call: Inputs) -> tuple[Tensor, Int, dict[str, Tensor]]:
    """x in a dtype that kernels read, the grid of its codes, and the table if there is one."""
    assert call.spec.act is not None  # see _fits
    grid = call.spec.act.grid
    assert isinstance(grid, Int)
    x = call.x if call.x.dtype in DTYPES else call.x.float()
    table = call.table
    if table is None and grid.group == PER_TENSOR:
        table = dynamic_table(x, grid)
    return x, grid, {name: rows_of(t, x) for name, t in (table or {}).items()}


def _multiply(
    rows: Rows, call: Inputs, dtype: torch.dtype, gate: Tensor | None, residual: Tensor | None, after: int
) -> Tensor:
    """What is left behind the codes of inputs, (..., N) of ``dtype``."""
    n = call.shape[0]
    flat = None if residual is None else residual.reshape(-1, n)
    nibbles = nibbles_of(call.spec, call.shape)
    y: Tensor = torch.ops.dither.int8_product(*_operands(rows, call), None, None, gate, flat, after, nibbles, dtype)
    return y.view(*call.x.shape[:-1], n)


def _operands(rows: Rows, call: Inputs) -> tuple[Tensor | None, ...]:
    """What products take first: both sides, and the bias."""
    a, scale, zero, sums = rows
    ready = call.prepared
    inputs = (a, scale, zero if "sums" in ready else None, _segment_sums(a, sums, call))
    return (*inputs, _weight(call), ready["scale"], ready.get("moved"), ready.get("sums"), _bias(call))


def feed_forward(first: Inputs, second: Inputs, between: Tensor | None, tanh: bool) -> Tensor:
    """Two linears that ``TRITON_INT8`` runs, with a GELU between them that is made before the first one's output is written.

    Args:
        first: of the first one.
        second: of the second one; its x gives its rows alone, and its ranges must not depend on more of it.
        between: what activations (H) are multiplied by, or None.
        tanh: GELU is the approximation by tanh.
    """
    after = 1 if tanh else 2
    if isinstance(first.spec.act and first.spec.act.grid, TwoRegion):
        return linear(replace(second, x=linear(first, after=after)), between=between)
    return _both(_codes(first), first, second, between, after, None, None)


def modulated_feed_forward(
    first: Inputs, second: Inputs, shift: Tensor, gain: Tensor, eps: float, tanh: bool, gate: Tensor, residual: Tensor
) -> Tensor:
    """``residual + gate * feed_forward(LayerNorm(x) (1 + gain) + shift)``; arguments as of these and of ``linear``."""
    x, grid, found = _ranges(first)
    rows = torch.ops.dither.int8_modulated(
        x, shift, gain, found.get("scale"), found.get("zero"), eps, grid.bits, grid.symmetric, *_wanted(first)
    )
    return _both(rows, first, second, None, 1 if tanh else 2, gate, residual)


def _both(
    rows: Rows,
    first: Inputs,
    second: Inputs,
    between: Tensor | None,
    after: int,
    gate: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Two linears and what is between them, from the first one's codes."""
    if between is None and _may_chain(second):
        return _chained(rows, first, second, after, gate, residual)
    dtype = first.x.dtype if first.x.dtype in DTYPES else torch.float32
    hidden = _multiply(rows, first, dtype, None, None, after)
    return linear(replace(second, x=hidden), gate, residual, between)


def _may_chain(second: Inputs) -> bool:
    """Whether the second one's codes can be all that is written of the first one's output: one static range a row."""
    assert second.spec.act is not None  # see _fits
    grid = second.spec.act.grid
    whole = nibbles_of(second.spec, second.shape) == WHOLE and "moved" not in second.prepared
    return whole and isinstance(grid, Int) and grid.group <= 0 and second.table is not None


def _chained(
    rows: Rows, first: Inputs, second: Inputs, after: int, gate: Tensor | None, residual: Tensor | None
) -> Tensor:
    """``_both`` by codes alone, of the same bits."""
    assert second.spec.act is not None
    grid, table = second.spec.act.grid, second.table
    assert isinstance(grid, Int)
    assert table is not None
    x = first.x
    scale = rows_of(table["scale"], x)
    zero = None if grid.symmetric else rows_of(table["zero"], x)
    codes, scales = torch.ops.dither.int8_product_codes(
        *_operands(rows, first), scale, zero, grid.bits, after, nibbles_of(first.spec, first.shape), x.dtype
    )
    moved = 128 if grid.bits == 8 else 0
    zeros = x.new_empty(0) if zero is None else (zero.to(torch.int32) - moved).expand(len(codes), 1)
    return _multiply((codes, scales, zeros, x.new_empty(0)), second, x.dtype, gate, residual, 0)


def _segment_sums(a: Tensor, sums: Tensor, call: Inputs) -> Tensor | None:
    """Sums of codes (M, S), from those of groups unless segments are finer."""
    if "moved" not in call.prepared:
        return None
    of_weights, of_inputs = group_counts(call.spec, call.shape)
    size = math.gcd(call.shape[1] // of_weights, call.shape[1] // of_inputs)
    finer = size != call.shape[1] // of_inputs
    return a.view(len(a), call.shape[1] // size, size).sum(-1, dtype=torch.int32) if finer else sums


def _bias(call: Inputs) -> Tensor | None:
    return call.bias if call.bias is None or call.bias.dtype in DTYPES else call.bias.float()


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
            _bias(call),
            stored.numbers(),
        )
        return y.to(call.x.dtype)
    weight = _dense(call).to(call.x.dtype)
    return F.linear(call.x, weight, None if call.bias is None else call.bias.to(call.x.dtype))


def _dense(call: Inputs) -> Tensor:
    """The weight (N, K) float32."""
    (n, k), ready = call.shape, call.prepared
    count = ready["scale"].shape[1]
    w = _decoded(call).view(n, count, k // count).float()
    if "zero" in ready and stored_as(call.spec.weight, call.shape).bits == 8:
        w = w - (ready["zero"].float() - 128.0)[:, :, None]
    return (w * ready["scale"][:, :, None]).view(n, k)


TRITON_INT8 = Kernel("triton_int8", True, _fits, prepare, linear)
TRITON_DECODE = Kernel("triton_decode", True, _fits_weight_only, prepare_weight_only, _run_weight_only)
