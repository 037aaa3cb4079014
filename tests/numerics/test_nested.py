"""The Nested format: the middle of each run of codes, golden tensors, and what storing once costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.numerics import decode, decode_nested, encode, encode_int, encode_nested, high_bits, pack
from dither.numerics import nested as nested_module
from dither.spec import PER_TENSOR, Int, Nested

formats = st.builds(
    lambda bits, fewer, symmetric, group: Nested(Int(bits, symmetric, group), max(1, bits - fewer)),
    st.integers(2, 8), st.integers(1, 7), st.booleans(), st.sampled_from([0, PER_TENSOR, 4]),
)  # fmt: skip


def weight(seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(seed)) + shift


def test_golden_tensors() -> None:
    """Worked by hand: 4-bit codes -8, -1, 0, 7 read at 2 bits are the runs -8..-5, -4..-1, 0..3 and 4..7."""
    fmt = Nested(Int(4), 2)
    tensors = {"codes": pack(torch.tensor([[-8, -1, 0, 7]]), 4, signed=True), "scale": torch.tensor([[0.5]])}
    assert bytes(tensors["codes"].flatten().tolist()).hex() == "f870"
    assert decode(tensors, fmt, (1, 4)).tolist() == [[-3.0, -1.0, 1.0, 3.0]]  # half of -6, -2, 2, 6
    asym = {
        "codes": pack(torch.tensor([[0, 15, 16, 31]]), 5, signed=False),
        "scale": torch.tensor([[2.0]]),
        "zero": torch.tensor([[8]], dtype=torch.uint8),
    }
    assert bytes(asym["codes"].flatten().tolist()).hex() == "e0c10f"
    assert decode(asym, Nested(Int(5, False), 1), (1, 4)).tolist() == [[0.0, 0.0, 32.0, 32.0]]  # 2 (8 - 8), 2 (24 - 8)


@given(fmt=formats, seed=st.integers(0, 999))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_is_stored_is_the_whole(fmt: Nested, seed: int) -> None:
    w = weight(seed, 0.3)
    stored, whole = encode_nested(w, fmt), encode_int(w, fmt.whole)
    assert all(torch.equal(stored[name], whole[name]) for name in whole)
    assert set(stored) == set(whole)


@given(fmt=formats)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_run_of_codes_stands_for_the_one_in_its_middle(fmt: Nested) -> None:
    low = -(1 << fmt.whole.bits - 1) if fmt.whole.symmetric else 0
    dtype = torch.int8 if fmt.whole.symmetric else torch.uint8
    codes = torch.arange(low, low + (1 << fmt.whole.bits)).to(dtype)
    run = 1 << fmt.whole.bits - fmt.bits
    middle = [low + i // run * run + run // 2 for i in range(len(codes))]
    assert high_bits(codes, fmt).tolist() == middle
    assert len(set(middle)) == 1 << fmt.bits


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_that_were_moved_by_128_stay_so(bits: int) -> None:
    codes, fmt = torch.arange(256).to(torch.uint8), Nested(Int(8, False), bits)
    moved = (codes ^ 0x80).view(torch.int8)
    assert torch.equal(high_bits(moved, fmt), (high_bits(codes, fmt) ^ 0x80).view(torch.int8))


@given(fmt=formats, seed=st.integers(0, 999), shift=st.sampled_from([-2.0, 0.0, 1.0]))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_no_value_moves_by_more_than_half_a_wide_step(fmt: Nested, seed: int, shift: float) -> None:
    w = weight(seed, shift)
    stored = encode_nested(w, fmt)
    error = (decode_nested(stored, fmt, w.shape) - w).abs()
    scale = stored["scale"].repeat_interleave(12 // stored["scale"].shape[1], 1).expand_as(w)
    steps = (1 << fmt.whole.bits - fmt.bits) / 2 + 0.5  # to the middle of a run, and the rounding of the whole width
    assert torch.all(error <= scale * (steps + 1e-4))


@pytest.mark.parametrize("symmetric", [True, False])
def test_errors_are_those_of_the_table(symmetric: bool) -> None:
    """The table in the module's docstring: above 1 where two roundings show, below where cells serve better than ends."""
    w = torch.randn(256, 1152, generator=torch.Generator().manual_seed(0))

    def error(fmt: Int | Nested) -> float:
        return float((decode(encode(w, fmt), fmt, w.shape) - w).square().mean())

    whole = Int(8, symmetric)
    nested = [error(Nested(whole, b)) for b in range(1, 8)]
    assert nested == sorted(nested, reverse=True)
    ratios = [e / error(Int(b, symmetric)) for b, e in zip(range(1, 8), nested, strict=True)]
    assert nested_module.__doc__ is not None
    (line,) = [
        x for x in nested_module.__doc__.splitlines() if x.split()[:1] == ["symmetric" if symmetric else "asymmetric"]
    ]
    assert [float(x) for x in line.split()[1:]] == pytest.approx(ratios, abs=0.02)
