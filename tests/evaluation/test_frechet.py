import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from dither.errors import BadValue
from dither.evaluation import frechet


def sample(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(7).normal(size=(d, d)) / np.sqrt(d)
    return rng.normal(size=(n, d)) @ (np.eye(d) + 0.5 * mix) * scale + shift


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return frechet.frechet_distance(*frechet.fit_gaussian(a), *frechet.fit_gaussian(b))


def test_equals_the_textbook_formula_with_sqrtm():
    mu1, s1 = frechet.fit_gaussian(sample(400, 16, 0))
    mu2, s2 = frechet.fit_gaussian(sample(300, 16, 1, 1.2, 0.1))
    expected = np.square(mu1 - mu2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert frechet.frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, abs=1e-9)


def test_equals_the_closed_form_for_diagonal_gaussians():
    l1, l2 = np.array([4.0, 1.0, 0.0]), np.array([1.0, 9.0, 2.0])
    mu1, mu2 = np.array([1.0, 0.0, 2.0]), np.array([0.0, 2.0, 2.0])
    expected = 5.0 + np.square(np.sqrt(l1) - np.sqrt(l2)).sum()
    assert frechet.frechet_distance(mu1, np.diag(l1), mu2, np.diag(l2)) == pytest.approx(expected)


@pytest.mark.parametrize("n", [8, 500])
def test_a_set_is_at_no_distance_from_itself(n):
    x = sample(n, 20, 0)  # n = 8: a singular covariance
    assert distance(x, x) == pytest.approx(0, abs=1e-6)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(3, 40))
def test_symmetric_and_blind_to_rotation_and_order(seed, d, n):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(n, d)) * 1.5 + 0.3
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    base = distance(a, b)
    assert distance(b, a) == pytest.approx(base, abs=1e-6)
    assert distance(a @ rotation, b @ rotation) == pytest.approx(base, abs=1e-6)
    assert distance(rng.permutation(a), b) == pytest.approx(base, abs=1e-6)


def test_influence_is_the_derivative():
    x = sample(60, 5, 0)
    mu, sigma = frechet.fit_gaussian(sample(500, 5, 1, 1.3, 0.2))

    def weighted(weights: np.ndarray) -> float:
        mean = weights @ x
        covariance = (x - mean).T @ ((x - mean) * weights[:, None]) * len(x) / (len(x) - 1)
        return frechet.frechet_distance(mean, covariance, mu, sigma)

    base = np.full(60, 1 / 60)
    step = 1e-5
    towards = np.eye(60)
    plus = np.array([weighted((1 - step) * base + step * towards[i]) for i in range(60)])
    minus = np.array([weighted((1 + step) * base - step * towards[i]) for i in range(60)])
    slope = (plus - minus) / (2 * step)
    # The ddof=1 of the estimate is a factor 60/59 on the covariance part.
    np.testing.assert_allclose(frechet.influence(x, mu, sigma), slope - slope.mean(), rtol=0.05, atol=0.05)


def test_standard_errors_match_monte_carlo():
    d, n, repeats = 8, 400, 150
    mu, sigma = np.zeros(d), np.eye(d)
    single, paired, difference = [], [], []
    for seed in range(repeats):
        x = sample(n, d, seed)
        y = 1.1 * x + 0.1 + 0.2 * np.random.default_rng(10_000 + seed).normal(size=x.shape)
        to_x = frechet.frechet_distance(*frechet.fit_gaussian(x), mu, sigma)
        to_y = frechet.frechet_distance(*frechet.fit_gaussian(y), mu, sigma)
        in_x, in_y = frechet.influence(x, mu, sigma), frechet.influence(y, mu, sigma)
        single.append((to_x, frechet.standard_error(in_x)))
        difference.append((to_y - to_x, frechet.standard_error(in_y - in_x)))
        paired.append((distance(x, y), frechet.standard_error(frechet.paired_influence(x, y))))
    for name, rows in (("single", single), ("difference", difference), ("paired", paired)):
        values, errors = np.array(rows).T
        assert np.mean(errors) == pytest.approx(values.std(ddof=1), rel=0.2), name


def test_null_bias_matches_monte_carlo():
    n, m, d = 200, 300, 12
    truth = np.eye(d) + 0.0
    against_truth = [
        frechet.frechet_distance(
            *frechet.fit_gaussian(np.random.default_rng(s).normal(size=(n, d))), np.zeros(d), truth
        )
        for s in range(40)
    ]
    assert frechet.null_bias(truth, n) == pytest.approx(np.mean(against_truth), rel=0.1)
    between = [distance(sample(n, d, 2 * s), sample(m, d, 2 * s + 1)) for s in range(40)]
    sigma = frechet.fit_gaussian(sample(20_000, d, 999))[1]
    assert frechet.null_bias(sigma, n, m) == pytest.approx(np.mean(between), rel=0.1)


def test_richardson_removes_the_bias():
    d, n = 12, 200
    mu, sigma = np.zeros(d), np.eye(d)
    raw, corrected = [], []
    for seed in range(40):
        x = np.random.default_rng(seed).normal(size=(n, d))
        raw.append(frechet.frechet_distance(*frechet.fit_gaussian(x), mu, sigma))
        corrected.append(frechet.richardson(x, mu, sigma))
    assert abs(np.mean(corrected)) < 0.1 * np.mean(raw)


def test_refuses():
    with pytest.raises(BadValue, match="NaN"):
        frechet.fit_gaussian(np.array([[1.0], [np.nan]]))
    with pytest.raises(BadValue, match="N >= 2"):
        frechet.fit_gaussian(np.ones((1, 3)))
    with pytest.raises(BadValue, match="cannot be compared"):
        distance(np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(BadValue, match="cannot be paired"):
        frechet.paired_influence(np.ones((4, 2)), np.ones((5, 2)))
    with pytest.raises(BadValue, match="at least 4"):
        frechet.richardson(np.ones((3, 2)), np.zeros(2), np.eye(2))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 9), st.integers(2, 9), st.integers(5, 14))
def test_few_samples_need_no_covariance_matrix(seed, n, m, d):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(n, d)) + 5, 1.5 * rng.normal(size=(m, d))
    assert frechet.sample_distance(a, b) == pytest.approx(distance(a, b), rel=1e-6, abs=1e-6)


def test_samples_of_different_width_have_no_distance():
    with pytest.raises(BadValue, match="cannot be compared"):
        frechet.sample_distance(np.ones((3, 8)), np.ones((3, 9)))


def test_halves_do_not_split_classes_that_come_in_turn():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4)) + 10 * (np.arange(400) % 2)[:, None]
    mu, sigma = frechet.fit_gaussian(x)
    assert abs(frechet.richardson(x, mu, sigma)) < 1
