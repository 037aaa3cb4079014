"""Channel peaks of many ranges become one: each formula against numpy, ranges that count more, dead and constant channels."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from dither.stages.aggregate import AGGREGATES, rank_correlation

NAMES = ["max", "mean", "spearman", "self-weighted"]


def peaks(ranges: int = 5, channels: int = 24, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """m (R, K) and w (K,), uneven, with ties."""
    make = torch.Generator().manual_seed(seed)
    m = torch.rand(ranges, channels, generator=make).mul(4).exp()
    m[:, 3] = m[:, 5]
    w = torch.rand(channels, generator=make).mul(2).exp() / 10
    w[7] = w[9]
    return m, w


def rho(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of ranks, ties at their mean."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def expected(how: str, m: np.ndarray, w: np.ndarray) -> np.ndarray:
    if how == "max":
        return m.max(0)
    if how == "mean":
        return sum(m) / len(m)
    if how == "self-weighted":
        return np.array([(column * column).sum() / column.sum() for column in m.T])
    shares = np.array([math.exp(-rho(each, w)) for each in m])
    return sum(share / shares.sum() * each for share, each in zip(shares, m, strict=True))


def test_the_closed_set():
    assert list(AGGREGATES) == NAMES


@pytest.mark.parametrize("how", NAMES)
@pytest.mark.parametrize("ranges", [1, 2, 5])
def test_formulas(how, ranges):
    m, w = peaks(ranges)
    got = AGGREGATES[how](m, w)
    assert (got.shape, got.dtype) == (w.shape, torch.float32)
    want = expected(how, m.double().numpy(), w.double().numpy())
    torch.testing.assert_close(got.double(), torch.from_numpy(want), rtol=1e-6, atol=0)


def test_they_differ_from_each_other():
    m, w = peaks()
    found = [AGGREGATES[how](m, w) for how in NAMES]
    assert all(not torch.allclose(a, b, rtol=1e-3) for i, a in enumerate(found) for b in found[:i])


def test_by_hand():
    m = torch.tensor([[1.0, 3.0], [3.0, 1.0]])
    w = torch.tensor([1.0, 2.0])  # the first range ranks as the weight does, the second the other way
    e, total = math.e, math.e + 1 / math.e
    torch.testing.assert_close(
        AGGREGATES["spearman"](m, w), torch.tensor([(1 / e + 3 * e) / total, (3 / e + e) / total])
    )
    torch.testing.assert_close(AGGREGATES["self-weighted"](m, w), torch.tensor([2.5, 2.5]))


@pytest.mark.parametrize("how", NAMES)
def test_of_one_range_or_of_equal_ones_all_give_the_peaks(how):
    m, w = peaks(1)
    torch.testing.assert_close(AGGREGATES[how](m, w), m[0])
    torch.testing.assert_close(AGGREGATES[how](m.expand(4, -1), w), m[0])


@pytest.mark.parametrize("how", NAMES)
def test_they_lie_between_least_and_greatest_and_follow_a_factor(how):
    m, w = peaks()
    a = AGGREGATES[how](m, w)
    assert bool((a >= m.amin(0) * (1 - 1e-6)).all())
    assert bool((a <= m.amax(0) * (1 + 1e-6)).all())
    torch.testing.assert_close(AGGREGATES[how](m * 7, w * 3), a * 7)


def test_ranges_whose_channels_rank_unlike_the_weight_count_for_more():
    w = torch.arange(1.0, 11.0)
    like, unlike = w.clone(), w.flip(0)
    got = AGGREGATES["spearman"](torch.stack([like, unlike]), w)
    share = math.exp(1) / (math.exp(1) + math.exp(-1))
    torch.testing.assert_close(got, share * unlike + (1 - share) * like)
    assert share > 0.88


@pytest.mark.parametrize("constant", ["range", "weight", "both"])
def test_constant_vectors_correlate_with_nothing(constant):
    """No rank, no warning (warnings are errors here), no NaN: as if rho were 0."""
    m, w = peaks(2)
    if constant != "weight":
        m[1] = 0.7
    if constant != "range":
        w = torch.full_like(w, 2.0)
    rhos = [0.0 if constant != "range" else rho(m[0].numpy(), w.numpy()), 0.0]
    assert [rank_correlation(each, w) for each in m] == pytest.approx(rhos)
    first, second = (math.exp(-r) for r in rhos)
    torch.testing.assert_close(AGGREGATES["spearman"](m, w), (first * m[0] + second * m[1]) / (first + second))


def test_a_single_channel_has_no_ranks():
    m, w = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0])
    assert AGGREGATES["spearman"](m, w).tolist() == [1.5]


@pytest.mark.parametrize("how", NAMES)
def test_channels_that_are_dead_at_some_times_or_always(how):
    m, w = peaks()
    m[:, 0], m[1:, 1] = 0.0, 0.0
    a = AGGREGATES[how](m, w)
    assert bool(torch.isfinite(a).all())
    assert float(a[0]) == 0.0
    assert 0 < float(a[1]) <= float(m[0, 1])


def test_tiny_and_huge_peaks_survive_their_squares():
    m = torch.tensor([[1e-30, 1e30], [3e-30, 3e30]])
    torch.testing.assert_close(AGGREGATES["self-weighted"](m, torch.ones(2)), torch.tensor([2.5e-30, 2.5e30]))
