import numpy as np
import pytest

from dither.errors import BadValue
from dither.evaluation.checks import TooFewSamples, feature_rows, same_width


def test_gives_rows_in_float64():
    rows = feature_rows(np.ones((3, 2), np.float32), "KID", 3)
    assert rows.dtype == np.float64
    assert rows.shape == (3, 2)


def test_names_the_metric_and_the_number_needed():
    with pytest.raises(TooFewSamples, match="KID needs at least 5 samples, got 3"):
        feature_rows(np.ones((3, 2)), "KID", 5)


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((3, 0)), np.array([[1.0], [np.nan]]), np.array([[np.inf], [1.0]])])
def test_refuses_other_shapes_and_values(bad):
    with pytest.raises(BadValue, match="KID"):
        feature_rows(bad, "KID")


def test_refuses_features_of_two_networks():
    with pytest.raises(BadValue, match="KID cannot compare features of 2 and 3 dimensions"):
        same_width(np.ones((4, 2)), np.ones((4, 3)), "KID")
