"""The ``Trellis`` format: trellis-coded quantization with a computed codebook (QTIP, arXiv 2406.11235).

A tile of ``rows`` x ``columns`` weights, row by row, is a ring of T weights and T k bits, k = ``bits``. With L = ``states``,

    window_t = (b_t + 2^k b_(t-1) + 2^2k b_(t-2) + ...) mod 2^L        W_t = scale of the row * values[window_t]

so that neighbours share all but k bits of their windows, and which values may follow each other is a graph of 2^L states with
2^k edges out of each. The best path of a tile is found by dynamic programming (Viterbi). That its end meets its beginning
(tail-biting) is had as in the paper's section 3.3: a first pass over the tile turned by a half says what the overlap is.

``values`` are the 2^L quantiles of a Gaussian in the order of a hash of the window, as int8 of a 29th of its deviation.
They are no parameters, and integers: a kernel that reads them multiplies int8 by int8. Rounding them adds 1e-4 to the squared
error of a weight of variance 1, which is to be seen beside 4^-k, what no code of any length can go below.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from dither.errors import BadFormat
from dither.numerics.checks import require_finite, require_matrix
from dither.numerics.deviation import UNIT, evened, refitted, stored_scale
from dither.numerics.integer import divisor
from dither.numerics.pack import pack, packed_width, unpack
from dither.numerics.paths import best_paths
from dither.spec import Trellis

__all__ = [
    "decode_trellis",
    "encode_trellis",
    "pack_trellis",
    "recode_trellis",
    "trellis_bits",
    "trellis_codes",
    "trellis_from_bits",
    "trellis_layout",
    "trellis_values",
]

_MULTIPLIER = 2654435761  # odd: a bijection of every ring of 2^L; Knuth's choice for multiplicative hashing
_HELD = 1 << 25  # bytes of costs at a time: those of a step then fit into the caches


def trellis_layout(fmt: Trellis, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Names, shapes and dtypes of the tensors that store a weight of ``shape`` (N, K): a row of codes a strip of tiles."""
    strips, tiles = _tiles(fmt, shape)
    rows = packed_width(tiles * fmt.length, fmt.bits)
    return {"codes": ((strips, rows), torch.uint8), "scale": ((strips * fmt.rows, 1), torch.bfloat16)}


def encode_trellis(w: Tensor, fmt: Trellis) -> dict[str, Tensor]:
    """Quantize a weight (N, K) by the best path of each tile.

    Returns:
        ``codes`` uint8 (N / rows, ceil(K rows bits / 8)), ``scale`` bfloat16 (N, 1).

    Raises:
        BadFormat: not a matrix, or tiles that do not divide it.
        BadValue: NaN or infinity.
    """
    _tiles(fmt, w.shape)
    require_finite(w)
    w = w.detach().float()
    bits = trellis_bits(evened(w), fmt)
    values = trellis_from_bits(bits, fmt, w.shape)
    return pack_trellis(bits, refitted(w, values), fmt, w.shape)


def trellis_bits(x: Tensor, fmt: Trellis) -> Tensor:
    """Bits (S, T) uint8 of the S tiles of x (N, K), strip by strip, of the path that is nearest; each row of variance 1."""
    return _paths(_to_tiles(x.float(), fmt), fmt)


def trellis_from_bits(bits: Tensor, fmt: Trellis, shape: Sequence[int]) -> Tensor:
    """x (N, K) float32, of the shape given, that bits (S, T) stand for."""
    return _from_tiles(_look_up(bits, fmt), fmt, shape).float().div_(UNIT)


def pack_trellis(bits: Tensor, scale: Tensor, fmt: Trellis, shape: Sequence[int]) -> dict[str, Tensor]:
    """Stored tensors of chosen bits (S, T) and of the deviation (N, 1) of each row."""
    strips, _ = _tiles(fmt, shape)
    return {"codes": pack(bits.reshape(strips, -1), fmt.bits, signed=False), "scale": stored_scale(scale)}


def recode_trellis(w: Tensor, tensors: Mapping[str, Tensor], fmt: Trellis) -> dict[str, Tensor]:
    """Codes nearer to w (N, K) than the stored ones: each weight's own bits in turn take their best value.

    One sweep, each row in its unit, over weights whose windows do not overlap at a time. The best path of all (``encode``)
    takes 2^L times as long.
    """
    strips, _ = _tiles(fmt, w.shape)
    x = _to_tiles(w.float() / divisor(tensors["scale"].float()), fmt)  # (S, T)
    bits = unpack(tensors["codes"], fmt.bits, x.shape[1] * len(x) // strips, signed=False).reshape(x.shape)
    window, table = _windows(bits, fmt), trellis_values(fmt.states).float().to(w.device)
    span = -(-fmt.states // fmt.bits)  # windows that hold a weight's own bits
    whole = fmt.length // span * span
    groups = [*torch.arange(whole).view(-1, span).T, *torch.arange(whole, fmt.length)[:, None]]
    step = torch.arange(span, device=w.device)
    for group in groups if whole else ():
        at = (group.to(w.device)[:, None] + step) % fmt.length  # (P, span)
        now, aim = window[:, at], x[:, at]  # (S, P, span)
        best, least = now, (table[now] - aim).square_().sum(-1, keepdim=True)
        for change in range(1, 1 << fmt.bits):
            other = now ^ (change << step * fmt.bits & (1 << fmt.states) - 1).to(now.dtype)
            cost = (table[other] - aim).square_().sum(-1, keepdim=True)
            best, least = torch.where(cost < least, other, best), torch.minimum(cost, least)
        window[:, at] = best
    found = (window & (1 << fmt.bits) - 1).to(torch.uint8)
    return {**tensors, "codes": pack(found.reshape(strips, -1), fmt.bits, signed=False)}


def decode_trellis(tensors: Mapping[str, Tensor], fmt: Trellis, shape: Sequence[int]) -> Tensor:
    """The float32 weight (N, K) that the stored tensors stand for."""
    return trellis_codes(tensors, fmt, shape).float().mul_(tensors["scale"].float())


def trellis_codes(tensors: Mapping[str, Tensor], fmt: Trellis, shape: Sequence[int]) -> Tensor:
    """The values (N, K) int8 that the codes name, before the rows' scales."""
    strips, tiles = _tiles(fmt, shape)
    bits = unpack(tensors["codes"], fmt.bits, tiles * fmt.length, signed=False)
    return _from_tiles(_look_up(bits.reshape(strips * tiles, fmt.length), fmt), fmt, shape)


@cache
def trellis_values(states: int) -> Tensor:
    """The value of every window (2^states,) int8, symmetric about 0."""
    count = 1 << states
    window = torch.arange(count, dtype=torch.int64)
    order = window * _MULTIPLIER % count
    for shift in (states // 2, states // 3):
        order = (order ^ order >> max(shift, 1)) * _MULTIPLIER % count
    quantile: Tensor = torch.special.ndtri((order.double() + 0.5) / count)
    return quantile.mul(UNIT).round().to(torch.int8)


def _paths(x: Tensor, fmt: Trellis) -> Tensor:
    """Bits (S, T) uint8 of the path that is nearest to each tile of x (S, T)."""
    table = trellis_values(fmt.states).float().div(UNIT).to(x.device)
    half = fmt.length // 2
    turned = _best(x.roll(-half, 1), table, fmt, None)
    overlap = turned[:, fmt.length - half - 1] & (1 << fmt.states - fmt.bits) - 1
    return (_best(x, table, fmt, overlap) & (1 << fmt.bits) - 1).to(torch.uint8)


def _best(x: Tensor, table: Tensor, fmt: Trellis, overlap: Tensor | None) -> Tensor:
    """Windows (S, T) int64 of the best paths, by native code or, the same, by torch."""
    if (found := best_paths(x, table, fmt, overlap)) is not None:
        return found
    many = max(1, _HELD // (4 * fmt.length << fmt.states - fmt.bits))
    parts = torch.split(x, many)
    ends = [None] * len(parts) if overlap is None else torch.split(overlap, many)
    return torch.cat([_viterbi(part, table, fmt, end) for part, end in zip(parts, ends, strict=True)])


def _viterbi(x: Tensor, table: Tensor, fmt: Trellis, overlap: Tensor | None) -> Tensor:
    """Windows (S, T) int64 of the best path.

    Forward only costs are kept, and not where they come from: a path needs that of one window a step, and to find it for all
    of them takes longer than all else. The bits that come are the outer axis, so that nothing is broadcast along the inner.

    Sums are taken in the order of ``native/trellis.cpp``, which finds the same paths faster.

    Args:
        x: (S, T).
        table: value of each window, (2^L,).
        fmt: k and L.
        overlap: what the last L - k bits are to be, (S,), both at the end and before the beginning; None leaves both free.
    """
    (tiles, length), edges, kept = x.shape, 1 << fmt.bits, 1 << fmt.states - fmt.bits
    by_next = table.view(kept, edges).T.contiguous()  # (2^k, 2^(L-k)): bits that come, bits that were there
    square, slope = by_next.square(), by_next.mul(-2)  # (x - v)^2 = x^2 + v^2 - 2 x v
    each = torch.arange(tiles, device=x.device)
    costs = torch.zeros(length + 1, tiles, kept, device=x.device)  # of the best window that ends in these bits
    if overlap is not None:
        costs[0].fill_(torch.inf)
        costs[0, each, overlap] = 0.0
    for t in range(length):
        cost = x[:, t, None, None].mul(slope).add_(square).add_(costs[t, :, None])  # (S, 2^k, 2^(L-k))
        if kept < edges:  # nothing that was there is left in the next ones
            costs[t + 1] = cost.view(tiles, edges // kept, kept, kept).amin((1, 3))
        else:
            best = cost.view(tiles, edges, edges, kept // edges).amin(2)
            costs[t + 1] = best.transpose(1, 2).reshape(tiles, kept)
    ending = costs[-1].argmin(1) if overlap is None else overlap
    path = torch.empty(tiles, length, dtype=torch.int64, device=x.device)
    first = torch.arange(edges, device=x.device) * kept  # the bits that fall out of a window when the next ones come
    for t in reversed(range(length)):
        window = first + ending[:, None]  # (S, 2^k)
        before = window >> fmt.bits
        value = table[window]
        cost = (x[:, t, None] * value.mul(-2)).add_(value.square()).add_(costs[t].gather(1, before))
        path[:, t] = window.gather(1, cost.argmin(1, keepdim=True))[:, 0]
        ending = path[:, t] >> fmt.bits
    return path


def _look_up(bits: Tensor, fmt: Trellis) -> Tensor:
    """Values (S, T) int8 of the bits (S, T)."""
    return trellis_values(fmt.states).to(bits.device)[_windows(bits, fmt)]


def _windows(bits: Tensor, fmt: Trellis) -> Tensor:
    """Windows (S, T) int32 of the bits (S, T)."""
    now = bits.to(torch.int32)
    window = now.clone()
    for steps in range(1, -(-fmt.states // fmt.bits)):
        window |= now.roll(steps, 1) << steps * fmt.bits
    return window & (1 << fmt.states) - 1


def _tiles(fmt: Trellis, shape: Sequence[int]) -> tuple[int, int]:
    """Strips of tiles, and tiles in a strip."""
    rows, count = require_matrix(shape)
    if rows % fmt.rows or count % fmt.columns:
        raise BadFormat(f"tiles of {fmt.rows} x {fmt.columns} do not divide a weight of {rows} x {count}")
    return rows // fmt.rows, count // fmt.columns


def _to_tiles(x: Tensor, fmt: Trellis) -> Tensor:
    """(N, K) to (S, T)."""
    strips, tiles = _tiles(fmt, x.shape)
    return x.reshape(strips, fmt.rows, tiles, fmt.columns).transpose(1, 2).reshape(-1, fmt.length)


def _from_tiles(x: Tensor, fmt: Trellis, shape: Sequence[int]) -> Tensor:
    """(S, T) to (N, K)."""
    strips, tiles = _tiles(fmt, shape)
    return x.reshape(strips, tiles, fmt.rows, fmt.columns).transpose(1, 2).reshape(shape[0], shape[1]).contiguous()
