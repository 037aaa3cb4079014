import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from dither.errors import BadValue
from dither.evaluation import mmd
from dither.evaluation.checks import TooFewSamples

METRICS = [(mmd.kid, mmd.kid_difference), (mmd.cmmd, mmd.cmmd_difference)]


def golden() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 16)), 1.1 * rng.normal(size=(300, 16)) + 0.3


def crowd(n: int, seed: int, d: int = 8) -> np.ndarray:
    mix = np.eye(d) + 0.2 * np.random.default_rng(7).normal(size=(d, d))
    return np.random.default_rng(seed).normal(size=(n, d)) @ mix


def pair(n: int, seed: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    full = 1.05 * crowd(n, seed) + 0.05
    return full * (1 + effect) + effect + effect * crowd(n, 10_000 + seed), full


def off_diagonal_mean(matrix: np.ndarray) -> float:
    return matrix[~np.eye(len(matrix), dtype=bool)].mean()


def test_subsets_equal_torch_fidelity():
    # torch-fidelity 0.4.0, torchvision stubbed: kid_features_to_metric(x, y, kid_subsets=20, kid_subset_size=100)
    mean, std = mmd.kid_subsets(*golden(), subsets=20, size=100)
    assert mean == pytest.approx(0.34905883417253786, rel=1e-10)
    assert std == pytest.approx(0.06541964496928314, rel=1e-10)


def test_cmmd_equals_torch_fidelity():
    # torch-fidelity 0.4.0: 1000 * mmd2(..., mmd_est="biased") of kernel_rbf with sigma 10, which wants equal counts
    x, y = golden()
    assert mmd.cmmd(x[:300], y)[0] == pytest.approx(14.443437436440831, rel=1e-9)


def test_kid_equals_sklearns_kernel():
    x, y = golden()
    xx, yy, xy = (polynomial_kernel(a, b, degree=3) for a, b in ((x, x), (y, y), (x, y)))
    expected = off_diagonal_mean(xx) + off_diagonal_mean(yy) - 2 * xy.mean()
    assert mmd.kid(x, y)[0] == pytest.approx(expected, rel=1e-12)


def test_cmmd_equals_sklearns_kernel():
    x, y = golden()
    xx, yy, xy = (rbf_kernel(a, b, gamma=1 / 200) for a, b in ((x, x), (y, y), (x, y)))
    assert mmd.cmmd(x, y)[0] == pytest.approx(1000 * (xx.mean() + yy.mean() - 2 * xy.mean()), rel=1e-9)


def test_a_difference_is_that_of_two_distances():
    q, f = pair(120, 0, 0.1)
    y = crowd(90, 5)
    assert mmd.kid_difference(q, f, y)[0] == pytest.approx(mmd.kid(q, y)[0] - mmd.kid(f, y)[0])
    kernels = [rbf_kernel(a, a, gamma=1 / 200) for a in (q, f)]
    diagonal = 1000 * (off_diagonal_mean(kernels[0]) - off_diagonal_mean(kernels[1])) / 120
    biased = mmd.cmmd(q, y)[0] - mmd.cmmd(f, y)[0]
    assert mmd.cmmd_difference(q, f, y)[0] == pytest.approx(biased + diagonal)


@pytest.mark.parametrize(("metric", "difference"), METRICS)
def test_blocks_of_rows_change_nothing(metric, difference, monkeypatch):
    q, f = pair(40, 0, 0.1)
    y = crowd(30, 5)
    whole = metric(q, y), difference(q, f, y)
    monkeypatch.setattr(mmd, "BLOCK", 100)
    np.testing.assert_allclose((metric(q, y), difference(q, f, y)), whole, rtol=1e-10)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 10))
def test_symmetric_and_blind_to_rotation_and_order(seed, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(30, d)), 1.3 * rng.normal(size=(20, d)) + 0.2
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    for metric, _ in METRICS:
        base = metric(x, y)
        for other in (metric(y, x), metric(x @ rotation, y @ rotation), metric(rng.permutation(x), y)):
            assert other == pytest.approx(base, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(("metric", "difference"), METRICS)
def test_grows_with_the_distance(metric, difference):
    x, y = crowd(200, 0), crowd(200, 1)
    values = [metric(x + shift, y)[0] for shift in (0.2, 0.5, 1, 2)]
    assert values == sorted(values)
    assert difference(x + 0.5, x, y)[0] > 0


def test_kid_scatters_around_zero_when_nothing_differs():
    values, errors = np.array([mmd.kid(crowd(60, seed), crowd(40, 10_000 + seed)) for seed in range(200)]).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert (values < 0).mean() > 0.3
    # The first-order influence alone would vanish here.
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)


@pytest.mark.parametrize(("metric", "difference"), METRICS)
@pytest.mark.parametrize("effect", [0.02, 0.2])
def test_standard_errors_match_monte_carlo(metric, difference, effect):
    single, paired = [], []
    for seed in range(200):
        q, f = pair(80, seed, effect)
        y = crowd(100, 20_000 + seed)
        single.append(metric(q, y))
        paired.append(difference(q, f, y))
    for values in (np.array(single), np.array(paired)):
        assert values[:, 1].mean() == pytest.approx(values[:, 0].std(), rel=0.2)


def test_a_set_does_not_differ_from_itself():
    x = crowd(60, 0)
    for _, difference in METRICS:
        assert difference(x, x, crowd(50, 1)) == (0.0, 0.0)


def test_refuses_what_cannot_be_compared():
    x = crowd(60, 0)
    with pytest.raises(TooFewSamples, match="KID needs at least 8 samples, got 7"):
        mmd.kid(x[:7], x)
    with pytest.raises(TooFewSamples, match="KID needs at least 1000 samples, got 60"):
        mmd.kid_subsets(x, x)
    with pytest.raises(BadValue, match="at least 1 subset"):
        mmd.kid_subsets(x, x, subsets=0, size=10)
    with pytest.raises(BadValue, match="CMMD cannot compare features of 8 and 7"):
        mmd.cmmd(x, x[:, :7])
    with pytest.raises(BadValue, match="cannot be paired"):
        mmd.kid_difference(x, x[1:], x)
