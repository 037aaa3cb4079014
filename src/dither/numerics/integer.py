"""The ``Int`` format: uniform integers with a scale, and a zero point when asymmetric.

    symmetric    q = clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)       w' = s q           s = max|w| / (2^(b-1) - 1)
    asymmetric   q = clamp(round(w / s) + z, 0, 2^b - 1)              w' = s (q - z)     s = (hi - lo) / (2^b - 1)
    one bit, symmetric    q = [w >= 0]    w' = s (2 q - 1)    s = mean|w|, which minimises the squared error

Rounding is half to even. The range ``[lo, hi]`` always contains 0 and ``z = round(-lo / s)``, so 0 is exact (but for
the symmetric one bit) and no value inside the range moves by more than ``s / 2``. A range so small that its scale would
be below the smallest normal float32 gets ``s = 0``, ``z = 0``: it decodes to exact zeros and nothing divides by it.

Everything works on ``x (..., K)``, weights and activations alike, in float32. Along K lie G groups of g channels (G = 1
per row and per tensor); scales and zeros have the shape (..., G), or (1, ..., 1) per tensor, and any shape that
broadcasts to (..., G) is accepted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from dither.errors import BadFormat
from dither.numerics.checks import require_finite, require_matrix
from dither.numerics.pack import pack, packed_width, unpack
from dither.spec import PER_TENSOR, Grid, Int

__all__ = [
    "code_bounds",
    "decode_int",
    "divisor",
    "dynamic_grid",
    "encode_int",
    "fake_quantize",
    "fitting",
    "flush",
    "from_codes",
    "grid",
    "grouped",
    "groups",
    "int_fault",
    "int_layout",
    "int_range",
    "pack_int",
    "recode_int",
    "scale_fault",
    "to_codes",
    "unpack_int",
]

AnyGrid = TypeVar("AnyGrid", bound=Grid)

_TINY = torch.finfo(torch.float32).tiny
_HUGE = torch.finfo(torch.float32).max


def code_bounds(fmt: Int) -> tuple[int, int]:
    """Least and greatest code. The symmetric one bit stores 0 and 1 for -1 and +1."""
    if fmt.symmetric and fmt.bits > 1:
        return -(1 << fmt.bits - 1), (1 << fmt.bits - 1) - 1
    return 0, (1 << fmt.bits) - 1


def groups(count: int, group: int) -> int:
    """Number of groups along ``count`` channels; 1 per row and per tensor. Raises BadFormat when it does not divide."""
    if group <= 0:
        return 1
    if count % group:
        raise BadFormat(f"group size {group} does not divide the {count} input channels")
    return count // group


def fitting(fmt: AnyGrid, count: int) -> AnyGrid:
    """The format or grid with the largest group size, no larger than its own, that divides ``count`` channels."""
    return replace(fmt, group=next(g for g in range(fmt.group, 0, -1) if count % g == 0)) if fmt.group > 0 else fmt


def grouped(x: Tensor, group: int) -> Tensor:
    """View ``x (..., K)`` as (..., G, g). Raises BadFormat when the group size does not divide K."""
    count = groups(x.shape[-1], group)
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


def int_range(x: Tensor, fmt: Int) -> tuple[Tensor, Tensor]:
    """Least and greatest value of each group of ``x (..., K)``, 0 included: (..., G) each, (1, ..., 1) per tensor."""
    x = grouped(x.float(), fmt.group)  # (..., G, g)
    if fmt.group == PER_TENSOR:
        lo, hi = (v.reshape((1,) * (x.ndim - 1)) for v in torch.aminmax(x))
    else:
        lo, hi = x.amin(-1), x.amax(-1)  # on the CPU many times faster along an axis than one aminmax
    return lo.clamp(max=0.0), hi.clamp(min=0.0)


def grid(lo: Tensor, hi: Tensor, fmt: Int) -> tuple[Tensor, Tensor | None]:
    """Scale (float32) and zero point (uint8; None when symmetric) that cover ``[lo, hi]``, widened to contain 0.

    For the symmetric one bit the scale is the magnitude ``max(|lo|, |hi|)`` itself.
    """
    lo, hi = lo.float().clamp(max=0.0), hi.float().clamp(min=0.0)
    if fmt.symmetric:
        return flush(torch.maximum(-lo, hi) / max((1 << fmt.bits - 1) - 1, 1)), None
    most = (1 << fmt.bits) - 1
    scale = flush((hi - lo).clamp(max=_HUGE) / most)
    zero = torch.round(-lo / divisor(scale)).clamp(0, most)
    return scale, zero.to(torch.uint8)


def dynamic_grid(x: Tensor, fmt: Int) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point found from ``x (..., K)`` itself: min-max, or mean|x| for the symmetric one bit.

    Shapes (..., G): per token, per token group; (1, ..., 1) per tensor. Rows of a weight are its "tokens".
    """
    if fmt.symmetric and fmt.bits == 1:
        size = grouped(x.float().abs(), fmt.group)  # (..., G, g)
        # float64, because the sum of large numbers would overflow
        if fmt.group == PER_TENSOR:
            mean = size.mean(dtype=torch.float64).reshape((1,) * x.ndim)
        else:
            mean = size.mean(-1, dtype=torch.float64)
        return flush(mean.float()), None
    return grid(*int_range(x, fmt), fmt)


def to_codes(x: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int) -> Tensor:
    """Nearest codes of a finite ``x (..., K)``: int8 when symmetric and above one bit, else uint8."""
    if fmt.symmetric and fmt.bits == 1:
        groups(x.shape[-1], fmt.group)
        return (x >= 0).to(torch.uint8)
    return _nearest(x, scale, zero, fmt).to(torch.int8 if fmt.symmetric else torch.uint8).flatten(-2)


def from_codes(codes: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int) -> Tensor:
    """The float32 values (..., K) that the codes stand for. This defines the format."""
    return _value(grouped(codes, fmt.group).to(torch.float32, copy=True), scale, zero, fmt).flatten(-2)


def fake_quantize(x: Tensor, fmt: Int, scale: Tensor, zero: Tensor | None) -> Tensor:
    """``from_codes(to_codes(x))``, bit for bit, without storing the codes."""
    if fmt.symmetric and fmt.bits == 1:
        return from_codes(to_codes(x, scale, zero, fmt), scale, zero, fmt)
    return _value(_nearest(x, scale, zero, fmt), scale, zero, fmt).flatten(-2)


def int_layout(fmt: Int, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K)."""
    rows, count = require_matrix(shape)
    table = (1, 1) if fmt.group == PER_TENSOR else (rows, groups(count, fmt.group))
    out: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "codes": ((rows, packed_width(count, fmt.bits)), torch.uint8),
        "scale": (table, torch.float32),
    }
    return out if fmt.symmetric else {**out, "zero": (table, torch.uint8)}


def int_fault(tensors: Mapping[str, Tensor], fmt: Int) -> tuple[str, str] | None:
    """What is wrong with a stored scale or zero point: (tensor, words), or None."""
    most = (1 << fmt.bits) - 1
    if "zero" in tensors and int(tensors["zero"].max()) > most:
        return "zero", f"holds zero points above {most}"
    return scale_fault(tensors)


def scale_fault(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """What is wrong with a stored ``scale``: (its name, words), or None."""
    scale = tensors["scale"]
    if not bool(torch.isfinite(scale).all()) or bool((scale < 0).any()):
        return "scale", "holds values that are negative, infinite or NaN"
    return None


def pack_int(codes: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int) -> dict[str, Tensor]:
    """Stored tensors of codes (N, K) that a stage has chosen itself, with their scale and zero."""
    out = {"codes": pack(codes, fmt.bits, _signed(fmt)), "scale": scale.to(torch.float32)}
    return out if fmt.symmetric else {**out, "zero": _need(zero, fmt).to(torch.uint8)}


def unpack_int(tensors: Mapping[str, Tensor], fmt: Int, count: int) -> Tensor:
    """Codes (N, K = count) of the stored tensors, as ``to_codes`` gave them."""
    return unpack(tensors["codes"], fmt.bits, count, _signed(fmt))


def encode_int(w: Tensor, fmt: Int, scale: Tensor | None = None, zero: Tensor | None = None) -> dict[str, Tensor]:
    """Round a weight (N, K) to nearest. Without a scale, scale and zero come from ``dynamic_grid``.

    Returns:
        ``codes`` uint8 (N, ceil(K b / 8)), ``scale`` float32 (N, G) or (1, 1);
        when asymmetric also ``zero`` uint8, shaped like the scale.

    Raises:
        BadFormat: not a matrix, a group size that does not divide K, or a scale without its zero.
        BadValue: NaN or infinity.
    """
    require_matrix(w.shape)
    require_finite(w)
    if scale is None:
        scale, zero = dynamic_grid(w, fmt)
    return pack_int(to_codes(w, scale, zero, fmt), scale, zero, fmt)


def recode_int(w: Tensor, tensors: Mapping[str, Tensor], fmt: Int) -> dict[str, Tensor]:
    """The codes nearest to w (N, K) under the scales and zeros that are stored."""
    return encode_int(w, fmt, tensors["scale"], tensors.get("zero"))


def decode_int(tensors: Mapping[str, Tensor], fmt: Int, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the stored tensors stand for."""
    _, count = require_matrix(shape)
    return from_codes(unpack_int(tensors, fmt, count), tensors["scale"], tensors.get("zero"), fmt)


def _signed(fmt: Int) -> bool:
    return fmt.symmetric and fmt.bits > 1


def flush(scale: Tensor) -> Tensor:
    """Scales below the smallest normal number become 0: their reciprocal overflows, and some devices flush them."""
    return torch.where(scale < _TINY, 0.0, scale)


def divisor(scale: Tensor) -> Tensor:
    """What to divide by: x / inf is exactly 0, so a scale of 0 gives the code of 0 and never NaN."""
    return torch.where(scale == 0, torch.inf, scale)


def _need(zero: Tensor | None, fmt: Int) -> Tensor:
    if zero is None:
        raise BadFormat(f"{fmt}: an asymmetric format needs a zero point beside its scale")
    return zero


def _nearest(x: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int) -> Tensor:
    """Codes as float32 (..., G, g), a tensor of its own: in place, as page faults of new ones cost more than arithmetic."""
    q = (grouped(x.float(), fmt.group) / divisor(scale.float()).unsqueeze(-1)).round_()
    if not fmt.symmetric:
        q.add_(_need(zero, fmt).float().unsqueeze(-1))
    return q.clamp_(*code_bounds(fmt))


def _value(q: Tensor, scale: Tensor, zero: Tensor | None, fmt: Int) -> Tensor:
    """Values (..., G, g) of codes given as float32, which they replace."""
    if not fmt.symmetric:
        q.sub_(_need(zero, fmt).float().unsqueeze(-1))
    elif fmt.bits == 1:
        q.mul_(2).sub_(1)
    return q.mul_(scale.float().unsqueeze(-1))
