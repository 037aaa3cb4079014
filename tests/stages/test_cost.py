"""Bits and bit operations of a linear, in numbers that can be checked by hand."""

import pytest

from dither.spec import Act, Codebook, Int, LinearSpec, LowRank
from dither.stages.cost import bit_operations, weight_bits

SHAPE = (16, 32)  # N, K


@pytest.mark.parametrize(
    ("fmt", "bits"),
    [
        (Int(4, group=8), 16 * 32 * 4 + 16 * 4 * 32),  # codes, and a float32 scale for each of four groups
        (Int(4, False, 8), 16 * 32 * 4 + 16 * 4 * (32 + 8)),  # and a zero point of a byte
        (Int(4), 16 * 32 * 4 + 16 * 32),
        (Int(8, group=32), 16 * 32 * 8 + 16 * 32),
    ],
)
def test_bits_are_those_that_are_stored(fmt, bits):
    assert weight_bits(LinearSpec(fmt), SHAPE) == bits
    assert weight_bits(LinearSpec(fmt, Act(Int(8)), 1, None, LowRank(2)), SHAPE) == bits  # the weight alone


@pytest.mark.parametrize(
    ("spec", "each"),
    [
        (LinearSpec(Int(4, group=8), Act(Int(8, group=8))), 32 * 4 * 8 + 4 * 2048),
        (LinearSpec(Int(4, group=16), Act(Int(8, group=16))), 32 * 4 * 8 + 2 * 2048),
        (LinearSpec(Int(4, False, 8), Act(Int(8, group=8))), 32 * 4 * 8 + 4 * (2048 + 4 * 32)),
        (LinearSpec(Int(4, False, 8), Act(Int(8, False, 8))), 32 * 4 * 8 + 4 * (2048 + 4 * 32 + 8 * 32)),
        (LinearSpec(Int(4, group=8), Act(Int(8))), 32 * 4 * 8 + 4 * 2048),  # the finer of both sides
        (LinearSpec(Int(4), Act(Int(8))), 32 * 4 * 8 + 2048),
        (LinearSpec(Int(4, group=8)), 32 * 32 * 32),  # decoded, and multiplied in float32
        (LinearSpec(Codebook(2, 16), Act(Int(8))), 32 * 32 * 32),
    ],
)
def test_bit_operations_of_ten_tokens(spec, each):
    assert bit_operations(spec, SHAPE, 10) == 10 * 16 * each
