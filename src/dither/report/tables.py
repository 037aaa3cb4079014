"""The table that sets results side by side, always with full precision and its noise beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from dither.report.columns import columns_of
from dither.report.entries import Book
from dither.report.form import Cell
from dither.report.load import number, text
from dither.report.metrics import METRICS

__all__ = ["Row", "Table", "comparison", "detectable_note"]


@dataclass(frozen=True)
class Row:
    """A row of cells; `series` is the marker that stands for it in charts, None for references."""

    kind: str
    cells: Sequence[Cell]
    series: int | None = None


@dataclass(frozen=True)
class Table:
    """Heads (title, explanation, is numeric), rows and notes, ready to draw."""

    caption: str
    heads: Sequence[tuple[str, str, bool]]
    rows: Sequence[Row]
    notes: Sequence[str]
    sortable: bool = True


def comparison(book: Book) -> Table:
    """One row a result, and for each distinct setting three rows of full precision: itself, its noise, other seeds."""
    columns = columns_of(book)
    rows: list[Row] = []
    for setting in range(book.settings):
        here = [entry for entry in book.entries if entry.setting == setting]
        drawn = [column.reference(here[0].result) for column in columns]
        names = ("full precision", "full precision, other batch size", "full precision, other seeds")
        for line, name in enumerate(names):
            rows.append(Row("reference", [Cell.of_text(name), *(cells[line] for cells in drawn)]))
        for entry in here:
            head = Cell.of_text(entry.name, text(entry.result, "model") or "")
            rows.append(Row("quantized", [head, *(column.cell(entry) for column in columns)], entry.index))
    heads = [("Result", "", False), *((column.head, column.about, True) for column in columns)]
    return Table("Size and quality", heads, rows, _notes(book))


def detectable_note(book: Book) -> str:
    """The smallest differences that this many pictures can show, as the files say them."""
    parts = []
    for metric in METRICS:
        known = [value for entry in book.entries if (value := number(entry.result, metric.detectable)) is not None]
        if known:
            low, high = metric.show(min(known)), metric.show(max(known))
            parts.append(f"{metric.title} {low}{'' if low == high else f' to {high}'} {metric.unit}".strip())
    return f"Minimum detectable difference, with 80 % power at 5 %: {', '.join(parts)}." if parts else ""


def _notes(book: Book) -> list[str]:
    features = sorted({name for entry in book.entries if (name := text(entry.result, "fd.features"))})
    of = f"{', '.join(features)} features" if features else "the model's own features"
    notes = [
        "Pictures are drawn in pairs from the same seeds. Other batch size is what arithmetic alone changes (60 dB: not a"
        " pixel); other seeds is how far apart unrelated pictures are. Small print under a value is its 95% interval.",
        f"FD is the Fréchet distance of {of}, comparable only at equal n; it is not FID.",
    ]
    if len(book.entries) > 1:
        notes.append(
            "Undecided: the difference lies within the interval, so neither result is called better. Ranks are ranges for"
            " the same reason."
        )
    notes.append(detectable_note(book))
    if book.settings > 1:
        notes.append("These results were measured on different models, seeds or steps: compare only rows of one kind.")
    return [note for note in notes if note]
