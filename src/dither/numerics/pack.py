"""Dense packing of integer codes: every width from 1 to 16 bits, no bit wasted but the last few of a row.

A row is one little-endian bit stream. Code ``i`` of width ``b`` takes the bits ``[i b, (i + 1) b)``, least significant
first; bit ``j`` of the stream is bit ``j % 8`` of byte ``j // 8``. Signed codes are two's complement. The bits left
over in the last byte of a row are zero. So every row starts on a byte, and rows can be cut and joined as they are.

The pattern repeats after ``lcm(b, 8)`` bits. Packing therefore walks over the few codes of one such period and treats
all rows and periods at once; the working memory is one code of each period. 8-bit codes are a view of the same memory.
"""

import math

import torch
from torch import Tensor

from dither.errors import BadFormat, BadValue

__all__ = ["pack", "packed_width", "unpack"]


def packed_width(count: int, bits: int) -> int:
    """Bytes that a row of ``count`` codes of ``bits`` bits takes."""
    _check_width(bits)
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int, signed: bool) -> Tensor:
    """Pack the codes (R, K), of any integer dtype, into uint8 (R, ceil(K bits / 8)).

    Raises:
        BadFormat: the width is not 1 to 16.
        BadValue: a code does not fit the width.
    """
    rows, count = codes.shape
    width = packed_width(count, bits)
    if bits == 8 and codes.dtype == (torch.int8 if signed else torch.uint8):
        return codes.contiguous().view(torch.uint8)
    _check_range(codes, bits, signed)
    per, size = _period(bits)
    full, rest = divmod(count, per)
    out = codes.new_zeros((rows, full + (rest > 0), size), dtype=torch.uint8)  # (R, periods, bytes of a period)
    for i in range(per):
        column = codes[:, i::per].to(torch.int32) & ((1 << bits) - 1)  # (R, periods, or one fewer past the last code)
        for byte, shift in _touched(i, bits):
            moved = column << shift if shift >= 0 else column >> -shift
            out[:, : column.shape[1], byte] |= (moved & 0xFF).to(torch.uint8)
    return out.view(rows, -1)[:, :width].contiguous()


def unpack(packed: Tensor, bits: int, count: int, signed: bool) -> Tensor:
    """Unpack uint8 (R, ceil(count bits / 8)) into codes (R, count).

    The codes are int8 or uint8 up to 8 bits, int32 above.

    Raises:
        BadFormat: the width is not 1 to 16, or the row length is not that of ``count`` codes.
    """
    rows, width = packed.shape
    if width != packed_width(count, bits):
        raise BadFormat(f"{width} packed bytes a row: {count} codes of {bits} bits take {packed_width(count, bits)}")
    dtype = torch.int32 if bits > 8 else torch.int8 if signed else torch.uint8
    if bits == 8:
        return packed.view(dtype)
    if bits == 4:
        return _unpack_nibbles(packed.view(dtype))[:, :count].contiguous()
    per, size = _period(bits)
    periods = -(-width // size)
    if width % size:  # complete the last period, so that one shape fits all
        packed = torch.nn.functional.pad(packed, (0, periods * size - width))
    stream = packed.reshape(rows, periods, size)
    out = packed.new_empty((rows, periods, per), dtype=dtype)
    work = torch.int16 if bits <= 8 else torch.int32
    sign = 1 << (bits - 1)
    for i in range(per):
        code = torch.zeros((rows, periods), dtype=work, device=packed.device)
        for byte, shift in _touched(i, bits):
            part = stream[:, :, byte].to(work)
            code |= part >> shift if shift >= 0 else part << -shift
        code &= (1 << bits) - 1
        out[:, :, i] = (code ^ sign) - sign if signed else code
    return out.view(rows, -1)[:, :count].contiguous()


def _unpack_nibbles(pairs: Tensor) -> Tensor:
    """Two 4-bit codes of each byte (R, P), side by side (R, 2 P): several times faster. Shifts of int8 repeat the sign."""
    return torch.stack(((pairs << 4) >> 4, pairs >> 4), dim=-1).flatten(1)


def _period(bits: int) -> tuple[int, int]:
    """Codes and bytes after which the bit pattern repeats."""
    length = math.lcm(bits, 8)
    return length // bits, length // 8


def _touched(index: int, bits: int) -> list[tuple[int, int]]:
    """The bytes of a period that code ``index`` touches, each with the left shift that brings the code there."""
    start = index * bits
    return [(byte, start - 8 * byte) for byte in range(start // 8, (start + bits - 1) // 8 + 1)]


def _check_width(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise BadFormat(f"codes of {bits} bits: the width must be 1 to 16")


def _check_range(codes: Tensor, bits: int, signed: bool) -> None:
    if codes.numel() == 0:
        return
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    least, most = (int(v) for v in torch.aminmax(codes))
    if least < low or most > high:
        raise BadValue(f"codes reach from {least} to {most}: {bits} bits hold {low} to {high}")
