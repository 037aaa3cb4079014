"""Heat maps of what fewer bits of one part of the network do to the pictures, by range of the noise level.

Notes of a layer hold `sensitivity`: a variant such as `w4` (weights alone at 4 bits) or `a6` (inputs alone at 6) -> a loss
(`mse`, or that of the part's role) -> values from low to high noise. Each pair of variant and loss is a table: parts are
rows, columns go from noise to picture, and colours have equal steps for equal ratios.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from dither.report.blocks import block_of, block_title, layer_names
from dither.report.form import DASH, significant
from dither.report.load import Results, gaps, items, records, text

__all__ = ["Heat", "Line", "Sensitivity", "sensitivity"]

SHADES = 7
VARIANT = re.compile(r"^([wa])(\d{1,2})$")
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Line:
    """A part: its short name, all its layers, and (value, colour class) for each range from noise to picture."""

    name: str
    layers: str
    squares: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Heat:
    """One table: its title, what it says, heads, and lines by block."""

    key: str
    title: str
    about: str
    heads: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Line]]]


@dataclass(frozen=True)
class Sensitivity:
    """All tables."""

    tables: Sequence[Heat]


@dataclass(frozen=True)
class _Unit:
    """Layers of one block with the same losses, which are in the order of sampling."""

    rows: Sequence[Mapping[str, Any]]
    block: str
    losses: Mapping[tuple[str, str], Sequence[float | None]]


def sensitivity(result: Results) -> Sensitivity | None:
    """A table for each variant and kind of loss that was noted; None where none was."""
    units = _units(result)
    kinds = sorted({kind for unit in units for kind in unit.losses}, key=_rank)
    judges = {role: text({"w": words}, "w") for role, words in _judges(result)}
    tables = [_heat(str(i), kind, units, judges.get(kind[1])) for i, kind in enumerate(kinds)]
    return Sensitivity(tables) if tables else None


def _rank(kind: tuple[str, str]) -> tuple[bool, int, str, bool, str]:
    """Weights before activations, few bits before many, the error that all parts have before that of a role."""
    found = VARIANT.match(kind[0])
    return kind[0][:1] != "w", int(found[2]) if found else 0, kind[0], kind[1] != "mse", kind[1]


def _units(result: Results) -> list[_Unit]:
    rows = {text(row, "name"): row for row in records(result, "layers.rows")}
    order = {name: i for i, name in enumerate(rows)}
    found: dict[tuple[str, str], _Unit] = {}
    for name, facts in sorted(items(result, "notes"), key=lambda pair: order.get(pair[0], len(order))):
        losses = {}
        for variant, inner in items(facts, "sensitivity"):
            for loss, listed in items({"inner": inner}, "inner"):
                values = gaps({"listed": listed}, "listed")
                if any(value is not None for value in values):
                    losses[variant, loss] = values[::-1]
        if losses:
            row = rows.get(name, {"name": name})
            key = block_of(row), repr(losses)
            found[key] = _Unit((*(found[key].rows if key in found else ()), row), key[0], losses)
    return list(found.values())


def _judges(result: Results) -> list[tuple[str, Any]]:
    """What judged each role, in words, as any stage noted it."""
    return [pair for _, facts in items(result, "notes") for pair in items(facts, "judges")]


def _heat(key: str, kind: tuple[str, str], units: Sequence[_Unit], judge: str | None) -> Heat:
    several = len({unit.block.rpartition(".")[0] for unit in units if unit.block}) > 1
    own = [unit for unit in units if kind in unit.losses]
    columns = max(len(unit.losses[kind]) for unit in own)
    values = [value for unit in own for value in unit.losses[kind] if value is not None]
    power = _power(max(values))
    shades = _shades(values)
    groups = []
    for block, here in groupby(own, key=lambda unit: unit.block):
        beside = [row for unit in units if unit.block == block for row in unit.rows]
        lines = [
            Line(
                layer_names(unit.rows, beside),
                ", ".join(text(row, "name") or "" for row in unit.rows),
                [_square(value, power, shades) for value in _padded(unit.losses[kind], columns)],
            )
            for unit in here
        ]
        groups.append((block_title(block, block, several), lines))
    title = f"{kind[0]} {'MSE' if kind[1] == 'mse' else kind[1]}"
    return Heat(key, title, _about(kind, judge, power), _heads(columns), groups)


def _about(kind: tuple[str, str], judge: str | None, power: int) -> str:
    """`Weights at 4 bits; mean squared error of the pictures, in 10⁻³.`"""
    variant, loss = kind
    found = VARIANT.match(variant)
    what = f"{'Weights' if found[1] == 'w' else 'Activations'} at {found[2]} bits" if found else variant
    metric = {"mse": "mean squared error of the pictures"}.get(loss, f"{loss}, judged by {judge}" if judge else loss)
    return f"{what}; {metric}{f', in units of 10{str(power).translate(SUPERSCRIPT)}' if power else ''}."


def _power(most: float) -> int:
    """Power of ten, a multiple of three, that makes the largest value 1 to 999."""
    return max(3 * math.floor(math.log10(most) / 3), -99) if most > 0 else 0


def _shades(values: Sequence[float]) -> Mapping[float, int]:
    """Shade of each value: equal ratios are equal steps; what is not above zero has the palest."""
    positive = [value for value in values if value > 0]
    if not positive:
        return dict.fromkeys(values, 0)
    low, high = math.log(min(positive)), math.log(max(positive))
    step = (high - low) / (SHADES - 1) or 1.0
    return {value: round((math.log(value) - low) / step) if value > 0 else 0 for value in values}


def _square(value: float | None, power: int, shades: Mapping[float, int]) -> tuple[str, str]:
    """The value in units of the power with two digits, and its colour."""
    if value is None:
        return DASH, "none"
    shown = value / 10.0**power
    small = 0 < abs(shown) < 0.01
    return "<0.01" if small else significant(round(shown, 2), 2), f"h{shades[value]}"


def _padded(values: Sequence[float | None], columns: int) -> list[float | None]:
    return [*values, *[None] * (columns - len(values))]


def _heads(columns: int) -> list[str]:
    """Noise levels of equal ranges, from noise to picture."""
    edges = [1 - i / columns for i in range(columns + 1)]
    return [f"{high:.3g}–{abs(low):.3g}" for high, low in pairwise(edges)]
