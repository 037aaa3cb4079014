import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation.planning import detectable_difference, samples_needed


def test_the_factors_of_the_textbook():
    assert detectable_difference(1.0) == pytest.approx(2.80, abs=0.005)
    assert detectable_difference(1.0, power=0.5) == pytest.approx(1.96, abs=0.005)
    # A paired PSNR difference of 1.5 dB spread.
    assert [samples_needed(1.5, d) for d in (0.1, 0.25, 0.5)] == [1766, 283, 71]
    assert samples_needed(0.0, 1.0) == 2


def test_one_undoes_the_other():
    n = samples_needed(1.5, 0.2)
    assert detectable_difference(1.5 / np.sqrt(n)) <= 0.2 < detectable_difference(1.5 / np.sqrt(n - 1))


def test_the_power_is_what_it_says():
    n = samples_needed(1.0, 0.4)
    x = np.random.default_rng(0).normal(0.4, 1.0, size=(4000, n))
    found = np.abs(x.mean(axis=1)) > 1.96 / np.sqrt(n)
    assert found.mean() == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("call", [(np.nan,), (-1.0,)])
def test_refuses_a_bad_error(call):
    with pytest.raises(BadValue, match="standard error"):
        detectable_difference(*call)


def test_refuses_nothing_to_find():
    with pytest.raises(BadValue, match="other than 0"):
        samples_needed(1.0, 0.0)
    with pytest.raises(BadValue, match="power"):
        samples_needed(1.0, 0.1, power=1.0)
