"""What all tables are made with: a result by name, Markdown, and numbers with what stands around them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from benchmarks.common import RESULTS

__all__ = ["Result", "above_all_others", "interval", "percent", "result", "table", "with_error"]

Result: TypeAlias = Mapping[str, Any]


def result(name: str) -> Result:
    """Contents of a results file."""
    found: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown. A | in a cell would end it, so it is written as Markdown wants it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def interval(ends: Sequence[float], digits: int) -> str:
    """``[low, high]``."""
    low, high = ends
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def ratio(found: Mapping[str, float]) -> str:
    """Median and quartiles."""
    return f"{found['median']:.2f} [{found['q25']:.2f}, {found['q75']:.2f}]"


def floors(rows: Iterable[Result]) -> str:
    """What full precision itself shows, of the rows that are full precision's."""
    return "; ".join(
        f"`{row['model']}` {row['psnr_db']['other_batch_size']:.1f} dB in another batch size, "
        f"{row['psnr_db']['other_seeds']:.1f} dB with other seeds, for which an FD of {row['fd']['noise_floor']:.2f} is "
        "expected"
        for row in rows
        if not row["bits"]
    )


def psnr_of(row: Result) -> str:
    """Mean and interval in dB."""
    return f"{row['psnr_db']['mean']:.1f} {interval(row['psnr_db']['ci95'], 1)}"


def distance_of(row: Result) -> str:
    """FD to full precision with its standard error."""
    return with_error({"value": row["fd"]["to_full_precision"], "se": row["fd"]["to_full_precision_se"]})


def percent(share: float) -> str:
    """A share without decimals; 100 only where it is 1."""
    return f"{min(round(100 * share), 99) if share < 1 else 100} %"


def with_error(estimate: Mapping[str, float]) -> str:
    """``1.23 ± 0.04``: a value and its standard error."""
    return f"{estimate['value']:.3g} ± {estimate['se']:.2g}"


def above_all_others(intervals: Sequence[Sequence[float]]) -> int | None:
    """Which interval lies above all others; None where the best are not told apart, or there is only one.

    Intervals that overlap may still be of distinguishable results, since pictures are paired: this only errs on the side of
    ranking less.
    """
    if len(intervals) < 2:
        return None
    best = max(range(len(intervals)), key=lambda i: intervals[i][0])
    others = max(high for i, (_, high) in enumerate(intervals) if i != best)
    return best if intervals[best][0] > others else None
