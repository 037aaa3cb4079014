"""How many bits a layer runs at, by noise level: `layers.rows[*].by_time`, or the one width in the words of its formats."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dither.report.form import byte_size, percent
from dither.report.load import Results, number, numbers, records, text

__all__ = [
    "ACT",
    "SIDES",
    "WEIGHT",
    "Range",
    "bank_sentence",
    "edges_of",
    "format_said",
    "ranges_of",
    "weights_change",
    "weights_in",
    "widths_said",
]

WEIGHT, ACT = "weight", "act"
SIDES = (WEIGHT, ACT)
INTEGER = re.compile(r"^(?:int)?(\d{1,2})\b")
GRAIN = re.compile(r"^int\d+(\D.*)$")
MOST = 32


@dataclass(frozen=True)
class Range:
    """Widths between two noise levels; None for a side in full precision, or whose width is not known."""

    low: float
    high: float
    weight: float | None
    act: float | None

    def bits(self, side: str) -> float | None:
        """Width of one side."""
        return self.weight if side == WEIGHT else self.act


def ranges_of(row: Mapping[str, Any]) -> list[Range]:
    """Widths of a layer in the order of sampling, from high to low noise; one range where they never change."""
    found = []
    for part in records(row, "by_time"):
        low, high = number(part, "low"), number(part, "high")
        if low is not None and high is not None and 0 <= low < high <= 1:
            found.append(Range(low, high, _known(number(part, "weight_bits")), _known(number(part, "act_bits"))))
    found = found or [Range(0.0, 1.0, _named(text(row, WEIGHT)), _named(text(row, ACT)))]
    return sorted(found, key=lambda r: -r.high)


def _known(value: float | None) -> float | None:
    return value if value is not None and 0 < value <= MOST else None


def _named(words: str | None) -> float | None:
    """The width in a format's words, such as `int4 sym per row`; None where they name no integers."""
    found = INTEGER.match(words or "")
    return _known(float(found[1])) if found else None


def edges_of(ranges: Sequence[Sequence[Range]], side: str) -> list[float]:
    """Noise levels from 1 down to 0 between which no layer changes its width on this side."""
    edges = {0.0, 1.0}
    for own in ranges:
        for a, b in pairwise(own):
            if a.bits(side) != b.bits(side):
                edges.add(b.high)
    return sorted(edges, reverse=True)


def widths_said(row: Mapping[str, Any], side: str) -> str:
    """`4/8` for a side whose width changes over time, narrowest first; empty text where it does not."""
    known = sorted({bits for r in ranges_of(row) if (bits := r.bits(side)) is not None})
    return "/".join(f"{bits:.3g}" for bits in known) if len(known) > 1 else ""


def format_said(row: Mapping[str, Any], side: str) -> str | None:
    """The words of a side's format; `int4/8 sym per row` where its width changes over time, equal banks counted."""
    words, widths = text(row, side), widths_said(row, side)
    if words is None:
        return None
    parts = words.split(" | ")
    if not widths:
        return f"{parts[0]}, {len(parts)} banks" if len(parts) > 1 and len(set(parts)) == 1 else words
    grains = [found[1] for part in re.split(r" \| | of ", words) if (found := GRAIN.match(part))]
    return f"int{widths}{grains[0]}" if len(set(grains)) == 1 else f"{widths} bits: {words}"


def weights_in(row: Mapping[str, Any]) -> float:
    """How many weights a layer has."""
    count = 1.0
    for side in numbers(row, "shape"):
        count *= side
    return count


def weights_change(result: Results) -> bool:
    """Whether any layer's weights change their width over time."""
    return any(widths_said(row, WEIGHT) for row in records(result, "layers.rows"))


def bank_sentence(result: Results) -> str:
    """What second banks of weights cost, or empty text."""
    banks = sum(number(row, "bank_bytes") or 0.0 for row in records(result, "layers.rows"))
    size = number(result, "size.file_bytes")
    if banks <= 0:
        return ""
    share = f", {percent(banks / size)} of the file" if size and size >= banks else ""
    return f"Time ranges have weights of their own: banks beside the first cost {byte_size(banks)}{share}."
