from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.evaluation import frechet, frechet_pairs
from dither.evaluation.frechet_pairs import (
    difference_interval,
    estimate_difference,
    estimate_distance,
    needed_samples,
    paired_interval,
)

D = 8
MIX = np.eye(D) + 0.3 * np.random.default_rng(7).normal(size=(D, D))


def pair(
    n: int, seed: int, noise: float = 0.2, scale: float = 1.0, shift: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """A normal set, and the same set with a part of it replaced (which changes no distribution), scaled and shifted."""
    rng = np.random.default_rng(seed)
    code, other = rng.normal(size=(2, n, D))
    moved = np.sqrt(1 - noise**2) * code + noise * other
    return code @ MIX, (scale * moved + shift) @ MIX


def truth(scale: float, shift: float) -> float:
    sigma = MIX.T @ MIX
    return frechet.frechet_distance(np.zeros(D), sigma, shift * np.ones(D) @ MIX, scale**2 * sigma)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.02, 0.0), (1.0, 0.1), (1.5, 0.5)])
def test_the_estimate_is_free_of_bias_and_its_error_is_right(scale, shift):
    found = [estimate_distance(*pair(80, seed, 0.2, scale, shift)) for seed in range(200)]
    values = np.array([estimate.unbiased for estimate in found])
    assert values.mean() == pytest.approx(truth(scale, shift), abs=0.3 * values.std())
    errors = np.array([estimate.standard_error for estimate in found])
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.25)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1.02, 0.0), (1.5, 0.5)])
def test_intervals_hold(scale, shift):
    expected = truth(scale, shift)
    hits = 0
    for seed in range(200):
        low, high = paired_interval(*pair(64, seed, 0.2, scale, shift))
        hits += low <= expected <= high
    assert 0.91 <= hits / 200 <= 0.99


def test_near_zero_the_plain_distance_is_mostly_bias():
    found = [estimate_distance(*pair(64, seed)) for seed in range(40)]
    distance, bias, unbiased = (
        np.mean([getattr(estimate, name) for estimate in found]) for name in ("distance", "bias", "unbiased")
    )
    assert distance > 15 * abs(unbiased)
    assert bias == pytest.approx(distance, rel=0.1)


def test_the_kernel_is_what_its_formula_says():
    a, b = pair(30, 0, 0.3, 1.2, 0.3)
    estimate = estimate_distance(a, b)
    values, vectors = np.linalg.eigh((np.cov(a.T) + np.cov(b.T)) / 2)
    x, y = (a - a.mean(0)) @ vectors, (b - b.mean(0)) @ vectors
    outer = np.einsum("ij,ik->ijk", y, y) - np.einsum("ij,ik->ijk", x, x)
    z = np.hstack([(b - a) @ vectors, (outer / np.sqrt(2 * (values[:, None] + values))).reshape(30, -1)])
    products = z @ z.T
    own = np.diag(products).copy()
    np.testing.assert_allclose(estimate.linear, 2 * (products.sum(1) - own) / 29)
    centred = (z - z.mean(0)) @ (z - z.mean(0)).T
    assert estimate.noise == pytest.approx((np.trace(centred) / 29 / 30 / products.mean()) ** 2)
    np.fill_diagonal(centred, 0)
    np.testing.assert_allclose(estimate.kernel, centred, atol=1e-10)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_scales_with_the_features_and_ignores_rotation_order_and_sides(seed, factor):
    a, b = pair(40, seed, 0.2, 1.1, 0.1)
    base = np.array(paired_interval(a, b))
    np.testing.assert_allclose(
        np.array(paired_interval(factor * a, factor * b)), factor**2 * base, rtol=1e-6, atol=1e-12
    )
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(D, D)))[0]
    np.testing.assert_allclose(paired_interval(a @ rotation + 5, b @ rotation + 5), base, rtol=1e-5, atol=1e-9)
    order = np.random.default_rng(seed).permutation(40)
    np.testing.assert_allclose(paired_interval(b[order], a[order]), base, rtol=1e-6, atol=1e-9)


def test_a_part_of_the_pairs_is_enough_for_the_kernel(monkeypatch):
    a, b = pair(400, 0, 0.2, 1.02)
    whole = estimate_distance(a, b)
    monkeypatch.setattr(frechet_pairs, "KERNEL_ROWS", 200)
    part = estimate_distance(a, b)
    assert part.kernel.shape == (200, 200)
    assert part.unbiased == whole.unbiased
    assert part.standard_error == pytest.approx(whole.standard_error, rel=0.1)


def test_equal_sets_and_dead_features():
    a, b = pair(40, 0)
    assert paired_interval(a, a) == pytest.approx((0.0, 0.0), abs=1e-9)
    dead = np.zeros((40, 2))
    wide = paired_interval(np.hstack([a, dead]), np.hstack([b, dead]))
    np.testing.assert_allclose(wide, paired_interval(a, b), rtol=1e-6, atol=1e-9)
    moved = estimate_distance(a, a + 1.0)  # no noise at all
    assert moved.interval() == pytest.approx((8.0, 8.0), rel=1e-3)


def test_differences_of_distances_hold_and_beat_unpaired_ones():
    expected = truth(1.1, 0.0) - truth(1.05, 0.0)
    hits, widths = 0, []
    for seed in range(100):
        full, first = pair(100, seed, 0.2, 1.1)
        estimates = estimate_distance(full, first), estimate_distance(full, first * 1.05 / 1.1)
        difference, (low, high) = estimate_difference(*estimates)
        assert low <= difference <= high
        hits += low <= expected <= high
        widths.append((high - low) / 3.96 / np.hypot(*(estimate.standard_error for estimate in estimates)))
    assert hits >= 90
    assert np.median(widths) < 0.9


def test_the_difference_to_a_reference_holds():
    sigma = MIX.T @ MIX * 1.1
    mu = np.full(D, 0.2)
    fits = (np.zeros(D), MIX.T @ MIX), (0.1 * np.ones(D) @ MIX, 1.1**2 * MIX.T @ MIX)
    before, after = (frechet.frechet_distance(*fit, mu, sigma) for fit in fits)
    hits = 0
    for seed in range(200):
        difference, (low, high) = difference_interval(*pair(64, seed, 0.2, 1.1, 0.1), mu, sigma)
        assert low <= difference <= high
        hits += low <= after - before <= high
    assert 0.91 <= hits / 200 <= 0.99


def test_refuses():
    few = np.random.default_rng(0).normal(size=(needed_samples(D) - 1, D))
    with pytest.raises(BadValue, match=f"needs at least {needed_samples(D)} pictures, got {len(few)}"):
        paired_interval(few, few)
    with pytest.raises(BadValue, match="needs at least"):
        difference_interval(few, few, np.zeros(D), np.eye(D))
    with pytest.raises(BadValue, match="cannot be paired"):
        estimate_distance(np.ones((40, 2)), np.ones((41, 2)))
    with pytest.raises(BadValue, match="NaN"):
        estimate_distance(np.full((40, 2), np.nan), np.ones((40, 2)))
    first, second = (estimate_distance(*pair(n, 0)) for n in (40, 41))
    with pytest.raises(BadValue, match="40 and 41"):
        estimate_difference(first, second)


def test_few_pictures_widen_the_spread_and_enough_do_not():
    widened = [estimate_distance(*pair(n, 0, 0.2, 1.5, 0.5)).few for n in (2 * D, 3 * D, 4 * D, 5 * D)]
    assert widened == pytest.approx([4 / 3, 10 / 9, 1, 1])
    found = estimate_distance(*pair(2 * D, 0, 0.2, 1.5, 0.5))
    narrow = replace(found, few=1.0)
    assert narrow.standard_error < found.standard_error < 1.2 * narrow.standard_error
