"""Whether post-softmax probabilities fall off as a power law: which quantizer suits them (TCAQ-DM's DAQ, arXiv 2412.16700).

    R = sum over values x >= x_min of   log p_power(x) - log p_exponential(x)       R > 0: powers of two, else uniform steps

    p_power(x) = (a - 1) / x_min (x / x_min)^-a          a = 1 + n / sum log(x / x_min)
    p_exponential(x) = l exp(-l (x - x_min))             l = n / sum (x - x_min)

both at their maximum likelihood (Clauset, Shalizi, Newman, arXiv 0706.1062, appendix B). R alone does not say whether it
could be chance; Vuong's test does, with sigma the standard deviation of the n terms of R:

    z = R / (sigma sqrt n)          p = erfc(|z| / sqrt 2)

The paper tells that the ratio of a power law to another law, both fitted by maximum likelihood, decides. That the other law
is the exponential one, that both begin at a small quantile, and the test are this file's reading of it.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from dither.errors import BadValue

__all__ = ["LikelihoodRatio", "power_law_ratio"]


@dataclass(frozen=True)
class LikelihoodRatio:
    """A power law against an exponential one.

    Args:
        ratio: R, in nats.
        z: R in units of its own standard deviation.
        p: chance of a z as far from 0, if both laws were equally far from the truth.
        exponent: a of the power law.
        start: x_min.
        count: n, values from there on.
    """

    ratio: float
    z: float
    p: float
    exponent: float
    start: float
    count: int

    @property
    def power_law(self) -> bool:
        """Whether the power law is the likelier one."""
        return self.ratio > 0


def power_law_ratio(x: Tensor, quantile: float = 0.01) -> LikelihoodRatio:
    """The ratio for sampled values.

    Args:
        x: (n,), positive.
        quantile: of x, which is x_min; values below belong to neither law.

    Raises:
        BadValue: no values, values that are not positive numbers, or fewer than two different ones.
    """
    if not 0 <= quantile < 1:
        raise BadValue(f"quantile {quantile}: must lie in [0, 1)")
    values = x.detach().double().cpu().numpy()
    if values.ndim != 1 or not len(values):
        raise BadValue(f"a power law is fitted to a row of values, not to shape {values.shape}")
    if bad := int((~(np.isfinite(values) & (values > 0))).sum()):
        raise BadValue(f"{bad} of {len(values)} values are not positive numbers, and no power law reaches them")
    start = float(np.quantile(values, quantile, method="lower"))  # one of the values, so that the least can be x_min
    tail = values[values >= start]
    if start == tail.max():
        raise BadValue(f"all {len(tail)} values from the {quantile} quantile on are {start:g}: no law can be fitted")
    slope = 1 / np.log(tail / start).mean()  # a - 1
    power = stats.pareto.logpdf(tail, slope, scale=start)
    exponential = stats.expon.logpdf(tail, loc=start, scale=tail.mean() - start)
    terms = power - exponential
    ratio, z = float(terms.sum()), float(terms.sum() / (terms.std() * np.sqrt(len(tail))))
    return LikelihoodRatio(ratio, z, float(2 * stats.norm.sf(abs(z))), float(1 + slope), start, len(tail))
