"""Tables of ViDiT-Q: its components, their differences, mixed precision, and what goes with them."""

from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.component_tables import components, differences
from benchmarks.markdown import distance_of, psnr_of, ratio, result, table

__all__ = ["TABLES"]


def mixed() -> str:
    """Rows of mixed precision beside the uniform one: what runs, what is stored."""
    data = result("vidit_q")
    rows = [r for r in data["rows"] if r["bits"] and "failed" not in r]
    lines = []
    for model, bits in dict.fromkeys((r["model"], r["bits"]) for r in rows):
        mine = [r for r in rows if (r["model"], r["bits"]) == (model, bits)]
        if not any(r["switch"].startswith("MP") for r in mine):
            continue
        for row in mine:
            if row["switch"] != "+ both" and not row["switch"].startswith(("MP", "uniform")):
                continue
            size = row["size"]
            acts = size["running_bits_per_activation"]
            lines.append(
                [
                    f"`{model}`",
                    bits.upper(),
                    "uniform" if row["switch"] == "+ both" else row["switch"].removeprefix("MP "),
                    f"{size['running_bits_per_weight']:.2f}",
                    "" if acts is None else f"{acts:.2f}",
                    f"{size['bits_per_weight']:.2f}",
                    psnr_of(row),
                    distance_of(row),
                ]
            )
    header = ["model", "bits", "allocation", "weight bits that run", "activation bits that run"]
    header += ["true bits per weight, stored", "PSNR", "FD to full precision"]
    return table(header, lines) + (
        "\nBits that run: mean over weights and time of the codes' width, without scales. Stored: everything on the disk.\n"
    )


def rotation() -> str:
    """A line a layer: how many times the plain layer's time each transform makes of it."""
    data = result("rotation")
    transforms = list(dict.fromkeys(name for row in data["rows"] for name in row["times_plain"]))
    lines = []
    for row in data["rows"]:
        cells = [ratio(row["times_plain"][name]) for name in transforms]
        lines.append([row["layers"], row["bits"].upper(), str(row["tokens"]), *cells])
    return table(["layer", "bits", "tokens", *transforms], lines) + (
        f"\nTimes of the layer without transforms, median [quartiles]: {data['method']}. {data['layers']}. {data['cpu']}, "
        f"{data['threads']} threads. Goal: at most {data['goal']['times_plain']}.\n"
    )


def nested() -> str:
    """A line a grid, a column a narrow width."""
    data = result("nested")
    rows = {(r["symmetric"], r["bits"]): r for r in data["rows"]}
    widths = list(dict.fromkeys(bits for _, bits in rows))
    lines = []
    for symmetric in dict.fromkeys(s for s, _ in rows):
        grid = "symmetric" if symmetric else "asymmetric"
        for side, what in (("narrow", "read narrow"), ("wide", f"read at {data['wide']} bits")):
            lines.append([grid, what, *(f"{rows[symmetric, b][f'{side}_error_ratio']:.2f}" for b in widths)])
    stored = [f"{rows[False, b]['code_bits_nested']} instead of {rows[False, b]['code_bits_banks']}" for b in widths]
    lines.append(["code bits stored", "", *stored])
    return table(["grid", "", *(f"{data['wide']} and {b} bits" for b in widths)], lines) + (
        f"\nSquared error over that of a bank of the same width alone: median over the {data['layers']} linears of "
        f"`{data['model']}`.\n"
    )


def data_free() -> str:
    """A line a model and kind of site, a column a block."""
    data = result("data_free")
    found: dict[tuple[str, str], list[str]] = {}
    for row in data["rows"]:
        _, _, site = row["site"].split(".")
        found.setdefault((row["model"], site), []).append(f"{row['correlation']:.2f}")
    blocks = max(map(len, found.values()))
    lines = [[f"`{model}`", SITES.get(site, site), *cells] for (model, site), cells in found.items()]
    return table(["model", "input of", *(f"block {i}" for i in range(blocks))], lines) + (
        "\nCorrelation over channels of the logarithms of measured and computed peaks; "
        f"{data['calibration']['samples']} calibration pictures.\n"
    )


def luck() -> str:
    """A line a recipe, a column a seed."""
    data = result("luck")
    lines = [
        [
            f"`{data['model']}`",
            row["run"],
            *(f"{v:.1f}" for v in row["psnr_db"]),
            f"{row['mean']:.1f} ± {row['sd']:.1f}",
        ]
        for row in data["rows"]
    ]
    seeds = [f"seed {seed}" for seed in data["quantize_seeds"]]
    return table(["model", data["bits"].upper(), *seeds, "mean ± standard deviation"], lines) + (
        f"\nPSNR in dB on the same {data['n']} pictures, {data['steps']} steps.\n"
    )


SITES = {"norm1": "q, k, v", "norm3": "fc1"}

TABLES: Mapping[str, Callable[[], str]] = {
    "vidit-q": partial(components, "vidit_q"),
    "vidit-q-differences": partial(differences, "vidit_q"),
    "vidit-q-mixed": mixed,
    "rotation": rotation,
    "luck": luck,
    "nested": nested,
    "data-free": data_free,
}
