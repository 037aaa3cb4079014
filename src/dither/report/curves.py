"""Curves over sampling steps: what goes wrong where on the way from noise to picture, one line a result.

Teacher-forced error is what one call adds when both models see the same input; drift is what has piled up when both
run freely; the signal-to-noise of the predicted x0 and the amplification by guidance say why.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dither.report.axes import Scale, Tick, clipped, spread, text_width
from dither.report.entries import Entry
from dither.report.form import significant
from dither.report.load import Results, gaps

__all__ = ["Chart", "Curve", "Dot", "step_charts"]

WIDTHS = (500.0, 340.0)
HEIGHT = 264.0
TOP, BOTTOM = 16.0, 214.0
Values = Sequence[float | None]


@dataclass(frozen=True)
class Dot:
    """A measured point and what is said on hover."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """One line: its unbroken pieces as `points` of an SVG polyline, its band, its dots, and its label at the end."""

    name: str
    series: int
    pieces: Sequence[str]
    band: str
    dots: Sequence[Dot]
    end: tuple[float, float] | None
    label_y: float


@dataclass(frozen=True)
class Chart:
    """A chart of several curves, ready to draw."""

    title: str
    about: str
    label: str
    width: float
    height: float
    left: float
    right: float
    bottom: float
    steps: Sequence[Tick]
    values: Sequence[Tick]
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Kind:
    """What a chart shows: where the values lie, and how they are said."""

    title: str
    about: str
    path: str
    bands: tuple[str, str] | None
    percent: bool
    unit: str
    may_log: bool
    parts: tuple[tuple[str, str], ...] = ()


KINDS = (
    Kind(
        "Teacher-forced error", "relative squared error of one call, both models given the same input; band: 95%",
        "trajectory.error.mean", ("trajectory.error.low", "trajectory.error.high"), percent=True, unit="", may_log=True,
        parts=(("conditional", "trajectory.error_conditional"), ("unconditional", "trajectory.error_unconditional")),
    ),
    Kind(
        "Drift", "distance of the latents from full precision, both models running freely",
        "trajectory.drift.relative", None, percent=True, unit="", may_log=True,
    ),
    Kind(
        "Signal to noise of the predicted picture", "x0 as each step predicts it; higher is closer",
        "trajectory.x0_snr_db", None, percent=False, unit=" dB", may_log=False,
    ),
    Kind(
        "Amplification by guidance", "relative error of the guided output over that of its conditional branch",
        "trajectory.guidance_amplification", None, percent=False, unit="×", may_log=False,
    ),
)  # fmt: skip
OLD_DRIFT = "drift.relative"


def step_charts(entries: Sequence[Entry]) -> list[list[Chart]]:
    """For all that at least one entry has values for, the chart for screens and the one for phones.

    Parts of the error are shown only where one result stands alone.
    """
    charts = []
    for kind in KINDS:
        lines: list[tuple[str, int, Entry, Values]] = []
        for entry in entries:
            values = _values(entry.result, kind)
            if sum(value is not None for value in values) > 1:
                lines.append((entry.name, entry.index, entry, values))
            for offset, (name, path) in enumerate(kind.parts if len(entries) == 1 else ()):
                part = gaps(entry.result, path)
                if sum(value is not None for value in part) > 1:
                    lines.append((name, entry.index + offset + 1, entry, part))
        if lines:
            charts.append([_chart(kind, lines, width) for width in WIDTHS])
    return charts


def _values(result: Results, kind: Kind) -> Values:
    found = gaps(result, kind.path)
    return gaps(result, OLD_DRIFT) if not found and kind.path == "trajectory.drift.relative" else found


def _chart(kind: Kind, lines: Sequence[tuple[str, int, Entry, Values]], width: float) -> Chart:
    letters = 18 if width > 400 else 12
    longest = max(1.2 * text_width(clipped(name, letters), 13) for name, *_ in lines) if len(lines) > 1 else 0.0
    right = width - 24 - longest
    bands = [_band(kind, entry) if name == entry.name else None for name, _, entry, _ in lines]
    drawn = [value for *_, values in lines for value in values if value is not None]
    drawn += [value for band in bands if band for side in band for value in side if value is not None]
    y = _scale(kind, drawn)
    ticks = y.ticks(5, kind.percent)
    left = 16 + max((text_width(tick.label) for tick in ticks), default=30.0)
    count = max(len(values) for *_, values in lines)
    x = Scale(0, count - 1, left, right)
    ends = [_last(values) for *_, values in lines]
    label_y = spread([y(end[1]) for end in ends], 15, TOP + 4, BOTTOM)
    curves = [
        _curve(kind, line, band, (x, y), (clipped(line[0], letters), at))
        for line, band, at in zip(lines, bands, label_y, strict=True)
    ]
    stride = max(1, -(-count // (8 if width > 400 else 5)))
    steps = [Tick(x(i), str(i + 1)) for i in range(0, count, stride)]
    said = "; ".join(f"{name} ends at {_say(kind, end[1])}" for (name, *_), end in zip(lines, ends, strict=True))
    label = f"{kind.title} over {count} sampling steps: {said}"
    return Chart(kind.title, kind.about, label, width, HEIGHT, left, right, BOTTOM, steps, ticks, curves)


def _curve(
    kind: Kind,
    line: tuple[str, int, Entry, Values],
    band: tuple[Values, Values] | None,
    scales: tuple[Scale, Scale],
    label: tuple[str, float],
) -> Curve:
    name, series, entry, values = line
    x, y = scales
    timesteps = gaps(entry.result, "trajectory.timesteps") or gaps(entry.result, "drift.timesteps")
    dots: list[Dot] = []
    pieces: list[list[str]] = []
    piece: list[str] = []
    for i, value in enumerate(values):
        if value is None:
            pieces, piece = [*pieces, piece], []
            continue
        piece.append(f"{x(i):.1f},{y(value):.1f}")
        t = timesteps[i] if i < len(timesteps) else None
        at = f"step {i + 1}" + (f", timestep {t:g}" if t is not None else "")
        dots.append(Dot(x(i), y(value), f"{name}\n{at}\n{_say(kind, value)}{_between(kind, band, i)}"))
    last = _last(values)
    joined = [" ".join(part) for part in [*pieces, piece] if part]
    return Curve(label[0], series, joined, _band_points(band, x, y), dots, (x(last[0]), y(last[1])), label[1])


def _band(kind: Kind, entry: Entry) -> tuple[Values, Values] | None:
    if kind.bands is None:
        return None
    low, high = (gaps(entry.result, path) for path in kind.bands)
    length = len(_values(entry.result, kind))
    return (low, high) if len(low) == len(high) == length and None not in low and None not in high else None


def _band_points(band: tuple[Values, Values] | None, x: Scale, y: Scale) -> str:
    if band is None:
        return ""
    low, high = ([(i, value) for i, value in enumerate(side) if value is not None] for side in band)
    return " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in [*high, *reversed(low)])


def _scale(kind: Kind, values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    positive = [value for value in values if value > 0]
    if kind.may_log and positive and max(positive) > 40 * min(positive):
        return Scale(max(min(positive), max(positive) / 1e5) / 1.15, max(positive) * 1.15, BOTTOM, TOP, log=True)
    if kind.percent:
        return Scale(min(low, 0.0), max(high, 1e-12) * 1.08, BOTTOM, TOP)
    room = max(0.08 * (high - low), 1e-3 * max(abs(high), 1e-3))
    return Scale(low - room, high + room, BOTTOM, TOP)


def _last(values: Values) -> tuple[int, float]:
    return next((i, value) for i, value in reversed(list(enumerate(values))) if value is not None)


def _say(kind: Kind, value: float) -> str:
    return f"{significant(100 * value)}%" if kind.percent else f"{significant(value)}{kind.unit}"


def _between(kind: Kind, band: tuple[Values, Values] | None, i: int) -> str:
    low, high = (band[0][i], band[1][i]) if band else (None, None)
    return "" if low is None or high is None else f" ({_say(kind, low)} to {_say(kind, high)})"
