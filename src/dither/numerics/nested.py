"""The ``Nested`` format: wide integers of which only the high bits are read, so that one weight serves several widths.

What is stored is what ``Int`` of the whole width stores. With d bits left unread,

    q' = ((q >> d) << d) | (1 << (d - 1))         w' = s q'  or  s (q' - z)

so that every run of 2^d codes stands for the one in its middle: a grid of steps 2^d s, of which 0 is no level. Storing once
costs little. Squared error over that of rounding to as many bits alone, of Gaussian weights (256, 1152) in 8 bits per row:

    bits read      1      2      3      4      5      6      7
    symmetric    3.64   0.34   0.58   0.79   0.94   1.13   1.72
    asymmetric   1.10   0.58   0.78   0.90   1.00   1.16   1.74

It is below 1 because the range is cut into 2^b even cells with a level in the middle of each, where ``Int`` has a level at
both ends (and leaves one unused when symmetric); above 1 near the whole width, where being rounded twice shows.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dither.numerics.checks import require_matrix
from dither.numerics.integer import encode_int, from_codes, int_layout, unpack_int
from dither.spec import Nested

__all__ = ["decode_nested", "encode_nested", "high_bits", "nested_layout"]


def nested_layout(fmt: Nested, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K): those of ``fmt.whole``."""
    return int_layout(fmt.whole, shape)


def encode_nested(w: Tensor, fmt: Nested) -> dict[str, Tensor]:
    """Quantize a weight (N, K) at the whole width. Raises BadFormat or BadValue as ``encode_int`` does."""
    return encode_int(w, fmt.whole)


def decode_nested(tensors: Mapping[str, Tensor], fmt: Nested, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the high bits of the stored codes stand for."""
    _, count = require_matrix(shape)
    codes = high_bits(unpack_int(tensors, fmt.whole, count), fmt)
    return from_codes(codes, tensors["scale"], tensors.get("zero"), fmt.whole)


def high_bits(codes: Tensor, fmt: Nested) -> Tensor:
    """``q'`` of codes int8 or uint8 of any shape, in a new tensor.

    The low d bits become 10..0 in two operations: all of them 1, then all but the highest of them turned over. A code's
    high bits are never looked at, so a code that was moved by -128 beforehand is still moved by -128.
    """
    unread = fmt.whole.bits - fmt.bits
    return (codes | ((1 << unread) - 1)).bitwise_xor_((1 << unread - 1) - 1)
