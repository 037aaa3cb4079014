"""How many pictures a comparison needs, and what a given number of them can show.

A difference is detectable if a two-sided test at level a finds it with the wanted power:

    difference = (z_(1 - a/2) + z_power) * SE = 2.80 SE          at 5 % and 80 %
    n          = (z_(1 - a/2) + z_power)^2 (sd / difference)^2 = 7.85 (sd / difference)^2

For pairs drawn with the same seeds, sd is that of the paired differences: far smaller than that of the pictures.
"""

import math

from scipy import stats

from dither.errors import BadValue

__all__ = ["detectable_difference", "samples_needed"]


def detectable_difference(standard_error: float, *, power: float = 0.8, level: float = 0.95) -> float:
    """Smallest true difference that is found with probability `power`, in the units of `standard_error`."""
    if not (math.isfinite(standard_error) and standard_error >= 0):
        raise BadValue(f"a standard error must be finite and not negative, got {standard_error}.")
    return _factor(power, level) * standard_error


def samples_needed(sd: float, difference: float, *, power: float = 0.8, level: float = 0.95) -> int:
    """Pictures needed to find a mean `difference` when paired differences have standard deviation `sd`; at least 2."""
    if not (math.isfinite(sd) and sd >= 0 and math.isfinite(difference) and difference != 0):
        raise BadValue(f"needs sd >= 0 and a difference other than 0, both finite; got {sd} and {difference}.")
    return max(2, math.ceil((_factor(power, level) * sd / difference) ** 2))


def _factor(power: float, level: float) -> float:
    if not (0 < level < 1 and 0.5 <= power < 1):
        raise BadValue(f"needs 0 < level < 1 and 0.5 <= power < 1, got {level} and {power}.")
    return float(stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power))
