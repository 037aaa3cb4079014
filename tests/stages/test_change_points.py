"""Segments of least squared error, against all there are."""

from itertools import combinations, pairwise

import pytest
import torch

from dither.stages.change_points import cut


def error(features: torch.Tensor, starts: tuple[int, ...]) -> float:
    bounds = (0, *starts, len(features))
    parts = [features[a:b].double() for a, b in pairwise(bounds)]
    return sum(float((p - p.mean(0)).square().sum()) for p in parts)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [1, 2, 3, 5, 9])
def test_no_other_cut_leaves_less(seed, most):
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(seed)).cumsum(0)
    found = cut(x, most)
    assert len(found.starts) == most - 1
    assert list(found.starts) == sorted(set(found.starts))
    assert all(0 < s < 9 for s in found.starts)
    least = min(error(x, starts) for starts in combinations(range(1, 9), most - 1))
    assert error(x, found.starts) == pytest.approx(least, abs=1e-9)
    assert found.left == pytest.approx(least / error(x, ()), abs=1e-12)


def test_steps_are_found_in_noise():
    levels = torch.tensor([0.0, 5.0, 5.5, -3.0]).repeat_interleave(torch.tensor([7, 3, 10, 20]))
    x = levels[:, None] + 0.01 * torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    assert cut(x, 4).starts == (7, 10, 20)
    assert cut(x, 3).starts == (7, 20)  # the small step goes first


@pytest.mark.parametrize("budget", [0.5, 0.2, 0.05, 0.01])
def test_a_budget_takes_the_fewest_segments_that_keep_it(budget):
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).cumsum(0)
    left = [cut(x, k).left for k in range(1, 13)]
    found = cut(x, 12, budget)
    want = next(k for k, share in enumerate(left, 1) if share <= budget)
    assert 1 < want < 12
    assert found == cut(x, want)
    assert left[want - 2] > budget


def test_a_budget_that_cannot_be_kept_takes_all_there_are():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)).cumsum(0)
    found = cut(x, 2, 1e-6)
    assert found == cut(x, 2)
    assert found.left > 1e-6


def test_what_never_changes_is_one_segment():
    assert cut(torch.full((8, 3), 0.3), 4).starts == ()
    assert cut(torch.full((8, 3), 0.3), 4).left == 0
    assert cut(torch.tensor([[1.0]]), 1).starts == ()


def test_a_common_offset_changes_nothing():
    """Prefix sums of squares lose digits to a large mean, unless it is taken off before."""
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).cumsum(0)
    near, far = cut(x, 4), cut(x + 1e6, 4)
    assert far.starts == near.starts
    assert far.left == pytest.approx(near.left, rel=1e-6)
