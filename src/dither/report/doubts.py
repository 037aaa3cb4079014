"""What the pictures can and cannot decide: differences pair by pair, and the guards against the data."""

from collections.abc import Sequence
from dataclasses import dataclass

from dither.report.columns import guard_title
from dither.report.entries import Book
from dither.report.form import DASH, Cell, interval, signed, significant, undecided
from dither.report.load import Results, bounds, number, records, text
from dither.report.metrics import METRICS, Metric
from dither.report.tables import Row, Table

__all__ = ["Matrix", "Square", "guards", "matrices"]

LARGEST = 12
"""More results than this make a grid that nobody reads; their table has the ranks."""


@dataclass(frozen=True)
class Square:
    """Row minus column: the difference, its interval, and `better`, `worse`, `undecided` or nothing on the diagonal."""

    shown: str
    note: str
    kind: str
    series: int


@dataclass(frozen=True)
class Matrix:
    """Differences of all pairs in one metric."""

    metric: Metric
    names: Sequence[tuple[int, str]]
    rows: Sequence[tuple[int, str, Sequence[Square]]]


def matrices(book: Book) -> list[Matrix]:
    """One grid for every metric that a comparison measured pairs of."""
    measured = {key for key, _, _ in book.pairs}
    return [_matrix(book, metric) for metric in METRICS if metric.key in measured]


def _matrix(book: Book, metric: Metric) -> Matrix:
    inside = {index for key, a, b in book.pairs if key == metric.key for index in (a, b)}
    shown = [entry for entry in book.entries if entry.index in inside][:LARGEST]
    names = [(entry.index, entry.name) for entry in shown]
    rows = []
    for entry in shown:
        squares = [_square(book, metric, entry.index, other.index) for other in shown]
        rows.append((entry.index, entry.name, squares))
    return Matrix(metric, names, rows)


def _square(book: Book, metric: Metric, a: int, b: int) -> Square:
    pair = book.pair(metric, a, b) if a != b else None
    if pair is None or pair.difference is None:
        return Square(DASH if a != b else "", "", "none", b)
    decided = "better" if metric.better(pair.difference, 0.0) else "worse"
    kind = decided if pair.distinguishable else "undecided"
    digits = None if metric.digits is None else max(metric.digits - 1, 1)
    return Square(signed(pair.difference), interval(pair.interval, digits), kind, b)


def guards(result: Results) -> Table | None:
    """The guards of one result: both models against the data, their difference, and what would have been seen."""
    rows = [_guard(guard) for guard in records(result, "guards") if text(guard, "metric")]
    if not rows:
        return None
    heads = [
        ("Guard", "and whose features", False), ("Quantized", "", True), ("Full precision", "", True),
        ("Difference", "and its 95% interval", True), ("Detectable", "the smallest difference to be seen", True),
        ("Pictures", "", True), ("Reading", "", False),
    ]  # fmt: skip
    note = (
        "Both models against the data. A guard that is undecided has not shown that nothing changed: a change smaller than"
        " the detectable difference would not be seen."
    )
    return Table("Guards of quality", heads, rows, [note])


def _guard(guard: Results) -> Row:
    quantized, full, difference = (number(guard, key) for key in ("quantized", "full_precision", "difference"))
    found, least, n = bounds(guard, "difference_ci95"), number(guard, "detectable"), number(guard, "n")
    reading, mark = _reading(guard, difference, found)
    said = f"{signed(found[0])} to {signed(found[1])}" if found else ""
    way = {"lower": "lower is better", "higher": "higher is better", "closer": "closer is better"}
    about = " · ".join(part for part in (text(guard, "features"), way.get(text(guard, "better") or "")) if part)
    cells = [
        Cell.of_text(guard_title(text(guard, "metric") or DASH), about),
        Cell.of_number(quantized, significant(quantized, 4)),
        Cell.of_number(full, significant(full, 4)),
        Cell.of_number(difference, signed(difference), said),
        Cell.of_number(least, significant(least, 2)),
        Cell.of_number(n, DASH if n is None else f"{n:.0f}"),
        Cell(reading, sort=reading or mark, kind="wrap", mark=mark),
    ]
    return Row("guard", cells)


def _reading(guard: Results, difference: float | None, found: tuple[float, float] | None) -> tuple[str, str]:
    """What the difference says: text, and a mark where it is undecided."""
    if difference is None:
        return text(guard, "reason") or "not measured", ""
    if found is None:
        return text(guard, "reason") or "no interval was measured", "undecided"
    if undecided(found):
        return "", "undecided"
    way = text(guard, "better")
    if way == "closer" or way not in ("lower", "higher"):
        return "changed", ""
    return ("better" if (difference < 0) == (way == "lower") else "worse"), ""
