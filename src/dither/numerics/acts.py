"""The one entrance to the grids of activations: what a table of ranges holds, and what rounding by it means.

    table_layout(act, K)           names, shapes and dtypes of a stored table, declared before there is any data
    dynamic_table(x, grid)         a table from x (..., K) itself
    range_table(lo, hi, grid)      a table that covers ranges
    act_codes, act_values          x to codes and back; the latter *defines* the grid
    act_quantize(x, grid, table)   both in one: x at the values that its codes stand for
    table_fault(table, grid)       what no calibration could have written

A table maps ``scale``, and ``zero`` or ``upper`` where the grid has one, to tensors (..., G) that broadcast against the G
channel groups of x; stored ones are (R, G), one row for each row of the model's clock.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dither.numerics.float8 import dynamic_float8, float8_codes, float8_quantize, float8_scale, float8_values
from dither.numerics.integer import (
    dynamic_grid,
    fake_quantize,
    flush,
    from_codes,
    groups,
    int_fault,
    scale_fault,
    to_codes,
)
from dither.numerics.integer import grid as int_grid
from dither.numerics.log2 import dynamic_log2, log2_codes, log2_values
from dither.numerics.regions import (
    dynamic_region_table,
    region_codes,
    region_fault,
    region_quantize,
    region_table,
    region_values,
)
from dither.spec import Act, Float8, Grid, Int, Log2, TwoRegion

__all__ = [
    "Table",
    "act_codes",
    "act_quantize",
    "act_values",
    "dynamic_table",
    "int_table",
    "range_table",
    "table_fault",
    "table_layout",
]

Table: TypeAlias = Mapping[str, Tensor]


@dataclass(frozen=True)
class GridOps:
    """What the table below holds for a type of grid.

    Args:
        names: of its tables' tensors, for a grid, with their dtypes.
        dynamic: (x, grid) -> table.
        ranged: (lo, hi, grid) -> table.
        codes: (x, table, grid) -> codes.
        values: (codes, table, grid) -> float32.
        quantize: (x, table, grid) -> float32.
        fault: (table, grid) -> (name, what is wrong), or None.
    """

    names: Callable[[Any], dict[str, torch.dtype]]
    dynamic: Callable[[Tensor, Any], dict[str, Tensor]]
    ranged: Callable[[Tensor, Tensor, Any], dict[str, Tensor]]
    codes: Callable[[Tensor, Table, Any], Tensor]
    values: Callable[[Tensor, Table, Any], Tensor]
    quantize: Callable[[Tensor, Table, Any], Tensor]
    fault: Callable[[Table, Any], tuple[str, str] | None]


def table_layout(act: Act, channels: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
    """Names, shapes and dtypes of a stored table; nothing where ranges are dynamic, though groups must divide there too."""
    shape = (act.rows, groups(channels, act.grid.group))
    return {name: (shape, dtype) for name, dtype in _ops(act.grid).names(act.grid).items()} if act.static else {}


def dynamic_table(x: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Ranges of x (..., K) itself, (..., G) each; (1, ..., 1) per tensor."""
    return _ops(grid).dynamic(x, grid)


def range_table(lo: Tensor, hi: Tensor, grid: Grid) -> dict[str, Tensor]:
    """A table that covers [lo, hi], shaped like these."""
    return _ops(grid).ranged(lo, hi, grid)


def act_codes(x: Tensor, grid: Grid, table: Table) -> Tensor:
    """Nearest codes of a finite x (..., K)."""
    return _ops(grid).codes(x, table, grid)


def act_values(codes: Tensor, grid: Grid, table: Table) -> Tensor:
    """The float32 values (..., K) that the codes stand for."""
    return _ops(grid).values(codes, table, grid)


def act_quantize(x: Tensor, grid: Grid, table: Table) -> Tensor:
    """``act_values(act_codes(x))``, float32."""
    return _ops(grid).quantize(x, table, grid)


def table_fault(table: Table, grid: Grid) -> tuple[str, str] | None:
    """What is wrong with a stored table's values: (tensor, words), or None."""
    return _ops(grid).fault(table, grid)


def int_table(scale: Tensor, zero: Tensor | None) -> dict[str, Tensor]:
    """The table of an ``Int`` grid."""
    return {"scale": scale} if zero is None else {"scale": scale, "zero": zero}


_F32 = torch.float32
_TABLE: dict[type[Any], GridOps] = {
    Int: GridOps(
        lambda grid: {"scale": _F32} if grid.symmetric else {"scale": _F32, "zero": torch.uint8},
        lambda x, grid: int_table(*dynamic_grid(x, grid)),
        lambda lo, hi, grid: int_table(*int_grid(lo, hi, grid)),
        lambda x, t, grid: to_codes(x, t["scale"], t.get("zero"), grid),
        lambda q, t, grid: from_codes(q, t["scale"], t.get("zero"), grid),
        lambda x, t, grid: fake_quantize(x, grid, t["scale"], t.get("zero")),
        int_fault,
    ),
    Float8: GridOps(
        lambda grid: {"scale": _F32},
        lambda x, grid: {"scale": dynamic_float8(x, grid)},
        lambda lo, hi, grid: {"scale": float8_scale(lo, hi)},
        lambda x, t, grid: float8_codes(x, t["scale"], grid),
        lambda q, t, grid: float8_values(q, t["scale"], grid),
        lambda x, t, grid: float8_quantize(x, t["scale"], grid),
        lambda t, grid: scale_fault(t),
    ),
    TwoRegion: GridOps(
        lambda grid: {"scale": _F32, "upper": _F32},
        dynamic_region_table,
        region_table,
        region_codes,
        region_values,
        region_quantize,
        region_fault,
    ),
    Log2: GridOps(
        lambda grid: {"scale": _F32},
        lambda x, grid: {"scale": dynamic_log2(x, grid)},
        lambda lo, hi, grid: {"scale": flush(hi.float().clamp(min=0.0))},
        lambda x, t, grid: log2_codes(x, t["scale"], grid),
        lambda q, t, grid: log2_values(q, t["scale"], grid),
        lambda x, t, grid: log2_values(log2_codes(x, t["scale"], grid), t["scale"], grid),
        lambda t, grid: scale_fault(t),
    ),
}


def _ops(grid: Grid) -> GridOps:
    return _TABLE[type(grid)]
