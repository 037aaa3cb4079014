"""The arithmetic of time: a channel's peaks in several ranges of the noise level become the one that its scale is made of.

With peaks m_t (K,) in ranges t = 1 ... R, and w (K,) of the weights that read the channels:

    max             a = max_t m_t
    mean            a = sum_t m_t / R
    spearman        a = sum_t eta_t m_t        eta_t = exp(-rho_t) / sum_tau exp(-rho_tau)        rho_t = Spearman(m_t, w)
    self-weighted   a_j = sum_t m_tj^2 / sum_t m_tj

``spearman`` is PTQ4DiT's salience calibration (arXiv 2405.16005, equation 10): a range counts for more the less its large
channels are those of the weight too, for there balancing gains most. As -1 <= rho <= 1, no range counts for more than e^2
times another, and a is not far from the mean. ``self-weighted`` is TCAQ-DM's (arXiv 2412.16700): each channel leans towards
the ranges where it is large.

Peaks come before means: a range counts the same however many samples it has. For a single range all four give its peaks.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from scipy.stats import spearmanr
from torch import Tensor

__all__ = ["AGGREGATES", "Aggregate", "largest", "mean", "rank_correlation", "self_weighted", "spearman"]

Aggregate: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From channel peaks m (R, K) and weight peaks w (K,) to a (K,)."""


def largest(m: Tensor, w: Tensor) -> Tensor:
    """max_t m_t."""
    return m.amax(0)


def mean(m: Tensor, w: Tensor) -> Tensor:
    """The mean over ranges."""
    return m.mean(0)


def spearman(m: Tensor, w: Tensor) -> Tensor:
    """The mean over ranges, weighted by how little their channels rank as the weight's do."""
    rho = torch.tensor([rank_correlation(each, w) for each in m], dtype=torch.float64)
    eta = torch.softmax(-rho, 0)  # (R,)
    return (eta.to(m.device)[:, None] * m.double()).sum(0).float()


def self_weighted(m: Tensor, w: Tensor) -> Tensor:
    """Each channel's mean over ranges, weighted by itself; 0 where it is dead in all of them."""
    total = m.double().sum(0)
    return torch.where(total > 0, m.double().square().sum(0) / total, 0.0).float()


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rho of two vectors (K,); 0 where one of them is constant, and so has no ranks."""
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return 0.0
    return float(spearmanr(a.cpu().numpy(), b.cpu().numpy()).statistic)


AGGREGATES: Mapping[str, Aggregate] = {
    "max": largest,
    "mean": mean,
    "spearman": spearman,
    "self-weighted": self_weighted,
}
"""By the names that recipes use."""
