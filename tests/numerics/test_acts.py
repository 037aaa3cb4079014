"""Grids of activations: codes and values of each, tables, and what no calibration could have written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadFormat
from dither.numerics import (
    act_codes,
    act_quantize,
    act_values,
    dynamic_table,
    range_table,
    split_table,
    table_fault,
    table_layout,
)
from dither.spec import PER_TENSOR, Act, Float8, Int, Log2, TwoRegion

STEPS = {"scale": torch.tensor([[0.01]]), "upper": torch.tensor([[0.08]])}
GRIDS = {
    "int": (Int(5), {"scale": torch.tensor([[0.05]])}),
    "int asym": (Int(5, False), {"scale": torch.tensor([[0.05]]), "zero": torch.tensor([[7]], dtype=torch.uint8)}),
    "float8": (Float8(), {"scale": torch.tensor([[0.01]])}),
    "signs": (TwoRegion(5, signed=True), STEPS),
    "small and large": (TwoRegion(5), STEPS),
    "shift": (TwoRegion(5, shift=True), STEPS),
    "no ratio of integers": (TwoRegion(4), {"scale": torch.tensor([[0.01]]), "upper": torch.tensor([[0.0283]])}),
    "equal steps": (TwoRegion(4), {"scale": torch.tensor([[0.02]]), "upper": torch.tensor([[0.02]])}),
    "log2": (Log2(4), {"scale": torch.tensor([[1.5]])}),
}
"""Each with a table that fits."""


def line(count: int = 4001) -> torch.Tensor:
    return torch.linspace(-2, 2, count)[None]


@pytest.mark.parametrize(("grid", "table"), GRIDS.values(), ids=GRIDS)
def test_codes_are_of_the_width_and_values_are_a_fixed_point(grid, table):
    codes = act_codes(line(), grid, table)
    least, most = int(codes.min()), int(codes.max())
    assert most - least < 1 << grid.bits
    assert least >= (-(1 << grid.bits - 1) if codes.dtype == torch.int8 else 0)
    values = act_values(codes, grid, table)
    assert torch.equal(act_quantize(line(), grid, table), values)
    assert torch.equal(act_quantize(values, grid, table), values)


@pytest.mark.parametrize(("grid", "table"), GRIDS.values(), ids=GRIDS)
def test_rounding_keeps_the_order(grid, table):
    values = act_quantize(line(), grid, table)[0]
    assert bool((values[1:] >= values[:-1]).all())
    assert len(values.unique()) > 4


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    scale=st.floats(1e-4, 1.0),
    ratio=st.floats(1.0, 1000.0),
    x=st.lists(st.floats(0, 3), min_size=2, max_size=20),
)
def test_two_regions_share_no_value_out_of_order(bits, scale, ratio, x):
    """Whatever the steps: order is kept, and a value between two of the grid's lands on one of its neighbours' side."""
    grid = TwoRegion(bits)
    table = {"scale": torch.tensor([[scale]]), "upper": torch.tensor([[scale * ratio]])}
    assert table_fault(table, grid) is None
    values = act_quantize(torch.tensor([sorted(x)]), grid, table)[0]
    assert bool((values[1:] >= values[:-1]).all())
    every = act_values(torch.arange(1 << bits)[None], grid, table)[0]
    assert bool(torch.isin(values, every).all())


def test_two_regions_by_hand():
    """Three bits: Q = 4. Small 0, 1, 2, 3 tenths; large 0, 4, 8, 12 tenths, of which 0 is below the small ones."""
    table = {"scale": torch.tensor([[0.1]]), "upper": torch.tensor([[0.4]])}
    x = torch.tensor([[0.0, 0.04, 0.26, 0.34, 0.36, 0.59, 0.61, 5.0, -1.0]])
    assert act_codes(x, TwoRegion(3), table).tolist() == [[0, 0, 3, 3, 5, 5, 6, 7, 0]]
    want = torch.tensor([[0.0, 0.0, 0.3, 0.3, 0.4, 0.4, 0.8, 1.2, 0.0]])
    torch.testing.assert_close(act_quantize(x, TwoRegion(3), table), want)


def test_signs_by_hand():
    table = {"scale": torch.tensor([[0.1]]), "upper": torch.tensor([[1.0]])}
    x = torch.tensor([[-0.5, -0.26, -0.04, 0.0, 0.4, 0.6, 9.0]])
    assert act_codes(x, TwoRegion(3, signed=True), table).tolist() == [[-4, -3, 0, 0, 0, 1, 3]]
    torch.testing.assert_close(
        act_quantize(x, TwoRegion(3, signed=True), table), torch.tensor([[-0.4, -0.3, 0.0, 0.0, 0.0, 1.0, 3.0]])
    )


def test_powers_of_two_by_hand():
    x = torch.tensor([[1.0, 0.5, 0.36, 0.34, 0.12, 0.08, 0.0, -1.0, 4.0]])
    got = act_quantize(x, Log2(3), {"scale": torch.tensor([[1.0]])})
    assert got.tolist() == [[1.0, 0.5, 0.5, 0.25, 0.125, 0.0625, 0.0, 0.0, 1.0]]
    assert act_quantize(torch.tensor([[2.0**-6, 2.0**-7]]), Log2(3), {"scale": torch.ones(1, 1)}).tolist() == [
        [2.0**-6, 0]
    ]


def test_ranges_of_signs_reach_both_ends():
    table = range_table(torch.tensor([[-0.17]]), torch.tensor([[3.0]]), TwoRegion(8, signed=True))
    ends = act_quantize(torch.tensor([[-0.17, 3.0]]), TwoRegion(8, signed=True), table)
    torch.testing.assert_close(ends, torch.tensor([[-0.17, 3.0]]))
    assert table["scale"].item() == pytest.approx(0.17 / 128)
    assert table["upper"].item() == pytest.approx(3 / 127)


def test_ranges_of_float8_reach_the_larger_end():
    table = range_table(torch.tensor([[-0.17], [-7.0]]), torch.tensor([[3.0], [3.0]]), Float8())
    torch.testing.assert_close(table["scale"], torch.tensor([[3.0], [7.0]]) / 448)


def test_a_split_ends_where_it_says_and_shifts_by_powers_of_two():
    top, split = torch.tensor([[1.0]]), torch.tensor([[0.1]])
    table = split_table(top, split, TwoRegion(8))
    assert table["scale"].item() == pytest.approx(0.1 / 127)
    assert table["upper"].item() == pytest.approx(1 / 127)
    shifted = split_table(top, split, TwoRegion(8, shift=True))
    assert shifted["upper"].item() / shifted["scale"].item() == 16  # the lower region ends at 1/16, not above 1/10
    assert table_fault(shifted, TwoRegion(8, shift=True)) is None
    assert table_fault(table, TwoRegion(8, shift=True)) == (
        "upper",
        "holds steps that are no power of two times the lower region's",
    )


def test_dynamic_tables_follow_each_row_and_group():
    x = torch.tensor([[-0.1, 2.0, -0.4, 1.0], [0.0, 0.0, -8.0, 4.0]])
    table = dynamic_table(x, TwoRegion(3, signed=True, group=2))
    torch.testing.assert_close(table["scale"], torch.tensor([[0.025, 0.1], [0.0, 2.0]]))
    torch.testing.assert_close(table["upper"], torch.tensor([[2 / 3, 1 / 3], [0.0, 4 / 3]]))
    assert dynamic_table(x, Log2(4))["scale"].tolist() == [[2.0], [4.0]]
    assert dynamic_table(x, Log2(4, group=PER_TENSOR))["scale"].tolist() == [[4.0]]
    assert dynamic_table(448 * x, Float8(2))["scale"].tolist() == x.view(2, 2, 2).abs().amax(-1).tolist()
    assert dynamic_table(448 * x, Float8(PER_TENSOR))["scale"].tolist() == [[8.0]]


def test_zeros_stay_zeros():
    for grid in (Int(4), Int(4, False), TwoRegion(4, signed=True), Log2(4), Float8()):
        zeros = torch.zeros(2, 6)
        assert torch.equal(act_quantize(zeros, grid, dynamic_table(zeros, grid)), zeros)
    nothing = split_table(torch.zeros(1, 1), torch.zeros(1, 1), TwoRegion(4))
    assert torch.equal(act_quantize(torch.zeros(2, 6), TwoRegion(4), nothing), torch.zeros(2, 6))


def test_layouts():
    assert table_layout(Act(Int(8, False, 4), True, 3), 8) == {
        "scale": ((3, 2), torch.float32), "zero": ((3, 2), torch.uint8),
    }  # fmt: skip
    two = Act(TwoRegion(8), True, 2)
    assert table_layout(two, 8) == {"scale": ((2, 1), torch.float32), "upper": ((2, 1), torch.float32)}
    assert table_layout(Act(Log2(4), True), 8) == {"scale": ((1, 1), torch.float32)}
    assert table_layout(Act(Log2(4)), 8) == {}
    assert table_layout(Act(Float8(4), True, 2), 8) == {"scale": ((2, 2), torch.float32)}
    with pytest.raises(BadFormat, match="group size 3 does not divide"):
        table_layout(Act(Log2(4, group=3)), 8)


@pytest.mark.parametrize(
    ("grid", "table", "says"),
    [
        (Int(4), {"scale": torch.tensor([[-1.0]])}, ("scale", "negative")),
        (
            Int(4, False),
            {"scale": torch.ones(1, 1), "zero": torch.tensor([[16]], dtype=torch.uint8)},
            ("zero", "above 15"),
        ),
        (Float8(), {"scale": torch.tensor([[torch.nan]])}, ("scale", "NaN")),
        (Log2(4), {"scale": torch.tensor([[torch.inf]])}, ("scale", "infinite")),
        (TwoRegion(4, True), {"scale": torch.ones(1, 1), "upper": torch.tensor([[torch.nan]])}, ("upper", "NaN")),
        (TwoRegion(4), {"scale": torch.ones(1, 1), "upper": torch.tensor([[0.5]])}, ("upper", "finer than the lower")),
    ],
)
def test_faults_are_named(grid, table, says):
    name, words = table_fault(table, grid)
    assert name == says[0]
    assert says[1] in words


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TwoRegion(1), "1 bits"),
        (lambda: TwoRegion(8, signed=True, shift=True), "power of two"),
        (lambda: TwoRegion(8, group=-2), "group size -2"),
        (lambda: Log2(9), "9 bits"),
        (lambda: Log2(4, group=-2), "group size -2"),
        (lambda: Act(TwoRegion(8)), "must be static"),
        (lambda: range_table(torch.zeros(1, 1), torch.ones(1, 1), TwoRegion(8)), "where its regions meet"),
    ],
)
def test_impossible_grids_are_refused(make, says):
    with pytest.raises(BadFormat, match=says):
        make()
