"""The columns of the table: what each shows of a result, and of full precision and its noise.

In each quality column the best value is marked only where it is told apart from every other; else all that it cannot be
told from are marked undecided. So is every change from full precision whose interval holds zero.
"""

from collections.abc import Callable
from dataclasses import dataclass

from dither.report.entries import Book, Entry
from dither.report.form import DASH, Cell, byte_size, decimals, interval, percent, signed, significant, undecided
from dither.report.load import Results, bounds, items, number, records, text
from dither.report.metrics import METRICS, Metric, estimate, metric_named
from dither.report.widths import weights_change

__all__ = ["Column", "columns_of", "guard_title"]

BLANK = Cell.of_number(None, DASH)
Draw = Callable[[Entry], Cell]
Reference = Callable[[Results], tuple[Cell, Cell, Cell]]


@dataclass(frozen=True)
class Column:
    """A column: its head, what that means, a cell of an entry, and those of the three reference rows."""

    head: str
    about: str
    cell: Draw
    reference: Reference


def columns_of(book: Book) -> list[Column]:
    """The columns that any result has a value for."""
    ranked = list(dict.fromkeys(key for entry in book.entries for key in entry.ranks))
    columns = [_rank_column(key) for key in ranked]
    columns += [
        Column("Size", "of the denoiser's files on the disk", _size_cell, _size_reference),
        Column("Bits / weight", "quantized linears as stored, all overhead counted", _bits("bits_per_weight"), _none),
        Column("Whole model", "bits per weight over all files", _bits("model_bits_per_weight"), _none),
    ]
    columns += [_metric_column(book, metric) for metric in METRICS]
    columns += [
        *_other_distances(book),
        Column("FD to real", "to real pictures; below: change from full precision", _real_cell, _real_reference),
        Column("Class accuracy", "of the feature network; below: change", _accuracy_cell, _accuracy_reference),
    ]
    guards = [
        (text(g, "metric"), text(g, "features")) for entry in book.entries for g in records(entry.result, "guards")
    ]
    columns += [_guard_column(metric, features) for metric, features in dict.fromkeys(guards) if metric]
    columns += [
        Column("Speed", "full precision time / quantized time, measured in turns", _speed_cell, _none),
        Column("Memory", "of the loaded weights", _memory_cell, _none),
        Column("Layers", "linears quantized", _layers_cell, _none),
        Column("Kernels", "what ran the layers", _kernel_cell, _none),
    ]
    return [column for column in columns if any(column.cell(entry).shown != DASH for entry in book.entries)]


def _none(result: Results) -> tuple[Cell, Cell, Cell]:
    return BLANK, BLANK, BLANK


def _rank_column(key: str) -> Column:
    metric = metric_named(key)

    def cell(entry: Entry) -> Cell:
        place = entry.ranks.get(key)
        if place is None:
            return BLANK
        shown = f"{place[0]}" if place[0] == place[1] else f"{place[0]}–{place[1]}"
        return Cell.of_number(place[0] + place[1] / 1000, shown)

    name = metric.title if metric else key
    return Column(f"Rank, {name}", "places that it may hold, given all intervals at once", cell, _none)


def _size_cell(entry: Entry) -> Cell:
    size, ratio = number(entry.result, "size.file_bytes"), number(entry.result, "size.ratio")
    return Cell.of_number(size, byte_size(size), "" if ratio is None else f"{ratio:.2f}× smaller")


def _size_reference(result: Results) -> tuple[Cell, Cell, Cell]:
    size = number(result, "size.full_precision_bytes")
    return Cell.of_number(size, byte_size(size)), BLANK, BLANK


def _bits(key: str) -> Draw:
    def cell(entry: Entry) -> Cell:
        value, running = number(entry.result, f"size.{key}"), number(entry.result, "size.running_bits_per_weight")
        changing = key == "bits_per_weight" and running is not None and weights_change(entry.result)
        return Cell.of_number(value, decimals(value, 2), f"{decimals(running, 2)} run" if changing else "")

    return cell


def _metric_column(book: Book, metric: Metric) -> Column:
    marks = _marks(book, metric)

    def cell(entry: Entry) -> Cell:
        found = estimate(entry.result, metric)
        if found is None:
            return BLANK
        said = (
            interval((found.low, found.high), metric.digits) if found.low is not None and found.high is not None else ""
        )
        return Cell.of_number(found.value, metric.show(found.value), said, marks.get(entry.index, ""))

    def reference(result: Results) -> tuple[Cell, Cell, Cell]:
        floor = number(result, metric.floor)
        other = next((value for path in metric.other if (value := number(result, path)) is not None), None)
        note = _identical(result) if metric.key == "psnr_db" else ""
        full = Cell.of_number(None, "reference") if metric.key == "psnr_db" else BLANK
        return full, Cell.of_number(floor, metric.show(floor), note), Cell.of_number(other, metric.show(other))

    head = (
        "FD to full precision"
        if metric.key == "fd"
        else ", ".join(part for part in (metric.title, metric.unit) if part)
    )
    way = "higher is closer" if metric.higher_is_better else "lower is closer"
    return Column(head, f"to full precision, same seeds; {way}; below: 95% interval", cell, reference)


def _marks(book: Book, metric: Metric) -> dict[int, str]:
    """Within each setting: `best` where one result beats all others, else `undecided` for all that may be best."""
    marks: dict[int, str] = {}
    for setting in range(book.settings):
        known = [(e, found) for e in book.entries if e.setting == setting and (found := estimate(e.result, metric))]
        if len(known) < 2:
            continue
        pick = max if metric.higher_is_better else min
        best = pick(known, key=lambda pair: pair[1].value)[0]
        level = [entry for entry, _ in known if entry is not best and not book.apart(metric, best.index, entry.index)]
        for entry in [best, *level]:
            marks[entry.index] = "undecided" if level else "best"
    return marks


def _identical(result: Results) -> str:
    same, n = number(result, "noise_floor.identical"), number(result, "noise_floor.n")
    return "" if same is None or n is None else f"{same:.0f} of {n:.0f} identical"


def _real_cell(entry: Entry) -> Cell:
    value = number(entry.result, "fd.to_real")
    difference, error = number(entry.result, "fd.difference_to_real"), number(entry.result, "fd.difference_se")
    found = bounds(entry.result, "fd.difference_ci95")
    if found is None and difference is not None and error is not None:
        found = (difference - 1.96 * abs(error), difference + 1.96 * abs(error))
    if found is None:
        return Cell.of_number(value, significant(value))
    said = f"{signed(found[0])} to {signed(found[1])}"
    return Cell.of_number(value, significant(value), said, "undecided" if undecided(found) else "")


def _real_reference(result: Results) -> tuple[Cell, Cell, Cell]:
    value = number(result, "fd.full_precision_to_real")
    return Cell.of_number(value, significant(value)), BLANK, BLANK


def _accuracy_cell(entry: Entry) -> Cell:
    value, difference = (number(entry.result, f"class_accuracy.{key}") for key in ("quantized", "difference"))
    found = bounds(entry.result, "class_accuracy.ci95")
    if difference is None or found is None:
        return Cell.of_number(value, percent(value))
    said = f"{decimals(100 * found[0], 1)} to {decimals(100 * found[1], 1)} points"
    return Cell.of_number(value, percent(value), said, "undecided" if undecided(found) else "")


def _accuracy_reference(result: Results) -> tuple[Cell, Cell, Cell]:
    value = number(result, "class_accuracy.full_precision")
    return Cell.of_number(value, percent(value)), BLANK, BLANK


def _other_distances(book: Book) -> list[Column]:
    """Distances to full precision in the features of further networks."""
    named = [
        (text(one, "features"), text(entry.result, "fd.features"))
        for entry in book.entries
        for one in records(entry.result, "fds")
    ]
    further = dict.fromkeys(features for features, first in named if features and features != first)
    return [_distance_column(features) for features in further]


def _distance_column(features: str) -> Column:
    def of(result: Results) -> Results:
        return next((one for one in records(result, "fds") if text(one, "features") == features), {})

    def cell(entry: Entry) -> Cell:
        value, said = number(of(entry.result), "to_full_precision"), bounds(of(entry.result), "ci95")
        return Cell.of_number(value, significant(value), interval(said, None))

    def reference(result: Results) -> tuple[Cell, Cell, Cell]:
        value = number(of(result), "noise_floor")
        return BLANK, BLANK, Cell.of_number(value, significant(value))

    return Column(f"FD, {features}", "to full precision in these features; below: 95% interval", cell, reference)


def _guard_column(metric: str, features: str | None) -> Column:
    def of(result: Results) -> Results:
        same = (g for g in records(result, "guards") if (text(g, "metric"), text(g, "features")) == (metric, features))
        return next(same, {})

    def cell(entry: Entry) -> Cell:
        guard = of(entry.result)
        value, found = number(guard, "quantized"), bounds(guard, "difference_ci95")
        mark = "undecided" if undecided(found) else ""
        said = f"{signed(found[0])} to {signed(found[1])}" if found else ""
        return Cell.of_number(value, significant(value, 4), said, mark)

    def reference(result: Results) -> tuple[Cell, Cell, Cell]:
        value = number(of(result), "full_precision")
        return Cell.of_number(value, significant(value, 4)), BLANK, BLANK

    about = f"{features or ''} features; below: 95% interval of the change from full precision".strip()
    return Column(guard_title(metric), about, cell, reference)


def guard_title(metric: str) -> str:
    """A guard's name as people write it."""
    known = {"fid": "FID", "sfid": "sFID", "fd": "FD", "kid": "KID", "cmmd": "CMMD", "clip_score": "CLIP score"}
    return known.get(metric, metric.replace("_", " ").capitalize())


def _speed_cell(entry: Entry) -> Cell:
    ratio, said = number(entry.result, "speed.ratio"), interval(bounds(entry.result, "speed.ci95"), 2)
    if ratio is None:
        simulated = (number(entry.result, "layers.simulated") or 0) > 0
        return Cell.of_number(None, "simulated" if simulated else DASH)
    found = bounds(entry.result, "speed.ci95")
    return Cell.of_number(ratio, f"{ratio:.2f}×", said, "undecided" if found and found[0] <= 1 <= found[1] else "")


def _memory_cell(entry: Entry) -> Cell:
    size, ratio = number(entry.result, "memory.weight_bytes"), number(entry.result, "memory.ratio")
    return Cell.of_number(size, byte_size(size), "" if ratio is None else f"{ratio:.2f}× less")


def _layers_cell(entry: Entry) -> Cell:
    quantized, total = number(entry.result, "layers.quantized"), number(entry.result, "layers.total")
    shown = DASH if quantized is None or total is None else f"{quantized:.0f} of {total:.0f}"
    return Cell.of_number(quantized, shown)


def _kernel_cell(entry: Entry) -> Cell:
    names = [name for name, _ in items(entry.result, "kernels")]
    return Cell.of_text(", ".join(names))
