import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadValue
from dither.evaluation.checks import TooFewSamples
from dither.evaluation.inception_score import inception_score, inception_score_difference, pictures_needed


def logits(n: int, classes: int = 10, seed: int = 0, sharpness: float = 3.0) -> np.ndarray:
    return sharpness * np.random.default_rng(seed).normal(size=(n, classes))


def golden_logits() -> np.ndarray:
    """As given to torch-fidelity 0.4.0: ``isc_features_to_metric(logits, splits, shuffle=False)``, torchvision stubbed."""
    rng = np.random.default_rng(0)
    rng.normal(size=(400, 16))
    rng.normal(size=(300, 16))
    return 3 * rng.normal(size=(400, 10))


def test_equals_torch_fidelity():
    four, one = inception_score(golden_logits(), split=100), inception_score(golden_logits())
    assert four.mean == pytest.approx(3.7635358391260008, rel=1e-12)
    assert four.std == pytest.approx(0.15989409499758359, rel=1e-10)
    assert four.splits == 4
    assert one.mean == pytest.approx(3.8509500422325, rel=1e-12)
    assert one.std == 0


def test_certain_and_even_predictions_score_the_number_of_classes():
    certain = 200.0 * np.eye(10)[np.arange(100) % 10]
    assert inception_score(certain).mean == pytest.approx(10)


def test_pictures_that_look_alike_score_one():
    alike = np.tile(logits(1), (100, 1))
    result = inception_score(alike)
    assert result.mean == pytest.approx(1)
    assert result.se == pytest.approx(0, abs=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.integers(2, 12), st.floats(0.1, 8))
def test_lies_between_one_and_classes_and_is_blind_to_order_and_shift(seed, classes, sharpness):
    rng = np.random.default_rng(seed)
    x = logits(120, classes, seed, sharpness)
    base = inception_score(x)
    assert 1 - 1e-12 <= base.mean <= classes + 1e-9
    other = inception_score(rng.permutation(x)[:, rng.permutation(classes)] + rng.normal(size=(120, 1)))
    assert other.mean == pytest.approx(base.mean)
    assert other.se == pytest.approx(base.se)


def test_sharper_predictions_score_higher():
    scores = [inception_score(logits(400, sharpness=s)).mean for s in (0.5, 1, 2, 4)]
    assert scores == sorted(scores)
    assert scores[-1] > 2 * scores[0]


def test_splits_are_taken_in_file_order():
    x = logits(200)
    parts = [inception_score(part).mean for part in (x[:100], x[100:])]
    assert inception_score(x, split=100).mean == pytest.approx(np.mean(parts))
    assert inception_score(x, split=100).std == pytest.approx(np.std(parts))


def test_a_shorter_last_split_counts_as_one():
    x = logits(420)
    parts = [inception_score(part).mean for part in (x[:150], x[150:300], x[300:])]
    assert inception_score(x, split=150).mean == pytest.approx(np.mean(parts))


def test_standard_errors_match_monte_carlo():
    def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
        full = logits(300, 5, seed, 2.0)
        return 0.8 * full + 0.5 * logits(300, 5, 10_000 + seed, 1.0), full

    single, difference = [], []
    for seed in range(300):
        quantized, full = pair(seed)
        score = inception_score(full, split=150)
        single.append((score.mean, score.se))
        difference.append(inception_score_difference(quantized, full, split=150))
    for values in (np.array(single), np.array(difference)):
        assert values[:, 1].mean() == pytest.approx(values[:, 0].std(), rel=0.12)


def test_the_difference_has_no_bias_where_plain_scores_have():
    def pair(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        full = logits(n, 10, seed, 4.0)
        return 0.5 * full, full

    big = [inception_score(x, split=100_000).mean for x in pair(100_000, 1)]
    truth = big[0] - big[1]
    pairs = [pair(100, 100 + seed) for seed in range(300)]
    plain = np.array([inception_score(q).mean - inception_score(f).mean for q, f in pairs])
    unbiased = np.array([inception_score_difference(q, f)[0] for q, f in pairs])
    spread = unbiased.std() / np.sqrt(len(unbiased))
    assert abs(unbiased.mean() - truth) < 4 * spread
    assert abs(plain.mean() - truth) > 8 * spread


def test_a_set_does_not_differ_from_itself():
    assert inception_score_difference(logits(100), logits(100)) == (0.0, 0.0)


def test_says_how_many_pictures_it_needs():
    assert pictures_needed(10) == 100
    assert pictures_needed(1008) == 5000
    with pytest.raises(TooFewSamples, match="needs at least 100 samples, got 99"):
        inception_score(logits(99))
    with pytest.raises(TooFewSamples, match="last split holds 1 of 101 samples and needs at least 100"):
        inception_score(logits(101), split=100)
    with pytest.raises(TooFewSamples, match="got 0"):
        inception_score(np.empty((0, 10)))


def test_refuses_what_is_not_logits():
    with pytest.raises(BadValue, match="K >= 2"):
        inception_score(np.ones((50, 1)))
    with pytest.raises(BadValue, match="NaN"):
        inception_score(np.full((100, 10), np.nan))
    with pytest.raises(BadValue, match="split of 20 pictures is too small"):
        inception_score(logits(100), split=20)
    with pytest.raises(BadValue, match="cannot be paired"):
        inception_score_difference(logits(100), logits(99))
