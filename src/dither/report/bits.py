"""Bits by layer: one row a kind of layer, one column a block, so that what is spent where can be read off.

Rows are named where they begin, so no colour has to be decoded; layers left in full precision are hatched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dither.report.axes import Tick
from dither.report.blocks import block_of
from dither.report.form import decimals, significant
from dither.report.load import Results, number, numbers, records, text
from dither.report.widths import weights_in

__all__ = ["Bar", "Bits", "Row", "bits_charts"]

WIDTHS = (960.0, 380.0)
ROW, BAR = 46.0, 34.0


@dataclass(frozen=True)
class Bar:
    """A layer: its place and height, whether it stayed in full precision, and what is said on hover."""

    x: float
    y: float
    width: float
    height: float
    full: bool
    title: str


@dataclass(frozen=True)
class Row:
    """A kind of layer: its name, colour, baseline, bars and what they need on average."""

    kind: str
    series: int
    base: float
    bars: Sequence[Bar]
    average: str


@dataclass(frozen=True)
class Bits:
    """The chart, ready to draw."""

    width: float
    height: float
    left: float
    right: float
    rows: Sequence[Row]
    blocks: Sequence[Tick]
    edges: Sequence[float]
    label: str
    top: str


def bits_charts(result: Results) -> list[Bits]:
    """The chart for screens and the one for phones; none where no layer says its bits."""
    rows = records(result, "layers.rows")
    known = [bits for row in rows if (bits := number(row, "bits_per_weight")) is not None and _quantized(row)]
    return [_chart(rows, max(known), width) for width in WIDTHS] if known and max(known) > 0 else []


def _quantized(row: Mapping[str, Any]) -> bool:
    return text(row, "weight") is not None


def _chart(rows: Sequence[Mapping[str, Any]], most: float, width: float) -> Bits:
    left, right = (104.0 if width > 600 else 66.0), width - (58.0 if width > 600 else 44.0)
    blocks = list(dict.fromkeys(name for row in rows if (name := block_of(row))))
    columns = [*blocks, *([""] if any(not block_of(row) for row in rows) else [])]
    step = (right - left) / len(columns)
    kinds = list(dict.fromkeys(text(row, "kind") or "other" for row in rows))
    drawn = []
    for line, kind in enumerate(kinds):
        of_kind = [row for row in rows if (text(row, "kind") or "other") == kind]
        base = 14 + ROW * line + BAR
        bars = []
        for column, block in enumerate(columns):
            here = [row for row in of_kind if block_of(row) == block]
            bars += _bars(here, left + step * column, step, base, most)
        drawn.append(Row(kind, line, base, bars, _average(of_kind)))
    stride = max(1, -(-len(blocks) // (24 if width > 600 else 10)))
    ticks = [Tick(left + step * (i + 0.5), _short(blocks[i])) for i in range(0, len(blocks), stride)]
    if len(columns) > len(blocks) and blocks:
        ticks.append(Tick(left + step * (len(blocks) + 0.5), "other"))
    edges = [left + step * i for i in range(len(columns) + 1)] if step > 7 else []
    said = f"Bits per weight of {len(rows)} layers in {len(blocks)} blocks, at most {decimals(most, 2)} when quantized"
    height = 14 + ROW * len(kinds) + 22
    return Bits(width, height, left, right, drawn, ticks, edges, said, significant(most))


def _bars(here: Sequence[Mapping[str, Any]], start: float, step: float, base: float, most: float) -> list[Bar]:
    gap = min(3.0, step * 0.12)
    wide = (step - 2 * gap) / max(len(here), 1)
    bars = []
    for i, row in enumerate(here):
        bits, full = number(row, "bits_per_weight"), not _quantized(row)
        height = BAR if full else BAR * min((bits or 0.0) / most, 1.0)
        said = f"{decimals(bits, 2)} bits per weight" if not full else "full precision"
        shape = " × ".join(f"{side:.0f}" for side in numbers(row, "shape"))
        title = "\n".join(part for part in (text(row, "name") or "", said, text(row, "weight") or "", shape) if part)
        bar = Bar(start + gap + wide * i, base - height, max(wide - 0.8, 0.6), max(height, 1.0), full, title)
        bars.append(bar)
    return bars


def _average(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean bits of the quantized layers of a kind, each weighted by its number of weights."""
    total = weights = 0.0
    for row in rows:
        bits, count = number(row, "bits_per_weight"), weights_in(row)
        if bits is not None and numbers(row, "shape") and _quantized(row):
            total, weights = total + bits * count, weights + count
    return decimals(total / weights, 2) if weights else "full"


def _short(block: str) -> str:
    return block.rsplit(".", 1)[-1]
