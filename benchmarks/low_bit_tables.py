"""Tables of weights of 2 to 4 bits."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.component_tables import components, differences
from benchmarks.markdown import result, table

__all__ = ["TABLES"]


def distortion() -> str:
    """A line a format, a column a source: squared error, and how far above the bound that is."""
    data = result("distortion")
    rows = {(r["bits"], r["format"], r["source"]): r for r in data["rows"]}
    sources = list(dict.fromkeys(source for *_, source in rows))
    lines = []
    for bits in dict.fromkeys(bits for bits, *_ in rows):
        for way in dict.fromkeys(way for b, way, _ in rows if b == bits):
            mine = [rows[bits, way, source] for source in sources]
            lines.append([str(bits), way, f"{mine[0]['true_bits']:.3f}", *(f"{r['mse']:.4f}" for r in mine)])
        lines.append([str(bits), "bound", "", *(f"{r['bound']:.4f}" for r in mine)])
    n, k = data["shape"]
    least, worst = min(r["rows"] for r in data["rows"]), max(r["standard_error"] / r["mse"] for r in data["rows"])
    return table(["bits", "format", "true bits", *sources], lines) + (
        f"\nMean squared error on a weight of {n} x {k} values of variance 1 (16 bits of state: {least} of the rows), seed "
        f"{data['seed']}; its standard error is at most {worst:.1%} of it. `rotated`: Laplacian behind a Hadamard rotation. "
        "The bound holds for codes of any length; that of Laplacian values (Shannon's) is not reached by any. "
        f"{data['device']}, torch {data['versions']['torch']}; `{data['command']}`.\n"
    )


def layer_errors() -> str:
    """A line a method, a column a model and width."""
    data = result("layer_errors")
    rows = {(r["line"], r["model"], r["bits"]): r for r in data["rows"]}
    columns = list(dict.fromkeys((model, bits) for _, model, bits in rows))
    lines = []
    for line in dict.fromkeys(line for line, *_ in rows):
        found = [rows.get((line, *column)) for column in columns]
        lines.append([line, *("" if r is None else f"{r['mean']:.4f}" for r in found)])
    drawn = data["calibration"]
    return table(["", *(f"`{model}`, {bits.upper()}" for model, bits in columns)], lines) + (
        "\nSquared error of a linear's output over the variance of what it is to give, for inputs of the full-precision "
        f"model: mean over {data['rows'][0]['layers']} linears. Inputs are from {drawn['calls']} denoiser calls of "
        f"{drawn['samples']} pictures, {drawn['steps']} steps, of other noise than calibration's. Seed {data['seed']}. "
        f"{data['device']}, torch {data['versions']['torch']}; `{data['command']}`.\n"
    )


def vq_sizes() -> str:
    """A line a format: the paper's count, and the whole checkpoint."""
    data = result("vq_sizes")
    kinds = list(data["rows"][0]["checkpoint_mib"])
    lines = []
    for row in data["rows"]:
        counted = f"{row['as_counted_mib']:.2f} ({row['as_counted_ratio']:.2f} times less)"
        held = ", ".join(f"{size:.0f}" for n, size in row.get("calibration_mib", {}).items() if n != "1")
        whole = [f"{row['checkpoint_mib'][kind]:.1f}" for kind in kinds]
        lines.append([row["format"], f"{row['bits_per_weight']:.4f}", counted, *whole, held])
    wholes = [f"all, rest in {kind}" for kind in kinds]
    header = ["", "true bits", "as the paper counts", *wholes, "calibration, n = 2, 3, 4"]
    return table(header, lines) + (
        f"\nMiB for {data['model']}: {data['rows'][0]['linears']} linears. The paper counts their codes, codebooks and "
        f"biases against {data['rows'][0]['full_mib']:.2f} MiB of float32. Calibration: logits, squared gradients and "
        f"candidates. By the formats' layouts, not from a file; `{data['command']}`.\n"
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "distortion": distortion,
    "layer-errors": layer_errors,
    "vq-sizes": vq_sizes,
    "low-bit": partial(components, "low_bit"),
    "low-bit-differences": partial(differences, "low_bit"),
}
