"""One row of ``coverage``: what is drawn, which interval is taken of it, and what this should hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.populations import Rng

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One row: `holds(truth, rng)` draws a sample, takes the interval and says whether it holds the truth."""

    what: str
    case: str
    n: int
    holds: Callable[[Any, Rng], bool]
    truth: Callable[[], Any]
    modules: tuple[str, ...]
    dimension: int | None = None
    costly: bool = False
    wide: str = ""  # why it may cover more than 98%

    def about(self) -> dict[str, Any]:
        """What the row is about."""
        return {
            "what": self.what,
            "case": self.case,
            "n": self.n,
            "dimension": self.dimension,
            "reason": self.wide or None,
        }


def inside(interval: Interval, truth: float) -> bool:
    """Ends count: a distance of exactly zero is held by an interval that is cut there."""
    return interval[0] <= truth <= interval[1]
