"""The verdict in plain words, what a reader must be warned of, and the headline numbers.

Nothing here judges by taste: a result is set between full precision against itself (the noise floor) and unrelated
pictures (other seeds), and what the measurement cannot tell is said to be undecided.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dither.report.entries import Book, Entry
from dither.report.form import DASH, byte_size, decimals, interval, percent, significant
from dither.report.load import Results, bounds, items, number, records, text
from dither.report.metrics import METRICS
from dither.report.pareto import front
from dither.report.widths import weights_change

__all__ = [
    "Card",
    "Caution",
    "Part",
    "cards",
    "cautions",
    "front_sentence",
    "shared_cautions",
    "trajectory_notes",
    "verdict",
]

WIDE_DB = 2.0
"""An interval of PSNR wider than this is warned of: two results a bit of weight apart differ by about 6 dB."""
FEW_PICTURES = 32


@dataclass(frozen=True)
class Part:
    """A piece of a sentence, strong or not."""

    text: str
    strong: bool = False


@dataclass(frozen=True)
class Caution:
    """Something to know before believing the page."""

    title: str
    text: str


@dataclass(frozen=True)
class Card:
    """A headline number with a line under it; `kernels` are listed in place of a number."""

    title: str
    value: str
    note: str
    kernels: Sequence[tuple[str, str]] = ()


def verdict(result: Results) -> list[list[Part]]:
    """Sentences: size, quality between its two references, and speed."""
    return [sentence for sentence in (_size(result), _quality(result), _speed(result)) if sentence]


def _size(result: Results) -> list[Part]:
    ratio, size, full = (number(result, f"size.{key}") for key in ("ratio", "file_bytes", "full_precision_bytes"))
    bits, whole = number(result, "size.bits_per_weight"), number(result, "size.model_bits_per_weight")
    running = number(result, "size.running_bits_per_weight") if weights_change(result) else None
    parts: list[Part] = []
    if ratio is not None and ratio > 0:
        shown = f"{decimals(ratio, 2)}× smaller" if ratio >= 1 else f"{decimals(1 / ratio, 2)}× larger"
        parts.append(Part(shown, strong=True))
    if size is not None and full is not None:
        parts.append(Part(f" ({byte_size(full)} became {byte_size(size)})"))
    if bits is not None:
        parts += [
            Part(", at a true " if parts else "A true "),
            Part(f"{decimals(bits, 2)} bits per weight", strong=True),
        ]
        parts.append(Part(f" in the quantized layers, {decimals(whole, 2)} over the whole model" if whole else ""))
        parts.append(Part(f"; {decimals(running, 2)} run on average over time" if running is not None else ""))
    return [*parts, Part(".")] if parts else []


def _quality(result: Results) -> list[Part]:
    psnr, said = number(result, "psnr_db.mean"), interval(bounds(result, "psnr_db.ci95"), 1)
    if psnr is None:
        return []
    parts = [
        Part("Pictures from the same seeds match full precision to "),
        Part(f"{decimals(psnr, 1)} dB", strong=True),
    ]
    parts.append(Part(f" PSNR (95%: {said})" if said else " PSNR (no interval was measured)"))
    between, floor = _references(result), number(result, "noise_floor.psnr_db")
    parts.append(Part(f"; {between}" if between else ""))
    top = bounds(result, "psnr_db.ci95")
    if floor is not None and top is not None and top[1] >= floor:
        parts.append(Part("; by PSNR it cannot be told from full precision"))
    return [*parts, Part(".")]


def _references(result: Results) -> str:
    """What the noise floor and unrelated pictures reach, or empty text."""
    floor, other = number(result, "noise_floor.psnr_db"), number(result, "noise_floor.other_seeds_psnr_db")
    known = [
        ("full precision against itself reaches", floor),
        ("unrelated pictures" if floor is not None else "unrelated pictures reach", other),
    ]
    return ", ".join(f"{name} {decimals(value, 1)} dB" for name, value in known if value is not None)


def _speed(result: Results) -> list[Part]:
    ratio, found = number(result, "speed.ratio"), bounds(result, "speed.ci95")
    simulated = number(result, "layers.simulated")
    if simulated:
        return [Part("Simulated", strong=True), Part(": no speed is claimed.")]
    if ratio is None:
        return []
    word = "as fast as full precision" + (f" in {against}" if (against := text(result, "speed.against")) else "")
    return [
        Part(f"{decimals(ratio, 2)}×", strong=True),
        Part(f" {word} on this machine"),
        Part(f" (95%: {interval(found, 2)})" if found else ""),
        Part(": no difference is shown." if found and found[0] <= 1 <= found[1] else "."),
    ]


def cautions(entry: Entry) -> list[Caution]:
    """What a sceptical reader would ask about this result."""
    result = entry.result
    found = []
    simulated, quantized = number(result, "layers.simulated"), number(result, "layers.quantized")
    if simulated:
        of = f" of {quantized:.0f}" if quantized else ""
        found.append(
            Caution(
                "Simulated",
                f"{simulated:.0f}{of} quantized layers compute in full precision."
                " Sizes and pictures are true; speed and memory are not claimed.",
            )
        )
    skipped = records(result, "skipped")
    if skipped:
        found.append(
            Caution("Skipped", f"{len(skipped)} jobs failed and are left out of every number; they are listed below.")
        )
    found += _doubts(result)
    ratio = number(result, "size.ratio")
    if ratio is not None and ratio < 1:
        found.append(Caution("Not smaller", "The stored file is larger than the full-precision one."))
    return found


def _doubts(result: Results) -> list[Caution]:
    found = []
    n, said = number(result, "n"), bounds(result, "psnr_db.ci95")
    detectable = number(result, "psnr_db.detectable")
    pictures = f" with {n:.0f} pictures" if n is not None else ""
    if said is not None and said[1] - said[0] > WIDE_DB:
        least = f" Differences below {decimals(detectable, 1)} dB would go unseen." if detectable is not None else ""
        text_ = f"The PSNR is known to {decimals(said[1] - said[0], 1)} dB only{pictures}.{least}"
        found.append(Caution("Wide interval", text_))
    elif n is not None and n < FEW_PICTURES:
        found.append(Caution("Few pictures", f"Only {n:.0f} pictures were drawn: read every number with its interval."))
    if number(result, "psnr_db.mean") is not None and said is None:
        found.append(Caution("No interval", "These results do not say how sure the PSNR is."))
    if number(result, "psnr_db.mean") is not None and number(result, "noise_floor.psnr_db") is None:
        found.append(Caution("No noise floor", "Full precision was not compared with itself."))
    reason = text(result, "fd.reason")
    if reason:
        known = number(result, "fd.to_full_precision") is not None
        title = "No interval of the Fréchet distance" if known else "No Fréchet distance"
        found.append(Caution(title, reason[:1].upper() + reason[1:].rstrip(".") + "."))
    return found


def cards(result: Results) -> list[Card]:
    """The headline numbers that these results have."""
    size, full = number(result, "size.file_bytes"), number(result, "size.full_precision_bytes")
    ratio, bits = number(result, "size.ratio"), number(result, "size.bits_per_weight")
    psnr, ssim = number(result, "psnr_db.mean"), number(result, "ssim.mean")
    said = interval(bounds(result, "psnr_db.ci95"), 1)
    kernels = [(name, text({"n": count}, "n") or DASH) for name, count in items(result, "kernels")]
    quantized, total = number(result, "layers.quantized"), number(result, "layers.total")
    left = "" if quantized is None or total is None else f"{total - quantized:.0f} stay in full precision"
    shown = [
        (ratio, Card("Size", f"{decimals(ratio, 2)}×", f"{byte_size(full)} → {byte_size(size)} on disk")),
        (bits, Card("Bits per weight", decimals(bits, 2), _bits_note(result))),
        (psnr, Card("PSNR", f"{decimals(psnr, 1)} dB", f"95%: {said or DASH} · SSIM {decimals(ssim, 3)}")),
        (*_guard_card(result),),
        (*_speed_card(result),),
        (number(result, "memory.ratio"), _memory_card(result)),
        (quantized, Card("Layers quantized", f"{decimals(quantized, 0)}/{decimals(total, 0)}", left)),
        (kernels or None, Card("Kernels", "", _simulated(result), kernels)),
    ]
    return [card for there, card in shown if there is not None]


def _bits_note(result: Results) -> str:
    """The whole model's bits, and those that run where they differ from what is stored."""
    whole, running = number(result, "size.model_bits_per_weight"), number(result, "size.running_bits_per_weight")
    note = f"whole model {decimals(whole, 2)}, all overhead counted"
    return f"{note}; {decimals(running, 2)} run on average" if running is not None and weights_change(result) else note


def _guard_card(result: Results) -> tuple[float | None, Card]:
    quantized, full = number(result, "class_accuracy.quantized"), number(result, "class_accuracy.full_precision")
    found = bounds(result, "class_accuracy.ci95")
    decided = found is not None and (found[0] > 0 or found[1] < 0)
    note = f"full precision {percent(full)}" + ("" if decided or found is None else ": difference undecided")
    return quantized, Card("Class accuracy", percent(quantized), note)


def _speed_card(result: Results) -> tuple[float | None, Card]:
    ratio, said = number(result, "speed.ratio"), interval(bounds(result, "speed.ci95"), 2)
    batch = text(result, "speed.batch_size")
    note = " · ".join([f"95%: {said}" if said else "against full precision", *([f"batch of {batch}"] if batch else [])])
    return ratio, Card("Speed", f"{decimals(ratio, 2)}×", note)


def _memory_card(result: Results) -> Card:
    ratio = number(result, "memory.ratio")
    full, size = number(result, "memory.full_precision_weight_bytes"), number(result, "memory.weight_bytes")
    return Card("Memory of weights", f"{decimals(ratio, 2)}×", f"{byte_size(full)} → {byte_size(size)} when loaded")


def _simulated(result: Results) -> str:
    count = number(result, "layers.simulated")
    if count is None:
        return ""
    return "no layer is simulated" if count == 0 else f"{count:.0f} layers simulated"


def trajectory_notes(result: Results) -> list[str]:
    """How errors grow along the trajectory, and why a chart is missing."""
    notes, value = [], number(result, "trajectory.amplification")
    if value is not None:
        notes.append(
            f"Squared drift at the end is {significant(value)} times the sum of the errors of single calls: above 1 what each"
            " step adds grows on its way to the picture, below 1 later steps contract it."
        )
    reason = text(result, "trajectory.x0_reason")
    if reason is not None:
        notes.append(f"No predicted picture: {reason.rstrip('.')}.")
    return notes


def front_sentence(book: Book) -> list[Part]:
    """Which results nothing smaller is known to match in PSNR, in plain words, between the two references."""
    joined = front(book, METRICS[0])
    if not joined:
        return []
    inside = {index for group in joined for index in group}
    rest = [entry.name for entry in book.entries if entry.index not in inside]
    if len(joined) == 1:
        parts = [_either(book, joined[0]), Part(": nothing larger is known to be better in PSNR.")]
    else:
        parts = [Part("Worth their size in PSNR, from the smallest on: ")]
        for place, group in enumerate(joined):
            parts += [_either(book, group), Part(_gain(book.entries[group[0]].result))]
            parts.append(Part("." if place == len(joined) - 1 else ", "))
        if rest:
            parts.append(Part(f" Not known to be better than something as small: {', '.join(rest)}."))
    between = _references(book.entries[0].result)
    return [*parts, Part(f" {between[:1].upper()}{between[1:]}.")] if between else parts


def _either(book: Book, group: Sequence[int]) -> Part:
    return Part(" or ".join(book.entries[index].name for index in group), strong=True)


def _gain(result: Results) -> str:
    ratio, psnr = number(result, "size.ratio"), f"{decimals(number(result, 'psnr_db.mean'), 1)} dB"
    return f" ({psnr})" if ratio is None else f" ({decimals(ratio, 2)}× smaller, {psnr})"


def shared_cautions(book: Book) -> list[Caution]:
    """Cautions of all results together, each with the names that it holds for."""
    named: dict[str, list[str]] = {}
    for entry in book.entries:
        for caution in cautions(entry):
            named.setdefault(caution.title, []).append(entry.name)
    found = []
    for title, names in named.items():
        whom = "all results" if len(names) == len(book.entries) else ", ".join(names)
        found.append(Caution(title, f"This holds for {whom}; see there."))
    return found
