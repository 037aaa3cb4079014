"""Tables of a method's components and of their differences, of any result that ``components`` wrote."""

from collections.abc import Sequence

from benchmarks.markdown import Result, above_all_others, distance_of, floors, psnr_of, result, table

__all__ = ["components", "difference", "differences", "to_real"]


def components(name: str) -> str:
    """A line a component, a column a width: PSNR, FD, true bits."""
    data = result(name)
    rows = [r for r in data["rows"] if r["bits"]]
    widths = list(dict.fromkeys(r["bits"] for r in rows))
    lines = []
    for model in dict.fromkeys(r["model"] for r in rows):
        mine = {(r["switch"], r["bits"]): r for r in rows if r["model"] == model}
        best = {bits: _best([r for (_, b), r in mine.items() if b == bits]) for bits in widths}
        for line in dict.fromkeys(line for line, _ in mine):
            cells = [_cell(mine.get((line, bits)), best[bits]) for bits in widths]
            lines.append([f"`{model}`", line, *cells])
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
        f"{floors(data['rows'])}. {_missing(data)}{data['device']}, torch {data['versions']['torch']}; `{data['command']}`.\n"
    )


def _missing(data: Result) -> str:
    """What is said of an unfinished result."""
    return f"{data['missing']} cells are not measured yet and empty. " if data.get("missing") else ""


def differences(name: str) -> str:
    """A line a pair, a column a width."""
    data = result(name)
    found = {(d["model"], d["of"], d["minus"], d["bits"]): d for d in data["differences_db"]}
    widths = list(dict.fromkeys(bits for *_, bits in found))
    pairs = list(dict.fromkeys(key[:3] for key in found))
    lines = [
        [f"`{model}`", f"{of} − {minus}", *(difference(found.get((model, of, minus, bits))) for bits in widths)]
        for model, of, minus in pairs
    ]
    return table(["model", "", *map(str.upper, widths)], lines) + (
        "\nMean difference of PSNR in dB, picture by picture [95 % interval]. Bold: the interval excludes 0.\n"
    )


def difference(found: Result | None) -> str:
    """Mean and interval; bold where that excludes 0."""
    if found is None:
        return ""
    low, high = found["ci95"]
    text = f"{found['mean']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def to_real(name: str) -> str:
    """A line a component, a column a width: how much farther from real pictures it is than full precision."""
    data = result(name)
    rows = {(r["model"], r["switch"], r["bits"]): r for r in data["rows"] if r["bits"] and "failed" not in r}
    full = {r["model"]: r["fd"]["to_real"] for r in data["rows"] if not r["bits"]}
    widths = list(dict.fromkeys(bits for *_, bits in rows))
    lines = []
    for model, line in dict.fromkeys(key[:2] for key in rows):
        found = [rows.get((model, line, bits)) for bits in widths]
        pairs = [r and {"mean": r["fd"]["difference_to_real"], "ci95": r["fd"]["difference_ci95"]} for r in found]
        lines.append([f"`{model}`", line, *map(difference, pairs)])
    told = ", ".join(f"`{model}` {value:.2f}" for model, value in full.items())
    return table(["model", "", *map(str.upper, widths)], lines) + (
        "\nFD to real pictures minus that of full precision on the same seeds, both corrected for their number [95 % "
        f"interval]. Bold: the interval excludes 0. Full precision itself, uncorrected: {told}.\n"
    )
