"""Inputs on GPUs, from an activation to the codes that products multiply: norm, scale, rotation and rounding in one kernel.

Where a row is too wide for that, its groups are not lines of the rotation, or all rows share a range that has yet to be
found, values are written once in between.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dither.gpu import WHOLE, parts_of, tile_of
from dither.gpu.inputs import Rows
from dither.kernels.fusion import Around, Turn
from dither.kernels.gpu_weights import nibbles_of
from dither.kernels.table import Inputs, rows_of
from dither.numerics import dynamic_table, groups, hadamard_matrix, hadamard_order
from dither.spec import PER_TENSOR, Int

__all__ = ["DTYPES", "rotates", "rounded", "turned_alone"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Of inputs that kernels read as they are."""
_WIDEST = 128  # columns of an inner matrix that is all: registers have no room for more
_NARROWEST, _MEETING = 16, 64  # of one with an outer one behind it


def rounded(call: Inputs, turn: Turn, around: Around, sums: bool, values: bool) -> tuple[Rows, Tensor]:
    """Codes of inputs, and what they are the codes of, or x if nobody asked for it.

    Args:
        call: of a linear on an ``Int`` grid, with x as it is before.
        turn, around: what is done to it.
        sums: whether sums of codes are wanted.
        values: whether the second result is read.
    """
    x, act = call.x, call.spec.act
    assert act is not None
    assert isinstance(act.grid, Int)
    grid, k, ops = act.grid, call.shape[1], torch.ops.dither
    many, halves = groups(k, grid.group), nibbles_of(call.spec, call.shape) != WHOLE
    across_rows = call.table is None and grid.group == PER_TENSOR
    plain = around.shift is None and turn.signs is None and not (values and turn.pre is not None)
    columns = _columns(turn, k, many)
    if not plain and (across_rows or columns is None):
        x, turn, around, plain = turned_alone(x, turn, around), Turn(), Around(), True
    table = dynamic_table(x if turn.pre is None else x * turn.pre.to(x.dtype), grid) if across_rows else call.table
    found = {name: rows_of(t, x) for name, t in (table or {}).items()}
    ranges, rest = (found.get("scale"), found.get("zero")), (grid.bits, grid.symmetric)
    if plain:
        rows: Rows = ops.int8_rows(x, *ranges, turn.pre, *rest, many, 0, halves, sums)
        return rows, x
    x, around = _norm_first(x, turn, around)
    *made, y = ops.int8_beside(*_beside(x, turn, around, columns), *ranges, *rest, many, halves, sums, values)
    return (made[0], made[1], made[2], made[3]), y if values else x


def turned_alone(x: Tensor, turn: Turn, around: Around) -> Tensor:
    """What is done to x (..., K) before it is rounded, written in the dtype of x."""
    if around.shift is None and turn.is_nothing:
        return x
    x, around = _norm_first(x, turn, around)
    y: Tensor = torch.ops.dither.beside(*_beside(x, turn, around, None))
    return y


def _norm_first(x: Tensor, turn: Turn, around: Around) -> tuple[Tensor, Around]:
    """Both as they are; or x behind its norm, which needs whole rows, where they are rotated in parts."""
    if around.shift is None or turn.signs is None:
        return x, around
    found = _lines(turn.block, x.shape[-1])
    assert found is not None  # callers ask before
    *_, meet, tile = found
    if meet > 1 or parts_of(tile, x.dtype) == 1:
        return x, around
    return turned_alone(x, Turn(), around), Around()


def rotates(block: int, width: int) -> bool:
    """Whether kernels rotate rows of this width in blocks."""
    return _lines(block, width) is not None


def _beside(x: Tensor, turn: Turn, around: Around, columns: int | None) -> tuple[object, ...]:
    """What operators take first."""
    before = (x, around.shift, around.scale, around.eps, turn.pre, turn.signs)
    if turn.signs is None:
        return (*before, None, None, columns or x.shape[-1], 1)
    width = len(turn.signs)
    found = _lines(turn.block, width)
    assert found is not None  # callers ask before
    tiles = _tiles(turn.block, width, x.device)
    return (*before, *tiles, *[None] * (2 - len(tiles)), found[1], turn.block)


def _columns(turn: Turn, width: int, many: int) -> int | None:
    """Of the lines that a row is seen as, so that each has at most one range; None where no such lines are."""
    if turn.signs is None:
        columns = width // many
        return columns if tile_of(many, columns) is not None else None
    lines = _lines(turn.block, width)
    assert lines is not None  # callers ask before
    return lines[1] if many in (1, lines[0]) else None


def _lines(block: int, width: int) -> tuple[int, int, int, tuple[int, int]] | None:
    """How a row is rotated: lines, columns of each, lines that meet, and the tile of all; None where kernels do not."""
    columns = min(hadamard_order(block)[1], _MEETING) if block > _WIDEST else block
    lines, meet = width // columns, block // columns
    tile = tile_of(lines, columns, True, meet > 1)
    if columns < _NARROWEST < block or tile is None:
        return None
    return lines, columns, meet, tile


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # graphs need not look into it
def _tiles(block: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """The matrices of a rotation, as ``gpu.beside`` takes them: the inner one, and the outer one if lines meet."""
    return _made_tiles(block, width, device)


@lru_cache(maxsize=256)
def _made_tiles(block: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """Made once for all layers of this width: copying them would wait for the device."""
    found = _lines(block, width)
    assert found is not None  # see rotates
    lines, columns, meet, tile = found
    with torch.inference_mode(False):
        inner = _padded(hadamard_matrix(columns), tile[1]).to(device)
        if meet == 1:
            return (inner,)
        outer = torch.kron(torch.eye(lines // meet, dtype=torch.int8), hadamard_matrix(meet).T.contiguous())
        return inner, _padded(outer, tile[0]).to(device)


def _padded(matrix: Tensor, size: int) -> Tensor:
    return F.pad(matrix, (0, size - matrix.shape[1], 0, size - len(matrix)))
