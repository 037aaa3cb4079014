"""How results look in a terminal."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from dither.inspection import plan_rows
from dither.recipes import Entry
from dither.spec import Recipe

__all__ = ["inspection", "megabytes", "plan", "recipe_table", "saved", "verdict", "write_text"]


def megabytes(count: float) -> str:
    """Bytes as MB (10^6)."""
    return f"{count / 1e6:,.2f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"


def plan(
    name: str, recipe: Recipe, rows: Sequence[Mapping[str, Any]], expected: Mapping[str, int], before: int
) -> RenderableType:
    """What is about to happen."""
    paper = f" (arXiv {recipe.paper})" if recipe.paper else ""
    stages = " -> ".join(tag for tag, _ in recipe.stages)
    sizes = f"{megabytes(before)} on disk now, about {megabytes(expected['file_bytes'])} afterwards"
    return Group(
        f"[bold]{name}[/], recipe {recipe.name} at {recipe.bits}{paper}: {stages}",
        layer_table(rows),
        f"{sizes}; peak memory about {megabytes(expected['peak_bytes'])} for the model, calibration apart",
    )


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Layers grouped by kind and formats."""
    table = Table("kind", "weight", "activation", "kernel here", "layers", "weights", box=None, pad_edge=False)
    for row in plan_rows(rows):
        table.add_row(*row)
    return table


def saved(folder: Path, size: Mapping[str, Any]) -> str:
    """One line after quantizing."""
    before, after = megabytes(size["full_precision_bytes"]), megabytes(size["file_bytes"])
    return (
        f"{folder}: {before} -> {after} ({size['ratio']:.2f}x smaller), {size['bits_per_weight']:.2f} bits per weight"
    )


def verdict(results: Mapping[str, Any]) -> str:
    """One line of what came out: size, bits, PSNR with interval, layers, kernels."""
    size, psnr, layers = results["size"], results["psnr_db"], results["layers"]
    low, high = psnr["ci95"]
    kernels = ", ".join(f"{name} x{count}" for name, count in results["kernels"].items())
    simulated = f", {layers['simulated']} simulated" if layers["simulated"] else ""
    return (
        f"{size['ratio']:.2f}x smaller ({megabytes(size['file_bytes'])}), {size['bits_per_weight']:.2f} bits per weight | "
        f"PSNR {psnr['mean']:.1f} dB, 95% {low:.1f} to {high:.1f}, n={results['n']} | "
        f"{layers['quantized']}/{layers['total']} layers quantized{simulated} | kernels: {kernels}"
    )


def inspection(found: Mapping[str, Any]) -> RenderableType:
    """A model's content."""
    layers = found["layers"]
    head = f"[bold]{found['model']}[/] (family {found['family']}): {megabytes(found['file_bytes'])} on disk"
    if found.get("bits_per_weight") is not None:
        head += f", {found['bits_per_weight']:.2f} bits per weight, {found['model_bits_per_weight']:.2f} over the whole model"
    folds = [s["fold"] for s in found["sites"]]
    sites = ", ".join(f"{folds.count(kind)} {kind}" for kind in dict.fromkeys(folds)) or "none"
    rest = Table("not linear", "type", "parameters", box=None, pad_edge=False)
    groups: dict[tuple[str, str], int] = {}
    for item in found["not_linear"]:
        leaf = item["name"].rpartition(".")[2] or "(model)"
        groups[leaf, item["type"]] = groups.get((leaf, item["type"]), 0) + item["parameters"]
    for (leaf, kind), count in groups.items():
        rest.add_row(leaf, kind, f"{count:,}")
    counts = (
        f"{layers['quantized']} of {layers['total']} linears quantized, {layers['simulated']} simulated; sites: {sites}"
    )
    return Group(head, counts, layer_table(layers["rows"]), rest)


def recipe_table(entries: Sequence[Entry]) -> Table:
    """All recipes."""
    table = Table("recipe", "default", "arXiv", "what it is", box=None, pad_edge=False)
    for e in entries:
        table.add_row(e.name, str(e.bits), e.paper or "-", e.about)
    return table


def write_text(path: Path, text: str) -> None:
    """Written beside its place and moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8")
        os.replace(half, path)
    finally:
        half.unlink(missing_ok=True)
