"""Operators on what lies between an activation and a product: norm, scale and rotation, alone or with codes behind them.

    beside         y = (pre * (LayerNorm(x) (1 + gain) + shift) * signs) H / sqrt(block),   each part where it is given
    int8_beside    the same, then its codes; y itself too if somebody else reads it

A row is seen as lines of columns, and H as the Kronecker product of two matrices of -1 and +1, int8. The inner one, (b, b),
multiplies every line. Where the block of the rotation is wider than a line, the outer one, (a, a), multiplies the lines of
each block: it comes transposed, once for each block of a row, along the diagonal. Both are 0 beyond what is there.
"""

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.gpu.inputs import Rows, check_ranges, empty_rows, ranges, results, shape_of, warps_for
from dither.gpu.launch import INNER, NARROW, launch, memory_for, operator, require

__all__ = ["beside", "int8_beside", "parts_of", "tile_of"]

_MOST = 1 << 14
"""Elements of a row that registers hold."""
_MOST_OVER_LINES = 1 << 13
"""The same where a rotation reaches over lines, of which there are at most as many as these."""
_MOST_LINES = 1 << 7
_MOST_ROTATED = 1 << 13
"""Elements of lines that are rotated at a time, in half precision; a quarter of float32, which goes in two parts."""
RowsAnd: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""``Rows``, and what they are the codes of, (..., K) or empty."""


def tile_of(lines: int, columns: int, rotated: bool = False, over_lines: bool = False) -> tuple[int, int] | None:
    """What holds a row of so many lines and columns; None where it would not fit registers."""
    least = 16 if rotated else 1
    a, b = (max(least, 1 << (n - 1).bit_length()) for n in (lines, columns))
    if over_lines:
        return (a, b) if a <= _MOST_LINES and a * b <= _MOST_OVER_LINES else None
    return (a, b) if a * b <= _MOST else None


def parts_of(tile: tuple[int, int], dtype: torch.dtype) -> int:
    """Of a row of this tile whose lines are rotated, each by itself, so that none of them spills registers."""
    lines, columns = tile
    most = _MOST_ROTATED // (4 if dtype == torch.float32 else 1)
    return max(1, min(lines * columns // most, lines // 16))


def beside(
    x: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    eps: float,
    pre: Tensor | None,
    signs: Tensor | None,
    inner: Tensor | None,
    outer: Tensor | None,
    columns: int,
    block: int,
) -> Tensor:
    """y (..., K) in the dtype of x.

    Args:
        x: float32, float16 or bfloat16; (B, T, K) where there is a norm.
        shift, gain: (B, K), or None: no norm.
        eps: of the norm.
        pre: float32 (K,), rounded to the dtype of x; or None.
        signs: int8 (K,), or None: no rotation.
        inner, outer: the matrices, the second one only where lines meet; or None.
        columns: of a line; K where nothing is rotated.
        block: of the rotation.

    Raises:
        DitherError: tensors that do not fit each other, a row that is too wide, or a norm of one in several parts.
    """
    m, k = shape_of(x)
    what = f"turning {m} rows of {k}"
    with memory_for(what, x):
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        own = _arguments(x, shift, gain, eps, pre, signs, inner, outer, columns, block, what)
        none = dict.fromkeys(("codes", "scale", "zero", "sums"))
        _start(x, own, {**none, **ranges(None, None), "values": y}, 8, True, False, False)
    return y


def int8_beside(
    x: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    eps: float,
    pre: Tensor | None,
    signs: Tensor | None,
    inner: Tensor | None,
    outer: Tensor | None,
    columns: int,
    block: int,
    scale: Tensor | None,
    zero: Tensor | None,
    bits: int,
    symmetric: bool,
    groups: int,
    halves: bool,
    sums: bool,
    values: bool,
) -> RowsAnd:
    """Codes of what ``beside`` gives, as of ``int8_rows``; and that itself if ``values``.

    Args:
        groups: of a row that have ranges of their own: 1, or one for each line.
        others: as of ``beside`` and ``int8_rows``.

    Raises:
        DitherError: as of ``beside``.
    """
    m, k = shape_of(x)
    what = f"turning and quantizing {m} rows of {k}"
    with memory_for(what, x):
        check_ranges(x, scale, zero, groups, symmetric, what)
        require(groups in (1, k // max(columns, 1)) and not (halves and (groups > 1 or k % 2)), what, "x", x)
        found = empty_rows(x, groups, symmetric, sums)
        y = _values(x, values)
        own = _arguments(x, shift, gain, eps, pre, signs, inner, outer, columns, block, what)
        own |= results(found, symmetric, sums) | {"values": y if values else None}
        _start(x, own, ranges(scale, zero), bits, symmetric, groups > 1, halves)
    return (*found, y)


def _values(x: Tensor, wanted: bool) -> Tensor:
    return x.new_empty(x.shape if wanted else (0,))


def _start(
    x: Tensor, own: dict[str, Any], more: dict[str, Any], bits: int, symmetric: bool, grouped: bool, halves: bool
) -> None:
    from dither.gpu.jit.around import rows_around

    launch(
        rows_around, (shape_of(x)[0],), x, warps_for(own["A"] * own["B"]), 1,
        **own, **more, BITS=bits, SYMMETRIC=symmetric, GROUPED=grouped, HALVES=halves,
    )  # fmt: skip


def _arguments(
    x: Tensor,
    shift: Tensor | None,
    gain: Tensor | None,
    eps: float,
    pre: Tensor | None,
    signs: Tensor | None,
    inner: Tensor | None,
    outer: Tensor | None,
    columns: int,
    block: int,
    what: str,
) -> dict[str, Any]:
    """What the kernel takes, looked at."""
    k = x.shape[-1]
    require(x.dtype in NARROW and 0 < k <= INNER and 0 < columns <= k and k % columns == 0, what, "x", x)
    tile = tile_of(k // columns, columns, signs is not None, outer is not None)
    require(tile is not None, what, "x", x)
    assert tile is not None
    require(pre is None or (pre.dtype == torch.float32 and pre.shape == (k,)), what, "pre", pre)
    for name, t, shape in (("signs", signs, (k,)), ("inner", inner, (tile[1],) * 2), ("outer", outer, (tile[0],) * 2)):
        fits = (signs is None or name == "outer") if t is None else t.dtype == torch.int8 and tuple(t.shape) == shape
        require(fits, what, name, t)
    require((shift is None) == (gain is None), what, "gain", gain)
    across = 0
    if shift is not None and gain is not None:
        require(x.ndim == 3, what, "x", x)
        for name, t in (("shift", shift), ("gain", gain)):
            require(t.dtype in NARROW and tuple(t.shape) == (x.shape[0], k), what, name, t)
        shift, gain = _same_rows(shift, gain)
        across = shift.stride(0)
    parts = parts_of(tile, x.dtype) if signs is not None and outer is None else 1
    require(parts == 1 or shift is None, what, "shift", shift)
    given = {"x": x, "pre": pre, "signs": signs, "inner": inner, "outer": outer}
    tensors: dict[str, Any] = {name: None if t is None else t.contiguous() for name, t in given.items()}
    return tensors | {
        "shift": shift, "gain": gain, "SIZE": k, "LINES": k // columns, "COLUMNS": columns,
        "TOKENS": 1 if shift is None else x.shape[1], "ACROSS": across, "EPS": eps, "NORM": 1 / math.sqrt(max(block, 1)),
        "A": tile[0] // parts, "B": tile[1], "PARTS": parts,
    }  # fmt: skip


def _same_rows(shift: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Both with rows equally far from each other: chunks of one modulation are so already."""
    if shift.stride(-1) == gain.stride(-1) == 1 and shift.stride(0) == gain.stride(0):
        return shift, gain
    return shift.contiguous(), gain.contiguous()


def _fake(x: Tensor, *rest: Any) -> RowsAnd:
    symmetric, groups, _, sums, values = rest[-5:]
    found: Rows = empty_rows(x, groups, symmetric, sums)
    return (*found, _values(x, values))


_TURN = (
    "Tensor x, Tensor? shift, Tensor? gain, float eps, Tensor? pre, Tensor? signs, Tensor? inner, Tensor? outer, "
    "int columns, int block"
)
operator(f"beside({_TURN}) -> Tensor", beside, lambda x, *rest: x.new_empty(x.shape))
operator(
    f"int8_beside({_TURN}, Tensor? scale, Tensor? zero, int bits, bool symmetric, int groups, bool halves, bool sums, "
    "bool values) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    int8_beside,
    _fake,
)
