"""The ``Float8`` format: E4M3 numbers without infinities (arXiv 2209.05433), torch's ``float8_e4m3fn``, with a scale.

    s = max|w| / 448        q = E4M3(clamp(w / s, -448, 448))        w' = s q

Rounding is half to even, in torch's own cast. A code is the number's byte: sign, four bits e of the exponent, three bits m of
the mantissa,

    e > 0    q = +-2^(e - 7) (1 + m / 8)        e = 0    q = +-2^-6 (m / 8)        (1111, 111) is NaN, which no weight has

so that 448 is the largest number. The cast makes NaN of what is larger, hence the clamp: finite values stay finite. NaN stays
NaN. Scales are as those of ``integer``: (..., G), or (1, ..., 1) per tensor, and 0 where they would be below the smallest
normal float32.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dither.numerics.checks import require_finite, require_matrix
from dither.numerics.integer import divisor, flush, grouped, groups, int_range, scale_fault
from dither.spec import PER_TENSOR, Float8, Int

__all__ = [
    "FLOAT8",
    "decode_float8",
    "dynamic_float8",
    "encode_float8",
    "float8_codes",
    "float8_fault",
    "float8_layout",
    "float8_quantize",
    "float8_scale",
    "float8_values",
    "recode_float8",
]

FLOAT8 = torch.float8_e4m3fn
"""What the byte of a code is."""
_MOST = torch.finfo(FLOAT8).max
_NAN = 0x7F  # of either sign


def float8_scale(lo: Tensor, hi: Tensor) -> Tensor:
    """Scales (float32) of ranges, shaped like these: the larger end becomes 448."""
    return flush(torch.maximum(-lo.float(), hi.float()) / _MOST)


def dynamic_float8(x: Tensor, fmt: Float8) -> Tensor:
    """The scale of each group of x (..., K) itself: (..., G), or (1, ..., 1) per tensor."""
    return float8_scale(*int_range(x, Int(fmt.bits, group=fmt.group)))


def float8_codes(x: Tensor, scale: Tensor, fmt: Float8) -> Tensor:
    """Nearest codes (..., K) uint8 of x (..., K); NaN has one of its own."""
    return _nearest(x, scale, fmt).view(torch.uint8).flatten(-2)


def float8_values(codes: Tensor, scale: Tensor, fmt: Float8) -> Tensor:
    """The float32 values (..., K) that codes stand for. This defines the format."""
    return _value(grouped(codes, fmt.group).view(FLOAT8), scale)


def float8_quantize(x: Tensor, scale: Tensor, fmt: Float8) -> Tensor:
    """``float8_values(float8_codes(x))``, bit for bit."""
    return _value(_nearest(x, scale, fmt), scale)


def float8_layout(fmt: Float8, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K)."""
    rows, count = require_matrix(shape)
    table = (1, 1) if fmt.group == PER_TENSOR else (rows, groups(count, fmt.group))
    return {"codes": ((rows, count), torch.uint8), "scale": (table, torch.float32)}


def encode_float8(w: Tensor, fmt: Float8) -> dict[str, Tensor]:
    """Round a weight (N, K) to nearest.

    Returns:
        ``codes`` uint8 (N, K), ``scale`` float32 (N, G) or (1, 1).

    Raises:
        BadFormat: not a matrix, or a group size that does not divide K.
        BadValue: NaN or infinity.
    """
    require_matrix(w.shape)
    require_finite(w)
    return recode_float8(w, {"scale": dynamic_float8(w, fmt)}, fmt)


def decode_float8(tensors: Mapping[str, Tensor], fmt: Float8, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the stored tensors stand for."""
    require_matrix(shape)
    return float8_values(tensors["codes"], tensors["scale"], fmt)


def recode_float8(w: Tensor, tensors: Mapping[str, Tensor], fmt: Float8) -> dict[str, Tensor]:
    """The codes nearest to w (N, K) under the scales that are stored."""
    return {"codes": float8_codes(w, tensors["scale"], fmt), "scale": tensors["scale"]}


def float8_fault(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """What is wrong with stored codes or scales: (tensor, words), or None."""
    if bool(((tensors["codes"] & _NAN) == _NAN).any()):
        return "codes", "holds codes that are NaN"
    return scale_fault(tensors)


def _nearest(x: Tensor, scale: Tensor, fmt: Float8) -> Tensor:
    """(..., G, g) float8."""
    q = grouped(x.float(), fmt.group) / divisor(scale.float()).unsqueeze(-1)
    return q.clamp_(-_MOST, _MOST).to(FLOAT8)


def _value(q: Tensor, scale: Tensor) -> Tensor:
    """Values (..., K) of float8 (..., G, g)."""
    return q.float().mul_(scale.float().unsqueeze(-1)).flatten(-2)
