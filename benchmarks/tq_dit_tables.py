"""Tables of TQ-DiT and of learned rounding: components, differences, and what two regions do to the values themselves."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.component_tables import components, differences, to_real
from benchmarks.markdown import result, table

__all__ = ["TABLES"]


def regions() -> str:
    """A line a way of rounding, a column a model and width: error of what reads the rounded values."""
    data = result("regions")
    rows = {(r["of"], r["way"], r["model"], r["bits"]): r for r in data["rows"]}
    columns = list(dict.fromkeys((model, bits) for _, _, model, bits in rows))
    lines = []
    for of, way in dict.fromkeys((of, way) for of, way, _, _ in rows):
        lines.append([of, way, *(f"{rows[of, way, model, bits]['mean']:.1e}" for model, bits in columns)])
    header = ["behind", "rounding", *(f"`{model}`, {bits} bits" for model, bits in columns)]
    drawn = data["calibration"]
    return table(header, lines) + (
        "\nSquared error over squared size of A V, or of the second feed-forward linear's output, when only A, or the "
        "linear's input, is rounded: mean over layers. `overlapping` is what both releases compute. "
        f"{drawn['calls']} denoiser calls of {drawn['samples']} pictures, {drawn['steps']} steps, seed {drawn['seed']}. "
        f"{data['device']}, torch {data['versions']['torch']}; `{data['command']}`.\n"
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "regions": regions,
    "tq-dit": partial(components, "tq_dit"),
    "tq-dit-real": partial(to_real, "tq_dit"),
    "tq-dit-differences": partial(differences, "tq_dit"),
    "tq-dit-25": partial(components, "tq_dit_25"),
    "tq-dit-25-differences": partial(differences, "tq_dit_25"),
    "tq-dit-50": partial(components, "tq_dit_50"),
    "tq-dit-50-differences": partial(differences, "tq_dit_50"),
}
