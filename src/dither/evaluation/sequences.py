"""Confidence sequence: an interval of a mean that stays valid however often one looks at it.

A 95% t interval that is looked at after every batch, stopping when it leaves zero, is wrong in about 40% of the
searches where nothing differs. The asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas:
arXiv 2103.06476) covers the mean at all times at once, with probability 1 - a:

    mean_t +- s_t sqrt( 2 (t r^2 + 1) / (t^2 r^2) * log( sqrt(t r^2 + 1) / a ) ),
    r^2 = (-2 log a + log(1 - 2 log a)) / t0

where r makes it narrowest near t = t0. It rests on a central limit, so it says nothing before t0 values. Feed it
paired differences of a quantity without heavy tails (PSNR in dB, log error), never raw squared errors.
"""

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from dither.errors import BadValue

__all__ = ["START", "ConfidenceSequence", "Verdict"]

START = 64  # values before the first interval: earlier the central limit does not hold


class Verdict(Enum):
    """What the differences (candidate minus rival, higher is better) have shown so far."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"


@dataclass
class ConfidenceSequence:
    """Running interval of the mean of paired differences; a verdict once reached stays.

    Args:
        alpha: probability that the mean is ever outside, over all looks together.
        start: no interval before this many values; also where it is tuned to be narrowest.
    """

    alpha: float = 0.05
    start: int = START
    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean
    verdict: Verdict = Verdict.UNDECIDED

    def __post_init__(self) -> None:
        if not (0 < self.alpha < 1 and self.start >= 2):
            raise BadValue(f"a confidence sequence needs 0 < alpha < 1 and start >= 2, got {self.alpha}, {self.start}.")

    def add(self, differences: npt.ArrayLike) -> Verdict:
        """Take a batch of differences (M,) and say what all of them show. One look per batch, as many as one likes."""
        x = np.asarray(differences, dtype=np.float64)
        if x.ndim != 1 or not np.isfinite(x).all():
            raise BadValue(f"differences must be finite and of one axis, got shape {x.shape}.")
        if len(x) == 0:
            return self.verdict
        # Chan's merge: a sum of squares would lose the spread of values with a large mean.
        total, shift = self.count + len(x), float(x.mean()) - self.mean
        self.squares += float(np.square(x - x.mean()).sum()) + shift**2 * self.count * len(x) / total
        self.mean += shift * len(x) / total
        self.count = total
        interval = self.interval()
        if self.verdict is Verdict.UNDECIDED and interval is not None:
            if interval[0] > 0:
                self.verdict = Verdict.BETTER
            elif interval[1] < 0:
                self.verdict = Verdict.WORSE
        return self.verdict

    def interval(self) -> tuple[float, float] | None:
        """Interval of the mean now; None before `start` values."""
        t = self.count
        if t < self.start:
            return None
        log_alpha = math.log(self.alpha)
        r2 = (-2 * log_alpha + math.log(1 - 2 * log_alpha)) / self.start
        spread = math.sqrt(self.squares / (t - 1))
        half = spread * math.sqrt(2 * (t * r2 + 1) / (t * t * r2) * math.log(math.sqrt(t * r2 + 1) / self.alpha))
        return self.mean - half, self.mean + half
