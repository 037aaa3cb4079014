"""Codes that serve several widths: rounding and a grid that leave no bias at any of them.

Read at their high bits alone (``spec.Nested``), codes of the nearest wide value stand for one that is half a wide step too
high on average, the same for all weights of a row. An input whose channels have a mean (a modulation layer's has) adds that
up over all channels, and pictures are lost by it. So codes are chosen here that have no mean error at any width. With d bits
unread at the widest narrow view, u = w / s + z, and f = u - k 2^d its place in the group k = floor(u / 2^d):

    q = k 2^d + min(floor(f + 1/2 + delta), 2^d - 1)        delta = 1 / (2 (2^d - 1))

The wide code pays with squared error: twice as much at d = 2, a fifth more at d = 4. With zero points the grid is made from
that of the narrowest width, b' with scale s' and zero z', of which D bits are unread:

    s = s' / 2^D        z = z' 2^D + 2^(D-1)        so that the narrow reading is exactly w rounded to b' bits, zero included
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from dither.numerics import code_bounds, decode, dynamic_grid, encode, encode_int, grouped, pack_int
from dither.spec import Format, Int, LinearSpec, Nested, View, Views

__all__ = ["encode_for", "rounded", "views_of"]


def encode_for(
    w: Tensor, fmt: Int, widths: Sequence[int], scale: Tensor | None = None, zero: Tensor | None = None
) -> dict[str, Tensor]:
    """Stored tensors of a weight (N, K) that will be read at these widths.

    Args:
        w: of finite values.
        fmt: what is stored.
        widths: bits that some view reads.
        scale, zero: a grid that a range search left; else the widest range.
    """
    narrower = [b for b in widths if b < fmt.bits]
    if not narrower:
        return encode_int(w, fmt, scale, zero)
    if scale is None:
        scale, zero = _grid(w, fmt, min(narrower))
    return pack_int(_codes(w, fmt, fmt.bits - max(narrower), scale, zero), scale, zero, fmt)


def rounded(w: Tensor, fmt: Format) -> Tensor:
    """The values (N, K) that a weight gets in a format, when it is rounded as stages round."""
    shape = (w.shape[0], w.shape[1])
    tensors = encode_for(w, fmt.whole, (fmt.bits,)) if isinstance(fmt, Nested) else encode(w, fmt)
    return decode(tensors, fmt, shape)


def views_of(runs: Sequence[LinearSpec]) -> Views:
    """One stored weight, at its widest, for specs that run in the rows of a clock and differ in widths alone.

    Args:
        runs: with ``Int`` weights, one for each row.
    """
    kinds = tuple(dict.fromkeys(runs))
    views = tuple(View(cast(Int, s.weight).bits, s.act) for s in kinds)
    base = max(kinds, key=lambda s: cast(Int, s.weight).bits)
    act = max((s.act for s in kinds if s.act), key=lambda a: a.grid.bits, default=None)
    return Views(replace(base, act=act), views, tuple(map(kinds.index, runs)))


def _grid(w: Tensor, fmt: Int, bits: int) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point, so that ``bits`` high bits read what they would be alone; symmetric ones cannot."""
    if fmt.symmetric:
        return dynamic_grid(w, fmt)
    size = 1 << fmt.bits - bits
    scale, zero = dynamic_grid(w, replace(fmt, bits=bits))
    assert zero is not None
    return scale / size, (zero.int() * size + size // 2).to(torch.uint8)


def _codes(w: Tensor, fmt: Int, unread: int, scale: Tensor, zero: Tensor | None) -> Tensor:
    """(N, K), int8 or uint8."""
    divisor = torch.where(scale == 0, torch.inf, scale.float()).unsqueeze(-1)
    u = grouped(w.float(), fmt.group) / divisor  # (N, G, g)
    if zero is not None:
        u = u + zero.float().unsqueeze(-1)
    size = 1 << unread
    first = torch.floor(u / size) * size
    q = first + torch.floor(u - first + 0.5 + 0.5 / (size - 1)).clamp(max=size - 1)
    return q.clamp(*code_bounds(fmt)).to(torch.int8 if fmt.symmetric else torch.uint8).flatten(-2)
