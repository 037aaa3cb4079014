import json

import numpy as np
import pytest

from benchmarks import coverage, coverage_guards, populations
from benchmarks.common import RESULTS
from benchmarks.coverage_cells import CELLS
from dither.errors import BadValue


def test_a_row_counts_and_says_how_sure_it_is():
    about = {"what": "x", "case": "y", "n": 64, "dimension": None, "reason": None}
    found = coverage.row(about, [True] * 95 + [False] * 5, None)
    assert (found["coverage"], found["repeats"], found["right"]) == (0.95, 100, True)
    assert found["low"] < 0.95 < found["high"]
    assert coverage.row(about, [True] * 100, None)["right"] is False
    assert coverage.row({**about, "reason": "wide"}, [True] * 100, None)["right"] is True
    assert coverage.row({**about, "reason": "wide"}, [True] * 9 + [False], None)["right"] is False
    refused = coverage.row(about, [], "needs 128")
    assert (refused["coverage"], refused["right"], refused["reason"]) == (None, None, "needs 128")


def test_a_run_goes_on_where_it_stopped(tmp_path):
    first = coverage.measure(50, 0, 1, tmp_path, "cluster-64")
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert len(kept) == 2
    assert coverage.measure(50, 0, 1, tmp_path, "cluster-64") == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept
    assert 0.85 <= first[0]["coverage"] <= 0.99


def test_too_few_pictures_are_refused_with_the_number(tmp_path, monkeypatch):
    monkeypatch.setattr(populations, "TRUTH_SAMPLES", populations.CHUNK)
    (found,) = [row for row in coverage.measure(50, 0, 1, tmp_path, "fd nothing-64") if "paired" in row["what"]]
    assert found["coverage"] is None
    assert "at least 128 pictures, got 64" in found["reason"]


def test_pairs_differ_by_what_the_change_says():
    rng = np.random.default_rng(0)
    full, quantized = populations.draw(populations.CHANGES["slight"], 4000, rng)
    assert full.shape == quantized.shape == (4000, populations.DIMENSION)
    assert 0.9 < np.corrcoef(full[:, 0], quantized[:, 0])[0, 1] < 1
    mixed = populations.draw(populations.CHANGES["nothing"], 20_000, rng)
    np.testing.assert_allclose(mixed[0].mean(axis=0), mixed[1].mean(axis=0), atol=0.05)


def test_recipes_change_the_same_pictures():
    full, recipes = populations.draw_recipes(populations.CHANGES["slight"], 2, 50, np.random.default_rng(0))
    assert len(recipes) == 2
    assert not np.array_equal(*recipes)
    assert all(np.corrcoef(full.ravel(), x.ravel())[0, 1] > 0.9 for x in recipes)


def test_guards_are_asked_for_what_they_print():
    rng = np.random.default_rng(0)
    for metric in coverage_guards.METRICS:
        full, quantized, real = coverage_guards.sample(metric, "broken", 128, rng)
        low, high = coverage_guards.printed_interval(metric, full, quantized, real)
        assert low < high
        same = coverage_guards.printed_interval(metric, full, full, real)
        assert same[0] <= 0 <= same[1]
    few = coverage_guards.sample("recall", "broken", 64, rng)
    with pytest.raises(BadValue, match="at least 80"):
        coverage_guards.printed_interval("recall", *few)


def test_a_truth_is_zero_only_where_nothing_differs(monkeypatch):
    monkeypatch.setattr(coverage_guards, "TRUTH_SETS", 2)
    monkeypatch.setattr(coverage_guards, "TRUTH_SIZE", 500)
    monkeypatch.setattr(coverage_guards, "RECALL_SETS", 2)
    for metric in coverage_guards.METRICS:
        assert coverage_guards.truth(metric, "nothing", 128) == 0
        assert coverage_guards.truth(metric, "broken", 128) != 0


def test_features_have_the_size_that_the_kernel_is_made_for():
    real = coverage_guards.fixed_real()
    np.testing.assert_allclose(np.linalg.norm(coverage_guards.scaled("cmmd", real), axis=1), 1)
    assert np.square(coverage_guards.scaled("kid", real)).mean() == pytest.approx(coverage_guards.KID_SQUARE)
    assert coverage_guards.scaled("recall", real) is real


def test_moments_are_those_of_a_large_sample(monkeypatch):
    monkeypatch.setattr(populations, "TRUTH_SAMPLES", 20_000)
    fits = populations.moments(populations.CHANGES["nothing"], np.random.default_rng(0))
    full, quantized, real = (sigma.trace() for _, sigma in fits)
    assert quantized == pytest.approx(full, rel=0.02)
    assert real > full


def test_every_committed_interval_holds():
    result = json.loads((RESULTS / "coverage.json").read_text(encoding="utf-8"))
    rows = result["rows"]
    assert [(row["what"], row["case"], row["n"]) for row in rows] == [(c.what, c.case, c.n) for c in CELLS.values()]
    assert all(row["right"] is not False for row in rows)
    assert all(row["repeats"] >= 200 for row in rows if row["right"] is not None)
    assert all(row["reason"] for row in rows if row["right"] is None)
