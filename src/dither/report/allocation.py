"""The allocation of mixed precision: layers as rows, time ranges as columns from noise to picture, widths in the cells.

Layers of a block that always run alike share a row, and so do neighbouring blocks that are alike throughout. A side
(weights or activations) that is the same everywhere is said in a sentence, and where both are there is no map at all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dither.report.blocks import block_of, block_title, layer_names
from dither.report.form import decimals
from dither.report.load import Results, number, records, text
from dither.report.verdict import Part
from dither.report.widths import ACT, SIDES, WEIGHT, Range, bank_sentence, edges_of, ranges_of, weights_in

__all__ = ["Allocation", "Group", "Line", "Side", "Square", "allocation"]

TITLES = {WEIGHT: "Weight bits", ACT: "Activation bits"}
COLOURED = range(2, 9)
"""Widths with a colour of their own in the style sheet; others take the nearest."""


@dataclass(frozen=True)
class Square:
    """A cell: what it shows, its colour class, and whether it is the first of its side."""

    shown: str
    kind: str
    first: bool


@dataclass(frozen=True)
class Line:
    """Layers of a block that run alike: a short name, all their names, and their cells on both sides."""

    name: str
    layers: str
    squares: Sequence[Square]


@dataclass(frozen=True)
class Group:
    """A block, or neighbouring blocks that are alike."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Side:
    """Weights or activations: heads of the columns (short, and in words), and the mean width of each column."""

    title: str
    heads: Sequence[tuple[str, str]]
    means: Sequence[str]


@dataclass(frozen=True)
class Allocation:
    """The map, ready to draw, with the sentences beside it."""

    sides: Sequence[Side]
    groups: Sequence[Group]
    legend: Sequence[Square]
    summary: Sequence[Part]
    notes: Sequence[str]


@dataclass(frozen=True)
class _Layer:
    """A layer's row with its widths and its block."""

    row: Mapping[str, Any]
    ranges: Sequence[Range]
    block: str


def allocation(result: Results) -> Allocation | None:
    """The map, or None where widths change neither over time nor between layers of one kind."""
    rows = [row for row in records(result, "layers.rows") if text(row, WEIGHT) or text(row, ACT)]
    layers = [_Layer(row, ranges_of(row), block_of(row)) for row in rows]
    sides = [side for side in SIDES if _varies(layers, side)]
    if not sides:
        return None
    edges = _edges(layers, sides)
    groups = _joined(layers, [(layer, _squares(layer, edges)) for layer in layers])
    drawn = [_side(layers, side, edges[side]) for side in sides]
    known = sorted({bits for layer in layers for r in layer.ranges for s in sides if (bits := r.bits(s)) is not None})
    return Allocation(
        drawn, groups, [_square(bits, False) for bits in known], _summary(result, sides), _notes(result, layers, sides)
    )


def _varies(layers: Sequence[_Layer], side: str) -> bool:
    """Whether a side's width changes over time, or differs between layers of one kind."""
    seen: dict[str | None, set[float | None]] = {}
    for layer in layers:
        seen.setdefault(text(layer.row, "kind"), set()).update(r.bits(side) for r in layer.ranges)
    return any(len(widths) > 1 for widths in seen.values())


def _edges(layers: Sequence[_Layer], sides: Sequence[str]) -> dict[str, list[float]]:
    """Columns of each side, from 1 down to 0: the same for both sides, or one column for a side that never changes."""
    own = {side: edges_of([layer.ranges for layer in layers], side) for side in sides}
    shared = sorted({edge for edges in own.values() for edge in edges}, reverse=True)
    return {side: shared if len(edges) > 2 else edges for side, edges in own.items()}


def _at(layer: _Layer, side: str, low: float, high: float) -> float | None:
    """Width of a layer halfway between two noise levels."""
    middle = (low + high) / 2
    return next((r.bits(side) for r in layer.ranges if r.low <= middle < r.high), None)


def _squares(layer: _Layer, edges: Mapping[str, Sequence[float]]) -> tuple[Square, ...]:
    squares = []
    for side, own in edges.items():
        for i, (high, low) in enumerate(pairwise(own)):
            squares.append(_square(_at(layer, side, low, high), i == 0))
    return tuple(squares)


def _square(bits: float | None, first: bool) -> Square:
    if bits is None:
        return Square("–", "none", first)
    return Square(f"{bits:.3g}", f"w{min(max(math.ceil(bits), COLOURED[0]), COLOURED[-1])}", first)


def _joined(layers: Sequence[_Layer], drawn: Sequence[tuple[_Layer, tuple[Square, ...]]]) -> list[Group]:
    """Layers that run alike in one line, and neighbouring blocks whose lines are the same in one group."""
    blocks: dict[str, list[tuple[_Layer, tuple[Square, ...]]]] = {}
    for layer, squares in drawn:
        blocks.setdefault(layer.block, []).append((layer, squares))
    several = len({block.rpartition(".")[0] for block in blocks if block}) > 1
    found: list[tuple[list[str], list[Line]]] = []
    for block, own in blocks.items():
        lines = _lines(own)
        if found and block and found[-1][0][-1] and _alike(found[-1][1], lines) and _follows(found[-1][0][-1], block):
            found[-1][0].append(block)
        else:
            found.append(([block], lines))
    return [Group(block_title(names[0], names[-1], several), lines) for names, lines in found]


def _lines(own: Sequence[tuple[_Layer, tuple[Square, ...]]]) -> list[Line]:
    alike: dict[tuple[Square, ...], list[Mapping[str, Any]]] = {}
    for layer, squares in own:
        alike.setdefault(squares, []).append(layer.row)
    beside = [layer.row for layer, _ in own]
    return [
        Line(layer_names(rows, beside), ", ".join(text(row, "name") or "" for row in rows), squares)
        for squares, rows in alike.items()
    ]


def _alike(a: Sequence[Line], b: Sequence[Line]) -> bool:
    return [(line.name, line.squares) for line in a] == [(line.name, line.squares) for line in b]


def _follows(before: str, block: str) -> bool:
    """Whether two blocks stand in the same list."""
    return before.rpartition(".")[0] == block.rpartition(".")[0]


def _side(layers: Sequence[_Layer], side: str, edges: Sequence[float]) -> Side:
    heads, means = [], []
    for high, low in pairwise(edges):
        whole = (high, low) == (1.0, 0.0)
        words = "at all noise levels" if whole else f"noise level {high:.3g} to {low:.3g}"
        heads.append(("always" if whole else f"{high:.3g}–{low:.3g}", words))
        means.append(_mean([(weights_in(layer.row), _at(layer, side, low, high)) for layer in layers]))
    return Side(TITLES[side], heads, means)


def _mean(widths: Sequence[tuple[float, float | None]]) -> str:
    known = [(count, bits) for count, bits in widths if bits is not None]
    total = sum(count for count, _ in known)
    return decimals(sum(count * bits for count, bits in known) / total, 1) if total > 0 else "–"


def _summary(result: Results, sides: Sequence[str]) -> list[Part]:
    """`4.8 bits run on average, 8.1 are stored`, and the same of activations."""
    running, stored = number(result, "size.running_bits_per_weight"), number(result, "size.bits_per_weight")
    act = number(result, "size.running_bits_per_activation")
    parts: list[Part] = []
    if running is not None:
        parts += [Part("Weights run at "), Part(f"{decimals(running, 2)} bits", strong=True), Part(" on average")]
        if stored is not None:
            parts += [Part("; "), Part(f"{decimals(stored, 2)} bits", strong=True)]
            parts.append(Part(" a weight are stored, with scales and all else"))
        parts.append(Part(". "))
    if act is not None and ACT in sides:
        parts += [Part("Activations run at "), Part(f"{decimals(act, 2)} bits", strong=True), Part(" on average.")]
    return parts


def _notes(result: Results, layers: Sequence[_Layer], sides: Sequence[str]) -> list[str]:
    """What time ranges cost, which side is the same everywhere, and what the map leaves out."""
    notes = []
    moving = any(len({r.weight for r in layer.ranges}) > 1 for layer in layers)
    if banks := bank_sentence(result):
        notes.append(banks)
    elif moving:
        notes.append(
            "Time ranges cost no bytes: a layer's codes are stored once, at its widest, and fewer bits are the high bits of"
            " the same codes."
        )
    for side in SIDES:
        widths = sorted({bits for layer in layers for r in layer.ranges if (bits := r.bits(side)) is not None})
        if side not in sides and widths:
            name = "Weights" if side == WEIGHT else "Activations"
            notes.append(f"{name} have {' or '.join(f'{bits:.3g}' for bits in widths)} bits at all times.")
    notes.append(
        "Columns are ranges of the noise level in the order of sampling: 1 is pure noise. Means are over weights."
        " Layers in full precision are left out."
    )
    return notes
