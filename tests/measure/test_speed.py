import time

import numpy as np
import pytest
from scipy import stats

import dither
from dither.measure.speed import median_interval, memory, speed, take_turns
from dither.sources import open_source


def test_simulated_layers_have_no_speed(folders, tmp_path):
    one_bit = dither.quantize(open_source(str(folders[0])).pipeline, "rtn", "w4a1")  # codes of -1 and +1
    dither.save(one_bit, tmp_path / "small")
    small, full = open_source(str(tmp_path / "small")), open_source(str(folders[0]))
    found = speed(small, full, [0, 1], [0, 1], 1.5)
    assert (found["ratio"], found["ci95"]) == (None, None)
    assert "simulated" in found["reason"]


def test_integer_layers_have_a_ratio_with_an_interval(subjects):
    found = speed(subjects[1].source, subjects[0].source, [0, 1], [0, 1], 1.5)
    assert found["ci95"][0] <= found["ratio"] <= found["ci95"][1]
    assert (found["batch_size"], found["against"], found["reason"]) == (2, "float32", None)


def test_turns_alternate_and_the_ratio_is_that_of_times():
    order = []

    def wait(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    ratios = take_turns(wait("a", 0.02), wait("b", 0.002), 4)
    assert "".join(order) == "ab" + "baab" * 2
    assert np.median(ratios) > 2


@pytest.mark.parametrize("n", [7, 11, 25])
def test_the_interval_of_a_median_covers(n):
    # The number of values below the median is binomial: what the interval misses can be computed.
    values = np.arange(n, dtype=float)
    low, high = median_interval(values)
    missed = 2 * stats.binom.cdf(int(low), n, 0.5)  # fewer than low + 1 values below
    assert missed <= 0.05
    assert 2 * stats.binom.cdf(int(low) + 1, n, 0.5) > 0.05
    assert high == n - 1 - low


def test_memory_counts_what_is_loaded(subjects):
    found = memory(subjects[1].source.model, subjects[0].source.model)
    full = sum(p.numel() * p.element_size() for p in subjects[0].source.model.parameters())
    assert found["full_precision_weight_bytes"] >= full
    assert found["ratio"] == found["full_precision_weight_bytes"] / found["weight_bytes"] > 1
