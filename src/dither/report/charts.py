"""Two small charts as inline SVG: the PSNR of every picture on one scale, and drift over sampling steps.

Colours come from classes in the style sheet, so that both themes work; there are no style attributes, which the
page's content policy would refuse.
"""

import math
from collections.abc import Sequence

from dither.report.form import escape
from dither.report.load import Results, number, numbers

__all__ = ["drift_chart", "psnr_chart"]

WIDTH = 960.0


def psnr_chart(results: Results) -> str:
    """Every picture a dot between `other seeds` (another picture) and the noise floor (the same picture)."""
    values = numbers(results, "psnr_db.per_image")
    mean = number(results, "psnr_db.mean")
    if not values or mean is None:
        return ""
    floor = number(results, "noise_floor.psnr_db")
    other = number(results, "noise_floor.other_seeds_psnr_db")
    marks = [value for value in (floor, other) if value is not None]
    low, high = min([*values, *marks]) - 2, max([*values, *marks]) + 2
    left, right, middle = 24.0, WIDTH - 24, 84.0

    def x(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    parts = [f'<line class="axis" x1="{left}" x2="{right}" y1="132" y2="132"/>']
    for tick in _ticks(low, high, 8):
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="152" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="40" y2="132"/>')
    for index, value in enumerate(values):
        # A fixed irrational stride spreads dots evenly without randomness: the same file gives the same page.
        y = middle + 34 * ((index * 0.6180339887) % 1 - 0.5)
        title = f"<title>picture {index}: {value:.2f} dB</title>"
        parts.append(f'<circle class="dot" cx="{x(value):.1f}" cy="{y:.1f}" r="4">{title}</circle>')
    for mark, name in ((other, "other seeds"), (floor, "noise floor")):
        if mark is not None:
            parts.append(_reference(x(mark), name, f"{mark:.1f} dB", right))
    bounds = numbers(results, "psnr_db.ci95")
    if len(bounds) == 2:
        width = max(x(bounds[1]) - x(bounds[0]), 1.0)
        parts.append(f'<rect class="ci" x="{x(bounds[0]):.1f}" y="56" width="{width:.1f}" height="56" rx="3"/>')
    parts.append(f'<line class="mean" x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="50" y2="118"/>')
    parts.append(f'<text class="strong" x="{x(mean):.1f}" y="46" text-anchor="middle">mean {mean:.1f} dB</text>')
    label = f"PSNR of each picture, mean {mean:.1f} dB"
    return _svg(parts, 176, label, axis="same-seed PSNR in dB: further right is closer to full precision")


def drift_chart(results: Results) -> str:
    """Relative distance of the latents from full precision, after each sampling step."""
    values = numbers(results, "drift.relative")
    timesteps = numbers(results, "drift.timesteps")
    cosines = numbers(results, "drift.cosine")
    if len(values) < 2 or len(timesteps) != len(values):
        return ""
    top = max(*values, 1e-12) * 1.1
    left, right, upper, lower = 64.0, WIDTH - 24, 20.0, 220.0

    def x(index: float) -> float:
        return left + (right - left) * index / (len(values) - 1)

    def y(value: float) -> float:
        return lower - (lower - upper) * value / top

    parts = []
    for tick in _ticks(0, top, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{y(tick) + 5:.1f}" text-anchor="end">{100 * tick:.3g}%</text>'
        )
    stride = max(1, -(-len(values) // 12))
    for index in range(0, len(values), stride):
        parts.append(f'<text class="tick" x="{x(index):.1f}" y="242" text-anchor="middle">{index + 1}</text>')
    line = " ".join(f"{x(index):.1f},{y(value):.1f}" for index, value in enumerate(values))
    parts.append(f'<polygon class="area" points="{left},{lower} {line} {right},{lower}"/>')
    parts.append(f'<polyline class="line" points="{line}"/>')
    for index, value in enumerate(values):
        cosine = f", cosine {cosines[index]:.5f}" if len(cosines) == len(values) else ""
        title = f"step {index + 1}, timestep {timesteps[index]:g}: {100 * value:.3g}%{cosine}"
        parts.append(
            f'<circle class="point" cx="{x(index):.1f}" cy="{y(value):.1f}" r="4"><title>{escape(title)}</title></circle>'
        )
    label = f"Drift after each sampling step, {100 * values[-1]:.3g}% at the end"
    return _svg(parts, 268, label, axis="sampling step, from noise to picture")


def _reference(x: float, label: str, value: str, right: float) -> str:
    anchor = "start" if x < 120 else "end" if x > right - 100 else "middle"
    return (
        f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="40" y2="132"/>'
        f'<text class="tick" x="{x:.1f}" y="12" text-anchor="{anchor}">{escape(label)}</text>'
        f'<text class="tick" x="{x:.1f}" y="27" text-anchor="{anchor}">{escape(value)}</text>'
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round values between `low` and `high`, at most about `count`, a step of 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(parts: Sequence[str], height: float, label: str, axis: str) -> str:
    foot = f'<text class="tick" x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">{escape(axis)}</text>'
    head = f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}">'
    return f'<div class="scroll">{head}{"".join(parts)}{foot}</svg></div>'
