"""How values look on the page: escaped text, bytes, decibels, intervals, and HTML tables."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["DASH", "Cell", "byte_size", "decimals", "escape", "interval", "percent", "table"]

DASH = "–"


def escape(value: str) -> str:
    """Escape text for HTML content and for quoted attributes."""
    return html.escape(value, quote=True)


def decimals(value: float | None, digits: int) -> str:
    """Format with fixed decimals, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Format a share as percent, or a dash."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def byte_size(count: float | None) -> str:
    """Format bytes with decimal units, as storage is sold, or a dash."""
    if count is None:
        return DASH
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"


def interval(bounds: Sequence[float], digits: int) -> str:
    """Format a 95% interval as `33.9 to 34.6`; empty text when there is none."""
    return f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}" if len(bounds) == 2 else ""


@dataclass(frozen=True)
class Cell:
    """A table cell: HTML that is already escaped, and the number or text that it sorts by."""

    html: str
    sort: float | str | None = None
    numeric: bool = False

    @staticmethod
    def of_text(value: str | None) -> "Cell":
        """Cell of plain text; a dash for None."""
        return Cell(escape(value) if value else DASH, value or "")

    @staticmethod
    def of_number(value: float | None, shown: str, note: str = "") -> "Cell":
        """Right-aligned cell that sorts by `value`, with an optional small note under it."""
        small = f"<small>{escape(note)}</small>" if note else ""
        return Cell(escape(shown) + small, value, numeric=True)

    def render(self, tag: str = "td") -> str:
        """Write the cell as HTML."""
        sort = "" if self.sort is None else f' data-sort="{escape(str(self.sort))}"'
        kind = ' class="num"' if self.numeric else ""
        scope = ' scope="row"' if tag == "th" else ""
        return f"<{tag}{scope}{kind}{sort}>{self.html}</{tag}>"


def table(
    heads: Sequence[tuple[str, bool]], rows: Sequence[tuple[str, Sequence[Cell]]], caption: str, *, sortable: bool
) -> str:
    """Write a table: `heads` are (title, is numeric), `rows` are (class, cells); the first cell heads its row."""
    kind = ' class="sortable"' if sortable else ""
    head = "".join(f'<th scope="col"{" class=num" if numeric else ""}>{escape(title)}</th>' for title, numeric in heads)
    body = "".join(
        f'<tr class="{escape(name)}">{cells[0].render("th")}{"".join(cell.render() for cell in cells[1:])}</tr>'
        for name, cells in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
