"""Kernels of Triton, on NVIDIA GPUs from Ampere on.

    triton_int8      y = s_x s_w [ sum a c - z_x sum c - z_w sum a + K z_x z_w ] + bias,  summed over groups
    triton_decode    y = x decode(weight)^T + bias      of few rows, such as those of modulation; of more, on decoded weights

``triton_int8`` sums the integers that ``cpu_int8`` and ``int8_mm`` do. 4-bit weights with one scale a row are multiplied as
they are stored; 8-bit ones without zero points too; all others become int8 in a scratch tensor, once for each call. Their
zero points are subtracted there, where differences fit int8.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.gpu import INTEGERS, MOST_ROWS, SIGNED, TRELLIS, UNSIGNED, WHOLE, WORDS, Stored, can_run
from dither.gpu.inputs import Rows
from dither.kernels.table import Inputs, Kernel, Shape, rows_of
from dither.numerics import (
    dynamic_table,
    gaussian_codes,
    gaussian_words,
    groups,
    high_bits,
    trellis_codes,
    trellis_values,
    unpack_int,
)
from dither.spec import PER_TENSOR, Format, Gaussian, Int, LinearSpec, Nested, Trellis

__all__ = ["TRITON_DECODE", "TRITON_INT8", "feed_forward", "linear", "modulated", "stored_as"]

_MOST_INPUTS = 1 << 15  # a row fits one program, and sums fit 32 bits
_ALIGNED = 32  # columns: nibbles are read in whole vectors
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _fits(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    if (
        spec.act is None
        or not isinstance(spec.act.grid, Int)
        or not isinstance(spec.weight, Int | Nested | Gaussian | Trellis)
    ):
        return False
    if spec.act.grid.symmetric and spec.act.grid.bits == 1:  # codes of {-1, +1} are not integers in place
        return False
    return min(shape) > 0 and shape[1] <= _MOST_INPUTS and can_run(device)


def _fits_weight_only(spec: LinearSpec, shape: Shape, device: torch.device) -> bool:
    known = isinstance(spec.weight, Int | Nested | Gaussian | Trellis)
    return known and spec.act is None and min(shape) > 0 and shape[1] <= _MOST_INPUTS and can_run(device)


def stored_as(fmt: Format | None, shape: Shape) -> Stored:
    """What kernels must know of a weight (N, K) of this format."""
    n, k = shape
    if isinstance(fmt, Trellis):
        return Stored(TRELLIS, n, k, fmt.bits, dim=fmt.rows, columns=fmt.columns, states=fmt.states)
    if isinstance(fmt, Gaussian):
        return Stored(WORDS, n, k, fmt.bits, dim=fmt.dim)
    whole = _whole(fmt)
    many = groups(k, whole.group)
    if _is_sign(whole):
        return Stored(WORDS, n, k, 1, groups=many)
    found = Stored(INTEGERS, n, k, whole.bits, groups=many)
    if isinstance(fmt, Nested):
        unread = whole.bits - fmt.bits
        found = replace(found, ones=(1 << unread) - 1, turn=(1 << unread - 1) - 1)
    sign = 1 << whole.bits - 1
    if whole.symmetric:
        return replace(found, flip=sign, sub=sign)
    return replace(found, sub=sign) if whole.bits == 8 else found


def _whole(fmt: Format | None) -> Int:
    """The integers that are stored."""
    whole = fmt.whole if isinstance(fmt, Nested) else fmt
    assert isinstance(whole, Int)  # see _fits
    return whole


def _is_sign(fmt: Int) -> bool:
    """Codes of 0 and 1 stand for -1 and +1."""
    return fmt.symmetric and fmt.bits == 1


def _table(fmt: Format | None) -> Tensor | None:
    """What codes are looked up in, int8."""
    if isinstance(fmt, Trellis):
        return trellis_values(fmt.states)
    if isinstance(fmt, Gaussian):
        return gaussian_words(fmt)
    return torch.tensor([-1, 1], dtype=torch.int8) if _is_sign(_whole(fmt)) else None


def _nibbles(spec: LinearSpec, shape: Shape) -> int:
    """Whether the product takes 4-bit codes as they are stored."""
    fmt = spec.weight
    if not isinstance(fmt, Int) or fmt.bits != 4 or fmt.group > 0 or shape[1] % _ALIGNED:
        return WHOLE
    if spec.act is None or spec.act.grid.group > 0:
        return WHOLE
    return SIGNED if fmt.symmetric else UNSIGNED


def _moved(spec: LinearSpec, shape: Shape) -> int | None:
    """How far codes are moved where the product itself corrects zero points; None where they are subtracted before."""
    if not isinstance(spec.weight, Int | Nested) or _whole(spec.weight).symmetric:
        return None
    if _nibbles(spec, shape) == UNSIGNED:
        return 8
    return 128 if _whole(spec.weight).bits == 8 else None


def _integers(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> Tensor:
    """The int8 (N, K) that the product multiplies, by torch."""
    fmt = spec.weight
    if isinstance(fmt, Trellis):
        return trellis_codes(weight, fmt, shape)
    if isinstance(fmt, Gaussian):
        return gaussian_codes(weight, fmt, shape)
    whole = _whole(fmt)
    codes = unpack_int(weight, whole, shape[1])
    codes = high_bits(codes, fmt) if isinstance(fmt, Nested) else codes
    wide = codes.to(torch.int16)
    if _is_sign(whole):
        wide = 2 * wide - 1
    elif not whole.symmetric:
        moved = _moved(spec, shape)
        zero = (
            _per_row(weight["zero"], shape)
            .to(torch.int16)
            .repeat_interleave(shape[1] // groups(shape[1], whole.group), 1)
        )
        wide = wide - (zero if moved is None else moved)
    return wide.to(torch.int8)


def _per_row(t: Tensor, shape: Shape) -> Tensor:
    """Scales or zero points (N, G), also where all rows share one."""
    return t.expand(shape[0], t.shape[1]).contiguous()


def _prepare(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scales and zero points for each row, sums of integers, and the values that codes name."""
    ready = _prepare_weight_only(spec, shape, weight)
    moved = _moved(spec, shape)
    if moved is not None:
        ready["moved"] = ready.pop("zero").to(torch.int32) - moved
    if spec.act is not None and isinstance(spec.act.grid, Int) and not spec.act.grid.symmetric:
        size = math.gcd(*(shape[1] // count for count in _groups(spec, shape)))
        parts = _integers(spec, shape, weight).view(shape[0], -1, size)
        ready["sums"] = parts.sum(-1, dtype=torch.int32).T.contiguous()  # (S, N)
    return ready


def _prepare_weight_only(spec: LinearSpec, shape: Shape, weight: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ready = {"scale": _per_row(weight["scale"].float(), shape)}
    if "zero" in weight:
        ready["zero"] = _per_row(weight["zero"], shape)
    table = _table(spec.weight)
    return ready if table is None else {**ready, "table": table.to(weight["codes"].device)}


def _groups(spec: LinearSpec, shape: Shape) -> tuple[int, int]:
    """Groups of the weight and of inputs."""
    assert spec.act is not None  # see _fits
    return stored_as(spec.weight, shape).groups, groups(shape[1], spec.act.grid.group)


def _weight(call: Inputs) -> Tensor:
    """What the product multiplies with."""
    fmt, codes = call.spec.weight, call.weight["codes"]
    if _nibbles(call.spec, call.shape) != WHOLE:
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
    x, grid, found = _ranges(call)
    many, (halves, sums) = groups(call.shape[1], grid.group), _wanted(call)
    rows = torch.ops.dither.int8_rows(
        x, found.get("scale"), found.get("zero"), between, grid.bits, grid.symmetric, many, 0, halves, sums
    )
    return _multiply(rows, call, x.dtype, gate, residual, after)


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
    return _multiply(rows, call, x.dtype, None, None, after)


def _wanted(call: Inputs) -> tuple[bool, bool]:
    """Whether codes come in halves, and with their sums."""
    return _nibbles(call.spec, call.shape) != WHOLE, "moved" in call.prepared


def _ranges(call: Inputs) -> tuple[Tensor, Int, dict[str, Tensor]]:
    """x in a dtype that kernels read, the grid of its codes, and the table if there is one."""
    assert call.spec.act is not None  # see _fits
    grid = call.spec.act.grid
    assert isinstance(grid, Int)
    x = call.x if call.x.dtype in _DTYPES else call.x.float()
    table = call.table
    if table is None and grid.group == PER_TENSOR:
        table = dynamic_table(x, grid)
    return x, grid, {name: rows_of(t, x) for name, t in (table or {}).items()}


def _multiply(
    rows: Rows, call: Inputs, dtype: torch.dtype, gate: Tensor | None, residual: Tensor | None, after: int
) -> Tensor:
    """What is left behind the codes of inputs."""
    a, scale, zero, sums = rows
    n, ready = call.shape[0], call.prepared
    y: Tensor = torch.ops.dither.int8_product(
        a, scale, zero if "sums" in ready else None, _segment_sums(a, sums, call), _weight(call), ready["scale"],
        ready.get("moved"), ready.get("sums"), _bias(call), None, None, gate,
        None if residual is None else residual.reshape(-1, n), None, None, 8, after, _nibbles(call.spec, call.shape), dtype,
    )  # fmt: skip
    return y.view(*call.x.shape[:-1], n).to(call.x.dtype)


def feed_forward(first: Inputs, second: Inputs, between: Tensor | None, tanh: bool) -> Tensor:
    """Two linears that ``TRITON_INT8`` runs, with a GELU between them that is made before the first one's output is written.

    Args:
        first: of the first one.
        second: of the second one; its x gives its rows alone, and its ranges must not depend on more of it.
        between: what activations (H) are multiplied by, or None.
        tanh: GELU is the approximation by tanh.
    """
    hidden = linear(first, after=1 if tanh else 2)
    return linear(replace(second, x=hidden), between=between)


def _segment_sums(a: Tensor, sums: Tensor, call: Inputs) -> Tensor | None:
    """Sums of codes (M, S), from those of groups unless segments are finer."""
    if "moved" not in call.prepared:
        return None
    of_weights, of_inputs = _groups(call.spec, call.shape)
    size = math.gcd(call.shape[1] // of_weights, call.shape[1] // of_inputs)
    finer = size != call.shape[1] // of_inputs
    return a.view(len(a), call.shape[1] // size, size).sum(-1, dtype=torch.int32) if finer else sums


def _bias(call: Inputs) -> Tensor | None:
    return call.bias if call.bias is None or call.bias.dtype in _DTYPES else call.bias.float()


def _run_weight_only(call: Inputs) -> Tensor:
    x = call.x if call.x.dtype in _DTYPES else call.x.float()
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


TRITON_INT8 = Kernel("triton_int8", True, _fits, _prepare, linear)
TRITON_DECODE = Kernel("triton_decode", True, _fits_weight_only, _prepare_weight_only, _run_weight_only)
