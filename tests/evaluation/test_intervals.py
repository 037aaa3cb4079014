import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dither.errors import BadValue
from dither.evaluation import intervals
from dither.evaluation.intervals import bootstrap_mean_interval, t_interval


@pytest.mark.parametrize(("n", "sigma"), [(8, 2.0), (80, 1.0)])
def test_agrees_with_scipy_bca(n, sigma):
    x = np.random.default_rng(0).lognormal(sigma=sigma, size=n)
    ours = bootstrap_mean_interval(x, resamples=100_000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=100_000, method="BCa", rng=np.random.default_rng(2))
    np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=0.006)


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
