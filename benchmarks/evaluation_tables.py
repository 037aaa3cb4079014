"""Tables about measuring: what finds a known order, whether intervals hold, what errors on the way foretell."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.markdown import Result, interval, percent, result, table, with_error

__all__ = ["TABLES"]

MEASURES = {
    "fd_paired": "FD to full precision, same seeds",
    "psnr": "PSNR, same seeds",
    "ssim": "SSIM, same seeds",
    "fd_to_real": "FD to real pictures",
    "fd_unpaired": "FD to full precision, other seeds",
}
PAIRS_AT = 256


def ranking() -> str:
    """How often each measure puts all widths in the right order."""
    data = result("ranking")
    lines = []
    for model in data["models"]:
        for n in [found["n"] for found in model["found"]["psnr"]]:
            cells = [order_cell(at(model, name, n)) for name in MEASURES]
            lines.append([f"`{model['model']}`", str(n), *cells])
    return table(["model", "n", *MEASURES.values()], lines) + (
        f"\nShare of {data['subsets']} random subsets of n pictures that rank {widths(data)} rightly [95 % interval]; of the "
        f"disjoint subsets; Kendall's tau to the right order, mean. {population(data)}\n"
    )


def at(model: Mapping[str, Any], measure: str, n: int) -> Mapping[str, Any] | None:
    """What subsets of n pictures found; None where there were too few pictures for that."""
    return next((found for found in model["found"][measure] if found["n"] == n), None)


def order_cell(found: Mapping[str, Any] | None) -> str:
    """Share, interval, disjoint subsets, tau."""
    if found is None:
        return ""
    order = found["order"]
    low, high = order["ci95"]
    right, of = order["disjoint"]
    return (
        f"{percent(order['share'])} [{100 * low:.0f}, {100 * high:.0f}]; {right} of {of}; "
        f"{found['kendall_tau']['mean']:.2f}"
    )


def ranking_pairs() -> str:
    """Every width beside the next worse one, at one n."""
    data = result("ranking")
    order, lines = data["order"], []
    n = max(found["n"] for found in data["models"][0]["found"]["psnr"] if found["n"] <= PAIRS_AT)
    for model in data["models"]:
        found = [at(model, name, n) for name in MEASURES]
        for i, (better, worse) in enumerate(pairwise(order)):
            cells = ["" if one is None else pair_cell(one["pairs"][i]) for one in found]
            lines.append([f"`{model['model']}`", f"{better.upper()} before {worse.upper()}", *cells])
    return table(["model", "pair", *MEASURES.values()], lines) + (
        f"\nShare of subsets of {n} pictures that rank the pair rightly; separation: the mean difference in "
        f"standard deviations of an evaluation of {n} pictures [95 % interval]. Below 0 the worse width looks better "
        "on average. "
        f"{population(data)}\n"
    )


def pair_cell(pair: Mapping[str, Any]) -> str:
    """Share and separation."""
    apart = pair["separation"]
    mean = round(apart["mean"], 1) + 0.0  # no -0.0
    return f"{percent(pair['share'])}; {mean:.1f} {interval(apart['ci95'], 1)}"


def ranking_values() -> str:
    """What each measure says with all pictures."""
    data = result("ranking")
    lines = []
    for model in data["models"]:
        for row in model["rows"]:
            cells = [same_seeds(row), with_error(row["fd_to_real"]), f"{row['accuracy']:.3f}"]
            lines.append(
                [f"`{model['model']}`", row["bits"].upper() if "psnr" in row else row["bits"], *cells[0], *cells[1:]]
            )
    header = ["model", "bits", "PSNR, dB", "SSIM", "FD to full precision", "FD to real pictures", "class accuracy"]
    return table(header, lines) + f"\nMeans [95 % interval]; distances ± standard error. {population(data)}\n"


def same_seeds(row: Mapping[str, Any]) -> Sequence[str]:
    """What is measured to full precision; full precision itself has none of it."""
    if "psnr" not in row:
        return ["", "", ""]
    psnr, ssim = row["psnr"], row["ssim"]
    return [
        f"{psnr['mean']:.1f} {interval(psnr['ci95'], 1)}",
        f"{ssim['mean']:.3f} {interval(ssim['ci95'], 3)}",
        with_error(row["fd_paired"]),
    ]


def widths(data: Result) -> str:
    """``W8, W6, W5``."""
    return ", ".join(bits.upper() for bits in data["order"])


def population(data: Result) -> str:
    """What the numbers are of."""
    return (
        f"{data['n']} pictures a row, {data['steps']} steps, guidance {data['guidance']}; {data['recipe']}. "
        f"Features: {data['features']}."
    )


def coverage() -> str:
    """How often 95 % intervals hold the truth, by kind of interval, case and number of pictures."""
    data = result("coverage")
    rows = data["rows"]
    sizes = sorted({row["n"] for row in rows})
    lines = []
    for what, case in dict.fromkeys((row["what"], row["case"]) for row in rows):
        mine = {row["n"]: row for row in rows if (row["what"], row["case"]) == (what, case)}
        lines.append([what, case, *(coverage_cell(mine.get(n)) for n in sizes)])
    low, high = data["right"]
    return table(["interval of", "case", *(f"n = {n}" for n in sizes)], lines) + (
        f"\nShare of simulated evaluations whose {100 * data['level']:.0f} % interval holds the truth [95 % interval of the "
        f"share]. Aimed at: {100 * low:.0f} to {100 * high:.0f} %; what is outside says so. Refused: too few pictures for an "
        "interval, and the result says that.\n"
    )


def coverage_cell(row: Mapping[str, Any] | None) -> str:
    """Coverage and its own interval; nothing where it was not simulated."""
    if row is None:
        return ""
    if row["coverage"] is None:
        return "refused"
    ends = interval([100 * row["low"], 100 * row["high"]], 1)
    return f"{100 * row['coverage']:.1f} % {ends}{'' if row['right'] else ' (outside)'}"


def trajectory() -> str:
    """Do errors on a few pictures' way rank quantized models as whole evaluations do?"""
    data = result("trajectory")
    fewest = min(line["pictures"] for line in data["correlations"])
    lines = [line for line in data["correlations"] if line["pictures"] == fewest]
    groups = {(line["model"], line["among"]): line["models"] for line in lines}
    found = {(line["model"], line["among"], line["metric"]): line for line in lines}
    rows = []
    for metric in dict.fromkeys(line["metric"] for line in lines):
        cost = next(line["cost"] for line in lines if line["metric"] == metric)
        rows.append(
            [metric.replace("_", " "), f"{100 * cost:.1f} %", *(correlation(found[(*g, metric)]) for g in groups)]
        )
    header = ["metric", "cost", *(f"`zoo:{model}`, {among} ({count})" for (model, among), count in groups.items())]
    return table(header, rows) + (
        f"\nSpearman's rank correlation of the metric on {fewest} pictures with PSNR, and with FD to full precision, on "
        f"{data['n']} pictures of other seeds [{data['interval']}]. In brackets: how many quantized models, and of which "
        f"widths. Cost: denoiser calls of the quantized model, of those that {data['n']} pictures take.\n"
    )


def correlation(line: Mapping[str, Any]) -> str:
    """With PSNR and with FD."""
    found = [line["psnr_db"], line["fd_to_full_precision"]]
    return "; ".join(f"{one['spearman']:.2f} {interval(one['ci95'], 2)}" for one in found)


def if_committed(name: str, make: Callable[[], str]) -> str:
    """The table, or a sentence where nobody has committed the result yet."""
    return make() if (RESULTS / f"{name}.json").is_file() else "Not measured yet.\n"


def kills() -> str:
    """Is a run that was killed again and again the same in the end?"""
    data = result("kills")
    head = [
        "workers killed",
        "drivers killed",
        "stored files of a run",
        "runs compared",
        "identical",
        "workers left over",
    ]
    row = [
        data["worker_kills"],
        data["driver_kills"],
        data["files"],
        data["results"],
        data["identical"],
        data["orphans"],
    ]
    return table(head, [[str(value) for value in row]])


TABLES: Mapping[str, Callable[[], str]] = {
    "ranking": ranking,
    "ranking-pairs": ranking_pairs,
    "ranking-values": ranking_values,
    "coverage": lambda: if_committed("coverage", coverage),
    "trajectory": trajectory,
    "kills": kills,
}
