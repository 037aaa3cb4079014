"""How values look on the page: bytes, decibels, intervals, signed differences, each as plain text that Jinja escapes."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "DASH",
    "Cell",
    "byte_size",
    "decimals",
    "interval",
    "percent",
    "signed",
    "significant",
    "sized",
    "undecided",
]

DASH = "–"
MINUS = "−"


def decimals(value: float | None, digits: int) -> str:
    """Format with fixed decimals, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def significant(value: float | None, digits: int = 3) -> str:
    """Format with significant digits and no exponent where that stays short, or a dash."""
    if value is None:
        return DASH
    plain = f"{value:.{digits}g}"
    if "e" in plain and 1e-4 <= abs(value) < 1e7:
        plain = f"{value:.0f}"
    return plain.replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Format a difference with its sign, or a dash."""
    return DASH if value is None else f"{value:+.{digits}g}".replace("-", MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as percent, or a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f} %".replace("-", MINUS)


def byte_size(count: float | None) -> str:
    """Format bytes with decimal units, as storage is sold, or a dash."""
    if count is None:
        return DASH
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def sized(value: float | None, digits: int | None) -> str:
    """Format with `digits` decimals, or with three significant digits when `digits` is None."""
    return significant(value) if digits is None else decimals(value, digits)


def interval(bounds: Sequence[float] | None, digits: int | None) -> str:
    """Format a 95% interval as `33.9 to 34.6`; empty text when there is none."""
    return f"{sized(bounds[0], digits)} to {sized(bounds[1], digits)}" if bounds and len(bounds) == 2 else ""


def undecided(found: tuple[float, float] | None) -> bool:
    """Whether the interval of a difference holds zero."""
    return found is not None and found[0] <= 0 <= found[1]


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, a small note under it, the number or text it sorts by, CSS classes, and a mark.

    The mark is a word such as `best` or `undecided`, shown as a label that is also a CSS class.
    """

    shown: str
    note: str = ""
    sort: float | str | None = None
    kind: str = ""
    mark: str = ""

    @staticmethod
    def of_text(value: str | None, note: str = "") -> "Cell":
        """Cell of plain text; a dash for None."""
        return Cell(value or DASH, note, value)

    @staticmethod
    def of_number(value: float | None, shown: str, note: str = "", mark: str = "") -> "Cell":
        """Right-aligned cell that sorts by `value`."""
        return Cell(shown, note, value, "num", mark)
