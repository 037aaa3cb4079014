import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from dither.errors import BadValue
from dither.evaluation import manifold
from dither.evaluation.checks import TooFewSamples
from dither.evaluation.manifold import manifold_change, matched_proportions, precision_recall


def golden() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 16)), 1.1 * rng.normal(size=(300, 16)) + 0.3


def crowd(n: int, seed: int, d: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def pair(n: int, seed: int, effect: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    full = crowd(n, seed)
    return (1 + effect) * full + effect * crowd(n, 10_000 + seed), full


@pytest.mark.parametrize(("width", "precision", "recall"), [(16, 339 / 400, 164 / 300), (4, 386 / 400, 255 / 300)])
def test_equals_torch_fidelity(width, precision, recall):
    # torch-fidelity 0.4.0, torchvision stubbed: prc_features_to_metric(x[:, :width], y[:, :width]) gave
    # 0.8475000262260437, 0.54666668176651 and 0.9649999737739563, 0.8500000238418579.
    x, y = golden()
    result = precision_recall(x[:, :width], y[:, :width])
    assert (result.precision, result.recall) == (precision, recall)
    assert result.inside.shape == (400,)
    assert result.covered.shape == (300,)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_sklearns_neighbours(k):
    x, y = golden()

    def inside(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
        radii = NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, k]
        return (np.linalg.norm(points[:, None] - centres, axis=2) <= radii).any(axis=1)

    result = precision_recall(x, y, k=k)
    np.testing.assert_array_equal(result.inside, inside(x, y))
    np.testing.assert_array_equal(result.covered, inside(y, x))


def test_far_sets_share_nothing_and_one_set_shares_all():
    x = crowd(100, 0)
    apart, same = precision_recall(x, x + 100), precision_recall(x, x)
    assert (apart.precision, apart.recall) == (0, 0)
    assert (same.precision, same.recall) == (1, 1)


def test_a_collapsed_sampler_keeps_precision_and_loses_recall():
    result = precision_recall(0.1 * crowd(200, 0), crowd(200, 1))
    assert result.precision > 0.95
    assert result.recall < 0.1


def test_float32_serves_far_from_the_origin():
    x, y = golden()
    moved = precision_recall(x + 1000, y + 1000)
    np.testing.assert_array_equal(moved.inside, precision_recall(x, y).inside)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_blind_to_rotation_and_order_and_grows_with_k(seed, d):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(60, d)), rng.normal(size=(50, d)) + 0.5
    base = precision_recall(x, y)
    order = rng.permutation(60)
    np.testing.assert_array_equal(precision_recall(x[order], y).inside, base.inside[order])
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    turned = precision_recall(x @ rotation, y @ rotation)
    # One picture on the edge of a ball may change sides by rounding.
    assert np.sum(turned.inside != base.inside) <= 1
    assert np.sum(turned.covered != base.covered) <= 1
    wider = precision_recall(x, y, k=5)
    assert (wider.inside >= base.inside).all()
    assert (wider.covered >= base.covered).all()
    swapped = precision_recall(y, x)
    assert (swapped.precision, swapped.recall) == (base.recall, base.precision)


def test_blocks_of_rows_change_nothing(monkeypatch):
    q, f = pair(100, 0)
    whole = manifold_change(q, f, crowd(90, 5))
    monkeypatch.setattr(manifold, "BLOCK", 700)
    blocks = manifold_change(q, f, crowd(90, 5))
    np.testing.assert_array_equal(blocks.quantized.inside, whole.quantized.inside)
    np.testing.assert_array_equal(blocks.full.covered, whole.full.covered)
    assert blocks.recall_se == whole.recall_se


@pytest.mark.parametrize("spare", [0, 24])
def test_the_standard_error_of_recall_comes_from_halves(spare, monkeypatch):
    monkeypatch.setattr(manifold, "SPARE", spare)  # 0: too few neighbours kept, so they are measured again
    q, f = pair(100, 0)
    y = crowd(90, 5)
    change = manifold_change(q, f, y)
    excess = []
    for seed in range(manifold.HALVINGS):
        half = np.random.default_rng(seed).permutation(100) % 2 == 0
        a, b = (
            precision_recall(q[side], y).covered * 1.0 - precision_recall(f[side], y).covered for side in (half, ~half)
        )
        excess.append((a - b).mean() ** 2 - (a - b).var(ddof=1) / 90)
    real = matched_proportions(precision_recall(q, y).covered, precision_recall(f, y).covered)[2]
    assert change.recall_se == pytest.approx((1 + 16 / 100) * np.sqrt(real**2 + np.mean(excess) / 4))
    assert change.recall_se > 1.02 * real
    assert change.quantized.recall == precision_recall(q, y).recall
    assert change.full.precision == precision_recall(f, y).precision


def test_the_standard_error_of_precision_matches_monte_carlo():
    y = crowd(100, 99)
    values = []
    for seed in range(100):
        q, f = (precision_recall(x, y).inside for x in pair(100, seed))
        values.append((q.mean() - f.mean(), matched_proportions(q, f)[2]))
    differences, errors = np.array(values).T
    assert errors.mean() == pytest.approx(differences.std(), rel=0.2)


@pytest.mark.parametrize("real", [80, 400])
def test_the_standard_error_of_recall_matches_monte_carlo(real):
    changes = [manifold_change(*pair(80, seed), crowd(real, 5000 + seed)) for seed in range(60)]
    recall = np.array([c.quantized.recall - c.full.recall for c in changes])
    assert np.mean([c.recall_se for c in changes]) == pytest.approx(recall.std(), rel=0.25)


def test_matched_proportions_equal_the_formula_after_adding_half_a_count():
    rng = np.random.default_rng(0)
    a, b = rng.random(200) < 0.7, rng.random(200) < 0.6
    low, high, se = matched_proportions(a, b)
    n, gained, lost = 202, np.sum(a & ~b) + 0.5, np.sum(b & ~a) + 0.5
    p, q = gained / n, lost / n
    expected = np.sqrt((p + q - (p - q) ** 2) / n)
    assert se == pytest.approx(expected)
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * expected)
    assert (high + low) / 2 == pytest.approx(p - q)


@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.05), (0.2, 0.1), (0.0, 0.02)])
def test_matched_proportions_cover_the_truth(gain, loss):
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        u = rng.random(200)
        a, b = u < 0.5 + gain, (u < 0.5) | (u > 1 - loss)
        low, high, _ = matched_proportions(a, b)
        hits += low <= gain - loss <= high
    assert 0.92 <= hits / 1000 <= 0.985


def test_an_interval_has_width_even_when_nothing_changed():
    x = crowd(100, 0)
    change = manifold_change(x, x, crowd(90, 5))
    assert change.precision_ci95[0] < 0 < change.precision_ci95[1]
    assert change.recall_ci95[0] < 0 < change.recall_ci95[1]


def test_refuses_what_cannot_be_compared():
    x = crowd(100, 0)
    with pytest.raises(TooFewSamples, match="needs at least 5 samples, got 4"):
        precision_recall(x[:4], x)
    with pytest.raises(TooFewSamples, match="needs at least 80 samples, got 79"):
        manifold_change(x[:79], x[:79], x)
    with pytest.raises(BadValue, match="cannot be paired"):
        manifold_change(x, x[1:], x)
    with pytest.raises(BadValue, match="4 and 3 dimensions"):
        precision_recall(x, x[:, :3])
    with pytest.raises(BadValue, match="k of at least 1, got 0"):
        precision_recall(x, x, k=0)
