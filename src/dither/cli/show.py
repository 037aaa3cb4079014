"""How results look in a terminal."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from dither.inspection import plan_rows, reasons
from dither.recipes import Entry
from dither.report.blocks import block_of, block_spans
from dither.report.widths import SIDES, Range, edges_of, format_said, ranges_of, widths_said
from dither.spec import Recipe

__all__ = ["comparison", "inspection", "megabytes", "plan", "recipe_table", "saved", "schedule", "verdict"]

PATTERNS = 4
"""More ways than this to change over time, within a kind of layers, are told by their mean."""
FOLDS = {"AdaLN": "into adaLN rows", "Rows": "into rows of the linear before", "online": "not at all (online)"}


def megabytes(count: float) -> str:
    """Bytes as MB (10^6)."""
    return f"{count / 1e6:,.2f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def plan(
    name: str, recipe: Recipe, rows: Sequence[Mapping[str, Any]], expected: Mapping[str, int], before: int
) -> RenderableType:
    """What is about to happen."""
    paper = f" (arXiv {recipe.paper})" if recipe.paper else ""
    stages = " -> ".join(tag for tag, _ in recipe.stages)
    sizes = f"{megabytes(before)} on disk, about {megabytes(expected['file_bytes'])} afterwards"
    return Group(
        f"[bold]{name}[/], recipe {recipe.name} at {recipe.bits}{paper}: {stages}",
        "",
        layer_table(rows),
        *_why(rows),
        *schedule(rows),
        "",
        f"{sizes}; peak memory about {megabytes(expected['peak_bytes'])} and calibration",
    )


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Layers grouped by kind and formats."""
    table = Table("kind", "weight", "activation", "kernel here", box=None, pad_edge=False)
    table.add_column("layers", justify="right")
    table.add_column("weights", justify="right")
    for row in plan_rows([_told(r, rows) for r in rows]):
        table.add_row(*row)
    return table


def _told(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A row for the table: of a kind whose widths change over time all widths at once, so that the kind stays one line."""
    alike = [r for r in rows if r["kind"] == row["kind"] and r["reason"] is None]
    if row["reason"] is not None or not any(widths_said(r, side) for r in alike for side in SIDES):
        return {**row, **{side: format_said(row, side) for side in SIDES}}
    by_time = [
        {"low": part.low, "high": part.high, "weight_bits": part.weight, "act_bits": part.act}
        for r in alike
        for part in ranges_of(r)
    ]
    words = {
        side: " | ".join(dict.fromkeys(p for r in alike if r[side] for p in r[side].split(" | "))) for side in SIDES
    }
    whole = {**row, **{side: said or None for side, said in words.items()}, "by_time": by_time}
    return {**whole, **{side: format_said(whole, side) for side in SIDES}}


def schedule(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """Widths by noise level of the kinds where any change, and what second banks take; nothing where nothing changes.

    A line for layers of a kind that are alike; of a kind with many patterns one line with means over its weights.
    """
    banks = sum(r.get("bank_bytes") or 0 for r in rows)
    lines: list[RenderableType] = [f"banks of weights beside the first take {megabytes(banks)}"] if banks else []
    moving = [r for r in rows if any(widths_said(r, side) for side in SIDES)]
    if not moving:
        return lines
    ranges = [ranges_of(r) for r in moving]
    edges = sorted({edge for side in SIDES for edge in edges_of(ranges, side)}, reverse=True)
    spans = list(pairwise(edges))  # from noise to picture
    table = Table("bits by noise", *(f"{high:.3g}-{low:.3g}" for high, low in spans), box=None, pad_edge=False)
    table.add_column("blocks")
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for kind in dict.fromkeys(r["kind"] for r in moving):
        of_kind = [r for r in rows if r["kind"] == kind and r["reason"] is None]
        alike.setdefault(tuple(_lines(of_kind, spans)), []).append(kind)
    for found, kinds in alike.items():
        for i, line in enumerate(found):
            table.add_row(", ".join(kinds) if i == 0 else "", *line)
    return ["", table, *lines]


def _lines(rows: Sequence[Mapping[str, Any]], spans: Sequence[tuple[float, float]]) -> list[tuple[str, ...]]:
    """For layers of one kind: what runs in each span, and in which blocks."""
    layers = [(r, ranges_of(r), float(r["shape"][0] * r["shape"][1])) for r in rows]
    patterns: dict[tuple[str, ...], list[str]] = {}
    for r, ranges, count in layers:
        patterns.setdefault(tuple(_widths([(ranges, count)], span) for span in spans), []).append(block_of(r))
    if len(patterns) <= PATTERNS:
        return [(*cells, block_spans(blocks)) for cells, blocks in patterns.items()]
    means = [_widths([(ranges, count) for _, ranges, count in layers], span) for span in spans]
    return [(*means, f"means of {len(patterns)} patterns")]


def _widths(layers: Sequence[tuple[Sequence[Range], float]], span: tuple[float, float]) -> str:
    """Such as `w4a8` between two noise levels, or `w4.3a7.9` as the mean of several layers with these weights."""
    middle = sum(span) / 2
    here = [(next(r for r in ranges if r.low <= middle <= r.high), count) for ranges, count in layers]
    said = ""
    for side in SIDES:
        known = [(bits, count) for r, count in here if (bits := r.bits(side)) is not None]
        total = sum(count for _, count in known)
        said += f"{side[0]}{sum(bits * count for bits, count in known) / total:.2g}" if known else ""
    return said or "full"


def _why(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each reason to keep layers in full precision; nothing where no layer is quantized."""
    if all(r["reason"] is not None for r in rows):
        rows = [r for r in rows if r["reason"] != "not quantized"]
    lines = [f"{', '.join(kinds)} in full precision: {reason}" for reason, kinds in reasons(rows).items()]
    simulated = "simulated: rounded as stored, but computed in full precision; no faster here"
    return [*lines, simulated] if any(r["simulated"] for r in rows) else lines


def saved(folder: Path, size: Mapping[str, Any]) -> str:
    """One line after quantizing."""
    before, after = megabytes(size["full_precision_bytes"]), megabytes(size["file_bytes"])
    bits = _bits(size, "bits per weight")
    return f"{folder}: {before} -> {after} ({size['ratio']:.2f}x smaller), {bits}"


def _bits(size: Mapping[str, Any], unit: str) -> str:
    """Bits that are stored, with scales and all else, and beside them the mean of what runs, unless widths are whole and
    little is stored beside them."""
    running, act = size.get("running_bits_per_weight"), size.get("running_bits_per_activation")
    runs = [f"{side}{value:.2f}" for side, value in (("w", running), ("a", act)) if value is not None]
    beside = running is not None and size["bits_per_weight"] - running > 1
    mixed = beside or any(not run.endswith(".00") for run in runs)
    return f"{size['bits_per_weight']:.2f} {unit}" + (f" ({' '.join(runs)} run on average)" if mixed else "")


def verdict(results: Mapping[str, Any]) -> str:
    """One line of what came out: size, bits, PSNR with interval, layers, kernels, speed, and what was skipped."""
    psnr = results["psnr_db"]
    low, high = psnr["ci95"]
    parts = [f"PSNR {psnr['mean']:.1f} dB, 95% {low:.1f} to {high:.1f}, n={results['n']}"]
    if size := results.get("size"):  # files of samples have none
        bits = "" if size["bits_per_weight"] is None else f", {_bits(size, 'bits per weight')}"
        parts.insert(0, f"{size['ratio']:.2f}x smaller ({megabytes(size['file_bytes'])}){bits}")
    if layers := results.get("layers"):
        simulated = f", {layers['simulated']} simulated" if layers["simulated"] else ""
        parts.append(f"{layers['quantized']}/{layers['total']} layers quantized{simulated}")
        parts.append("kernels: " + ", ".join(f"{name} x{count}" for name, count in results["kernels"].items()))
    if (speed := results.get("speed")) and speed["ratio"] is not None:
        a, b = speed["ci95"]
        parts.append(f"{speed['ratio']:.2f}x as fast as {speed['against']}, 95% {a:.2f} to {b:.2f}")
    if skipped := results.get("skipped"):
        parts.append(f"[bold red]{len(skipped)} jobs failed and were skipped[/]: {escape(skipped[0]['why'])}")
    return " | ".join(parts)


def inspection(found: Mapping[str, Any]) -> RenderableType:
    """A model's content."""
    layers = found["layers"]
    head = f"[bold]{found['model']}[/] (family {found['family']}): {megabytes(found['file_bytes'])} on disk"
    if found.get("bits_per_weight") is not None:
        head += (
            f", {_bits(found, 'bits per quantized weight')}, {found['model_bits_per_weight']:.2f} over the whole model"
        )
    folds = [s["fold"] for s in found["sites"]]
    sites = ", ".join(f"{folds.count(kind)} {FOLDS.get(kind, kind)}" for kind in dict.fromkeys(folds)) or "none"
    rest = Table("not linear, in full precision", "type", box=None, pad_edge=False)
    rest.add_column("parameters", justify="right")
    groups: dict[tuple[str, str], int] = {}
    for item in found["not_linear"]:
        leaf = item["name"].rpartition(".")[2] or "(model)"
        groups[leaf, item["type"]] = groups.get((leaf, item["type"]), 0) + item["parameters"]
    for (leaf, kind), count in groups.items():
        rest.add_row(leaf, kind, f"{count:,}")
    counts = f"{layers['quantized']} of {layers['total']} linears quantized, {layers['simulated']} simulated"
    where = f"sites where a channel scale folds: {sites}"
    return Group(
        head, counts, where, "", layer_table(layers["rows"]), *_why(layers["rows"]), *schedule(layers["rows"]), "", rest
    )


def recipe_table(entries: Sequence[Entry]) -> Table:
    """All recipes."""
    table = Table("recipe", "default", "arXiv", "what it is", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e.name, str(e.bits), e.paper or "-", e.about)
    table.columns[0].no_wrap = True
    return table


def comparison(whole: Mapping[str, Any]) -> RenderableType:
    """Several results beside each other; a rank only where the pictures tell it."""
    table = Table("rank", "recipe", box=None, pad_edge=False)
    for head in ("size", "bits", "PSNR, dB", "95%", "FD"):
        table.add_column(head, justify="right")
    ranges = whole["ranks"].get("psnr_db") or [[1, len(whole["results"])]] * len(whole["results"])
    for (best, worst), result in zip(ranges, whole["results"], strict=True):
        psnr, size, fd = result["psnr_db"], result.get("size") or {}, result["fd"]["to_full_precision"]
        table.add_row(
            f"{best}" if best == worst else f"{best}-{worst}",
            f"{(result.get('recipe') or {}).get('name', '')} {result.get('bits') or ''} ({result['checkpoint']})",
            megabytes(size["file_bytes"]) if size else "-",
            f"{size['bits_per_weight']:.2f}" if size.get("bits_per_weight") else "-",
            f"{psnr['mean']:.2f}",
            f"{psnr['ci95'][0]:.2f} to {psnr['ci95'][1]:.2f}",
            "-" if fd is None else f"{fd:.3g}",
        )
    n = whole["results"][0]["n"]
    return Group(table, f"ranks by PSNR of {n} pairs, all intervals at once; a range where the pictures cannot tell")
