import copy

import pytest

from dither.report.entries import open_book
from dither.report.metrics import FD, METRICS, PSNR, estimate
from dither.report.pareto import front, pareto_charts


def small(psnr, half, size=1e6, **more):
    bounds = None if half is None else [psnr - half, psnr + half]
    return {
        "kind": "eval", "schema": 2, "psnr_db": {"mean": psnr, "ci95": bounds},
        "size": {"file_bytes": size}, **more,
    }  # fmt: skip


def test_names_are_told_apart():
    named = {"recipe": {"name": "rtn"}, "bits": "w4a8"}
    book = open_book([
        small(30, 1, **named, checkpoint="a"), small(31, 1, **named, checkpoint="b"), small(32, 1, **named, checkpoint="b"),
        small(33, 1),
    ])  # fmt: skip
    assert [entry.name for entry in book.entries] == ["rtn w4a8 (a)", "rtn w4a8 (b) #1", "rtn w4a8 (b) #2", "quantized"]


def test_without_pairs_only_disjoint_intervals_tell_apart():
    book = open_book([small(30, 1), small(31.5, 1), small(34, 1), small(40, None)])
    assert not book.apart(PSNR, 0, 1)
    assert book.apart(PSNR, 0, 2)
    assert book.beats(PSNR, 2, 0)
    assert not book.beats(PSNR, 0, 2)
    assert not book.apart(PSNR, 0, 3), "without an interval nothing is known"
    assert not book.apart(FD, 0, 1), "what was not measured is not told apart"


def test_results_of_different_settings_are_never_told_apart():
    book = open_book([small(30, 1, seed=0), small(40, 1, seed=1)])
    assert book.settings == 2
    assert not book.apart(PSNR, 0, 1)


def test_pairs_decide_before_intervals(comparison):
    pair = {"metric": "psnr_db", "a": 1, "b": 0, "difference": 0.4, "ci95": [0.1, 0.7], "distinguishable": True}
    book = open_book([{"kind": "compare", "schema": 2, "results": [small(30, 1), small(30.4, 1)], "pairs": [pair]}])
    assert book.beats(PSNR, 1, 0)
    turned = book.pair(PSNR, 0, 1)
    assert turned.difference == -0.4
    assert turned.interval == (-0.7, -0.1)
    undecided = copy.deepcopy(comparison)
    for entry in undecided["pairs"]:
        entry["distinguishable"] = False
    assert front(open_book([undecided]), PSNR) == [[5]], "nothing is joined that was not told apart"


def test_pairs_may_name_checkpoints():
    pair = {"metric": "psnr_db", "a": "x", "b": "y", "difference": 1.0, "distinguishable": True}
    results = [small(30, 9, checkpoint="x"), small(29, 9, checkpoint="y")]
    book = open_book([small(1, 1), {"kind": "compare", "schema": 2, "results": results, "pairs": [pair]}])
    assert book.beats(PSNR, 1, 2), "positions count from where the comparison begins"


def test_ranks_stay_with_their_results(comparison):
    book = open_book([small(1, 1), comparison])
    assert book.entries[0].ranks == {}
    assert [entry.ranks["psnr_db"] for entry in book.entries[1:]] == [tuple(r) for r in comparison["ranks"]["psnr_db"]]


def test_front_joins_what_nothing_smaller_matches():
    book = open_book(
        [small(40, 1, 4e6), small(30, 1, 1e6), small(30.5, 1, 2e6), small(36, 1, 3e6), small(20, 1, 3.5e6)]
    )
    assert front(book, PSNR) == [[1], [3], [0]]


def test_front_prefers_none_of_the_same_size_that_are_not_told_apart():
    book = open_book([small(30, 1, 1e6), small(30.5, 1, 1e6), small(25, 1, 1e6)])
    assert front(book, PSNR) == [[1, 0]]


def test_standard_errors_become_intervals_of_a_distance():
    found = estimate({"fd": {"to_full_precision": 1.0, "to_full_precision_se": 2.0}}, FD)
    assert (found.low, found.high) == (0.0, pytest.approx(4.92))


def boxes(chart):
    """Rough extents of all labels that the chart shows."""
    for mark in chart.marks:
        if mark.label:
            half = 3.2 * len(mark.label.name)
            yield mark.label.x - half, mark.label.y - 11, mark.label.x + half, mark.label.y + 2


def test_labels_never_overlap_and_stay_inside(comparison):
    crowd = [small(30 + 0.1 * i, 1, 1e6 * (1 + 0.003 * i), recipe={"name": f"recipe {i}"}) for i in range(14)]
    for files in ([comparison], crowd):
        for metric, charts in pareto_charts(open_book(files)):
            assert metric in METRICS
            for chart in charts:
                found = list(boxes(chart))
                assert found or chart.width < 400
                for i, a in enumerate(found):
                    assert chart.left - 1 <= a[0]
                    assert a[2] <= chart.width
                    for b in found[i + 1 :]:
                        assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_up_is_better_for_distances_too(comparison):
    charts = dict(pareto_charts(open_book([comparison])))
    for metric in METRICS:
        marks = charts[metric][0].marks
        values = [estimate(result, metric).value for result in comparison["results"]]
        best = values.index(max(values) if metric.higher_is_better else min(values))
        assert min(marks, key=lambda mark: mark.y).series == best


def test_the_upper_axis_needs_one_model(comparison):
    assert pareto_charts(open_book([comparison]))[0][1][0].bits
    comparison["results"][0]["size"]["model_bits_per_weight"] = 3.0
    assert not pareto_charts(open_book([comparison]))[0][1][0].bits
