"""Tables of ViDiT-Q's components, of their differences, and of mixed precision, made of ``results/vidit_q.json``."""

from collections.abc import Callable, Mapping, Sequence

from benchmarks.markdown import Result, above_all_others, distance_of, floors, psnr_of, ratio, result, table

__all__ = ["TABLES"]


def components() -> str:
    """A line a component, a column a width: PSNR, FD, true bits."""
    data = result("vidit_q")
    rows = [r for r in data["rows"] if r["bits"]]
    widths = list(dict.fromkeys(r["bits"] for r in rows))
    lines = []
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {(r["switch"], r["bits"]): r for r in rows if r["model"] == model}
        best = {bits: _best([r for (_, b), r in mine.items() if b == bits]) for bits in widths}
        for name in dict.fromkeys(name for name, _ in mine):
            cells = [_cell(mine.get((name, bits)), best[bits]) for bits in widths]
            lines.append([f"`{model}`", name, *cells])
    return table(["model", "", *map(str.upper, widths)], lines) + "\n" + _explained(data)


def _best(rows: Sequence[Result]) -> Result | None:
    """The row whose interval lies above all others."""
    measured = [r for r in rows if "failed" not in r]
    found = above_all_others([r["psnr_db"]["ci95"] for r in measured])
    return None if found is None else measured[found]


def _cell(row: Result | None, best: Result | None) -> str:
    if row is None:
        return ""
    if "failed" in row:
        return f"failed: {row['failed']}"
    psnr = psnr_of(row)
    return f"{f'**{psnr}**' if row is best else psnr}; {distance_of(row)}; {row['size']['bits_per_weight']:.2f}"


def _explained(data: Result) -> str:
    return (
        "Cells: PSNR to full precision in dB (60 at most) [95 % interval]; FD to full precision ± standard error; true bits "
        f"per weight as stored. {data['n']} pictures a cell, the same seeds everywhere, {data['steps']} steps, guidance "
        f"{data['guidance']}. Bold: an interval above all others of its model and column. Full precision against itself: "
        f"{floors(data['rows'])}. {data['device']}, torch {data['versions']['torch']}; `{data['command']}`.\n"
    )


def differences() -> str:
    """A line a pair, a column a width."""
    data = result("vidit_q")
    found = {(d["model"], d["of"], d["minus"], d["bits"]): d for d in data["differences_db"]}
    widths = list(dict.fromkeys(bits for *_, bits in found))
    pairs = list(dict.fromkeys(key[:3] for key in found))
    lines = [
        [f"`{model}`", f"{of} − {minus}", *(_difference(found.get((model, of, minus, bits))) for bits in widths)]
        for model, of, minus in pairs
    ]
    return table(["model", "", *map(str.upper, widths)], lines) + (
        "\nMean difference of PSNR in dB, picture by picture [95 % interval]. Bold: the interval excludes 0.\n"
    )


def _difference(found: Result | None) -> str:
    if found is None:
        return ""
    low, high = found["ci95"]
    text = f"{found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


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
    "vidit-q": components,
    "vidit-q-differences": differences,
    "vidit-q-mixed": mixed,
    "rotation": rotation,
    "luck": luck,
    "nested": nested,
    "data-free": data_free,
}
