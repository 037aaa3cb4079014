"""The Trellis format: windows by hand, the best path against all paths, a Gaussian source, and what is refused."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dither.errors import BadFormat, BadValue
from dither.numerics import (
    decode_trellis,
    encode_trellis,
    pack,
    pack_trellis,
    trellis_bits,
    trellis_codes,
    trellis_from_bits,
)
from dither.numerics.deviation import UNIT
from dither.numerics.trellis import trellis_values
from dither.spec import Trellis


def gauss(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def windows(bits: list[int], fmt: Trellis) -> list[int]:
    """By the text of a ring of bits: the window of a weight is the last L of those up to its own."""
    ring = "".join(f"{b:0{fmt.bits}b}" for b in bits)
    text = ring * (fmt.states // len(ring) + 2)
    ends = [len(text) - len(ring) + fmt.bits * (t + 1) for t in range(len(bits))]
    return [int(text[e - fmt.states : e], 2) for e in ends]


def values_of(bits: Tensor, fmt: Trellis) -> Tensor:
    return torch.stack([trellis_values(fmt.states)[windows(row.tolist(), fmt)] for row in bits])


@given(bits=st.integers(1, 4), extra=st.integers(1, 8), length=st.integers(1, 13), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_weight_is_the_value_of_its_window(bits: int, extra: int, length: int, seed: int) -> None:
    states = min(bits + extra, 12)
    if length * bits < states:
        return
    fmt = Trellis(bits, states, 1, length)
    codes = torch.randint(1 << bits, (3, 2 * length), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    tensors = {"codes": pack(codes, bits, signed=False), "scale": torch.tensor([[1.0], [0.5], [0.0]]).bfloat16()}
    want = torch.cat([values_of(part, fmt) for part in codes.split(length, 1)], 1)  # two tiles side by side
    assert torch.equal(trellis_codes(tensors, fmt, (3, 2 * length)), want)
    got = decode_trellis(tensors, fmt, (3, 2 * length))
    assert torch.equal(got, want.float() * tensors["scale"].float())


@pytest.mark.parametrize("states", range(2, 17))
def test_values_are_quantiles_and_no_platform_rounds_them_otherwise(states: int) -> None:
    values = trellis_values(states)
    count = 1 << states
    exact = UNIT * torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    assert values.dtype == torch.int8
    assert torch.equal(values.sort().values, exact.round().to(torch.int8))
    assert float((exact - exact.floor() - 0.5).abs().min()) > 1e-9
    assert torch.equal(values.sort().values, -values.sort(descending=True).values)
    for kept in (1, 2, 3):  # the values that follow a state are spread
        if states > kept + 4:
            following = values.view(-1, 1 << kept).float()
            assert float(following.amax(1).sub(following.amin(1)).mean()) > 0.9 * UNIT


def test_golden_values() -> None:
    assert trellis_values(3).tolist() == [-44, -26, -14, -5, 14, 5, 44, 26]
    assert trellis_values(12)[[0, 1, 2, 1000, 4095]].tolist() == GOLDEN


GOLDEN = [-106, 20, 23, -23, -50]


@pytest.mark.parametrize(("bits", "states", "length"), [(1, 3, 7), (1, 4, 9), (2, 3, 4), (2, 4, 4), (3, 4, 3)])
def test_the_path_is_the_best_of_all_for_its_overlap(bits: int, states: int, length: int) -> None:
    """Of all rings that share its overlap, by trying every one; and near the best of all rings."""
    fmt, x = Trellis(bits, states, 1, length), gauss(40, length)
    every = torch.tensor(list(itertools.product(range(1 << bits), repeat=length)))
    every_window = torch.tensor([windows(row.tolist(), fmt) for row in every])
    values = trellis_values(states).float()[every_window] / UNIT
    errors = (x[:, None] - values).square().sum(2)  # (tiles, rings)
    path = torch.cat([trellis_bits(row[None], fmt) for row in x])
    index = sum(path[:, t].long() << bits * (length - 1 - t) for t in range(length))
    assert torch.equal(every[index], path.long())
    overlap = every_window[:, -1] & (1 << states - bits) - 1
    mine = errors.gather(1, index[:, None])[:, 0]
    same = overlap[None] == overlap[index][:, None]
    torch.testing.assert_close(mine, errors.masked_fill(~same, torch.inf).amin(1))
    assert float(mine.mean()) < 1.25 * float(errors.amin(1).mean())


@pytest.mark.parametrize(("bits", "most"), [(1, 0.29), (2, 0.076), (3, 0.0202), (4, 0.0056)])
def test_a_gaussian_source_comes_near_the_bound(bits: int, most: float) -> None:
    w, fmt = gauss(32, 128), Trellis(bits)
    error = float((decode_trellis(encode_trellis(w, fmt), fmt, w.shape) - w).square().mean())
    assert 4.0**-bits < error < most


def test_more_states_fit_better() -> None:
    w = gauss(16, 64)
    errors = [
        float((decode_trellis(encode_trellis(w, fmt), fmt, w.shape) - w).square().mean())
        for fmt in (Trellis(2, states) for states in (4, 6, 8, 10, 12))
    ]
    assert errors == sorted(errors, reverse=True)


def test_rows_have_scales_of_their_own_and_zeros_stay() -> None:
    fmt = Trellis(3, 8, 4, 8)
    w = gauss(8, 32) * torch.tensor([1e-6, 1.0, 1e4, 0.0, 3.0, 1e-3, 1.0, 1.0])[:, None]
    got = decode_trellis(encode_trellis(w, fmt), fmt, w.shape)
    share = (got - w).square().mean(1) / w.square().mean(1)
    assert bool((share[[0, 1, 2, 4, 5, 6, 7]] < 0.08).all())
    assert bool((got[3] == 0).all())


def test_the_scale_is_the_best_there_is_for_the_codes() -> None:
    fmt, w = Trellis(2, 6, 2, 8), gauss(4, 16)
    tensors = encode_trellis(w, fmt)
    values = trellis_codes(tensors, fmt, w.shape).double()
    best = (w.double() * values).sum(1) / values.square().sum(1)
    torch.testing.assert_close(tensors["scale"].double()[:, 0], best, rtol=2**-8, atol=0)


def test_a_stage_may_choose_the_bits() -> None:
    fmt, w = Trellis(2, 6, 2, 4), gauss(4, 8)
    bits = torch.randint(4, (4, 8), generator=torch.Generator().manual_seed(3)).to(torch.uint8)
    scale = torch.tensor([[1.0], [2.0], [0.5], [0.0]])
    tensors = pack_trellis(bits, scale, fmt, w.shape)
    want = trellis_from_bits(bits, fmt, w.shape) * scale
    torch.testing.assert_close(decode_trellis(tensors, fmt, w.shape), want, rtol=2**-8, atol=0)
    tiles = trellis_codes(tensors, fmt, w.shape).reshape(2, 2, 2, 4).transpose(1, 2).reshape(4, 8)
    assert torch.equal(tiles, values_of(bits, fmt))


@pytest.mark.parametrize("shape", [(8, 10), (6, 8)])
def test_tiles_that_do_not_divide_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(BadFormat, match="tiles of 4 x 4 do not divide"):
        encode_trellis(torch.zeros(shape), Trellis(2, 8, 4, 4))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    w = gauss(4, 8)
    w[2, 3] = bad
    with pytest.raises(BadValue):
        encode_trellis(w, Trellis(2, 8, 4, 4))
