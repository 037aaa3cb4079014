"""The table that sets results side by side, always with full precision and its noise beside them."""

from collections.abc import Sequence

from dither.report.form import DASH, Cell, byte_size, decimals, escape, interval, percent, table
from dither.report.load import Results, lookup, number, numbers, text

__all__ = ["comparison", "result_name"]

HEADS = (
    ("Result", False),
    ("Size", True),
    ("Bits / weight", True),
    ("PSNR, dB", True),
    ("SSIM", True),
    ("FD to full precision", True),
    ("FD to real", True),
    ("Class accuracy", True),
    ("Layers", True),
)


def result_name(results: Results) -> str:
    """Short name of a result: recipe and bits."""
    parts = [text(results, "recipe.name"), text(results, "bits")]
    return " ".join(part for part in parts if part) or "quantized"


def comparison(results: Sequence[Results]) -> str:
    """One row a result, and for each distinct setting three rows of full precision: itself, its noise, other seeds."""
    rows = []
    settings: list[object] = []
    for result in results:
        setting = [lookup(result, key) for key in ("model", "n", "seed", "steps", "guidance")]
        if setting not in settings:
            settings.append(setting)
            rows += _references(result)
        rows.append(("quantized", _row(result)))
    notes = [
        "Pictures are drawn in pairs from the same seeds. <em>Other batch size</em> is what arithmetic alone changes"
        " (60 dB: not a pixel); <em>other seeds</em> is how far apart unrelated pictures are.",
        f"FD is the Frechet distance of {_feature_names(results)}, comparable only at equal n; ± is one standard error."
        " Under <em>FD to real</em> stands the change from full precision, freed of the bias of small n.",
    ]
    if len(settings) > 1:
        notes.append("These results were measured on different models, seeds or steps: compare only rows of one kind.")
    body = table(HEADS, rows, "Size and quality", sortable=True)
    return body + "".join(f'<p class="note">{note}</p>' for note in notes)


def _feature_names(results: Sequence[Results]) -> str:
    names = sorted({name for result in results if (name := text(result, "fd.features"))})
    return escape(", ".join(names)) + " features" if names else "the model's own features"


def _row(result: Results) -> list[Cell]:
    model = text(result, "model")
    psnr, ssim, fd = number(result, "psnr_db.mean"), number(result, "ssim.mean"), number(result, "fd.to_full_precision")
    error = number(result, "fd.to_full_precision_se")
    to_real, accuracy = number(result, "fd.to_real"), number(result, "class_accuracy.quantized")
    bits, size = number(result, "size.bits_per_weight"), number(result, "size.file_bytes")
    quantized, total = number(result, "layers.quantized"), number(result, "layers.total")
    layers = DASH if quantized is None or total is None else f"{quantized:.0f} of {total:.0f}"
    name = Cell.of_text(result_name(result))
    small = Cell.of_text(model).html if model else ""
    return [
        Cell(f"{name.html}<small>{small}</small>", name.sort),
        Cell.of_number(size, byte_size(size), _ratio(result)),
        Cell.of_number(bits, decimals(bits, 2)),
        Cell.of_number(psnr, decimals(psnr, 2), interval(numbers(result, "psnr_db.ci95"), 2)),
        Cell.of_number(ssim, decimals(ssim, 4), interval(numbers(result, "ssim.ci95"), 4)),
        Cell.of_number(fd, _significant(fd), "" if error is None else f"± {error:.2g}"),
        Cell.of_number(to_real, _significant(to_real), _difference(result)),
        Cell.of_number(accuracy, percent(accuracy)),
        Cell.of_number(quantized, layers),
    ]


def _references(result: Results) -> list[tuple[str, list[Cell]]]:
    size, to_real = number(result, "size.full_precision_bytes"), number(result, "fd.full_precision_to_real")
    accuracy, other_fd = number(result, "class_accuracy.full_precision"), number(result, "fd.noise_floor")
    floor, other = number(result, "noise_floor.psnr_db"), number(result, "noise_floor.other_seeds_psnr_db")
    blank = Cell.of_number(None, DASH)
    full = [
        Cell.of_text("full precision"),
        Cell.of_number(size, byte_size(size)),
        blank,
        Cell.of_number(None, "reference"),
        blank,
        blank,
        Cell.of_number(to_real, _significant(to_real)),
        Cell.of_number(accuracy, percent(accuracy)),
        blank,
    ]

    def noise(name: str, psnr: float | None, fd: float | None, note: str = "") -> list[Cell]:
        shown = [Cell.of_number(psnr, decimals(psnr, 2), note), blank, Cell.of_number(fd, _significant(fd))]
        return [Cell.of_text(name), blank, blank, *shown, blank, blank, blank]

    return [
        ("reference", full),
        ("reference", noise("full precision, other batch size", floor, None, _identical(result))),
        ("reference", noise("full precision, other seeds", other, other_fd)),
    ]


def _identical(result: Results) -> str:
    same, n = number(result, "noise_floor.identical"), number(result, "noise_floor.n")
    return "" if same is None or n is None else f"{same:.0f} of {n:.0f} identical"


def _ratio(result: Results) -> str:
    ratio = number(result, "size.ratio")
    return "" if ratio is None else f"{ratio:.2f}× smaller"


def _difference(result: Results) -> str:
    difference, error = number(result, "fd.difference_to_real"), number(result, "fd.difference_se")
    return "" if difference is None or error is None else f"{difference:+.2g} ± {error:.2g}"


def _significant(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"
