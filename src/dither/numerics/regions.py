"""The ``TwoRegion`` grid: two regions of an activation with a step each (arXiv 2502.04056, 2111.12293).

With ``Q = 2^(b-1)``, steps ``s`` (lower) and ``u`` (upper), rounding half to even:

    signed      q = clamp(round(x / s), -Q, -1)  or  clamp(round(x / u), 0, Q - 1)     x' = s q or u q; the sign is the region
    unsigned    r = round(x / s)
                r <= Q - 1:   code r                                                   x' = s r
                else:         code Q + clamp(round(x / u), m, Q - 1)                   x' = u (code - Q)
                m = ceil((Q - 1) s / u): no upper value lies below a lower one, so that rounding keeps the order

A negative value that rounds to 0 in steps of s is 0. Both steps have the shape (..., G), as scales of ``Int`` have. A step of
0 gives zeros. Codes are int8 when signed, else uint8.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dither.errors import BadFormat
from dither.numerics.integer import divisor, flush, grouped, int_range, scale_fault
from dither.spec import Int, TwoRegion

__all__ = [
    "dynamic_region_table",
    "region_codes",
    "region_fault",
    "region_quantize",
    "region_table",
    "region_values",
    "split_table",
]


def region_table(lo: Tensor, hi: Tensor, grid: TwoRegion) -> dict[str, Tensor]:
    """Steps of a signed grid that cover [lo, hi], 0 included: each side has its own."""
    if not grid.signed:
        raise BadFormat(f"{grid}: a range does not say where its regions meet")
    half = 1 << grid.bits - 1
    lo, hi = lo.float().clamp(max=0.0), hi.float().clamp(min=0.0)
    return {"scale": flush(-lo / half), "upper": flush(hi / (half - 1))}


def split_table(top: Tensor, split: Tensor, grid: TwoRegion) -> dict[str, Tensor]:
    """Steps of an unsigned grid whose upper region ends at ``top`` and whose lower one ends at ``split``, at most the top.

    Where the format asks for a power of two between the steps, the lower step is rounded down to one.
    """
    most = (1 << grid.bits - 1) - 1
    upper = flush(top.float() / most)
    scale = torch.minimum(flush(split.float() / most), upper)
    if grid.shift:
        ratio = torch.where(scale > 0, upper / divisor(scale), 1.0)
        scale = upper / torch.exp2(torch.ceil(torch.log2(ratio.clamp(min=1.0))))
    return {"scale": scale, "upper": upper}


def dynamic_region_table(x: Tensor, grid: TwoRegion) -> dict[str, Tensor]:
    """Steps of a signed grid from x (..., K) itself."""
    return region_table(*int_range(x, Int(8, group=grid.group)), grid)


def region_codes(x: Tensor, table: Mapping[str, Tensor], grid: TwoRegion) -> Tensor:
    """Codes (..., K) of a finite x: int8 when signed, else uint8."""
    half = 1 << grid.bits - 1
    x = grouped(x.float(), grid.group)  # (..., G, g)
    s, u = (table[name].float().unsqueeze(-1) for name in ("scale", "upper"))
    if grid.signed:
        lower = (x / divisor(s)).round_().clamp_(-half, 0)
        return torch.where(x < 0, lower, (x / divisor(u)).round_().clamp_(0, half - 1)).to(torch.int8).flatten(-2)
    lower = (x / divisor(s)).round_().clamp_(min=0)
    least = torch.ceil((half - 1) * s / divisor(u)).clamp(max=half - 1)
    upper = torch.maximum((x / divisor(u)).round_(), least).clamp_(max=half - 1).add_(half)
    return torch.where(lower < half, lower, upper).to(torch.uint8).flatten(-2)


def region_values(codes: Tensor, table: Mapping[str, Tensor], grid: TwoRegion) -> Tensor:
    """The float32 values (..., K) that codes stand for. This defines the grid."""
    half = 1 << grid.bits - 1
    q = grouped(codes.float(), grid.group)
    s, u = (table[name].float().unsqueeze(-1) for name in ("scale", "upper"))
    if grid.signed:
        return (q * torch.where(q < 0, s, u)).flatten(-2)
    return torch.where(q < half, s * q, u * (q - half)).flatten(-2)


def region_quantize(x: Tensor, table: Mapping[str, Tensor], grid: TwoRegion) -> Tensor:
    """``region_values(region_codes(x))`` of a finite x (..., K), float32, and faster: no codes are made."""
    half = 1 << grid.bits - 1
    x = grouped(x.float(), grid.group)  # (..., G, g)
    s, u = (table[name].float().unsqueeze(-1) for name in ("scale", "upper"))
    lower, upper = (x / divisor(s)).round_(), (x / divisor(u)).round_()
    if grid.signed:  # one of both is 0
        return lower.clamp_(-half, 0).mul_(s).add_(upper.clamp_(0, half - 1).mul_(u)).flatten(-2)
    above = lower >= half
    least = torch.ceil((half - 1) * s / divisor(u)).clamp(max=half - 1)
    upper = upper.clamp_(min=least).clamp_(max=half - 1).mul_(u)
    return torch.where(above, upper, lower.clamp_(0, half - 1).mul_(s)).flatten(-2)


def region_fault(table: Mapping[str, Tensor], grid: TwoRegion) -> tuple[str, str] | None:
    """What is wrong with stored steps: (tensor, words), or None."""
    s, u = table["scale"], table["upper"]
    for name, t in (("scale", s), ("upper", u)):
        if fault := scale_fault({"scale": t}):
            return name, fault[1]
    if not grid.signed and bool((u < s).any()):
        return "upper", "holds steps finer than the lower region's"
    if grid.shift and bool((torch.frexp(u / divisor(s)).mantissa[s > 0] != 0.5).any()):
        return "upper", "holds steps that are no power of two times the lower region's"
    return None
