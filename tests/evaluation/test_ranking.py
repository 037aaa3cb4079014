import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.evaluation import ranking
from dither.evaluation.frechet_pairs import estimate_distance
from dither.evaluation.ranking import pairwise, pairwise_frechet, rank_ranges, ranks_of


def results(means: list[float], n: int = 200, seed: int = 0) -> np.ndarray:
    """Values (K, N) that share their pictures: the spread between pictures is far larger than the effects."""
    rng = np.random.default_rng(seed)
    return rng.normal(30, 5, n) + rng.normal(0, 0.5, (len(means), n)) + np.array(means)[:, None]


def test_ranks_what_differs_and_only_that():
    assert rank_ranges(results([0.0, 2.0, 2.0, -3.0])) == ((3, 3), (1, 2), (1, 2), (4, 4))
    assert rank_ranges(results([0.0, 2.0, -3.0]), higher_is_better=False) == ((2, 2), (3, 3), (1, 1))


def test_pairing_finds_what_two_crowds_hide():
    x = results([0.0, 0.3])
    (pair,) = pairwise(x)
    assert pair.distinguishable
    shuffled = np.stack([x[0], np.random.default_rng(1).permutation(x[1])])
    assert not pairwise(shuffled)[0].distinguishable


def test_two_results_alone_get_about_a_t_interval():
    x = results([0.0, 0.0], n=100)
    (pair,) = pairwise(x)
    difference = x[0] - x[1]
    half = 1.984 * difference.std(ddof=1) / 10
    assert pair.difference == pytest.approx(difference.mean())
    assert pair.ci95[1] - pair.difference == pytest.approx(half, rel=0.06)


def test_intervals_hold_together():
    misses = 0
    for seed in range(100):
        x = results([0.0] * 6, n=64, seed=seed)
        misses += any(pair.distinguishable for pair in pairwise(x))
    assert misses <= 10  # 5 expected; 15 separate intervals would miss about 35 times


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(0, 100))
def test_ranges_hold_the_order_of_the_means(count, seed):
    rng = np.random.default_rng(seed)
    x = results(list(rng.normal(0, 0.3, count)), n=40, seed=seed)
    ranges = rank_ranges(x)
    order = np.argsort(np.argsort(-x.mean(axis=1))) + 1
    assert all(best <= rank <= worst for (best, worst), rank in zip(ranges, order, strict=True))
    np.testing.assert_array_equal(rank_ranges(x), ranges)


def test_memory_does_not_change_the_result(monkeypatch):
    x = results([0.0, 0.1, 0.2])
    whole = pairwise(x)
    monkeypatch.setattr(ranking, "CHUNK", 1000)
    for a, b in zip(whole, pairwise(x), strict=True):
        assert a.ci95 == pytest.approx(b.ci95, rel=0.05)


def test_equal_results_share_all_ranks_and_one_has_no_rival():
    x = np.ones((3, 8))
    assert rank_ranges(x) == ((1, 3),) * 3
    assert rank_ranges(np.ones((1, 8))) == ((1, 1),)
    assert pairwise(np.ones((1, 8))) == ()


def test_ranks_frechet_distances_of_the_same_pictures():
    rng = np.random.default_rng(0)
    full = rng.normal(size=(200, 8))
    estimates = [estimate_distance(full, full + s * rng.normal(size=full.shape)) for s in (0.1, 0.1, 0.5)]
    found = pairwise_frechet(estimates)
    assert [(pair.a, pair.b) for pair in found] == [(0, 1), (0, 2), (1, 2)]
    assert ranks_of(found, 3, higher_is_better=False) == ((1, 2), (1, 2), (3, 3))
    assert pairwise_frechet(estimates[:1]) == ()


def test_refuses():
    with pytest.raises(BadValue, match="same pictures"):
        pairwise(np.ones((3, 1)))
    with pytest.raises(BadValue, match="finite"):
        pairwise(np.array([[1.0, np.nan], [1.0, 2.0]]))
