"""Packing: golden bytes at several widths, and exact round trips at every width and shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.errors import BadFormat, BadValue
from dither.numerics import pack, packed_width, unpack

GOLDEN = [
    # bits, signed, codes, bytes: least significant bit first, codes may cross bytes, the tail is zero
    (1, False, [1, 0, 1, 1, 0, 0, 0, 1, 1], "8d01"),
    (1, True, [-1, 0, 0, -1], "09"),
    (2, False, [0, 1, 2, 3, 1], "e401"),
    (2, True, [0, 1, -2, -1], "e4"),
    (3, False, [0, 1, 2, 3, 4, 5, 6, 7], "88c6fa"),
    (3, True, [-4, 3, -1], "dc01"),
    (4, True, [-8, 7, -1], "780f"),
    (5, False, [31, 0, 31], "1f7c"),
    (6, False, [1, 2, 3, 4], "813010"),
    (7, True, [-64, 63], "c01f"),
    (8, True, [-128, -1, 127], "80ff7f"),
    (8, False, [0, 255], "00ff"),
    (9, False, [256, 1], "000300"),
    (12, False, [0xABC, 0xDEF], "bcfade"),
    (16, True, [-2, 258], "feff0201"),
]


@pytest.mark.parametrize(("bits", "signed", "codes", "golden"), GOLDEN)
def test_golden_bytes(bits: int, signed: bool, codes: list[int], golden: str) -> None:
    table = torch.tensor([codes, codes[::-1]])
    packed = pack(table, bits, signed)
    assert bytes(packed[0].tolist()).hex() == golden
    assert torch.equal(unpack(packed, bits, len(codes), signed).long(), table)


@given(
    bits=st.integers(1, 16),
    signed=st.booleans(),
    rows=st.integers(1, 4),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_round_trip(bits: int, signed: bool, rows: int, count: int, seed: int) -> None:
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    codes = torch.randint(low, high, (rows, count), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes, bits, signed)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, packed_width(count, bits))
    back = unpack(packed, bits, count, signed)
    assert back.dtype == (torch.int32 if bits > 8 else torch.int8 if signed else torch.uint8)
    assert torch.equal(back.long(), codes)


def test_every_width_agrees_with_the_bit_stream() -> None:
    """An independent, slow reading of the definition: code i is bits [i b, (i + 1) b) of one long integer."""
    for bits in range(1, 17):
        codes = torch.randint(0, 1 << bits, (1, 23), generator=torch.Generator().manual_seed(bits))
        stream = sum(int(c) << i * bits for i, c in enumerate(codes[0]))
        golden = stream.to_bytes(packed_width(23, bits), "little")
        assert bytes(pack(codes, bits, signed=False)[0].tolist()) == golden, bits


def test_rows_can_be_cut_without_repacking() -> None:
    codes = torch.randint(0, 8, (5, 11))
    assert torch.equal(pack(codes, 3, signed=False)[2:4], pack(codes[2:4], 3, signed=False))


def test_eight_bits_are_a_view() -> None:
    codes = torch.randint(-128, 128, (3, 5), dtype=torch.int8)
    packed = pack(codes, 8, signed=True)
    assert packed.data_ptr() == codes.data_ptr()
    assert unpack(packed, 8, 5, signed=True).data_ptr() == codes.data_ptr()


def test_a_column_slice_packs_like_its_copy() -> None:
    codes = torch.randint(0, 16, (4, 12), dtype=torch.uint8)
    for bits in (4, 8):
        assert torch.equal(pack(codes[:, 3:9], bits, signed=False), pack(codes[:, 3:9].clone(), bits, signed=False))


@pytest.mark.parametrize(("bits", "signed", "code"), [(4, True, 8), (4, True, -9), (3, False, 8), (8, False, -1)])
def test_a_code_that_does_not_fit_is_refused(bits: int, signed: bool, code: int) -> None:
    with pytest.raises(BadValue, match=f"{bits} bits hold"):
        pack(torch.tensor([[0, code]]), bits, signed)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_unknown_width_is_refused(bits: int) -> None:
    with pytest.raises(BadFormat, match="1 to 16"):
        pack(torch.zeros(1, 1, dtype=torch.int8), bits, signed=True)


def test_a_row_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(BadFormat, match="9 codes of 4 bits take 5"):
        unpack(torch.zeros(2, 4, dtype=torch.uint8), 4, 9, signed=True)
