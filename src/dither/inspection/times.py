"""What runs at which noise level, and its mean width over all of them.

Noise levels count by their share of [0, 1], as for a sampler that takes equal steps.
"""

from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any

from dither.clock import Clock
from dither.errors import BadValue
from dither.spec import Act, Codebook, Format, LinearSpec, Spec, Timed

__all__ = ["by_time", "is_quantized", "mean_widths", "specs_run", "width"]


def specs_run(spec: Spec | None) -> tuple[LinearSpec, ...]:
    """What a layer computes, in the order that its ``select`` counts in; nothing for a layer without a spec."""
    if spec is None or isinstance(spec, LinearSpec):
        return () if spec is None else (spec,)
    return spec.variants if isinstance(spec, Timed) else spec.specs


def is_quantized(spec: Spec | None) -> bool:
    """Whether anything of a layer is, at any time; online transforms alone are no quantization."""
    return any(s.weight is not None or s.act is not None for s in specs_run(spec))


def width(fmt: Format | Act | None) -> float | None:
    """Bits of one number's code, without scales; None in full precision."""
    if isinstance(fmt, Codebook):
        bits = fmt.bits / fmt.dim
        return int(bits) if bits.is_integer() else bits
    return fmt.grid.bits if isinstance(fmt, Act) else None if fmt is None else fmt.bits


def by_time(spec: Spec, clock: Clock) -> list[dict[str, Any]] | None:
    """Widths in each time group, from low to high noise, equal neighbours as one; None where time selects nothing.

    Where the branches differ, the wider one is told.
    """
    if isinstance(spec, LinearSpec):
        return None
    rows = [
        {"weight_bits": _widest([w for w, _ in here]), "act_bits": _widest([a for _, a in here])}
        for here in _groups(spec, clock)
    ]
    found = []
    for widths, same in groupby(zip(_edges(clock), rows, strict=True), key=itemgetter(1)):
        spans = [span for span, _ in same]
        found.append({"low": spans[0][0], "high": spans[-1][1], **widths})
    return found


def mean_widths(spec: Spec, clock: Clock, dense: int) -> tuple[float, float | None]:
    """Mean width over time of the weight codes and of the input codes; the latter None if ever in full precision.

    Args:
        spec: of a layer.
        clock: whose rows it selects by.
        dense: bits of a number of a weight in full precision.
    """
    if isinstance(spec, LinearSpec):
        here = width(spec.weight)
        return dense if here is None else here, width(spec.act)
    weight = act = 0.0
    for (low, high), runs in zip(_edges(clock), _groups(spec, clock), strict=True):
        weight += (high - low) * sum(dense if w is None else w for w, _ in runs) / len(runs)
        act += (high - low) * sum(a or 0 for _, a in runs) / len(runs)
    always = all(s.act is not None for s in specs_run(spec))
    return weight, act if always else None


def _groups(spec: Spec, clock: Clock) -> list[list[tuple[float | None, float | None]]]:
    """For each time group, the widths (weight, act) that run in its branches."""
    assert not isinstance(spec, LinearSpec)
    groups, branches = len(clock.edges) + 1, clock.branches
    if len(spec.select) != groups * branches:
        raise BadValue(f"a layer selects by {len(spec.select)} rows of a clock that has {groups * branches}")
    runs = [(width(s.weight), width(s.act)) for s in specs_run(spec)]
    return [[runs[i] for i in spec.select[g * branches : (g + 1) * branches]] for g in range(groups)]


def _edges(clock: Clock) -> list[tuple[float, float]]:
    """Noise levels (low, high) of each time group; six digits, as edges are float32."""
    edges = [0.0, *(round(e, 6) for e in clock.edges.tolist()), 1.0]
    return list(pairwise(edges))


def _widest(widths: list[float | None]) -> float | None:
    known = [w for w in widths if w is not None]
    return max(known) if len(known) == len(widths) else None
