import math
from itertools import chain, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.report.axes import COLOURS, SHAPES, Scale, log_ticks, round_ticks, spread, text_width
from dither.report.bits import bits_charts
from dither.report.curves import step_charts
from dither.report.dots import psnr_strips
from dither.report.entries import open_book
from dither.report.form import byte_size, decimals, interval, signed, significant


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [(0, 1, 5, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (9.4, 61.6, 8, [10, 20, 30, 40, 50, 60]), (-3, 3, 3, [-2, 0, 2])],
)
def test_ticks_are_round(low, high, count, expected):
    assert round_ticks(low, high, count) == pytest.approx(expected)


def test_log_ticks_thin_out_with_the_range():
    assert log_ticks(0.9, 1100, 5) == [1, 10, 100, 1000]
    assert log_ticks(0.9, 11, 5) == [1, 2, 5, 10]
    assert len(log_ticks(1e-6, 1e6, 5)) <= 5
    assert len(log_ticks(2.1, 2.9, 5)) > 1


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_spread_keeps_order_and_distance(wanted):
    placed = spread(wanted, 15, 0, 200)
    assert all(0 <= value <= 200 + 1e-9 for value in placed)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(15, 200 / max(len(wanted) - 1, 1))
    for a, b in pairwise(order):
        assert placed[b] - placed[a] >= gap - 1e-6


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-1e9, 1e9), st.booleans())
def test_scales_stay_on_the_axis(value, log):
    scale = Scale(0.1, 1000, 50, 10, log)
    assert 10 <= scale(value) <= 50
    assert scale(0.1) == 50
    assert scale(1000) == pytest.approx(10)


def test_fifty_series_differ_in_colour_or_shape():
    assert math.gcd(COLOURS, len(SHAPES)) == 1
    assert COLOURS * len(SHAPES) >= 50
    assert text_width("mmm") > text_width("iii")


def test_curves_show_band_parts_and_gaps(result):
    result["trajectory"]["x0_snr_db"][10] = None
    charts = {wide.title: wide for wide, _ in step_charts(open_book([result]).entries)}
    assert list(charts) == [
        "Teacher-forced error", "Drift", "Signal to noise of the predicted picture", "Amplification by guidance",
    ]  # fmt: skip
    error = charts["Teacher-forced error"]
    assert [curve.name for curve in error.curves] == ["smoothquant w8a8", "conditional", "unconditional"]
    assert error.curves[0].band
    assert not error.curves[1].band
    snr = charts["Signal to noise of the predicted picture"].curves[0]
    assert len(snr.pieces) == 2
    assert len(snr.dots) == 24
    assert "step 1, timestep 960" in snr.dots[0].title


def test_curves_of_several_results_name_each_once(comparison):
    for chart in chain.from_iterable(step_charts(open_book([comparison]).entries)):
        assert len({curve.name for curve in chart.curves}) == 6
        ends = sorted(curve.label_y for curve in chart.curves)
        assert all(b - a >= 14.9 for a, b in pairwise(ends))


def test_drift_of_older_results_is_drawn(result):
    del result["trajectory"]
    assert [wide.title for wide, _ in step_charts(open_book([result]).entries)] == ["Drift"]


def test_bits_have_a_row_a_kind_and_a_column_a_block(result):
    wide, narrow = bits_charts(result)
    assert [row.kind for row in wide.rows] == ["qkv", "attn_out", "fc1", "fc2", "final", "embed"]
    assert [len(row.bars) for row in wide.rows] == [18, 6, 6, 6, 2, 1]
    assert [tick.label for tick in wide.blocks] == ["0", "1", "2", "3", "4", "5", "other"]
    fc2 = wide.rows[3].bars
    assert fc2[0].height > fc2[1].height, "the first block has a bit more"
    assert all(bar.full for row in wide.rows[4:] for bar in row.bars)
    assert narrow.width < wide.width
    for chart in (wide, narrow):
        for row in chart.rows:
            assert all(chart.left <= bar.x and bar.x + bar.width <= chart.right for bar in row.bars)


def test_strip_puts_every_picture_in_place(result):
    wide = psnr_strips(result)[0]
    values = result["psnr_db"]["per_image"]
    assert len(wide.dots) == len(values)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert [wide.dots[i][0] for i in order] == sorted(dot[0] for dot in wide.dots)
    assert {reference.name for reference in wide.references} == {"noise floor", "other seeds"}


@pytest.mark.parametrize(
    ("count", "shown"),
    [(None, "–"), (12, "12 B"), (1500, "1.50 kB"), (4.2e6, "4.20 MB"), (123e6, "123 MB"), (2.7e9, "2.70 GB")],
)
def test_byte_size(count, shown):
    assert byte_size(count) == shown


def test_numbers_look_right():
    assert decimals(-1.234, 1) == "−1.2"
    assert significant(123456.0) == "123456"
    assert significant(0.00012) == "0.00012"
    assert significant(None) == signed(None) == "–"
    assert signed(0.0312) == "+0.031"
    assert interval((33.94, 34.61), 1) == "33.9 to 34.6"
    assert interval(None, 1) == ""
