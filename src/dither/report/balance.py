"""What stages noted of channel balance: incoherence by noise level before and after rotation, and the chosen alphas.

Incoherence is the largest over the mean channel magnitude of a token; 1 is perfectly even. Layers of a block that read the
same input share a row. The worst come first. All small charts have one logarithmic scale, so that heights compare.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dither.report.blocks import block_of, block_title, layer_names
from dither.report.form import DASH, decimals, significant
from dither.report.load import Results, items, lookup, number, numbers, records, text

__all__ = ["Balance", "Line", "Spark", "balance"]

SPARK_WIDTH, SPARK_HEIGHT, EDGE = 104.0, 34.0, 6.0
SKIPPED = ("smooth", "timed_smooth", "balance")
"""Keys of notes that say in words why a stage left a layer alone."""


@dataclass(frozen=True)
class Spark:
    """Dots of one layer, in the order of sampling: `points` joins them, `dots` are their places."""

    points: str
    dots: Sequence[tuple[float, float]]
    series: int


@dataclass(frozen=True)
class Line:
    """Layers that share what was noted: the worst quarter before and after rotation, whether they were left as they
    were, and the alphas."""

    place: str
    name: str
    layers: str
    sparks: Sequence[Spark]
    said: str
    before: float | None
    worst: str
    left: bool
    alpha: tuple[str, float | None]


@dataclass(frozen=True)
class Balance:
    """All lines, which columns have anything in them, and sentences."""

    lines: Sequence[Line]
    measured: bool
    turned: bool
    scaled: bool
    summary: Sequence[str]
    reasons: Sequence[str]


@dataclass(frozen=True)
class _Site:
    """Layers of one block with the same notes; values in the order of sampling."""

    rows: Sequence[Mapping[str, Any]]
    block: str
    facts: Mapping[str, Any]

    @property
    def before(self) -> list[float]:
        return _sampled(self.facts, "incoherence")

    @property
    def after(self) -> list[float]:
        return _sampled(self.facts, "incoherence_rotated")

    @property
    def alphas(self) -> list[str]:
        """One for each range in the order of sampling; `none` where no scale was the best."""
        if "smooth_alpha" in self.facts:
            return [_alpha(self.facts["smooth_alpha"])]
        listed = lookup(self.facts, "timed_smooth_alpha")
        return [_alpha(value) for value in reversed(listed)] if isinstance(listed, list) else []


def balance(result: Results) -> Balance | None:
    """What was noted, worst layers first; None where no stage noted anything about channels."""
    sites = [site for site in _sites(result) if site.before or site.alphas]
    if not sites:
        return None
    values = [value for site in sites for value in (*site.before, *site.after)]
    top = max([*values, 2.0])
    several = len({site.block.rpartition(".")[0] for site in sites if site.block}) > 1
    ordered = sorted(sites, key=lambda site: -max([*site.before, 0.0]))
    beside: dict[str, list[Mapping[str, Any]]] = {}
    for site in sites:
        beside.setdefault(site.block, []).extend(site.rows)
    lines = [_line(site, beside[site.block], several, top) for site in ordered]
    return Balance(
        lines, any(site.before for site in sites), any(site.after for site in sites),
        any(site.alphas for site in sites), _summary(sites), _reasons(result),
    )  # fmt: skip


def _sites(result: Results) -> list[_Site]:
    rows = {text(row, "name"): row for row in records(result, "layers.rows")}
    order = {name: i for i, name in enumerate(rows)}
    found: dict[tuple[str, str], _Site] = {}
    for name, facts in sorted(items(result, "notes"), key=lambda pair: order.get(pair[0], len(order))):
        if not isinstance(facts, Mapping):
            continue
        row = rows.get(name, {"name": name})
        own = {
            key: value for key, value in facts.items() if key.startswith(("incoherence", "rotated")) or "alpha" in key
        }
        key = block_of(row), repr(sorted(own.items(), key=lambda pair: str(pair[0])))
        before = found[key].rows if key in found else ()
        found[key] = _Site((*before, row), key[0], own)
    return list(found.values())


def _sampled(facts: Mapping[str, Any], key: str) -> list[float]:
    """Positive values, turned round: notes are from low to high noise."""
    values = numbers(facts, key)
    return values[::-1] if all(value > 0 for value in values) else []


def _alpha(value: object) -> str:
    found = number({"alpha": value}, "alpha")
    return "none" if value is None else DASH if found is None else f"{found:.3g}"


def _line(site: _Site, beside: Sequence[Mapping[str, Any]], several: bool, top: float) -> Line:
    before, after, alphas = site.before, site.after, site.alphas
    said = "; ".join(
        f"{when}: {', '.join(significant(value) for value in values)}"
        for when, values in (("before rotation", before), ("after", after))
        if values
    )
    return Line(
        block_title(site.block, site.block, several),
        layer_names(site.rows, beside),
        ", ".join(text(row, "name") or "" for row in site.rows),
        [_spark(values, series, top) for values, series in ((before, 1), (after, 0)) if values],
        said,
        max(before, default=None),
        " → ".join(decimals(max(values), 1) for values in (before, after) if values) or DASH,
        site.facts.get("rotated") is False,
        (" · ".join(alphas), number({"a": alphas and site.facts.get("smooth_alpha")}, "a")),
    )


def _spark(values: Sequence[float], series: int, top: float) -> Spark:
    step = (SPARK_WIDTH - 2 * EDGE) / max(len(values) - 1, 1)
    start = EDGE if len(values) > 1 else SPARK_WIDTH / 2
    room = SPARK_HEIGHT - 2 * EDGE
    dots = [
        (round(start + step * i, 1), round(SPARK_HEIGHT - EDGE - room * max(math.log(v), 0.0) / math.log(top), 1))
        for i, v in enumerate(values)
    ]
    return Spark(" ".join(f"{x},{y}" for x, y in dots), dots, series)


def _summary(sites: Sequence[_Site]) -> list[str]:
    """What rotation did to the outliers, and where the alphas lie."""
    found = []
    both = [(max(site.before), max(site.after)) for site in sites if site.before and site.after]
    if both:
        layers = sum(len(site.rows) for site in sites if site.before)
        turned = sum(len(site.rows) for site in sites if site.facts.get("rotated") is True)
        found.append(
            f"Where it was measured, rotation takes the incoherence of the worst quarter from {max(b for b, _ in both):.1f}"
            f" to {max(a for _, a in both):.1f} at most, and from {median(b for b, _ in both):.1f} to"
            f" {median(a for _, a in both):.1f} in the median; {turned} of {layers} layers were rotated."
        )
    return found


def _reasons(result: Results) -> list[str]:
    """Why stages left layers alone, each reason once."""
    counts: dict[str, int] = {}
    for _, facts in items(result, "notes"):
        for key in SKIPPED:
            if said := lookup(facts, key) if isinstance(facts, Mapping) else None:
                counts[str(said)] = counts.get(str(said), 0) + isinstance(said, str)
    return [f"{count} layers {said.rstrip('.')}." for said, count in counts.items() if count]
