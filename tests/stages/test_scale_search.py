"""Searches for scales: against plain loops over the objective."""

import pytest
import torch

from dither.errors import BadRecipe
from dither.numerics import act_quantize, range_table
from dither.spec import Act, Int, Log2, TwoRegion
from dither.stages.scale_search import Ratios, group_ranges, has_candidates, search, shrunk, weighted_error

RATIOS = Ratios("test", 0.3, 1.1, 7)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ratios_leave_the_last_out():
    assert list(Ratios("test", 0.01, 1.2, 100))[:2] == pytest.approx([0.01, 0.0219])
    assert list(Ratios("test", 0.5, 1.5, 4)) == pytest.approx([0.5, 0.75, 1.0, 1.25])


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (Ratios("test", 0.1, 1.0, 0), r"test\.steps 0: must be 1 to 1000"),
        (Ratios("test", 0.1, 1.0, 1001), r"test\.steps 1001"),
        (Ratios("test", 0.0, 1.0, 5), r"test\.low 0: must be positive"),
        (Ratios("test", float("nan"), 1.0, 5), r"test\.low nan"),
        (Ratios("test", 0.5, 0.5, 5), r"test\.high 0\.5: must be finite, and above low, which is 0\.5"),
        (Ratios("test", 0.5, float("inf"), 5), r"test\.high inf"),
    ],
)
def test_bad_ratios_are_named(ratios, words):
    with pytest.raises(BadRecipe, match=words):
        ratios.check()


def test_candidates_shrink_both_ends_or_the_upper_region_alone():
    lo, hi = torch.tensor([[-1.0]]), torch.tensor([[3.0]])
    for ratio, table in zip(RATIOS, shrunk(lo, hi, Int(4, False), RATIOS), strict=True):
        assert float(table["scale"]) == pytest.approx(4 * ratio / 15)
        assert int(table["zero"]) == 4  # 15 / 4, whatever the ratio
    for ratio, table in zip(RATIOS, shrunk(lo, hi, TwoRegion(4, signed=True), RATIOS), strict=True):
        assert (float(table["scale"]), float(table["upper"])) == pytest.approx((1 / 8, 3 * ratio / 7))
    assert [has_candidates(g) for g in (Int(4), TwoRegion(4, signed=True), TwoRegion(4), Log2(4))] == [
        True, True, False, False,
    ]  # fmt: skip


def test_the_error_is_a_plain_double_sum():
    gap, weight = randn(5, 3), randn(5, 3, seed=1).square()
    want = [sum(float(weight[t, a] * gap[t, a] ** 2) for t in range(5)) for a in range(3)]
    assert weighted_error(gap, weight).tolist() == pytest.approx(want, rel=1e-5)


def loop(start, candidates, part, target, weight):
    """The same search by definition: every candidate of every group and output, whole errors in float64."""
    outputs, groups = next(iter(start.values())).shape
    now = {key: t.clone() for key, t in start.items()}

    def error(table, a):
        z = sum(part(j, {k: t[:, j : j + 1] for k, t in table.items()}) for j in range(groups)).double()
        each = (weight.double() * (z - target.double()).square()).sum(0)
        return float(each[a] if outputs > 1 else each.sum())

    for j in range(groups):
        for a in range(outputs):
            best = error(now, a)
            for table in list(candidates(j)):
                other = {key: t.clone() for key, t in now.items()}
                for key, tensor in other.items():
                    tensor[a, j] = table[key][a, 0]
                if error(other, a) < best * (1 - 1e-6):
                    now, best = other, error(other, a)
    return now


@pytest.mark.parametrize("grid", [Int(3, group=4), Int(3, False, group=4), Int(1, group=4)], ids=str)
def test_tables_of_outputs_are_those_of_a_plain_loop(grid):
    x, w, weight = randn(20, 12), randn(5, 12, seed=1), randn(20, 5, seed=2).square()
    lo, hi = (f(w.reshape(5, 3, 4), -1) for f in (torch.amin, torch.amax))  # (N, G)
    lo, hi = lo.clamp(max=0), hi.clamp(min=0)

    def part(j, table):
        return x[:, 4 * j : 4 * j + 4] @ act_quantize(w[:, 4 * j : 4 * j + 4], grid, table).T

    def candidates(j):
        return shrunk(lo[:, j : j + 1], hi[:, j : j + 1], grid, RATIOS)

    start, target = range_table(lo, hi, grid), x @ w.T
    found, error = search(start, candidates, part, target, weight)
    want = loop(start, candidates, part, target, weight)
    assert any(not torch.equal(start[key], want[key]) for key in start)
    for key in start:
        torch.testing.assert_close(found[key], want[key])
        assert found[key].dtype == start[key].dtype
    z = sum(part(j, {k: t[:, j : j + 1] for k, t in found.items()}) for j in range(3))
    assert error == pytest.approx(float((weight * (z - target).square()).sum()), rel=1e-4)


def test_a_table_that_all_outputs_share_goes_by_their_sum():
    x, w, weight = randn(30, 8), randn(4, 8, seed=1), randn(30, 4, seed=2).square() * torch.tensor([100.0, 1, 1, 1])
    x[0] *= 5
    grid = Int(4, False, group=4)
    lo, hi = (f(x.reshape(30, 2, 4), (0, 2))[None] for f in (torch.amin, torch.amax))  # (1, G)

    def part(j, table):
        return act_quantize(x[:, 4 * j : 4 * j + 4], grid, table) @ w[:, 4 * j : 4 * j + 4].T

    def candidates(j):
        return shrunk(lo[:, j : j + 1], hi[:, j : j + 1], grid, RATIOS)

    start = range_table(lo, hi, grid)
    found, _ = search(start, candidates, part, x @ w.T, weight)
    want = loop(start, candidates, part, x @ w.T, weight)
    assert not torch.equal(start["scale"], want["scale"])
    torch.testing.assert_close(found, want)


def test_what_no_candidate_betters_stays():
    """Nothing has weight, so all candidates are as good as the start."""
    x, w = randn(6, 4), randn(3, 4, seed=1)
    start = range_table(w.amin(1, keepdim=True), w.amax(1, keepdim=True), Int(4))
    found, error = search(
        start,
        lambda j: shrunk(w.amin(1, keepdim=True), w.amax(1, keepdim=True), Int(4), RATIOS),
        lambda j, table: x @ act_quantize(w, Int(4), table).T,
        x @ w.T,
        torch.zeros(6, 3),
    )
    assert torch.equal(found["scale"], start["scale"])
    assert error == 0


def test_products_of_two_matrices_are_searched_alike():
    """The scores q k^T of attention, one table for a head each."""
    q, k = randn(10, 8), randn(12, 8, seed=1)
    q[0] *= 6
    grid = Int(4, group=4)
    lo, hi = (f(q.reshape(10, 2, 4), (0, 2))[None] for f in (torch.amin, torch.amax))  # (1, heads)
    start, weight = range_table(lo, hi, grid), torch.ones(10, 12)
    weight[0] = 1e-6  # the outlier does not count
    table, error = search(
        start,
        lambda j: shrunk(lo[:, j : j + 1], hi[:, j : j + 1], grid, RATIOS),
        lambda j, t: act_quantize(q[:, 4 * j : 4 * j + 4], grid, t) @ k[:, 4 * j : 4 * j + 4].T,
        q @ k.T,
        weight,
    )
    assert bool((table["scale"] < 0.6 * start["scale"]).all())
    gap = act_quantize(q, grid, table) @ k.T - q @ k.T
    assert error == pytest.approx(float((weight * gap.square()).sum()), rel=1e-4)


def test_ranges_of_a_table_by_row_and_group():
    lo = torch.tensor([[-1.0, -2, 0, 1], [torch.inf] * 4, [-3, 0, -1, 0]])
    hi = torch.tensor([[1.0, 2, 3, 4], [-torch.inf] * 4, [5, 0, 0, 2]])
    act = Act(Int(8, group=2), True, 3)
    found = group_ranges(act, lo, hi)
    assert found[0].tolist() == [[-2, 0], [-3, -1], [-3, -1]]  # nobody saw row 1, so it takes the range of all others
    assert found[1].tolist() == [[2, 4], [5, 4], [5, 2]]
    whole = group_ranges(Act(Int(8), True, 1), lo, hi)
    assert [t.tolist() for t in whole] == [[[-3.0]], [[5.0]]]
