import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dither.errors import BadValue
from dither.evaluation import intervals
from dither.evaluation.intervals import (
    bootstrap_mean_interval,
    cluster_interval,
    paired_mean_interval,
    paired_proportion_interval,
    t_interval,
)


@pytest.mark.parametrize(("n", "sigma"), [(8, 2.0), (80, 1.0)])
def test_agrees_with_scipy_bca_at_the_level_that_student_asks_for(n, sigma):
    x = np.random.default_rng(0).lognormal(sigma=sigma, size=n)
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1)))
    ours = bootstrap_mean_interval(x, resamples=100_000)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=100_000, confidence_level=level, method="BCa", rng=np.random.default_rng(2)
    )
    np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=0.01)


@pytest.mark.parametrize("n", [8, 16])
def test_covers_with_few_pictures(n):
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(400):
        low, high = bootstrap_mean_interval(rng.normal(size=n), resamples=500, seed=seed)
        hits += low <= 0.0 <= high
    assert 0.915 <= hits / 400 <= 0.98


def test_t_interval_equals_scipy():
    x = np.random.default_rng(0).normal(size=12)
    expected = stats.t.interval(0.95, 11, loc=x.mean(), scale=stats.sem(x))
    np.testing.assert_allclose(t_interval(x), expected)


def test_covers_the_true_mean_of_skewed_data():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        low, high = bootstrap_mean_interval(rng.exponential(size=60), resamples=500, seed=seed)
        hits += low <= 1.0 <= high
    assert 0.90 <= hits / 300 <= 0.98


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=40), st.integers(-1000, 1000))
def test_contains_the_mean_and_moves_with_the_data(values, shift):
    x = np.array(values, dtype=float)
    low, high = bootstrap_mean_interval(x, resamples=200)
    assert x.min() - 1e-6 <= low <= high <= x.max() + 1e-6
    moved = bootstrap_mean_interval(x + shift, resamples=200)
    np.testing.assert_allclose(moved, [low + shift, high + shift], atol=1e-6)


def test_same_seed_same_interval_even_in_chunks(monkeypatch):
    x = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean_interval(x)
    assert whole == bootstrap_mean_interval(x)
    monkeypatch.setattr(intervals, "CHUNK", 500)
    np.testing.assert_allclose(bootstrap_mean_interval(x), whole)


def test_ties_do_not_tilt_a_symmetric_sample():
    assert bootstrap_mean_interval(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_constant_sample_has_no_width():
    assert bootstrap_mean_interval(np.full(5, 3.0)) == (3.0, 3.0)


@pytest.mark.parametrize("bad", [[1.0], [[1.0, 2.0]], [1.0, np.nan]])
def test_refuses(bad):
    with pytest.raises(BadValue):
        bootstrap_mean_interval(np.array(bad))


def test_a_paired_difference_is_b_minus_a():
    rng = np.random.default_rng(0)
    a = rng.normal(30, 5, 100)
    b = a + rng.normal(0.5, 0.1, 100)
    difference, (low, high) = paired_mean_interval(a, b)
    assert low < difference < high
    assert (low, high) == bootstrap_mean_interval(b - a)
    assert difference == pytest.approx(0.5, abs=0.05)
    with pytest.raises(BadValue, match="paired"):
        paired_mean_interval(a, b[1:])


def test_seeds_of_one_prompt_are_no_independent_pictures():
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(30), 8)
    hits = naive = 0
    for seed in range(200):
        x = rng.normal(size=30)[prompts] + 0.3 * rng.normal(size=240)
        low, high = cluster_interval(x, prompts.tolist(), seed=seed)
        hits += low <= 0 <= high
        low, high = t_interval(x)
        naive += low <= 0 <= high
    assert 0.9 <= hits / 200 <= 0.985
    assert naive / 200 < 0.7


def test_clusters_of_one_are_pictures_and_of_equal_size_are_their_means():
    x = np.random.default_rng(0).gamma(2.0, size=24)
    assert cluster_interval(x, list(range(24))) == pytest.approx(bootstrap_mean_interval(x))
    names = [f"prompt {i // 4}" for i in range(24)]
    assert cluster_interval(x, names) == pytest.approx(bootstrap_mean_interval(x.reshape(6, 4).mean(axis=1)))


def test_clusters_of_unequal_size_keep_the_mean_inside():
    x = np.array([0.0, 0.0, 0.0, 0.0, 4.0, 1.0, 2.0])
    low, high = cluster_interval(x, ["a", "a", "a", "a", "b", "c", "c"])
    assert low < x.mean() < high
    with pytest.raises(BadValue, match="2 clusters"):
        cluster_interval(x, ["a", "b"])
    with pytest.raises(BadValue, match="at least 2"):
        cluster_interval(x, ["a"] * 7)


def test_a_proportion_keeps_its_width_where_nothing_changed():
    low, high = paired_proportion_interval(0, 0, 256)
    assert low == pytest.approx(-high)
    assert 0.006 < high < 0.010
    assert paired_proportion_interval(256, 0, 256)[1] <= 1.0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 400))
def test_a_proportion_is_inside_and_mirrors(gained, lost, same):
    n = gained + lost + same + 1
    low, high = paired_proportion_interval(gained, lost, n)
    assert low <= (gained - lost) / n <= high or gained + lost > 0.9 * n
    assert paired_proportion_interval(lost, gained, n) == pytest.approx((-high, -low))


@pytest.mark.parametrize("counts", [(-1, 0, 4), (3, 2, 4), (0, 0, 0)])
def test_refuses_impossible_counts(counts):
    with pytest.raises(BadValue, match="cannot be counted"):
        paired_proportion_interval(*counts)
