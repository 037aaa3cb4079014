import numpy as np
import pytest

from dither.evaluation import frechet
from dither.evaluation.features import FeatureTable, measure_accuracy, measure_frechet, view_of
from dither.evaluation.protocol import RealStats


class Lookup:
    """The first pixel of a picture is the row of a table of features and logits."""

    name = "lookup"

    def __init__(self, features, logits=None):
        self.features, self.logits = features, logits

    def __call__(self, images):
        rows = images[:, 0, 0, 0]
        return self.features[rows], None if self.logits is None else self.logits[rows]


def pictures(rows):
    return np.asarray(rows, np.uint8).reshape(-1, 1, 1, 1)


def filled(features, logits=None, n=100):
    table = FeatureTable(view_of(Lookup(features, logits)))
    for start in range(0, n, 40):
        stop = min(start + 40, n)
        table.add(pictures(range(start, stop)), pictures(range(100 + start, 100 + stop)))
    return table


def test_quantized_farther_from_real_is_a_positive_difference():
    x = np.random.default_rng(0).normal(size=(100, 2))
    y = x + np.random.default_rng(1).normal(size=x.shape) * 0.1 + [1.0, 0.0]
    real = RealStats(np.zeros(2), np.eye(2), 1000)
    fd = measure_frechet(filled(np.concatenate([x, y])), real)
    assert fd["difference_to_real"] == pytest.approx(fd["to_real"] - fd["full_precision_to_real"], rel=0.1)
    assert fd["difference_to_real"] > 0.8
    assert fd["to_full_precision"] == pytest.approx(1.0, abs=0.1)
    influences = [frechet.influence(features, real.mu, real.sigma) for features in (x, y)]
    assert fd["difference_se"] == pytest.approx(np.std(influences[1] - influences[0], ddof=1) / 10)
    assert fd["n"] == 100


def test_accuracy_counts_the_class_that_was_asked_for():
    predicted = [0] * 90 + [1] * 10 + [0] * 60 + [1] * 40
    table = filled(np.zeros((200, 1)), np.eye(2)[predicted])
    accuracy = measure_accuracy(table, [0] * 100, RealStats(np.zeros(1), np.eye(1), 9, accuracy=0.8))
    assert accuracy["full_precision"] == 0.9
    assert accuracy["quantized"] == 0.6
    assert accuracy["real"] == 0.8
    assert accuracy["difference"] == pytest.approx(-0.3)
    low, high = accuracy["ci95"]
    assert -0.42 < low < -0.3 < high < -0.18


def test_no_logits_no_accuracy():
    assert measure_accuracy(filled(np.zeros((200, 1))), [0] * 100, None) is None
