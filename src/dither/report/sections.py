"""What one result shows beside its numbers: pictures, the maps that the script draws, the plan, and how to repeat it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dither.report.form import DASH, Cell, decimals, significant
from dither.report.load import Results, items, lookup, matrix, number, numbers, records, text, texts
from dither.report.tables import Row, Table
from dither.report.widths import bank_sentence, format_said, weights_in, widths_said

__all__ = ["Block", "Picture", "Plan", "Reproduction", "heatmap", "pictures", "plan", "ranges", "reproduction"]

FORMATS_SHOWN = 8
NAMES_SHOWN = 6  # of the layers that stay in full precision for one reason
PICTURE_PREFIXES = ("data:image/png;base64,", "data:image/webp;base64,")


@dataclass(frozen=True)
class Picture:
    """A pair of data URIs with what is said under it; `sort` is its PSNR, lowest first when the worst are wanted."""

    full_precision: str
    quantized: str
    caption: str
    psnr: str
    sort: float | None
    key: str
    worst: bool


def pictures(result: Results) -> list[Picture]:
    """The pairs that the file holds; anything but inlined PNG or WebP is left out."""
    return [_picture(entry) for entry in records(result, "images") if _is_pair(entry)]


def _is_pair(entry: Mapping[str, Any]) -> bool:
    sides = [lookup(entry, "full_precision"), lookup(entry, "quantized")]
    return all(isinstance(side, str) and side.startswith(PICTURE_PREFIXES) for side in sides)


def _picture(entry: Mapping[str, Any]) -> Picture:
    value = number(entry, "psnr_db")
    psnr, worst = decimals(value, 1) + " dB", entry.get("worst") is True
    seed, label = text(entry, "seed") or DASH, text(entry, "label") or DASH
    caption = f"seed {seed} · label {label} · {psnr}" + (" · one of the worst" if worst else "")
    return Picture(entry["full_precision"], entry["quantized"], caption, psnr, value, f"{seed}/{label}", worst)


def heatmap(result: Results) -> dict[str, Any] | None:
    """Return `{layers, timesteps, db}` when all three are well formed and agree in shape."""
    layers, timesteps = texts(result, "layer_snr.layers"), numbers(result, "layer_snr.timesteps")
    values = matrix(result, "layer_snr.db", len(layers), len(timesteps))
    if not values or not timesteps or any(value is None for row in values for value in row):
        return None
    return {"layers": layers, "timesteps": timesteps, "db": values}


def ranges(result: Results) -> dict[str, Any] | None:
    """Return `{layers, timesteps, low, high, rms}` of the layers' inputs when all agree in shape."""
    layers, timesteps = texts(result, "activation_ranges.layers"), numbers(result, "activation_ranges.timesteps")
    found = {
        key: matrix(result, f"activation_ranges.{key}", len(layers), len(timesteps)) for key in ("low", "high", "rms")
    }
    known = all(values and all(value is not None for row in values for value in row) for values in found.values())
    return {"layers": layers, "timesteps": timesteps, **found} if known and len(timesteps) > 1 else None


@dataclass(frozen=True)
class Plan:
    """What was done to the layers: counts by format, bytes of second banks, what was left alone and why, and all layers."""

    formats: Sequence[tuple[int, str]]
    banks: str
    kept: Sequence[tuple[str, Sequence[str], int]]
    layers: Table


def plan(result: Results) -> Plan | None:
    """What was done to each layer; None when the file does not list them."""
    rows = records(result, "layers.rows")
    if not rows:
        return None
    titles = ("Layer", "Kind", "Shape", "Weight", "Activation", "Kernel", "Bits / weight")
    heads = [(title, "", title in ("Shape", "Bits / weight")) for title in titles]
    listing = Table(f"All {len(rows)} layers", heads, [_plan_row(row) for row in rows], [])
    formats = Counter(_format(row) for row in rows)
    kept: dict[str, list[str]] = {}
    for row in rows:
        if _kept(row):
            kept.setdefault(text(row, "reason") or "no reason was recorded", []).append(text(row, "name") or DASH)
    shown = [(reason, names[:NAMES_SHOWN], max(len(names) - NAMES_SHOWN, 0)) for reason, names in kept.items()]
    common = [(count, name) for name, count in formats.most_common()]
    if len(common) > FORMATS_SHOWN + 1:
        rest = sum(count for count, _ in common[FORMATS_SHOWN:])
        common = [*common[:FORMATS_SHOWN], (rest, f"{len(common) - FORMATS_SHOWN} other ways, listed below")]
    return Plan(common, bank_sentence(result), shown, listing)


def _kept(row: Mapping[str, Any]) -> bool:
    """Whether nothing of a layer is quantized."""
    return all(text(row, side) is None for side in ("weight", "act"))


def _format(row: Mapping[str, Any]) -> str:
    if _kept(row):
        return "full precision"
    if text(row, "kind") == "attention":
        return f"attention, {text(row, 'act')}"
    weight, act = (
        f"{format_said(row, side) or 'full-precision'} {what}{' by noise level' if widths_said(row, side) else ''}"
        for side, what in (("weight", "weights"), ("act", "activations"))
    )
    return f"{weight}, {act}"


def _plan_row(row: Mapping[str, Any]) -> Row:
    shape = numbers(row, "shape")
    bits, weight, kernel = number(row, "bits_per_weight"), text(row, "weight"), text(row, "kernel")
    name, act = text(row, "name"), text(row, "act")
    cells = [
        Cell(name or DASH, sort=name, kind="code"),
        Cell.of_text(text(row, "kind")),
        Cell.of_number(weights_in(row) if shape else None, " × ".join(f"{side:.0f}" for side in shape) or DASH),
        _format_cell(row, "weight", weight or "full precision"),
        _format_cell(row, "act", act),
        Cell(kernel or DASH, sort=kernel, mark="simulated" if row.get("simulated") is True else ""),
        Cell.of_number(bits, decimals(bits, 2)),
    ]
    return Row("kept" if _kept(row) else "done", cells)


def _format_cell(row: Mapping[str, Any], side: str, words: str | None) -> Cell:
    """A format; where its width changes over time that comes first."""
    changing = widths_said(row, side)
    return (
        Cell.of_text(f"{changing} bits", f"{format_said(row, side)}, by noise level")
        if changing
        else Cell.of_text(words)
    )


@dataclass(frozen=True)
class Block:
    """Text to copy, with a title."""

    title: str
    code: str


@dataclass(frozen=True)
class Reproduction:
    """Commands, facts, longer settings to unfold, and the jobs that were skipped."""

    commands: Sequence[Block]
    facts: Sequence[tuple[str, str]]
    folded: Sequence[Block]
    skipped: Table | None

    @property
    def empty(self) -> bool:
        """Whether the file says nothing of how it was made."""
        return not (self.commands or self.facts or self.folded or self.skipped)


def reproduction(result: Results) -> Reproduction:
    """Commands, seeds, digests, versions, machine, scheduler and recipe."""
    commands = [Block(name, code) for name, code in _commands(result)]
    names = ("model", "checkpoint", "n", "seed", "steps", "guidance", "batch_size", "device", "threads", "executor")
    facts = [(name.replace("_", " "), text(result, name)) for name in names]
    for path, title in (("versions", "{}"), ("digests", "digest, {}")):
        facts += [
            (title.format(name.replace("_", " ")), text({"v": value}, "v")) for name, value in items(result, path)
        ]
    facts += [(f"seconds, {key}", significant(number({"v": value}, "v"))) for key, value in items(result, "seconds")]
    folded = []
    recipe, scheduler = lookup(result, "recipe"), lookup(result, "scheduler")
    if isinstance(recipe, Mapping) and recipe:
        about = [part for part in (text(recipe, "name"), text(recipe, "paper")) if part]
        folded.append(Block(" · ".join(["Recipe", *about]), _pretty(recipe)))
    if isinstance(scheduler, Mapping) and scheduler:
        name = text(scheduler, "_class_name") or text(scheduler, "class") or text(scheduler, "name")
        folded.append(Block(" · ".join(part for part in ("Scheduler", name) if part), _pretty(scheduler)))
    elif isinstance(scheduler, str):
        facts.append(("scheduler", scheduler))
    return Reproduction(commands, [(name, value) for name, value in facts if value], folded, _skipped(result))


def _commands(result: Results) -> list[tuple[str, str]]:
    """The exact commands; files before schema 2 hold only the last one."""
    listed = [(name, text({"c": value}, "c")) for name, value in items(result, "commands")]
    listed = listed if any(code for _, code in listed) else [("command", text(result, "command"))]
    return [(name.capitalize(), code) for name, code in listed if code]


def _skipped(result: Results) -> Table | None:
    rows = [
        Row("skipped", [
            Cell.of_text(text(job, "what")), Cell.of_text(text(job, "why")),
            Cell.of_number(number(job, "attempts"), text(job, "attempts") or DASH),
        ])
        for job in records(result, "skipped")
    ]  # fmt: skip
    heads = [("Skipped job", "", False), ("Why", "", False), ("Attempts", "", True)]
    return Table("Skipped jobs", heads, rows, []) if rows else None


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
