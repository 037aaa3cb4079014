"""Size against quality: a point a result with its interval, the noise floor above, unrelated pictures below.

A line joins the results that nothing smaller is known to match: from the smallest on, each next one whose quality is
better and told apart from the last joined. Up is always better; sizes are in equal ratios, for bits are bought so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from dither.report.axes import Box, Scale, Tick, clipped, place, round_ticks, text_width, tick_label
from dither.report.entries import Book, Entry
from dither.report.form import byte_size, decimals, interval
from dither.report.load import number
from dither.report.metrics import METRICS, Metric, estimate

__all__ = ["Label", "Mark", "Pareto", "Rule", "front", "pareto_charts"]

WIDTHS = (960.0, 380.0)
SAME_SIZE = 1.005
APART = 12.0


@dataclass(frozen=True)
class Label:
    """A name beside a mark, with a thin leader line where it had to move away."""

    x: float
    y: float
    name: str
    leader: tuple[float, float, float, float] | None


@dataclass(frozen=True)
class Mark:
    """A result: its place, the ends of its interval in pixels, its series number, and what is said on hover."""

    x: float
    y: float
    top: float | None
    bottom: float | None
    series: int
    joined: bool
    title: str
    label: Label | None


@dataclass(frozen=True)
class Rule:
    """A horizontal reference line and what it says."""

    y: float
    text_y: float
    name: str
    kind: str


@dataclass(frozen=True)
class Pareto:
    """One chart, ready to draw."""

    metric: Metric
    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    sizes: Sequence[Tick]
    bits: Sequence[Tick]
    values: Sequence[Tick]
    marks: Sequence[Mark]
    rules: Sequence[Rule]
    line: str
    unnamed: bool
    label: str


Point: TypeAlias = tuple[Entry, float, float, float | None, float | None]
"""An entry, its x and y in pixels, and the ends of its interval."""


def front(book: Book, metric: Metric) -> list[list[int]]:
    """The joined results from the smallest on, each better than, and told apart from, the one before.

    A joined result comes with those as large as itself that it is not told apart from: none of them is preferred.
    """
    sized = []
    for entry in book.entries:
        size, found = number(entry.result, "size.file_bytes"), estimate(entry.result, metric)
        if size is not None and found is not None and entry.setting == book.entries[0].setting:
            sized.append((size, -found.value if metric.higher_is_better else found.value, entry.index))
    joined: list[list[int]] = []
    reached = 0.0
    for size, _, index in sorted(sized):
        if not joined or book.beats(metric, index, joined[-1][0]):
            joined.append([index])
            reached = size
        elif size <= SAME_SIZE * reached and not book.apart(metric, index, joined[-1][0]):
            joined[-1].append(index)
    return joined


def pareto_charts(book: Book) -> list[tuple[Metric, list[Pareto]]]:
    """For every metric that a result has: the chart for screens and the one for phones."""
    charts = []
    for metric in METRICS:
        drawn = [
            entry
            for entry in book.entries
            if estimate(entry.result, metric) and (number(entry.result, "size.file_bytes") or 0) > 0
        ]
        if drawn:
            charts.append((metric, [_chart(book, metric, drawn, width) for width in WIDTHS]))
    return charts


def _chart(book: Book, metric: Metric, drawn: Sequence[Entry], width: float) -> Pareto:
    left, right, top, bottom = 58.0, width - 18, 66.0, (440.0 if width > 600 else 400.0)
    references = _references(drawn[0], metric)
    x = _size_scale(drawn, left, right)
    y = _value_scale(drawn, metric, [value for _, value, _ in references], bottom, top)
    rules = [
        Rule(y(value), y(value) + (-6 if y(value) > top + 14 else 15), f"{name}: {metric.with_unit(value)}", kind)
        for name, value, kind in references
    ]
    joined = front(book, metric)
    on_front = {index for group in joined for index in group}
    points = _side_by_side([_point(entry, metric, x, y) for entry in drawn])
    taken = [Box(px - 8, py - 8, px + 8, py + 8) for _, px, py, _, _ in points]
    taken += [Box(px - 3, hi, px + 3, lo) for _, px, _, hi, lo in points if hi is not None and lo is not None]
    taken += [Box(right - text_width(rule.name), rule.text_y - 13, right, rule.text_y + 4) for rule in rules]
    taken += [Box(left, rule.y - 1, right, rule.y + 1) for rule in rules]
    marks = []
    for entry, px, py, high, low in points:
        box = place(px, py, clipped(entry.name, 26), taken, Box(left, top - 14, right, bottom))
        if box is not None:
            taken.append(box)
        label = _label(clipped(entry.name, 26), box, px, py)
        marks.append(Mark(px, py, high, low, entry.index, entry.index in on_front, _title(entry, metric), label))
    where = {entry.index: (px, py) for entry, px, py, _, _ in points}
    line = " ".join(f"{where[group[0]][0]:.1f},{where[group[0]][1]:.1f}" for group in joined if group[0] in where)
    said = f"{metric.title} against size on disk for {len(drawn)} results; up is better, left is smaller"
    count = 8 if width > 600 else 4
    return Pareto(
        metric, width, bottom + 50, left, right, top, bottom, _size_ticks(x, count), _bit_ticks(drawn, x, count),
        y.ticks(7), marks, rules, line if len(joined) > 1 else "", any(mark.label is None for mark in marks), said,
    )  # fmt: skip


def _side_by_side(points: Sequence[Point]) -> list[Point]:
    """Move marks that would hide each other apart, some pixels to the left and right of where they belong."""
    groups: list[list[int]] = []
    for i, (_, x, y, _, _) in enumerate(points):
        near = (
            g for g in groups if all(abs(x - points[j][1]) < APART and abs(y - points[j][2]) < 3 * APART for j in g)
        )
        found = next(near, None)
        if found is None:
            groups.append([i])
        else:
            found.append(i)
    moved = list(points)
    for group in groups:
        for nth, i in enumerate(sorted(group)):
            entry, x, y, top, bottom = points[i]
            moved[i] = (entry, x + APART * (nth - (len(group) - 1) / 2), y, top, bottom)
    return moved


def _point(entry: Entry, metric: Metric, x: Scale, y: Scale) -> Point:
    found = estimate(entry.result, metric)
    assert found is not None  # only results with an estimate are drawn
    ends = None if found.low is None or found.high is None else sorted((y(found.low), y(found.high)))
    size = x(number(entry.result, "size.file_bytes") or 0.0)
    return entry, size, y(found.value), ends[0] if ends else None, ends[1] if ends else None


def _references(entry: Entry, metric: Metric) -> list[tuple[str, float, str]]:
    floor = number(entry.result, metric.floor)
    other = next((value for path in metric.other if (value := number(entry.result, path)) is not None), None)
    listed = [("noise floor", floor, "floor"), ("other seeds", other, "other")]
    return [(name, value, kind) for name, value, kind in listed if value is not None]


def _size_scale(drawn: Sequence[Entry], left: float, right: float) -> Scale:
    sizes = [number(entry.result, "size.file_bytes") or 1.0 for entry in drawn]
    low, high = min(sizes), max(sizes)
    room = max(high / low, 1.2) ** 0.1
    return Scale(low / room, high * room, left + 10, right - 10, log=True)


def _value_scale(drawn: Sequence[Entry], metric: Metric, marks: Sequence[float], low: float, high: float) -> Scale:
    """From the worst to the best value with their intervals and the references; distances in equal ratios."""
    values = list(marks)
    for entry in drawn:
        found = estimate(entry.result, metric)
        if found is not None:
            values += [value for value in (found.value, found.low, found.high) if value is not None]
    if metric.higher_is_better:
        room = max(0.06 * (max(values) - min(values)), 1e-6 * max(abs(max(values)), 1e-6))
        return Scale(min(values) - room, max(values) + room, low, high)
    positive = [value for value in values if value > 0] or [1.0]
    best, worst = min(positive), max(positive)
    if worst / best < 20:
        room = max(0.08 * (worst - best), 1e-6 * worst)
        return Scale(min([*values, best]) - room, worst + room, high, low)
    return Scale(max(best, worst / 1e4) / 1.3, worst * 1.3, high, low, log=True)


def _size_ticks(x: Scale, count: int) -> list[Tick]:
    unit = next((size for size in (1e9, 1e6, 1e3) if x.high >= 2 * size), 1.0)
    name = {1e9: "GB", 1e6: "MB", 1e3: "kB", 1.0: "B"}[unit]
    return [
        Tick(x(value * unit), f"{tick_label(value)} {name}")
        for value in round_ticks(x.low / unit, x.high / unit, count)
    ]


def _bit_ticks(drawn: Sequence[Entry], x: Scale, count: int) -> list[Tick]:
    """Bits per weight of the whole model on the upper edge: the same axis, when all results share one model."""
    weights = set()
    for entry in drawn:
        bits, size = number(entry.result, "size.model_bits_per_weight"), number(entry.result, "size.file_bytes")
        weights.add(None if not bits or not size else round(8 * size / bits))
    only = weights.pop() if weights else None
    if only is None or any(other is None or abs(other / only - 1) > 1e-3 for other in weights):
        return []
    values = round_ticks(8 * x.low / only, 8 * x.high / only, count)
    return [Tick(x(value * only / 8), tick_label(value)) for value in values]


def _label(name: str, box: Box | None, x: float, y: float) -> Label | None:
    if box is None:
        return None
    near_x, near_y = min(max(x, box.left), box.right), min(max(y, box.top + 3), box.bottom - 3)
    far = abs(near_x - x) + abs(near_y - y) > 18
    return Label((box.left + box.right) / 2, box.bottom - 4, name, (x, y, near_x, near_y) if far else None)


def _title(entry: Entry, metric: Metric) -> str:
    found = estimate(entry.result, metric)
    size, bits = number(entry.result, "size.file_bytes"), number(entry.result, "size.bits_per_weight")
    said = interval((found.low, found.high), metric.digits) if found and found.low is not None and found.high else ""
    value = metric.with_unit(found.value if found else None) + (f" ({said})" if said else "")
    whole = number(entry.result, "size.model_bits_per_weight")
    lines = [entry.name, f"{metric.title} {value}", byte_size(size)]
    if bits is not None:
        lines.append(f"{decimals(bits, 2)} bits per quantized weight, {decimals(whole, 2)} over the whole model")
    return "\n".join(lines)
