"""The PSNR of every picture on one scale, between `other seeds` (another picture) and the noise floor (the same one)."""

from collections.abc import Sequence
from dataclasses import dataclass

from dither.report.axes import Scale, Tick
from dither.report.load import Results, bounds, number, numbers

__all__ = ["Reference", "Strip", "psnr_strips"]

WIDTHS = (960.0, 380.0)
GOLDEN = 0.6180339887
"""A fixed irrational stride spreads dots evenly without randomness: the same file gives the same page."""


@dataclass(frozen=True)
class Reference:
    """A dashed line with a name and a value above it."""

    x: float
    anchor: str
    name: str
    value: str


@dataclass(frozen=True)
class Strip:
    """The chart, ready to draw."""

    width: float
    height: float
    left: float
    right: float
    dots: Sequence[tuple[float, float, str]]
    ticks: Sequence[Tick]
    references: Sequence[Reference]
    interval: tuple[float, float] | None
    mean: float
    mean_label: str
    label: str


def psnr_strips(result: Results) -> list[Strip]:
    """The strip for screens and the one for phones; none where the file lists no pictures."""
    values, mean = numbers(result, "psnr_db.per_image"), number(result, "psnr_db.mean")
    return [] if not values or mean is None else [_strip(result, values, mean, width) for width in WIDTHS]


def _strip(result: Results, values: Sequence[float], mean: float, width: float) -> Strip:
    named = [("other seeds", number(result, "noise_floor.other_seeds_psnr_db"))]
    named.append(("noise floor", number(result, "noise_floor.psnr_db")))
    marks = [value for _, value in named if value is not None]
    x = Scale(min([*values, *marks]) - 2, max([*values, *marks]) + 2, 24.0, width - 24)
    dots = [
        (x(value), 84 + 34 * ((index * GOLDEN) % 1 - 0.5), f"picture {index}: {value:.2f} dB")
        for index, value in enumerate(values)
    ]
    references = [
        Reference(x(value), _anchor(x(value), width), name, f"{value:.1f} dB")
        for name, value in named
        if value is not None
    ]
    found = bounds(result, "psnr_db.ci95")
    return Strip(
        width, 180.0, 24.0, width - 24, dots, x.ticks(8 if width > 600 else 5), references,
        (x(found[0]), max(x(found[1]) - x(found[0]), 1.0)) if found else None,
        x(mean), f"mean {mean:.1f} dB", f"PSNR of each of {len(values)} pictures, mean {mean:.1f} dB",
    )  # fmt: skip


def _anchor(x: float, width: float) -> str:
    return "start" if x < 60 else "end" if x > width - 60 else "middle"
