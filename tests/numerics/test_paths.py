"""Paths by native code are those by torch, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dither.native import library
from dither.numerics import encode_trellis, paths, trellis
from dither.numerics.paths import best_paths
from dither.spec import Trellis

pytestmark = pytest.mark.skipif(library("trellis") is None, reason="needs a C++ compiler")


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    bits=st.integers(1, 4),
    states=st.integers(2, 11),
    tiles=st.integers(1, 9),
    length=st.integers(1, 20),
    bound=st.booleans(),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_they_are_those_by_torch(bits, states, tiles, length, bound, threads, seed):
    if states < 2 * bits or length * bits < states:
        return
    fmt, x = Trellis(bits, states, 1, length), gauss(tiles, length, seed=seed)
    table = gauss(1 << states, seed=seed + 1)
    ends = torch.arange(tiles) % (1 << states - bits) if bound else None
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = best_paths(x, table, fmt, ends)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == torch.int64
    assert torch.equal(found, trellis._viterbi(x, table, fmt, ends))


@pytest.mark.parametrize("fmt", [Trellis(1), Trellis(2), Trellis(3), Trellis(4), Trellis(2, 16)], ids=str)
def test_codes_do_not_depend_on_who_found_them(fmt, monkeypatch):
    w = gauss(32, 32)
    native = encode_trellis(w, fmt)
    monkeypatch.setattr(trellis, "best_paths", lambda *given: None)
    by_torch = encode_trellis(w, fmt)
    assert all(torch.equal(native[key], by_torch[key]) for key in by_torch)


def test_tiles_that_do_not_lie_side_by_side_in_memory():
    fmt, x, table = Trellis(2, 8, 1, 8), gauss(8, 12).T, gauss(1 << 8)
    assert torch.equal(best_paths(x, table, fmt, None), best_paths(x.contiguous(), table, fmt, None))


def test_torch_does_what_native_code_does_not():
    assert best_paths(gauss(1, 4), gauss(8), Trellis(2, 3, 1, 4), None) is None
    assert best_paths(gauss(1, 4).to("meta"), gauss(16), Trellis(2, 4, 1, 4), None) is None


def test_a_failure_is_raised(monkeypatch):
    class Full:
        def dither_viterbi(self, *given: object) -> int:
            return 2

    monkeypatch.setattr(paths, "library", lambda name: Full())
    with pytest.raises(MemoryError, match=r"paths of 3 tiles through 2\^4 states"):
        best_paths(gauss(3, 4), gauss(16), Trellis(2, 4, 1, 4), None)
