"""Which layers need balancing: how far the largest channel of a token stands out (ViDiT-Q, arXiv 2406.02540).

    incoherence(t) = mean over tokens at noise level t of   max_c |x_c| / mean_c |x_c|

A per-token range is set by the largest channel and spends its codes on all of them: with one outlier the others share what is
left. 1 is a perfectly even token; for independent normal channels it is about ``sqrt(pi ln K)``, which is what a rotation
leaves. It is kept for each quarter of the noise level, because a scale that is found once cannot follow what moves over
time. What counts is the worst quarter: the more a layer's incoherence is, and the more it changes, the more it needs.
"""

import re
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dither.calibrate import Probe
from dither.clock import Clock
from dither.errors import BadRecipe
from dither.models.base import linear_at
from dither.nn import QLinear
from dither.numerics import random_signs, rotate
from dither.spec import Rotation
from dither.stages.base import Job
from dither.stages.channels import ranges_of

__all__ = ["Incoherence", "measure", "named"]

EDGES = (0.25, 0.5, 0.75)
LONGEST_PATTERN = 500
DIGITS = 3


class Incoherence:
    """A probe: the mean of max over mean of each token, by quarter of the noise level.

    Args:
        rotation: look at the input after this rotation.
    """

    def __init__(self, rotation: Rotation | None = None) -> None:
        self.rotation = rotation
        self.total = torch.zeros(len(EDGES) + 1, dtype=torch.float64)
        self.count = torch.zeros(len(EDGES) + 1, dtype=torch.float64)

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input x (B, ..., K); ``rows`` (B,) are the quarters."""
        if (r := self.rotation) is not None:
            x = rotate(x, random_signs(x.shape[-1], r.seed).to(x.device), r.block)
        value = _max_over_mean(x).reshape(-1)  # (tokens,)
        if len(value) % len(rows):  # an input that belongs to every sample
            value = value.repeat(len(rows))
        value = value.reshape(len(rows), -1).double()  # (B, n)
        self.total.index_add_(0, rows.cpu(), value.sum(1).cpu())
        self.count.index_add_(0, rows.cpu(), torch.full((len(rows),), value.shape[1], dtype=torch.float64))

    @property
    def by_time(self) -> list[float]:
        """From low to high noise, in the quarters that were seen; rounded, as notes are stored."""
        seen = self.count > 0
        return [round(v, DIGITS) for v in (self.total[seen] / self.count[seen]).tolist()]


def _max_over_mean(x: Tensor) -> Tensor:
    """x (..., K) to (...,); 1 for a token of zeros."""
    size = x.detach().float().abs()
    mean = size.mean(-1)
    return torch.where(mean > 0, size.amax(-1) / mean, 1.0)


class _Scaled:
    """Shows a probe its layer's input after the online scale that the layer will apply."""

    def __init__(self, probe: Probe, clock: Clock, table: Tensor) -> None:
        self.probe, self.clock, self.table = probe, clock, table

    def update(self, x: Tensor, rows: Tensor) -> None:
        """Take in one call's input."""
        self.probe.update(x * self.clock.pick(self.table, x), rows)


def measure(job: Job, probes: Mapping[str, Sequence[Probe]]) -> None:
    """One pass over the calibration calls; probes see scaled inputs, and the quarter of the noise level of each sample."""
    readers = {name: [_scaled(job, name, p) for p in found] for name, found in probes.items()}
    job.observe("measuring incoherence", readers, ranges_of(job, EDGES))


def _scaled(job: Job, name: str, probe: Probe) -> Probe:
    linear = linear_at(job.model, name)
    if isinstance(linear, QLinear) and linear.spec.pre_scale:
        return _Scaled(probe, job.clock, linear.get_buffer("pre_scale"))
    return probe


def named(field: str, pattern: str, names: Sequence[str]) -> set[str]:
    """Names in which a regular expression is found; all of them if it is empty. BadRecipe names the stage's field.

    A pattern that finds nothing is an error: it is most likely misspelt.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise BadRecipe(f"{field} has {len(pattern)} characters: at most {LONGEST_PATTERN} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError, Warning) as e:
        raise BadRecipe(f"{field} '{pattern}' is not a regular expression: {e}") from None
    found = {name for name in names if compiled.search(name)}
    if not found:
        raise BadRecipe(f"{field} '{pattern}' is found in no layer's name")
    return found
