"""How results look in a terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from dither.inspection import plan_rows, reasons
from dither.recipes import Entry
from dither.spec import Recipe

__all__ = ["comparison", "inspection", "megabytes", "plan", "recipe_table", "saved", "verdict"]

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
        "",
        f"{sizes}; peak memory about {megabytes(expected['peak_bytes'])} and calibration",
    )


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Layers grouped by kind and formats."""
    table = Table("kind", "weight", "activation", "kernel here", box=None, pad_edge=False)
    table.add_column("layers", justify="right")
    table.add_column("weights", justify="right")
    for row in plan_rows(rows):
        table.add_row(*row)
    return table


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
    return (
        f"{folder}: {before} -> {after} ({size['ratio']:.2f}x smaller), {size['bits_per_weight']:.2f} bits per weight"
    )


def verdict(results: Mapping[str, Any]) -> str:
    """One line of what came out: size, bits, PSNR with interval, layers, kernels, speed, and what was skipped."""
    psnr = results["psnr_db"]
    low, high = psnr["ci95"]
    parts = [f"PSNR {psnr['mean']:.1f} dB, 95% {low:.1f} to {high:.1f}, n={results['n']}"]
    if size := results.get("size"):  # files of samples have none
        bits = "" if size["bits_per_weight"] is None else f", {size['bits_per_weight']:.2f} bits per weight"
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
        bits, over_all = found["bits_per_weight"], found["model_bits_per_weight"]
        head += f", {bits:.2f} bits per quantized weight, {over_all:.2f} over the whole model"
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
    return Group(head, counts, where, "", layer_table(layers["rows"]), *_why(layers["rows"]), "", rest)


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
