"""Ratios to compiled bfloat16 of the same run, and a table of them. No milliseconds: they compare with nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

BASE = "bfloat16 compiled"
AGAIN = f"{BASE}, again"


def with_ratios(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each cell with how many times faster, and how many times smaller, it is than the base of its case.

    ``same`` says that a difference is within what the base itself moved between first and last, or within the quartiles.
    """
    told = []
    for one in cells:
        base, again = (_found(cells, one["case"], name) for name in (BASE, AGAIN))
        mine = one["found"]
        row = dict(one)
        if isinstance(mine, Mapping) and base is not None:
            for way in ("graph", "no graph"):
                row[f"ratio {way}"] = round(base[way]["ms"] / mine[way]["ms"], 3)
            drift = 0.0 if again is None else abs(again["graph"]["ms"] / base["graph"]["ms"] - 1)
            noise = max(drift, *(t["graph"]["iqr"] / t["graph"]["ms"] for t in (base, mine)))
            row["same"] = abs(row["ratio graph"] - 1) <= noise
            row["smaller"] = round(base["weight_bytes"] / mine["weight_bytes"], 3)
        told.append(row)
    return told


def _found(cells: Sequence[Mapping[str, Any]], case: str, variant: str) -> Mapping[str, Any] | None:
    for one in cells:
        if one["case"] == case and one["variant"] == variant and isinstance(one["found"], Mapping):
            return one["found"]  # type: ignore[no-any-return]
    return None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a variant, a column a case; what did not run says why below."""
    cases = list(dict.fromkeys(r["case"] for r in rows))
    variants = list(dict.fromkeys(r["variant"] for r in rows))
    lines = [
        "| times as fast as compiled bfloat16, in a graph | " + " | ".join(cases) + " |",
        "| --- |" + " --- |" * len(cases),
    ]
    for variant in variants:
        found = {r["case"]: r for r in rows if r["variant"] == variant}
        lines.append(f"| {variant} | " + " | ".join(_words(found.get(case)) for case in cases) + " |")
    why = dict.fromkeys(f"{r['variant']}: {r['found']}" for r in rows if isinstance(r["found"], str))
    return "\n".join([*lines, "", *why])


def _words(row: Mapping[str, Any] | None) -> str:
    if row is None or "ratio graph" not in row:
        return "n/a"
    return f"{row['ratio graph']:.2f}" + (" (no difference)" if row["same"] else "")
