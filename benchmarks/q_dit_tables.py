"""Tables of Q-DiT and DiTAS: their components, the differences, and what each search for group sizes costs and gains."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.component_tables import components, difference, differences
from benchmarks.markdown import psnr_of, result, table

__all__ = ["TABLES"]

UNIFORM, SEARCHED = "+ groups, dynamic, GPTQ", "+ searched: "


def searches() -> str:
    """A line a search: what it costs, what it finds, and whether that is better than the uniform size."""
    data = result("q_dit")
    rows = {(r["model"], r["bits"], r["switch"]): r for r in data["rows"] if r["bits"] and "failed" not in r}
    gains = {(d["model"], d["bits"], d["of"]): d for d in data["differences_db"] if d["minus"] == UNIFORM}
    searched = {(model, bits) for model, bits, name in rows if name.startswith(SEARCHED)}
    lines = []
    for (model, bits, name), row in rows.items():
        uniform = rows.get((model, bits, UNIFORM))
        if uniform is None or (model, bits) not in searched or not (name == UNIFORM or name.startswith(SEARCHED)):
            continue
        found = row["search"] or {}
        extra = row["quantize"]["cpu_minutes"] - uniform["quantize"]["cpu_minutes"]
        lines.append(
            [
                f"`{model}`",
                bits.upper(),
                "uniform" if name == UNIFORM else name.removeprefix(SEARCHED),
                f"{found['model_samples']:,}" if found else "",
                f"{max(extra, 0):.1f}" if found else "",
                f"{row['size']['bits_per_weight']:.3f}",
                f"{found['costs']['bitops']:.2f} of {found['limits']['bitops']:.2f}" if found else "",
                f"{found['loss'] / found['uniform_loss']:.2f}" if found.get("uniform_loss") else "",
                psnr_of(row),
                difference(gains.get((model, bits, name))),
            ]
        )
    header = ["model", "bits", "search", "denoiser evaluations", "CPU minutes", "true bits per weight"]
    header += ["BitOps per multiply-accumulate", "its own loss", "PSNR", "minus uniform"]
    return table(header, lines) + (
        "\nDenoiser evaluations: of one sample each, by the search alone. CPU minutes: of one core, beyond those of the "
        "uniform size; other work ran beside it. Its own loss: what the search minimizes, over the "
        "uniform size's. True bits: everything stored of the quantized linears, biases too.\n"
    )


TABLES: Mapping[str, Callable[[], str]] = {
    "q-dit": partial(components, "q_dit"),
    "q-dit-differences": partial(differences, "q_dit"),
    "q-dit-searches": searches,
}
