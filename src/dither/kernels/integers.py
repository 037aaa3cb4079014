"""What the codes of a weight are where they are, or name, integers: what every kernel of int8 has to know of a format."""

import torch
from torch import Tensor

from dither.numerics import gaussian_words, trellis_values
from dither.spec import Format, Gaussian, Int, Nested, Trellis

__all__ = ["is_sign", "unread", "values_named", "whole"]


def whole(fmt: Format | None) -> Int:
    """The integers that are stored, of a format that stores such."""
    found = fmt.whole if isinstance(fmt, Nested) else fmt
    assert isinstance(found, Int)  # kernels look before
    return found


def is_sign(fmt: Int) -> bool:
    """Codes of 0 and 1 stand for -1 and +1."""
    return fmt.symmetric and fmt.bits == 1


def unread(fmt: Format | None) -> dict[str, int]:
    """``(code | ones) ^ turn`` reads the high bits of a nested code; see ``numerics.nested``. Nothing where all are read."""
    if not isinstance(fmt, Nested):
        return {}
    low = fmt.whole.bits - fmt.bits
    return {"ones": (1 << low) - 1, "turn": (1 << low - 1) - 1}


def values_named(fmt: Format | None) -> Tensor | None:
    """What codes are looked up in, int8; None where they are the integers."""
    if isinstance(fmt, Trellis):
        return trellis_values(fmt.states)
    if isinstance(fmt, Gaussian):
        return gaussian_words(fmt)
    return torch.tensor([-1, 1], dtype=torch.int8) if is_sign(whole(fmt)) else None
