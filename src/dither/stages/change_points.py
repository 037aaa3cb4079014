"""Where a sequence of feature vectors changes: its cut into contiguous segments of least squared error, found exactly.

    cost(i, j) = sum of |f_t - mean of f_i .. f_(j-1)|^2 over i <= t < j
    least(1, j) = cost(0, j)        least(k, j) = min over i < j of least(k - 1, i) + cost(i, j)

That is k-means with the order kept, for which the dynamic program has no local optima (Fisher 1958, "On grouping for maximum
homogeneity"). It takes n^2 K steps, and n is the number of noise levels of a sampler.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Cut", "cut"]


@dataclass(frozen=True)
class Cut:
    """Contiguous segments of a sequence.

    Args:
        starts: index of the first element of each segment but the first; ascending.
        left: share of the squared error about one common mean that is left about the segments' own.
    """

    starts: tuple[int, ...]
    left: float


def cut(features: Tensor, most: int, budget: float = 0.0) -> Cut:
    """The fewest segments that leave at most a share ``budget`` of the squared error, or else what ``most`` segments leave.

    Args:
        features: (n, D), finite.
        most: segments at most, 1 to n.
        budget: share of the squared error about one common mean that may be left.
    """
    cost = _costs(features)  # (n + 1, n + 1)
    least, before = [cost[0]], []  # for each end j, of k segments; and where the last of them begins
    for _ in range(most - 1):
        best = (least[-1][:, None] + cost).min(0)
        least.append(best.values)
        before.append(best.indices)
    errors = [float(row[-1]) for row in least]
    allowed = max(budget * errors[0], errors[-1])
    count = next(k for k, error in enumerate(errors) if error <= allowed)
    starts, end = [], len(features)
    for row in reversed(before[:count]):
        end = int(row[end])
        starts.append(end)
    return Cut(tuple(reversed(starts)), errors[count] / errors[0] if errors[0] else 0.0)


def _costs(features: Tensor) -> Tensor:
    """cost(i, j) for 0 <= i < j <= n, (n + 1, n + 1) float64; infinite where j <= i."""
    x = features.double()
    x = x - x.mean(0)  # prefix sums of small numbers lose few digits
    n = len(x)
    sums = torch.cat([x.new_zeros(1, x.shape[1]), x.cumsum(0)])  # (n + 1, D)
    squares = torch.cat([x.new_zeros(1), x.square().sum(1).cumsum(0)])  # (n + 1,)
    gaps = torch.cdist(sums[None], sums[None], compute_mode="donot_use_mm_for_euclid_dist")[0].square()
    at = torch.arange(n + 1)
    length = at - at[:, None]
    cost = (squares - squares[:, None] - gaps / length.clamp(min=1)).clamp(min=0.0)
    return cost.where(length > 0, torch.inf)
