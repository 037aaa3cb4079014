"""Widths by noise level are read from rows of any age."""

import pytest

from dither.report.widths import (
    Range,
    bank_sentence,
    edges_of,
    format_said,
    ranges_of,
    weights_change,
    weights_in,
    widths_said,
)

TIMES = [
    {"low": 0.0, "high": 0.5, "weight_bits": 8, "act_bits": 8},
    {"low": 0.5, "high": 1.0, "weight_bits": 4, "act_bits": 8},
]


def test_ranges_come_in_the_order_of_sampling():
    assert ranges_of({"by_time": TIMES}) == [Range(0.5, 1.0, 4, 8), Range(0.0, 0.5, 8, 8)]


@pytest.mark.parametrize(
    ("weight", "bits"),
    [("int4 sym per row", 4), ("4 of int8 sym per row", 4), ("codebook 256x4", None), (None, None), ("int99 x", None)],
)
def test_one_width_is_read_from_the_words(weight, bits):
    assert ranges_of({"weight": weight, "act": "int8 sym per token dynamic"}) == [Range(0.0, 1.0, bits, 8)]


def test_ranges_that_make_no_sense_are_left_out():
    upside_down = {"low": 0.5, "high": 0.5, "weight_bits": 4, "act_bits": 8}
    assert ranges_of({"by_time": [upside_down, {"low": 0}], "weight": "int3 sym per row"}) == [Range(0, 1, 3, None)]


def test_edges_are_where_this_side_changes():
    assert edges_of([ranges_of({"by_time": TIMES})], "weight") == [1.0, 0.5, 0.0]
    assert edges_of([ranges_of({"by_time": TIMES})], "act") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("4 | 8 of int8 sym per row", "int4/8 sym per row"),
        ("int8 sym per row | int4 sym per row", "int4/8 sym per row"),
        ("int8 sym per row | int4 sym group 64", "4/8 bits: int8 sym per row | int4 sym group 64"),
    ],
)
def test_formats_of_changing_widths_are_said_in_one(words, said):
    row = {"by_time": TIMES, "weight": words, "act": "int8 sym per token dynamic"}
    assert widths_said(row, "weight") == "4/8"
    assert format_said(row, "weight") == said
    assert (widths_said(row, "act"), format_said(row, "act")) == ("", "int8 sym per token dynamic")


def test_equal_banks_are_counted():
    assert format_said({"weight": "int4 sym per row | int4 sym per row"}, "weight") == "int4 sym per row, 2 banks"
    assert format_said({"weight": "int4 sym per row"}, "weight") == "int4 sym per row"
    assert format_said({}, "weight") is None


def test_banks_and_counts():
    rows = [{"by_time": TIMES, "bank_bytes": 1500, "shape": [3, 5]}, {"bank_bytes": 500}]
    result = {"layers": {"rows": rows}, "size": {"file_bytes": 20_000}}
    assert "2.00 kB, 10.0 % of the file" in bank_sentence(result)
    assert bank_sentence({"layers": {"rows": [{"bank_bytes": 0}]}}) == ""
    assert weights_in(rows[0]) == 15
    assert weights_change(result)
    assert not weights_change({"layers": {"rows": [{"weight": "int4 sym per row"}]}})
