"""From files to entries: every evaluation gets a name, a marker, and the ranks and pairs its comparison found.

Two results count as told apart only when a comparison of pairs says so, or, where none was made, when both their
intervals are known and do not touch. What is not told apart is never ranked, joined by a line or called better.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dither.report.load import Results, bounds, lookup, number, numbers, records, text
from dither.report.metrics import Estimate, Metric, estimate

__all__ = ["Book", "Entry", "Pair", "open_book"]

SETTING = ("model", "n", "seed", "steps", "guidance", "scheduler")


@dataclass(frozen=True)
class Entry:
    """One evaluation: `index` names its marker (colour and shape), `ranks` the places that it may hold by metric."""

    result: Results
    index: int
    name: str
    ranks: Mapping[str, tuple[int, int]]
    setting: int


@dataclass(frozen=True)
class Pair:
    """Difference `a - b` of two entries in one metric, measured picture by picture."""

    difference: float | None
    interval: tuple[float, float] | None
    distinguishable: bool


@dataclass(frozen=True)
class Book:
    """All entries of a page, the pairs that comparisons measured, and how many settings they were measured in."""

    entries: tuple[Entry, ...]
    pairs: Mapping[tuple[str, int, int], Pair]
    settings: int

    def pair(self, metric: Metric, a: int, b: int) -> Pair | None:
        """The pair (a, b), turned round where it was measured as (b, a)."""
        found = self.pairs.get((metric.key, a, b))
        if found is not None:
            return found
        found = self.pairs.get((metric.key, b, a))
        if found is None:
            return None
        difference = None if found.difference is None else -found.difference
        turned = None if found.interval is None else (-found.interval[1], -found.interval[0])
        return Pair(difference, turned, found.distinguishable)

    def apart(self, metric: Metric, a: int, b: int) -> bool:
        """Whether entries a and b are told apart in this metric."""
        x, y = estimate(self.entries[a].result, metric), estimate(self.entries[b].result, metric)
        if x is None or y is None or self.entries[a].setting != self.entries[b].setting:
            return False
        pair = self.pair(metric, a, b)
        return pair.distinguishable if pair is not None else _disjoint(x, y)

    def beats(self, metric: Metric, a: int, b: int) -> bool:
        """Whether entry a is better than entry b, and told apart from it."""
        x, y = estimate(self.entries[a].result, metric), estimate(self.entries[b].result, metric)
        return x is not None and y is not None and metric.better(x.value, y.value) and self.apart(metric, a, b)


def open_book(files: Sequence[Results]) -> Book:
    """Number and name the evaluations in `files`; those of a comparison keep their ranks and pairs."""
    results: list[Results] = []
    ranks: list[dict[str, tuple[int, int]]] = []
    pairs: dict[tuple[str, int, int], Pair] = {}
    for content in files:
        inner = content["results"] if content.get("kind") == "compare" else [content]
        pairs |= _pairs(content, inner, len(results))
        ranks += [_ranks(content, position) for position in range(len(inner))]
        results += inner
    settings: list[list[Any]] = []
    numbered = []
    for result in results:
        setting = [lookup(result, key) for key in SETTING]
        if setting not in settings:
            settings.append(setting)
        numbered.append(settings.index(setting))
    entries = tuple(
        Entry(result, index, name, rank, setting)
        for index, (result, name, rank, setting) in enumerate(
            zip(results, _names(results), ranks, numbered, strict=True)
        )
    )
    return Book(entries, pairs, len(settings))


def _names(results: Sequence[Results]) -> list[str]:
    """Recipe and bits; where two are named alike, the checkpoint too, and a number where even that is the same."""
    names = []
    for result in results:
        parts = [text(result, "recipe.name"), text(result, "bits")]
        names.append(" ".join(part for part in parts if part) or "quantized")
    alike = Counter(names)
    names = [
        f"{name} ({checkpoint})" if alike[name] > 1 and (checkpoint := text(result, "checkpoint")) else name
        for name, result in zip(names, results, strict=True)
    ]
    alike, seen = Counter(names), Counter[str]()
    for position, name in enumerate(names):
        seen[name] += 1
        if alike[name] > 1:
            names[position] = f"{name} #{seen[name]}"
    return names


def _ranks(content: Results, position: int) -> dict[str, tuple[int, int]]:
    found = {}
    listed = lookup(content, "ranks")
    for key, places in listed.items() if isinstance(listed, Mapping) else ():
        place = numbers({"p": places[position]}, "p") if isinstance(places, list) and position < len(places) else []
        if len(place) == 2:
            found[str(key)] = (int(min(place)), int(max(place)))
    return found


def _pairs(content: Results, inner: Sequence[Results], start: int) -> dict[tuple[str, int, int], Pair]:
    found = {}
    for pair in records(content, "pairs") if content.get("kind") == "compare" else ():
        key, a, b = text(pair, "metric"), _place(pair.get("a"), inner), _place(pair.get("b"), inner)
        if key is not None and a is not None and b is not None and a != b:
            said = Pair(number(pair, "difference"), bounds(pair, "ci95"), pair.get("distinguishable") is True)
            found[key, start + a, start + b] = said
    return found


def _place(value: object, inner: Sequence[Results]) -> int | None:
    """A pair names its results by position, or by checkpoint."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(inner):
        return value
    named = [
        index for index, result in enumerate(inner) if isinstance(value, str) and value == result.get("checkpoint")
    ]
    return named[0] if len(named) == 1 else None


def _disjoint(x: Estimate, y: Estimate) -> bool:
    if x.low is None or x.high is None or y.low is None or y.high is None:
        return False
    return x.high < y.low or y.high < x.low
