"""The geometry that all charts share: scales with round ticks, marker shapes, and labels that never overlap.

Colours come from classes in the style sheet, so that both themes work; there are no style attributes, which the page's
content policy would refuse. Every series has a shape or a dash pattern beside its colour, never colour alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["COLOURS", "DASHES", "SHAPES", "Box", "Scale", "Tick", "clipped", "place", "spread", "text_width"]

COLOURS = 7
"""How many series colours the style sheet has (`.s0` to `.s6`)."""
DASHES = 4
SHAPES = (
    "M-5,0a5,5 0 1 0 10,0a5,5 0 1 0 -10,0z",
    "M-4.6,-4.6h9.2v9.2h-9.2z",
    "M0,-6L5.6,4.4H-5.6z",
    "M0,-6.2L6.2,0L0,6.2L-6.2,0z",
    "M0,6L5.6,-4.4H-5.6z",
    "M-2,-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
    "M0,-6.5L1.9,-2.2L6.3,-1.9L3,1.2L4,5.7L0,3.3L-4,5.7L-3,1.2L-6.3,-1.9L-1.9,-2.2z",
    "M-3,-5.4h6l3,5.4l-3,5.4h-6l-3,-5.4z",
)
"""Outlines of markers round the origin. Their number shares no factor with COLOURS: 56 series before one repeats."""


@dataclass(frozen=True)
class Tick:
    """A tick: where on the axis in pixels, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """Map values from `low`..`high` to pixels `start`..`end`, in equal steps or in equal ratios."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Pixel of a value; what lies outside is drawn at the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * share

    def ticks(self, count: int, percent: bool = False) -> list[Tick]:
        """About `count` round ticks."""
        values = log_ticks(self.low, self.high, count) if self.log else round_ticks(self.low, self.high, count)
        return [Tick(self(value), tick_label(value, percent)) for value in values]


def tick_label(value: float, percent: bool = False) -> str:
    """Say a tick's value in few characters."""
    return (f"{100 * value:.4g}%" if percent else f"{value:.4g}").replace("-", "−")


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between `low` and `high`, at most about `count`, a step of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten between `low` and `high`; 2 and 5 between them where there is room, or round steps in a short range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{f}e{d}") for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= count:
            break
    while len(found) > count:
        found = found[::2]
    return found if len(found) > 1 else round_ticks(low, high, count)


def text_width(value: str, size: float = 14.0) -> float:
    """About how wide text is drawn, in pixels: good enough to keep labels apart."""
    return sum(0.3 if c in "iljt.,:' |" else 0.85 if c in "mwMW%" else 0.58 for c in value) * size


def clipped(name: str, longest: int = 18) -> str:
    """Shorten a name for a label; tables and tooltips have the whole."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels that something occupies."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Area shared with another box."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return width * height if width > 0 and height > 0 else 0.0


def place(x: float, y: float, label: str, taken: Sequence[Box], inside: Box) -> Box | None:
    """Find a free box for the label of a mark at (x, y), nearest places first; None where all are taken."""
    width, height = text_width(label) + 4, 16.0
    for distance in (10.0, 24.0, 40.0, 58.0, 80.0, 110.0):
        near = distance + width / 2
        slant = 0.7 * distance + width / 2
        places = (
            (near, 0.0), (-near, 0.0), (0.0, -distance - 8), (0.0, distance + 8),
            (slant, -distance), (slant, distance), (-slant, -distance), (-slant, distance),
        )  # fmt: skip
        for dx, dy in places:
            centre, middle = x + dx, y + dy
            box = Box(centre - width / 2, middle - height / 2, centre + width / 2, middle + height / 2)
            fits = inside.left <= box.left and box.right <= inside.right
            fits = fits and inside.top <= box.top and box.bottom <= inside.bottom
            if fits and not any(box.overlap(other) for other in taken):
                return box
    return None


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart until neighbours are `gap` away, staying within `low`..`high` and in order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    placed = [0.0] * len(wanted)
    least = low
    for i in order:
        placed[i] = max(wanted[i], least)
        least = placed[i] + gap
    most = high
    for i in reversed(order):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed
