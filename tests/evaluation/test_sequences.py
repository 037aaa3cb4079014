import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dither.errors import BadValue
from dither.evaluation.sequences import ConfidenceSequence, Verdict


def peek(x: np.ndarray, batch: int) -> Verdict:
    sequence = ConfidenceSequence()
    for start in range(0, len(x), batch):
        if sequence.add(x[start : start + batch]) is not Verdict.UNDECIDED:
            break
    return sequence.verdict


@pytest.mark.parametrize("skewed", [False, True])
def test_peeking_keeps_false_positives_below_the_level_where_t_tests_do_not(skewed):
    rng = np.random.default_rng(0)
    shape = (400, 1024)
    # Paired PSNR differences: a difference of two skewed values, or a normal one.
    x = rng.gumbel(size=shape) - rng.gumbel(size=shape) if skewed else rng.normal(size=shape)
    ours = np.mean([peek(row, 16) is not Verdict.UNDECIDED for row in x])
    n = np.arange(1, shape[1] + 1)
    mean = x.cumsum(axis=1) / n
    spread = np.sqrt(np.maximum((x**2).cumsum(axis=1) / n - mean**2, 1e-9) * n / np.maximum(n - 1, 1))
    looks = np.arange(15, shape[1], 16)
    t = np.abs(mean / spread * np.sqrt(n))[:, looks]
    assert ours <= 0.06
    assert (t > stats.t.ppf(0.975, looks)).any(axis=1).mean() > 0.3


def test_finds_an_effect_and_its_sign():
    rng = np.random.default_rng(1)
    assert peek(rng.normal(0.5, 1, 400), 8) is Verdict.BETTER
    assert peek(rng.normal(-0.5, 1, 400), 8) is Verdict.WORSE


def test_the_formula_at_one_point():
    x = np.arange(100.0)
    sequence = ConfidenceSequence(alpha=0.1, start=50)
    sequence.add(x)
    r2 = (-2 * math.log(0.1) + math.log(1 - 2 * math.log(0.1))) / 50
    t = 100
    half = x.std(ddof=1) * math.sqrt(2 * (t * r2 + 1) / (t**2 * r2) * math.log(math.sqrt(t * r2 + 1) / 0.1))
    assert sequence.interval() == pytest.approx((49.5 - half, 49.5 + half))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(-(10**6), 10**6))
def test_batches_do_not_matter(sizes, offset):
    x = np.random.default_rng(0).normal(size=sum(sizes)) + offset
    whole, parts = ConfidenceSequence(start=2), ConfidenceSequence(start=2)
    whole.add(x)
    for part in np.split(x, np.cumsum(sizes)[:-1]):
        parts.add(part)
    assert parts.count == whole.count
    assert parts.mean == pytest.approx(whole.mean)
    assert parts.squares == pytest.approx(whole.squares, rel=1e-6, abs=1e-6)


def test_silent_before_the_start_and_a_verdict_stays():
    sequence = ConfidenceSequence()
    rng = np.random.default_rng(0)
    assert sequence.add(rng.normal(9, 1, 63)) is Verdict.UNDECIDED
    assert sequence.interval() is None
    assert sequence.add([]) is Verdict.UNDECIDED
    assert sequence.add([9.0]) is Verdict.BETTER
    assert sequence.add(np.full(2000, -9.0)) is Verdict.BETTER


def test_refuses():
    with pytest.raises(BadValue, match="finite"):
        ConfidenceSequence().add([np.nan])
    with pytest.raises(BadValue, match="one axis"):
        ConfidenceSequence().add([[1.0]])
    with pytest.raises(BadValue, match="alpha"):
        ConfidenceSequence(alpha=0)
